package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/gorilla/websocket"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tier"
)

// chromium finds the browser, or says that the tier is missing: a failure
// where LPMOS_REQUIRE names it.
func chromium(t testing.TB) string {
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

// fakeHub is the least of the hub that a page can tell from the real one.
type fakeHub struct {
	refuse bool // no WebSocket comes through

	mu    sync.Mutex // guards what follows
	conns map[*websocket.Conn]string
	asked []string // queries of the handshakes
}

func (h *fakeHub) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	h.asked = append(h.asked, r.URL.RawQuery)
	refuse := h.refuse
	h.mu.Unlock()
	if refuse {
		http.Error(rw, "no upgrades here", http.StatusForbidden)
		return
	}
	c, err := (&websocket.Upgrader{}).Upgrade(rw, r, nil)
	if err != nil {
		return
	}
	for {
		_, b, err := c.ReadMessage()
		h.mu.Lock()
		if err != nil {
			delete(h.conns, c)
			h.mu.Unlock()
			c.Close()
			return
		}
		h.conns[c] = string(b)
		h.mu.Unlock()
	}
}

func (h *fakeHub) subscriptions() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, s := range h.conns {
		out = append(out, s)
	}
	return out
}

func (h *fakeHub) send(t testing.TB, message map[string]any) {
	t.Helper()
	b, err := json.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		if err := c.WriteMessage(websocket.TextMessage, b); err != nil {
			t.Errorf("send to the page: %v", err)
		}
	}
}

func (h *fakeHub) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		c.Close()
	}
}

// tab is a page of the site in Chromium. Whatever its console says fails the
// test, and so does what the policy blocked.
type tab struct {
	t    testing.TB
	ctx  context.Context
	site *fakeSite
	hub  *fakeHub
	url  string
	bare bool   // scripts are off
	stop func() // ends the server

	mu    sync.Mutex // guards what follows
	noise []string
	allow []string // parts of messages that belong to the test
}

func newTab(t testing.TB, s *fakeSite) *tab {
	t.Helper()
	path := chromium(t)
	hub := &fakeHub{conns: map[*websocket.Conn]string{}}
	mux := http.NewServeMux()
	mux.Handle("/", signedIn(newTestWeb(t, s)))
	mux.Handle("/login", newTestWeb(t, s).Handler()) // to nobody, as it is seen
	mux.Handle("/ws", hub)
	mux.HandleFunc("/api/v1/me", func(rw http.ResponseWriter, _ *http.Request) { rw.Write([]byte("{}")) })
	mux.HandleFunc("/api/v1/tasks/{id}", func(rw http.ResponseWriter, r *http.Request) {
		task, _ := s.Task(r.PathValue("id"))
		rw.Header().Set("Content-Type", "application/json")
		json.NewEncoder(rw).Encode(task)
	})
	srv := httptest.NewServer(http.NewCrossOriginProtection().Handler(mux))
	stopServer := sync.OnceFunc(srv.Close)
	t.Cleanup(stopServer)
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1280, 900),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true), chromedp.Flag("no-proxy-server", true),
		chromedp.Flag("host-resolver-rules", "MAP lpmos.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"))
	actx, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(stop)
	ctx, stop := chromedp.NewContext(actx)
	t.Cleanup(stop)
	ctx, stop = context.WithTimeout(ctx, 12*time.Minute)
	t.Cleanup(stop)
	b := &tab{t: t, ctx: ctx, site: s, hub: hub, url: srv.URL, stop: func() { srv.CloseClientConnections(); hub.drop(); stopServer() }}
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("start chromium: %v", err)
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
			if !slices.ContainsFunc(b.allow, func(a string) bool { return strings.Contains(n, a) }) {
				t.Errorf("the console says %s", n)
			}
		}
	})
	return b
}

func (b *tab) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	for _, step := range steps {
		err := chromedp.Do(ctx, step)
		for replaced(err) && ctx.Err() == nil {
			err = chromedp.Do(ctx, step)
		}
		if err != nil {
			at, _ := chromedp.Run(b.ctx, chromedp.Location())
			b.t.Fatalf("%s (at %s): %v", what, at, err)
		}
	}
}

