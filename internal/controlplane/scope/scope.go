// Package scope narrows what is read and what is done to whoever asks: to the
// regions they see, and to what their role may. REST and pages work with what
// For gives them and need not think of it.
//
// What is outside does not exist for who asks: an id of another region's task
// is as unknown as one that was never given out. Nothing here embeds what it
// narrows, so a method that is added there is not there until it was thought
// of here.
package scope

import (
	"context"
	"fmt"
	"slices"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/audit"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// Model is the read model, whole.
type Model interface {
	Ready() bool
	Rev() int64
	StoreID() string
	Task(id string) (lpmos.Task, bool)
	Status(id string) (lpmos.Status, bool)
	TaskRegion(id string) (region string, ok bool)
	Tasks(api.Query) api.Page
	Rows(ids []string) api.Page
	IDs(api.Query) (ids []string, total int)
	ValidCursor(cursor string, sort api.Sort) bool
	Estimate(id string) *api.ETA
	Trend(id string) []int64
	Pace() api.Pace
	PaceOf(regions []string) api.Pace
	Logs(id string) ([]string, bool)
	Counts() map[lpmos.Status]int
	RegionCounts(region string) map[lpmos.Status]int
	RegionLoad(id string) map[lpmos.Status]int
	Regions() []lpmos.Region
	Region(id string) (lpmos.Region, bool)
	Images() []lpmos.Image
	ImageRev(os, version, arch string) (lpmos.Image, int64, bool)
	ImageUse(os, version, arch string) api.Use
	Machines(api.MachineQuery) api.MachinePage
	Machine(mac lpmos.MAC) (lpmos.Machine, bool)
	Profiles() []lpmos.Profile
	Profile(name string) (lpmos.Profile, bool)
	ProfileUse(name string) api.Use
	Templates() []lpmos.Template
	Template(name string) (lpmos.Template, bool)
	TemplateUse(name string) api.Use
	Stopped() *lpmos.Stop
	Limits() lpmos.Limits
	ApprovalPolicy() lpmos.ApprovalPolicy
}

// Reader is the read model as one principal sees it.
type Reader struct {
	m Model
	p auth.Principal
}

// Read gives the read model as p sees it.
func Read(m Model, p auth.Principal) *Reader { return &Reader{m, p} }

func (r *Reader) all() bool { return r.p.Everywhere() }

func (r *Reader) sees(id string) bool {
	if r.all() {
		return true
	}
	region, ok := r.m.TaskRegion(id)
	return ok && r.p.Sees(region)
}

func (r *Reader) within() []string {
	if r.all() {
		return nil
	}
	return r.p.Within()
}

// Ready reports whether the read model is complete.
func (r *Reader) Ready() bool { return r.m.Ready() }

// Rev is the revision of the store that everything answered here includes.
func (r *Reader) Rev() int64 { return r.m.Rev() }

// StoreID names the store.
func (r *Reader) StoreID() string { return r.m.StoreID() }

// Task is one task, without what was seen of its machine in other regions.
func (r *Reader) Task(id string) (lpmos.Task, bool) {
	if !r.sees(id) {
		return lpmos.Task{}, false
	}
	t, ok := r.m.Task(id)
	if ok && t.Previous != nil && !r.p.Sees(t.Previous.RegionID) {
		t.Previous, t.Differences = nil, nil
	}
	return t, ok
}

// Status is where a task stands.
func (r *Reader) Status(id string) (lpmos.Status, bool) {
	if !r.sees(id) {
		return "", false
	}
	return r.m.Status(id)
}

// Tasks answers a query.
func (r *Reader) Tasks(q api.Query) api.Page {
	q.Within = r.within()
	return r.m.Tasks(q)
}

// Rows are tasks as a page shows them.
func (r *Reader) Rows(ids []string) api.Page {
	if !r.all() {
		ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !r.sees(id) })
	}
	return r.m.Rows(ids)
}

