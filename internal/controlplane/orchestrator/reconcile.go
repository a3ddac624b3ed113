package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

// agent and self are who an event is by when no person acted.
const (
	byAgent = "agent"
	bySelf  = "orchestrator"
)

// errNothing is returned by an edit that finds, on the newest data, that there
// is nothing to do any more.
var errNothing = errors.New("nothing to do")

// maxClaims bounds how many NICs of one machine are claimed: each costs
// operations of one transaction, of which etcd takes 128.
const maxClaims = 32

// How often progress and log are copied into the founding keys. Until a task
// ends both are read from its region's reports; a log is long.
const (
	foldEvery    = 5 * time.Second
	foldLogEvery = time.Minute
)

// reconcile looks at one task and makes at most one transition.
func (o *Orchestrator) reconcile(ctx context.Context, id string) error {
	// After a start every task is looked at. Most have ended, and to have one of
	// those whole is a read of the store.
	if s, ok := o.read.Status(id); !ok || !s.Live() && o.read.Reports(id) == (api.Reports{}) {
		return nil
	}
	t, ok := o.read.Task(id)
	if !ok {
		return nil
	}
	r := o.read.Reports(id)
	err := o.step(ctx, t, r)
	if errors.Is(err, errNothing) || errors.Is(err, lpmos.ErrNotFound) {
		return nil
	}
	var conflict *lpmos.ConflictError
	if errors.As(err, &conflict) {
		return nil // another replica, or a person, was quicker
	}
	return err
}

func (o *Orchestrator) step(ctx context.Context, t lpmos.Task, r api.Reports) error {
	if r.Agent != nil {
		ctx = lpmos.WithActor(ctx, lpmos.Actor{Name: byAgent, From: r.Agent.Address, Via: "region " + t.RegionID})
	}
	if r.Result != nil && !r.Result.OK && t.Status.Allows(lpmos.CauseFailed) {
		return o.fail(ctx, t, lpmos.CauseFailed, r.Result.Failure)
	}
	if r.Agent != nil && r.Agent.Alarm != nil && t.Status.Allows(lpmos.CauseAlarm) {
		if err := o.alarm(ctx, t, r.Agent.Alarm); !errors.Is(err, errNothing) {
			return err
		}
	}
	switch t.Status {
	case lpmos.Pending, lpmos.AwaitingApproval:
		if r.Hardware != nil {
			if err := o.plan(ctx, t, r.Hardware); !errors.Is(err, errNothing) {
				return err
			}
		}
	case lpmos.Approved:
		if r.Hardware != nil {
			if err := o.plan(ctx, t, r.Hardware); !errors.Is(err, errNothing) {
				return err
			}
		}
		if r.Permit != nil && asksNow(r) && o.read.PermitWait(t.ID) == nil {
			if err := o.permit(ctx, t, r.Permit, lpmos.CausePermitGranted); !errors.Is(err, errNothing) {
				return err
			}
		}
	case lpmos.Installing:
		if r.Result != nil && r.Result.OK {
			move := store.Move{Cause: lpmos.CauseResultReported, By: byAgent, Message: "Everything is written; the machine restarts from its own disk."}
			if !t.WantsVerification() {
				move = store.Move{Cause: lpmos.CauseNotVerified, By: byAgent, Message: "Everything is written; the task asked not to wait for the installed system."}
			}
			_, err := o.put.Transition(ctx, t.ID, move,
				func(rec *store.Record, _ *store.Move) error {
					if rec.Task.Attempt != r.Result.Attempt {
						return errNothing
					}
					rec.Task.Progress, rec.Task.LogTail = finished(t, r), logTail(o.read.Log(t.ID))
					if p := rec.Task.Progress; p != nil {
						rec.Task.Progress = p.Begin(lpmos.StageVerify, o.now().UTC())
					}
					return nil
				})
			return err
		}
		// Reading the task anew for each progress report only to find that its
		// permit is granted would be most of the work of a thousand installs.
		if r.Permit != nil && asksNow(r) && o.granted[t.ID] != (grant{t.Attempt, r.Permit.Nonce}) {
			if err := o.permit(ctx, t, r.Permit, lpmos.CauseNextAttempt); !errors.Is(err, errNothing) {
				return err
			}
		}
		if err := o.fold(ctx, t, r); err != nil {
			return err
		}
	case lpmos.Verifying:
		if r.Booted != nil {
			return o.booted(ctx, t, r)
		}
	case lpmos.Failed:
		if r.Booted != nil && t.Error != nil && t.Error.Code == store.CodeVerifyDeadline {
			return o.booted(ctx, t, r)
		}
	}
	return o.deadline(ctx, t, r)
}

