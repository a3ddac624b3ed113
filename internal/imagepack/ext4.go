package imagepack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Offsets and flags are those of the Linux kernel's documentation of the disk
// layout (Documentation/filesystems/ext4: super.rst, group_descr.rst,
// bitmaps.rst, blockgroup.rst). All fields are little-endian.
const (
	superblockOffset = 1024
	superblockBytes  = 1024
	superblockMagic  = 0xEF53

	// blockBytes is the only block size taken: the manifest aligns to it, and
	// with it every run of blocks is a run of whole pages on both sides.
	blockBytes = 4096

	stateClean     = 0x1
	stateHasErrors = 0x2

	compatSparseSuper2 = 0x200

	incompatRecover = 0x4
	incompatMetaBG  = 0x10
	incompat64Bit   = 0x80
	// incompatKnown are the features that do not change where a bitmap is or
	// what a bit of it means: filetype, extents, 64bit, mmp, flex_bg, ea_inode,
	// csum_seed, largedir, inline_data, encrypt, casefold.
	incompatKnown = 0x2 | 0x40 | incompat64Bit | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000

	roSparseSuper  = 0x1
	roGDTChecksum  = 0x10
	roBigAlloc     = 0x200
	roMetadataCsum = 0x400

	groupBlockUninit = 0x2
)

// run is a stretch of blocks: [first, first+count).
type run struct{ first, count int64 }

// filesystem is what the superblock and the group descriptors say about where
// blocks are.
type filesystem struct {
	blocks         int64
	freeBlocks     int64
	blocksPerGroup int64
	inodeTable     int64 // blocks of one group's inode table
	gdtBlocks      int64 // descriptors in use
	reservedGDT    int64 // blocks kept for growing (resize_inode)
	compat         uint32
	incompat       uint32
	roCompat       uint32
	backupGroups   [2]uint32
	groups         []group
}

type group struct {
	blockBitmap, inodeBitmap, inodeTable int64
	free                                 int64
	uninit                               bool // no bitmap on disk: nothing but metadata is used
}

// readFilesystem reads the superblock and all group descriptors. It refuses
// what it cannot read exactly: a filesystem that was not unmounted cleanly, a
// block size other than 4096, and features that move or redefine bitmaps.
func readFilesystem(r io.ReaderAt) (*filesystem, error) {
	sb := make([]byte, superblockBytes)
	if _, err := r.ReadAt(sb, superblockOffset); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	le16 := func(off int) int64 { return int64(binary.LittleEndian.Uint16(sb[off:])) }
	le32 := func(off int) uint32 { return binary.LittleEndian.Uint32(sb[off:]) }

	if le16(0x38) != superblockMagic {
		return nil, errors.New("not an ext4 filesystem: no magic number in the superblock")
	}
	if le32(0x18) != 2 {
		return nil, errors.New("block size is not 4096 bytes")
	}
	f := &filesystem{
		blocks:         int64(le32(0x4)),
		freeBlocks:     int64(le32(0xC)),
		blocksPerGroup: int64(le32(0x20)),
		reservedGDT:    le16(0xCE),
		compat:         le32(0x5C),
		incompat:       le32(0x60),
		roCompat:       le32(0x64),
		backupGroups:   [2]uint32{le32(0x24C), le32(0x250)},
	}
	descBytes := int64(32)
	if f.incompat&incompat64Bit != 0 {
		f.blocks |= int64(le32(0x150)) << 32
		f.freeBlocks |= int64(le32(0x158)) << 32
		descBytes = le16(0xFE)
	}
	inodesPerGroup, inodeBytes := int64(le32(0x28)), le16(0x58)
	switch {
	case f.incompat&incompatRecover != 0:
		return nil, errors.New("journal holds changes that are not replayed (run e2fsck)")
	case le16(0x3A)&(stateClean|stateHasErrors) != stateClean:
		return nil, errors.New("filesystem is not marked clean (run e2fsck)")
	case f.incompat&incompatMetaBG != 0:
		return nil, errors.New("feature meta_bg is not supported")
	case f.incompat&^incompatKnown != 0:
		return nil, fmt.Errorf("incompatible features %#x are not supported", f.incompat&^incompatKnown)
	case f.roCompat&roBigAlloc != 0:
		return nil, errors.New("feature bigalloc is not supported")
	case f.blocksPerGroup < 8 || f.blocksPerGroup > 8*blockBytes:
		return nil, fmt.Errorf("%d blocks in a group do not fit a bitmap", f.blocksPerGroup)
	case descBytes < 32 || descBytes > blockBytes || descBytes&(descBytes-1) != 0:
		return nil, fmt.Errorf("group descriptors of %d bytes are not supported", descBytes)
	case f.blocks <= 0 || f.blocks > maxBlocks:
		return nil, fmt.Errorf("%d blocks are outside 1 block to 1 TiB", f.blocks)
	case le32(0x14) != 0:
		return nil, errors.New("first data block is not 0")
	case inodeBytes < 128 || inodesPerGroup == 0:
		return nil, errors.New("superblock names no inodes")
	}
	f.inodeTable = (inodesPerGroup*inodeBytes + blockBytes - 1) / blockBytes

	n := (f.blocks + f.blocksPerGroup - 1) / f.blocksPerGroup
	f.gdtBlocks = (n*descBytes + blockBytes - 1) / blockBytes
	table := make([]byte, n*descBytes)
	if _, err := r.ReadAt(table, blockBytes); err != nil {
		return nil, fmt.Errorf("read group descriptors: %w", err)
	}
	// Only with checksummed descriptors does the flags field mean anything.
	flagged := f.roCompat&(roGDTChecksum|roMetadataCsum) != 0
	for i := range n {
		d := table[i*descBytes : (i+1)*descBytes]
		// join puts the halves of a number together; the upper ones exist only
		// in descriptors of 64 bytes.
		join := func(lo, hi, width int) int64 {
			v := int64(binary.LittleEndian.Uint16(d[lo:]))
			if width == 4 {
				v = int64(binary.LittleEndian.Uint32(d[lo:]))
			}
			if f.incompat&incompat64Bit == 0 || descBytes < 64 {
				return v
			}
			if width == 4 {
				return v | int64(binary.LittleEndian.Uint32(d[hi:]))<<32
			}
			return v | int64(binary.LittleEndian.Uint16(d[hi:]))<<16
		}
		g := group{
			blockBitmap: join(0x0, 0x20, 4),
			inodeBitmap: join(0x4, 0x24, 4),
			inodeTable:  join(0x8, 0x28, 4),
			free:        join(0xC, 0x2C, 2),
			uninit:      flagged && binary.LittleEndian.Uint16(d[0x12:])&groupBlockUninit != 0,
		}
		for _, r := range g.metadata(f) {
			if r.first <= 0 || r.first+r.count > f.blocks {
				return nil, fmt.Errorf("group %d: metadata at block %d is outside the filesystem", i, r.first)
			}
		}
		f.groups = append(f.groups, g)
	}
	return f, nil
}

