package cli

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tier"
)

// vt is a terminal that draws what is written to it: enough of one for what we
// write, and a failure for anything else.
type vt struct {
	t             *testing.T
	width, height int
	rows          [][]rune
	x, y          int
}

func (v *vt) write(s string) {
	rs := []rune(s)
	for i := 0; i < len(rs); i++ {
		switch r := rs[i]; r {
		case '\r':
			v.x = 0
		case '\n':
			v.y++
		case '\x1b':
			j := i + 2
			for j < len(rs) && (rs[j] >= '0' && rs[j] <= '9' || rs[j] == ';') {
				j++
			}
			if j >= len(rs) || rs[i+1] != '[' {
				v.t.Errorf("an escape code that is cut off: %q", s)
				return
			}
			n, _ := strconv.Atoi(string(rs[i+2 : j]))
			switch rs[j] {
			case 'A':
				v.y = max(0, v.y-max(1, n))
			case 'J':
				v.row(v.y)
				v.rows[v.y] = v.rows[v.y][:min(v.x, len(v.rows[v.y]))]
				v.rows = v.rows[:v.y+1]
			case 'm':
			default:
				v.t.Errorf("an escape code nobody asked for: %q", rs[i:j+1])
			}
			i = j
		default:
			if v.x == v.width {
				v.x, v.y = 0, v.y+1
			}
			row := v.row(v.y)
			for len(*row) <= v.x {
				*row = append(*row, ' ')
			}
			(*row)[v.x] = r
			v.x++
		}
	}
}

func (v *vt) row(y int) *[]rune {
	for len(v.rows) <= y {
		v.rows = append(v.rows, nil)
	}
	return &v.rows[y]
}

