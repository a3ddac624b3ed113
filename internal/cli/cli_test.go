package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

func TestMain(m *testing.M) {
	if os.Getenv("CLI_TEST_COMMAND") != "" { // a shell runs this binary as lpmos
		os.Exit(Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	time.Local = time.UTC
	for _, kv := range os.Environ() { // the caller's own settings are none of the tests'
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "LPMOS_") {
			os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

const (
	id1 = "550e8400-e29b-41d4-a716-446655440000"
	id2 = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
)

var created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fake is a control plane that knows what the test gave it and remembers what
// it was asked to do.
type fake struct {
	tasks   []lpmos.Task
	events  []lpmos.Event
	logs    []string
	regions []lpmos.Region
	images  []lpmos.Image
	refuse  map[string]string // "METHOD /path" → problem body
	more    map[string]any    // "METHOD /path" → answer

	mu    sync.Mutex
	asked []string // "METHOD /path body", without GETs
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if r.Method != http.MethodGet {
		f.mu.Lock()
		f.asked = append(f.asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body)))
		f.mu.Unlock()
	}
	if p, ok := f.refuse[r.Method+" "+r.URL.Path]; ok {
		var status struct{ Status int }
		_ = json.Unmarshal([]byte(p), &status)
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status.Status)
		_, _ = io.WriteString(w, p)
		return
	}
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	if v, ok := f.more[r.Method+" "+r.URL.Path]; ok {
		answer(v)
		return
	}
	rest := strings.TrimPrefix(r.URL.Path, "/api/v1")
	for i, t := range f.tasks {
		switch rest {
		case "/tasks/" + t.ID:
			answer(t)
			return
		case "/tasks/" + t.ID + "/events":
			answer(map[string]any{"events": f.events})
			return
		case "/tasks/" + t.ID + "/logs":
			answer(map[string]any{"lines": f.logs})
			return
		case "/tasks/" + t.ID + "/approve", "/tasks/" + t.ID + "/cancel", "/tasks/" + t.ID + "/retry":
			answer(f.tasks[i])
			return
		}
	}
	for _, g := range f.regions {
		if rest == "/regions/"+g.ID {
			answer(g)
			return
		}
	}
	switch rest {
	case "/tasks":
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusCreated)
			answer(map[string]string{"task_id": id1, "status": "pending"})
			return
		}
		tasks := f.tasks
		if s := r.URL.Query().Get("status"); s != "" {
			tasks = slices.DeleteFunc(slices.Clone(tasks), func(t lpmos.Task) bool { return !slices.Contains(strings.Split(s, ","), string(t.Status)) })
		}
		if q, err := query.Parse(r.URL.Query().Get("q")); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		} else {
			tasks = slices.DeleteFunc(slices.Clone(tasks), func(t lpmos.Task) bool { return !found(t, q) })
		}
		if tasks == nil {
			tasks = []lpmos.Task{}
		}
		answer(map[string]any{"tasks": tasks, "total": len(tasks) + 1, "rev": 7})
	case "/regions":
		answer(map[string]any{"regions": append([]lpmos.Region{}, f.regions...)})
	case "/images":
		answer(map[string]any{"images": append([]lpmos.Image{}, f.images...)})
	default:
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"title":"Not found","status":404,"detail":"there is no such thing"}`)
	}
}

// found reports whether a search finds a task, as far as the commands search by
// themselves.
func found(t lpmos.Task, q query.Filter) bool {
	for _, term := range q.Terms {
		v, is := term.Values[0], false
		switch {
		case term.Key == "id":
			is = strings.HasPrefix(t.ID, v)
		case term.Key == "host" && term.Exact:
			is = t.Hostname == v
		case term.Key == "host" && strings.HasSuffix(v, "*"):
			is = strings.HasPrefix(t.Hostname, strings.TrimSuffix(v, "*"))
		case term.Key == "mac" && term.Exact:
			is = t.TargetMAC.String() == v
		case term.Key == "":
			is = strings.Contains(t.ID+" "+t.Hostname+" "+t.TargetMAC.String()+" "+t.OSType, v)
		}
		if !is {
			return false
		}
	}
	return true
}

// run is one command line against the fake.
func (f *fake) run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	srv := httptest.NewServer(f)
	defer srv.Close()
	var out, errs bytes.Buffer
	code = Main(t.Context(), append([]string{"--server=" + srv.URL}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

func server() lpmos.Task {
	h := &lpmos.Hardware{
		BootMode: "uefi", System: lpmos.System{Manufacturer: "Acme", Product: "R1", Serial: "SRV1"},
		CPU: lpmos.CPU{Model: "Xeon", Architecture: "amd64", Sockets: 2, Cores: 32}, Memory: lpmos.Memory{TotalBytes: 256 << 30},
		Disks: []lpmos.Disk{
			{Device: "/dev/nvme0n1", Serial: "N0", Vendor: "Acme", Model: "P5", SizeBytes: 7_681_501_126_656, Transport: "nvme"},
			{Device: "/dev/sda", Serial: "S0WXYZ", Model: "MX", SizeBytes: 480_103_981_056, Transport: "sata", Content: lpmos.Content{Filesystem: &lpmos.Filesystem{Type: "ext4", Label: "payroll"}}},
		},
		NICs: []lpmos.NIC{{Name: "eno1", MAC: lpmos.MustMAC("52:54:00:00:00:01"), Driver: "ice", Link: true, SpeedMbps: 25000}, {Name: "eno2", MAC: lpmos.MustMAC("52:54:00:00:00:02"), Driver: "ice"}},
	}
	t := lpmos.Task{
		ID: id1, Status: lpmos.AwaitingApproval, Attempt: 1, CreatedAt: created, UpdatedAt: created, CreatedBy: "alice", Rev: 5,
		Spec: lpmos.Spec{
			RegionID: "dc1", TargetMAC: lpmos.MustMAC("52:54:00:00:00:01"), OSType: "debian", OSVersion: "12", Arch: "amd64", Hostname: "web-01",
			TargetDisk: &lpmos.DiskRef{Serial: "S0WXYZ", SizeBytes: 480_103_981_056},
		},
		Hardware: h,
	}
	p := lpmos.NewPlan(&t, h, lpmos.Image{OS: "debian", Version: "12", Arch: "amd64", Digest: "sha256:" + strings.Repeat("ab", 32), SizeBytes: 2 << 30, BootModes: []string{"uefi"}})
	t.Plan = &p
	return t
}

func installing() lpmos.Task {
	t := server()
	t.ID, t.Hostname, t.Status, t.TargetMAC = id2, "db-01", lpmos.Installing, lpmos.MustMAC("52:54:00:00:00:09")
	t.Progress = &lpmos.Progress{TaskID: id2, Attempt: 1, Stage: lpmos.Downloading, Percentage: 48}
	return t
}

func trimmed(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return b.String()
}

func TestTables(t *testing.T) {
	failed := server()
	failed.Status, failed.Error = lpmos.Failed, &lpmos.Failure{Code: "x", Cause: "The disk is gone.", NextStep: "Put it back.", Evidence: "ENODEV"}
	list := []lpmos.Task{server(), installing()}
	for i := range list {
		list[i].CreatedAt = time.Now().Add(-5*time.Minute - 10*time.Second)
	}
	events := []lpmos.Event{
		{Seq: 1, At: created, Cause: lpmos.CauseCreated, To: lpmos.Pending, By: "alice", Message: "Task created."},
		{Seq: 2, At: created.Add(61500 * time.Millisecond), Cause: lpmos.CauseHardwareReported, From: lpmos.Pending, To: lpmos.AwaitingApproval, By: "agent"},
	}
	digest := server().Plan.Digest
	for name, tt := range map[string]struct {
		f    *fake
		args []string
		want string
	}{
		"list": {&fake{tasks: list}, []string{"task", "list"}, `