// replaced reports whether the browser announced a new document between finding
// an element and using it; nothing was done with the old one's.
func replaced(err error) bool {
	return err != nil && strings.Contains(strings.ToLower(err.Error()), "node with given id")
}

func (b *tab) open(path string) {
	b.t.Helper()
	b.do("open "+path, chromedp.Navigate(b.url+path), chromedp.WaitReady(chromedp.CSS("main")))
	if !b.bare {
		b.until("load "+path, `document.readyState === 'complete'`)
	}
}

func eval[T any](b *tab, js string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](js))
	if err != nil {
		b.t.Fatalf("evaluate %s: %v", js, err)
	}
	return v
}

// until waits for an expression to become true in the page.
func (b *tab) until(what, js string) {
	b.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		// A page that is being loaded again has nothing to ask.
		ok, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](js))
		if err == nil && ok {
			return
		}
		if time.Now().After(deadline) {
			text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.querySelector('main')?.innerText.slice(0, 600) ?? ''"))
			b.t.Fatalf("%s: %s is not true (%v); the page says:\n%s", what, js, err, text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (b *tab) connected() {
	b.t.Helper()
	b.until("connect", `document.querySelector('live-badge').dataset.state === 'live'`)
	deadline := time.Now().Add(time.Minute)
	for len(b.hub.subscriptions()) == 0 {
		if time.Now().After(deadline) {
			b.t.Fatal("the page did not subscribe")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// picture keeps what the tab shows, where LPMOS_SCREENSHOTS names a directory.
func (b *tab) picture(name string) {
	b.t.Helper()
	dir := os.Getenv("LPMOS_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	}
	if err != nil {
		b.t.Errorf("picture of %s: %v", name, err)
	}
}

func TestBrowserLiveTask(t *testing.T) {
	s := newSite(t, time.Now())
	b := newTab(t, s)
	b.open("/tasks/" + idInstalling)
	b.connected()
	if got, want := b.hub.subscriptions(), `{"type":"subscribe","task_id":"`+idInstalling+`"}`; len(got) != 1 || got[0] != want {
		t.Errorf("subscribed %q; want %s", got, want)
	}
	if q := b.hub.asked[0]; q != "after=1000&store_id=store-1" {
		t.Errorf("handshake asked %q", q)
	}
	eval[bool](b, `window.mark = true`)
	progress := func(rev, pct int, stage string) {
		b.hub.send(t, map[string]any{"type": "progress", "rev": rev, "task_id": idInstalling, "attempt": 1, "percentage": pct, "stage": stage, "message": "chunk <b>200</b>",
			"details": map[string]any{"bytes_downloaded": 2_000_000_000, "bytes_total": 2_400_000_000, "bytes_per_second": 40_000_000}})
	}
	progress(1001, 53, "downloading")
	b.until("figures move", `document.querySelector('[data-part=percent]').textContent === '53\u00a0%' && document.querySelector('[data-part=speed]').textContent === '40\u00a0MB/s'`)
	if text := eval[string](b, `document.querySelector('[data-part=message]').textContent`); text != "chunk <b>200</b>" {
		t.Errorf("message shown as %q", text)
	}
	progress(1000, 20, "partitioning")
	time.Sleep(1500 * time.Millisecond) // longer than an element waits before it draws
	if text := eval[string](b, `document.querySelector('[data-part=percent]').textContent`); text != "53\u00a0%" {
		t.Errorf("after an older message the page says %s; want what it said", text)
	}
	progress(1002, 75, "installing")
	b.until("the headline and the step move with the bar", `document.querySelector('h1').innerText.includes('is writing its image') && document.querySelector('.track [data-step=now]').innerText.includes('stage 3 of 4')`)
	b.until("stage moves", `document.querySelector('[data-stage=installing]').dataset.step === 'now' && document.querySelector('[data-stage=downloading]').dataset.step === 'done' && document.querySelector('[data-stage=installing] progress').value === 50`)
	b.hub.send(t, map[string]any{"type": "log", "rev": 1003, "task_id": idInstalling, "lines": []string{"2026-11-23T14:32:09Z <script>alert(1)</script>"}})
	b.until("log grows", `document.querySelector('task-log li:last-child').textContent.includes('<script>alert(1)</script>')`)

	b.hub.drop()
	b.until("notice the loss", `document.querySelector('live-badge').dataset.state === 'lost'`)
	b.connected()
	if q := b.hub.asked[len(b.hub.asked)-1]; q != "after=1003&store_id=store-1" {
		t.Errorf("the second handshake asked %q; want what came after the last message", q)
	}
	if !eval[bool](b, `window.mark === true`) {
		t.Error("the page was loaded again for mere figures")
	}

	task, err := s.move(idInstalling, lpmos.CauseResultReported, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.hub.send(t, map[string]any{"type": "status", "rev": 1004, "task_id": idInstalling, "status": task.Status, "attempt": 1, "region_id": "bj-1"})
	b.until("load the page of the new status", `window.mark === undefined && document.querySelector('h1')?.textContent.includes('restarts from its own disk')`)
}

// However often a task reports, a page draws it once a second at most, and ends
// on the newest.
func TestBrowserDrawsOnceASecond(t *testing.T) {
	for path, shows := range map[string]string{
		"/tasks/" + idInstalling: `[data-part=percent]`, "/tasks": `tr[data-task="` + idInstalling + `"]`, "/dashboard": `tr[data-task="` + idInstalling + `"]`,
	} {
		t.Run(path, func(t *testing.T) {
			b := newTab(t, newSite(t, time.Now()))
			b.open(path)
			b.connected()
			eval[bool](b, `(() => {
				const el = document.querySelector('`+shows+`'), percent = () => el.textContent.match(/(\d+)\u00a0%/)?.[1]
				window.drawn = []
				window.last = percent()
				new MutationObserver(() => {
					if (percent() !== window.last) window.drawn.push(performance.now())
					window.last = percent()
				}).observe(el, { subtree: true, childList: true, characterData: true })
				return true
			})()`)
			const n = 40
			for i := range n {
				b.hub.send(t, map[string]any{"type": "progress", "rev": 1001 + i, "task_id": idInstalling, "region_id": "bj-1", "attempt": 1, "percentage": 50 + i, "stage": "downloading", "message": "m"})
				time.Sleep(80 * time.Millisecond)
			}
			b.until("end on the newest", fmt.Sprintf("window.last === '%d'", 50+n-1))
			drawn := eval[[]float64](b, `window.drawn`)
			if len(drawn) < 2 {
				t.Errorf("drawn at %v; want more than once in %d messages", drawn, n)
			}
			for i := 1; i < len(drawn); i++ {
				if between := drawn[i] - drawn[i-1]; between < 950 { // the clock of timers and that of frames differ by some milliseconds
					t.Errorf("drawn again after %.0f ms (%v); want a second between", between, drawn)
				}
			}
		})
	}
}

func TestBrowserLiveTaskInChinese(t *testing.T) {
	b := newTab(t, newSite(t, time.Now()))
	if _, err := chromedp.Call(b.ctx, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: map[string]any{"Accept-Language": "zh-CN"}}); err != nil {
		t.Fatal(err)
	}
	b.open("/tasks/" + idInstalling)
	b.connected()
	for i, m := range []struct{ said, shown string }{
		{"Downloading debian 12 (1.2 GB of 2.4 GB)", "下载 debian 12（1.2 GB/2.4 GB）"}, {"Writing $1 (it) to the disk", "向磁盘写入 $1 (it)"}, {"chunk 200", "chunk 200"},
	} {
		b.hub.send(t, map[string]any{"type": "progress", "rev": 1001 + i, "task_id": idInstalling, "attempt": 1, "percentage": 40 + i, "stage": "downloading", "message": m.said})
		b.until("say "+m.shown, `document.querySelector('[data-part=message]').textContent === '`+m.shown+`'`)
	}
}

// A page that missed too much is loaded again; if that does not help it asks,
// instead of going round for ever.
func TestBrowserResync(t *testing.T) {
	b := newTab(t, newSite(t, time.Now()))
	b.open("/tasks/" + idInstalling)
	b.connected()
	eval[bool](b, `window.mark = true`)
	b.hub.send(t, map[string]any{"type": "resync", "rev": 5000, "store_id": "store-1"})
	b.until("load again", `window.mark === undefined && document.readyState === 'complete'`)
	b.connected()
	eval[bool](b, `window.mark = true`)
	b.hub.send(t, map[string]any{"type": "resync", "rev": 5001, "store_id": "store-1"})
	b.until("ask", `!document.querySelector('page-changed').hidden`)
	time.Sleep(2 * time.Second)
	if !eval[bool](b, `window.mark === true`) {
		t.Error("the page was loaded again at once after the second resync")
	}
}

func TestBrowserPolls(t *testing.T) {
	s := newSite(t, time.Now())
	b := newTab(t, s)
	b.allow = []string{"WebSocket connection"}
	b.hub.refuse = true
	b.open("/tasks/" + idInstalling)
	b.until("poll", `document.querySelector('live-badge').dataset.state === 'polling'`)
	s.mu.Lock()
	task := s.tasks[idInstalling]
	p := *task.Progress
	p.Percentage = 55
	task.Progress = &p
	s.tasks[idInstalling] = task
	s.mu.Unlock()
	b.until("figures move", `document.querySelector('[data-part=percent]').textContent === '55\u00a0%'`)
}

func TestBrowserLists(t *testing.T) {
	s := newSite(t, time.Now())
	b := newTab(t, s)
	b.open("/tasks")
	b.connected()
	eval[bool](b, `window.mark = true`)
	row := `document.querySelector('tr[data-task="` + idInstalling + `"] `
	b.hub.send(t, map[string]any{"type": "progress", "rev": 1001, "task_id": idInstalling, "attempt": 1, "percentage": 57, "stage": "downloading"})
	b.until("the bar moves", row+`progress').value === 57`)
	b.hub.send(t, map[string]any{"type": "counts", "rev": 1002, "counts": map[string]int{"awaiting_approval": 1234}})
	b.until("counts", `[...document.querySelectorAll('status-count[status=awaiting_approval]')].every((el) => el.textContent === '1,234')`)
	// The row moves on where it stands.
	if _, err := s.move(idInstalling, lpmos.CauseResultReported, nil); err != nil {
		t.Fatal(err)
	}
	b.hub.send(t, map[string]any{"type": "status", "rev": 1003, "task_id": idInstalling, "status": "verifying", "attempt": 1})
	b.until("the status changes in place", row+`task-status').textContent === 'Verifying' && `+row+`[data-part=stage]').textContent === 'restarts from its own disk'`)
	if !eval[bool](b, `window.mark === true && document.querySelector('page-changed').hidden`) {
		t.Error("the list was drawn anew")
	}
	b.do("keys", chromedp.KeyEvent("j"), chromedp.KeyEvent("j"))
	b.until("the row cursor", `[...document.querySelectorAll('tr[data-task]')].findIndex((r) => r.hasAttribute('data-cursor')) === 1`)
}

func TestBrowserApproveWhileItChanges(t *testing.T) {
	s := newSite(t, time.Now())
	b := newTab(t, s)
	b.allow = []string{"409 (Conflict)"}
	b.open("/tasks/" + idBlank + "/approve")
	b.connected()
	b.do("write notes", chromedp.SendKeys(chromedp.CSS("#notes"), "ticket 4471"))
	changePlan(s, idBlank)
	b.hub.send(t, map[string]any{"type": "hardware", "rev": 1001, "task_id": idBlank, "hardware": map[string]any{}})
	b.until("say that it changed", `!document.querySelector('page-changed').hidden && document.querySelector('#notes').value === 'ticket 4471'`)
	b.do("approve all the same", chromedp.Click(chromedp.CSS("button[value=true]")))
	b.until("the refusal", `document.querySelector('h1')?.textContent.startsWith('Nothing was approved')`)
	// A browser gives the focus when it first draws the page, which is after it
	// has read it.
	b.until("the outcome takes the focus", `document.activeElement.id === 'summary'`)
	if got := s.tasks[idBlank].Status; got != lpmos.AwaitingApproval {
		t.Errorf("task is %s", got)
	}
	b.picture("stale-light-wide")
	b.do("review", chromedp.Click(chromedp.CSS("form button[data-kind=primary]")))
	b.until("the new plan with the old notes", `document.querySelector('#notes')?.value === 'ticket 4471' && document.querySelector('.verdict').textContent.includes('Windows Server 2019')`)
}

// The whole job without JavaScript: create, look, approve, cancel; and under a
// plain-HTTP name that is not this machine's own, where browsers send no
// Sec-Fetch-Site and the protection against foreign forms has only the Origin.
func TestBrowserWithoutScripts(t *testing.T) {
	s := newSite(t, time.Now())
	b := newTab(t, s)
	b.allow = []string{"400 (Bad Request)", "Cross-Origin-Opener-Policy header has been ignored"}
	b.url = strings.Replace(b.url, "127.0.0.1", "lpmos.test", 1)
	if _, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	b.bare = true
	b.open("/tasks/create")
	b.picture("no-scripts")
	b.do("send an incomplete form", chromedp.SendKeys(chromedp.CSS("#mac"), "7C-C2-55-10-90-72"), chromedp.Click(chromedp.CSS("main button[data-kind=primary]")),
		chromedp.WaitVisible(chromedp.CSS("#summary")))
	b.picture("create-problem")
	b.do("complete it", chromedp.Click(chromedp.CSS("input[value=bj-1]")), chromedp.Click(chromedp.CSS(`input[value="ubuntu/24.04/amd64"]`)),
		chromedp.SendKeys(chromedp.CSS("#host"), "app-119"), chromedp.Click(chromedp.CSS("main button[data-kind=primary]")),
		chromedp.WaitVisible(chromedp.CSS("button[value=create]")))
	if s.created != 0 {
		t.Error("something was created before the summary was answered")
	}
	b.picture("summary-no-scripts")
	b.do("create it", chromedp.Click(chromedp.CSS("button[value=create]")), chromedp.WaitVisible(chromedp.CSS(".track")))
	h1, err := chromedp.Run(b.ctx, chromedp.TextContent(chromedp.CSS("h1")))
	for replaced(err) {
		h1, err = chromedp.Run(b.ctx, chromedp.TextContent(chromedp.CSS("h1")))
	}
	if err != nil || h1 != "app-119 waits for its machine to boot" {
		t.Errorf("after creating, the page says %q, %v", h1, err)
	}
	b.do("cancel it", chromedp.Click(chromedp.CSS("details.ask summary")), chromedp.SendKeys(chromedp.CSS("#r-cancel"), "typo"), chromedp.Click(chromedp.CSS("details.ask button")),
		chromedp.WaitVisible(chromedp.CSS(`.status[data-status="canceled"]`)))

	b.open("/tasks/" + idData + "/approve")
	serial := s.tasks[idData].Plan.Effect.Target.Serial
	b.do("approve", chromedp.SendKeys(chromedp.CSS("#sn4"), serial[len(serial)-4:]), chromedp.Click(chromedp.CSS("button[value=true]")),
		chromedp.WaitVisible(chromedp.CSS(`.page-head .status[data-status="approved"]`)))
	if got := s.tasks[idData].Status; got != lpmos.Approved {
		t.Errorf("task is %s", got)
	}
	b.do("choose the dark theme", chromedp.Click(chromedp.CSS("button[value=dark]")), chromedp.WaitVisible(chromedp.CSS(`html[data-theme="dark"]`)))
}

// Every page, wide and narrow, light and dark: nothing in the console, nothing
// blocked, nothing that makes the page scroll sideways. The pictures stay
// where LPMOS_SCREENSHOTS says.
func TestBrowserEveryPage(t *testing.T) {
	s := newSite(t, time.Now())
	b := newTab(t, s)
	pages := []struct{ name, path string }{
		{"dashboard", "/dashboard"}, {"tasks", "/tasks"}, {"create", "/tasks/create"}, {"regions", "/regions"},
		{"task-installing", "/tasks/" + idInstalling}, {"task-failed", "/tasks/" + idFailed}, {"task-completed", "/tasks/" + idCompleted},
		{"task-pending", "/tasks/" + idPending}, {"task-awaiting", "/tasks/" + idData}, {"task-stuck", "/tasks/" + idStuck},
		{"approve-data", "/tasks/" + idData + "/approve"}, {"approve-blank", "/tasks/" + idBlank + "/approve"}, {"approve-problem", "/tasks/" + idProblem + "/approve"},
		{"missing", "/tasks/" + taskID(15)}, {"no-match", "/tasks?q=nothing"},
	}
	b.allow = []string{"404 (Not Found)"}
	for _, theme := range []string{"light", "dark"} {
		for _, width := range []int64{1280, 390} {
			b.do("emulate", chromedp.EmulateViewport(width, map[int64]int64{1280: 900, 390: 844}[width]))
			if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}}}); err != nil {
				t.Fatal(err)
			}
			for _, p := range pages {
				b.open(p.path)
				name := p.name + "-" + theme + map[int64]string{1280: "-wide", 390: "-phone"}[width]
				if over := eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
					t.Errorf("%s scrolls sideways by %d px", name, over)
				}
				if eval[bool](b, `document.querySelector('live-badge') !== null`) {
					b.until("connect", `document.querySelector('live-badge').dataset.state === 'live'`)
				}
				b.picture(name)
			}
		}
	}

	// On paper a page is ink on white, whatever was chosen for the screen, and
	// without what only a screen can do.
	b.do("emulate", chromedp.EmulateViewport(794, 1123)) // A4
	for _, path := range []string{"/tasks", "/tasks/" + idData + "/approve", "/tasks/" + idInstalling} {
		b.open(path)
		eval[string](b, `document.documentElement.dataset.theme = 'dark'`)
		if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print"}); err != nil {
			t.Fatal(err)
		}
		b.until("print in light colours", `getComputedStyle(document.body).color === 'rgb(18, 22, 27)'`)
		if shown := eval[string](b, `[...document.querySelectorAll('.rail, .topbar, .bulk, .filters, .decision .button, .copy-button, .page-head .buttons')].filter((el) => el.checkVisibility()).map((el) => el.className).join(', ')`); shown != "" {
			t.Errorf("%s is printed with %s", path, shown)
		}
		if cut := eval[string](b, `[...document.querySelectorAll('main *')].filter((el) => el.checkVisibility() && ['auto', 'scroll'].includes(getComputedStyle(el).overflowX) && el.scrollWidth > el.clientWidth + 1).map((el) => el.className).join(', ')`); cut != "" {
			t.Errorf("%s is printed with %s cut off", path, cut)
		}
		b.picture("print" + strings.ReplaceAll(path, "/", "-"))
	}
}

