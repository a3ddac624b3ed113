package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// bin holds the programs, built once by the founding lines.
var bin string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		log.Fatal("e2e: ", err)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "lpmos-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	bin = dir
	for name, source := range map[string]string{
		"control-plane": "cmd/control-plane/main.go", "regional-client": "cmd/regional-client/main.go",
		"agent": "cmd/agent/main.go", "etcd": "test/e2e/etcd/main.go",
	} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), source)
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	return m.Run(), nil
}

// nextPort goes round the ports from which freePorts takes.
var nextPort atomic.Int64

// freePorts gives n ports nobody uses, and that no connection gets by chance
// while the program that has one is killed and started again: the system takes
// those of connections from 32768 on.
func freePorts(t testing.TB, n int) []string {
	t.Helper()
	const first, many = 10_000, 22_000
	nextPort.CompareAndSwap(0, rand.Int64N(many)) // beside other test programs
	var addrs []string
	for range many {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+nextPort.Add(1)%many))
		if err != nil {
			continue // taken
		}
		l.Close()
		if addrs = append(addrs, l.Addr().String()); len(addrs) == n {
			return addrs
		}
	}
	t.Fatalf("no %d free ports", n)
	return nil
}

// process is a program that can be killed and started again with the same
// arguments. Its output of all runs is kept.
type process struct {
	t    testing.TB
	name string
	args []string
	env  []string
	out  output

	mu   sync.Mutex // guards what follows
	cmd  *exec.Cmd
	gone chan struct{}
}

// output may be read while a program writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start runs a program until the test ends. What it said is shown if the test
// failed.
func start(t testing.TB, name string, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, args: args, env: env}
	p.start()
	t.Cleanup(func() {
		p.kill()
		// GOFLAGS=-race builds the programs with the detector, too.
		for _, bad := range []string{"WARNING: DATA RACE", "panic: "} {
			if strings.Contains(p.out.String(), bad) {
				t.Errorf("%s said %q", name, bad)
			}
		}
		if t.Failed() {
			text := p.out.String()
			if len(text) > 6000 {
				text = "…" + text[len(text)-6000:]
			}
			t.Logf("%s %s said:\n%s", name, strings.Join(args, " "), text)
		}
	})
	return p
}

func (p *process) start() {
	p.t.Helper()
	cmd := exec.Command(filepath.Join(bin, p.name), p.args...)
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	cmd.Env = append(os.Environ(), p.env...)
	// Nothing outlives the test, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		p.t.Errorf("start %s: %v", p.name, err)
		return
	}
	gone := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.gone = cmd, gone
	p.mu.Unlock()
	go func() {
		cmd.Wait()
		close(gone)
	}()
}

func (p *process) running() (*exec.Cmd, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd, p.gone
}

// ended reports whether the program has ended by itself.
func (p *process) ended() bool {
	_, gone := p.running()
	select {
	case <-gone:
		return true
	default:
		return false
	}
}

// kill ends the program as a power cut would.
func (p *process) kill() {
	cmd, gone := p.running()
	cmd.Process.Kill()
	<-gone
}

// wait returns the exit status, or fails the test after limit.
func (p *process) wait(limit time.Duration) int {
	p.t.Helper()
	cmd, gone := p.running()
	select {
	case <-gone:
		return cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.t.Fatalf("%s did not end within %s", p.name, limit)
		return -1
	}
}

// terminate sends SIGTERM and returns how long the program took, and its exit
// status.
func (p *process) terminate(limit time.Duration) (time.Duration, int) {
	p.t.Helper()
	began := time.Now()
	cmd, _ := p.running()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
	code := p.wait(limit)
	return time.Since(began), code
}
