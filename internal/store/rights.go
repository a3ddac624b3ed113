package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// Writer says whose a key is.
type Writer string

// The writers, as docs/keyspace.md names them.
const (
	ByControlPlane Writer = "control plane"
	ByRegion       Writer = "that region"
	ByFirst        Writer = "whoever connects first"
)

// writers are the kinds that are not the control plane's: a kind that is not
// here is denied to regions. The test that reads docs/keyspace.md compares both,
// and the rights of etcd's roles follow from it.
var writers = map[Kind]Writer{
	KindDiscovered: ByRegion, KindHeartbeat: ByRegion, KindCapabilities: ByRegion,
	KindReportAgent: ByRegion, KindReportHardware: ByRegion, KindReportProgress: ByRegion, KindReportPermit: ByRegion,
	KindReportLog: ByRegion, KindReportResult: ByRegion, KindReportBooted: ByRegion,
	KindStoreID: ByFirst,
}

// Writer is who alone may write keys of this kind.
func (k Kind) Writer() Writer {
	if w, ok := writers[k]; ok {
		return w
	}
	return ByControlPlane
}

// Right allows one role something.
type Right struct {
	Key   string // one that ends in a slash stands for all keys below it
	Write bool   // else read
}

// regionReads is what regions read of what is not their own. Profiles and
// templates are not among it: what a machine needs of them is in its order.
var regionReads = []Kind{KindGlobal, KindStoreID}

