package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/api"
	"github.com/lpmos/lpmos/internal/agent/demo"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/contract"
	"github.com/lpmos/lpmos/internal/region"
	"github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/internal/tier"
	"github.com/lpmos/lpmos/test/fixture"
)

// plane is a whole site in this process, to which the command line speaks. All
// that they say to each other is held against api/openapi.yaml.
type plane struct {
	t    *testing.T
	site *site.Site
	api  *apiclient.Client

	token string
	made  int // by named
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	if _, err := os.Stat("/usr/sbin/mke2fs"); err != nil {
		tier.Missing(t, "mkfs", "no mke2fs, with which images are made")
	}
	dir, err := os.MkdirTemp("", "lpmos-cli-") // t.TempDir may be too deep for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := site.Config{DataDir: filepath.Join(dir, "data"), NoFsync: true, Region: region.Config{RegionID: "dc1", BootAddr: "127.0.0.1:0", AgentAddr: "127.0.0.1:0", TFTPAddr: "off"}}
	cfg.ControlPlane.ListenAddr = "127.0.0.1:0"
	s, err := site.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	c, err := apiclient.New(s.ControlPlane.URL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{t: t, site: s, api: c, token: s.ControlPlane.LocalToken("tester")}
	c.UseToken(p.token)
	if err := waitReady(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	img, err := fixture.Image(t.Context(), dir, "debian", "12", "Debian 12", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := fixture.Publish(t.Context(), c, dir, img); err != nil {
		t.Fatal(err)
	}
	p.until("region is online", func() bool {
		r, err := c.Region(t.Context(), "dc1")
		return err == nil && r.Status == "online"
	})
	return p
}

func (p *plane) until(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	p.t.Fatalf("never so: %s", what)
}

// run is one command line against the site, as the person answers.
func (p *plane) run(answers string, args ...string) (code int, stdout, stderr string) {
	p.t.Helper()
	var out, errs bytes.Buffer
	a := &app{in: strings.NewReader(answers), asks: answers != "", out: &out, err: &errs, transport: func(base http.RoundTripper) http.RoundTripper {
		return contract.NewTransport(p.t, api.OpenAPI, base)
	}}
	code = a.main(p.t.Context(), append([]string{"--server=" + p.site.ControlPlane.URL(), "--token=" + p.token}, args...))
	return code, out.String(), errs.String()
}

// want is run that has to end with code and to say said.
func (p *plane) want(code int, said, answers string, args ...string) string {
	p.t.Helper()
	got, out, errs := p.run(answers, args...)
	if got != code || !strings.Contains(out+errs, said) {
		p.t.Errorf("lpmos %s = exit %d, stdout %q, stderr %q; want %d with %q", strings.Join(args, " "), got, out, errs, code, said)
	}
	return out
}

// boot plays a machine until the test ends.
func (p *plane) boot(mac string) {
	p.t.Helper()
	cfg := demo.Config{RegionURL: p.site.Region.BootURL(), MAC: lpmos.MustMAC(mac), Duration: 2 * time.Second, Version: "test"}
	cfg.Pauses.LogEvery = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = demo.New(cfg, io.Discard, slog.LevelInfo).Run(ctx) // what it achieves, the control plane says
	})
	p.t.Cleanup(func() { cancel(); wg.Wait() })
}

// The verbs, one after the other, as an operator uses them on a real site with
// machines that play their part.
func TestVerbsOnARealSite(t *testing.T) {
	p := newPlane(t)
	create := func(mac, host string) string {
		out := p.want(ExitOK, "Boot the machine", "", "task", "create", "--region", "dc1", "--os", "debian", "--os-version", "12", "--mac", mac, "--hostname", host)
		id, _, _ := strings.Cut(out, "\n")
		return id
	}
	web1, web2 := create("02:4c:50:00:00:01", "web-01"), create("02:4c:50:00:00:02", "web-02")
	p.want(ExitConflict, "already has live task", "", "task", "create", "--region", "dc1", "--os", "debian", "--os-version", "12", "--mac", "02:4c:50:00:00:01", "--hostname", "web-01")
	p.want(ExitTimeout, "--timeout passed", "", "task", "watch", web1, "--timeout", "50ms")
	p.want(ExitConflict, "has not reported", "", "task", "approve", web1, "--plan", "sha256:"+strings.Repeat("0", 64))
	p.boot("02:4c:50:00:00:01")
	p.boot("02:4c:50:00:00:02")
	p.want(ExitOK, "awaiting_approval", "", "task", "watch", "web-01", web2, "--until", "awaiting_approval", "--timeout", "60s")

	logs := p.start("task", "logs", "-f", "web-01")
	p.want(ExitOK, "ERASES", "", "task", "plan", "web-01")
	p.want(ExitFailed, "nothing was done", "3\n", "task", "approve", "web-01", "web-02")
	out := p.want(ExitOK, "2 of 2 approved", "2\n", "task", "approve", "web-01", web2, "--wait", "--timeout", "90s")
	if strings.Contains(out, "\x1b") || strings.Count(out, "completed") != 2 {
		t.Errorf("approve --wait in a pipe says %q; want both completed, and no escape code", out)
	}
	p.want(ExitOK, "called_home", "", "task", "events", "web-01")
	code := logs.end(false)
	if all := p.want(ExitOK, "", "", "task", "logs", "web-01"); code != ExitOK || !strings.Contains(logs.String(), "permit verified") || !strings.HasPrefix(all, logs.String()) {
		t.Errorf("logs -f, begun before the install, ended with %d after\n%s\nwant, each line once,\n%s", code, logs.String(), all)
	}
	p.want(ExitOK, "called home", "", "task", "show", "02-4C-50-00-00-01", "-o", "wide")
	p.want(ExitConflict, "0 of 2 begun anew", "", "task", "retry", web1, web2)

	web3 := create("02:4c:50:00:00:03", "web-03")
	p.want(ExitNotFound, "2 of 3 canceled", "", "task", "cancel", web3, create("02:4c:50:00:00:04", "web-04"), lpmos.NewTaskID())
	p.want(ExitOK, web3, "", "task", "list", "--status", "canceled", "--all", "--limit", "1", "--ids")
	p.want(ExitUsage, "--count", "", "task", "delete", web2, web3)
	p.want(ExitOK, "2 of 2 deleted", "", "task", "delete", web2, web3, "--count", "2")
	p.want(ExitOK, "online", "", "region", "list", "-o", "wide")
	p.want(ExitOK, "agent api", "", "region", "show", "dc1")
	p.want(ExitNotFound, "region", "", "region", "show", "dc9")
	p.want(ExitOK, "debian/12/amd64", "", "image", "list", "-o", "wide")

	web5 := create("02:4c:50:00:00:05", "web-05")
	p.want(ExitConflict, web5[:8], "", "image", "delete", "debian/12")
	p.want(ExitOK, "canceled", "", "task", "cancel", web5)
	p.want(ExitOK, "deleted", "", "image", "delete", "debian/12")
	p.want(ExitNotFound, "not found", "", "image", "show", "debian/12")
}

// running is a command line that goes on by itself.
type running struct {
	mu     sync.Mutex
	out    bytes.Buffer
	cancel context.CancelFunc
	code   chan int
}

func (r *running) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(b)
}

