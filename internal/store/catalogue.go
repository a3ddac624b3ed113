package store

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// VersionError says that a profile or template is not at the version a change
// was based on. Nothing was written.
type VersionError struct {
	What    string // "profile web"
	Based   int    // 0 when it was thought not to exist
	Version int    // as it is; 0 when it does not exist
}

func (e *VersionError) Error() string {
	switch {
	case e.Version == 0:
		return fmt.Sprintf("%s does not exist any more; version %d was given", e.What, e.Based)
	case e.Based == 0:
		return fmt.Sprintf("%s exists already, at version %d: look at it and name that version to change it", e.What, e.Version)
	}
	return fmt.Sprintf("%s is at version %d, and the change is based on %d: look at it again", e.What, e.Version, e.Based)
}

// Is makes a VersionError an lpmos.ErrConflict.
func (e *VersionError) Is(target error) bool { return target == lpmos.ErrConflict }

// PutProfile stores the version after based, which is 0 for a new profile.
// p.Version, CreatedAt and UpdatedAt are set here.
func (s *Store) PutProfile(ctx context.Context, p lpmos.Profile, based int) (lpmos.Profile, error) {
	if !lpmos.ValidName(p.Name) {
		return p, &lpmos.InvalidError{Field: "name", Problem: "is not a name", Value: p.Name}
	}
	now := time.Now().UTC()
	err := putVersion(ctx, s, profiles, Key{Kind: KindProfile, Name: p.Name}, "profile "+p.Name, based,
		func(was lpmos.Profile) int { return was.Version },
		func(was lpmos.Profile) lpmos.Profile {
			p.Version, p.CreatedAt, p.UpdatedAt = was.Version+1, was.CreatedAt, now
			if was.Version == 0 {
				p.CreatedAt = now
			}
			return p
		})
	return p, err
}

// PutTemplate is PutProfile for templates.
func (s *Store) PutTemplate(ctx context.Context, t lpmos.Template, based int) (lpmos.Template, error) {
	if !lpmos.ValidName(t.Name) {
		return t, &lpmos.InvalidError{Field: "name", Problem: "is not a name", Value: t.Name}
	}
	now := time.Now().UTC()
	err := putVersion(ctx, s, templates, Key{Kind: KindTemplate, Name: t.Name}, "template "+t.Name, based,
		func(was lpmos.Template) int { return was.Version },
		func(was lpmos.Template) lpmos.Template {
			t.Version, t.CreatedAt, t.UpdatedAt = was.Version+1, was.CreatedAt, now
			if was.Version == 0 {
				t.CreatedAt = now
			}
			return t
		})
	return t, err
}

// DeleteProfile removes a profile that is at version based; 0 stands for any.
func (s *Store) DeleteProfile(ctx context.Context, name string, based int) (rev int64, err error) {
	if !lpmos.ValidName(name) {
		return 0, &lpmos.InvalidError{Field: "name", Problem: "is not a name", Value: name}
	}
	return deleteVersion(ctx, s, profiles, Key{Kind: KindProfile, Name: name}, "profile "+name, based, func(was lpmos.Profile) int { return was.Version })
}

// DeleteTemplate is DeleteProfile for templates.
func (s *Store) DeleteTemplate(ctx context.Context, name string, based int) (rev int64, err error) {
	if !lpmos.ValidName(name) {
		return 0, &lpmos.InvalidError{Field: "name", Problem: "is not a name", Value: name}
	}
	return deleteVersion(ctx, s, templates, Key{Kind: KindTemplate, Name: name}, "template "+name, based, func(was lpmos.Template) int { return was.Version })
}

// pin reads the template that a new task is to keep. ref names its version; one
// that was changed meanwhile is an lpmos.ErrConflict.
func (s *Store) pin(ctx context.Context, ref string) (*lpmos.TaskTemplate, error) {
	name, version, err := lpmos.ParseRef("template", ref)
	if err != nil {
		return nil, err
	}
	t, rev, err := readVersion[lpmos.Template](ctx, s, Key{Kind: KindTemplate, Name: name}.String())
	switch {
	case err != nil:
		return nil, err
	case rev == 0:
		return nil, &lpmos.InvalidError{Field: "template", Problem: "does not exist", Value: name}
	case version != 0 && version != t.Version:
		return nil, &VersionError{"template " + name, version, t.Version}
	}
	return t.Pinned(), nil
}

