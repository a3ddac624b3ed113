package pid1

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lpmos/lpmos"
)

// Options are what a booted agent needs to know.
type Options struct {
	// BootMAC is called once devices are there and before the network is set
	// up; it gives the address of the interface the machine booted from, zero
	// if that is not known. nil is the same as a zero address.
	BootMAC func() (lpmos.MAC, error)
	// Modules are loaded on every machine, besides those its devices ask for;
	// nil is the list in this package. A module that is not there is no error.
	Modules []string
	// NetworkTimeout bounds the search for an address; 0 is five minutes.
	NetworkTimeout time.Duration
}

// wanted is what no device asks for: filesystems, their names' character sets,
// firmware variables, disks. Other filesystems come when they are mounted;
// btrfs alone spends a second on measuring RAID 6.
var wanted = []string{"efivarfs", "sd_mod", "ext4", "vfat", "nls_ascii", "nls_cp437", "nls_utf8", "af_packet"}

// System is a booted machine.
type System struct {
	Log     *slog.Logger // to all consoles
	Kernel  string       // release
	BootMAC lpmos.MAC

	wg sync.WaitGroup

	mu    sync.Mutex // guards what follows
	lease Lease
}

// mount is one kernel filesystem.
type mount struct {
	source, dir, typ, data string
	flags                  uintptr
}

const quietFlags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC

var kernelMounts = []mount{
	{"proc", "/proc", "proc", "", quietFlags},
	{"sysfs", "/sys", "sysfs", "", quietFlags},
	{"devtmpfs", "/dev", "devtmpfs", "mode=0755", syscall.MS_NOSUID},
	{"tmpfs", "/run", "tmpfs", "mode=0755", syscall.MS_NOSUID | syscall.MS_NODEV},
	{"tmpfs", "/tmp", "tmpfs", "mode=1777", syscall.MS_NOSUID | syscall.MS_NODEV},
}

var efivarfs = mount{"efivarfs", "/sys/firmware/efi/efivars", "efivarfs", "", quietFlags}

// mountAll mounts what it can.
func mountAll(mounts []mount) (errs []error) {
	for _, m := range mounts {
		// sysfs has its mount points already and no other directory can be made.
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := syscall.Mount(m.source, m.dir, m.typ, m.flags, m.data); err != nil && err != syscall.EBUSY {
			errs = append(errs, fmt.Errorf("mount %s on %s: %w", m.typ, m.dir, err))
		}
	}
	return errs
}

var errNotBooted = errors.New("this process is not the agent of a booted machine")

// Start makes the machine usable: modules for what is there, settled devices,
// firmware variables, an address. Process 1 has mounted the kernel's
// filesystems before. Only the network is worth an error: everything else is
// logged and found missing by the inventory. The lease is renewed until ctx
// ends.
func Start(ctx context.Context, opts Options, log *slog.Logger) (*System, error) {
	if !isWorker() {
		return nil, errNotBooted
	}
	began := time.Now()
	s := &System{Log: log, Kernel: release()}
	log.Info("started", "kernel", s.Kernel)

	if err := useAsModprobe(); err != nil {
		log.Warn("become the kernel's modprobe", "err", err)
	}
	modules, err := ReadModules(os.DirFS("/lib/modules/" + s.Kernel))
	if err != nil {
		log.Error("read module lists", "err", err)
	} else {
		loader := &loader{modules: modules, dir: "/lib/modules/" + s.Kernel, insert: insertModule, log: log}
		for _, m := range cmpOr(opts.Modules, wanted) {
			loader.load(m)
		}
		loader.coldplug(ctx, sysFS())
		log.Info("modules loaded", "count", len(loader.loaded), "took", since(began))
	}
	if _, err := os.Stat("/sys/firmware/efi"); err == nil {
		for _, err := range mountAll([]mount{efivarfs}) {
			log.Warn("mount", "err", err)
		}
	}
	disks, nics := settle(ctx, sysFS(), settleQuiet, settlePatience, settleLimit)
	log.Info("devices settled", "disks", disks, "nics", nics, "took", since(began))

	if opts.BootMAC != nil {
		if s.BootMAC, err = opts.BootMAC(); err != nil {
			return s, fmt.Errorf("learn the boot interface: %w", err)
		}
	}
	limit := opts.NetworkTimeout
	if limit <= 0 {
		limit = 5 * time.Minute
	}
	if err := s.connect(ctx, limit); err != nil {
		return s, err
	}
	log.Info("ready", "took", since(began))
	return s, nil
}

