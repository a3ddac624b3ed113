package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// Users, sessions and tokens. Secrets never come here: a session or a token is
// named by the SHA-256 of what its holder shows, in lower-case hexadecimal.

func userKey(name string) (string, error) {
	if !lpmos.ValidName(name) {
		return "", &lpmos.InvalidError{Field: "name", Problem: "is not a user name: lower-case letters, digits, dot, hyphen and underscore, 64 at most", Value: name}
	}
	return Key{Kind: KindUser, Name: name}.String(), nil
}

func hashKey(kind Kind, id string) (string, error) {
	if !lpmos.ValidDigest(id) {
		return "", fmt.Errorf("%w: no such credential", lpmos.ErrNotFound)
	}
	return Key{Kind: kind, Name: id}.String(), nil
}

// CreateUser stores a new user and returns the revision that did. One that
// exists is an lpmos.ErrConflict.
func (s *Store) CreateUser(ctx context.Context, u lpmos.User) (int64, error) {
	if _, err := userKey(u.Name); err != nil {
		return 0, err
	}
	return amend(ctx, s, users, Key{Kind: KindUser, Name: u.Name}, func(v *lpmos.User, rev int64) (bool, error) {
		if rev != 0 {
			return true, &lpmos.ConflictError{Problem: "there is a user " + u.Name + " already"}
		}
		*v = u
		return true, nil
	})
}

// CreateFirstUser stores u if there is no user at all, and reports whether it
// did. Of several replicas that start at once, one does.
func (s *Store) CreateFirstUser(ctx context.Context, u lpmos.User) (bool, error) {
	key, err := userKey(u.Name)
	if err != nil {
		return false, err
	}
	none := clientv3.Compare(clientv3.CreateRevision(prefix+"users/"), "=", 0).WithPrefix()
	r, err := s.administer(ctx, users.deed(Key{Kind: KindUser, Name: u.Name}, nil, &u), []clientv3.Cmp{none}, []clientv3.Op{clientv3.OpPut(key, string(encode(u)))}, nil)
	if err != nil {
		return false, fmt.Errorf("store the first user: %w", err)
	}
	return r.Succeeded, nil
}

// UpdateUser changes a user, however many do at once. change may be called
// several times; its error ends the attempt and is returned. What would leave
// nobody of whom lpmos.User.Keeper is true is an lpmos.ErrConflict.
func (s *Store) UpdateUser(ctx context.Context, name string, change func(*lpmos.User) error) (u lpmos.User, rev int64, err error) {
	if _, err := userKey(name); err != nil {
		return u, 0, err
	}
	rev, err = s.amendUser(ctx, name, func(v *lpmos.User) (bool, error) {
		err := change(v)
		u = *v
		return true, err
	})
	return u, rev, err
}

// DeleteUser removes a user. The last of whom lpmos.User.Keeper is true is an
// lpmos.ErrConflict.
func (s *Store) DeleteUser(ctx context.Context, name string) (int64, error) {
	if _, err := userKey(name); err != nil {
		return 0, err
	}
	return s.amendUser(ctx, name, func(*lpmos.User) (bool, error) { return false, nil })
}

// amendUser is amend of a user that is there. Who ceases to be a keeper leaves
// another behind, who is compared in the same transaction: of two who take it
// from each other at once, one is too late.
func (s *Store) amendUser(ctx context.Context, name string, edit func(*lpmos.User) (keep bool, err error)) (int64, error) {
	return amendWhile(ctx, s, users, Key{Kind: KindUser, Name: name}, func(v *lpmos.User, rev int64) (bool, []clientv3.Cmp, error) {
		if rev == 0 {
			return false, nil, fmt.Errorf("user %s: %w", name, lpmos.ErrNotFound)
		}
		was := v.Keeper()
		keep, err := edit(v)
		if err != nil || !was || keep && v.Keeper() {
			return keep, nil, err
		}
		other, err := s.anotherKeeper(ctx, name)
		return keep, []clientv3.Cmp{other}, err
	})
}

// anotherKeeper finds a keeper beside one, and answers the comparison that holds
// as long as they stand as they do now.
func (s *Store) anotherKeeper(ctx context.Context, than string) (clientv3.Cmp, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.Get(ctx, prefix+"users/", clientv3.WithPrefix())
	if err != nil {
		return clientv3.Cmp{}, s.wrap("read users", err)
	}
	for _, kv := range r.Kvs {
		u, err := decode[lpmos.User](kv.Value)
		if err != nil {
			return clientv3.Cmp{}, fmt.Errorf("decode %s: %w", kv.Key, err)
		}
		if u.Name != than && u.Keeper() {
			return clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision), nil
		}
	}
	return clientv3.Cmp{}, &lpmos.ConflictError{Problem: than + " is the last admin of all regions: make another first"}
}

