package lpmos

import (
	"encoding/hex"
	"strings"
)

// MAC is a 48-bit Ethernet address. Its zero value is not a valid address.
type MAC [6]byte

// ParseMAC reads an address in every usual spelling: 00:1a:2b:3c:4d:5e,
// 00-1A-2B-3C-4D-5E, 001a.2b3c.4d5e and 001a2b3c4d5e. Zero, multicast and
// broadcast addresses cannot belong to a machine and are refused, as is
// everything that is not 48 bits long.
func ParseMAC(s string) (MAC, error) {
	invalid := func(problem string) (MAC, error) {
		return MAC{}, &InvalidError{Field: "mac", Problem: problem, Value: s}
	}
	var digits string
	switch {
	case len(s) == 12:
		digits = s
	case len(s) == 14 && s[4] == '.' && s[9] == '.':
		digits = s[:4] + s[5:9] + s[10:]
	case len(s) == 17 && (s[2] == ':' || s[2] == '-') && strings.Count(s, s[2:3]) == 5:
		for i := 2; i < len(s); i += 3 {
			if s[i] != s[2] {
				return invalid("is not six pairs of hexadecimal digits")
			}
		}
		digits = strings.ReplaceAll(s, s[2:3], "")
	default:
		return invalid("is not six pairs of hexadecimal digits, such as 00:1a:2b:3c:4d:5e")
	}
	var m MAC
	if n, err := hex.Decode(m[:], []byte(digits)); err != nil || n != len(m) {
		return invalid("is not six pairs of hexadecimal digits, such as 00:1a:2b:3c:4d:5e")
	}
	if m == (MAC{}) {
		return invalid("is zero")
	}
	if m[0]&1 != 0 {
		return invalid("is a multicast or broadcast address, which no machine has as its own")
	}
	return m, nil
}

// MustMAC is ParseMAC for addresses known to be good; it panics on others.
func MustMAC(s string) MAC {
	m, err := ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// String spells the address as 00:1a:2b:3c:4d:5e.
func (m MAC) String() string {
	const digits = "0123456789abcdef"
	b := make([]byte, 0, 17)
	for i, v := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = append(b, digits[v>>4], digits[v&15])
	}
	return string(b)
}

// IsZero reports whether m is the zero value, that is, no address at all.
func (m MAC) IsZero() bool { return m == MAC{} }

// MarshalText spells the address as String does; the zero value is empty.
func (m MAC) MarshalText() ([]byte, error) {
	if m.IsZero() {
		return nil, nil
	}
	return []byte(m.String()), nil
}

// UnmarshalText accepts what ParseMAC accepts, and empty text as the zero value.
func (m *MAC) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*m = MAC{}
		return nil
	}
	p, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = p
	return nil
}
