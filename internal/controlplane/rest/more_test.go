package rest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/api"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/rest"
	"github.com/lpmos/lpmos/internal/controlplane/state"
)

func line(mac string) string { return createBody(mac) }

type batchAnswer struct {
	lpmos.Batch
	Tasks []struct {
		Line   int
		TaskID string `json:"task_id"`
		Status lpmos.Status
	}
}

func TestBatch(t *testing.T) {
	p := newPlane(t)
	busy := p.create(mac)
	const batch = "/api/v1/tasks/batch"

	// Every bad line is named, and nothing is made of the good ones.
	pr := p.problem("POST", batch, `{"tasks":[`+strings.Join([]string{
		line("52:54:00:bb:00:01"), line("52-54-00-BB-00-01"), strings.Replace(line("52:54:00:bb:00:03"), "dc1", "dc9", 1), line(mac),
		strings.Replace(line("52:54:00:bb:00:04"), `"tiny"`, `"plan9"`, 1), line("52:54:00:bb:00"), `{"hostname":1}`, `{"force":true}`, `7`,
	}, ",")+`]}`, 400)
	bad := []lpmos.BatchLine{{Line: 2, Field: "target_mac", Detail: "line 1"}, {Line: 3, Field: "region_id", Detail: "dc1"}, {Line: 4, Field: "target_mac", Detail: busy}, {Line: 5, Field: "os_type", Detail: "tiny/1/amd64"},
		{Line: 6, Field: "target_mac", Detail: "six pairs"}, {Line: 7, Field: "hostname", Detail: "number"}, {Line: 8, Field: "force", Detail: "not a field"}, {Line: 9, Detail: "number"}}
	if len(pr.Lines) != len(bad) {
		t.Fatalf("lines %+v; want %d", pr.Lines, len(bad))
	}
	for i, w := range bad {
		if g := pr.Lines[i]; g.Line != w.Line || g.Field != w.Field || !strings.Contains(g.Detail, w.Detail) {
			t.Errorf("line %+v; want %+v", g, w)
		}
	}
	p.problem("POST", batch, `{"tasks":[]}`, 400)
	p.problem("POST", batch, `{"tasks":[`+strings.TrimSuffix(strings.Repeat("{},", lpmos.MaxBatchLines+1), ",")+`]}`, 400)
	p.problem("POST", batch, `{"tasks":[{"notes":"`+strings.Repeat("x", 1<<20)+`"}]}`, 413)
	p.problem("POST", batch, `{}`, 415, "Content-Type", "text/csv")
	if n := len(p.state.Live()); n != 1 {
		t.Fatalf("%d tasks after batches that were refused; want the one from before", n)
	}

	var lines []string
	for i := range 120 {
		lines = append(lines, line(fmt.Sprintf("52:54:00:bb:01:%02x", i)))
	}
	body := `{"tasks":[` + strings.Join(lines, ",") + `]}`
	resp, b := p.do("POST", batch, body, "Idempotency-Key", "b1")
	var made batchAnswer
	if err := json.Unmarshal(b, &made); err != nil || resp.StatusCode != 202 || made.Total != 120 || resp.Header.Get("Location") != "/api/v1/batches/"+made.ID {
		t.Fatalf("batch = %d %s, Location %s", resp.StatusCode, b, resp.Header.Get("Location"))
	}
	at := "/api/v1/batches/" + made.ID
	p.eventually("batch finished", func() bool { return ask[batchAnswer](p, at).Finished })
	p.eventually("all seen", func() bool { return len(p.state.Live()) == 121 })
	done := ask[batchAnswer](p, at)
	if done.Done != 120 || len(done.Failed) != 0 || len(done.Tasks) != 120 || done.Tasks[7].Line != 8 || done.Tasks[7].Status != lpmos.Pending {
		t.Errorf("finished batch = done %d, failed %v, %d tasks", done.Done, done.Failed, len(done.Tasks))
	}
	resp, _ = p.do("GET", at, "")
	p.empty("GET", at, 304, "If-None-Match", resp.Header.Get("ETag"))
	listed := want[struct {
		Total int
		Tasks []lpmos.Task
	}](p, "GET", "/api/v1/tasks?limit=1&q=batch:"+made.ID, "", 200)
	if listed.Total != 120 || listed.Tasks[0].BatchID != made.ID {
		t.Errorf("q=batch: finds %d", listed.Total)
	}
	// The same request again is the same batch, although its machines are busy
	// with it now; another one under the same key is a conflict.
	if again := want[batchAnswer](p, "POST", batch, body, 202, "Idempotency-Key", "b1"); again.ID != made.ID {
		t.Errorf("one key made two batches")
	}
	p.problem("POST", batch, `{"tasks":[`+line("52:54:00:bb:02:01")+`]}`, 409, "Idempotency-Key", "b1")
	if pr := p.problem("POST", batch, body, 400); len(pr.Lines) != 120 {
		t.Errorf("without the key the machines are busy: %d lines", len(pr.Lines))
	}
	p.problem("POST", batch, body, 400, "Idempotency-Key", strings.Repeat("k", 256))
	p.problem("GET", "/api/v1/batches/x", "", 400)
	p.problem("GET", "/api/v1/batches/"+missing, "", 404)
}

