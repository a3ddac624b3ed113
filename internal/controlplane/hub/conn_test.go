package hub

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// until waits for something that other goroutines bring about.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after a minute", what)
		}
	}
}

func taskID(n int) string { return fmt.Sprintf("550e8400-e29b-41d4-a716-%012d", n) }

// A change is given to those who read its topic, and nobody else is looked at.
func TestTopics(t *testing.T) {
	s := serve(t)
	const n = 50
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = s.dial("", `{"type":"subscribe","task_id":"`+taskID(i)+`"}`)
		clients[i].ready()
	}
	s.mu.Lock()
	for i := range clients {
		if topic := s.tasks[taskID(i)]; topic == nil || len(topic.conns) != 1 {
			t.Errorf("topic of task %d = %+v; want its one reader", i, topic)
		}
	}
	s.mu.Unlock()
	if got := s.Stats().Subscriptions; got != n {
		t.Errorf("%d topics are read; want %d", got, n)
	}
	until(t, "the answers are counted", func() bool { return s.Stats().Sent == n })
	before := s.Stats().Sent
	for i := range clients {
		s.Publish(status(int64(11+i), taskID(i), "dc1", lpmos.Approved))
	}
	for i, c := range clients {
		if m := c.next(); m.TaskID != taskID(i) || m.Rev != int64(11+i) {
			t.Errorf("client %d got %+v; want the status of its own task", i, m)
		}
	}
	until(t, "one message was sent for each published", func() bool { st := s.Stats(); return st.Sent-before == n && st.Published == n })
	// Whoever leaves is in no topic any more, and a topic without readers is
	// none.
	for i, c := range clients {
		if i%2 == 0 {
			c.send(`{"type":"unsubscribe","task_id":"` + taskID(i) + `"}`)
			c.ready()
		} else {
			c.Close()
		}
	}
	until(t, "no topic is left", func() bool { return s.Stats().Subscriptions == 0 && s.Connections() == n/2 })
}

// Leaving a topic in any order leaves the others in it.
func TestTopicMembership(t *testing.T) {
	topics := map[string]*topic{}
	conns := make([]*conn, 9)
	for i := range conns {
		conns[i] = &conn{}
		topicOf(topics, "x").join(conns[i])
		topicOf(topics, "x").join(conns[i]) // twice is once
		topicOf(topics, "y").join(conns[i])
	}
	x := topics["x"]
	for gone, i := range []int{4, 8, 0, 7, 1, 2, 6, 3, 5} {
		x.leave(conns[i])
		x.leave(conns[i])
		if conns[i].reads(x) || len(x.conns) != len(conns)-gone-1 {
			t.Errorf("after conn %d left, %d are in the topic; want %d", i, len(x.conns), len(conns)-gone-1)
		}
		for at, c := range x.conns {
			if c.topics[x] != at {
				t.Errorf("after conn %d left, a conn at %d believes to be at %d", i, at, c.topics[x])
			}
		}
	}
	if topics["x"] != nil || topics["y"] == nil {
		t.Errorf("topics = %v; want only the one that is read", topics)
	}
}

// What is queued while a client cannot take it leaves in few writes.
func TestBatches(t *testing.T) {
	s := serve(t)
	s.pace = time.Hour // the second write waits until the third message of another kind
	c := s.dial("", `{"type":"subscribe"}`)
	c.ready()
	until(t, "the answer is counted", func() bool { return s.Stats().Sent > 0 })
	before := s.Stats()
	const n = 300
	for i := range n {
		s.Publish(status(int64(11+i), task1, "dc1", lpmos.Approved))
	}
	s.mu.Lock()
	for c := range s.conns {
		c.ping() // does not wait
	}
	s.mu.Unlock()
	for i := range n {
		if m := c.next(); m.Rev != int64(11+i) {
			t.Fatalf("message %d has revision %d", i, m.Rev)
		}
	}
	until(t, "all are counted", func() bool { return s.Stats().Sent-before.Sent >= n })
	if writes := s.Stats().Writes - before.Writes; writes > 5 {
		t.Errorf("%d messages left in %d writes; want a few", n, writes)
	}
}

