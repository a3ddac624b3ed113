package netboot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab/labtest"
	"github.com/lpmos/lpmos/internal/region/dhcpd"
	"github.com/lpmos/lpmos/internal/region/httpboot"
	"github.com/lpmos/lpmos/internal/region/netboot"
	"github.com/lpmos/lpmos/internal/region/ra"
	"github.com/lpmos/lpmos/internal/region/tftpd"
)

// netns is a network namespace, held by one thread.
type netns struct {
	tid   int
	calls chan func()
}

// newNetns makes a namespace that goes away with the test. The thread is never
// unlocked, so the runtime ends it with the goroutine.
func newNetns(t *testing.T) *netns {
	t.Helper()
	n := &netns{calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread()
		n.tid = unix.Gettid()
		err := unix.Unshare(unix.CLONE_NEWNET)
		ready <- err
		if err != nil {
			return
		}
		for f := range n.calls {
			f()
		}
	}()
	labtest.Require(t, "root", <-ready)
	t.Cleanup(func() { close(n.calls) })
	return n
}

// do runs f on the namespace's thread.
func (n *netns) do(f func() error) error {
	done := make(chan error)
	n.calls <- func() { done <- f() }
	return <-done
}

// ip runs commands of ip(8) in the namespace.
func (n *netns) ip(t *testing.T, commands ...string) {
	t.Helper()
	path, err := exec.LookPath("ip")
	labtest.Require(t, "root", err)
	err = n.do(func() error {
		cmd := exec.CommandContext(t.Context(), path, "-batch", "-")
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func in[T any](t *testing.T, n *netns, f func() (T, error)) T {
	t.Helper()
	var v T
	if err := n.do(func() (err error) { v, err = f(); return err }); err != nil {
		t.Fatal(err)
	}
	return v
}

func (n *netns) packet(t *testing.T, address string) net.PacketConn {
	t.Helper()
	return in(t, n, func() (net.PacketConn, error) { return net.ListenPacket("udp4", address) })
}

type view map[lpmos.MAC]lpmos.BootEntry

func (v view) Lookup(m lpmos.MAC) (lpmos.BootEntry, bool) { e, ok := v[m]; return e, ok }
func (v view) Synced() bool                               { return true }

// files stand for everything the region would fetch.
type files map[string][]byte

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func (f files) Open(_ context.Context, name string, _ netip.AddrPort) (io.ReadSeekCloser, int64, error) {
	b, ok := f[name]
	if !ok {
		return nil, 0, lpmos.ErrNotFound
	}
	return memory{bytes.NewReader(b)}, int64(len(b)), nil
}

type blobs files

func (b blobs) Open(ctx context.Context, sum string) (io.ReadSeekCloser, int64, error) {
	return files(b).Open(ctx, sum, netip.AddrPort{})
}

func (b blobs) Follow(ctx context.Context, sum string) (io.ReadSeekCloser, int64, error) {
	return b.Open(ctx, sum)
}

// boots begins every boot and notes it.
type boots struct {
	mu    sync.Mutex
	begun []httpboot.BootRequest
}

func (b *boots) Begin(_ context.Context, r httpboot.BootRequest) (lpmos.BootEntry, string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.begun = append(b.begun, r)
	return lpmos.BootEntry{MAC: r.MAC, Action: lpmos.BootAgent}, "nonce", nil
}

func (b *boots) Segment(context.Context, string, netip.Addr) ([]byte, error) {
	return []byte("cpio"), nil
}

type image lpmos.BootImage

func (i image) BootImage() (lpmos.BootImage, bool) { return lpmos.BootImage(i), true }

var (
	machineMAC = lpmos.MustMAC("52:54:00:00:00:01")
	serverAddr = netip.MustParseAddr("10.77.0.1")
	kernelSum  = strings.Repeat("a", 64)
	initrdSum  = strings.Repeat("b", 64)
	loaderSum  = strings.Repeat("c", 64)
)

// services are a region's, as a composition would put them together.
type services struct {
	dhcp  *dhcpd.Server
	tftp  *tftpd.Server
	http  *httpboot.Handler
	boots *boots
}

// listeners says where sockets come from.
type listeners struct {
	dhcp func(port int) (net.PacketConn, error)
	udp  func(address string) (net.PacketConn, error)
	tcp  func(address string) (net.Listener, error)
}

func startServices(t *testing.T, l listeners, mode dhcpd.Mode, log *slog.Logger) *services {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	d, err := netboot.New(netboot.Config{BootURL: "http://10.77.0.1:8081", NextServer: serverAddr, Unknown: netboot.Ignore},
		view{machineMAC: {MAC: machineMAC, Action: lpmos.BootAgent}})
	must(err)
	var conns dhcpd.Conns
	conns.Server, err = l.dhcp(dhcpd.PortServer)
	must(err)
	conns.Boot, err = l.dhcp(dhcpd.PortBoot)
	must(err)
	pool, err := dhcpd.ParseRange("10.77.0.100-10.77.0.199", netip.MustParsePrefix("10.77.0.0/24"))
	must(err)
	cfg := dhcpd.Config{Mode: mode, ServerID: serverAddr, Pools: []dhcpd.Pool{pool}, LeaseFile: filepath.Join(t.TempDir(), "leases")}
	s := &services{boots: &boots{}}
	s.dhcp, err = dhcpd.New(cfg, d, conns, log)
	must(err)
	content := map[string][]byte{loaderSum: bytes.Repeat([]byte("loader"), 20_000), kernelSum: []byte("kernel"), initrdSum: []byte("initrd")}
	s.tftp = tftpd.New(files{"snponly.efi": content[loaderSum], "undionly.kpxe": content[loaderSum]},
		func(context.Context) (net.PacketConn, error) { return l.udp("10.77.0.1:0") }, log)
	s.http = httpboot.New(httpboot.Deps{Decider: d, Boots: s.boots, Segments: s.boots, Blobs: blobs(content),
		Images: image{Kernel: lpmos.Blob{SHA256: kernelSum}, Initrd: lpmos.Blob{SHA256: initrdSum},
			Files: map[string]lpmos.Blob{"snponly.efi": {SHA256: loaderSum}}},
		Patch: func(b []byte, _ string) ([]byte, error) { return b, nil }}, log)
	conn, err := l.udp("10.77.0.1:69")
	must(err)
	tcp, err := l.tcp("10.77.0.1:8081")
	must(err)
	server := httpboot.NewServer(s.http)

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.dhcp.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		if err := s.tftp.Serve(ctx, conn); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		if err := server.Serve(tcp); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		server.Close()
		running.Wait()
	})
	return s
}

// TestWire goes a machine's way from its first broadcast to its script, over a
// real wire between two namespaces.
func TestWire(t *testing.T) {
	for _, mode := range []dhcpd.Mode{dhcpd.ModeServer, dhcpd.ModeProxy} {
		t.Run(string(mode), func(t *testing.T) { testWire(t, mode) })
	}
}

func testWire(t *testing.T, mode dhcpd.Mode) {
	region, machine := newNetns(t), newNetns(t)
	region.ip(t, "link set lo up", "link add br0 type bridge", "link add v0 type veth peer name c0", "link set v0 master br0",
		"addr add 10.77.0.1/24 dev br0", "addr add fe80::1/64 dev br0 nodad", "link set v0 up", "link set br0 up",
		"link set c0 address "+machineMAC.String(), fmt.Sprintf("link set c0 netns %d", machine.tid))
	machine.ip(t, "addr add fe80::2/64 dev c0 nodad", "link set c0 up")

	s := startServices(t, listeners{
		dhcp: func(port int) (net.PacketConn, error) {
			return in(t, region, func() (net.PacketConn, error) { return dhcpd.Listen(t.Context(), "br0", port) }), nil
		},
		udp: func(address string) (c net.PacketConn, err error) {
			err = region.do(func() (err error) { c, err = net.ListenPacket("udp4", address); return err })
			return c, err
		},
		tcp: func(address string) (net.Listener, error) {
			return in(t, region, func() (net.Listener, error) { return net.Listen("tcp4", address) }), nil
		},
	}, mode, slog.New(slog.DiscardHandler))

	// A second server on the same interface must not start unnoticed.
	err := region.do(func() error { _, err := dhcpd.Listen(t.Context(), "br0", dhcpd.PortServer); return err })
	if err == nil || !strings.Contains(err.Error(), "another DHCP server") {
		t.Errorf("listening twice = %v; want an error that names the reason", err)
	}

	// A machine without an address has a socket all the same: it sends from
	// 0.0.0.0 and hears broadcasts.
	client := in(t, machine, func() (net.PacketConn, error) { return dhcpd.Listen(t.Context(), "c0", dhcpd.PortWatch) })
	defer client.Close()
	ask := func(kind dhcpv4.MessageType, options ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		t.Helper()
		p, err := dhcpv4.NewDiscovery(machineMAC[:], append(options, dhcpv4.WithMessageType(kind))...)
		if err != nil {
			t.Fatal(err)
		}
		d := converse(t, client, "255.255.255.255:67", p.ToBytes())
		answer, err := dhcpv4.FromBytes(d.data)
		if err != nil || answer.TransactionID != p.TransactionID {
			t.Fatalf("answer from %s = %v, %v", d.from, answer, err)
		}
		return answer
	}
	class := dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003001"))
	arch := dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 7}))
	ipxe := dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")))

	own := netip.MustParseAddr("10.77.0.100")
	if mode == dhcpd.ModeServer {
		offer := ask(dhcpv4.MessageTypeDiscover, class, arch)
		ack := ask(dhcpv4.MessageTypeRequest, class, arch, dhcpv4.WithOptionCopied(offer, dhcpv4.OptionServerIdentifier),
			dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)))
		if ack.MessageType() != dhcpv4.MessageTypeAck || ack.YourIPAddr.String() != own.String() || ack.BootFileName != "snponly.efi" {
			t.Errorf("answer = %v, file %q; want an ack", ack, ack.BootFileName)
		}
		if l, ok := s.dhcp.Lease(machineMAC); !ok || l.Address != own {
			t.Errorf("Lease = %+v, %v; want %s", l, ok, own)
		}
	} else {
		offer := ask(dhcpv4.MessageTypeDiscover, class, arch)
		if !offer.YourIPAddr.IsUnspecified() || offer.BootFileName != "snponly.efi" || offer.ClassIdentifier() != "PXEClient" {
			t.Errorf("offer = %v, file %q, class %q", offer, offer.BootFileName, offer.ClassIdentifier())
		}
	}
	machine.ip(t, "addr add "+own.String()+"/24 dev c0")

	// The boot server request of firmware such as OVMF, from 4011 to 4011.
	request, err := dhcpv4.NewDiscovery(machineMAC[:], class, arch, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(own.AsSlice()))
	if err != nil {
		t.Fatal(err)
	}
	boot := machine.packet(t, own.String()+":4011")
	defer boot.Close()
	answer := converse(t, boot, "10.77.0.1:4011", request.ToBytes())
	if p, err := dhcpv4.FromBytes(answer.data); err != nil || answer.from != "10.77.0.1:4011" || p.MessageType() != dhcpv4.MessageTypeAck || p.BootFileName != "snponly.efi" {
		t.Errorf("answer from %s = %v, %v; want an ack from port 4011 with the boot file", answer.from, p, err)
	}

	if got := fetchTFTP(t, machine.packet(t, own.String()+":0"), "snponly.efi"); !bytes.Equal(got, bytes.Repeat([]byte("loader"), 20_000)) {
		t.Errorf("TFTP gave %d bytes that are not the file's", len(got))
	}

	offer := ask(dhcpv4.MessageTypeDiscover, class, arch, ipxe)
	url := offer.BootFileName + offer.BootFileNameOption()
	if url = strings.ReplaceAll(url[strings.LastIndex(url, "http://"):], "${buildarch}", "x86_64"); !strings.HasPrefix(url, "http://10.77.0.1:8081/boot.ipxe?mac=52:54:00:00:00:01") {
		t.Fatalf("iPXE's file is %q", url)
	}
	web := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = machine.do(func() (err error) { c, err = new(net.Dialer).DialContext(ctx, network, address); return err })
			return c, err
		}}}
	script := string(fetchHTTP(t, web, url))
	for _, want := range []string{"/blobs/" + kernelSum, "/blobs/" + initrdSum, "/boot/segment/nonce"} {
		if !strings.Contains(script, "http://10.77.0.1:8081"+want+" ") {
			t.Errorf("the script has no %s:\n%s", want, script)
		}
	}
	for path, want := range map[string]string{"/blobs/" + kernelSum: "kernel", "/boot/segment/nonce": "cpio", "/boot/initrd": "initrd"} {
		if got := string(fetchHTTP(t, web, "http://10.77.0.1:8081"+path)); got != want {
			t.Errorf("%s = %q; want %q", path, got, want)
		}
	}
	if len(s.boots.begun) != 1 || s.boots.begun[0].MAC != machineMAC || s.boots.begun[0].Remote != own {
		t.Errorf("begun: %+v", s.boots.begun)
	}
	testRouterAdvertisement(t, region, machine)
}

