package state

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// Tasks answers a query. The tasks in a page are without hardware, plan and
// log, which are large and belong to the page of one task. A cursor that is not
// of this order, or not ours, counts as none.
func (s *State) Tasks(q api.Query) api.Page {
	if q.Limit <= 0 {
		q.Limit = 100
	}
	o := newOrder(q.Sort)
	after, resume := parseCursor(q.Cursor, q.Sort)

	found := candidates.Get().(*[]candidate)
	defer func() { clear(*found); *found = (*found)[:0]; candidates.Put(found) }()
	now := s.now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	page := api.Page{Rev: s.rev}
	ordered := s.matching(q, now, &page, func(r *row) {
		page.Total++
		if !resume || o.compare(s, r, &after) > 0 {
			*found = append(*found, candidate{r: r})
		}
	})
	rows := *found
	if q.Offset > 0 {
		q.Offset = min(q.Offset, len(rows))
	} else {
		q.Offset = 0
	}
	end := min(q.Offset+q.Limit, len(rows))
	if !ordered || !o.natural() {
		o.arrange(s, rows, q.Offset, end)
	}
	for _, c := range rows[q.Offset:end] {
		s.show(&page, c.r.t, now)
	}
	if end > q.Offset && end < len(rows) {
		page.NextCursor = o.cursor(s, rows[end-1].r)
	}
	return page
}

// show puts a task into a page.
func (s *State) show(page *api.Page, t *task, now time.Time) {
	v := t.view()
	v.Hardware, v.Plan, v.LogTail, v.Previous, v.TemplateText, v.Setup = nil, nil, nil, nil, nil, nil
	page.Tasks = append(page.Tasks, v)
	sum := t.summary()
	if t.Status.Live() {
		sum.ETA = s.estimate(t, now)
	}
	page.Rows = append(page.Rows, sum)
}

// Rows are the tasks of these ids as a page shows them, in this order. Those
// that are gone are left out.
func (s *State) Rows(ids []string) api.Page {
	now := s.now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	page := api.Page{Rev: s.rev}
	for _, id := range ids {
		if t, ok := s.tasks[id]; ok && t.Status != "" {
			s.show(&page, t, now)
		}
	}
	page.Total = len(page.Tasks)
	return page
}

// candidates are reused: a hundred thousand of them for every question would
// keep the collector busy.
var candidates = sync.Pool{New: func() any { return new([]candidate) }}

// MaxIDs bounds what IDs answers where a query has no Limit.
const MaxIDs = 10_000

// IDs are the ids of what matches, in the order of the query, at most Limit of
// them, and how many match: what "select all" selects, and what a list that
// scrolls keeps its order by.
func (s *State) IDs(q api.Query) (ids []string, total int) {
	o := newOrder(q.Sort)
	var found []candidate
	s.mu.RLock()
	defer s.mu.RUnlock()
	q.Groups = false
	ordered := s.matching(q, s.now(), &api.Page{}, func(r *row) { found = append(found, candidate{r: r}) })
	if q.Limit <= 0 {
		q.Limit = MaxIDs
	}
	end := min(len(found), q.Limit)
	if !ordered || !o.natural() {
		o.arrange(s, found, 0, end)
	}
	ids = make([]string, 0, end)
	for _, c := range found[:end] {
		ids = append(ids, c.r.t.ID)
	}
	return ids, len(found)
}

// matching calls f for every task that matches and fills the page's groups. It
// reports whether it went newest first.
func (s *State) matching(q api.Query, now time.Time, page *api.Page, f func(*row)) (ordered bool) {
	m := s.prepare(q, now)
	var byStatus [16]int
	var byRegion, byOS []int
	if q.Groups {
		byRegion, byOS = make([]int, len(s.names)), make([]int, len(s.names))
	}
	ordered = true
	switch {
	case m.none:
	case m.few && !q.Groups:
		ordered = false
		for i := range s.byStatus {
			if !m.statuses[i] {
				continue
			}
			for _, t := range s.byStatus[i] {
				if m.matches(&t.row) {
					f(&t.row)
				}
			}
		}
	default:
		for i := len(s.rows) - 1; i >= 0; i-- {
			r := &s.rows[i]
			if !q.Groups && !m.statuses[r.status] || !m.matches(r) {
				continue
			}
			byStatus[r.status]++
			if !m.statuses[r.status] {
				continue
			}
			if q.Groups {
				byRegion[r.region]++
				byOS[r.os]++
			}
			f(r)
		}
	}
	if !q.Groups {
		return ordered
	}
	g := &api.Groups{Status: map[lpmos.Status]int{}, Region: map[string]int{}, OS: map[string]int{}}
	for i, st := range lpmos.Statuses {
		g.Status[st] = byStatus[i]
	}
	for i, name := range s.names {
		if byRegion[i] > 0 {
			g.Region[name] = byRegion[i]
		}
		if byOS[i] > 0 {
			g.OS[name] = byOS[i]
		}
	}
	page.Groups = g
	return ordered
}