// plan makes or renews the plan. The same hardware gives the same plan, so a
// machine that reports again changes nothing.
func (o *Orchestrator) plan(ctx context.Context, t lpmos.Task, h *lpmos.Hardware) error {
	image, ok := o.read.Image(t.OSType, t.OSVersion, t.Arch)
	if !ok {
		return o.fail(ctx, t, lpmos.CauseFailed, &lpmos.Failure{
			Code: "image_missing", Cause: "The image " + t.OSType + "/" + t.OSVersion + "/" + t.Arch + " is no longer in the catalogue.",
			NextStep: "Import it again, then retry the task.",
		})
	}
	if why := o.read.Protection(append(h.MACs(), t.TargetMAC), h.System.UUID); why != "" {
		return o.fail(ctx, t, lpmos.CauseFailed, &lpmos.Failure{
			Code: "protected_machine", Cause: "This machine must never be installed: " + why + ".",
			NextStep: "If that is wrong, take it off the list of protected machines, then retry the task.",
		})
	}
	if b := t.TPM; b != nil && !b.Is(h.TPM) {
		return o.fail(ctx, t, lpmos.CauseFailed, &lpmos.Failure{
			Code:     "tpm_changed",
			Cause:    "Another machine answers for this one, or its mainboard was replaced: its TPM is not the one that " + b.By + " approved it with. Nothing was written.",
			NextStep: "If the mainboard was replaced, have the TPM forgotten (the machine's page, or lpmos machine forget-tpm " + t.TargetMAC.String() + "), then retry the task and compare the key words. If not, find the machine that has its address.",
			Evidence: fmt.Sprintf("approved with %s, answers with %s", b.Fingerprint(), cmp.Or(h.TPM.Fingerprint(), "none")),
		})
	}
	t, unnamed := named(t, h)
	want := lpmos.NewPlan(&t, h, image)
	want.Problem = cmp.Or(want.Problem, unnamed)
	if err := o.trust(&image); err != nil {
		want.Problem = "The entry of the image " + image.Name() + " in the catalogue is not signed by this control plane. Build or import it again."
	}
	made := func(p *lpmos.Plan) bool {
		return p != nil && p.Digest == want.Digest && p.HardwareDigest == want.HardwareDigest && p.Problem == want.Problem
	}
	if made(t.Plan) {
		return errNothing
	}
	move := store.Move{Cause: lpmos.CauseHardwareReported, By: byAgent, Message: "The machine reported its hardware; a plan was made."}
	if t.Status != lpmos.Pending {
		move.Cause, move.Message = lpmos.CausePlanChanged, "The machine reported something else than the plan was made for; a new plan was made."
		if t.Status == lpmos.Approved {
			move.Message += " The approval is void."
		} else if len(t.Approvals) > 0 {
			move.Message += " What was approved of it is void."
		}
	}
	macs, uuid := identity(t, h)
	previous := o.read.Seen(t.ID, t.TargetMAC, h)
	for {
		_, err := o.put.Transition(ctx, t.ID, move, func(rec *store.Record, _ *store.Move) error {
			if rec.Task.Attempt != t.Attempt || rec.Task.Status != t.Status || made(rec.Task.Plan) {
				return errNothing
			}
			plan := want
			rec.Task.Hardware, rec.Task.Plan, rec.Task.Approval, rec.Task.Approvals, rec.Permit = h, &plan, nil, nil, nil
			rec.Task.Claims, rec.Task.ClaimUUID, rec.Task.Hostname = macs, uuid, t.Hostname
			if rec.Task.Previous == nil {
				rec.Task.Previous = previous
			}
			return nil
		})
		var claimed *store.ClaimError
		if errors.As(err, &claimed) && (len(macs) > 1 || uuid != "") {
			// The later task is held for a person; it keeps the one address it
			// was created with. That it is held already is found when the same
			// plan is about to be stored once more: whether the other task still
			// has the machine is asked each time.
			want.Problem = cmp.Or(want.Problem, "A part of this machine ("+claimed.Key+") belongs to live task "+claimed.Holder+". Cancel one of the two.")
			macs, uuid = []lpmos.MAC{t.TargetMAC}, ""
			continue
		}
		return err
	}
}

