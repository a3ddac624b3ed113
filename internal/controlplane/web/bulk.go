package web

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// Several tasks at once: what was selected is sent to /tasks/bulk, which shows
// what would become of each and asks; what is answered there is sent to
// /tasks/bulk/run, which does it task by task and says how each ended. Nothing
// is decided here that the actions do not decide again for each task.
const (
	bulkMost   = 1000 // tasks at once
	bulkAtOnce = 8    // of them side by side
	bulkTime   = 2 * time.Minute
)

var bulkActions = []string{"approve", "retry", "cancel", "reject", "delete"}

// bulkWords are the texts of an action that is done to several tasks. %s is
// their number.
type bulkWords struct {
	button             string // "Cancel…"
	ask, askOne        string // "Cancel %s tasks?"
	do, doOne          string // "Cancel %s tasks"
	done, doneOne      string // "%s tasks were canceled"
	none               string // nothing selected can be …
	typed              bool   // the number is asked for
	reason, reasonHelp string // label of the field; "" for no reason
	needsReason        bool
	command            string
}

var bulkTexts = map[string]bulkWords{
	"cancel": {button: "Cancel", ask: "Cancel %s tasks?", askOne: "Cancel 1 task?", do: "Cancel %s tasks", doOne: "Cancel 1 task", done: "%s tasks were canceled", doneOne: "1 task was canceled",
		none: "None of the selected tasks can be canceled", typed: true, reason: "Reason", reasonHelp: "Kept with each task.", command: "lpmos task cancel"},
	"retry": {button: "Retry", ask: "Retry %s tasks?", askOne: "Retry 1 task?", do: "Retry %s tasks", doOne: "Retry 1 task", done: "%s tasks begin again", doneOne: "1 task begins again",
		none: "None of the selected tasks can be retried", command: "lpmos task retry"},
	"reject": {button: "Reject", ask: "Reject %s plans?", askOne: "Reject 1 plan?", do: "Reject %s plans", doOne: "Reject 1 plan", done: "%s plans were rejected", doneOne: "1 plan was rejected",
		none: "None of the selected tasks waits for a decision", typed: true, reason: "Reason", reasonHelp: "For the people who asked; kept with each task.", needsReason: true, command: "lpmos task reject"},
	"delete": {button: "Delete", ask: "Delete %s tasks and their history?", askOne: "Delete 1 task and its history?", do: "Delete %s tasks", doOne: "Delete 1 task", done: "%s tasks were deleted", doneOne: "1 task was deleted",
		none: "None of the selected tasks can be deleted", typed: true, command: "lpmos task delete"},
	"approve": {button: "Approve"},
}

// effect is what would become of some of the selected tasks.
type effect struct {
	Kind  string // keep, danger, skip
	Icon  string
	Text  string
	Tasks []lpmos.Task
}

// First are the names that fit into a line.
func (e effect) First() []lpmos.Task { return e.Tasks[:min(len(e.Tasks), 6)] }

// More is how many do not.
func (e effect) More() int { return len(e.Tasks) - len(e.First()) }

type bulkView struct {
	Action   string
	Title    string
	Do       string
	Typed    bool
	Reason   string // label
	Help     string
	Needs    bool
	Effects  []effect
	Eligible int
	Selected int
	Regions  int
	Left     int // matched, but more than may be changed at once
	IDs      string
	Given    string // the reason that was typed
	Count    string // the number that was typed
	Problems []fieldProblem
	Command  string
	Query    string // of the list they were selected in
	Sort     string
	Back     string // its address
}

// Bad is what is wrong with a field.
func (v bulkView) Bad(field string) string {
	for _, p := range v.Problems {
		if p.Field == field {
			return p.Text
		}
	}
	return ""
}