// IDs are the ids of what matches.
func (r *Reader) IDs(q api.Query) (ids []string, total int) {
	q.Within = r.within()
	return r.m.IDs(q)
}

// ValidCursor reports whether c is a cursor of this order.
func (r *Reader) ValidCursor(c string, sort api.Sort) bool { return r.m.ValidCursor(c, sort) }

// Estimate is what earlier runs say of a task.
func (r *Reader) Estimate(id string) *api.ETA {
	if !r.sees(id) {
		return nil
	}
	return r.m.Estimate(id)
}

// Trend is how fast a running install moved bytes.
func (r *Reader) Trend(id string) []int64 {
	if !r.sees(id) {
		return nil
	}
	return r.m.Trend(id)
}

// Pace is how many installs got done in what is seen.
func (r *Reader) Pace() api.Pace {
	if r.all() {
		return r.m.Pace()
	}
	return r.m.PaceOf(r.p.Within())
}

// Logs are the lines kept of a task's log.
func (r *Reader) Logs(id string) ([]string, bool) {
	if !r.sees(id) {
		return nil, false
	}
	return r.m.Logs(id)
}

// Counts is how many tasks are in each status.
func (r *Reader) Counts() map[lpmos.Status]int {
	if r.all() {
		return r.m.Counts()
	}
	return CountsOf(r.m, r.p.Within())
}

// CountsOf is how many tasks of some regions are in each status.
func CountsOf(m interface {
	RegionCounts(region string) map[lpmos.Status]int
}, regions []string) map[lpmos.Status]int {
	out := map[lpmos.Status]int{}
	for i, region := range regions {
		if slices.Contains(regions[:i], region) {
			continue
		}
		for s, n := range m.RegionCounts(region) {
			out[s] += n
		}
	}
	return out
}

// RegionCounts is how many tasks of a region are in each status.
func (r *Reader) RegionCounts(region string) map[lpmos.Status]int {
	if !r.p.Sees(region) {
		return map[lpmos.Status]int{}
	}
	return r.m.RegionCounts(region)
}

// RegionLoad is RegionCounts.
func (r *Reader) RegionLoad(region string) map[lpmos.Status]int {
	if !r.p.Sees(region) {
		return map[lpmos.Status]int{}
	}
	return r.m.RegionLoad(region)
}

// Regions are those that are seen, by id.
func (r *Reader) Regions() []lpmos.Region {
	all := r.m.Regions()
	if r.all() {
		return all
	}
	return slices.DeleteFunc(all, func(one lpmos.Region) bool { return !r.p.Sees(one.ID) })
}

// Region looks one up.
func (r *Reader) Region(id string) (lpmos.Region, bool) {
	if !r.p.Sees(id) {
		return lpmos.Region{}, false
	}
	return r.m.Region(id)
}

// Machines answers a query.
func (r *Reader) Machines(q api.MachineQuery) api.MachinePage {
	q.Within = r.within()
	return r.m.Machines(q)
}

// Machine is one machine, with what happened to it in regions that are seen.
func (r *Reader) Machine(mac lpmos.MAC) (lpmos.Machine, bool) {
	m, ok := r.m.Machine(mac)
	if !ok || r.all() {
		return m, ok
	}
	if !r.p.Sees(m.RegionID) {
		return lpmos.Machine{}, false
	}
	m.Tasks = slices.DeleteFunc(slices.Clone(m.Tasks), func(t lpmos.MachineTask) bool { return !r.sees(t.TaskID) })
	m.TaskCount = len(m.Tasks)
	if m.Previous != nil && !r.p.Sees(m.Previous.RegionID) {
		m.Previous, m.Differences = nil, nil
	}
	return m, true
}

// What follows belongs to no region: the catalogue, profiles and templates are
// the same for all who are signed in.

func (r *Reader) catalogue() bool { return r.p.May(auth.See) == nil }

// Images is the catalogue.
func (r *Reader) Images() []lpmos.Image {
	if !r.catalogue() {
		return nil
	}
	return r.m.Images()
}

