package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// Every change by who administers is written down in the transaction that makes
// it. Two things keep it so: administer is the only way to write such a key
// (txn, which everything else goes through, refuses them), and a kind counts as
// such unless it is listed here.

// unaudited are the kinds that are written without an entry, and why.
var unaudited = map[Kind]string{
	KindMetadata: ofTask, KindStatus: ofTask, KindHardware: ofTask, KindPlan: ofTask, KindApproval: ofTask, KindProgress: ofTask, KindLogs: ofTask,
	KindError: ofTask, KindReceipt: ofTask, KindTaskTemplate: ofTask, KindTaskSetup: ofTask, KindPrevious: ofTask, KindEvent: ofTask, KindSecrets: ofTask, KindArchive: ofTask,
	KindIdempotency: ofTask, KindBatchOutcome: ofTask, KindBatchRequest: ofTask,
	KindAgentInfo: derived, KindAgentSeen: derived, KindAgentTask: derived, KindMachineTask: derived, KindOrder: derived, KindBoot: derived,
	KindRegionStatus: derived, KindTPM: "the approval that binds a machine to its TPM is an event of its task; forgetting one has an entry (ForgetTPM)", KindPermits: derived, KindStoreID: derived,
	KindDiscovered: observed, KindHeartbeat: observed, KindCapabilities: observed, KindReportAgent: observed, KindReportHardware: observed,
	KindReportProgress: observed, KindReportPermit: observed, KindReportLog: observed, KindReportResult: observed, KindReportBooted: observed,
	KindTries:  "nobody decides it: it is counted, and forgotten by itself",
	KindSignIn: "signing in and out changes nothing for others; a session that somebody ends has an entry (EndSignIn)",
}

const (
	ofTask   = "a task's own chain has it: who asked and who decided"
	derived  = "it follows from something that has an entry or an event"
	observed = "a region reports it; nobody decided it"
)

// Audited reports whether keys of this kind are changed with an entry only.
func (k Kind) Audited() bool { return unaudited[k] == "" }

// txn is one transaction of everything that is not administration.
func (s *Store) txn(ctx context.Context, conds []clientv3.Cmp, then, orElse []clientv3.Op) (*clientv3.TxnResponse, error) {
	for _, op := range append(then[:len(then):len(then)], orElse...) {
		if key, bad := administers(op); bad {
			return nil, fmt.Errorf("write %s: this has to have an audit entry, and was not written: a defect", key)
		}
	}
	return s.commit(ctx, conds, then, orElse)
}

// administers reports whether op writes a key that only administer may, and
// names it.
func administers(op clientv3.Op) (key string, yes bool) {
	if !op.IsPut() && !op.IsDelete() {
		return "", op.IsTxn() // of which there is none
	}
	key = string(op.KeyBytes())
	if len(op.RangeBytes()) > 0 {
		// What is removed whole: a task, and what a region reported of one.
		return key, !strings.HasPrefix(key, prefix+"tasks/") && !strings.Contains(key, "/reports/")
	}
	k, ok := ParseKey(key)
	return key, ok && k.Kind.Audited()
}

// commit is the one place where a transaction goes to etcd.
func (s *Store) commit(ctx context.Context, conds []clientv3.Cmp, then, orElse []clientv3.Op) (*clientv3.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.Txn(ctx).If(conds...).Then(then...).Else(orElse...).Commit()
	return r, s.wrap("write", err)
}

// deed is what an entry says beside who, from where and when.
type deed struct {
	action  string // one of lpmos.AuditActions
	subject string // "user anna"
	// before and after are what a ledger's show gives; nil for what there was,
	// or is, not.
	before, after any
	heads         map[string]lpmos.ChainHead
}

// chainEnd is audit/head as this process knows it.
type chainEnd struct {
	lpmos.ChainHead
	rev int64 // -1: not read yet
}

// administer writes what a deed changes, with its entry, if conds hold. Like
// txn's, its answer says whether they did. Of two writers one continues the
// chain and the other continues that; in this process they take turns.
func (s *Store) administer(ctx context.Context, d deed, conds []clientv3.Cmp, then, orElse []clientv3.Op) (*clientv3.TxnResponse, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, s.wrap("write", ctx.Err())
	}
	headKey := Key{Kind: KindAuditHead}.String()
	for range maxRaces {
		if s.end.rev < 0 {
			var err error
			if s.end.ChainHead, s.end.rev, err = readVersion[lpmos.ChainHead](ctx, s, headKey); err != nil {
				s.end.rev = -1
				return nil, err
			}
		}
		e := d.entry(ctx, s.id, s.end.ChainHead)
		next := lpmos.ChainHead{Seq: e.Seq, Hash: e.Hash}
		entryKey := Key{Kind: KindAuditEntry, Seq: e.Seq}.String()
		r, err := s.commit(ctx,
			append(conds[:len(conds):len(conds)], clientv3.Compare(clientv3.ModRevision(headKey), "=", s.end.rev), clientv3.Compare(clientv3.CreateRevision(entryKey), "=", 0)),
			append(then[:len(then):len(then)], clientv3.OpPut(entryKey, string(encode(e))), clientv3.OpPut(headKey, string(encode(next)))),
			append(orElse[:len(orElse):len(orElse)], clientv3.OpGet(headKey), clientv3.OpGet(entryKey, clientv3.WithCountOnly())))
		if err != nil {
			s.end.rev = -1 // it may have been written all the same
			return nil, err
		}
		if r.Succeeded {
			s.end = chainEnd{next, r.Header.Revision}
			return r, nil
		}
		n := len(r.Responses) - 2
		was := s.end.rev
		s.end = chainEnd{}
		if kvs := r.Responses[n].GetResponseRange().Kvs; len(kvs) > 0 {
			if s.end.ChainHead, err = decode[lpmos.ChainHead](kvs[0].Value); err != nil {
				s.end.rev = -1
				return nil, fmt.Errorf("decode %s: %w", headKey, err)
			}
			s.end.rev = kvs[0].ModRevision
		}
		if s.end.rev != was {
			continue // somebody else was quicker; whether conds hold is asked again
		}
		if r.Responses[n+1].GetResponseRange().Count > 0 {
			return nil, fmt.Errorf("nothing was written: %s says that entry %d is the last of the audit, and there is entry %d: look at it (lpmos audit verify) and put %s right", headKey, s.end.Seq, e.Seq, headKey)
		}
		r.Responses = r.Responses[:n]
		return r, nil
	}
	return nil, fmt.Errorf("write the audit: %w: too many writers at once", lpmos.ErrUnavailable)
}

