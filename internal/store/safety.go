package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// Gate is what the transaction that grants a permit must pass beside its status
// key: the emergency stop, the locks of the machine, and the region's limit.
type Gate struct {
	Limit int // permits of the region in a minute
}

// HeldError says why a permit is not granted now. Nothing was written.
type HeldError struct {
	Reason string // lpmos.WaitStop, WaitLock or WaitRate
	Detail string
}

func (e *HeldError) Error() string { return "permit is held (" + e.Reason + "): " + e.Detail }

// Permits are how many permits a region was granted lately, counted by the second,
// by the clocks of the replicas: few numbers, whatever the limit.
type Permits struct {
	Seconds []permitted `json:"seconds"` // oldest first
}

type permitted struct {
	At int64 `json:"at"` // seconds since 1970
	N  int   `json:"n"`
}

// PermitsOf reads a change of KindPermits.
func PermitsOf(c Change) (Permits, error) { return decode[Permits](c.Value) }

// lately is whether s counts in the minute before now. A replica whose clock ran
// ahead must not hold the region for long.
func (s permitted) lately(now time.Time) bool {
	age := now.Unix() - s.At
	return -60 <= age && age <= 60
}

// Lately is how many there were in the minute before now.
func (p Permits) Lately(now time.Time) (n int) {
	for _, s := range p.Seconds {
		if s.lately(now) {
			n += s.N
		}
	}
	return n
}

// and is p with one more, and without those that were long ago.
func (p Permits) and(now time.Time) Permits {
	seconds := slices.DeleteFunc(slices.Clone(p.Seconds), func(s permitted) bool { return !s.lately(now) })
	if last := len(seconds) - 1; last >= 0 && seconds[last].At == now.Unix() {
		seconds[last].N++
	} else {
		seconds = append(seconds, permitted{now.Unix(), 1})
	}
	return Permits{seconds}
}

// pass reads what stands in a permit's way. What it read is compared in the
// transaction, so that a stop that comes a moment later still wins.
func (s *Store) pass(ctx context.Context, t *lpmos.Task, g *Gate, now time.Time) (conds []clientv3.Cmp, ops []clientv3.Op, err error) {
	stop := Key{Kind: KindStop}.String()
	count := Key{Kind: KindPermits, Region: t.RegionID}.String()
	reads := []clientv3.Op{clientv3.OpGet(stop), clientv3.OpGet(count)}
	for _, m := range t.Claims {
		lock := Key{Kind: KindLock, MAC: m}.String()
		reads = append(reads, clientv3.OpGet(lock))
		conds = append(conds, clientv3.Compare(clientv3.CreateRevision(lock), "=", 0))
	}
	r, err := s.txn(ctx, nil, reads, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("read what holds permits: %w", err)
	}
	if kvs := r.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		return nil, nil, &HeldError{Reason: lpmos.WaitStop, Detail: "everything is stopped"}
	}
	for _, resp := range r.Responses[2:] {
		if len(resp.GetResponseRange().Kvs) > 0 {
			return nil, nil, &HeldError{Reason: lpmos.WaitLock, Detail: "the machine is locked"}
		}
	}
	var rev int64
	var p Permits
	if kvs := r.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		rev = kvs[0].ModRevision
		if p, err = decode[Permits](kvs[0].Value); err != nil {
			return nil, nil, fmt.Errorf("decode %s: %w", count, err)
		}
	}
	if p.Lately(now) >= g.Limit {
		return nil, nil, &HeldError{Reason: lpmos.WaitRate, Detail: fmt.Sprintf("region %s may begin %d installs in a minute", t.RegionID, g.Limit)}
	}
	conds = append(conds,
		clientv3.Compare(clientv3.CreateRevision(stop), "=", 0),
		clientv3.Compare(clientv3.ModRevision(count), "=", rev))
	return conds, []clientv3.Op{clientv3.OpPut(count, string(encode(p.and(now))))}, nil
}

// PutStop stops everything: from this revision on no permit is granted.
func (s *Store) PutStop(ctx context.Context, stop lpmos.Stop) (rev int64, err error) {
	return amend(ctx, s, stops, Key{Kind: KindStop}, func(v *lpmos.Stop, _ int64) (bool, error) {
		*v = stop
		return true, nil
	})
}

