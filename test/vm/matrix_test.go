package vm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/imageimport"
	"github.com/lpmos/lpmos/internal/imagepack"
	"github.com/lpmos/lpmos/internal/lab"
	"github.com/lpmos/lpmos/internal/preflight"
	"github.com/lpmos/lpmos/test/fixture"
)

// cell is one machine of the matrix, installed once.
type cell struct {
	firmware lab.Firmware
	image    string // of internal/osimage
	form     string // how it is packed: "tar", or a whole disk in a layout of test/fixture
	layout   string // a preset
	bus      lab.Bus
	sector   int
	nics     int
	foreign  []string // what is on the disks that must stay, and on the one that is erased
	ci       bool     // part of every commit
}

// two disks with other systems' data are in every machine.
var two = []string{"LVM2_member", "zfs_member"}

// matrix: every firmware with every way to install, the other dimensions spread
// over it. A BIOS cannot boot sectors of 4096 bytes, QEMU's AHCI has none, and a
// whole disk has those of the disk it was made of.
var matrix = []cell{
	{lab.BIOS, "tiny-storage", "tar", "raid1-lvm", lab.Virtio, 512, 2, two, true},
	{lab.UEFI, "tiny-storage", "tar", "luks", lab.NVMe, 512, 1, two, true},
	{lab.UEFI, "tiny-storage", "el9", "plain", lab.SCSI, 512, 1, two, true},
	{lab.UEFI, "tiny-storage", "suse", "plain", lab.Virtio, 512, 1, two, false},
	{lab.BIOS, "debian-12-storage", "suse", "plain", lab.AHCI, 512, 1, two, false},
	{lab.UEFI, "debian-12-storage", "el9-var", "plain", lab.NVMe, 512, 1, two, false},
	{lab.UEFI, "tiny-storage", "tar", "xfs", lab.Virtio, 4096, 1, two, false},
	{lab.BIOS, "tiny-storage", "ubuntu", "plain", lab.NVMe, 512, 1, two, false},
	{lab.UEFI, "tiny-storage", "ubuntu", "plain", lab.AHCI, 512, 2, two, false},
	{lab.BIOS, "tiny-storage", "el9", "plain", lab.AHCI, 512, 1, two, false},
	{lab.BIOS, "tiny-storage", "tar", "plain", lab.SCSI, 512, 1, []string{"ext4", "LVM2_member", "linux_raid_member", "zfs_member", "xfs"}, false},
	{lab.UEFI, "tiny-storage", "tar", "raid1-lvm", lab.NVMe, 512, 1, two, false},
	{lab.UEFI, "tiny-storage", "tar", "luks", lab.NVMe, 4096, 1, two, false},
	{lab.BIOS, "tiny-storage", "tar", "luks", lab.AHCI, 512, 2, two, false},
	{lab.UEFI, "tiny-storage", "tar", "raid1-luks", lab.SCSI, 512, 1, two, false},
	{lab.BIOS, "tiny-storage", "tar", "xfs", lab.AHCI, 512, 1, two, false},
	{lab.UEFI, "tiny-storage", "tar", "raid1", lab.SCSI, 512, 2, two, false},
	{lab.BIOS, "tiny-storage", "tar", "lvm", lab.NVMe, 512, 1, two, false},
	{lab.UEFI, "tiny-storage", "tar", "plain", lab.NVMe, 4096, 1, two, false},
	{lab.BIOS, "debian-12-storage", "tar", "raid1-lvm", lab.Virtio, 512, 1, two, false},
	{lab.UEFI, "debian-12-storage", "tar", "luks", lab.NVMe, 512, 1, two, false},
	{lab.UEFI, "debian-12-storage", "el9", "plain", lab.Virtio, 512, 1, two, false},
	{lab.BIOS, "debian-12-storage", "ubuntu", "plain", lab.SCSI, 512, 1, two, false},
	{lab.BIOS, "debian-12-storage", "tar", "luks", lab.AHCI, 512, 1, two, false},
	{lab.UEFI, "debian-12-storage", "tar", "raid1-lvm", lab.AHCI, 512, 2, two, false},
	{lab.UEFI, "debian-12-storage", "tar", "xfs", lab.Virtio, 512, 1, two, false},
	{lab.BIOS, "debian-13-storage", "tar", "luks", lab.Virtio, 512, 1, two, false},
	{lab.UEFI, "debian-13-storage", "tar", "raid1-lvm", lab.NVMe, 512, 1, two, false},
	{lab.UEFI, "debian-13-storage", "ubuntu", "plain", lab.SCSI, 512, 1, two, false},
	{lab.BIOS, "debian-13-storage", "el9", "plain", lab.AHCI, 512, 1, two, false},
	{lab.BIOS, "debian-12-storage", "tar", "plain", lab.NVMe, 512, 1, two, false},
	{lab.BIOS, "debian-13-storage", "tar", "plain", lab.AHCI, 512, 2, two, false},
	{lab.UEFI, "debian-13-storage", "tar", "plain", lab.Virtio, 512, 1, two, false},
	{lab.BIOS, "debian-13-storage", "tar", "raid1-lvm", lab.SCSI, 512, 1, two, false},
	{lab.UEFI, "debian-13-storage", "tar", "luks", lab.AHCI, 512, 1, two, false},
}

