package inventory

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
	"github.com/lpmos/lpmos"
)

// image is a device of zeros but for what was put into it.
type image struct {
	size   int64
	pieces []piece
	broken int64 // reads that touch this byte fail, if it is not 0
}

type piece struct {
	at int64
	b  []byte
}

func (m *image) put(at int64, b ...byte) *image {
	if at < 0 {
		at += m.size
	}
	m.pieces = append(m.pieces, piece{at, b})
	return m
}

func (m *image) text(at int64, s string) *image { return m.put(at, []byte(s)...) }

func (m *image) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off >= m.size {
		return 0, io.EOF
	}
	if m.broken != 0 && off <= m.broken && m.broken < off+int64(len(b)) {
		return 0, errors.New("input/output error")
	}
	n := min(int64(len(b)), m.size-off)
	clear(b[:n])
	for _, p := range m.pieces {
		from, to := max(p.at, off), min(p.at+int64(len(p.b)), off+n)
		if from < to {
			copy(b[from-off:to-off], p.b[from-p.at:])
		}
	}
	if n < int64(len(b)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// le16 … are little-endian bytes.
func le16(v uint16) []byte { return le.AppendUint16(nil, v) }
func le32(v uint32) []byte { return le.AppendUint32(nil, v) }
func le64(v uint64) []byte { return le.AppendUint64(nil, v) }

const mib = 1 << 20

// id16 is a recognisable UUID: 01020304-0506-0708-090a-0b0c0d0e0f10.
var id16 = []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

const (
	id16UUID = "01020304-0506-0708-090a-0b0c0d0e0f10"
	id16GUID = "04030201-0605-0807-090a-0b0c0d0e0f10"
)

func putExt4(m *image, at int64) {
	sb := make([]byte, 1024)
	copy(sb[0x4:], le32(25600))
	copy(sb[0xC:], le32(20000))
	copy(sb[0x18:], le32(2)) // 4 KiB
	copy(sb[0x30:], le32(1700000000))
	copy(sb[0x38:], le16(0xEF53))
	copy(sb[0x5C:], le32(0x4))
	copy(sb[0x60:], le32(0x2C2))
	copy(sb[0x68:], id16)
	copy(sb[0x78:], "root")
	m.put(at+1024, sb...)
}

var ext4 = &lpmos.Filesystem{Type: "ext4", Label: "root", UUID: id16UUID, SizeBytes: 100 * mib, UsedBytes: 5600 << 12, WrittenAt: time.Unix(1700000000, 0).UTC()}

func TestSignatures(t *testing.T) {
	tests := []struct {
		name  string
		build func(*image)
		want  lpmos.Filesystem
	}{
		{"ext4", func(m *image) { putExt4(m, 0) }, *ext4},
		{"ext3", func(m *image) {
			putExt4(m, 0)
			m.put(1024+0x60, le32(0x2)...)
		}, lpmos.Filesystem{Type: "ext3", Label: "root", UUID: id16UUID, SizeBytes: 100 * mib, UsedBytes: 5600 << 12, WrittenAt: ext4.WrittenAt}},
		{"ext2", func(m *image) {
			putExt4(m, 0)
			m.put(1024+0x5C, make([]byte, 8)...)
		}, lpmos.Filesystem{Type: "ext2", Label: "root", UUID: id16UUID, SizeBytes: 100 * mib, UsedBytes: 5600 << 12, WrittenAt: ext4.WrittenAt}},
		{"external journal", func(m *image) {
			putExt4(m, 0)
			m.put(1024+0x60, le32(0x8)...)
		}, lpmos.Filesystem{Type: "jbd", Label: "root", UUID: id16UUID}},
		{"xfs", func(m *image) {
			m.text(0, "XFSB").put(4, 0, 0, 0x10, 0).put(14, 1, 0).put(32, id16...).text(108, "data").put(150, 0, 0xC0)
		}, lpmos.Filesystem{Type: "xfs", Label: "data", UUID: id16UUID, SizeBytes: 256 << 12, UsedBytes: 64 << 12}},
		{"btrfs", func(m *image) {
			m.put(65536+0x20, id16...).put(65536+0x30, le64(65536)...).text(65536+0x40, "_BHRfS_M").put(65536+0x70, le64(1<<30)...).put(65536+0x78, le64(12345)...).text(65536+0x12B, "pool")
		}, lpmos.Filesystem{Type: "btrfs", Label: "pool", UUID: id16UUID, SizeBytes: 1 << 30, UsedBytes: 12345}},
		{"swap", func(m *image) {
			m.text(4086, "SWAPSPACE2").put(1024, le32(1)...).put(1028, le32(255)...).put(1036, id16...).text(1052, "swap0")
		}, lpmos.Filesystem{Type: "swap", Label: "swap0", UUID: id16UUID, SizeBytes: mib}},
		{"hibernated swap of 64 KiB pages", func(m *image) { m.text(65526, "S1SUSPEND\x00").put(1028, le32(15)...) },
			lpmos.Filesystem{Type: "swsuspend", SizeBytes: mib}},
		{"LVM2", func(m *image) {
			m.text(512, "LABELONE").put(520, le64(1)...).put(532, le32(32)...).text(536, "LVM2 001").text(544, "abcdefghijklmnopqrstuvwxyzABCDEF").put(576, le64(64*mib)...)
		}, lpmos.Filesystem{Type: "LVM2_member", UUID: "abcdef-ghij-klmn-opqr-stuv-wxyz-ABCDEF", SizeBytes: 64 * mib}},
		{"md 1.2 over the filesystem in it", func(m *image) {
			putExt4(m, 0)
			m.put(4096, le32(0xa92b4efc)...).put(4100, le32(1)...).put(4112, id16...).text(4128, "host:0").put(4096+80, le64(2048)...).put(4096+144, le64(8)...).put(4096+192, le64(1700000000)...)
		}, lpmos.Filesystem{Type: "linux_raid_member", Label: "host:0", UUID: id16UUID, SizeBytes: mib, WrittenAt: ext4.WrittenAt}},
		{"md 1.0 at the end", func(m *image) {
			at := (m.size/512 - 16) &^ 7
			m.put(at*512, le32(0xa92b4efc)...).put(at*512+4, le32(1)...).put(at*512+16, id16...).put(at*512+144, le64(uint64(at))...)
		}, lpmos.Filesystem{Type: "linux_raid_member", UUID: id16UUID}},
		{"md 0.90", func(m *image) {
			at := m.size - 65536
			m.put(at, le32(0xa92b4efc)...).put(at+8, le32(90)...).put(at+20, 4, 3, 2, 1).put(at+52, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13).put(at+32, le32(1024)...)
		}, lpmos.Filesystem{Type: "linux_raid_member", UUID: id16UUID, SizeBytes: mib}},
		{"LUKS 1", func(m *image) { m.text(0, "LUKS\xba\xbe\x00\x01").text(24, "cbc").text(168, id16UUID) }, lpmos.Filesystem{Type: "crypto_LUKS", UUID: id16UUID}},
		{"LUKS 2", func(m *image) { m.text(0, "LUKS\xba\xbe\x00\x02").text(24, "safe").text(168, id16UUID) }, lpmos.Filesystem{Type: "crypto_LUKS", Label: "safe", UUID: id16UUID}},
		{"ZFS, big endian", func(m *image) {
			pair := func(name string, value ...byte) []byte {
				b := be.AppendUint32(make([]byte, 8), uint32(len(name)))
				b = append(b, name...)
				b = append(b, make([]byte, -len(name)&3)...)
				b = append(b, value...)
				be.PutUint32(b, uint32(len(b)))
				return b
			}
			list := slices.Concat([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1},
				pair("name", 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 4, 't', 'a', 'n', 'k'),
				pair("pool_guid", 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4, 0xD2))
			m.put(16<<10, list...).put(130<<10, 0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c)
		}, lpmos.Filesystem{Type: "zfs_member", Label: "tank", UUID: "1234"}},
		{"iso9660", func(m *image) {
			m.text(32768, "\x01CD001").text(32768+40, "DEBIAN            ").put(32768+80, le32(100)...).put(32768+128, le16(2048)...).text(32768+830, "2024010203040500")
		}, lpmos.Filesystem{Type: "iso9660", Label: "DEBIAN", UUID: "2024-01-02-03-04-05-00", SizeBytes: 204800, UsedBytes: 204800, WrittenAt: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)}},
		{"squashfs", func(m *image) { m.text(0, "hsqs").put(8, le32(1700000000)...).put(28, 4, 0).put(40, le64(5000)...) },
			lpmos.Filesystem{Type: "squashfs", SizeBytes: 5000, UsedBytes: 5000, WrittenAt: ext4.WrittenAt}},
		{"bcache", func(m *image) {
			m.text(4096+24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81").put(4096+40, id16...)
		}, lpmos.Filesystem{Type: "bcache", UUID: id16UUID}},
		{"ntfs", func(m *image) {
			m.text(3, "NTFS    ").put(11, 0, 2, 8).put(40, le64(2048)...).put(48, le64(4)...).put(64, 0xF6).put(72, 8, 7, 6, 5, 4, 3, 2, 1).put(510, 0x55, 0xAA)
			at := int64(4*4096 + 3*1024)
			m.text(at, "FILE").put(at+20, 56, 0).put(at+56, 0x60).put(at+60, 40).put(at+72, 6).put(at+76, 24).text(at+80, "W\x00i\x00n\x00")
		}, lpmos.Filesystem{Type: "ntfs", Label: "Win", UUID: "0102030405060708", SizeBytes: mib}},
		{"exfat", func(m *image) {
			m.text(3, "EXFAT   ").put(72, le64(2048)...).put(88, le32(64)...).put(96, le32(2)...).put(100, 4, 3, 2, 1).put(108, 9, 3).put(510, 0x55, 0xAA)
			root := int64(64 * 512)
			m.put(root, 0x83, 2).text(root+2, "U\x00S\x00").put(root+32, 0x81).put(root+32+20, le32(3)...).put(root+32+24, le64(2)...).put(root+4096, 0x0F, 0x80)
		}, lpmos.Filesystem{Type: "exfat", Label: "US", UUID: "0102-0304", SizeBytes: mib, UsedBytes: 5 * 4096}},
		{"BitLocker", func(m *image) { m.text(3, "-FVE-FS-").put(510, 0x55, 0xAA) }, lpmos.Filesystem{Type: "BitLocker"}},
		{"Intel RAID", func(m *image) { m.text(-1024, "Intel Raid ISM Cfg Sig. 1.3") }, lpmos.Filesystem{Type: "isw_raid_member"}},
		{"VMFS", func(m *image) { m.text(0x100000, "\x0d\xd0\x01\xc0") }, lpmos.Filesystem{Type: "VMFS_volume_member"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := &image{size: 64 * mib}
			tt.build(m)
			c, err := Probe(m, m.size, 512)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(lpmos.Content{Filesystem: &tt.want}, c); d != "" {
				t.Errorf("Probe (-want +got):\n%s", d)
			}
			if !c.HoldsData() {
				t.Error("HoldsData = false")
			}
		})
	}
	t.Run("nothing", func(t *testing.T) {
		if c, err := Probe(&image{size: 64 * mib}, 64*mib, 512); err != nil || !c.Empty() {
			t.Errorf("Probe = %+v, %v; want nothing", c, err)
		}
	})
}

// gptEntry is a partition in sectors.
type gptEntry struct {
	number      int
	first, last uint64
	name        string
}

// putGPT writes a protective MBR, and a primary and a backup GPT.
func putGPT(m *image, sector int64, entries ...gptEntry) {
	array := make([]byte, 128*128)
	for _, e := range entries {
		b := array[(e.number-1)*128:]
		copy(b, []byte{0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D, 0xE4})
		copy(b[16:], id16)
		b[31] += byte(e.number)
		copy(b[32:], le64(e.first))
		copy(b[40:], le64(e.last))
		for i, c := range utf16.Encode([]rune(e.name)) {
			copy(b[56+2*i:], le16(c))
		}
	}
	last := m.size/sector - 1
	put := func(at, other, arrayAt int64) {
		h := make([]byte, sector)
		copy(h, "EFI PART\x00\x00\x01\x00\x5C\x00\x00\x00")
		copy(h[24:], le64(uint64(at)))
		copy(h[32:], le64(uint64(other)))
		copy(h[56:], id16)
		copy(h[72:], le64(uint64(arrayAt)))
		copy(h[80:], le32(128))
		copy(h[84:], le32(128))
		copy(h[88:], le32(crc32.ChecksumIEEE(array)))
		copy(h[16:], le32(crc32.ChecksumIEEE(h[:92])))
		m.put(at*sector, h...).put(arrayAt*sector, array...)
	}
	m.put(446, 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF).put(510, 0x55, 0xAA)
	put(1, last, 2)
	put(last, 1, last-128*128/sector)
}

func gptPartition(n int, start, size int64, name string, f *lpmos.Filesystem) lpmos.Partition {
	return lpmos.Partition{Number: n, StartBytes: start, SizeBytes: size, Name: name, Filesystem: f,
		Type: "0fc63daf-8483-4772-8e79-3d69d8477de4", UUID: fmt.Sprintf("%s%02x", id16GUID[:34], 0x10+n)}
}

func TestGPT(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		disk := func() *image {
			m := &image{size: 256 * mib}
			s := uint64(mib / sector)
			// Out of order, as after deleting and adding partitions.
			putGPT(m, sector, gptEntry{7, 129 * s, 130*s - 1, "größe\u202e"}, gptEntry{1, 1 * s, 129*s - 1, "root"}, gptEntry{3, 1 << 60, 1<<60 + 1, "outside"})
			putExt4(m, mib)
			return m
		}
		want := lpmos.Content{Table: "gpt", TableID: id16GUID, Partitions: []lpmos.Partition{
			gptPartition(1, mib, 128*mib, "root", ext4), gptPartition(7, 129*mib, mib, "größe", nil)}}
		tests := []struct {
			name   string
			damage func(*image)
			want   lpmos.Content
		}{
			{"intact", func(m *image) {}, want},
			{"the header is damaged", func(m *image) { m.put(sector+60, 0xFF) }, want},
			{"the entries are damaged", func(m *image) { m.put(2*sector+56, 'X') }, want},
			{"the first sectors are zero", func(m *image) { m.put(0, make([]byte, 34*sector)...) }, want},
			{"the backup is damaged", func(m *image) { m.put(-sector, 'X') }, want},
			{"both headers are damaged", func(m *image) { m.put(sector, 'X').put(-sector, 'X') },
				lpmos.Content{Table: "mbr", TableID: "00000000", Partitions: []lpmos.Partition{{Number: 1, StartBytes: sector, SizeBytes: 256*mib - sector, Type: "ee"}}}},
			{"an MBR was written over it", func(m *image) {
				m.put(440, 0xEF, 0xBE, 0xAD, 0xDE).put(450, 0x83).put(454, le32(uint32(mib/sector))...).put(458, le32(uint32(128*mib/sector))...)
			}, lpmos.Content{Table: "mbr", TableID: "deadbeef", Partitions: []lpmos.Partition{{Number: 1, StartBytes: mib, SizeBytes: 128 * mib, Type: "83", UUID: "deadbeef-01", Filesystem: ext4}}}},
		}
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s, sectors of %d", tt.name, sector), func(t *testing.T) {
				m := disk()
				tt.damage(m)
				c, err := Probe(m, m.size, int(sector))
				if d := cmp.Diff(tt.want, c); err != nil || d != "" {
					t.Errorf("Probe: %v (-want +got):\n%s", err, d)
				}
			})
		}
		t.Run(fmt.Sprintf("read with the wrong sector size, not %d", sector), func(t *testing.T) {
			c, err := Probe(disk(), 256*mib, int(512+4096-sector))
			if d := cmp.Diff(want, c); err != nil || d != "" {
				t.Errorf("Probe: %v (-want +got):\n%s", err, d)
			}
		})
	}
	t.Run("at most 128 partitions", func(t *testing.T) {
		m := &image{size: 256 * mib}
		var entries []gptEntry
		for i := range 128 {
			entries = append(entries, gptEntry{i + 1, uint64(2048 + i), uint64(2048 + i), "x"})
		}
		putGPT(m, 512, entries...)
		if c, err := Probe(m, m.size, 512); err != nil || len(c.Partitions) != 128 || c.Partitions[127].Number != 128 {
			t.Errorf("Probe found %d partitions, %v; want 128", len(c.Partitions), err)
		}
	})
}

