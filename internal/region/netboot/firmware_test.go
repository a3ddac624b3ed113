package netboot_test

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos/internal/lab"
	"github.com/lpmos/lpmos/internal/lab/labtest"
	"github.com/lpmos/lpmos/internal/region/dhcpd"
	"github.com/lpmos/lpmos/internal/region/netboot"
	"github.com/lpmos/lpmos/internal/region/ra"
)

// TestFirmware lets real firmware decide whether it likes what it is offered,
// up to the point where it has loaded its boot file or its script. What is
// loaded is no program; starting it is the business of other tests.
func TestFirmware(t *testing.T) {
	const efiROM = "/usr/lib/ipxe/qemu/efi-virtio.rom"
	const uuid = "6ba7b811-9dad-11d1-80b4-00c04fd430c8"
	script := func(p netboot.Platform) func(*services) bool {
		return func(s *services) bool {
			s.boots.mu.Lock()
			defer s.boots.mu.Unlock()
			return len(s.boots.begun) > 0 && s.boots.begun[0].MAC == machineMAC && s.boots.begun[0].Platform == p &&
				s.boots.begun[0].UUID == uuid && s.boots.begun[0].Known
		}
	}
	loaded := func(s *services) bool { return s.tftp.Stats().Completed > 0 }
	tests := []struct {
		name     string
		firmware lab.Firmware
		rom      string
		mode     dhcpd.Mode
		done     func(*services) bool
	}{
		{"BIOS with iPXE in ROM", lab.BIOS, "", dhcpd.ModeServer, script(netboot.BIOS)},
		{"BIOS with iPXE in ROM beside a DHCP server", lab.BIOS, "", dhcpd.ModeProxy, script(netboot.BIOS)},
		{"UEFI with iPXE in ROM", lab.UEFI, efiROM, dhcpd.ModeServer, script(netboot.EFI)},
		{"UEFI PXE", lab.UEFI, "", dhcpd.ModeServer, loaded},
		{"UEFI PXE beside a DHCP server", lab.UEFI, "", dhcpd.ModeProxy, loaded},
		{"UEFI HTTP", lab.UEFIHTTP, "", dhcpd.ModeServer, func(s *services) bool { return s.http.Stats().Files >= 2 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.rom != "" {
				_, err := os.Stat(tt.rom)
				labtest.Require(t, "vm", err)
			}
			n := labtest.Network(t, lab.Config{})
			log := slog.New(slog.DiscardHandler)
			s := startServices(t, listeners{
				dhcp: func(port int) (c net.PacketConn, err error) {
					err = n.Do(func() (err error) { c, err = dhcpd.Listen(t.Context(), "br0", port); return err })
					return c, err
				},
				udp: func(address string) (net.PacketConn, error) {
					return n.ListenPacket(context.WithoutCancel(t.Context()), "udp4", address, "")
				},
				tcp: func(address string) (net.Listener, error) { return n.Listen(t.Context(), "tcp4", address) },
			}, tt.mode, labtest.Log(t))
			if tt.mode == dhcpd.ModeProxy {
				startSiteServer(t, n, log)
			}
			startRA(t, n, log)
			began := time.Now()
			_, err := n.Start(t.Context(), lab.MachineConfig{Name: "machine", Firmware: tt.firmware,
				NICs: []lab.NIC{{MAC: machineMAC, ROM: tt.rom}}, SMBIOS: lab.SMBIOS{UUID: uuid}})
			if err != nil {
				t.Fatal(err)
			}
			for !tt.done(s) {
				if time.Since(began) > 2*time.Minute {
					t.Fatalf("no boot after 2 min\ndhcp %+v\ntftp %+v\nhttp %+v\nbegun %+v\nconsole:\n%s", s.dhcp.Stats(), s.tftp.Stats(), s.http.Stats(),
						s.boots.begun, strings.Join(n.Machine("machine").Console().Tail(30), "\n"))
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Logf("after %.1f s", time.Since(began).Seconds())
			if st := s.tftp.Stats(); st.Failed+st.TimedOut+st.Malformed+st.BadNames > 0 {
				t.Errorf("tftp: %+v", st)
			}
		})
	}
}

// startSiteServer is the DHCP server of a site that knows nothing of booting, on
// another port of the bridge.
func startSiteServer(t *testing.T, n *lab.Network, log *slog.Logger) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/sbin/ip", "-batch", "-")
	cmd.Stdin = strings.NewReader("link add site0 type veth peer name site1\nlink set site1 master br0\n" +
		"addr add 10.77.0.2/24 dev site0\nlink set site0 up\nlink set site1 up\n")
	if err := n.StartCommand(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	site := netip.MustParseAddr("10.77.0.2")
	pool, err := dhcpd.ParseRange("10.77.0.50-10.77.0.60", netip.MustParsePrefix("10.77.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := netboot.New(netboot.Config{BootURL: "http://10.77.0.2", NextServer: site, Unknown: netboot.Ignore}, view{})
	if err != nil {
		t.Fatal(err)
	}
	var conn net.PacketConn
	err = n.Do(func() (err error) {
		conn, err = dhcpd.Listen(t.Context(), "site0", dhcpd.PortServer)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := dhcpd.New(dhcpd.Config{Mode: dhcpd.ModeServer, ServerID: site, Pools: []dhcpd.Pool{pool}}, d, dhcpd.Conns{Server: conn}, log)
	if err != nil {
		t.Fatal(err)
	}
	runUntilEnd(t, s.Run)
	t.Cleanup(func() {
		if _, ok := s.Lease(machineMAC); !ok {
			t.Errorf("the machine has no lease of the site's server: %+v", s.Stats())
		}
	})
}

// startRA spares old iPXE its wait for a router.
func startRA(t *testing.T, n *lab.Network, log *slog.Logger) {
	t.Helper()
	var r *ra.Responder
	err := n.Do(func() (err error) { r, err = ra.Listen("br0", log); return err })
	if err != nil {
		t.Fatal(err)
	}
	runUntilEnd(t, r.Run)
}

func runUntilEnd(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
