package preflight

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/rofs"
)

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

// TestDiskRefusesALogicalRoot: what an agent cannot fit to a disk is said when
// the image is imported, also when the root filesystem cannot be looked into.
func TestDiskRefusesALogicalRoot(t *testing.T) {
	for _, logical := range []bool{false, true} {
		b := make([]byte, 1<<20)
		entry := func(table, typ, start, size int) {
			b[table+446+4], b[table+446+8], b[table+510], b[table+511] = byte(typ), byte(start), 0x55, 0xAA
			binary.LittleEndian.PutUint32(b[table+446+12:], uint32(size))
		}
		entry(0, 0x83, 9, 2000)
		if logical {
			entry(0, 0x05, 8, 2001)
			entry(8*512, 0x83, 1, 2000)
		}
		super := b[9*512+64<<10:]
		copy(super[0x40:], "_BHRfS_M")
		binary.LittleEndian.PutUint64(super[0x30:], 64<<10)
		found, err := Disk(bytes.NewReader(b), int64(len(b)), Want{"a", "1", "amd64"})
		if err != nil || found.Manifest.Disk == nil {
			t.Fatalf("Disk = %+v, %v", found.Report, err)
		}
		want, root := []string(nil), 1
		if logical {
			want, root = []string{"The root filesystem is on partition 5, in an extended one: an image of that kind cannot be fitted to a disk. Take one whose root filesystem is on a primary partition, or that has a GPT."}, 5
		}
		if diff := cmp.Diff(want, found.Report.Problems()); diff != "" || found.Manifest.Disk.Root != root {
			t.Errorf("in an extended partition %v: root is %d; problems (-want +got):\n%s", logical, found.Manifest.Disk.Root, diff)
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

func FuzzText(f *testing.F) {
	f.Add("system_info:\n  default_user:\n    name: x\nA=\"b\"\n")
	f.Fuzz(func(_ *testing.T, s string) { _, _ = defaultUser(s), assignments(s) })
}

func FuzzPE(f *testing.F) {
	f.Add(append([]byte("MZ"), make([]byte, 200)...))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = PESigned(b), PEMachine(b) })
}

// FuzzSystem looks into a root filesystem whose files say anything: the report is
// text that can be shown, of a length that can be.
func FuzzSystem(f *testing.F) {
	f.Add("6.1.0-40-amd64", "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian\"\n", "system_info:\n  default_user:\n    name: debian\n", "root::1\nx:$y$:1\n", "SELINUX=enforcing\n")
	f.Add("\x1b[31m", "ID=\u202e\nID_LIKE=suse rhel\nPRETTY_NAME='\xff\x00\n", "default_user:\n name:\n", ":", "SELINUX=")
	f.Fuzz(func(t *testing.T, kernel, release, cloud, shadow, selinux string) {
		list := rofs.NewTar()
		for name, text := range map[string]string{"usr/x": "", "etc/os-release": release, "etc/cloud/cloud.cfg": cloud, "etc/cloud/cloud.cfg.d/1.cfg": cloud, "etc/shadow": shadow, "etc/selinux/config": selinux,
			"etc/machine-id": kernel, "etc/ssh/ssh_host_" + kernel + "_key": "", "boot/vmlinuz-" + kernel: release, "boot/initrd.img-" + kernel: ""} {
			if list.Add(name, 0, int64(len(text)), "", []byte(text)) != nil {
				return
			}
		}
		r := Tar(list, Want{"debian", "12", "amd64"}).Report
		texts := []string{r.PrettyName, r.OSID, r.Kernel, r.DefaultUser, r.SELinux}
		for _, c := range r.Checks {
			texts = append(texts, c.Text)
		}
		for _, s := range texts {
			if len(s) > 1000 || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
				t.Fatalf("the report holds %q", s)
			}
		}
	})
}
