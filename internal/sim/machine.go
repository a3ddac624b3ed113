package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agent/callhome"
	"github.com/lpmos/lpmos/internal/agent/demo"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/version"
)

// machine is one simulated server.
type machine struct {
	fleet    *Fleet
	mac      lpmos.MAC
	habit    Habit
	hardware lpmos.Hardware
	trouble  float64 // the part of the installation, 0 to 1, at which it misbehaves
	log      *slog.Logger

	mu     sync.Mutex // guards what follows
	phase  Phase
	on     time.Time
	took   time.Duration // from power on to the end
	faulty bool          // it misbehaved already, where once is enough
	disk   disk
}

// disk is what would be on the disk.
type disk struct {
	marker   install.Marker
	plan     *lpmos.Plan // of what is installed, nil while nothing is
	callhome agentapi.CallhomeConfig
}

func newMachine(f *Fleet, i int, habit Habit) *machine {
	m := &machine{fleet: f, mac: f.mac(i), habit: habit, phase: Off}
	m.trouble = 0.1 + 0.8*f.rand(uint64(i)+1).Float64()
	m.hardware = demo.Hardware(m.mac, version.String())
	m.hardware.System.Version, m.hardware.Kernel, m.hardware.BIOS.Version = "simulated", "simulated", "simulated"
	m.log = f.log.With("mac", m.mac)
	return m
}

func (m *machine) where() (Phase, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.phase, m.took
}

func (m *machine) enter(p Phase) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase.Ended() {
		return
	}
	m.phase = p
	if p.Ended() {
		m.took = time.Since(m.on)
	}
}

func (m *machine) installed() *lpmos.Plan {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disk.plan
}

// errPower is why the agent of a machine ends when its power goes.
var errPower = errors.New("the power is gone")

// run lives one life, from power on to an end. done is called when nothing
// more is to be expected, which a machine that stands still may outlive.
func (m *machine) run(ctx context.Context, wait time.Duration, done func()) {
	defer done()
	if sleep(ctx, wait) != nil {
		return
	}
	m.mu.Lock()
	m.on = time.Now()
	m.mu.Unlock()
	m.enter(Booting)
	pause := agentapi.Backoff{Min: time.Second, Max: 15 * time.Second}
	served, failed := false, false
	for ctx.Err() == nil {
		m.fleet.stats.boots.Add(1)
		cfg, err := demo.Boot(ctx, m.fleet.cfg.RegionURL, m.mac, m.hardware.System.UUID)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, demo.ErrLocal) && m.installed() != nil:
			m.enter(Restarting)
			if err := m.bootDisk(ctx); err != nil {
				m.log.Warn("call home", "err", err)
				m.enter(Failed)
				return
			}
			m.enter(Completed)
			return
		case errors.Is(err, demo.ErrLocal) && failed:
			m.enter(Failed)
			return
		case errors.Is(err, demo.ErrLocal):
			if p := m.fleet.cfg.Patience; served || p > 0 && time.Since(m.on) > p {
				m.enter(Unwanted)
				return
			}
		case err != nil:
			m.fleet.stats.lost.Add(1)
			m.log.Debug("network boot failed, trying on", "err", err)
		default:
			pause.Reset()
			m.fleet.stats.agents.Add(1)
			served = true
			f, err := m.bootAgent(ctx, cfg, done)
			if err != nil && ctx.Err() == nil && !errors.Is(err, errPower) {
				m.log.Warn("run agent", "err", err)
			}
			failed = failed || f
			continue
		}
		if pause.Wait(ctx, 0) != nil {
			return
		}
	}
}

