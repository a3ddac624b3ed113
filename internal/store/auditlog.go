package store

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// Reading the audit, and what keeps it: notes of where tasks' chains end, signed
// heads, and the end of what is old.

func auditKey(seq int64) string { return Key{Kind: KindAuditEntry, Seq: seq}.String() }

// auditPage is how many entries are read at a time.
const auditPage = 500

// AuditEnd is where the administration chain ends; zero when it has not begun.
func (s *Store) AuditEnd(ctx context.Context) (lpmos.ChainHead, error) {
	end, _, err := readVersion[lpmos.ChainHead](ctx, s, Key{Kind: KindAuditHead}.String())
	return end, err
}

// AuditEntries are those with numbers from one to before another, as they are
// kept; those that are gone, or cannot be read, are left out.
func (s *Store) AuditEntries(ctx context.Context, from, before int64) (out []lpmos.AuditEntry, err error) {
	if from >= before {
		return nil, nil
	}
	kvs, err := s.span(ctx, auditKey(max(from, 0)), auditKey(before), 0)
	for _, kv := range kvs {
		if e, err := decode[lpmos.AuditEntry](kv.value); err == nil && e.Seq == kv.key.Seq {
			out = append(out, e)
		}
	}
	return out, err
}

// keptValue is one key of a range.
type keptValue struct {
	key   Key
	value []byte
}

// span reads a range that is known to be short, at a revision (0: now).
func (s *Store) span(ctx context.Context, from, before string, rev int64, opts ...clientv3.OpOption) (out []keptValue, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*s.timeout)
	defer cancel()
	r, err := s.c.Get(ctx, from, append(opts, clientv3.WithRange(before), clientv3.WithRev(rev))...)
	if err != nil {
		return nil, s.wrap("read "+from, err)
	}
	for _, kv := range r.Kvs {
		if k, ok := ParseKey(string(kv.Key)); ok {
			out = append(out, keptValue{k, kv.Value})
		}
	}
	return out, nil
}

// SignedHeads are the heads that were signed, oldest first.
func (s *Store) SignedHeads(ctx context.Context) ([]lpmos.AuditHead, error) {
	kvs, err := s.span(ctx, signedPrefix, clientv3.GetPrefixRangeEnd(signedPrefix), 0)
	var out []lpmos.AuditHead
	for _, kv := range kvs {
		if h, err := decode[lpmos.AuditHead](kv.value); err == nil && h.Seq == kv.key.Seq {
			out = append(out, h)
		}
	}
	return out, err
}

const signedPrefix = prefix + "audit/signed/"

// maxNoted is how many tasks one entry notes: about 60 KiB.
const maxNoted = 500

// NoteTasks writes into the administration chain where the chains of these
// tasks end, so that its signed heads vouch for them. Tasks that are gone are
// left out.
func (s *Store) NoteTasks(ctx context.Context, ids []string) error {
	heads := map[string]lpmos.ChainHead{}
	note := func() error {
		if len(heads) == 0 {
			return nil
		}
		_, err := s.administer(ctx, deed{action: lpmos.AuditTasksNoted, subject: fmt.Sprintf("tasks (%d)", len(heads)), heads: heads}, nil, nil, nil)
		heads = map[string]lpmos.ChainHead{}
		return err
	}
	const together = 60 // two reads each, of which one transaction takes 128
	for len(ids) > 0 {
		some := ids[:min(together, len(ids))]
		ids = ids[len(some):]
		var reads []clientv3.Op
		for _, id := range some {
			reads = append(reads, clientv3.OpGet(Key{Kind: KindMetadata, TaskID: id}.String()), clientv3.OpGet(Key{Kind: KindArchive, TaskID: id}.String()))
		}
		r, err := s.commit(ctx, nil, reads, nil)
		if err != nil {
			return fmt.Errorf("read where tasks' chains end: %w", err)
		}
		for i, resp := range r.Responses {
			id := some[i/2]
			parts, _ := changes(resp.GetResponseRange().Kvs)
			if len(parts) > 0 && parts[0].Key.Kind == KindArchive {
				if parts, err = archivedHead(id, parts[0].Value); err != nil {
					return fmt.Errorf("decode what is archived of task %s: %w", id, err)
				}
			}
			end, ok, err := chainOf(parts)
			if err != nil {
				return err
			}
			if ok {
				heads[id] = end
			}
		}
		if len(heads) > maxNoted-together || len(ids) == 0 {
			if err := note(); err != nil {
				return err
			}
		}
	}
	return nil
}

