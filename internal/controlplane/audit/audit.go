// Package audit reads what administrators did, and has the control plane sign
// where the record ends: daily, when it starts and when it ends.
//
// The record itself is written by the store, in the transactions that change
// something. A signed head vouches for everything before it, of administration
// and of tasks, so it is signed only after what was added was found to continue
// the head before.
package audit

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// Log is where the record is kept.
type Log interface {
	AuditEnd(ctx context.Context) (lpmos.ChainHead, error)
	AuditEntry(ctx context.Context, seq int64) (lpmos.AuditEntry, error)
	AuditEntries(ctx context.Context, from, before int64) ([]lpmos.AuditEntry, error)
	SignedHeads(ctx context.Context) ([]lpmos.AuditHead, error)
	ExportAudit(ctx context.Context, yield func(lpmos.AuditRecord) error) error
}

const (
	window   = 200  // entries that are read at a time
	mostRead = 5000 // and for one page
)

// Page answers a query.
func Page(ctx context.Context, log Log, q api.AuditQuery) (api.AuditPage, error) {
	var p api.AuditPage
	end, err := log.AuditEnd(ctx)
	if err != nil {
		return p, err
	}
	heads, err := log.SignedHeads(ctx)
	if err != nil {
		return p, err
	}
	p.Last = end.Seq
	first := int64(1)
	if len(heads) > 0 {
		p.Signed = &heads[len(heads)-1]
		if heads[0].Trimmed {
			first = heads[0].Seq + 1
		}
	}
	if q.Limit == 0 {
		q.Limit = 100
	}
	before := end.Seq + 1
	if q.Cursor > 0 {
		before = min(before, q.Cursor)
	}
	for least := max(first, before-mostRead); before > least; {
		from := max(least, before-window)
		entries, err := log.AuditEntries(ctx, from, before)
		if err != nil {
			return p, err
		}
		for i := len(entries) - 1; i >= 0; i-- {
			e := &entries[i]
			if !q.After.IsZero() && e.At.Before(q.After.Add(-clocks)) {
				return p, nil // so is everything before
			}
			if !q.Matches(e) {
				continue
			}
			p.Entries = append(p.Entries, *e)
			if len(p.Entries) == q.Limit {
				if e.Seq > first {
					p.Next = e.Seq
				}
				return p, nil
			}
		}
		before = from
	}
	if before > first {
		p.Next = before
	}
	return p, nil
}

// clocks is how far those of two replicas may be apart.
const clocks = time.Hour

// Keep is what keeps the record.
type Keep interface {
	SignedHeads(ctx context.Context) ([]lpmos.AuditHead, error)
	NoteTasks(ctx context.Context, ids []string) error
	SignAudit(ctx context.Context, sign func(*lpmos.AuditHead)) (*lpmos.AuditHead, error)
	TrimAudit(ctx context.Context, before time.Time, sign func(*lpmos.AuditHead)) (bool, error)
}

// How long entries are kept: what is older than keepFor goes, once something is
// older than trimAt.
const (
	keepFor = 400 * 24 * time.Hour
	trimAt  = 430 * 24 * time.Hour
)

const (
	signEvery = 24 * time.Hour
	lookEvery = 10 * time.Minute
	signAtEnd = 3 * time.Second // is all the time there is
)

// Keeper signs.
type Keeper struct {
	Log Keep
	Key ed25519.PrivateKey
	// Moved are the tasks that changed since a moment.
	Moved func(since time.Time) []string
	Now   func() time.Time
	Err   *slog.Logger
}

// Run signs the head when none was signed for a day, and once more when ctx
// ends.
func (k *Keeper) Run(ctx context.Context) error {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for ctx.Err() == nil {
		if err := k.Sign(ctx, signEvery); err != nil && ctx.Err() == nil {
			k.Err.Error("audit not signed", "err", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	// While nobody looks is when records are best tampered with.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), signAtEnd)
	defer cancel()
	if err := k.Sign(end, 0); err != nil {
		k.Err.Warn("audit not signed at the end", "err", err)
	}
	return nil
}

// Sign notes where the chains of tasks end and signs the head, unless one was
// signed less than age ago.
func (k *Keeper) Sign(ctx context.Context, age time.Duration) error {
	heads, err := k.Log.SignedHeads(ctx)
	if err != nil {
		return err
	}
	var since time.Time
	if len(heads) > 0 {
		last, first := heads[len(heads)-1], heads[0]
		if k.Now().Sub(last.At) < age {
			return nil
		}
		since = last.At.Add(-clocks)
		if k.Now().Sub(first.At) > trimAt {
			trimmed, err := k.Log.TrimAudit(ctx, k.Now().Add(-keepFor), k.sign)
			if err != nil {
				return err
			}
			if trimmed {
				since = time.Time{} // notes of older tasks went with it
			}
		}
	}
	if err := k.Log.NoteTasks(ctx, k.Moved(since)); err != nil {
		return fmt.Errorf("note where the chains of tasks end: %w", err)
	}
	_, err = k.Log.SignAudit(ctx, k.sign)
	return err
}

func (k *Keeper) sign(h *lpmos.AuditHead) { h.Sign(k.Key) }
