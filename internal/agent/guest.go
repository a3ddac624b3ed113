package agent

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// Guest is the agent in the memory of a distribution's installer that it
// started: it speaks to the region for the attempt, as the boot that was granted
// the permit. The installer calls it through its hooks.
type Guest struct {
	agent *Agent
	h     *install.Handover
	in    *install.Installer
	log   *slog.Logger
}

// installerLine is the number of the first line of an installer's log: those
// of the agent before it have smaller ones.
const installerLine = 1 << 20

// NewGuest makes the agent that goes on with h.
func NewGuest(h *install.Handover, region Region, in *install.Installer, clock Clock, pauses Pauses, log *slog.Logger) *Guest {
	logs := NewLogs()
	logs.to = agentapi.Logs{MACAddress: h.Boot.BootMAC, TaskID: h.TaskID, Attempt: h.Attempt, First: installerLine}
	return &Guest{agent: New(h.Boot, region, nil, nil, clock, pauses, logs, log), h: h, in: in, log: log}
}

func (g *Guest) progress() *progress {
	a := g.agent
	return newProgress(a.region, a.clock, a.pauses.ProgEvery, agentapi.Progress{MACAddress: g.h.Boot.BootMAC, TaskID: g.h.TaskID, Attempt: g.h.Attempt}, g.log)
}

// order is the attempt as the rest of this package knows it.
func (g *Guest) order() agentapi.Approval {
	return agentapi.Approval{TaskID: g.h.TaskID, Attempt: g.h.Attempt, Plan: &lpmos.Plan{Effect: g.h.Effect}}
}

// Watch follows the installer's log files below root and tells the region how
// far it is, until ctx ends. A log that does not grow is no progress, so an
// installer that hangs is found out by the task's deadline.
func (g *Guest) Watch(ctx context.Context, root string) error {
	a, bar := g.agent, g.progress()
	var work sync.WaitGroup
	work.Go(func() { bar.run(ctx, ctx) })
	work.Go(func() { a.logs.run(ctx, ctx, a.region, a.pauses.LogEvery) })
	kind := g.h.Effect.Installer.Answers
	var mu sync.Mutex // guards now
	now := install.Step{Stage: lpmos.Partitioning, Done: 5, Total: 10, Message: "The installer has started"}
	bar.step(now)
	for _, name := range installerLogs[kind] {
		work.Go(func() {
			follow(ctx, a.clock, a.pauses.LogEvery, root+name, func(line string) {
				a.logs.Line(line)
				mu.Lock()
				defer mu.Unlock()
				now = after(now, kind, line)
				bar.step(now)
			})
		})
	}
	work.Wait()
	return context.Cause(ctx)
}

// installerLogs are what installers write their logs to.
var installerLogs = map[string][]string{
	lpmos.TemplatePreseed:     {"/var/log/syslog"},
	lpmos.TemplateKickstart:   {"/tmp/anaconda.log", "/tmp/packaging.log"},
	lpmos.TemplateAutoinstall: {"/var/log/installer/subiquity-server-info.log", "/var/log/installer/curtin-install.log"},
}

// milestones are lines of installers' logs that say where they are; the last
// that matches counts.
var milestones = map[string][]struct {
	line  *regexp.Regexp
	stage lpmos.Stage
	done  int64 // of 10
}{
	lpmos.TemplatePreseed: {
		{regexp.MustCompile(`Menu item '(partman-base|partman)' selected`), lpmos.Partitioning, 8},
		{regexp.MustCompile(`Menu item 'bootstrap-base' selected`), lpmos.Downloading, 1},
		{regexp.MustCompile(`Menu item '(apt-setup-udeb|user-setup-udeb)' selected`), lpmos.Downloading, 8},
		{regexp.MustCompile(`Menu item 'pkgsel' selected`), lpmos.StageInstall, 1},
		{regexp.MustCompile(`Menu item 'grub-installer' selected`), lpmos.StageInstall, 8},
		{regexp.MustCompile(`Menu item 'finish-install' selected`), lpmos.Configuring, 2},
	},
	lpmos.TemplateKickstart: {
		{regexp.MustCompile(`(?i)storage configuration|creating disklabel`), lpmos.Partitioning, 8},
		{regexp.MustCompile(`(?i)downloading packages`), lpmos.Downloading, 2},
		{regexp.MustCompile(`(?i)(preparing transaction|installed: )`), lpmos.StageInstall, 2},
		{regexp.MustCompile(`(?i)installing boot ?loader`), lpmos.StageInstall, 9},
		{regexp.MustCompile(`(?i)post-installation scripts`), lpmos.Configuring, 2},
	},
	lpmos.TemplateAutoinstall: {
		{regexp.MustCompile(`curtin command block-meta`), lpmos.Partitioning, 8},
		{regexp.MustCompile(`curtin command extract`), lpmos.Downloading, 2},
		{regexp.MustCompile(`curtin command curthooks`), lpmos.StageInstall, 2},
		{regexp.MustCompile(`Late/run`), lpmos.Configuring, 2},
	},
}

