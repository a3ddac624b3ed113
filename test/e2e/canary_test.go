package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/demo"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane"
)

// canaries are secrets by what they are, and what was found of them.
type canaries struct {
	t      *testing.T
	values map[string]string
	// visible is no secret: where it is not found, nothing was looked at.
	visible string
}

// spellings are how a value might stand somewhere.
func spellings(v string) []string {
	out := []string{v, base64.StdEncoding.EncodeToString([]byte(v)), base64.RawURLEncoding.EncodeToString([]byte(v)), hex.EncodeToString([]byte(v)), url.QueryEscape(v)}
	slices.Sort(out)
	return slices.Compact(out)
}

// sweep looks through bytes. except names secrets that may stand there.
func (c *canaries) sweep(where string, b []byte, except ...string) {
	c.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(c.values)) {
		if slices.Contains(except, name) {
			continue
		}
		for _, s := range spellings(c.values[name]) {
			if i := bytes.Index(b, []byte(s)); i >= 0 {
				c.t.Errorf("%s holds the %s: …%q…", where, name, b[max(0, i-60):i])
			}
		}
	}
}

// sees fails the test if the visible canary is not in b: then the place would
// not show a secret either.
func (c *canaries) sees(where string, b []byte) {
	c.t.Helper()
	if !bytes.Contains(b, []byte(c.visible)) {
		c.t.Errorf("%s does not hold what it should (%q): nothing was looked at", where, c.visible)
	}
}

