package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

func (a *app) taskWatch() *cobra.Command {
	var until string
	wait := waiting{wait: true}
	cmd := &cobra.Command{
		Use: "watch [TASK…]", Short: "Follow tasks until they end", ValidArgsFunction: a.completeTasks([]lpmos.Status{lpmos.Pending, lpmos.AwaitingApproval, lpmos.Approved, lpmos.Installing, lpmos.Verifying}),
		Args: cobra.ArbitraryArgs,
		Long: `Watch shows tasks moving until all have ended; without TASK, all that have not
ended. On a terminal each running install has a bar; in a pipe a line is written
for each status, each stage and each ten percent.

The exit code is 0 if all completed, or came to a status named by --until, and 1
if one did not. Ctrl-C stops the watching, not the tasks.`,
		Example: `  lpmos task watch web-01
  lpmos task watch web-01 --until awaiting_approval --timeout 30m && lpmos task plan web-01
  lpmos task watch | tee install.log`,
	}
	cmd.Flags().StringVar(&until, "until", "", "be content with these statuses, separated by commas")
	cmd.Flags().DurationVar(&wait.timeout, "timeout", 0, "give up after this long, with exit code 6 (0: never)")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		var enough []lpmos.Status
		for s := range strings.SplitSeq(until, ",") {
			if s != "" && !lpmos.Status(s).Valid() {
				return unknownValue("until", s, statusNames())
			} else if s != "" {
				enough = append(enough, lpmos.Status(s))
			}
		}
		var ids []string
		for _, arg := range args {
			id, err := find(ctx, c, arg)
			if err != nil {
				return err
			}
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		if len(ids) == 0 {
			sel := selection{all: true, limit: 1, status: "pending,awaiting_approval,approved,installing,verifying"}
			l, err := sel.read(ctx, c)
			if err != nil {
				return err
			}
			if ids = idsOf(l.Tasks); len(ids) == 0 {
				fmt.Fprintln(a.aside(), "All tasks have ended. Create one:  lpmos task create --help")
				return nil
			}
		}
		return a.await(ctx, c, ids, wait, enough...)
	})
	return cmd
}

// await shows tasks live until all have ended or are in one of the statuses
// that are enough. The error is nil only when each came to one of those, or
// completed.
func (a *app) await(ctx context.Context, c *apiclient.Client, ids []string, wait waiting, enough ...lpmos.Status) error {
	ctx, cancel := wait.bound(ctx)
	defer cancel()
	shown := a.out
	if a.structured() {
		shown = io.Discard
	}
	s := NewScreen(shown)
	s.next = len(ids) == 1 && len(enough) == 0
	if len(ids) > 1 {
		s.Labels()
	}
	content := func(t lpmos.Task) bool { return !t.Status.Live() || slices.Contains(enough, t.Status) }
	tasks, err := follow(ctx, c, ids, s, content, nil)
	if a.structured() {
		for _, t := range tasks {
			if err := a.each(t); err != nil {
				return err
			}
		}
	}
	if errors.Is(context.Cause(ctx), errTimeout) {
		return hinted{fmt.Errorf("%w: %s, and nothing was stopped", errTimeout, standing(tasks)), "look again with lpmos task watch"}
	}
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if t.Status != lpmos.Completed && !slices.Contains(enough, t.Status) {
			return errQuiet
		}
	}
	return nil
}

func standing(tasks []apiclient.TaskView) string {
	if len(tasks) == 1 {
		return fmt.Sprintf("task %s is %s", tasks[0].ID[:8], tasks[0].Status)
	}
	n := 0
	for _, t := range tasks {
		if t.Status.Live() {
			n++
		}
	}
	return fmt.Sprintf("%d of %d tasks have not ended", n, len(tasks))
}

