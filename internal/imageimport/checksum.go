package imageimport

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Sum is a digest that a file must have.
type Sum struct {
	Kind string // "sha256" or "sha512"
	Hex  string // lower case
}

func (s Sum) String() string { return s.Kind + ":" + s.Hex }

// ParseSum reads 64 or 128 hexadecimal digits.
func ParseSum(s string) (Sum, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	if _, err := hex.DecodeString(s); err != nil {
		return Sum{}, errors.New("is not hexadecimal")
	}
	switch len(s) {
	case 64:
		return Sum{"sha256", s}, nil
	case 128:
		return Sum{"sha512", s}, nil
	}
	return Sum{}, errors.New("is neither a SHA-256 (64 digits) nor a SHA-512 (128 digits)")
}

const maxChecksums = 4 << 20

// FindSum finds the digest of a file in a list of checksums. It reads the forms
// that distributions have: `digest  name` and `digest *name` (coreutils), `SHA256
// (name) = digest` (BSD; Rocky, AlmaLinux), and a file with one digest and
// nothing else (openSUSE). The text around a list that is signed in itself is
// passed over. Two different digests of the same kind for one name are an error.
func FindSum(list []byte, name string) (Sum, error) {
	var found Sum
	for line := range strings.Lines(string(list)) {
		line = strings.TrimSpace(line)
		digest, file, ok := sumLine(line)
		if !ok || file != name {
			continue
		}
		s, err := ParseSum(digest)
		if err != nil {
			continue // MD5 or SHA-1: worth nothing
		}
		switch {
		case found.Kind == s.Kind && found != s:
			return Sum{}, fmt.Errorf("the list has two different digests of %q", name)
		case found.Kind != "sha512": // the stronger one counts
			found = s
		}
	}
	if found.Hex != "" {
		return found, nil
	}
	if f := strings.Fields(string(list)); len(f) == 1 {
		if s, err := ParseSum(f[0]); err == nil {
			return s, nil
		}
	}
	return Sum{}, fmt.Errorf("the list has no SHA-256 or SHA-512 of %q", name)
}

var bsdSumRE = regexp.MustCompile(`^SHA(?:256|512) \((.+)\) ?= ?([0-9A-Fa-f]+)$`)

func sumLine(line string) (digest, file string, ok bool) {
	if m := bsdSumRE.FindStringSubmatch(line); m != nil {
		return m[2], m[1], true
	}
	digest, file, ok = strings.Cut(line, " ")
	file = strings.TrimPrefix(strings.TrimLeft(file, " "), "*")
	return digest, strings.TrimPrefix(file, "./"), ok && file != ""
}

// signature checks that data was signed by a key of the keyring and says whose
// it is. sig is nil for a text that is signed in itself, whose own text is
// returned. It asks gpgv, which trusts the keyring it is given and no other, and
// reads neither a home directory nor the network.
func signature(ctx context.Context, dir string, data, sig []byte, keyring string) (text []byte, signer string, err error) {
	gpgv, err := exec.LookPath("/usr/bin/gpgv")
	if err != nil {
		return nil, "", fmt.Errorf("verify signature: %w (install the package gpgv)", err)
	}
	if keyring, err = filepath.Abs(keyring); err != nil {
		return nil, "", fmt.Errorf("verify signature: %w", err)
	}
	if _, err := os.Stat(keyring); err != nil {
		return nil, "", fmt.Errorf("verify signature: open keyring: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, "signature-*")
	if err != nil {
		return nil, "", fmt.Errorf("verify signature: %w", err)
	}
	defer os.RemoveAll(tmp)
	ring, err := dearmored(keyring, tmp)
	if err != nil {
		return nil, "", fmt.Errorf("verify signature: %w", err)
	}
	args := []string{"--status-fd", "1", "--homedir", tmp, "--keyring", ring}
	write := func(name string, b []byte) string {
		p := filepath.Join(tmp, name)
		if werr := os.WriteFile(p, b, 0o600); werr != nil && err == nil {
			err = werr
		}
		return p
	}
	if sig == nil {
		args = append(args, "--output", filepath.Join(tmp, "text"), write("signed", data))
	} else {
		args = append(args, write("sig", sig), write("data", data))
	}
	if err != nil {
		return nil, "", fmt.Errorf("verify signature: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, gpgv, args...)
	cmd.Env = []string{"LC_ALL=C"}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	runErr := cmd.Run()
	signer = validSigner(out.String())
	if runErr != nil || signer == "" {
		why := lastLine(said.String())
		if strings.Contains(out.String(), "NO_PUBKEY") {
			why = "its key is not in the keyring"
		}
		return nil, "", fmt.Errorf("the signature is not good: %s", quoteOr(why, "gpgv found no valid signature"))
	}
	if sig != nil {
		return data, signer, nil
	}
	text, err = os.ReadFile(filepath.Join(tmp, "text"))
	if err != nil {
		return nil, "", fmt.Errorf("verify signature: %w", err)
	}
	return text, signer, nil
}

// validSigner reads gpgv's status lines: GOODSIG with the key's name, VALIDSIG
// with its fingerprint. A signature of an expired or revoked key has no GOODSIG.
func validSigner(status string) string {
	var name, print string
	for line := range strings.Lines(status) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if len(f) < 3 || f[0] != "[GNUPG:]" {
			continue
		}
		switch f[1] {
		case "GOODSIG":
			if len(f) == 4 {
				name = f[3]
			}
		case "VALIDSIG":
			print = f[2]
		}
	}
	if name == "" || print == "" {
		return ""
	}
	return print + " " + name
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func quoteOr(s, other string) string {
	if s == "" {
		return other
	}
	if len(s) > 200 {
		s = s[:200]
	}
	return s
}

// dearmored gives a keyring in the binary form that gpgv wants: most keys are
// published in armour (RFC 9580, 6.2).
func dearmored(keyring, dir string) (string, error) {
	b, err := os.ReadFile(keyring)
	if err != nil {
		return "", err
	}
	if len(b) > maxChecksums {
		return "", errors.New("the keyring is larger than 4 MiB")
	}
	if !bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN PGP")) {
		return keyring, nil
	}
	raw, err := unarmor(b)
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "keyring.gpg")
	return out, os.WriteFile(out, raw, 0o600)
}
