package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// What follows from a task: whether its region has an order, how its machine
// boots, and which addresses it claims. All of it is written in the
// transaction that moves the task.

// hasOrder reports whether the region still has something to do. A task that
// failed because nobody called home keeps its order, so that a late receipt
// can still arrive.
func hasOrder(t *lpmos.Task) bool {
	return t.Status.Live() || t.Status == lpmos.Failed && t.Error != nil && t.Error.Code == CodeVerifyDeadline
}

// CodeVerifyDeadline is the code of the one failure that a late call home turns
// into completion.
const CodeVerifyDeadline = "verify_deadline"

// bootEntry is how the machine boots from now on: the agent until the result
// is in, its own disk afterwards and whenever no task wants it. The disk of an
// earlier installation is remembered until an attempt is allowed to write.
func (r *Record) bootEntry(mac lpmos.MAC) lpmos.BootEntry {
	t := &r.Task
	e := r.boots[mac]
	e.MAC, e.TaskID, e.Action = mac, t.ID, lpmos.BootLocal
	switch t.Status {
	case lpmos.Pending, lpmos.AwaitingApproval, lpmos.Approved, lpmos.Installing:
		e.Action = lpmos.BootAgent
	}
	if r.Permit != nil && t.Plan != nil {
		e.Disk = t.Plan.Effect.BootDisk()
	}
	return e
}

// claims are the conditions and writes that move the claims from one state of a
// task to the next. orElse reads the keys whose absence was demanded, in order.
func claims(before, after *lpmos.Task) (conds []clientv3.Cmp, ops []clientv3.Op, orElse []clientv3.Op) {
	held := claimKeys(before)
	wanted := claimKeys(after)
	if !before.Status.Live() && !after.Status.Live() {
		// A task that ended and still moves (a late call home) must not touch
		// a machine that a newer task owns.
		owned := *after
		owned.Status = lpmos.Pending
		for _, k := range claimKeys(&owned) {
			conds = append(conds, clientv3.Compare(clientv3.CreateRevision(k), "=", 0))
			orElse = append(orElse, clientv3.OpGet(k))
		}
	}
	for _, k := range wanted {
		if !slices.Contains(held, k) {
			conds = append(conds, clientv3.Compare(clientv3.CreateRevision(k), "=", 0))
			ops = append(ops, clientv3.OpPut(k, after.ID))
			orElse = append(orElse, clientv3.OpGet(k))
		}
	}
	for _, k := range held {
		if !slices.Contains(wanted, k) {
			ops = append(ops, clientv3.OpDelete(k))
		}
	}
	return conds, ops, orElse
}

func orElseKeys(ops []clientv3.Op) []string {
	var out []string
	for _, op := range ops {
		out = append(out, strings.TrimPrefix(string(op.KeyBytes()), prefix))
	}
	return out
}

func claimKeys(t *lpmos.Task) []string {
	if !t.Status.Live() {
		return nil
	}
	var out []string
	for _, m := range t.Claims {
		out = append(out, Key{Kind: KindAgentTask, MAC: m}.String())
	}
	if t.ClaimUUID != "" {
		out = append(out, Key{Kind: KindMachineTask, UUID: t.ClaimUUID}.String())
	}
	return out
}

func unionMACs(a, b []lpmos.MAC) []lpmos.MAC {
	out := slices.Concat(a, b)
	slices.SortFunc(out, func(x, y lpmos.MAC) int { return slices.Compare(x[:], y[:]) })
	return slices.Compact(out)
}

// SetPart fills the part of t that a key holds. It serves whoever assembles
// tasks from Changes; kinds that are not part of a task are ignored.
func SetPart(t *lpmos.Task, k Key, value []byte) error {
	var m metadata
	if err := setPart(t, k.Kind, value, &m); err != nil {
		return fmt.Errorf("decode %s: %w", k, err)
	}
	return nil
}

