package install

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

// FuzzGPT reads any table with right checksums, and has it fit a disk: no
// partition of it ends outside.
func FuzzGPT(f *testing.F) {
	const sector, disk = 512, 1 << 30
	header := make([]byte, 92)
	copy(header, gptSignature)
	le.PutUint32(header[gptHeaderLen:], 92)
	le.PutUint64(header[gptEntriesLBA:], 2)
	le.PutUint32(header[gptEntryCount:], 4)
	le.PutUint32(header[gptEntrySize:], 128)
	entry := make([]byte, 128)
	entry[0] = 1
	le.PutUint64(entry[32:], 2048)
	le.PutUint64(entry[40:], 4095)
	f.Add(header, bytes.Clone(entry), 1)
	le.PutUint64(entry[40:], 1<<63)
	f.Add(header, bytes.Clone(entry), 1)
	le.PutUint64(entry[32:], 0x8383830000080000)
	le.PutUint64(entry[40:], 0x8383)
	f.Add(header, entry, 1)
	f.Fuzz(func(t *testing.T, header, entries []byte, grow int) {
		b := make([]byte, 64<<10)
		h := b[sector : 2*sector]
		copy(h, header)
		copy(b[2*sector:], entries)
		if n, count, size := int64(le.Uint32(h[gptHeaderLen:])), int64(le.Uint32(h[gptEntryCount:])), int64(le.Uint32(h[gptEntrySize:])); n <= sector && count <= 1024 && size <= 4096 && count*size <= int64(len(b)-2*sector) {
			le.PutUint64(h[gptEntriesLBA:], 2)
			le.PutUint32(h[gptEntriesCRC:], crc32.ChecksumIEEE(b[2*sector:2*sector+count*size]))
			le.PutUint32(h[gptHeaderCRC:], 0)
			le.PutUint32(h[gptHeaderCRC:], crc32.ChecksumIEEE(h[:n]))
		}
		g, err := readGPT(bytes.NewReader(b), sector)
		if err != nil {
			return
		}
		size, err := g.fit(disk, [16]byte{1}, grow)
		if err != nil {
			return
		}
		for n := range len(g.entries) / g.size {
			if start, z, ok := g.place(n + 1); ok && (start < 0 || z <= 0 || start+z > disk) {
				t.Fatalf("partition %d is at %d, %d bytes of a disk of %d", n+1, start, z, int64(disk))
			}
		}
		if _, z, ok := g.place(grow); !ok || z != size {
			t.Fatalf("partition %d has %d bytes; fit says %d", grow, z, size)
		}
	})
}

// sectors is a disk whose first bytes alone are there.
type sectors []byte

func (m sectors) ReadAt(b []byte, at int64) (int, error)  { return copy(b, m[at:]), nil }
func (m sectors) WriteAt(b []byte, at int64) (int, error) { return copy(m[at:], b), nil }

// FuzzMBR has any table of the old kind fit a disk: one partition of it becomes
// larger, ends on the disk and reaches into none that begins behind it, and
// nothing else changes.
func FuzzMBR(f *testing.F) {
	entry := func(kind byte, start, size uint32) []byte {
		e := make([]byte, 16)
		e[4] = kind
		le.PutUint32(e[8:], start)
		le.PutUint32(e[12:], size)
		return e
	}
	f.Add(entry(0x83, 2048, 20480), 1, int64(1<<30))
	f.Add(append(entry(0x83, 2048, 20480), entry(0x05, 40960, 20480)...), 1, int64(1<<30))
	f.Add(append(entry(0x17, 0, 1<<32-1), entry(0x83, 1<<32-1, 1<<32-1)...), 2, int64(3<<40))
	f.Fuzz(func(t *testing.T, entries []byte, grow int, disk int64) {
		d := make(sectors, 512)
		copy(d[446:510], entries)
		d[510], d[511] = 0x55, 0xaa
		was := bytes.Clone(d)
		place := func(b []byte, n int) (used bool, start, end int64) {
			e := b[446+16*(n-1):]
			start = int64(le.Uint32(e[8:])) * 512
			return e[4] != 0, start, start + int64(le.Uint32(e[12:]))*512
		}
		size, err := growMBR(d, 512, disk, grow)
		if err != nil {
			if !bytes.Equal(d, was) {
				t.Fatalf("the table was changed, and then refused: %v", err)
			}
			return
		}
		used, start, end := place(d, grow)
		_, _, old := place(was, grow)
		if !used || start == 0 || end-start != size || size <= 0 || end < old || end > disk {
			t.Fatalf("partition %d is at %d to %d of a disk of %d, was to %d; growMBR says %d bytes", grow, start, end, disk, old, size)
		}
		for n := 1; n <= 4; n++ {
			if used, s, _ := place(was, n); used && s > start && end > max(s, old) {
				t.Fatalf("partition %d reaches to %d, into partition %d at %d", grow, end, n, s)
			}
		}
		le.PutUint32(was[446+16*(grow-1)+12:], uint32(size/512))
		if !bytes.Equal(d, was) {
			t.Fatalf("something else was changed:\n% x\n% x", was, []byte(d))
		}
	})
}

