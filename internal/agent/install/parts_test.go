package install

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/fstab"
	"github.com/lpmos/lpmos/internal/tier"
)

// fileDevice is a regular file in place of a disk.
func fileDevice(t *testing.T, size int64) *device {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "disk"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &device{File: f, sizeBytes: size, sectorBytes: 512, regular: true}
}

func TestMarker(t *testing.T) {
	d := fileDevice(t, 8<<20)
	m := Marker{TaskID: testTask, Attempt: 2, PlanDigest: "sha256:" + strings.Repeat("a", 64)}
	if _, ok := readMarker(d); ok {
		t.Error("an empty disk has a marker")
	}
	if err := d.writeMarker(m); err != nil {
		t.Fatal(err)
	}
	if got, ok := readMarker(d); !ok || got != m {
		t.Errorf("readMarker = %+v, %v; want %+v", got, ok, m)
	}
	for _, at := range []int64{0, 30, 2000, markerBytes - 1} {
		b := []byte{0}
		d.ReadAt(b, markerOffset+at)
		d.WriteAt([]byte{b[0] ^ 1}, markerOffset+at)
		if _, ok := readMarker(d); ok {
			t.Errorf("a marker with byte %d changed is taken for one", at)
		}
		d.WriteAt(b, markerOffset+at)
	}
	if err := d.wipe(nil); err != nil {
		t.Fatal(err)
	}
	if _, ok := readMarker(d); ok {
		t.Error("the marker survives the next attempt's wipe")
	}
}

