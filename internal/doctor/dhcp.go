package doctor

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"golang.org/x/sys/unix"
)

// Offer is what a DHCP server answered.
type Offer struct {
	Server  netip.Addr // that it names, or that the packet came from
	Address netip.Addr // offered; invalid when it offers none, as a PXE service beside a DHCP server
	PXE     bool       // it tells PXE clients what to boot
}

// errNoRights is wrapped by Discover when it may not open a packet socket.
var errNoRights = errors.New("not root")

// Discover asks on an interface which DHCP servers there are: once as an
// ordinary client and once as PXE firmware, with a made-up address, twice each.
// It takes wait, whoever answers. A lease that is offered is not taken, and the
// server forgets it.
//
// The packets go through a packet socket, so that it works before the
// interface has an address and beside a DHCP server on this host, whose own
// answers it does not see.
func Discover(ctx context.Context, interfaceName string, wait time.Duration) ([]Offer, error) {
	ifi, err := net.InterfaceByName(interfaceName)
	if err != nil {
		return nil, fmt.Errorf("find interface %q: %w", interfaceName, err)
	}
	if ifi.Flags&net.FlagUp == 0 {
		return nil, fmt.Errorf("interface %s is down", interfaceName)
	}
	if len(ifi.HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %s is not Ethernet", interfaceName)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(swap16(unix.ETH_P_IP)))
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return nil, fmt.Errorf("open packet socket: %w", errNoRights)
	}
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "packet socket")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap16(unix.ETH_P_IP), Ifindex: ifi.Index}); err != nil {
		return nil, fmt.Errorf("bind packet socket to %s: %w", interfaceName, err)
	}

	var mac [6]byte
	rand.Read(mac[:])
	mac[0] = mac[0]&^1 | 2 // of one host, locally administered
	plain, err := discover(mac[:], false)
	if err != nil {
		return nil, err
	}
	pxe, err := discover(mac[:], true)
	if err != nil {
		return nil, err
	}
	to := &unix.SockaddrLinklayer{Protocol: swap16(unix.ETH_P_IP), Ifindex: ifi.Index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
	send := func() error {
		for _, p := range []*dhcpv4.DHCPv4{plain, pxe} {
			if err := unix.Sendto(fd, datagram(p.ToBytes()), 0, to); err != nil {
				return fmt.Errorf("send on %s: %w", interfaceName, err)
			}
		}
		return nil
	}
	if err := send(); err != nil {
		return nil, err
	}
	end := time.Now().Add(wait)
	again := time.Now().Add(wait / 2) // one may have been lost
	if err := f.SetReadDeadline(again); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()

	var offers []Offer
	buf := make([]byte, 64<<10)
	for packets := 0; packets < 100_000; packets++ { // a flooded network must not keep us
		n, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !time.Now().Before(end) {
				return offers, nil
			}
			if err := errors.Join(send(), f.SetReadDeadline(end)); err != nil {
				return nil, err
			}
			continue
		case err != nil:
			return nil, fmt.Errorf("listen on %s: %w", interfaceName, err)
		}
		if o, ok := readOffer(buf[:n], plain.TransactionID, pxe.TransactionID); ok {
			offers = merge(offers, o)
		}
	}
	return offers, nil
}

// swap16 is htons: link-layer protocols are in network byte order.
func swap16(v uint16) uint16 { return v<<8 | v>>8 }

func discover(mac net.HardwareAddr, pxe bool) (*dhcpv4.DHCPv4, error) {
	mods := []dhcpv4.Modifier{dhcpv4.WithBroadcast(true), dhcpv4.WithRequestedOptions(dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName)}
	if pxe {
		mods = append(mods,
			dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003000")),
			dhcpv4.WithOption(dhcpv4.OptClientArch(iana.EFI_X86_64)),
			dhcpv4.WithGeneric(dhcpv4.OptionClientNetworkInterfaceIdentifier, []byte{1, 3, 0}),
			dhcpv4.WithGeneric(dhcpv4.OptionClientMachineIdentifier, append([]byte{0}, make([]byte, 16)...)))
	}
	p, err := dhcpv4.NewDiscovery(mac, mods...)
	if err != nil {
		return nil, fmt.Errorf("make DISCOVER: %w", err)
	}
	return p, nil
}

