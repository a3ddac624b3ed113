package imageimport

import (
	"encoding/base64"
	"errors"
	"strings"
)

// unarmor joins all blocks of ASCII armour in b (RFC 9580, 6.2). Checksums of
// the blocks are passed over: what is in them is verified otherwise.
func unarmor(b []byte) ([]byte, error) {
	var out []byte
	inside, body := false, false
	var text strings.Builder
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "-----BEGIN PGP"):
			inside, body = true, false
			text.Reset()
		case strings.HasPrefix(line, "-----END PGP") && inside:
			raw, err := base64.StdEncoding.DecodeString(text.String())
			if err != nil {
				return nil, errors.New("the keyring's armour is damaged")
			}
			out, inside = append(out, raw...), false
		case !inside:
		case line == "" && !body:
			body = true
		case body && !strings.HasPrefix(line, "="):
			text.WriteString(line)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the keyring holds no key")
	}
	return out, nil
}
