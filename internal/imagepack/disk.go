package imagepack

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/bits"
	"os"
	"path/filepath"

	"github.com/lpmos/lpmos"
)

// Disk is a whole-disk image to pack.
type Disk struct {
	Source io.ReaderAt // reads as zero where a sparse file has holes
	Bytes  int64       // of the disk; the last partial 4096 bytes are filled with zeros
	// Holes yields stretches that are known to read as zero without reading them:
	// clusters a qcow2 does not have, holes of a sparse file. An error ends the
	// pack. They are no list, because a file can have a billion of them. It may be
	// nil.
	Holes iter.Seq2[lpmos.Range, error]
	// Ext4 are the partitions, ascending, whose own bitmaps say which blocks are
	// free. One that was not unmounted cleanly, or that this package cannot read
	// exactly, is packed whole.
	Ext4 []lpmos.Range
	// Manifest is what the manifest says beside chunks and sizes; Format is set.
	Manifest lpmos.ImageManifest
	// Progress is told how many bytes of the disk were looked at, from one
	// goroutine; it may be nil.
	Progress func(done int64)
}

// Packed is what a pack became.
type Packed struct {
	Digest   string // "sha256:…" of the manifest
	Manifest *lpmos.ImageManifest
	// Whole are the partitions of Ext4 that were packed whole, with the reason.
	Whole map[int64]string // by offset
}

// PackDisk packs a whole disk into dir/blobs: data in chunks, what reads as zero
// as ranges to be zeroed, and the free blocks of ext4 not at all. Memory is
// bounded by a few chunks for each processor, three bits for each block, and the
// longest manifest there may be, whatever is in the image.
func PackDisk(ctx context.Context, dir string, d Disk) (Packed, error) {
	p, err := packDisk(ctx, dir, d)
	if err != nil {
		return Packed{}, fmt.Errorf("pack disk: %w", err)
	}
	return p, nil
}

func packDisk(ctx context.Context, dir string, d Disk) (Packed, error) {
	if d.Bytes <= 0 || d.Bytes > lpmos.MaxImageBytes {
		return Packed{}, &lpmos.InvalidError{Field: "image", Problem: "is empty or larger than 1 TiB"}
	}
	m := d.Manifest
	m.Format, m.SizeBytes = lpmos.FormatDisk, (d.Bytes+blockBytes-1)/blockBytes*blockBytes
	blocks := m.SizeBytes / blockBytes
	free, zero := newBlockSet(blocks), newBlockSet(blocks)
	out := Packed{Manifest: &m, Whole: map[int64]string{}}
	if d.Holes != nil {
		for h, err := range d.Holes {
			if err = cmp.Or(err, ctx.Err()); err != nil {
				return Packed{}, err
			}
			// Only whole blocks are known to be zero.
			zero.set((h.Offset+blockBytes-1)/blockBytes, min((h.Offset+h.Bytes)/blockBytes, blocks))
		}
	}
	for _, part := range d.Ext4 {
		if err := freeOf(d.Source, part, free); err != nil {
			out.Whole[part.Offset] = err.Error()
		}
	}
	var err error
	if m.Pack, err = writePack(ctx, dir, func(add func(int64, []byte) error) error {
		return scan(ctx, d, m.SizeBytes, free, zero, add)
	}, func() error {
		for r := range zero.runs(0, blocks) {
			if len(m.Zero) == maxZeros {
				return errPieces
			}
			m.Zero = append(m.Zero, lpmos.Range{Offset: r.first * blockBytes, Bytes: r.count * blockBytes})
		}
		return nil
	}, &m); err != nil {
		return Packed{}, err
	}
	out.Digest, err = writeManifest(dir, &m)
	return out, err
}

// freeOf marks the blocks of the disk that an ext4 filesystem says are free.
func freeOf(src io.ReaderAt, part lpmos.Range, free blockSet) error {
	r := io.NewSectionReader(src, part.Offset, part.Bytes)
	fs, err := readFilesystem(r)
	if err != nil {
		return err
	}
	if fs.blocks*blockBytes > part.Bytes {
		return errors.New("the filesystem is larger than its partition")
	}
	used, err := fs.allocated(r)
	if err != nil {
		return err
	}
	next := int64(0)
	freeTo := func(block int64) {
		// A partition need not begin at a multiple of 4096: a block of the disk
		// is free when all of it is.
		from, to := part.Offset+next*blockBytes, part.Offset+block*blockBytes
		free.set((from+blockBytes-1)/blockBytes, to/blockBytes)
	}
	for u := range used.runs(0, fs.blocks) {
		freeTo(u.first)
		next = u.first + u.count
	}
	freeTo(fs.blocks)
	return nil
}

