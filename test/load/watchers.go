package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lpmos/lpmos"
)

// watcher is one browser: what it was shown of each task.
type watcher struct {
	s      *socket
	taskID string // "" for all

	mu       sync.Mutex // guards what follows
	statuses map[string][]lpmos.Status
	percent  map[string]int
	attempt  map[string]int
	err      error
	ended    bool
}

// crowd is all watchers of one run.
type crowd struct {
	rec      *recorder
	bare     bool // the hub alone: nothing is looked at but when it was sent
	messages atomic.Int64
	progress atomic.Int64 // to watchers of one task
	back     atomic.Int64 // progress that moved backwards
	resyncs  atomic.Int64
	ended    atomic.Int64

	watchers []*watcher
	readers  sync.WaitGroup
}

// connect opens n sockets, a bounded number at a time; taskOf says what each
// watches.
func (c *crowd) connect(ctx context.Context, addr, token string, n int, taskOf func(int) string) error {
	const atOnce = 32
	fresh := make([]*watcher, n)
	errs := make(chan error, n)
	slots := make(chan struct{}, atOnce)
	for i := range n {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			s, err := dial(ctx, addr, token)
			if err == nil {
				fresh[i] = &watcher{s: s, taskID: taskOf(i), statuses: map[string][]lpmos.Status{}, percent: map[string]int{}, attempt: map[string]int{}}
				err = s.subscribe(fresh[i].taskID)
			}
			errs <- err
		}()
	}
	var bad error
	for range n {
		if err := <-errs; err != nil && bad == nil {
			bad = err
		}
	}
	for _, w := range fresh {
		if w != nil {
			c.watchers = append(c.watchers, w)
			c.readers.Go(func() { c.read(w) })
		}
	}
	return bad
}

var (
	progressHead = []byte(`{"type":"progress"`)
	stamp        = []byte(` sent=`)
)

// read takes what a watcher is sent, until its connection ends.
func (c *crowd) read(w *watcher) {
	defer c.ended.Add(1)
	for {
		b, err := w.s.next()
		if err != nil {
			w.mu.Lock()
			w.err, w.ended = err, true
			w.mu.Unlock()
			return
		}
		now := time.Now()
		c.messages.Add(1)
		if c.bare {
			if sent, ok := sentAt(b); ok {
				c.rec.add(sent, now)
			}
			continue
		}
		if bytes.HasPrefix(b, progressHead) {
			if w.taskID != "" {
				c.progress.Add(1)
			}
			if sent, ok := sentAt(b); ok && w.taskID != "" {
				c.rec.add(sent, now)
			}
			if w.taskID == "" {
				continue // parsing all of it twenty times would measure us
			}
		}
		var m struct {
			Type       string       `json:"type"`
			TaskID     string       `json:"task_id"`
			Status     lpmos.Status `json:"status"`
			Percentage int          `json:"percentage"`
			Attempt    int          `json:"attempt"`
		}
		if w.taskID != "" && bytes.HasPrefix(b, progressHead) {
			m.Type, m.TaskID = "progress", w.taskID
			m.Percentage, m.Attempt = numberOf(b, `"percentage":`), numberOf(b, `"attempt":`)
		} else if err := json.Unmarshal(b, &m); err != nil {
			w.mu.Lock()
			w.err = fmt.Errorf("message %.200q: %w", b, err)
			w.mu.Unlock()
			continue
		}
		w.mu.Lock()
		switch m.Type {
		case "status":
			w.statuses[m.TaskID] = append(w.statuses[m.TaskID], m.Status)
		case "progress":
			if m.Attempt < w.attempt[m.TaskID] || m.Attempt == w.attempt[m.TaskID] && m.Percentage < w.percent[m.TaskID] {
				c.back.Add(1)
			}
			w.percent[m.TaskID], w.attempt[m.TaskID] = m.Percentage, m.Attempt
		case "resync":
			c.resyncs.Add(1)
		}
		w.mu.Unlock()
	}
}

// sentAt finds when the machine sent the progress in a message.
func sentAt(b []byte) (time.Time, bool) {
	_, rest, ok := bytes.Cut(b, stamp)
	if !ok {
		return time.Time{}, false
	}
	n := 0
	for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
		n++
	}
	us, err := strconv.ParseInt(string(rest[:n]), 10, 64)
	return time.UnixMicro(us), err == nil
}

func numberOf(b []byte, key string) int {
	_, rest, _ := bytes.Cut(b, []byte(key))
	n := 0
	for _, d := range rest {
		if d < '0' || d > '9' {
			break
		}
		n = 10*n + int(d-'0')
	}
	return n
}

// shown are the statuses a watcher saw of a task.
func (w *watcher) shown(id string) []lpmos.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.statuses[id])
}

// broken are the watchers whose connection ended by itself, with the first
// reason.
func (c *crowd) broken() (n int, err error) {
	for _, w := range c.watchers {
		w.mu.Lock()
		if w.err != nil {
			n++
			err = w.err
		}
		w.mu.Unlock()
	}
	return n, err
}

// close ends all connections and waits for their readers.
func (c *crowd) close() {
	for _, w := range c.watchers {
		_ = w.s.send(8, "\x03\xe8")
	}
	for _, w := range c.watchers {
		_ = w.s.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	}
	c.readers.Wait()
	for _, w := range c.watchers {
		w.s.conn.Close()
	}
}

// stalled is a client that subscribes to everything and reads nothing.
type stalled struct {
	s     *socket
	began time.Time
	took  time.Duration // until the server cut it off, 0 while it did not
}

// stall opens n of them.
func stall(ctx context.Context, addr, token string, n int) ([]*stalled, error) {
	var out []*stalled
	for range n {
		s, err := dial(ctx, addr, token)
		if err != nil {
			return out, err
		}
		out = append(out, &stalled{s: s, began: time.Now()})
		if err := s.subscribe(""); err != nil {
			return out, err
		}
	}
	return out, nil
}

// watchStalled notes when each is cut off, without reading, until all are or
// ctx ends.
func watchStalled(ctx context.Context, all []*stalled) {
	for ctx.Err() == nil {
		left := 0
		for _, s := range all {
			if s.took != 0 {
				continue
			}
			if s.cut() {
				s.took = time.Since(s.began)
				continue
			}
			left++
		}
		if left == 0 {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// cut reports whether the connection was reset.
func (s *stalled) cut() bool {
	raw, err := s.s.conn.(interface {
		SyscallConn() (syscall.RawConn, error)
	}).SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
	})
	return gone || err != nil
}
