package web

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

// The pages about templates that are written into installed systems. What the
// pages themselves are made of is in format.go.

type templateRow struct {
	lpmos.Template
	Size string
	Used usedView
}

type templateForm struct {
	Name, Kind, Description, Text string
	Version                       int
}

type templatesView struct {
	Rows     []templateRow
	Form     templateForm
	Kinds    []string
	Facts    []string
	Problems []fieldProblem
	New      bool
	Row      *templateRow
	Task     string // the preview is for, as typed
	Preview  string
	Refused  string // why there is no preview
	Command  string
}

func (v templatesView) Problem(field string) string { return problemsOf(v.Problems).Of(field) }

func (w *Web) newTemplateRow(t lpmos.Template) templateRow {
	return templateRow{t, w.size(int64(len(t.Text))), w.newUsed(w.reader.TemplateUse(t.Name))}
}

// firstTemplate is where a new one begins.
const firstTemplate = "#cloud-config\nfqdn: {{hostname}}\nssh_authorized_keys: {{json ssh_keys}}\n"

func (w *Web) templateList(rw http.ResponseWriter, r *http.Request) {
	w.showTemplates(rw, r, http.StatusOK, templateForm{Kind: lpmos.TemplateUserData, Text: firstTemplate}, nil)
}

func (w *Web) showTemplates(rw http.ResponseWriter, r *http.Request, status int, f templateForm, problems []fieldProblem) {
	rev := w.rev()
	v := templatesView{Form: f, Kinds: lpmos.TemplateKinds, Facts: lpmos.TemplateFacts(), Problems: problems, New: true, Command: "lpmos template list"}
	for _, t := range w.reader.Templates() {
		v.Rows = append(v.Rows, w.newTemplateRow(t))
	}
	w.show(rw, r, status, "templates", page{Title: w.T("Templates"), Nav: "templates", Rev: rev, Body: v})
}

func (w *Web) templatePage(rw http.ResponseWriter, r *http.Request) {
	t, ok := w.reader.Template(r.PathValue("name"))
	if !ok {
		w.missing(rw, r, w.T("There is no such template"), "/templates", w.T("All templates"))
		return
	}
	w.showTemplate(rw, r, http.StatusOK, t, templateForm{t.Name, t.Kind, t.Description, t.Text, t.Version}, nil)
}

func (w *Web) showTemplate(rw http.ResponseWriter, r *http.Request, status int, t lpmos.Template, f templateForm, problems []fieldProblem) {
	rev, row := w.rev(), w.newTemplateRow(t)
	v := templatesView{Form: f, Kinds: lpmos.TemplateKinds, Facts: lpmos.TemplateFacts(), Problems: problems, Row: &row, Command: "lpmos template preview " + t.Name}
	v.Task = strings.TrimSpace(lpmos.Shorten(r.URL.Query().Get("task"), 64))
	id := strings.ToLower(v.Task)
	if id != "" && !lpmos.ValidTaskID(id) {
		// The first digits are what people have.
		if f, err := query.Parse(id); err == nil {
			if found := w.reader.Tasks(api.Query{Filter: f, Limit: 2}); len(found.Tasks) == 1 {
				id = found.Tasks[0].ID
			}
		}
	}
	text, err := w.actions.Preview(t.Name, id)
	if v.Preview = text; err != nil {
		v.Refused = w.Said(sentence(err.Error()))
		if errors.Is(err, lpmos.ErrUnavailable) {
			w.fail(rw, r, err)
			return
		}
	}
	if lpmos.ValidTaskID(id) {
		v.Command += " --task " + short(id)
	}
	w.show(rw, r, status, "template", page{Title: t.Name, Nav: "templates", Rev: rev, Body: v})
}

func (w *Web) putTemplate(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	p := r.PostForm
	f := templateForm{Name: strings.TrimSpace(p.Get("name")), Kind: p.Get("kind"), Description: strings.TrimSpace(lineEndings(p.Get("description"))), Text: lineEndings(p.Get("text"))}
	name := r.PathValue("name")
	if name != "" {
		f.Name = name
		f.Version, _ = strconv.Atoi(p.Get("version"))
	}
	ctx, cancel := actionContext(r)
	defer cancel()
	t, err := w.actions.PutTemplate(ctx, lpmos.Template{Name: f.Name, Kind: f.Kind, Description: f.Description, Text: f.Text}, f.Version, w.cfg.Person(r))
	if err == nil {
		http.Redirect(rw, r, "/templates/"+t.Name, http.StatusSeeOther)
		return
	}
	status, problems := w.formProblems(err)
	switch was, ok := w.reader.Template(name); {
	case problems == nil:
		w.fail(rw, r, err)
	case name == "":
		w.showTemplates(rw, r, status, f, problems)
	case !ok:
		w.missing(rw, r, w.T("There is no such template"), "/templates", w.T("All templates"))
	default:
		w.showTemplate(rw, r, status, was, f, problems)
	}
}

func (w *Web) deleteTemplate(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	version, _ := strconv.Atoi(r.PostForm.Get("version"))
	ctx, cancel := actionContext(r)
	defer cancel()
	w.gone(rw, r, w.actions.DeleteTemplate(ctx, r.PathValue("name"), version, w.cfg.Person(r)), "/templates", w.T("All templates"))
}
