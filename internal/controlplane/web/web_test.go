package web

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/html"

	"github.com/lpmos/lpmos"
)

func get(t testing.TB, h http.Handler, path string) (*http.Response, string) {
	t.Helper()
	return send(t, h, httptest.NewRequest("GET", path, nil))
}

func post(t testing.TB, h http.Handler, path string, form url.Values) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest("POST", path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return send(t, h, r)
}

// inChinese asks h in Chinese.
func inChinese(h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		r.Header.Set("Accept-Language", "zh-CN")
		h.ServeHTTP(rw, r)
	})
}

func send(t testing.TB, h http.Handler, r *http.Request) (*http.Response, string) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	b, err := io.ReadAll(rec.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return rec.Result(), string(b)
}

// every page there is, with the status it answers.
func everyPage(s *fakeSite) map[string]int {
	pages := map[string]int{
		"/dashboard": 200, "/tasks": 200, "/tasks?status=failed&q=web&region_id=bj-1": 200, "/tasks?q=" + url.QueryEscape(hostile): 400, "/tasks?q=" + url.QueryEscape("<script>alert(1)</script>"): 200, "/tasks?sort=-host": 200,
		"/tasks/create": 200, "/tasks/create?hostname=" + url.QueryEscape(hostile): 200, "/regions": 200,
		"/tasks/create?mode=many": 200, "/tasks/create?mode=many&fill=discovered": 200, "/tasks/create?target_mac=7c:c2:55:10:92:01": 200,
		"/tasks/approve": 200, "/tasks/approve?like=" + idBlank: 200, "/tasks/approve?ids=" + idBlank + "," + idData + "," + idCompleted + ",x": 200, "/batches/" + taskID(15): 404, "/batches/x": 404,
		"/tasks/" + idInstalling + "?log=chunk": 200, "/tasks/" + idInstalling + "?log=" + url.QueryEscape(hostile): 200,
		"/machines": 200, "/machines?state=failed&region_id=bj-1&q=" + url.QueryEscape(hostile): 200, "/machines/7c:c2:55:10:99:07": 200, "/machines/" + url.PathEscape(hostile): 404,
		"/images": 200, "/stop": 200, "/profiles": 200, "/profiles/db": 200, "/profiles/" + url.PathEscape(hostile): 404,
		"/templates": 200, "/templates/base": 200, "/templates/base?task=" + url.QueryEscape(hostile): 200, "/templates/base?task=" + idBlank: 200, "/templates/none": 404,
		"/nothing/" + url.PathEscape(hostile): 404, "/tasks/" + taskID(15): 404, "/tasks/x": 404,
	}
	for id, t := range s.tasks {
		pages["/tasks/"+id] = 200
		pages["/machines/"+t.TargetMAC.String()] = 200
		pages["/tasks/"+id+"/approve"] = 303
		if t.Status == lpmos.AwaitingApproval {
			pages["/tasks/"+id+"/approve"] = 200
		}
	}
	return pages
}

func TestPages(t *testing.T) {
	s := newSite(t, testNow)
	s.addHostile()
	h := signedIn(newTestWeb(t, s))
	for path, status := range everyPage(s) {
		t.Run(path, func(t *testing.T) {
			res, body := get(t, h, path)
			if res.StatusCode != status {
				t.Fatalf("GET %s = %d; want %d", path, res.StatusCode, status)
			}
			if status == 303 {
				return
			}
			checkMarkup(t, body)
			if res.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("Cache-Control = %q; want no-store", res.Header.Get("Cache-Control"))
			}
		})
	}
}