type datagram struct {
	data []byte
	from string
}

// converse sends until something comes back.
func converse(t *testing.T, c net.PacketConn, to string, b []byte) datagram {
	t.Helper()
	addr := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
	buf := make([]byte, 2000)
	for range 30 {
		c.WriteTo(b, addr)
		c.SetReadDeadline(time.Now().Add(time.Second))
		if n, from, err := c.ReadFrom(buf); err == nil {
			return datagram{buf[:n], from.String()}
		}
	}
	t.Fatalf("no answer from %s", to)
	return datagram{}
}

func fetchTFTP(t *testing.T, c net.PacketConn, name string) []byte {
	t.Helper()
	defer c.Close()
	d := converse(t, c, "10.77.0.1:69", []byte("\x00\x01"+name+"\x00octet\x00blksize\x001468\x00"))
	if d.data[1] != 6 {
		t.Fatalf("answer % x; want an OACK", d.data)
	}
	var got []byte
	for n := uint16(0); ; n++ {
		d = converse(t, c, d.from, []byte{0, 4, byte(n >> 8), byte(n)})
		if d.data[1] != 3 {
			t.Fatalf("answer % x; want data", d.data[:4])
		}
		got = append(got, d.data[4:]...)
		if len(d.data) < 4+1468 {
			c.WriteTo([]byte{0, 4, d.data[2], d.data[3]}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(d.from)))
			return got
		}
	}
}

