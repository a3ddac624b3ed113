package lpmos

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"
)

// Plan is exactly what an attempt will do to a machine and what it was based
// on. Digest covers Effect and Observed; an approval is bound to it.
type Plan struct {
	Effect         Effect         `json:"effect"`
	Observed       []ObservedDisk `json:"observed"`
	HardwareDigest string         `json:"hardware_digest"`
	Digest         string         `json:"plan_digest"`
	// Hazards are sentences for the person who decides: what will be lost.
	Hazards []string `json:"hazards,omitempty"`
	// Problem says why this plan cannot be carried out, "" if it can. Such a
	// plan can be looked at but not approved.
	Problem string `json:"problem,omitempty"`
}

// Effect is the half of a plan that is carried out.
type Effect struct {
	Target     DiskRef            `json:"target"`
	BootMode   string             `json:"boot_mode"`
	Partitions []PlannedPartition `json:"partitions"`
	Image      PlannedImage       `json:"image"`
	Hostname   string             `json:"hostname"`
	SSHKeys    []string           `json:"ssh_keys"`
	Network    PlannedNetwork     `json:"network"`
	KernelArgs string             `json:"kernel_args"`
	Files      []PlannedFile      `json:"files"`
	// System is what the profile says of the installed system, with the ports of
	// this machine in it.
	System *Setup `json:"system,omitempty"`
	// UserData is the task's template with the machine's facts in it: cloud-init
	// reads it at the first boot, beside what LPMOS itself asks of it.
	UserData string `json:"user_data,omitempty"`
	// Secrets are used but not shown: the plan commits to them.
	Secrets []PlannedSecret `json:"secrets,omitempty"`
	// Unverified leaves out what would report the first boot: nobody waits.
	Unverified bool `json:"unverified,omitempty"`

	// Layout is the name of the declared layout, "" for the plain one. Then
	// there may be more disks than the target, and more than partitions on them.
	Layout string         `json:"layout,omitempty"`
	Method string         `json:"method,omitempty"` // FormatDisk, FormatTar, FormatInstaller; "" is a filesystem image
	Also   []PlannedDisk  `json:"also,omitempty"`
	Arrays []PlannedArray `json:"arrays,omitempty"`
	Crypts []PlannedCrypt `json:"encrypted,omitempty"`
	Groups []PlannedGroup `json:"volume_groups,omitempty"`
	// BootID names the disk of a whole-disk image to the region's boot helper:
	// the image's own identifiers are those of all its copies, and those that an
	// installer makes nobody knows before.
	BootID string `json:"boot_id,omitempty"`
	// Installer is what is started in place of writing an image; its answers are
	// among Files.
	Installer *ImageInstaller `json:"installer,omitempty"`
}

// PlannedPartition is one partition of the new table, in order.
type PlannedPartition struct {
	Number    int    `json:"number"`
	Role      string `json:"role"` // "bios-boot", "esp", "root"
	SizeBytes int64  `json:"size_bytes"`
	FS        string `json:"fs,omitempty"`    // "vfat", "ext4"
	UUID      string `json:"uuid,omitempty"`  // of the filesystem: XXXX-XXXX for vfat
	PartUUID  string `json:"part_uuid"`       // of the table entry
	Mount     string `json:"mount,omitempty"` // "/", "/boot/efi"
}

// PlannedImage is the image by its content.
type PlannedImage struct {
	OS        string `json:"os"`
	Version   string `json:"version"`
	Arch      string `json:"arch"`
	Digest    string `json:"digest"` // "sha256:…" of the manifest
	SizeBytes int64  `json:"size_bytes"`
	UsedBytes int64  `json:"used_bytes"`
}

// PlannedNetwork is how the installed system gets its address.
type PlannedNetwork struct {
	Mode string `json:"mode"` // "dhcp", or "declared": as System has it
	MACs []MAC  `json:"macs"` // on these interfaces; with "dhcp" the task's own is first
}

// PlannedFile is a file written after the image, for people to see; secrets are
// not in it. One that has Text or Link is written as it stands here; of the
// others only the agent knows the text.
type PlannedFile struct {
	Path string `json:"path"`
	Mode string `json:"mode"` // octal, "0644"
	What string `json:"what"`
	Text string `json:"text,omitempty"`
	// Link makes it a symbolic link with this target.
	Link string `json:"link,omitempty"`
	// Owner is an account of the plan whose file it is; empty is root.
	Owner string `json:"owner,omitempty"`
	// For is ForInstaller where the file is not one of the installed system.
	For string `json:"for,omitempty"`
	// If names what must be in the image for the file to be written, Unless what
	// must not be.
	If     string `json:"if,omitempty"`
	Unless string `json:"unless,omitempty"`
}

