package doctor

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"github.com/lpmos/lpmos/internal/tier"
)

// inNamespace runs f in a network namespace of its own, in which client and
// server are the two ends of a cable.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		tier.Missing(t, "root", "not root, which network namespaces need")
	}
	done := make(chan struct{})
	var refused error
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			refused = err
			return
		}
		for _, args := range [][]string{
			{"link", "add", "client", "type", "veth", "peer", "name", "server"},
			{"addr", "add", "10.9.0.1/24", "dev", "server"}, {"link", "set", "server", "up"}, {"link", "set", "client", "up"},
		} {
			if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
				t.Errorf("ip %v: %v: %s", args, err, out)
				return
			}
		}
		f()
	}()
	<-done
	if refused != nil {
		tier.Missing(t, "root", "no network namespace: "+refused.Error())
	}
}

// serve answers each DISCOVER on the interface server with what answer says,
// until the returned function is called.
func serve(t *testing.T, answer func(request *dhcpv4.DHCPv4) *dhcpv4.DHCPv4) (stop func()) {
	t.Helper()
	var opts error
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		err := c.Control(func(fd uintptr) {
			if opts = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "server"); opts == nil {
				opts = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
			}
		})
		if err != nil {
			return err
		}
		return opts
	}}
	conn, err := lc.ListenPacket(t.Context(), "udp4", ":67")
	if err != nil {
		t.Error(err)
		return func() {}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			request, err := dhcpv4.FromBytes(buf[:n])
			if err != nil {
				t.Errorf("a DISCOVER is malformed: %v", err)
				return
			}
			if reply := answer(request); reply != nil {
				if _, err := conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	return func() { conn.Close(); wg.Wait() }
}

func offerOf(t *testing.T, request *dhcpv4.DHCPv4, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	reply, err := dhcpv4.NewReplyFromRequest(request, append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer))...)
	if err != nil {
		t.Error(err)
	}
	return reply
}

func TestDiscover(t *testing.T) {
	equal := []cmp.Option{cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()}
	ask := func() []Offer {
		offers, err := Discover(t.Context(), "client", 300*time.Millisecond)
		if err != nil {
			t.Errorf("Discover: %v", err)
		}
		return offers
	}
	t.Run("finds a server that hands out addresses, and another that tells what to boot", func(t *testing.T) {
		inNamespace(t, func() {
			stop := serve(t, func(request *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
				if request.ClassIdentifier() != "" {
					return offerOf(t, request, dhcpv4.WithServerIP(net.IPv4(10, 9, 0, 2)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 9, 0, 2))), dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient")))
				}
				return offerOf(t, request, dhcpv4.WithYourIP(net.IPv4(10, 9, 0, 77)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 9, 0, 1))))
			})
			defer stop()
			want := []Offer{{Server: netip.MustParseAddr("10.9.0.1"), Address: netip.MustParseAddr("10.9.0.77")}, {Server: netip.MustParseAddr("10.9.0.2"), PXE: true}}
			if diff := cmp.Diff(want, ask(), equal...); diff != "" {
				t.Errorf("offers (- want, + got):\n%s", diff)
			}
		})
	})
	t.Run("finds nobody where nobody answers, and heeds no answer to somebody else", func(t *testing.T) {
		inNamespace(t, func() {
			if got := ask(); len(got) != 0 {
				t.Errorf("without a server: %v", got)
			}
			stop := serve(t, func(request *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
				reply := offerOf(t, request, dhcpv4.WithYourIP(net.IPv4(10, 9, 0, 77)))
				reply.TransactionID[0] ^= 1
				return reply
			})
			defer stop()
			if got := ask(); len(got) != 0 {
				t.Errorf("with answers to somebody else: %v", got)
			}
		})
	})
	t.Run("ends with its context, and says why it cannot ask", func(t *testing.T) {
		inNamespace(t, func() {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := Discover(ctx, "client", time.Minute); err == nil {
				t.Error("Discover goes on although its context ended")
			}
			for _, name := range []string{"lo", "nothing"} {
				if _, err := Discover(t.Context(), name, time.Second); err == nil {
					t.Errorf("Discover on %s succeeds", name)
				}
			}
		})
	})
}

func FuzzReadOffer(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 28})
	p, err := discover(net.HardwareAddr{2, 0, 0, 0, 0, 1}, true)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(datagram(p.ToBytes()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, ok := readOffer(b, p.TransactionID); ok && !o.Server.IsValid() {
			t.Errorf("an offer of nobody: %v", o)
		}
	})
}

// FuzzSockets reads what the kernel lists as open.
func FuzzSockets(f *testing.F) {
	f.Add([]byte("  sl  local_address rem_address   st\n   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1\n"))
	f.Add([]byte("   0: 00000000000000000000000001000000:0043 0:0 07 a b c d e 7\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, network := range []string{"tcp", "udp"} {
			sockets, _ := listening(fstest.MapFS{"net/" + network: {Data: b}}, network, "")
			for _, s := range sockets {
				if !s.addr.IsValid() {
					t.Fatalf("a socket %+v", s)
				}
			}
		}
	})
}
