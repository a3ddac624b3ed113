package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

var quiet = slog.New(slog.DiscardHandler)

func TestListening(t *testing.T) {
	for _, tt := range []struct {
		name   string
		cfg    Config
		secure bool
		addr   string // "" for an error
	}{
		{"nothing said", Config{}, false, "127.0.0.1:8080"},
		{"the founding value", Config{ListenAddr: ":8080"}, false, "127.0.0.1:8080"},
		{"loopback", Config{ListenAddr: "127.0.0.1:9000"}, false, "127.0.0.1:9000"},
		{"loopback by name", Config{ListenAddr: "localhost:9000"}, false, "localhost:9000"},
		{"IPv6 loopback", Config{ListenAddr: "[::1]:9000"}, false, "[::1]:9000"},
		{"every address", Config{ListenAddr: ":8443"}, true, ":8443"},
		{"every address by number", Config{ListenAddr: "0.0.0.0:8080"}, true, "0.0.0.0:8080"},
		{"one address", Config{ListenAddr: "10.0.0.1:8080"}, true, "10.0.0.1:8080"},
		{"TLS on loopback", Config{ListenAddr: "127.0.0.1:9000", TLS: true}, true, "127.0.0.1:9000"},
		{"TLS at the founding value", Config{ListenAddr: ":8080", TLS: true}, true, ":8080"},
		{"a certificate at the founding value", Config{ListenAddr: ":8080", TLSCert: "c", TLSKey: "k"}, true, ":8080"},
		{"without TLS", Config{ListenAddr: ":8080", InsecureHTTP: true}, false, ":8080"},
		{"without TLS elsewhere", Config{ListenAddr: "10.0.0.1:80", InsecureHTTP: true}, false, "10.0.0.1:80"},
		{"with and without TLS", Config{ListenAddr: ":8080", InsecureHTTP: true, TLS: true}, false, ""},
		{"a certificate without its key", Config{ListenAddr: ":8080", TLSCert: "c"}, false, ""},
		{"no address", Config{ListenAddr: "8080"}, false, ""},
	} {
		secure, addr, err := listening(tt.cfg)
		if secure != tt.secure || addr != tt.addr || (err != nil) != (tt.addr == "") {
			t.Errorf("%s: TLS %v at %q, %v; want %v at %q", tt.name, secure, addr, err, tt.secure, tt.addr)
		}
	}
}

// plane runs a control plane on a secured store until the test ends.
func plane(t *testing.T, s *storetest.Secured, cfg Config) *ControlPlane {
	t.Helper()
	cfg.DataDir, cfg.CheapPasswords, cfg.NoLogin = t.TempDir(), true, cfg.OIDC.Issuer == "" // who may do what is tested elsewhere
	if cfg.ListenAddr == "" {
		cfg.ListenAddr = "127.0.0.1:0"
	}
	cfg.Etcd = OwnEtcd(s.Own, "127.0.0.1:0", nil)
	c, err := New(cfg, s.Control, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	select {
	case <-c.State().Synced():
	case <-time.After(30 * time.Second):
		t.Fatal("the control plane has not read the store")
	}
	return c
}

func get(t *testing.T, c *tls.Config, url string) (*http.Response, string, error) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: c}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr, Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func TestOwnCertificate(t *testing.T) {
	s := storetest.NewSecured(t)
	c := plane(t, s, Config{TLS: true, CA: caFile(t)})
	roots := x509.NewCertPool()
	roots.AddCert(c.Authority())
	if b, err := os.ReadFile(c.AuthorityFile()); err != nil || !roots.AppendCertsFromPEM(b) {
		t.Errorf("the authority's file: %v", err)
	}
	resp, body, err := get(t, &tls.Config{RootCAs: roots}, c.URL()+"/dashboard")
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	if h := resp.Header.Get("Strict-Transport-Security"); h != "" {
		t.Errorf("HSTS %q with a certificate of our own", h)
	}
	if strings.Contains(body, "--insecure-http") {
		t.Error("the page calls TLS insecure")
	}
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		if _, _, err := get(t, &tls.Config{RootCAs: roots, MinVersion: v, MaxVersion: v}, c.URL()+"/healthz"); err == nil {
			t.Errorf("%s is spoken", tls.VersionName(v))
		}
	}
	if _, _, err := get(t, &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12}, c.URL()+"/healthz"); err != nil {
		t.Errorf("TLS 1.2 = %v", err)
	}
	if _, _, err := get(t, &tls.Config{}, c.URL()+"/healthz"); err == nil {
		t.Error("a client that does not know the authority trusts it")
	}
	t.Run("nobody but regions is asked for a certificate", func(t *testing.T) {
		for name, want := range map[string]bool{"localhost": false, pki.ControlPlaneName: true} {
			asked := false
			_, _, err := get(t, &tls.Config{RootCAs: roots, ServerName: name, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				return &tls.Certificate{}, nil
			}}, c.URL()+"/healthz")
			if err != nil || asked != want {
				t.Errorf("%s: asked is %v, %v; want %v", name, asked, err, want)
			}
		}
	})
}

func caFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if _, err := pki.Load(path, true); err != nil {
		t.Fatal(err)
	}
	return path
}

// T06 and M10 for the control plane: which certificates of regions it takes.
func TestPeers(t *testing.T) {
	s := storetest.NewSecured(t)
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := copyFile(path, s.CAFile()); err != nil {
		t.Fatal(err)
	}
	c := plane(t, s, Config{TLS: true, CA: path})
	foreign, err := pki.Load(caFile(t), false)
	if err != nil {
		t.Fatal(err)
	}
	user, now := store.RegionUser("dc1", 1), time.Now()
	known := storetest.Client(t, s.CA, s.CA, user, now, time.Hour)
	err = s.Control.EditIdentity(t.Context(), "dc1", func(id *store.Identity) error {
		id.Users = 1
		id.Certificates = []store.RegionCertificate{{User: 1, Serial: known.Certificates[0].Leaf.SerialNumber.Text(16), NotAfter: now.Add(time.Hour)}}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	missing := c.URL() + "/api/v1/blobs/" + strings.Repeat("0", 64) // what a region may ask for
	for _, tt := range []struct {
		name string
		cfg  *tls.Config
		want int // 0: no connection; 404: it may ask
	}{
		{"its own", known, 404},
		{"none", &tls.Config{RootCAs: s.CA.Pool()}, 404},
		{"one that was not issued", storetest.Client(t, s.CA, s.CA, user, now, time.Hour), 403},
		{"the control plane's for etcd", storetest.Client(t, s.CA, s.CA, store.ControlUser, now, time.Hour), 403},
		{"root's", storetest.Client(t, s.CA, s.CA, "root", now, time.Hour), 403},
		{"an expired one", storetest.Client(t, s.CA, s.CA, user, now.Add(-48*time.Hour), time.Hour), 0},
		{"one of another site", storetest.Client(t, s.CA, foreign, user, now, time.Hour), 0},
	} {
		cfg := tt.cfg.Clone()
		cfg.ServerName = pki.ControlPlaneName
		if cfg.Certificates != nil {
			// Shown although the server does not list its authority.
			shown := cfg.Certificates[0]
			cfg.Certificates, cfg.GetClientCertificate = nil, func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &shown, nil }
		}
		resp, body, err := get(t, cfg, missing)
		switch {
		case tt.want == 0 && err == nil:
			t.Errorf("%s: answered %d", tt.name, resp.StatusCode)
		case tt.want != 0 && (err != nil || resp.StatusCode != tt.want):
			t.Errorf("%s: %v, %v %s; want %d", tt.name, resp, err, body, tt.want)
		case tt.want == 403:
			var p struct{ Status int }
			if err := json.Unmarshal([]byte(body), &p); err != nil || p.Status != 403 || resp.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s: the answer is %s", tt.name, body)
			}
		}
	}
	t.Run("not any more once it is revoked", func(t *testing.T) {
		cfg := known.Clone()
		cfg.ServerName = pki.ControlPlaneName
		tr := &http.Transport{TLSClientConfig: cfg}
		defer tr.CloseIdleConnections()
		ask := func() int {
			resp, err := (&http.Client{Transport: tr}).Get(missing)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			return resp.StatusCode
		}
		if got := ask(); got != 404 {
			t.Fatalf("before: %d", got)
		}
		if err := c.ids.Revoke(t.Context(), "dc1", "me"); err != nil {
			t.Fatal(err)
		}
		if got := ask(); got != 403 {
			t.Errorf("on the same connection, after: %d; want 403", got)
		}
	})
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// An operator's certificate is shown to people, replaced without a restart, and
// makes browsers stay with TLS; regions see the site's own.
func TestGivenCertificate(t *testing.T) {
	s := storetest.NewSecured(t)
	dir := t.TempDir()
	theirs, err := pki.Load(filepath.Join(dir, "their-ca.pem"), true)
	if err != nil {
		t.Fatal(err)
	}
	cert := filepath.Join(dir, "tls.pem")
	if _, err := theirs.Server(cert, []string{"localhost", "127.0.0.1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	c := plane(t, s, Config{TLSCert: cert, TLSKey: cert, CA: s.CAFile()})
	resp, _, err := get(t, &tls.Config{RootCAs: theirs.Pool()}, c.URL()+"/healthz")
	if err != nil || resp.Header.Get("Strict-Transport-Security") == "" {
		t.Fatalf("%v, %v; want HSTS", resp, err)
	}
	first := resp.TLS.PeerCertificates[0].SerialNumber
	if _, _, err := get(t, &tls.Config{RootCAs: s.CA.Pool(), ServerName: pki.ControlPlaneName}, c.URL()+"/healthz"); err != nil {
		t.Errorf("as a region = %v", err)
	}
	if c.Authority() != nil {
		t.Error("people are told to trust the site's authority")
	}
	if renewed, err := theirs.Server(cert, []string{"localhost", "127.0.0.1", "new"}, time.Now()); err != nil || !renewed {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		resp, _, err := get(t, &tls.Config{RootCAs: theirs.Pool()}, c.URL()+"/healthz")
		if err != nil {
			t.Fatal(err)
		}
		if resp.TLS.PeerCertificates[0].SerialNumber.Cmp(first) != 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the new certificate is not shown")
		}
	}
}

func TestInsecureIsSaid(t *testing.T) {
	s := storetest.NewSecured(t)
	for insecure, want := range map[bool]bool{true: true, false: false} {
		c := plane(t, s, Config{InsecureHTTP: insecure})
		for _, page := range []string{"/dashboard", "/tasks", "/regions", "/no-such-page"} {
			resp, body, err := get(t, nil, c.URL()+page)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(body, "--insecure-http"); got != want || resp.Header.Get("Strict-Transport-Security") != "" {
				t.Errorf("%s with insecure %v: the banner is there: %v", page, insecure, got)
			}
		}
	}
}

func TestEndpointsForRegions(t *testing.T) {
	for _, tt := range []struct{ endpoint, host, want string }{
		{"https://:2379", "lpmos.example.net:8443", "https://lpmos.example.net:2379"},
		{"https://:2379", "[2001:db8::1]:8443", "https://[2001:db8::1]:2379"},
		{"https://:2379", "lpmos.example.net", "https://lpmos.example.net:2379"},
		{"https://10.0.0.5:2379", "lpmos.example.net:8443", "https://10.0.0.5:2379"},
		{"https://:2379", "", ""},
	} {
		if got := strings.Join(RegionEtcd{Endpoints: []string{tt.endpoint}}.endpoints(tt.host), ","); got != tt.want {
			t.Errorf("%s reached at %s becomes %s; want %s", tt.endpoint, tt.host, got, tt.want)
		}
	}
}