// metadata are the blocks a group's descriptor points to; with flex_bg they
// may lie in another group.
func (g group) metadata(f *filesystem) []run {
	return []run{{g.blockBitmap, 1}, {g.inodeBitmap, 1}, {g.inodeTable, f.inodeTable}}
}

// hasSuper reports whether group n begins with a copy of the superblock and
// the descriptors.
func (f *filesystem) hasSuper(n int64) bool {
	if n == 0 {
		return true
	}
	if f.compat&compatSparseSuper2 != 0 {
		return n == int64(f.backupGroups[0]) || n == int64(f.backupGroups[1])
	}
	if f.roCompat&roSparseSuper == 0 || n == 1 {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		p := base
		for p < n {
			p *= base
		}
		if p == n {
			return true
		}
	}
	return false
}

// allocated are the blocks that are in use. Each group's bitmap must agree with
// its free count and all of them with the superblock, so a filesystem that e2fsck
// would change is refused instead of being packed with blocks missing.
func (f *filesystem) allocated(r io.ReaderAt) (blockSet, error) {
	used := newBlockSet(f.blocks)
	mark := func(r run) { used.set(r.first, min(r.first+r.count, f.blocks)) }
	// Metadata first: a group without a bitmap has nothing else, and in the
	// others the bitmap says the same again.
	for n, g := range f.groups {
		for _, m := range g.metadata(f) {
			mark(m)
		}
		if f.hasSuper(int64(n)) {
			mark(run{int64(n) * f.blocksPerGroup, 1 + f.gdtBlocks + f.reservedGDT})
		}
	}
	bitmap := make([]byte, blockBytes)
	for n, g := range f.groups {
		if g.uninit {
			continue
		}
		if _, err := r.ReadAt(bitmap, g.blockBitmap*blockBytes); err != nil {
			return nil, fmt.Errorf("read block bitmap of group %d: %w", n, err)
		}
		// Bits beyond the last block are set as padding and are not blocks.
		start := int64(n) * f.blocksPerGroup
		for i := range min(f.blocksPerGroup, f.blocks-start) {
			if bitmap[i/8]&(1<<(i%8)) != 0 {
				used.set(start+i, start+i+1)
			}
		}
	}

	var free int64
	for n, g := range f.groups {
		start := int64(n) * f.blocksPerGroup
		size := min(f.blocksPerGroup, f.blocks-start)
		got := size - used.count(start, start+size)
		if got != g.free {
			return nil, fmt.Errorf("group %d has %d free blocks and its descriptor says %d (run e2fsck)", n, got, g.free)
		}
		free += got
	}
	if free != f.freeBlocks {
		return nil, fmt.Errorf("filesystem has %d free blocks and its superblock says %d (run e2fsck)", free, f.freeBlocks)
	}

	return used, nil
}
