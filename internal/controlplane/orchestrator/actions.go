package orchestrator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

// Create stores a new task, with what its profile says where the spec does not,
// after checking that its region and image exist.
func (o *Orchestrator) Create(ctx context.Context, spec lpmos.Spec, by, idempotencyKey string) (lpmos.Task, error) {
	request := lpmos.DigestOf(spec)
	t, err := o.create(ctx, spec, request, by, idempotencyKey)
	if err != nil && idempotencyKey != "" {
		// The same request is the same task, also when the profile has changed
		// since, or the machine was locked.
		if first, known, kerr := o.put.KnownTask(ctx, by, idempotencyKey, request); kerr != nil || known {
			return first, kerr
		}
	}
	return t, err
}

func (o *Orchestrator) create(ctx context.Context, spec lpmos.Spec, request, by, idempotencyKey string) (lpmos.Task, error) {
	spec, err := o.Resolve(spec)
	if err != nil {
		return lpmos.Task{}, err
	}
	if err := o.mayInstall(spec.TargetMAC); err != nil {
		return lpmos.Task{}, err
	}
	n := store.NewTask{Spec: spec, By: by, Key: idempotencyKey, Request: request}
	if n.Committed, n.Seal, err = o.sealed(&n.Spec); err != nil {
		return lpmos.Task{}, err
	}
	t, err := o.put.Create(ctx, n)
	if err == nil {
		o.log.Info("task created", "task", t.ID, "region", t.RegionID, "mac", t.TargetMAC, "by", by, "rev", t.Rev)
	}
	return t, err
}

func among(known []string) string {
	if len(known) == 0 {
		return " (there is none yet)"
	}
	return " (there is " + strings.Join(known, ", ") + ")"
}

// Decide approves or rejects a plan. An approval is bound to the plan that was
// displayed: with another digest nothing is approved and the error is a
// *StalePlanError.
func (o *Orchestrator) Decide(ctx context.Context, id string, d api.Decision, by string) (lpmos.Task, error) {
	if len(d.Notes) > lpmos.MaxNotesBytes {
		return lpmos.Task{}, &lpmos.InvalidError{Field: "notes", Problem: "is longer than 2 KiB"}
	}
	cause := lpmos.CauseApproved
	if !d.Approved {
		cause = lpmos.CauseRejected
	}
	agent := o.read.Reports(id).Agent
	t, err := o.put.Transition(ctx, id, store.Move{Cause: cause, By: by, Message: d.Notes, Vet: d.Approved}, func(rec *store.Record, m *store.Move) error {
		task := &rec.Task
		plan := task.Plan
		a := lpmos.Approval{TaskID: id, Approved: d.Approved, Notes: d.Notes, By: by, At: o.now().UTC()}
		if plan != nil {
			a.PlanDigest, a.HardwareDigest = plan.Digest, plan.HardwareDigest
		}
		if d.Approved {
			switch {
			case plan == nil:
				return &lpmos.ConflictError{Status: task.Status, Problem: "the task has no plan yet"}
			case d.PlanDigest != "" && d.PlanDigest != plan.Digest:
				return &StalePlanError{Shown: d.PlanDigest, Plan: *plan}
			case d.PlanDigest == "" && plan.ErasesData():
				return &StalePlanError{Plan: *plan}
			case plan.Problem != "":
				return &lpmos.ConflictError{Status: task.Status, Problem: "this plan cannot be carried out: " + plan.Problem}
			case d.SerialEnd != "" && !api.SerialEndsMatch(plan, d.SerialEnd):
				return &lpmos.InvalidError{Field: "serial_end", Problem: "is not how the serial number of the disk to be erased ends", Value: d.SerialEnd}
			}
			needs := rec.Policy.For(task)
			if err := o.mayApprove(rec, d.Approver, by, needs); err != nil {
				return err
			}
			if agent != nil && agent.Key != nil && agent.Attempt == task.Attempt {
				a.AgentKey = agent.Key.Fingerprint()
			}
			if d.AgentKey != "" {
				if d.AgentKey != a.AgentKey {
					return &lpmos.ConflictError{Status: task.Status, Problem: "the machine's key is not the one whose words were compared: it started again, or another machine answers for it; " +
						"compare the words again, now they are " + lpmos.KeyWords(a.AgentKey)}
				}
				a.KeyCompared = true
				m.Message = strings.TrimSpace(m.Message + " The key words were compared with the machine's console.")
			}
			mine := lpmos.Consent{By: by, At: a.At, Notes: d.Notes, PlanDigest: a.PlanDigest, HardwareDigest: a.HardwareDigest}
			if a.KeyCompared {
				mine.AgentKey = a.AgentKey
			}
			standing, void := o.standing(rec, by, a.AgentKey, needs)
			given := append(standing, mine)
			m.Message = strings.TrimSpace(m.Message + " " + strings.Join(void, " "))
			if needs.Approvers > 1 {
				m.Message = strings.TrimSpace(m.Message + " (" + api.Given(needs, given) + ")")
			}
			if len(given) < needs.Approvers {
				m.Cause, task.Approvals, task.ApprovalNeeds = lpmos.CauseApprovalGiven, given, &needs
				return nil
			}
			if len(given) > 1 {
				a.Approvers = given
				a.KeyCompared = slices.ContainsFunc(given, func(c lpmos.Consent) bool { return c.AgentKey != "" })
			}
			a.ExpiresAt = a.At.Add(o.cfg.ApprovalTTL)
			a.FirstAttempt, a.LastAttempt = task.Attempt, task.Attempt+o.cfg.MaxAttempts-1
			a.Sign(o.cfg.Key)
			// The machine is trusted from its first approval on, and by its TPM.
			if h := task.Hardware; h != nil && task.TPM == nil && h.TPM.Fingerprint() != "" {
				task.TPM = &lpmos.TPMBinding{TPM: *h.TPM, By: by, At: a.At, TaskID: id}
			}
		}
		if !d.Approved {
			task.LogTail = logTail(o.read.Log(id)) // the region clears it away
		}
		task.Approval, rec.Permit = &a, nil
		return nil
	})
	if err == nil {
		o.log.Info("task decided", "task", id, "approved", d.Approved, "by", by, "rev", t.Rev)
	}
	return t, o.decided(ctx, t, err)
}

