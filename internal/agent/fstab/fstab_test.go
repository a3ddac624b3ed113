package fstab

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
)

func TestParse(t *testing.T) {
	got := Parse("# comment\n\nUUID=1 / ext4 rw,nofail 0 1\nLABEL=a\\040b /mnt/a\\040b vfat\ntmpfs /tmp tmpfs\nalone\n")
	want := []Entry{{Spec: "UUID=1", Mount: "/", FS: "ext4", Options: []string{"rw", "nofail"}}, {Spec: "LABEL=a b", Mount: "/mnt/a b", FS: "vfat"}, {Spec: "tmpfs", Mount: "/tmp", FS: "tmpfs"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
	if !got[0].Optional() || got[1].Optional() || !got[1].Disk() || got[2].Disk() {
		t.Errorf("which lines are optional or need a disk is wrong: %+v", got)
	}
}

func TestNeedsDisks(t *testing.T) {
	for line, want := range map[string]struct{ disk, optional bool }{
		"UUID=1 / ext4 defaults 0 1":                     {disk: true},
		"PARTUUID=1 /data xfs":                           {disk: true},
		"PARTLABEL=efi /boot/efi vfat":                   {disk: true},
		"/dev/mapper/vg-root / xfs":                      {disk: true},
		"/dev/disk/by-label/data /data ext4 nofail":      {disk: true, optional: true},
		"/dev/sdb1 /data ext4 _netdev":                   {disk: true, optional: true},
		"UUID=2 none swap sw":                            {disk: true, optional: true},
		"/swap.img none swap sw":                         {optional: true},
		"/data /srv none bind":                           {},
		"/dev/log /srv/log none rbind":                   {},
		"/images/a.iso /mnt iso9660 loop":                {},
		"/dev/shm /dev/shm tmpfs noexec":                 {},
		"hugetlbfs /dev/hugepages hugetlbfs mode=0770":   {},
		"tracefs /sys/kernel/tracing tracefs":            {},
		"ramfs /mnt/ram ramfs":                           {},
		"gluster1:/vol /data glusterfs defaults":         {},
		"server:/export /home nfs4 hard":                 {},
		"//server/share /mnt cifs credentials=/etc/cred": {},
	} {
		m := Parse(line)[0]
		if m.Disk() != want.disk || m.Optional() != want.optional {
			t.Errorf("%q needs a disk: %v, is optional: %v; want %v", line, m.Disk(), m.Optional(), want)
		}
	}
}

func TestPartition(t *testing.T) {
	parts := []lpmos.ImagePartition{{Number: 2, FSUUID: "0A1B-2C3D", FSLabel: "EFI"}, {Number: 3, FSUUID: "aa-1", UUID: "bb-2", Name: "p.lxroot", FSLabel: "ROOT"}}
	for spec, want := range map[string]int{
		"UUID=0a1b-2c3d": 2, "LABEL=ROOT": 3, "LABEL=root": 0, `PARTLABEL="p.lxroot"`: 3, "PARTUUID=BB-2": 3, "/dev/disk/by-uuid/aa-1": 3, "/dev/disk/by-label/EFI": 2,
		"/dev/sda3": 0, "UUID=": 0, "UUID=cc-3": 0, "tmpfs": 0, "NUMBER=3": 0,
	} {
		got := 0
		if p := (Entry{Spec: spec}).Partition(parts); p != nil {
			got = p.Number
		}
		if got != want {
			t.Errorf("%s is partition %d; want %d", spec, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("UUID=1 / ext4 rw 0 1\n\\04 \\040\\ x")
	f.Fuzz(func(_ *testing.T, s string) {
		for _, e := range Parse(s) {
			_, _, _ = e.Disk(), e.Optional(), e.Partition([]lpmos.ImagePartition{{FSUUID: "1"}})
		}
	})
}
