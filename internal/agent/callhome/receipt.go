package callhome

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
)

// Collect says what runs now, as found and not as planned. What cannot be found
// is empty. disks lists the machine's disks without looking at their content.
func Collect(ctx context.Context, root string, disks func(context.Context) (*lpmos.Hardware, error)) lpmos.Receipt {
	text := func(p string, limit int64) string {
		f, err := os.Open(filepath.Join(root, p))
		if err != nil {
			return ""
		}
		defer f.Close()
		b, _ := io.ReadAll(io.LimitReader(f, limit))
		return strings.TrimSpace(strings.ToValidUTF8(string(b), ""))
	}
	release := osRelease(text("etc/os-release", 16<<10))
	r := lpmos.Receipt{
		BootMode:    "bios",
		OS:          release["PRETTY_NAME"],
		OSID:        release["ID"],
		OSVersion:   release["VERSION_ID"],
		Kernel:      text("proc/sys/kernel/osrelease", 256),
		KernelArgs:  text("proc/cmdline", 4<<10),
		Hostname:    text("proc/sys/kernel/hostname", 256),
		MachineID:   text("etc/machine-id", 64),
		Addresses:   addresses(),
		Mounts:      mounts(text("proc/self/mountinfo", 1<<20)),
		Timezone:    timezone(root),
		Users:       people(text("etc/passwd", 1<<20)),
		HostKeys:    hostKeys(root),
		FailedUnits: failedUnits(ctx, root),
	}
	r.CloudInit, r.CloudInitErrors = cloudInit(root)
	if root == "/" { // elsewhere it is another system's clock
		r.TimeSynced = clockSynced()
	}
	if _, err := os.Stat(filepath.Join(root, "sys/firmware/efi")); err == nil {
		r.BootMode = "uefi"
	}
	if up, _, ok := strings.Cut(text("proc/uptime", 64), "."); ok {
		r.UptimeSec, _ = strconv.ParseInt(up, 10, 64)
	}
	m := rootMount(text("proc/self/mountinfo", 1<<20))
	dir := m.device(root)
	if dir == "" {
		return r
	}
	r.RootFSUUID = fsUUID(filepath.Join(root, "dev", filepath.Base(dir)), m.fs)
	disk := wholeDisk(dir)
	if h, err := disks(ctx); err == nil {
		r.SecureBoot = h.SecureBoot
		for _, d := range h.Disks {
			if d.Device == "/dev/"+disk {
				r.RootDisk = d.Ref()
			}
		}
	}
	return r
}

// osRelease reads os-release(5).
func osRelease(s string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(s) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			out[k] = lpmos.Shorten(strings.Trim(v, `"'`), 200)
		}
	}
	return out
}

// mounted is a line of mountinfo (proc(5)).
type mounted struct {
	number   string // of the device, "major:minor"
	of, path string // what of the filesystem is mounted: "/", or a subvolume; and where
	fs       string
	source   string // "/dev/sda3"
}

// readMount reads a line of mountinfo.
func readMount(line string) (m mounted, ok bool) {
	before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 2 {
		return m, false
	}
	return mounted{number: f[2], of: unescape(f[3]), path: unescape(f[4]), fs: g[0], source: unescape(g[1])}, true
}

// rootMount is what is mounted last on /.
func rootMount(mountinfo string) (root mounted) {
	for line := range strings.Lines(mountinfo) {
		if m, ok := readMount(line); ok && m.path == "/" {
			root = m
		}
	}
	return root
}

// device is the directory in /sys of the block device that is mounted, "" when
// it is none. A btrfs, which may have several, is mounted with a number that no
// device has: it is known by the name that it was mounted by.
func (m mounted) device(root string) string {
	sys := filepath.Join(root, "sys/dev/block", m.number)
	if strings.HasPrefix(m.number, "0:") {
		if !strings.HasPrefix(m.source, "/dev/") {
			return ""
		}
		node, err := filepath.EvalSymlinks(filepath.Join(root, m.source))
		if err != nil {
			return ""
		}
		sys = filepath.Join(root, "sys/class/block", filepath.Base(node))
		// Without udev a mapping's name is no link to its device.
		names, _ := filepath.Glob(filepath.Join(root, "sys/class/block/dm-*/dm/name"))
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil && m.source == "/dev/mapper/"+strings.TrimSpace(string(b)) {
				sys = filepath.Dir(filepath.Dir(name))
			}
		}
	}
	dir, err := filepath.EvalSymlinks(sys)
	if err != nil {
		return ""
	}
	return dir
}

// wholeDisk is the name of the disk that a block device lies on: itself, the one
// it is a partition of, or the first below an array or a mapping.
func wholeDisk(dir string) string {
	for range 8 {
		below, err := filepath.Glob(filepath.Join(dir, "slaves/*"))
		if err != nil || len(below) == 0 {
			break
		}
		slices.Sort(below)
		if dir, err = filepath.EvalSymlinks(below[0]); err != nil {
			return ""
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return filepath.Base(filepath.Dir(dir))
	}
	return filepath.Base(dir)
}

// fsUUID reads the superblock of a filesystem by its kind: ext2 to ext4 (Linux,
// Documentation/filesystems/ext4), xfs, or btrfs (its on-disk format).
func fsUUID(dev, kind string) string {
	super, magic, at, uuid := int64(1024), "\x53\xEF", 0x38, 0x68
	switch kind {
	case "xfs":
		super, magic, at, uuid = 0, "XFSB", 0, 32
	case "btrfs":
		super, magic, at, uuid = 64<<10, "_BHRfS_M", 0x40, 0x20
	}
	f, err := os.Open(dev)
	if err != nil {
		return ""
	}
	defer f.Close()
	var b [0x78]byte
	if _, err := f.ReadAt(b[:], super); err != nil || !bytes.HasPrefix(b[at:], []byte(magic)) {
		return ""
	}
	id := b[uuid : uuid+16]
	if bytes.Equal(id, make([]byte, 16)) {
		return ""
	}
	h := hex.EncodeToString(id)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// addresses are those of the system, without loopback and link-local ones.
func addresses() []string {
	var out []string
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() && len(out) < 32 {
			out = append(out, n.String())
		}
	}
	slices.Sort(out)
	return out
}
