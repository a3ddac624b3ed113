package pid1

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// ifreq is struct ifreq of linux/if.h: a name and a union.
type ifreq struct {
	name [16]byte
	data [24]byte
}

// ifctl makes one request about an interface; fill writes its argument.
func ifctl(request uintptr, name string, fill func(*[24]byte)) (*ifreq, error) {
	if len(name) >= 16 {
		return nil, syscall.ENAMETOOLONG
	}
	r := &ifreq{}
	copy(r.name[:], name)
	if fill != nil {
		fill(&r.data)
	}
	return r, netctl(request, unsafe.Pointer(r))
}

func netctl(request uintptr, arg unsafe.Pointer) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// sockaddr is struct sockaddr_in.
func sockaddr(b []byte, a netip.Addr) {
	binary.NativeEndian.PutUint16(b, syscall.AF_INET)
	v := a.As4()
	copy(b[4:], v[:])
}

// linkUp brings an interface up. It is no error if it is up already.
func linkUp(name string) error {
	r, err := ifctl(syscall.SIOCGIFFLAGS, name, nil)
	if err == nil {
		flags := binary.NativeEndian.Uint16(r.data[:]) | syscall.IFF_UP
		_, err = ifctl(syscall.SIOCSIFFLAGS, name, func(b *[24]byte) { binary.NativeEndian.PutUint16(b[:], flags) })
	}
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// configure gives an interface the address, routes and MTU of a lease. Setting
// an address takes the routes of the one before away.
func configure(l Lease) error {
	if l.MTU != 0 {
		// A card that cannot do it still works with its own.
		_, _ = ifctl(syscall.SIOCSIFMTU, l.Interface, func(b *[24]byte) { binary.NativeEndian.PutUint32(b[:], uint32(l.MTU)) })
	}
	mask := netip.AddrFrom4([4]byte(net.CIDRMask(l.Address.Bits(), 32)))
	for _, s := range []struct {
		what    string
		request uintptr
		addr    netip.Addr
	}{{"address", syscall.SIOCSIFADDR, l.Address.Addr()}, {"netmask", syscall.SIOCSIFNETMASK, mask}} {
		if _, err := ifctl(s.request, l.Interface, func(b *[24]byte) { sockaddr(b[:], s.addr) }); err != nil {
			return fmt.Errorf("set %s of %s to %s: %w", s.what, l.Interface, s.addr, err)
		}
	}
	for _, r := range l.Routes {
		if r.Via.IsValid() && !l.Address.Contains(r.Via) {
			// The router is outside of our network, as some clouds have it.
			if err := addRoute(l.Interface, Route{To: netip.PrefixFrom(r.Via, 32)}); err != nil {
				return err
			}
		}
		if err := addRoute(l.Interface, r); err != nil {
			return err
		}
	}
	return nil
}

// rtentry is struct rtentry of linux/route.h.
type rtentry struct {
	pad1               uint64
	dst, gateway, mask [16]byte
	flags              uint16
	_                  [6]byte
	pad3               uint64
	pad4               uint64
	metric             int16
	_                  [6]byte
	dev                *byte
	mtu, window        uint64
	irtt               uint16
	_                  [6]byte
}

func addRoute(name string, r Route) error {
	const up, gateway, host = 1, 2, 4
	dev := append([]byte(name), 0)
	e := &rtentry{flags: up, dev: &dev[0]}
	sockaddr(e.dst[:], r.To.Addr())
	sockaddr(e.mask[:], netip.AddrFrom4([4]byte(net.CIDRMask(r.To.Bits(), 32))))
	if r.To.Bits() == 32 {
		e.flags |= host
	}
	if r.Via.IsValid() {
		e.flags |= gateway
		sockaddr(e.gateway[:], r.Via)
	}
	err := netctl(syscall.SIOCADDRT, unsafe.Pointer(e))
	runtime.KeepAlive(dev)
	if err != nil && err != syscall.EEXIST {
		return fmt.Errorf("add route to %s: %w", r.To, err)
	}
	return nil
}

// packetSocket is a transport for an interface without an address: it makes and
// reads IP and UDP itself over a packet socket.
type packetSocket struct {
	f     *os.File
	index int
}

func openPacketSocket(name string) (*packetSocket, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: bigEndian16(syscall.ETH_P_IP), Ifindex: ifi.Index}); err != nil {
		syscall.Close(fd)
		return nil, fmt.Errorf("bind packet socket to %s: %w", name, err)
	}
	return &packetSocket{f: os.NewFile(uintptr(fd), "packet:"+name), index: ifi.Index}, nil
}

