package lpmos

import (
	"cmp"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// AuditEntry is one change that somebody who administers made: to users,
// tokens, regions, images, profiles, templates, locks, limits or the emergency
// stop. It is written in the transaction that makes the change. Seq counts from
// 1 without gaps; Hash covers the entry and the hash of the one before, and the
// first continues AuditOrigin. What happens to a task is in the task's own
// chain (Event), whose ends are noted here (Heads).
type AuditEntry struct {
	Seq     int64     `json:"seq"`
	At      time.Time `json:"at"` // of the replica that wrote it, UTC
	By      string    `json:"by"` // a person, "region dc1", "control plane"
	Peer    string    `json:"peer,omitempty"`
	Via     string    `json:"via,omitempty"`
	Action  string    `json:"action"`  // "user.create": one of AuditActions
	Subject string    `json:"subject"` // "user anna"
	// Before and After are objects without secrets. What was made has no Before,
	// what was removed no After; of what was changed both have the fields that
	// differ, and those alone.
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
	// Heads are the ends of tasks' chains as they are at this moment, by task.
	Heads    map[string]ChainHead `json:"heads,omitempty"`
	PrevHash string               `json:"prev_hash"`
	Hash     string               `json:"hash"`
}

// ChainHead is where a chain ends: its last number and that one's hash.
type ChainHead struct {
	Seq  int64  `json:"seq"`
	Hash string `json:"hash"`
}

// The actions that mean something to who verifies.
const (
	AuditTaskDeleted = "task.delete" // Heads has the task's chain as it was
	AuditTasksNoted  = "tasks.note"  // Heads has the chains that moved since the last note
)

// AuditActions are all there are, by what they are about.
var AuditActions = []string{
	"user.create", "user.update", "user.password", "user.delete", "session.end", "token.create", "token.delete",
	"region.enroll", "region.redeem", "region.certificate", "region.rotate", "region.revoke",
	"image.create", "image.update", "image.delete", "profile.create", "profile.update", "profile.delete",
	"template.create", "template.update", "template.delete", "bootimage.publish", "limits.set", "policy.set", "config.update",
	"machine.lock", "machine.unlock", "machine.tpm_forget", "stop.begin", "stop.end", AuditTaskDeleted, AuditTasksNoted,
}

// AuditOrigin is what the first entry of a store's chain continues, so that no
// other store's chain stands in for it.
func AuditOrigin(storeID string) string { return DigestBytes([]byte("lpmos audit v1\n" + storeID)) }

// Seal links e to the entry before it and fills its hash.
func (e *AuditEntry) Seal(prevHash string) {
	e.PrevHash, e.Hash = prevHash, ""
	e.Hash = DigestOf(*e)
}

// name is how an entry is spoken of.
func (e *AuditEntry) name() string {
	return fmt.Sprintf("entry %d (%s of %s by %s at %s)", e.Seq, e.Action, e.Subject, e.By, e.At.UTC().Format(time.RFC3339))
}

// AuditChange is what an entry says of one field.
type AuditChange struct {
	Field  string
	Before string // as JSON, but for text, which stands as it is
	After  string
	Made   bool // there was none before
	Gone   bool // there is none any more
}

// Changes takes Before and After apart, by name. What cannot be read is one
// change of everything.
func (e *AuditEntry) Changes() []AuditChange {
	was, okWas := auditFields(e.Before)
	is, okIs := auditFields(e.After)
	if !okWas || !okIs {
		return []AuditChange{{Before: string(e.Before), After: string(e.After)}}
	}
	all := maps.Clone(was)
	maps.Copy(all, is)
	var out []AuditChange
	for _, f := range slices.Sorted(maps.Keys(all)) {
		b, had := was[f]
		a, has := is[f]
		out = append(out, AuditChange{f, b, a, !had, !has})
	}
	return out
}

func auditFields(raw json.RawMessage) (map[string]string, bool) {
	out := map[string]string{}
	if raw == nil {
		return out, true
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, false
	}
	for k, v := range all {
		var text string
		if string(v) == "null" || json.Unmarshal(v, &text) != nil {
			text = string(v)
		}
		out[k] = text
	}
	return out, true
}

// AuditHead is the end of a store's administration chain, signed by its control
// plane: whoever cuts the chain or makes it anew cannot sign the same again.
type AuditHead struct {
	StoreID string `json:"store_id"`
	ChainHead
	At time.Time `json:"at"`
	// Trimmed says that the control plane itself removed what came up to here,
	// because it was old.
	Trimmed   bool      `json:"trimmed,omitempty"`
	Signature Signature `json:"signature,omitzero"`
}

// Sign fills h's signature.
func (h *AuditHead) Sign(key ed25519.PrivateKey) {
	h.Signature = Signature{}
	h.Signature = sign(key, "audit head", *h)
}

// Verify reports why h must not be trusted, or nil.
func (h AuditHead) Verify(keys []ed25519.PublicKey) error {
	s := h.Signature
	h.Signature = Signature{}
	return verify(keys, "audit head", h, s)
}

// AuditRecord is a line of an export. First comes Begin and last End; between
// them entries and signed heads in their order, and then tasks. Seq and Task
// say under which number and task something is kept, whatever it says itself.
type AuditRecord struct {
	Begin *AuditBegin `json:"begin,omitempty"`
	Seq   int64       `json:"seq,omitempty"`
	Entry *AuditEntry `json:"entry,omitempty"`
	Head  *AuditHead  `json:"head,omitempty"`
	Task  string      `json:"task,omitempty"`
	Event *Event      `json:"event,omitempty"`
	Chain *ChainHead  `json:"chain,omitempty"` // where Task's events end, after the last of them
	End   *ChainHead  `json:"end,omitempty"`   // where the administration chain ends
}

// AuditBegin says what an export is of.
type AuditBegin struct {
	StoreID string              `json:"store_id"`
	At      time.Time           `json:"at"`
	Rev     int64               `json:"rev"`  // of the store: everything is as it was then
	Keys    []ed25519.PublicKey `json:"keys"` // as the store says; who verifies may know better
}

// AuditReport is what was found to be whole.
type AuditReport struct {
	StoreID string     `json:"store_id"`
	First   int64      `json:"first"` // 0: there is none; above 1: what came before was trimmed
	Last    int64      `json:"last"`
	Signed  *AuditHead `json:"signed,omitempty"` // the newest; nil: none is
	Heads   int        `json:"heads"`            // signed
	Tasks   int        `json:"tasks"`
	Events  int        `json:"events"`
}

// Unsigned is how many entries came after the newest signature: cutting those
// off would not be noticed.
func (r AuditReport) Unsigned() int64 {
	if r.Signed == nil {
		return r.Last
	}
	return r.Last - r.Signed.Seq
}

// AuditError names the first thing that is not as it was written.
type AuditError struct {
	Seq     int64  // of the entry, or of the task's event
	Task    string // "" for the administration chain
	Problem string // a sentence
}

func (e *AuditError) Error() string {
	if e.Task != "" {
		return "task " + e.Task + ": " + e.Problem
	}
	return e.Problem
}

// AuditVerifier checks an export line by line. The zero value trusts the keys
// that the export names itself; Keys, if set, are trusted instead.
type AuditVerifier struct {
	Keys []ed25519.PublicKey

	report AuditReport
	begun  bool
	whole  bool // the export began, so every task has to be in it
	ended  bool
	hash   string           // of the entry before
	noted  map[string]noted // by task
	gone   map[string]bool  // deleted tasks
	tasks  map[string]bool  // those that were seen

	task   string // whose events come
	events eventChain
}

// noted is a task's chain as an entry has it.
type noted struct {
	ChainHead
	entry int64
}

// ContinueAudit makes a verifier of what comes after a head that is trusted:
// entries, and the end.
func ContinueAudit(from ChainHead) *AuditVerifier {
	v := &AuditVerifier{}
	v.begin("")
	v.hash, v.report.Last = from.Hash, from.Seq
	return v
}

func (v *AuditVerifier) begin(storeID string) {
	v.begun, v.report.StoreID, v.hash = true, storeID, AuditOrigin(storeID)
	v.noted, v.gone, v.tasks = map[string]noted{}, map[string]bool{}, map[string]bool{}
}

func auditError(seq int64, format string, args ...any) error {
	return &AuditError{Seq: seq, Problem: fmt.Sprintf(format, args...)}
}

// Add looks at one line. An *AuditError names what was altered, removed or
// reordered; after any error the verifier is spent.
func (v *AuditVerifier) Add(r AuditRecord) error {
	switch {
	case v.ended:
		return auditError(v.report.Last, "something follows the end of the export")
	case r.Begin != nil:
		if v.begun {
			return auditError(v.report.Last, "the export begins twice: two were put together")
		}
		v.begin(r.Begin.StoreID)
		v.whole = true
		if v.Keys == nil {
			v.Keys = r.Begin.Keys
		}
	case !v.begun:
		return auditError(0, "this does not begin as an export of an audit does")
	case r.Entry != nil:
		return v.entry(r.Seq, r.Entry)
	case r.Head != nil:
		return v.head(r.Seq, r.Head)
	case r.Event != nil:
		return v.event(r.Task, r.Seq, r.Event)
	case r.Chain != nil:
		return v.chain(r.Task, *r.Chain)
	case r.End != nil:
		v.ended = true
		return v.end(*r.End)
	default:
		return auditError(v.report.Last, "the export has a line that says nothing")
	}
	return nil
}

// Report is what was found, once everything was added.
func (v *AuditVerifier) Report() (AuditReport, error) {
	if !v.ended {
		return v.report, auditError(v.report.Last, "the export was cut off: its last line is missing")
	}
	return v.report, nil
}

func (v *AuditVerifier) entry(at int64, e *AuditEntry) error {
	want := v.report.Last + 1
	switch {
	case at > want:
		return auditError(want, "%s missing before entry %d", isOrAre(want, at-1), at)
	case at < want:
		return auditError(at, "entry %d stands behind entry %d: the order was changed", at, want-1)
	case e.Seq == 0:
		return auditError(at, "entry %d cannot be read: something else was written in its place", at)
	case e.Seq != at:
		return auditError(at, "entry %d is not the one that was written: what is kept in its place is entry %d", at, e.Seq)
	}
	sealed := *e
	if sealed.Seal(e.PrevHash); sealed.Hash != e.Hash {
		return auditError(at, "%s was altered: its hash is not that of what it says", e.name())
	}
	if e.PrevHash != v.hash {
		switch {
		case at == 1:
			return auditError(at, "%s is of another store's chain, or was made anew", e.name())
		case v.report.First == 0: // a signed head is before it, and no entry
			return auditError(at, "%s does not continue what was signed at entry %d: it was replaced", e.name(), at-1)
		}
		return auditError(at-1, "entries %d and %d do not belong together: one of them was replaced", at-1, at)
	}
	v.hash, v.report.Last = e.Hash, at
	v.report.First = cmp.Or(v.report.First, at)
	for id, h := range e.Heads {
		v.noted[id] = noted{h, at}
	}
	if e.Action == AuditTaskDeleted {
		for id := range e.Heads {
			v.gone[id] = true
		}
	}
	return nil
}

func (v *AuditVerifier) head(at int64, h *AuditHead) error {
	when := h.At.UTC().Format(time.RFC3339)
	switch {
	case h.Seq != at:
		return auditError(at, "the head that was signed for entry %d is gone: what is kept in its place is that of entry %d", at, h.Seq)
	case h.StoreID != v.report.StoreID:
		return auditError(at, "the head of entry %d is of another store", at)
	}
	if err := h.Verify(v.Keys); err != nil {
		return auditError(at, "the head of entry %d (%s) is not signed by a key that is trusted here (%s): it was made anew, or by another control plane", at, when, h.Signature.KeyID)
	}
	from := int64(1)
	if v.report.Signed != nil {
		from = v.report.Signed.Seq + 1
	}
	switch {
	case v.report.Last == 0 && h.Trimmed:
		v.hash, v.report.Last = h.Hash, at
	case at > v.report.Last:
		return auditError(v.report.Last+1, "%s missing at the end: a head that was signed %s names entry %d", isOrAre(v.report.Last+1, at), when, at)
	case at < v.report.Last:
		return auditError(at, "the head of entry %d stands behind entry %d: the order was changed", at, v.report.Last)
	case h.Hash != v.hash:
		return auditError(from, "%s made anew, or one of them was altered and all that follow with it: the head that was signed %s is another", wasOrWere(from, at), when)
	}
	v.report.Signed = h
	v.report.Heads++
	return nil
}

func (v *AuditVerifier) event(task string, at int64, e *Event) error {
	if task != v.task {
		if v.task != "" {
			return &AuditError{Task: v.task, Problem: "the export does not say where its events end"}
		}
		v.task, v.events = task, eventChain{}
	}
	if err := v.events.add(task, at, e); err != nil {
		return err
	}
	if n, ok := v.noted[task]; ok && n.Seq == at && n.Hash != e.Hash {
		return &AuditError{Task: task, Seq: at, Problem: fmt.Sprintf("its events up to %d were made anew: entry %d of the audit noted another", at, n.entry)}
	}
	v.report.Events++
	return nil
}

func (v *AuditVerifier) chain(task string, end ChainHead) error {
	if task != v.task {
		v.events = eventChain{} // it has none
	}
	got := v.events.ChainHead
	n, known := v.noted[task]
	switch {
	case v.tasks[task]:
		return &AuditError{Task: task, Seq: end.Seq, Problem: "it is in the export twice"}
	case known && n.Seq > got.Seq:
		return &AuditError{Task: task, Seq: got.Seq + 1, Problem: fmt.Sprintf("its event %d is missing at the end: entry %d of the audit noted event %d", got.Seq+1, n.entry, n.Seq)}
	case got.Seq < end.Seq:
		return &AuditError{Task: task, Seq: got.Seq + 1, Problem: fmt.Sprintf("its event %d is missing at the end: the task says it has %d", got.Seq+1, end.Seq)}
	case got != end:
		return &AuditError{Task: task, Seq: end.Seq, Problem: fmt.Sprintf("its events end with another than the task says (%d)", end.Seq)}
	}
	v.task, v.tasks[task] = "", true
	v.report.Tasks++
	return nil
}

func (v *AuditVerifier) end(end ChainHead) error {
	switch {
	case v.task != "":
		return &AuditError{Task: v.task, Problem: "the export does not say where its events end"}
	case end.Seq > v.report.Last:
		return auditError(v.report.Last+1, "%s missing at the end: the store says that entry %d is the last", isOrAre(v.report.Last+1, end.Seq), end.Seq)
	case end.Seq != v.report.Last || end.Seq > 0 && end.Hash != v.hash:
		return auditError(v.report.Last, "the store says that entry %d is the last, and entry %d is: its note of that was changed, or entry %d was made anew", end.Seq, v.report.Last, v.report.Last)
	}
	for _, id := range slices.Sorted(maps.Keys(v.noted)) {
		if v.whole && !v.tasks[id] && !v.gone[id] {
			return &AuditError{Task: id, Seq: 1, Problem: fmt.Sprintf("it is gone with all its events, and nobody deleted it: entry %d of the audit noted it", v.noted[id].entry)}
		}
	}
	return nil
}

func span(noun string, from, to int64) string {
	if from == to {
		return fmt.Sprintf("%s %d", noun, from)
	}
	return fmt.Sprintf("%s %d to %d", strings.Replace(noun, "entry", "entries", 1), from, to)
}

func isOrAre(from, to int64) string {
	if from == to {
		return span("entry", from, to) + " is"
	}
	return span("entry", from, to) + " are"
}

func wasOrWere(from, to int64) string {
	if from == to {
		return span("entry", from, to) + " was"
	}
	return span("entry", from, to) + " were"
}
