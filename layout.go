package lpmos

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Layout declares how the disks of a machine are divided: which disks, which
// partitions on each, and what is built on top of them. Every disk that carries
// what the firmware starts from also gets a BIOS boot partition and an EFI
// system partition, in front of the partitions named here.
//
// A layout is either a preset, by its name, or spelled out. It needs an image
// that is a tree of files (format "tar"): a filesystem image fits a layout of
// one partition only, a disk image brings its own. nil is the preset "plain".
type Layout struct {
	Preset string        `json:"preset,omitempty"` // one of LayoutPresets; the rest is empty then
	Disks  []LayoutDisk  `json:"disks,omitempty"`
	Arrays []LayoutArray `json:"arrays,omitempty"`
	Groups []LayoutGroup `json:"volume_groups,omitempty"`
}

// LayoutDisk is one disk and its partitions. Which of the machine's disks it is,
// is decided by the rule: everything that is said must hold. A rule that says
// nothing takes the disk an unasked choice would take: blank before used, small
// before large.
type LayoutDisk struct {
	Name       string            `json:"name"` // "a": how arrays and groups name it
	Serial     string            `json:"serial,omitempty"`
	WWN        string            `json:"wwn,omitempty"`
	MinBytes   int64             `json:"min_bytes,omitempty"`
	MaxBytes   int64             `json:"max_bytes,omitempty"`
	Partitions []LayoutPartition `json:"partitions"`
}

// LayoutPartition holds a filesystem, or is a member of one array or group.
type LayoutPartition struct {
	Name  string `json:"name"`            // "boot": arrays and groups say a/boot
	Size  string `json:"size"`            // "1 GiB", "20GB", or "rest" for the last one
	FS    string `json:"fs,omitempty"`    // "ext4", "xfs", "swap"; empty for a member
	Mount string `json:"mount,omitempty"` // "/srv"; none for swap
	// Encrypt puts a LUKS2 container between the partition and what lies on it:
	// its filesystem, or the volume group that names it. The passphrase is the
	// secret SecretDisk of the task.
	Encrypt bool `json:"encrypt,omitempty"`
}

// LayoutArray is a RAID 1 of partitions on different disks.
type LayoutArray struct {
	Name    string   `json:"name"`
	Members []string `json:"members"` // "a/root", "b/root"; none is encrypted
	FS      string   `json:"fs,omitempty"`
	Mount   string   `json:"mount,omitempty"`
	Encrypt bool     `json:"encrypt,omitempty"` // as LayoutPartition.Encrypt
}

// LayoutGroup is an LVM volume group on partitions or arrays.
type LayoutGroup struct {
	Name    string         `json:"name"`
	On      []string       `json:"on"` // "a/pv", or the name of an array
	Volumes []LayoutVolume `json:"volumes"`
}

// LayoutVolume is a logical volume.
type LayoutVolume struct {
	Name  string `json:"name"`
	Size  string `json:"size"` // as a partition's
	FS    string `json:"fs"`
	Mount string `json:"mount,omitempty"`
}

// LayoutPlain is the layout of a task that names none: one disk, one filesystem.
const LayoutPlain = "plain"

