// Package api holds the questions and decisions that the parts of the control
// plane put to each other: web and rest ask them, the read model and the
// orchestrator answer. It holds types only; its rules are contract.md §§3–4.
package api

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

// Query selects tasks. Fields left zero select everything; given ones must all
// hold.
type Query struct {
	Statuses []lpmos.Status // any of these
	RegionID string
	Within   []string     // what who asks may see; nil: everywhere, empty: nothing
	Filter   query.Filter // what was typed, see query.Parse
	Sort     Sort         // zero: newest first
	Limit    int          // of tasks in the page; 0 means 100
	Offset   int          // tasks passed over, counted from Cursor
	Cursor   string       // NextCursor of the page before, "" for the first
	Groups   bool         // count them too; every task is looked at for that
}

// Page is one part of an answer to a Query.
type Page struct {
	Tasks      []lpmos.Task // without hardware, plan and log, which are large
	Rows       []Summary    // of Tasks, one each: what a row shows of hardware and plan
	Total      int          // all that match, not only this page
	NextCursor string       // "" on the last page
	Rev        int64        // of the store: every change up to it is in the answer
	Groups     *Groups      // if asked for
}

// Groups counts what matches a query, whatever part of it the page shows.
type Groups struct {
	// Status is counted as if the query said nothing about the status, so that
	// a person sees how many there are in the other views.
	Status map[lpmos.Status]int
	Region map[string]int
	OS     map[string]int // by os_type
}

// Summary is what a row of a list shows of a task's hardware and plan.
type Summary struct {
	Serial       string // of the machine, "" before it reported
	Manufacturer string
	Model        string // the product's name
	// Of the plan. Planned is false before there is one, and once the task has
	// ended, when it no longer matters; the others are then zero.
	Planned bool
	Problem string              // why the plan cannot be carried out
	Target  *lpmos.ObservedDisk // the disk that is erased and what is on it
	ETA     *ETA                // of an install that runs; nil when nothing is known
}

// ETA is what earlier runs of the same kind say about a task. The zero value of
// nothing is a nil *ETA: unknown stays unknown.
type ETA struct {
	Basis string // what was alike: "image" or "image and model"
	Runs  int    // that were looked at
	// Expected is the median of how long such a run takes, from the permit to
	// the call home.
	Expected time.Duration
	Elapsed  time.Duration // since the permit; 0 before it
	Left     time.Duration // 0 once the task has ended
	// FasterThan is the share of those runs, in percent, that had taken longer
	// to come to where this task stands; -1 before there is anything to compare.
	FasterThan int
}

// Of the speed of a running install one figure is kept for each TrendEvery, and
// so many of them.
const (
	TrendEvery  = 10 * time.Second
	TrendLength = 30
)

// PaceHours is how far Pace looks back.
const PaceHours = 24

// Pace is how many installs got done in the last hours, and how fast.
type Pace struct {
	Hours          [PaceHours]int // completed in each, the last one newest
	Completed      int
	First          int           // of them, at their first attempt
	Half           time.Duration // half of them took less, from the permit to the call home; 0 when not known
	BytesPerSecond int64         // that running installs download now
}

// Sort is how a list is ordered. Equal ones stand newest first.
type Sort struct {
	By   string // one of Sorts, "" for the zero Sort
	Desc bool
}

// Sorts are what a list can be ordered by.
var Sorts = []string{"created", "updated", "status", "host", "region", "os", "progress"}

// ParseSort reads "host" or, descending, "-host"; "" is the zero Sort.
func ParseSort(s string) (Sort, error) {
	by, desc := strings.CutPrefix(s, "-")
	if s != "" && !slices.Contains(Sorts, by) {
		return Sort{}, &lpmos.InvalidError{Field: "sort", Problem: "is none of " + strings.Join(Sorts, ", ") + `, with "-" before it for descending`, Value: s}
	}
	return Sort{by, desc}, nil
}

// String spells s as ParseSort reads it.
func (s Sort) String() string {
	if s.Desc {
		return "-" + s.By
	}
	return s.By
}

// Warnings is how long a task may stand still in a status before a person
// should look: long before its deadline passes.
var Warnings = map[lpmos.Status]time.Duration{
	lpmos.Pending:          20 * time.Minute, // a server's own start takes up to ten
	lpmos.AwaitingApproval: time.Hour,
	lpmos.Approved:         15 * time.Minute,
	lpmos.Installing:       5 * time.Minute, // without any progress
	lpmos.Verifying:        15 * time.Minute,
}

// Decision is what a person decides about a plan.
type Decision struct {
	Approved   bool
	Notes      string
	PlanDigest string // of the plan that was shown; "" only where nothing that was found is erased
	SerialEnd  string // what was typed for SerialEnds of the plan, where data was found
	// AgentKey is the fingerprint whose words the person compared with the
	// machine's console, "" if they did not. The approval is then for the boot
	// with this key alone.
	AgentKey string
	// Approver is what is known of who decides; whoever asks cannot say it.
	Approver Approver
}