func (d deed) entry(ctx context.Context, storeID string, last lpmos.ChainHead) lpmos.AuditEntry {
	who := lpmos.ActorOf(ctx)
	e := lpmos.AuditEntry{
		Seq: last.Seq + 1, At: time.Now().UTC(), By: who.Name, Peer: who.From, Via: who.Via, Action: d.action, Subject: d.subject, Heads: d.heads,
	}
	e.Before, e.After = difference(d.before, d.after)
	e.Seal(cmp.Or(last.Hash, lpmos.AuditOrigin(storeID)))
	return e
}

// longField is from which length on a field of an entry is only named by its
// digest.
const longField = 8 << 10

// difference is before and after as objects; of two, the fields that differ.
func difference(before, after any) (b, a json.RawMessage) {
	was, is := fields(before), fields(after)
	if was != nil && is != nil {
		for name, v := range was {
			if bytes.Equal(v, is[name]) {
				delete(was, name)
				delete(is, name)
			}
		}
	}
	return object(was), object(is)
}

func fields(v any) map[string]json.RawMessage {
	if v == nil {
		return nil
	}
	out, err := decode[map[string]json.RawMessage](encode(v))
	if err != nil {
		panic(fmt.Sprintf("store: an audit entry of %T: %v", v, err))
	}
	return out
}

func object(fields map[string]json.RawMessage) json.RawMessage {
	if fields == nil {
		return nil
	}
	for name, v := range fields {
		if len(v) > longField {
			fields[name] = encode(named{lpmos.DigestBytes(v), len(v)})
		}
	}
	return encode(fields)
}

// named stands for text that is too long, or that may hold what is secret.
type named struct {
	Digest string `json:"digest"`
	Bytes  int    `json:"bytes"`
}

// ledger is how changes of one kind of value are written down.
type ledger[T any] struct {
	noun    string
	subject func(Key, *T) string
	// show gives the fields that may be read by whoever reads the audit: a struct
	// that names them, so that what is added to T later is not among them.
	show func(Key, *T) any
	// action is what a change of one that exists is called; nil is noun.update.
	action func(was, now *T) string
}

func (l ledger[T]) deed(k Key, was, now *T) deed {
	d := deed{action: l.noun + ".update"}
	switch {
	case was == nil:
		d.action = l.noun + ".create"
	case now == nil:
		d.action = l.noun + ".delete"
	}
	if l.action != nil {
		d.action = cmp.Or(l.action(was, now), d.action)
	}
	one := now
	if one == nil {
		one = was
	}
	d.subject = l.subject(k, one)
	if was != nil {
		d.before = l.show(k, was)
	}
	if now != nil {
		d.after = l.show(k, now)
	}
	return d
}

// amend changes one value, however many do at once. edit is given what is
// stored, and the revision that wrote it, or a zero value and 0; it may be
// called several times. What it leaves is stored, unless it says not to keep it;
// its error ends the attempt and is returned. What stays as it was is not
// written.
func amend[T any](ctx context.Context, s *Store, l ledger[T], k Key, edit func(v *T, rev int64) (keep bool, err error)) (rev int64, err error) {
	return amendWhile(ctx, s, l, k, func(v *T, rev int64) (bool, []clientv3.Cmp, error) {
		keep, err := edit(v, rev)
		return keep, nil, err
	})
}

// amendWhile is amend with what else has to hold when it is written: edit
// answers that, and is asked again when it did not.
func amendWhile[T any](ctx context.Context, s *Store, l ledger[T], k Key, edit func(v *T, rev int64) (keep bool, conds []clientv3.Cmp, err error)) (rev int64, err error) {
	key := k.String()
	for range maxRaces {
		before, at, err := readVersion[T](ctx, s, key)
		if err != nil {
			return 0, err
		}
		after, err := decode[T](encode(before)) // edit may write into slices and maps
		if err != nil {
			return 0, fmt.Errorf("decode %s: %w", key, err)
		}
		keep, conds, err := edit(&after, at)
		if err != nil {
			return 0, err
		}
		was, now, op := &before, &after, clientv3.OpPut(key, string(encode(after)))
		switch {
		case at == 0 && !keep, at != 0 && keep && bytes.Equal(encode(before), encode(after)):
			return at, nil
		case at == 0:
			was = nil
		case !keep:
			now, op = nil, clientv3.OpDelete(key)
		}
		d := l.deed(k, was, now)
		r, err := s.administer(ctx, d, append(conds, clientv3.Compare(clientv3.ModRevision(key), "=", at)), []clientv3.Op{op}, nil)
		if err != nil {
			return 0, fmt.Errorf("store %s: %w", d.subject, err)
		}
		if r.Succeeded {
			return r.Header.Revision, nil
		}
	}
	return 0, fmt.Errorf("write %s: %w: too many writers at once", key, lpmos.ErrUnavailable)
}
