// Package auth knows who asks and what they may do: users, their sessions and
// tokens, all answered from memory (contract §§4, 5, 8).
//
// Handler is what every request to the control plane passes first: it finds
// out who asks, from a cookie, a token or nothing, and puts that into the
// request's context, where Of finds it. Routes are registered with the
// Permission they need, and ask Principal.May. Whatever has no permission is
// refused: the zero Permission is nobody's.
//
// Secrets are random (32 bytes) and known to the store by their SHA-256 only.
// All methods may be called concurrently.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// Permission is what a route or an action needs.
type Permission string

// The permissions. A route without one answers nobody.
const (
	Public     Permission = "public"     // whoever reaches the listener
	Self       Permission = "self"       // whoever is signed in, about themselves
	See        Permission = "see"        // viewers
	Operate    Permission = "operate"    // operators, in their regions
	Configure  Permission = "configure"  // operators of all regions: what changes for every region
	Approve    Permission = "approve"    // approvers, in their regions
	Administer Permission = "administer" // admins of all regions
	Fetch      Permission = "fetch"      // viewers, and regions, which fetch what machines boot
	Monitor    Permission = "monitor"    // viewers of all regions, and programs on this host
	Review     Permission = "review"     // viewers of all regions: what administrators did
)

// roleFor is the least role that has a permission, and whether it must have it
// in all regions. Public, Self and the permissions of programs are not here.
var roleFor = map[Permission]struct {
	role       lpmos.Role
	everywhere bool
}{
	See: {lpmos.Viewer, false}, Operate: {lpmos.Operator, false}, Configure: {lpmos.Operator, true},
	Approve: {lpmos.Approver, false}, Administer: {lpmos.Admin, true}, Fetch: {lpmos.Viewer, false}, Monitor: {lpmos.Viewer, true},
	Review: {lpmos.Viewer, true},
}

// Kind is how somebody showed who they are.
type Kind string

// The kinds. The zero Kind is nobody's.
const (
	Session Kind = "session" // a browser's cookie
	Token   Kind = "token"
	Region  Kind = "region" // a regional client, which may fetch blobs
	Open    Kind = "open"   // --insecure-no-login: whoever asks
)

// Principal is who asks, as they are at this moment.
type Principal struct {
	Kind       Kind
	Name       string // of the user; of the region
	Role       lpmos.Role
	Regions    []string // nil: everywhere
	MustChange bool     // may do nothing but choose a password
	ID         string   // of the session or token, see PublicID
	Label      string   // of a token
	From       string   // the peer's address
	SignedInAt time.Time
	Bad        bool // a credential was shown, and it is none
	Local      bool // the peer is this host
	// Own is a token that this control plane made for programs of its host: it
	// acts for no user.
	Own bool
	// ProvedAt is when the person last showed a password, or proved to their
	// identity provider who they are. Zero for tokens and links.
	ProvedAt time.Time
}

// SignedIn reports whether p is somebody.
func (p Principal) SignedIn() bool { return p.Kind != "" }

// Everywhere reports whether p is not limited to regions.
func (p Principal) Everywhere() bool {
	return p.SignedIn() && p.Kind != Region && !p.MustChange && p.Regions == nil
}

// Sees reports whether something of a region is for p.
func (p Principal) Sees(region string) bool {
	return p.Everywhere() || p.SignedIn() && !p.MustChange && p.Kind != Region && slices.Contains(p.Regions, region)
}

// Within are the regions that p sees, where it does not see all: none is an
// empty list.
func (p Principal) Within() []string {
	if !p.SignedIn() || p.MustChange || p.Kind == Region || p.Regions == nil {
		return []string{}
	}
	return p.Regions
}

// DeniedError is an lpmos.ErrForbidden with what is missing.
type DeniedError struct {
	Need lpmos.Role // "" where no role would help
	Text string
}

func (e *DeniedError) Error() string        { return e.Text }
func (e *DeniedError) Is(target error) bool { return target == lpmos.ErrForbidden }