func ask[T any](p *plane, path string) T { return want[T](p, "GET", path, "", 200) }

func TestConditionalRequests(t *testing.T) {
	p := newPlane(t)
	id := p.create(mac)
	p.is(id, lpmos.Pending)
	for _, path := range []string{"/api/v1/tasks/" + id, "/api/v1/tasks", "/api/v1/tasks?q=host:machine", "/api/v1/regions", "/api/v1/regions/dc1", "/api/v1/images", "/api/v1/images/tiny/1/amd64"} {
		resp, b := p.do("GET", path, "")
		tag := resp.Header.Get("ETag")
		if resp.StatusCode != 200 || tag == "" || len(b) == 0 {
			t.Errorf("GET %s = %d, ETag %q", path, resp.StatusCode, tag)
		}
		p.empty("GET", path, 304, "If-None-Match", tag)
		p.empty("GET", path, 304, "If-None-Match", `"other", `+strings.TrimPrefix(tag, "W/"))
		if resp, _ := p.do("GET", path, "", "If-None-Match", `"other"`); resp.StatusCode != 200 {
			t.Errorf("GET %s with another tag = %d", path, resp.StatusCode)
		}
	}
	// A revision that changed nothing in the list leaves its tag as it is.
	resp, _ := p.do("GET", "/api/v1/tasks", "")
	if err := p.store.SetRegionStatus(t.Context(), "dc1", "online"); err != nil {
		t.Fatal(err)
	}
	p.empty("GET", "/api/v1/tasks", 304, "If-None-Match", resp.Header.Get("ETag"))
	if got := want[lpmos.Task](p, "POST", "/api/v1/tasks/"+id+"/cancel", "", 200); got.Status != lpmos.Canceled {
		t.Fatal(got.Status)
	}
	p.is(id, lpmos.Canceled)
	if again, _ := p.do("GET", "/api/v1/tasks", "", "If-None-Match", resp.Header.Get("ETag")); again.StatusCode != 200 {
		t.Errorf("a list that changed = %d", again.StatusCode)
	}
}

// Of two who change an entry of the catalogue on the same basis, one is told.
func TestIfMatch(t *testing.T) {
	p := newPlane(t)
	const path = "/api/v1/images/tiny/1/amd64"
	body := p.imageBody(p.manifest(nil))
	resp, _ := p.do("GET", path, "")
	tag := resp.Header.Get("ETag")
	first, _ := p.do("PUT", path, body, "If-Match", tag)
	if first.StatusCode != 200 || first.Header.Get("ETag") == tag {
		t.Errorf("PUT on the newest = %d, ETag %s", first.StatusCode, first.Header.Get("ETag"))
	}
	if pr := p.problem("PUT", path, body, 412, "If-Match", tag); !strings.Contains(pr.Detail, "read it again") {
		t.Errorf("PUT on an old one = %q", pr.Detail)
	}
	p.problem("DELETE", path, "", 412, "If-Match", tag)
	p.problem("PUT", path, body, 412, "If-None-Match", "*")
	for _, bad := range []string{"x", `"x"`, `W/"1"`, `"0"`, `"1", "2"`} {
		p.problem("PUT", path, body, 400, "If-Match", bad)
	}
	p.empty("DELETE", path, 204, "If-Match", first.Header.Get("ETag"))
	p.problem("DELETE", path, "", 404)
	p.eventually("gone", func() bool { _, ok := p.state.Image("tiny", "1", "amd64"); return !ok })
	p.problem("GET", path, "", 404)
	if resp, _ := p.do("PUT", path, body, "If-None-Match", "*"); resp.StatusCode != 200 {
		t.Errorf("creating what is not there = %d", resp.StatusCode)
	}
}

