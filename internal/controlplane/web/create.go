package web

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/csv"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// Creating tasks has two steps: what was typed is checked and shown, and only
// what was shown is created. The second step carries everything that was typed
// and the id of the form, which makes one task (or one batch) of it however
// often it is sent; nothing is kept in between.

// Batches creates many tasks, or none.
type Batches interface {
	// CreateBatch checks every line before it stores any; what it refuses is a
	// *lpmos.BatchError. The same key makes the same batch.
	CreateBatch(ctx context.Context, specs []lpmos.Spec, by, idempotencyKey string) (lpmos.Batch, error)
	Batch(ctx context.Context, id string) (lpmos.Batch, error)
}

type createView struct {
	Form     createForm
	Many     bool
	Regions  []regionView
	Images   []imageChoice
	Profiles []choice
	Known    *knownMachine // the machine of the MAC, if it was ever seen
	Offered  []knownMachine
	MoreSeen int // discovered machines that are not offered for want of room
	Problems []fieldProblem
	FormID   string // the same for a form that is sent twice
	Command  string

	Columns []csvColumn
	Lines   []csvLine // of the file that was sent, if it has problems
	Bad     []lineProblem
	Good    int
	CanMany bool
}

// choice is an option of a list, with why it cannot be chosen.
type choice struct {
	Value, Label, Why string
}

// imageChoice is an image with what speaks for and against it.
type imageChoice struct {
	choice
	Title, Detail string  // of Label
	Tried         []found // firmware it was started with
}

// Cards reports whether the images are so few that each is shown with what is
// known of it.
func (v createView) Cards() bool { return len(v.Images) <= 8 }

// knownMachine is a machine that was seen before.
type knownMachine struct {
	lpmos.Machine
	Title  string // maker and model
	Boot   string // "UEFI", "" when not known
	Live   string // id of its live task
	Link   string // the form with this machine in it
	LastOS string
}

// createForm is what was typed, kept as it was.
type createForm struct {
	RegionID, TargetMAC, Image, Profile, Hostname, SSHKeys, Notes string
	Addresses, Gateways                                           string
	CSV                                                           string
	GoodOnly                                                      bool
}

// Shown are the columns of the table of bad lines.
func (v createView) Shown() []string {
	return []string{"mac", "hostname", "region", "os", "version", "profile"}
}

func (v createView) Problem(field string) string { return problemsOf(v.Problems).Of(field) }

func (w *Web) createForm(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	v := createView{Form: createFormOf(q), Many: q.Get("mode") == "many", FormID: rand.Text()}
	if q.Get("fill") == "discovered" {
		v.Many, v.Form.CSV = true, w.discoveredCSV(v.Form.RegionID)
	}
	w.showCreate(rw, r, http.StatusOK, v)
}

func createFormOf(f url.Values) createForm {
	return createForm{RegionID: f.Get("region_id"), TargetMAC: f.Get("target_mac"), Image: f.Get("image"), Profile: f.Get("profile"), Hostname: f.Get("hostname"),
		SSHKeys: f.Get("ssh_keys"), Notes: f.Get("notes"), Addresses: f.Get("addresses"), Gateways: f.Get("gateways"), CSV: f.Get("csv"), GoodOnly: f.Get("good") == "only"}
}

// offeredMachines is how many discovered machines the form offers.
const offeredMachines = 50

