package orchestrator_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/orchestrator"
	"github.com/lpmos/lpmos/internal/controlplane/state"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// site is a control plane without its edges, and a region's session.
type site struct {
	*orchestrator.Orchestrator
	t     *testing.T
	store *store.Store
	state *state.State
	sess  *store.Session
	key   ed25519.PrivateKey
	moves *counting
}

// counting is the store, and how often it was asked to move a task.
type counting struct {
	*store.Store
	n atomic.Int64
}

func (c *counting) Transition(ctx context.Context, id string, m store.Move, edit func(*store.Record, *store.Move) error) (lpmos.Task, error) {
	c.n.Add(1)
	return c.Store.Transition(ctx, id, m, edit)
}

var discard = slog.New(slog.DiscardHandler)

func newSite(t *testing.T, cfg orchestrator.Config) *site {
	t.Helper()
	st := storetest.New(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Key = key
	s := &site{t: t, store: st, state: state.New(st, discard), key: key, moves: &counting{Store: st}}
	s.state.SetPermitLimit(cfg.PermitsPerMinute)
	s.Orchestrator = orchestrator.New(cfg, s.state, s.moves, discard)
	s.state.Listen(s.Notice)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.state.Run(ctx) })
	wg.Go(func() { <-s.state.Synced(); s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })

	if s.sess, err = st.OpenSession(t.Context(), "dc1", "instance-1", lpmos.Capabilities{Hostname: "test"}, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.sess.Close)
	image := tiny()
	s.SignImage(&image)
	if err := st.PutImage(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	s.eventually("region and image known", func() bool {
		_, r := s.state.Region("dc1")
		_, i := s.state.Image("tiny", "1", "amd64")
		return r && i
	})
	return s
}

func tiny() lpmos.Image {
	return lpmos.Image{
		OS: "tiny", Version: "1", Arch: "amd64", Digest: "sha256:" + strings.Repeat("ab", 32),
		SizeBytes: 64 << 20, UsedBytes: 32 << 20, StoredBytes: 16 << 20, BootModes: []string{"bios", "uefi"},
	}
}

func (s *site) eventually(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	s.t.Fatalf("never so: %s", what)
}

func spec(mac string) lpmos.Spec {
	return lpmos.Spec{RegionID: "dc1", TargetMAC: lpmos.MustMAC(mac), OSType: "tiny", OSVersion: "1"}
}

func hardware(mac string, others ...string) *lpmos.Hardware {
	h := &lpmos.Hardware{
		BootMode: "bios", System: lpmos.System{Serial: "SN-" + mac, UUID: "11111111-2222-4333-8444-" + strings.ReplaceAll(mac, ":", "")},
		CPU:   lpmos.CPU{Architecture: "amd64"},
		Disks: []lpmos.Disk{{Device: "/dev/vda", Serial: "disk-" + mac, SizeBytes: 4 << 30, Transport: "virtio"}},
	}
	for _, m := range append([]string{mac}, others...) {
		h.NICs = append(h.NICs, lpmos.NIC{Name: "e" + m, MAC: lpmos.MustMAC(m)})
	}
	return h
}

func (s *site) create(mac string) lpmos.Task {
	s.t.Helper()
	t, err := s.Create(s.t.Context(), spec(mac), "tester", "")
	if err != nil {
		s.t.Fatal(err)
	}
	return t
}

func (s *site) is(id string, want lpmos.Status) lpmos.Task {
	s.t.Helper()
	var got lpmos.Task
	s.eventually(fmt.Sprintf("task is %s", want), func() bool {
		got, _ = s.state.Task(id)
		return got.Status == want
	})
	return got
}

func (s *site) approvedTask(mac string) lpmos.Task {
	s.t.Helper()
	t := s.create(mac)
	s.ok(s.sess.PutHardware(s.t.Context(), t.ID, 1, hardware(mac)))
	return s.approve(s.is(t.ID, lpmos.AwaitingApproval))
}

