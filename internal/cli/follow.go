package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

// follow shows a task live until it ends; the error is nil only when it
// completed.
func (a *app) follow(ctx context.Context, c *apiclient.Client, id string) error {
	t, err := Follow(ctx, c, id, NewScreen(a.out), nil)
	if err != nil {
		return err
	}
	if t.Status != lpmos.Completed {
		return errQuiet
	}
	return nil
}

// Follow shows a task on s until it ends and returns it as it ended. seen, if
// not nil, is called with the task after each change of status.
func Follow(ctx context.Context, c *apiclient.Client, id string, s *Screen, seen func(lpmos.Task)) (lpmos.Task, error) {
	defer s.Done()
	var t lpmos.Task
	reread := func() error {
		var err error
		if t, err = c.Task(ctx, id); err != nil {
			return err
		}
		s.Status(t)
		if t.Progress != nil && t.Status == lpmos.Installing {
			s.Progress(t, t.Progress)
		}
		if seen != nil {
			seen(t)
		}
		return nil
	}
	if err := reread(); err != nil {
		return t, err
	}
	for m, err := range c.Watch(ctx, id, t.Rev) {
		if !t.Status.Live() {
			break
		}
		if err != nil {
			return t, err
		}
		switch m.Type {
		case "status", "resync":
			if err := reread(); err != nil {
				return t, err
			}
		case "progress":
			s.Progress(t, &lpmos.Progress{TaskID: m.TaskID, Attempt: m.Attempt, Stage: m.Stage, Percentage: m.Percentage, Message: m.Message, Details: m.Details})
		}
		if !t.Status.Live() {
			break
		}
	}
	if t.Status.Live() {
		return t, ctx.Err()
	}
	return t, nil
}

// Screen shows tasks moving: with a bar that is redrawn on a terminal, and with
// a line for each step in a pipe. It may be shared by several followers.
type Screen struct {
	w     io.Writer
	tty   bool
	width int
	label bool

	mu     sync.Mutex // guards what follows, and keeps lines whole
	bar    bool       // the last line is a bar
	last   map[string]string
	status map[string]lpmos.Status
	begun  map[string]time.Time
}

// NewScreen writes to w.
func NewScreen(w io.Writer) *Screen {
	s := &Screen{w: w, last: map[string]string{}, status: map[string]lpmos.Status{}, begun: map[string]time.Time{}}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.tty, s.width = true, 100
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 20 {
			s.width = w
		}
	}
	return s
}

// Labels puts the host name before each line, for several tasks at once.
func (s *Screen) Labels() { s.label = true }

func (s *Screen) line(t lpmos.Task, format string, args ...any) {
	s.clear()
	prefix := time.Now().Format("15:04:05") + "  "
	if s.label {
		prefix += plain(t.Hostname) + "  "
	}
	fmt.Fprintf(s.w, "%s%s\n", prefix, fmt.Sprintf(format, args...))
}

func (s *Screen) clear() {
	if s.bar {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.bar = false
	}
}

// Done ends a bar that is still on the last line.
func (s *Screen) Done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
}

// Status shows that a task moved.
func (s *Screen) Status(t lpmos.Task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status[t.ID] == t.Status {
		return
	}
	s.status[t.ID] = t.Status
	switch t.Status {
	case lpmos.Pending:
		s.line(t, "%-18s the machine has not reported yet", t.Status)
	case lpmos.AwaitingApproval:
		s.line(t, "%-18s %s", t.Status, summary(t))
	case lpmos.Approved:
		s.line(t, "%-18s by %s", t.Status, plain(t.Approval.By))
	case lpmos.Failed:
		s.line(t, "%-18s %s", t.Status, plain(t.Error.Cause))
		if t.Error.Evidence != "" {
			s.line(t, "%-18s %s", "", plain(t.Error.Evidence))
		}
		s.line(t, "%-18s next: %s", "", plain(t.Error.NextStep))
	case lpmos.Completed:
		what := "the installed system called home"
		if r := t.Receipt; r != nil {
			what = fmt.Sprintf("%s runs from its own disk (%s, kernel %s, host %s)", plain(r.OS), plain(r.BootMode), plain(r.Kernel), plain(r.Hostname))
		}
		s.line(t, "%-18s %s", t.Status, what)
	case lpmos.Verifying:
		s.line(t, "%-18s everything is written; the machine restarts from its own disk", t.Status)
	default:
		s.line(t, "%-18s", t.Status)
	}
}

func summary(t lpmos.Task) string {
	if t.Plan == nil || t.Hardware == nil {
		return ""
	}
	if t.Plan.Problem != "" {
		return plain(t.Plan.Problem)
	}
	h := t.Hardware
	what := "nothing was found on it"
	if len(t.Plan.Hazards) > 0 {
		what = plain(strings.Join(t.Plan.Hazards, "; "))
	}
	return fmt.Sprintf("%s %s, %.1f GiB, %d disk(s), %d NIC(s); erases %s (%s)", plain(h.System.Manufacturer), plain(h.System.Product),
		float64(h.Memory.TotalBytes)/(1<<30), len(h.Disks), len(h.NICs), plain(t.Plan.Effect.Target.String()), what)
}

// Progress shows how far a task has come.
func (s *Screen) Progress(t lpmos.Task, p *lpmos.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fmt.Sprintf("%s/%d/%s", t.ID, p.Attempt, p.Stage)
	if s.begun[key].IsZero() {
		s.begun[key] = time.Now()
	}
	elapsed := time.Since(s.begun[key])
	if d := p.Details; d != nil && d.ElapsedMillis > 0 {
		elapsed = time.Duration(d.ElapsedMillis) * time.Millisecond
	}
	text := fmt.Sprintf("%d/4 %-12s %3d %%", p.Stage.Number(), p.Stage, p.Percentage)
	if d := p.Details; d != nil && d.BytesTotal > 0 {
		text += fmt.Sprintf("  %s of %s", lpmos.FormatBytes(d.BytesDownloaded), lpmos.FormatBytes(d.BytesTotal))
		if d.BytesPerSecond > 0 {
			text += fmt.Sprintf("  %s/s", lpmos.FormatBytes(d.BytesPerSecond))
		}
	}
	text += fmt.Sprintf("  %.0f s", elapsed.Seconds())
	if !s.tty || s.label {
		// In a pipe: a line for each stage and each ten percent.
		step := fmt.Sprintf("%s %d", p.Stage, p.Percentage/10)
		if s.last[t.ID] != step {
			s.last[t.ID] = step
			s.line(t, "%-18s %s  %s", lpmos.Installing, text, plain(p.Message))
		}
		return
	}
	const cells = 28
	full := p.Percentage * cells / 100
	bar := strings.Repeat("█", full) + strings.Repeat("░", cells-full)
	out := []rune(bar + "  " + text + "  " + plain(p.Message))
	if len(out) > s.width-1 {
		out = out[:s.width-1]
	}
	fmt.Fprint(s.w, "\r\x1b[K"+string(out))
	s.bar = true
}
