package orchestrator

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

// Resolve fills what a spec leaves to its profile, and finds its template. The
// host name is made of what is known of the machine; where that is not enough,
// the pattern stays and decides when the machine reports. Everything that
// Create would refuse, but for a machine that is taken, is refused here.
func (o *Orchestrator) Resolve(spec lpmos.Spec) (lpmos.Spec, error) {
	var setup *lpmos.Setup
	if spec.Profile != "" {
		p, err := o.profile(spec.Profile)
		if err != nil {
			return spec, err
		}
		spec, setup = p.Apply(spec), p.System
	}
	said := spec.Hostname != ""
	spec, err := spec.Normalize()
	if err != nil {
		return spec, err
	}
	if _, ok := o.read.Region(spec.RegionID); !ok {
		var known []string
		for _, r := range o.read.Regions() {
			known = append(known, r.ID)
		}
		return spec, &lpmos.InvalidError{Field: "region_id", Problem: "is not a region that ever registered" + among(known), Value: spec.RegionID}
	}
	image, err := o.image(spec.OSType, spec.OSVersion, spec.Arch)
	if err != nil {
		return spec, err
	}
	if setup.PerMachine() && len(spec.Addresses) == 0 {
		return spec, &lpmos.InvalidError{Field: "addresses", Problem: "are missing: the profile " + spec.Profile + " leaves them to each task, such as 192.0.2.10/24"}
	}
	if setup != nil && len(setup.Packages) > 0 && !image.InstallsPackages() {
		return spec, &lpmos.InvalidError{Field: "profile", Problem: "installs packages by cloud-init, which the image " + image.Name() + " does not have", Value: spec.Profile}
	}
	if spec.Template != "" {
		t, err := o.template(spec.Template)
		if err != nil {
			return spec, err
		}
		if why := image.RefusesTemplate(t.Kind); why != "" {
			return spec, &lpmos.InvalidError{Field: "template", Problem: why, Value: spec.Template}
		}
		spec.Template = t.Ref()
	}
	if spec.HostnamePattern != "" && !said {
		m, _ := o.read.Machine(spec.TargetMAC)
		if name, err := lpmos.ExpandHostname(spec.HostnamePattern, lpmos.FactsOf(&lpmos.Task{Spec: spec}, m.Hardware)); err == nil {
			spec.Hostname = name
		}
	}
	return spec, nil
}

// SignImage signs an entry of the catalogue. It is for who registered it: what
// somebody else wrote to the store has no signature and is not installed.
func (o *Orchestrator) SignImage(i *lpmos.Image) { i.Sign(o.cfg.Key) }

// trust says why an entry must not be installed, or nil.
func (o *Orchestrator) trust(i *lpmos.Image) error {
	return i.Verify([]ed25519.PublicKey{o.cfg.Key.Public().(ed25519.PublicKey)})
}

func (o *Orchestrator) image(os, version, arch string) (lpmos.Image, error) {
	i, ok := o.read.Image(os, version, arch)
	if ok {
		if err := o.trust(&i); err != nil {
			return i, &lpmos.InvalidError{Field: "os_type", Problem: "names an image whose entry in the catalogue is not signed by this control plane: build or import it again", Value: i.Name()}
		}
		if p := i.Preflight.Problems(); len(p) > 0 {
			return i, &lpmos.InvalidError{Field: "os_type", Problem: "names an image that cannot be installed: " + p[0], Value: i.Name()}
		}
		return i, nil
	}
	var known []string
	for _, i := range o.read.Images() {
		known = append(known, i.Name())
	}
	return i, &lpmos.InvalidError{Field: "os_type", Problem: "and os_version name no image in the catalogue" + among(known), Value: os + "/" + version + "/" + arch}
}

