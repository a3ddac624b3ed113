package state

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// tasksFlag is how many tasks the benchmarks store: what the project promises
// to feel like a hundred.
var tasksFlag = flag.Int("tasks", 100_000, "tasks that the benchmarks store")

// benchParts is what is stored of the n-th task, of usual size: two NICs, two
// disks with partitions, sixty lines of log for those that ended.
// With lean set, what a listing leaves out is left out.
func benchParts(n int, lean bool) []store.Change {
	status := lpmos.Completed
	switch n % 20 {
	case 0:
		status = lpmos.Failed
	case 1:
		status = lpmos.Canceled
	}
	if n%1000 < 10 {
		status = []lpmos.Status{lpmos.Pending, lpmos.AwaitingApproval, lpmos.Approved, lpmos.Installing, lpmos.Verifying}[n%5]
	}
	mac := lpmos.MAC{0x52, 0x54, 0, byte(n >> 16), byte(n >> 8), byte(n)}
	second := mac
	second[0] = 0x56
	at := epoch.Add(time.Duration(n) * 5 * time.Minute)
	t := lpmos.Task{
		ID: benchID(n), Attempt: 1 + n%50/49, CreatedAt: at, UpdatedAt: at.Add(time.Duration(n%7) * time.Hour), CreatedBy: fmt.Sprintf("operator-%d@example.com", n%30),
		Status: status, Claims: []lpmos.MAC{mac, second}, Spec: lpmos.Spec{
			RegionID: fmt.Sprintf("dc%d", n%40), TargetMAC: mac, OSType: []string{"debian", "rocky", "ubuntu"}[n%3], OSVersion: fmt.Sprint(9 + n%4), Arch: "amd64",
			Hostname: fmt.Sprintf("node-%d.rack-%d.example.com", n%977, n%311), Notes: "ordered under ticket " + fmt.Sprint(n),
			SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA0000000000000000000000000000000000000000000 ops@example.com"},
		},
	}
	content := lpmos.Content{Table: "gpt", TableID: lpmos.NewTaskID()}
	for p := 1; p <= 3; p++ {
		content.Partitions = append(content.Partitions, lpmos.Partition{
			Number: p, StartBytes: int64(p) << 30, SizeBytes: 100 << 30, Type: lpmos.NewTaskID(), UUID: lpmos.NewTaskID(),
			Filesystem: &lpmos.Filesystem{Type: "ext4", UUID: lpmos.NewTaskID(), Label: "data", Hostname: fmt.Sprintf("old-%d", n), OS: "Ubuntu 20.04", UsedBytes: 412 << 30},
		})
	}
	h := &lpmos.Hardware{
		BootMode: "uefi", System: lpmos.System{Manufacturer: "Dell Inc.", Product: fmt.Sprintf("PowerEdge R%d", 640+n%5*10), Serial: fmt.Sprintf("SN%07d", n), UUID: lpmos.NewTaskID()},
		Board: lpmos.Board{Manufacturer: "Dell Inc.", Product: "0H28RR", Serial: fmt.Sprintf(".SN%07d.CNIVC000", n)}, BIOS: lpmos.BIOS{Vendor: "Dell Inc.", Version: "2.19.1", Date: "06/04/2023"},
		CPU: lpmos.CPU{Model: "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz", Architecture: "amd64", Sockets: 2, Cores: 32, Threads: 64}, Memory: lpmos.Memory{TotalBytes: 384 << 30},
		NICs: []lpmos.NIC{{Name: "eno1", MAC: mac}, {Name: "eno2", MAC: second}}, Kernel: "6.1.0-28-amd64", Agent: "1.0.0",
		Disks: []lpmos.Disk{
			{Device: "/dev/sda", SizeBytes: 960 << 30, SectorBytes: 512, Vendor: "ATA", Model: "MZ7KH960HAJR0D3", Serial: fmt.Sprintf("S47NNA0K%06d", n), WWN: fmt.Sprintf("0x5002538e%08x", n), Transport: "sata", Content: content},
			{Device: "/dev/sdb", SizeBytes: 3840 << 30, SectorBytes: 512, Vendor: "ATA", Model: "MZ7KH3T8HALS0D3", Serial: fmt.Sprintf("S48NNA0K%06d", n), WWN: fmt.Sprintf("0x5002538f%08x", n), Transport: "sata", Content: content},
		},
	}
	image := lpmos.Image{OS: t.OSType, Version: t.OSVersion, Arch: "amd64", Digest: lpmos.DigestBytes(nil), SizeBytes: 3 << 30, BootModes: []string{"uefi"}}
	plan := lpmos.NewPlan(&t, h, image)
	key := func(k store.Kind) store.Key { return store.Key{Kind: k, TaskID: t.ID} }
	var out []store.Change
	add := func(k store.Kind, v any) {
		out = append(out, store.Change{Key: key(k), Value: value(v), Rev: int64(n + 1)})
	}
	add(store.KindApproval, lpmos.Approval{TaskID: t.ID, Approved: true, By: t.CreatedBy, At: at, PlanDigest: plan.Digest, HardwareDigest: plan.HardwareDigest, Signature: lpmos.Signature{KeyID: "0123456789abcdef", Value: make([]byte, 64)}})
	if status == lpmos.Failed {
		add(store.KindError, lpmos.Failure{Code: "disk_missing", Cause: "The disk is gone.", NextStep: "Look at it.", Stage: lpmos.Partitioning, Attempt: 1, At: at})
	}
	large := func(k store.Kind, v []byte) {
		c := store.Change{Key: key(k), Value: v, Rev: int64(n + 1)}
		if c.Left = lean && !status.Live(); c.Left {
			c.Value = nil
		}
		out = append(out, c)
	}
	large(store.KindHardware, value(h))
	if !status.Live() {
		var log []byte
		for l := range 60 {
			log = fmt.Appendf(log, "2026-11-27T08:%02d:00Z info wrote chunk chunk=%d bytes=8388608 took=28ms\n", l, l*7)
		}
		large(store.KindLogs, log)
	}
	var m map[string]any
	if err := json.Unmarshal(value(t), &m); err != nil {
		panic(err)
	}
	m["found"] = h.Found()
	for _, gone := range []string{"status", "rev"} {
		delete(m, gone)
	}
	m["event_seq"], m["event_hash"] = 6, lpmos.DigestBytes(nil)
	add(store.KindMetadata, m)
	large(store.KindPlan, value(plan))
	var begun []lpmos.StageBegin
	for i, phase := range lpmos.Phases {
		begun = append(begun, lpmos.StageBegin{Stage: phase, At: t.UpdatedAt.Add(time.Duration(i*40-240+n%20) * time.Second)})
	}
	add(store.KindProgress, lpmos.Progress{Begun: begun, TaskID: t.ID, Attempt: t.Attempt, Stage: lpmos.Configuring, Percentage: 100 - n%3, Message: "Everything is written.", UpdatedAt: at})
	if status == lpmos.Completed {
		add(store.KindReceipt, lpmos.Receipt{BootMode: "uefi", OS: "Debian 12", Kernel: "6.1.0-28-amd64", Hostname: t.Hostname, RootFSUUID: lpmos.NewTaskID(), At: at})
	}
	add(store.KindStatus, status)
	return out
}

