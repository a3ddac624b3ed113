package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// A large store is listed by the summaries of its tasks. What comes of it is
// what the tasks themselves say, also where a summary is missing, of a task
// that has moved on, or of one that is not there.
func TestListingBySummaries(t *testing.T) {
	e, s := storetest.Start(t)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
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
	begin()
	canceled := begin()
	move(t, s, canceled, lpmos.CauseCanceled, nil)
	reported()
	rejected := reported()
	move(t, s, rejected, lpmos.CauseRejected, nil)
	installing()
	failed := installing()
	move(t, s, failed, lpmos.CauseFailed, func(r *store.Record) {
		r.Task.Error, r.Task.LogTail = &lpmos.Failure{Code: "disk_gone", Cause: "two\nlines"}, nil
	})
	retried := installing()
	move(t, s, retried, lpmos.CauseFailed, nil)
	move(t, s, retried, lpmos.CauseRetried, nil)
	completed := installing()
	move(t, s, completed, lpmos.CauseResultReported, nil)
	move(t, s, completed, lpmos.CauseDeadline, func(r *store.Record) { r.Task.Error = &lpmos.Failure{Code: store.CodeVerifyDeadline} })
	move(t, s, completed, lpmos.CauseCalledHome, func(r *store.Record) { r.Task.Error, r.Task.Receipt = nil, &lpmos.Receipt{OS: "Debian 12"} })
	deleted := installing()
	move(t, s, deleted, lpmos.CauseFailed, nil)
	if err := s.DeleteTask(t.Context(), deleted); err != nil {
		t.Fatal(err)
	}

	type change struct {
		Key, Value string
		Left       bool
	}
	list := func(divideFrom int64) []change {
		t.Helper()
		s.Divide(divideFrom)
		var out []change
		for _, c := range follow(t, s, store.All).batch().Changes {
			out = append(out, change{c.Key.String(), string(c.Value), c.Left})
		}
		slices.SortFunc(out, func(a, b change) int { return strings.Compare(a.Key, b.Key) })
		return out
	}
	same := func(when string) {
		t.Helper()
		if d := cmp.Diff(list(1<<40), list(-1)); d != "" {
			t.Errorf("%s, the listing by summaries differs (-tasks +summaries):\n%s", when, d)
		}
	}
	summary := func(id string) string { return store.Key{Kind: store.KindSummary, TaskID: id}.String() }
	write := func(op clientv3.Op) {
		t.Helper()
		if _, err := c.Do(t.Context(), op); err != nil {
			t.Fatal(err)
		}
	}
	mend := func(want int) {
		t.Helper()
		if got, err := s.MendSummaries(t.Context()); err != nil || got != want {
			t.Errorf("MendSummaries = %d, %v; want %d", got, err, want)
		}
	}
	if len(list(-1)) < 50 {
		t.Fatalf("the listing has %d changes", len(list(-1)))
	}
	same("as they were written")
	mend(0)

	// They are what is read: as long as the number of keys is right, a summary
	// is believed.
	g, err := c.Get(t.Context(), summary(completed))
	if err != nil || len(g.Kvs) != 1 {
		t.Fatal(err)
	}
	right := string(g.Kvs[0].Value)
	write(clientv3.OpPut(summary(completed), strings.Replace(right, "Debian 12", "Debian 13", 1)))
	if !strings.Contains(fmt.Sprint(list(-1)), "Debian 13") {
		t.Error("the listing does not go by the summaries")
	}
	write(clientv3.OpPut(summary(completed), right))

	write(clientv3.OpDelete(summary(completed)))
	write(clientv3.OpDelete(summary(canceled)))
	same("without two of them")
	write(clientv3.OpPut(summary(rejected), "live"))
	write(clientv3.OpPut(summary(failed), "\x00nonsense"))
	same("with two that say nothing, of tasks that are read instead")
	write(clientv3.OpPut(summary(retried), right))
	write(clientv3.OpPut(summary(lpmos.NewTaskID()), right))
	same("with one of a task that moved on, and of one that is not there")
	mend(4) // the two that say nothing are as good as right, unless they are beside another
	same("after mending")
	mend(0)
}