// whole reports whether the image is a disk with partitions of its own.
func (c cell) whole() bool { return c.form != lpmos.FormatTar }

// layouts are those of whole disks, in words, and what the agent writes on other
// filesystems than the one that is mounted without further ado.
var layouts = map[string]struct {
	says   string
	writes []written
}{
	"ubuntu": {"Ubuntu 24.04: / is 1, /boot 16", nil},
	"el9":    {"EL 9: XFS, BLS, /boot", nil},
	"el9-var": {"EL 9: XFS, BLS, /boot, /var, SELinux", []written{
		{4, "norecovery,nouuid", "lib/cloud/seed/nocloud/user-data", sshKey}, {5, "norecovery,nouuid", ".autorelabel", ""},
	}},
	"suse": {"openSUSE Leap: btrfs, subvolumes", []written{{3, "rescue=nologreplay,subvol=@/root", ".ssh/authorized_keys", sshKey}}},
}

// written is a file of an installed system, with some text in it.
type written struct {
	partition  int
	options    string // to mount it here, where nothing of it is changed
	file, text string
}

// columns are the cell in the table of results, and its name.
func (c cell) columns() []string {
	layout := c.layout
	if c.whole() {
		layout = "its own (" + layouts[c.form].says + ")"
	}
	return []string{c.firmware.String(), c.image, map[bool]string{true: "whole disk", false: "tree of files"}[c.whole()], layout, string(c.bus),
		fmt.Sprint(c.sector), fmt.Sprint(c.nics), fmt.Sprint(len(c.foreign))}
}

func (c cell) name() string {
	return strings.Join([]string{strings.ReplaceAll(c.firmware.String(), " ", "-"), c.image, c.form, c.layout, string(c.bus), fmt.Sprint(c.sector)}, " ")
}

// TestMatrix installs each cell on a machine with more disks than it needs,
// which hold other systems' data, boots it and takes its receipt. A cell with
// LUKS is given its passphrase as an operator would: with the task, and then at
// the machine's console. It is D12, and D09 for buses and sectors.
//
// LPMOS_VM_MATRIX names a file for the table; then all cells run, or those
// whose names match LPMOS_VM_CELL, a regular expression.
func TestMatrix(t *testing.T) {
	table, chosen := os.Getenv("LPMOS_VM_MATRIX"), os.Getenv("LPMOS_VM_CELL")
	only, err := regexp.Compile(chosen)
	if err != nil {
		t.Fatal(err)
	}
	all := table != "" || chosen != "" || os.Getenv("LPMOS_VM") == "all"
	w := onSite(t, "tiny-storage", nil)
	images := map[string]lpmos.Image{}
	var mu sync.Mutex
	results := map[string]string{}
	t.Run("cells", func(t *testing.T) {
		for _, c := range matrix {
			if !all && !c.ci || !only.MatchString(c.name()) {
				continue
			}
			key := c.image + "-" + c.form
			if _, made := images[key]; !made {
				cw := *w
				cw.t = t
				images[key] = cw.packed(c)
				cw.register(images[key])
			}
			t.Run(c.name(), func(t *testing.T) {
				t.Parallel()
				cw := *w
				cw.t, cw.image = t, images[key]
				if strings.HasPrefix(c.image, "debian") && c.form == "tar" {
					cw.installs = 4 * installLimit // its initramfs is made by hundreds of programs, emulated
				}
				began := time.Now()
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					result := "installed, booted, called home"
					if t.Failed() {
						result = "**failed**"
					}
					results[c.name()] = fmt.Sprintf("%s | %d | %s", result, int(time.Since(began).Seconds()), time.Now().UTC().Format("2006-01-02 15:04"))
					if table != "" {
						cw.record(table, results)
					}
				}()
				cw.cell(c)
			})
		}
	})
}

