package web

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func TestColumns(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	css, err := staticFiles.ReadFile("static/app.css")
	if err != nil {
		t.Fatal(err)
	}
	for list, columns := range listColumns {
		_, body := get(t, h, "/"+list)
		for _, c := range columns {
			if strings.Count(body, `data-column="`+c.ID+`"`) < 2 {
				t.Errorf("the list of %s lacks the column %s", list, c.ID)
			}
			if !strings.Contains(string(css), `[data-without~="`+c.ID+`"] [data-column="`+c.ID+`"]`) {
				t.Errorf("app.css has no rule that leaves out the column %s", c.ID)
			}
		}
	}
	if _, body := get(t, h, "/tasks"); !strings.Contains(body, `data-without="profile created"`) {
		t.Error("the list of tasks does not begin with its usual columns")
	}
	for _, c := range []struct{ name, without string }{{"some", "os mac created"}, {"none", "age os region mac profile created"}, {"the usual ones", "profile created"}} {
		form := url.Values{"columns": {"tasks"}, "return": {"/tasks?q=x"}}
		switch c.name {
		case "some":
			form["column"] = []string{"age", "region", "profile", "no such"}
		case "the usual ones":
			form.Set("usual", "1")
		}
		res, _ := post(t, h, "/preferences", form)
		if res.StatusCode != 303 || res.Header.Get("Location") != "/tasks?q=x" || len(res.Cookies()) != 1 {
			t.Fatalf("%s = %d to %q with %v", c.name, res.StatusCode, res.Header.Get("Location"), res.Cookies())
		}
		r := httptest.NewRequest("GET", "/tasks", nil)
		if kept := res.Cookies()[0]; kept.MaxAge > 0 {
			r.AddCookie(kept)
		}
		if _, body := send(t, h, r); !strings.Contains(body, `data-without="`+c.without+`"`) {
			t.Errorf("with %s columns, the list is without others than %q", c.name, c.without)
		}
	}
	if res, _ := post(t, h, "/preferences", url.Values{"columns": {"passwords"}, "column": {"x"}}); len(res.Cookies()) != 0 {
		t.Errorf("a list that is none is remembered: %v", res.Cookies())
	}
}
