package inventory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/lpmos/lpmos"
)

// lookTimeout is for one disk: a healthy one takes less than a second, one that
// spins up or retries bad sectors takes long.
const lookTimeout = 60 * time.Second

// Inspector looks at the block devices of the running machine. It may be used
// by several goroutines at once.
type Inspector struct {
	Sys fs.FS  // /sys, a fs.ReadLinkFS
	Dev string // where device nodes are; "" is /dev
	Dir string // an existing private directory to mount below; "" mounts nothing
}

// closed are the devices that are read-only because this process made them so.
// The kernel keeps the flag for the whole machine and shows it as if it were
// the device's own, so every Collect of the process has to know, also one that
// looks at no content.
var closed sync.Map // string → bool

func isClosed(device string) bool {
	v, _ := closed.Load(device)
	on, _ := v.(bool)
	return on
}

// Look fills in d.Content or d.ContentUnknownBecause. The disk is read-only
// when Look returns, and stays so until SetReadOnly opens it; d.ReadOnly is not
// changed by that, it is about the device itself. Look gives up after a minute;
// a read that the kernel does not end then keeps its goroutine.
func (in *Inspector) Look(ctx context.Context, d *lpmos.Disk) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	type found struct {
		content lpmos.Content
		err     error
	}
	done := make(chan found, 1)
	disk := *d
	go func() {
		c, err := in.inspect(ctx, disk)
		done <- found{c, err}
	}()
	select {
	case f := <-done:
		d.Content = f.content
		if f.err != nil {
			d.ContentUnknownBecause = Clean(f.err.Error())
		}
	case <-ctx.Done():
		d.ContentUnknownBecause = "reading it did not end: " + ctx.Err().Error()
	}
}

func (in *Inspector) inspect(ctx context.Context, d lpmos.Disk) (lpmos.Content, error) {
	if d.SizeBytes <= 0 {
		return lpmos.Content{}, errors.New("the device has no size")
	}
	if !d.ReadOnly {
		if err := in.SetReadOnly(d.Device, true); err != nil {
			return lpmos.Content{}, err
		}
	}
	f, err := openDevice(in.node(path.Base(d.Device)))
	if err != nil {
		return lpmos.Content{}, err
	}
	defer f.Close()
	c, err := Probe(cancelable{ctx, f}, d.SizeBytes, d.SectorBytes)
	if in.Dir == "" || err != nil {
		return c, err
	}
	name := path.Base(d.Device)
	if c.Filesystem != nil {
		in.describe(ctx, name, c.Filesystem)
	}
	nodes := in.partitionNodes(name)
	for i := range c.Partitions {
		p := &c.Partitions[i]
		if node := nodes[p.StartBytes]; p.Filesystem != nil && node != "" {
			in.describe(ctx, node, p.Filesystem)
		}
	}
	return c, ctx.Err()
}

// partitionNodes are the names of the kernel's partitions of a disk by where
// they begin. The kernel may know fewer than we found, for example if the
// primary GPT is damaged.
func (in *Inspector) partitionNodes(disk string) map[int64]string {
	sys, nodes := tree{in.Sys}, map[int64]string{}
	for _, n := range sys.names("block/" + disk) {
		dir := path.Join("block", disk, n)
		if start, ok := sys.number(dir, "start"); ok && strings.HasPrefix(n, disk) && sys.exists(dir+"/partition") {
			nodes[start*512] = n
		}
	}
	return nodes
}

// mountOptions are the filesystems worth a mount, the driver that knows each,
// and what keeps it from replaying a journal. nouuid lets XFS mount one of two
// disks that are copies of each other.
var mountOptions = map[string]struct{ driver, data string }{
	"ext2":  {"ext4", "noload"},
	"ext3":  {"ext4", "noload"},
	"ext4":  {"ext4", "noload"},
	"xfs":   {"xfs", "norecovery,nouuid"},
	"btrfs": {"btrfs", "rescue=nologreplay"},
	"vfat":  {"vfat", ""},
}

