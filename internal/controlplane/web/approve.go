package web

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

type approveView struct {
	lpmos.Task
	OS       string
	Machine  *machineView
	Plan     *planView
	Erased   verdict
	Kept     verdict
	Written  verdict
	Shown    string // the facts of this page, for a comparison if the plan changes
	Notes    string
	Serial   string
	Problems []fieldProblem
	Command  string
	Person   string
	Alike    int // how many machines, this one among them, wait for the same decision
	Ask      policyAsk
	Changed  bool // the plan is not the one that was looked at before signing in again
}

type verdict struct{ Big, Text string }

// fieldProblem is what is wrong with one field of a form.
type fieldProblem struct{ Field, Text string }

// problemsOf lets templates ask for the problem of a field.
type problemsOf []fieldProblem

func (p problemsOf) Of(field string) string {
	for _, q := range p {
		if q.Field == field {
			return q.Text
		}
	}
	return ""
}

func (v approveView) Problem(field string) string { return problemsOf(v.Problems).Of(field) }

func (w *Web) approveForm(rw http.ResponseWriter, r *http.Request) {
	rev := w.rev()
	t, err := w.find(r)
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	if t.Status != lpmos.AwaitingApproval || t.Plan == nil {
		// An old link: the task's own page says what became of it.
		http.Redirect(rw, r, "/tasks/"+t.ID, http.StatusSeeOther)
		return
	}
	v := w.newApprove(r, t)
	v.Notes = lpmos.Shorten(r.URL.Query().Get("notes"), lpmos.MaxNotesBytes) // kept from a plan that changed
	seen := r.URL.Query().Get("seen")
	v.Changed = seen != "" && seen != t.Plan.Digest
	w.showApprove(rw, r, http.StatusOK, v, rev)
}

func (w *Web) showApprove(rw http.ResponseWriter, r *http.Request, status int, v approveView, rev int64) {
	w.show(rw, r, status, "approve", page{Title: w.T("Approve %s", v.Hostname), Nav: "approvals", Watch: v.ID, Rev: rev, Body: v})
}

func (w *Web) newApprove(r *http.Request, t lpmos.Task) approveView {
	images := w.reader.Images()
	v := approveView{Task: t, OS: imageTitle(images, t.OSType, t.OSVersion, t.Arch), Machine: w.newMachine(t), Plan: w.newPlan(t, images),
		Command: commandApprove(t.ID, t.Plan), Person: w.cfg.Person(r), Ask: w.ask(t, "/tasks/"+t.ID+"/approve?seen="+url.QueryEscape(t.Plan.Digest))}
	if t.Plan.Problem == "" {
		v.Alike = len(w.waitingLike(t))
	}
	v.Erased, v.Kept, v.Written = w.verdicts(t.Plan, v.OS)
	shown, _ := json.Marshal(w.facts(t.Plan, v.OS))
	v.Shown = string(shown)
	return v
}

// verdicts are the three answers: what is lost, what stays, what comes.
func (s *tongue) verdicts(p *lpmos.Plan, os string) (erased, kept, written verdict) {
	var keptBytes int64
	var keptHolds []string // each once: the members of an array say the same
	n, nErased := 0, 0
	var erasedBytes int64
	var erasedHolds []string
	for _, d := range p.Observed {
		h := s.holds(d.Content, d.Unknown)
		if p.Problem == "" && p.Effect.Writes(d.Disk) {
			nErased++
			erasedBytes += d.Disk.SizeBytes
			if text := h.String(); !h.Blank && !slices.Contains(erasedHolds, text) {
				erasedHolds = append(erasedHolds, text)
			}
			erased = verdict{s.N(nErased, "1 disk, %s", "%s disks, %s", s.size(erasedBytes)), s.N(nErased, "Nothing was found on it.", "Nothing was found on the %s of them.")}
			if len(erasedHolds) > 0 {
				erased.Text = s.sentence(strings.Join(erasedHolds, s.T("; ")))
			}
			continue
		}
		n++
		keptBytes += d.Disk.SizeBytes
		if text := h.String(); !h.Blank && !slices.Contains(keptHolds, text) {
			keptHolds = append(keptHolds, text)
		}
	}
	if erased.Big == "" {
		erased = verdict{s.T("nothing"), s.T("No plan could be made.")}
	}
	kept = verdict{s.T("no other disk"), s.T("The machine has only this one.")}
	if n > 0 {
		kept = verdict{s.N(n, "1 disk, %s", "%s disks, %s", s.size(keptBytes)), s.N(n, "Nothing was found on it.", "Nothing was found on the %s of them.")}
		if len(keptHolds) > 0 {
			kept.Text = s.sentence(strings.Join(keptHolds[:min(2, len(keptHolds))], s.T("; ")))
		}
	}
	how := s.T("%s image, then called %s, address by DHCP.", s.size(p.Effect.Image.UsedBytes), p.Effect.Hostname)
	if static := p.Effect.System.Static(); len(static) > 0 {
		how = s.T("%s image, then called %s, address %s.", s.size(p.Effect.Image.UsedBytes), p.Effect.Hostname, s.list(static))
	}
	if p.Effect.Installer != nil {
		how = s.T("The distribution’s own installer divides and writes the disk; then called %s, address by DHCP.", p.Effect.Hostname)
	}
	written = verdict{os, how}
	if p.Problem != "" {
		written = verdict{s.T("nothing"), s.sentence(p.Problem)}
	}
	return erased, kept, written
}

