// Package tab drives a page of LPMOS in Chromium. Whatever the console says
// fails the test, and so does what the content security policy blocked.
package tab

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/tier"
)

// Tab is one page. URL may be set to another name of the same server.
type Tab struct {
	URL   string
	Allow []string // parts of console messages that belong to the test
	Hands int      // how often something was clicked, or typed into

	t    testing.TB
	ctx  context.Context
	bare bool // scripts are off

	mu    sync.Mutex // guards what follows
	noise []string
}

// Chromium finds the browser, or says that the tier is missing: a failure
// where LPMOS_REQUIRE names it.
func Chromium(t testing.TB) string {
	t.Helper()
	// The second is Debian's wrapper, which complains about a missing shell.
	for _, path := range []string{"/usr/lib/chromium/chromium", "/usr/bin/chromium"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	tier.Missing(t, "browser", "no chromium")
	return ""
}

// New starts a browser with one page, 1280 px wide, for the server at url. It
// ends with the test.
func New(t testing.TB, url string) *Tab {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(Chromium(t)), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1280, 900),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true), chromedp.Flag("no-proxy-server", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"))
	ctx, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(stop)
	ctx, stop = chromedp.NewContext(ctx)
	t.Cleanup(stop)
	ctx, stop = context.WithTimeout(ctx, 15*time.Minute)
	t.Cleanup(stop)
	b := &Tab{URL: url, t: t, ctx: ctx}
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	if _, err := chromedp.Call(ctx, emulation.SetScrollbarsHidden, emulation.SetScrollbarsHiddenParams{Hidden: true}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for m, err := range chromedp.Console(ctx) {
			if err != nil {
				return
			}
			b.mu.Lock()
			b.noise = append(b.noise, string(m.Type)+": "+m.Text)
			b.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, n := range b.noise {
			if !slices.ContainsFunc(b.Allow, func(a string) bool { return strings.Contains(n, a) }) {
				t.Errorf("the console says %s", n)
			}
		}
	})
	return b
}

// ScriptsOff turns JavaScript off for what is opened from now on.
func (b *Tab) ScriptsOff() {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		b.t.Fatal(err)
	}
	b.bare = true
}

// Do does steps one after the other, in at most a minute.
func (b *Tab) Do(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	err := chromedp.Do(ctx, steps...)
	for replaced(err) && ctx.Err() == nil {
		err = chromedp.Do(ctx, steps...)
	}
	if err != nil {
		at, _ := chromedp.Run(b.ctx, chromedp.Location())
		b.t.Fatalf("%s (at %s): %v; the page says:\n%s", what, at, err, b.text())
	}
}

// password is that of everybody who signs in by SignIn.
const password = "correct horse battery staple"

// SignIn makes an admin of this name, if there is none yet, and signs in as
// that through the form. api must be an admin's.
func (b *Tab) SignIn(api *apiclient.Client, name string) {
	b.t.Helper()
	u, err := api.CreateUser(b.ctx, name, apiclient.Access{Role: lpmos.Admin})
	if err == nil {
		err = b.choosePassword(u)
	}
	if err != nil && !errors.Is(err, lpmos.ErrConflict) {
		b.t.Fatalf("make the user %s: %v", name, err)
	}
	b.Open("/login")
	b.Do("sign in", chromedp.SendKeys(chromedp.CSS("#u"), name), chromedp.SendKeys(chromedp.CSS("#p"), password), chromedp.Click(chromedp.CSS("form.panel button")))
	b.Until("be signed in", 30*time.Second, `location.pathname === '/dashboard' && document.readyState === 'complete'`)
}

func (b *Tab) choosePassword(u apiclient.User) error {
	c, err := apiclient.New(b.URL, nil)
	if err != nil {
		return err
	}
	if _, err := c.Login(b.ctx, u.Name, u.OneTimePassword); err != nil {
		return err
	}
	if err := c.ChangePassword(b.ctx, u.OneTimePassword, password); err != nil {
		return err
	}
	return c.Logout(b.ctx)
}

