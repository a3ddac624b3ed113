package lpmos

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"
)

// PlannedDisk is a disk beyond the first that an effect writes to.
type PlannedDisk struct {
	Disk       DiskRef            `json:"disk"`
	Partitions []PlannedPartition `json:"partitions"`
}

// PlannedArray is a RAID 1 that is made.
type PlannedArray struct {
	Name string `json:"name"`
	// Metadata is mdadm's version: 1.0, at the end of the members, where the
	// boot loader reads a member as if it were the filesystem; 1.2 elsewhere.
	Metadata  string   `json:"metadata"`
	UUID      string   `json:"uuid"`
	Members   []string `json:"members"` // PartUUIDs
	SizeBytes int64    `json:"size_bytes"`
	FS        string   `json:"fs,omitempty"`
	FSUUID    string   `json:"fs_uuid,omitempty"`
	Mount     string   `json:"mount,omitempty"`
}

// PlannedCrypt is a LUKS2 container that is made. What its passphrase is, only
// the secret SecretDisk says.
type PlannedCrypt struct {
	// Name is that of the open container, and in the question at the console. It
	// ends in digits that no other machine has.
	Name      string `json:"name"`
	UUID      string `json:"uuid"`
	On        string `json:"on"` // a PartUUID, or the name of an array
	SizeBytes int64  `json:"size_bytes"`
	FS        string `json:"fs,omitempty"`
	FSUUID    string `json:"fs_uuid,omitempty"`
	Mount     string `json:"mount,omitempty"`
}

// PlannedGroup is a volume group that is made. Its name ends in digits that no
// other machine has, so that a disk which is moved brings no second one of its
// name.
type PlannedGroup struct {
	Name    string          `json:"name"`
	On      []string        `json:"on"` // PartUUIDs, or names of arrays and containers
	Volumes []PlannedVolume `json:"volumes"`
}

// PlannedVolume is a logical volume.
type PlannedVolume struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"` // of the last one: about; it takes what is left
	Rest      bool   `json:"rest,omitempty"`
	FS        string `json:"fs"`
	UUID      string `json:"uuid"`
	Mount     string `json:"mount,omitempty"`
}

// PlannedFS is a filesystem of an effect, wherever it lies.
type PlannedFS struct {
	Kind      string // "partition", "array", "crypt" or "volume"
	Name      string // the partition's PartUUID, the array's or container's name, "group/volume"
	FS, UUID  string
	Mount     string
	SizeBytes int64
}

// Disks are all disks that the effect writes to, the first first.
func (e *Effect) Disks() []PlannedDisk {
	return append([]PlannedDisk{{e.Target, e.Partitions}}, e.Also...)
}

// Writes reports whether the effect writes to a disk.
func (e *Effect) Writes(d DiskRef) bool {
	return d != (DiskRef{}) && slices.ContainsFunc(e.Disks(), func(p PlannedDisk) bool { return p.Disk == d })
}

// RunsFrom reports whether a disk, as the installed system found it, is one that
// the effect writes to. One with neither serial number nor WWN is known by its
// size alone: each kernel has a path of its own for it.
func (e *Effect) RunsFrom(d DiskRef) bool {
	d.Path = ""
	return d.SizeBytes > 0 && slices.ContainsFunc(e.Disks(), func(p PlannedDisk) bool { p.Disk.Path = ""; return p.Disk == d })
}

// Filesystems are all that are made and mounted, or swapped to, but the EFI
// system partitions: in the order in which they can be mounted.
func (e *Effect) Filesystems() []PlannedFS {
	var out []PlannedFS
	for _, d := range e.Disks() {
		for _, p := range d.Partitions {
			if p.FS != "" && p.Role != "esp" {
				out = append(out, PlannedFS{"partition", p.PartUUID, p.FS, p.UUID, p.Mount, p.SizeBytes})
			}
		}
	}
	for _, a := range e.Arrays {
		if a.FS != "" {
			out = append(out, PlannedFS{"array", a.Name, a.FS, a.FSUUID, a.Mount, a.SizeBytes})
		}
	}
	for _, c := range e.Crypts {
		if c.FS != "" {
			out = append(out, PlannedFS{"crypt", c.Name, c.FS, c.FSUUID, c.Mount, c.SizeBytes})
		}
	}
	for _, g := range e.Groups {
		for _, v := range g.Volumes {
			out = append(out, PlannedFS{"volume", g.Name + "/" + v.Name, v.FS, v.UUID, v.Mount, v.SizeBytes})
		}
	}
	slices.SortStableFunc(out, func(a, b PlannedFS) int { return strings.Compare(a.Mount, b.Mount) })
	return out
}

