package imageimport

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos/test/fixture"
)

func TestGuard(t *testing.T) {
	g := Guard{Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	for addr, allowed := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1111": true, "10.1.2.3": true, "::ffff:10.1.2.3": true,
		"127.0.0.1": false, "127.8.9.1": false, "::1": false, "0.0.0.0": false, "::": false,
		"10.2.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "100.64.0.1": false,
		"169.254.169.254": false, "::ffff:169.254.169.254": false, "fe80::1": false, "fe80::1%eth0": false,
		"fd00::1": false, "224.0.0.1": false, "255.255.255.255": false, "ff02::1": false, "64:ff9b::a9fe:a9fe": false, "2002:7f00:1::": false,
	} {
		if err := g.Check(netip.MustParseAddr(addr)); (err == nil) != allowed {
			t.Errorf("Check(%s) = %v; want it allowed: %v", addr, err, allowed)
		}
	}
	if err := g.Check(netip.Addr{}); err == nil {
		t.Error("no address at all is allowed")
	}
	for s, want := range map[string]string{
		"https://mirror.example/x": "", "http://mirror.example/x": "http is not allowed", "file:///etc/passwd": `"file:"`,
		"ftp://mirror.example/x": `"ftp:"`, "gopher://x/": `"gopher:"`, "https:///x": "names no host", "https://[fe80::1%25eth0]/x": "network interface",
	} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.CheckURL(u); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("CheckURL(%s) = %v; want %q", s, err, want)
		}
	}
}

// loopback allows the servers of tests.
var loopback = Guard{Plain: true, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}

func quick() Limits {
	l := Limits{Idle: 5 * time.Second, RetryWait: time.Millisecond}
	l.defaults()
	return l
}

func fetched(t *testing.T, g Guard, l Limits, address string, dir string) ([]byte, error) {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	name, err := newFetcher(g, l, func(string, int64, int64) {}).file(t.Context(), u, dir)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(name)
	must(t, err)
	return b, nil
}

// TestFetchStaysOutside is A6 and V20: no address leads to this computer or its
// neighbours, whatever names and redirects say.
func TestFetchStaysOutside(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Write([]byte("secret"))
	}))
	defer srv.Close()
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	must(t, err)
	t.Run("by an address", func(t *testing.T) {
		if _, err := fetched(t, Guard{Plain: true}, quick(), srv.URL, t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a public address") {
			t.Errorf("file(loopback) = %v", err)
		}
	})
	t.Run("by a name that resolves to loopback", func(t *testing.T) {
		if _, err := fetched(t, Guard{Plain: true}, quick(), "http://localhost:"+port+"/", t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a public address") {
			t.Errorf("file(localhost) = %v", err)
		}
	})
	if asked.Load() != 0 {
		t.Error("the server was connected to")
	}
	redirect := func(to string) string {
		s := httptest.NewServer(http.RedirectHandler(to, http.StatusFound))
		t.Cleanup(s.Close)
		return s.URL
	}
	for name, c := range map[string]struct{ to, want string }{
		"by a redirect to another network": {"http://169.254.169.254/latest/meta-data", "not a public address"},
		"by a redirect to a file":          {"file:///etc/passwd", `"file:"`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := fetched(t, loopback, quick(), redirect(c.to), t.TempDir()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("file = %v; want an error with %q", err, c.want)
			}
		})
	}
	t.Run("by a redirect from https to http", func(t *testing.T) {
		s := httptest.NewTLSServer(http.RedirectHandler(srv.URL, http.StatusFound))
		defer s.Close()
		f := newFetcher(loopback, quick(), func(string, int64, int64) {})
		f.client.Transport.(*http.Transport).TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig
		u, err := url.Parse(s.URL)
		must(t, err)
		if _, err := f.file(t.Context(), u, t.TempDir()); err == nil || !strings.Contains(err.Error(), "from https to http") {
			t.Errorf("file = %v", err)
		}
	})
	t.Run("with secrets of the address in an error", func(t *testing.T) {
		_, err := fetched(t, Guard{Plain: true}, quick(), "http://user:hunter2@localhost:"+port+"/x?token=hunter2", t.TempDir())
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("file = %v; want an error without the password", err)
		}
	})
}

