package lpmos_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

var auditKey = ed25519.NewKeyFromSeed(make([]byte, 32))

const auditStore = "550e8400-e29b-41d4-a716-446655440000"

// auditExport is a whole export: six entries, signed after the third and the
// fifth, and two tasks of which the fourth entry notes where they stood.
func auditExport(t *testing.T, storeID string) []lpmos.AuditRecord {
	t.Helper()
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	one := chain(t, lpmos.CauseCreated, lpmos.CauseHardwareReported, lpmos.CauseApproved)
	two := chain(t, lpmos.CauseCreated, lpmos.CauseCanceled)
	for i, events := range [][]lpmos.Event{one, two} {
		hash := ""
		for n := range events {
			events[n].TaskID = []string{"t1", "t2"}[i]
			events[n].Seal(hash)
			hash = events[n].Hash
		}
	}
	out := []lpmos.AuditRecord{{Begin: &lpmos.AuditBegin{StoreID: storeID, At: at, Keys: []ed25519.PublicKey{auditKey.Public().(ed25519.PublicKey)}}}}
	hash := lpmos.AuditOrigin(storeID)
	for seq := int64(1); seq <= 6; seq++ {
		e := lpmos.AuditEntry{
			Seq: seq, At: at.Add(time.Duration(seq) * time.Hour), By: "anna", Peer: "192.0.2.7", Action: "user.update", Subject: fmt.Sprintf("user u%d", seq),
			Before: json.RawMessage(`{"role":"viewer"}`), After: json.RawMessage(`{"role":"admin"}`),
		}
		if seq == 4 {
			e.Action, e.Heads = lpmos.AuditTasksNoted, map[string]lpmos.ChainHead{
				"t1": {Seq: 2, Hash: one[1].Hash}, "t2": {Seq: 2, Hash: two[1].Hash}, "t0": {Seq: 9, Hash: "sha256:gone"},
			}
		}
		if seq == 5 {
			e.Action, e.Heads = lpmos.AuditTaskDeleted, map[string]lpmos.ChainHead{"t0": {Seq: 9, Hash: "sha256:gone"}}
		}
		e.Seal(hash)
		hash = e.Hash
		out = append(out, lpmos.AuditRecord{Seq: seq, Entry: &e})
		if seq == 3 || seq == 5 {
			h := lpmos.AuditHead{StoreID: storeID, ChainHead: lpmos.ChainHead{Seq: seq, Hash: hash}, At: e.At}
			h.Sign(auditKey)
			out = append(out, lpmos.AuditRecord{Seq: seq, Head: &h})
		}
	}
	for i, events := range [][]lpmos.Event{one, two} {
		id := []string{"t1", "t2"}[i]
		for n := range events {
			out = append(out, lpmos.AuditRecord{Task: id, Seq: int64(n) + 1, Event: &events[n]})
		}
		out = append(out, lpmos.AuditRecord{Task: id, Chain: &lpmos.ChainHead{Seq: int64(len(events)), Hash: events[len(events)-1].Hash}})
	}
	return append(out, lpmos.AuditRecord{End: &lpmos.ChainHead{Seq: 6, Hash: hash}})
}

// verify reads an export as it is read from a file.
func verify(t *testing.T, export []lpmos.AuditRecord, keys ...ed25519.PublicKey) (lpmos.AuditReport, error) {
	t.Helper()
	v := &lpmos.AuditVerifier{Keys: keys}
	for _, r := range export {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var read lpmos.AuditRecord
		if err := json.Unmarshal(b, &read); err != nil {
			t.Fatal(err)
		}
		if err := v.Add(read); err != nil {
			return lpmos.AuditReport{}, err
		}
	}
	return v.Report()
}

func TestAuditIsWhole(t *testing.T) {
	export := auditExport(t, auditStore)
	r, err := verify(t, export)
	if err != nil || r.First != 1 || r.Last != 6 || r.Heads != 2 || r.Tasks != 2 || r.Events != 5 || r.Unsigned() != 1 || r.Signed.Seq != 5 {
		t.Errorf("a whole export = %+v, %v", r, err)
	}
	pub := auditKey.Public().(ed25519.PublicKey)
	other := ed25519.NewKeyFromSeed([]byte(strings.Repeat("x", 32))).Public().(ed25519.PublicKey)
	if _, err := verify(t, export, other, pub); err != nil {
		t.Errorf("with the right key among those that are trusted: %v", err)
	}
	if _, err := verify(t, export, other); err == nil || !strings.Contains(err.Error(), "the head of entry 3") {
		t.Errorf("with another key = %v; want the first head named", err)
	}
	// What is old is gone, and the control plane said so.
	trimmed := slices.DeleteFunc(auditExport(t, auditStore), func(r lpmos.AuditRecord) bool { return r.Entry != nil && r.Seq <= 3 })
	trimmed[1].Head.Trimmed = true
	trimmed[1].Head.Sign(auditKey)
	if r, err := verify(t, trimmed); err != nil || r.First != 4 || r.Last != 6 {
		t.Errorf("a trimmed export = %+v, %v; want entries 4 to 6", r, err)
	}
}