// Root is the filesystem that is mounted at /. ok is false for a disk image,
// which brings its own.
func (e *Effect) Root() (fs PlannedFS, ok bool) { return e.mountedAt("/") }

// Boot is the filesystem the boot loader reads: /boot, or / where that is one.
func (e *Effect) Boot() (fs PlannedFS, ok bool) {
	if fs, ok := e.mountedAt("/boot"); ok {
		return fs, true
	}
	return e.Root()
}

func (e *Effect) mountedAt(mount string) (PlannedFS, bool) {
	for _, fs := range e.Filesystems() {
		if fs.Mount == mount {
			return fs, true
		}
	}
	return PlannedFS{}, false
}

// BootDisk is how the region's boot helper finds the disk: by what the boot
// loader reads, which a GRUB can read too, or by the name of a whole-disk image.
func (e *Effect) BootDisk() *BootDisk {
	if e.BootID != "" {
		return &BootDisk{RootUUID: e.BootID, ESPUUID: e.BootID, BootMode: e.BootMode}
	}
	fs, _ := e.Boot()
	esp, _ := e.Partition("esp")
	return &BootDisk{RootUUID: fs.UUID, ESPUUID: esp.UUID, BootMode: e.BootMode}
}

// laid is the part of an effect that is about disks, with what it costs.
type laid struct {
	disks   []Disk
	effect  Effect   // Target, Partitions, Also, Arrays, Crypts, Groups, Layout, Method
	members []string // "a/boot": partitions that are members of arrays
}

func (l laid) apply(p *Plan) {
	e := l.effect
	p.Effect.Target, p.Effect.Partitions, p.Effect.Also = e.Target, e.Partitions, e.Also
	p.Effect.Arrays, p.Effect.Crypts, p.Effect.Groups = e.Arrays, e.Crypts, e.Groups
	p.Effect.Layout, p.Effect.Method, p.Effect.BootID = e.Layout, e.Method, e.BootID
	for _, d := range l.disks {
		for _, h := range hazards(d) {
			if len(l.disks) > 1 {
				h = "disk " + d.Ref().String() + ": " + h
			}
			p.Hazards = append(p.Hazards, h)
		}
	}
}

// files is what is written after the image, for people to see: a disk image
// keeps its own fstab and boot loader, a declared layout needs more than fstab.
func (l laid) files(all []PlannedFile) []PlannedFile {
	if l.effect.Method == FormatInstaller {
		return all
	}
	if l.effect.Method == FormatDisk {
		return slices.DeleteFunc(slices.Clone(all), func(f PlannedFile) bool {
			return f.Path == "/etc/fstab" || strings.HasPrefix(f.Path, "/boot/")
		})
	}
	if len(l.effect.Arrays) > 0 {
		all = append(slices.Clone(all), PlannedFile{Path: "/etc/mdadm/mdadm.conf, /etc/mdadm.conf", Mode: "0644", What: "the arrays by UUID"})
	}
	if len(l.effect.Crypts) > 0 {
		all = append(slices.Clone(all), PlannedFile{Path: "/etc/crypttab", Mode: "0644", What: "the encrypted containers by UUID; the passphrase is asked for at the console"})
	}
	if l.effect.NeedsInitramfs() {
		all = append(slices.Clone(all), PlannedFile{Path: "/boot/initrd.img-*", Mode: "0644", What: "made anew by the image's own tools, confined: no network, no disk"})
	}
	return all
}

