package rest

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// usedBy is who uses a profile or template, beside it.
type usedBy struct {
	Tasks    int      `json:"tasks"`
	Live     []string `json:"live_tasks"`
	Profiles []string `json:"profiles,omitempty"`
}

func newUsedBy(u api.Use) *usedBy { return &usedBy{u.Tasks, list(u.Live), u.Profiles} }

type profileAnswer struct {
	lpmos.Profile
	UsedBy *usedBy `json:"used_by,omitempty"`
}

// newProfileAnswer is a profile without what only the control plane can open.
func newProfileAnswer(p lpmos.Profile, u *usedBy) profileAnswer {
	p.Sealed = ""
	return profileAnswer{p, u}
}

type templateAnswer struct {
	lpmos.Template
	UsedBy *usedBy `json:"used_by,omitempty"`
}

// etag is a version as a validator.
func etag(version int) string { return `"` + strconv.Itoa(version) + `"` }

// based is the version a change is based on: If-Match, or what the body says.
// A change that comes too late is 412 for the former and 409 for the latter.
func based(c *gin.Context, body int) (version int, conditional bool, err error) {
	h := c.GetHeader("If-Match")
	if h == "" {
		return body, false, nil
	}
	text := strings.Trim(h, `"`)
	if version, err = strconv.Atoi(text); err != nil || version < 1 || h != etag(version) {
		return 0, true, &lpmos.InvalidError{Field: "If-Match", Problem: `is not the ETag of a version, such as "3"`, Value: h}
	}
	return version, true, nil
}

func (a *API) stored(c *gin.Context, version int, location string, answer any, conditional bool, err error) {
	switch {
	case err != nil && conditional && errors.Is(err, lpmos.ErrConflict):
		a.problem(c, http.StatusPreconditionFailed, "It was changed meanwhile", err.Error())
		return
	case err != nil:
		a.fail(c, err)
		return
	}
	c.Header("ETag", etag(version))
	if version == 1 {
		c.Header("Location", location)
		c.JSON(http.StatusCreated, answer)
		return
	}
	c.JSON(http.StatusOK, answer)
}

// name is the name a path gives, or answers.
func (a *API) name(c *gin.Context, body string) (string, bool) {
	name := c.Param("name")
	switch {
	case !lpmos.ValidName(name):
		a.fail(c, &lpmos.InvalidError{Field: "name", Problem: "is not a name", Value: name})
		return "", false
	case body != "" && body != name:
		a.fail(c, &lpmos.InvalidError{Field: "name", Problem: "is not that of the path", Value: body})
		return "", false
	}
	return name, true
}

func (a *API) listProfiles(c *gin.Context) {
	out := []profileAnswer{}
	for _, p := range a.read.Profiles() {
		out = append(out, newProfileAnswer(p, newUsedBy(a.read.ProfileUse(p.Name))))
	}
	c.JSON(http.StatusOK, struct {
		Profiles []profileAnswer `json:"profiles"`
	}{out})
}

func (a *API) getProfile(c *gin.Context) {
	name, ok := a.name(c, "")
	if !ok {
		return
	}
	p, ok := a.read.Profile(name)
	if !ok {
		a.fail(c, fmt.Errorf("profile %s: %w", name, lpmos.ErrNotFound))
		return
	}
	c.Header("ETag", etag(p.Version))
	c.JSON(http.StatusOK, newProfileAnswer(p, newUsedBy(a.read.ProfileUse(name))))
}

func (a *API) putProfile(c *gin.Context) {
	var body profileAnswer // so that what was read can be sent back with a change
	if !a.decode(c, &body) {
		return
	}
	p := body.Profile
	name, ok := a.name(c, p.Name)
	if !ok {
		return
	}
	version, conditional, err := based(c, p.Version)
	if err != nil {
		a.fail(c, err)
		return
	}
	p.Name = name
	p, err = a.act.PutProfile(c.Request.Context(), p, version, who(c))
	a.stored(c, p.Version, "/api/v1/profiles/"+name, newProfileAnswer(p, nil), conditional, err)
}

func (a *API) deleteProfile(c *gin.Context) {
	a.deleteNamed(c, func(name string, version int) error {
		return a.act.DeleteProfile(c.Request.Context(), name, version, who(c))
	})
}

func (a *API) deleteNamed(c *gin.Context, remove func(name string, version int) error) {
	name, ok := a.name(c, "")
	if !ok {
		return
	}
	version, conditional, err := based(c, 0)
	if err != nil {
		a.fail(c, err)
		return
	}
	err = remove(name, version)
	var used *lpmos.ConflictError // what is in use is no matter of versions
	switch {
	case err != nil && conditional && errors.Is(err, lpmos.ErrConflict) && !errors.As(err, &used):
		a.problem(c, http.StatusPreconditionFailed, "It was changed meanwhile", err.Error())
	case err != nil:
		a.fail(c, err)
	default:
		c.Status(http.StatusNoContent)
	}
}

func (a *API) listTemplates(c *gin.Context) {
	out := []templateAnswer{}
	for _, t := range a.read.Templates() {
		out = append(out, templateAnswer{t, newUsedBy(a.read.TemplateUse(t.Name))})
	}
	c.JSON(http.StatusOK, struct {
		Templates []templateAnswer `json:"templates"`
	}{out})
}

func (a *API) getTemplate(c *gin.Context) {
	name, ok := a.name(c, "")
	if !ok {
		return
	}
	t, ok := a.read.Template(name)
	if !ok {
		a.fail(c, fmt.Errorf("template %s: %w", name, lpmos.ErrNotFound))
		return
	}
	c.Header("ETag", etag(t.Version))
	c.JSON(http.StatusOK, templateAnswer{t, newUsedBy(a.read.TemplateUse(name))})
}

func (a *API) putTemplate(c *gin.Context) {
	var body templateAnswer
	if !a.decode(c, &body) {
		return
	}
	t := body.Template
	name, ok := a.name(c, t.Name)
	if !ok {
		return
	}
	version, conditional, err := based(c, t.Version)
	if err != nil {
		a.fail(c, err)
		return
	}
	t.Name = name
	t, err = a.act.PutTemplate(c.Request.Context(), t, version, who(c))
	a.stored(c, t.Version, "/api/v1/templates/"+name, templateAnswer{t, nil}, conditional, err)
}

func (a *API) deleteTemplate(c *gin.Context) {
	a.deleteNamed(c, func(name string, version int) error {
		return a.act.DeleteTemplate(c.Request.Context(), name, version, who(c))
	})
}

type previewRequest struct {
	TaskID string `json:"task_id,omitempty"`
}

type previewAnswer struct {
	Template string `json:"template"`
	Version  int    `json:"version"`
	Kind     string `json:"kind"`
	Text     string `json:"text"`
}

// previewTemplate renders the newest version for a task, or for a sample.
func (a *API) previewTemplate(c *gin.Context) {
	var req previewRequest
	if c.Request.ContentLength != 0 && !a.decode(c, &req) {
		return
	}
	name, ok := a.name(c, "")
	if !ok {
		return
	}
	t, ok := a.read.Template(name)
	if !ok {
		a.fail(c, fmt.Errorf("template %s: %w", name, lpmos.ErrNotFound))
		return
	}
	text, err := a.act.Preview(name, req.TaskID)
	if err != nil {
		a.fail(c, err)
		return
	}
	c.JSON(http.StatusOK, previewAnswer{t.Name, t.Version, t.Kind, text})
}
