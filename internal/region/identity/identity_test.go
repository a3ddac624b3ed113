package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos/internal/controlplane/enroll"
	"github.com/lpmos/lpmos/internal/controlplane/rest"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/region/identity"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

var quiet = slog.New(slog.DiscardHandler)

// office is a control plane's enrollment.
type office struct {
	*storetest.Secured
	svc *enroll.Service
	url string
	// lose makes the answer of the next request vanish on its way.
	lose atomic.Bool
	// older has the next request answered as by a version without the route.
	older atomic.Bool
}

func newOffice(t *testing.T, life time.Duration) *office {
	t.Helper()
	o := &office{Secured: storetest.NewSecured(t)}
	o.svc = enroll.New(enroll.Config{
		CA: o.CA, EtcdCA: o.CA.PEM(), EtcdName: pki.StoreName, Endpoints: func(string) []string { return []string{o.URL} }, Cut: o.Own.Disconnect, Life: life,
	}, o.Control, quiet)
	a := rest.New(nil, nil, nil, nil, nil, nil, quiet)
	a.Enroll(o.svc)
	h := a.Handler(http.NotFoundHandler())
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o.lose.CompareAndSwap(true, false) {
			h.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		if o.older.CompareAndSwap(true, false) {
			http.NotFound(w, r)
			return
		}
		h.ServeHTTP(w, r)
	}))
	srv.TLS = o.server(t)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	o.url = srv.URL
	return o
}

func (o *office) server(t *testing.T) *tls.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "server.pem")
	if _, err := o.CA.Server(path, []string{pki.ControlPlaneName}, time.Now()); err != nil {
		t.Fatal(err)
	}
	c, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{c}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: o.CA.Pool(), MinVersion: tls.VersionTLS13}
}

