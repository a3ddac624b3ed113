package scope

import (
	"context"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// Stopped is the emergency stop, which concerns everybody.
func (r *Reader) Stopped() *lpmos.Stop { return r.m.Stopped() }

// Limits are what bounds the damage of a mistake.
func (r *Reader) Limits() lpmos.Limits { return r.m.Limits() }

// ApprovalPolicy is what it takes to approve. Its labels name machines of every
// region, so who is limited to some sees them without.
func (r *Reader) ApprovalPolicy() lpmos.ApprovalPolicy {
	p := r.m.ApprovalPolicy()
	if !r.all() {
		names := map[string][]string{}
		for label := range p.Labels {
			names[label] = []string{}
		}
		p.Labels = names
	}
	return p
}

// Stop may be said by everybody who operates anything: it destroys nothing.
func (a *Actions) Stop(ctx context.Context, reason, _ string) (lpmos.Stop, error) {
	if err := a.r.p.May(auth.Operate); err != nil {
		return lpmos.Stop{}, err
	}
	return a.o.Stop(ctx, reason, a.by())
}

// Resume is of all regions, so who sees only some of them may not.
func (a *Actions) Resume(ctx context.Context, _ string) error {
	if err := a.everywhere(auth.Approve); err != nil {
		return err
	}
	return a.o.Resume(ctx, a.by())
}

// Lock keeps a machine as it is.
func (a *Actions) Lock(ctx context.Context, mac lpmos.MAC, reason, _ string) (lpmos.Lock, error) {
	if err := a.machine(auth.Operate, mac); err != nil {
		return lpmos.Lock{}, err
	}
	return a.o.Lock(ctx, mac, reason, a.by())
}

// Unlock takes a machine's lock away.
func (a *Actions) Unlock(ctx context.Context, mac lpmos.MAC, _ string) error {
	if err := a.machine(auth.Approve, mac); err != nil {
		return err
	}
	return a.o.Unlock(ctx, mac, a.by())
}

// ForgetTPM lets a machine come with another TPM: it decides which machine is
// believed, as an approval does.
func (a *Actions) ForgetTPM(ctx context.Context, mac lpmos.MAC, _ string) error {
	if err := a.machine(auth.Approve, mac); err != nil {
		return err
	}
	return a.o.ForgetTPM(ctx, mac, a.by())
}

// SetLimits changes what bounds the damage of a mistake.
func (a *Actions) SetLimits(ctx context.Context, l lpmos.Limits, based, _ string) (lpmos.Limits, error) {
	if err := a.r.p.May(auth.Administer); err != nil {
		return l, err
	}
	return a.o.SetLimits(ctx, l, based, a.by())
}

// SetApprovalPolicy changes what it takes to approve.
func (a *Actions) SetApprovalPolicy(ctx context.Context, p lpmos.ApprovalPolicy, based, _ string) (lpmos.ApprovalPolicy, error) {
	if err := a.r.p.May(auth.Administer); err != nil {
		return p, err
	}
	return a.o.SetApprovalPolicy(ctx, p, based, a.by())
}

// everywhere asks for a permission that is not limited to regions.
func (a *Actions) everywhere(need auth.Permission) error {
	if !a.r.all() {
		need = auth.Administer
	}
	return a.r.p.May(need)
}

// machine asks for a permission over a machine: of one that is in no region the
// principal sees, only who sees all may decide.
func (a *Actions) machine(need auth.Permission, mac lpmos.MAC) error {
	if m, ok := a.r.m.Machine(mac); ok && a.r.p.Sees(m.RegionID) {
		return a.r.p.May(need)
	}
	return a.everywhere(need)
}
