package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// metadata is what is kept beside the status: what was asked for, and the
// bookkeeping of the life cycle. It is written with every transition.
type metadata struct {
	TaskID string `json:"task_id"`
	lpmos.Spec
	Attempt    int          `json:"attempt"`
	CreatedAt  time.Time    `json:"created_at"`
	CreatedBy  string       `json:"created_by,omitempty"`
	BatchID    string       `json:"batch_id,omitempty"`
	Found      *lpmos.Found `json:"found,omitempty"`
	UpdatedAt  time.Time    `json:"updated_at"`
	Claims     []lpmos.MAC  `json:"claims,omitempty"`
	ClaimUUID  string       `json:"claim_uuid,omitempty"`
	EventSeq   int64        `json:"event_seq"`
	EventHash  string       `json:"event_hash"`
	HardwareAt time.Time    `json:"hardware_at,omitzero"`

	Drift     []lpmos.Drift         `json:"drift,omitempty"`
	Committed []lpmos.PlannedSecret `json:"committed_secrets,omitempty"`
	Alarm     *lpmos.Alarm          `json:"alarm,omitempty"`
	TPM       *lpmos.TPMBinding     `json:"tpm,omitempty"`
	Approvals []lpmos.Consent       `json:"approvals,omitempty"`
}

// Record is a task as the store has it, taken apart the way it is kept.
type Record struct {
	Task   lpmos.Task
	Permit *lpmos.Permit // of the attempt that runs
	// Secrets are the task's, sealed; nil when it has none. They go when the
	// task cannot need them any more.
	Secrets *lpmos.SealedSecrets
	// Policy and Users are what an approval is judged by, where Move.Vet asked
	// for them: users by name, of those who approve and have approved.
	Policy lpmos.ApprovalPolicy
	Users  map[string]lpmos.User

	eventSeq  int64
	eventHash string
	rev       int64                         // of its status, or of its key in the archive
	archived  []Change                      // what it has there, nil if it is not there
	boots     map[lpmos.MAC]lpmos.BootEntry // of the machine, as they stand
}

// Move says how a task is to move on.
type Move struct {
	Cause   lpmos.Cause
	By      string // who: a person's name, "agent", "orchestrator"
	Message string // a sentence for the event; Edit may still set it
	// Gate is what a permit must pass as well; what does not pass is a *HeldError.
	Gate *Gate
	// Vet reads the approval policy and the users concerned into the record that
	// edit sees. They are compared in the transaction, so that who is revoked a
	// moment before approves nothing.
	Vet bool
}

// maxRaces is how often a write is tried when another writer was quicker. Each
// try re-reads and re-decides. Whoever loses a race lost it to somebody's
// progress, and who won is the first to know where the next starts: replicas
// that all administer at once lose many in a row, so this is a net under a bug,
// not a limit on them. The caller's context bounds the time.
const maxRaces = 1000

// NewTask is a task that is to be stored.
type NewTask struct {
	Spec    lpmos.Spec // with everything that was left out filled in
	By      string
	Key     string // Idempotency-Key, "" for none
	Request string // digest of what was asked, before anything was filled in; "" means of Spec

	Committed []lpmos.PlannedSecret      // commitments to the task's secrets
	Seal      func(taskID string) string // seals them at rest; nil when there are none
}

// CreateTask is Create for a spec that stands for itself.
func (s *Store) CreateTask(ctx context.Context, spec lpmos.Spec, by, idempotencyKey string) (lpmos.Task, error) {
	return s.Create(ctx, NewTask{Spec: spec, By: by, Key: idempotencyKey})
}

// Create stores a new task and its order, in one transaction with the claim
// of its MAC: a machine has one live task. With an idempotency key, a
// repetition of the same request returns the first one's task.
func (s *Store) Create(ctx context.Context, n NewTask) (lpmos.Task, error) {
	t := lpmos.Task{ID: lpmos.NewTaskID(), Spec: n.Spec, CreatedBy: n.By, Committed: n.Committed}
	var sealed *lpmos.SealedSecrets
	if n.Seal != nil {
		sealed = &lpmos.SealedSecrets{TaskID: t.ID, AtRest: n.Seal(t.ID)}
	}
	return s.create(ctx, t, sealed, "Task created.", n.Key, n.Request)
}