// Digest is that of the text, "" when it is not known beforehand.
func (f PlannedFile) Digest() string {
	if f.Text == "" {
		return ""
	}
	return DigestBytes([]byte(f.Text))
}

// ObservedDisk is the half of a plan that was looked at: one disk of the
// machine and what is on it, without the name it is seen under now.
type ObservedDisk struct {
	Disk    DiskRef `json:"disk"`
	Model   string  `json:"model,omitempty"`
	Content Content `json:"content"`
	Unknown string  `json:"unknown,omitempty"` // reading it went wrong, for this reason
}

const (
	mib = 1 << 20
	// GPTReserveBytes is left free at both ends of a disk: the tables and the
	// alignment to 1 MiB.
	GPTReserveBytes = 1 * mib
	biosBootBytes   = 2 * mib
	espBytes        = 64 * mib
)

// Observe reduces hardware to the observed half of a plan, in a fixed order.
func Observe(h *Hardware) []ObservedDisk {
	out := make([]ObservedDisk, 0, len(h.Disks))
	for _, d := range h.Disks {
		if d.Removable {
			continue // a stick or a virtual CD comes and goes and is never written
		}
		out = append(out, ObservedDisk{Disk: d.Ref(), Model: d.Model, Content: d.Content, Unknown: d.ContentUnknownBecause})
	}
	slices.SortStableFunc(out, func(a, b ObservedDisk) int {
		return cmp.Or(strings.Compare(a.Disk.Serial, b.Disk.Serial), strings.Compare(a.Disk.WWN, b.Disk.WWN),
			cmp.Compare(a.Disk.SizeBytes, b.Disk.SizeBytes), strings.Compare(a.Disk.Path, b.Disk.Path))
	})
	return out
}

// NewPlan makes the plan for installing img on h. It is a pure function: the
// same task, hardware and image give the same plan and digest, however often
// the machine reports. A plan that cannot be carried out has a Problem and no
// target.
func NewPlan(t *Task, h *Hardware, img Image) Plan {
	p := Plan{Observed: Observe(h), HardwareDigest: h.Digest()}
	p.Effect = Effect{
		BootMode: h.BootMode,
		Image:    PlannedImage{img.OS, img.Version, img.Arch, img.Digest, img.SizeBytes, img.UsedBytes},
		Hostname: t.Hostname,
		SSHKeys:  append([]string{}, t.SSHKeys...),
		Network:  PlannedNetwork{Mode: "dhcp", MACs: firstOf(t.TargetMAC, h.MACs())},
		Secrets:  t.Committed,
	}
	laid, problem := layOut(t, h, img)
	if problem == "" && img.Arch != h.CPU.Architecture {
		problem = "The image is for " + img.Arch + ", the machine is " + h.CPU.Architecture + "."
	}
	if problem == "" && !slices.Contains(img.BootModes, h.BootMode) {
		problem = "The image " + img.Name() + " cannot boot a " + h.BootMode + " machine."
	}
	if problem == "" && len(img.Preflight.Problems()) > 0 {
		problem = "The image " + img.Name() + " cannot be installed: " + img.Preflight.Problems()[0]
	}
	problem = cmp.Or(problem, p.Effect.configure(t, h, img))
	if problem == "" && img.Installer != nil {
		problem = p.Effect.answer(t, h, img, laid.effect.Target)
	}
	if problem != "" {
		p.Problem = problem
	} else {
		laid.apply(&p)
		p.Effect.Files = laid.files(p.Effect.Files)
	}
	p.Digest = p.ComputeDigest()
	return p
}

// firstOf moves m, if it is one of macs, to their beginning.
func firstOf(m MAC, macs []MAC) []MAC {
	if i := slices.Index(macs, m); i > 0 {
		copy(macs[1:], macs[:i])
		macs[0] = m
	}
	return macs
}

// plannedFiles is what is written beside the image and what systemFiles knows:
// its text is the agent's to make.
var plannedFiles = []PlannedFile{
	{Path: "/etc/fstab", Mode: "0644", What: "filesystems by UUID"},
	{Path: "/etc/machine-id", Mode: "0444", What: "emptied; the first boot makes a new one"},
	{Path: "/boot/grub/grub.cfg", Mode: "0644", What: "the boot menu"},
	{Path: "/boot/efi/EFI/BOOT/BOOTX64.EFI, grub.cfg", Mode: "0755", What: "the boot loader for UEFI; the one for BIOS goes to its own partition and the boot sector"},
	{Path: "/etc/ssh/ssh_host_*", Mode: "removed", What: "the first boot makes new keys"},
}

// callhomeFiles report the first boot.
var callhomeFiles = []PlannedFile{
	{Path: "/usr/lib/lpmos/agent", Mode: "0755", What: "reports the first boot, then removes itself"},
	{Path: "/etc/systemd/system/lpmos-callhome.service", Mode: "0644", What: "starts it, where the image has systemd; removed with it"},
	{Path: "/etc/lpmos/callhome.json", Mode: "0600", What: "where to report; holds a token that is good for this only; removed with it"},
}

