package dhcpd

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/region/netboot"
)

var update = flag.Bool("update", false, "rewrite golden files")

var (
	t0       = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	serverID = netip.MustParseAddr("10.77.0.1")
	knownMAC = lpmos.MustMAC("52:54:00:00:00:01")
	fixedMAC = lpmos.MustMAC("52:54:00:00:00:02")
	fixed    = netip.MustParseAddr("10.77.0.50")
)

type view map[lpmos.MAC]lpmos.BootEntry

func (v view) Lookup(m lpmos.MAC) (lpmos.BootEntry, bool) { e, ok := v[m]; return e, ok }
func (v view) Synced() bool                               { return true }

var index = view{
	knownMAC: {MAC: knownMAC, Action: lpmos.BootAgent, TaskID: "6ba7b810-9dad-41d1-80b4-00c04fd430c8"},
	fixedMAC: {MAC: fixedMAC, Action: lpmos.BootLocal, Address: fixed},
}

func testDecider(tb testing.TB, v view) *netboot.Decider {
	tb.Helper()
	d, err := netboot.New(netboot.Config{BootURL: "http://10.77.0.1:8081", NextServer: serverID, Unknown: netboot.Ignore}, v)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func testConfig() Config {
	return Config{Mode: ModeServer, ServerID: serverID, DNS: []netip.Addr{serverID}, NTP: []netip.Addr{serverID},
		Pools: []Pool{{Subnet: netip.MustParsePrefix("10.77.0.0/24"), First: netip.MustParseAddr("10.77.0.100"),
			Last: netip.MustParseAddr("10.77.0.199"), Router: serverID}}}
}

// bench is a server without sockets and a clock that the test moves.
type bench struct {
	*Server
	tb  testing.TB
	now time.Time
}

func newBench(tb testing.TB, cfg Config) *bench {
	tb.Helper()
	b := &bench{tb: tb, now: t0}
	s, err := New(cfg, testDecider(tb, index), Conns{}, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	s.now = func() time.Time { return b.now }
	b.Server = s
	return b
}

var clientFrom = netip.MustParseAddrPort("0.0.0.0:68")

func (b *bench) send(p *dhcpv4.DHCPv4) outcome {
	return b.Server.handle(b.now, p.ToBytes(), clientFrom, viaServer)
}

func hw(m lpmos.MAC) net.HardwareAddr { return net.HardwareAddr(m[:]) }

func discover(m lpmos.MAC, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	p, err := dhcpv4.NewDiscovery(hw(m), mods...)
	if err != nil {
		panic(err)
	}
	p.TransactionID = dhcpv4.TransactionID{1, 2, 3, 4}
	return p
}

func message(m lpmos.MAC, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	return discover(m, append(mods, dhcpv4.WithMessageType(kind))...)
}

func asking(a netip.Addr) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip(a)))
}
func from(a netip.Addr) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip(a)))
}
func having(a netip.Addr) dhcpv4.Modifier { return dhcpv4.WithClientIP(ip(a)) }
func pxe(arch int) dhcpv4.Modifier {
	return func(p *dhcpv4.DHCPv4) {
		p.UpdateOption(dhcpv4.OptClassIdentifier(fmt.Sprintf("PXEClient:Arch:%05d:UNDI:003001", arch)))
		p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{byte(arch >> 8), byte(arch)}))
	}
}

// join does discover and request and returns the address.
func (b *bench) join(m lpmos.MAC) netip.Addr {
	b.tb.Helper()
	offer := b.send(discover(m)).packet
	if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer {
		b.tb.Fatalf("discover of %s = %v; want an offer", m, offer)
	}
	a := addr(offer.YourIPAddr)
	o := b.send(message(m, dhcpv4.MessageTypeRequest, asking(a), from(serverID)))
	if o.packet == nil || o.packet.MessageType() != dhcpv4.MessageTypeAck || o.lease == nil {
		b.tb.Fatalf("request of %s for %s = %v; want an ack and a lease to write", m, a, o.packet)
	}
	return a
}

func unknown(n int) lpmos.MAC {
	return lpmos.MAC{0x02, 0xff, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

func TestAMachineKeepsItsAddress(t *testing.T) {
	b := newBench(t, testConfig())
	a := b.join(knownMAC)
	if l, ok := b.Lease(knownMAC); !ok || l.Address != a {
		t.Errorf("Lease = %+v, %v; want %s", l, ok, a)
	}
	if l, ok := b.ByAddress(netip.AddrFrom16(a.As16())); !ok || l.MAC != knownMAC {
		t.Errorf("ByAddress(%s) = %+v, %v; want %s", a, l, ok, knownMAC)
	}
	// The firmware, iPXE and the agent come with identifiers of their own.
	for _, id := range []string{"\x01firmware", "\xffagent"} {
		o := b.send(discover(knownMAC, dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte(id)))))
		if got := addr(o.packet.YourIPAddr); got != a {
			t.Errorf("with client identifier %q the address is %s; want %s", id, got, a)
		}
		if got := o.packet.Options.Get(dhcpv4.OptionClientIdentifier); string(got) != id {
			t.Errorf("client identifier in the reply = %q; want %q (RFC 6842)", got, id)
		}
	}
	b.now = b.now.Add(b.cfg.LeaseTime + time.Second)
	if _, ok := b.Lease(knownMAC); ok {
		t.Error("a lease is there after its time")
	}
	for i := range 40 {
		if got := b.join(unknown(i)); got == a {
			t.Fatalf("unknown machine %d got %s, though other addresses were never used", i, a)
		}
	}
	if got := b.join(knownMAC); got != a {
		t.Errorf("after its lease ended the machine got %s; want %s again", got, a)
	}
}