// Open goes to a path of the server.
func (b *Tab) Open(path string) {
	b.t.Helper()
	b.Do("open "+path, chromedp.Navigate(b.URL+path), chromedp.WaitReady(chromedp.CSS("main")))
	if !b.bare {
		// Autofocus comes with the first drawing: nobody types before it.
		b.Until("load "+path, 20*time.Second, `document.readyState === 'complete' && (window.drawn ??= (requestAnimationFrame(() => { window.drawn = true }), false))`)
	}
}

// Leave goes to a page of another server.
func (b *Tab) Leave(url string) {
	b.t.Helper()
	b.Do("go to "+url, chromedp.Navigate(url))
}

// Click clicks the first element that matches.
func (b *Tab) Click(css string) {
	b.t.Helper()
	b.Hands++
	b.Do("click "+css, chromedp.Click(chromedp.CSS(css)))
}

// Type types into the first element that matches.
func (b *Tab) Type(css, text string) {
	b.t.Helper()
	b.Hands++
	b.Do("type into "+css, chromedp.SendKeys(chromedp.CSS(css), text))
}

// Choose sets the value of a select.
func (b *Tab) Choose(css, value string) {
	b.t.Helper()
	b.Do("choose in "+css, chromedp.SetValue(chromedp.CSS(css), value))
}

// Visible waits until an element can be seen. It works without scripts.
func (b *Tab) Visible(css string) {
	b.t.Helper()
	b.Do("see "+css, chromedp.WaitVisible(chromedp.CSS(css)))
}

// replaced reports whether the browser announced a new document between finding
// an element and using it; nothing was done with the old one's.
func replaced(err error) bool {
	return err != nil && strings.Contains(strings.ToLower(err.Error()), "node with given id")
}

// Path is where the page is.
func (b *Tab) Path() string {
	b.t.Helper()
	at, err := chromedp.Run(b.ctx, chromedp.Location())
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimPrefix(at, b.URL)
}

// Said waits until the console said something that holds a text.
func (b *Tab) Said(part string, limit time.Duration) {
	b.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		b.mu.Lock()
		said := slices.Clone(b.noise)
		b.mu.Unlock()
		if slices.ContainsFunc(said, func(n string) bool { return strings.Contains(n, part) }) {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("the console never said %q, only %q", part, said)
		}
	}
}

// Width makes the page as wide as a device's.
func (b *Tab) Width(width, height int64) {
	b.t.Helper()
	b.Do("emulate", chromedp.EmulateViewport(width, height))
}

// Until waits for an expression to become true in the page, which may be
// loaded again meanwhile.
func (b *Tab) Until(what string, limit time.Duration, js string) {
	b.t.Helper()
	limit = max(limit, time.Minute) // a slow machine takes longer than one has in mind
	deadline := time.Now().Add(limit)
	for {
		ok, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](js))
		if err == nil && ok {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s: %s is not true after %s (%v); the page says:\n%s", what, js, limit, err, b.text())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Live waits until the page follows the WebSocket.
func (b *Tab) Live() {
	b.t.Helper()
	b.Until("connect", 15*time.Second, `document.querySelector('live-badge')?.dataset.state === 'live'`)
}

func (b *Tab) text() string {
	text, _ := chromedp.Run(b.ctx, chromedp.Text(chromedp.CSS("main")))
	return text[:min(len(text), 1200)]
}

// Text is the text of the first element that matches.
func (b *Tab) Text(css string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.TextContent(chromedp.CSS(css)))
	for replaced(err) && ctx.Err() == nil {
		text, err = chromedp.Run(ctx, chromedp.TextContent(chromedp.CSS(css)))
	}
	if err != nil {
		b.t.Fatalf("read %s: %v", css, err)
	}
	return strings.TrimSpace(text)
}

// Eval asks the page.
func Eval[T any](b *Tab, js string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](js))
	if err != nil {
		b.t.Fatalf("evaluate %s: %v", js, err)
	}
	return v
}

// Picture is the page as it is shown: the viewport as a PNG.
func (b *Tab) Picture() []byte {
	b.t.Helper()
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatalf("take a picture: %v", err)
	}
	return png
}
