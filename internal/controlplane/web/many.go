package web

import (
	"cmp"
	"errors"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
)

// summaryView is what will be created, before it is.
type summaryView struct {
	Many     bool
	Form     createForm
	FormID   string
	Lines    []csvLine
	Names    string // numbers of the lines, where others are left out
	Hidden   int    // lines that are not listed for want of room
	Left     int    // bad lines that are left out
	Changed  bool
	Offline  []string // regions that are asked for and not there
	NoKeys   int      // machines nobody can log into
	Hosts    []string // host names that more than one machine gets
	Commands []string
	Secrets  []secretAsk
	Problems []fieldProblem // of Secrets
}

// listedLines is how many lines of a file a page lists.
const listedLines = 200

func (w *Web) showSummary(rw http.ResponseWriter, r *http.Request, v createView, lines []csvLine) {
	s := summaryView{Many: v.Many, Form: v.Form, FormID: v.FormID, Lines: lines, Left: len(v.Bad), Problems: v.Problems}
	names := map[string]int{}
	var specs []lpmos.Spec
	for _, l := range lines {
		specs = append(specs, l.Spec)
		if len(l.Spec.SSHKeys) == 0 && len(logins(w.setupOf(l.Spec))) == 0 {
			s.NoKeys++
		}
		if l.Spec.Hostname != "" {
			if names[l.Spec.Hostname]++; names[l.Spec.Hostname] == 2 && len(s.Hosts) < 10 {
				s.Hosts = append(s.Hosts, l.Spec.Hostname)
			}
		}
		for _, reg := range w.reader.Regions() {
			if reg.ID == l.Spec.RegionID && reg.Status != "online" && !slices.Contains(s.Offline, reg.ID) {
				s.Offline = append(s.Offline, reg.ID)
			}
		}
		if len(s.Commands) < 20 {
			s.Commands = append(s.Commands, w.commandOf(l.Spec))
		}
	}
	s.Hidden = len(lines) - min(len(lines), listedLines)
	s.Lines = lines[:len(lines)-s.Hidden]
	s.Secrets = w.secretAsks(specs)
	for i, a := range s.Secrets {
		s.Secrets[i].Problem = v.Problem(a.Field())
	}
	s.Changed = r.PostForm.Get("step") == "create" && len(s.Problems) == 0
	if v.Form.GoodOnly {
		var names []string
		for _, l := range lines {
			names = append(names, strconv.Itoa(l.Line))
		}
		s.Names = strings.Join(names, ",")
	}
	title := w.T("New task: look before it is created")
	if v.Many {
		title = w.N(len(lines), "1 new task: look before it is created", "%s new tasks: look before they are created")
	}
	one, keys := lines[0].Spec, ""
	if n := len(one.SSHKeys); n > 0 {
		keys = w.N(n, "1 SSH key", "%s SSH keys")
	}
	// The form's own id travels on: what was shown is created once.
	w.show(rw, r, http.StatusOK, "summary", page{Title: title, Nav: "tasks", Body: struct {
		summaryView
		Count  int
		One    lpmos.Spec
		OS     string
		Logins template.HTML
	}{s, len(lines), one, imageTitle(w.reader.Images(), one.OSType, one.OSVersion, one.Arch), w.whoLogsIn(keys, w.setupOf(one))}})
}

// commandOf asks for the same task from a shell. What its profile says needs not
// be said again.
func (w *Web) commandOf(s lpmos.Spec) string {
	p, _ := w.profileNamed(s.Profile)
	c := "lpmos task create --region " + s.RegionID + " --mac " + s.TargetMAC.String()
	add := func(flag, value string) {
		if value != "" {
			c += " --" + flag + " " + value
		}
	}
	add("profile", s.Profile)
	if s.OSType != p.OSType || s.OSVersion != p.OSVersion {
		add("os", s.OSType)
		add("os-version", s.OSVersion)
	}
	if s.Arch != cmp.Or(p.Arch, "amd64") {
		add("arch", s.Arch)
	}
	add("hostname", s.Hostname)
	add("address", strings.Join(s.Addresses, ","))
	add("gateway", strings.Join(s.Gateways, ","))
	if !slices.Equal(s.SSHKeys, p.SSHKeys) {
		add("ssh-key-file", "keys.pub")
	}
	if s.Notes != "" && s.Notes != p.Notes {
		add("notes", shellQuoted(s.Notes))
	}
	for _, a := range w.secretsOf(s) {
		if a.Required {
			add("secret", a.Name)
		}
	}
	return c
}

