package sim

import (
	"context"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/test/fixture"
)

// serve runs a whole site in this process until the test ends.
func serve(t *testing.T) (api *apiclient.Client, regionURL string, img lpmos.Image) {
	t.Helper()
	var cfg site.Config
	cfg.DataDir, cfg.NoFsync = t.TempDir(), true
	cfg.ControlPlane.ListenAddr = "127.0.0.1:0"
	cfg.Region.RegionID = "dc1"
	cfg.Region.BootAddr, cfg.Region.AgentAddr, cfg.Region.TFTPAddr = "127.0.0.1:0", "127.0.0.1:0", "off"
	s, err := site.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	api, err = apiclient.New(s.ControlPlane.URL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	api.UseToken(s.ControlPlane.LocalToken("sim"))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		regions, err := api.Regions(t.Context())
		if err == nil && len(regions) == 1 && regions[0].Status == "online" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the site is not up: %+v, %v", regions, err)
		}
	}
	dir := t.TempDir()
	if img, err = fixture.Placeholder(dir, "simulated", "1", "Simulated 1"); err != nil {
		t.Fatal(err)
	}
	if err := fixture.Publish(t.Context(), api, dir, img); err != nil {
		t.Fatal(err)
	}
	return api, s.Region.BootURL(), img
}

// A fleet with one machine of every kind comes to the ends it was told to, and
// the control plane says the same of each.
func TestFleet(t *testing.T) {
	api, regionURL, img := serve(t)
	f, err := New(Config{
		RegionURL: regionURL, Machines: 10, Seed: 7, Ramp: 500 * time.Millisecond, Install: 3 * time.Second, Stamp: true,
		Fail: 0.1, Stall: 0.1, Reboot: 0.1, Slow: 0.1, Flap: 0.1,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	op := NewOperator(api, lpmos.Spec{RegionID: "dc1", OSType: img.OS, OSVersion: img.Version}, f.MACs())
	ids, err := op.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := op.Approve(ctx); err != nil {
			t.Error(err)
		}
	})
	bounded, stop := context.WithTimeout(t.Context(), 3*time.Minute)
	defer stop()
	if err := f.Run(bounded); err != nil {
		for i, m := range f.machines {
			task, err := api.Task(t.Context(), ids[f.MACs()[i]])
			phase, _ := m.where()
			t.Logf("the machine that is %s is %s; its task is %s at attempt %d (%v), %+v", m.habit, phase, task.Status, task.Attempt, err, task.Progress)
		}
		t.Fatalf("run: %v: %s", err, f.Snapshot())
	}
	cancel()
	wg.Wait()
	s := f.Snapshot()
	want := map[Habit]map[Phase]int{
		Good: {Completed: 5}, Fails: {Failed: 1}, Stalls: {Stalled: 1}, Reboots: {Completed: 1}, Slow: {Completed: 1}, Flaps: {Completed: 1},
	}
	if diff := cmp.Diff(want, s.Machines); diff != "" {
		t.Errorf("ends differ (-want +got):\n%s", diff)
	}
	if s.Ended() != 10 || len(s.Took) != 8 || s.Lost == 0 || s.Agents < 11 || s.Reports < s.Agents-1 || s.Progress < 20 || op.Created() != 10 || op.Approved() < 10 {
		t.Errorf("snapshot = %+v, %d created, %d approved", s, op.Created(), op.Approved())
	}
	for i, m := range f.machines {
		task, err := api.Task(t.Context(), ids[f.MACs()[i]])
		if err != nil {
			t.Fatal(err)
		}
		status, attempt := lpmos.Completed, 1
		switch m.habit {
		case Fails:
			status = lpmos.Failed
			if task.Error == nil || task.Error.Code != "simulated_fault" || task.Error.Stage == "" {
				t.Errorf("the machine that fails has the error %+v", task.Error)
			}
		case Stalls:
			status = lpmos.Installing
		case Reboots:
			attempt = 2
		}
		if task.Status != status || task.Attempt != attempt {
			t.Errorf("the machine that is %s has the task %s at attempt %d; want %s at %d", m.habit, task.Status, task.Attempt, status, attempt)
		}
		if p := task.Progress; p == nil || status == lpmos.Completed && p.Percentage != 100 || !strings.Contains(p.Message, " sent=") {
			t.Errorf("the machine that is %s has the progress %+v", m.habit, p)
		}
	}
	l, err := api.Tasks(t.Context(), url.Values{"status": {"completed"}})
	if err != nil || l.Total != 8 {
		t.Errorf("%d tasks are completed, %v; want 8", l.Total, err)
	}
}

