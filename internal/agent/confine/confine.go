// Package confine runs a program of an installed system's own tree with no more
// than it needs to work on that tree: to make an initramfs anew, for instance.
//
// The program sees the tree as /, and nothing of the machine: it is process 1
// of its own PID namespace, with mount, network, IPC and UTS namespaces of its
// own. The network has not even a loopback that is up. /dev has null, zero,
// full, random and urandom; a device node in the tree itself opens nothing
// (nodev). /proc shows its own processes and cannot be written, there is no
// /sys. Of root's capabilities those over files remain; none can be gained
// (no_new_privs, nosuid). When it ends, or its time is over, everything it
// started ends with it.
//
// It still is user 0 and may write anywhere in the tree: that is its purpose.
// What it may do to the kernel's system calls is not filtered.
//
// The work between fork and exec needs more than the standard library offers
// there, so the calling program starts itself again as [Arg0]; its main must
// begin with
//
//	if confine.IsChild() {
//		confine.Child()
//	}
package confine

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"
)

// Arg0 is the name under which a program starts itself to become a child.
const Arg0 = "lpmos-confined"

// Command is what the child is to run.
type Command struct {
	Root string   `json:"root"` // absolute; a directory with a whole system
	Path string   `json:"path"` // below it
	Args []string `json:"args"`
}

// Argv is the argument vector to start /proc/self/exe with.
func (c Command) Argv() []string {
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings always encode
	}
	return []string{Arg0, string(text)}
}

// Attr is how the child is to be started.
func Attr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Setpgid:    true,
	}
}

// IsChild reports whether this process was started to become a confined
// program.
func IsChild() bool { return len(os.Args) == 2 && os.Args[0] == Arg0 }

// exitSetup is the exit status when the program was never started.
const exitSetup = 125

// Child becomes the confined program. It does not return.
func Child() {
	// Capabilities and no_new_privs belong to a thread; exec keeps this one's.
	runtime.LockOSThread()
	var c Command
	err := json.Unmarshal([]byte(os.Args[1]), &c)
	if err == nil {
		err = c.become()
	}
	fmt.Fprintf(os.Stderr, "confine %s: %v\n", c.Path, err)
	os.Exit(exitSetup)
}

// environment is everything the program inherits.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root", "TERM=dumb"}

func (c Command) become() error {
	if os.Getpid() != 1 {
		return errors.New("is not process 1 of a namespace of its own")
	}
	if !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.Path) {
		return errors.New("root and program must be absolute paths")
	}
	if err := enter(c.Root); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte("localhost")); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	syscall.Umask(0o022)
	if err := restrict(); err != nil {
		return err
	}
	return fmt.Errorf("start: %w", syscall.Exec(c.Path, append([]string{c.Path}, c.Args...), environment))
}

// enter makes root the only tree this process can reach.
func enter(root string) error {
	mount := func(source, target, fstype string, flags uintptr, data string) error {
		if err := syscall.Mount(source, target, fstype, flags, data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", cmp.Or(fstype, source), target, err)
		}
		return nil
	}
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	// The tree must be a mount of its own to be moved. Its own mounts come
	// along, and each is told that device nodes and set-user-ID bits on it mean
	// nothing; the installer mounts them without execution, which is lifted.
	if err := mount(root, root, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return err
	}
	for _, m := range mountsBelow(root) {
		if err := mount("", m, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_NODEV|syscall.MS_NOSUID, ""); err != nil {
			return err
		}
	}
	const strict = syscall.MS_NOSUID | syscall.MS_NOEXEC | syscall.MS_NODEV
	at := func(dir string) string { return filepath.Join(root, dir) }
	for _, dir := range []string{"proc", "dev", "run", "tmp"} {
		if st, err := os.Lstat(at(dir)); err != nil || !st.IsDir() {
			return fmt.Errorf("the tree has no directory /%s", dir)
		}
	}
	if err := errors.Join(
		mount("proc", at("proc"), "proc", strict|syscall.MS_RDONLY, ""),
		mount("tmpfs", at("run"), "tmpfs", strict, "mode=755,size=64m"),
		mount("tmpfs", at("tmp"), "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=1777,size=256m"),
		mount("tmpfs", at("dev"), "tmpfs", syscall.MS_NOSUID|syscall.MS_NOEXEC, "mode=755,size=64k"),
	); err != nil {
		return err
	}
	syscall.Umask(0)
	for _, n := range []struct {
		name  string
		minor int
	}{{"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}} {
		if err := syscall.Mknod(at("dev/"+n.name), syscall.S_IFCHR|0o666, 1<<8|n.minor); err != nil {
			return fmt.Errorf("make /dev/%s: %w", n.name, err)
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, at("dev/"+name)); err != nil {
			return err
		}
	}
	if err := mount("", at("dev"), "", syscall.MS_REMOUNT|syscall.MS_RDONLY|syscall.MS_NOSUID|syscall.MS_NOEXEC, ""); err != nil {
		return err
	}
	// What stays below the new root cannot be reached without a capability that
	// is about to go; the machine's devices are taken away all the same.
	for _, dir := range []string{"/dev", "/sys", "/proc"} {
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	}
	if err := syscall.Chdir(root); err != nil {
		return os.NewSyscallError("chdir", err)
	}
	if err := mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return err
	}
	if err := syscall.Chroot("."); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	return syscall.Chdir("/")
}

// mountsBelow lists root and the mounts below it (proc(5), mountinfo).
func mountsBelow(root string) []string {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	var out []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == root || strings.HasPrefix(f[4], root+"/")) {
			out = append(out, f[4])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Capabilities that remain (capabilities(7)): files of all owners may be made,
// owned and changed. Not among them: everything else, so that there is no
// chroot, no mount, no device node, no module, no reboot, no raw disk or
// network.
var kept = []uint{0 /* CHOWN */, 1 /* DAC_OVERRIDE */, 3 /* FOWNER */, 4 /* FSETID */, 31 /* SETFCAP */}

func restrict() error {
	const (
		prCapbsetDrop   = 24
		prSetNoNewPrivs = 38
		prCapAmbient    = 47
		ambientClearAll = 4
	)
	prctl := func(what string, args ...uintptr) error {
		args = append(args, 0, 0, 0, 0)
		if _, _, errno := syscall.Syscall6(syscall.SYS_PRCTL, args[0], args[1], args[2], args[3], args[4], 0); errno != 0 {
			return fmt.Errorf("%s: %w", what, errno)
		}
		return nil
	}
	for c := range uint(64) {
		if slices.Contains(kept, c) {
			continue
		}
		if err := prctl("drop capability", prCapbsetDrop, uintptr(c)); err != nil && !errors.Is(err, syscall.EINVAL) {
			return err
		} // EINVAL: the kernel knows no such capability
	}
	if err := prctl("clear ambient capabilities", prCapAmbient, ambientClearAll); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	var low uint32
	for _, c := range kept {
		low |= 1 << c
	}
	header := struct {
		version uint32
		pid     int32
	}{0x20080522, 0} // _LINUX_CAPABILITY_VERSION_3
	data := [2]struct{ effective, permitted, inheritable uint32 }{{effective: low, permitted: low}}
	if _, _, errno := syscall.Syscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0); errno != 0 {
		return os.NewSyscallError("capset", errno)
	}
	return prctl("set no_new_privs", prSetNoNewPrivs, 1)
}
