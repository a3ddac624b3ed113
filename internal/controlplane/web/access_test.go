package web

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// pageAccess says of every page and action who may, as rest's table does:
// "" for everybody, "self" for whoever is signed in, else the least role; "+"
// behind it means in all regions.
var pageAccess = map[string]string{
	"GET /login": "", "POST /login": "", "GET /login/oidc": "", "GET /login/oidc/callback": "", "POST /logout": "", "POST /preferences": "", "GET /static/{hash}/{path...}": "", "GET /sw.js": "",
	"GET /{$}": "self", "GET /account": "self", "POST /account/password": "self", "POST /account/sessions/{id}/end": "self",
	"GET /dashboard": "viewer", "GET /tasks": "viewer", "GET /tasks/order": "viewer", "GET /tasks/export": "viewer", "GET /machines/export": "viewer", "GET /tasks/rows": "viewer", "GET /tasks/bulk": "viewer", "GET /tasks/bulk/run": "viewer",
	"POST /tasks/bulk": "operator", "POST /tasks/bulk/counts": "viewer", "POST /tasks/bulk/run": "operator", "GET /tasks/create": "operator", "POST /tasks/create": "operator",
	"GET /batches/{id}": "viewer", "GET /tasks/approve": "viewer", "POST /tasks/approve": "approver", "GET /tasks/{id}": "viewer", "GET /tasks/{id}/approve": "viewer", "POST /tasks/{id}/approve": "approver",
	"POST /tasks/{id}/cancel": "operator", "POST /tasks/{id}/retry": "operator", "POST /tasks/{id}/delete": "operator", "GET /tasks/{id}/log": "viewer",
	"POST /machines/{mac}/lock": "operator", "POST /machines/{mac}/unlock": "approver", "POST /machines/{mac}/forget-tpm": "approver",
	"GET /stop": "viewer", "POST /stop": "operator", "POST /resume": "approver",
	"GET /policy": "viewer", "POST /policy": "admin+", "GET /regions": "viewer", "GET /machines": "viewer", "GET /machines/{mac}": "viewer", "GET /images": "viewer", "POST /images/{os}/{version}/{arch}/delete": "admin+",
	"GET /profiles": "viewer", "POST /profiles": "operator+", "GET /profiles/{name}": "viewer", "POST /profiles/{name}": "operator+", "POST /profiles/{name}/delete": "operator+",
	"GET /templates": "viewer", "POST /templates": "operator+", "GET /templates/{name}": "viewer", "POST /templates/{name}": "operator+", "POST /templates/{name}/delete": "operator+",
	"GET /users": "admin+", "POST /users": "admin+", "GET /users/{name}": "admin+", "POST /users/{name}": "admin+", "POST /users/{name}/reset": "admin+", "POST /users/{name}/delete": "admin+",
	"GET /tokens": "viewer", "POST /tokens": "viewer", "POST /tokens/{id}/delete": "viewer",
	"GET /audit": "viewer+",
}

