package dhcpd

import (
	"encoding/hex"
	"net"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/region/netboot"
)

// Sizes of a packet (RFC 2131 §2): fixed fields and cookie, and what fits into
// an Ethernet frame.
const (
	minPacket = 240
	maxPacket = 1500
)

// request is a client's packet that is well formed.
type request struct {
	*dhcpv4.DHCPv4
	mac       lpmos.MAC
	kind      dhcpv4.MessageType
	ciaddr    netip.Addr // invalid when zero, as are the following
	giaddr    netip.Addr
	wanted    netip.Addr // option 50
	server    netip.Addr // option 54
	hasServer bool       // option 54 is there, right or wrong
}

// parse reads a packet, or says why it is dropped. It is stricter than the
// library, which has to read what anybody sends. Options in the sname and file
// fields (option 52) are not read: no client needs them to say what is used
// here, and reading them half would be worse.
func parse(b []byte) (request, drop) {
	switch {
	case len(b) < minPacket:
		return request{}, dropShort
	case len(b) > maxPacket:
		return request{}, dropLong
	case b[1] != byte(iana.HWTypeEthernet) || b[2] != 6:
		return request{}, dropHardware
	}
	p, err := dhcpv4.FromBytes(b)
	if err != nil {
		return request{}, dropMalformed
	}
	if len(p.Options.Get(dhcpv4.OptionDHCPMessageType)) != 1 {
		return request{}, dropNoType
	}
	r := request{DHCPv4: p, kind: p.MessageType(), mac: lpmos.MAC(p.ClientHWAddr)}
	if r.mac.IsZero() || r.mac[0]&1 != 0 {
		return request{}, dropHardware
	}
	r.ciaddr, r.giaddr = addr(p.ClientIPAddr), addr(p.GatewayIPAddr)
	for code, to := range map[dhcpv4.OptionCode]*netip.Addr{
		dhcpv4.OptionRequestedIPAddress: &r.wanted,
		dhcpv4.OptionServerIdentifier:   &r.server,
	} {
		v := p.Options.Get(code)
		if v != nil && len(v) != 4 {
			return request{}, dropMalformed
		}
		*to = addr(v)
	}
	r.hasServer = p.Options.Has(dhcpv4.OptionServerIdentifier)
	return r, ""
}

// addr is invalid for anything but four bytes that are not all zero.
func addr(ip []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || !a.Is4() || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// client describes r to the decider. Text is what the packet said, cut to
// printable ASCII: it goes to logs and pages.
func (r request) client() netboot.Client {
	c := netboot.Client{
		MAC:         r.mac,
		Arch:        netboot.ArchUnknown,
		VendorClass: printable(r.ClassIdentifier()),
		IPXE:        r.Options.Has(optIPXE),
	}
	if v := r.Options.Get(dhcpv4.OptionClientSystemArchitectureType); len(v) >= 2 {
		c.Arch = int(v[0])<<8 | int(v[1])
	}
	if classes := r.UserClass(); len(classes) > 0 {
		c.UserClass = printable(classes[0])
		for _, name := range classes {
			c.IPXE = c.IPXE || netboot.IPXEClass(name)
		}
	}
	if v := r.Options.Get(dhcpv4.OptionClientMachineIdentifier); len(v) == 17 && v[0] == 0 {
		c.UUID = formatUUID([16]byte(v[1:]))
	}
	return c
}

// optIPXE encapsulates iPXE's own options.
const optIPXE = dhcpv4.GenericOptionCode(175)

// formatUUID spells the UUID of option 97 as the kernel spells the one of
// SMBIOS: both have the first three fields in little-endian order.
func formatUUID(b [16]byte) string {
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5] = b[5], b[4]
	b[6], b[7] = b[7], b[6]
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s[:min(len(s), 64)])
}

// reply starts the answer to r. As RFC 2131 table 3, RFC 3046 §2.2 and RFC 6842
// demand, it repeats the transaction, the relay's information and the client's
// identifier.
func (s *Server) reply(r request, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        iana.HWTypeEthernet,
		TransactionID: r.TransactionID,
		Flags:         r.Flags,
		GatewayIPAddr: r.GatewayIPAddr,
		ClientHWAddr:  r.ClientHWAddr,
		Options:       dhcpv4.OptionsFromList(dhcpv4.OptMessageType(kind), dhcpv4.OptServerIdentifier(ip(s.cfg.ServerID))),
	}
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionRelayAgentInformation, dhcpv4.OptionClientIdentifier} {
		if v := r.Options.Get(code); v != nil {
			p.Options[code.Code()] = v
		}
	}
	return p
}

// addBoot adds what firmware and iPXE need. PXE needs the machine identifier
// back (PXE 2.1 §2.2.4).
func (s *Server) addBoot(p *dhcpv4.DHCPv4, r request, o netboot.Offer) {
	for code, value := range map[dhcpv4.OptionCode][]byte{
		dhcpv4.OptionClassIdentifier:           []byte(o.VendorClass),
		dhcpv4.OptionVendorSpecificInformation: o.VendorOptions,
		optIPXE:                                o.IPXEOptions,
	} {
		if len(value) > 0 {
			p.Options[code.Code()] = value
		}
	}
	if o.VendorClass != "" {
		if v := r.Options.Get(dhcpv4.OptionClientMachineIdentifier); len(v) == 17 {
			p.Options[dhcpv4.OptionClientMachineIdentifier.Code()] = v
		}
	}
	if o.BootFile == "" {
		return
	}
	p.ServerIPAddr = ip(s.cfg.ServerID)
	if o.NextServer.IsValid() {
		p.ServerIPAddr = ip(o.NextServer)
		if r.IsOptionRequested(dhcpv4.OptionTFTPServerName) {
			p.UpdateOption(dhcpv4.OptTFTPServerName(o.NextServer.String()))
		}
	}
	// The header field ends with a zero byte, which some firmware misses at the
	// end of option 67; that one is for URLs and for those who ask for it.
	if fits := len(o.BootFile) < 128 && !o.HTTP; fits {
		p.BootFileName = o.BootFile
		if !r.IsOptionRequested(dhcpv4.OptionBootfileName) {
			return
		}
	}
	p.UpdateOption(dhcpv4.OptBootFileName(o.BootFile))
}

func ip(a netip.Addr) net.IP { return a.AsSlice() }

func ips(as []netip.Addr) []net.IP {
	out := make([]net.IP, len(as))
	for i, a := range as {
		out[i] = ip(a)
	}
	return out
}
