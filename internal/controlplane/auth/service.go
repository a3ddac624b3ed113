package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"github.com/lpmos/lpmos"
)

// How long sessions and what leads to them live.
const (
	IdleLimit     = 30 * time.Minute
	AbsoluteLimit = 12 * time.Hour
	LinkLimit     = 15 * time.Minute
	// TokenLimit is the longest life of a token, TokenUsual what it gets unless
	// it is told otherwise.
	TokenLimit = 366 * 24 * time.Hour
	TokenUsual = 90 * 24 * time.Hour

	noteSession = time.Minute     // uses of a session are written down no more often
	noteToken   = 5 * time.Minute // uses of a token
	tidyEvery   = 20 * time.Second
	maxTokens   = 200 // of one user
)

// Store keeps people. Its errors are those of package lpmos.
type Store interface {
	CreateUser(ctx context.Context, u lpmos.User) (rev int64, err error)
	CreateFirstUser(ctx context.Context, u lpmos.User) (bool, error)
	// UpdateUser and DeleteUser leave one lpmos.User.Keeper at least.
	UpdateUser(ctx context.Context, name string, change func(*lpmos.User) error) (lpmos.User, int64, error)
	DeleteUser(ctx context.Context, name string) (int64, error)
	CreateSignIn(ctx context.Context, id string, s lpmos.SignIn, ttl time.Duration) (int64, error)
	TouchSignIn(ctx context.Context, id string, s lpmos.SignIn) (rev int64, err error)
	DeleteSignIn(ctx context.Context, id string) (int64, error)
	// EndSignIn is DeleteSignIn by somebody who is elsewhere.
	EndSignIn(ctx context.Context, id string) (int64, error)
	SignIn(ctx context.Context, id string) (lpmos.SignIn, int64, error)
	CreateToken(ctx context.Context, id string, t lpmos.APIToken) (int64, error)
	TouchToken(ctx context.Context, id string, t lpmos.APIToken) error
	DeleteToken(ctx context.Context, id string) (int64, error)
	Token(ctx context.Context, id string) (lpmos.APIToken, int64, error)
	// Tries, NoteTry and ForgetTries count wrong passwords for all replicas.
	Tries(ctx context.Context, id string) ([]time.Time, error)
	NoteTry(ctx context.Context, id string, at time.Time, window time.Duration) error
	ForgetTries(ctx context.Context, id string) error
}

// Config of an Auth. Its zero value works.
type Config struct {
	Secure  bool           // the listener speaks TLS
	Trusted []netip.Prefix // proxies whose X-Forwarded-For and -Proto are believed
	// NoLogin lets everybody in as an admin: --insecure-no-login.
	NoLogin bool
	// Region finds the region that published the hash of a secret; nil: none did.
	Region func(hash string) (id string, ok bool)
	// Local is the token that the file for programs of this host holds now, "" for
	// none: replicas that share the directory take what the last to start wrote.
	Local func() string
	Now   func() time.Time // nil means time.Now
	// CheapPasswords makes hashes that are good for nothing but tests.
	CheapPasswords bool
}

// Auth knows everybody. Make one with New, feed it with Apply, and let Run
// write down what is used.
type Auth struct {
	cfg      Config
	store    Store
	log      *slog.Logger
	dir      directory
	hash     *hasher
	throttle throttle
	misses   *rate.Limiter // reads of the store for credentials that are not in memory
	limits   limits
	orphans  map[string]bool // tokens that had no user when tidy last looked; tidy's own

	mu    sync.Mutex // guards what follows
	local map[string]Principal
	links map[string]link
}

type link struct {
	user  string
	until time.Time
}

// New makes an Auth that knows nobody yet.
func New(cfg Config, store Store, log *slog.Logger) *Auth {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Region == nil {
		cfg.Region = func(string) (string, bool) { return "", false }
	}
	c := usualCost
	if cfg.CheapPasswords {
		c = cost{memoryKiB: 8, passes: 1, lanes: 1}
	}
	a := &Auth{cfg: cfg, store: store, log: log, hash: newHasher(c), misses: rate.NewLimiter(20, 50), local: map[string]Principal{}, links: map[string]link{}}
	a.dir.clear()
	a.limits.init()
	return a
}

// FirstAdmin makes the user admin if there is no user at all, and answers its
// one-time password, which is told nowhere else; "" if there was somebody.
func (a *Auth) FirstAdmin(ctx context.Context) (password string, err error) {
	password = oneTimePassword()
	hash, err := a.hash.hash(ctx, password)
	if err != nil {
		return "", err
	}
	now := a.cfg.Now().UTC()
	made, err := a.store.CreateFirstUser(ctx, lpmos.User{Name: "admin", Role: lpmos.Admin, Password: hash, MustChange: true, CreatedAt: now, UpdatedAt: now})
	if err != nil || !made {
		return "", err
	}
	a.log.Info("first user made", "user", "admin")
	return password, nil
}

