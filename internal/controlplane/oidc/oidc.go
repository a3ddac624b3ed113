// Package oidc signs people in with an identity provider: OpenID Connect Core
// 1.0, authorization code flow with PKCE (RFC 7636), state and nonce.
//
// A Provider knows what the provider says of a person and which role and
// regions their groups mean; users and sessions are package auth's. The
// provider is looked for when somebody signs in, so that one that is down keeps
// nobody from starting, or from signing in with a password.
//
// All methods may be called concurrently.
package oidc

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// Config of a Provider.
type Config struct {
	Issuer      string   // its address, https
	ClientID    string   // of LPMOS there
	Secret      string   // of that client; "" for a public one
	Name        string   // on the button; "" means the issuer's host
	CA          []byte   // PEM of the authority of its certificate; nil: the system's
	Scopes      []string // asked for beside openid
	UserClaim   string   // that names the user; "" means preferred_username
	GroupsClaim string   // "" means groups
	Grants      []Grant
	Now         func() time.Time // nil means time.Now
}

// Grant is what being in a group means here.
type Grant struct {
	Group   string
	Role    lpmos.Role
	Regions []string // nil: everywhere
}

// ParseGrant reads "ops=operator", or "ops-north=approver@dc1+dc2". The name of
// a group may hold anything but the last of the equals signs.
func ParseGrant(s string) (Grant, error) {
	i := strings.LastIndexByte(s, '=')
	if i < 1 {
		return Grant{}, &lpmos.InvalidError{Field: "oidc-grant", Problem: "is not GROUP=ROLE or GROUP=ROLE@REGION+REGION", Value: s}
	}
	role, regions, limited := strings.Cut(s[i+1:], "@")
	g := Grant{Group: s[:i], Role: lpmos.Role(role)}
	if limited {
		g.Regions = strings.Split(regions, "+")
	}
	if err := lpmos.ValidateAccess(g.Role, g.Regions); err != nil {
		return Grant{}, &lpmos.InvalidError{Field: "oidc-grant", Problem: "cannot be granted: " + err.Error(), Value: s}
	}
	return g, nil
}

// Limits of time. A person waits for them.
const (
	discoverFor = 5 * time.Second
	exchangeFor = 10 * time.Second
	failedFor   = 2 * time.Second // no second look at a provider that did not answer
	// AttemptFor is how long a person may take at the provider.
	AttemptFor = 10 * time.Minute
	// freshFor is how old a sign-in may be that was asked for anew: the way back
	// and clocks that differ.
	freshFor = 2 * time.Minute
	maxUsed  = 10_000 // states that are remembered
)

// Provider is one identity provider.
type Provider struct {
	cfg    Config
	client *http.Client
	log    *slog.Logger

	mu       sync.Mutex // guards what follows
	found    *gooidc.Provider
	failed   error
	failedAt time.Time
	used     map[string]time.Time // states that came back
}

// New checks a configuration. It asks nobody.
func New(cfg Config, log *slog.Logger) (*Provider, error) {
	u, err := url.Parse(cfg.Issuer)
	loopback := false
	if err == nil {
		ip := net.ParseIP(u.Hostname())
		loopback = u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	}
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && loopback):
		return nil, &lpmos.InvalidError{Field: "oidc-issuer", Problem: "is not an address that begins with https://", Value: cfg.Issuer}
	case cfg.ClientID == "":
		return nil, &lpmos.InvalidError{Field: "oidc-client-id", Problem: "is missing: it is what the identity provider calls LPMOS"}
	case len(cfg.Grants) == 0:
		return nil, &lpmos.InvalidError{Field: "oidc-grant", Problem: "is missing: without one, no group means a role and nobody may sign in"}
	}
	if cfg.Name == "" {
		cfg.Name = u.Hostname()
	}
	if cfg.UserClaim == "" {
		cfg.UserClaim = "preferred_username"
	}
	if cfg.GroupsClaim == "" {
		cfg.GroupsClaim = "groups"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CA != nil {
		if t.RootCAs = x509.NewCertPool(); !t.RootCAs.AppendCertsFromPEM(cfg.CA) {
			return nil, &lpmos.InvalidError{Field: "oidc-ca", Problem: "holds no certificate"}
		}
	}
	return &Provider{cfg: cfg, log: log, used: map[string]time.Time{}, client: &http.Client{Timeout: exchangeFor, Transport: &http.Transport{
		TLSClientConfig: t, DialContext: (&net.Dialer{Timeout: discoverFor}).DialContext, TLSHandshakeTimeout: discoverFor,
		ResponseHeaderTimeout: discoverFor, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
	}}}, nil
}

// Name is what a button says.
func (p *Provider) Name() string { return p.cfg.Name }

// UnavailableError says that the provider cannot be asked now. It is an
// lpmos.ErrUnavailable.
type UnavailableError struct{ Cause error }

func (e *UnavailableError) Error() string { return "ask the identity provider: " + e.Cause.Error() }
func (e *UnavailableError) Unwrap() error { return e.Cause }

