package orchestrator_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/orchestrator"
	"github.com/lpmos/lpmos/internal/controlplane/state"
)

// reading counts how often a task is read that has ended.
type reading struct {
	*state.State
	live, ended atomic.Int64
}

func (r *reading) Task(id string) (lpmos.Task, bool) {
	if s, _ := r.Status(id); s.Live() {
		r.live.Add(1)
	} else {
		r.ended.Add(1)
	}
	return r.State.Task(id)
}

// A replica that starts looks at every task. Those that have ended, which are
// most, it does not read: what is kept of them is in the store.
func TestStartReadsNoTaskThatHasEnded(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	ended, live := s.create(mac(1)), s.create(mac(2))
	_, err := s.Cancel(t.Context(), ended.ID, "", "tester")
	s.ok(err)
	s.is(ended.ID, lpmos.Canceled)

	r := &reading{State: s.state}
	late := orchestrator.New(orchestrator.Config{Key: s.key}, r, s.store, discard)
	late.Notice(api.Update{Reset: true, Tasks: []string{ended.ID, live.ID}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { late.Run(ctx) })
	// They are taken together, in no order: twice, and both were looked at.
	s.eventually("the live one was read", func() bool { return r.live.Load() > 0 })
	late.Notice(api.Update{Tasks: []string{ended.ID}})
	n := r.live.Load()
	late.Notice(api.Update{Tasks: []string{live.ID}})
	s.eventually("and again", func() bool { return r.live.Load() > n })
	cancel()
	wg.Wait()
	if n := r.ended.Load(); n != 0 {
		t.Errorf("the task that has ended was read %d times", n)
	}
}