func TestAFixedAddressIsHonoured(t *testing.T) {
	b := newBench(t, testConfig())
	if got := b.join(fixedMAC); got != fixed {
		t.Errorf("address = %s; want %s", got, fixed)
	}
}

func TestRequest(t *testing.T) {
	in := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	ack, nak, none := dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak, dhcpv4.MessageTypeNone
	mine := in("10.77.0.100")
	tests := []struct {
		name   string
		joined bool // the machine has 10.77.0.100
		mods   []dhcpv4.Modifier
		want   dhcpv4.MessageType
		to     string
	}{
		{"selecting what was offered", true, []dhcpv4.Modifier{asking(mine), from(serverID)}, ack, "255.255.255.255:68"},
		{"selecting something else", true, []dhcpv4.Modifier{asking(in("10.77.0.101")), from(serverID)}, nak, "255.255.255.255:68"},
		{"selecting without an offer", false, []dhcpv4.Modifier{asking(mine), from(serverID)}, nak, "255.255.255.255:68"},
		{"selecting another server", true, []dhcpv4.Modifier{asking(mine), from(in("10.77.0.2"))}, none, ""},
		{"rebooted with its lease", true, []dhcpv4.Modifier{asking(mine)}, ack, "255.255.255.255:68"},
		{"rebooted with another's address", true, []dhcpv4.Modifier{asking(in("10.77.0.110"))}, nak, "255.255.255.255:68"},
		{"rebooted in another network", true, []dhcpv4.Modifier{asking(in("192.0.2.1"))}, nak, "255.255.255.255:68"},
		{"rebooted with a lease we do not know", false, []dhcpv4.Modifier{asking(mine)}, none, ""},
		{"renewing", true, []dhcpv4.Modifier{having(mine)}, ack, "10.77.0.100:68"},
		{"renewing what we forgot", false, []dhcpv4.Modifier{having(in("10.77.0.150"))}, ack, "10.77.0.150:68"},
		{"renewing what is the server's", false, []dhcpv4.Modifier{having(serverID)}, nak, "255.255.255.255:68"},
		{"renewing another network's", true, []dhcpv4.Modifier{having(in("192.0.2.1"))}, none, ""},
		{"wrong network through a relay", false, []dhcpv4.Modifier{asking(in("192.0.2.1")), dhcpv4.WithGatewayIP(ip(in("10.77.0.9")))}, nak, "10.77.0.9:67"},
		{"asking for nothing", false, nil, none, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, testConfig())
			if tt.joined {
				b.join(knownMAC)
			}
			o := b.send(message(knownMAC, dhcpv4.MessageTypeRequest, tt.mods...))
			got := none
			if o.packet != nil {
				got = o.packet.MessageType()
			}
			if got != tt.want || tt.to != "" && o.to.String() != tt.to {
				t.Errorf("answer = %v to %v; want %v to %s", got, o.to, tt.want, tt.to)
			}
			if (got == ack) != (o.lease != nil) {
				t.Errorf("lease to write = %v with answer %v", o.lease, got)
			}
			if got == nak && o.packet.YourIPAddr != nil && !o.packet.YourIPAddr.IsUnspecified() {
				t.Errorf("nak with address %v", o.packet.YourIPAddr)
			}
		})
	}
}

