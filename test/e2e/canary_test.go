package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agent/callhome"
	"github.com/lpmos/lpmos/internal/agent/demo"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane"
	regional "github.com/lpmos/lpmos/internal/region"
	own "github.com/lpmos/lpmos/internal/site"
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

// files looks through every file below dir.
func (c *canaries) files(dir string, except ...string) {
	c.t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		n++
		c.sweep(path, b, except...)
		return err
	})
	if err != nil || n == 0 {
		c.t.Errorf("files of %s: %d, %v", dir, n, err)
	}
}

// complete fails the test if a canary is not what one could look for.
func (c *canaries) complete() {
	c.t.Helper()
	for name, v := range c.values {
		if len(v) < 10 {
			c.t.Errorf("the canary of the %s is %q: it was not looked for", name, v)
		}
	}
}

// doomed is a machine of this process, whose disk fails when it is written to;
// job is what its agent was given for it.
type doomed struct {
	hw  lpmos.Hardware
	job chan install.Job
}

func (d doomed) Collect(context.Context) (*lpmos.Hardware, error) { return &d.hw, nil }
func (d doomed) SetClock(time.Time) error                         { return nil }
func (d doomed) Reboot(string)                                    {}
func (d doomed) Finished(lpmos.Disk) (install.Marker, bool)       { return install.Marker{}, false }
func (d doomed) Install(_ context.Context, job install.Job) error {
	d.job <- job
	return &install.Failure{Code: "disk_gone", Cause: "The disk does not answer.", NextStep: "Look at its cable."}
}

// boots gives machine n its boot, once its region knows of its task.
func (s *site) boots(r *region, n int, uuid string) (cfg agentapi.BootConfig) {
	s.t.Helper()
	waitFor(s.t, "the machine's boot", 60*time.Second, func() (err error) {
		cfg, err = demo.Boot(s.t.Context(), r.boot, mac(n), uuid)
		return err
	})
	return cfg
}

// fails has a task's machine go through an attempt that fails, and returns what
// it was given.
func (s *site) fails(r *region, n int, id string) install.Job {
	s.t.Helper()
	log := slog.New(slog.DiscardHandler)
	d := doomed{demo.Hardware(mac(n), "test"), make(chan install.Job, 1)}
	cfg := s.boots(r, n, d.hw.System.UUID)
	client, err := agent.NewClient(cfg, log)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer client.Close()
		_ = agent.New(cfg, client, d, d, nil, agent.Pauses{Again: time.Second, Reboot: time.Second}, nil, log).Run(ctx) // what came of it, the control plane says
	})
	s.approve(id)
	s.until(id, lpmos.Failed, 60*time.Second)
	cancel()
	wg.Wait()
	return <-d.job
}