// T11 for the pages: nobody is sent to sign in, whoever may not is told why.
func TestEveryPageIsForSomeAlone(t *testing.T) {
	s := newSite(t, testNow)
	w := newTestWeb(t, s)
	fill := strings.NewReplacer("{$}", "", "{id}", taskID(15), "{mac}", "02:00:00:00:00:99", "{name}", "nobody", "{os}", "no", "{version}", "1", "{arch}", "amd64", "{hash}", "x", "{path...}", "x")
	type caller struct {
		name string
		who  auth.Principal
	}
	callers := []caller{{"nobody", auth.Principal{}}, {"a session that ended", auth.Principal{Bad: true}}, {"a region", auth.Principal{Kind: auth.Region, Name: "dc1"}}}
	for _, r := range lpmos.Roles {
		p := auth.Principal{Kind: auth.Session, Name: string(r), Role: r}
		limited := p
		limited.Regions = []string{"dc9"}
		callers = append(callers, caller{string(r), p}, caller{string(r) + " of dc9", limited})
	}
	callers = append(callers, caller{"with a one-time password", auth.Principal{Kind: auth.Session, Name: "new", Role: lpmos.Admin, MustChange: true}})
	for _, pattern := range w.Routes() {
		need, known := pageAccess[pattern]
		if !known {
			t.Errorf("%s is in no line of the table: say who may", pattern)
			continue
		}
		role, everywhere := strings.CutSuffix(need, "+")
		method, path, _ := strings.Cut(pattern, " ")
		for _, c := range callers {
			r := httptest.NewRequest(method, fill.Replace(path), strings.NewReader(""))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			rec := httptest.NewRecorder()
			auth.As(c.who, w.Handler()).ServeHTTP(rec, r)
			to := rec.Header().Get("Location")
			if i := strings.IndexByte(to, '?'); i > 0 {
				to = to[:i]
			}
			refused := rec.Code == 403 || rec.Code == 401 || rec.Code == 303 && (to == "/login" || to == "/account")
			own := strings.HasPrefix(path, "/account") || path == "/logout" || path == "/login" || path == "/{$}"
			want := false
			switch {
			case need == "":
			case !c.who.SignedIn(), c.who.Kind == auth.Region:
				want = true
			case need == "self":
			case c.who.MustChange, !c.who.Role.Includes(lpmos.Role(role)), everywhere && c.who.Regions != nil:
				want = true
			}
			if refused != want && !(own && !want) {
				t.Errorf("%s as %s = %d %s; want refused %v", pattern, c.name, rec.Code, rec.Header().Get("Location"), want)
			}
			if want && !c.who.SignedIn() && strings.Contains(rec.Body.String(), "web-01") {
				t.Errorf("%s as %s shows a task", pattern, c.name)
			}
		}
	}
	for pattern := range pageAccess {
		found := false
		for _, r := range w.Routes() {
			found = found || r == pattern
		}
		if !found {
			t.Errorf("the table speaks of %s, which is no route", pattern)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newTestWeb(t, newSite(t, testNow))
	ask := func(who auth.Principal, method, path string, header ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, nil)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		rec := httptest.NewRecorder()
		auth.As(who, w.Handler()).ServeHTTP(rec, r)
		return rec
	}
	t.Run("a page comes back after signing in", func(t *testing.T) {
		rec := ask(auth.Principal{}, "GET", "/tasks?q=status:failed")
		if want := "/login?return=" + url.QueryEscape("/tasks?q=status:failed"); rec.Code != 303 || rec.Header().Get("Location") != want {
			t.Errorf("= %d %s; want 303 %s", rec.Code, rec.Header().Get("Location"), want)
		}
	})
	t.Run("a link on another site is asked for once more from here, where the cookie comes along", func(t *testing.T) {
		rec := ask(auth.Principal{}, "GET", "/tasks/x?a=1&b=2", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate")
		if body := rec.Body.String(); rec.Code != 200 || !strings.Contains(body, `content="0; url=/tasks/x?a=1&amp;b=2"`) || strings.Contains(body, "<form class=\"panel\"") {
			t.Errorf("= %d %s", rec.Code, body)
		}
	})
	t.Run("a script is told so", func(t *testing.T) {
		rec := ask(auth.Principal{Bad: true}, "GET", "/tasks/rows?ids=x", "Sec-Fetch-Mode", "cors")
		if rec.Code != 401 || !strings.HasPrefix(rec.Header().Get("Content-Type"), "application/problem+json") {
			t.Errorf("= %d %s; want 401 and a problem", rec.Code, rec.Header().Get("Content-Type"))
		}
	})
	t.Run("what was sent is not done by signing in", func(t *testing.T) {
		rec := ask(auth.Principal{Bad: true}, "POST", "/tasks/"+idBlank+"/cancel", "Referer", "http://example.com/tasks/"+idBlank)
		if body := rec.Body.String(); rec.Code != 401 || !strings.Contains(body, "Nothing was changed") || !strings.Contains(body, `value="/tasks/`+idBlank+`"`) {
			t.Errorf("= %d %s", rec.Code, body)
		}
	})
	t.Run("a button that is not for the role stays and says why", func(t *testing.T) {
		rec := ask(auth.Principal{Kind: auth.Session, Name: "v", Role: lpmos.Viewer}, "GET", "/tasks/"+idBlank)
		if body := rec.Body.String(); !strings.Contains(body, "This needs the role operator; you are viewer.") || !strings.Contains(body, `aria-disabled="true"`) {
			t.Error("the task page does not say why")
		}
		rec = ask(auth.Principal{Kind: auth.Session, Name: "o", Role: lpmos.Operator}, "GET", "/tasks/"+idBlank+"/approve")
		if body := rec.Body.String(); !strings.Contains(body, "This needs the role approver; you are operator.") || strings.Contains(body, `value="true"`) {
			t.Error("the approval page does not say why")
		}
		for _, path := range []string{"/dashboard", "/tasks", "/machines", "/machines/7c:c2:55:10:99:07"} {
			rec = ask(auth.Principal{Kind: auth.Session, Name: "v", Role: lpmos.Viewer}, "GET", path)
			if body := rec.Body.String(); rec.Code != 200 || !strings.Contains(body, "This needs the role operator; you are viewer.") || strings.Contains(body, `data-kind="primary" href="/tasks/create`) {
				t.Errorf("%s = %d; want it to say why no task can be created", path, rec.Code)
			}
		}
	})
	t.Run("what nobody may see is nobody's business", func(t *testing.T) {
		for _, path := range []string{"/nothing", "/tasks/" + idBlank} {
			if rec := ask(auth.Principal{}, "GET", path); rec.Code != http.StatusSeeOther {
				t.Errorf("GET %s = %d; want to be sent to sign in, whether it exists or not", path, rec.Code)
			}
		}
	})
	t.Run("who lets everybody in says so on every page", func(t *testing.T) {
		rec := ask(auth.Principal{Kind: auth.Open, Name: "operator@x", Role: lpmos.Admin}, "GET", "/dashboard")
		if !strings.Contains(rec.Body.String(), "--insecure-no-login") {
			t.Error("no banner")
		}
	})
}
