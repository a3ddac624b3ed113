package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/test/link"
)

// TestStopWithARegionCutOff says the emergency stop while one of two regions is
// cut off from the store. No machine begins to write in either, not before the
// link is back and not after, until the stop ends; then both go on (X04).
func TestStopWithARegionCutOff(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	k := link.New(t, "tcp", s.etcdAddr)
	direct := s.etcdAddr
	s.etcdAddr = k.Addr()
	far := s.newRegion("dc1", t.TempDir())
	s.etcdAddr = direct
	near := s.newRegion("dc2", t.TempDir())
	s.online("dc1")
	s.online("dc2")
	ids := []string{s.create("dc1", mac(1)), s.create("dc2", mac(2))}
	s.agent(far, mac(1), time.Second)
	s.agent(near, mac(2), time.Second)
	for _, id := range ids {
		s.until(id, lpmos.AwaitingApproval, 60*time.Second)
	}
	k.Cut(true)
	if _, err := s.api.Stop(t.Context(), "smoke in the hall"); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		s.approve(id)
	}
	// The near one asks, and is told why it waits.
	waitFor(t, "the near machine waits", 60*time.Second, func() error { return s.held(ids[1]) })
	k.Cut(false)
	waitFor(t, "the far machine waits, now that its region is back", 60*time.Second, func() error { return s.held(ids[0]) })
	for _, id := range ids {
		if got, err := s.api.Task(t.Context(), id); err != nil || got.Status != lpmos.Approved {
			t.Errorf("while everything is stopped task %s is %s, %v; want approved", id, got.Status, err)
		}
	}
	resumed := time.Now()
	if err := s.api.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		s.until(id, lpmos.Completed, 90*time.Second)
		s.history(id)
		events, err := s.api.Events(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(events, func(e lpmos.Event) bool { return e.Cause == lpmos.CausePermitGranted })
		if i < 0 || events[i].At.Before(resumed.Add(-time.Second)) {
			t.Errorf("task %s was permitted to write before the stop ended: %+v", id, events)
		}
	}
}

// held says whether a task's machine waits for the stop to end.
func (s *site) held(id string) error {
	t, err := s.api.Task(s.t.Context(), id)
	if err != nil {
		return err
	}
	if t.PermitWait == nil || t.PermitWait.Reason != lpmos.WaitStop {
		return &lpmos.ConflictError{Status: t.Status, Problem: "it does not wait for the stop"}
	}
	return nil
}