func TestListParameters(t *testing.T) {
	p := newPlane(t)
	for i := range 6 {
		p.create(fmt.Sprintf("52:54:00:cc:00:%02x", i))
	}
	p.eventually("all listed", func() bool { return len(p.state.Live()) == 6 })
	type page struct {
		Tasks  []lpmos.Task
		Total  int
		Groups *struct {
			Status map[lpmos.Status]int
			Region map[string]int `json:"region_id"`
			OS     map[string]int `json:"os_type"`
		}
		NextCursor string `json:"next_cursor"`
	}
	hosts := func(l page) (out []string) {
		for _, x := range l.Tasks {
			out = append(out, x.Hostname[len(x.Hostname)-2:])
		}
		return out
	}
	l := want[page](p, "GET", "/api/v1/tasks?sort=host&limit=2&offset=1&status=failed,pending&q=-mac:cc0003", "", 200)
	if got := hosts(l); !slices.Equal(got, []string{"01", "02"}) || l.Total != 5 || l.Groups.Status[lpmos.Pending] != 5 || l.Groups.Region["dc1"] != 5 || l.Groups.OS["tiny"] != 5 {
		t.Errorf("hosts %v of %d, groups %+v", got, l.Total, l.Groups)
	}
	next := want[page](p, "GET", "/api/v1/tasks?sort=host&limit=2&groups=false&cursor="+l.NextCursor, "", 200)
	if got := hosts(next); !slices.Equal(got, []string{"03", "04"}) || next.Groups != nil {
		t.Errorf("next page %v, groups %v", got, next.Groups)
	}
	for query, detail := range map[string]string{
		"q=colour:red": "status, is, region", "q=status:open": "awaiting_approval", "q=%22": "not closed", "q=" + strings.Repeat("x", 1025): "longer",
		"sort=size": "created, updated", "offset=-1": "from 0", "offset=x": "from 0", "cursor=nonsense": "begin again", "cursor=" + l.NextCursor: "this order", "groups=1": "true nor false",
	} {
		if pr := p.problem("GET", "/api/v1/tasks?"+query, "", 400); !strings.Contains(pr.Detail, detail) {
			t.Errorf("%.60s = %q; want %q in it", query, pr.Detail, detail)
		}
	}
	ids := want[struct {
		IDs   []string `json:"task_ids"`
		Total int
	}](p, "GET", "/api/v1/tasks/ids?q=status:pending&sort=-host", "", 200)
	if len(ids.IDs) != 6 || ids.Total != 6 {
		t.Errorf("ids = %+v", ids)
	}
	p.problem("GET", "/api/v1/tasks/ids?q=is:late", "", 400)
}

func TestLogsAsText(t *testing.T) {
	p := newPlane(t)
	id := p.create(mac)
	p.is(id, lpmos.Pending)
	if err := p.sess.AppendLog(t.Context(), id, 1, 0, []byte("Wrote chunk one\nread <b>two</b>\nwrote chunk three\n")); err != nil {
		t.Fatal(err)
	}
	p.eventually("log is there", func() bool { l, _ := p.state.Logs(id); return len(l) == 3 })
	path := "/api/v1/tasks/" + id + "/logs"
	if l := want[struct {
		Lines []string
		Total int
	}](p, "GET", path+"?q=CHUNK+wrote", "", 200); len(l.Lines) != 2 || l.Total != 3 {
		t.Errorf("search = %+v", l)
	}
	for _, how := range []string{"accept", "download"} {
		var resp *http.Response
		var b []byte
		if how == "accept" {
			resp, b = p.do("GET", path, "", "Accept", "text/plain")
		} else {
			resp, b = p.do("GET", path+"?download&q=two", "")
		}
		if resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", how, resp.Header)
		}
		switch how {
		case "accept":
			if string(b) != "Wrote chunk one\nread <b>two</b>\nwrote chunk three\n" || resp.Header.Get("Content-Disposition") != "" {
				t.Errorf("as text: %q", b)
			}
		default:
			if string(b) != "read <b>two</b>\n" || resp.Header.Get("Content-Disposition") != `attachment; filename="task-`+id+`.log"` {
				t.Errorf("as a file: %q, %v", b, resp.Header)
			}
		}
	}
	p.problem("GET", path+"?q="+strings.Repeat("x", 257), "", 400)
	p.problem("GET", path+"?q=%ff", "", 400)
}