func (o *office) token(t *testing.T) pki.Token {
	t.Helper()
	e, err := o.svc.Enroll(t.Context(), "dc1", 0, "", "me")
	if err != nil {
		t.Fatal(err)
	}
	token, err := pki.ParseToken(e.Token)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestEnroll(t *testing.T) {
	o := newOffice(t, 0)
	dir := filepath.Join(t.TempDir(), "new")
	token := o.token(t)

	t.Run("survives an answer that is lost", func(t *testing.T) {
		o.lose.Store(true)
		if _, err := identity.Enroll(t.Context(), dir, token, o.url, quiet); err == nil {
			t.Fatal("Enroll worked without an answer")
		}
		if _, ok, err := identity.Load(dir, quiet); ok || err != nil {
			t.Fatalf("Load = %v, %v; want nothing yet", ok, err)
		}
		id, err := identity.Enroll(t.Context(), dir, token, o.url, quiet)
		if err != nil || id.Region() != "dc1" || !id.By(token) {
			t.Fatalf("Enroll = %v, %v", id, err)
		}
	})
	t.Run("stores what only the owner can read, and it is enough", func(t *testing.T) {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v; want one file", entries, err)
		}
		if info, err := entries[0].Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		id, ok, err := identity.Load(dir, quiet)
		if err != nil || !ok || id.ControlPlaneURL() != o.url {
			t.Fatalf("Load = %v, %v", ok, err)
		}
		cfg, err := id.Store()
		if err != nil {
			t.Fatal(err)
		}
		st, err := store.Open(t.Context(), cfg, quiet)
		if err != nil {
			t.Fatal(err)
		}
		st.Close()
	})
	t.Run("refuses a file that others can read, or of another region", func(t *testing.T) {
		path := filepath.Join(dir, "identity.json")
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := identity.Load(dir, quiet); ok || err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("Load = %v, %v", ok, err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		other := t.TempDir()
		for _, text := range []string{strings.Replace(string(b), `"dc1"`, `"dc2"`, 1), "", "{}", string(b[:len(b)/2])} {
			if err := os.WriteFile(filepath.Join(other, "identity.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, ok, err := identity.Load(other, quiet); ok || err == nil || !strings.Contains(err.Error(), "enroll the region again") {
				t.Errorf("Load of %.30q = %v, %v", text, ok, err)
			}
		}
	})
	t.Run("trusts only the authority that the token names", func(t *testing.T) {
		foreign, err := pki.Load(filepath.Join(t.TempDir(), "ca.pem"), true)
		if err != nil {
			t.Fatal(err)
		}
		wrong := o.token(t)
		wrong.Authority = pki.Fingerprint(foreign.Certificate())
		if _, err := identity.Enroll(t.Context(), t.TempDir(), wrong, o.url, quiet); err == nil || !strings.Contains(err.Error(), "not the control plane that made the token") {
			t.Errorf("Enroll = %v", err)
		}
		// The right authority in the chain, and a leaf that is not of it.
		mixed := o.server(t)
		key, _ := pki.NewKey()
		path := filepath.Join(t.TempDir(), "x.pem")
		if _, err := foreign.Server(path, []string{pki.ControlPlaneName}, time.Now()); err != nil {
			t.Fatal(err)
		}
		leaf, err := tls.LoadX509KeyPair(path, path)
		if err != nil || key == nil {
			t.Fatal(err)
		}
		leaf.Certificate = [][]byte{leaf.Certificate[0], o.CA.Certificate().Raw}
		mixed.Certificates = []tls.Certificate{leaf}
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the token was sent to a stranger") }))
		srv.TLS = mixed
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
		srv.StartTLS()
		defer srv.Close()
		if _, err := identity.Enroll(t.Context(), t.TempDir(), o.token(t), srv.URL, quiet); err == nil {
			t.Error("a stranger who shows our authority's certificate was trusted")
		}
		if _, err := identity.Enroll(t.Context(), t.TempDir(), o.token(t), strings.Replace(o.url, "https", "http", 1), quiet); err == nil || !strings.Contains(err.Error(), "https://") {
			t.Errorf("Enroll over plain HTTP = %v", err)
		}
	})
}

// A certificate that lives for seconds is renewed again and again while the
// session with the store stands.
func TestKeepRenews(t *testing.T) {
	o := newOffice(t, 6*time.Second)
	dir := t.TempDir()
	id, err := identity.Enroll(t.Context(), dir, o.token(t), o.url, quiet)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := id.Store()
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	ctx, cancel := context.WithCancel(t.Context())
	kept := make(chan error, 1)
	go func() { kept <- id.Keep(ctx, st) }()
	certificates := func() map[string]bool {
		known, err := o.Control.Identity(t.Context(), "dc1")
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]bool{}
		for _, c := range known.Certificates {
			out[c.Serial] = true
		}
		return out
	}
	seen := map[string]bool{}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never so: %s", what)
			}
			for s := range certificates() {
				seen[s] = true
			}
		}
	}
	until("three certificates were issued", func() bool { return len(seen) >= 3 })
	t.Run("on demand", func(t *testing.T) {
		n := len(seen)
		if err := o.svc.Rotate(t.Context(), "dc1", "me"); err != nil {
			t.Fatal(err)
		}
		until("one more was issued", func() bool { return len(seen) > n })
	})
	t.Run("after an answer that is no word on the region", func(t *testing.T) {
		n := len(seen)
		o.older.Store(true)
		until("one more was issued", func() bool { return !o.older.Load() && len(seen) > n })
	})
	if err := st.Healthy(t.Context()); err != nil {
		t.Errorf("the connection from before = %v", err)
	}
	t.Run("and the file is that of now", func(t *testing.T) {
		again, ok, err := identity.Load(dir, quiet)
		if err != nil || !ok {
			t.Fatal(err)
		}
		cfg, err := again.Store()
		if err != nil {
			t.Fatal(err)
		}
		c, err := cfg.TLS.GetClientCertificate(nil)
		if err != nil || c.Leaf.NotAfter.Before(time.Now().Add(-time.Second)) {
			t.Errorf("the certificate in the file ended at %v (%v)", c.Leaf.NotAfter, err)
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: o.CA.Pool(), CurrentTime: c.Leaf.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Error(err)
		}
	})
	t.Run("until it is revoked", func(t *testing.T) {
		if err := o.svc.Revoke(t.Context(), "dc1", "me"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-kept:
			if err == nil {
				t.Error("Keep ended without an error")
			}
		case <-time.After(60 * time.Second):
			t.Error("Keep goes on")
		}
	})
	cancel()
}