// presets are layouts by name. Sizes beside "rest" are those of what has to
// hold some kernels.
var presets = map[string]Layout{
	LayoutPlain: {},
	"xfs": {Disks: []LayoutDisk{{Name: "a", Partitions: []LayoutPartition{
		{Name: "boot", Size: "1 GiB", FS: "ext4", Mount: "/boot"}, {Name: "root", Size: "rest", FS: "xfs", Mount: "/"}}}}},
	"raid1": {
		Disks:  []LayoutDisk{{Name: "a", Partitions: mirrored("root")}, {Name: "b", Partitions: mirrored("root")}},
		Arrays: []LayoutArray{{Name: "boot", Members: []string{"a/boot", "b/boot"}, FS: "ext4", Mount: "/boot"}, {Name: "root", Members: []string{"a/root", "b/root"}, FS: "ext4", Mount: "/"}},
	},
	"lvm": {
		Disks: []LayoutDisk{{Name: "a", Partitions: []LayoutPartition{
			{Name: "boot", Size: "1 GiB", FS: "ext4", Mount: "/boot"}, {Name: "pv", Size: "rest"}}}},
		Groups: []LayoutGroup{{Name: "system", On: []string{"a/pv"}, Volumes: systemVolumes}},
	},
	"raid1-lvm": {
		Disks:  []LayoutDisk{{Name: "a", Partitions: mirrored("pv")}, {Name: "b", Partitions: mirrored("pv")}},
		Arrays: []LayoutArray{{Name: "boot", Members: []string{"a/boot", "b/boot"}, FS: "ext4", Mount: "/boot"}, {Name: "pv", Members: []string{"a/pv", "b/pv"}}},
		Groups: []LayoutGroup{{Name: "system", On: []string{"pv"}, Volumes: systemVolumes}},
	},
	// Swap is in the group, too, so that it is encrypted and one passphrase opens
	// all.
	"luks": {
		Disks: []LayoutDisk{{Name: "a", Partitions: []LayoutPartition{
			{Name: "boot", Size: "1 GiB", FS: "ext4", Mount: "/boot"}, {Name: "crypt", Size: "rest", Encrypt: true}}}},
		Groups: []LayoutGroup{{Name: "system", On: []string{"a/crypt"}, Volumes: systemVolumes}},
	},
	"raid1-luks": {
		Disks:  []LayoutDisk{{Name: "a", Partitions: mirrored("crypt")}, {Name: "b", Partitions: mirrored("crypt")}},
		Arrays: []LayoutArray{{Name: "boot", Members: []string{"a/boot", "b/boot"}, FS: "ext4", Mount: "/boot"}, {Name: "crypt", Members: []string{"a/crypt", "b/crypt"}, Encrypt: true}},
		Groups: []LayoutGroup{{Name: "system", On: []string{"crypt"}, Volumes: systemVolumes}},
	},
}

func mirrored(last string) []LayoutPartition {
	return []LayoutPartition{{Name: "boot", Size: "1 GiB"}, {Name: last, Size: "rest"}}
}

var systemVolumes = []LayoutVolume{{Name: "swap", Size: "1 GiB", FS: "swap"}, {Name: "root", Size: "rest", FS: "ext4", Mount: "/"}}

// LayoutPresets lists the names a Layout.Preset may have.
func LayoutPresets() []string { return slices.Sorted(maps.Keys(presets)) }

// Plain reports whether l is today's simple case: one disk, one filesystem.
func (l *Layout) Plain() bool {
	return l == nil || (l.Preset == LayoutPlain || l.Preset == "") && len(l.Disks)+len(l.Arrays)+len(l.Groups) == 0
}

// Name is the preset, or "own" for one that is spelled out.
func (l *Layout) Name() string {
	switch {
	case l.Plain():
		return LayoutPlain
	case l.Preset != "":
		return l.Preset
	}
	return "own"
}

// resolve is l spelled out.
func (l *Layout) resolve() Layout {
	if l.Preset != "" {
		return presets[l.Preset]
	}
	return *l
}

// Encrypted reports whether anything of l is, so that a passphrase is needed.
func (l *Layout) Encrypted() bool {
	if l.Plain() {
		return false
	}
	all := l.resolve()
	return slices.ContainsFunc(all.Disks, func(d LayoutDisk) bool {
		return slices.ContainsFunc(d.Partitions, func(p LayoutPartition) bool { return p.Encrypt })
	}) || slices.ContainsFunc(all.Arrays, func(a LayoutArray) bool { return a.Encrypt })
}

// Limits of a layout.
const (
	maxLayoutDisks      = 16
	maxLayoutPartitions = 32 // of a disk
	maxLayoutVolumes    = 32 // of a group
	minFilesystemBytes  = 300 * mib
)

var layoutNameRE = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)