// The reference names every route and loads nothing from elsewhere.
func TestReferencePage(t *testing.T) {
	p := newPlane(t)
	resp, b := p.do("GET", "/api/v1/docs", "")
	page := string(b)
	if csp := resp.Header.Get("Content-Security-Policy"); resp.StatusCode != 200 || !strings.HasPrefix(csp, "default-src 'none'; style-src 'self'") {
		t.Fatalf("docs = %d, policy %q", resp.StatusCode, csp)
	}
	for _, r := range rest.New(nil, nil, nil, nil, nil, nil, discard).Routes() {
		if path := parameter.ReplaceAllString(r.Path, "{$1}"); !strings.Contains(page, `<span class="path">`+path+`</span>`) {
			t.Errorf("%s %s is not on the page", r.Method, path)
		}
	}
	for _, never := range []string{"<script", "<style", " style=", "//cdn", "{{", "map[", "ZgotmplZ", "&lt;no value"} {
		if strings.Contains(page, never) {
			t.Errorf("%q is on the page", never)
		}
	}
	if resp, css := p.do("GET", "/api/v1/docs/style.css", ""); resp.StatusCode != 200 || len(css) < 100 {
		t.Errorf("style sheet = %d, %d bytes", resp.StatusCode, len(css))
	}
	if resp, b := p.do("GET", "/metrics", ""); resp.StatusCode != 200 || !strings.Contains(string(b), `route="/api/v1/docs"`) || !strings.Contains(string(b), "etcd_") {
		t.Errorf("metrics = %d without the request before, or without etcd's", resp.StatusCode)
	}
}

// TestHostileJSON throws what no client sends at every route that takes JSON.
func TestHostileJSON(t *testing.T) {
	p := newPlane(t)
	id := p.create(mac)
	routes := map[string]bool{}
	for _, r := range p.api.Routes() {
		if r.Method == "GET" || r.Method == "HEAD" || r.Method == "DELETE" || strings.Contains(r.Path, "/blobs/") || strings.HasSuffix(r.Path, "/retry") || strings.HasSuffix(r.Path, "/reset-password") || strings.HasSuffix(r.Path, "/logout") || strings.HasSuffix(r.Path, "/rotate") || strings.HasSuffix(r.Path, "/revoke") {
			continue
		}
		path := strings.NewReplacer(":id", id, ":os", "tiny", ":version", "1", ":arch", "amd64", ":name", "x", ":mac", mac).Replace(r.Path)
		if strings.Contains(path, ":name") {
			t.Errorf("%s has a parameter this test does not know", r.Path)
		}
		routes[r.Method+" "+path] = true
	}
	if len(routes) < 6 {
		t.Fatalf("only %d routes take a body: %v", len(routes), routes)
	}
	for route := range routes {
		method, path, _ := strings.Cut(route, " ")
		for what, body := range map[string]string{
			"deep arrays":             strings.Repeat("[", 10_000),
			"deep objects":            strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000),
			"deep inside a field":     `{"notes":` + strings.Repeat("[", 5_000) + strings.Repeat("]", 5_000) + `}`,
			"a field twice":           `{"os":"a","os":"b","approved":true,"approved":false,"reason":"a","reason":"b","region_id":"a","region_id":"b","tasks":[],"tasks":[],"version":"1","version":"2","name":"a","name":"b"}`,
			"an unknown field":        `{"no_such_field":1}`,
			"a prototype":             `{"__proto__":{"approved":true}}`,
			"a field in capitals":     `{"APPROVED":true,"OS":"x","REASON":"x","REGION_ID":"x","TASKS":[],"VERSION":"1"}`,
			"not UTF-8":               "{\"reason\":\"\xff\xfe\",\"notes\":\"\xc0\xaf\"}",
			"a lone surrogate's name": `{"\ud800":1}`,
			"something behind it":     `{}{}`,
			"half of it":              `{"notes":"`,
			"a number":                `1e999`,
			"null bytes":              "{\"notes\":\"\x00\"}",
			"an array":                `[]`,
			"nothing but space":       "   ",
		} {
			if pr := p.problem(method, path, body, 400); pr.Detail == "" {
				t.Errorf("%s with %s: no detail", route, what)
			}
		}
		huge := `{"notes":"` + strings.Repeat("x", 2<<20) + `"}`
		if pr := p.problem(method, path, huge, 413); pr.Detail == "" {
			t.Errorf("%s with 2 MB: no detail", route)
		}
		// The same without saying how long it is.
		req, err := http.NewRequestWithContext(t.Context(), method, p.url+path, io.MultiReader(strings.NewReader(huge)))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = -1
		req.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		auth.As(tester, p.handler).ServeHTTP(w, req)
		if w.Code != 413 {
			t.Errorf("%s with 2 MB in chunks = %d", route, w.Code)
		}
	}
	if got := p.is(id, lpmos.Pending); got.Status != lpmos.Pending {
		t.Errorf("the task is %s", got.Status)
	}
}