// createMany checks every line of a file, and creates all or none.
func (w *Web) createMany(rw http.ResponseWriter, r *http.Request, v createView) {
	if strings.TrimSpace(v.Form.CSV) == "" {
		v.Problems = []fieldProblem{{"csv", w.T("Paste the lines, or choose a file.")}}
		w.showCreate(rw, r, http.StatusBadRequest, v)
		return
	}
	lines, problems := w.parseCSV(v.Form.CSV)
	if len(problems) == 0 && len(lines) == 0 {
		problems = append(problems, lineProblem{Line: 1, Text: w.T("There is no machine in it.")})
	}
	check := r.PostForm.Get("step") != "create"
	if shown := r.PostForm.Get("lines"); v.Form.GoodOnly && !check && shown != "" {
		// What was left out in the summary stays left out.
		names := strings.Split(shown, ",")
		lines = slices.DeleteFunc(lines, func(l csvLine) bool { return !slices.Contains(names, strconv.Itoa(l.Line)) })
	}
	w.readLines(v.Form, lines, check)
	var good []csvLine
	bad := problems
	for _, l := range lines {
		if len(l.Problems) == 0 {
			good = append(good, l)
		}
		bad = append(bad, l.Problems...)
	}
	slices.SortStableFunc(bad, func(a, b lineProblem) int { return a.Line - b.Line })
	v.Bad, v.Good = bad, len(good)
	// A file that could not be read to its end has no good lines.
	if len(problems) > 0 || len(bad) > 0 && !v.Form.GoodOnly || len(good) == 0 {
		w.showLines(rw, r, http.StatusBadRequest, v, lines)
		return
	}
	expect, _ := strconv.Atoi(r.PostForm.Get("expect"))
	if check || expect != len(good) {
		w.showSummary(rw, r, v, good)
		return
	}
	specs := make([]lpmos.Spec, len(good))
	for i, l := range good {
		specs[i] = l.Spec
	}
	if v.Problems = w.giveSecrets(r.PostForm, specs); len(v.Problems) > 0 {
		w.showSummary(rw, r, v, good)
		return
	}
	ctx, cancel := actionContext(r)
	defer cancel()
	b, err := w.cfg.Batches.CreateBatch(ctx, specs, w.cfg.Person(r), v.FormID)
	if refused, ok := errors.AsType[*lpmos.BatchError](err); ok {
		for _, p := range refused.Lines {
			// They are the same for all lines, and stand on the summary.
			if name, ok := strings.CutPrefix(p.Field, "secrets."); ok && v.Problem(secretField+name) == "" {
				v.Problems = append(v.Problems, fieldProblem{secretField + name, w.sentence(p.Detail)})
			}
		}
		if len(v.Problems) > 0 {
			w.showSummary(rw, r, v, good)
			return
		}
		for _, p := range refused.Lines {
			if p.Line < 1 || p.Line > len(good) {
				continue
			}
			at := good[p.Line-1].Line
			i := slices.IndexFunc(lines, func(l csvLine) bool { return l.Line == at })
			q := lineProblem{at, columnOf(p.Field), w.sentence(p.Detail)}
			lines[i].Problems = append(lines[i].Problems, q)
			v.Bad = append(v.Bad, q)
		}
		v.Good, v.FormID = len(good)-len(refused.Lines), ""
		w.showLines(rw, r, http.StatusConflict, v, lines)
		return
	}
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	http.Redirect(rw, r, "/batches/"+b.ID, http.StatusSeeOther)
}

// showLines names every bad line. Of the good ones only their number is shown:
// they are not what a person has to look at.
func (w *Web) showLines(rw http.ResponseWriter, r *http.Request, status int, v createView, lines []csvLine) {
	for _, l := range lines {
		if len(l.Problems) > 0 && len(v.Lines) < listedLines {
			v.Lines = append(v.Lines, l)
		}
	}
	if len(v.Bad) > listedLines {
		v.Bad = v.Bad[:listedLines]
	}
	w.showCreate(rw, r, status, v)
}