// erase removes a value that is there.
func erase[T any](ctx context.Context, s *Store, l ledger[T], k Key, what string) (int64, error) {
	return amend(ctx, s, l, k, func(_ *T, rev int64) (bool, error) {
		if rev == 0 {
			return false, fmt.Errorf("%s: %w", what, lpmos.ErrNotFound)
		}
		return false, nil
	})
}

// CreateSignIn stores a session for at most ttl, if its user still has the
// session's epoch; one who has not is an lpmos.ErrConflict.
func (s *Store) CreateSignIn(ctx context.Context, id string, si lpmos.SignIn, ttl time.Duration) (int64, error) {
	key, err := hashKey(KindSignIn, id)
	if err != nil {
		return 0, err
	}
	user, err := userKey(si.User)
	if err != nil {
		return 0, err
	}
	u, at, err := readVersion[lpmos.User](ctx, s, user)
	if err != nil {
		return 0, err
	}
	if at == 0 || u.Barred() || u.Epoch != si.Epoch {
		return 0, &lpmos.ConflictError{Problem: "the user was changed meanwhile: sign in again"}
	}
	lease, err := s.grant(ctx, ttl)
	if err != nil {
		return 0, fmt.Errorf("store session: %w", err)
	}
	r, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0), clientv3.Compare(clientv3.ModRevision(user), "=", at)},
		[]clientv3.Op{clientv3.OpPut(key, string(encode(si)), clientv3.WithLease(lease))}, nil)
	if err == nil && !r.Succeeded {
		err = &lpmos.ConflictError{Problem: "the user was changed meanwhile: sign in again"}
	}
	if err != nil {
		s.revoke(lease)
		return 0, fmt.Errorf("store session: %w", err)
	}
	return r.Header.Revision, nil
}

// TouchSignIn notes that a session was used. One that is gone stays so, which
// is no error: rev is 0 then.
func (s *Store) TouchSignIn(ctx context.Context, id string, si lpmos.SignIn) (rev int64, err error) {
	key, err := hashKey(KindSignIn, id)
	if err != nil {
		return 0, err
	}
	return s.touch(ctx, key, si, clientv3.WithIgnoreLease())
}

// touch notes a use: nothing that anybody decided, so it has no audit entry.
func (s *Store) touch(ctx context.Context, key string, v any, opts ...clientv3.OpOption) (rev int64, err error) {
	r, err := s.commit(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), ">", 0)}, []clientv3.Op{clientv3.OpPut(key, string(encode(v)), opts...)}, nil)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return 0, nil
	}
	if err != nil || !r.Succeeded {
		return 0, err
	}
	return r.Header.Revision, nil
}

// DeleteSignIn forgets a session that its own user leaves, or that nobody uses.
func (s *Store) DeleteSignIn(ctx context.Context, id string) (int64, error) {
	key, err := hashKey(KindSignIn, id)
	if err != nil {
		return 0, err
	}
	r, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), ">", 0)}, []clientv3.Op{clientv3.OpDelete(key)}, nil)
	switch {
	case err != nil:
		return 0, fmt.Errorf("delete session: %w", err)
	case !r.Succeeded:
		return 0, fmt.Errorf("session: %w", lpmos.ErrNotFound)
	}
	return r.Header.Revision, nil
}

// EndSignIn ends a session from elsewhere, which is written down.
func (s *Store) EndSignIn(ctx context.Context, id string) (int64, error) {
	if _, err := hashKey(KindSignIn, id); err != nil {
		return 0, err
	}
	return erase(ctx, s, signIns, Key{Kind: KindSignIn, Name: id}, "session")
}

// SignIn reads a session and the revision that wrote it.
func (s *Store) SignIn(ctx context.Context, id string) (lpmos.SignIn, int64, error) {
	return readHashed[lpmos.SignIn](ctx, s, KindSignIn, id)
}

func readHashed[T any](ctx context.Context, s *Store, kind Kind, id string) (v T, rev int64, err error) {
	key, err := hashKey(kind, id)
	if err != nil {
		return v, 0, err
	}
	v, rev, err = readVersion[T](ctx, s, key)
	if err == nil && rev == 0 {
		err = fmt.Errorf("credential: %w", lpmos.ErrNotFound)
	}
	return v, rev, err
}

