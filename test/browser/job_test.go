package browser

import (
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/test/browser/tab"
)

// The whole job, with scripts: create, follow, look, approve, follow, done.
func TestJob(t *testing.T) {
	tab.Chromium(t)
	w := newWorld(t, "")
	img := w.publish("debian", "12", "Debian 12 (bookworm)", 32<<20)
	mac := lpmos.MustMAC("b0:7b:25:c4:1a:10")
	b := tab.New(t, w.url)
	b.SignIn(w.api, "operator")
	b.Open("/")
	b.Live()
	b.Open("/tasks/create")
	b.Type("#mac", "B07B.25C4.1A10")
	b.Click("input[value=dc1]")
	b.Click(`[data-mode="one"] [name="image"][value="` + img.Name() + `"]`)
	b.Type("#host", "db-07")
	b.Click("main form button[data-kind=primary]")
	b.Visible("button[value=create]") // the summary
	b.Click("button[value=create]")
	b.Visible(".track")
	id := strings.TrimPrefix(b.Path(), "/tasks/")
	b.Live()

	hw := server(mac, "7GXK2M3")
	w.power(mac, 8*time.Second, hw)
	b.Until("ask for a decision", 20*time.Second, `document.querySelector('a[href$="/approve"]') !== null`)
	b.Open("/tasks/" + id + "/approve")
	task := w.until(id, lpmos.AwaitingApproval)
	target := task.Plan.Effect.Target
	if disk, err := hw.Disk(target); err != nil || disk.SizeBytes != hw.Disks[0].SizeBytes {
		t.Fatalf("the plan's disk is %s, %v; want one of the small ones", target, err)
	}
	for _, want := range []string{"7GXK2M3", target.Serial, "PowerEdge R650", "b0:7b:25:c4:1a:10"} {
		if !strings.Contains(b.Text("main"), want) {
			t.Errorf("the approval page does not name %s", want)
		}
	}
	if tab.Eval[bool](b, `document.querySelector('#sn4') !== null`) {
		b.Type("#sn4", target.Serial[len(target.Serial)-4:])
	}
	b.Click("button[name=approved][value=true]")
	b.Until("installing", 20*time.Second, `document.querySelector('.page-head .status')?.dataset.status === 'installing' && document.querySelector('[data-part=percent]') !== null`)
	tab.Eval[bool](b, `window.mark = true`)
	b.Until("figures move", 20*time.Second, `window.mark && parseInt(document.querySelector('[data-part=percent]').textContent) > 30`)
	b.Until("log grows", 20*time.Second, `document.querySelector('task-log ol').children.length > 3`)
	b.Until("completed", 30*time.Second, `document.querySelector('.page-head .status')?.dataset.status === 'completed'`)
	w.completed(id)
}

// The same without scripts: pages are loaded by hand, and nothing else differs.
func TestJobWithoutScripts(t *testing.T) {
	tab.Chromium(t)
	w := newWorld(t, "")
	img := w.publish("debian", "12", "Debian 12 (bookworm)", 4<<20)
	mac := lpmos.MustMAC("b0:7b:25:c4:1a:20")
	b := tab.New(t, w.url)
	b.SignIn(w.api, "operator")
	b.ScriptsOff()
	b.Open("/")
	b.Click(".page-head a[href='/tasks/create']")
	b.Visible("#mac")
	b.Type("#mac", mac.String())
	b.Click("input[value=dc1]")
	b.Click(`[data-mode="one"] [name="image"][value="` + img.Name() + `"]`)
	b.Click("main form button[data-kind=primary]")
	b.Visible("button[value=create]") // the summary
	b.Click("button[value=create]")
	b.Visible(".track")
	page := b.Path()
	id := strings.TrimPrefix(page, "/tasks/")
	hw := server(mac, "7GXK2M4")
	hw.Disks = hw.Disks[:1] // the only one, with the old system
	w.power(mac, 2*time.Second, hw)
	w.until(id, lpmos.AwaitingApproval)
	b.Open(page)
	b.Click(".banner a[href$='/approve']")
	b.Visible("#sn4")
	// A wrong guess approves nothing.
	b.Allow = []string{"400 (Bad Request)", "409 (Conflict)", "422 (Unprocessable"}
	b.Type("#sn4", "0000")
	b.Click("button[name=approved][value=true]")
	b.Visible("#summary")
	if got := w.until(id, lpmos.AwaitingApproval, lpmos.Approved, lpmos.Installing); got.Status != lpmos.AwaitingApproval {
		t.Fatalf("with wrong characters the task is %s", got.Status)
	}
	b.Open(page + "/approve")
	serial := hw.Disks[0].Serial
	b.Type("#sn4", serial[len(serial)-4:])
	b.Click("button[name=approved][value=true]")
	b.Visible(".track")
	w.completed(id)
	b.Open(page)
	if got := b.Text(".page-head .status"); got != "Completed" {
		t.Errorf("the page says %q", got)
	}
}

