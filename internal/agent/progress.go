package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// rateWindow is how far back a rate looks.
const rateWindow = 5 * time.Second

// progress turns steps into reports: at most one per interval, always the
// newest, and never one that goes back.
type progress struct {
	region Region
	clock  Clock
	every  time.Duration
	log    *slog.Logger

	mu      sync.Mutex // guards what follows
	now     agentapi.Progress
	fresh   bool // now has not been sent
	began   time.Time
	samples []byteSample // of this stage, oldest first, about rateWindow of them
}

type byteSample struct {
	at    time.Time
	bytes int64
}

func newProgress(region Region, clock Clock, every time.Duration, base agentapi.Progress, log *slog.Logger) *progress {
	return &progress{region: region, clock: clock, every: every, log: log, now: base, began: clock.Now()}
}

// step takes a step of the installer.
func (p *progress) step(s install.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.Stage.Number() < p.now.Stage.Number() {
		return // the last bytes of a stage that is over
	}
	at := p.clock.Now()
	if s.Stage != p.now.Stage {
		p.log.Info("stage begins", "stage", s.Stage, "percent", s.Stage.Percent(0, 0))
		p.began, p.samples = at, nil
	}
	message := s.Message
	switch {
	case s.Detail != "":
		message += ": " + s.Detail
	case s.Message != p.now.Message && s.BytesTotal == 0:
		p.log.Info("step", "stage", s.Stage, "doing", s.Message)
	}
	p.now.Stage, p.now.Message = s.Stage, lpmos.Shorten(message, lpmos.MaxMessageBytes-4)
	p.now.Percentage = max(p.now.Percentage, s.Stage.Percent(s.Done, s.Total))
	p.now.Details = nil
	if s.BytesTotal > 0 {
		rate := p.rate(at, s.Bytes)
		p.now.Details = &lpmos.ProgressDetails{BytesDownloaded: s.Bytes, BytesTotal: s.BytesTotal, BytesPerSecond: rate,
			SpeedMbps: rate * 8 / 1e6, ElapsedMillis: at.Sub(p.began).Milliseconds()}
	}
	p.fresh = true
}

// rate is bytes per second over the window that ends at.
func (p *progress) rate(at time.Time, bytes int64) int64 {
	if n := len(p.samples); n == 0 || at.Sub(p.samples[n-1].at) >= rateWindow/50 {
		p.samples = append(p.samples, byteSample{at, bytes})
	}
	for len(p.samples) > 1 && at.Sub(p.samples[1].at) > rateWindow {
		p.samples = p.samples[1:]
	}
	first := p.samples[0]
	took := at.Sub(first.at)
	if took <= 0 {
		return 0
	}
	return int64(float64(bytes-first.bytes) / took.Seconds())
}

// finish makes the last report the whole bar.
func (p *progress) finish(message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.Stage, p.now.Percentage, p.now.Message, p.now.Details, p.fresh = lpmos.Configuring, 100, message, nil, true
}

// run reports until over ends; ctx ends also what is under way then.
func (p *progress) run(ctx, over context.Context) {
	for {
		p.send(ctx)
		if p.clock.Sleep(over, p.every) != nil {
			return
		}
	}
}

// flush sends the newest report if it was not sent, with a few tries: the
// result, which follows, is what counts.
func (p *progress) flush(ctx context.Context) {
	for range 5 {
		if p.send(ctx) || p.clock.Sleep(ctx, p.every) != nil {
			return
		}
	}
}

// send reports whether there is nothing left to send.
func (p *progress) send(ctx context.Context) bool {
	p.mu.Lock()
	now, fresh := p.now, p.fresh
	p.fresh = false
	p.mu.Unlock()
	if !fresh {
		return true
	}
	err := p.region.Progress(ctx, now)
	if err == nil || agentapi.Refused(err) != 0 {
		if err != nil {
			p.log.Warn("progress refused", "err", err)
		}
		return true
	}
	p.mu.Lock()
	p.fresh = true // a newer one, if there is, is what will be sent
	p.mu.Unlock()
	return false
}
