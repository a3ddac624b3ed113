package rofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

var be = binary.BigEndian

// xfs reads XFS, versions 4 and 5 (XFS Algorithms & Data Structures, "On-disk
// inode", "Data extents", "Directories", "Symbolic links"). All numbers are
// big-endian.
type xfs struct {
	section
	block      int64
	agBlocks   int64
	agCount    int64
	agBlockLog uint
	inodeLog   uint // of inodes in a block
	inodeBytes int64
	dirBlock   int64
	rootInode  uint64
	v5         bool
	fileTypes  bool // directory entries carry the kind of the file
}

const (
	xfsIncompatFileType = 0x1
	// xfsIncompatKnown: ftype, sparse inodes, metadata UUID, bigtime, nrext64,
	// exchange-range, parent pointers. Needs-repair is not among them, nor the
	// features that put metadata elsewhere (metadir, zoned).
	xfsIncompatKnown = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80

	xfsLocal, xfsExtents, xfsBtree = 1, 2, 3

	xfsLargeExtents = 1 << 4  // di_flags2: the extent counter has 64 bits
	xfsLeafOffset   = 1 << 35 // of a directory: its index begins there
)

func openXFS(r io.ReaderAt, size int64) (*xfs, error) {
	x := &xfs{section: section{r, size}}
	sb, err := x.at(0, 512)
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if string(sb[:4]) != "XFSB" {
		return nil, errors.New("not an XFS filesystem: no magic number in the superblock")
	}
	version := be.Uint16(sb[100:]) & 0xF
	x.v5 = version == 5
	x.block = int64(be.Uint32(sb[4:]))
	x.agBlocks, x.agCount = int64(be.Uint32(sb[84:])), int64(be.Uint32(sb[88:]))
	x.inodeBytes = int64(be.Uint16(sb[104:]))
	x.inodeLog, x.agBlockLog = uint(sb[123]), uint(sb[124])
	x.dirBlock = x.block << min(sb[192], 16)
	x.rootInode = be.Uint64(sb[56:])
	switch {
	case version != 4 && version != 5:
		return nil, fmt.Errorf("version %d of XFS is not known", version)
	case x.block < 512 || x.block > 65536 || x.block&(x.block-1) != 0 || x.dirBlock > 65536:
		return nil, errors.New("the block size is not one of XFS")
	case x.inodeBytes < 256 || x.inodeBytes > 2048 || x.inodeBytes<<min(x.inodeLog, 16) != x.block:
		return nil, errors.New("the inode size is not one of XFS")
	case x.agBlocks <= 0 || x.agCount <= 0 || x.agBlockLog > 31 || x.agBlocks > 1<<x.agBlockLog:
		return nil, errors.New("the allocation groups make no sense")
	case be.Uint64(sb[8:]) > uint64(size/x.block):
		return nil, fmt.Errorf("it has %d blocks, more than the partition", be.Uint64(sb[8:]))
	}
	if x.v5 {
		incompat := be.Uint32(sb[216:])
		if other := incompat &^ xfsIncompatKnown; other != 0 {
			return nil, fmt.Errorf("incompatible features %#x are not known", other)
		}
		x.fileTypes = incompat&xfsIncompatFileType != 0
	} else {
		x.fileTypes = be.Uint32(sb[200:])&0x200 != 0
	}
	return x, nil
}

func (*xfs) folds() bool { return false }

func (x *xfs) root() (node, error) { return x.inode(x.rootInode) }

func (x *xfs) open(c child) (node, error) { return x.inode(c.ref.(uint64)) }

// inode reads an inode; its ref is its bytes.
func (x *xfs) inode(number uint64) (node, error) {
	shift := x.agBlockLog + x.inodeLog
	ag, rest := number>>shift, int64(number&(1<<shift-1))
	block := rest >> x.inodeLog
	if ag >= uint64(x.agCount) || block >= x.agBlocks {
		return node{}, fmt.Errorf("inode %d does not exist", number)
	}
	at := (int64(ag)*x.agBlocks+block)*x.block + rest&(1<<x.inodeLog-1)*x.inodeBytes
	b, err := x.at(at, x.inodeBytes)
	if err != nil {
		return node{}, fmt.Errorf("read inode %d: %w", number, err)
	}
	if string(b[:2]) != "IN" {
		return node{}, fmt.Errorf("inode %d is damaged", number)
	}
	size := be.Uint64(b[56:])
	if size > 1<<62 {
		return node{}, fmt.Errorf("inode %d: its size is impossible", number)
	}
	return node{kindOf(be.Uint16(b[2:])), int64(size), b}, nil
}

