package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/ownstore"
	"github.com/lpmos/lpmos/internal/pki"
)

// founding is the address of the founding document, which everything that
// follows it uses: plain HTTP, on loopback only.
const founding = ":8080"

// listening says whether TLS is spoken, and where.
func listening(cfg Config) (secure bool, addr string, err error) {
	addr = cfg.ListenAddr
	if addr == "" {
		addr = "127.0.0.1:8080"
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false, "", &lpmos.InvalidError{Field: "listen-addr", Problem: "is not host:port", Value: addr}
	}
	if (cfg.TLSCert == "") != (cfg.TLSKey == "") {
		return false, "", &lpmos.InvalidError{Field: "tls-cert", Problem: "and --tls-key belong together: give both, or neither"}
	}
	ip := net.ParseIP(host)
	loopback := host == "localhost" || ip != nil && ip.IsLoopback()
	switch {
	case cfg.InsecureHTTP && (cfg.TLS || cfg.TLSCert != ""):
		return false, "", &lpmos.InvalidError{Field: "insecure-http", Problem: "and a certificate exclude each other"}
	case cfg.TLS || cfg.TLSCert != "":
		return true, addr, nil
	case cfg.InsecureHTTP || loopback:
		return false, addr, nil
	case addr == founding:
		return false, net.JoinHostPort("127.0.0.1", port), nil
	}
	return true, addr, nil
}

// certificates are what the listener shows: to browsers and the command line
// the operator's certificate or one of our own; to regions, which ask for
// pki.ControlPlaneName, always one of our own.
type certificates struct {
	ca    *pki.Authority
	path  string   // of our own
	names []string // in it
	own   *pki.Files
	given *pki.Files // nil for none
	log   *slog.Logger
}

func newCertificates(cfg Config, ca *pki.Authority, addr string, log *slog.Logger) (*certificates, error) {
	c := &certificates{ca: ca, path: filepath.Join(cfg.DataDir, "server.pem"), names: append([]string{pki.ControlPlaneName}, pki.Names(addr)...), log: log}
	err := c.renew(time.Now())
	if err != nil {
		return nil, err
	}
	if c.own, err = pki.OpenFiles(c.path, c.path, log); err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	if cfg.TLSCert != "" {
		if c.given, err = pki.OpenFiles(cfg.TLSCert, cfg.TLSKey, log); err != nil {
			return nil, fmt.Errorf("load certificate (--tls-cert, --tls-key): %w", err)
		}
	}
	return c, nil
}

func (c *certificates) renew(now time.Time) error {
	renewed, err := c.ca.Server(c.path, c.names, now)
	if renewed {
		c.log.Info("server certificate made", "file", c.path, "names", c.names)
	}
	return err
}

// config is the TLS of the listener. Only who asks for the name that regions
// use is asked for a certificate: a browser would bother people about it.
func (c *certificates) config() *tls.Config {
	protos := []string{"h2", "http/1.1"}
	regions := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protos,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.own.Certificate(), nil },
		ClientAuth:     tls.VerifyClientCertIfGiven, ClientCAs: c.ca.Pool(),
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: protos,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if c.given != nil {
				return c.given.Certificate(), nil
			}
			return c.own.Certificate(), nil
		},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if h.ServerName == pki.ControlPlaneName {
				return regions, nil
			}
			return nil, nil
		},
	}
}

// Authority is the site's, by whose fingerprint people know that they reached
// this control plane; nil if it has no certificate of it to show.
func (c *ControlPlane) Authority() *x509.Certificate {
	if c.certs == nil || c.certs.given != nil {
		return nil
	}
	return c.certs.ca.Certificate()
}

// keepCertificates renews what the site's authority signed for this replica.
func (c *ControlPlane) keepCertificates(ctx context.Context) error {
	if err := c.ids.Refresh(ctx); err != nil && ctx.Err() == nil {
		c.log.Warn("bring the regions' rights up to date", "err", err)
	}
	t := time.NewTicker(time.Hour)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			if c.certs == nil {
				continue
			}
			if err := c.certs.renew(now); err != nil {
				c.log.Warn("renew server certificate", "err", err)
			}
		}
	}
}

// peers tells handlers which region a request comes from, and ends those of
// regions that were revoked.
func (c *ControlPlane) peers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			next.ServeHTTP(w, r)
			return
		}
		region, err := c.ids.Peer(r.Context(), r.TLS.PeerCertificates[0])
		if err != nil {
			refusePeer(w, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(api.WithPeerRegion(r.Context(), region)))
	})
}

func refusePeer(w http.ResponseWriter, err error) {
	status, title, detail := http.StatusServiceUnavailable, "Unavailable", "whether this region's certificate is good cannot be looked up now: try again"
	if errors.Is(err, lpmos.ErrForbidden) {
		status, title, detail = http.StatusForbidden, "Not allowed", err.Error()
	} else {
		w.Header().Set("Retry-After", "2")
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"type": "about:blank", "title": title, "status": status, "detail": detail})
}

// strict tells browsers to come by TLS only from now on. With a certificate of
// our own authority that would lock people out whose browser was told to trust
// it once.
func strict(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000")
		next.ServeHTTP(w, r)
	})
}

// OwnEtcd is how regions reach a store in this process that listens at listen,
// or is reached at instead.
func OwnEtcd(own *ownstore.Store, listen string, instead []string) RegionEtcd {
	r := RegionEtcd{Endpoints: instead, Name: pki.StoreName, Cut: own.Disconnect}
	if len(instead) == 0 && own.Addr() != nil {
		host, _, err := net.SplitHostPort(listen)
		if ip := net.ParseIP(host); err != nil || ip != nil && ip.IsUnspecified() {
			host = "" // the one by which the control plane is reached
		}
		_, port, _ := net.SplitHostPort(own.Addr().String())
		r.Endpoints = []string{"https://" + net.JoinHostPort(host, port)}
	}
	return r
}

func (e RegionEtcd) authority(ca *pki.Authority) []byte {
	if e.CA == nil {
		return ca.PEM()
	}
	return e.CA
}

// endpoints fills in the host by which the control plane was reached.
func (e RegionEtcd) endpoints(host string) []string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	var out []string
	for _, s := range e.Endpoints {
		u, err := url.Parse(s)
		if err == nil && u.Hostname() == "" {
			if host == "" {
				continue
			}
			u.Host = net.JoinHostPort(host, u.Port())
			s = u.String()
		}
		out = append(out, s)
	}
	return out
}