// SignAudit has sign sign the head of the administration chain, unless it did
// already, and answers the newest signed one (nil: nothing is to be signed).
// What does not continue the newest is not signed: the error names what was
// altered.
func (s *Store) SignAudit(ctx context.Context, sign func(*lpmos.AuditHead)) (*lpmos.AuditHead, error) {
	for range maxRaces {
		headKey := Key{Kind: KindAuditHead}.String()
		end, rev, err := readVersion[lpmos.ChainHead](ctx, s, headKey)
		if err != nil || end.Seq == 0 {
			return nil, err
		}
		heads, err := s.SignedHeads(ctx)
		if err != nil {
			return nil, err
		}
		from := lpmos.ChainHead{Hash: lpmos.AuditOrigin(s.id)}
		if len(heads) > 0 {
			last := heads[len(heads)-1]
			if last.ChainHead == end {
				return &last, nil
			}
			from = last.ChainHead
		}
		if err := s.continues(ctx, from, end); err != nil {
			return nil, err
		}
		h := lpmos.AuditHead{StoreID: s.id, ChainHead: end, At: time.Now().UTC()}
		sign(&h)
		key := Key{Kind: KindSignedHead, Seq: h.Seq}.String()
		r, err := s.commit(ctx,
			[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(headKey), "=", rev), clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
			[]clientv3.Op{clientv3.OpPut(key, string(encode(h)))}, nil)
		if err != nil {
			return nil, fmt.Errorf("store the signed head: %w", err)
		}
		if r.Succeeded {
			return &h, nil
		}
	}
	return nil, fmt.Errorf("sign the audit: %w: too many writers at once", lpmos.ErrUnavailable)
}

// continues checks that the chain goes on from one head to another.
func (s *Store) continues(ctx context.Context, from, to lpmos.ChainHead) error {
	v := lpmos.ContinueAudit(from)
	for at := from.Seq + 1; at <= to.Seq; at += auditPage {
		kvs, err := s.span(ctx, auditKey(at), auditKey(min(at+auditPage, to.Seq+1)), 0)
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			e, _ := decode[lpmos.AuditEntry](kv.value) // one that cannot be read is not what was written
			if err := v.Add(lpmos.AuditRecord{Seq: kv.key.Seq, Entry: &e}); err != nil {
				return err
			}
		}
	}
	return v.Add(lpmos.AuditRecord{End: &to})
}

// TrimAudit removes what came up to the newest head that was signed before a
// moment, which sign signs again as where the chain was cut. It reports whether
// anything was removed.
func (s *Store) TrimAudit(ctx context.Context, before time.Time, sign func(*lpmos.AuditHead)) (bool, error) {
	heads, err := s.SignedHeads(ctx)
	if err != nil {
		return false, err
	}
	for i := len(heads) - 1; i >= 0; i-- {
		h := heads[i]
		if !h.At.Before(before) || h.Trimmed {
			continue
		}
		key := Key{Kind: KindSignedHead, Seq: h.Seq}.String()
		h.Trimmed = true
		sign(&h)
		r, err := s.commit(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), ">", 0)}, []clientv3.Op{
			clientv3.OpPut(key, string(encode(h))),
			clientv3.OpDelete(auditKey(0), clientv3.WithRange(auditKey(h.Seq+1))),
			clientv3.OpDelete(signedPrefix, clientv3.WithRange(key)),
		}, nil)
		if err != nil {
			return false, fmt.Errorf("trim the audit: %w", err)
		}
		return r.Succeeded, nil // else another replica trimmed more
	}
	return false, nil
}

// ExportAudit yields everything that lpmos.AuditVerifier wants to see, as it is
// at one revision: the administration chain with its signed heads, then every
// task's events.
func (s *Store) ExportAudit(ctx context.Context, yield func(lpmos.AuditRecord) error) error {
	begin := lpmos.AuditBegin{StoreID: s.id, At: time.Now().UTC(), Keys: []ed25519.PublicKey{}}
	headKey := Key{Kind: KindAuditHead}.String()
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(headKey), clientv3.OpGet(Key{Kind: KindGlobal}.String())}, nil)
	if err != nil {
		return err
	}
	begin.Rev = r.Header.Revision
	var end lpmos.ChainHead
	for _, kv := range r.Responses[0].GetResponseRange().Kvs {
		if end, err = decode[lpmos.ChainHead](kv.Value); err != nil {
			return fmt.Errorf("decode %s: %w", headKey, err)
		}
	}
	for _, kv := range r.Responses[1].GetResponseRange().Kvs {
		g, err := decode[Global](kv.Value)
		if err != nil {
			return fmt.Errorf("decode %s: %w", kv.Key, err)
		}
		for _, k := range g.Keys {
			begin.Keys = append(begin.Keys, k)
		}
	}
	if err := yield(lpmos.AuditRecord{Begin: &begin}); err != nil {
		return err
	}
	if err := s.exportChain(ctx, begin.Rev, yield); err != nil {
		return err
	}
	if err := s.exportTasks(ctx, begin.Rev, yield); err != nil {
		return err
	}
	return yield(lpmos.AuditRecord{End: &end})
}