// pinSetup reads how the system of a new task is configured, nil when its
// profile says nothing of it. ref is as in pin; what the profile said else the
// task has.
func (s *Store) pinSetup(ctx context.Context, ref string) (*lpmos.Setup, error) {
	name, version, err := lpmos.ParseRef("profile", ref)
	if err != nil {
		return nil, err
	}
	p, rev, err := readVersion[lpmos.Profile](ctx, s, Key{Kind: KindProfile, Name: name}.String())
	switch {
	case err != nil:
		return nil, err
	case rev == 0:
		return nil, &lpmos.InvalidError{Field: "profile", Problem: "does not exist", Value: name}
	case version != 0 && version != p.Version:
		return nil, &VersionError{"profile " + name, version, p.Version}
	}
	return p.System, nil
}

// readVersion is what a key holds and the revision it was written at, both zero
// when there is none.
func readVersion[T any](ctx context.Context, s *Store, key string) (v T, rev int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.Get(ctx, key)
	if err != nil {
		return v, 0, s.wrap("read "+key, err)
	}
	if len(r.Kvs) == 0 {
		return v, 0, nil
	}
	if v, err = decode[T](r.Kvs[0].Value); err != nil {
		return v, 0, fmt.Errorf("decode %s: %w", key, err)
	}
	return v, r.Kvs[0].ModRevision, nil
}

func putVersion[T any](ctx context.Context, s *Store, l ledger[T], k Key, what string, based int, version func(T) int, next func(T) T) error {
	_, err := amend(ctx, s, l, k, func(v *T, _ int64) (bool, error) {
		if version(*v) != based {
			return true, &VersionError{what, based, version(*v)}
		}
		*v = next(*v)
		return true, nil
	})
	return err
}

func deleteVersion[T any](ctx context.Context, s *Store, l ledger[T], k Key, what string, based int, version func(T) int) (rev int64, err error) {
	return amend(ctx, s, l, k, func(v *T, rev int64) (bool, error) {
		switch {
		case rev == 0:
			return false, fmt.Errorf("%s: %w", what, lpmos.ErrNotFound)
		case based != 0 && version(*v) != based:
			return true, &VersionError{what, based, version(*v)}
		}
		return false, nil
	})
}

// DeleteDiscovered forgets a machine without a task that was last seen at the
// given time; one that was seen again meanwhile stays, which is no error.
func (ss *Session) DeleteDiscovered(ctx context.Context, mac lpmos.MAC, seen time.Time) error {
	key := Key{Kind: KindDiscovered, Region: ss.region, MAC: mac}.String()
	d, rev, err := readVersion[lpmos.Discovered](ctx, ss.s, key)
	if err != nil || rev == 0 || !d.SeenAt.Equal(seen) {
		return err
	}
	_, err = ss.s.txn(ctx, []clientv3.Cmp{
		clientv3.Compare(clientv3.CreateRevision(Key{Kind: KindHeartbeat, Region: ss.region}.String()), "=", ss.epoch),
		clientv3.Compare(clientv3.ModRevision(key), "=", rev),
	}, []clientv3.Op{clientv3.OpDelete(key)}, nil)
	if err != nil {
		return fmt.Errorf("forget machine %s: %w", mac, err)
	}
	return nil
}

// MachineInfo is a machine as it last reported for a task, by the address that
// the task named.
func (s *Store) MachineInfo(ctx context.Context, mac lpmos.MAC) (lpmos.Machine, error) {
	return readKept[lpmos.Machine](ctx, s, Key{Kind: KindAgentInfo, MAC: mac})
}

// Discovered is a machine without a task as it last reported to a region.
func (s *Store) Discovered(ctx context.Context, region string, mac lpmos.MAC) (lpmos.Discovered, error) {
	return readKept[lpmos.Discovered](ctx, s, Key{Kind: KindDiscovered, Region: region, MAC: mac})
}

func readKept[T any](ctx context.Context, s *Store, k Key) (T, error) {
	v, rev, err := readVersion[T](ctx, s, k.String())
	if err == nil && rev == 0 {
		err = fmt.Errorf("%s: %w", k, lpmos.ErrNotFound)
	}
	return v, err
}