// A hundred thousand tasks: few rows are in the page, the order stays, and what
// is selected is what was seen.
func TestBrowserManyTasks(t *testing.T) {
	const many = 100_000
	s := newSite(t, time.Now())
	s.addMany(many)
	b := newTab(t, s)
	b.open("/tasks?q=many-")
	b.connected()
	b.until("the order", `document.querySelector('task-table [data-part=shown]').textContent.startsWith('100,000 tasks')`)
	rows := `[...document.querySelectorAll('tr[data-task]')]`
	eval[bool](b, `(scrollTo(0, document.documentElement.scrollHeight), true)`)
	b.until("the last row", rows+`.some((r) => r.querySelector('[data-part=host]').textContent === 'many-99999')`)
	if n := eval[int](b, rows+`.length`); n > 160 {
		t.Errorf("%d rows are in the page; want at most 160", n)
	}
	if at := eval[int](b, `Number(`+rows+`.at(-1).getAttribute('aria-rowindex'))`); at != many+1 {
		t.Errorf("the last row says it is number %d of the table; want %d", at, many+1)
	}
	eval[bool](b, `(scrollTo(0, 0), true)`)
	b.until("the first row", rows+`[0].querySelector('[data-part=host]').textContent === 'many-0'`)

	// New ones wait: one that matches and one that does not.
	matching := lpmos.Task{ID: lpmos.NewTaskID(), Status: lpmos.Pending, Attempt: 1, CreatedAt: s.now, UpdatedAt: s.now, Spec: lpmos.Spec{RegionID: "lab-1", Hostname: "many-new", OSType: "debian", OSVersion: "12"}}
	other := matching
	other.ID, other.Hostname = lpmos.NewTaskID(), "else"
	s.mu.Lock()
	s.tasks[matching.ID], s.tasks[other.ID] = matching, other
	s.mu.Unlock()
	b.hub.send(t, map[string]any{"type": "status", "rev": 1001, "task_id": matching.ID, "status": "pending", "attempt": 1})
	b.hub.send(t, map[string]any{"type": "status", "rev": 1002, "task_id": other.ID, "status": "pending", "attempt": 1})
	b.until("the line", `document.querySelector('.waiting').textContent === '1 new task: show it'`)
	if host := eval[string](b, rows+`[0].querySelector('[data-part=host]').textContent`); host != "many-0" {
		t.Errorf("the first row became %s by itself", host)
	}
	b.do("show it", chromedp.Click(chromedp.CSS(".waiting button")))
	b.until("the new order", rows+`[0].querySelector('[data-part=host]').textContent === 'many-new'`)

	// Selecting: a range with shift, by keyboard, and all there may be.
	eval[bool](b, `document.querySelectorAll('[name=task]')[2].click() ?? true`)
	eval[bool](b, `document.querySelectorAll('[name=task]')[6].dispatchEvent(new MouseEvent('click', { bubbles: true, shiftKey: true }))`)
	b.until("five", `document.querySelector('.bulk [data-part=selected]').textContent === '5 selected in 1 region' && document.querySelector('.bulk [value=cancel]').textContent === 'Cancel 5…'`)
	if !eval[bool](b, `document.querySelector('.bulk [value=retry]').getAttribute('aria-disabled') === 'true'`) {
		t.Error("nothing can be retried, and the button does not say so")
	}
	b.do("j and x", chromedp.KeyEvent("j"), chromedp.KeyEvent("x"))
	b.until("six", `document.querySelector('.bulk [data-part=selected]').textContent.startsWith('6 selected')`)
	b.do("all", chromedp.Click(chromedp.CSS("[name=all]")))
	b.until("a thousand", `document.querySelector('.bulk [value=cancel]').textContent === 'Cancel 1,000…'`)
	b.do("cancel", chromedp.Click(chromedp.CSS(".bulk [value=cancel]")))
	b.until("the question", `document.querySelector('.bulk-form') !== null && document.querySelector('h1').textContent === 'Cancel 1,000 tasks?'`)
}