func (o *Orchestrator) profile(ref string) (lpmos.Profile, error) {
	name, version, err := lpmos.ParseRef("profile", ref)
	if err != nil {
		return lpmos.Profile{}, err
	}
	p, ok := o.read.Profile(name)
	if !ok {
		var known []string
		for _, p := range o.read.Profiles() {
			known = append(known, p.Name)
		}
		return p, &lpmos.InvalidError{Field: "profile", Problem: "does not exist" + among(known), Value: name}
	}
	if version != 0 && version != p.Version {
		return p, &lpmos.ConflictError{Problem: fmt.Sprintf("the profile %s is at version %d, not %d: look at it again", name, p.Version, version)}
	}
	return p, nil
}

func (o *Orchestrator) template(ref string) (lpmos.Template, error) {
	name, version, err := lpmos.ParseRef("template", ref)
	if err != nil {
		return lpmos.Template{}, err
	}
	t, ok := o.read.Template(name)
	if !ok {
		var known []string
		for _, t := range o.read.Templates() {
			known = append(known, t.Name)
		}
		return t, &lpmos.InvalidError{Field: "template", Problem: "does not exist" + among(known), Value: name}
	}
	if version != 0 && version != t.Version {
		return t, &lpmos.ConflictError{Problem: fmt.Sprintf("the template %s is at version %d, not %d: look at it again", name, t.Version, version)}
	}
	return t, nil
}

// PutProfile checks and stores the version after based; 0 makes a new profile.
// A change that is based on another version than the newest is an
// lpmos.ErrConflict.
func (o *Orchestrator) PutProfile(ctx context.Context, p lpmos.Profile, based int, by string) (lpmos.Profile, error) {
	p, err := p.Normalize()
	if err != nil {
		return p, err
	}
	var image lpmos.Image
	if p.OSType != "" {
		if image, err = o.image(p.OSType, p.OSVersion, p.Arch); err != nil {
			return p, err
		}
	}
	if p.Template != "" {
		t, err := o.template(p.Template)
		if err != nil {
			return p, err
		}
		if why := image.RefusesTemplate(t.Kind); p.OSType != "" && why != "" {
			return p, &lpmos.InvalidError{Field: "template", Problem: why, Value: p.Template}
		}
	}
	if p, err = o.sealPasswords(p, based); err != nil {
		return p, err
	}
	p.UpdatedBy = by
	p, err = o.put.PutProfile(ctx, p, based)
	if err == nil {
		o.log.Info("profile stored", "profile", p.Ref(), "by", by)
	}
	return p, err
}

// sealPasswords takes the password hashes out of a profile and seals them. An
// account that has a password and says none keeps what it had in the version
// that the change is based on.
func (o *Orchestrator) sealPasswords(p lpmos.Profile, based int) (lpmos.Profile, error) {
	was, _ := o.read.Profile(p.Name)
	keeps := p.System != nil && slices.ContainsFunc(p.System.Users, func(u lpmos.Account) bool { return u.Password && u.PasswordHash.IsZero() })
	if keeps && was.Version != based {
		return p, &store.VersionError{What: "profile " + p.Name, Based: based, Version: was.Version}
	}
	kept, err := o.passwords(was)
	if err != nil {
		return p, err
	}
	p, hashes, err := p.TakePasswords(kept)
	p.Sealed = ""
	if err != nil || len(hashes) == 0 {
		return p, err
	}
	set, err := lpmos.NewSecretSet(hashes)
	if err != nil {
		return p, err
	}
	if o.vault == nil {
		return p, errNoVault
	}
	p.Sealed = o.vault.SealProfile(p.Name, set)
	return p, nil
}

// passwords are the password hashes of a profile, by the names of their secrets.
func (o *Orchestrator) passwords(p lpmos.Profile) (map[string]lpmos.Secret, error) {
	if p.Sealed == "" {
		return nil, nil
	}
	if o.vault == nil {
		return nil, errNoVault
	}
	return o.vault.OpenProfile(p.Name, p.Sealed)
}

// PutTemplate is PutProfile for templates.
func (o *Orchestrator) PutTemplate(ctx context.Context, t lpmos.Template, based int, by string) (lpmos.Template, error) {
	t, err := t.Normalize()
	if err != nil {
		return t, err
	}
	t.UpdatedBy = by
	t, err = o.put.PutTemplate(ctx, t, based)
	if err == nil {
		o.log.Info("template stored", "template", t.Ref(), "by", by)
	}
	return t, err
}

