package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Line is one line of a machine's console, without escape sequences.
type Line struct {
	At   time.Time // when its first byte came
	Text string
}

// Failures are the default of MachineConfig.Failures: the lines after which waiting is pointless: iPXE's and the
// firmware's "nothing to boot", a dead kernel and the marker of a local-boot
// loader that found no disk to boot.
var Failures = []*regexp.Regexp{
	regexp.MustCompile(`Could not boot:`),
	regexp.MustCompile(`Kernel panic`),
	regexp.MustCompile(`LOCALBOOT-FAILED`),
	regexp.MustCompile(`PXE-E[0-9]`),
	regexp.MustCompile(`No bootable (device|option)`),
}

// tailLines is how much of the console a ConsoleError quotes.
const tailLines = 40

// ConsoleError says why a wait for a line ended without it, with the end of
// the console as evidence.
type ConsoleError struct {
	Machine string
	Want    string // the pattern waited for
	Line    string // that matched a failure pattern; empty when time ran out
	Tail    []string
	Err     error // why waiting ended: ErrFailed, io.EOF (closed) or the context's error
}

// ErrFailed is wrapped by a ConsoleError about a failure line.
var ErrFailed = errors.New("failure on the console")

func (e *ConsoleError) Error() string {
	s := fmt.Sprintf("wait for %q on the console of %s: %v", e.Want, e.Machine, e.Err)
	if e.Line != "" {
		s += fmt.Sprintf(": %q", e.Line)
	}
	return s + "; it ends with:\n\t" + strings.Join(e.Tail, "\n\t")
}

func (e *ConsoleError) Unwrap() error { return e.Err }

// Console is what a machine wrote to its serial port since it was made, over
// all power cycles. Readers of their own see everything from its beginning.
//
// SeaBIOS and what prints through it break lines at column 80, so a pattern
// should fit well before that. Empty lines are left out.
type Console struct {
	machine  string
	failures []*regexp.Regexp
	file     io.Writer // raw copy

	mu      sync.Mutex // guards what follows
	lines   []Line
	partial []byte    // of the line being written
	since   time.Time // of the first byte of partial
	last    time.Time // of the newest byte
	escape  []byte    // an escape sequence cut in two by a read
	closed  bool
	changed chan struct{} // closed and replaced at each change
	port    io.Writer     // to the machine; nil while it is off

	own *Reader // of WaitFor
}

func newConsole(machine string, failures []*regexp.Regexp, file io.Writer) *Console {
	c := &Console{machine: machine, failures: failures, file: file, changed: make(chan struct{})}
	c.own = c.NewReader()
	return c
}

// escapes matches an escape sequence at the start (ECMA-48 CSI, and the
// two-byte ones).
var escapes = regexp.MustCompile(`^\x1b(\[[0-?]*[ -/]*[@-~]|[^\[])`)

// maxEscape bounds how long an unfinished escape sequence is kept.
const maxEscape = 32

// maxLine bounds a line: a machine that never ends one cannot fill memory.
const maxLine = 16 << 10

// promptQuiet is how long an unfinished line must be still to be a prompt
// rather than the first half of a line.
const promptQuiet = 250 * time.Millisecond

