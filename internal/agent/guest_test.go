package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// heard is a region that remembers what an agent in an installer says.
type heard struct {
	Region
	t *testing.T

	mu       sync.Mutex // guards what follows
	progress []agentapi.Progress
	logs     []agentapi.Logs
	results  []agentapi.Result
	clock    patience
}

func (h *heard) Progress(_ context.Context, p agentapi.Progress) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.progress = append(h.progress, p)
	return nil
}

func (h *heard) Logs(_ context.Context, l agentapi.Logs) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.logs = append(h.logs, l)
	return nil
}

func (h *heard) Result(_ context.Context, r agentapi.Result, _ time.Duration) (agentapi.ResultAnswer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.results = append(h.results, r)
	if waited := time.Duration(h.clock.waited.Load()); waited < handUp*time.Millisecond {
		h.t.Errorf("the end is told after %v, when what the installer said last cannot be here yet", waited)
	}
	switch {
	case !r.OK:
		return agentapi.ResultAnswer{Status: lpmos.Failed}, nil
	case len(h.results) == 1: // it lags behind
		return agentapi.ResultAnswer{Status: lpmos.Installing}, nil
	}
	return agentapi.ResultAnswer{Status: lpmos.Verifying}, nil
}

// patience is a clock that remembers how long it was waited for.
type patience struct {
	systemClock
	waited atomic.Int64
}

func (p *patience) Sleep(ctx context.Context, d time.Duration) error {
	p.waited.Add(int64(d))
	return p.systemClock.Sleep(ctx, d)
}

func newTestGuest(t *testing.T) (*Guest, *heard, *lpmos.Hardware) {
	t.Helper()
	hw := &newHost().hw
	img := lpmos.Image{OS: "debian", Version: "12", Arch: "amd64", Format: lpmos.FormatInstaller, BootModes: []string{"bios"}, Installer: &lpmos.ImageInstaller{Answers: lpmos.TemplatePreseed}}
	p := lpmos.NewPlan(&lpmos.Task{ID: testTask, Spec: lpmos.Spec{Hostname: "web-1"}}, hw, img)
	if p.Problem != "" {
		t.Fatal(p.Problem)
	}
	key, err := lpmos.NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	h := &install.Handover{TaskID: testTask, Attempt: 2, Effect: p.Effect, Boot: agentapi.BootConfig{BootMAC: testMAC, Key: key}}
	in := install.New(install.Config{Identify: func(context.Context) (*lpmos.Hardware, error) { return hw, nil }, Sys: t.TempDir()}, nil, nil, nil, quiet())
	ms := time.Millisecond
	region := &heard{t: t}
	return NewGuest(h, region, in, &region.clock, Pauses{Wait: 10 * ms, Again: ms, Breath: ms, LogEvery: ms, ProgEvery: ms}, quiet()), region, hw
}

func TestGuestWatches(t *testing.T) {
	g, region, _ := newTestGuest(t)
	root := t.TempDir()
	name := filepath.Join(root, "var/log/syslog")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Watch(ctx, root) }()
	f, err := os.Create(name) // it comes only now
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct {
		line  string
		stage lpmos.Stage
		said  string
	}{
		{"Nov 27 15:00:00 main-menu[1]: INFO: Menu item 'netcfg' selected\n", lpmos.Partitioning, "main-menu[1]: INFO: Menu item 'netcfg' selected"},
		{"Nov 27 15:00:01 main-menu[1]: INFO: Menu item 'bootstrap-base' selected\n", lpmos.Downloading, "main-menu[1]: INFO: Menu item 'bootstrap-base' selected"},
		{"Nov 27 15:00:02 debootstrap: I: Retrieving libc6 2.36\n", lpmos.Downloading, "debootstrap: I: Retrieving libc6 2.36"},
		{"Nov 27 15:00:03 main-menu[1]: INFO: Menu item 'grub-installer' selected\n", lpmos.StageInstall, "main-menu[1]: INFO: Menu item 'grub-installer' selected"},
		{"Nov 27 15:00:04 main-menu[1]: INFO: Menu item 'netcfg' selected\n", lpmos.StageInstall, "main-menu[1]: INFO: Menu item 'netcfg' selected"},
	} {
		if _, err := f.WriteString(c.line); err != nil {
			t.Fatal(err)
		}
		seen := func() bool {
			region.mu.Lock()
			defer region.mu.Unlock()
			return slices.ContainsFunc(region.progress, func(p agentapi.Progress) bool {
				return p.Stage == c.stage && p.Message == c.said && p.Attempt == 2 && p.TaskID == testTask && p.MACAddress == testMAC
			}) && slices.ContainsFunc(region.logs, func(l agentapi.Logs) bool {
				return l.First >= installerLine && slices.Contains(l.Lines, strings.TrimSpace(c.line))
			})
		}
		for end := time.Now().Add(time.Minute); !seen(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%q did not reach the region as %s: %+v, %+v", c.line, c.stage, region.progress, region.logs)
			}
		}
	}
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v", err)
	}
}

