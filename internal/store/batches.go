package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// keepBatch is how long the outcome of a finished batch can be asked for, and
// keepIdempotency how long a repeated request is known.
const (
	keepBatch       = 30 * 24 * time.Hour
	keepIdempotency = 24 * time.Hour
)

// maxValue is how large a value may be: etcd takes requests of 1.5 MiB, unless
// it was started to take more.
const maxValue = 1_500_000

// batchRequest is kept until the batch is finished.
type batchRequest struct {
	Batch  lpmos.Batch              `json:"batch"`
	Specs  []lpmos.Spec             `json:"specs"`
	Sealed map[int]lpmos.SealedLine `json:"sealed,omitempty"`
	Asked  lpmos.Actor              `json:"asked,omitzero"`
}

// NewBatch is a batch that is to be stored.
type NewBatch struct {
	Specs   []lpmos.Spec // checked, without secrets
	By      string
	Key     string // Idempotency-Key, "" for none
	Request string // digest of what was asked, before anything was filled in
	// Seal seals the secrets of a line (from 1) for the task that it will be;
	// false for one that has none.
	Seal func(line int, taskID string) (lpmos.SealedLine, bool)
}

// CreateBatch stores a batch whose lines were checked. With an idempotency key,
// a repetition of the same request gives the first one's batch.
func (s *Store) CreateBatch(ctx context.Context, n NewBatch) (lpmos.Batch, error) {
	b := lpmos.Batch{ID: lpmos.NewTaskID(), CreatedAt: time.Now().UTC(), CreatedBy: n.By, Total: len(n.Specs), Specs: n.Specs, Sealed: map[int]lpmos.SealedLine{}}
	for line := 1; n.Seal != nil && line <= b.Total; line++ {
		if sealed, ok := n.Seal(line, lpmos.BatchTaskID(b.ID, line)); ok {
			b.Sealed[line] = sealed
		}
	}
	value := encode(batchRequest{b, b.Specs, b.Sealed, lpmos.ActorOf(ctx)})
	if len(value) > maxValue {
		return lpmos.Batch{}, &lpmos.InvalidError{Field: "tasks", Problem: fmt.Sprintf("take %s as they are stored, each with what its profile says, and one batch has room for %s: send several batches",
			lpmos.FormatBytes(int64(len(value))), lpmos.FormatBytes(maxValue))}
	}
	ops := []clientv3.Op{clientv3.OpPut(Key{Kind: KindBatchRequest, TaskID: b.ID}.String(), string(value))}
	if n.Key == "" {
		_, err := s.txn(ctx, nil, ops, nil)
		return b, err
	}
	idem := batchIdempotency(n.By, n.Key)
	lease, err := s.grant(ctx, keepIdempotency)
	if err != nil {
		return lpmos.Batch{}, err
	}
	r, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(idem), "=", 0)},
		append(ops, clientv3.OpPut(idem, string(encode(idempotentBatch{b.ID, n.Request})), clientv3.WithLease(lease))),
		nil)
	if err != nil {
		return lpmos.Batch{}, fmt.Errorf("store batch: %w", err)
	}
	if r.Succeeded {
		return b, nil
	}
	s.revoke(lease)
	b, _, err = s.KnownBatch(ctx, n.By, n.Key, n.Request)
	return b, err
}

// idempotentBatch is what is kept under an idempotency key of a batch.
type idempotentBatch struct {
	BatchID string `json:"batch_id"`
	Request string `json:"request"`
}

// batchIdempotency is another key than a single task's: the same
// Idempotency-Key on the two routes is two requests.
func batchIdempotency(by, key string) string {
	return Key{Kind: KindIdempotency, Name: strings.TrimPrefix(lpmos.DigestBytes([]byte(by+"\x00batch\x00"+key)), "sha256:")}.String()
}

// KnownBatch finds the batch that an earlier request with this key made. The
// same key with other lines is a conflict.
func (s *Store) KnownBatch(ctx context.Context, by, idempotencyKey, request string) (b lpmos.Batch, known bool, err error) {
	idem := batchIdempotency(by, idempotencyKey)
	v, err := s.get(ctx, idem)
	if errors.Is(err, lpmos.ErrNotFound) {
		return b, false, nil
	}
	if err != nil {
		return b, false, err
	}
	first, err := decode[idempotentBatch](v)
	if err != nil {
		return b, false, fmt.Errorf("decode %s: %w", idem, err)
	}
	if first.Request != request {
		return b, true, &lpmos.ConflictError{Problem: "this Idempotency-Key was used for another request; send a new key for a new one"}
	}
	b, err = s.Batch(ctx, first.BatchID)
	return b, true, err
}