// DeleteStop lets permits be granted again. That there was no stop is not an
// error.
func (s *Store) DeleteStop(ctx context.Context) (rev int64, err error) {
	return amend(ctx, s, stops, Key{Kind: KindStop}, func(*lpmos.Stop, int64) (bool, error) { return false, nil })
}

// Stop reads the emergency stop, linearizably; nil when there is none.
func (s *Store) Stop(ctx context.Context) (*lpmos.Stop, error) {
	b, err := s.get(ctx, Key{Kind: KindStop}.String())
	if errors.Is(err, lpmos.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := decode[lpmos.Stop](b)
	return &v, err
}

// LockedError says that a machine is locked, by whom and why.
func LockedError(mac lpmos.MAC, l lpmos.Lock) error {
	return &lpmos.ConflictError{Problem: fmt.Sprintf("machine %s is locked by %s (%s): unlock it first, lpmos machine unlock %s", mac, l.By, l.Reason, mac)}
}

// PutLock locks all addresses of a machine.
func (s *Store) PutLock(ctx context.Context, macs []lpmos.MAC, l lpmos.Lock) (rev int64, err error) {
	return s.lock(ctx, macs, &l)
}

// DeleteLock ends the lock of the first of these addresses that has one, and of
// those that were locked with it: which addresses a machine has is what reports
// say, and one that lies must not unlock another machine. That none is locked is
// not an error.
func (s *Store) DeleteLock(ctx context.Context, macs []lpmos.MAC) (rev int64, err error) {
	return s.lock(ctx, macs, nil)
}

// lock changes the locks of all addresses of a machine together; nil takes the
// one they have away. The first address names the machine.
func (s *Store) lock(ctx context.Context, macs []lpmos.MAC, l *lpmos.Lock) (rev int64, err error) {
	type locked struct {
		MACs   []lpmos.MAC `json:"macs"`
		Reason string      `json:"reason"`
		By     string      `json:"by"`
	}
	var reads []clientv3.Op
	for _, m := range macs {
		reads = append(reads, clientv3.OpGet(Key{Kind: KindLock, MAC: m}.String()))
	}
	for range maxRaces {
		r, err := s.commit(ctx, nil, reads, nil)
		if err != nil {
			return 0, err
		}
		var conds []clientv3.Cmp
		var ops []clientv3.Op
		d := deed{action: "machine.lock", subject: "machine " + macs[0].String()}
		var before locked
		var first lpmos.Lock
		for i, m := range macs {
			key, rev := Key{Kind: KindLock, MAC: m}.String(), int64(0)
			if kvs := r.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
				rev = kvs[0].ModRevision
				was, err := decode[lpmos.Lock](kvs[0].Value)
				if err != nil {
					return 0, fmt.Errorf("decode %s: %w", key, err)
				}
				if l == nil && before.MACs != nil && was != first {
					continue // another lock
				}
				first = was
				before.MACs, before.Reason, before.By = append(before.MACs, m), was.Reason, was.By
			} else if l == nil {
				continue
			}
			conds = append(conds, clientv3.Compare(clientv3.ModRevision(key), "=", rev))
			if l != nil {
				ops = append(ops, clientv3.OpPut(key, string(encode(l))))
			} else {
				ops = append(ops, clientv3.OpDelete(key))
			}
		}
		if before.MACs != nil {
			d.before = before
		}
		switch {
		case l != nil:
			d.after = locked{macs, l.Reason, l.By}
		case d.before == nil:
			return r.Header.Revision, nil
		default:
			d.action = "machine.unlock"
		}
		if r, err = s.administer(ctx, d, conds, ops, nil); err != nil {
			return 0, err
		}
		if r.Succeeded {
			return r.Header.Revision, nil
		}
	}
	return 0, fmt.Errorf("lock machine %s: %w: too many writers at once", macs[0], lpmos.ErrUnavailable)
}

