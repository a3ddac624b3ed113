package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// Identity is what the control plane knows of a region's certificates. A
// certificate that is not listed here is worth nothing to it.
type Identity struct {
	// Users counts the region's enrollments, ever: each has an etcd user of its
	// own (RegionUser).
	Users        int                 `json:"users"`
	Certificates []RegionCertificate `json:"certificates"` // none: revoked
	// RotateAfter asks the region to renew every certificate issued before.
	RotateAfter time.Time `json:"rotate_after,omitzero"`
	RevokedAt   time.Time `json:"revoked_at,omitzero"`
	// Revoked is the number of the newest user that was ended: it and those
	// before it never come back.
	Revoked int `json:"revoked,omitzero"`
	// Invited counts the enrollment tokens, ever. Withdrawn is the number of the
	// newest that ended with the region: it and those before it are good no more.
	Invited   int `json:"invited,omitzero"`
	Withdrawn int `json:"withdrawn,omitzero"`
}

// Withdrew reports whether a token was ended.
func (id Identity) Withdrew(e Enrollment) bool {
	return id.Withdrawn > 0 && e.Number <= id.Withdrawn
}

// RegionCertificate is one that was given to a region and has not ended.
type RegionCertificate struct {
	User     int       `json:"user"`
	Serial   string    `json:"serial"` // hexadecimal
	Host     string    `json:"host,omitempty"`
	IssuedAt time.Time `json:"issued_at"`
	NotAfter time.Time `json:"not_after"`
}

// Enrollment is the right to get a region's first certificate, once. The key it
// is stored under is the SHA-256 of a secret that is not.
type Enrollment struct {
	Region    string    `json:"region_id"`
	Number    int       `json:"number,omitzero"` // of the region's tokens, from 1 on
	ExpiresAt time.Time `json:"expires_at"`
	By        string    `json:"by"`
	UsedAt    time.Time `json:"used_at,omitzero"`
	// PublicKey is the SHA-256 of the key that it was used for. The same key may
	// come again, because the answer may have been lost on the way.
	PublicKey string `json:"public_key,omitempty"`
	User      int    `json:"user,omitempty"`
}

// keepEnrollment is how long a token is known after it expired, to say so.
const keepEnrollment = 7 * 24 * time.Hour

// PutEnrollment stores a token's hash, 64 hexadecimal digits, as the newest of
// its region. One that is there is an lpmos.ErrConflict. After an error the token
// is worth nothing: nobody was told it.
func (s *Store) PutEnrollment(ctx context.Context, hash string, e Enrollment) error {
	lease, err := s.grant(ctx, time.Until(e.ExpiresAt)+keepEnrollment)
	if err != nil {
		return err
	}
	if err := s.putEnrollment(ctx, hash, e, lease); err != nil {
		s.revoke(lease)
		return fmt.Errorf("store enrollment token: %w", err)
	}
	return nil
}

func (s *Store) putEnrollment(ctx context.Context, hash string, e Enrollment, lease clientv3.LeaseID) error {
	key, idKey := Key{Kind: KindEnrollment, Name: hash}.String(), Key{Kind: KindIdentity, Region: e.Region}.String()
	for range maxRaces {
		id, rev, err := readVersion[Identity](ctx, s, idKey)
		if err != nil {
			return err
		}
		id.Invited++
		e.Number = id.Invited
		r, err := s.administer(ctx, enrollment("region.enroll", nil, &e),
			[]clientv3.Cmp{
				clientv3.Compare(clientv3.CreateRevision(key), "=", 0),
				clientv3.Compare(clientv3.ModRevision(idKey), "=", rev),
			},
			[]clientv3.Op{clientv3.OpPut(key, string(encode(e)), clientv3.WithLease(lease)), clientv3.OpPut(idKey, string(encode(id)))},
			[]clientv3.Op{clientv3.OpGet(key, clientv3.WithCountOnly())})
		switch {
		case err != nil || r.Succeeded:
			return err
		case r.Responses[0].GetResponseRange().Count > 0:
			return &lpmos.ConflictError{Problem: "there is such a token already"}
		}
	}
	return fmt.Errorf("%w: too many writers at once", lpmos.ErrUnavailable)
}

