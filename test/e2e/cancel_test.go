package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agent/demo"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/apiclient"
	wholesite "github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/test/fixture"
)

// Cancel against permit, at the same instant: exactly one wins, and the disk
// agrees. Everything on the way is real (etcd, orchestrator, region, TLS, the
// agent's own workflow, a file as the disk) but the programs that make
// filesystems. A thousand rounds with LPMOS_LONG, which `make long` sets.
func TestCancelAgainstPermitAndDisk(t *testing.T) {
	rounds := 60
	if os.Getenv("LPMOS_LONG") != "" {
		rounds = 1000
	}
	const workers = 8
	r := newRace(t)
	var next, canceled, installed atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			// Where the two meet differs with the load of this computer, so
			// each worker feels its way: later after a cancel that won, earlier
			// after one that lost. While one side has won all there is no race
			// yet, and the rounds go on.
			delay := 2 * time.Millisecond
			for !t.Failed() {
				n := int(next.Add(1))
				met := canceled.Load() > 0 && installed.Load() > 0
				if n > rounds && met || n > 4*rounds {
					return
				}
				won, err := r.round(n, delay)
				if err != nil {
					t.Errorf("round %d, canceled %v after the machine asked: %v", n, delay, err)
					return
				}
				if won {
					canceled.Add(1)
					delay = min(2*delay+time.Millisecond, 10*time.Second)
				} else {
					installed.Add(1)
					delay /= 2
				}
			}
		})
	}
	wg.Wait()
	c, i := canceled.Load(), installed.Load()
	t.Logf("of %d rounds cancel won %d and the permit %d", c+i, c, i)
	if !t.Failed() && (c+i < int64(rounds) || c == 0 || i == 0) {
		t.Errorf("of at least %d rounds cancel won %d and the permit %d: there was no race", rounds, c, i)
	}
}

// race is a site in this process and what its machines have on their disks
// before anything is installed.
type race struct {
	t     *testing.T
	api   *apiclient.Client
	boot  string
	image lpmos.Image
	blank []byte
}

func newRace(t *testing.T) *race {
	t.Helper()
	cfg := wholesite.Config{DataDir: t.TempDir(), NoFsync: true}
	cfg.ControlPlane.ListenAddr = "127.0.0.1:0"
	cfg.Region.RegionID, cfg.Region.BootAddr, cfg.Region.AgentAddr, cfg.Region.TFTPAddr = "dc1", "127.0.0.1:0", "127.0.0.1:0", "off"
	s, err := wholesite.New(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("site: %v", err)
		}
	})
	r := &race{t: t, boot: s.Region.BootURL(), blank: bytes.Repeat([]byte("what was on the disk before\n"), 10_000)}
	if r.api, err = apiclient.New(s.ControlPlane.URL(), nil); err != nil {
		t.Fatal(err)
	}
	r.api.UseToken(s.ControlPlane.LocalToken("test"))
	waitFor(t, "site", 60*time.Second, func() error { return r.api.Ready(ctx) })
	// A cancel of a machine that waits for its turn meets no permit.
	if _, err := r.api.SetLimits(ctx, lpmos.Limits{PermitsPerMinute: 100_000}, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if r.image, err = fixture.Image(ctx, dir, "race", "1", "Race 1", 128<<10); err != nil {
		t.Fatal(err)
	}
	if err := fixture.Publish(ctx, r.api, dir, r.image); err != nil {
		t.Fatal(err)
	}
	(&site{t: t, api: r.api}).online("dc1")
	waitFor(t, "image in the catalogue", 60*time.Second, func() error {
		_, _, err := r.api.Image(ctx, r.image.OS, r.image.Version, r.image.Arch)
		return err
	})
	return r
}

var quiet = slog.New(slog.DiscardHandler)

// round boots machine n, approves it, and cancels it a delay after its agent
// has asked for the permit. It reports whether the cancel won, and an error if
// the task, its history and the disk do not agree on that.
func (r *race) round(n int, delay time.Duration) (canceled bool, err error) {
	ctx, stop := context.WithTimeoutCause(r.t.Context(), time.Minute, errors.New("a round took more than a minute"))
	defer stop()
	address := lpmos.MAC{0x02, 0x4c, 0x51, 0, byte(n >> 8), byte(n)}
	id, err := r.api.CreateTask(ctx, lpmos.Spec{RegionID: "dc1", TargetMAC: address, OSType: r.image.OS, OSVersion: r.image.Version}, "")
	if err != nil {
		return false, err
	}
	m := &raceMachine{n: n, mac: address, disk: filepath.Join(r.t.TempDir(), "disk"), asked: make(chan struct{})}
	if err := os.WriteFile(m.disk, r.blank, 0o600); err != nil {
		return false, err
	}
	defer os.Remove(m.disk)
	ran := make(chan error, 1)
	go func() { ran <- m.run(ctx, r.boot) }()

	task, err := r.reach(ctx, id, lpmos.AwaitingApproval)
	if err != nil {
		return false, err
	}
	if _, err := r.api.Decide(ctx, id, true, task.Plan.Digest, ""); err != nil {
		return false, err
	}
	select {
	case <-m.asked:
	case err := <-ran:
		return false, fmt.Errorf("agent ended before it asked for a permit: %w", err)
	}
	time.Sleep(delay)
	_, cancelErr := r.api.Cancel(ctx, id, "at the same instant")
	if cancelErr != nil && !errors.Is(cancelErr, lpmos.ErrConflict) {
		return false, cancelErr
	}
	canceled = cancelErr == nil
	if err := <-ran; err != nil {
		return false, fmt.Errorf("agent: %w", err)
	}

	// The agent is gone: what it has not written by now it never will.
	disk, err := os.ReadFile(m.disk)
	if err != nil {
		return false, err
	}
	want, causes := lpmos.Verifying, []lpmos.Cause{lpmos.CauseCreated, lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CausePermitGranted, lpmos.CauseResultReported}
	if canceled {
		want, causes = lpmos.Canceled, []lpmos.Cause{lpmos.CauseCreated, lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CauseCanceled}
	}
	if _, err = r.reach(ctx, id, want); err != nil {
		return false, err
	}
	events, err := r.api.Events(ctx, id)
	if err != nil {
		return false, err
	}
	if err := lpmos.VerifyEvents(events); err != nil {
		return false, err
	}
	var got []lpmos.Cause
	for _, e := range events {
		got = append(got, e.Cause)
	}
	switch untouched := bytes.Equal(disk, r.blank); {
	case !slices.Equal(got, causes):
		return false, fmt.Errorf("cancel answered %v, but the history is %v", cancelErr, got)
	case canceled && (!untouched || m.jobs != 0):
		return false, fmt.Errorf("cancel won, but %d installations began and the disk is untouched: %v", m.jobs, untouched)
	case !canceled && (untouched || m.jobs != 1 || !bytes.HasSuffix(disk, []byte(id+"/1"))):
		return false, fmt.Errorf("the permit won, but %d installations began and the disk ends with %q", m.jobs, disk[len(disk)-50:])
	}
	return canceled, nil
}

