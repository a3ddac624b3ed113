package agentserver

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// progressState thins out one machine's progress on its way to the store: only
// the newest is kept, and it is written at once when the stage changes or all
// is done, else at most every two seconds.
type progressState struct {
	limit *rate.Limiter

	writing sync.Mutex // held while one is written, so that none overtakes

	mu      sync.Mutex      // guards what follows
	newest  *lpmos.Progress // accepted
	dirty   bool            // newest is not written yet
	failing bool            // the last try to write it did not succeed
	timer   *time.Timer     // will write it; nil when none is set
	written time.Time       // when one was last written
	sent    *lpmos.Progress // last written
}

func (p *progressState) stage() lpmos.Stage {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.newest == nil {
		return ""
	}
	return p.newest.Stage
}

func (s *Server) progress(r *http.Request) (any, error) {
	c, body, err := read[agentapi.Progress](s, r, agentapi.MaxBodyBytes)
	if err != nil {
		return nil, err
	}
	if err := s.owns(c, body.MACAddress, body.TaskID); err != nil {
		return nil, err
	}
	p := &lpmos.Progress{
		TaskID: body.TaskID, Attempt: body.Attempt, Stage: body.Stage, Percentage: body.Percentage,
		Message: cleanText(body.Message, lpmos.MaxMessageBytes), Details: body.Details, UpdatedAt: time.Now().UTC(),
	}
	if len(body.Message) > lpmos.MaxMessageBytes {
		return nil, &lpmos.InvalidError{Field: "message", Problem: "is longer than 1 KiB"}
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if d := p.Details; d != nil && min(d.BytesDownloaded, d.BytesTotal, d.SpeedMbps, d.BytesPerSecond, d.ElapsedMillis) < 0 {
		return nil, &lpmos.InvalidError{Field: "details", Problem: "holds a negative figure"}
	}
	if c.order == nil {
		return nil, errEnded
	}
	if p.Attempt != c.order.Attempt {
		s.stats.progressLate.Add(1)
		return empty{}, nil
	}
	if !c.m.reported.limit.Allow() {
		return nil, errTooMany
	}
	s.accept(c.m, p)
	return empty{}, nil
}

// accept takes progress that is newer than what is known and sees to it that
// it is written.
func (s *Server) accept(m *machine, p *lpmos.Progress) {
	st := &m.reported
	st.mu.Lock()
	defer st.mu.Unlock()
	if !p.After(st.newest) {
		s.stats.progressLate.Add(1)
		return
	}
	s.stats.progressAccepted.Add(1)
	st.newest, st.dirty = p, true
	wait := progressEvery - time.Since(st.written)
	if st.sent == nil || st.sent.Stage != p.Stage || st.sent.Attempt != p.Attempt || p.Percentage == 100 {
		wait = 0
	}
	s.schedule(m, wait)
}

// complete makes the newest progress of an attempt that succeeded the whole
// bar. The agent has said so before its result, but perhaps to an earlier
// process of this region, which was killed before the store had it.
func (s *Server) complete(m *machine, taskID string, attempt int) {
	st := &m.reported
	st.mu.Lock()
	known := st.newest != nil && st.newest.Attempt == attempt && st.newest.Percentage == 100
	st.mu.Unlock()
	if !known {
		s.accept(m, &lpmos.Progress{TaskID: taskID, Attempt: attempt, Stage: lpmos.Configuring, Percentage: 100,
			Message: "Installed; the machine reboots", UpdatedAt: time.Now().UTC()})
	}
}

// schedule sets the timer of a machine, or brings it forward. The caller holds
// reported.mu.
func (s *Server) schedule(m *machine, wait time.Duration) {
	st := &m.reported
	if st.timer != nil {
		if wait > 0 {
			return // it is set already, for no later than two seconds from now
		}
		st.timer.Stop()
	}
	st.timer = time.AfterFunc(max(wait, 0), func() {
		if s.begin() {
			defer s.work.Done()
			s.flushProgress(m)
		}
	})
}

// flushProgress writes the newest progress if it is not written yet. When the
// store cannot take it now, it is tried again later.
func (s *Server) flushProgress(m *machine) {
	st := &m.reported
	st.writing.Lock()
	defer st.writing.Unlock()
	st.mu.Lock()
	if st.timer != nil {
		st.timer.Stop()
		st.timer = nil
	}
	p, dirty := st.newest, st.dirty
	st.dirty = false
	st.mu.Unlock()
	if !dirty {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	err := s.reports.PutProgress(ctx, p)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.written, st.sent = time.Now(), p
	switch {
	case err == nil:
		s.stats.progressStored.Add(1)
		st.failing = false
	case errors.Is(err, lpmos.ErrNotFound), errors.Is(err, lpmos.ErrConflict):
		// Nobody waits for it any more, or another instance has the floor.
		st.failing = false
	default:
		if !st.failing { // once, not each second
			s.log.Warn("progress not stored yet, trying on", "task", p.TaskID, "err", err)
		}
		st.dirty, st.failing = true, true
		if st.timer == nil {
			s.schedule(m, progressEvery)
		}
	}
}