// A message larger than a batch, and batches of every size, arrive whole.
func TestFrames(t *testing.T) {
	s := serve(t)
	c := s.dial("", `{"type":"subscribe"}`)
	c.ready()
	sizes := []int{0, 1, 50, 125, 126, 1 << 10, 65_400, 65_536, batchBytes - 300, batchBytes, 200_000, 3}
	for i, n := range sizes {
		u := status(int64(11+i), task1, "dc1", lpmos.Failed)
		u.Events[0].Failure = &lpmos.Failure{Evidence: strings.Repeat("e", n)}
		s.Publish(u)
	}
	for i, n := range sizes {
		if m := c.next(); m.Rev != int64(11+i) || len(m.Error.Evidence) != n {
			t.Errorf("message %d has revision %d and %d bytes; want %d", i, m.Rev, len(m.Error.Evidence), n)
		}
	}
	for _, n := range []int{0, 125, 126, 65_535, 65_536} {
		b := frame(websocket.BinaryMessage, bytes.Repeat([]byte("x"), n))
		want := 2 + n
		switch {
		case n >= 1<<16:
			want += 8
		case n >= 126:
			want += 2
		}
		if len(b) != want || b[0] != 0x82 || b[1]&0x80 != 0 {
			t.Errorf("a frame of %d bytes has %d, and begins with %x", n, len(b), b[:2])
		}
	}
}

// A client whose computer is gone sends nothing, not even answers to pings.
func TestHalfOpen(t *testing.T) {
	if bound := silence + tickEvery; bound > 45*time.Second || silence < 2*pingEvery {
		t.Errorf("a half-open connection is found after %s, two pings after %s; want at most 45 s, and two pings before", bound, 2*pingEvery)
	}
	s := serve(t)
	quiet := s.dial("")
	pings := make(chan struct{}, 10)
	quiet.SetPingHandler(func(string) error { pings <- struct{}{}; return nil })
	ended := make(chan error, 1)
	go func() {
		_, _, err := quiet.ReadMessage()
		ended <- err
	}()
	until(t, "the connection is known", func() bool { return s.Connections() == 1 })
	s.tick(time.Now().Add(pingEvery + time.Second))
	<-pings
	s.tick(time.Now().Add(silence - time.Second))
	if s.Connections() != 1 {
		t.Error("a client is given up before its time")
	}
	s.tick(time.Now().Add(silence + time.Second))
	if err := <-ended; err == nil {
		t.Error("a silent client got a message")
	}
	until(t, "the connection is gone", func() bool { return s.Connections() == 0 })
	if st := s.Stats(); st.Silent != 1 {
		t.Errorf("stats = %+v; want one silent client", st)
	}

	alive := s.dial("")
	alive.ready()
	s.mu.Lock()
	for c := range s.conns {
		c.heard.Store(1) // as if long ago
	}
	s.mu.Unlock()
	alive.ready()
	s.tick(time.Now().Add(silence - time.Second))
	if s.Connections() != 1 {
		t.Error("a client that speaks is given up")
	}
}

// W01: a client that takes nothing is cut off, with what is queued for it.
func TestStalled(t *testing.T) {
	if bound := writeTimeout + tickEvery; bound > 15*time.Second {
		t.Errorf("a stalled client is evicted after %s; want at most 15 s", bound)
	}
	s := serve(t)
	stalled := s.dial("", `{"type":"subscribe"}`)
	stalled.ready()
	healthy := s.dial("", `{"type":"subscribe","task_id":"`+task2+`"}`)
	healthy.ready()
	evidence := strings.Repeat("e", 64<<10)
	var c *conn
	s.mu.Lock()
	c = s.all.conns[0]
	s.mu.Unlock()
	rev := int64(10)
	until(t, "a write stands still", func() bool {
		rev++
		if rev < 300 {
			u := status(rev, task1, "dc1", lpmos.Failed)
			u.Events[0].Failure = &lpmos.Failure{Evidence: evidence}
			s.Publish(u)
		}
		w := c.writing.Load()
		return w != 0 && s.at(time.Now())-w > int64(100*time.Millisecond)
	})
	s.tick(time.Now())
	if s.Connections() != 2 {
		t.Error("a slow client is cut off before its time")
	}
	s.tick(time.Now().Add(writeTimeout + time.Second))
	until(t, "the stalled client is gone", func() bool { return s.Connections() == 1 })
	if st := s.Stats(); st.Stalled != 1 {
		t.Errorf("stats = %+v; want one stalled client", st)
	}
	s.Publish(status(rev+1, task2, "dc1", lpmos.Approved))
	if m := healthy.next(); m.Rev != rev+1 {
		t.Errorf("the healthy client got %+v", m)
	}
}