func (s *site) approve(t lpmos.Task) lpmos.Task {
	s.t.Helper()
	if _, err := s.Decide(s.t.Context(), t.ID, api.Decision{Approved: true, PlanDigest: t.Plan.Digest}, "alice"); err != nil {
		s.t.Fatal(err)
	}
	return s.is(t.ID, lpmos.Approved)
}

// request is what a boot asks whose key the region has registered.
func (s *site) request(t lpmos.Task, attempt int, nonce string) lpmos.PermitRequest {
	s.t.Helper()
	return s.requestAs(agentKey, t, attempt, nonce)
}

func (s *site) requestAs(key *lpmos.AgentKey, t lpmos.Task, attempt int, nonce string) lpmos.PermitRequest {
	s.t.Helper()
	pub := key.Public()
	if err := s.sess.PutAgent(s.t.Context(), lpmos.AgentRecord{TaskID: t.ID, Attempt: attempt, BootSeq: 1, Key: &pub}); err != nil && !errors.Is(err, lpmos.ErrNotFound) {
		s.t.Fatal(err)
	}
	return lpmos.PermitRequest{TaskID: t.ID, Attempt: attempt, Nonce: nonce, PlanDigest: t.Plan.Digest, HardwareDigest: t.Plan.HardwareDigest, AgentKey: &pub, At: time.Now().UTC()}
}

// agentKey is the key of the agents of these tests.
var agentKey = newKey()

func newKey() *lpmos.AgentKey {
	k, err := lpmos.NewAgentKey()
	if err != nil {
		panic(err)
	}
	return k
}

func (s *site) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// history checks that nothing was lost or doubled.
func (s *site) history(id string) []lpmos.Event {
	s.t.Helper()
	events, err := s.store.Events(s.t.Context(), id)
	s.ok(err)
	if err := lpmos.VerifyEvents(events); err != nil {
		s.t.Error(err)
	}
	return events
}

func causes(events []lpmos.Event) string {
	var out []string
	for _, e := range events {
		out = append(out, string(e.Cause))
	}
	return strings.Join(out, " ")
}

func TestLife(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	task := s.approvedTask("52:54:00:00:00:01")
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, strings.Repeat("1", 64))))
	task = s.is(task.ID, lpmos.Installing)
	rec, err := s.store.Task(t.Context(), task.ID)
	s.ok(err)
	v := lpmos.Verifier{Keys: []ed25519.PublicKey{s.key.Public().(ed25519.PublicKey)}, TaskID: task.ID, Hardware: hardware("52:54:00:00:00:01"), AgentKey: agentKey.Public().Fingerprint(), Now: time.Now()}
	if err := v.Check(task.Plan, task.Approval, rec.Permit, 1, strings.Repeat("1", 64)); err != nil {
		t.Errorf("the agent would refuse: %v", err)
	}
	s.ok(s.sess.PutProgress(t.Context(), &lpmos.Progress{TaskID: task.ID, Attempt: 1, Stage: lpmos.Downloading, Percentage: 45, Message: "image"}))
	s.ok(s.sess.AppendLog(t.Context(), task.ID, 1, 0, []byte("one\ntwo\n")))
	s.eventually("progress is shown", func() bool {
		x, _ := s.state.Task(task.ID)
		return x.Progress != nil && x.Progress.Percentage == 45 && len(x.LogTail) == 2
	})
	s.ok(s.sess.PutResult(t.Context(), lpmos.Result{TaskID: task.ID, Attempt: 1, OK: true, Written: true}))
	s.is(task.ID, lpmos.Verifying)
	root, _ := task.Plan.Effect.Partition("root")
	s.ok(s.sess.PutBooted(t.Context(), task.ID, 1, lpmos.Receipt{RootFSUUID: root.UUID}))
	task = s.is(task.ID, lpmos.Completed)
	if got, want := causes(s.history(task.ID)), "created hardware_reported approved permit_granted result_reported called_home"; got != want {
		t.Errorf("history = %s; want %s", got, want)
	}
	if err := s.sess.PutProgress(t.Context(), &lpmos.Progress{TaskID: task.ID, Attempt: 1}); !errors.Is(err, lpmos.ErrNotFound) {
		t.Errorf("progress after the end = %v; want ErrNotFound, the order is gone", err)
	}
	if _, err := s.Create(t.Context(), spec("52:54:00:00:00:01"), "tester", ""); err != nil {
		t.Errorf("a new task for the machine after the end: %v", err)
	}
}

