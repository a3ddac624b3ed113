package vm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/imagepack"
	"github.com/lpmos/lpmos/internal/lab"
)

// cell is one machine of the matrix, installed once.
type cell struct {
	firmware lab.Firmware
	image    string // of internal/osimage
	format   string // how it is packed: "ext4", "disk", "tar"
	layout   string // a preset
	bus      lab.Bus
	sector   int
	nics     int
	ci       bool // part of every commit
}

func (c cell) name() string {
	s := fmt.Sprintf("%s %s %s", strings.ReplaceAll(c.firmware.String(), " ", "-"), c.format, c.layout)
	if c.image != "tiny-storage" {
		s += " " + c.image
	}
	s += " " + string(c.bus)
	if c.sector != 512 {
		s += fmt.Sprintf(" %d", c.sector)
	}
	if c.nics > 1 {
		s += fmt.Sprintf(" %d NICs", c.nics)
	}
	return s
}

// matrix: every firmware with every way to install, the other dimensions spread
// over it. A disk image has the sectors of the disk it was made of.
var matrix = []cell{
	{lab.BIOS, "tiny-storage", "tar", "raid1-lvm", lab.Virtio, 512, 2, true},
	{lab.UEFI, "tiny-storage", "tar", "xfs", lab.Virtio, 4096, 1, true},
	{lab.BIOS, "tiny-storage", "disk", "plain", lab.NVMe, 512, 1, false},
	{lab.UEFI, "tiny-storage", "disk", "plain", lab.AHCI, 512, 2, true},
	{lab.UEFI, "tiny-storage", "tar", "raid1-lvm", lab.NVMe, 512, 1, false},
	{lab.BIOS, "tiny-storage", "tar", "plain", lab.SCSI, 512, 1, false},
	{lab.UEFI, "tiny-storage", "tar", "plain", lab.NVMe, 4096, 1, false},
	{lab.BIOS, "tiny-storage", "tar", "xfs", lab.AHCI, 512, 1, false},
	{lab.UEFI, "tiny-storage", "tar", "raid1", lab.SCSI, 512, 2, false},
	{lab.BIOS, "tiny-storage", "tar", "lvm", lab.NVMe, 512, 1, false},
	{lab.BIOS, "debian-12-storage", "tar", "raid1-lvm", lab.Virtio, 512, 1, false},
	{lab.UEFI, "debian-12-storage", "tar", "raid1-lvm", lab.AHCI, 512, 2, false},
	{lab.UEFI, "debian-12-storage", "tar", "xfs", lab.Virtio, 512, 1, false},
}

