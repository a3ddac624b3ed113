package pid1

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/lpmos/lpmos"
)

// Lease is an IPv4 configuration from a DHCP server.
type Lease struct {
	Interface string
	MAC       lpmos.MAC
	Address   netip.Prefix // our address with its network's length
	Routes    []Route      // the default route among them
	DNS       []netip.Addr
	Server    netip.Addr // its identifier
	MTU       int        // 0 when not told

	Lifetime time.Duration // 0 is for ever
	Renew    time.Duration // T1, since Since
	Rebind   time.Duration // T2, since Since
	Since    time.Time     // when it was asked for
}

// Route is a destination and the router for it; a zero Via means that it is on
// the link.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// Message types of RFC 2132, 9.6, and the options used here.
const (
	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpACK      = 5
	dhcpNAK      = 6

	optMask        = 1
	optRouter      = 3
	optDNS         = 6
	optMTU         = 26
	optRequestedIP = 50
	optLease       = 51
	optOverload    = 52
	optType        = 53
	optServer      = 54
	optParameters  = 55
	optMaxSize     = 57
	optT1          = 58
	optT2          = 59
	optRoutes      = 121
	optPad         = 0
	optEnd         = 255
)

var magicCookie = []byte{99, 130, 83, 99}

// request is what a client sends.
type request struct {
	typ       byte
	xid       uint32
	mac       lpmos.MAC
	elapsed   time.Duration
	address   netip.Addr // ciaddr, when we have one that works
	requested netip.Addr
	server    netip.Addr
	broadcast bool // answer to everybody: we may not hear otherwise
}

// encode is RFC 2131, figure 1, padded to the 300 bytes of BOOTP that old
// relays insist on.
func (r request) encode() []byte {
	b := make([]byte, 236, 300)
	b[0], b[1], b[2] = 1, 1, 6
	binary.BigEndian.PutUint32(b[4:], r.xid)
	binary.BigEndian.PutUint16(b[8:], uint16(min(r.elapsed/time.Second, 65535)))
	if r.broadcast {
		b[10] = 0x80
	}
	if r.address.Is4() {
		copy(b[12:], r.address.AsSlice())
	}
	copy(b[28:], r.mac[:])
	b = append(b, magicCookie...)
	b = append(b, optType, 1, r.typ)
	if r.requested.Is4() {
		b = append(append(b, optRequestedIP, 4), r.requested.AsSlice()...)
	}
	if r.server.Is4() {
		b = append(append(b, optServer, 4), r.server.AsSlice()...)
	}
	b = append(b, optMaxSize, 2, 0x05, 0xDC) // 1500
	b = append(b, optParameters, 8, optMask, optRoutes, optRouter, optDNS, optMTU, optLease, optT1, optT2)
	b = append(b, optEnd)
	return append(b, make([]byte, max(0, 300-len(b)))...)
}

// reply is what a server answers.
type reply struct {
	typ    byte
	xid    uint32
	mac    lpmos.MAC
	yours  netip.Addr
	server netip.Addr
	opts   map[byte][]byte
}

// decodeReply reads a BOOTREPLY with a DHCP message type; everything else is
// refused. Options that come in pieces are joined (RFC 3396), also from the
// file and sname fields.
func decodeReply(b []byte) (reply, error) {
	if len(b) < 240 || b[0] != 2 || b[1] != 1 || b[2] != 6 || !slices.Equal(b[236:240], magicCookie) {
		return reply{}, errors.New("is not a DHCP reply for Ethernet")
	}
	r := reply{xid: binary.BigEndian.Uint32(b[4:]), mac: lpmos.MAC(b[28:34]), opts: map[byte][]byte{}}
	r.yours = netip.AddrFrom4([4]byte(b[16:20]))
	collect := func(o []byte) {
		for len(o) > 0 && o[0] != optEnd {
			if o[0] == optPad {
				o = o[1:]
				continue
			}
			if len(o) < 2 || len(o) < 2+int(o[1]) {
				return
			}
			end := 2 + int(o[1])
			r.opts[o[0]] = append(r.opts[o[0]], o[2:end]...)
			o = o[end:]
		}
	}
	collect(b[240:])
	if o := r.opts[optOverload]; len(o) == 1 {
		if o[0]&1 != 0 {
			collect(b[108:236])
		}
		if o[0]&2 != 0 {
			collect(b[44:108])
		}
	}
	if t := r.opts[optType]; len(t) == 1 {
		r.typ = t[0]
	}
	if a := r.addresses(optServer); len(a) > 0 {
		r.server = a[0]
	}
	if r.typ == 0 {
		return reply{}, errors.New("has no message type")
	}
	return r, nil
}

