// Package ra answers IPv6 router solicitations with advertisements of lifetime
// zero (RFC 4861 §§4.1, 4.2, 6.2.6): "there are routers' answers here, and I am
// not a router".
//
// iPXE of 2019 waits 16 seconds for a router before it goes on over IPv4, at
// every boot. An advertisement ends the wait. This one carries no prefix and
// offers nothing, so no host configures an address or a route because of it.
package ra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"

	"golang.org/x/net/ipv6"
)

// ErrNoLinkLocal says that an interface has no IPv6, so that nobody on it
// waits for routers.
var ErrNoLinkLocal = errors.New("no IPv6 link-local address")

const (
	typeSolicitation  = 133
	typeAdvertisement = 134
	hopLimit          = 255 // proves that a packet is from this link
)

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

// Responder answers on one interface.
type Responder struct {
	conn    *ipv6.PacketConn
	iface   *net.Interface
	source  netip.Addr
	log     *slog.Logger
	answers atomic.Int64
	ignored atomic.Int64
}

// Stats counts since the start.
type Stats struct {
	Answers int64
	Ignored int64 // packets that are no valid solicitation
}

// Stats returns a copy.
func (r *Responder) Stats() Stats { return Stats{r.answers.Load(), r.ignored.Load()} }

// Listen opens a responder for an interface; Run closes it. The error wraps
// ErrNoLinkLocal when there is nothing to do.
func Listen(iface string, log *slog.Logger) (*Responder, error) {
	fail := func(err error) (*Responder, error) {
		return nil, fmt.Errorf("answer router solicitations on %s: %w", iface, err)
	}
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return fail(err)
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return fail(err)
	}
	source, ok := linkLocal(addrs)
	if !ok {
		return fail(ErrNoLinkLocal)
	}
	raw, err := net.ListenPacket("ip6:ipv6-icmp", "::%"+iface)
	if err != nil {
		return fail(err)
	}
	conn := ipv6.NewPacketConn(raw)
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	err = errors.Join(
		conn.SetICMPFilter(&filter),
		conn.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true),
		conn.JoinGroup(ifi, &net.IPAddr{IP: allRouters.AsSlice()}),
		conn.SetMulticastInterface(ifi),
		conn.SetMulticastLoopback(false),
		conn.SetChecksum(true, 2),
	)
	if err != nil {
		raw.Close()
		return fail(err)
	}
	return &Responder{conn: conn, iface: ifi, source: source, log: log}, nil
}

func linkLocal(addrs []net.Addr) (netip.Addr, bool) {
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// Run answers until ctx ends. The error is nil unless the socket breaks.
func (r *Responder) Run(ctx context.Context) error {
	defer r.conn.Close()
	stop := context.AfterFunc(ctx, func() { r.conn.Close() })
	defer stop()
	buf := make([]byte, 1500)
	for {
		n, control, from, err := r.conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read router solicitations: %w", err)
		}
		var hops int
		if control != nil && control.IfIndex == r.iface.Index {
			hops = control.HopLimit
		}
		to, ok := answer(buf[:n], source(from), hops)
		if !ok {
			r.ignored.Add(1)
			continue
		}
		_, err = r.conn.WriteTo(advertisement(r.iface.HardwareAddr),
			&ipv6.ControlMessage{HopLimit: hopLimit, Src: r.source.AsSlice(), IfIndex: r.iface.Index},
			&net.IPAddr{IP: to.AsSlice(), Zone: r.iface.Name})
		if err != nil {
			r.log.Debug("send router advertisement", "addr", to, "err", err)
			continue
		}
		r.answers.Add(1)
	}
}

func source(a net.Addr) netip.Addr {
	if ip, ok := a.(*net.IPAddr); ok {
		if from, ok := netip.AddrFromSlice(ip.IP); ok {
			return from
		}
	}
	return netip.Addr{}
}

// answer decides whom a packet is answered to. The kernel has checked the
// checksum; RFC 4861 §6.1.1 is the rest.
func answer(b []byte, from netip.Addr, hops int) (netip.Addr, bool) {
	if len(b) < 8 || b[0] != typeSolicitation || b[1] != 0 || hops != hopLimit || !from.Is6() {
		return netip.Addr{}, false
	}
	for opts := b[8:]; len(opts) > 0; {
		if len(opts) < 2 || opts[1] == 0 || int(opts[1])*8 > len(opts) {
			return netip.Addr{}, false
		}
		opts = opts[int(opts[1])*8:]
	}
	switch {
	case from.IsUnspecified():
		return allNodes, true
	case from.IsLinkLocalUnicast():
		return from, true
	}
	// RFC 4861 allows any address; whoever boots has a link-local one only, and
	// others get no packet they did not need.
	return netip.Addr{}, false
}

// advertisement is an RA with all fields zero (unspecified hop limit, no flags,
// router lifetime 0, timers unspecified) and our link-layer address, so that the
// receiver need not ask for it. The kernel fills in the checksum.
func advertisement(mac net.HardwareAddr) []byte {
	b := make([]byte, 16, 24)
	b[0] = typeAdvertisement
	if len(mac) == 6 {
		b = append(append(b, 1, 1), mac...)
	}
	return b
}