func (w *Web) showCreate(rw http.ResponseWriter, r *http.Request, status int, v createView) {
	for _, reg := range w.reader.Regions() {
		v.Regions = append(v.Regions, w.newRegion(reg))
	}
	if len(v.Regions) == 1 && v.Form.RegionID == "" {
		v.Form.RegionID = v.Regions[0].ID
	}
	v.Columns, v.CanMany = csvColumns, w.cfg.Batches != nil
	v.Many = v.Many && v.CanMany
	if mac, err := lpmos.ParseMAC(strings.TrimSpace(v.Form.TargetMAC)); err == nil {
		v.Known = w.known(mac)
		if v.Known != nil && v.Form.RegionID == "" {
			v.Form.RegionID = v.Known.RegionID
		}
	}
	images := w.reader.Images()
	for _, i := range images {
		row := imageRow{Image: i}
		w.describe(&row)
		c := imageChoice{choice: choice{Value: i.Name()}, Title: cmp.Or(i.Title, i.Name()), Detail: w.list(append([]string{i.Arch}, bootWords(i.BootModes)...)), Tried: row.Tried}
		c.Label = c.Title + " (" + c.Detail + ")"
		if v.Known != nil {
			c.Why = w.unfit(i, v.Known.Hardware)
		}
		v.Images = append(v.Images, c)
	}
	for _, p := range w.reader.Profiles() {
		c := choice{Value: p.Name, Label: p.Ref()}
		if p.Description != "" {
			c.Label += ": " + lpmos.Shorten(p.Description, 80)
		}
		if p.OSType != "" {
			img, ok := findImage(images, p.OSType, p.OSVersion, p.Arch)
			switch {
			case !ok:
				c.Why = w.T("its image %s is not in the catalogue", p.OSType+" "+p.OSVersion)
			case v.Known != nil:
				c.Why = w.unfit(img, v.Known.Hardware)
			}
		}
		v.Profiles = append(v.Profiles, c)
	}
	found := w.reader.Machines(api.MachineQuery{State: lpmos.MachineDiscovered, Limit: offeredMachines})
	for _, m := range found.Machines {
		k := w.newKnown(m)
		u := url.Values{"target_mac": {m.MAC.String()}, "region_id": {m.RegionID}}
		k.Link = "/tasks/create?" + u.Encode()
		v.Offered = append(v.Offered, k)
	}
	v.MoreSeen = found.Total - len(v.Offered)
	if v.FormID == "" {
		v.FormID = rand.Text()
	}
	mac := "00:1a:2b:3c:4d:5e"
	if v.Known != nil {
		mac = v.Known.MAC.String()
	}
	region, what := "REGION", "--os OS --os-version VERSION"
	if lpmos.ValidRegionID(v.Form.RegionID) {
		region = v.Form.RegionID
	}
	if i := slices.IndexFunc(images, func(i lpmos.Image) bool { return i.Name() == v.Form.Image }); i >= 0 {
		what = "--os " + images[i].OS + " --os-version " + images[i].Version
	} else if lpmos.ValidName(v.Form.Profile) {
		what = "--profile " + v.Form.Profile
	}
	v.Command = "lpmos task create --region " + region + " --mac " + mac + " " + what
	w.show(rw, r, status, "create", page{Title: w.T("New task"), Nav: "tasks", Body: v})
}

func bootWords(modes []string) (out []string) {
	for _, m := range modes {
		out = append(out, bootWord(m))
	}
	return out
}

func findImage(images []lpmos.Image, os, version, arch string) (lpmos.Image, bool) {
	arch = cmp.Or(arch, "amd64")
	for _, i := range images {
		if i.OS == os && i.Version == version && i.Arch == arch {
			return i, true
		}
	}
	return lpmos.Image{}, false
}

// unfit says why an image cannot be installed on a machine, "" if it can or
// nothing is known of the machine.
func (s *tongue) unfit(i lpmos.Image, h *lpmos.Hardware) string {
	switch {
	case h == nil:
		return ""
	case h.CPU.Architecture != "" && h.CPU.Architecture != i.Arch:
		return s.T("not for this machine: it is %s", h.CPU.Architecture)
	case i.CannotBoot(h.BootMode):
		return s.T("this image cannot boot a %s machine", bootWord(h.BootMode))
	}
	return ""
}

func (w *Web) known(mac lpmos.MAC) *knownMachine {
	m, ok := w.reader.Machine(mac)
	if !ok || m.LastSeen.IsZero() && m.TaskID == "" {
		return nil
	}
	k := w.newKnown(m)
	return &k
}

