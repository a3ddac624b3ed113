package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

// Users are all, by name, without their password hashes.
func (a *Auth) Users() []lpmos.User {
	all := a.dir.allUsers()
	for i := range all {
		all[i].Password = ""
	}
	return all
}

// User is one of them.
func (a *Auth) User(name string) (lpmos.User, bool) {
	u, ok := a.dir.user(name)
	u.Password = ""
	return u, ok
}

// CreateUser makes a user with a one-time password, which is told once.
func (a *Auth) CreateUser(ctx context.Context, name string, role lpmos.Role, regions []string) (u lpmos.User, password string, err error) {
	if !lpmos.ValidName(name) {
		return u, "", &lpmos.InvalidError{Field: "name", Problem: "is not a user name: lower-case letters, digits, dot, hyphen and underscore, 64 at most", Value: name}
	}
	if err := lpmos.ValidateAccess(role, regions); err != nil {
		return u, "", err
	}
	password = oneTimePassword()
	hash, err := a.hash.hash(ctx, password)
	if err != nil {
		return u, "", err
	}
	by, now := lpmos.ActorOf(ctx).Name, a.cfg.Now().UTC()
	u = lpmos.User{Name: name, Role: role, Regions: regions, Password: hash, MustChange: true, CreatedAt: now, CreatedBy: by, UpdatedAt: now, UpdatedBy: by}
	rev, err := a.store.CreateUser(ctx, u)
	if err != nil {
		return u, "", err
	}
	a.dir.own(rev, Change{Kind: "user", Key: name, User: &u})
	a.log.Info("user made", "user", name, "role", role, "regions", regions, "by", by)
	u.Password = ""
	return u, password, nil
}

// Access is what an admin decides about a user.
type Access struct {
	Role     lpmos.Role
	Regions  []string // nil: everywhere
	Disabled bool
}

// AccessOf is what was decided about u.
func AccessOf(u lpmos.User) Access { return Access{u.Role, u.Regions, u.Disabled} }

// Tag names what a says, as lpmos.Limits.Tag does.
func (a Access) Tag() string { return lpmos.DigestOf(a) }

// SetAccess changes what a user may do. Disabling ends all sessions; a smaller
// role holds from the next request on, and within seconds on open sockets. If
// based is not "" and not the tag of what the user may do now, the error is an
// lpmos.ErrChanged.
func (a *Auth) SetAccess(ctx context.Context, name string, to Access, based string) (lpmos.User, error) {
	if err := lpmos.ValidateAccess(to.Role, to.Regions); err != nil {
		return lpmos.User{}, err
	}
	if u, ok := a.dir.user(name); ok && (u.Role != to.Role || !slices.Equal(u.Regions, to.Regions) || (u.Regions == nil) != (to.Regions == nil)) {
		if err := a.notExternal(name, "the role and regions by the groups there: only disabling is decided here"); err != nil {
			return lpmos.User{}, err
		}
	}
	return a.update(ctx, name, "user changed", func(u *lpmos.User) error {
		if based != "" && based != AccessOf(*u).Tag() {
			return fmt.Errorf("user %s: %w: look at it again", name, lpmos.ErrChanged)
		}
		if to.Disabled && !u.Disabled {
			u.Epoch++
		}
		u.Role, u.Regions, u.Disabled = to.Role, to.Regions, to.Disabled
		return nil
	})
}

// ResetPassword gives a user another one-time password, and ends all sessions.
func (a *Auth) ResetPassword(ctx context.Context, name string) (password string, err error) {
	if err := a.notExternal(name, "the password"); err != nil {
		return "", err
	}
	password = oneTimePassword()
	hash, err := a.hash.hash(ctx, password)
	if err != nil {
		return "", err
	}
	_, err = a.update(ctx, name, "one-time password given", func(u *lpmos.User) error {
		u.Password, u.MustChange, u.Epoch = hash, true, u.Epoch+1
		return nil
	})
	return password, err
}

func (a *Auth) update(ctx context.Context, name, what string, change func(*lpmos.User) error) (lpmos.User, error) {
	by := lpmos.ActorOf(ctx).Name
	u, rev, err := a.store.UpdateUser(ctx, name, func(u *lpmos.User) error {
		u.UpdatedAt, u.UpdatedBy = a.cfg.Now().UTC(), by
		return change(u)
	})
	if err != nil {
		return lpmos.User{}, err
	}
	a.dir.own(rev, Change{Kind: "user", Key: name, User: &u})
	a.log.Info(what, "user", name, "role", u.Role, "regions", u.Regions, "disabled", u.Disabled, "by", by)
	u.Password = ""
	return u, nil
}

// DeleteUser removes a user, and with it all sessions and tokens.
func (a *Auth) DeleteUser(ctx context.Context, name string) error {
	rev, err := a.store.DeleteUser(ctx, name)
	if err != nil {
		return err
	}
	a.dir.own(rev, Change{Kind: "user", Key: name})
	a.log.Info("user deleted", "user", name, "by", lpmos.ActorOf(ctx).Name)
	// They count no more; a user who is made anew with this name must not find
	// the tokens of this one. What is left here, tidy ends.
	for _, t := range a.Tokens(name) {
		if err := a.endToken(ctx, t.hash); err != nil {
			return fmt.Errorf("user %s is deleted, a token is not: %w", name, err)
		}
	}
	for _, id := range a.signInsOf(name) {
		if err := a.endSignIn(ctx, id); err != nil {
			return fmt.Errorf("user %s is deleted, a session is not: %w", name, err)
		}
	}
	return nil
}