// configure fills in how the installed system is configured and which files
// that takes, or says why it cannot be.
func (e *Effect) configure(t *Task, h *Hardware, img Image) (problem string) {
	e.Unverified, e.Installer = !t.WantsVerification(), img.Installer
	if tt := t.TemplateText; tt != nil && img.RefusesTemplate(tt.Kind) != "" {
		problem = "The template " + tt.Ref() + " " + img.RefusesTemplate(tt.Kind) + "."
	} else if tt != nil && tt.Kind == TemplateUserData {
		text, err := tt.Render(FactsOf(t, h))
		if e.UserData = text; err != nil {
			problem = "The template " + tt.Ref() + " cannot be rendered: " + err.Error() + "."
		}
	}
	var s Setup
	if t.Setup != nil {
		s = *t.Setup
	}
	network, unresolved := s.Network.Resolve(h, t.Addresses, t.Gateways)
	problem = cmp.Or(problem, unresolved)
	if s.Network = network; network != nil {
		e.Network = PlannedNetwork{Mode: "declared", MACs: network.MACs()}
	}
	if len(s.Packages) > 0 && !img.InstallsPackages() {
		problem = cmp.Or(problem, "The profile installs packages by cloud-init, which the image "+img.Name()+" does not have.")
	}
	if len(s.Kernel) > 0 && img.Kind() == FormatDisk {
		problem = cmp.Or(problem, "The profile adds kernel arguments, and the image "+img.Name()+" is a whole disk, which keeps its own boot menu.")
	}
	if network != nil && img.Installer != nil {
		problem = cmp.Or(problem, "The network is declared, and the installer "+img.Name()+" sets up DHCP only: leave the network out, or use an image.")
	}
	if !s.Empty() {
		e.System, e.KernelArgs = &s, strings.Join(s.Kernel, " ")
	}
	template := ""
	if t.TemplateText != nil {
		template = t.TemplateText.Ref()
	}
	files, err := e.systemFiles(t.ID, template, img.CloudInit)
	if err != nil {
		problem = cmp.Or(problem, "The configuration cannot be written: "+err.Error()+".")
	}
	if e.Files = files; img.Installer == nil {
		e.Files = slices.Concat(plannedFiles, files)
	}
	if !e.Unverified {
		e.Files = append(e.Files, callhomeFiles...)
	}
	return problem
}

// ComputeDigest is the digest of effect and observed together.
func (p *Plan) ComputeDigest() string {
	return DigestOf(struct {
		Effect   Effect         `json:"effect"`
		Observed []ObservedDisk `json:"observed"`
	}{p.Effect, p.Observed})
}

// ErasesData reports whether anything that was found on a disk that is written
// would be lost.
func (p *Plan) ErasesData() bool { return len(p.Erased()) > 0 }

// Erased are the disks that are written although something was found on them,
// in the effect's order.
func (p *Plan) Erased() []ObservedDisk {
	var out []ObservedDisk
	if p.Problem != "" {
		return nil
	}
	for _, w := range p.Effect.Disks() {
		for _, d := range p.Observed {
			if d.Disk == w.Disk && (!d.Content.Empty() || d.Unknown != "") {
				out = append(out, d)
			}
		}
	}
	return out
}

// SameOthers reports whether all disks but those the plan writes are in now as
// they were when the plan was made. An attempt after the first asks this,
// because its disks were half written.
func (p *Plan) SameOthers(now []ObservedDisk) bool {
	others := func(ds []ObservedDisk) []ObservedDisk {
		return slices.DeleteFunc(slices.Clone(ds), func(d ObservedDisk) bool { return p.Effect.Writes(d.Disk) })
	}
	return DigestOf(others(p.Observed)) == DigestOf(others(now))
}

// Partition finds a partition of the target by role. A root filesystem that
// lies on an array or a logical volume is answered as if it were a partition,
// without number and PartUUID.
func (e *Effect) Partition(role string) (PlannedPartition, bool) {
	for _, q := range e.Partitions {
		if q.Role == role {
			return q, true
		}
	}
	if fs, ok := e.Root(); ok && role == "root" {
		return PlannedPartition{Role: role, SizeBytes: fs.SizeBytes, FS: fs.FS, UUID: fs.UUID, Mount: fs.Mount}, true
	}
	return PlannedPartition{}, false
}

