package install

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lpmos/lpmos"
)

// TestDiskWriter writes pieces of every alignment beside each other, and reads
// them past the cache and through it.
func TestDiskWriter(t *testing.T) {
	dev := loopDevice(t, 16<<20, 4096)
	f, err := os.OpenFile(dev, os.O_RDWR|syscall.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// What is in the cache before is not to be what is read afterwards.
	if _, err := f.WriteAt(bytes.Repeat([]byte("old "), 4<<20), 0); err != nil {
		t.Fatal(err)
	}
	want := testBytes(15 << 20)
	w := NewDiskWriter(f)
	if w.direct == nil {
		t.Fatal("a block device takes nothing past the cache")
	}
	buf, at := pages(1<<20), 0
	for _, n := range []int{3 << 20, 4096 + 512, 8 << 20, 512, 4096, 4<<20 - 9216} {
		for n += at; at < n; {
			piece := buf[:copy(buf, want[at:n])]
			if got, err := w.WriteAt(piece, int64(at)); err != nil || got != len(piece) {
				t.Fatalf("WriteAt(%d bytes at %d) = %d, %v", len(piece), at, got, err)
			}
			at += len(piece)
		}
	}
	if w.direct == nil || w.Close() != nil || f.Sync() != nil {
		t.Error("it went on without the direct way, or did not end")
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("through the cache there is something else, %v", err)
	}
	past, err := os.OpenFile(dev, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer past.Close()
	direct := pages(int64(len(want)))
	if _, err := past.ReadAt(direct, 0); err != nil || !bytes.Equal(direct, want) {
		t.Errorf("on the disk there is something else, %v", err)
	}
	// It goes on through the cache once it is closed.
	if _, err := w.WriteAt(buf[:4096], 15<<20); err != nil {
		t.Errorf("WriteAt after Close: %v", err)
	}
	// The end of the disk is an error, not a short write.
	if n, err := NewDiskWriter(f).WriteAt(buf, 16<<20-512<<10); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("WriteAt over the end = %d, %v; want ENOSPC", n, err)
	}
}

// TestDiskWriterWithoutDirect: where no write goes past the cache it is written all
// the same.
func TestDiskWriterWithoutDirect(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := NewDiskWriter(f)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// Refuses what is not a number, as a filesystem may refuse O_DIRECT at each
	// write: with EINVAL.
	if w.direct, err = os.OpenFile("/proc/self/coredump_filter", os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	buf := pages(1 << 20)
	copy(buf, bytes.Repeat([]byte("image"), 1<<20))
	for at := int64(4096); at < 4<<20; at += int64(len(buf)) {
		if n, err := w.WriteAt(buf, at); n != len(buf) || err != nil {
			t.Fatalf("WriteAt = %d, %v", n, err)
		}
	}
	if w.direct != nil {
		t.Error("it tries again each time")
	}
	got := make([]byte, len(buf))
	if _, err := f.ReadAt(got, 4096+2<<20); err != nil || !bytes.Equal(got, buf) {
		t.Errorf("it is not what was written, %v", err)
	}
}

// What is zeroed is zeros, nothing else is, and whoever waits is told.
func TestZeroAll(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 8 << 20
	if _, err := f.Write(bytes.Repeat([]byte{0xa5}, size)); err != nil {
		t.Fatal(err)
	}
	var told [][2]int64
	d := &device{File: f, regular: true}
	ranges := []lpmos.Range{{Offset: 512, Bytes: 1<<20 + 3}, {Offset: 4 << 20, Bytes: 2 << 20}}
	if err := d.zeroAll(t.Context(), ranges, func(done, total int64) { told = append(told, [2]int64{done, total}) }); err != nil {
		t.Fatal(err)
	}
	if want := int64(3<<20 + 3); len(told) != 1 || told[0] != [2]int64{want, want} {
		t.Errorf("told %v; want that all of %d bytes is done", told, want)
	}
	want := bytes.Repeat([]byte{0xa5}, size)
	for _, z := range ranges {
		clear(want[z.Offset : z.Offset+z.Bytes])
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("something else than the ranges was zeroed, or not all of them (%v)", err)
	}
}
