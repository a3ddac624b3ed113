package rest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// access says of every route who may: "" for everybody, "self" for whoever is
// signed in, else the least role; "+" behind it means in all regions. It is
// written by hand, so that a route that was registered with less is noticed.
var access = map[string]string{
	"GET /healthz": "", "GET /readyz": "", "GET /api/v1/openapi.yaml": "", "GET /api/v1/docs": "", "GET /api/v1/docs/style.css": "", "POST /api/v1/login": "",
	"GET /metrics":       "viewer+",
	"POST /api/v1/tasks": "operator", "GET /api/v1/tasks": "viewer", "GET /api/v1/tasks/ids": "viewer", "POST /api/v1/tasks/batch": "operator", "GET /api/v1/batches/:id": "viewer",
	"GET /api/v1/tasks/:id": "viewer", "DELETE /api/v1/tasks/:id": "operator", "PUT /api/v1/tasks/:id/approve": "approver", "POST /api/v1/tasks/:id/cancel": "operator", "POST /api/v1/tasks/:id/retry": "operator",
	"GET /api/v1/tasks/:id/events": "viewer", "GET /api/v1/tasks/:id/logs": "viewer", "GET /api/v1/tasks/:id/plan": "viewer",
	"GET /api/v1/regions": "viewer", "GET /api/v1/regions/:id": "viewer", "GET /api/v1/machines": "viewer", "GET /api/v1/machines/:mac": "viewer",
	"PUT /api/v1/machines/:mac/lock": "operator+", "DELETE /api/v1/machines/:mac/lock": "approver+",
	"DELETE /api/v1/machines/:mac/tpm": "approver+",
	"GET /api/v1/stop":                 "viewer", "PUT /api/v1/stop": "operator", "DELETE /api/v1/stop": "approver+", "GET /api/v1/limits": "viewer", "PUT /api/v1/limits": "admin+", "GET /api/v1/approval-policy": "viewer", "PUT /api/v1/approval-policy": "admin+",
	"POST /api/v1/regions/:id/enroll": "admin+", "POST /api/v1/regions/:id/rotate": "admin+", "POST /api/v1/regions/:id/revoke": "admin+", "POST /api/v1/regions/:id/certificate": "",
	"GET /api/v1/profiles": "viewer", "GET /api/v1/profiles/:name": "viewer", "PUT /api/v1/profiles/:name": "operator+", "DELETE /api/v1/profiles/:name": "operator+",
	"GET /api/v1/templates": "viewer", "GET /api/v1/templates/:name": "viewer", "PUT /api/v1/templates/:name": "operator+", "DELETE /api/v1/templates/:name": "operator+", "POST /api/v1/templates/:name/preview": "viewer",
	"GET /api/v1/images": "viewer", "GET /api/v1/images/:os/:version/:arch": "viewer", "PUT /api/v1/images/:os/:version/:arch": "admin+", "DELETE /api/v1/images/:os/:version/:arch": "admin+", "PUT /api/v1/bootimage": "admin+",
	"GET /api/v1/blobs/:sha256": "viewer", "HEAD /api/v1/blobs/:sha256": "viewer", "PUT /api/v1/blobs/:sha256": "admin+",
	"POST /api/v1/logout": "self", "GET /api/v1/me": "self", "PUT /api/v1/me/password": "self", "DELETE /api/v1/me/sessions/:id": "self",
	"GET /api/v1/users": "admin+", "POST /api/v1/users": "admin+", "GET /api/v1/users/:name": "admin+", "PUT /api/v1/users/:name": "admin+", "DELETE /api/v1/users/:name": "admin+", "POST /api/v1/users/:name/reset-password": "admin+",
	"GET /api/v1/tokens": "viewer", "POST /api/v1/tokens": "viewer", "DELETE /api/v1/tokens/:id": "viewer",
	"GET /api/v1/audit": "viewer+", "GET /api/v1/audit/export": "viewer+", "GET /api/v1/audit/:seq": "viewer+",
}

