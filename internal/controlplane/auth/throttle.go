package auth

import (
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

// throttle counts wrong passwords by account and by peer, in this replica.
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

// begin counts one try as wrong until it is known to be right, so that a
// hundred at once are not all looked at. It answers how many more there may be.
func (t *throttle) begin(user, from string, now time.Time) (left int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tries == nil {
		t.tries = map[string][]time.Time{}
	}
	left = tryAccount
	for _, k := range []struct {
		key  string
		most int
	}{{"user " + user, tryAccount}, {peerKey(from), tryPeer}} {
		recent := after(t.tries[k.key], now.Add(-tryWindow))
		if len(recent) >= k.most {
			return 0, &ThrottledError{recent[0].Add(tryWindow).Sub(now)}
		}
		left = min(left, k.most-len(recent)-1)
	}
	if len(t.tries) > tryKeys {
		for k, v := range t.tries {
			if len(after(v, now.Add(-tryWindow))) == 0 {
				delete(t.tries, k)
			}
		}
		if len(t.tries) > tryKeys {
			return 0, &ThrottledError{time.Minute} // somebody tries names without end
		}
	}
	for _, k := range []string{"user " + user, peerKey(from)} {
		t.tries[k] = append(after(t.tries[k], now.Add(-tryWindow)), now)
	}
	return left, nil
}

// right takes back what begin counted: the account's count starts anew, the
// peer's loses this one try.
func (t *throttle) right(user, from string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.tries, "user "+user)
	t.forget(peerKey(from))
}

// undecided takes back a try that was not looked at.
func (t *throttle) undecided(user, from string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget("user " + user)
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