// The worker keeps the static files, also without a server, and nothing else.
func TestBrowserServiceWorker(t *testing.T) {
	b := newTab(t, newSite(t, time.Now()))
	b.allow = []string{"WebSocket connection", "Failed to load resource"}
	b.open("/dashboard")
	b.until("the worker", `navigator.serviceWorker.controller !== null`)
	files := eval[string](b, `(window.kept = '', caches.keys().then(async (names) => { const c = await caches.open(names[0]); window.kept = (await c.keys()).map((r) => new URL(r.url).pathname).join(' ') }), document.querySelector('link[rel=stylesheet]').getAttribute('href'))`)
	b.until("files are kept", `window.kept.includes('/js/app.js')`)
	for _, path := range strings.Fields(eval[string](b, `window.kept`)) {
		if !strings.HasPrefix(path, "/static/") {
			t.Errorf("the worker keeps %s", path)
		}
	}
	b.stop()
	eval[bool](b, `(window.answers = [], ['`+files+`', '/dashboard', '/tasks/rows?ids=`+idFailed+`', '/api/v1/tasks'].forEach((path, i) => fetch(path, { cache: 'no-store' }).then((r) => { answers[i] = r.status }, () => { answers[i] = 0 })), true)`)
	b.until("four answers", `Object.keys(window.answers).length === 4`)
	if got := eval[string](b, `window.answers.join(' ')`); got != "200 0 0 0" {
		t.Errorf("without a server the file, the page, the rows and the API answer %s; want 200 0 0 0", got)
	}
}

