package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Constants of Part 2.
const (
	algSHA256 = 0x000b // TPM_ALG_ID, §6.3
	algAES    = 0x0006
	algNull   = 0x0010
	algECDSA  = 0x0018
	algECC    = 0x0023
	algCFB    = 0x0043
	curveP256 = 0x0003 // TPM_ECC_CURVE, §6.4

	ccActivateCredential = 0x0147 // TPM_CC, §6.5.2
	ccCreatePrimary      = 0x0131
	ccFlushContext       = 0x0165
	ccPolicySecret       = 0x0151
	ccStartAuthSession   = 0x0176

	stNoSessions = 0x8001 // TPM_ST, §6.9
	stSessions   = 0x8002

	rhNull        = 0x40000007 // TPM_RH, §7.4
	rhPassword    = 0x40000009 // TPM_RS_PW
	rhEndorsement = 0x4000000b

	sePolicy = 0x01 // TPM_SE, §6.11
)

// Object attributes (TPMA_OBJECT, Part 2 §8.3).
const (
	fixedTPM            = 1 << 1
	fixedParent         = 1 << 4
	sensitiveDataOrigin = 1 << 5
	userWithAuth        = 1 << 6
	adminWithPolicy     = 1 << 7
	noDA                = 1 << 10
	restricted          = 1 << 16
	decrypt             = 1 << 17
	sign                = 1 << 18

	endorsementKey = fixedTPM | fixedParent | sensitiveDataOrigin | adminWithPolicy | restricted | decrypt
	// An empty authorization needs no protection against guessing.
	activatedKey = fixedTPM | fixedParent | sensitiveDataOrigin | userWithAuth | noDA | restricted | sign
)

// Sizes in bytes.
const (
	maxMessage     = 4096 // what the kernel's driver takes and gives
	responseHeader = 10
	maxDigest      = 32
	maxTicket      = 64 // a ticket's digest is made with whatever hash the TPM likes best
	pointSize      = 32 // a coordinate on P-256
	nameSize       = 2 + 32
	maxWrapped     = 1024
	maxPublic      = 512
)

// writer builds what a TPM reads: big-endian numbers and sized buffers
// (TPM2B_…, Part 2 §10.4).
type writer struct{ b []byte }

func (w *writer) u8(v uint8)   { w.b = append(w.b, v) }
func (w *writer) u16(v uint16) { w.b = binary.BigEndian.AppendUint16(w.b, v) }
func (w *writer) u32(v uint32) { w.b = binary.BigEndian.AppendUint32(w.b, v) }
func (w *writer) sized(b []byte) {
	w.u16(uint16(len(b)))
	w.b = append(w.b, b...)
}

// errShort is wrapped by errors about bytes that end too early or too late.
var errShort = errors.New("the bytes are not what their sizes say")

// reader takes apart what a TPM wrote. After a read past the end it gives zeros
// and failed stays set.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if r.failed || n > len(r.b) {
		r.failed = true
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// sized reads a buffer of at most limit bytes.
func (r *reader) sized(limit int) []byte {
	n := int(r.u16())
	if n > limit {
		r.failed = true
		return nil
	}
	return r.take(n)
}

// end says whether everything was read, and nothing more than there was.
func (r *reader) end(what string) error {
	if r.failed || len(r.b) != 0 {
		return fmt.Errorf("read %s: %w", what, errShort)
	}
	return nil
}
