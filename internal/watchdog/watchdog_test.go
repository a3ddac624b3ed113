package watchdog_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lpmos/lpmos/internal/watchdog"
)

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var moved atomic.Int64
		stalls := 0
		stop := watchdog.Watch(time.Second, &moved, func() { stalls++ })
		for range 5 {
			moved.Add(watchdog.Least)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if stalls != 0 {
			t.Error("a download that moved enough was called stalled")
		}
		moved.Add(watchdog.Least - 1) // a trickle
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if stalls != 1 {
			t.Errorf("a download that trickled was called stalled %d times; want once", stalls)
		}
		stop()
	})
}