func (w *Web) newKnown(m lpmos.Machine) knownMachine {
	k := knownMachine{Machine: m, Title: strings.TrimSpace(m.Manufacturer + " " + m.Model), LastOS: w.systemOf(m)}
	if m.Hardware != nil {
		k.Title, k.Boot = w.model(m.Hardware), bootWord(m.Hardware.BootMode)
		k.Serial = cmp.Or(m.Serial, m.Hardware.System.Serial)
	}
	for _, t := range w.reader.Rows([]string{m.TaskID}).Tasks {
		if t.Status.Live() {
			k.Live = t.ID
		}
	}
	return k
}

// discoveredCSV is the beginning of a file with all machines that wait for a
// task.
func (w *Web) discoveredCSV(region string) string {
	found := w.reader.Machines(api.MachineQuery{State: lpmos.MachineDiscovered, RegionID: region, Limit: 500})
	var b strings.Builder
	lines := [][]string{{"mac", "hostname", "region", "notes"}}
	for _, m := range found.Machines {
		lines = append(lines, []string{m.MAC.String(), "", m.RegionID, shownBySpreadsheets(strings.TrimSpace(m.Manufacturer + " " + m.Model + " " + m.Serial))})
	}
	if err := csv.NewWriter(&b).WriteAll(lines); err != nil {
		panic("web: write CSV to memory: " + err.Error())
	}
	return b.String()
}

// shownBySpreadsheets is what a machine says as a cell of a CSV file. A program
// that opens the file would calculate what begins like a formula, and that can
// fetch an address or start a program; behind an apostrophe it is text.
func shownBySpreadsheets(cell string) string {
	if cell != "" && strings.ContainsRune("=+-@\t\r＝＋－＠", []rune(cell)[0]) {
		return "'" + cell
	}
	return cell
}

// readUpload is readForm for a form that may hold a file, which takes the
// place of what was typed.
func (w *Web) readUpload(rw http.ResponseWriter, r *http.Request) bool {
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/form-data") {
		return readForm(rw, r)
	}
	r.Body = http.MaxBytesReader(rw, r.Body, MaxFormBytes)
	err := r.ParseMultipartForm(MaxFormBytes)
	var file []byte
	if err == nil {
		// All of a form that is read stays in memory: there is no file to remove.
		f, _, ferr := r.FormFile("csv_file")
		switch {
		case ferr == nil:
			defer f.Close()
			file, err = io.ReadAll(f)
		case !errors.Is(ferr, http.ErrMissingFile):
			err = ferr
		}
	}
	if err != nil {
		p := problem{Status: http.StatusBadRequest, Icon: "warning", Title: w.T("The form could not be read"), Text: w.T("Nothing was created."), Link: "/tasks/create?mode=many", LinkLabel: w.T("New task")}
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			p.Status, p.Text = http.StatusRequestEntityTooLarge, w.T("The file is larger than 1 MiB. Nothing was created; part it.")
		}
		w.showProblem(rw, r, p)
		return false
	}
	if len(file) > 0 {
		r.PostForm.Set("csv", string(file))
	}
	return true
}

func (w *Web) create(rw http.ResponseWriter, r *http.Request) {
	if !w.readUpload(rw, r) {
		return
	}
	p := r.PostForm
	v := createView{Form: createFormOf(p), Many: p.Get("mode") == "many", FormID: lpmos.Shorten(p.Get("form_id"), 64)}
	switch {
	case p.Get("step") == "edit":
		w.showCreate(rw, r, http.StatusOK, v)
	case v.Many && w.cfg.Batches != nil:
		w.createMany(rw, r, v)
	default:
		v.Many = false
		w.createOne(rw, r, v)
	}
}

