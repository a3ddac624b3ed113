package state

import (
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

// A condition is one term of a query, made ready.
type condition func(r *row) bool

// matcher is a query made ready for this state of the read model.
type matcher struct {
	statuses [16]bool // of lpmos.Statuses, those wanted
	few      bool     // not all are
	none     bool     // nothing can match
	rest     []condition
}

func (m *matcher) matches(r *row) bool {
	for _, c := range m.rest {
		if !c(r) {
			return false
		}
	}
	return true
}

// prepare makes a query ready. It must be called under s.mu.
func (s *State) prepare(q api.Query, now time.Time) *matcher {
	m := &matcher{}
	for i, st := range lpmos.Statuses {
		m.statuses[i] = len(q.Statuses) == 0 || slices.Contains(q.Statuses, st)
	}
	if q.RegionID != "" {
		n, ok := s.nameOf[q.RegionID]
		m.none = m.none || !ok
		m.rest = append(m.rest, func(r *row) bool { return r.region == n })
	}
	if q.Within != nil {
		seen := make([]bool, len(s.names))
		any := false
		for _, name := range q.Within {
			if n, ok := s.nameOf[name]; ok {
				seen[n], any = true, true
			}
		}
		m.none = m.none || !any
		m.rest = append(m.rest, func(r *row) bool { return seen[r.region] })
	}
	var slow []condition // those that follow pointers come last
	for _, t := range q.Filter.Terms {
		if t.Key == "status" {
			for i, st := range lpmos.Statuses {
				m.statuses[i] = m.statuses[i] && slices.Contains(t.Values, string(st)) != t.Not
			}
			continue
		}
		c, quick := s.condition(t, now)
		if t.Not {
			is := c
			c = func(r *row) bool { return !is(r) }
		}
		if quick {
			m.rest = append(m.rest, c)
		} else {
			slow = append(slow, c)
		}
	}
	m.rest = append(m.rest, s.sifted(slow)...)
	for i := range lpmos.Statuses {
		m.few = m.few || !m.statuses[i]
	}
	return m
}

// sampled is how many rows conditions are tried on.
const sampled = 100

// sifted puts those conditions first that let the fewest rows through, as a few
// say that are taken from everywhere: what comes later is asked of what is left.
func (s *State) sifted(all []condition) []condition {
	if len(all) < 2 || len(s.rows) < 10*sampled {
		return all
	}
	type sieve struct {
		condition
		through int
	}
	sieves := make([]sieve, len(all))
	for i, c := range all {
		sieves[i].condition = c
		for n := range sampled {
			if c(&s.rows[n*len(s.rows)/sampled]) {
				sieves[i].through++
			}
		}
	}
	slices.SortStableFunc(sieves, func(a, b sieve) int { return a.through - b.through })
	for i := range sieves {
		all[i] = sieves[i].condition
	}
	return all
}

// condition makes one term ready; quick ones look at the row alone.
func (s *State) condition(t query.Term, now time.Time) (c condition, quick bool) {
	values := make([]string, len(t.Values))
	for i, v := range t.Values {
		values[i] = strings.ToLower(v)
	}
	words := make([]word, len(values))
	for i, v := range values {
		words[i] = word{v, gramsOf(v)}
	}
	switch t.Key {
	case "":
		return func(r *row) bool {
			for i := range words {
				if words[i].in(r, 0) {
					return true
				}
			}
			return false
		}, false
	case "region":
		return s.named(values, func(r *row) uint16 { return r.region }, func(name, v string) bool {
			begin, any := strings.CutSuffix(v, "*")
			return name == v || any && !t.Exact && strings.HasPrefix(name, begin)
		}), true
	case "is":
		var live, ended, stuck bool
		for _, v := range values {
			live, ended, stuck = live || v == query.Live, ended || v == query.Ended, stuck || v == query.Stuck
		}
		return func(r *row) bool {
			isLive := lpmos.Statuses[r.status].Live()
			return isLive && live || !isLive && ended || isLive && stuck && r.t.stuck(now)
		}, true
	case "attempt":
		return compared(values, query.Number, func(r *row, v query.Comparison) int { return int(int64(r.attempt) - v.Num) }, "="), true
	case "after":
		return moment(values, now, func(r *row) int64 { return r.created }, ">="), true
	case "before":
		return moment(values, now, func(r *row) int64 { return r.created }, "<"), true
	case "created":
		return moment(values, now, func(r *row) int64 { return r.created }, ""), true
	case "updated":
		return moment(values, now, func(r *row) int64 { return r.updated }, ""), true
	case "mac":
		digits := make([]string, len(values))
		for i, v := range values {
			digits[i] = query.HexDigits(v)
			words[i] = word{digits[i], gramsOf(digits[i])}
		}
		return func(r *row) bool {
			for i := range words {
				if words[i].in(r, r.macs) {
					return hasMAC(r.t, digits, t.Exact)
				}
			}
			return false
		}, false
	case "id":
		return begins(values, t.Exact, func(t *task) string { return t.ID }), false
	case "batch":
		return begins(values, t.Exact, func(t *task) string { return t.BatchID }), false
	case "version":
		return s.named(values, func(r *row) uint16 { return r.system }, func(name, v string) bool {
			_, have, _ := strings.Cut(name, "/")
			have, _, _ = strings.Cut(have, "/")
			return have == v || !t.Exact && strings.HasPrefix(have, v+".")
		}), true
	case "os":
		return s.named(values, func(r *row) uint16 { return r.system }, func(name, v string) bool {
			return !t.Exact && strings.Contains(name, v) || name == v || strings.HasPrefix(name, v+"/")
		}), true
	case "drift":
		return func(r *row) bool {
			if r.t.Receipt == nil {
				return false
			}
			return slices.Contains(values, map[bool]string{true: "yes", false: "no"}[len(r.t.Drift) > 0])
		}, false
	case "stage":
		return func(r *row) bool { return slices.Contains(values, string(r.t.stage())) }, false
	}
	// What is left are parts of texts that are all in the search text, which
	// answers for most tasks.
	fields := map[string]func(*task) []string{
		"host":   func(t *task) []string { return []string{t.Hostname} },
		"serial": serials,
		"model":  models,
		"error": func(t *task) []string {
			if t.Error == nil {
				return nil
			}
			return []string{t.Error.Code, t.Error.Cause}
		},
		"by": func(t *task) []string {
			if t.Approval == nil {
				return []string{t.CreatedBy}
			}
			return append(t.Approval.People(), t.CreatedBy)
		},
	}[t.Key]
	begin := make([]bool, len(words)) // "web*", which is the beginning of a host name
	for i, v := range values {
		if part, any := strings.CutSuffix(v, "*"); any && t.Key == "host" && !t.Exact {
			words[i], begin[i] = word{part, gramsOf(part)}, true
		}
	}
	return func(r *row) bool {
		for i := range words {
			if !words[i].in(r, 0) {
				continue
			}
			v := words[i].text
			for _, f := range fields(r.t) {
				f = strings.ToLower(f)
				if f == v || begin[i] && strings.HasPrefix(f, v) || !begin[i] && !t.Exact && strings.Contains(f, v) {
					return true
				}
			}
		}
		return false
	}, false
}

// word is what is looked for in the texts of rows.
type word struct {
	text  string
	grams grams
}

// in reports whether the word is in the text of a row, from somewhere on.
func (w *word) in(r *row, from uint32) bool {
	return r.grams.have(&w.grams) && strings.Contains(r.search[from:], w.text)
}

// named looks names up once, not once for each task.
func (s *State) named(values []string, field func(*row) uint16, same func(name, value string) bool) condition {
	wanted := make([]bool, len(s.names))
	for i, n := range s.names {
		wanted[i] = slices.ContainsFunc(values, func(v string) bool { return same(strings.ToLower(n), v) })
	}
	return func(r *row) bool { return wanted[field(r)] }
}

func begins(values []string, exact bool, field func(*task) string) condition {
	return func(r *row) bool {
		have := field(r.t)
		return slices.ContainsFunc(values, func(v string) bool { return have == v || !exact && strings.HasPrefix(have, v) })
	}
}

func compared(values []string, read func(string) (query.Comparison, bool), with func(*row, query.Comparison) int, plain string) condition {
	var all []query.Comparison
	for _, v := range values {
		if c, ok := read(v); ok {
			all = append(all, c)
		}
	}
	return func(r *row) bool {
		for _, c := range all {
			d := with(r, c)
			op := c.Op
			if op == "" {
				op = plain
			}
			switch {
			case op == "=" && d == 0, op == "<" && d < 0, op == "<=" && d <= 0, op == ">" && d > 0, op == ">=" && d >= 0:
				return true
			}
		}
		return false
	}
}

// moment compares times. An age counts the other way round than a date: "<2h"
// is later than two hours ago. Without an operator, and none implied, an age
// means "within" and a date "since".
func moment(values []string, now time.Time, field func(*row) int64, implied string) condition {
	type bound struct {
		op string
		at int64
	}
	var all []bound
	turned := map[string]string{"<": ">", "<=": ">=", ">": "<", ">=": "<="}
	for _, v := range values {
		c, ok := query.Moment(v)
		if !ok {
			continue
		}
		b := bound{c.Op, c.At.UnixNano()}
		if c.At.IsZero() {
			b.op, b.at = turned[c.Op], now.Add(-c.Age).UnixNano()
		}
		if c.Op == "" {
			b.op = ">="
			if implied != "" {
				b.op = implied
			}
		}
		all = append(all, b)
	}
	return func(r *row) bool {
		have := field(r)
		for _, b := range all {
			switch {
			case b.op == "<" && have < b.at, b.op == "<=" && have <= b.at, b.op == ">" && have > b.at, b.op == ">=" && have >= b.at:
				return true
			}
		}
		return false
	}
}

func hasMAC(t *task, digits []string, exact bool) bool {
	has := func(m lpmos.MAC) bool {
		have := hexOf(m)
		return slices.ContainsFunc(digits, func(d string) bool { return have == d || !exact && strings.Contains(have, d) })
	}
	return has(t.TargetMAC) || slices.ContainsFunc(t.Claims, has)
}

// stage is what an install does now, or where it failed.
func (t *task) stage() lpmos.Stage {
	switch {
	case t.Status == lpmos.Installing:
		if p := t.progress(); p != nil {
			return p.Stage
		}
	case t.Status == lpmos.Failed && t.Error != nil:
		return t.Error.Stage
	}
	return ""
}

func serials(t *task) []string {
	h := t.Found
	if h == nil {
		return nil
	}
	out := []string{h.Serial}
	for _, d := range h.Disks {
		out = append(out, d.Serial)
	}
	return out
}

func models(t *task) []string {
	h := t.Found
	if h == nil {
		return nil
	}
	out := []string{h.Manufacturer + " " + h.Product}
	for _, d := range h.Disks {
		out = append(out, d.Model)
	}
	return out
}
