package web

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/lpmos/lpmos"
)

// sent is the form of a page as a browser would send it, with what was typed.
func sent(body string, typed url.Values) url.Values {
	form := url.Values{}
	for _, m := range hidden.FindAllStringSubmatch(body, -1) {
		form.Set(m[1], html.UnescapeString(m[2]))
	}
	for name, v := range typed {
		form[name] = v
	}
	return form
}

func TestBulk(t *testing.T) {
	some := url.Values{"task": {idPending, idBlank, idInstalling, idFailed, idCompleted, idPending, "nonsense"}}
	with := func(action string) url.Values { return sent("", url.Values{"task": some["task"], "action": {action}}) }
	t.Run("shows what would become of each and changes nothing", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		rev := s.Rev()
		for action, want := range map[string][]string{
			"cancel": {"Cancel 2 tasks?", "stop before anything is erased", "erasing has begun", "they have ended already", "5 tasks are selected"},
			"retry":  {"Retry 1 task?", "written already", "still running", "only failed tasks can be retried"},
			"reject": {"Reject 1 plan?", "no decision is asked for"},
			"delete": {"Delete 2 tasks and their history?", "Cancel them first"},
		} {
			res, body := post(t, h, "/tasks/bulk", with(action))
			checkMarkup(t, body)
			plain := html.UnescapeString(body)
			for _, text := range want {
				if res.StatusCode != 200 || !strings.Contains(plain, text) {
					t.Errorf("%s: %d, and the page does not say %q", action, res.StatusCode, text)
				}
			}
		}
		if s.Rev() != rev {
			t.Error("looking changed a task")
		}
	})
	t.Run("wants the number typed, then does it task by task", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		_, page := post(t, h, "/tasks/bulk", with("cancel"))
		for _, typed := range []string{"", "3", "two", "2 tasks"} {
			res, body := post(t, h, "/tasks/bulk/run", sent(page, url.Values{"count": {typed}, "reason": {"moved"}}))
			if res.StatusCode != 400 || !strings.Contains(body, "#f-count") || !strings.Contains(body, ">moved</textarea>") || s.tasks[idPending].Status != lpmos.Pending {
				t.Errorf("typed %q: %d, %s", typed, res.StatusCode, s.tasks[idPending].Status)
			}
			checkMarkup(t, body)
		}
		res, body := post(t, h, "/tasks/bulk/run", sent(page, url.Values{"count": {" 2 "}, "reason": {"moved"}}))
		checkMarkup(t, body)
		if res.StatusCode != 200 || !strings.Contains(body, "2 tasks were canceled") || s.tasks[idPending].Status != lpmos.Canceled || s.tasks[idBlank].Status != lpmos.Canceled || s.tasks[idInstalling].Status != lpmos.Installing {
			t.Errorf("run = %d; tasks are %s, %s, %s", res.StatusCode, s.tasks[idPending].Status, s.tasks[idBlank].Status, s.tasks[idInstalling].Status)
		}
		// The same form again: none of them is left to do.
		if res, body := post(t, h, "/tasks/bulk/run", sent(page, url.Values{"count": {"2"}})); res.StatusCode != 409 || !strings.Contains(body, "None of the selected tasks can be canceled") {
			t.Errorf("again = %d; want 409", res.StatusCode)
		}
	})
	t.Run("rejects only with a reason", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		form := url.Values{"action": {"reject"}, "ids": {idBlank + "," + idData}, "count": {"2"}}
		if res, body := post(t, h, "/tasks/bulk/run", form); res.StatusCode != 400 || !strings.Contains(body, "#f-reason") {
			t.Errorf("without a reason = %d", res.StatusCode)
		}
		form.Set("reason", "wrong rack")
		if res, _ := post(t, h, "/tasks/bulk/run", form); res.StatusCode != 200 || s.tasks[idData].Status != lpmos.Rejected || s.tasks[idData].Approval.Notes != "wrong rack" {
			t.Errorf("with one = %d, %s", res.StatusCode, s.tasks[idData].Status)
		}
	})
	t.Run("says of each what went wrong and offers to try those again", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		s.fail = errors.New("disk full")
		res, body := post(t, h, "/tasks/bulk/run", url.Values{"action": {"retry"}, "ids": {idFailed + "," + idCompleted}})
		plain := html.UnescapeString(body)
		if res.StatusCode != 200 || !strings.Contains(plain, "0 tasks begin again, 1 not") || !strings.Contains(plain, "the cause is in its log") || strings.Contains(plain, "disk full") {
			t.Errorf("run = %d %s", res.StatusCode, plain)
		}
		s.fail = nil
		_, again := post(t, h, "/tasks/bulk", sent(body, nil))
		if form := sent(again, nil); form.Get("ids") != idFailed || form.Get("action") != "retry" {
			t.Errorf("trying again sends %v", form)
		}
		if res, body := post(t, h, "/tasks/bulk/run", sent(again, nil)); res.StatusCode != 200 || !strings.Contains(body, "1 task begins again") || s.tasks[idFailed].Status != lpmos.Pending {
			t.Errorf("again = %d, %s", res.StatusCode, s.tasks[idFailed].Status)
		}
	})
	t.Run("takes all that match, up to a bound", func(t *testing.T) {
		s := newSite(t, testNow)
		s.addMany(bulkMost + 7)
		h := signedIn(newTestWeb(t, s))
		res, body := post(t, h, "/tasks/bulk", url.Values{"action": {"cancel"}, "all": {"1"}, "q": {"many-"}, "task": {idBlank}})
		if res.StatusCode != 200 || !strings.Contains(body, "Cancel 1,000 tasks?") || !strings.Contains(body, "7 more tasks match and stay as they are") {
			t.Errorf("all = %d", res.StatusCode)
		}
		res, body = post(t, h, "/tasks/bulk/run", sent(body, url.Values{"count": {"1000"}}))
		if res.StatusCode != 200 || !strings.Contains(body, "1,000 tasks were canceled") || s.Counts()[lpmos.Canceled] != 1001 {
			t.Errorf("run = %d, %d are canceled", res.StatusCode, s.Counts()[lpmos.Canceled])
		}
	})
	t.Run("leads to the plans instead of approving", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		for _, c := range []struct {
			tasks []string
			code  int
			to    string
		}{
			{[]string{idPending, idBlank, idFailed, idData}, 303, "/tasks/approve?ids=" + idBlank + "," + idData + "," + idPending + "," + idFailed},
			{[]string{idPending, idBlank}, 303, "/tasks/approve?ids=" + idBlank + "," + idPending},
			{[]string{idBlank}, 303, "/tasks/" + idBlank + "/approve"},
			{[]string{idPending}, 409, ""},
		} {
			res, _ := post(t, h, "/tasks/bulk", url.Values{"action": {"approve"}, "task": c.tasks})
			if res.StatusCode != c.code || res.Header.Get("Location") != c.to {
				t.Errorf("approve %d = %d %q; want %d %q", len(c.tasks), res.StatusCode, res.Header.Get("Location"), c.code, c.to)
			}
		}
		if res, _ := post(t, h, "/tasks/bulk/run", url.Values{"action": {"approve"}, "ids": {idBlank}}); res.StatusCode != 400 || s.tasks[idBlank].Status != lpmos.AwaitingApproval {
			t.Errorf("approving without a page = %d, %s", res.StatusCode, s.tasks[idBlank].Status)
		}
	})
	t.Run("leads to plans that say who is left out, and how many are not there", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		follow := func(form url.Values) (to, plain string) {
			t.Helper()
			form.Set("action", "approve")
			res, _ := post(t, h, "/tasks/bulk", form)
			to = res.Header.Get("Location")
			res, body := get(t, h, to)
			if res.StatusCode != 200 {
				t.Fatalf("%.80s = %d", to, res.StatusCode)
			}
			checkMarkup(t, body)
			return to, html.UnescapeString(body)
		}
		_, plain := follow(url.Values{"task": {idPending, idBlank, idFailed, idData}})
		for _, want := range []string{"Erase a disk on each of 2 machines?", "2 machines are left out", "app-118</a>: <bdi>It does not wait for a decision: it is pending.", "web-031</a>: <bdi>It does not wait for a decision: it is failed."} {
			if !strings.Contains(plain, want) {
				t.Errorf("the page of plans does not say %q", want)
			}
		}
		// More than a page decides, and more than are changed at once.
		some := s.addAlike(bulkMost + 29)
		to, plain := follow(url.Values{"task": append([]string{idPending}, some[:300]...)})
		if !strings.Contains(plain, "Erase a disk on each of 200 machines?") || !strings.Contains(plain, "101 more machines are not on this page") || len(carried(plain)["listed"]) != 200 {
			t.Errorf("of 301 the page lists %d, and does not say that 101 are not there", len(carried(plain)["listed"]))
		}
		// The server takes a header of 16 KiB, cookies and all.
		if len(to) > 8<<10 {
			t.Errorf("the address has %d bytes", len(to))
		}
		if _, plain := follow(url.Values{"all": {"1"}, "q": {"rack-"}}); !strings.Contains(plain, "830 more machines are not on this page") {
			t.Error("of all 1,030 that match the page does not say that 830 are not there")
		}
		if _, body := get(t, h, "/tasks/approve?more=-3&ids="+idBlank); strings.Contains(body, "not on this page") {
			t.Error("less than none is not on the page")
		}
	})
	t.Run("refuses a selection of nothing and an action that is none", func(t *testing.T) {
		h := signedIn(newTestWeb(t, newSite(t, testNow)))
		for _, form := range []url.Values{{"action": {"cancel"}}, {"action": {"explode"}, "task": {idBlank}}, {"action": {"delete"}, "all": {"1"}, "q": {"colour:red"}}} {
			if res, body := post(t, h, "/tasks/bulk", form); res.StatusCode != 400 {
				t.Errorf("%v = %d; want 400", form, res.StatusCode)
			} else {
				checkMarkup(t, body)
			}
		}
	})
	t.Run("counts what each action would change", func(t *testing.T) {
		h := signedIn(newTestWeb(t, newSite(t, testNow)))
		_, body := post(t, h, "/tasks/bulk/counts", url.Values{"ids": {strings.Join([]string{idPending, idBlank, idStuck, idFailed}, ",")}})
		var got struct {
			Counts            map[string]int
			Selected, Regions int
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil || got.Selected != 4 || got.Regions != 2 || got.Counts["cancel"] != 2 || got.Counts["approve"] != 1 || got.Counts["retry"] != 1 || got.Counts["delete"] != 1 {
			t.Errorf("counts = %s, %v", body, err)
		}
	})
}