// Batch reads one, with its lines as long as it is not finished.
func (s *Store) Batch(ctx context.Context, id string) (lpmos.Batch, error) {
	if !lpmos.ValidTaskID(id) {
		return lpmos.Batch{}, &lpmos.InvalidError{Field: "batch_id", Problem: "is not a batch id", Value: id}
	}
	cctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.Get(cctx, batchPrefix(id), clientv3.WithPrefix())
	if err != nil {
		return lpmos.Batch{}, s.wrap("read batch "+id, err)
	}
	var b lpmos.Batch
	var specs []lpmos.Spec
	var sealed map[int]lpmos.SealedLine
	var asked lpmos.Actor
	for _, kv := range r.Kvs { // the outcome sorts before the request
		switch k, _ := ParseKey(string(kv.Key)); k.Kind {
		case KindBatchOutcome:
			b, err = decode[lpmos.Batch](kv.Value)
		case KindBatchRequest:
			var q batchRequest
			q, err = decode[batchRequest](kv.Value)
			if specs, sealed, asked = q.Specs, q.Sealed, q.Asked; b.ID == "" {
				b = q.Batch
			}
		}
		if err != nil {
			return lpmos.Batch{}, fmt.Errorf("decode %s: %w", kv.Key, err)
		}
	}
	if b.ID == "" {
		return lpmos.Batch{}, fmt.Errorf("batch %s (the outcome is kept for 30 days): %w", id, lpmos.ErrNotFound)
	}
	b.Specs, b.Sealed, b.Asked = specs, sealed, asked
	return b, nil
}

// OpenBatches are the ids of those that are not finished.
func (s *Store) OpenBatches(ctx context.Context) ([]string, error) {
	cctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.Get(cctx, prefix+"batches/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, s.wrap("list batches", err)
	}
	var out []string
	for _, kv := range r.Kvs {
		if k, ok := ParseKey(string(kv.Key)); ok && k.Kind == KindBatchRequest {
			out = append(out, k.TaskID)
		}
	}
	return out, nil
}

// BatchProgress stores how far a batch has come. When it is finished its lines
// are forgotten, and in keepBatch the rest.
func (s *Store) BatchProgress(ctx context.Context, b lpmos.Batch) error {
	outcome := Key{Kind: KindBatchOutcome, TaskID: b.ID}.String()
	request := Key{Kind: KindBatchRequest, TaskID: b.ID}.String()
	var opts []clientv3.OpOption
	var after []clientv3.Op
	if b.Finished {
		lease, err := s.grant(ctx, keepBatch)
		if err != nil {
			return err
		}
		opts, after = append(opts, clientv3.WithLease(lease)), append(after, clientv3.OpDelete(request))
	}
	// Another replica may have finished it meanwhile; the lease then ends by itself.
	_, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(request), ">", 0)},
		append(after, clientv3.OpPut(outcome, string(encode(b)), opts...)), nil)
	if err != nil {
		return fmt.Errorf("store progress of batch %s: %w", b.ID, err)
	}
	return nil
}

// CreateBatchTask makes the task of a line (from 1), or finds that it was made
// before.
func (s *Store) CreateBatchTask(ctx context.Context, b lpmos.Batch, line int) (lpmos.Task, error) {
	id := lpmos.BatchTaskID(b.ID, line)
	if rec, err := s.Task(ctx, id); err == nil {
		return rec.Task, nil
	} else if !errors.Is(err, lpmos.ErrNotFound) {
		return lpmos.Task{}, err
	}
	fresh := lpmos.Task{ID: id, Spec: b.Specs[line-1], CreatedBy: b.CreatedBy, BatchID: b.ID}
	var sealed *lpmos.SealedSecrets
	if l, ok := b.Sealed[line]; ok {
		fresh.Committed, sealed = l.Committed, &lpmos.SealedSecrets{TaskID: id, AtRest: l.AtRest}
	}
	t, err := s.create(lpmos.WithActor(ctx, b.Asked), fresh, sealed, fmt.Sprintf("Task created, line %d of batch %s.", line, b.ID), "", "")
	if errors.Is(err, lpmos.ErrConflict) {
		// Of two replicas that create the same line, one is told that the
		// machine belongs to the task it was about to create.
		if rec, again := s.Task(ctx, id); again == nil {
			return rec.Task, nil
		}
	}
	return t, err
}

func batchPrefix(id string) string { return prefix + "batches/" + mustID(id) + "/" }
