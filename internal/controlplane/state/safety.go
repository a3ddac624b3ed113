package state

import (
	"cmp"
	"slices"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
)

// safety is what holds machines back: the emergency stop, locks, and how many
// permits each region was given lately.
type safety struct {
	stop    *lpmos.Stop
	locks   map[lpmos.MAC]lpmos.Lock
	tpms    map[lpmos.MAC]lpmos.TPMBinding
	permits map[string]store.Permits // by region
}

func newSafety() safety {
	return safety{locks: map[lpmos.MAC]lpmos.Lock{}, tpms: map[lpmos.MAC]lpmos.TPMBinding{}, permits: map[string]store.Permits{}}
}

// applySafety brings a change of these keys into memory.
func (s *State) applySafety(c store.Change) {
	var err error
	switch c.Key.Kind {
	case store.KindStop:
		s.safety.stop, err = pointer[lpmos.Stop](c)
	case store.KindLock:
		var l *lpmos.Lock
		if l, err = pointer[lpmos.Lock](c); l == nil {
			delete(s.safety.locks, c.Key.MAC)
		} else {
			s.safety.locks[c.Key.MAC] = *l
		}
	case store.KindTPM:
		var b *lpmos.TPMBinding
		if b, err = pointer[lpmos.TPMBinding](c); b == nil {
			delete(s.safety.tpms, c.Key.MAC)
		} else {
			s.safety.tpms[c.Key.MAC] = *b
		}
	case store.KindPermits:
		var granted store.Permits
		if c.Value != nil {
			granted, err = store.PermitsOf(c)
		}
		s.safety.permits[c.Key.Region] = granted
	}
	s.report(err, c)
}

// Stopped is the emergency stop, nil when there is none.
func (s *State) Stopped() *lpmos.Stop {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.safety.stop
}

// Alarmed is how many live tasks have an alarm.
func (s *State) Alarmed() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for i, st := range lpmos.Statuses {
		if !st.Live() {
			continue
		}
		for _, t := range s.byStatus[i] {
			if t.Alarm != nil {
				n++
			}
		}
	}
	return n
}

// Locked is the lock of a machine by any of its addresses, nil when it has
// none.
func (s *State) Locked(mac lpmos.MAC) *lpmos.Lock {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.lockOf(s.addresses(mac))
}

// addresses are all that are known of a machine, the given one first.
func (s *State) addresses(mac lpmos.MAC) []lpmos.MAC {
	macs := []lpmos.MAC{mac}
	if m := s.fleet.owner[ident{mac: mac}]; m != nil {
		macs = append(macs, m.view().MACs...)
	}
	return macs
}

// TPM is the TPM a machine had when it was first approved, by any of its
// addresses; nil for none.
func (s *State) TPM(mac lpmos.MAC) *lpmos.TPMBinding {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tpmOf(s.addresses(mac))
}

func (s *State) tpmOf(macs []lpmos.MAC) *lpmos.TPMBinding {
	for _, m := range macs {
		if b, ok := s.safety.tpms[m]; ok {
			return &b
		}
	}
	return nil
}

func (s *State) lockOf(macs []lpmos.MAC) *lpmos.Lock {
	for _, m := range macs {
		if l, ok := s.safety.locks[m]; ok {
			return &l
		}
	}
	return nil
}

// maxOwnMACs bounds of how many addresses a region may say that they are its own
// host's: each is one that no other region can install.
const maxOwnMACs = 256

// Protection says why a machine must never be installed, or "".
func (s *State) Protection(macs []lpmos.MAC, uuid string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	hosts := map[string]lpmos.Host{}
	for name, h := range s.global.Hosts {
		hosts["control plane "+name] = h
	}
	for id, r := range s.regions {
		if r.Capabilities != nil {
			own := r.Capabilities.Own
			own.MACs = own.MACs[:min(len(own.MACs), maxOwnMACs)]
			hosts["region "+id] = own
		}
	}
	return s.global.Limits.Protects(hosts, macs, uuid)
}

// PermitLimit is how many permits a region is given in a minute.
func (s *State) PermitLimit() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.permitLimit()
}

func (s *State) permitLimit() int {
	return cmp.Or(s.global.PermitsPerMinute, s.defaultLimit, lpmos.DefaultPermitsPerMinute)
}

// SetPermitLimit says how many permits a region is given in a minute where the
// site's configuration does not. It must not be called once Run has begun.
func (s *State) SetPermitLimit(n int) { s.defaultLimit = n }

// PermitWait says why a task whose machine asked to write may not yet, nil when
// it is its turn or when it does not ask.
func (s *State) PermitWait(id string) *lpmos.PermitWait {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t := s.tasks[id]
	if t == nil {
		return nil
	}
	return s.permitWait(t)
}

// asks is since when a task's machine waits for its permit.
func (t *task) asks() (time.Time, bool) {
	r := t.reported(t.Attempt)
	if t.Status != lpmos.Approved || r == nil || r.Permit == nil || t.Approval == nil {
		return time.Time{}, false
	}
	return r.Permit.At, true
}

func (s *State) permitWait(t *task) *lpmos.PermitWait {
	at, ok := t.asks()
	if !ok {
		return nil
	}
	before := 0
	for _, o := range s.byStatus[slices.Index(lpmos.Statuses, lpmos.Approved)] {
		if o == t || o.RegionID != t.RegionID {
			continue
		}
		if since, ok := o.asks(); ok && cmp.Or(since.Compare(at), cmp.Compare(o.ID, t.ID)) < 0 && s.lockOf(o.Claims) == nil {
			before++
		}
	}
	w := &lpmos.PermitWait{Before: before}
	switch {
	case s.safety.stop != nil:
		w.Reason = lpmos.WaitStop
	case s.lockOf(t.Claims) != nil:
		w.Reason = lpmos.WaitLock
	case before >= s.permitLimit()-s.safety.permits[t.RegionID].Lately(s.now()):
		w.Reason = lpmos.WaitRate
	default:
		return nil
	}
	return w
}

// Limits are those of config/global.
func (s *State) Limits() lpmos.Limits {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.global.Limits
}

// ApprovalPolicy is that of config/global.
func (s *State) ApprovalPolicy() lpmos.ApprovalPolicy {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.global.Approvals
}

// approvalNeeds is what the approval of a task that waits for it takes, nil when
// it takes no more than the role.
func (s *State) approvalNeeds(t *lpmos.Task) *lpmos.ApprovalNeeds {
	if t.Status != lpmos.AwaitingApproval {
		return nil
	}
	n := s.global.Approvals.For(t)
	if n.Plain() {
		return nil
	}
	return &n
}
