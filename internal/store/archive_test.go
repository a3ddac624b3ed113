package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
)

// later is after everything that a test makes has ended.
func later() time.Time { return time.Now().Add(time.Hour) }

func archive(t *testing.T, s *store.Store, want int) {
	t.Helper()
	if got, err := s.ArchiveTasks(t.Context(), later()); err != nil || got != want {
		t.Fatalf("ArchiveTasks = %d, %v; want %d", got, err, want)
	}
}

// ended makes tasks that ended in every way there is, and one that is live.
func ended(t *testing.T, s *store.Store) (byName map[string]string) {
	t.Helper()
	if _, err := s.PutProfile(t.Context(), lpmos.Profile{Name: "web", OSType: "debian", OSVersion: "12"}, 0); err != nil {
		t.Fatal(err)
	}
	n := 0
	begin := func() string {
		n++
		one := spec("dc1", fmt.Sprintf("52:54:00:00:01:%02x", n))
		one.Profile = "web"
		task, err := s.CreateTask(t.Context(), one, "tester", "")
		if err != nil {
			t.Fatal(err)
		}
		return task.ID
	}
	reported := func() string {
		id := begin()
		move(t, s, id, lpmos.CauseHardwareReported, func(r *store.Record) {
			r.Task.Hardware = &lpmos.Hardware{System: lpmos.System{Serial: "S " + id}, Disks: []lpmos.Disk{{Serial: "D", Model: "M"}}}
			r.Task.Plan, r.Task.Previous = &lpmos.Plan{Digest: "d"}, &lpmos.Sighting{RegionID: "dc1"}
		})
		return id
	}
	installing := func() string {
		id := reported()
		move(t, s, id, lpmos.CauseApproved, func(r *store.Record) { r.Task.Approval = &lpmos.Approval{TaskID: id, Approved: true} })
		move(t, s, id, lpmos.CausePermitGranted, nil)
		if err := s.FoldProgress(t.Context(), &lpmos.Progress{TaskID: id, Attempt: 1, Stage: lpmos.Downloading, Percentage: 30}, []string{"a", "b"}); err != nil {
			t.Fatal(err)
		}
		return id
	}
	byName = map[string]string{"live": begin(), "canceled": begin(), "rejected": reported(), "failed": installing(), "completed": installing()}
	move(t, s, byName["canceled"], lpmos.CauseCanceled, nil)
	move(t, s, byName["rejected"], lpmos.CauseRejected, nil)
	move(t, s, byName["failed"], lpmos.CauseFailed, func(r *store.Record) { r.Task.Error = &lpmos.Failure{Code: "disk_gone", Cause: "two\nlines"} })
	late := byName["completed"]
	move(t, s, late, lpmos.CauseResultReported, nil)
	move(t, s, late, lpmos.CauseDeadline, func(r *store.Record) { r.Task.Error = &lpmos.Failure{Code: store.CodeVerifyDeadline} })
	move(t, s, late, lpmos.CauseCalledHome, func(r *store.Record) { r.Task.Error, r.Task.Receipt = nil, &lpmos.Receipt{OS: "Debian 12"} })
	return byName
}

// seen is all that a reader of the store can see of its tasks.
type seen struct {
	Listing []string
	Tasks   map[string]lpmos.Task
	Events  map[string][]lpmos.Event
	Audit   lpmos.AuditReport
}

func see(t *testing.T, s *store.Store, ids map[string]string) seen {
	t.Helper()
	out := seen{Tasks: map[string]lpmos.Task{}, Events: map[string][]lpmos.Event{}}
	for _, c := range parted(t, follow(t, s, store.All).batch()).Changes {
		out.Listing = append(out.Listing, fmt.Sprintf("%s %d %v %s", c.Key, c.Rev, c.Left, c.Value))
	}
	slices.Sort(out.Listing)
	for name, id := range ids {
		rec, err := s.Task(t.Context(), id)
		if err != nil {
			t.Errorf("read the %s task: %v", name, err)
		}
		out.Tasks[name] = rec.Task
		if out.Events[name], err = s.Events(t.Context(), id); err != nil {
			t.Errorf("read the events of the %s task: %v", name, err)
		}
	}
	var err error
	if out.Audit, err = check(t, s); err != nil {
		t.Errorf("verify the audit: %v", err)
	}
	return out
}

