package lpmos_test

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

func treeImage() lpmos.Image {
	i := image()
	i.Format, i.SizeBytes = lpmos.FormatTar, 3<<30
	return i
}

func TestLayoutPresetsAreValid(t *testing.T) {
	for _, name := range lpmos.LayoutPresets() {
		tk, h := task(), server()
		tk.Layout, tk.Committed = &lpmos.Layout{Preset: name}, passphraseCommitted
		if err := tk.Layout.Validate(); err != nil {
			t.Errorf("Validate(%s) = %v", name, err)
		}
		p := lpmos.NewPlan(tk, h, treeImage())
		if p.Problem != "" {
			t.Errorf("plan of %s: %s", name, p.Problem)
		}
		root, ok := p.Effect.Root()
		if boot, _ := p.Effect.Boot(); !ok || root.UUID == "" || boot.FS != "ext4" {
			t.Errorf("%s has root %+v and boot %+v", name, root, boot)
		}
	}
}

func TestLayoutRefusals(t *testing.T) {
	part := func(name, size, fs, mount string) lpmos.LayoutPartition {
		return lpmos.LayoutPartition{Name: name, Size: size, FS: fs, Mount: mount}
	}
	one := func(parts ...lpmos.LayoutPartition) lpmos.Layout {
		return lpmos.Layout{Disks: []lpmos.LayoutDisk{{Name: "a", Partitions: parts}}}
	}
	two := func(parts ...lpmos.LayoutPartition) lpmos.Layout {
		return lpmos.Layout{Disks: []lpmos.LayoutDisk{{Name: "a", Partitions: parts}, {Name: "b", Partitions: parts}}}
	}
	root := part("root", "rest", "ext4", "/")
	for name, c := range map[string]struct {
		l     lpmos.Layout
		field string
	}{
		"an unknown preset":               {lpmos.Layout{Preset: "raid5"}, "layout.preset"},
		"a preset and more":               {lpmos.Layout{Preset: "xfs", Disks: one(root).Disks}, "layout.preset"},
		"no root":                         {one(part("srv", "rest", "ext4", "/srv")), "layout.disks"},
		"two roots":                       {one(part("a", "9 GiB", "ext4", "/"), root), "layout.disks[0].partitions[1].mount"},
		"xfs as root without /boot":       {one(part("root", "rest", "xfs", "/")), "layout.disks"},
		"xfs as /boot":                    {one(part("boot", "1 GiB", "xfs", "/boot"), root), "layout.disks"},
		"/boot behind something":          {one(part("swap", "1 GiB", "swap", ""), part("boot", "1 GiB", "ext4", "/boot"), root), "layout.disks"},
		"root behind something":           {one(part("swap", "1 GiB", "swap", ""), root), "layout.disks"},
		"rest in the middle":              {one(part("root", "rest", "ext4", "/"), part("srv", "1 GiB", "ext4", "/srv")), "layout.disks[0].partitions[0].size"},
		"a size of nothing":               {one(part("root", "0 MiB", "ext4", "/")), "layout.disks[0].partitions[0].size"},
		"a size without unit":             {one(part("root", "100", "ext4", "/")), "layout.disks[0].partitions[0].size"},
		"a filesystem of another time":    {one(part("root", "rest", "reiserfs", "/")), "layout.disks[0].partitions[0].fs"},
		"a mount point that climbs":       {one(root, part("x", "rest", "ext4", "/srv/../etc")), "layout.disks[0].partitions[0].size"},
		"a mount point of the kernel":     {one(part("root", "9 GiB", "ext4", "/"), part("x", "rest", "ext4", "/proc")), "layout.disks[0].partitions[1].mount"},
		"a name that is a path":           {one(part("a/b", "rest", "ext4", "/")), "layout.disks[0].partitions[0].name"},
		"a member nobody uses":            {one(part("root", "9 GiB", "ext4", "/"), part("pv", "rest", "", "")), "layout.disks"},
		"an encrypted /boot":              {one(func() lpmos.LayoutPartition { p := part("boot", "1 GiB", "ext4", "/boot"); p.Encrypt = true; return p }(), root), "layout.disks"},
		"an encrypted root without /boot": {one(func() lpmos.LayoutPartition { p := root; p.Encrypt = true; return p }()), "layout.disks"},
		"an array of what is encrypted": {func() lpmos.Layout {
			l := two(part("boot", "1 GiB", "", ""), lpmos.LayoutPartition{Name: "x", Size: "rest", Encrypt: true})
			l.Arrays = []lpmos.LayoutArray{{Name: "boot", Members: []string{"a/boot", "b/boot"}, FS: "ext4", Mount: "/boot"}, {Name: "m", Members: []string{"a/x", "b/x"}, FS: "ext4", Mount: "/"}}
			return l
		}(), "layout.arrays[1].members"},
		"an array on one disk": {func() lpmos.Layout {
			l := one(part("x", "1 GiB", "", ""), part("y", "rest", "", ""))
			l.Arrays = []lpmos.LayoutArray{{Name: "m", Members: []string{"a/x", "a/y"}, FS: "ext4", Mount: "/"}}
			return l
		}(), "layout.arrays[0].members"},
		"an array of one": {func() lpmos.Layout {
			l := two(part("x", "rest", "", ""))
			l.Arrays = []lpmos.LayoutArray{{Name: "m", Members: []string{"a/x"}, FS: "ext4", Mount: "/"}}
			return l
		}(), "layout.arrays[0].members"},
		"a member that is used twice": {func() lpmos.Layout {
			l := two(part("x", "rest", "", ""))
			l.Arrays = []lpmos.LayoutArray{{Name: "m", Members: []string{"a/x", "b/x"}, FS: "ext4", Mount: "/"}, {Name: "n", Members: []string{"a/x", "b/x"}, FS: "ext4", Mount: "/srv"}}
			return l
		}(), "layout.arrays[1].members"},
		"root in a volume group without /boot": {func() lpmos.Layout {
			l := one(part("pv", "rest", "", ""))
			l.Groups = []lpmos.LayoutGroup{{Name: "g", On: []string{"a/pv"}, Volumes: []lpmos.LayoutVolume{{Name: "root", Size: "rest", FS: "ext4", Mount: "/"}}}}
			return l
		}(), "layout.disks"},
		"a group on what is not there": {func() lpmos.Layout {
			l := one(root)
			l.Groups = []lpmos.LayoutGroup{{Name: "g", On: []string{"b/pv"}, Volumes: []lpmos.LayoutVolume{{Name: "x", Size: "rest", FS: "ext4", Mount: "/srv"}}}}
			return l
		}(), "layout.volume_groups[0].on"},
	} {
		err := c.l.Validate()
		if e, ok := errors.AsType[*lpmos.InvalidError](err); !ok || e.Field != c.field {
			t.Errorf("%s: Validate = %v; want an InvalidError on %s", name, err, c.field)
		}
	}
}

