package browser

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	capoidc "github.com/hashicorp/cap/oidc"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/oidc"
	"github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/test/browser/tab"
)

// Two people approve, each with their password, as the policy asks.
func TestFourEyes(t *testing.T) {
	tab.Chromium(t)
	w := newWorld(t, "Frankfurt")
	w.publish("debian", "12", "Debian 12", 16<<20)
	if _, err := w.api.SetApprovalPolicy(w.ctx, lpmos.ApprovalPolicy{Rules: []lpmos.ApprovalRule{{Approvers: 2, ReauthMinutes: 1}}}, ""); err != nil {
		t.Fatal(err)
	}
	mac := lpmos.MustMAC("b0:7b:25:c4:00:10")
	id := w.create(lpmos.Spec{RegionID: "dc1", TargetMAC: mac, OSType: "debian", OSVersion: "12", Hostname: "db-07"})
	h := server(mac, "7GXK2M3")
	h.Disks = h.Disks[1:2] // a blank one
	w.power(mac, time.Second, h)
	w.until(id, lpmos.AwaitingApproval)

	anna, ben := tab.New(t, w.url), tab.New(t, w.url)
	anna.Allow = []string{"400 (Bad Request)"} // for the wrong password
	anna.SignIn(w.api, "anna")
	ben.SignIn(w.api, "ben")
	ben.Open("/tasks/" + id + "/approve")
	ben.Live()
	anna.Open("/tasks/" + id + "/approve")
	digest := tab.Eval[string](anna, `document.querySelector('[name="plan_digest"]').value`)
	anna.Type("#notes", "as agreed")
	anna.Type("#confirm", "not the password")
	anna.Click("button[name=approved][value=true]")
	anna.Visible("#password-p")
	if text := anna.Text("#password-p"); !strings.Contains(text, "wrong") || tab.Eval[string](anna, `document.querySelector('[name="plan_digest"]').value + document.querySelector('#notes').value`) != digest+"as agreed" {
		t.Errorf("after a wrong password the page says %q, and keeps neither digest nor notes", text)
	}
	keep(t, "approve-confirm.png", anna.Picture)
	anna.Type("#confirm", "correct horse battery staple")
	anna.Click("button[name=approved][value=true]")
	anna.Until("be told how far it is", 30*time.Second, `location.pathname === '/tasks/`+id+`' && document.querySelector('main')?.textContent.includes('1 of 2 approvals: anna')`)

	ben.Until("be told that something changed", 30*time.Second, `document.querySelector('page-changed')?.hidden === false`)
	ben.Open("/tasks/" + id + "/approve")
	keep(t, "approve-second.png", ben.Picture)
	if text := ben.Text(".decision"); !strings.Contains(text, "1 of 2 approvals: anna") {
		t.Errorf("the second approver reads %q", text)
	}
	anna.Open("/tasks/" + id + "/approve")
	if text := anna.Text("#no-policy"); !strings.Contains(text, "another approver has to agree") {
		t.Errorf("the first approver reads %q", text)
	}
	keep(t, "approve-given.png", anna.Picture)
	ben.Type("#confirm", "correct horse battery staple")
	ben.Click("button[name=approved][value=true]")
	w.until(id, lpmos.Approved, lpmos.Installing, lpmos.Verifying, lpmos.Completed)
}

type verifier string

func (v verifier) Verifier() string                { return string(v) }
func (v verifier) Challenge() string               { return "" }
func (v verifier) Method() capoidc.ChallengeMethod { return capoidc.S256 }
func (v verifier) Copy() capoidc.CodeVerifier      { return v }

// Somebody comes back from an identity provider on another site, which the
// session's cookie, SameSite=Strict, does not follow by itself.
func TestSignInWithAProvider(t *testing.T) {
	tab.Chromium(t)
	tp := capoidc.StartTestProvider(t, capoidc.WithNoTLS())
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the client's secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, "Frankfurt", func(c *site.Config) {
		c.ControlPlane.OIDC.Issuer, c.ControlPlane.OIDC.ClientID, c.ControlPlane.OIDC.SecretFile = tp.Addr(), "lpmos", secret
		c.ControlPlane.OIDC.Name, c.ControlPlane.OIDC.Grants = "Example ID", []string{"ops=approver"}
	})
	home := strings.Replace(w.url, "127.0.0.1", "localhost", 1)
	tp.SetClientCreds("lpmos", "the client's secret")
	tp.SetExpectedExpiry(time.Minute)
	tp.SetAllowedRedirectURIs([]string{home + "/login/oidc/callback"})
	tp.SetSubjectInfo(map[string]*capoidc.TestSubject{"anna": {Password: "the password there", CustomClaims: map[string]any{"preferred_username": "anna", "groups": []string{"ops"}}}})

	b := tab.New(t, home)
	b.Open("/login?return=/tasks")
	keep(t, "login-provider.png", b.Picture)
	to := tab.Eval[string](b, `document.querySelector('a[href^="/login/oidc"]').getAttribute('href')`)
	// The provider of the test has to be told of PKCE's verifier, so the sign-in is
	// begun here and handed to the browser.
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(w.ctx, http.MethodGet, home+to, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	at, err := url.Parse(home)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range jar.Cookies(at) {
		b.Cookie(k.Name, k.Value)
		if a, ok := oidc.DecodeAttempt(k.Value); ok {
			tp.SetPKCEVerifier(verifier(a.Verifier))
		}
	}
	b.Allow = []string{"404 (Not Found)"} // the picture in the tab: the provider's page has none
	b.Leave(resp.Header.Get("Location"))
	b.Type("#username", "anna")
	b.Type("#password", "the password there")
	b.Click("button")
	b.Until("be signed in, on the page that was asked for", 30*time.Second, `location.pathname === '/tasks' && document.querySelector('.person') !== null`)
	if text := b.Text(".person"); !strings.Contains(text, "anna") {
		t.Errorf("signed in as %q", text)
	}
}