// Follow shows a task on s until it ends and returns it as it ended. seen, if
// not nil, is called with the task after each change of status.
func Follow(ctx context.Context, c *apiclient.Client, id string, s *Screen, seen func(lpmos.Task)) (lpmos.Task, error) {
	tasks, err := follow(ctx, c, []string{id}, s, func(t lpmos.Task) bool { return !t.Status.Live() }, seen)
	if len(tasks) == 0 {
		return lpmos.Task{}, err
	}
	return tasks[0].Task, err
}

// follow shows tasks on s until content holds for each, and returns them as
// they were last seen, in the order of ids, those that could not be read left
// out.
func follow(ctx context.Context, c *apiclient.Client, ids []string, s *Screen, content func(lpmos.Task) bool, seen func(lpmos.Task)) ([]apiclient.TaskView, error) {
	defer s.Done()
	known := map[string]apiclient.TaskView{}
	open := map[string]bool{}
	reread := func(id string) error {
		v, err := c.TaskView(ctx, id)
		if err != nil {
			return err
		}
		known[id] = v
		t := v.Task
		s.Status(t)
		if t.Progress != nil && t.Status == lpmos.Installing {
			s.Progress(t, t.Progress)
		}
		if seen != nil {
			s.Hide() // seen may print
			seen(t)
		}
		open[id] = !content(t)
		if !open[id] {
			delete(open, id)
		}
		return nil
	}
	last := func() (tasks []apiclient.TaskView) {
		for _, id := range ids {
			if t, ok := known[id]; ok {
				tasks = append(tasks, t)
			}
		}
		return tasks
	}
	var after int64
	for i, id := range ids {
		if err := reread(id); err != nil {
			return last(), err
		}
		if rev := known[id].Rev; i == 0 || rev < after {
			after = rev
		}
	}
	if len(open) == 0 {
		return last(), nil
	}
	subject := ""
	if len(ids) == 1 {
		subject = ids[0]
	}
	for m, err := range c.Watch(ctx, subject, after) {
		if err != nil {
			return last(), err
		}
		switch {
		case m.Type == "resync":
			for _, id := range ids {
				if !open[id] {
					continue
				}
				if err := reread(id); err != nil {
					return last(), err
				}
			}
		case !open[m.TaskID]:
		case m.Type == "status":
			if err := reread(m.TaskID); err != nil {
				return last(), err
			}
		case m.Type == "progress":
			s.Progress(known[m.TaskID].Task, &lpmos.Progress{TaskID: m.TaskID, Attempt: m.Attempt, Stage: m.Stage, Percentage: m.Percentage, Message: m.Message, Details: m.Details})
		}
		if len(open) == 0 {
			return last(), nil
		}
	}
	return last(), ctx.Err()
}

// Screen shows tasks moving: with bars that are drawn again at the end of a
// terminal, and with a line for each step in a pipe or on a terminal without a
// cursor. It may be shared by several followers.
type Screen struct {
	w     io.Writer
	on    terminal
	label bool
	next  bool // says what a person does about a task that waits for one

	mu     sync.Mutex // guards what follows, and keeps lines whole
	area   area
	bars   []string          // ids of tasks that have a bar, in the order they began
	newest map[string]barOf  // of each of them
	last   map[string]string // what a pipe was told last
	status map[string]lpmos.Status
	begun  map[string]time.Time
}

type barOf struct {
	task     lpmos.Task
	progress lpmos.Progress
	elapsed  time.Duration
}

// NewScreen writes to w.
func NewScreen(w io.Writer) *Screen {
	on := terminalOf(w)
	return &Screen{
		w: w, on: on, area: area{w: w, on: on}, newest: map[string]barOf{},
		last: map[string]string{}, status: map[string]lpmos.Status{}, begun: map[string]time.Time{},
	}
}

// Labels puts the host name before each line, for several tasks at once.
func (s *Screen) Labels() { s.label = true }