// checkMarkup refuses what the policy would block and what is not well formed:
// inline scripts, styles and handlers, markup out of data, ids given twice,
// labels and descriptions that point nowhere, links that lead nowhere.
func checkMarkup(t *testing.T, body string) {
	t.Helper()
	if strings.Contains(body, "<script>alert") || strings.Contains(body, "<img") {
		t.Error("a string from outside became markup")
	}
	if strings.Contains(body, "ZgotmplZ") {
		t.Error("a value stands where the template engine cannot make it safe")
	}
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	ids, refs := map[string]bool{}, map[string]string{}
	headings := 0
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		if n.Data == "h1" {
			headings++
		}
		if n.Data == "script" && n.FirstChild != nil || n.Data == "style" {
			t.Errorf("inline <%s>", n.Data)
		}
		for _, a := range n.Attr {
			switch {
			case strings.HasPrefix(a.Key, "on") || a.Key == "style":
				t.Errorf("<%s> has the attribute %s", n.Data, a.Key)
			case a.Key == "id":
				if ids[a.Val] {
					t.Errorf("id %q is given twice", a.Val)
				}
				ids[a.Val] = true
			case a.Key == "for" || a.Key == "aria-labelledby":
				refs[a.Val] = a.Key
			case a.Key == "aria-describedby":
				for id := range strings.FieldsSeq(a.Val) {
					refs[id] = a.Key
				}
			case a.Key == "href" && n.Data == "a":
				if a.Val == "#" || a.Val == "" || strings.HasPrefix(strings.ToLower(a.Val), "javascript:") {
					t.Errorf("a link leads to %q", a.Val)
				}
			}
		}
	}
	for id, key := range refs {
		if !ids[id] {
			t.Errorf("%s=%q points at nothing", key, id)
		}
	}
	if headings != 1 {
		t.Errorf("%d h1 on the page; want 1", headings)
	}
}

func TestLinksLeadToPages(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	link := regexp.MustCompile(` (?:href|src|action)="(/[^"#]*)`)
	seen := map[string]bool{}
	for path := range everyPage(s) {
		_, body := get(t, h, path)
		for _, m := range link.FindAllStringSubmatch(body, -1) {
			to := html.UnescapeString(m[1])
			if seen[to] || strings.HasPrefix(to, "/api/") {
				continue
			}
			seen[to] = true
			if res, _ := get(t, h, to); res.StatusCode >= 400 && res.StatusCode != 405 {
				t.Errorf("%s refers to %s, which answers %d", path, to, res.StatusCode)
			}
		}
	}
	if len(seen) < 40 {
		t.Errorf("only %d links were followed", len(seen))
	}
}

func TestTaskPageSaysWhatMayBeDone(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	for id, want := range map[string][]string{
		idPending:    {"waits for its machine to boot", "Not now: the machine has not reported its hardware yet.", "Cancel this task…"},
		idData:       {"waits for a decision", "Review and decide", "CentOS Linux 7.9 of host old-db-07", "412\u00a0GB in use"},
		idInstalling: {"is downloading its image", "48\u00a0%", "31\u00a0MB/s", "Not now: erasing has begun", "Not now: only ended tasks can be deleted."},
		idStuck:      {"as of", "unknown"},
		idFailed:     {"failed in stage 3 of 4, installing", "Disk S64GNE0R903417 (960 GB) refused a write.", "Replace the disk", "input/output error", "Retry as attempt 2", "is erased and may not boot"},
		idCompleted:  {"runs <bdi>Ubuntu 24.04</bdi>", "Ubuntu 24.04.3 LTS", "Not now: only failed tasks can be retried"},
		idRejected:   {"was rejected", "wrong rack", "Not now: chen.yu rejected it at ", `data-label="In this plan"`},
		idCanceled:   {"was canceled", "21 Nov 2026", "The machine wrote nothing."},
		idProblem:    {"cannot be installed as asked", "Every disk is too small"},
	} {
		_, body := get(t, h, "/tasks/"+id)
		body = html.UnescapeString(body)
		for _, text := range want {
			if !strings.Contains(body, text) {
				t.Errorf("page of %s does not say %q", s.tasks[id].Hostname, text)
			}
		}
	}
}

func TestHeaders(t *testing.T) {
	h := signedIn(newTestWeb(t, newSite(t, testNow)))
	for _, path := range []string{"/dashboard", "/no-such-page", "/static/x/app.css"} {
		res, _ := get(t, h, path)
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types lpmos",
			"X-Content-Type-Options":  "nosniff", "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%s: %s = %q; want %q", path, name, got, want)
			}
		}
		if res.Header.Get("Permissions-Policy") == "" {
			t.Errorf("%s: no Permissions-Policy", path)
		}
	}
}