func benchID(n int) string { return fmt.Sprintf("%08x-5b7e-4c01-9d3a-%012x", uint32(n)*2654435761, n) }

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
				all = append(all, benchParts(n, true)...)
			}
			start := time.Now()
			s.apply(store.Batch{Rev: int64(benchTasks), Reset: true, Changes: all})
			return time.Since(start)
		}()
		b.Logf("%d tasks taken in in %v, %d bytes of memory each", benchTasks, took.Round(time.Millisecond), heap()/int64(benchTasks))
		s.now = func() time.Time { return epoch.Add(time.Duration(benchTasks) * 5 * time.Minute) }
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
		{"a word", "sn0077123", api.Query{Groups: true}},
		{"three words, one turned round", "dell node rack-17 !rocky", api.Query{Groups: true}},
		{"a MAC", "mac:01-e2-40", api.Query{Groups: true}},
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
	id := benchID(3003)
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

// BenchmarkStart is a control plane's start on a real etcd that holds all tasks
// with six events each: from the first question to ready. Filling the store
// takes minutes. cpu-s is what this process used for one start, etcd's part in
// it: on a machine with other work it says more than the clock.
func BenchmarkStart(b *testing.B) {
	benchTasks := *tasksFlag
	e, st := storetest.Start(b)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var bytes int64
	var ops []clientv3.Op
	put := func(key string, v []byte) {
		bytes += int64(len(key) + len(v))
		ops = append(ops, clientv3.OpPut(key, string(v)))
		if len(ops) < 120 {
			return
		}
		for try := 0; ; try++ {
			_, err := c.Txn(b.Context()).Then(ops...).Commit()
			if err == nil {
				break
			}
			if try == 20 {
				b.Fatal(err)
			}
		}
		ops = nil
	}
	start := time.Now()
	for n := range benchTasks {
		for _, ch := range benchParts(n, false) {
			put(ch.Key.String(), ch.Value)
		}
		for seq := range 6 {
			ev := lpmos.Event{TaskID: benchID(n), Seq: int64(seq + 1), At: epoch, Cause: lpmos.CauseCalledHome, From: lpmos.Verifying, To: lpmos.Completed, By: "agent", Message: "The installed system booted from its disk and called home.", Attempt: 1}
			ev.Seal(lpmos.DigestBytes(nil))
			put(store.Key{Kind: store.KindEvent, TaskID: ev.TaskID, Seq: ev.Seq}.String(), value(ev))
		}
	}
	b.Logf("%d tasks, %d MB, stored in %v", benchTasks, bytes>>20, time.Since(start).Round(time.Second))
	var used time.Duration
	for b.Loop() {
		before := cpu()
		s := New(st, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		<-s.Synced()
		b.StopTimer()
		used += cpu() - before
		b.ReportMetric(float64(heap())/float64(benchTasks), "bytes/task") // etcd's own memory is in it
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		if n := s.Tasks(api.Query{}).Total; n < benchTasks-20 {
			b.Fatalf("%d tasks are there; want about %d", n, benchTasks)
		}
		b.StartTimer()
	}
	b.ReportMetric(used.Seconds()/float64(b.N), "cpu-s")
}

// cpu is what this process has used of all processors.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
