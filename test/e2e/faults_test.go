package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

// Ten installs at once while etcd, the control plane and the region are killed
// at random moments. The seed is printed, and LPMOS_SEED repeats a run.
func TestInstallsSurviveKills(t *testing.T) {
	const machines, length = 10, 40 * time.Second
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("LPMOS_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("LPMOS_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	upTo := func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
	s := newSite(t)
	r := s.newRegion("dc1", t.TempDir())
	s.online("dc1")
	w := s.watch()
	began := time.Now()
	ids := make([]string, machines)
	agents := make([]*process, machines)
	for i := range machines {
		ids[i] = s.create("dc1", mac(i))
		agents[i] = s.agent(r, mac(i), 15*time.Second+upTo(15*time.Second))
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	over := make(chan struct{})
	defer sync.OnceFunc(func() { close(over) })()
	wg.Go(func() { s.approveAll(ids, over) })

	parts := []*process{s.etcd, s.control, r.process}
	for time.Since(began) < length {
		time.Sleep(time.Second + upTo(4*time.Second))
		p := parts[rng.IntN(len(parts))]
		down := upTo(3 * time.Second)
		t.Logf("%4.1f s: kill %s for %d ms", time.Since(began).Seconds(), p.name, down.Milliseconds())
		p.kill()
		time.Sleep(down)
		p.start()
		// What found no etcd at its start has ended; a supervisor starts it again.
		for _, q := range parts {
			if q.ended() {
				q.start()
			}
		}
	}
	waitFor(t, "all installs", 180*time.Second, func() error {
		for _, q := range parts {
			if q.ended() {
				q.start()
			}
		}
		for _, id := range ids {
			task, err := s.api.Task(t.Context(), id)
			if err != nil {
				return err
			}
			if task.Status != lpmos.Completed {
				return fmt.Errorf("task %s is %s (%+v, %+v)", id, task.Status, task.Progress, task.Error)
			}
		}
		return nil
	})
	t.Logf("all completed after %.0f s", time.Since(began).Seconds())
	for i, id := range ids {
		statuses := s.history(id)
		if code := agents[i].wait(time.Minute); code != 0 {
			t.Errorf("agent %d ended with %d", i, code)
		}
		// Whoever was told to read everything anew may have missed some.
		if w.toldAnew() == 0 {
			w.expect(t, id, statuses, true)
		}
	}
	t.Logf("the socket came back and was told %d times to read anew", w.toldAnew())
	regions, err := s.api.Regions(t.Context())
	if err != nil || len(regions) != 1 {
		t.Errorf("regions are %+v, %v", regions, err)
	}
}

// approveAll approves as a patient person would: again, when there is nobody
// to take it.
func (s *site) approveAll(ids []string, over <-chan struct{}) {
	for {
		for _, id := range ids {
			task, err := s.api.Task(s.t.Context(), id)
			if err == nil && task.Status == lpmos.AwaitingApproval && task.Plan != nil {
				s.api.Decide(s.t.Context(), id, true, task.Plan.Digest, "")
			}
		}
		select {
		case <-over:
			return
		case <-s.t.Context().Done():
			return
		case <-time.After(300 * time.Millisecond):
		}
	}
}
