package browser

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/test/browser/tab"
)

// evil is a page of another origin. What it does is done by attack.js, which
// has the addresses and ids that an attacker could know.
const evil = `<!doctype html><title>A page of somebody else</title><main>Win a prize</main><iframe name="hole" hidden></iframe><div id="frames"></div><script src="/attack.js"></script>`

// attack tries everything a page can do to another origin, and fills
// window.done with what came of it.
const attack = `
const { target, task, digest, serial, forms, calls } = INPUT
const done = window.done = { forms: 0, calls: 0, read: [], sockets: [], finished: false }
const frame = document.querySelector('[name="hole"]')

// A form that is sent into a frame, with the cookies that the browser sends.
function send(path, fields, enctype = 'application/x-www-form-urlencoded', into = 'hole') {
  return new Promise((resolve) => {
    const form = document.createElement('form')
    Object.assign(form, { method: 'post', action: target + path, enctype, target: into })
    for (const [name, value] of Object.entries(fields)) {
      const input = document.createElement('input')
      Object.assign(input, { type: 'hidden', name, value })
      form.append(input)
    }
    document.body.append(form)
    const over = () => { clearTimeout(timer); frame.removeEventListener('load', over); form.remove(); resolve() }
    const timer = setTimeout(over, 3000)
    frame.addEventListener('load', over)
    form.submit()
  })
}

async function call(method, path, body, type) {
  for (const mode of ['no-cors', 'cors']) {
    try {
      const answer = await fetch(target + path, { method, mode, credentials: 'include', body, headers: type && { 'Content-Type': type } })
      if (answer.type !== 'opaque') done.read.push(method + ' ' + path + ' ' + answer.status)
    } catch { /* as it should be */ }
  }
  done.calls++
}

function socket(query) {
  return new Promise((resolve) => {
    const s = new WebSocket(target.replace('http', 'ws') + '/ws' + query)
    s.onopen = () => { done.sockets.push('open'); resolve() }
    s.onclose = () => resolve()
  })
}

function element(tag, attribute, path) {
  return new Promise((resolve) => {
    const e = document.createElement(tag)
    e.onload = () => { done.read.push(tag + ' ' + path); resolve() }
    e.onerror = () => resolve()
    e[attribute] = target + path
    document.getElementById('frames').append(e)
    setTimeout(resolve, 3000)
  })
}

(async () => {
  for (const [path, fields] of forms) { await send(path, fields); done.forms++ }
  // What looks like JSON, without the preflight that JSON takes.
  await send('/api/v1/tasks/' + task + '/cancel', { '{"reason":"': '"}' }, 'text/plain')
  for (const [method, path, body] of calls) {
    for (const type of ['application/json', 'text/plain', 'application/x-www-form-urlencoded']) await call(method, path, body, type)
  }
  await socket('')
  await socket('?after=1')
  await element('script', 'src', '/api/v1/tasks')
  await element('img', 'src', '/api/v1/tasks/' + task + '/cancel')
  for (const path of ['/api/v1/me', '/api/v1/tasks', '/dashboard']) await call('GET', path)
  for (const path of ['/dashboard', '/tasks/' + task + '/approve', '/login']) {
    const f = document.createElement('iframe')
    f.src = target + path
    document.getElementById('frames').append(f)
  }
  done.finished = true
})()
`

