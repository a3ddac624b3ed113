package inventory

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
)

// linuxRAID is a member of an md array: metadata 1.0 near the end, 1.1 at the
// beginning, 1.2 at 4 KiB, and 0.90 near the end (md(4)).
func linuxRAID(s *section) (*lpmos.Filesystem, int64) {
	for _, at := range []int64{0, 4096, (s.size/512 - 16) &^ 7 * 512} {
		b := s.at(at, 256)
		if b == nil || le.Uint32(b) != 0xa92b4efc || le.Uint32(b[4:]) != 1 || int64(le.Uint64(b[144:])) != at/512 {
			continue
		}
		return &lpmos.Filesystem{
			Type: "linux_raid_member", Label: cstring(b[32:64]), UUID: uuidString(b[16:]),
			SizeBytes: bytesOf(le.Uint64(b[80:]), 512),
			WrittenAt: seconds(le.Uint64(b[192:]) & (1<<40 - 1)),
		}, at
	}
	at := s.size&^0xffff - 0x10000
	b := s.at(at, 256)
	if b == nil || le.Uint32(b) != 0xa92b4efc || le.Uint32(b[4:]) != 0 {
		return nil, 0
	}
	return &lpmos.Filesystem{
		Type: "linux_raid_member", SizeBytes: bytesOf(uint64(le.Uint32(b[32:])), 1024),
		UUID: uuidString(slices.Concat(be.AppendUint32(nil, le.Uint32(b[20:])), be.AppendUint32(nil, le.Uint32(b[52:])),
			be.AppendUint32(nil, le.Uint32(b[56:])), be.AppendUint32(nil, le.Uint32(b[60:])))),
		WrittenAt: seconds(uint64(le.Uint32(b[128:]))),
	}, at
}

func bcache(s *section) (*lpmos.Filesystem, int64) {
	const magic = "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"
	b := s.at(4096, 128)
	if b == nil || string(b[24:40]) != magic {
		return nil, 0
	}
	return &lpmos.Filesystem{Type: "bcache", UUID: uuidString(b[40:]), Label: cstring(b[72:104])}, 4096
}

// luks is LUKS 1 and 2; both have the UUID as text in the same place.
func luks(s *section) (*lpmos.Filesystem, int64) {
	b := s.at(0, 512)
	if b == nil || string(b[:6]) != "LUKS\xba\xbe" {
		return nil, 0
	}
	f := &lpmos.Filesystem{Type: "crypto_LUKS", UUID: cstring(b[168:208])}
	if be.Uint16(b[6:]) == 2 {
		f.Label = cstring(b[24:72])
	}
	return f, 0
}

// lvm is a physical volume of LVM2: a label in one of the first four sectors
// of 512 bytes, which points to the header with the UUID.
func lvm(s *section) (*lpmos.Filesystem, int64) {
	for at := int64(0); at < 4*512; at += 512 {
		b := s.at(at, 512)
		if b == nil || string(b[:8]) != "LABELONE" || string(b[24:32]) != "LVM2 001" || le.Uint64(b[8:]) != uint64(at/512) {
			continue
		}
		f := &lpmos.Filesystem{Type: "LVM2_member"}
		if off := le.Uint32(b[20:]); off <= 512-40 {
			if id := cstring(b[off:][:32]); len(id) == 32 {
				f.UUID = strings.Join([]string{id[:6], id[6:10], id[10:14], id[14:18], id[18:22], id[22:26], id[26:]}, "-")
			}
			f.SizeBytes = bytesOf(le.Uint64(b[off+32:]), 1)
		}
		return f, at
	}
	return nil, 0
}

// zfs is a member of a pool. Its labels of 256 KiB, the first two of which are
// at the beginning, have a list of names and values at 16 KiB and a ring of
// uberblocks at 128 KiB, each in the byte order of the machine that wrote it.
func zfs(s *section) (*lpmos.Filesystem, int64) {
	const magic = 0x00bab10c
	for _, label := range []int64{0, 256 << 10} {
		ring := s.at(label+128<<10, 128<<10)
		for off := 0; off+1024 <= len(ring); off += 1024 {
			b := ring[off:]
			little := le.Uint64(b) == magic
			if !little && be.Uint64(b) != magic {
				continue
			}
			f := &lpmos.Filesystem{Type: "zfs_member"}
			f.Label, f.UUID = zfsPool(s.at(label+16<<10, 112<<10))
			return f, label + 128<<10 + int64(off)
		}
	}
	return nil, 0
}

// zfsPool reads the name and guid of the pool out of an nvlist in XDR.
func zfsPool(b []byte) (name, guid string) {
	if len(b) < 12 || b[0] != 1 {
		return "", ""
	}
	for b = b[12:]; len(b) >= 12; {
		size := be.Uint32(b)
		n := be.Uint32(b[8:])
		if size < 24 || uint64(size) > uint64(len(b)) || n > size {
			break
		}
		pair := b[12:size]
		b = b[size:]
		padded := (uint64(n) + 3) &^ 3
		if padded+8 > uint64(len(pair)) {
			break
		}
		key, typ, value := string(pair[:n]), be.Uint32(pair[padded:]), pair[padded+8:]
		const typeUint64, typeString = 8, 9
		switch {
		case key == "name" && typ == typeString && len(value) >= 4:
			if l := be.Uint32(value); uint64(l) <= uint64(len(value)-4) {
				name = cstring(value[4:][:l])
			}
		case key == "pool_guid" && typ == typeUint64 && len(value) >= 8:
			guid = fmt.Sprint(be.Uint64(value))
		}
	}
	return name, guid
}

// popcount is the number of set bits.
func popcount(b []byte) (n uint64) {
	for _, v := range b {
		n += uint64(bits.OnesCount8(v))
	}
	return n
}
