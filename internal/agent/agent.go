package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// Region is what an agent asks of its region; agentapi.Client is it. Its
// methods return when they are answered, refused, or ctx ends.
type Region interface {
	Report(context.Context, agentapi.Report) (agentapi.ReportAnswer, error)
	Approval(ctx context.Context, mac lpmos.MAC, wait time.Duration) (agentapi.Approval, error)
	Permit(ctx context.Context, r agentapi.PermitRequest, wait time.Duration) (agentapi.PermitAnswer, error)
	Result(ctx context.Context, r agentapi.Result, wait time.Duration) (agentapi.ResultAnswer, error)
	Progress(context.Context, agentapi.Progress) error
	Logs(context.Context, agentapi.Logs) error
}

// Installer writes an attempt to a disk; install.Installer is it.
type Installer interface {
	Finished(lpmos.Disk) (install.Marker, bool)
	Install(context.Context, install.Job) error
}

// Machine is the computer the agent runs on.
type Machine interface {
	// Collect looks at the hardware and at what is on the disks, now.
	Collect(context.Context) (*lpmos.Hardware, error)
	SetClock(time.Time) error
	// Reboot does not return on a real machine.
	Reboot(why string)
}

// Clock is time; the zero Pauses of tests make it short.
type Clock interface {
	Now() time.Time
	// Sleep waits for d or the end of ctx, which is its only error.
	Sleep(ctx context.Context, d time.Duration) error
}

// Pauses bound how fast anything is repeated. Zero values are the defaults.
type Pauses struct {
	Wait      time.Duration // of one long poll; 30 s
	Report    time.Duration // between two reports of a machine without a task; 60 s
	Again     time.Duration // before a question that was answered "no" is put again; 15 s
	Reboot    time.Duration // before a reboot that nobody waits for, so that the console can be read; 60 s
	Breath    time.Duration // least time between two long polls; 1 s
	Conclude  time.Duration // how long after a failure the region is asked what came of it; 5 min
	LogEvery  time.Duration // between two batches of log lines; 1 s
	ProgEvery time.Duration // between two progress reports; 1 s
}

func (p *Pauses) setDefaults() {
	for _, d := range []struct {
		to *time.Duration
		v  time.Duration
	}{
		{&p.Wait, agentapi.MaxWait}, {&p.Report, time.Minute}, {&p.Again, 15 * time.Second}, {&p.Reboot, time.Minute},
		{&p.Breath, time.Second}, {&p.Conclude, 5 * time.Minute}, {&p.LogEvery, time.Second}, {&p.ProgEvery, time.Second},
	} {
		if *d.to <= 0 {
			*d.to = d.v
		}
	}
}

// Agent is one boot of one machine.
type Agent struct {
	cfg     agentapi.BootConfig
	keys    []ed25519.PublicKey
	region  Region
	install Installer
	machine Machine
	clock   Clock
	pauses  Pauses
	logs    *Logs
	log     *slog.Logger
	nonce   string // of this boot, for its permit
}

// New makes the agent of a boot, whose key is cfg.Key. logs collects the lines of log for the
// region; it may be nil. A nil clock is the machine's.
func New(cfg agentapi.BootConfig, region Region, installer Installer, machine Machine, clock Clock, pauses Pauses, logs *Logs, log *slog.Logger) *Agent {
	var nonce [32]byte
	rand.Read(nonce[:])
	pauses.setDefaults()
	if clock == nil {
		clock = systemClock{}
	}
	if logs == nil {
		logs = NewLogs()
	}
	return &Agent{cfg: cfg, keys: keys(cfg), region: region, install: installer, machine: machine, clock: clock,
		pauses: pauses, logs: logs, log: log, nonce: hex.EncodeToString(nonce[:])}
}

// Run works until the machine has been told to reboot, or ctx ends; the latter
// is its only error.
func (a *Agent) Run(ctx context.Context) error {
	// Certificates, approvals and logs need a clock, and machines come with
	// dead ones.
	if !a.cfg.Time.IsZero() {
		if err := a.machine.SetClock(a.cfg.Time); err != nil {
			a.log.Warn("clock not set", "err", err)
		}
	}
	a.log.Info("agent started", "mac", a.cfg.BootMAC, "region", a.cfg.RegionID, "task", a.cfg.TaskID, "boot", a.cfg.BootSeq)
	a.log.Info("compare these words with the page where the plan is approved", "words", lpmos.KeyWords(a.fingerprint()))
	for {
		next, err := a.round(ctx)
		if err != nil {
			return err
		}
		if next.pause > 0 {
			a.log.Info(next.why, "pause", next.pause)
		} else {
			a.log.Info(next.why)
		}
		if err := a.clock.Sleep(ctx, next.pause); err != nil {
			return err
		}
		if next.reboot {
			a.log.Info("rebooting now")
			a.machine.Reboot(next.why)
			return nil
		}
	}
}

// next is what comes after a round.
type next struct {
	reboot bool
	pause  time.Duration // before it
	why    string        // a line for the console
}

func (a *Agent) again(why string) next { return next{pause: a.pauses.Again, why: why} }

func (a *Agent) leave(why string) next {
	return next{reboot: true, pause: a.pauses.Reboot, why: why}
}