func TestReleaseDeclineInform(t *testing.T) {
	t.Run("a released address is free, and written so", func(t *testing.T) {
		b := newBench(t, testConfig())
		a := b.join(knownMAC)
		o := b.send(message(knownMAC, dhcpv4.MessageTypeRelease, having(a), from(serverID)))
		if _, ok := b.Lease(knownMAC); ok || o.packet != nil || o.lease == nil || o.lease.Until.After(b.now) {
			t.Errorf("after release: lease %v, answer %v, record %+v", ok, o.packet, o.lease)
		}
	})
	t.Run("nobody releases or declines for another", func(t *testing.T) {
		b := newBench(t, testConfig())
		a := b.join(knownMAC)
		b.send(message(unknown(1), dhcpv4.MessageTypeRelease, having(a), from(serverID)))
		b.send(message(unknown(1), dhcpv4.MessageTypeDecline, asking(a), from(serverID)))
		if _, ok := b.Lease(knownMAC); !ok {
			t.Error("the lease is gone")
		}
	})
	t.Run("a declined address rests", func(t *testing.T) {
		b := newBench(t, testConfig())
		a := b.join(knownMAC)
		b.send(message(knownMAC, dhcpv4.MessageTypeDecline, asking(a), from(serverID)))
		if got := b.join(knownMAC); got == a {
			t.Errorf("the machine got %s again, which is in use", a)
		}
		if st := b.Stats(); st.Declined != 1 {
			t.Errorf("Declined = %d; want 1", st.Declined)
		}
	})
	t.Run("inform gives options and no address", func(t *testing.T) {
		b := newBench(t, testConfig())
		a := netip.MustParseAddr("10.77.0.20")
		o := b.send(message(unknown(1), dhcpv4.MessageTypeInform, having(a)))
		if o.packet == nil || addr(o.packet.YourIPAddr).IsValid() || o.packet.Options.Has(dhcpv4.OptionIPAddressLeaseTime) ||
			len(o.packet.DNS()) != 1 || o.to.String() != "10.77.0.20:68" {
			t.Errorf("answer to inform = %v to %v", o.packet, o.to)
		}
	})
}

func TestRelay(t *testing.T) {
	cfg := testConfig()
	cfg.Pools = append(cfg.Pools, Pool{Subnet: netip.MustParsePrefix("10.78.0.0/16"), First: netip.MustParseAddr("10.78.1.0"), Last: netip.MustParseAddr("10.78.1.255")})
	b := newBench(t, cfg)
	info := dhcpv4.OptRelayAgentInfo(dhcpv4.OptGeneric(dhcpv4.AgentCircuitIDSubOption, []byte("swp7")))
	relay := netip.MustParseAddr("10.78.0.1")
	o := b.send(discover(knownMAC, dhcpv4.WithGatewayIP(ip(relay)), dhcpv4.WithOption(info)))
	if o.packet == nil || o.to != netip.AddrPortFrom(relay, 67) || !cfg.Pools[1].inRange(addr(o.packet.YourIPAddr)) {
		t.Fatalf("answer = %v to %v; want an address of the relay's network, sent to it", o.packet, o.to)
	}
	if diff := cmp.Diff(info.Value.ToBytes(), o.packet.Options.Get(dhcpv4.OptionRelayAgentInformation)); diff != "" {
		t.Errorf("option 82 (-sent +answered):\n%s", diff)
	}
	raw := o.packet.ToBytes()
	if i := strings.LastIndex(string(raw), "swp7"); i < 0 || raw[i+4] != 255 {
		t.Error("option 82 is not the last one (RFC 3046 §2.1)")
	}
	o = b.send(discover(unknown(1), dhcpv4.WithGatewayIP(net.IPv4(192, 0, 2, 1))))
	if o.packet != nil {
		t.Errorf("a relay of an unknown network is answered: %v", o.packet)
	}
}

// TestUnknownMachinesCannotStarveKnownOnes is a flood of invented addresses.
func TestUnknownMachinesCannotStarveKnownOnes(t *testing.T) {
	b := newBench(t, testConfig())
	offers := 0
	for i := range 10_000 {
		b.now = b.now.Add(time.Millisecond)
		o := b.send(discover(unknown(i)))
		if o.packet == nil {
			continue
		}
		offers++
		m := unknown(i)
		b.send(message(m, dhcpv4.MessageTypeRequest, asking(addr(o.packet.YourIPAddr)), from(serverID)))
		if i%3 == 0 { // neither declining nor releasing makes room for more
			b.send(message(m, dhcpv4.MessageTypeDecline, asking(addr(o.packet.YourIPAddr)), from(serverID)))
		}
	}
	if offers > 50 {
		t.Errorf("unknown machines were offered %d of 100 addresses; want at most 50", offers)
	}
	for i := range 50 {
		m := lpmos.MAC{0x52, 0x54, 0, 1, 0, byte(i)}
		index[m] = lpmos.BootEntry{MAC: m, Action: lpmos.BootLocal}
		defer delete(index, m)
		b.join(m)
	}
	if st := b.Stats(); st.Dropped["unknown"] < 9_000 || st.Unknown > 50 {
		t.Errorf("Stats = %+v; want the flood counted", st)
	}
}

func TestUnknownMachinesComeAtALimitedRate(t *testing.T) {
	cfg := testConfig()
	cfg.UnknownPerSecond, cfg.UnknownPercent = 5, 100
	b := newBench(t, cfg)
	offers := 0
	for i := range 1000 {
		if b.send(discover(unknown(i))).packet != nil {
			offers++
		}
	}
	if offers != 20 {
		t.Errorf("%d offers at once; want the burst of 20", offers)
	}
	b.now = b.now.Add(time.Second)
	for i := range 1000 {
		if b.send(discover(unknown(1000+i))).packet != nil {
			offers++
		}
	}
	if offers != 25 {
		t.Errorf("%d offers after one second; want 25", offers)
	}
}

