// Package watchdog notices transfers that stand still, and ends them.
package watchdog

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Least is how many bytes a download must move in the time that it may be idle:
// a server that trickles is as lost as one that is silent.
const Least = 64 << 10

// Watch calls stalled, once, when moved has grown by less than Least in a time
// of idle. The function it returns ends that, and waits for it.
func Watch(idle time.Duration, moved *atomic.Int64, stalled func()) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(idle)
		defer tick.Stop()
		var last int64
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				now := moved.Load()
				if now-last < Least {
					stalled()
					return
				}
				last = now
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// Reader reads from r until ctx ends, of which it gives the error between two
// reads. One that waits is ended by whoever can close r.
func Reader(ctx context.Context, r io.Reader) io.Reader { return contextReader{ctx, r} }

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