func TestStaticFiles(t *testing.T) {
	w := newTestWeb(t, newSite(t, testNow))
	h := signedIn(w)
	for name, kind := range map[string]string{"app.css": "text/css; charset=utf-8", "js/app.js": "text/javascript; charset=utf-8", "icons.svg": "image/svg+xml"} {
		res, body := get(t, h, w.static.dir+"/"+name)
		if res.StatusCode != 200 || res.Header.Get("Content-Type") != kind || !strings.Contains(res.Header.Get("Cache-Control"), "immutable") || body == "" {
			t.Errorf("%s = %d %q %q", name, res.StatusCode, res.Header.Get("Content-Type"), res.Header.Get("Cache-Control"))
		}
	}
	for _, path := range []string{"/static/000000000000/app.css", w.static.dir + "/none.css", w.static.dir + "/../web.go"} {
		if res, _ := get(t, h, path); res.StatusCode == 200 {
			t.Errorf("%s = 200", path)
		}
	}
}

// The policy forbids making markup from text; this finds it before a browser
// does.
func TestScriptsMakeNoMarkupFromText(t *testing.T) {
	sink := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|\beval\(|new Function|trustedTypes|\.style\b`)
	n := 0
	err := fs.WalkDir(staticFiles, "static/js", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		b, err := staticFiles.ReadFile(name)
		if path.Base(name) == "worker.js" {
			b = bytes.Replace(b, []byte("trustedTypes?.createPolicy('lpmos'"), nil, 1)
		}
		if m := sink.Find(b); m != nil {
			t.Errorf("%s uses %s", name, m)
		}
		return err
	})
	if err != nil || n < 15 {
		t.Fatalf("%d scripts read, error %v", n, err)
	}
}

// Who asked their system for less motion gets none: the style sheet has a rule
// for whatever moves by itself, and no script moves anything.
func TestNothingMovesForWhoWantsNoMotion(t *testing.T) {
	css, err := staticFiles.ReadFile("static/app.css")
	if err != nil {
		t.Fatal(err)
	}
	still := regexp.MustCompile(`@media \(prefers-reduced-motion: reduce\) \{\s*\*, \*::before, \*::after \{ animation: none !important; transition: none !important; \}`)
	if !still.Match(css) {
		t.Error("app.css does not stop animations and transitions for prefers-reduced-motion")
	}
	moves := regexp.MustCompile(`behavior: ['"]smooth|\.animate\(|startViewTransition|scroll-behavior|@view-transition`)
	err = fs.WalkDir(staticFiles, "static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := staticFiles.ReadFile(name)
		if m := moves.Find(b); m != nil {
			t.Errorf("%s moves things with %q, which the rule does not stop", name, m)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRoutes(t *testing.T) {
	s := newSite(t, testNow)
	w := newTestWeb(t, s)
	names := w.Routes()
	if len(names) != len(routes) || names[0] != "GET /{$}" {
		t.Errorf("Routes() = %q", names)
	}
	h := signedIn(w)
	if res, _ := get(t, h, "/"); res.StatusCode != 302 || res.Header.Get("Location") != "/dashboard" {
		t.Errorf("/ = %d %q", res.StatusCode, res.Header.Get("Location"))
	}
	for _, action := range []string{"cancel", "retry", "delete"} {
		res, body := get(t, h, "/tasks/"+idPending+"/"+action)
		if res.StatusCode != 405 || res.Header.Get("Allow") != "POST" {
			t.Errorf("GET %s = %d, Allow %q", action, res.StatusCode, res.Header.Get("Allow"))
		}
		checkMarkup(t, body)
	}
	if s.tasks[idPending].Status != lpmos.Pending {
		t.Error("a GET changed a task")
	}
}

func goodForm() url.Values {
	return url.Values{"region_id": {"bj-1"}, "target_mac": {"7C-C2-55-10-90-72"}, "image": {"ubuntu/24.04/amd64"}, "hostname": {"app-119"}, "ssh_keys": {"\r\n" + goodKey + "\r\n"}, "form_id": {"F1"}}
}

func TestCreate(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	t.Run("makes the task and opens it", func(t *testing.T) {
		res, _ := post(t, h, "/tasks/create", goodForm())
		if res.StatusCode != 303 || !strings.HasPrefix(res.Header.Get("Location"), "/tasks/00000001-") {
			t.Fatalf("POST = %d %q", res.StatusCode, res.Header.Get("Location"))
		}
		task, _ := s.Task(strings.TrimPrefix(res.Header.Get("Location"), "/tasks/"))
		if task.TargetMAC.String() != "7c:c2:55:10:90:72" || task.OSType != "ubuntu" || task.CreatedBy != "chen.yu" || len(task.SSHKeys) != 1 {
			t.Errorf("created %+v", task.Spec)
		}
	})
	t.Run("makes one task of a form that is sent many times at once", func(t *testing.T) {
		before, form := s.created, goodForm()
		form.Set("form_id", "F2")
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { post(t, h, "/tasks/create", form) })
		}
		wg.Wait()
		if s.created != before+1 {
			t.Errorf("%d tasks created; want 1", s.created-before)
		}
	})
	t.Run("lets a form be sent again after an error", func(t *testing.T) {
		form := goodForm()
		form.Set("form_id", "F3")
		s.fail = fmt.Errorf("put task: %w", lpmos.ErrUnavailable)
		if res, _ := post(t, h, "/tasks/create", form); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
			t.Errorf("POST = %d; want 503", res.StatusCode)
		}
		s.fail = nil
		if res, _ := post(t, h, "/tasks/create", form); res.StatusCode != 303 {
			t.Errorf("POST again = %d; want 303", res.StatusCode)
		}
	})
	for name, c := range map[string]struct{ field, value, says string }{
		"a short MAC":             {"target_mac", "b0:7b:25:9e:4", "six pairs of hexadecimal digits"},
		"a multicast MAC":         {"target_mac", "01:00:5e:00:00:01", "multicast"},
		"no MAC":                  {"target_mac", "", "Give the MAC address"},
		"no region":               {"region_id", "", "Choose the region"},
		"no image":                {"image", "", "Choose what to install"},
		"a host name with _":      {"hostname", "App_118", "Use app-118?"},
		"a private key":           {"ssh_keys", "-----BEGIN OPENSSH PRIVATE KEY-----", "private key"},
		"a key with options":      {"ssh_keys", goodKey + "\ncommand=\"x\" " + goodKey, "Line 2"},
		"notes that are too long": {"notes", strings.Repeat("x", 3000), "longer than 2 KiB"},
	} {
		t.Run("marks "+name, func(t *testing.T) {
			form := goodForm()
			form.Set(c.field, c.value)
			res, body := post(t, h, "/tasks/create", form)
			if res.StatusCode != 400 {
				t.Fatalf("POST = %d; want 400", res.StatusCode)
			}
			checkMarkup(t, body)
			plain := html.UnescapeString(body)
			if !strings.Contains(plain, c.says) || !strings.Contains(body, `href="#f-`+c.field+`"`) || !strings.Contains(body, "autofocus") {
				t.Errorf("the page does not name the problem at %s", c.field)
			}
			if !strings.Contains(plain, form.Get("hostname")) {
				t.Error("what was typed is gone")
			}
		})
	}
	t.Run("shows what the orchestrator refuses", func(t *testing.T) {
		s.fail = &lpmos.InvalidError{Field: "region_id", Problem: "names no region"}
		defer func() { s.fail = nil }()
		form := goodForm()
		form.Set("form_id", "F4")
		res, body := post(t, h, "/tasks/create", form)
		if res.StatusCode != 400 || !strings.Contains(body, "names no region") || !strings.Contains(body, "#f-region_id") {
			t.Errorf("POST = %d", res.StatusCode)
		}
		s.fail = &lpmos.ConflictError{Problem: "the machine has a live task already"}
		if res, body := post(t, h, "/tasks/create", form); res.StatusCode != 409 || !strings.Contains(body, "The machine has a live task already.") {
			t.Errorf("POST = %d; want 409 with the reason", res.StatusCode)
		}
	})
}

var hidden = regexp.MustCompile(`<input type="hidden" name="(\w+)" value="([^"]*)"`)

// approvalForm is what a browser would send of the approval page.
func approvalForm(t testing.TB, h http.Handler, id string) url.Values {
	t.Helper()
	_, body := get(t, h, "/tasks/"+id+"/approve")
	form := url.Values{}
	for _, m := range hidden.FindAllStringSubmatch(body, -1) {
		form.Set(m[1], html.UnescapeString(m[2]))
	}
	if form.Get("plan_digest") == "" {
		t.Fatal("the approval page carries no digest")
	}
	return form
}

func TestApprove(t *testing.T) {
	t.Run("asks for the disk's serial number where data was found", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		form := approvalForm(t, h, idData)
		form.Set("approved", "true")
		for _, typed := range []string{"", "9999"} {
			form.Set("serial_end", typed)
			res, body := post(t, h, "/tasks/"+idData+"/approve", form)
			if res.StatusCode != 400 || !strings.Contains(body, "#f-serial_end") || s.tasks[idData].Status != lpmos.AwaitingApproval {
				t.Errorf("with %q: %d, %s", typed, res.StatusCode, s.tasks[idData].Status)
			}
			checkMarkup(t, body)
		}
		serial := s.tasks[idData].Plan.Effect.Target.Serial
		form.Set("serial_end", strings.ToLower(serial[len(serial)-4:]))
		res, _ := post(t, h, "/tasks/"+idData+"/approve", form)
		if res.StatusCode != 303 || s.tasks[idData].Status != lpmos.Approved {
			t.Fatalf("POST = %d, task %s", res.StatusCode, s.tasks[idData].Status)
		}
		if a := s.tasks[idData].Approval; a.By != "chen.yu" || a.PlanDigest != form.Get("plan_digest") {
			t.Errorf("approval %+v", a)
		}
		if res, _ := post(t, h, "/tasks/"+idData+"/approve", form); res.StatusCode != 303 {
			t.Errorf("the same decision again = %d; want 303", res.StatusCode)
		}
		form.Set("approved", "false")
		form.Set("notes", "no")
		if res, body := post(t, h, "/tasks/"+idData+"/approve", form); res.StatusCode != 409 || !strings.Contains(body, "decided before you") {
			t.Errorf("the opposite decision = %d; want 409", res.StatusCode)
		}
	})
	t.Run("does not ask where the disk is blank", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		_, body := get(t, h, "/tasks/"+idBlank+"/approve")
		if strings.Contains(body, "serial_end") {
			t.Error("the page of a blank disk asks for its serial number")
		}
		form := approvalForm(t, h, idBlank)
		form.Set("approved", "true")
		if res, _ := post(t, h, "/tasks/"+idBlank+"/approve", form); res.StatusCode != 303 || s.tasks[idBlank].Status != lpmos.Approved {
			t.Errorf("POST = %d, task %s", res.StatusCode, s.tasks[idBlank].Status)
		}
	})
	t.Run("wants a reason to reject", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		form := approvalForm(t, h, idData)
		form.Set("approved", "false")
		if res, body := post(t, h, "/tasks/"+idData+"/approve", form); res.StatusCode != 400 || !strings.Contains(body, "#f-notes") {
			t.Errorf("without a reason = %d; want 400", res.StatusCode)
		}
		form.Set("notes", "wrong rack")
		if res, _ := post(t, h, "/tasks/"+idData+"/approve", form); res.StatusCode != 303 || s.tasks[idData].Status != lpmos.Rejected {
			t.Errorf("POST = %d, task %s", res.StatusCode, s.tasks[idData].Status)
		}
	})
	t.Run("takes no decision that names none of the two", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		form := approvalForm(t, h, idBlank)
		for _, v := range []string{"", "yes", "TRUE"} {
			form.Set("approved", v)
			form.Set("notes", "n")
			if res, _ := post(t, h, "/tasks/"+idBlank+"/approve", form); res.StatusCode != 400 || s.tasks[idBlank].Status != lpmos.AwaitingApproval {
				t.Errorf("approved=%q: %d, task %s", v, res.StatusCode, s.tasks[idBlank].Status)
			}
		}
	})
	t.Run("offers no approval of a plan that cannot be carried out", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		_, body := get(t, h, "/tasks/"+idProblem+"/approve")
		if strings.Contains(body, `value="true"`) || !strings.Contains(body, "Not now: the plan cannot be carried out.") {
			t.Error("the page offers to approve")
		}
		form := approvalForm(t, h, idProblem)
		form.Set("approved", "true")
		if res, _ := post(t, h, "/tasks/"+idProblem+"/approve", form); res.StatusCode != 400 || s.tasks[idProblem].Status != lpmos.AwaitingApproval {
			t.Errorf("POST = %d, task %s", res.StatusCode, s.tasks[idProblem].Status)
		}
	})
}