// outcome says what an action would do to a task: a kind for the picture, and
// a sentence. Those of kind skip are left out.
func (w *Web) outcome(action string, t lpmos.Task) (kind, text string) {
	switch action {
	case "cancel":
		switch {
		case t.Status.Allows(lpmos.CauseCanceled):
			return "keep", w.T("stop before anything is erased. Their disks stay as they are.")
		case t.Status == lpmos.Installing:
			return "skip", w.T("left out: erasing has begun, and stopping now would leave a disk that boots nothing.")
		case t.Status == lpmos.Verifying:
			return "skip", w.T("left out: already installed, they restart from their own disk.")
		}
		return "skip", w.T("left out: they have ended already.")
	case "retry":
		switch {
		case t.Status.Allows(lpmos.CauseRetried) && t.Error != nil && t.Error.Stage != "":
			return "keep", w.T("begin again. Their disks were written already; the plan is made anew and approved again before more is erased.")
		case t.Status.Allows(lpmos.CauseRetried):
			return "keep", w.T("begin again. Nothing was erased yet; the plan is made anew and approved again.")
		case t.Status.Live():
			return "skip", w.T("left out: still running.")
		}
		return "skip", w.T("left out: only failed tasks can be retried.")
	case "reject", "approve":
		switch {
		case t.Status == lpmos.AwaitingApproval && t.Plan != nil:
			return "keep", w.T("are rejected. Nothing is erased, and the tasks end.")
		case t.Status == lpmos.AwaitingApproval:
			return "skip", w.T("left out: the plan is still being made.")
		}
		return "skip", w.T("left out: no decision is asked for.")
	}
	if !t.Status.Live() {
		return "danger", w.T("are deleted with their events, log and hardware report. Their disks stay as they are.")
	}
	return "skip", w.T("left out: still running. Cancel them first.")
}

var effectIcons = map[string]string{"keep": "lock", "danger": "erase", "skip": "canceled"}

// selected are the tasks a form names, without those that are gone: by task or
// ids, or with all by what matches q.
func (w *Web) selected(r *http.Request) (tasks []lpmos.Task, left int) {
	ids := slices.Concat(r.PostForm["task"], strings.Split(r.PostForm.Get("ids"), ","))
	if r.PostForm.Get("all") != "" {
		if a := w.asked(r.PostForm); a.Problem == "" {
			var total int
			ids, total = w.reader.IDs(api.Query{Filter: a.Filter, Sort: a.Sort, Limit: bulkMost})
			left = total - len(ids)
		}
	}
	seen := map[string]bool{}
	ids = slices.DeleteFunc(ids, func(id string) bool {
		again := seen[id]
		seen[id] = true
		return again || !lpmos.ValidTaskID(id)
	})
	if n := len(ids) - bulkMost; n > 0 {
		ids, left = ids[:bulkMost], left+n
	}
	return w.withPlans(ids), left
}

// withPlans are the tasks of these ids as a list has them, without those that
// are gone; what waits for a decision has its plan, which lists leave out. No
// other is read from the store.
func (w *Web) withPlans(ids []string) []lpmos.Task {
	tasks := w.reader.Rows(ids).Tasks
	for i, t := range tasks {
		if t.Status != lpmos.AwaitingApproval {
			continue
		}
		if whole, ok := w.reader.Task(t.ID); ok {
			tasks[i] = whole
		}
	}
	return tasks
}

// bulk shows what would become of the selected tasks. It changes nothing.
func (w *Web) bulk(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	tasks, left := w.selected(r)
	action := r.PostForm.Get("action")
	words, ok := bulkTexts[action]
	switch {
	case !ok:
		w.fail(rw, r, &lpmos.InvalidError{Field: "action", Problem: "is none of " + strings.Join(bulkActions, ", ")})
	case len(tasks) == 0:
		w.showProblem(rw, r, problem{Status: http.StatusBadRequest, Icon: "tasks", Title: w.T("No task is selected"),
			Text: w.T("Tick the boxes before the tasks, or the one above them for all that match.")})
	case action == "approve":
		w.bulkApprove(rw, r, tasks, left)
	default:
		v := w.newBulk(r, action, words, tasks)
		v.Left = left
		w.show(rw, r, http.StatusOK, "bulk", page{Title: v.Title, Nav: "tasks", Body: v})
	}
}

