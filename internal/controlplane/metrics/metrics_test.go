package metrics

import (
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

type site struct{}

func (site) Ready() bool { return true }
func (site) Rev() int64  { return 42 }
func (site) Stopped() *lpmos.Stop {
	return &lpmos.Stop{By: "ada"}
}
func (site) Alarmed() int { return 5 }
func (site) Counts() map[lpmos.Status]int {
	return map[lpmos.Status]int{lpmos.Failed: 3}
}
func (site) Regions() []lpmos.Region {
	return []lpmos.Region{{ID: "dc1", Status: "online"}, {ID: "dc2", Status: "offline"}, {ID: "dc3", Status: "online"}}
}

func TestMetrics(t *testing.T) {
	m := New(site{}, func() Hub { return Hub{Connections: 7, Evicted: 2} }, "v1")
	m.Observe("GET", "/api/v1/tasks/:id", 200, 3*time.Millisecond)
	m.Observe("GET", "/api/v1/tasks/:id", 200, 30*time.Millisecond)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`lpmos_tasks{status="failed"} 3`, `lpmos_tasks{status="pending"} 0`, `lpmos_regions{status="online"} 2`, "lpmos_ready 1", "lpmos_emergency_stop 1", "lpmos_tasks_alarmed 5", "lpmos_store_revision 42",
		"lpmos_websocket_connections 7", "lpmos_websocket_evicted_total 2", `lpmos_build_info{version="v1"} 1`,
		`lpmos_http_request_duration_seconds_bucket{method="GET",route="/api/v1/tasks/:id",status="200",le="0.005"} 1`,
		`lpmos_http_request_duration_seconds_count{method="GET",route="/api/v1/tasks/:id",status="200"} 2`, "go_goroutines",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no line %q in\n%.3000s", want, w.Body.String())
		}
	}
	// Without a hub nothing is said of one.
	w = httptest.NewRecorder()
	New(site{}, nil, "v1").Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 || strings.Contains(w.Body.String(), "websocket") {
		t.Errorf("without a hub: %d, %s", w.Code, w.Body.String())
	}
}

// Whoever reaches the listener may send any method, and each series stays in
// memory for as long as the process runs.
func TestMadeUpMethodsAreOneSeries(t *testing.T) {
	m := New(site{}, nil, "v1")
	for i := range 100 {
		m.Observe("X"+strconv.Itoa(i), "other", 405, time.Millisecond)
	}
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if n := strings.Count(w.Body.String(), "lpmos_http_request_duration_seconds_count{"); n != 1 {
		t.Errorf("100 made-up methods are %d series", n)
	}
}