// readLines makes a spec of every line and says what is wrong with it. Empty
// cells take what the form says for all.
func (w *Web) readLines(all createForm, lines []csvLine, ahead bool) {
	images := w.reader.Images()
	seen := map[lpmos.MAC]int{}
	column := map[string]string{"target_mac": "mac", "region_id": "region", "image": "os", "addresses": "address", "gateways": "gateway"}
	for i := range lines {
		l := &lines[i]
		cell := func(name, otherwise string) string {
			if c := l.Cells[name]; c != "" {
				return c
			}
			return otherwise
		}
		bad := func(field, text string) { l.Problems = append(l.Problems, lineProblem{l.Line, field, text}) }
		f := createForm{TargetMAC: l.Cells["mac"], Hostname: l.Cells["hostname"], RegionID: cell("region", all.RegionID), Profile: cell("profile", all.Profile),
			Image: all.Image, SSHKeys: all.SSHKeys, Notes: cell("notes", all.Notes), Addresses: l.Cells["address"], Gateways: l.Cells["gateway"]}
		if l.Cells["profile"] != "" {
			f.Image = ""
		}
		if c := l.Cells["ssh_keys"]; c != "" {
			f.SSHKeys = strings.ReplaceAll(c, ";", "\n")
		}
		os, version := strings.ToLower(l.Cells["os"]), l.Cells["version"]
		if a, b, ok := strings.Cut(os, "/"); ok && version == "" {
			os = a
			version, _, _ = strings.Cut(b, "/")
		}
		switch {
		case os != "" && version == "":
			var versions []string
			for _, i := range images {
				if i.OS == os && !slices.Contains(versions, i.Version) {
					versions = append(versions, i.Version)
				}
			}
			if len(versions) != 1 {
				bad("version", w.T("The version is missing."))
			} else {
				f.Image = os + "/" + versions[0] + "/amd64"
			}
		case os != "":
			f.Image = os + "/" + version + "/amd64"
			// One architecture in the catalogue needs no word.
			if _, ok := findImage(images, os, version, "amd64"); !ok {
				if _, ok := findImage(images, os, version, "arm64"); ok {
					f.Image = os + "/" + version + "/arm64"
				}
			}
		case version != "":
			bad("os", w.T("The operating system is missing."))
		}
		spec, _, problems := w.readSpec(f, ahead)
		for _, p := range problems {
			field := p.Field
			if c, ok := column[field]; ok {
				field = c
			}
			if field == "os" && l.Wrong("version") {
				continue
			}
			bad(field, p.Text)
		}
		if !spec.TargetMAC.IsZero() {
			if first, twice := seen[spec.TargetMAC]; twice {
				bad("mac", w.T("It is the machine of line %s, perhaps spelled differently.", strconv.Itoa(first)))
			} else {
				seen[spec.TargetMAC] = l.Line
			}
		}
		l.Spec = spec
	}
}

type batchRow struct {
	lpmos.Task
	OS string
}

type batchView struct {
	lpmos.Batch
	Tasks   []batchRow
	Hidden  int
	Percent int
	Command string
}

// batch says how far the tasks of a file have been created.
func (w *Web) batch(rw http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if w.cfg.Batches == nil || !lpmos.ValidTaskID(id) {
		w.showProblem(rw, r, w.notFoundPage(r.URL.Path))
		return
	}
	b, err := w.cfg.Batches.Batch(r.Context(), id)
	if errors.Is(err, lpmos.ErrNotFound) {
		w.showProblem(rw, r, problem{Status: http.StatusNotFound, Icon: "search", Title: w.T("There is no such batch"),
			Text: w.T("How a batch went is kept for 30 days; its tasks stay.")})
		return
	}
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	v := batchView{Batch: b, Command: "lpmos task list -q batch:" + short(b.ID), Percent: 100}
	if b.Total > 0 {
		v.Percent = b.Done * 100 / b.Total
	}
	ids := make([]string, b.Total)
	for i := range ids {
		ids[i] = lpmos.BatchTaskID(b.ID, i+1)
	}
	images, tasks := w.reader.Images(), w.reader.Rows(ids).Tasks
	for _, t := range tasks[:min(len(tasks), listedLines)] {
		v.Tasks = append(v.Tasks, batchRow{t, imageTitle(images, t.OSType, t.OSVersion, t.Arch)})
	}
	v.Hidden = len(tasks) - len(v.Tasks)
	if !b.Finished {
		// It takes seconds; the page is drawn again until it is done, with or
		// without scripts.
		rw.Header().Set("Refresh", "2")
	}
	title := w.T("Creating %s tasks", count(b.Total))
	if b.Finished {
		title = w.N(b.Total-len(b.Failed), "1 task was created", "%s tasks were created")
	}
	w.show(rw, r, http.StatusOK, "batch", page{Title: title, Nav: "tasks", Body: v})
}
