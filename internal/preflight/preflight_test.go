package preflight

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
)

func TestParseFstab(t *testing.T) {
	got := ParseFstab("# comment\n\nUUID=1 / ext4 rw,nofail 0 1\nLABEL=a\\040b /mnt/a\\040b vfat\ntmpfs /tmp tmpfs\nalone\n")
	want := []Mount{{Spec: "UUID=1", Mount: "/", FS: "ext4", Options: []string{"rw", "nofail"}}, {Spec: "LABEL=a b", Mount: "/mnt/a b", FS: "vfat"}, {Spec: "tmpfs", Mount: "/tmp", FS: "tmpfs"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ParseFstab (-want +got):\n%s", diff)
	}
	if !got[0].Optional() || got[1].Optional() || !got[1].Disk() || got[2].Disk() {
		t.Errorf("which lines are optional or need a disk is wrong: %+v", got)
	}
}

func TestCompareVersions(t *testing.T) {
	got := []string{"6.8.0-40-generic", "6.8.0-9-generic", "5.14.0-570.el9.x86_64", "6.8.0-40", "6.10.1", "6.8.0-040-generic"}
	slices.SortStableFunc(got, CompareVersions)
	want := []string{"5.14.0-570.el9.x86_64", "6.8.0-9-generic", "6.8.0-40", "6.8.0-40-generic", "6.8.0-040-generic", "6.10.1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("kernels in order (-want +got):\n%s", diff)
	}
}

func TestDefaultUser(t *testing.T) {
	for text, want := range map[string]string{
		"system_info:\n   default_user:\n     name: ubuntu\n": "ubuntu",
		"default_user:\n  lock: true\n  name: \"rocky\"\n":    "rocky",
		"default_user:\nname: outside\n":                      "",
		"users:\n  - name: x\n":                               "",
		"":                                                    "",
	} {
		if got := defaultUser(text); got != want {
			t.Errorf("defaultUser(%q) = %q; want %q", text, got, want)
		}
	}
}

func TestDiskRefusesNothingness(t *testing.T) {
	for _, size := range []int{0, 100, 1 << 20} {
		found, err := Disk(bytes.NewReader(make([]byte, size)), int64(size), Want{"a", "1", "amd64"})
		if err != nil || len(found.Report.Problems()) != 1 || found.Manifest.Disk != nil {
			t.Errorf("Disk of %d zeros = %+v, %v; want one problem", size, found.Report, err)
		}
	}
}

// FuzzDisk looks at anything as a disk; GPT, MBR and what is in partitions are
// reached through package inventory's own targets too.
func FuzzDisk(f *testing.F) {
	b := make([]byte, 64<<10)
	b[446+4], b[446+8], b[446+12], b[510], b[511] = 0x83, 8, 100, 0x55, 0xAA
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		found, err := Disk(bytes.NewReader(b), int64(len(b)), Want{"a", "1", "amd64"})
		if err == nil && found.Manifest.Disk != nil {
			_ = lpmos.DigestOf(found.Report)
		}
	})
}

func FuzzFstab(f *testing.F) {
	f.Add("UUID=1 / ext4 rw 0 1\n\\04 \\040\\ x")
	f.Fuzz(func(_ *testing.T, s string) {
		for _, m := range ParseFstab(s) {
			_, _ = m.Disk(), m.Optional()
		}
		_ = defaultUser(s)
	})
}

func FuzzPE(f *testing.F) {
	f.Add(append([]byte("MZ"), make([]byte, 200)...))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = PESigned(b), PEMachine(b) })
}