// layoutFilesystems are those that can be made.
var layoutFilesystems = []string{"ext4", "xfs", "swap"}

// Validate checks that l can be made on disks that fit it. Its error names the
// part, such as "layout.disks[1].partitions[0].size".
func (l *Layout) Validate() error {
	if l.Plain() {
		return nil
	}
	if l.Preset != "" {
		switch _, ok := presets[l.Preset]; {
		case !ok:
			return layoutError("preset", "is not one of "+strings.Join(LayoutPresets(), ", "), l.Preset)
		case len(l.Disks)+len(l.Arrays)+len(l.Groups) > 0:
			return layoutError("preset", "and a layout that is spelled out exclude each other", l.Preset)
		}
		return nil
	}
	c := layoutCheck{used: map[string]string{}, parts: map[string]bool{}, arrays: map[string]bool{}, mounts: map[string]string{}, encrypted: map[string]bool{}}
	return c.check(l)
}

func layoutError(field, problem, value string) error {
	return &InvalidError{Field: "layout." + field, Problem: problem, Value: value}
}

// layoutCheck is what one pass over a layout has seen.
type layoutCheck struct {
	parts  map[string]bool   // "a/boot", without a filesystem of its own
	arrays map[string]bool   // without a filesystem of their own
	used   map[string]string // member → who uses it
	mounts map[string]string // mount point → field

	encrypted map[string]bool // "a/boot"
	roots     int
	bootOn    []string // the parts that carry what the boot loader reads; nil where it reads nothing
	bootFS    string
	rootOn    []string // likewise for "/", nil in a volume group or a LUKS container
	rootFS    string
}

func (c *layoutCheck) check(l *Layout) error {
	if len(l.Disks) == 0 || len(l.Disks) > maxLayoutDisks {
		return layoutError("disks", "must be 1 to "+strconv.Itoa(maxLayoutDisks), strconv.Itoa(len(l.Disks)))
	}
	names := map[string]bool{}
	for i, d := range l.Disks {
		if err := c.disk("disks["+strconv.Itoa(i)+"]", d, names); err != nil {
			return err
		}
	}
	for i, a := range l.Arrays {
		if err := c.array("arrays["+strconv.Itoa(i)+"]", a, names); err != nil {
			return err
		}
	}
	for i, g := range l.Groups {
		if err := c.group("volume_groups["+strconv.Itoa(i)+"]", g, names); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.parts)) {
		if c.used[name] == "" {
			return layoutError("disks", "have a partition with neither a filesystem nor a use in an array or group", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.arrays)) {
		if c.used[name] == "" {
			return layoutError("arrays", "have one with neither a filesystem nor a use in a group", name)
		}
	}
	if c.roots == 0 {
		return layoutError("disks", "carry no filesystem that is mounted at /", "")
	}
	return c.boot(l)
}

// boot checks that GRUB finds its menu: in the first partition of a disk, with
// ext4 on it or on a RAID 1 of such partitions. That is what the core image in
// the boot sector reads, and neither LVM nor xfs is in its way.
func (c *layoutCheck) boot(l *Layout) error {
	on, fs, what := c.bootOn, c.bootFS, "/boot"
	if _, separate := c.mounts["/boot"]; !separate {
		on, fs, what = c.rootOn, c.rootFS, "/"
		if on == nil {
			return layoutError("disks", "need a /boot of its own (ext4, on a partition or an array): the boot loader reads neither a volume group nor what is encrypted", "")
		}
		if fs != "ext4" {
			return layoutError("disks", "need a /boot of its own with ext4, because / is "+fs, "")
		}
	}
	if on == nil || fs != "ext4" {
		return layoutError("disks", "must have /boot as ext4 on a partition or an array of partitions, not encrypted: the boot loader reads nothing else", fs)
	}
	for _, d := range l.Disks {
		for i, p := range d.Partitions {
			if slices.Contains(on, d.Name+"/"+p.Name) && i > 0 {
				return layoutError("disks", "must have what carries "+what+" as the first partition of its disk, where the boot loader looks", d.Name+"/"+p.Name)
			}
		}
	}
	return nil
}

