// Package enroll gives regions their identity: a certificate of the site's
// authority, by which the control plane and etcd know them, and the etcd user
// that goes with it.
//
// A person asks for a token, which is good once and for an hour. The region
// makes a key, which never leaves it, and trades token and certificate request
// for the certificate; later certificates it gets with the one before. Several
// are good at once, so that nothing stops while one follows another. Revoking
// ends all of a region's, with its tokens and its connections.
//
// What is stored: the token's hash, and the serial numbers of the certificates.
// A Service may be used concurrently, by any number of replicas.
package enroll

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/store"
)

// How long a token may be used.
const (
	DefaultTTL = time.Hour
	MaxTTL     = 7 * 24 * time.Hour
)

// Config of a Service.
type Config struct {
	CA *pki.Authority
	// Endpoints are where a region dials etcd, which reaches the control plane
	// at host ("" when that is not known). None: regions cannot be enrolled.
	Endpoints func(host string) []string
	// EtcdCA is the PEM of the authority of etcd's servers, and EtcdName the
	// name in their certificates; "" for the host that is dialed.
	EtcdCA   []byte
	EtcdName string
	// Cut ends open connections of regions to etcd, which a deleted user's
	// watches would otherwise outlive. nil: they cannot be ended from here.
	Cut func()

	Life time.Duration    // of certificates; 0 means pki.ClientLife
	Now  func() time.Time // nil means time.Now
}

// Service is made by New.
type Service struct {
	cfg   Config
	store *store.Store
	log   *slog.Logger
}

// New makes a service.
func New(cfg Config, st *store.Store, log *slog.Logger) *Service {
	if cfg.Life == 0 {
		cfg.Life = pki.ClientLife
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg, st, log}
}

// Enroll makes a token for a region. host is how the control plane was reached.
func (s *Service) Enroll(ctx context.Context, region string, ttl time.Duration, host, by string) (api.EnrollToken, error) {
	if err := validRegion(region); err != nil {
		return api.EnrollToken{}, err
	}
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if ttl < time.Second || ttl > MaxTTL {
		return api.EnrollToken{}, &lpmos.InvalidError{Field: "ttl_seconds", Problem: fmt.Sprintf("is not between 1 and %d", int(MaxTTL/time.Second))}
	}
	// Better refused now than when the token is used, in another data centre.
	if err := s.store.CanAdminister(ctx); err != nil {
		return api.EnrollToken{}, err
	}
	endpoints := s.cfg.Endpoints(host)
	if len(endpoints) == 0 {
		return api.EnrollToken{}, &lpmos.ConflictError{Problem: "regions have no way to etcd: start the store with --etcd-listen, or name the servers with --region-etcd-endpoints"}
	}
	t := pki.NewToken(region, s.cfg.CA.Certificate())
	now := s.cfg.Now()
	e := store.Enrollment{Region: region, ExpiresAt: now.Add(ttl).UTC().Truncate(time.Second), By: by}
	if err := s.store.PutEnrollment(ctx, t.Hash(), e); err != nil {
		return api.EnrollToken{}, err
	}
	s.log.Info("enrollment token made", "region", region, "by", by, "until", e.ExpiresAt)
	return api.EnrollToken{
		RegionID: region, Token: t.String(), ExpiresAt: e.ExpiresAt,
		Fingerprint: pki.FormatFingerprint(t.Authority), EtcdEndpoints: endpoints,
	}, nil
}

