package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// A start of the control plane reads every task. Most have ended, and little of
// those is wanted (see Change.Left); below tasks/ they are some seventeen keys
// each, most of them history, and etcd reads all of a range. So a task is
// summed up under a key of its own: the transition that ends it writes there
// what a listing gives of it. Nothing is decided by a summary, and a listing
// believes none that it has not counted: each says how many keys its task has,
// and where the sum of a range is not what etcd counts below tasks/, the tasks
// themselves are listed. MendSummaries then writes what was missing.

// liveSummary is the summary of a task that owns its machine: such tasks move,
// are few, and are read as they are.
const liveSummary = "live"

// summary is a line for each key of a task, its value behind the name; a value
// that listings leave out is not there. No value has a line break: all are JSON
// or a status.
type summary []string

const partPrefix = "tasks/{id}/"

func (s *summary) add(k Kind, value []byte) {
	line := strings.TrimPrefix(string(k), partPrefix)
	if !large(k) {
		line += " " + string(value)
	}
	*s = append(*s, line+"\n")
}

// text is the summary of a task that has ended and has so many events.
func (s summary) text(events int64) string {
	slices.Sort(s)
	return strings.Join(s, "") + fmt.Sprintf("keys %d\n", int64(len(s))+events)
}

// summed takes a summary apart: the listing of its task, and how many keys that
// has. Of a live task, and of what is no summary, both are nothing.
func summed(id string, text []byte, rev int64) (out []Change, keys int64) {
	for line := range bytes.Lines(text) {
		name, value, has := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
		if string(name) == "keys" {
			keys, _ = strconv.ParseInt(string(value), 10, 64)
			continue
		}
		k := Key{Kind: Kind(partPrefix + string(name)), TaskID: id}
		if !slices.Contains(taskParts, k.Kind) {
			continue
		}
		out = append(out, Change{Key: k, Value: value, Rev: rev, Left: !has})
		if !has {
			out[len(out)-1].Value = nil
		}
	}
	if keys == 0 {
		return nil, 0
	}
	return out, keys
}

// taskParts are the keys of a task that are there once at most.
var taskParts = slices.DeleteFunc(slices.Clone(Kinds), func(k Kind) bool { return !strings.HasPrefix(string(k), partPrefix) || k == KindEvent })

// large reports whether a value is left out of the listing of a task that has
// ended.
func large(k Kind) bool {
	switch k {
	case KindHardware, KindPlan, KindLogs, KindPrevious, KindTaskTemplate, KindTaskSetup:
		return true
	}
	return false
}

// slice is the tasks whose ids begin with the same digits, "" all. Ids are
// evenly spread.
type slice string

func allSlices() (out []slice) {
	for i := range 256 {
		out = append(out, slice(fmt.Sprintf("%02x", i)))
	}
	return out
}

// within is the range of a family of keys, tasks/ or summaries/, in a slice.
func (p slice) within(family string) (from, end string) {
	from = prefix + family + string(p)
	return from, clientv3.GetPrefixRangeEnd(from)
}

// listSummed lists the tasks of a slice by their summaries. It reports false
// when these do not account for every key that is there.
func (s *Store) listSummed(ctx context.Context, p slice, rev int64) (out []Change, ok bool, err error) {
	from, end := p.within("summaries/")
	var live []string
	var keys int64
	err = s.pages(ctx, from, end, rev, func(k Key, value []byte, at int64) {
		if k.Kind != KindSummary {
			return
		}
		parts, n := summed(k.TaskID, value, at)
		if n == 0 {
			live = append(live, k.TaskID)
		}
		out, keys = append(out, parts...), keys+n
	})
	if err != nil {
		return nil, false, err
	}
	for some := range slices.Chunk(live, 40) { // of at most 128 operations that etcd takes at once
		var ops []clientv3.Op
		for _, id := range some {
			t := taskPrefix(id)
			ops = append(ops,
				clientv3.OpGet(t, clientv3.WithRange(t+"events/"), clientv3.WithRev(rev)),
				clientv3.OpGet(t+"events0", clientv3.WithRange(clientv3.GetPrefixRangeEnd(t)), clientv3.WithRev(rev)),
				clientv3.OpGet(t, clientv3.WithPrefix(), clientv3.WithRev(rev), clientv3.WithCountOnly()))
		}
		r, err := s.txn(ctx, nil, ops, nil)
		if err != nil {
			return nil, false, err
		}
		for i, part := range r.Responses {
			got := part.GetResponseRange()
			if i%3 == 2 {
				keys += got.Count
			}
			for _, kv := range got.Kvs {
				if k, ok := ParseKey(string(kv.Key)); ok {
					out = listed(out, Change{Key: k, Value: kv.Value, Rev: kv.ModRevision})
				}
			}
		}
	}
	from, end = p.within("tasks/")
	cctx, cancel := context.WithTimeout(ctx, 2*s.timeout)
	defer cancel()
	r, err := s.c.Get(cctx, from, clientv3.WithRange(end), clientv3.WithRev(rev), clientv3.WithCountOnly())
	if err != nil {
		return nil, false, s.wrap("count tasks", err)
	}
	return out, r.Count == keys, nil
}

