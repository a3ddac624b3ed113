package web

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

type taskView struct {
	lpmos.Task
	OS       string
	Headline string
	Lead     string
	Steps    []step
	Progress *progressView
	Failure  *failureView
	Machine  *machineView
	Plan     *planView
	Actions  []action
	Events   []eventView
	Broken   string // the history could not be read, for this reason
	Log      []logLine
	Deadline string
	Command  string
	Approval *lpmos.Approval
}

// step is one of the six of a task's life.
type step struct {
	Status lpmos.Status
	State  string // done, now, failed, next: the CSS
	Icon   string
	Note   string
}

type progressView struct {
	TaskID   string
	Attempt  int
	Live     bool // figures still come
	Percent  int
	BytesOf  string // "downloaded", "written"
	Done     string
	Total    string
	Speed    string
	Left     string
	Message  string
	AsOf     instant
	Stages   []stageView
	NowStage string
}

type stageView struct {
	Number  int
	Name    string
	State   string // done, now, ""
	Percent int
}

type failureView struct {
	Title    string
	What     string
	Evidence string
	Disks    string
	NextStep string
	At       time.Time
	Attempt  int
	Retry    bool
}

// action is something a person may do, or may not for now.
type action struct {
	ID     string // cancel, retry, approve, delete
	Icon   string
	Label  string
	Kind   string // of the button
	Link   string // a page; "" posts to Post
	Post   string
	Note   string // what it does, or "Not now: …"
	Off    bool
	Ask    string // the question that is put before it is done; "" for none
	Reason bool   // the question wants a reason
	Do     string // label of the button that does it
}

type eventView struct {
	At     time.Time
	Status lpmos.Status
	Text   string
	By     string
	Note   string
}

// logLine is a line of the machine's log; At or Time is when, if it says so.
type logLine struct {
	At   instant
	Time string
	Text string
}

func (w *Web) task(rw http.ResponseWriter, r *http.Request) {
	rev := w.rev()
	t, err := w.find(r)
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	v := w.newTaskView(r.Context(), t)
	w.show(rw, r, http.StatusOK, "task", page{Title: t.Hostname + ", " + strings.ToLower(w.statusWord(t.Status)), Nav: "tasks", Watch: t.ID, Rev: rev, Body: v})
}

func (w *Web) newTaskView(ctx context.Context, t lpmos.Task) taskView {
	images := w.reader.Images()
	v := taskView{Task: t, OS: imageTitle(images, t.OSType, t.OSVersion, t.Arch), Approval: t.Approval, Command: commandWatch(t.ID), Deadline: w.deadline(t.Status)}
	if !t.Status.Live() {
		v.Command = commandShow(t.ID)
	}
	v.Headline = w.headline(t, v.OS)
	v.Lead = v.OS
	if m := w.model(t.Hardware); m != "" {
		v.Lead += " on a " + m
	}
	v.Lead += ", region " + t.RegionID
	events, err := w.history.Events(ctx, t.ID)
	if err != nil {
		w.log.Warn("history not read", "task", t.ID, "err", err)
		v.Broken = "The history could not be read. The store may not answer; everything else on this page is from memory."
	}
	v.Steps = w.steps(t, events)
	for _, e := range slices.Backward(events) {
		v.Events = append(v.Events, w.newEvent(e, t))
	}
	v.Progress = w.newProgress(t)
	v.Failure = w.newFailure(t)
	v.Machine = w.newMachine(t)
	if t.Plan != nil {
		v.Plan = w.newPlan(t, images)
	}
	v.Actions = w.actionsFor(t)
	for _, l := range t.LogTail {
		v.Log = append(v.Log, w.splitLog(l))
	}
	return v
}

func (s *tongue) headline(t lpmos.Task, os string) string {
	name := t.Hostname
	switch t.Status {
	case lpmos.Pending:
		if t.Attempt > 1 {
			return name + " waits for its machine to boot again"
		}
		return name + " waits for its machine to boot"
	case lpmos.AwaitingApproval:
		if t.Plan != nil && t.Plan.Problem != "" {
			return name + " cannot be installed as asked"
		}
		return name + " waits for a decision"
	case lpmos.Approved:
		return name + " is approved and waits for its permit"
	case lpmos.Installing:
		stage := lpmos.Stage("")
		if t.Progress != nil {
			stage = t.Progress.Stage
		}
		switch stage {
		case lpmos.Partitioning:
			return name + " is partitioning its disk"
		case lpmos.Downloading:
			return name + " is downloading its image"
		case lpmos.StageInstall:
			return name + " is writing its image"
		case lpmos.Configuring:
			return name + " is being configured"
		}
		return name + " is installing"
	case lpmos.Verifying:
		return name + " is installed and restarts from its own disk"
	case lpmos.Completed:
		return name + " runs " + os
	case lpmos.Failed:
		if t.Error != nil && t.Error.Stage != "" {
			return name + " failed while " + string(t.Error.Stage)
		}
		return name + " failed before anything was erased"
	case lpmos.Rejected:
		return name + " was rejected"
	case lpmos.Canceled:
		return name + " was canceled"
	}
	return name
}

