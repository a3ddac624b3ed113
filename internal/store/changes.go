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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
// An archived task is one change of KindArchive in it, see Change.Archived; who
// follows is told of none.
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

// A page of a listing has about this many bytes; what a client takes at once is
// bounded (see Open), and values are not.
const pageBytes = 4 << 20

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

// list reads the scope as it is at one revision. Several ranges are asked for
// at a time: while one is taken apart here, the store answers for the next.
func (s *Store) list(ctx context.Context, scope Scope) (Batch, error) {
	cctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.Get(cctx, string(scope)) // for its revision alone
	if err != nil {
		return Batch{}, s.wrap("list "+string(scope), err)
	}
	rev := r.Header.Revision
	from, ends := string(scope), []string{scope.end()}
	if scope == All {
		ends = append(allDivided(), ends...)
	}
	found := make([][]Change, len(ends))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(listers)
	for i, end := range ends {
		begin := from
		g.Go(func() (err error) {
			found[i], err = s.listRange(ctx, scope, begin, end, rev)
			return err
		})
		from = end
	}
	if err := g.Wait(); err != nil {
		return Batch{}, err
	}
	return Batch{Rev: rev, Reset: true, Changes: slices.Concat(found...)}, nil
}

// listers is how many ranges of a listing are asked for at a time.
const listers = 3

// allDivided is where All is divided for a listing. For every page etcd walks
// over all keys that are left of the range it is asked for, to count them: many
// ranges are quicker than one. Ids are evenly spread.
func allDivided() (at []string) {
	at = append(at, prefix+"agents/", prefix+"archive/")
	for _, digit := range "123456789abcdef" {
		at = append(at, prefix+"archive/"+string(digit))
	}
	return append(at, prefix+"archive0", prefix+"regions/", prefix+"tasks/", prefix+"tasks0")
}

// pages calls f with each of our keys from one to before another, as they were
// at rev; 0 is now, of each page.
func (s *Store) pages(ctx context.Context, from, end string, rev int64, f func(k Key, value []byte, rev int64), opts ...clientv3.OpOption) error {
	opts = append(opts, clientv3.WithRange(end), clientv3.WithRev(rev))
	limit := int64(200)
	for {
		cctx, cancel := context.WithTimeout(ctx, 2*s.timeout)
		r, err := s.c.Get(cctx, from, append(opts, clientv3.WithLimit(limit))...)
		cancel()
		switch {
		case errors.Is(err, rpctypes.ErrCompacted):
			return fmt.Errorf("list %s: history was compacted meanwhile: %w", from, err)
		case status.Code(err) == codes.ResourceExhausted && limit > 1:
			limit = max(1, limit/8) // values grew a lot
			continue
		case err != nil:
			return s.wrap("list "+from, err)
		}
		size := 1
		for _, kv := range r.Kvs {
			size += len(kv.Key) + len(kv.Value)
			if k, ok := ParseKey(string(kv.Key)); ok {
				f(k, kv.Value, kv.ModRevision)
			}
		}
		if !r.More {
			return nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
		limit = min(max(1, pageBytes*int64(len(r.Kvs))/int64(size)), 20_000)
	}
}

// listRange is the listing of a part of a scope.
func (s *Store) listRange(ctx context.Context, scope Scope, from, end string, rev int64) (out []Change, err error) {
	err = s.pages(ctx, from, end, rev, func(k Key, value []byte, at int64) {
		c := Change{Key: k, Value: value, Rev: at}
		if len(out) == cap(out) {
			out = slices.Grow(out, max(64, len(out))) // append grows what is large by a quarter at a time
		}
		switch {
		case scope != All:
			out = append(out, c)
		case !unlisted(k.Kind):
			out = listed(out, c)
		}
	})
	return out, err
}

// unlisted are the kinds that nobody follows from their beginning.
func unlisted(k Kind) bool {
	switch k {
	case KindEvent, KindIdempotency, KindEnrollment, KindTries, KindBatchRequest, KindAuditEntry, KindSignedHead:
		return true
	}
	return false
}

// listed appends a key to a listing of All. With its status, the last of its
// keys, a task that has ended loses its large values.
func listed(all []Change, c Change) []Change {
	all = append(all, c)
	if c.Key.Kind == KindStatus && !lpmos.Status(c.Value).Live() {
		for i := len(all) - 1; i >= 0 && all[i].Key.TaskID == c.Key.TaskID; i-- {
			if large(all[i].Key.Kind) {
				all[i].Value, all[i].Left = nil, true
			}
		}
	}
	return all
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
		give := func() (more bool) {
			b.Changes = withoutArchiving(b.Changes)
			return len(b.Changes) == 0 || yield(b, nil)
		}
		for _, e := range r.Events {
			k, ok := ParseKey(string(e.Kv.Key))
			if !ok {
				continue
			}
			if b.Rev != e.Kv.ModRevision {
				if !give() {
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
		if !give() {
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