func TestWipeClearsBothEndsOfEverything(t *testing.T) {
	const size = 64 << 20
	d := fileDevice(t, size)
	if _, err := d.WriteAt(bytes.Repeat([]byte{0xff}, size), 0); err != nil {
		t.Fatal(err)
	}
	part := placed{PlannedPartition: lpmos.PlannedPartition{Number: 1, SizeBytes: 16 << 20}, start: 8 << 20}
	if err := d.wipe([]placed{part}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	d.ReadAt(b, 0)
	for _, c := range []struct {
		at   int
		want byte
	}{{0, 0}, {1<<20 - 1, 0}, {1 << 20, 0xff}, {8<<20 - 1, 0xff}, {8 << 20, 0}, {9<<20 - 1, 0}, {9 << 20, 0xff}, {23 << 20, 0}, {24<<20 - 1, 0}, {24 << 20, 0xff}, {size - 1<<20, 0}, {size - 1, 0}} {
		if b[c.at] != c.want {
			t.Errorf("byte %d is %#x; want %#x", c.at, b[c.at], c.want)
		}
	}
}

func TestPlace(t *testing.T) {
	effect := func(sizes ...int64) *lpmos.Effect {
		e := &lpmos.Effect{}
		for i, s := range sizes {
			e.Partitions = append(e.Partitions, lpmos.PlannedPartition{Number: i + 1, SizeBytes: s})
		}
		return e
	}
	const mib = 1 << 20
	d := &device{sizeBytes: 100 * mib, sectorBytes: 512}
	got, err := place(effect(2*mib, 64*mib, 32*mib).Partitions, d)
	if err != nil || got[0].start != mib || got[1].start != 3*mib || got[2].start != 67*mib {
		t.Errorf("place = %+v, %v", got, err)
	}
	for name, e := range map[string]*lpmos.Effect{"past the backup table": effect(2*mib, 64*mib, 33*mib), "not aligned": effect(2*mib, 64*mib+512), "negative": effect(-2 * mib), "nothing": effect()} {
		if got, err := place(e.Partitions, d); err == nil {
			t.Errorf("place(%s) = %+v; want an error", name, got)
		}
	}
}

func TestPartitionPath(t *testing.T) {
	for in, want := range map[string]string{"/dev/sda": "/dev/sda3", "/dev/nvme0n1": "/dev/nvme0n1p3", "/dev/mmcblk0": "/dev/mmcblk0p3", "/dev/vdb": "/dev/vdb3"} {
		if got := partitionPath(in, 3); got != want {
			t.Errorf("partitionPath(%s, 3) = %s; want %s", in, got, want)
		}
	}
}

// TestInstallRefusesBeforeWriting holds every refusal to "nothing was written" (D02, D04).
func TestInstallRefusesBeforeWriting(t *testing.T) {
	const size = 400 << 20
	for _, c := range []struct {
		name string
		edit func(p *lpmos.Plan, hw *lpmos.Hardware, in *Installer)
		man  func(m *lpmos.ImageManifest)
		code string
	}{
		{"disk is a regular file", func(_ *lpmos.Plan, hw *lpmos.Hardware, _ *Installer) {
			f := filepath.Join(t.TempDir(), "file")
			os.WriteFile(f, make([]byte, 1000), 0o600)
			hw.Disks[0].Device = f
		}, nil, "disk_missing"},
		{"device is not there", func(_ *lpmos.Plan, hw *lpmos.Hardware, _ *Installer) { hw.Disks[0].Device = "/dev/lpmos-none" }, nil, "disk_missing"},
		{"disk is not in the machine", func(_ *lpmos.Plan, hw *lpmos.Hardware, _ *Installer) { hw.Disks = nil }, nil, "disk_missing"},
		{"two disks of one name", func(_ *lpmos.Plan, hw *lpmos.Hardware, _ *Installer) { hw.Disks = append(hw.Disks, hw.Disks[0]) }, nil, "disk_missing"},
		{"image is larger than the partition", func(p *lpmos.Plan, _ *lpmos.Hardware, _ *Installer) { p.Effect.Partitions[2].SizeBytes = 128 << 10 }, nil, "image_too_large"},
		{"image is unknown to the region", func(p *lpmos.Plan, _ *lpmos.Hardware, _ *Installer) {
			p.Effect.Image.Digest = "sha256:" + strings.Repeat("0", 64)
		}, nil, "image_missing"},
		{"boot loader is missing", func(_ *lpmos.Plan, _ *lpmos.Hardware, in *Installer) { in.cfg.Grub.CoreImg = "/nonexistent" }, nil, "boot_image_incomplete"},
		{"manifest is inconsistent", nil, func(m *lpmos.ImageManifest) { m.Chunks[1].Offset = 0 }, "image_corrupt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newBlobServer(t)
			m, digest := s.pack(t, testBytes(4*testChunk), testChunk, c.man)
			hw := testHardware("/dev/lpmos-none", size, 512)
			in := New(Config{Grub: fakeGrub(t), WorkDir: t.TempDir(), Identify: func(context.Context) (*lpmos.Hardware, error) { return hw, nil }},
				&programs{t: t}, s.client(t, 0), nil, slog.New(slog.DiscardHandler))
			plan := testPlan(t, hw, m, digest)
			if c.edit != nil {
				c.edit(plan, hw, in)
			}
			err := in.Install(t.Context(), Job{TaskID: testTask, Attempt: 1, Plan: plan, OnWrite: func() { t.Error("OnWrite was called") }})
			if got := failureCode(err); got != c.code {
				t.Errorf("Install = %v; want %s", err, c.code)
			}
		})
	}
}