func (s *tongue) deadline(status lpmos.Status) string {
	switch status {
	case lpmos.Pending, lpmos.AwaitingApproval:
		return "Fails if nothing happens for 7 days"
	case lpmos.Approved:
		return "Waits for a new approval if nothing is heard for 1 hour"
	case lpmos.Installing:
		return "Fails if there is no progress for 15 min"
	case lpmos.Verifying:
		return "Fails if its system does not report within 30 min"
	}
	return ""
}

var lifeSteps = []lpmos.Status{lpmos.Pending, lpmos.AwaitingApproval, lpmos.Approved, lpmos.Installing, lpmos.Verifying, lpmos.Completed}

// steps places the task on its way; where an ended one stopped is what its
// history says, or what is known of it if there is none.
func (w *Web) steps(t lpmos.Task, events []lpmos.Event) []step {
	at, stopped := slices.Index(lifeSteps, t.Status), false
	if at < 0 {
		stopped = true
		switch {
		case t.Error != nil && t.Error.Stage != "":
			at = 3
		case t.Approval != nil && t.Approval.Approved:
			at = 2
		case t.Hardware != nil:
			at = 1
		default:
			at = 0
		}
		for _, e := range slices.Backward(events) {
			if e.To == t.Status && e.From.Live() {
				at = slices.Index(lifeSteps, e.From)
				break
			}
		}
	}
	took := map[lpmos.Status]time.Duration{}
	for i, e := range events[:max(0, len(events)-1)] {
		took[e.To] += events[i+1].At.Sub(e.At)
	}
	next := map[lpmos.Status]string{
		lpmos.AwaitingApproval: "a person compares", lpmos.Approved: "gets its permit", lpmos.Installing: "erases and writes",
		lpmos.Verifying: "restarts from its own disk", lpmos.Completed: "calls home",
	}
	var out []step
	for i, s := range lifeSteps {
		st := step{Status: s}
		switch {
		case i < at || i == at && s == lpmos.Completed:
			st.State, st.Icon = "done", "completed"
			if d, ok := took[s]; ok && s != lpmos.Completed {
				st.Note = map[lpmos.Status]string{lpmos.Pending: "booted in ", lpmos.AwaitingApproval: "waited "}[s] + w.age(d)
			}
			if s == lpmos.Approved && t.Approval != nil && t.Approval.By != "" {
				// Where from is in the facts; here is room for a name.
				name, _, _ := strings.Cut(t.Approval.By, "@")
				st.Note = "by " + name
			}
			if s == lpmos.Completed {
				st.Note = "called home"
			}
		case i == at && stopped:
			st.State, st.Icon, st.Note = "failed", string(t.Status), strings.ToLower(w.statusWord(t.Status))
		case i == at:
			st.State, st.Icon = "now", string(s)
			if !t.UpdatedAt.IsZero() {
				st.Note = "for " + w.age(w.cfg.Now().Sub(t.UpdatedAt))
			}
			if s == lpmos.Installing && t.Progress != nil {
				st.Note = "stage " + strconv.Itoa(t.Progress.Stage.Number()) + " of 4"
			}
		default:
			st.State, st.Icon, st.Note = "next", "pending", next[s]
			if stopped {
				st.Note = "not reached"
			}
		}
		out = append(out, st)
	}
	return out
}

