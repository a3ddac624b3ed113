package tpm

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/lpmos/lpmos/internal/tpm/tpmtest"
)

func open(t *testing.T, dial func() io.ReadWriteCloser) *TPM {
	t.Helper()
	x, err := New(dial())
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func closeTPM(t *testing.T, x *TPM) {
	t.Helper()
	if err := x.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
}

// TestSecretForOneTPM wraps secrets for real (emulated) TPMs: the one they are
// for unwraps them, also after a power cycle; another one does not (T12).
func TestSecretForOneTPM(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	mine := open(t, tpmtest.Start(t, state))
	id := mine.Identity()
	if err := id.Validate(); err != nil {
		t.Fatalf("identity of a TPM: %v", err)
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	w, err := Wrap(id, secret)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 { // more than a TPM has room for sessions that nobody ends
		if got, err := mine.Unwrap(w); err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("Unwrap = %x, %v; want the secret", got, err)
		}
	}
	for name, edit := range map[string]func(*Wrapped){
		"an altered secret":    func(w *Wrapped) { w.Credential[len(w.Credential)-1] ^= 1 },
		"an altered integrity": func(w *Wrapped) { w.Credential[5] ^= 1 },
		"another seed":         func(w *Wrapped) { w.Secret = wrapped(t, id).Secret },
		"a torn one":           func(w *Wrapped) { w.Credential = w.Credential[:20] },
		"an empty one":         func(w *Wrapped) { *w = Wrapped{} },
	} {
		bad := Wrapped{bytes.Clone(w.Credential), bytes.Clone(w.Secret)}
		edit(&bad)
		if got, err := mine.Unwrap(bad); err == nil {
			t.Errorf("Unwrap of %s = %x; want an error", name, got)
		}
	}
	if got, err := mine.Unwrap(w); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("Unwrap after refusals = %x, %v; want the secret", got, err)
	}

	other := open(t, tpmtest.Start(t, t.TempDir()))
	if bytes.Equal(other.Identity().Endorsement, id.Endorsement) {
		t.Error("two TPMs have one endorsement key")
	}
	if got, err := other.Unwrap(w); err == nil {
		t.Errorf("Unwrap by another TPM = %x; want an error", got)
	}
	closeTPM(t, other)
	closeTPM(t, mine)
}

// TestIdentityStays switches a TPM off and on.
func TestIdentityStays(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	var first Identity
	t.Run("at first", func(t *testing.T) {
		x := open(t, tpmtest.Start(t, state))
		first = x.Identity()
		closeTPM(t, x)
	})
	t.Run("switched off and on", func(t *testing.T) {
		x := open(t, tpmtest.Start(t, state))
		if id := x.Identity(); !bytes.Equal(id.Endorsement, first.Endorsement) || !bytes.Equal(id.Activated, first.Activated) {
			t.Error("a TPM has another identity after a power cycle")
		}
		closeTPM(t, x)
	})
}

// TestClearedTPM is T12: a TPM that its owner cleared is the same machine's
// still, because clearing leaves the endorsement seed (TPM 2.0 Part 3, §24.6);
// one whose endorsement seed was made anew (§24.4) is another.
func TestClearedTPM(t *testing.T) {
	t.Parallel()
	const ccChangeEPS, ccClear, rhPlatform = 0x124, 0x126, 0x4000000c
	dial := tpmtest.Start(t, t.TempDir())
	x := open(t, dial)
	id, secret := x.Identity(), []byte("32 bytes that open a credential.")
	w, err := Wrap(id, secret)
	if err != nil {
		t.Fatal(err)
	}
	again := func(cc uint32) *TPM {
		t.Helper()
		if _, err := x.command(cc, []uint32{rhPlatform}, []uint32{rhPassword}, nil); err != nil {
			t.Fatalf("command %#x: %v", cc, err)
		}
		x.rw.Close() // without unloading keys, which the command did
		x = open(t, dial)
		return x
	}
	if got, err := again(ccClear).Unwrap(w); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("Unwrap after the owner cleared it = %x, %v; want the secret", got, err)
	}
	if got, err := again(ccChangeEPS).Unwrap(w); err == nil {
		t.Errorf("Unwrap with another endorsement seed = %x; want an error", got)
	}
	if bytes.Equal(x.Identity().Endorsement, id.Endorsement) {
		t.Error("with another endorsement seed its identity is the same")
	}
	closeTPM(t, x)
}