// raw is a connection after the handshake, for clients that are no WebSocket
// library.
func (s *server) raw() net.Conn {
	s.t.Helper()
	ws, resp, err := websocket.DefaultDialer.DialContext(s.t.Context(), s.url+"/ws", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	s.t.Cleanup(func() { ws.Close() })
	return ws.NetConn()
}

// closeCode reads frames until the close frame and returns its code, or 0 if
// the connection ends without.
func closeCode(t *testing.T, c net.Conn) int {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		var head [2]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return 0
		}
		n := int64(head[1])
		if n == 126 {
			var long [2]byte
			if _, err := io.ReadFull(c, long[:]); err != nil {
				return 0
			}
			n = int64(binary.BigEndian.Uint16(long[:]))
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(c, payload); err != nil {
			return 0
		}
		if head[0] == 0x88 {
			return int(binary.BigEndian.Uint16(payload))
		}
	}
}

// W02: frames that no client of ours sends.
func TestHostileFrames(t *testing.T) {
	s := serve(t)
	witness := s.dial("", `{"type":"subscribe"}`)
	witness.ready()
	masked := func(first, length byte, rest ...byte) []byte {
		return append([]byte{first, 0x80 | length, 0, 0, 0, 0}, rest...)
	}
	for name, tt := range map[string]struct {
		first  []byte // once
		repeat []byte // until the server closes
		want   int
	}{
		"a message of 1 MB":                {first: append([]byte{0x81, 0xff}, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0), want: websocket.CloseMessageTooBig},
		"small messages without end":       {repeat: masked(0x81, 2, '{', '}'), want: websocket.ClosePolicyViolation},
		"pings without end":                {repeat: masked(0x89, 0), want: websocket.ClosePolicyViolation},
		"pongs without end":                {repeat: masked(0x8a, 0), want: websocket.ClosePolicyViolation},
		"empty fragments without end":      {first: masked(0x01, 0), repeat: masked(0x00, 0), want: websocket.ClosePolicyViolation},
		"fragments of more than a message": {first: masked(0x01, 0), repeat: masked(0x00, 4, 'a', 'a', 'a', 'a'), want: websocket.CloseMessageTooBig},
		"a frame without a mask":           {first: []byte{0x81, 0x02, '{', '}'}, want: websocket.CloseProtocolError},
		"a reserved opcode":                {first: masked(0x83, 0), want: websocket.CloseProtocolError},
		"a continuation of nothing":        {first: masked(0x80, 0), want: websocket.CloseProtocolError},
		"a ping of 126 bytes":              {first: append([]byte{0x89, 0xfe, 0, 126, 0, 0, 0, 0}, make([]byte, 126)...), want: websocket.CloseProtocolError},
	} {
		t.Run(name, func(t *testing.T) {
			c := s.raw()
			go func() {
				if _, err := c.Write(tt.first); err != nil || tt.repeat == nil {
					return
				}
				many := bytes.Repeat(tt.repeat, 512)
				for i := 0; i < 16_384; i++ { // far more than any bound
					if _, err := c.Write(many); err != nil {
						return
					}
				}
			}()
			// A client that goes on sending may be reset before it reads why.
			if got := closeCode(t, c); got != tt.want && (got != 0 || tt.repeat == nil) {
				t.Errorf("closed with %d; want %d", got, tt.want)
			}
			c.Close()
		})
	}
	until(t, "only the witness is left", func() bool { return s.Connections() == 1 })
	if n := s.Stats().Flooded; n != 4 {
		t.Errorf("%d clients were found flooding; want 4", n)
	}
	s.Publish(status(11, task1, "dc1", lpmos.Approved))
	if m := witness.next(); m.Rev != 11 {
		t.Errorf("the witness got %+v", m)
	}
}

// A client's ping is answered, among what is sent anyway.
func TestPing(t *testing.T) {
	s := serve(t)
	c := s.dial("", `{"type":"subscribe"}`)
	pongs := make(chan string, 1)
	c.SetPongHandler(func(data string) error { pongs <- data; return nil })
	if err := c.WriteControl(websocket.PingMessage, []byte("are you there?"), time.Now().Add(10*time.Second)); err != nil {
		t.Fatal(err)
	}
	c.ready()
	if got := <-pongs; got != "are you there?" {
		t.Errorf("pong = %q", got)
	}
	// A client that says goodbye gets its code back.
	if err := c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4321, "bye"), time.Now().Add(10*time.Second)); err != nil {
		t.Fatal(err)
	}
	c.closed(4321)
}

