package web

import (
	"errors"
	"net/http"
	"strings"

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

type imageRow struct {
	lpmos.Image
	Name  string
	Short string // of the digest
	Boots string
	Used  usedView
	Post  string
}

type imagesView struct {
	Images  []imageRow
	Command string
	Build   string
}

func (w *Web) images(rw http.ResponseWriter, r *http.Request) {
	rev := w.rev()
	v := imagesView{Command: "lpmos image list", Build: "lpmos image build debian-12"}
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
		row.Used = w.newUsed(w.reader.ImageUse(i.OS, i.Version, i.Arch))
		v.Images = append(v.Images, row)
	}
	w.show(rw, r, http.StatusOK, "images", page{Title: w.T("Images"), Nav: "images", Watch: "all", Rev: rev, Body: v})
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
