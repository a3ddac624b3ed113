package state

import (
	"slices"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// Bounds of what is remembered of earlier runs: the newest ones of each kind,
// and so many kinds. A kind takes about 4 KB when it is full.
const (
	keptRuns  = 200
	keptKinds = 2000
	// modelRuns is from how many runs on a model those count instead of all
	// runs of the image: fewer say more about chance than about the model.
	modelRuns = 3
)

// kind is what runs have in common; model is "" for all models.
type kind struct{ image, model string }

// run is how long each of lpmos.Phases took.
type run [5]time.Duration

func (r run) total() (sum time.Duration) {
	for _, d := range r {
		sum += d
	}
	return sum
}

// runs are the newest of a kind; next is where the oldest is overwritten.
type runs struct {
	all  []run
	next int
}

func (r *runs) add(one run) {
	if len(r.all) < keptRuns {
		r.all = append(r.all, one)
		return
	}
	r.all[r.next] = one
	r.next = (r.next + 1) % keptRuns
}

func (t *task) kinds() (image, model kind) {
	image = kind{image: t.OSType + "/" + t.OSVersion + "/" + t.Arch}
	model = image
	if t.Found != nil {
		model.model = t.Found.Manufacturer + " " + t.Found.Product
	}
	return image, model
}

// learn remembers how long a task took that was completed. All that is needed
// for it is stored with the task, so that what was learnt is there again after
// a restart.
func (s *State) learn(t *task) {
	if t.learnt || t.Status != lpmos.Completed || t.Task.Progress == nil {
		return
	}
	begun := t.Task.Progress.Begun
	if len(begun) != len(lpmos.Phases) {
		return // an earlier version did not write it down, or a stage was not seen
	}
	var one run
	for i, b := range begun {
		end := t.UpdatedAt
		if i+1 < len(begun) {
			end = begun[i+1].At
		}
		if b.Stage != lpmos.Phases[i] {
			return
		}
		one[i] = max(0, end.Sub(b.At)) // two clocks meet at the end
	}
	t.learnt = true
	image, model := t.kinds()
	for _, k := range []kind{image, model} {
		if k == image || k.model != "" {
			r := s.runs[k]
			if r == nil {
				if len(s.runs) >= keptKinds {
					continue
				}
				r = &runs{}
				s.runs[k] = r
			}
			r.add(one)
		}
		if model == image {
			break
		}
	}
}

// Estimate is what earlier runs say about a task: nil when there were none, or
// when it is not known when its stages began.
func (s *State) Estimate(id string) *api.ETA {
	now := s.now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	t := s.tasks[id]
	if t == nil {
		return nil
	}
	return s.estimate(t, now)
}

func (s *State) estimate(t *task, now time.Time) *api.ETA {
	if !t.Status.Live() && t.Status != lpmos.Completed {
		return nil
	}
	image, model := t.kinds()
	e := &api.ETA{Basis: "image and model", FasterThan: -1}
	r := s.runs[model]
	if model.model == "" || r == nil || len(r.all) < modelRuns {
		e.Basis = "image"
		if r = s.runs[image]; r == nil {
			return nil
		}
	}
	e.Runs = len(r.all)
	e.Expected = median(r.all, run.total)
	var begun []lpmos.StageBegin
	p := t.progress()
	if p != nil {
		begun = p.Begun
	}
	switch t.Status {
	case lpmos.Pending, lpmos.AwaitingApproval, lpmos.Approved:
		e.Left = e.Expected
		return e
	case lpmos.Completed:
		if len(begun) == 0 {
			return nil
		}
		e.Elapsed = max(0, t.UpdatedAt.Sub(begun[0].At))
		e.FasterThan = slower(r.all, e.Elapsed, run.total)
		return e
	}
	if p == nil && t.Status == lpmos.Installing {
		e.Left = e.Expected // it is about to begin
		return e
	}
	if len(begun) == 0 || begun[0].Stage != lpmos.Partitioning {
		return nil // how long it has run is not known
	}
	last := begun[len(begun)-1]
	phase := slices.Index(lpmos.Phases, last.Stage)
	if phase < 0 {
		return nil
	}
	e.Elapsed = max(0, now.Sub(begun[0].At))
	inPhase := max(0, now.Sub(last.At))
	// What this phase still takes is what it took in those runs where it had
	// not ended by now either; a rate that is measured knows better.
	var longer []run
	for _, one := range r.all {
		if one[phase] > inPhase {
			longer = append(longer, one)
		}
	}
	if len(longer) > 0 {
		e.Left = median(longer, func(one run) time.Duration { return one[phase] }) - inPhase
	}
	if d := p.Details; last.Stage == lpmos.Downloading && d != nil && d.BytesPerSecond > 0 && d.BytesTotal >= d.BytesDownloaded {
		e.Left = time.Duration(float64(d.BytesTotal-d.BytesDownloaded) / float64(d.BytesPerSecond) * float64(time.Second))
	}
	e.Left += median(r.all, func(one run) (sum time.Duration) {
		for _, d := range one[phase+1:] {
			sum += d
		}
		return sum
	})
	if phase > 0 {
		e.FasterThan = slower(r.all, max(0, last.At.Sub(begun[0].At)), func(one run) (sum time.Duration) {
			for _, d := range one[:phase] {
				sum += d
			}
			return sum
		})
	}
	return e
}

// median of all, of which there is at least one; of an even number the lower
// one in the middle.
func median(all []run, of func(run) time.Duration) time.Duration {
	d := make([]time.Duration, len(all))
	for i, one := range all {
		d[i] = of(one)
	}
	slices.Sort(d)
	return d[(len(d)-1)/2]
}

// slower is the share, in percent, that took longer than d.
func slower(all []run, d time.Duration, of func(run) time.Duration) int {
	n := 0
	for _, one := range all {
		if of(one) > d {
			n++
		}
	}
	return n * 100 / len(all)
}
