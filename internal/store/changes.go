package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/lpmos/lpmos"
)

// Change is one key that was written, or deleted when Value is nil.
type Change struct {
	Key   Key
	Value []byte
	Rev   int64 // of the store, when it was written
	// Left says that the value was left out of a listing of All: hardware, plan
	// and log of tasks that have ended are most of what is stored and are read
	// when somebody looks at one.
	Left bool
}

// Batch is what one revision of the store changed: the outcome of one
// transaction, whole. After a Reset batch, what was known before is void and
// Changes is everything that exists.
type Batch struct {
	Rev     int64
	Reset   bool
	Changes []Change
}

// Scope is a part of the key space that can be followed.
type Scope string

// All is everything the control plane follows. A listing of it is without
// events, idempotency keys, batches and the audit, and see Change.Left.
const All Scope = prefix

// RegionScope is what one region follows beside GlobalScope.
func RegionScope(region string) Scope { return Scope(regionPrefix(region)) }

// ConfigScope is configuration: boot image, catalogue.
const ConfigScope Scope = prefix + "config/"

// GlobalScope is what regions follow of it: boot image and public keys.
const GlobalScope Scope = prefix + "config/global"

// end is what the scope's range ends before. A scope that does not end in a
// slash is one key.
func (s Scope) end() string {
	if strings.HasSuffix(string(s), "/") {
		return clientv3.GetPrefixRangeEnd(string(s))
	}
	return string(s) + "\x00"
}

// listPage is how many keys one range of a listing asks for.
const listPage = 2000

// Changes lists the scope and then follows it. The first batch is a Reset, and
// so is the one after history was compacted past a consumer that was cut off.
// It survives loss of the connection; the sequence ends when ctx does, or with
// an error that waiting cannot mend (no right to read).
func (s *Store) Changes(ctx context.Context, scope Scope) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		for ctx.Err() == nil {
			b, err := s.list(ctx, scope)
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				if errors.Is(err, ErrDenied) {
					yield(Batch{}, err)
					return
				}
				s.log.Warn("list store, trying again", "scope", string(scope), "err", err)
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
				}
				continue
			}
			if !yield(b, nil) {
				return
			}
			done, err := s.follow(ctx, scope, b.Rev+1, yield)
			if done {
				return
			}
			if err != nil && ctx.Err() == nil {
				s.log.Warn("watch store, listing again", "scope", string(scope), "err", err)
			}
		}
	}
}

func (s *Store) list(ctx context.Context, scope Scope) (Batch, error) {
	out := Batch{Reset: true}
	bounds, err := s.bounds(ctx, scope, &out.Rev)
	if err != nil {
		return Batch{}, err
	}
	// While one range is taken apart here, the store answers for the next.
	parts := make([][]Change, len(bounds)-1)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(listers)
	for i := range parts {
		g.Go(func() (err error) {
			parts[i], err = s.listRange(ctx, scope, bounds[i], bounds[i+1], out.Rev)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return Batch{}, err
	}
	out.Changes = slices.Concat(parts...)
	return out, nil
}

// listers is how many ranges of a listing are asked for at a time.
const listers = 3

// manyKeys is from how many keys on a listing is divided.
const manyKeys = 20_000

// bounds divides a scope into ranges that are listed one after the other. For
// every page etcd walks over all keys that are left of the range it is asked
// for, to count them: the pages of one range of a million keys would cost more
// than everything else. Ids of tasks are evenly spread.
func (s *Store) bounds(ctx context.Context, scope Scope, rev *int64) ([]string, error) {
	end := scope.end()
	cctx, cancel := context.WithTimeout(ctx, 2*s.timeout)
	defer cancel()
	r, err := s.c.Get(cctx, string(scope), clientv3.WithRange(end), clientv3.WithCountOnly())
	if err != nil {
		return nil, s.wrap("list "+string(scope), err)
	}
	*rev = r.Header.Revision
	out := []string{string(scope)}
	if scope == All && r.Count > manyKeys {
		out = append(out, prefix+"agents/", prefix+"agents0", prefix+"regions/")
		for i := range 256 {
			out = append(out, fmt.Sprintf("%stasks/%02x", prefix, i))
		}
	}
	return append(out, end), nil
}

// listRange is the keys from one to before another, as they were at rev.
func (s *Store) listRange(ctx context.Context, scope Scope, from, end string, rev int64) (out []Change, err error) {
	for {
		cctx, cancel := context.WithTimeout(ctx, 2*s.timeout)
		r, err := s.c.Get(cctx, from, clientv3.WithRange(end), clientv3.WithLimit(listPage), clientv3.WithRev(rev))
		cancel()
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil, fmt.Errorf("list %s: history was compacted meanwhile: %w", scope, err)
		}
		if err != nil {
			return nil, s.wrap("list "+string(scope), err)
		}
		out = slices.Grow(out, len(r.Kvs))
		for _, kv := range r.Kvs {
			k, ok := ParseKey(string(kv.Key))
			if !ok || scope == All && (k.Kind == KindEvent || k.Kind == KindIdempotency || k.Kind == KindEnrollment || k.Kind == KindTries || k.Kind == KindBatchRequest || k.Kind == KindAuditEntry || k.Kind == KindSignedHead) {
				continue // nobody follows them
			}
			out = append(out, Change{Key: k, Value: kv.Value, Rev: kv.ModRevision})
			if scope == All && k.Kind == KindStatus && !lpmos.Status(kv.Value).Live() {
				leave(out, k.TaskID)
			}
		}
		if !r.More {
			return out, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// leave drops the large values of the task that all ends with. Its status is
// the last of its keys.
func leave(all []Change, id string) {
	for i := len(all) - 1; i >= 0 && all[i].Key.TaskID == id; i-- {
		switch all[i].Key.Kind {
		case KindHardware, KindPlan, KindLogs, KindPrevious, KindTaskTemplate, KindTaskSetup:
			all[i].Value, all[i].Left = nil, true
		}
	}
}

// follow yields one batch for each revision from rev on. It reports done when
// the consumer had enough; otherwise the listing must be made anew.
func (s *Store) follow(ctx context.Context, scope Scope, rev int64, yield func(Batch, error) bool) (done bool, err error) {
	wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	watch := s.c.Watch(wctx, string(scope), clientv3.WithRange(scope.end()), clientv3.WithRev(rev), clientv3.WithProgressNotify())
	for r := range watch {
		if err := r.Err(); err != nil {
			if denied := deniedErr(err); denied != nil {
				denied = fmt.Errorf("follow %s: %w", scope, denied)
				yield(Batch{}, denied)
				return true, denied
			}
			return false, err
		}
		var b Batch
		for _, e := range r.Events {
			k, ok := ParseKey(string(e.Kv.Key))
			if !ok {
				continue
			}
			if b.Rev != e.Kv.ModRevision {
				if b.Rev != 0 && !yield(b, nil) {
					return true, nil
				}
				b = Batch{Rev: e.Kv.ModRevision}
			}
			c := Change{Key: k, Rev: e.Kv.ModRevision}
			if e.Type == mvccpb.PUT {
				c.Value = e.Kv.Value
			}
			b.Changes = append(b.Changes, c)
		}
		if b.Rev != 0 && !yield(b, nil) {
			return true, nil
		}
	}
	return ctx.Err() != nil, ctx.Err()
}

// Compact forgets history before rev: watchers further behind list anew.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, err := s.c.Compact(ctx, rev)
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil // another replica did
	}
	return s.wrap("compact history", err)
}