// Two people decide at the same moment: one is heard, the other is told who
// was.
func TestTwoOperators(t *testing.T) {
	p := newPlane(t)
	for i, tt := range []struct {
		name          string
		first, second func(id, digest string) (method, path, body string)
		verbs         []string
	}{
		{"approve and approve", approve, approve, []string{"approved by "}},
		{"approve and reject", approve, rejectIt, []string{"approved by ", "rejected by "}},
		{"reject and cancel", rejectIt, cancelIt, []string{"rejected by ", "canceled by "}},
		{"cancel and cancel", cancelIt, cancelIt, []string{"canceled by "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for round := range 5 {
				m := fmt.Sprintf("52:54:00:dd:%02x:%02x", i, round)
				id := p.create(m)
				digest := p.report(id, m, lpmos.Content{}).Plan.Digest
				var wg sync.WaitGroup
				codes, details := make([]int, 2), make([]string, 2)
				for n, request := range []func(string, string) (string, string, string){tt.first, tt.second} {
					wg.Go(func() {
						method, path, body := request(id, digest)
						resp, b := p.do(method, path, body)
						var pr rest.Problem
						if resp.StatusCode != 200 {
							if err := json.Unmarshal(b, &pr); err != nil {
								t.Error(err)
							}
						}
						codes[n], details[n] = resp.StatusCode, pr.Detail
					})
				}
				wg.Wait()
				sorted := slices.Sorted(slices.Values(codes))
				if !slices.Equal(sorted, []int{200, 409}) {
					t.Fatalf("answers %v %q; want one 200 and one 409", codes, details)
				}
				said := details[0] + details[1]
				if !slices.ContainsFunc(tt.verbs, func(v string) bool { return strings.Contains(said, v+"tester") }) {
					t.Errorf("the one who was late hears %q; want who decided", said)
				}
			}
		})
	}
	// An approved task can still be canceled, before anything is written; then
	// the approver who looks again hears of it.
	id := p.create(mac)
	digest := p.report(id, mac, lpmos.Content{}).Plan.Digest
	method, path, body := approve(id, digest)
	want[lpmos.Task](p, method, path, body, 200)
	method, path, _ = cancelIt(id, digest)
	want[lpmos.Task](p, method, path, "", 200)
	method, path, body = approve(id, digest)
	if pr := p.problem(method, path, body, 409); !strings.Contains(pr.Detail, "canceled by tester") {
		t.Errorf("approving what was canceled = %q", pr.Detail)
	}
}

func approve(id, digest string) (method, path, body string) {
	return "PUT", "/api/v1/tasks/" + id + "/approve", `{"approved":true,"plan_digest":"` + digest + `"}`
}

func rejectIt(id, digest string) (method, path, body string) {
	return "PUT", "/api/v1/tasks/" + id + "/approve", `{"approved":false,"plan_digest":"` + digest + `"}`
}

func cancelIt(id, _ string) (method, path, body string) {
	return "POST", "/api/v1/tasks/" + id + "/cancel", `{"reason":"not today"}`
}

