// Package hub carries what changes to browsers and terminals over WebSocket
// (RFC 6455; messages as in contract §5 and api/events.md).
//
// A message is encoded once, however many read it. Each connection has a
// bounded queue: progress that was not sent yet is replaced by newer progress of
// the same task, a status is never dropped, and a connection that cannot keep
// up with statuses is closed with 1013 so that it comes back and asks for what
// it missed.
package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// Limits of a connection.
const (
	maxRead          = 4 << 10
	maxQueue         = 512 // messages a client may be behind
	maxSubscriptions = 4096
	writeTimeout     = 10 * time.Second
	pingEvery        = 30 * time.Second
	lingerTime       = time.Second
	ringSize         = 8192 // messages kept for clients that come back
	aheadPatience    = 5 * time.Second
	countsEvery      = time.Second
)

type reader interface {
	StoreID() string
	Counts() map[lpmos.Status]int
}

// Hub knows all connections.
type Hub struct {
	read     reader
	log      *slog.Logger
	up       websocket.Upgrader
	patience time.Duration // of one write to one client

	mu     sync.Mutex // guards what follows
	conns  map[*conn]struct{}
	rev    int64 // of the newest update
	floor  int64 // messages after this revision are all in ring
	ring   []*message
	counts map[lpmos.Status]int
	closed bool
	wg     sync.WaitGroup
}

// message is encoded and addressed.
type message struct {
	rev      int64 // safe to resume after
	kind     string
	taskID   string
	regionID string
	frame    *websocket.PreparedMessage
}

// New makes a hub. Publish must be a listener of the read model.
func New(read reader, log *slog.Logger) *Hub {
	h := &Hub{read: read, log: log, patience: writeTimeout, conns: map[*conn]struct{}{}}
	h.up = websocket.Upgrader{
		ReadBufferSize: 1 << 10, WriteBufferSize: 4 << 10, CheckOrigin: sameOrigin,
		WriteBufferPool: &sync.Pool{},
	}
	return h
}

// sameOrigin lets programs in, which send no Origin, and pages of this very
// host, scheme aside: a browser never sends another page's Origin as ours.
func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host == r.Host
}

// Publish sends one update to all it concerns. It never blocks on a client.
func (h *Hub) Publish(u api.Update) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := h.rev == 0
	h.rev = u.Rev
	if u.Reset {
		h.ring, h.floor = nil, u.Rev
		if !first {
			m := h.encode(body{Type: "resync", Rev: u.Rev, StoreID: h.read.StoreID()}, "resync", "", "")
			for c := range h.conns {
				c.push(m)
			}
		}
		return
	}
	for i, e := range u.Events {
		// Only the last message of a transaction carries its revision; whoever
		// is cut off between two of them resumes before the first.
		rev := u.Rev - 1
		if i == len(u.Events)-1 {
			rev = u.Rev
		}
		m := h.encode(bodyOf(e, rev), e.Type, e.TaskID, e.RegionID)
		m.rev = rev
		h.ring = append(h.ring, m)
		for c := range h.conns {
			if c.wants(m) && u.Rev > c.after {
				c.push(m)
			}
		}
	}
	if over := len(h.ring) - ringSize; over > ringSize/4 {
		h.floor = h.ring[over-1].rev
		h.ring = append([]*message(nil), h.ring[over:]...)
	}
}

// body is every server message; the founding fields keep their names.
type body struct {
	Type       string                 `json:"type"`
	TaskID     string                 `json:"task_id,omitempty"`
	RegionID   string                 `json:"region_id,omitempty"`
	Status     string                 `json:"status,omitempty"`
	Attempt    int                    `json:"attempt,omitempty"`
	Error      *lpmos.Failure         `json:"error,omitempty"`
	Percentage *int                   `json:"percentage,omitempty"`
	Stage      lpmos.Stage            `json:"stage,omitempty"`
	Message    string                 `json:"message,omitempty"`
	Details    *lpmos.ProgressDetails `json:"details,omitempty"`
	Hardware   *lpmos.Hardware        `json:"hardware,omitempty"`
	Lines      []string               `json:"lines,omitempty"`
	Counts     map[lpmos.Status]int   `json:"counts,omitempty"`
	StoreID    string                 `json:"store_id,omitempty"`
	Rev        int64                  `json:"rev"`
}

func bodyOf(e api.Event, rev int64) body {
	b := body{Type: e.Type, TaskID: e.TaskID, RegionID: e.RegionID, Status: e.Status, Attempt: e.Attempt, Error: e.Failure, Hardware: e.Hardware, Lines: e.Lines, Rev: rev}
	if p := e.Progress; p != nil {
		b.Percentage, b.Stage, b.Message, b.Details, b.Attempt = &p.Percentage, p.Stage, p.Message, p.Details, p.Attempt
	}
	return b
}

func (h *Hub) encode(b body, kind, taskID, regionID string) *message {
	text, err := json.Marshal(b)
	if err != nil {
		panic(fmt.Sprintf("hub: encode %s: %v", kind, err))
	}
	frame, err := websocket.NewPreparedMessage(websocket.TextMessage, text)
	if err != nil {
		panic(fmt.Sprintf("hub: prepare %s: %v", kind, err))
	}
	return &message{rev: b.Rev, kind: kind, taskID: taskID, regionID: regionID, frame: frame}
}

// Run sends counts and looks after clients that are ahead of this replica,
// until ctx ends; then it closes all connections with 1001.
func (h *Hub) Run(ctx context.Context) error {
	t := time.NewTicker(countsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			h.close()
			return nil
		case now := <-t.C:
			h.tick(now)
		}
	}
}

func (h *Hub) tick(now time.Time) {
	counts := h.read.Counts()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.conns) > 0 && !maps.Equal(counts, h.counts) {
		m := h.encode(body{Type: "counts", Counts: counts, Rev: h.rev}, "counts", "", "")
		for c := range h.conns {
			if c.all {
				c.push(m)
			}
		}
	}
	h.counts = counts
	for c := range h.conns {
		if c.after > h.rev && now.Sub(c.since) > aheadPatience {
			c.after = 0
			c.push(h.resync())
		}
	}
}

func (h *Hub) resync() *message {
	return h.encode(body{Type: "resync", Rev: h.rev, StoreID: h.read.StoreID()}, "resync", "", "")
}

func (h *Hub) close() {
	h.mu.Lock()
	h.closed = true
	for c := range h.conns {
		c.end(websocket.CloseGoingAway, "the server restarts")
	}
	h.mu.Unlock()
	h.wg.Wait()
}

// Connections is how many clients are connected.
func (h *Hub) Connections() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns)
}