func TestOneLiveTaskPerMachine(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	first := s.create("52:54:00:00:00:01")
	var won int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, spelling := range []string{"52:54:00:AA:00:02", "52-54-00-aa-00-02", "5254.00aa.0002", "525400AA0002"} {
		for range 8 {
			wg.Go(func() {
				if _, err := s.Create(t.Context(), spec(spelling), "tester", ""); err == nil {
					mu.Lock()
					won++
					mu.Unlock()
				} else if !errors.Is(err, lpmos.ErrConflict) {
					t.Errorf("Create(%s) = %v; want a conflict", spelling, err)
				}
			})
		}
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d tasks were created for one machine; want 1", won)
	}
	t.Run("a second NIC that belongs to another task holds the later one", func(t *testing.T) {
		s.ok(s.sess.PutHardware(t.Context(), first.ID, 1, hardware("52:54:00:00:00:01", "52:54:00:aa:00:02")))
		held := s.is(first.ID, lpmos.AwaitingApproval)
		if !strings.Contains(held.Plan.Problem, "belongs to live task") {
			t.Errorf("plan problem = %q; want it to name the other task", held.Plan.Problem)
		}
		if _, err := s.Decide(t.Context(), first.ID, api.Decision{Approved: true, PlanDigest: held.Plan.Digest}, "alice"); !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("approving a held task = %v; want a conflict", err)
		}
		// The machine says the same again and again, and every second the task is
		// looked at: neither is news.
		for range 3 {
			s.looks(first.ID, func() {
				s.ok(s.sess.PutHardware(t.Context(), first.ID, 1, hardware("52:54:00:00:00:01", "52:54:00:aa:00:02")))
			})
		}
		if got, want := causes(s.history(first.ID)), "created hardware_reported"; got != want {
			t.Errorf("history = %s; want %s", got, want)
		}
	})
	t.Run("also one whose image cannot be installed", func(t *testing.T) {
		third := s.create("52:54:00:00:00:03")
		h := hardware("52:54:00:00:00:03", "52:54:00:aa:00:02")
		h.CPU.Architecture = "arm64"
		s.ok(s.sess.PutHardware(t.Context(), third.ID, 1, h))
		if held := s.is(third.ID, lpmos.AwaitingApproval); !strings.Contains(held.Plan.Problem, "arm64") {
			t.Errorf("plan problem = %q; want the one of the image", held.Plan.Problem)
		}
	})
	t.Run("so is one with the UUID of another, in either byte order", func(t *testing.T) {
		fourth, fifth := s.create("52:54:00:00:00:04"), s.create("52:54:00:00:00:05")
		h := hardware("52:54:00:00:00:05")
		for _, h.System.UUID = range lpmos.UUIDSpellings(hardware("52:54:00:00:00:04").System.UUID) {
			s.ok(s.sess.PutHardware(t.Context(), fourth.ID, 1, hardware("52:54:00:00:00:04")))
			s.is(fourth.ID, lpmos.AwaitingApproval)
			s.ok(s.sess.PutHardware(t.Context(), fifth.ID, 1, h))
			s.eventually("the later task is held", func() bool {
				x, _ := s.state.Task(fifth.ID)
				return x.Hardware != nil && x.Hardware.System.UUID == h.System.UUID && strings.Contains(x.Plan.Problem, fourth.ID)
			})
		}
	})
	t.Run("and is planned for when the other has ended", func(t *testing.T) {
		x, _ := s.state.Task(first.ID)
		_, holder, _ := strings.Cut(x.Plan.Problem, "live task ")
		if _, err := s.Cancel(t.Context(), holder[:36], "", "tester"); err != nil {
			t.Fatal(err)
		}
		s.eventually("the plan can be carried out", func() bool { x, _ := s.state.Task(first.ID); return x.Plan.Problem == "" && len(x.Claims) == 2 })
	})
}

