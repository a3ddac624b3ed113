package callhome

import (
	"bytes"
	"context"
	"encoding/binary"
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
	number := rootDevice(text("proc/self/mountinfo", 1<<20))
	if number == "" {
		return r
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(root, "sys/dev/block", number))
	if err != nil {
		return r
	}
	r.RootFSUUID = fsUUID(filepath.Join(root, "dev", filepath.Base(dir)))
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

// rootDevice is "major:minor" of what is mounted last on /, "" when that is not
// a block device (proc(5), mountinfo).
func rootDevice(mountinfo string) string {
	var found string
	for line := range strings.Lines(mountinfo) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			found = f[2]
		}
	}
	if strings.HasPrefix(found, "0:") {
		return ""
	}
	return found
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

// fsUUID reads the superblock of an ext4 (Linux, Documentation/filesystems/ext4:
// at 1024 bytes, magic at 0x38, UUID at 0x68) or of an xfs (at 0, magic first,
// UUID at 32).
func fsUUID(dev string) string {
	f, err := os.Open(dev)
	if err != nil {
		return ""
	}
	defer f.Close()
	var b [2048]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return ""
	}
	var id []byte
	switch {
	case string(b[:4]) == "XFSB":
		id = b[32:48]
	case binary.LittleEndian.Uint16(b[1024+0x38:]) == 0xEF53:
		id = b[1024+0x68 : 1024+0x78]
	}
	if bytes.Equal(id, make([]byte, len(id))) {
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