func wrapped(t *testing.T, id Identity) Wrapped {
	t.Helper()
	w, err := Wrap(id, []byte{1})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestWrapRefuses is T12: what is no endorsement key gets nothing wrapped.
func TestWrapRefuses(t *testing.T) {
	good := Identity{Endorsement: testEndorsement(), Activated: Name(activatedTemplate())}
	if _, err := Wrap(good, []byte("x")); err != nil {
		t.Fatalf("Wrap for the generator of P-256: %v", err)
	}
	for name, edit := range map[string]func(*Identity){
		"no key":                 func(i *Identity) { i.Endorsement = nil },
		"the template itself":    func(i *Identity) { i.Endorsement = endorsementTemplate() }, // (0, 0) is not on the curve
		"a signing key":          func(i *Identity) { i.Endorsement = activatedTemplate() },
		"a key that may do more": func(i *Identity) { i.Endorsement[7] |= userWithAuth },
		"another policy":         func(i *Identity) { i.Endorsement[20] ^= 1 },
		"something after it":     func(i *Identity) { i.Endorsement = append(i.Endorsement, 0) },
		"a torn point":           func(i *Identity) { i.Endorsement = i.Endorsement[:len(i.Endorsement)-1] },
		"no name":                func(i *Identity) { i.Activated = nil },
		"a name of another hash": func(i *Identity) { i.Activated[1] = 0x0c },
	} {
		bad := Identity{bytes.Clone(good.Endorsement), bytes.Clone(good.Activated)}
		edit(&bad)
		if _, err := Wrap(bad, []byte("x")); !errors.Is(err, ErrKey) {
			t.Errorf("Wrap for %s = %v; want %v", name, err, ErrKey)
		}
	}
	for _, secret := range [][]byte{nil, make([]byte, 33)} {
		if _, err := Wrap(good, secret); err == nil {
			t.Errorf("Wrap of %d bytes = nil; want an error", len(secret))
		}
	}
}

// testEndorsement is a key whose point is the generator of P-256 (SEC 2, §2.4.2).
func testEndorsement() []byte {
	b := endorsementTemplate()
	var w writer
	w.sized(must(hex.DecodeString("6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296")))
	w.sized(must(hex.DecodeString("4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")))
	return append(b[:len(b)-2*(2+pointSize)], w.b...)
}

// script is a TPM that answers as it was told, whatever it is asked.
type script struct {
	answers [][]byte
	pending []byte
}

func (s *script) Write(b []byte) (int, error) {
	s.pending = nil
	if len(s.answers) > 0 {
		s.pending, s.answers = s.answers[0], s.answers[1:]
	}
	return len(b), nil
}

func (s *script) Read(b []byte) (int, error) {
	if len(s.pending) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.pending)
	s.pending = s.pending[n:]
	return n, nil
}

func (s *script) Close() error { return nil }

func answer(code uint32, body ...byte) []byte {
	b := []byte{0x80, 0x02, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[6:], code)
	b = append(b, body...)
	binary.BigEndian.PutUint32(b[2:], uint32(len(b)))
	return b
}

// TestLyingTPM is a driver or TPM that answers nonsense.
func TestLyingTPM(t *testing.T) {
	for name, c := range map[string]struct {
		answers [][]byte
		want    error
	}{
		"nothing":                 {nil, io.EOF},
		"half a header":           {[][]byte{{0x80, 0x02, 0}}, io.ErrUnexpectedEOF},
		"a size below the header": {[][]byte{{0x80, 0x02, 0, 0, 0, 1, 0, 0, 0, 0}}, errShort},
		"a size of 4 GiB":         {[][]byte{{0x80, 0x02, 255, 255, 255, 255, 0, 0, 0, 0}}, errShort},
		"less than it says":       {[][]byte{{0x80, 0x02, 0, 0, 0, 99, 0, 0, 0, 0}}, io.EOF},
		"success and no body":     {[][]byte{answer(0)}, errShort},
		"a key of 64 KiB":         {[][]byte{answer(0, 0x80, 0, 0, 0, 0, 0, 0, 2, 0xff, 0xff)}, errShort},
		"a password it wants":     {[][]byte{answer(0x9a2)}, ErrAuth},
	} {
		if _, err := New(&script{answers: c.answers}); !errors.Is(err, c.want) {
			t.Errorf("New with a TPM that answers %s = %v; want %v", name, err, c.want)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "tpmrm0")); !errors.Is(err, ErrNone) {
		t.Errorf("Open without a device = %v; want %v", err, ErrNone)
	}
}

// FuzzResponse gives what a TPM might answer to all that reads it.
func FuzzResponse(f *testing.F) {
	f.Add(answer(0, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0), answer(0x9a2))
	f.Add(answer(0, append([]byte{0x80, 0, 0, 0, 0, 0, 0, 122, 0, 122}, testEndorsement()...)...), answer(0))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		x, err := New(&script{answers: [][]byte{first, second}})
		if err == nil && x.Identity().Validate() != nil {
			t.Errorf("a TPM has an identity that nothing can be wrapped for")
		}
	})
}

// FuzzIdentity gives identities as a region gets them from agents.
func FuzzIdentity(f *testing.F) {
	f.Add(testEndorsement(), Name(activatedTemplate()))
	f.Add(endorsementTemplate(), []byte{})
	f.Fuzz(func(t *testing.T, endorsement, activated []byte) {
		id := Identity{endorsement, activated}
		_, err := Wrap(id, []byte("secret"))
		if (err == nil) != (id.Validate() == nil) {
			t.Errorf("Wrap = %v for an identity of which Validate says %v", err, id.Validate())
		}
	})
}