TASK      STATUS             PROGRESS              HOST    MAC                SYSTEM     REGION  AGE
550e8400  awaiting_approval  –                     web-01  52:54:00:00:00:01  debian 12  dc1     5 min
6fa459ea  installing         2/4 downloading 48 %  db-01   52:54:00:00:00:09  debian 12  dc1     5 min

2 of 3 shown (--limit, --all)
`},
		"list of nothing": {&fake{}, []string{"task", "list"}, `
No tasks. Create one:  lpmos task create --help
`},
		"show": {&fake{tasks: []lpmos.Task{failed}}, []string{"task", "show", "550e"}, `
task       550e8400-e29b-41d4-a716-446655440000
status     failed, attempt 1
host       web-01
machine    52:54:00:00:00:01 in dc1
system     debian 12 amd64
created    2026-01-02 03:04:05 by alice
hardware   Acme R1, serial SRV1, uefi
cpu        2 × Xeon, 32 cores
memory     256.0 GiB
disk       7.68 TB Acme P5, serial N0, empty
disk       480 GB MX, serial S0WXYZ, in use
nic        52:54:00:00:00:01 eno1, ice, 25000 Mbit/s
nic        52:54:00:00:00:02 eno2, ice, no link
failed     The disk is gone.
next step  Put it back.
evidence   ENODEV
`},
		"plan": {&fake{tasks: []lpmos.Task{server()}}, []string{"task", "plan", id1}, `
