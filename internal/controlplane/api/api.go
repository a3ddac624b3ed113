// Package api holds the questions and decisions that the parts of the control
// plane put to each other: web and rest ask them, the read model and the
// orchestrator answer. It holds types only; its rules are contract.md §§3–4.
package api

import (
	"strings"

	"github.com/lpmos/lpmos"
)

// Query selects tasks. Fields left zero select everything; given ones must all
// hold. The answer is newest first, by creation and then by id, so that a
// cursor keeps its place while tasks are added.
type Query struct {
	Statuses []lpmos.Status // any of these
	RegionID string
	Text     string // every word must be part of the id, host name, a MAC, serial number, image or creator
	Limit    int    // of tasks in the page; 0 means 100
	Cursor   string // NextCursor of the page before, "" for the first
}

// Page is one part of an answer to a Query.
type Page struct {
	Tasks      []lpmos.Task
	Total      int    // all that match, not only this page
	NextCursor string // "" on the last page
	Rev        int64  // of the store: every change up to it is in the answer
}

// Decision is what a person decides about a plan.
type Decision struct {
	Approved   bool
	Notes      string
	PlanDigest string // of the plan that was shown; "" only where nothing that was found is erased
	SerialEnd  string // what was typed for SerialEnd of the target, where data was found on it
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

// MachineQuery selects machines, by MAC. Fields left zero select everything.
type MachineQuery struct {
	// Text is words that must all hold: free text, or region:, state:, model:,
	// serial:, mac:, host: and what it is to contain; "-" or "!" before a word
	// turns it round.
	Text     string
	RegionID string
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
