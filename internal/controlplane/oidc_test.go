package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	capoidc "github.com/hashicorp/cap/oidc"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/oidc"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// idp is a real identity provider, over TLS, and a site whose people may sign
// in with it.
type idp struct {
	t    *testing.T
	tp   *capoidc.TestProvider
	site *ControlPlane
	url  string // of the site
	pool *x509.CertPool
}

// verifier is PKCE's, as the test provider wants to be told of it.
type verifier string

func (v verifier) Verifier() string                { return string(v) }
func (v verifier) Challenge() string               { return "" }
func (v verifier) Method() capoidc.ChallengeMethod { return capoidc.S256 }
func (v verifier) Copy() capoidc.CodeVerifier      { return v }

const there = "the password there"

// newIDP starts both. front, if not nil, stands between the site and the
// provider.
func newIDP(t *testing.T, front func(tp *capoidc.TestProvider) *httptest.Server) *idp {
	t.Helper()
	p := &idp{t: t, tp: capoidc.StartTestProvider(t), pool: x509.NewCertPool()}
	p.tp.SetClientCreds("lpmos", "the client's secret")
	p.tp.SetExpectedExpiry(time.Minute)
	issuer, cas := p.tp.Addr(), []byte(p.tp.CACert())
	if front != nil {
		srv := front(p.tp)
		issuer = srv.URL
	}
	dir := t.TempDir()
	ca, secret := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "secret")
	for name, b := range map[string][]byte{ca: cas, secret: []byte("the client's secret\n")} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.pool.AppendCertsFromPEM(cas)
	p.site = plane(t, storetest.NewSecured(t), Config{TLS: true, OIDC: OIDC{
		Issuer: issuer, ClientID: "lpmos", SecretFile: secret, CA: ca, Name: "Example ID", Scopes: []string{"profile"},
		Grants: []string{"admins=admin", "ops=approver@dc1+dc2", "north=approver@dc3", "staff=viewer"},
	}})
	p.url = strings.Replace(p.site.URL(), "127.0.0.1", "localhost", 1)
	p.pool.AddCert(p.site.Authority())
	p.tp.SetAllowedRedirectURIs([]string{p.url + "/login/oidc/callback"})
	p.person("anna", "admins")
	return p
}

// person is somebody at the provider, with groups and other claims.
func (p *idp) person(name string, groups ...string) {
	claims := map[string]any{"preferred_username": name, "email": name + "@example.net", "groups": groups}
	p.tp.SetSubjectInfo(map[string]*capoidc.TestSubject{name: {Password: there, CustomClaims: claims}})
}

// browser follows no redirect by itself.
func (p *idp) browser() *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.pool}}
	p.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Jar: jar, Transport: tr, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (p *idp) get(b *http.Client, at string) (*http.Response, string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), "GET", at, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.do(b, req)
}

func (p *idp) do(b *http.Client, req *http.Request) (*http.Response, string) {
	p.t.Helper()
	resp, err := b.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp, string(body)
}

// begin presses the button: to is where the provider asks for the password.
func (p *idp) begin(b *http.Client, query string) (to *url.URL, a oidc.Attempt) {
	p.t.Helper()
	resp, body := p.get(b, p.url+"/login/oidc"+query)
	to, err := resp.Location()
	if resp.StatusCode != 303 || err != nil {
		p.t.Fatalf("the button = %d %s (%v)", resp.StatusCode, body, err)
	}
	for _, c := range resp.Cookies() {
		if c.Name != "__Host-lpmos-oidc" {
			continue
		}
		if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" {
			p.t.Errorf("the cookie of the attempt is %v", c)
		}
		var ok bool
		if a, ok = oidc.DecodeAttempt(c.Value); !ok {
			p.t.Fatalf("the cookie holds %q", c.Value)
		}
	}
	p.tp.SetPKCEVerifier(verifier(a.Verifier))
	return to, a
}

var hidden = regexp.MustCompile(`name="(state|code|redirect_uri)" type="hidden" value="([^"]*)"`)

