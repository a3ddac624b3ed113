package rest_test

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"unicode/utf16"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// V01, V02: every route that takes JSON refuses what is no JSON of ours, quickly
// and in words, and stores nothing of it.
func TestEveryRouteRefusesHostileJSON(t *testing.T) {
	p := newPlane(t)
	utf16le := func(s string) string {
		b := []byte{0xff, 0xfe}
		for _, u := range utf16.Encode([]rune(s)) {
			b = append(b, byte(u), byte(u>>8))
		}
		return string(b)
	}
	many := func(n int, one func(i int) string) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = one(i)
		}
		return strings.Join(parts, ",")
	}
	bodies := map[string]string{
		"nothing":              " ",
		"a byte order mark":    "\xef\xbb\xbf{}",
		"UTF-16":               utf16le(`{}`),
		"invalid UTF-8":        "{\"reason\":\"\xff\"}",
		"NaN":                  `{"limit":NaN}`,
		"a number too large":   `{"ttl_seconds":1e400,"permits_per_minute":1e400,"version":1e400,"size_bytes":1e400,"x":1e400}`,
		"an unknown field":     `{"no_such_field":1}`,
		"a field twice":        `{"name":"a","name":"b","reason":"a","reason":"b","x":1,"x":2}`,
		"a prototype":          `{"__proto__":{"role":"admin"}}`,
		"a second value":       `{}{}`,
		"an array":             `[{}]`,
		"a text":               `"{}"`,
		"half of it":           `{"name":`,
		"nested without end":   strings.Repeat(`{"a":`, 10_000),
		"nested arrays":        strings.Repeat("[", 100_000),
		"many keys":            `{` + many(5_000, func(i int) string { return fmt.Sprintf(`"k%d":1`, i) }) + `}`,
		"one that is too long": `{"reason":"` + strings.Repeat("x", 1<<20) + `"}`,
	}
	fill := strings.NewReplacer(":id", missing, ":mac", "52:54:00:00:00:01", ":name", "nobody", ":os", "no", ":version", "1", ":arch", "amd64")
	routes := 0
	end, err := p.store.AuditEnd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range p.api.Routes() {
		path := fill.Replace(strings.Replace(r.Path, "regions/:id", "regions/none", 1))
		if r.Method != "POST" && r.Method != "PUT" || strings.Contains(r.Path, ":sha256") {
			continue
		}
		// Routes that take no body do not read one.
		if last := path[strings.LastIndex(path, "/")+1:]; last == "logout" || last == "retry" || last == "rotate" || last == "revoke" || last == "reset-password" {
			continue
		}
		routes++
		for name, body := range bodies {
			resp, b := p.do(r.Method, path, body)
			if resp.StatusCode != 400 && resp.StatusCode != 413 || resp.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s %s with %s = %d %.200s; want 400 or 413", r.Method, r.Path, name, resp.StatusCode, b)
			}
		}
	}
	if routes < 15 {
		t.Errorf("only %d routes take JSON", routes)
	}
	now, err := p.store.AuditEnd(t.Context())
	if err != nil || now != end {
		t.Errorf("something of it was stored: the audit went from %d to %d (%v)", end.Seq, now.Seq, err)
	}
}

// endless is a body that never ends, of which nobody may read much.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.read.Add(int64(len(p)))
	return len(p), nil
}

