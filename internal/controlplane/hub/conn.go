package hub

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/time/rate"

	"github.com/lpmos/lpmos"
)

// conn is one client. Its subscriptions are guarded by the hub's mutex, its
// queue by its own, so that a writer that waits on the network holds up nobody.
type conn struct {
	ws    *websocket.Conn
	after int64 // the client has everything up to here
	since time.Time

	patience time.Duration // of one write

	all     bool
	tasks   map[string]struct{}
	regions map[string]struct{}

	mu       sync.Mutex     // guards what follows
	queue    []*message     // nil where a message was taken out
	unsent   int            // messages in queue
	progress map[string]int // task → place of its unsent progress in queue
	wake     chan struct{}
	code     int // to close with, once set
	reason   string
}

// request is what a client may send.
type request struct {
	Type     string `json:"type"`
	TaskID   string `json:"task_id,omitempty"`
	RegionID string `json:"region_id,omitempty"`
}

// ServeHTTP upgrades GET /ws?after=rev&store_id=… and serves the client until
// it leaves.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ws, err := h.up.Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	c := &conn{
		ws: ws, since: time.Now(), patience: h.patience, tasks: map[string]struct{}{}, regions: map[string]struct{}{},
		progress: map[string]int{}, wake: make(chan struct{}, 1),
	}
	after := r.URL.Query().Get("after")
	c.after, _ = strconv.ParseInt(after, 10, 64)
	store := r.URL.Query().Get("store_id")

	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		ws.Close()
		return
	}
	h.conns[c] = struct{}{}
	h.wg.Add(1)
	if after != "" && (c.after < h.floor || store != "" && store != h.read.StoreID()) {
		c.after = 0
		c.push(h.resync())
	}
	h.mu.Unlock()

	done := make(chan struct{})
	go func() {
		defer close(done)
		h.receive(c)
	}()
	c.write(done)
	// What the client still sends is read for a moment: closing a connection
	// with unread data resets it, and the client would not learn why.
	_ = ws.SetReadDeadline(time.Now().Add(lingerTime))
	<-done
	ws.Close()
	h.mu.Lock()
	delete(h.conns, c)
	h.mu.Unlock()
	h.wg.Done()
}

// receive takes requests until the client leaves.
func (h *Hub) receive(c *conn) {
	c.ws.SetReadLimit(maxRead)
	// A deadline that cannot be set is of a connection that is closed: the next
	// read says so.
	alive := func() { _ = c.ws.SetReadDeadline(time.Now().Add(2*pingEvery + writeTimeout)) }
	alive()
	c.ws.SetPongHandler(func(string) error { alive(); return nil })
	limit := rate.NewLimiter(10, 100)
	for {
		_, text, err := c.ws.ReadMessage()
		if err != nil {
			c.end(websocket.CloseNormalClosure, "")
			return
		}
		if c.ending() {
			continue // read, so that the close frame arrives, but not served
		}
		alive()
		if !limit.Allow() {
			c.end(websocket.ClosePolicyViolation, "too many messages")
			continue
		}
		var req request
		if err := lpmos.UnmarshalJSON(text, &req); err != nil {
			h.refuse(c, err.Error())
			continue
		}
		h.serve(c, req)
	}
}

