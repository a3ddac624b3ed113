package state

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

// Rev is the revision of the store that everything answered here includes.
func (s *State) Rev() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.rev
}

// StoreID names the store whose revisions these are.
func (s *State) StoreID() string { return s.src.ID() }

// Ready reports whether the first listing is in memory.
func (s *State) Ready() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ready
}

// Task is one task with its newest progress and the tail of its log.
func (s *State) Task(id string) (lpmos.Task, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t, ok := s.tasks[id]
	if !ok || t.Status == "" {
		return lpmos.Task{}, false
	}
	v := t.view()
	if log := t.log(t.Attempt); len(log) > 0 {
		v.LogTail = tail(log, logTailLines)
	}
	if v.Previous != nil {
		v.Differences = lpmos.DiffHardware(v.Previous.Hardware, v.Hardware)
	}
	return v, true
}

// logTailLines is how much of a log goes with a task; all of it is at /logs.
const logTailLines = 200

// Tasks answers a query. The tasks in a page are without hardware, plan and
// log, which are large and belong to the page of one task.
func (s *State) Tasks(q api.Query) api.Page {
	if q.Limit <= 0 {
		q.Limit = 100
	}
	words := strings.Fields(strings.ToLower(q.Text))
	s.mu.RLock()
	defer s.mu.RUnlock()
	page := api.Page{Rev: s.rev}
	after, resume := parseCursor(q.Cursor)
	for _, t := range s.order {
		if t.Status == "" || !t.matches(q, words) {
			continue
		}
		page.Total++
		if resume && newestFirst(t, after) <= 0 {
			continue
		}
		if len(page.Tasks) == q.Limit {
			if page.NextCursor == "" {
				last := page.Tasks[q.Limit-1]
				page.NextCursor = fmt.Sprintf("%d_%s", last.CreatedAt.UnixNano(), last.ID)
			}
			continue
		}
		v := t.view()
		v.Hardware, v.Plan, v.LogTail, v.Previous, v.TemplateText = nil, nil, nil, nil, nil
		page.Tasks = append(page.Tasks, v)
	}
	return page
}

// parseCursor makes a stand-in for the last task of the page before: only its
// place in the order matters, so the task itself may be gone.
func parseCursor(c string) (*task, bool) {
	nanos, id, ok := strings.Cut(c, "_")
	n, err := strconv.ParseInt(nanos, 10, 64)
	if !ok || err != nil {
		return nil, false
	}
	return &task{Task: lpmos.Task{ID: id, CreatedAt: time.Unix(0, n)}}, true
}

func (t *task) matches(q api.Query, words []string) bool {
	if len(q.Statuses) > 0 && !slices.Contains(q.Statuses, t.Status) || q.RegionID != "" && q.RegionID != t.RegionID {
		return false
	}
	for _, w := range words {
		if !strings.Contains(t.search, w) {
			return false
		}
	}
	return true
}

// Counts is how many tasks are in each status.
func (s *State) Counts() map[lpmos.Status]int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.counts)
}

// Regions are all that ever registered, by id.
func (s *State) Regions() []lpmos.Region {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]lpmos.Region, 0, len(s.regions))
	for _, r := range s.regions {
		out = append(out, r.Region)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// Images is the catalogue, by name.
func (s *State) Images() []lpmos.Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.images), func(a, b lpmos.Image) int { return strings.Compare(a.Name(), b.Name()) })
}

// Image looks one up in the catalogue.
func (s *State) Image(os, version, arch string) (lpmos.Image, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, ok := s.images[os+"/"+version+"/"+arch]
	return i, ok
}

// Region looks one up.
func (s *State) Region(id string) (lpmos.Region, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, ok := s.regions[id]
	if !ok {
		return lpmos.Region{}, false
	}
	return r.Region, true
}

// Global is config/global.
func (s *State) Global() store.Global {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.global
}

// Reports is what the region observed of a task's current attempt.
func (s *State) Reports(id string) api.Reports {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t := s.tasks[id]
	if t == nil || t.reports[t.Attempt] == nil {
		return api.Reports{}
	}
	r := t.reports[t.Attempt].Reports
	r.Log = t.log(t.Attempt)
	return r
}

// Logs are all lines that are still kept of a task's log, every attempt's.
func (s *State) Logs(id string) ([]string, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t, ok := s.tasks[id]
	if !ok || t.Status == "" {
		return nil, false
	}
	var out []string
	for _, n := range slices.Sorted(maps.Keys(t.reports)) {
		out = append(out, t.log(n)...)
	}
	if len(out) == 0 {
		out = t.LogTail
	}
	return out, true
}

// Live are the ids of tasks that own a machine.
func (s *State) Live() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []string
	for _, t := range s.order {
		if t.Status.Live() {
			out = append(out, t.ID)
		}
	}
	return out
}

func (t *task) log(attempt int) []string {
	r := t.reports[attempt]
	if r == nil {
		return nil
	}
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(r.chunks)) {
		b.WriteString(r.chunks[n])
	}
	return splitLines(b.String())
}

func tail(lines []string, n int) []string {
	if len(lines) > n {
		return lines[len(lines)-n:]
	}
	return lines
}