func (s *Store) create(ctx context.Context, fresh lpmos.Task, sealed *lpmos.SealedSecrets, message, idempotencyKey, request string) (_ lpmos.Task, err error) {
	now := time.Now().UTC()
	fresh.Spec.Secrets = nil // their values are in sealed
	spec, by := fresh.Spec, fresh.CreatedBy
	fresh.Attempt, fresh.CreatedAt, fresh.Claims = 1, now, []lpmos.MAC{spec.TargetMAC}
	if spec.Template != "" {
		if fresh.TemplateText, err = s.pin(ctx, spec.Template); err != nil {
			return lpmos.Task{}, err
		}
	}
	if spec.Profile != "" {
		if fresh.Setup, err = s.pinSetup(ctx, spec.Profile); err != nil {
			return lpmos.Task{}, err
		}
	}
	if fresh.TPM, err = s.tpmOf(ctx, spec.TargetMAC); err != nil {
		return lpmos.Task{}, err
	}
	rec := Record{Task: fresh}
	var idem string
	var lease clientv3.LeaseID
	unused := false // nothing was stored under lease, for certain
	defer func() {
		if unused {
			s.revoke(lease)
		}
	}()
	request = cmp.Or(request, lpmos.DigestOf(spec))
	if idempotencyKey != "" {
		idem = taskIdempotency(by, idempotencyKey)
		if lease, err = s.grant(ctx, keepIdempotency); err != nil {
			return lpmos.Task{}, err
		}
	}
	for range maxRaces {
		if err := s.loadBoots(ctx, &rec, rec.Task.Claims); err != nil {
			return lpmos.Task{}, err
		}
		next := rec
		t := &next.Task
		ops, err := next.apply(ctx, Move{Cause: lpmos.CauseCreated, By: by, Message: message}, now, nil)
		if err != nil {
			return lpmos.Task{}, err
		}
		if t.TemplateText != nil {
			ops = append(ops, clientv3.OpPut(Key{Kind: KindTaskTemplate, TaskID: t.ID}.String(), string(encode(t.TemplateText))))
		}
		if t.Setup != nil {
			ops = append(ops, clientv3.OpPut(Key{Kind: KindTaskSetup, TaskID: t.ID}.String(), string(encode(t.Setup))))
		}
		if sealed != nil {
			ops = append(ops, clientv3.OpPut(Key{Kind: KindSecrets, Region: t.RegionID, TaskID: t.ID}.String(), string(encode(sealed))))
		}
		claim := Key{Kind: KindAgentTask, MAC: spec.TargetMAC}.String()
		lock := Key{Kind: KindLock, MAC: spec.TargetMAC}.String()
		conds := []clientv3.Cmp{
			clientv3.Compare(clientv3.CreateRevision(Key{Kind: KindStatus, TaskID: t.ID}.String()), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(Key{Kind: KindArchive, TaskID: t.ID}.String()), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(claim), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(lock), "=", 0),
		}
		orElse := []clientv3.Op{clientv3.OpGet(claim)}
		if idem != "" {
			conds = append(conds, clientv3.Compare(clientv3.CreateRevision(idem), "=", 0))
			orElse = append(orElse, clientv3.OpGet(idem))
			ops = append(ops, clientv3.OpPut(idem, string(encode(idempotent{t.ID, request})), clientv3.WithLease(lease)))
		}
		ops, orElse = append(ops, clientv3.OpPut(claim, t.ID)), append(orElse, clientv3.OpGet(lock))
		r, err := s.txn(ctx, conds, ops, orElse)
		unused = lease != 0 && err == nil && !r.Succeeded
		if err != nil {
			return lpmos.Task{}, fmt.Errorf("create task: %w", err)
		}
		if r.Succeeded {
			t.Rev = r.Header.Revision
			return *t, nil
		}
		if idem != "" {
			if kvs := r.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
				return s.first(ctx, kvs[0].Value, request)
			}
		}
		if kvs := r.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			return lpmos.Task{}, &lpmos.ConflictError{Problem: fmt.Sprintf("machine %s already has live task %s: cancel it, or wait until it ends", spec.TargetMAC, kvs[0].Value)}
		}
		if kvs := r.Responses[len(r.Responses)-1].GetResponseRange().Kvs; len(kvs) > 0 {
			l, err := decode[lpmos.Lock](kvs[0].Value)
			if err != nil {
				return lpmos.Task{}, fmt.Errorf("decode %s: %w", lock, err)
			}
			return lpmos.Task{}, LockedError(spec.TargetMAC, l)
		}
	}
	return lpmos.Task{}, fmt.Errorf("create task: %w: too many writers at once", lpmos.ErrUnavailable)
}

