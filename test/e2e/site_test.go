package e2e

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/test/fixture"
)

// site is etcd, a control plane and regions, started in the order of the
// founding document.
type site struct {
	t        testing.TB
	etcdAddr string
	etcd     *process
	control  *process
	url      string
	api      *apiclient.Client
	image    lpmos.Image
}

// region is one regional client.
type region struct {
	*process
	boot string // address of the boot listener
}

var fixtures = sync.OnceValues(func() (lpmos.Image, error) {
	return fixture.Image(context.Background(), bin+"/fixture", "tiny", "1", "Tiny 1", 32<<20)
})

// newSite does steps 1 and 2 of the flow, and publishes what can be installed.
func newSite(t testing.TB) *site {
	t.Helper()
	return newSiteIn(t, t.TempDir(), t.TempDir())
}

// newSiteIn is newSite with the data of etcd and the control plane in given
// directories.
func newSiteIn(t testing.TB, etcdDir, controlDir string) *site {
	t.Helper()
	ports := freePorts(t, 3)
	s := &site{t: t, etcdAddr: ports[0]}
	s.etcd = start(t, "etcd", nil, "-listen-client-urls=http://"+ports[0], "-listen-peer-urls=http://"+ports[1], "-data-dir="+etcdDir)
	waitFor(t, "etcd", 60*time.Second, func() error { return dial(s.etcdAddr) })
	s.control, s.url, s.api = s.newControlPlane(ports[2], controlDir)
	img, err := fixtures()
	if err != nil {
		t.Fatal(err)
	}
	s.image = img
	if err := fixture.Publish(t.Context(), s.api, bin+"/fixture", img); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) newControlPlane(addr, dir string, more ...string) (*process, string, *apiclient.Client) {
	s.t.Helper()
	p := start(s.t, "control-plane", nil, append([]string{"--etcd-endpoints=" + s.etcdAddr, "--listen-addr=" + addr, "--data-dir=" + dir}, more...)...)
	c, err := apiclient.New("http://"+addr, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	c.UseTokenFile(filepath.Join(dir, controlplane.LocalTokenFile))
	waitFor(s.t, "control plane", 60*time.Second, func() error { return c.Ready(s.t.Context()) })
	return p, "http://" + addr, c
}

// newRegion is step 3: REGION_ID=dc1 regional-client.
func (s *site) newRegion(id, dir string, more ...string) *region {
	s.t.Helper()
	ports := freePorts(s.t, 2)
	r := &region{boot: "http://" + ports[0]}
	r.process = start(s.t, "regional-client", []string{"REGION_ID=" + id}, append([]string{
		"--etcd-endpoints=" + s.etcdAddr, "--control-plane-url=" + s.url, "--boot-addr=" + ports[0], "--agent-addr=" + ports[1],
		"--tftp-addr=off", "--data-dir=" + dir,
	}, more...)...)
	return r
}

// online waits until the control plane counts a region as online.
func (s *site) online(id string) {
	s.t.Helper()
	waitFor(s.t, "region "+id, 60*time.Second, func() error {
		regions, err := s.api.Regions(s.t.Context())
		if err != nil {
			return err
		}
		i := slices.IndexFunc(regions, func(r lpmos.Region) bool { return r.ID == id })
		if i < 0 || regions[i].Status != "online" {
			return fmt.Errorf("regions are %+v", regions)
		}
		return nil
	})
}

// agent is step 6: agent --demo.
func (s *site) agent(r *region, mac lpmos.MAC, duration time.Duration) *process {
	s.t.Helper()
	return start(s.t, "agent", nil, "--demo", "--region-url", r.boot, "--mac", mac.String(), "--duration", duration.String())
}

func (s *site) create(regionID string, mac lpmos.MAC) string {
	s.t.Helper()
	id, err := s.api.CreateTask(s.t.Context(), lpmos.Spec{RegionID: regionID, TargetMAC: mac, OSType: s.image.OS, OSVersion: s.image.Version}, "")
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// until waits until a task has a status, and returns the task.
func (s *site) until(id string, want lpmos.Status, limit time.Duration) (got lpmos.Task) {
	s.t.Helper()
	waitFor(s.t, "task "+id, limit, func() (err error) {
		if got, err = s.api.Task(s.t.Context(), id); err != nil {
			return err
		}
		if got.Status != want {
			return fmt.Errorf("status is %s, want %s (%+v)", got.Status, want, got.Error)
		}
		return nil
	})
	return got
}

func (s *site) approve(id string) {
	s.t.Helper()
	task := s.until(id, lpmos.AwaitingApproval, 60*time.Second)
	if _, err := s.api.Decide(s.t.Context(), id, true, task.Plan.Digest, "looks right"); err != nil {
		s.t.Fatal(err)
	}
}

// usual is the history of an installation that nothing disturbed.
var usual = []lpmos.Cause{
	lpmos.CauseCreated, lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CausePermitGranted, lpmos.CauseResultReported, lpmos.CauseCalledHome,
}

// history checks that a task's events are an unbroken chain of the usual
// causes, each once, and returns the statuses they led to.
func (s *site) history(id string) []string {
	s.t.Helper()
	events, err := s.api.Events(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := lpmos.VerifyEvents(events); err != nil {
		s.t.Errorf("history of task %s: %v", id, err)
	}
	var causes []lpmos.Cause
	var statuses []string
	for _, e := range events {
		causes, statuses = append(causes, e.Cause), append(statuses, string(e.To))
	}
	if !slices.Equal(causes, usual) {
		s.t.Errorf("task %s went by %v; want %v", id, causes, usual)
	}
	return statuses
}

// watched collects what the WebSocket says until the test ends.
type watched struct {
	mu       sync.Mutex // guards what follows
	statuses map[string][]string
	percents map[string][]int
	last     int64
	problems []string
	resyncs  int
}

func (s *site) watch() *watched {
	s.t.Helper()
	w := &watched{statuses: map[string][]string{}, percents: map[string][]int{}}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(s.t.Context())
	s.t.Cleanup(func() { cancel(); wg.Wait() })
	tasks, err := s.api.Tasks(ctx, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	wg.Go(func() {
		for m, err := range s.api.Watch(ctx, "", tasks.Rev) {
			if err != nil {
				w.problem(err.Error())
				return
			}
			w.add(m)
		}
	})
	return w
}

func (w *watched) problem(text string) {
	w.mu.Lock()
	w.problems = append(w.problems, text)
	w.mu.Unlock()
}

func (w *watched) add(m apiclient.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.Rev < w.last && m.Type != "resync" {
		w.problems = append(w.problems, fmt.Sprintf("%s of revision %d came after %d", m.Type, m.Rev, w.last))
	}
	w.last = max(w.last, m.Rev)
	switch m.Type {
	case "status":
		w.statuses[m.TaskID] = append(w.statuses[m.TaskID], m.Status)
	case "progress":
		w.percents[m.TaskID] = append(w.percents[m.TaskID], m.Percentage)
	case "resync":
		w.resyncs++
	}
}

// toldAnew is how often the socket said that too much was missed.
func (w *watched) toldAnew() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.resyncs
}

// expect waits until the socket said exactly these statuses of a task, and
// checks that its progress only grew. The last of it may be missing where
// programs were killed: what a region has not handed up yet dies with it, and of
// what a control plane finds at its start it tells the status alone.
func (w *watched) expect(t testing.TB, id string, statuses []string, killed bool) {
	t.Helper()
	waitFor(t, "statuses on the socket", 60*time.Second, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !slices.Equal(w.statuses[id], statuses) {
			return fmt.Errorf("the socket said %v; want %v", w.statuses[id], statuses)
		}
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	// A region hands up progress every two seconds and at each stage.
	if p := w.percents[id]; len(p) < 3 || !slices.IsSorted(p) || !killed && p[len(p)-1] != 100 {
		t.Errorf("progress on the socket is %v; want several, growing to 100", p)
	}
	if len(w.problems) > 0 {
		t.Errorf("socket: %q (watched %v)", w.problems, slices.Collect(maps.Keys(w.statuses)))
	}
}

// waitFor tries until it works, and fails the test with the last problem.
func waitFor(t testing.TB, what string, limit time.Duration, try func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s not as wanted within %s: %v", what, limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
