package sim

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

// Operator is the person who creates and approves the tasks of a fleet, through
// the control plane's API like any other.
type Operator struct {
	api    *apiclient.Client
	spec   lpmos.Spec // of every task, but for the machine
	wanted map[lpmos.MAC]bool

	created, approved atomic.Int64
}

// NewOperator makes an operator for the machines at macs. spec says what they
// are to be installed with.
func NewOperator(api *apiclient.Client, spec lpmos.Spec, macs []lpmos.MAC) *Operator {
	o := &Operator{api: api, spec: spec, wanted: map[lpmos.MAC]bool{}}
	for _, m := range macs {
		o.wanted[m] = true
	}
	return o
}

// Created and Approved are how many tasks were, so far.
func (o *Operator) Created() int64  { return o.created.Load() }
func (o *Operator) Approved() int64 { return o.approved.Load() }

// askers is how many requests are under way at once.
const askers = 8

// Create creates a task for each machine and returns their ids. A machine that
// has a live task is an error.
func (o *Operator) Create(ctx context.Context) (map[lpmos.MAC]string, error) {
	macs := make(chan lpmos.MAC)
	go func() {
		defer close(macs)
		for m := range o.wanted {
			select {
			case macs <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	var (
		mu  sync.Mutex // guards what follows
		ids = map[lpmos.MAC]string{}
		bad error
		wg  sync.WaitGroup
	)
	for range askers {
		wg.Go(func() {
			for m := range macs {
				spec := o.spec
				spec.TargetMAC = m
				spec.Hostname = fmt.Sprintf("sim-%02x%02x%02x%02x%02x", m[1], m[2], m[3], m[4], m[5])
				id, err := o.api.CreateTask(ctx, spec, "")
				mu.Lock()
				if err != nil {
					bad = errors.Join(bad, fmt.Errorf("create task for %s: %w", m, err))
				} else {
					ids[m] = id
					o.created.Add(1)
				}
				stop := bad != nil
				mu.Unlock()
				if stop {
					for range macs { // the others are not asked for any more
					}
				}
			}
		})
	}
	wg.Wait()
	return ids, errors.Join(bad, ctx.Err())
}

// Approve approves the plans of the fleet's machines as they come in, until ctx
// ends. A plan with a problem is left for a person.
func (o *Operator) Approve(ctx context.Context) error {
	const every = 500 * time.Millisecond
	for {
		n, err := o.approveSome(ctx)
		if err != nil && !errors.Is(err, lpmos.ErrUnavailable) && ctx.Err() == nil {
			return err
		}
		wait := every
		if n > 0 {
			wait = every / 5 // more are likely to come
		}
		if sleep(ctx, wait) != nil {
			return nil
		}
	}
}

func (o *Operator) approveSome(ctx context.Context) (int, error) {
	l, err := o.api.Tasks(ctx, url.Values{"status": {string(lpmos.AwaitingApproval)}, "limit": {"200"}})
	if err != nil {
		return 0, err
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards what follows
		n     int
		bad   error
		slots = make(chan struct{}, askers)
	)
	for _, t := range l.Tasks {
		if !o.wanted[t.TargetMAC] {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			t, err := o.api.Task(ctx, t.ID) // a list has no plans
			if err == nil && (t.Plan == nil || t.Plan.Problem != "") {
				return
			}
			if err == nil {
				_, err = o.api.Decide(ctx, t.ID, true, t.Plan.Digest, "approved by the simulation")
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				n++
				o.approved.Add(1)
			case errors.Is(err, lpmos.ErrConflict), errors.Is(err, lpmos.ErrNotFound):
				// Somebody was quicker, or the plan has changed: looked at again.
			default:
				bad = fmt.Errorf("approve task %s: %w", t.ID, err)
			}
		})
	}
	wg.Wait()
	return n, bad
}