// notInTable says what the matrix does not have, and why.
const notInTable = `
Not here: the images of Ubuntu, Rocky Linux, AlmaLinux and openSUSE themselves, which could not be fetched where this runs
(whole disks in the layouts of Ubuntu 24.04, EL 9 and openSUSE Leap are made from the systems above, with their partitions,
filesystems, subvolumes, fstab and menu); Secure Boot, with which TestCertify installs and boots a whole disk (declared layouts have a loader of ours, which is not
signed: decision 0009); sectors of 4096 bytes with a BIOS,
which cannot boot them, with AHCI, of which QEMU has none, and of whole disks, which keep those of the image.
`

// record writes the table: the newest run of every cell.
func (w *world) record(path string, results map[string]string) {
	w.t.Helper()
	old, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		w.t.Error(err)
		return
	}
	var b strings.Builder
	b.WriteString("# Virtual machine matrix\n\nWritten by `make vm-matrix`, which `CELL=` keeps to some; every line is the newest run of its machine. Installed means, too, that\n" +
		"the receipt is as planned, and that the disks beside those of the plan, which hold other systems' data, have the same hashes\n" +
		"afterwards; of five, with ext4, LVM, RAID, ZFS and xfs on them, one is written. With LUKS it means that the passphrase was typed\n" +
		"at the console and is in no file of the site, no log and on no disk.\n\n" +
		"| firmware | image | what is written | layout | disks | sectors | NICs | with data | result | seconds | UTC |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, c := range matrix {
		line := "| " + strings.Join(c.columns(), " | ") + " | "
		result, now := results[c.name()]
		if !now {
			result = "not run | | "
			for l := range strings.Lines(string(old)) {
				if rest, ok := strings.CutPrefix(l, line); ok {
					result = strings.TrimSuffix(strings.TrimSpace(rest), " |")
				}
			}
		}
		b.WriteString(line + result + " |\n")
	}
	if err := os.WriteFile(path, []byte(b.String()+notInTable), 0o644); err != nil {
		w.t.Error(err)
	}
}

// passphrase is typed by an operator; nothing but its LUKS header may know it.
const passphrase = "CANARY-correct horse battery"

