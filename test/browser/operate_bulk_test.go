package browser

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/test/browser/tab"
)

// several creates tasks that nobody's machine answers to.
func (w *world) several(n int, host string) (ids []string) {
	w.t.Helper()
	for i := range n {
		ids = append(ids, w.create(lpmos.Spec{RegionID: "dc1", TargetMAC: lpmos.MAC{0x52, 0x54, 0, 1, byte(len(host)), byte(i)}, OSType: "debian", OSVersion: "12", Hostname: fmt.Sprintf("%s-%d", host, i)}))
	}
	return ids
}

func (w *world) statuses(ids []string, want lpmos.Status) {
	w.t.Helper()
	for _, id := range ids {
		w.until(id, want)
	}
}

// Finding, selecting and changing several tasks, while others do too.
func TestTaskList(t *testing.T) {
	tab.Chromium(t)
	w := newWorld(t, "")
	w.publish("debian", "12", "Debian 12 (bookworm)", 1<<20)
	web, db := w.several(4, "web"), w.several(3, "db")
	b := tab.New(t, w.url)
	b.SignIn(w.api, "operator")
	b.Open("/dashboard")
	b.Live()
	b.Until("say what happened last", 10*time.Second, `document.querySelectorAll('recent-events li').length === 7`)
	b.Open("/tasks")
	b.Live()
	b.Type(`.filters [name="q"]`, "host:web status:pending\r")
	b.Until("find", 10*time.Second, `document.querySelectorAll('tr[data-task]').length === 4 && location.search.includes('host%3Aweb')`)
	b.Live()
	tab.Eval[bool](b, `window.mark = true`)

	// Somebody else creates one and cancels one: a line, and a row in place.
	extra := w.several(1, "web-extra")
	b.Until("the line", 20*time.Second, `document.querySelector('.waiting')?.textContent === '1 new task: show it'`)
	if _, err := w.api.Cancel(w.ctx, web[0], "not needed"); err != nil {
		t.Fatal(err)
	}
	b.Until("the row in place", 20*time.Second, `document.querySelector('tr[data-task="`+web[0]+`"] task-status').textContent === 'Canceled' && document.querySelector('tr[data-task="`+web[0]+`"] [data-part=summary]').textContent === 'before anything was erased'`)
	if n := tab.Eval[int](b, `window.mark ? document.querySelectorAll('tr[data-task]').length : 0`); n != 4 {
		t.Errorf("%d rows are shown; want the 4 that were there", n)
	}
	b.Click(".waiting button")
	b.Until("the new order", 10*time.Second, `document.querySelectorAll('tr[data-task]').length === 4 && document.querySelector('tr[data-task="`+extra[0]+`"] [data-part=host]').textContent === 'web-extra-0' && document.querySelector('.waiting').textContent === ''`)

	b.Click(`thead [name="all"]`)
	b.Until("count", 10*time.Second, `document.querySelector('.bulk [value=cancel]').textContent === 'Cancel 4…'`)
	b.Click(`.bulk [value="cancel"]`)
	b.Visible(".bulk-form")
	b.Allow = append(b.Allow, "400 (Bad Request)")
	b.Type("#count", "3")
	b.Click(".bulk-form button[data-kind=danger]")
	b.Visible("#summary")
	for _, id := range extra {
		w.until(id, lpmos.Pending)
	}
	tab.Eval[bool](b, `(document.querySelector('#count').value = '', true)`)
	b.Type("#count", "4")
	b.Type("#reason", "moved to another rack")
	b.Click(".bulk-form button[data-kind=danger]")
	b.Visible("[data-outcome=done]")
	if h1 := b.Text("h1"); h1 != "4 tasks were canceled" {
		t.Errorf("the page says %q", h1)
	}
	w.statuses(append(web, extra...), lpmos.Canceled)
	w.statuses(db, lpmos.Pending)
}

// The same without scripts: boxes, buttons and pages.
func TestTaskListWithoutScripts(t *testing.T) {
	tab.Chromium(t)
	w := newWorld(t, "")
	w.publish("debian", "12", "Debian 12 (bookworm)", 1<<20)
	ids := w.several(5, "web")
	b := tab.New(t, w.url)
	b.SignIn(w.api, "operator")
	b.ScriptsOff()
	b.Open("/tasks?sort=host")
	for _, id := range ids[:3] {
		b.Click(`[name="task"][value="` + id + `"]`)
	}
	b.Visible(`.bulk [value="cancel"]`)
	b.Click(`.bulk [value="cancel"]`)
	b.Visible(".bulk-form")
	b.Type("#count", "3")
	b.Click(".bulk-form button[data-kind=danger]")
	b.Visible("[data-outcome=done]")
	w.statuses(ids[:3], lpmos.Canceled)
	w.statuses(ids[3:], lpmos.Pending)

	b.Open("/tasks?q=status%3Acanceled")
	b.Click(`[name="all"]`)
	b.Visible(`.bulk [value="delete"]`)
	b.Click(`.bulk [value="delete"]`)
	b.Visible(".bulk-form")
	if !strings.Contains(b.Text("h1"), "Delete 3 tasks") {
		t.Errorf("the page asks %q", b.Text("h1"))
	}
	b.Type("#count", "3")
	b.Click(".bulk-form button[data-kind=danger]")
	b.Visible("[data-outcome=done]")
	w.wait("the tasks to be gone", func() bool {
		_, err := w.api.Task(w.ctx, ids[0])
		return err != nil
	})
	b.Open("/tasks")
	if text := b.Text(".panel-foot"); !strings.HasPrefix(text, "Showing 2 of 2") {
		t.Errorf("the list says %q", text)
	}
}