// enter types the password there; back is where the provider sends the browser.
func (p *idp) enter(b *http.Client, to *url.URL, name string) (back string) {
	p.t.Helper()
	_, page := p.get(b, to.String())
	form := url.Values{"uname": {name}, "psw": {there}}
	for _, m := range hidden.FindAllStringSubmatch(page, -1) {
		form.Set(m[1], m[2])
	}
	req, err := http.NewRequestWithContext(p.t.Context(), "POST", p.tp.Addr()+"/login", strings.NewReader(form.Encode()))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, body := p.do(b, req)
	if resp.StatusCode != 302 {
		p.t.Fatalf("the provider = %d %s", resp.StatusCode, body)
	}
	return resp.Header.Get("Location")
}

// signIn does it all.
func (p *idp) signIn(b *http.Client, name, query string) (*http.Response, string) {
	p.t.Helper()
	to, _ := p.begin(b, query)
	return p.get(b, p.enter(b, to, name))
}

type me struct {
	Name    string     `json:"name"`
	Role    lpmos.Role `json:"role"`
	Regions []string   `json:"regions"`
}

// me is who a browser is signed in as, "" for nobody.
func (p *idp) me(b *http.Client) (m me) {
	p.t.Helper()
	resp, body := p.get(b, p.url+"/api/v1/me")
	if resp.StatusCode == 200 {
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			p.t.Fatal(err)
		}
	}
	return m
}

func (p *idp) refused(b *http.Client, status int, resp *http.Response, body, said string) {
	p.t.Helper()
	if resp.StatusCode != status || !strings.Contains(body, said) || p.me(b).Name != "" {
		p.t.Errorf("= %d, signed in as %q, and not %d with %q:\n%s", resp.StatusCode, p.me(b).Name, status, said, body)
	}
}