// bootAgent runs the agent until it reboots. It reports whether the agent said
// that the installation failed.
func (m *machine) bootAgent(ctx context.Context, cfg agentapi.BootConfig, done func()) (failed bool, err error) {
	ctx, power := context.WithCancelCause(ctx)
	defer power(nil)
	logs := agent.NewLogs()
	log := slog.New(slog.NewTextHandler(logs, nil))
	client, err := agent.NewClient(cfg, log)
	if err != nil {
		return false, fmt.Errorf("read boot configuration: %w", err)
	}
	defer client.Close()
	r := &region{Client: client, m: m, began: time.Now()}
	in := &installer{m: m, power: power, done: done}
	pauses := agent.Pauses{
		Report: 15 * time.Second, Again: 3 * time.Second, Reboot: time.Millisecond, Breath: time.Second,
		ProgEvery: m.fleet.cfg.Every,
	}
	err = agent.New(cfg, r, in, board{m}, nil, pauses, logs, log).Run(ctx)
	return in.failed, err
}

// bootDisk is the installed system: it calls home, as the real one does.
func (m *machine) bootDisk(ctx context.Context) error {
	m.mu.Lock()
	d := m.disk
	began := m.on
	m.mu.Unlock()
	e := &d.plan.Effect
	return callhome.Post(ctx, d.callhome, func() lpmos.Receipt {
		id := sha256.Sum256([]byte("simulated machine-id" + d.marker.TaskID))
		r := e.Promised()
		r.OS, r.Kernel, r.MachineID = "simulated", "simulated", hex.EncodeToString(id[:16])
		r.Addresses, r.UptimeSec = append(r.Addresses, "127.0.0.1/8"), int64(time.Since(began).Seconds())
		return r
	}, callhome.Patience, slog.New(slog.DiscardHandler))
}

// board is the machine as the workflow sees it.
type board struct{ *machine }

func (b board) Collect(context.Context) (*lpmos.Hardware, error) {
	h := b.hardware
	return &h, nil
}

// SetClock does nothing: the clock belongs to the computer this runs on.
func (b board) SetClock(time.Time) error { return nil }

// Reboot does nothing: run boots again when the agent has returned.
func (b board) Reboot(string) {}

// region is the agent's own client behind a network that may be away.
type region struct {
	*agentapi.Client
	m     *machine
	began time.Time
}

// A loose cable is away from flapFrom to flapTo in every flapEvery.
const (
	flapEvery = 12 * time.Second
	flapFrom  = 2 * time.Second
	flapTo    = 6 * time.Second
)

// away is how long the network stays away from now on, or 0.
func (r *region) away() time.Duration {
	if r.m.habit != Flaps {
		return 0
	}
	if at := time.Since(r.began) % flapEvery; at > flapFrom && at < flapTo {
		return flapTo - at
	}
	return 0
}

// reach waits for the network. What was open is closed when it went.
func (r *region) reach(ctx context.Context) error {
	d := r.away()
	if d == 0 {
		return nil
	}
	r.m.fleet.stats.lost.Add(1)
	r.Close()
	return sleep(ctx, d)
}

func (r *region) Report(ctx context.Context, b agentapi.Report) (a agentapi.ReportAnswer, err error) {
	if err = r.reach(ctx); err == nil {
		if a, err = r.Client.Report(ctx, b); err == nil {
			r.m.fleet.stats.reports.Add(1)
		}
	}
	return a, err
}

func (r *region) Approval(ctx context.Context, mac lpmos.MAC, wait time.Duration) (agentapi.Approval, error) {
	if err := r.reach(ctx); err != nil {
		return agentapi.Approval{}, err
	}
	return r.Client.Approval(ctx, mac, wait)
}

func (r *region) Permit(ctx context.Context, b agentapi.PermitRequest, wait time.Duration) (agentapi.PermitAnswer, error) {
	if err := r.reach(ctx); err != nil {
		return agentapi.PermitAnswer{}, err
	}
	return r.Client.Permit(ctx, b, wait)
}

func (r *region) Result(ctx context.Context, b agentapi.Result, wait time.Duration) (agentapi.ResultAnswer, error) {
	if err := r.reach(ctx); err != nil {
		return agentapi.ResultAnswer{}, err
	}
	return r.Client.Result(ctx, b, wait)
}

// errAway is a request that the network lost.
var errAway = errors.New("the simulated network is away")