// TestFetchTrustsNobodyElse is M10: what a mirror shows is looked at by everybody's
// rules.
func TestFetchTrustsNobodyElse(t *testing.T) {
	authority, key := certificate(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	roots := x509.NewCertPool()
	roots.AddCert(authority.Leaf)
	by := func(edit func(*x509.Certificate)) tls.Certificate {
		c := &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
		edit(c)
		leaf, _ := certificate(t, c, authority.Leaf, key)
		return leaf
	}
	good := by(func(*x509.Certificate) {})
	self, _ := certificate(t, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, nil, nil)
	for name, c := range map[string]struct {
		cert tls.Certificate
		most uint16 // version of TLS that the mirror speaks; 0 is any
		want string // "": the file
	}{
		"a good one":                          {good, 0, ""},
		"one that nobody signed":              {self, 0, "certificate"},
		"one of yesterday":                    {by(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-24 * time.Hour) }), 0, "expired"},
		"one of tomorrow":                     {by(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(24 * time.Hour) }), 0, "not yet valid"},
		"one of another host":                 {by(func(c *x509.Certificate) { c.IPAddresses = nil; c.DNSNames = []string{"elsewhere.example"} }), 0, "certificate"},
		"a good one, by TLS of the year 1999": {good, tls.VersionTLS10, "protocol version"},
		"a good one, by TLS of the year 2006": {good, tls.VersionTLS11, "protocol version"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("the file")) }))
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.TLS = &tls.Config{Certificates: []tls.Certificate{c.cert}, MinVersion: tls.VersionTLS10, MaxVersion: c.most}
			s.StartTLS()
			defer s.Close()
			l := quick()
			l.Retries = 1
			f := newFetcher(loopback, l, func(string, int64, int64) {})
			f.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: roots} // in place of the system's
			u, err := url.Parse(s.URL)
			must(t, err)
			_, err = f.file(t.Context(), u, t.TempDir())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("file = %v; want %q", err, c.want)
			}
		})
	}
}

// certificate makes one that is valid now, if c does not say otherwise, signed by
// parent or by itself.
func certificate(t *testing.T, c, parent *x509.Certificate, signer *ecdsa.PrivateKey) (tls.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c.SerialNumber = big.NewInt(1)
	if c.NotBefore.IsZero() {
		c.NotBefore = time.Now().Add(-48 * time.Hour)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(48 * time.Hour)
	}
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, key
}