func TestSignInWithAProvider(t *testing.T) {
	p := newIDP(t, nil)
	t.Run("the page has a button", func(t *testing.T) {
		_, body := p.get(p.browser(), p.url+"/login?return=/tasks")
		if !strings.Contains(body, `href="/login/oidc?return=%2Ftasks"`) || !strings.Contains(body, "Sign in with Example ID") {
			t.Errorf("the sign-in page is\n%s", body)
		}
	})
	t.Run("asks with state, nonce and PKCE, and comes back signed in", func(t *testing.T) {
		b := p.browser()
		to, a := p.begin(b, "?return=/tasks")
		q := to.Query()
		if q.Get("state") != a.State || q.Get("nonce") != a.Nonce || q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" || q.Get("code_challenge") == a.Verifier ||
			q.Get("response_type") != "code" || q.Get("client_id") != "lpmos" || q.Get("redirect_uri") != p.url+"/login/oidc/callback" || strings.Contains(to.String(), "secret") {
			t.Errorf("asked for is %s", to)
		}
		resp, body := p.get(b, p.enter(b, to, "anna"))
		if resp.StatusCode != 200 || !strings.Contains(body, `content="0; url=/tasks"`) {
			t.Errorf("the way back = %d %s", resp.StatusCode, body)
		}
		for _, c := range resp.Cookies() {
			switch {
			case c.Name == "__Host-lpmos" && (c.SameSite != http.SameSiteStrictMode || !c.HttpOnly || !c.Secure):
				t.Errorf("the session's cookie is %v", c)
			case c.Name == "__Host-lpmos-oidc" && c.MaxAge >= 0:
				t.Error("the cookie of the attempt stays")
			}
		}
		if m := p.me(b); m.Name != "anna" || m.Role != lpmos.Admin || m.Regions != nil {
			t.Errorf("signed in as %+v", m)
		}
		if _, body := p.get(b, p.url+"/account"); strings.Contains(body, `action="/account/password"`) {
			t.Error("the account page asks for a password that is not here")
		}
	})
	t.Run("groups mean roles and regions, at each sign-in", func(t *testing.T) {
		b := p.browser()
		p.person("ben", "staff", "north", "ops", "golf")
		p.signIn(b, "ben", "")
		if m := p.me(b); m.Role != lpmos.Approver || strings.Join(m.Regions, " ") != "dc1 dc2 dc3" {
			t.Errorf("of three groups = %+v; want the greatest role, in the regions of both that have it", m)
		}
		p.person("ben", "staff")
		again := p.browser()
		p.signIn(again, "ben", "")
		if m := p.me(again); m.Role != lpmos.Viewer || m.Regions != nil {
			t.Errorf("of one group = %+v", m)
		}
		if m := p.me(b); m.Role != lpmos.Viewer {
			t.Errorf("the session before = %+v; want the smaller role", m)
		}
		p.person("ben", "golf")
		out := p.browser()
		resp, body := p.signIn(out, "ben", "")
		p.refused(out, 403, resp, body, "None of your groups at Example ID may use this site")
		if m := p.me(again); m.Name != "" {
			t.Errorf("without a group, the session before is %+v still", m)
		}
	})
	t.Run("groups that the ID token leaves out are asked for", func(t *testing.T) {
		tell := func(info map[string]any) {
			p.tp.SetSubjectInfo(map[string]*capoidc.TestSubject{"dora": {Password: there, UserInfo: info, CustomClaims: map[string]any{"preferred_username": "dora"}}})
		}
		b := p.browser()
		tell(map[string]any{"groups": []string{"ops"}, "email": "dora@example.net", "auth_time": 1})
		p.signIn(b, "dora", "?fresh=1") // when it was, the signed token says
		if m := p.me(b); m.Name != "dora" || m.Role != lpmos.Approver || strings.Join(m.Regions, " ") != "dc1 dc2" {
			t.Errorf("signed in as %+v; want what the groups mean", m)
		}
		other := p.browser()
		tell(map[string]any{"sub": "somebody else", "groups": []string{"admins"}})
		resp, body := p.signIn(other, "dora", "")
		p.refused(other, 401, resp, body, "was not accepted")
		// Nobody loses a role because the provider does not answer.
		p.tp.SetDisableUserInfo(true)
		resp, body = p.signIn(other, "dora", "")
		p.tp.SetDisableUserInfo(false)
		p.refused(other, 502, resp, body, "does not answer")
		if m := p.me(b); m.Role != lpmos.Approver {
			t.Errorf("the session before = %+v; want it as it was", m)
		}
		tell(map[string]any{"email": "dora@example.net"})
		resp, body = p.signIn(other, "dora", "")
		p.refused(other, 403, resp, body, "None of your groups")
	})
	t.Run("signing out ends the session here", func(t *testing.T) {
		b := p.browser()
		p.person("anna", "admins")
		p.signIn(b, "anna", "")
		req, err := http.NewRequestWithContext(t.Context(), "POST", p.url+"/logout", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, _ := p.do(b, req); resp.StatusCode != 303 || p.me(b).Name != "" {
			t.Errorf("signing out = %d, then %+v", resp.StatusCode, p.me(b))
		}
	})
	t.Run("a name of a local user is refused", func(t *testing.T) {
		b := p.browser()
		p.person("admin", "admins")
		resp, body := p.signIn(b, "admin", "")
		p.refused(b, 403, resp, body, "a user admin already")
	})
	t.Run("what does not belong to this browser's sign-in is refused", func(t *testing.T) {
		p.person("anna", "admins")
		b := p.browser()
		to, _ := p.begin(b, "")
		back := p.enter(b, to, "anna")

		stranger := p.browser() // a link that an attacker made
		resp, body := p.get(stranger, back)
		p.refused(stranger, 400, resp, body, "not begun in this browser")

		other := p.browser()
		p.begin(other, "") // a sign-in of its own, with another state
		resp, body = p.get(other, back)
		p.refused(other, 401, resp, body, "was not accepted")
	})
	t.Run("a state that came back already is refused, and so is a code", func(t *testing.T) {
		b := p.browser()
		to, a := p.begin(b, "")
		back := p.enter(b, to, "anna")
		// A browser that kept the cookie, though it was told not to.
		again := p.browser()
		site, _ := url.Parse(p.url)
		keep := []*http.Cookie{{Name: "__Host-lpmos-oidc", Value: a.Encode(), Path: "/", Secure: true}}
		again.Jar.SetCookies(site, keep)
		if resp, _ := p.get(b, back); resp.StatusCode != 200 || p.me(b).Name != "anna" {
			t.Fatalf("the first = %d", resp.StatusCode)
		}
		resp, body := p.get(again, back)
		p.refused(again, 401, resp, body, "was not accepted")
		// The code with a state that is new: the provider knows that it was used.
		third := p.browser()
		_, fresh := p.begin(third, "")
		u, _ := url.Parse(back)
		q := u.Query()
		q.Set("state", fresh.State)
		u.RawQuery = q.Encode()
		resp, body = p.get(third, u.String())
		p.refused(third, 401, resp, body, "was not accepted")
	})
	t.Run("a code without its verifier is refused", func(t *testing.T) {
		b := p.browser()
		to, _ := p.begin(b, "")
		back := p.enter(b, to, "anna")
		p.tp.SetPKCEVerifier(verifier("of another sign-in, forty-three characters long"))
		resp, body := p.get(b, back)
		p.refused(b, 401, resp, body, "was not accepted")
	})
	t.Run("a nonce of another sign-in is refused", func(t *testing.T) {
		b := p.browser()
		to, _ := p.begin(b, "")
		q := to.Query()
		q.Set("nonce", "of another sign-in")
		to.RawQuery = q.Encode()
		resp, body := p.get(b, p.enter(b, to, "anna"))
		p.refused(b, 401, resp, body, "was not accepted")
	})
	t.Run("who turned back is told so", func(t *testing.T) {
		b := p.browser()
		_, a := p.begin(b, "")
		resp, body := p.get(b, p.url+"/login/oidc/callback?error=access_denied&error_description=%3Cscript%3E&state="+a.State)
		p.refused(b, 401, resp, body, "Example ID did not let you in.")
		if strings.Contains(body, "<script>") {
			t.Error("what the provider says is in the page as it is")
		}
	})
	claims := func(name string, value any) func() {
		return func() {
			p.tp.SetSubjectInfo(map[string]*capoidc.TestSubject{"anna": {Password: there, CustomClaims: map[string]any{
				"preferred_username": "anna", "groups": []string{"admins"}, name: value}}})
		}
	}
	for name, spoil := range map[string]func(){
		"expired":                     claims("exp", time.Now().Add(-time.Minute).Unix()),
		"not yet valid":               claims("nbf", time.Now().Add(time.Hour).Unix()),
		"for another client":          claims("aud", []string{"another"}),
		"for several, given to other": func() { claims("azp", "another")(); p.tp.SetCustomAudience("another") },
		"of another issuer":           claims("iss", "https://evil.example.net"),
	} {
		t.Run("an ID token that is "+name+" is refused", func(t *testing.T) {
			defer func() { p.tp.SetCustomAudience(); p.person("anna", "admins") }()
			spoil()
			b := p.browser()
			resp, body := p.signIn(b, "anna", "")
			p.refused(b, 401, resp, body, "was not accepted")
		})
	}
	t.Run("a sign-in that was asked for anew must be new", func(t *testing.T) {
		b := p.browser()
		to, _ := p.begin(b, "?fresh=1&return=/tasks")
		if q := to.Query(); q.Get("prompt") != "login" || q.Get("max_age") != "0" {
			t.Errorf("asked for is %s", to)
		}
		if resp, _ := p.get(b, p.enter(b, to, "anna")); resp.StatusCode != 200 || p.me(b).Name != "anna" {
			t.Errorf("a new one = %d", resp.StatusCode)
		}
		defer p.person("anna", "admins")
		claims("auth_time", time.Now().Add(-time.Hour).Unix())()
		old := p.browser()
		resp, body := p.signIn(old, "anna", "?fresh=1")
		p.refused(old, 401, resp, body, "was not accepted")
	})
	t.Run("while the provider is down, passwords work", func(t *testing.T) {
		u, once, err := p.site.auth.CreateUser(t.Context(), "local", lpmos.Viewer, nil)
		if err != nil {
			t.Fatal(err)
		}
		b := p.browser()
		to, _ := p.begin(b, "")
		back := p.enter(b, to, "anna")
		p.tp.Stop()
		resp, body := p.get(b, back)
		p.refused(b, 502, resp, body, "Example ID does not answer.")
		req, err := http.NewRequestWithContext(t.Context(), "POST", p.url+"/api/v1/login", strings.NewReader(`{"username":"`+u.Name+`","password":"`+once+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if resp, body := p.do(b, req); resp.StatusCode != 200 || p.me(b).Name != "local" {
			t.Errorf("signing in with a password = %d %s", resp.StatusCode, body)
		}
	})
}

// Tokens that anybody could make: without a signature, or signed by another.
func TestForgedIDTokens(t *testing.T) {
	var how atomic.Value
	how.Store("")
	p := newIDP(t, func(tp *capoidc.TestProvider) *httptest.Server {
		var srv *httptest.Server
		srv = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, tp.Addr()+r.URL.Path, bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header = r.Header.Clone()
			resp, err := tp.HTTPClient().Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			var tokens map[string]any
			if r.URL.Path == "/token" && json.Unmarshal(b, &tokens) == nil {
				parts := strings.Split(tokens["id_token"].(string), ".")
				switch how.Load() {
				case "none":
					parts[0], parts[2] = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)), ""
				case "HS256":
					parts[0] = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))
				case "altered":
					claims, _ := base64.RawURLEncoding.DecodeString(parts[1])
					parts[1] = base64.RawURLEncoding.EncodeToString(bytes.Replace(claims, []byte(`"staff"`), []byte(`"admins"`), 1))
				}
				tokens["id_token"] = strings.Join(parts, ".")
				b, _ = json.Marshal(tokens)
			}
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(resp.StatusCode)
			rw.Write(b)
		}))
		t.Cleanup(srv.Close)
		tp.SetAdditionalConfiguration(map[string]any{"issuer": srv.URL, "token_endpoint": srv.URL + "/token", "jwks_uri": srv.URL + "/.well-known/jwks.json"})
		tp.SetCustomClaims(map[string]any{"iss": srv.URL})
		return srv
	})
	p.person("carl", "staff")
	for _, alg := range []string{"none", "HS256", "altered", ""} {
		how.Store(alg)
		b := p.browser()
		resp, body := p.signIn(b, "carl", "")
		if alg != "" {
			p.refused(b, 401, resp, body, "was not accepted")
		} else if m := p.me(b); m.Name != "carl" || m.Role != lpmos.Viewer {
			t.Errorf("the token as the provider made it = %d, %+v", resp.StatusCode, m)
		}
	}
}

