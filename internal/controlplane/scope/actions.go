package scope

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// Orchestrator is what decides, for everybody.
type Orchestrator interface {
	Create(ctx context.Context, spec lpmos.Spec, by, idempotencyKey string) (lpmos.Task, error)
	Decide(ctx context.Context, id string, d api.Decision, by string) (lpmos.Task, error)
	Cancel(ctx context.Context, id, reason, by string) (lpmos.Task, error)
	Retry(ctx context.Context, id, by string) (lpmos.Task, error)
	Delete(ctx context.Context, id, by string) error
	PutProfile(ctx context.Context, p lpmos.Profile, based int, by string) (lpmos.Profile, error)
	DeleteProfile(ctx context.Context, name string, based int, by string) error
	PutTemplate(ctx context.Context, t lpmos.Template, based int, by string) (lpmos.Template, error)
	DeleteTemplate(ctx context.Context, name string, based int, by string) error
	DeleteImage(ctx context.Context, os, version, arch string, rev int64, by string) error
	SignImage(i *lpmos.Image)
	Preview(template, taskID string) (string, error)
	CheckBatch(specs []lpmos.Spec) ([]lpmos.Spec, error)
	CreateBatch(ctx context.Context, specs []lpmos.Spec, by, idempotencyKey string) (lpmos.Batch, error)
	Batch(ctx context.Context, id string) (lpmos.Batch, error)
	Stop(ctx context.Context, reason, by string) (lpmos.Stop, error)
	Resume(ctx context.Context, by string) error
	Lock(ctx context.Context, mac lpmos.MAC, reason, by string) (lpmos.Lock, error)
	Unlock(ctx context.Context, mac lpmos.MAC, by string) error
	ForgetTPM(ctx context.Context, mac lpmos.MAC, by string) error
	SetLimits(ctx context.Context, l lpmos.Limits, based, by string) (lpmos.Limits, error)
	SetApprovalPolicy(ctx context.Context, p lpmos.ApprovalPolicy, based, by string) (lpmos.ApprovalPolicy, error)
}

// Actions is the orchestrator as one principal may use it. Every method asks
// for the permission itself, whichever route led to it; by is always the
// principal's own name.
type Actions struct {
	r *Reader
	o Orchestrator
	// regionOf finds the region of a task that is not in memory yet.
	regionOf func(ctx context.Context, id string) (string, error)
}

// Act gives the orchestrator as p may use it. regionOf asks the store for the
// region of a task; nil knows only what is in memory.
func Act(m Model, o Orchestrator, regionOf func(ctx context.Context, id string) (string, error), p auth.Principal) *Actions {
	return &Actions{Read(m, p), o, regionOf}
}

// may says why something may not be done to a task.
func (a *Actions) may(ctx context.Context, need auth.Permission, id string) error {
	if err := a.r.p.May(need); err != nil || a.r.all() || !lpmos.ValidTaskID(id) {
		return err // the orchestrator says what is wrong with an id
	}
	region, ok := a.r.m.TaskRegion(id)
	if !ok && a.regionOf != nil {
		var err error
		if region, err = a.regionOf(ctx, id); err != nil {
			return err
		}
	}
	if !a.r.p.Sees(region) {
		return unknown(id)
	}
	return nil
}

func (a *Actions) by() string { return a.r.p.Name }

// Create asks for an installation.
func (a *Actions) Create(ctx context.Context, spec lpmos.Spec, _, key string) (lpmos.Task, error) {
	if err := a.r.p.May(auth.Operate); err != nil {
		return lpmos.Task{}, err
	}
	if err := a.in(spec.RegionID); err != nil {
		return lpmos.Task{}, err
	}
	return a.o.Create(ctx, spec, a.by(), key)
}

// in refuses a region that is not seen, before anything tells whether it exists.
func (a *Actions) in(region string) error {
	if a.r.all() || !lpmos.ValidRegionID(region) {
		return nil // the orchestrator says what is wrong with it
	}
	return a.r.p.MayIn(auth.Operate, region)
}

// Decide approves or rejects.
func (a *Actions) Decide(ctx context.Context, id string, d api.Decision, _ string) (lpmos.Task, error) {
	if err := a.may(ctx, auth.Approve, id); err != nil {
		return lpmos.Task{}, err
	}
	d.Approver = a.r.p.Approver()
	return a.o.Decide(ctx, id, d, a.by())
}

// Cancel ends a task before anything is written.
func (a *Actions) Cancel(ctx context.Context, id, reason, _ string) (lpmos.Task, error) {
	if err := a.may(ctx, auth.Operate, id); err != nil {
		return lpmos.Task{}, err
	}
	return a.o.Cancel(ctx, id, reason, a.by())
}

// Retry begins a failed task anew.
func (a *Actions) Retry(ctx context.Context, id, _ string) (lpmos.Task, error) {
	if err := a.may(ctx, auth.Operate, id); err != nil {
		return lpmos.Task{}, err
	}
	return a.o.Retry(ctx, id, a.by())
}

