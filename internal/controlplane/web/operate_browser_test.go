package web

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/lpmos/lpmos"
)

// The pages of one person's work, in every form in which they are seen.
func TestBrowserOperatePages(t *testing.T) {
	s := newSite(t, time.Now())
	s.addDiscovered()
	ids := s.addAlike(3)
	for _, id := range []string{idFailed, idInstalling, idCompleted} {
		task := s.tasks[id]
		was := *task.Hardware
		was.BIOS.Version, was.Disks, was.Memory.TotalBytes = "2.1.0", slices.Clone(was.Disks[:2]), 270_000_000_000
		task.Previous = &lpmos.Sighting{At: s.now.Add(-90 * 24 * time.Hour), RegionID: "bj-1", Hardware: &was}
		s.tasks[id] = task
	}
	badCSV := "mac,hostname,region,os,version\nb0:7b:25:9e:41:d0,app-119,bj-1,ubuntu,24.04\nb0:7b:25:9e:4,app-121,bj-1,ubuntu,24.04\nb0:7b:25:9e:41:88,app_126,bj1,ubuntu,24.04\nb07b.259e.41d0,app-133,bj-1,ubuntu,24.04\n"
	pages := []struct{ name, path, then string }{
		{"create", "/tasks/create", ""}, {"create-known", "/tasks/create?target_mac=7c:c2:55:10:93:01&region_id=bj-1", ""},
		{"create-summary", "/tasks/create?target_mac=7c:c2:55:10:90:72&region_id=bj-1&image=ubuntu/24.04/amd64&hostname=app-119", `document.querySelector('button[value=check]').click()`},
		{"many", "/tasks/create?mode=many", ""}, {"many-bad", "/tasks/create?mode=many&csv=" + url.QueryEscape(badCSV), `document.querySelector('[data-mode=many] button[value=check]').click()`},
		{"many-summary", "/tasks/create?mode=many&csv=" + url.QueryEscape(goodCSV) + "&region_id=bj-1&image=debian/12/amd64", `document.querySelector('[data-mode=many] button[value=check]').click()`},
		{"task-installing", "/tasks/" + idInstalling, ""}, {"task-failed", "/tasks/" + idFailed, ""}, {"task-completed", "/tasks/" + idCompleted, ""},
		{"task-log-search", "/tasks/" + idInstalling + "?log=chunk#log", ""},
		{"approve-data", "/tasks/" + idData + "/approve", ""}, {"approve-alike", "/tasks/" + ids[0] + "/approve", ""}, {"together", "/tasks/approve?ids=" + strings.Join(append(ids, idCompleted), ","), ""},
	}
	only := os.Getenv("LPMOS_PAGES")
	axe, _ := os.ReadFile(os.Getenv("LPMOS_AXE"))
	for _, form := range []struct {
		theme string
		width int64
		lang  string
	}{{"light", 1280, "en"}, {"dark", 390, "en"}, {"dark", 1280, "zh-CN"}, {"light", 390, "zh-CN"}} {
		b := newTab(t, s)
		b.allow = []string{"400 (Bad Request)", "404 (Not Found)", "409 (Conflict)"}
		b.do("emulate", chromedp.EmulateViewport(form.width, map[int64]int64{1280: 900, 390: 844}[form.width]))
		if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: form.theme}}}); err != nil {
			t.Fatal(err)
		}
		b.open("/tasks/create")
		eval[string](b, `document.cookie = 'lpmos_lang=`+form.lang+`; path=/'`)
		for _, p := range pages {
			name := fmt.Sprintf("%s-%s-%d-%s", p.name, form.theme, form.width, form.lang)
			if only != "" && !strings.Contains(name, only) {
				continue
			}
			b.open(p.path)
			if p.then != "" {
				eval[bool](b, `window.mark = true`)
				eval[bool](b, p.then+` ?? true`)
				b.until("go on from "+p.name, `window.mark === undefined && document.readyState === 'complete'`)
			}
			if over := eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
				t.Errorf("%s scrolls sideways by %d px", name, over)
			}
			if len(axe) > 0 {
				eval[bool](b, string(axe)+"\ntrue")
				found, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](`axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }).then((r) => r.violations.map((v) => v.id + ': ' + v.nodes.slice(0, 3).map((n) => n.target + ' ' + n.failureSummary).join(' | ')).join('\n'))`, chromedp.EvalAwaitPromise))
				if err != nil || found != "" {
					t.Errorf("axe on %s: %v %s", name, err, found)
				}
			}
			b.picture(name)
		}
	}
}

