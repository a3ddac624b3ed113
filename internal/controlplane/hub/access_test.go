package hub

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

func TestHandshakeNeedsSomebody(t *testing.T) {
	s := serve(t)
	for what, tt := range map[string]struct {
		p    auth.Principal
		want int
	}{
		"nobody":               {auth.Principal{}, 401},
		"a session that ended": {auth.Principal{Bad: true}, 401},
		"a one-time password":  {auth.Principal{Kind: auth.Session, Role: lpmos.Admin, MustChange: true}, 403},
		"a region":             {auth.Principal{Kind: auth.Region, Name: "dc1"}, 403},
		"an unknown role":      {auth.Principal{Kind: auth.Token, Role: "root"}, 403},
		"a viewer's token":     {auth.Principal{Kind: auth.Token, Role: lpmos.Viewer}, 101},
	} {
		s.as(tt.p)
		ws, resp, err := websocket.DefaultDialer.DialContext(t.Context(), s.url, http.Header{"Origin": {"http" + s.url[2:]}})
		if err == nil {
			ws.Close()
		}
		if resp == nil || resp.StatusCode != tt.want {
			t.Errorf("%s: %v, %v; want %d", what, resp, err, tt.want)
			continue
		}
		resp.Body.Close()
	}
}

// W06: who is limited to dc1 hears of dc1, live and replayed, whatever was
// subscribed to, and is told nothing of the rest.
func TestRegionsLimitWhatIsHeard(t *testing.T) {
	s := serve(t)
	s.as(auth.Principal{Kind: auth.Token, Name: "anna", Role: lpmos.Viewer, Regions: []string{"dc1"}})
	all := s.dial("", `{"type":"subscribe"}`)
	one := s.dial("", `{"type":"subscribe","task_id":"`+task1+`"}`)
	one.ready()
	other := s.dial("", `{"type":"subscribe","task_id":"`+task2+`"}`)
	if m := other.next(); m.Type != "error" || m.TaskID != task2 {
		t.Errorf("subscribing to another region's task = %+v; want an error", m)
	}
	region := s.dial("", `{"type":"subscribe","region_id":"dc2"}`)
	if m := region.next(); m.Type != "error" || m.RegionID != "dc2" {
		t.Errorf("subscribing to another region = %+v; want an error", m)
	}
	// A task that is not known yet may be of any region: it is looked at when
	// something comes.
	unknown := s.dial("", `{"type":"subscribe","task_id":"550e8400-e29b-41d4-a716-446655440099"}`)
	unknown.ready()
	all.ready()
	s.Publish(status(11, task2, "dc2", lpmos.Approved))
	s.Publish(api.Update{Rev: 12, Events: []api.Event{{Type: api.EventRegion, RegionID: "dc2", Status: "offline"}}})
	s.Publish(status(13, "550e8400-e29b-41d4-a716-446655440099", "dc2", lpmos.Approved))
	s.Publish(status(14, task1, "dc1", lpmos.Approved))
	for what, c := range map[string]*client{"all": all, "its task": one} {
		for {
			m := c.next()
			if m.Type == "counts" {
				if m.Counts[lpmos.Pending] != 1 {
					t.Errorf("%s: counts are %v; want those of dc1", what, m.Counts)
				}
				continue
			}
			if m.Rev != 14 || m.RegionID != "dc1" {
				t.Errorf("%s hears %+v; want what happened in dc1", what, m)
			}
			break
		}
	}
	back := s.dial("?after=10&store_id=store-1", `{"type":"subscribe"}`)
	for {
		m := back.next()
		if m.Type == "counts" {
			continue
		}
		if m.Rev != 14 {
			t.Errorf("replayed %+v; want what happened in dc1 alone", m)
		}
		break
	}
	for what, c := range map[string]*client{"another region's task": other, "another region": region, "an unknown task": unknown} {
		c.send(`{"type":"x"}`)
		if m := c.next(); m.Type != "error" || m.RegionID != "" || m.TaskID != "" {
			t.Errorf("%s: heard %+v; want nothing", what, m)
		}
	}
}

