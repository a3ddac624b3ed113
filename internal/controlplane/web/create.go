package web

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/lpmos/lpmos"
)

type createView struct {
	Form     createForm
	Regions  []regionView
	Images   []lpmos.Image
	Problems []fieldProblem
	FormID   string // the same for a form that is sent twice
	Command  string
}

// createForm is what was typed, kept as it was.
type createForm struct{ RegionID, TargetMAC, Image, Hostname, SSHKeys, Notes string }

func (v createView) Problem(field string) string { return problemsOf(v.Problems).Of(field) }

func (w *Web) createForm(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f := createForm{RegionID: q.Get("region_id"), TargetMAC: q.Get("target_mac"), Image: q.Get("image"), Hostname: q.Get("hostname")}
	w.showCreate(rw, r, http.StatusOK, createView{Form: f, FormID: rand.Text()})
}

func (w *Web) showCreate(rw http.ResponseWriter, r *http.Request, status int, v createView) {
	for _, reg := range w.reader.Regions() {
		v.Regions = append(v.Regions, w.newRegion(reg))
	}
	v.Images = w.reader.Images()
	if len(v.Regions) == 1 && v.Form.RegionID == "" {
		v.Form.RegionID = v.Regions[0].ID
	}
	v.Command = commandCreate("REGION", "00:1a:2b:3c:4d:5e", "debian", "12")
	if len(v.Regions) > 0 && len(v.Images) > 0 {
		v.Command = commandCreate(v.Regions[0].ID, "00:1a:2b:3c:4d:5e", v.Images[0].OS, v.Images[0].Version)
	}
	w.show(rw, r, status, "create", page{Title: "New task", Nav: "tasks", Body: v})
}

func (w *Web) create(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	p := r.PostForm
	f := createForm{p.Get("region_id"), p.Get("target_mac"), p.Get("image"), p.Get("hostname"), p.Get("ssh_keys"), p.Get("notes")}
	spec, problems := w.readSpec(f)
	if len(problems) == 0 {
		ctx, cancel := actionContext(r)
		defer cancel()
		// The form's id makes one task of a form that is sent twice.
		t, err := w.actions.Create(ctx, spec, w.cfg.Person(r), p.Get("form_id"))
		if err == nil {
			http.Redirect(rw, r, "/tasks/"+t.ID, http.StatusSeeOther)
			return
		}
		invalid, ok := errors.AsType[*lpmos.InvalidError](err)
		conflict, isConflict := errors.AsType[*lpmos.ConflictError](err)
		switch {
		case ok:
			problems = append(problems, fieldProblem{createField(invalid.Field), sentence(invalid.Error())})
		case isConflict:
			// The one thing that can be taken is the machine.
			problems = append(problems, fieldProblem{"target_mac", sentence(conflict.Error())})
		default:
			w.fail(rw, r, err)
			return
		}
		w.showCreate(rw, r, map[bool]int{true: http.StatusConflict, false: http.StatusBadRequest}[isConflict], createView{Form: f, Problems: problems, FormID: rand.Text()})
		return
	}
	w.showCreate(rw, r, http.StatusBadRequest, createView{Form: f, Problems: problems, FormID: rand.Text()})
}

// readSpec names every problem at once, in the order of the form.
func (w *Web) readSpec(f createForm) (lpmos.Spec, []fieldProblem) {
	var out []fieldProblem
	bad := func(field, format string, args ...any) {
		out = append(out, fieldProblem{field, fmt.Sprintf(format, args...)})
	}
	s := lpmos.Spec{RegionID: f.RegionID, Hostname: strings.TrimSpace(f.Hostname), Notes: strings.TrimSpace(strings.ReplaceAll(f.Notes, "\r\n", "\n"))}
	mac, err := lpmos.ParseMAC(strings.TrimSpace(f.TargetMAC))
	switch invalid, ok := errors.AsType[*lpmos.InvalidError](err); {
	case strings.TrimSpace(f.TargetMAC) == "":
		bad("target_mac", "Give the MAC address of one of its network ports.")
	case ok:
		bad("target_mac", "This address %s.", invalid.Problem)
	}
	s.TargetMAC = mac
	if f.RegionID == "" {
		bad("region_id", "Choose the region the machine stands in.")
	} else if !lpmos.ValidRegionID(f.RegionID) {
		bad("region_id", "There is no such region.")
	}
	image := strings.Split(f.Image, "/")
	if len(image) == 3 {
		s.OSType, s.OSVersion, s.Arch = image[0], image[1], image[2]
	} else {
		bad("image", "Choose what to install.")
	}
	if s.Hostname != "" && !lpmos.ValidHostname(s.Hostname) {
		if fixed := hostnameLike(s.Hostname); lpmos.ValidHostname(fixed) {
			bad("hostname", "A host name has lower-case letters, digits and inner hyphens. Use %s?", fixed)
		} else {
			bad("hostname", "A host name has lower-case letters, digits and inner hyphens.")
		}
	}
	for i, line := range strings.Split(f.SSHKeys, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !lpmos.ValidSSHKey(line) {
			if strings.Contains(line, "PRIVATE KEY") {
				bad("ssh_keys", "Line %d is of a private key. Give the public one, from the file that ends in .pub.", i+1)
				break
			}
			bad("ssh_keys", "Line %d is not one public key without options, such as: ssh-ed25519 AAAA… name.", i+1)
			break
		}
		s.SSHKeys = append(s.SSHKeys, line)
	}
	if len(out) > 0 {
		return s, out
	}
	s, err = s.Normalize()
	if invalid, ok := errors.AsType[*lpmos.InvalidError](err); ok {
		bad(createField(invalid.Field), "%s", sentence(invalid.Error()))
	}
	return s, out
}

func createField(field string) string {
	switch field {
	case "region_id", "target_mac", "hostname", "ssh_keys", "notes":
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
