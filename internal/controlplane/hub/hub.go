// Package hub carries what changes to browsers and terminals over WebSocket
// (RFC 6455; messages as in contract §5 and api/events.md).
//
// A message is encoded once, however many read it, and only if somebody does.
// Connections are found by topic (everything, one region, one task), so that a
// change of one task costs what its readers cost, whoever else is connected.
// Each connection has a bounded queue: progress, hardware, a region's state and
// counts that were not sent yet give way to newer ones of the same subject, a
// status is never dropped, and a connection that cannot keep up with statuses
// is closed with 1013 so that it comes back and asks for what it missed. What
// is queued leaves in one write, at most one every few milliseconds.
//
// An idle connection is one goroutine that reads. A few goroutines write for all
// connections and never wait; where a client does not take what it is sent at
// once, a goroutine of its own waits for it, until it is given up.
package hub

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/scope"
)

// Limits of a connection.
const (
	maxConnections   = 20_000
	maxOfOne         = 256       // connections of one user, with all their sessions and tokens
	maxRead          = 4 << 10   // bytes of one message
	readBuffer       = 256       // bytes; what clients send is small
	sendBuffer       = 128 << 10 // bytes the kernel keeps for a client that is behind
	maxSubscriptions = 4096
	writeTimeout     = 10 * time.Second // of one write: a client that takes nothing for so long is cut off
	pingEvery        = 20 * time.Second
	silence          = 42 * time.Second // a client of which nothing is heard for so long is gone
	lingerTime       = time.Second
	paceTime         = 20 * time.Millisecond // least time between two writes to one client
	ringSize         = 8192                  // messages kept for clients that come back
	ringBytes        = 16 << 20              // and at most about so much
	aheadPatience    = 5 * time.Second
	tickEvery        = time.Second
	checkEvery       = 3 * time.Second // sessions end by themselves, too
)

type reader interface {
	StoreID() string
	Counts() map[lpmos.Status]int
	RegionCounts(region string) map[lpmos.Status]int
	TaskRegion(id string) (region string, ok bool)
}

// keeper knows whether who connected still may.
type keeper interface {
	Still(auth.Principal) (auth.Principal, bool)
	Changed() int64                // grows with every change about anybody
	Origin(r *http.Request) string // what a page of this site says as its Origin
}

// Hub knows all connections.
type Hub struct {
	read     reader
	keep     keeper
	log      *slog.Logger
	up       websocket.Upgrader
	patience time.Duration // of one write to one client
	pace     time.Duration
	epoch    time.Time // instants are counted from it, see at
	stats    counters
	writers  writers

	mu      sync.Mutex // guards what follows
	conns   map[*conn]struct{}
	held    map[string]int // connections by user, those that are being made too
	all     topic
	tasks   map[string]*topic
	regions map[string]*topic
	rev     int64 // of the newest update
	floor   int64 // messages after this revision are all in ring
	ring    []*message
	ringed  int                  // bytes of ring, about
	counts  map[lpmos.Status]int // nil before the first tick
	counted *message             // counts, as they were last sent
	some    map[string]*counted  // the same for those who see some regions, by their regions
	checked int64                // keeper.Changed, when all were last looked at
	check   int64                // instant at which all are looked at again
	closed  bool
	wg      sync.WaitGroup
}

// Stats is what a hub has done since it was made. The counters only grow.
type Stats struct {
	Connections   int   // now
	Subscriptions int   // topics that somebody reads now
	Accepted      int64 // connections
	Refused       int64 // connections, because nobody who may asked, or there were too many
	Published     int64 // messages, each counted once
	Sent          int64 // messages written to clients
	Writes        int64 // system calls that took; Sent/Writes is the size of a batch
	SentBytes     int64
	Coalesced     int64 // messages that gave way to newer ones of their subject
	Replayed      int64 // messages sent again to clients that came back
	Resyncs       int64 // clients told to read everything anew
	Slow          int64 // connections closed with 1013
	Stalled       int64 // connections cut off because a write stood still
	Silent        int64 // connections cut off because nothing was heard
	Flooded       int64 // connections closed with 1008
	Expelled      int64 // connections closed because their user may not look any more
}

type counters struct {
	accepted, refused, published, sent, writes, bytes, coalesced, replayed, resyncs atomic.Int64
	slow, stalled, silent, flooded, expelled                                        atomic.Int64
}