func (c *layoutCheck) disk(field string, d LayoutDisk, names map[string]bool) error {
	if !layoutNameRE.MatchString(d.Name) || names[d.Name] {
		return layoutError(field+".name", "is not a new name of at most 16 lower-case letters and digits", d.Name)
	}
	names[d.Name] = true
	if d.MinBytes < 0 || d.MaxBytes < 0 || d.MaxBytes > 0 && d.MaxBytes < d.MinBytes {
		return layoutError(field+".max_bytes", "is below min_bytes", "")
	}
	if len(d.Partitions) == 0 || len(d.Partitions) > maxLayoutPartitions {
		return layoutError(field+".partitions", "must be 1 to "+strconv.Itoa(maxLayoutPartitions), "")
	}
	for i, p := range d.Partitions {
		f := field + ".partitions[" + strconv.Itoa(i) + "]"
		full := d.Name + "/" + p.Name
		if !layoutNameRE.MatchString(p.Name) || c.parts[full] {
			return layoutError(f+".name", "is not a new name of at most 16 lower-case letters and digits", p.Name)
		}
		if err := checkLayoutSize(f+".size", p.Size, i == len(d.Partitions)-1); err != nil {
			return err
		}
		if slices.ContainsFunc(d.Partitions[:i], func(q LayoutPartition) bool { return q.Name == p.Name }) {
			return layoutError(f+".name", "is there twice on this disk", p.Name)
		}
		c.encrypted[full] = p.Encrypt
		if p.FS == "" && p.Mount == "" {
			c.parts[full] = true
			continue
		}
		on := []string{full}
		if p.Encrypt {
			on = nil
		}
		if err := c.filesystem(f, p.FS, p.Mount, on); err != nil {
			return err
		}
	}
	return nil
}

func (c *layoutCheck) array(field string, a LayoutArray, names map[string]bool) error {
	if !layoutNameRE.MatchString(a.Name) || names[a.Name] {
		return layoutError(field+".name", "is not a new name of at most 16 lower-case letters and digits", a.Name)
	}
	names[a.Name] = true
	if len(a.Members) < 2 {
		return layoutError(field+".members", "are fewer than two", strings.Join(a.Members, ", "))
	}
	disks := map[string]bool{}
	for _, m := range a.Members {
		if err := c.use(field+".members", m, "array "+a.Name, c.parts); err != nil {
			return err
		}
		if c.encrypted[m] {
			return layoutError(field+".members", "are encrypted one by one; encrypt the array instead", m)
		}
		disk, _, _ := strings.Cut(m, "/")
		if disks[disk] {
			return layoutError(field+".members", "are twice on one disk, which mirrors nothing", m)
		}
		disks[disk] = true
	}
	if a.FS == "" && a.Mount == "" {
		c.arrays[a.Name] = true
		return nil
	}
	on := a.Members
	if a.Encrypt {
		on = nil
	}
	return c.filesystem(field, a.FS, a.Mount, on)
}

