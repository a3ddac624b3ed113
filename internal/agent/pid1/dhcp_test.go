package pid1

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lpmos/lpmos"
)

var (
	testMAC = lpmos.MustMAC("02:00:00:00:00:01")
	server  = netip.MustParseAddr("10.77.0.1")
	ours    = netip.MustParseAddr("10.77.0.23")
)

// answer is a server's message to a request.
func answer(req []byte, typ byte, yours netip.Addr, opts ...[]byte) []byte {
	b := make([]byte, 236, 400)
	b[0], b[1], b[2] = 2, 1, 6
	copy(b[4:8], req[4:8])
	copy(b[28:34], req[28:34])
	copy(b[16:], yours.AsSlice())
	b = append(b, magicCookie...)
	b = append(b, optType, 1, typ)
	for _, o := range opts {
		b = append(b, o...)
	}
	return append(b, optEnd)
}

func option(code byte, v ...byte) []byte { return append([]byte{code, byte(len(v))}, v...) }

func seconds(code byte, n uint32) []byte {
	return option(code, binary.BigEndian.AppendUint32(nil, n)...)
}

var usual = [][]byte{option(optServer, 10, 77, 0, 1), option(optMask, 255, 255, 255, 0), option(optRouter, 10, 77, 0, 254),
	option(optDNS, 10, 77, 0, 1, 1, 1, 1, 1), option(optMTU, 0x05, 0x78), seconds(optLease, 3600)}

// sent is what a client sent, as a server reads it.
type sent struct {
	typ       byte
	at        time.Duration
	to        netip.Addr
	broadcast bool
	ciaddr    netip.Addr
	opts      map[byte][]byte
}

// fakeNet hands requests to a function and its messages back.
type fakeNet struct {
	start  time.Time
	log    []sent
	queue  [][]byte
	handle func(sent, []byte) [][]byte
}

func (f *fakeNet) send(to netip.Addr, b []byte) error {
	s := sent{at: time.Since(f.start), to: to, broadcast: b[10]&0x80 != 0, ciaddr: netip.AddrFrom4([4]byte(b[12:16])), opts: map[byte][]byte{}}
	for o := b[240:]; o[0] != optEnd; o = o[2+int(o[1]):] {
		s.opts[o[0]] = o[2 : 2+int(o[1])]
	}
	s.typ = s.opts[optType][0]
	f.log = append(f.log, s)
	f.queue = append(f.queue, f.handle(s, b)...)
	return nil
}

func (f *fakeNet) receive(deadline time.Time) ([]byte, error) {
	if len(f.queue) == 0 {
		time.Sleep(time.Until(deadline))
		return nil, os.ErrDeadlineExceeded
	}
	b := f.queue[0]
	f.queue = f.queue[1:]
	return b, nil
}

// ordinary answers as a server does.
func ordinary(s sent, req []byte) [][]byte {
	if s.typ == dhcpDiscover {
		return [][]byte{answer(req, dhcpOffer, ours, usual...)}
	}
	return [][]byte{answer(req, dhcpACK, ours, usual...)}
}

func newFake(handle func(sent, []byte) [][]byte) (*client, *fakeNet) {
	f := &fakeNet{start: time.Now(), handle: handle}
	return &client{mac: testMAC, t: f, log: quiet, wait: firstWait}, f
}

func TestAcquire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := newFake(ordinary)
		got, err := c.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := Lease{MAC: testMAC, Address: netip.MustParsePrefix("10.77.0.23/24"), Server: server, MTU: 1400,
			Routes:   []Route{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.77.0.254")}},
			DNS:      []netip.Addr{server, netip.MustParseAddr("1.1.1.1")},
			Lifetime: time.Hour, Renew: 30 * time.Minute, Rebind: 52*time.Minute + 30*time.Second, Since: got.Since}
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Errorf("acquire (-want +got):\n%s", d)
		}
		if len(f.log) != 2 || f.log[1].typ != dhcpRequest || !slices.Equal(f.log[1].opts[optRequestedIP], ours.AsSlice()) || !slices.Equal(f.log[1].opts[optServer], server.AsSlice()) {
			t.Errorf("sent %+v; want a discover, and a request that names address and server", f.log)
		}
		for _, s := range f.log {
			if _, ok := s.opts[61]; ok || s.broadcast {
				t.Errorf("sent %+v; want no client identifier, as firmware, and no broadcast flag", s)
			}
		}
	})
}