func (v *vt) String() string {
	var b strings.Builder
	for _, r := range v.rows {
		b.WriteString(strings.TrimRight(string(r), " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// pty is a real terminal device of some size, and what is written to it.
type pty struct {
	t      *testing.T
	master *os.File
	file   *os.File // what programs write to
	wg     sync.WaitGroup
	mu     sync.Mutex
	got    bytes.Buffer
}

func newPTY(t *testing.T, width, height int) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		tier.Missing(t, "shells", "no pseudo-terminals: "+err.Error())
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pty{t: t, master: master, file: file}
	p.resize(width, height)
	p.wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			p.mu.Lock()
			p.got.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	return p
}

func (p *pty) resize(width, height int) {
	p.t.Helper()
	if err := unix.IoctlSetWinsize(int(p.file.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(width), Row: uint16(height)}); err != nil {
		p.t.Fatal(err)
	}
}

// all closes the terminal and returns everything that was written.
func (p *pty) all() string {
	p.file.Close()
	p.wg.Wait() // reading fails once nobody has the other end
	p.master.Close()
	return p.got.String()
}

func progress(t lpmos.Task, pct int) *lpmos.Progress {
	return &lpmos.Progress{TaskID: t.ID, Attempt: 1, Stage: lpmos.Downloading, Percentage: pct, Message: "Downloading.",
		Details: &lpmos.ProgressDetails{BytesDownloaded: int64(pct) * 1e7, BytesTotal: 1e9, BytesPerSecond: 1e8, ElapsedMillis: 5000}}
}

func TestScreenOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	p := newPTY(t, 80, 24)
	s := NewScreen(p.file)
	s.Labels()
	one, two := installing(), installing()
	two.ID, two.Hostname = id1, "db-02"
	s.Status(one)
	s.Progress(one, progress(one, 40))
	s.Status(two)
	s.Progress(two, progress(two, 20))
	s.Progress(one, progress(one, 50))
	done := one
	done.Status = lpmos.Completed
	s.Status(done)
	s.Done()
	got := p.all()
	v := &vt{t: t, width: 80, height: 24}
	v.write(got)
	lines := strings.Split(strings.TrimSuffix(v.String(), "\n"), "\n")
	if len(lines) != 4 || !strings.Contains(lines[2], "completed") || !strings.Contains(lines[3], "db-02") || !strings.Contains(lines[3], "20 %") || !strings.Contains(lines[3], "████░░░░") {
		t.Errorf("the screen shows\n%s\nwant two lines of installing, one of completed, and below them the bar of the other", v)
	}
	if v.x != 0 || v.y != 4 {
		t.Errorf("the cursor is left in column %d of line %d; want the beginning of the line below all", v.x, v.y)
	}
	if !strings.Contains(got, "\x1b[36m") {
		t.Errorf("no colours on a terminal that has them: %q", got)
	}
}

func TestScreenHeedsTheTerminalsSize(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "1")
	p := newPTY(t, 100, 24)
	s := NewScreen(p.file)
	task := installing()
	for _, width := range []int{100, 60, 30, 12, 100} {
		p.resize(width, 24)
		s.Progress(task, progress(task, 40))
		if w := s.lines()[0].width; w >= width {
			t.Errorf("on %d columns the bar is %d wide; want it to fit", width, w)
		}
	}
	p.resize(80, 5)
	s.Labels()
	for i := range 30 {
		many := task
		many.ID = fmt.Sprintf("%08d%s", i, id1[8:])
		s.Progress(many, progress(many, 40))
	}
	if len(s.area.drawn) != 4 {
		t.Errorf("on 5 lines, %d bars are drawn; want 4, so that none scrolls away", len(s.area.drawn))
	}
	if got := p.all(); strings.Contains(got, "m") && strings.Contains(got, "\x1b[0m") {
		t.Errorf("NO_COLOR is not heeded: %q", got[:200])
	}
}

func TestScreenInAPipe(t *testing.T) {
	show := func(s *Screen) {
		task := installing()
		s.Status(task)
		for _, pct := range []int{40, 41, 49, 50, 50, 59} {
			s.Progress(task, progress(task, pct))
		}
		task.Status, task.Error = lpmos.Failed, &lpmos.Failure{Cause: "The disk is gone.", NextStep: "Put it back.", Evidence: "ENODEV"}
		s.Status(task)
		s.Done()
	}
	check := func(name, got string) {
		t.Helper()
		if strings.ContainsAny(got, "\x1b\r█") || strings.Count(got, "\n") != 6 || strings.Count(got, " %") != 2 {
			t.Errorf("%s: %q; want a line for each status and each ten percent, and no escape codes", name, got)
		}
	}
	var writes countingWriter
	show(NewScreen(&writes))
	check("in a pipe", writes.b.String())
	if writes.n != 6 {
		t.Errorf("6 lines came in %d writes; want each at once", writes.n)
	}
	t.Setenv("TERM", "dumb")
	p := newPTY(t, 80, 24)
	show(NewScreen(p.file))
	check("on a dumb terminal", strings.ReplaceAll(p.all(), "\r\n", "\n"))
}

type countingWriter struct {
	b bytes.Buffer
	n int
}

func (w *countingWriter) Write(b []byte) (int, error) { w.n++; return w.b.Write(b) }

func TestTablesOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	long := installing()
	long.Hostname = strings.Repeat("very-long-name-", 12)
	for _, width := range []int{200, 100, 80} {
		p := newPTY(t, width, 24)
		tab := &table{head: taskHead(false)}
		tab.add(taskRow(long, false)...)
		for _, l := range tab.lines(terminalOf(p.file)) {
			if l.width >= width {
				t.Errorf("on %d columns a row is %d wide: %q", width, l.width, l.text)
			}
		}
		v := &table{}
		v.field("evidence", strings.Repeat("many words ", 60))
		for i, l := range v.lines(terminalOf(p.file)) {
			if l.width >= width || i > 0 && !strings.HasPrefix(l.text, "          ") {
				t.Errorf("on %d columns a sentence goes on as %q", width, l.text)
			}
		}
		p.all()
	}
	if got := (&table{head: []string{"A", "B"}, rows: [][]cell{{txt("世界"), txt("x")}, {txt("e\u0301"), txt("y")}}}).text(terminal{}); got != "A     B\n世界  x\ne\u0301     y\n" {
		t.Errorf("wide and combining characters: %q; want columns that stand below each other", got)
	}
}

func TestNearest(t *testing.T) {
	for typed, want := range map[string]string{"faild": "failed", "pendng": "pending", "lst": "", "completed": "completed", "xyzzy": "", "approvde": "approved"} {
		got := ""
		if n := nearest(typed, statusNames()); len(n) > 0 {
			got = n[0]
		}
		if got != want {
			t.Errorf("nearest(%q) = %q; want %q", typed, got, want)
		}
	}
}
