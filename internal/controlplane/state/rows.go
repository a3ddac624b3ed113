package state

import (
	"cmp"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// row is what lists, filters and counts look at: small, without pointers to
// follow for most questions, and side by side in memory with all others.
type row struct {
	t       *task
	search  string // lower case: what words are looked for in
	grams   grams  // of search
	created int64  // Unix nanoseconds
	updated int64
	host    int64  // where its host name stands among all, see host
	macs    uint32 // where in search the addresses stand, as digits alone
	region  uint16 // index into State.names
	os      uint16
	system  uint16 // os, version and architecture
	attempt uint16
	status  uint8 // index into lpmos.Statuses
	percent int8  // of the newest progress, -1 without
}

// grams says which three bytes follow each other in a text, in so few bits that
// some share one: a text without the bits of a word is without the word, and need
// not be looked through for it.
type grams [8]uint64

func gramsOf(text string) (g grams) {
	for i := range len(text) - 2 {
		bit := (uint32(text[i]) | uint32(text[i+1])<<8 | uint32(text[i+2])<<16) * 2654435761 >> 23
		g[bit/64] |= 1 << (bit % 64)
	}
	return g
}

func (g *grams) have(word *grams) bool {
	for i, w := range word {
		if g[i]&w != w {
			return false
		}
	}
	return true
}

// older orders rows as they are kept: by creation, and of two created at once
// the one with the higher id first, so that reading backwards is newest first
// and then by id.
func older(a, b *row) int {
	if c := cmp.Compare(a.created, b.created); c != 0 {
		return c
	}
	return strings.Compare(b.t.ID, a.t.ID)
}

// name gives a short number to a text that many tasks share.
func (s *State) name(text string) uint16 {
	n, ok := s.nameOf[text]
	if !ok {
		if len(s.names) > 1<<16-1 {
			return 0 // more than 65,535 regions and systems: not told apart
		}
		n = uint16(len(s.names))
		s.names = append(s.names, strings.Clone(text))
		s.nameOf[s.names[n]] = n
	}
	return n
}

func statusIndex(st lpmos.Status) (uint8, bool) {
	i := slices.Index(lpmos.Statuses, st)
	return uint8(i), i >= 0
}

// place brings a task's row up to date, or puts it into its place. A task is
// listed once both its status and its metadata are known.
func (s *State) place(t *task) {
	st, ok := statusIndex(t.Status)
	if !ok || t.CreatedAt.IsZero() {
		return
	}
	r := row{
		t: t, search: t.row.search, grams: t.row.grams, macs: t.row.macs, created: t.CreatedAt.UnixNano(), updated: t.UpdatedAt.UnixNano(),
		region: s.name(t.RegionID), os: s.name(t.OSType), system: s.name(t.OSType + "/" + t.OSVersion + "/" + t.Arch), attempt: uint16(min(t.Attempt, 1<<16-1)), status: st, percent: -1,
	}
	if !s.listing { // else see settle
		r.host = s.hostNumber(t.Hostname)
	}
	if p := t.progress(); p != nil {
		r.percent = int8(min(max(p.Percentage, 0), 100))
	}
	if !t.Status.Live() && (t.Hardware != nil || t.Plan != nil || t.LogTail != nil || t.Previous != nil || t.TemplateText != nil || t.Setup != nil) {
		// They are in the store.
		t.left, t.leftLog = t.left || t.Hardware != nil || t.Plan != nil || t.Previous != nil || t.TemplateText != nil || t.Setup != nil, t.leftLog || t.LogTail != nil
		t.Hardware, t.Plan, t.LogTail, t.Previous, t.TemplateText, t.Setup = nil, nil, nil, nil, nil, nil
	}
	if !s.listing {
		s.learn(t) // from a listing, in order, when it is complete
	}
	switch {
	case t.placed && t.row.created != r.created:
		s.drop(t)
		fallthrough
	case !t.placed:
		t.placed, t.row = true, r
		s.enlist(t)
		if s.listing {
			s.rows = append(s.rows, r) // sorted when the listing is complete
			return
		}
		at, _ := s.find(t)
		s.rows = slices.Insert(s.rows, at, r)
	default:
		was := t.row
		if was.status != r.status {
			s.delist(t)
			t.row = r
			s.enlist(t)
		}
		if was.region != r.region { // never so, but the counts must not drift
			s.count(was, -1)
			s.count(r, 1)
		}
		t.row = r
		if at, ok := s.find(t); ok {
			s.rows[at] = r
		}
	}
}

func (s *State) find(t *task) (int, bool) {
	return slices.BinarySearchFunc(s.rows, &t.row, func(a row, b *row) int { return older(&a, b) })
}

// drop takes a task out of all lists.
func (s *State) drop(t *task) {
	if !t.placed {
		return
	}
	s.delist(t)
	if at, ok := s.find(t); ok {
		s.rows = slices.Delete(s.rows, at, at+1)
	}
	t.placed = false
}

// enlist and delist keep, for each status, which tasks are in it, in no order.
func (s *State) enlist(t *task) {
	list := &s.byStatus[t.row.status]
	t.at = len(*list)
	*list = append(*list, t)
	s.count(t.row, 1)
}

func (s *State) delist(t *task) {
	list := s.byStatus[t.row.status]
	last := list[len(list)-1]
	list[t.at], last.at = last, t.at
	list[len(list)-1] = nil
	s.byStatus[t.row.status] = list[:len(list)-1]
	s.count(t.row, -1)
}

func (s *State) count(r row, n int) {
	st := lpmos.Statuses[r.status]
	s.counts[st] += n
	c := s.regionCounts[r.region]
	if c == nil {
		c = map[lpmos.Status]int{}
		s.regionCounts[r.region] = c
	}
	c[st] += n
}

// settle orders the rows that a listing brought, and lays their texts beside
// each other in that order: looking through all of them is then bound by how
// fast memory is read, not by how long it takes to find it.
func (s *State) settle() {
	slices.SortFunc(s.rows, func(a, b row) int { return older(&a, &b) })
	size := 0
	for i := range s.rows {
		size += len(s.rows[i].search)
	}
	var b strings.Builder
	b.Grow(size)
	for i := range s.rows {
		b.WriteString(s.rows[i].search)
	}
	all := b.String()
	s.numberHosts()
	for i := range s.rows {
		r := &s.rows[i]
		r.search, all = all[:len(r.search)], all[len(r.search):]
		r.t.row = *r
		s.learn(r.t)
	}
}

// index makes the text that words are looked for in. It is made anew only when
// a part of the task changed that is in it.
func (t *task) index() {
	parts := make([]string, 0, 32)
	parts = append(parts, t.ID, t.Hostname, t.TargetMAC.String(), t.OSType+"/"+t.OSVersion+"/"+t.Arch, t.RegionID, t.CreatedBy, t.BatchID, t.Notes)
	digits := hexOf(t.TargetMAC) // without colons, for whoever types it so
	for _, m := range t.Claims {
		if m != t.TargetMAC {
			parts, digits = append(parts, m.String()), digits+"\n"+hexOf(m)
		}
	}
	if t.Found == nil && t.Hardware != nil {
		t.Found = t.Hardware.Found() // an earlier version did not write it down
	}
	if h := t.Found; h != nil {
		parts = append(parts, h.Serial, h.Manufacturer+" "+h.Product, h.UUID)
		for _, d := range h.Disks {
			parts = append(parts, d.Serial, d.Model)
		}
	}
	if a := t.Approval; a != nil {
		parts = append(parts, a.People()...)
	}
	if e := t.Error; e != nil {
		parts = append(parts, e.Code, e.Cause)
	}
	parts = slices.DeleteFunc(parts, func(p string) bool { return p == "" })
	text := strings.ToLower(strings.Join(parts, "\n")) + "\n"
	t.row.search, t.row.macs = text+digits, uint32(len(text))
	t.row.grams = gramsOf(t.row.search)
}

// hexOf is a MAC without colons.
func hexOf(m lpmos.MAC) string { return hex.EncodeToString(m[:]) }

// summary is what a row shows of hardware and plan.
func (t *task) summary() api.Summary {
	var v api.Summary
	if h := t.Found; h != nil {
		v.Serial, v.Manufacturer, v.Model = h.Serial, h.Manufacturer, h.Product
	}
	if p := t.Plan; p != nil && t.Status.Live() {
		v.Planned, v.Problem = true, p.Problem
		for i := range p.Observed {
			if p.Problem == "" && p.Observed[i].Disk == p.Effect.Target {
				v.Target = &p.Observed[i]
			}
		}
	}
	return v
}

// contact is when a task last moved: its last transition or, while it installs,
// its newest progress.
func (t *task) contact() time.Time {
	at := t.UpdatedAt
	if p := t.progress(); p != nil && t.Status == lpmos.Installing && p.UpdatedAt.After(at) {
		at = p.UpdatedAt
	}
	return at
}

// stuck reports whether a task has stood still for longer than it should.
func (t *task) stuck(now time.Time) bool {
	limit, ok := api.Warnings[t.Status]
	return ok && now.Sub(t.contact()) > limit
}
