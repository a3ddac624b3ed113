package region

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
)

// NewFetchSecret makes what a region shows to a control plane to fetch blobs,
// and the hash of it, for Config.Fetcher. The region publishes the hash among
// its capabilities, where nobody else may write, so the two need not be told of
// each other by a person; what is believed is what etcd's rights guard.
func NewFetchSecret() (secret, hash string) {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	secret = "lpr_" + base64.RawURLEncoding.EncodeToString(b)
	sum := sha256.Sum256([]byte(secret))
	return secret, hex.EncodeToString(sum[:])
}
