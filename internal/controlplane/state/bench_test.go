package state

import (
	"flag"
	"log/slog"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/test/fixture"
)

// tasksFlag is how many tasks the benchmarks store: what the project promises
// to feel like a hundred.
var tasksFlag = flag.Int("tasks", 100_000, "tasks that the benchmarks store")

// inListing is the n-th task of the history as a listing gives it: without events,
// and of one that has ended without what is large.
func inListing(n int) []store.Change {
	all := fixture.History(n)
	live := false
	for _, c := range all {
		if c.Key.Kind == store.KindStatus {
			live = lpmos.Status(c.Value).Live()
		}
	}
	return slices.DeleteFunc(all, func(c store.Change) bool {
		return c.Key.Kind == store.KindEvent || !live && slices.Contains([]store.Kind{store.KindHardware, store.KindPlan, store.KindLogs}, c.Key.Kind)
	})
}

var benchState *State

// full is a read model with all tasks in it, made once.
func full(b *testing.B) *State {
	b.Helper()
	benchTasks := *tasksFlag
	if benchState == nil {
		s := New(nil, slog.New(slog.DiscardHandler))
		// In a function of its own, so that what was listed is not on the heap
		// that is measured.
		took := func() time.Duration {
			var all []store.Change
			for n := range benchTasks {
				all = append(all, inListing(n)...)
			}
			start := time.Now()
			s.apply(store.Batch{Rev: int64(benchTasks), Reset: true, Changes: all})
			return time.Since(start)
		}()
		b.Logf("%d tasks taken in in %v, %d bytes of memory each", benchTasks, took.Round(time.Millisecond), heap()/int64(benchTasks))
		s.now = func() time.Time { return fixture.HistoryBegins.Add(time.Duration(benchTasks) * 5 * time.Minute) }
		benchState = s
	}
	return benchState
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkPage is a page of a hundred out of a hundred thousand tasks. Beside
// the mean it tells the median, which is what is promised (under 20 ms).
func BenchmarkPage(b *testing.B) {
	s := full(b)
	for _, bb := range []struct {
		name string
		text string
		q    api.Query
	}{
		{"everything", "", api.Query{Groups: true}},
		{"a status and a region", "status:failed region:dc7", api.Query{Groups: true}},
		{"a word", "sn0017123", api.Query{Groups: true}},
		{"three words, one turned round", "dell node rack-17 !rocky", api.Query{Groups: true}},
		{"a MAC", "mac:00-5b-a0", api.Query{Groups: true}},
		{"time and host", "after:90d host:rack-17 os:debian", api.Query{Groups: true}},
		{"by host, page in the middle", "status:completed", api.Query{Groups: true, Sort: api.Sort{By: "host"}, Offset: 40_000}},
		{"by last change", "!status:failed", api.Query{Groups: true, Sort: api.Sort{By: "updated", Desc: true}}},
		{"stuck", "is:stuck", api.Query{Groups: true}},
		{"live only, no groups", "status:installing,verifying", api.Query{}},
	} {
		f, err := query.Parse(bb.text)
		if err != nil {
			b.Fatal(err)
		}
		bb.q.Filter = f
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			var took []time.Duration
			total := 0
			before := cpu()
			for b.Loop() {
				start := time.Now()
				total = s.Tasks(bb.q).Total
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
			b.ReportMetric(float64((cpu()-before).Microseconds())/1000/float64(len(took)), "cpu-ms")
			b.ReportMetric(float64(total), "found")
		})
	}
}

// BenchmarkProgress is one report of an install that runs, among all others.
func BenchmarkProgress(b *testing.B) {
	s := full(b)
	id := fixture.HistoryID(3003)
	p := lpmos.Progress{TaskID: id, Attempt: 1, Stage: lpmos.Downloading}
	rev := s.Rev()
	b.ReportAllocs()
	for b.Loop() {
		rev++
		p.Percentage = int(rev % 100)
		s.apply(store.Batch{Rev: rev, Changes: []store.Change{{Key: store.Key{Kind: store.KindReportProgress, TaskID: id, Region: "dc3", Attempt: 1}, Value: value(p), Rev: rev}}})
	}
}

// BenchmarkSelectAll is what "select all that match" asks.
func BenchmarkSelectAll(b *testing.B) {
	s := full(b)
	f, err := query.Parse("status:completed host:rack-1")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s.IDs(api.Query{Filter: f})
	}
}

// cpu is what this process has used of all processors.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
