package browser

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/sim"
	"github.com/lpmos/lpmos/test/browser/tab"
	"github.com/lpmos/lpmos/test/fixture"
)

// page is one page of the web interface as TestPages looks at it.
type page struct {
	name  string
	path  func(f *fleet) string
	ready string                     // what must become true in it, "" for nothing but being loaded
	steps func(b *tab.Tab, f *fleet) // done before it is looked at, nil for nothing
	allow []string                   // console messages that belong to it, such as "404 (Not Found)"
	out   bool                       // looked at by nobody, in a browser of its own
	more  bool                       // for who looks at the pictures; nothing is new to axe in it
}

func at(path string) func(*fleet) string { return func(*fleet) string { return path } }

func task(name, below string) func(*fleet) string {
	return func(f *fleet) string { return "/tasks/" + f.id[name] + below }
}

// pages are all pages. A new one is added here, and is then looked at in both
// languages, light and dark, wide and narrow.
var pages = []page{
	{name: "dashboard", path: at("/dashboard"), ready: `document.querySelectorAll('.list tr[data-task]').length > 0`},
	{name: "tasks", path: at("/tasks"), ready: `document.querySelectorAll('tr[data-task]').length > 8`},
	{name: "tasks-selected", path: at("/tasks"), steps: func(b *tab.Tab, _ *fleet) {
		b.Click(`thead [name="all"]`)
		b.Until("count", 10*time.Second, `/\d/.test(document.querySelector('.bulk [value="cancel"] [data-part="n"]').textContent)`)
	}},
	{name: "tasks-none", path: at("/tasks?q=status%3Afailed+host%3Anowhere")},
	{name: "tasks-bad-query", path: at("/tasks?q=colour%3Ared"), allow: []string{"400 (Bad Request)"}},
	{name: "bulk-cancel", path: at("/tasks"), steps: func(b *tab.Tab, _ *fleet) { selectAll(b, "cancel") }},
	{name: "bulk-delete", path: at("/tasks"), steps: func(b *tab.Tab, _ *fleet) { selectAll(b, "delete") }},
	{name: "task-installing", path: task("installing", "")},
	{name: "task-failed", path: task("failed", "")},
	{name: "task-completed", path: task("completed", "")},
	{name: "task-paper", path: task("completed", ""), steps: onPaper},
	{name: "task-pending", path: task("pending", "")},
	{name: "approve-data", path: task("data", "/approve")},
	{name: "approve-blank", path: task("blank", "/approve")},
	{name: "approve-problem", path: task("problem", "/approve")},
	{name: "approve-eyes", path: task("eyes", "/approve")},
	{name: "approve-installer", path: task("installer", "/approve")},
	{name: "create", path: func(f *fleet) string { return "/tasks/create?target_mac=" + f.mac["pending"].String() }},
	{name: "approve-together", path: func(f *fleet) string { return "/tasks/approve?ids=" + f.id["blank"] + "," + f.id["blank2"] }},
	{name: "batch", path: func(f *fleet) string { return "/batches/" + f.batch }},
	{name: "regions", path: at("/regions")},
	{name: "machines", path: at("/machines"), ready: `document.querySelectorAll('tbody tr').length > 4`},
	{name: "machine", path: func(f *fleet) string { return "/machines/" + f.mac["data"].String() }},
	{name: "machine-missing", path: at("/machines/02:00:00:00:00:01"), allow: []string{"404 (Not Found)"}},
	{name: "images", path: at("/images")},
	{name: "profiles", path: at("/profiles")},
	{name: "profile", path: at("/profiles/storage")},
	{name: "profile-accounts", path: at("/profiles/accounts")},
	{name: "templates", path: at("/templates")},
	{name: "template", path: at("/templates/base")},
	{name: "stop", path: at("/stop")},
	{name: "policy", path: at("/policy")},
	{name: "account", path: at("/account")},
	{name: "users", path: at("/users")},
	{name: "tokens", path: at("/tokens")},
	{name: "login", path: at("/login"), out: true},
	{name: "login-wrong", path: at("/login"), out: true, allow: []string{"401 (Unauthorized)"}, steps: func(b *tab.Tab, _ *fleet) {
		b.Type("#u", "nobody-"+strings.ToLower(rand.Text()[:6])) // one name would have to wait after five times
		b.Type("#p", "not the password")
		b.Click("form.panel button")
		b.Visible(`[role="alert"]`)
	}},
	{name: "audit", path: at("/audit")},
	{name: "missing", path: at("/no/such/page"), allow: []string{"404 (Not Found)"}},

	{name: "task-awaiting", path: task("data", ""), more: true},
	{name: "task-rejected", path: task("rejected", ""), more: true},
	{name: "task-canceled", path: task("canceled", ""), more: true},
	{name: "create-summary", path: at("/tasks/create?region_id=fra-1&image=debian%2F12%2Famd64&hostname=web-05&target_mac=b0:7b:25:c6:00:10"), more: true, steps: func(b *tab.Tab, _ *fleet) {
		b.Click(`[data-mode="one"] button[value="check"]`)
		b.Visible(`button[value="create"]`)
	}},
	{name: "create-unfit", path: func(f *fleet) string { return "/tasks/create?target_mac=" + f.mac["completed"].String() }, more: true},
	{name: "create-secrets", path: at("/tasks/create?region_id=fra-1&profile=accounts&hostname=web-06&target_mac=b0:7b:25:c6:00:20"), more: true, steps: func(b *tab.Tab, _ *fleet) {
		b.Click(`[data-mode="one"] button[value="check"]`)
		b.Visible(`button[value="create"]`)
	}},
	{name: "create-many", path: at("/tasks/create?mode=many&csv=" + url.QueryEscape(badLines)), more: true, allow: []string{"400 (Bad Request)"}, steps: func(b *tab.Tab, _ *fleet) {
		b.Click(`[data-mode="many"] button[value="check"]`)
		b.Visible("#summary")
	}},
	{name: "bulk-done", path: at("/tasks"), more: true, steps: cancelOne},
	{name: "stale", path: task("blank", "/approve"), more: true, allow: []string{"409 (Conflict)"}, steps: func(b *tab.Tab, _ *fleet) {
		// As if the page had been opened before another disk was put in.
		tab.Eval[bool](b, `(document.querySelector('[name="plan_digest"]').value = 'sha256:' + '0'.repeat(64), document.querySelector('[name="shown"]').value = document.querySelector('[name="shown"]').value.replaceAll(/S665NE0R7GXK02/g, 'S665NE0R7GXK07'), true)`)
		b.Click(`button[name="approved"][value="true"]`)
		b.Until("the refusal", 20*time.Second, `document.querySelector('ol.delta') !== null && document.readyState === 'complete'`)
	}},
	{name: "decided", path: task("blank2", "/approve"), more: true, allow: []string{"409 (Conflict)"}, steps: func(b *tab.Tab, f *fleet) {
		tab.Eval[bool](b, `(document.querySelector('form.decision').action = '/tasks/`+f.id["rejected"]+`/approve', true)`)
		b.Click(`button[name="approved"][value="true"]`)
		b.Until("the refusal", 20*time.Second, `document.querySelector('form.decision') === null && document.readyState === 'complete'`)
	}},
	{name: "user", path: at("/users/operator"), more: true},
	{name: "columns", path: at("/machines"), more: true, steps: func(b *tab.Tab, _ *fleet) {
		b.Click(".chooser summary")
		b.Visible(".chooser fieldset")
	}},
	{name: "views", path: at("/tasks?q=status%3Afailed+region%3Afra-1&sort=-updated"), more: true, steps: func(b *tab.Tab, _ *fleet) {
		b.Click(".chooser summary")
		b.Type(`.chooser [name="name"]`, "Broken in Frankfurt")
		b.Click(`.chooser .buttons [form="views"]`)
		// The view may be there from the page before; what was typed is not on the next.
		b.Until("be kept", 10*time.Second, `document.querySelector('.views [aria-current] bdi') && document.querySelector('.chooser [name="name"]').value === ''`)
		b.Click(".chooser summary")
		b.Visible(".chooser .kept")
	}},
	{name: "approve-paper", path: task("data", "/approve"), more: true, steps: onPaper},
	{name: "dashboard-forced", path: at("/dashboard"), more: true, steps: func(b *tab.Tab, _ *fleet) { b.Prefer("forced-colors", "active") }},
	{name: "machines-none", path: at("/machines?q=nothing"), more: true},
}

