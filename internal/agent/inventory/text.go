package inventory

import (
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// maxText bounds every string of the inventory, in bytes.
const maxText = 256

// Clean makes text from hardware and disks fit to be shown, logged and
// compared: valid UTF-8 without control, formatting (such as bidirectional
// override) and unassigned characters, runs of white space as one space,
// trimmed, at most 256 bytes. It is idempotent.
func Clean(s string) string {
	// Vendors pad with NUL and with 0xFF of erased flash.
	var b strings.Builder
	space := false
	for _, r := range s {
		switch {
		case r == ' ' || r == '\t' || r == '\n' || r == '\r' || r == 0 || unicode.IsSpace(r):
			space = b.Len() > 0
			continue
		case r == utf8.RuneError || !unicode.IsPrint(r):
			continue
		}
		n := utf8.RuneLen(r)
		if space {
			n++
		}
		if b.Len()+n > maxText {
			break
		}
		if space {
			b.WriteByte(' ')
			space = false
		}
		b.WriteRune(r)
		if b.Len() == maxText {
			break
		}
	}
	return b.String()
}

// placeholders is what firmware says when its vendor said nothing.
var placeholders = map[string]bool{
	"none": true, "null": true, "n/a": true, "na": true, "unknown": true, "default string": true, "default": true,
	"not specified": true, "not applicable": true, "not available": true, "not present": true, "not provided": true,
	"to be filled by o.e.m.": true, "to be filled by oem": true, "o.e.m.": true, "oem": true, "empty": true, "invalid": true,
	"system serial number": true, "system product name": true, "system manufacturer": true, "system version": true,
	"base board serial number": true, "chassis serial number": true, "asset tag": true, "no asset tag": true,
	"serial number": true, "123456789": true, "0123456789": true, "1234567890": true,
}

// fact is Clean without placeholders: a value that many machines share must
// not be taken for a name of one of them.
func fact(s string) string {
	s = Clean(s)
	if placeholders[strings.ToLower(s)] || strings.Trim(s, "0") == "" || strings.Trim(s, "xX.-_ ") == "" || s == "0x00000000" {
		return ""
	}
	return s
}

// ucs2 decodes little-endian UTF-16 up to the first NUL.
func ucs2(b []byte) string {
	u := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		c := uint16(b[i]) | uint16(b[i+1])<<8
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return Clean(string(utf16.Decode(u)))
}

// cstring decodes bytes up to the first NUL.
func cstring(b []byte) string {
	for i, c := range b {
		if c == 0 {
			b = b[:i]
			break
		}
	}
	return Clean(string(b))
}
