package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/tier"
)

// loopDevice attaches a sparse file of the given size and returns its node.
func loopDevice(t *testing.T, size int64, sector int) string {
	t.Helper()
	if os.Getuid() != 0 {
		tier.Missing(t, "root", "not root")
	}
	for _, tool := range []string{"losetup", "sfdisk", "mkfs.vfat", "e2fsck", "tune2fs", "resize2fs", "mke2fs", "zstd", "fsck.vfat"} {
		if _, err := exec.LookPath(tool); err != nil {
			tier.Missing(t, "root", "no "+tool)
		}
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--show", "-f", "-P", "-b", itoa(sector), file).CombinedOutput()
	if err != nil {
		tier.Missing(t, "root", "losetup: "+string(out))
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		exec.Command("partx", "-d", dev).Run()
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// testImage is a small ext4 filesystem with what an installation touches. It
// was mounted, so that tune2fs has something to insist on, and holds links that
// try to lead writes elsewhere.
func testImage(t *testing.T, outside string) []byte {
	t.Helper()
	tree := t.TempDir()
	for name, text := range map[string]string{
		"boot/vmlinuz-test": "kernel", "boot/initrd.img-test": "initrd", "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
		"etc/os-release": "PRETTY_NAME=\"Test OS 1\"\n", "etc/fstab": "old\n", "var/lib/dbus/machine-id": "0123\n", "root/.profile": "x\n",
	} {
		p := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(tree, "etc/hostname")); err != nil {
		t.Fatal(err)
	}
	img := filepath.Join(t.TempDir(), "fs")
	command(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "metadata_csum,64bit", "-d", tree, img, "48M")
	dir := t.TempDir()
	command(t, "mount", "-o", "loop", img, dir)
	command(t, "umount", dir)
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestInstallOnLoopDevice is D09 for the size of sectors, and D05 and D11 with a
// real kernel.
func TestInstallOnLoopDevice(t *testing.T) {
	for _, c := range []struct {
		name     string
		sector   int
		bootMode string
	}{{"512", 512, "bios"}, {"4096", 4096, "uefi"}} {
		t.Run("sectors of "+c.name, func(t *testing.T) { installOnLoop(t, c.sector, c.bootMode) })
	}
}

func installOnLoop(t *testing.T, sector int, bootMode string) {
	const size = 400 << 20
	dev := loopDevice(t, size, sector)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	srv := newBlobServer(t)
	m, digest := srv.pack(t, testImage(t, outside), 1<<20, nil)
	hw := testHardware(dev, size, sector)
	hw.BootMode = bootMode
	plan := testPlan(t, hw, m, digest)

	// What a disk with a past has: a marker, an old table, a filesystem.
	old := Marker{TaskID: testTask, Attempt: 1, PlanDigest: plan.Digest}
	block, err := old.encode()
	if err != nil {
		t.Fatal(err)
	}
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", dev)
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt(block, markerOffset)
	f.Sync()
	f.Close()
	command(t, "blockdev", "--setro", dev) // as the inventory leaves every disk

	agentFile := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agentFile, bytes.Repeat([]byte("agent"), 1000), 0o755); err != nil {
		t.Fatal(err)
	}
	in := New(Config{Grub: fakeGrub(t), WorkDir: t.TempDir(), Agent: agentFile, Tools: Tools{Zstd: "/usr/bin/zstd"},
		Identify: func(context.Context) (*lpmos.Hardware, error) { return hw, nil }},
		&programs{t: t}, srv.client(t, 0), nil, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if _, ok := in.Finished(hw.Disks[0]); !ok {
		t.Fatal("Finished before the installation = false; the test's own marker is not there")
	}
	var mu sync.Mutex
	var steps []Step
	written := 0
	job := Job{TaskID: testTask, Attempt: 2, Plan: plan, Callhome: agentapi.CallhomeConfig{URLs: []string{"https://10.77.0.1:8443"}, Token: "token-for-call-home", TaskID: testTask},
		OnWrite: func() {
			written++
			if _, ok := in.Finished(hw.Disks[0]); !ok {
				t.Error("something was written before OnWrite was called")
			}
		},
		OnStep: func(s Step) { mu.Lock(); defer mu.Unlock(); steps = append(steps, s) }}
	if err := in.Install(t.Context(), job); err != nil {
		t.Fatalf("Install = %v", err)
	}
	if written != 1 {
		t.Errorf("OnWrite was called %d times; want 1", written)
	}
	percent := 0
	for _, s := range steps {
		if p := s.Stage.Percent(s.Done, s.Total); p < percent {
			t.Errorf("step %+v goes back from %d to %d %%", s, percent, p)
		} else {
			percent = p
		}
	}
	if percent != 100 {
		t.Errorf("last step is at %d %%; want 100", percent)
	}

	t.Run("leaves a marker of this attempt", func(t *testing.T) {
		got, ok := in.Finished(hw.Disks[0])
		if !ok || got.TaskID != testTask || got.Attempt != 2 || got.PlanDigest != plan.Digest {
			t.Errorf("Finished = %+v, %v", got, ok)
		}
	})
	t.Run("makes the plan's table", func(t *testing.T) {
		parts, err := place(plan.Effect.Partitions, &device{sizeBytes: size, sectorBytes: int64(sector)})
		if err != nil {
			t.Fatal(err)
		}
		if err := checkTable(command(t, "sfdisk", "--json", dev), parts, int64(sector), "amd64"); err != nil {
			t.Error(err)
		}
		if out := command(t, "sfdisk", "--verify", dev); !strings.Contains(out, "No errors detected") {
			t.Errorf("sfdisk --verify: %s", out)
		}
	})
	root, _ := plan.Effect.Partition("root")
	esp, _ := plan.Effect.Partition("esp")
	t.Run("makes a clean root filesystem of the partition's size with the plan's UUID", func(t *testing.T) {
		command(t, "e2fsck", "-f", "-n", partitionPath(dev, 3))
		sb := command(t, "dumpe2fs", "-h", partitionPath(dev, 3))
		for _, want := range []string{"Filesystem UUID:          " + root.UUID, "Filesystem volume name:   lpmos-root", fmt.Sprintf("Block count:              %d", root.SizeBytes/4096)} {
			if !strings.Contains(sb, want) {
				t.Errorf("dumpe2fs lacks %q", want)
			}
		}
	})
	t.Run("makes an EFI system partition that firmware and tools read", func(t *testing.T) {
		command(t, "fsck.vfat", "-n", partitionPath(dev, 2))
		if _, err := exec.LookPath("mcopy"); err != nil {
			tier.Missing(t, "root", "no mcopy")
		}
		got := command(t, "mtype", "-i", partitionPath(dev, 2), "::/EFI/BOOT/grub.cfg")
		if !strings.Contains(got, root.UUID) {
			t.Errorf("grub.cfg on the ESP = %q", got)
		}
		want, _ := os.ReadFile(in.cfg.Grub.LoaderEFI)
		copied := filepath.Join(t.TempDir(), "loader")
		command(t, "mcopy", "-i", partitionPath(dev, 2), "::/EFI/BOOT/BOOTX64.EFI", copied)
		if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, want) {
			t.Errorf("BOOTX64.EFI has %d bytes and differs, %v; want %d", len(got), err, len(want))
		}
		if out := command(t, "mdir", "-i", partitionPath(dev, 2), "::/"); !strings.Contains(out, esp.UUID) || !strings.Contains(out, "LPMOS-ESP") {
			t.Errorf("mdir: %s", out)
		}
	})
	t.Run("writes BIOS boot code where a BIOS can use it, and nowhere else", func(t *testing.T) {
		b := make([]byte, 2<<20)
		f, err := os.Open(dev)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		has := b[100] == 0xb0 && bytes.HasPrefix(b[1<<20:], []byte("core"))
		if want := sector == 512; has != want {
			t.Errorf("boot code on the disk: %v; want %v", has, want)
		}
		if b[450] != 0xee || b[510] != 0x55 {
			t.Errorf("protective MBR is gone: % x", b[440:512])
		}
	})
	t.Run("configures the system and follows no link out of it", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mount(partitionPath(dev, 3), dir, "ext4", syscall.MS_RDONLY, "noload"); err != nil {
			t.Fatal(err)
		}
		defer syscall.Unmount(dir, 0)
		for name, want := range map[string]string{
			"etc/fstab": "UUID=" + root.UUID + " / ext4", "etc/hostname": "web-1.example\n", "etc/hosts": "127.0.1.1 web-1.example web-1",
			"boot/grub/grub.cfg": "linux /boot/vmlinuz-test root=UUID=" + root.UUID + " ro quiet", "root/.ssh/authorized_keys": testKey,
			"etc/lpmos/callhome.json": "token-for-call-home", "usr/lib/lpmos/agent": "agentagent", "etc/systemd/system/lpmos-callhome.service": "ExecStart=/usr/lib/lpmos/agent callhome",
			"etc/systemd/system/multi-user.target.wants/lpmos-callhome.service": "", "var/lib/cloud/seed/nocloud/meta-data": testTask,
			"etc/cloud/cloud.cfg.d/99-lpmos.cfg": "NoCloud", "var/lib/cloud/seed/nocloud/network-config": "52:54:00:00:00:02", "boot/vmlinuz-test": "kernel",
		} {
			if name == "etc/systemd/system/multi-user.target.wants/lpmos-callhome.service" {
				if l, err := os.Readlink(filepath.Join(dir, name)); err != nil || l != "/etc/systemd/system/lpmos-callhome.service" {
					t.Errorf("unit is not enabled: %q, %v", l, err)
				}
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || !strings.Contains(string(b), want) {
				t.Errorf("%s = %.300q, %v; want %q in it", name, b, err, want)
			}
		}
		for name, want := range map[string]os.FileMode{"root/.ssh": 0o700, "root/.ssh/authorized_keys": 0o600, "etc/lpmos/callhome.json": 0o600, "usr/lib/lpmos/agent": 0o755, "etc/fstab": 0o644} {
			if st, err := os.Lstat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != want {
				t.Errorf("mode of %s = %v, %v; want %v", name, st.Mode(), err, want)
			}
		}
		if st, err := os.Stat(filepath.Join(dir, "etc/machine-id")); err != nil || st.Size() != 0 {
			t.Errorf("machine-id is not empty: %v, %v", st, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "var/lib/dbus/machine-id")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("D-Bus machine-id: %v; want it gone", err)
		}
		if b, _ := os.ReadFile(outside); string(b) != "untouched" {
			t.Errorf("a link of the image led outside: %q", b)
		}
		var user map[string]any
		b, _ := os.ReadFile(filepath.Join(dir, "var/lib/cloud/seed/nocloud/user-data"))
		if err := json.Unmarshal(bytes.TrimPrefix(b, []byte("#cloud-config\n")), &user); err != nil || user["hostname"] != "web-1.example" {
			t.Errorf("user-data = %s, %v", b, err)
		}
	})
	t.Run("installs again over its own installation", func(t *testing.T) {
		job.Attempt, job.OnWrite, job.OnStep = 3, nil, nil
		if err := in.Install(t.Context(), job); err != nil {
			t.Fatalf("second Install = %v", err)
		}
		if got, ok := in.Finished(hw.Disks[0]); !ok || got.Attempt != 3 {
			t.Errorf("Finished = %+v, %v", got, ok)
		}
	})
	t.Run("refuses a disk that is in use, before it writes", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mount(partitionPath(dev, 3), dir, "ext4", syscall.MS_RDONLY, "noload"); err != nil {
			t.Fatal(err)
		}
		defer syscall.Unmount(dir, 0)
		job.OnWrite = func() { t.Error("OnWrite was called") }
		err := in.Install(t.Context(), job)
		if f, ok := errors.AsType[*Failure](err); !ok || f.Code != "disk_busy" || !strings.Contains(f.Cause, "is mounted on "+dir) {
			t.Errorf("Install on a mounted disk = %v; want disk_busy, and where it is mounted", err)
		}
	})
	t.Run("refuses a disk that was exchanged, before it writes", func(t *testing.T) {
		other := *hw
		other.Disks = []lpmos.Disk{hw.Disks[0]}
		other.Disks[0].Serial = "ANOTHER"
		in.cfg.Identify = func(context.Context) (*lpmos.Hardware, error) { return &other, nil }
		job.OnWrite = func() { t.Error("OnWrite was called") }
		if got := failureCode(in.Install(t.Context(), job)); got != "disk_missing" {
			t.Errorf("Install on another disk = %s; want disk_missing", got)
		}
	})
}
