package web

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

// What a disk holds, in words.

// signatureWords are blkid's names for what is no filesystem but holds one.
var signatureWords = map[string]string{
	"linux_raid_member": "part of a RAID array", "LVM2_member": "part of an LVM group", "crypto_LUKS": "encrypted volume (LUKS)",
	"zfs_member": "part of a ZFS pool", "isw_raid_member": "part of a firmware RAID", "ddf_raid_member": "part of a firmware RAID",
}

func typeWords(t string) string { return cmp.Or(signatureWords[t], t) }

func filesystemWords(f *lpmos.Filesystem) string {
	s := typeWords(f.Type)
	switch {
	case f.OS != "":
		s = f.OS
	case f.Label != "":
		s += " “" + f.Label + "”"
	}
	if f.Hostname != "" {
		s += " of host " + f.Hostname
	}
	return s
}

// held is everything found, the operating system first.
type held struct {
	Blank   bool
	Unknown string // why it could not be read
	OS      string // "CentOS Linux 7.9"
	Host    string // what the installed system calls itself
	Used    int64  // bytes in use, as far as filesystems say so
	Names   []string
}

func holds(c lpmos.Content, unknown string) held {
	h := held{Blank: c.Empty() && unknown == "", Unknown: unknown}
	add := func(f *lpmos.Filesystem) {
		if f == nil {
			return
		}
		h.Used += f.UsedBytes
		if f.OS != "" && h.OS == "" {
			h.OS, h.Host = f.OS, f.Hostname
			return
		}
		h.Names = append(h.Names, filesystemWords(f))
	}
	add(c.Filesystem)
	for _, p := range c.Partitions {
		add(p.Filesystem)
	}
	return h
}

// String is one line for tables: "blank", "CentOS Linux 7.9, 412 GB in use".
func (h held) String() string {
	var parts []string
	switch {
	case h.Unknown != "":
		return "could not be read: " + h.Unknown
	case h.Blank:
		return "blank"
	case h.OS != "" && h.Host != "":
		parts = append(parts, h.OS+" of host "+h.Host)
	case h.OS != "":
		parts = append(parts, h.OS)
	case len(h.Names) > 3:
		parts = append(parts, h.Names[0], fmt.Sprintf("%d other filesystems", len(h.Names)-1))
	case len(h.Names) > 0:
		parts = append(parts, h.Names...)
	default:
		return "a partition table, no filesystem found"
	}
	if h.Used > 0 {
		parts = append(parts, size(h.Used)+" in use")
	}
	return strings.Join(parts, ", ")
}

func diskTitle(d lpmos.Disk) string {
	var parts []string
	name := strings.TrimSpace(strings.TrimSpace(d.Vendor) + " " + strings.TrimSpace(d.Model))
	if name != "" {
		parts = append(parts, name)
	}
	parts = append(parts, transportWords(d))
	return strings.Join(parts, ", ")
}

func transportWords(d lpmos.Disk) string {
	kind := "SSD"
	if d.Rotational {
		kind = "hard disk"
	}
	names := map[string]string{"nvme": "NVMe", "sata": "SATA", "sas": "SAS", "scsi": "SCSI", "virtio": "virtio", "usb": "USB", "mmc": "MMC", "iscsi": "iSCSI", "fc": "Fibre Channel"}
	if n, ok := names[d.Transport]; ok {
		if d.Transport == "nvme" {
			return n
		}
		return n + " " + kind
	}
	return kind
}

// diskID is the name of a disk that survives a reboot, and what kind of name
// it is.
func diskID(r lpmos.DiskRef) (kind, id string) {
	switch {
	case r.Serial != "":
		return "Serial number", r.Serial
	case r.WWN != "":
		return "WWN", r.WWN
	}
	return "Path", r.Path
}

// model names a machine by its maker's words.
func model(h *lpmos.Hardware) string {
	if h == nil {
		return ""
	}
	s := strings.TrimSpace(h.System.Manufacturer + " " + h.System.Product)
	if s == "" {
		return "machine of an unnamed maker"
	}
	return s
}