func TestAcquireSkipsWhatIsNotForUs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := newFake(func(s sent, req []byte) [][]byte {
			other := slices.Clone(req)
			other[4] ^= 1
			mac := slices.Clone(req)
			mac[30] ^= 1
			return append([][]byte{nil, []byte("garbage"), make([]byte, 240),
				answer(req, dhcpOffer, netip.IPv4Unspecified(), usual...), // ProxyDHCP
				answer(req, dhcpOffer, ours),                              // no server identifier
				answer(other, dhcpACK, ours, usual...), answer(mac, dhcpACK, ours, usual...),
				answer(req, dhcpNAK, netip.IPv4Unspecified(), option(optServer, 10, 77, 0, 9)), // another server's
			}, ordinary(s, req)...)
		})
		l, err := c.acquire(t.Context())
		if err != nil || l.Address.Addr() != ours || len(f.log) != 2 {
			t.Errorf("acquire = %+v, %v after %d messages; want %s after 2", l, err, len(f.log), ours)
		}
	})
}

func TestAcquireRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := newFake(func(s sent, req []byte) [][]byte { return nil })
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		_, err := c.acquire(ctx)
		if !errors.Is(err, errSilence) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("acquire = %v; want silence and the deadline", err)
		}
		if took := time.Since(f.start); took != 40*time.Second {
			t.Errorf("acquire took %s; want its 40 s", took)
		}
		// 1 + 2 + 4 + 8 + 8 + … seconds, each more or less by a quarter.
		if n := len(f.log); n < 6 || n > 9 {
			t.Errorf("%d messages in 40 s", n)
		}
		if f.log[1].broadcast || !f.log[2].broadcast {
			t.Error("the broadcast flag is not tried from the third time on")
		}
	})
}

func TestAcquireAfterNAK(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		naks := 2
		c, f := newFake(nil)
		f.handle = func(s sent, req []byte) [][]byte {
			if s.typ == dhcpRequest && naks > 0 {
				naks--
				return [][]byte{answer(req, dhcpNAK, netip.IPv4Unspecified(), option(optServer, 10, 77, 0, 1))}
			}
			return ordinary(s, req)
		}
		if _, err := c.acquire(t.Context()); err != nil || len(f.log) != 6 {
			t.Errorf("acquire = %v after %d messages; want success at the third attempt", err, len(f.log))
		}
		if took := time.Since(f.start); took < 2*time.Second {
			t.Errorf("two refusals took %s; want a pause after each", took)
		}
	})
}

func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := newFake(ordinary)
		l, err := c.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(l.Renew)
		next, err := c.renew(t.Context(), l, l.Server)
		if err != nil || next.Address != l.Address || !next.Since.Equal(l.Since.Add(l.Renew)) {
			t.Errorf("renew = %+v, %v", next, err)
		}
		s := f.log[2]
		if s.typ != dhcpRequest || s.to != server || s.ciaddr != ours || s.opts[optRequestedIP] != nil || s.opts[optServer] != nil {
			t.Errorf("sent %+v; want a request to the server with only ciaddr (RFC 2131, 4.3.2)", s)
		}
		f.handle = func(_ sent, req []byte) [][]byte { return [][]byte{answer(req, dhcpNAK, netip.IPv4Unspecified())} }
		if _, err := c.renew(t.Context(), l, netip.Addr{}); !errors.Is(err, errRefused) {
			t.Errorf("renew = %v; want a refusal", err)
		}
	})
}