// idempotent is what is known of a request under its key.
type idempotent struct {
	TaskID  string `json:"task_id"`
	Request string `json:"request"` // its digest
}

func taskIdempotency(by, key string) string {
	return Key{Kind: KindIdempotency, Name: strings.TrimPrefix(lpmos.DigestBytes([]byte(by+"\x00"+key)), "sha256:")}.String()
}

// KnownTask finds the task that an earlier request with this key made. The same
// key with another request is a conflict, and so is a task that was deleted
// since.
func (s *Store) KnownTask(ctx context.Context, by, idempotencyKey, request string) (t lpmos.Task, known bool, err error) {
	v, err := s.get(ctx, taskIdempotency(by, idempotencyKey))
	if errors.Is(err, lpmos.ErrNotFound) {
		return t, false, nil
	}
	if err != nil {
		return t, false, err
	}
	t, err = s.first(ctx, v, request)
	return t, true, err
}

// first is the task that a request made when it came for the first time.
func (s *Store) first(ctx context.Context, v []byte, request string) (lpmos.Task, error) {
	known, err := decode[idempotent](v)
	if err != nil {
		return lpmos.Task{}, fmt.Errorf("decode what is known under an Idempotency-Key: %w", err)
	}
	if known.Request != request {
		return lpmos.Task{}, &lpmos.ConflictError{Problem: "this Idempotency-Key was used for another request; send a new key for a new one"}
	}
	rec, err := s.Task(ctx, known.TaskID)
	if errors.Is(err, lpmos.ErrNotFound) {
		return lpmos.Task{}, &lpmos.ConflictError{Problem: "the task " + known.TaskID + " that this Idempotency-Key made was deleted; send a new key for a new one"}
	}
	return rec.Task, err
}

// Task reads a task from etcd, linearizably.
func (s *Store) Task(ctx context.Context, id string) (Record, error) {
	if !lpmos.ValidTaskID(id) {
		return Record{}, &lpmos.InvalidError{Field: "task_id", Problem: "is not a task id", Value: id}
	}
	// Events are not needed here and may be many; they sort before "hardware".
	p := taskPrefix(id)
	parts, at, err := s.parts(ctx, id, 0,
		clientv3.OpGet(p, clientv3.WithRange(p+"events/")),
		clientv3.OpGet(p+"events0", clientv3.WithRange(clientv3.GetPrefixRangeEnd(p))))
	if err != nil {
		return Record{}, err
	}
	rec := Record{rev: at}
	if at != 0 {
		rec.archived = parts
	}
	var meta metadata
	for _, c := range parts {
		if c.Key.Kind == KindStatus && at == 0 {
			rec.rev = c.Rev
		}
		if c.Key.Kind != KindEvent {
			rec.Task.Rev = max(rec.Task.Rev, c.Rev)
		}
		if err := setPart(&rec.Task, c.Key.Kind, c.Value, &meta); err != nil {
			return Record{}, fmt.Errorf("decode %s: %w", c.Key, err)
		}
	}
	if rec.rev == 0 {
		return Record{}, fmt.Errorf("task %s: %w", id, lpmos.ErrNotFound)
	}
	rec.eventSeq, rec.eventHash = meta.EventSeq, meta.EventHash
	if err := s.loadSecrets(ctx, &rec); err != nil {
		return Record{}, err
	}
	if err := s.loadBoots(ctx, &rec, rec.Task.Claims); err != nil {
		return Record{}, err
	}
	order, err := s.get(ctx, Key{Kind: KindOrder, Region: rec.Task.RegionID, TaskID: id}.String())
	if err == nil {
		o, err := decode[lpmos.Order](order)
		if err != nil {
			return Record{}, fmt.Errorf("decode order of task %s: %w", id, err)
		}
		rec.Permit = o.Permit
	} else if !errors.Is(err, lpmos.ErrNotFound) {
		return Record{}, err
	}
	return rec, nil
}