// Certificate gives a region a certificate. With a token in req it is the first
// of a new user; else peer, the certificate that the request came with, is
// followed by another for the same user.
func (s *Service) Certificate(ctx context.Context, region string, req api.CertificateRequest, peer *x509.Certificate, host string) (api.RegionCertificate, error) {
	if err := validRegion(region); err != nil {
		return api.RegionCertificate{}, err
	}
	if len(req.Host) > 253 || strings.ContainsFunc(req.Host, func(r rune) bool { return r < 0x21 || r > 0x7e }) {
		return api.RegionCertificate{}, &lpmos.InvalidError{Field: "host", Problem: "is not a host name"}
	}
	pub, err := pki.ParseRequest([]byte(req.CSR))
	if err != nil {
		return api.RegionCertificate{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return api.RegionCertificate{}, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	keyHash := hex.EncodeToString(sum[:])

	var number int
	actor := lpmos.Actor{Name: "region " + region, From: lpmos.ActorOf(ctx).From, Via: "its certificate"}
	if req.Token != "" {
		actor.Via = "enrollment token"
	}
	ctx = lpmos.WithActor(ctx, actor)
	if req.Token != "" {
		number, err = s.redeem(ctx, region, req.Token, keyHash)
	} else {
		number, err = s.again(ctx, region, peer)
	}
	if err != nil {
		return api.RegionCertificate{}, err
	}
	if req.Token != "" { // else it is there, or was revoked meanwhile
		if err := s.store.PutRegionUser(ctx, region, number); err != nil {
			return api.RegionCertificate{}, err
		}
	}
	now := s.cfg.Now()
	cert, err := s.cfg.CA.Client(pub, store.RegionUser(region, number), now, s.cfg.Life)
	if err != nil {
		return api.RegionCertificate{}, err
	}
	err = s.store.EditIdentity(ctx, region, func(id *store.Identity) error {
		id.Certificates = slices.DeleteFunc(id.Certificates, func(c store.RegionCertificate) bool { return now.After(c.NotAfter) })
		if req.Token == "" && len(id.Certificates) == 0 || number <= id.Revoked {
			return revoked(region) // while this was on its way
		}
		id.Certificates = append(id.Certificates, store.RegionCertificate{
			User: number, Serial: cert.SerialNumber.Text(16), Host: req.Host, IssuedAt: now.UTC(), NotAfter: cert.NotAfter,
		})
		id.RevokedAt = time.Time{}
		return nil
	})
	if errors.Is(err, lpmos.ErrForbidden) && req.Token != "" {
		// The user was ended, and PutRegionUser may have made it anew since.
		_, gone := s.store.DeleteRegionUsers(ctx, region, number)
		err = errors.Join(err, gone)
	}
	if err != nil {
		return api.RegionCertificate{}, err
	}
	s.log.Info("region certificate issued", "region", region, "user", cert.Subject.CommonName, "serial", cert.SerialNumber.Text(16), "until", cert.NotAfter, "first", req.Token != "")
	return api.RegionCertificate{
		RegionID: region, Certificate: pki.CertificatePEM(cert), Authority: string(s.cfg.CA.PEM()), IssuedAt: now.UTC(), NotAfter: cert.NotAfter,
		EtcdEndpoints: s.cfg.Endpoints(host), EtcdAuthority: string(s.cfg.EtcdCA), EtcdServerName: s.cfg.EtcdName,
	}, nil
}

// redeem uses a token for a key and gives the number of the region's user.
func (s *Service) redeem(ctx context.Context, region, token, keyHash string) (int, error) {
	unknown := fmt.Errorf("%w: this enrollment token is not known here: make another (lpmos region enroll %s)", lpmos.ErrForbidden, region)
	t, err := pki.ParseToken(token)
	if err != nil {
		return 0, unknown
	}
	now := s.cfg.Now()
	e, err := s.store.Redeem(ctx, t.Hash(), keyHash, now.UTC(), func(e store.Enrollment, id store.Identity) error {
		switch {
		case e.Region != region || t.Region != region:
			return fmt.Errorf("%w: this enrollment token is for another region", lpmos.ErrForbidden)
		case now.After(e.ExpiresAt):
			return fmt.Errorf("%w: this enrollment token expired: make another (lpmos region enroll %s)", api.ErrGone, region)
		case !e.UsedAt.IsZero() && subtle.ConstantTimeCompare([]byte(e.PublicKey), []byte(keyHash)) != 1:
			s.log.Warn("enrollment token used a second time, with another key", "region", region, "first", e.UsedAt)
			return &lpmos.ConflictError{Problem: "this enrollment token was used already, at " + e.UsedAt.UTC().Format(time.RFC3339) + ": if that was not you, revoke the region (lpmos region revoke " + region + ") and enroll it again"}
		case !e.UsedAt.IsZero() && e.User <= id.Revoked:
			return revoked(region)
		case id.Withdrew(e):
			return fmt.Errorf("%w: this enrollment token ended when region %s was revoked: make another (lpmos region enroll %s)", lpmos.ErrForbidden, region, region)
		}
		return nil
	})
	if errors.Is(err, lpmos.ErrNotFound) {
		return 0, unknown
	}
	return e.User, err
}

func (s *Service) again(ctx context.Context, region string, peer *x509.Certificate) (int, error) {
	if peer == nil {
		return 0, fmt.Errorf("%w: a token, or a connection with the certificate before, is needed", lpmos.ErrForbidden)
	}
	of, err := s.Peer(ctx, peer)
	if err != nil {
		return 0, err
	}
	if of != region {
		return 0, fmt.Errorf("%w: this is region %s's certificate", lpmos.ErrForbidden, of)
	}
	_, number, _ := store.ParseRegionUser(peer.Subject.CommonName)
	return number, nil
}

// Peer is the region whose certificate, verified by TLS, a connection came
// with. Every request is asked about anew: a connection may outlive what it
// began with.
func (s *Service) Peer(ctx context.Context, cert *x509.Certificate) (string, error) {
	region, _, ok := store.ParseRegionUser(cert.Subject.CommonName)
	if !ok {
		return "", fmt.Errorf("%w: this certificate is not a region's", lpmos.ErrForbidden)
	}
	if s.cfg.Now().After(cert.NotAfter) {
		return "", fmt.Errorf("%w: the certificate of region %s expired", lpmos.ErrForbidden, region)
	}
	id, err := s.store.Identity(ctx, region)
	if err != nil {
		return "", err
	}
	serial := cert.SerialNumber.Text(16)
	if !slices.ContainsFunc(id.Certificates, func(c store.RegionCertificate) bool { return c.Serial == serial }) {
		return "", revoked(region)
	}
	return region, nil
}

func revoked(region string) error {
	return fmt.Errorf("%w: the certificate of region %s was revoked: enroll it again (lpmos region enroll %s)", lpmos.ErrForbidden, region, region)
}

// Rotate asks a region to renew its certificates now.
func (s *Service) Rotate(ctx context.Context, region, by string) error {
	if err := validRegion(region); err != nil {
		return err
	}
	err := s.store.EditIdentity(ctx, region, func(id *store.Identity) error {
		if len(id.Certificates) == 0 {
			return fmt.Errorf("enrolled region %s: %w", region, lpmos.ErrNotFound)
		}
		id.RotateAfter = s.cfg.Now().UTC()
		return nil
	})
	if err == nil {
		s.log.Info("region asked to rotate its certificate", "region", region, "by", by)
	}
	return err
}

// Revoke ends a region's certificates, its etcd users and its connections, and
// the tokens that nobody used yet.
func (s *Service) Revoke(ctx context.Context, region, by string) error {
	if err := validRegion(region); err != nil {
		return err
	}
	if err := s.store.CanAdminister(ctx); err != nil {
		return err
	}
	users := 0
	err := s.store.EditIdentity(ctx, region, func(id *store.Identity) error {
		if id.Users == 0 && id.Invited == 0 {
			return fmt.Errorf("enrolled region %s: %w", region, lpmos.ErrNotFound)
		}
		if len(id.Certificates) > 0 {
			id.RevokedAt = s.cfg.Now().UTC()
		}
		id.Certificates, id.Revoked, id.Withdrawn = nil, id.Users, id.Invited
		users = id.Users
		return nil
	})
	if err != nil {
		return err
	}
	gone, err := s.store.DeleteRegionUsers(ctx, region, users)
	if err != nil {
		return err
	}
	if s.cfg.Cut != nil {
		s.cfg.Cut()
	} else {
		s.log.Warn("etcd is not in this process: watches that the region has open go on until their connections end; restart etcd's members one by one to end them", "region", region)
	}
	s.log.Info("region revoked", "region", region, "by", by, "users", gone)
	return nil
}

// Refresh gives the roles of all regions the rights that this version knows.
func (s *Service) Refresh(ctx context.Context) error {
	if on, err := s.store.Secured(ctx); err != nil || !on {
		return err
	}
	return s.store.RefreshRegionRoles(ctx)
}

func validRegion(id string) error {
	if !lpmos.ValidRegionID(id) {
		return &lpmos.InvalidError{Field: "region_id", Problem: "is not a region id", Value: id}
	}
	return nil
}
