package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// attempt carries an approved order out: verify, permit, verify, install,
// result.
func (a *Agent) attempt(ctx context.Context, order agentapi.Approval) (next, error) {
	hw, err := a.collect(ctx)
	if err != nil {
		return next{}, err
	}
	begun := order.Status == lpmos.Installing || order.Status == lpmos.Verifying
	if begun && a.finished(order, hw) {
		a.log.Info("this disk was completed by an earlier boot; telling the result", "task", order.TaskID)
		return a.conclude(ctx, order, order.Attempt, nil, true)
	}
	if order.Status == lpmos.Verifying {
		return a.leave("the installation was reported already; the machine will boot its own disk"), nil
	}
	// The permit opens the next attempt of a task that is installing, and the
	// first of one that was just approved.
	number := max(order.Attempt, 1)
	if begun {
		number = order.Attempt + 1
	}
	if err := a.check(order, hw, nil, number); err != nil {
		return a.conclude(ctx, order, max(order.Attempt, 1), refusal(order.Plan, hw, err), false)
	}
	a.log.Info("approval verified", "task", order.TaskID, "by", order.Decision.By, "attempt", number)

	ans, n, err := a.awaitPermit(ctx, order)
	if err != nil || ans.Permit == nil {
		return n, err
	}
	permit := ans.Permit
	// It may have taken long: look again.
	if hw, err = a.collect(ctx); err != nil {
		return next{}, err
	}
	if err := a.check(order, hw, permit, permit.Attempt); err != nil {
		number := permit.Attempt
		if errors.Is(err, lpmos.ErrSignature) {
			number = max(order.Attempt, 1) // a forged permit says nothing
		}
		return a.conclude(ctx, order, number, refusal(order.Plan, hw, err), false)
	}
	a.log.Info("permit verified", "task", order.TaskID, "attempt", permit.Attempt)
	secrets, err := a.secrets(order, permit.Attempt, ans.Secrets)
	if err != nil {
		f := refusal(order.Plan, hw, err)
		f.Code, f.NextStep = "secrets_invalid", "Find out what the region did with the secrets of this task, then retry the task."
		return a.conclude(ctx, order, permit.Attempt, f, false)
	}
	return a.carryOut(ctx, order, permit.Attempt, ans.CallhomeToken, secrets)
}

// secrets opens what came with the permit. The values count only if the plan
// committed to them.
func (a *Agent) secrets(order agentapi.Approval, attempt int, sealed []byte) (map[string]lpmos.Secret, error) {
	planned := order.Plan.Effect.Secrets
	if len(planned) == 0 {
		return nil, nil
	}
	if a.cfg.Key == nil || len(sealed) == 0 {
		return nil, errors.New("the plan has secrets, and none came with the permit")
	}
	b, err := a.cfg.Key.Open(lpmos.SecretContext(order.TaskID, attempt, order.Decision.PlanDigest), sealed)
	if err != nil {
		return nil, err
	}
	set, err := lpmos.ParseSecretSet(b)
	if err != nil {
		return nil, err
	}
	return set.Check(planned)
}

func (a *Agent) check(order agentapi.Approval, hw *lpmos.Hardware, permit *lpmos.Permit, attempt int) error {
	v := lpmos.Verifier{Keys: a.keys, TaskID: order.TaskID, Hardware: hw, AgentKey: a.fingerprint(), Now: a.clock.Now()}
	return v.Check(order.Plan, order.Decision, permit, attempt, a.nonce)
}

// finished reports whether the target holds the whole of this plan. The
// approval need not be in force any more, but it must be the control plane's,
// and for this plan.
func (a *Agent) finished(order agentapi.Approval, hw *lpmos.Hardware) bool {
	d := order.Decision
	if d.Verify(a.keys) != nil || d.TaskID != order.TaskID || order.Plan.ComputeDigest() != d.PlanDigest {
		return false
	}
	disk, err := hw.Disk(order.Plan.Effect.Target)
	if err != nil {
		return false
	}
	m, ok := a.install.Finished(disk)
	return ok && m.TaskID == order.TaskID && m.PlanDigest == d.PlanDigest && m.Attempt >= d.FirstAttempt && m.Attempt <= order.Attempt
}

// permitPolls bounds how often a permit for another nonce, left from an
// earlier boot, is taken for a region that lags behind.
const permitPolls = 10

