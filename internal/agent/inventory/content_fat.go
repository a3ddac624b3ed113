package inventory

import (
	"fmt"

	"github.com/lpmos/lpmos"
)

// isFAT reports whether b is the boot sector of FAT12, FAT16 or FAT32
// (Microsoft, FAT: General Overview of On-Disk Format).
func isFAT(b []byte) bool {
	if len(b) < 512 || b[510] != 0x55 || b[511] != 0xAA {
		return false
	}
	sector, cluster := le.Uint16(b[11:]), b[13]
	return sector >= 512 && sector <= 4096 && sector&(sector-1) == 0 &&
		cluster != 0 && cluster&(cluster-1) == 0 &&
		le.Uint16(b[14:]) != 0 && (b[16] == 1 || b[16] == 2) && (b[21] == 0xF0 || b[21] >= 0xF8) &&
		(string(b[54:57]) == "FAT" || string(b[82:87]) == "FAT32")
}

func vfat(s *section) (*lpmos.Filesystem, int64) {
	b := s.at(0, 512)
	if !isFAT(b) {
		return nil, 0
	}
	sector, cluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, fats, rootEntries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	sectors, fatSize := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	fat32 := fatSize == 0
	id, label := b[39:43], b[43:54]
	if fat32 {
		fatSize = int64(le.Uint32(b[36:]))
		id, label = b[67:71], b[71:82]
	}
	f := &lpmos.Filesystem{
		Type: "vfat", Label: fatLabel(label), SizeBytes: sectors * sector,
		UUID: fmt.Sprintf("%02X%02X-%02X%02X", id[3], id[2], id[1], id[0]),
	}
	rootAt, rootSize := (reserved+fats*fatSize)*sector, rootEntries*32
	data := rootAt + rootSize
	if fat32 {
		rootAt, rootSize = data+(int64(le.Uint32(b[44:]))-2)*cluster*sector, cluster*sector
	}
	// The label in the root directory is the one people change; the boot
	// sector keeps the first.
	root := s.at(rootAt, min(rootSize, 64<<10))
	for ; len(root) >= 32 && root[0] != 0; root = root[32:] {
		const volume, long = 0x08, 0x0F
		if root[0] != 0xE5 && root[11]&0x3F != long && root[11]&volume != 0 {
			f.Label = fatLabel(root[:11])
			break
		}
	}
	if clusters := (sectors*sector - data) / (cluster * sector); clusters > 0 {
		if free, ok := fatFree(s, b, reserved*sector, fatSize*sector, clusters, fat32); ok {
			f.UsedBytes = (clusters - free) * cluster * sector
		}
	}
	return f, 0
}

// fatFree counts the free clusters in the first allocation table. The count
// that FAT32 keeps beside it is a hint that firmware does not maintain.
func fatFree(s *section, boot []byte, at, size, clusters int64, fat32 bool) (free int64, ok bool) {
	width := int64(2)
	switch {
	case fat32:
		width = 4
	case clusters < 4085:
		return 0, false // FAT12, too small to matter
	}
	// 64 MiB is a FAT32 of 512 GB in clusters of 32 KiB.
	if clusters+2 > size/width || size > 64<<20 {
		return 0, false
	}
	const step = 1 << 20
	for first, n := int64(0), (clusters+2)*width; first < n; first += step {
		b := s.at(at+first, min(step, n-first))
		if b == nil {
			return 0, false
		}
		for i := int64(0); i+width <= int64(len(b)); i += width {
			if fat32 && le.Uint32(b[i:])&0x0FFFFFFF == 0 || !fat32 && le.Uint16(b[i:]) == 0 {
				free++
			}
		}
	}
	return min(free, clusters), true
}

func fatLabel(b []byte) string {
	if s := cstring(b); s != "NO NAME" {
		return s
	}
	return ""
}

// exfat is Microsoft's exFAT File System Specification.
func exfat(s *section) (*lpmos.Filesystem, int64) {
	b := s.at(0, 512)
	if b == nil || string(b[3:11]) != "EXFAT   " || b[108] < 9 || b[108] > 12 || b[109] > 25-b[108] {
		return nil, 0
	}
	sector := uint64(1) << b[108]
	cluster := sector << b[109]
	id := b[100:104]
	f := &lpmos.Filesystem{
		Type: "exfat", SizeBytes: bytesOf(le.Uint64(b[72:]), sector),
		UUID: fmt.Sprintf("%02X%02X-%02X%02X", id[3], id[2], id[1], id[0]),
	}
	heap := int64(le.Uint32(b[88:])) * int64(sector)
	place := func(c uint32) int64 { return heap + (int64(c)-2)*int64(cluster) }
	root := s.at(place(le.Uint32(b[96:])), int64(min(cluster, 64<<10)))
	for ; len(root) >= 32 && root[0] != 0; root = root[32:] {
		switch root[0] {
		case 0x83: // volume label
			f.Label = ucs2(root[2:][:2*min(int(root[1]), 11)])
		case 0x81: // allocation bitmap: one bit for each cluster
			if m := s.at(place(le.Uint32(root[20:])), int64(min(le.Uint64(root[24:]), 1<<30))); m != nil {
				f.UsedBytes = bytesOf(popcount(m), cluster)
			}
		}
	}
	return f, 0
}

func isNTFS(b []byte) bool {
	return len(b) >= 512 && (string(b[3:11]) == "NTFS    " || string(b[3:11]) == "EXFAT   " || string(b[3:11]) == "-FVE-FS-")
}

// ntfs takes the label out of the volume file, record 3 of the master file
// table.
func ntfs(s *section) (*lpmos.Filesystem, int64) {
	b := s.at(0, 512)
	if b == nil || string(b[3:11]) != "NTFS    " {
		return nil, 0
	}
	sector, cluster := int64(le.Uint16(b[11:])), int64(b[13])
	if sector < 256 || sector > 4096 || sector&(sector-1) != 0 || cluster == 0 {
		return nil, 0
	}
	if cluster > 128 { // a negative exponent, for clusters above 64 KiB
		cluster = 1 << min(256-cluster, 12)
	}
	f := &lpmos.Filesystem{Type: "ntfs", UUID: fmt.Sprintf("%016X", le.Uint64(b[72:])), SizeBytes: bytesOf(le.Uint64(b[40:]), uint64(sector))}
	record := int64(int8(b[64])) * cluster * sector
	if record < 0 {
		record = 1 << min(-int64(int8(b[64])), 16)
	}
	mft := le.Uint64(b[48:])
	if record < 256 || record > 64<<10 || mft > 1<<40 {
		return f, 0
	}
	f.Label = ntfsLabel(s.at(int64(mft)*cluster*sector+3*record, record))
	return f, 0
}

// ntfsLabel is the attribute $VOLUME_NAME (0x60) of a file record.
func ntfsLabel(r []byte) string {
	if len(r) < 64 || string(r[:4]) != "FILE" {
		return ""
	}
	for off := int(le.Uint16(r[20:])); off+24 <= len(r); {
		a := r[off:]
		typ, size := le.Uint32(a), int(le.Uint32(a[4:]))
		if typ == 0xFFFFFFFF || size < 24 || size > len(a) {
			break
		}
		if typ == 0x60 && a[8] == 0 { // resident
			n, at := int(le.Uint32(a[16:])), int(le.Uint16(a[20:]))
			if n < 0 || at+n > size {
				break
			}
			return ucs2(a[at : at+n])
		}
		off += size
	}
	return ""
}
