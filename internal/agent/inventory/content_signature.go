package inventory

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

// probes are the readers of superblocks, containers first: a mirror or an
// encrypted volume may show the filesystem inside it at its usual place. Each
// gives the filesystem, nil if it is none of its kind, and where its signature
// is.
var probes = []func(*section) (*lpmos.Filesystem, int64){
	linuxRAID, bcache, luks, lvm, zfs,
	marked,
	xfs, btrfs, ext, squashfs, iso9660, exfat, ntfs, swap, vfat,
}

// detect finds what is in s and where its signature is in s.
func detect(s *section) (*lpmos.Filesystem, int64) {
	for _, probe := range probes {
		if f, at := probe(s); f != nil {
			return f, at
		}
	}
	return nil, 0
}

// marks are signatures of which only the kind is told: a person should know
// that something is there. Negative offsets count from the end, in whole
// sectors of 512 bytes.
var marks = []struct {
	name  string
	at    int64
	magic string
}{
	{"BitLocker", 3, "-FVE-FS-"},
	{"ReFS", 3, "ReFS\x00\x00\x00\x00"},
	{"apfs", 32, "NXSB"},
	{"ceph_bluestore", 0, "bluestore block device\n"},
	{"vmfs", 0x200000, "\x5e\xf1\xab\x2f"},
	{"VMFS_volume_member", 0x100000, "\x0d\xd0\x01\xc0"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
	{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
	{"hfsplus", 1024, "H+\x00\x04"},
	{"jfs", 32768, "JFS1"},
	{"reiserfs", 65536 + 52, "ReIsEr"},
	{"nilfs2", 1024 + 6, "\x34\x34"},
	{"DM_integrity", 0, "integrt\x00"},
	{"DM_verity_hash", 0, "verity\x00\x00"},
	{"isw_raid_member", -2 * 512, "Intel Raid ISM Cfg Sig. "},
	{"ddf_raid_member", -512, "\xde\x11\xde\x11"},
}

func marked(s *section) (*lpmos.Filesystem, int64) {
	for _, m := range marks {
		at := m.at
		if at < 0 {
			at += s.size &^ 511
		}
		if b := s.at(at, int64(len(m.magic))); b != nil && string(b) == m.magic {
			// Two bytes alone could be anything; NILFS has its block size
			// exponent and checksum, but revision 2 says enough.
			if m.name == "nilfs2" && !bytes.Equal(s.at(1024, 4), []byte{2, 0, 0, 0}) {
				continue
			}
			return &lpmos.Filesystem{Type: m.name}, at
		}
	}
	return nil, 0
}

// seconds is a time of a superblock; 0 and what no machine can have written
// yet is not known.
func seconds(n uint64) time.Time {
	if n == 0 || n > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(n), 0).UTC()
}

// bytesOf multiplies counts of a superblock; what is larger than any disk is 0.
func bytesOf(blocks, size uint64) int64 {
	if size == 0 || blocks > 1<<62/size {
		return 0
	}
	return int64(blocks * size)
}

// ext is ext2, ext3 and ext4 (Linux, Documentation/filesystems/ext4).
func ext(s *section) (*lpmos.Filesystem, int64) {
	b := s.at(1024, 1024)
	if b == nil || le.Uint16(b[0x38:]) != 0xEF53 {
		return nil, 0
	}
	shift := le.Uint32(b[0x18:])
	if shift > 6 {
		return nil, 0
	}
	block := uint64(1024) << shift
	compat, incompat, roCompat := le.Uint32(b[0x5C:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	const (
		hasJournal   = 0x4
		journalDev   = 0x8
		is64bit      = 0x80
		ext3Incompat = 0x2 | 0x4 | 0x10 // filetype, needs recovery, meta_bg
		ext3RoCompat = 0x1 | 0x2 | 0x4  // sparse_super, large_file, btree_dir
		ext4TimeHigh = 0x274            // s_wtime_hi
	)
	blocks, free := uint64(le.Uint32(b[0x4:])), uint64(le.Uint32(b[0xC:]))
	if incompat&is64bit != 0 {
		blocks |= uint64(le.Uint32(b[0x150:])) << 32
		free |= uint64(le.Uint32(b[0x158:])) << 32
	}
	f := &lpmos.Filesystem{
		Type: "ext2", Label: cstring(b[0x78:0x88]), UUID: uuidString(b[0x68:]), SizeBytes: bytesOf(blocks, block),
		WrittenAt: seconds(uint64(le.Uint32(b[0x30:])) | uint64(b[ext4TimeHigh])<<32),
	}
	if free <= blocks {
		f.UsedBytes = bytesOf(blocks-free, block)
	}
	switch {
	case incompat&journalDev != 0:
		return &lpmos.Filesystem{Type: "jbd", Label: f.Label, UUID: f.UUID}, 1024
	case incompat&^uint32(ext3Incompat) != 0 || roCompat&^uint32(ext3RoCompat) != 0:
		f.Type = "ext4"
	case compat&hasJournal != 0:
		f.Type = "ext3"
	}
	return f, 1024
}

// xfs is the XFS superblock of allocation group 0, big endian.
func xfs(s *section) (*lpmos.Filesystem, int64) {
	b := s.at(0, 512)
	if b == nil || string(b[:4]) != "XFSB" {
		return nil, 0
	}
	block, blocks, free := uint64(be.Uint32(b[4:])), be.Uint64(b[8:]), be.Uint64(b[144:])
	if block < 512 || block > 64<<10 || block&(block-1) != 0 {
		return nil, 0
	}
	f := &lpmos.Filesystem{Type: "xfs", Label: cstring(b[108:120]), UUID: uuidString(b[32:]), SizeBytes: bytesOf(blocks, block)}
	if free <= blocks {
		f.UsedBytes = bytesOf(blocks-free, block)
	}
	return f, 0
}

// btrfs has its first superblock at 64 KiB.
func btrfs(s *section) (*lpmos.Filesystem, int64) {
	const at = 64 << 10
	b := s.at(at, 4096)
	if b == nil || string(b[0x40:0x48]) != "_BHRfS_M" || le.Uint64(b[0x30:]) != at {
		return nil, 0
	}
	return &lpmos.Filesystem{
		Type: "btrfs", Label: cstring(b[0x12B:0x22B]), UUID: uuidString(b[0x20:]),
		SizeBytes: bytesOf(le.Uint64(b[0x70:]), 1), UsedBytes: bytesOf(le.Uint64(b[0x78:]), 1),
	}, at
}

func squashfs(s *section) (*lpmos.Filesystem, int64) {
	b := s.at(0, 96)
	if b == nil || string(b[:4]) != "hsqs" || le.Uint16(b[28:]) != 4 {
		return nil, 0
	}
	used := bytesOf(le.Uint64(b[40:]), 1)
	return &lpmos.Filesystem{Type: "squashfs", SizeBytes: used, UsedBytes: used, WrittenAt: seconds(uint64(le.Uint32(b[8:])))}, 0
}

// iso9660 is ECMA-119; its "UUID" is the time of its last modification, as
// blkid has it.
func iso9660(s *section) (*lpmos.Filesystem, int64) {
	const at = 32 << 10
	b := s.at(at, 2048)
	if b == nil || b[0] != 1 || string(b[1:6]) != "CD001" {
		return nil, 0
	}
	size := bytesOf(uint64(le.Uint32(b[80:])), uint64(le.Uint16(b[128:])))
	f := &lpmos.Filesystem{Type: "iso9660", Label: cstring(b[40:72]), SizeBytes: size, UsedBytes: size}
	if t := string(b[830:846]); strings.Trim(t, "0123456789") == "" && strings.Trim(t, "0") != "" {
		f.UUID = fmt.Sprintf("%s-%s-%s-%s-%s-%s-%s", t[:4], t[4:6], t[6:8], t[8:10], t[10:12], t[12:14], t[14:16])
		f.WrittenAt, _ = time.Parse("20060102150405", t[:14])
	}
	return f, at
}

// swap ends its first page, whatever the page size of the machine that made
// it, with its signature; a hibernated system has another one there.
func swap(s *section) (*lpmos.Filesystem, int64) {
	for _, page := range []int64{4096, 8192, 16384, 65536} {
		b := s.at(page-10, 10)
		if b == nil {
			break
		}
		f := &lpmos.Filesystem{}
		switch string(b) {
		case "SWAPSPACE2":
			f.Type = "swap"
		case "S1SUSPEND\x00", "S2SUSPEND\x00", "ULSUSPEND\x00", "LINHIB0001", "\xed\xc3\x02\xe9\x98\x56\xe5\x0c\x00\x00":
			f.Type = "swsuspend"
		default:
			continue
		}
		h := s.at(1024, 44)
		if h == nil {
			return nil, 0
		}
		f.UUID, f.Label = uuidString(h[12:28]), cstring(h[28:44])
		f.SizeBytes = bytesOf(uint64(le.Uint32(h[4:]))+1, uint64(page))
		return f, page - 10
	}
	return nil, 0
}
