package rest

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// People is who may sign in.
type People interface {
	Login(ctx context.Context, name, password, from, agent string) (secret string, p auth.Principal, err error)
	Logout(ctx context.Context, p auth.Principal) error
	// Reauthenticate proves once more who p is: the answer says since when.
	Reauthenticate(ctx context.Context, p auth.Principal, password string) (auth.Principal, error)
	SetCookie(w http.ResponseWriter, r *http.Request, secret string)
	Sessions(user, current string) []auth.SignedIn
	EndSession(ctx context.Context, user, publicID string) error
	ChangePassword(ctx context.Context, p auth.Principal, current, password, agent string) (secret string, now auth.Principal, err error)
	Users() []lpmos.User
	User(name string) (lpmos.User, bool)
	CreateUser(ctx context.Context, name string, role lpmos.Role, regions []string) (u lpmos.User, password string, err error)
	SetAccess(ctx context.Context, name string, to auth.Access, based string) (lpmos.User, error)
	ResetPassword(ctx context.Context, name string) (password string, err error)
	DeleteUser(ctx context.Context, name string) error
	Tokens(user string) []auth.TokenInfo
	CreateToken(ctx context.Context, p auth.Principal, n auth.NewToken) (secret string, t auth.TokenInfo, err error)
	DeleteToken(ctx context.Context, p auth.Principal, publicID string) error
}

// Know gives the API its people. It must be called before Handler.
func (a *API) Know(who People) { a.who = who }

func principal(c *gin.Context) auth.Principal { return auth.Of(c.Request.Context()) }

type credentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

type meBody struct {
	Name       string        `json:"name"`
	Kind       auth.Kind     `json:"kind"`
	Role       lpmos.Role    `json:"role,omitempty"`
	Regions    []string      `json:"regions,omitzero"` // absent: everywhere
	MustChange bool          `json:"must_change_password,omitempty"`
	Token      string        `json:"token,omitempty"` // its name
	Sessions   []sessionBody `json:"sessions"`
}

type sessionBody struct {
	ID        string    `json:"id"`
	CreatedAt time.Time `json:"created_at"`
	SeenAt    time.Time `json:"seen_at"`
	From      string    `json:"from,omitempty"`
	Agent     string    `json:"agent,omitempty"`
	Current   bool      `json:"current,omitempty"`
}

func (a *API) meBody(p auth.Principal) meBody {
	b := meBody{Name: p.Name, Kind: p.Kind, Role: p.Role, Regions: p.Regions, MustChange: p.MustChange, Token: p.Label, Sessions: []sessionBody{}}
	for _, s := range a.who.Sessions(p.Name, p.ID) {
		b.Sessions = append(b.Sessions, sessionBody{s.ID, s.CreatedAt, s.SeenAt, s.From, s.Agent, s.Current})
	}
	return b
}

// login answers with a cookie. Who was signed in before in this browser is so
// no more.
func (a *API) login(c *gin.Context) {
	var req credentials
	if !a.decode(c, &req) {
		return
	}
	ctx, before := c.Request.Context(), principal(c)
	secret, p, err := a.who.Login(ctx, req.Username, req.Password, before.From, c.Request.UserAgent())
	if err != nil {
		a.fail(c, err)
		return
	}
	if before.Kind == auth.Session {
		if err := a.who.Logout(ctx, before); err != nil {
			a.log.Warn("end the session before", "err", err)
		}
	}
	a.who.SetCookie(c.Writer, c.Request, secret)
	c.JSON(http.StatusOK, a.meBody(p))
}

func (a *API) logout(c *gin.Context) {
	p := principal(c)
	if err := a.who.Logout(c.Request.Context(), p); err != nil {
		a.fail(c, err)
		return
	}
	if p.Kind == auth.Session {
		a.who.SetCookie(c.Writer, c.Request, "")
	}
	c.Header("Clear-Site-Data", `"cache"`)
	c.Status(http.StatusNoContent)
}

func (a *API) me(c *gin.Context) { c.JSON(http.StatusOK, a.meBody(principal(c))) }

func (a *API) changePassword(c *gin.Context) {
	var req struct {
		Current  string `json:"current_password"`
		Password string `json:"password"`
	}
	if !a.decode(c, &req) {
		return
	}
	p := principal(c)
	secret, now, err := a.who.ChangePassword(c.Request.Context(), p, req.Current, req.Password, c.Request.UserAgent())
	if err != nil {
		a.fail(c, err)
		return
	}
	if p.Kind == auth.Session {
		a.who.SetCookie(c.Writer, c.Request, secret)
	} else if err := a.who.Logout(c.Request.Context(), now); err != nil {
		a.fail(c, err) // a token asked: nobody holds the new session
		return
	}
	c.Status(http.StatusNoContent)
}