// X07 and more: whatever is altered, removed, moved or put in is named.
func TestAuditNamesWhatWasAltered(t *testing.T) {
	find := func(all []lpmos.AuditRecord, seq int64) int {
		return slices.IndexFunc(all, func(r lpmos.AuditRecord) bool { return r.Entry != nil && r.Seq == seq })
	}
	head := func(all []lpmos.AuditRecord, seq int64) int {
		return slices.IndexFunc(all, func(r lpmos.AuditRecord) bool { return r.Head != nil && r.Seq == seq })
	}
	event := func(all []lpmos.AuditRecord, task string, seq int64) int {
		return slices.IndexFunc(all, func(r lpmos.AuditRecord) bool { return r.Event != nil && r.Task == task && r.Seq == seq })
	}
	end := func(all []lpmos.AuditRecord) *lpmos.ChainHead { return all[len(all)-1].End }
	// reseal is what somebody does who knows how hashes are made.
	reseal := func(all []lpmos.AuditRecord) []lpmos.AuditRecord {
		hash := lpmos.AuditOrigin(auditStore)
		for _, r := range all {
			if r.Entry != nil {
				r.Entry.Seal(hash)
				hash = r.Entry.Hash
			}
		}
		end(all).Hash = hash
		return all
	}
	drop := func(all []lpmos.AuditRecord, i int) []lpmos.AuditRecord { return slices.Delete(all, i, i+1) }
	elsewhere := auditExport(t, "00000000-0000-4000-8000-000000000000")
	for _, tt := range []struct {
		name string
		edit func([]lpmos.AuditRecord) []lpmos.AuditRecord
		want string
		seq  int64
	}{
		{"an entry altered", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { a[find(a, 2)].Entry.By = "bob"; return a }, "entry 2 (user.update of user u2 by bob at 2026-11-01T14:00:00Z) was altered", 2},
		{"what was before altered", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			a[find(a, 6)].Entry.Before = json.RawMessage(`{"role":"admin"}`)
			return a
		}, "entry 6", 6},
		{"an entry altered and sealed anew", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			e := a[find(a, 2)].Entry
			e.By = "bob"
			e.Seal(e.PrevHash)
			return a
		}, "entries 2 and 3 do not belong together", 2},
		{"an entry altered and all that follow sealed anew", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			a[find(a, 2)].Entry.By = "bob"
			return reseal(a)
		}, "entries 1 to 3 were made anew", 1},
		{"an entry removed from the middle", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return drop(a, find(a, 2)) }, "entry 2 is missing before entry 3", 2},
		{"an entry removed and the rest numbered anew", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			a = drop(a, find(a, 2))
			for i := range a {
				if a[i].Entry != nil && a[i].Seq > 2 {
					a[i].Seq--
					a[i].Entry.Seq--
				}
			}
			end(a).Seq--
			return reseal(a)
		}, "a head that was signed", 3},
		{"the first entry removed", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return drop(a, find(a, 1)) }, "entry 1 is missing before entry 2", 1},
		{"the first entries removed with what is signed", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			return slices.DeleteFunc(a, func(r lpmos.AuditRecord) bool { return r.Entry != nil && r.Seq <= 3 })
		}, "entries 1 to 3 are missing", 1},
		{"the first entries removed as if they were old", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			a = slices.DeleteFunc(a, func(r lpmos.AuditRecord) bool { return r.Entry != nil && r.Seq <= 3 })
			a[1].Head.Trimmed = true
			return a
		}, "is not signed by a key that is trusted here", 3},
		{"two entries exchanged", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			i, j := find(a, 1), find(a, 2)
			a[i].Entry, a[j].Entry = a[j].Entry, a[i].Entry
			return a
		}, "entry 1 is not the one that was written: what is kept in its place is entry 2", 1},
		{"the order of lines changed", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			i, j := find(a, 1), find(a, 2)
			a[i], a[j] = a[j], a[i]
			return a
		}, "entry 1 is missing before entry 2", 1},
		{"an entry doubled", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return slices.Insert(a, find(a, 2), a[find(a, 1)]) }, "entry 1 stands behind entry 1", 1},
		{"something else in an entry's place", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			a[find(a, 2)].Entry = &lpmos.AuditEntry{}
			return a
		}, "entry 2 cannot be read", 2},
		{"the end cut off", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return drop(a, find(a, 6)) }, "entry 6 is missing at the end: the store says that entry 6 is the last", 6},
		{"the end cut off, and what the store says of it", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			a = drop(a, find(a, 6))
			a = drop(a, find(a, 5))
			*end(a) = lpmos.ChainHead{Seq: 4, Hash: a[find(a, 4)].Entry.Hash}
			return a
		}, "entry 5 is missing at the end: a head that was signed 2026-11-01T17:00:00Z names entry 5", 5},
		{"what the store says of the end altered", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { end(a).Seq = 5; return a }, "the store says that entry 5 is the last, and entry 6 is", 6},
		{"another store's chain", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			b := slices.Clone(elsewhere)
			b[0] = a[0]
			return b
		}, "entry 1 (user.update of user u1 by anna at 2026-11-01T13:00:00Z) is of another store's chain", 1},
		{"a signature altered", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			a[head(a, 5)].Head.Signature.Value[3] ^= 1
			return a
		}, "the head of entry 5", 5},
		{"two heads exchanged", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			i, j := head(a, 3), head(a, 5)
			a[i].Head, a[j].Head = a[j].Head, a[i].Head
			return a
		}, "the head that was signed for entry 3 is gone", 3},
		{"a head of another store", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			a[head(a, 3)] = elsewhere[head(elsewhere, 3)]
			return a
		}, "the head of entry 3 is of another store", 3},
		{"the last line missing", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return a[:len(a)-1] }, "was cut off", 6},
		{"something after the last line", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return append(a, a[1]) }, "something follows the end", 6},
		{"no beginning", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return a[1:] }, "does not begin as an export", 0},
		{"two exports in one", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return slices.Insert(a, 3, a[0]) }, "begins twice", 2},
		{"an empty line", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return slices.Insert(a, 3, lpmos.AuditRecord{}) }, "a line that says nothing", 2},

		{"a task's event altered", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { a[event(a, "t1", 3)].Event.By = "bob"; return a }, "task t1: its event 3 (approved by bob", 3},
		{"a task's event removed", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return drop(a, event(a, "t1", 2)) }, "task t1: its event 2 is missing", 2},
		{"a task's last event removed", func(a []lpmos.AuditRecord) []lpmos.AuditRecord { return drop(a, event(a, "t1", 3)) }, "task t1: its event 3 is missing at the end: the task says it has 3", 3},
		{"a task's last events removed, and what it says of them", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			a = drop(a, event(a, "t1", 3))
			a = drop(a, event(a, "t1", 2))
			i := slices.IndexFunc(a, func(r lpmos.AuditRecord) bool { return r.Chain != nil && r.Task == "t1" })
			a[i].Chain = &lpmos.ChainHead{Seq: 1, Hash: a[event(a, "t1", 1)].Event.Hash}
			return a
		}, "task t1: its event 2 is missing at the end: entry 4 of the audit noted event 2", 2},
		{"a task's history made anew", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			hash := ""
			for i := range a {
				if a[i].Task == "t1" && a[i].Event != nil {
					a[i].Event.By = "bob"
					a[i].Event.Seal(hash)
					hash = a[i].Event.Hash
				} else if a[i].Task == "t1" {
					a[i].Chain.Hash = hash
				}
			}
			return a
		}, "task t1: its events up to 2 were made anew: entry 4 of the audit noted another", 2},
		{"two tasks' histories exchanged", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			for i := range a {
				if a[i].Task != "" {
					a[i].Task = map[string]string{"t1": "t2", "t2": "t1"}[a[i].Task]
				}
			}
			return a
		}, "task t2: its event 1 is one of task t1", 1},
		{"a task removed whole", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			return slices.DeleteFunc(a, func(r lpmos.AuditRecord) bool { return r.Task == "t2" })
		}, "task t2: it is gone with all its events, and nobody deleted it: entry 4 of the audit noted it", 1},
		{"a task without an end", func(a []lpmos.AuditRecord) []lpmos.AuditRecord {
			return slices.DeleteFunc(a, func(r lpmos.AuditRecord) bool { return r.Chain != nil && r.Task == "t1" })
		}, "task t1: the export does not say where its events end", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := verify(t, tt.edit(auditExport(t, auditStore)))
			bad, ok := errors.AsType[*lpmos.AuditError](err)
			if !ok || !strings.Contains(err.Error(), tt.want) || bad.Seq != tt.seq {
				t.Errorf("= %v (%+v); want %q, first %d", err, bad, tt.want, tt.seq)
			}
		})
	}
}

func TestAuditChanges(t *testing.T) {
	e := lpmos.AuditEntry{Before: json.RawMessage(`{"role":"viewer","regions":["dc1"]}`), After: json.RawMessage(`{"role":"admin","n":1}`)}
	want := []lpmos.AuditChange{{Field: "n", After: "1", Made: true}, {Field: "regions", Before: `["dc1"]`, Gone: true}, {Field: "role", Before: "viewer", After: "admin"}}
	if got := e.Changes(); !slices.Equal(got, want) {
		t.Errorf("Changes() = %+v; want %+v", got, want)
	}
	odd := lpmos.AuditEntry{After: json.RawMessage(`[1]`)}
	if got := odd.Changes(); len(got) != 1 || got[0].After != "[1]" {
		t.Errorf("Changes() of what is no object = %+v", got)
	}
}