// Is makes an UnavailableError an lpmos.ErrUnavailable.
func (e *UnavailableError) Is(target error) bool { return target == lpmos.ErrUnavailable }

// ErrRefused is wrapped by errors about an answer that signs nobody in. Their
// text is for the log: it may quote what came from outside.
var ErrRefused = errors.New("the identity provider's answer was refused")

// ErrCanceled is wrapped when the provider says that it does not let the person
// in, or that they turned back.
var ErrCanceled = errors.New("the identity provider let nobody in")

// Attempt is one sign-in that was begun, as the browser keeps it in a cookie:
// whoever comes back with another is refused.
type Attempt struct {
	State    string `json:"s"`
	Nonce    string `json:"n"`
	Verifier string `json:"v"` // of PKCE
	Return   string `json:"r"` // the page to go on to
	Fresh    bool   `json:"f,omitempty"`
	At       int64  `json:"t"` // unix seconds
}

// Encode is a as a cookie holds it.
func (a Attempt) Encode() string {
	b, err := json.Marshal(a)
	if err != nil {
		panic("oidc: encode attempt: " + err.Error()) // of text and a number
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// DecodeAttempt reads a cookie; ok is false for what is none.
func DecodeAttempt(s string) (a Attempt, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	return a, err == nil && json.Unmarshal(b, &a) == nil && a.State != "" && a.Nonce != "" && a.Verifier != ""
}

// provider asks for the provider's endpoints and keys, once.
func (p *Provider) provider(ctx context.Context) (*gooidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found != nil {
		return p.found, nil
	}
	if p.failed != nil && p.cfg.Now().Sub(p.failedAt) < failedFor {
		return nil, &UnavailableError{p.failed}
	}
	ctx, cancel := context.WithTimeout(ctx, discoverFor)
	defer cancel()
	found, err := gooidc.NewProvider(gooidc.ClientContext(ctx, p.client), p.cfg.Issuer)
	if err != nil {
		p.failed, p.failedAt = err, p.cfg.Now()
		return nil, &UnavailableError{err}
	}
	p.found, p.failed = found, nil
	return found, nil
}

func (p *Provider) oauth(found *gooidc.Provider, redirect string) *oauth2.Config {
	c := &oauth2.Config{ClientID: p.cfg.ClientID, ClientSecret: p.cfg.Secret, Endpoint: found.Endpoint(), RedirectURL: redirect, Scopes: append([]string{gooidc.ScopeOpenID}, p.cfg.Scopes...)}
	// Said, so that a code is not sent twice to find out.
	var methods struct {
		Supported []string `json:"token_endpoint_auth_methods_supported"`
	}
	c.Endpoint.AuthStyle = oauth2.AuthStyleInHeader
	if err := found.Claims(&methods); err == nil && len(methods.Supported) > 0 && !slices.Contains(methods.Supported, "client_secret_basic") || p.cfg.Secret == "" {
		c.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	return c
}

// Begin is where the browser is to go to sign in, and what it keeps meanwhile.
// fresh asks the person to sign in there again, whoever they are already.
func (p *Provider) Begin(ctx context.Context, redirect, back string, fresh bool) (to string, a Attempt, err error) {
	found, err := p.provider(ctx)
	if err != nil {
		return "", a, err
	}
	a = Attempt{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Return: back, Fresh: fresh, At: p.cfg.Now().Unix()}
	opts := []oauth2.AuthCodeOption{gooidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier)}
	if fresh {
		opts = append(opts, oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", "0"))
	}
	return p.oauth(found, redirect).AuthCodeURL(a.State, opts...), a, nil
}

// once reports whether a state comes back for the first time.
func (p *Provider) once(state string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.cfg.Now()
	for s, at := range p.used {
		if now.Sub(at) > AttemptFor {
			delete(p.used, s)
		}
	}
	if _, again := p.used[state]; again {
		return false
	}
	if len(p.used) >= maxUsed {
		// Somebody makes them up, which costs nothing. That nobody could sign in
		// would be worse than what is left without: a code that the provider takes
		// once, and the nonce.
		clear(p.used)
	}
	p.used[state] = now
	return true
}

// Finish takes the answer that the browser brought, q, for an attempt. Errors:
// an *UnavailableError, ErrCanceled, ErrRefused.
func (p *Provider) Finish(ctx context.Context, redirect string, a Attempt, q url.Values) (id auth.Identity, err error) {
	refuse := func(format string, args ...any) (auth.Identity, error) {
		return auth.Identity{}, fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
	}
	switch age := p.cfg.Now().Sub(time.Unix(a.At, 0)); {
	case subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(a.State)) != 1:
		return refuse("the state is not the one this browser was given")
	case age > AttemptFor || age < -time.Minute:
		return refuse("it came %v after the sign-in was begun", age.Round(time.Second))
	case !p.once(a.State):
		return refuse("the state was used already")
	case q.Get("error") != "":
		return id, fmt.Errorf("%w: %q %q", ErrCanceled, lpmos.Shorten(q.Get("error"), 100), lpmos.Shorten(q.Get("error_description"), 200))
	case q.Get("code") == "" || q.Get("iss") != "" && q.Get("iss") != p.cfg.Issuer:
		return refuse("it has no code, or is another issuer's (%q)", lpmos.Shorten(q.Get("iss"), 200))
	}
	found, err := p.provider(ctx)
	if err != nil {
		return id, err
	}
	ctx, cancel := context.WithTimeout(gooidc.ClientContext(ctx, p.client), exchangeFor)
	defer cancel()
	token, err := p.oauth(found, redirect).Exchange(ctx, q.Get("code"), oauth2.VerifierOption(a.Verifier))
	if _, answered := errors.AsType[*oauth2.RetrieveError](err); err != nil && !answered {
		return id, &UnavailableError{err}
	}
	if err != nil {
		return refuse("exchange the code: %w", err)
	}
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return refuse("it has no ID token")
	}
	verified, err := found.Verifier(&gooidc.Config{ClientID: p.cfg.ClientID, Now: p.cfg.Now}).Verify(ctx, raw)
	if err != nil {
		return refuse("verify the ID token: %w", err)
	}
	var claims map[string]any
	if err := verified.Claims(&claims); err != nil {
		return refuse("read the ID token: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(verified.Nonce), []byte(a.Nonce)) != 1 {
		return refuse("the ID token was made for another sign-in: its nonce is not ours")
	}
	if azp, _ := claims["azp"].(string); len(verified.Audience) > 1 && azp != p.cfg.ClientID {
		return refuse("the ID token was given to another client (%q)", lpmos.Shorten(azp, 100))
	}
	if _, told := claims[p.cfg.GroupsClaim]; !told && found.UserInfoEndpoint() != "" {
		if err := p.askMore(ctx, found, token, verified.Subject, claims); err != nil {
			return id, err
		}
	}
	id = p.identity(verified.Subject, claims)
	if at, ok := claims["auth_time"].(float64); ok {
		id.ProvedAt = time.Unix(int64(at), 0).UTC()
	}
	if age := p.cfg.Now().Sub(id.ProvedAt); a.Fresh && (id.ProvedAt.IsZero() || age > freshFor) {
		return refuse("a new sign-in was asked for, and the provider does not say that there was one (auth_time)")
	}
	if id.ProvedAt.After(p.cfg.Now()) {
		id.ProvedAt = p.cfg.Now().UTC()
	}
	return id, nil
}

// askMore takes from the provider's UserInfo what the ID token leaves out of who
// somebody is; nothing of when and for whom they signed in, which is signed. A
// provider that does not answer must not look like one that took all groups away.
func (p *Provider) askMore(ctx context.Context, found *gooidc.Provider, token *oauth2.Token, subject string, claims map[string]any) error {
	info, err := found.UserInfo(ctx, oauth2.StaticTokenSource(token))
	var more map[string]any
	if err == nil {
		err = info.Claims(&more)
	}
	if err != nil {
		return &UnavailableError{fmt.Errorf("userinfo: %w", err)}
	}
	if info.Subject != subject { // OpenID Connect Core, §5.3.2
		return fmt.Errorf("%w: userinfo is about another person", ErrRefused)
	}
	for _, name := range []string{p.cfg.GroupsClaim, p.cfg.UserClaim, "email", "email_verified"} {
		if _, told := claims[name]; !told && more[name] != nil {
			claims[name] = more[name]
		}
	}
	return nil
}

// identity is what the claims say, and what it means here. Of several groups
// that mean something, those with the greatest role count, with the regions of
// all of them.
func (p *Provider) identity(subject string, claims map[string]any) auth.Identity {
	text := func(name string) string {
		s, _ := claims[name].(string)
		return strings.ToLower(strings.TrimSpace(s))
	}
	id := auth.Identity{Issuer: p.cfg.Issuer, Provider: p.cfg.Name, Subject: subject, Name: text(p.cfg.UserClaim)}
	if verified, said := claims["email_verified"].(bool); !said || verified {
		id.Email = text("email")
	}
	if id.Name == "" {
		id.Name = id.Email
	}
	id.Name, _, _ = strings.Cut(id.Name, "@")
	var groups []string
	switch v := claims[p.cfg.GroupsClaim].(type) {
	case string:
		groups = []string{v}
	case []any:
		for _, one := range v {
			if s, ok := one.(string); ok {
				groups = append(groups, s)
			}
		}
	}
	for _, g := range p.cfg.Grants {
		if !slices.Contains(groups, g.Group) {
			continue
		}
		id.Groups = append(id.Groups, g.Group)
		switch {
		case g.Role == id.Role && id.Regions != nil && g.Regions != nil:
			id.Regions = append(id.Regions, g.Regions...)
		case g.Role == id.Role:
			id.Regions = nil
		case g.Role.Includes(id.Role) || id.Role == "":
			id.Role, id.Regions = g.Role, slices.Clone(g.Regions)
		}
	}
	if id.Regions != nil {
		slices.Sort(id.Regions)
		id.Regions = slices.Compact(id.Regions)
	}
	return id
}
