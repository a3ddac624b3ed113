package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/orchestrator"
	"github.com/lpmos/lpmos/internal/controlplane/vault"
)

func specs(n int) (out []lpmos.Spec) {
	for i := range n {
		out = append(out, spec(fmt.Sprintf("52:54:00:b0:%02x:%02x", i>>8, i&255)))
	}
	return out
}

func (s *site) batch(id string) lpmos.Batch {
	s.t.Helper()
	b, err := s.store.Batch(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// A control plane that starts goes on with what another left behind in the
// middle, and makes no task twice.
func TestBatchGoesOnAfterACrash(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	b, err := s.CreateBatch(t.Context(), specs(130), "alice", "")
	if err != nil {
		t.Fatal(err)
	}
	// The first life: 60 tasks made, of which progress tells 50; one more made
	// although nothing tells of it; then it dies.
	whole := s.batch(b.ID)
	for line := 1; line <= 60; line++ {
		if _, err := s.store.CreateBatchTask(t.Context(), whole, line); err != nil {
			t.Fatal(err)
		}
	}
	whole.Done = 50
	if err := s.store.BatchProgress(t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	// Meanwhile a person takes the machine of a line that was not made yet.
	other := s.create(whole.Specs[99].TargetMAC.String())

	// Two replicas start at once.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	second := orchestrator.New(orchestrator.Config{Key: s.key}, s.state, s.store, discard)
	for _, o := range []*orchestrator.Orchestrator{s.Orchestrator, second} {
		wg.Go(func() { o.RunBatches(ctx) })
	}
	s.eventually("batch finished", func() bool { return s.batch(b.ID).Finished })
	cancel()
	wg.Wait()

	done := s.batch(b.ID)
	if done.Done != 130 || done.Specs != nil || len(done.Failed) != 1 || done.Failed[0].Line != 100 || !strings.Contains(done.Failed[0].Detail, other.ID) {
		t.Errorf("batch = done %d, failed %+v", done.Done, done.Failed)
	}
	s.eventually("all seen", func() bool { return len(s.state.Live()) == 130 })
	for line := 1; line <= 130; line++ {
		rec, err := s.store.Task(t.Context(), lpmos.BatchTaskID(b.ID, line))
		if line == 100 {
			if !errors.Is(err, lpmos.ErrNotFound) {
				t.Errorf("line 100 = %v; want no task", err)
			}
			continue
		}
		if err != nil || rec.Task.BatchID != b.ID || rec.Task.CreatedBy != "alice" {
			t.Errorf("line %d = %+v, %v", line, rec.Task, err)
			continue
		}
		if events, err := s.store.Events(t.Context(), rec.Task.ID); err != nil || len(events) != 1 || !strings.Contains(events[0].Message, fmt.Sprintf("line %d of batch", line)) {
			t.Errorf("line %d: events %+v, %v", line, events, err)
		}
	}
	if open, err := s.store.OpenBatches(t.Context()); err != nil || len(open) != 0 {
		t.Errorf("open batches %v, %v", open, err)
	}
	// Progress that comes late from a replica does not bring it back.
	whole.Done = 80
	if err := s.store.BatchProgress(t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	if again := s.batch(b.ID); !again.Finished {
		t.Error("a finished batch is open again")
	}
}

// The secrets of a line are sealed in the stored batch, become its task's, and
// are nowhere else.
func TestBatchWithSecrets(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	const canary = "CANARY-in-a-batch"
	lines := specs(3)
	lines[1].Secrets = map[string]lpmos.Secret{"token": lpmos.NewSecret(canary + "-1")}
	lines[2].Secrets = map[string]lpmos.Secret{"token": lpmos.NewSecret(canary + "-2")}
	b, err := s.CreateBatch(t.Context(), lines, "alice", "")
	if err != nil {
		t.Fatal(err)
	}
	if stored := s.batch(b.ID); len(stored.Sealed) != 2 || strings.Contains(fmt.Sprintf("%+v", stored), canary) || stored.Specs[1].Secrets != nil {
		t.Errorf("stored batch = %+v; want the secrets of two lines, sealed", stored)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.RunBatches(ctx) }()
	s.eventually("batch finished", func() bool { return s.batch(b.ID).Finished })
	cancel()
	<-done
	v, err := vault.New(s.key)
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[int]string{1: "", 2: canary + "-1", 3: canary + "-2"} {
		rec, err := s.store.Task(t.Context(), lpmos.BatchTaskID(b.ID, line))
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			if rec.Secrets != nil || rec.Task.Committed != nil {
				t.Errorf("the task of line %d has secrets", line)
			}
			continue
		}
		if rec.Secrets == nil || len(rec.Task.Committed) != 1 {
			t.Fatalf("the task of line %d has no secrets: %+v", line, rec.Task.Committed)
		}
		set, err := v.OpenTask(rec.Task.ID, rec.Secrets.AtRest)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := set.Check(rec.Task.Committed); err != nil || got["token"].Reveal() != want {
			t.Errorf("the secret of line %d does not open to what was given: %v", line, err)
		}
	}
}

// What a profile adds to each line counts, too.
func TestBatchLargerThanAValueOfTheStore(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	p := lpmos.Profile{Name: "keys", OSType: "tiny", OSVersion: "1", Arch: "amd64"}
	for i := range 12 {
		p.SSHKeys = append(p.SSHKeys, fmt.Sprintf("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA0000000000000000000000000000000000000000000 ops-%d@example.com", i))
	}
	if _, err := s.PutProfile(t.Context(), p, 0, "alice"); err != nil {
		t.Fatal(err)
	}
	s.eventually("the profile is known", func() bool { _, ok := s.state.Profile("keys"); return ok })
	lines := specs(lpmos.MaxBatchLines)
	for i := range lines {
		lines[i].Profile = "keys"
	}
	var inv *lpmos.InvalidError
	if _, err := s.CreateBatch(t.Context(), lines, "alice", ""); !errors.As(err, &inv) || inv.Field != "tasks" || !strings.Contains(err.Error(), "several batches") {
		t.Errorf("a batch that does not fit into a value of the store = %v; want an InvalidError of tasks that says what to do", err)
	}
	if _, err := s.CreateBatch(t.Context(), lines[:500], "alice", ""); err != nil {
		t.Errorf("a part of it: %v", err)
	}
}

// A batch that cannot be read does not hold up the others.
func TestBrokenBatchHoldsUpNoOther(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	var ids []string
	for i := range 4 {
		b, err := s.CreateBatch(t.Context(), specs(4)[i:i+1], "alice", "")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, b.ID)
	}
	slices.Sort(ids) // as they are looked for
	broken := &unreadable{counting: s.moves, id: ids[0]}
	o := orchestrator.New(orchestrator.Config{Key: s.key}, s.state, broken, discard)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- o.RunBatches(ctx) }()
	s.eventually("the others are finished", func() bool { open, err := s.store.OpenBatches(t.Context()); return err == nil && len(open) == 1 })
	cancel()
	<-done
}

// unreadable is a store in which one batch cannot be read.
type unreadable struct {
	*counting
	id string
}

func (u *unreadable) Batch(ctx context.Context, id string) (lpmos.Batch, error) {
	if id == u.id {
		return lpmos.Batch{}, errors.New("decode: unexpected end of JSON input")
	}
	return u.counting.Batch(ctx, id)
}

// A batch is checked as a whole: one bad line, and nothing of it is stored.
func TestBatchIsCheckedFirst(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	all := specs(5)
	all[1].RegionID = "dc9"
	all[3].TargetMAC = all[2].TargetMAC
	all[4].Hostname = "<b>"
	_, err := s.CreateBatch(t.Context(), all, "alice", "")
	var bad *lpmos.BatchError
	if !errors.As(err, &bad) {
		t.Fatalf("CreateBatch = %v", err)
	}
	var lines []int
	for _, l := range bad.Lines {
		lines = append(lines, l.Line)
	}
	if !slices.Equal(lines, []int{2, 4, 5}) || !strings.Contains(err.Error(), "3 lines") || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("lines %v: %v", lines, err)
	}
	if open, _ := s.store.OpenBatches(t.Context()); len(open) != 0 || len(s.state.Live()) != 0 {
		t.Errorf("stored all the same: %v", open)
	}
	if _, err := s.CreateBatch(t.Context(), specs(lpmos.MaxBatchLines+1), "alice", ""); err == nil {
		t.Error("a batch over the limit was accepted")
	}
	// The largest that is accepted fits into the store.
	most := specs(lpmos.MaxBatchLines)
	for i := range most {
		most[i].SSHKeys = []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA0000000000000000000000000000000000000000000 ops@example.com"}
		most[i].Hostname = fmt.Sprintf("node-%d.rack-17.dc1.example.com", i)
	}
	if _, err := s.CreateBatch(t.Context(), most, "alice", "k"); err != nil {
		t.Errorf("%d lines: %v", len(most), err)
	}
	if _, err := s.CreateBatch(t.Context(), specs(3), "alice", "k"); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("the same key for another request = %v", err)
	}
}
