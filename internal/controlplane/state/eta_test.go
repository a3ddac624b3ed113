package state

import (
	"fmt"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

// ran is a task of an image and a model with its phases, in seconds each; with
// fewer than five it runs still.
func ran(n int, model string, status lpmos.Status, start time.Time, phases ...int) []store.Change {
	p := progress(n, 1, 50)
	at := start
	for i, sec := range phases {
		if i < len(lpmos.Phases) {
			p.Begun = append(p.Begun, lpmos.StageBegin{Stage: lpmos.Phases[i], At: at})
			p.Stage = lpmos.Phases[min(i, 3)]
		}
		at = at.Add(time.Duration(sec) * time.Second)
	}
	m := map[string]any{
		"task_id": id(n), "region_id": "dc1", "target_mac": "52:54:00:00:00:01", "os_type": "debian", "os_version": "12", "arch": "amd64", "attempt": 1,
		"created_at": start, "updated_at": at, "found": lpmos.Found{Manufacturer: "Acme", Product: model},
	}
	return []store.Change{part(n, store.KindMetadata, m), part(n, store.KindProgress, p), part(n, store.KindStatus, status)}
}

func sec(n int) time.Duration { return time.Duration(n) * time.Second }

func TestEstimate(t *testing.T) {
	f := newFeed(t, ran(1, "X", lpmos.Completed, epoch, 10, 100, 50, 20, 60)...)
	now := epoch.Add(time.Hour)
	f.s.now = func() time.Time { return now }
	if e := f.s.Estimate(id(1)); e == nil || e.Runs != 1 || e.Expected != sec(240) || e.Elapsed != sec(240) || e.FasterThan != 0 || e.Left != 0 {
		t.Errorf("a run alone = %+v", e)
	}
	f.send(false, ran(2, "X", lpmos.Completed, epoch, 20, 200, 50, 20, 60)...)
	f.send(false, ran(3, "Y", lpmos.Completed, epoch, 30, 300, 50, 20, 60)...)
	// What is not whole teaches nothing: a failure, an unknown stage start.
	f.send(false, ran(4, "X", lpmos.Failed, epoch, 1, 1, 1, 1, 1)...)
	f.send(false, ran(5, "X", lpmos.Completed, epoch, 1, 1)...)

	// Sixty seconds into the download of a machine of model X: two runs on X
	// are too few, so all three of the image count.
	f.send(false, ran(6, "X", lpmos.Installing, now.Add(-sec(85)), 25, 60)...)
	want := api.ETA{Basis: "image", Runs: 3, Expected: sec(350), Elapsed: sec(85), Left: sec(200-60) + sec(130), FasterThan: 33}
	if e := f.s.Estimate(id(6)); e == nil || *e != want {
		t.Errorf("estimate = %+v; want %+v", e, want)
	}
	// The third run on X makes X its own kind.
	f.send(false, ran(7, "X", lpmos.Completed, epoch, 20, 220, 50, 20, 60)...)
	want = api.ETA{Basis: "image and model", Runs: 3, Expected: sec(350), Elapsed: sec(85), Left: sec(200-60) + sec(130), FasterThan: 0}
	if e := f.s.Estimate(id(6)); e == nil || *e != want {
		t.Errorf("estimate = %+v; want %+v", e, want)
	}
	// Later than every run was: what this stage still takes is not known, the
	// rest is.
	now = now.Add(sec(1000))
	if e := f.s.Estimate(id(6)); e.Left != sec(130) {
		t.Errorf("after all runs had ended the download, %v are left; want %v", e.Left, sec(130))
	}
	// A measured rate knows better than history.
	p := progress(6, 1, 60)
	p.Details = &lpmos.ProgressDetails{BytesTotal: 1000, BytesDownloaded: 900, BytesPerSecond: 10}
	f.send(false, report(6, 1, store.KindReportProgress, p))
	if e := f.s.Estimate(id(6)); e.Left != sec(10+130) {
		t.Errorf("with 100 bytes to come at 10 a second, %v are left", e.Left)
	}
	if got := f.s.Tasks(api.Query{Statuses: []lpmos.Status{lpmos.Installing}}).Rows[0].ETA; got == nil || got.Runs != 3 {
		t.Errorf("in a list: %+v", got)
	}

	for name, tt := range map[string]struct {
		n       int
		changes []store.Change
	}{
		"an image nobody installed":              {8, made(8, "dc1", lpmos.Pending)},
		"a failure":                              {4, nil},
		"a run whose beginning nobody saw":       {9, ran(9, "X", lpmos.Installing, now)},
		"a run that was seen from the middle":    {10, middle(10, now)},
		"a task that is not there":               {99, nil},
		"a completed one nobody saw":             {11, ran(11, "X", lpmos.Completed, now)},
		"verifying, without when anything began": {12, ran(12, "X", lpmos.Verifying, now)},
	} {
		if tt.changes != nil {
			f.send(false, tt.changes...)
		}
		if e := f.s.Estimate(id(tt.n)); e != nil {
			t.Errorf("%s: %+v; want unknown", name, e)
		}
	}
	f.send(false, ran(13, "X", lpmos.Approved, now)[0], part(13, store.KindStatus, lpmos.Approved))
	if e := f.s.Estimate(id(13)); e == nil || e.Left != e.Expected || e.Elapsed != 0 || e.FasterThan != -1 {
		t.Errorf("before it begins: %+v", e)
	}
	// A control plane that starts anew learns the same from what is stored.
	f.send(true, append(ran(1, "X", lpmos.Completed, epoch, 10, 100, 50, 20, 60), ran(6, "X", lpmos.Installing, now, 25, 60)...)...)
	if e := f.s.Estimate(id(6)); e == nil || e.Runs != 1 {
		t.Errorf("after a new start: %+v", e)
	}
}

func middle(n int, at time.Time) []store.Change {
	all := ran(n, "X", lpmos.Installing, at, 1, 1)
	p := progress(n, 1, 50)
	p.Begun = []lpmos.StageBegin{{Stage: lpmos.Downloading, At: at}}
	all[1] = part(n, store.KindProgress, p)
	return all
}

// What is remembered is bounded, and the newest.
func TestRunsAreBounded(t *testing.T) {
	s := New(nil, nil)
	at := epoch
	learn := func(n int, model string, total int) {
		x := &task{Task: lpmos.Task{ID: fmt.Sprint(n), Status: lpmos.Completed, UpdatedAt: at.Add(sec(total)), Found: &lpmos.Found{Product: model}}}
		x.Task.Progress = &lpmos.Progress{}
		for _, p := range lpmos.Phases {
			x.Task.Progress.Begun = append(x.Task.Progress.Begun, lpmos.StageBegin{Stage: p, At: at})
		}
		s.learn(x)
		s.learn(x) // once only
	}
	for n := range 3 * keptRuns {
		learn(n, "X", n)
	}
	r := s.runs[kind{"//", " X"}]
	if len(r.all) != keptRuns {
		t.Fatalf("%d runs are kept; want %d", len(r.all), keptRuns)
	}
	for _, one := range r.all {
		if one.total() < sec(2*keptRuns) {
			t.Fatalf("the run of %v is kept, of the last %d all took longer", one.total(), keptRuns)
		}
	}
	for n := range 2 * keptKinds {
		learn(n, fmt.Sprint("model ", n), 1)
	}
	if len(s.runs) > keptKinds {
		t.Errorf("%d kinds are kept; want at most %d", len(s.runs), keptKinds)
	}
}

// Whatever an agent claims of its stages, the region's clock says when they
// began; a control plane that starts in the middle goes on from what was
// folded.
func TestStagesBegin(t *testing.T) {
	folded := progress(1, 1, 10)
	folded.Stage, folded.Begun = lpmos.Partitioning, []lpmos.StageBegin{{Stage: lpmos.Partitioning, At: epoch}}
	f := newFeed(t, append(made(1, "dc1", lpmos.Installing), part(1, store.KindProgress, folded))...)
	send := func(attempt int, s lpmos.Stage, percent int, after time.Duration) {
		p := progress(1, attempt, percent)
		p.Stage, p.UpdatedAt = s, epoch.Add(after)
		p.Begun = []lpmos.StageBegin{{Stage: lpmos.StageVerify, At: epoch}}
		f.send(false, report(1, attempt, store.KindReportProgress, p))
	}
	send(1, lpmos.Downloading, 20, sec(5))
	send(1, lpmos.Downloading, 30, sec(7))
	send(1, lpmos.Partitioning, 5, sec(8)) // late
	send(1, lpmos.StageInstall, 60, sec(9))
	if got := f.s.Reports(id(1)).Progress.Begun; fmt.Sprint(got) != fmt.Sprint([]lpmos.StageBegin{{Stage: lpmos.Partitioning, At: epoch}, {Stage: lpmos.Downloading, At: epoch.Add(sec(5))}, {Stage: lpmos.StageInstall, At: epoch.Add(sec(9))}}) {
		t.Errorf("begun = %v", got)
	}
	f.send(false, meta(1, "dc1", 2), part(1, store.KindProgress, nil))
	send(2, lpmos.Partitioning, 1, sec(20))
	if got := f.s.Reports(id(1)).Progress.Begun; len(got) != 1 || !got[0].At.Equal(epoch.Add(sec(20))) {
		t.Errorf("attempt 2 begins with %v", got)
	}
}

// What a listing leaves out of tasks that have ended is read when somebody
// looks, and only then.
func TestEndedTasksAreReadFromTheStore(t *testing.T) {
	f := newFeed(t)
	left := func(k store.Kind) store.Change {
		c := part(1, k, nil)
		c.Left = true
		return c
	}
	f.send(true, append([]store.Change{left(store.KindHardware), left(store.KindLogs)}, append(made(1, "dc1", lpmos.Completed), left(store.KindPlan))...)...)
	if x, ok := f.s.Task(id(1)); !ok || x.Status != lpmos.Completed || x.Hardware != nil {
		t.Errorf("while the store does not answer: %+v", x)
	}
	f.kept = map[string]lpmos.Task{id(1): {ID: id(1), Status: lpmos.Completed, Attempt: 1, Hardware: &lpmos.Hardware{BootMode: "uefi"}, Plan: &lpmos.Plan{Digest: "d"}, LogTail: []string{"a", "b"}}}
	if x, _ := f.s.Task(id(1)); x.Hardware == nil || x.Plan == nil || len(x.LogTail) != 2 {
		t.Errorf("task = %+v", x)
	}
	if l, ok := f.s.Logs(id(1)); !ok || len(l) != 2 {
		t.Errorf("logs = %v", l)
	}
	// One that ends while it is followed is treated alike; a retry begins with
	// nothing.
	f.send(false, made(2, "dc1", lpmos.AwaitingApproval)...)
	f.send(false, part(2, store.KindHardware, lpmos.Hardware{System: lpmos.System{Serial: "S2"}}), part(2, store.KindPlan, lpmos.Plan{Digest: "d2"}))
	if x, _ := f.s.Task(id(2)); x.Hardware == nil || x.Plan == nil {
		t.Errorf("live task = %+v", x)
	}
	f.send(false, part(2, store.KindStatus, lpmos.Failed))
	f.kept[id(2)] = lpmos.Task{ID: id(2), Status: lpmos.Failed, Attempt: 1, Plan: &lpmos.Plan{Digest: "d2"}}
	if x, _ := f.s.Task(id(2)); x.Plan == nil || f.s.tasks[id(2)].Plan != nil {
		t.Errorf("ended task = %+v", x)
	}
	if f.s.Tasks(api.Query{Filter: words(t, "serial:s2")}).Total != 1 {
		t.Error("an ended task cannot be found by its serial number")
	}
	f.send(false, meta(2, "dc1", 2), part(2, store.KindStatus, lpmos.Pending), part(2, store.KindHardware, nil), part(2, store.KindPlan, nil))
	if x, _ := f.s.Task(id(2)); x.Plan != nil || x.Hardware != nil {
		t.Errorf("retried task = %+v", x)
	}
}
