package main

import (
	"math"
	"sync/atomic"
	"time"
)

// histogram counts durations in microseconds, in buckets of about 3 %. It may
// be used concurrently.
type histogram struct {
	counts [40 * perOctave]atomic.Uint32
	n      atomic.Int64
	max    atomic.Int64
}

const perOctave = 24

func (h *histogram) add(d time.Duration) {
	us := max(d.Microseconds(), 1)
	i := min(int(math.Log2(float64(us))*perOctave), len(h.counts)-1)
	h.counts[i].Add(1)
	h.n.Add(1)
	for {
		old := h.max.Load()
		if us <= old || h.max.CompareAndSwap(old, us) {
			return
		}
	}
}

// at is the duration that a share (0 to 1) of all do not exceed.
func (h *histogram) at(share float64) time.Duration {
	n := h.n.Load()
	if n == 0 {
		return 0
	}
	left := int64(math.Ceil(share * float64(n)))
	for i := range h.counts {
		if left -= int64(h.counts[i].Load()); left <= 0 {
			us := min(math.Exp2(float64(i+1)/perOctave), float64(h.max.Load()))
			return time.Duration(us * float64(time.Microsecond))
		}
	}
	return time.Duration(h.max.Load()) * time.Microsecond
}

// recorder keeps latencies as a whole, while steady is set, and second by
// second.
type recorder struct {
	began   time.Time
	steady  atomic.Bool
	whole   histogram
	window  histogram // while steady
	seconds [maxSeconds]histogramOfSecond
}

const maxSeconds = 600

// histogramOfSecond is small: a hundred of them are kept.
type histogramOfSecond struct {
	counts [20 * 6]atomic.Uint32 // six buckets an octave
	n      atomic.Int64
}

func (r *recorder) add(sent, now time.Time) {
	d := max(now.Sub(sent), 0)
	r.whole.add(d)
	if r.steady.Load() {
		r.window.add(d)
	}
	if s := int(now.Sub(r.began).Seconds()); s >= 0 && s < maxSeconds {
		h := &r.seconds[s]
		i := min(int(math.Log2(float64(max(d.Microseconds(), 1)))*6), len(h.counts)-1)
		h.counts[i].Add(1)
		h.n.Add(1)
	}
}

func (h *histogramOfSecond) at(share float64) float64 { // milliseconds
	left := int64(math.Ceil(share * float64(h.n.Load())))
	for i := range h.counts {
		if left -= int64(h.counts[i].Load()); left <= 0 {
			return math.Exp2(float64(i+1)/6) / 1000
		}
	}
	return 0
}