// TestNamesThatMoved has the target's name be another disk's between two steps:
// what is there now is not written to (D02).
func TestNamesThatMoved(t *testing.T) {
	other := filepath.Join(t.TempDir(), "disk")
	was := bytes.Repeat([]byte{7}, 2<<20)
	for _, name := range []string{other, other + "3"} {
		if err := os.WriteFile(name, was, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hw := testHardware("/dev/elsewhere", 400<<20, 512)
	plan := testPlan(t, hw, &lpmos.ImageManifest{OS: "debian", Version: "12", Arch: "amd64", SizeBytes: 4096}, "sha256:"+strings.Repeat("1", 64))
	job := Job{TaskID: testTask, Attempt: 1, Plan: plan}
	var r recorder
	in := New(Config{Identify: func(context.Context) (*lpmos.Hardware, error) { return hw, nil }}, &r, nil, nil, slog.New(slog.DiscardHandler))
	in.open = func(path string) (*device, error) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		return &device{File: f, sizeBytes: int64(len(was)), sectorBytes: 512, regular: true}, err
	}
	disk := target{hw.Disks[0].Ref(), other, []placed{{lpmos.PlannedPartition{Number: 3, Role: "root"}, 1 << 20}}}
	for name, step := range map[string]func() error{
		"writeImage": func() error { return in.writeImage(t.Context(), &job, nil, disk) },
		"buildVolumes": func() error {
			_, _, err := in.buildVolumes(t.Context(), &job, []target{disk})
			return err
		},
		"complete": func() error { return in.complete(t.Context(), &job, nil, []target{disk}) },
		"seal":     func() error { return in.seal(t.Context(), &job, nil, disk) },
	} {
		if got := failureCode(step()); got != "disk_missing" {
			t.Errorf("%s = %s; want disk_missing", name, got)
		}
		for _, name := range []string{other, other + "3"} {
			if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, was) {
				t.Errorf("%s was written to (%v)", filepath.Base(name), err)
			}
		}
	}
	if len(r.calls) > 0 {
		t.Errorf("programs were run: %q", r.calls)
	}
}

// recorder is a Runner that only remembers.
type recorder struct{ calls, inputs []string }

func (r *recorder) Run(_ context.Context, input []byte, path string, args ...string) error {
	r.calls = append(r.calls, strings.Join(append([]string{filepath.Base(path)}, args...), " "))
	r.inputs = append(r.inputs, string(input))
	return nil
}

func (r *recorder) Read(ctx context.Context, path string, args ...string) (string, error) {
	return "", r.Run(ctx, nil, path, args...)
}