// bulkApprove leads to the page on which plans are read: approving is never a
// matter of a number. Its address names as many of the tasks as it decides, and
// the page says of each that cannot be approved why; of the others it tells how
// many there are.
func (w *Web) bulkApprove(rw http.ResponseWriter, r *http.Request, tasks []lpmos.Task, left int) {
	var ids, skipped []string
	for _, t := range tasks {
		if kind, _ := w.outcome("approve", t); kind != "skip" {
			ids = append(ids, t.ID)
		} else {
			skipped = append(skipped, t.ID)
		}
	}
	switch {
	case len(ids) == 0:
		w.showProblem(rw, r, problem{Status: http.StatusConflict, Icon: "awaiting_approval", Title: w.T("None of the selected tasks waits for a decision"),
			Text: w.T("They are approved already, or have no plan yet, or have ended.")})
	case len(tasks)+left == 1:
		http.Redirect(rw, r, "/tasks/"+ids[0]+"/approve", http.StatusSeeOther)
	default:
		ids = append(ids, skipped...)
		named := min(len(ids), mostTogether)
		to := "/tasks/approve?ids=" + strings.Join(ids[:named], ",")
		if more := len(ids) - named + left; more > 0 {
			to += "&more=" + strconv.Itoa(more)
		}
		http.Redirect(rw, r, to, http.StatusSeeOther)
	}
}

func (w *Web) newBulk(r *http.Request, action string, words bulkWords, tasks []lpmos.Task) bulkView {
	a := w.asked(r.PostForm)
	v := bulkView{Action: action, Typed: words.typed, Needs: words.needsReason, Selected: len(tasks), Query: a.Text, Sort: a.Sort.String(), Back: listAddress(a.Text, a.Sort, "")}
	if words.reason != "" {
		v.Reason, v.Help = w.T(words.reason), w.T(words.reasonHelp)
	}
	var ids []string
	regions := map[string]bool{}
	for _, t := range tasks {
		regions[t.RegionID] = true
		kind, text := w.outcome(action, t)
		if kind != "skip" {
			ids = append(ids, t.ID)
		}
		i := slices.IndexFunc(v.Effects, func(e effect) bool { return e.Kind == kind && e.Text == text })
		if i < 0 {
			i = len(v.Effects)
			v.Effects = append(v.Effects, effect{Kind: kind, Icon: effectIcons[kind], Text: text})
		}
		t.Hostname = lpmos.Shorten(t.Hostname, maxWords)
		v.Effects[i].Tasks = append(v.Effects[i].Tasks, t)
	}
	order := map[string]int{"keep": 0, "danger": 1, "skip": 2}
	slices.SortStableFunc(v.Effects, func(a, b effect) int { return cmp.Compare(order[a.Kind], order[b.Kind]) })
	v.Typed = v.Typed && len(ids) > 1
	v.Eligible, v.Regions, v.IDs = len(ids), len(regions), strings.Join(ids, ",")
	v.Title, v.Do = w.T(words.none), ""
	if v.Eligible > 0 {
		v.Title, v.Do = w.N(v.Eligible, words.askOne, words.ask), w.N(v.Eligible, words.doOne, words.do)
	}
	v.Command = words.command
	for _, id := range ids[:min(len(ids), 5)] {
		v.Command += " " + short(id)
	}
	if len(ids) > 5 {
		v.Command += " …"
	}
	return v
}

// bulkCounts answers how many of the selected tasks each action would change.
func (w *Web) bulkCounts(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	tasks, _ := w.selected(r)
	counts, regions := map[string]int{}, map[string]bool{}
	for _, t := range tasks {
		regions[t.RegionID] = true
		for _, action := range bulkActions {
			if kind, _ := w.outcome(action, t); kind != "skip" {
				counts[action]++
			}
		}
	}
	w.sendJSON(rw, map[string]any{"counts": counts, "selected": len(tasks), "regions": len(regions)})
}

// result is how one task of several came out.
type result struct {
	lpmos.Task
	Kind string // done, failed, left
	Icon string
	Text string
}

type bulkDoneView struct {
	Action  string
	Title   string
	Results []result
	Failed  int
	IDs     string // of those that failed
	Query   string // of the list they were selected in
	Sort    string
	Back    string
}

