package rofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

var le = binary.LittleEndian

// ext reads ext2, ext3 and ext4 (Linux, Documentation/filesystems/ext4).
type ext struct {
	section
	block          int64
	inodes         uint32
	inodesPerGroup int64
	inodeBytes     int64
	descBytes      int64
	blocks         int64
	tables         []int64 // the first block of each group's inode table
}

const (
	extIncompat64Bit = 0x80

	extFlagEncrypted = 0x800
	extFlagExtents   = 0x80000
	extFlagInline    = 0x10000000
)

// extIncompatKnown are the features that do not change how files are found:
// compression is not among them, and what is said per inode is looked at there.
const extIncompatKnown = 0x2 | 0x4 | 0x40 | extIncompat64Bit | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000

func openExt(r io.ReaderAt, size int64) (*ext, error) {
	e := &ext{section: section{r, size}}
	sb, err := e.at(1024, 1024)
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if le.Uint16(sb[0x38:]) != 0xEF53 {
		return nil, errors.New("not an ext filesystem: no magic number in the superblock")
	}
	incompat := le.Uint32(sb[0x60:])
	if other := incompat &^ extIncompatKnown; other != 0 {
		return nil, fmt.Errorf("incompatible features %#x are not known", other)
	}
	shift := le.Uint32(sb[0x18:])
	if shift > 6 {
		return nil, errors.New("the block size is not one of ext")
	}
	e.block = 1024 << shift
	e.inodes, e.inodesPerGroup = le.Uint32(sb[0x0:]), int64(le.Uint32(sb[0x28:]))
	e.inodeBytes, e.descBytes = 128, 32
	if le.Uint32(sb[0x4C:]) >= 1 {
		e.inodeBytes = int64(le.Uint16(sb[0x58:]))
	}
	blocks := uint64(le.Uint32(sb[0x4:]))
	if incompat&extIncompat64Bit != 0 {
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
		e.descBytes = int64(le.Uint16(sb[0xFE:]))
	}
	perGroup := uint64(le.Uint32(sb[0x20:]))
	switch {
	case blocks == 0 || blocks > uint64(size/e.block):
		return nil, fmt.Errorf("it has %d blocks, more than the partition", blocks)
	case perGroup == 0 || perGroup > uint64(8*e.block):
		return nil, errors.New("the blocks of a group do not fit a bitmap")
	case e.inodeBytes < 128 || e.inodeBytes > e.block || e.inodeBytes&(e.inodeBytes-1) != 0:
		return nil, fmt.Errorf("inodes of %d bytes are not known", e.inodeBytes)
	case e.inodesPerGroup == 0 || e.inodesPerGroup > 8*e.block:
		return nil, errors.New("the inodes of a group do not fit a bitmap")
	case e.descBytes < 32 || e.descBytes > e.block || e.descBytes&(e.descBytes-1) != 0:
		return nil, fmt.Errorf("group descriptors of %d bytes are not known", e.descBytes)
	}
	e.blocks = int64(blocks)
	first := int64(le.Uint32(sb[0x14:]))
	groups := int64((blocks - uint64(min(first, e.blocks)) + perGroup - 1) / perGroup)
	table, err := e.at((first+1)*e.block, groups*e.descBytes)
	if err != nil {
		return nil, fmt.Errorf("read group descriptors: %w", err)
	}
	for i := range groups {
		d := table[i*e.descBytes:][:e.descBytes]
		at := uint64(le.Uint32(d[0x8:]))
		if e.descBytes >= 64 {
			at |= uint64(le.Uint32(d[0x28:])) << 32
		}
		if at >= blocks {
			return nil, fmt.Errorf("group %d: the inode table is outside the filesystem", i)
		}
		e.tables = append(e.tables, int64(at))
	}
	return e, nil
}

func (*ext) folds() bool { return false }

func (e *ext) root() (node, error) { return e.inode(2) }

func (e *ext) open(c child) (node, error) { return e.inode(c.ref.(uint32)) }

// inode reads an inode; its ref is its bytes.
func (e *ext) inode(number uint32) (node, error) {
	if number == 0 || number > e.inodes {
		return node{}, fmt.Errorf("inode %d does not exist", number)
	}
	group, index := int64(number-1)/e.inodesPerGroup, int64(number-1)%e.inodesPerGroup
	if group >= int64(len(e.tables)) {
		return node{}, fmt.Errorf("inode %d is in no group", number)
	}
	b, err := e.at(e.tables[group]*e.block+index*e.inodeBytes, 128)
	if err != nil {
		return node{}, fmt.Errorf("read inode %d: %w", number, err)
	}
	kind := kindOf(le.Uint16(b))
	size := uint64(le.Uint32(b[4:]))
	if kind == 0 || kind == fs.ModeDir {
		size |= uint64(le.Uint32(b[108:])) << 32
	}
	if size > 1<<62 {
		return node{}, fmt.Errorf("inode %d: its size is impossible", number)
	}
	return node{kind, int64(size), b}, nil
}

