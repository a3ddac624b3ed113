package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// memory is a store of people, as strict as the real one.
type memory struct {
	mu      sync.Mutex
	rev     int64
	users   map[string]lpmos.User
	signIns map[string]lpmos.SignIn
	tokens  map[string]lpmos.APIToken
	tries   map[string][]time.Time
	touched int
	reads   int
}

func newMemory() *memory {
	return &memory{users: map[string]lpmos.User{}, signIns: map[string]lpmos.SignIn{}, tokens: map[string]lpmos.APIToken{}, tries: map[string][]time.Time{}}
}

func (m *memory) CreateUser(_ context.Context, u lpmos.User) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.users[u.Name]; ok {
		return 0, &lpmos.ConflictError{Problem: "exists"}
	}
	m.users[u.Name] = u
	m.rev++
	return m.rev, nil
}

func (m *memory) Tries(_ context.Context, id string) ([]time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.tries[id]), nil
}

func (m *memory) NoteTry(_ context.Context, id string, at time.Time, _ time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tries[id] = append(m.tries[id], at)
	return nil
}

func (m *memory) ForgetTries(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tries, id)
	return nil
}

func (m *memory) CreateFirstUser(ctx context.Context, u lpmos.User) (bool, error) {
	m.mu.Lock()
	some := len(m.users) > 0
	m.mu.Unlock()
	if some {
		return false, nil
	}
	_, err := m.CreateUser(ctx, u)
	return err == nil, err
}

func (m *memory) UpdateUser(_ context.Context, name string, change func(*lpmos.User) error) (lpmos.User, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, ok := m.users[name]
	if !ok {
		return u, 0, lpmos.ErrNotFound
	}
	was := u.Keeper()
	if err := change(&u); err != nil {
		return u, 0, err
	}
	if was && !u.Keeper() && m.last(name) {
		return u, 0, lpmos.ErrConflict
	}
	m.users[name] = u
	m.rev++
	return u, m.rev, nil
}

// last reports whether there is no keeper beside one.
func (m *memory) last(name string) bool {
	for _, u := range m.users {
		if u.Name != name && u.Keeper() {
			return false
		}
	}
	return true
}

func (m *memory) DeleteUser(_ context.Context, name string) (int64, error) {
	m.mu.Lock()
	last := m.users[name].Keeper() && m.last(name)
	m.mu.Unlock()
	if last {
		return 0, lpmos.ErrConflict
	}
	return drop(m, m.users, name)
}

func drop[T any](m *memory, from map[string]T, key string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := from[key]; !ok {
		return 0, lpmos.ErrNotFound
	}
	delete(from, key)
	m.rev++
	return m.rev, nil
}

func (m *memory) CreateSignIn(_ context.Context, id string, s lpmos.SignIn, _ time.Duration) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u, ok := m.users[s.User]; !ok || u.Epoch != s.Epoch || u.Barred() {
		return 0, lpmos.ErrConflict
	}
	m.signIns[id] = s
	m.rev++
	return m.rev, nil
}

func (m *memory) TouchSignIn(_ context.Context, id string, s lpmos.SignIn) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.touched++
	if _, ok := m.signIns[id]; !ok {
		return 0, nil
	}
	m.signIns[id] = s
	m.rev++
	return m.rev, nil
}

func (m *memory) EndSignIn(ctx context.Context, id string) (int64, error) {
	return m.DeleteSignIn(ctx, id)
}

func (m *memory) DeleteSignIn(_ context.Context, id string) (int64, error) {
	return drop(m, m.signIns, id)
}

func (m *memory) SignIn(_ context.Context, id string) (lpmos.SignIn, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	s, ok := m.signIns[id]
	if !ok {
		return s, 0, lpmos.ErrNotFound
	}
	return s, m.rev, nil
}

func (m *memory) CreateToken(_ context.Context, id string, t lpmos.APIToken) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[id] = t
	m.rev++
	return m.rev, nil
}

func (m *memory) TouchToken(_ context.Context, id string, t lpmos.APIToken) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.touched++
	m.tokens[id] = t
	return nil
}

func (m *memory) DeleteToken(_ context.Context, id string) (int64, error) {
	return drop(m, m.tokens, id)
}

