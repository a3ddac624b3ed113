package install

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/tier"
)

var entryTime = time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC)

// archive is a tar stream of the given entries. Directories and files get
// sensible modes where the header has none.
func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := h.PAXRecords["test.content"]
		delete(h.PAXRecords, "test.content")
		h.ModTime, h.Format = entryTime, tar.FormatPAX
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil && h.Typeflag == tar.TypeReg {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func regular(name, content string) tar.Header {
	return tar.Header{Name: name, Mode: 0o644, PAXRecords: map[string]string{"test.content": content}}
}

func directory(name string) tar.Header { return tar.Header{Name: name + "/", Typeflag: tar.TypeDir} }

// capability is cap_net_raw+ep as the kernel stores it.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// systemTree is a small system with one of everything that an archive can hold.
func systemTree(t testing.TB) []byte {
	with := func(h tar.Header, edit func(*tar.Header)) tar.Header { edit(&h); return h }
	sparse := make([]byte, 3<<20)
	copy(sparse[2<<20:], "in the middle")
	entries := []tar.Header{
		directory("."), directory("./boot"), regular("./boot/vmlinuz-test", "kernel"), regular("./boot/initrd.img-test", "initrd"),
		directory("./etc"), regular("./etc/machine-id", "0123456789abcdef0123456789abcdef\n"), regular("./etc/fstab", "old\n"),
		regular("./etc/passwd", "root:x:0:0::/:/bin/sh\ndaemon:x:7:7::/:/bin/false\n"),
		directory("./usr"), directory("./usr/bin"), {Name: "./bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin", Mode: 0o777},
		with(regular("./bin/ping", "ping"), func(h *tar.Header) { h.Mode, h.PAXRecords["SCHILY.xattr.security.capability"] = 0o755, capability }),
		with(regular("./usr/bin/su", "su"), func(h *tar.Header) { h.Mode = 0o4755 }),
		{Name: "./usr/bin/su2", Typeflag: tar.TypeLink, Linkname: "./usr/bin/su"},
		with(directory("./var"), func(h *tar.Header) {}), directory("./var/log"),
		with(directory("./var/log/journal"), func(h *tar.Header) {
			h.Mode, h.Gid = 0o2755, 101
			h.PAXRecords = map[string]string{"SCHILY.acl.access": "user::rwx,group::r-x,group:adm:r-x,mask::r-x,other::r-x", "SCHILY.acl.default": "user::rwx\ngroup::r-x\ngroup:adm:r-x\nmask::r-x\nother::r-x\n"}
		}),
		regular("./var/log/journal/system", "inherits nothing"),
		// A filesystem lists its directories in no order: here the names come last.
		regular("./etc/group", "root:x:0:\nadm:x:4:\n"),
		with(regular("./var/log/huge", string(sparse)), func(h *tar.Header) { h.Uid, h.Gid = 100_000, 4 }),
		{Name: "./var/pipe", Typeflag: tar.TypeFifo, Mode: 0o600}, {Name: "./var/console", Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: 5, Devminor: 1},
		{Name: "./var/disk", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 259, Devminor: 70000},
		{Name: "./etc/absolute", Typeflag: tar.TypeSymlink, Linkname: "/nowhere/else", Mode: 0o777},
		with(regular("./srv/data", "data"), func(h *tar.Header) { h.PAXRecords["SCHILY.xattr.user.note"] = "kept" }),
		// A later entry takes the place of an earlier one.
		regular("./etc/twice", "first"), regular("./etc/twice", "second"),
	}
	return archive(t, entries...)
}

// packTar puts a tar stream on the server as an image.
func (s *blobServer) packTar(t testing.TB, stream []byte) (*lpmos.ImageManifest, string) {
	return s.pack(t, stream, 1<<20, func(m *lpmos.ImageManifest) { m.Format, m.UnpackedBytes = lpmos.FormatTar, 8<<20 })
}

// machineWith is a machine with these disks, and a task for it.
func machineWith(devices []string, size int64, sector int) *lpmos.Hardware {
	hw := testHardware(devices[0], size, sector)
	for i, d := range devices[1:] {
		hw.Disks = append(hw.Disks, lpmos.Disk{Device: d, SizeBytes: size, SectorBytes: sector, Serial: "TESTDISK000" + itoa(i+2), Transport: "virtio"})
	}
	return hw
}

func layoutPlan(t testing.TB, hw *lpmos.Hardware, m *lpmos.ImageManifest, digest string, l *lpmos.Layout) *lpmos.Plan {
	t.Helper()
	task := &lpmos.Task{ID: testTask, Spec: lpmos.Spec{Hostname: "web-1.example", SSHKeys: []string{testKey}, Layout: l}}
	img := lpmos.Image{OS: m.OS, Version: m.Version, Arch: m.Arch, Digest: digest, Format: m.Format, SizeBytes: m.RootBytes(), UsedBytes: m.UsedBytes, BootModes: []string{"bios", "uefi"}}
	p := lpmos.NewPlan(task, hw, img)
	if p.Problem != "" {
		t.Fatalf("NewPlan: %s", p.Problem)
	}
	return &p
}

func newInstaller(t testing.TB, hw *lpmos.Hardware, srv *blobServer) *Installer {
	t.Helper()
	agentFile := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agentFile, []byte("agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	return New(Config{Grub: fakeGrub(t), WorkDir: t.TempDir(), Agent: agentFile, Tools: Tools{Modprobe: "/bin/true"},
		Identify: func(context.Context) (*lpmos.Hardware, error) { return hw, nil }},
		&programs{t: t}, srv.client(t, 0), nil, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func testJob(p *lpmos.Plan) Job {
	return Job{TaskID: testTask, Attempt: 1, Plan: p, Callhome: agentapi.CallhomeConfig{URLs: []string{"https://10.77.0.1:8443"}, Token: "token-for-call-home", TaskID: testTask}}
}

// twoDisks is a layout without RAID, which needs kernel modules that a test's
// host may not have: what is made of them is tested on virtual machines.
func twoDisks() *lpmos.Layout {
	return &lpmos.Layout{Disks: []lpmos.LayoutDisk{
		{Name: "a", Serial: "TESTDISK0001", Partitions: []lpmos.LayoutPartition{{Name: "boot", Size: "128 MiB", FS: "ext4", Mount: "/boot"}, {Name: "root", Size: "rest", FS: "xfs", Mount: "/"}}},
		{Name: "b", Partitions: []lpmos.LayoutPartition{{Name: "swap", Size: "64 MiB", FS: "swap"}, {Name: "srv", Size: "rest", FS: "ext4", Mount: "/srv"}}},
	}}
}

func TestInstallTree(t *testing.T) {
	const size = 640 << 20
	a, b, kept := loopDevice(t, size, 512), loopDevice(t, size, 512), loopDevice(t, 64<<20, 512)
	srv := newBlobServer(t)
	m, digest := srv.packTar(t, systemTree(t))
	hw := machineWith([]string{a, b, kept}, size, 512)
	// The layout asks for disk 1 by its serial and for any other.
	hw.Disks[2].SizeBytes, hw.Disks[2].Content = 64<<20, lpmos.Content{Table: "gpt"}
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", kept)
	before := hashFile(t, kept)
	plan := layoutPlan(t, hw, m, digest, twoDisks())
	in := newInstaller(t, hw, srv)
	if err := in.Install(t.Context(), testJob(plan)); err != nil {
		t.Fatalf("Install = %v", err)
	}
	for _, d := range hw.Disks[:2] {
		if got, ok := in.Finished(d); !ok || got.PlanDigest != plan.Digest {
			t.Errorf("marker of %s = %+v, %v", d.Device, got, ok)
		}
		if out := command(t, "sfdisk", "--verify", d.Device); !strings.Contains(out, "No errors detected") {
			t.Errorf("sfdisk --verify %s: %s", d.Device, out)
		}
	}
	if hashFile(t, kept) != before {
		t.Error("a disk that is not in the plan was written")
	}
	fss := plan.Effect.Filesystems()
	var root, boot, srvFS, swap lpmos.PlannedFS
	for _, fs := range fss {
		switch fs.Mount {
		case "/":
			root = fs
		case "/boot":
			boot = fs
		case "/srv":
			srvFS = fs
		default:
			swap = fs
		}
	}
	for part, want := range map[string]string{a + "p3": boot.UUID, a + "p4": root.UUID, b + "p1": swap.UUID, b + "p2": srvFS.UUID} {
		if got := strings.TrimSpace(command(t, "blkid", "-p", "-s", "UUID", "-o", "value", part)); got != want {
			t.Errorf("UUID of %s = %s; want %s", part, got, want)
		}
	}
	dir := t.TempDir()
	mountAt := func(dev, at, fs string) {
		t.Helper()
		if err := syscall.Mount(dev, at, fs, syscall.MS_RDONLY, ""); err != nil {
			t.Fatalf("mount %s: %v", dev, err)
		}
		t.Cleanup(func() { syscall.Unmount(at, syscall.MNT_DETACH) })
	}
	mountAt(a+"p4", dir, "xfs")
	mountAt(a+"p3", filepath.Join(dir, "boot"), "ext4")
	mountAt(b+"p2", filepath.Join(dir, "srv"), "ext4")
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	t.Run("files are where their filesystem is", func(t *testing.T) {
		for name, want := range map[string]string{"boot/vmlinuz-test": "kernel", "srv/data": "data", "usr/bin/ping": "ping", "etc/twice": "second", "etc/hostname": "web-1.example\n",
			"etc/fstab": "# Written by LPMOS at installation.\nUUID=" + swap.UUID + " none swap sw 0 0\nUUID=" + root.UUID + " / xfs defaults 0 0\nUUID=" + boot.UUID + " /boot ext4 defaults 0 2\n" +
				"UUID=" + srvFS.UUID + " /srv ext4 defaults 0 2\nUUID=" + plan.Effect.Partitions[1].UUID + " /boot/efi vfat umask=0077,nofail 0 2\n"} {
			if got := read(name); got != want {
				t.Errorf("%s = %q; want %q", name, got, want)
			}
		}
	})
	t.Run("the boot loader finds its menu on /boot, and the kernel beside it", func(t *testing.T) {
		if got := read("boot/boot/grub/grub.cfg"); !strings.Contains(got, "linux /vmlinuz-test root=UUID="+root.UUID+" ro") || !strings.Contains(got, "initrd /initrd.img-test") {
			t.Errorf("menu = %s", got)
		}
		if got := command(t, "mtype", "-i", a+"p2", "::/EFI/BOOT/grub.cfg"); !strings.Contains(got, boot.UUID) {
			t.Errorf("grub.cfg on the ESP = %q; want the UUID of /boot", got)
		}
	})
	t.Run("owners, modes, times and kinds are the archive's", func(t *testing.T) {
		for name, want := range map[string]struct {
			mode     uint32
			uid, gid uint32
			rdev     uint64
		}{
			"usr/bin/su": {syscall.S_IFREG | 0o4755, 0, 0, 0}, "var/log/huge": {syscall.S_IFREG | 0o644, 100_000, 4, 0}, "var/log/journal": {syscall.S_IFDIR | 0o2755, 0, 101, 0},
			"var/pipe": {syscall.S_IFIFO | 0o600, 0, 0, 0}, "var/console": {syscall.S_IFCHR | 0o600, 0, 0, 5<<8 | 1}, "var/disk": {syscall.S_IFBLK | 0o660, 0, 0, 259<<8 | 70000&0xff | 70000&^0xff<<12},
		} {
			var st syscall.Stat_t
			if err := syscall.Lstat(filepath.Join(dir, name), &st); err != nil {
				t.Error(err)
				continue
			}
			if st.Mode != want.mode || st.Uid != want.uid || st.Gid != want.gid || st.Rdev != want.rdev {
				t.Errorf("%s = mode %o, owner %d:%d, device %x; want %+v", name, st.Mode, st.Uid, st.Gid, st.Rdev, want)
			}
			if st.Mtim.Sec != entryTime.Unix() && name != "var/log/journal" {
				t.Errorf("%s was written at %d; want %d", name, st.Mtim.Sec, entryTime.Unix())
			}
		}
		var one, two, huge syscall.Stat_t
		if syscall.Stat(filepath.Join(dir, "usr/bin/su"), &one) != nil || syscall.Stat(filepath.Join(dir, "usr/bin/su2"), &two) != nil || one.Ino != two.Ino {
			t.Error("a hard link became a file of its own")
		}
		if syscall.Stat(filepath.Join(dir, "var/log/huge"), &huge) != nil || huge.Size != 3<<20 || huge.Blocks*512 > 1<<20 {
			t.Errorf("a file of zeros has %d bytes in %d blocks; want 3 MiB in few", huge.Size, huge.Blocks)
		}
		if l, err := os.Readlink(filepath.Join(dir, "etc/absolute")); err != nil || l != "/nowhere/else" {
			t.Errorf("link = %q, %v", l, err)
		}
	})
	t.Run("capabilities, ACLs and user attributes are there", func(t *testing.T) {
		for name, want := range map[string][2]string{
			"usr/bin/ping": {"security.capability", capability}, "srv/data": {"user.note", "kept"},
			"var/log/journal": {"system.posix_acl_access", "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x08\x00\x05\x00\x04\x00\x00\x00\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"},
		} {
			b := make([]byte, 256)
			n, err := syscall.Getxattr(filepath.Join(dir, name), want[0], b)
			if err != nil || string(b[:n]) != want[1] {
				t.Errorf("%s of %s = %q, %v; want %q", want[0], name, b[:max(n, 0)], err, want[1])
			}
		}
		if n, err := syscall.Getxattr(filepath.Join(dir, "var/log/journal/system"), "system.posix_acl_access", nil); err != syscall.ENODATA {
			t.Errorf("a file has an ACL of %d bytes (%v) that it inherited", n, err)
		}
	})
}

// TestInstallTreeHoldsAllDisksFirst refuses an installation because of its second
// disk, before the first is touched.
func TestInstallTreeHoldsAllDisksFirst(t *testing.T) {
	const size = 640 << 20
	a, b := loopDevice(t, size, 512), loopDevice(t, size, 512)
	srv := newBlobServer(t)
	m, digest := srv.packTar(t, systemTree(t))
	hw := machineWith([]string{a, b}, size, 512)
	plan := layoutPlan(t, hw, m, digest, twoDisks())
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", b)
	dir := t.TempDir()
	if err := syscall.Mount(b, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(dir, 0)
	job := testJob(plan)
	job.OnWrite = func() { t.Error("OnWrite was called") }
	in := newInstaller(t, hw, srv)
	if got := failureCode(in.Install(t.Context(), job)); got != "disk_busy" {
		t.Errorf("Install with its second disk mounted = %s; want disk_busy", got)
	}
	one := *hw
	one.Disks = hw.Disks[:1]
	in.cfg.Identify = func(context.Context) (*lpmos.Hardware, error) { return &one, nil }
	if got := failureCode(in.Install(t.Context(), job)); got != "disk_missing" {
		t.Errorf("Install without its second disk = %s; want disk_missing", got)
	}
}

func hashFile(t testing.TB, name string) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, mustOpen(t, name)); err != nil { // os.ReadFile does not know how large a device is, and grows
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func TestUnpackRefuses(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "victim"), []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, entries := range map[string][]tar.Header{
		"a path that climbs":                 {regular("../victim", "x")},
		"a path that climbs in the middle":   {directory("a"), regular("a/../../victim", "x")},
		"an absolute path":                   {regular("/etc/passwd", "x")},
		"a file behind an absolute link":     {{Name: "way", Typeflag: tar.TypeSymlink, Linkname: outside}, regular("way/victim", "x")},
		"a file behind a climbing link":      {{Name: "way", Typeflag: tar.TypeSymlink, Linkname: "../../../.." + outside}, regular("way/victim", "x")},
		"a directory behind a link":          {{Name: "way", Typeflag: tar.TypeSymlink, Linkname: outside}, directory("way/new")},
		"a hard link to a climbing path":     {{Name: "way", Typeflag: tar.TypeLink, Linkname: "../victim"}},
		"a hard link to an absolute path":    {{Name: "way", Typeflag: tar.TypeLink, Linkname: filepath.Join(outside, "victim")}},
		"a hard link through a link":         {{Name: "way", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "got", Typeflag: tar.TypeLink, Linkname: "way/victim"}},
		"a device behind a link":             {{Name: "way", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "way/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"an attribute of no namespace":       {{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.evil": "x"}}},
		"an ACL that names nobody":           {{Name: "f", PAXRecords: map[string]string{"SCHILY.acl.access": "user::rw-,user:ghost:rw-,group::r--,mask::r--,other::r--"}}},
		"an ACL that means nothing":          {{Name: "f", PAXRecords: map[string]string{"SCHILY.acl.access": "nonsense"}}},
		"a file in the place of a directory": {directory("d"), regular("d/f", "x"), regular("d", "x")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			root, err := os.OpenRoot(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			u := newUnpacker(root, &lpmos.ImageManifest{SizeBytes: 1 << 20})
			err = u.run(bytes.NewReader(archive(t, entries...)))
			if got := failureCode(err); got != "image_unsuitable" {
				t.Errorf("unpack = %v; want image_unsuitable", err)
			}
			if b, _ := os.ReadFile(filepath.Join(outside, "victim")); string(b) != "untouched" {
				t.Fatalf("a file outside was written: %q", b)
			}
			if left, _ := os.ReadDir(outside); len(left) != 1 {
				t.Errorf("something was made outside: %v", left)
			}
		})
	}
	t.Run("a file larger than all that was measured", func(t *testing.T) {
		root, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		u := newUnpacker(root, &lpmos.ImageManifest{SizeBytes: 1 << 20})
		u.limit = 10
		if got := failureCode(u.run(bytes.NewReader(archive(t, regular("f", "more than ten bytes"))))); got != "image_corrupt" {
			t.Errorf("unpack = %s; want image_corrupt", got)
		}
	})
	for name, entries := range map[string][]tar.Header{
		"more directories than memory is for": {directory("a"), directory("a/b"), directory("a/b/c")},
		"an ACL larger than memory is for":    {{Name: "f", PAXRecords: map[string]string{"SCHILY.acl.access": strings.Repeat("user::rw-,", 20)}}},
	} {
		t.Run(name, func(t *testing.T) {
			root, err := os.OpenRoot(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			u := newUnpacker(root, &lpmos.ImageManifest{SizeBytes: 1 << 20})
			u.room = 150
			if got := failureCode(u.run(bytes.NewReader(archive(t, entries...)))); got != "image_corrupt" {
				t.Errorf("unpack = %s; want image_corrupt", got)
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("owners are set by root")
	}
	f.Add(systemTree(f))
	f.Add(archive(f, regular("../victim", "x")))
	f.Add(archive(f, tar.Header{Name: "way", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, regular("way/x", "x")))
	f.Fuzz(func(t *testing.T, stream []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "root")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		u := newUnpacker(root, &lpmos.ImageManifest{SizeBytes: 1 << 20})
		u.limit = 16 << 20
		if err := u.run(bytes.NewReader(stream)); err == nil {
			err = u.compare(root)
			if err != nil {
				t.Errorf("what was unpacked is not what is there: %v", err)
			}
		}
		if left, _ := os.ReadDir(parent); len(left) != 1 {
			t.Errorf("something was made outside: %v", left)
		}
	})
}

// fstabOf is that of ubuntuDisk. A btrfs has its /root in a subvolume.
func fstabOf(rootFS string) string {
	text := "LABEL=rootfs / " + rootFS + " defaults 0 1\nLABEL=BOOT /boot ext4 defaults 0 2\nLABEL=VAR /var ext4 defaults 0 2\nLABEL=VAR /var/lib/more ext4 noauto 0 0\n"
	if rootFS == "btrfs" {
		text += "LABEL=rootfs /root btrfs compress=zstd,subvol=@/root 0 0\nLABEL=rootfs /srv btrfs nofail,subvol=@/gone 0 0\n"
	}
	return text
}

// ubuntuDisk is a disk in the order of Ubuntu 24.04: root is partition 1 and
// lies last, /boot is 16 in front of it.
func ubuntuDisk(t *testing.T, size int64, rootFS string) ([]byte, *lpmos.ImageDisk) {
	t.Helper()
	dev := loopDevice(t, size, 512)
	cmd := exec.Command("sfdisk", "-q", dev)
	cmd.Stdin = strings.NewReader("label: gpt\n" +
		"14: start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649\n" +
		"15: start=4096, size=81920, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n" +
		"16: start=86016, size=32768, type=BC13C2FF-59E6-4262-A352-B275FD6F7172\n" +
		"17: start=118784, size=32768, type=4D21B016-B534-45C2-A9FB-5C16E091FD2D\n" +
		"1: start=151552, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	command(t, "partx", "-a", dev)
	command(t, "mkfs.vfat", "-n", "UEFI", dev+"p15")
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "BOOT", dev+"p16")
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "VAR", dev+"p17")
	mkfs := map[string][]string{"ext4": {"mke2fs", "-q", "-F", "-t", "ext4"}, "xfs": {"mkfs.xfs", "-q", "-f"}, "btrfs": {"mkfs.btrfs", "-q"}}[rootFS]
	command(t, mkfs[0], append(mkfs[1:], "-L", "rootfs", dev+"p1")...)
	fill := func(part, fs string, files map[string]string) {
		dir := t.TempDir()
		if err := syscall.Mount(part, dir, fs, 0, ""); err != nil {
			t.Fatalf("mount %s: %v", part, err)
		}
		for name, text := range files {
			p := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	fill(dev+"p1", rootFS, map[string]string{"etc/fstab": fstabOf(rootFS), "etc/machine-id": "old\n", "etc/hostname": "ubuntu\n", "var/x": "hidden by what is mounted there\n"})
	if rootFS == "btrfs" {
		dir := t.TempDir()
		command(t, "mount", dev+"p1", dir)
		command(t, "btrfs", "subvolume", "create", filepath.Join(dir, "@"))
		command(t, "btrfs", "subvolume", "create", filepath.Join(dir, "@/root"))
		command(t, "umount", dir)
	}
	fill(dev+"p17", "ext4", map[string]string{"lib/dbus/machine-id": "old\n"})
	d := &lpmos.ImageDisk{Table: "gpt", SectorBytes: 512, Root: 1, Boot: 16, ESP: 15, BIOSBoot: 14, Loaders: []string{"grub-efi", "shim"}, Entries: "grub"}
	for _, n := range []int{14, 15, 16, 17, 1} {
		p := dev + "p" + itoa(n)
		start, _ := os.ReadFile("/sys/class/block/" + filepath.Base(p) + "/start")
		sectors, _ := os.ReadFile("/sys/class/block/" + filepath.Base(p) + "/size")
		var s, z int64
		if json.Unmarshal(start, &s) != nil || json.Unmarshal(sectors, &z) != nil {
			t.Fatalf("%s has no place", p)
		}
		id := func(tag string) string {
			out, _ := exec.Command("blkid", "-p", "-s", tag, "-o", "value", p).Output()
			return strings.TrimSpace(string(out))
		}
		d.Partitions = append(d.Partitions, lpmos.ImagePartition{Number: n, StartBytes: s * 512, SizeBytes: z * 512, UUID: id("PART_ENTRY_UUID"), FS: id("TYPE"), FSUUID: id("UUID"), FSLabel: id("LABEL")})
	}
	syscall.Sync()
	b := make([]byte, size)
	if _, err := io.ReadFull(mustOpen(t, dev), b); err != nil {
		t.Fatal(err)
	}
	return b, d
}

// packDisk puts a disk on the server as an image: megabytes of zeros are ranges
// to be zeroed.
func (s *blobServer) packDisk(t testing.TB, raw []byte, d *lpmos.ImageDisk) (*lpmos.ImageManifest, string) {
	const piece = 1 << 20
	m, _ := s.pack(t, []byte("unused"), piece, nil)
	m.Format, m.SizeBytes, m.UsedBytes, m.Chunks, m.Disk, m.Kernel, m.Initrd = lpmos.FormatDisk, int64(len(raw)), 0, nil, d, "", ""
	var packed []byte
	for off := 0; off < len(raw); off += piece {
		b := raw[off:min(off+piece, len(raw))]
		if bytes.Equal(b, make([]byte, len(b))) {
			m.Zero = append(m.Zero, lpmos.Range{Offset: int64(off), Bytes: int64(len(b))})
			continue
		}
		stored := zstd(t, b)
		sum := sha256.Sum256(stored)
		m.Chunks = append(m.Chunks, lpmos.Chunk{Offset: int64(off), Bytes: int64(len(b)), StoredOffset: int64(len(packed)), StoredBytes: int64(len(stored)), SHA256: hex.EncodeToString(sum[:])})
		m.UsedBytes += int64(len(b))
		packed = append(packed, stored...)
	}
	m.Pack = lpmos.Blob{SHA256: s.put(packed), Bytes: int64(len(packed))}
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return m, "sha256:" + s.put(text)
}

func diskPlan(t testing.TB, hw *lpmos.Hardware, m *lpmos.ImageManifest, digest string) *lpmos.Plan {
	t.Helper()
	task := &lpmos.Task{ID: testTask, Spec: lpmos.Spec{Hostname: "web-1.example", SSHKeys: []string{testKey}, TargetDisk: new(hw.Disks[0].Ref())}}
	p := lpmos.NewPlan(task, hw, lpmos.Image{OS: m.OS, Version: m.Version, Arch: m.Arch, Digest: digest, Format: m.Format, SizeBytes: m.SizeBytes, UsedBytes: m.UsedBytes, BootModes: []string{"bios", "uefi"}})
	if p.Problem != "" {
		t.Fatalf("NewPlan: %s", p.Problem)
	}
	return &p
}

// TestInstallDisk is D11, too: firmware finds the system without a boot entry.
func TestInstallDisk(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run("root is "+fs, func(t *testing.T) { installDiskOnLoop(t, fs) })
	}
}

func installDiskOnLoop(t *testing.T, rootFS string) {
	imageSize := int64(140 << 20)
	if rootFS != "ext4" {
		imageSize = 400 << 20 // mkfs.xfs makes none below 300 MiB, mkfs.btrfs below 109
	}
	size := imageSize + 200<<20 + 512*7 // not a multiple of 1 MiB
	raw, layout := ubuntuDisk(t, imageSize, rootFS)
	srv := newBlobServer(t)
	m, digest := srv.packDisk(t, raw, layout)
	dev := loopDevice(t, size, 512)
	hw := machineWith([]string{dev}, size, 512)
	hw.BootMode = "uefi"
	plan := diskPlan(t, hw, m, digest)
	// Rests of an older life in what the image has as zeros.
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off+4096 < size; off += 1 << 20 {
		if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	in := newInstaller(t, hw, srv)
	// This kernel may have no FAT: a directory stands for the ESP.
	esp := t.TempDir()
	for _, name := range []string{"shimx64.efi", "grubx64.efi", "grub.cfg"} {
		p := filepath.Join(esp, "EFI/ubuntu", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	in.mountFS = func(source, target, fstype string, flags uintptr, options string) error {
		if fstype != "vfat" {
			return mountFS(source, target, fstype, flags, options)
		}
		if source != dev+"p15" {
			t.Errorf("%s is mounted as ESP; want %sp15", source, dev)
		}
		return mountFS(esp, target, "", syscall.MS_BIND, "")
	}
	if err := in.Install(t.Context(), testJob(plan)); err != nil {
		t.Fatalf("Install = %v", err)
	}
	if out := command(t, "sfdisk", "--verify", dev); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk --verify: %s", out)
	}
	g, err := readGPT(mustOpen(t, dev), 512)
	if err != nil {
		t.Fatal(err)
	}
	old, err := readGPT(bytes.NewReader(raw), 512)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(g.header[gptDiskGUID:][:16], old.header[gptDiskGUID:][:16]) {
		t.Error("the disk has the GUID of the image, as every copy would")
	}
	root, _ := layout.Partition(1)
	start, grown, _ := g.place(1)
	if start != root.StartBytes || start+grown < size-2<<20 || start+grown > size-34*512 {
		t.Errorf("root lies at %d with %d bytes; want it to reach to the end of %d", start, grown, size)
	}
	for _, n := range []int{14, 15, 16, 17} {
		was, _ := layout.Partition(n)
		if s, z, _ := g.place(n); s != was.StartBytes || z != was.SizeBytes {
			t.Errorf("partition %d moved to %d with %d bytes", n, s, z)
		}
	}
	dir := t.TempDir()
	if err := syscall.Mount(dev+"p1", dir, rootFS, syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(dir, 0)
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil || int64(st.Blocks)*st.Bsize < grown*3/4 {
		t.Errorf("root filesystem has %d bytes, %v; want it grown", int64(st.Blocks)*st.Bsize, err)
	}
	for name, want := range map[string]string{"etc/fstab": fstabOf(rootFS), "etc/hostname": "web-1.example\n", "etc/machine-id": ""} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s = %q, %v; want %q", name, b, err, want)
		}
	}
	// What is written below the mount point of another filesystem is on that.
	at := t.TempDir()
	if err := syscall.Mount(dev+"p17", at, "ext4", syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(at, 0)
	if _, err := os.Stat(filepath.Join(at, "lib/dbus/machine-id")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the image's machine-id on its /var: %v; want it removed", err)
	}
	home := filepath.Join(dir, "root")
	if rootFS == "btrfs" {
		if left, err := os.ReadDir(home); err != nil || len(left) > 0 {
			t.Errorf("under the mount point /root lie %v, %v; want nothing", left, err)
		}
		home = filepath.Join(dir, "@/root")
	}
	if b, err := os.ReadFile(filepath.Join(home, ".ssh/authorized_keys")); err != nil || string(b) != testKey+"\n" {
		t.Errorf("the keys of root = %q, %v; want %q", b, err, testKey)
	}
	var callhome agentapi.CallhomeConfig
	if b, err := os.ReadFile(filepath.Join(dir, "etc/lpmos/callhome.json")); err != nil || json.Unmarshal(b, &callhome) != nil || callhome.RootUUID != root.FSUUID {
		t.Errorf("call home = %s, %v; want the image's own root %s in it", b, err, root.FSUUID)
	}
	for name, want := range map[string]string{"EFI/BOOT/BOOTX64.EFI": "shimx64.efi", "EFI/BOOT/grubx64.efi": "grubx64.efi", "lpmos/" + plan.Effect.BootID: "This disk was installed by LPMOS.\n"} {
		if got, err := os.ReadFile(filepath.Join(esp, name)); err != nil || string(got) != want {
			t.Errorf("%s on the ESP = %q, %v; want %q", name, got, err, want)
		}
	}
	if got, ok := in.Finished(hw.Disks[0]); !ok || got.PlanDigest != plan.Digest {
		t.Errorf("marker = %+v, %v", got, ok)
	}
	b := make([]byte, 4096)
	if _, err := mustOpen(t, dev).ReadAt(b, m.Zero[len(m.Zero)/2].Offset); err != nil || !bytes.Equal(b, make([]byte, 4096)) {
		t.Errorf("what the image has as zeros = % x…, %v", b[:8], err)
	}
}

// TestReadBackDiffers has a disk return other bytes than were written (D07, M11).
func TestReadBackDiffers(t *testing.T) {
	raw, layout := ubuntuDisk(t, 128<<20, "ext4")
	srv := newBlobServer(t)
	m, digest := srv.packDisk(t, raw, layout)
	dev := loopDevice(t, 128<<20, 512)
	hw := machineWith([]string{dev}, 128<<20, 512)
	in := newInstaller(t, hw, srv)
	job := testJob(diskPlan(t, hw, m, digest))
	job.OnStep = func(s Step) {
		if strings.HasPrefix(s.Message, "Comparing") {
			f, err := os.OpenFile(dev, os.O_WRONLY, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte("another byte"), m.Chunks[0].Offset+4096); err != nil || f.Sync() != nil {
				t.Errorf("spoil the disk: %v", err)
			}
		}
	}
	if got := failureCode(in.Install(t.Context(), job)); got != "disk_verify_failed" {
		t.Errorf("Install on a disk that forgets = %s; want disk_verify_failed", got)
	}
	if _, ok := in.Finished(hw.Disks[0]); ok {
		t.Error("a disk that was not verified is marked complete")
	}
}

func mustOpen(t testing.TB, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A filesystem that has its system in a subvolume nobody mounts looks empty.
func TestInstallDiskWithoutSystem(t *testing.T) {
	raw, layout := ubuntuDisk(t, 128<<20, "ext4")
	layout.Root = 17 // which has only what belongs below /var
	srv := newBlobServer(t)
	m, digest := srv.packDisk(t, raw, layout)
	dev := loopDevice(t, 128<<20, 512)
	hw := machineWith([]string{dev}, 128<<20, 512)
	in := newInstaller(t, hw, srv)
	if got := failureCode(in.Install(t.Context(), testJob(diskPlan(t, hw, m, digest)))); got != "image_unsuitable" {
		t.Errorf("Install of a root filesystem without /etc = %s; want image_unsuitable", got)
	}
}

// TestInstallDiskRefuses holds every refusal to "nothing was written" (D01, D09).
func TestInstallDiskRefuses(t *testing.T) {
	raw, layout := ubuntuDisk(t, 128<<20, "ext4")
	srv := newBlobServer(t)
	m, digest := srv.packDisk(t, raw, layout)
	fine, small, big := loopDevice(t, 128<<20, 512), loopDevice(t, 128<<20-512, 512), loopDevice(t, 132<<20, 4096)
	before := map[string]string{fine: hashFile(t, fine), small: hashFile(t, small), big: hashFile(t, big)}
	for name, c := range map[string]struct {
		dev    string
		size   int64
		sector int
		edit   func(*lpmos.Plan)
		code   string
	}{
		"a disk that is a sector too small": {small, 128<<20 - 512, 512, nil, "disk_too_small"},
		"a disk with other sectors":         {big, 132 << 20, 4096, nil, "disk_unsupported"},
		"a twin of the image on a disk that is kept": {fine, 128 << 20, 512, func(p *lpmos.Plan) {
			p.Observed = append(p.Observed, lpmos.ObservedDisk{Disk: lpmos.DiskRef{Serial: "OTHER", SizeBytes: 1 << 30},
				Content: lpmos.Content{Table: "gpt", Partitions: []lpmos.Partition{{Number: 1, Filesystem: &lpmos.Filesystem{Type: "ext4", UUID: strings.ToUpper(layout.Partitions[3].FSUUID)}}}}})
		}, "duplicate_identifiers"},
		"a plan for another kind of image": {fine, 128 << 20, 512, func(p *lpmos.Plan) { p.Effect.Method = lpmos.FormatTar }, "plan_invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			hw := machineWith([]string{c.dev}, 128<<20, 512)
			plan := diskPlan(t, hw, m, digest)
			hw.Disks[0].SizeBytes, hw.Disks[0].SectorBytes = c.size, c.sector
			hw.BootMode = "uefi"
			plan.Effect.Target, plan.Effect.BootMode = hw.Disks[0].Ref(), "uefi"
			if c.edit != nil {
				c.edit(plan)
			}
			job := testJob(plan)
			job.OnWrite = func() { t.Error("OnWrite was called") }
			if got := failureCode(newInstaller(t, hw, srv).Install(t.Context(), job)); got != c.code {
				t.Errorf("Install = %s; want %s", got, c.code)
			}
			if hashFile(t, c.dev) != before[c.dev] {
				t.Error("the disk was written")
			}
		})
	}
}

func TestGPTRefusesDamage(t *testing.T) {
	raw, _ := ubuntuDisk(t, 128<<20, "ext4")
	for name, edit := range map[string]func([]byte){
		"no signature":       func(b []byte) { b[512] = 'X' },
		"a wrong checksum":   func(b []byte) { b[512+40]++ },
		"a changed entry":    func(b []byte) { b[1024+32]++ },
		"a huge entry count": func(b []byte) { binary.LittleEndian.PutUint32(b[512+80:], 1<<30) },
	} {
		b := bytes.Clone(raw[:1<<20])
		edit(b)
		if _, err := readGPT(bytes.NewReader(b), 512); err == nil {
			t.Errorf("readGPT with %s = nil; want an error", name)
		}
	}
}

// TestWriteErrors installs on a disk that takes half of the image: a file in a
// memory filesystem that is full (D07), or that is gone by then (D02).
func TestWriteErrors(t *testing.T) {
	if os.Getuid() != 0 {
		tier.Missing(t, "root", "not root")
	}
	raw, layout := ubuntuDisk(t, 128<<20, "ext4")
	full := make([]byte, len(raw))
	copy(full, raw[:1<<20])
	for i := 1 << 20; i < len(full); i++ {
		full[i] = byte(i>>12) | 1
	}
	srv := newBlobServer(t)
	m, digest := srv.packDisk(t, full, layout)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		tier.Missing(t, "root", "tmpfs: "+err.Error())
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	file := filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 128<<20)); err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(command(t, "losetup", "--show", "-f", file))
	t.Cleanup(func() { exec.Command("losetup", "-d", dev).Run() })
	hw := machineWith([]string{dev}, 128<<20, 512)
	in := newInstaller(t, hw, srv)
	plan, there := diskPlan(t, hw, m, digest), *hw
	for _, c := range []struct {
		code string
		then []lpmos.Disk // in the machine when the error comes
	}{{"disk_write_failed", hw.Disks}, {"disk_gone", nil}} {
		*hw = there
		job := testJob(plan)
		job.OnWrite = func() { hw.Disks = c.then }
		if got := failureCode(in.Install(t.Context(), job)); got != c.code {
			t.Errorf("Install on a disk that fails half-way = %s; want %s", got, c.code)
		}
		if _, ok := in.Finished(there.Disks[0]); ok {
			t.Error("a disk that was half written is marked complete")
		}
	}
}

// What the image's own tool says is how far it is: a slow one is not taken for
// dead, and one that failed says why.
func TestRemakeInitramfs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"usr/sbin/update-initramfs", "sbin/mdadm", "boot/initrd.img"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var steps []Step
	job := &Job{Plan: &lpmos.Plan{Effect: lpmos.Effect{Arrays: []lpmos.PlannedArray{{}}}}, OnStep: func(s Step) { steps = append(steps, s) }}
	var fails error
	in := &Installer{cfg: Config{WorkDir: t.TempDir(), Confined: func(_ context.Context, _ string, says func(string), path string, args ...string) error {
		says(strings.Join(append([]string{path}, args...), " "))
		return fails
	}}}
	m := &lpmos.ImageManifest{Initrd: "/boot/initrd.img"}
	if err := in.remakeInitramfs(t.Context(), job, m, tree{root}); err != nil {
		t.Fatal(err)
	}
	if last := steps[len(steps)-1]; len(steps) != 2 || last.Message != steps[0].Message || last.Detail != "/usr/sbin/update-initramfs -u -v -k all" {
		t.Errorf("steps = %+v; want what the tool says as the detail of one", steps)
	}
	fails = errors.New(`update-initramfs exited 1: "no space"`)
	if f, ok := errors.AsType[*Failure](in.remakeInitramfs(t.Context(), job, m, tree{root})); !ok || f.Code != "initramfs_failed" || !strings.Contains(f.Cause, "no space") {
		t.Errorf("failure = %+v", f)
	}
}

// TestAutorelabel has what is written beside a system labelled at its first boot,
// where it has SELinux, however the system was written.
func TestAutorelabel(t *testing.T) {
	hw := testHardware("/dev/x", 20<<30, 512)
	m := &lpmos.ImageManifest{OS: "testos", Version: "1", Arch: "amd64", SizeBytes: 1 << 20, FirstBoot: "systemd", Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd", CloudInit: true}
	job := testJob(testPlan(t, hw, m, "sha256:"+strings.Repeat("1", 64)))
	for name, files := range map[string]func() ([]file, error){
		"a root filesystem or tree": func() ([]file, error) { return systemFiles(&job, m, &bootParts{}) },
		"a whole disk":              func() ([]file, error) { return identityFiles(&job, m) },
		"an installer":              func() ([]file, error) { return ownFiles(&job, m) },
	} {
		fs, err := files()
		if err != nil {
			t.Fatal(err)
		}
		for _, selinux := range []bool{true, false} {
			tr, _ := accountTree(t)
			if selinux {
				if err := errors.Join(tr.MkdirAll("etc/selinux", 0o755), tr.WriteFile("etc/selinux/config", []byte("SELINUX=enforcing\n"), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			if err := tr.apply(&job, m, fs); err != nil {
				t.Fatal(err)
			}
			if _, err := tr.Stat(".autorelabel"); (err == nil) != selinux {
				t.Errorf("%s, SELinux %v: .autorelabel: %v", name, selinux, err)
			}
		}
	}
}
