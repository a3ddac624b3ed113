package lpmos

import (
	"slices"
	"strings"
	"time"
)

// Hardware is what the agent found on a machine. Facts that identify the
// machine enter Digest; the rest is shown to people only.
type Hardware struct {
	BootMode   string  `json:"boot_mode"`             // "bios" or "uefi"
	SecureBoot *bool   `json:"secure_boot,omitempty"` // nil when the firmware has no such notion
	System     System  `json:"system"`
	Board      Board   `json:"board"`
	Chassis    Chassis `json:"chassis"`
	BIOS       BIOS    `json:"bios"`
	CPU        CPU     `json:"cpu"`
	Memory     Memory  `json:"memory"`
	Disks      []Disk  `json:"disks"`
	NICs       []NIC   `json:"nics"`
	Kernel     string  `json:"kernel,omitempty"` // release of the kernel the agent runs on
	Agent      string  `json:"agent,omitempty"`  // version of the agent
	BootMAC    MAC     `json:"boot_mac,omitzero"`
	TPM        *TPM    `json:"tpm,omitempty"` // nil for none
}

// Found is what identifies a machine and its disks: the part of its hardware
// that lists show and searches look through.
type Found struct {
	Serial       string      `json:"serial,omitempty"`
	Manufacturer string      `json:"manufacturer,omitempty"`
	Product      string      `json:"product,omitempty"`
	UUID         string      `json:"uuid,omitempty"`
	Disks        []FoundDisk `json:"disks,omitempty"`
}

// FoundDisk is one disk of a Found.
type FoundDisk struct {
	Serial string `json:"serial,omitempty"`
	Model  string `json:"model,omitempty"`
}

// Found is h in short.
func (h *Hardware) Found() *Found {
	f := &Found{Serial: h.System.Serial, Manufacturer: h.System.Manufacturer, Product: h.System.Product, UUID: h.System.UUID}
	for _, d := range h.Disks {
		f.Disks = append(f.Disks, FoundDisk{d.Serial, d.Model})
	}
	return f
}

// System is SMBIOS type 1.
type System struct {
	Manufacturer string `json:"manufacturer,omitempty"`
	Product      string `json:"product,omitempty"`
	Version      string `json:"version,omitempty"`
	Serial       string `json:"serial,omitempty"`
	UUID         string `json:"uuid,omitempty"` // lower case, as the kernel prints it
}

// Board is SMBIOS type 2.
type Board struct {
	Manufacturer string `json:"manufacturer,omitempty"`
	Product      string `json:"product,omitempty"`
	Serial       string `json:"serial,omitempty"`
}

// Chassis is SMBIOS type 3.
type Chassis struct {
	Manufacturer string `json:"manufacturer,omitempty"`
	Type         int    `json:"type,omitempty"` // SMBIOS enumeration, 23 = rack mount chassis
	Serial       string `json:"serial,omitempty"`
	AssetTag     string `json:"asset_tag,omitempty"`
}

// BIOS is SMBIOS type 0.
type BIOS struct {
	Vendor  string `json:"vendor,omitempty"`
	Version string `json:"version,omitempty"`
	Date    string `json:"date,omitempty"`
}

// CPU counts what is installed, not what the agent may use.
type CPU struct {
	Model        string `json:"model,omitempty"`
	Architecture string `json:"architecture"` // GOARCH spelling: amd64, arm64
	Sockets      int    `json:"sockets"`
	Cores        int    `json:"cores"`   // physical, all sockets
	Threads      int    `json:"threads"` // logical, all sockets
}

// Memory is what the kernel manages, a little less than what is installed.
type Memory struct {
	TotalBytes int64 `json:"total_bytes"`
}

