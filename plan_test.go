package lpmos_test

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

const gb = 1_000_000_000

func server() *lpmos.Hardware {
	return &lpmos.Hardware{
		BootMode: "uefi", CPU: lpmos.CPU{Architecture: "amd64"},
		System: lpmos.System{Serial: "SRV1", UUID: "4c4c4544-0035-4a10-8058-b7c04f4e3332"},
		Board:  lpmos.Board{Serial: "BRD1"},
		Disks: []lpmos.Disk{
			{Device: "/dev/nvme0n1", Serial: "N0", SizeBytes: 960 * gb, Transport: "nvme", Content: used("payroll")},
			{Device: "/dev/sda", Serial: "S0", WWN: "0x5000c500a0b1c2d3", SizeBytes: 480 * gb, Transport: "sata"},
			{Device: "/dev/sdb", Serial: "S1", SizeBytes: 500 * gb, Transport: "sata"},
			{Device: "/dev/sdc", Serial: "U0", SizeBytes: 32 * gb, Transport: "usb", Removable: true},
		},
		NICs: []lpmos.NIC{
			{Name: "eno1", MAC: lpmos.MustMAC("52:54:00:00:00:01"), Boot: true},
			{Name: "eno2", MAC: lpmos.MustMAC("52:54:00:00:00:02")},
		},
		BootMAC: lpmos.MustMAC("52:54:00:00:00:01"),
	}
}

func used(label string) lpmos.Content {
	return lpmos.Content{Table: "gpt", Partitions: []lpmos.Partition{{Number: 1, SizeBytes: 100 * gb, Filesystem: &lpmos.Filesystem{
		Type: "ext4", Label: label, OS: "Debian GNU/Linux 11", Hostname: "db-07", UsedBytes: 42 * gb, WrittenAt: time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC),
	}}}}
}

func image() lpmos.Image {
	return lpmos.Image{OS: "debian", Version: "12", Arch: "amd64", Digest: "sha256:" + strings.Repeat("ab", 32), SizeBytes: 2 << 30, UsedBytes: 1 << 30, BootModes: []string{"bios", "uefi"}}
}

func task() *lpmos.Task {
	s := goodSpec()
	s.Hostname = "web-01"
	return &lpmos.Task{ID: "550e8400-e29b-41d4-a716-446655440000", Spec: s, Status: lpmos.Pending, Attempt: 1}
}

func shuffled(h *lpmos.Hardware, r *rand.Rand) *lpmos.Hardware {
	c := *h
	c.Disks, c.NICs = slices.Clone(h.Disks), slices.Clone(h.NICs)
	r.Shuffle(len(c.Disks), func(i, j int) { c.Disks[i], c.Disks[j] = c.Disks[j], c.Disks[i] })
	r.Shuffle(len(c.NICs), func(i, j int) { c.NICs[i], c.NICs[j] = c.NICs[j], c.NICs[i] })
	for i := range c.Disks {
		c.Disks[i].Device = "/dev/sd" + string(rune('a'+i)) // names change with the order
	}
	return &c
}

func TestPlanIsDeterministic(t *testing.T) {
	want := lpmos.NewPlan(task(), server(), image())
	if want.Problem != "" || want.Digest != want.ComputeDigest() {
		t.Fatalf("plan %+v", want)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		h := shuffled(server(), r)
		if got := lpmos.NewPlan(task(), h, image()); got.Digest != want.Digest || got.HardwareDigest != want.HardwareDigest {
			t.Fatalf("another order of disks gives another plan: %+v", got)
		}
	}
	// Through the store and back it is the same plan.
	b, _ := json.Marshal(want)
	var back lpmos.Plan
	if err := json.Unmarshal(b, &back); err != nil || back.ComputeDigest() != want.Digest {
		t.Errorf("the digest does not survive JSON: %v", err)
	}
	other := task()
	other.ID = "550e8400-e29b-41d4-a716-446655440001"
	root, _ := want.Effect.Partition("root")
	p := lpmos.NewPlan(other, server(), image())
	if q, _ := p.Effect.Partition("root"); q.UUID == root.UUID || q.PartUUID == root.PartUUID {
		t.Error("two tasks would make filesystems of one identity")
	}
	for name, edit := range map[string]func(*lpmos.Task, *lpmos.Hardware, *lpmos.Image){
		"host name": func(t *lpmos.Task, _ *lpmos.Hardware, _ *lpmos.Image) { t.Hostname = "x" },
		"SSH keys":  func(t *lpmos.Task, _ *lpmos.Hardware, _ *lpmos.Image) { t.SSHKeys = []string{edKey} },
		"image": func(_ *lpmos.Task, _ *lpmos.Hardware, i *lpmos.Image) {
			i.Digest = "sha256:" + strings.Repeat("cd", 32)
		},
		"another disk's content": func(_ *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) { h.Disks[0].Content = lpmos.Content{} },
		"a label": func(_ *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) {
			h.Disks[0].Content.Partitions[0].Filesystem.Label = "x"
		},
		"a NIC": func(_ *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) { h.NICs = h.NICs[:1] },
	} {
		tk, h, i := task(), server(), image()
		edit(tk, h, &i)
		if got := lpmos.NewPlan(tk, h, i); got.Digest == want.Digest {
			t.Errorf("another %s gives the same digest", name)
		}
	}
}