// CreateToken stores a token.
func (s *Store) CreateToken(ctx context.Context, id string, t lpmos.APIToken) (int64, error) {
	if _, err := hashKey(KindToken, id); err != nil {
		return 0, err
	}
	return amend(ctx, s, tokens, Key{Kind: KindToken, Name: id}, func(v *lpmos.APIToken, rev int64) (bool, error) {
		if rev != 0 {
			return true, &lpmos.ConflictError{Problem: "there is such a token already"}
		}
		*v = t
		return true, nil
	})
}

// TouchToken notes that a token was used, unless it is gone.
func (s *Store) TouchToken(ctx context.Context, id string, t lpmos.APIToken) error {
	key, err := hashKey(KindToken, id)
	if err != nil {
		return err
	}
	_, err = s.touch(ctx, key, t)
	return err
}

// DeleteToken ends a token.
func (s *Store) DeleteToken(ctx context.Context, id string) (int64, error) {
	if _, err := hashKey(KindToken, id); err != nil {
		return 0, err
	}
	return erase(ctx, s, tokens, Key{Kind: KindToken, Name: id}, "token")
}

// Token reads a token and the revision that wrote it.
func (s *Store) Token(ctx context.Context, id string) (lpmos.APIToken, int64, error) {
	return readHashed[lpmos.APIToken](ctx, s, KindToken, id)
}

// maxTries bounds what is remembered of one account or address.
const maxTries = 64

// Tries are when wrong passwords were given lately, oldest first. id is the
// SHA-256 of what is counted, an account or an address.
func (s *Store) Tries(ctx context.Context, id string) ([]time.Time, error) {
	key, err := hashKey(KindTries, id)
	if err != nil {
		return nil, err
	}
	all, _, err := readVersion[[]time.Time](ctx, s, key)
	return all, err
}

// NoteTry adds a wrong password, whichever replica looked at it. All are
// forgotten when none was given for window.
func (s *Store) NoteTry(ctx context.Context, id string, at time.Time, window time.Duration) error {
	key, err := hashKey(KindTries, id)
	if err != nil {
		return err
	}
	lease, err := s.grant(ctx, window)
	if err != nil {
		return fmt.Errorf("note a wrong password: %w", err)
	}
	for range maxRaces {
		all, rev, err := readVersion[[]time.Time](ctx, s, key)
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(append(all, at), func(t time.Time) bool { return at.Sub(t) > window })
		slices.SortFunc(all, time.Time.Compare)
		r, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", rev)},
			[]clientv3.Op{clientv3.OpPut(key, string(encode(all[max(0, len(all)-maxTries):])), clientv3.WithLease(lease))}, nil)
		if err != nil {
			return fmt.Errorf("note a wrong password: %w", err)
		}
		if r.Succeeded {
			return nil
		}
	}
	return fmt.Errorf("note a wrong password: %w", lpmos.ErrUnavailable)
}

// ForgetTries lets an account or an address begin anew.
func (s *Store) ForgetTries(ctx context.Context, id string) error {
	key, err := hashKey(KindTries, id)
	if err != nil {
		return err
	}
	_, err = s.txn(ctx, nil, []clientv3.Op{clientv3.OpDelete(key)}, nil)
	return err
}

// vet reads what an approval by somebody is judged by into rec, and answers the
// comparisons that hold as long as it stands.
func (s *Store) vet(ctx context.Context, rec *Record, by string) ([]clientv3.Cmp, error) {
	keys := []string{Key{Kind: KindGlobal}.String()}
	names := []string{by}
	for _, c := range rec.Task.Approvals {
		names = append(names, c.By)
	}
	for _, name := range names {
		if lpmos.ValidName(name) { // else it is nobody's: a program, or whoever came without a login
			keys = append(keys, Key{Kind: KindUser, Name: name}.String())
		}
	}
	var reads []clientv3.Op
	for _, k := range keys {
		reads = append(reads, clientv3.OpGet(k))
	}
	r, err := s.txn(ctx, nil, reads, nil)
	if err != nil {
		return nil, fmt.Errorf("read the approval policy: %w", err)
	}
	rec.Users = map[string]lpmos.User{}
	var conds []clientv3.Cmp
	for i, resp := range r.Responses {
		var rev int64
		if kvs := resp.GetResponseRange().Kvs; len(kvs) > 0 {
			rev = kvs[0].ModRevision
			if i == 0 {
				var g Global
				g, err = decode[Global](kvs[0].Value)
				rec.Policy = g.Approvals
			} else {
				var u lpmos.User
				u, err = decode[lpmos.User](kvs[0].Value)
				rec.Users[u.Name] = u
			}
			if err != nil {
				return nil, fmt.Errorf("decode %s: %w", keys[i], err)
			}
		}
		conds = append(conds, clientv3.Compare(clientv3.ModRevision(keys[i]), "=", rev))
	}
	return conds, nil
}