// MendSummaries writes the summaries that are missing or wrong: of tasks that
// an earlier version moved. It returns how many. Where this connection listed
// All by summaries, it looks no further than at what that found wanting. A task
// that moves meanwhile is left alone: its transition writes its summary.
func (s *Store) MendSummaries(ctx context.Context) (mended int, err error) {
	rev, keys, err := s.size(ctx, All)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	look, checked := s.wanting, s.checked
	s.mu.Unlock()
	switch {
	case checked:
	case keys > s.many:
		look = allSlices()
	default:
		look = []slice{""}
	}
	for _, p := range look {
		_, ok, err := s.listSummed(ctx, p, rev)
		if err == nil && !ok {
			var n int
			n, err = s.mendSlice(ctx, p, rev)
			mended += n
		}
		if err != nil {
			return mended, fmt.Errorf("mend summaries of tasks: %w", err)
		}
		if rev, _, err = s.size(ctx, All); err != nil { // history goes on, and is compacted
			return mended, err
		}
	}
	return mended, nil
}

func (s *Store) mendSlice(ctx context.Context, p slice, rev int64) (mended int, err error) {
	have := map[string]string{}
	from, end := p.within("summaries/")
	if err := s.pages(ctx, from, end, rev, func(k Key, value []byte, _ int64) { have[k.TaskID] = string(value) }); err != nil {
		return 0, err
	}
	from, end = p.within("tasks/")
	all, err := s.listRange(ctx, All, from, end, rev)
	if err != nil {
		return 0, err
	}
	write := func(id string, statusRev int64, op clientv3.Op) error {
		same := clientv3.Compare(clientv3.ModRevision(Key{Kind: KindStatus, TaskID: id}.String()), "=", statusRev)
		r, err := s.txn(ctx, []clientv3.Cmp{same}, []clientv3.Op{op}, nil)
		if err == nil && r.Succeeded {
			mended++
		}
		return err
	}
	for len(all) > 0 {
		id := all[0].Key.TaskID
		n := slices.IndexFunc(all, func(c Change) bool { return c.Key.TaskID != id })
		if n < 0 {
			n = len(all)
		}
		var sum summary
		var meta metadata
		var statusRev int64
		want := ""
		for _, c := range all[:n] {
			sum.add(c.Key.Kind, c.Value)
			switch c.Key.Kind {
			case KindMetadata:
				if meta, err = decode[metadata](c.Value); err != nil {
					return mended, fmt.Errorf("decode %s: %w", c.Key, err)
				}
			case KindStatus:
				statusRev = c.Rev
				if lpmos.Status(c.Value).Live() {
					want = liveSummary
				}
			}
		}
		if want == "" {
			want = sum.text(meta.EventSeq)
		}
		key := Key{Kind: KindSummary, TaskID: id}.String()
		if statusRev != 0 && have[id] != want {
			if err := write(id, statusRev, clientv3.OpPut(key, want)); err != nil {
				return mended, err
			}
		}
		if statusRev != 0 {
			delete(have, id)
		}
		all = all[n:]
	}
	for id := range have { // of a task that is not there
		if err := write(id, 0, clientv3.OpDelete(Key{Kind: KindSummary, TaskID: id}.String())); err != nil {
			return mended, err
		}
	}
	return mended, nil
}