// fork is the part of an inode that says where the data is.
func (x *xfs) fork(b []byte) []byte {
	core := 100
	if b[4] >= 3 {
		core = 176
	}
	end := len(b)
	if attr := int(b[82]) * 8; attr > 0 {
		end = min(core+attr, end)
	}
	return b[core:end]
}

// extents lists where a file's data is.
func (x *xfs) extents(b []byte) ([]extent, error) {
	fork := x.fork(b)
	var out []extent
	switch b[5] {
	case xfsExtents:
		count := uint64(be.Uint32(b[76:]))
		if b[4] >= 3 && be.Uint64(b[120:])&xfsLargeExtents != 0 {
			count = be.Uint64(b[24:])
		}
		if count > uint64(len(fork)/16) {
			return nil, errors.New("the list of extents is damaged")
		}
		return x.records(fork[:count*16], out)
	case xfsBtree:
		if len(fork) < 4 {
			return nil, errors.New("the extent tree is damaged")
		}
		level, count, room := int(be.Uint16(fork)), int(be.Uint16(fork[2:])), (len(fork)-4)/16
		if level < 1 || level > 9 || count > room {
			return nil, errors.New("the extent tree is damaged")
		}
		for i := range count {
			var err error
			if out, err = x.tree(be.Uint64(fork[4+room*8+i*8:]), level-1, out); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return nil, errors.New("where its data is cannot be read")
}

// tree reads a block of an extent tree and all below it.
func (x *xfs) tree(at uint64, level int, out []extent) ([]extent, error) {
	off, err := x.place(at, 1)
	if err != nil {
		return nil, err
	}
	b, err := x.at(off, x.block)
	if err != nil {
		return nil, err
	}
	header := 24
	if x.v5 {
		header = 72
	}
	magic, count := string(b[:4]), int(be.Uint16(b[6:]))
	if magic != "BMAP" && magic != "BMA3" || int(be.Uint16(b[4:])) != level || count > (len(b)-header)/16 {
		return nil, errors.New("the extent tree is damaged")
	}
	if level == 0 {
		return x.records(b[header:header+count*16], out)
	}
	room := (len(b) - header) / 16
	for i := range count {
		if out, err = x.tree(be.Uint64(b[header+room*8+i*8:]), level-1, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// records unpacks extents: a flag, 54 bits of place in the file, 52 bits of
// block, 21 bits of length.
func (x *xfs) records(b []byte, out []extent) ([]extent, error) {
	for ; len(b) >= 16; b = b[16:] {
		hi, lo := be.Uint64(b), be.Uint64(b[8:])
		e := extent{logical: int64(hi << 1 >> 10), count: int64(lo & (1<<21 - 1)), zero: hi>>63 != 0}
		if !e.zero {
			off, err := x.place(hi&(1<<9-1)<<43|lo>>21, e.count)
			if err != nil {
				return nil, err
			}
			e.physical = off / x.block
		}
		if out = append(out, e); len(out) > maxExtents {
			return nil, errors.New("the file has too many extents")
		}
	}
	return out, nil
}

// place is where count blocks from a filesystem block on begin, in bytes.
func (x *xfs) place(block uint64, count int64) (int64, error) {
	ag, in := block>>x.agBlockLog, int64(block&(1<<x.agBlockLog-1))
	if ag >= uint64(x.agCount) || in > x.agBlocks-count {
		return 0, fmt.Errorf("block %d is outside the filesystem", block)
	}
	return (int64(ag)*x.agBlocks + in) * x.block, nil
}

func (x *xfs) read(n node, limit int64) ([]byte, error) {
	b := n.ref.([]byte)
	limit = min(limit, n.size)
	extents, err := x.extents(b)
	if err != nil {
		return nil, err
	}
	return x.gather(extents, x.block, limit)
}

func (x *xfs) target(n node) (string, error) {
	if n.size > maxTarget {
		return "", errors.New("the symbolic link is too long")
	}
	b := n.ref.([]byte)
	if b[5] == xfsLocal {
		fork := x.fork(b)
		if n.size > int64(len(fork)) {
			return "", errors.New("the symbolic link is damaged")
		}
		return string(fork[:n.size]), nil
	}
	extents, err := x.extents(b)
	if err != nil {
		return "", err
	}
	if !x.v5 {
		data, err := x.gather(extents, x.block, n.size)
		return string(data), err
	}
	// Each block of version 5 begins with a header of 56 bytes.
	var out []byte
	for block := int64(0); int64(len(out)) < n.size; block++ {
		data, err := x.gather([]extent{shifted(extents, block)}, x.block, x.block)
		if err != nil {
			return "", err
		}
		if string(data[:4]) != "XSLM" {
			return "", errors.New("the symbolic link is damaged")
		}
		length := int(be.Uint32(data[8:]))
		if length == 0 || length > len(data)-56 {
			return "", errors.New("the symbolic link is damaged")
		}
		out = append(out, data[56:56+length]...)
	}
	return string(out[:n.size]), nil
}

// shifted is the extent that covers a block of the file, as if the file began
// with it.
func shifted(extents []extent, block int64) extent {
	for _, e := range extents {
		if block >= e.logical && block < e.logical+e.count {
			return extent{physical: e.physical + block - e.logical, count: 1, zero: e.zero}
		}
	}
	return extent{zero: true}
}

func (x *xfs) children(n node) ([]child, error) {
	b := n.ref.([]byte)
	if b[5] == xfsLocal {
		return x.shortForm(x.fork(b))
	}
	extents, err := x.extents(b)
	if err != nil {
		return nil, err
	}
	// What lies beyond the leaf offset is the index, which repeats the names'
	// hashes only.
	var data []extent
	end := int64(0)
	for _, e := range extents {
		if e.logical < xfsLeafOffset/x.block {
			data = append(data, e)
			end = max(end, (e.logical+e.count)*x.block)
		}
	}
	if end > maxDirBytes {
		return nil, errors.New("the directory is too large")
	}
	all, err := x.gather(data, x.block, end)
	if err != nil {
		return nil, err
	}
	var out []child
	for ; int64(len(all)) >= x.dirBlock; all = all[x.dirBlock:] {
		if out, err = x.dirBlockEntries(all[:x.dirBlock], out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// shortForm reads a directory that fits its inode.
func (x *xfs) shortForm(b []byte) ([]child, error) {
	bad := errors.New("the directory is damaged")
	if len(b) < 6 {
		return nil, bad
	}
	count, width := int(b[0]), 4
	if b[1] > 0 {
		width = 8 // some inode number needs it
	}
	if len(b) < 2+width {
		return nil, bad
	}
	b = b[2+width:] // behind the parent's number
	var out []child
	for range count {
		if len(b) < 3 {
			return nil, bad
		}
		name, rest := int(b[0]), 3+int(b[0])
		if x.fileTypes {
			rest++
		}
		if name == 0 || len(b) < rest+width {
			return nil, bad
		}
		number := uint64(be.Uint32(b[rest:]))
		if width == 8 {
			number = be.Uint64(b[rest:])
		}
		out = append(out, child{string(b[3 : 3+name]), number})
		b = b[rest+width:]
	}
	return out, nil
}

// dirBlockEntries reads one data block of a directory.
func (x *xfs) dirBlockEntries(b []byte, out []child) ([]child, error) {
	bad := errors.New("the directory is damaged")
	end := len(b)
	switch string(b[:4]) {
	case "XD2B", "XDB3": // the only block; its index is at its end
		count := int64(be.Uint32(b[end-8:]))
		if count*8 > int64(end-8-64) {
			return nil, bad
		}
		end -= 8 + int(count)*8
	case "XD2D", "XDD3":
	case "\x00\x00\x00\x00":
		return out, nil // a hole
	default:
		return nil, bad
	}
	at := 16
	if x.v5 {
		at = 64
	}
	for at+8 <= end {
		if be.Uint16(b[at:]) == 0xFFFF { // free
			length := int(be.Uint16(b[at+2:]))
			if length < 8 || length%8 != 0 {
				return nil, bad
			}
			at += length
			continue
		}
		if at+11 > end {
			return nil, bad
		}
		name := int(b[at+8])
		length := 8 + 1 + name + 2
		if x.fileTypes {
			length++
		}
		length = (length + 7) &^ 7
		if name == 0 || at+length > end {
			return nil, bad
		}
		if s := string(b[at+9 : at+9+name]); s != "." && s != ".." {
			if out = append(out, child{s, be.Uint64(b[at:])}); len(out) > maxEntries {
				return nil, errors.New("the directory has too many entries")
			}
		}
		at += length
	}
	return out, nil
}

var _ Volume = (*xfs)(nil)
var _ Volume = (*ext)(nil)