// mayApprove says why somebody may not give the approval of a task, or nil. The
// users of the record are as they are in the store now.
func (o *Orchestrator) mayApprove(rec *store.Record, who api.Approver, by string, needs lpmos.ApprovalNeeds) error {
	task := &rec.Task
	if u, known := rec.Users[by]; who.User && (!known || !u.May(lpmos.Approver, task.RegionID)) {
		return fmt.Errorf("%w: %s may not approve in region %s any more; nothing was approved", lpmos.ErrForbidden, by, task.RegionID)
	}
	if bar := needs.Bar(task, by, who.User); bar != "" {
		return &api.BarError{Bar: bar, By: by, Needs: needs, Given: task.Standing()}
	}
	if needs.ReauthMinutes == 0 || who.Token && needs.AllowTokens {
		return nil
	}
	if age := o.now().Sub(who.ProvedAt); who.ProvedAt.IsZero() || age > time.Duration(needs.ReauthMinutes)*time.Minute {
		return &api.ReauthError{Minutes: needs.ReauthMinutes, Token: who.Token}
	}
	return nil
}

// standing are the approvals that one more, by somebody, adds to: of this plan,
// not too old, by users who still may give them, and of the boot that answers
// where they compared its key. void says of the others why they count no more.
func (o *Orchestrator) standing(rec *store.Record, by, agentKey string, needs lpmos.ApprovalNeeds) (given []lpmos.Consent, void []string) {
	task := &rec.Task
	for _, c := range task.Standing() {
		if c.By == by {
			continue // it took several when they gave it, and does no more
		}
		u, known := rec.Users[c.By]
		var why string
		switch {
		case !known || !u.May(lpmos.Approver, task.RegionID):
			why = "who may not approve any more"
		case needs.NotCreator && c.By == task.CreatedBy:
			why = "who asked for the task"
		case o.now().Sub(c.At) > o.cfg.ApprovalTTL:
			why = "which is too old"
		case c.AgentKey != "" && c.AgentKey != agentKey:
			why = "because the machine started again since its key words were compared"
		default:
			given = append(given, c)
			continue
		}
		void = append(void, fmt.Sprintf("The approval of %s does not count, %s.", c.By, why))
	}
	return given, void
}