func chooseDisk(t *Task, h *Hardware, img Image) (Disk, string) {
	need := img.DiskBytes()
	if t.TargetDisk != nil {
		d, err := h.Disk(*t.TargetDisk)
		switch {
		case err != nil:
			return Disk{}, "The disk asked for (" + t.TargetDisk.String() + ") is not in this machine."
		case !d.Installable():
			return Disk{}, "The disk asked for (" + t.TargetDisk.String() + ") is removable, read-only or not local."
		case d.SizeBytes < need:
			return Disk{}, "The disk asked for is too small: " + FormatBytes(d.SizeBytes) + ", and " + FormatBytes(need) + " are needed."
		}
		return d, ""
	}
	var fit []Disk
	var seen int
	var largest int64
	for _, d := range h.Disks {
		if !d.Installable() {
			continue
		}
		if d.Serial == "" && d.WWN == "" {
			continue // cannot be a target unless a person names it by path and size
		}
		seen++
		largest = max(largest, d.SizeBytes)
		if d.SizeBytes >= need {
			fit = append(fit, d)
		}
	}
	switch {
	case len(h.Disks) == 0:
		return Disk{}, "The machine has no disk."
	case seen == 0:
		return Disk{}, "No disk can be a target by itself: all are removable, read-only, not local, or have neither serial number nor WWN. Name one by path and size to use it."
	case len(fit) == 0:
		return Disk{}, "Every disk is too small: the largest has " + FormatBytes(largest) + ", and " + FormatBytes(need) + " are needed."
	}
	slices.SortStableFunc(fit, leastDestructive)
	return fit[0], ""
}

// leastDestructive orders blank disks first, then the smallest, then by a name
// that survives a reboot: an unasked choice should destroy as little as
// possible.
func leastDestructive(a, b Disk) int {
	blank := func(d Disk) int {
		if d.Content.Empty() && d.ContentUnknownBecause == "" {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(blank(a), blank(b)), cmp.Compare(a.SizeBytes, b.SizeBytes),
		strings.Compare(a.Serial, b.Serial), strings.Compare(a.WWN, b.WWN))
}

// layout is GPT: BIOS boot, ESP, root. Both boot parts are always there, so that
// a machine can be switched between BIOS and UEFI later. Identifiers are
// derived from the task and the disk: a plan made twice is the same plan, and
// an older installation never has them.
func layout(taskID string, d Disk) []PlannedPartition {
	id := func(what string) [16]byte {
		sum := sha256.Sum256([]byte("lpmos layout\x00" + taskID + "\x00" + d.Ref().String() + "\x00" + what))
		return [16]byte(sum[:16])
	}
	fat := id("esp filesystem")
	const hexDigits = "0123456789ABCDEF"
	vfat := make([]byte, 0, 9)
	for i, b := range fat[:4] {
		if i == 2 {
			vfat = append(vfat, '-')
		}
		vfat = append(vfat, hexDigits[b>>4], hexDigits[b&15])
	}
	root := (d.SizeBytes - 2*GPTReserveBytes - biosBootBytes - espBytes) / mib * mib
	return []PlannedPartition{
		{Number: 1, Role: "bios-boot", SizeBytes: biosBootBytes, PartUUID: formatUUID(id("bios-boot"), 8)},
		{Number: 2, Role: "esp", SizeBytes: espBytes, FS: "vfat", UUID: string(vfat), PartUUID: formatUUID(id("esp"), 8), Mount: "/boot/efi"},
		{Number: 3, Role: "root", SizeBytes: root, FS: "ext4", UUID: formatUUID(id("root filesystem"), 8), PartUUID: formatUUID(id("root"), 8), Mount: "/"},
	}
}

func hazards(d Disk) []string {
	var out []string
	describe := func(where string, f *Filesystem) {
		s := where + ": " + f.Type
		if f.Label != "" {
			s += " “" + f.Label + "”"
		}
		if f.OS != "" {
			s += ", " + f.OS
		}
		if f.Hostname != "" {
			s += " of host " + f.Hostname
		}
		if f.UsedBytes > 0 {
			s += ", " + FormatBytes(f.UsedBytes) + " in use"
		}
		if !f.WrittenAt.IsZero() {
			s += ", last written " + f.WrittenAt.UTC().Format("2006-01-02 15:04 UTC")
		}
		out = append(out, s)
	}
	if d.ContentUnknownBecause != "" {
		out = append(out, "what is on it could not be read: "+d.ContentUnknownBecause)
	}
	if f := d.Content.Filesystem; f != nil {
		describe("whole disk", f)
	}
	for _, q := range d.Content.Partitions {
		where := "partition " + strconv.Itoa(q.Number) + ", " + FormatBytes(q.SizeBytes)
		if q.Filesystem != nil {
			describe(where, q.Filesystem)
		} else if q.Name != "" {
			out = append(out, where+": “"+q.Name+"”, no filesystem found")
		} else {
			out = append(out, where+": no filesystem found")
		}
	}
	return out
}