func (w *Web) createOne(rw http.ResponseWriter, r *http.Request, v createView) {
	check := r.PostForm.Get("step") == "check"
	spec, shown, problems := w.readSpec(v.Form, check)
	if len(problems) == 0 && check {
		w.showSummary(rw, r, v, []csvLine{{Spec: shown}})
		return
	}
	if len(problems) == 0 {
		one := []lpmos.Spec{spec}
		if v.Problems = w.giveSecrets(r.PostForm, one); len(v.Problems) > 0 {
			w.showSummary(rw, r, v, []csvLine{{Spec: shown}})
			return
		}
		ctx, cancel := actionContext(r)
		defer cancel()
		// The form's id makes one task of a form that is sent twice.
		t, err := w.actions.Create(ctx, one[0], w.cfg.Person(r), v.FormID)
		if err == nil {
			http.Redirect(rw, r, "/tasks/"+t.ID, http.StatusSeeOther)
			return
		}
		invalid, ok := errors.AsType[*lpmos.InvalidError](err)
		conflict, isConflict := errors.AsType[*lpmos.ConflictError](err)
		switch {
		case ok && strings.HasPrefix(invalid.Field, "secrets."):
			v.Problems = []fieldProblem{{secretField + strings.TrimPrefix(invalid.Field, "secrets."), w.T("It %s.", w.Said(invalid.Problem))}}
			w.showSummary(rw, r, v, []csvLine{{Spec: shown}})
			return
		case ok:
			problems = append(problems, fieldProblem{createField(invalid.Field), w.sentence(w.invalid(invalid))})
		case isConflict:
			// The one thing that can be taken is the machine.
			problems = append(problems, fieldProblem{"target_mac", w.sentence(conflict.Error())})
		default:
			w.fail(rw, r, err)
			return
		}
		v.Problems, v.FormID = problems, ""
		w.showCreate(rw, r, map[bool]int{true: http.StatusConflict, false: http.StatusBadRequest}[isConflict], v)
		return
	}
	v.Problems, v.FormID = problems, ""
	w.showCreate(rw, r, http.StatusBadRequest, v)
}

// readSpec names every problem at once, in the order of the form. spec is what
// is asked for, shown the same with what its profile fills in. Looking ahead it
// also says what stands in the way now: a live task of the machine, hardware
// that the image does not fit. When the answer to a summary is sent twice, the
// first one's task would be in the way of the second, which is the same.
func (w *Web) readSpec(f createForm, ahead bool) (spec, shown lpmos.Spec, out []fieldProblem) {
	bad := func(field, text string) { out = append(out, fieldProblem{field, text}) }
	s := lpmos.Spec{RegionID: f.RegionID, Hostname: strings.TrimSpace(f.Hostname), Profile: f.Profile, Notes: strings.TrimSpace(strings.ReplaceAll(f.Notes, "\r\n", "\n"))}
	s.Addresses, s.Gateways = splitList(f.Addresses), splitList(f.Gateways)
	mac, err := lpmos.ParseMAC(strings.TrimSpace(f.TargetMAC))
	switch invalid, ok := errors.AsType[*lpmos.InvalidError](err); {
	case strings.TrimSpace(f.TargetMAC) == "":
		bad("target_mac", w.T("Give the MAC address of one of its network ports."))
	case ok:
		bad("target_mac", w.T("This is no address of a machine: it %s.", w.Said(invalid.Problem)))
	}
	s.TargetMAC = mac
	regions := w.reader.Regions()
	if f.RegionID == "" {
		bad("region_id", w.T("Choose the region the machine stands in."))
	} else if !slices.ContainsFunc(regions, func(r lpmos.Region) bool { return r.ID == f.RegionID }) {
		text := w.T("There is no region %s.", w.quote(lpmos.Shorten(f.RegionID, 40)))
		var ids []string
		for _, r := range regions {
			ids = append(ids, r.ID)
		}
		if like := nearest(f.RegionID, ids); like != "" {
			text = w.joined(text, w.T("Did you mean %s?", like))
		}
		bad("region_id", text)
	}
	switch image := strings.Split(f.Image, "/"); {
	case len(image) == 3:
		s.OSType, s.OSVersion, s.Arch = image[0], image[1], image[2]
	case f.Profile == "" || f.Image != "":
		bad("image", w.T("Choose what to install."))
	}
	if s.Hostname != "" && !lpmos.ValidHostname(s.Hostname) {
		text := w.T("A host name has lower-case letters, digits and inner hyphens.")
		if fixed := hostnameLike(s.Hostname); lpmos.ValidHostname(fixed) {
			text = w.joined(text, w.T("Use %s?", fixed))
		}
		bad("hostname", text)
	}
	var text string
	if s.SSHKeys, text = w.readKeys(f.SSHKeys, "\n"); text != "" {
		bad("ssh_keys", text)
	}
	shown = s
	if f.Profile != "" {
		p, ok := w.profileNamed(f.Profile)
		if !ok {
			bad("profile", w.T("There is no profile %s.", w.quote(lpmos.Shorten(f.Profile, 40))))
		} else {
			shown = p.Apply(s)
			if p.System.PerMachine() && len(s.Addresses) == 0 {
				bad("addresses", w.T("The profile %s leaves the address to each task: give it, with its prefix length.", p.Ref()))
			}
			if shown.OSType == "" && f.Image == "" {
				bad("image", w.T("The profile %s names no operating system. Choose what to install.", p.Ref()))
			}
		}
	}
	image, ok := findImage(w.reader.Images(), shown.OSType, shown.OSVersion, shown.Arch)
	if shown.OSType != "" && !ok {
		bad("image", w.T("There is no image %s in the catalogue.", lpmos.Shorten(shown.OSType+" "+shown.OSVersion+" "+cmp.Or(shown.Arch, "amd64"), 80)))
	}
	if len(out) > 0 {
		return s, shown, out
	}
	normal, err := shown.Normalize()
	if invalid, ok := errors.AsType[*lpmos.InvalidError](err); ok {
		bad(createField(invalid.Field), w.sentence(w.invalid(invalid)))
		return s, shown, out
	}
	if ahead {
		if k := w.known(mac); k != nil {
			switch why := w.unfit(image, k.Hardware); {
			case k.Live != "":
				bad("target_mac", w.T("This machine has the live task %s already: cancel it, or wait until it ends.", short(k.Live)))
			case why != "":
				bad("image", w.sentence(why))
			}
		}
	}
	if f.Profile == "" {
		s = normal
	}
	if shown.Hostname == "" && shown.HostnamePattern == "" {
		shown.Hostname = normal.Hostname
	}
	shown.Arch = normal.Arch
	return s, shown, out
}

