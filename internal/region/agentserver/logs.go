package agentserver

import (
	"bytes"
	"context"
	"net/http"
	"sync"

	"golang.org/x/time/rate"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// Limits of an attempt's log in the store.
const (
	maxChunkBytes = 16 << 10
	maxLogBytes   = 256 << 10
	logMarker     = "(the log of this attempt is longer than 256 KiB; what follows was dropped)\n"
)

// logState is how much of an attempt's log is stored. A chunk's number is that
// of its first line, so that a repeated request writes the same chunk again,
// also after a restart, when nothing is remembered.
type logState struct {
	limit *rate.Limiter

	mu      sync.Mutex // guards what follows, held while a chunk is stored
	attempt int
	next    int // number of the first line that is not stored
	bytes   int
	full    bool // the marker is stored
}

func (s *Server) logs(r *http.Request) (any, error) {
	c, body, err := read[agentapi.Logs](s, r, agentapi.MaxBodyBytes)
	if err != nil {
		return nil, err
	}
	if err := s.owns(c, body.MACAddress, body.TaskID); err != nil {
		return nil, err
	}
	if body.First < 0 || body.First > 1<<30 {
		return nil, &lpmos.InvalidError{Field: "first", Problem: "is not a line number"}
	}
	if len(body.Lines) > agentapi.MaxLogLines {
		return nil, &lpmos.InvalidError{Field: "lines", Problem: "are more than 256"}
	}
	if c.order == nil {
		return nil, errEnded
	}
	if body.Attempt != c.order.Attempt {
		s.stats.logDropped.Add(int64(len(body.Lines)))
		return empty{}, nil
	}
	if !c.m.logged.limit.Allow() {
		return nil, errTooMany
	}
	ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
	defer cancel()
	if err := s.appendLog(ctx, c.m, body); err != nil {
		return nil, s.stored(c.m.taskID, err)
	}
	return empty{}, nil
}

func (s *Server) appendLog(ctx context.Context, m *machine, body *agentapi.Logs) error {
	l := &m.logged
	l.mu.Lock()
	defer l.mu.Unlock()
	if body.Attempt != l.attempt {
		l.attempt, l.next, l.bytes, l.full = body.Attempt, 0, 0, false
	}
	lines, first := body.Lines, body.First
	if skip := l.next - first; skip > 0 {
		lines, first = lines[min(skip, len(lines)):], l.next
	}
	for len(lines) > 0 && !l.full {
		var chunk bytes.Buffer
		n := 0
		for ; n < len(lines); n++ {
			line := cleanText(lines[n], lpmos.MaxMessageBytes) + "\n"
			if l.bytes+chunk.Len()+len(line) > maxLogBytes {
				chunk.WriteString(logMarker)
				l.full = true
				break
			}
			if chunk.Len()+len(line) > maxChunkBytes-len(logMarker) {
				break
			}
			chunk.WriteString(line)
		}
		if err := s.reports.AppendLog(ctx, m.taskID, body.Attempt, first, chunk.Bytes()); err != nil {
			l.full = false
			return err
		}
		l.bytes += chunk.Len()
		lines, first = lines[n:], first+n
		l.next = max(l.next, first)
	}
	s.stats.logDropped.Add(int64(len(lines)))
	return nil
}