// describe mounts node and adds what only the files tell. A filesystem that
// does not mount keeps what its superblock says; that it is there is what
// counts.
func (in *Inspector) describe(ctx context.Context, node string, f *lpmos.Filesystem) {
	how, ok := mountOptions[f.Type]
	if !ok || ctx.Err() != nil {
		return
	}
	dir, err := os.MkdirTemp(in.Dir, "look-")
	if err != nil {
		return
	}
	defer os.Remove(dir)
	const flags = syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC | syscall.MS_NOATIME
	if err := syscall.Mount(in.node(node), dir, how.driver, flags, how.data); err != nil {
		return
	}
	defer func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }()
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) == nil && f.UsedBytes == 0 && st.Bfree <= st.Blocks {
		f.UsedBytes = bytesOf(st.Blocks-st.Bfree, uint64(st.Bsize))
	}
	f.OS, f.Hostname = DescribeOS(dir)
}

// DescribeOS reads the PRETTY_NAME of os-release and the host name of the
// system that is mounted at dir, "" for what it does not have. Links of the
// system are followed inside dir only. Of btrfs, the usual names of the root
// subvolume are tried too.
func DescribeOS(dir string) (name, hostname string) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", ""
	}
	defer root.Close()
	for _, sub := range []string{"", "@", "root", "@rootfs"} {
		for _, file := range []string{"etc/os-release", "usr/lib/os-release"} {
			if name == "" {
				name = prettyName(readRegular(root, path.Join(sub, file)))
			}
		}
		if hostname == "" {
			hostname = firstLine(readRegular(root, path.Join(sub, "etc/hostname")))
		}
		if name != "" {
			break
		}
	}
	return name, hostname
}

// readRegular is at most 16 KiB of a regular file. Opening must not wait: what
// has the name may be a FIFO.
func readRegular(root *os.Root, name string) []byte {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil
	}
	b, _ := io.ReadAll(io.LimitReader(f, 16<<10))
	return b
}

// prettyName is the value of PRETTY_NAME in an os-release file (os-release(5)),
// else of NAME.
func prettyName(b []byte) string {
	values := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || len(values) > 64 {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		values[key] = Clean(strings.NewReplacer(`\"`, `"`, `\$`, `$`, "\\`", "`", `\\`, `\`).Replace(value))
	}
	if s := values["PRETTY_NAME"]; s != "" {
		return s
	}
	return values["NAME"]
}

// firstLine is the first line that is neither empty nor a comment (hostname(5)).
func firstLine(b []byte) string {
	for line := range strings.Lines(string(b)) {
		if s := Clean(line); s != "" && s[0] != '#' {
			return s
		}
	}
	return ""
}

// blkROSet and blkROGet are the ioctls of linux/fs.h.
const (
	blkROSet = 0x125D
	blkROGet = 0x125E
)

// SetReadOnly makes the kernel refuse (true) or allow (false) writes to a whole
// disk ("/dev/sda") and, with it, to its partitions. Allowing is for the one
// disk of a plan whose permit was granted; a disk that is read-only by itself
// stays so and is an error.
func (in *Inspector) SetReadOnly(device string, on bool) error {
	f, err := openDevice(in.node(path.Base(device)))
	if err != nil {
		return err
	}
	defer f.Close()
	var v int32
	if on {
		v = 1
	}
	if err := ioctl(f, blkROSet, &v); err != nil {
		return fmt.Errorf("set %s read-only=%t: %w", device, on, err)
	}
	var now int32
	if err := ioctl(f, blkROGet, &now); err != nil {
		return fmt.Errorf("ask whether %s is read-only: %w", device, err)
	}
	if (now != 0) != on {
		return fmt.Errorf("set %s read-only=%t: the device did not accept it", device, on)
	}
	closed.Store(device, on)
	return nil
}

func (in *Inspector) node(name string) string {
	if in.Dev == "" {
		return filepath.Join("/dev", name)
	}
	return filepath.Join(in.Dev, name)
}

// openDevice opens a block device for reading; anything else is refused.
func openDevice(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		f.Close()
		return nil, fmt.Errorf("open %s: is not a block device", name)
	}
	return f, nil
}

func ioctl(f *os.File, request uintptr, v *int32) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno syscall.Errno
	err = c.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(v)))
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

// cancelable stops reading when its context ends.
type cancelable struct {
	ctx context.Context
	r   io.ReaderAt
}

func (c cancelable) ReadAt(b []byte, off int64) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.ReadAt(b, off)
}
