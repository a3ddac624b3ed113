package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/test/browser/tab"
)

// The ten steps of the founding document (§10.1) as a person does them. No page
// is loaded again by hand, and figures move without any being loaded.
func TestFoundingFlowInBrowser(t *testing.T) {
	tab.Chromium(t)
	// 1 to 3: etcd, the control plane, a regional client.
	s := newSite(t)
	r := s.newRegion("dc1", t.TempDir())
	s.online("dc1")

	// 4: http://localhost:PORT.
	b := tab.New(t, strings.Replace(s.url, "127.0.0.1", "localhost", 1))
	b.SignIn(s.api, "anna")
	b.Live()
	// A second person looks at the dashboard all the while.
	dashboard := tab.New(t, s.url)
	dashboard.SignIn(s.api, "ben")
	dashboard.Live()

	// 5: create the task.
	b.Click(".page-head a[href='/tasks/create']")
	b.Visible("#mac")
	b.Type("#mac", "02-4C-50-00-00-01")
	b.Click("input[name=region_id][value=dc1]")
	b.Click(`[data-mode="one"] [name="image"][value="` + s.image.Name() + `"]`)
	b.Type("#host", "web-01")
	b.Type("main #notes", "rack 7")
	b.Click("main form button[data-kind=primary]")
	b.Visible("button[value=create]") // the summary
	b.Click("button[value=create]")
	b.Visible(".track")
	id := strings.TrimPrefix(b.Path(), "/tasks/")
	if !lpmos.ValidTaskID(id) || !strings.Contains(b.Text("h1"), "web-01 waits for its machine") {
		t.Fatalf("after creating, the page is %s and says %q", b.Path(), b.Text("h1"))
	}
	b.Live()

	// 6: the machine.
	agent := s.agent(r, mac(1), 12*time.Second)

	// 7: the page and the dashboard follow by themselves.
	b.Until("task page asks for a decision", 60*time.Second, `document.querySelector('a[href$="/approve"]') !== null`)
	dashboard.Until("dashboard asks for a decision", 60*time.Second, `document.querySelector('.need[data-task="`+id+`"]') !== null`)

	// 8: look, and approve.
	b.Click(".banner a[href$='/approve']")
	b.Visible(".verdict")
	if text := b.Text("main"); !strings.Contains(text, "DEMODISK") || !strings.Contains(text, "rack 7") {
		t.Errorf("the approval page names neither disk nor note:\n%s", text)
	}
	b.Click("button[name=approved][value=true]")
	b.Visible(".page-head .status")
	b.Until("task page after approving", 60*time.Second, `location.pathname === '/tasks/`+id+`'`)

	// 9: progress grows, in one and the same document.
	b.Until("installing", 60*time.Second, `document.querySelector('.page-head .status').dataset.status === 'installing' && document.querySelector('[data-part=percent]') !== null`)
	tab.Eval[bool](b, `window.mark = true`)
	var seen []int
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		pct := tab.Eval[int](b, `window.mark ? parseInt(document.querySelector('[data-part=percent]').textContent) : -1`)
		if pct < 0 {
			break // loaded anew for the next status
		}
		if len(seen) == 0 || seen[len(seen)-1] != pct {
			seen = append(seen, pct)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if len(seen) < 5 || !slices.IsSorted(seen) {
		t.Errorf("the page showed %v %%; want many values, growing", seen)
	}
	t.Logf("the page showed %v %%", seen)

	// 10: completed.
	b.Until("completed", 60*time.Second, `document.querySelector('.page-head .status')?.dataset.status === 'completed'`)
	dashboard.Until("dashboard shows the end", 60*time.Second, `document.querySelector('.events li[data-status=completed]') !== null`)
	if text := b.Text("main"); !strings.Contains(text, "What the installed system said") {
		t.Errorf("the completed task's page has no receipt:\n%s", text)
	}
	if code := agent.wait(time.Minute); code != 0 {
		t.Errorf("agent ended with %d", code)
	}
	s.history(id)
}
