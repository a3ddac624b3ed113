package state

import (
	"context"
	"maps"
	"slices"
	"sort"
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

// reachTime is how long Reach waits. What was changed is stored, however long it
// takes until it is seen here.
const reachTime = 2 * time.Second

// Reach waits until the read model includes rev, but not for long: whoever
// changed something and asks next is answered with the change.
func (s *State) Reach(ctx context.Context, rev int64) {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	for {
		s.mu.RLock()
		there, moved := s.rev >= rev, s.moved
		s.mu.RUnlock()
		if there {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// StoreID names the store whose revisions these are.
func (s *State) StoreID() string { return s.src.ID() }

// Ready reports whether the first listing is in memory.
func (s *State) Ready() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ready
}

// Task is one task with its newest progress and the tail of its log. Of one
// that has ended, hardware, plan and log are read from the store; while it does
// not answer they are left out.
func (s *State) Task(id string) (lpmos.Task, bool) {
	s.mu.RLock()
	t, ok := s.tasks[id]
	if !ok || t.Status == "" {
		s.mu.RUnlock()
		return lpmos.Task{}, false
	}
	v := t.view()
	if log := t.log(t.Attempt); len(log) > 0 {
		v.LogTail = tail(log, logTailLines)
	}
	v.PermitWait, v.ApprovalNeeds = s.permitWait(t), s.approvalNeeds(&v)
	load := !t.Status.Live() && (t.left || t.leftLog)
	s.mu.RUnlock()
	if load {
		if kept, ok := s.load(id); ok && kept.Status == v.Status && kept.Attempt == v.Attempt {
			v.Hardware, v.Plan, v.Previous, v.TemplateText, v.Setup = kept.Hardware, kept.Plan, kept.Previous, kept.TemplateText, kept.Setup
			if len(v.LogTail) == 0 {
				v.LogTail = tail(kept.LogTail, logTailLines)
			}
		}
	}
	if v.Previous != nil {
		v.Differences = lpmos.DiffHardware(v.Previous.Hardware, v.Hardware)
	}
	return v, true
}

// Status is where a task stands, for whoever asks about many.
func (s *State) Status(id string) (lpmos.Status, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t, ok := s.tasks[id]
	if !ok || t.Status == "" {
		return "", false
	}
	return t.Status, true
}

// TaskRegion is where a task's machine stands. It looks at no more than memory.
func (s *State) TaskRegion(id string) (string, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t, ok := s.tasks[id]
	if !ok || t.Status == "" {
		return "", false
	}
	return t.RegionID, true
}

// Fetcher finds the region that published the hash of its fetch secret: who
// shows the secret is that region, since only it may write there.
func (s *State) Fetcher(hash string) (region string, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	region, ok = s.fetchers[hash]
	return region, ok
}

// loadTimeout bounds how long a page waits for what is not in memory.
const loadTimeout = 2 * time.Second

func (s *State) load(id string) (lpmos.Task, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	rec, err := s.src.Task(ctx, id)
	if err != nil {
		s.log.Warn("read what is kept of a task that ended", "task", id, "err", err)
	}
	return rec.Task, err == nil
}

// logTailLines is how much of a log goes with a task; all of it is at /logs.
const logTailLines = 200

// Counts is how many tasks are in each status.
func (s *State) Counts() map[lpmos.Status]int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.counts)
}

// RegionCounts is how many tasks of a region are in each status.
func (s *State) RegionCounts(region string) map[lpmos.Status]int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, ok := s.nameOf[region]
	if !ok {
		return map[lpmos.Status]int{}
	}
	return maps.Clone(s.regionCounts[n])
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

// ImageRev is Image with the revision of the store that wrote the entry.
func (s *State) ImageRev(os, version, arch string) (lpmos.Image, int64, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	name := os + "/" + version + "/" + arch
	i, ok := s.images[name]
	return i, s.imageRevs[name], ok
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
	if t == nil || t.reported(t.Attempt) == nil {
		return api.Reports{}
	}
	return t.reported(t.Attempt).Reports
}

// Log is what the region has of the log of a task's current attempt.
func (s *State) Log(id string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if t := s.tasks[id]; t != nil {
		return t.log(t.Attempt)
	}
	return nil
}

// Logs are all lines that are still kept of a task's log, every attempt's.
func (s *State) Logs(id string) ([]string, bool) {
	s.mu.RLock()
	t, ok := s.tasks[id]
	if !ok || t.Status == "" {
		s.mu.RUnlock()
		return nil, false
	}
	var out []string
	attempts := map[int]bool{}
	for by := range t.reports {
		attempts[by.attempt] = true
	}
	for _, n := range slices.Sorted(maps.Keys(attempts)) {
		out = append(out, t.log(n)...)
	}
	if len(out) == 0 {
		out = t.LogTail
	}
	load := len(out) == 0 && t.leftLog
	s.mu.RUnlock()
	if load {
		kept, _ := s.load(id)
		out = kept.LogTail
	}
	return out, true
}

// Live are the ids of tasks that own a machine, in no order.
func (s *State) Live() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []string
	for i, st := range lpmos.Statuses {
		if !st.Live() {
			continue
		}
		for _, t := range s.byStatus[i] {
			out = append(out, t.ID)
		}
	}
	return out
}

// Moved are the ids of tasks that changed since a moment, in no order.
func (s *State) Moved(since time.Time) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []string
	for id, t := range s.tasks {
		if t.Status != "" && !t.UpdatedAt.Before(since) {
			out = append(out, id)
		}
	}
	return out
}

// Claimed are the addresses that live tasks own, each with its task's id.
func (s *State) Claimed() map[lpmos.MAC]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := map[lpmos.MAC]string{}
	for i, st := range lpmos.Statuses {
		if !st.Live() {
			continue
		}
		for _, t := range s.byStatus[i] {
			for _, m := range t.Claims {
				out[m] = t.ID
			}
		}
	}
	return out
}

func (t *task) log(attempt int) []string {
	r := t.reported(attempt)
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
