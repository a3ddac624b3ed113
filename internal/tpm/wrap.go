package tpm

import (
	"crypto/aes"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Identity is what others know of a TPM.
type Identity struct {
	Endorsement []byte // the public area of its endorsement key (TPMT_PUBLIC)
	Activated   []byte // the name of the key that wrapped secrets are bound to
}

// Validate checks that secrets can be wrapped for i.
func (i Identity) Validate() error {
	if _, err := parsePublic(i.Endorsement); err != nil {
		return err
	}
	if len(i.Activated) != nameSize || i.Activated[0] != algSHA256>>8 || i.Activated[1] != algSHA256&0xff {
		return fmt.Errorf("%w: its companion's name is not one", ErrKey)
	}
	return nil
}

// Wrapped is a secret that one TPM unwraps.
type Wrapped struct {
	Credential []byte `json:"credential"` // TPMS_ID_OBJECT, Part 2 §12.4.2
	Secret     []byte `json:"secret"`     // TPMS_ECC_POINT that carries the seed, Part 1 §C.6.3
}

// Wrap closes a secret of 1 to 32 bytes for the TPM of i (Part 1 §24,
// TPM2_MakeCredential in Part 3 §12.6).
func Wrap(i Identity, secret []byte) (Wrapped, error) {
	if err := i.Validate(); err != nil {
		return Wrapped{}, fmt.Errorf("wrap for a TPM: %w", err)
	}
	if len(secret) == 0 || len(secret) > maxDigest {
		return Wrapped{}, fmt.Errorf("wrap for a TPM: a secret of %d bytes is not one of 1 to %d", len(secret), maxDigest)
	}
	endorsement, err := parsePublic(i.Endorsement)
	if err != nil {
		return Wrapped{}, err
	}
	once, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return Wrapped{}, fmt.Errorf("wrap for a TPM: %w", err)
	}
	shared, err := once.ECDH(endorsement)
	if err != nil {
		return Wrapped{}, fmt.Errorf("wrap for a TPM: %w", err)
	}
	x, y := coordinates(once.PublicKey())
	ex, _ := coordinates(endorsement)
	seed := kdfe(shared, "IDENTITY", x, ex)

	var point, plain, out writer
	point.sized(x)
	point.sized(y)
	plain.sized(secret)
	closed, err := cfb(kdfa(seed, "STORAGE", i.Activated, 128), plain.b)
	if err != nil {
		return Wrapped{}, fmt.Errorf("wrap for a TPM: %w", err)
	}
	mac := hmac.New(sha256.New, kdfa(seed, "INTEGRITY", nil, 256))
	mac.Write(closed)
	mac.Write(i.Activated)
	out.sized(mac.Sum(nil))
	out.b = append(out.b, closed...)
	return Wrapped{Credential: out.b, Secret: point.b}, nil
}

// Validate bounds what comes from outside before it goes to a TPM.
func (w Wrapped) Validate() error {
	if len(w.Credential) == 0 || len(w.Credential) > maxWrapped || len(w.Secret) == 0 || len(w.Secret) > maxWrapped {
		return errors.New("what was wrapped for a TPM is empty or longer than 1 KiB")
	}
	return nil
}

// coordinates are a point's, with their leading zeros.
func coordinates(k *ecdh.PublicKey) (x, y []byte) {
	b := k.Bytes()
	return b[1 : 1+pointSize], b[1+pointSize:]
}

// kdfe derives 256 bits from an ECDH exchange (Part 1 §11.4.10.3): one round of
// SHA-256 over a counter, the shared x, the use and both parties' x.
func kdfe(z []byte, use string, party, other []byte) []byte {
	h := sha256.New()
	h.Write([]byte{0, 0, 0, 1})
	h.Write(z)
	h.Write(append([]byte(use), 0))
	h.Write(party)
	h.Write(other)
	return h.Sum(nil)
}

// kdfa derives up to 256 bits from a key (Part 1 §11.4.10.2, after NIST SP
// 800-108 in counter mode): one round is enough.
func kdfa(key []byte, label string, context []byte, bits uint32) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte{0, 0, 0, 1})
	h.Write(append([]byte(label), 0))
	h.Write(context)
	h.Write(binary.BigEndian.AppendUint32(nil, bits))
	return h.Sum(nil)[:bits/8]
}

// cfb encrypts with AES in cipher feedback mode (NIST SP 800-38A §6.3) from an
// initial vector of zeros, as a TPM does it (Part 1 §11.4.6); every key is used
// once. The integrity is the HMAC's.
func cfb(key, plain []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	out := make([]byte, len(plain))
	var feedback [aes.BlockSize]byte
	for at := 0; at < len(plain); at += aes.BlockSize {
		var pad [aes.BlockSize]byte
		block.Encrypt(pad[:], feedback[:])
		for i := at; i < min(at+aes.BlockSize, len(plain)); i++ {
			out[i] = plain[i] ^ pad[i-at]
		}
		copy(feedback[:], out[at:])
	}
	return out, nil
}
