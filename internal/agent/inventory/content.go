package inventory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/lpmos/lpmos"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// maxPartitions bounds the partitions listed of one disk.
const maxPartitions = 128

// Probe describes what is on a disk of size bytes with logical sectors of
// sector bytes: its partition table, and a filesystem or another signature in
// each partition and on the disk itself. It reads a few hundred KiB at most.
//
// A disk may carry both a table and a signature of its own (an installation
// medium does; a leftover may be). Both are reported, unless the signature lies
// inside a partition and so is the partition's. Partitions are sorted by number.
//
// An error means that the device could not be read everywhere; the content is
// then what was found in spite of that, and less than what is there.
func Probe(r io.ReaderAt, size int64, sector int) (lpmos.Content, error) {
	dev := &section{r: r, size: max(size, 0), fault: new(error)}
	if sector < 512 || sector > 64<<10 || sector&(sector-1) != 0 {
		sector = 512
	}
	table := readTable(dev, int64(sector))
	for i := range table.Partitions {
		p := &table.Partitions[i]
		if !p.extended {
			p.Filesystem, _ = detect(dev.sub(p.StartBytes, p.SizeBytes))
		}
	}
	c := lpmos.Content{Table: table.Table, TableID: table.TableID}
	for _, p := range table.Partitions {
		c.Partitions = append(c.Partitions, p.Partition)
	}
	slices.SortFunc(c.Partitions, func(a, b lpmos.Partition) int { return a.Number - b.Number })

	// A boot sector of FAT or NTFS on the whole disk has the signature of an
	// MBR but partitions only by accident; readTable has refused those.
	if f, at := detect(dev); f != nil && !table.covers(at) {
		c.Filesystem = f
	}
	if *dev.fault != nil {
		return c, *dev.fault
	}
	return c, nil
}

// section is a part of a device. Reading outside it, or where the device has a
// fault, gives nothing; the first fault is kept.
type section struct {
	r         io.ReaderAt
	off, size int64
	fault     *error // shared with all parts of the device
}

// sub is n bytes from off of s, cut to what s has.
func (s *section) sub(off, n int64) *section {
	off = min(max(off, 0), s.size)
	return &section{r: s.r, off: s.off + off, size: min(max(n, 0), s.size-off), fault: s.fault}
}

// at reads n bytes from off, nil if they are not all there.
func (s *section) at(off, n int64) []byte {
	if off < 0 || n <= 0 || n > 2<<20 || off > s.size-n {
		return nil
	}
	b := make([]byte, n)
	if _, err := s.r.ReadAt(b, s.off+off); err != nil {
		// What is beyond the end of a device that is shorter than it says is
		// not there; everything else is a fault.
		if !errors.Is(err, io.EOF) && *s.fault == nil {
			*s.fault = fmt.Errorf("read %d bytes at %d: %w", n, s.off+off, err)
		}
		return nil
	}
	return b
}

// uuidString spells 16 bytes in the order in which they are.
func uuidString(b []byte) string {
	for _, v := range b[:16] {
		if v != 0 {
			return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
		}
	}
	return ""
}

// guidString spells 16 bytes as a GUID, whose first three fields are little
// endian on disk (UEFI 2.10, appendix A).
func guidString(b []byte) string {
	return uuidString([]byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6],
		b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]})
}
