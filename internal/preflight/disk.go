package preflight

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/fstab"
	"github.com/lpmos/lpmos/internal/agent/inventory"
	"github.com/lpmos/lpmos/internal/rofs"
)

// Types of partitions (UEFI 2.10 table 5.7; Discoverable Partitions
// Specification).
const (
	typeESP      = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	typeBIOSBoot = "21686148-6449-6e6f-744e-656564454649"
	typeBoot     = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
)

// part is a partition with the volume in it, if it can be looked into.
type part struct {
	*lpmos.ImagePartition
	volume rofs.Volume
	closed error // why there is none
}

func (l *look) disk(r io.ReaderAt, size int64) error {
	head := make([]byte, 512+4096)
	if n, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the beginning of the image: %w", err)
	} else if n < 1024 {
		l.say("partition-table", lpmos.CheckProblem, "The image is too short to hold a partition table.")
		return nil
	}
	sector := 512
	if string(head[512:520]) != "EFI PART" && len(head) >= 4104 && string(head[4096:4104]) == "EFI PART" {
		sector = 4096
	}
	c, err := inventory.Probe(r, size, sector)
	if err != nil {
		return fmt.Errorf("read the partition table: %w", err)
	}
	switch {
	case c.Table == "" && c.Filesystem != nil:
		l.say("partition-table", lpmos.CheckProblem, "There is no partition table, but %s on the whole image: it is not the image of a disk.", c.Filesystem.Type)
		return nil
	case c.Table == "" || len(c.Partitions) == 0:
		l.say("partition-table", lpmos.CheckProblem, "There is no partition table with a partition in it.")
		return nil
	}
	d := &lpmos.ImageDisk{Table: c.Table, TableID: c.TableID, SectorBytes: sector, Loaders: []string{}}
	l.found.Manifest.Disk = d
	slices.SortFunc(c.Partitions, func(a, b lpmos.Partition) int { return int(min(1, max(-1, a.StartBytes-b.StartBytes))) })
	for _, p := range c.Partitions {
		if c.Table == "mbr" && (p.Type == "05" || p.Type == "0f" || p.Type == "85") {
			continue // holds the logical ones
		}
		q := lpmos.ImagePartition{Number: p.Number, Type: p.Type, UUID: p.UUID, Name: clip(p.Name, 72), StartBytes: p.StartBytes, SizeBytes: p.SizeBytes / int64(sector) * int64(sector)}
		if f := p.Filesystem; f != nil {
			q.FS, q.FSLabel, q.FSUUID = f.Type, clip(f.Label, 64), clip(f.UUID, 64)
		}
		d.Partitions = append(d.Partitions, q)
	}
	l.say("partition-table", lpmos.CheckOK, "%s with %d partitions, %d-byte sectors.", strings.ToUpper(c.Table), len(d.Partitions), sector)
	if sector == 4096 {
		l.say("disk", lpmos.CheckWarning, "Its partition table is for disks with sectors of 4096 bytes, and for no other.")
	} else {
		l.say("disk", lpmos.CheckOK, "It needs a disk of %s or more, with sectors of 512 bytes.", lpmos.FormatBytes(size))
	}
	var parts []part
	for i := range d.Partitions {
		q := &d.Partitions[i]
		p := part{ImagePartition: q}
		if q.FS != "" {
			p.volume, p.closed = rofs.Open(q.FS, io.NewSectionReader(r, q.StartBytes, q.SizeBytes), q.SizeBytes)
		}
		if q.FS == "ext4" {
			l.found.Ext4 = append(l.found.Ext4, lpmos.Range{Offset: q.StartBytes, Bytes: q.SizeBytes})
		}
		switch {
		case q.Type == typeBIOSBoot:
			q.Role, d.BIOSBoot = "bios-boot", q.Number
		case (q.Type == typeESP || q.Type == "ef") && d.ESP == 0:
			q.Role, d.ESP = "esp", q.Number
		case q.FS == "swap":
			q.Role = "swap"
		}
		parts = append(parts, p)
	}
	l.root(parts, d)
	l.loaders(head, parts, d)
	return nil
}

