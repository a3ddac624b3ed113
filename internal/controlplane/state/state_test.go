package state

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
	"github.com/lpmos/lpmos/internal/store"
)

// feed is a store whose changes the test makes up.
type feed struct {
	t    *testing.T
	s    *State
	ch   chan store.Batch
	got  chan api.Update
	rev  int64
	last api.Update
	kept map[string]lpmos.Task // what the store answers about single tasks
	put  map[string][]byte     // and about machines, by key
}

func (f *feed) Task(_ context.Context, id string) (store.Record, error) {
	t, ok := f.kept[id]
	if !ok {
		return store.Record{}, lpmos.ErrUnavailable
	}
	return store.Record{Task: t}, nil
}

func (f *feed) MachineInfo(_ context.Context, mac lpmos.MAC) (m lpmos.Machine, err error) {
	err = json.Unmarshal(f.put[store.Key{Kind: store.KindAgentInfo, MAC: mac}.String()], &m)
	return m, err
}

func (f *feed) Discovered(_ context.Context, region string, mac lpmos.MAC) (d lpmos.Discovered, err error) {
	err = json.Unmarshal(f.put[store.Key{Kind: store.KindDiscovered, Region: region, MAC: mac}.String()], &d)
	return d, err
}

func (f *feed) ID() string { return "store-1" }

