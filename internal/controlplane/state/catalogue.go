package state

import (
	"maps"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

func applyNamed[T any](s *State, to map[string]T, c store.Change) {
	v, err := store.Decode[T](c)
	if c.Value == nil || err != nil {
		delete(to, c.Key.Name)
		s.report(err, c)
		return
	}
	to[c.Key.Name] = v
}

// Profiles are all, by name.
func (s *State) Profiles() []lpmos.Profile {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.profiles), func(a, b lpmos.Profile) int { return strings.Compare(a.Name, b.Name) })
}

// Profile looks one up.
func (s *State) Profile(name string) (lpmos.Profile, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, ok := s.profiles[name]
	return p, ok
}

// Templates are all, by name.
func (s *State) Templates() []lpmos.Template {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.templates), func(a, b lpmos.Template) int { return strings.Compare(a.Name, b.Name) })
}

// Template looks one up.
func (s *State) Template(name string) (lpmos.Template, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t, ok := s.templates[name]
	return t, ok
}

// ProfileUse says which tasks were made from a profile, whichever version.
func (s *State) ProfileUse(name string) api.Use {
	return s.use(func(t *task) bool { return named(t.Profile, name) }, nil)
}

// TemplateUse says which tasks and profiles name a template.
func (s *State) TemplateUse(name string) api.Use {
	return s.use(func(t *task) bool { return named(t.Template, name) }, func(p lpmos.Profile) bool { return p.Template == name })
}

// ImageUse says which tasks and profiles install an image.
func (s *State) ImageUse(os, version, arch string) api.Use {
	return s.use(func(t *task) bool { return t.OSType == os && t.OSVersion == version && t.Arch == arch },
		func(p lpmos.Profile) bool { return p.OSType == os && p.OSVersion == version && p.Arch == arch })
}

func named(ref, name string) bool {
	ref, _, _ = strings.Cut(ref, "@")
	return ref == name
}

func (s *State) use(task func(*task) bool, profile func(lpmos.Profile) bool) (u api.Use) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := len(s.rows) - 1; i >= 0; i-- { // newest first
		t := s.rows[i].t
		if !task(t) {
			continue
		}
		u.Tasks++
		if t.Status.Live() {
			u.Live = append(u.Live, t.ID)
		}
	}
	for _, p := range s.profiles {
		if profile != nil && profile(p) {
			u.Profiles = append(u.Profiles, p.Name)
		}
	}
	slices.Sort(u.Profiles)
	return u
}

// RegionLoad is how many tasks of a region are in each status.
func (s *State) RegionLoad(id string) map[lpmos.Status]int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, ok := s.nameOf[id]
	if !ok {
		return map[lpmos.Status]int{}
	}
	return maps.Clone(s.regionCounts[n])
}