// Over TLS nothing can be written without waiting; the messages are the same.
func TestTLS(t *testing.T) {
	s := serve(t)
	srv := httptest.NewTLSServer(auth.As(program, s.Hub))
	defer srv.Close()
	d := websocket.Dialer{TLSClientConfig: srv.Client().Transport.(*http.Transport).TLSClientConfig}
	ws, resp, err := d.DialContext(t.Context(), "wss"+strings.TrimPrefix(srv.URL, "https"), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	defer ws.Close()
	c := &client{Conn: ws, t: t}
	c.send(`{"type":"subscribe"}`)
	c.ready()
	for rev := int64(11); rev < 111; rev++ {
		s.Publish(status(rev, task1, "dc1", lpmos.Approved))
	}
	for rev := int64(11); rev < 111; rev++ {
		if m := c.next(); m.Rev != rev {
			t.Fatalf("revision %d; want %d", m.Rev, rev)
		}
	}
	s.mu.Lock()
	for c := range s.conns {
		if c.raw != nil {
			t.Error("messages are written below TLS")
		}
	}
	s.mu.Unlock()
	go s.stop()
	c.closed(websocket.CloseGoingAway)
}

// W06: who subscribes to ever more is told to stop.
func TestSubscriptionsAreCapped(t *testing.T) {
	s := serve(t)
	c := &conn{hub: s.Hub, who: program, all: true}
	for i := range maxSubscriptions {
		s.serve(c, request{Type: "subscribe", TaskID: taskID(i)})
	}
	if n := s.Stats().Subscriptions; n != maxSubscriptions || c.queue.unsent != 0 {
		t.Fatalf("%d topics, %d messages; want %d and none", n, c.queue.unsent, maxSubscriptions)
	}
	c.state = running // it has no network; nothing is to be written
	s.serve(c, request{Type: "subscribe", RegionID: "dc1"})
	if n := s.Stats().Subscriptions; n != maxSubscriptions || c.queue.String() != "error/10" {
		t.Errorf("%d topics, queue %s; want %d and an error", n, &c.queue, maxSubscriptions)
	}
	s.serve(c, request{Type: "unsubscribe", TaskID: taskID(7)})
	s.serve(c, request{Type: "subscribe", RegionID: "dc1"})
	if c.queue.String() != "error/10" || len(c.topics) != maxSubscriptions {
		t.Errorf("queue %s, %d topics; want room after one was given back", &c.queue, len(c.topics))
	}
}

// However many statuses a client missed, it gets all that are kept, and is not
// taken for slow because of them.
func TestReplayOfMany(t *testing.T) {
	s := serve(t)
	const n = 4 * maxQueue
	for rev := int64(11); rev <= 10+n; rev++ {
		s.Publish(status(rev, task1, "dc1", lpmos.Approved))
	}
	c := s.dial("?after=10", `{"type":"subscribe"}`)
	for rev := int64(11); rev <= 10+n; rev++ {
		if m := c.next(); m.Rev != rev {
			t.Fatalf("replayed revision %d; want %d", m.Rev, rev)
		}
	}
	if st := s.Stats(); st.Replayed != n || st.Slow != 0 {
		t.Errorf("stats = %+v; want %d replayed to a client that is not slow", st, n)
	}
}

// What is kept for clients that come back is bounded in bytes, too.
func TestRingIsBoundedInBytes(t *testing.T) {
	s := serve(t)
	line := strings.Repeat("l", 16<<10)
	for rev := int64(11); rev < 11+4*ringBytes/(16<<10); rev++ {
		s.Publish(api.Update{Rev: rev, Events: []api.Event{{Type: api.EventLog, TaskID: task1, RegionID: "dc1", Lines: []string{line}}}})
		s.mu.Lock()
		kept, sum := len(s.ring), s.ringed
		s.mu.Unlock()
		if sum > ringBytes+(17<<10) || kept*(16<<10) > sum {
			t.Fatalf("the ring keeps %d messages and counts %d bytes; want at most %d", kept, sum, ringBytes)
		}
	}
	s.mu.Lock()
	floor, first := s.floor, s.ring[0].rev
	s.mu.Unlock()
	if first != floor+1 {
		t.Errorf("the ring begins with revision %d, but claims all after %d", first, floor)
	}
	if m := s.dial(fmt.Sprintf("?after=%d", floor-1), `{"type":"subscribe"}`).next(); m.Type != "resync" {
		t.Errorf("a client from before gets %+v; want a resync", m)
	}
}

// A message nobody reads is not encoded; one that is read is encoded once.
func TestEncodedOnce(t *testing.T) {
	s := serve(t)
	s.Publish(status(11, task1, "dc1", lpmos.Approved))
	s.mu.Lock()
	m := s.ring[0]
	if m.frame != nil {
		t.Error("a message was encoded for nobody")
	}
	s.mu.Unlock()
	first := s.dial("?after=10", `{"type":"subscribe"}`)
	if got := first.next(); got.Rev != 11 {
		t.Errorf("replayed %+v", got)
	}
	s.mu.Lock()
	encoded := &m.frame[0]
	s.mu.Unlock()
	if got := s.dial("?after=10", `{"type":"subscribe","task_id":"`+task1+`"}`).next(); got.Rev != 11 {
		t.Errorf("replayed %+v", got)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if encoded != &m.frame[0] || m.event != nil {
		t.Error("a message was encoded twice, or its event is kept")
	}
}

func TestTooManyConnections(t *testing.T) {
	s := serve(t)
	fill := make([]*conn, maxConnections)
	s.mu.Lock()
	for i := range fill {
		fill[i] = &conn{hub: s.Hub}
		s.conns[fill[i]] = struct{}{}
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range fill {
			delete(s.conns, c)
		}
	}()
	_, resp, err := websocket.DefaultDialer.DialContext(t.Context(), s.url, nil)
	if !errors.Is(err, websocket.ErrBadHandshake) || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one connection too many: %v, %v; want 503 with Retry-After", err, resp)
	}
	if n := s.Stats().Refused; n != 1 {
		t.Errorf("%d refused; want 1", n)
	}
}

// A shutdown does not wait for clients that take nothing.
func TestShutdownWithStalledClient(t *testing.T) {
	s := serve(t)
	s.dial("", `{"type":"subscribe"}`).ready()
	evidence := strings.Repeat("e", 64<<10)
	s.mu.Lock()
	c := s.all.conns[0]
	s.mu.Unlock()
	rev := int64(10)
	until(t, "a write stands still", func() bool {
		if rev++; rev < 300 {
			u := status(rev, task1, "dc1", lpmos.Failed)
			u.Events[0].Failure = &lpmos.Failure{Evidence: evidence}
			s.Publish(u)
		}
		w := c.writing.Load()
		return w != 0 && s.at(time.Now())-w > int64(100*time.Millisecond)
	})
	s.stop()
	if n := s.Connections(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// No goroutine beside its reader serves a client that nothing is sent to.
func TestIdleClientsAreCheap(t *testing.T) {
	s := serve(t)
	const n = 200
	before := runtime.NumGoroutine()
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = s.raw()
	}
	until(t, "one goroutine each", func() bool { return s.Connections() == n && runtime.NumGoroutine() <= before+n })
	for _, c := range conns {
		c.Close()
	}
	until(t, "all are gone", func() bool { return s.Connections() == 0 && runtime.NumGoroutine() <= before })
}

// sink is a client that takes everything.
type sink struct{ syscall.RawConn }

func (sink) Write(f func(uintptr) bool) error { f(nowhere.Fd()); return nil }

var nowhere, _ = os.OpenFile(os.DevNull, os.O_WRONLY, 0)

// BenchmarkPublish is one progress message to one of 10,000 connected clients,
// and to all of them.
func BenchmarkPublish(b *testing.B) {
	for _, own := range []bool{true, false} {
		b.Run(map[bool]string{true: "own", false: "all"}[own], func(b *testing.B) {
			h := New(&model{}, &doorkeeper{}, slog.New(slog.DiscardHandler))
			h.Publish(api.Update{Rev: 1, Reset: true})
			const n = 10_000
			for i := range n {
				c := &conn{hub: h, raw: sink{}}
				h.conns[c] = struct{}{}
				if own {
					topicOf(h.tasks, taskID(i)).join(c)
				} else {
					h.all.join(c)
				}
			}
			b.ReportAllocs()
			rev := int64(1)
			for b.Loop() {
				rev++
				h.Publish(progress(rev, taskID(int(rev)%n), "dc1", int(rev)%100))
			}
			for c := range h.conns {
				c.wait()
			}
		})
	}
}