func (r reply) addresses(opt byte) []netip.Addr {
	var all []netip.Addr
	for b := r.opts[opt]; len(b) >= 4 && len(all) < 16; b = b[4:] {
		all = append(all, netip.AddrFrom4([4]byte(b)))
	}
	return all
}

func (r reply) seconds(opt byte) (time.Duration, bool) {
	b := r.opts[opt]
	if len(b) != 4 {
		return 0, false
	}
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Second, true
}

// lease is the configuration in an ACK.
func (r reply) lease() (Lease, error) {
	if !usable(r.yours) {
		return Lease{}, fmt.Errorf("the address %s cannot be ours", r.yours)
	}
	mask := net.IP(r.yours.AsSlice()).DefaultMask()
	if m := r.opts[optMask]; len(m) == 4 {
		mask = m
	}
	ones, size := mask.Size()
	if size != 32 || ones == 0 {
		return Lease{}, fmt.Errorf("the netmask %s is none", mask)
	}
	l := Lease{Address: netip.PrefixFrom(r.yours, ones), Server: r.server, DNS: r.addresses(optDNS)}
	if b := r.opts[optMTU]; len(b) == 2 {
		// 576 is the least that IPv4 hosts must take; below is a mistake.
		if mtu := int(binary.BigEndian.Uint16(b)); mtu >= 576 {
			l.MTU = mtu
		}
	}
	l.Routes = classless(r.opts[optRoutes])
	if l.Routes == nil {
		for _, a := range r.addresses(optRouter)[:min(1, len(r.addresses(optRouter)))] {
			if usable(a) {
				l.Routes = []Route{{netip.PrefixFrom(netip.IPv4Unspecified(), 0), a}}
			}
		}
	}
	const forever = 0xFFFFFFFF * time.Second
	lifetime, ok := r.seconds(optLease)
	if !ok || lifetime == forever {
		return l, nil
	}
	// A lease shorter than a minute would have us do little else.
	l.Lifetime = max(lifetime, time.Minute)
	l.Renew, l.Rebind = l.Lifetime/2, l.Lifetime*7/8
	if t1, ok := r.seconds(optT1); ok && t1 > 0 && t1 < l.Lifetime {
		l.Renew = t1
	}
	if t2, ok := r.seconds(optT2); ok && t2 > l.Renew && t2 < l.Lifetime {
		l.Rebind = t2
	}
	return l, nil
}

func usable(a netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a.As4() != [4]byte{255, 255, 255, 255}
}

// classless reads option 121 (RFC 3442): a prefix length, as many bytes of the
// destination as it covers, a router; again and again. nil if it is broken.
func classless(b []byte) []Route {
	var routes []Route
	for len(b) > 0 && len(routes) < 64 {
		ones := int(b[0])
		n := (ones + 7) / 8
		if ones > 32 || len(b) < 1+n+4 {
			return nil
		}
		var to [4]byte
		copy(to[:], b[1:1+n])
		r := Route{To: netip.PrefixFrom(netip.AddrFrom4(to), ones).Masked()}
		if via := netip.AddrFrom4([4]byte(b[1+n:])); !via.IsUnspecified() {
			r.Via = via
		}
		routes = append(routes, r)
		b = b[1+n+4:]
	}
	return routes
}