// stampRE is what syslog puts in front of a line.
var stampRE = regexp.MustCompile(`^[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d `)

// after is where an installer is when it has written a line; between milestones
// the line itself shows that something happens.
func after(now install.Step, kind, line string) install.Step {
	for _, m := range milestones[kind] {
		if m.line.MatchString(line) && m.stage.Number() >= now.Stage.Number() {
			now.Stage, now.Done, now.Total = m.stage, m.done, 10
		}
	}
	now.Message = stampRE.ReplaceAllString(line, "")
	return now
}

// follow calls each for every line of a file, as it grows, until ctx ends. A
// file that is not there may come.
func follow(ctx context.Context, clock Clock, every time.Duration, name string, each func(string)) {
	var f *os.File
	var r *bufio.Reader
	part := ""
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	for ctx.Err() == nil {
		if f == nil {
			if f, _ = os.Open(name); f != nil {
				r = bufio.NewReader(f)
			}
		}
		for f != nil && ctx.Err() == nil {
			text, err := r.ReadString('\n')
			part += text
			if err == nil || len(part) > lpmos.MaxMessageBytes {
				each(lpmos.Shorten(strings.TrimRight(part, "\r\n"), lpmos.MaxMessageBytes-4))
				part = ""
			}
			if err != nil {
				break
			}
		}
		_ = clock.Sleep(ctx, every)
	}
}

// Hold keeps the installer to the approved disk; see install.Installer.Hold. A
// failure is told to the region.
func (g *Guest) Hold(ctx context.Context, root string, setReadOnly func(device string, on bool) error) error {
	return g.told(ctx, protect(func() error { return g.in.Hold(ctx, &g.h.Effect, root, setReadOnly) }))
}

// Finish makes what was installed this machine's system and returns when the
// region has seen that it is.
func (g *Guest) Finish(ctx context.Context, root string) error {
	bar := g.progress()
	job := g.h.Job()
	job.OnStep = bar.step
	if err := protect(func() error { return g.in.Finish(ctx, &job, root+g.h.Effect.Installer.TargetPath()) }); err != nil {
		return g.told(ctx, err)
	}
	bar.finish("Installed; the machine reboots")
	bar.flush(ctx)
	for {
		next, err := g.conclude(ctx, nil)
		if err != nil {
			return err
		}
		if next.reboot {
			g.log.Info(next.why)
			return nil
		}
		// The region was away for a moment.
		if err := g.agent.clock.Sleep(ctx, g.agent.pauses.Again); err != nil {
			return err
		}
	}
}

// Failed tells the region that the installer gave up.
func (g *Guest) Failed(ctx context.Context) error {
	return g.told(ctx, &install.Failure{Code: "installer_failed", Stage: lpmos.StageInstall, Cause: "The distribution's installer gave up.",
		NextStep: "Read the log of this attempt, then retry the task."})
}

// told is err after the region has been told of it; nil for nil.
func (g *Guest) told(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	f := failure(err)
	f.Stage = cmp.Or(f.Stage, lpmos.Partitioning)
	_, concluded := g.conclude(ctx, f)
	return errors.Join(err, concluded)
}

// conclude tells the region how the attempt ended, f or well. Afterwards it takes no
// more of the log, so Watch, which is a program of its own, is first given the time
// to read what the installer said last, and to hand it up.
func (g *Guest) conclude(ctx context.Context, f *lpmos.Failure) (next, error) {
	if err := g.agent.clock.Sleep(ctx, handUp*g.agent.pauses.LogEvery); err != nil {
		return next{}, err
	}
	return g.agent.conclude(ctx, g.order(), g.h.Attempt, f, true)
}

// handUp is how many times as long as between two looks at the log, or two batches
// of its lines, Watch may take until both are done.
const handUp = 4