func (r *running) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.String()
}

// end waits until it ends, or stops it, and returns its exit code.
func (r *running) end(stop bool) int {
	if stop {
		r.cancel()
	}
	return <-r.code
}

func (p *plane) start(args ...string) *running {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 120*time.Second)
	p.t.Cleanup(cancel)
	r := &running{cancel: cancel, code: make(chan int, 1)}
	go func() {
		a := &app{in: strings.NewReader(""), out: r, err: r}
		r.code <- a.main(ctx, append([]string{"--server=" + p.site.ControlPlane.URL(), "--token=" + p.token}, args...))
	}()
	return r
}

// A list that is watched in a pipe has a line for each change, as it comes, and
// ends with what stops it.
func TestWatchLists(t *testing.T) {
	p := newPlane(t)
	p.want(ExitOK, "Boot", "", "task", "create", "--region", "dc1", "--os", "debian", "--os-version", "12", "--mac", "02:4c:50:00:00:01", "--hostname", "web-01")
	rows, lines, regions := p.start("task", "list", "--watch", "--status", "pending"), p.start("task", "list", "--watch", "-o", "json"), p.start("region", "list", "-w")
	p.until("all are shown", func() bool {
		return strings.Contains(rows.String(), "web-01") && strings.Contains(lines.String(), "web-01") && strings.Contains(regions.String(), "dc1")
	})
	p.want(ExitOK, "Boot", "", "task", "create", "--region", "dc1", "--os", "debian", "--os-version", "12", "--mac", "02:4c:50:00:00:02", "--hostname", "web-02")
	p.until("the new one is shown", func() bool {
		return strings.Contains(rows.String(), "web-02") && strings.Contains(lines.String(), "web-02")
	})
	p.want(ExitOK, "canceled", "", "task", "cancel", "web-01", "02:4c:50:00:00:02")
	p.until("the change is shown, also of what no longer belongs to the list", func() bool {
		return strings.Count(rows.String(), "canceled") == 2 && strings.Count(lines.String(), `"canceled"`) == 2
	})
	for _, r := range []*running{rows, lines, regions} {
		if code := r.end(true); code != ExitInterrupted || strings.Contains(r.String(), "\x1b") {
			t.Errorf("stopped, it ended with %d after %q; want 130 and no escape codes", code, r.String())
		}
	}
	if got := strings.Count(rows.String(), "\n"); got != 1+4+1 {
		t.Errorf("%d lines: %q; want a heading, four changes, and how it ended", got, rows.String())
	}
	for line := range strings.Lines(lines.String()) {
		if strings.HasPrefix(line, "{") && !json.Valid([]byte(line)) {
			t.Errorf("%q is no line of JSON", line)
		}
	}
}

