package lpmos

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// Secret is a value that is shown never: a password hash, a passphrase, a join
// token. Whatever prints, logs or encodes it gets "redacted"; only Reveal gives
// it away. It is read from JSON as text.
type Secret struct{ v *string } // fmt follows no pointer inside a struct, so %+v of an owner shows none

// NewSecret makes a Secret.
func NewSecret(v string) Secret { return Secret{&v} }

// Reveal is the value itself. Every call is a place to look at in a review.
func (s Secret) Reveal() string {
	if s.v == nil {
		return ""
	}
	return *s.v
}

// IsZero reports whether there is no value.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// Equal reports whether both have the same value.
func (s Secret) Equal(o Secret) bool { return s.Reveal() == o.Reveal() }

const redacted = "redacted"

// String hides the value from fmt.
func (s Secret) String() string { return redacted }

// GoString hides the value from %#v.
func (s Secret) GoString() string { return redacted }

// LogValue hides the value from log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the value from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText takes a value from outside.
func (s *Secret) UnmarshalText(b []byte) error {
	*s = NewSecret(string(b))
	return nil
}

// Limits of the secrets of one task.
const (
	MaxSecrets     = 32
	MaxSecretBytes = 4 << 10
)

// SecretDisk is the name of the passphrase of encrypted disks.
const SecretDisk = "disk-passphrase"

// checkPassphrase wants what can be typed at any console: a keyboard that knows
// no layout yet sends other bytes for letters beyond ASCII.
func checkPassphrase(s Secret) error {
	p := s.Reveal()
	if len(p) < 8 || len(p) > 512 || strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r > '~' }) {
		return &InvalidError{Field: "secrets." + SecretDisk, Problem: "is not a passphrase of 8 to 512 characters that any keyboard has (ASCII)"}
	}
	return nil
}

// PlannedSecret is what a plan says of a secret: that it is used, and which
// value, without the value. The salt of the commitment travels sealed with the
// value, so that a weak one cannot be found by trying.
type PlannedSecret struct {
	Name       string `json:"name"`
	Commitment string `json:"commitment"` // "sha256:…"
}

// SecretSet is the secrets of one task with their salts. It exists in memory
// and sealed, never otherwise.
type SecretSet struct {
	get func() map[string]saltedSecret
} // fmt follows no function

// LogValue hides the values from log/slog.
func (s SecretSet) LogValue() slog.Value { return slog.StringValue(redacted) }

// String hides the values from fmt.
func (s SecretSet) String() string { return redacted }

func (s SecretSet) values() map[string]saltedSecret {
	if s.get == nil {
		return nil
	}
	return s.get()
}

func secretSet(values map[string]saltedSecret) SecretSet {
	return SecretSet{func() map[string]saltedSecret { return values }}
}

// Empty reports whether there are none.
func (s SecretSet) Empty() bool { return len(s.values()) == 0 }

type saltedSecret struct {
	Salt  string `json:"salt"` // 64 hex digits
	Value string `json:"value"`
}

// NewSecretSet salts values. Names are those of ValidName.
func NewSecretSet(values map[string]Secret) (SecretSet, error) {
	set := map[string]saltedSecret{}
	if len(values) > MaxSecrets {
		return SecretSet{}, &InvalidError{Field: "secrets", Problem: fmt.Sprintf("holds more than %d", MaxSecrets)}
	}
	for name, s := range values {
		switch {
		case !ValidName(name):
			return SecretSet{}, &InvalidError{Field: "secrets", Problem: "has a name that is not one (lower-case letters, digits, dots, hyphens)", Value: name}
		case s.Reveal() == redacted:
			// Who encodes a Secret gets this word. As the passphrase of a disk it
			// would be one that everybody knows.
			return SecretSet{}, &InvalidError{Field: "secrets." + name, Problem: "is the word that stands for a secret, not one"}
		case s.IsZero() || len(s.Reveal()) > MaxSecretBytes:
			return SecretSet{}, &InvalidError{Field: "secrets." + name, Problem: "is empty or longer than 4 KiB"}
		case strings.HasPrefix(name, passwordSecret):
			if err := CheckPasswordHash(s.Reveal()); err != nil {
				return SecretSet{}, &InvalidError{Field: "secrets." + name, Problem: err.(*InvalidError).Problem}
			}
		}
		var salt [32]byte
		rand.Read(salt[:])
		set[name] = saltedSecret{hex.EncodeToString(salt[:]), s.Reveal()}
	}
	return secretSet(set), nil
}

// Planned is the commitments to all secrets of the set, by name.
func (s SecretSet) Planned() []PlannedSecret {
	var out []PlannedSecret
	for _, name := range slices.Sorted(maps.Keys(s.values())) {
		v := s.values()[name]
		out = append(out, PlannedSecret{name, DigestBytes([]byte("lpmos secret v1\n" + string(CanonicalJSON([]string{name, v.Salt, v.Value}))))})
	}
	return out
}

// Check gives the values if they are those the plan committed to, all of them
// and no others.
func (s SecretSet) Check(planned []PlannedSecret) (map[string]Secret, error) {
	if got := s.Planned(); !slices.Equal(got, planned) {
		return nil, &MismatchError{Problem: "the secrets that came are not those the plan was approved with"}
	}
	out := map[string]Secret{}
	for name, v := range s.values() {
		out[name] = NewSecret(v.Value)
	}
	return out, nil
}

// Expose is the set as bytes that are to be sealed at once.
func (s SecretSet) Expose() []byte {
	b, err := json.Marshal(s.values())
	if err != nil {
		panic(fmt.Sprintf("lpmos: encode secrets: %v", err))
	}
	return b
}

// ParseSecretSet reads what Expose gave.
func ParseSecretSet(b []byte) (SecretSet, error) {
	var values map[string]saltedSecret
	if err := json.Unmarshal(b, &values); err != nil {
		// The cause would quote what was read.
		return SecretSet{}, &InvalidError{Field: "secrets", Problem: "cannot be read"}
	}
	return secretSet(values), nil
}

// SealedSecrets is what is stored of a task's secrets: for the control plane
// alone, and, once an attempt may write, for that attempt's agent alone.
type SealedSecrets struct {
	TaskID   string     `json:"task_id"`
	AtRest   string     `json:"at_rest"` // under the control plane's key
	ForAgent *AgentSeal `json:"for_agent,omitempty"`
}

// AgentSeal is secrets that one boot of one machine can open.
type AgentSeal struct {
	Attempt  int    `json:"attempt"`
	AgentKey string `json:"agent_key"` // fingerprint of whom they are for
	Sealed   []byte `json:"sealed"`
}

// SecretContext is what a seal for an agent is bound to.
func SecretContext(taskID string, attempt int, planDigest string) string {
	return string(CanonicalJSON([]any{taskID, attempt, planDigest}))
}
