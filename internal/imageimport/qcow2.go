package imageimport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
	qlog "github.com/lima-vm/go-qcow2reader/log"

	"github.com/lpmos/lpmos"
)

// Features of qcow2 that must be understood (QEMU, docs/interop/qcow2).
const (
	qcowDirty       = 1 << 0
	qcowCorrupt     = 1 << 1
	qcowExternal    = 1 << 2
	qcowCompression = 1 << 3
	qcowExtendedL2  = 1 << 4
)

// checkQcow2 looks at the header before anything follows it. An image that
// refers to other files (a backing file, an external data file) would make this
// computer read them; one that is encrypted cannot be read.
func checkQcow2(head []byte, fileBytes, maxDisk int64) (size int64, err error) {
	be := binary.BigEndian
	if len(head) < 72 || string(head[:4]) != "QFI\xfb" {
		return 0, errors.New("it has no qcow2 header")
	}
	version, backing := be.Uint32(head[4:]), be.Uint64(head[8:])
	clusterBits, disk, crypt := be.Uint32(head[20:]), be.Uint64(head[24:]), be.Uint32(head[32:])
	l1Entries, l1At := be.Uint32(head[36:]), be.Uint64(head[40:])
	snapshots := be.Uint32(head[60:])
	switch {
	case version != 2 && version != 3:
		return 0, fmt.Errorf("version %d of qcow2 is not known", version)
	case backing != 0:
		return 0, errors.New("it is only the difference to another file (a backing file): flatten it first, qemu-img convert -O qcow2")
	case crypt != 0:
		return 0, errors.New("it is encrypted")
	case clusterBits < 9 || clusterBits > 21:
		return 0, fmt.Errorf("clusters of 2^%d bytes are not allowed", clusterBits)
	case disk == 0 || disk > uint64(maxDisk):
		return 0, fmt.Errorf("it is a disk of %d bytes; 1 to %d are allowed", disk, maxDisk)
	case l1At%(1<<clusterBits) != 0 || l1At >= uint64(fileBytes) || uint64(l1Entries)*8 > uint64(fileBytes)-l1At:
		return 0, errors.New("its first table is outside the file")
	case l1Entries > 1<<22:
		return 0, errors.New("its first table is larger than any disk needs")
	case snapshots > 65536:
		return 0, errors.New("it has too many snapshots")
	}
	entry := uint64(8)
	if version == 3 {
		if len(head) < 104 {
			return 0, errors.New("its header is cut off")
		}
		features := be.Uint64(head[72:])
		switch {
		case features&qcowExternal != 0:
			return 0, errors.New("its data is in another file (an external data file): convert it first, qemu-img convert -O qcow2")
		case features&qcowCorrupt != 0:
			return 0, errors.New("it is marked as corrupt (qemu-img check says more)")
		case features&qcowDirty != 0:
			return 0, errors.New("it was not closed cleanly (run qemu-img check -r all on it)")
		case features&^(qcowCompression|qcowExtendedL2) != 0:
			return 0, fmt.Errorf("incompatible features %#x are not known", features&^(qcowCompression|qcowExtendedL2))
		}
		if features&qcowExtendedL2 != 0 {
			entry = 16
		}
		if length := be.Uint32(head[100:]); length < 104 || length > 1<<clusterBits || length%8 != 0 {
			return 0, errors.New("its header has an impossible length")
		}
	}
	// One entry of the first table covers a cluster full of second-level entries.
	covers := (uint64(1) << clusterBits / entry) << clusterBits
	if uint64(l1Entries) < (disk+covers-1)/covers {
		return 0, errors.New("its first table is too short for the disk")
	}
	return int64(disk), nil
}

var registerOnce sync.Once

// qcowDisk is a qcow2 image opened for reading.
type qcowDisk struct {
	img  *qcow2.Qcow2
	size int64
}

// openQcow2 opens an image whose header passed checkQcow2.
func openQcow2(r io.ReaderAt, size int64) (d *qcowDisk, err error) {
	registerOnce.Do(func() {
		// The library prints to standard error otherwise.
		qlog.SetWarnFunc(func(string) {})
		qlog.SetDebugFunc(func(string) {})
		qcow2.SetDecompressor(qcow2.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
			z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderLowmem(true))
			if err != nil {
				return nil, err
			}
			return z.IOReadCloser(), nil
		})
	})
	defer recovered(&err)
	img, err := qcow2.Open(r, func(io.ReaderAt, image.Type) (image.Image, error) {
		return nil, errors.New("another file is not opened")
	})
	if err != nil {
		return nil, err
	}
	if err := img.Readable(); err != nil {
		return nil, err
	}
	return &qcowDisk{img, size}, nil
}

// recovered makes an error of a panic: the library was not written for images
// that somebody damaged on purpose.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("the image is damaged: %v", p)
	}
}

func (d *qcowDisk) ReadAt(b []byte, off int64) (n int, err error) {
	defer recovered(&err)
	return d.img.ReadAt(b, off)
}

// holes yields what the image does not have, or says is zero.
func (d *qcowDisk) holes(yield func(lpmos.Range, error) bool) {
	for at := int64(0); at < d.size; {
		e, err := d.extent(at)
		if (err != nil || e.Zero || !e.Allocated) && !yield(lpmos.Range{Offset: at, Bytes: e.Length}, err) || err != nil {
			return
		}
		at += e.Length
	}
}

// extent is the stretch of one kind that begins at a place of the disk.
func (d *qcowDisk) extent(at int64) (e image.Extent, err error) {
	defer recovered(&err)
	if e, err = d.img.Extent(at, d.size-at); err == nil && (e.Length <= 0 || e.Start != at) {
		err = errors.New("its tables are damaged")
	}
	return e, err
}