// Without a task, machines give up after their patience; with an end of the
// context, at once.
func TestUnwanted(t *testing.T) {
	_, regionURL, _ := serve(t)
	f, err := New(Config{RegionURL: regionURL, Machines: 2, Patience: time.Millisecond}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Run(t.Context()); err != nil || f.Snapshot().Phases[Unwanted] != 2 {
		t.Errorf("Run = %v, %s; want two machines that nobody wants", err, f.Snapshot())
	}
	if f, err = New(Config{RegionURL: regionURL, Machines: 2, Ramp: time.Hour}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Run(ctx); err != context.Canceled || f.Snapshot().Ended() != 0 {
		t.Errorf("Run of an ended context = %v, %s", err, f.Snapshot())
	}
}

// The same seed is the same machines.
func TestSeed(t *testing.T) {
	make := func(seed uint64) *Fleet {
		f, err := New(Config{RegionURL: "http://region", Machines: 40, Seed: seed, Fail: 0.1, Stall: 0.05, Reboot: 0.2, Slow: 0.1, Flap: 0.05}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	type nature struct {
		MAC     lpmos.MAC
		Habit   Habit
		Trouble float64
		UUID    string
	}
	natures := func(f *Fleet) (out []nature) {
		for _, m := range f.machines {
			out = append(out, nature{m.mac, m.habit, m.trouble, m.hardware.System.UUID})
		}
		return out
	}
	a, again, b := natures(make(1)), natures(make(1)), natures(make(2))
	if diff := cmp.Diff(a, again); diff != "" {
		t.Errorf("the same seed differs:\n%s", diff)
	}
	counts, macs := map[Habit]int{}, map[lpmos.MAC]bool{}
	for i := range a {
		counts[a[i].Habit]++
		macs[a[i].MAC], macs[b[i].MAC] = true, true
		if a[i].MAC[0]&3 != 2 || a[i].Trouble < 0.1 || a[i].Trouble > 0.9 {
			t.Errorf("machine %+v; want a locally administered address, and trouble in the middle", a[i])
		}
	}
	if want := map[Habit]int{Good: 20, Fails: 4, Stalls: 2, Reboots: 8, Slow: 4, Flaps: 2}; !cmp.Equal(counts, want) || len(macs) != 80 {
		t.Errorf("habits = %v, %d addresses; want %v, 80", counts, len(macs), want)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no region": {}, "too many": {RegionURL: "http://r", Machines: 200_000}, "negative": {RegionURL: "http://r", Ramp: -1},
		"more than all": {RegionURL: "http://r", Fail: 0.6, Slow: 0.6}, "less than none": {RegionURL: "http://r", Flap: -0.1},
	} {
		if _, err := New(c, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: %+v is accepted", name, c)
		}
	}
}

// Steps cover all stages, forward only.
func TestSteps(t *testing.T) {
	var stages []lpmos.Stage
	last := -1
	for i := range 1000 {
		s := stepAt(float64(i)/1000, nil)
		if p := s.Stage.Percent(s.Done, s.Total); p < last || p > 100 {
			t.Fatalf("step %d is at %d percent after %d", i, p, last)
		} else {
			last = p
		}
		if !slices.Contains(stages, s.Stage) {
			stages = append(stages, s.Stage)
		}
		if (s.BytesTotal > 0) != (s.Stage == lpmos.Downloading) {
			t.Errorf("step %+v; want bytes while downloading", s)
		}
	}
	if want := []lpmos.Stage{lpmos.Partitioning, lpmos.Downloading, lpmos.StageInstall, lpmos.Configuring}; !slices.Equal(stages, want) || last != 99 {
		t.Errorf("stages %v to %d percent; want %v", stages, last, want)
	}
}
