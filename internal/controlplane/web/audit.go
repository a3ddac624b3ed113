package web

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// auditWords are what administrators do.
var auditWords = map[string]string{
	"user.create": "User created", "user.update": "User changed", "user.password": "Password changed", "user.delete": "User deleted",
	"session.end": "Session ended", "token.create": "Token created", "token.delete": "Token ended",
	"region.enroll": "Region invited", "region.redeem": "Region enrolled", "region.certificate": "Region certificate issued",
	"region.rotate": "Region asked for a new certificate", "region.revoke": "Region revoked",
	"image.create": "Image added", "image.update": "Image replaced", "image.delete": "Image deleted",
	"profile.create": "Profile created", "profile.update": "Profile changed", "profile.delete": "Profile deleted",
	"template.create": "Template created", "template.update": "Template changed", "template.delete": "Template deleted",
	"bootimage.publish": "Boot image published", "limits.set": "Limits changed", "policy.set": "Approval policy changed", "config.update": "Control plane joined",
	"machine.lock": "Machine locked", "machine.unlock": "Machine unlocked", "machine.tpm_forget": "TPM forgotten", "stop.begin": "Emergency stop", "stop.end": "Emergency stop ended",
	lpmos.AuditTaskDeleted: "Task deleted", lpmos.AuditTasksNoted: "Histories of tasks noted",
}

// actorForms are who acts beside people, and by what way somebody came;
// subjectForms are what it was done to.
var (
	actorForms   = phrases("control plane", "region %s", "token %s", "host %s", "its certificate")
	subjectForms = phrases("user %s", "token %s of %s", "session of %s", "region %s", "image %s", "profile %s", "template %s", "machine %s", "task %s", "tasks (%s)", "emergency stop", "site")
)

func (s *tongue) who(actor string) string { return s.formed(actorForms, actor) }

func (s *tongue) auditWord(action string) string {
	if w, ok := auditWords[action]; ok {
		return s.T(w)
	}
	return action
}

type auditRow struct {
	lpmos.AuditEntry
	What    string
	To      string // the subject in this language
	Link    string // where the subject can be seen, "" for nowhere
	Changes []lpmos.AuditChange
	Noted   int
}

type auditChoice struct {
	Action, Word string
	Chosen       bool
}

type auditView struct {
	Rows     []auditRow
	By       string
	Subject  string
	From, To string // days
	Actions  []auditChoice
	Problem  string
	Filtered bool
	Last     int
	Signed   *lpmos.AuditHead
	Unsigned int
	Next     string
	First    bool
	Command  string
	Verify   string
}

const auditDay = "2006-01-02"

// auditQuery reads what was filled in; problem says what of it is no day.
func (w *Web) auditQuery(form url.Values) (q api.AuditQuery, v auditView) {
	get := func(name string) string { return lpmos.Shorten(strings.TrimSpace(form.Get(name)), 200) }
	v = auditView{By: get("by"), Subject: get("subject"), From: get("from"), To: get("to")}
	q = api.AuditQuery{By: v.By, Subject: v.Subject, Action: get("action")}
	if self := "control plane"; q.By == w.who(self) {
		q.By = self
	}
	for _, a := range lpmos.AuditActions {
		v.Actions = append(v.Actions, auditChoice{a, w.auditWord(a), a == q.Action})
	}
	day := func(text string, later time.Duration) (at time.Time) {
		if text == "" {
			return at
		}
		at, err := time.Parse(auditDay, text)
		if err != nil {
			v.Problem = w.T("%s is not a day such as 2026-11-27.", text)
			return time.Time{}
		}
		return at.Add(later)
	}
	q.After, q.Before = day(v.From, 0), day(v.To, 24*time.Hour)
	v.Filtered = v.By+v.Subject+q.Action+v.From+v.To != ""
	v.Command = auditCommand(q)
	return q, v
}

// auditCommand is the same question from a shell.
func auditCommand(q api.AuditQuery) string {
	line := "lpmos audit list"
	for _, f := range []struct{ flag, value string }{{"by", q.By}, {"action", q.Action}, {"subject", q.Subject}} {
		if f.value != "" {
			line += " --" + f.flag + " " + shellQuoted(f.value)
		}
	}
	for _, f := range []struct {
		flag string
		at   time.Time
	}{{"after", q.After}, {"before", q.Before}} {
		if !f.at.IsZero() {
			line += " --" + f.flag + " " + f.at.Format(auditDay)
		}
	}
	return line
}

// shellQuoted is one argument for a shell, whatever is in it.
func shellQuoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (w *Web) audit(rw http.ResponseWriter, r *http.Request) {
	form := r.URL.Query()
	q, v := w.auditQuery(form)
	status := http.StatusOK
	if v.Problem != "" {
		status = http.StatusBadRequest
	}
	v.First = true
	if c := form.Get("cursor"); c != "" {
		n, err := strconv.ParseInt(c, 10, 32)
		if err != nil || n < 1 {
			w.fail(rw, r, &lpmos.InvalidError{Field: "cursor", Problem: "is not the next_cursor of a page", Value: c})
			return
		}
		q.Cursor, v.First = n, false
	}
	p, err := w.history.Audit(r.Context(), q)
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	for _, e := range p.Entries {
		v.Rows = append(v.Rows, auditRow{e, w.auditWord(e.Action), w.formed(subjectForms, e.Subject), subjectLink(e), e.Changes(), len(e.Heads)})
	}
	v.Last, v.Signed, v.Unsigned = int(p.Last), p.Signed, int(p.Last)
	v.Verify = "lpmos audit verify --key signing.pub"
	if p.Signed != nil {
		v.Unsigned = int(p.Last - p.Signed.Seq)
	}
	if p.Next > 0 {
		next := url.Values{"cursor": {strconv.FormatInt(p.Next, 10)}}
		for _, name := range []string{"by", "action", "subject", "from", "to"} {
			if text := form.Get(name); text != "" {
				next.Set(name, text)
			}
		}
		v.Next = "/audit?" + next.Encode()
	}
	w.show(rw, r, status, "audit", page{Title: w.T("Audit"), Nav: "audit", Body: v})
}

// subjectLink is the page of what an entry is about, if that has one.
func subjectLink(e lpmos.AuditEntry) string {
	noun, name, _ := strings.Cut(e.Subject, " ")
	if slices.Contains([]string{"user.delete", "profile.delete", "template.delete", lpmos.AuditTaskDeleted}, e.Action) {
		return ""
	}
	switch noun {
	case "user", "profile", "template", "machine":
		return "/" + noun + "s/" + url.PathEscape(name)
	case "region", "image", "token":
		return "/" + noun + "s"
	case "emergency":
		return "/stop"
	}
	return ""
}