// identity is what a task claims of a machine: all NICs and the UUID, if the
// maker set one.
func identity(t lpmos.Task, h *lpmos.Hardware) ([]lpmos.MAC, string) {
	macs := []lpmos.MAC{t.TargetMAC}
	for _, m := range h.MACs() {
		if m != t.TargetMAC && len(macs) < maxClaims {
			macs = append(macs, m)
		}
	}
	return macs, lpmos.CanonicalUUID(h.System.UUID)
}

// permit grants an attempt, or the next one to an agent that was cut off in the
// middle of one. The transaction compares the status key, as cancel does.
func (o *Orchestrator) permit(ctx context.Context, t lpmos.Task, req *lpmos.PermitRequest, cause lpmos.Cause) error {
	var refused *lpmos.Failure
	fingerprint := req.AgentKey.Fingerprint()
	move := store.Move{Cause: cause, By: byAgent, Gate: &store.Gate{Limit: o.read.PermitLimit()}}
	otherKey := false
	_, err := o.put.Transition(ctx, t.ID, move, func(rec *store.Record, m *store.Move) error {
		refused, otherKey = nil, false
		task := &rec.Task
		if rec.Permit != nil && rec.Permit.Nonce == req.Nonce {
			if task.Status == lpmos.Installing && rec.Permit.Attempt == task.Attempt {
				o.granted[task.ID] = grant{task.Attempt, req.Nonce}
			}
			return errNothing
		}
		if req.Attempt != task.Attempt || task.Approval == nil || task.Plan == nil {
			return errNothing
		}
		attempt := task.Attempt
		if cause == lpmos.CauseNextAttempt {
			attempt++
		}
		a := task.Approval
		switch {
		case a.KeyCompared && a.AgentKey != fingerprint && cause == lpmos.CausePermitGranted:
			otherKey = true
			return errNothing
		case a.KeyCompared && a.AgentKey != fingerprint:
			refused = &lpmos.Failure{
				Code: "agent_key_changed", Cause: "The machine started again in the middle of the install; its approval was for the boot whose key was compared with the console.",
				NextStep: "Retry the task, compare the new words on the machine's console, and approve.",
			}
		case req.PlanDigest != a.PlanDigest || req.HardwareDigest != a.HardwareDigest:
			refused = &lpmos.Failure{Code: "approval_mismatch", Cause: "The machine asked to write for a plan that was not approved.", NextStep: "Look at the hardware and the plan, then retry."}
		case attempt > a.LastAttempt:
			refused = &lpmos.Failure{
				Code: "attempts_exhausted", Cause: fmt.Sprintf("The machine was cut off in %d attempts.", a.LastAttempt-a.FirstAttempt+1),
				NextStep: "Find out why it restarts (power, memory, watchdog), then retry.",
			}
		case attempt == a.FirstAttempt && o.now().After(a.ExpiresAt):
			refused = &lpmos.Failure{Code: "approval_expired", Cause: "The approval had expired when the machine wanted to begin.", NextStep: "Retry and approve again."}
		}
		if refused != nil {
			return errNothing
		}
		p := lpmos.Permit{
			TaskID: task.ID, Attempt: attempt, Nonce: req.Nonce, AgentKey: fingerprint, PlanDigest: a.PlanDigest, HardwareDigest: a.HardwareDigest, GrantedAt: o.now().UTC(),
		}
		p.Sign(o.cfg.Key)
		if err := o.reseal(rec, &p, req.AgentKey); err != nil {
			refused = &lpmos.Failure{Code: "secrets_missing", Cause: "The secrets of this task cannot be opened.", NextStep: "Create the task again with its secrets.", Evidence: err.Error()}
			return errNothing
		}
		rec.Permit, task.Attempt = &p, attempt
		m.Message = "The machine may write; erasing begins."
		if cause == lpmos.CauseNextAttempt {
			task.Progress = nil
			m.Message = fmt.Sprintf("The machine came back in the middle of an install and begins again (attempt %d).", attempt)
		}
		return nil
	})
	var held *store.HeldError
	switch {
	case refused != nil:
		return o.fail(ctx, t, lpmos.CauseFailed, refused)
	case otherKey:
		_, err := o.put.Transition(ctx, t.ID, store.Move{Cause: lpmos.CauseApprovalExpired, By: bySelf,
			Message: "The machine started again since its key words were compared; the approval is void. Compare the new words."},
			func(rec *store.Record, _ *store.Move) error {
				if rec.Task.Attempt != t.Attempt || rec.Task.Approval == nil || rec.Task.Approval.AgentKey == fingerprint {
					return errNothing
				}
				rec.Task.Approval, rec.Permit = nil, nil
				return nil
			})
		return err
	case errors.As(err, &held):
		o.log.Debug("permit held", "task", t.ID, "reason", held.Reason)
		return errNothing // looked at again with the next tick
	}
	return err
}