// say writes lines for good, above the bars.
func (s *Screen) say(t lpmos.Task, texts ...string) {
	for i, text := range texts {
		prefix := s.on.paint(dim, time.Now().Format("15:04:05")) + "  "
		if s.label {
			prefix += label(t) + "  "
		}
		texts[i] = prefix + strings.TrimRight(text, " ")
	}
	if s.on.cursor {
		s.area.draw(texts, s.lines())
		return
	}
	for _, text := range texts {
		_, _ = io.WriteString(s.w, text+"\n") // each at once: somebody may wait for it
	}
}

func label(t lpmos.Task) string {
	name := t.Hostname
	if name == "" {
		name = t.ID[:min(8, len(t.ID))]
	}
	return fmt.Sprintf("%-12s", clip(plain(name), 40))
}

// Done leaves the bars of tasks that have not ended as they are; the cursor
// stands below them.
func (s *Screen) Done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.area.leave()
	s.bars = nil
}

// Hide takes the bars away until the next progress, for who writes to the same
// terminal by itself.
func (s *Screen) Hide() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.on.cursor {
		s.area.draw(nil, nil)
	}
}

// Status shows that a task moved.
func (s *Screen) Status(t lpmos.Task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status[t.ID] == t.Status {
		return
	}
	s.status[t.ID] = t.Status
	if t.Status != lpmos.Installing {
		s.bars = slices.DeleteFunc(s.bars, func(id string) bool { return id == t.ID })
	}
	name := func(status string) string {
		return s.on.paint(statusTone(t.Status), fmt.Sprintf("%-18s", status)) + " "
	}
	next := func(todo string) []string {
		if !s.next {
			return nil
		}
		return []string{name("") + "next: " + todo}
	}
	head := name(plain(string(t.Status)))
	switch t.Status {
	case lpmos.Pending:
		s.say(t, append([]string{head + "the machine has not reported yet"}, next("let it boot from the network")...)...)
	case lpmos.AwaitingApproval:
		todo := "lpmos task approve " + t.ID[:min(8, len(t.ID))]
		if t.Plan != nil && t.Plan.Problem != "" {
			todo = "lpmos task reject " + t.ID[:min(8, len(t.ID))]
		}
		s.say(t, append([]string{head + summary(t)}, next(todo)...)...)
	case lpmos.Approved:
		who := ""
		if t.Approval != nil {
			who = "by " + clip(plain(t.Approval.By), maxCell)
		}
		s.say(t, head+who)
	case lpmos.Failed:
		e := t.Error
		if e == nil {
			e = &lpmos.Failure{}
		}
		lines := []string{head + clip(plain(e.Cause), 1000)}
		if e.Evidence != "" {
			lines = append(lines, name("")+clip(plain(e.Evidence), 1000))
		}
		s.say(t, append(lines, name("")+"next: "+clip(plain(e.NextStep), 1000))...)
	case lpmos.Completed:
		what := "the installed system called home"
		if r := t.Receipt; r != nil {
			what = clip(fmt.Sprintf("%s runs from its own disk (%s, kernel %s, host %s)", plain(r.OS), plain(r.BootMode), plain(r.Kernel), plain(r.Hostname)), 1000)
		}
		lines := []string{head + what}
		for _, d := range t.Drift {
			lines = append(lines, name("")+"not as planned: "+clip(plain(d.String()), 400))
		}
		s.say(t, lines...)
	case lpmos.Verifying:
		next := "the machine restarts from its own disk"
		if t.Plan != nil && len(t.Plan.Effect.Crypts) > 0 {
			next = "the machine restarts and asks for the passphrase of its disks at its console"
		}
		s.say(t, head+"everything is written; "+next)
	default:
		s.say(t, head)
	}
}

func summary(t lpmos.Task) string {
	if t.Plan == nil || t.Hardware == nil {
		return ""
	}
	if t.Plan.Problem != "" {
		return clip(plain(t.Plan.Problem), 1000)
	}
	h := t.Hardware
	what := "nothing was found on it"
	if len(t.Plan.Hazards) > 0 {
		what = plain(strings.Join(t.Plan.Hazards, "; "))
	}
	return clip(fmt.Sprintf("%s %s, %s, %s, %s; erases %s (%s)", plain(h.System.Manufacturer), plain(h.System.Product), gib(h.Memory.TotalBytes),
		count(len(h.Disks), "disk", "disks"), count(len(h.NICs), "NIC", "NICs"), plain(t.Plan.Effect.Target.String()), what), 1000)
}