// TestMatrix installs each cell on a machine with two more disks than it needs,
// which hold other systems' data, boots it and takes its receipt.
// LPMOS_VM_MATRIX names a file for the table; then all cells run.
func TestMatrix(t *testing.T) {
	table := os.Getenv("LPMOS_VM_MATRIX")
	all := table != "" || os.Getenv("LPMOS_VM") == "all"
	only := os.Getenv("LPMOS_VM_CELL")
	w := onSite(t, "tiny-storage", nil)
	images := map[string]lpmos.Image{}
	var results []string
	for _, c := range matrix {
		if !all && !c.ci && only == "" || only != "" && !strings.Contains(c.name(), only) {
			continue
		}
		began := time.Now()
		ok := t.Run(c.name(), func(t *testing.T) {
			cw := *w
			cw.t = t
			key := c.image + c.format
			if _, made := images[key]; !made {
				images[key] = cw.packed(c)
			}
			cw.register(images[key])
			cw.cell(c)
		})
		results = append(results, fmt.Sprintf("| %s | %s | %s | %s | %s | %d | %d | %s | %d |", c.firmware, c.image, c.format, c.layout, c.bus, c.sector, c.nics,
			map[bool]string{true: "installed, booted, called home", false: "**failed**"}[ok], int(time.Since(began).Seconds())))
	}
	if table != "" {
		text := "# Virtual machine matrix\n\nMade by `make vm-matrix` on " + time.Now().UTC().Format("2006-01-02 15:04 UTC") + ". Every machine has two further disks with other systems' data,\n" +
			"whose hashes were the same afterwards.\n\n| firmware | image | format | layout | disks | sectors | NICs | result | seconds |\n|---|---|---|---|---|---|---|---|---|\n" + strings.Join(results, "\n") + "\n"
		if err := os.WriteFile(table, []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// cell installs one machine.
func (w *world) cell(c cell) {
	w.t.Helper()
	name := "m" + hex.EncodeToString(func() []byte { s := sha256.Sum256([]byte(c.name())); return s[:3] }())
	cfg := lab.MachineConfig{Name: name, Firmware: c.firmware}
	needs := 1
	if strings.HasPrefix(c.layout, "raid1") {
		needs = 2
	}
	// A BIOS starts the first disk it has; the region's helper finds the right
	// one, which is why the foreign disks come first.
	for i := range 2 + needs {
		path := filepath.Join(w.dir, fmt.Sprintf("%s-%d.disk", name, i))
		size := int64(4 * gb)
		if i < 2 {
			size = 2 * gb
		}
		cfg.Disks = append(cfg.Disks, lab.Disk{Path: path, SizeBytes: size / 4096 * 4096, Bus: c.bus, SectorBytes: c.sector})
	}
	for i := range c.nics {
		cfg.NICs = append(cfg.NICs, lab.NIC{MAC: macOf(name, i)})
	}
	m := w.newMachine(cfg)
	defer m.PowerOff()
	before := []string{w.foreign(m.disk(0), "lvm"), w.foreign(m.disk(1), "zfs")}
	id := w.create(m, func(s *lpmos.Spec) {
		if c.layout != lpmos.LayoutPlain {
			s.Layout = &lpmos.Layout{Preset: c.layout}
		}
	})
	w.powerOn(m)
	plan := w.planned(m, id).Plan
	if got := len(plan.Effect.Disks()); got != needs || plan.ErasesData() {
		w.t.Fatalf("the plan writes %d disks, and erases data: %v; want %d blank ones", got, plan.ErasesData(), needs)
	}
	w.approve(id)
	task := w.completed(m, id)
	m.PowerOff()
	for i, hash := range before {
		if w.hash(m.disk(i)) != hash {
			w.t.Errorf("disk %d, which is not in the plan, was written", i)
		}
	}
	w.t.Logf("receipt: %+v", *task.Receipt)
}

// foreign puts another system's data on a disk that must stay, and returns its
// hash.
func (w *world) foreign(path, kind string) string {
	w.t.Helper()
	label := map[string]struct {
		at   int64
		text []byte
	}{
		"lvm": {512, append([]byte("LABELONE\x01\x00\x00\x00\x00\x00\x00\x00"), []byte("\x00\x00\x00\x00\x20\x00\x00\x00LVM2 001")...)},
		"zfs": {128 << 10, []byte("\x0c\xb1\xba\x00\x00\x00\x00\x00")}, // the uberblock's magic, little-endian
	}[kind]
	for i := range int64(4) {
		if err := lab.WriteDisk(path, label.at+i*1024*boolInt(kind == "zfs"), label.text); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := lab.WriteDisk(path, 64<<20, bytes.Repeat([]byte(kind+" data of another system\n"), 1000)); err != nil {
		w.t.Fatal(err)
	}
	return w.hash(path)
}

func boolInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// packed is a cell's image in its format.
func (w *world) packed(c cell) lpmos.Image {
	w.t.Helper()
	img := w.built.image(w.t, c.image)
	switch c.format {
	case lpmos.FormatTar:
		return w.asTar(img)
	case lpmos.FormatDisk:
		return w.asDisk(img)
	}
	return img
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

// asDisk is the image as a whole disk: that of a machine on which it was
// installed, before it was started.
func (w *world) asDisk(img lpmos.Image) lpmos.Image {
	w.t.Helper()
	const bytes = 1 << 30
	source := w.newMachine(lab.MachineConfig{Name: "source", Disks: []lab.Disk{{SizeBytes: bytes}}})
	w.register(img)
	id := w.create(source, func(s *lpmos.Spec) { s.Verify = new(false) })
	w.powerOn(source)
	w.planned(source, id)
	w.approve(id)
	task := w.wait(source, id, installLimit, lpmos.Completed)
	source.PowerOff()
	b, err := os.ReadFile(source.disk(0))
	if err != nil {
		w.t.Fatal(err)
	}
	// What an image does not have: the mark of an installation.
	clear(b[markerOffset : markerOffset+4096])
	old := w.manifest()
	m := &old
	m.Format, m.SizeBytes, m.Kernel, m.Initrd = lpmos.FormatDisk, int64(len(b)), "", ""
	m.Disk = &lpmos.ImageDisk{Table: "gpt", SectorBytes: 512, Root: 3, ESP: 2, BIOSBoot: 1, Loaders: []string{"grub-bios", "grub-efi", "fallback"}}
	at := int64(1 << 20)
	for _, p := range task.Plan.Effect.Partitions {
		m.Disk.Partitions = append(m.Disk.Partitions, lpmos.ImagePartition{Number: p.Number, UUID: p.PartUUID, StartBytes: at, SizeBytes: p.SizeBytes, FS: p.FS, FSUUID: p.UUID, Mount: p.Mount, Role: p.Role})
		at += p.SizeBytes
	}
	img.Format, img.Version, img.SizeBytes = lpmos.FormatDisk, img.Version+"-disk", int64(len(b))
	return w.pack(img, m, b)
}

// pack cuts b into chunks of 4 MiB; for a disk, what is zero is not stored.
func (w *world) pack(img lpmos.Image, m *lpmos.ImageManifest, b []byte) lpmos.Image {
	w.t.Helper()
	const piece = 4 << 20
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		w.t.Fatal(err)
	}
	defer enc.Close()
	m.Chunks, m.Zero, m.UsedBytes = nil, nil, 0
	var stored []byte
	blank := make([]byte, piece)
	for at := 0; at < len(b); at += piece {
		raw := b[at:min(at+piece, len(b))]
		if m.Format == lpmos.FormatDisk && bytes.Equal(raw, blank[:len(raw)]) {
			m.Zero = append(m.Zero, lpmos.Range{Offset: int64(at), Bytes: int64(len(raw))})
			continue
		}
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
	if m.Format == lpmos.FormatTar {
		img.SizeBytes = m.RootBytes()
	}
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
