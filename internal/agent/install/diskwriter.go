package install

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// DiskWriter writes the pieces of an image to a disk, each where it belongs. Whole
// pages go past the kernel's cache (O_DIRECT): they are not copied once more, a
// machine with little memory does not stall, an error is that of the write which
// met it, and fsync has little left to do. What is not whole pages goes through
// the cache, and all does where the kernel refuses the other way; writing that out
// begins while more is produced.
type DiskWriter struct {
	file   *os.File
	direct *os.File // the same file, past the cache; nil if that cannot be had

	from, to int64 // through the cache, and not begun to be written out
}

// pageBytes is what O_DIRECT wants of places, lengths and memory: no disk has
// larger sectors.
const pageBytes = 4096

// NewDiskWriter writes to f, which stays the caller's, as are its cache and
// fsync. Close ends it.
func NewDiskWriter(f *os.File) *DiskWriter {
	w := &DiskWriter{file: f}
	// By its descriptor it is the same disk, whatever its name has come to mean.
	if d, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY|syscall.O_DIRECT, 0); err == nil {
		w.direct = d
	}
	return w
}

// WriteAt is that of io.WriterAt.
func (w *DiskWriter) WriteAt(p []byte, off int64) (int, error) {
	if w.direct != nil && len(p) > 0 && (uintptr(unsafe.Pointer(&p[0]))|uintptr(len(p))|uintptr(off))%pageBytes == 0 {
		n, err := w.direct.WriteAt(p, off)
		if n > 0 || !errors.Is(err, syscall.EINVAL) {
			return n, err
		}
		if err := w.Close(); err != nil {
			return 0, err
		}
	}
	n, err := w.file.WriteAt(p, off)
	if off != w.to || w.to-w.from >= 32<<20 {
		w.writeOut()
		w.from = off
	}
	w.to = off + int64(n)
	return n, err
}

func (w *DiskWriter) writeOut() {
	const syncFileRangeWrite = 2
	if w.to > w.from {
		// Only a hint: fsync reports what goes wrong.
		_ = syscall.SyncFileRange(int(w.file.Fd()), w.from, w.to-w.from, syncFileRangeWrite)
	}
}

// Close gives back what NewDiskWriter took. More can be written; it goes through
// the cache.
func (w *DiskWriter) Close() error {
	if w.direct == nil {
		return nil
	}
	err := w.direct.Close()
	w.direct = nil
	return err
}

// pages is n bytes of memory that can be written past the cache.
func pages(n int64) []byte {
	b := make([]byte, n+pageBytes)
	skip := int64(-uintptr(unsafe.Pointer(&b[0])) % pageBytes)
	return b[skip : skip+n]
}