func TestLayoutPlan(t *testing.T) {
	tk, h := task(), server()
	tk.Layout = &lpmos.Layout{Preset: "raid1-lvm"}
	h.Disks[1].Content = used("mail")
	p := lpmos.NewPlan(tk, h, treeImage())
	if p.Problem != "" {
		t.Fatal(p.Problem)
	}
	e := &p.Effect
	// Blank before used, and never the stick.
	if len(e.Disks()) != 2 || e.Target.Serial != "S1" || e.Also[0].Disk.Serial != "S0" {
		t.Fatalf("the plan writes %+v", e.Disks())
	}
	if !p.ErasesData() || len(p.Erased()) != 1 || p.Erased()[0].Disk.Serial != "S0" || len(p.Hazards) == 0 || !strings.Contains(p.Hazards[0], "S0") {
		t.Errorf("erased = %+v, hazards %q; want the mail of S0", p.Erased(), p.Hazards)
	}
	for _, d := range e.Disks() {
		roles := []string{}
		var sum int64
		for i, q := range d.Partitions {
			roles = append(roles, q.Role)
			sum += q.SizeBytes
			if q.Number != i+1 {
				t.Errorf("partition %d of %s has number %d", i+1, d.Disk, q.Number)
			}
		}
		if !slices.Equal(roles, []string{"bios-boot", "esp", "raid", "raid"}) || sum > d.Disk.SizeBytes-2*lpmos.GPTReserveBytes {
			t.Errorf("partitions of %s = %v, %d bytes of %d", d.Disk, roles, sum, d.Disk.SizeBytes)
		}
	}
	if a := e.Arrays; len(a) != 2 || a[0].Metadata != "1.0" || a[1].Metadata != "1.2" || a[1].SizeBytes > 480*gb || a[0].Members[0] != e.Partitions[2].PartUUID || a[0].Members[1] != e.Also[0].Partitions[2].PartUUID {
		t.Errorf("arrays = %+v; want /boot with its metadata at the end", e.Arrays)
	}
	if g := e.Groups[0]; !strings.HasPrefix(g.Name, "system_") || !slices.Equal(g.On, []string{"pv"}) || !g.Volumes[1].Rest || g.Volumes[0].SizeBytes != 1<<30 {
		t.Errorf("volume group = %+v", g)
	}
	if root, _ := e.Partition("root"); root.UUID != e.Groups[0].Volumes[1].UUID || root.Number != 0 {
		t.Errorf("root = %+v; want the volume", root)
	}
	if d := e.BootDisk(); d.RootUUID != e.Arrays[0].FSUUID || d.ESPUUID != e.Partitions[1].UUID {
		t.Errorf("the region looks for %+v; want what GRUB can read", d)
	}
	// Another order of the disks is the same plan, and so is a second look.
	h2 := server()
	h2.Disks[1].Content = used("mail")
	slices.Reverse(h2.Disks)
	if q := lpmos.NewPlan(tk, h2, treeImage()); q.Digest != p.Digest {
		t.Error("another order of disks gives another plan")
	}
	// What became of its own disks does not change an attempt, another disk does.
	now := lpmos.Observe(h)
	for i := range now {
		if e.Writes(now[i].Disk) {
			now[i].Content = lpmos.Content{Table: "gpt"}
		}
	}
	if !p.SameOthers(now) {
		t.Error("disks that the plan writes count as others")
	}
	now[0].Content = lpmos.Content{Table: "mbr"}
	if p.SameOthers(now) {
		t.Error("a change on a disk that is kept is not noticed")
	}

	t.Run("problems are sentences", func(t *testing.T) {
		for name, c := range map[string]struct {
			edit func(*lpmos.Task, *lpmos.Hardware, *lpmos.Image)
			want string
		}{
			"one disk for a mirror": {func(_ *lpmos.Task, h *lpmos.Hardware, _ *lpmos.Image) { h.Disks = h.Disks[1:2] }, "no disk of the machine is left for its disk b"},
			"a filesystem image":    {func(_ *lpmos.Task, _ *lpmos.Hardware, i *lpmos.Image) { i.Format = "" }, "fits one partition"},
			"a disk image":          {func(_ *lpmos.Task, _ *lpmos.Hardware, i *lpmos.Image) { i.Format = lpmos.FormatDisk }, "partitions of its own"},
			"an image too large":    {func(_ *lpmos.Task, _ *lpmos.Hardware, i *lpmos.Image) { i.SizeBytes = 600 * gb }, "too small"},
			"a serial that is not there": {func(t *lpmos.Task, _ *lpmos.Hardware, _ *lpmos.Image) {
				t.Layout = &lpmos.Layout{Disks: []lpmos.LayoutDisk{{Name: "a", Serial: "GONE", Partitions: []lpmos.LayoutPartition{{Name: "root", Size: "rest", FS: "ext4", Mount: "/"}}}}}
			}, "serial GONE"},
			"LUKS without a passphrase": {func(t *lpmos.Task, _ *lpmos.Hardware, _ *lpmos.Image) { t.Layout = &lpmos.Layout{Preset: "luks"} }, "no passphrase"},
		} {
			tk, h, i := task(), server(), treeImage()
			tk.Layout = &lpmos.Layout{Preset: "raid1-lvm"}
			c.edit(tk, h, &i)
			if p := lpmos.NewPlan(tk, h, i); !strings.Contains(p.Problem, c.want) || p.Effect.Target != (lpmos.DiskRef{}) {
				t.Errorf("%s: problem %q with target %s; want %q and none", name, p.Problem, p.Effect.Target, c.want)
			}
		}
	})
}

