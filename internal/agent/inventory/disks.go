package inventory

import (
	"math"
	"path"
	"regexp"
	"strings"

	"github.com/lpmos/lpmos"
)

// notDisks are names in /sys/block that are no disk of the machine: memory,
// loops, mappings over other disks, optical drives, floppies, network block
// devices, boot and replay-protected partitions of eMMC, raw flash, and the
// hidden paths (nvme0c1n1) below a multipath NVMe namespace.
var notDisks = regexp.MustCompile(`^(loop|ram|zram|dm-|md|sr|scd|fd|nbd|rbd|drbd|zd|bcache|ublkb|mtdblock|ubiblock|nullb)[0-9]|^mmcblk[0-9]+(boot[0-9]+|rpmb|gp[0-9]+)$|^nvme[0-9]+c[0-9]+n[0-9]+$|^(md|drbd)_`)

// disks lists whole block devices in natural order of their names. Sizes in
// /sys/block/*/size count 512 bytes whatever the sector size (Linux,
// Documentation/ABI/stable/sysfs-block). Drives without a medium are left out.
func disks(sys tree) []lpmos.Disk {
	var found []lpmos.Disk
	for _, name := range sys.names("block") {
		b := path.Join("block", name)
		real := sys.resolve(b)
		// Namespaces of NVMe subsystems and fabrics are the only disks that the
		// kernel files under virtual devices.
		virtual := strings.HasPrefix(real, "devices/virtual/") && !strings.HasPrefix(real, "devices/virtual/nvme-")
		if real == "" || notDisks.MatchString(name) || virtual || sys.flag(b, "hidden") {
			continue
		}
		d := lpmos.Disk{
			Device:        "/dev/" + name,
			SectorBytes:   sectorSize(sys, 512, b, "queue/logical_block_size"),
			PhysicalBytes: sectorSize(sys, 0, b, "queue/physical_block_size"),
			Vendor:        vendor(sys, b),
			Model:         firstFact(sys, b, "device/model", "device/name"),
			Serial:        diskSerial(sys, b),
			WWN:           wwn(sys, b),
			Firmware:      firstFact(sys, b, "device/firmware_rev", "device/rev", "device/fwrev"), // NVMe, SCSI and SATA, MMC
			Transport:     transport(sys, name, real),
			Rotational:    sys.flag(b, "queue/rotational"),
			Removable:     sys.flag(b, "removable"),
			ReadOnly:      sys.flag(b, "ro") && !isClosed("/dev/"+name),
		}
		if n, ok := sys.number(b, "size"); ok && n <= math.MaxInt64/512 {
			d.SizeBytes = n * 512
		}
		if d.SizeBytes == 0 && d.Removable {
			continue
		}
		if found = append(found, d); len(found) == maxDisks {
			break
		}
	}
	return found
}

// sectorSize is a power of two from 512 to 64 KiB, or otherwise what it is
// taken for.
func sectorSize(sys tree, otherwise int, elem ...string) int {
	n, ok := sys.number(elem...)
	if !ok || n < 512 || n > 64<<10 || n&(n-1) != 0 {
		return otherwise
	}
	return int(n)
}

func firstFact(sys tree, dir string, names ...string) string {
	for _, n := range names {
		if s := fact(sys.text(dir, n)); s != "" {
			return s
		}
	}
	return ""
}

// vendor is what SCSI devices have. Those of virtio and NVMe are numbers of
// PCI, which say no more than the model does.
func vendor(sys tree, block string) string {
	v := firstFact(sys, block, "device/vendor")
	if strings.HasPrefix(v, "0x") {
		return ""
	}
	return v
}

// diskSerial asks where each kind of disk keeps its serial number: virtio in
// the block device, NVMe and MMC in the device, SCSI and ATA in page 0x80 of
// their vital product data.
func diskSerial(sys tree, block string) string {
	if s := firstFact(sys, block, "serial", "device/serial"); s != "" {
		return s
	}
	return fact(parseVPD80(sys.bytes(block+"/device/vpd_pg80", maxAttribute)))
}

// parseVPD80 is the unit serial number of SPC-4, 7.8.15: a byte of peripheral
// qualifier and type, the page code 0x80, a big-endian length, ASCII.
func parseVPD80(b []byte) string {
	if len(b) < 4 || b[1] != 0x80 {
		return ""
	}
	n := int(b[2])<<8 | int(b[3])
	return Clean(string(b[4:][:min(n, len(b)-4)]))
}

// wwn is the world-wide name with its kind in front, as the kernel has it:
// naa.…, eui.…, t10.…, uuid.…, nvme.…
func wwn(sys tree, block string) string {
	for _, name := range []string{"wwid", "device/wwid"} {
		s := sys.text(block, name)
		kind, id, ok := strings.Cut(s, ".")
		if ok && kind != "" && fact(id) != "" {
			return s
		}
	}
	return ""
}

// transports tells by one element of a disk's path in sysfs how it is attached,
// in the order in which they count: a SATA disk in a USB enclosure is on USB.
var transports = []struct {
	element *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`^usb[0-9]+$`), "usb"},
	{regexp.MustCompile(`^session[0-9]+$`), "iscsi"},
	{regexp.MustCompile(`^rport-[0-9]+:`), "fc"},
	{regexp.MustCompile(`^end_device-[0-9]+:`), "sas"},
	{regexp.MustCompile(`^ata[0-9]+$`), "sata"},
	{regexp.MustCompile(`^mmc_host$`), "mmc"},
	{regexp.MustCompile(`^target[0-9]+:`), "scsi"},
	{regexp.MustCompile(`^virtio[0-9]+$`), "virtio"},
}

func transport(sys tree, name, real string) string {
	if strings.HasPrefix(name, "nvme") {
		return nvmeTransport(sys, "block/"+name+"/device")
	}
	elements := strings.Split(real, "/")
	for _, t := range transports {
		for _, e := range elements {
			if t.element.MatchString(e) {
				return t.name
			}
		}
	}
	return ""
}

// nvmeTransport is nvme for a drive in the machine and fc, nvme-tcp, nvme-rdma
// for one behind a fabric. The device of a multipath namespace is a subsystem,
// and each controller below it has a transport.
func nvmeTransport(sys tree, device string) string {
	controllers := []string{device}
	for _, n := range sys.names(device) {
		if strings.HasPrefix(n, "nvme") {
			controllers = append(controllers, path.Join(device, n))
		}
	}
	for _, c := range controllers {
		switch t := sys.text(c, "transport"); t {
		case "", "pcie":
		case "fc":
			return "fc"
		default:
			return "nvme-" + t
		}
	}
	return "nvme"
}
