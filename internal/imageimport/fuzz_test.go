package imageimport

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/ulikunitz/xz"

	"github.com/lpmos/lpmos/internal/rofs"
)

func FuzzFindSum(f *testing.F) {
	f.Add([]byte("SHA256 (noble.img) = abababababababababababababababababababababababababababababababab\n"))
	f.Add([]byte("abababababababababababababababababababababababababababababababab *noble.img\n"))
	f.Fuzz(func(t *testing.T, list []byte) {
		if s, err := FindSum(list, "noble.img"); err == nil {
			if again, err := ParseSum(s.Hex); err != nil || again != s {
				t.Errorf("FindSum gave %v, which is no digest", s)
			}
		}
	})
}

func FuzzUnarmor(f *testing.F) {
	f.Add([]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n=x\n-----END PGP PUBLIC KEY BLOCK-----\n"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = unarmor(b) })
}

// qcowHeader is of a small image of version 3.
func qcowHeader() []byte {
	b := make([]byte, 4<<16)
	copy(b, "QFI\xfb")
	be := binary.BigEndian
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], 1<<20)
	be.PutUint32(b[36:], 1)
	be.PutUint64(b[40:], 3<<16)
	be.PutUint32(b[100:], 104)
	be.PutUint64(b[3<<16:], 1<<16|1<<63)
	return b
}

// FuzzQcow2 changes bytes of a small image and reads what is left of it.
func FuzzQcow2(f *testing.F) {
	good := qcowHeader()
	if size, err := checkQcow2(good, int64(len(good)), 1<<30); err != nil || size != 1<<20 {
		f.Fatalf("checkQcow2 of the seed = %d, %v", size, err)
	}
	f.Add(uint32(8), []byte{1})
	f.Add(uint32(1<<16), []byte{0x40, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(_ *testing.T, at uint32, change []byte) {
		b := bytes.Clone(good)
		copy(b[int(at)%len(b):], change)
		size, err := checkQcow2(b, int64(len(b)), 1<<24)
		if err != nil {
			return
		}
		d, err := openQcow2(bytes.NewReader(b), size)
		if err != nil {
			return
		}
		_, _ = d.holes()
		_, _ = d.ReadAt(make([]byte, 4096), 0)
		_, _ = d.ReadAt(make([]byte, 4096), size-4096)
	})
}

func FuzzXZ(f *testing.F) {
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err != nil {
		f.Fatal(err)
	}
	w.Write([]byte("some text"))
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = checkXZ(bytes.NewReader(b), int64(len(b))) })
}

func FuzzTar(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0}, 1024))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = scanTar(bytes.NewReader(b), rofs.NewTar()) })
}
