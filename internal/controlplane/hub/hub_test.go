package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	task1 = "550e8400-e29b-41d4-a716-446655440001"
	task2 = "550e8400-e29b-41d4-a716-446655440002"
)

type model struct {
	mu     sync.Mutex
	counts map[lpmos.Status]int
	dc1    map[lpmos.Status]int // else one is pending
}

func (m *model) StoreID() string { return "store-1" }
func (m *model) Counts() map[lpmos.Status]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts
}

func (m *model) RegionCounts(region string) map[lpmos.Status]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if region == "dc1" && m.dc1 != nil {
		return m.dc1
	}
	return map[lpmos.Status]int{lpmos.Pending: 1}
}

// Tasks 1 and 3 are in dc1, 2 is in dc2, as status and progress below have it.
func (m *model) TaskRegion(id string) (string, bool) {
	region, ok := map[string]string{task1: "dc1", task2: "dc2"}[id]
	return region, ok
}

// doorkeeper lets everybody stay as they are, unless told otherwise.
type doorkeeper struct {
	mu      sync.Mutex
	changed int64
	now     func(auth.Principal) (auth.Principal, bool)
}

func (d *doorkeeper) Still(p auth.Principal) (auth.Principal, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now == nil {
		return p, true
	}
	return d.now(p)
}

func (d *doorkeeper) Changed() int64 { d.mu.Lock(); defer d.mu.Unlock(); return d.changed }

func (d *doorkeeper) Origin(r *http.Request) string { return "http://" + r.Host }

// program is who connects in most tests: with a token, an admin of everything.
var program = auth.Principal{Kind: auth.Token, Name: "tester", Role: lpmos.Admin}

// server is a hub behind a real listener that stands at revision 10.
type server struct {
	*Hub
	t    *testing.T
	url  string
	stop func()
	door *doorkeeper
	as   func(auth.Principal) // who connects from now on
}

func serve(t *testing.T) *server {
	t.Helper()
	door := &doorkeeper{}
	h := New(&model{counts: map[lpmos.Status]int{lpmos.Pending: 2}}, door, slog.New(slog.DiscardHandler))
	h.Publish(api.Update{Rev: 10, Reset: true})
	who := &program
	var mu sync.Mutex
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now := *who
		mu.Unlock()
		auth.As(now, h).ServeHTTP(w, r)
	}))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	s := &server{Hub: h, t: t, door: door, as: func(p auth.Principal) { mu.Lock(); defer mu.Unlock(); who = &p }, url: "ws" + strings.TrimPrefix(srv.URL, "http"), stop: func() { cancel(); wg.Wait() }}
	t.Cleanup(func() { s.stop(); srv.Close() })
	return s
}

// client is one WebSocket.
type client struct {
	*websocket.Conn
	t *testing.T
}