// ImageRev looks one up, with its revision.
func (r *Reader) ImageRev(os, version, arch string) (i lpmos.Image, rev int64, ok bool) {
	if !r.catalogue() {
		return i, 0, false
	}
	return r.m.ImageRev(os, version, arch)
}

// Profiles are all, by name.
func (r *Reader) Profiles() []lpmos.Profile {
	if !r.catalogue() {
		return nil
	}
	return r.m.Profiles()
}

// Profile looks one up.
func (r *Reader) Profile(name string) (p lpmos.Profile, ok bool) {
	if !r.catalogue() {
		return p, false
	}
	return r.m.Profile(name)
}

// Templates are all, by name.
func (r *Reader) Templates() []lpmos.Template {
	if !r.catalogue() {
		return nil
	}
	return r.m.Templates()
}

// Template looks one up.
func (r *Reader) Template(name string) (t lpmos.Template, ok bool) {
	if !r.catalogue() {
		return t, false
	}
	return r.m.Template(name)
}

// used is a use without what other regions do: their number would tell.
func (r *Reader) used(u api.Use) api.Use {
	if r.all() {
		return u
	}
	u.Live = slices.DeleteFunc(slices.Clone(u.Live), func(id string) bool { return !r.sees(id) })
	u.Tasks = len(u.Live)
	return u
}

// ImageUse is who uses an image.
func (r *Reader) ImageUse(os, version, arch string) api.Use {
	return r.used(r.m.ImageUse(os, version, arch))
}

// ProfileUse is who uses a profile.
func (r *Reader) ProfileUse(name string) api.Use { return r.used(r.m.ProfileUse(name)) }

// TemplateUse is who uses a template.
func (r *Reader) TemplateUse(name string) api.Use { return r.used(r.m.TemplateUse(name)) }

func unknown(id string) error {
	return fmt.Errorf("task %s: %w", lpmos.Shorten(id, 64), lpmos.ErrNotFound)
}

// History is what the store keeps of tasks.
type History interface {
	Events(ctx context.Context, id string) ([]lpmos.Event, error)
	audit.Log
}

// Past is a History as one principal sees it.
type Past struct {
	r *Reader
	h History
}

// Remember gives a history as p sees it.
func Remember(m Model, h History, p auth.Principal) *Past { return &Past{Read(m, p), h} }

// Events are what happened to a task.
func (p *Past) Events(ctx context.Context, id string) ([]lpmos.Event, error) {
	if !p.r.sees(id) {
		return nil, unknown(id)
	}
	return p.h.Events(ctx, id)
}

// May is what the principal may do.
func (p *Past) May(need auth.Permission) error { return p.r.p.May(need) }

// Logs is Reader.Logs with an error for a task that is not there.
func (p *Past) Logs(_ context.Context, id string) ([]string, error) {
	lines, ok := p.r.Logs(id)
	if !ok {
		return nil, unknown(id)
	}
	return lines, nil
}

// Audit is what administrators did, for who sees all regions.
func (p *Past) Audit(ctx context.Context, q api.AuditQuery) (api.AuditPage, error) {
	if err := p.May(auth.Review); err != nil {
		return api.AuditPage{}, err
	}
	return audit.Page(ctx, p.h, q)
}

// AuditEntry is one entry of it.
func (p *Past) AuditEntry(ctx context.Context, seq int64) (lpmos.AuditEntry, error) {
	if err := p.May(auth.Review); err != nil {
		return lpmos.AuditEntry{}, err
	}
	return p.h.AuditEntry(ctx, seq)
}

// ExportAudit is all of it and the history of every task, as an
// lpmos.AuditVerifier reads it.
func (p *Past) ExportAudit(ctx context.Context, yield func(lpmos.AuditRecord) error) error {
	if err := p.May(auth.Review); err != nil {
		return err
	}
	return p.h.ExportAudit(ctx, yield)
}