// TestNoSecretAnywhere puts a canary into every kind of secret that a task, a
// machine, a region or a person has, goes through an installation, one that
// fails, and a batch, and looks for them in every page and answer, on the socket,
// in all logs, in the store with its history, and in every file that control
// plane and region keep.
func TestNoSecretAnywhere(t *testing.T) {
	t.Parallel()
	etcdDir, controlDir, regionDir := t.TempDir(), t.TempDir(), t.TempDir()
	s := newSiteIn(t, etcdDir, controlDir)
	// What the region shows to fetch files is made by it and told to nobody but
	// the control plane, so something between the two listens.
	target, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	var shown atomic.Value
	between := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		if secret, ok := strings.CutPrefix(p.In.Header.Get("Authorization"), "Bearer "); ok {
			shown.Store(secret)
		}
		p.SetURL(target)
	}})
	defer between.Close()
	behind := *s
	behind.url = between.URL
	r := behind.newRegion("dc1", regionDir)
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
	waitFor(t, "the batch", 60*time.Second, func() (err error) {
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
	cfg := s.boots(r, 2, "")
	c.values["credential of a boot"] = cfg.Credential
	machine := s.agent(r, mac(1), 2*time.Second)
	s.approve(id)
	s.until(id, lpmos.Completed, 90*time.Second)
	if code := machine.wait(60 * time.Second); code != 0 {
		t.Errorf("agent ended with %d", code)
	}
	c.values["secret of the region"], _ = shown.Load().(string)

	// A task that fails keeps its secrets, sealed, for whoever tries again; so
	// does the profile. Its machine had both in its hands, and a token to call home.
	c.values["password hash of a profile"] = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"
	c.values["secret of a failed task"] = "CANARY-of-a-failed-task"
	if _, err := s.api.PutProfile(ctx, lpmos.Profile{Name: "web", System: &lpmos.Setup{Users: []lpmos.Account{{Name: "ops", PasswordHash: lpmos.NewSecret(c.values["password hash of a profile"])}}}}, 0); err != nil {
		t.Fatal(err)
	}
	wanted := spec(4, "secret of a failed task")
	wanted.Profile = "web"
	failed, err := s.api.CreateTask(ctx, wanted, "")
	if err != nil {
		t.Fatal(err)
	}
	job := s.fails(r, 4, failed)
	if got := job.Secrets["password.ops"]; got.Reveal() != c.values["password hash of a profile"] {
		t.Errorf("the machine was given %d secrets, and not the password of its profile", len(job.Secrets))
	}
	if got := job.Secrets["root-password"]; got.Reveal() != c.values["secret of a failed task"] {
		t.Errorf("the machine was given %d secrets, and not that of its task", len(job.Secrets))
	}
	c.values["token to call home"] = job.Callhome.Token
	if err := callhome.Post(ctx, job.Callhome, func() lpmos.Receipt { return lpmos.Receipt{RootFSUUID: "of nothing"} }, 5*time.Second, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a system that was never installed called home")
	}

	// Every page and answer, for an admin.
	line := batch.Tasks[0].TaskID
	for path, visible := range map[string]bool{
		"/dashboard": false, "/tasks": false, "/tasks/" + id: true, "/tasks/" + line: true, "/tasks/" + line + "/approve": false, "/tasks/" + id + "/log": false,
		"/batches/" + batch.ID: false, "/machines": false, "/machines/" + mac(1).String(): false, "/regions": false, "/images": false, "/stop": false,
		"/users": false, "/users/carol": false, "/tokens": false, "/audit": false, "/policy": false, "/profiles": false, "/profiles/web": false,
		"/tasks/" + failed: true, "/tasks/" + failed + "/log": false, "/api/v1/tasks/" + failed: true, "/api/v1/tasks/" + failed + "/plan": false, "/api/v1/tasks/" + failed + "/logs": false,
		"/api/v1/profiles": false, "/api/v1/profiles/web": false, "/api/v1/audit": false, "/api/v1/audit/export": false, "/api/v1/approval-policy": false,
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
	for _, p := range []*process{s.etcd, s.control, r.process, machine} {
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
	c.files(etcdDir)
	c.files(controlDir, "token of this host")
	c.files(regionDir)
	c.complete()
}

// TestNoWayInAnywhere is the same for what lets somebody in: the first
// password, the link that signs in once with the session that comes of it, and
// tokens that enroll a region, used and not.
func TestNoWayInAnywhere(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "lpmos-canary-") // t.TempDir may be too deep for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c := &canaries{t: t, values: map[string]string{}}
	var said output
	ports := freePorts(t, 2)
	cfg := own.Config{DataDir: dir, NoFsync: true, EtcdListen: ports[0], Region: regional.Config{RegionID: "dc1", BootAddr: "127.0.0.1:0", AgentAddr: "127.0.0.1:0", TFTPAddr: "off"}}
	cfg.ControlPlane.ListenAddr, cfg.ControlPlane.TLS = ports[1], true
	first := make(chan string, 1)
	cfg.ControlPlane.FirstUser = func(_, password string) { first <- password }
	one, err := own.New(t.Context(), cfg, slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- one.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	defer stop()
	s := &site{t: t, url: one.ControlPlane.URL()}
	if s.api, err = apiclient.New(s.url, nil); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(one.ControlPlane.AuthorityFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.api.Trust(pem); err != nil {
		t.Fatal(err)
	}
	local := one.ControlPlane.LocalToken("test")
	s.api.UseToken(local)
	waitFor(t, "the site", 60*time.Second, func() error { return s.api.Ready(t.Context()) })
	s.online("dc1")
	c.values["first password"] = <-first

	// The link, as a browser opens it.
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer tr.CloseIdleConnections()
	browser := &http.Client{Transport: tr, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ask := func(path string, header ...string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := browser.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, b
	}
	link, err := url.Parse(one.ControlPlane.SignInLink())
	if err != nil {
		t.Fatal(err)
	}
	c.values["link that signs in"] = link.Query().Get("code")
	unused, err := url.Parse(one.ControlPlane.SignInLink())
	if err != nil {
		t.Fatal(err)
	}
	c.values["link that nobody opened"] = unused.Query().Get("code")
	for i := range 2 { // the second time it is refused, and that is told to the log
		resp, b := ask(link.RequestURI())
		for _, k := range resp.Cookies() {
			c.values["session by the link"] = k.Value
		}
		if resp.StatusCode != []int{http.StatusSeeOther, http.StatusUnauthorized}[i] {
			t.Errorf("the link, opened %d times, = %d", i+1, resp.StatusCode)
		}
		c.sweep("the answer to the link", b)
	}

	// Regions: a token that is used, again, and one that is not.
	use, err := s.api.EnrollRegion(t.Context(), "dc2", 0)
	if err != nil {
		t.Fatal(err)
	}
	spare, err := s.api.EnrollRegion(t.Context(), "dc3", 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"token that enrolled a region": use.Token, "token that enrolls a region": spare.Token} {
		c.values[name] = token
		secret, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		if err != nil {
			t.Fatal(err)
		}
		c.values["secret of the "+name] = strings.Split(token, ".")[1]
		c.values["bytes of the "+name] = string(secret)
	}
	regionDir := t.TempDir()
	args := []string{"--enroll-token=" + use.Token, "--control-plane-url=" + s.url, "--tftp-addr=off", "--boot-addr=127.0.0.1:0", "--agent-addr=127.0.0.1:0"}
	enrolled := start(t, "regional-client", nil, append([]string{"--data-dir=" + regionDir, "--log-level=debug"}, args...)...)
	s.online("dc2")
	again := start(t, "regional-client", nil, append([]string{"--data-dir=" + t.TempDir()}, args...)...)
	if code := again.wait(60 * time.Second); code == 0 {
		t.Error("a token was used twice")
	}

	for _, path := range []string{
		"/dashboard", "/regions", "/users", "/users/admin", "/tokens", "/account", "/audit", "/api/v1/regions", "/api/v1/regions/dc2", "/api/v1/users", "/api/v1/users/admin", "/api/v1/me", "/api/v1/audit", "/api/v1/audit/export", "/metrics",
	} {
		resp, b := ask(path, "Cookie", "__Host-lpmos="+c.values["session by the link"])
		if resp.StatusCode != http.StatusOK {
			t.Errorf("GET %s = %d; want 200, or nothing was looked at", path, resp.StatusCode)
		}
		c.sweep("GET "+path, b)
	}
	enrolled.kill()
	stop()
	c.sweep("the log of the region", []byte(enrolled.out.String()))
	c.sweep("the log of the region that came too late", []byte(again.out.String()))
	c.sweep("the log of the site", []byte(said.String()))
	if !strings.Contains(said.String(), "signed in") || !strings.Contains(said.String(), "region=dc2") {
		t.Error("the log of the site speaks of nothing that happened: nothing was looked at")
	}
	c.files(dir)
	c.files(regionDir)
	c.complete()
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