func (c *layoutCheck) group(field string, g LayoutGroup, names map[string]bool) error {
	if !layoutNameRE.MatchString(g.Name) || names[g.Name] {
		return layoutError(field+".name", "is not a new name of at most 16 lower-case letters and digits", g.Name)
	}
	names[g.Name] = true
	if len(g.On) == 0 {
		return layoutError(field+".on", "names no partition and no array", "")
	}
	for _, m := range g.On {
		from := c.arrays
		if strings.Contains(m, "/") {
			from = c.parts
		}
		if err := c.use(field+".on", m, "volume group "+g.Name, from); err != nil {
			return err
		}
	}
	if len(g.Volumes) == 0 || len(g.Volumes) > maxLayoutVolumes {
		return layoutError(field+".volumes", "must be 1 to "+strconv.Itoa(maxLayoutVolumes), "")
	}
	seen := map[string]bool{}
	for i, v := range g.Volumes {
		f := field + ".volumes[" + strconv.Itoa(i) + "]"
		if !layoutNameRE.MatchString(v.Name) || seen[v.Name] {
			return layoutError(f+".name", "is not a new name of at most 16 lower-case letters and digits", v.Name)
		}
		seen[v.Name] = true
		if err := checkLayoutSize(f+".size", v.Size, i == len(g.Volumes)-1); err != nil {
			return err
		}
		if err := c.filesystem(f, v.FS, v.Mount, nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *layoutCheck) use(field, member, by string, from map[string]bool) error {
	if !from[member] {
		return layoutError(field, "name what is not there, or has a filesystem of its own", member)
	}
	if who := c.used[member]; who != "" {
		return layoutError(field, "name what "+who+" uses already", member)
	}
	c.used[member] = by
	return nil
}

// filesystem checks one filesystem; on are the partitions it lies on as it is,
// nil for a logical volume and in a LUKS container.
func (c *layoutCheck) filesystem(field, fs, mount string, on []string) error {
	if !slices.Contains(layoutFilesystems, fs) {
		return layoutError(field+".fs", "is not one of "+strings.Join(layoutFilesystems, ", "), fs)
	}
	if fs == "swap" {
		if mount != "" {
			return layoutError(field+".mount", "is not for swap", mount)
		}
		return nil
	}
	if !validMount(mount) {
		return layoutError(field+".mount", "is not an absolute path of letters, digits, dots and dashes, or is one that the system makes itself", mount)
	}
	if other := c.mounts[mount]; other != "" {
		return layoutError(field+".mount", "is that of "+other+", too", mount)
	}
	c.mounts[mount] = field
	switch mount {
	case "/":
		c.roots++
		c.rootOn, c.rootFS = on, fs
	case "/boot":
		c.bootOn, c.bootFS = on, fs
	}
	return nil
}

var mountRE = regexp.MustCompile(`^(/[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}){1,8}$`)

// validMount accepts where a filesystem of its own makes sense. What holds the
// programs that mount it, and what the kernel provides, is not among that.
func validMount(m string) bool {
	if m == "/" {
		return true
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(m, "/"), "/")
	return mountRE.MatchString(m) && m != "/boot/efi" && m != "/usr" &&
		!slices.Contains([]string{"proc", "sys", "dev", "run", "etc", "bin", "sbin", "lib", "lib64"}, first)
}

// checkLayoutSize takes "rest" only from the last of its row.
func checkLayoutSize(field, size string, last bool) error {
	if size == "rest" {
		if !last {
			return layoutError(field, "is the rest, which only the last one can have", size)
		}
		return nil
	}
	n, err := ParseSize(size)
	if err != nil {
		return layoutError(field, err.Error(), size)
	}
	if n < 64*mib {
		return layoutError(field, "is less than 64 MiB", size)
	}
	return nil
}

var sizeRE = regexp.MustCompile(`^([0-9]{1,9})(?:\.([0-9]{1,3}))? ?(MiB|GiB|TiB|MB|GB|TB)$`)

// ParseSize reads "512 MiB", "1.5TB" and the like, rounded down to whole MiB.
func ParseSize(s string) (int64, error) {
	m := sizeRE.FindStringSubmatch(s)
	if m == nil {
		return 0, &InvalidError{Field: "size", Problem: "is not a number with MiB, GiB, TiB, MB, GB or TB", Value: s}
	}
	unit := map[string]int64{"MiB": mib, "GiB": 1 << 30, "TiB": 1 << 40, "MB": 1e6, "GB": 1e9, "TB": 1e12}[m[3]]
	whole, _ := strconv.ParseInt(m[1], 10, 64)
	if whole > (1<<60)/unit {
		return 0, &InvalidError{Field: "size", Problem: "is larger than any disk", Value: s}
	}
	n := whole * unit
	if m[2] != "" {
		frac, _ := strconv.ParseInt((m[2] + "000")[:3], 10, 64)
		n += unit * frac / 1000
	}
	return n / mib * mib, nil
}