func TestAFullPoolTakesTheLongestUnused(t *testing.T) {
	cfg := testConfig()
	cfg.Pools[0].Last = netip.MustParseAddr("10.77.0.101")
	cfg.UnknownPercent = 100
	b := newBench(t, cfg)
	first := b.join(unknown(1))
	b.now = b.now.Add(time.Minute)
	b.join(unknown(2))
	if o := b.send(discover(unknown(3))); o.packet != nil {
		t.Fatalf("a full pool offers %v", o.packet.YourIPAddr)
	}
	b.now = b.now.Add(time.Hour)
	if got := b.join(unknown(3)); got != first {
		t.Errorf("address = %s; want %s, which has been free for longest", got, first)
	}
	if _, ok := b.Lease(unknown(1)); ok {
		t.Error("the old owner still has a lease")
	}
}

// raw is a well-formed discover to be damaged.
func raw() []byte { return discover(knownMAC).ToBytes() }

func TestGarbageIsDropped(t *testing.T) {
	at := func(i int, v byte) []byte { b := raw(); b[i] = v; return b }
	end := slices.Index(raw()[240:], 255) + 240
	options := func(opts ...byte) []byte { return append(raw()[:240], opts...) }
	tests := []struct {
		name   string
		packet []byte
		want   drop
	}{
		{"empty", nil, dropShort},
		{"short", raw()[:239], dropShort},
		{"longer than a frame", append(raw(), make([]byte, 1500)...), dropLong},
		{"hlen 0", at(2, 0), dropHardware},
		{"hlen 16", at(2, 16), dropHardware},
		{"hlen 255", at(2, 255), dropHardware},
		{"htype InfiniBand", at(1, 32), dropHardware},
		{"multicast client", at(28, 0x01), dropHardware},
		{"op 2", at(0, 2), dropReply},
		{"op 0", at(0, 0), dropReply},
		{"bad cookie", at(236, 98), dropMalformed},
		{"no options at all", options(), dropNoType},
		{"no message type", options(255), dropNoType},
		{"message type of two bytes", options(53, 2, 1, 1, 255), dropNoType},
		{"message type twice", options(53, 1, 1, 53, 1, 1, 255), dropNoType},
		{"no end", raw()[:end], dropMalformed},
		{"length past the end", options(53, 1, 1, 12, 200, 'x', 255), dropMalformed},
		{"code without length", options(53, 1, 1, 12), dropMalformed},
		{"an address of three bytes", options(53, 1, 3, 50, 3, 1, 2, 3, 255), dropMalformed},
		{"a server id of five bytes", options(53, 1, 3, 54, 5, 1, 2, 3, 4, 5, 255), dropMalformed},
		{"an offer from a client", options(53, 1, 2, 255), dropKind},
		{"message type 200", options(53, 1, 200, 255), dropKind},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, testConfig())
			o := b.Server.handle(b.now, tt.packet, clientFrom, viaServer)
			if st := b.Stats(); o.packet != nil || st.Dropped[string(tt.want)] != 1 || st.Received != 1 {
				t.Errorf("answer %v, dropped %v; want no answer and %q", o.packet, st.Dropped, tt.want)
			}
		})
	}
}

// TestOptionOverload: options in the sname and file fields are not read, and
// those outside keep their meaning.
func TestOptionOverload(t *testing.T) {
	for _, overload := range []byte{1, 2, 3, 4, 255} {
		p := raw()[:240]
		for i, field := range [][]byte{p[108:236], p[44:108]} { // file, sname
			copy(field, []byte{52, 1, 3, 50, 4, 10, 77, 0, byte(150 + i), 53, 1, 7, 255})
		}
		p = append(p, 52, 1, overload, 53, 1, 1, 255)
		b := newBench(t, testConfig())
		o := b.Server.handle(b.now, p, clientFrom, viaServer)
		if o.packet == nil || o.packet.MessageType() != dhcpv4.MessageTypeOffer || o.packet.YourIPAddr.String() != "10.77.0.100" {
			t.Errorf("overload %d: answer %v; want an offer that is not steered by the fields", overload, o.packet)
		}
	}
}