func (h *Hub) serve(c *conn, req request) {
	switch {
	case req.TaskID != "" && !lpmos.ValidTaskID(req.TaskID):
		h.refuse(c, "task_id is not a task id")
		return
	case req.RegionID != "" && !lpmos.ValidRegionID(req.RegionID):
		h.refuse(c, "region_id is not a region id")
		return
	case req.TaskID != "" && req.RegionID != "":
		h.refuse(c, "give task_id or region_id, not both")
		return
	case req.Type != "subscribe" && req.Type != "unsubscribe":
		h.refuse(c, "type is neither subscribe nor unsubscribe")
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if req.Type == "unsubscribe" {
		switch {
		case req.TaskID != "":
			delete(c.tasks, req.TaskID)
		case req.RegionID != "":
			delete(c.regions, req.RegionID)
		default:
			c.all = false
		}
		return
	}
	if len(c.tasks)+len(c.regions) >= maxSubscriptions {
		c.push(h.encode(body{Type: "error", Message: "too many subscriptions", Rev: h.rev}, "error", "", ""))
		return
	}
	var had []*message
	if c.after > 0 {
		for _, m := range h.ring {
			if m.rev > c.after && !c.wants(m) {
				had = append(had, m)
			}
		}
	}
	switch {
	case req.TaskID != "":
		c.tasks[req.TaskID] = struct{}{}
	case req.RegionID != "":
		c.regions[req.RegionID] = struct{}{}
	default:
		c.all = true
		if h.counts != nil {
			c.push(h.encode(body{Type: "counts", Counts: h.counts, Rev: h.rev}, "counts", "", ""))
		}
	}
	for _, m := range had {
		if c.wants(m) {
			c.push(m)
		}
	}
}

func (h *Hub) refuse(c *conn, problem string) {
	h.mu.Lock()
	m := h.encode(body{Type: "error", Message: problem, Rev: h.rev}, "error", "", "")
	h.mu.Unlock()
	c.push(m)
}

// wants reports whether m is for c. The hub's mutex is held.
func (c *conn) wants(m *message) bool {
	if c.all {
		// Logs are for who looks at one task: all of them at once is a flood
		// that nobody reads.
		if m.kind != "log" {
			return true
		}
	}
	if _, ok := c.tasks[m.taskID]; ok && m.taskID != "" {
		return true
	}
	if m.kind == "log" {
		return false
	}
	_, ok := c.regions[m.regionID]
	return ok
}

// push queues m. Older progress of the same task that was not sent yet is
// taken out, so that the queue stays in the order of revisions: each message's
// revision is a place to resume after.
func (c *conn) push(m *message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.code != 0 {
		return
	}
	if m.kind == "progress" {
		if i, ok := c.progress[m.taskID]; ok {
			c.queue[i] = nil
			c.unsent--
		}
		if len(c.queue) > 2*maxQueue {
			c.compact()
		}
		c.progress[m.taskID] = len(c.queue)
	}
	if c.unsent >= maxQueue {
		c.endLocked(websocket.CloseTryAgainLater, "too slow")
		return
	}
	c.queue = append(c.queue, m)
	c.unsent++
	c.signal()
}

// compact drops the places of what was taken out.
func (c *conn) compact() {
	c.queue = slices.DeleteFunc(c.queue, func(m *message) bool { return m == nil })
	for i, m := range c.queue {
		if m.kind == "progress" {
			c.progress[m.taskID] = i
		}
	}
}

func (c *conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *conn) end(code int, reason string) {
	c.mu.Lock()
	c.endLocked(code, reason)
	c.mu.Unlock()
}

func (c *conn) ending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.code != 0
}

func (c *conn) endLocked(code int, reason string) {
	if c.code == 0 {
		c.code, c.reason = code, reason
		c.signal()
	}
}

// write sends what is queued until the connection is to end.
func (c *conn) write(done <-chan struct{}) {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		select {
		case <-done:
			c.bye() // the reader may have a reason to give
			return
		case <-ping.C:
			if c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTimeout)) != nil {
				return
			}
		case <-c.wake:
		}
		c.mu.Lock()
		queue, ending := c.queue, c.code != 0
		c.queue, c.unsent = nil, 0
		clear(c.progress)
		c.mu.Unlock()
		if ending {
			c.bye()
			return
		}
		for _, m := range queue {
			if m == nil {
				continue
			}
			if c.ws.SetWriteDeadline(time.Now().Add(c.patience)) != nil || c.ws.WritePreparedMessage(m.frame) != nil {
				return
			}
		}
	}
}

// bye tells the client why it is left, if it still listens.
func (c *conn) bye() {
	c.mu.Lock()
	code, reason := c.code, c.reason
	c.mu.Unlock()
	if code == 0 {
		return
	}
	_ = c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), time.Now().Add(time.Second))
}

var _ http.Handler = (*Hub)(nil)