machine  52:54:00:00:00:01, serial SRV1
ERASES   serial S0WXYZ, 480 GB, MX
         whole disk: ext4 “payroll”
keeps    serial N0, 7.68 TB, P5
writes   1 bios-boot, 2.1 MB
writes   2 esp, 67 MB vfat /boot/efi
writes   3 root, 480 GB ext4 /
image    debian 12 amd64, sha256:` + strings.Repeat("ab", 32) + `
host     web-01, uefi boot, 0 SSH keys
digest   ` + digest + `
`},
		"events": {&fake{tasks: []lpmos.Task{server()}, events: events}, []string{"task", "events", id1}, `
#  TIME                 AFTER   STATUS             CAUSE              BY     MESSAGE
1  2026-01-02 03:04:05          pending            created            alice  Task created.
2  2026-01-02 03:05:06  1m1.5s  awaiting_approval  hardware_reported  agent
`},
		"create": {&fake{}, []string{"task", "create", "--region", "dc1", "--mac", "5254.0000.0001", "--os", "debian", "--os-version", "12"}, `
550e8400-e29b-41d4-a716-446655440000

Boot the machine from the network, then:  lpmos task watch 550e8400
`},
		"logs": {&fake{tasks: []lpmos.Task{server()}, logs: []string{"one", "two"}}, []string{"task", "logs", id1}, `
