package web

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

// Figures older than this say so instead of looking alive: agents report once
// a second, regions pass it on every two.
const staleAfter = 15 * time.Second

// A machine that has not booted after this long is worth a look; a server's
// own start takes up to ten minutes.
const slowBoot = 20 * time.Minute

// run is the bar of one install.
type run struct {
	TaskID  string
	Status  lpmos.Status
	Stage   string // "2/4 downloading"
	Percent int
	Speed   string
	Left    string // of this stage
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
	Age     string // since the last change
}

func (w *Web) newRow(t lpmos.Task, images []lpmos.Image) row {
	if t.Status.Live() || t.Found == nil {
		t = w.whole(t) // of one that has ended, the list itself has all a row shows
	}
	r := row{Task: t, OS: imageTitle(images, t.OSType, t.OSVersion, t.Arch), Link: "/tasks/" + t.ID, Age: w.age(w.cfg.Now().Sub(t.UpdatedAt))}
	if t.Found != nil {
		r.Serial = t.Found.Serial
	} else if t.Hardware != nil {
		r.Serial = t.Hardware.System.Serial
	}
	r.Summary, r.Run = w.now(t)
	if t.Status == lpmos.AwaitingApproval {
		r.Link += "/approve"
	}
	return r
}

// whole is a task of a list with its plan and hardware, which lists leave out:
// what would be erased is what a person looks for.
func (w *Web) whole(t lpmos.Task) lpmos.Task {
	if full, ok := w.reader.Task(t.ID); ok {
		return full
	}
	return t
}

// now says what a task does, in a line or as a bar.
func (w *Web) now(t lpmos.Task) (string, *run) {
	switch t.Status {
	case lpmos.Pending:
		return "waits for the machine to boot from the network", nil
	case lpmos.AwaitingApproval:
		return w.planLine(t.Plan), nil
	case lpmos.Approved:
		return "waits for its permit to erase", nil
	case lpmos.Installing:
		return "", w.newRun(t)
	case lpmos.Verifying:
		return "", &run{TaskID: t.ID, Status: t.Status, Stage: "restarts from its own disk", Percent: 100}
	case lpmos.Completed:
		return "its own system called home", nil
	case lpmos.Failed:
		if t.Error == nil {
			return "", nil
		}
		if t.Error.Stage != "" && t.Progress != nil {
			r := w.newRun(t)
			r.Stage, r.AsOf = t.Error.Cause, instant{}
			return "", r
		}
		return t.Error.Cause, nil
	case lpmos.Rejected:
		if t.Approval != nil && t.Approval.Notes != "" {
			return "“" + lpmos.Shorten(t.Approval.Notes, 120) + "”", nil
		}
	case lpmos.Canceled:
		return "before anything was erased", nil
	}
	return "", nil
}

func (s *tongue) planLine(p *lpmos.Plan) string {
	switch {
	case p == nil:
		return "the plan is being made"
	case p.Problem != "":
		return "cannot go on: " + p.Problem
	}
	for _, d := range p.Observed {
		if d.Disk == p.Effect.Target {
			h := s.holds(d.Content, d.Unknown)
			if h.Blank {
				return "erases 1 blank disk, " + s.size(d.Disk.SizeBytes)
			}
			return "erases " + s.size(d.Disk.SizeBytes) + ": " + h.String()
		}
	}
	return "erases 1 disk"
}

func (w *Web) newRun(t lpmos.Task) *run {
	r := &run{TaskID: t.ID, Status: t.Status, Stage: "begins", Speed: "–", Left: "unknown"}
	p := t.Progress
	if p == nil {
		return r
	}
	r.Percent = min(max(p.Percentage, 0), 100)
	if n := p.Stage.Number(); n > 0 {
		r.Stage = string(rune('0'+n)) + "/4 " + string(p.Stage)
	}
	if w.cfg.Now().Sub(p.UpdatedAt) > staleAfter {
		r.AsOf = w.moment(p.UpdatedAt)
		return r
	}
	if d := p.Details; d != nil && d.BytesPerSecond > 0 && d.BytesTotal > 0 {
		r.Speed = w.speed(d.BytesPerSecond)
		r.Left = w.left(d)
	}
	return r
}

// left is the time until the bytes of a stage are there, rounded: a figure
// that changes every second says more than is known.
func (s *tongue) left(d *lpmos.ProgressDetails) string {
	if d == nil || d.BytesPerSecond <= 0 || d.BytesTotal <= 0 {
		return s.T("unknown")
	}
	sec := (d.BytesTotal - d.BytesDownloaded) / d.BytesPerSecond
	switch {
	case sec < 0:
		return s.T("unknown")
	case sec < 60:
		return s.unit(count(int(sec/10*10+10)), "s")
	case sec < 2*3600:
		return s.unit(count(int((sec+30)/60)), "min")
	}
	return s.unit(count(int((sec+1800)/3600)), "h")
}