func setPart(t *lpmos.Task, kind Kind, value []byte, m *metadata) (err error) {
	switch kind {
	case KindMetadata:
		if value == nil {
			return nil // the task is being deleted; its status goes last
		}
		*m, err = decode[metadata](value)
		t.ID, t.Spec, t.Attempt, t.CreatedAt, t.CreatedBy = m.TaskID, m.Spec, m.Attempt, m.CreatedAt, m.CreatedBy
		t.UpdatedAt, t.Claims, t.ClaimUUID, t.BatchID, t.Found, t.HardwareAt = m.UpdatedAt, m.Claims, m.ClaimUUID, m.BatchID, m.Found, m.HardwareAt
		t.Drift, t.Committed, t.Alarm, t.TPM, t.Approvals = m.Drift, m.Committed, m.Alarm, m.TPM, m.Approvals
	case KindStatus:
		t.Status = lpmos.Status(value)
	case KindHardware:
		err = setPointer(&t.Hardware, value)
	case KindPlan:
		err = setPointer(&t.Plan, value)
	case KindApproval:
		err = setPointer(&t.Approval, value)
	case KindProgress:
		err = setPointer(&t.Progress, value)
	case KindError:
		err = setPointer(&t.Error, value)
	case KindReceipt:
		err = setPointer(&t.Receipt, value)
	case KindTaskTemplate:
		err = setPointer(&t.TemplateText, value)
	case KindTaskSetup:
		err = setPointer(&t.Setup, value)
	case KindPrevious:
		err = setPointer(&t.Previous, value)
	case KindLogs:
		t.LogTail = nil
		if len(value) > 0 {
			t.LogTail = strings.Split(string(value), "\n")
		}
	}
	return err
}

func setPointer[T any](p **T, value []byte) error {
	*p = nil
	if value == nil {
		return nil // deleted
	}
	v, err := decode[T](value)
	if err == nil {
		*p = &v
	}
	return err
}

func (s *Store) grant(ctx context.Context, ttl time.Duration) (clientv3.LeaseID, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	l, err := s.c.Grant(ctx, int64(ttl/time.Second))
	if err != nil {
		return 0, s.wrap("grant lease", err)
	}
	return l.ID, nil
}

// DeleteTask forgets a task that has ended, with its history. Where that ended
// stays in the audit.
func (s *Store) DeleteTask(ctx context.Context, id string) error {
	rec, err := s.Task(ctx, id)
	if err != nil {
		return err
	}
	if rec.Task.Status.Live() {
		return &lpmos.ConflictError{Status: rec.Task.Status, Problem: "the task is live (" + string(rec.Task.Status) + "): cancel it first"}
	}
	t := &rec.Task
	r, err := s.administer(ctx, deed{
		action: lpmos.AuditTaskDeleted, subject: "task " + id, heads: map[string]lpmos.ChainHead{id: {Seq: rec.eventSeq, Hash: rec.eventHash}},
		before: struct {
			Status    lpmos.Status `json:"status"`
			RegionID  string       `json:"region_id"`
			TargetMAC lpmos.MAC    `json:"target_mac"`
			Hostname  string       `json:"hostname,omitempty"`
			OS        string       `json:"os"`
			CreatedAt time.Time    `json:"created_at"`
			CreatedBy string       `json:"created_by"`
			Attempt   int          `json:"attempt"`
		}{t.Status, t.RegionID, t.TargetMAC, t.Hostname, t.OSType + "/" + t.OSVersion, t.CreatedAt, t.CreatedBy, t.Attempt},
	},
		[]clientv3.Cmp{rec.stands()},
		[]clientv3.Op{
			clientv3.OpDelete(taskPrefix(id), clientv3.WithPrefix()),
			clientv3.OpDelete(Key{Kind: KindArchive, TaskID: id}.String()),
			clientv3.OpDelete(Key{Kind: KindOrder, Region: rec.Task.RegionID, TaskID: id}.String()),
			clientv3.OpDelete(Key{Kind: KindSecrets, Region: rec.Task.RegionID, TaskID: id}.String()),
		}, nil)
	if err != nil {
		return fmt.Errorf("delete task %s: %w", id, err)
	}
	if !r.Succeeded {
		return &lpmos.ConflictError{Problem: "the task changed meanwhile: look at it again"}
	}
	return nil
}

// Events reads the history of a task, oldest first.
func (s *Store) Events(ctx context.Context, id string) ([]lpmos.Event, error) {
	if !lpmos.ValidTaskID(id) {
		return nil, &lpmos.InvalidError{Field: "task_id", Problem: "is not a task id", Value: id}
	}
	parts, _, err := s.parts(ctx, id, 0, clientv3.OpGet(eventPrefix(id), clientv3.WithPrefix()))
	if err != nil {
		return nil, err
	}
	var out []lpmos.Event
	for _, c := range parts {
		if c.Key.Kind != KindEvent {
			continue
		}
		e, err := Decode[lpmos.Event](c)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("task %s: %w", id, lpmos.ErrNotFound)
	}
	return out, nil
}