// Disk is a whole block device. Device is how it is seen now and may change at
// the next boot; Serial and WWN decide which disk it is.
type Disk struct {
	Device                string  `json:"device"` // "/dev/sda"
	SizeBytes             int64   `json:"size_bytes"`
	SectorBytes           int     `json:"sector_bytes"` // logical, 512 or 4096
	PhysicalBytes         int     `json:"physical_sector_bytes,omitempty"`
	Vendor                string  `json:"vendor,omitempty"`
	Model                 string  `json:"model,omitempty"`
	Serial                string  `json:"serial,omitempty"`
	WWN                   string  `json:"wwn,omitempty"`
	Firmware              string  `json:"firmware,omitempty"`  // revision of the drive's own
	Transport             string  `json:"transport,omitempty"` // nvme, sata, sas, scsi, virtio, usb, mmc, iscsi, fc, nvme-tcp, nvme-rdma
	Rotational            bool    `json:"rotational"`
	Removable             bool    `json:"removable,omitempty"`
	ReadOnly              bool    `json:"read_only,omitempty"` // the device itself refuses writes
	Content               Content `json:"content"`
	ContentUnknownBecause string  `json:"content_unknown_because,omitempty"` // reading it went wrong
}

// Content is what is on a disk, or in a partition, now. It is found by reading
// only; an empty Content means that nothing known was found.
type Content struct {
	Table      string      `json:"table,omitempty"` // "gpt", "mbr" or ""
	TableID    string      `json:"table_id,omitempty"`
	Partitions []Partition `json:"partitions,omitempty"`
	Filesystem *Filesystem `json:"filesystem,omitempty"` // directly on the device
}

// Empty reports whether nothing was found.
func (c Content) Empty() bool { return c.Table == "" && len(c.Partitions) == 0 && c.Filesystem == nil }

// HoldsData reports whether something a person may miss was found: any
// filesystem or container signature. A partition table alone is not data.
func (c Content) HoldsData() bool {
	return c.Filesystem != nil || slices.ContainsFunc(c.Partitions, func(p Partition) bool { return p.Filesystem != nil })
}

// Partition is an entry of a partition table.
type Partition struct {
	Number     int         `json:"number"`
	StartBytes int64       `json:"start_bytes"`
	SizeBytes  int64       `json:"size_bytes"`
	Type       string      `json:"type,omitempty"` // GUID (lower case) or two hex digits
	Name       string      `json:"name,omitempty"`
	UUID       string      `json:"uuid,omitempty"`
	Filesystem *Filesystem `json:"filesystem,omitempty"`
}

// Filesystem is a filesystem, or another signature such as swap, LVM2_member,
// linux_raid_member, crypto_LUKS, zfs_member (names as blkid has them).
type Filesystem struct {
	Type      string    `json:"type"`
	Label     string    `json:"label,omitempty"`
	UUID      string    `json:"uuid,omitempty"`
	SizeBytes int64     `json:"size_bytes,omitempty"`
	UsedBytes int64     `json:"used_bytes,omitempty"` // 0 when not known
	OS        string    `json:"os,omitempty"`         // PRETTY_NAME of os-release
	Hostname  string    `json:"hostname,omitempty"`
	WrittenAt time.Time `json:"written_at,omitzero"` // last write the superblock remembers, UTC
}

// NIC is a physical network interface.
type NIC struct {
	Name      string `json:"name"`
	MAC       MAC    `json:"mac"`
	Driver    string `json:"driver,omitempty"`
	Link      bool   `json:"link"`
	SpeedMbps int    `json:"speed_mbps,omitempty"` // 0 when not known
	Boot      bool   `json:"boot,omitempty"`       // the machine booted from it
	PCI       string `json:"pci,omitempty"`        // "0000:00:03.0"
}

// DiskRef names a disk by what does not change: serial number or WWN, and size.
// Path is used only for a disk that has neither, when a person insisted.
type DiskRef struct {
	Serial    string `json:"serial,omitempty"`
	WWN       string `json:"wwn,omitempty"`
	SizeBytes int64  `json:"size_bytes"`
	Path      string `json:"path,omitempty"`
}

// Ref is the name of d that survives a reboot.
func (d Disk) Ref() DiskRef {
	r := DiskRef{Serial: d.Serial, WWN: d.WWN, SizeBytes: d.SizeBytes}
	if r.Serial == "" && r.WWN == "" {
		r.Path = d.Device
	}
	return r
}

// Matches reports whether d is the disk that r names. Every part that r has
// must agree; size alone names nothing.
func (r DiskRef) Matches(d Disk) bool {
	if r.SizeBytes != d.SizeBytes || r.Serial != d.Serial || r.WWN != d.WWN {
		return false
	}
	if r.Serial == "" && r.WWN == "" {
		return r.Path != "" && r.Path == d.Device
	}
	return true
}

