package web

import (
	"context"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

type taskView struct {
	lpmos.Task
	OS       string
	Headline template.HTML
	Lead     template.HTML
	Steps    []step
	Progress *progressView
	Usual    template.HTML // what earlier runs took, "" without any
	LeftAll  string        // until the call home, as earlier runs took; "" when not known
	Until    instant
	Failure  *failureView
	Machine  *machineView
	Plan     *planView
	Receipt  *receiptView
	Actions  []action
	Timeline []momentView
	Now      *momentView // where a live task stands
	Broken   string      // the history could not be read, for this reason
	Log      logView
	Deadline string
	Command  string
	Approval *lpmos.Approval
	Ask      policyAsk
}

// step is one of the six of a task's life.
type step struct {
	Status lpmos.Status
	State  string // done, now, failed, next: the CSS
	Icon   string
	Note   string
	Stages template.HTML // in place of Note, see atStage
}

type progressView struct {
	TaskID  string
	Attempt int
	Live    bool // figures still come
	Percent int
	BytesOf string // "downloaded", "written"
	Done    string
	Total   string
	Speed   string
	Trend   sparkView
	Left    string
	Message string
	AsOf    instant
	Stages  []stageView
}

type stageView struct {
	Number  int
	Name    string // of package lpmos, for scripts
	Word    string
	State   string // done, now, failed, ""
	Note    string // how long it took or usually takes
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

// receiptView is what the installed system said of itself, and whether that is
// what was planned.
type receiptView struct {
	lpmos.Receipt
	Boot         string
	Disk         string
	SameDisk     bool // one that was written
	Made         bool // the plan made the root filesystem; an image of a whole disk, or an installer, brings its own
	SameRoot     bool // and it is that one
	SameHostname bool
	Planned      bool // there is a plan to compare with
	Up           string
	words        *tongue
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

// logView is the end of a log, or the lines of all of it that hold Query.
type logView struct {
	TaskID string
	Lines  []logLine
	Query  string
	Found  int // lines that hold Query
	Total  int // lines there are
	Broken string
	Live   bool // lines still come
}

// logLine is a line of the machine's log; At or Time is when, if it says so.
type logLine struct {
	At    instant
	Time  string
	Text  string
	Level string // warn, error
}

func (w *Web) task(rw http.ResponseWriter, r *http.Request) {
	rev := w.rev()
	t, err := w.find(r)
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	v := w.newTaskView(r.Context(), t, strings.TrimSpace(lpmos.Shorten(r.URL.Query().Get("log"), 256)))
	title := w.T("%s, %s", t.Hostname, strings.ToLower(w.statusWord(t.Status)))
	w.show(rw, r, http.StatusOK, "task", page{Title: title, Nav: "tasks", Watch: t.ID, Rev: rev, Body: v})
}

func (w *Web) newTaskView(ctx context.Context, t lpmos.Task, search string) taskView {
	images := w.reader.Images()
	v := taskView{Task: t, OS: imageTitle(images, t.OSType, t.OSVersion, t.Arch), Approval: t.Approval, Command: commandWatch(t.ID), Deadline: w.deadline(t.Status)}
	if !t.Status.Live() {
		v.Command = commandShow(t.ID)
	}
	v.Headline = w.headline(t, v.OS)
	v.Lead = w.rich("%s, region %s", v.OS, kept(t.RegionID))
	if m := w.model(t.Hardware); m != "" {
		v.Lead = w.rich("%s on a %s, region %s", v.OS, lpmos.Shorten(m, 120), kept(t.RegionID))
	}
	events, err := w.history.Events(ctx, t.ID)
	if err != nil {
		w.log.Warn("history not read", "task", t.ID, "err", err)
		v.Broken = w.T("The history could not be read. The store may not answer; everything else on this page is from memory.")
	}
	lines, err := w.history.Logs(ctx, t.ID)
	if err != nil || len(lines) == 0 {
		if err != nil {
			w.log.Warn("log not read", "task", t.ID, "err", err)
		}
		lines = t.LogTail
	}
	began := stagesBegan(lines)
	v.Steps = w.steps(t, events)
	v.Timeline, v.Now = w.timeline(t, events, began)
	v.Progress = w.newProgress(t, began)
	if e := w.reader.Estimate(t.ID); e != nil && t.Status.Live() && e.Expected > 0 {
		v.Usual = w.usual(e)
		if e.Left > 0 && v.Progress != nil && v.Progress.Live {
			v.LeftAll, v.Until = w.rounded(int64(e.Left.Seconds())), w.moment(w.cfg.Now().Add(e.Left))
		}
	}
	v.Failure = w.newFailure(t)
	v.Machine = w.newMachine(t)
	if t.Plan != nil {
		v.Plan = w.newPlan(t, images)
	}
	v.Receipt = w.newReceipt(t)
	v.Ask = w.ask(t, "/tasks/"+t.ID)
	v.Actions = w.allowed(w.actionsFor(t), v.Ask)
	v.Log = w.newLog(t, lines, search)
	return v
}

// usual says how long such a run takes, and how this one compares.
func (s *tongue) usual(e *api.ETA) template.HTML {
	all, runs, model := s.about(e.Expected), count(e.Runs), strings.Contains(e.Basis, "model")
	switch {
	case model && e.FasterThan >= 0:
		return s.rich("Usual for this model: %s in all; this run is faster than %s of %s.", all, s.percent(e.FasterThan), runs)
	case model:
		return s.rich("Usual for this model: %s in all, of %s runs.", all, runs)
	case e.FasterThan >= 0:
		return s.rich("Usual for this image: %s in all; this run is faster than %s of %s.", all, s.percent(e.FasterThan), runs)
	}
	return s.rich("Usual for this image: %s in all, of %s runs.", all, runs)
}

// about is a time that is only guessed, rounded as far as it is known.
func (s *tongue) about(d time.Duration) string {
	if d < 90*time.Second {
		return s.took(max(10*time.Second, d.Round(10*time.Second)))
	}
	return s.took(d.Round(time.Minute))
}

func (s *tongue) headline(t lpmos.Task, os string) template.HTML {
	name := kept(t.Hostname)
	switch t.Status {
	case lpmos.Pending:
		if t.Attempt > 1 {
			return s.rich("%s waits for its machine to boot again", name)
		}
		return s.rich("%s waits for its machine to boot", name)
	case lpmos.AwaitingApproval:
		if t.Plan != nil && t.Plan.Problem != "" {
			return s.rich("%s cannot be installed as asked", name)
		}
		return s.rich("%s waits for a decision", name)
	case lpmos.Approved:
		return s.rich("%s is approved and waits for its permit", name)
	case lpmos.Installing:
		return atStage(t, func(stage lpmos.Stage) template.HTML {
			switch stage {
			case lpmos.Partitioning:
				return s.rich("%s is partitioning its disk", name)
			case lpmos.Downloading:
				return s.rich("%s is downloading its image", name)
			case lpmos.StageInstall:
				return s.rich("%s is writing its image", name)
			case lpmos.Configuring:
				return s.rich("%s is being configured", name)
			}
			return s.rich("%s is installing", name)
		})
	case lpmos.Verifying:
		if t.Plan != nil && len(t.Plan.Effect.Crypts) > 0 {
			return s.rich("%s is installed and asks for its passphrase at its console", name)
		}
		return s.rich("%s is installed and restarts from its own disk", name)
	case lpmos.Completed:
		if !t.Verified() {
			return s.rich("%s is installed; its first boot was not waited for", name)
		}
		if len(t.Drift) > 0 {
			return s.rich("%s runs %s, and not all is as planned", name, os)
		}
		return s.rich("%s runs %s", name, os)
	case lpmos.Failed:
		if t.Error != nil && t.Error.Stage != "" {
			return s.rich("%s failed while %s", name, s.stageWord(t.Error.Stage))
		}
		return s.rich("%s failed before anything was erased", name)
	case lpmos.Rejected:
		return s.rich("%s was rejected", name)
	case lpmos.Canceled:
		return s.rich("%s was canceled", name)
	}
	return name
}

// atStage says something for the stage that a running task is in, and for all
// others out of sight: task-progress.js shows one of them, with its bar.
func atStage(t lpmos.Task, say func(lpmos.Stage) template.HTML) (out template.HTML) {
	var now lpmos.Stage // none before the first report
	if t.Progress != nil && t.Progress.Stage.Valid() {
		now = t.Progress.Stage
	}
	for _, stage := range []lpmos.Stage{"", lpmos.Partitioning, lpmos.Downloading, lpmos.StageInstall, lpmos.Configuring} {
		hidden := " hidden"
		if stage == now {
			hidden = ""
		}
		out += template.HTML(`<span data-at="`+string(stage)+`"`+hidden+`>`) + say(stage) + "</span>"
	}
	return out
}

func (s *tongue) deadline(status lpmos.Status) string {
	switch status {
	case lpmos.Pending, lpmos.AwaitingApproval:
		return s.T("Fails if nothing happens for 7 days")
	case lpmos.Approved:
		return s.T("Waits for a new approval if nothing is heard for 1 hour")
	case lpmos.Installing:
		return s.T("Fails if there is no progress for 15 min")
	case lpmos.Verifying:
		return s.T("Fails if its system does not report within 30 min")
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
		lpmos.AwaitingApproval: w.T("a person compares"), lpmos.Approved: w.T("gets its permit"), lpmos.Installing: w.T("erases and writes"),
		lpmos.Verifying: w.T("restarts from its own disk"), lpmos.Completed: w.T("calls home"),
	}
	var out []step
	for i, s := range lifeSteps {
		st := step{Status: s}
		switch {
		case i < at || i == at && s == lpmos.Completed:
			st.State, st.Icon = "done", "completed"
			if d, ok := took[s]; ok && s != lpmos.Completed {
				switch age := w.took(d); s {
				case lpmos.Pending:
					st.Note = w.T("booted in %s", age)
				case lpmos.AwaitingApproval:
					st.Note = w.T("waited %s", age)
				default:
					st.Note = w.T("took %s", age)
				}
			}
			if s == lpmos.Approved && t.Approval != nil && t.Approval.By != "" {
				// Where from is in the facts; here is room for a name.
				name, _, _ := strings.Cut(t.Approval.By, "@")
				st.Note = w.T("by %s", lpmos.Shorten(name, 40))
			}
			if s == lpmos.Completed {
				st.Note = w.T("called home")
				if t.Status == s && !t.Verified() {
					st.Note = w.T("not verified")
				}
			}
		case i == at && stopped:
			st.State, st.Icon, st.Note = "failed", string(t.Status), strings.ToLower(w.statusWord(t.Status))
		case i == at:
			st.State, st.Icon = "now", string(s)
			if !t.UpdatedAt.IsZero() {
				st.Note = w.T("for %s", w.age(w.cfg.Now().Sub(t.UpdatedAt)))
			}
			if s == lpmos.Installing {
				st.Stages = atStage(t, func(stage lpmos.Stage) template.HTML {
					if stage == "" {
						return w.rich("begins")
					}
					return w.rich("stage %s of 4", strconv.Itoa(stage.Number()))
				})
			}
		default:
			st.State, st.Icon, st.Note = "next", "pending", next[s]
			if stopped {
				st.Note = w.T("not reached")
			}
		}
		out = append(out, st)
	}
	return out
}

// newProgress is nil while there is nothing to show. began is when each stage
// did, by the machine's own clock.
func (w *Web) newProgress(t lpmos.Task, began map[lpmos.Stage]time.Time) *progressView {
	switch t.Status {
	case lpmos.Installing, lpmos.Verifying, lpmos.Completed:
	case lpmos.Failed:
		if t.Progress == nil {
			return nil
		}
	default:
		return nil
	}
	v := &progressView{TaskID: t.ID, Attempt: t.Attempt, Live: t.Status == lpmos.Installing, Speed: "–", Left: w.T("unknown"), Done: "–", BytesOf: w.T("downloaded")}
	p := t.Progress
	if p != nil {
		v.Percent, v.Message = min(max(p.Percentage, 0), 100), w.Said(p.Message)
		if p.Stage == lpmos.StageInstall {
			v.BytesOf = w.T("written")
		}
		if d := p.Details; d != nil && d.BytesTotal > 0 {
			v.Done, v.Total = w.size(max(d.BytesDownloaded, 1)), w.size(d.BytesTotal)
			if d.BytesDownloaded <= 0 {
				v.Done = "0" + nbsp + "B"
			}
		}
		if v.Live {
			v.Trend = w.speedTrend(t)
			if w.cfg.Now().Sub(p.UpdatedAt) > staleAfter {
				v.AsOf, v.Speed = w.moment(p.UpdatedAt), w.T("unknown")
			} else if d := p.Details; d != nil && d.BytesTotal > 0 {
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
		s := stageView{Number: i + 1, Name: string(sw.Stage), Word: w.stageWord(sw.Stage), Percent: min(max((v.Percent-sw.From)*100/(sw.To-sw.From), 0), 100)}
		switch {
		case v.Percent == 100 || p != nil && p.Stage.Number() > i+1:
			s.State, s.Percent = "done", 100
			if i+1 < len(lpmos.StageWeights) {
				from, to := began[sw.Stage], began[lpmos.StageWeights[i+1].Stage]
				if !from.IsZero() && to.After(from) {
					s.Note = w.took(to.Sub(from))
				}
			}
		case p != nil && p.Stage == sw.Stage:
			s.State = now
			if d := p.Details; d != nil && d.ElapsedMillis > 0 && v.Live {
				s.Note = w.T("%s so far", w.took(time.Duration(d.ElapsedMillis)*time.Millisecond))
			}
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
	v := &failureView{What: s.sentence(e.Cause), Evidence: e.Evidence, NextStep: s.sentence(e.NextStep), At: e.At, Attempt: e.Attempt, Retry: t.Status.Allows(lpmos.CauseRetried)}
	v.Title = s.T("%s failed", t.Hostname)
	v.Disks = s.T("Nothing was written; all disks are as they were.")
	if e.Stage != "" {
		v.Title = s.T("%s failed in stage %s of 4, %s", t.Hostname, strconv.Itoa(e.Stage.Number()), s.stageWord(e.Stage))
		v.Disks = s.T("The disk of the plan is erased and may not boot.")
		if t.Plan != nil {
			_, id := s.diskID(t.Plan.Effect.Target)
			v.Disks = s.T("The disk %s (%s) is erased and may not boot.", id, s.size(t.Plan.Effect.Target.SizeBytes))
			if n := len(t.Plan.Observed) - 1; n > 0 {
				v.Disks = s.joined(v.Disks, s.N(n, "1 other disk is untouched.", "%s other disks are untouched."))
			}
		}
	}
	if v.NextStep == "" {
		v.NextStep = s.T("Read the log, then retry.")
	}
	return v
}

func (s *tongue) newReceipt(t lpmos.Task) *receiptView {
	r := t.Receipt
	if r == nil {
		return nil
	}
	v := &receiptView{Receipt: *r, words: s, Boot: bootWord(r.BootMode), SameHostname: r.Hostname == t.Hostname, Up: s.took(time.Duration(r.UptimeSec) * time.Second)}
	_, v.Disk = s.diskID(r.RootDisk)
	if t.Plan != nil {
		root, made := t.Plan.Effect.Root()
		v.Planned, v.Made, v.SameRoot = true, made, root.UUID == r.RootFSUUID
		v.SameDisk = t.Plan.Effect.RunsFrom(r.RootDisk)
	}
	return v
}

// SecureBootWord, ClockWord and MountWords are what of a receipt is no text.
func (v receiptView) SecureBootWord() string {
	return v.onOff(v.SecureBoot, v.words.T("on"), v.words.T("off"))
}

func (v receiptView) ClockWord() string {
	return v.onOff(v.TimeSynced, v.words.T("follows another"), v.words.T("follows no other"))
}

func (v receiptView) onOff(b *bool, yes, no string) string {
	switch {
	case b == nil:
		return ""
	case *b:
		return yes
	}
	return no
}

func (v receiptView) MountWords() []string {
	var out []string
	for _, m := range v.Mounts {
		out = append(out, m.Path+" ("+m.FS+")")
	}
	return out
}

func bootWord(mode string) string {
	switch mode {
	case "uefi", "bios":
		return strings.ToUpper(mode)
	}
	return mode
}

// actionsFor lists everything that can ever be done with a task. What cannot
// be done now stays visible and says why.
func (s *tongue) actionsFor(t lpmos.Task) []action {
	base := "/tasks/" + t.ID
	out := []action{
		{ID: "approve", Icon: "approved", Label: s.T("Review and decide"), Kind: "primary", Link: base + "/approve", Note: s.T("Shows what is lost, what stays and what comes.")},
		{ID: "cancel", Icon: "canceled", Label: s.T("Cancel this task…"), Kind: "danger-quiet", Post: base + "/cancel", Note: s.T("Nothing was erased; the disks stay as they are."),
			Ask: s.T("The task ends and the machine boots its own disk again. No disk is changed."), Reason: true, Do: s.T("Cancel this task")},
		{ID: "retry", Icon: "retry", Label: s.T("Retry as attempt %s", strconv.Itoa(t.Attempt+1)), Post: base + "/retry", Note: s.T("The machine boots again and a new plan is approved.")},
		{ID: "delete", Icon: "reject", Label: s.T("Delete…"), Kind: "danger-quiet", Post: base + "/delete", Note: s.T("Removes the task and its history, not the installed system."),
			Ask: s.T("The task, its log and its history are removed and cannot be brought back. The machine is not touched."), Do: s.T("Delete this task")},
	}
	off := func(i int, why string) {
		out[i].Off, out[i].Note = true, s.T("Not now: %s", why)
	}
	by, at := "", ""
	if a := t.Approval; a != nil && a.By != "" {
		by, at = lpmos.Shorten(a.By, 80), a.At.UTC().Format("15:04:05 UTC")
	}
	approved := s.T("it was approved.")
	if by != "" {
		approved = s.T("%s approved it at %s.", by, at)
	}
	ended := s.T("the task has ended.")
	switch t.Status {
	case lpmos.AwaitingApproval:
		if t.Plan == nil {
			off(0, s.T("the plan is being made."))
		}
	case lpmos.Pending:
		off(0, s.T("the machine has not reported its hardware yet."))
	case lpmos.Rejected:
		off(0, s.T("it was rejected."))
		if by != "" {
			off(0, s.T("%s rejected it at %s.", by, at))
		}
	case lpmos.Failed, lpmos.Completed, lpmos.Canceled:
		off(0, ended)
	default:
		off(0, approved)
	}
	if !t.Status.Allows(lpmos.CauseCanceled) {
		switch t.Status {
		case lpmos.Installing:
			off(1, s.T("erasing has begun; stopping halfway would leave a machine that does not boot."))
		case lpmos.Verifying:
			off(1, s.T("the system is installed already."))
		default:
			off(1, ended)
		}
	}
	if !t.Status.Allows(lpmos.CauseRetried) {
		if t.Status.Live() {
			off(2, s.T("the task is still running."))
		} else {
			off(2, s.T("only failed tasks can be retried; create a new one."))
		}
		out[2].Label = s.T("Retry")
	}
	if t.Status.Live() {
		off(3, s.T("only ended tasks can be deleted."))
	}
	return out
}

// Lines of a log on the page: its end, and what a search found.
const (
	shownLines = 200
	foundLines = 500
)

func (w *Web) newLog(t lpmos.Task, lines []string, search string) logView {
	v := logView{TaskID: t.ID, Query: search, Total: len(lines), Live: t.Status.Live()}
	show := lines[max(0, len(lines)-shownLines):]
	if search != "" {
		found := make([]string, 0, 16)
		for _, l := range lines {
			if containsFold(l, search) {
				found = append(found, l)
			}
		}
		v.Found = len(found)
		show = found[max(0, len(found)-foundLines):]
	}
	for _, l := range show {
		v.Lines = append(v.Lines, w.splitLog(l))
	}
	return v
}

func containsFold(s, part string) bool {
	return strings.Contains(strings.ToLower(s), strings.ToLower(part))
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
		l := logLine{At: w.second(at), Text: plainLog(rest)}
		switch {
		case strings.HasPrefix(l.Text, "WARN "):
			l.Level = "warn"
		case strings.HasPrefix(l.Text, "ERROR "):
			l.Level = "error"
		}
		return l
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