// TestEncryptedVolumes holds the order in which things are made and taken apart,
// and that a passphrase is in no argument, no log and no step.
func TestEncryptedVolumes(t *testing.T) {
	const passphrase = "CANARY battery staple"
	hw := machineWith([]string{"/dev/x", "/dev/y"}, 20<<30, 512)
	task := &lpmos.Task{ID: testTask, Spec: lpmos.Spec{Hostname: "web-1", Layout: &lpmos.Layout{Preset: "raid1-luks"}},
		Committed: []lpmos.PlannedSecret{{Name: lpmos.SecretDisk, Commitment: "sha256:" + strings.Repeat("1", 64)}}}
	plan := lpmos.NewPlan(task, hw, lpmos.Image{OS: "testos", Version: "1", Arch: "amd64", Digest: "sha256:" + strings.Repeat("2", 64), Format: lpmos.FormatTar, SizeBytes: 1 << 20, BootModes: []string{"bios"}})
	if plan.Problem != "" {
		t.Fatal(plan.Problem)
	}
	job := testJob(&plan)
	job.Secrets = map[string]lpmos.Secret{lpmos.SecretDisk: lpmos.NewSecret(passphrase)}
	var said strings.Builder
	job.OnStep = func(s Step) { said.WriteString(s.Message + "\n") }
	var targets []target
	for i, d := range plan.Effect.Disks() {
		parts, err := place(d.Partitions, &device{sizeBytes: 20 << 30, sectorBytes: 512})
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, target{d.Disk, []string{"/dev/x", "/dev/y"}[i], parts})
	}
	var r recorder
	in := New(Config{Identify: func(context.Context) (*lpmos.Hardware, error) { return hw, nil }}, &r, nil, nil,
		slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug})))
	v, fss, err := in.buildVolumes(t.Context(), &job, targets)
	if err := errors.Join(err, v.close(t.Context())); err != nil {
		t.Fatal(err)
	}
	c := plan.Effect.Crypts[0]
	dev, group := "/dev/mapper/"+c.Name, plan.Effect.Groups[0].Name
	if root := fss[len(fss)-1]; root.Mount != "/boot" || !slices.ContainsFunc(fss, func(m mountable) bool { return m.Mount == "/" && m.dev == "/dev/mapper/"+group+"-root" }) {
		t.Errorf("filesystems = %+v", fss)
	}
	var got []string
	for i, call := range r.calls {
		if strings.Contains(call, passphrase) {
			t.Errorf("the passphrase is an argument of %s", call)
		}
		if want := strings.HasPrefix(call, "cryptsetup luksFormat") || strings.HasPrefix(call, "cryptsetup open"); (r.inputs[i] == passphrase) != want {
			t.Errorf("%s got the input %q", call, r.inputs[i])
		}
		f := strings.Fields(call)
		switch f[0] {
		case "mdadm", "cryptsetup":
			got = append(got, strings.Join(f[:2], " "))
		case "lvm":
			got = append(got, f[0]+" "+f[1])
			if !strings.Contains(call, `"a|^`+dev+`$|","r|.*|"`) {
				t.Errorf("%s does not see the container alone", call)
			}
		}
	}
	want := []string{"mdadm --create", "mdadm --create", "cryptsetup luksFormat", "cryptsetup open", "lvm pvcreate", "lvm vgcreate", "lvm lvcreate", "lvm lvcreate",
		"lvm vgchange", "cryptsetup close", "mdadm --stop", "mdadm --stop"}
	if !slices.Equal(got, want) {
		t.Errorf("programs = %q; want %q", got, want)
	}
	if i := slices.IndexFunc(r.calls, func(s string) bool { return strings.HasPrefix(s, "cryptsetup luksFormat") }); !strings.HasSuffix(r.calls[i], "--type luks2 --uuid "+c.UUID+" --key-file - /dev/md1") {
		t.Errorf("%s; want LUKS2 with the plan's UUID on the array", r.calls[i])
	}
	if strings.Contains(said.String(), passphrase) {
		t.Errorf("the passphrase was said: %s", said.String())
	}
	if got, want := crypttab(plan.Effect.Crypts), c.Name+" UUID="+c.UUID+" none luks,initramfs\n"; !strings.HasSuffix(got, want) {
		t.Errorf("crypttab = %q; want %q", got, want)
	}
	// Without its passphrase nothing is begun.
	s := newBlobServer(t)
	m, digest := s.packTar(t, systemTree(t))
	p := plan
	p.Effect.Image.Digest = digest
	without := testJob(&p)
	without.OnWrite = func() { t.Error("OnWrite was called") }
	in.blobs, in.cfg.Grub = s.client(t, 0), fakeGrub(t)
	if got := failureCode(in.Install(t.Context(), without)); got != "plan_invalid" {
		t.Errorf("Install of %s without a passphrase = %s; want plan_invalid", m.OS, got)
	}
}

func TestMenuTakesConsolesAndRefusesScripts(t *testing.T) {
	proc := t.TempDir()
	os.WriteFile(filepath.Join(proc, "cmdline"), []byte("initrd=base.img console=tty0 quiet console=ttyS0,115200 console=$(evil)\n"), 0o644)
	m := &lpmos.ImageManifest{OS: "debian'", Version: "12", Kernel: "boot/vmlinuz", Initrd: "/boot/initrd", KernelArgs: "net.ifnames=0"}
	plan := testPlan(t, testHardware("/dev/x", 400<<20, 512), &lpmos.ImageManifest{OS: "debian", Version: "12", Arch: "amd64", SizeBytes: 4096}, "sha256:"+strings.Repeat("1", 64))
	b, err := fakeGrub(t).load(&plan.Effect, proc)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.menu(&plan.Effect, m)
	root, _ := plan.Effect.Partition("root")
	want := "  linux /boot/vmlinuz root=UUID=" + root.UUID + " ro net.ifnames=0 console=tty0 console=ttyS0,115200\n  initrd /boot/initrd\n"
	if err != nil || !strings.Contains(got, want) || !strings.Contains(got, "menuentry 'debian 12'") {
		t.Errorf("menu = %q, %v; want %q in it", got, err, want)
	}
	for _, evil := range []string{"a;b", "$x", "`x`", "a'b", "a\"b", "{", "\\"} {
		m.KernelArgs = evil
		if got, err := b.menu(&plan.Effect, m); err == nil {
			t.Errorf("menu with argument %q = %q; want an error", evil, got)
		}
	}
}