// cell installs one machine.
func (w *world) cell(c cell) {
	w.t.Helper()
	sum := sha256.Sum256([]byte(c.name()))
	cfg := lab.MachineConfig{Name: "m" + hex.EncodeToString(sum[:4]), Firmware: c.firmware}
	needs, encrypted := 1, strings.HasSuffix(c.layout, "luks")
	if strings.HasPrefix(c.layout, "raid1") {
		needs = 2
	}
	// Of five disks with data the last is named and erased; else it is blank ones
	// behind the others that are written. A BIOS starts the first disk it has; the
	// region's helper finds the right one, which is why the foreign disks come first.
	keep, disks := len(c.foreign), len(c.foreign)+needs
	if keep == 5 {
		keep, disks = 4, 5
	}
	for i := range disks {
		size := int64(4 * gb)
		if i < keep {
			size = 2 * gb
		}
		cfg.Disks = append(cfg.Disks, lab.Disk{SizeBytes: size / 4096 * 4096, Bus: c.bus, SectorBytes: c.sector})
	}
	for i := range c.nics {
		cfg.NICs = append(cfg.NICs, lab.NIC{MAC: lpmos.MAC{0x52, 0x54, sum[0], sum[1], sum[2], byte(i + 1)}})
	}
	m := w.newMachine(cfg)
	defer m.PowerOff()
	for i, kind := range c.foreign {
		w.foreign(m.disk(i), kind)
	}
	before := make([]string, keep)
	for i := range before {
		before[i] = w.hash(m.disk(i))
	}
	id := w.create(m, func(s *lpmos.Spec) {
		s.SSHKeys = []string{sshKey}
		if c.layout != lpmos.LayoutPlain {
			s.Layout = &lpmos.Layout{Preset: c.layout}
		}
		if encrypted {
			s.Secrets = map[string]lpmos.Secret{lpmos.SecretDisk: lpmos.NewSecret(passphrase)}
		}
		if keep < len(c.foreign) {
			last := m.Config().Disks[keep]
			s.TargetDisk = &lpmos.DiskRef{Serial: last.Serial, SizeBytes: last.SizeBytes}
		}
	})
	w.powerOn(m)
	plan := w.planned(m, id).Plan
	if got := len(plan.Effect.Disks()); got != needs || plan.ErasesData() != (keep < len(c.foreign)) {
		w.t.Fatalf("the plan writes %d disks, and erases data: %v; want %d", got, plan.ErasesData(), needs)
	}
	for i, kind := range c.foreign {
		if got := observed(plan, m.Config().Disks[i].Serial); got != kind {
			w.t.Errorf("disk %d has %q on it, says the plan; want %s", i, got, kind)
		}
	}
	asked := fromNow(m)
	w.approve(id)
	if encrypted {
		w.unlock(m, asked)
	}
	task := w.completed(m, id)
	m.PowerOff()
	if len(task.Drift) > 0 {
		w.t.Errorf("not as planned: %v", task.Drift)
	}
	if failed := task.Receipt.FailedUnits; len(failed) > 0 {
		w.t.Errorf("failed in the installed system: %v", failed)
	}
	for i, hash := range before {
		if w.hash(m.disk(i)) != hash {
			w.t.Errorf("disk %d, which is not in the plan, was written", i)
		}
	}
	if encrypted {
		w.sealed(m, task)
	}
	w.arrived(m, c)
	w.t.Logf("receipt: %+v", *task.Receipt)
}

// sshKey is let into every system.
const sshKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl matrix"

// arrived checks that what the agent wrote is on the filesystem that is mounted
// there, and not under its mount point.
func (w *world) arrived(m *machine, c cell) {
	w.t.Helper()
	// A kernel takes one filesystem with an identifier at a time.
	blobs.Lock()
	defer blobs.Unlock()
	for _, f := range layouts[c.form].writes {
		p, ok := w.manifest().Disk.Partition(f.partition)
		if !ok {
			w.t.Fatalf("the image has no partition %d", f.partition)
		}
		dir := w.t.TempDir()
		w.output("/usr/bin/mount", "-t", p.FS, "-o", fmt.Sprintf("ro,loop,offset=%d,%s", p.StartBytes, f.options), m.disk(len(c.foreign)), dir)
		b, err := os.ReadFile(filepath.Join(dir, f.file))
		if err != nil || !bytes.Contains(b, []byte(f.text)) {
			w.t.Errorf("%s on partition %d = %.300q, %v; want %q in it", f.file, f.partition, b, err, f.text)
		}
		w.output("/usr/bin/umount", dir)
	}
}

// unlock types the passphrase as often as it is asked for: whoever asks switches
// the echo off and forgets what was typed until then, some time after the question
// can be read.
func (w *world) unlock(m *machine, asked *lab.Reader) {
	w.t.Helper()
	for range 10 {
		if l := w.console(asked, w.installs, "(Please unlock disk|Enter passphrase for) |crypt_.*: set up successfully|tiny: .* is up"); !strings.Contains(l.Text, "disk") && !strings.Contains(l.Text, "passphrase") {
			return
		}
		time.Sleep(2 * time.Second)
		if err := m.Console().Type(passphrase + "\r"); err != nil {
			w.t.Fatal(err)
		}
	}
	w.t.Fatalf("the passphrase was asked for ten times; the console ends with:\n%s", strings.Join(m.Console().Tail(20), "\n"))
}

// observed is the kind of what a plan has found on a disk.
func observed(p *lpmos.Plan, serial string) string {
	for _, d := range p.Observed {
		if f := d.Content.Filesystem; d.Disk.Serial == serial && f != nil {
			return f.Type
		}
	}
	return ""
}