// looks does something that is a reason to look at a task, and waits until the
// orchestrator has looked.
func (s *site) looks(id string, do func()) {
	s.t.Helper()
	was := s.moves.n.Load()
	do()
	s.eventually("the task "+id+" is looked at", func() bool { return s.moves.n.Load() >= was+2 })
}

func TestIdempotencyKey(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	a, err := s.Create(t.Context(), spec("52:54:00:00:00:01"), "tester", "key-1")
	s.ok(err)
	b, err := s.Create(t.Context(), spec("52:54:00:00:00:01"), "tester", "key-1")
	if err != nil || a.ID != b.ID {
		t.Errorf("repeated request = %s, %v; want the first task %s", b.ID, err, a.ID)
	}
	if _, err := s.Create(t.Context(), spec("52:54:00:00:00:09"), "tester", "key-1"); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("another request under the same key = %v; want a conflict", err)
	}
	// What would refuse a new request does not refuse the one that is known.
	s.is(a.ID, lpmos.Pending)
	_, err = s.Lock(t.Context(), lpmos.MustMAC("52:54:00:00:00:01"), "repair", "alice")
	s.ok(err)
	if b, err = s.Create(t.Context(), spec("52:54:00:00:00:01"), "tester", "key-1"); err != nil || a.ID != b.ID {
		t.Errorf("repeated while the machine is locked = %s, %v; want the first task %s", b.ID, err, a.ID)
	}
	if _, err = s.Create(t.Context(), spec("52:54:00:00:00:01"), "tester", "key-2"); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("a new request while the machine is locked = %v; want a conflict", err)
	}
	_, err = s.Cancel(t.Context(), a.ID, "", "tester")
	s.ok(err)
	s.is(a.ID, lpmos.Canceled)
	s.ok(s.Delete(t.Context(), a.ID, "tester"))
	if _, err = s.Create(t.Context(), spec("52:54:00:00:00:01"), "tester", "key-1"); !errors.Is(err, lpmos.ErrConflict) || !strings.Contains(err.Error(), "was deleted") {
		t.Errorf("repeated after the task was deleted = %v; want a conflict that says so", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	for name, edit := range map[string]func(*lpmos.Spec){
		"an unknown region":  func(x *lpmos.Spec) { x.RegionID = "dc9" },
		"a bad region":       func(x *lpmos.Spec) { x.RegionID = "dc1/../dc2" },
		"an unknown system":  func(x *lpmos.Spec) { x.OSType = "plan9" },
		"a path for version": func(x *lpmos.Spec) { x.OSVersion = "../../etc" },
		"no MAC":             func(x *lpmos.Spec) { x.TargetMAC = lpmos.MAC{} },
		"a bad host name":    func(x *lpmos.Spec) { x.Hostname = "a b" },
		"a key with options": func(x *lpmos.Spec) { x.SSHKeys = []string{`command="x" ssh-ed25519 AAAA`} },
	} {
		x := spec("52:54:00:00:00:01")
		edit(&x)
		var invalid *lpmos.InvalidError
		if _, err := s.Create(t.Context(), x, "tester", ""); !errors.As(err, &invalid) {
			t.Errorf("Create with %s = %v; want an InvalidError", name, err)
		}
	}
	if n := s.state.Tasks(api.Query{}).Total; n != 0 {
		t.Errorf("%d tasks were stored", n)
	}
}

// TestApprovalIsBoundToThePlan is D15: nothing that was found is erased without
// having been shown.
func TestApprovalIsBoundToThePlan(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	task := s.create("52:54:00:00:00:01")
	h := hardware("52:54:00:00:00:01")
	s.ok(s.sess.PutHardware(t.Context(), task.ID, 1, h))
	task = s.is(task.ID, lpmos.AwaitingApproval)
	shown := task.Plan.Digest

	used := *h
	used.Disks = []lpmos.Disk{h.Disks[0]}
	used.Disks[0].Content = lpmos.Content{Filesystem: &lpmos.Filesystem{Type: "ext4", Label: "payroll"}}
	s.ok(s.sess.PutHardware(t.Context(), task.ID, 1, &used))
	s.eventually("the plan is another", func() bool { x, _ := s.state.Task(task.ID); return x.Plan.Digest != shown })

	var stale *orchestrator.StalePlanError
	if _, err := s.Decide(t.Context(), task.ID, api.Decision{Approved: true, PlanDigest: shown}, "alice"); !errors.As(err, &stale) {
		t.Errorf("approving what was shown before = %v; want a StalePlanError", err)
	}
	if _, err := s.Decide(t.Context(), task.ID, api.Decision{Approved: true}, "alice"); !errors.As(err, &stale) {
		t.Errorf("approving without a digest where data was found = %v; want a StalePlanError", err)
	}
	s.is(task.ID, lpmos.AwaitingApproval)

	t.Run("of two who decide one wins and the other hears who", func(t *testing.T) {
		now, _ := s.state.Task(task.ID)
		results := make(chan error, 2)
		for _, who := range []string{"alice", "bob"} {
			go func() {
				_, err := s.Decide(t.Context(), task.ID, api.Decision{Approved: true, PlanDigest: now.Plan.Digest}, who)
				results <- err
			}()
		}
		a, b := <-results, <-results
		if (a == nil) == (b == nil) {
			t.Fatalf("results %v and %v; want one to win", a, b)
		}
		lost := errors.Join(a, b).Error()
		if !strings.Contains(lost, "approved by alice") && !strings.Contains(lost, "approved by bob") {
			t.Errorf("the loser hears %q; want who decided", lost)
		}
	})
	t.Run("a change after the approval voids it", func(t *testing.T) {
		s.is(task.ID, lpmos.Approved)
		s.ok(s.sess.PutHardware(t.Context(), task.ID, 1, h))
		now := s.is(task.ID, lpmos.AwaitingApproval)
		if now.Approval != nil {
			t.Errorf("approval = %+v; want none", now.Approval)
		}
	})
	s.history(task.ID)
}

// Cancel and permit compare the same key: exactly one wins, however close they
// come.
func TestCancelAgainstPermit(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	const workers = 10
	rounds := 20
	if os.Getenv("LPMOS_LONG") != "" {
		rounds = 100 // a thousand races; CI does
	}
	var canceled atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				if t.Failed() {
					return
				}
				ok, err := s.cancelAgainstPermit(fmt.Sprintf("52:54:00:00:%02x:%02x", w, i), time.Duration(i%25)*time.Millisecond)
				if err != nil {
					t.Errorf("round %d/%d: %v", w, i, err)
				}
				if ok {
					canceled.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("cancel won %d of %d", canceled.Load(), workers*rounds)
	if n := canceled.Load(); n == 0 || n == int64(workers*rounds) {
		t.Errorf("cancel won %d of %d: there was no race", n, workers*rounds)
	}
}

// cancelAgainstPermit lets a machine ask for its permit and a person cancel a
// little later, and reports whether the person won.
func (s *site) cancelAgainstPermit(mac string, later time.Duration) (canceled bool, err error) {
	ctx := s.t.Context()
	reached := func(id string, want lpmos.Status) (t lpmos.Task, err error) {
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			if t, _ = s.state.Task(id); t.Status == want {
				return t, nil
			}
		}
		return t, fmt.Errorf("task is %s; want %s", t.Status, want)
	}
	task, err := s.Create(ctx, spec(mac), "tester", "")
	if err != nil {
		return false, err
	}
	if err := s.sess.PutHardware(ctx, task.ID, 1, hardware(mac)); err != nil {
		return false, err
	}
	if task, err = reached(task.ID, lpmos.AwaitingApproval); err != nil {
		return false, err
	}
	if _, err := s.Decide(ctx, task.ID, api.Decision{Approved: true, PlanDigest: task.Plan.Digest}, "alice"); err != nil {
		return false, err
	}
	req := s.request(task, 1, strings.Repeat("1", 64))
	var cancelErr error
	var wg sync.WaitGroup
	asked := make(chan struct{})
	wg.Go(func() {
		defer close(asked)
		s.sess.PutPermitRequest(ctx, req) // refused when the order is gone
	})
	wg.Go(func() {
		if later > 0 {
			<-asked
			time.Sleep(later)
		}
		_, cancelErr = s.Cancel(ctx, task.ID, "", "bob")
	})
	wg.Wait()
	want := lpmos.Installing
	if cancelErr == nil {
		want = lpmos.Canceled
	} else if !errors.Is(cancelErr, lpmos.ErrConflict) {
		return false, cancelErr
	}
	if _, err := reached(task.ID, want); err != nil {
		return false, err
	}
	events, err := s.store.Events(ctx, task.ID)
	if err != nil {
		return false, err
	}
	if err := lpmos.VerifyEvents(events); err != nil {
		return false, err
	}
	rec, err := s.store.Task(ctx, task.ID)
	if err != nil {
		return false, err
	}
	if got := events[len(events)-1].To; got != want || len(events) != 4 || (rec.Permit != nil) != (want == lpmos.Installing) {
		return false, fmt.Errorf("cancel = %v, permit given: %v, but history is %s", cancelErr, rec.Permit != nil, causes(events))
	}
	return cancelErr == nil, nil
}

func TestPowerCutMidInstall(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	task := s.approvedTask("52:54:00:00:00:01")
	nonce := func(c string) string { return strings.Repeat(c, 64) }
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, nonce("1"))))
	s.is(task.ID, lpmos.Installing)
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, nonce("1")))) // a repetition changes nothing
	for n := 2; n <= 3; n++ {
		s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, n-1, nonce(fmt.Sprint(n)))))
		s.eventually(fmt.Sprintf("attempt %d", n), func() bool { x, _ := s.state.Task(task.ID); return x.Attempt == n && x.Status == lpmos.Installing })
	}
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 3, nonce("4"))))
	failed := s.is(task.ID, lpmos.Failed)
	if failed.Error.Code != "attempts_exhausted" || failed.Error.NextStep == "" {
		t.Errorf("error = %+v; want attempts_exhausted with a next step", failed.Error)
	}
	if got, want := causes(s.history(task.ID)), "created hardware_reported approved permit_granted next_attempt next_attempt failed"; got != want {
		t.Errorf("history = %s; want %s", got, want)
	}
	again, err := s.Retry(t.Context(), task.ID, "alice")
	if err != nil || again.Status != lpmos.Pending || again.Attempt != 4 || again.Approval != nil {
		t.Errorf("Retry = %+v, %v; want pending, attempt 4, no approval", again, err)
	}
}