func TestLeaseOptions(t *testing.T) {
	req := request{mac: testMAC}.encode()
	tests := []struct {
		name string
		opts [][]byte
		want func(Lease) bool
	}{
		{"no mask is the class's", [][]byte{option(optServer, 10, 77, 0, 1)}, func(l Lease) bool { return l.Address.Bits() == 8 && l.Lifetime == 0 }},
		{"for ever", [][]byte{option(optMask, 255, 255, 0, 0), seconds(optLease, 0xFFFFFFFF)}, func(l Lease) bool { return l.Address.Bits() == 16 && l.Lifetime == 0 }},
		{"a second is a minute", [][]byte{seconds(optLease, 1)}, func(l Lease) bool { return l.Lifetime == time.Minute && l.Renew == 30*time.Second }},
		{"own times", [][]byte{seconds(optLease, 1000), seconds(optT1, 100), seconds(optT2, 200)}, func(l Lease) bool { return l.Renew == 100*time.Second && l.Rebind == 200*time.Second }},
		{"mad times", [][]byte{seconds(optLease, 1000), seconds(optT1, 5000), seconds(optT2, 1)}, func(l Lease) bool { return l.Renew == 500*time.Second && l.Rebind == 875*time.Second }},
		{"classless routes instead of the router", [][]byte{option(optRouter, 10, 0, 0, 1), option(optRoutes, 0, 10, 0, 0, 2, 16, 172, 16, 0, 0, 0, 0)}, func(l Lease) bool {
			return slices.Equal(l.Routes, []Route{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.0.0.2")}, {To: netip.MustParsePrefix("172.16.0.0/16")}})
		}},
		{"broken classless routes", [][]byte{option(optRouter, 10, 0, 0, 1), option(optRoutes, 33, 10, 0, 0, 2)}, func(l Lease) bool {
			return len(l.Routes) == 1 && l.Routes[0].Via == netip.MustParseAddr("10.0.0.1")
		}},
		{"an option in two pieces", [][]byte{option(optDNS, 1, 1), option(optDNS, 1, 1)}, func(l Lease) bool { return len(l.DNS) == 1 }},
		{"options as long as they can be", [][]byte{option(224, make([]byte, 254)...), option(225, make([]byte, 255)...), option(optMTU, 0x05, 0x78)}, func(l Lease) bool { return l.MTU == 1400 }},
		{"a tiny MTU", [][]byte{option(optMTU, 0, 68)}, func(l Lease) bool { return l.MTU == 0 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := decodeReply(answer(req, dhcpACK, ours, tt.opts...))
			if err != nil {
				t.Fatal(err)
			}
			l, err := r.lease()
			if err != nil || !tt.want(l) {
				t.Errorf("lease = %+v, %v", l, err)
			}
		})
	}
	for _, a := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"} {
		r, _ := decodeReply(answer(req, dhcpACK, netip.MustParseAddr(a), usual...))
		if l, err := r.lease(); err == nil {
			t.Errorf("lease of %s = %+v; want an error", a, l)
		}
	}
	r, _ := decodeReply(answer(req, dhcpACK, ours, option(optMask, 255, 0, 255, 0)))
	if _, err := r.lease(); err == nil {
		t.Error("a netmask with a hole is accepted")
	}
}

func FuzzDecodeReply(f *testing.F) {
	req := request{mac: testMAC}.encode()
	f.Add(answer(req, dhcpACK, ours, usual...))
	f.Add(answer(req, dhcpOffer, ours, option(optOverload, 3), option(optRoutes, 32, 1, 2, 3, 4)))
	f.Add(answer(req, dhcpOffer, ours, option(optRoutes, make([]byte, 255)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeReply(b)
		if err != nil {
			return
		}
		if l, err := r.lease(); err == nil && (!usable(l.Address.Addr()) || l.Address.Bits() < 1 || l.Lifetime < 0 || l.Renew > l.Lifetime || l.Rebind > l.Lifetime) {
			t.Errorf("lease %+v", l)
		}
	})
}

func TestUDP(t *testing.T) {
	m := request{typ: dhcpDiscover, mac: testMAC, xid: 7}.encode()
	if len(m) != 300 {
		t.Errorf("a message has %d bytes; want 300", len(m))
	}
	p := udpBroadcast(m)
	if checksum(p[:20], 0) != 0 {
		t.Error("the checksum of the IP header is wrong")
	}
	if checksum(p[20:], uint32(0xFFFF)+0xFFFF+17+uint32(len(p)-20)) != 0 {
		t.Error("the checksum of UDP is wrong")
	}
	if udpPayload(p) != nil {
		t.Error("a message to port 67 is taken for one to us")
	}
	binary.BigEndian.PutUint16(p[20:], 67)
	binary.BigEndian.PutUint16(p[22:], 68)
	if got := udpPayload(append(slices.Clone(p), 0, 0, 0)); !slices.Equal(got, m) {
		t.Errorf("payload = %x; want the message without the padding of its frame", got)
	}
	for n := range len(p) {
		if udpPayload(p[:n]) != nil {
			t.Errorf("a packet cut to %d bytes has a payload", n)
		}
	}
}

func FuzzUDPPayload(f *testing.F) {
	f.Add(udpBroadcast([]byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) { udpPayload(b) })
}
