package api

import (
	"context"
	"errors"
	"time"
)

// ErrGone is wrapped by errors about what was there and is no more.
var ErrGone = errors.New("gone")

type peerKey struct{}

// WithPeerRegion gives the context of a request that came over a connection
// with region id's own certificate, which was verified and is not revoked.
func WithPeerRegion(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, peerKey{}, id)
}

// PeerRegion is the region whose certificate the request came with.
func PeerRegion(ctx context.Context) (id string, ok bool) {
	id, ok = ctx.Value(peerKey{}).(string)
	return id, ok
}

// EnrollToken is the right to enroll one region once.
type EnrollToken struct {
	RegionID  string    `json:"region_id"`
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
	// Fingerprint is the SHA-256 of the site's authority, as it is spelled by
	// browsers and openssl. The token has it, too.
	Fingerprint string `json:"fingerprint"`
	// EtcdEndpoints are what the region will dial.
	EtcdEndpoints []string `json:"etcd_endpoints"`
}

// CertificateRequest asks for a region's certificate: the first with a token,
// later ones with the certificate before.
type CertificateRequest struct {
	Token string `json:"token,omitempty"`
	CSR   string `json:"csr"` // PKCS #10 in PEM; only its public key counts
	Host  string `json:"host,omitempty"`
}

// RegionCertificate is what a region needs to speak with the site.
type RegionCertificate struct {
	RegionID       string    `json:"region_id"`
	Certificate    string    `json:"certificate"` // PEM
	Authority      string    `json:"authority"`   // PEM, of the control plane and of this certificate
	IssuedAt       time.Time `json:"issued_at"`
	NotAfter       time.Time `json:"not_after"`
	EtcdEndpoints  []string  `json:"etcd_endpoints"`
	EtcdAuthority  string    `json:"etcd_authority"`             // PEM
	EtcdServerName string    `json:"etcd_server_name,omitempty"` // to verify; "" for the host that is dialed
}