// named makes a task for a machine of its own.
func (p *plane) named(host, notes string) string {
	p.t.Helper()
	p.made++
	id, err := p.api.CreateTask(p.t.Context(), lpmos.Spec{
		RegionID: "dc1", TargetMAC: lpmos.MAC{0x02, 0x4c, 0x50, 0, 1, byte(p.made)}, OSType: "debian", OSVersion: "12", Hostname: host, Notes: notes,
	}, "")
	if err != nil {
		p.t.Fatal(err)
	}
	return id
}

// listed waits until so many tasks are.
func (p *plane) listed(n int) {
	p.t.Helper()
	p.until("all are listed", func() bool {
		l, err := p.api.Tasks(p.t.Context(), url.Values{"limit": {"1"}})
		return err == nil && l.Total == n
	})
}

// A name means what has just this name, however many others have it somewhere in
// theirs, and on whichever page they would stand.
func TestFindsTheNameItself(t *testing.T) {
	p := newPlane(t)
	one, two := p.named("web-1", ""), p.named("web-2", "")
	for i := range 60 {
		p.named(fmt.Sprintf("web-%d", 100+i), "beside web-2 and 02:4c:50:00:01:01, like "+one[:8])
	}
	p.listed(62)
	for _, name := range []string{"web-1", "WEB-1", one[:8], "02:4c:50:00:01:01", "024C.5000.0101"} {
		p.want(ExitOK, one, "", "task", "show", name)
	}
	p.want(ExitOK, "canceled", "", "task", "cancel", "web-2")
	if task, err := p.api.Task(t.Context(), two); err != nil || task.Status != lpmos.Canceled {
		t.Errorf("task web-2 is %s, %v; want it canceled", task.Status, err)
	}
	for _, name := range []string{"web-", "web-10", "02:4c:50:00:01", "web-1 web-2", `web-1"`, `" host:web-1`, "!web-1", "host:web-1", "web-1,web-2", "web-*", "    ", "\x1b[2J\xff", strings.Repeat("w", 2000)} {
		p.want(ExitNotFound, "not found", "", "task", "show", name)
	}
	// Of those with one name, one that lives is meant, and two are not told apart,
	// even if pages lie between them.
	again := p.named("web-2", "")
	p.want(ExitOK, again, "", "task", "show", "web-2")
	p.named("web-1", "")
	p.want(ExitUsage, "is meant by 2 tasks", "", "task", "show", "web-1")
	short := p.named("db", "")
	p.want(ExitOK, short, "", "task", "show", "db")
	p.want(ExitUsage, "at least 4 characters", "", "task", "show", short[:3])
}