// A permit that is granted is not looked up again for every progress report.
func TestProgressCostsNoTransition(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	task := s.approvedTask("52:54:00:00:00:01")
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, strings.Repeat("1", 64))))
	s.is(task.ID, lpmos.Installing)
	before := s.moves.n.Load()
	const n = 20
	for i := 1; i <= n; i++ {
		s.ok(s.sess.PutProgress(t.Context(), &lpmos.Progress{TaskID: task.ID, Attempt: 1, Stage: lpmos.Downloading, Percentage: 20 + i}))
		s.eventually("progress is shown", func() bool { x, _ := s.state.Task(task.ID); return x.Progress != nil && x.Progress.Percentage == 20+i })
	}
	if moves := s.moves.n.Load() - before; moves > 2 {
		t.Errorf("%d progress reports made the orchestrator ask the store %d times; want once, to learn that the permit is granted", n, moves)
	}
	// Another boot's request is looked at.
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, strings.Repeat("2", 64))))
	s.eventually("attempt 2", func() bool { x, _ := s.state.Task(task.ID); return x.Attempt == 2 })
}

func TestDeadlines(t *testing.T) {
	s := newSite(t, orchestrator.Config{InstallingDeadline: time.Millisecond, VerifyingDeadline: time.Millisecond})
	task := s.approvedTask("52:54:00:00:00:01")
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, strings.Repeat("1", 64))))
	stalled := s.is(task.ID, lpmos.Failed)
	if stalled.Error.Code != "install_stalled" {
		t.Errorf("error = %+v; want install_stalled", stalled.Error)
	}

	s = newSite(t, orchestrator.Config{VerifyingDeadline: time.Millisecond})
	task = s.approvedTask("52:54:00:00:00:01")
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, strings.Repeat("1", 64))))
	s.is(task.ID, lpmos.Installing)
	s.ok(s.sess.PutResult(t.Context(), lpmos.Result{TaskID: task.ID, Attempt: 1, OK: true}))
	if late := s.is(task.ID, lpmos.Failed); late.Error.Code != store.CodeVerifyDeadline {
		t.Errorf("error = %+v; want %s", late.Error, store.CodeVerifyDeadline)
	}
	root, _ := task.Plan.Effect.Partition("root")
	s.ok(s.sess.PutBooted(t.Context(), task.ID, 1, lpmos.Receipt{RootFSUUID: root.UUID}))
	s.is(task.ID, lpmos.Completed)
	s.history(task.ID)
}