func (w *Web) decide(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	rev := w.rev()
	t, err := w.find(r)
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	f := r.PostForm
	d := api.Decision{Approved: f.Get("approved") == "true", Notes: strings.TrimSpace(f.Get("notes")), PlanDigest: f.Get("plan_digest"), SerialEnd: strings.TrimSpace(f.Get("serial_end")), AgentKey: f.Get("compared")}
	if t.Status != lpmos.AwaitingApproval || t.Plan == nil {
		w.decidedAlready(rw, r, t, d)
		return
	}
	if t.Plan.Digest != d.PlanDigest && d.Approved {
		w.showStale(rw, r, t, d, rev)
		return
	}
	problems := w.checkDecision(t, d, f.Get("approved"))
	if len(problems) == 0 {
		ctx, cancel := actionContext(r)
		defer cancel()
		if d.Approved {
			w, problems = w.confirm(ctx, f.Get("password"))
		}
		if len(problems) == 0 {
			_, err = w.actions.Decide(ctx, t.ID, d, w.cfg.Person(r))
		}
		if text := w.mustConfirm(err); text != "" {
			problems = append(problems, fieldProblem{"password", text})
		}
		if invalid, ok := errors.AsType[*lpmos.InvalidError](err); ok {
			problems = append(problems, fieldProblem{decisionField(invalid.Field), w.sentence(w.invalid(invalid))})
		}
	}
	switch {
	case len(problems) > 0:
		v := w.newApprove(r, t)
		v.Notes, v.Serial, v.Problems = f.Get("notes"), f.Get("serial_end"), problems
		if v.Problem("password") != "" {
			v.Ask.Password, v.Ask.Name = true, w.me.Name
		}
		w.showApprove(rw, r, http.StatusBadRequest, v, rev)
	case err == nil:
		http.Redirect(rw, r, "/tasks/"+t.ID, http.StatusSeeOther)
	case barred(err) == lpmos.BarGiven:
		// The same decision sent twice is not an error.
		http.Redirect(rw, r, "/tasks/"+t.ID, http.StatusSeeOther)
	case errors.Is(err, lpmos.ErrConflict):
		now, ok := w.reader.Task(t.ID)
		switch {
		case ok && now.Status != lpmos.AwaitingApproval:
			w.decidedAlready(rw, r, now, d)
		case ok && now.Plan != nil && now.Plan.Digest != d.PlanDigest:
			w.showStale(rw, r, now, d, rev)
		default:
			// The read model may be a moment behind the store that refused.
			w.fail(rw, r, err)
		}
	default:
		w.fail(rw, r, err)
	}
}

// barred is why the policy refused who decided, "" where it did not.
func barred(err error) lpmos.ApprovalBar {
	if bar, ok := errors.AsType[*api.BarError](err); ok {
		return bar.Bar
	}
	return ""
}