// layOut decides which disks are written and how they are divided. problem says
// why it cannot be.
func layOut(t *Task, h *Hardware, img Image) (l laid, problem string) {
	switch img.Kind() {
	case FormatDisk, FormatTar, FormatInstaller:
		l.effect.Method = img.Format
	case FormatExt4:
	default:
		return l, "The image " + img.Name() + " has a format that this version cannot install: " + img.Format + "."
	}
	if !t.Layout.Plain() {
		if l.effect.Method != FormatTar {
			what := "a filesystem, which fits one partition"
			switch l.effect.Method {
			case FormatDisk:
				what = "a whole disk with partitions of its own"
			case FormatInstaller:
				what = "an installer, which divides the disk itself"
			}
			return l, "The image " + img.Name() + " is " + what + ": it cannot be laid out as " + t.Layout.Name() + ". Use an image that is a tree of files, or no layout."
		}
		return l.declared(t, h, img)
	}
	disk, problem := chooseDisk(t, h, img)
	if problem != "" {
		return l, problem
	}
	l.disks = []Disk{disk}
	l.effect.Target, l.effect.Partitions = disk.Ref(), []PlannedPartition{}
	if l.effect.Method != FormatDisk && l.effect.Method != FormatInstaller {
		l.effect.Partitions = layout(t.ID, disk)
	} else if l.effect.BootID = bootID(t.ID, disk); l.effect.Method == FormatDisk && disk.SectorBytes != 512 {
		return laid{}, "The image " + img.Name() + " is of a disk with sectors of 512 bytes, and the disk has " + strconv.Itoa(disk.SectorBytes) + ": its partition table would mean other places. Use an image that is a tree of files."
	}
	return l, ""
}

// NeedsInitramfs reports whether the system starts from what the image's own
// initramfs knows nothing of.
func (e *Effect) NeedsInitramfs() bool { return len(e.Arrays)+len(e.Crypts)+len(e.Groups) > 0 }

func bootID(taskID string, d Disk) string {
	sum := sha256.Sum256([]byte("lpmos boot id\x00" + taskID + "\x00" + d.Ref().String()))
	return formatUUID([16]byte(sum[:16]), 8)
}

// declared lays out a layout that is not plain.
func (l laid) declared(t *Task, h *Hardware, img Image) (laid, string) {
	if err := t.Layout.Validate(); err != nil {
		return l, "The layout cannot be made: " + err.Error() + "."
	}
	want := t.Layout.resolve()
	chosen, problem := chooseDisks(t, h, want)
	if problem != "" {
		return l, problem
	}
	if t.Layout.Encrypted() && !slices.ContainsFunc(t.Committed, func(s PlannedSecret) bool { return s.Name == SecretDisk }) {
		return l, "The layout is encrypted, and the task has no passphrase for it (the secret " + SecretDisk + ")."
	}
	l.effect.Layout = t.Layout.Name()
	uuid := func(what string) string {
		refs := t.ID
		for _, d := range chosen {
			refs += "\x00" + d.Ref().String()
		}
		sum := sha256.Sum256([]byte("lpmos declared layout\x00" + refs + "\x00" + what))
		return formatUUID([16]byte(sum[:16]), 8)
	}
	partUUID, size := map[string]string{}, map[string]int64{} // by "a/boot"
	// encrypt puts a container on a partition or an array, which from then on is
	// what groups lie on.
	encrypt := func(name, label, on, fs, mount string) {
		c := PlannedCrypt{Name: label + "_" + uuid("container " + name)[:8], UUID: uuid("container " + name), On: on,
			SizeBytes: size[name] - luksHeaderBytes, FS: fs, Mount: mount}
		if fs != "" {
			c.FSUUID = uuid("filesystem in container " + name)
		}
		partUUID[name], size[name] = c.Name, c.SizeBytes
		l.effect.Crypts = append(l.effect.Crypts, c)
	}
	bootParts := want.bootParts()
	for _, a := range want.Arrays {
		l.members = append(l.members, a.Members...)
	}
	for i, d := range want.Disks {
		parts, problem := l.partitions(d, chosen[i], bootParts, uuid)
		if problem != "" {
			return l, problem
		}
		named := parts[len(parts)-len(d.Partitions):]
		for j, p := range d.Partitions {
			full := d.Name + "/" + p.Name
			partUUID[full], size[full] = named[j].PartUUID, named[j].SizeBytes
			if p.Encrypt {
				encrypt(full, p.Name, named[j].PartUUID, p.FS, p.Mount)
			}
		}
		l.disks = append(l.disks, chosen[i])
		if i == 0 {
			l.effect.Target, l.effect.Partitions = chosen[i].Ref(), parts
		} else {
			l.effect.Also = append(l.effect.Also, PlannedDisk{chosen[i].Ref(), parts})
		}
	}
	for _, a := range want.Arrays {
		p := PlannedArray{Name: a.Name, Metadata: "1.2", UUID: uuid("array " + a.Name), FS: a.FS, Mount: a.Mount}
		if slices.ContainsFunc(a.Members, func(m string) bool { return slices.Contains(bootParts, m) }) {
			p.Metadata = "1.0"
		}
		for _, m := range a.Members {
			p.Members = append(p.Members, partUUID[m])
			if n := size[m] - arrayOverhead(size[m]); p.SizeBytes == 0 || n < p.SizeBytes {
				p.SizeBytes = n
			}
		}
		size[a.Name] = p.SizeBytes
		if a.Encrypt {
			p.FS, p.Mount = "", ""
			encrypt(a.Name, a.Name, a.Name, a.FS, a.Mount)
		}
		if p.FS != "" {
			p.FSUUID = uuid("filesystem of array " + a.Name)
		}
		l.effect.Arrays = append(l.effect.Arrays, p)
	}
	for _, g := range want.Groups {
		p := PlannedGroup{Name: g.Name + "_" + uuid("group " + g.Name)[:8]}
		var room int64
		for _, on := range g.On {
			room += (size[on] - 4*mib) / extentBytes * extentBytes
			p.On = append(p.On, cmp.Or(partUUID[on], on))
		}
		for _, v := range g.Volumes {
			n := room
			if v.Size != "rest" {
				n, _ = ParseSize(v.Size)
				n = (n + extentBytes - 1) / extentBytes * extentBytes
			}
			if n > room || room < minFilesystemBytes && v.Size == "rest" {
				return l, "The volume group " + g.Name + " has no room for its volume " + v.Name + ": " + FormatBytes(max(room, 0)) + " are left."
			}
			room -= n
			p.Volumes = append(p.Volumes, PlannedVolume{v.Name, n, v.Size == "rest", v.FS, uuid("volume " + g.Name + "/" + v.Name), v.Mount})
		}
		l.effect.Groups = append(l.effect.Groups, p)
	}
	for _, fs := range l.effect.Filesystems() {
		if fs.FS == "xfs" && fs.SizeBytes < minXFSBytes {
			return l, "The filesystem at " + fs.Mount + " would have " + FormatBytes(fs.SizeBytes) + ", and xfs needs " + FormatBytes(minXFSBytes) + " at least: give it more room, or make it ext4."
		}
	}
	if root, _ := l.effect.Root(); root.SizeBytes < img.SizeBytes {
		return l, "The filesystem at / is too small: " + FormatBytes(root.SizeBytes) + ", and the image needs " + FormatBytes(img.SizeBytes) + "."
	}
	return l, ""
}