// A machine that starts again and again before it asks for its next permit says
// much and makes no progress.
func TestRestartsAreNoProgress(t *testing.T) {
	s := newSite(t, orchestrator.Config{InstallingDeadline: 300 * time.Millisecond})
	task := s.approvedTask("52:54:00:00:00:01")
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, strings.Repeat("1", 64))))
	s.is(task.ID, lpmos.Installing)
	pub := agentKey.Public()
	var got lpmos.Task
	for boot := int64(2); boot < 2000; boot++ {
		if err := s.sess.PutAgent(t.Context(), lpmos.AgentRecord{TaskID: task.ID, Attempt: 1, BootSeq: boot, Key: &pub}); err != nil && !errors.Is(err, lpmos.ErrNotFound) {
			t.Fatal(err)
		}
		if got, _ = s.state.Task(task.ID); got.Status == lpmos.Failed {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got.Status != lpmos.Failed || got.Error.Code != "install_stalled" {
		t.Errorf("after many starts = %s, %+v; want failed, install_stalled", got.Status, got.Error)
	}
}

// TestBootedFromItsDisk has the disk tell which system called home, where the
// plan makes no filesystem: a disk without a name of its own has another path in
// the installed system.
func TestBootedFromItsDisk(t *testing.T) {
	const mac = "52:54:00:00:00:01"
	nameless := lpmos.Disk{Device: "/dev/vda", SizeBytes: 4 << 30, SectorBytes: 512, Transport: "virtio"}
	named := nameless
	named.Serial = "S1"
	for _, c := range []struct {
		name  string
		disk  lpmos.Disk
		found lpmos.DiskRef
		want  lpmos.Status
	}{
		{"as it was approved", nameless, nameless.Ref(), lpmos.Completed},
		{"by another path", nameless, lpmos.DiskRef{Path: "/dev/sdb", SizeBytes: 4 << 30}, lpmos.Completed},
		{"of another size", nameless, lpmos.DiskRef{Path: "/dev/vda", SizeBytes: 5 << 30}, lpmos.Failed},
		{"with a serial number", nameless, lpmos.DiskRef{Serial: "S1", SizeBytes: 4 << 30}, lpmos.Failed},
		{"with a WWN", nameless, lpmos.DiskRef{WWN: "naa.1", SizeBytes: 4 << 30}, lpmos.Failed},
		{"not found", nameless, lpmos.DiskRef{}, lpmos.Failed},
		{"named", named, named.Ref(), lpmos.Completed},
		{"named otherwise", named, lpmos.DiskRef{Serial: "S2", SizeBytes: 4 << 30}, lpmos.Failed},
		{"named, and found by a path", named, lpmos.DiskRef{Path: "/dev/vda", SizeBytes: 4 << 30}, lpmos.Failed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, orchestrator.Config{})
			image := tiny()
			image.Format, image.Version = lpmos.FormatDisk, "2"
			s.SignImage(&image)
			s.ok(s.store.PutImage(t.Context(), image))
			s.eventually("image known", func() bool { _, ok := s.state.Image("tiny", "2", "amd64"); return ok })
			of := spec(mac)
			of.OSVersion = "2"
			if ref := c.disk.Ref(); ref.Path != "" {
				of.TargetDisk = &ref
			}
			task, err := s.Create(t.Context(), of, "tester", "")
			s.ok(err)
			hw := hardware(mac)
			hw.Disks = []lpmos.Disk{c.disk}
			s.ok(s.sess.PutHardware(t.Context(), task.ID, 1, hw))
			task = s.approve(s.is(task.ID, lpmos.AwaitingApproval))
			s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, strings.Repeat("1", 64))))
			s.is(task.ID, lpmos.Installing)
			s.ok(s.sess.PutResult(t.Context(), lpmos.Result{TaskID: task.ID, Attempt: 1, OK: true, Written: true}))
			s.is(task.ID, lpmos.Verifying)
			s.ok(s.sess.PutBooted(t.Context(), task.ID, 1, lpmos.Receipt{RootFSUUID: "x", RootDisk: c.found}))
			task = s.is(task.ID, c.want)
			if c.want == lpmos.Failed && task.Error.Code != "booted_other_system" {
				t.Errorf("error = %+v; want booted_other_system", task.Error)
			}
			if strings.Contains(lpmos.DriftNames(task.Drift), "disk") {
				t.Errorf("drift %v", task.Drift)
			}
		})
	}
}