// TestHostileText: what a packet says reaches logs as one printable word, and
// neither boot file nor address depends on it.
func TestHostileText(t *testing.T) {
	var text strings.Builder
	cfg := testConfig()
	s, err := New(cfg, testDecider(t, index), Conns{}, slog.New(slog.NewTextHandler(&text, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, evil := range []string{strings.Repeat("A", 255), "a\x00b", "a\nlevel=ERROR msg=forged", "${shell}", "<script>alert(1)</script>", "\xff\xfe\xe2\x80\xae"} {
		for _, code := range []uint8{12, 60, 61, 77, 93, 97} {
			value := evil
			if code == 60 {
				value = "PXEClient" + evil[:min(len(evil), 246)]
			}
			p := discover(knownMAC, pxe(7), dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), []byte(value))))
			o := s.handle(t0, p.ToBytes(), clientFrom, viaServer)
			if o.packet == nil {
				continue
			}
			if f := o.packet.BootFileName; f != "" && f != "snponly.efi" {
				t.Errorf("option %d %q gives boot file %q", code, evil, f)
			}
			s.announcements = map[announced]time.Time{}
			p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
			p.UpdateOption(dhcpv4.OptRequestedIPAddress(o.packet.YourIPAddr))
			p.UpdateOption(dhcpv4.OptServerIdentifier(ip(serverID)))
			s.handle(t0, p.ToBytes(), clientFrom, viaServer)
		}
	}
	for line := range strings.Lines(text.String()) {
		if !strings.HasPrefix(line, "time=") || strings.Contains(line, "level=ERROR msg=forged\n") || len(line) > 1000 {
			t.Errorf("log line %q", line)
		}
		for _, c := range []byte(strings.TrimSuffix(line, "\n")) {
			if c < ' ' || c > '~' {
				t.Errorf("log line has byte %#x: %q", c, line)
			}
		}
	}
	if text.Len() == 0 {
		t.Error("no boot decision was logged")
	}
}

func TestABootIsLoggedOnce(t *testing.T) {
	var text strings.Builder
	s, err := New(testConfig(), testDecider(t, index), Conns{}, slog.New(slog.NewTextHandler(&text, nil)))
	if err != nil {
		t.Fatal(err)
	}
	boot := func(now time.Time) {
		for range 3 { // firmware repeats itself
			o := s.handle(now, discover(knownMAC, pxe(7)).ToBytes(), clientFrom, viaServer)
			s.handle(now, message(knownMAC, dhcpv4.MessageTypeRequest, pxe(7), asking(addr(o.packet.YourIPAddr)), from(serverID)).ToBytes(), clientFrom, viaServer)
		}
	}
	boot(t0)
	boot(t0.Add(5 * time.Minute))
	if n := strings.Count(text.String(), "boot offered"); n != 2 {
		t.Errorf("%d log lines for two boots:\n%s", n, text.String())
	}
}

func TestForeignServers(t *testing.T) {
	b := newBench(t, testConfig())
	rogue := netip.MustParseAddr("10.77.0.66")
	choose := message(knownMAC, dhcpv4.MessageTypeRequest, asking(netip.MustParseAddr("10.77.0.100")), from(rogue))
	if o := b.send(choose); o.foreign != rogue {
		t.Errorf("a client that chose another server shows %v; want %v", o.foreign, rogue)
	}
	if o := b.send(choose); o.foreign.IsValid() {
		t.Error("it is reported twice")
	}
	b.now = b.now.Add(11 * time.Minute)
	offer := message(knownMAC, dhcpv4.MessageTypeOffer, from(rogue))
	offer.OpCode = dhcpv4.OpcodeBootReply
	if o := b.Server.handle(b.now, offer.ToBytes(), clientFrom, viaWatch); o.foreign != rogue || o.packet != nil {
		t.Errorf("an offer heard on port 68 shows %v, answered by %v; want %v and no answer", o.foreign, o.packet, rogue)
	}
	own := message(knownMAC, dhcpv4.MessageTypeAck, from(serverID))
	own.OpCode = dhcpv4.OpcodeBootReply
	if o := b.Server.handle(b.now.Add(time.Hour), own.ToBytes(), clientFrom, viaWatch); o.foreign.IsValid() {
		t.Error("our own ack counts as another server's")
	}
	for i := range 1000 { // memory stays bounded
		b.send(message(knownMAC, dhcpv4.MessageTypeRequest, asking(serverID), from(netip.AddrFrom4([4]byte{9, 9, byte(i >> 8), byte(i)}))))
	}
	if st := b.Stats(); st.Foreign != 1003 || len(b.foreigners) > 64 {
		t.Errorf("Foreign = %d, remembered %d", st.Foreign, len(b.foreigners))
	}
}

// TestSilence is that of a standby: two servers with the same range would give
// one address to two machines.
func TestSilence(t *testing.T) {
	b := newBench(t, testConfig())
	a := b.join(knownMAC)
	silent := true
	b.Silent = func() bool { return silent }
	for name, p := range map[string]*dhcpv4.DHCPv4{
		"discover": discover(knownMAC),
		"renewal":  message(knownMAC, dhcpv4.MessageTypeRequest, asking(a), from(serverID)),
	} {
		if o := b.send(p); o.packet != nil || o.lease != nil {
			t.Errorf("%s is answered by %v; want silence", name, o.packet)
		}
	}
	rogue := netip.MustParseAddr("10.77.0.66")
	offer := message(knownMAC, dhcpv4.MessageTypeOffer, from(rogue))
	offer.OpCode = dhcpv4.OpcodeBootReply
	if o := b.Server.handle(b.now, offer.ToBytes(), clientFrom, viaWatch); o.foreign != rogue {
		t.Errorf("another server is noticed as %v; want %v", o.foreign, rogue)
	}
	silent = false
	if got := b.join(knownMAC); got != a || b.Stats().Dropped["silent"] != 2 {
		t.Errorf("afterwards it gives %s, dropped %v; want %s as before", got, b.Stats().Dropped, a)
	}
}