// TestHolder is D05: what uses the disk, or a partition of it, is said by its name.
func TestHolder(t *testing.T) {
	for name, c := range map[string]struct{ file, text, want string }{
		"nothing":                {"", "", ""},
		"LVM or LUKS":            {"sys/class/block/sda/sda2/holders/dm-0", "", "sda2 is held by dm-0"},
		"multipath":              {"sys/class/block/sda/holders/dm-1", "", "sda is held by dm-1"},
		"an array":               {"sys/class/block/sda/sda1/holders/md0", "", "sda1 is held by md0"},
		"a mount":                {"proc/self/mountinfo", "22 1 8:2 / /srv rw - ext4 /dev/sda2 rw\n", "sda2 is mounted on /srv"},
		"a mount of the disk":    {"proc/self/mountinfo", "22 1 8:0 / /srv rw - ext4 /dev/sda rw\n", "sda is mounted on /srv"},
		"swap":                   {"proc/swaps", "Filename Type Size Used Priority\n/dev/sda1 partition 1 0 -2\n", "sda1 is swapped to"},
		"a mount of another":     {"proc/self/mountinfo", "22 1 8:16 / /srv rw - ext4 /dev/sdb rw\n", ""},
		"swap on another's part": {"proc/swaps", "/dev/sda10 partition 1 0 -2\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]string{"sys/class/block/sda/dev": "8:0\n", "sys/class/block/sda/sda1/dev": "8:1\n", "sys/class/block/sda/sda2/dev": "8:2\n"}
			if c.file != "" {
				files[c.file] = c.text
			}
			for name, text := range files {
				p := filepath.Join(dir, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			in := New(Config{Sys: filepath.Join(dir, "sys"), Proc: filepath.Join(dir, "proc")}, nil, nil, nil, slog.New(slog.DiscardHandler))
			if got := in.holder("/dev/sda"); got != c.want {
				t.Errorf("holder = %q; want %q", got, c.want)
			}
			// As the kernel says it of most of them.
			in.cfg.Identify = func(context.Context) (*lpmos.Hardware, error) { return testHardware("/dev/sda", 400<<20, 512), nil }
			in.open = func(string) (*device, error) { return nil, busy("somebody", syscall.EBUSY) }
			_, err := in.claim(t.Context(), &lpmos.Effect{Target: testHardware("/dev/sda", 400<<20, 512).Disks[0].Ref()})
			if f, ok := errors.AsType[*Failure](err); !ok || f.Code != "disk_busy" || !strings.Contains(f.Cause, cmp.Or(c.want, "somebody")) {
				t.Errorf("claim = %v; want disk_busy, and whose it is", err)
			}
		})
	}
}

// TestFullESP is D11: a boot loader that has no room where firmware looks for it
// without a boot entry is said to have none.
func TestFullESP(t *testing.T) {
	if os.Getuid() != 0 {
		tier.Missing(t, "root", "not root")
	}
	esp := t.TempDir()
	if err := syscall.Mount("tmpfs", esp, "tmpfs", 0, "size=64k"); err != nil {
		tier.Missing(t, "root", "tmpfs: "+err.Error())
	}
	t.Cleanup(func() { syscall.Unmount(esp, syscall.MNT_DETACH) })
	loader := filepath.Join(esp, "EFI/vendor/shimx64.efi")
	if err := errors.Join(os.MkdirAll(filepath.Dir(loader), 0o755), os.WriteFile(loader, make([]byte, 40<<10), 0o644)); err != nil {
		t.Fatal(err)
	}
	in := New(Config{WorkDir: t.TempDir()}, new(recorder), nil, nil, slog.New(slog.DiscardHandler))
	in.mountFS = func(_, target, _ string, _ uintptr, _ string) error {
		return mountFS(esp, target, "", syscall.MS_BIND, "")
	}
	m := &lpmos.ImageManifest{Arch: "amd64", Disk: &lpmos.ImageDisk{ESP: 15, Partitions: []lpmos.ImagePartition{{Number: 15}}}}
	job := &Job{Plan: &lpmos.Plan{Effect: lpmos.Effect{BootMode: "uefi"}}}
	err := in.signpost(t.Context(), job, m, target{path: "/dev/sda"}, mountable{})
	if f, ok := errors.AsType[*Failure](err); !ok || f.Code != "image_unsuitable" || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("signpost on an ESP without room = %v; want image_unsuitable", err)
	}
}