func cpuWords(c lpmos.CPU) string {
	// The marks are in the model string of every processor and say nothing.
	s := strings.Join(strings.Fields(strings.NewReplacer("(R)", "", "(TM)", "", "(tm)", "").Replace(c.Model)), " ")
	if s == "" {
		s = c.Architecture + " processor"
	}
	if c.Sockets > 1 {
		s = fmt.Sprintf("%d × %s", c.Sockets, s)
	}
	if c.Cores > 0 {
		s += ", " + plural(c.Cores, "core", "cores")
		if c.Threads > c.Cores {
			s += fmt.Sprintf(", %d threads", c.Threads)
		}
	}
	return s
}

func firmwareWords(h *lpmos.Hardware) string {
	mode := map[string]string{"uefi": "UEFI", "bios": "BIOS"}[h.BootMode]
	if mode == "" {
		mode = h.BootMode
	}
	s := strings.TrimSpace(mode + ", " + strings.TrimSpace(h.BIOS.Vendor+" "+h.BIOS.Version))
	s = strings.TrimSuffix(s, ",")
	if date, err := time.Parse("01/02/2006", h.BIOS.Date); err == nil { // SMBIOS writes the month first
		s += " of " + date.Format("2 Jan 2006")
	} else if h.BIOS.Date != "" {
		s += " of " + h.BIOS.Date
	}
	return s
}

func secureBootWords(h *lpmos.Hardware) string {
	switch {
	case h.SecureBoot == nil:
		return "not available"
	case *h.SecureBoot:
		return "on"
	}
	return "off"
}

func linkWords(n lpmos.NIC) string {
	switch {
	case !n.Link:
		return "no link"
	case n.SpeedMbps <= 0:
		return "link"
	case n.SpeedMbps%1000 == 0:
		return fmt.Sprintf("%d%sGbit/s", n.SpeedMbps/1000, nbsp)
	}
	return fmt.Sprintf("%d%sMbit/s", n.SpeedMbps, nbsp)
}

// imageTitle is the catalogue's title of an image, or its name.
func imageTitle(images []lpmos.Image, os, version, arch string) string {
	for _, i := range images {
		if i.OS == os && i.Version == version && (arch == "" || i.Arch == arch) && i.Title != "" {
			return i.Title
		}
	}
	return os + " " + version
}

// causeWords are the events of a task's life.
var causeWords = map[lpmos.Cause]string{
	lpmos.CauseCreated:          "The task was created",
	lpmos.CauseHardwareReported: "The machine reported its hardware",
	lpmos.CausePlanChanged:      "The plan changed; it waits for a new approval",
	lpmos.CauseApproved:         "The plan was approved",
	lpmos.CauseRejected:         "The plan was rejected",
	lpmos.CauseCanceled:         "The task was canceled",
	lpmos.CauseApprovalExpired:  "The approval expired before it was used",
	lpmos.CausePermitGranted:    "The permit to erase was granted",
	lpmos.CauseNextAttempt:      "The machine began another attempt",
	lpmos.CauseResultReported:   "The installation is on the disk; the machine restarts from it",
	lpmos.CauseCalledHome:       "The installed system called home",
	lpmos.CauseFailed:           "The task failed",
	lpmos.CauseDeadline:         "Nothing was heard for too long",
	lpmos.CauseRetried:          "A retry was asked for",
}

func causeWord(c lpmos.Cause) string {
	if s, ok := causeWords[c]; ok {
		return s
	}
	return sentence(strings.ReplaceAll(string(c), "_", " "))
}

// The same thing from a shell, one function per command of the operator's tool.

func commandWatch(id string) string { return "lpmos task watch " + short(id) }
func commandShow(id string) string  { return "lpmos task show " + short(id) }
func commandApprove(id string, p *lpmos.Plan) string {
	s := "lpmos task approve " + id + " --plan " + p.Digest
	if p.ErasesData() {
		s += " --serial-end …" // typing it is the point
	}
	return s
}
func commandList(q string) string {
	if q == "" {
		return "lpmos task list"
	}
	return "lpmos task list " + q
}
func commandCreate(region, mac, os, version string) string {
	return "lpmos task create --region " + region + " --mac " + mac + " --os " + os + " --os-version " + version
}
