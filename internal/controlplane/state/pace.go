package state

import (
	"slices"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// trend is how fast an attempt moved bytes in its last minutes: a figure for
// each api.TrendEvery, the newest last.
type trend struct {
	at     time.Time // of the newest, by the region's clock
	speeds []int64   // bytes per second
}

// add takes a report in. Of those of one stretch the first counts; a stretch
// without any has 0.
func (t *trend) add(p *lpmos.Progress) {
	if p == nil {
		return
	}
	stretches := 1
	if !t.at.IsZero() {
		stretches = int(min(p.UpdatedAt.Sub(t.at)/api.TrendEvery, api.TrendLength))
	}
	if stretches < 1 {
		return
	}
	t.at = p.UpdatedAt
	t.speeds = append(t.speeds, make([]int64, stretches)...)
	if d := p.Details; d != nil {
		t.speeds[len(t.speeds)-1] = max(d.BytesPerSecond, 0)
	}
	t.speeds = t.speeds[max(0, len(t.speeds)-api.TrendLength):]
}

// Trend is how fast a running install moved bytes in its last minutes: bytes
// per second for each api.TrendEvery, the newest last. It is forgotten when the
// control plane starts anew.
func (s *State) Trend(id string) []int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t := s.tasks[id]
	if t == nil || t.Status != lpmos.Installing || t.reported(t.Attempt) == nil {
		return nil
	}
	return slices.Clone(t.reported(t.Attempt).trend.speeds)
}

// Pace is how many installs got done in the last hours, and how fast.
func (s *State) Pace() api.Pace { return s.pace(func(string) bool { return true }) }

// PaceOf is Pace of some regions.
func (s *State) PaceOf(regions []string) api.Pace {
	return s.pace(func(region string) bool { return slices.Contains(regions, region) })
}

func (s *State) pace(counts func(region string) bool) api.Pace {
	now := s.now()
	since := now.Add(-api.PaceHours * time.Hour).UnixNano()
	var p api.Pace
	var all []run
	completed, _ := statusIndex(lpmos.Completed)
	installing, _ := statusIndex(lpmos.Installing)
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := range s.rows {
		r := &s.rows[i]
		if r.status != completed || r.updated <= since || !counts(r.t.RegionID) {
			continue
		}
		p.Completed++
		if r.attempt == 1 {
			p.First++
		}
		hour := int(now.Sub(time.Unix(0, r.updated)) / time.Hour)
		p.Hours[api.PaceHours-1-max(hour, 0)]++
		if g := r.t.Task.Progress; g != nil && len(g.Begun) > 0 && g.Begun[0].Stage == lpmos.Partitioning {
			all = append(all, run{r.t.UpdatedAt.Sub(g.Begun[0].At)})
		}
	}
	if len(all) > 0 {
		p.Half = median(all, run.total)
	}
	for _, t := range s.byStatus[installing] {
		g := t.progress()
		if g == nil || g.Stage != lpmos.Downloading || g.Details == nil || now.Sub(g.UpdatedAt) > 2*api.TrendEvery || !counts(t.RegionID) {
			continue
		}
		p.BytesPerSecond += max(g.Details.BytesPerSecond, 0)
	}
	return p
}
