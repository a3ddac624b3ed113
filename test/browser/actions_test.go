package browser

import (
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane/web"
	"github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/test/browser/tab"
	"github.com/lpmos/lpmos/test/fixture"
)

// hand is one thing a person does: clicks what matches, or types into it.
type hand struct{ css, text string }

// action is one thing that can be done on a page.
type action struct {
	name  string
	page  string
	hands []hand      // before the button is pressed
	press string      // the button; what it is folded away in is opened first
	done  func() bool // whether it took effect; asked until it did
}

// elsewhere are the actions that other tests of this package do by hand.
var elsewhere = map[string]bool{
	"POST /login":              true, // all of them
	"POST /tasks/create":       true, // TestJob
	"POST /tasks/{id}/approve": true, // TestJob, TestFourEyes
	"POST /tasks/bulk":         true, // TestTaskList
	"POST /tasks/bulk/counts":  true,
	"POST /tasks/bulk/run":     true,
}

// aTPM is an identity as a TPM has one: its key's point is the generator of the
// curve.
func aTPM(t *testing.T) *lpmos.TPM {
	t.Helper()
	of := func(digits string) []byte {
		b, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	return &lpmos.TPM{Companion: of("000bde15b4e9ae0e65b0a921a2b997aebf6ae6aab464e4d07720ab16e2663c741e58"), Endorsement: of("0023000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa" +
		"00060080004300100003001000206b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c29600204fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")}
}

// TestActions does by hand, on its page, what no other test does, and looks at
// what became of it. Every action of the web interface is done by some test.
func TestActions(t *testing.T) {
	tab.Chromium(t)
	axe := tab.AxeSource(t, "testdata/axe/axe.min.js")
	w := newWorld(t, "Frankfurt", func(c *site.Config) { c.ControlPlane.Deadlines.InstallingDeadline = 15 * time.Second })
	w.publish("debian", "12", "Debian 12 (bookworm)", 4<<20)
	dir := t.TempDir()
	old, err := fixture.Placeholder(dir, "old", "1", "Old 1")
	if err == nil {
		err = fixture.Publish(w.ctx, w.api, dir, old)
	}
	if err != nil {
		t.Fatal(err)
	}
	// One machine is installed and has a TPM; one is switched off in the middle.
	mac, lostMAC := lpmos.MustMAC("b0:7b:25:c4:00:10"), lpmos.MustMAC("b0:7b:25:c4:01:10")
	wait := func(mac lpmos.MAC, host string, takes time.Duration, tpm *lpmos.TPM) (id string, off func()) {
		id = w.create(lpmos.Spec{RegionID: "dc1", TargetMAC: mac, OSType: "debian", OSVersion: "12", Hostname: host})
		h := server(mac, "7GXK2M"+strconv.Itoa(int(mac[4])))
		h.Disks, h.TPM = h.Disks[1:2], tpm // a blank one
		off = w.power(mac, takes, h)
		w.until(id, lpmos.AwaitingApproval)
		return id, off
	}
	id, off := wait(mac, "db-07", time.Second, aTPM(t))
	lost, lose := wait(lostMAC, "db-08", 2*time.Minute, nil)

	b := tab.New(t, w.url)
	b.Allow = []string{"Clear-Site-Data"} // signing out, the browser says what it forgets
	b.SignIn(w.api, "operator")
	fails, gone := func(err error) bool { return err != nil }, func(err error) bool { return errors.Is(err, lpmos.ErrNotFound) }
	works := func(err error) bool { return err == nil }
	client := func() *apiclient.Client {
		c, err := apiclient.New(w.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	signIn := func(name, password string) error { _, err := client().Login(w.ctx, name, password); return err }
	told := func() string { return b.Text(".banner copy-text code") } // once
	is := func(id string, status lpmos.Status) func() bool {
		return func() bool { t, err := w.api.Task(w.ctx, id); return err == nil && t.Status == status }
	}
	policy := func(ok func(lpmos.ApprovalPolicy) bool) func() bool {
		return func() bool { p, _, err := w.api.ApprovalPolicy(w.ctx); return err == nil && ok(p) }
	}
	const password, next = "correct horse battery staple", "another horse that holds no battery"
	other := client()
	if _, err := other.Login(w.ctx, "operator", password); err != nil {
		t.Fatal(err)
	}
	first, second, token := "", "", client()

	mux, driven := http.NewServeMux(), map[string]bool{}
	pages, err := web.New(nil, nil, nil, web.Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range pages.Routes() {
		mux.HandleFunc(pattern, func(http.ResponseWriter, *http.Request) {})
	}
	do := func(actions ...action) {
		t.Helper()
		for _, a := range actions {
			b.Open(a.page)
			if tab.Eval[bool](b, `document.querySelector('`+a.press+`')?.closest('details:not([open])') != null`) {
				b.Click(`details:has(` + a.press + `) > summary`)
			}
			for _, h := range a.hands {
				if h.text == "" {
					b.Click(h.css)
				} else {
					b.Type(h.css, h.text)
				}
			}
			// As high as the page: what is scrolled below the bar at its top is covered.
			b.Width(1280, max(900, tab.Eval[int64](b, `document.documentElement.scrollHeight`)))
			for _, v := range b.Axe(axe) {
				t.Errorf("%s: %s", a.name, v)
			}
			to := tab.Eval[string](b, `(({ form }) => form.getAttribute('method') + ' ' + form.getAttribute('action'))(document.querySelector('`+a.press+`'))`)
			if method, path, _ := strings.Cut(to, " "); method == "post" {
				_, pattern := mux.Handler(httptest.NewRequest(http.MethodPost, path, nil))
				driven[pattern] = true
			}
			tab.Eval[bool](b, `window.asked = true`)
			b.Click(a.press)
			b.Until("be answered: "+a.name, 20*time.Second, `!window.asked && document.readyState === 'complete'`)
			w.wait(a.name, a.done)
		}
	}

	do(
		action{"stop everything", "/stop", []hand{{"#reason", "water in the hall"}}, `form[action="/stop"] button`,
			func() bool {
				s, err := w.api.Stopped(w.ctx)
				return works(err) && s.Stop != nil && s.Reason == "water in the hall"
			}},
		action{"end the stop", "/stop", nil, `form[action="/resume"] button`,
			func() bool { s, err := w.api.Stopped(w.ctx); return works(err) && s.Stop == nil }},
		action{"approve together", "/tasks/approve?ids=" + id + "," + lost, []hand{{"#count", "2"}}, `form[action="/tasks/approve"] button`, is(lost, lpmos.Installing)},
	)
	lose()
	do(
		action{"delete an image", "/images", nil, `form[action="/images/old/1/amd64/delete"] button`,
			func() bool { _, _, err := w.api.Image(w.ctx, "old", "1", "amd64"); return gone(err) }},
		action{"create a template", "/templates", []hand{{"#name", "motd"}, {"#text", "#cloud-config\nfqdn: {{hostname}}\n"}}, `#new button[data-kind="primary"]`,
			func() bool { x, err := w.api.Template(w.ctx, "motd"); return works(err) && x.Version == 1 }},
		action{"change a template", "/templates/motd", []hand{{"#description", "What is said first"}}, `form[action="/templates/motd"] button[data-kind="primary"]`,
			func() bool {
				x, err := w.api.Template(w.ctx, "motd")
				return works(err) && x.Version == 2 && x.Description == "What is said first"
			}},
		action{"preview a template", "/templates/motd", []hand{{"#task", id[:8]}}, `#preview form button`,
			func() bool { return strings.Contains(b.Text(".rendered"), "fqdn: db-07") }},
		action{"delete a template", "/templates/motd", nil, `form[action="/templates/motd/delete"] button`,
			func() bool { _, err := w.api.Template(w.ctx, "motd"); return gone(err) }},
		action{"create a profile", "/profiles", []hand{{"#name", "web"}, {"#pattern", "web-{serial}"}}, `#new button[data-kind="primary"]`,
			func() bool {
				x, err := w.api.Profile(w.ctx, "web")
				return works(err) && x.Version == 1 && x.Hostname == "web-{serial}"
			}},
		action{"change a profile", "/profiles/web", []hand{{"#description", "Web servers"}}, `form[action="/profiles/web"] button[data-kind="primary"]`,
			func() bool {
				x, err := w.api.Profile(w.ctx, "web")
				return works(err) && x.Version == 2 && x.Description == "Web servers"
			}},
		action{"delete a profile", "/profiles/web", nil, `form[action="/profiles/web/delete"] button`,
			func() bool { _, err := w.api.Profile(w.ctx, "web"); return gone(err) }},
		action{"make a label", "/policy", []hand{{"#label", "production"}, {"#machines", mac.String()}}, `button[value="label"]`,
			policy(func(p lpmos.ApprovalPolicy) bool { return len(p.Labels["production"]) == 1 })},
		action{"change a label", "/policy", []hand{{"#m-production", "\n" + lostMAC.String() + "\n"}}, `button[value="label"]`,
			policy(func(p lpmos.ApprovalPolicy) bool { return len(p.Labels["production"]) == 2 })},
		action{"add a rule", "/policy", []hand{{"#labels", "production"}, {`[name="not_creator"]`, ""}}, `button[value="add"]`,
			policy(func(p lpmos.ApprovalPolicy) bool { return len(p.Rules) == 1 && p.Rules[0].NotCreator })},
		action{"remove a rule", "/policy", nil, `button[value="remove"]`,
			policy(func(p lpmos.ApprovalPolicy) bool { return len(p.Rules) == 0 && len(p.Labels) == 1 })},
		action{"create a user", "/users", []hand{{"#name", "carol"}, {`#new [name="role"][value="approver"]`, ""}}, `#new button[data-kind="primary"]`,
			func() bool { first = told(); return works(signIn("carol", first)) }},
		action{"make a one-time password", "/users/carol", nil, `form[action="/users/carol/reset"] button`,
			func() bool {
				second = told()
				return second != first && works(signIn("carol", second)) && fails(signIn("carol", first))
			}},
		action{"disable a user", "/users/carol", []hand{{`[name="disabled"]`, ""}}, `form[action="/users/carol"] button[data-kind="primary"]`,
			func() bool {
				u, _, err := w.api.User(w.ctx, "carol")
				return works(err) && u.Disabled && fails(signIn("carol", second))
			}},
		action{"delete a user", "/users/carol", nil, `form[action="/users/carol/delete"] button`,
			func() bool { _, _, err := w.api.User(w.ctx, "carol"); return gone(err) }},
		action{"create a token", "/tokens", []hand{{"#name", "nightly report"}}, `#new button[data-kind="primary"]`,
			func() bool {
				token.UseToken(told())
				me, err := token.Me(w.ctx)
				return works(err) && me.Name == "operator"
			}},
		action{"delete a token", "/tokens", nil, `form[action^="/tokens/"] button`,
			func() bool { _, err := token.Me(w.ctx); return fails(err) }},
	)
	w.completed(id)
	off()
	machine := func(ok func(lpmos.Machine) bool) func() bool {
		return func() bool { m, err := w.api.Machine(w.ctx, mac); return err == nil && ok(m) }
	}
	page := "/machines/" + mac.String()
	do(
		action{"lock a machine", page, []hand{{"#lock-reason", "holds the payroll"}}, `form[action$="/lock"] button`,
			machine(func(m lpmos.Machine) bool { return m.Lock != nil && m.Lock.Reason == "holds the payroll" })},
		action{"unlock a machine", page, nil, `form[action$="/unlock"] button`, machine(func(m lpmos.Machine) bool { return m.Lock == nil && m.TPM != nil })},
		action{"forget a TPM", page, nil, `form[action$="/forget-tpm"] button`, machine(func(m lpmos.Machine) bool { return m.TPM == nil })},
	)
	w.until(lost, lpmos.Failed)
	do(
		action{"retry a task", "/tasks/" + lost, nil, `form[action="/tasks/` + lost + `/retry"] button`,
			func() bool { x, err := w.api.Task(w.ctx, lost); return works(err) && x.Attempt == 2 }},
		action{"cancel a task", "/tasks/" + lost, []hand{{`[name="reason"]`, "wrong rack"}}, `form[action="/tasks/` + lost + `/cancel"] button`, is(lost, lpmos.Canceled)},
		action{"delete a task", "/tasks/" + lost, nil, `form[action="/tasks/` + lost + `/delete"] button`,
			func() bool { _, err := w.api.Task(w.ctx, lost); return gone(err) }},
		action{"choose a theme", "/dashboard", nil, `button[value="dark"]`,
			func() bool { return tab.Eval[bool](b, `document.documentElement.dataset.theme === 'dark'`) }},
		action{"end a session", "/account", nil, `form[action$="/end"] button`,
			func() bool { _, err := other.Me(w.ctx); return fails(err) }},
		action{"change the password", "/account", []hand{{"#current", password}, {"#password", next}, {"#again", next}}, `form[action="/account/password"] button`,
			func() bool { return works(signIn("operator", next)) }},
		action{"sign out", "/account", nil, `main form[action="/logout"] button`, func() bool { return strings.HasPrefix(b.Path(), "/login") }},
	)
	for _, pattern := range pages.Routes() {
		if strings.HasPrefix(pattern, "POST ") && !driven[pattern] && !elsewhere[pattern] {
			t.Errorf("no test does %s by hand", pattern)
		}
	}
}