// checkDecision finds what a person forgot. The orchestrator has the last
// word.
func (s *tongue) checkDecision(t lpmos.Task, d api.Decision, approved string) []fieldProblem {
	var out []fieldProblem
	switch {
	case approved != "true" && approved != "false":
		out = append(out, fieldProblem{"approved", s.T("Choose one of the two buttons: approve or reject.")})
	case !d.Approved && d.Notes == "":
		out = append(out, fieldProblem{"notes", s.T("Say why it is rejected, for the person who asked.")})
	case d.Approved && t.Plan.Problem != "":
		out = append(out, fieldProblem{"approved", s.T("This plan cannot be carried out: %s", s.sentence(t.Plan.Problem))})
	case d.Approved && t.Plan.ErasesData():
		if !api.SerialEndsMatch(t.Plan, d.SerialEnd) {
			problem := s.T("These are not the last characters of the disk that is erased. Read them off the machine or its management page.")
			if d.SerialEnd == "" {
				problem = s.T("Type the last 4 characters, because data was found on the disk.")
			}
			out = append(out, fieldProblem{"serial_end", problem})
		}
	}
	if len(d.Notes) > lpmos.MaxNotesBytes {
		out = append(out, fieldProblem{"notes", s.T("Notes may have 2 KiB.")})
	}
	return out
}

func decisionField(field string) string {
	switch field {
	case "notes", "serial_end":
		return field
	}
	return "approved"
}

// decidedAlready answers a decision that came too late. The same decision sent
// twice is not an error.
func (w *Web) decidedAlready(rw http.ResponseWriter, r *http.Request, t lpmos.Task, d api.Decision) {
	if a := t.Approval; a != nil && a.Approved == d.Approved && a.PlanDigest == d.PlanDigest && slices.Contains(a.People(), w.cfg.Person(r)) {
		http.Redirect(rw, r, "/tasks/"+t.ID, http.StatusSeeOther)
		return
	}
	p := problem{Status: http.StatusConflict, Icon: "user", Link: "/tasks/" + t.ID, LinkLabel: w.T("Open %s", t.Hostname),
		Title: w.T("Your decision was not stored"), Text: w.T("%s is %s now.", t.Hostname, strings.ToLower(w.statusWord(t.Status)))}
	if a := t.Approval; a != nil && a.By != "" {
		at := a.At.UTC().Format("15:04:05 UTC")
		p.Title = w.T("%s decided before you", lpmos.Shorten(a.By, 80))
		p.Text = w.T("%s was rejected at %s. Your answer was not stored and is not needed.", t.Hostname, at)
		if a.Approved {
			p.Text = w.T("%s was approved at %s. Your answer was not stored and is not needed.", t.Hostname, at)
		}
	}
	w.showProblem(rw, r, p)
}

// fact is one line of a plan, as it was shown.
type fact struct {
	Group string `json:"g"`
	Name  string `json:"n"`
	Value string `json:"v"`
}

// facts flattens a plan. The approval form carries them, so that a person whose
// plan changed is told what became different; they decide nothing.
func (s *tongue) facts(p *lpmos.Plan, os string) []fact {
	erased, kept, written := s.verdicts(p, os)
	_, id := s.diskID(p.Effect.Target)
	out := []fact{
		{"verdict", "Erased", s.T("%s: %s", erased.Big, id)},
		{"verdict", "Found on it", erased.Text},
		{"verdict", "Untouched", s.joined(kept.Big+s.T("."), kept.Text)},
		{"verdict", "Written", written.Big},
	}
	add := func(group, name, value string) {
		if value != "" {
			out = append(out, fact{group, name, value})
		}
	}
	for _, d := range p.Observed {
		_, id := s.diskID(d.Disk)
		add("Disks", s.T("disk %s", id), s.T("%s: %s", strings.TrimSpace(s.size(d.Disk.SizeBytes)+" "+d.Model), s.holds(d.Content, d.Unknown)))
	}
	e := p.Effect
	add("Plan", s.T("Problem"), s.sentence(p.Problem))
	add("Plan", s.T("Target serial number"), e.Target.Serial)
	add("Plan", s.T("Target WWN"), e.Target.WWN)
	add("Plan", s.T("Target path"), e.Target.Path)
	if e.Target.SizeBytes > 0 {
		add("Plan", s.T("Target size"), s.size(e.Target.SizeBytes))
	}
	add("Plan", s.T("Boots by"), strings.ToUpper(e.BootMode))
	for _, q := range e.Partitions {
		add("Plan", s.T("Partition %s", strconv.Itoa(q.Number)), strings.TrimSpace(s.roleWord(q.Role)+" "+s.size(q.SizeBytes)+" "+q.FS))
	}
	add("Plan", s.T("Image"), e.Image.OS+" "+e.Image.Version+" "+e.Image.Arch)
	add("Plan", s.T("Image digest"), e.Image.Digest)
	add("Plan", s.T("Host name"), e.Hostname)
	macs := make([]string, 0, len(e.Network.MACs))
	for _, m := range e.Network.MACs {
		macs = append(macs, m.String())
	}
	add("Plan", s.T("Network"), strings.TrimSpace(e.Network.Mode+" "+strings.Join(macs, " ")))
	add("Plan", s.T("Kernel arguments"), e.KernelArgs)
	for i, k := range e.SSHKeys {
		add("Plan", s.T("SSH key %s", strconv.Itoa(i+1)), keyWords(k))
	}
	for _, l := range s.setupLines(e.System) {
		add("System", l.What, l.Value)
	}
	for _, f := range e.Files {
		add("Files", f.Path, strings.TrimSpace(f.Mode+" "+s.Said(f.What)+" "+lpmos.Prefix(f.Digest(), 19)))
	}
	add("Machine", s.T("Hardware digest"), p.HardwareDigest)
	return out
}