const (
	// extentBytes is LVM's unit.
	extentBytes = 4 * mib
	// minXFSBytes is the least that mkfs.xfs makes a filesystem of.
	minXFSBytes = 300 * mib
	// luksHeaderBytes is what cryptsetup leaves before the data of LUKS2.
	luksHeaderBytes = 16 * mib
)

// arrayOverhead is what mdadm keeps of a member for itself, at most: the space
// before the data that lets an array be reshaped, and the bitmap.
func arrayOverhead(member int64) int64 { return min(member/16, 132*mib) }

// bootParts are the partitions, "a/boot", that carry what the boot loader reads.
func (l Layout) bootParts() []string {
	for _, mount := range []string{"/boot", "/"} {
		for _, a := range l.Arrays {
			if a.Mount == mount {
				return a.Members
			}
		}
		for _, d := range l.Disks {
			for _, p := range d.Partitions {
				if p.Mount == mount {
					return []string{d.Name + "/" + p.Name}
				}
			}
		}
	}
	return nil
}

// partitions divides one disk.
func (l laid) partitions(d LayoutDisk, disk Disk, bootParts []string, uuid func(string) string) ([]PlannedPartition, string) {
	var out []PlannedPartition
	id := func(what string) string { return uuid("disk " + d.Name + " " + what) }
	if slices.ContainsFunc(d.Partitions, func(p LayoutPartition) bool { return slices.Contains(bootParts, d.Name+"/"+p.Name) }) {
		fat := strings.ToUpper(strings.ReplaceAll(id("esp filesystem"), "-", ""))
		out = append(out,
			PlannedPartition{Role: "bios-boot", SizeBytes: biosBootBytes, PartUUID: id("bios-boot")},
			PlannedPartition{Role: "esp", SizeBytes: espBytes, FS: "vfat", UUID: fat[:4] + "-" + fat[4:8], PartUUID: id("esp")})
		if len(l.disks) == 0 {
			out[1].Mount = "/boot/efi" // of the first disk; the others are copies
		}
	}
	room := (disk.SizeBytes - 2*GPTReserveBytes) / mib * mib
	for _, p := range out {
		room -= p.SizeBytes
	}
	for _, p := range d.Partitions {
		n := room
		if p.Size != "rest" {
			n, _ = ParseSize(p.Size)
		}
		if n > room || n < 64*mib {
			return nil, "The disk " + disk.Ref().String() + " is too small for the layout: " + FormatBytes(max(room, 0)) + " are left for its partition " + p.Name + "."
		}
		room -= n
		q := PlannedPartition{Role: "data", SizeBytes: n, FS: p.FS, PartUUID: id("partition " + p.Name), Mount: p.Mount}
		if p.Encrypt {
			q.FS, q.Mount = "", ""
		}
		switch {
		case p.Encrypt:
			q.Role = "crypt"
		case p.Mount == "/":
			q.Role = "root"
		case p.Mount == "/boot":
			q.Role = "boot"
		case p.FS == "swap":
			q.Role = "swap"
		case p.FS == "":
			q.Role = "lvm"
			if slices.Contains(l.members, d.Name+"/"+p.Name) {
				q.Role = "raid"
			}
		}
		if q.FS != "" {
			q.UUID = id("filesystem " + p.Name)
		}
		out = append(out, q)
	}
	for i := range out {
		out[i].Number = i + 1
	}
	return out, ""
}