// TestFetchFaults is M01, M02, M05 and M06.
func TestFetchFaults(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	ranged := func(w http.ResponseWriter, r *http.Request, cut int) {
		w.Header().Set("ETag", `"v1"`)
		from := 0
		if s := r.Header.Get("Range"); s != "" && r.Header.Get("If-Range") == `"v1"` {
			fmt.Sscanf(s, "bytes=%d-", &from)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(want)-1, len(want)))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(want)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		rest := want[from:]
		if cut > 0 && cut < len(rest) {
			rest = rest[:cut]
		}
		w.Write(rest)
	}
	for _, c := range []struct {
		name  string
		serve func(n int32, w http.ResponseWriter, r *http.Request)
		limit func(*Limits)
		want  string // "": the file
	}{
		{name: "cut after a third, thrice", serve: func(_ int32, w http.ResponseWriter, r *http.Request) { ranged(w, r, len(want)/3) }},
		{name: "500 twice", serve: func(n int32, w http.ResponseWriter, r *http.Request) {
			if n <= 2 {
				http.Error(w, "x", 500)
				return
			}
			ranged(w, r, 0)
		}},
		{name: "a server without ranges that breaks once", serve: func(n int32, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(want)))
			if n == 1 {
				w.Write(want[:100_000])
				return
			}
			w.Write(want)
		}},
		{name: "chunked, without a length", serve: func(_ int32, w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			w.Write(want)
		}},
		{name: "a range at another place", serve: func(n int32, w http.ResponseWriter, r *http.Request) {
			if n == 2 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(want)-1, len(want)))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(want[5:])
				return
			}
			cut := 0
			if n == 1 {
				cut = 70_000
			}
			ranged(w, r, cut)
		}},
		{name: "404", serve: func(_ int32, w http.ResponseWriter, _ *http.Request) { http.Error(w, "x", 404) }, want: "404"},
		{name: "500 for ever", serve: func(_ int32, w http.ResponseWriter, _ *http.Request) { http.Error(w, "x", 500) }, limit: func(l *Limits) { l.Retries = 2 }, want: "500"},
		{name: "a web page", serve: func(_ int32, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Write([]byte("<html>log in"))
		}, want: "a web page"},
		{name: "gzip that was not asked for", serve: func(_ int32, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write([]byte("x"))
		}, want: "encoded"},
		{name: "a length over the limit", serve: func(_ int32, w http.ResponseWriter, r *http.Request) { ranged(w, r, 0) }, limit: func(l *Limits) { l.Bytes = 1000 }, want: "more than the"},
		{name: "an endless body", serve: func(_ int32, w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(want); err != nil {
					return
				}
			}
		}, limit: func(l *Limits) { l.Bytes = 8 << 20 }, want: "more bytes come"},
		{name: "a stall after the head", serve: func(_ int32, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(want)))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, limit: func(l *Limits) { l.Idle, l.Retries = 100*time.Millisecond, 1 }, want: "less than 64 KiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var n atomic.Int32
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.serve(n.Add(1), w, r) }))
			defer srv.Close()
			l := quick()
			if c.limit != nil {
				c.limit(&l)
			}
			got, err := fetched(t, loopback, l, srv.URL+"/image.raw", t.TempDir())
			switch {
			case c.want == "" && err != nil:
				t.Errorf("file = %v", err)
			case c.want == "" && !bytes.Equal(got, want):
				t.Errorf("file = %d bytes that are not those of the server", len(got))
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("file = %v; want an error with %q", err, c.want)
			}
		})
	}
}

// TestFetchGoesOnInTheNextCall breaks one call off for good and wants the next
// to ask for the rest only, unless the file is another one by then.
func TestFetchGoesOnInTheNextCall(t *testing.T) {
	body := bytes.Repeat([]byte("x"), 1<<20)
	tag := `"v1"`
	var broken atomic.Bool
	var sent atomic.Int64
	broken.Store(true)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", tag)
		if broken.Load() {
			if r.Header.Get("Range") != "" {
				http.Error(w, "x", http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.Write(body[:512<<10])
			return
		}
		rec := &counter{ResponseWriter: w, n: &sent}
		http.ServeContent(rec, r, "x", time.Time{}, bytes.NewReader(body))
	}))
	defer srv.Close()
	dir := t.TempDir()
	l := quick()
	l.Retries = 1
	if _, err := fetched(t, loopback, l, srv.URL, dir); err == nil || !strings.Contains(err.Error(), "goes on from there") {
		t.Fatalf("file = %v; want an error that says that the beginning is kept", err)
	}
	broken.Store(false)
	if got, err := fetched(t, loopback, l, srv.URL, dir); err != nil || !bytes.Equal(got, body) {
		t.Fatalf("file = %d bytes, %v", len(got), err)
	}
	if n := sent.Load(); n > 600<<10 {
		t.Errorf("%d bytes were sent again; the first half was there", n)
	}
	tag, body = `"v2"`, bytes.Repeat([]byte("y"), 1<<20)
	if got, err := fetched(t, loopback, l, srv.URL, dir); err != nil || !bytes.Equal(got, body) {
		t.Errorf("file after a change = %d bytes, %v; want the new content", len(got), err)
	}
}

