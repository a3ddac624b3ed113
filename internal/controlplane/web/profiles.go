package web

import (
	"cmp"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
)

// lineEndings is text of a form as files have it.
func lineEndings(s string) string { return strings.ReplaceAll(s, "\r\n", "\n") }

type profileRow struct {
	lpmos.Profile
	OS   string
	Used usedView
	Keys string
}

func (w *Web) newProfileRow(p lpmos.Profile, images []lpmos.Image) profileRow {
	r := profileRow{Profile: p, OS: w.T("the task says"), Used: w.newUsed(w.reader.ProfileUse(p.Name)), Keys: w.N(len(p.SSHKeys), "1 key", "%s keys")}
	if p.System != nil && len(p.System.Users) > 0 {
		r.Keys = w.list([]string{w.N(len(p.System.Users), "1 user", "%s users"), r.Keys})
	}
	if p.OSType != "" {
		r.OS = imageTitle(images, p.OSType, p.OSVersion, p.Arch)
	}
	return r
}

// profileForm is what was typed, kept as it was.
type profileForm struct {
	Name, Description, Image, Hostname, SSHKeys, Notes, Template string
	Verify                                                       bool
	Version                                                      int
	Setup                                                        setupForm
	More                                                         int // blank rows of each kind
}

func (w *Web) readProfile(r *http.Request) (profileForm, lpmos.Profile) {
	p := r.PostForm
	f := profileForm{
		Name: strings.TrimSpace(p.Get("name")), Description: strings.TrimSpace(lineEndings(p.Get("description"))), Image: p.Get("image"), Hostname: strings.TrimSpace(p.Get("hostname_pattern")),
		SSHKeys: lineEndings(p.Get("ssh_keys")), Notes: strings.TrimSpace(lineEndings(p.Get("notes"))), Template: p.Get("template"), Verify: p.Get("verify") != "no",
	}
	f.Version, _ = strconv.Atoi(p.Get("version")) // what is no number is no version
	f.More, _ = strconv.Atoi(p.Get("more"))
	out := lpmos.Profile{Name: f.Name, Description: f.Description, Hostname: f.Hostname, Notes: f.Notes, Template: f.Template}
	if image := strings.Split(f.Image, "/"); len(image) == 3 {
		out.OSType, out.OSVersion, out.Arch = image[0], image[1], image[2]
	}
	for line := range strings.Lines(f.SSHKeys) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out.SSHKeys = append(out.SSHKeys, line)
		}
	}
	if !f.Verify {
		out.Verify = new(false)
	}
	f.Setup, out.System = readSetup(p)
	return f, out
}

func formOf(p lpmos.Profile) profileForm {
	f := profileForm{
		Name: p.Name, Description: p.Description, Hostname: p.Hostname, SSHKeys: strings.Join(p.SSHKeys, "\n"), Notes: p.Notes, Template: p.Template,
		Verify: p.Verify == nil || *p.Verify, Version: p.Version, Setup: setupFormOf(p.System),
	}
	if p.OSType != "" {
		f.Image = p.OSType + "/" + p.OSVersion + "/" + p.Arch
	}
	return f
}

type profilesView struct {
	Rows      []profileRow
	Form      profileForm
	Images    []lpmos.Image
	Templates []lpmos.Template
	Facts     string
	Problems  []fieldProblem
	New       bool // Form makes a new one
	Row       *profileRow
	Command   string
	Groups    []formGroup // of its system
	More      int         // blank rows the next form has
}

func (v profilesView) Problem(field string) string { return problemsOf(v.Problems).Of(field) }

func (w *Web) profilesPage(f profileForm, problems []fieldProblem) profilesView {
	return profilesView{Form: f, Problems: problems, Groups: w.setupGroups(f.Setup, problems, f.More), More: max(f.More, 1) + 1, Images: w.reader.Images(), Templates: w.reader.Templates(), Facts: "{" + strings.Join(lpmos.HostnameFacts(), "}, {") + "}"}
}

func (w *Web) profileList(rw http.ResponseWriter, r *http.Request) {
	w.showProfiles(rw, r, http.StatusOK, profileForm{Verify: true}, nil)
}

func (w *Web) showProfiles(rw http.ResponseWriter, r *http.Request, status int, f profileForm, problems []fieldProblem) {
	rev, v := w.rev(), w.profilesPage(f, problems)
	v.New, v.Command = true, "lpmos profile list"
	for _, p := range w.reader.Profiles() {
		v.Rows = append(v.Rows, w.newProfileRow(p, v.Images))
	}
	w.show(rw, r, status, "profiles", page{Title: w.T("Profiles"), Nav: "profiles", Rev: rev, Body: v})
}