// foreign puts another system's data on a disk.
func (w *world) foreign(path, kind string) {
	w.t.Helper()
	le := binary.LittleEndian
	pieces := map[int64][]byte{64 << 20: bytes.Repeat([]byte(kind+" data of another system\n"), 1000)}
	switch kind {
	case "ext4":
		w.output("/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", "mail", path)
	case "xfs":
		w.output("/sbin/mkfs.xfs", "-q", "-L", "web", path)
	case "LVM2_member": // a label in the second sector, and the header it points to
		label := make([]byte, 512)
		copy(label, "LABELONE\x01")
		le.PutUint32(label[20:], 32)
		copy(label[24:], "LVM2 001abcdefABCDEF0123456789abcdefABCD")
		pieces[512] = label
	case "linux_raid_member": // metadata 1.2
		super := make([]byte, 256)
		le.PutUint32(super, 0xa92b4efc)
		le.PutUint32(super[4:], 1)
		copy(super[16:], "0123456789abcdefother:0")
		le.PutUint64(super[144:], 8)
		pieces[4096] = super
	case "zfs_member": // uberblocks of the first label
		for i := range int64(4) {
			pieces[128<<10+i*1024] = []byte("\x0c\xb1\xba\x00\x00\x00\x00\x00")
		}
	}
	for at, b := range pieces {
		if err := lab.WriteDisk(path, at, b); err != nil {
			w.t.Fatal(err)
		}
	}
}

// sealed checks what encryption is for: on the disks stand LUKS2 headers with
// the plan's identifiers, and neither the passphrase nor what the system wrote;
// and the passphrase is in no file of the site, no log and no page.
func (w *world) sealed(m *machine, task lpmos.Task) {
	w.t.Helper()
	// What stands in /etc/hosts is in the container.
	const inside = "127.0.1.1"
	for _, d := range task.Plan.Effect.Disks() {
		path := w.diskFile(m, d.Disk)
		w.holdsNone(path, passphrase, inside)
		head := 0
		for at := int64(1 << 20); at < d.Disk.SizeBytes-1<<20; at += 1 << 20 {
			b, err := lab.ReadDisk(path, at, 208)
			if err != nil {
				w.t.Fatal(err)
			}
			// A mirror keeps its own metadata in front.
			if bytes.HasPrefix(b, []byte("LUKS\xba\xbe\x00\x02")) && string(bytes.TrimRight(b[168:], "\x00")) == task.Plan.Effect.Crypts[0].UUID {
				head++
			}
		}
		if head != 1 {
			w.t.Errorf("%s has %d LUKS2 headers of the plan; want 1", path, head)
		}
	}
	for _, dir := range []string{filepath.Join(w.dir, "site"), w.logs} {
		err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				w.holdsNone(p, passphrase)
			}
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	text, err := json.Marshal(task)
	if err != nil || bytes.Contains(text, []byte(passphrase)) {
		w.t.Errorf("the task as the API answers it has the passphrase (%v)", err)
	}
}

// holdsNone checks that a file, of which holes are not read, has none of some
// texts in it.
func (w *world) holdsNone(path string, texts ...string) {
	w.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	const overlap = 1 << 10
	b := make([]byte, 4<<20)
	for at := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err != nil {
			return // a hole up to the end
		}
		n, err := f.ReadAt(b, max(data-overlap, 0))
		for _, text := range texts {
			if i := bytes.Index(b[:n], []byte(text)); i >= 0 {
				w.t.Errorf("%s has %q in it, near byte %d", path, text, max(data-overlap, 0)+int64(i))
			}
		}
		if err != nil {
			return
		}
		at = max(data-overlap, 0) + int64(n)
	}
}

// packed is a cell's image in its form.
func (w *world) packed(c cell) lpmos.Image {
	w.t.Helper()
	img := w.built.image(w.t, c.image)
	if !c.whole() {
		return w.asTar(img)
	}
	return w.asDisk(img, c.form)
}

