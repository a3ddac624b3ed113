package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab"
	"github.com/lpmos/lpmos/internal/lab/labtest"
)

// childEnv makes this test binary build a network with a machine and wait to
// be killed; see TestMain.
const childEnv = "LPMOS_LAB_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	os.Exit(m.Run())
}

// bound is a context for one wait; emulated firmware on a busy host is slow.
func bound(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("not within %v", d))
	t.Cleanup(cancel)
	return ctx
}

// hostLinks is what the host sees of its own network.
func hostLinks(t *testing.T, tools lab.Tools) string {
	t.Helper()
	var all bytes.Buffer
	for _, args := range [][]string{{"-o", "link"}, {"-o", "addr"}, {"route"}, {"netns"}} {
		out, err := exec.Command(tools.IP, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

func inode(t *testing.T, path string) string {
	t.Helper()
	link, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// holders are the processes, threads included, in the namespace that
// readlink of /proc/*/ns/net calls ns.
func holders(t *testing.T, ns string) (who []string) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if link, err := os.Readlink(p); err == nil && link == ns {
			who = append(who, p)
		}
	}
	return who
}

func eventually(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, d)
		}
	}
}

func TestNetworkIsInvisibleToTheHost(t *testing.T) {
	tools := labtest.Tools(t)
	before := hostLinks(t, tools)
	start := time.Now()
	n := labtest.Network(t, lab.Config{})
	t.Logf("made in %v", time.Since(start))

	ns := inode(t, n.Namespace())
	if own := inode(t, "/proc/self/ns/net"); ns == own {
		t.Fatalf("Namespace() = %s, which is the host's own", ns)
	}

	// Port 80 on the bridge's address serves inside and does not exist outside.
	l, err := n.Listen(t.Context(), "tcp", "10.77.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "inside\n")
			c.Close()
		}
	}()
	c, err := n.DialContext(bound(t, 5*time.Second), "tcp", "10.77.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	c.Close()
	if err != nil || string(got) != "inside\n" {
		t.Errorf("read from inside = %q, %v; want %q", got, err, "inside\n")
	}
	// Not by dialling: a host's default route may lead to something that
	// answers for every address.
	sockets := func() (b []byte, err error) {
		return os.ReadFile("/proc/thread-self/net/tcp")
	}
	const listener = "01004D0A:0050" // 10.77.0.1:80 as the kernel prints it
	if b, err := sockets(); err != nil || bytes.Contains(b, []byte(listener)) {
		t.Errorf("the host's TCP sockets = %s, %v; want none on 10.77.0.1:80", b, err)
	}
	err = n.Do(func() error {
		if b, err := sockets(); err != nil || !bytes.Contains(b, []byte(listener)) {
			return fmt.Errorf("TCP sockets = %s, %v", b, err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("inside, %v; want one on 10.77.0.1:80", err)
	}

	// An IPv6 socket can be bound to the bridge's link-local address at once.
	err = n.Do(func() error {
		br, err := net.InterfaceByName("br0")
		if err != nil {
			return err
		}
		addrs, err := br.Addrs()
		if err != nil {
			return err
		}
		for _, a := range addrs {
			p := netip.MustParsePrefix(a.String())
			if p.Addr().IsLinkLocalUnicast() {
				c, err := net.ListenPacket("udp6", netip.AddrPortFrom(p.Addr().WithZone("br0"), 547).String())
				if err == nil {
					c.Close()
				}
				return err
			}
		}
		return fmt.Errorf("br0 has no link-local address, only %v", addrs)
	})
	if err != nil {
		t.Errorf("listen on br0's link-local address: %v", err)
	}

	// A subprocess is inside too.
	var out bytes.Buffer
	cmd := exec.CommandContext(bound(t, 5*time.Second), tools.IP, "-o", "-4", "addr", "show", "dev", "br0")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.StartCommand(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "10.77.0.1/24") {
		t.Errorf("ip addr inside = %q, %v; want 10.77.0.1/24", out.String(), err)
	}
	if diff := cmp.Diff(before, hostLinks(t, tools)); diff != "" {
		t.Errorf("the host's network while the lab is up (-before +now):\n%s", diff)
	}

	l.Close()
	n.Close()
	if err := n.Do(func() error { return nil }); err == nil {
		t.Error("Do after Close = nil; want an error")
	}
	eventually(t, 5*time.Second, "namespace is let go", func() bool { return len(holders(t, ns)) == 0 })
	if diff := cmp.Diff(before, hostLinks(t, tools)); diff != "" {
		t.Errorf("the host's network after Close (-before +now):\n%s", diff)
	}
}

func TestContextClosesNetwork(t *testing.T) {
	labtest.Tools(t)
	ctx, cancel := context.WithCancel(t.Context())
	n, err := lab.NewNetwork(ctx, lab.Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ns := inode(t, n.Namespace())
	sleep := exec.Command("/bin/sleep", "600")
	if err := n.StartCommand(sleep); err != nil {
		t.Fatal(err)
	}
	cancel()
	ended := make(chan error, 1)
	go func() { ended <- sleep.Wait() }()
	select {
	case <-ended:
		if ws := sleep.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
			t.Errorf("the subprocess ended with %v; want SIGKILL", sleep.ProcessState)
		}
	case <-time.After(10 * time.Second):
		sleep.Process.Kill()
		t.Fatal("a subprocess outlives its network")
	}
	eventually(t, 5*time.Second, "namespace is let go", func() bool { return len(holders(t, ns)) == 0 })
}

// sniffer is a server's socket that answers nothing.
type sniffer struct{ c net.PacketConn }

func sniff(t *testing.T, n *lab.Network, device string) sniffer {
	t.Helper()
	c, err := n.ListenPacket(t.Context(), "udp4", ":67", device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return sniffer{c}
}

// discover is the next DHCPDISCOVER that accept takes.
func (s sniffer) discover(t *testing.T, within time.Duration, accept func(*dhcpv4.DHCPv4) bool) *dhcpv4.DHCPv4 {
	t.Helper()
	end := time.Now().Add(within)
	s.c.SetReadDeadline(end)
	buf := make([]byte, 2048)
	for {
		k, _, err := s.c.ReadFrom(buf)
		if err != nil {
			t.Fatalf("no DHCPDISCOVER as wanted within %v: %v", within, err)
		}
		m, err := dhcpv4.FromBytes(buf[:k])
		if err == nil && m.MessageType() == dhcpv4.MessageTypeDiscover && accept(m) {
			return m
		}
	}
}

func from(mac lpmos.MAC) func(*dhcpv4.DHCPv4) bool {
	return func(m *dhcpv4.DHCPv4) bool { return bytes.Equal(m.ClientHWAddr, mac[:]) }
}

func TestFirmwareAsksForABoot(t *testing.T) {
	for i, tc := range []struct {
		firmware lab.Firmware
		model    lab.NICModel
		bus      lab.Bus
		arch     uint16
		class    string
		console  string
	}{
		{lab.BIOS, lab.VirtioNet, lab.Virtio, 0, "PXEClient:Arch:00000", "iPXE"},
		{lab.BIOS, lab.E1000e, lab.AHCI, 0, "PXEClient:Arch:00000", "iPXE"},
		{lab.UEFI, lab.VirtioNet, lab.NVMe, 7, "PXEClient:Arch:00007", "Start PXE over IPv4"},
		{lab.UEFIHTTP, lab.VirtioNet, lab.SCSI, 16, "HTTPClient:Arch:00016", "Start HTTP Boot over IPv4"},
		{lab.UEFISecureBoot, lab.VirtioNet, lab.USB, 7, "PXEClient:Arch:00007", "Start PXE over IPv4"},
	} {
		t.Run(fmt.Sprintf("%s with %s and %s", tc.firmware, tc.model, tc.bus), func(t *testing.T) {
			n := labtest.Network(t, lab.Config{})
			server := sniff(t, n, "br0")
			mac := lpmos.MAC{0x52, 0x54, 0, 0x77, 1, byte(i)}
			disk := filepath.Join(t.TempDir(), "a,b.img") // a comma is QEMU's separator
			start := time.Now()
			m, err := n.Start(bound(t, 30*time.Second), lab.MachineConfig{
				Name: "m", Firmware: tc.firmware, MemoryMB: 384, Failures: []*regexp.Regexp{},
				NICs:   []lab.NIC{{MAC: mac, Model: tc.model}},
				Disks:  []lab.Disk{{Path: disk, SizeBytes: 64 << 20, Bus: tc.bus}},
				RTC:    time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC),
				SMBIOS: lab.SMBIOS{Serial: "S,1"},
			})
			if err != nil {
				t.Fatal(err)
			}
			on := time.Since(start)
			d := server.discover(t, 120*time.Second, from(mac))
			t.Logf("QEMU up %.2f s, DHCPDISCOVER %.1f s after power on", on.Seconds(), time.Since(start).Seconds())
			if got := d.ClientArch(); len(got) != 1 || uint16(got[0]) != tc.arch {
				t.Errorf("option 93 = %v; want %d", got, tc.arch)
			}
			if got := d.ClassIdentifier(); !strings.HasPrefix(got, tc.class) {
				t.Errorf("option 60 = %q; want prefix %q", got, tc.class)
			}
			if _, err := m.Console().WaitFor(bound(t, 10*time.Second), regexp.MustCompile(tc.console)); err != nil {
				t.Error(err)
			}
			raw, err := os.ReadFile(filepath.Join(m.Dir(), "serial.log"))
			if err != nil || !strings.Contains(string(raw), tc.console) {
				t.Errorf("serial.log = %q, %v; want %q in it", raw, err, tc.console)
			}
		})
	}
}

func TestPowerAndReset(t *testing.T) {
	n := labtest.Network(t, lab.Config{})
	server := sniff(t, n, "br0")
	mac := lpmos.MustMAC("52:54:00:77:02:01")
	disk := filepath.Join(t.TempDir(), "disk")
	begin := time.Now()
	m, err := n.Start(bound(t, 30*time.Second), lab.MachineConfig{
		Name: "m", MemoryMB: 256, NICs: []lab.NIC{{MAC: mac}},
		Disks: []lab.Disk{{Path: disk, SizeBytes: 16 << 20}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Start(bound(t, time.Second), m.Config()); err == nil {
		t.Error("a second machine of the same name starts; want an error")
	}
	first := server.discover(t, 60*time.Second, from(mac))
	if _, err := m.Console().WaitFor(bound(t, 10*time.Second), regexp.MustCompile(`iPXE|SeaBIOS`)); err != nil {
		t.Error(err)
	}

	// Reset: same process, same disk, the firmware begins anew.
	pressed := time.Now().Add(-time.Millisecond) // QMP counts microseconds
	if err := m.Reset(bound(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	e, err := m.WaitEvent(bound(t, 5*time.Second), lab.Reset, pressed)
	if err != nil || e.Guest || e.Reason != "host-qmp-system-reset" {
		t.Errorf("event = %+v, %v; want a reset by the host", e, err)
	}
	second := server.discover(t, 60*time.Second, func(d *dhcpv4.DHCPv4) bool {
		return from(mac)(d) && d.TransactionID != first.TransactionID && d.NumSeconds <= first.NumSeconds
	})
	t.Logf("reset to DHCPDISCOVER: %.1f s", time.Since(e.At).Seconds())

	// Power cut: off at once, and nothing on the disk is lost.
	before, err := lab.HashDisk(disk)
	if err != nil {
		t.Fatal(err)
	}
	m.PowerOff()
	if m.On() {
		t.Error("On() after PowerOff = true")
	}
	if err := m.Wait(bound(t, time.Second)); err != nil {
		t.Errorf("Wait of a machine that is off = %v; want nil", err)
	}
	if err := m.Reset(t.Context()); err == nil {
		t.Error("Reset of a machine that is off = nil; want an error")
	}
	if e, err := m.WaitEvent(bound(t, time.Second), lab.PowerOff, begin); err != nil || e.Reason != "power cut" {
		t.Errorf("event = %+v, %v; want a power cut", e, err)
	}
	if err := m.PowerOn(bound(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	server.discover(t, 60*time.Second, func(d *dhcpv4.DHCPv4) bool {
		return from(mac)(d) && d.TransactionID != first.TransactionID && d.TransactionID != second.TransactionID
	})
	if after, err := lab.HashDisk(disk); err != nil || after != before {
		t.Errorf("HashDisk = %s, %v; want %s as before the power cut", after, err, before)
	}

	// Without a server the ROM gives up, which ends the wait.
	_, err = m.Console().WaitFor(bound(t, 120*time.Second), regexp.MustCompile("never printed"))
	var ce *lab.ConsoleError
	if !errors.As(err, &ce) || !errors.Is(err, lab.ErrFailed) || !strings.Contains(ce.Line, "No bootable device") {
		t.Errorf("WaitFor = %v; want a failure, %q", err, "No bootable device")
	}
	var names []string
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for e := range m.Events(ctx) {
		switch e.Name {
		case lab.PowerOn, lab.PowerOff, lab.Reset:
			names = append(names, e.Name)
		}
	}
	names = slices.Compact(names) // SeaBIOS adds resets of its own
	if diff := cmp.Diff([]string{lab.PowerOn, lab.Reset, lab.PowerOff, lab.PowerOn}, names); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestStartReportsWhatQEMUSays(t *testing.T) {
	n := labtest.Network(t, lab.Config{})
	_, err := n.Start(bound(t, 30*time.Second), lab.MachineConfig{
		Name: "m", MemoryMB: 256, Args: []string{"-device", "no-such-device"},
	})
	if err == nil || !strings.Contains(err.Error(), "no-such-device") {
		t.Errorf("Start = %v; want QEMU's own complaint about no-such-device", err)
	}
}

func TestTwoSegments(t *testing.T) {
	n := labtest.Network(t, lab.Config{Segments: []lab.Segment{
		lab.DefaultSegment,
		{Bridge: "br1", Hosts: []netip.Prefix{netip.MustParsePrefix("10.77.1.1/24")}},
	}})
	a, b := lpmos.MustMAC("52:54:00:77:03:0a"), lpmos.MustMAC("52:54:00:77:03:0b")
	servers := map[lpmos.MAC]sniffer{a: sniff(t, n, "br0"), b: sniff(t, n, "br1")}
	// With the first cable out the firmware goes on to the second card.
	m, err := n.Start(bound(t, 30*time.Second), lab.MachineConfig{
		Name: "m", MemoryMB: 256,
		NICs: []lab.NIC{{MAC: a, Bridge: "br0"}, {MAC: b, Bridge: "br1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	servers[a].discover(t, 60*time.Second, from(a))
	if err := m.SetLink(bound(t, 5*time.Second), 0, false); err != nil {
		t.Fatal(err)
	}
	if err := m.Reset(bound(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	servers[b].discover(t, 120*time.Second, func(d *dhcpv4.DHCPv4) bool {
		if from(a)(d) {
			t.Errorf("%s was heard on br1", a)
		}
		return from(b)(d)
	})
}

// child makes a network with a machine, says which namespace and which QEMU,
// and waits for its end, which it cannot see coming.
func child() int {
	ctx := context.Background()
	n, err := lab.NewNetwork(ctx, lab.Config{Dir: os.Getenv(childEnv)}, slog.New(slog.DiscardHandler))
	if err == nil {
		_, err = n.Start(ctx, lab.MachineConfig{
			Name: "orphan", MemoryMB: 256, NICs: []lab.NIC{{MAC: lpmos.MAC{2, 0, 0, 0, 0, 1}}},
		})
	}
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	ns, _ := os.Readlink(n.Namespace())
	fmt.Println("up", ns)
	io.Copy(io.Discard, os.Stdin)
	return 0
}

func TestNothingOutlivesAKilledProcess(t *testing.T) {
	tools := labtest.Tools(t)
	before := hostLinks(t, tools)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+t.TempDir())
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	ns, ok := strings.CutPrefix(strings.TrimSpace(line), "up ")
	if !ok {
		cmd.Process.Kill()
		t.Fatalf("child said %q, %v", line, err)
	}
	inside := holders(t, ns)
	qemu := 0
	for _, p := range inside {
		pid, _ := strconv.Atoi(strings.Split(p, "/")[2])
		if pid != cmd.Process.Pid {
			qemu = pid
		}
	}
	if qemu == 0 {
		t.Fatalf("no process but the child itself is in %s: %v", ns, inside)
	}
	cmd.Process.Kill()
	cmd.Wait()
	killed := time.Now()
	eventually(t, 10*time.Second, "namespace and QEMU are gone", func() bool { return len(holders(t, ns)) == 0 })
	t.Logf("gone %v after kill -9", time.Since(killed).Round(time.Millisecond))
	if diff := cmp.Diff(before, hostLinks(t, tools)); diff != "" {
		t.Errorf("the host's network (-before +after):\n%s", diff)
	}
}
