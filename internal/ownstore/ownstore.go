// Package ownstore runs the store in this process, for a control plane without
// an etcd of its own: on a unix socket that only this user reaches, and if
// other machines are to reach it as well, with mutual TLS and rights.
//
// Once it was open to others it stays so secured: etcd remembers its users, and
// from then on this process needs a certificate as well. It uses one over TLS
// on the socket rather than a password, so that there is one way to be somebody
// for every client, no secret but a key that the authority can replace, and no
// token that runs out in the middle of a watch.
package ownstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/lpmos/lpmos/internal/embedetcd"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/store"
)

// Config of a store in this process.
type Config struct {
	Dir    string // data directory of the control plane; the store is below it
	Listen string // host:port for other machines; "" for none
	CA     string // PEM file of the site's authority; "" means CAFile in Dir
	// NoFsync trades crash safety for speed. Tests only.
	NoFsync bool
}

// What stands in the data directory.
const (
	CAFile     = "site-ca.pem"            // key and certificate of the site's authority
	clientFile = "etcd-client.pem"        // this process's certificate for the store
	serverFile = "etcd-server.pem"        // the store's
	trustFile  = "etcd-clients-ca.crt"    // whom the store lets in
	markerFile = "etcd/authentication-on" // the store asks who somebody is
)

// Store is the store while it runs.
type Store struct {
	etcd  *embedetcd.Server
	cfg   Config
	ca    *pki.Authority
	names []string
	addr  net.Addr
	log   *slog.Logger
}

// Start starts it; it serves when Start returns.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (_ *Store, err error) {
	if cfg.CA == "" {
		cfg.CA = filepath.Join(cfg.Dir, CAFile)
	}
	s := &Store{cfg: cfg, log: log}
	_, err = os.Stat(s.path(markerFile))
	secured := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for the store: %w", err)
	}
	ec := embedetcd.Config{Dir: s.path("etcd"), NoFsync: cfg.NoFsync}
	if secured || cfg.Listen != "" {
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("make data directory: %w", err)
		}
		if s.ca, err = pki.Load(cfg.CA, true); err != nil {
			return nil, err
		}
		s.names = append([]string{pki.StoreName}, pki.Names(cfg.Listen)...)
		if err := s.certificates(time.Now()); err != nil {
			return nil, err
		}
		if err := pki.Replace(s.path(trustFile), s.ca.PEM()); err != nil {
			return nil, fmt.Errorf("store authority: %w", err)
		}
		ec.TLS = &embedetcd.TLS{Cert: s.path(serverFile), Key: s.path(serverFile), ClientCA: s.path(trustFile)}
	}
	var l net.Listener
	if cfg.Listen != "" {
		if l, err = service.Listen(cfg.Listen); err != nil {
			return nil, err
		}
		s.addr = l.Addr()
	}
	defer func() {
		if err != nil && l != nil {
			l.Close()
		}
	}()
	if s.etcd, err = embedetcd.Start(ctx, ec, log); err != nil {
		return nil, err
	}
	if l == nil {
		return s, nil
	}
	// Nobody is let in before it asks who they are.
	if err = s.secure(ctx); err == nil {
		err = s.etcd.Listen(l, log)
	}
	if err != nil {
		return nil, errors.Join(err, s.etcd.Close())
	}
	log.Info("store is open to regions", "addr", l.Addr())
	return s, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.cfg.Dir, name) }

// certificates makes what is missing or near its end.
func (s *Store) certificates(now time.Time) error {
	if _, err := s.ca.Server(s.path(serverFile), s.names, now); err != nil {
		return err
	}
	_, err := s.ca.ClientFile(s.path(clientFile), store.ControlUser, now)
	return err
}

func (s *Store) secure(ctx context.Context) error {
	st, err := s.Open(ctx, s.log)
	if err != nil {
		return err
	}
	defer st.Close()
	// Should we die in between, the next start mends what is missing: with the
	// mark, this process comes with its certificate either way.
	if err := pki.Replace(s.path(markerFile), []byte("remove this file never: etcd knows it too\n")); err != nil {
		return fmt.Errorf("mark the store as secured: %w", err)
	}
	return st.Secure(ctx)
}

// ClientConfig is what a client of the store in this directory needs; ok is
// false if it is not secured, and none is needed.
func ClientConfig(dir string) (cfg *tls.Config, ok bool, err error) {
	if _, err := os.Stat(filepath.Join(dir, markerFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	trust, err := os.ReadFile(filepath.Join(dir, trustFile))
	if err != nil {
		return nil, false, fmt.Errorf("read the store's authority: %w", err)
	}
	pool, err := pki.Pool(trust)
	if err != nil {
		return nil, false, fmt.Errorf("read the store's authority: %w", err)
	}
	return clientConfig(pool, filepath.Join(dir, clientFile)), true, nil
}

// clientConfig logs in with the file at path, as it is at each handshake.
func clientConfig(roots *x509.CertPool, path string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: pki.StoreName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(path, path)
			return &c, err
		},
	}
}

// Open connects to the store as the control plane. It runs, but on a busy
// machine its first answer can take longer than one request may.
func (s *Store) Open(ctx context.Context, log *slog.Logger) (*store.Store, error) {
	return s.open(ctx, s.path(clientFile), log)
}

func (s *Store) open(ctx context.Context, cert string, log *slog.Logger) (st *store.Store, err error) {
	cfg := store.Config{Endpoints: []string{s.etcd.Endpoint()}}
	if s.ca != nil {
		cfg.TLS = clientConfig(s.ca.Pool(), cert)
	}
	for range 6 {
		st, err = store.Open(ctx, cfg, log)
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			break
		}
	}
	return st, err
}

// OpenRegion connects as the region in this process: with a region's rights if
// the store is secured.
func (s *Store) OpenRegion(ctx context.Context, region string, log *slog.Logger) (*store.Store, error) {
	if s.ca == nil {
		return s.Open(ctx, log)
	}
	admin, err := s.Open(ctx, log)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	// The mark stands, but a crash may have come before the users.
	if err := admin.Secure(ctx); err != nil {
		return nil, err
	}
	if err := admin.PutRegionUser(ctx, region, 0); err != nil {
		return nil, err
	}
	file := s.path("etcd-region.pem")
	if _, err := s.ca.ClientFile(file, store.RegionUser(region, 0), time.Now()); err != nil {
		return nil, err
	}
	return s.open(ctx, file, log)
}

// Addr is where other machines reach the store, nil if they do not.
func (s *Store) Addr() net.Addr { return s.addr }

// Disconnect ends the connections of other machines; see embedetcd.
func (s *Store) Disconnect() { s.etcd.Disconnect() }

// Close stops it. All clients must be closed before.
func (s *Store) Close() error { return s.etcd.Close() }

// Run renews certificates until ctx ends, or until the store dies. The store
// reads them anew for each connection.
func (s *Store) Run(ctx context.Context) error {
	t := time.NewTicker(time.Hour)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.etcd.Err():
			return fmt.Errorf("store: %w", err)
		case now := <-t.C:
			if s.ca == nil {
				continue
			}
			if err := s.certificates(now); err != nil {
				s.log.Warn("renew the store's certificates", "err", err)
			}
		}
	}
}
