package rofs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode/utf16"
)

// fat reads FAT12, FAT16 and FAT32 with long names (Microsoft FAT
// specification, 2000), as EFI system partitions have it.
type fat struct {
	section
	bits        int // 12, 16 or 32
	cluster     int64
	clusters    uint32
	data        int64 // where cluster 2 begins
	table       []byte
	rootDir     []byte // of FAT12 and FAT16
	rootCluster uint32
}

// maxFATBytes bounds the table that is held in memory.
const maxFATBytes = 64 << 20

func openFAT(r io.ReaderAt, size int64) (*fat, error) {
	f := &fat{section: section{r, size}}
	b, err := f.at(0, 512)
	if err != nil {
		return nil, fmt.Errorf("read boot sector: %w", err)
	}
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, copies := int64(le.Uint16(b[14:])), int64(b[16])
	rootEntries := int64(le.Uint16(b[17:]))
	sectors := int64(le.Uint16(b[19:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	tableSectors := int64(le.Uint16(b[22:]))
	if tableSectors == 0 {
		tableSectors = int64(le.Uint32(b[36:]))
	}
	switch {
	case sector < 512 || sector > 4096 || sector&(sector-1) != 0:
		return nil, errors.New("the sector size is not one of FAT")
	case perCluster == 0 || perCluster&(perCluster-1) != 0:
		return nil, errors.New("the cluster size is not one of FAT")
	case copies == 0 || reserved == 0 || tableSectors == 0 || tableSectors*sector > maxFATBytes:
		return nil, errors.New("the allocation table makes no sense")
	case sectors*sector > size:
		return nil, fmt.Errorf("it has %d bytes, more than the partition", sectors*sector)
	}
	f.cluster = sector * perCluster
	rootAt := (reserved + copies*tableSectors) * sector
	f.data = rootAt + (rootEntries*32+sector-1)/sector*sector
	clusters := (sectors*sector - f.data) / f.cluster
	if clusters <= 0 {
		return nil, errors.New("there is no room for files")
	}
	f.clusters = uint32(clusters)
	switch {
	case clusters < 4085:
		f.bits = 12
	case clusters < 65525:
		f.bits = 16
	default:
		f.bits = 32
	}
	if f.table, err = f.at(reserved*sector, tableSectors*sector); err != nil {
		return nil, err
	}
	if f.bits == 32 {
		f.rootCluster = le.Uint32(b[44:])
	} else if f.rootDir, err = f.at(rootAt, rootEntries*32); err != nil {
		return nil, err
	}
	return f, nil
}

func (*fat) folds() bool { return true }

// fatFile is the ref of a node and of a child.
type fatFile struct {
	cluster uint32
	kind    fs.FileMode
	size    int64
	root    bool
}

func (f *fat) root() (node, error) { return f.open(child{ref: fatFile{kind: fs.ModeDir, root: true}}) }

func (*fat) open(c child) (node, error) {
	file := c.ref.(fatFile)
	return node{file.kind, file.size, file}, nil
}

// next is the cluster after c, false at the end of a chain and where the chain
// is damaged.
func (f *fat) next(c uint32) (uint32, bool) {
	var n, last uint32
	at := func(width int) []byte {
		off := int(c) * width / 8
		if off+4 > len(f.table) {
			return append(append([]byte{}, f.table[min(off, len(f.table)):]...), 0, 0, 0, 0)
		}
		return f.table[off:]
	}
	switch f.bits {
	case 12:
		n, last = uint32(le.Uint16(at(12))), 0xFF8
		if c&1 == 1 {
			n >>= 4
		}
		n &= 0xFFF
	case 16:
		n, last = uint32(le.Uint16(at(16))), 0xFFF8
	default:
		n, last = le.Uint32(at(32))&0x0FFFFFFF, 0x0FFFFFF8
	}
	return n, n >= 2 && n < last && n-2 < f.clusters
}

// chain reads limit bytes of a chain of clusters, or all there are.
func (f *fat) chain(c uint32, limit int64) ([]byte, error) {
	var out []byte
	for steps := uint32(0); int64(len(out)) < limit; steps++ {
		if c < 2 || c-2 >= f.clusters || steps > f.clusters {
			return nil, errors.New("the chain of clusters is damaged")
		}
		b, err := f.at(f.data+int64(c-2)*f.cluster, f.cluster)
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
		next, more := f.next(c)
		if !more {
			break
		}
		c = next
	}
	return out[:min(limit, int64(len(out)))], nil
}

func (f *fat) read(n node, limit int64) ([]byte, error) {
	limit = min(limit, n.size)
	if limit == 0 {
		return nil, nil
	}
	b, err := f.chain(n.ref.(fatFile).cluster, limit)
	if err == nil && int64(len(b)) < limit {
		err = errors.New("the file ends too early")
	}
	return b, err
}

func (*fat) target(node) (string, error) { return "", errors.New("FAT has no symbolic links") }

func (f *fat) children(n node) ([]child, error) {
	file := n.ref.(fatFile)
	b := f.rootDir
	if !file.root || f.bits == 32 {
		first := file.cluster
		if file.root {
			first = f.rootCluster
		}
		var err error
		if b, err = f.chain(first, maxDirBytes); err != nil {
			return nil, err
		}
	}
	var out []child
	long := map[int][]uint16{} // parts of a long name by their number
	for ; len(b) >= 32 && b[0] != 0; b = b[32:] {
		attr := b[11]
		switch {
		case b[0] == 0xE5: // deleted
			clear(long)
			continue
		case attr&0x3F == 0x0F:
			long[int(b[0]&0x3F)] = longPart(b)
			continue
		case attr&0x08 != 0: // the volume's label
			clear(long)
			continue
		}
		name := longName(long)
		if name == "" {
			name = shortName(b)
		}
		clear(long)
		if name == "." || name == ".." || name == "" {
			continue
		}
		c := fatFile{cluster: uint32(le.Uint16(b[26:])), size: int64(le.Uint32(b[28:]))}
		if f.bits == 32 {
			c.cluster |= uint32(le.Uint16(b[20:])) << 16
		}
		if attr&0x10 != 0 {
			c.kind, c.size = fs.ModeDir, 0
		}
		if out = append(out, child{name, c}); len(out) > maxEntries {
			return nil, errors.New("the directory has too many entries")
		}
	}
	return out, nil
}

func longPart(b []byte) []uint16 {
	var part []uint16
	for _, r := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
		for i := r[0]; i < r[1]; i += 2 {
			part = append(part, le.Uint16(b[i:]))
		}
	}
	return part
}

func longName(parts map[int][]uint16) string {
	var all []uint16
	for i := 1; i <= len(parts); i++ {
		all = append(all, parts[i]...)
	}
	for i, c := range all {
		if c == 0 {
			all = all[:i]
			break
		}
	}
	return string(utf16.Decode(all))
}

func shortName(b []byte) string {
	name, ext := strings.TrimRight(string(b[:8]), " "), strings.TrimRight(string(b[8:11]), " ")
	// Bits of a byte that DOS left unused say that a part is in lower case.
	if b[12]&0x08 != 0 {
		name = strings.ToLower(name)
	}
	if b[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		name += "." + ext
	}
	return name
}