// Write takes bytes from the machine.
func (c *Console) Write(b []byte) (int, error) {
	written, err := len(b), error(nil)
	if c.file != nil {
		_, err = c.file.Write(b)
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = now
	b = append(c.escape, b...)
	c.escape = nil
	for len(b) > 0 {
		if b[0] == 0x1b {
			seq := escapes.Find(b)
			if seq == nil {
				if len(b) < maxEscape {
					c.escape = slices.Clone(b)
					break
				}
				b = b[1:]
				continue
			}
			// Firmware moves the cursor where others end a line.
			if last := seq[len(seq)-1]; last == 'H' || last == 'f' || last == 'J' {
				c.endLine()
			}
			b = b[len(seq):]
			continue
		}
		switch b[0] {
		case '\n', '\r': // a carriage return alone begins the line anew, for progress
			c.endLine()
		case '\b':
			c.partial = c.partial[:max(0, len(c.partial)-1)]
		case 0:
		default:
			if len(c.partial) == 0 {
				c.since = now
			}
			c.partial = append(c.partial, b[0])
			if len(c.partial) == maxLine {
				c.endLine()
			}
		}
		b = b[1:]
	}
	c.wake()
	return written, err
}

// endLine and wake need c.mu.
func (c *Console) endLine() {
	if text := strings.ToValidUTF8(string(bytes.TrimRight(c.partial, " \t")), "?"); text != "" {
		c.lines = append(c.lines, Line{c.since, text})
	}
	c.partial = c.partial[:0]
}

func (c *Console) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// attach takes the machine's end of the port at power on, nil at power off,
// and notes which it was, as a line of its own. No Write may run meanwhile.
func (c *Console) attach(port io.Writer, note string) {
	if c.file != nil {
		// Evidence only; a full disk shows in Write's error too.
		fmt.Fprintf(c.file, "\r\n%s\r\n", note)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLine()
	c.port, c.escape = port, nil
	c.lines = append(c.lines, Line{time.Now(), note})
	c.wake()
}

func (c *Console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.endLine()
		c.closed = true
		c.wake()
	}
}

// Type sends s to the machine as if typed at its serial terminal.
func (c *Console) Type(s string) error {
	c.mu.Lock()
	port := c.port
	c.mu.Unlock()
	if port == nil {
		return fmt.Errorf("type on the console of %s: the machine is off", c.machine)
	}
	if _, err := io.WriteString(port, s); err != nil {
		return fmt.Errorf("type on the console of %s: %w", c.machine, err)
	}
	return nil
}

// Tail returns the last n lines, the unfinished one included.
func (c *Console) Tail(n int) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var tail []string
	for _, l := range c.lines[max(0, len(c.lines)-n):] {
		tail = append(tail, l.Text)
	}
	if len(c.partial) > 0 {
		tail = append(tail, strings.ToValidUTF8(string(c.partial), "?"))
	}
	return tail[max(0, len(tail)-n):]
}

// WaitFor returns the next line that matches want, after the one that the
// previous WaitFor returned, as expect does. See Reader.WaitFor.
func (c *Console) WaitFor(ctx context.Context, want *regexp.Regexp) (Line, error) {
	return c.own.WaitFor(ctx, want)
}

// NewReader returns a reader at the beginning of the console.
func (c *Console) NewReader() *Reader { return &Reader{c: c} }

// Reader is a position in a console. It is for one goroutine at a time; the
// console's own, used by Console.WaitFor, too.
type Reader struct {
	c    *Console
	next int // index of the line to come
}

// WaitFor returns the next line that matches want. A prompt counts: a line
// without an end is taken once nothing has followed for promptQuiet. When a line that matches one of the machine's failure
// patterns comes first, when ctx ends or when the machine is closed, the error
// is a *ConsoleError. A line that matches both is not a failure: who waits
// for a failure, gets it.
func (r *Reader) WaitFor(ctx context.Context, want *regexp.Regexp) (Line, error) {
	for {
		line, failed, changed, quiet, err := r.scan(want)
		switch {
		case err != nil || failed:
			if failed {
				err = ErrFailed
			}
			return Line{}, r.error(want, line.Text, err)
		case changed == nil:
			return line, nil
		}
		var again <-chan time.Time
		if quiet > 0 {
			again = time.After(quiet)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return Line{}, r.error(want, "", context.Cause(ctx))
		}
	}
}

// scan looks through what there is. A channel to wait on means: not yet; with
// it comes after which time to look again even if nothing changes, when not 0.
func (r *Reader) scan(want *regexp.Regexp) (line Line, failed bool, changed <-chan struct{}, quiet time.Duration, err error) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	for r.next < len(r.c.lines) {
		line := r.c.lines[r.next]
		r.next++
		if want.MatchString(line.Text) {
			return line, false, nil, 0, nil
		}
		if slices.ContainsFunc(r.c.failures, func(f *regexp.Regexp) bool { return f.MatchString(line.Text) }) {
			return line, true, nil, 0, nil
		}
	}
	if text := bytes.TrimRight(r.c.partial, " \t"); len(text) > 0 && want.Match(text) {
		if quiet := time.Since(r.c.last); quiet < promptQuiet {
			return Line{}, false, r.c.changed, promptQuiet - quiet, nil
		}
		r.c.endLine()
		line := r.c.lines[r.next]
		r.next++
		return line, false, nil, 0, nil
	}
	if r.c.closed {
		return Line{}, false, nil, 0, io.EOF
	}
	return Line{}, false, r.c.changed, 0, nil
}

func (r *Reader) error(want *regexp.Regexp, line string, err error) error {
	return &ConsoleError{
		Machine: r.c.machine, Want: want.String(), Line: line, Tail: r.c.Tail(tailLines), Err: err,
	}
}