// fingerprint names the key of this boot, "" when it has none.
func (a *Agent) fingerprint() string {
	if a.cfg.Key == nil {
		return ""
	}
	return a.cfg.Key.Public().Fingerprint()
}

// round reports and follows the task, if there is one, as far as it goes.
func (a *Agent) round(ctx context.Context) (next, error) {
	hw, err := a.collect(ctx)
	if err != nil {
		return next{}, err
	}
	ans, err := a.region.Report(ctx, agentapi.Report{MACAddress: a.cfg.BootMAC, Hardware: hw})
	if err != nil {
		return a.refused(ctx, "report", err)
	}
	a.log.Info("hardware reported", "task", ans.TaskID, "status", ans.Status)
	switch {
	case ans.TaskID == "" && a.cfg.TaskID == "":
		return a.idle(ctx)
	case ans.TaskID == "":
		return a.leave("the task of this machine is gone; it will boot its own disk"), nil
	case a.cfg.TaskID != "" && ans.TaskID != a.cfg.TaskID:
		return a.leave("another task wants this machine; it boots again for that one"), nil
	case !ans.Status.Live():
		return a.leave("the task has ended (" + string(ans.Status) + "); the machine will boot its own disk"), nil
	}
	a.logs.Begin(ans.TaskID, a.cfg.BootMAC, max(ans.Attempt, 1))
	order, n, err := a.awaitApproval(ctx, ans.TaskID)
	if err != nil || order == nil {
		return n, err
	}
	return a.attempt(ctx, *order)
}

// idle waits for a task for a machine that has none.
func (a *Agent) idle(ctx context.Context) (next, error) {
	a.log.Info("no task wants this machine; waiting for one", "mac", a.cfg.BootMAC)
	until := a.clock.Now().Add(a.pauses.Report)
	for a.clock.Now().Before(until) {
		began := a.clock.Now()
		ap, err := a.region.Approval(ctx, a.cfg.BootMAC, a.pauses.Wait)
		if err != nil && agentapi.Refused(err) != http.StatusNotFound {
			return a.refused(ctx, "wait for a task", err)
		}
		if err == nil && ap.TaskID != "" {
			// Only a boot carries the credential of a task.
			return next{reboot: true, pause: a.pauses.Breath, why: "a task wants this machine; it boots again for it"}, nil
		}
		if a.clock.Now().Sub(began) < a.pauses.Wait/2 {
			if err := a.clock.Sleep(ctx, a.pauses.Wait/2); err != nil {
				return next{}, err
			}
		}
	}
	return next{why: "reporting again"}, nil
}

// awaitApproval returns the order once it is approved, or what to do instead.
func (a *Agent) awaitApproval(ctx context.Context, taskID string) (*agentapi.Approval, next, error) {
	var said lpmos.Status
	for {
		began := a.clock.Now()
		ap, err := a.region.Approval(ctx, a.cfg.BootMAC, a.pauses.Wait)
		if agentapi.Refused(err) == http.StatusNotFound {
			return nil, a.again("the region does not know this machine; reporting again"), nil
		}
		if err != nil {
			n, err := a.refused(ctx, "ask for approval", err)
			return nil, n, err
		}
		switch {
		case ap.TaskID != taskID:
			return nil, a.again("the task changed; reporting again"), nil
		case ap.Status != "" && !ap.Status.Live():
			return nil, a.leave("the task has ended (" + string(ap.Status) + "); the machine will boot its own disk"), nil
		case ap.Status == lpmos.Pending:
			return nil, a.again("the region asks for another report"), nil
		case (ap.Approved || ap.Status == lpmos.Verifying) && ap.Plan != nil && ap.Decision != nil:
			return &ap, next{}, nil
		case ap.Status == lpmos.Verifying:
			return nil, a.leave("the installation was reported already; the machine will boot its own disk"), nil
		}
		if ap.Status != said {
			said = ap.Status
			a.log.Info("waiting for a person to approve", "task", taskID, "status", ap.Status, "words", lpmos.KeyWords(a.fingerprint()))
		}
		if a.clock.Now().Sub(began) < a.pauses.Breath {
			if err := a.clock.Sleep(ctx, a.pauses.Breath); err != nil {
				return nil, next{}, err
			}
		}
	}
}

// refused says what a refusal of the region means for this boot.
func (a *Agent) refused(ctx context.Context, what string, err error) (next, error) {
	switch agentapi.Refused(err) {
	case 0:
		if ctx.Err() != nil {
			return next{}, context.Cause(ctx)
		}
		return a.again(what + ": " + err.Error()), nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return a.leave("the region no longer accepts this boot (" + err.Error() + "); booting again"), nil
	}
	n := a.again(what + ": " + err.Error())
	n.pause = a.pauses.Report
	return n, nil
}

// collect looks at the machine until that succeeds.
func (a *Agent) collect(ctx context.Context) (*lpmos.Hardware, error) {
	for {
		hw, err := a.machine.Collect(ctx)
		if err == nil {
			return hw, nil
		}
		a.log.Error("hardware not collected", "err", err)
		if err := a.clock.Sleep(ctx, a.pauses.Again); err != nil {
			return nil, fmt.Errorf("collect hardware: %w", err)
		}
	}
}

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
