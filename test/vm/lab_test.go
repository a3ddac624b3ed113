package vm_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestLabCommand runs what `make lab` runs: once with AUTO=1, which needs no hand,
// and once as a first-time user does it, who opens the link, uses the line that is
// printed, and presses Ctrl-C in the middle.
func TestLabCommand(t *testing.T) {
	rest(t)
	b := needed(t)
	program := filepath.Join(t.TempDir(), "lpmos")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./cmd/lpmos")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build lpmos: %v: %s", err, out)
	}
	links := names(t, "/sys/class/net")

	t.Run("approves by itself, and ends when the machine runs from its own disk", func(t *testing.T) {
		l := startLab(t, program, b, "--auto")
		l.ends(t, installLimit+2*bootLimit, nil)
		for _, want := range []string{"hardware reported", "approved", "may write", "all written", "called home from its own disk", "Done. 1 machine runs from its own disk."} {
			if !strings.Contains(l.said(t), want) {
				t.Errorf("it does not say %q:\n%s", want, l.said(t))
			}
		}
		l.leavesNothing(t, links)
	})

	t.Run("lets a first-time user in by a link, waits for them, and is gone after Ctrl-C", func(t *testing.T) {
		l := startLab(t, program, b)
		link := l.until(t, bootLimit, `Watch it live[^\n]*\s+(http://\S+/login\?code=\S+return=(/tasks/\S+))`)
		opens := func() *http.Response {
			t.Helper()
			jar, err := cookiejar.New(nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := (&http.Client{Jar: jar}).Get(link[1])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { resp.Body.Close() })
			return resp
		}
		resp := opens()
		page, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK || resp.Request.URL.Path != link[2] || !strings.Contains(string(page), "lab-01") {
			t.Errorf("the link leads to %s, %s, %v; want the task's page at once", resp.Request.URL, resp.Status, err)
		}
		if again := opens(); again.Request.URL.Path == link[2] {
			t.Errorf("opened by somebody else, the link leads to %s as well", again.Request.URL)
		}

		line := l.until(t, bootLimit, `or here:\s+(\S+) (task approve [^\n]+)`)
		if said := l.said(t); strings.Contains(said, "installing") {
			t.Errorf("it installs before anybody approved:\n%s", said)
		}
		if out, err := exec.CommandContext(t.Context(), line[1], strings.Fields(line[2])...).CombinedOutput(); err != nil {
			t.Errorf("%s %s: %v: %s", line[1], line[2], err, out)
		}
		l.until(t, bootLimit, `(installing)`)
		if err := l.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		l.ends(t, time.Minute, &exit)
		l.until(t, time.Second, `(everything the lab started is gone)`)
		l.leavesNothing(t, links)
	})
}

// labRun is one run of the command, which nobody types anything into.
type labRun struct {
	cmd   *exec.Cmd
	tmp   string // its TMPDIR
	log   string
	ended chan error
}

func startLab(t *testing.T, program string, b built, args ...string) *labRun {
	t.Helper()
	// t.TempDir may be too deep for the path of a socket.
	tmp, err := os.MkdirTemp("", "lpmos-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	l := &labRun{tmp: tmp, log: filepath.Join(t.ArtifactDir(), "lab.log"), ended: make(chan error, 1)}
	out, err := os.Create(l.log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	args = append([]string{"lab", "up", "--os", "tiny", "--agent", filepath.Join(b.bin, "agent"), "--cache-dir", b.cache, "--listen-addr", "127.0.0.1:0"}, args...)
	l.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), program, args...)
	l.cmd.Stdout, l.cmd.Stderr, l.cmd.Env = out, out, append(os.Environ(), "TMPDIR="+tmp)
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { l.ended <- l.cmd.Wait() }()
	t.Cleanup(func() { _ = l.cmd.Process.Kill() }) // what it started ends with it
	return l
}

func (l *labRun) said(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(l.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// until waits for what it says, and answers the pattern's groups.
func (l *labRun) until(t *testing.T, limit time.Duration, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		if m := re.FindStringSubmatch(l.said(t)); m != nil {
			return m
		}
		if time.Now().After(end) {
			t.Fatalf("%s not seen within %v:\n%s", pattern, limit, l.said(t))
		}
	}
}

// ends waits for its end: exit status 0, or one that as takes.
func (l *labRun) ends(t *testing.T, limit time.Duration, as **exec.ExitError) {
	t.Helper()
	select {
	case err := <-l.ended:
		if as == nil && err != nil || as != nil && !errors.As(err, as) {
			t.Errorf("it ended with %v:\n%s", err, l.said(t))
		}
	case <-time.After(limit):
		t.Fatalf("it did not end within %v:\n%s", limit, l.said(t))
	}
}

// leavesNothing looks for what a lab that ended may have left on the host.
func (l *labRun) leavesNothing(t *testing.T, links string) {
	t.Helper()
	if left := names(t, l.tmp); left != "" {
		t.Errorf("it leaves files: %s", left)
	}
	if now := names(t, "/sys/class/net"); now != links {
		t.Errorf("the host's network was %s, and is %s", links, now)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), l.tmp+"/") {
		t.Errorf("it leaves a mount, %v:\n%s", err, mounts)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range lines {
		if line, err := os.ReadFile(p); err == nil && strings.Contains(string(line), l.tmp+"/") {
			t.Errorf("it leaves a process: %s", strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
}

// names are those of what is in a directory.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}