// chooseDisks finds a disk of the machine for each of the layout, in its order.
// Rules that name a disk come first, so that no other takes it.
func chooseDisks(t *Task, h *Hardware, want Layout) ([]Disk, string) {
	chosen := make([]Disk, len(want.Disks))
	taken := map[DiskRef]bool{}
	if t.TargetDisk != nil {
		d, err := h.Disk(*t.TargetDisk)
		switch {
		case err != nil:
			return nil, "The disk asked for (" + t.TargetDisk.String() + ") is not in this machine."
		case !d.Installable():
			return nil, "The disk asked for (" + t.TargetDisk.String() + ") is removable, read-only or not local."
		}
		chosen[0], taken[d.Ref()] = d, true
	}
	for _, named := range []bool{true, false} {
		for i, w := range want.Disks {
			if (w.Serial != "" || w.WWN != "") != named || chosen[i].Device != "" {
				continue
			}
			var fit []Disk
			for _, d := range h.Disks {
				if d.Installable() && d.Serial+d.WWN != "" && !taken[d.Ref()] && w.matches(d) {
					fit = append(fit, d)
				}
			}
			if len(fit) == 0 {
				return nil, "The layout needs " + strconv.Itoa(len(want.Disks)) + " disks, and no disk of the machine is left for its disk " + w.Name + w.rule() + "."
			}
			slices.SortStableFunc(fit, leastDestructive)
			chosen[i], taken[fit[0].Ref()] = fit[0], true
		}
	}
	for _, d := range chosen {
		if h.BootMode == "bios" && d.SectorBytes != 512 {
			return nil, "The disk " + d.Ref().String() + " has sectors of " + strconv.Itoa(d.SectorBytes) + " bytes, which a BIOS cannot boot."
		}
	}
	return chosen, ""
}

func (w LayoutDisk) matches(d Disk) bool {
	return (w.Serial == "" || w.Serial == d.Serial) && (w.WWN == "" || w.WWN == d.WWN) &&
		d.SizeBytes >= max(w.MinBytes, w.need()) && (w.MaxBytes == 0 || d.SizeBytes <= w.MaxBytes)
}

// need is the least size of the disk, whatever it boots.
func (w LayoutDisk) need() int64 {
	n := int64(2*GPTReserveBytes + biosBootBytes + espBytes)
	for _, p := range w.Partitions {
		if p.Size == "rest" {
			n += minFilesystemBytes
			continue
		}
		bytes, _ := ParseSize(p.Size)
		n += bytes
	}
	return n
}

// rule says in words what a disk has to be.
func (w LayoutDisk) rule() string {
	var s []string
	if w.Serial != "" {
		s = append(s, "serial "+w.Serial)
	}
	if w.WWN != "" {
		s = append(s, "WWN "+w.WWN)
	}
	s = append(s, "at least "+FormatBytes(max(w.MinBytes, w.need())))
	if w.MaxBytes > 0 {
		s = append(s, "at most "+FormatBytes(w.MaxBytes))
	}
	return " (" + strings.Join(s, ", ") + ")"
}
