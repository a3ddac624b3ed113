package vm_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab"
	"github.com/lpmos/lpmos/internal/lab/labtest"
	"github.com/lpmos/lpmos/internal/site"
)

// TestHardware installs on controllers that need their driver found first, by
// firmware that loads its boot file over HTTP and by SeaBIOS.
func TestHardware(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny-generic", nil)
	for _, pair := range [][]lab.MachineConfig{
		{
			{Name: "http-nvme", Firmware: lab.UEFIHTTP, Disks: []lab.Disk{{SizeBytes: 4 * gb, Bus: lab.NVMe}}},
			{Name: "bios-ahci", Firmware: lab.BIOS, NICs: []lab.NIC{{Model: lab.E1000}},
				Disks: []lab.Disk{{SizeBytes: 4 * gb, Bus: lab.AHCI, WWN: 0x5000c500a1b2c3d4}}},
		},
		{
			{Name: "uefi-scsi", Firmware: lab.UEFI, Disks: []lab.Disk{{SizeBytes: 4 * gb, Bus: lab.SCSI}}},
			{Name: "bios-nvme", Firmware: lab.BIOS, Disks: []lab.Disk{{SizeBytes: 4 * gb, Bus: lab.NVMe}}},
		},
	} {
		w.together(pair)
	}
}

// TestDebian installs a whole Debian, which is up when its SSH server answers.
func TestDebian(t *testing.T) {
	rest(t)
	w := onSite(t, "debian-12", nil)
	for m, task := range w.together([]lab.MachineConfig{
		{Name: "debian-bios", Firmware: lab.BIOS, Disks: []lab.Disk{{SizeBytes: 8 * gb}}},
		{Name: "debian-uefi", Firmware: lab.UEFI, Disks: []lab.Disk{{SizeBytes: 8 * gb, Bus: lab.AHCI}}},
	}) {
		if !strings.HasPrefix(task.Receipt.OS, "Debian GNU/Linux 12") || task.Receipt.MachineID == "" {
			t.Errorf("receipt of %s = %+v; want one of Debian 12", m.Name(), task.Receipt)
		}
		if len(task.Receipt.Addresses) == 0 {
			t.Fatalf("receipt of %s has no address", m.Name())
		}
		address, _, _ := strings.Cut(task.Receipt.Addresses[0], "/")
		w.until(2*time.Minute, "ssh at "+address, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			c, err := w.net.DialContext(ctx, "tcp", address+":22")
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			b := make([]byte, 8)
			if _, err := c.Read(b); err != nil || string(b[:4]) != "SSH-" {
				return fmt.Errorf("reads %q, %w", b, err)
			}
			return nil
		})
	}
}

// together installs machines at the same time and switches them off.
func (w *world) together(configs []lab.MachineConfig) map[*machine]lpmos.Task {
	w.t.Helper()
	done := make(map[*machine]lpmos.Task)
	var machines []*machine
	var ids []string
	for _, cfg := range configs {
		m := w.newMachine(cfg)
		machines, ids = append(machines, m), append(ids, w.create(m, nil))
		w.powerOn(m)
	}
	for i, m := range machines {
		w.planned(m, ids[i])
		w.approve(ids[i])
	}
	for i, m := range machines {
		began := time.Now()
		done[m] = w.completed(m, ids[i])
		w.t.Logf("%s completed %v after it was waited for", m.Name(), time.Since(began).Round(time.Second))
	}
	return done
}

