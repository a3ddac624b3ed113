package store

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// Etcd reads every key with its value when it starts, and a task is some
// seventeen of them, which nobody asks for once it has ended. So a task that
// ended a while ago is archived: one key holds, compressed, what its keys below
// tasks/ held, byte for byte and each with the revision that wrote it. A task is
// below tasks/ or in the archive, never in both: it is put there in one
// transaction, and taken out in the one in which it moves again. Whoever reads a
// task is not told where it is, and who follows the store is told of moves only.

const (
	// What is taken out is written in the transaction of a move, of which etcd
	// takes 128 operations and 1.5 MB: a task with more than this stays as it is.
	maxArchivedKeys  = 80
	maxArchivedBytes = 1 << 20
)

// An archived task is two zstd frames, the first behind its length: what a
// listing of All gives of it, and the rest. In both each key is its name below
// tasks/{id}/, its revision and its value; in the first, a value that listings
// leave out is empty, which none is otherwise.

func archivedText(parts []Change) string {
	var head, rest []Change
	for _, c := range parts {
		if c.Key.Kind == KindEvent || large(c.Key.Kind) {
			rest = append(rest, c)
			c.Value = nil
		}
		if c.Key.Kind != KindEvent {
			head = append(head, c)
		}
	}
	first := pack(head)
	text := binary.AppendUvarint(nil, uint64(len(first)))
	return string(append(append(text, first...), pack(rest)...))
}

// Archived are the parts of an archived task as a listing would have them if it
// were not archived. c is of KindArchive.
func (c Change) Archived() ([]Change, error) { return archivedHead(c.Key.TaskID, c.Value) }

func archivedHead(id string, value []byte) ([]Change, error) {
	head, _, err := frames(value)
	if err != nil {
		return nil, err
	}
	parts, err := unpack(id, head)
	for i := range parts {
		if len(parts[i].Value) == 0 {
			parts[i].Value, parts[i].Left = nil, true
		}
	}
	return parts, err
}

// archivedParts are all keys of an archived task.
func archivedParts(id string, value []byte) ([]Change, error) {
	head, rest, err := frames(value)
	if err != nil {
		return nil, err
	}
	parts, err := unpack(id, head)
	if err != nil {
		return nil, err
	}
	parts = slices.DeleteFunc(parts, func(c Change) bool { return len(c.Value) == 0 })
	more, err := unpack(id, rest)
	return append(parts, more...), err
}

// dictionary is what a task of the lab had in its keys. Each frame is compressed
// as if it stood behind it, and so needs two thirds of the bytes: names and texts
// of all tasks are much the same. Frames name the dictionary that they need, so this
// one stays as it is for as long as there is a task that was archived with it; a
// better one is another file with another number. Frames without a dictionary are
// of an earlier version.
//
//go:embed archive.dict
var dictionary []byte

const dictionaryID = 1

var errArchive = errors.New("not an archived task")

func frames(value []byte) (head, rest []byte, err error) {
	n, size := binary.Uvarint(value)
	if size <= 0 || n > uint64(len(value)-size) {
		return nil, nil, errArchive
	}
	value = value[size:]
	return value[:n], value[n:], nil
}

var (
	compressor = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderDictRaw(dictionaryID, dictionary))
		if err != nil {
			panic(fmt.Sprintf("store: make a compressor: %v", err))
		}
		return e
	})
	decompressor = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(4*maxArchivedBytes), zstd.WithDecoderDictRaw(dictionaryID, dictionary))
		if err != nil {
			panic(fmt.Sprintf("store: make a decompressor: %v", err))
		}
		return d
	})
)

func pack(parts []Change) []byte {
	var b []byte
	for _, c := range parts {
		name := strings.TrimPrefix(c.Key.String(), taskPrefix(c.Key.TaskID))
		b = append(binary.AppendUvarint(b, uint64(len(name))), name...)
		b = binary.AppendUvarint(b, uint64(c.Rev))
		b = append(binary.AppendUvarint(b, uint64(len(c.Value))), c.Value...)
	}
	return compressor().EncodeAll(b, nil)
}