// Approver is how somebody who decides showed who they are.
type Approver struct {
	User     bool      // a user, and not a program of this host or anybody without a login
	Token    bool      // by an API token
	ProvedAt time.Time // when they last proved who they are, zero if they did not
}

// ReauthError says that a policy wants who approves to prove who they are once
// more; nothing was approved. It is an lpmos.ErrForbidden.
type ReauthError struct {
	Minutes int  // how old the proof may be
	Token   bool // an API token asked, which the policy does not take instead
}

func (e *ReauthError) Error() string {
	if e.Token {
		return "to approve this, the policy asks for the password: an API token alone is not enough; send the password with the approval (lpmos task approve asks for it), or approve in the browser; nothing was approved"
	}
	return fmt.Sprintf("to approve this, the policy asks who you are every %d minutes: send your password with the approval, or sign in again; nothing was approved", e.Minutes)
}

// Is makes a ReauthError an lpmos.ErrForbidden.
func (e *ReauthError) Is(target error) bool { return target == lpmos.ErrForbidden }

// BarError says that an approval policy wants somebody else to approve; nothing
// was approved. It is an lpmos.ErrForbidden.
type BarError struct {
	Bar   lpmos.ApprovalBar
	By    string // who wanted to
	Needs lpmos.ApprovalNeeds
	Given []lpmos.Consent // so far
}

func (e *BarError) Error() string {
	switch e.Bar {
	case lpmos.BarCreator:
		return e.By + " asked for this task, and the policy wants somebody else to approve it: ask another approver; nothing was approved"
	case lpmos.BarGiven:
		return fmt.Sprintf("%s approved this plan already (%s): another approver has to agree", e.By, Given(e.Needs, e.Given))
	}
	return "the policy wants people to approve this, and " + e.By + " is no user: sign in as one; nothing was approved"
}

// Is makes a BarError an lpmos.ErrForbidden.
func (e *BarError) Is(target error) bool { return target == lpmos.ErrForbidden }

// Given says how far an approval by several has come: "1 of 2 approvals: anna".
func Given(n lpmos.ApprovalNeeds, given []lpmos.Consent) string {
	var names []string
	for _, c := range given {
		names = append(names, c.By)
	}
	s := fmt.Sprintf("%d of %d approvals", len(given), max(n.Approvers, len(given)))
	if len(names) > 0 {
		s += ": " + strings.Join(names, ", ")
	}
	return s
}

// SerialEnd is what an approver types to show that the right disk is meant:
// the last four characters of its serial number, or of the WWN or the path if
// it has no serial number. Compare it with strings.EqualFold.
func SerialEnd(d lpmos.DiskRef) string {
	s := d.Serial
	if s == "" {
		s = d.WWN
	}
	if s == "" {
		s = d.Path
	}
	s = strings.TrimSpace(s)
	if len(s) > 4 {
		s = s[len(s)-4:]
	}
	return s
}

// SerialEnds are those that an approver types for a plan: of each disk that is
// erased although data was found on it, or of the target when there is none.
func SerialEnds(p *lpmos.Plan) []string {
	var out []string
	for _, d := range p.Erased() {
		out = append(out, SerialEnd(d.Disk))
	}
	if len(out) == 0 {
		out = append(out, SerialEnd(p.Effect.Target))
	}
	return out
}

// SerialEndsMatch reports whether typed is SerialEnds of p, in any order, with
// blanks or commas between them.
func SerialEndsMatch(p *lpmos.Plan, typed string) bool {
	want := SerialEnds(p)
	got := []string{strings.TrimSpace(typed)}
	if len(want) > 1 {
		got = strings.FieldsFunc(typed, func(r rune) bool { return r == ',' || r == ' ' })
	}
	fold := func(all []string) []string {
		out := make([]string, len(all))
		for i, s := range all {
			out[i] = strings.ToLower(s)
		}
		slices.Sort(out)
		return out
	}
	return slices.Equal(fold(got), fold(want))
}

// MachineQuery selects machines, by MAC. Fields left zero select everything.
type MachineQuery struct {
	// Text is words that must all hold: free text, or region:, state:, model:,
	// serial:, mac:, host: and what it is to contain; "-" or "!" before a word
	// turns it round.
	Text     string
	RegionID string
	Within   []string // as in Query
	State    lpmos.MachineState
	Limit    int    // 0 means 100
	Cursor   string // NextCursor of the page before
}

// MachinePage is one part of an answer to a MachineQuery. Counts is of all that
// match but for State.
type MachinePage struct {
	Machines   []lpmos.Machine
	Total      int
	Counts     map[lpmos.MachineState]int
	NextCursor string
	Rev        int64
}

// Use is who uses an image, a profile or a template.
type Use struct {
	Tasks    int      // all
	Live     []string // ids of live tasks
	Profiles []string // by name
}
