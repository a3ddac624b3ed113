package web

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// machineView is what the agent found, in words.
type machineView struct {
	Model, Serial, UUID, Asset string
	CPU, Memory, Firmware      string
	SecureBoot, Board, Agent   string
	Disks                      []diskView
	NICs                       []nicView
}

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
}

type partView struct {
	Name  string
	Size  string
	Used  string
	FS    string
	Label string
}

type nicView struct {
	Name, Driver, MAC, Link string
	Boot, Up                bool
}

func (s *tongue) newMachine(t lpmos.Task) *machineView {
	h := t.Hardware
	if h == nil {
		return nil
	}
	v := &machineView{
		Model: s.model(h), Serial: h.System.Serial, UUID: h.System.UUID, Asset: h.Chassis.AssetTag,
		CPU: s.cpuWords(h.CPU), Memory: s.gib(h.Memory.TotalBytes), Firmware: s.firmwareWords(h), SecureBoot: s.secureBootWords(h),
		Board: strings.TrimSpace(h.Board.Manufacturer + " " + h.Board.Product),
		Agent: strings.Trim(strings.TrimSpace(h.Agent+", Linux "+h.Kernel), ", "),
	}
	for _, d := range h.Disks {
		v.Disks = append(v.Disks, s.newDisk(d, t.Plan))
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
		v.NICs = append(v.NICs, nicView{n.Name, n.Driver, n.MAC.String(), s.linkWords(n), n.Boot, n.Link})
	}
	return v
}

func (s *tongue) newDisk(d lpmos.Disk, p *lpmos.Plan) diskView {
	h := s.holds(d.Content, d.ContentUnknownBecause)
	v := diskView{Size: s.size(d.SizeBytes), Bytes: d.SizeBytes, Title: s.diskTitle(d), WWN: d.WWN, Device: d.Device, Found: h.String(), Held: h}
	v.IDKind, v.ID = s.diskID(d.Ref())
	v.Target = p != nil && p.Problem == "" && p.Effect.Target == d.Ref()
	add := func(name string, bytes int64, label string, f *lpmos.Filesystem) {
		q := partView{Name: name, Size: s.size(bytes), Used: "–", FS: "none found", Label: label}
		if f != nil {
			q.FS, q.Label = s.typeWords(f.Type), s.filesystemWords(f)
			if q.Label == q.FS {
				q.Label = label
			}
			if f.UsedBytes > 0 {
				q.Used = s.size(f.UsedBytes)
			}
		}
		v.Parts = append(v.Parts, q)
	}
	if f := d.Content.Filesystem; f != nil {
		add("whole disk", d.SizeBytes, "", f)
	}
	for _, q := range d.Content.Partitions {
		add("partition "+strconv.Itoa(q.Number), q.SizeBytes, q.Name, q.Filesystem)
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
	Keys      []string // type and comment of each
	Layout    string
	Parts     []plannedView
	Files     []lpmos.PlannedFile
	Target    *diskView
	Others    []diskView
	Erases    bool // something that was found
	EndOf     string
	EndKind   string
	Before    []segment
	After     []segment
	BeforeAlt string
	AfterAlt  string
	Hazards   []string
}

type plannedView struct {
	Number                int
	Role, Size, FS, Mount string
}

var roleWords = map[string]string{"bios-boot": "BIOS boot", "esp": "EFI", "root": "root"}

func (s *tongue) newPlan(t lpmos.Task, images []lpmos.Image) *planView {
	p, e := t.Plan, t.Plan.Effect
	v := &planView{
		Digest: p.Digest, Problem: p.Problem, Image: imageTitle(images, e.Image.OS, e.Image.Version, e.Image.Arch) + ", " + e.Image.Arch,
		ImageSize: s.size(e.Image.UsedBytes), ImgDigest: e.Image.Digest, Hostname: e.Hostname, BootMode: strings.ToUpper(e.BootMode),
		Files: e.Files, Erases: p.ErasesData(), Hazards: p.Hazards, EndOf: api.SerialEnd(e.Target),
	}
	v.EndKind, _ = s.diskID(e.Target)
	v.Network = e.Network.Mode
	if e.Network.Mode == "dhcp" {
		v.Network = "DHCP on " + s.N(len(e.Network.MACs), "1 network port", "%s network ports")
	}
	for _, k := range e.SSHKeys {
		v.Keys = append(v.Keys, keyWords(k))
	}
	var layout []string
	for _, q := range e.Partitions {
		role := cmp.Or(roleWords[q.Role], q.Role)
		v.Parts = append(v.Parts, plannedView{q.Number, role, s.size(q.SizeBytes), cmp.Or(q.FS, "–"), q.Mount})
		s := role + " " + s.size(q.SizeBytes)
		if q.FS != "" {
			s += " (" + q.FS + ")"
		}
		layout = append(layout, s)
	}
	v.Layout = strings.Join(layout, ", ")
	if t.Hardware != nil {
		for _, d := range t.Hardware.Disks {
			dv := s.newDisk(d, p)
			if dv.Target {
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
		name := cmp.Or(q.Name, "partition "+strconv.Itoa(q.Number))
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
		return segments([]piece{{label, d.SizeBytes, "gone"}}, d.SizeBytes), label + "; all of it is erased"
	}
	if len(pieces) == 0 {
		return nil, "blank"
	}
	if free := d.SizeBytes - sum; free > d.SizeBytes/100 {
		pieces = append(pieces, piece{"free", free, "free"})
	}
	return segments(pieces, d.SizeBytes), strings.Join(words, ", ") + "; all of it is erased"
}

func (s *tongue) mapAfter(e lpmos.Effect) ([]segment, string) {
	var pieces []piece
	var words []string
	for _, q := range e.Partitions {
		class := "new2"
		if q.Role == "root" {
			class = "new"
		}
		label := cmp.Or(roleWords[q.Role], q.Role) + " " + s.size(q.SizeBytes)
		pieces = append(pieces, piece{label, q.SizeBytes, class})
		words = append(words, label)
	}
	return segments(pieces, e.Target.SizeBytes), strings.Join(words, ", ")
}