func (w *Web) profileNamed(ref string) (lpmos.Profile, bool) {
	for _, p := range w.reader.Profiles() {
		if p.Name == ref || p.Ref() == ref {
			return p, true
		}
	}
	return lpmos.Profile{}, false
}

// readKeys reads public keys; text is what is wrong with the first that is
// none.
func (s *tongue) readKeys(keys, between string) (out []string, text string) {
	for i, line := range strings.Split(strings.ReplaceAll(keys, "\r\n", "\n"), between) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case lpmos.ValidSSHKey(line):
			out = append(out, line)
		case strings.Contains(line, "PRIVATE KEY"):
			return out, s.T("Line %s is of a private key. Give the public one, from the file that ends in .pub.", count(i+1))
		default:
			return out, s.T("Line %s is not one public key without options, such as: ssh-ed25519 AAAA… name.", count(i+1))
		}
	}
	return out, ""
}

func createField(field string) string {
	switch field {
	case "region_id", "target_mac", "hostname", "ssh_keys", "notes", "profile", "addresses", "gateways":
		return field
	case "mac":
		return "target_mac"
	case "os_type", "os_version", "arch", "image":
		return "image"
	}
	return "form"
}

// hostnameLike is what a person who typed s may have meant.
func hostnameLike(s string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		case r == '_' || r == ' ':
			return '-'
		}
		return -1
	}, strings.ToLower(s)), "-.")
}

// nearest is the one of names that differs from s in at most two letters, "" if
// none or several do.
func nearest(s string, names []string) string {
	best, at, tie := "", 3, false
	for _, n := range names {
		if d := distance(strings.ToLower(lpmos.Shorten(s, 40)), n); d < at {
			best, at, tie = n, d, false
		} else if d == at {
			tie = true
		}
	}
	if tie || best == "" || at >= len(best) {
		return ""
	}
	return best
}

// distance counts letters to add, drop or change (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
