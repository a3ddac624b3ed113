package hub

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// conn is one client. Its subscriptions are guarded by the hub's mutex, its
// queue by its own, so that a writer that waits on the network holds up nobody.
type conn struct {
	hub   *Hub
	ws    *websocket.Conn
	net   net.Conn
	raw   syscall.RawConn // of net, to write without waiting; nil where TLS is between
	since int64           // as Hub.at has it, like all instants here

	// Guarded by the hub's mutex.
	who    auth.Principal
	all    bool           // who sees everything
	after  int64          // the client has everything up to here
	topics map[*topic]int // → its place in the topic
	pinged int64

	heard   atomic.Int64 // when something last came from the client
	writing atomic.Int64 // since when a write waits for the client; 0 while none does

	mu      sync.Mutex // guards what follows
	queue   queue
	state   writerState
	wrote   int64  // when something was last written
	pings   bool   // a ping is to be sent
	pong    []byte // so is this, a whole frame
	code    int    // to close with, once set
	reason  string
	said    bool          // the close frame is written, or cannot be
	stopped chan struct{} // closed when the writer has ended; made by who waits
}

// request is what a client may send.
type request struct {
	Type     string `json:"type"`
	TaskID   string `json:"task_id,omitempty"`
	RegionID string `json:"region_id,omitempty"`
}

// ServeHTTP upgrades GET /ws?after=rev&store_id=… and returns; the client is
// served until it leaves. That the handler's goroutine, with all that the HTTP
// server keeps for a request, ends here is most of why an idle client is cheap.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	who := auth.Of(r.Context())
	if err := who.May(auth.See); err != nil {
		h.stats.refused.Add(1)
		auth.Problem(w, auth.StatusOf(err), "No live connection", err.Error(), 0)
		return
	}
	if !h.admit(w, who) {
		return
	}
	m := &meter{}
	ws, err := h.up.Upgrade(hijacker{w, m}, r, nil)
	if err != nil { // the upgrader has answered
		h.mu.Lock()
		h.release(who)
		h.mu.Unlock()
		return
	}
	now := time.Now()
	c := &conn{hub: h, ws: ws, net: m.Conn, who: who, all: who.Everywhere(), since: h.at(now)}
	c.pinged = c.since
	c.heard.Store(c.since)
	m.c = c
	if t := tcpOf(m.Conn); t != nil {
		// How much the kernel holds for a client that reads nothing decides how
		// soon that is noticed. A refusal only means later.
		_ = t.SetWriteBuffer(sendBuffer)
		if _, encrypted := m.Conn.(*tls.Conn); !encrypted {
			c.raw, _ = t.SyscallConn() // without it, writes just wait
		}
	}
	query := r.URL.Query()
	after, store := query.Get("after"), query.Get("store_id")
	c.after, _ = strconv.ParseInt(after, 10, 64)

	h.mu.Lock()
	if h.closed {
		h.release(who)
		h.mu.Unlock()
		ws.Close()
		return
	}
	h.conns[c] = struct{}{}
	h.wg.Add(1)
	h.stats.accepted.Add(1)
	if after != "" && (c.after < h.floor || store != "" && store != h.read.StoreID()) {
		c.after = 0
		h.stats.resyncs.Add(1)
		c.push(h.resync(), now)
	}
	h.mu.Unlock()
	go h.run(c)
}

// admit takes a place for a connection of who, or answers why there is none.
func (h *Hub) admit(w http.ResponseWriter, who auth.Principal) bool {
	h.mu.Lock()
	closed, full := h.closed, len(h.conns) >= maxConnections
	// A program of this host, which measures or demonstrates, may have many.
	many := !who.Own && h.held[who.Name] >= maxOfOne
	if !closed && !full && !many {
		h.held[who.Name]++
	}
	h.mu.Unlock()
	switch {
	case many:
		h.stats.refused.Add(1)
		auth.Problem(w, http.StatusTooManyRequests, "No live connection", fmt.Sprintf("%s has %d live connections here already: close pages or programs that watch", who.Name, maxOfOne), 30*time.Second)
	case full:
		h.stats.refused.Add(1)
		fallthrough
	case closed:
		auth.Problem(w, http.StatusServiceUnavailable, "No live connection", "there is no room for more live connections now: try again", 5*time.Second)
	}
	return !closed && !full && !many
}

// release gives the place back. The hub's mutex is held.
func (h *Hub) release(who auth.Principal) {
	if h.held[who.Name]--; h.held[who.Name] <= 0 {
		delete(h.held, who.Name)
	}
}