// LocalToken makes a token that only this process knows, for those that run in
// it or were given it by a file that only its owner reads.
func (a *Auth) LocalToken(name string) string {
	secret := NewSecret(tokenPrefix)
	a.mu.Lock()
	defer a.mu.Unlock()
	id := Hash(secret)
	a.local[id] = localPrincipal(id, name)
	return secret
}

func localPrincipal(id, name string) Principal {
	return Principal{Kind: Token, Name: name, Role: lpmos.Admin, ID: id, Label: "local", Own: true}
}

// NewLink makes a code that signs a user in, once, within LinkLimit, at this
// replica. Who has it needs no password and is not asked for a new one.
func (a *Auth) NewLink(user string) string {
	code := NewSecret("")[:22] // 132 bits, and short enough for a terminal's line
	now := a.cfg.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, l := range a.links {
		if now.After(l.until) {
			delete(a.links, k)
		}
	}
	a.links[Hash(code)] = link{user, now.Add(LinkLimit)}
	return code
}

// Redeem signs in whom a code is for.
func (a *Auth) Redeem(ctx context.Context, code, from, agent string) (secret string, p Principal, err error) {
	id := Hash(code)
	a.mu.Lock()
	l, ok := a.links[id]
	delete(a.links, id)
	a.mu.Unlock()
	u, known := a.dir.user(l.user)
	if !ok || a.cfg.Now().After(l.until) || !known || u.Barred() {
		return "", p, fmt.Errorf("%w: this link was used already, or is too old", lpmos.ErrSignedOut)
	}
	return a.begin(ctx, u, lpmos.SignIn{From: from, Agent: agent, ByLink: true})
}

// errWrong is all that is said of a user or a password that is wrong.
var errWrong = fmt.Errorf("%w: user name or password is wrong", lpmos.ErrSignedOut)

// WrongError is a refused password, with how many more there may be.
type WrongError struct{ Left int }

func (e *WrongError) Error() string { return errWrong.Error() }
func (e *WrongError) Unwrap() error { return lpmos.ErrSignedOut }

// Login signs in whoever knows the password. secret is what the cookie holds.
// Errors beside the store's: *WrongError, *ThrottledError.
func (a *Auth) Login(ctx context.Context, name, password, from, agent string) (secret string, p Principal, err error) {
	u, err := a.verify(ctx, name, password, from)
	if err != nil {
		return "", p, err
	}
	return a.begin(ctx, u, lpmos.SignIn{From: from, Agent: agent, ProvedAt: a.cfg.Now()})
}

// verify looks at a password.
func (a *Auth) verify(ctx context.Context, name, password, from string) (lpmos.User, error) {
	name = strings.ToLower(strings.TrimSpace(name))
	if !lpmos.ValidName(name) || len(password) > lpmos.MaxPassword {
		name = "" // nobody's name: counted and looked at like any other
	}
	now := a.cfg.Now()
	others, err := a.throttle.begin(name, from, now)
	var left int
	if err == nil {
		if left, err = a.triesLeft(ctx, name, from, now, others); err != nil {
			a.throttle.undecided(name, from)
		}
	}
	var throttled *ThrottledError
	switch {
	case errors.As(err, &throttled):
		a.log.Warn("sign-in held back", "user", name, "addr", from)
		return lpmos.User{}, err
	case err != nil:
		return lpmos.User{}, err
	}
	u, known := a.dir.user(name)
	hash := u.Password
	if !known || u.Barred() {
		hash = ""
	}
	ok, err := a.hash.matches(ctx, hash, password)
	switch {
	case err != nil:
		a.throttle.undecided(name, from)
		return u, err
	case !ok:
		a.log.Warn("sign-in refused", "user", name, "addr", from)
		a.noteTry(ctx, name, from, now)
		return u, &WrongError{left}
	}
	a.throttle.right(name, from)
	if left < tryAccount-1 {
		if err := a.store.ForgetTries(ctx, Hash(accountKey(name))); err != nil {
			a.log.Warn("wrong passwords not forgotten", "user", name, "err", err)
		}
	}
	return u, nil
}