func TestTaskOrderAndRows(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	res, body := get(t, h, "/tasks/order?q=status%3Apending,failed&sort=host")
	if res.StatusCode != 200 || len(body) != 3*16 || res.Header.Get("Lpmos-Total") != "3" {
		t.Fatalf("order = %d with %d bytes, total %s", res.StatusCode, len(body), res.Header.Get("Lpmos-Total"))
	}
	if res, body := get(t, h, "/tasks/order?q=colour:red"); res.StatusCode != 400 || !strings.Contains(body, "unknown key") {
		t.Errorf("order of a query that cannot be read = %d %q", res.StatusCode, body)
	}
	rows := func(query string) (out struct {
		Rev  int64
		Rows []rowJSON
	}) {
		t.Helper()
		r := httptest.NewRequest("GET", "/tasks/rows?"+query, nil)
		r.Header.Set("Accept-Language", "zh-CN")
		res, body := send(t, h, r)
		if err := json.Unmarshal([]byte(body), &out); err != nil || res.StatusCode != 200 {
			t.Fatalf("rows = %d %s", res.StatusCode, body)
		}
		return out
	}
	got := rows("ids=" + idFailed + "," + taskID(15) + "," + idInstalling)
	if len(got.Rows) != 2 || got.Rows[0].Word != "失败" || got.Rows[1].Run == nil || got.Rows[1].Run.Percent != 48 || got.Rows[1].Run.Stage != "2/4 下载" {
		t.Errorf("rows = %+v", got.Rows)
	}
	if got := rows("q=status%3Afailed&ids=" + idFailed + "," + idInstalling); len(got.Rows) != 1 || got.Rows[0].ID != idFailed {
		t.Errorf("rows that match = %+v", got.Rows)
	}
	for _, query := range []string{"", "ids=", "ids=x", "ids=" + strings.Repeat(idFailed+",", 101), "q=colour:red&ids=" + idFailed} {
		if res, _ := get(t, h, "/tasks/rows?"+query); res.StatusCode != 400 {
			t.Errorf("rows?%.40s = %d; want 400", query, res.StatusCode)
		}
	}
}

