package browser

import (
	"bytes"
	"context"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lpmos/lpmos/internal/tier"
	"github.com/lpmos/lpmos/test/browser/tab"
)

// TestLabScreenshots takes pictures of a virtual machine that is really
// installed, in the browser and in the terminal that `lpmos lab up` runs in,
// and approves it by a click, as a person does. `make screenshots` runs it; the
// pictures go where LPMOS_SCREENSHOTS says.
func TestLabScreenshots(t *testing.T) {
	dir := os.Getenv("LPMOS_SCREENSHOTS")
	if dir == "" || os.Getenv("LPMOS_CACHE_DIR") == "" {
		tier.Missing(t, "screenshots", "pictures of a real machine are made by: make screenshots")
	}
	tab.Chromium(t)
	system := os.Getenv("LPMOS_LAB_OS")
	if system == "" {
		system = "debian-12"
	}
	term := openTerminal(t, terminalColumns, 30)
	cmd := exec.CommandContext(t.Context(), "bin/lpmos", "lab", "up", "--os", system, "--cache-dir", os.Getenv("LPMOS_CACHE_DIR"))
	cmd.Dir = "../.."
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	if err := term.start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { // also when the test fails in the middle
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Error("the lab did not end within 30 s")
		}
	})

	task := term.until(t, 15*time.Minute, `Watch it live[^\n]*\s+(http://[^/\s]+)(/login\?code=\S+return=(/tasks/\S+))`)
	b := tab.New(t, task[1])
	keep := func(name string, height int64) {
		b.Width(pictureWidth, height)
		time.Sleep(300 * time.Millisecond) // for the page's transitions
		picture(t, dir, "lab-"+name, b.Picture())
	}
	b.Open(task[2]) // the link signs in, and goes to the task
	term.until(t, 10*time.Minute, `(awaiting_approval)`)
	b.Open(task[3] + "/approve")
	keep("approve", 1100)
	b.Click("button[name=approved][value=true]")
	b.Until("come back to the task", 30*time.Second, `location.pathname === '`+task[3]+`' && document.readyState === 'complete'`)
	b.Live()
	b.Until("be in the middle", 5*time.Minute, `parseInt(document.querySelector('[data-part=percent]')?.textContent) > 30`)
	keep("task", 1000)
	middle := term.screen()
	b.Open("/dashboard")
	b.Live()
	keep("dashboard", 800)
	// The site ends with its lab, so the page is left before.
	terminalPicture(t, b, dir, "lab-terminal", middle)
	term.until(t, 15*time.Minute, `(Done\. 1 machine)`)
	// A tab does not live for as long as that may take.
	terminalPicture(t, tab.New(t, ""), dir, "lab-terminal-done", term.screen())
}

const terminalColumns = 120

// picture keeps a picture for the documentation.
func picture(t *testing.T, dir, name string, png []byte) {
	t.Helper()
	if !filepath.IsAbs(dir) {
		dir = filepath.Join("..", "..", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// terminalPicture shows the lines of a terminal as one does.
func terminalPicture(t *testing.T, b *tab.Tab, dir, name string, lines []string) {
	t.Helper()
	var wrapped []string
	for _, l := range lines {
		r := []rune(l)
		for len(r) > terminalColumns {
			wrapped, r = append(wrapped, string(r[:terminalColumns])), r[terminalColumns:]
		}
		wrapped = append(wrapped, string(r))
	}
	page := `<!doctype html><title>terminal</title><main><pre style="margin:0;padding:16px 20px;background:#14181d;color:#d7dde4;` +
		`font:14px/1.45 'DejaVu Sans Mono',monospace">` + html.EscapeString(strings.Join(wrapped, "\n")) + `</pre></main>` +
		`<style>body{margin:0;background:#14181d}</style>`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, page) }))
	defer srv.Close()
	b.URL, b.Allow = srv.URL, []string{"favicon"}
	b.Width(1080, int64(len(wrapped))*21+40)
	b.Open("/")
	picture(t, dir, name, b.Picture())
}

// terminal is a pseudo-terminal, and what a person would see on it: as much of
// a terminal as lpmos uses, which is lines, the way back up and erasure.
type terminal struct {
	master, slave *os.File

	mu    sync.Mutex // guards what follows
	lines []string
	row   int    // of the cursor
	rest  []byte // of a sequence that is not there in full
}

func openTerminal(t *testing.T, columns, rows uint16) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		t.Fatal(err)
	}
	return &terminal{master: master, slave: slave, lines: []string{"$ make lab", ""}, row: 1}
}

// start runs cmd on the terminal, in a session of its own.
func (p *terminal) start(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.slave, p.slave, p.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.slave.Close()
	go func() {
		b := make([]byte, 4<<10)
		for {
			n, err := p.master.Read(b)
			p.show(b[:n])
			if err != nil { // EIO when the last process has closed it
				return
			}
		}
	}()
	return nil
}

// control is a control sequence (ECMA-48, CSI): parameters and what they are for.
var control = regexp.MustCompile(`^\x1b\[([0-9;?]*)([A-Za-z])`)

func (p *terminal) show(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b = append(p.rest, b...)
	p.rest = nil
	for len(b) > 0 {
		switch m := control.FindSubmatch(b); {
		case m != nil:
			n, err := strconv.Atoi(string(m[1]))
			if err != nil {
				n = 1
			}
			switch m[2][0] {
			case 'A': // cursor up
				p.row = max(p.row-n, 0)
			case 'J': // erase below; lpmos asks for it at the beginning of a line
				p.lines = append(p.lines[:p.row], "")
			case 'K': // erase the line, likewise
				p.lines[p.row] = ""
			}
			b = b[len(m[0]):] // colours do not go into the picture
		case b[0] == '\x1b':
			p.rest = bytes.Clone(b) // the end of the sequence is still to come
			return
		case b[0] == '\r':
			b = b[1:]
		case b[0] == '\n':
			if p.row++; p.row == len(p.lines) {
				p.lines = append(p.lines, "")
			}
			b = b[1:]
		default:
			n := bytes.IndexAny(b, "\r\n\x1b")
			if n < 0 {
				n = len(b)
			}
			p.lines[p.row] += string(b[:n])
			b = b[n:]
		}
	}
}

// screen is everything that was printed, as it stands now.
func (p *terminal) screen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Split(strings.TrimRight(strings.Join(p.lines, "\n"), "\n "), "\n")
}

// until waits for a pattern and returns its groups.
func (p *terminal) until(t *testing.T, limit time.Duration, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for ctx.Err() == nil {
		if m := re.FindStringSubmatch(strings.Join(p.screen(), "\n")); m != nil {
			return m
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s not seen within %s on\n%s", pattern, limit, strings.Join(p.screen(), "\n"))
	return nil
}
