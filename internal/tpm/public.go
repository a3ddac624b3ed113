package tpm

import (
	"bytes"
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// endorsementPolicy is the policy of every endorsement key of the profile:
// whoever has the endorsement hierarchy's authorization (PolicyA of the TCG EK
// Credential Profile, annex B.6.2).
var endorsementPolicy = must(hex.DecodeString("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"))

func must(b []byte, err error) []byte {
	if err != nil {
		panic(fmt.Sprintf("tpm: %v", err))
	}
	return b
}

// endorsementTemplate asks for the endorsement key (TPMT_PUBLIC, Part 2
// §12.2.4; template L-2). Its unique part is two coordinates of zeros.
func endorsementTemplate() []byte {
	var w writer
	w.u16(algECC)
	w.u16(algSHA256)
	w.u32(endorsementKey)
	w.sized(endorsementPolicy)
	w.u16(algAES)
	w.u16(128)
	w.u16(algCFB)
	w.u16(algNull) // signing scheme: it decrypts only
	w.u16(curveP256)
	w.u16(algNull) // key derivation
	w.sized(make([]byte, pointSize))
	w.sized(make([]byte, pointSize))
	return w.b
}

// activatedTemplate asks for the key that wrapped secrets are bound to as well.
// It signs nothing: TPM2_ActivateCredential wants an object beside the
// endorsement key, and one in the same hierarchy, which the TPM derives anew at
// each start, has always the same name.
func activatedTemplate() []byte {
	var w writer
	w.u16(algECC)
	w.u16(algSHA256)
	w.u32(activatedKey)
	w.sized(nil) // no policy
	w.u16(algNull)
	w.u16(algECDSA)
	w.u16(algSHA256)
	w.u16(curveP256)
	w.u16(algNull)
	w.sized(nil)
	w.sized(nil)
	return w.b
}

// ErrKey is wrapped by errors about what is not an endorsement key.
var ErrKey = errors.New("it is not an endorsement key of template L-2")

// parsePublic reads an endorsement key's public area. Everything but the point
// must be as in the template: a key that could be used for anything else proves
// nothing.
func parsePublic(b []byte) (*ecdh.PublicKey, error) {
	if len(b) > maxPublic {
		return nil, ErrKey
	}
	want := endorsementTemplate()
	fixed := len(want) - 2*(2+pointSize)
	if len(b) < fixed || !bytes.Equal(b[:fixed], want[:fixed]) {
		return nil, ErrKey
	}
	r := reader{b: b[fixed:]}
	x, y := r.sized(pointSize), r.sized(pointSize)
	if r.end("endorsement key") != nil {
		return nil, ErrKey
	}
	point := make([]byte, 1+2*pointSize)
	point[0] = 4                        // uncompressed (SEC 1, §2.3.3)
	copy(point[1+pointSize-len(x):], x) // a TPM may leave leading zeros out
	copy(point[1+2*pointSize-len(y):], y)
	k, err := ecdh.P256().NewPublicKey(point)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return k, nil
}

// Name is an object's name: its hash algorithm and the hash of its public area
// (Part 1 §16).
func Name(public []byte) []byte {
	sum := sha256.Sum256(public)
	return append([]byte{algSHA256 >> 8, algSHA256 & 0xff}, sum[:]...)
}
