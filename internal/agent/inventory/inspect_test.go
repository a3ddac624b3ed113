package inventory

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tier"
)

// loopDevice attaches a file to a free loop device, or ends the test where
// that is not possible.
func loopDevice(t testing.TB, img string) string {
	t.Helper()
	if os.Getuid() != 0 {
		tier.Missing(t, "root", "not root")
	}
	const (
		loopCtlGetFree = 0x4C82
		loopSetFD      = 0x4C00
		loopClrFD      = 0x4C01
	)
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		tier.Missing(t, "root", err.Error())
	}
	defer ctl.Close()
	backing, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer backing.Close()
	for range 20 {
		n, _, errno := syscall.Syscall(syscall.SYS_IOCTL, ctl.Fd(), loopCtlGetFree, 0)
		if errno != 0 {
			tier.Missing(t, "root", errno.Error())
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			tier.Missing(t, "root", err.Error())
		}
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, dev.Fd(), loopSetFD, backing.Fd())
		if errno == syscall.EBUSY { // another test was faster
			dev.Close()
			continue
		}
		if errno != 0 {
			tier.Missing(t, "root", "attach "+name+": "+errno.Error())
		}
		// The flag outlives what is attached.
		var off int32
		ioctl(dev, blkROSet, &off)
		t.Cleanup(func() {
			ioctl(dev, blkROSet, &off)
			syscall.Syscall(syscall.SYS_IOCTL, dev.Fd(), loopClrFD, 0)
			dev.Close()
		})
		return name
	}
	t.Fatal("no free loop device")
	return ""
}

func hashFile(t testing.TB, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// systemTree is a directory that looks like an installed system.
func systemTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{
		"usr/lib/os-release": "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
		"etc/hostname":       "# set by hand\ndb-7\n",
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../usr/lib/os-release", filepath.Join(dir, "etc/os-release")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestInspector looks at a real ext4 on a loop device: the operating system is
// found, no byte changes, writing is refused until it is allowed again.
func TestInspector(t *testing.T) {
	img := newImage(t, 64*mib)
	command(t, "", "mkfs.ext4", "-q", "-O", "^metadata_csum", "-L", "root", "-U", someUUID, "-d", systemTree(t), img)
	// As after a power failure: the journal wants to be replayed. (Setting the
	// flag by hand is why the superblock has no checksum.)
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	sb := make([]byte, 1)
	f.ReadAt(sb, 1024+0x60)
	f.WriteAt([]byte{sb[0] | 0x4}, 1024+0x60)
	f.Close()
	before := hashFile(t, img)
	device := loopDevice(t, img)

	src, err := Host()
	if err != nil {
		t.Fatal(err)
	}
	in := &Inspector{Sys: src.Sys, Dir: t.TempDir()}
	look := func() lpmos.Disk {
		d := lpmos.Disk{Device: device, SizeBytes: 64 * mib, SectorBytes: 512}
		in.Look(t.Context(), &d)
		return d
	}
	first := look()
	if first.ContentUnknownBecause != "" || first.Content.Filesystem == nil {
		t.Fatalf("Look = %+v", first)
	}
	if fs := first.Content.Filesystem; fs.Type != "ext4" || fs.OS != "Debian GNU/Linux 12 (bookworm)" || fs.Hostname != "db-7" {
		t.Errorf("filesystem = %+v; want the system on it", *fs)
	}
	second := look()
	if d := cmp.Diff(first, second); d != "" {
		t.Errorf("two looks differ:\n%s", d)
	}
	// The kernel says that the disk is read-only; that it is by our doing is
	// what keeps the digest of the hardware the same after the first look.
	if ro := (tree{src.Sys}).flag("block", filepath.Base(device), "ro"); !ro || !isClosed(device) {
		t.Errorf("after Look the disk is read-only: %t, by our doing: %t; want both", ro, isClosed(device))
	}
	if got := entries(t, in.Dir); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}

	write := func() error {
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 4096), 0); err != nil {
			return err
		}
		return f.Sync()
	}
	if err := write(); err == nil {
		t.Error("writing to a disk that was looked at succeeds")
	}
	if after := hashFile(t, img); after != before {
		t.Error("looking changed the disk")
	}
	if err := in.SetReadOnly(device, false); err != nil {
		t.Fatal(err)
	}
	if err := write(); err != nil {
		t.Errorf("writing after SetReadOnly(false) = %v", err)
	}
	if isClosed(device) {
		t.Error("an opened disk counts as closed by us")
	}
}

