package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"log/slog"
	"strings"

	"github.com/lpmos/lpmos"
)

// Token lets whoever has it enroll one region once. It says whom to trust on
// the way: the authority that the control plane's certificate must be of.
type Token struct {
	Region    string
	Secret    [32]byte
	Authority [sha256.Size]byte // fingerprint
}

const tokenPrefix = "lre_"

// NewToken makes a token with a fresh secret.
func NewToken(region string, authority *x509.Certificate) Token {
	t := Token{Region: region, Authority: Fingerprint(authority)}
	rand.Read(t.Secret[:])
	return t
}

// String is the token as it is pasted. LogValue keeps it out of logs.
func (t Token) String() string {
	e := base64.RawURLEncoding
	return tokenPrefix + t.Region + "." + e.EncodeToString(t.Secret[:]) + "." + e.EncodeToString(t.Authority[:])
}

// LogValue is not the token.
func (t Token) LogValue() slog.Value { return slog.StringValue("redacted") }

// Hash is what of the token is stored: the SHA-256 of its secret, in
// hexadecimal.
func (t Token) Hash() string {
	h := sha256.Sum256(t.Secret[:])
	return hex.EncodeToString(h[:])
}

// Pins reports whether c is the authority that the token names.
func (t Token) Pins(c *x509.Certificate) bool {
	f := Fingerprint(c)
	return subtle.ConstantTimeCompare(f[:], t.Authority[:]) == 1
}

// ParseToken takes a pasted token apart. The error shows nothing of it.
func ParseToken(s string) (t Token, err error) {
	bad := &lpmos.InvalidError{Field: "enroll-token", Problem: "is not one that `lpmos region enroll` printed: copy the whole line"}
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	parts := strings.Split(rest, ".")
	if !ok || len(parts) != 3 || !lpmos.ValidRegionID(parts[0]) {
		return t, bad
	}
	t.Region = parts[0]
	for i, into := range [][]byte{t.Secret[:], t.Authority[:]} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(parts[i+1])
		if err != nil || len(b) != len(into) {
			return Token{}, bad
		}
		copy(into, b)
	}
	return t, nil
}
