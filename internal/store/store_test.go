package store_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

const (
	mac1 = "52:54:00:00:00:01"
	mac2 = "52:54:00:00:00:02"
	uuid = "4c4c4544-0035-4a10-8058-b7c04f4e3332"
)

func spec(region, mac string) lpmos.Spec {
	return lpmos.Spec{RegionID: region, TargetMAC: lpmos.MustMAC(mac), OSType: "debian", OSVersion: "12", Arch: "amd64", Hostname: "h"}
}

func create(t *testing.T, s *store.Store, region, mac string) lpmos.Task {
	t.Helper()
	task, err := s.CreateTask(t.Context(), spec(region, mac), "tester", "")
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func move(t *testing.T, s *store.Store, id string, c lpmos.Cause, edit func(*store.Record)) lpmos.Task {
	t.Helper()
	task, err := s.Transition(t.Context(), id, store.Move{Cause: c, By: "tester"}, func(r *store.Record, _ *store.Move) error {
		if edit != nil {
			edit(r)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("move task (%s): %v", c, err)
	}
	return task
}

// follower reads batches in the background.
type follower struct {
	t    *testing.T
	next func() (store.Batch, error, bool)
}

func follow(t *testing.T, s *store.Store, scope store.Scope) *follower {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	next, stop := iter.Pull2(s.Changes(ctx, scope))
	t.Cleanup(func() { cancel(); stop() })
	return &follower{t, next}
}

func (f *follower) batch() store.Batch {
	f.t.Helper()
	b, err, ok := f.next()
	if err != nil || !ok {
		f.t.Fatalf("no batch: %v", err)
	}
	return b
}

func kinds(b store.Batch) map[store.Kind]int {
	out := map[store.Kind]int{}
	for _, c := range b.Changes {
		out[c.Key.Kind]++
	}
	return out
}

func TestChanges(t *testing.T) {
	s := storetest.New(t)
	first := create(t, s, "dc1", mac1)
	f := follow(t, s, store.All)

	list := f.batch()
	if got := kinds(list); !list.Reset || got[store.KindStatus] != 1 || got[store.KindOrder] != 1 || got[store.KindEvent] != 0 || list.Rev < first.Rev {
		t.Errorf("the first batch is %+v with %v; want a Reset with the task, without its history", list.Rev, got)
	}
	second := create(t, s, "dc1", mac2)
	made := f.batch()
	if want := map[store.Kind]int{
		store.KindStatus: 1, store.KindMetadata: 1, store.KindEvent: 1, store.KindOrder: 1, store.KindBoot: 1, store.KindAgentTask: 1,
	}; made.Reset || made.Rev != second.Rev || !maps.Equal(kinds(made), want) {
		t.Errorf("creating a task is batch %d with %v; want %d with %v", made.Rev, kinds(made), second.Rev, want)
	}
	canceled := move(t, s, second.ID, lpmos.CauseCanceled, nil)
	gone := f.batch()
	deleted := map[store.Kind]bool{}
	for _, c := range gone.Changes {
		if c.Rev != canceled.Rev {
			t.Errorf("%s is of revision %d; want %d", c.Key, c.Rev, canceled.Rev)
		}
		if c.Value == nil {
			deleted[c.Key.Kind] = true
		}
	}
	if gone.Rev != canceled.Rev || !deleted[store.KindOrder] || !deleted[store.KindAgentTask] || deleted[store.KindBoot] {
		t.Errorf("canceling is batch %d, which deletes %v; want order and claim gone and the boot entry kept", gone.Rev, deleted)
	}
}

// A consumer that is cut off while history is compacted past it begins anew.
func TestChangesAfterCompaction(t *testing.T) {
	s := storetest.New(t)
	f := follow(t, s, store.All)
	if b := f.batch(); !b.Reset {
		t.Fatal("the first batch is not a Reset")
	}
	// The watch begins when the consumer asks on: until then it is cut off.
	task := create(t, s, "dc1", mac1)
	last := move(t, s, task.ID, lpmos.CauseCanceled, nil)
	if err := s.Compact(t.Context(), last.Rev); err != nil {
		t.Fatal(err)
	}
	if err := s.Compact(t.Context(), last.Rev); err != nil {
		t.Errorf("compacting what another replica compacted: %v", err)
	}
	b := f.batch()
	var status string
	for _, c := range b.Changes {
		if c.Key.Kind == store.KindStatus {
			status = string(c.Value)
		}
	}
	if !b.Reset || b.Rev < last.Rev || status != string(lpmos.Canceled) {
		t.Errorf("after the compaction: reset %v at %d, status %q; want a Reset with the newest state", b.Reset, b.Rev, status)
	}
	next := create(t, s, "dc1", mac2)
	if b := f.batch(); b.Reset || b.Rev != next.Rev {
		t.Errorf("then: reset %v at %d; want revision %d", b.Reset, b.Rev, next.Rev)
	}
}

func TestChangesOfAListingLargerThanAPage(t *testing.T) {
	s := storetest.New(t)
	const n = 2500
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				if err := s.SetRegionStatus(t.Context(), fmt.Sprintf("r%d", i), "offline"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, c := range follow(t, s, store.All).batch().Changes {
		if c.Key.Kind == store.KindRegionStatus {
			seen[c.Key.Region] = true
		}
	}
	if len(seen) != n {
		t.Errorf("the listing has %d regions; want %d", len(seen), n)
	}
}

// Regions whose names begin alike see only their own orders.
func TestRegionScope(t *testing.T) {
	s := storetest.New(t)
	orders := func(b store.Batch) []string {
		var out []string
		for _, c := range b.Changes {
			if c.Key.Kind == store.KindOrder {
				out = append(out, c.Key.Region+" "+c.Key.TaskID)
			}
		}
		return out
	}
	one := create(t, s, "dc1", mac1)
	ten := create(t, s, "dc10", mac2)
	f1, f10 := follow(t, s, store.RegionScope("dc1")), follow(t, s, store.RegionScope("dc10"))
	if got := orders(f1.batch()); !slices.Equal(got, []string{"dc1 " + one.ID}) {
		t.Errorf("dc1 sees %v", got)
	}
	if got := orders(f10.batch()); !slices.Equal(got, []string{"dc10 " + ten.ID}) {
		t.Errorf("dc10 sees %v", got)
	}
	foreign := create(t, s, "dc10", "52:54:00:00:00:03")
	own := create(t, s, "dc1", "52:54:00:00:00:04")
	if b := f1.batch(); b.Rev != own.Rev || !slices.Equal(orders(b), []string{"dc1 " + own.ID}) {
		t.Errorf("dc1 then sees %v at %d; want only its own at %d (dc10's was %d)", orders(b), b.Rev, own.Rev, foreign.Rev)
	}
}

func session(t *testing.T, s *store.Store, region, instance string) *store.Session {
	t.Helper()
	ss, err := s.OpenSession(t.Context(), region, instance, lpmos.Capabilities{Hostname: "host-" + instance}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ss.Close)
	return ss
}

func TestSessionFencing(t *testing.T) {
	e, s := storetest.Start(t)
	task := create(t, s, "dc1", mac1)
	old := session(t, storetest.Connect(t, e), "dc1", "a")
	h := &lpmos.Hardware{BootMode: "bios"}
	if err := old.PutHardware(t.Context(), task.ID, 1, h); err != nil {
		t.Fatal(err)
	}
	// The old session keeps its lease alive: who waited for its end would wait for ever.
	fresh := session(t, s, "dc1", "a")
	for name, write := range map[string]func(*store.Session) error{
		"hardware": func(ss *store.Session) error { return ss.PutHardware(t.Context(), task.ID, 1, h) },
		"result": func(ss *store.Session) error {
			return ss.PutResult(t.Context(), lpmos.Result{TaskID: task.ID, Attempt: 1})
		},
		"discovered": func(ss *store.Session) error {
			return ss.PutDiscovered(t.Context(), lpmos.Discovered{MAC: lpmos.MustMAC(mac2)})
		},
	} {
		if err := write(old); !errors.Is(err, store.ErrFenced) || !errors.Is(err, lpmos.ErrUnavailable) {
			t.Errorf("%s of the old session = %v; want ErrFenced", name, err)
		}
		if err := write(fresh); err != nil {
			t.Errorf("%s of the new session: %v", name, err)
		}
	}
	if err := old.DeleteReports(t.Context(), task.ID); err == nil {
		t.Error("the old session deletes reports")
	}
	select {
	case <-old.Lost():
	case <-time.After(time.Minute):
		t.Error("the old session does not know that it is lost")
	}
	select {
	case <-fresh.Lost():
		t.Error("the new session is lost")
	default:
	}
}

func TestSessionStandby(t *testing.T) {
	e, s := storetest.Start(t)
	active := session(t, s, "dc1", "a")
	heard := make(chan string, 2)
	got := make(chan *store.Session)
	other := storetest.Connect(t, e)
	go func() {
		ss, err := other.OpenSession(t.Context(), "dc1", "b", lpmos.Capabilities{Hostname: "host-b"}, func(h string) { heard <- h })
		if err != nil {
			t.Error(err)
		}
		got <- ss
	}()
	if h := <-heard; h != "host-a" {
		t.Errorf("the standby hears that %q holds the region; want host-a", h)
	}
	select {
	case <-got:
		t.Fatal("two instances have a session at once")
	case <-time.After(300 * time.Millisecond):
	}
	start := time.Now()
	active.Close()
	ss := <-got
	if ss == nil {
		t.Fatal("the standby got no session")
	}
	defer ss.Close()
	// A lease that was not given up has two thirds of its ten seconds left.
	if d := time.Since(start); d > 6*time.Second {
		t.Errorf("the standby took over after %s; want it at once when the region is given up", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := s.OpenSession(ctx, "dc1", "c", lpmos.Capabilities{}, func(string) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("a third instance = %v; want it to wait until its context ends", err)
	}
}

func TestSessionWritesOnlyForItsOrder(t *testing.T) {
	s := storetest.New(t)
	ss := session(t, s, "dc1", "a")
	elsewhere := create(t, s, "dc2", mac2)
	task := create(t, s, "dc1", mac1)
	p := func(id string, attempt int) error {
		return ss.PutProgress(t.Context(), &lpmos.Progress{TaskID: id, Attempt: attempt, Stage: lpmos.Downloading})
	}
	if err := p(task.ID, 1); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"another attempt": p(task.ID, 2), "another region's task": p(elsewhere.ID, 1), "a task that is not there": p(lpmos.NewTaskID(), 1),
	} {
		if !errors.Is(err, lpmos.ErrNotFound) {
			t.Errorf("a report for %s = %v; want ErrNotFound", name, err)
		}
	}
	if err := ss.DeleteReports(t.Context(), task.ID); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("deleting reports while the order stands = %v; want ErrConflict", err)
	}
	// What a session remembers of an order is no longer so.
	move(t, s, task.ID, lpmos.CauseFailed, nil)
	move(t, s, task.ID, lpmos.CauseRetried, func(r *store.Record) { r.Task.Attempt = 2 })
	if err := p(task.ID, 1); !errors.Is(err, lpmos.ErrNotFound) {
		t.Errorf("a report for the attempt before = %v; want ErrNotFound", err)
	}
	for _, next := range []lpmos.Cause{lpmos.CauseHardwareReported, lpmos.CauseCanceled} {
		if err := p(task.ID, 2); err != nil {
			t.Error(err)
		}
		move(t, s, task.ID, next, nil)
	}
	if err := p(task.ID, 2); !errors.Is(err, lpmos.ErrNotFound) {
		t.Errorf("a report after the end = %v; want ErrNotFound", err)
	}
	if err := ss.DeleteReports(t.Context(), task.ID); err != nil {
		t.Error(err)
	}
	for _, c := range follow(t, s, store.RegionScope("dc1")).batch().Changes {
		if strings.HasPrefix(string(c.Key.Kind), "regions/{region}/reports/") {
			t.Errorf("%s is left", c.Key)
		}
	}
}

func TestIdempotencyUnderRace(t *testing.T) {
	s, raw := tampered(t)
	ids := make([]string, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			task, err := s.CreateTask(t.Context(), spec("dc1", mac1), "tester", "key")
			if err != nil {
				t.Error(err)
			}
			ids[i] = task.ID
		})
	}
	wg.Wait()
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 1 {
		t.Errorf("one key made several tasks: %v", ids)
	}
	if _, err := s.CreateTask(t.Context(), spec("dc1", mac2), "tester", "key"); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("another request under the same key = %v; want a conflict", err)
	}
	if task, err := s.CreateTask(t.Context(), spec("dc1", mac2), "somebody else", "key"); err != nil || task.ID == ids[0] {
		t.Errorf("somebody else's request under the same key = %s, %v; want a task of its own", task.ID, err)
	}
	if l, err := raw.Leases(t.Context()); err != nil || len(l.Leases) != 2 {
		t.Errorf("leases = %v, %v; want one for each of the two keys, and none of requests that stored nothing", l, err)
	}
}

func TestTransitionUnderRace(t *testing.T) {
	s := storetest.New(t)
	task := create(t, s, "dc1", mac1)
	errs := make([]error, 12)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = s.Transition(t.Context(), task.ID, store.Move{Cause: lpmos.CauseCanceled, By: fmt.Sprint(i)}, nil)
		})
	}
	wg.Wait()
	var won int
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("a loser hears %v; want a conflict", err)
		}
	}
	events, err := s.Events(t.Context(), task.ID)
	if err != nil || won != 1 || len(events) != 2 {
		t.Errorf("%d won, %d events, %v; want one winner and one event for it", won, len(events), err)
	}
	if err := lpmos.VerifyEvents(events); err != nil {
		t.Error(err)
	}
}