var passphraseCommitted = []lpmos.PlannedSecret{{Name: lpmos.SecretDisk, Commitment: "sha256:" + strings.Repeat("a", 64)}}

// TestEncryptedPlan looks at what people see of encryption: all of it but the
// passphrase.
func TestEncryptedPlan(t *testing.T) {
	for preset, on := range map[string]func(*lpmos.Effect) string{
		"luks":       func(e *lpmos.Effect) string { return e.Partitions[3].PartUUID },
		"raid1-luks": func(e *lpmos.Effect) string { return e.Arrays[1].Name },
	} {
		tk := task()
		tk.Layout, tk.Committed = &lpmos.Layout{Preset: preset}, passphraseCommitted
		p := lpmos.NewPlan(tk, server(), treeImage())
		if p.Problem != "" || len(p.Effect.Crypts) != 1 {
			t.Fatalf("%s: problem %q, containers %+v", preset, p.Problem, p.Effect.Crypts)
		}
		e := &p.Effect
		c := e.Crypts[0]
		if c.On != on(e) || c.FS != "" || !strings.HasPrefix(c.Name, "crypt_") || !strings.HasPrefix(c.UUID, strings.TrimPrefix(c.Name, "crypt_")) {
			t.Errorf("%s: container = %+v", preset, c)
		}
		if g := e.Groups[0]; !slices.Equal(g.On, []string{c.Name}) || g.Volumes[1].SizeBytes+g.Volumes[0].SizeBytes > c.SizeBytes {
			t.Errorf("%s: group = %+v; want it in the container of %d bytes", preset, g, c.SizeBytes)
		}
		if root, _ := e.Root(); root.Kind != "volume" || !e.NeedsInitramfs() {
			t.Errorf("%s: root = %+v", preset, root)
		}
		if !slices.ContainsFunc(e.Files, func(f lpmos.PlannedFile) bool { return f.Path == "/etc/crypttab" }) {
			t.Errorf("%s: the plan does not name crypttab", preset)
		}
	}
	// A filesystem right in a container.
	tk := task()
	tk.Committed = passphraseCommitted
	tk.Layout = &lpmos.Layout{Disks: []lpmos.LayoutDisk{{Name: "a", Partitions: []lpmos.LayoutPartition{
		{Name: "boot", Size: "1 GiB", FS: "ext4", Mount: "/boot"}, {Name: "root", Size: "rest", FS: "xfs", Mount: "/", Encrypt: true}}}}}
	p := lpmos.NewPlan(tk, server(), treeImage())
	root, _ := p.Effect.Root()
	if p.Problem != "" || root.Kind != "crypt" || root.FS != "xfs" || root.UUID == p.Effect.Crypts[0].UUID || p.Effect.Partitions[3].Role != "crypt" || p.Effect.Partitions[3].UUID != "" {
		t.Errorf("plan = %q, root %+v, partitions %+v", p.Problem, root, p.Effect.Partitions)
	}
}

