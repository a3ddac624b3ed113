package agentserver

import (
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tpm"
)

// Limits on what an agent may claim; no server comes near them.
const (
	maxDisks      = 256 // as the agent's own bound
	maxNICs       = 1024
	maxPartitions = 128 // on one disk
	maxTextBytes  = 256
)

// cleanText makes foreign text fit to be shown: without control characters and
// without those that change the direction of what follows, on one line, and of
// at most n bytes.
func cleanText(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t', r == '\n', r == '\r':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r), r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, s)
	if len(s) <= n {
		return s
	}
	return lpmos.Shorten(s, n-len("…"))
}

// checkHardware bounds a report and cleans its text in place. Text that a
// digest covers cannot be altered behind the agent's back, or nothing would
// match what it sees: there it is an error.
func checkHardware(h *lpmos.Hardware) error {
	if h == nil {
		return &lpmos.InvalidError{Field: "hardware", Problem: "is missing"}
	}
	if h.BootMode != "bios" && h.BootMode != "uefi" {
		return &lpmos.InvalidError{Field: "hardware.boot_mode", Problem: "is neither bios nor uefi", Value: h.BootMode}
	}
	for _, n := range []struct {
		field    string
		got, max int
	}{{"hardware.disks", len(h.Disks), maxDisks}, {"hardware.nics", len(h.NICs), maxNICs}} {
		if n.got > n.max {
			return &lpmos.InvalidError{Field: n.field, Problem: fmt.Sprintf("holds more than %d", n.max)}
		}
	}
	for i, d := range h.Disks {
		if len(d.Content.Partitions) > maxPartitions {
			return &lpmos.InvalidError{Field: fmt.Sprintf("hardware.disks[%d].content.partitions", i), Problem: fmt.Sprintf("holds more than %d", maxPartitions)}
		}
		if d.SizeBytes < 0 || d.SectorBytes < 0 || d.PhysicalBytes < 0 {
			return &lpmos.InvalidError{Field: fmt.Sprintf("hardware.disks[%d]", i), Problem: "has a negative size"}
		}
	}
	if t := h.TPM; t != nil && t.Problem == "" {
		if err := (tpm.Identity{Endorsement: t.Endorsement, Activated: t.Companion}).Validate(); err != nil {
			return &lpmos.InvalidError{Field: "hardware.tpm", Problem: "is not one: " + err.Error()}
		}
	} else if t != nil && len(t.Endorsement)+len(t.Companion) > 0 {
		return &lpmos.InvalidError{Field: "hardware.tpm", Problem: "has a key and a problem"}
	}
	if h.Memory.TotalBytes < 0 || h.CPU.Sockets < 0 || h.CPU.Cores < 0 || h.CPU.Threads < 0 {
		return &lpmos.InvalidError{Field: "hardware", Problem: "counts less than nothing"}
	}
	digest, observed := h.Digest(), lpmos.DigestOf(lpmos.Observe(h))
	where := cleanValue(reflect.ValueOf(h).Elem(), "hardware")
	if where != "" && (h.Digest() != digest || lpmos.DigestOf(lpmos.Observe(h)) != observed) {
		return &lpmos.InvalidError{Field: where, Problem: "holds control characters or is longer than 256 bytes"}
	}
	return nil
}

// cleanValue cleans every string in v and names the last one it changed.
func cleanValue(v reflect.Value, path string) (changed string) {
	note := func(at string) {
		if at != "" {
			changed = at
		}
	}
	switch v.Kind() {
	case reflect.String:
		if c := cleanText(v.String(), maxTextBytes); c != v.String() {
			v.SetString(c)
			return path
		}
	case reflect.Pointer:
		if !v.IsNil() {
			return cleanValue(v.Elem(), path)
		}
	case reflect.Slice:
		for i := range v.Len() {
			note(cleanValue(v.Index(i), fmt.Sprintf("%s[%d]", path, i)))
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return ""
		}
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			note(cleanValue(v.Field(i), path+"."+name))
		}
	}
	return changed
}

// checkFailure bounds what an agent says went wrong.
func checkFailure(f *lpmos.Failure, attempt int) (*lpmos.Failure, error) {
	if f == nil || f.Code == "" || f.Cause == "" {
		return nil, &lpmos.InvalidError{Field: "failure", Problem: "needs a code and a cause when ok is false"}
	}
	if f.Stage != "" && !f.Stage.Valid() {
		return nil, &lpmos.InvalidError{Field: "failure.stage", Problem: "is not a stage", Value: string(f.Stage)}
	}
	return &lpmos.Failure{
		Stage: f.Stage, Code: cleanText(f.Code, 64), Cause: cleanText(f.Cause, lpmos.MaxMessageBytes),
		NextStep: cleanText(f.NextStep, lpmos.MaxMessageBytes), Evidence: cleanText(f.Evidence, 4<<10),
		Attempt: attempt, At: time.Now().UTC(), // the machine's clock may be anywhere
	}, nil
}

// checkReceipt bounds what an installed system says of itself.
func checkReceipt(r *lpmos.Receipt) error {
	if err := r.Check(); err != nil {
		return err
	}
	// Keys were held to their grammar; like a command line, they may be longer
	// than other text.
	keys, args := r.HostKeys, cleanText(r.KernelArgs, 2<<10)
	r.HostKeys = nil
	cleanValue(reflect.ValueOf(r).Elem(), "receipt")
	r.HostKeys, r.KernelArgs = keys, args
	return nil
}

// sameUUID reports whether two SMBIOS UUIDs may be of one machine. One that is
// missing, or that many machines have, says nothing.
func sameUUID(a, b string) bool {
	x, y := lpmos.CanonicalUUID(a), lpmos.CanonicalUUID(b)
	return x == "" || y == "" || x == y
}