func (w *Web) profile(rw http.ResponseWriter, r *http.Request) {
	p, ok := w.reader.Profile(r.PathValue("name"))
	if !ok {
		w.missing(rw, r, w.T("There is no such profile"), "/profiles", w.T("All profiles"))
		return
	}
	w.showProfile(rw, r, http.StatusOK, p, formOf(p), nil)
}

func (w *Web) missing(rw http.ResponseWriter, r *http.Request, title, link, label string) {
	w.showProblem(rw, r, problem{Status: http.StatusNotFound, Icon: "search", Title: title, Text: w.T("It may have been deleted, or its name was typed wrongly."), Link: link, LinkLabel: label})
}

func (w *Web) showProfile(rw http.ResponseWriter, r *http.Request, status int, p lpmos.Profile, f profileForm, problems []fieldProblem) {
	rev, v := w.rev(), w.profilesPage(f, problems)
	row := w.newProfileRow(p, v.Images)
	v.Row, v.Command = &row, "lpmos profile show "+p.Name
	w.show(rw, r, status, "profile", page{Title: p.Name, Nav: "profiles", Rev: rev, Body: v})
}

func (w *Web) putProfile(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	f, p := w.readProfile(r)
	name := r.PathValue("name")
	if name != "" {
		f.Name, p.Name = name, name
	} else {
		f.Version = 0
	}
	if r.PostForm.Has("more") {
		// The same form with more rows: nothing is stored, nothing is lost.
		was, ok := w.reader.Profile(name)
		switch {
		case name == "":
			w.showProfiles(rw, r, http.StatusOK, f, nil)
		case !ok:
			w.missing(rw, r, w.T("There is no such profile"), "/profiles", w.T("All profiles"))
		default:
			w.showProfile(rw, r, http.StatusOK, was, f, nil)
		}
		return
	}
	ctx, cancel := actionContext(r)
	defer cancel()
	p, err := w.actions.PutProfile(ctx, p, f.Version, w.cfg.Person(r))
	if err == nil {
		http.Redirect(rw, r, "/profiles/"+p.Name, http.StatusSeeOther)
		return
	}
	status, problems := w.formProblems(err, "os_type", "image", "os_version", "image", "arch", "image")
	switch was, ok := w.reader.Profile(name); {
	case problems == nil:
		w.fail(rw, r, err)
	case name == "":
		w.showProfiles(rw, r, status, f, problems)
	case !ok:
		w.missing(rw, r, w.T("There is no such profile"), "/profiles", w.T("All profiles"))
	default:
		w.showProfile(rw, r, status, was, f, problems)
	}
}

// formProblems are what an action says is wrong with a form; nil for what is no
// fault of the form. renamed are pairs of a field and the field that shows it.
func (w *Web) formProblems(err error, renamed ...string) (int, []fieldProblem) {
	if invalid, ok := errors.AsType[*lpmos.InvalidError](err); ok {
		field := invalid.Field
		for i := 0; i+1 < len(renamed); i += 2 {
			if field == renamed[i] {
				field = renamed[i+1]
			}
		}
		text := w.sentence(w.invalid(invalid))
		if at := setupField(field); at != field {
			// It stands beside its field, whose name is another one there.
			field = at
			text = w.T("It %s.", w.Said(invalid.Problem))
			if invalid.Value != "" {
				text = w.joined(text, w.T("Given was %s.", w.quote(lpmos.Shorten(invalid.Value, 64))))
			}
		}
		return http.StatusBadRequest, []fieldProblem{{cmp.Or(field, "form"), text}}
	}
	if errors.Is(err, lpmos.ErrConflict) || errors.Is(err, lpmos.ErrChanged) {
		return http.StatusConflict, []fieldProblem{{"form", w.Said(sentence(err.Error()))}}
	}
	return 0, nil
}

func (w *Web) deleteProfile(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	version, _ := strconv.Atoi(r.PostForm.Get("version"))
	ctx, cancel := actionContext(r)
	defer cancel()
	w.gone(rw, r, w.actions.DeleteProfile(ctx, r.PathValue("name"), version, w.cfg.Person(r)), "/profiles", w.T("All profiles"))
}