func TestSpecWantsAPassphrase(t *testing.T) {
	spec := func(preset string, secrets map[string]lpmos.Secret) lpmos.Spec {
		s := task().Spec
		s.Layout, s.Secrets = &lpmos.Layout{Preset: preset}, secrets
		return s
	}
	with := func(p string) map[string]lpmos.Secret {
		return map[string]lpmos.Secret{lpmos.SecretDisk: lpmos.NewSecret(p)}
	}
	for name, s := range map[string]lpmos.Spec{
		"a short one": spec("luks", with("seven77")), "one with a tab": spec("luks", with("a\ttab in it")),
		"one with an umlaut": spec("raid1-luks", with("Schlüsselwort")), "a short one for nothing": spec("lvm", with("x")),
	} {
		_, err := s.Normalize()
		if e, ok := errors.AsType[*lpmos.InvalidError](err); !ok || e.Field != "secrets.disk-passphrase" || e.Value != "" {
			t.Errorf("Normalize with %s = %v; want an InvalidError on the passphrase that does not quote it", name, err)
		}
	}
	for name, s := range map[string]lpmos.Spec{"one": spec("luks", with("correct horse")), "none that is needed": spec("lvm", nil)} {
		if n, err := s.Normalize(); err != nil || n.RequirePassphrase() != nil {
			t.Errorf("Normalize with %s = %v, %v", name, err, n.RequirePassphrase())
		}
	}
	if err := spec("raid1-luks", nil).RequirePassphrase(); err == nil {
		t.Error("an encrypted layout without a passphrase is taken")
	}
}

