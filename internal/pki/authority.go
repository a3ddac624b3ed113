package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

// The names that servers carry and clients check, wherever they are reached.
const (
	ControlPlaneName = "control-plane.lpmos"
	StoreName        = "etcd.lpmos"
)

// How long certificates are good for. They are renewed before a third of that
// is left.
const (
	ServerLife = 397 * 24 * time.Hour // the most that browsers accept
	ClientLife = 90 * 24 * time.Hour
)

// backdate is how far the clock of whoever checks a certificate may be behind.
const backdate = 24 * time.Hour

// The authority outlives what it signs, and clocks that are wrong by years.
var (
	authorityFrom  = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	authorityUntil = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Authority is a site's certificate authority.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Load reads the authority from the PEM file at path. One that is not there is
// made if create says so: by the first of any number of processes. A file that
// cannot be used is an error and is left alone, because replacing it would cut
// off every region that trusts it.
func Load(path string, create bool) (*Authority, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		if b, err = generate(); err != nil {
			return nil, fmt.Errorf("make the site's certificate authority: %w", err)
		}
		if b, err = Create(path, b); err != nil {
			return nil, fmt.Errorf("store the site's certificate authority: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("load the site's certificate authority: %w", err)
	}
	key, certs, err := parse(b)
	if err == nil && (len(certs) != 1 || !certs[0].IsCA) {
		err = errors.New("it does not hold one authority's certificate")
	}
	if err != nil {
		return nil, fmt.Errorf("load the site's certificate authority %s: %w (restore it from a backup, or remove it to make a new one; every region then has to be enrolled again)", path, err)
	}
	if err := private(path); err != nil {
		return nil, err
	}
	return &Authority{certs[0], key}, nil
}

func generate() ([]byte, error) {
	id := newSerial()
	// Two sites' authorities differ in their names, too, so that a chain of one is
	// never tried with the key of the other.
	key, ca, err := newAuthority(id, "LPMOS site "+hex.EncodeToString(id.Bytes()[:4]))
	if err != nil {
		return nil, err
	}
	return encode(key, ca.Raw)
}

// newAuthority makes an authority that signs for the given DNS names alone, or
// for any when there are none.
func newAuthority(serial *big.Int, name string, only ...string) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := NewKey()
	if err != nil {
		return nil, nil, err
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: authorityFrom, NotAfter: authorityUntil,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		PermittedDNSDomainsCritical: len(only) > 0, PermittedDNSDomains: only,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	c, err = x509.ParseCertificate(der)
	return key, c, err
}

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte { return certPEM(a.cert.Raw) }

// Certificate is the authority's certificate.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Pool trusts this authority and no other.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// Fingerprint is the SHA-256 of a certificate.
func Fingerprint(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.Raw) }

// FormatFingerprint spells a fingerprint as browsers and openssl do.
func FormatFingerprint(f [sha256.Size]byte) string {
	parts := make([]string, len(f))
	for i, b := range f {
		parts[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(parts, ":")
}

// server is the certificate of a server with these names and addresses.
func (a *Authority) server(pub crypto.PublicKey, names []string, now time.Time) ([]byte, error) {
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, NotBefore: now.Add(-backdate), NotAfter: now.Add(ServerLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	return a.sign(c, pub)
}

// Client signs a certificate that logs its holder in as name, for life.
func (a *Authority) Client(pub crypto.PublicKey, name string, now time.Time, life time.Duration) (*x509.Certificate, error) {
	der, err := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-min(backdate, life)), NotAfter: now.Add(life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, pub)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (a *Authority) sign(c *x509.Certificate, pub crypto.PublicKey) ([]byte, error) {
	c.SerialNumber, c.BasicConstraintsValid, c.KeyUsage = newSerial(), true, x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", c.Subject.CommonName, err)
	}
	return der, nil
}

// ParseRequest reads a certificate request in PEM and checks that its sender
// has the key. Only the public key counts: what else is asked for is ignored.
func ParseRequest(b []byte) (crypto.PublicKey, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(strings.TrimSpace(string(rest))) != 0 {
		return nil, &lpmos.InvalidError{Field: "csr", Problem: "is not one certificate request in PEM"}
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, &lpmos.InvalidError{Field: "csr", Problem: "cannot be read: " + err.Error()}
	}
	if err := req.CheckSignature(); err != nil {
		return nil, &lpmos.InvalidError{Field: "csr", Problem: "is not signed with its own key"}
	}
	key, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, &lpmos.InvalidError{Field: "csr", Problem: "has a key that is not ECDSA P-256"}
	}
	return key, nil
}

// Request makes a certificate request for key, in PEM.
func Request(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x40 // RFC 5280, 4.1.2.2: positive; and always 16 bytes
	return new(big.Int).SetBytes(b[:])
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// encode gives the PEM of a key and its certificates, its own first.
func encode(key *ecdsa.PrivateKey, certs ...[]byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, c := range certs {
		out = append(out, certPEM(c)...)
	}
	return out, nil
}

// parse reads one key and its certificates, its own first.
func parse(b []byte) (*ecdsa.PrivateKey, []*x509.Certificate, error) {
	var key *ecdsa.PrivateKey
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		b = rest
		switch block.Type {
		case "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("read private key: %w", err)
			}
			ec, ok := k.(*ecdsa.PrivateKey)
			if !ok || key != nil {
				return nil, nil, errors.New("read private key: not one ECDSA key")
			}
			key = ec
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("read certificate: %w", err)
			}
			certs = append(certs, c)
		}
	}
	if key == nil || len(certs) == 0 {
		return nil, nil, errors.New("the file does not hold a key and its certificate")
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) {
		return nil, nil, errors.New("the key does not belong to the certificate")
	}
	return key, certs, nil
}

// private refuses a key that others on this host can read.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("load %s: mode %#o lets others read the private key (chmod 600 it)", path, mode)
	}
	return nil
}

// Create puts b at path, mode 0600, unless another process was first, and returns
// what stands there. The link makes that one step: a reader sees all or nothing.
func Create(path string, b []byte) ([]byte, error) {
	tmp, err := writeTemp(path, b)
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp)
	if err := os.Link(tmp, path); errors.Is(err, fs.ErrExist) {
		return os.ReadFile(path)
	} else if err != nil {
		return nil, err
	}
	return b, syncDir(path)
}

// Replace puts b at path, mode 0600, in one step.
func Replace(path string, b []byte) error {
	tmp, err := writeTemp(path, b)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(path)
}

// Publish is Replace for a file that everybody may read; one that is right
// already is left alone.
func Publish(path string, b []byte) error {
	if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, b) {
		return nil
	}
	err := Replace(path, b)
	if err == nil {
		err = os.Chmod(path, 0o644)
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	return nil
}

func writeTemp(path string, b []byte) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// CertificatePEM spells a certificate in PEM.
func CertificatePEM(c *x509.Certificate) string { return string(certPEM(c.Raw)) }