func (p *packetSocket) Close() error { return p.f.Close() }

func (p *packetSocket) send(_ netip.Addr, message []byte) error {
	to := &syscall.SockaddrLinklayer{Protocol: bigEndian16(syscall.ETH_P_IP), Ifindex: p.index, Halen: 6,
		Addr: [8]byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}}
	c, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	packet := udpBroadcast(message)
	var sendErr error
	err = c.Write(func(fd uintptr) bool {
		sendErr = syscall.Sendto(int(fd), packet, 0, to)
		return sendErr != syscall.EAGAIN
	})
	return errors.Join(err, sendErr)
}

func (p *packetSocket) receive(deadline time.Time) ([]byte, error) {
	if err := p.f.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	for {
		n, err := p.f.Read(buf)
		if err != nil {
			return nil, err
		}
		if m := udpPayload(buf[:n]); m != nil {
			return m, nil
		}
		// Traffic of others must not keep us beyond the deadline.
		if !time.Now().Before(deadline) {
			return nil, os.ErrDeadlineExceeded
		}
	}
}

// udpBroadcast is an IPv4 packet from 0.0.0.0:68 to 255.255.255.255:67.
func udpBroadcast(message []byte) []byte {
	b := make([]byte, 28, 28+len(message))
	b[0], b[8], b[9] = 0x45, 64, syscall.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(message)))
	copy(b[16:], []byte{255, 255, 255, 255})
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20], 0))
	u := b[20:]
	binary.BigEndian.PutUint16(u, 68)
	binary.BigEndian.PutUint16(u[2:], 67)
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(message)))
	b = append(b, message...)
	// The pseudo header: addresses, protocol, length.
	pseudo := uint32(0xFFFF) + 0xFFFF + syscall.IPPROTO_UDP + uint32(8+len(message))
	sum := checksum(b[20:], pseudo)
	if sum == 0 {
		sum = 0xFFFF // zero says that there is none
	}
	binary.BigEndian.PutUint16(b[26:], sum)
	return b
}

// udpPayload is what an IPv4 packet carries to port 68, or nil. The checksum
// of UDP is not looked at: a virtual network card leaves it to nobody.
func udpPayload(b []byte) []byte {
	if len(b) < 28 || b[0]>>4 != 4 || b[9] != syscall.IPPROTO_UDP {
		return nil
	}
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < 20 || total < head+8 || total > len(b) || binary.BigEndian.Uint16(b[6:])&0x3FFF != 0 {
		return nil
	}
	u := b[head:total]
	size := int(binary.BigEndian.Uint16(u[4:]))
	if binary.BigEndian.Uint16(u) != 67 || binary.BigEndian.Uint16(u[2:]) != 68 || size < 8 || size > len(u) {
		return nil
	}
	return u[8:size]
}

// checksum is RFC 1071.
func checksum(b []byte, sum uint32) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xFFFF {
		sum = sum>>16 + sum&0xFFFF
	}
	return ^uint16(sum)
}

func bigEndian16(v uint16) uint16 { return v<<8 | v>>8 }

// udpSocket is a transport for an interface that has its address: an ordinary
// socket, bound to the interface.
type udpSocket struct{ c *net.UDPConn }

func openUDPSocket(ctx context.Context, name string) (*udpSocket, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var errs error
		err := c.Control(func(fd uintptr) {
			errs = errors.Join(
				syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
				syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_BROADCAST, 1),
				syscall.BindToDevice(int(fd), name))
		})
		return errors.Join(err, errs)
	}}
	c, err := lc.ListenPacket(ctx, "udp4", ":"+strconv.Itoa(68))
	if err != nil {
		return nil, fmt.Errorf("listen on port 68 of %s: %w", name, err)
	}
	return &udpSocket{c.(*net.UDPConn)}, nil
}

func (u *udpSocket) Close() error { return u.c.Close() }

func (u *udpSocket) send(to netip.Addr, message []byte) error {
	if !to.IsValid() {
		to = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	_, err := u.c.WriteToUDPAddrPort(message, netip.AddrPortFrom(to, 67))
	return err
}

func (u *udpSocket) receive(deadline time.Time) ([]byte, error) {
	if err := u.c.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	n, _, err := u.c.ReadFromUDPAddrPort(buf)
	return buf[:n], err
}
