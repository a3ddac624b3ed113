package web

import (
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// Figures older than this say so instead of looking alive: agents report once
// a second, regions pass it on every two.
const staleAfter = 15 * time.Second

// run is the bar of one install.
type run struct {
	TaskID  string
	Status  lpmos.Status
	Stage   string // "2/4 downloading"
	Percent int
	Bytes   string // "1.7 of 2.4 GB"
	Speed   string
	Left    string // until it is done, as earlier runs took; else of this stage
	Until   string // RFC 3339, what Left was learnt to be
	Learnt  string // from what
	Slow    string // "slower than 95 % of runs"
	AsOf    instant
}

// row is a task in a list.
type row struct {
	lpmos.Task
	OS      string
	Serial  string
	Summary string // what it waits for or how it ended; "" when Run says more
	Run     *run
	Link    string
	Age     string    // since the last change
	Trend   sparkView // of a running install on the dashboard
}

// maxWords bounds what a row shows of the words of machines and people.
const maxWords = 160

func (w *Web) newRow(t lpmos.Task, sum api.Summary, images []lpmos.Image) row {
	r := row{Task: t, OS: imageTitle(images, t.OSType, t.OSVersion, t.Arch), Serial: sum.Serial, Link: "/tasks/" + t.ID, Age: w.age(w.cfg.Now().Sub(t.UpdatedAt))}
	r.Summary, r.Run = w.now(t, sum)
	if r.Run != nil && sum.ETA != nil {
		w.estimate(r.Run, sum.ETA)
	}
	if t.Status == lpmos.AwaitingApproval {
		r.Link += "/approve"
	}
	for _, s := range []*string{&r.OS, &r.Serial, &r.Summary, &r.Hostname, &r.CreatedBy} {
		*s = lpmos.Shorten(*s, maxWords)
	}
	return r
}

// rows are the tasks of a page.
func (w *Web) rows(p api.Page) []row {
	images := w.reader.Images()
	var out []row
	for i, t := range p.Tasks {
		out = append(out, w.newRow(t, p.Rows[i], images))
	}
	return out
}

// now says what a task does, in a line or as a bar.
func (w *Web) now(t lpmos.Task, sum api.Summary) (string, *run) {
	switch t.Status {
	case lpmos.Pending:
		return w.T("waits for the machine to boot from the network"), nil
	case lpmos.AwaitingApproval:
		return w.planLine(sum), nil
	case lpmos.Approved:
		return w.T("waits for its permit to erase"), nil
	case lpmos.Installing:
		return "", w.newRun(t)
	case lpmos.Verifying:
		return "", &run{TaskID: t.ID, Status: t.Status, Stage: w.T("restarts from its own disk"), Percent: 100}
	case lpmos.Completed:
		if len(t.Drift) > 0 {
			return w.T("completed (drift: %s)", w.driftNames(t.Drift)), nil
		}
		return w.T("its own system called home"), nil
	case lpmos.Failed:
		if t.Error == nil {
			return "", nil
		}
		cause := lpmos.Shorten(w.Said(t.Error.Cause), maxWords)
		if t.Error.Stage != "" && t.Progress != nil {
			r := w.newRun(t)
			r.Stage, r.AsOf = cause, instant{}
			return "", r
		}
		return cause, nil
	case lpmos.Rejected:
		if t.Approval != nil && t.Approval.Notes != "" {
			return "“" + lpmos.Shorten(t.Approval.Notes, 120) + "”", nil
		}
	case lpmos.Canceled:
		return w.T("before anything was erased"), nil
	}
	return "", nil
}

func (s *tongue) planLine(sum api.Summary) string {
	switch {
	case !sum.Planned:
		return s.T("the plan is being made")
	case sum.Problem != "":
		return s.T("cannot go on: %s", s.Said(sum.Problem))
	case sum.Target == nil:
		return s.T("erases 1 disk")
	}
	d := sum.Target
	if h := s.holds(d.Content, d.Unknown); !h.Blank {
		return s.T("erases %s: %s", s.size(d.Disk.SizeBytes), h)
	}
	return s.T("erases 1 blank disk, %s", s.size(d.Disk.SizeBytes))
}

func (w *Web) newRun(t lpmos.Task) *run {
	r := &run{TaskID: t.ID, Status: t.Status, Stage: w.T("begins"), Bytes: "–", Speed: "–", Left: w.T("unknown")}
	p := t.Progress
	if p == nil {
		return r
	}
	r.Percent = min(max(p.Percentage, 0), 100)
	if n := p.Stage.Number(); n > 0 {
		r.Stage = string(rune('0'+n)) + "/4 " + w.stageWord(p.Stage)
	}
	d := p.Details
	if d != nil && d.BytesTotal > 0 {
		r.Bytes = w.amount(d.BytesDownloaded, d.BytesTotal)
	}
	if w.cfg.Now().Sub(p.UpdatedAt) > staleAfter {
		r.AsOf = w.moment(p.UpdatedAt)
		return r
	}
	if d != nil && d.BytesPerSecond > 0 && d.BytesTotal > 0 {
		r.Speed = w.speed(d.BytesPerSecond)
		r.Left = w.left(d)
	}
	return r
}

// slowRun is the share of earlier runs, in percent, that a slow one is faster
// than.
const slowRun = 5

// estimate puts what earlier runs took in the place of what the bytes of a
// stage say, unless the figures are old.
func (w *Web) estimate(r *run, e *api.ETA) {
	if !r.Status.Live() || r.AsOf.RFC != "" {
		return
	}
	if e.Left > 0 {
		r.Left = w.rounded(int64(e.Left.Seconds()))
		r.Until = w.cfg.Now().Add(e.Left).UTC().Format(time.RFC3339)
		r.Learnt = w.N(e.Runs, "as an earlier run of the same system took", "as %s earlier runs of the same system took")
	}
	if e.FasterThan >= 0 && e.FasterThan <= slowRun && e.Runs >= 100/slowRun/2 {
		r.Slow = w.T("slower than %s of runs", w.percent(100-max(e.FasterThan, slowRun)))
	}
}

// amount is how many bytes of how many are there.
func (s *tongue) amount(done, total int64) string {
	if done <= 0 {
		return s.T("0 of %s", s.size(total))
	}
	return s.T("%s of\u00a0%s", s.size(done), s.size(total))
}

// left is the time until the bytes of a stage are there, rounded: a figure
// that changes every second says more than is known.
func (s *tongue) left(d *lpmos.ProgressDetails) string {
	if d == nil || d.BytesPerSecond <= 0 || d.BytesTotal <= 0 {
		return s.T("unknown")
	}
	return s.rounded((d.BytesTotal - d.BytesDownloaded) / d.BytesPerSecond)
}

// rounded is a time to come, of so many seconds.
func (s *tongue) rounded(sec int64) string {
	switch {
	case sec < 0, sec > 24*3600: // a speed that says a day is the speed of a beginning
		return s.T("unknown")
	case sec < 60:
		return s.unit(count(int(sec/10*10+10)), "s")
	case sec < 2*3600:
		return s.unit(count(int((sec+30)/60)), "min")
	}
	return s.unit(count(int((sec+1800)/3600)), "h")
}
