package api

import (
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

// AuditQuery selects entries of the audit. Fields left zero select everything;
// given ones must all hold.
type AuditQuery struct {
	By      string    // who, whole
	Action  string    // "user.create", or "user" for all of those
	Subject string    // a part of what it was done to
	After   time.Time // not before this moment
	Before  time.Time // and before this one
	Limit   int       // of the page; 0 means 100
	Cursor  int64     // AuditPage.Next of the page before, 0 for the first
}

// Matches reports whether an entry is selected.
func (q AuditQuery) Matches(e *lpmos.AuditEntry) bool {
	return (q.By == "" || e.By == q.By) &&
		(q.Action == "" || e.Action == q.Action || strings.HasPrefix(e.Action, q.Action+".")) &&
		strings.Contains(strings.ToLower(e.Subject), strings.ToLower(q.Subject)) &&
		(q.After.IsZero() || !e.At.Before(q.After)) && (q.Before.IsZero() || e.At.Before(q.Before))
}

// AuditPage is one part of an answer, newest first. It may hold fewer entries
// than were asked for, or none, and still not be the last: then much was looked
// through that does not match.
type AuditPage struct {
	Entries []lpmos.AuditEntry
	Next    int64            // the Cursor of the next page; 0 on the last
	Last    int64            // number of the newest entry there is
	Signed  *lpmos.AuditHead // the newest signed head; nil: none is
}