// W06: one user cannot take the room of all, however many sessions and tokens
// they have; the place of a handshake that failed, or of who left, is free again.
func TestConnectionsOfOneUser(t *testing.T) {
	s := serve(t)
	anna := auth.Principal{Kind: auth.Session, Name: "anna", ID: "1", Role: lpmos.Viewer}
	s.as(anna)
	for range 3 * maxOfOne / 2 {
		r, err := http.Get("http" + s.url[2:] + "/ws") // no upgrade
		if err != nil {
			t.Fatal(err)
		}
		if r.Body.Close(); r.StatusCode != http.StatusBadRequest {
			t.Fatalf("a request that is no handshake = %d; want 400", r.StatusCode)
		}
	}
	origin := http.Header{"Origin": {"http" + s.url[2:]}}
	try := func(p auth.Principal) (*websocket.Conn, *http.Response) {
		s.as(p)
		ws, resp, err := websocket.DefaultDialer.DialContext(t.Context(), s.url, origin)
		if resp == nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		if ws != nil {
			t.Cleanup(func() { ws.Close() })
		}
		return ws, resp
	}
	var first *websocket.Conn
	for i := range maxOfOne {
		ws, resp := try(anna)
		if ws == nil {
			t.Fatalf("connection %d = %d", i+1, resp.StatusCode)
		}
		if first == nil {
			first = ws
		}
	}
	token := auth.Principal{Kind: auth.Token, Name: "anna", ID: "2", Role: lpmos.Viewer}
	for what, p := range map[string]auth.Principal{"the same session": anna, "a token of theirs": token} {
		_, resp := try(p)
		var said struct{ Title, Detail string }
		if err := json.NewDecoder(resp.Body).Decode(&said); err != nil || resp.StatusCode != http.StatusTooManyRequests ||
			resp.Header.Get("Retry-After") == "" || !strings.Contains(said.Detail, "anna has 256 live connections") {
			t.Errorf("one more by %s = %d, %+v, %v; want 429 and why", what, resp.StatusCode, said, err)
		}
	}
	for what, p := range map[string]auth.Principal{
		"somebody else": {Kind: auth.Session, Name: "ben", Role: lpmos.Viewer}, "a program of this host by the same name": {Kind: auth.Token, Name: "anna", Role: lpmos.Admin, Own: true},
	} {
		if ws, resp := try(p); ws == nil {
			t.Errorf("%s = %d; want a connection", what, resp.StatusCode)
		} else {
			ws.Close()
		}
	}
	first.Close()
	until(t, "they left", func() bool { return s.Connections() == maxOfOne-1 })
	if ws, resp := try(token); ws == nil {
		t.Errorf("in place of who left = %d; want a connection", resp.StatusCode)
	}
	s.stop()
	if len(s.held) != 0 {
		t.Errorf("after all left these are held: %v", s.held)
	}
}

// W05: a session that is ended, or a role that is taken, closes the socket.
func TestRevocationCloses(t *testing.T) {
	s := serve(t)
	c := s.dial("", `{"type":"subscribe"}`)
	stays := s.dial("", `{"type":"subscribe"}`)
	stays.ready()
	c.ready()
	first := true
	s.door.mu.Lock()
	s.door.now = func(p auth.Principal) (auth.Principal, bool) {
		was := first
		first = false
		return p, !was // whichever is asked about first is gone
	}
	s.door.changed++
	s.door.mu.Unlock()
	s.tick(time.Now())
	for end := time.Now().Add(time.Minute); s.Connections() != 1 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	}
	if n, st := s.Connections(), s.Stats(); n != 1 || st.Expelled != 1 {
		t.Errorf("%d connections, %d expelled; want 1 and 1", n, st.Expelled)
	}
	// A smaller region holds for what comes from then on.
	s.door.mu.Lock()
	s.door.now = func(p auth.Principal) (auth.Principal, bool) {
		p.Role, p.Regions = lpmos.Viewer, []string{"dc2"}
		return p, true
	}
	s.door.changed++
	s.door.mu.Unlock()
	s.tick(time.Now())
	s.mu.Lock()
	for c := range s.conns {
		if c.all || c.sees("dc1") || !c.sees("dc2") {
			t.Errorf("a connection sees as %+v; want dc2 alone", c.who)
		}
	}
	s.mu.Unlock()
	// And who may not look at all is told so.
	s.door.mu.Lock()
	s.door.now = func(p auth.Principal) (auth.Principal, bool) { return p, false }
	s.door.changed++
	s.door.mu.Unlock()
	left := stays
	if open(c) {
		left = c
	}
	s.tick(time.Now())
	left.closed(websocket.ClosePolicyViolation)
}

// Who is limited to a region hears of its counts when those change, also while
// another region's change the other way.
func TestCountsOfSomeRegions(t *testing.T) {
	s := serve(t)
	s.tick(time.Now())
	s.as(auth.Principal{Kind: auth.Token, Name: "anna", Role: lpmos.Viewer, Regions: []string{"dc1"}})
	c := s.dial("", `{"type":"subscribe"}`)
	var m body
	if err := c.ReadJSON(&m); err != nil || m.Type != "counts" || m.Counts[lpmos.Pending] != 1 {
		t.Fatalf("first message %+v, %v; want the counts of dc1", m, err)
	}
	r := s.read.(*model)
	r.mu.Lock()
	r.dc1 = map[lpmos.Status]int{lpmos.Approved: 1}
	r.mu.Unlock()
	s.tick(time.Now())
	if err := c.ReadJSON(&m); err != nil || m.Type != "counts" || m.Counts[lpmos.Approved] != 1 {
		t.Errorf("next message %+v, %v; want the new counts of dc1, although the sum is the same", m, err)
	}
	s.tick(time.Now())
	c.send(`{"type":"x"}`)
	m = body{}
	if err := c.ReadJSON(&m); err != nil || m.Type != "error" {
		t.Errorf("counts that did not change are sent again: %+v, %v", m, err)
	}
}

// open reports whether the server still serves a client.
func open(c *client) bool {
	if err := c.WriteMessage(websocket.TextMessage, []byte(`{"type":"x"}`)); err != nil {
		return false
	}
	for {
		m, err := c.read()
		if err != nil {
			return false
		}
		if m.Type == "error" {
			return true
		}
	}
}