// as makes the next requests of a test those of somebody; the zero Principal is
// nobody.
func (p *plane) as(who auth.Principal) { p.who = &who }

func somebody(role lpmos.Role, regions ...string) auth.Principal {
	p := auth.Principal{Kind: auth.Token, Name: string(role), Role: role, Label: "test", Own: true}
	if len(regions) > 0 {
		p.Regions = regions
	}
	return p
}

// T11: every route × nobody, each role, limited to a region, before the first
// password.
func TestEveryRouteIsForSomeAlone(t *testing.T) {
	p := newPlane(t)
	fill := strings.NewReplacer(":id/", "550e8400-e29b-41d4-a716-446655440000/", ":mac", "52:54:00:00:00:01", ":name", "nobody", ":os", "no", ":version", "1", ":arch", "amd64", ":sha256", strings.Repeat("0", 64))
	type caller struct {
		name string
		who  auth.Principal
	}
	callers := []caller{{"nobody", auth.Principal{}}, {"a bad token", auth.Principal{Bad: true}}}
	for _, r := range lpmos.Roles {
		callers = append(callers, caller{string(r), somebody(r)}, caller{string(r) + " of dc9", somebody(r, "dc9")})
	}
	first := somebody(lpmos.Admin)
	first.MustChange = true
	callers = append(callers, caller{"with a one-time password", first}, caller{"a region", auth.Principal{Kind: auth.Region, Name: "dc1"}})
	for _, r := range p.api.Routes() {
		key := r.Method + " " + r.Path
		need, known := access[key]
		if !known {
			t.Errorf("%s is in no line of the table: say who may", key)
			continue
		}
		role, everywhere := strings.CutSuffix(need, "+")
		path := fill.Replace(r.Path + "/")
		path = strings.TrimSuffix(strings.ReplaceAll(path, ":id", "0000000000000000"), "/")
		if strings.Contains(r.Path, "regions/:id") {
			path = strings.TrimSuffix(strings.Replace(r.Path, ":id", "none", 1), "/")
		}
		for _, c := range callers {
			want := 0 // neither 401 nor 403
			switch {
			case need == "":
			case !c.who.SignedIn():
				want = 401
			case c.who.Kind == auth.Region:
				if !strings.HasPrefix(r.Path, "/api/v1/blobs/") || r.Method == "PUT" {
					want = 403
				}
			case need == "self":
			case c.who.MustChange, !c.who.Role.Includes(lpmos.Role(role)), everywhere && c.who.Regions != nil:
				want = 403
			}
			if want == 403 && strings.HasPrefix(r.Path, "/api/v1/me") || want == 403 && r.Path == "/api/v1/logout" {
				continue // a region there is not in the contract; May says no to it, which TestMay has
			}
			p.as(c.who)
			body := ""
			if (r.Method == "POST" || r.Method == "PUT") && r.Path != "/api/v1/tasks/:id/retry" && !strings.Contains(r.Path, "blobs") && r.Path != "/api/v1/logout" && !strings.HasSuffix(r.Path, "reset-password") {
				body = "{}"
			}
			resp, b := p.do(r.Method, path, body)
			switch got := resp.StatusCode; {
			case want == 0 && need != "" && (got == 401 || got == 403 && r.Path != "/api/v1/tokens"), want != 0 && got != want:
				t.Errorf("%s as %s = %d %s; want %d (0: neither 401 nor 403)", key, c.name, got, b, want)
			}
		}
	}
	for key := range access {
		found := false
		for _, r := range p.api.Routes() {
			found = found || r.Method+" "+r.Path == key
		}
		if !found {
			t.Errorf("the table speaks of %s, which is no route", key)
		}
	}
}