func (f *feed) Changes(ctx context.Context, _ store.Scope) iter.Seq2[store.Batch, error] {
	return func(yield func(store.Batch, error) bool) {
		for {
			select {
			case b := <-f.ch:
				if !yield(b, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

func newFeed(t *testing.T, initial ...store.Change) *feed {
	t.Helper()
	f := &feed{t: t, ch: make(chan store.Batch), got: make(chan api.Update, 1), rev: 9, put: map[string][]byte{}}
	f.s = New(f, slog.New(slog.DiscardHandler), func(u api.Update) { f.got <- u })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.s.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	if f.s.Ready() {
		t.Error("ready before anything was listed")
	}
	f.send(true, initial...)
	<-f.s.Synced()
	return f
}

func (f *feed) send(reset bool, changes ...store.Change) api.Update {
	f.t.Helper()
	f.rev++
	for i := range changes {
		changes[i].Rev = f.rev
		if k := changes[i].Key; k.Kind == store.KindAgentInfo || k.Kind == store.KindDiscovered {
			f.put[k.String()] = changes[i].Value
		}
	}
	f.ch <- store.Batch{Rev: f.rev, Reset: reset, Changes: changes}
	f.last = <-f.got
	if f.last.Rev != f.rev || f.last.Reset != reset || f.s.Rev() != f.rev {
		f.t.Errorf("update %+v, state at %d; want revision %d", f.last, f.s.Rev(), f.rev)
	}
	return f.last
}

func (f *feed) events(changes ...store.Change) string {
	f.t.Helper()
	var out []string
	for _, e := range f.send(false, changes...).Events {
		text := e.Type
		switch {
		case e.Progress != nil:
			text += fmt.Sprintf(" %d", e.Progress.Percentage)
		case e.Lines != nil:
			text += " " + strings.Join(e.Lines, ",")
		case e.Status != "":
			text += " " + e.Status
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

func value(v any) []byte {
	if s, ok := v.(lpmos.Status); ok {
		return []byte(s)
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func id(n int) string { return fmt.Sprintf("550e8400-e29b-41d4-a716-%012d", n) }

func part(n int, k store.Kind, v any) store.Change {
	c := store.Change{Key: store.Key{Kind: k, TaskID: id(n)}}
	if v != nil {
		c.Value = value(v)
	}
	return c
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func meta(n int, region string, attempt int) store.Change {
	return part(n, store.KindMetadata, map[string]any{
		"task_id": id(n), "region_id": region, "target_mac": fmt.Sprintf("52:54:00:00:00:%02x", n), "os_type": "debian", "os_version": "12",
		"hostname": fmt.Sprintf("host-%d", n), "attempt": attempt, "created_at": epoch.Add(time.Duration(n) * time.Second), "created_by": "alice",
	})
}

func made(n int, region string, s lpmos.Status) []store.Change {
	return []store.Change{meta(n, region, 1), part(n, store.KindStatus, s)}
}

func report(n, attempt int, k store.Kind, v any) store.Change {
	c := store.Change{Key: store.Key{Kind: k, TaskID: id(n), Region: "dc1", Attempt: attempt}}
	if v != nil {
		c.Value = value(v)
	}
	return c
}

func progress(n, attempt, percent int) *lpmos.Progress {
	return &lpmos.Progress{TaskID: id(n), Attempt: attempt, Stage: lpmos.Downloading, Percentage: percent}
}

func (f *feed) percent(n int) int {
	f.t.Helper()
	t, ok := f.s.Task(id(n))
	if !ok {
		f.t.Fatalf("task %d is not there", n)
	}
	if t.Progress == nil {
		return -1
	}
	return t.Progress.Percentage
}

// Progress shown is the region's newest report laid over what was folded into
// the task: nothing moves backwards, and the folded copy is not told again.
func TestProgressOverlay(t *testing.T) {
	f := newFeed(t, made(1, "dc1", lpmos.Installing)...)
	steps := []struct {
		change store.Change
		events string
		shown  int
	}{
		{report(1, 1, store.KindReportProgress, progress(1, 1, 30)), "progress 30", 30},
		{part(1, store.KindProgress, progress(1, 1, 25)), "", 30},
		{report(1, 1, store.KindReportProgress, progress(1, 1, 28)), "", 30},
		{report(1, 1, store.KindReportProgress, progress(1, 1, 40)), "progress 40", 40},
		{part(1, store.KindProgress, progress(1, 1, 40)), "", 40},
		{report(1, 1, store.KindReportProgress, nil), "", 40},
		{report(1, 1, store.KindReportProgress, progress(1, 1, 35)), "", 40},
	}
	shown := 0
	for i, tt := range steps {
		if got := f.events(tt.change); got != tt.events {
			t.Errorf("step %d tells %q; want %q", i, got, tt.events)
		}
		got := f.percent(1)
		if got < shown {
			t.Errorf("step %d moves back from %d to %d", i, shown, got)
		}
		if shown = got; got != tt.shown {
			t.Errorf("step %d shows %d; want %d", i, got, tt.shown)
		}
	}
	// A new attempt begins anew; what an earlier one still reports is not shown.
	f.send(false, meta(1, "dc1", 2), part(1, store.KindStatus, lpmos.Installing), part(1, store.KindProgress, nil))
	if got := f.percent(1); got != -1 {
		t.Errorf("attempt 2 begins with %d", got)
	}
	if got := f.events(report(1, 1, store.KindReportProgress, progress(1, 1, 99))); got != "" || f.percent(1) != -1 {
		t.Errorf("attempt 1 is told as %q, shown as %d", got, f.percent(1))
	}
	if got := f.events(report(1, 2, store.KindReportProgress, progress(1, 2, 20))); got != "progress 20" || f.percent(1) != 20 {
		t.Errorf("attempt 2 is told as %q, shown as %d", got, f.percent(1))
	}
}

// In one update, a task's hardware comes before its status: whoever acts on the
// status has everything.
func TestStatusComesLast(t *testing.T) {
	f := newFeed(t)
	f.send(false, made(1, "dc1", lpmos.Pending)...)
	got := f.events(part(1, store.KindStatus, lpmos.AwaitingApproval), meta(1, "dc1", 1), part(1, store.KindHardware, lpmos.Hardware{BootMode: "uefi"}))
	if got != "hardware; status awaiting_approval" {
		t.Errorf("update = %s; want status last", got)
	}
	if !slices.Equal(f.last.Tasks, []string{id(1)}) {
		t.Errorf("touched %v", f.last.Tasks)
	}
	for _, e := range f.last.Events {
		if e.RegionID != "dc1" || e.TaskID != id(1) {
			t.Errorf("event %+v; want region and task", e)
		}
	}
	got = f.events(part(1, store.KindStatus, lpmos.Failed), part(1, store.KindError, lpmos.Failure{Code: "x"}))
	if got != "status failed" || f.last.Events[0].Failure == nil || f.last.Events[0].Failure.Code != "x" {
		t.Errorf("failure told as %s: %+v", got, f.last.Events)
	}
}

func TestReports(t *testing.T) {
	f := newFeed(t)
	// A listing is in key order: reports come before the task they are about.
	f.send(true, append([]store.Change{
		report(1, 1, store.KindReportHardware, lpmos.Hardware{BootMode: "bios"}), report(1, 2, store.KindReportPermit, lpmos.PermitRequest{Nonce: "n"}),
	}, append([]store.Change{meta(1, "dc1", 2)}, part(1, store.KindStatus, lpmos.Installing))...)...)
	r := f.s.Reports(id(1))
	if r.Hardware != nil || r.Permit == nil || r.Permit.Nonce != "n" {
		t.Errorf("reports = %+v; want those of attempt 2 alone", r)
	}
	chunk := func(attempt, n int, text string) store.Change {
		c := report(1, attempt, store.KindReportLog, text)
		c.Key.Chunk = n
		return c
	}
	if got := f.events(chunk(2, 0, "one\n")); got != "log one" {
		t.Errorf("told %q", got)
	}
	if got := f.events(chunk(2, 0, "one\ntwo\n")); got != "log two" {
		t.Errorf("a chunk that grew is told as %q; want the new line alone", got)
	}
	f.send(false, chunk(2, 2, "four\n"))
	f.send(false, chunk(2, 1, "three\n"))
	f.send(false, chunk(1, 0, "zero\n"))
	if lines, _ := f.s.Logs(id(1)); strings.Join(lines, " ") != "zero one two three four" {
		t.Errorf("logs = %v", lines)
	}
	if got, _ := f.s.Task(id(1)); strings.Join(got.LogTail, " ") != "one two three four" || got.Rev != f.rev-1 && got.Rev != f.rev {
		t.Errorf("tail = %v at %d; want this attempt's", got.LogTail, got.Rev)
	}
	f.send(false, report(1, 2, store.KindReportResult, lpmos.Result{OK: true}), report(1, 2, store.KindReportBooted, lpmos.Receipt{OS: "x"}), report(1, 2, store.KindReportAgent, lpmos.AgentRecord{BootSeq: 3}))
	if r = f.s.Reports(id(1)); r.Result == nil || r.Booted == nil || r.Agent == nil || r.Rev != f.rev {
		t.Errorf("reports = %+v", r)
	}
	if _, ok := f.s.Logs(id(9)); ok {
		t.Error("a task that is not there has logs")
	}
	if r := f.s.Reports(id(9)); r.Rev != 0 {
		t.Errorf("a task that is not there has reports %+v", r)
	}
	// Reports alone are no task.
	f.send(false, report(7, 1, store.KindReportHardware, lpmos.Hardware{}))
	if _, ok := f.s.Task(id(7)); ok || f.s.Tasks(api.Query{}).Total != 1 {
		t.Error("reports of an unknown task are listed as one")
	}
}

// A region may write reports of a task it has heard of; only those of the task's
// own region count, in whichever order they come to be known.
func TestReportsOfAnotherRegion(t *testing.T) {
	foreign := func(k store.Kind, v any) store.Change {
		c := report(1, 1, k, v)
		c.Key.Region = "dc2"
		return c
	}
	forged := func() []store.Change {
		return []store.Change{
			foreign(store.KindReportResult, lpmos.Result{Failure: &lpmos.Failure{Code: "forged"}}), foreign(store.KindReportHardware, lpmos.Hardware{BootMode: "bios"}),
			foreign(store.KindReportPermit, lpmos.PermitRequest{Nonce: "n"}), foreign(store.KindReportProgress, progress(1, 1, 99)), foreign(store.KindReportLog, "forged\n"),
			foreign(store.KindReportAgent, lpmos.AgentRecord{BootSeq: 3}), foreign(store.KindReportBooted, lpmos.Receipt{OS: "x"}),
		}
	}
	check := func(f *feed, when string) {
		t.Helper()
		if r := f.s.Reports(id(1)); r != (api.Reports{}) {
			t.Errorf("%s: reports = %+v; want none of another region", when, r)
		}
		lines, _ := f.s.Logs(id(1))
		if got, _ := f.s.Task(id(1)); got.Progress != nil || got.AgentKey != nil || len(lines) > 0 {
			t.Errorf("%s: the task says %+v, %v", when, got.Progress, lines)
		}
	}
	f := newFeed(t)
	f.send(true, append(forged(), made(1, "dc1", lpmos.Installing)...)...)
	check(f, "in a listing")
	f = newFeed(t)
	f.send(true, made(1, "dc1", lpmos.Installing)...)
	if got := f.events(forged()...); got != "" {
		t.Errorf("told %q", got)
	}
	check(f, "as they come")
	f.send(false, report(1, 1, store.KindReportProgress, progress(1, 1, 20)))
	if got, _ := f.s.Task(id(1)); got.Progress == nil || got.Progress.Percentage != 20 {
		t.Errorf("its own region's progress = %+v", got.Progress)
	}
}

// What a region has cleared away is in memory no longer, and what it says last
// of an install moves the time its deadline counts from; a new boot does not.
func TestReportsAreForgotten(t *testing.T) {
	f := newFeed(t)
	f.send(true, made(1, "dc1", lpmos.Installing)...)
	f.send(false, report(1, 1, store.KindReportPermit, lpmos.PermitRequest{Nonce: "n"}), report(1, 1, store.KindReportProgress, progress(1, 1, 20)))
	moved := f.rev
	chunk := report(1, 1, store.KindReportLog, "one\n")
	f.send(false, report(1, 1, store.KindReportAgent, lpmos.AgentRecord{BootSeq: 3}), report(1, 1, store.KindReportHardware, lpmos.Hardware{}), chunk)
	if r := f.s.Reports(id(1)); r.ProgressRev != moved || r.Rev != f.rev {
		t.Errorf("progress at %d, heard of at %d; want %d and %d", r.ProgressRev, r.Rev, moved, f.rev)
	}
	f.send(false, report(1, 1, store.KindReportPermit, nil), report(1, 1, store.KindReportProgress, nil), report(1, 1, store.KindReportAgent, nil), report(1, 1, store.KindReportHardware, nil))
	if n := len(f.s.tasks[id(1)].reports); n != 1 {
		t.Errorf("%d regions' attempts are kept; want the one with a log", n)
	}
	chunk.Value = nil
	f.send(false, chunk)
	if n := len(f.s.tasks[id(1)].reports); n != 0 {
		t.Errorf("%d regions' attempts are kept; want none", n)
	}
	if got, _ := f.s.Task(id(1)); got.Rev != f.rev {
		t.Errorf("the task is of revision %d; want %d", got.Rev, f.rev)
	}
}

func listed(p api.Page) (out []string) {
	for _, t := range p.Tasks {
		out = append(out, t.ID[len(t.ID)-2:])
	}
	return out
}

func words(t *testing.T, text string) query.Filter {
	t.Helper()
	f, err := query.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestQuery(t *testing.T) {
	var all []store.Change
	for n := range 20 {
		status, region := lpmos.Pending, "dc1"
		if n%2 == 1 {
			status = lpmos.Failed
		}
		if n%5 == 0 {
			region = "dc2"
		}
		all = append(all, made(n+1, region, status)...)
	}
	f := newFeed(t, all...)
	f.send(false, part(3, store.KindHardware, lpmos.Hardware{System: lpmos.System{Serial: "SRV-ABC"}, Disks: []lpmos.Disk{{Serial: "DISK9", Model: "P5"}}}))
	for name, tt := range map[string]struct {
		q     api.Query
		total int
	}{
		"everything":      {api.Query{}, 20},
		"a status":        {api.Query{Statuses: []lpmos.Status{lpmos.Failed}}, 10},
		"two statuses":    {api.Query{Statuses: []lpmos.Status{lpmos.Failed, lpmos.Pending}}, 20},
		"a region":        {api.Query{RegionID: "dc2"}, 4},
		"both":            {api.Query{RegionID: "dc2", Statuses: []lpmos.Status{lpmos.Pending}}, 2},
		"a host":          {api.Query{Filter: words(t, "HOST-3")}, 1},
		"a MAC":           {api.Query{Filter: words(t, "00:00:0a")}, 1},
		"a serial":        {api.Query{Filter: words(t, "srv-abc")}, 1},
		"a disk and more": {api.Query{Filter: words(t, "disk9 p5 debian")}, 1},
		"words apart":     {api.Query{Filter: words(t, "srv-abc host-4")}, 0},
		"a creator":       {api.Query{Filter: words(t, "alice")}, 20},
		"no region":       {api.Query{RegionID: "dc9"}, 0},
	} {
		if p := f.s.Tasks(tt.q); p.Total != tt.total || len(p.Tasks) != tt.total || p.Rev != f.rev {
			t.Errorf("%s: %d of %d at %d; want %d", name, len(p.Tasks), p.Total, p.Rev, tt.total)
		}
	}
	p := f.s.Tasks(api.Query{Filter: words(t, "srv-abc")})
	if p.Tasks[0].Hardware != nil {
		t.Error("a page carries hardware")
	}

	// A cursor keeps its place while tasks come and go.
	first := f.s.Tasks(api.Query{Limit: 5})
	if got := listed(first); !slices.Equal(got, []string{"20", "19", "18", "17", "16"}) {
		t.Errorf("first page %v; want the newest first", got)
	}
	f.send(false, made(30, "dc1", lpmos.Pending)...)
	f.send(false, part(16, store.KindMetadata, nil), part(16, store.KindStatus, nil))
	second := f.s.Tasks(api.Query{Limit: 5, Cursor: first.NextCursor})
	if got := listed(second); !slices.Equal(got, []string{"15", "14", "13", "12", "11"}) || second.Total != 20 {
		t.Errorf("second page %v of %d; want it to go on where the first ended", got, second.Total)
	}
	var rest []string
	for c := second.NextCursor; c != ""; {
		p := f.s.Tasks(api.Query{Limit: 5, Cursor: c})
		rest, c = append(rest, listed(p)...), p.NextCursor
	}
	if len(rest) != 10 {
		t.Errorf("the rest is %v; want 10", rest)
	}
	if got := f.s.Tasks(api.Query{Cursor: "nonsense"}); got.Total != 20 {
		t.Errorf("a cursor that is none gives %d; want the first page", got.Total)
	}
}

func TestCounts(t *testing.T) {
	f := newFeed(t, slices.Concat(made(1, "dc1", lpmos.Pending), made(2, "dc1", lpmos.Pending), made(3, "dc1", lpmos.Completed))...)
	want := func(w map[lpmos.Status]int) {
		t.Helper()
		got := f.s.Counts()
		maps.DeleteFunc(got, func(_ lpmos.Status, n int) bool { return n == 0 })
		if !maps.Equal(got, w) {
			t.Errorf("counts %v; want %v", got, w)
		}
	}
	want(map[lpmos.Status]int{lpmos.Pending: 2, lpmos.Completed: 1})
	f.send(false, part(1, store.KindStatus, lpmos.Canceled))
	want(map[lpmos.Status]int{lpmos.Pending: 1, lpmos.Canceled: 1, lpmos.Completed: 1})
	if live := f.s.Live(); !slices.Equal(live, []string{id(2)}) {
		t.Errorf("live %v", live)
	}
	f.send(false, part(3, store.KindMetadata, nil), part(3, store.KindStatus, nil))
	want(map[lpmos.Status]int{lpmos.Pending: 1, lpmos.Canceled: 1})
	f.send(true, made(4, "dc1", lpmos.Failed)...)
	want(map[lpmos.Status]int{lpmos.Failed: 1})
	if _, ok := f.s.Task(id(1)); ok {
		t.Error("a task of before the reset is still there")
	}
}

func TestRegionsAndImages(t *testing.T) {
	region := func(k store.Kind, v any) store.Change {
		c := store.Change{Key: store.Key{Kind: k, Region: "dc1"}}
		if v != nil {
			c.Value = value(v)
		}
		return c
	}
	f := newFeed(t, region(store.KindCapabilities, lpmos.Capabilities{Version: "1"}))
	if r, ok := f.s.Region("dc1"); !ok || r.Status != "offline" || r.Capabilities.Version != "1" {
		t.Errorf("region %+v; want it known and offline", r)
	}
	for _, tt := range []struct {
		beat   any
		events string
		status string
	}{{"x", "region online", "online"}, {"y", "", "online"}, {nil, "region offline", "offline"}} {
		if got := f.events(region(store.KindHeartbeat, tt.beat)); got != tt.events {
			t.Errorf("heartbeat %v is told as %q; want %q", tt.beat, got, tt.events)
		}
		if r, _ := f.s.Region("dc1"); r.Status != tt.status {
			t.Errorf("region is %s; want %s", r.Status, tt.status)
		}
	}
	image := store.Change{Key: store.Key{Kind: store.KindImage, OS: "debian", Version: "12", Arch: "amd64"}, Value: value(lpmos.Image{OS: "debian", Version: "12", Arch: "amd64"})}
	f.send(false, image)
	if _, ok := f.s.Image("debian", "12", "amd64"); !ok || len(f.s.Images()) != 1 {
		t.Error("the image is not there")
	}
	image.Value = nil
	f.send(false, image)
	if len(f.s.Images()) != 0 {
		t.Error("the image is still there")
	}
	// What protects machines stays in force when what is written cannot be read.
	global := store.Change{Key: store.Key{Kind: store.KindGlobal}, Value: value(store.Global{Limits: lpmos.Limits{Protected: []string{"52:54:00:00:00:01"}}})}
	f.send(false, global)
	global.Value = []byte(`{"protected":"all"}`)
	f.send(false, global)
	if f.s.Protection([]lpmos.MAC{lpmos.MustMAC("52:54:00:00:00:01")}, "") == "" {
		t.Error("a protected machine is not, since the configuration cannot be read")
	}
	// A value that cannot be read is reported and takes nothing else with it.
	f.send(false, store.Change{Key: image.Key, Value: []byte("{")}, part(1, store.KindHardware, "text"), meta(1, "dc1", 1), part(1, store.KindStatus, lpmos.Pending))
	if x, ok := f.s.Task(id(1)); !ok || x.Status != lpmos.Pending {
		t.Errorf("task beside unreadable values = %+v", x)
	}
}
