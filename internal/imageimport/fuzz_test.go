package imageimport

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"strings"
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
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
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
		for h, err := range d.holes {
			if err == nil && (h.Offset < 0 || h.Bytes <= 0 || h.Offset+h.Bytes > size) {
				t.Fatalf("a hole %+v of a disk of %d bytes", h, size)
			}
		}
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

// FuzzAnswer judges the head of whatever a mirror answers.
func FuzzAnswer(f *testing.F) {
	f.Add(206, "bytes 10-99/100", "application/octet-stream", "", int64(90), int64(10))
	f.Add(200, "", "text/html", "gzip", int64(-1), int64(0))
	fetch := &fetcher{limits: Limits{Bytes: 1000}}
	f.Fuzz(func(t *testing.T, status int, span, kind, encoding string, length, have int64) {
		resp := &http.Response{StatusCode: status, ContentLength: length, Header: http.Header{"Content-Range": {span}, "Content-Type": {kind}, "Content-Encoding": {encoding}, "Etag": {span}}}
		_ = validator(resp.Header)
		was := have
		total, err := fetch.answer(resp, &partialNote{Total: -1}, &have)
		if err == nil && (total > 1000 || have != 0 && have != was) {
			t.Fatalf("answered %d bytes, going on at %d", total, have)
		}
	})
}

// FuzzSigner reads what gpgv says; a key is good when it says both.
func FuzzSigner(f *testing.F) {
	f.Add("[GNUPG:] GOODSIG 1234 A Name <a@example>\n[GNUPG:] VALIDSIG ABCD 2026-01-01\n")
	f.Fuzz(func(t *testing.T, status string) {
		if s := validSigner(status); s != "" && (!strings.Contains(status, "GOODSIG") || !strings.Contains(status, "VALIDSIG")) {
			t.Fatalf("%q names the signer %q", status, s)
		}
	})
}