// run serves a client until it leaves. Thousands of goroutines wait below it:
// what is on the stack while they do is kept so small that the runtime gives
// each 4 KiB and not 8, which is why the work is in functions of its own.
func (h *Hub) run(c *conn) {
	limit := &bucket{rate: 10, size: 100}
	c.prepare(limit)
	for more := true; more; {
		_, message, err := c.ws.NextReader()
		more = h.received(c, limit, message, err)
	}
	h.forget(c)
}

// forget ends what a client had.
func (h *Hub) forget(c *conn) {
	defer h.wg.Done()
	c.finish()
	c.net.Close()
	h.mu.Lock()
	delete(h.conns, c)
	h.release(c.who)
	for t := range c.topics {
		t.leave(c)
	}
	h.mu.Unlock()
}

// errFlood is what a read ends with when a client sends more than it may.
var errFlood = errors.New("the client sends too much")

// prepare says what is done about control frames.
func (c *conn) prepare(limit *bucket) {
	c.ws.SetReadLimit(maxRead)
	c.ws.SetPingHandler(func(data string) error {
		if !limit.take(1, time.Now()) {
			return errFlood
		}
		c.answer(data)
		return nil
	})
	c.ws.SetPongHandler(func(string) error { return nil }) // that something came is all it says
	c.ws.SetCloseHandler(func(code int, _ string) error { c.end(code, ""); return nil })
}

// received serves the next message and reports whether there may be another:
// false once the client has left or must.
func (h *Hub) received(c *conn, limit *bucket, message io.Reader, err error) bool {
	var text []byte
	if err == nil {
		text, err = io.ReadAll(message)
	}
	if err == nil && c.ending() {
		return true // read, so that the close frame arrives, but not served
	}
	if err == nil && !limit.take(1, time.Now()) {
		err = errFlood
	}
	var closed *websocket.CloseError
	switch {
	case err == nil:
		var req request
		if err := lpmos.UnmarshalJSON(text, &req); err != nil {
			h.refuse(c, err.Error())
			return true
		}
		h.serve(c, req)
		return true
	case errors.Is(err, errFlood):
		if c.end(websocket.ClosePolicyViolation, "too many messages") {
			h.stats.flooded.Add(1)
		}
		c.linger()
	case errors.As(err, &closed):
		// Its answer was queued by the handler.
	case c.gone(err):
		// It was told why by gorilla, which closes with 1009 for what is too
		// large and with 1002 for what is no WebSocket.
		c.linger()
	}
	return false
}

// linger reads on for a moment, without serving: closing a connection with
// unread data resets it, and the client would not learn why.
func (c *conn) linger() {
	c.wait()
	_ = c.net.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, io.LimitReader(c.net, 1<<20))
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
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if req.Type == "unsubscribe" {
		t := &h.all
		switch {
		case req.TaskID != "":
			t = h.tasks[req.TaskID]
		case req.RegionID != "":
			t = h.regions[req.RegionID]
		}
		if t != nil {
			t.leave(c)
		}
		return
	}
	// What is not for this client is as unknown as what never was. A task that
	// this replica has not heard of yet may be subscribed to: whatever comes of
	// it is looked at then.
	if region, known := h.read.TaskRegion(req.TaskID); req.TaskID != "" && known && !c.who.Sees(region) {
		c.push(newMessage(body{Type: "error", Message: "there is no such task", TaskID: req.TaskID, Rev: h.rev}), now)
		return
	}
	if req.RegionID != "" && !c.who.Sees(req.RegionID) {
		c.push(newMessage(body{Type: "error", Message: "there is no such region", RegionID: req.RegionID, Rev: h.rev}), now)
		return
	}
	if len(c.topics) >= maxSubscriptions {
		c.push(newMessage(body{Type: "error", Message: "too many subscriptions", Rev: h.rev}), now)
		return
	}
	var had []*message
	if c.after > 0 {
		for _, m := range h.missed(c.after) {
			if !h.wants(c, m) {
				had = append(had, m)
			}
		}
	}
	switch {
	case req.TaskID != "":
		topicOf(h.tasks, req.TaskID).join(c)
	case req.RegionID != "":
		topicOf(h.regions, req.RegionID).join(c)
	default:
		h.all.join(c)
	}
	c.replay(had, now)
	if req.TaskID == "" && req.RegionID == "" && h.counts != nil {
		c.push(h.countFor(c), now) // after what was missed, whose revisions are older
	}
}

// sees reports whether what happens in a region is for c. The hub's mutex is
// held.
func (c *conn) sees(region string) bool { return c.all || c.who.Sees(region) }

// within names the regions that c is limited to. The hub's mutex is held.
func (c *conn) within() string { return strings.Join(c.who.Within(), " ") }