// What machines and people say is text, whatever it looks like, and shown as
// it is: in the pages and in the rows that scripts make.
func TestBrowserHostileText(t *testing.T) {
	words := []string{`<script>alert(1)</script>`, `{{.ID}} {{template "x"}}`, "${alert(1)} `x`", "\u202Edesrever\u202C abc \u2066x", `"><img src=x onerror=alert(1)>`, `&lt;b&gt; &amp;`}
	s := newSite(t, time.Now())
	clear(s.tasks) // the overview has no room for seven that failed beside all else
	long := strings.Repeat("long ", 2<<10)
	for i, text := range append(words, long) {
		h := dellR760("1", "7c:c2:55:10:91:01")
		h.System.Serial = text
		id := fmt.Sprintf("%08x-0000-4000-8000-000000000bad", i)
		s.tasks[id] = lpmos.Task{ID: id, Status: lpmos.Failed, Attempt: 1, CreatedBy: text, CreatedAt: s.now, UpdatedAt: s.now.Add(-time.Hour), Hardware: h, Rev: s.rev,
			Spec:  lpmos.Spec{RegionID: "bj-1", TargetMAC: lpmos.MustMAC("7c:c2:55:10:91:01"), OSType: "debian", OSVersion: "13", Arch: "amd64", Hostname: text},
			Error: &lpmos.Failure{Code: "x", Cause: text, NextStep: text, At: s.now}}
	}
	b := newTab(t, s)
	check := func(id, text, css string) {
		t.Helper()
		want := lpmos.Shorten(text, maxWords)
		if got := eval[string](b, `document.querySelector('[data-task="`+id+`"] `+css+`').textContent`); got != want {
			t.Errorf("%s of %q is shown as %q", css, want, got)
		}
		// Isolated: what turns the direction of text ends where the text does.
		if !eval[bool](b, `document.querySelector('[data-task="`+id+`"] `+css+`').closest('bdi') !== null || document.querySelector('[data-task="`+id+`"] `+css+` > bdi') !== null`) {
			t.Errorf("%s is not isolated from the text around it", css)
		}
	}
	b.open("/tasks?sort=updated")
	b.connected()
	for _, made := range []string{"by the server", "by a script"} {
		for i, text := range append(words, long) {
			id := fmt.Sprintf("%08x-0000-4000-8000-000000000bad", i)
			for _, css := range []string{"[data-part=host]", "[data-part=summary]", "[data-part=by]", "[data-part=serial]"} {
				check(id, text, css)
			}
		}
		if over := eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
			t.Errorf("rows made %s make the page scroll sideways by %d px", made, over)
		}
		if made == "by a script" {
			break
		}
		eval[bool](b, `document.querySelectorAll('tr[data-task]').forEach((r) => { r.querySelector('task-status').dataset.status = 'old' }) ?? true`)
		for i := range append(words, long) {
			b.hub.send(t, map[string]any{"type": "status", "rev": 1001 + i, "task_id": fmt.Sprintf("%08x-0000-4000-8000-000000000bad", i), "status": "failed", "attempt": 1})
		}
		b.until("rows made anew", `document.querySelectorAll('tr[data-task$="bad"] task-status[data-status=failed]').length === 7`)
	}
	b.open("/dashboard")
	for i, text := range words {
		id := fmt.Sprintf("%08x-0000-4000-8000-000000000bad", i)
		if got, want := eval[string](b, `document.querySelector('.need[data-task="`+id+`"] .need-title').textContent`), text+" failed"; got != want {
			t.Errorf("the overview says %q; want %q", got, want)
		}
	}
	if over := eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
		t.Errorf("the overview scrolls sideways by %d px", over)
	}
}