func TestAgentFailureBeforeTheFirstWrite(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	task := s.approvedTask("52:54:00:00:00:01")
	s.ok(s.sess.PutResult(t.Context(), lpmos.Result{TaskID: task.ID, Attempt: 1, Failure: &lpmos.Failure{
		Code: "disk_missing", Cause: "The approved disk is gone.", NextStep: "Put it back, then retry.",
	}}))
	got := s.is(task.ID, lpmos.Failed)
	if got.Error.Code != "disk_missing" {
		t.Errorf("error = %+v; want disk_missing", got.Error)
	}
}

func TestFencedRegionWritesNothing(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	task := s.create("52:54:00:00:00:01")
	successor, err := s.store.OpenSession(t.Context(), "dc1", "instance-1", lpmos.Capabilities{Hostname: "test"}, nil)
	s.ok(err)
	defer successor.Close()
	if err := s.sess.PutHardware(t.Context(), task.ID, 1, hardware("52:54:00:00:00:01")); !errors.Is(err, store.ErrFenced) {
		t.Errorf("write of the session that was taken over = %v; want ErrFenced", err)
	}
	if err := successor.PutHardware(t.Context(), task.ID, 1, hardware("52:54:00:00:00:01")); err != nil {
		t.Errorf("write of the successor: %v", err)
	}
	s.is(task.ID, lpmos.AwaitingApproval)
}
