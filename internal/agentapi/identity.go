package agentapi

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"

	"github.com/lpmos/lpmos"
)

// Certificate wraps an agent's key for TLS. Nothing in it is believed but the
// key, so it is the same whatever the clock says.
func Certificate(k *lpmos.AgentKey) (tls.Certificate, error) {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "LPMOS agent"},
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Signer().Public(), k.Signer())
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make agent certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.Signer()}, nil
}

// PeerKey is the Ed25519 key a TLS peer proved to hold, nil when it proved none.
// The handshake has checked the signature; who the key belongs to is the
// caller's to know.
func PeerKey(s *tls.ConnectionState) ed25519.PublicKey {
	if s == nil || len(s.PeerCertificates) == 0 {
		return nil
	}
	k, _ := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	return k
}