// tpmOf is the TPM that a machine had when it was first approved, nil for none.
func (s *Store) tpmOf(ctx context.Context, mac lpmos.MAC) (*lpmos.TPMBinding, error) {
	b, err := s.get(ctx, Key{Kind: KindTPM, MAC: mac}.String())
	if errors.Is(err, lpmos.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := decode[lpmos.TPMBinding](b)
	if err != nil {
		return nil, fmt.Errorf("decode TPM of %s: %w", mac, err)
	}
	return &v, nil
}

// ForgetTPM forgets the TPM of a machine with these addresses: that of the first
// which is bound to one, and of those that are bound to the same. A live task that
// claims one of them is an lpmos.ErrConflict: its credentials are wrapped already.
func (s *Store) ForgetTPM(ctx context.Context, macs []lpmos.MAC) (rev int64, err error) {
	var was *lpmos.TPMBinding
	var conds []clientv3.Cmp
	var ops, orElse []clientv3.Op
	for _, m := range macs {
		b, err := s.tpmOf(ctx, m)
		if err != nil {
			return 0, err
		}
		if b == nil || was != nil && !was.Is(&b.TPM) {
			continue // its own, or another machine's that a report calls this one
		}
		was = cmp.Or(was, b)
		claim := Key{Kind: KindAgentTask, MAC: m}.String()
		conds = append(conds, clientv3.Compare(clientv3.CreateRevision(claim), "=", 0))
		ops = append(ops, clientv3.OpDelete(Key{Kind: KindTPM, MAC: m}.String()))
		orElse = append(orElse, clientv3.OpGet(claim))
	}
	if was == nil {
		return 0, nil
	}
	d := deed{action: "machine.tpm_forget", subject: "machine " + macs[0].String(), before: struct {
		TPM    string `json:"tpm"` // fingerprint of the endorsement key
		TaskID string `json:"task_id"`
	}{was.Fingerprint(), was.TaskID}}
	r, err := s.administer(ctx, d, conds, ops, orElse)
	if err != nil {
		return 0, fmt.Errorf("forget TPM: %w", err)
	}
	for _, resp := range r.Responses {
		if kvs := resp.GetResponseRange().GetKvs(); !r.Succeeded && len(kvs) > 0 {
			return 0, &lpmos.ConflictError{Problem: fmt.Sprintf("live task %s is for this machine: cancel it first", kvs[0].Value)}
		}
	}
	return r.Header.Revision, nil
}

// loadSecrets reads the sealed secrets of a task that has some.
func (s *Store) loadSecrets(ctx context.Context, rec *Record) error {
	if len(rec.Task.Committed) == 0 {
		return nil
	}
	b, err := s.get(ctx, Key{Kind: KindSecrets, Region: rec.Task.RegionID, TaskID: rec.Task.ID}.String())
	if errors.Is(err, lpmos.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	v, err := decode[lpmos.SealedSecrets](b)
	if err != nil {
		return fmt.Errorf("decode secrets of task %s: %w", rec.Task.ID, err)
	}
	rec.Secrets = &v
	return nil
}

// keepsSecrets reports whether a task may still need its secrets. One that
// failed may be tried again; what was sealed for its agent goes at once.
func keepsSecrets(t *lpmos.Task) bool { return t.Status.Live() || t.Status == lpmos.Failed }

// secretOps writes what became of a task's secrets.
func (r *Record) secretOps(before *lpmos.SealedSecrets) []clientv3.Op {
	key := Key{Kind: KindSecrets, Region: r.Task.RegionID, TaskID: r.Task.ID}.String()
	switch {
	case r.Secrets == nil && before == nil:
		return nil
	case r.Secrets == nil || !keepsSecrets(&r.Task):
		r.Secrets = nil
		return []clientv3.Op{clientv3.OpDelete(key)}
	}
	now := *r.Secrets
	if f := now.ForAgent; f != nil && (r.Task.Status != lpmos.Installing || f.Attempt != r.Task.Attempt) {
		now.ForAgent = nil
	}
	r.Secrets = &now
	if before != nil && string(encode(*before)) == string(encode(now)) {
		return nil
	}
	return []clientv3.Op{clientv3.OpPut(key, string(encode(now)))}
}
