package lpmos_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

func TestHardwareDigest(t *testing.T) {
	want := server().Digest()
	r := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		if got := shuffled(server(), r).Digest(); got != want {
			t.Fatal("the order in which the kernel found things changes the digest")
		}
	}
	for name, tt := range map[string]struct {
		edit func(*lpmos.Hardware)
		same bool
	}{
		"what is on a disk":      {func(h *lpmos.Hardware) { h.Disks[1].Content = used("x") }, true},
		"the NIC it booted from": {func(h *lpmos.Hardware) { h.BootMAC, h.NICs[0].Boot = h.NICs[1].MAC, false }, true},
		"a link":                 {func(h *lpmos.Hardware) { h.NICs[1].Link = true }, true},
		"the kernel":             {func(h *lpmos.Hardware) { h.Kernel = "6.12" }, true},
		"memory by a little":     {func(h *lpmos.Hardware) { h.Memory.TotalBytes += 4096 }, true},
		"a stick":                {func(h *lpmos.Hardware) { h.Disks = h.Disks[:3] }, true},
		"the case of the UUID":   {func(h *lpmos.Hardware) { h.System.UUID = strings.ToUpper(h.System.UUID) }, true},
		"another UUID":           {func(h *lpmos.Hardware) { h.System.UUID = "5" + h.System.UUID[1:] }, false},
		"another serial":         {func(h *lpmos.Hardware) { h.System.Serial = "SRV2" }, false},
		"another board":          {func(h *lpmos.Hardware) { h.Board.Serial = "BRD2" }, false},
		"another boot mode":      {func(h *lpmos.Hardware) { h.BootMode = "bios" }, false},
		"a disk gone":            {func(h *lpmos.Hardware) { h.Disks = h.Disks[1:] }, false},
		"a disk swapped":         {func(h *lpmos.Hardware) { h.Disks[0].Serial = "N9" }, false},
		"a disk of another size": {func(h *lpmos.Hardware) { h.Disks[0].SizeBytes++ }, false},
		"a NIC gone":             {func(h *lpmos.Hardware) { h.NICs = h.NICs[:1] }, false},
	} {
		h := server()
		tt.edit(h)
		if got := h.Digest() == want; got != tt.same {
			t.Errorf("%s: same digest = %v; want %v", name, got, tt.same)
		}
	}
}

func TestInstallable(t *testing.T) {
	for transport, want := range map[string]bool{
		"nvme": true, "sata": true, "sas": true, "virtio": true, "scsi": true, "mmc": true, "": true,
		"usb": false, "iscsi": false, "fc": false, "nvme-tcp": false, "nvme-rdma": false,
	} {
		if got := (lpmos.Disk{Transport: transport, SizeBytes: 1}).Installable(); got != want {
			t.Errorf("a disk over %q: installable %v; want %v", transport, got, want)
		}
	}
	for name, d := range map[string]lpmos.Disk{"removable": {Removable: true, SizeBytes: 1}, "read-only": {ReadOnly: true, SizeBytes: 1}, "empty": {}} {
		if d.Installable() {
			t.Errorf("a disk that is %s is installable", name)
		}
	}
}

// One machine's UUID in both byte orders is one UUID, wherever machines are told
// apart; one that many boards have is nobody's.
func TestMachineUUID(t *testing.T) {
	const big, little = "00112233-4455-6677-8899-aabbccddeeff", "33221100-5544-7766-8899-aabbccddeeff"
	for _, s := range []string{big, little, strings.ToUpper(little)} {
		if got := lpmos.CanonicalUUID(s); got != big {
			t.Errorf("CanonicalUUID(%s) = %s; want %s", s, got, big)
		}
		if got := lpmos.UUIDSpellings(s); len(got) != 2 || got[0] != big || got[1] != little {
			t.Errorf("UUIDSpellings(%s) = %v", s, got)
		}
	}
	shared := []string{"03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"}
	for _, s := range append(shared, "", "x", big+"0", big[1:]) {
		if got := lpmos.UUIDSpellings(s); got != nil || lpmos.CanonicalUUID(s) != "" {
			t.Errorf("UUIDSpellings(%q) = %v; want none", s, got)
		}
	}

	own := map[string]lpmos.Host{"control plane": {Hostname: "cp1", UUID: strings.ToUpper(big)}, "region dc1": {Hostname: "r1", UUID: shared[0]}}
	listed, err := lpmos.Limits{Protected: []string{strings.ToUpper(little)}}.Normalize()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{big, little} {
		if why := listed.Protects(nil, nil, s); !strings.Contains(why, little) {
			t.Errorf("a listed machine that reports %s is held back by %q; want the entry as it was given", s, why)
		}
		if why := (lpmos.Limits{}).Protects(own, nil, s); !strings.Contains(why, "cp1") {
			t.Errorf("a host of LPMOS that reports %s is held back by %q", s, why)
		}
	}
	for _, s := range append(shared, "", "1"+big[1:]) {
		if why := listed.Protects(own, nil, s); why != "" {
			t.Errorf("a machine that reports %q is held back: %s", s, why)
		}
	}
	if _, err := (lpmos.Limits{Protected: shared[:1]}).Normalize(); err == nil || !strings.Contains(err.Error(), "MAC address") {
		t.Errorf("a protected UUID that many boards have = %v; want it refused with what to give instead", err)
	}
}

func TestDiskRef(t *testing.T) {
	h := server()
	for _, d := range h.Disks {
		if got, err := h.Disk(d.Ref()); err != nil || got.Device != d.Device {
			t.Errorf("Disk(%s) = %s, %v; want %s", d.Ref(), got.Device, err, d.Device)
		}
	}
	for name, r := range map[string]lpmos.DiskRef{
		"size alone":                   {SizeBytes: 480 * gb},
		"a path where there is a name": {Path: "/dev/sda", SizeBytes: 480 * gb},
		"a serial without its WWN":     {Serial: "S0", SizeBytes: 480 * gb},
		"a serial of another size":     {Serial: "N0", SizeBytes: 480 * gb},
	} {
		if d, err := h.Disk(r); err == nil {
			t.Errorf("%s names %s", name, d.Device)
		}
	}
	h.Disks = append(h.Disks, h.Disks[0])
	if _, err := h.Disk(h.Disks[0].Ref()); err == nil || !strings.Contains(err.Error(), "more than once") {
		t.Errorf("a name that two disks have = %v; want it refused", err)
	}
	if got, want := h.Disks[1].Ref().String(), "serial S0, wwn 0x5000c500a0b1c2d3, 480 GB"; got != want {
		t.Errorf("String = %q; want %q", got, want)
	}
}

func TestContent(t *testing.T) {
	for name, tt := range map[string]struct {
		c           lpmos.Content
		empty, data bool
	}{
		"nothing":        {lpmos.Content{}, true, false},
		"a table":        {lpmos.Content{Table: "mbr"}, false, false},
		"a partition":    {lpmos.Content{Table: "gpt", Partitions: []lpmos.Partition{{Number: 1}}}, false, false},
		"a filesystem":   {lpmos.Content{Filesystem: &lpmos.Filesystem{Type: "xfs"}}, false, true},
		"one in a table": {used("x"), false, true},
	} {
		if tt.c.Empty() != tt.empty || tt.c.HoldsData() != tt.data {
			t.Errorf("%s: empty %v, data %v", name, tt.c.Empty(), tt.c.HoldsData())
		}
	}
}