// onPaper is a page as it is printed: dark ink on white, without what is there to
// be clicked.
func onPaper(b *tab.Tab, _ *fleet) {
	b.Paper()
	b.Until("be printed", 10*time.Second, `[...document.querySelectorAll('.rail, .topbar, .actions, .log, .decision .button')].every((el) => el.checkVisibility() === false) && getComputedStyle(document.documentElement).colorScheme === 'light'`)
}

// badLines are machines as people write them down.
const badLines = "mac,hostname,region,os,version\nb0:7b:25:c6:01:10,app-119,fra-1,debian,12\nb0:7b:25:c6:01,app-121,fra-1,debian,12\nb0:7b:25:c6:02:10,app_126,fra1,debian,12\nb07b.25c6.0110,app-133,fra-1,debian,12\n"

// cancelOne cancels a task that is there for nothing else.
func cancelOne(b *tab.Tab, f *fleet) {
	id := f.create(lpmos.Spec{RegionID: "fra-1", TargetMAC: lpmos.MustMAC("b0:7b:25:c6:03:10"), OSType: "debian", OSVersion: "12", Hostname: "spare-01"})
	b.Open("/tasks?q=" + id)
	selectAll(b, "cancel")
	b.Type("#reason", "ordered twice")
	b.Click(".bulk-form .buttons button") // one task needs no number
	b.Visible("[data-outcome]")
	if err := f.api.Delete(f.ctx, id); err != nil {
		f.t.Fatal(err)
	}
}

// selectAll ticks every task and asks for an action.
func selectAll(b *tab.Tab, action string) {
	b.Click(`thead [name="all"]`)
	b.Visible(`.bulk [value="` + action + `"]`)
	b.Click(`.bulk [value="` + action + `"]`)
	b.Visible(".bulk-form")
}