func (s *Store) exportChain(ctx context.Context, rev int64, yield func(lpmos.AuditRecord) error) error {
	signed, err := s.span(ctx, signedPrefix, clientv3.GetPrefixRangeEnd(signedPrefix), rev)
	if err != nil {
		return err
	}
	headsBefore := func(seq int64) error {
		for len(signed) > 0 && signed[0].key.Seq < seq {
			h, _ := decode[lpmos.AuditHead](signed[0].value) // one that cannot be read is not what was signed
			if err := yield(lpmos.AuditRecord{Seq: signed[0].key.Seq, Head: &h}); err != nil {
				return err
			}
			signed = signed[1:]
		}
		return nil
	}
	from, last := auditKey(0), clientv3.GetPrefixRangeEnd(prefix+"audit/entries/")
	for {
		page, err := s.span(ctx, from, last, rev, clientv3.WithLimit(auditPage))
		if err != nil {
			return err
		}
		for _, kv := range page {
			if err := headsBefore(kv.key.Seq); err != nil {
				return err
			}
			e, _ := decode[lpmos.AuditEntry](kv.value)
			if err := yield(lpmos.AuditRecord{Seq: kv.key.Seq, Entry: &e}); err != nil {
				return err
			}
		}
		if len(page) < auditPage {
			break
		}
		from = page[len(page)-1].key.String() + "\x00"
	}
	return headsBefore(1 << 62)
}

func (s *Store) exportTasks(ctx context.Context, rev int64, yield func(lpmos.AuditRecord) error) error {
	// etcd counts, for every range, what lies in it: tasks are asked for in 256
	// parts, by how their ids begin.
	for i := range 256 {
		for _, family := range []string{"archive/", "tasks/"} {
			from := fmt.Sprintf("%s%s%02x", prefix, family, i)
			keys, err := s.span(ctx, from, clientv3.GetPrefixRangeEnd(from), rev, clientv3.WithKeysOnly())
			if err != nil {
				return err
			}
			last := ""
			for _, kv := range keys {
				id := kv.key.TaskID
				if id == last {
					continue
				}
				last = id
				if err := s.exportTask(ctx, id, rev, yield); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *Store) exportTask(ctx context.Context, id string, rev int64, yield func(lpmos.AuditRecord) error) error {
	parts, _, err := s.parts(ctx, id, rev,
		clientv3.OpGet(eventPrefix(id), clientv3.WithPrefix(), clientv3.WithRev(rev)),
		clientv3.OpGet(Key{Kind: KindMetadata, TaskID: id}.String(), clientv3.WithRev(rev)))
	if err != nil {
		return err
	}
	for _, c := range parts {
		if c.Key.Kind != KindEvent {
			continue
		}
		e, _ := Decode[lpmos.Event](c)
		if err := yield(lpmos.AuditRecord{Task: id, Seq: c.Key.Seq, Event: &e}); err != nil {
			return err
		}
	}
	end, _, err := chainOf(parts)
	if err != nil {
		return err
	}
	return yield(lpmos.AuditRecord{Task: id, Chain: &end})
}

// chainOf is where a task's chain ends, as its metadata says, if that is among
// its keys.
func chainOf(parts []Change) (end lpmos.ChainHead, ok bool, err error) {
	for _, c := range parts {
		if c.Key.Kind == KindMetadata {
			m, err := Decode[metadata](c)
			return lpmos.ChainHead{Seq: m.EventSeq, Hash: m.EventHash}, err == nil, err
		}
	}
	return end, false, nil
}

// AuditEntry is one entry.
func (s *Store) AuditEntry(ctx context.Context, seq int64) (lpmos.AuditEntry, error) {
	if seq < 1 || seq > 1<<31-1 {
		return lpmos.AuditEntry{}, &lpmos.InvalidError{Field: "seq", Problem: "is not the number of an entry", Value: fmt.Sprint(seq)}
	}
	all, err := s.AuditEntries(ctx, seq, seq+1)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("audit entry %d: %w", seq, lpmos.ErrNotFound)
	}
	if err != nil {
		return lpmos.AuditEntry{}, err
	}
	return all[0], nil
}
