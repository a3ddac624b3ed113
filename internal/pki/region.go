package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lpmos/lpmos"
)

// RegionFile is where a region's authority stands in its data directory.
const RegionFile = "agent-tls.pem"

// Region is a region's own authority with its one server certificate, that of
// its agent API. Both are made once and kept in one file, mode 0600: losing it
// only means that machines that are being installed have to boot again, because
// the authority travels to every machine in its boot configuration.
//
// Machines come with dead batteries and clocks in local time, so the
// certificates are good whatever a clock says; an authority is ended by removing
// its file.
type Region struct {
	name string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey // of the authority
	cert tls.Certificate   // of the server
}

// AgentName is the one name a region's certificate carries: what an agent
// connects to is decided by address, whom it trusts by this.
func AgentName(regionID string) string { return "agent." + regionID + ".lpmos" }

// LoadRegion reads the authority of a region from dir, which must exist, or
// makes it there. A file that cannot be used is an error and is left alone:
// replacing it would cut off the machines that trust it.
func LoadRegion(dir, regionID string) (*Region, error) {
	if !lpmos.ValidRegionID(regionID) {
		return nil, &lpmos.InvalidError{Field: "region_id", Problem: "is not a region id", Value: regionID}
	}
	path := filepath.Join(dir, RegionFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = generateRegion(regionID); err != nil {
			return nil, fmt.Errorf("make the region's certificate authority: %w", err)
		}
		if b, err = Create(path, b); err != nil {
			return nil, fmt.Errorf("store the region's certificate authority: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("load the region's certificate authority: %w (make the file readable for this user)", err)
	}
	r, err := parseRegion(b, regionID)
	if err != nil {
		return nil, fmt.Errorf("load the region's certificate authority %s: %w (restore the file from a backup, or remove it to make a new one; machines that are being installed then have to boot again)", path, err)
	}
	if err := private(path); err != nil {
		return nil, err
	}
	return r, nil
}

// generateRegion gives the PEM of authority key, authority, server key and
// server certificate.
func generateRegion(regionID string) ([]byte, error) {
	name := AgentName(regionID)
	// A stolen authority is worth nothing outside its own region's name.
	caKey, ca, err := newAuthority(newSerial(), "LPMOS region "+regionID, name)
	if err != nil {
		return nil, err
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: name}, NotBefore: authorityFrom, NotAfter: authorityUntil, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{name},
	}, ca, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	first, err := encode(caKey, ca.Raw)
	if err != nil {
		return nil, err
	}
	second, err := encode(key, der)
	return append(first, second...), err
}

func parseRegion(b []byte, regionID string) (*Region, error) {
	second := max(0, bytes.LastIndex(b, []byte("-----BEGIN PRIVATE KEY-----")))
	caKey, ca, err := parse(b[:second])
	if err != nil {
		return nil, fmt.Errorf("read the authority: %w", err)
	}
	key, certs, err := parse(b[second:])
	if err != nil {
		return nil, fmt.Errorf("read the server's certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca[0])
	name := AgentName(regionID)
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: authorityFrom.AddDate(1, 0, 0)}); err != nil {
		return nil, fmt.Errorf("the certificate is not region %s's: %w", regionID, err)
	}
	return &Region{name: name, ca: ca[0], key: caKey, cert: tls.Certificate{Certificate: [][]byte{certs[0].Raw}, PrivateKey: key, Leaf: certs[0]}}, nil
}

// ServerName is the name in the server's certificate.
func (r *Region) ServerName() string { return r.name }

// CAPEM is the authority's certificate, for boot configurations.
func (r *Region) CAPEM() string { return CertificatePEM(r.ca) }

// ServerConfig is the TLS configuration of the agent API: TLS 1.3 only. A
// client that asks for another name is refused, so that a probe for some other
// service on this address learns nothing.
func (r *Region) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName != r.name {
				return nil, fmt.Errorf("no certificate for %q", lpmos.Shorten(hello.ServerName, 64))
			}
			return &r.cert, nil
		},
	}
}

// Secret derives 32 bytes for one purpose from the authority's private key
// (HKDF, RFC 5869). It is the same after a restart and says nothing about the
// key or other purposes' secrets.
func (r *Region) Secret(purpose string) ([]byte, error) {
	raw, err := r.key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("derive secret: %w", err)
	}
	return hkdf.Key(sha256.New, raw, nil, "lpmos region "+purpose, 32)
}
