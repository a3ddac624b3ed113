package web

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

// need is one line of what waits for a person.
type need struct {
	Kind   string // offline, failed, stuck, approval: the CSS
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

// needsMore says how many of a kind are not shown, and leads to all of them.
type needsMore struct {
	Text string
	Link string
}

type dashboardView struct {
	Needs     []need
	NeedsMore []needsMore
	NeedTotal int
	Running   []row
	RunTotal  int
	Pace      paceView
	Recent    []happening
	Tallies   []tally
	Regions   []regionTally
	Offline   int
	Total     int
	Command   string
}

type tally struct {
	Status lpmos.Status
	Count  int
}

// regionTally is a region with how many of its tasks are where.
type regionTally struct {
	regionView
	Tallies []tally // statuses that are there, but for what has ended well
	Ended   int
	Total   int
}

// happening is the last thing that became of a task.
type happening struct {
	row
	Text string // before the cause, which is somebody's words
	Note string
}

const (
	dashboardNeeds   = 10
	dashboardRunning = 8
	dashboardRecent  = 8
)

func (w *Web) dashboard(rw http.ResponseWriter, r *http.Request) {
	rev, now, images := w.rev(), w.cfg.Now(), w.reader.Images()
	v := dashboardView{Command: "lpmos task list --watch"}
	counts := w.reader.Counts()
	for _, s := range lpmos.Statuses {
		v.Tallies = append(v.Tallies, tally{s, counts[s]})
		v.Total += counts[s]
	}
	var offline, broken, still, waiting []need
	for _, reg := range w.reader.Regions() {
		rt := w.newRegionTally(reg)
		v.Regions = append(v.Regions, rt)
		if !rt.Online {
			v.Offline++
			text := w.T("Installs that have begun go on by themselves; no further disk is erased there until it is back.")
			if n := rt.Running; n > 0 {
				text = w.N(n, "Its 1 running install goes on by itself; no further disk is erased there until it is back.",
					"Its %s running installs go on by themselves; no further disk is erased there until it is back.")
			}
			offline = append(offline, need{Kind: "offline", Icon: "link-lost", Title: w.T("Region %s is offline", reg.ID), Since: reg.Since,
				Text: text, Link: "/regions#r-" + reg.ID, Button: w.T("Open regions")})
		}
	}
	ask := func(limit int, q api.Query) api.Page {
		q.Limit = limit
		return w.reader.Tasks(q)
	}
	// Of what waits, the oldest first: it has waited longest. Of what failed, the
	// newest: the old ones were read before, and stay until they are deleted.
	oldest, newest := api.Sort{By: "updated"}, api.Sort{By: "updated", Desc: true}
	failed := ask(dashboardNeeds, api.Query{Statuses: []lpmos.Status{lpmos.Failed}, Sort: newest})
	for _, t := range failed.Tasks {
		broken = append(broken, w.failedNeed(t))
	}
	stuck := ask(dashboardNeeds, api.Query{Filter: query.Filter{Terms: []query.Term{{Key: "is", Values: []string{query.Stuck}}}}, Sort: oldest,
		Statuses: []lpmos.Status{lpmos.Pending, lpmos.Approved, lpmos.Installing, lpmos.Verifying}})
	for _, t := range stuck.Tasks {
		still = append(still, w.stuckNeed(t))
	}
	awaiting := ask(mostTogether, api.Query{Statuses: []lpmos.Status{lpmos.AwaitingApproval}, Sort: oldest})
	decisions := w.decisions(awaiting)
	for _, same := range decisions[:min(len(decisions), dashboardNeeds)] {
		n := w.approvalNeed(awaiting.Tasks[same[0]], awaiting.Rows[same[0]], images)
		if len(same) > 1 {
			w.needTogether(&n, awaiting, same, images)
		}
		waiting = append(waiting, n)
	}
	for _, needs := range [][]need{offline, still} {
		slices.SortStableFunc(needs, func(a, b need) int { return a.Since.Compare(b.Since) })
	}
	v.fill([]needKind{
		// What concerns a whole site, what is broken, what stands still, what waits
		// for a decision as it should.
		{offline, v.Offline, "/regions", func(n int) string { return w.N(n, "1 more region is offline", "%s more regions are offline") }},
		{broken, failed.Total, "/tasks?q=status%3Afailed&sort=-updated", func(n int) string { return w.N(n, "1 more failed", "%s more failed") }},
		{still, stuck.Total, "/tasks?q=is%3Astuck&sort=updated", func(n int) string { return w.N(n, "1 more stands still", "%s more stand still") }},
		{waiting, len(decisions) + awaiting.Total - len(awaiting.Tasks), "/tasks?q=status%3Aawaiting_approval&sort=updated",
			func(n int) string { return w.N(n, "1 more waits for approval", "%s more wait for approval") }},
	})
	for i := range v.Needs {
		n := &v.Needs[i]
		n.Title, n.Text = lpmos.Shorten(n.Title, maxWords), lpmos.Shorten(n.Text, 2*maxWords)
		if !n.Since.IsZero() {
			n.Age = w.age(now.Sub(n.Since))
		}
	}
	running := ask(dashboardRunning, api.Query{Statuses: []lpmos.Status{lpmos.Installing, lpmos.Verifying}})
	v.Running, v.RunTotal = w.rows(running), running.Total
	for i := range v.Running {
		v.Running[i].Trend = w.speedTrend(v.Running[i].Task)
	}
	v.Pace = w.newPace(w.reader.Pace())
	for _, r := range w.rows(ask(dashboardRecent, api.Query{Sort: api.Sort{By: "updated", Desc: true}})) {
		v.Recent = append(v.Recent, w.newHappening(r))
	}
	w.show(rw, r, http.StatusOK, "dashboard", page{Title: w.T("Overview"), Nav: "dashboard", Watch: "all", Rev: rev, Body: v})
}

// needKind is one kind of what waits for a person: the most urgent of it, how
// much there is, and where all of it is shown under which words.
type needKind struct {
	needs []need
	total int
	list  string
	more  func(n int) string
}

// fill gives the kinds the places there are in turn, so that none hides another,
// and says of each what has none.
func (v *dashboardView) fill(kinds []needKind) {
	shown := make([]int, len(kinds))
	for left, gave := dashboardNeeds, true; gave; {
		gave = false
		for i, k := range kinds {
			if left > 0 && shown[i] < len(k.needs) {
				shown[i]++
				left--
				gave = true
			}
		}
	}
	for i, k := range kinds {
		v.NeedTotal += k.total
		v.Needs = append(v.Needs, k.needs[:shown[i]]...)
		if n := k.total - shown[i]; n > 0 {
			v.NeedsMore = append(v.NeedsMore, needsMore{k.more(n), k.list})
		}
	}
}

func (w *Web) newRegionTally(reg lpmos.Region) regionTally {
	counts := w.reader.RegionCounts(reg.ID)
	v := regionTally{regionView: regionView{Region: reg, Online: reg.Status == "online", Running: counts[lpmos.Installing] + counts[lpmos.Verifying]}}
	if !reg.Since.IsZero() {
		v.Age = w.age(w.cfg.Now().Sub(reg.Since))
	}
	for _, s := range lpmos.Statuses {
		n := counts[s]
		v.Total += n
		switch {
		case s.Live() || s == lpmos.Failed:
			if n > 0 {
				v.Tallies = append(v.Tallies, tally{s, n})
			}
		default:
			v.Ended += n
		}
	}
	return v
}

func (w *Web) failedNeed(t lpmos.Task) need {
	n := need{Kind: "failed", Icon: "failed", Title: w.T("%s failed", t.Hostname), Since: t.UpdatedAt, Link: "/tasks/" + t.ID, Button: w.T("Open task"), TaskID: t.ID}
	if e := t.Error; e != nil {
		n.Text = w.paragraph(w.Said(sentence(e.Cause)), w.Said(sentence(e.NextStep)))
		if e.Stage != "" {
			n.Title = w.T("%s failed while %s", t.Hostname, w.stageWord(e.Stage))
		}
	}
	return n
}

func (w *Web) stuckNeed(t lpmos.Task) need {
	n := need{Kind: "stuck", Icon: "slow", Since: t.UpdatedAt, Late: true, Link: "/tasks/" + t.ID, Button: w.T("Open task"), TaskID: t.ID}
	switch t.Status {
	case lpmos.Pending:
		n.Title = w.T("%s has not booted from the network", t.Hostname)
		n.Text = w.T("Nothing was heard from %s. Restart the machine and let it boot from the network.", t.TargetMAC)
	case lpmos.Approved:
		n.Title = w.T("%s is approved and has not begun", t.Hostname)
		n.Text = w.T("Its agent has not asked for the permit to erase. Look at the machine's console; nothing was erased.")
	case lpmos.Installing:
		n.Title = w.T("%s makes no progress", t.Hostname)
		if p := t.Progress; p != nil && p.UpdatedAt.After(n.Since) {
			n.Since = p.UpdatedAt
		}
		n.Text = w.T("Nothing was heard of its install since then. Look at the machine's console and at its region.")
		if t.Progress != nil {
			n.Text = w.T("It stands at %s while %s. Look at the machine's console and at its region.", w.percent(t.Progress.Percentage), w.stageWord(t.Progress.Stage))
		}
	default:
		n.Title = w.T("%s has not come back from its restart", t.Hostname)
		n.Text = w.T("Its own system has not called home yet. Look at the machine's console: it may stand in its firmware.")
	}
	return n
}

func (w *Web) approvalNeed(t lpmos.Task, sum api.Summary, images []lpmos.Image) need {
	n := need{Kind: "approval", Icon: "awaiting_approval", Since: t.UpdatedAt, Link: "/tasks/" + t.ID + "/approve", Button: w.T("Review"), TaskID: t.ID,
		Late: w.cfg.Now().Sub(t.UpdatedAt) > api.Warnings[lpmos.AwaitingApproval]}
	os := imageTitle(images, t.OSType, t.OSVersion, t.Arch)
	n.Text = w.T("In %s, for %s.", t.RegionID, os)
	if t.CreatedBy != "" {
		n.Text = w.paragraph(n.Text, w.T("Requested by %s.", t.CreatedBy))
	}
	switch {
	case !sum.Planned:
		n.Title = w.T("%s waits for a decision", t.Hostname)
	case sum.Problem != "":
		n.Title, n.Text = w.T("%s cannot be installed as asked", t.Hostname), w.Said(sum.Problem)
	case sum.Target == nil:
		n.Title = w.T("%s: erase 1 disk?", t.Hostname)
	default:
		size := w.size(sum.Target.Disk.SizeBytes)
		n.Title = w.T("%s: erase a blank disk of %s?", t.Hostname, size)
		if h := w.holds(sum.Target.Content, sum.Target.Unknown); !h.Blank {
			n.Title = w.T("%s: erase %s with data on it?", t.Hostname, size)
			n.Text = w.paragraph(w.T("Found: %s.", h), n.Text)
		}
	}
	return n
}

// decisions are the tasks of a page, by index, that one decision can answer:
// those of machines to which the same happens stand together. They are in the
// order of the page, and so are the tasks of each.
func (w *Web) decisions(page api.Page) (out [][]int) {
	// Likeness takes the whole plan. Most are told apart by less.
	type look struct {
		maker, model, disk, os, version, arch, profile string
		size                                           int64
	}
	alone := make([]string, len(page.Tasks))
	seen := map[look][]int{}
	for i, t := range page.Tasks {
		alone[i] = t.ID
		if sum := page.Rows[i]; sum.Target != nil && sum.Problem == "" {
			k := look{sum.Manufacturer, sum.Model, sum.Target.Model, t.OSType, t.OSVersion, t.Arch, t.Profile, sum.Target.Disk.SizeBytes}
			seen[k] = append(seen[k], i)
		}
	}
	for _, same := range seen {
		if len(same) < 2 {
			continue
		}
		for _, i := range same {
			if t, ok := w.reader.Task(page.Tasks[i].ID); ok && decidable(t) {
				alone[i] = w.likeness(t)
			}
		}
	}
	at := map[string]int{}
	for i, k := range alone {
		n, ok := at[k]
		if !ok {
			n = len(out)
			at[k] = n
			out = append(out, nil)
		}
		out[n] = append(out[n], i)
	}
	return out
}

// needTogether makes what waits for one decision about a machine say that others
// wait for the same one.
func (w *Web) needTogether(n *need, page api.Page, same []int, images []lpmos.Image) {
	var hosts, regions []string
	for _, i := range same {
		t := page.Tasks[i]
		hosts = append(hosts, t.Hostname)
		if !slices.Contains(regions, t.RegionID) {
			regions = append(regions, t.RegionID)
		}
	}
	t, target := page.Tasks[same[0]], page.Rows[same[0]].Target
	size := w.size(target.Disk.SizeBytes)
	n.Title = w.T("%s identical machines: erase a blank disk of %s on each?", count(len(same)), size)
	if !w.holds(target.Content, target.Unknown).Blank {
		n.Title = w.T("%s identical machines: erase %s with data on each?", count(len(same)), size)
	}
	names := w.T("%s.", w.list(hosts))
	if more := len(hosts) - 3; more > 0 {
		names = w.T("%s and %s more.", w.list(hosts[:3]), count(more))
	}
	n.Text = w.paragraph(names, w.T("In %s, for %s.", w.list(regions), imageTitle(images, t.OSType, t.OSVersion, t.Arch)), w.T("Same hardware, same plan."))
	n.Link, n.Button = "/tasks/approve?like="+t.ID, w.T("Review %s", count(len(same)))
}

// paragraph puts sentences one after the other. Chinese ones need no space.
func (s *tongue) paragraph(sentences ...string) string {
	out := ""
	for _, text := range sentences {
		if out != "" && text != "" && !strings.HasSuffix(out, "。") {
			out += " "
		}
		out += text
	}
	return out
}

func (w *Web) newHappening(r row) happening {
	h := happening{row: r}
	switch r.Status {
	case lpmos.Pending:
		h.Text = w.T("waits for its machine to boot")
		if r.Attempt > 1 {
			h.Text = w.T("was retried and waits for its machine to boot")
		}
	case lpmos.AwaitingApproval:
		h.Text = w.T("reported its hardware and waits for a decision")
	case lpmos.Approved:
		h.Text = w.T("was approved")
		if r.Approval != nil && r.Approval.By != "" {
			h.Text = w.T("was approved by %s", lpmos.Shorten(r.Approval.By, 80))
		}
	case lpmos.Installing:
		h.Text = w.T("got its permit and installs %s", r.OS)
	case lpmos.Verifying:
		h.Text = w.T("is installed and restarts from its own disk")
	case lpmos.Completed:
		h.Text = w.T("completed; its own system called home")
		if len(r.Drift) > 0 {
			h.Note = w.T("completed (drift: %s)", w.driftNames(r.Drift))
		}
	case lpmos.Failed:
		h.Text = w.T("failed")
		if r.Error != nil {
			h.Note = lpmos.Shorten(w.Said(sentence(r.Error.Cause)), maxWords)
		}
	case lpmos.Rejected:
		h.Text, h.Note = w.T("was rejected"), r.Summary
	case lpmos.Canceled:
		h.Text = w.T("was canceled before anything was erased")
	}
	return h
}
