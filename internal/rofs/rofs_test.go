package rofs_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos/internal/rofs"
	"github.com/lpmos/lpmos/internal/tier"
)

// command runs a tool of the host; without it the tier mkfs is missing.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			tier.Missing(t, "mkfs", "no "+name)
		}
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// content is what every filesystem of the tests holds.
func content() map[string]string {
	long := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB, many blocks
	m := map[string]string{
		"etc/os-release":        "ID=debian\n",
		"etc/empty":             "",
		"usr/lib/long":          long,
		"boot/grub/grub.cfg":    "menuentry\n",
		"boot/vmlinuz-6.1.0-40": "kernel",
	}
	for i := range 400 { // a directory of many blocks
		m[fmt.Sprintf("many/a-name-that-takes-some-room-%04d", i)] = fmt.Sprint(i)
	}
	return m
}

func tree(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range content() {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	// A file with a hole in it.
	f, err := os.Create(filepath.Join(root, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("end"), 3<<20); err != nil {
		t.Fatal(err)
	}
	return root
}

var links = map[string]string{
	"etc/short":  "os-release",
	"etc/abs":    "/usr/lib/long",
	"etc/out":    "../../../../etc/os-release",
	"etc/loop":   "loop",
	"lib":        "usr/lib",
	"etc/longer": "../" + strings.Repeat("./", 100) + "etc/os-release",
}

func open(t testing.TB, kind, path string) *rofs.Tree {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	v, err := rofs.Open(kind, f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return rofs.NewTree(v)
}

// check compares everything in a filesystem with what was put there.
func check(t *testing.T, tr *rofs.Tree, withLinks bool) {
	t.Helper()
	for name, want := range content() {
		got, err := tr.ReadFile("/"+name, 2<<20)
		if err != nil || string(got) != want {
			t.Errorf("ReadFile(%q) = %d bytes, %v; want %d bytes", name, len(got), err, len(want))
		}
	}
	got, err := tr.ReadFile("/sparse", 4<<20)
	if want := append(make([]byte, 3<<20), "end"...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadFile of a file with a hole = %d bytes, %v; want %d", len(got), err, len(want))
	}
	if _, err := tr.ReadFile("/usr/lib/long", 100); err == nil {
		t.Error("ReadFile gave a file longer than the limit")
	}
	if b, err := tr.ReadHead("/usr/lib/long", 100); err != nil || len(b) != 100 {
		t.Errorf("ReadHead = %d bytes, %v; want 100", len(b), err)
	}
	entries, err := tr.ReadDir("/many")
	if err != nil || len(entries) != 400 {
		t.Errorf("ReadDir(/many) = %d entries, %v; want 400", len(entries), err)
	}
	if tr.Exists("/etc/nothing") || tr.Exists("/etc/os-release/x") {
		t.Error("a file exists that is not there")
	}
	if !withLinks {
		return
	}
	for name, want := range map[string]string{"/etc/short": "ID=debian\n", "/etc/out": "ID=debian\n", "/etc/longer": "ID=debian\n", "/lib/../etc/os-release": "ID=debian\n"} {
		if got, err := tr.ReadFile(name, 100); err != nil || string(got) != want {
			t.Errorf("ReadFile(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
	if e, err := tr.Stat("/etc/abs"); err != nil || e.Size != 1<<20 {
		t.Errorf("Stat of an absolute link = %+v, %v; want the file it leads to", e, err)
	}
	if e, err := tr.Stat("/lib/long"); err != nil || e.Size != 1<<20 {
		t.Errorf("Stat through a linked directory = %+v, %v", e, err)
	}
	if _, err := tr.ReadFile("/etc/loop", 100); err == nil {
		t.Error("a link to itself was followed to an end")
	}
}

func TestExt(t *testing.T) {
	root := tree(t)
	for _, v := range []struct {
		name string
		args []string
	}{
		{"ext4", []string{"-t", "ext4", "-b", "4096"}},
		{"ext4 of 1 KiB blocks", []string{"-t", "ext4", "-b", "1024"}},
		{"ext4 without 64bit", []string{"-t", "ext4", "-O", "^64bit"}},
		{"ext3", []string{"-t", "ext3"}},
		{"ext2 with small inodes", []string{"-t", "ext2", "-I", "128", "-b", "1024"}},
	} {
		t.Run(v.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "fs")
			command(t, "mke2fs", slices.Concat([]string{"-q", "-F", "-d", root}, v.args, []string{path, "64M"})...)
			check(t, open(t, "ext4", path), true)
		})
	}
}

// xfsImage makes an XFS with the tree's content by a prototype file.
func xfsImage(t testing.TB, args ...string) string {
	t.Helper()
	root := tree(t)
	var proto strings.Builder
	proto.WriteString("/dev/null\n0 0\nd--755 0 0\n")
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			p := filepath.Join(dir, e.Name())
			switch {
			case e.IsDir():
				fmt.Fprintf(&proto, "%s d--755 0 0\n", e.Name())
				walk(p)
				proto.WriteString("$\n")
			case e.Type()&fs.ModeSymlink != 0:
				to, err := os.Readlink(p)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&proto, "%s l--777 0 0 %s\n", e.Name(), to)
			default:
				fmt.Fprintf(&proto, "%s ---644 0 0 %s\n", e.Name(), p)
			}
		}
	}
	walk(root)
	proto.WriteString("$\n")
	dir := t.TempDir()
	name, image := filepath.Join(dir, "proto"), filepath.Join(dir, "fs")
	if err := os.WriteFile(name, []byte(proto.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 320<<20); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.xfs", slices.Concat([]string{"-q", "-f", "-p", name}, args, []string{image})...)
	return image
}

func TestXFS(t *testing.T) {
	for _, v := range []struct {
		name string
		args []string
	}{
		{"version 5, as EL9 has it", nil},
		{"1 KiB blocks", []string{"-b", "size=1024"}},
		{"large directory blocks", []string{"-n", "size=16384"}},
		{"version 4", []string{"-m", "crc=0,finobt=0,reflink=0,rmapbt=0,bigtime=0,inobtcount=0"}},
	} {
		t.Run(v.name, func(t *testing.T) {
			check(t, open(t, "xfs", xfsImage(t, v.args...)), true)
		})
	}
}

func TestFAT(t *testing.T) {
	root := tree(t)
	for _, v := range []struct {
		name string
		args []string
		size int64
	}{
		{"FAT12", []string{"-F", "12"}, 8 << 20},
		{"FAT16", []string{"-F", "16"}, 64 << 20},
		{"FAT32", []string{"-F", "32"}, 64 << 20},
		{"FAT32 of 4096-byte sectors", []string{"-F", "32", "-S", "4096"}, 300 << 20},
	} {
		t.Run(v.name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "fs")
			if err := os.WriteFile(image, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(image, v.size); err != nil {
				t.Fatal(err)
			}
			command(t, "mkfs.vfat", append(v.args, image)...)
			for _, dir := range []string{"etc", "usr", "boot", "many"} {
				if dir == "etc" {
					command(t, "mmd", "-i", image, "::/etc")
					for _, f := range []string{"os-release", "empty"} {
						command(t, "mcopy", "-i", image, filepath.Join(root, "etc", f), "::/etc/")
					}
					continue
				}
				command(t, "mcopy", "-s", "-i", image, filepath.Join(root, dir), "::/")
			}
			command(t, "mcopy", "-i", image, filepath.Join(root, "sparse"), "::/")
			tr := open(t, "vfat", image)
			check(t, tr, false)
			if b, err := tr.ReadFile("/ETC/Os-Release", 100); err != nil || string(b) != "ID=debian\n" {
				t.Errorf("ReadFile in other case = %q, %v", b, err)
			}
		})
	}
}

func TestMounts(t *testing.T) {
	root, boot := rofs.NewTar(), rofs.NewTar()
	for _, err := range []error{
		root.Add("./etc/fstab", 0, 3, "", []byte("abc")),
		root.Add("boot/hidden", 0, 0, "", nil),
		root.Add("kernel", fs.ModeSymlink, 0, "/boot/vmlinuz", nil),
		boot.Add("vmlinuz", 0, 1, "", []byte("k")),
		boot.Add("up", fs.ModeSymlink, 0, "../etc/fstab", nil),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tr := rofs.NewTree(root)
	tr.Mount("/boot", boot)
	for name, want := range map[string]string{"/kernel": "k", "/boot/up": "abc", "boot/../etc/fstab": "abc"} {
		if b, err := tr.ReadFile(name, 10); err != nil || string(b) != want {
			t.Errorf("ReadFile(%q) = %q, %v; want %q", name, b, err, want)
		}
	}
	if tr.Exists("/boot/hidden") {
		t.Error("a file under a mount is seen")
	}
	entries, err := tr.ReadDir("/boot")
	if err != nil {
		t.Fatal(err)
	}
	want := []rofs.Entry{{Name: "up", Kind: fs.ModeSymlink}, {Name: "vmlinuz", Size: 1}}
	if diff := cmp.Diff(want, entries); diff != "" {
		t.Errorf("ReadDir(/boot) (-want +got):\n%s", diff)
	}
}

func TestTarRefusesPathsOutOfTheRoot(t *testing.T) {
	list := rofs.NewTar()
	for _, name := range []string{"../etc/passwd", "a/../../b", "/..", strings.Repeat("x", 5000)} {
		if err := list.Add(name, 0, 0, "", nil); err == nil {
			t.Errorf("Add(%.20q) was taken", name)
		}
	}
	if err := list.Link("a", "nothing"); err == nil {
		t.Error("a hard link to nothing was taken")
	}
	if err := list.Add("..a/b..", 0, 0, "", nil); err != nil {
		t.Errorf("Add of a name with dots = %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for kind, want := range map[string]string{"ext4": "superblock", "xfs": "superblock", "vfat": "boot sector", "btrfs": "cannot be read here"} {
		if _, err := rofs.Open(kind, bytes.NewReader(make([]byte, 100)), 100); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%s) of 100 bytes = %v; want an error with %q", kind, err, want)
		}
		if _, err := rofs.Open(kind, bytes.NewReader(make([]byte, 1<<20)), 1<<20); err == nil {
			t.Errorf("Open(%s) of zeros was taken", kind)
		}
	}
}

func TestTarIsBounded(t *testing.T) {
	list, content, n := rofs.NewTar(), make([]byte, 1<<20), 0
	for list.Add(fmt.Sprintf("etc/cloud/cloud.cfg.d/%d.cfg", n), 0, int64(len(content)), "", content) == nil {
		if n++; n > 1000 {
			t.Fatal("a list holds more than a gigabyte of files to be looked at")
		}
	}
	if n < 100 {
		t.Errorf("a list holds %d MiB of files to be looked at", n)
	}
}
