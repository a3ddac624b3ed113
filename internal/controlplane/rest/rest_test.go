package rest_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/api"
	"github.com/lpmos/lpmos/internal/contract"
	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/blobs"
	"github.com/lpmos/lpmos/internal/controlplane/metrics"
	"github.com/lpmos/lpmos/internal/controlplane/orchestrator"
	"github.com/lpmos/lpmos/internal/controlplane/rest"
	"github.com/lpmos/lpmos/internal/controlplane/scope"
	"github.com/lpmos/lpmos/internal/controlplane/state"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// Every exchange of these tests is held against api/openapi.yaml, and they fail
// as a whole if an answer that is described there was never given.
func TestMain(m *testing.M) { os.Exit(contract.Main(m, api.OpenAPI)) }

// past is the store as the composition gives it to the API.
type past struct {
	*scope.Past
	store *store.Store
}

func (r past) Healthy(ctx context.Context) error { return r.store.Healthy(ctx) }
func (r past) PutImageIf(ctx context.Context, i lpmos.Image, rev int64) (int64, error) {
	return r.store.PutImageIf(ctx, i, rev)
}

// tester is an admin of everything.
var tester = auth.Principal{Kind: auth.Token, Name: "tester", Role: lpmos.Admin, Label: "test", Own: true}

var discard = slog.New(slog.DiscardHandler)