// scan reads the disk in stretches of chunkBytes and hands on what must be
// written. Blocks that turn out to be zero are noted in zero, blocks that are
// free are left out of both.
func scan(ctx context.Context, d Disk, size int64, free, zero blockSet, add func(int64, []byte) error) error {
	buf := make([]byte, chunkBytes)
	for at := int64(0); at < size; at += chunkBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(int64(chunkBytes), size-at)
		first, last := at/blockBytes, (at+n)/blockBytes
		// What is free is not zeroed: the filesystem never shows it.
		for f := range free.runs(first, last) {
			zero.clear(f.first, f.first+f.count)
		}
		if !free.or(zero, first, last) {
			b := buf[:n]
			if err := readFull(d.Source, b, at, d.Bytes); err != nil {
				return err
			}
			for i := first; i < last; i++ {
				if !free.has(i) && !zero.has(i) && allZero(b[(i-first)*blockBytes:][:blockBytes]) {
					zero.set(i, i+1)
				}
			}
			if err := runs(b, first, last, free, zero, add); err != nil {
				return err
			}
		}
		if d.Progress != nil {
			d.Progress(min(at+n, d.Bytes))
		}
	}
	return nil
}

// runs hands on the stretches of data in one buffer. A gap that is shorter than
// gapBytes is taken along: one larger write costs a disk less. What is taken
// along is no longer zero to be made.
func runs(b []byte, first, last int64, free, zero blockSet, add func(int64, []byte) error) error {
	data := func(i int64) bool { return !free.has(i) && !zero.has(i) }
	for i := first; i < last; {
		if !data(i) {
			i++
			continue
		}
		end := i + 1 // behind the last block of data
		for j := end; j < last && (j-end)*blockBytes < gapBytes; j++ {
			if data(j) {
				end = j + 1
			}
		}
		zero.clear(i, end)
		if err := add(i*blockBytes, b[(i-first)*blockBytes:(end-first)*blockBytes]); err != nil {
			return err
		}
		i = end
	}
	return nil
}

var zeros [blockBytes]byte

func allZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// readFull reads b at off; what lies beyond end is zero.
func readFull(r io.ReaderAt, b []byte, off, end int64) error {
	n := min(int64(len(b)), end-off)
	if got, err := r.ReadAt(b[:n], off); int64(got) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	clear(b[n:])
	return nil
}

// blockSet is a set of blocks of the disk. 1 TiB takes 32 MiB.
type blockSet []uint64

func newBlockSet(n int64) blockSet { return make(blockSet, (n+63)/64) }

func (b blockSet) has(i int64) bool { return b[i/64]&(1<<(i%64)) != 0 }

// set adds [from, to), cut to what there is.
func (b blockSet) set(from, to int64) {
	for i := max(from, 0); i < min(to, int64(len(b))*64); i++ {
		if i%64 == 0 && to-i >= 64 {
			b[i/64] = ^uint64(0)
			i += 63
			continue
		}
		b[i/64] |= 1 << (i % 64)
	}
}

func (b blockSet) clear(from, to int64) {
	for i := from; i < to; i++ {
		b[i/64] &^= 1 << (i % 64)
	}
}

// or reports whether every block of [from, to) is in b or in c.
func (b blockSet) or(c blockSet, from, to int64) bool {
	for i := from; i < to; i++ {
		if !b.has(i) && !c.has(i) {
			return false
		}
	}
	return true
}

// runs yields the runs of b in [from, to), ascending, with blocks that are not in
// b between any two.
func (b blockSet) runs(from, to int64) iter.Seq[run] {
	return func(yield func(run) bool) {
		for i := from; i < to; i++ {
			if !b.has(i) {
				continue
			}
			start := i
			for i < to && b.has(i) {
				i++
			}
			if !yield(run{start, i - start}) {
				return
			}
		}
	}
}