// V01: a body of any length costs no memory.
func TestBodyWithoutEnd(t *testing.T) {
	p := newPlane(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	body := &endless{}
	req, err := http.NewRequestWithContext(t.Context(), "POST", p.url+"/api/v1/tasks", io.LimitReader(body, 1<<30))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("= %d; want 413", resp.StatusCode)
		}
	} // or the connection was cut while it was being sent
	runtime.ReadMemStats(&after)
	if read := body.read.Load(); read > 64<<20 {
		t.Errorf("%d MiB were taken before it was refused", read>>20)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// A token counts in one place and for one thing: elsewhere, altered, ended or of
// another kind it is nobody's, and every such answer is the same.
func TestTokenMisuse(t *testing.T) {
	p := newPlane(t)
	made := want[struct {
		OneTimePassword string `json:"one_time_password"`
	}](p, "POST", "/api/v1/users", `{"name":"anna","role":"admin"}`, 201)
	real := []string{"Test-Real", "1"}
	with := func(header ...string) []string { return append(append([]string{}, real...), header...) }
	resp, _ := p.do("POST", "/api/v1/login", fmt.Sprintf(`{"username":"anna","password":%q}`, made.OneTimePassword), real...)
	c := cookie(t, resp)
	if resp, b := p.do("PUT", "/api/v1/me/password", fmt.Sprintf(`{"current_password":%q,"password":"correct horse battery"}`, made.OneTimePassword), with("Cookie", c)...); resp.StatusCode != 204 {
		t.Fatalf("choose a password = %d %s", resp.StatusCode, b)
	} else {
		c = cookie(t, resp)
	}
	tok := want[struct{ ID, Token string }](p, "POST", "/api/v1/tokens", `{"name":"ci","role":"viewer"}`, 201, with("Cookie", c)...)
	ended := want[struct{ ID, Token string }](p, "POST", "/api/v1/tokens", `{"name":"old","role":"viewer"}`, 201, with("Cookie", c)...)
	if resp, _ := p.do("DELETE", "/api/v1/tokens/"+ended.ID, "", with("Cookie", c)...); resp.StatusCode != 204 {
		t.Fatalf("end a token = %d", resp.StatusCode)
	}
	want[struct{}](p, "GET", "/api/v1/tasks", "", 200, with("Authorization", "bearer "+tok.Token)...)

	session := strings.TrimPrefix(c, "lpmos_session=")
	flipped := []byte(tok.Token)
	flipped[len(flipped)-2] ^= 1
	first := ""
	for name, tt := range map[string]struct {
		path   string
		header []string
	}{
		"in the address":                 {"/api/v1/tasks?token=" + tok.Token + "&access_token=" + tok.Token, nil},
		"as a cookie":                    {"/api/v1/tasks", []string{"Cookie", "lpmos_session=" + tok.Token}},
		"a session as a token":           {"/api/v1/tasks", []string{"Authorization", "Bearer " + session}},
		"a session with a token's front": {"/api/v1/tasks", []string{"Authorization", "Bearer lpm_" + session}},
		"as a password":                  {"/api/v1/tasks", []string{"Authorization", "Basic " + tok.Token}},
		"its public id":                  {"/api/v1/tasks", []string{"Authorization", "Bearer " + tok.ID}},
		"its hash":                       {"/api/v1/tasks", []string{"Authorization", "Bearer lpm_" + auth.Hash(tok.Token)}},
		"one bit altered":                {"/api/v1/tasks", []string{"Authorization", "Bearer " + string(flipped)}},
		"in capitals":                    {"/api/v1/tasks", []string{"Authorization", "Bearer " + strings.ToUpper(tok.Token)}},
		"one that was ended":             {"/api/v1/tasks", []string{"Authorization", "Bearer " + ended.Token}},
		"a region's":                     {"/api/v1/tasks", []string{"Authorization", "Bearer lpr_" + strings.TrimPrefix(tok.Token, "lpm_")}},
		"a bad one beside a good cookie": {"/api/v1/tasks", []string{"Authorization", "Bearer lpm_x", "Cookie", c}},
		"a megabyte":                     {"/api/v1/tasks", []string{"Authorization", "Bearer " + strings.Repeat("x", 12<<10)}},
		"another header":                 {"/api/v1/tasks", []string{"X-Api-Key", tok.Token, "Proxy-Authorization", "Bearer " + tok.Token}},
	} {
		resp, b := p.do("GET", tt.path, "", with(tt.header...)...)
		if resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s = %d %s; want 401", name, resp.StatusCode, b)
		}
		if len(tt.header) > 0 && tt.header[0] == "Authorization" { // those that showed something
			if first == "" {
				first = string(b)
			}
			if string(b) != first {
				t.Errorf("%s is answered %s, another %s: the difference tells something", name, b, first)
			}
		}
	}
	// A viewer's token of an admin does not give rights, whatever is asked in whatever way.
	for _, header := range [][]string{{"X-HTTP-Method-Override", "DELETE"}, {"X-Original-URL", "/api/v1/users"}, {"X-Forwarded-User", "admin"}, {"X-Remote-User", "admin"}} {
		resp, _ := p.do("DELETE", "/api/v1/users/anna", "", with(append([]string{"Authorization", "Bearer " + tok.Token}, header...)...)...)
		if resp.StatusCode != 403 {
			t.Errorf("delete a user with a viewer's token and %s = %d; want 403", header[0], resp.StatusCode)
		}
	}
	if u, ok := p.auth.User("anna"); !ok || u.Role != lpmos.Admin {
		t.Errorf("anna is %+v, %v", u, ok)
	}
}