func (a *Auth) signInsOf(user string) (ids []string) {
	a.dir.mu.RLock()
	defer a.dir.mu.RUnlock()
	for id, h := range a.dir.signIns {
		if h.value.User == user {
			ids = append(ids, id)
		}
	}
	return ids
}

// TokenInfo is a token as it is shown.
type TokenInfo struct {
	lpmos.APIToken
	ID   string // PublicID
	hash string
}

// Tokens are those of a user, or of all where user is "", newest first.
func (a *Auth) Tokens(user string) []TokenInfo {
	a.dir.mu.RLock()
	defer a.dir.mu.RUnlock()
	out := []TokenInfo{}
	for id, h := range a.dir.tokens {
		if user != "" && h.value.User != user {
			continue
		}
		t := TokenInfo{h.value, PublicID(id), id}
		if at := h.used.Load(); at != 0 {
			t.UsedAt = time.Unix(at, 0).UTC()
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(x, y TokenInfo) int {
		if c := y.CreatedAt.Compare(x.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(x.ID, y.ID)
	})
	return out
}

// NewToken is what a person asks for.
type NewToken struct {
	Name    string
	Role    lpmos.Role    // "" means the person's own
	Regions []string      // nil: all that the person has
	For     time.Duration // 0 means TokenUsual
}

// CreateToken makes a token that acts for p. It can do no more than p can, now
// and later. secret is told once.
func (a *Auth) CreateToken(ctx context.Context, p Principal, n NewToken) (secret string, t TokenInfo, err error) {
	if _, ok := a.dir.user(p.Name); !ok {
		return "", t, &DeniedError{Text: "only a user has tokens"}
	}
	if n.Name = strings.TrimSpace(n.Name); n.Name == "" || len(n.Name) > 64 || printable(n.Name, 64) != n.Name {
		return "", t, &lpmos.InvalidError{Field: "name", Problem: "is empty, longer than 64 bytes, or cannot be printed", Value: n.Name}
	}
	asked := n.For != 0
	if n.Role == "" {
		n.Role = p.Role
	}
	if err := lpmos.ValidateAccess(n.Role, n.Regions); err != nil {
		return "", t, err
	}
	switch {
	case !p.Role.Includes(n.Role):
		return "", t, &lpmos.InvalidError{Field: "role", Problem: "is more than yours, " + string(p.Role), Value: string(n.Role)}
	case n.For == 0:
		n.For = TokenUsual
	case n.For < time.Minute || n.For > TokenLimit:
		return "", t, &lpmos.InvalidError{Field: "expires_in", Problem: "is not from one minute to a year"}
	}
	for _, r := range n.Regions {
		if !p.Sees(r) {
			return "", t, &lpmos.InvalidError{Field: "regions", Problem: "names a region that is not yours", Value: r}
		}
	}
	if n.Regions == nil {
		n.Regions = p.Regions
	}
	if h, ok := a.dir.token(p.ID); ok && p.Kind == Token {
		// Whoever stole a token must not live longer by it.
		if left := h.value.ExpiresAt.Sub(a.cfg.Now()); n.For > left {
			if asked {
				return "", t, &lpmos.InvalidError{Field: "expires_in", Problem: "is longer than the token has that asks for it (until " + h.value.ExpiresAt.Format(time.RFC3339) + "): sign in with the password"}
			}
			n.For = left
		}
	}
	if len(a.Tokens(p.Name)) >= maxTokens {
		return "", t, &lpmos.ConflictError{Problem: fmt.Sprintf("you have %d tokens: delete some first", maxTokens)}
	}
	secret = NewSecret(tokenPrefix)
	id, now := Hash(secret), a.cfg.Now().UTC().Truncate(time.Second)
	v := lpmos.APIToken{Name: n.Name, User: p.Name, Role: n.Role, Regions: n.Regions, CreatedAt: now, ExpiresAt: now.Add(n.For)}
	rev, err := a.store.CreateToken(ctx, id, v)
	if err != nil {
		return "", t, err
	}
	a.dir.own(rev, Change{Kind: "token", Key: id, Token: &v})
	a.log.Info("token made", "user", p.Name, "token", n.Name, "role", n.Role, "expires", v.ExpiresAt)
	return secret, TokenInfo{v, PublicID(id), id}, nil
}

// DeleteToken ends a token of p, or any if p may administer.
func (a *Auth) DeleteToken(ctx context.Context, p Principal, publicID string) error {
	of := p.Name
	if p.May(Administer) == nil {
		of = ""
	}
	for _, t := range a.Tokens(of) {
		if t.ID == publicID {
			a.log.Info("token ended", "user", t.User, "token", t.Name, "by", p.Name)
			return a.endToken(ctx, t.hash)
		}
	}
	return fmt.Errorf("token %s: %w", lpmos.Shorten(publicID, 32), lpmos.ErrNotFound)
}