// replay queues those of the messages that c wants now. They are not held
// against it: however long a client was away, it may have what is kept. The
// hub's mutex is held.
func (c *conn) replay(had []*message, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.code != 0 {
		return
	}
	c.queue.credit += len(had)
	for _, m := range had {
		if c.hub.wants(c, m) {
			m.bytes()
			c.queue.add(m)
			c.hub.stats.replayed.Add(1)
		}
	}
	if c.queue.unsent > 0 {
		c.startPaced(now)
	}
}

func (h *Hub) refuse(c *conn, problem string) {
	h.mu.Lock()
	rev := h.rev
	h.mu.Unlock()
	c.push(newMessage(body{Type: "error", Message: problem, Rev: rev}), time.Now())
}

// push queues m. The hub's mutex is held, unless m is encoded already.
func (c *conn) push(m *message, now time.Time) {
	m.bytes()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.code != 0 {
		return
	}
	replaced, ok := c.queue.add(m)
	switch {
	case !ok:
		c.hub.stats.slow.Add(1)
		c.endLocked(websocket.CloseTryAgainLater, "too slow")
	case replaced:
		c.hub.stats.coalesced.Add(1)
		fallthrough
	default:
		c.startPaced(now)
	}
}

// ping asks whether the client is there.
func (c *conn) ping() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.code == 0 {
		c.pings = true
		c.start()
	}
}

// answer returns a client's ping. Of several only the last need be answered
// (RFC 6455 §5.5.3).
func (c *conn) answer(data string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.code == 0 {
		c.pong = frame(websocket.PongMessage, []byte(data))
		c.start()
	}
}

// end closes the connection with a code. It reports whether it was the first to
// want that.
func (c *conn) end(code int, reason string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.endLocked(code, reason)
}

func (c *conn) endLocked(code int, reason string) bool {
	if c.code != 0 {
		return false
	}
	c.code, c.reason = code, reason
	c.start()
	return true
}

// gone ends the connection without a word. It reports whether a client that
// still listens may have been told something by gorilla.
func (c *conn) gone(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.code != 0 {
		return false
	}
	c.code, c.said = websocket.CloseAbnormalClosure, true
	c.start()
	var network net.Error
	return !errors.As(err, &network) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed)
}

func (c *conn) ending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.code != 0
}

// cut ends the connection where it stands.
func (c *conn) cut() {
	if t := tcpOf(c.net); t != nil {
		// What it did not take is of no use to anyone any more.
		_ = t.SetLinger(0)
		t.Close()
		return
	}
	c.net.Close()
}

// wait returns when what was to be written, the close frame last, is written or
// cannot be.
func (c *conn) wait() {
	c.mu.Lock()
	if c.state == idle {
		c.mu.Unlock()
		return
	}
	if c.stopped == nil {
		c.stopped = make(chan struct{})
	}
	stopped := c.stopped
	c.mu.Unlock()
	<-stopped
}

// finish ends the writer. The reader has ended, with c.code set or with none.
func (c *conn) finish() {
	c.gone(io.EOF)
	c.wait()
}

// Bytes a client may send: more than its messages need, less than hurts.
const (
	readRate  = 64 << 10 // in a second
	readBurst = 256 << 10
)

// meter is the connection as gorilla reads it: it notes that the client lives,
// and ends the reading of a client that floods us below the level of messages
// (pings, empty fragments of a message that never ends).
type meter struct {
	net.Conn
	c     *conn
	limit bucket
}

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	if n > 0 && !m.note(n) && err == nil {
		err = errFlood
	}
	return n, err
}

// note reports whether the client may have sent n bytes more.
func (m *meter) note(n int) bool {
	now := time.Now()
	m.c.heard.Store(m.c.hub.at(now))
	return m.limit.take(n, now)
}

// hijacker gives the upgrader the meter for the connection below it.
type hijacker struct {
	http.ResponseWriter
	m *meter
}

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	h.m.Conn, h.m.limit = c, bucket{rate: readRate, size: readBurst}
	return h.m, rw, err
}

func tcpOf(c net.Conn) *net.TCPConn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok { // crypto/tls
		c = t.NetConn()
	}
	t, _ := c.(*net.TCPConn)
	return t
}

// bucket allows rate things a second and size at once. It begins full, and is
// used by one goroutine.
type bucket struct {
	rate, size float64
	used       float64
	at         time.Time
}

func (b *bucket) take(n int, now time.Time) bool {
	b.used = max(0, b.used-now.Sub(b.at).Seconds()*b.rate) + float64(n)
	b.at = now
	return b.used <= b.size
}

var _ http.Handler = (*Hub)(nil)