func (e *ext) children(n node) ([]child, error) {
	if n.size > maxDirBytes {
		return nil, errors.New("the directory is too large")
	}
	data, err := e.read(n, n.size)
	if err != nil {
		return nil, err
	}
	var out []child
	for start := int64(0); start+e.block <= int64(len(data)); start += e.block {
		b := data[start : start+e.block]
		for len(b) >= 8 {
			number, length, name := le.Uint32(b), int(le.Uint16(b[4:])), int(b[6])
			if e.block == 65536 && (length == 65535 || length == 0) {
				length = 65536 // does not fit 16 bits
			}
			if length < 8 || length > len(b) || 8+name > length {
				return nil, errors.New("the directory is damaged")
			}
			// Inner blocks of an index and checksums have an inode number of 0.
			if s := string(b[8 : 8+name]); number != 0 && name > 0 && s != "." && s != ".." {
				if out = append(out, child{s, number}); len(out) > maxEntries {
					return nil, errors.New("the directory has too many entries")
				}
			}
			b = b[length:]
		}
	}
	return out, nil
}

func (e *ext) target(n node) (string, error) {
	if n.size > maxTarget {
		return "", errors.New("the symbolic link is too long")
	}
	b := n.ref.([]byte)
	if flags := le.Uint32(b[32:]); n.size < 60 && flags&(extFlagExtents|extFlagEncrypted) == 0 {
		return string(b[40 : 40+n.size]), nil
	}
	data, err := e.read(n, n.size)
	return string(data), err
}

func (e *ext) read(n node, limit int64) ([]byte, error) {
	b := n.ref.([]byte)
	flags := le.Uint32(b[32:])
	switch {
	case flags&extFlagEncrypted != 0:
		return nil, errors.New("it is encrypted")
	case flags&extFlagInline != 0:
		if limit <= 60 {
			return b[40 : 40+limit], nil
		}
		return nil, errors.New("files kept in their inode (inline_data) are not read here")
	}
	limit = min(limit, n.size)
	var extents []extent
	var err error
	if flags&extFlagExtents != 0 {
		err = e.extents(b[40:100], 0, -1, &extents)
	} else {
		err = e.blockMap(b[40:100], (limit+e.block-1)/e.block, &extents)
	}
	if err != nil {
		return nil, err
	}
	return e.gather(extents, e.block, limit)
}

const maxExtents = 1 << 18

// extents reads a node of an extent tree and all below it. depth is what the
// node above promised, -1 for the root.
func (e *ext) extents(b []byte, level, depth int, out *[]extent) error {
	if le.Uint16(b) != 0xF30A {
		return errors.New("the extent tree is damaged")
	}
	count, d := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
	if 12+12*count > len(b) || d > 5 || level > 5 || depth >= 0 && d != depth {
		return errors.New("the extent tree is damaged")
	}
	for i := range count {
		r := b[12+12*i:]
		if d == 0 {
			length := int64(le.Uint16(r[4:]))
			x := extent{logical: int64(le.Uint32(r)), physical: int64(le.Uint16(r[6:]))<<32 | int64(le.Uint32(r[8:])), count: length}
			if length > 32768 {
				x.count, x.zero = length-32768, true // allocated, never written
			}
			if *out = append(*out, x); len(*out) > maxExtents {
				return errors.New("the file has too many extents")
			}
			continue
		}
		below, err := e.at((int64(le.Uint16(r[8:]))<<32|int64(le.Uint32(r[4:])))*e.block, e.block)
		if err != nil {
			return err
		}
		if err := e.extents(below, level+1, d-1, out); err != nil {
			return err
		}
	}
	return nil
}

// blockMap reads the twelve direct and three indirect pointers of ext2 and
// ext3, as far as need blocks of the file.
func (e *ext) blockMap(b []byte, need int64, out *[]extent) error {
	next := int64(0) // logical block
	add := func(at uint32) error {
		if at != 0 {
			if *out = append(*out, extent{logical: next, physical: int64(at), count: 1}); len(*out) > maxExtents {
				return errors.New("the file has too many blocks")
			}
		}
		next++
		return nil
	}
	for i := 0; i < 12 && next < need; i++ {
		if err := add(le.Uint32(b[4*i:])); err != nil {
			return err
		}
	}
	per := e.block / 4
	var walk func(at uint32, level int) error
	walk = func(at uint32, level int) error {
		span := int64(1)
		for range level {
			span *= per
		}
		if at == 0 {
			next += span * per // a hole
			return nil
		}
		table, err := e.at(int64(at)*e.block, e.block)
		if err != nil {
			return err
		}
		for i := int64(0); i < per && next < need; i++ {
			p := le.Uint32(table[4*i:])
			if level == 0 {
				err = add(p)
			} else {
				err = walk(p, level-1)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	for level := 0; level < 3 && next < need; level++ {
		if err := walk(le.Uint32(b[48+4*level:]), level); err != nil {
			return err
		}
	}
	return nil
}
