package lpmos

import (
	"crypto/ed25519"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Formats of an image.
const (
	// FormatExt4 is a root filesystem: it lands on the root partition of the
	// layout LPMOS makes and is grown to it.
	FormatExt4 = "ext4"
	// FormatDisk is a whole disk with its own partition table and boot loader.
	FormatDisk = "disk"
	// FormatTar is a root filesystem as one uncompressed tar stream, unpacked
	// onto the filesystems of a declared layout.
	FormatTar = "tar"
)

// ImageManifest describes an image as chunks of a pack file. The digest of an
// image is the SHA-256 of its manifest's bytes; a manifest names its pack and
// every chunk by digest, so trusting the digest is trusting all.
//
// In the formats "ext4" and "disk" a chunk's offset is a place of the
// filesystem or of the disk, and bytes of [0, SizeBytes) that neither a chunk
// nor a range of Zero covers are free space: they are not written, and what is
// there stays there. In the format "tar" the chunks, one after the other, are
// the stream.
type ImageManifest struct {
	Format     string  `json:"format"`         // "ext4", "disk", "tar" or "installer"
	SizeBytes  int64   `json:"size_bytes"`     // of the filesystem as built, of the disk, or of the stream
	UsedBytes  int64   `json:"used_bytes"`     // sum of all chunks' lengths
	Pack       Blob    `json:"pack"`           // all stored chunks, one after the other, in order
	Chunks     []Chunk `json:"chunks"`         // by ascending offset, not overlapping
	Zero       []Range `json:"zero,omitempty"` // "disk": reads as zero afterwards and is in no chunk; ascending
	FirstBoot  string  `json:"first_boot"`     // "systemd": a unit is installed; "exec": the image itself runs /usr/lib/lpmos/agent callhome
	CloudInit  bool    `json:"cloud_init"`     // the image reads a NoCloud seed
	Kernel     string  `json:"kernel"`         // path inside the root filesystem: /boot/vmlinuz-…; "disk": "" when not found
	Initrd     string  `json:"initrd"`         // path inside the root filesystem: /boot/initrd.img-…; "disk": "" when not found
	KernelArgs string  `json:"kernel_args"`    // beside root= and console=
	OS         string  `json:"os"`
	Version    string  `json:"version"`
	Arch       string  `json:"arch"` // GOARCH spelling

	Disk      *ImageDisk      `json:"disk,omitempty"`      // of the format "disk", and of no other
	Installer *ImageInstaller `json:"installer,omitempty"` // of the format "installer", which has no pack and nothing of a filesystem
	// UnpackedBytes is, for "tar", what the files take on a filesystem with
	// blocks of 4096 bytes.
	UnpackedBytes int64 `json:"unpacked_bytes,omitempty"`
	// Family decides how the system is configured: "debian", "redhat", "suse",
	// or "" when os-release says none of them or could not be read.
	Family string `json:"family,omitempty"`
	// SELinux is set when the image was found to enforce or permit by a policy.
	// Whether files are labelled at the first boot, the agent finds by itself: not
	// every filesystem can be looked into beforehand.
	SELinux bool `json:"selinux,omitempty"`
}

// Chunk is a run of the image: a zstd frame of StoredBytes bytes at
// StoredOffset of the pack, which decodes to exactly Bytes bytes for Offset.
type Chunk struct {
	Offset       int64  `json:"offset"`
	Bytes        int64  `json:"bytes"`
	StoredOffset int64  `json:"stored_offset"`
	StoredBytes  int64  `json:"stored_bytes"`
	SHA256       string `json:"sha256"` // of the stored bytes, 64 hex digits
}

// Range is a stretch of a disk.
type Range struct {
	Offset int64 `json:"offset"`
	Bytes  int64 `json:"bytes"`
}

// ImageDisk is what an installer must know of a whole-disk image, found when it
// was imported. Numbers of partitions are those of the table, which need not be
// in the order of the disk: Ubuntu's root is number 1 and comes last.
type ImageDisk struct {
	Table       string           `json:"table"`    // "gpt" or "mbr"
	TableID     string           `json:"table_id"` // the disk's GUID, or eight hex digits
	SectorBytes int              `json:"sector_bytes"`
	Partitions  []ImagePartition `json:"partitions"` // in the order of the disk
	// Root, Boot and ESP are numbers of partitions, by the image's own fstab;
	// BIOSBoot by its type. 0: there is none. Boot is 0 when /boot is part of
	// the root filesystem.
	Root     int `json:"root"`
	Boot     int `json:"boot,omitempty"`
	ESP      int `json:"esp,omitempty"`
	BIOSBoot int `json:"bios_boot,omitempty"`
	// Loaders are the boot loaders found: "grub-bios" (code in sector 0),
	// "grub-efi", "shim" (signed for Secure Boot), "systemd-boot", and
	// "fallback" (\EFI\BOOT\BOOTX64.EFI or the architecture's).
	Loaders []string `json:"loaders"`
	// Entries says how the menu finds kernels: "grub" (all in grub.cfg) or
	// "bls" (files in /boot/loader/entries).
	Entries string `json:"entries,omitempty"`
}

// ImagePartition is a partition of a whole-disk image.
type ImagePartition struct {
	Number     int    `json:"number"`
	Type       string `json:"type"`           // GUID (lower case) or two hex digits
	UUID       string `json:"uuid,omitempty"` // PARTUUID
	Name       string `json:"name,omitempty"`
	StartBytes int64  `json:"start_bytes"`
	SizeBytes  int64  `json:"size_bytes"`
	FS         string `json:"fs,omitempty"` // as blkid names it: "ext4", "xfs", "vfat", "btrfs", "swap"
	FSLabel    string `json:"fs_label,omitempty"`
	FSUUID     string `json:"fs_uuid,omitempty"`
	Mount      string `json:"mount,omitempty"` // by the image's fstab
	Role       string `json:"role,omitempty"`  // "root", "boot", "esp", "bios-boot", "swap"; "" for another
}

// Partition finds a partition by its number.
func (d *ImageDisk) Partition(number int) (ImagePartition, bool) {
	for _, p := range d.Partitions {
		if p.Number == number {
			return p, true
		}
	}
	return ImagePartition{}, false
}

// Blob is a file known by its content.
type Blob struct {
	SHA256 string `json:"sha256"` // 64 lower-case hex digits
	Bytes  int64  `json:"bytes"`
}

const (
	// MaxChunkBytes bounds what an agent holds in RAM of one chunk, raw and
	// stored alike.
	MaxChunkBytes = 8 << 20
	// MaxImageBytes bounds a filesystem image, a disk image and a stream.
	MaxImageBytes = 1 << 40
	// MaxManifestBytes bounds the JSON of a manifest.
	MaxManifestBytes = 64 << 20
	// MaxImagePartitions bounds the table of a disk image.
	MaxImagePartitions = 128
)

// Blobs are the files that the image consists of, beside its manifest.
func (m *ImageManifest) Blobs() []Blob {
	if i := m.Installer; i != nil {
		return []Blob{i.Kernel, i.Initrd}
	}
	return []Blob{m.Pack}
}

// RootBytes is the least the root filesystem may have: of "tar", what the files
// take with room for the filesystem's own tables and a first boot.
func (m *ImageManifest) RootBytes() int64 {
	if m.Format == FormatTar {
		return m.UnpackedBytes + m.UnpackedBytes/8 + 256*mib
	}
	return m.SizeBytes
}

var bootWordRE = regexp.MustCompile(`^[A-Za-z0-9_.,:/=@%+-]+$`)

// PlainBootWord reports whether a kernel argument or a path means the same in a
// GRUB script as it does to the kernel.
func PlainBootWord(s string) bool { return bootWordRE.MatchString(s) }

func badManifest(field, problem string) error {
	return &InvalidError{Field: "manifest." + field, Problem: problem}
}

// Validate checks that m is complete and consistent, so that whoever follows
// it writes inside [0, SizeBytes) and reads inside the pack.
func (m *ImageManifest) Validate() error {
	bad := badManifest
	align := int64(4096)
	switch m.Format {
	case FormatExt4, FormatDisk:
	case FormatTar:
		align = 512
	case FormatInstaller:
		if m.Installer == nil || m.SizeBytes != 0 || m.UsedBytes != 0 || len(m.Chunks) > 0 || m.Pack != (Blob{}) || m.Disk != nil || m.CloudInit {
			return bad("installer", "is missing, or stands beside what only an image has")
		}
		return m.Installer.validate()
	default:
		return &InvalidError{Field: "manifest.format", Problem: "is not one this version can install (ext4, disk, tar, installer)", Value: m.Format}
	}
	if m.Installer != nil {
		return bad("installer", "is given for the format installer and for no other")
	}
	if m.SizeBytes <= 0 || m.SizeBytes > MaxImageBytes || m.SizeBytes%align != 0 {
		return bad("size_bytes", fmt.Sprintf("is not a positive multiple of %d up to 1 TiB", align))
	}
	if !ValidDigest(m.Pack.SHA256) || m.Pack.Bytes <= 0 {
		return bad("pack", "is not a blob")
	}
	if m.FirstBoot != "systemd" && m.FirstBoot != "exec" {
		return bad("first_boot", "is neither systemd nor exec")
	}
	if m.Format != FormatDisk && (m.Kernel == "" || m.Initrd == "") {
		return bad("kernel", "and initrd must be named")
	}
	for _, word := range append(strings.Fields(m.KernelArgs), m.Kernel, m.Initrd) {
		if word != "" && !PlainBootWord(word) {
			return bad("kernel_args", fmt.Sprintf("or a path beside it holds %q, which cannot stand in a boot menu", Shorten(word, 80)))
		}
	}
	switch m.Family {
	case "", "debian", "redhat", "suse":
	default:
		return bad("family", "is none of debian, redhat, suse")
	}
	if (m.Format == FormatTar) != (m.UnpackedBytes > 0) || m.UnpackedBytes > MaxImageBytes {
		return bad("unpacked_bytes", "is given for tar and for nothing else, and up to 1 TiB")
	}
	if (m.Format == FormatDisk) != (m.Disk != nil) {
		return bad("disk", "is given for whole-disk images and for no other")
	}
	if m.Format != FormatDisk && len(m.Zero) > 0 {
		return bad("zero", "is for whole-disk images only")
	}
	if err := m.validateChunks(align); err != nil {
		return err
	}
	if err := m.validateZero(); err != nil {
		return err
	}
	if m.Disk != nil {
		return m.Disk.validate(m.SizeBytes)
	}
	return nil
}

func (m *ImageManifest) validateChunks(align int64) error {
	bad := badManifest
	var end, stored, used int64
	for i, c := range m.Chunks {
		if c.Bytes <= 0 || c.Bytes > MaxChunkBytes || c.StoredBytes <= 0 || c.StoredBytes > MaxChunkBytes {
			return bad(fmt.Sprintf("chunks[%d]", i), "has a size outside 1 byte to 8 MiB")
		}
		if c.Offset < end || c.Offset%align != 0 || c.Offset > m.SizeBytes-c.Bytes {
			return bad(fmt.Sprintf("chunks[%d].offset", i), fmt.Sprintf("overlaps, is not aligned to %d, or is outside the image", align))
		}
		if m.Format == FormatTar && c.Offset != end {
			return bad(fmt.Sprintf("chunks[%d].offset", i), "leaves a gap in the stream")
		}
		if c.StoredOffset != stored {
			return bad(fmt.Sprintf("chunks[%d].stored_offset", i), "does not follow the chunk before")
		}
		if !ValidDigest(c.SHA256) {
			return bad(fmt.Sprintf("chunks[%d].sha256", i), "is not a SHA-256")
		}
		end, stored, used = c.Offset+c.Bytes, stored+c.StoredBytes, used+c.Bytes
	}
	if stored != m.Pack.Bytes {
		return bad("pack.bytes", "is not the sum of the stored chunks")
	}
	if used != m.UsedBytes || used == 0 {
		return bad("used_bytes", "is not the sum of the chunks")
	}
	if m.Format == FormatTar && end != m.SizeBytes {
		return bad("chunks", "do not make up the whole stream")
	}
	return nil
}

// validateZero checks that ranges to be zeroed are in order, on the disk, and
// apart from every chunk.
func (m *ImageManifest) validateZero() error {
	var end int64
	next := 0 // the first chunk that may lie behind the range
	for i, z := range m.Zero {
		if z.Bytes <= 0 || z.Bytes%4096 != 0 || z.Offset < end || z.Offset%4096 != 0 || z.Offset > m.SizeBytes-z.Bytes {
			return badManifest(fmt.Sprintf("zero[%d]", i), "overlaps, is not aligned to 4096, or is outside the image")
		}
		end = z.Offset + z.Bytes
		for next < len(m.Chunks) && m.Chunks[next].Offset+m.Chunks[next].Bytes <= z.Offset {
			next++
		}
		if next < len(m.Chunks) && m.Chunks[next].Offset < end {
			return badManifest(fmt.Sprintf("zero[%d]", i), "overlaps a chunk")
		}
	}
	return nil
}

// validate checks that the table lies inside a disk of size bytes and that the
// partitions the installer goes by exist.
func (d *ImageDisk) validate(size int64) error {
	bad := func(field, problem string) error { return badManifest("disk."+field, problem) }
	if d.Table != "gpt" && d.Table != "mbr" {
		return bad("table", "is neither gpt nor mbr")
	}
	if d.SectorBytes != 512 && d.SectorBytes != 4096 {
		return bad("sector_bytes", "is neither 512 nor 4096")
	}
	if len(d.Partitions) == 0 || len(d.Partitions) > MaxImagePartitions {
		return bad("partitions", fmt.Sprintf("are not 1 to %d", MaxImagePartitions))
	}
	seen := map[int]bool{}
	var end int64
	for i, p := range d.Partitions {
		field := fmt.Sprintf("partitions[%d]", i)
		if p.Number < 1 || p.Number > MaxImagePartitions || seen[p.Number] {
			return bad(field+".number", "is given twice or out of range")
		}
		seen[p.Number] = true
		if p.StartBytes <= 0 || p.SizeBytes <= 0 || p.StartBytes < end || p.StartBytes > size-p.SizeBytes ||
			p.StartBytes%int64(d.SectorBytes) != 0 || p.SizeBytes%int64(d.SectorBytes) != 0 {
			return bad(field, "overlaps, is not whole sectors, or is outside the disk")
		}
		end = p.StartBytes + p.SizeBytes
	}
	if d.Root == 0 {
		return bad("root", "names no partition")
	}
	if d.Table == "mbr" && d.Root > 4 {
		return bad("root", "is in an extended partition, which cannot be fitted to a disk")
	}
	for _, r := range []struct {
		field  string
		number int
	}{{"root", d.Root}, {"boot", d.Boot}, {"esp", d.ESP}, {"bios_boot", d.BIOSBoot}} {
		if r.number != 0 && !seen[r.number] {
			return bad(r.field, "names a partition that the table does not have")
		}
	}
	if d.Entries != "" && d.Entries != "grub" && d.Entries != "bls" {
		return bad("entries", "is neither grub nor bls")
	}
	return nil
}

// Image is an entry of the catalogue: what may be installed. The control plane
// signs it when it is registered and plans with no entry that is not signed.
type Image struct {
	OS          string    `json:"os"`                   // "debian"; [a-z0-9][a-z0-9._-]{0,63}
	Version     string    `json:"version"`              // "12"; same grammar
	Arch        string    `json:"arch"`                 // "amd64", "arm64"
	Digest      string    `json:"digest"`               // "sha256:…" of the manifest
	Title       string    `json:"title"`                // "Debian 12 (bookworm)"
	Format      string    `json:"format,omitempty"`     // of the manifest; "" is "ext4"
	SizeBytes   int64     `json:"size_bytes"`           // "ext4", "tar": the least a root partition may have; "disk": of the disk
	UsedBytes   int64     `json:"used_bytes"`           // what is written
	StoredBytes int64     `json:"stored_bytes"`         // what is transferred
	BootModes   []string  `json:"boot_modes"`           // of "bios", "uefi"
	CloudInit   bool      `json:"cloud_init,omitempty"` // the image reads a NoCloud seed
	CreatedAt   time.Time `json:"created_at"`

	MinDiskBytes int64           `json:"min_disk_bytes,omitempty"` // the least a disk may have, where the import found it out
	Preflight    *Preflight      `json:"preflight,omitempty"`      // what the import found inside
	Badges       []Badge         `json:"badges,omitempty"`         // how it booted when it was tried
	Source       *ImageSource    `json:"source,omitempty"`         // where it came from, when it was imported
	Installer    *ImageInstaller `json:"installer,omitempty"`      // of the manifest; an entry without one is an image
	Signature    Signature       `json:"signature,omitzero"`       // by the control plane, over all of the above
}

// Preflight is what reading an image told about it, without running anything
// of it.
type Preflight struct {
	Checks      []PreflightCheck `json:"checks"`                 // in a fixed order
	PrettyName  string           `json:"pretty_name,omitempty"`  // of os-release: "Debian GNU/Linux 12 (bookworm)"
	OSID        string           `json:"os_id,omitempty"`        // ID of os-release: "debian"
	Kernel      string           `json:"kernel,omitempty"`       // release of the newest: "6.1.0-40-amd64"
	DefaultUser string           `json:"default_user,omitempty"` // that cloud-init makes
	SecureBoot  bool             `json:"secure_boot,omitempty"`  // a signed shim is there
	SELinux     string           `json:"selinux,omitempty"`      // "enforcing", "permissive", "disabled"
}

// PreflightCheck is one thing that was looked at.
type PreflightCheck struct {
	Name   string `json:"name"`   // "partition-table", "uefi", "bios", "boot", "kernel", "initrd", "fstab", "cloud-init", "selinux", "user", "os", "arch", "disk"
	Result string `json:"result"` // "ok", "warning", "problem" (cannot be installed), "unknown" (could not be looked at)
	Text   string `json:"text"`   // a sentence
}

// Results of a PreflightCheck.
const (
	CheckOK      = "ok"
	CheckWarning = "warning"
	CheckProblem = "problem"
	CheckUnknown = "unknown"
)

// Problems are the sentences that keep the image from being installed.
func (p *Preflight) Problems() []string { return p.texts(CheckProblem) }

// Warnings are the sentences a person should know.
func (p *Preflight) Warnings() []string { return p.texts(CheckWarning) }

func (p *Preflight) texts(result string) []string {
	var out []string
	if p == nil {
		return nil
	}
	for _, c := range p.Checks {
		if c.Result == result {
			out = append(out, c.Text)
		}
	}
	return out
}

// Badge is the result of installing an image on a virtual machine and booting
// what was installed.
type Badge struct {
	Firmware string    `json:"firmware"` // "bios", "uefi", "uefi-secure-boot"
	Passed   bool      `json:"passed"`
	Text     string    `json:"text"`   // what was seen: "called home after 41s" or why not
	Digest   string    `json:"digest"` // of the image that was tried
	At       time.Time `json:"at"`
}

// Badge finds the result for a firmware that is about this very image.
func (i Image) Badge(firmware string) (Badge, bool) {
	for _, b := range i.Badges {
		if b.Firmware == firmware && b.Digest == i.Digest {
			return b, true
		}
	}
	return Badge{}, false
}

// ImageSource is where an imported image came from and what vouched for it.
type ImageSource struct {
	URL      string `json:"url"`                // without user and password; a file's base name
	Format   string `json:"format"`             // "qcow2", "raw", "tar"
	SHA256   string `json:"sha256"`             // of the bytes as they were fetched
	Bytes    int64  `json:"bytes"`              // of the same
	Checksum string `json:"checksum,omitempty"` // what it was compared with: "sha512:…"; "" when nothing was given
	From     string `json:"from,omitempty"`     // where the checksum came from: an address, "command line"
	Signer   string `json:"signer,omitempty"`   // who signed the checksum: fingerprint and name of the key
}

// Kind is the image's format, spelled out.
func (i Image) Kind() string {
	if i.Format == "" {
		return FormatExt4
	}
	return i.Format
}

// DiskBytes is the least a disk must have for the image.
func (i Image) DiskBytes() int64 {
	if i.MinDiskBytes > 0 {
		return i.MinDiskBytes
	}
	switch i.Kind() {
	case FormatDisk:
		return i.SizeBytes
	case FormatInstaller:
		return defaultInstallerDisk
	}
	return i.SizeBytes + biosBootBytes + espBytes + 2*GPTReserveBytes
}

// CannotBoot reports whether the image is known not to start a machine of this
// boot mode ("bios", "uefi"): by what was found in it, or because it was tried.
func (i Image) CannotBoot(mode string) bool {
	tried, ok := i.Badge(mode)
	return mode != "" && (!slices.Contains(i.BootModes, mode) || ok && !tried.Passed)
}

// Sign fills i's signature.
func (i *Image) Sign(key ed25519.PrivateKey) { i.Signature = sign(key, "image", i.unsigned()) }

// Verify reports why i must not be trusted, or nil.
func (i *Image) Verify(keys []ed25519.PublicKey) error {
	return verify(keys, "image", i.unsigned(), i.Signature)
}

func (i Image) unsigned() Image { i.Signature = Signature{}; return i }

// Name is "debian/12/amd64", as the catalogue key has it.
func (i Image) Name() string { return i.OS + "/" + i.Version + "/" + i.Arch }

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// ValidName reports whether s may name an image, a version, a template or a
// profile, that is, whether it may become part of a store key or a path.
func ValidName(s string) bool { return nameRE.MatchString(s) && s != "." && s != ".." }

// BootImage is what firmware and iPXE load to start the agent, each part by
// its content. It is published in the store key config/global.
type BootImage struct {
	Version    string          `json:"version"` // kernel release and agent version, for people
	Kernel     Blob            `json:"kernel"`
	Initrd     Blob            `json:"initrd"`        // modules, tools, agent
	Site       Blob            `json:"site,omitzero"` // what agents of this site trust; the control plane makes it
	KernelArgs string          `json:"kernel_args"`   // "console=tty0 console=ttyS0,115200 …"
	Files      map[string]Blob `json:"files"`         // by the name TFTP and HTTP boot serve: undionly.kpxe, snponly.efi, localboot.efi, localboot.0
	CreatedAt  time.Time       `json:"created_at,omitzero"`
}