func TestClaims(t *testing.T) {
	s := storetest.New(t)
	claim := func(r *store.Record) {
		r.Task.Claims, r.Task.ClaimUUID = []lpmos.MAC{lpmos.MustMAC(mac1), lpmos.MustMAC(mac2)}, uuid
	}
	first := create(t, s, "dc1", mac1)
	move(t, s, first.ID, lpmos.CauseHardwareReported, claim)
	var conflict *lpmos.ConflictError
	if _, err := s.CreateTask(t.Context(), spec("dc2", mac2), "tester", ""); !errors.As(err, &conflict) || !strings.Contains(err.Error(), first.ID) {
		t.Errorf("a task for the machine's other NIC = %v; want a conflict that names the first", err)
	}
	third := create(t, s, "dc1", "52:54:00:00:00:03")
	_, err := s.Transition(t.Context(), third.ID, store.Move{Cause: lpmos.CauseHardwareReported}, func(r *store.Record, _ *store.Move) error {
		r.Task.ClaimUUID = uuid
		return nil
	})
	var taken *store.ClaimError
	if !errors.As(err, &taken) || taken.Holder != first.ID || taken.Key != "machines/"+uuid+"/task_id" {
		t.Errorf("claiming the same UUID = %v; want a ClaimError that names the first task", err)
	}
	if rec, err := s.Task(t.Context(), third.ID); err != nil || rec.Task.Status != lpmos.Pending || rec.Task.ClaimUUID != "" {
		t.Errorf("the task that lost is %+v, %v; want it untouched", rec.Task, err)
	}
	move(t, s, first.ID, lpmos.CauseCanceled, nil)
	create(t, s, "dc2", mac2)
	move(t, s, third.ID, lpmos.CauseHardwareReported, func(r *store.Record) { r.Task.ClaimUUID = uuid })
}