// New makes a hub. Publish must be a listener of the read model. Who connects
// is what auth.Of says of the handshake.
func New(read reader, keep keeper, log *slog.Logger) *Hub {
	h := &Hub{
		read: read, keep: keep, log: log, some: map[string]*counted{}, patience: writeTimeout, pace: paceTime, epoch: time.Now(),
		conns: map[*conn]struct{}{}, held: map[string]int{}, tasks: map[string]*topic{}, regions: map[string]*topic{},
	}
	h.writers.most = runtime.GOMAXPROCS(0)
	h.writers.buffers.New = func() any { b := make([]byte, 0, batchBytes); return &b }
	h.up = websocket.Upgrader{
		// With a pool for it, a connection holds no write buffer: all we write
		// through it is what it answers to broken frames.
		ReadBufferSize: readBuffer, WriteBufferPool: &sync.Pool{}, CheckOrigin: h.originFits,
	}
	return h
}

// originFits lets programs in, which show a token and need no Origin: no browser
// sends their credential by itself. What a browser does send by itself, its
// cookie, counts only from a page of exactly this origin; so does nothing at
// all, where --insecure-no-login lets everybody in.
func (h *Hub) originFits(r *http.Request) bool {
	origin, kind := r.Header.Get("Origin"), auth.Of(r.Context()).Kind
	return origin == "" && (kind == auth.Token || kind == auth.Open) || origin == h.keep.Origin(r)
}

// at is an instant as connections keep it: never 0.
func (h *Hub) at(t time.Time) int64 { return max(int64(t.Sub(h.epoch)), 0) + 1 }

// Publish sends one update to all it concerns. It never blocks on a client.
func (h *Hub) Publish(u api.Update) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := h.rev == 0
	h.rev = u.Rev
	if u.Reset {
		h.ring, h.ringed, h.floor = nil, 0, u.Rev
		if !first {
			m := h.resync()
			for c := range h.conns {
				h.stats.resyncs.Add(1)
				c.push(m, time.Now())
			}
		}
		return
	}
	if len(u.Events) == 0 {
		return
	}
	now := time.Now()
	for i := range u.Events {
		// Only the last message of a transaction carries its revision; whoever
		// is cut off between two of them resumes before the first.
		rev := u.Rev - 1
		if i == len(u.Events)-1 {
			rev = u.Rev
		}
		m := eventMessage(&u.Events[i], rev, u.Rev)
		h.stats.published.Add(1)
		h.remember(m)
		h.deliver(m, u.Rev, now)
	}
}

// remember keeps m for clients that come back, and forgets what is too old.
func (h *Hub) remember(m *message) {
	h.ring = append(h.ring, m)
	h.ringed += m.size
	drop := 0
	if over := len(h.ring) - ringSize; over > ringSize/4 {
		drop = over
	}
	for left := h.ringed; left > ringBytes && drop < len(h.ring)-1; {
		// A good part at once, so that this is rare.
		for until := left - ringBytes/4; left > until && drop < len(h.ring)-1; drop++ {
			left -= h.ring[drop].size
		}
	}
	if drop == 0 {
		return
	}
	h.floor = h.ring[drop-1].of
	h.ring = append([]*message(nil), h.ring[drop:]...)
	h.ringed = 0
	for _, m := range h.ring {
		h.ringed += m.size
	}
}

// missed are the messages of the updates after a revision.
func (h *Hub) missed(after int64) []*message {
	from, _ := slices.BinarySearchFunc(h.ring, after, func(m *message, after int64) int {
		if m.of > after {
			return 1
		}
		return -1
	})
	return h.ring[from:]
}

// deliver queues m for everyone who wants it, once.
func (h *Hub) deliver(m *message, rev int64, now time.Time) {
	give := func(c *conn) {
		if rev > c.after && c.sees(m.regionID) {
			c.push(m, now)
		}
	}
	// Logs are for who looks at one task: all of them at once is a flood that
	// nobody reads.
	var region *topic
	if m.kind != api.EventLog {
		for _, c := range h.all.conns {
			give(c)
		}
		if region = h.regions[m.regionID]; region != nil {
			for _, c := range region.conns {
				if !c.reads(&h.all) {
					give(c)
				}
			}
		}
	}
	if t := h.tasks[m.taskID]; t != nil && m.taskID != "" {
		for _, c := range t.conns {
			if m.kind == api.EventLog || !c.reads(&h.all) && (region == nil || !c.reads(region)) {
				give(c)
			}
		}
	}
}

// wants reports whether m is for c.
func (h *Hub) wants(c *conn, m *message) bool {
	if !c.sees(m.regionID) {
		return false
	}
	if t := h.tasks[m.taskID]; t != nil && c.reads(t) {
		return true
	}
	if m.kind == api.EventLog {
		return false
	}
	if c.reads(&h.all) {
		return true
	}
	t := h.regions[m.regionID]
	return t != nil && c.reads(t)
}