// TestCompletesWhatIsBegun: however many newer tasks have the same characters
// somewhere, Tab finds the one that begins with them.
func TestCompletesWhatIsBegun(t *testing.T) {
	p := newPlane(t)
	web, db := p.named("web-1", ""), p.named("db-1", "")
	for i := range 110 {
		p.named(fmt.Sprintf("eu-web-1-%d", i), "beside db-1, like "+web[:8])
	}
	p.listed(112)
	for typed, want := range map[string]string{"web": "web-1\t" + web[:8] + " pending\n", "db": "db-1\t" + db[:8] + " pending\n", web[:8]: web + "\tweb-1 pending\n", "web-2": "", "*": ""} {
		_, out, _ := p.run("", "__complete", "task", "show", typed)
		if got := out[:strings.LastIndex("\n"+out, "\n:")]; typed == "db" && !strings.HasSuffix(got, want) || typed != "db" && got != want {
			t.Errorf("%q completes to %q; want %q", typed, got, want)
		}
	}
}

func TestSince(t *testing.T) {
	for _, tt := range []struct{ printed, all, want string }{
		{"a b c", "a b c d", "d"}, {"a b c", "b c d", "d"}, {"", "a b", "a b"}, {"a b", "a b", ""}, {"a b", "x y", "x y"}, {"a a", "a a a", "a"},
	} {
		got := since(strings.Fields(tt.printed), strings.Fields(tt.all))
		if strings.Join(got, " ") != tt.want {
			t.Errorf("since(%q, %q) = %q; want %q", tt.printed, tt.all, got, tt.want)
		}
	}
}