// begin makes a session, of which s says how it came about: always a new one, so
// that nobody can have fixed it.
func (a *Auth) begin(ctx context.Context, u lpmos.User, s lpmos.SignIn) (string, Principal, error) {
	secret := NewSecret("")
	id, now := Hash(secret), a.cfg.Now().UTC().Truncate(time.Second)
	s.User, s.Epoch, s.CreatedAt, s.SeenAt, s.Agent = u.Name, u.Epoch, now, now, printable(s.Agent, 200)
	if !s.ProvedAt.IsZero() {
		s.ProvedAt = s.ProvedAt.UTC().Truncate(time.Second)
	}
	rev, err := a.store.CreateSignIn(ctx, id, s, AbsoluteLimit)
	if err != nil {
		return "", Principal{}, err
	}
	a.dir.own(rev, Change{Kind: "session", Key: id, SignIn: &s})
	a.log.Info("signed in", "user", u.Name, "addr", s.From)
	p, _ := a.session(id)
	p.From = s.From
	return secret, p, nil
}

// printable is text from outside, without what is not to be printed.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	return lpmos.Shorten(s, n)
}

// Reauthenticate lets p prove once more who they are. A session remembers it;
// a token does not: it is for the request that p made. Errors beside the
// store's: an InvalidError of the field password, *ThrottledError.
func (a *Auth) Reauthenticate(ctx context.Context, p Principal, password string) (Principal, error) {
	u, known := a.dir.user(p.Name)
	switch {
	case !known || !p.Approver().User:
		return p, &lpmos.InvalidError{Field: "password", Problem: "is nobody's: " + p.Name + " is no user"}
	case u.External != nil:
		return p, &lpmos.InvalidError{Field: "password", Problem: "is not kept here: sign in again with " + u.External.Issuer}
	}
	if _, err := a.verify(ctx, p.Name, password, p.From); err != nil {
		if errors.Is(err, lpmos.ErrSignedOut) {
			err = &lpmos.InvalidError{Field: "password", Problem: "is wrong"}
		}
		return p, err
	}
	p.ProvedAt = a.cfg.Now().UTC().Truncate(time.Second)
	if h, ok := a.dir.signIn(p.ID); ok && p.Kind == Session {
		s := h.value
		s.ProvedAt = p.ProvedAt
		rev, err := a.store.TouchSignIn(ctx, p.ID, s)
		if err != nil {
			return p, err
		}
		if rev > 0 {
			a.dir.own(rev, Change{Kind: "session", Key: p.ID, SignIn: &s})
		}
	}
	return p, nil
}

// Logout ends what p came with, everywhere.
func (a *Auth) Logout(ctx context.Context, p Principal) error {
	switch p.Kind {
	case Session:
		return a.endSignIn(ctx, p.ID)
	case Token:
		a.mu.Lock()
		_, local := a.local[p.ID]
		delete(a.local, p.ID)
		a.mu.Unlock()
		if local {
			return nil
		}
		return a.endToken(ctx, p.ID)
	}
	return nil
}

func (a *Auth) endSignIn(ctx context.Context, id string) error {
	return a.forget(ctx, id, a.store.DeleteSignIn)
}

// forget ends a session by one of the store's ways.
func (a *Auth) forget(ctx context.Context, id string, end func(context.Context, string) (int64, error)) error {
	rev, err := end(ctx, id)
	if err != nil && !errors.Is(err, lpmos.ErrNotFound) {
		return err
	}
	a.dir.own(rev, Change{Kind: "session", Key: id})
	return nil
}

func (a *Auth) endToken(ctx context.Context, id string) error {
	rev, err := a.store.DeleteToken(ctx, id)
	if err != nil && !errors.Is(err, lpmos.ErrNotFound) {
		return err
	}
	a.dir.own(rev, Change{Kind: "token", Key: id})
	return nil
}

// session is who a session is of, if it still is one.
func (a *Auth) session(id string) (Principal, bool) {
	h, ok := a.dir.signIn(id)
	if !ok {
		return Principal{}, false
	}
	u, ok := a.dir.user(h.value.User)
	now := a.cfg.Now()
	switch {
	case !ok || u.Barred() || u.Epoch != h.value.Epoch,
		now.Sub(h.value.CreatedAt) >= AbsoluteLimit,
		now.Sub(time.Unix(h.used.Load(), 0)) >= IdleLimit:
		return Principal{}, false
	}
	return Principal{Kind: Session, Name: u.Name, Role: u.Role, Regions: u.Regions, MustChange: u.MustChange && !h.value.ByLink, ID: id, SignedInAt: h.value.CreatedAt, ProvedAt: h.value.ProvedAt}, true
}

