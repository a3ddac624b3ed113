package lpmos

import (
	"errors"
	"fmt"
)

// ErrNotFound is wrapped by errors about a task, image, region or machine that
// does not exist.
var ErrNotFound = errors.New("not found")

// ErrConflict is wrapped by errors about a request that was well formed but
// lost: the state it was based on is no longer so.
var ErrConflict = errors.New("conflict")

// ErrChanged is wrapped by errors about a write that named the version it was
// based on, when that is not the newest: read again, and decide anew.
var ErrChanged = errors.New("changed meanwhile")

// ErrUnavailable is wrapped by errors that will pass by themselves: the store
// has no quorum, a region is not in sync. The same request may be repeated.
var ErrUnavailable = errors.New("unavailable")

// ErrSignedOut is wrapped by errors about a request of nobody: there was no
// credential, or it is one no longer.
var ErrSignedOut = errors.New("not signed in")

// ErrForbidden is wrapped by errors about what somebody known may not do.
var ErrForbidden = errors.New("not allowed")

// InvalidError says that a value given from outside cannot be accepted,
// whatever the state of the system is.
type InvalidError struct {
	Field   string // JSON name of the field, "" for the whole body
	Problem string // what is wrong, a verb phrase: "is not a region id"
	Value   string // as given; shortened by Error
}

func (e *InvalidError) Error() string {
	s := e.Problem
	if e.Field != "" {
		s = e.Field + " " + s
	}
	if e.Value != "" {
		s += fmt.Sprintf(" (got %q)", Shorten(e.Value, 64))
	}
	return s
}

// ConflictError is an ErrConflict with a sentence for the person who lost.
type ConflictError struct {
	Problem string // "the task is installing; erasing has begun"
	Status  Status // of the task now, when the conflict is about one
}

func (e *ConflictError) Error() string        { return e.Problem }
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// Shorten cuts s to at most n bytes at a rune boundary and marks the cut.
func Shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n] + "…"
}
