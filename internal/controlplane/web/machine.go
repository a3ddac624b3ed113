package web

import (
	"cmp"
	"html/template"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// machineView is what the agent found, in words.
type machineView struct {
	Model, Serial, UUID, Asset string
	CPU, Memory, Firmware      string
	SecureBoot, Board, Agent   string
	BoardSerial, Chassis       string
	TPM, TPMWords              string // fingerprint, "" for none; what it is worth
	ReportedAt                 time.Time
	Disks                      []diskView
	NICs                       []nicView
	// Since is when the machine was seen before, and Changes what differs since
	// then; SinceTask is the task it reported for. Seen is false for a machine
	// that was never seen before, or whose earlier reports are not kept.
	Seen      bool
	Since     time.Time
	SinceTask string
	Changes   []change
	changed   map[string]bool // components, items of disks and ports
}

// Changed reports whether a component ("cpu") or an item of one (a disk's
// serial number) is not as it was.
func (m *machineView) Changed(what string) bool { return m.changed[what] }

// change is one difference between two reports.
type change struct{ What, Before, After string }

type diskView struct {
	Size   string
	Bytes  int64
	Title  string
	ID     string // serial number, WWN or path
	IDKind string
	WWN    string
	Device string
	Found  string
	Held   held
	Target bool
	Parts  []partView // what is on it now
	New    bool       // was not in the machine when it was seen before
	Other  bool       // was, but something about it changed
}

type partView struct {
	Name    string
	Size    string
	Used    string
	FS      string
	Label   string
	Written time.Time // last, as the filesystem remembers
}

type nicView struct {
	Name, Driver, MAC, Link, PCI string
	Boot, Up, New, Other         bool
}

func (s *tongue) newMachine(t lpmos.Task) *machineView {
	h := t.Hardware
	if h == nil {
		return nil
	}
	v := s.hardware(h, t.Plan)
	v.ReportedAt = t.HardwareAt
	if p := t.Previous; p != nil && p.Hardware != nil {
		v.compare(s, p)
		v.addChanges(s, lpmos.DiffHardware(p.Hardware, h))
	}
	v.TPMWords = s.tpmWords(h.TPM, t.TPM)
	return v
}

func (s *tongue) hardware(h *lpmos.Hardware, plan *lpmos.Plan) *machineView {
	v := &machineView{
		Model: s.model(h), Serial: h.System.Serial, UUID: h.System.UUID, Asset: h.Chassis.AssetTag,
		TPM: h.TPM.Fingerprint(), CPU: s.cpuWords(h.CPU), Memory: s.gib(h.Memory.TotalBytes), Firmware: s.firmwareWords(h), SecureBoot: s.secureBootWords(h),
		Board: strings.TrimSpace(h.Board.Manufacturer + " " + h.Board.Product), BoardSerial: h.Board.Serial,
		changed: map[string]bool{},
	}
	if h.Chassis.Serial != h.System.Serial {
		v.Chassis = h.Chassis.Serial
	}
	var agent []string
	if h.Agent != "" {
		agent = append(agent, h.Agent)
	}
	if h.Kernel != "" {
		agent = append(agent, "Linux "+h.Kernel)
	}
	v.Agent = s.list(agent)
	for _, d := range h.Disks {
		v.Disks = append(v.Disks, s.newDisk(d, plan))
	}
	slices.SortStableFunc(v.Disks, func(a, b diskView) int {
		if a.Target != b.Target {
			if a.Target {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.Bytes, a.Bytes)
	})
	for _, n := range h.NICs {
		v.NICs = append(v.NICs, nicView{Name: n.Name, Driver: n.Driver, MAC: n.MAC.String(), Link: s.linkWords(n), PCI: n.PCI, Boot: n.Boot, Up: n.Link})
	}
	return v
}

func (m *machineView) compare(s *tongue, p *lpmos.Sighting) {
	m.Seen, m.Since, m.SinceTask = true, p.At, p.TaskID
}

func (m *machineView) addChanges(s *tongue, ds []lpmos.Difference) {
	for _, d := range ds {
		m.changed[d.Component] = true
		if d.Item != "" {
			m.changed[d.Item] = true
		}
		m.Changes = append(m.Changes, change{s.differs(d), d.Before, d.After})
		came := d.Field == "" && d.Before == ""
		for i := range m.Disks {
			if q := &m.Disks[i]; d.Component == lpmos.ComponentDisk && (q.ID == d.Item || q.Device == d.Item) {
				q.New, q.Other = q.New || came, q.Other || !came
			}
		}
		for i := range m.NICs {
			if q := &m.NICs[i]; d.Component == lpmos.ComponentNIC && q.MAC == d.Item {
				q.New, q.Other = q.New || came, q.Other || !came
			}
		}
	}
}

func (s *tongue) newDisk(d lpmos.Disk, p *lpmos.Plan) diskView {
	h := s.holds(d.Content, d.ContentUnknownBecause)
	v := diskView{Size: s.size(d.SizeBytes), Bytes: d.SizeBytes, Title: s.diskTitle(d), WWN: d.WWN, Device: d.Device, Found: h.String(), Held: h}
	v.IDKind, v.ID = s.diskID(d.Ref())
	v.Target = p != nil && p.Problem == "" && p.Effect.Writes(d.Ref())
	add := func(name string, bytes int64, label string, f *lpmos.Filesystem) {
		q := partView{Name: name, Size: s.size(bytes), Used: "–", FS: s.T("none found"), Label: label}
		if f != nil {
			q.FS, q.Label, q.Written = s.typeWords(f.Type), s.filesystemWords(f), f.WrittenAt
			if strings.HasPrefix(q.Label, q.FS) { // which one it is, of its kind
				q.FS, q.Label = q.Label, label
			}
			if f.UsedBytes > 0 {
				q.Used = s.size(f.UsedBytes)
			}
		}
		v.Parts = append(v.Parts, q)
	}
	if f := d.Content.Filesystem; f != nil {
		add(s.T("whole disk"), d.SizeBytes, "", f)
	}
	for _, q := range d.Content.Partitions {
		add(s.T("partition %s", strconv.Itoa(q.Number)), q.SizeBytes, q.Name, q.Filesystem)
	}
	return v
}

// planView is what is going to happen, in words.
type planView struct {
	Digest    string
	Problem   string
	Image     string
	ImageSize string
	ImgDigest string
	Hostname  string
	BootMode  string
	Network   string
	Logins    template.HTML // who can log in
	Encrypted bool
	Layout    string
	Parts     []plannedView
	Files     []lpmos.PlannedFile
	Target    *diskView
	Others    []diskView
	Erases    bool // something that was found
	EndOf     string
	Ends      int        // how many serial numbers EndOf is of
	Also      []diskView // further disks that are erased
	Built     []builtView
	EndWord   string // "serial number", "WWN", "path"
	Before    []segment
	After     []segment
	BeforeAlt string
	AfterAlt  string
	Profile   string
	Template  string
	UserData  string
	NoVerify  bool // the first boot is not waited for
	Setup     []setupLine
}

// builtView is what is made of partitions: an array, a volume, or a filesystem on
// a further disk.
type builtView struct{ Name, On, Size, FS, Mount string }

// Erasing are all disks that are erased, the target first.
func (v *planView) Erasing() []diskView {
	if v.Target == nil {
		return nil
	}
	return append([]diskView{*v.Target}, v.Also...)
}

type plannedView struct {
	Number                int
	Role, Size, FS, Mount string
}

var roleWords = map[string]string{"bios-boot": "BIOS boot", "esp": "EFI", "root": "root", "boot": "boot files", "data": "data", "swap": "swap", "raid": "RAID member", "lvm": "LVM member", "crypt": "encrypted"}

func (s *tongue) roleWord(role string) string {
	if w, ok := roleWords[role]; ok {
		return s.T(w)
	}
	return role
}

func (s *tongue) newPlan(t lpmos.Task, images []lpmos.Image) *planView {
	p, e := t.Plan, t.Plan.Effect
	v := &planView{
		Digest: p.Digest, Problem: s.sentence(p.Problem), Image: s.list([]string{imageTitle(images, e.Image.OS, e.Image.Version, e.Image.Arch), e.Image.Arch}),
		ImageSize: s.size(e.Image.UsedBytes), ImgDigest: e.Image.Digest, Hostname: e.Hostname, BootMode: bootWord(e.BootMode),
		Files: e.Files, Encrypted: len(e.Crypts) > 0, Erases: p.ErasesData(), EndOf: strings.Join(api.SerialEnds(p), " "), Ends: len(api.SerialEnds(p)), Profile: t.Profile, Template: t.Template, UserData: e.UserData, NoVerify: e.Unverified,
	}
	if i := e.Installer; i != nil {
		v.ImageSize = s.T("its own installer, with a %s file", i.Answers)
	}
	switch kind, _ := s.diskID(e.Target); kind {
	case s.T("Serial number"):
		v.EndWord = s.T("serial number")
	case s.T("Path"):
		v.EndWord = s.T("path")
	default:
		v.EndWord = kind
	}
	v.Network = e.Network.Mode
	v.Setup = s.setupLines(e.System)
	if e.Network.Mode == "declared" {
		v.Network = s.N(len(e.Network.MACs), "as declared, on 1 network port", "as declared, on %s network ports")
	}
	if e.Network.Mode == "dhcp" {
		v.Network = s.N(len(e.Network.MACs), "DHCP on 1 network port", "DHCP on %s network ports")
	}
	var keys []string
	for _, k := range e.SSHKeys {
		keys = append(keys, keyWords(k))
	}
	v.Logins = s.whoLogsIn(s.list(keys), e.System)
	var layout []string
	for _, q := range e.Partitions {
		role := s.roleWord(q.Role)
		v.Parts = append(v.Parts, plannedView{q.Number, role, s.size(q.SizeBytes), cmp.Or(q.FS, "–"), q.Mount})
		text := role + " " + s.size(q.SizeBytes)
		if q.FS != "" {
			text += " (" + q.FS + ")"
		}
		layout = append(layout, text)
	}
	v.Layout = s.list(layout)
	v.Built = s.built(e)
	if e.Layout != "" {
		v.Layout = e.Layout + ": " + v.Layout
	}
	if t.Hardware != nil {
		for _, d := range t.Hardware.Disks {
			dv := s.newDisk(d, p)
			if dv.Target && d.Ref() != e.Target {
				v.Also = append(v.Also, dv)
			} else if dv.Target {
				v.Target = &dv
				v.Before, v.BeforeAlt = s.mapBefore(d)
			} else {
				v.Others = append(v.Others, dv)
			}
		}
	}
	v.After, v.AfterAlt = s.mapAfter(e)
	return v
}

// built lists what a declared layout makes of partitions and on further disks.
func (s *tongue) built(e lpmos.Effect) []builtView {
	var out []builtView
	on := map[string]string{} // by PartUUID
	for i, d := range e.Disks() {
		_, id := s.diskID(d.Disk)
		for _, q := range d.Partitions {
			on[q.PartUUID] = s.T("partition %s", strconv.Itoa(q.Number)) + " · " + id
			if i > 0 {
				out = append(out, builtView{strconv.Itoa(q.Number) + " " + s.roleWord(q.Role), id, s.size(q.SizeBytes), cmp.Or(q.FS, "–"), q.Mount})
			}
		}
	}
	names := func(ids []string) string {
		var all []string
		for _, id := range ids {
			all = append(all, cmp.Or(on[id], id))
		}
		return strings.Join(all, ", ")
	}
	for _, a := range e.Arrays {
		out = append(out, builtView{"RAID 1 " + a.Name, names(a.Members), s.size(a.SizeBytes), cmp.Or(a.FS, "–"), a.Mount})
	}
	for _, c := range e.Crypts {
		out = append(out, builtView{"LUKS2 " + c.Name, names([]string{c.On}), s.size(c.SizeBytes), cmp.Or(c.FS, "–"), c.Mount})
	}
	for _, g := range e.Groups {
		for _, l := range g.Volumes {
			out = append(out, builtView{"LVM " + g.Name + "/" + l.Name, names(g.On), s.size(l.SizeBytes), l.FS, l.Mount})
		}
	}
	return out
}

// keyWords is enough of a public key to recognize it.
func keyWords(k string) string {
	f := strings.SplitN(k, " ", 3)
	if len(f) == 3 {
		return f[0] + " " + f[2]
	}
	if len(f) == 2 && len(f[1]) > 12 {
		return f[0] + " …" + f[1][len(f[1])-12:]
	}
	return k
}

// segment is a part of a disk's picture, in percent of its width.
type segment struct {
	X, Width, Middle string
	Class            string
	Label            string // "" where there is no room
	Minor            bool
}

type piece struct {
	label string
	bytes int64
	class string
}

// segments lays pieces side by side. Small ones get a width that can be seen,
// at the cost of the large ones.
func segments(pieces []piece, total int64) []segment {
	const least = 1.4
	var sum float64
	widths := make([]float64, len(pieces))
	for i, p := range pieces {
		widths[i] = max(least, float64(p.bytes)/float64(max(total, 1))*100)
		sum += widths[i]
	}
	var out []segment
	x := 0.0
	for i, p := range pieces {
		width := widths[i] / max(sum, 1) * 100
		s := segment{X: pct(x), Width: pct(width), Middle: pct(x + width/2), Class: p.class}
		if width > 30 {
			s.Label = p.label
		} else if width > 12 {
			s.Label, s.Minor = p.label, true
		}
		out = append(out, s)
		x += width
	}
	return out
}

func pct(f float64) string { return strconv.FormatFloat(f, 'f', 2, 64) + "%" }

func (s *tongue) mapBefore(d lpmos.Disk) ([]segment, string) {
	var pieces []piece
	var words []string
	var sum int64
	class := "gone"
	for _, q := range d.Content.Partitions {
		name := cmp.Or(q.Name, s.T("partition %s", strconv.Itoa(q.Number)))
		if q.Filesystem != nil {
			name = cmp.Or(q.Filesystem.Label, s.typeWords(q.Filesystem.Type))
		}
		label := name + " " + s.size(q.SizeBytes)
		pieces = append(pieces, piece{label, q.SizeBytes, class})
		words = append(words, label)
		sum += q.SizeBytes
		if class == "gone" {
			class = "gone2"
		} else {
			class = "gone"
		}
	}
	if f := d.Content.Filesystem; f != nil && len(pieces) == 0 {
		label := cmp.Or(f.Label, s.typeWords(f.Type)) + " " + s.size(d.SizeBytes)
		return segments([]piece{{label, d.SizeBytes, "gone"}}, d.SizeBytes), s.T("%s; all of it is erased", label)
	}
	if len(pieces) == 0 {
		return nil, s.T("blank")
	}
	if free := d.SizeBytes - sum; free > d.SizeBytes/100 {
		pieces = append(pieces, piece{s.T("free"), free, "free"})
	}
	return segments(pieces, d.SizeBytes), s.T("%s; all of it is erased", s.list(words))
}

func (s *tongue) mapAfter(e lpmos.Effect) ([]segment, string) {
	var pieces []piece
	var words []string
	for _, q := range e.Partitions {
		class := "new2"
		if q.Role == "root" {
			class = "new"
		}
		label := s.roleWord(q.Role) + " " + s.size(q.SizeBytes)
		pieces = append(pieces, piece{label, q.SizeBytes, class})
		words = append(words, label)
	}
	return segments(pieces, e.Target.SizeBytes), s.list(words)
}