func unpack(id string, frame []byte) (parts []Change, err error) {
	b, err := decompressor().DecodeAll(frame, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errArchive, err)
	}
	number := func() (n uint64) {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			err, size = errArchive, len(b)
		}
		b = b[size:]
		return n
	}
	text := func() []byte {
		n := number()
		if n > uint64(len(b)) {
			err, n = errArchive, uint64(len(b))
		}
		v := b[:n:n]
		b = b[n:]
		return v
	}
	for len(b) > 0 {
		name, rev, value := text(), number(), text()
		if err != nil {
			return nil, err
		}
		k, ok := partKey(id, name)
		if !ok {
			return nil, fmt.Errorf("%w: it has a key %q", errArchive, name)
		}
		parts = append(parts, Change{Key: k, Value: value, Rev: int64(rev)})
	}
	return parts, nil
}

const partPrefix = "tasks/{id}/"

// taskParts are the keys of a task that are there once at most, by their names
// below it.
var taskParts = func() map[string]Kind {
	out := map[string]Kind{}
	for _, k := range Kinds {
		if name, ok := strings.CutPrefix(string(k), partPrefix); ok && k != KindEvent {
			out[name] = k
		}
	}
	return out
}()

func partKey(id string, name []byte) (Key, bool) {
	if k, ok := taskParts[string(name)]; ok {
		return Key{Kind: k, TaskID: id}, true
	}
	return ParseKey(taskPrefix(id) + string(name))
}

// large reports whether a value is left out of the listing of a task that has
// ended.
func large(k Kind) bool {
	switch k {
	case KindHardware, KindPlan, KindLogs, KindPrevious, KindTaskTemplate, KindTaskSetup:
		return true
	}
	return false
}

// parts reads of a task the keys that gets ask for or, when it is archived, all
// that it has; archived is then the revision that put it there, else 0. A task
// that is not there has no parts.
func (s *Store) parts(ctx context.Context, id string, rev int64, gets ...clientv3.Op) (parts []Change, archived int64, err error) {
	key := Key{Kind: KindArchive, TaskID: id}.String()
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.Txn(ctx).Then(append(gets, clientv3.OpGet(key, clientv3.WithRev(rev)))...).Commit()
	if err != nil {
		return nil, 0, s.wrap("read task "+id, err)
	}
	if kvs := r.Responses[len(gets)].GetResponseRange().Kvs; len(kvs) > 0 {
		if parts, err = archivedParts(id, kvs[0].Value); err != nil {
			return nil, 0, fmt.Errorf("decode %s: %w", key, err)
		}
		return parts, kvs[0].ModRevision, nil
	}
	for _, some := range r.Responses[:len(gets)] {
		more, _ := changes(some.GetResponseRange().Kvs)
		parts = append(parts, more...)
	}
	return parts, 0, nil
}

// changes are those of kvs that are ours, and whether all are.
func changes(kvs []*mvccpb.KeyValue) (out []Change, all bool) {
	for _, kv := range kvs {
		if k, ok := ParseKey(string(kv.Key)); ok {
			out = append(out, Change{Key: k, Value: kv.Value, Rev: kv.ModRevision})
		}
	}
	return out, len(out) == len(kvs)
}

// ArchiveTasks archives what ended before a moment, and returns how many tasks
// that were. Several may do so at once.
func (s *Store) ArchiveTasks(ctx context.Context, before time.Time) (archived int, err error) {
	var ids []string
	all := prefix + "tasks/"
	err = s.pages(ctx, all, clientv3.GetPrefixRangeEnd(all), 0, func(k Key, _ []byte, _ int64) {
		if k.Kind == KindStatus {
			ids = append(ids, k.TaskID)
		}
	}, clientv3.WithKeysOnly())
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		done, err := s.archive(ctx, id, before)
		if err != nil {
			return archived, fmt.Errorf("archive task %s: %w", id, err)
		}
		if done {
			archived++
		}
	}
	return archived, nil
}

