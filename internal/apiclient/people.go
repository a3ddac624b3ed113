package apiclient

import (
	"context"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"time"

	"github.com/lpmos/lpmos"
)

// Me is who a client is.
type Me struct {
	Name       string     `json:"name"`
	Kind       string     `json:"kind"`
	Role       lpmos.Role `json:"role,omitempty"`
	Regions    []string   `json:"regions,omitempty"`
	MustChange bool       `json:"must_change_password,omitempty"`
	Token      string     `json:"token,omitempty"`
	Sessions   []Session  `json:"sessions"`
}

// Session is one browser in which somebody is signed in.
type Session struct {
	ID        string    `json:"id"`
	CreatedAt time.Time `json:"created_at"`
	SeenAt    time.Time `json:"seen_at"`
	From      string    `json:"from,omitempty"`
	Agent     string    `json:"agent,omitempty"`
	Current   bool      `json:"current,omitempty"`
}

// Login begins a session that this client keeps in memory.
func (c *Client) Login(ctx context.Context, name, password string) (me Me, err error) {
	if c.http.Jar == nil {
		jar, err := cookiejar.New(nil)
		if err != nil {
			return me, fmt.Errorf("keep a session: %w", err)
		}
		c.http.Jar = jar
	}
	err = c.send(ctx, http.MethodPost, v1+"/login", map[string]string{"username": name, "password": password}, &me)
	return me, err
}

// Logout ends the session or the token that this client has.
func (c *Client) Logout(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, v1+"/logout", nil, nil, nil)
}

// Me says who this client is.
func (c *Client) Me(ctx context.Context) (me Me, err error) {
	err = c.get(ctx, v1+"/me", &me)
	return me, err
}

// ChangePassword gives who is signed in another password.
func (c *Client) ChangePassword(ctx context.Context, current, password string) error {
	return c.send(ctx, http.MethodPut, v1+"/me/password", map[string]string{"current_password": current, "password": password}, nil)
}

// User is somebody who may sign in.
type User struct {
	Name       string     `json:"name"`
	Role       lpmos.Role `json:"role"`
	Regions    []string   `json:"regions,omitempty"`
	Disabled   bool       `json:"disabled,omitempty"`
	MustChange bool       `json:"must_change_password,omitempty"`
	CreatedAt  time.Time  `json:"created_at"`
	CreatedBy  string     `json:"created_by,omitempty"`
	UpdatedAt  time.Time  `json:"updated_at"`
	UpdatedBy  string     `json:"updated_by,omitempty"`
	Sessions   int        `json:"sessions"`
	// External is set for who signs in with an identity provider.
	External *lpmos.External `json:"external,omitempty"`

	OneTimePassword string `json:"one_time_password,omitempty"` // when it was just made
}

// Users lists them.
func (c *Client) Users(ctx context.Context) ([]User, error) {
	var out struct {
		Users []User `json:"users"`
	}
	err := c.get(ctx, v1+"/users", &out)
	return out.Users, err
}

func userPath(name string) string { return v1 + "/users/" + url.PathEscape(name) }

// User reads one, and the ETag of what it may do.
func (c *Client) User(ctx context.Context, name string) (u User, etag string, err error) {
	etag, err = c.getTagged(ctx, userPath(name), &u)
	return u, etag, err
}

// Access is what a user is to be allowed. Regions nil stands for all.
type Access struct {
	Role     lpmos.Role `json:"role"`
	Regions  []string   `json:"regions,omitempty"`
	Disabled bool       `json:"disabled,omitempty"`
}

// CreateUser makes one, with a one-time password.
func (c *Client) CreateUser(ctx context.Context, name string, a Access) (u User, err error) {
	in := struct {
		Name    string     `json:"name"`
		Role    lpmos.Role `json:"role"`
		Regions []string   `json:"regions,omitempty"`
	}{name, a.Role, a.Regions}
	err = c.send(ctx, http.MethodPost, v1+"/users", in, &u)
	return u, err
}

// SetAccess changes what a user may do; etag is as in SetLimits.
func (c *Client) SetAccess(ctx context.Context, name string, a Access, etag string) (u User, err error) {
	err = c.sendWith(ctx, http.MethodPut, userPath(name), ifMatch(etag), a, &u)
	return u, err
}

// DeleteUser removes one.
func (c *Client) DeleteUser(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, userPath(name), nil, nil, nil)
}

// ResetPassword makes a one-time password.
func (c *Client) ResetPassword(ctx context.Context, name string) (string, error) {
	var out struct {
		OneTimePassword string `json:"one_time_password"`
	}
	err := c.do(ctx, http.MethodPost, userPath(name)+"/reset-password", nil, nil, &out)
	return out.OneTimePassword, err
}

// Token is an API token.
type Token struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	User      string     `json:"user"`
	Role      lpmos.Role `json:"role"`
	Regions   []string   `json:"regions,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt time.Time  `json:"expires_at"`
	UsedAt    time.Time  `json:"used_at,omitzero"`
	Token     string     `json:"token,omitempty"` // when it was just made
}

// Tokens lists one's own; an admin sees all.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	var out struct {
		Tokens []Token `json:"tokens"`
	}
	err := c.get(ctx, v1+"/tokens", &out)
	return out.Tokens, err
}

// NewToken is what a token is to be. Zero fields stand for one's own rights and
// for the usual time.
type NewToken struct {
	Name      string     `json:"name"`
	Role      lpmos.Role `json:"role,omitempty"`
	Regions   []string   `json:"regions,omitempty"`
	ExpiresIn int64      `json:"expires_in_sec,omitempty"`
}

// CreateToken makes one.
func (c *Client) CreateToken(ctx context.Context, n NewToken) (t Token, err error) {
	err = c.send(ctx, http.MethodPost, v1+"/tokens", n, &t)
	return t, err
}

// DeleteToken ends one.
func (c *Client) DeleteToken(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, v1+"/tokens/"+url.PathEscape(id), nil, nil, nil)
}
