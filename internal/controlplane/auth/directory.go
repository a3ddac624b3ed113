package auth

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lpmos/lpmos"
)

// directory is every user, session and token in memory. The composition feeds
// it what the store's watch says; what this replica changes itself is put in
// at once, so that a person who just signed in is known to the next request.
type directory struct {
	// changed counts changes, for those who check again only then.
	changed atomic.Int64

	mu      sync.RWMutex // guards what follows
	rev     int64        // everything up to here was applied
	whole   bool         // the first listing was applied
	users   map[string]lpmos.User
	signIns map[string]*held[lpmos.SignIn]   // by hash
	tokens  map[string]*held[lpmos.APIToken] // by hash
	// revs holds, of every key that was changed here before the watch told of
	// it, the revision of that change: what the watch says of older ones is
	// history.
	revs map[string]int64
}

// held is a session or a token, and when it was last used here.
type held[T any] struct {
	value   T
	used    atomic.Int64 // unix seconds; 0 for not yet
	written atomic.Int64 // what the store knows of it
}

func (d *directory) clear() {
	d.users, d.signIns, d.tokens, d.revs = map[string]lpmos.User{}, map[string]*held[lpmos.SignIn]{}, map[string]*held[lpmos.APIToken]{}, map[string]int64{}
}

// Change is one key of the people in the store. Value is nil for one that is
// gone; exactly one of User, SignIn and Token is set otherwise.
type Change struct {
	User   *lpmos.User
	SignIn *lpmos.SignIn
	Token  *lpmos.APIToken
	Kind   string // "user", "session", "token"
	Key    string // name or hash
}

// Apply brings one revision of the store into memory; reset says that the
// changes are all there is.
func (a *Auth) Apply(rev int64, reset bool, changes []Change) {
	d := &a.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	if reset {
		kept := d.signIns
		keptTokens := d.tokens
		d.clear()
		defer func() {
			// When they were last used here is known to nobody else yet.
			for id, h := range kept {
				if now := d.signIns[id]; now != nil {
					now.used.Store(max(now.used.Load(), h.used.Load()))
				}
			}
			for id, h := range keptTokens {
				if now := d.tokens[id]; now != nil {
					now.used.Store(max(now.used.Load(), h.used.Load()))
				}
			}
		}()
	}
	d.rev, d.whole = rev, d.whole || reset
	for _, c := range changes {
		k := c.Kind + " " + c.Key
		if at, ok := d.revs[k]; ok {
			if at > rev {
				continue
			}
			delete(d.revs, k)
		}
		d.set(c)
	}
	if reset || len(changes) > 0 {
		d.changed.Add(1)
	}
}

// own brings in what this replica changed itself.
func (d *directory) own(rev int64, c Change) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if rev > d.rev {
		d.revs[c.Kind+" "+c.Key] = rev
	}
	d.set(c)
	d.changed.Add(1)
}

func (d *directory) set(c Change) {
	switch c.Kind {
	case "user":
		if c.User == nil {
			delete(d.users, c.Key)
		} else {
			d.users[c.Key] = *c.User
		}
	case "session":
		if c.SignIn == nil {
			delete(d.signIns, c.Key)
			return
		}
		h := &held[lpmos.SignIn]{value: *c.SignIn}
		h.seen(d.signIns[c.Key], c.SignIn.SeenAt)
		d.signIns[c.Key] = h
	case "token":
		if c.Token == nil {
			delete(d.tokens, c.Key)
			return
		}
		h := &held[lpmos.APIToken]{value: *c.Token}
		h.seen(d.tokens[c.Key], c.Token.UsedAt)
		d.tokens[c.Key] = h
	}
}

func (h *held[T]) seen(before *held[T], at time.Time) {
	if !at.IsZero() {
		h.written.Store(at.Unix())
		h.used.Store(at.Unix())
	}
	if before != nil {
		h.used.Store(max(h.used.Load(), before.used.Load()))
	}
}

func (d *directory) user(name string) (lpmos.User, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	u, ok := d.users[name]
	return u, ok
}

func (d *directory) allUsers() []lpmos.User {
	d.mu.RLock()
	defer d.mu.RUnlock()
	out := make([]lpmos.User, 0, len(d.users))
	for _, u := range d.users {
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b lpmos.User) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (d *directory) signIn(id string) (*held[lpmos.SignIn], bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	h, ok := d.signIns[id]
	return h, ok
}

func (d *directory) token(id string) (*held[lpmos.APIToken], bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	h, ok := d.tokens[id]
	return h, ok
}
