package vm_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab"
)

// put stores a profile that configures the installed system.
func (w *world) put(s lpmos.Setup) string {
	w.t.Helper()
	p, err := w.client.PutProfile(w.t.Context(), lpmos.Profile{Name: "configured", System: &s}, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return p.Ref()
}

// TestConfiguredDebian installs a Debian whose profile has an address of each
// task, a user, a time zone, a kernel argument and a script, and finds all of
// it in the receipt. The script leaves its mark where the receipt shows it.
func TestConfiguredDebian(t *testing.T) {
	rest(t)
	w := onSite(t, "debian-12", nil)
	profile := w.put(lpmos.Setup{
		Users:    []lpmos.Account{{Name: "ops", Gecos: "Operations", Groups: []string{"adm"}, Sudo: true}},
		Timezone: "Asia/Shanghai", Kernel: []string{"mitigations=off"},
		Network: &lpmos.Network{Interfaces: []lpmos.Interface{{Name: "lan0", NIC: "boot", PerMachine: true}}, DNS: []string{"10.77.0.1"}, Search: []string{"lab.example"}},
		Scripts: []lpmos.Script{{Name: "mark", Text: "#!/bin/sh\nset -eu\nid ops\nuseradd --no-create-home first-boot-ran\n"}},
	})
	m := w.newMachine(lab.MachineConfig{Name: "configured", Firmware: lab.UEFI, Disks: []lab.Disk{{SizeBytes: 8 * gb}}, NICs: []lab.NIC{{}, {}}})
	task := w.installed(m, func(s *lpmos.Spec) {
		s.Profile, s.Addresses, s.Gateways = profile, []string{"10.77.0.50/24"}, []string{"10.77.0.1"}
	})
	r := task.Receipt
	if len(task.Drift) > 0 {
		t.Errorf("drift: %v; receipt %+v", task.Drift, r)
	}
	if !slices.Contains(r.Addresses, "10.77.0.50/24") || r.Timezone != "Asia/Shanghai" || !slices.Contains(r.Users, "ops") || !slices.Contains(r.Users, "first-boot-ran") ||
		!strings.Contains(r.KernelArgs, "mitigations=off") || r.OSID != "debian" || r.CloudInit != "done" || len(r.FailedUnits) > 0 {
		t.Errorf("receipt %+v", r)
	}
	if len(r.HostKeys) == 0 || len(r.KnownHosts()) == 0 || !slices.Contains(r.Mounts, lpmos.Mount{Path: "/", FS: "ext4"}) || !slices.Contains(r.Mounts, lpmos.Mount{Path: "/boot/efi", FS: "vfat"}) {
		t.Errorf("host keys %v, mounts %v", r.HostKeys, r.Mounts)
	}
	// It is there for others, too, with the key it told of.
	w.until(2*time.Minute, "ssh at the static address", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c, err := w.net.DialContext(ctx, "tcp", "10.77.0.50:22")
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 4)
		if _, err := c.Read(b); err != nil || string(b) != "SSH-" {
			return fmt.Errorf("reads %q, %w", b, err)
		}
		return nil
	})
}

// TestDrift installs a system that does what it likes: it has no time zones,
// no systemd that would read its network, and asks DHCP whatever it is told. It
// completes, and every difference is named.
func TestDrift(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny", nil)
	profile := w.put(lpmos.Setup{
		Timezone: "Europe/Berlin", Users: []lpmos.Account{{Name: "ops"}}, Kernel: []string{"lpmos.test=1"},
		Network: &lpmos.Network{Interfaces: []lpmos.Interface{{Name: "lan0", NIC: "nic1", Addresses: []string{"10.77.0.60/24"}}}},
	})
	m := w.newMachine(lab.MachineConfig{Name: "drifts", Firmware: lab.BIOS, Disks: []lab.Disk{{SizeBytes: 4 * gb}}})
	task := w.installed(m, func(s *lpmos.Spec) { s.Profile = profile })
	if got := lpmos.DriftNames(task.Drift); got != "address, time zone" {
		t.Errorf("drift = %v; want an address and a time zone, and nothing else", task.Drift)
	}
	if !slices.Contains(task.Receipt.Users, "ops") || !strings.Contains(task.Receipt.KernelArgs, "lpmos.test=1") {
		t.Errorf("receipt %+v; want the account and the kernel argument", task.Receipt)
	}
	events := w.history(task.ID)
	if last := events[len(events)-1].Message; !strings.Contains(last, "address: planned 10.77.0.60/24, found missing") {
		t.Errorf("the last event says %q", last)
	}
	found, err := w.client.Tasks(t.Context(), map[string][]string{"q": {"drift:yes"}})
	if err != nil || len(found.Tasks) != 1 || len(found.Tasks[0].Drift) != 2 {
		t.Errorf("drift:yes finds %+v, %v", found.Tasks, err)
	}
}

// installed takes one machine through an installation.
func (w *world) installed(m *machine, edit func(*lpmos.Spec)) lpmos.Task {
	w.t.Helper()
	id := w.create(m, edit)
	w.powerOn(m)
	w.planned(m, id)
	w.approve(id)
	return w.completed(m, id)
}