// plane is a control plane behind its REST API, and a region's session.
type plane struct {
	t     *testing.T
	url   string
	http  *http.Client
	store *store.Store
	state *state.State
	sess  *store.Session
	pack  []byte

	api     *rest.API
	handler http.Handler
	auth    *auth.Auth
	who     *auth.Principal // nil: the tester
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	st := storetest.New(t)
	dir, err := blobs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	p := &plane{t: t, store: st, state: state.New(st, discard), pack: []byte("stored chunk")}
	orch := orchestrator.New(orchestrator.Config{Key: ed25519.NewKeyFromSeed(make([]byte, 32))}, p.state, st, discard)
	p.state.Listen(orch.Notice)

	boot := func(ctx context.Context, b lpmos.BootImage) error {
		_, err := st.UpdateGlobal(ctx, func(g *store.Global) error { g.BootImage = &b; return nil })
		return err
	}
	a := rest.New(p.state, orch, past{scope.Remember(p.state, st, auth.Principal{}), st}, dir, boot, api.OpenAPI, discard)
	p.auth = auth.New(auth.Config{CheapPasswords: true}, st, discard)
	p.state.Follow(func(b store.Batch) { p.auth.Apply(b.Rev, b.Reset, controlplane.People(b, discard)) })
	a.Know(p.auth)
	a.Narrow(func(who auth.Principal) rest.View {
		return rest.View{Reader: scope.Read(p.state, who), Actions: scope.Act(p.state, orch, nil, who), Store: past{scope.Remember(p.state, st, who), st}}
	})
	m := metrics.New(p.state, nil, "test")
	a.Measure(m.Handler(), m.Observe)
	p.api, p.handler = a, a.Handler(http.NotFoundHandler())
	// Who asks is the tester, unless a test says another.
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := tester
		if p.who != nil {
			who = *p.who
		}
		if r.Header.Get("Test-Real") != "" {
			p.auth.Handler(p.handler).ServeHTTP(w, r)
			return
		}
		auth.As(who, p.handler).ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	p.url = srv.URL
	p.http = &http.Client{Transport: contract.NewTransport(t, api.OpenAPI, nil)}
	p.problem("GET", "/readyz", "", 503) // nothing is in memory yet

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.state.Run(ctx) })
	wg.Go(func() { <-p.state.Synced(); orch.Run(ctx) })
	wg.Go(func() { <-p.state.Synced(); orch.RunBatches(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	if p.sess, err = st.OpenSession(t.Context(), "dc1", "i1", lpmos.Capabilities{Hostname: "h"}, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.sess.Close)
	p.registerImage()
	p.eventually("region and image known", func() bool {
		_, r := p.state.Region("dc1")
		_, i := p.state.Image("tiny", "1", "amd64")
		return r && i
	})
	return p
}

func (p *plane) eventually(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	p.t.Fatalf("never so: %s", what)
}

func (p *plane) do(method, path, body string, header ...string) (*http.Response, []byte) {
	p.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.url+path, r)
	if err != nil {
		p.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := p.http.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp, b
}

// want makes a request, demands a status and decodes the answer.
func want[T any](p *plane, method, path, body string, status int, header ...string) (v T) {
	p.t.Helper()
	resp, b := p.do(method, path, body, header...)
	if resp.StatusCode != status {
		p.t.Errorf("%s %s %.200s = %d %s; want %d", method, path, body, resp.StatusCode, b, status)
		return v
	}
	if err := json.Unmarshal(b, &v); err != nil {
		p.t.Errorf("%s %s answers %q: %v", method, path, b, err)
	}
	return v
}

// problem demands an RFC 9457 body.
func (p *plane) problem(method, path, body string, status int, header ...string) rest.Problem {
	p.t.Helper()
	pr := want[rest.Problem](p, method, path, body, status, header...)
	if pr.Status != status || pr.Title == "" {
		p.t.Errorf("%s %s: problem %+v; want status %d and a title", method, path, pr, status)
	}
	return pr
}

// empty demands an answer without a body.
func (p *plane) empty(method, path string, status int, header ...string) {
	p.t.Helper()
	if resp, b := p.do(method, path, "", header...); resp.StatusCode != status || len(b) != 0 {
		p.t.Errorf("%s %s = %d %q; want %d without a body", method, path, resp.StatusCode, b, status)
	}
}

func digits(b []byte) string { return strings.TrimPrefix(lpmos.DigestBytes(b), "sha256:") }

func (p *plane) upload(b []byte) lpmos.Blob {
	p.t.Helper()
	return want[lpmos.Blob](p, "PUT", "/api/v1/blobs/"+digits(b), string(b), 200, "Content-Type", "application/octet-stream")
}

func (p *plane) manifest(edit func(*lpmos.ImageManifest)) []byte {
	m := lpmos.ImageManifest{
		Format: "ext4", SizeBytes: 64 << 20, UsedBytes: 8192, Pack: lpmos.Blob{SHA256: digits(p.pack), Bytes: int64(len(p.pack))},
		Chunks:    []lpmos.Chunk{{Bytes: 8192, StoredBytes: int64(len(p.pack)), SHA256: digits(p.pack)}},
		FirstBoot: "exec", Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd", OS: "tiny", Version: "1", Arch: "amd64",
	}
	if edit != nil {
		edit(&m)
	}
	b, err := json.Marshal(m)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

func (p *plane) imageBody(manifest []byte) string {
	return fmt.Sprintf(`{"os":"tiny","version":"1","arch":"amd64","digest":"sha256:%s","title":"Tiny"}`, digits(manifest))
}

func (p *plane) registerImage() {
	p.t.Helper()
	p.upload(p.pack)
	m := p.manifest(nil)
	p.upload(m)
	i := want[lpmos.Image](p, "PUT", "/api/v1/images/tiny/1/amd64", p.imageBody(m), 200)
	if i.SizeBytes != 64<<20 || i.StoredBytes != int64(len(p.pack)) || len(i.BootModes) != 2 {
		p.t.Errorf("image = %+v; want what the manifest says", i)
	}
}

const mac = "52:54:00:aa:bb:01"

func createBody(mac string) string {
	return fmt.Sprintf(`{"region_id":"dc1","target_mac":%q,"os_type":"tiny","os_version":"1"}`, mac)
}

func (p *plane) create(mac string, header ...string) string {
	p.t.Helper()
	return want[struct {
		TaskID string `json:"task_id"`
	}](p, "POST", "/api/v1/tasks", createBody(mac), 201, header...).TaskID
}

func (p *plane) is(id string, status lpmos.Status) lpmos.Task {
	p.t.Helper()
	p.eventually("task is "+string(status), func() bool { t, _ := p.state.Task(id); return t.Status == status })
	return want[lpmos.Task](p, "GET", "/api/v1/tasks/"+id, "", 200)
}

func (p *plane) report(id, mac string, content lpmos.Content) lpmos.Task {
	p.t.Helper()
	h := &lpmos.Hardware{
		BootMode: "bios", CPU: lpmos.CPU{Architecture: "amd64"}, NICs: []lpmos.NIC{{Name: "e0", MAC: lpmos.MustMAC(mac)}},
		Disks: []lpmos.Disk{{Device: "/dev/vda", Serial: "disk-" + mac, SizeBytes: 4 << 30, Transport: "virtio", Content: content}},
	}
	if err := p.sess.PutHardware(p.t.Context(), id, 1, h); err != nil {
		p.t.Fatal(err)
	}
	return p.is(id, lpmos.AwaitingApproval)
}

// missing is a task id that nobody has.
const missing = "550e8400-e29b-41d4-a716-446655440000"

func TestLifeOverREST(t *testing.T) {
	p := newPlane(t)
	resp, b := p.do("POST", "/api/v1/tasks", createBody("52-54-00-AA-BB-01"))
	var made struct {
		TaskID string `json:"task_id"`
		Status string `json:"status"`
	}
	if err := json.Unmarshal(b, &made); err != nil || resp.StatusCode != 201 || made.Status != "pending" || resp.Header.Get("Location") != "/api/v1/tasks/"+made.TaskID {
		t.Fatalf("create = %d %s, Location %s", resp.StatusCode, b, resp.Header.Get("Location"))
	}
	task := "/api/v1/tasks/" + made.TaskID
	if got := p.is(made.TaskID, lpmos.Pending); got.TargetMAC.String() != mac || got.Arch != "amd64" || got.Hostname != "machine-aabb01" {
		t.Errorf("task = %+v; want the canonical MAC and what was left out filled in", got.Spec)
	}
	p.problem("GET", task+"/plan", "", 404)
	p.problem("DELETE", task, "", 409)
	p.problem("POST", task+"/retry", "", 409)
	p.problem("PUT", task+"/approve", `{"approved":true}`, 409)

	found := lpmos.Content{Filesystem: &lpmos.Filesystem{Type: "ext4", Label: "payroll"}}
	plan := p.report(made.TaskID, mac, found).Plan
	if got := want[lpmos.Plan](p, "GET", task+"/plan", "", 200); got.Digest != plan.Digest || len(got.Hazards) == 0 {
		t.Errorf("plan = %+v; want that of the task, with hazards", got)
	}
	for name, body := range map[string]string{
		"the founding form, where data was found": `{"approved":true,"notes":"ok"}`,
		"another plan's digest":                   `{"approved":true,"plan_digest":"sha256:` + strings.Repeat("0", 64) + `"}`,
	} {
		pr := p.problem("PUT", task+"/approve", body, 409)
		if pr.PlanDigest != plan.Digest || pr.Plan == nil {
			t.Errorf("approving with %s = %+v; want the plan as it is now", name, pr)
		}
	}
	p.is(made.TaskID, lpmos.AwaitingApproval)
	if got := want[lpmos.Task](p, "PUT", task+"/approve", `{"approved":true,"notes":"ok","plan_digest":"`+plan.Digest+`"}`, 200); got.Status != lpmos.Approved || got.Approval.Notes != "ok" {
		t.Errorf("approved task = %+v", got)
	}
	if pr := p.problem("PUT", task+"/approve", `{"approved":false}`, 409); !strings.Contains(pr.Detail, "approved by tester") {
		t.Errorf("deciding twice = %q; want to hear who decided", pr.Detail)
	}
	if got := want[lpmos.Task](p, "POST", task+"/cancel", `{"reason":"not today"}`, 200); got.Status != lpmos.Canceled {
		t.Errorf("canceled task is %s", got.Status)
	}
	if pr := p.problem("POST", task+"/cancel", "", 409); pr.TaskStatus != lpmos.Canceled {
		t.Errorf("canceling twice = %+v; want the status that was in the way", pr)
	}
	events := want[struct{ Events []lpmos.Event }](p, "GET", task+"/events", "", 200).Events
	if err := lpmos.VerifyEvents(events); err != nil || len(events) != 4 || events[3].Message != "not today" {
		t.Errorf("events %+v: %v", events, err)
	}
	if l := want[struct{ Lines []string }](p, "GET", task+"/logs", "", 200); l.Lines == nil {
		t.Error("lines is null; want []")
	}
	p.is(made.TaskID, lpmos.Canceled)
	p.empty("DELETE", task, 204)
	p.problem("DELETE", task, "", 404)
	p.eventually("task forgotten", func() bool { _, ok := p.state.Task(made.TaskID); return !ok })

	second := p.create(mac)
	p.report(second, mac, lpmos.Content{})
	if got := want[lpmos.Task](p, "PUT", "/api/v1/tasks/"+second+"/approve", `{"approved":true}`, 200); got.Status != lpmos.Approved {
		t.Errorf("the founding form, where nothing was found, leaves the task %s", got.Status)
	}
	if err := p.sess.PutResult(t.Context(), lpmos.Result{TaskID: second, Attempt: 1, Failure: &lpmos.Failure{Code: "x", Cause: "It broke.", NextStep: "Mend it."}}); err != nil {
		t.Fatal(err)
	}
	if got := p.is(second, lpmos.Failed); got.Error == nil || got.Error.NextStep != "Mend it." {
		t.Errorf("failed task = %+v", got.Error)
	}
	if got := want[lpmos.Task](p, "POST", "/api/v1/tasks/"+second+"/retry", "", 200); got.Status != lpmos.Pending || got.Attempt != 2 {
		t.Errorf("retried task = %s, attempt %d", got.Status, got.Attempt)
	}
}

// Bad input is answered with a problem, and nothing of it is stored.
func TestBadInput(t *testing.T) {
	p := newPlane(t)
	spec := func(field, value string) string {
		m := map[string]any{"region_id": "dc1", "target_mac": mac, "os_type": "tiny", "os_version": "1", field: value}
		b, _ := json.Marshal(m)
		return string(b)
	}
	for name, tt := range map[string]struct{ body, field string }{
		"a malformed MAC":      {spec("target_mac", "00:1a:2b:3c:4d"), ""},
		"no MAC":               {spec("target_mac", ""), "target_mac"},
		"a multicast MAC":      {spec("target_mac", "01:00:5e:00:00:01"), ""},
		"the broadcast MAC":    {spec("target_mac", "ff:ff:ff:ff:ff:ff"), ""},
		"the zero MAC":         {spec("target_mac", "00:00:00:00:00:00"), ""},
		"an unknown region":    {spec("region_id", "dc9"), "region_id"},
		"a path as region":     {spec("region_id", "dc1/../dc2"), "region_id"},
		"an unknown system":    {spec("os_type", "plan9"), "os_type"},
		"a path as system":     {spec("os_type", "../../etc/shadow"), "os_type"},
		"an unknown version":   {spec("os_version", "99"), "os_type"},
		"a path as version":    {spec("os_version", "1/../../x"), "os_version"},
		"an architecture":      {spec("arch", "mips"), "arch"},
		"a host name":          {spec("hostname", "a\u202eb"), "hostname"},
		"markup as host name":  {spec("hostname", "<img src=x onerror=alert(1)>"), "hostname"},
		"an unknown field":     {spec("force", "yes"), "force"},
		"a field in capitals":  {spec("REGION_ID", "dc1"), "REGION_ID"},
		"a field twice":        {`{"region_id":"dc1","region_id":"dc1"}`, "region_id"},
		"a second object":      {createBody(mac) + `{}`, ""},
		"an array":             {`[` + createBody(mac) + `]`, ""},
		"half an object":       {`{"region_id":`, ""},
		"invalid UTF-8":        {"{\"region_id\":\"\xff\"}", ""},
		"something too deep":   {strings.Repeat("[", 100), ""},
		"a number for a text":  {`{"region_id":1}`, "region_id"},
		"an SSH key's options": {`{"region_id":"dc1","target_mac":"` + mac + `","os_type":"tiny","os_version":"1","ssh_keys":["command=\"x\" ssh-ed25519 AAAA"]}`, "ssh_keys"},
		"a disk without size":  {`{"region_id":"dc1","target_mac":"` + mac + `","os_type":"tiny","os_version":"1","target_disk":{"serial":"x","size_bytes":0}}`, "target_disk"},
		"long notes":           {spec("notes", strings.Repeat("n", 3000)), "notes"},
	} {
		if pr := p.problem("POST", "/api/v1/tasks", tt.body, 400); tt.field != "" && pr.Field != tt.field {
			t.Errorf("%s: field %q; want %q", name, pr.Field, tt.field)
		}
	}
	p.problem("POST", "/api/v1/tasks", createBody(mac), 400, "Idempotency-Key", strings.Repeat("k", 256))
	p.problem("POST", "/api/v1/tasks", `{"notes":"`+strings.Repeat("x", 300<<10)+`"}`, 413)
	p.problem("POST", "/api/v1/tasks", createBody(mac), 415, "Content-Type", "text/plain")
	p.problem("POST", "/api/v1/tasks", createBody(mac), 415, "Content-Type", "application/x-www-form-urlencoded")

	// V06, V07
	for _, id := range []string{"x", "t1%2Fapproval", "..%2F..%2Fconfig%2Fglobal", missing + "%2Fstatus", "550E8400-E29B-41D4-A716-446655440000", "%00", strings.Repeat("a", 300)} {
		task := "/api/v1/tasks/" + id
		p.problem("GET", task, "", 400)
		p.problem("DELETE", task, "", 400)
		p.problem("GET", task+"/events", "", 400)
		p.problem("GET", task+"/logs", "", 400)
		p.problem("GET", task+"/plan", "", 400)
		p.problem("PUT", task+"/approve", `{"approved":true}`, 400)
		p.problem("POST", task+"/cancel", "", 400)
		p.problem("POST", task+"/retry", "", 400)
		p.problem("GET", "/api/v1/regions/"+strings.Replace(id, missing, "-", 1)+"%2F", "", 400)
	}
	task := "/api/v1/tasks/" + missing
	p.problem("GET", task, "", 404)
	p.problem("DELETE", task, "", 404)
	p.problem("GET", task+"/events", "", 404)
	p.problem("GET", task+"/logs", "", 404)
	p.problem("GET", task+"/plan", "", 404)
	p.problem("PUT", task+"/approve", `{"approved":true}`, 404)
	p.problem("POST", task+"/cancel", "", 404)
	p.problem("POST", task+"/retry", "", 404)
	for _, body := range []string{
		`{}`, `{"approved":"true"}`, `{"approved":null}`, `{"approved":false,"APPROVED":true}`, `{"approved":true,"approved":false}`,
		`{"approved":true,"plan_digest":"x"}`, `{"approved":true,"plan_dige` + "ſ" + `t":"x"}`, `{"approved":true}{"approved":false}`,
		`{"approved":true,"notes":"` + strings.Repeat("n", 3000) + `"}`,
	} {
		p.problem("PUT", task+"/approve", body, 400)
	}
	huge := `{"notes":"` + strings.Repeat("x", 300<<10) + `"}`
	for _, r := range [][2]string{{"PUT", task + "/approve"}, {"POST", task + "/cancel"}, {"PUT", "/api/v1/images/tiny/1/amd64"}, {"PUT", "/api/v1/bootimage"}} {
		p.problem(r[0], r[1], huge, 413)
		p.problem(r[0], r[1], `{}`, 415, "Content-Type", "text/plain")
	}
	for _, q := range []string{"status=PENDING", "status=pending,", "region_id=a%2Fb", "limit=0", "limit=1001", "limit=x"} {
		p.problem("GET", "/api/v1/tasks?"+q, "", 400)
	}
	p.problem("GET", "/api/v1/regions/dc9", "", 404)

	var stored []string
	for b, err := range p.store.Changes(t.Context(), store.All) {
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range b.Changes {
			if strings.HasPrefix(string(c.Key.Kind), "tasks/") || strings.HasPrefix(string(c.Key.Kind), "idempotency/") || c.Key.Kind == store.KindOrder {
				stored = append(stored, c.Key.String())
			}
		}
		break
	}
	if len(stored) > 0 {
		t.Errorf("bad input left %v", stored)
	}
}

func TestOneLiveTaskPerMachine(t *testing.T) {
	p := newPlane(t)
	first := p.create(mac)
	for _, spelling := range []string{mac, "52-54-00-AA-BB-01", "5254.00aa.bb01", "525400AABB01"} {
		if pr := p.problem("POST", "/api/v1/tasks", createBody(spelling), 409); !strings.Contains(pr.Detail, first) {
			t.Errorf("a second task for %s = %q; want the first one named", spelling, pr.Detail)
		}
	}
	if n := want[struct{ Total int }](p, "GET", "/api/v1/tasks", "", 200).Total; n != 1 {
		t.Errorf("%d tasks; want 1", n)
	}
}

func TestIdempotencyKey(t *testing.T) {
	p := newPlane(t)
	a, b := p.create(mac, "Idempotency-Key", "k1"), p.create("5254.00aa.bb01", "Idempotency-Key", "k1")
	if a != b {
		t.Errorf("one key made %s and %s", a, b)
	}
	p.problem("POST", "/api/v1/tasks", createBody("52:54:00:aa:bb:02"), 409, "Idempotency-Key", "k1")
}

func TestListing(t *testing.T) {
	p := newPlane(t)
	type page struct {
		Tasks      []lpmos.Task
		Total      int
		NextCursor string `json:"next_cursor"`
		Rev        int64
	}
	if got := want[page](p, "GET", "/api/v1/tasks", "", 200); got.Tasks == nil || got.Total != 0 {
		t.Errorf("no tasks = %+v; want []", got)
	}
	var ids []string
	for i := range 5 {
		ids = append(ids, p.create(fmt.Sprintf("52:54:00:00:00:%02x", i)))
	}
	p.eventually("all listed", func() bool { return len(p.state.Live()) == 5 })
	slices.Reverse(ids)
	var got []string
	cursor := ""
	for range 3 {
		l := want[page](p, "GET", "/api/v1/tasks?limit=2&cursor="+cursor, "", 200)
		for _, x := range l.Tasks {
			got = append(got, x.ID)
		}
		cursor = l.NextCursor
		if l.Total != 5 || l.Rev == 0 {
			t.Errorf("total %d, rev %d", l.Total, l.Rev)
		}
	}
	if !slices.Equal(got, ids) || cursor != "" {
		t.Errorf("three pages hold %v and end on cursor %q; want %v, newest first", got, cursor, ids)
	}
	if l := want[page](p, "GET", "/api/v1/tasks?status=pending,failed&region_id=dc1&q=00:00:03+TINY", "", 200); l.Total != 1 || l.Tasks[0].TargetMAC.String() != "52:54:00:00:00:03" {
		t.Errorf("filtered: %+v", l)
	}
}

func TestResources(t *testing.T) {
	p := newPlane(t)
	if r := want[struct{ Regions []lpmos.Region }](p, "GET", "/api/v1/regions", "", 200).Regions; len(r) != 1 || r[0].Status != "online" {
		t.Errorf("regions %+v", r)
	}
	if r := want[lpmos.Region](p, "GET", "/api/v1/regions/dc1", "", 200); r.ID != "dc1" || r.Capabilities == nil {
		t.Errorf("region %+v", r)
	}
	if i := want[struct{ Images []lpmos.Image }](p, "GET", "/api/v1/images", "", 200).Images; len(i) != 1 || i[0].Name() != "tiny/1/amd64" {
		t.Errorf("images %+v", i)
	}
	id := p.create(mac)
	p.is(id, lpmos.Pending)
	if pr := p.problem("DELETE", "/api/v1/images/tiny/1/amd64", "", 409); !strings.Contains(pr.Detail, id) {
		t.Errorf("deleting what a live task installs = %q; want to hear which", pr.Detail)
	}
	want[lpmos.Task](p, "POST", "/api/v1/tasks/"+id+"/cancel", "", 200)
	p.is(id, lpmos.Canceled)
	p.empty("DELETE", "/api/v1/images/tiny/1/amd64", 204)
	p.problem("DELETE", "/api/v1/images/tiny/1/amd64", "", 404)
	p.problem("DELETE", "/api/v1/images/..%2F..%2Fx/1/amd64", "", 400)

	if resp, b := p.do("GET", "/healthz", ""); resp.StatusCode != 200 || string(b) != "ok\n" {
		t.Errorf("healthz = %d %q", resp.StatusCode, b)
	}
	if resp, b := p.do("GET", "/readyz", ""); resp.StatusCode != 200 {
		t.Errorf("readyz = %d %q", resp.StatusCode, b)
	}
	if resp, b := p.do("GET", "/api/v1/openapi.yaml", ""); resp.StatusCode != 200 || !bytes.Equal(b, api.OpenAPI) {
		t.Errorf("openapi.yaml = %d, %d bytes", resp.StatusCode, len(b))
	}
}

// An image is registered only if its manifest holds and its parts are there.
func TestPutImageRefuses(t *testing.T) {
	p := newPlane(t)
	for name, m := range map[string][]byte{
		"chunks outside the filesystem": p.manifest(func(m *lpmos.ImageManifest) { m.Chunks[0].Offset = 64 << 20 }),
		"no kernel":                     p.manifest(func(m *lpmos.ImageManifest) { m.Kernel = "" }),
		"another system":                p.manifest(func(m *lpmos.ImageManifest) { m.OS = "other" }),
		"a pack that is not there":      p.manifest(func(m *lpmos.ImageManifest) { m.Pack.SHA256 = strings.Repeat("0", 64) }),
		"an unknown field":              []byte(`{"format":"ext4","exec":"/bin/sh"}`),
		"no JSON":                       []byte("\x7fELF"),
	} {
		p.upload(m)
		if pr := p.problem("PUT", "/api/v1/images/tiny/1/amd64", p.imageBody(m), 400); pr.Detail == "" {
			t.Errorf("%s: no detail", name)
		}
	}
	p.problem("PUT", "/api/v1/images/tiny/1/amd64", p.imageBody([]byte("never uploaded")), 400)
	p.problem("PUT", "/api/v1/images/tiny/2/amd64", p.imageBody(p.manifest(nil)), 400)
	p.problem("PUT", "/api/v1/images/tiny/1/amd64", `{"os":"tiny","version":"1","arch":"amd64","digest":"x"}`, 400)
	if i := p.state.Images(); len(i) != 1 || i[0].Digest != lpmos.DigestBytes(p.manifest(nil)) {
		t.Errorf("the catalogue holds %+v; want the first image alone", i)
	}
}

func TestBootImage(t *testing.T) {
	p := newPlane(t)
	blob := fmt.Sprintf(`{"sha256":%q,"bytes":%d}`, digits(p.pack), len(p.pack))
	const form = `{"version":"1","kernel":%s,"initrd":%s,"kernel_args":"quiet","files":{"undionly.kpxe":%s}}`
	if b := want[lpmos.BootImage](p, "PUT", "/api/v1/bootimage", fmt.Sprintf(form, blob, blob, blob), 200); b.Kernel.SHA256 != digits(p.pack) {
		t.Errorf("boot image %+v", b)
	}
	p.eventually("published", func() bool { return p.state.Global().BootImage != nil })
	none := `{"sha256":"` + strings.Repeat("0", 64) + `","bytes":1}`
	// V12: no machine would get a script with such a word in it.
	for _, args := range []string{`quiet ${net0/mac}`, `quiet && shell`, `a=\"b`, `a\u0000`, `init=/bin/sh;x`} {
		if pr := p.problem("PUT", "/api/v1/bootimage", strings.Replace(fmt.Sprintf(form, blob, blob, blob), "quiet", args, 1), 400); pr.Field != "kernel_args" {
			t.Errorf("kernel arguments %s: %+v", args, pr)
		}
	}
	if pr := p.problem("PUT", "/api/v1/bootimage", fmt.Sprintf(form, blob, blob, none), 400); pr.Field != "files.undionly.kpxe" {
		t.Errorf("a part that is not there: %+v", pr)
	}
}

func TestBlobs(t *testing.T) {
	p := newPlane(t)
	path := "/api/v1/blobs/" + digits(p.pack)
	resp, b := p.do("GET", path, "")
	if resp.StatusCode != 200 || !bytes.Equal(b, p.pack) {
		t.Errorf("blob = %d %q", resp.StatusCode, b)
	}
	if resp, b := p.do("GET", path, "", "Range", "bytes=7-11"); resp.StatusCode != 206 || string(b) != "chunk" {
		t.Errorf("range = %d %q", resp.StatusCode, b)
	}
	if resp, _ := p.do("GET", path, "", "Range", "bytes=100-"); resp.StatusCode != 416 {
		t.Errorf("a range past the end = %d", resp.StatusCode)
	}
	p.empty("GET", path, 304, "If-None-Match", resp.Header.Get("ETag"))
	p.empty("HEAD", path, 200)
	p.empty("HEAD", "/api/v1/blobs/"+strings.Repeat("0", 64), 404)
	p.empty("HEAD", "/api/v1/blobs/x", 400)
	p.problem("GET", "/api/v1/blobs/"+strings.Repeat("0", 64), "", 404)
	for _, bad := range []string{"x", "..%2Fsigning.key", strings.ToUpper(digits(p.pack)), "sha256:" + digits(p.pack)} {
		p.problem("GET", "/api/v1/blobs/"+bad, "", 400)
		p.problem("PUT", "/api/v1/blobs/"+bad, "x", 400, "Content-Type", "application/octet-stream")
	}
	other := digits([]byte("other"))
	p.problem("PUT", "/api/v1/blobs/"+other, "not what it says", 400, "Content-Type", "application/octet-stream")
	p.problem("GET", "/api/v1/blobs/"+other, "", 404)

	// What is announced as too large is refused before it is sent.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, p.url+"/api/v1/blobs/"+other, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = blobs.MaxBytes + 1
	req.Header.Set("Expect", "100-continue")
	req.Header.Set("Content-Type", "application/octet-stream")
	tooLarge, err := p.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	tooLarge.Body.Close()
	if tooLarge.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a blob over the limit = %d", tooLarge.StatusCode)
	}
}

var parameter = regexp.MustCompile(`:(\w+)`)

// TestRouteTable: what is served is described, and the other way round.
func TestRouteTable(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	var served, described []string
	for _, r := range rest.New(nil, nil, nil, nil, nil, nil, discard).Routes() {
		served = append(served, r.Method+" "+parameter.ReplaceAllString(r.Path, "{$1}"))
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			described = append(described, method+" "+path)
			if op.OperationID == "" || op.Summary == "" || len(op.Tags) == 0 {
				t.Errorf("%s %s has no operationId, summary or tag", method, path)
			}
		}
	}
	slices.Sort(served)
	slices.Sort(described)
	if !slices.Equal(served, described) {
		t.Errorf("served are\n%s\ndescribed are\n%s", strings.Join(served, "\n"), strings.Join(described, "\n"))
	}
}

func TestUnknownRoutes(t *testing.T) {
	h := rest.New(nil, nil, nil, nil, nil, nil, discard).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/api/v1/nothing", 404}, {"GET", "/api/v2/tasks", 404}, {"GET", "/api/v1/tasks/", 404}, {"PATCH", "/api/v1/tasks", 405},
		{"DELETE", "/api/v1/regions", 405}, {"GET", "/tasks", 418}, {"POST", "/tasks", 418}, {"GET", "/", 418},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if w.Code != tt.want || tt.want != 418 && w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s = %d %s; want %d", tt.method, tt.path, w.Code, w.Header().Get("Content-Type"), tt.want)
		}
	}
}