// Disk finds the one disk that r names.
func (h *Hardware) Disk(r DiskRef) (Disk, error) {
	var found []Disk
	for _, d := range h.Disks {
		if r.Matches(d) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return Disk{}, &InvalidError{Field: "disk", Problem: "is not in this machine", Value: r.String()}
	case 1:
		return found[0], nil
	}
	return Disk{}, &InvalidError{Field: "disk", Problem: "is in this machine more than once, so its name decides nothing", Value: r.String()}
}

func (r DiskRef) String() string {
	var parts []string
	if r.Serial != "" {
		parts = append(parts, "serial "+r.Serial)
	}
	if r.WWN != "" {
		parts = append(parts, "wwn "+r.WWN)
	}
	if r.Path != "" {
		parts = append(parts, r.Path)
	}
	parts = append(parts, FormatBytes(r.SizeBytes))
	return strings.Join(parts, ", ")
}

// Installable reports whether d may ever be chosen as a target: a fixed,
// writable, local disk.
func (d Disk) Installable() bool {
	switch d.Transport {
	case "usb", "iscsi", "fc", "nvme-tcp", "nvme-rdma":
		return false
	}
	return !d.Removable && !d.ReadOnly && d.SizeBytes > 0
}

// MACs are the addresses of all NICs, sorted, without duplicates or zeros.
func (h *Hardware) MACs() []MAC {
	var macs []MAC
	for _, n := range h.NICs {
		if !n.MAC.IsZero() {
			macs = append(macs, n.MAC)
		}
	}
	slices.SortFunc(macs, func(a, b MAC) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(macs)
}

// Digest is the SHA-256 over the canonical JSON of what identifies the
// machine. It does not change with a reboot, the NIC it booted from, the order
// in which the kernel found things, or what is on the disks.
func (h *Hardware) Digest() string {
	type disk struct {
		Serial, WWN, Transport string
		SizeBytes              int64
		Rotational             bool
	}
	id := struct {
		UUID, Serial, BoardSerial, BootMode string
		MACs                                []MAC
		Disks                               []disk
		TPM                                 string `json:",omitempty"` // its fingerprint
	}{
		UUID: strings.ToLower(h.System.UUID), Serial: h.System.Serial, BoardSerial: h.Board.Serial,
		BootMode: h.BootMode, MACs: h.MACs(), TPM: h.TPM.Fingerprint(),
	}
	for _, d := range h.Disks {
		if d.Installable() {
			id.Disks = append(id.Disks, disk{d.Serial, d.WWN, d.Transport, d.SizeBytes, d.Rotational})
		}
	}
	slices.SortFunc(id.Disks, func(a, b disk) int {
		if c := strings.Compare(a.Serial+"\x00"+a.WWN, b.Serial+"\x00"+b.WWN); c != 0 {
			return c
		}
		return int(min(1, max(-1, a.SizeBytes-b.SizeBytes)))
	})
	return DigestOf(id)
}

// UniqueUUID reports whether a system UUID is one machine's own: boards whose
// maker set none carry one of a few that many share.
func UniqueUUID(uuid string) bool {
	switch uuid = strings.ToLower(uuid); uuid {
	case "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
		"03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009":
		return false
	default:
		return ValidTaskID(uuid)
	}
}

// UUIDSpellings are the two ways in which one machine's UUID may be written,
// lower case: up to SMBIOS 2.5 the first three fields were often stored
// big-endian, and firmware, iPXE and kernels do not agree on which it is. They
// come in an order of their own, so that the first is the same whichever was
// given; none where it is no machine's own (UniqueUUID).
func UUIDSpellings(uuid string) []string {
	if !UniqueUUID(uuid) {
		return nil
	}
	u := strings.ToLower(uuid)
	swapped := u[6:8] + u[4:6] + u[2:4] + u[0:2] + "-" + u[11:13] + u[9:11] + "-" + u[16:18] + u[14:16] + u[18:]
	return []string{min(u, swapped), max(u, swapped)}
}

// CanonicalUUID is the one spelling of a machine's UUID by which it is compared,
// see UUIDSpellings; "" where it is no machine's own.
func CanonicalUUID(uuid string) string {
	if all := UUIDSpellings(uuid); all != nil {
		return all[0]
	}
	return ""
}
