package lpmos

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Role is what a person may do. Each includes the one before it.
type Role string

// The roles, least first.
const (
	Viewer   Role = "viewer"   // looks
	Operator Role = "operator" // creates, cancels, retries and deletes tasks; profiles and templates
	Approver Role = "approver" // approves and rejects
	Admin    Role = "admin"    // images, boot image, users, tokens
)

// Roles are all, least first.
var Roles = []Role{Viewer, Operator, Approver, Admin}

// Valid reports whether r is one of Roles.
func (r Role) Valid() bool { return slices.Contains(Roles, r) }

// Includes reports whether who has r may do what other may. An unknown role
// includes nothing and is included in none.
func (r Role) Includes(other Role) bool {
	have, want := slices.Index(Roles, r), slices.Index(Roles, other)
	return want >= 0 && have >= want
}

// User is a person who may sign in.
type User struct {
	Name    string   `json:"name"`
	Role    Role     `json:"role"`
	Regions []string `json:"regions,omitzero"` // nil: everywhere
	// Password is an argon2id hash in the PHC string format; "" lets nobody in.
	Password   string `json:"password,omitempty"`
	MustChange bool   `json:"must_change_password,omitempty"` // the password was made by somebody else
	Disabled   bool   `json:"disabled,omitempty"`
	// Epoch counts what ends all sessions at once: a new password, being
	// disabled. A session of another epoch is none.
	Epoch     int       `json:"epoch"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by,omitempty"`
	UpdatedAt time.Time `json:"updated_at"`
	UpdatedBy string    `json:"updated_by,omitempty"`
	// External is set for who signs in with an identity provider, and not with a
	// password here.
	External *External `json:"external,omitempty"`
}

// External is a user as an identity provider (OpenID Connect) knows them.
type External struct {
	Issuer  string    `json:"issuer"`
	Subject string    `json:"subject"` // of the issuer, for good
	Email   string    `json:"email,omitempty"`
	Groups  []string  `json:"groups,omitempty"` // of those that mean something here, at the last sign-in
	SeenAt  time.Time `json:"seen_at"`          // the last sign-in
	// Barred says that no group of theirs means a role any more.
	Barred bool `json:"barred,omitempty"`
}

// Barred reports whether u may not come in.
func (u User) Barred() bool { return u.Disabled || u.External != nil && u.External.Barred }

// May reports whether u has a role in a region.
func (u User) May(role Role, region string) bool {
	return !u.Barred() && u.Role.Includes(role) && (u.Regions == nil || slices.Contains(u.Regions, region))
}

// Keeper reports whether u can let others in whatever happens elsewhere: an
// admin of all regions who needs no identity provider.
func (u User) Keeper() bool {
	return u.Role == Admin && u.Regions == nil && !u.Disabled && u.External == nil
}

// SignIn is one browser, or one program, in which a person signed in.
type SignIn struct {
	User      string    `json:"user"`
	Epoch     int       `json:"epoch"` // of the user, then
	CreatedAt time.Time `json:"created_at"`
	SeenAt    time.Time `json:"seen_at"` // a minute behind at most
	From      string    `json:"from,omitempty"`
	Agent     string    `json:"agent,omitempty"` // as the browser calls itself
	ByLink    bool      `json:"by_link,omitempty"`
	// ProvedAt is when the person last proved who they are: by a password, or to
	// their identity provider. Zero: they did not.
	ProvedAt time.Time `json:"proved_at,omitzero"`
}

// APIToken lets a program act for a person, with no more than that person's
// rights at the moment it is used.
type APIToken struct {
	Name      string    `json:"name"`
	User      string    `json:"user"`
	Role      Role      `json:"role"`
	Regions   []string  `json:"regions,omitzero"` // nil: all that its user has
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	UsedAt    time.Time `json:"used_at,omitzero"` // some minutes behind
	UsedFrom  string    `json:"used_from,omitempty"`
}

// ValidateAccess checks what a person, or a token, is to be allowed.
func ValidateAccess(role Role, regions []string) error {
	if !role.Valid() {
		return &InvalidError{Field: "role", Problem: "is none of viewer, operator, approver, admin", Value: string(role)}
	}
	if regions != nil && len(regions) == 0 {
		return &InvalidError{Field: "regions", Problem: "is empty: name regions, or leave it out for all"}
	}
	if len(regions) > 256 {
		return &InvalidError{Field: "regions", Problem: "are more than 256"}
	}
	for _, r := range regions {
		if !ValidRegionID(r) {
			return &InvalidError{Field: "regions", Problem: "names what is not a region id", Value: r}
		}
	}
	return nil
}

// Lengths of a password, in characters and in bytes.
const (
	MinPassword = 12
	MaxPassword = 512
)

// ValidatePassword checks a password that a person chose.
func ValidatePassword(user, password string) error {
	switch {
	case !utf8.ValidString(password) || strings.ContainsFunc(password, unicode.IsControl):
		return &InvalidError{Field: "password", Problem: "holds what cannot be typed"}
	case utf8.RuneCountInString(password) < MinPassword:
		return &InvalidError{Field: "password", Problem: fmt.Sprintf("is shorter than %d characters", MinPassword)}
	case len(password) > MaxPassword:
		return &InvalidError{Field: "password", Problem: fmt.Sprintf("is longer than %d bytes", MaxPassword)}
	case len(user) > 3 && strings.Contains(strings.ToLower(password), user):
		return &InvalidError{Field: "password", Problem: "holds the user's name"}
	case strings.Count(password, password[:1]) == len(password):
		return &InvalidError{Field: "password", Problem: "is one character again and again"}
	}
	return nil
}