// newProgress is nil while there is nothing to show.
func (w *Web) newProgress(t lpmos.Task) *progressView {
	switch t.Status {
	case lpmos.Installing, lpmos.Verifying, lpmos.Completed:
	case lpmos.Failed:
		if t.Progress == nil {
			return nil
		}
	default:
		return nil
	}
	v := &progressView{TaskID: t.ID, Attempt: t.Attempt, Live: t.Status == lpmos.Installing, Speed: "unknown", Left: "unknown", Done: "unknown", BytesOf: "downloaded"}
	p := t.Progress
	if p != nil {
		v.Percent, v.Message, v.NowStage = min(max(p.Percentage, 0), 100), p.Message, string(p.Stage)
		if p.Stage == lpmos.StageInstall {
			v.BytesOf = "written"
		}
		if d := p.Details; d != nil && d.BytesTotal > 0 {
			v.Done, v.Total = w.size(max(d.BytesDownloaded, 1)), w.size(d.BytesTotal)
			if d.BytesDownloaded <= 0 {
				v.Done = "0" + nbsp + "B"
			}
		}
		if v.Live {
			if w.cfg.Now().Sub(p.UpdatedAt) > staleAfter {
				v.AsOf = w.moment(p.UpdatedAt)
			} else if d := p.Details; d != nil {
				v.Speed, v.Left = w.speed(d.BytesPerSecond), w.left(d)
			}
		}
	}
	if t.Status == lpmos.Verifying || t.Status == lpmos.Completed {
		v.Percent = 100
	}
	for i, sw := range lpmos.StageWeights {
		now := "now"
		if t.Status == lpmos.Failed {
			now = "failed"
		}
		s := stageView{Number: i + 1, Name: string(sw.Stage), Percent: min(max((v.Percent-sw.From)*100/(sw.To-sw.From), 0), 100)}
		switch {
		case v.Percent == 100 || p != nil && p.Stage.Number() > i+1:
			s.State, s.Percent = "done", 100
		case p != nil && p.Stage == sw.Stage:
			s.State = now
		}
		v.Stages = append(v.Stages, s)
	}
	return v
}

func (s *tongue) newFailure(t lpmos.Task) *failureView {
	e := t.Error
	if t.Status != lpmos.Failed || e == nil {
		return nil
	}
	v := &failureView{What: sentence(e.Cause), Evidence: e.Evidence, NextStep: sentence(e.NextStep), At: e.At, Attempt: e.Attempt, Retry: t.Status.Allows(lpmos.CauseRetried)}
	v.Title = t.Hostname + " failed"
	v.Disks = "Nothing was written; all disks are as they were."
	if e.Stage != "" {
		v.Title += " in stage " + strconv.Itoa(e.Stage.Number()) + " of 4, " + string(e.Stage)
		v.Disks = "The disk of the plan is erased and may not boot."
		if t.Plan != nil {
			_, id := s.diskID(t.Plan.Effect.Target)
			v.Disks = "The disk " + id + " (" + s.size(t.Plan.Effect.Target.SizeBytes) + ") is erased and may not boot."
			if n := len(t.Plan.Observed) - 1; n > 0 {
				v.Disks += " " + s.N(n, "1 other disk is", "%s other disks are") + " untouched."
			}
		}
	}
	if v.NextStep == "" {
		v.NextStep = "Read the log, then retry."
	}
	return v
}

// actionsFor lists everything that can ever be done with a task. What cannot
// be done now stays visible and says why.
func (s *tongue) actionsFor(t lpmos.Task) []action {
	base := "/tasks/" + t.ID
	out := []action{
		{ID: "approve", Icon: "approved", Label: "Review and decide", Kind: "primary", Link: base + "/approve", Note: "Shows what is lost, what stays and what comes."},
		{ID: "cancel", Icon: "canceled", Label: "Cancel this task…", Kind: "danger-quiet", Post: base + "/cancel", Note: "Nothing was erased; the disks stay as they are.",
			Ask: "The task ends and the machine boots its own disk again. No disk is changed.", Reason: true, Do: "Cancel this task"},
		{ID: "retry", Icon: "retry", Label: "Retry as attempt " + strconv.Itoa(t.Attempt+1), Post: base + "/retry", Note: "The machine boots again and a new plan is approved."},
		{ID: "delete", Icon: "reject", Label: "Delete…", Kind: "danger-quiet", Post: base + "/delete", Note: "Removes the task and its history, not the installed system.",
			Ask: "The task, its log and its history are removed and cannot be brought back. The machine is not touched.", Do: "Delete this task"},
	}
	off := func(i int, why string) {
		out[i].Off, out[i].Note = true, "Not now: "+why
	}
	by := ""
	if t.Approval != nil && t.Approval.By != "" {
		by = t.Approval.By
	}
	switch t.Status {
	case lpmos.AwaitingApproval:
	case lpmos.Pending:
		off(0, "the machine has not reported its hardware yet.")
	case lpmos.Rejected:
		off(0, "it was rejected"+s.byWords(by)+".")
	case lpmos.Failed, lpmos.Completed, lpmos.Canceled:
		off(0, "the task has ended.")
	default:
		off(0, "it was approved"+s.byWords(by)+".")
	}
	if !t.Status.Allows(lpmos.CauseCanceled) {
		switch t.Status {
		case lpmos.Installing:
			off(1, "erasing has begun; stopping halfway would leave a machine that does not boot.")
		case lpmos.Verifying:
			off(1, "the system is installed already.")
		default:
			off(1, "the task has ended.")
		}
	}
	if !t.Status.Allows(lpmos.CauseRetried) {
		if t.Status.Live() {
			off(2, "the task is still running.")
		} else {
			off(2, "only failed tasks can be retried; create a new one.")
		}
		out[2].Label = "Retry"
	}
	if t.Status.Live() {
		off(3, "only ended tasks can be deleted.")
	}
	return out
}