// newTabOf is newTab for another person, on another replica of the same site.
func newTabOf(t testing.TB, s *fakeSite, person string) *tab {
	b := newTab(t, s)
	b.open("/regions")
	eval[string](b, `document.cookie = 'person=`+person+`; path=/'`)
	return b
}

// W10: two people decide, one clicks twice, one goes back: one decision, and
// everybody sees whose.
func TestBrowserOneDecision(t *testing.T) {
	s := newSite(t, time.Now())
	b := newTab(t, s)
	b.allow = []string{"409 (Conflict)"}
	o := newTabOf(t, s, "wang.min")
	o.allow = b.allow
	before := s.Rev()
	for _, tab := range []*tab{b, o} {
		tab.open("/tasks/" + idBlank + "/approve")
	}
	eval[bool](b, `document.querySelector('button[value=true]').click(); document.querySelector('button[value=true]').click(); true`)
	b.until("open the task", `location.pathname === '/tasks/`+idBlank+`' && document.querySelector('.page-head .status[data-status=approved]') !== null`)
	o.do("decide too late", chromedp.Click(chromedp.CSS("button[value=true]")))
	o.until("the refusal", `document.querySelector('h1')?.textContent === 'chen.yu decided before you'`)
	o.do("open the task", chromedp.Click(chromedp.CSS("main a.button")))
	o.until("the task", `document.querySelector('#no-approve')?.textContent.startsWith('Not now: chen.yu approved it at ')`)
	eval[bool](b, `history.back(); true`)
	b.until("no form to approve again", `document.readyState === 'complete' && location.pathname === '/tasks/`+idBlank+`' && document.querySelector('button[value=true]') === null`)
	if task := s.tasks[idBlank]; s.Rev() != before+1 || task.Approval.By != "chen.yu" {
		t.Errorf("%d changes, approved by %s; want one, by chen.yu", s.Rev()-before, task.Approval.By)
	}
}