// parted is a batch with the parts of archived tasks in their places.
func parted(t *testing.T, b store.Batch) store.Batch {
	t.Helper()
	var all []store.Change
	for _, c := range b.Changes {
		if c.Key.Kind != store.KindArchive {
			all = append(all, c)
			continue
		}
		parts, err := c.Archived()
		if err != nil {
			t.Errorf("read what was archived of task %s: %v", c.Key.TaskID, err)
		}
		all = append(all, parts...)
	}
	b.Changes = all
	return b
}

// What a task is and was can be read alike before and after it is archived, to
// the last byte and revision, and of its keys one is left.
func TestArchivedTasksReadAsBefore(t *testing.T) {
	s, raw := tampered(t)
	ids := ended(t, s)
	if n, err := s.ArchiveTasks(t.Context(), time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Errorf("ArchiveTasks of what ended an hour ago = %d, %v; want none", n, err)
	}
	before := see(t, s, ids)
	f := follow(t, s, store.All)
	f.batch()
	archive(t, s, 4)
	archive(t, s, 0)
	if d := cmp.Diff(before, see(t, s, ids), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("after archiving, readers see something else (-before +after):\n%s", d)
	}
	for name, id := range ids {
		g, err := raw.Get(t.Context(), "/lpmos/tasks/"+id+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		if (g.Count > 0) != (name == "live") {
			t.Errorf("the %s task has %d keys below tasks/", name, g.Count)
		}
	}
	if err := s.NoteTasks(t.Context(), []string{ids["failed"], ids["live"]}); err != nil {
		t.Fatal(err)
	}
	b := f.batch()
	if got := kinds(b); got[store.KindAuditEntry] != 1 || len(got) != 2 {
		t.Errorf("the batch after archiving is %v; want the audit entry, as archiving changed nothing", got)
	}
	for _, c := range b.Changes {
		if c.Key.Kind == store.KindAuditEntry && (!strings.Contains(string(c.Value), ids["failed"]) || !strings.Contains(string(c.Value), ids["live"])) {
			t.Errorf("the entry notes %s; want the chains of both tasks", c.Value)
		}
	}
	if _, err := check(t, s); err != nil {
		t.Error(err)
	}
}

// An archived task moves, and is deleted, like any other; who follows the store
// sees that and nothing else.
func TestArchivedTasksMoveAndGo(t *testing.T) {
	s, raw := tampered(t)
	ids := ended(t, s)
	archive(t, s, 4)
	failed := ids["failed"]
	told := map[string]string{} // of the failed task, to who follows the store
	tell := func(told map[string]string, b store.Batch) {
		for _, c := range b.Changes {
			switch key := c.Key.String(); {
			case c.Key.TaskID != failed || c.Key.Kind == store.KindEvent:
			case c.Value == nil && !c.Left:
				delete(told, key)
			default:
				told[key] = string(c.Value)
			}
		}
	}
	f := follow(t, s, store.All)
	tell(told, parted(t, f.batch()))
	if _, err := s.Transition(t.Context(), failed, store.Move{Cause: lpmos.CausePermitGranted, By: "tester"}, nil); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("granting a permit to a failed task = %v; want a conflict", err)
	}
	if g, err := raw.Get(t.Context(), "/lpmos/archive/"+failed); err != nil || g.Count != 1 {
		t.Errorf("what is refused took the task out of the archive: %v, %v", g, err)
	}
	move(t, s, failed, lpmos.CauseRetried, nil)
	b := f.batch()
	if got := kinds(b); got[store.KindStatus] != 1 || got[store.KindOrder] != 1 || got[store.KindArchive] != 0 {
		t.Errorf("retrying is %v for who follows the store", got)
	}
	tell(told, b)
	is := map[string]string{}
	tell(is, parted(t, follow(t, s, store.All).batch()))
	if d := cmp.Diff(is, told); d != "" {
		t.Errorf("after a retry, who followed the store knows something else (-listing +followed):\n%s", d)
	}
	events, err := s.Events(t.Context(), failed)
	if err != nil || events[len(events)-1].Cause != lpmos.CauseRetried || events[len(events)-2].Cause != lpmos.CauseFailed {
		t.Errorf("its events are %+v, %v; want the retry after the failure", events, err)
	}
	if err := lpmos.VerifyEvents(events); err != nil {
		t.Error(err)
	}

	rejected := ids["rejected"]
	if err := s.DeleteTask(t.Context(), rejected); err != nil {
		t.Fatal(err)
	}
	var gone bool
	for _, c := range f.batch().Changes {
		gone = gone || c.Key == store.Key{Kind: store.KindStatus, TaskID: rejected} && c.Value == nil
	}
	if !gone {
		t.Error("deleting an archived task does not look so to who follows the store")
	}
	if _, err := s.Task(t.Context(), rejected); !errors.Is(err, lpmos.ErrNotFound) {
		t.Errorf("the deleted task = %v; want ErrNotFound", err)
	}
	if _, err := check(t, s); err != nil {
		t.Error(err)
	}
}

