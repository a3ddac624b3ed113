package dhcpd

import (
	"net/netip"
	"time"

	"github.com/lpmos/lpmos"
)

// Lease is an address in use by a machine.
type Lease struct {
	MAC     lpmos.MAC  `json:"mac"`
	Address netip.Addr `json:"address"`
	Until   time.Time  `json:"until"`
	Known   bool       `json:"known,omitempty"` // the machine was in the boot index
}

// lease is an entry of the table. It stays when it has ended, so that a machine
// that comes back gets its address again, until the address is needed.
type lease struct {
	Lease
	bound bool // acknowledged; otherwise an offer, or after a decline nobody's
}

func (l *lease) alive(now time.Time) bool { return now.Before(l.Until) }

// Times that are not the client's to choose.
const (
	offerTime   = 30 * time.Second // an address is held for an offer
	declineTime = 10 * time.Minute // and kept back when a client found it in use
)

// table holds leases by machine and by address. A machine has at most one.
type table struct {
	byMAC  map[lpmos.MAC]*lease
	byAddr map[netip.Addr]*lease
	next   map[netip.Prefix]int // where the search for an unused address goes on
}

func newTable() *table {
	return &table{map[lpmos.MAC]*lease{}, map[netip.Addr]*lease{}, map[netip.Prefix]int{}}
}

// put gives l.Address to l.MAC, whatever was before.
func (t *table) put(l *lease) {
	if old, ok := t.byMAC[l.MAC]; ok {
		t.remove(old)
	}
	if old, ok := t.byAddr[l.Address]; ok {
		t.remove(old)
	}
	t.byAddr[l.Address] = l
	if !l.MAC.IsZero() {
		t.byMAC[l.MAC] = l
	}
}

func (t *table) remove(l *lease) {
	delete(t.byAddr, l.Address)
	if t.byMAC[l.MAC] == l {
		delete(t.byMAC, l.MAC)
	}
}

// free reports whether mac may have a: nobody else holds it.
func (t *table) free(a netip.Addr, mac lpmos.MAC, now time.Time) bool {
	l, ok := t.byAddr[a]
	return !ok || l.MAC == mac || !l.alive(now)
}

// unknownIn counts the addresses of p that machines outside the boot index
// hold, those declined included: whoever declines must not get more that way.
func (t *table) unknownIn(p Pool, now time.Time) (n int) {
	for a, l := range t.byAddr {
		if !l.Known && l.alive(now) && p.inRange(a) {
			n++
		}
	}
	return n
}

// search finds an address of p that nobody holds: one that was never used if
// there is one, else the one that has been free for longest. taken excludes
// addresses that are nobody's lease but in use.
func (t *table) search(p Pool, taken func(netip.Addr) bool, now time.Time) (netip.Addr, bool) {
	var oldest *lease
	size, first := p.size(), toUint(p.First)
	start := t.next[p.Subnet]
	for i := range size {
		n := (start + i) % size
		a := fromUint(first + uint32(n))
		if !p.usable(a) || taken(a) {
			continue
		}
		l, used := t.byAddr[a]
		if !used {
			t.next[p.Subnet] = n + 1
			return a, true
		}
		if !l.alive(now) && (oldest == nil || l.Until.Before(oldest.Until)) {
			oldest = l
		}
	}
	if oldest == nil {
		return netip.Addr{}, false
	}
	return oldest.Address, true
}
