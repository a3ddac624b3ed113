package tftpd

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
	"time"
)

// Opcodes (RFC 1350 §5, RFC 2347).
const (
	opRRQ   = 1
	opWRQ   = 2
	opDATA  = 3
	opACK   = 4
	opERROR = 5
	opOACK  = 6
)

// Error codes (RFC 1350 appendix I, RFC 2347).
const (
	errUndefined  = 0
	errNotFound   = 1
	errAccess     = 2
	errIllegal    = 4
	errUnknownTID = 5
	errOption     = 8 // "terminated due to option negotiation": how EDK2 ends a tsize probe
)

// Bounds of what is negotiated.
const (
	defaultBlock  = 512
	minBlock      = 8     // RFC 2348
	maxOffered    = 65464 // RFC 2348; more is no block size
	maxBlock      = 1468  // what fits into an Ethernet frame: firmware is bad at IP fragments
	maxWindow     = 16
	maxTimeout    = 5   // seconds; a client that is silent for twice that is given up (defaultTiming)
	maxRequestLen = 512 // RFC 2347 §2
	maxName       = 128
)

// request is a read request. Options that were absent or cannot be used are
// zero and are not acknowledged (RFC 2347).
type request struct {
	name    string
	block   int
	window  int
	timeout time.Duration
	size    bool // the client asks for the size (tsize)
}

// parseRequest reads the part of an RRQ after the opcode. ok is false when it is
// not one: a string without its zero byte, or a mode that is not octet.
func parseRequest(b []byte) (r request, ok bool) {
	var fields []string
	for len(b) > 0 {
		i := bytes.IndexByte(b, 0)
		if i < 0 {
			return r, false
		}
		fields = append(fields, string(b[:i]))
		b = b[i+1:]
	}
	if len(fields) < 2 || !strings.EqualFold(fields[1], "octet") {
		return r, false
	}
	r.name = fields[0]
	seen := map[string]bool{}
	for opts := fields[2:]; len(opts) >= 2; opts = opts[2:] {
		name := strings.ToLower(opts[0])
		if seen[name] {
			continue // RFC 2347: an option may be given once
		}
		seen[name] = true
		// ParseUint takes neither signs nor exponents.
		n, err := strconv.ParseUint(opts[1], 10, 31)
		if err != nil {
			continue
		}
		switch {
		case name == "blksize" && n >= minBlock && n <= maxOffered:
			r.block = min(int(n), maxBlock)
		case name == "windowsize" && n >= 1 && n <= 65535:
			r.window = min(int(n), maxWindow)
		case name == "timeout" && n >= 1 && n <= maxTimeout:
			r.timeout = time.Duration(n) * time.Second
		case name == "tsize":
			r.size = true
		}
	}
	return r, true
}

// oack acknowledges the options of r, or is nil when there are none.
func (r request) oack(size int64) []byte {
	b := []byte{0, opOACK}
	add := func(name string, n int64) {
		b = append(append(b, name...), 0)
		b = append(strconv.AppendInt(b, n, 10), 0)
	}
	if r.block > 0 {
		add("blksize", int64(r.block))
	}
	if r.window > 0 {
		add("windowsize", int64(r.window))
	}
	if r.timeout > 0 {
		add("timeout", int64(r.timeout/time.Second))
	}
	if r.size {
		add("tsize", size)
	}
	if len(b) == 2 {
		return nil
	}
	return b
}

func errorPacket(code uint16, message string) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, opERROR}, code)
	return append(append(b, message...), 0)
}

// cleanName returns the name to look up. One slash in front is what some
// firmware adds. Everything else that could be a path is refused.
func cleanName(s string) (string, bool) {
	s = strings.TrimPrefix(s, "/")
	if s == "" || len(s) > maxName || s[0] == '.' {
		return "", false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return "", false
		}
	}
	return s, true
}