// Without a provider that answers, everything starts, and says what is wrong
// with a configuration; with a secret that is none, nothing does (T05).
func TestProviderConfiguration(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := OIDC{Issuer: "https://id.example.net", ClientID: "lpmos", Grants: []string{"cn=ops,dc=example=operator@dc1"}}
	if p, err := good.provider(quiet); err != nil || p == nil || p.Name() != "id.example.net" {
		t.Errorf("a good one = %v, %v", p, err)
	}
	if p, err := (OIDC{}).provider(quiet); p != nil || err != nil {
		t.Errorf("none = %v, %v", p, err)
	}
	for name, change := range map[string]func(*OIDC){
		"no issuer":           func(o *OIDC) { o.Issuer = "" },
		"no TLS":              func(o *OIDC) { o.Issuer = "http://id.example.net" },
		"no client":           func(o *OIDC) { o.ClientID = "" },
		"no grants":           func(o *OIDC) { o.Grants = nil },
		"an unknown role":     func(o *OIDC) { o.Grants = []string{"ops=root"} },
		"no region":           func(o *OIDC) { o.Grants = []string{"ops=operator@"} },
		"an empty secret":     func(o *OIDC) { o.SecretFile = empty },
		"no secret":           func(o *OIDC) { o.SecretFile = filepath.Join(dir, "none") },
		"what is no PEM file": func(o *OIDC) { o.CA = empty },
	} {
		o := good
		change(&o)
		if _, err := o.provider(quiet); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