// need is one line of what waits for a person.
type need struct {
	Kind   string // offline, failed, approval, stuck: the CSS and the order
	Icon   string
	Title  string
	Text   string
	Link   string
	Button string
	Since  time.Time
	Age    string
	Late   bool
	TaskID string
}

type dashboardView struct {
	Needs     []need
	NeedTotal int
	Running   []row
	RunTotal  int
	Recent    []row
	Tallies   []tally
	Regions   []regionView
	Total     int
	Command   string
}

type tally struct {
	Status lpmos.Status
	Count  int
}

const (
	dashboardNeeds   = 10
	dashboardRunning = 8
	dashboardRecent  = 6
)

func (w *Web) dashboard(rw http.ResponseWriter, r *http.Request) {
	rev, now, images := w.rev(), w.cfg.Now(), w.reader.Images()
	v := dashboardView{Command: commandList("")}
	counts := w.reader.Counts()
	for _, s := range lpmos.Statuses {
		v.Tallies = append(v.Tallies, tally{s, counts[s]})
		v.Total += counts[s]
	}
	for _, reg := range w.reader.Regions() {
		rv := w.newRegion(reg)
		v.Regions = append(v.Regions, rv)
		if !rv.Online {
			v.Needs = append(v.Needs, need{Kind: "offline", Icon: "link-lost", Title: "Region " + reg.ID + " is offline", Since: reg.Since,
				Text: "Installs that have begun go on by themselves; no further disk is erased there until it is back.", Link: "/regions", Button: "Open regions"})
		}
	}
	ask := func(limit int, statuses ...lpmos.Status) api.Page {
		return w.reader.Tasks(api.Query{Statuses: statuses, Limit: limit})
	}
	failed, awaiting, pending := ask(50, lpmos.Failed), ask(50, lpmos.AwaitingApproval), ask(50, lpmos.Pending)
	for _, t := range failed.Tasks {
		n := need{Kind: "failed", Icon: "failed", Title: t.Hostname + " failed", Since: t.UpdatedAt, Link: "/tasks/" + t.ID, Button: "Open task", TaskID: t.ID}
		if e := t.Error; e != nil {
			n.Text = strings.TrimSpace(sentence(e.Cause) + " " + sentence(e.NextStep))
			if e.Stage != "" {
				n.Title += " while " + string(e.Stage)
			}
		}
		v.Needs = append(v.Needs, n)
	}
	for _, t := range awaiting.Tasks {
		v.Needs = append(v.Needs, w.approvalNeed(w.whole(t), images))
	}
	slow := 0
	for _, t := range pending.Tasks {
		if now.Sub(t.UpdatedAt) > slowBoot {
			slow++
			v.Needs = append(v.Needs, need{Kind: "stuck", Icon: "slow", Title: t.Hostname + " has not booted from the network", Since: t.UpdatedAt, Late: true,
				Text: "Nothing was heard from " + t.TargetMAC.String() + ". Restart the machine and let it boot from the network.", Link: "/tasks/" + t.ID, Button: "Open task", TaskID: t.ID})
		}
	}
	v.NeedTotal = len(v.Needs) + failed.Total - len(failed.Tasks) + awaiting.Total - len(awaiting.Tasks)
	order := map[string]int{"offline": 0, "failed": 1, "approval": 2, "stuck": 3}
	slices.SortStableFunc(v.Needs, func(a, b need) int {
		return cmp.Or(cmp.Compare(order[a.Kind], order[b.Kind]), a.Since.Compare(b.Since))
	})
	v.Needs = v.Needs[:min(len(v.Needs), dashboardNeeds)]
	for i := range v.Needs {
		if !v.Needs[i].Since.IsZero() {
			v.Needs[i].Age = w.age(now.Sub(v.Needs[i].Since))
		}
	}
	running := ask(dashboardRunning, lpmos.Installing, lpmos.Verifying)
	v.RunTotal = running.Total
	for _, t := range running.Tasks {
		v.Running = append(v.Running, w.newRow(t, images))
	}
	ended := slices.Clone(ask(50, lpmos.Completed, lpmos.Rejected, lpmos.Canceled).Tasks) // the reader keeps its own
	slices.SortStableFunc(ended, func(a, b lpmos.Task) int { return b.UpdatedAt.Compare(a.UpdatedAt) })
	for _, t := range ended[:min(len(ended), dashboardRecent)] {
		v.Recent = append(v.Recent, w.newRow(t, images))
	}
	w.show(rw, r, http.StatusOK, "dashboard", page{Title: "Overview", Nav: "dashboard", Watch: "all", Rev: rev, Body: v})
}

