// Package httprange reads what a server says of the range it sends (RFC 9110,
// section 14.4).
package httprange

import (
	"strconv"
	"strings"
)

// Content reads a Content-Range header, such as "bytes 10-99/100": where the bytes
// that come begin, and how many the whole has, -1 if the server does not say ("*").
// It is not ok for what is no range of bytes, or none within the whole.
func Content(header string) (from, total int64, ok bool) {
	header, ok = strings.CutPrefix(header, "bytes ")
	span, whole, ok2 := strings.Cut(header, "/")
	first, last, ok3 := strings.Cut(span, "-")
	from, ok4 := number(first)
	to, ok5 := number(last)
	total, ok6 := int64(-1), true
	if whole != "*" {
		total, ok6 = number(whole)
	}
	if !ok || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || from > to || total >= 0 && to >= total {
		return 0, 0, false
	}
	return from, total, true
}

// number reads digits, and no sign.
func number(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil
}