// TestPlanChoosesDisk is D01, D09 and D10 where a plan is made.
func TestPlanChoosesDisk(t *testing.T) {
	for name, tt := range map[string]struct {
		edit    func(*lpmos.Task, *lpmos.Hardware, *lpmos.Image)
		want    string // serial
		problem string
	}{
		"the smallest blank one":                {want: "S0"},
		"a blank one before a smaller used one": {want: "S1", edit: func(_ *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) { h.Disks[1].Content = used("old") }},
		"the smallest, where all are used": {want: "S0", edit: func(_ *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) {
			h.Disks[1].Content, h.Disks[2].Content = used("a"), used("b")
		}},
		"an unreadable one is not blank": {want: "S1", edit: func(_ *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) {
			h.Disks[1].ContentUnknownBecause = "input/output error"
		}},
		"large enough for the image": {want: "N0", edit: func(_ *lpmos.Task, _ *lpmos.Hardware, i *lpmos.Image) { i.SizeBytes = 600 * gb }},
		"the one asked for": {want: "N0", edit: func(t *lpmos.Task, _ *lpmos.Hardware, _ *lpmos.Image) {
			t.TargetDisk = &lpmos.DiskRef{Serial: "N0", SizeBytes: 960 * gb}
		}},
		"one without serial, named by path and size": {want: "", edit: func(t *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) {
			h.Disks[1].Serial, h.Disks[1].WWN = "", ""
			t.TargetDisk = &lpmos.DiskRef{Path: "/dev/sda", SizeBytes: 480 * gb}
		}},
		"asked for one that is not there": {problem: "is not in this machine", edit: func(t *lpmos.Task, _ *lpmos.Hardware, _ *lpmos.Image) {
			t.TargetDisk = &lpmos.DiskRef{Serial: "N0", SizeBytes: 961 * gb}
		}},
		"asked for a stick": {problem: "removable", edit: func(t *lpmos.Task, _ *lpmos.Hardware, _ *lpmos.Image) {
			t.TargetDisk = &lpmos.DiskRef{Serial: "U0", SizeBytes: 32 * gb}
		}},
		"asked for one that is too small": {problem: "too small: 480 GB", edit: func(t *lpmos.Task, h *lpmos.Hardware, i *lpmos.Image) {
			i.SizeBytes = 480 * gb
			t.TargetDisk = &lpmos.DiskRef{Serial: "S0", WWN: "0x5000c500a0b1c2d3", SizeBytes: 480 * gb}
		}},
		"asked for one of two twins": {problem: "is not in this machine", edit: func(t *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) {
			h.Disks[1], h.Disks[2] = h.Disks[0], h.Disks[0]
			t.TargetDisk = &lpmos.DiskRef{Serial: "N0", SizeBytes: 960 * gb}
		}},
		"too small": {problem: "Every disk is too small: the largest has 960 GB", edit: func(_ *lpmos.Task, _ *lpmos.Hardware, i *lpmos.Image) { i.SizeBytes = 2e12 }},
		"no disk":   {problem: "The machine has no disk.", edit: func(_ *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) { h.Disks = nil }},
		"no serial": {problem: "neither serial number nor WWN", edit: func(_ *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) {
			for i := range h.Disks {
				h.Disks[i].Serial, h.Disks[i].WWN = "", ""
			}
		}},
		"only remote disks": {problem: "not local", edit: func(_ *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) {
			for i, t := range []string{"iscsi", "fc", "nvme-tcp", "nvme-rdma"} {
				h.Disks[i].Transport, h.Disks[i].Removable = t, false
			}
		}},
		"another architecture": {problem: "The image is for arm64, the machine is amd64.", edit: func(_ *lpmos.Task, _ *lpmos.Hardware, i *lpmos.Image) { i.Arch = "arm64" }},
		"another firmware":     {problem: "cannot boot a uefi machine", edit: func(_ *lpmos.Task, _ *lpmos.Hardware, i *lpmos.Image) { i.BootModes = []string{"bios"} }},
	} {
		t.Run(name, func(t *testing.T) {
			tk, h, i := task(), server(), image()
			if tt.edit != nil {
				tt.edit(tk, h, &i)
			}
			p := lpmos.NewPlan(tk, h, i)
			if tt.problem != "" {
				if !strings.Contains(p.Problem, tt.problem) || p.Effect.Target != (lpmos.DiskRef{}) || p.Effect.Partitions != nil || p.ErasesData() {
					t.Errorf("problem %q, target %s; want %q and no target", p.Problem, p.Effect.Target, tt.problem)
				}
				return
			}
			if p.Problem != "" || p.Effect.Target.Serial != tt.want {
				t.Errorf("target %s, problem %q; want serial %q", p.Effect.Target, p.Problem, tt.want)
			}
		})
	}
}

