// Package run starts the few programs the agent needs (sfdisk, mke2fs, …) and
// keeps what they said. It is not a shell: a command is an absolute path and a
// fixed argument vector, its environment is empty but for PATH and LC_ALL, and
// its whole process group dies with it, at its time limit, or with its context.
//
// Orphans of these programs are not this package's business. On a booted
// machine package pid1 keeps process 1 as a supervisor whose only own child is
// the agent; orphans go to process 1, which waits for everything it is given.
// The agent itself is not process 1, so no one can take the wait status of its
// children away.
//
// A Runner may be used by several goroutines at once.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	// MaxOutputBytes bounds Result.Output. Of a longer output the end is kept,
	// because that is where a program says why it gave up.
	MaxOutputBytes = 64 << 10

	// defaultTimeout applies when neither the command nor the runner has one.
	defaultTimeout = 10 * time.Minute

	// pipeGrace is how long output is still read after the command ended and
	// its group was killed: only a process that left the group can hold it.
	pipeGrace = 2 * time.Second
)

// environment is everything a command inherits. Messages are parsed and shown,
// so they must not depend on a locale.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}

// Runner runs commands. Its zero value works.
type Runner struct {
	Log     func(line string) // each line of output as it comes, and a line for each end; may be nil
	Timeout time.Duration     // of a command that has none; 0 is ten minutes

	mu sync.Mutex // guards calls of Log
}

// Cmd is a program to run.
type Cmd struct {
	Path    string // absolute
	Args    []string
	Stdin   io.Reader         // nil is /dev/null
	Timeout time.Duration     // 0 is the runner's
	Says    func(line string) // each line of output as it comes; nil is the runner's Log

	Arg0 string               // what the program is told it was called as; empty is Path
	Attr *syscall.SysProcAttr // namespaces and the like; nil is none. The process always leads a group of its own.
}

// Result is what a command did.
type Result struct {
	Path      string
	Args      []string
	ExitCode  int           // −1 when it did not exit by itself or never started
	Output    string        // stdout and stderr in the order written, at most MaxOutputBytes
	Truncated bool          // Output lacks its beginning
	LastLine  string        // the last line of output that is not blank, at most 256 bytes
	Took      time.Duration // from start to end
}

// Error says that a command did not succeed, with its last line of output.
type Error struct {
	Result Result
	Cause  error // context.DeadlineExceeded, context.Canceled, a signal, or why it did not start; nil after a plain exit
}

func (e *Error) Error() string {
	name := filepath.Base(e.Result.Path)
	var s string
	switch {
	case e.Cause == nil:
		s = fmt.Sprintf("%s exited %d", name, e.Result.ExitCode)
	case errors.Is(e.Cause, context.DeadlineExceeded):
		s = fmt.Sprintf("%s was stopped after %s", name, e.Result.Took.Round(time.Millisecond))
	default:
		s = fmt.Sprintf("%s: %v", name, e.Cause)
	}
	if e.Result.LastLine != "" {
		s += fmt.Sprintf(": %q", e.Result.LastLine)
	}
	return s
}

func (e *Error) Unwrap() error { return e.Cause }

// Run runs c to its end. An exit status other than zero, a signal, the time
// limit and the end of ctx are all an *Error; the result is filled in any case.
func (r *Runner) Run(ctx context.Context, c Cmd) (Result, error) {
	res := Result{Path: c.Path, Args: slices.Clone(c.Args), ExitCode: -1}
	if !filepath.IsAbs(c.Path) {
		return r.end(res, errors.New("is not an absolute path"))
	}
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = r.Timeout
	}
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	out := &output{line: r.line}
	if c.Says != nil {
		out.line = c.Says
	}
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Env, cmd.Dir = environment, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, out, out
	if c.Arg0 != "" {
		cmd.Args[0] = c.Arg0
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.Attr != nil {
		attr := *c.Attr
		attr.Setpgid = true
		cmd.SysProcAttr = &attr
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipeGrace

	start := time.Now()
	err := cmd.Start()
	if err == nil {
		// The group is killed while its leader is still a zombie: until then
		// its number cannot belong to anyone else.
		awaitExit(cmd.Process.Pid)
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		err = cmd.Wait()
	}
	res.Took = time.Since(start)
	out.flush()
	res.Output, res.Truncated, res.LastLine = out.text(), out.cut, out.last
	if cmd.ProcessState != nil {
		res.ExitCode = cmd.ProcessState.ExitCode()
	}
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
	case errors.Is(err, exec.ErrWaitDelay) && res.ExitCode == 0:
		// Something that left the group kept the output open; the command
		// itself did its work.
		err = nil
	case ctx.Err() != nil && res.ExitCode != 0:
		err = ctx.Err()
	case exited && exit.Exited():
		return r.end(res, nil)
	}
	if err != nil {
		return r.end(res, err)
	}
	r.line(fmt.Sprintf("%s exited 0 after %s", filepath.Base(res.Path), res.Took.Round(time.Millisecond)))
	return res, nil
}

// end makes the error of a command that did not succeed, and says it.
func (r *Runner) end(res Result, cause error) (Result, error) {
	err := &Error{Result: res, Cause: cause}
	r.line(err.Error())
	return res, err
}

func (r *Runner) line(s string) {
	if r.Log == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Log(s)
}

// awaitExit returns when the child pid has ended, and leaves its status to be
// waited for.
func awaitExit(pid int) {
	const (
		pPID    = 1
		wExited = 4
		wNoWait = 0x01000000
	)
	var info [128]byte // siginfo_t
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, pPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), wExited|wNoWait, 0, 0)
		if errno != syscall.EINTR {
			return
		}
	}
}

// output keeps the end of what a command writes and hands out its lines.
// exec.Cmd copies from one goroutine when stdout and stderr are the same
// writer, so it needs no lock.
type output struct {
	line func(string)

	buf  []byte
	cut  bool
	part []byte // of the line being written
	last string
}

// maxLine bounds one line for the log; the rest of a longer one is dropped
// there, not in the output.
const maxLine = 256

func (o *output) Write(p []byte) (int, error) {
	o.buf = append(o.buf, p...)
	// Twice the size is kept, so that the move is paid once per 64 KiB.
	if len(o.buf) > 2*MaxOutputBytes {
		o.buf = append(o.buf[:0], o.buf[len(o.buf)-MaxOutputBytes:]...)
		o.cut = true
	}
	for _, b := range p {
		// Progress bars end their lines with a carriage return.
		if b == '\n' || b == '\r' {
			o.flush()
		} else if len(o.part) < maxLine {
			o.part = append(o.part, b)
		}
	}
	return len(p), nil
}

func (o *output) flush() {
	s := strings.TrimSpace(printable(string(o.part)))
	o.part = o.part[:0]
	if s != "" {
		o.last = s
		o.line(s)
	}
}

func (o *output) text() string {
	if len(o.buf) > MaxOutputBytes {
		o.buf, o.cut = o.buf[len(o.buf)-MaxOutputBytes:], true
	}
	return strings.ToValidUTF8(string(o.buf), "")
}

// printable drops what could move the cursor of a terminal that shows the log.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c == '\t' {
			return ' '
		}
		if c < ' ' || c >= 0x7f && c < 0xa0 {
			return -1
		}
		return c
	}, strings.ToValidUTF8(s, ""))
}