// tokenOf is who a token acts for, with the rights that both have.
func (a *Auth) tokenOf(id string) (Principal, bool) {
	a.mu.Lock()
	p, ok := a.local[id]
	a.mu.Unlock()
	if ok {
		return p, true
	}
	h, ok := a.dir.token(id)
	if !ok {
		if a.cfg.Local != nil && Hash(a.cfg.Local()) == id {
			return localPrincipal(id, "local"), true
		}
		return Principal{}, false
	}
	t := h.value
	u, ok := a.dir.user(t.User)
	if !ok || u.Barred() || !a.cfg.Now().Before(t.ExpiresAt) {
		return Principal{}, false
	}
	p = Principal{Kind: Token, Name: u.Name, Role: lesser(t.Role, u.Role), Regions: t.Regions, MustChange: u.MustChange, ID: id, Label: t.Name}
	switch {
	case t.Regions == nil:
		p.Regions = u.Regions
	case u.Regions != nil:
		p.Regions = []string{}
		for _, r := range t.Regions {
			if slices.Contains(u.Regions, r) {
				p.Regions = append(p.Regions, r)
			}
		}
	}
	return p, true
}

func lesser(a, b lpmos.Role) lpmos.Role {
	if a.Includes(b) {
		return b
	}
	return a
}

// Still is who p is now, if what it came with still counts. It does not count
// as use.
func (a *Auth) Still(p Principal) (Principal, bool) {
	var now Principal
	var ok bool
	switch p.Kind {
	case Session:
		now, ok = a.session(p.ID)
	case Token:
		now, ok = a.tokenOf(p.ID)
	case Region:
		now, ok = p, true
	case Open:
		now, ok = p, a.cfg.NoLogin
	}
	now.From, now.Local = p.From, p.Local
	return now, ok
}

// Changed grows whenever anything changed about anybody.
func (a *Auth) Changed() int64 { return a.dir.changed.Load() }

// NoLogin reports whether everybody is let in.
func (a *Auth) NoLogin() bool { return a.cfg.NoLogin }

// fetch asks the store for a credential that is not in memory yet: another
// replica has just made it. Guesses are held back.
func (a *Auth) fetch(ctx context.Context, kind, id string) bool {
	if !a.misses.Allow() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c := Change{Kind: kind, Key: id}
	var rev int64
	var err error
	if kind == "session" {
		var s lpmos.SignIn
		s, rev, err = a.store.SignIn(ctx, id)
		c.SignIn = &s
	} else {
		var t lpmos.APIToken
		t, rev, err = a.store.Token(ctx, id)
		c.Token = &t
	}
	if err != nil {
		if !errors.Is(err, lpmos.ErrNotFound) && ctx.Err() == nil {
			a.log.Warn("read credential", "err", err)
		}
		return false
	}
	a.dir.mu.Lock()
	defer a.dir.mu.Unlock()
	// What was ended meanwhile is not brought back: the read may be the older.
	if at := a.dir.revs[kind+" "+id]; at > rev || a.dir.rev > rev {
		return false
	}
	a.dir.set(c)
	return true
}

// use notes that a credential was used.
func use[T any](h *held[T], now time.Time) { h.used.Store(max(h.used.Load(), now.Unix())) }

// Run writes down when sessions and tokens were last used, and ends sessions
// that nobody uses and tokens of users who are gone, until ctx ends.
func (a *Auth) Run(ctx context.Context) error {
	t := time.NewTicker(tidyEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			a.tidy(ctx)
		}
	}
}

func (a *Auth) tidy(ctx context.Context) {
	now := a.cfg.Now()
	type session struct {
		id string
		h  *held[lpmos.SignIn]
	}
	type token struct {
		id string
		h  *held[lpmos.APIToken]
	}
	var seen, idle []session
	var used []token
	orphans := map[string]bool{}
	a.dir.mu.RLock()
	if !a.dir.whole { // what was asked for is known, and whose it is not
		a.dir.mu.RUnlock()
		return
	}
	for id, h := range a.dir.signIns {
		u, ok := a.dir.users[h.value.User]
		switch {
		case !ok || u.Barred() || u.Epoch != h.value.Epoch,
			// The grace is for another replica, whose note of a use is on its way.
			now.Sub(time.Unix(h.used.Load(), 0)) > IdleLimit+2*noteSession:
			idle = append(idle, session{id, h})
		case h.used.Load()-h.written.Load() >= int64(noteSession/time.Second):
			seen = append(seen, session{id, h})
		}
	}
	for id, h := range a.dir.tokens {
		if _, ok := a.dir.users[h.value.User]; !ok {
			orphans[id] = true
		} else if h.used.Load()-h.written.Load() >= int64(noteToken/time.Second) {
			used = append(used, token{id, h})
		}
	}
	a.dir.mu.RUnlock()
	note := func(err error) {
		if err != nil && ctx.Err() == nil {
			a.log.Warn("note use of a credential", "err", err)
		}
	}
	for _, s := range seen {
		v, at := s.h.value, s.h.used.Load()
		v.SeenAt = time.Unix(at, 0).UTC()
		if _, err := a.store.TouchSignIn(ctx, s.id, v); err != nil {
			note(err)
			return // the store does not answer: later
		}
		s.h.written.Store(at)
	}
	for _, t := range used {
		v, at := t.h.value, t.h.used.Load()
		v.UsedAt = time.Unix(at, 0).UTC()
		if err := a.store.TouchToken(ctx, t.id, v); err != nil {
			note(err)
			return
		}
		t.h.written.Store(at)
	}
	for _, s := range idle {
		note(a.endSignIn(ctx, s.id))
	}
	for id := range orphans {
		if a.orphans[id] { // not one whose user is on its way here
			note(a.endToken(ctx, id))
		}
	}
	a.orphans = orphans
	a.limits.tidy(now)
}