func (s *Store) archive(ctx context.Context, id string, before time.Time) (bool, error) {
	cctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.Get(cctx, taskPrefix(id), clientv3.WithPrefix())
	if err != nil {
		return false, s.wrap("read task "+id, err)
	}
	parts, known := changes(r.Kvs)
	if !known || len(parts) > maxArchivedKeys {
		return false, nil // what a newer version wrote must not be lost
	}
	var t lpmos.Task
	rec, size := Record{Task: lpmos.Task{ID: id}}, 0
	for _, c := range parts {
		size += len(c.Value)
		switch c.Key.Kind {
		case KindStatus:
			rec.rev = c.Rev
			fallthrough
		case KindMetadata:
			if err := SetPart(&t, c.Key, c.Value); err != nil {
				s.log.Error("a task is not archived", "err", err)
				return false, nil
			}
		}
	}
	if rec.rev == 0 || t.Status.Live() || !t.UpdatedAt.Before(before) || size > maxArchivedBytes {
		return false, nil
	}
	// Whatever writes a key of a task that has ended writes its status too.
	done, err := s.txn(ctx, []clientv3.Cmp{rec.stands()}, []clientv3.Op{
		clientv3.OpPut(Key{Kind: KindArchive, TaskID: id}.String(), archivedText(parts)),
		clientv3.OpDelete(taskPrefix(id), clientv3.WithPrefix()),
	}, nil)
	return err == nil && done.Succeeded, err
}

// takeOut adds to what a move of an archived task writes the keys that stay as
// they were.
func (r *Record) takeOut(ops []clientv3.Op) []clientv3.Op {
	written := map[string]bool{}
	for _, op := range ops {
		written[string(op.KeyBytes())] = true
	}
	for _, c := range r.archived {
		if k := c.Key.String(); !written[k] {
			ops = append(ops, clientv3.OpPut(k, string(c.Value)))
		}
	}
	return append(ops, clientv3.OpDelete(Key{Kind: KindArchive, TaskID: r.Task.ID}.String()))
}

// stands is the condition that the task is as it was read.
func (r *Record) stands() clientv3.Cmp {
	k := Key{Kind: KindStatus, TaskID: r.Task.ID}
	if r.archived != nil {
		k.Kind = KindArchive
	}
	return clientv3.Compare(clientv3.ModRevision(k.String()), "=", r.rev)
}

// withoutArchiving is what a revision changed for whoever follows the store. A
// task that was archived is what it was. One that was taken out moved, and is
// there whole: what it has no more has no key that could have been deleted. One
// that was deleted in the archive has lost its status, the last key of a task.
func withoutArchiving(all []Change) []Change {
	i := slices.IndexFunc(all, func(c Change) bool { return c.Key.Kind == KindArchive })
	if i < 0 {
		return all
	}
	was := all[i]
	all = slices.Delete(all, i, i+1)
	part := func(c Change) bool {
		return c.Key.TaskID == was.Key.TaskID && strings.HasPrefix(string(c.Key.Kind), partPrefix)
	}
	switch {
	case was.Value != nil:
		return slices.DeleteFunc(all, part)
	case !slices.ContainsFunc(all, part):
		return append(all, Change{Key: Key{Kind: KindStatus, TaskID: was.Key.TaskID}, Rev: was.Rev})
	}
	for _, kind := range taskParts {
		if !slices.ContainsFunc(all, func(c Change) bool { return c.Key.Kind == kind }) {
			all = append(all, Change{Key: Key{Kind: kind, TaskID: was.Key.TaskID}, Rev: was.Rev})
		}
	}
	return all
}