func fetchHTTP(t *testing.T, web *http.Client, url string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := web.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s = %s, %v", url, resp.Status, err)
	}
	return b
}

// testRouterAdvertisement asks for a router and wants to hear that there is none.
func testRouterAdvertisement(t *testing.T, region, machine *netns) {
	t.Helper()
	r := in(t, region, func() (*ra.Responder, error) { return ra.Listen("br0", slog.New(slog.DiscardHandler)) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	link := in(t, machine, func() (*net.Interface, error) { return net.InterfaceByName("c0") })
	raw := in(t, machine, func() (net.PacketConn, error) { return net.ListenPacket("ip6:ipv6-icmp", "fe80::2%c0") })
	defer raw.Close()
	conn := ipv6.NewPacketConn(raw)
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterAdvertisement)
	if err := errors.Join(conn.SetICMPFilter(&filter), conn.SetMulticastInterface(link), conn.SetMulticastHopLimit(255),
		conn.SetControlMessage(ipv6.FlagHopLimit, true)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	for range 30 {
		if _, err := conn.WriteTo([]byte{133, 0, 0, 0, 0, 0, 0, 0}, nil, &net.IPAddr{IP: net.ParseIP("ff02::2"), Zone: "c0"}); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		n, control, from, err := conn.ReadFrom(buf)
		if err != nil {
			continue
		}
		if !strings.HasPrefix(from.String(), "fe80::") || control.HopLimit != 255 || n < 16 || buf[0] != 134 || buf[6] != 0 || buf[7] != 0 {
			t.Errorf("advertisement from %s, hop limit %d: % x; want router lifetime 0", from, control.HopLimit, buf[:n])
		}
		return
	}
	t.Errorf("no router advertisement; Stats = %+v", r.Stats())
}