// A first-time user of the lab opens the link from the terminal. They are at the
// task's page, signed in, and two clicks from the approval, as they were when
// nobody had to sign in. The link is good once.
func TestFirstTimeUser(t *testing.T) {
	tab.Chromium(t)
	w := newWorld(t, "lab")
	w.publish("tiny", "1", "Tiny", 4<<20)
	mac := lpmos.MustMAC("b0:7b:25:c4:1a:40")
	id := w.create(lpmos.Spec{RegionID: "dc1", TargetMAC: mac, OSType: "tiny", OSVersion: "1", Hostname: "lab-01"})
	blank := server(mac, "7GXK2M6")
	blank.Disks = blank.Disks[1:2]
	b := tab.New(t, w.url)
	link := strings.TrimPrefix(w.site.ControlPlane.SignInLink(), w.url) + "&return=/tasks/" + id
	b.Open(link)
	b.Until("be signed in, at the task's page", 20*time.Second, `location.pathname === '/tasks/`+id+`' && document.querySelector('.person')?.textContent.includes('admin')`)
	b.Live()
	w.power(mac, time.Second, blank)
	const review = ".banner a[href$='/approve']"
	b.Until("ask for a decision", 20*time.Second, `document.querySelector("`+review+`") !== null`)
	b.Click(review)
	b.Until("open the plan", 20*time.Second, `location.pathname.endsWith('/approve') && document.readyState === 'complete'`)
	b.Click("button[name=approved][value=true]")
	w.completed(id)
	if b.Hands != 2 {
		t.Errorf("from the link to the approval something was clicked or typed into %d times; want 2", b.Hands)
	}
	again := tab.New(t, w.url)
	again.Allow = []string{"401 (Unauthorized)", "403 (Forbidden)"}
	again.Open(link)
	again.Until("be asked who it is", 20*time.Second, `location.pathname === '/login' && document.querySelector('#p') !== null`)
}

// While a person reads, the machine comes back with another disk content. What
// was read can no longer be approved.
func TestStaleApproval(t *testing.T) {
	tab.Chromium(t)
	w := newWorld(t, "")
	w.publish("debian", "12", "Debian 12 (bookworm)", 4<<20)
	mac := lpmos.MustMAC("b0:7b:25:c4:1a:30")
	id := w.create(lpmos.Spec{RegionID: "dc1", TargetMAC: mac, OSType: "debian", OSVersion: "12", Hostname: "db-08"})
	blank := server(mac, "7GXK2M5")
	blank.Disks = blank.Disks[:1]
	full := server(mac, "7GXK2M5")
	full.Disks = full.Disks[:1]
	blank.Disks[0].Content = lpmos.Content{}
	off := w.power(mac, 2*time.Second, blank)
	w.until(id, lpmos.AwaitingApproval)
	b := tab.New(t, w.url)
	b.SignIn(w.api, "operator")
	b.Allow = []string{"409 (Conflict)"}
	b.Open("/tasks/" + id + "/approve")
	b.Live()
	b.Type("#notes", "as agreed")
	off()
	w.power(mac, 2*time.Second, full)
	b.Until("say that it changed", 30*time.Second, `document.querySelector('page-changed') !== null && !document.querySelector('page-changed').hidden && document.querySelector('#notes').value === 'as agreed'`)
	b.Click("button[name=approved][value=true]")
	b.Until("the refusal", 20*time.Second, `document.querySelector('h1')?.textContent.startsWith('Nothing was approved')`)
	if task := w.until(id, lpmos.AwaitingApproval, lpmos.Approved, lpmos.Installing); task.Status != lpmos.AwaitingApproval || task.Approval != nil {
		t.Fatalf("the task is %s with %+v; want nothing approved", task.Status, task.Approval)
	}
	b.Click("form button[data-kind=primary]")
	b.Until("the new plan with the old notes", 20*time.Second, `document.querySelector('#notes')?.value === 'as agreed' && document.querySelector('.verdict').textContent.includes('CentOS')`)
	serial := full.Disks[0].Serial
	b.Type("#sn4", serial[len(serial)-4:])
	b.Click("button[name=approved][value=true]")
	b.Visible(".track")
	w.completed(id)
}