// Secrets come from the terminal, a file or standard input, and are said to
// nobody.
func TestCreateWithSecrets(t *testing.T) {
	p := newPlane(t)
	const canary = "CANARY-of-the-command-line"
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{"task", "create", "--region", "dc1", "--os", "debian", "--os-version", "12"}
	one := func(n string, more ...string) []string {
		return append(append([]string{}, args...), append([]string{"--mac", n}, more...)...)
	}
	for _, bad := range []struct {
		want  string
		stdin string
		more  []string
	}{
		{"takes NAME=FILE", "", []string{"--secret-file", canary}},
		{"is not the name of a secret", "", []string{"--secret-file", "Not A Name=" + file("t", "x")}},
		{"is empty", "", []string{"--secret-file", "token=" + file("empty", "\n")}},
		{"is given twice", "", []string{"--secret-file", "token=" + file("t", "x"), "--secret-file", "token=" + file("t", "x")}},
		{"is longer than", "", []string{"--secret-file", "token=" + file("long", strings.Repeat("x", lpmos.MaxSecretBytes+1))}},
		{"standard input", canary, []string{"--secret-file", "token=-", "--secret", "other"}},
	} {
		code, out, errs := p.run(bad.stdin, one("02:4c:50:00:00:01", bad.more...)...)
		if code != ExitUsage || !strings.Contains(errs, bad.want) {
			t.Errorf("%v: exit %d, %q; want 2 and %q", bad.more, code, errs, bad.want)
		}
		if bad.stdin != "" && strings.Contains(out+errs, canary) {
			t.Errorf("%v says the secret", bad.more)
		}
	}
	p.want(ExitOK, "No tasks", "", "task", "list")
	// Both ways of one task, and a column of a file.
	for _, c := range []struct {
		stdin string
		args  []string
	}{
		{canary + "-asked\n", one("02:4c:50:00:00:01", "--secret", "token")},
		{canary + "-piped\n", one("02:4c:50:00:00:02", "--secret-file", "token=-", "--secret-file", "password="+file("hash", canary+"-file\n"))},
		{"", append(append([]string{}, args...), "--secret-file", "password="+file("hash", canary+"-all\n"),
			"--from-csv", file("rack.csv", "mac,hostname,secret:token\n02:4c:50:00:00:03,a,"+canary+"-line\n02:4c:50:00:00:04,b,\n"))},
	} {
		if code, out, errs := p.run(c.stdin, c.args...); code != ExitOK || strings.Contains(out+errs, canary) {
			t.Errorf("%v: exit %d, %q %q; want success, without the secret", c.args, code, out, errs)
		}
	}
	got := map[string]int{}
	l, err := p.api.Tasks(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range l.Tasks {
		task, err := p.api.Task(t.Context(), x.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range task.Committed {
			got[task.TargetMAC.String()+" "+s.Name]++
		}
		code, out, _ := p.run("", "task", "show", x.ID, "-o", "json")
		if code != ExitOK || strings.Contains(out, canary) {
			t.Errorf("task show: exit %d, or it says a secret", code)
		}
	}
	want := map[string]int{"02:4c:50:00:00:01 token": 1, "02:4c:50:00:00:02 token": 1, "02:4c:50:00:00:02 password": 1,
		"02:4c:50:00:00:03 token": 1, "02:4c:50:00:00:03 password": 1, "02:4c:50:00:00:04 password": 1}
	if !maps.Equal(got, want) {
		t.Errorf("tasks commit to %v; want %v", got, want)
	}
}

// What is created from a file, is created whole or not at all.
func TestCreateFromCSV(t *testing.T) {
	p := newPlane(t)
	file := filepath.Join(t.TempDir(), "rack.csv")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"task", "create", "--region", "dc1", "--os", "debian", "--os-version", "12", "--idempotency-key", "rack7", "--from-csv", file}
	write("mac,hostname\n02:4c:50:00:00:01,web-01\nnonsense,web-02\n02:4c:50:00:00:01,web-03\n02:4c:50:00:00:04,-bad-\n")
	if code, _, errs := p.run("", args...); code != ExitUsage || !strings.Contains(errs, "line 3:") || !strings.Contains(errs, "line 4:") || !strings.Contains(errs, "line 5:") || strings.Contains(errs, "line 2:") {
		t.Errorf("bad lines: exit %d, %q; want 2, naming lines 3, 4 and 5", code, errs)
	}
	p.want(ExitOK, "No tasks", "", "task", "list")
	write("\ufeffMAC;hostname;notes\r\n02:4c:50:00:00:01;web-01;rack 7\r\n024c.5000.0002;web-02;\r\n")
	p.want(ExitOK, "2 of 2 created", "", args...)
	p.want(ExitOK, "2 of 2 created", "", args...) // again, as after an answer that was lost
	p.want(ExitOK, "web-02", "", "task", "list", "--sort", "-host", "--limit", "1")
	write("mac,hostname\n02:4c:50:00:00:03,web-03\n02:4c:50:00:00:01,web-04\n")
	p.want(ExitUsage, "line 3: machine 02:4c:50:00:00:01 already has live task", "", append(args, "--idempotency-key", "other")...)
	if l, err := p.api.Tasks(t.Context(), nil); err != nil || l.Total != 2 {
		t.Errorf("after creating twice with one key there are %d tasks, %v; want 2", l.Total, err)
	}
}

// person makes an approver with a password, and a token of theirs.
func (p *plane) person(name string) (token string) {
	p.t.Helper()
	u, err := p.api.CreateUser(p.t.Context(), name, apiclient.Access{Role: lpmos.Approver})
	if err != nil {
		p.t.Fatal(err)
	}
	c, err := apiclient.New(p.site.ControlPlane.URL(), nil)
	if err == nil {
		_, err = c.Login(p.t.Context(), name, u.OneTimePassword)
	}
	if err == nil {
		err = c.ChangePassword(p.t.Context(), u.OneTimePassword, "correct horse battery staple")
	}
	if err != nil {
		p.t.Fatal(err)
	}
	t, err := c.CreateToken(p.t.Context(), apiclient.NewToken{Name: "cli"})
	if err != nil {
		p.t.Fatal(err)
	}
	return t.Token
}

// Four eyes and the password, from the command line.
func TestPolicyOnARealSite(t *testing.T) {
	p := newPlane(t)
	admin, anna, ben := p.token, p.person("anna"), p.person("ben")
	p.want(ExitOK, "one approver decides", "", "policy", "show")
	p.want(ExitUsage, "nothing that it asks for", "", "policy", "add")
	p.want(ExitOK, "02:4c:50:00:00:0e", "", "policy", "label", "production", "02-4C-50-00-00-0E", "02:4c:50:00:00:0f")
	p.want(ExitOK, "label production: 2 approvers, not who asked for it, password within 5 min", "",
		"policy", "add", "--labels", "production", "--approvers", "2", "--not-creator", "--reauth-minutes", "5")
	p.want(ExitUsage, "there is no rule 2", "", "policy", "remove", "2")
	p.want(ExitUsage, "a label that is not defined", "", "policy", "label", "production", "02:4c:50:00:00:0e", "02:4c:50:00:00:0f", "--remove")

	p.token = p.person("olga")
	out := p.want(ExitOK, "Boot the machine", "", "task", "create", "--region", "dc1", "--os", "debian", "--os-version", "12", "--mac", "02:4c:50:00:00:0e", "--hostname", "db-01")
	id, _, _ := strings.Cut(out, "\n")
	p.boot("02:4c:50:00:00:0e")
	var task lpmos.Task
	p.until("it waits", func() bool {
		task, _ = p.api.Task(t.Context(), id)
		return task.Status == lpmos.AwaitingApproval
	})
	end := ""
	if task.Plan.ErasesData() {
		end = "\n" + task.Plan.Effect.Target.Serial[len(task.Plan.Effect.Target.Serial)-4:]
	}
	approve := func(code int, said, password string) {
		t.Helper()
		p.want(code, said, "yes"+end+"\n"+password+"\n", "task", "approve", id)
	}
	approve(ExitDenied, "olga asked for this task", "")
	p.token = anna
	p.want(ExitDenied, "the role admin", "", "policy", "remove", "1")
	p.want(ExitDenied, "an API token alone is not enough", "", "task", "approve", id, "--plan", task.Plan.Digest, "--serial-end", strings.TrimSpace(end))
	approve(ExitUsage, "password", "not the password")
	approve(ExitOK, "your approval is kept (1 of 2 approvals: anna)", "correct horse battery staple")
	p.want(ExitOK, "1 of 2 approvals: anna; by another than olga", "", "task", "show", id)
	approve(ExitConflict, "another approver has to agree", "correct horse battery staple")
	p.token = ben
	approve(ExitOK, "approved; follow it", "correct horse battery staple")
	p.want(ExitOK, "by anna and ben", "", "task", "show", id)
	p.token = admin
	p.want(ExitOK, "one approver decides", "", "policy", "remove", "1")
}
