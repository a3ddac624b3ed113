// Package doctor looks at what a site needs around it: ports, other DHCP
// servers, clocks, certificates, disks, the store, the control plane and its
// regions. Each check says in one sentence what it found and, unless all is
// well, what to do.
//
// Judging is apart from looking: functions that judge are pure, and those that
// look take what they look at, so that both can be tested without breaking a
// machine. Nothing is changed by any check. The only packets that are sent
// beyond requests to LPMOS's own parts are the DHCP DISCOVERs of Discover.
package doctor

import (
	"fmt"
	"slices"
)

// Status is how a check came out.
type Status string

// The outcomes of a check.
const (
	OK   Status = "ok"
	Skip Status = "skip" // was not looked at, for the reason given
	Warn Status = "warn" // works, but somebody should look
	Fail Status = "fail" // something will not work
)

// Result is one check's outcome.
type Result struct {
	Check   string `json:"check"`
	Status  Status `json:"status"`
	Summary string `json:"summary"`        // what was found
	Todo    string `json:"todo,omitempty"` // what to do about it; "" when all is well
}

func ok(check, format string, args ...any) Result {
	return Result{Check: check, Status: OK, Summary: fmt.Sprintf(format, args...)}
}

// Skipped is a check that was not made.
func Skipped(check, why, todo string) Result {
	return Result{Check: check, Status: Skip, Summary: why, Todo: todo}
}

// Worst is the worst status among results; OK for none. A skipped check is not
// bad.
func Worst(results []Result) Status {
	order := []Status{Skip, OK, Warn, Fail}
	worst := OK
	for _, r := range results {
		if slices.Index(order, r.Status) > slices.Index(order, worst) {
			worst = r.Status
		}
	}
	return worst
}

// Count is how many results have status s.
func Count(results []Result, s Status) int {
	n := 0
	for _, r := range results {
		if r.Status == s {
			n++
		}
	}
	return n
}