// May says why p may not do what needs a permission: an lpmos.ErrSignedOut, a
// *DeniedError, or nil if it may.
func (p Principal) May(need Permission) error {
	if need == Public {
		return nil
	}
	if need == Monitor && p.Local && !p.Bad {
		return nil
	}
	r, known := roleFor[need]
	switch {
	case need != Self && !known:
		return &DeniedError{Text: "nobody may do this"}
	case p.Bad:
		return fmt.Errorf("%w: the session or token is not valid, or not any more: sign in again", lpmos.ErrSignedOut)
	case !p.SignedIn():
		return fmt.Errorf("%w: sign in (lpmos login), or send a token as Authorization: Bearer", lpmos.ErrSignedOut)
	case p.Kind == Region:
		if need == Fetch {
			return nil
		}
		return &DeniedError{Text: "a regional client fetches files, and nothing else"}
	case need == Self:
		return nil
	case p.MustChange:
		return &DeniedError{Text: "choose a password of your own first"}
	case !p.Role.Includes(r.role):
		return &DeniedError{r.role, fmt.Sprintf("this is for the role %s; %s is %s", r.role, p.Name, p.Role)}
	case r.everywhere && p.Regions != nil:
		return &DeniedError{r.role, fmt.Sprintf("this changes all regions, and %s is limited to %s", p.Name, strings.Join(p.Regions, ", "))}
	}
	return nil
}

// MayIn is May about something in a region.
func (p Principal) MayIn(need Permission, region string) error {
	if err := p.May(need); err != nil {
		return err
	}
	if !p.Sees(region) {
		return &DeniedError{Text: fmt.Sprintf("region %s is not one of yours (%s)", lpmos.Shorten(region, 64), strings.Join(p.Regions, ", "))}
	}
	return nil
}

// Approver is what an approval policy wants to know of p.
func (p Principal) Approver() api.Approver {
	return api.Approver{User: p.Kind == Session || p.Kind == Token && !p.Own, Token: p.Kind == Token, ProvedAt: p.ProvedAt}
}

// actor is what is written down about p.
func (p Principal) actor() lpmos.Actor {
	a := lpmos.Actor{Name: p.Name, From: p.From}
	switch {
	case p.Kind == Token:
		a.Via = "token " + p.Label
	case p.Kind == Region:
		a.Name = "region " + p.Name
	case !p.SignedIn():
		a.Name = "nobody"
	}
	return a
}

type contextKey struct{}

// With gives a context in which p asks and acts.
func With(ctx context.Context, p Principal) context.Context {
	return lpmos.WithActor(context.WithValue(ctx, contextKey{}, p), p.actor())
}

// Of is who asks in ctx: nobody, where Handler did not pass.
func Of(ctx context.Context) Principal {
	p, _ := ctx.Value(contextKey{}).(Principal)
	return p
}

// PublicID is how a session or a token is spoken of: enough of its hash to
// tell it from others, and nothing to get in with.
func PublicID(id string) string { return id[:min(16, len(id))] }

const (
	secretBytes  = 32
	tokenPrefix  = "lpm_"
	regionPrefix = "lpr_" // made by region.NewFetchSecret
)

// NewSecret is a random secret, with what it is shown as.
func NewSecret(prefix string) string {
	b := make([]byte, secretBytes)
	_, _ = rand.Read(b) // never fails
	return prefix + base64.RawURLEncoding.EncodeToString(b)
}

// Hash is how the store knows a secret.
func Hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// wellFormed reports whether s may be a secret with a prefix: only those are
// worth asking the store about.
func wellFormed(s, prefix string) bool {
	rest, ok := strings.CutPrefix(s, prefix)
	b, err := base64.RawURLEncoding.DecodeString(rest)
	return ok && err == nil && len(b) == secretBytes
}

// oneTimePassword is typed by a person once: 80 bits, in letters and digits
// that are not taken for each other.
func oneTimePassword() string {
	const letters = "abcdefghjkmnpqrstuvwxyz23456789"
	var b strings.Builder
	for i := 0; i < 16; {
		var one [1]byte
		_, _ = rand.Read(one[:])
		if int(one[0]) >= 256/len(letters)*len(letters) {
			continue // would make some letters likelier
		}
		if i > 0 && i%4 == 0 {
			b.WriteByte('-')
		}
		b.WriteByte(letters[int(one[0])%len(letters)])
		i++
	}
	return b.String()
}