// count is how many of [from, to) are in b.
func (b blockSet) count(from, to int64) (n int64) {
	for i := from; i < to; i++ {
		switch {
		case i%64 == 0 && to-i >= 64:
			n += int64(bits.OnesCount64(b[i/64]))
			i += 63
		case b.has(i):
			n++
		}
	}
	return n
}

// PackTar packs a tar stream as it is: the format is the stream's, its bytes
// are not looked at. It reads r to its end. manifest is what is said beside
// chunks and sizes; finish is called with it when all is packed, and may still
// add to it, or refuse: then nothing is left behind.
func PackTar(ctx context.Context, dir string, r io.Reader, manifest lpmos.ImageManifest, finish func(*lpmos.ImageManifest) error) (Packed, error) {
	m := manifest
	m.Format = lpmos.FormatTar
	var err error
	m.Pack, err = writePack(ctx, dir, func(add func(int64, []byte) error) error {
		buf := make([]byte, chunkBytes)
		for over := false; !over; {
			// Not io.ReadFull: a decompressor's ErrUnexpectedEOF is an error and
			// would look like the end.
			n := 0
			for n < len(buf) && !over {
				got, err := r.Read(buf[n:])
				n += got
				if over = errors.Is(err, io.EOF); err != nil && !over {
					return err
				}
			}
			if n == 0 {
				break
			}
			if err := add(m.SizeBytes, buf[:n]); err != nil {
				return err
			}
			if m.SizeBytes += int64(n); m.SizeBytes > lpmos.MaxImageBytes {
				return errors.New("the stream is larger than 1 TiB")
			}
		}
		return nil
	}, func() error { return finish(&m) }, &m)
	if err != nil {
		return Packed{}, fmt.Errorf("pack tar: %w", err)
	}
	digest, err := writeManifest(dir, &m)
	if err != nil {
		return Packed{}, fmt.Errorf("pack tar: %w", err)
	}
	return Packed{Digest: digest, Manifest: &m}, nil
}

// Chunks and zeros beyond these make a manifest that is certainly too large:
// each takes at least so many characters of it. A variable because a test cannot
// wait for so many.
var (
	maxChunks = lpmos.MaxManifestBytes / (len(`{"offset":0,"bytes":1,"stored_offset":0,"stored_bytes":1,"sha256":""},`) + 2*sha256.Size)
	maxZeros  = lpmos.MaxManifestBytes / len(`{"offset":0,"bytes":4096},`)
)

var errPieces = fmt.Errorf("it is in more pieces than a manifest of %s can list", lpmos.FormatBytes(lpmos.MaxManifestBytes))

// writeManifest validates m and stores it under its digest.
func writeManifest(dir string, m *lpmos.ImageManifest) (string, error) {
	if err := m.Validate(); err != nil {
		return "", err
	}
	text, err := json.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("encode manifest: %w", err)
	}
	if len(text) > lpmos.MaxManifestBytes {
		return "", fmt.Errorf("manifest of %d bytes is larger than the %d an agent reads", len(text), lpmos.MaxManifestBytes)
	}
	b, err := writeBlob(filepath.Join(dir, "blobs"), func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	return "sha256:" + b.SHA256, err
}

// writePack compresses what produce adds, in order, into a blob and lists it in
// m. Frames are made concurrently; added bytes may be used again at once. The
// blob gets its name after finish, if it is given, returns nil.
func writePack(ctx context.Context, dir string, produce func(add func(off int64, raw []byte) error) error, finish func() error, m *lpmos.ImageManifest) (lpmos.Blob, error) {
	blobs := filepath.Join(dir, "blobs")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return lpmos.Blob{}, err
	}
	return writeBlob(blobs, func(w io.Writer) error {
		enc, err := newEncoder()
		if err != nil {
			return err
		}
		defer enc.Close()
		var stored int64
		q := newQueue(ctx, func(off, n int64, frame []byte) error {
			if _, err := w.Write(frame); err != nil {
				return err
			}
			if len(m.Chunks) == maxChunks {
				return errPieces
			}
			sum := sha256.Sum256(frame)
			m.Chunks = append(m.Chunks, lpmos.Chunk{Offset: off, Bytes: n, StoredOffset: stored, StoredBytes: int64(len(frame)), SHA256: hex.EncodeToString(sum[:])})
			stored += int64(len(frame))
			m.UsedBytes += n
			return nil
		})
		if err := q.run(enc, produce); err != nil || finish == nil {
			return err
		}
		return finish()
	})
}