func (m *memory) Token(_ context.Context, id string) (lpmos.APIToken, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	t, ok := m.tokens[id]
	if !ok {
		return t, 0, lpmos.ErrNotFound
	}
	return t, m.rev, nil
}

// clock is a time that only tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time         { c.mu.Lock(); defer c.mu.Unlock(); return c.at }
func (c *clock) move(by time.Duration)  { c.mu.Lock(); defer c.mu.Unlock(); c.at = c.at.Add(by) }
func newClock() *clock                  { return &clock{at: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)} }
func newAuth(m *memory, c *clock) *Auth { return newAuthWith(m, c, Config{}) }
func newAuthWith(m *memory, c *clock, cfg Config) *Auth {
	cfg.Now, cfg.CheapPasswords = c.now, true
	a := New(cfg, m, slog.New(slog.DiscardHandler))
	a.Apply(0, true, nil)
	return a
}

const good = "correct horse battery staple"

// user makes somebody who has chosen a password.
func user(t *testing.T, a *Auth, name string, role lpmos.Role, regions ...string) {
	t.Helper()
	_, once, err := a.CreateUser(t.Context(), name, role, append([]string(nil), regions...))
	if err != nil {
		t.Fatal(err)
	}
	_, p, err := a.Login(t.Context(), name, once, "192.0.2.1", "")
	if err != nil || !p.MustChange {
		t.Fatalf("Login with the one-time password = %+v, %v; want who must change it", p, err)
	}
	if _, _, err := a.ChangePassword(t.Context(), p, once, good, ""); err != nil {
		t.Fatal(err)
	}
}