func TestProxy(t *testing.T) {
	b := newBench(t, Config{Mode: ModeProxy, ServerID: serverID})
	o := b.send(discover(knownMAC, pxe(7)))
	if p := o.packet; p == nil || addr(p.YourIPAddr).IsValid() || p.ClassIdentifier() != "PXEClient" || p.BootFileName != "snponly.efi" ||
		p.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || p.Options.Has(dhcpv4.OptionSubnetMask) {
		t.Errorf("offer = %v; want a boot file and no address", p)
	}
	ipxe := dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")))
	if p := b.send(discover(knownMAC, ipxe)).packet; p == nil || p.ClassIdentifier() != "PXEClient" || !strings.HasPrefix(p.BootFileName+p.BootFileNameOption(), "http://") {
		t.Errorf("offer to iPXE = %v; want the script's URL in an offer of class PXEClient", p)
	}
	at := netip.MustParseAddrPort("10.77.0.123:4011")
	ask := message(knownMAC, dhcpv4.MessageTypeRequest, pxe(7), having(at.Addr()))
	o = b.Server.handle(b.now, ask.ToBytes(), at, viaBoot)
	if o.packet == nil || o.packet.MessageType() != dhcpv4.MessageTypeAck || o.to != at || o.packet.BootFileName != "snponly.efi" || o.lease != nil {
		t.Errorf("answer on 4011 = %v to %v; want an ack with the boot file to %v", o.packet, o.to, at)
	}
	for name, p := range map[string]*dhcpv4.DHCPv4{
		"an operating system": discover(knownMAC),
		"an unknown machine":  discover(unknown(1), pxe(7)),
		"a request":           message(knownMAC, dhcpv4.MessageTypeRequest, pxe(7), asking(at.Addr())),
	} {
		if o := b.send(p); o.packet != nil || o.foreign.IsValid() {
			t.Errorf("%s is answered: %v", name, o.packet)
		}
	}
}

// TestGolden holds what is on the wire, byte for byte.
func TestGolden(t *testing.T) {
	http := dhcpv4.WithOption(dhcpv4.OptClassIdentifier("HTTPClient:Arch:00016:UNDI:003001"))
	arch16 := dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 16}))
	uuid := dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, append([]byte{0}, "0123456789abcdef"...)))
	ipxe := dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")))
	var text strings.Builder
	for _, tt := range []struct {
		name string
		mods []dhcpv4.Modifier
	}{
		{"BIOS PXE", []dhcpv4.Modifier{pxe(0), uuid}},
		{"UEFI PXE", []dhcpv4.Modifier{pxe(7), uuid}},
		{"UEFI HTTP", []dhcpv4.Modifier{http, arch16}},
		{"iPXE ROM", []dhcpv4.Modifier{pxe(0), ipxe, uuid}},
		{"operating system", nil},
	} {
		b := newBench(t, testConfig())
		o := b.send(discover(knownMAC, tt.mods...))
		fmt.Fprintf(&text, "# %s, to %v\n%s", tt.name, o.to, hex.Dump(o.packet.ToBytes()))
	}
	path := filepath.Join("testdata", "offers.hex")
	if *update {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestLeasesSurvive(t *testing.T) {
	cfg := testConfig()
	cfg.LeaseFile = filepath.Join(t.TempDir(), "leases")
	b := newBench(t, cfg)
	b.now = time.Now()
	a := b.join(knownMAC)
	l, _ := b.Lease(knownMAC)
	if err := b.persist([]Lease{l}); err != nil {
		t.Fatal(err)
	}
	second := b.join(unknown(7))
	l2, _ := b.Lease(unknown(7))
	if err := b.persist([]Lease{l2}); err != nil {
		t.Fatal(err)
	}
	b.journal.close()
	// A crash in the middle of a line.
	f, err := os.OpenFile(cfg.LeaseFile, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"mac":"52:54:00:00:0`)
	f.Close()

	b = newBench(t, cfg)
	b.now = time.Now()
	if got, ok := b.Lease(knownMAC); !ok || got.Address != a || !got.Known {
		t.Errorf("after the restart Lease = %+v, %v; want %s", got, ok, a)
	}
	if got, ok := b.ByAddress(second); !ok || got.MAC != unknown(7) || got.Known {
		t.Errorf("after the restart ByAddress(%s) = %+v, %v", second, got, ok)
	}
	o := b.send(message(knownMAC, dhcpv4.MessageTypeRequest, having(a)))
	if o.packet == nil || o.packet.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("renewing after the restart = %v; want an ack", o.packet)
	}
	defer b.journal.close()

	t.Run("history is compacted", func(t *testing.T) {
		for range 1200 {
			if err := b.persist([]Lease{l}); err != nil {
				t.Fatal(err)
			}
		}
		data, err := os.ReadFile(cfg.LeaseFile)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(data), "\n"); n > 1100 {
			t.Errorf("the file has %d lines for 2 leases", n)
		}
	})
	t.Run("a broken write is repaired by the next", func(t *testing.T) {
		b.journal.f.Close()
		if err := b.persist([]Lease{l}); err == nil {
			t.Fatal("writing to a closed file succeeds")
		}
		if err := b.persist([]Lease{l}); err != nil {
			t.Fatal(err)
		}
		found := 0
		if skipped, err := readJournal(cfg.LeaseFile, func(Lease) { found++ }); err != nil || skipped != 0 || found != 2 {
			t.Errorf("file = %d leases, %d bad lines, %v; want 2 whole ones", found, skipped, err)
		}
	})
}