// What is in another region does not exist: in no list, count, search or single
// resource, and nothing can be done to it.
func TestRegionsLimit(t *testing.T) {
	p := newPlane(t)
	sess, err := p.store.OpenSession(t.Context(), "dc2", "i2", lpmos.Capabilities{Hostname: "h2", Fetcher: auth.Hash("x")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sess.Close)
	p.eventually("dc2 is known", func() bool { _, ok := p.state.Region("dc2"); return ok })
	create := func(region, mac string) string {
		return want[struct {
			TaskID string `json:"task_id"`
		}](p, "POST", "/api/v1/tasks", fmt.Sprintf(`{"region_id":%q,"target_mac":%q,"os_type":"tiny","os_version":"1"}`, region, mac), 201).TaskID
	}
	mine, other := create("dc1", "52:54:00:00:01:01"), create("dc2", "52:54:00:00:02:01")
	p.eventually("both are in memory", func() bool {
		_, a := p.state.Status(mine)
		_, b := p.state.Status(other)
		return a && b
	})
	for _, role := range lpmos.Roles {
		p.as(somebody(role, "dc1"))
		l := want[struct {
			Tasks  []lpmos.Task
			Total  int
			Groups struct {
				Region map[string]int `json:"region_id"`
				Status map[string]int
			}
		}](p, "GET", "/api/v1/tasks", "", 200)
		if l.Total != 1 || len(l.Tasks) != 1 || l.Tasks[0].ID != mine || l.Groups.Region["dc2"] != 0 || l.Groups.Status["pending"] != 1 {
			t.Errorf("%s of dc1 lists %+v; want the one task of dc1, counted alone", role, l)
		}
		for _, q := range []string{"?q=region:dc2", "?region_id=dc2", "?q=!region:dc1", "?q=" + other[:8], "?q=52:54:00:00:02:01", "?status=pending&region_id=dc2"} {
			if l := want[struct{ Total int }](p, "GET", "/api/v1/tasks"+q, "", 200); l.Total != 0 {
				t.Errorf("%s of dc1 finds %d tasks with %s; want none", role, l.Total, q)
			}
		}
		if ids := want[struct {
			TaskIDs []string `json:"task_ids"`
			Total   int
		}](p, "GET", "/api/v1/tasks/ids", "", 200); ids.Total != 1 || len(ids.TaskIDs) != 1 || ids.TaskIDs[0] != mine {
			t.Errorf("%s of dc1 selects %+v; want %s alone", role, ids, mine)
		}
		if r := want[struct{ Regions []lpmos.Region }](p, "GET", "/api/v1/regions", "", 200); len(r.Regions) != 1 || r.Regions[0].ID != "dc1" {
			t.Errorf("%s of dc1 sees regions %+v; want dc1", role, r.Regions)
		}
		for _, path := range []string{"/api/v1/regions/dc2", "/api/v1/tasks/" + other, "/api/v1/tasks/" + other + "/events", "/api/v1/tasks/" + other + "/logs", "/api/v1/tasks/" + other + "/plan", "/api/v1/machines/52:54:00:00:02:01"} {
			p.problem("GET", path, "", 404)
		}
		want[lpmos.Task](p, "GET", "/api/v1/tasks/"+mine, "", 200)
	}
	p.as(somebody(lpmos.Approver, "dc1"))
	p.problem("PUT", "/api/v1/tasks/"+other+"/approve", `{"approved":false}`, 404)
	p.problem("POST", "/api/v1/tasks/"+other+"/cancel", `{"reason":"x"}`, 404)
	p.problem("POST", "/api/v1/tasks/"+other+"/retry", "", 404)
	p.problem("DELETE", "/api/v1/tasks/"+other, "", 404)
	p.problem("POST", "/api/v1/tasks", `{"region_id":"dc2","target_mac":"52:54:00:00:02:02","os_type":"tiny","os_version":"1"}`, 403)
	resp, b := p.do("POST", "/api/v1/tasks/batch", `{"tasks":[{"region_id":"dc1","target_mac":"52:54:00:00:01:02","os_type":"tiny","os_version":"1"},{"region_id":"dc2","target_mac":"52:54:00:00:02:02","os_type":"tiny","os_version":"1"}]}`)
	var problem struct{ Lines []lpmos.BatchLine }
	if err := json.Unmarshal(b, &problem); err != nil || resp.StatusCode != 400 || len(problem.Lines) != 1 || problem.Lines[0].Line != 2 {
		t.Errorf("a batch with a line for dc2 = %d %s; want 400 that names line 2", resp.StatusCode, b)
	}
	// One batch of a request that is sent twice, although its machine is busy then.
	const again = `{"tasks":[{"region_id":"dc1","target_mac":"52:54:00:00:01:03","os_type":"tiny","os_version":"1"}]}`
	made := want[batchAnswer](p, "POST", "/api/v1/tasks/batch", again, 202, "Idempotency-Key", "limited")
	p.eventually("its machine is busy", func() bool { return p.state.Claimed()[lpmos.MustMAC("52:54:00:00:01:03")] != "" })
	if b := want[batchAnswer](p, "POST", "/api/v1/tasks/batch", again, 202, "Idempotency-Key", "limited"); b.ID != made.ID {
		t.Errorf("one key made the batches %s and %s", made.ID, b.ID)
	}
	// Everybody else still sees both, and it was not touched.
	p.as(somebody(lpmos.Viewer))
	if got := want[lpmos.Task](p, "GET", "/api/v1/tasks/"+other, "", 200); got.Status != lpmos.Pending {
		t.Errorf("the other task is %s; want pending", got.Status)
	}
	if r := want[lpmos.Region](p, "GET", "/api/v1/regions/dc2", "", 200); r.Capabilities == nil || r.Capabilities.Fetcher != "" {
		t.Errorf("capabilities are %+v; want them without what the region shows", r.Capabilities)
	}
}

// cookie is the session that an answer sets.
func cookie(t *testing.T, resp *http.Response) string {
	t.Helper()
	for _, c := range resp.Cookies() {
		if c.Name == "lpmos_session" {
			if !c.HttpOnly || c.Secure || c.SameSite != http.SameSiteStrictMode || c.Path != "/" {
				t.Errorf("cookie is %+v; want it HttpOnly, SameSite=Strict, for /", c)
			}
			return "lpmos_session=" + c.Value
		}
	}
	t.Fatalf("no session in %v", resp.Header)
	return ""
}

// A person from the one-time password to the end of the session, as a browser
// and as a program.
func TestPeople(t *testing.T) {
	p := newPlane(t)
	real := []string{"Test-Real", "1"}
	with := func(more ...string) []string { return append(append([]string{}, real...), more...) }

	made := want[struct {
		OneTimePassword string `json:"one_time_password"`
	}](p, "POST", "/api/v1/users", `{"name":"anna","role":"operator","regions":["dc1"]}`, 201)
	p.problem("POST", "/api/v1/users", `{"name":"anna","role":"operator"}`, 409)
	p.problem("POST", "/api/v1/users", `{"name":"Anna","role":"operator"}`, 400)
	p.problem("POST", "/api/v1/users", `{"name":"bob","role":"root"}`, 400)
	p.problem("POST", "/api/v1/users", `{"name":"bob","role":"viewer","regions":[]}`, 400)
	if n := len(want[struct{ Users []struct{ Name string } }](p, "GET", "/api/v1/users", "", 200).Users); n != 1 {
		t.Errorf("%d users; want 1", n)
	}
	want[struct{}](p, "GET", "/api/v1/users/anna", "", 200)
	p.keepsOthers("/api/v1/users/anna", `{"role":"operator","regions":["dc1"],"disabled":true}`, `{"role":"operator","regions":["dc1"]}`)

	p.problem("POST", "/api/v1/login", `{"username":"anna","password":"wrong"}`, 401, real...)
	p.problem("POST", "/api/v1/login", `{"username":"nobody","password":"wrong"}`, 401, real...)
	p.problem("POST", "/api/v1/login", `{"username":1}`, 400, real...)
	for _, route := range []string{"POST /api/v1/login", "PUT /api/v1/me/password", "POST /api/v1/users", "PUT /api/v1/users/anna", "POST /api/v1/tokens"} {
		method, path, _ := strings.Cut(route, " ")
		p.problem(method, path, "username=anna", 415, "Content-Type", "application/x-www-form-urlencoded")
	}
	resp, b := p.do("POST", "/api/v1/login", fmt.Sprintf(`{"username":"anna","password":%q}`, made.OneTimePassword), real...)
	if resp.StatusCode != 200 || !strings.Contains(string(b), `"must_change_password":true`) {
		t.Fatalf("sign in with the one-time password = %d %s; want 200, and that it must be changed", resp.StatusCode, b)
	}
	c := cookie(t, resp)
	p.problem("GET", "/api/v1/tasks", "", 403, with("Cookie", c)...)
	p.problem("PUT", "/api/v1/me/password", `{"current_password":"no","password":"correct horse battery"}`, 400, with("Cookie", c)...)
	p.problem("PUT", "/api/v1/me/password", fmt.Sprintf(`{"current_password":%q,"password":"short"}`, made.OneTimePassword), 400, with("Cookie", c)...)
	resp, b = p.do("PUT", "/api/v1/me/password", fmt.Sprintf(`{"current_password":%q,"password":"correct horse battery"}`, made.OneTimePassword), with("Cookie", c)...)
	if resp.StatusCode != 204 {
		t.Fatalf("choose a password = %d %s; want 204", resp.StatusCode, b)
	}
	fresh := cookie(t, resp)
	p.problem("GET", "/api/v1/me", "", 401, with("Cookie", c)...) // the session before
	c = fresh
	want[struct{}](p, "GET", "/api/v1/tasks", "", 200, with("Cookie", c)...)

	tok := want[struct{ ID, Token string }](p, "POST", "/api/v1/tokens", `{"name":"ci","role":"viewer"}`, 201, with("Cookie", c)...)
	p.problem("POST", "/api/v1/tokens", `{"name":"ci","role":"admin"}`, 400, with("Cookie", c)...)
	p.problem("POST", "/api/v1/tokens", `{"name":"ci","regions":["dc2"]}`, 400, with("Cookie", c)...)
	bearer := with("Authorization", "Bearer "+tok.Token)
	if me := want[struct{ Name, Role, Token string }](p, "GET", "/api/v1/me", "", 200, bearer...); me.Name != "anna" || me.Role != "viewer" || me.Token != "ci" {
		t.Errorf("the token is %+v; want anna, as a viewer", me)
	}
	p.problem("POST", "/api/v1/tasks", `{}`, 403, bearer...)
	want[struct{}](p, "GET", "/api/v1/tokens", "", 200, bearer...)
	for _, bad := range []string{"Bearer", "Bearer ", "Bearer " + tok.Token + "x", "Basic " + tok.Token, "Bearer lpm_" + strings.Repeat("A", 43), "Bearer " + strings.Repeat("x", 4000)} {
		if resp, b := p.do("GET", "/api/v1/me", "", with("Authorization", bad)...); resp.StatusCode != 401 {
			t.Errorf("Authorization %.40q = %d %s; want 401", bad, resp.StatusCode, b)
		}
	}

	// A smaller role holds from the next request on; so does being disabled.
	p.problem("PUT", "/api/v1/users/anna", `{"role":"root"}`, 400)
	p.problem("PUT", "/api/v1/users/nobody", `{"role":"viewer"}`, 404)
	want[struct{}](p, "PUT", "/api/v1/users/anna", `{"role":"viewer","regions":["dc1"]}`, 200)
	p.problem("POST", "/api/v1/tasks", `{}`, 403, with("Cookie", c)...)
	want[struct{}](p, "PUT", "/api/v1/users/anna", `{"role":"viewer","disabled":true}`, 200)
	p.problem("GET", "/api/v1/me", "", 401, with("Cookie", c)...)
	p.problem("GET", "/api/v1/me", "", 401, bearer...)
	want[struct{}](p, "PUT", "/api/v1/users/anna", `{"role":"viewer"}`, 200)
	p.problem("GET", "/api/v1/me", "", 401, with("Cookie", c)...) // sessions do not come back
	want[struct{}](p, "GET", "/api/v1/me", "", 200, bearer...)

	// Two sessions; one ends the other.
	login := func() string {
		resp, b := p.do("POST", "/api/v1/login", `{"username":"anna","password":"correct horse battery"}`, real...)
		if resp.StatusCode != 200 {
			t.Fatalf("sign in = %d %s", resp.StatusCode, b)
		}
		return cookie(t, resp)
	}
	one, two := login(), login()
	me := want[struct {
		Sessions []struct {
			ID      string
			Current bool
		}
	}](p, "GET", "/api/v1/me", "", 200, with("Cookie", two)...)
	for _, s := range me.Sessions {
		if !s.Current {
			p.do("DELETE", "/api/v1/me/sessions/"+s.ID, "", with("Cookie", two)...)
		}
	}
	p.problem("DELETE", "/api/v1/me/sessions/0000000000000000", "", 404, with("Cookie", two)...)
	p.problem("GET", "/api/v1/me", "", 401, with("Cookie", one)...)
	if resp, _ := p.do("POST", "/api/v1/logout", "", with("Cookie", two)...); resp.StatusCode != 204 {
		t.Errorf("logout = %d; want 204", resp.StatusCode)
	}
	p.problem("GET", "/api/v1/me", "", 401, with("Cookie", two)...)

	// Another one-time password ends all; deleting the user ends the token.
	three := login()
	want[struct{}](p, "POST", "/api/v1/users/anna/reset-password", "", 200)
	p.problem("POST", "/api/v1/users/nobody/reset-password", "", 404)
	p.problem("GET", "/api/v1/me", "", 401, with("Cookie", three)...)
	p.problem("DELETE", "/api/v1/tokens/0000000000000000", "", 404)
	if resp, _ := p.do("DELETE", "/api/v1/tokens/"+tok.ID, ""); resp.StatusCode != 204 {
		t.Errorf("an admin ends the token = %d; want 204", resp.StatusCode)
	}
	want[struct{}](p, "POST", "/api/v1/users", `{"name":"last","role":"admin"}`, 201)
	p.problem("DELETE", "/api/v1/users/last", "", 409)
	p.problem("PUT", "/api/v1/users/last", `{"role":"viewer"}`, 409)
	p.problem("DELETE", "/api/v1/users/nobody", "", 404)
	if resp, _ := p.do("DELETE", "/api/v1/users/anna", ""); resp.StatusCode != 204 {
		t.Errorf("delete anna = %d; want 204", resp.StatusCode)
	}

	// W12: the account waits after five, whatever X-Forwarded-For says.
	for i := range 7 {
		resp, b := p.do("POST", "/api/v1/login", `{"username":"last","password":"guess"}`, with("X-Forwarded-For", fmt.Sprintf("10.0.0.%d", i))...)
		want := 401
		if i >= 5 {
			want = 429
		}
		if resp.StatusCode != want || want == 429 && resp.Header.Get("Retry-After") == "" {
			t.Errorf("guess %d = %d %s, Retry-After %q; want %d", i+1, resp.StatusCode, b, resp.Header.Get("Retry-After"), want)
		}
	}
}

// The account's own password change is throttled like a sign-in: a stolen
// session guesses no better.
func TestPasswordChangeIsThrottled(t *testing.T) {
	p := newPlane(t)
	made := want[struct {
		OneTimePassword string `json:"one_time_password"`
	}](p, "POST", "/api/v1/users", `{"name":"anna","role":"viewer"}`, 201)
	resp, _ := p.do("POST", "/api/v1/login", fmt.Sprintf(`{"username":"anna","password":%q}`, made.OneTimePassword), "Test-Real", "1")
	c, last := cookie(t, resp), 0
	for range 7 {
		resp, _ := p.do("PUT", "/api/v1/me/password", `{"current_password":"guess","password":"correct horse battery"}`, "Test-Real", "1", "Cookie", c)
		last = resp.StatusCode
	}
	if last != 429 {
		t.Errorf("the seventh guess = %d; want 429", last)
	}
}