func (w *Web) approvalNeed(t lpmos.Task, images []lpmos.Image) need {
	n := need{Kind: "approval", Icon: "awaiting_approval", Since: t.UpdatedAt, Link: "/tasks/" + t.ID + "/approve", Button: "Review", TaskID: t.ID,
		Late: w.cfg.Now().Sub(t.UpdatedAt) > time.Hour}
	n.Text = "In " + t.RegionID + ", for " + imageTitle(images, t.OSType, t.OSVersion, t.Arch) + "."
	if t.CreatedBy != "" {
		n.Text += " Requested by " + t.CreatedBy + "."
	}
	p := t.Plan
	switch {
	case p == nil:
		n.Title = t.Hostname + " waits for a decision"
	case p.Problem != "":
		n.Title, n.Text = t.Hostname+" cannot be installed as asked", p.Problem
	default:
		n.Title = t.Hostname + ": erase a blank disk of " + w.size(p.Effect.Target.SizeBytes) + "?"
		for _, d := range p.Observed {
			if h := w.holds(d.Content, d.Unknown); d.Disk == p.Effect.Target && !h.Blank {
				n.Title = t.Hostname + ": erase " + w.size(d.Disk.SizeBytes) + " with data on it?"
				n.Text = "Found: " + h.String() + ". " + n.Text
			}
		}
	}
	return n
}

type listView struct {
	Views   []savedView
	Rows    []row
	Total   int
	Query   string // as typed
	Status  lpmos.Status
	Region  string
	Regions []lpmos.Region
	Next    string // address of the next page
	First   bool   // no cursor was given
	Empty   bool   // there is no task at all
	Problem string // why Query cannot be read
	Command string
}

type savedView struct {
	Label   string
	Link    string
	Count   int
	Current bool
	Warn    bool
	Status  lpmos.Status
}

func (w *Web) taskList(rw http.ResponseWriter, r *http.Request) {
	rev, q := w.rev(), r.URL.Query()
	v := listView{Query: strings.TrimSpace(lpmos.Shorten(q.Get("q"), 256)), Status: lpmos.Status(q.Get("status")), Region: q.Get("region_id"),
		Regions: w.reader.Regions(), First: q.Get("cursor") == ""}
	filter, err := query.Parse(v.Query)
	if err != nil {
		v.Problem = sentence(err.Error())
	}
	ask := api.Query{Filter: filter, RegionID: v.Region, Limit: 100, Cursor: q.Get("cursor")}
	if v.Status.Valid() {
		ask.Statuses = []lpmos.Status{v.Status}
	} else {
		v.Status = ""
	}
	address := func(status lpmos.Status, cursor string) string {
		u := url.Values{}
		for name, value := range map[string]string{"status": string(status), "q": v.Query, "region_id": v.Region, "cursor": cursor} {
			if value != "" {
				u.Set(name, value)
			}
		}
		if len(u) == 0 {
			return "/tasks"
		}
		return "/tasks?" + u.Encode()
	}
	counts, all := w.reader.Counts(), 0
	for _, n := range counts {
		all += n
	}
	v.Empty = all == 0
	v.Views = append(v.Views, savedView{Label: "All", Link: address("", ""), Count: all, Current: v.Status == ""})
	for _, s := range []lpmos.Status{lpmos.AwaitingApproval, lpmos.Failed, lpmos.Installing, lpmos.Verifying, lpmos.Pending, lpmos.Approved, lpmos.Completed, lpmos.Rejected, lpmos.Canceled} {
		v.Views = append(v.Views, savedView{Label: w.statusWord(s), Link: address(s, ""), Count: counts[s], Current: v.Status == s, Warn: s == lpmos.AwaitingApproval && counts[s] > 0, Status: s})
	}
	var found api.Page
	if v.Problem == "" {
		found = w.reader.Tasks(ask)
	}
	v.Total = found.Total
	images := w.reader.Images()
	for _, t := range found.Tasks {
		v.Rows = append(v.Rows, w.newRow(t, images))
	}
	if found.NextCursor != "" {
		v.Next = address(v.Status, found.NextCursor)
	}
	nav := "tasks"
	var flags []string
	if v.Status != "" {
		flags = append(flags, "--status "+string(v.Status))
		if v.Status == lpmos.AwaitingApproval {
			nav = "approvals"
		}
	}
	if lpmos.ValidRegionID(v.Region) {
		flags = append(flags, "--region "+v.Region)
	}
	v.Command = commandList(strings.Join(flags, " "))
	w.show(rw, r, http.StatusOK, "tasks", page{Title: "Tasks", Nav: nav, Watch: "all", Rev: rev, Search: v.Query, Body: v})
}
