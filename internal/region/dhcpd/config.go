package dhcpd

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

// Mode is what part of DHCP the region does. "off" is not a mode: there is no
// server then.
type Mode string

// The modes.
const (
	ModeServer Mode = "server" // addresses and boot files
	ModeProxy  Mode = "proxy"  // boot files, beside the site's server
)

// Config of a server.
type Config struct {
	Mode     Mode
	ServerID netip.Addr // our IPv4 address, option 54; required

	// The rest is for ModeServer.

	// Pools are the networks that are served, at least one. A client belongs to
	// the one whose subnet holds its relay (giaddr), or ServerID without relay.
	Pools     []Pool
	DNS, NTP  []netip.Addr
	LeaseTime time.Duration // default 30 min, at least 1 min
	LeaseFile string        // "" keeps leases in memory only

	// UnknownPercent of each pool may be held by machines that are not in the
	// boot index, 1 to 100; default 50. The rest stays free for machines that
	// are, whoever floods the network.
	UnknownPercent int
	// UnknownPerSecond is how many new leases unknown machines are given; a
	// burst is four times that. Default 25.
	UnknownPerSecond int
}

// Pool is a range of addresses in one subnet.
type Pool struct {
	Subnet      netip.Prefix
	First, Last netip.Addr // inclusive
	Router      netip.Addr // option 3; the zero value sends none
}

// maxPool bounds what a search for a free address costs.
const maxPool = 1 << 16

// ParseRange reads "10.77.0.100-10.77.0.199" and takes it to lie in subnet.
func ParseRange(s string, subnet netip.Prefix) (Pool, error) {
	first, last, ok := strings.Cut(s, "-")
	a, err1 := netip.ParseAddr(strings.TrimSpace(first))
	b, err2 := netip.ParseAddr(strings.TrimSpace(last))
	if !ok || err1 != nil || err2 != nil {
		return Pool{}, &lpmos.InvalidError{Field: "dhcp_range", Problem: "is not like 10.77.0.100-10.77.0.199", Value: s}
	}
	p := Pool{Subnet: subnet.Masked(), First: a, Last: b}
	return p, p.validate()
}

func (p Pool) validate() error {
	bad := func(problem string) error {
		return &lpmos.InvalidError{Field: "dhcp_range", Problem: problem, Value: fmt.Sprintf("%s-%s in %s", p.First, p.Last, p.Subnet)}
	}
	switch {
	case !p.First.Is4() || !p.Last.Is4() || !p.Subnet.Addr().Is4():
		return bad("is not IPv4")
	case p.Last.Less(p.First):
		return bad("ends before it begins")
	case !p.Subnet.Contains(p.First) || !p.Subnet.Contains(p.Last):
		return bad("is not inside the subnet")
	case p.size() > maxPool:
		return bad("has more than 65536 addresses")
	case p.Router.IsValid() && !p.Subnet.Contains(p.Router):
		return bad("has a router outside the subnet")
	}
	return nil
}

func (p Pool) size() int { return int(toUint(p.Last)-toUint(p.First)) + 1 }

func (p Pool) inRange(a netip.Addr) bool { return a.Is4() && !a.Less(p.First) && !p.Last.Less(a) }

// usable reports whether a host may have a: not the network's own address, not
// its broadcast address.
func (p Pool) usable(a netip.Addr) bool {
	if p.Subnet.Bits() >= 31 {
		return p.Subnet.Contains(a)
	}
	return p.Subnet.Contains(a) && a != p.Subnet.Masked().Addr() && a != p.broadcast()
}

func (p Pool) broadcast() netip.Addr {
	return fromUint(toUint(p.Subnet.Masked().Addr()) | uint32(1<<(32-p.Subnet.Bits())-1))
}

func toUint(a netip.Addr) uint32 { b := a.As4(); return binary.BigEndian.Uint32(b[:]) }

func fromUint(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

func (c Config) withDefaults() Config {
	if c.LeaseTime == 0 {
		c.LeaseTime = 30 * time.Minute
	}
	if c.UnknownPercent == 0 {
		c.UnknownPercent = 50
	}
	if c.UnknownPerSecond == 0 {
		c.UnknownPerSecond = 25
	}
	return c
}

// Validate names the field that cannot be used.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case c.Mode != ModeServer && c.Mode != ModeProxy:
		return &lpmos.InvalidError{Field: "dhcp", Problem: "is neither server nor proxy", Value: string(c.Mode)}
	case !c.ServerID.Is4() || c.ServerID.IsUnspecified():
		return &lpmos.InvalidError{Field: "advertise_host", Problem: "is not an IPv4 address", Value: c.ServerID.String()}
	case c.Mode == ModeProxy:
		return nil
	case len(c.Pools) == 0:
		return &lpmos.InvalidError{Field: "dhcp_range", Problem: "is needed by a DHCP server"}
	case c.LeaseTime < time.Minute:
		return &lpmos.InvalidError{Field: "lease_time", Problem: "is below one minute", Value: c.LeaseTime.String()}
	case c.UnknownPercent < 1 || c.UnknownPercent > 100:
		return &lpmos.InvalidError{Field: "unknown_percent", Problem: "is not 1 to 100"}
	case c.UnknownPerSecond < 1:
		return &lpmos.InvalidError{Field: "unknown_per_second", Problem: "is not positive"}
	}
	for i, p := range c.Pools {
		if err := p.validate(); err != nil {
			return err
		}
		for _, q := range c.Pools[:i] {
			if p.Subnet.Overlaps(q.Subnet) {
				return &lpmos.InvalidError{Field: "dhcp_range", Problem: "is in the subnet of another one", Value: p.Subnet.String()}
			}
		}
	}
	return nil
}