func (s *tongue) byWords(who string) string {
	if who == "" {
		return ""
	}
	return " by " + who
}

func (s *tongue) newEvent(e lpmos.Event, t lpmos.Task) eventView {
	v := eventView{At: e.At, Status: e.To, Text: s.causeWord(e.Cause), By: e.By, Note: e.Message}
	if t.Attempt > 1 && (e.Cause == lpmos.CauseNextAttempt || e.Cause == lpmos.CauseRetried) {
		v.Text += ", attempt " + strconv.Itoa(e.Attempt)
	}
	return v
}

// splitLog parts a line from its time where it begins with one, in RFC 3339 or
// as a time of day. Everything else of a line is the machine's own words, but
// for how the agent's logger marks its level and message.
func (w *Web) splitLog(line string) logLine {
	head, rest, ok := strings.Cut(line, " ")
	if !ok {
		return logLine{Text: line}
	}
	if at, err := time.Parse(time.RFC3339Nano, strings.TrimPrefix(head, "time=")); err == nil {
		return logLine{At: w.second(at), Text: plainLog(rest)}
	}
	if len(head) >= 8 {
		if _, err := time.Parse("15:04:05", head[:8]); err == nil {
			return logLine{Time: head[:8], Text: rest}
		}
	}
	return logLine{Text: line}
}

// plainLog turns what log/slog writes as level=INFO msg="a b" c=d into a b c=d;
// a level that should be looked at stays. task-log.js does the same.
func plainLog(text string) string {
	level, rest, ok := strings.Cut(text, " msg=")
	level, levelOK := strings.CutPrefix(level, "level=")
	if !ok || !levelOK || strings.Contains(level, " ") {
		return text
	}
	if quoted, err := strconv.QuotedPrefix(rest); err == nil && quoted[0] == '"' {
		if msg, err := strconv.Unquote(quoted); err == nil {
			rest = msg + rest[len(quoted):]
		}
	}
	if level != "INFO" {
		rest = level + " " + rest
	}
	return rest
}

// taskLog is the whole log as text, for download and for eyes.
func (w *Web) taskLog(rw http.ResponseWriter, r *http.Request) {
	t, err := w.find(r)
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	lines, err := w.history.Logs(r.Context(), t.ID)
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-store")
	rw.Header().Set("Content-Disposition", `attachment; filename="`+t.ID+`.log"`)
	for _, l := range lines {
		if _, err := rw.Write([]byte(l + "\n")); err != nil {
			return // the browser went away
		}
	}
}

// actionContext outlives the browser: a click whose answer nobody waits for is
// still a click, and cutting it off would leave its outcome to chance.
func actionContext(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.Context()), 15*time.Second)
}

// act is what cancel, retry and delete have in common: where the task has
// already become what was asked for, a second click is not an error.
func (w *Web) act(rw http.ResponseWriter, r *http.Request, already lpmos.Status, then string, do func(ctx context.Context, t lpmos.Task) error) {
	if !readForm(rw, r) {
		return
	}
	t, err := w.find(r)
	if err == nil && t.Status != already {
		ctx, cancel := actionContext(r)
		defer cancel()
		err = do(ctx, t)
	}
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	if then == "" {
		then = "/tasks/" + t.ID
	}
	http.Redirect(rw, r, then, http.StatusSeeOther)
}

func (w *Web) cancel(rw http.ResponseWriter, r *http.Request) {
	w.act(rw, r, lpmos.Canceled, "", func(ctx context.Context, t lpmos.Task) error {
		reason := strings.TrimSpace(r.PostForm.Get("reason"))
		if len(reason) > lpmos.MaxNotesBytes {
			return &lpmos.InvalidError{Field: "reason", Problem: "is longer than 2 KiB"}
		}
		_, err := w.actions.Cancel(ctx, t.ID, reason, w.cfg.Person(r))
		return err
	})
}

func (w *Web) retry(rw http.ResponseWriter, r *http.Request) {
	w.act(rw, r, lpmos.Pending, "", func(ctx context.Context, t lpmos.Task) error {
		_, err := w.actions.Retry(ctx, t.ID, w.cfg.Person(r))
		return err
	})
}

func (w *Web) delete(rw http.ResponseWriter, r *http.Request) {
	w.act(rw, r, "", "/tasks", func(ctx context.Context, t lpmos.Task) error {
		return w.actions.Delete(ctx, t.ID, w.cfg.Person(r))
	})
}
