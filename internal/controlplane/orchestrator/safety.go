package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
)

// mayInstall refuses machines that no task may be created for.
func (o *Orchestrator) mayInstall(mac lpmos.MAC) error {
	macs, uuid := []lpmos.MAC{mac}, ""
	if m, ok := o.read.Machine(mac); ok {
		macs, uuid = append(macs, m.MACs...), m.UUID
	}
	if why := o.read.Protection(macs, uuid); why != "" {
		return &lpmos.ConflictError{Problem: "machine " + mac.String() + " must never be installed: " + why}
	}
	if l := o.read.Locked(mac); l != nil {
		return store.LockedError(mac, *l)
	}
	return nil
}

var errNoVault = errors.New("there is no key to seal secrets with")

// sealed takes the secrets out of a spec, with the password hashes of its
// profile: commitments to them, and what seals
// them for the task they become part of.
func (o *Orchestrator) sealed(spec *lpmos.Spec) ([]lpmos.PlannedSecret, func(taskID string) string, error) {
	if err := spec.RequirePassphrase(); err != nil {
		return nil, nil, err
	}
	if spec.Profile != "" {
		p, err := o.profile(spec.Profile)
		if err != nil {
			return nil, nil, err
		}
		passwords, err := o.passwords(p)
		if err != nil {
			return nil, nil, err
		}
		// What the task says itself counts.
		all := map[string]lpmos.Secret{}
		maps.Copy(all, passwords)
		maps.Copy(all, spec.Secrets)
		spec.Secrets = all
	}
	if len(spec.Secrets) == 0 {
		return nil, nil, nil
	}
	if o.vault == nil {
		return nil, nil, errNoVault
	}
	set, err := lpmos.NewSecretSet(spec.Secrets)
	if err != nil {
		return nil, nil, err
	}
	spec.Secrets = nil
	return set.Planned(), func(taskID string) string { return o.vault.SealTask(taskID, set) }, nil
}

// maxReason bounds why somebody stopped or locked something.
const maxReason = lpmos.MaxNotesBytes

// Stop is the emergency stop: from its revision on no attempt may begin to
// write, in no region, until Resume. Installs that have begun go on.
func (o *Orchestrator) Stop(ctx context.Context, reason, by string) (lpmos.Stop, error) {
	reason = strings.TrimSpace(reason)
	if len(reason) > maxReason {
		return lpmos.Stop{}, &lpmos.InvalidError{Field: "reason", Problem: "is longer than 2 KiB"}
	}
	s := lpmos.Stop{By: by, Reason: reason, At: o.now().UTC()}
	rev, err := o.put.PutStop(ctx, s)
	if err != nil {
		return s, err
	}
	o.read.Reach(ctx, rev)
	o.log.Warn("emergency stop: no machine may begin to write", "by", by, "reason", reason)
	return s, nil
}

// Resume ends the emergency stop.
func (o *Orchestrator) Resume(ctx context.Context, by string) error {
	rev, err := o.put.DeleteStop(ctx)
	if err != nil {
		return err
	}
	o.read.Reach(ctx, rev)
	o.log.Warn("emergency stop ended", "by", by)
	return nil
}

// Lock keeps a machine as it is, by all addresses that are known of it.
func (o *Orchestrator) Lock(ctx context.Context, mac lpmos.MAC, reason, by string) (lpmos.Lock, error) {
	reason = strings.TrimSpace(reason)
	switch {
	case reason == "":
		return lpmos.Lock{}, &lpmos.InvalidError{Field: "reason", Problem: "is missing: whoever meets the lock wants to know why"}
	case len(reason) > maxReason:
		return lpmos.Lock{}, &lpmos.InvalidError{Field: "reason", Problem: "is longer than 2 KiB"}
	}
	l := lpmos.Lock{By: by, Reason: reason, At: o.now().UTC()}
	rev, err := o.put.PutLock(ctx, o.addresses(mac), l)
	if err != nil {
		return l, err
	}
	o.read.Reach(ctx, rev)
	o.log.Info("machine locked", "mac", mac, "by", by, "reason", reason)
	return l, nil
}

// Unlock takes the lock of a machine away. A task for it can be created at once.
func (o *Orchestrator) Unlock(ctx context.Context, mac lpmos.MAC, by string) error {
	rev, err := o.put.DeleteLock(ctx, o.addresses(mac))
	if err != nil {
		return err
	}
	o.read.Reach(ctx, rev)
	o.log.Info("machine unlocked", "mac", mac, "by", by)
	return nil
}

// ForgetTPM lets a machine come with another TPM, as after its mainboard was
// replaced: its next approval decides which.
func (o *Orchestrator) ForgetTPM(ctx context.Context, mac lpmos.MAC, by string) error {
	if o.read.TPM(mac) == nil {
		return fmt.Errorf("TPM of machine %s: %w", mac, lpmos.ErrNotFound)
	}
	rev, err := o.put.ForgetTPM(ctx, o.addresses(mac))
	if err != nil {
		return err
	}
	o.read.Reach(ctx, rev)
	o.log.Warn("TPM of machine forgotten", "mac", mac, "by", by)
	return nil
}

func (o *Orchestrator) addresses(mac lpmos.MAC) []lpmos.MAC {
	macs := []lpmos.MAC{mac}
	if m, ok := o.read.Machine(mac); ok {
		macs = append(macs, m.MACs...)
	}
	rest := slices.DeleteFunc(macs[1:], func(m lpmos.MAC) bool { return m == mac })
	return macs[:1+min(len(rest), 99)] // of which one transaction takes 128
}

// changed says that what of the site's configuration a change is based on, by
// its tag, is not what there is. "" stands for whatever there is.
func changed(what, based, tag string) error {
	if based == "" || based == tag {
		return nil
	}
	return fmt.Errorf("%s: %w: look at it again", what, lpmos.ErrChanged)
}

// configure changes the site's configuration. Who changes it again at once is to
// see this change, in what the read model answers.
func (o *Orchestrator) configure(ctx context.Context, edit func(*store.Global) error) error {
	rev, err := o.put.UpdateGlobal(ctx, edit)
	if err == nil {
		o.read.Reach(ctx, rev)
	}
	return err
}

// SetLimits changes what bounds the damage of a mistake. based is the Tag of the
// limits that were looked at, "" for whatever they are; others are an
// lpmos.ErrChanged.
func (o *Orchestrator) SetLimits(ctx context.Context, l lpmos.Limits, based, by string) (lpmos.Limits, error) {
	l, err := l.Normalize()
	if err != nil {
		return l, err
	}
	if err := o.configure(ctx, func(g *store.Global) error {
		was := g.Limits.Tag()
		g.Limits = l
		return changed("the limits", based, was)
	}); err != nil {
		return l, err
	}
	o.log.Info("limits changed", "permits_per_minute", l.PermitsPerMinute, "protected", len(l.Protected), "by", by)
	return l, nil
}

// SetApprovalPolicy changes what it takes to approve, for the decisions from
// its revision on. based is as in SetLimits.
func (o *Orchestrator) SetApprovalPolicy(ctx context.Context, p lpmos.ApprovalPolicy, based, by string) (lpmos.ApprovalPolicy, error) {
	p, err := p.Normalize()
	if err != nil {
		return p, err
	}
	if err := o.configure(ctx, func(g *store.Global) error {
		was := g.Approvals.Tag()
		g.Approvals = p
		return changed("the approval policy", based, was)
	}); err != nil {
		return p, err
	}
	o.log.Info("approval policy changed", "rules", len(p.Rules), "labels", len(p.Labels), "by", by)
	return p, nil
}