// Progress shows how far a task has come.
func (s *Screen) Progress(t lpmos.Task, p *lpmos.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fmt.Sprintf("%s/%d/%s", t.ID, p.Attempt, p.Stage)
	if s.begun[key].IsZero() {
		s.begun[key] = time.Now()
	}
	b := barOf{task: t, progress: *p, elapsed: time.Since(s.begun[key])}
	if d := p.Details; d != nil && d.ElapsedMillis > 0 {
		b.elapsed = time.Duration(d.ElapsedMillis) * time.Millisecond
	}
	if !s.on.cursor {
		// A line for each stage and each ten percent.
		step := fmt.Sprintf("%d %s %d", p.Attempt, p.Stage, p.Percentage/10)
		if s.last[t.ID] != step {
			s.last[t.ID] = step
			s.say(t, fmt.Sprintf("%-18s %3d %%  %s  %s", lpmos.Installing, p.Percentage, b.figures(), clip(plain(p.Message), maxCell)))
		}
		return
	}
	if s.newest == nil {
		s.newest = map[string]barOf{}
	}
	if _, ok := s.newest[t.ID]; !ok || !slices.Contains(s.bars, t.ID) {
		s.bars = append(s.bars, t.ID)
	}
	s.newest[t.ID] = b
	s.area.draw(nil, s.lines())
}

// figures are stage, bytes, rate and times in words.
func (b barOf) figures() string {
	p := b.progress
	text := fmt.Sprintf("%d/4 %-12s", p.Stage.Number(), plain(string(p.Stage)))
	if d := p.Details; d != nil && d.BytesTotal > 0 {
		text += fmt.Sprintf("  %s of %s", lpmos.FormatBytes(d.BytesDownloaded), lpmos.FormatBytes(d.BytesTotal))
		if d.BytesPerSecond > 0 {
			text += fmt.Sprintf("  %s/s", lpmos.FormatBytes(d.BytesPerSecond))
			if left := d.BytesTotal - d.BytesDownloaded; left > 0 {
				text += fmt.Sprintf("  %s left", seconds(time.Duration(float64(left)/float64(d.BytesPerSecond)*float64(time.Second))))
				return text
			}
		}
	}
	return text + "  " + seconds(b.elapsed)
}

func seconds(d time.Duration) string {
	if d < 2*time.Minute {
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f min", d.Minutes())
}

// lines are the bars, fitted to the terminal as wide as it is now.
func (s *Screen) lines() []line {
	width, _ := s.on.size()
	var out []line
	for _, id := range s.bars {
		out = append(out, s.newest[id].line(s.on, width, s.label))
	}
	return out
}

// line draws the bar; what does not fit is left out from the right, the bar
// itself gets shorter on a narrow terminal.
func (b barOf) line(on terminal, width int, labelled bool) line {
	name := ""
	if labelled {
		name = label(b.task) + "  "
	}
	cells := min(max(width/4, 8), 30)
	pct := min(max(b.progress.Percentage, 0), 100)
	full := pct * cells / 100
	head := name + strings.Repeat("█", full)
	rest := fmt.Sprintf(" %3d %%  %s", pct, b.figures())
	if m := plain(b.progress.Message); m != "" {
		rest += "  " + m
	}
	room := width - 1
	if columns(head)+cells-full > room { // no room for a bar: the number says it
		text := clip(name+strings.TrimLeft(rest, " "), room)
		return line{text, columns(text)}
	}
	rest = clip(rest, room-columns(head)-(cells-full))
	return line{
		name + on.paint(busy, strings.Repeat("█", full)) + on.paint(dim, strings.Repeat("░", cells-full)) + rest,
		columns(head) + cells - full + columns(rest),
	}
}
