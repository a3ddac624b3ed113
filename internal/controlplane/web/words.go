package web

import (
	"fmt"
	"strconv"
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

func (s *tongue) typeWords(t string) string {
	if w, ok := signatureWords[t]; ok {
		return s.T(w)
	}
	return t
}

func (s *tongue) filesystemWords(f *lpmos.Filesystem) string {
	name := s.typeWords(f.Type)
	switch {
	case f.OS != "":
		name = f.OS
	case f.Label != "":
		name = s.T("%s “%s”", name, f.Label)
	}
	if f.Hostname != "" {
		return s.T("%s of host %s", name, f.Hostname)
	}
	return name
}

// held is everything found, the operating system first.
type held struct {
	Blank   bool
	Unknown string // why it could not be read
	OS      string // "CentOS Linux 7.9"
	Host    string // what the installed system calls itself
	Used    int64  // bytes in use, as far as filesystems say so
	Names   []string
	Written time.Time // the last write that a filesystem remembers
	s       *tongue
}

func (s *tongue) holds(c lpmos.Content, unknown string) held {
	h := held{Blank: c.Empty() && unknown == "", Unknown: unknown, s: s}
	add := func(f *lpmos.Filesystem) {
		if f == nil {
			return
		}
		h.Used += f.UsedBytes
		if f.WrittenAt.After(h.Written) {
			h.Written = f.WrittenAt
		}
		if f.OS != "" && h.OS == "" {
			h.OS, h.Host = f.OS, f.Hostname
			return
		}
		h.Names = append(h.Names, s.filesystemWords(f))
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
		return h.s.T("could not be read: %s", h.s.Said(h.Unknown))
	case h.Blank:
		return h.s.T("blank")
	case h.OS != "" && h.Host != "":
		parts = append(parts, h.s.T("%s of host %s", h.OS, h.Host))
	case h.OS != "":
		parts = append(parts, h.OS)
	case len(h.Names) > 3:
		parts = append(parts, h.Names[0], h.s.N(len(h.Names)-1, "1 other filesystem", "%s other filesystems"))
	case len(h.Names) > 0:
		parts = append(parts, h.Names...)
	default:
		return h.s.T("a partition table, no filesystem found")
	}
	if h.Used > 0 {
		parts = append(parts, h.s.T("%s in use", h.s.size(h.Used)))
	}
	return h.s.list(parts)
}

// list is things one after the other.
func (s *tongue) list(parts []string) string {
	if s.chinese() {
		return strings.Join(parts, "，")
	}
	return strings.Join(parts, ", ")
}

func (s *tongue) diskTitle(d lpmos.Disk) string {
	var parts []string
	name := strings.TrimSpace(strings.TrimSpace(d.Vendor) + " " + strings.TrimSpace(d.Model))
	if name != "" {
		parts = append(parts, name)
	}
	return s.list(append(parts, s.transportWords(d)))
}

func (s *tongue) transportWords(d lpmos.Disk) string {
	kind := s.T("SSD")
	if d.Rotational {
		kind = s.T("hard disk")
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
func (s *tongue) diskID(r lpmos.DiskRef) (kind, id string) {
	switch {
	case r.Serial != "":
		return s.T("Serial number"), r.Serial
	case r.WWN != "":
		return s.T("WWN"), r.WWN
	}
	return s.T("Path"), r.Path
}

// model names a machine by its maker's words.
func (s *tongue) model(h *lpmos.Hardware) string {
	if h == nil {
		return ""
	}
	name := strings.TrimSpace(h.System.Manufacturer + " " + h.System.Product)
	if name == "" {
		return s.T("machine of an unnamed maker")
	}
	return name
}

func (s *tongue) cpuWords(c lpmos.CPU) string {
	// The marks are in the model string of every processor and say nothing.
	name := strings.Join(strings.Fields(strings.NewReplacer("(R)", "", "(TM)", "", "(tm)", "").Replace(c.Model)), " ")
	if name == "" {
		name = s.T("%s processor", c.Architecture)
	}
	if c.Sockets > 1 {
		name = strconv.Itoa(c.Sockets) + " × " + name
	}
	parts := []string{name}
	if c.Cores > 0 {
		parts = append(parts, s.N(c.Cores, "1 core", "%s cores"))
		if c.Threads > c.Cores {
			parts = append(parts, s.N(c.Threads, "1 thread", "%s threads"))
		}
	}
	return s.list(parts)
}

func (s *tongue) firmwareWords(h *lpmos.Hardware) string {
	mode := map[string]string{"uefi": "UEFI", "bios": "BIOS"}[h.BootMode]
	if mode == "" {
		mode = h.BootMode
	}
	parts := []string{mode}
	maker := strings.TrimSpace(h.BIOS.Vendor + " " + h.BIOS.Version)
	date := h.BIOS.Date
	if d, err := time.Parse("01/02/2006", date); err == nil { // SMBIOS writes the month first
		date = s.day(d)
	}
	switch {
	case maker != "" && date != "":
		parts = append(parts, s.T("%s of %s", maker, date))
	case maker != "" || date != "":
		parts = append(parts, maker+date)
	}
	return s.list(parts)
}

func (s *tongue) secureBootWords(h *lpmos.Hardware) string {
	switch {
	case h.SecureBoot == nil:
		return s.T("not available")
	case *h.SecureBoot:
		return s.T("on")
	}
	return s.T("off")
}

func (s *tongue) linkWords(n lpmos.NIC) string {
	switch {
	case !n.Link:
		return s.T("no link")
	case n.SpeedMbps <= 0:
		return s.T("link")
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
	lpmos.CauseApprovalGiven:    "One of several people approved the plan",
	lpmos.CauseApproved:         "The plan was approved",
	lpmos.CauseRejected:         "The plan was rejected",
	lpmos.CauseCanceled:         "The task was canceled",
	lpmos.CauseApprovalExpired:  "The approval expired before it was used",
	lpmos.CausePermitGranted:    "The permit to erase was granted",
	lpmos.CauseNextAttempt:      "The machine began another attempt",
	lpmos.CauseResultReported:   "The installation is on the disk; the machine restarts from it",
	lpmos.CauseNotVerified:      "Everything is written; nobody waits for the installed system",
	lpmos.CauseCalledHome:       "The installed system called home",
	lpmos.CauseFailed:           "The task failed",
	lpmos.CauseDeadline:         "Nothing was heard for too long",
	lpmos.CauseRetried:          "A retry was asked for",
	lpmos.CauseAlarm:            "Somebody should look: an alarm",
}

func (s *tongue) causeWord(c lpmos.Cause) string {
	if text, ok := causeWords[c]; ok {
		return s.T(text)
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