// raw unpacks a filesystem image to a file.
func (w *world) raw(img lpmos.Image) (string, *lpmos.ImageManifest) {
	w.t.Helper()
	w.image = img
	m := w.manifest()
	pack, err := os.Open(filepath.Join(w.built.imageDir, "blobs", m.Pack.SHA256))
	if err != nil {
		w.t.Fatal(err)
	}
	defer pack.Close()
	path := filepath.Join(w.dir, img.OS+img.Version+".ext4")
	f, err := os.Create(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(m.SizeBytes); err != nil {
		w.t.Fatal(err)
	}
	if err := imagepack.Unpack(w.t.Context(), &m, pack, f); err != nil {
		w.t.Fatal(err)
	}
	return path, &m
}

// asTar is the image as a tree of files, by GNU tar.
func (w *world) asTar(img lpmos.Image) lpmos.Image {
	w.t.Helper()
	fs, m := w.raw(img)
	dir := w.t.TempDir()
	w.output("/usr/bin/mount", "-o", "ro,noload,loop", fs, dir)
	defer w.output("/usr/bin/umount", dir)
	stream := filepath.Join(w.dir, "tree.tar")
	w.output("/usr/bin/tar", "-C", dir, "--create", "--file", stream, "--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", ".")
	defer os.Remove(stream)
	b, err := os.ReadFile(stream)
	if err != nil {
		w.t.Fatal(err)
	}
	var used int64
	fmt.Sscan(string(w.output("/usr/bin/du", "-s", "-B1", "-x", dir)), &used)
	m.Format, m.SizeBytes, m.UnpackedBytes = lpmos.FormatTar, int64(len(b)), used
	img.Format, img.Version = lpmos.FormatTar, img.Version+"-tar"
	return w.pack(img, m, b)
}

// asDisk is the image as a whole disk in a distribution's layout, imported as a
// person would import it.
func (w *world) asDisk(img lpmos.Image, layout string) lpmos.Image {
	w.t.Helper()
	path := filepath.Join(w.dir, img.OS+img.Version+"-"+layout+".raw")
	if err := fixture.BootableDisk(w.t.Context(), path, layout, w.built.imageDir, img, filepath.Join(w.built.cache, "debs"), "console=tty0 console=ttyS0,115200"); err != nil {
		w.t.Fatal(err)
	}
	defer os.Remove(path)
	blobs.Lock()
	defer blobs.Unlock()
	res, err := imageimport.Import(w.t.Context(), imageimport.Request{From: path, Format: "raw", WorkDir: w.t.TempDir(), OutDir: w.built.imageDir,
		Want: preflight.Want{OS: img.OS, Version: img.Version + "-" + layout, Arch: img.Arch}}, imageimport.Guard{}, imageimport.Limits{}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.Image
}

// pack cuts b into chunks of 4 MiB.
func (w *world) pack(img lpmos.Image, m *lpmos.ImageManifest, b []byte) lpmos.Image {
	w.t.Helper()
	const piece = 4 << 20
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		w.t.Fatal(err)
	}
	defer enc.Close()
	m.Chunks, m.UsedBytes = nil, 0
	var stored []byte
	for at := 0; at < len(b); at += piece {
		raw := b[at:min(at+piece, len(b))]
		from := len(stored)
		stored = enc.EncodeAll(raw, stored)
		sum := sha256.Sum256(stored[from:])
		m.Chunks = append(m.Chunks, lpmos.Chunk{Offset: int64(at), Bytes: int64(len(raw)), StoredOffset: int64(from), StoredBytes: int64(len(stored) - from), SHA256: hex.EncodeToString(sum[:])})
		m.UsedBytes += int64(len(raw))
	}
	m.Version = img.Version
	m.Pack = w.blob(stored)
	if err := m.Validate(); err != nil {
		w.t.Fatal(err)
	}
	text, err := json.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	img.Digest = "sha256:" + w.blob(text).SHA256
	img.UsedBytes, img.StoredBytes, img.Signature = m.UsedBytes, m.Pack.Bytes, lpmos.Signature{}
	img.SizeBytes = m.RootBytes()
	return img
}

// blobs guards the directory of images, which all tests share.
var blobs sync.Mutex

func (w *world) blob(b []byte) lpmos.Blob {
	w.t.Helper()
	blobs.Lock()
	defer blobs.Unlock()
	sum := sha256.Sum256(b)
	name := hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(w.built.imageDir, "blobs", name), slices.Clone(b), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return lpmos.Blob{SHA256: name, Bytes: int64(len(b))}
}