// Whoever archives and whoever moves a task at the same time lose nothing.
func TestArchivingUnderRace(t *testing.T) {
	s, _ := tampered(t)
	id := create(t, s, "dc1", mac1).ID
	move(t, s, id, lpmos.CauseHardwareReported, nil)
	move(t, s, id, lpmos.CauseApproved, nil)
	move(t, s, id, lpmos.CausePermitGranted, nil)
	move(t, s, id, lpmos.CauseFailed, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := s.ArchiveTasks(t.Context(), later()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	const rounds = 10
	for range rounds {
		for _, c := range []lpmos.Cause{lpmos.CauseRetried, lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CausePermitGranted, lpmos.CauseFailed} {
			move(t, s, id, c, nil)
		}
	}
	close(stop)
	wg.Wait()
	events, err := s.Events(t.Context(), id)
	if err != nil || len(events) != 5+5*rounds {
		t.Errorf("%d events, %v; want %d", len(events), err, 5+5*rounds)
	}
	if err := lpmos.VerifyEvents(events); err != nil {
		t.Error(err)
	}
	if _, err := check(t, s); err != nil {
		t.Error(err)
	}
}

// What this version does not know, or could not take out again in one
// transaction, is not archived; and what cannot be read hides nothing else.
func TestWhatIsNotArchived(t *testing.T) {
	s, raw := tampered(t)
	put := func(key, value string) {
		t.Helper()
		if _, err := raw.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	newer, large, plain := create(t, s, "dc1", mac1).ID, create(t, s, "dc1", mac2).ID, create(t, s, "dc1", "52:54:00:00:00:03").ID
	for _, id := range []string{newer, large, plain} {
		move(t, s, id, lpmos.CauseCanceled, nil)
	}
	put("/lpmos/tasks/"+newer+"/of_a_newer_version", "x")
	put("/lpmos/tasks/"+large+"/logs", strings.Repeat("log ", 300_000))
	archive(t, s, 1)
	whole, err := raw.Get(t.Context(), "/lpmos/archive/"+plain)
	if err != nil || len(whole.Kvs) != 1 {
		t.Fatal(err)
	}
	right := string(whole.Kvs[0].Value)
	for name, wrong := range map[string]string{
		"nothing": "", "nonsense": "\x00nonsense", "a length that is too much": "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "half": right[:len(right)/2],
		"another byte": right[:len(right)/2] + string(right[len(right)/2]^0xff) + right[len(right)/2+1:],
	} {
		put("/lpmos/archive/"+plain, wrong)
		if _, err := s.Task(t.Context(), plain); err == nil || errors.Is(err, lpmos.ErrNotFound) {
			t.Errorf("with %s in the archive, its task = %v; want an error that says so", name, err)
		}
		if got := kinds(follow(t, s, store.All).batch()); got[store.KindStatus] != 2 || got[store.KindArchive] != 1 {
			t.Errorf("with %s in the archive the listing has %v; want it, and the other two tasks", name, got)
		}
	}
	put("/lpmos/archive/"+plain, right)
	if rec, err := s.Task(t.Context(), plain); err != nil || rec.Task.Status != lpmos.Canceled {
		t.Errorf("the task = %s, %v", rec.Task.Status, err)
	}
}