func (s *Store) loadBoots(ctx context.Context, rec *Record, macs []lpmos.MAC) error {
	rec.boots = map[lpmos.MAC]lpmos.BootEntry{}
	for _, m := range macs {
		b, err := s.get(ctx, Key{Kind: KindBoot, Region: rec.Task.RegionID, MAC: m}.String())
		if errors.Is(err, lpmos.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		e, err := decode[lpmos.BootEntry](b)
		if err != nil {
			return fmt.Errorf("decode boot entry of %s: %w", m, err)
		}
		rec.boots[m] = e
	}
	return nil
}

// Transition moves a task in one transaction that compares its status key, so
// that of two movers exactly one wins and the other decides anew. edit sees
// the task as it is, may change what the cause brings (hardware, plan,
// approval, error, permit, claims), and refuses by returning an error. It may
// be called several times. The event, the order, the boot index and the claims
// follow from the task and are written with it.
func (s *Store) Transition(ctx context.Context, id string, m Move, edit func(*Record, *Move) error) (lpmos.Task, error) {
	for range maxRaces {
		rec, err := s.Task(ctx, id)
		if err != nil {
			return lpmos.Task{}, err
		}
		if m.Cause == lpmos.CauseRetried { // it may have been forgotten meanwhile
			if rec.Task.TPM, err = s.tpmOf(ctx, rec.Task.TargetMAC); err != nil {
				return rec.Task, err
			}
		}
		next := rec
		now := time.Now().UTC()
		conds := []clientv3.Cmp{rec.stands()}
		if m.Vet {
			vetConds, err := s.vet(ctx, &next, m.By)
			if err != nil {
				return rec.Task, err
			}
			conds = append(conds, vetConds...)
		}
		ops, err := next.apply(ctx, m, now, edit)
		if err != nil {
			return rec.Task, err
		}
		claimConds, claimOps, orElse := claims(&rec.Task, &next.Task)
		conds, ops = append(conds, claimConds...), append(ops, claimOps...)
		if m.Gate != nil {
			gateConds, gateOps, err := s.pass(ctx, &rec.Task, m.Gate, now)
			if err != nil {
				return rec.Task, err
			}
			conds, ops = append(conds, gateConds...), append(ops, gateOps...)
		}
		if rec.archived != nil {
			ops = rec.takeOut(ops)
		}
		r, err := s.txn(ctx, conds, ops, orElse)
		if err != nil {
			return rec.Task, fmt.Errorf("move task %s (%s): %w", id, m.Cause, err)
		}
		if r.Succeeded {
			next.Task.Rev = r.Header.Revision
			return next.Task, nil
		}
		for i, resp := range r.Responses {
			for _, kv := range resp.GetResponseRange().GetKvs() {
				if holder := string(kv.Value); holder != id {
					return rec.Task, &ClaimError{Key: orElseKeys(orElse)[i], Holder: holder}
				}
			}
		}
	}
	return lpmos.Task{}, fmt.Errorf("move task %s: %w: too many writers at once", id, lpmos.ErrUnavailable)
}

// ClaimError says that a NIC or a UUID of a machine belongs to another live task.
type ClaimError struct{ Key, Holder string }

func (e *ClaimError) Error() string {
	return fmt.Sprintf("%s belongs to live task %s", e.Key, e.Holder)
}

// Is makes a ClaimError an lpmos.ErrConflict.
func (e *ClaimError) Is(target error) bool { return target == lpmos.ErrConflict }

// apply moves r's task and returns what is to be written for it.
func (r *Record) apply(ctx context.Context, m Move, now time.Time, edit func(*Record, *Move) error) ([]clientv3.Op, error) {
	t := &r.Task
	before, sealed := *t, r.Secrets
	from := t.Status
	to, err := from.Next(m.Cause)
	if err != nil {
		return nil, err
	}
	if edit != nil {
		if err := edit(r, &m); err != nil {
			return nil, err
		}
		if to, err = from.Next(m.Cause); err != nil {
			return nil, err
		}
	}
	if to != lpmos.AwaitingApproval {
		t.Approvals = nil // given, or void
	}
	t.Status, t.UpdatedAt = to, now
	switch {
	case t.Hardware == nil:
		t.HardwareAt = time.Time{}
	case before.Hardware != t.Hardware:
		t.HardwareAt = now
	}
	if to.Live() && len(t.Claims) == 0 {
		t.Claims = []lpmos.MAC{t.TargetMAC}
	}
	if t.Found = nil; t.Hardware != nil {
		t.Found = t.Hardware.Found()
	}
	who := lpmos.ActorOf(ctx)
	if who.Name != m.By {
		who = lpmos.Actor{} // it acts for another, who is elsewhere
	}
	e := lpmos.Event{
		TaskID: t.ID, Seq: r.eventSeq + 1, At: now, Cause: m.Cause, From: from, To: to,
		By: m.By, Peer: who.From, Via: who.Via, Message: m.Message, Attempt: t.Attempt,
	}
	e.Seal(r.eventHash)

	put := func(k Key, v any) clientv3.Op { return clientv3.OpPut(k.String(), string(encode(v))) }
	key := func(k Kind) Key { return Key{Kind: k, TaskID: t.ID} }
	meta := encode(metadata{
		t.ID, t.Spec, t.Attempt, t.CreatedAt, t.CreatedBy, t.BatchID, t.Found, now, t.Claims, t.ClaimUUID, e.Seq, e.Hash, t.HardwareAt, t.Drift,
		t.Committed, t.Alarm, t.TPM, t.Approvals,
	})
	ops := []clientv3.Op{
		clientv3.OpPut(key(KindStatus).String(), string(to)),
		clientv3.OpPut(key(KindMetadata).String(), string(meta)),
		put(Key{Kind: KindEvent, TaskID: t.ID, Seq: e.Seq}, e),
	}
	for _, part := range []struct {
		kind    Kind
		was, is any
		gone    bool
	}{
		{kind: KindHardware, was: before.Hardware, is: t.Hardware, gone: t.Hardware == nil},
		{kind: KindPlan, was: before.Plan, is: t.Plan, gone: t.Plan == nil},
		{kind: KindApproval, was: before.Approval, is: t.Approval, gone: t.Approval == nil},
		{kind: KindProgress, was: before.Progress, is: t.Progress, gone: t.Progress == nil},
		{kind: KindError, was: before.Error, is: t.Error, gone: t.Error == nil},
		{kind: KindReceipt, was: before.Receipt, is: t.Receipt, gone: t.Receipt == nil},
		{kind: KindPrevious, was: before.Previous, is: t.Previous, gone: t.Previous == nil},
	} {
		was, is := encode(part.was), encode(part.is)
		switch {
		case bytes.Equal(was, is):
		case part.gone:
			ops = append(ops, clientv3.OpDelete(key(part.kind).String()))
		default:
			ops = append(ops, clientv3.OpPut(key(part.kind).String(), string(is)))
		}
	}
	switch {
	case slices.Equal(before.LogTail, t.LogTail):
	case len(t.LogTail) == 0:
		ops = append(ops, clientv3.OpDelete(key(KindLogs).String()))
	default:
		ops = append(ops, clientv3.OpPut(key(KindLogs).String(), strings.Join(t.LogTail, "\n")))
	}
	ops = append(ops, r.secretOps(sealed)...)
	if t.TPM != nil && before.TPM == nil && m.Cause == lpmos.CauseApproved {
		for _, mac := range t.Claims {
			ops = append(ops, put(Key{Kind: KindTPM, MAC: mac}, t.TPM))
		}
	}
	orderKey := Key{Kind: KindOrder, Region: t.RegionID, TaskID: t.ID}
	if hasOrder(t) {
		o := lpmos.Order{
			Spec: t.Spec, TaskID: t.ID, Status: t.Status, Attempt: t.Attempt, Macs: t.Claims,
			Plan: t.Plan, Approval: t.Approval, Permit: r.Permit,
		}
		if t.TPM != nil {
			o.TPM = &t.TPM.TPM
		}
		ops = append(ops, put(orderKey, o))
	} else {
		ops = append(ops, clientv3.OpDelete(orderKey.String()))
	}
	for _, mac := range unionMACs(before.Claims, t.Claims) {
		entry := r.bootEntry(mac)
		if old, ok := r.boots[mac]; ok && bytes.Equal(encode(old), encode(entry)) {
			continue
		}
		ops = append(ops, put(Key{Kind: KindBoot, Region: t.RegionID, MAC: mac}, entry))
	}
	if t.Hardware != nil && before.Hardware != t.Hardware {
		macs := t.Hardware.MACs()
		first := t.TargetMAC
		if len(macs) > 0 {
			first = macs[0]
		}
		ops = append(ops, put(Key{Kind: KindAgentInfo, MAC: t.TargetMAC}, lpmos.Machine{
			MAC: first, MACs: macs, UUID: t.Hardware.System.UUID, RegionID: t.RegionID, TaskID: t.ID, Hardware: t.Hardware, LastSeen: now,
		}), clientv3.OpPut(Key{Kind: KindAgentSeen, MAC: t.TargetMAC}.String(), now.Format(time.RFC3339Nano)))
	}
	return ops, nil
}