// root finds the partition with the root filesystem and joins the others to it
// as its fstab says.
func (l *look) root(parts []part, d *lpmos.ImageDisk) {
	var roots []part
	for _, p := range parts {
		if p.volume == nil || p.FS == "vfat" {
			continue
		}
		t := rofs.NewTree(p.volume)
		if t.Exists("/etc/os-release") || t.Exists("/usr/lib/os-release") || t.Exists("/etc/fstab") {
			roots = append(roots, p)
		}
	}
	if len(roots) == 0 {
		l.closedRoot(parts, d)
		return
	}
	root := roots[0]
	if len(roots) > 1 {
		l.take(root, d, lpmos.CheckWarning, "Several partitions look like a root filesystem; number %d is taken.", root.Number)
	} else {
		l.take(root, d, lpmos.CheckOK, "The root filesystem is %s on partition %d, %s.", root.FS, root.Number, last(parts, root))
	}
	l.tree = rofs.NewTree(root.volume)
	l.fstab(root, d)
	for _, p := range parts {
		switch {
		case d.Boot == 0 && p.Type == typeBoot && p.volume != nil:
			// Without an entry it is mounted by its type (Discoverable
			// Partitions Specification).
			d.Boot = p.Number
			fallthrough
		case p.Number == d.Boot:
			p.Role, p.Mount = "boot", "/boot"
			l.mount("/boot", p)
		case p.Number == d.ESP:
			if p.Mount == "" {
				p.Mount = "/boot/efi"
			}
			l.mount(p.Mount, p)
		case p.Number != d.Root && p.Mount != "":
			l.mount(p.Mount, p)
		}
	}
	if d.Boot != 0 {
		l.say("boot", lpmos.CheckOK, "/boot is a filesystem of its own, on partition %d.", d.Boot)
	} else {
		l.say("boot", lpmos.CheckOK, "/boot is part of the root filesystem.")
	}
	l.kernels(false)
	if entries, err := l.tree.ReadDir("/boot/loader/entries"); err == nil && slices.ContainsFunc(entries, func(e rofs.Entry) bool { return strings.HasSuffix(e.Name, ".conf") }) {
		d.Entries = "bls"
	} else if l.tree.Exists("/boot/grub/grub.cfg") || l.tree.Exists("/boot/grub2/grub.cfg") {
		d.Entries = "grub"
	} else {
		l.say("boot", lpmos.CheckWarning, "No boot menu was found: neither grub.cfg nor /boot/loader/entries.")
	}
	l.system()
}

// take makes p the root partition and says so, or that it cannot be: an agent
// grows a primary partition of the old kind of table, and no logical one.
func (l *look) take(p part, d *lpmos.ImageDisk, result, format string, args ...any) {
	d.Root, p.Role, p.Mount = p.Number, "root", "/"
	if d.Table == "mbr" && p.Number > 4 {
		l.say("root", lpmos.CheckProblem, "The root filesystem is on partition %d, in an extended one: an image of that kind cannot be fitted to a disk. Take one whose root filesystem is on a primary partition, or that has a GPT.", p.Number)
		return
	}
	l.say("root", result, format, args...)
}

// last says whether a partition can be grown: nothing may come behind it.
func last(parts []part, p part) string {
	if parts[len(parts)-1].Number == p.Number {
		return "the last on the disk, so it can be grown"
	}
	return "with another behind it, so it stays as large as it is"
}

func (l *look) mount(dir string, p part) {
	if p.volume == nil {
		l.say("boot", lpmos.CheckUnknown, "It was not possible to look inside partition %d (%s) for %s: %v.", p.Number, quote(p.FS, "unknown"), dir, reason(p.closed))
		return
	}
	l.tree.Mount(dir, p.volume)
}

func reason(err error) string {
	switch {
	case err == nil:
		return "it has no filesystem that is known"
	case errors.Is(err, rofs.ErrUnknownFilesystem):
		return "files of this filesystem cannot be read here"
	}
	return err.Error()
}