// decided names who was quicker when a decision came too late: the person whom
// the last event is by.
func (o *Orchestrator) decided(ctx context.Context, t lpmos.Task, err error) error {
	c, ok := err.(*lpmos.ConflictError)
	if !ok || t.ID == "" {
		return err
	}
	what := map[lpmos.Cause]string{lpmos.CauseApproved: "approved", lpmos.CauseRejected: "rejected", lpmos.CauseCanceled: "canceled"}
	events, _ := o.put.Events(ctx, t.ID) // without them the answer only says less
	for _, e := range slices.Backward(events) {
		if verb, ok := what[e.Cause]; ok {
			return &lpmos.ConflictError{Status: c.Status, Problem: fmt.Sprintf("%s; it was %s by %s at %s", c.Problem, verb, e.By, e.At.Format("2006-01-02 15:04:05 UTC"))}
		}
		if e.Attempt != t.Attempt {
			break
		}
	}
	return err
}

// StalePlanError says that nothing was approved, because the plan is not the
// one that was displayed, or because none was named and data would be erased.
type StalePlanError struct {
	Shown string // digest that came with the decision, "" if none did
	Plan  lpmos.Plan
}

func (e *StalePlanError) Error() string {
	if e.Shown == "" {
		return "the plan erases what was found on " + erasedDisks(e.Plan) + ": look at it and send its plan_digest " + e.Plan.Digest
	}
	return "the plan changed since it was displayed: nothing was approved; look at it again (its plan_digest is " + e.Plan.Digest + ")"
}

// erasedDisks names the disks on which something was found.
func erasedDisks(p lpmos.Plan) string {
	var names []string
	for _, d := range p.Erased() {
		names = append(names, d.Disk.String())
	}
	if len(names) == 0 {
		return p.Effect.Target.String()
	}
	return strings.Join(names, " and ")
}

// Is makes a StalePlanError an lpmos.ErrConflict.
func (e *StalePlanError) Is(target error) bool { return target == lpmos.ErrConflict }

// Cancel ends a task that has not begun to write.
func (o *Orchestrator) Cancel(ctx context.Context, id, reason, by string) (lpmos.Task, error) {
	if len(reason) > lpmos.MaxNotesBytes {
		return lpmos.Task{}, &lpmos.InvalidError{Field: "reason", Problem: "is longer than 2 KiB"}
	}
	t, err := o.put.Transition(ctx, id, store.Move{Cause: lpmos.CauseCanceled, By: by, Message: reason}, func(rec *store.Record, _ *store.Move) error {
		rec.Task.LogTail = logTail(o.read.Log(id))
		return nil
	})
	if err == nil {
		o.log.Info("task canceled", "task", id, "by", by, "rev", t.Rev)
	}
	return t, o.decided(ctx, t, err)
}

// Retry begins a failed task anew: the machine is claimed again, the approval
// is void, and the next attempt waits for the machine to report.
func (o *Orchestrator) Retry(ctx context.Context, id, by string) (lpmos.Task, error) {
	t, err := o.put.Transition(ctx, id, store.Move{Cause: lpmos.CauseRetried, By: by}, func(rec *store.Record, m *store.Move) error {
		t := &rec.Task
		t.Attempt++
		t.Hardware, t.Plan, t.Approval, t.Progress, t.Error, t.Receipt, t.Drift, rec.Permit = nil, nil, nil, nil, nil, nil, nil, nil
		t.Alarm = nil
		t.Claims, t.ClaimUUID = []lpmos.MAC{t.TargetMAC}, ""
		m.Message = fmt.Sprintf("Attempt %d begins when the machine boots from the network.", t.Attempt)
		return nil
	})
	if err == nil {
		o.log.Info("task retried", "task", id, "by", by, "attempt", t.Attempt, "rev", t.Rev)
	}
	return t, err
}

// Delete forgets a task that has ended.
func (o *Orchestrator) Delete(ctx context.Context, id, by string) error {
	if err := o.put.DeleteTask(ctx, id); err != nil {
		return err
	}
	o.log.Info("task deleted", "task", id, "by", by)
	return nil
}

// CurrentPlan is the plan as it is now.
func (e *StalePlanError) CurrentPlan() lpmos.Plan { return e.Plan }