func TestGuestHoldsToTheDisk(t *testing.T) {
	g, region, hw := newTestGuest(t)
	closed := func(string, bool) error { return nil }
	if err := g.Hold(t.Context(), t.TempDir(), closed); err != nil || len(region.results) != 0 {
		t.Fatalf("Hold = %v, results %+v", err, region.results)
	}
	hw.Disks[0].Serial = "ANOTHER"
	if err := g.Hold(t.Context(), t.TempDir(), closed); err == nil {
		t.Error("another disk was taken for the target")
	}
	if len(region.results) != 1 || region.results[0].OK || region.results[0].Failure.Code != "disk_missing" || region.results[0].Attempt != 2 {
		t.Errorf("results = %+v; want one failure disk_missing", region.results)
	}
}

func TestGuestFinishes(t *testing.T) {
	g, region, _ := newTestGuest(t)
	g.h.Effect.Unverified = true // its agent is not copied
	root := t.TempDir()
	target := root + g.h.Effect.Installer.TargetPath()
	for name, text := range map[string]string{"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(target, "etc"), 0o755), os.WriteFile(filepath.Join(target, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Finish(t.Context(), root); err == nil || len(region.results) != 1 || region.results[0].Failure.Code != "wrong_disk" {
		t.Fatalf("Finish on no disk = %v, results %+v", err, region.results)
	}
	region.results = nil
	var st syscall.Stat_t
	if err := syscall.Stat(target, &st); err != nil {
		t.Fatal(err)
	}
	sys := t.TempDir()
	g.in = install.New(install.Config{Identify: func(context.Context) (*lpmos.Hardware, error) { return &newHost().hw, nil }, Sys: sys}, nil, nil, nil, quiet())
	disk := filepath.Join(sys, "devices/vda")
	numbers := filepath.Join(sys, "dev/block")
	link := filepath.Join(numbers, fmt.Sprintf("%d:%d", st.Dev>>8&0xfff|st.Dev>>32&^0xfff, st.Dev&0xff|st.Dev>>12&^0xff))
	if err := errors.Join(os.MkdirAll(disk, 0o755), os.MkdirAll(numbers, 0o755), os.Symlink(disk, link)); err != nil {
		t.Fatal(err)
	}
	if err := g.Finish(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	last := region.progress[len(region.progress)-1]
	if n := len(region.results); n < 2 || !region.results[n-1].OK || !region.results[n-1].Written || last.Percentage != 100 {
		t.Errorf("results %+v, last progress %+v; want the result until it is seen, after 100 %%", region.results, last)
	}
	if b, err := os.ReadFile(filepath.Join(target, "etc/hostname")); err != nil || string(b) != "web-1\n" {
		t.Errorf("host name %q, %v", b, err)
	}
}

func TestGuestFailed(t *testing.T) {
	g, region, _ := newTestGuest(t)
	if err := g.Failed(t.Context()); err == nil || len(region.results) != 1 || region.results[0].Failure.Code != "installer_failed" {
		t.Errorf("Failed = %v, results %+v", err, region.results)
	}
}
