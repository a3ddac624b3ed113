// Package vault seals secrets at rest: whoever reads the store or a copy of it
// sees ciphertext (AES-256-GCM, NIST SP 800-38D). The key is derived from the
// control plane's signing key (HKDF-SHA-256, RFC 5869), which is in a file and
// never in the store; replicas that share the signing key share the vault.
//
// A Vault may be used concurrently.
package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/lpmos/lpmos"
)

// Vault seals and opens.
type Vault struct {
	aead  cipher.AEAD
	keyID string
}

const version = "v1"

// New makes the vault that belongs to a signing key.
func New(key ed25519.PrivateKey) (*Vault, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("make vault: there is no signing key")
	}
	k, err := hkdf.Key(sha256.New, key.Seed(), nil, "lpmos secrets at rest "+version, 32)
	if err != nil {
		return nil, fmt.Errorf("make vault: %w", err)
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, fmt.Errorf("make vault: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("make vault: %w", err)
	}
	id := sha256.Sum256(append([]byte("lpmos vault key id\n"), k...))
	return &Vault{aead: aead, keyID: hex.EncodeToString(id[:8])}, nil
}

// Seal closes a value for one purpose: "v1.<key id>.<base64>". The same value
// gives another text every time. Purpose says where the text stands ("profile
// web", "task …"), so that it opens nowhere else.
func (v *Vault) Seal(purpose string, value []byte) string {
	return version + "." + v.keyID + "." + base64.RawURLEncoding.EncodeToString(v.aead.Seal(nil, nil, value, []byte(purpose)))
}

// Open opens what Seal closed for the same purpose. The error quotes nothing.
func (v *Vault) Open(purpose, sealed string) ([]byte, error) {
	ver, rest, _ := strings.Cut(sealed, ".")
	id, text, ok := strings.Cut(rest, ".")
	if !ok || ver != version {
		return nil, &lpmos.InvalidError{Field: "sealed", Problem: "is not of this version's form"}
	}
	if id != v.keyID {
		return nil, fmt.Errorf("open secret: it was sealed with another signing key (key %q, ours is %q): restore that key, or give the secret anew", lpmos.Shorten(id, 16), v.keyID)
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, &lpmos.InvalidError{Field: "sealed", Problem: "is not base64"}
	}
	b, err := v.aead.Open(nil, nil, raw, []byte(purpose))
	if err != nil {
		return nil, errors.New("open secret: it was altered, or belongs elsewhere")
	}
	return b, nil
}

// SealProfile closes the password hashes of a profile.
func (v *Vault) SealProfile(name string, set lpmos.SecretSet) string {
	return v.Seal("profile "+name, set.Expose())
}

// OpenProfile opens the password hashes of a profile, by the names of their
// secrets; there are none in "".
func (v *Vault) OpenProfile(name, sealed string) (map[string]lpmos.Secret, error) {
	if sealed == "" {
		return nil, nil
	}
	b, err := v.Open("profile "+name, sealed)
	if err != nil {
		return nil, err
	}
	set, err := lpmos.ParseSecretSet(b)
	if err != nil {
		return nil, err
	}
	return set.Check(set.Planned())
}

// SealTask closes a task's secrets.
func (v *Vault) SealTask(taskID string, set lpmos.SecretSet) string {
	return v.Seal("task "+taskID, set.Expose())
}

// OpenTask opens a task's secrets.
func (v *Vault) OpenTask(taskID, sealed string) (lpmos.SecretSet, error) {
	b, err := v.Open("task "+taskID, sealed)
	if err != nil {
		return lpmos.SecretSet{}, err
	}
	return lpmos.ParseSecretSet(b)
}
