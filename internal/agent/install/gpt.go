package install

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// gpt is a GUID partition table (UEFI 2.10, 5.3) as it was read from one end of
// a disk.
type gpt struct {
	sector  int64
	header  []byte // one sector
	entries []byte
	size    int // of one entry
}

const (
	gptSignature  = "EFI PART"
	gptHeaderLen  = 12
	gptHeaderCRC  = 16
	gptMyLBA      = 24
	gptAltLBA     = 32
	gptLast       = 48
	gptDiskGUID   = 56
	gptEntriesLBA = 72
	gptEntryCount = 80
	gptEntrySize  = 84
	gptEntriesCRC = 88
)

var le = binary.LittleEndian

// readGPT reads and checks the primary table.
func readGPT(r io.ReaderAt, sector int64) (*gpt, error) {
	g := &gpt{sector: sector, header: make([]byte, sector)}
	if _, err := r.ReadAt(g.header, sector); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	n := le.Uint32(g.header[gptHeaderLen:])
	if string(g.header[:8]) != gptSignature || n < 92 || int64(n) > sector {
		return nil, errors.New("read partition table: there is no GPT header")
	}
	if g.headerCRC() != le.Uint32(g.header[gptHeaderCRC:]) {
		return nil, errors.New("read partition table: the header's checksum is wrong")
	}
	count, size := le.Uint32(g.header[gptEntryCount:]), le.Uint32(g.header[gptEntrySize:])
	if size < 128 || size > 4096 || size%128 != 0 || count == 0 || count > 1024 {
		return nil, fmt.Errorf("read partition table: %d entries of %d bytes are not supported", count, size)
	}
	g.size, g.entries = int(size), make([]byte, int64(count)*int64(size))
	if _, err := r.ReadAt(g.entries, int64(le.Uint64(g.header[gptEntriesLBA:]))*sector); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	if crc32.ChecksumIEEE(g.entries) != le.Uint32(g.header[gptEntriesCRC:]) {
		return nil, errors.New("read partition table: the entries' checksum is wrong")
	}
	return g, nil
}

func (g *gpt) headerCRC() uint32 {
	b := bytes.Clone(g.header[:le.Uint32(g.header[gptHeaderLen:])])
	le.PutUint32(b[gptHeaderCRC:], 0)
	return crc32.ChecksumIEEE(b)
}

// entry is that of a partition by its number; ok is false when it is unused.
func (g *gpt) entry(number int) (e []byte, ok bool) {
	if number < 1 || number > len(g.entries)/g.size {
		return nil, false
	}
	e = g.entries[(number-1)*g.size : number*g.size]
	return e, !bytes.Equal(e[:16], make([]byte, 16))
}

// place is where a partition is, in bytes. What is behind any disk there can be
// is at 1<<62, so that nobody's sums overflow.
func (g *gpt) place(number int) (start, size int64, ok bool) {
	e, ok := g.entry(number)
	if !ok {
		return 0, 0, false
	}
	far := uint64(1<<62) / uint64(g.sector)
	first, last := int64(min(le.Uint64(e[32:]), far)), int64(min(le.Uint64(e[40:]), far))
	return first * g.sector, (last - first + 1) * g.sector, last >= first
}

// fit makes the table that of a disk of sizeBytes, with another GUID, and lets
// a partition reach to its end when nothing lies behind it. It returns the
// partition's new size.
func (g *gpt) fit(sizeBytes int64, guid [16]byte, grow int) (int64, error) {
	table := (int64(len(g.entries)) + g.sector - 1) / g.sector
	last := sizeBytes/g.sector - 1 - table - 1
	copy(g.header[gptDiskGUID:], guid[:])
	start, size, ok := g.place(grow)
	if !ok {
		return 0, fmt.Errorf("grow partition %d: the table has none", grow)
	}
	for n := 1; n <= len(g.entries)/g.size; n++ {
		s, z, used := g.place(n)
		if used && (s+z)/g.sector-1 > last {
			return 0, fmt.Errorf("grow partition %d: partition %d ends behind the disk", grow, n)
		}
		if used && s > start {
			last = min(last, s/g.sector-1)
		}
	}
	e, _ := g.entry(grow)
	end := (last+1)*g.sector/alignment*alignment/g.sector - 1
	if end > int64(le.Uint64(e[40:])) {
		le.PutUint64(e[40:], uint64(end))
		size = (end+1)*g.sector - start
	}
	return size, nil
}