// TestNoAckWithoutAWrittenLease: a client must not use an address that a
// restarted server could give to another.
func TestNoAckWithoutAWrittenLease(t *testing.T) {
	cfg := testConfig()
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg.LeaseFile = filepath.Join(dir, "leases")
	server, client := listen(t), listen(t)
	s, err := New(cfg, testDecider(t, index), Conns{Server: server}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.journal.f.Close()
	os.RemoveAll(dir)
	run(t, s)
	renew := message(knownMAC, dhcpv4.MessageTypeRequest, having(netip.MustParseAddr("10.77.0.150")))
	client.WriteTo(renew.ToBytes(), server.LocalAddr())
	deadline := time.Now().Add(time.Minute)
	for s.Stats().Dropped["journal"] == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("Stats = %+v; want the ack dropped", s.Stats())
		}
		runtime.Gosched()
	}
}

func listen(tb testing.TB) net.PacketConn {
	tb.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

func run(tb testing.TB, s *Server) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Run = %v; want nil when its context ends", err)
		}
	})
}

// TestRun sends through sockets: firmware on 4011 is answered where it asked.
func TestRun(t *testing.T) {
	cfg := testConfig()
	cfg.LeaseFile = filepath.Join(t.TempDir(), "leases")
	server, boot, client := listen(t), listen(t), listen(t)
	s, err := New(cfg, testDecider(t, index), Conns{Server: server, Boot: boot}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	client.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 2000)
	for range 3 {
		client.WriteTo([]byte("garbage"), server.LocalAddr())
		client.WriteTo(message(knownMAC, dhcpv4.MessageTypeRequest, pxe(0), having(netip.MustParseAddr("127.0.0.1"))).ToBytes(), boot.LocalAddr())
		n, _, err := client.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := dhcpv4.FromBytes(buf[:n]); err != nil || p.BootFileName != "undionly.kpxe" {
			t.Fatalf("answer = %v, %v; want the boot file", p, err)
		}
	}
	if st := s.Stats(); st.Acks != 3 || st.Boots["firmware"] != 3 {
		t.Errorf("Stats = %+v; want 3 acks", st)
	}
}

func TestRunEndsWhenASocketBreaks(t *testing.T) {
	broken := &brokenConn{PacketConn: listen(t)}
	s, err := New(testConfig(), testDecider(t, index), Conns{Server: broken}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("Run = %v; want the socket's error", err)
	}
}

type brokenConn struct{ net.PacketConn }

func (*brokenConn) ReadFrom([]byte) (int, net.Addr, error) {
	return 0, nil, errors.New("no such device")
}

func TestParseRange(t *testing.T) {
	subnet := netip.MustParsePrefix("10.77.0.1/24")
	if p, err := ParseRange("10.77.0.100 - 10.77.0.199", subnet); err != nil || p.size() != 100 || p.Subnet.String() != "10.77.0.0/24" {
		t.Errorf("ParseRange = %+v, %v", p, err)
	}
	for _, bad := range []string{"", "10.77.0.1", "10.77.0.9-10.77.0.1", "10.78.0.1-10.78.0.9", "fd77::1-fd77::9", "a-b"} {
		if _, err := ParseRange(bad, subnet); err == nil {
			t.Errorf("ParseRange(%q) succeeds", bad)
		}
	}
}