// bulkRun does what the page of bulk asked about.
func (w *Web) bulkRun(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	f := r.PostForm
	action, reason := f.Get("action"), strings.TrimSpace(f.Get("reason"))
	words, ok := bulkTexts[action]
	if !ok || action == "approve" {
		w.fail(rw, r, &lpmos.InvalidError{Field: "action", Problem: "is none of cancel, retry, reject, delete"})
		return
	}
	tasks, _ := w.selected(r)
	v := w.newBulk(r, action, words, tasks)
	v.Given, v.Count = f.Get("reason"), f.Get("count")
	switch {
	case v.Needs && reason == "":
		v.Problems = append(v.Problems, fieldProblem{"reason", w.T("Say why they are rejected, for the people who asked.")})
	case len(reason) > lpmos.MaxNotesBytes:
		v.Problems = append(v.Problems, fieldProblem{"reason", w.T("A reason may have 2 KiB.")})
	}
	if n, err := strconv.Atoi(strings.TrimSpace(v.Count)); v.Typed && (err != nil || n != v.Eligible) {
		v.Problems = append(v.Problems, fieldProblem{"count", w.T("Type %s: so many tasks are changed.", count(v.Eligible))})
	}
	if v.Eligible == 0 || len(v.Problems) > 0 {
		status := http.StatusBadRequest
		if v.Eligible == 0 {
			v.Problems, status = nil, http.StatusConflict
		}
		w.show(rw, r, status, "bulk", page{Title: v.Title, Nav: "tasks", Body: v})
		return
	}
	// What has begun is finished, also for a browser that went away.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), bulkTime)
	defer cancel()
	w.showBulkDone(rw, r, v, words, w.doBulk(ctx, action, reason, w.cfg.Person(r), tasks))
}

// doBulk does an action to each task that can take it, a few at a time.
func (w *Web) doBulk(ctx context.Context, action, reason, by string, tasks []lpmos.Task) []result {
	out := make([]result, len(tasks))
	slots := make(chan struct{}, bulkAtOnce)
	var wg sync.WaitGroup
	for i, t := range tasks {
		out[i] = result{Task: t}
		out[i].Hostname = lpmos.Shorten(t.Hostname, maxWords)
		if kind, text := w.outcome(action, t); kind == "skip" {
			out[i].Kind, out[i].Icon, out[i].Text = "left", "canceled", text
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			w.settle(&out[i], w.doOne(ctx, action, reason, by, t))
		})
	}
	wg.Wait()
	return out
}

func (w *Web) doOne(ctx context.Context, action, reason, by string, t lpmos.Task) error {
	var err error
	switch action {
	case "cancel":
		_, err = w.actions.Cancel(ctx, t.ID, reason, by)
	case "retry":
		_, err = w.actions.Retry(ctx, t.ID, by)
	case "reject":
		_, err = w.actions.Decide(ctx, t.ID, api.Decision{Notes: reason, PlanDigest: t.Plan.Digest}, by)
	case "delete":
		err = w.actions.Delete(ctx, t.ID, by)
	}
	return err
}

// settle says how a task came out.
func (w *Web) settle(r *result, err error) {
	r.Kind, r.Icon = "failed", "failed"
	switch {
	case err == nil:
		r.Kind, r.Icon, r.Text = "done", "completed", w.T("done")
	case errors.Is(err, lpmos.ErrNotFound):
		r.Kind, r.Icon, r.Text = "left", "canceled", w.T("was deleted meanwhile")
	case errors.Is(err, lpmos.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		r.Text = w.T("the store did not answer; nothing was changed that is known of")
	case errors.Is(err, lpmos.ErrConflict):
		r.Text = w.Said(err.Error())
	default:
		if invalid, ok := errors.AsType[*lpmos.InvalidError](err); ok {
			r.Text = w.invalid(invalid)
			return
		}
		w.log.Error("task of several not changed", "task", r.ID, "err", err)
		r.Text = w.T("something in the control plane went wrong; the cause is in its log")
	}
}

func (w *Web) showBulkDone(rw http.ResponseWriter, r *http.Request, of bulkView, words bulkWords, results []result) {
	v := bulkDoneView{Action: of.Action, Results: results, Query: of.Query, Sort: of.Sort, Back: of.Back}
	done := 0
	var again []string
	for _, x := range results {
		switch x.Kind {
		case "done":
			done++
		case "failed":
			again = append(again, x.ID)
		}
	}
	v.Failed, v.IDs = len(again), strings.Join(again, ",")
	v.Title = w.N(done, words.doneOne, words.done)
	if v.Failed > 0 {
		v.Title = w.T("%s, %s not", v.Title, count(v.Failed))
	}
	rank := map[string]int{"failed": 0, "done": 1, "left": 2}
	slices.SortStableFunc(v.Results, func(a, b result) int { return cmp.Compare(rank[a.Kind], rank[b.Kind]) })
	w.show(rw, r, http.StatusOK, "bulk-done", page{Title: v.Title, Nav: "tasks", Body: v})
}