// A call home that comes after a newer task took the machine changes nothing.
func TestLateCallHomeDoesNotTouchANewTask(t *testing.T) {
	s := storetest.New(t)
	old := create(t, s, "dc1", mac1)
	for _, c := range []lpmos.Cause{lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CausePermitGranted, lpmos.CauseResultReported} {
		move(t, s, old.ID, c, nil)
	}
	move(t, s, old.ID, lpmos.CauseDeadline, func(r *store.Record) { r.Task.Error = &lpmos.Failure{Code: store.CodeVerifyDeadline} })
	fresh := create(t, s, "dc1", mac1)
	_, err := s.Transition(t.Context(), old.ID, store.Move{Cause: lpmos.CauseCalledHome}, nil)
	var taken *store.ClaimError
	if !errors.As(err, &taken) || taken.Holder != fresh.ID {
		t.Errorf("a late call home = %v; want a ClaimError that names the new task", err)
	}
	move(t, s, fresh.ID, lpmos.CauseCanceled, nil)
	if done := move(t, s, old.ID, lpmos.CauseCalledHome, nil); done.Status != lpmos.Completed {
		t.Errorf("status = %s; want completed once nobody else owns the machine", done.Status)
	}
}

func TestDeleteTask(t *testing.T) {
	s := storetest.New(t)
	task := create(t, s, "dc1", mac1)
	keep := create(t, s, "dc1", mac2)
	if err := s.DeleteTask(t.Context(), task.ID); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("deleting a live task = %v; want a conflict", err)
	}
	move(t, s, task.ID, lpmos.CauseCanceled, nil)
	if err := s.DeleteTask(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"task":   func() error { _, err := s.Task(t.Context(), task.ID); return err }(),
		"events": func() error { _, err := s.Events(t.Context(), task.ID); return err }(),
		"delete": s.DeleteTask(t.Context(), task.ID),
	} {
		if !errors.Is(err, lpmos.ErrNotFound) {
			t.Errorf("%s afterwards = %v; want ErrNotFound", name, err)
		}
	}
	for _, c := range follow(t, s, store.All).batch().Changes {
		if c.Key.TaskID == task.ID {
			t.Errorf("%s is left", c.Key)
		}
	}
	if _, err := s.Task(t.Context(), keep.ID); err != nil {
		t.Errorf("the other task: %v", err)
	}
}