// asksNow reports whether the request for a permit is of the boot that answers
// for the machine, with the key that boot registered.
func asksNow(r api.Reports) bool {
	k := r.Permit.AgentKey
	return k != nil && k.Validate() == nil && r.Agent != nil && r.Agent.Key != nil && r.Agent.Key.Fingerprint() == k.Fingerprint()
}

// reseal closes the task's secrets for the agent that may write.
func (o *Orchestrator) reseal(rec *store.Record, p *lpmos.Permit, key *lpmos.AgentPublic) error {
	if len(rec.Task.Committed) == 0 {
		return nil
	}
	if rec.Secrets == nil || o.vault == nil {
		return fmt.Errorf("secrets of task %s: %w", p.TaskID, lpmos.ErrNotFound)
	}
	set, err := o.vault.OpenTask(p.TaskID, rec.Secrets.AtRest)
	if err != nil {
		return err
	}
	sealed, err := key.Seal(lpmos.SecretContext(p.TaskID, p.Attempt, p.PlanDigest), set.Expose())
	if err != nil {
		return err
	}
	s := *rec.Secrets
	s.ForAgent = &lpmos.AgentSeal{Attempt: p.Attempt, AgentKey: p.AgentKey, Sealed: sealed}
	rec.Secrets = &s
	return nil
}

// alarm puts what a region's agent server saw on the task's timeline: the first
// of a kind, and then each time ten times as many.
func (o *Orchestrator) alarm(ctx context.Context, t lpmos.Task, a *lpmos.Alarm) error {
	told := func(was *lpmos.Alarm) bool { return was != nil && was.Code == a.Code && a.Count < 10*was.Count }
	if told(t.Alarm) {
		return errNothing
	}
	message := a.Message + " It came from " + a.Address + "."
	if a.Count > 1 {
		message += fmt.Sprintf(" It happened %d times.", a.Count)
	}
	_, err := o.put.Transition(ctx, t.ID, store.Move{Cause: lpmos.CauseAlarm, By: bySelf, Message: message}, func(rec *store.Record, _ *store.Move) error {
		if rec.Task.Attempt != t.Attempt || rec.Task.Status != t.Status || told(rec.Task.Alarm) {
			return errNothing
		}
		rec.Task.Alarm = a
		return nil
	})
	if err == nil {
		o.log.Error("alarm", "task", t.ID, "code", a.Code, "addr", a.Address, "count", a.Count)
	}
	return err
}

