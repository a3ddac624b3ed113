package web

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// TestOwnViews keeps what a list shows under a name, finds it among the list's views,
// and takes it away.
func TestOwnViews(t *testing.T) {
	h := signedIn(newTestWeb(t, newSite(t, testNow)))
	jar := map[string]*http.Cookie{}
	list := func(address string) string {
		t.Helper()
		r := httptest.NewRequest("GET", address, nil)
		for _, c := range jar {
			r.AddCookie(c)
		}
		_, body := send(t, h, r)
		return body
	}
	say := func(form url.Values) (int, string) {
		t.Helper()
		r := httptest.NewRequest("POST", "/preferences", strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for _, c := range jar {
			r.AddCookie(c)
		}
		res, body := send(t, h, r)
		for _, c := range res.Cookies() {
			if jar[c.Name] = c; c.MaxAge < 0 {
				delete(jar, c.Name)
			}
		}
		return res.StatusCode, body
	}
	keep := func(list, name, query string) (int, string) {
		return say(url.Values{"views": {list}, "name": {name}, "query": {query}, "return": {"/" + list}})
	}

	if body := list("/tasks"); strings.Contains(body, "Save this view") {
		t.Error("a list of everything can be kept")
	}
	const failed = "q=status%3Afailed&sort=-updated"
	if body := list("/tasks?" + failed); !strings.Contains(body, "Save this view") || !strings.Contains(body, `name="query" value="q=status%3Afailed&amp;sort=-updated"`) {
		t.Error("what is shown cannot be kept")
	}
	hostile := `<script>"&=;%26 夜`
	for _, c := range []struct{ list, name, query string }{
		{"tasks", "Broken", failed + "&cursor=abc&return=//host"}, {"tasks", hostile, "q=a%20b"}, {"machines", "Ready here", "state=ready&region_id=dc1&q=R760"},
	} {
		if code, body := keep(c.list, c.name, c.query); code != http.StatusSeeOther {
			t.Fatalf("keep %q = %d: %s", c.name, code, body)
		}
	}
	body := list("/tasks?" + failed)
	if !strings.Contains(body, `<a class="view" href="/tasks?q=status%3Afailed&amp;sort=-updated" aria-current="page"><bdi class="cut">Broken</bdi></a>`) {
		t.Error("the view that is shown is not among the views")
	}
	if strings.Contains(body, "<script>\"") || !strings.Contains(body, `href="/tasks?q=a&#43;b"><bdi class="cut">&lt;script&gt;&#34;&amp;=;%26 夜</bdi>`) {
		t.Error("a hostile name is not shown as it is")
	}
	if strings.Contains(body, "Ready here") || !strings.Contains(list("/machines"), `href="/machines?q=R760&amp;region_id=dc1&amp;state=ready"><bdi class="cut">Ready here</bdi>`) {
		t.Error("a view is not kept for its own list")
	}
	if code, _ := say(url.Values{"views": {"tasks"}, "remove": {hostile}, "return": {"/tasks"}}); code != http.StatusSeeOther || strings.Contains(list("/tasks"), "script&gt;") || !strings.Contains(list("/tasks"), "Broken") {
		t.Error("one view is not taken away, or others are, too")
	}

	before := jar["lpmos_views_tasks"].Value
	for name, form := range map[string]url.Values{
		"is missing: it is how": {"views": {"tasks"}, "name": {"  "}, "query": {failed}},
		"longer than 40":        {"views": {"tasks"}, "name": {strings.Repeat("夜", 41)}, "query": {failed}},
		"filter or sort":        {"views": {"tasks"}, "name": {"x"}, "query": {"cursor=1"}},
		"has no room":           {"views": {"tasks"}, "name": {"x"}, "query": {"q=" + strings.Repeat("a", 3<<10)}},
	} {
		if code, body := say(form); code != http.StatusBadRequest || !strings.Contains(body, name) || jar["lpmos_views_tasks"].Value != before {
			t.Errorf("%s: %d, kept %q", name, code, jar["lpmos_views_tasks"].Value)
		}
	}
	for i := 1; i < mostViews; i++ {
		if code, _ := keep("tasks", fmt.Sprint(i), "q=x"); code != http.StatusSeeOther {
			t.Fatalf("view %d = %d", i+1, code)
		}
	}
	if code, _ := keep("tasks", "one more", "q=x"); code != http.StatusBadRequest {
		t.Errorf("view %d = %d", mostViews+1, code)
	}
	if code, _ := keep("tasks", "Broken", "q=other"); code != http.StatusSeeOther || !strings.Contains(list("/tasks"), `href="/tasks?q=other"`) {
		t.Error("a view cannot be changed once there are many")
	}
	if keep("passwords", "x", "q=x"); jar["lpmos_views_passwords"] != nil {
		t.Error("a list that is none has views")
	}
	// Whatever a browser sends, there is a page.
	jar["lpmos_views_tasks"] = &http.Cookie{Name: "lpmos_views_tasks", Value: "%zz&=&a=%2F%2Fhost"}
	if body := list("/tasks"); !strings.Contains(body, "<h1>Tasks</h1>") || strings.Contains(body, "//host") {
		t.Error("a cookie that is none spoils the list")
	}
}