// transport carries messages to port 67 and those that come to port 68.
type transport interface {
	// send sends to a server, or to everybody if to is not valid.
	send(to netip.Addr, message []byte) error
	// receive returns the next message that came before the deadline.
	receive(deadline time.Time) ([]byte, error)
}

var (
	errRefused = errors.New("the DHCP server refused the address")
	errSilence = errors.New("no DHCP server answered")
)

// client asks for one interface.
type client struct {
	mac  lpmos.MAC
	t    transport
	log  *slog.Logger
	wait time.Duration // for the first answer; doubles up to eight times
}

const firstWait = time.Second

// acquire discovers a server and gets a lease, until ctx ends. Offers without an
// address are those of ProxyDHCP servers and not for us.
func (c *client) acquire(ctx context.Context) (Lease, error) {
	began := time.Now()
	wait := c.wait
	for try := 0; ; try++ {
		req := request{typ: dhcpDiscover, xid: rand.Uint32(), mac: c.mac, elapsed: time.Since(began), broadcast: try >= 2}
		offer, err := c.exchange(ctx, req, netip.Addr{}, wait, func(r reply) bool {
			return r.typ == dhcpOffer && usable(r.yours) && r.server.Is4()
		})
		if err == nil {
			req.typ, req.requested, req.server = dhcpRequest, offer.yours, offer.server
			for range 3 {
				sent := time.Now()
				req.elapsed = time.Since(began)
				var ack reply
				ack, err = c.exchange(ctx, req, netip.Addr{}, wait, func(r reply) bool {
					return (r.typ == dhcpACK || r.typ == dhcpNAK) && r.server == offer.server
				})
				if err != nil {
					continue
				}
				if ack.typ == dhcpNAK {
					err = errRefused
					break
				}
				l, bad := ack.lease()
				if bad == nil {
					l.MAC, l.Since = c.mac, sent
					return l, nil
				}
				err = bad
				break
			}
		}
		if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
			<-ctx.Done() // its timer may be a moment later than the clock
		}
		if ctx.Err() != nil {
			return Lease{}, fmt.Errorf("%w: %w", err, ctx.Err())
		}
		c.log.Debug("dhcp again", "mac", c.mac, "err", err)
		if errors.Is(err, errRefused) {
			// The server told us at once; do not make it a storm.
			pause(ctx, wait)
		}
		wait = min(2*wait, 8*c.wait)
	}
}

// renew asks the server, or everybody if server is not valid, for more time.
func (c *client) renew(ctx context.Context, l Lease, server netip.Addr) (Lease, error) {
	sent := time.Now()
	req := request{typ: dhcpRequest, xid: rand.Uint32(), mac: c.mac, address: l.Address.Addr()}
	ack, err := c.exchange(ctx, req, server, c.wait, func(r reply) bool { return r.typ == dhcpACK || r.typ == dhcpNAK })
	if err != nil {
		return Lease{}, err
	}
	if ack.typ == dhcpNAK {
		return Lease{}, errRefused
	}
	next, err := ack.lease()
	next.MAC, next.Since, next.Interface = l.MAC, sent, l.Interface
	return next, err
}

// exchange sends req once and returns the first answer to it that is wanted.
// The wait varies by a quarter, so that a rack that got its power back at once
// does not speak in chorus.
func (c *client) exchange(ctx context.Context, req request, to netip.Addr, wait time.Duration, wanted func(reply) bool) (reply, error) {
	if err := c.t.send(to, req.encode()); err != nil {
		pause(ctx, wait)
		return reply{}, fmt.Errorf("send: %w", err)
	}
	deadline := time.Now().Add(wait*3/4 + rand.N(wait/2))
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	for ctx.Err() == nil {
		b, err := c.t.receive(deadline)
		if err != nil {
			break
		}
		if r, err := decodeReply(b); err == nil && r.xid == req.xid && r.mac == req.mac && wanted(r) {
			return r, nil
		}
		if !time.Now().Before(deadline) {
			break
		}
	}
	return reply{}, errSilence
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