// TestFitMBR fits tables as sfdisk makes them to a larger disk: the root partition
// reaches as far as it may, and not a byte else of the table is another.
func TestFitMBR(t *testing.T) {
	if _, err := exec.LookPath("sfdisk"); err != nil {
		tier.Missing(t, "root", "no sfdisk")
	}
	const mib, tib = int64(1 << 20), int64(1 << 40)
	for _, c := range []struct {
		name, script string
		sector, size int64 // of the disk
		root         int
		want         int64 // size of the root partition, 0 when it is refused
	}{
		{"the only one", "1M 15M 83\n", 512, 256 * mib, 1, 255 * mib},
		{"the last one", "1M 15M ef\n16M 16M 83 *\n", 512, 256 * mib, 2, 240 * mib},
		{"a disk that ends in the middle of a MiB", "1M 15M 83\n", 512, 256*mib + 512*1023, 1, 255 * mib},
		{"the image's own size", "1M 63M 83\n", 512, 64 * mib, 1, 63 * mib},
		{"a gap behind it", "1M 15M 83\n32M 8M 82\n", 512, 256 * mib, 1, 31 * mib},
		{"a gap that ends in the middle of a MiB", "1M 15M 83\n66000s 8M 82\n", 512, 256 * mib, 1, 31 * mib},
		{"another right behind it", "1M 15M 83\n16M 8M 82\n", 512, 256 * mib, 1, 15 * mib},
		{"the last one, by another number", "40M 8M 83\n1M 8M 82\n", 512, 256 * mib, 1, 216 * mib},
		{"logical ones behind it", "1M 15M 83\n32M 30M 05\n33M 4M 83\n38M 4M 83\n", 512, 256 * mib, 1, 31 * mib},
		{"logical ones in front of it", "1M 15M 05\n32M 16M 83\n2M 4M 82\n", 512, 256 * mib, 2, 224 * mib},
		{"a logical one", "1M 15M 83\n32M 30M 05\n33M 4M 83\n", 512, 256 * mib, 5, 0},
		{"a disk as large as a table can say", "1M 15M 83\n", 512, 2 * tib, 1, 2*tib - mib},
		{"a larger disk than a table can say", "1M 15M 83\n", 512, 3 * tib, 1, 2*tib - mib},
		{"large sectors", "2048s 3840s 83\n", 4096, 3 * tib, 1, 3*tib - 8*mib}, // from 8 MiB
		{"one that is not there", "1M 15M 83\n", 512, 256 * mib, 2, 0},
		{"no number", "1M 15M 83\n", 512, 256 * mib, 0, 0},
		{"a disk that is too small", "1M 63M 83\n", 512, 32 * mib, 1, 0},
		{"a disk too small for another", "1M 15M 83\n32M 32M 82\n", 512, 48 * mib, 1, 0},
		{"no table", "", 512, 256 * mib, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := fileDevice(t, 64*mib)
			if c.script != "" {
				var script strings.Builder
				script.WriteString("label: dos\n")
				unit := strings.NewReplacer("M", "MiB", "s", "")
				for line := range strings.Lines(c.script) {
					f := strings.Fields(line)
					fmt.Fprintf(&script, "start=%s, size=%s, type=%s", unit.Replace(f[0]), unit.Replace(f[1]), f[2])
					if len(f) > 3 {
						script.WriteString(", bootable")
					}
					script.WriteString("\n")
				}
				cmd := exec.Command("sfdisk", "-q", "--no-reread", "--no-tell-kernel", d.Name())
				cmd.Stdin = strings.NewReader(script.String())
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("sfdisk: %v: %s", err, out)
				}
			}
			d.sizeBytes, d.sectorBytes = c.size, c.sector
			read := func() []byte {
				b := make([]byte, mib)
				if _, err := d.ReadAt(b, 0); err != nil {
					t.Fatal(err)
				}
				return b
			}
			want := read()
			size, err := d.fitTable(&lpmos.ImageDisk{Table: "mbr", Root: c.root})
			if c.want == 0 {
				if failureCode(err) != "image_corrupt" {
					t.Errorf("fitTable = %d, %v; want image_corrupt", size, err)
				}
			} else if err != nil || size != c.want {
				t.Errorf("fitTable = %d MiB and %d bytes, %v; want %d MiB", size/mib, size%mib, err, c.want/mib)
			} else {
				le.PutUint32(want[446+16*(c.root-1)+12:], uint32(c.want/c.sector))
			}
			if !bytes.Equal(read(), want) {
				t.Error("another byte of the first MiB was changed")
			}
		})
	}
}

