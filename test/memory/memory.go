// Package memory measures what benchmarks take of it. It is on its own so that
// a package which measures does not link the rest of what tests share.
package memory

import (
	"context"
	"runtime/metrics"
	"time"
)

// Held is what the program holds of the system's memory, in bytes.
func Held() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() - s[1].Value.Uint64()
}

// Peak is the most of it, until ctx ends.
func Peak(ctx context.Context) (peak uint64) {
	for t := time.NewTicker(5 * time.Millisecond); ; {
		peak = max(peak, Held())
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return peak
		}
	}
}