// TestPages looks at every page: axe finds no violation, nothing scrolls
// sideways, and neither the console nor the content security policy complains.
// The pictures go to pages/ below where LPMOS_SCREENSHOTS says, relative to the
// repository; without it dark pages are looked at in English alone, and those
// that are there for the pictures not at all. LPMOS_PAGE
// names pages to look at alone, separated by commas.
func TestPages(t *testing.T) {
	tab.Chromium(t)
	axe := tab.AxeSource(t, "testdata/axe/axe.min.js")
	f := newFleet(t)
	for _, lang := range []string{"en", "zh-CN"} {
		for _, theme := range []string{"light", "dark"} {
			if lang != "en" && theme == "dark" && os.Getenv("LPMOS_SCREENSHOTS") == "" {
				continue // for the pictures: nothing is looked at that the other three do not show
			}
			t.Run(lang+" "+theme, func(t *testing.T) { lookAtPages(t, f, axe, lang, theme) })
		}
	}
	if os.Getenv("LPMOS_PAGE")+os.Getenv("LPMOS_SCREENSHOTS") == "" {
		t.Run("while 200 machines install", func(t *testing.T) { lookDuringARun(t, f, 200) }) // W14
	}
}

// lookDuringARun opens every page while so many machines report, are approved,
// install and end: the console stays silent, and nothing is blocked.
func lookDuringARun(t *testing.T, f *fleet, machines int) {
	dir := t.TempDir()
	img, err := fixture.Placeholder(dir, "simulated", "1", "Simulated 1")
	if err == nil {
		err = fixture.Publish(f.ctx, f.api, dir, img)
	}
	if err == nil {
		_, err = f.api.SetLimits(f.ctx, lpmos.Limits{PermitsPerMinute: 100_000}, "") // all are to install at once
	}
	if err != nil {
		t.Fatal(err)
	}
	all, err := sim.New(sim.Config{RegionURL: f.boot, Machines: machines, Seed: 14, Ramp: 5 * time.Second, Install: 25 * time.Second}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	op := sim.NewOperator(f.api, lpmos.Spec{RegionID: "fra-1", OSType: img.OS, OSVersion: img.Version}, all.MACs())
	ctx, cancel := context.WithTimeout(f.ctx, 10*time.Minute)
	if _, err := op.Create(ctx); err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := op.Approve(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		defer close(ended)
		if err := all.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	b := tab.New(t, f.url)
	b.SignIn(f.api, "operator")
	for _, p := range pages {
		if !p.out && !p.more {
			b.Allow = append(b.Allow, p.allow...)
			b.Open(p.path(f))
		}
	}
	b.Open("/tasks")
	b.Live()
	<-ended
	b.Open("/dashboard")
	b.Live()
	l, err := f.api.Tasks(ctx, url.Values{"status": {string(lpmos.Completed)}, "limit": {"1"}})
	if err != nil || l.Total < machines {
		t.Errorf("%d tasks are completed, %v; want at least %d", l.Total, err, machines)
	}
}

func lookAtPages(t *testing.T, f *fleet, axe, lang, theme string) {
	in := tab.New(t, f.url)
	in.SignIn(f.api, "operator")
	out := tab.New(t, f.url)
	for _, b := range []*tab.Tab{in, out} {
		b.Cookie("lpmos_lang", lang)
	}
	for _, p := range pages {
		b := in
		if p.out {
			b = out
		}
		if only := os.Getenv("LPMOS_PAGE"); only != "" && !slices.Contains(strings.Split(only, ","), p.name) || p.more && os.Getenv("LPMOS_SCREENSHOTS") == "" {
			continue
		}
		b.Allow = append(b.Allow, p.allow...)
		for _, size := range []struct {
			name          string
			width, height int64
		}{{"wide", 1280, 900}, {"phone", 390, 844}} {
			b.Width(size.width, size.height)
			b.Prefer("prefers-color-scheme", theme) // until a page prefers more
			b.Open(p.path(f))
			if p.steps != nil {
				p.steps(b, f)
			}
			if tab.Eval[bool](b, `document.querySelector('live-badge') !== null`) {
				b.Live()
			}
			if p.ready != "" {
				b.Until("show "+p.name, 15*time.Second, p.ready)
			}
			name := p.name + "." + lang + "." + theme + "." + size.name
			if over := tab.Eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
				t.Errorf("%s scrolls sideways by %d px", name, over)
			}
			// As high as the page, so that what sticks to an edge is there once.
			b.Width(size.width, max(size.height, tab.Eval[int64](b, `document.documentElement.scrollHeight`)))
			keep(t, name+".png", b.Picture)
			for _, v := range b.Axe(axe) {
				t.Errorf("%s: %s", name, v)
			}
		}
	}
}

func keep(t *testing.T, name string, picture func() []byte) {
	t.Helper()
	dir := os.Getenv("LPMOS_SCREENSHOTS")
	if dir == "" {
		return
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join("..", "..", dir)
	}
	dir = filepath.Join(dir, "pages")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), picture(), 0o644); err != nil {
		t.Fatal(err)
	}
}
