package store_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// A listing leaves out the large values of tasks that have ended, history, and
// what nobody follows; what changes afterwards comes whole.
func TestListingLeavesOutWhatIsLarge(t *testing.T) {
	s := storetest.New(t)
	task := create(t, s, "dc1", mac1)
	live := create(t, s, "dc1", mac2)
	for _, id := range []string{task.ID, live.ID} {
		move(t, s, id, lpmos.CauseHardwareReported, func(r *store.Record) {
			r.Task.Hardware = &lpmos.Hardware{System: lpmos.System{Serial: "S"}, Disks: []lpmos.Disk{{Serial: "D", Model: "M"}}}
			r.Task.Plan, r.Task.LogTail = &lpmos.Plan{Digest: "d"}, []string{"line"}
		})
	}
	move(t, s, task.ID, lpmos.CauseCanceled, nil)
	if _, err := s.CreateBatch(t.Context(), store.NewBatch{Specs: []lpmos.Spec{spec("dc1", "52:54:00:00:00:03")}, By: "alice", Key: "key", Request: "sha256:one"}); err != nil {
		t.Fatal(err)
	}
	var first store.Batch
	for b, err := range s.Changes(t.Context(), store.All) {
		if err != nil {
			t.Fatal(err)
		}
		first = b
		break
	}
	left := map[string][]store.Kind{}
	var ended, going lpmos.Task
	for _, c := range first.Changes {
		switch c.Key.Kind {
		case store.KindEvent, store.KindIdempotency, store.KindBatchRequest:
			t.Errorf("%s is listed", c.Key)
		}
		if c.Left {
			left[c.Key.TaskID] = append(left[c.Key.TaskID], c.Key.Kind)
			if c.Value != nil {
				t.Errorf("%s is left out and here", c.Key)
			}
			continue
		}
		for id, x := range map[string]*lpmos.Task{task.ID: &ended, live.ID: &going} {
			if c.Key.TaskID == id {
				if err := store.SetPart(x, c.Key, c.Value); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if !slices.Equal(left[task.ID], []store.Kind{store.KindHardware, store.KindLogs, store.KindPlan}) || len(left) != 1 {
		t.Errorf("left out: %v", left)
	}
	if f := ended.Found; ended.Hardware != nil || f == nil || f.Serial != "S" || len(f.Disks) != 1 || f.Disks[0] != (lpmos.FoundDisk{Serial: "D", Model: "M"}) {
		t.Errorf("of a task that has ended, %+v is found", f)
	}
	if going.Hardware == nil || going.Plan == nil || len(going.LogTail) != 1 {
		t.Errorf("a live task is listed as %+v", going)
	}
}

func TestBatchIdempotency(t *testing.T) {
	s := storetest.New(t)
	lines := []lpmos.Spec{spec("dc1", mac1), spec("dc1", mac2)}
	a, err := s.CreateBatch(t.Context(), store.NewBatch{Specs: lines, By: "alice", Key: "k", Request: "sha256:two"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.CreateBatch(t.Context(), store.NewBatch{Specs: lines, By: "alice", Key: "k", Request: "sha256:two"})
	if err != nil || b.ID != a.ID || len(b.Specs) != 2 {
		t.Errorf("repeated: %+v, %v; want %s", b, err, a.ID)
	}
	if c, err := s.CreateBatch(t.Context(), store.NewBatch{Specs: lines, By: "bob", Key: "k", Request: "sha256:two"}); err != nil || c.ID == a.ID {
		t.Errorf("another person's request: %+v, %v", c, err)
	}
	if _, err := s.CreateBatch(t.Context(), store.NewBatch{Specs: lines[:1], By: "alice", Key: "k", Request: "sha256:three"}); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("the same key for other lines = %v", err)
	}
	// The key on the other route is another request.
	if task, err := s.CreateTask(t.Context(), lines[0], "alice", "k"); err != nil || task.BatchID != "" {
		t.Errorf("CreateTask with the key of a batch = %+v, %v", task, err)
	}
	open, err := s.OpenBatches(t.Context())
	if err != nil || len(open) != 2 || !slices.Contains(open, a.ID) {
		t.Errorf("open: %v, %v", open, err)
	}
	a.Done, a.Finished = 2, true
	if err := s.BatchProgress(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Batch(t.Context(), a.ID); err != nil || !got.Finished || got.Specs != nil || got.Total != 2 {
		t.Errorf("finished: %+v, %v", got, err)
	}
	if _, err := s.Batch(t.Context(), "x/../y"); err == nil {
		t.Error("an id that is none was accepted")
	}
}

func TestBatchTaskIDs(t *testing.T) {
	seen := map[string]bool{}
	for _, b := range []string{"550e8400-e29b-41d4-a716-446655440000", "550e8400-e29b-41d4-a716-446655440001"} {
		for line := 1; line <= 1000; line++ {
			id := lpmos.BatchTaskID(b, line)
			if !lpmos.ValidTaskID(id) || seen[id] {
				t.Fatalf("line %d of %s is %q", line, b, id)
			}
			seen[id] = true
		}
	}
	if lpmos.BatchTaskID("a", 1) != lpmos.BatchTaskID("a", 1) {
		t.Error("the same line has two ids")
	}
}
