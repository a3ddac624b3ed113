package auth

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// How often a wrong password may be given. An account waits after a few; so
// does an address, from which many people may come, after some more.
const (
	tryWindow  = 15 * time.Minute
	tryAccount = 5
	tryPeer    = 20
	tryKeys    = 50_000 // accounts and addresses that are remembered
)

// ThrottledError says that a password is not even looked at.
type ThrottledError struct{ Wait time.Duration }

func (e *ThrottledError) Error() string {
	return fmt.Sprintf("too many wrong passwords: try again in %d min", int((e.Wait+time.Minute-1)/time.Minute))
}

// throttle counts the passwords that this replica is looking at, as wrong until
// they are known to be right, by account and by peer. Those that were wrong the
// store has, of all replicas, so that a try is compared with both; where it could
// not be told, they stay here.
type throttle struct {
	mu    sync.Mutex // guards what follows
	tries map[string][]time.Time
}

// peerKey counts an IPv6 network as one: whoever has one has all its addresses.
func peerKey(from string) string {
	a, err := netip.ParseAddr(from)
	if err != nil {
		return "peer " + from
	}
	if a = a.Unmap(); a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return "peer " + p.String()
		}
	}
	return "peer " + a.String()
}

func accountKey(user string) string { return "user " + user }

// counted is what a try counts for, and how many there may be of each.
func counted(user, from string) []limit {
	return []limit{{accountKey(user), tryAccount}, {peerKey(from), tryPeer}}
}

type limit struct {
	key  string
	most int
}

// triesLeft is how many more tries there may be after this one, which began
// while others, by what is counted, were looked at here.
func (a *Auth) triesLeft(ctx context.Context, user, from string, now time.Time, others []int) (left int, err error) {
	left = tryAccount
	for i, k := range counted(user, from) {
		all, err := a.store.Tries(ctx, Hash(k.key))
		if err != nil {
			return 0, err
		}
		recent := after(all, now.Add(-tryWindow))
		switch more := k.most - len(recent) - others[i]; {
		case len(recent) >= k.most:
			return 0, &ThrottledError{recent[0].Add(tryWindow).Sub(now)}
		case more < 1:
			return 0, &ThrottledError{time.Minute} // until those are known to be wrong or right
		default:
			left = min(left, more-1)
		}
	}
	return left, nil
}

// noteTry tells the other replicas of a wrong password, also when whoever gave
// it does not wait for the answer.
func (a *Auth) noteTry(ctx context.Context, user, from string, now time.Time) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for _, k := range counted(user, from) {
		if err := a.store.NoteTry(ctx, Hash(k.key), now.UTC(), tryWindow); err != nil {
			a.log.Warn("wrong password not counted for all replicas", "user", user, "addr", from, "err", err)
			return
		}
	}
	a.throttle.undecided(user, from) // the store has it now
}

// begin counts one try as wrong until it is known to be right, so that a
// hundred at once are not all looked at. It answers how many others there are, by
// what is counted.
func (t *throttle) begin(user, from string, now time.Time) (others []int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tries == nil {
		t.tries = map[string][]time.Time{}
	}
	for _, k := range counted(user, from) {
		recent := after(t.tries[k.key], now.Add(-tryWindow))
		if len(recent) >= k.most {
			return nil, &ThrottledError{recent[0].Add(tryWindow).Sub(now)}
		}
		others = append(others, len(recent))
	}
	if len(t.tries) > tryKeys {
		for k, v := range t.tries {
			if len(after(v, now.Add(-tryWindow))) == 0 {
				delete(t.tries, k)
			}
		}
		if len(t.tries) > tryKeys {
			return nil, &ThrottledError{time.Minute} // somebody tries names without end
		}
	}
	for _, k := range counted(user, from) {
		t.tries[k.key] = append(after(t.tries[k.key], now.Add(-tryWindow)), now)
	}
	return others, nil
}

// right takes back what begin counted: the account's count starts anew, the
// peer's loses this one try.
func (t *throttle) right(user, from string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.tries, accountKey(user))
	t.forget(peerKey(from))
}

// undecided takes back a try that was not looked at.
func (t *throttle) undecided(user, from string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(accountKey(user))
	t.forget(peerKey(from))
}

func (t *throttle) forget(key string) {
	if v := t.tries[key]; len(v) > 1 {
		t.tries[key] = v[:len(v)-1]
	} else {
		delete(t.tries, key)
	}
}

func after(times []time.Time, begin time.Time) []time.Time {
	for len(times) > 0 && times[0].Before(begin) {
		times = times[1:]
	}
	return times
}
