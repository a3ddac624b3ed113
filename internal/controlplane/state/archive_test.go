package state

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// After a start, an archived task is found and shown as it was before.
func TestArchivedTasksAreShownAsBefore(t *testing.T) {
	st := storetest.New(t)
	task, err := st.CreateTask(t.Context(), lpmos.Spec{RegionID: "dc1", TargetMAC: lpmos.MustMAC("52:54:00:00:00:01"), OSType: "debian", OSVersion: "12", Hostname: "web-17"}, "tester", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []struct {
		cause lpmos.Cause
		edit  func(*store.Record)
	}{
		{lpmos.CauseHardwareReported, func(r *store.Record) {
			r.Task.Hardware = &lpmos.Hardware{System: lpmos.System{Serial: "S17", Product: "R650"}}
			r.Task.Plan = &lpmos.Plan{Digest: "d"}
		}},
		{lpmos.CauseRejected, func(r *store.Record) { r.Task.Error = &lpmos.Failure{Code: "rejected", Cause: "two\nlines"} }},
	} {
		if _, err := st.Transition(t.Context(), task.ID, store.Move{Cause: m.cause, By: "tester"}, func(r *store.Record, _ *store.Move) error { m.edit(r); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	type shown struct {
		Task     lpmos.Task
		Found    []lpmos.Task
		Machines []lpmos.Machine
		Counts   map[lpmos.Status]int
	}
	show := func() (out shown) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		s, done := New(st, slog.New(slog.DiscardHandler)), make(chan struct{})
		go func() {
			defer close(done)
			if err := s.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		defer func() { cancel(); <-done }()
		<-s.Synced()
		var ok bool
		if out.Task, ok = s.Task(task.ID); !ok {
			t.Error("the task is not there")
		}
		out.Found = s.Tasks(api.Query{Filter: words(t, "serial:s17 host:web status:rejected")}).Tasks
		out.Machines = s.Machines(api.MachineQuery{}).Machines
		out.Counts = s.Counts()
		return out
	}
	before := show()
	if len(before.Found) != 1 || len(before.Machines) != 1 || before.Task.Hardware == nil {
		t.Fatalf("before it was archived: %+v", before)
	}
	if n, err := st.ArchiveTasks(t.Context(), time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Fatalf("ArchiveTasks = %d, %v", n, err)
	}
	if d := cmp.Diff(before, show()); d != "" {
		t.Errorf("after it was archived (-before +after):\n%s", d)
	}
}

// What of the archive cannot be read is not shown, and the rest is.
func TestDamagedArchive(t *testing.T) {
	damaged := store.Change{Key: store.Key{Kind: store.KindArchive, TaskID: id(1)}, Value: []byte("\x00nonsense")}
	f := newFeed(t, append(slices.Clone(made(2, "dc1", lpmos.Completed)), damaged)...)
	if l := f.s.Tasks(api.Query{}); l.Total != 1 || l.Tasks[0].ID != id(2) {
		t.Errorf("tasks = %+v; want the other alone", l)
	}
	if x, ok := f.s.Task(id(1)); ok {
		t.Errorf("the damaged task is %+v", x)
	}
}
