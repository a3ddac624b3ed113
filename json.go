package lpmos

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxJSONDepth is how deep DecodeJSON lets arrays and objects nest.
const MaxJSONDepth = 20

// DecodeJSON reads exactly one JSON value from r into v and is strict where
// encoding/json is lenient: object names must match a field exactly (also in
// case), appear once and be known; text must be valid UTF-8; nothing may
// follow; at most limit bytes and MaxJSONDepth levels are read. What it refuses
// comes back as an *InvalidError, or as ErrTooLarge.
func DecodeJSON(r io.Reader, limit int64, v any) error {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	if int64(len(b)) > limit {
		return fmt.Errorf("%w: more than %s", ErrTooLarge, FormatBytes(limit))
	}
	return UnmarshalJSON(b, v)
}

// ErrTooLarge is wrapped by DecodeJSON when the input is over its limit.
var ErrTooLarge = fmt.Errorf("body too large")

// UnmarshalJSON is DecodeJSON for bytes already in memory.
func UnmarshalJSON(b []byte, v any) error {
	if !utf8.Valid(b) {
		return &InvalidError{Problem: "the body is not valid UTF-8"}
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := checkValue(d, reflect.TypeOf(v), "", 0); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return &InvalidError{Problem: "something follows the JSON value"}
	}
	if err := json.Unmarshal(b, v); err != nil {
		return jsonProblem(err)
	}
	return nil
}

func jsonProblem(err error) error {
	switch e := err.(type) {
	case *json.UnmarshalTypeError:
		return &InvalidError{Field: e.Field, Problem: "cannot be a " + e.Value}
	case *json.SyntaxError:
		return &InvalidError{Problem: fmt.Sprintf("the body is not JSON: %v at byte %d", e, e.Offset)}
	case *InvalidError:
		return e
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return &InvalidError{Problem: "the body is not JSON: it ends too early"}
	}
	return &InvalidError{Problem: "the body is not as expected: " + err.Error()}
}

// checkValue walks one value beside the Go type it is meant for. t is nil where
// anything may stand (interfaces, types that unmarshal themselves).
func checkValue(d *json.Decoder, t reflect.Type, path string, depth int) error {
	tok, err := d.Token()
	if err != nil {
		return jsonProblem(err)
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	if depth >= MaxJSONDepth {
		return &InvalidError{Field: path, Problem: fmt.Sprintf("nests deeper than %d levels", MaxJSONDepth)}
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && (t.Kind() == reflect.Interface || reflect.PointerTo(t).Implements(unmarshalerType)) {
		t = nil
	}
	if delim == '[' {
		var elem reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			elem = t.Elem()
		}
		for i := 0; d.More(); i++ {
			if err := checkValue(d, elem, fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
				return err
			}
		}
	} else {
		seen := map[string]bool{}
		for d.More() {
			tok, err := d.Token()
			if err != nil {
				return jsonProblem(err)
			}
			name := tok.(string)
			at := name
			if path != "" {
				at = path + "." + name
			}
			if seen[name] {
				return &InvalidError{Field: at, Problem: "is given twice"}
			}
			seen[name] = true
			var next reflect.Type
			if t != nil {
				switch t.Kind() {
				case reflect.Struct:
					f, ok := fieldByJSONName(t, name)
					if !ok {
						return &InvalidError{Field: at, Problem: "is not a field this version knows"}
					}
					next = f
				case reflect.Map:
					next = t.Elem()
				}
			}
			if err := checkValue(d, next, at, depth+1); err != nil {
				return err
			}
		}
	}
	if _, err := d.Token(); err != nil { // the closing bracket
		return jsonProblem(err)
	}
	return nil
}

var unmarshalerType = reflect.TypeFor[json.Unmarshaler]()

func fieldByJSONName(t reflect.Type, name string) (reflect.Type, bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && tag == "" {
			e := f.Type
			if e.Kind() == reflect.Pointer {
				e = e.Elem()
			}
			if e.Kind() == reflect.Struct {
				if ft, ok := fieldByJSONName(e, name); ok {
					return ft, true
				}
			}
			continue
		}
		if !f.IsExported() || tag == "-" {
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		if tag == name {
			return f.Type, true
		}
	}
	return nil, false
}

// CanonicalJSON encodes v with object names sorted, no insignificant white
// space and no HTML escaping, so that equal values give equal bytes whatever
// the order of their fields (RFC 8785 for the strings, integers and booleans
// that LPMOS signs; it has no fractions).
func CanonicalJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("lpmos: canonical JSON of %T: %v", v, err))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var generic any
	if err := d.Decode(&generic); err != nil {
		panic(fmt.Sprintf("lpmos: canonical JSON of %T: %v", v, err))
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(generic); err != nil { // maps are encoded with sorted keys
		panic(fmt.Sprintf("lpmos: canonical JSON of %T: %v", v, err))
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}

// DigestOf is "sha256:" and the hexadecimal SHA-256 of v's canonical JSON.
func DigestOf(v any) string { return DigestBytes(CanonicalJSON(v)) }

// DigestBytes is "sha256:" and the hexadecimal SHA-256 of b.
func DigestBytes(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ValidDigest reports whether s is 64 lower-case hexadecimal digits, the form
// in which blobs are named.
func ValidDigest(s string) bool {
	if len(s) != 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// TrimDigest takes "sha256:…" or the bare digits and returns the digits.
func TrimDigest(s string) (string, error) {
	d := strings.TrimPrefix(s, "sha256:")
	if !ValidDigest(d) {
		return "", &InvalidError{Field: "digest", Problem: "is not sha256: and 64 hexadecimal digits", Value: s}
	}
	return d, nil
}

// FormatDuration spells how long something took or may take in its largest whole
// unit: "41 s", "15 min", "3 h", and from two days on "2 days".
func FormatDuration(d time.Duration) string {
	for _, u := range []struct {
		less, unit time.Duration
		name       string
	}{{time.Minute, time.Second, "s"}, {time.Hour, time.Minute, "min"}, {48 * time.Hour, time.Hour, "h"}} {
		if d < u.less {
			return fmt.Sprintf("%d %s", max(d, 0)/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// FormatBytes spells a size as people read it on a disk's label: decimal
// units, "960 GB". From a terabyte on three digits are kept, because "7.68 TB"
// and "7.7 TB" are two products.
func FormatBytes(n int64) string {
	switch {
	case n < 0:
		return "unknown"
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), ""
	for _, unit = range []string{"kB", "MB", "GB", "TB", "PB"} {
		f /= 1000
		if f < 999.5 {
			break
		}
	}
	digits := 0
	large := unit == "TB" || unit == "PB"
	switch {
	case large && f < 9.995:
		digits = 2
	case large && f < 99.95, f < 9.95:
		digits = 1
	}
	text := strconv.FormatFloat(f, 'f', digits, 64)
	if digits > 0 {
		text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
	}
	return text + " " + unit
}