func TestTaskListQuery(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	for path, want := range map[string][]string{
		"/tasks?status=failed&region_id=bj-1":    {`value="status:failed region:bj-1"`, `lpmos task list -q &#39;status:failed region:bj-1&#39;`},
		"/tasks?q=status%3Afailed":               {`href="/tasks?q=status%3Afailed" aria-current="page"`},
		"/tasks?sort=-host":                      {`aria-sort="descending"`, `href="/tasks?sort=host"`},
		"/tasks?q=colour%3Ared":                  {`aria-invalid="true"`, `unknown key &#34;colour&#34;`, "region, host, mac"},
		"/tasks?q=" + url.QueryEscape(`it's "a`): {"quotation mark that is not closed", `-q &#39;it&#39;\&#39;&#39;s &#34;a&#39;`},
		"/tasks?q=nothing":                       {"No task matches"},
		"/tasks?sort=colour":                     {"app-118"},
	} {
		_, body := get(t, h, path)
		for _, text := range want {
			if !strings.Contains(body, text) {
				t.Errorf("%s does not hold %s", path, text)
			}
		}
	}
}

func TestServiceWorker(t *testing.T) {
	w := newTestWeb(t, newSite(t, testNow))
	res, body := get(t, signedIn(w), "/sw.js")
	if res.StatusCode != 200 || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/javascript") || res.Header.Get("Cache-Control") != "no-cache" {
		t.Errorf("/sw.js = %d %v", res.StatusCode, res.Header)
	}
	for _, want := range []string{`const DIR = "` + w.static.dir + `"`, `"js/app.js"`, `"app.css"`} {
		if !strings.Contains(body, want) {
			t.Errorf("the worker does not hold %s", want)
		}
	}
	if strings.Contains(body, `"sw.js"`) {
		t.Error("the worker keeps itself")
	}
}

// X01: a form that selects nothing, or what is not there, changes nothing, and
// never means all.
func TestNoSelectionIsNotAll(t *testing.T) {
	for name, form := range map[string]url.Values{
		"no selection": {}, "an empty one": {"task": {""}, "ids": {""}}, "an unknown task": {"task": {taskID(99)}, "ids": {taskID(99)}},
		"what is no id": {"task": {"*", "all", "%"}, "ids": {"*"}}, "all without saying of what": {"all": {""}},
	} {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		rev := s.Rev()
		for _, action := range []string{"approve", "cancel", "reject", "retry", "delete"} {
			for _, path := range []string{"/tasks/bulk", "/tasks/bulk/run", "/tasks/approve"} {
				f := url.Values{"action": {action}, "approved": {"true"}, "reason": {"x"}, "count": {"0"}}
				for k, v := range form {
					f[k] = v
				}
				if res, _ := post(t, h, path, f); res.StatusCode < 400 && path != "/tasks/bulk/run" {
					t.Errorf("%s %s with %s = %d; want a refusal", path, action, name, res.StatusCode)
				}
			}
		}
		if s.Rev() != rev {
			t.Errorf("%s changed a task", name)
		}
	}
}