// Delete forgets a task that has ended.
func (a *Actions) Delete(ctx context.Context, id, _ string) error {
	if err := a.may(ctx, auth.Operate, id); err != nil {
		return err
	}
	return a.o.Delete(ctx, id, a.by())
}

// PutProfile changes a profile.
func (a *Actions) PutProfile(ctx context.Context, p lpmos.Profile, based int, _ string) (lpmos.Profile, error) {
	if err := a.r.p.May(auth.Configure); err != nil {
		return p, err
	}
	return a.o.PutProfile(ctx, p, based, a.by())
}

// DeleteProfile removes a profile.
func (a *Actions) DeleteProfile(ctx context.Context, name string, based int, _ string) error {
	if err := a.r.p.May(auth.Configure); err != nil {
		return err
	}
	return a.o.DeleteProfile(ctx, name, based, a.by())
}

// PutTemplate changes a template.
func (a *Actions) PutTemplate(ctx context.Context, t lpmos.Template, based int, _ string) (lpmos.Template, error) {
	if err := a.r.p.May(auth.Configure); err != nil {
		return t, err
	}
	return a.o.PutTemplate(ctx, t, based, a.by())
}

// DeleteTemplate removes a template.
func (a *Actions) DeleteTemplate(ctx context.Context, name string, based int, _ string) error {
	if err := a.r.p.May(auth.Configure); err != nil {
		return err
	}
	return a.o.DeleteTemplate(ctx, name, based, a.by())
}

// DeleteImage takes an image out of the catalogue.
func (a *Actions) DeleteImage(ctx context.Context, os, version, arch string, rev int64, _ string) error {
	if err := a.r.p.May(auth.Administer); err != nil {
		return err
	}
	return a.o.DeleteImage(ctx, os, version, arch, rev, a.by())
}

// SignImage signs an entry of the catalogue that is about to be stored; of who
// may not store one it stays unsigned, which nothing installs.
func (a *Actions) SignImage(i *lpmos.Image) {
	if a.r.p.May(auth.Administer) == nil {
		a.o.SignImage(i)
	}
}

// Preview renders a template for a task, or for a sample machine.
func (a *Actions) Preview(template, taskID string) (string, error) {
	if err := a.r.p.May(auth.See); err != nil {
		return "", err
	}
	if taskID != "" && lpmos.ValidTaskID(taskID) && !a.r.sees(taskID) {
		return "", unknown(taskID)
	}
	return a.o.Preview(template, taskID)
}

// CheckBatch checks the lines of a batch: all that is wrong with any of them.
func (a *Actions) CheckBatch(specs []lpmos.Spec) ([]lpmos.Spec, error) {
	if err := a.r.p.May(auth.Operate); err != nil {
		return nil, err
	}
	checked, err := a.o.CheckBatch(specs)
	if a.r.all() {
		return checked, err
	}
	bad := &lpmos.BatchError{}
	if e, ok := errors.AsType[*lpmos.BatchError](err); ok {
		bad.Lines = append(bad.Lines, e.Lines...)
	} else if err != nil {
		return nil, err
	}
	// Of a line for a region that is not seen, nothing else is said.
	var lines []lpmos.BatchLine
	outside := map[int]bool{}
	for i, s := range specs {
		if e := a.in(s.RegionID); e != nil {
			outside[i+1] = true
			lines = append(lines, lpmos.BatchLine{Line: i + 1, Field: "region_id", Detail: e.Error()})
		}
	}
	for _, l := range bad.Lines {
		if !outside[l.Line] {
			lines = append(lines, l)
		}
	}
	if len(lines) > 0 {
		return nil, &lpmos.BatchError{Lines: lines}
	}
	return checked, nil
}

// CreateBatch asks for many installations.
func (a *Actions) CreateBatch(ctx context.Context, specs []lpmos.Spec, _, key string) (lpmos.Batch, error) {
	if err := a.r.p.May(auth.Operate); err != nil {
		return lpmos.Batch{}, err
	}
	// Only where lines are outside is checked here: the same request once more
	// finds its machines busy with its own tasks, which the orchestrator knows.
	if slices.ContainsFunc(specs, func(s lpmos.Spec) bool { return a.in(s.RegionID) != nil }) {
		_, err := a.CheckBatch(specs)
		return lpmos.Batch{}, err
	}
	return a.o.CreateBatch(ctx, specs, a.by(), key)
}

// Batch is a batch. Who is limited to regions sees their own: the others' may
// name machines anywhere.
func (a *Actions) Batch(ctx context.Context, id string) (lpmos.Batch, error) {
	if err := a.r.p.May(auth.See); err != nil {
		return lpmos.Batch{}, err
	}
	b, err := a.o.Batch(ctx, id)
	if err == nil && !a.r.all() && b.CreatedBy != a.by() {
		return lpmos.Batch{}, fmt.Errorf("batch %s: %w", lpmos.Shorten(id, 64), lpmos.ErrNotFound)
	}
	return b, err
}
