package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is one of the real programs.
type process struct {
	name string
	cmd  *exec.Cmd
	said tail
	gone chan struct{}
}

// tail keeps the end of what a program says.
type tail struct {
	mu   sync.Mutex // guards what follows
	b    []byte
	most int
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if most := max(t.most, 8<<10); len(t.b) > 2*most {
		t.b = append([]byte(nil), t.b[len(t.b)-most:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.Clone(t.b))
}

// start runs a program until ctx ends. It does not outlive this process.
func start(ctx context.Context, path string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(path), cmd: exec.CommandContext(ctx, path, args...), gone: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.said, &p.said
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 15 * time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		_ = p.cmd.Wait() // what it means is asked for by wait
		close(p.gone)
	}()
	return p, nil
}

// stop ends a program and waits for it. The error says how it ended.
func (p *process) stop(sig os.Signal) error {
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.gone:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.gone
		return fmt.Errorf("%s did not end within 20 s", p.name)
	}
	return p.ended()
}

func (p *process) ended() error {
	if st := p.cmd.ProcessState; !st.Success() {
		said := p.said.String()
		if len(said) > 2000 {
			said = "…" + said[len(said)-2000:]
		}
		return fmt.Errorf("%s: %s\n%s", p.name, st, said)
	}
	return nil
}

// usage is what a process uses of the machine.
type usage struct {
	rss     int64         // bytes
	anon    int64         // of them, those that are no pages of files
	cpu     time.Duration // since its start
	threads int
}

func (p *process) usage() (u usage) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return u
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "VmRSS:"):
			n, _ := strconv.ParseInt(f[1], 10, 64)
			u.rss = n << 10
		case strings.HasPrefix(line, "RssAnon:"):
			n, _ := strconv.ParseInt(f[1], 10, 64)
			u.anon = n << 10
		case strings.HasPrefix(line, "Threads:"):
			u.threads, _ = strconv.Atoi(f[1])
		}
	}
	if b, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid)); err == nil {
		_, after, _ := strings.Cut(string(b), ") ") // the name may hold anything
		if f := strings.Fields(after); len(f) > 12 {
			user, _ := strconv.ParseInt(f[11], 10, 64)
			system, _ := strconv.ParseInt(f[12], 10, 64)
			u.cpu = time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
		}
	}
	return u
}

var goroutinesLine = regexp.MustCompile(`(?m)^go_goroutines (\d+)`)

// goroutines asks a server for its number of goroutines; 0 if it does not say.
func goroutines(url string) int {
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return 0
	}
	if m := goroutinesLine.FindSubmatch(b); m != nil {
		n, _ := strconv.Atoi(string(m[1]))
		return n
	}
	return 0
}

// dump ends a Go program with SIGQUIT and returns its goroutines' stacks.
func (p *process) dump() []string {
	p.said.mu.Lock()
	p.said.most = 64 << 20
	p.said.b = nil
	p.said.mu.Unlock()
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-p.gone:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.gone
	}
	var out []string
	for s := range strings.SplitSeq(p.said.String(), "\n\n") {
		if strings.HasPrefix(strings.TrimSpace(s), "goroutine ") {
			out = append(out, s)
		}
	}
	return out
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// raiseFiles lets this process and its children open as many files as the
// system allows, and says how many that are.
func raiseFiles(want uint64) (uint64, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read limit of open files: %w", err)
	}
	if l.Cur < want {
		l.Cur, l.Max = max(l.Cur, min(want, l.Max)), max(l.Max, want)
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
			// The hard limit is the superuser's to raise.
			if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
				return 0, fmt.Errorf("read limit of open files: %w", err)
			}
			l.Cur = l.Max
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
				return 0, fmt.Errorf("raise limit of open files: %w", err)
			}
		}
	}
	return l.Cur, nil
}