// closedRoot is for images whose root filesystem nobody here can read.
func (l *look) closedRoot(parts []part, d *lpmos.ImageDisk) {
	var largest part
	for _, p := range parts {
		if p.FS == "LVM2_member" || p.FS == "crypto_LUKS" || p.FS == "linux_raid_member" {
			l.say("root", lpmos.CheckProblem, "The root filesystem is inside %s on partition %d: an image of that kind cannot be fitted to a disk. Take the distribution's plain image.", p.FS, p.Number)
			return
		}
		if p.Role == "" && p.FS != "" && p.FS != "vfat" && (largest.ImagePartition == nil || p.SizeBytes > largest.SizeBytes) {
			largest = p
		}
	}
	if largest.ImagePartition == nil || largest.volume != nil {
		l.say("root", lpmos.CheckProblem, "No partition has a root filesystem: none has /etc/os-release or /etc/fstab.")
		return
	}
	l.found.Manifest.FirstBoot = "systemd"
	l.take(largest, d, lpmos.CheckUnknown, "It was not possible to look inside %s on partition %d, which is taken for the root filesystem: %s. What is in it is not known.", largest.FS, largest.Number, reason(largest.closed))
}

// fstab resolves what the image mounts at its start.
func (l *look) fstab(root part, d *lpmos.ImageDisk) {
	entries := fstab.Parse(l.text("/etc/fstab"))
	if len(entries) == 0 {
		l.say("fstab", lpmos.CheckWarning, "fstab is empty: the root filesystem is found by what the kernel is told.")
		return
	}
	fine := true
	for _, e := range entries {
		if !e.Disk() {
			continue
		}
		p := e.Partition(d.Partitions)
		switch {
		case strings.HasPrefix(e.Spec, "/dev/") && !strings.HasPrefix(e.Spec, "/dev/disk/by-"):
			fine = false
			l.say("fstab", lpmos.CheckWarning, "fstab mounts %s as %s, a name that other machines give to other disks.", clip(e.Mount, 64), clip(e.Spec, 64))
		case p == nil && e.Optional():
			fine = false
			l.say("fstab", lpmos.CheckWarning, "fstab names %s for %s, which is not in the image; it is optional.", clip(e.Spec, 80), clip(e.Mount, 64))
		case p == nil:
			fine = false
			l.say("fstab", lpmos.CheckProblem, "fstab names %s for %s, which is not in the image: it would not boot.", clip(e.Spec, 80), clip(e.Mount, 64))
		}
		if p == nil {
			continue
		}
		switch e.Mount {
		case "/":
			if p.Number != root.Number {
				fine = false
				l.say("fstab", lpmos.CheckProblem, "fstab names partition %d for the root filesystem, which is on partition %d.", p.Number, root.Number)
			}
		case "/boot":
			d.Boot = p.Number
		case "/boot/efi", "/efi":
			d.ESP = p.Number
			p.Role, p.Mount = "esp", e.Mount
		default:
			if strings.HasPrefix(e.Mount, "/") && p.Mount == "" && !slices.Contains(e.Options, "noauto") {
				p.Mount = path.Clean(clip(e.Mount, 128))
			}
		}
	}
	if fine {
		l.say("fstab", lpmos.CheckOK, "Every filesystem that fstab mounts is in the image.")
	}
}

