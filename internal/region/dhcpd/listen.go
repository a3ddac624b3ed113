package dhcpd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Ports that Listen is called with.
const (
	PortServer = 67   // DHCP and proxy
	PortBoot   = 4011 // PXE boot server
	PortWatch  = 68   // other servers' broadcasts
)

// Listen opens a UDP socket for a server. With iface not empty it hears and
// speaks on that interface only, which decides where a broadcast goes.
func Listen(ctx context.Context, iface string, port int) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var errs error
		err := raw.Control(func(fd uintptr) {
			errs = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
			// The host's own DHCP client has port 68 as well. On our own ports a
			// second server must be an error: with SO_REUSEADDR a forgotten one
			// would go on answering unnoticed.
			if port == PortWatch {
				errs = errors.Join(errs, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			}
			if iface != "" {
				if err := unix.BindToDevice(int(fd), iface); err != nil {
					errs = errors.Join(errs, fmt.Errorf("bind to interface %q: %w", iface, err))
				}
			}
		})
		return errors.Join(err, errs)
	}}
	c, err := lc.ListenPacket(ctx, "udp4", "0.0.0.0:"+strconv.Itoa(port))
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%w (run as root or grant cap_net_bind_service and cap_net_raw)", err)
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w (another DHCP server runs on this host)", err)
	}
	return c, err
}
