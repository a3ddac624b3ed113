package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/lpmos/lpmos"
)

// cost is what argon2id (RFC 9106) is to take for one password.
type cost struct {
	memoryKiB, passes uint32
	lanes             uint8
}

// usualCost takes about 70 ms of one core of 2024.
var usualCost = cost{memoryKiB: 32 << 10, passes: 3, lanes: 1}

const (
	saltBytes = 16
	keyBytes  = 32
	// hashers bounds how many passwords are looked at at once, with their memory.
	hashers    = 2
	hasherWait = 10 * time.Second
)

var base = base64.RawStdEncoding

// hasher makes and compares password hashes in the PHC string format.
type hasher struct {
	cost  cost
	turns chan struct{}
	dummy string // compared with where there is no user, so that both take as long; nobody's password
}

func newHasher(c cost) *hasher {
	h := &hasher{cost: c, turns: make(chan struct{}, hashers)}
	h.dummy = c.encode(make([]byte, saltBytes), make([]byte, keyBytes))
	return h
}

// key derives the key of a password. Its 32 MiB go back to the system at once:
// they are more than the rest of a small site needs.
func (c cost) key(password, salt []byte, n int) []byte {
	defer debug.FreeOSMemory()
	return argon2.IDKey(password, salt, c.passes, c.memoryKiB, c.lanes, uint32(n))
}

func (c cost) encode(salt, key []byte) string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, c.memoryKiB, c.passes, c.lanes, base.EncodeToString(salt), base.EncodeToString(key))
}

// turn waits until a password may be looked at.
func (h *hasher) turn(ctx context.Context) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, hasherWait)
	defer cancel()
	select {
	case h.turns <- struct{}{}:
		return func() { <-h.turns }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: too many people sign in at this moment; try again", lpmos.ErrUnavailable)
	}
}

// hash makes the hash of a password.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	done, err := h.turn(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // never fails
	return h.cost.encode(salt, h.cost.key([]byte(password), salt, keyBytes)), nil
}

// matches reports whether a password is the one of a hash. No hash ("") is
// nobody's password, and takes as long.
func (h *hasher) matches(ctx context.Context, hash, password string) (bool, error) {
	done, err := h.turn(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	real := hash != ""
	if !real {
		hash = h.dummy
	}
	c, salt, want, err := parseHash(hash)
	if err != nil {
		return false, err
	}
	got := c.key([]byte(password), salt, len(want))
	return subtle.ConstantTimeCompare(got, want) == 1 && real, nil
}

var errHash = errors.New("a stored password hash cannot be read: give this user a new one-time password")

// parseHash reads a PHC string. What asks for more than we would ever make is
// refused: the store could be used to fill the memory.
func parseHash(s string) (c cost, salt, key []byte, err error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return c, nil, nil, errHash
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &c.memoryKiB, &c.passes, &c.lanes); err != nil {
		return c, nil, nil, errHash
	}
	salt, err1 := base.DecodeString(parts[4])
	key, err2 := base.DecodeString(parts[5])
	if err1 != nil || err2 != nil || c.memoryKiB == 0 || c.memoryKiB > 256<<10 || c.passes == 0 || c.passes > 16 || c.lanes == 0 || len(salt) < 8 || len(key) < 16 || len(key) > 64 {
		return c, nil, nil, errHash
	}
	return c, salt, key, nil
}