// booted completes a task: the installed system ran from its disk and reported.
func (o *Orchestrator) booted(ctx context.Context, t lpmos.Task, r api.Reports) error {
	root, whole := "", false
	if t.Plan != nil {
		fs, made := t.Plan.Effect.Root()
		root, whole = fs.UUID, !made
	}
	// A whole-disk image has identifiers of its own, which every copy has, and
	// those that an installer makes are not known: the disk the system runs from
	// says which it is.
	if whole && !t.Plan.Effect.RunsFrom(r.Booted.RootDisk) || !whole && (root == "" || r.Booted.RootFSUUID != root) {
		return o.fail(ctx, t, lpmos.CauseFailed, &lpmos.Failure{
			Code:     "booted_other_system",
			Cause:    fmt.Sprintf("A system called home whose root filesystem is %q, on disk %s, not the one that was installed (%q, %s).", r.Booted.RootFSUUID, r.Booted.RootDisk, root, effectTarget(t)),
			NextStep: "See which disk the firmware boots first.",
		})
	}
	drift := t.Plan.Compare(r.Booted, t.Hardware)
	said := "The installed system booted from its disk and called home."
	if len(drift) > 0 {
		said += " " + lpmos.DriftSentence(drift)
	}
	_, err := o.put.Transition(ctx, t.ID, store.Move{Cause: lpmos.CauseCalledHome, By: byAgent, Message: said},
		func(rec *store.Record, _ *store.Move) error {
			if rec.Task.Attempt != t.Attempt || rec.Task.Status != t.Status {
				return errNothing
			}
			rec.Task.Receipt, rec.Task.Error, rec.Task.Drift = r.Booted, nil, drift
			if tail := logTail(o.read.Log(t.ID)); tail != nil {
				rec.Task.LogTail = tail
			}
			return nil
		})
	return err
}

func effectTarget(t lpmos.Task) lpmos.DiskRef {
	if t.Plan == nil {
		return lpmos.DiskRef{}
	}
	return t.Plan.Effect.Target
}

// fail ends a task for a cause and with a next step.
func (o *Orchestrator) fail(ctx context.Context, t lpmos.Task, cause lpmos.Cause, f *lpmos.Failure) error {
	failure := lpmos.Failure{Code: "unknown", Cause: "The agent reported a failure without saying which.", NextStep: "Read the log, then retry."}
	if f != nil {
		failure = *f
	}
	r := o.read.Reports(t.ID)
	failure.Attempt, failure.At = t.Attempt, o.now().UTC()
	by := byAgent
	if cause == lpmos.CauseDeadline {
		by = bySelf
	}
	_, err := o.put.Transition(ctx, t.ID, store.Move{Cause: cause, By: by, Message: failure.Cause}, func(rec *store.Record, _ *store.Move) error {
		if rec.Task.Attempt != t.Attempt || rec.Task.Status != t.Status {
			return errNothing
		}
		rec.Task.Error, rec.Task.LogTail = &failure, logTail(o.read.Log(t.ID))
		if p := r.Progress; p != nil && p.After(rec.Task.Progress) {
			rec.Task.Progress = p
		}
		return nil
	})
	return err
}