func (a *API) endSession(c *gin.Context) {
	if err := a.who.EndSession(c.Request.Context(), principal(c).Name, c.Param("id")); err != nil {
		a.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}

type userBody struct {
	Name       string     `json:"name"`
	Role       lpmos.Role `json:"role"`
	Regions    []string   `json:"regions,omitzero"` // absent: everywhere
	Disabled   bool       `json:"disabled,omitempty"`
	MustChange bool       `json:"must_change_password,omitempty"`
	CreatedAt  time.Time  `json:"created_at"`
	CreatedBy  string     `json:"created_by,omitempty"`
	UpdatedAt  time.Time  `json:"updated_at"`
	UpdatedBy  string     `json:"updated_by,omitempty"`
	Sessions   int        `json:"sessions"`
	// External is who they are to their identity provider.
	External *lpmos.External `json:"external,omitempty"`
	// OneTimePassword is told once: when it is made.
	OneTimePassword string `json:"one_time_password,omitempty"`
}

func (a *API) userBody(u lpmos.User) userBody {
	return userBody{Name: u.Name, Role: u.Role, Regions: u.Regions, Disabled: u.Disabled, MustChange: u.MustChange,
		CreatedAt: u.CreatedAt, CreatedBy: u.CreatedBy, UpdatedAt: u.UpdatedAt, UpdatedBy: u.UpdatedBy, Sessions: len(a.who.Sessions(u.Name, "")), External: u.External}
}

func (a *API) listUsers(c *gin.Context) {
	out := []userBody{}
	for _, u := range a.who.Users() {
		out = append(out, a.userBody(u))
	}
	c.JSON(http.StatusOK, struct {
		Users []userBody `json:"users"`
	}{out})
}

func (a *API) createUser(c *gin.Context) {
	var req struct {
		Name    string     `json:"name"`
		Role    lpmos.Role `json:"role"`
		Regions []string   `json:"regions,omitzero"`
	}
	if !a.decode(c, &req) {
		return
	}
	u, password, err := a.who.CreateUser(c.Request.Context(), req.Name, req.Role, req.Regions)
	if err != nil {
		a.fail(c, err)
		return
	}
	b := a.userBody(u)
	b.OneTimePassword = password
	c.Header("Location", "/api/v1/users/"+u.Name)
	c.Header("Cache-Control", "no-store")
	c.JSON(http.StatusCreated, b)
}

func (a *API) getUser(c *gin.Context) {
	u, ok := a.who.User(c.Param("name"))
	if !ok {
		a.fail(c, fmt.Errorf("user %s: %w", lpmos.Shorten(c.Param("name"), 64), lpmos.ErrNotFound))
		return
	}
	a.user(c, u, nil)
}

func (a *API) user(c *gin.Context, u lpmos.User, err error) {
	if err != nil {
		a.fail(c, err)
		return
	}
	c.Header("ETag", tagOf(auth.AccessOf(u).Tag()))
	c.JSON(http.StatusOK, a.userBody(u))
}

func (a *API) putUser(c *gin.Context) {
	var req struct {
		Role     lpmos.Role `json:"role"`
		Regions  []string   `json:"regions,omitzero"`
		Disabled bool       `json:"disabled,omitempty"`
	}
	based, ok := a.matched(c)
	if !ok || !a.decode(c, &req) {
		return
	}
	u, err := a.who.SetAccess(c.Request.Context(), c.Param("name"), auth.Access{Role: req.Role, Regions: req.Regions, Disabled: req.Disabled}, based)
	a.user(c, u, err)
}

func (a *API) deleteUser(c *gin.Context) {
	if err := a.who.DeleteUser(c.Request.Context(), c.Param("name")); err != nil {
		a.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}

func (a *API) resetPassword(c *gin.Context) {
	password, err := a.who.ResetPassword(c.Request.Context(), c.Param("name"))
	if err != nil {
		a.fail(c, err)
		return
	}
	c.Header("Cache-Control", "no-store")
	c.JSON(http.StatusOK, struct {
		OneTimePassword string `json:"one_time_password"`
	}{password})
}

type tokenBody struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	User      string     `json:"user"`
	Role      lpmos.Role `json:"role"`
	Regions   []string   `json:"regions,omitzero"` // absent: all that its user has
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt time.Time  `json:"expires_at"`
	UsedAt    time.Time  `json:"used_at,omitzero"`
	Token     string     `json:"token,omitempty"` // told once: when it is made
}

func newTokenBody(t auth.TokenInfo) tokenBody {
	return tokenBody{ID: t.ID, Name: t.Name, User: t.User, Role: t.Role, Regions: t.Regions, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt, UsedAt: t.UsedAt}
}

// listTokens shows one's own; admins see all.
func (a *API) listTokens(c *gin.Context) {
	p := principal(c)
	of := p.Name
	if p.May(auth.Administer) == nil {
		of = ""
	}
	out := []tokenBody{}
	for _, t := range a.who.Tokens(of) {
		out = append(out, newTokenBody(t))
	}
	c.JSON(http.StatusOK, struct {
		Tokens []tokenBody `json:"tokens"`
	}{out})
}

func (a *API) createToken(c *gin.Context) {
	var req struct {
		Name      string     `json:"name"`
		Role      lpmos.Role `json:"role,omitempty"`
		Regions   []string   `json:"regions,omitzero"`
		ExpiresIn int64      `json:"expires_in_sec,omitempty"`
	}
	if !a.decode(c, &req) {
		return
	}
	if req.ExpiresIn < 0 || req.ExpiresIn > int64(auth.TokenLimit/time.Second) {
		a.fail(c, &lpmos.InvalidError{Field: "expires_in_sec", Problem: "is not from one minute to a year"})
		return
	}
	secret, t, err := a.who.CreateToken(c.Request.Context(), principal(c), auth.NewToken{Name: req.Name, Role: req.Role, Regions: req.Regions, For: time.Duration(req.ExpiresIn) * time.Second})
	if err != nil {
		a.fail(c, err)
		return
	}
	b := newTokenBody(t)
	b.Token = secret
	c.Header("Cache-Control", "no-store")
	c.JSON(http.StatusCreated, b)
}

func (a *API) deleteToken(c *gin.Context) {
	if err := a.who.DeleteToken(c.Request.Context(), principal(c), c.Param("id")); err != nil {
		a.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}
