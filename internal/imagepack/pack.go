package imagepack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/lpmos/lpmos"
)

const (
	// chunkBytes bounds a chunk before compression and is what chunks are
	// aligned to: two versions of an image have their chunks at the same
	// places. Half of lpmos.MaxChunkBytes, so that even bytes that do not
	// compress stay below it with the frame around them.
	chunkBytes = 4 << 20
	// gapBytes is the longest stretch of free blocks that is packed along. One
	// larger write costs a disk less than two with a gap of this size.
	gapBytes = 64 << 10

	maxBlocks = lpmos.MaxImageBytes / blockBytes
)

// Options say where a pack goes and what its manifest says beside the chunks.
type Options struct {
	OutDir string // blobs are written to OutDir/blobs/<sha256>

	FirstBoot  string // "systemd" or "exec", as lpmos.ImageManifest has it
	CloudInit  bool
	Kernel     string // path inside the filesystem
	Initrd     string // path inside the filesystem
	KernelArgs string
	OS         string
	Version    string
	Arch       string // GOARCH spelling

	Title     string    // for the catalogue: "Debian 12 (bookworm)"
	BootModes []string  // for the catalogue: "bios", "uefi"
	CreatedAt time.Time // for the catalogue
}

// Pack packs the raw ext4 filesystem in the file fsPath and returns its entry
// for the catalogue, whose digest is that of the manifest. The filesystem must
// be clean, with 4096-byte blocks, and must not change meanwhile. The file may
// be longer than the filesystem. A manifest that does not validate is an
// *lpmos.InvalidError and leaves no blob behind but the pack.
func Pack(ctx context.Context, fsPath string, opt Options) (lpmos.Image, error) {
	image, err := pack(ctx, fsPath, opt)
	if err != nil {
		return lpmos.Image{}, fmt.Errorf("pack %s: %w", fsPath, err)
	}
	return image, nil
}

func pack(ctx context.Context, fsPath string, opt Options) (lpmos.Image, error) {
	for _, name := range []string{opt.OS, opt.Version, opt.Arch} {
		if !lpmos.ValidName(name) {
			return lpmos.Image{}, &lpmos.InvalidError{Field: "image", Problem: "has a part that cannot be a name", Value: name}
		}
	}
	src, err := os.Open(fsPath)
	if err != nil {
		return lpmos.Image{}, err
	}
	defer src.Close()
	fs, err := readFilesystem(src)
	if err != nil {
		return lpmos.Image{}, err
	}
	used, err := fs.allocated(src)
	if err != nil {
		return lpmos.Image{}, err
	}
	m := &lpmos.ImageManifest{
		Format: "ext4", SizeBytes: fs.blocks * blockBytes,
		FirstBoot: opt.FirstBoot, CloudInit: opt.CloudInit,
		Kernel: opt.Kernel, Initrd: opt.Initrd, KernelArgs: opt.KernelArgs,
		OS: opt.OS, Version: opt.Version, Arch: opt.Arch,
	}
	m.Pack, err = writePack(ctx, opt.OutDir, func(add func(int64, []byte) error) error {
		buf := make([]byte, chunkBytes)
		for _, c := range plan(used.runs(0, fs.blocks)) {
			if _, err := src.ReadAt(buf[:c.Bytes], c.Offset); err != nil {
				return fmt.Errorf("read %d bytes at %d: %w", c.Bytes, c.Offset, err)
			}
			if err := add(c.Offset, buf[:c.Bytes]); err != nil {
				return err
			}
		}
		return nil
	}, nil, m)
	if err != nil {
		return lpmos.Image{}, err
	}
	digest, err := writeManifest(opt.OutDir, m)
	if err != nil {
		return lpmos.Image{}, err
	}
	return lpmos.Image{
		OS: opt.OS, Version: opt.Version, Arch: opt.Arch,
		Digest: digest, Title: opt.Title,
		SizeBytes: m.SizeBytes, UsedBytes: m.UsedBytes, StoredBytes: m.Pack.Bytes,
		BootModes: opt.BootModes, CreatedAt: opt.CreatedAt,
	}, nil
}

// plan cuts runs of allocated blocks into chunks: neighbours with a small gap
// become one, and none crosses a multiple of chunkBytes.
func plan(runs iter.Seq[run]) []lpmos.Range {
	var chunks []lpmos.Range
	for r := range runs {
		start, end := r.first*blockBytes, (r.first+r.count)*blockBytes
		for start < end {
			limit := start - start%chunkBytes + chunkBytes
			stop := min(end, limit)
			last := len(chunks) - 1
			// A gap is bridged only within the same aligned stretch, which is
			// the same as the extended chunk staying below its own limit.
			if last >= 0 && chunks[last].Offset >= limit-chunkBytes && start-(chunks[last].Offset+chunks[last].Bytes) <= gapBytes {
				chunks[last].Bytes = stop - chunks[last].Offset
			} else {
				chunks = append(chunks, lpmos.Range{Offset: start, Bytes: stop - start})
			}
			start = stop
		}
	}
	return chunks
}

// writeBlob stores what fill writes in dir under its digest. The file appears
// complete or not at all.
func writeBlob(dir string, fill func(io.Writer) error) (lpmos.Blob, error) {
	tmp, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return lpmos.Blob{}, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	hash := sha256.New()
	if err := fill(io.MultiWriter(tmp, hash)); err != nil {
		return lpmos.Blob{}, err
	}
	info, err := tmp.Stat()
	if err != nil {
		return lpmos.Blob{}, err
	}
	// CreateTemp makes files private; a blob is public by its nature and
	// served by other processes.
	if err := errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return lpmos.Blob{}, err
	}
	b := lpmos.Blob{SHA256: hex.EncodeToString(hash.Sum(nil)), Bytes: info.Size()}
	if err := os.Rename(tmp.Name(), filepath.Join(dir, b.SHA256)); err != nil {
		return lpmos.Blob{}, err
	}
	return b, nil
}

// Load reads the manifest of an image from dir/blobs, checks it against the
// digest ("sha256:…") and validates it.
func Load(dir, digest string) (*lpmos.ImageManifest, error) {
	sum, err := lpmos.TrimDigest(digest)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "blobs", sum))
	if err != nil {
		return nil, fmt.Errorf("load manifest: %w", err)
	}
	if got := sha256.Sum256(text); hex.EncodeToString(got[:]) != sum {
		return nil, fmt.Errorf("load manifest %s: content has another digest", digest)
	}
	m := new(lpmos.ImageManifest)
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("load manifest %s: %w", digest, err)
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("load manifest %s: %w", digest, err)
	}
	return m, nil
}