// SignedIn is one session as it is shown.
type SignedIn struct {
	lpmos.SignIn
	ID      string // PublicID
	Current bool
}

// Sessions are those of a user that count, newest first.
func (a *Auth) Sessions(user, current string) []SignedIn {
	a.dir.mu.RLock()
	var ids []string
	for id, h := range a.dir.signIns {
		if h.value.User == user {
			ids = append(ids, id)
		}
	}
	a.dir.mu.RUnlock()
	var out []SignedIn
	for _, id := range ids {
		if _, ok := a.session(id); !ok {
			continue
		}
		if h, ok := a.dir.signIn(id); ok {
			s := SignedIn{h.value, PublicID(id), id == current}
			s.SeenAt = time.Unix(h.used.Load(), 0).UTC()
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(x, y SignedIn) int { return cmp.Or(y.CreatedAt.Compare(x.CreatedAt), strings.Compare(x.ID, y.ID)) })
	return out
}

// EndSession ends one session of a user.
func (a *Auth) EndSession(ctx context.Context, user, publicID string) error {
	a.dir.mu.RLock()
	id := ""
	for k, h := range a.dir.signIns {
		if h.value.User == user && PublicID(k) == publicID {
			id = k
		}
	}
	a.dir.mu.RUnlock()
	if id == "" {
		return fmt.Errorf("session %s: %w", lpmos.Shorten(publicID, 32), lpmos.ErrNotFound)
	}
	a.log.Info("session ended", "user", user, "by", lpmos.ActorOf(ctx).Name)
	return a.forget(ctx, id, a.store.EndSignIn)
}

// ChangePassword gives p, who is signed in, another password, which ends all
// sessions but the one that is begun here: secret is its cookie.
func (a *Auth) ChangePassword(ctx context.Context, p Principal, current, password, agent string) (secret string, now Principal, err error) {
	if err := a.notExternal(p.Name, "the password"); err != nil {
		return "", p, err
	}
	u, known := a.dir.user(p.Name)
	h, byLink := a.dir.signIn(p.ID)
	// Who came by the link from the terminal never knew a password.
	if byLink = p.Kind == Session && byLink && h.value.ByLink && known && u.MustChange; !byLink {
		if u, err = a.verify(ctx, p.Name, current, p.From); err != nil {
			if errors.Is(err, lpmos.ErrSignedOut) {
				err = &lpmos.InvalidError{Field: "current_password", Problem: "is wrong"}
			}
			return "", p, err
		}
	}
	if err := lpmos.ValidatePassword(u.Name, password); err != nil {
		return "", p, err
	}
	if !byLink && password == current {
		return "", p, &lpmos.InvalidError{Field: "password", Problem: "is the one you have"}
	}
	hash, err := a.hash.hash(ctx, password)
	if err != nil {
		return "", p, err
	}
	u, rev, err := a.store.UpdateUser(ctx, u.Name, func(now *lpmos.User) error {
		if now.Epoch != u.Epoch {
			return &lpmos.ConflictError{Problem: "the password was changed meanwhile: sign in again"}
		}
		now.Password, now.MustChange, now.Epoch, now.UpdatedAt, now.UpdatedBy = hash, false, now.Epoch+1, a.cfg.Now().UTC(), now.Name
		return nil
	})
	if err != nil {
		return "", p, err
	}
	a.dir.own(rev, Change{Kind: "user", Key: u.Name, User: &u})
	a.log.Info("password changed", "user", u.Name)
	return a.begin(ctx, u, lpmos.SignIn{From: p.From, Agent: agent, ProvedAt: a.cfg.Now()})
}
