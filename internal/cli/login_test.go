package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

// Signing in from a terminal: with a one-time password, with a token that was
// made in a browser, and out again.
func TestLogin(t *testing.T) {
	p := newPlane(t)
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	file := filepath.Join(config, "lpmos", "credentials.json")
	kept := func() string {
		b, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(b)
	}
	u, err := p.api.CreateUser(t.Context(), "anna", apiclient.Access{Role: lpmos.Approver})
	if err != nil {
		t.Fatal(err)
	}
	p.token = "" // whoever runs the commands has what login keeps
	const fresh = "correct horse battery staple"
	p.want(ExitDenied, "lpmos login", "", "whoami")
	p.want(ExitDenied, "makes a token at "+p.site.ControlPlane.URL()+"/tokens", "anna\nnot the password\n", "login")
	p.want(ExitUsage, "no answer came", "", "login", "anna")
	p.want(ExitUsage, "not the same", u.OneTimePassword+"\n"+fresh+"\nanother one of mine\n", "login", "anna")
	p.want(ExitUsage, "shorter than", u.OneTimePassword+"\nshort\nshort\n", "login", "anna")
	if kept() != "" {
		t.Errorf("something is kept of a login that failed: %s", kept())
	}
	code, out, errs := p.run(u.OneTimePassword+"\n"+fresh+"\n"+fresh+"\n", "login", "anna", "--days", "2")
	if code != ExitOK || !strings.Contains(out, "as anna (approver) until ") || strings.Contains(out+errs, fresh) || strings.Contains(out+errs, u.OneTimePassword) {
		t.Errorf("login = exit %d, stdout %q, stderr %q; want success, and no password said", code, out, errs)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("what is kept has mode %v, %v; want 0600", st, err)
	}
	p.want(ExitOK, "lpmos login on ", "", "whoami")
	tokens := func() (own []apiclient.Token) {
		t.Helper()
		all, err := p.api.Tokens(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range all {
			if k.User == "anna" {
				own = append(own, k)
			}
		}
		return own
	}
	if own := tokens(); len(own) != 1 || own[0].ExpiresAt.Sub(own[0].CreatedAt).Hours() != 48 {
		t.Errorf("anna's tokens are %+v; want one, for two days", own)
	}
	if now, _, err := p.api.User(t.Context(), "anna"); err != nil || now.Sessions > 2 {
		t.Errorf("anna has %d sessions, %v; want none but those of the logins that failed", now.Sessions, err)
	}
	p.want(ExitOK, "Signed out of ", "", "logout")
	p.want(ExitNotFound, "nobody is signed in", "", "logout")
	p.want(ExitDenied, "", "", "whoami")
	if own := tokens(); len(own) != 0 {
		t.Errorf("after signing out anna's tokens are %+v; want none", own)
	}

	// A token from the web interface.
	c, err := apiclient.New(p.site.ControlPlane.URL(), nil)
	if err == nil {
		_, err = c.Login(t.Context(), "anna", fresh)
	}
	if err != nil {
		t.Fatal(err)
	}
	made, err := c.CreateToken(t.Context(), apiclient.NewToken{Name: "laptop", Role: lpmos.Operator})
	if err != nil {
		t.Fatal(err)
	}
	p.want(ExitUsage, "not both", made.Token+"\n", "login", "anna", "--token-file", "-")
	p.want(ExitUsage, "holds no token", "two words\n", "login", "--token-file", "-")
	p.want(ExitDenied, "", "lpm_"+strings.Repeat("A", 43)+"\n", "login", "--token-file", "-")
	if strings.Contains(kept(), "lpm_") {
		t.Errorf("a token that is none is kept: %s", kept())
	}
	code, out, errs = p.run(made.Token+"\n", "login", "--token-file", "-")
	if code != ExitOK || !strings.Contains(out, "as anna (operator), with the token laptop.") || strings.Contains(out+errs, made.Token) {
		t.Errorf("login with a token = exit %d, stdout %q, stderr %q; want success, and the token not said", code, out, errs)
	}
	p.want(ExitOK, "laptop", "", "whoami")
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(made.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.want(ExitOK, "with the token laptop.", "", "login", "--token-file", path)
	p.want(ExitOK, "Signed out of ", "", "logout")
	if own := tokens(); len(own) != 0 {
		t.Errorf("after signing out anna's tokens are %+v; want none", own)
	}
}
