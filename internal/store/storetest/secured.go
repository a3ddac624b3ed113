package storetest

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lpmos/lpmos/internal/ownstore"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/store"
)

// Secured is a store that other machines reach over mutual TLS, and whose users
// may do what their roles say.
type Secured struct {
	Own     *ownstore.Store
	Control *store.Store // the control plane's connection
	CA      *pki.Authority
	URL     string // https, for other machines
	t       testing.TB
	dir     string
}

// NewSecured starts one until the test ends.
func NewSecured(t testing.TB) *Secured {
	t.Helper()
	dir, err := os.MkdirTemp("", "lpmos-store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Secured{t: t, dir: dir}
	if s.Own, err = ownstore.Start(t.Context(), ownstore.Config{Dir: dir, Listen: "127.0.0.1:0", NoFsync: true}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Own.Close(); err != nil {
			t.Error(err)
		}
	})
	s.URL = "https://" + s.Own.Addr().String()
	if s.Control, err = s.Own.Open(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Control.Close() })
	if s.CA, err = pki.Load(filepath.Join(dir, ownstore.CAFile), false); err != nil {
		t.Fatal(err)
	}
	return s
}

// CAFile is where the authority stands.
func (s *Secured) CAFile() string { return filepath.Join(s.dir, ownstore.CAFile) }

// TLS is a client's configuration with a certificate of the site's authority
// for any name.
func (s *Secured) TLS(user string) *tls.Config {
	s.t.Helper()
	return Client(s.t, s.CA, s.CA, user, time.Now(), time.Hour)
}

// Client is a configuration that trusts one authority and shows a certificate
// by another, good from a day before now until life after it.
func Client(t testing.TB, trusted, by *pki.Authority, user string, now time.Time, life time.Duration) *tls.Config {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := by.Client(&key.PublicKey, user, now, life)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{RootCAs: trusted.Pool(), ServerName: pki.StoreName, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}}}
}

// Config is what a process with that user's certificate connects with.
func (s *Secured) Config(user string) store.Config {
	return store.Config{Endpoints: []string{s.URL}, TLS: s.TLS(user), Timeout: 30 * time.Second}
}

// Region makes a region's user, unless it is there, and connects as it.
func (s *Secured) Region(region string, n int) *store.Store {
	s.t.Helper()
	if err := s.Control.PutRegionUser(s.t.Context(), region, n); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	st, err := store.Open(ctx, s.Config(store.RegionUser(region, n)), slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { st.Close() })
	return st
}

// Raw is what a thief of that user's certificate has: etcd's own client.
func (s *Secured) Raw(user string) *clientv3.Client {
	s.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.URL}, TLS: s.TLS(user), DialTimeout: time.Minute, Logger: zap.NewNop()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}
