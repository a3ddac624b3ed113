package hub

import (
	"net/http"
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
	for end := time.Now().Add(20 * time.Second); s.Connections() != 1 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
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