// datagram puts IPv4 (RFC 791) and UDP (RFC 768) around a DHCP message from
// 0.0.0.0:68 to 255.255.255.255:67. The UDP checksum is left out, as RFC 768
// allows.
func datagram(body []byte) []byte {
	b := make([]byte, 28, 28+len(body))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(body)))
	copy(b[16:], []byte{255, 255, 255, 255})
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(b[20:], 68)
	binary.BigEndian.PutUint16(b[22:], 67)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(body)))
	return append(b, body...)
}

// readOffer reads an IPv4 packet; false for all but offers to one of our
// requests.
func readOffer(b []byte, ids ...dhcpv4.TransactionID) (Offer, bool) {
	if len(b) < 28 || b[0]>>4 != 4 || b[9] != unix.IPPROTO_UDP {
		return Offer{}, false
	}
	head := int(b[0]&15) * 4
	if head < 20 || len(b) < head+8 || binary.BigEndian.Uint16(b[head+2:]) != 68 {
		return Offer{}, false
	}
	from := netip.AddrFrom4([4]byte(b[12:16]))
	p, err := dhcpv4.FromBytes(b[head+8:])
	if err != nil || p.OpCode != dhcpv4.OpcodeBootReply || !slices.Contains(ids, p.TransactionID) {
		return Offer{}, false
	}
	o := Offer{Server: from}
	if id, valid := netip.AddrFromSlice(p.ServerIdentifier().To4()); valid && !id.IsUnspecified() {
		o.Server = id
	}
	if a, valid := netip.AddrFromSlice(p.YourIPAddr.To4()); valid && !a.IsUnspecified() {
		o.Address = a
	}
	o.PXE = p.BootFileName != "" || p.Options.Has(dhcpv4.OptionBootfileName) || strings.HasPrefix(p.ClassIdentifier(), "PXEClient")
	return o, true
}

// merge keeps one entry for each server.
func merge(offers []Offer, o Offer) []Offer {
	for i := range offers {
		if offers[i].Server == o.Server {
			offers[i].Address = cmpAddr(offers[i].Address, o.Address)
			offers[i].PXE = offers[i].PXE || o.PXE
			return offers
		}
	}
	offers = append(offers, o)
	slices.SortFunc(offers, func(a, b Offer) int { return a.Server.Compare(b.Server) })
	return offers
}

func cmpAddr(a, b netip.Addr) netip.Addr {
	return cmp.Or(a, b)
}

// JudgeDHCP says what the servers found mean for a region on that interface
// with --dhcp=mode. mine tells our own servers.
func JudgeDHCP(interfaceName, mode string, offers []Offer, err error, mine func(netip.Addr) bool) Result {
	check := "dhcp on " + interfaceName
	switch {
	case errors.Is(err, errNoRights):
		return Skipped(check, "only root may listen for other DHCP servers", "run lpmos doctor as root")
	case err != nil:
		return Result{check, Fail, "nobody could be asked: " + err.Error(), "name an Ethernet interface that is up with --interface"}
	}
	var lease, pxe []string
	for _, o := range offers {
		if mine(o.Server) {
			continue
		}
		if o.Address.IsValid() {
			lease = append(lease, fmt.Sprintf("%s (offers %s)", o.Server, o.Address))
		}
		if o.PXE {
			pxe = append(pxe, o.Server.String())
		}
	}
	switch {
	case len(pxe) > 0 && mode != "off":
		return Result{check, Fail, "another server tells machines what to boot: " + strings.Join(pxe, ", "), "turn PXE off there (next-server and filename, options 66, 67, 43, 60), or machines boot now from it, now from here"}
	case mode == "server" && len(lease) > 0:
		return Result{check, Fail, "another DHCP server hands out addresses: " + strings.Join(lease, ", "), "turn it off on this network, or run the region with --dhcp=proxy beside it"}
	case mode == "proxy" && len(lease) == 0:
		return Result{check, Warn, "no DHCP server answered, and --dhcp=proxy leaves addresses to one", "start the site's DHCP server, or run the region with --dhcp=server"}
	case len(lease) > 1:
		return Result{check, Warn, "several DHCP servers hand out addresses: " + strings.Join(lease, ", "), "find out which of them does not belong there"}
	case len(pxe) > 0:
		return Result{check, Warn, "a server tells machines what to boot: " + strings.Join(pxe, ", "), "turn PXE off there before a region answers on this network"}
	case len(lease) == 1 && mode == "proxy":
		return ok(check, "one DHCP server hands out addresses, %s, and leaves booting to us", lease[0])
	case len(lease) == 1:
		return ok(check, "one DHCP server answers, %s; run the region with --dhcp=proxy beside it", lease[0])
	}
	return ok(check, "no other DHCP server answers")
}