// changePlan adds a smaller disk with Windows on it, so that the plan moves.
func changePlan(s *fakeSite, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tasks[id]
	h := *t.Hardware
	h.Disks = append([]lpmos.Disk{{Device: "/dev/sda", SizeBytes: 480 * gb, SectorBytes: 512, Model: "Intel S4520", Serial: "PHYG1490002B480BGN", Transport: "sata",
		Content: lpmos.Content{Table: "gpt", Partitions: []lpmos.Partition{{Number: 1, SizeBytes: 480 * gb, Filesystem: &lpmos.Filesystem{Type: "ntfs", OS: "Windows Server 2019", UsedBytes: 88 * gb}}}}}}, h.Disks...)
	t.Hardware = &h
	t.TargetDisk = new(h.Disks[0].Ref())
	p := lpmos.NewPlan(&t, &h, s.images[1])
	s.rev++
	t.Plan, t.Rev = &p, s.rev
	s.tasks[id] = t
}

func TestApproveStale(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	form := approvalForm(t, h, idBlank)
	form.Set("approved", "true")
	form.Set("notes", "ticket 4471")
	changePlan(s, idBlank)
	res, body := post(t, h, "/tasks/"+idBlank+"/approve", form)
	if res.StatusCode != 409 || s.tasks[idBlank].Status != lpmos.AwaitingApproval {
		t.Fatalf("POST = %d, task %s; want 409 and nothing approved", res.StatusCode, s.tasks[idBlank].Status)
	}
	checkMarkup(t, body)
	plain := html.UnescapeString(body)
	for _, want := range []string{"Nothing was approved", "The disk to be erased is another one", "Windows Server 2019, 88\u00a0GB in use", "PHYG1490002B480BGN", "ticket 4471", form.Get("plan_digest"), s.tasks[idBlank].Plan.Digest} {
		if !strings.Contains(plain, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if strings.Index(plain, "Nothing was approved") > strings.Index(plain, "Every difference") {
		t.Error("the differences come before the outcome")
	}
	if _, body := get(t, h, "/tasks/"+idBlank+"/approve?notes=ticket+4471"); !strings.Contains(body, ">ticket 4471</textarea>") {
		t.Error("the notes are not kept for the new plan")
	}
	form.Set("shown", approvalForm(t, inChinese(h), idData).Get("shown")) // of other disks and another plan
	_, body = post(t, inChinese(h), "/tasks/"+idBlank+"/approve", form)
	_, delta, _ := strings.Cut(html.UnescapeString(body), `<ol class="delta">`)
	delta, _, _ = strings.Cut(delta, "</ol>")
	for _, want := range []string{">磁盘 ", ">目标磁盘序列号<", ">主机名<", ">硬件摘要<"} {
		if !strings.Contains(delta, want) {
			t.Errorf("in Chinese the differences do not say %q", want)
		}
	}
	for _, m := range regexp.MustCompile(`<span>[−+]</span><span>([^<]*)</span>`).FindAllStringSubmatch(delta, -1) {
		if regexp.MustCompile(`^[a-z][a-z_.]+(\[\d+\])?( |$)`).MatchString(m[1]) {
			t.Errorf("in Chinese a difference is called %q", m[1])
		}
	}
	for _, shown := range []string{"", "{", hostile, `[{"g":"Plan","n":"` + strings.Repeat("x", 9) + `","v":"</textarea><script>alert(1)</script>"}]`} {
		form.Set("shown", shown)
		res, body := post(t, h, "/tasks/"+idBlank+"/approve", form)
		if res.StatusCode != 409 {
			t.Errorf("shown=%q: %d; want 409", shown, res.StatusCode)
		}
		checkMarkup(t, body)
	}
}

func TestActions(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	for _, c := range []struct {
		id, action string
		status     int
		after      lpmos.Status
	}{
		{idPending, "cancel", 303, lpmos.Canceled},
		{idPending, "cancel", 303, lpmos.Canceled}, // the same click again
		{idInstalling, "cancel", 409, lpmos.Installing},
		{idFailed, "retry", 303, lpmos.Pending},
		{idCompleted, "retry", 409, lpmos.Completed},
		{idInstalling, "delete", 409, lpmos.Installing},
		{idRejected, "delete", 303, ""},
		{idRejected, "delete", 404, ""},
	} {
		res, _ := post(t, h, "/tasks/"+c.id+"/"+c.action, url.Values{"reason": {"maintenance"}})
		if got := s.tasks[c.id].Status; res.StatusCode != c.status || got != c.after {
			t.Errorf("%s in %s: %d, now %q; want %d, %q", c.action, c.id, res.StatusCode, got, c.status, c.after)
		}
	}
}

func TestPreferences(t *testing.T) {
	h := signedIn(newTestWeb(t, newSite(t, testNow)))
	for to, want := range map[string]string{"/tasks?status=failed": "/tasks?status=failed", "//evil.example": "/dashboard", `/\evil.example`: "/dashboard", "https://evil.example": "/dashboard", "": "/dashboard"} {
		res, _ := post(t, h, "/preferences", url.Values{"theme": {"dark"}, "return": {to}})
		if res.StatusCode != 303 || res.Header.Get("Location") != want {
			t.Errorf("return %q = %d %q; want %q", to, res.StatusCode, res.Header.Get("Location"), want)
		}
		if c := res.Cookies(); len(c) != 1 || c[0].Value != "dark" || !c[0].HttpOnly {
			t.Errorf("cookies %v", c)
		}
	}
	r := httptest.NewRequest("GET", "/tasks", nil)
	r.Header.Set("Cookie", `lpmos_theme=dark><script>`)
	if _, body := send(t, h, r); strings.Contains(body, "data-theme") {
		t.Error("a cookie nobody set decides the theme")
	}
}

func TestFailMapsErrors(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	for err, want := range map[error]int{
		lpmos.ErrNotFound: 404, &lpmos.InvalidError{Problem: "no"}: 400, &lpmos.ConflictError{Problem: "no"}: 409,
		lpmos.ErrUnavailable: 503, errors.New("disk full"): 500,
	} {
		s.fail = err
		res, body := post(t, h, "/tasks/"+idPending+"/cancel", nil)
		if res.StatusCode != want {
			t.Errorf("%v = %d; want %d", err, res.StatusCode, want)
		}
		if strings.Contains(body, "disk full") {
			t.Error("an internal error is shown to the browser")
		}
	}
}

func TestFormBoundedBody(t *testing.T) {
	h := signedIn(newTestWeb(t, newSite(t, testNow)))
	res, _ := post(t, h, "/tasks/create", url.Values{"notes": {strings.Repeat("x", MaxFormBytes+1)}})
	if res.StatusCode != 400 {
		t.Errorf("a form of more than %d bytes = %d; want 400", MaxFormBytes, res.StatusCode)
	}
}

func TestNumbers(t *testing.T) {
	s := &tongue{}
	for got, want := range map[string]string{
		count(1234567): "1,234,567", count(999): "999", count(-1234): "-1,234", s.size(0): "unknown", s.size(960 * gb): "960\u00a0GB",
		s.gib(540_000_000_000): "503\u00a0GiB", s.speed(31_000_000): "31\u00a0MB/s", s.speed(0): "unknown", s.speed(4_200_000): "4.2\u00a0MB/s", s.speed(1100): "1.1\u00a0kB/s",
		s.left(&lpmos.ProgressDetails{BytesTotal: 100, BytesDownloaded: 0, BytesPerSecond: 1}): "2\u00a0min", s.left(nil): "unknown",
		s.left(&lpmos.ProgressDetails{BytesTotal: 25, BytesPerSecond: 1}):                          "30\u00a0s",
		s.left(&lpmos.ProgressDetails{BytesTotal: 134_000_000, BytesPerSecond: 300}) + " for days": "unknown for days",
	} {
		if got != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
}

func TestPlainLog(t *testing.T) {
	for text, want := range map[string]string{
		`level=INFO msg="stage begins" stage=downloading percent=20`: `stage begins stage=downloading percent=20`,
		`level=WARN msg="say \"a\"" err="b c"`:                       `WARN say "a" err="b c"`,
		`level=INFO msg=step stage=partitioning`:                     `step stage=partitioning`,
		`an ordinary line with level=INFO msg=x`:                     `an ordinary line with level=INFO msg=x`,
		`level=INFO msg="not closed`:                                 `"not closed`,
		``:                                                           ``,
	} {
		if got := plainLog(text); got != want {
			t.Errorf("plainLog(%q) = %q; want %q", text, got, want)
		}
	}
}

// What an installed system said of its disk and root filesystem is held against
// what the plan made, and only against that.
func TestReceiptAgainstPlan(t *testing.T) {
	s, err := newTongue("en")
	if err != nil {
		t.Fatal(err)
	}
	first, second := lpmos.DiskRef{Serial: "A", SizeBytes: 1 << 40}, lpmos.DiskRef{Serial: "B", SizeBytes: 1 << 40}
	unnamed := func(path string) lpmos.DiskRef { return lpmos.DiskRef{Path: path, SizeBytes: 1 << 40} }
	plain := lpmos.Effect{Target: first, Partitions: []lpmos.PlannedPartition{{Role: "root", FS: "ext4", UUID: "made", Mount: "/"}}}
	mirror := lpmos.Effect{Target: first, Also: []lpmos.PlannedDisk{{Disk: second}}, Arrays: []lpmos.PlannedArray{{Name: "root", FS: "ext4", FSUUID: "made", Mount: "/"}}}
	whole := lpmos.Effect{Target: first, Method: lpmos.FormatDisk}
	for name, tt := range map[string]struct {
		effect                   lpmos.Effect
		disk                     lpmos.DiskRef
		uuid                     string
		sameDisk, made, sameRoot bool
	}{
		"as planned":                      {plain, first, "made", true, true, true},
		"another disk, another root":      {plain, second, "other", false, true, false},
		"a mirror, from its second half":  {mirror, second, "made", true, true, true},
		"an image brings its filesystems": {whole, first, "the image's", true, false, false},
		"a disk without a name":           {lpmos.Effect{Target: unnamed("/dev/sda")}, unnamed("/dev/sdb"), "the image's", true, false, false},
	} {
		v := s.newReceipt(lpmos.Task{Plan: &lpmos.Plan{Effect: tt.effect}, Receipt: &lpmos.Receipt{RootDisk: tt.disk, RootFSUUID: tt.uuid}})
		if v.SameDisk != tt.sameDisk || v.Made != tt.made || v.Made && v.SameRoot != tt.sameRoot {
			t.Errorf("%s: disk of the plan %t, root made %t, the one made %t", name, v.SameDisk, v.Made, v.SameRoot)
		}
	}
}
