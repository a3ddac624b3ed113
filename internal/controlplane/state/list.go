package state

import (
	"cmp"
	"encoding/base64"
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

	found := candidates.Get().(*[]*row)
	defer func() { clear(*found); *found = (*found)[:0]; candidates.Put(found) }()
	s.mu.RLock()
	defer s.mu.RUnlock()
	page := api.Page{Rev: s.rev}
	ordered := s.matching(q, s.now(), &page, func(r *row) {
		page.Total++
		if !resume || o.compare(s, r, &after) > 0 {
			*found = append(*found, r)
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
		o.window(s, rows, q.Offset, end)
	}
	for _, r := range rows[q.Offset:end] {
		v := r.t.view()
		v.Hardware, v.Plan, v.LogTail = nil, nil, nil
		page.Tasks = append(page.Tasks, v)
		page.Rows = append(page.Rows, r.t.summary())
	}
	if end > q.Offset && end < len(rows) {
		page.NextCursor = o.cursor(s, rows[end-1])
	}
	return page
}

// candidates are reused: a hundred thousand of them for every question would
// keep the collector busy.
var candidates = sync.Pool{New: func() any { return new([]*row) }}

// MaxIDs bounds what IDs answers where a query has no Limit.
const MaxIDs = 10_000

// IDs are the ids of what matches, in the order of the query, at most Limit of
// them, and how many match: what "select all" selects, and what a list that
// scrolls keeps its order by.
func (s *State) IDs(q api.Query) (ids []string, total int) {
	o := newOrder(q.Sort)
	var found []*row
	s.mu.RLock()
	defer s.mu.RUnlock()
	q.Groups = false
	ordered := s.matching(q, s.now(), &api.Page{}, func(r *row) { found = append(found, r) })
	if q.Limit <= 0 {
		q.Limit = MaxIDs
	}
	end := min(len(found), q.Limit)
	if !ordered || !o.natural() {
		o.window(s, found, 0, end)
	}
	ids = make([]string, 0, end)
	for _, r := range found[:end] {
		ids = append(ids, r.t.ID)
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

// order compares rows as a Sort says. A row's key is a number or a text; equal
// ones stand newest first, then by id, so that the order is total.
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
	if o.number != nil {
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

func (o *order) less(s *State, a, b *row) bool {
	var c int
	if o.number != nil {
		c = cmp.Compare(o.number(a), o.number(b))
	} else {
		c = strings.Compare(o.text(s, a), o.text(s, b))
	}
	if c != 0 {
		return c*o.sign < 0
	}
	if a.created != b.created {
		return a.created > b.created
	}
	return a.t.ID < b.t.ID
}

// window arranges rows so that those from begin to end are the ones that stand
// there when all are in order. Only they are sorted: the rest is divided until
// it is out of the way (Hoare's selection), which for a page of a hundred
// thousand is several times quicker than sorting them.
func (o *order) window(s *State, rows []*row, begin, end int) {
	for lo, hi := 0, len(rows); begin < end && hi-lo > 1; {
		if hi-lo <= 2*(end-begin)+32 {
			sortRows(rows[lo:hi], func(a, b *row) bool { return o.less(s, a, b) })
			return
		}
		mid := partition(rows[lo:hi], func(a, b *row) bool { return o.less(s, a, b) }) + lo
		switch {
		case mid <= begin:
			lo = mid
		case mid >= end:
			hi = mid
		default: // the page lies across
			o.window(s, rows[lo:mid], begin-lo, mid-lo)
			o.window(s, rows[mid:hi], 0, end-mid)
			return
		}
	}
}

const (
	cursorVersion = "1"
	cursorSep     = "\x00"
)

func (o *order) cursor(s *State, r *row) string {
	key := ""
	if o.number != nil {
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
	if newOrder(sort).number != nil {
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