// mbrEntry is 16 bytes of a partition table.
func mbrEntry(typ byte, start, size uint32) []byte {
	return slices.Concat([]byte{0, 0, 0, 0, typ, 0, 0, 0}, le32(start), le32(size))
}

func TestMBR(t *testing.T) {
	m := &image{size: 64 * mib}
	m.put(440, 0x78, 0x56, 0x34, 0x12).put(510, 0x55, 0xAA)
	m.put(446, mbrEntry(0x83, 2048, 20480)...).put(462, mbrEntry(0x05, 22528, 60000)...).put(478, mbrEntry(0x82, 90000, 1<<30)...)
	ebr := func(at int64, entries ...[]byte) {
		m.put(at*512+446, slices.Concat(entries...)...).put(at*512+510, 0x55, 0xAA)
	}
	ebr(22528, mbrEntry(0x83, 63, 2048), mbrEntry(0x05, 10000, 5000))
	ebr(32528, mbrEntry(0, 0, 0), mbrEntry(0x05, 20000, 5000)) // empty, but goes on
	ebr(42528, mbrEntry(0x07, 63, 2048), mbrEntry(0x05, 0, 5000))
	putExt4(m, 22591*512)
	want := lpmos.Content{Table: "mbr", TableID: "12345678", Partitions: []lpmos.Partition{
		{Number: 1, StartBytes: mib, SizeBytes: 10 * mib, Type: "83", UUID: "12345678-01"},
		{Number: 2, StartBytes: 11 * mib, SizeBytes: 60000 * 512, Type: "05", UUID: "12345678-02"},
		{Number: 3, StartBytes: 90000 * 512, SizeBytes: 64*mib - 90000*512, Type: "82", UUID: "12345678-03"},
		{Number: 5, StartBytes: 22591 * 512, SizeBytes: mib, Type: "83", UUID: "12345678-05", Filesystem: ext4},
		{Number: 6, StartBytes: 42591 * 512, SizeBytes: mib, Type: "07", UUID: "12345678-06"},
	}}
	c, err := Probe(m, m.size, 512)
	if d := cmp.Diff(want, c); err != nil || d != "" {
		t.Errorf("Probe: %v (-want +got):\n%s", err, d)
	}

	t.Run("a boot sector without entries is no table", func(t *testing.T) {
		m := (&image{size: mib}).put(510, 0x55, 0xAA)
		if c, err := Probe(m, m.size, 512); err != nil || !c.Empty() {
			t.Errorf("Probe = %+v, %v", c, err)
		}
	})
	t.Run("an installation medium is both", func(t *testing.T) {
		m := (&image{size: 64 * mib}).put(440, 1, 0, 0, 0).put(446, mbrEntry(0x17, 64, 60000)...).put(510, 0x55, 0xAA).text(32768-512, "x").text(32768, "\x01CD001")
		m.put(446, mbrEntry(0xEF, 90000, 600)...)
		c, err := Probe(m, m.size, 512)
		if err != nil || c.Table != "mbr" || c.Filesystem == nil || c.Filesystem.Type != "iso9660" {
			t.Errorf("Probe = %+v, %v; want a table and iso9660", c, err)
		}
	})
	t.Run("a mirror at the end of the last partition is not the disk's", func(t *testing.T) {
		m := (&image{size: 64 * mib}).put(440, 1, 0, 0, 0).put(446, mbrEntry(0xFD, 2048, 64*2048-2048)...).put(510, 0x55, 0xAA)
		at := (m.size/512 - 16) &^ 7
		m.put(at*512, le32(0xa92b4efc)...).put(at*512+4, le32(1)...).put(at*512+144, le64(uint64(at-2048))...)
		c, err := Probe(m, m.size, 512)
		if err != nil || c.Filesystem != nil || len(c.Partitions) != 1 || c.Partitions[0].Filesystem == nil {
			t.Errorf("Probe = %+v, %v; want the member in the partition only", c, err)
		}
	})
}

