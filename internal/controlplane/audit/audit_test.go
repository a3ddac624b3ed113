package audit_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/audit"
)

// record is an audit in memory.
type record struct {
	entries []lpmos.AuditEntry // by number, from the first that is kept
	heads   []lpmos.AuditHead
	noted   [][]string
	calls   []string
	fail    error
	reads   int
	at      time.Time
}

func (r *record) AuditEnd(context.Context) (h lpmos.ChainHead, err error) {
	if n := len(r.entries); n > 0 {
		h.Seq = r.entries[n-1].Seq
	}
	return h, r.fail
}
func (r *record) AuditEntry(context.Context, int64) (lpmos.AuditEntry, error) {
	return lpmos.AuditEntry{}, errors.New("not asked")
}
func (r *record) AuditEntries(_ context.Context, from, before int64) (out []lpmos.AuditEntry, err error) {
	r.reads++
	for _, e := range r.entries {
		if e.Seq >= from && e.Seq < before {
			out = append(out, e)
		}
	}
	return out, nil
}
func (r *record) SignedHeads(context.Context) ([]lpmos.AuditHead, error) { return r.heads, r.fail }
func (r *record) ExportAudit(context.Context, func(lpmos.AuditRecord) error) error {
	return errors.New("not asked")
}
func (r *record) NoteTasks(_ context.Context, ids []string) error {
	r.calls, r.noted = append(r.calls, "note"), append(r.noted, ids)
	return nil
}
func (r *record) SignAudit(_ context.Context, sign func(*lpmos.AuditHead)) (*lpmos.AuditHead, error) {
	h := lpmos.AuditHead{At: r.at}
	sign(&h)
	r.calls, r.heads = append(r.calls, "sign"), append(r.heads, h)
	return &h, nil
}
func (r *record) TrimAudit(_ context.Context, before time.Time, _ func(*lpmos.AuditHead)) (bool, error) {
	r.calls = append(r.calls, "trim "+before.Format(time.DateOnly))
	return true, nil
}

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestPage(t *testing.T) {
	r := &record{}
	for seq := int64(1); seq <= 12_000; seq++ {
		e := lpmos.AuditEntry{Seq: seq, At: begin.Add(time.Duration(seq) * time.Minute), By: "anna", Action: "user.update", Subject: "user bob"}
		if seq == 3 || seq == 7000 {
			e.By, e.Action, e.Subject = "carl", "machine.lock", "machine 52:54:00:00:00:01"
		}
		r.entries = append(r.entries, e)
	}
	whole := func(q api.AuditQuery) (out []int64, pages int) {
		for {
			p, err := audit.Page(t.Context(), r, q)
			if err != nil {
				t.Fatal(err)
			}
			pages++
			for _, e := range p.Entries {
				out = append(out, e.Seq)
			}
			if p.Next == 0 {
				return out, pages
			}
			q.Cursor = p.Next
		}
	}
	if got, _ := whole(api.AuditQuery{Limit: 1000}); len(got) != 12_000 || got[0] != 12_000 || got[11_999] != 1 {
		t.Errorf("all = %d entries", len(got))
	}
	if got, pages := whole(api.AuditQuery{By: "carl"}); !slices.Equal(got, []int64{7000, 3}) || pages < 3 {
		t.Errorf("those of carl = %v on %d pages; want two, on pages that each look at no more than 5000", got, pages)
	}
	if got, _ := whole(api.AuditQuery{Action: "machine", Subject: "52:54"}); !slices.Equal(got, []int64{7000, 3}) {
		t.Errorf("about machines = %v", got)
	}
	if got, _ := whole(api.AuditQuery{Action: "mach"}); got != nil {
		t.Errorf("half a word = %v; want nothing", got)
	}
	if got, _ := whole(api.AuditQuery{After: begin.Add(5 * time.Minute), Before: begin.Add(8 * time.Minute)}); !slices.Equal(got, []int64{7, 6, 5}) {
		t.Errorf("in a time = %v", got)
	}
	r.reads = 0
	if got, pages := whole(api.AuditQuery{After: begin.Add(11_999 * time.Minute)}); len(got) != 2 || pages != 1 || r.reads > 2 {
		t.Errorf("the newest = %v, in %d reads; want what is older not looked at", got, r.reads)
	}
	// What was trimmed is not looked for.
	r.entries, r.heads = r.entries[11_990:], []lpmos.AuditHead{{ChainHead: lpmos.ChainHead{Seq: 11_990}, Trimmed: true}}
	if got, pages := whole(api.AuditQuery{}); len(got) != 10 || pages != 1 {
		t.Errorf("after a trim = %v on %d pages", got, pages)
	}
}

func TestKeeper(t *testing.T) {
	now := begin
	r := &record{}
	var since []time.Time
	k := audit.Keeper{
		Log: r, Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Now: func() time.Time { return now }, Err: slog.New(slog.DiscardHandler),
		Moved: func(at time.Time) []string { since = append(since, at); return []string{fmt.Sprint(len(since))} },
	}
	step := func(after time.Duration, age time.Duration, want ...string) {
		t.Helper()
		now, r.calls = now.Add(after), nil
		r.at = now
		if err := k.Sign(t.Context(), age); err != nil || !slices.Equal(r.calls, want) {
			t.Errorf("at %v: %v, %v; want %v", now, r.calls, err, want)
		}
	}
	const day = 24 * time.Hour
	step(0, day, "note", "sign")
	step(day-time.Second, day)
	step(time.Second, day, "note", "sign")
	step(time.Hour, 0, "note", "sign")
	if want := []time.Time{{}, begin.Add(-time.Hour), begin.Add(day - time.Hour)}; !slices.EqualFunc(since, want, time.Time.Equal) {
		t.Errorf("tasks were asked for since %v; want %v", since, want)
	}
	if err := r.heads[0].Verify([]ed25519.PublicKey{k.Key.Public().(ed25519.PublicKey)}); err != nil {
		t.Error(err)
	}
	// What is older than 430 days goes up to 400 days ago, and all tasks are noted anew.
	step(430*day, day, "trim "+begin.Add(31*day+time.Hour).Format(time.DateOnly), "note", "sign")
	if !since[len(since)-1].IsZero() {
		t.Errorf("after a trim tasks were asked for since %v; want all", since[len(since)-1])
	}

	r.fail = lpmos.ErrUnavailable
	if err := k.Sign(t.Context(), 0); !errors.Is(err, lpmos.ErrUnavailable) {
		t.Errorf("without a store = %v", err)
	}
	// It ends in time, also then.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.Run(ctx); err != nil {
		t.Error(err)
	}
}