// order compares rows as a Sort says. A row's key is a number or a text, which
// may have a number that says the same in this process; equal ones stand newest
// first, then by id, so that the order is total.
type order struct {
	sort   api.Sort
	sign   int
	number func(*row) int64
	text   func(*State, *row) string
}

func newOrder(sort api.Sort) order {
	o := order{sort: sort, sign: 1}
	if sort.Desc {
		o.sign = -1
	}
	switch sort.By {
	case "", "created":
		o.number = func(r *row) int64 { return r.created }
		if sort.By == "" {
			o.sign = -1
		}
	case "updated":
		o.number = func(r *row) int64 { return r.updated }
	case "status":
		o.number = func(r *row) int64 { return int64(r.status) }
	case "progress":
		o.number = func(r *row) int64 { return int64(r.percent) }
	case "host":
		o.text = func(_ *State, r *row) string { return r.t.Hostname }
		o.number = func(r *row) int64 { return r.host }
	case "region":
		o.text = func(s *State, r *row) string { return s.names[r.region] }
	default: // os
		o.text = func(s *State, r *row) string { return s.names[r.os] }
	}
	return o
}

// natural reports whether o is newest first.
func (o *order) natural() bool {
	return o.sort == api.Sort{} || o.sort == api.Sort{By: "created", Desc: true}
}

// place is where a row stands in an order; the row itself may be gone.
type place struct {
	number  int64
	text    string
	created int64
	id      string
}

func (o *order) compare(s *State, a *row, b *place) int {
	var c int
	if o.text == nil {
		c = cmp.Compare(o.number(a), b.number)
	} else {
		c = strings.Compare(o.text(s, a), b.text)
	}
	if c != 0 {
		return c * o.sign
	}
	if c = cmp.Compare(b.created, a.created); c != 0 {
		return c
	}
	return strings.Compare(a.t.ID, b.id)
}

// candidate is a row that matches. Its key decides most comparisons by itself:
// smaller stands first.
type candidate struct {
	key uint64
	r   *row
}

// arrange moves the candidates that stand from begin to end, when all are in
// order, into these places, in order.
func (o *order) arrange(s *State, found []candidate, begin, end int) {
	if begin >= end {
		return
	}
	common := ""
	if o.number == nil {
		common = o.text(s, found[0].r)
		for _, c := range found[1:] {
			for !strings.HasPrefix(o.text(s, c.r), common) {
				common = common[:len(common)-1]
			}
		}
	}
	for i := range found {
		var k uint64
		if o.number != nil {
			k = uint64(o.number(found[i].r)) ^ 1<<63 // negative numbers first
		} else {
			// Eight bytes behind what all begin with tell most texts apart.
			var b [8]byte
			copy(b[:], o.text(s, found[i].r)[len(common):])
			k = binary.BigEndian.Uint64(b[:])
		}
		if o.sign < 0 {
			k = ^k
		}
		found[i].key = k
	}
	window(found, begin, end, func(a, b *candidate) bool {
		if a.key != b.key {
			return a.key < b.key
		}
		if o.number == nil {
			if c := strings.Compare(o.text(s, a.r), o.text(s, b.r)); c != 0 {
				return c*o.sign < 0
			}
		}
		if a.r.created != b.r.created {
			return a.r.created > b.r.created
		}
		return a.r.t.ID < b.r.t.ID
	})
}

const (
	cursorVersion = "1"
	cursorSep     = "\x00"
)

func (o *order) cursor(s *State, r *row) string {
	var key string
	if o.text == nil {
		key = strconv.FormatInt(o.number(r), 10)
	} else {
		key = o.text(s, r)
	}
	parts := []string{cursorVersion, o.sort.String(), key, strconv.FormatInt(r.created, 10), r.t.ID}
	return base64.RawURLEncoding.EncodeToString([]byte(strings.Join(parts, cursorSep)))
}

func parseCursor(c string, sort api.Sort) (place, bool) {
	b, err := base64.RawURLEncoding.DecodeString(c)
	parts := strings.Split(string(b), cursorSep)
	if err != nil || len(parts) != 5 || parts[0] != cursorVersion || parts[1] != sort.String() {
		return place{}, false
	}
	p := place{text: parts[2], id: parts[4]}
	if p.created, err = strconv.ParseInt(parts[3], 10, 64); err != nil {
		return place{}, false
	}
	if newOrder(sort).text == nil {
		if p.number, err = strconv.ParseInt(parts[2], 10, 64); err != nil {
			return place{}, false
		}
	}
	return p, true
}

// ValidCursor reports whether c is the cursor of a page in this order.
func (s *State) ValidCursor(c string, sort api.Sort) bool {
	_, ok := parseCursor(c, sort)
	return c == "" || ok
}