// The work of an evening without scripts: a file of machines, its mistakes, the
// summary, the batch; then several approved at once.
func TestBrowserManyWithoutScripts(t *testing.T) {
	s := newSite(t, time.Now())
	ids := s.addAlike(3)
	b := newTab(t, s)
	b.allow = []string{"400 (Bad Request)"}
	if _, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	b.bare = true
	file := filepath.Join(t.TempDir(), "rack.csv")
	if err := os.WriteFile(file, []byte("mac,hostname,region,os,version\n7c:c2:55:10:90:72,app-119,bj-1,debian,12\n7c:c2:55:10:90:7,app-120,bj-1,debian,12\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.open("/tasks/create")
	b.do("choose many", chromedp.Click(chromedp.CSS("label:has(#mode-many)")), chromedp.WaitVisible(chromedp.CSS("#csv-file")))
	b.do("upload", chromedp.SetUploadFiles(chromedp.CSS("#csv-file"), []string{file}), chromedp.Click(chromedp.CSS("[data-mode=many] button[value=check]")), chromedp.WaitVisible(chromedp.CSS("#l3")))
	b.picture("many-bad-no-scripts")
	b.do("correct it", chromedp.SetValue(chromedp.CSS("#csv"), "7c:c2:55:10:90:72,app-119,bj-1,debian,12\n7c:c2:55:10:90:74,app-120,bj-1,debian,12\n"), chromedp.Click(chromedp.CSS("[data-mode=many] button[value=check]")), chromedp.WaitVisible(chromedp.CSS("button[value=create]")))
	if s.created != 0 {
		t.Fatal("something was created before the summary was answered")
	}
	b.do("create", chromedp.Click(chromedp.CSS("button[value=create]")), chromedp.WaitVisible(chromedp.CSS("tr[data-task]")))
	if s.created != 2 {
		t.Errorf("%d tasks created; want 2", s.created)
	}

	b.open("/tasks/" + ids[0] + "/approve")
	b.do("review together", chromedp.Click(chromedp.CSS(`a[href^="/tasks/approve?like="]`)), chromedp.WaitVisible(chromedp.CSS("#count")))
	b.do("type another number", chromedp.SendKeys(chromedp.CSS("#count"), "5"), chromedp.Click(chromedp.CSS("button[data-kind=danger]")), chromedp.WaitVisible(chromedp.CSS("#summary")))
	b.do("type the number", chromedp.SetValue(chromedp.CSS("#count"), "3"), chromedp.Click(chromedp.CSS("button[data-kind=danger]")), chromedp.WaitVisible(chromedp.CSS("td .service")))
	b.picture("together-done")
	for i, id := range ids {
		if got, want := s.tasks[id].Status, map[bool]lpmos.Status{true: lpmos.Approved, false: lpmos.AwaitingApproval}[i < 3]; got != want {
			t.Errorf("machine %d is %s; want %s", i+1, got, want)
		}
	}
}

// hostileTexts is what a machine or a person may say.
var hostileTexts = map[string]string{
	"markup": `<script>alert(1)</script>"><img src=x onerror=alert(2)>'</textarea></script></svg><iframe src="javascript:alert(3)"></iframe>` +
		`{{.}} {{template "layout"}} ${alert(4)} #{5} <%= 6 %></style><style>*{display:none}</style> expression(alert(7)) url(javascript:alert(8)) %s %[9]d %!(EXTRA) %v`,
	"letters":   "abc\u202edef\u2066ghi\u2069\u200fjkl Z" + strings.Repeat("\u0301", 200) + " a\x00b\x07c\x1bd \U0001F5A5\uFE0F\U0001F468\u200D\U0001F4BB",
	"10 kB":     strings.Repeat("W", 10<<10),
	"10 kB rtl": strings.Repeat("\u05d0", 5<<10),
}

// say puts text into everything of a task that comes from a machine or a
// person.
func (s *fakeSite) say(id, text string) {
	h := dellR760("903199", "7c:c2:55:10:91:01")
	h.System = lpmos.System{Manufacturer: text, Product: text, Serial: text, UUID: text, Version: text}
	h.Board, h.BIOS, h.Chassis = lpmos.Board{Manufacturer: text, Product: text, Serial: text}, lpmos.BIOS{Vendor: text, Version: text, Date: text}, lpmos.Chassis{AssetTag: text, Serial: text + "c"}
	h.CPU.Model, h.Kernel, h.Agent, h.NICs[0].Name, h.NICs[0].Driver, h.NICs[0].PCI = text, text, text, text, text, text
	for i := range h.Disks {
		d := &h.Disks[i]
		d.Model, d.Vendor, d.Serial, d.Device = text, text, text+fmt.Sprint(i), text
		d.Content = lpmos.Content{Table: "gpt", Partitions: []lpmos.Partition{{Number: 1, SizeBytes: 500 * gb, Name: text, Filesystem: &lpmos.Filesystem{Type: text, Label: text, OS: text, Hostname: text, UsedBytes: gb}}}}
	}
	was := *h
	was.System.Serial, was.BIOS.Version, was.Disks = "before", text+"?", h.Disks[:2]
	t := lpmos.Task{ID: id, Status: lpmos.AwaitingApproval, Attempt: 1, CreatedBy: text, CreatedAt: s.now, UpdatedAt: s.now, Hardware: h, Previous: &lpmos.Sighting{At: s.now, Hardware: &was},
		Spec:     lpmos.Spec{RegionID: "bj-1", TargetMAC: lpmos.MustMAC("7c:c2:55:10:91:01"), OSType: "ubuntu", OSVersion: "24.04", Arch: "amd64", Hostname: text, Notes: text, SSHKeys: []string{"ssh-ed25519 AAAA " + text}},
		Approval: &lpmos.Approval{By: text, Notes: text, At: s.now},
		Receipt:  &lpmos.Receipt{OS: text, Kernel: text, Hostname: text, MachineID: text, RootFSUUID: text, Addresses: []string{text}, At: s.now}}
	p := lpmos.NewPlan(&t, h, s.images[1])
	t.Plan = &p
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[id] = t
	s.events[id] = []lpmos.Event{{At: s.now.Add(-time.Hour), Cause: lpmos.Cause(text), To: lpmos.Pending, By: text, Message: text}, {At: s.now, Cause: lpmos.CauseHardwareReported, To: lpmos.AwaitingApproval, By: text, Message: text}}
	s.logs[id] = []string{text, "2026-11-23T14:31:07Z " + text, `time=2026-11-23T14:31:07Z level=ERROR msg=x err=` + text}
}

// shownAlone finds the elements that hold text and nothing else, and of them
// those whose direction is not kept to themselves.
const shownAlone = `((text) => {
  const all = [...document.querySelectorAll('main *')].filter((el) => !el.childElementCount && el.textContent === text && !el.closest('textarea, option'))
  const leaks = all.filter((el) => {
    for (let at = el; at.localName !== 'main'; at = at.parentElement) if (getComputedStyle(at).unicodeBidi.startsWith('isolate')) return false
    return true
  })
  return [all.length, leaks.length, leaks.length ? leaks[0].outerHTML.slice(0, 200) : '']
})(%s)`

// V03, V04: what machines and people say of a task is shown as it is, and obeyed by nobody.
func TestBrowserHostileTextIsInert(t *testing.T) {
	s := newSite(t, time.Now())
	b := newTab(t, s)
	b.allow = []string{"400 (Bad Request)"}
	eval[bool](b, `true`)
	for name, text := range hostileTexts {
		t.Run(name, func(t *testing.T) {
			b.t = t
			s.say(idHostile, text)
			// What HTML cannot hold is shown as the sign for that.
			shown := strings.ReplaceAll(text, "\x00", "\ufffd")
			quoted, _ := json.Marshal(shown)
			least := map[string]int{"/tasks/" + idHostile: 8, "/tasks/" + idHostile + "/approve": 4, "/tasks/approve?ids=" + idHostile: 1}
			for path, want := range least {
				b.open(path)
				got := eval[[]any](b, fmt.Sprintf(shownAlone, quoted))
				if n := int(got[0].(float64)); n < want {
					t.Errorf("%s shows the text as it was given %d times; want at least %d", path, n, want)
				}
				if n := int(got[1].(float64)); n > 0 {
					t.Errorf("%s: the direction of %d texts reaches beyond them: %s", path, n, got[2])
				}
				if n := eval[int](b, `document.querySelectorAll('main :is(script, img, iframe, style)').length`); n > 0 {
					t.Errorf("%s: %d elements were made of text", path, n)
				}
				if over := eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
					t.Errorf("%s scrolls sideways by %d px", path, over)
				}
				if len(text) < 1000 {
					b.picture("hostile-" + strings.ReplaceAll(name, " ", "-") + "-" + fmt.Sprint(want))
				}
			}
			// A line that comes while the page is open.
			b.open("/tasks/" + idHostile)
			b.connected()
			b.hub.send(t, map[string]any{"type": "log", "rev": 1001, "task_id": idHostile, "lines": []string{text + " live"}})
			quoted, _ = json.Marshal(text + " live") // as JSON says it, without the detour of HTML
			b.until("the line", `document.querySelector('task-log li:last-child .line')?.textContent === `+string(quoted))
			// What a person typed and is shown again.
			if len(text) < 1000 {
				b.open("/tasks/create?hostname=" + url.QueryEscape(text) + "&ssh_keys=" + url.QueryEscape(text) + "&notes=" + url.QueryEscape(text))
				quoted, _ = json.Marshal(shown)
				if !eval[bool](b, `document.querySelector('#host').value === `+string(quoted)+` && document.querySelector('#keys').value === `+string(quoted)) {
					t.Error("the form does not keep what was typed")
				}
			}
		})
	}
}