// DeleteProfile removes a profile that no live task was made from. based is the
// version that was looked at, 0 for any.
func (o *Orchestrator) DeleteProfile(ctx context.Context, name string, based int, by string) error {
	if err := inUse("the profile "+name, o.read.ProfileUse(name)); err != nil {
		return err
	}
	rev, err := o.put.DeleteProfile(ctx, name, based)
	if err == nil {
		o.read.Reach(ctx, rev)
		o.log.Info("profile deleted", "profile", name, "by", by)
	}
	return err
}

// DeleteTemplate removes a template that no live task and no profile names.
func (o *Orchestrator) DeleteTemplate(ctx context.Context, name string, based int, by string) error {
	if err := inUse("the template "+name, o.read.TemplateUse(name)); err != nil {
		return err
	}
	rev, err := o.put.DeleteTemplate(ctx, name, based)
	if err == nil {
		o.read.Reach(ctx, rev)
		o.log.Info("template deleted", "template", name, "by", by)
	}
	return err
}

// DeleteImage takes an image out of the catalogue that no live task and no
// profile installs, if rev wrote the entry; -1 stands for any. Its blobs stay.
func (o *Orchestrator) DeleteImage(ctx context.Context, os, version, arch string, rev int64, by string) error {
	name := os + "/" + version + "/" + arch
	if err := inUse("the image "+name, o.read.ImageUse(os, version, arch)); err != nil {
		return err
	}
	gone, err := o.put.DeleteImageIf(ctx, os, version, arch, rev)
	if err == nil {
		o.read.Reach(ctx, gone)
		o.log.Info("image deleted", "image", name, "by", by)
	}
	return err
}

func inUse(what string, u api.Use) error {
	switch {
	case len(u.Live) == 1:
		return &lpmos.ConflictError{Problem: what + " is used by live task " + u.Live[0] + ": wait until it ends, or cancel it"}
	case len(u.Live) > 1:
		return &lpmos.ConflictError{Problem: fmt.Sprintf("%s is used by %d live tasks, %s among them: wait until they end, or cancel them", what, len(u.Live), u.Live[0])}
	case len(u.Profiles) > 0:
		return &lpmos.ConflictError{Problem: what + " is used by the profiles " + strings.Join(u.Profiles, ", ") + ": change those first"}
	}
	return nil
}

// Preview renders a template for a task, or for a sample machine with "" as
// the task.
func (o *Orchestrator) Preview(name, taskID string) (string, error) {
	t, ok := o.read.Template(name)
	if !ok {
		return "", fmt.Errorf("template %s: %w", lpmos.Shorten(name, 80), lpmos.ErrNotFound)
	}
	facts := lpmos.SampleFacts()
	if taskID != "" {
		if !lpmos.ValidTaskID(taskID) {
			return "", &lpmos.InvalidError{Field: "task_id", Problem: "is not a task id", Value: taskID}
		}
		task, ok := o.read.Task(taskID)
		if !ok {
			return "", &lpmos.InvalidError{Field: "task_id", Problem: "is not of a task that exists", Value: taskID}
		}
		m, _ := o.read.Machine(task.TargetMAC)
		facts = lpmos.FactsOf(&task, cmp.Or(task.Hardware, m.Hardware))
	}
	return t.Pinned().Render(facts)
}

// named is the task with the host name that its machine's report gives it, or
// why there is none.
func named(t lpmos.Task, h *lpmos.Hardware) (lpmos.Task, string) {
	if t.HostnamePattern == "" {
		return t, ""
	}
	name, err := lpmos.ExpandHostname(t.HostnamePattern, lpmos.FactsOf(&t, h))
	if err != nil {
		return t, "No host name: " + err.Error() + ". Create the task with a host name of its own."
	}
	t.Hostname = name
	return t, ""
}

var _ writer = (*store.Store)(nil)