func (r *race) reach(ctx context.Context, id string, want lpmos.Status) (t lpmos.Task, err error) {
	for ctx.Err() == nil {
		if t, err = r.api.Task(ctx, id); err == nil && t.Status == want {
			return t, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return t, fmt.Errorf("task is %s, want %s (%w)", t.Status, want, cmpErr(err, context.Cause(ctx)))
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// raceMachine is a server whose disk is a file. Its agent tells when it asks
// for the permit.
type raceMachine struct {
	n     int
	mac   lpmos.MAC
	disk  string
	blobs install.Blobs

	once  sync.Once
	asked chan struct{}
	jobs  int // installations begun; read when the agent has ended
}

func (m *raceMachine) run(ctx context.Context, boot string) error {
	h, err := m.Collect(ctx)
	if err != nil {
		return err
	}
	var cfg agentapi.BootConfig
	for { // the region hears of the task a moment after it was created
		cfg, err = demo.Boot(ctx, boot, m.mac, h.System.UUID)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	client, err := agent.NewClient(cfg, quiet)
	if err != nil {
		return err
	}
	defer client.Close()
	if m.blobs, err = agentapi.NewBlobs(cfg.BootURL, 0); err != nil {
		return err
	}
	ms := time.Millisecond
	pauses := agent.Pauses{Again: 20 * ms, Reboot: ms, Breath: 5 * ms, LogEvery: 200 * ms, ProgEvery: time.Second}
	return agent.New(cfg, asking{client, m}, m, m, nil, pauses, nil, quiet).Run(ctx)
}

// asking is the region, told apart by the moment of the question.
type asking struct {
	agent.Region
	m *raceMachine
}

func (a asking) Permit(ctx context.Context, req agentapi.PermitRequest, wait time.Duration) (agentapi.PermitAnswer, error) {
	a.m.once.Do(func() { close(a.m.asked) })
	return a.Region.Permit(ctx, req, wait)
}

func (m *raceMachine) Collect(context.Context) (*lpmos.Hardware, error) {
	sum := sha256.Sum256([]byte(m.mac.String()))
	h := hex.EncodeToString(sum[:16])
	return &lpmos.Hardware{
		BootMode: "bios", BootMAC: m.mac, CPU: lpmos.CPU{Architecture: "amd64", Sockets: 1, Cores: 1, Threads: 1}, Memory: lpmos.Memory{TotalBytes: 1 << 30},
		System: lpmos.System{UUID: h[:8] + "-" + h[8:12] + "-4" + h[13:16] + "-8" + h[17:20] + "-" + h[20:]},
		Disks:  []lpmos.Disk{{Device: "/dev/vda", SizeBytes: 8 << 30, SectorBytes: 512, Serial: "RACE-" + h[:8], Transport: "virtio"}},
		NICs:   []lpmos.NIC{{Name: "eth0", MAC: m.mac, Link: true}},
	}, nil
}

func (*raceMachine) SetClock(time.Time) error { return nil }
func (*raceMachine) Reboot(string)            {}

func (*raceMachine) Finished(lpmos.Disk) (install.Marker, bool) { return install.Marker{}, false }

// Install lands the image in the file, verified chunk by chunk as on a disk,
// and marks the end with the task and the attempt.
func (m *raceMachine) Install(ctx context.Context, job install.Job) error {
	m.jobs++
	manifest, err := install.FetchManifest(ctx, m.blobs, job.Plan.Effect.Image.Digest, time.Minute)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(m.disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	job.OnWrite()
	copier := install.Copier{Blobs: m.blobs, Decode: install.Zstd{Path: "/usr/bin/zstd"}, Stall: time.Minute, Log: quiet}
	err = copier.Copy(ctx, manifest, func(_ int, c lpmos.Chunk, at int64, piece []byte) error {
		if c.Offset > 1<<20 { // verified all the same; the file stays small
			return nil
		}
		_, err := f.WriteAt(piece, c.Offset+at)
		return err
	})
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s/%d", job.TaskID, job.Attempt)
	return err
}