func (r *region) Progress(ctx context.Context, p agentapi.Progress) error {
	if r.away() > 0 {
		r.m.fleet.stats.lost.Add(1)
		r.Close()
		return errAway
	}
	if r.m.fleet.cfg.Stamp {
		p.Message = fmt.Sprintf("%s sent=%d", p.Message, time.Now().UnixMicro())
	}
	err := r.Client.Progress(ctx, p)
	switch {
	case err == nil:
		r.m.fleet.stats.progress.Add(1)
	case agentapi.Refused(err) != 0:
		r.m.fleet.stats.refused.Add(1)
	default:
		r.m.fleet.stats.lost.Add(1)
	}
	return err
}

func (r *region) Logs(ctx context.Context, l agentapi.Logs) error {
	if r.away() > 0 {
		r.m.fleet.stats.lost.Add(1)
		return errAway
	}
	return r.Client.Logs(ctx, l)
}

// installer goes through the stages in the time that is configured.
type installer struct {
	m      *machine
	power  context.CancelCauseFunc
	done   func()
	failed bool // read when the agent has returned
}

func (in *installer) Finished(lpmos.Disk) (install.Marker, bool) {
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	return in.m.disk.marker, in.m.disk.plan != nil
}

// imageBytes is what a simulated download is long.
const imageBytes = 512 << 20

func (in *installer) Install(ctx context.Context, job install.Job) error {
	m := in.m
	m.enter(Installing)
	m.mu.Lock()
	m.disk.plan = nil
	m.mu.Unlock()
	if job.OnWrite != nil {
		job.OnWrite()
	}
	total := m.fleet.cfg.Install
	if m.habit == Slow {
		total *= 4
	}
	// Twice as often as is reported, so that each report has something new.
	steps := max(int64(2*total/m.fleet.cfg.Every), 8)
	began := time.Now()
	for i := range steps {
		part := float64(i) / float64(steps)
		if part >= m.trouble {
			if err := in.misbehave(ctx, part); err != nil {
				return err
			}
		}
		if job.OnStep != nil {
			job.OnStep(stepAt(part, job.Plan))
		}
		if err := sleep(ctx, time.Duration(float64(total)*float64(i+1)/float64(steps))-time.Since(began)); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disk = disk{
		plan: job.Plan, callhome: job.Callhome,
		marker: install.Marker{TaskID: job.TaskID, Attempt: job.Attempt, PlanDigest: job.Plan.Digest, WrittenAt: time.Now().UTC()},
	}
	return nil
}

// misbehave is what the machine is here for, if it is.
func (in *installer) misbehave(ctx context.Context, part float64) error {
	m := in.m
	m.mu.Lock()
	again := m.faulty
	m.faulty = true
	m.mu.Unlock()
	switch m.habit {
	case Fails:
		in.failed = true
		return &install.Failure{
			Code: "simulated_fault", Stage: stepAt(part, nil).Stage, Cause: "The simulated disk does not write any more.",
			NextStep: "Nothing: this machine was told to fail.", Err: errors.New("write /dev/vda: simulated input/output error"),
		}
	case Stalls:
		m.enter(Stalled)
		in.done()
		<-ctx.Done()
		return context.Cause(ctx)
	case Reboots:
		if !again {
			in.power(errPower)
			return errPower
		}
	}
	return nil
}

// stepAt is the step at a part, 0 to 1, of the whole.
func stepAt(part float64, plan *lpmos.Plan) install.Step {
	percent := part * 100
	for _, w := range lpmos.StageWeights {
		if percent >= float64(w.To) {
			continue
		}
		within := (percent - float64(w.From)) / float64(w.To-w.From)
		s := install.Step{Stage: w.Stage, Done: int64(within * 1e6), Total: 1e6, Message: "Simulated " + string(w.Stage)}
		if w.Stage == lpmos.Downloading {
			s.Bytes, s.BytesTotal = int64(within*imageBytes), imageBytes
			if plan != nil {
				s.Message += " of " + plan.Effect.Image.OS + " " + plan.Effect.Image.Version
			}
		}
		return s
	}
	return install.Step{Stage: lpmos.Configuring, Done: 1, Total: 1, Message: "Simulated"}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
