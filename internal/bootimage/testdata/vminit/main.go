// Command vminit is the first process of the test machine: it looks at the
// initramfs the way the agent does and says on the console what it found.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if err := run(); err != nil {
		fmt.Printf("\nVMINIT-FAILED %v\n", err)
	} else {
		fmt.Printf("\nVMINIT-OK\n")
	}
	time.Sleep(200 * time.Millisecond)
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}} {
		if err := syscall.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	mods, err := readIndex()
	if err != nil {
		return err
	}
	if err := mods.coldplug(); err != nil {
		return err
	}
	for _, name := range []string{"ext4", "vfat", "xfs", "btrfs", "efivarfs", "edd", "loop", "bonding", "raid456", "nvme_tcp"} {
		if err := mods.load(name); err != nil && !(name == "efivarfs" || name == "edd") {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	if err := expectDevices(); err != nil {
		return err
	}
	for _, c := range [][]string{
		{"/usr/bin/zstd", "--version"}, {"/usr/sbin/sfdisk", "--version"},
		{"/usr/sbin/mke2fs", "-q", "-t", "ext4", "-F", "-U", "11111111-2222-4333-8444-555555555555", "/dev/vda"},
		{"/usr/sbin/tune2fs", "-L", "root", "/dev/vda"},
		{"/usr/sbin/e2fsck", "-f", "-p", "/dev/vda"}, {"/usr/sbin/resize2fs", "/dev/vda"},
		{"/usr/sbin/mkfs.fat", "-F", "32", "-i", "AAAA0001", "/dev/nvme0n1"}, {"/usr/sbin/mkfs.vfat", "--help"},
		{"/usr/sbin/mkfs.xfs", "-V"}, {"/usr/sbin/xfs_growfs", "-V"}, {"/usr/sbin/mkswap", "--version"},
		{"/usr/sbin/mdadm", "--version"}, {"/usr/sbin/lvm", "version"}, {"/usr/sbin/cryptsetup", "--version"},
	} {
		out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("run %s: %w: %s", strings.Join(c, " "), err, bytes.TrimSpace(out))
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		fmt.Printf("VMINIT-RAN %s: %s\n", c[0], first)
	}
	for _, m := range []struct{ dev, kind string }{{"/dev/vda", "ext4"}, {"/dev/nvme0n1", "vfat"}} {
		if err := syscall.Mount(m.dev, "/target", m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s on /target: %w", m.kind, err)
		}
		if err := os.WriteFile("/target/Grüße", []byte("text"), 0o644); err != nil {
			return err
		}
		if err := syscall.Unmount("/target", 0); err != nil {
			return fmt.Errorf("unmount %s: %w", m.kind, err)
		}
	}
	return nil
}

// expectDevices waits for what the test gives this machine.
func expectDevices() error {
	want := []string{"/sys/block/vda", "/sys/block/nvme0n1", "/sys/block/sda", "/sys/block/sdb", "/sys/bus/pci/drivers/virtio-pci/module", "/sys/bus/pci/drivers/e1000e/0000*", "/sys/bus/pci/drivers/vmxnet3/0000*", "/sys/class/net/*/device/driver/module/drivers/virtio:virtio_net"}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		var missing []string
		for _, name := range want {
			if found, _ := filepath.Glob(name); len(found) == 0 {
				missing = append(missing, name)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no device at %v", missing)
		}
	}
}

type index struct {
	dir   string
	deps  map[string][]string // module → files, itself first
	alias []([2]string)
	tried map[string]error
}

func readIndex() (*index, error) {
	dirs, err := filepath.Glob("/lib/modules/*")
	if err != nil || len(dirs) != 1 {
		return nil, fmt.Errorf("modules: %v", dirs)
	}
	x := &index{dir: dirs[0], deps: map[string][]string{}, tried: map[string]error{}}
	dep, err := os.ReadFile(x.dir + "/modules.dep")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(dep)) {
		file, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		name := strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
		x.deps[name] = append([]string{file}, strings.Fields(rest)...)
	}
	alias, err := os.ReadFile(x.dir + "/modules.alias")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(alias)) {
		f := strings.Fields(line)
		if len(f) == 3 {
			x.alias = append(x.alias, [2]string{f[1], f[2]})
		}
	}
	return x, nil
}

// coldplug loads by modalias until no new devices appear.
func (x *index) coldplug() error {
	seen := map[string]bool{}
	for fresh := true; fresh; {
		fresh = false
		err := filepath.WalkDir("/sys/devices", func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "modalias" {
				return nil
			}
			b, _ := os.ReadFile(name)
			want := strings.TrimSpace(string(b))
			if want == "" || seen[want] {
				return nil
			}
			seen[want], fresh = true, true
			for _, a := range x.alias {
				if ok, _ := path.Match(a[0], want); ok {
					if err := x.load(a[1]); err != nil && !errors.Is(err, syscall.ENODEV) {
						fmt.Printf("VMINIT-NOTE %s for %s: %v\n", a[1], want, err)
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		time.Sleep(500 * time.Millisecond)
	}
	return nil
}

func (x *index) load(name string) error {
	files, ok := x.deps[name]
	if !ok {
		return fs.ErrNotExist
	}
	for i := len(files) - 1; i >= 0; i-- {
		err, done := x.tried[files[i]]
		if !done {
			err = insert(x.dir + "/" + files[i])
			x.tried[files[i]] = err
		}
		if err != nil {
			return fmt.Errorf("%s: %w", files[i], err)
		}
	}
	return nil
}

func insert(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var none byte
	_, _, errno := syscall.Syscall(313, f.Fd(), uintptr(unsafe.Pointer(&none)), 0) // finit_module
	if errno != 0 && errno != syscall.EEXIST {
		return errno
	}
	return nil
}