// TestRandomPackets is B01: whatever comes, no panic, and no answer to what is
// no request.
func TestRandomPackets(t *testing.T) {
	count := 200_000
	if testing.Short() {
		count = 20_000
	}
	b := newBench(t, testConfig())
	r := rand.New(rand.NewPCG(1, 2))
	seed := [][]byte{raw(), discover(knownMAC, pxe(7)).ToBytes(),
		message(knownMAC, dhcpv4.MessageTypeRequest, asking(serverID), from(serverID)).ToBytes()}
	var before, after runtime.MemStats
	for i := range count {
		p := slices.Clone(seed[r.IntN(len(seed))])
		if i%4 == 0 {
			p = make([]byte, r.IntN(1500))
			for j := range p {
				p[j] = byte(r.Uint32())
			}
		}
		for range r.IntN(8) {
			if len(p) > 0 {
				p[r.IntN(len(p))] = byte(r.Uint32())
			}
		}
		p = p[:r.IntN(len(p)+1)]
		b.now = b.now.Add(time.Millisecond)
		if o := b.Server.handle(b.now, p, clientFrom, via(r.IntN(3))); o.packet != nil {
			if _, why := parse(p); why != "" {
				t.Fatalf("garbage (%s) is answered: % x", why, p)
			}
			o.packet.ToBytes()
		}
		if i == count/2 {
			runtime.GC()
			runtime.ReadMemStats(&before)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes in the second half", grown)
	}
}

func FuzzHandle(f *testing.F) {
	f.Add(raw())
	f.Add(discover(knownMAC, pxe(7), dhcpv4.WithGatewayIP(ip(serverID))).ToBytes())
	f.Add(message(knownMAC, dhcpv4.MessageTypeDecline, asking(fixed), from(serverID)).ToBytes())
	b := newBench(f, testConfig())
	f.Fuzz(func(t *testing.T, p []byte) {
		for v := viaServer; v <= viaWatch; v++ {
			o := b.Server.handle(t0, p, clientFrom, v)
			if o.packet == nil {
				continue
			}
			back, err := dhcpv4.FromBytes(o.packet.ToBytes())
			if err != nil || back.OpCode != dhcpv4.OpcodeBootReply || back.TransactionID != o.packet.TransactionID {
				t.Errorf("the answer cannot be read: %v, %v", back, err)
			}
			if strings.ContainsAny(back.BootFileName+back.BootFileNameOption(), " \n;|") {
				t.Errorf("boot file %q", back.BootFileName)
			}
		}
	})
}

func BenchmarkHandle(b *testing.B) {
	s := newBench(b, testConfig())
	p := discover(knownMAC, pxe(7)).ToBytes()
	for b.Loop() {
		s.Server.handle(t0, p, clientFrom, viaServer)
	}
}

// sink takes packets.
type sink struct {
	net.PacketConn
	sent int
}

func (s *sink) WriteTo(b []byte, _ net.Addr) (int, error) { s.sent++; return len(b), nil }

// TestAStormOfBoots is a thousand machines that are switched on at once: every
// one gets an address of its own, and all are on disk.
func TestAStormOfBoots(t *testing.T) {
	cfg := testConfig()
	cfg.Pools = []Pool{{Subnet: netip.MustParsePrefix("10.77.0.0/20"), First: netip.MustParseAddr("10.77.0.2"), Last: netip.MustParseAddr("10.77.5.0")}}
	cfg.LeaseFile = filepath.Join(t.TempDir(), "leases")
	b := newBench(t, cfg)
	b.now = time.Now()
	defer b.journal.close()
	machines := view{}
	for i := range 1000 {
		m := lpmos.MAC{0x52, 0x54, 2, 0, byte(i >> 8), byte(i)}
		machines[m] = lpmos.BootEntry{MAC: m, Action: lpmos.BootAgent}
	}
	b.decider = testDecider(t, machines)
	out := &sink{}
	began := time.Now()
	send := func(make func(lpmos.MAC) *dhcpv4.DHCPv4) {
		var batch []packet
		flush := func() { b.serve(map[via]net.PacketConn{viaServer: out}, batch); batch = batch[:0] }
		for m := range machines {
			if batch = append(batch, packet{make(m).ToBytes(), clientFrom, viaServer}); len(batch) == batchLen {
				flush()
			}
		}
		flush()
	}
	send(func(m lpmos.MAC) *dhcpv4.DHCPv4 { return discover(m, pxe(0)) })
	send(func(m lpmos.MAC) *dhcpv4.DHCPv4 {
		return message(m, dhcpv4.MessageTypeRequest, pxe(0), asking(b.leases.byMAC[m].Address), from(serverID))
	})
	took := time.Since(began)
	seen := map[netip.Addr]bool{}
	if _, err := readJournal(cfg.LeaseFile, func(l Lease) { seen[l.Address] = true }); err != nil {
		t.Fatal(err)
	}
	if st := b.Stats(); st.Acks != 1000 || st.Leases != 1000 || len(seen) != 1000 || out.sent != 2000 {
		t.Errorf("Stats = %+v, %d addresses on disk, %d packets sent", st, len(seen), out.sent)
	}
	t.Logf("1000 machines in %v", took)
	if took > 2*time.Minute {
		t.Errorf("1000 machines took %v", took)
	}
}

// FuzzJournal reads any file as that of the leases: each has a machine and an
// address.
func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"mac":"02:00:00:00:00:01","address":"10.77.0.11"}` + "\n{}\n\n{\"mac\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		name := filepath.Join(t.TempDir(), "leases")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		skipped, err := readJournal(name, func(l Lease) {
			if n++; l.MAC.IsZero() || !l.Address.Is4() {
				t.Errorf("a lease %+v", l)
			}
		})
		if err != nil || n+skipped > len(b) {
			t.Errorf("readJournal of %d bytes = %d leases, %d skipped, %v", len(b), n, skipped, err)
		}
	})
}
