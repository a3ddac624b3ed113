// Package pki is a region's own certificate authority and the certificate of
// its agent API.
//
// Both are made once and kept in one file, mode 0600, of the data directory:
// losing it only means that machines that are being installed have to boot
// again, because the authority travels to every machine in its boot
// configuration (X.509: RFC 5280; TLS 1.3: RFC 8446).
//
// An Authority does not change after Load and may be used concurrently.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/lpmos/lpmos"
)

// FileName is where an authority stands in the data directory.
const FileName = "agent-tls.pem"

// Machines come with dead batteries and clocks in local time, so the
// certificates are good whatever a clock says; an authority is ended by
// removing its file.
var (
	notBefore = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Authority is the certificate authority of one region with its one server
// certificate.
type Authority struct {
	name  string
	caPEM []byte
	key   *ecdsa.PrivateKey // of the authority
	cert  tls.Certificate   // of the server
}

// ServerName is the one name a region's certificate carries: what an agent
// connects to is decided by address, whom it trusts by this.
func ServerName(regionID string) string { return "agent." + regionID + ".lpmos" }

// Load reads the authority of a region from dir, which must exist, or makes it
// there. A file that cannot be used is an error and is left alone: replacing
// it would cut off the machines that trust it.
func Load(dir, regionID string) (*Authority, error) {
	if !lpmos.ValidRegionID(regionID) {
		return nil, &lpmos.InvalidError{Field: "region_id", Problem: "is not a region id", Value: regionID}
	}
	path := filepath.Join(dir, FileName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = generate(regionID); err != nil {
			return nil, fmt.Errorf("make certificate authority: %w", err)
		}
		if b, err = publish(path, b); err != nil {
			return nil, fmt.Errorf("store certificate authority: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("load certificate authority: %w (make the file readable for this user)", err)
	}
	a, err := parse(b, regionID)
	if err != nil {
		return nil, fmt.Errorf("load certificate authority %s: %w (restore the file from a backup, or remove it to make a new one; machines that are being installed then have to boot again)", path, err)
	}
	if err := private(path); err != nil {
		return nil, err
	}
	return a, nil
}

// private refuses a key that others on this host can read.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("load certificate authority: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("load certificate authority %s: mode %#o lets others read the private key (chmod 600 it, or remove it to make a new one)", path, mode)
	}
	return nil
}

// publish puts b at path unless another process was first, and returns what
// stands there. The link makes that one step: a reader sees all or nothing.
func publish(path string, b []byte) ([]byte, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+FileName+".*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
		return os.ReadFile(path)
	} else if err != nil {
		return nil, err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return b, d.Sync()
}

// generate gives the PEM of authority key, authority, server key and server
// certificate.
func generate(regionID string) ([]byte, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "LPMOS region " + regionID},
		NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		// A stolen authority is worth nothing outside its own region's name.
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{ServerName(regionID)},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: ServerName(regionID)},
		NotBefore: notBefore, NotAfter: notAfter, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{ServerName(regionID)},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, part := range []struct {
		key  *ecdsa.PrivateKey
		cert []byte
	}{{caKey, caDER}, {key, der}} {
		keyDER, err := x509.MarshalPKCS8PrivateKey(part.key)
		if err != nil {
			return nil, err
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: part.cert})...)
	}
	return out, nil
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f // RFC 5280, 4.1.2.2: positive
	return new(big.Int).SetBytes(b[:])
}

func parse(b []byte, regionID string) (*Authority, error) {
	var keys []*ecdsa.PrivateKey
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
				return nil, fmt.Errorf("read private key: %w", err)
			}
			ec, ok := k.(*ecdsa.PrivateKey)
			if !ok {
				return nil, fmt.Errorf("read private key: a %T, not one this program made", k)
			}
			keys = append(keys, ec)
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("read certificate: %w", err)
			}
			certs = append(certs, c)
		}
	}
	if len(keys) != 2 || len(certs) != 2 {
		return nil, fmt.Errorf("the file holds %d keys and %d certificates, not two of each", len(keys), len(certs))
	}
	for i, k := range keys {
		if !k.PublicKey.Equal(certs[i].PublicKey.(crypto.PublicKey)) {
			return nil, errors.New("a key does not belong to its certificate")
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(certs[0])
	if _, err := certs[1].Verify(x509.VerifyOptions{Roots: pool, DNSName: ServerName(regionID), CurrentTime: notBefore.AddDate(1, 0, 0)}); err != nil {
		return nil, fmt.Errorf("the certificate is not region %s's: %w", regionID, err)
	}
	return &Authority{
		name:  ServerName(regionID),
		caPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs[0].Raw}),
		key:   keys[0],
		cert:  tls.Certificate{Certificate: [][]byte{certs[1].Raw}, PrivateKey: keys[1], Leaf: certs[1]},
	}, nil
}

// ServerName is the name in the server's certificate.
func (a *Authority) ServerName() string { return a.name }

// CAPEM is the authority's certificate, for boot configurations.
func (a *Authority) CAPEM() string { return string(a.caPEM) }

// ServerConfig is the TLS configuration of the agent API: TLS 1.3 only. A
// client that asks for another name is refused, so that a probe for some other
// service on this address learns nothing.
func (a *Authority) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName != a.name {
				return nil, fmt.Errorf("no certificate for %q", lpmos.Shorten(hello.ServerName, 64))
			}
			return &a.cert, nil
		},
	}
}

// Secret derives 32 bytes for one purpose from the authority's private key
// (HKDF, RFC 5869). It is the same after a restart and says nothing about the
// key or other purposes' secrets.
func (a *Authority) Secret(purpose string) ([]byte, error) {
	raw, err := a.key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("derive secret: %w", err)
	}
	return hkdf.Key(sha256.New, raw, nil, "lpmos region "+purpose, 32)
}