// A page of another origin, in the browser of an admin who is signed in, has no
// effect and learns nothing: threats A5, W03, W08 and W09. The first origin is
// another site; the second differs in its port alone, so that browsers send it
// the session's cookie, SameSite=Strict or not.
func TestForeignPages(t *testing.T) {
	tab.Chromium(t)
	w := newWorld(t, "Frankfurt")
	w.publish("debian", "12", "Debian 12", 16<<20)
	mac := lpmos.MustMAC("b0:7b:25:c4:00:10")
	id := w.create(lpmos.Spec{RegionID: "dc1", TargetMAC: mac, OSType: "debian", OSVersion: "12", Hostname: "db-07"})
	w.power(mac, time.Second, server(mac, "7GXK2M3"))
	task := w.until(id, lpmos.AwaitingApproval)
	if _, err := w.api.CreateUser(w.ctx, "victim", apiclient.Access{Role: lpmos.Viewer}); err != nil {
		t.Fatal(err)
	}

	serial := task.Plan.Effect.Target.Serial
	end := serial[max(0, len(serial)-4):]
	approve := map[string]string{"approved": "true", "plan_digest": task.Plan.Digest, "serial_end": end}
	none := map[string]string{}
	forms := [][]any{
		{"/tasks/" + id + "/approve", approve},
		{"/tasks/approve", map[string]string{"listed": id, "id": id, "digest-" + id: task.Plan.Digest, "serial-" + id: end, "count": "1"}},
		{"/tasks/" + id + "/cancel", map[string]string{"reason": "gone"}}, {"/tasks/" + id + "/retry", none}, {"/tasks/" + id + "/delete", none},
		{"/tasks/create", map[string]string{"step": "create", "mac": "b0:7b:25:c4:00:20", "region_id": "dc1", "image": "debian/12/amd64", "expect": "1"}},
		{"/tasks/bulk/run", map[string]string{"action": "cancel", "ids": id, "count": "1"}},
		{"/stop", map[string]string{"reason": "gone"}}, {"/resume", none},
		{"/policy", map[string]string{"do": "add", "approvers": "2"}},
		{"/users", map[string]string{"name": "mallory", "role": "admin", "where": "all"}},
		{"/users/victim", map[string]string{"role": "admin", "where": "all"}}, {"/users/victim/reset", none}, {"/users/victim/delete", none},
		{"/tokens", map[string]string{"name": "mine", "role": "admin", "days": "90"}},
		{"/account/password", map[string]string{"current": "correct horse battery staple", "password": "mallory knows this one", "again": "mallory knows this one"}},
		{"/images/debian/12/amd64/delete", none}, {"/profiles", map[string]string{"name": "evil"}}, {"/templates", map[string]string{"name": "evil", "kind": "user-data", "text": "#cloud-config"}},
		{"/login", map[string]string{"username": "mallory", "password": "x"}},
		{"/logout", none},
	}
	body := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	calls := [][]string{
		{"PUT", "/api/v1/tasks/" + id + "/approve", body(map[string]any{"approved": true, "plan_digest": task.Plan.Digest})},
		{"POST", "/api/v1/tasks/" + id + "/cancel", `{"reason":"gone"}`}, {"DELETE", "/api/v1/tasks/" + id, ""},
		{"POST", "/api/v1/tasks", body(lpmos.Spec{RegionID: "dc1", TargetMAC: lpmos.MustMAC("b0:7b:25:c4:00:21"), OSType: "debian", OSVersion: "12"})},
		{"PUT", "/api/v1/stop", `{"reason":"gone"}`}, {"PUT", "/api/v1/approval-policy", `{"rules":[]}`}, {"PUT", "/api/v1/limits", `{"permits_per_minute":99999}`},
		{"POST", "/api/v1/users", `{"name":"mallory","role":"admin"}`}, {"DELETE", "/api/v1/users/victim", ""},
		{"POST", "/api/v1/tokens", `{"name":"mine"}`}, {"POST", "/api/v1/regions/dc1/revoke", ""}, {"POST", "/api/v1/logout", ""},
	}

	b := tab.New(t, w.url)
	b.Allow = append(b.Allow, "") // what the attacks provoke is told in the console: of this page alone
	b.SignIn(w.api, "operator")
	for _, host := range []string{"localhost", "127.0.0.1"} {
		mux := http.NewServeMux()
		mux.HandleFunc("/{$}", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprint(rw, evil)
		})
		mux.HandleFunc("/attack.js", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "text/javascript")
			fmt.Fprint(rw, strings.Replace(attack, "INPUT", body(map[string]any{"target": w.url, "task": id, "digest": task.Plan.Digest, "serial": end, "forms": forms, "calls": calls}), 1))
		})
		// The form of the approval page, complete, which a person presses there.
		mux.HandleFunc("/press", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprintf(rw, `<!doctype html><title>Prize</title><main><form method="post" action="%s/tasks/%s/approve"><input type="hidden" name="plan_digest" value="%s"><input type="hidden" name="serial_end" value="%s"><button name="approved" value="true">Win</button></form></main>`, w.url, id, task.Plan.Digest, end)
		})
		srv := httptest.NewServer(mux)
		origin := strings.Replace(srv.URL, "127.0.0.1", host, 1)

		before, rev := w.changes(), w.site.ControlPlane.State().Rev()
		home := b.URL
		b.URL = origin
		b.Open("/")
		b.Until("the attack to end", 2*time.Minute, `window.done?.finished`)
		if n := tab.Eval[int](b, `window.done.forms`); n != len(forms) {
			t.Errorf("from %s: %d of %d forms were sent", host, n, len(forms))
		}
		if n := tab.Eval[int](b, `window.done.calls`); n < 3*len(calls) {
			t.Errorf("from %s: %d requests were made; want %d", host, n, 3*len(calls))
		}
		if read := tab.Eval[[]string](b, `window.done.read`); len(read) > 0 {
			t.Errorf("from %s: the page could read %q", host, read)
		}
		if open := tab.Eval[[]string](b, `window.done.sockets`); len(open) > 0 {
			t.Errorf("from %s: %d WebSockets opened", host, len(open))
		}
		b.Said("frame-ancestors", 20*time.Second)
		b.Open("/press")
		b.Click("button")
		b.URL = home
		b.Until("the refusal", 20*time.Second, `location.origin === `+body(home)+` && document.readyState === 'complete'`)
		if text := tab.Eval[string](b, `document.documentElement.textContent`); strings.Contains(text, "is approved") || !strings.Contains(strings.ToLower(text), "cross-origin") {
			t.Errorf("from %s: after pressing the form of another origin the browser shows %q", host, text)
		}

		// Whoever was signed in is so still, and nothing else changed.
		b.Open("/dashboard")
		b.Until("be signed in still", 20*time.Second, `location.pathname === '/dashboard'`)
		srv.Close()
		if after := w.changes(); !slices.Equal(after, before) {
			t.Errorf("from %s: the store changed at %q (revision %d to %d)", host, after[min(len(before), len(after)):], rev, w.site.ControlPlane.State().Rev())
		}
		if now := w.until(id, lpmos.AwaitingApproval); now.Rev != task.Rev {
			t.Errorf("from %s: the task is at revision %d; want %d", host, now.Rev, task.Rev)
		}
	}

	// The very form works where it belongs.
	b.Open("/tasks/" + id + "/approve")
	if tab.Eval[bool](b, `document.querySelector('#sn4') !== null`) {
		b.Type("#sn4", end)
	}
	b.Click(`button[name=approved][value=true]`)
	b.Until("be led to the task", 30*time.Second, `location.pathname === '/tasks/`+id+`' && document.readyState === 'complete'`)
	w.until(id, lpmos.Approved, lpmos.Installing, lpmos.Verifying, lpmos.Completed)

	// What was shown is not shown again once nobody is signed in: no cache has it.
	b.Open("/tasks/" + id + "/approve")
	b.Open("/account")
	b.Click(`main form[action="/logout"] button`)
	b.Until("be signed out", 30*time.Second, `location.pathname === '/login' && document.readyState === 'complete'`)
	tab.Eval[bool](b, `history.go(-2) ?? true`)
	b.Until("be asked to sign in", 30*time.Second, `location.pathname === '/login' && location.search.includes('`+id+`') && document.querySelector('#p') !== null`)
}

// Whose session is ended elsewhere is led to the sign-in page, and back.
func TestSignedOutElsewhere(t *testing.T) {
	tab.Chromium(t)
	w := newWorld(t, "Frankfurt")
	b := tab.New(t, w.url)
	b.Allow = append(b.Allow, "401", "WebSocket") // the session is gone, which the console is told of
	b.SignIn(w.api, "operator")
	b.Open("/tasks?q=status%3Afailed")
	b.Live()
	ended := time.Now()
	if err := w.api.DeleteUser(w.ctx, "operator"); err != nil {
		t.Fatal(err)
	}
	b.Until("be led to the sign-in page", 30*time.Second, `location.pathname === '/login' && document.readyState === 'complete'`)
	t.Logf("after %v", time.Since(ended))
	if text := b.Text("main"); !strings.Contains(text, "Your session has ended") {
		t.Errorf("the sign-in page says %q", text)
	}
	if back := tab.Eval[string](b, `document.querySelector('[name="return"]').value`); back != "/tasks?q=status%3Afailed" {
		t.Errorf("it leads back to %q", back)
	}
}
