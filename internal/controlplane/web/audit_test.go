package web

import (
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

func TestAuditPage(t *testing.T) {
	s := newSite(t, testNow)
	const evil = `<img src=x onerror=alert(1)>`
	raw := func(v any) json.RawMessage {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for i, e := range []lpmos.AuditEntry{
		{By: "control plane", Action: "user.create", Subject: "user admin", After: raw(map[string]any{"role": "admin"})},
		{By: "anna", Peer: "192.0.2.7", Via: "token ci", Action: "user.update", Subject: "user bob", Before: raw(map[string]any{"role": "viewer"}), After: raw(map[string]any{"role": "admin"})},
		{By: evil, Peer: evil, Via: evil, Action: evil, Subject: "machine " + evil, Before: raw(map[string]any{evil: evil}), After: raw(map[string]any{"reason": evil})},
		{By: "orchestrator", Action: lpmos.AuditTasksNoted, Subject: "tasks (2)", Heads: map[string]lpmos.ChainHead{"a": {}, "b": {}}},
	} {
		e.Seq, e.At = int64(i)+1, testNow.Add(time.Duration(i-10)*time.Hour)
		s.audit = append(s.audit, e)
	}
	w := newTestWeb(t, s)
	get := func(path, lang string) (int, string) {
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("Accept-Language", lang)
		rec := httptest.NewRecorder()
		signedIn(w).ServeHTTP(rec, r)
		return rec.Code, rec.Body.String()
	}
	for path, want := range map[string][]string{
		"/audit":                         {`id="entry-4"`, `id="entry-3"`, "where the histories of 2 tasks end", `href="/audit?cursor=3"`, "lpmos audit list", "lpmos audit verify", "4</dd>"},
		"/audit?cursor=3":                {`id="entry-2"`, `id="entry-1"`, "192.0.2.7", "token ci", `href="/users/bob"`, "From the newest", ">viewer</span>", ">admin</span>"},
		"/audit?by=anna":                 {`id="entry-2"`, `lpmos audit list --by &#39;anna&#39;`, `value="anna"`},
		"/audit?action=user.create":      {`id="entry-1"`, `<option value="user.create" selected>User created</option>`, `--action &#39;user.create&#39;`},
		"/audit?subject=nobody":          {"No change matches", "Show all changes"},
		"/audit?subject=it%27s":          {`--subject &#39;it&#39;\&#39;&#39;s&#39;`},
		"/audit?from=2026-11-23":         {`value="2026-11-23"`, "--after 2026-11-23"},
		"/audit?to=2026-11-22":           {"No change matches", "--before 2026-11-23"},
		"/audit?from=2026-11-20&by=anna": {`id="entry-2"`},
	} {
		code, body := get(path, "en")
		if code != 200 {
			t.Errorf("GET %s = %d", path, code)
		}
		for _, part := range want {
			if !strings.Contains(body, part) {
				t.Errorf("GET %s lacks %q", path, part)
			}
		}
		if strings.Contains(body, "<img") {
			t.Errorf("GET %s obeys what somebody wrote", path)
		}
	}
	if code, body := get("/audit?from=soon", "en"); code != 400 || !strings.Contains(body, "soon is not a day") {
		t.Errorf("a day that is none = %d", code)
	}
	if code, _ := get("/audit?cursor=x", "en"); code != 400 {
		t.Errorf("a cursor that is none = %d", code)
	}
	for path, want := range map[string][]string{
		"/audit":          {"谁，从哪里", ">任务（2 个）<"},
		"/audit?cursor=3": {">控制平面<", ">令牌 ci<", ">用户 bob<", ">用户 admin<"},
		"/audit?by=" + url.QueryEscape("控制平面"): {`id="entry-1"`, `--by &#39;control plane&#39;`},
	} {
		code, body := get(path, "zh-CN")
		for _, part := range want {
			if code != 200 || !strings.Contains(body, part) {
				t.Errorf("GET %s in Chinese = %d and lacks %q", path, code, part)
			}
		}
	}
	chinese := w.in["zh-CN"]
	for form, want := range map[string]string{
		"token ci of anna": "anna 的令牌 ci", "session of anna": "anna 的会话", "emergency stop": "紧急停止", "site": "全站", "image debian/12/amd64": "镜像 debian/12/amd64", "a word": "a word",
	} {
		if got := chinese.formed(subjectForms, form); got != want {
			t.Errorf("%q is said as %q; want %q", form, got, want)
		}
	}
	e := lpmos.Event{Cause: lpmos.CauseApproved, By: "anna", Peer: "192.0.2.7"}
	if said := string(w.happened(e)); !strings.Contains(said, "By <strong><bdi>anna</bdi></strong>, from <bdi>192.0.2.7</bdi>.") {
		t.Errorf("a task's timeline says %q; want who and from where", said)
	}
	words := map[string]bool{}
	for _, a := range lpmos.AuditActions {
		words[a] = true
		if auditWords[a] == "" {
			t.Errorf("%s has no words", a)
		}
	}
	for a := range auditWords {
		if !words[a] {
			t.Errorf("there are words for %s, which nobody does", a)
		}
	}
}