// TestNoSecretAnywhere puts a canary into every kind of secret there is, goes
// through an installation and a batch, and looks for them in every page and
// answer, on the socket, in all logs, in the store with its history, and in
// every file that control plane and region keep.
func TestNoSecretAnywhere(t *testing.T) {
	t.Parallel()
	etcdDir, controlDir, regionDir := t.TempDir(), t.TempDir(), t.TempDir()
	s := newSiteIn(t, etcdDir, controlDir)
	r := s.newRegion("dc1", regionDir)
	s.online("dc1")
	c := &canaries{t: t, values: map[string]string{}, visible: "CANARY-visible-note"}
	ctx := t.Context()
	local, err := os.ReadFile(filepath.Join(controlDir, controlplane.LocalTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	c.values["token of this host"] = strings.TrimSpace(string(local))

	// The socket, as it comes off the wire.
	var frames bytes.Buffer
	var wg sync.WaitGroup
	sock, _, err := websocket.DefaultDialer.DialContext(ctx, strings.Replace(s.url, "http://", "ws://", 1)+"/ws", http.Header{"Authorization": {"Bearer " + c.values["token of this host"]}})
	if err != nil {
		t.Fatal(err)
	}
	if err := sock.WriteJSON(map[string]string{"type": "subscribe"}); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		for {
			_, b, err := sock.ReadMessage()
			if err != nil {
				return
			}
			frames.Write(b)
		}
	})

	// People: a password, a session, a token.
	u, err := s.api.CreateUser(ctx, "carol", apiclient.Access{Role: lpmos.Operator})
	if err != nil {
		t.Fatal(err)
	}
	c.values["one-time password"] = u.OneTimePassword
	c.values["password"] = "CANARY password of a person"
	c.values["session"], c.values["API token"] = s.signIn(t, "carol", u.OneTimePassword, c.values["password"])

	// Tasks: one that is installed, two lines of a batch that wait.
	c.values["secret of a task"] = "CANARY-of-a-task $6$salt$hash"
	c.values["secret of a line"] = "CANARY-of-a-line"
	spec := func(n int, secret string) lpmos.Spec {
		return lpmos.Spec{RegionID: "dc1", TargetMAC: mac(n), OSType: s.image.OS, OSVersion: s.image.Version, Notes: c.visible,
			Secrets: map[string]lpmos.Secret{"root-password": lpmos.NewSecret(c.values[secret])}}
	}
	id, err := s.api.CreateTask(ctx, spec(1, "secret of a task"), "")
	if err != nil {
		t.Fatal(err)
	}
	batch, err := s.api.CreateBatch(ctx, []lpmos.Spec{spec(2, "secret of a line"), spec(3, "secret of a line")}, "canary")
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the batch", 30*time.Second, func() (err error) {
		if batch, err = s.api.Batch(ctx, batch.ID); err == nil && !batch.Finished {
			err = lpmos.ErrUnavailable
		}
		return err
	})
	for _, x := range batch.Tasks {
		if got, err := s.api.Task(ctx, x.TaskID); err != nil || len(got.Committed) != 1 || got.Committed[0].Name != "root-password" {
			t.Errorf("task of line %d commits to %+v, %v; want its secret", x.Line, got.Committed, err)
		}
	}

	// The wire of a machine: its credential, and with the permit its call home.
	cfg, err := demo.Boot(ctx, r.boot, mac(2), "")
	if err != nil {
		t.Fatal(err)
	}
	c.values["credential of a boot"] = cfg.Credential
	agent := s.agent(r, mac(1), 2*time.Second)
	s.approve(id)
	s.until(id, lpmos.Completed, 90*time.Second)
	if code := agent.wait(30 * time.Second); code != 0 {
		t.Errorf("agent ended with %d", code)
	}

	// Every page and answer, for an admin.
	line := batch.Tasks[0].TaskID
	for path, visible := range map[string]bool{
		"/dashboard": false, "/tasks": false, "/tasks/" + id: true, "/tasks/" + line: true, "/tasks/" + line + "/approve": false, "/tasks/" + id + "/log": false,
		"/batches/" + batch.ID: false, "/machines": false, "/machines/" + mac(1).String(): false, "/regions": false, "/images": false, "/stop": false,
		"/users": false, "/users/carol": false, "/tokens": false,
		"/api/v1/tasks": false, "/api/v1/tasks/" + id: true, "/api/v1/tasks/" + line: true, "/api/v1/tasks/" + id + "/events": false, "/api/v1/tasks/" + id + "/logs": false,
		"/api/v1/tasks/" + id + "/plan": false, "/api/v1/batches/" + batch.ID: false, "/api/v1/machines": false, "/api/v1/machines/" + mac(1).String(): false,
		"/api/v1/regions": false, "/api/v1/regions/dc1": false, "/api/v1/users": false, "/api/v1/tokens": false, "/api/v1/me": false, "/api/v1/limits": false, "/metrics": false,
	} {
		status, b := s.page(t, path, c.values["token of this host"])
		if status != http.StatusOK {
			t.Errorf("GET %s = %d; want 200, or nothing was looked at", path, status)
		}
		c.sweep("GET "+path, b)
		if visible {
			c.sees("GET "+path, b)
		}
	}

	// The socket, and what programs said.
	sock.Close()
	wg.Wait()
	c.sweep("the WebSocket", frames.Bytes())
	if !bytes.Contains(frames.Bytes(), []byte(id)) {
		t.Error("the WebSocket said nothing of the task: nothing was looked at")
	}
	for _, p := range []*process{s.etcd, s.control, r.process, agent} {
		c.sweep("the log of "+p.name, []byte(p.out.String()))
	}

	// The store as it is, and as files with all that ever stood in it.
	kv, err := clientv3.New(clientv3.Config{Endpoints: []string{s.etcdAddr}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	kctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	all, err := kv.Get(kctx, "\x00", clientv3.WithFromKey())
	if err != nil {
		t.Fatal(err)
	}
	var dump bytes.Buffer
	for _, x := range all.Kvs {
		dump.Write(x.Key)
		dump.Write(x.Value)
	}
	c.sees("the store", dump.Bytes())
	c.sweep("the store", dump.Bytes())
	for _, p := range []*process{s.control, r.process, s.etcd} {
		p.kill()
	}
	for dir, except := range map[string][]string{etcdDir: nil, controlDir: {"token of this host"}, regionDir: nil} {
		files := 0
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			files++
			c.sweep(path, b, except...)
			return err
		})
		if err != nil || files == 0 {
			t.Errorf("files of %s: %d, %v", dir, files, err)
		}
	}
	for name, v := range c.values {
		if len(v) < 10 {
			t.Errorf("the canary of the %s is %q: it was not looked for", name, v)
		}
	}
}

// signIn signs a new user in, has them choose a password and make a token, and
// returns what their cookie holds, and the token.
func (s *site) signIn(t *testing.T, name, once, password string) (cookie, token string) {
	t.Helper()
	client := &http.Client{Timeout: 30 * time.Second}
	var answer struct {
		Token string `json:"token"`
	}
	send := func(method, path string, body map[string]any) {
		t.Helper()
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if cookie != "" {
			req.Header.Set("Cookie", "lpmos_session="+cookie)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode >= 300 {
			t.Fatalf("%s %s = %s %.300s, %v", method, path, res.Status, text, err)
		}
		if len(text) > 0 {
			if err := json.Unmarshal(text, &answer); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range res.Cookies() {
			if c.Value != "" {
				cookie = c.Value
			}
		}
	}
	send(http.MethodPost, "/api/v1/login", map[string]any{"username": name, "password": once})
	send(http.MethodPut, "/api/v1/me/password", map[string]any{"current_password": once, "password": password})
	send(http.MethodPost, "/api/v1/tokens", map[string]any{"name": "canary", "role": "viewer", "expires_in_sec": 3600})
	if cookie == "" || answer.Token == "" {
		t.Fatalf("nobody is signed in, or has a token: %d and %d characters", len(cookie), len(answer.Token))
	}
	return cookie, answer.Token
}

// page reads one page or answer with a token.
func (s *site) page(t *testing.T, path, token string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, b
}