// Run sends counts and looks after clients that stand still, fell silent or are
// ahead of this replica, until ctx ends; then it closes all connections with
// 1001.
func (h *Hub) Run(ctx context.Context) error {
	t := time.NewTicker(tickEvery)
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
	changed := h.counts == nil || !maps.Equal(counts, h.counts)
	if changed {
		h.counts, h.counted = counts, nil
	}
	// What is counted in some regions may be another while the whole is the
	// same: one task less here, one more there.
	for _, one := range h.some {
		one.stale, one.changed = true, false
	}
	for _, c := range h.all.conns {
		if c.all {
			if changed {
				c.push(h.count(), now)
			}
		} else if m := h.countFor(c); h.some[c.within()].changed {
			c.push(m, now)
		}
	}
	at := h.at(now)
	if changed := h.keep.Changed(); changed != h.checked || at >= h.check {
		h.checked, h.check = changed, at+int64(checkEvery)
		h.lookAgain()
	}
	for c := range h.conns {
		if c.after > h.rev && at-c.since > int64(aheadPatience) {
			c.after = 0
			h.stats.resyncs.Add(1)
			c.push(h.resync(), now)
		}
		switch began := c.writing.Load(); {
		case began != 0 && at-began > int64(h.patience):
			h.stats.stalled.Add(1)
			c.cut()
		case at-c.heard.Load() > int64(silence):
			h.stats.silent.Add(1)
			c.cut()
		case at-c.pinged > int64(pingEvery):
			c.pinged = at
			c.ping()
		}
	}
}

// count is the message with the counts, at the revision of now. There are some.
func (h *Hub) count() *message {
	if h.counted == nil || h.counted.rev != h.rev {
		h.counted = newMessage(body{Type: "counts", Counts: h.counts, Rev: h.rev})
		h.counted.subject = subject{kind: "counts"}
	}
	return h.counted
}

// counted are the counts of some regions, as they were last sent.
type counted struct {
	m       *message
	of      map[lpmos.Status]int
	stale   bool // may be another by now
	changed bool // since the last tick
}

// countFor is the message with the counts that c may see. The hub's mutex is
// held.
func (h *Hub) countFor(c *conn) *message {
	if c.all {
		return h.count()
	}
	key := c.within()
	one := h.some[key]
	if one == nil {
		one = &counted{stale: true}
		h.some[key] = one
	}
	if one.stale {
		one.stale = false
		if now := scope.CountsOf(h.read, c.who.Within()); one.of == nil || !maps.Equal(now, one.of) {
			one.of, one.changed = now, true
			one.m = newMessage(body{Type: "counts", Counts: now, Rev: h.rev})
			one.m.subject = subject{kind: "counts"}
		}
	}
	return one.m
}

// lookAgain lets go whoever may not look any more, and narrows who may look at
// less. The hub's mutex is held.
func (h *Hub) lookAgain() {
	used := map[string]bool{}
	for c := range h.conns {
		now, ok := h.keep.Still(c.who)
		if !ok || now.May(auth.See) != nil {
			if c.end(websocket.ClosePolicyViolation, "signed out") {
				h.stats.expelled.Add(1)
			}
			continue
		}
		c.who, c.all = now, now.Everywhere()
		used[c.within()] = true
	}
	maps.DeleteFunc(h.some, func(regions string, _ *counted) bool { return !used[regions] })
}

func (h *Hub) resync() *message {
	return newMessage(body{Type: "resync", Rev: h.rev, StoreID: h.read.StoreID()})
}

// close says goodbye to everyone, and cuts off who does not take it.
func (h *Hub) close() {
	h.mu.Lock()
	h.closed = true
	for c := range h.conns {
		c.end(websocket.CloseGoingAway, "the server restarts")
	}
	h.mu.Unlock()
	force := time.AfterFunc(2*lingerTime, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for c := range h.conns {
			c.cut()
		}
	})
	h.wg.Wait()
	force.Stop()
}

// Connections is how many clients are connected.
func (h *Hub) Connections() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns)
}

// Stats is what the hub has done so far.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	conns, topics := len(h.conns), len(h.tasks)+len(h.regions)
	if len(h.all.conns) > 0 {
		topics++
	}
	h.mu.Unlock()
	s := &h.stats
	return Stats{
		Connections: conns, Subscriptions: topics,
		Accepted: s.accepted.Load(), Refused: s.refused.Load(), Published: s.published.Load(),
		Sent: s.sent.Load(), Writes: s.writes.Load(), SentBytes: s.bytes.Load(), Coalesced: s.coalesced.Load(),
		Replayed: s.replayed.Load(), Resyncs: s.resyncs.Load(),
		Slow: s.slow.Load(), Stalled: s.stalled.Load(), Silent: s.silent.Load(), Flooded: s.flooded.Load(), Expelled: s.expelled.Load(),
	}
}
