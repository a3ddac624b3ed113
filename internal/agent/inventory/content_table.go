package inventory

import (
	"fmt"
	"hash/crc32"

	"github.com/lpmos/lpmos"
)

// table is a partition table as read.
type table struct {
	lpmos.Content
	Partitions []partition
}

type partition struct {
	lpmos.Partition
	extended bool // holds logical partitions, nothing else
}

// covers reports whether the byte at off belongs to a partition.
func (t table) covers(off int64) bool {
	for _, p := range t.Partitions {
		if off >= p.StartBytes && off < p.StartBytes+p.SizeBytes {
			return true
		}
	}
	return false
}

// readTable reads the table the kernel would use: GPT if sector 0 has its
// protective entry or is no boot sector at all (a GPT whose sector 0 was
// overwritten still shows what was there), MBR otherwise.
func readTable(dev *section, sector int64) table {
	boot := dev.at(0, 512)
	isMBR, protective := mbrKind(boot)
	if !isMBR || protective {
		if t, ok := readGPT(dev, sector); ok {
			return t
		}
	}
	if !isMBR || isFAT(boot) || isNTFS(boot) {
		return table{}
	}
	return readMBR(dev, boot, sector)
}

// mbrKind reports whether b ends and looks like a master boot record, and
// whether it has the protective entry of a GPT.
func mbrKind(b []byte) (isMBR, protective bool) {
	if b == nil || b[510] != 0x55 || b[511] != 0xAA {
		return false, false
	}
	for i := range 4 {
		e := b[446+16*i:]
		// The boot indicator has two values; others mean that this is code.
		if e[0]&0x7F != 0 {
			return false, false
		}
		protective = protective || e[4] == 0xEE
	}
	return true, protective
}

// isExtended reports whether a partition of this type holds logical ones.
func isExtended(typ byte) bool { return typ == 0x05 || typ == 0x0F || typ == 0x85 }

// readMBR reads the four primary entries and the chain of logical ones.
func readMBR(dev *section, boot []byte, sector int64) table {
	var t table
	id := le.Uint32(boot[440:])
	var extendedStart int64
	for i := range 4 {
		e := boot[446+16*i:]
		start, size, ok := extent(dev, e, 0, sector)
		if !ok {
			continue
		}
		t.Partitions = append(t.Partitions, mbrPartition(id, i+1, e[4], start, size))
		if isExtended(e[4]) && extendedStart == 0 {
			extendedStart = start
		}
	}
	if len(t.Partitions) == 0 && id == 0 {
		return table{} // a boot sector without any entry says nothing
	}
	t.Table, t.TableID = "mbr", fmt.Sprintf("%08x", id)

	// Each extended boot record has one logical partition, relative to itself,
	// and a link to the next one, relative to the extended partition.
	seen, number := map[int64]bool{}, 5
	for at := extendedStart; at != 0 && !seen[at] && len(t.Partitions) < maxPartitions; {
		seen[at] = true
		ebr := dev.at(at, 512)
		if isMBR, _ := mbrKind(ebr); !isMBR {
			break
		}
		if start, size, ok := extent(dev, ebr[446:], at, sector); ok && !isExtended(ebr[450]) {
			t.Partitions = append(t.Partitions, mbrPartition(id, number, ebr[450], start, size))
			number++
		}
		next, _, ok := extent(dev, ebr[462:], extendedStart, sector)
		if !ok || !isExtended(ebr[466]) {
			break
		}
		at = next
	}
	return t
}

// extent is the place of an MBR entry in bytes, relative to base; ok is false
// if the entry is empty or begins outside the device. One that ends outside is
// cut: the data in front of that is there.
func extent(dev *section, e []byte, base, sector int64) (start, size int64, ok bool) {
	start, size = base+int64(le.Uint32(e[8:]))*sector, int64(le.Uint32(e[12:]))*sector
	if e[4] == 0 || size == 0 || start <= 0 || start >= dev.size {
		return 0, 0, false
	}
	return start, min(size, dev.size-start), true
}

func mbrPartition(id uint32, number int, typ byte, start, size int64) partition {
	p := partition{extended: isExtended(typ)}
	p.Partition = lpmos.Partition{Number: number, StartBytes: start, SizeBytes: size, Type: fmt.Sprintf("%02x", typ)}
	if id != 0 {
		p.UUID = fmt.Sprintf("%08x-%02x", id, number)
	}
	return p
}

// readGPT reads the primary header, or the backup at the end of the device if
// the primary is damaged (UEFI 2.10, 5.3). A disk that was moved between
// enclosures may have been written with the other sector size, so that is
// tried last.
func readGPT(dev *section, sector int64) (table, bool) {
	sizes := []int64{sector, 512, 4096}
	for i, size := range sizes {
		if i > 0 && size == sector {
			continue
		}
		for _, lba := range []int64{1, dev.size/size - 1} {
			if t, ok := readGPTAt(dev, lba, size); ok {
				return t, true
			}
		}
	}
	return table{}, false
}

func readGPTAt(dev *section, lba, sector int64) (table, bool) {
	h := dev.at(lba*sector, sector)
	if h == nil || string(h[:8]) != "EFI PART" {
		return table{}, false
	}
	length := int64(le.Uint32(h[12:]))
	if length < 92 || length > sector {
		return table{}, false
	}
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:length]) != sum || le.Uint64(h[24:]) != uint64(lba) {
		return table{}, false
	}
	arrayLBA, count, entry := le.Uint64(h[72:]), int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	if arrayLBA > uint64(dev.size/sector) || entry < 128 || entry > 4096 || entry%8 != 0 || count == 0 || count > 4096 || count*entry > 1<<20 {
		return table{}, false
	}
	array := dev.at(int64(arrayLBA)*sector, count*entry)
	if array == nil || crc32.ChecksumIEEE(array) != le.Uint32(h[88:]) {
		return table{}, false
	}
	t := table{Content: lpmos.Content{Table: "gpt", TableID: guidString(h[56:])}}
	sectors := uint64(dev.size / sector)
	for i := range count {
		e := array[i*entry:][:entry]
		typ, first, last := guidString(e), le.Uint64(e[32:]), le.Uint64(e[40:])
		if typ == "" || first > last || first >= sectors {
			continue
		}
		last = min(last, sectors-1)
		t.Partitions = append(t.Partitions, partition{Partition: lpmos.Partition{
			Number: int(i) + 1, StartBytes: int64(first) * sector, SizeBytes: int64(last-first+1) * sector,
			Type: typ, UUID: guidString(e[16:]), Name: ucs2(e[56:128]),
		}})
		if len(t.Partitions) == maxPartitions {
			break
		}
	}
	return t, true
}
