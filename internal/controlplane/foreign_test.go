package controlplane

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/lpmos/lpmos/internal/controlplane/rest"
	"github.com/lpmos/lpmos/internal/controlplane/web"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// W08: a request that a page of another site had a browser send is refused at
// every route that changes something, whoever is signed in there; here everybody
// is an admin. What real browsers send is in test/browser.
func TestForeignRequestsChangeNothing(t *testing.T) {
	s := storetest.NewSecured(t)
	c := plane(t, s, Config{})
	var routes []string
	for _, r := range new(rest.API).Routes() {
		routes = append(routes, r.Method+" "+r.Path)
	}
	routes = append(routes, new(web.Web).Routes()...)
	end, err := s.Control.AuditEnd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send := func(route string, header ...string) (int, string) {
		t.Helper()
		method, path, _ := strings.Cut(route, " ")
		req, err := http.NewRequestWithContext(t.Context(), method, c.URL()+regexp.MustCompile(`[:{][a-z0-9]+}?`).ReplaceAllString(path, "x"), strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	n := 0
	for _, route := range routes {
		if strings.HasPrefix(route, "GET ") || strings.HasPrefix(route, "HEAD ") {
			continue
		}
		n++
		for _, header := range [][]string{
			{"Sec-Fetch-Site", []string{"cross-site", "same-site"}[n%2]}, {"Origin", []string{"https://evil.example", "null", c.URL() + "0"}[n%3]}, {"Sec-Fetch-Site", "cross-site", "Origin", c.URL()},
		} { // few enough that nobody is held back for asking too much
			if status, body := send(route, header...); status != 403 || !strings.Contains(body, "cross-origin") {
				t.Errorf("%s with %v = %d %.100s; want 403", route, header, status, body)
			}
		}
	}
	if _, body := send("POST /api/v1/tasks", "Sec-Fetch-Site", "same-origin", "Origin", c.URL()); strings.Contains(body, "cross-origin") {
		t.Errorf("a request of our own page is refused: %.100s", body)
	}
	if n < 40 {
		t.Errorf("%d routes change something; want at least 40", n)
	}
	http.DefaultClient.CloseIdleConnections()
	if now, err := s.Control.AuditEnd(t.Context()); err != nil || now != end {
		t.Errorf("something was changed: the audit went from %d to %d (%v)", end.Seq, now.Seq, err)
	}
}