// deadline ends what has stood still for too long.
func (o *Orchestrator) deadline(ctx context.Context, t lpmos.Task, r api.Reports) error {
	if !t.Status.Live() {
		return nil
	}
	s := o.watch[t.ID]
	var contact int64 // nothing but the next status counts
	switch t.Status {
	case lpmos.Approved:
		contact = r.Rev
	case lpmos.Installing:
		contact = r.ProgressRev // a machine that starts again and again says much, and does nothing
	}
	if s == nil || s.status != t.Status || s.attempt != t.Attempt || s.rev != contact {
		now := &sight{status: t.Status, attempt: t.Attempt, rev: contact, since: o.now(), seen: r.Rev}
		if s != nil {
			now.folded, now.foldedLog = s.folded, s.foldedLog
		}
		o.watch[t.ID] = now
		return nil
	}
	s.seen = r.Rev
	stood := o.now().Sub(s.since)
	switch t.Status {
	case lpmos.Pending:
		if stood > o.cfg.PendingDeadline {
			return o.fail(ctx, t, lpmos.CauseDeadline, &lpmos.Failure{Code: "never_booted", Cause: "The machine never booted the agent.", NextStep: "Check its power, its cabling and that it boots from the network, then retry."})
		}
	case lpmos.AwaitingApproval:
		if stood > o.cfg.PendingDeadline {
			return o.fail(ctx, t, lpmos.CauseDeadline, &lpmos.Failure{Code: "nobody_decided", Cause: "Nobody decided about this task.", NextStep: "Retry it when somebody can."})
		}
	case lpmos.Approved:
		if stood > o.cfg.ApprovedDeadline {
			_, err := o.put.Transition(ctx, t.ID, store.Move{Cause: lpmos.CauseApprovalExpired, By: bySelf, Message: "The machine was not heard of; the approval is void."},
				func(rec *store.Record, _ *store.Move) error {
					rec.Task.Approval, rec.Permit = nil, nil
					return nil
				})
			return err
		}
	case lpmos.Installing:
		if stood > o.cfg.InstallingDeadline {
			f := &lpmos.Failure{Code: "install_stalled", Cause: "The install made no progress for " + lpmos.FormatDuration(stood) + ".", NextStep: "Look at the machine's console: is it off, or does it start again and again? Then retry."}
			if p := t.Progress; p != nil {
				f.Stage, f.Evidence = p.Stage, p.Message
			}
			return o.fail(ctx, t, lpmos.CauseDeadline, f)
		}
	case lpmos.Verifying:
		if stood > o.cfg.VerifyingDeadline {
			return o.fail(ctx, t, lpmos.CauseDeadline, &lpmos.Failure{
				Code: store.CodeVerifyDeadline, Cause: "The installed system did not call home within " + lpmos.FormatDuration(o.cfg.VerifyingDeadline) + ".",
				NextStep: "Look at the machine's console: does it boot its own disk, and can it reach the region? If it reports later, the task completes by itself.",
			})
		}
	}
	return nil
}

func (o *Orchestrator) fold(ctx context.Context, t lpmos.Task, r api.Reports) error {
	s := o.watch[t.ID]
	if s == nil || r.Progress == nil || r.Progress.Attempt != t.Attempt || o.now().Sub(s.folded) < foldEvery || r.Rev == s.seen {
		return nil
	}
	s.folded = o.now()
	var tail []string
	if o.now().Sub(s.foldedLog) >= foldLogEvery {
		s.foldedLog, tail = o.now(), logTail(o.read.Log(t.ID))
	}
	return o.put.FoldProgress(ctx, r.Progress, tail)
}

// finished is the progress an attempt ends on.
func finished(t lpmos.Task, r api.Reports) *lpmos.Progress {
	p := t.Progress
	if r.Progress != nil && r.Progress.After(p) {
		p = r.Progress
	}
	return p
}

// logTail is what is kept of a log in the task itself, for when its region has
// cleared the rest away.
func logTail(log []string) []string {
	const lines, size = 500, 64 << 10
	if len(log) > lines {
		log = log[len(log)-lines:]
	}
	n := 0
	for i := len(log) - 1; i >= 0; i-- {
		if n += len(log[i]) + 1; n > size {
			return log[i+1:]
		}
	}
	return log
}