// TestFetchNothingOfWhatIsWhole wants a file that is there to be taken, if the
// server has no other one by then.
func TestFetchNothingOfWhatIsWhole(t *testing.T) {
	for name, serve := range map[string]func(http.ResponseWriter, *http.Request, []byte){
		"a server with ranges": func(w http.ResponseWriter, r *http.Request, body []byte) {
			http.ServeContent(w, r, "x", time.Time{}, bytes.NewReader(body))
		},
		"a server without ranges": func(w http.ResponseWriter, _ *http.Request, body []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.Write(body)
		},
		"a server that says no more than that it has no such range": func(w http.ResponseWriter, r *http.Request, body []byte) {
			if r.Header.Get("If-Range") == w.Header().Get("ETag") {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.Write(body)
		},
		"a server that does not ask what was there": func(w http.ResponseWriter, r *http.Request, body []byte) {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", len(body)))
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			w.Write(body)
		},
	} {
		t.Run(name, func(t *testing.T) {
			body, tag := bytes.Repeat([]byte("x"), 1<<20), `"v1"`
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("ETag", tag)
				serve(w, r, body)
			}))
			defer srv.Close()
			u, err := url.Parse(srv.URL)
			must(t, err)
			dir, came := t.TempDir(), false
			f := newFetcher(loopback, quick(), func(string, int64, int64) { came = true })
			for i, change := range []func(){
				func() {},
				func() {}, // the same again
				func() { tag, body = `"v2"`, bytes.Repeat([]byte("y"), 1<<20) },
				func() { tag, body = `"v3"`, bytes.Repeat([]byte("z"), 1<<19) },
			} {
				change()
				came = false
				path, err := f.file(t.Context(), u, dir)
				must(t, err)
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, body) || came != (i != 1) {
					t.Errorf("call %d = %d bytes, %v, fetched: %v; want the %d of %s", i, len(got), err, came, len(body), tag)
				}
			}
		})
	}
}

type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.ResponseWriter.Write(b)
}

func TestImportOverHTTP(t *testing.T) {
	path := ubuntu(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) }))
	defer srv.Close()
	r := request(t, strings.Replace(srv.URL, "http://", "http://me:hunter2@", 1)+"/noble.img?token=hunter2", "raw")
	res, err := Import(t.Context(), r, loopback, quick(), nil)
	must(t, err)
	if u := res.Image.Source.URL; u != srv.URL+"/noble.img" {
		t.Errorf("source is %s; want the address without its secrets", u)
	}
	if left, _ := os.ReadDir(r.WorkDir); len(left) > 0 {
		t.Errorf("the import left %v", left)
	}
	t.Run("wrong bytes are not kept", func(t *testing.T) {
		r := request(t, srv.URL+"/noble.img", "raw")
		r.Sum = Sum{"sha256", strings.Repeat("0", 64)}
		if _, err := Import(t.Context(), r, loopback, quick(), nil); err == nil || !strings.Contains(err.Error(), "not the file that was meant") {
			t.Errorf("Import = %v", err)
		}
		if left, _ := os.ReadDir(r.WorkDir); len(left) > 0 {
			t.Errorf("the import left %v", left)
		}
	})
	t.Run("an image that cannot be installed is not kept", func(t *testing.T) {
		path := tarOf(t, fixture.System("ubuntu", "Ubuntu", "24.04"))
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) }))
		defer srv.Close()
		r := request(t, srv.URL+"/root.tar", "tar")
		_, err := Import(t.Context(), r, loopback, quick(), nil)
		if _, ok := errors.AsType[*BlockedError](err); !ok {
			t.Errorf("Import of a system without a kernel = %v; want a BlockedError", err)
		}
		if left, _ := os.ReadDir(r.WorkDir); len(left) > 0 {
			t.Errorf("the import left %v", left)
		}
	})
	t.Run("what is whole is not fetched again", func(t *testing.T) {
		r := request(t, srv.URL+"/noble.img", "raw")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, err := Import(ctx, r, loopback, quick(), func(step string, _, _ int64) {
			if step == "packing" {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Import that is stopped while it packs = %v", err)
		}
		_, err = Import(t.Context(), r, loopback, quick(), func(step string, _, _ int64) {
			if step == "downloading" {
				t.Fatal("it is fetched again")
			}
		})
		must(t, err)
	})
	t.Run("a person who stops it is obeyed", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Import(ctx, request(t, srv.URL+"/noble.img", "raw"), loopback, quick(), nil); !errors.Is(err, context.Canceled) {
			t.Errorf("Import = %v; want context.Canceled", err)
		}
	})
}