func TestStoreRefusesWhatIsNoID(t *testing.T) {
	s := storetest.New(t)
	for _, id := range []string{"", "..", "t1/approval", "../../config/global", "550e8400-e29b-41d4-a716-446655440000/approval"} {
		var invalid *lpmos.InvalidError
		_, e1 := s.Task(t.Context(), id)
		_, e2 := s.Events(t.Context(), id)
		_, e3 := s.Transition(t.Context(), id, store.Move{Cause: lpmos.CauseCanceled}, nil)
		_, e4 := s.OpenSession(t.Context(), id, "a", lpmos.Capabilities{}, nil)
		for i, err := range []error{e1, e2, e3, e4, s.DeleteTask(t.Context(), id), s.DeleteImage(t.Context(), id, "12", "amd64"), s.PutImage(t.Context(), lpmos.Image{OS: id})} {
			if !errors.As(err, &invalid) {
				t.Errorf("%q, call %d = %v; want an InvalidError", id, i, err)
			}
		}
	}
}

func TestStoreID(t *testing.T) {
	e, s := storetest.Start(t)
	if again := storetest.Connect(t, e); again.ID() != s.ID() || !lpmos.ValidTaskID(s.ID()) {
		t.Errorf("two connections see stores %s and %s; want one id", s.ID(), again.ID())
	}
	if other := storetest.New(t); other.ID() == s.ID() {
		t.Error("two stores have one id")
	}
	if err := s.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOpenWithoutEtcd(t *testing.T) {
	start := time.Now()
	_, err := store.Open(t.Context(), store.Config{Endpoints: []string{"127.0.0.1:1"}, Timeout: 500 * time.Millisecond}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "is it running?") || time.Since(start) > time.Minute {
		t.Errorf("Open without etcd = %v after %s; want what to do about it, soon", err, time.Since(start))
	}
	if _, err := store.Open(t.Context(), store.Config{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("Open without endpoints succeeds")
	}
}

func TestUpdateGlobalUnderRace(t *testing.T) {
	s := storetest.New(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := s.UpdateGlobal(t.Context(), func(g *store.Global) error {
				g.Keys = append(g.Keys, []byte{byte(i)})
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var n int
	if _, err := s.UpdateGlobal(t.Context(), func(g *store.Global) error { n = len(g.Keys); return nil }); err != nil || n != 8 {
		t.Errorf("%d keys, %v; want all 8", n, err)
	}
}

func TestFoldOnlyWhileInstalling(t *testing.T) {
	s := storetest.New(t)
	task := create(t, s, "dc1", mac1)
	fold := func(percent int) *lpmos.Progress {
		t.Helper()
		if err := s.FoldProgress(t.Context(), &lpmos.Progress{TaskID: task.ID, Attempt: 1, Stage: lpmos.Downloading, Percentage: percent}, []string{"a", "b"}); err != nil {
			t.Fatal(err)
		}
		rec, err := s.Task(t.Context(), task.ID)
		if err != nil {
			t.Fatal(err)
		}
		return rec.Task.Progress
	}
	if p := fold(10); p != nil {
		t.Errorf("progress of a pending task = %+v", p)
	}
	for _, c := range []lpmos.Cause{lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CausePermitGranted} {
		move(t, s, task.ID, c, nil)
	}
	if p := fold(20); p == nil || p.Percentage != 20 {
		t.Errorf("progress of an installing task = %+v; want 20", p)
	}
	move(t, s, task.ID, lpmos.CauseResultReported, func(r *store.Record) { r.Task.Progress = &lpmos.Progress{TaskID: task.ID, Percentage: 100} })
	if p := fold(30); p == nil || p.Percentage != 100 {
		t.Errorf("progress after the result = %+v; want the 100 it ended on", p)
	}
}