// TestBelow mounts what belongs below the root, and nothing that an fstab should
// not reach.
func TestBelow(t *testing.T) {
	d := &lpmos.ImageDisk{Root: 3, ESP: 2, Partitions: []lpmos.ImagePartition{{Number: 7, FS: "ext3", FSLabel: "home"}, {Number: 2, FS: "vfat", FSUUID: "E"}, {Number: 3, FS: "btrfs", FSUUID: "R"}, {Number: 4, FS: "xfs", FSUUID: "V"}, {Number: 5, FS: "swap", FSUUID: "S"}, {Number: 6, FS: "ext4", FSLabel: "boot"}}}
	table := fstab.Parse(`UUID=R / btrfs defaults 0 0
UUID=R /root btrfs compress=zstd,subvol=@/root,degraded 0 0
UUID=V /var/../var xfs subvol=@/odd 0 0
UUID=R /var/lib/../cache btrfs subvolid=261 0 0
UUID=R /../.. btrfs subvol=@ 0 0
UUID=R srv btrfs subvol=@/srv 0 0
UUID=R /boot/grub2/x86_64-efi btrfs subvol=@/boot 0 0
LABEL=boot /boot ext4 defaults 0 2
UUID=E /boot/efi vfat defaults 0 0
UUID=S none swap sw 0 0
UUID=R /opt btrfs noauto,subvol=@/opt 0 0
UUID=OTHER /data xfs nofail 0 0
/dev/sdb1 /mnt ext4 defaults 0 0
LABEL=home /home ext3 nofail 0 2
UUID=R /root/ btrfs subvol=@/other 0 0
`)
	var got []string
	for _, fs := range (target{path: "/dev/sda"}).below(d, table) {
		got = append(got, fs.dev+" "+fs.FS+" "+fs.Mount+" "+fs.options+map[bool]string{true: "optional"}[fs.optional])
	}
	want := []string{"/dev/sda7 ext4 /home optional", "/dev/sda3 btrfs /root subvol=@/root", "/dev/sda4 xfs /var ", "/dev/sda3 btrfs /var/cache subvolid=261"}
	if !slices.Equal(got, want) {
		t.Errorf("below = %q; want %q", got, want)
	}
	d.Root, d.Partitions[2].FS = 4, "ext4"
	if got := (target{path: "/dev/sda"}).below(d, table[2:3]); len(got) != 0 {
		t.Errorf("the root filesystem is mounted again: %+v", got)
	}
}