// TestTwoNICs boots one machine from either of its interfaces. It is one
// machine: one task, which holds both addresses.
func TestTwoNICs(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny", nil)
	cfg := lab.MachineConfig{Name: "two", NICs: []lab.NIC{{}, {}}, Disks: []lab.Disk{{SizeBytes: 4 * gb}}, Failures: []*regexp.Regexp{}}
	m := w.newMachine(cfg)
	first, second := macOf("two", 0), macOf("two", 1)
	// The task names the second; the machine tries the first, which has no
	// task, and goes on to the second.
	id := w.create(m, func(s *lpmos.Spec) { s.TargetMAC = second })
	console := fromNow(m)
	w.powerOn(m)
	task := w.planned(m, id)
	if !slices.Contains(task.Claims, first) || !slices.Contains(task.Claims, second) {
		t.Errorf("claims = %v; want both %s and %s", task.Claims, first, second)
	}
	if task.Hardware.BootMAC != second {
		t.Errorf("booted from %s; want %s", task.Hardware.BootMAC, second)
	}
	if _, err := w.client.CreateTask(t.Context(), lpmos.Spec{RegionID: "lab", TargetMAC: first, OSType: w.image.OS, OSVersion: w.image.Version}, ""); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("a second task for the other address: %v; want a conflict", err)
	}
	w.console(console, bootLimit, `waiting for a person to approve`)
	w.reset(m)
	w.console(console, bootLimit, `agent started.*mac=`+first.String())
	w.console(console, bootLimit, `hardware reported.*status=awaiting_approval`)
	if now := w.task(id); now.Plan.Digest != task.Plan.Digest || now.Status != lpmos.AwaitingApproval {
		t.Errorf("booted from the other interface the task is %s with plan %s; want the same question with %s", now.Status, now.Plan.Digest, task.Plan.Digest)
	}
	w.approve(id)
	w.completed(m, id)
}

// TestProxyDHCP runs beside a DHCP server that is not ours and knows nothing
// of booting: it gives the addresses, we give the boot files.
func TestProxyDHCP(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny", func(c *site.Config) { c.Region.DHCP, c.Region.DHCPRange = "proxy", "" })
	w.foreignDHCP()
	w.together([]lab.MachineConfig{
		{Name: "proxy-bios", Firmware: lab.BIOS, Disks: []lab.Disk{{SizeBytes: 4 * gb}}},
		{Name: "proxy-uefi", Firmware: lab.UEFI, Disks: []lab.Disk{{SizeBytes: 4 * gb}}},
	})
}

// foreignDHCP is a host of its own on the network, with dnsmasq on it.
func (w *world) foreignDHCP() {
	w.t.Helper()
	run := func(name string, args ...string) *exec.Cmd {
		w.t.Helper()
		cmd := exec.Command(name, args...)
		log := w.logFile("dnsmasq.log")
		cmd.Stdout, cmd.Stderr = log, log
		if err := w.net.StartCommand(cmd); err != nil {
			w.t.Fatal(err)
		}
		return cmd
	}
	wait := func(cmd *exec.Cmd) {
		w.t.Helper()
		if err := cmd.Wait(); err != nil {
			w.t.Fatalf("run %s: %v", cmd.Args, err)
		}
	}
	end := func(cmd *exec.Cmd) {
		w.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	host := run("/usr/bin/unshare", "--net", "/bin/sleep", "infinity")
	end(host)
	ns := fmt.Sprintf("/proc/%d/ns/net", host.Process.Pid)
	// unshare has to have come to its system call.
	w.until(time.Minute, "host of the DHCP server", func() error {
		comm := w.output("/bin/cat", fmt.Sprintf("/proc/%d/comm", host.Process.Pid))
		if strings.TrimSpace(string(comm)) != "sleep" {
			return fmt.Errorf("it is still %s", comm)
		}
		return nil
	})
	ip := labtest.Tools(w.t).IP
	wait(run(ip, "link", "add", "foreign", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(host.Process.Pid)))
	wait(run(ip, "link", "set", "foreign", "master", lab.DefaultSegment.Bridge, "up"))
	inside := func(args ...string) *exec.Cmd {
		return run("/usr/bin/nsenter", append([]string{"--net=" + ns, "--"}, args...)...)
	}
	wait(inside(ip, "addr", "add", "10.77.0.2/24", "dev", "eth0"))
	wait(inside(ip, "link", "set", "eth0", "up"))
	server := inside("/usr/sbin/dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--bind-interfaces",
		"--log-dhcp", "--log-facility=-", "--dhcp-authoritative", "--dhcp-range=10.77.0.50,10.77.0.90,255.255.255.0,1h",
		"--dhcp-leasefile="+w.dir+"/foreign.leases", "--pid-file=")
	end(server)
	time.Sleep(500 * time.Millisecond)
	if err := server.Process.Signal(syscall.Signal(0)); err != nil {
		w.t.Fatalf("dnsmasq ended: %v", err)
	}
}