func TestProbeFault(t *testing.T) {
	m := &image{size: 64 * mib, broken: 4200}
	putExt4(m, 0)
	c, err := Probe(m, m.size, 512)
	if err == nil || !strings.Contains(err.Error(), "input/output error") || !strings.HasPrefix(err.Error(), "read ") {
		t.Errorf("Probe of a device with a fault = %v", err)
	}
	if c.Filesystem == nil {
		t.Error("what can be read is not reported")
	}
	// A device that is shorter than its size says has no fault.
	if _, err := Probe(&image{size: mib}, 64*mib, 512); err != nil {
		t.Errorf("Probe of a short device = %v", err)
	}
	for _, size := range []int64{-1, 0, 1, 511, 512, 1024, 4095} {
		if c, err := Probe(&image{size: max(size, 0)}, size, 512); err != nil || !c.Empty() {
			t.Errorf("Probe of %d bytes = %+v, %v", size, c, err)
		}
	}
}

// FuzzProbe puts its input at each place where something is read, with the
// magic numbers that lead to it.
func FuzzProbe(f *testing.F) {
	seeds := []func(*image){
		func(m *image) { putExt4(m, 0) },
		func(m *image) { putGPT(m, 512, gptEntry{1, 40, 80, "a"}) },
		func(m *image) { m.put(446, mbrEntry(5, 1, 100)...).put(510, 0x55, 0xAA) },
		func(m *image) { m.text(3, "NTFS    ") },
		func(m *image) { m.text(3, "EXFAT   ").put(108, 9, 3) },
		func(m *image) {
			m.put(11, 0, 2, 1, 1, 0, 2, 0, 2).put(21, 0xF8, 1).text(54, "FAT").put(510, 0x55, 0xAA)
		},
		func(m *image) { m.put(16<<10, 1).put(130<<10, 0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c) },
		func(m *image) { m.text(0, "LABELONE").text(24, "LVM2 001") },
		func(m *image) { m.text(0, "XFSB") },
	}
	const size = 300 << 10
	for _, seed := range seeds {
		m := &image{size: size}
		seed(m)
		b := make([]byte, size)
		if _, err := m.ReadAt(b, 0); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.TrimRight(b, "\x00"), uint16(0), uint32(0), []byte{})
		f.Add(bytes.TrimRight(b, "\x00"), uint16(512), uint32(80), []byte{0xFF, 0xFF, 0xFF, 0xFF})
	}
	f.Fuzz(func(t *testing.T, b []byte, sector uint16, at uint32, patch []byte) {
		m := &image{size: size}
		m.put(0, b...).put(int64(at%size), patch...)
		c, err := Probe(m, m.size, int(sector))
		if err != nil {
			t.Fatalf("Probe of readable bytes = %v", err)
		}
		again, _ := Probe(m, m.size, int(sector))
		if d := cmp.Diff(c, again); d != "" {
			t.Errorf("two looks differ:\n%s", d)
		}
		if len(c.Partitions) > maxPartitions {
			t.Errorf("%d partitions", len(c.Partitions))
		}
		check := func(f *lpmos.Filesystem) {
			if f != nil && (f.Type == "" || f.Label != Clean(f.Label) || f.UUID != Clean(f.UUID) || f.SizeBytes < 0 || f.UsedBytes < 0) {
				t.Errorf("filesystem %+v", f)
			}
		}
		check(c.Filesystem)
		for _, p := range c.Partitions {
			check(p.Filesystem)
			if p.StartBytes < 0 || p.SizeBytes <= 0 || p.StartBytes+p.SizeBytes > size || p.Name != Clean(p.Name) {
				t.Errorf("partition %+v is not in the device", p)
			}
		}
	})
}