// RegionRights are a region's: it reads what is below its own name and little
// else, and writes only what the table says is its own.
func RegionRights(region string) []Right {
	out := []Right{{Key: regionPrefix(region)}}
	for _, k := range regionReads {
		out = append(out, Right{Key: Key{Kind: k}.String()})
	}
	for _, k := range Kinds {
		if k.Writer() != ByRegion {
			continue
		}
		r := Right{Key: within(k, region), Write: true}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

// ControlRights are the control plane's.
func ControlRights() []Right { return []Right{{Key: prefix}, {Key: prefix, Write: true}} }

// within is the narrowest key or range that holds all keys of a kind in one
// region: up to the first part that varies, the slash included.
func within(k Kind, region string) string {
	s := prefix + strings.Replace(string(k), "{region}", mustRegion(region), 1)
	if i := strings.IndexByte(s, '{'); i >= 0 {
		return s[:i]
	}
	return s
}

// ErrDenied is wrapped by errors about what etcd does not allow this process.
// Waiting does not mend it.
var ErrDenied = errors.New("etcd does not allow it to this certificate")

// deniedErr says what to do about a refusal, or is nil if err is none. A
// refused watch arrives as a canceled one that only names its reason.
func deniedErr(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, reason := range []error{rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrUserNotFound, rpctypes.ErrAuthFailed} {
		if errors.Is(err, reason) || strings.Contains(text, reason.Error()) {
			return fmt.Errorf("%w (%w): was this region revoked, or is the certificate another's? Enroll it again (lpmos region enroll), or look at the user with etcdctl user get", ErrDenied, reason)
		}
	}
	return nil
}

// The users and roles. root is etcd's own; nobody has a certificate for it.
const (
	ControlUser = "lpmos-control"
	regionUsers = "lpmos-region-"
	rootUser    = "root"
)

// RegionRole is the role of all users of a region.
func RegionRole(region string) string { return regionUsers + mustRegion(region) }

// RegionUser is the user that the n-th enrollment of a region made. Each has
// its own, so that a certificate from before a revocation stays worthless after
// the region was enrolled again. A dot is in no region's id.
func RegionUser(region string, n int) string {
	return RegionRole(region) + "." + strconv.Itoa(n)
}

// ParseRegionUser takes a user, or the common name of a certificate, apart.
func ParseRegionUser(user string) (region string, n int, ok bool) {
	rest, ok := strings.CutPrefix(user, regionUsers)
	if !ok {
		return "", 0, false
	}
	region, number, ok := strings.Cut(rest, ".")
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n < 0 || strconv.Itoa(n) != number || !lpmos.ValidRegionID(region) {
		return "", 0, false
	}
	return region, n, true
}

// Secured reports whether etcd asks who somebody is.
func (s *Store) Secured(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.AuthStatus(ctx)
	if err != nil {
		return false, s.wrap("ask whether etcd has authentication", err)
	}
	return r.Enabled, nil
}

// Secure turns authentication on: from then on every client needs a certificate
// whose common name is a user. This process must have that of ControlUser, with
// which it administers the others. Done again, it only mends what is missing.
func (s *Store) Secure(ctx context.Context) error {
	for _, u := range []struct{ user, role string }{{rootUser, rootUser}, {ControlUser, ControlUser}, {ControlUser, rootUser}} {
		if u.role != rootUser {
			if err := s.putRole(ctx, u.role, ControlRights()); err != nil {
				return err
			}
		} else if err := s.addRole(ctx, u.role); err != nil {
			return err
		}
		if err := s.putUser(ctx, u.user, u.role); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	on, err := s.c.AuthStatus(ctx)
	if err == nil && !on.Enabled {
		_, err = s.c.AuthEnable(ctx)
	}
	return s.wrap("turn etcd's authentication on", err)
}

// CanAdminister is nil if users can be made, and otherwise says what to do.
func (s *Store) CanAdminister(ctx context.Context) error {
	on, err := s.Secured(ctx)
	if err != nil {
		return err
	}
	if !on {
		return &lpmos.ConflictError{Problem: "etcd has no authentication, so a region could not be kept to its own keys: start the store with --etcd-listen, or set up users on the external etcd (docs/operating.md, \"A second data centre\")"}
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, err = s.c.UserList(ctx)
	if errors.Is(err, rpctypes.ErrPermissionDenied) {
		return &lpmos.ConflictError{Problem: "the control plane's etcd user may not make users: etcdctl user grant-role " + ControlUser + " root"}
	}
	return s.wrap("list etcd's users", err)
}

// PutRegionUser makes the n-th user of a region and gives its role the rights
// that this version knows.
func (s *Store) PutRegionUser(ctx context.Context, region string, n int) error {
	if err := s.putRole(ctx, RegionRole(region), RegionRights(region)); err != nil {
		return err
	}
	return s.putUser(ctx, RegionUser(region, n), RegionRole(region))
}

// DeleteRegionUsers ends the users of a region that its first enrollments made,
// up to the one with number last, and with them every request of their
// certificates. Watches that are open go on until their connection ends. User
// 0, the region in the control plane's own process, stays.
func (s *Store) DeleteRegionUsers(ctx context.Context, region string, last int) (gone []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.UserList(ctx)
	if err != nil {
		return nil, s.wrap("list etcd's users", err)
	}
	keepRole := false
	for _, u := range r.Users {
		of, n, ok := ParseRegionUser(u)
		if !ok || of != region {
			continue
		}
		if n == 0 || n > last {
			keepRole = true
			continue
		}
		if _, err := s.c.UserDelete(ctx, u); err != nil && !errors.Is(err, rpctypes.ErrUserNotFound) {
			return gone, s.wrap("delete etcd user "+u, err)
		}
		gone = append(gone, u)
	}
	roles, err := s.c.RoleList(ctx)
	if err != nil {
		return gone, s.wrap("list etcd's roles", err)
	}
	if keepRole || !slices.Contains(roles.Roles, RegionRole(region)) {
		return gone, nil
	}
	if _, err := s.c.RoleDelete(ctx, RegionRole(region)); err != nil && !errors.Is(err, rpctypes.ErrRoleNotFound) {
		return gone, s.wrap("delete etcd role "+RegionRole(region), err)
	}
	return gone, nil
}

// RefreshRegionRoles gives the role of every region the rights that this
// version knows.
func (s *Store) RefreshRegionRoles(ctx context.Context) error {
	cctx, cancel := context.WithTimeout(ctx, s.timeout)
	r, err := s.c.RoleList(cctx)
	cancel()
	if err != nil {
		return s.wrap("list etcd's roles", err)
	}
	for _, role := range r.Roles {
		if region, ok := strings.CutPrefix(role, regionUsers); ok && lpmos.ValidRegionID(region) {
			if err := s.putRole(ctx, role, RegionRights(region)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) addRole(ctx context.Context, role string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	// Asked first: etcd's log complains of one that is there.
	all, err := s.c.RoleList(ctx)
	if err == nil && !slices.Contains(all.Roles, role) {
		_, err = s.c.RoleAdd(ctx, role)
	}
	if errors.Is(err, rpctypes.ErrRoleAlreadyExist) {
		return nil // another replica was first
	}
	return s.wrap("make etcd role "+role, err)
}

// putRole makes a role have exactly these rights.
func (s *Store) putRole(ctx context.Context, role string, rights []Right) error {
	if err := s.addRole(ctx, role); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*s.timeout)
	defer cancel()
	has, err := s.c.RoleGet(ctx, role)
	if err != nil {
		return s.wrap("read etcd role "+role, err)
	}
	type span struct{ key, end string }
	want := map[span]clientv3.PermissionType{}
	for _, r := range rights {
		at, perm := span{key: r.Key}, clientv3.PermissionType(clientv3.PermRead)
		if strings.HasSuffix(r.Key, "/") {
			at.end = clientv3.GetPrefixRangeEnd(r.Key)
		}
		if r.Write {
			perm = clientv3.PermissionType(clientv3.PermWrite)
		}
		if before, ok := want[at]; ok && before != perm {
			perm = clientv3.PermissionType(clientv3.PermReadWrite)
		}
		want[at] = perm
	}
	for _, p := range has.Perm {
		at := span{string(p.Key), string(p.RangeEnd)}
		if perm, ok := want[at]; ok && perm == clientv3.PermissionType(p.PermType) {
			delete(want, at)
		} else if !ok {
			if _, err := s.c.RoleRevokePermission(ctx, role, at.key, at.end); err != nil {
				return s.wrap("narrow etcd role "+role, err)
			}
		}
	}
	for at, perm := range want {
		if _, err := s.c.RoleGrantPermission(ctx, role, at.key, at.end, perm); err != nil {
			return s.wrap("grant "+at.key+" to etcd role "+role, err)
		}
	}
	return nil
}

// putUser makes a user without a password, which only a certificate can log in
// as, and gives it a role.
func (s *Store) putUser(ctx context.Context, user, role string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	all, err := s.c.UserList(ctx)
	if err == nil && !slices.Contains(all.Users, user) {
		_, err = s.c.UserAddWithOptions(ctx, user, "", &clientv3.UserAddOptions{NoPassword: true})
	}
	if err != nil && !errors.Is(err, rpctypes.ErrUserAlreadyExist) {
		return s.wrap("make etcd user "+user, err)
	}
	r, err := s.c.UserGet(ctx, user)
	if err != nil {
		return s.wrap("read etcd user "+user, err)
	}
	if slices.Contains(r.Roles, role) {
		return nil
	}
	_, err = s.c.UserGrantRole(ctx, user, role)
	return s.wrap("give etcd user "+user+" its role", err)
}
