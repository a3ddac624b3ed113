package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// NewKey makes a key for a certificate.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// RenewAt is when a certificate that was issued at issued has a third of its
// life left.
func RenewAt(issued, notAfter time.Time) time.Time {
	return notAfter.Add(-notAfter.Sub(issued) / 3)
}

// Server sees to it that the file at path holds a key and a certificate for
// names that this authority signed and that has more than a third of its life
// left, and makes both anew if not. Whoever reads the file for each handshake
// needs no restart. The authority's certificate follows, for clients that pin
// it.
func (a *Authority) Server(path string, names []string, now time.Time) (renewed bool, err error) {
	if len(names) == 0 {
		return false, errors.New("make server certificate: it has no name")
	}
	return a.keep(path, now, func(c *x509.Certificate) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return c.VerifyHostname(n) != nil })
	}, x509.ExtKeyUsageServerAuth, func(key *ecdsa.PrivateKey) ([]byte, error) {
		return a.server(&key.PublicKey, names, now)
	})
}

// ClientFile is Server for a certificate that logs its holder in as name.
func (a *Authority) ClientFile(path, name string, now time.Time) (renewed bool, err error) {
	return a.keep(path, now, func(c *x509.Certificate) bool { return c.Subject.CommonName == name },
		x509.ExtKeyUsageClientAuth, func(key *ecdsa.PrivateKey) ([]byte, error) {
			c, err := a.Client(&key.PublicKey, name, now, ServerLife)
			if err != nil {
				return nil, err
			}
			return c.Raw, nil
		})
}

func (a *Authority) keep(path string, now time.Time, fits func(*x509.Certificate) bool, usage x509.ExtKeyUsage, sign func(*ecdsa.PrivateKey) ([]byte, error)) (bool, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read certificate: %w", err)
	}
	if err == nil {
		if _, certs, err := parse(b); err == nil {
			c := certs[0]
			_, err := c.Verify(x509.VerifyOptions{Roots: a.Pool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
			if err == nil && fits(c) && now.Before(RenewAt(c.NotBefore.Add(backdate), c.NotAfter)) {
				return false, private(path)
			}
		}
	}
	key, err := NewKey()
	if err != nil {
		return false, fmt.Errorf("make key: %w", err)
	}
	der, err := sign(key)
	if err != nil {
		return false, err
	}
	if b, err = encode(key, der, a.cert.Raw); err != nil {
		return false, fmt.Errorf("encode certificate: %w", err)
	}
	if err := Replace(path, b); err != nil {
		return false, fmt.Errorf("store certificate: %w", err)
	}
	return true, nil
}

// Files is a certificate and its key in files, read again when they change.
type Files struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex // guards what follows
	loaded *tls.Certificate
	seen   [2]stamp
	looked time.Time
}

// stamp is what of a file changes with its content. Names that are links into
// a directory that is swapped, as mounted secrets are, are followed.
type stamp struct {
	at   time.Time
	size int64
}

// lookEvery is how often files are looked at, at most.
const lookEvery = time.Second

// OpenFiles reads a certificate and its key, which may be one file.
func OpenFiles(cert, key string, log *slog.Logger) (*Files, error) {
	f := &Files{cert: cert, key: key, log: log}
	seen, err := f.stat()
	if err != nil {
		return nil, err
	}
	c, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	f.loaded, f.seen, f.looked = &c, seen, time.Now()
	return f, nil
}

func (f *Files) stat() (out [2]stamp, err error) {
	for i, path := range []string{f.cert, f.key} {
		info, err := os.Stat(path)
		if err != nil {
			return out, err
		}
		out[i] = stamp{info.ModTime(), info.Size()}
	}
	return out, nil
}

// Certificate is what the files hold now. A pair that cannot be used, because
// one file was replaced and the other not yet, leaves the one before in place.
func (f *Files) Certificate() *tls.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.looked) >= lookEvery {
		f.looked = now
		f.reload()
	}
	return f.loaded
}

func (f *Files) reload() {
	seen, err := f.stat()
	if err == nil && seen == f.seen {
		return
	}
	var c tls.Certificate
	if err == nil {
		c, err = tls.LoadX509KeyPair(f.cert, f.key)
	}
	if err != nil {
		if seen != f.seen {
			f.log.Warn("certificate cannot be read again, the one before stays", "file", f.cert, "err", err)
		}
		return
	}
	f.loaded, f.seen = &c, seen
	f.log.Info("certificate read again", "file", f.cert, "until", c.Leaf.NotAfter)
}