// TestManyDisks plans on a machine with 64 disks: removable ones are never
// chosen, and the choice does not depend on their order.
// TestSmallXFS holds that what mkfs.xfs would refuse in the middle of an
// installation is refused before anybody approves it.
func TestSmallXFS(t *testing.T) {
	const fixed = 2*lpmos.GPTReserveBytes + 66<<20 // the tables, what the firmware starts from
	data := func(size string) lpmos.LayoutPartition {
		return lpmos.LayoutPartition{Name: "data", Size: size, FS: "xfs", Mount: "/srv"}
	}
	encrypted := data("rest")
	encrypted.Encrypt = true
	for name, c := range map[string]struct {
		data lpmos.LayoutPartition
		disk int64 // beside what is fixed and the root's GiB, in MiB
		want string
	}{
		"the rest of a small disk":      {data("rest"), 299, "/srv would have 314 MB"},
		"the rest that is just enough":  {data("rest"), 300, ""},
		"a size of its own":             {data("100 MiB"), 4096, "/srv would have 105 MB"},
		"what a container leaves of it": {encrypted, 310, "/srv would have 308 MB"},
	} {
		h := server()
		h.Disks = []lpmos.Disk{{Device: "/dev/sda", Serial: "S0", Transport: "sas", SizeBytes: fixed + (1024+c.disk)<<20}}
		tk := task()
		tk.TargetDisk = &lpmos.DiskRef{Serial: "S0", SizeBytes: h.Disks[0].SizeBytes}
		tk.Committed = passphraseCommitted
		tk.Layout = &lpmos.Layout{Disks: []lpmos.LayoutDisk{{Name: "a", Partitions: []lpmos.LayoutPartition{{Name: "root", Size: "1 GiB", FS: "ext4", Mount: "/"}, c.data}}}}
		img := treeImage()
		img.SizeBytes = 1 << 20
		if p := lpmos.NewPlan(tk, h, img); (c.want == "") != (p.Problem == "") || !strings.Contains(p.Problem, c.want) {
			t.Errorf("%s: problem %q; want %q", name, p.Problem, c.want)
		}
	}
}

func TestManyDisks(t *testing.T) {
	h := server()
	h.Disks = nil
	for i := range 64 {
		h.Disks = append(h.Disks, lpmos.Disk{Device: "/dev/sd" + strconv.Itoa(i), Serial: "D" + strconv.Itoa(i), SizeBytes: int64(64-i) * 100 * gb, Removable: i > 40, Transport: "sas"})
	}
	tk := task()
	tk.Layout = &lpmos.Layout{Preset: "raid1"}
	p := lpmos.NewPlan(tk, h, treeImage())
	if p.Problem != "" || p.Effect.Target.Serial != "D40" || p.Effect.Also[0].Disk.Serial != "D39" {
		t.Errorf("plan = %q, %+v; want the two smallest that stay in the machine", p.Problem, p.Effect.Disks())
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"512 MiB": 512 << 20, "1GiB": 1 << 30, "1.5 TiB": 3 << 39, "20GB": 20e9 / (1 << 20) * (1 << 20)} {
		if got, err := lpmos.ParseSize(in); err != nil || got/(1<<20) != want/(1<<20) {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "1", "1 KB", "-1 GiB", "1e3 GiB", "999999999 TiB", "1  GiB", "rest"} {
		if got, err := lpmos.ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d; want an error", in, got)
		}
	}
}

func TestProfileGivesItsLayout(t *testing.T) {
	p := lpmos.Profile{Name: "mail", Layout: &lpmos.Layout{Preset: "raid1"}}
	if s := p.Apply(lpmos.Spec{}); s.Layout.Name() != "raid1" {
		t.Errorf("layout = %s; want the profile's", s.Layout.Name())
	}
	if s := p.Apply(lpmos.Spec{Layout: &lpmos.Layout{Preset: lpmos.LayoutPlain}}); !s.Layout.Plain() {
		t.Error("a task that says plain gets the profile's layout")
	}
	p.Layout.Preset = "nope"
	if _, err := p.Normalize(); err == nil {
		t.Error("a profile with a layout that does not exist is taken")
	}
}