// factWords are the names of facts and their groups that are words.
var factWords = map[string]string{
	"Erased": "Erased", "Found on it": "Found on it", "Untouched": "Untouched", "Written": "Written",
	"Disks": "Disks", "Plan": "Plan", "Files": "Files", "System": "System", "Machine": "Machine",
}

func (s *tongue) factWord(name string) string {
	if w, ok := factWords[name]; ok {
		return s.T(w)
	}
	return name
}

type staleView struct {
	lpmos.Task
	Headline  string
	Same      int // facts that did not change
	Compare   []comparison
	Delta     []deltaLine
	Known     bool // what was shown is known
	Shown     string
	Digest    string
	Notes     string
	TargetNew bool
}

type comparison struct {
	Part, Then, Now string
	Same            bool
}

type deltaLine struct{ Kind, Sign, Name, Value string }

// showStale says first that nothing was approved, then what differs, then
// offers the whole new plan. What was typed is kept; checks start again.
func (w *Web) showStale(rw http.ResponseWriter, r *http.Request, t lpmos.Task, d api.Decision, rev int64) {
	now := w.facts(t.Plan, imageTitle(w.reader.Images(), t.OSType, t.OSVersion, t.Arch))
	var then []fact
	v := staleView{Task: t, Shown: d.PlanDigest, Digest: t.Plan.Digest, Notes: d.Notes}
	if json.Unmarshal([]byte(r.PostForm.Get("shown")), &then) == nil && len(then) > 0 && len(then) < 2000 {
		v.Known = true
	}
	value := func(fs []fact, f fact) (string, bool) {
		i := slices.IndexFunc(fs, func(g fact) bool { return g.Group == f.Group && g.Name == f.Name })
		if i < 0 {
			return "", false
		}
		return fs[i].Value, true
	}
	if v.Known {
		for _, f := range now {
			if f.Group != "verdict" {
				continue
			}
			was, _ := value(then, f)
			c := comparison{w.factWord(f.Name), was, f.Value, was == f.Value}
			if !c.Same && f.Name == "Erased" {
				v.TargetNew = true
			}
			v.Compare = append(v.Compare, c)
		}
		group := ""
		line := func(g string, l deltaLine) {
			if g != group {
				v.Delta = append(v.Delta, deltaLine{Kind: "head", Name: w.factWord(g)})
				group = g
			}
			v.Delta = append(v.Delta, l)
		}
		for _, g := range []string{"Disks", "Plan", "System", "Files", "Machine"} {
			for _, f := range then {
				if f.Group != g {
					continue
				}
				if is, ok := value(now, f); !ok || is != f.Value {
					line(g, deltaLine{"gone", "−", f.Name, f.Value})
					if ok {
						line(g, deltaLine{"new", "+", f.Name, is})
					}
				} else {
					v.Same++
				}
			}
			for _, f := range now {
				if _, ok := value(then, f); f.Group == g && !ok {
					line(g, deltaLine{"new", "+", f.Name, f.Value})
				}
			}
		}
	}
	v.Headline = w.T("The plan of this machine is another one now.")
	if v.TargetNew {
		v.Headline = w.T("The disk to be erased is another one now.")
	}
	w.show(rw, r, http.StatusConflict, "stale", page{Title: w.T("Nothing was approved: %s", t.Hostname), Nav: "approvals", Watch: t.ID, Rev: rev, Body: v})
}
