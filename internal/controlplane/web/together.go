package web

import (
	"cmp"
	"context"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// Approving several machines at once. They are grouped by what happens to
// them; each keeps its own plan digest, and a machine on whose disk data was
// found is approved only if the end of that disk's serial number was typed.

// mostTogether bounds how many machines one page decides: more than a person
// can compare, and as many as are decided in good time.
const mostTogether = 200

// decideTogetherFor bounds all decisions of one click.
const decideTogetherFor = time.Minute

type togetherView struct {
	Groups   []alikeGroup
	LeftOut  []leftOut
	Total    int // machines on the page
	WithData int // of these, where data was found
	Several  int // of these, that take several approvers
	More     int // machines that wait but are not on this page
	Notes    string
	Count    string // as typed
	Person   string
	Problems []fieldProblem
	Commands []string
	Ask      policyAsk        // what the policy asks of who approves any of them
	Results  []togetherResult // after the decision; Groups is empty then
	Done     int
}

func (v togetherView) Problem(field string) string { return problemsOf(v.Problems).Of(field) }

// alikeGroup are machines to which the same happens.
type alikeGroup struct {
	Model, Hardware       string
	Erased, Kept, Written verdict
	Machines              []candidate
	Disk                  string // size and title of the disk that is erased
	Network, Profile      string
	Logins                template.HTML
}

type candidate struct {
	lpmos.Task
	Serial  string // of the machine
	Disk    string // what names the disk that is erased
	EndWord string
	EndLen  int
	Found   string
	Erases  bool // something that was found
	Digest  string
	Chosen  bool
	Typed   string
	Problem string
}

// leftOut is a machine that was asked for but cannot be approved here.
type leftOut struct {
	ID, Name, Why string
}

type togetherResult struct {
	lpmos.Task
	Done bool
	Text string
}

// likeness is the same for machines to which the same happens: identical
// hardware and effect, without what tells one machine from another.
func (s *tongue) likeness(t lpmos.Task) string {
	type disk struct {
		Model, Transport string
		Size             int64
		Target           bool
		OS               string
		Holds            []string
		Unknown          bool
	}
	type part struct {
		Role, FS, Mount string
		Size            int64
	}
	h, e := t.Hardware, t.Plan.Effect
	id := struct {
		Model, CPU, BootMode, Image, Args, Network, Template, Profile string
		Cores                                                         int
		Memory                                                        int64
		NICs                                                          int
		Verify                                                        bool
		Keys                                                          []string
		Files                                                         []lpmos.PlannedFile
		Disks                                                         []disk
		Parts                                                         []part
	}{
		Model: s.model(h), CPU: h.CPU.Model, BootMode: h.BootMode, Image: e.Image.Digest, Args: e.KernelArgs, Network: e.Network.Mode, Template: t.Template, Profile: t.Profile,
		Cores: h.CPU.Cores, Memory: (h.Memory.TotalBytes + 1<<29) >> 30, NICs: len(h.NICs), Verify: !e.Unverified, Keys: e.SSHKeys,
	}
	for _, d := range h.Disks {
		held := s.holds(d.Content, d.ContentUnknownBecause)
		id.Disks = append(id.Disks, disk{d.Model, d.Transport, d.SizeBytes, t.Plan.Effect.Target == d.Ref(), held.OS, held.Names, held.Unknown != ""})
	}
	slices.SortFunc(id.Disks, func(a, b disk) int {
		return cmp.Or(cmp.Compare(a.Size, b.Size), strings.Compare(a.Model, b.Model), strings.Compare(a.OS, b.OS), slices.Compare(a.Holds, b.Holds))
	})
	for _, q := range e.Partitions {
		id.Parts = append(id.Parts, part{q.Role, q.FS, q.Mount, q.SizeBytes})
	}
	for _, f := range e.Files {
		// Names and addresses in it are the machine's; all else of it comes from
		// what is compared already.
		f.Text = ""
		id.Files = append(id.Files, f)
	}
	return lpmos.DigestOf(id)
}

// decidable reports whether a person may approve a task's plan now.
func decidable(t lpmos.Task) bool {
	return t.Status == lpmos.AwaitingApproval && t.Plan != nil && t.Hardware != nil && t.Plan.Problem == ""
}

// waiting are the tasks that wait for a decision, oldest first, with plan and
// hardware; more is how many there are beyond what one page decides.
func (w *Web) waiting() (out []lpmos.Task, more int) {
	found := w.reader.Tasks(api.Query{Statuses: []lpmos.Status{lpmos.AwaitingApproval}, Limit: mostTogether})
	for _, t := range found.Tasks {
		if full, ok := w.reader.Task(t.ID); ok && decidable(full) {
			out = append(out, full)
		}
	}
	slices.SortStableFunc(out, func(a, b lpmos.Task) int {
		return cmp.Or(strings.Compare(a.Hostname, b.Hostname), a.CreatedAt.Compare(b.CreatedAt))
	})
	return out, found.Total - len(found.Tasks)
}

// waitingLike are the tasks that wait for the same decision as t, itself among
// them.
func (w *Web) waitingLike(t lpmos.Task) []lpmos.Task {
	if !decidable(t) {
		return nil
	}
	want := w.likeness(t)
	all, _ := w.waiting()
	return slices.DeleteFunc(all, func(o lpmos.Task) bool { return w.likeness(o) != want })
}

// offered are the tasks of a page or of what was sent from it, why others that
// ids name are not among them, and how many more there are. A task that was
// chosen stays, also when the person may not approve it: the result says so.
func (w *Web) offered(f url.Values, ids []string) (tasks []lpmos.Task, out []leftOut, more int) {
	tasks, out, more = w.named(ids, f.Get("like"))
	tasks = slices.DeleteFunc(tasks, func(t lpmos.Task) bool {
		bar := w.ask(t, "").Bar
		if bar == "" || slices.Contains(f["id"], t.ID) {
			return false
		}
		out = append(out, leftOut{t.ID, t.Hostname, bar})
		return true
	})
	selected, _ := strconv.Atoi(f.Get("more")) // beyond what an address names
	return tasks, out, more + max(selected, 0)
}

// named answers the tasks that ids (or like) of a request name, without any
// that is named twice.
func (w *Web) named(ids []string, like string) (tasks []lpmos.Task, out []leftOut, more int) {
	var names []string
	for _, list := range ids {
		for id := range strings.SplitSeq(list, ",") {
			if id = strings.TrimSpace(id); id != "" && !slices.Contains(names, id) {
				names = append(names, id)
			}
		}
	}
	switch {
	case like != "":
		if t, ok := w.reader.Task(like); ok && lpmos.ValidTaskID(like) {
			tasks = w.waitingLike(t)
		}
		return tasks, nil, 0
	case len(names) == 0:
		tasks, more = w.waiting()
		return tasks, nil, more
	}
	if len(names) > mostTogether {
		names, more = names[:mostTogether], len(names)-mostTogether
	}
	found := map[string]lpmos.Task{}
	for _, t := range w.withPlans(names) {
		found[t.ID] = t
	}
	for _, id := range names {
		t, ok := found[id]
		switch {
		case !ok:
			out = append(out, leftOut{"", lpmos.Shorten(id, 40), w.T("There is no such task.")})
		case t.Status != lpmos.AwaitingApproval:
			out = append(out, leftOut{t.ID, t.Hostname, w.T("It does not wait for a decision: it is %s.", strings.ToLower(w.statusWord(t.Status)))})
		case t.Plan == nil || t.Hardware == nil:
			out = append(out, leftOut{t.ID, t.Hostname, w.T("Its plan is being made.")})
		case t.Plan.Problem != "":
			out = append(out, leftOut{t.ID, t.Hostname, w.sentence(t.Plan.Problem)})
		default:
			tasks = append(tasks, t)
		}
	}
	return tasks, out, more
}

func (w *Web) togetherForm(rw http.ResponseWriter, r *http.Request) {
	rev := w.rev()
	q := r.URL.Query()
	tasks, out, more := w.offered(q, q["ids"])
	v := w.newTogether(r, tasks, func(c *candidate) { c.Chosen = true })
	v.LeftOut, v.More = out, more
	w.showTogether(rw, r, http.StatusOK, v, rev)
}

func (w *Web) showTogether(rw http.ResponseWriter, r *http.Request, status int, v togetherView, rev int64) {
	w.show(rw, r, status, "together", page{Title: w.T("Approve together"), Nav: "approvals", Rev: rev, Body: v})
}

func (w *Web) newTogether(r *http.Request, tasks []lpmos.Task, fill func(*candidate)) togetherView {
	images := w.reader.Images()
	v := togetherView{Person: w.cfg.Person(r), Total: len(tasks)}
	var ids []string
	for _, t := range tasks {
		ids = append(ids, t.ID)
	}
	for _, t := range tasks {
		a := w.ask(t, "/tasks/approve?ids="+strings.Join(ids, ","))
		if a.Password {
			v.Ask.Password, v.Ask.SignIn, v.Ask.Minutes, v.Ask.Name = true, a.SignIn, a.Minutes, a.Name
		}
		if a.Given != "" {
			v.Several++
		}
	}
	groups := map[string]int{}
	for _, t := range tasks {
		key := w.likeness(t)
		i, ok := groups[key]
		if !ok {
			i = len(v.Groups)
			groups[key] = i
			p := w.newPlan(t, images)
			g := alikeGroup{Model: w.model(t.Hardware), Network: p.Network, Profile: p.Profile, Logins: p.Logins,
				Hardware: w.list([]string{w.cpuWords(t.Hardware.CPU), w.gib(t.Hardware.Memory.TotalBytes), w.N(len(t.Hardware.Disks), "1 disk", "%s disks")})}
			g.Erased, g.Kept, g.Written = w.verdicts(t.Plan, imageTitle(images, t.OSType, t.OSVersion, t.Arch))
			g.Written.Text = w.T("%s image, address by DHCP; each machine gets its own host name.", w.size(t.Plan.Effect.Image.UsedBytes))
			if t.Plan.Effect.Installer != nil {
				g.Written.Text = w.T("The distribution’s own installer divides and writes the disk, address by DHCP; each machine gets its own host name.")
			}
			if p.Target != nil {
				g.Disk = w.list([]string{p.Target.Size, p.Target.Title})
			}
			v.Groups = append(v.Groups, g)
		}
		p := w.newPlan(t, images)
		c := candidate{Task: t, Serial: t.Hardware.System.Serial, Digest: t.Plan.Digest, Erases: p.Erases, EndLen: len(p.EndOf), EndWord: p.EndWord}
		if p.Target != nil {
			c.Disk, c.Found = p.Target.ID, p.Target.Found
		}
		if c.Erases {
			v.WithData++
		}
		fill(&c)
		v.Groups[i].Machines = append(v.Groups[i].Machines, c)
		v.Commands = append(v.Commands, commandApprove(t.ID, t.Plan))
	}
	// The largest group first: it is what the person came for.
	slices.SortStableFunc(v.Groups, func(a, b alikeGroup) int { return cmp.Compare(len(b.Machines), len(a.Machines)) })
	return v
}

// together decides. Nothing is approved unless everything typed is right; then
// each machine is decided by itself and the page says what became of it.
func (w *Web) together(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	rev, f := w.rev(), r.PostForm
	chosen := f["id"]
	if len(chosen) > mostTogether {
		w.fail(rw, r, &lpmos.InvalidError{Field: "id", Problem: "names more than " + strconv.Itoa(mostTogether) + " machines"})
		return
	}
	tasks, out, more := w.offered(f, f["listed"])
	if len(f["listed"]) == 0 {
		tasks, out, more = nil, nil, 0
	}
	person, notes := w.cfg.Person(r), strings.TrimSpace(f.Get("notes"))
	var problems []fieldProblem
	var ready []api.Decision
	var ids []string
	var results []togetherResult
	byID := map[string]lpmos.Task{}
	for _, t := range tasks {
		byID[t.ID] = t
	}
	untyped := 0
	v := w.newTogether(r, tasks, func(c *candidate) {
		c.Chosen, c.Typed = slices.Contains(chosen, c.ID), lpmos.Shorten(strings.TrimSpace(f.Get("serial-"+c.ID)), 100)
		if !c.Chosen {
			return
		}
		d := api.Decision{Approved: true, Notes: notes, PlanDigest: f.Get("digest-" + c.ID), SerialEnd: c.Typed}
		switch {
		case d.PlanDigest != c.Digest:
			// Not a mistake of the person. Should the page be shown again, it has the
			// new plan, which nobody has chosen.
			c.Chosen, c.Typed, c.Problem = false, "", w.T("Not approved: its plan changed after you opened the page. Review it by itself.")
			results = append(results, togetherResult{c.Task, false, c.Problem})
			return
		case c.Erases && c.Typed == "":
			untyped++
			results = append(results, togetherResult{c.Task, false, w.T("Left out: data was found on its disk, and the last characters of its %s were not typed.", c.EndWord)})
			return
		case c.Erases && !api.SerialEndsMatch(c.Task.Plan, c.Typed):
			c.Problem = w.T("These are not the last characters of this disk’s %s.", c.EndWord)
			problems = append(problems, fieldProblem{"serial-" + c.ID, w.T("%s: the characters typed are not the last ones of the disk that is erased.", c.Hostname)})
		}
		ready, ids = append(ready, d), append(ids, c.ID)
	})
	v.Notes, v.Count, v.LeftOut, v.More = f.Get("notes"), strings.TrimSpace(f.Get("count")), out, more
	// A decision that was stored already, sent again by a second click or from a
	// page that was gone back to, is not an error.
	for _, id := range chosen {
		t, ok := lpmos.Task{}, false
		if _, waits := byID[id]; !waits && lpmos.ValidTaskID(id) {
			t, ok = w.reader.Task(id)
		}
		if !ok {
			continue
		}
		results = append(results, w.togetherOutcome(t, f.Get("digest-"+id), person))
	}
	already := 0
	for _, res := range results {
		if res.Done {
			already++
		}
	}
	if len(ready) > 0 && len(problems) == 0 {
		if n, err := strconv.Atoi(v.Count); err != nil || n != len(ready)+already {
			text := w.N(len(ready), "Type 1: one machine would be approved.", "Type %s: so many machines would be approved.")
			if untyped > 0 {
				text = w.joined(text, w.N(untyped, "1 is left out, because the last characters of its disk were not typed.", "%s are left out, because the last characters of their disks were not typed."))
			}
			problems = append(problems, fieldProblem{"count", text})
		}
	}
	if len(ready) == 0 && len(results) == 0 {
		problems = append(problems, fieldProblem{"count", w.T("Choose at least one machine.")})
	}
	if len(notes) > lpmos.MaxNotesBytes {
		problems = append(problems, fieldProblem{"notes", w.T("Notes may have 2 KiB.")})
	}
	if len(problems) == 0 && len(ready) > 0 && v.Ask.Password {
		if w, problems = w.confirm(r.Context(), f.Get("password")); f.Get("password") == "" {
			problems = []fieldProblem{{"password", w.T("Type your password: the policy asks who approves.")}}
		}
	}
	if len(problems) > 0 {
		v.Problems = problems
		w.showTogether(rw, r, http.StatusBadRequest, v, rev)
		return
	}
	results = append(results, w.decideAll(r, ids, ready, byID)...)
	slices.SortStableFunc(results, func(a, b togetherResult) int {
		if a.Done != b.Done {
			if b.Done {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Hostname, b.Hostname)
	})
	done := togetherView{Results: results, Person: person}
	for _, res := range results {
		if res.Done {
			done.Done++
		}
	}
	status := http.StatusOK
	if done.Done == 0 {
		status = http.StatusConflict
	}
	w.showTogether(rw, r, status, done, w.rev())
}

// togetherOutcome is what became of a task that no longer waits.
func (w *Web) togetherOutcome(t lpmos.Task, digest, person string) togetherResult {
	a := t.Approval
	switch {
	case a != nil && a.Approved && slices.Contains(a.People(), person) && a.PlanDigest == digest:
		return togetherResult{t, true, w.T("Approved. Erasing begins as soon as the machine asks for its permit.")}
	case a != nil && a.By != "" && a.Approved:
		return togetherResult{t, false, w.T("Not approved by you: %s approved it at %s.", lpmos.Shorten(w.list(a.People()), 80), a.At.UTC().Format("15:04:05 UTC"))}
	case a != nil && a.By != "":
		return togetherResult{t, false, w.T("Not approved: %s rejected it at %s.", lpmos.Shorten(a.By, 80), a.At.UTC().Format("15:04:05 UTC"))}
	case t.Status == lpmos.AwaitingApproval:
		// It waits, and not for this: its new plan cannot be carried out.
		return togetherResult{t, false, w.T("Not approved: its plan changed after you opened the page. Review it by itself.")}
	}
	return togetherResult{t, false, w.T("Not approved: it is %s now.", strings.ToLower(w.statusWord(t.Status)))}
}

// decideAll puts the decisions, a few at a time, each by itself.
func (w *Web) decideAll(r *http.Request, ids []string, ds []api.Decision, tasks map[string]lpmos.Task) []togetherResult {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), decideTogetherFor)
	defer cancel()
	person := w.cfg.Person(r)
	out := make([]togetherResult, len(ids))
	var wg sync.WaitGroup
	turn := make(chan struct{}, 8)
	for i, id := range ids {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			t, err := w.actions.Decide(ctx, id, ds[i], person)
			if err == nil && t.Status == lpmos.AwaitingApproval {
				out[i] = togetherResult{t, true, w.T("Your approval is kept. Another approver has to agree before anything is erased.")}
				return
			}
			if err == nil {
				out[i] = togetherResult{t, true, w.T("Approved. Erasing begins as soon as the machine asks for its permit.")}
				return
			}
			now, ok := w.reader.Task(id)
			if !ok {
				now = tasks[id]
			}
			switch {
			case errors.Is(err, lpmos.ErrForbidden), barred(err) != "":
				out[i] = togetherResult{now, barred(err) == lpmos.BarGiven, w.T("Not approved: %s", w.refusal(err))}
				if barred(err) == lpmos.BarGiven {
					out[i].Text = w.refusal(err)
				}
			case errors.Is(err, lpmos.ErrConflict) && now.Status != lpmos.AwaitingApproval:
				out[i] = w.togetherOutcome(now, ds[i].PlanDigest, person)
			case errors.Is(err, lpmos.ErrConflict):
				out[i] = togetherResult{now, false, w.T("Not approved: its plan changed after you opened the page. Review it by itself.")}
			case errors.Is(err, lpmos.ErrNotFound):
				out[i] = togetherResult{now, false, w.T("Not approved: it was deleted.")}
			case errors.Is(err, lpmos.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
				out[i] = togetherResult{now, false, w.T("Not known: the store did not answer in time. Look at the task before you repeat it.")}
			default:
				if _, invalid := errors.AsType[*lpmos.InvalidError](err); invalid {
					out[i] = togetherResult{now, false, w.T("Not approved: %s", w.sentence(err.Error()))}
					return
				}
				w.log.Error("decision not stored", "task", id, "err", err)
				out[i] = togetherResult{now, false, w.T("Not known: something in the control plane went wrong. Look at the task before you repeat it.")}
			}
		})
	}
	wg.Wait()
	return out
}