// awaitPermit returns the permit for this boot, or what to do instead.
func (a *Agent) awaitPermit(ctx context.Context, order agentapi.Approval) (agentapi.PermitAnswer, next, error) {
	var none agentapi.PermitAnswer
	req := agentapi.PermitRequest{MACAddress: a.cfg.BootMAC, TaskID: order.TaskID, Nonce: a.nonce,
		PlanDigest: order.Decision.PlanDigest, HardwareDigest: order.Decision.HardwareDigest}
	for others := 0; ; {
		began := a.clock.Now()
		ans, err := a.region.Permit(ctx, req, a.pauses.Wait)
		if err != nil {
			if c := agentapi.Refused(err); c == http.StatusConflict || c == http.StatusNotFound {
				return none, a.again("the permit was refused: " + err.Error()), nil
			}
			n, err := a.refused(ctx, "ask for the permit", err)
			return none, n, err
		}
		if ans.Refused != "" {
			return none, a.again("the permit was refused: " + ans.Refused), nil
		}
		if p := ans.Permit; p != nil {
			if p.Nonce == a.nonce || others == permitPolls || p.Verify(a.keys) != nil {
				return ans, next{}, nil
			}
			others++
			a.log.Warn("permit is for another boot", "attempt", p.Attempt)
		}
		if a.clock.Now().Sub(began) < a.pauses.Breath {
			if err := a.clock.Sleep(ctx, a.pauses.Breath); err != nil {
				return none, next{}, err
			}
		}
	}
}

// carryOut writes the disk and tells how that ended.
func (a *Agent) carryOut(ctx context.Context, order agentapi.Approval, attempt int, token string, secrets map[string]lpmos.Secret) (next, error) {
	a.logs.Begin(order.TaskID, a.cfg.BootMAC, attempt)
	bar := newProgress(a.region, a.clock, a.pauses.ProgEvery, agentapi.Progress{MACAddress: a.cfg.BootMAC, TaskID: order.TaskID, Attempt: attempt}, a.log)
	over, stop := context.WithCancel(ctx)
	defer stop()
	var background sync.WaitGroup
	// What is under way when the installation ends is sent to its end, so that
	// the region does not get the last two in the wrong order.
	background.Go(func() { bar.run(ctx, over) })
	background.Go(func() { a.logs.run(ctx, over, a.region, a.pauses.LogEvery) })

	var written atomic.Bool
	job := install.Job{TaskID: order.TaskID, Attempt: attempt, Plan: order.Plan, Callhome: a.callhome(order, attempt, token), Secrets: secrets, Boot: a.cfg,
		OnWrite: func() { written.Store(true) }, OnStep: bar.step}
	err := protect(func() error { return a.install.Install(ctx, job) })
	handedOver := errors.Is(err, install.ErrHandedOver)
	if err == nil {
		bar.finish("Installed; the machine reboots")
	}
	stop()
	background.Wait()
	if ctx.Err() != nil {
		return next{}, context.Cause(ctx)
	}
	bar.flush(ctx)
	if handedOver {
		a.logs.flush(ctx, a.region)
		return next{reboot: true, why: "the distribution's installer starts now"}, nil
	}
	if err != nil {
		return a.conclude(ctx, order, attempt, failure(err), written.Load())
	}
	return a.conclude(ctx, order, attempt, nil, true)
}

// protect makes a panic an error: the machine should say what happened and not
// stand still with it.
func protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &install.Failure{Code: "agent_panic", Cause: fmt.Sprintf("The agent met the impossible: %v.", p),
				NextStep: "Keep the log and report it as a fault of LPMOS.", Err: errors.New(string(debug.Stack()))}
		}
	}()
	return f()
}

func (a *Agent) callhome(order agentapi.Approval, attempt int, token string) agentapi.CallhomeConfig {
	urls := []string{}
	for _, u := range []string{a.cfg.Callhome, a.cfg.AgentURL} {
		if u != "" && (len(urls) == 0 || urls[0] != u) {
			urls = append(urls, u)
		}
	}
	root, _ := order.Plan.Effect.Partition("root")
	return agentapi.CallhomeConfig{URLs: urls, ServerName: a.cfg.ServerName, CA: a.cfg.CA, Token: token,
		TaskID: order.TaskID, Attempt: attempt, MAC: a.cfg.BootMAC, RootUUID: root.UUID,
		AwaitTime: order.Plan.Effect.System.KeepsTime()}
}