func TestPlanLayoutFits(t *testing.T) {
	for _, size := range []int64{2<<30 + 68<<20, 480 * gb, 7_681_501_126_656, 3<<30 + 511} {
		h := server()
		h.Disks = []lpmos.Disk{{Device: "/dev/vda", Serial: "D", SizeBytes: size, Transport: "virtio"}}
		p := lpmos.NewPlan(task(), h, image())
		if p.Problem != "" {
			t.Errorf("%d bytes: %s", size, p.Problem)
			continue
		}
		sum := int64(2 * lpmos.GPTReserveBytes)
		ids := map[string]bool{}
		for i, q := range p.Effect.Partitions {
			if q.Number != i+1 || q.SizeBytes%(1<<20) != 0 || ids[q.PartUUID] {
				t.Errorf("%d bytes: partition %+v", size, q)
			}
			ids[q.PartUUID] = true
			sum += q.SizeBytes
		}
		root, ok := p.Effect.Partition("root")
		if sum > size || !ok || root.SizeBytes < image().SizeBytes {
			t.Errorf("%d bytes: the partitions take %d, root %d", size, sum, root.SizeBytes)
		}
	}
}

func TestHazards(t *testing.T) {
	h := server()
	h.Disks = h.Disks[:1]
	h.Disks[0].Content.Partitions = append(h.Disks[0].Content.Partitions,
		lpmos.Partition{Number: 2, SizeBytes: 5 * gb}, lpmos.Partition{Number: 3, SizeBytes: 1 * gb, Name: "boot"})
	p := lpmos.NewPlan(task(), h, image())
	want := []string{
		"partition 1, 100 GB: ext4 “payroll”, Debian GNU/Linux 11 of host db-07, 42 GB in use, last written 2026-05-06 07:08 UTC",
		"partition 2, 5 GB: no filesystem found",
		"partition 3, 1 GB: “boot”, no filesystem found",
	}
	if !slices.Equal(p.Hazards, want) || !p.ErasesData() {
		t.Errorf("hazards %q, erases %v; want %q", p.Hazards, p.ErasesData(), want)
	}
	h.Disks[0].Content, h.Disks[0].ContentUnknownBecause = lpmos.Content{}, "input/output error"
	p = lpmos.NewPlan(task(), h, image())
	if len(p.Hazards) != 1 || !strings.Contains(p.Hazards[0], "input/output error") || !p.ErasesData() {
		t.Errorf("hazards of an unreadable disk = %q, erases %v", p.Hazards, p.ErasesData())
	}
	h.Disks[0].ContentUnknownBecause = ""
	if p = lpmos.NewPlan(task(), h, image()); len(p.Hazards) != 0 || p.ErasesData() {
		t.Errorf("hazards of a blank disk = %q, erases %v", p.Hazards, p.ErasesData())
	}
}

func TestObserveLeavesSticksOut(t *testing.T) {
	with, without := server(), server()
	without.Disks = without.Disks[:3]
	if lpmos.DigestOf(lpmos.Observe(with)) != lpmos.DigestOf(lpmos.Observe(without)) {
		t.Error("a stick that comes and goes changes what was observed")
	}
}
