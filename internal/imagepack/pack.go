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
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

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
	runs, err := fs.allocated(src)
	if err != nil {
		return lpmos.Image{}, err
	}
	m := &lpmos.ImageManifest{
		Format: "ext4", SizeBytes: fs.blocks * blockBytes,
		FirstBoot: opt.FirstBoot, CloudInit: opt.CloudInit,
		Kernel: opt.Kernel, Initrd: opt.Initrd, KernelArgs: opt.KernelArgs,
		OS: opt.OS, Version: opt.Version, Arch: opt.Arch,
		Chunks: plan(runs),
	}

	blobs := filepath.Join(opt.OutDir, "blobs")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return lpmos.Image{}, err
	}
	m.Pack, err = writeBlob(blobs, func(w io.Writer) error { return compress(ctx, src, m, w) })
	if err != nil {
		return lpmos.Image{}, err
	}
	if err := m.Validate(); err != nil {
		return lpmos.Image{}, err
	}
	text, err := json.Marshal(m)
	if err != nil {
		return lpmos.Image{}, fmt.Errorf("encode manifest: %w", err)
	}
	if len(text) > lpmos.MaxManifestBytes {
		return lpmos.Image{}, fmt.Errorf("manifest of %d bytes is larger than the %d an agent reads", len(text), lpmos.MaxManifestBytes)
	}
	manifest, err := writeBlob(blobs, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	if err != nil {
		return lpmos.Image{}, err
	}
	return lpmos.Image{
		OS: opt.OS, Version: opt.Version, Arch: opt.Arch,
		Digest: "sha256:" + manifest.SHA256, Title: opt.Title,
		SizeBytes: m.SizeBytes, UsedBytes: m.UsedBytes, StoredBytes: m.Pack.Bytes,
		BootModes: opt.BootModes, CreatedAt: opt.CreatedAt,
	}, nil
}

// plan cuts runs of allocated blocks into chunks: neighbours with a small gap
// become one, and none crosses a multiple of chunkBytes.
func plan(runs []run) []lpmos.Chunk {
	var chunks []lpmos.Chunk
	for _, r := range runs {
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
				chunks = append(chunks, lpmos.Chunk{Offset: start, Bytes: stop - start})
			}
			start = stop
		}
	}
	return chunks
}

// compress writes every chunk of m as a zstd frame (RFC 8878) with a content
// checksum and fills in where it is stored. Frames are made concurrently and
// written in order.
func compress(ctx context.Context, src io.ReaderAt, m *lpmos.ImageManifest, w io.Writer) error {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(true))
	if err != nil {
		return fmt.Errorf("make zstd encoder: %w", err)
	}
	defer enc.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	workers := runtime.GOMAXPROCS(0)
	type result struct {
		frame []byte
		err   error
	}
	// Each slot is a chunk in flight; the queue's length bounds memory.
	queue := make(chan chan result, workers)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(queue)
		for _, c := range m.Chunks {
			slot := make(chan result, 1)
			select {
			case queue <- slot:
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				raw := make([]byte, c.Bytes)
				if _, err := src.ReadAt(raw, c.Offset); err != nil {
					slot <- result{err: fmt.Errorf("read %d bytes at %d: %w", c.Bytes, c.Offset, err)}
					return
				}
				slot <- result{frame: enc.EncodeAll(raw, nil)}
			})
		}
	})

	var i int
	var stored int64
	for slot := range queue {
		r := <-slot
		if r.err != nil {
			return r.err
		}
		if _, err := w.Write(r.frame); err != nil {
			return err
		}
		sum := sha256.Sum256(r.frame)
		c := &m.Chunks[i]
		c.StoredOffset, c.StoredBytes, c.SHA256 = stored, int64(len(r.frame)), hex.EncodeToString(sum[:])
		stored += c.StoredBytes
		m.UsedBytes += c.Bytes
		i++
	}
	return ctx.Err()
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