// enrollment is the deed of making or using an enrollment token.
func enrollment(action string, was, now *Enrollment) deed {
	show := func(e *Enrollment) any {
		if e == nil {
			return nil
		}
		return struct {
			By        string    `json:"by"`
			ExpiresAt time.Time `json:"expires_at"`
			UsedAt    time.Time `json:"used_at,omitzero"`
			User      int       `json:"user,omitempty"`
		}{e.By, e.ExpiresAt, e.UsedAt, e.User}
	}
	return deed{action: action, subject: "region " + now.Region, before: show(was), after: show(now)}
}

// Redeem lets check decide about a token and uses it for a public key, in one
// step: of any number who try at once, one key wins. It gives the enrollment as
// it is now, with the number of the user that it is to be. check is given what
// is known of the region's certificates, too, and may be called several times.
func (s *Store) Redeem(ctx context.Context, hash, publicKey string, now time.Time, check func(Enrollment, Identity) error) (Enrollment, error) {
	key := Key{Kind: KindEnrollment, Name: hash}.String()
	for range maxRaces {
		e, at, err := readVersion[Enrollment](ctx, s, key)
		if err != nil {
			return e, err
		}
		if at == 0 {
			return e, fmt.Errorf("enrollment token: %w", lpmos.ErrNotFound)
		}
		idKey := Key{Kind: KindIdentity, Region: e.Region}.String()
		id, rev, err := readVersion[Identity](ctx, s, idKey)
		if err != nil {
			return e, err
		}
		if err := check(e, id); err != nil {
			return e, err
		}
		if !e.UsedAt.IsZero() {
			return e, nil
		}
		id.Users++
		was := e
		e.UsedAt, e.PublicKey, e.User = now, publicKey, id.Users
		t, err := s.administer(ctx, enrollment("region.redeem", &was, &e),
			[]clientv3.Cmp{
				clientv3.Compare(clientv3.ModRevision(key), "=", at),
				clientv3.Compare(clientv3.ModRevision(idKey), "=", rev),
			},
			[]clientv3.Op{clientv3.OpPut(key, string(encode(e)), clientv3.WithIgnoreLease()), clientv3.OpPut(idKey, string(encode(id)))}, nil)
		if err != nil {
			return e, err
		}
		if t.Succeeded {
			return e, nil
		}
	}
	return Enrollment{}, fmt.Errorf("use enrollment token: %w: too many writers at once", lpmos.ErrUnavailable)
}

// Identity reads what is known of a region's certificates; nothing is not an
// error.
func (s *Store) Identity(ctx context.Context, region string) (Identity, error) {
	id, _, err := readVersion[Identity](ctx, s, Key{Kind: KindIdentity, Region: region}.String())
	return id, err
}

// EditIdentity changes it by compare-and-swap.
func (s *Store) EditIdentity(ctx context.Context, region string, edit func(*Identity) error) error {
	_, err := amend(ctx, s, identities, Key{Kind: KindIdentity, Region: region}, func(id *Identity, _ int64) (bool, error) { return true, edit(id) })
	return err
}

// FollowIdentity calls f with the region's identity and with each one that
// follows, until ctx ends or etcd denies it.
func (s *Store) FollowIdentity(ctx context.Context, region string, f func(Identity)) error {
	for b, err := range s.Changes(ctx, Scope(Key{Kind: KindIdentity, Region: region}.String())) {
		if err != nil {
			return err
		}
		for _, c := range b.Changes {
			id, err := Decode[Identity](c)
			if c.Value != nil && err == nil {
				f(id)
			}
		}
	}
	if err := ctx.Err(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