// FuzzMarker reads any marker whose checksum is right.
func FuzzMarker(f *testing.F) {
	good, err := Marker{TaskID: testTask, Attempt: 1}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.TrimRight(good[:markerBytes-32], "\x00"))
	f.Add([]byte(markerMagic + `{"task_id":1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		b := make([]byte, markerOffset+markerBytes)
		m := b[markerOffset:]
		copy(m[:markerBytes-32], body)
		sum := sha256.Sum256(m[:markerBytes-32])
		copy(m[markerBytes-32:], sum[:])
		got, ok := readMarker(bytes.NewReader(b))
		if !ok {
			return
		}
		again, err := got.encode()
		if err != nil {
			return // written out it is longer than it was
		}
		copy(m, again)
		if back, ok := readMarker(bytes.NewReader(b)); !ok || lpmos.DigestOf(back) != lpmos.DigestOf(got) {
			t.Fatalf("%+v is read back as %+v, %v", got, back, ok)
		}
	})
}

// FuzzAccounts adds an account to whatever an image has as its account files: what
// was there stays, line by line, and the new one has a number that nobody had.
func FuzzAccounts(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/bash\n", "root:x:0:\nadm:x:4:syslog\n", "root:*:19000:0:99999:7:::\n", "adm:*::\n")
	f.Add("a:b\n:::\r\n", "ops:x:99999999999999999999:\nadm\n", "", ":")
	f.Add("x:y:1000:1000\n", "ops:x:7:\n", "ops:!\n", "ops\n")
	f.Fuzz(func(t *testing.T, passwd, group, shadow, gshadow string) {
		root, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for name, text := range map[string]string{"etc/passwd": passwd, "etc/group": group, "etc/shadow": shadow, "etc/gshadow": gshadow} {
			if err := errors.Join(root.MkdirAll("etc", 0o755), root.WriteFile(name, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		tr := tree{root}
		before, err := tr.readTable("etc/passwd", true)
		if err != nil {
			t.Fatal(err)
		}
		users, err := tr.addUsers(setupJob(&lpmos.Setup{Users: []lpmos.Account{{Name: "ops", Groups: []string{"adm", "docker"}}}}), false)
		if err != nil {
			return
		}
		after, err := tr.readTable("etc/passwd", true)
		if err != nil {
			t.Fatal(err)
		}
		if was := len(before.lines); len(after.lines) != was+1 || !slices.Equal(after.lines[:was], before.lines) || !strings.HasPrefix(after.lines[was], "ops:x:") {
			t.Fatalf("passwd %q became %q", before.lines, after.lines)
		}
		if id := users["ops"].uid; id < firstUID || id > lastUID || before.numbers(2)[id] {
			t.Fatalf("ops has the number %d, which %q has", id, before.lines)
		}
	})
}

// FuzzACL reads an ACL as archives have it.
func FuzzACL(f *testing.F) {
	f.Add("user::rwx,user:adm:r-x:4,group::r-x,mask::rwx,other::---")
	f.Add("u::rwx\ng:7:--x#effective:---\no::r")
	f.Fuzz(func(t *testing.T, text string) {
		u := unpacker{names: map[string]map[string]int{"passwd": {"root": 0}, "group": {"adm": 4}}}
		if b, err := u.acl(text); err == nil && (len(b) < 4 || len(b)%8 != 4) {
			t.Fatalf("%q is %d bytes for the kernel", text, len(b))
		}
	})
}
