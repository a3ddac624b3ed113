package lpmos

import (
	"fmt"
	"regexp"
	"time"
)

// ImageManifest describes a root filesystem as chunks of a pack file. The
// digest of an image is the SHA-256 of its manifest's bytes; a manifest names
// its pack and every chunk by digest, so trusting the digest is trusting all.
//
// Bytes of [0, SizeBytes) that no chunk covers are holes: blocks the filesystem
// has marked free. They are not written, and what is there stays there.
type ImageManifest struct {
	Format     string  `json:"format"`      // "ext4": lands on the root partition and is grown to it
	SizeBytes  int64   `json:"size_bytes"`  // of the filesystem as built
	UsedBytes  int64   `json:"used_bytes"`  // sum of all chunks' lengths
	Pack       Blob    `json:"pack"`        // all stored chunks, one after the other, in order
	Chunks     []Chunk `json:"chunks"`      // by ascending offset, not overlapping
	FirstBoot  string  `json:"first_boot"`  // "systemd": a unit is installed; "exec": the image itself runs /usr/lib/lpmos/agent callhome
	CloudInit  bool    `json:"cloud_init"`  // the image reads a NoCloud seed
	Kernel     string  `json:"kernel"`      // path inside the filesystem: /boot/vmlinuz-…
	Initrd     string  `json:"initrd"`      // path inside the filesystem: /boot/initrd.img-…
	KernelArgs string  `json:"kernel_args"` // beside root= and console=
	OS         string  `json:"os"`
	Version    string  `json:"version"`
	Arch       string  `json:"arch"` // GOARCH spelling
}

// Chunk is a run of the filesystem: a zstd frame of StoredBytes bytes at
// StoredOffset of the pack, which decodes to exactly Bytes bytes for Offset.
type Chunk struct {
	Offset       int64  `json:"offset"`
	Bytes        int64  `json:"bytes"`
	StoredOffset int64  `json:"stored_offset"`
	StoredBytes  int64  `json:"stored_bytes"`
	SHA256       string `json:"sha256"` // of the stored bytes, 64 hex digits
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
	// MaxImageBytes bounds a filesystem image.
	MaxImageBytes = 1 << 40
	// MaxManifestBytes bounds the JSON of a manifest.
	MaxManifestBytes = 64 << 20
)

// Validate checks that m is complete and consistent, so that whoever follows
// it writes inside [0, SizeBytes) and reads inside the pack.
func (m *ImageManifest) Validate() error {
	bad := func(field, problem string) error { return &InvalidError{Field: "manifest." + field, Problem: problem} }
	if m.Format != "ext4" {
		return &InvalidError{Field: "manifest.format", Problem: "is not one this version can install (ext4)", Value: m.Format}
	}
	if m.SizeBytes <= 0 || m.SizeBytes > MaxImageBytes || m.SizeBytes%4096 != 0 {
		return bad("size_bytes", "is not a positive multiple of 4096 up to 1 TiB")
	}
	if !ValidDigest(m.Pack.SHA256) || m.Pack.Bytes <= 0 {
		return bad("pack", "is not a blob")
	}
	if m.FirstBoot != "systemd" && m.FirstBoot != "exec" {
		return bad("first_boot", "is neither systemd nor exec")
	}
	if m.Kernel == "" || m.Initrd == "" {
		return bad("kernel", "and initrd must be named")
	}
	var end, stored, used int64
	for i, c := range m.Chunks {
		if c.Bytes <= 0 || c.Bytes > MaxChunkBytes || c.StoredBytes <= 0 || c.StoredBytes > MaxChunkBytes {
			return bad(fmt.Sprintf("chunks[%d]", i), "has a size outside 1 byte to 8 MiB")
		}
		if c.Offset < end || c.Offset%4096 != 0 || c.Offset > m.SizeBytes-c.Bytes {
			return bad(fmt.Sprintf("chunks[%d].offset", i), "overlaps, is not aligned to 4096, or is outside the filesystem")
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
	return nil
}

// Image is an entry of the catalogue: what may be installed.
type Image struct {
	OS          string    `json:"os"`                   // "debian"; [a-z0-9][a-z0-9._-]{0,63}
	Version     string    `json:"version"`              // "12"; same grammar
	Arch        string    `json:"arch"`                 // "amd64", "arm64"
	Digest      string    `json:"digest"`               // "sha256:…" of the manifest
	Title       string    `json:"title"`                // "Debian 12 (bookworm)"
	SizeBytes   int64     `json:"size_bytes"`           // of the filesystem: the least a root partition may have
	UsedBytes   int64     `json:"used_bytes"`           // what is written
	StoredBytes int64     `json:"stored_bytes"`         // what is transferred
	BootModes   []string  `json:"boot_modes"`           // of "bios", "uefi"
	CloudInit   bool      `json:"cloud_init,omitempty"` // the image reads a NoCloud seed
	CreatedAt   time.Time `json:"created_at"`
}

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