// loaders finds what starts the image by BIOS and by UEFI.
func (l *look) loaders(head []byte, parts []part, d *lpmos.ImageDisk) {
	have := func(name string) {
		if !slices.Contains(d.Loaders, name) {
			d.Loaders = append(d.Loaders, name)
		}
	}
	if l.want.Arch == "amd64" {
		switch {
		case !bytes.Contains(head[:440], []byte("GRUB")):
			l.say("bios", lpmos.CheckWarning, "Sector 0 holds no boot loader: it cannot boot by BIOS.")
		case d.Table == "gpt" && d.BIOSBoot == 0:
			l.say("bios", lpmos.CheckWarning, "Sector 0 holds GRUB, but there is no BIOS boot partition for its second part: it cannot boot by BIOS.")
		default:
			have("grub-bios")
			l.found.BootModes = append(l.found.BootModes, "bios")
			l.say("bios", lpmos.CheckOK, "GRUB starts it by BIOS.")
		}
	}
	i := slices.IndexFunc(parts, func(p part) bool { return p.Number == d.ESP && d.ESP != 0 })
	if i < 0 {
		l.say("uefi", lpmos.CheckWarning, "There is no EFI system partition: it cannot boot by UEFI.")
		return
	}
	if parts[i].volume == nil {
		l.say("uefi", lpmos.CheckWarning, "The EFI system partition cannot be looked into: %s. It is not offered to machines that boot by UEFI.", reason(parts[i].closed))
		return
	}
	signed := l.espLoaders(rofs.NewTree(parts[i].volume), have)
	if len(d.Loaders) == 0 || len(d.Loaders) == 1 && d.Loaders[0] == "grub-bios" {
		l.say("uefi", lpmos.CheckWarning, "The EFI system partition holds no boot loader for %s: it cannot boot by UEFI.", l.want.Arch)
		return
	}
	l.found.BootModes = append(l.found.BootModes, "uefi")
	text := "It boots by UEFI: " + strings.Join(slices.DeleteFunc(slices.Clone(d.Loaders), func(s string) bool { return s == "grub-bios" }), ", ") + "."
	l.say("uefi", lpmos.CheckOK, "%s", text)
	if signed {
		l.found.Report.SecureBoot = true
		l.say("secure-boot", lpmos.CheckOK, "A signed shim is there, as Secure Boot wants it.")
	} else {
		l.say("secure-boot", lpmos.CheckWarning, "There is no signed shim: machines with Secure Boot switched on refuse it.")
	}
}

// espLoaders notes the loaders of an ESP for the wanted architecture and
// reports whether a shim with a signature is among them.
func (l *look) espLoaders(esp *rofs.Tree, have func(string)) (signed bool) {
	short, machine := "x64", uint16(0x8664)
	if l.want.Arch == "arm64" {
		short, machine = "aa64", 0xAA64
	}
	dirs, err := esp.ReadDir("/EFI")
	if err != nil {
		return false
	}
	for _, dir := range dirs {
		files, err := esp.ReadDir("/EFI/" + dir.Name)
		if err != nil {
			continue
		}
		for _, f := range files {
			b, err := esp.ReadHead("/EFI/"+dir.Name+"/"+f.Name, headBytes)
			if err != nil || PEMachine(b) != machine {
				continue
			}
			switch name := strings.ToLower(f.Name); name {
			case "shim" + short + ".efi":
				have("shim")
				signed = signed || PESigned(b)
			case "grub" + short + ".efi":
				have("grub-efi")
			case "systemd-boot" + short + ".efi":
				have("systemd-boot")
			case "boot" + short + ".efi":
				have("fallback")
			}
		}
	}
	return signed
}

// peOptional gives the optional header of a PE file and its machine (Microsoft
// PE format), nil for others.
func peOptional(b []byte) (opt []byte, machine uint16) {
	if len(b) < 64 || string(b[:2]) != "MZ" {
		return nil, 0
	}
	at := int64(binary.LittleEndian.Uint32(b[60:]))
	if at < 0 || at > int64(len(b))-24 || string(b[at:at+4]) != "PE\x00\x00" {
		return nil, 0
	}
	return b[at+24:], binary.LittleEndian.Uint16(b[at+4:])
}

// PEMachine is the machine a PE file is for: 0x8664, 0xAA64; 0 for other files.
func PEMachine(head []byte) uint16 {
	_, m := peOptional(head)
	return m
}

// PESigned reports whether a PE file carries a signature. Whose it is, and
// whether it is right, is the firmware's to say.
func PESigned(head []byte) bool {
	opt, _ := peOptional(head)
	if len(opt) < 152 || binary.LittleEndian.Uint16(opt) != 0x20B {
		return false
	}
	// The fifth data directory is the certificate table: place and length.
	return binary.LittleEndian.Uint32(opt[112+4*8:]) != 0 && binary.LittleEndian.Uint32(opt[112+4*8+4:]) != 0
}
