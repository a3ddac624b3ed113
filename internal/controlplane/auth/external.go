package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/lpmos/lpmos"
)

// Identity is a person as an identity provider vouches for them, and what that
// means here.
type Identity struct {
	Issuer, Subject string // together they name the person, for good
	Provider        string // the issuer's name for people
	Name            string // the user they are to be
	Email           string
	Groups          []string   // those that mean something here
	Role            lpmos.Role // "" if no group of theirs means one
	Regions         []string   // nil: everywhere
	ProvedAt        time.Time  // when they proved it to the provider; zero if it does not say
}

// SignInExternal signs in whom an identity provider vouches for. The user is
// made at the first sign-in, and gets the role of the groups at each; without
// one, all sessions of theirs end. A name that is somebody else's already is
// refused: nobody takes over a user by being called so elsewhere. Errors beside
// the store's: *DeniedError.
func (a *Auth) SignInExternal(ctx context.Context, id Identity, from, agent string) (secret string, p Principal, err error) {
	name, known := id.Name, false
	for _, u := range a.dir.allUsers() {
		e := u.External
		switch {
		case e == nil:
		case e.Issuer == id.Issuer && e.Subject == id.Subject:
			name, known = u.Name, true
		case id.Email != "" && e.Email == id.Email:
			return "", p, a.collides(id, u.Name, from)
		}
	}
	if !lpmos.ValidName(name) {
		return "", p, &DeniedError{Text: fmt.Sprintf("%s calls you %s, which cannot be a user name here", id.Provider, lpmos.Shorten(printable(name, 64), 64))}
	}
	now := a.cfg.Now().UTC().Truncate(time.Second)
	become := func(u *lpmos.User) error {
		if e := u.External; e == nil || e.Issuer != id.Issuer || e.Subject != id.Subject {
			return a.collides(id, u.Name, from)
		}
		was := u.Barred()
		u.External = &lpmos.External{Issuer: id.Issuer, Subject: id.Subject, Email: id.Email, Groups: id.Groups, SeenAt: now, Barred: id.Role == ""}
		if id.Role != "" {
			if u.Role != id.Role || !slices.Equal(u.Regions, id.Regions) || (u.Regions == nil) != (id.Regions == nil) {
				u.UpdatedAt, u.UpdatedBy = now, id.Provider
			}
			u.Role, u.Regions = id.Role, id.Regions
		}
		if u.Barred() && !was {
			u.Epoch++
		}
		return nil
	}
	u, rev := lpmos.User{Name: name, CreatedAt: now, CreatedBy: id.Provider, UpdatedAt: now, External: &lpmos.External{Issuer: id.Issuer, Subject: id.Subject}}, int64(0)
	switch {
	case known:
	case id.Role == "":
		return "", p, a.noGroup(id, name, from)
	default:
		if err := become(&u); err != nil {
			return "", p, err
		}
		rev, err = a.store.CreateUser(ctx, u)
		if known = errors.Is(err, lpmos.ErrConflict); err != nil && !known {
			return "", p, err
		}
	}
	if known {
		if u, rev, err = a.store.UpdateUser(ctx, name, become); err != nil {
			return "", p, err
		}
	}
	a.dir.own(rev, Change{Kind: "user", Key: name, User: &u})
	switch {
	case id.Role == "":
		return "", p, a.noGroup(id, name, from)
	case u.Disabled:
		a.log.Warn("sign-in refused", "user", name, "addr", from, "reason", "disabled")
		return "", p, &DeniedError{Text: "the user " + name + " is disabled here: ask an admin"}
	}
	return a.begin(ctx, u, lpmos.SignIn{From: from, Agent: agent, ProvedAt: id.ProvedAt})
}

func (a *Auth) noGroup(id Identity, name, from string) error {
	a.log.Warn("sign-in refused", "user", name, "addr", from, "reason", "no group means a role")
	return &DeniedError{Text: "none of your groups at " + id.Provider + " may use this site: ask an admin"}
}

func (a *Auth) collides(id Identity, user, from string) error {
	a.log.Warn("sign-in refused", "user", user, "addr", from, "reason", "name or e-mail is another user's", "subject", lpmos.Shorten(printable(id.Subject, 64), 64))
	return &DeniedError{Text: "there is a user " + user + " already, who is not you at " + id.Provider + ": ask an admin to rename or delete it"}
}

// notExternal refuses what is about a password, or a role, that is not decided
// here.
func (a *Auth) notExternal(name, what string) error {
	u, ok := a.dir.user(name)
	if !ok || u.External == nil {
		return nil
	}
	return &lpmos.ConflictError{Problem: fmt.Sprintf("%s signs in with %s, which decides %s", name, u.External.Issuer, what)}
}

// The cookie of a sign-in at a provider. It has to come along when the browser
// comes back from there, so it cannot be strict as the session's is.
const (
	secureAttempt = "__Host-lpmos-oidc"
	plainAttempt  = "lpmos_oidc"
)

// SetAttempt keeps a sign-in that was begun in the browser; "" takes it away.
func (a *Auth) SetAttempt(w http.ResponseWriter, r *http.Request, value string, life time.Duration) {
	c := &http.Cookie{Name: plainAttempt, Value: value, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(life / time.Second)}
	if a.overTLS(r) {
		c.Name, c.Secure = secureAttempt, true
	}
	if value == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// Attempt is the sign-in that was begun in the browser, "" if there is none.
func (a *Auth) Attempt(r *http.Request) string {
	name := plainAttempt
	if a.overTLS(r) {
		name = secureAttempt
	}
	c, err := r.Cookie(name)
	if err != nil {
		return ""
	}
	return c.Value
}