// ask is a request with a cookie, or a token.
func ask(a *Auth, cookie, token string) Principal {
	r := httptest.NewRequest("GET", "/api/v1/me", nil)
	if cookie != "" {
		r.AddCookie(&http.Cookie{Name: plainCookie, Value: cookie})
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return a.identify(r)
}

func TestMay(t *testing.T) {
	all := []Permission{Public, Self, See, Operate, Configure, Approve, Administer, Fetch, Monitor, "", "nonsense"}
	for name, tt := range map[string]struct {
		p    Principal
		want string // of all, those it has
	}{
		"nobody":            {Principal{}, "public"},
		"nobody on host":    {Principal{Local: true}, "public monitor"},
		"bad on host":       {Principal{Local: true, Bad: true}, "public"},
		"viewer":            {Principal{Kind: Session, Role: lpmos.Viewer}, "public self see fetch monitor"},
		"operator":          {Principal{Kind: Token, Role: lpmos.Operator}, "public self see operate configure fetch monitor"},
		"operator of dc1":   {Principal{Kind: Session, Role: lpmos.Operator, Regions: []string{"dc1"}}, "public self see operate fetch"},
		"approver":          {Principal{Kind: Session, Role: lpmos.Approver}, "public self see operate configure approve fetch monitor"},
		"admin":             {Principal{Kind: Session, Role: lpmos.Admin}, "public self see operate configure approve administer fetch monitor"},
		"admin of dc1":      {Principal{Kind: Session, Role: lpmos.Admin, Regions: []string{"dc1"}}, "public self see operate approve fetch"},
		"one-time password": {Principal{Kind: Session, Role: lpmos.Admin, MustChange: true}, "public self"},
		"a region":          {Principal{Kind: Region}, "public fetch"},
		"an unknown role":   {Principal{Kind: Session, Role: "root"}, "public self"},
	} {
		var got []string
		for _, need := range all {
			err := tt.p.May(need)
			if err == nil {
				got = append(got, string(need))
			} else if want := map[bool]error{true: lpmos.ErrForbidden, false: lpmos.ErrSignedOut}[tt.p.SignedIn() || need == "" || need == "nonsense"]; !errors.Is(err, want) {
				t.Errorf("%s: May(%q) = %v; want %v", name, need, err, want)
			}
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s may %s; want %s", name, s, tt.want)
		}
	}
	// A region's own certificate says who it is, whatever else the request has.
	a := &Auth{cfg: Config{Now: time.Now}}
	for _, header := range []string{"", "Bearer " + NewSecret(tokenPrefix), "Basic eDp5"} {
		r := httptest.NewRequest(http.MethodGet, "/api/v1/blobs/x", nil)
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		if p := a.identify(r.WithContext(api.WithPeerRegion(r.Context(), "dc1"))); p.Kind != Region || p.Name != "dc1" || p.Bad {
			t.Errorf("with a region's certificate and %q it is %+v; want region dc1", header, p)
		}
	}
	if (Principal{Kind: Token, Role: lpmos.Admin, Regions: []string{}}).Sees("dc1") {
		t.Error("a token whose regions are none of its user's sees dc1")
	}
}

func TestPasswords(t *testing.T) {
	h := newHasher(cost{memoryKiB: 8, passes: 1, lanes: 1})
	s, err := h.hash(t.Context(), good)
	if err != nil || !strings.HasPrefix(s, "$argon2id$v=19$m=8,t=1,p=1$") {
		t.Fatalf("hash = %q, %v", s, err)
	}
	if again, _ := h.hash(t.Context(), good); again == s {
		t.Error("two hashes of a password are alike; want a salt")
	}
	for password, want := range map[string]bool{good: true, good + " ": false, "": false} {
		if ok, err := h.matches(t.Context(), s, password); ok != want || err != nil {
			t.Errorf("matches(%q) = %v, %v; want %v", password, ok, err, want)
		}
	}
	if ok, err := h.matches(t.Context(), "", good); ok || err != nil {
		t.Errorf("no hash matches = %v, %v; want false", ok, err)
	}
	for _, bad := range []string{"x", "$argon2i$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=99999999,t=1,p=1$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=8,t=1,p=0$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA"} {
		if ok, err := h.matches(t.Context(), bad, good); ok || err == nil {
			t.Errorf("matches(%q) = %v, %v; want an error", bad, ok, err)
		}
	}
	for password, ok := range map[string]bool{"short": false, good: true, "aaaaaaaaaaaaaaaa": false, "ann-anna-anna-ann": false, strings.Repeat("x y", 200): false, "with\x00nul with": false, "十二个字符的密码也可以用啊": true} {
		if err := lpmos.ValidatePassword("anna", password); (err == nil) != ok {
			t.Errorf("ValidatePassword(%q) = %v; want accepted %v", password, err, ok)
		}
	}
}

func TestFirstAdminIsMadeOnce(t *testing.T) {
	m, c := newMemory(), newClock()
	one, err1 := newAuth(m, c).FirstAdmin(t.Context())
	two, err2 := newAuth(m, c).FirstAdmin(t.Context())
	if one == "" || two != "" || err1 != nil || err2 != nil {
		t.Errorf("FirstAdmin = %q, %v and then %q, %v; want one password", one, err1, two, err2)
	}
	if u := m.users["admin"]; u.Role != lpmos.Admin || !u.MustChange || strings.Contains(u.Password, one) {
		t.Errorf("the first user is %+v", u)
	}
}

func TestSessions(t *testing.T) {
	m, c := newMemory(), newClock()
	a := newAuth(m, c)
	user(t, a, "anna", lpmos.Approver, "dc1")
	login := func() string {
		t.Helper()
		s, p, err := a.Login(t.Context(), " Anna ", good, "192.0.2.1", "Firefox\x1b[31m")
		if err != nil || p.Name != "anna" || p.Role != lpmos.Approver {
			t.Fatalf("Login = %+v, %v", p, err)
		}
		return s
	}
	s := login()
	if p := ask(a, s, ""); p.Kind != Session || p.Name != "anna" || !p.Sees("dc1") || p.Sees("dc2") {
		t.Errorf("the session is %+v", p)
	}
	if strings.Contains(fmt.Sprint(m.signIns), s) {
		t.Error("the store knows what the cookie holds")
	}
	for _, info := range a.Sessions("anna", Hash(s)) {
		if strings.Contains(info.Agent, "\x1b") {
			t.Errorf("the browser is called %q", info.Agent)
		}
	}

	t.Run("ends after half an hour without a request", func(t *testing.T) {
		for range 3 {
			c.move(IdleLimit - time.Minute)
			if p := ask(a, s, ""); p.Kind != Session {
				t.Fatalf("used every 29 min it is %+v", p)
			}
		}
		c.move(IdleLimit)
		if p := ask(a, s, ""); p.SignedIn() || !p.Bad {
			t.Errorf("after %s it is %+v", IdleLimit, p)
		}
	})
	t.Run("ends after twelve hours whatever happens", func(t *testing.T) {
		s := login()
		for range 25 {
			c.move(IdleLimit - time.Minute)
			ask(a, s, "")
		}
		if p := ask(a, s, ""); p.SignedIn() {
			t.Errorf("after more than %s it is %+v", AbsoluteLimit, p)
		}
	})
	t.Run("ends at logout", func(t *testing.T) {
		s := login()
		if err := a.Logout(t.Context(), ask(a, s, "")); err != nil {
			t.Fatal(err)
		}
		if p := ask(a, s, ""); p.SignedIn() {
			t.Errorf("after logout it is %+v", p)
		}
		if _, ok := m.signIns[Hash(s)]; ok {
			t.Error("the store has it still")
		}
	})
	t.Run("ends with the password, but for the one that changed it", func(t *testing.T) {
		one, two := login(), login()
		fresh, _, err := a.ChangePassword(t.Context(), ask(a, one, ""), good, good+"!", "")
		if err != nil {
			t.Fatal(err)
		}
		if ask(a, one, "").SignedIn() || ask(a, two, "").SignedIn() || !ask(a, fresh, "").SignedIn() {
			t.Error("want the old ones ended, and a new one")
		}
		if _, _, err := a.ChangePassword(t.Context(), ask(a, fresh, ""), good+"!", good, ""); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("ends when the user is disabled, and does not come back", func(t *testing.T) {
		s := login()
		for _, disabled := range []bool{true, false} {
			if _, err := a.SetAccess(t.Context(), "anna", Access{Role: lpmos.Approver, Disabled: disabled}, ""); err != nil {
				t.Fatal(err)
			}
			if p := ask(a, s, ""); p.SignedIn() {
				t.Errorf("disabled %v: it is %+v", disabled, p)
			}
		}
	})
	t.Run("takes a smaller role at once", func(t *testing.T) {
		s := login()
		if _, err := a.SetAccess(t.Context(), "anna", Access{Role: lpmos.Viewer}, ""); err != nil {
			t.Fatal(err)
		}
		if p := ask(a, s, ""); p.Role != lpmos.Viewer || p.May(Approve) == nil {
			t.Errorf("it is %+v", p)
		}
		if _, err := a.SetAccess(t.Context(), "anna", Access{Role: lpmos.Approver}, ""); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("is written down once a minute, and forgotten when idle", func(t *testing.T) {
		s := login()
		m.touched = 0
		for range 100 {
			ask(a, s, "")
		}
		a.tidy(t.Context())
		c.move(noteSession)
		ask(a, s, "")
		a.tidy(t.Context())
		a.tidy(t.Context())
		if m.touched != 1 {
			t.Errorf("%d notes; want 1", m.touched)
		}
		c.move(IdleLimit + 3*noteSession)
		a.tidy(t.Context())
		if len(m.signIns) != 0 {
			t.Errorf("%d sessions are stored; want none", len(m.signIns))
		}
	})
}

// A session that another replica made is known here before the watch tells of
// it, and guesses cost the store little.
func TestOtherReplica(t *testing.T) {
	m, c := newMemory(), newClock()
	one, two := newAuth(m, c), newAuth(m, c)
	user(t, one, "anna", lpmos.Viewer)
	u := m.users["anna"]
	two.Apply(1, true, []Change{{Kind: "user", Key: "anna", User: &u}})
	s, _, err := one.Login(t.Context(), "anna", good, "192.0.2.1", "")
	if err != nil {
		t.Fatal(err)
	}
	if p := ask(two, s, ""); p.Name != "anna" {
		t.Errorf("at the other replica it is %+v", p)
	}
	// Ended there; what the watch still says of before brings nothing back.
	rev := m.rev
	if err := two.Logout(t.Context(), ask(two, s, "")); err != nil {
		t.Fatal(err)
	}
	old := lpmos.SignIn{User: "anna", Epoch: u.Epoch, CreatedAt: c.now(), SeenAt: c.now()}
	two.Apply(rev, false, []Change{{Kind: "session", Key: Hash(s), SignIn: &old}})
	if p := ask(two, s, ""); p.SignedIn() {
		t.Errorf("history brought it back: %+v", p)
	}
	t.Run("that has just started ends nothing of people it does not know yet", func(t *testing.T) {
		s, _, err := one.Login(t.Context(), "anna", good, "192.0.2.1", "")
		if err != nil {
			t.Fatal(err)
		}
		three := New(Config{Now: c.now, CheapPasswords: true}, m, slog.New(slog.DiscardHandler))
		ask(three, s, "")
		three.tidy(t.Context())
		if _, ok := m.signIns[Hash(s)]; !ok {
			t.Error("the session is gone")
		}
	})
	m.reads = 0
	for range 1000 {
		ask(two, NewSecret(""), "")
	}
	for range 1000 {
		ask(two, "x", "y")
	}
	if m.reads > 60 {
		t.Errorf("2000 guesses read the store %d times; want them held back", m.reads)
	}
}

func TestTokens(t *testing.T) {
	m, c := newMemory(), newClock()
	a := newAuth(m, c)
	user(t, a, "anna", lpmos.Approver, "dc1", "dc2")
	s, _, err := a.Login(t.Context(), "anna", good, "192.0.2.1", "")
	if err != nil {
		t.Fatal(err)
	}
	p := ask(a, s, "")
	secret, info, err := a.CreateToken(t.Context(), p, NewToken{Name: "ci", Role: lpmos.Operator, Regions: []string{"dc1"}, For: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(fmt.Sprint(m.tokens), secret) {
		t.Error("the store knows the token")
	}
	if got := ask(a, "", secret); got.Kind != Token || got.Name != "anna" || got.Role != lpmos.Operator || !got.Sees("dc1") || got.Sees("dc2") || got.actor().Via != "token ci" {
		t.Errorf("the token is %+v", got)
	}
	for name, n := range map[string]NewToken{
		"more than the user": {Name: "x", Role: lpmos.Admin}, "another region": {Name: "x", Regions: []string{"dc3"}}, "no region": {Name: "x", Regions: []string{}},
		"no name": {}, "too long": {Name: "x", For: 2 * TokenLimit}, "a name that moves the cursor": {Name: "x\x1b[A"},
	} {
		if _, _, err := a.CreateToken(t.Context(), p, n); err == nil {
			t.Errorf("a token with %s was made", name)
		}
	}
	if _, _, err := a.CreateToken(t.Context(), ask(a, "", secret), NewToken{Name: "child", For: 2 * time.Hour}); err == nil {
		t.Error("a token made one that outlives it")
	}
	_, child, err := a.CreateToken(t.Context(), ask(a, "", secret), NewToken{Name: "child"})
	if err != nil || child.ExpiresAt.After(info.ExpiresAt) || child.Role != lpmos.Operator {
		t.Errorf("a token's token = %+v, %v; want no more than its own", child, err)
	}
	// It never does more than its user may.
	if _, err := a.SetAccess(t.Context(), "anna", Access{Role: lpmos.Viewer, Regions: []string{"dc2"}}, ""); err != nil {
		t.Fatal(err)
	}
	if got := ask(a, "", secret); got.Role != lpmos.Viewer || got.Sees("dc1") || got.Sees("dc2") {
		t.Errorf("the token of a viewer of dc2 is %+v; want one that sees nothing", got)
	}
	m.touched = 0
	c.move(noteToken)
	for range 50 {
		ask(a, "", secret)
		a.tidy(t.Context())
	}
	if m.touched != 1 {
		t.Errorf("its use was written down %d times; want 1", m.touched)
	}
	c.move(time.Hour - noteToken - time.Second)
	if got := ask(a, "", secret); !got.SignedIn() {
		t.Errorf("a second before its time it is %+v", got)
	}
	c.move(time.Second) // T02
	if got := ask(a, "", secret); got.SignedIn() || !got.Bad {
		t.Errorf("after its time it is %+v", got)
	}
	if local := a.LocalToken("lab"); ask(a, "", local).Role != lpmos.Admin || len(m.tokens) != 2 {
		t.Error("a local token is none, or is stored")
	}
}

// A token that outlived its user, because the store did not answer while both
// were removed, is not that of whoever gets the name next.
func TestTokenOfADeletedUser(t *testing.T) {
	m, c := newMemory(), newClock()
	a := newAuth(m, c)
	user(t, a, "anna", lpmos.Viewer)
	s, _, err := a.Login(t.Context(), "anna", good, "192.0.2.1", "")
	if err != nil {
		t.Fatal(err)
	}
	secret, _, err := a.CreateToken(t.Context(), ask(a, s, ""), NewToken{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	rev, err := m.DeleteUser(t.Context(), "anna")
	if err != nil {
		t.Fatal(err)
	}
	a.Apply(rev, false, []Change{{Kind: "user", Key: "anna"}})
	a.tidy(t.Context())
	if len(m.tokens) != 1 {
		t.Error("a token whose user may be on the way was ended at first sight")
	}
	a.tidy(t.Context())
	user(t, a, "anna", lpmos.Admin)
	if p := ask(a, "", secret); p.SignedIn() || len(m.tokens) != 0 {
		t.Errorf("the token of the user before is %+v", p)
	}
}

func TestLinkWorksOnce(t *testing.T) {
	m, c := newMemory(), newClock()
	a := newAuth(m, c)
	if _, err := a.FirstAdmin(t.Context()); err != nil {
		t.Fatal(err)
	}
	u := m.users["admin"]
	a.Apply(1, true, []Change{{Kind: "user", Key: "admin", User: &u}})
	code := a.NewLink("admin")
	var wg sync.WaitGroup
	got := make(chan string, 50)
	for range 50 {
		wg.Go(func() {
			if s, _, err := a.Redeem(t.Context(), code, "127.0.0.1", ""); err == nil {
				got <- s
			}
		})
	}
	wg.Wait()
	close(got)
	if len(got) != 1 {
		t.Fatalf("%d were signed in; want 1", len(got))
	}
	s := <-got
	p := ask(a, s, "")
	if p.Name != "admin" || p.MustChange {
		t.Errorf("by the link it is %+v; want an admin who is asked nothing", p)
	}
	if _, _, err := a.ChangePassword(t.Context(), p, "", good, ""); err != nil {
		t.Errorf("who came by the link has no password to give: %v", err)
	}
	if _, _, err := a.Login(t.Context(), "admin", good, "192.0.2.1", ""); err != nil {
		t.Error(err)
	}
	old := a.NewLink("admin")
	c.move(LinkLimit + time.Second)
	if _, _, err := a.Redeem(t.Context(), old, "127.0.0.1", ""); !errors.Is(err, lpmos.ErrSignedOut) {
		t.Errorf("an old link = %v; want ErrSignedOut", err)
	}
}

// W12 with two replicas behind one address: together they look at no more
// passwords than one.
func TestThrottleIsOfAllReplicas(t *testing.T) {
	m, c := newMemory(), newClock()
	one, two := newAuth(m, c), newAuth(m, c)
	user(t, one, "anna", lpmos.Viewer)
	u := m.users["anna"]
	two.Apply(m.rev, false, []Change{{Kind: "user", Key: "anna", User: &u}})
	try := func(a *Auth, password, from string) error {
		_, _, err := a.Login(t.Context(), "anna", password, from, "")
		return err
	}
	guess := func(a *Auth, from string, left int) {
		t.Helper()
		var wrong *WrongError
		if err := try(a, "guess", from); !errors.As(err, &wrong) || wrong.Left != left {
			t.Errorf("a guess = %v, %+v; want %d left", err, wrong, left)
		}
	}
	// The right one lets the account begin anew, everywhere.
	guess(one, "192.0.2.1", 4)
	guess(two, "192.0.2.1", 3)
	if err := try(two, good, "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		guess([]*Auth{two, one}[i%2], fmt.Sprintf("192.0.2.%d", 10+i), 4-i)
	}
	for _, a := range []*Auth{one, two} {
		var wait *ThrottledError
		if err := try(a, good, "192.0.2.99"); !errors.As(err, &wait) || wait.Wait <= 0 || wait.Wait > tryWindow {
			t.Errorf("the right password after five wrong ones = %v; want to wait", err)
		}
	}
	c.move(tryWindow + time.Second)
	for _, a := range []*Auth{one, two} {
		if err := try(a, good, "192.0.2.99"); err != nil {
			t.Errorf("after the wait: %v", err)
		}
	}
}

// W12: five tries for an account, twenty for an address, in a quarter of an hour.
func TestThrottle(t *testing.T) {
	m, c := newMemory(), newClock()
	a := newAuth(m, c)
	user(t, a, "anna", lpmos.Viewer)
	try := func(name, password, from string) error {
		_, _, err := a.Login(t.Context(), name, password, from, "")
		return err
	}
	for i := range 5 {
		var wrong *WrongError
		if err := try("anna", "guess", fmt.Sprintf("192.0.2.%d", i)); !errors.As(err, &wrong) || wrong.Left != 4-i {
			t.Errorf("guess %d = %v, %+v; want %d left", i+1, err, wrong, 4-i)
		}
	}
	var wait *ThrottledError
	if err := try("anna", good, "192.0.2.99"); !errors.As(err, &wait) || wait.Wait <= 0 || wait.Wait > tryWindow {
		t.Errorf("the right password after five wrong ones = %v; want to wait", err)
	}
	c.move(tryWindow + time.Second)
	if err := try("anna", good, "192.0.2.99"); err != nil {
		t.Errorf("after the wait: %v", err)
	}
	for i := range tryPeer {
		if err := try(fmt.Sprintf("name-%d", i), "guess", "2001:db8::1"); !errors.Is(err, lpmos.ErrSignedOut) {
			t.Fatalf("guess %d = %v", i, err)
		}
	}
	if err := try("anna", good, "2001:db8::ffff"); !errors.As(err, &wait) {
		t.Errorf("from the same network = %v; want to wait", err)
	}
	if err := try("anna", good, "2001:db8:1::1"); err != nil {
		t.Errorf("from another network: %v", err)
	}
	// A hundred at once get no more looks than one after the other.
	user(t, a, "ben", lpmos.Viewer)
	var wg sync.WaitGroup
	looked := make(chan struct{}, 100)
	for i := range 100 {
		wg.Go(func() {
			var wrong *WrongError
			if errors.As(try("ben", "guess", fmt.Sprintf("198.51.100.%d", i)), &wrong) {
				looked <- struct{}{}
			}
		})
	}
	wg.Wait()
	if len(looked) > tryAccount {
		t.Errorf("%d of a hundred at once were looked at; want %d at most", len(looked), tryAccount)
	}
}

func TestPeer(t *testing.T) {
	a := newAuthWith(newMemory(), newClock(), Config{Trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	for _, tt := range []struct {
		name, remote, forwarded, proto string
		from, origin                   string
		local                          bool
	}{
		{"a stranger who lies", "203.0.113.5:4", "127.0.0.1", "https", "203.0.113.5", "http://lpmos", false},
		{"this host", "127.0.0.1:4", "", "", "127.0.0.1", "http://lpmos", true},
		{"a proxy on this host that we were not told of", "127.0.0.1:4", "203.0.113.5", "https", "127.0.0.1", "http://lpmos", false},
		{"a proxy we believe", "10.0.0.1:4", "203.0.113.5", "https", "203.0.113.5", "https://lpmos", false},
		{"two of them, and a lie before", "10.0.0.1:4", "127.0.0.1, 203.0.113.5, 10.0.0.2", "http", "203.0.113.5", "http://lpmos", false},
		{"one of them, with nonsense", "10.0.0.1:4", "x", "", "10.0.0.1", "http://lpmos", false},
		{"a unix socket", "@", "", "", "local", "http://lpmos", true},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr, r.Host = tt.remote, "lpmos"
		if tt.forwarded != "" {
			r.Header.Set("X-Forwarded-For", tt.forwarded)
		}
		r.Header.Set("X-Forwarded-Proto", tt.proto)
		if p := a.identify(r); p.From != tt.from || p.Local != tt.local || a.Origin(r) != tt.origin {
			t.Errorf("%s: from %q, local %v, origin %q; want %q, %v, %q", tt.name, p.From, p.Local, a.Origin(r), tt.from, tt.local, tt.origin)
		}
	}
}

func TestCookie(t *testing.T) {
	a := newAuth(newMemory(), newClock())
	r := httptest.NewRequest("GET", "/", nil)
	w := httptest.NewRecorder()
	a.SetCookie(w, r, "x")
	if got := w.Header().Get("Set-Cookie"); got != "lpmos_session=x; Path=/; HttpOnly; SameSite=Strict" {
		t.Errorf("over http the cookie is %q", got)
	}
	r.TLS, w = &tls.ConnectionState{}, httptest.NewRecorder()
	a.SetCookie(w, r, "x")
	if got := w.Header().Get("Set-Cookie"); got != "__Host-lpmos=x; Path=/; HttpOnly; Secure; SameSite=Strict" {
		t.Errorf("over TLS the cookie is %q", got)
	}
}

func TestLimits(t *testing.T) {
	m, c := newMemory(), newClock()
	a := newAuth(m, c)
	h := a.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	send := func(from, path, token string) *httptest.ResponseRecorder {
		r, w := httptest.NewRequest("GET", path, nil), httptest.NewRecorder()
		r.RemoteAddr = from
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		h.ServeHTTP(w, r)
		return w
	}
	for range nobodyBurst {
		send("203.0.113.5:1", "/login", "")
	}
	if w := send("203.0.113.5:2", "/login", ""); w.Code != 429 || w.Header().Get("Retry-After") == "" {
		t.Errorf("after %d requests = %d, Retry-After %q; want 429", nobodyBurst, w.Code, w.Header().Get("Retry-After"))
	}
	for what, w := range map[string]*httptest.ResponseRecorder{
		"another address": send("203.0.113.6:1", "/login", ""), "a monitor": send("203.0.113.5:1", "/healthz", ""), "this process": send("203.0.113.5:1", "/x", a.LocalToken("lab")),
	} {
		if w.Code != 204 {
			t.Errorf("%s = %d; want 204", what, w.Code)
		}
	}
	c.move(2 * time.Second)
	if w := send("203.0.113.5:2", "/login", ""); w.Code != 204 {
		t.Errorf("two seconds later = %d; want 204", w.Code)
	}
	// However many people ask at once, there is room for regions.
	for range working {
		a.limits.people <- struct{}{}
	}
	a.cfg.Region = func(hash string) (string, bool) { return "dc1", hash == Hash("lpr_"+strings.Repeat("A", 43)) }
	if w := send("203.0.113.7:1", "/login", ""); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("one person too many = %d; want 503", w.Code)
	}
	if w := send("203.0.113.7:1", "/api/v1/blobs/x", "lpr_"+strings.Repeat("A", 43)); w.Code != 204 {
		t.Errorf("a region meanwhile = %d; want 204", w.Code)
	}
	if p := ask(a, "", "lpr_"+strings.Repeat("B", 43)); !p.Bad {
		t.Errorf("an unknown region's secret is %+v", p)
	}
}

func TestLastAdminStays(t *testing.T) {
	a := newAuth(newMemory(), newClock())
	user(t, a, "anna", lpmos.Admin)
	user(t, a, "local-admin", lpmos.Admin, "dc1")
	ctx := t.Context()
	_, demote := a.SetAccess(ctx, "anna", Access{Role: lpmos.Viewer}, "")
	_, limit := a.SetAccess(ctx, "anna", Access{Role: lpmos.Admin, Regions: []string{"dc1"}}, "")
	_, disable := a.SetAccess(ctx, "anna", Access{Role: lpmos.Admin, Disabled: true}, "")
	for what, err := range map[string]error{"demoted": demote, "limited": limit, "disabled": disable, "deleted": a.DeleteUser(ctx, "anna")} {
		if !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("the last admin was %s: %v", what, err)
		}
	}
	user(t, a, "ben", lpmos.Admin)
	if err := a.DeleteUser(ctx, "anna"); err != nil {
		t.Error(err)
	}
}

// Whoever is not known takes as long as whoever is: both passwords are hashed.
func TestUnknownUserIsHashedToo(t *testing.T) {
	a := newAuth(newMemory(), newClock())
	before := a.hash.dummy
	if before == "" {
		t.Fatal("no hash to compare with")
	}
	a.hash.turns <- struct{}{}
	a.hash.turns <- struct{}{}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := a.Login(ctx, "nobody", "x", "192.0.2.1", ""); !errors.Is(err, lpmos.ErrUnavailable) {
		t.Errorf("Login of nobody while all hashers are busy = %v; want it to wait for one", err)
	}
}
