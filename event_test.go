package lpmos_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

func chain(t *testing.T, causes ...lpmos.Cause) []lpmos.Event {
	t.Helper()
	var events []lpmos.Event
	var status lpmos.Status
	var hash string
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for i, c := range causes {
		to, err := status.Next(c)
		if err != nil {
			t.Fatal(err)
		}
		e := lpmos.Event{TaskID: "t", Seq: int64(i) + 1, At: at.Add(time.Duration(i) * time.Second), Cause: c, From: status, To: to, By: "me", Attempt: 1}
		e.Seal(hash)
		events, status, hash = append(events, e), to, e.Hash
	}
	return events
}

func TestVerifyEvents(t *testing.T) {
	whole := chain(t, lpmos.CauseCreated, lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CausePermitGranted, lpmos.CauseResultReported, lpmos.CauseCalledHome)
	if err := lpmos.VerifyEvents(whole); err != nil {
		t.Errorf("VerifyEvents of a whole history: %v", err)
	}
	if err := lpmos.VerifyEvents(whole[:3]); err != nil {
		t.Errorf("VerifyEvents of a history so far: %v", err)
	}
	reseal := func(events []lpmos.Event) []lpmos.Event {
		var hash string
		for i := range events {
			events[i].Seal(hash)
			hash = events[i].Hash
		}
		return events
	}
	for name, edit := range map[string]func([]lpmos.Event) []lpmos.Event{
		"without the first":        func(e []lpmos.Event) []lpmos.Event { return e[1:] },
		"with a gap":               func(e []lpmos.Event) []lpmos.Event { return slices.Delete(e, 2, 3) },
		"with a gap, sealed anew":  func(e []lpmos.Event) []lpmos.Event { return reseal(slices.Delete(e, 2, 3)) },
		"with one altered":         func(e []lpmos.Event) []lpmos.Event { e[2].By = "somebody else"; return e },
		"with a time altered":      func(e []lpmos.Event) []lpmos.Event { e[3].At = e[3].At.Add(time.Nanosecond); return e },
		"with one doubled":         func(e []lpmos.Event) []lpmos.Event { return slices.Insert(e, 2, e[1]) },
		"with two swapped":         func(e []lpmos.Event) []lpmos.Event { e[1], e[2] = e[2], e[1]; return e },
		"with an illegal step":     func(e []lpmos.Event) []lpmos.Event { e[3].Cause = lpmos.CauseCalledHome; return reseal(e) },
		"with another destination": func(e []lpmos.Event) []lpmos.Event { e[5].To = lpmos.Failed; return reseal(e) },
		"with another origin":      func(e []lpmos.Event) []lpmos.Event { e[4].From = lpmos.Approved; return reseal(e) },
		"with the numbers starting at 2": func(e []lpmos.Event) []lpmos.Event {
			for i := range e {
				e[i].Seq++
			}
			return reseal(e)
		},
	} {
		var broken *lpmos.AuditError
		if err := lpmos.VerifyEvents(edit(slices.Clone(whole))); !errors.As(err, &broken) || broken.Task != "t" {
			t.Errorf("VerifyEvents of a history %s = %v; want an AuditError of the task", name, err)
		}
	}
}
