package web

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

func machinesOf(region string) api.MachineQuery { return api.MachineQuery{RegionID: region, Limit: 1} }

// usedView is who uses an image, a profile or a template, in words.
type usedView struct {
	Tasks    int
	Live     int
	Profiles []string
	Why      string // it cannot be deleted; "" when it can
}

func (w *Web) newUsed(u api.Use) usedView {
	v := usedView{Tasks: u.Tasks, Live: len(u.Live), Profiles: u.Profiles}
	switch {
	case v.Live > 0:
		v.Why = w.N(v.Live, "Not now: 1 live task uses it.", "Not now: %s live tasks use it.")
	case len(u.Profiles) > 0:
		v.Why = w.T("Not now: used by %s.", w.list(u.Profiles))
	}
	return v
}

// found is one thing that was looked at inside an image.
type found struct {
	Icon, Kind, Text string
	At               time.Time // when it was tried; zero for what stands in it
	Why              string    // of a trial that failed
}

type imageRow struct {
	lpmos.Image
	Kind     string // in words; shadows the method
	Found    []found
	Summary  string // of Found
	Worth    string // "warning" or "good"
	Tried    []found
	Verified string
	Name     string
	Short    string // of the digest
	Boots    string
	Used     usedView
	Post     string
}

type imagesView struct {
	Images  []imageRow
	Command string
	Build   string
	Import  string
}

func (w *Web) images(rw http.ResponseWriter, r *http.Request) {
	rev := w.rev()
	v := imagesView{Command: "lpmos image list", Build: "lpmos image build debian-12", Import: "lpmos image import --known ubuntu/24.04"}
	for _, i := range w.reader.Images() {
		row := imageRow{Image: i, Name: i.Title, Short: lpmos.Prefix(strings.TrimPrefix(i.Digest, "sha256:"), 12), Post: "/images/" + i.Name() + "/delete"}
		if row.Name == "" {
			row.Name = i.OS + " " + i.Version
		}
		var boots []string
		for _, mode := range i.BootModes {
			boots = append(boots, strings.ToUpper(mode))
		}
		row.Boots = w.list(boots)
		w.describe(&row)
		row.Used = w.newUsed(w.reader.ImageUse(i.OS, i.Version, i.Arch))
		v.Images = append(v.Images, row)
	}
	w.show(rw, r, http.StatusOK, "images", page{Title: w.T("Images"), Nav: "images", Watch: "all", Rev: rev, Body: v})
}

// describe adds what is known of an image's inside, origin and trials.
func (w *Web) describe(row *imageRow) {
	i := row.Image
	switch i.Kind() {
	case lpmos.FormatDisk:
		row.Kind = w.T("whole disk with its own loader")
	case lpmos.FormatTar:
		row.Kind = w.T("root filesystem for declared layouts")
	case lpmos.FormatInstaller:
		row.Kind = w.T("the distribution’s own installer (%s)", i.Installer.Answers)
	default:
		row.Kind = w.T("root filesystem")
	}
	if p := i.Preflight; p != nil {
		row.Worth, row.Summary = "good", w.T("no problem found")
		doubts := 0
		for _, c := range p.Checks {
			f := found{Icon: "approve", Kind: "good", Text: w.Said(c.Text)}
			switch c.Result {
			case lpmos.CheckProblem:
				f.Icon, f.Kind = "reject", "bad"
				doubts++
			case lpmos.CheckWarning, lpmos.CheckUnknown:
				f.Icon, f.Kind = "warning", "warning"
				doubts++
			}
			row.Found = append(row.Found, f)
		}
		if doubts > 0 {
			row.Worth, row.Summary = "warning", w.N(doubts, "1 warning", "%s warnings")
		}
	}
	for _, firmware := range []string{"bios", "uefi", "uefi-secure-boot"} {
		name := strings.ToUpper(firmware)
		if firmware == "uefi-secure-boot" {
			name = w.T("Secure Boot")
		}
		if b, ok := i.Badge(firmware); ok && b.Passed {
			row.Tried = append(row.Tried, found{Icon: "approve", Kind: "good", Text: w.T("booted by %s", name), At: b.At})
		} else if ok {
			why := w.Said(b.Text)
			if cause, console, ok := strings.Cut(b.Text, "; its console says: "); ok {
				why = w.T("%s; its console says: %s", w.Said(cause), console)
			}
			row.Tried = append(row.Tried, found{Icon: "reject", Kind: "bad", Text: w.T("did not boot by %s", name), At: b.At, Why: why})
		}
	}
	if s := i.Source; s != nil {
		switch {
		case s.Signer != "":
			row.Verified = w.T("verified: signed by %s", s.Signer)
		case s.Checksum != "":
			row.Verified = w.T("verified by a checksum")
		default:
			row.Verified = w.T("not verified when it was imported")
		}
	}
}

func (w *Web) deleteImage(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	ctx, cancel := actionContext(r)
	defer cancel()
	err := w.actions.DeleteImage(ctx, r.PathValue("os"), r.PathValue("version"), r.PathValue("arch"), -1, w.cfg.Person(r))
	w.gone(rw, r, err, "/images", w.T("All images"))
}

// gone goes back to a list after something of it was deleted. What somebody
// else had deleted is no error.
func (w *Web) gone(rw http.ResponseWriter, r *http.Request, err error, list, label string) {
	switch {
	case err == nil, errors.Is(err, lpmos.ErrNotFound):
		http.Redirect(rw, r, list, http.StatusSeeOther)
	case errors.Is(err, lpmos.ErrConflict):
		w.showProblem(rw, r, problem{Status: http.StatusConflict, Icon: "info", Title: w.T("It was not deleted"), Text: w.Said(sentence(err.Error())), Link: list, LinkLabel: label})
	default:
		w.fail(rw, r, err)
	}
}