// TestClosedDiskKeepsItsDigest is about a Collect without Look after one with:
// its disks must not have become read-only, and so not installable.
func TestClosedDiskKeepsItsDigest(t *testing.T) {
	all := fstest.MapFS{}
	addDisk(all, "sdx", 1)
	addDisk(all, "sdy", 2)
	all["sys/devices/pci0000:00/0000:00:10.0/host0/target0:0:2/0:0:2:0/block/sdy/ro"].Data = []byte("1\n")
	before := Collect(t.Context(), sourceOf(t, all), lpmos.MAC{})
	all["sys/devices/pci0000:00/0000:00:10.0/host0/target0:0:1/0:0:1:0/block/sdx/ro"].Data = []byte("1\n")
	closed.Store("/dev/sdx", true)
	defer closed.Delete("/dev/sdx")
	after := Collect(t.Context(), sourceOf(t, all), lpmos.MAC{})
	if before.Digest() != after.Digest() || !after.Disks[0].Installable() || after.Disks[1].Installable() {
		t.Errorf("disks before %+v, after %+v", before.Disks, after.Disks)
	}
}

func entries(t testing.TB, dir string) []os.DirEntry {
	t.Helper()
	e, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestLookFailures(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "sda"), make([]byte, mib), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "sdb"), 0o644); err != nil {
		t.Fatal(err)
	}
	in := &Inspector{Dev: dir}
	for device, want := range map[string]string{"/dev/sda": "is not a block device", "/dev/sdb": "is not a block device", "/dev/sdc": "no such file"} {
		d := lpmos.Disk{Device: device, SizeBytes: mib, SectorBytes: 512}
		in.Look(t.Context(), &d)
		if !strings.Contains(d.ContentUnknownBecause, want) || !d.Content.Empty() {
			t.Errorf("Look(%s) = %+v; want unknown because it %s", device, d, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	d := lpmos.Disk{Device: "/dev/sda"}
	in.Look(ctx, &d)
	if d.ContentUnknownBecause == "" {
		t.Error("Look at a disk without size says nothing")
	}
}

func TestDescribeOS(t *testing.T) {
	write := func(name, data string) func(string) {
		return func(dir string) {
			name := filepath.Join(dir, name)
			os.MkdirAll(filepath.Dir(name), 0o755)
			if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	link := func(name, to string) func(string) {
		return func(dir string) {
			name := filepath.Join(dir, name)
			os.MkdirAll(filepath.Dir(name), 0o755)
			if err := os.Symlink(to, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	fifo := func(name string) func(string) {
		return func(dir string) {
			os.MkdirAll(filepath.Join(dir, "etc"), 0o755)
			if err := syscall.Mkfifo(filepath.Join(dir, name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name     string
		build    []func(string)
		os, host string
	}{
		{"nothing", nil, "", ""},
		{"quoted", []func(string){write("etc/os-release", "PRETTY_NAME='Rocky \\\"9\\\"'\n"), write("etc/hostname", "a\nb\n")}, `Rocky "9"`, "a"},
		{"only a name", []func(string){write("etc/os-release", "#x\nNAME=Void\n")}, "Void", ""},
		{"a btrfs subvolume", []func(string){write("@/etc/os-release", "PRETTY_NAME=Ubuntu\n"), write("@/etc/hostname", "u\n")}, "Ubuntu", "u"},
		{"a link out of the disk", []func(string){link("etc/os-release", "/etc/os-release"), link("etc/hostname", "../../../../../../etc/hostname")}, "", ""},
		{"a link to a link to itself", []func(string){link("etc/os-release", "os-release")}, "", ""},
		{"a FIFO", []func(string){fifo("etc/os-release"), fifo("etc/hostname")}, "", ""},
		{"controls", []func(string){write("etc/os-release", "PRETTY_NAME=\"a\x1b[2Jb\u202e\"\n"), write("etc/hostname", "\x00\xff\n")}, "a[2Jb", ""},
		{"endless", []func(string){write("etc/os-release", strings.Repeat("x=y\n", 1<<16)+"PRETTY_NAME=late\n"), write("etc/hostname", strings.Repeat("h", 1<<16))}, "", strings.Repeat("h", maxText)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, b := range tt.build {
				b(dir)
			}
			if name, host := DescribeOS(dir); name != tt.os || host != tt.host {
				t.Errorf("DescribeOS = %q, %q; want %q, %q", name, host, tt.os, tt.host)
			}
		})
	}
}