// write writes both tables: the backup first, so that a disk always has one
// that is whole. It keeps the protective MBR's boot code and makes its one
// entry cover the disk.
func (g *gpt) write(d readWriterAt, sizeBytes int64) error {
	sectors := sizeBytes / g.sector
	table := (int64(len(g.entries)) + g.sector - 1) / g.sector
	padded := make([]byte, table*g.sector)
	copy(padded, g.entries)
	le.PutUint32(g.header[gptEntriesCRC:], crc32.ChecksumIEEE(g.entries))
	le.PutUint64(g.header[gptLast:], uint64(sectors-1-table-1))
	for _, at := range []struct{ my, other, entries int64 }{{sectors - 1, 1, sectors - 1 - table}, {1, sectors - 1, 2}} {
		le.PutUint64(g.header[gptMyLBA:], uint64(at.my))
		le.PutUint64(g.header[gptAltLBA:], uint64(at.other))
		le.PutUint64(g.header[gptEntriesLBA:], uint64(at.entries))
		le.PutUint32(g.header[gptHeaderCRC:], g.headerCRC())
		if _, err := d.WriteAt(padded, at.entries*g.sector); err != nil {
			return err
		}
		if _, err := d.WriteAt(g.header, at.my*g.sector); err != nil {
			return err
		}
	}
	mbr := make([]byte, g.sector)
	if _, err := d.ReadAt(mbr, 0); err != nil {
		return err
	}
	for at := 446; at < 510; at += 16 {
		if mbr[at+4] == 0xee {
			le.PutUint32(mbr[at+12:], uint32(min(sectors-1, 1<<32-1)))
			_, err := d.WriteAt(mbr, 0)
			return err
		}
	}
	return errors.New("write partition table: there is no protective MBR")
}

// growMBR lets a primary partition of an MBR reach to the end of the disk, as
// far as 32 bits of sectors go, when nothing lies behind it. It returns the
// partition's new size.
func growMBR(d readWriterAt, sector, sizeBytes int64, grow int) (int64, error) {
	mbr := make([]byte, sector)
	if _, err := d.ReadAt(mbr, 0); err != nil {
		return 0, err
	}
	if mbr[510] != 0x55 || mbr[511] != 0xaa || grow < 1 || grow > 4 {
		return 0, fmt.Errorf("grow partition %d: there is no table with such a primary partition", grow)
	}
	// place is where a partition is, in sectors: nowhere when its entry is unused.
	place := func(number int) (start, end int64) {
		e := mbr[446+16*(number-1):]
		if e[4] == 0 {
			return 0, 0
		}
		start = int64(le.Uint32(e[8:]))
		return start, start + int64(le.Uint32(e[12:]))
	}
	start, end := place(grow)
	if start == 0 || end == start {
		return 0, fmt.Errorf("grow partition %d: the table has none", grow)
	}
	last := min(sizeBytes/sector, 1<<32)
	for n := 1; n <= 4; n++ {
		s, e := place(n)
		if e > sizeBytes/sector {
			return 0, fmt.Errorf("grow partition %d: partition %d ends behind the disk", grow, n)
		}
		if s > start {
			last = min(last, s)
		}
	}
	if to := last * sector / alignment * alignment / sector; to > end {
		end = to
		le.PutUint32(mbr[446+16*(grow-1)+12:], uint32(end-start))
		if _, err := d.WriteAt(mbr, 0); err != nil {
			return 0, err
		}
	}
	return (end - start) * sector, nil
}