func (s *server) dial(query string, requests ...string) *client {
	s.t.Helper()
	ws, resp, err := websocket.DefaultDialer.DialContext(s.t.Context(), s.url+"/ws"+query, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	s.t.Cleanup(func() { ws.Close() })
	c := &client{ws, s.t}
	for _, r := range requests {
		c.send(r)
	}
	return c
}

func (c *client) send(text string) {
	c.t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

// read gives the next message that is not a count.
func (c *client) read() (body, error) {
	for {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		_, b, err := c.ReadMessage()
		if err != nil {
			return body{}, err
		}
		var m body
		if err := json.Unmarshal(b, &m); err != nil {
			return body{}, err
		}
		if m.Rev == 0 {
			c.t.Errorf("message %s has no rev", b)
		}
		if m.Type != "counts" {
			return m, nil
		}
	}
}

func (c *client) next() body {
	c.t.Helper()
	m, err := c.read()
	if err != nil {
		c.t.Fatalf("no message: %v", err)
	}
	return m
}

// ready waits until everything sent before was served: the answer to a request
// that is refused comes after it.
func (c *client) ready() {
	c.t.Helper()
	c.send(`{"type":"ready?"}`)
	for {
		if m := c.next(); m.Type == "error" {
			return
		}
	}
}

func (c *client) closed(want int) {
	c.t.Helper()
	for {
		_, err := c.read()
		var ce *websocket.CloseError
		if errors.As(err, &ce) {
			if ce.Code != want {
				c.t.Errorf("closed with %d %s; want %d", ce.Code, ce.Text, want)
			}
			return
		}
		if err != nil {
			c.t.Errorf("connection ended with %v; want close code %d", err, want)
			return
		}
	}
}

func status(rev int64, id, region string, s lpmos.Status) api.Update {
	return api.Update{Rev: rev, Events: []api.Event{{Type: api.EventStatus, TaskID: id, RegionID: region, Status: string(s)}}}
}

func progress(rev int64, id, region string, percent int) api.Update {
	return api.Update{Rev: rev, Events: []api.Event{{
		Type: api.EventProgress, TaskID: id, RegionID: region, Progress: &lpmos.Progress{TaskID: id, Attempt: 1, Stage: lpmos.Downloading, Percentage: percent, Message: "m"},
	}}}
}

func TestSubscriptions(t *testing.T) {
	s := serve(t)
	one := s.dial("", `{"type":"subscribe","task_id":"`+task1+`"}`)
	all := s.dial("", `{"type":"subscribe"}`)
	region := s.dial("", `{"type":"subscribe","region_id":"dc2"}`)
	former := s.dial("", `{"type":"subscribe"}`, `{"type":"unsubscribe"}`)
	for _, c := range []*client{one, all, region, former} {
		c.ready()
	}
	updates := []api.Update{
		status(11, task1, "dc1", lpmos.Approved),
		status(12, task2, "dc2", lpmos.Approved),
		progress(13, task1, "dc1", 40),
		{Rev: 14, Events: []api.Event{{Type: api.EventLog, TaskID: task1, RegionID: "dc1", Lines: []string{"a"}}}},
		{Rev: 15, Events: []api.Event{{Type: api.EventLog, TaskID: task2, RegionID: "dc2", Lines: []string{"b"}}}},
		{Rev: 16, Events: []api.Event{{Type: api.EventRegion, RegionID: "dc2", Status: "offline"}}},
		{Rev: 17, Events: []api.Event{
			{Type: api.EventHardware, TaskID: task1, RegionID: "dc1", Hardware: &lpmos.Hardware{BootMode: "uefi"}},
			{Type: api.EventStatus, TaskID: task1, RegionID: "dc1", Status: "failed", Failure: &lpmos.Failure{Code: "x"}},
		}},
		status(18, task2, "dc2", lpmos.Canceled),
		{Rev: 19, Events: []api.Event{{Type: api.EventRegion, RegionID: "dc1", Status: "online"}, {Type: api.EventStatus, TaskID: task1, RegionID: "dc2", Status: "end"}}},
	}
	for _, u := range updates {
		s.Publish(u)
	}
	for name, tt := range map[string]struct {
		c    *client
		want string
	}{
		"one task":   {one, "status/11 progress/13 log/14 hardware/16 status/17 status/19"},
		"all":        {all, "status/11 status/12 progress/13 region/16 hardware/16 status/17 status/18 region/18 status/19"},
		"one region": {region, "status/12 region/16 status/18 status/19"},
	} {
		var got []string
		for {
			m := tt.c.next()
			got = append(got, fmt.Sprintf("%s/%d", m.Type, m.Rev))
			if m.Status == "end" {
				break
			}
			if m.Type == "progress" && (*m.Percentage != 40 || m.Stage != lpmos.Downloading || m.Message != "m" || m.TaskID != task1) {
				t.Errorf("progress = %+v", m)
			}
			if m.Status == "failed" && m.Error.Code != "x" || m.Type == "hardware" && m.Hardware.BootMode != "uefi" {
				t.Errorf("message = %+v", m)
			}
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%s: got %s; want %s", name, got, tt.want)
		}
	}
	former.send(`{"type":"nothing"}`)
	if m := former.next(); m.Type != "error" {
		t.Errorf("a client that unsubscribed got %+v", m)
	}
	if n := s.Connections(); n != 4 {
		t.Errorf("%d connections; want 4", n)
	}
}

// A transaction's messages arrive together or are asked for again: only the last
// carries its revision.
func TestReplay(t *testing.T) {
	s := serve(t)
	for rev := int64(11); rev <= 20; rev++ {
		s.Publish(status(rev, task1, "dc1", lpmos.Approved))
	}
	c := s.dial("?after=17&store_id=store-1", `{"type":"subscribe","task_id":"`+task1+`"}`)
	for _, want := range []int64{18, 19, 20} {
		if m := c.next(); m.Rev != want || m.Type != "status" {
			t.Errorf("replayed %+v; want revision %d", m, want)
		}
	}
	c.ready()
	s.Publish(status(21, task1, "dc1", lpmos.Approved))
	if m := c.next(); m.Rev != 21 {
		t.Errorf("then %+v; want revision 21", m)
	}
	// Two subscriptions that cover one message bring it once.
	both := s.dial("?after=20", `{"type":"subscribe","task_id":"`+task1+`"}`, `{"type":"subscribe"}`)
	if m := both.next(); m.Rev != 21 {
		t.Errorf("replayed %+v; want revision 21", m)
	}
	both.send(`{"type":"x"}`)
	if m := both.next(); m.Type != "error" {
		t.Errorf("a message came twice: %+v", m)
	}
	from10 := s.dial("?after=10", `{"type":"subscribe"}`)
	if m := from10.next(); m.Type != "status" || m.Rev != 11 {
		t.Errorf("after=10 brings %+v; want the first message, not a resync", m)
	}
}

// A client that was cut off between two messages of one update, or has seen
// nothing of it, gets all of it.
func TestReplayOfWholeUpdates(t *testing.T) {
	s := serve(t)
	s.Publish(status(11, task1, "dc1", lpmos.Pending))
	s.Publish(api.Update{Rev: 12, Events: []api.Event{
		{Type: api.EventHardware, TaskID: task1, RegionID: "dc1", Hardware: &lpmos.Hardware{BootMode: "uefi"}},
		{Type: api.EventStatus, TaskID: task1, RegionID: "dc1", Status: string(lpmos.AwaitingApproval)},
	}})
	c := s.dial("?after=11&store_id=store-1", `{"type":"subscribe","task_id":"`+task1+`"}`)
	if m := c.next(); m.Type != "hardware" || m.Rev != 11 {
		t.Errorf("replayed %+v; want the hardware, which is safe to resume after 11", m)
	}
	if m := c.next(); m.Type != "status" || m.Rev != 12 {
		t.Errorf("then %+v; want the status", m)
	}
	// Where the first half of an update is forgotten, nobody is promised the whole.
	s.mu.Lock()
	for i := range 2 * ringSize {
		s.remember(&message{rev: 20 + int64(i)/2*2 + int64(i)%2, of: 21 + int64(i)/2*2})
	}
	if s.floor != s.ring[0].of && s.floor != s.ring[0].of-2 {
		t.Errorf("all after %d is claimed to be kept, and the first kept is of %d", s.floor, s.ring[0].of)
	}
	if missed := s.missed(s.floor); len(missed) == 0 || missed[0].of == s.floor || len(missed) > 1 && missed[0].of != missed[1].of {
		t.Errorf("after %d begins with %+v; want a whole update", s.floor, missed[:2])
	}
	s.mu.Unlock()
}

func TestResync(t *testing.T) {
	s := serve(t)
	for name, query := range map[string]string{"too old": "?after=9", "another store": "?after=10&store_id=store-0", "zero": "?after=0", "no number": "?after=x"} {
		c := s.dial(query, `{"type":"subscribe"}`)
		if m := c.next(); m.Type != "resync" || m.Rev != 10 || m.StoreID != "store-1" {
			t.Errorf("%s: %+v; want a resync to revision 10 of store-1", name, m)
		}
		c.ready()
		s.Publish(status(s.rev+1, task1, "dc1", lpmos.Approved))
		if m := c.next(); m.Type != "status" {
			t.Errorf("%s: after the resync %+v; want what happens then", name, m)
		}
		s.mu.Lock()
		s.rev, s.floor, s.ring = 10, 10, nil
		s.mu.Unlock()
	}
	ahead := s.dial("?after=100", `{"type":"subscribe"}`)
	ahead.ready()
	s.tick(time.Now())
	ahead.ready() // nothing yet: this replica may only be a little behind
	s.tick(time.Now().Add(2 * aheadPatience))
	if m := ahead.next(); m.Type != "resync" {
		t.Errorf("a client that is ahead for long gets %+v; want a resync", m)
	}
	s.Publish(api.Update{Rev: 50, Reset: true})
	if m := ahead.next(); m.Type != "resync" || m.Rev != 50 {
		t.Errorf("after the read model began anew: %+v; want a resync to 50", m)
	}
}

// Whoever is cut off for longer than the ring remembers is told so, and within
// it misses nothing.
func TestRingForgets(t *testing.T) {
	s := serve(t)
	const last = 10 + 2*ringSize
	for rev := int64(11); rev <= last; rev++ {
		s.Publish(status(rev, task1, "dc1", lpmos.Approved))
	}
	s.mu.Lock()
	floor, kept := s.floor, len(s.ring)
	s.mu.Unlock()
	if kept < ringSize || kept > ringSize*5/4 || floor != last-int64(kept) {
		t.Errorf("the ring holds %d after revision %d; want all after it", kept, floor)
	}
	if m := s.dial(fmt.Sprintf("?after=%d", floor-1), `{"type":"subscribe"}`).next(); m.Type != "resync" {
		t.Errorf("too old: %+v; want a resync", m)
	}
	c := s.dial(fmt.Sprintf("?after=%d", last-100), `{"type":"subscribe"}`)
	for want := int64(last - 99); want <= last; want++ {
		if m := c.next(); m.Rev != want {
			t.Fatalf("replayed revision %d; want %d", m.Rev, want)
		}
	}
}

// A client that does not read is closed with 1013 and holds nobody up.
func TestSlowClient(t *testing.T) {
	s := serve(t)
	s.patience = 10 * time.Minute // a loaded machine must not end the blocked write before the queue is full
	s.pace = 0                    // the healthy client answers each message
	slow := s.dial("", `{"type":"subscribe"}`)
	slow.ready()
	healthy := s.dial("", `{"type":"subscribe"}`)
	healthy.ready()
	const n = 1500
	evidence := strings.Repeat("e", 16<<10)
	got := make(chan int, 1)
	beat := make(chan struct{}, 64)
	go func() {
		seen := 0
		defer func() { got <- seen }()
		for seen < n {
			if m, err := healthy.read(); err != nil || m.Type != "status" {
				return
			}
			seen++
			beat <- struct{}{}
		}
	}()
	for i := range n {
		u := status(int64(11+i), task1, "dc1", lpmos.Failed)
		u.Events[0].Failure = &lpmos.Failure{Evidence: evidence}
		s.Publish(u)
		select {
		case <-beat: // the healthy client keeps up
		case <-time.After(time.Minute):
			t.Fatal("the healthy client is held up")
		}
	}
	if seen := <-got; seen != n {
		t.Errorf("the healthy client saw %d of %d statuses", seen, n)
	}
	slow.closed(websocket.CloseTryAgainLater)
}

// However quickly progress comes, a client ends on the newest and sees every
// status, never an older value after a newer one.
func TestStatusIsNeverLost(t *testing.T) {
	s := serve(t)
	c := s.dial("", `{"type":"subscribe"}`)
	c.ready()
	const rounds = 300
	go func() {
		rev := int64(10)
		for i := range rounds {
			for p := range 30 {
				rev++
				s.Publish(progress(rev, task1, "dc1", p))
			}
			rev++
			s.Publish(api.Update{Rev: rev, Events: []api.Event{{Type: api.EventStatus, TaskID: task1, RegionID: "dc1", Status: fmt.Sprint(i)}}})
			time.Sleep(100 * time.Microsecond)
		}
		s.Publish(progress(rev+1, task1, "dc1", 100))
	}()
	var statuses int
	var rev int64
	for {
		m := c.next()
		if m.Rev <= rev {
			t.Fatalf("revision %d comes after %d", m.Rev, rev)
		}
		rev = m.Rev
		if m.Type == "status" {
			if m.Status != fmt.Sprint(statuses) {
				t.Fatalf("status %s; want %d", m.Status, statuses)
			}
			statuses++
		} else if *m.Percentage == 100 {
			break
		}
	}
	if statuses != rounds {
		t.Errorf("%d of %d statuses came", statuses, rounds)
	}
}

// W03: what a browser sends by itself counts only from a page of this origin.
func TestOrigin(t *testing.T) {
	s := serve(t)
	s.as(auth.Principal{Kind: auth.Session, Name: "anna", Role: lpmos.Viewer})
	host := strings.TrimPrefix(s.url, "ws://")
	for origin, want := range map[string]int{
		"": 403, "http://" + host: 101, "https://" + host: 403, "https://evil.example": 403, "http://" + host + ".evil.example": 403, "null": 403, "http://localhost": 403, "file://": 403,
	} {
		h := http.Header{}
		if origin != "" {
			h.Set("Origin", origin)
		}
		ws, resp, err := websocket.DefaultDialer.DialContext(t.Context(), s.url, h)
		if err == nil {
			ws.Close()
		}
		if resp == nil || resp.StatusCode != want {
			t.Errorf("Origin %q: %v, %v; want %d", origin, resp, err, want)
		}
		if resp != nil {
			resp.Body.Close()
		}
	}
	resp, err := http.Get("http" + strings.TrimPrefix(s.url, "ws"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("an ordinary GET = %d; want 400", resp.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
}

// V07, among other messages that mean nothing.
func TestBadMessages(t *testing.T) {
	s := serve(t)
	c := s.dial("")
	for _, text := range []string{
		``, `{`, `[]`, `"subscribe"`, `{}`, `{"type":"approve"}`, `{"type":"subscribe","task":"x"}`, `{"type":"subscribe","TASK_ID":"` + task1 + `"}`,
		`{"type":"subscribe","task_id":"t1/approval"}`, `{"type":"subscribe","task_id":"` + task1 + `/approval"}`, `{"type":"subscribe","task_id":".."}`,
		`{"type":"subscribe","region_id":"dc1/../dc2"}`, `{"type":"subscribe","task_id":"` + task1 + `","region_id":"dc1"}`,
		`{"type":"subscribe","type":"unsubscribe"}`, `{"type":"subscribe"}{}`, `{"type":1}`, "{\"type\":\"a\\u202e\"}",
	} {
		c.send(text)
		if m := c.next(); m.Type != "error" || m.Message == "" {
			t.Errorf("%s is answered with %+v; want an error", text, m)
		}
	}
	if err := c.WriteMessage(websocket.BinaryMessage, []byte{0xff, 0x00}); err != nil {
		t.Fatal(err)
	}
	if m := c.next(); m.Type != "error" {
		t.Errorf("a binary message is answered with %+v", m)
	}
	c.send(`{"type":"subscribe","task_id":"` + task1 + `"}`)
	c.ready()
	s.Publish(status(11, task1, "dc1", lpmos.Approved))
	if m := c.next(); m.Type != "status" {
		t.Errorf("after bad messages: %+v; want the connection to work", m)
	}

	large := s.dial("")
	large.send(`{"type":"` + strings.Repeat("x", maxRead) + `"}`)
	large.closed(websocket.CloseMessageTooBig)

	for range 5 { // who closes first is a race that must not matter
		flood := s.dial("")
		go func() {
			for range 500 {
				if flood.WriteMessage(websocket.TextMessage, []byte(`{}`)) != nil {
					return
				}
			}
		}()
		flood.closed(websocket.ClosePolicyViolation)
	}
}

func TestCounts(t *testing.T) {
	s := serve(t)
	s.tick(time.Now())
	c := s.dial("", `{"type":"subscribe"}`)
	var m body
	if err := c.ReadJSON(&m); err != nil || m.Type != "counts" || m.Counts[lpmos.Pending] != 2 {
		t.Errorf("first message %+v, %v; want the counts", m, err)
	}
	r := s.read.(*model)
	r.mu.Lock()
	r.counts = map[lpmos.Status]int{lpmos.Pending: 1, lpmos.Approved: 1}
	r.mu.Unlock()
	s.tick(time.Now())
	if err := c.ReadJSON(&m); err != nil || m.Type != "counts" || m.Counts[lpmos.Approved] != 1 || m.Rev == 0 {
		t.Errorf("next message %+v, %v; want the new counts", m, err)
	}
}

func TestShutdown(t *testing.T) {
	s := serve(t)
	var clients []*client
	for range 5 {
		c := s.dial("", `{"type":"subscribe"}`)
		c.ready()
		clients = append(clients, c)
	}
	go s.stop()
	for _, c := range clients {
		c.closed(websocket.CloseGoingAway)
	}
	s.stop()
	if n := s.Connections(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	if ws, resp, err := websocket.DefaultDialer.DialContext(t.Context(), s.url, nil); err == nil {
		resp.Body.Close()
		if _, _, err := ws.ReadMessage(); err == nil {
			t.Error("a hub that was shut down serves a new client")
		}
		ws.Close()
	}
}