// conclude tells the result until the region has seen what comes of it. After
// a success the machine reboots only when the task is verifying, because until
// then the boot index would bring the agent back.
func (a *Agent) conclude(ctx context.Context, order agentapi.Approval, attempt int, f *lpmos.Failure, written bool) (next, error) {
	res := agentapi.Result{MACAddress: a.cfg.BootMAC, TaskID: order.TaskID, Attempt: attempt, OK: f == nil, Written: written}
	if f != nil {
		f.Attempt, f.At = attempt, a.clock.Now().UTC()
		res.Failure = f
		a.log.Error("attempt failed", "task", order.TaskID, "attempt", attempt, "code", f.Code, "stage", f.Stage, "cause", f.Cause, "next", f.NextStep)
	} else {
		a.log.Info("attempt succeeded", "task", order.TaskID, "attempt", attempt)
	}
	for range 5 {
		if a.logs.flush(ctx, a.region) || a.clock.Sleep(ctx, a.pauses.LogEvery) != nil {
			break
		}
	}
	giveUp := a.clock.Now().Add(a.pauses.Conclude)
	for {
		began := a.clock.Now()
		ans, err := a.region.Result(ctx, res, a.pauses.Wait)
		if err != nil {
			return a.refused(ctx, "tell the result", err)
		}
		switch {
		case ans.Status == lpmos.Verifying && f == nil:
			return next{reboot: true, pause: 0, why: "installed; the machine boots its own disk now"}, nil
		case f == nil && order.Plan.Effect.Unverified && !ans.Status.Live(): // also "": with the task its order went
			return next{reboot: true, pause: 0, why: "installed, and nobody waits for its report; the machine boots its own disk now"}, nil
		case !ans.Status.Live(): // also "": the order is gone
			return a.leave("the task has ended (" + cmp.Or(string(ans.Status), "gone") + "); the machine will boot as its region says"), nil
		case f != nil && (ans.Status == lpmos.Pending || ans.Status == lpmos.AwaitingApproval):
			return a.again("the region wants to start over (" + string(ans.Status) + "); reporting again"), nil
		case f != nil && a.clock.Now().After(giveUp):
			return a.leave("the attempt failed (" + f.Code + ") and nothing came of it; booting again"), nil
		}
		if a.clock.Now().Sub(began) < a.pauses.Breath {
			if err := a.clock.Sleep(ctx, a.pauses.Breath); err != nil {
				return next{}, err
			}
		}
	}
}

// refusal is the failure of an attempt that never wrote.
func refusal(plan *lpmos.Plan, hw *lpmos.Hardware, err error) *lpmos.Failure {
	f := &lpmos.Failure{Code: "approval_mismatch", Cause: sentence(err.Error()), NextStep: "Look at the new plan and approve it, if it is right.", Evidence: evidence(err)}
	if errors.Is(err, lpmos.ErrSignature) {
		f.Code, f.NextStep = "signature_invalid", "Find out who speaks for the control plane in this region before anything else."
		return f
	}
	if plan == nil || plan.Effect.Target == (lpmos.DiskRef{}) {
		return f
	}
	var target lpmos.DiskRef
	for _, d := range plan.Effect.Disks() {
		if _, err := hw.Disk(d.Disk); err != nil {
			target = d.Disk
			break
		}
	}
	if target == (lpmos.DiskRef{}) {
		return f
	}
	f.Code = "disk_missing"
	f.Cause = "The approved disk (" + target.String() + ") is not in this machine as it was."
	f.NextStep = "Check that the disk is present and healthy, then retry the task."
	for _, d := range hw.Disks {
		// The same disk with another size has been shortened (HPA, namespace), or
		// is another model with the same number.
		if named := d.Serial == target.Serial && d.WWN == target.WWN && d.Serial+d.WWN != ""; named && d.SizeBytes < target.SizeBytes {
			f.Code = "disk_too_small"
			f.Cause = fmt.Sprintf("The approved disk (%s) has only %s now.", target, lpmos.FormatBytes(d.SizeBytes))
		}
	}
	return f
}

// failure is what the region is told of an error of the installer.
func failure(err error) *lpmos.Failure {
	f := &lpmos.Failure{Code: "install_failed", Cause: sentence(err.Error()), NextStep: "Read the log of this attempt, then retry the task.", Evidence: evidence(err)}
	if e, ok := errors.AsType[*install.Failure](err); ok {
		f.Stage, f.Code, f.Cause, f.NextStep = e.Stage, e.Code, lpmos.Shorten(e.Cause, lpmos.MaxMessageBytes-4), e.NextStep
		f.Evidence = ""
		if e.Err != nil {
			f.Evidence = evidence(e.Err)
		}
	}
	return f
}

func evidence(err error) string { return lpmos.Shorten(err.Error(), 2<<10) }

// sentence makes an error's text one.
func sentence(s string) string {
	s = lpmos.Shorten(strings.TrimSuffix(s, "."), lpmos.MaxMessageBytes-4)
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}