one
two
`},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := tt.f.run(t, tt.args...)
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), trimmed(out)); code != 0 || errs != "" || diff != "" {
				t.Errorf("exit %d, stderr %q, output differs (- want, + got):\n%s", code, errs, diff)
			}
		})
	}
}

func TestJSONAndYAML(t *testing.T) {
	f := &fake{tasks: []lpmos.Task{server()}}
	_, out, _ := f.run(t, "task", "show", id1, "-o", "json")
	var got lpmos.Task
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Plan.Digest != server().Plan.Digest {
		t.Errorf("-o json = %v; want the task as the API has it", err)
	}
	if _, out, _ = f.run(t, "task", "list", "-o", "yaml"); !strings.Contains(out, "target_mac: 52:54:00:00:00:01\n") && !strings.Contains(out, `target_mac: "52:54:00:00:00:01"`) {
		t.Errorf("-o yaml = %.300s; want the API's names", out)
	}
	if code, _, errs := f.run(t, "task", "list", "-o", "xml"); code != ExitUsage || !strings.Contains(errs, "--output") {
		t.Errorf("-o xml = exit %d, %q; want 2", code, errs)
	}
}

func TestExitCodes(t *testing.T) {
	problem := func(status int) string { return fmt.Sprintf(`{"title":"T","status":%d,"detail":"because"}`, status) }
	refusing := func(status int) *fake {
		return &fake{tasks: []lpmos.Task{server()}, refuse: map[string]string{"POST /api/v1/tasks/" + id1 + "/cancel": problem(status)}}
	}
	one := &fake{tasks: []lpmos.Task{server()}}
	for name, tt := range map[string]struct {
		f    *fake
		args []string
		want int
	}{
		"done":                       {one, []string{"task", "cancel", id1}, ExitOK},
		"help":                       {one, []string{"--help"}, ExitOK},
		"an unknown command":         {one, []string{"tusk"}, ExitUsage},
		"an unknown subcommand":      {one, []string{"task", "lsit"}, ExitUsage},
		"an unknown flag":            {one, []string{"task", "list", "--colour"}, ExitUsage},
		"too few arguments":          {one, []string{"task", "show"}, ExitUsage},
		"too many arguments":         {one, []string{"task", "show", id1, id1}, ExitUsage},
		"an unknown status":          {one, []string{"task", "list", "--status", "faild"}, ExitUsage},
		"an unknown order":           {one, []string{"task", "list", "--sort", "size"}, ExitUsage},
		"no limit":                   {one, []string{"task", "list", "--limit", "0"}, ExitUsage},
		"an unknown format":          {one, []string{"task", "cancel", id1, "-o", "xml"}, ExitUsage},
		"the word of another tool":   {one, []string{"tasks", "ls"}, ExitOK},
		"a check that failed":        {&fake{refuse: map[string]string{"GET /readyz": problem(503)}}, []string{"doctor"}, ExitFailed},
		"a malformed MAC":            {one, []string{"task", "create", "--mac", "x"}, ExitUsage},
		"too short a prefix":         {one, []string{"task", "show", "55"}, ExitUsage},
		"an unknown task":            {one, []string{"task", "show", id2}, ExitNotFound},
		"an unknown prefix":          {one, []string{"task", "show", "ffff"}, ExitNotFound},
		"an unknown region":          {one, []string{"region", "show", "dc9"}, ExitNotFound},
		"refused as invalid":         {refusing(400), []string{"task", "cancel", id1}, ExitUsage},
		"refused as too large":       {refusing(413), []string{"task", "cancel", id1}, ExitUsage},
		"refused as unknown":         {refusing(404), []string{"task", "cancel", id1}, ExitNotFound},
		"refused as a conflict":      {refusing(409), []string{"task", "cancel", id1}, ExitConflict},
		"refused as unavailable":     {refusing(503), []string{"task", "cancel", id1}, ExitUnavailable},
		"refused for another reason": {refusing(500), []string{"task", "cancel", id1}, ExitFailed},
	} {
		code, out, errs := tt.f.run(t, tt.args...)
		if name == "a check that failed" {
			errs = "lpmos: " + out // it is the result, not a complaint
		}
		if code != tt.want || (code != 0) != (errs != "") || code != 0 && !strings.HasPrefix(errs, "lpmos: ") {
			t.Errorf("%s: exit %d, stdout %.100q, stderr %q; want %d", name, code, out, errs, tt.want)
		}
	}
	var out, errs bytes.Buffer
	if code := Main(t.Context(), []string{"task", "list", "--server", "http://127.0.0.1:1"}, &out, &errs); code != ExitUnavailable || !strings.Contains(errs.String(), "is it running?") {
		t.Errorf("without a control plane: exit %d, %q; want 5 and what to do", code, errs.String())
	}
	if code := Main(t.Context(), []string{"task", "list", "--server", "ftp://x"}, &out, &errs); code != ExitUsage {
		t.Errorf("with a bad --server: exit %d; want 2", code)
	}
	t.Setenv("LPMOS_SERVER", "http://127.0.0.1:1")
	if code := Main(t.Context(), []string{"task", "list"}, &out, &errs); code != ExitUnavailable {
		t.Errorf("LPMOS_SERVER is not heeded: exit %d", code)
	}
}

func TestApprove(t *testing.T) {
	want := func(f *fake, code int, in string, asked []string, args ...string) {
		t.Helper()
		got, out, errs := f.run(t, append([]string{"task", "approve"}, args...)...)
		if got != code || !strings.Contains(out+errs, in) {
			t.Errorf("approve %v = exit %d, %q %q; want %d with %q", args, got, out, errs, code, in)
		}
		if diff := cmp.Diff(asked, f.asked); diff != "" {
			t.Errorf("approve %v asked the control plane for (- want, + got):\n%s", args, diff)
		}
	}
	// Standard input of a test is no terminal.
	used := func() *fake { return &fake{tasks: []lpmos.Task{server()}} }
	digest := server().Plan.Digest
	want(used(), ExitUsage, "--plan is missing", nil, id1)
	want(used(), ExitUsage, "--plan is missing", nil, id1, "--serial-end", "WXYZ")
	want(used(), ExitUsage, "--serial-end", nil, id1, "--plan", digest)
	want(used(), ExitUsage, "--serial-end", nil, id1, "--plan", digest, "--serial-end", "XXXX")
	body := fmt.Sprintf(`{"approved":true,"notes":"","plan_digest":%q}`, digest)
	want(used(), ExitOK, "approved", []string{"PUT /api/v1/tasks/" + id1 + "/approve " + body}, id1, "--plan", digest, "--serial-end", "wxyz")

	// A person at a terminal is asked, and says nothing that was not asked.
	asked := func(f *fake, answers string, args ...string) (int, string) {
		t.Helper()
		srv := httptest.NewServer(f)
		defer srv.Close()
		var out, errs bytes.Buffer
		a := &app{in: strings.NewReader(answers), asks: true, out: &out, err: &errs}
		code := a.main(t.Context(), append([]string{"--server=" + srv.URL, "task"}, args...))
		return code, out.String() + errs.String()
	}
	for answers, want := range map[string]int{"yes\nWXYZ\n": ExitOK, "yes\nwxyz\n": ExitOK, "yes\nXXXX\n": ExitFailed, "yes\n": ExitFailed, "no\nWXYZ\n": ExitFailed, "": ExitFailed, "y\n": ExitFailed} {
		f := used()
		code, said := asked(f, answers, "approve", id1)
		if code != want || (code == ExitOK) != (len(f.asked) == 1) || !strings.Contains(said, "payroll") {
			t.Errorf("answering %q: exit %d, asked %q, said %q; want %d", answers, code, f.asked, said, want)
		}
	}
	two := used()
	second := server()
	second.ID, second.Hostname, second.Status = id2, "db-01", lpmos.Installing
	two.tasks = append(two.tasks, second)
	if code, said := asked(two, "yes\nWXYZ\n", "approve", id1, id2); code != ExitConflict || len(two.asked) != 1 || !strings.Contains(said, "not "+id2[:8]) {
		t.Errorf("one of two that waits: exit %d, asked %q, said %q; want 4, one approved, and why not the other", code, two.asked, said)
	}
	both := used()
	second.Status = lpmos.AwaitingApproval
	both.tasks = append(both.tasks, second)
	want(both, ExitUsage, "--count is missing", nil, id1, id2, "--plan", digest+","+second.Plan.Digest, "--serial-end", "WXYZ")
	want(both, ExitUsage, "2 would be meant", nil, id1, id2, "--plan", digest, "--serial-end", "WXYZ", "--count", "3")
	want(both, ExitUsage, "no --plan is the digest", nil, id1, id2, "--plan", "sha256:old", "--serial-end", "WXYZ", "--count", "2")
	if code, said := asked(both, "2\nWXYZ\nWXYZ\n", "approve", id1, id2); code != ExitOK || len(both.asked) != 2 {
		t.Errorf("both: exit %d, asked %q, said %q; want both approved", code, both.asked, said)
	}
	// Each password that is wrong is asked for once: a few more, and the account
	// waits.
	wrong := used()
	wrong.tasks = append(wrong.tasks, second)
	wrong.refuse = map[string]string{}
	for _, id := range []string{id1, id2} {
		wrong.refuse["PUT /api/v1/tasks/"+id+"/approve"] = `{"title":"T","status":400,"field":"password","detail":"password is wrong","reauth":true}`
	}
	code, said := asked(wrong, "2\nWXYZ\nWXYZ\nfirst guess\nsecond guess\n", "approve", id1, id2)
	if sent := strings.Join(wrong.asked, "\n"); code != ExitUsage || len(wrong.asked) != 4 || strings.Count(sent, "first guess") != 1 || strings.Count(sent, "second guess") != 1 {
		t.Errorf("two wrong passwords: exit %d, asked %q, said %q; want each sent once", code, wrong.asked, said)
	}

	blank := used()
	blank.tasks[0].Plan.Observed[1].Content = lpmos.Content{}
	for i := range blank.tasks[0].Plan.Observed {
		blank.tasks[0].Plan.Observed[i].Content = lpmos.Content{}
	}
	want(blank, ExitOK, "approved", []string{"PUT /api/v1/tasks/" + id1 + "/approve " + body}, id1, "--plan", digest)
	waiting := used()
	waiting.tasks[0].Plan = nil
	want(waiting, ExitConflict, "no plan yet", nil, id1, "--plan", digest)
	stale := used()
	stale.refuse = map[string]string{"PUT /api/v1/tasks/" + id1 + "/approve": `{"title":"T","status":409,"detail":"the plan changed since it was displayed"}`}
	want(stale, ExitConflict, "the plan changed", []string{"PUT /api/v1/tasks/" + id1 + "/approve " + strings.Replace(body, digest, "sha256:old", 1)}, id1, "--plan", "sha256:old", "--serial-end", "WXYZ")
}

func TestCreateSends(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("# mine\n\nssh-ed25519 AAAA me\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fake{}
	code, _, errs := f.run(t, "task", "create", "--region", "dc1", "--mac", "52-54-00-00-00-01", "--os", "debian", "--os-version", "12", "--hostname", "web-01", "--ssh-key-file", keys)
	want := []string{`POST /api/v1/tasks {"region_id":"dc1","target_mac":"52:54:00:00:00:01","os_type":"debian","os_version":"12","hostname":"web-01","ssh_keys":["ssh-ed25519 AAAA me"]}`}
	if diff := cmp.Diff(want, f.asked); code != 0 || diff != "" {
		t.Errorf("exit %d %s, asked (- want, + got):\n%s", code, errs, diff)
	}
}

func TestWatchOutcome(t *testing.T) {
	for status, want := range map[lpmos.Status]int{lpmos.Completed: ExitOK, lpmos.Failed: ExitFailed, lpmos.Canceled: ExitFailed, lpmos.Rejected: ExitFailed} {
		task := server()
		task.Status, task.Error = status, &lpmos.Failure{Cause: "c", NextStep: "n"}
		f := &fake{tasks: []lpmos.Task{task}}
		if code, out, errs := f.run(t, "task", "watch", id1); code != want || errs != "" || !strings.Contains(out, string(status)) {
			t.Errorf("watching a task that is %s = exit %d, %q, %q; want %d", status, code, out, errs, want)
		}
	}
}