// Whatever is refused says what to do about it.
func TestProblemsHaveADetail(t *testing.T) {
	h := auth.As(tester, rest.New(nil, nil, nil, nil, nil, api.OpenAPI, discard).Handler(http.NotFoundHandler()))
	for _, tt := range [][2]string{{"GET", "/api/v1/nothing"}, {"PATCH", "/api/v1/tasks"}, {"POST", "/api/v1/tasks"}, {"GET", "/api/v1/tasks?limit=x"}, {"GET", "/api/v1/regions/X"}} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt[0], tt[1], nil))
		var pr rest.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &pr); err != nil || pr.Detail == "" || pr.Type == "" || pr.Status != w.Code {
			t.Errorf("%s %s = %s", tt[0], tt[1], w.Body)
		}
	}
}

// The Go client speaks of the same things.
func TestClient(t *testing.T) {
	p := newPlane(t)
	c, err := apiclient.New(p.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	spec := func(mac string) lpmos.Spec {
		return lpmos.Spec{RegionID: "dc1", TargetMAC: lpmos.MustMAC(mac), OSType: "tiny", OSVersion: "1"}
	}
	b, err := c.CreateBatch(ctx, []lpmos.Spec{spec("52:54:00:ee:00:01"), spec("52:54:00:ee:00:02")}, "k")
	if err != nil || b.Total != 2 {
		t.Fatalf("CreateBatch = %+v, %v", b, err)
	}
	p.eventually("batch finished", func() bool { b, err = c.Batch(ctx, b.ID); return err == nil && b.Finished && len(p.state.Live()) == 2 })
	_, err = c.CreateBatch(ctx, []lpmos.Spec{spec("52:54:00:ee:00:01")}, "")
	if pr, ok := errors.AsType[*apiclient.Problem](err); !ok || len(pr.Lines) != 1 || pr.Lines[0].Field != "target_mac" {
		t.Errorf("CreateBatch of a busy machine = %+v", err)
	}
	l, err := c.Tasks(ctx, url.Values{"q": {"mac:ee0002"}, "sort": {"host"}})
	if err != nil || l.Total != 1 || l.Groups.Status[lpmos.Pending] != 1 {
		t.Errorf("Tasks = %+v, %v", l, err)
	}
	if ids, n, err := c.TaskIDs(ctx, url.Values{"q": {"is:live"}}); err != nil || n != 2 || len(ids) != 2 {
		t.Errorf("TaskIDs = %v, %d, %v", ids, n, err)
	}
	if v, err := c.TaskView(ctx, b.Tasks[0].TaskID); err != nil || v.BatchID != b.ID || v.ETA != nil {
		t.Errorf("TaskView = %+v, %v", v, err)
	}
	if lines, n, err := c.SearchLogs(ctx, b.Tasks[0].TaskID, "x y"); err != nil || n != 0 || len(lines) != 0 {
		t.Errorf("SearchLogs = %v, %d, %v", lines, n, err)
	}
	i, tag, err := c.Image(ctx, "tiny", "1", "amd64")
	if err != nil || tag == "" {
		t.Fatalf("Image = %+v, %q, %v", i, tag, err)
	}
	i.Title = "Tiny, renamed"
	if err := c.PutImageIf(ctx, i, tag); err != nil {
		t.Error(err)
	}
	for _, old := range []string{tag, ""} {
		if err := c.PutImageIf(ctx, i, old); !errors.Is(err, lpmos.ErrChanged) {
			t.Errorf("PutImageIf(%q) = %v; want ErrChanged", old, err)
		}
	}
	if _, _, err := c.Image(ctx, "tiny", "2", "amd64"); !errors.Is(err, lpmos.ErrNotFound) {
		t.Errorf("Image that is not there = %v", err)
	}
}

// What earlier installs took is told about the next one.
func TestETA(t *testing.T) {
	p := newPlane(t)
	run := func(m string) (id string) {
		id = p.create(m)
		digest := p.report(id, m, lpmos.Content{}).Plan.Digest
		method, path, body := approve(id, digest)
		task := want[lpmos.Task](p, method, path, body, 200)
		key := p.registered(t, id)
		if err := p.sess.PutPermitRequest(t.Context(), lpmos.PermitRequest{TaskID: id, Attempt: 1, AgentKey: key, Nonce: "n", PlanDigest: digest, HardwareDigest: task.Plan.HardwareDigest}); err != nil {
			t.Fatal(err)
		}
		p.is(id, lpmos.Installing)
		return id
	}
	at := time.Now().UTC().Add(-4 * time.Minute)
	step := func(id string, s lpmos.Stage, after time.Duration, percent int) {
		if err := p.sess.PutProgress(t.Context(), &lpmos.Progress{TaskID: id, Attempt: 1, Stage: s, Percentage: percent, UpdatedAt: at.Add(after)}); err != nil {
			t.Fatal(err)
		}
		p.eventually("stage seen", func() bool { x, _ := p.state.Task(id); return x.Progress != nil && x.Progress.Stage == s })
	}
	first := run("52:54:00:ef:00:01")
	for i, s := range lpmos.Phases[:4] {
		step(first, s, time.Duration(i)*time.Minute, 25*i)
	}
	if err := p.sess.PutResult(t.Context(), lpmos.Result{TaskID: first, Attempt: 1, OK: true, Written: true}); err != nil {
		t.Fatal(err)
	}
	root, _ := p.is(first, lpmos.Verifying).Plan.Effect.Partition("root")
	if err := p.sess.PutBooted(t.Context(), first, 1, lpmos.Receipt{RootFSUUID: root.UUID}); err != nil {
		t.Fatal(err)
	}
	p.is(first, lpmos.Completed)

	second := run("52:54:00:ef:00:02")
	step(second, lpmos.Partitioning, 3*time.Minute, 0)
	step(second, lpmos.Downloading, 3*time.Minute+30*time.Second, 20)
	type view struct {
		lpmos.Task
		ETA *struct {
			Basis    string
			Runs     int
			Expected int  `json:"expected_sec"`
			Left     int  `json:"left_sec"`
			Faster   *int `json:"faster_than_percent"`
		}
	}
	v := want[view](p, "GET", "/api/v1/tasks/"+second, "", 200)
	// The stages took a minute each, and restarting about none: of four
	// minutes two and what is left of the download remain.
	if v.ETA == nil || v.ETA.Runs != 1 || v.ETA.Basis != "image" || v.ETA.Expected < 239 || v.ETA.Left < 119 || v.ETA.Left > 270 || v.ETA.Faster == nil || *v.ETA.Faster != 100 {
		t.Errorf("estimate = %+v", v.ETA)
	}
	listed := want[struct{ Tasks []view }](p, "GET", "/api/v1/tasks?q=is:live", "", 200).Tasks
	if len(listed) != 1 || listed[0].ETA == nil || listed[0].Found == nil {
		t.Errorf("in a list: %+v", listed)
	}
	// Reports go on until one was folded into the task, every five seconds.
	n := 20
	p.eventually("stages folded", func() bool {
		rec, err := p.store.Task(t.Context(), second)
		if err == nil && rec.Task.Progress != nil && len(rec.Task.Progress.Begun) == 2 {
			return true
		}
		n = min(n+1, 59)
		err = p.sess.PutProgress(t.Context(), &lpmos.Progress{TaskID: second, Attempt: 1, Stage: lpmos.Downloading, Percentage: n, Message: fmt.Sprint(time.Now()), UpdatedAt: at.Add(4 * time.Minute)})
		return err != nil
	})
	// It is all in the store: a control plane that starts anew knows it, too.
	again := state.New(p.store, discard)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- again.Run(ctx) }()
	<-again.Synced()
	if e := again.Estimate(second); e == nil || e.Runs != 1 || e.FasterThan != 100 {
		t.Errorf("after a restart: %+v", e)
	}
	if x, _ := again.Task(first); x.Hardware == nil || x.Plan == nil {
		t.Error("after a restart, a task that ended is without its hardware and plan")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// registered stores that an agent of the task's first attempt registered a key,
// and gives the key.
func (p *plane) registered(t *testing.T, id string) *lpmos.AgentPublic {
	t.Helper()
	k, err := lpmos.NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	pub := k.Public()
	if err := p.sess.PutAgent(t.Context(), lpmos.AgentRecord{TaskID: id, Attempt: 1, BootSeq: 1, Key: &pub}); err != nil {
		t.Fatal(err)
	}
	return &pub
}