// wait returns when the goroutines of Start have ended, which is after its
// context has.
func (s *System) wait() { s.wg.Wait() }

// Lease is what the network gave us last.
func (s *System) Lease() Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lease
}

// SetClock sets the machine's clock. Certificates cannot be checked before.
func (s *System) SetClock(t time.Time) error {
	if !Booted() {
		return errNotBooted
	}
	tv := syscall.NsecToTimeval(t.UnixNano())
	if err := syscall.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set the clock to %s: %w", t.UTC().Format(time.RFC3339), err)
	}
	return nil
}

// linuxRebootCmdKexec starts the kernel that was loaded (linux/reboot.h).
const linuxRebootCmdKexec = 0x45584543

// kexecLoaded reports whether another kernel waits to be started.
func kexecLoaded() bool {
	b, err := os.ReadFile("/sys/kernel/kexec_loaded")
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// Reboot writes everything out, unmounts, and restarts the machine, into the
// kernel that was loaded for that if there is one. It returns only if it could
// not.
func (s *System) Reboot() error {
	if !Booted() {
		return errNotBooted
	}
	syscall.Sync()
	table, _ := os.ReadFile("/proc/self/mounts")
	for _, dir := range diskMounts(string(table)) {
		if err := syscall.Unmount(dir, 0); err != nil {
			s.Log.Warn("unmount", "file", dir, "err", err)
			_ = syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
		}
	}
	syscall.Sync()
	how := syscall.LINUX_REBOOT_CMD_RESTART
	if kexecLoaded() {
		how = linuxRebootCmdKexec
	}
	if err := syscall.Reboot(how); err != nil {
		return fmt.Errorf("restart the machine: %w", err)
	}
	return nil
}

// diskMounts are the mount points of /proc/self/mounts that are on a block
// device, the newest first.
func diskMounts(table string) []string {
	var dirs []string
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) >= 3 && strings.HasPrefix(f[0], "/dev/") {
			dirs = append(dirs, strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[1]))
		}
	}
	slices.Reverse(dirs)
	return dirs
}

// Devices come up to seconds after their driver: a link is negotiated, a disk
// spins up, a bus is scanned.
const (
	settleQuiet    = time.Second      // no change for this long is enough
	settlePatience = 5 * time.Second  // as long as there is no disk or no interface
	settleLimit    = 30 * time.Second // in any case
)

// settle waits until disks and interfaces have not changed for quiet, and
// while there are none of one kind for patience; limit bounds both. It returns
// how many there are.
func settle(ctx context.Context, sys fs.FS, quiet, patience, limit time.Duration) (disks, nics int) {
	began := time.Now()
	changed, seen := began, ""
	tick := time.NewTicker(quiet / 10)
	defer tick.Stop()
	for {
		var names []string
		disks, nics = 0, 0
		entries, _ := fs.ReadDir(sys, "block")
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "loop") || strings.HasPrefix(e.Name(), "ram") {
				continue
			}
			disks++
			names = append(names, e.Name())
		}
		entries, _ = fs.ReadDir(sys, "class/net")
		for _, e := range entries {
			if _, err := fs.Stat(sys, "class/net/"+e.Name()+"/device"); err == nil {
				nics++
				names = append(names, e.Name())
			}
		}
		now := time.Now()
		if all := strings.Join(names, " "); all != seen {
			seen, changed = all, now
		}
		want := quiet
		if disks == 0 || nics == 0 {
			want = patience
		}
		if now.Sub(changed) >= want || now.Sub(began) >= limit {
			return disks, nics
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return disks, nics
		}
	}
}

// sysFS is /sys. Links inside it are relative and stay inside.
func sysFS() fs.FS { return os.DirFS("/sys") }

func release() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }

func cmpOr(a, b []string) []string {
	if a != nil {
		return a
	}
	return b
}
