package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

// repaint is how often a list that is watched is read anew at most.
const repaint = time.Second

// stepOf is what has to change of a task for a pipe to be told.
func stepOf(t lpmos.Task) string {
	s := fmt.Sprintf("%s %d", t.Status, t.Attempt)
	if t.Progress != nil && t.Status == lpmos.Installing {
		s += fmt.Sprintf(" %s %d", t.Progress.Stage, t.Progress.Percentage/10)
	}
	return s
}

// watched reads a list, and reads it again when something changed, but not more
// often than each repaint; told is called with each message as it comes. It
// ends with ctx.
func watched(ctx context.Context, c *apiclient.Client, read func() (rev int64, err error), told func(apiclient.Message) error) error {
	rev, err := read()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	messages, failed := make(chan apiclient.Message), make(chan error, 1)
	go func() {
		defer close(messages)
		for m, err := range c.Watch(ctx, "", rev) {
			if err != nil {
				failed <- err
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	timer := time.NewTimer(repaint)
	defer timer.Stop()
	due, dirty := false, false
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				select {
				case err := <-failed:
					return err
				default:
					return ctx.Err()
				}
			}
			if err := told(m); err != nil {
				return err
			}
			dirty = true
		case <-timer.C:
			due = true
		}
		if !due || !dirty {
			continue
		}
		_, err := read()
		if err != nil && !errors.Is(err, lpmos.ErrUnavailable) {
			return err
		}
		due, dirty = false, err != nil // what could not be read is still to be read
		timer.Reset(repaint)
	}
}

// watchList keeps a list on a terminal up to date, or writes a line for each
// change: a program that reads it misses no status of a task it has seen.
func (a *app) watchList(ctx context.Context, c *apiclient.Client, sel *selection) error {
	on := terminalOf(a.out)
	structured := a.structured()
	wide := a.format == "wide"
	if on.cursor && !structured {
		screen := area{w: a.out, on: on}
		return watched(ctx, c, func() (int64, error) {
			l, err := sel.read(ctx, c)
			if err != nil {
				return 0, err
			}
			t := taskTable(l, wide, sel)
			if t.foot != "" {
				t.foot += "; "
			}
			t.foot += "as of " + time.Now().Format("15:04:05") + ", Ctrl-C stops"
			screen.draw(nil, t.lines(on))
			return l.Rev, nil
		}, func(apiclient.Message) error { return nil })
	}

	told := map[string]string{}
	known := map[string]apiclient.TaskView{}
	columns := newColumns(taskHead(wide))
	headed := false
	say := func(t apiclient.TaskView) error {
		known[t.ID] = t
		step := stepOf(t.Task)
		if told[t.ID] == step {
			return nil
		}
		told[t.ID] = step
		if structured {
			return a.each(t)
		}
		if !headed {
			headed = true
			if _, err := io.WriteString(a.out, columns.row(nil)); err != nil {
				return err
			}
		}
		_, err := io.WriteString(a.out, columns.row(taskRow(t.Task, wide)))
		return err
	}
	return watched(ctx, c, func() (int64, error) {
		l, err := sel.read(ctx, c)
		if err != nil {
			return 0, err
		}
		if !headed && !structured { // the widths of the first page stay
			for _, t := range l.Tasks {
				columns.fit(taskRow(t.Task, wide))
			}
		}
		for i := len(l.Tasks) - 1; i >= 0; i-- { // the newest last, as changes come
			if err := say(l.Tasks[i]); err != nil {
				return 0, err
			}
		}
		return l.Rev, nil
	}, func(m apiclient.Message) error {
		t, ok := known[m.TaskID]
		switch {
		case !ok:
			return nil // if it belongs here, the next reading finds it
		case m.Type == "status":
			t.Status, t.Attempt = lpmos.Status(m.Status), max(t.Attempt, m.Attempt)
			t.Error = m.Error
		case m.Type == "progress":
			t.Progress = &lpmos.Progress{TaskID: m.TaskID, Attempt: m.Attempt, Stage: m.Stage, Percentage: m.Percentage, Message: m.Message, Details: m.Details}
		default:
			return nil
		}
		t.ETA = nil // was of the moment it was read
		return say(t)
	})
}

// watchRegions is watchList for regions.
func (a *app) watchRegions(ctx context.Context, c *apiclient.Client) error {
	on := terminalOf(a.out)
	structured := a.structured()
	wide := a.format == "wide"
	screen := area{w: a.out, on: on}
	told := map[string]string{}
	columns := newColumns(regionHead(wide))
	return watched(ctx, c, func() (int64, error) {
		// The revision is of the list of tasks: regions have one each.
		l, err := c.Tasks(ctx, url.Values{"limit": {"1"}})
		if err != nil {
			return 0, err
		}
		regions, err := c.Regions(ctx)
		if err != nil {
			return 0, err
		}
		if on.cursor && !structured {
			t := regionTable(regions, wide)
			t.foot = "as of " + time.Now().Format("15:04:05") + ", Ctrl-C stops"
			screen.draw(nil, t.lines(on))
			return l.Rev, nil
		}
		if len(told) == 0 && !structured && len(regions) > 0 {
			for _, r := range regions {
				columns.fit(regionRow(r, wide))
			}
			if _, err := io.WriteString(a.out, columns.row(nil)); err != nil {
				return 0, err
			}
		}
		for _, r := range regions {
			step := r.Status + " " + capabilities(r).Version
			if told[r.ID] == step {
				continue
			}
			told[r.ID] = step
			if structured {
				err = a.each(r)
			} else {
				_, err = io.WriteString(a.out, columns.row(regionRow(r, wide)))
			}
			if err != nil {
				return 0, err
			}
		}
		return l.Rev, nil
	}, func(apiclient.Message) error { return nil })
}

// lineColumns lays out rows that come one after the other.
type lineColumns struct {
	head   []string
	widths []int
}

func newColumns(head []string) *lineColumns {
	l := &lineColumns{head: head}
	for _, h := range head {
		l.widths = append(l.widths, columns(h))
	}
	return l
}

// fit widens the columns for a row.
func (l *lineColumns) fit(row []cell) {
	for i, x := range row {
		l.widths[i] = max(l.widths[i], columns(clip(plain(x.text), maxCell)))
	}
}

// row is a line; of nil, the heading.
func (l *lineColumns) row(row []cell) string {
	if row == nil {
		for _, h := range l.head {
			row = append(row, txt(h))
		}
	}
	t := &table{head: l.head} // for its bounds: the heading is no row here
	pad := make([]cell, len(l.widths))
	for i, w := range l.widths {
		pad[i] = txt(strings.Repeat(" ", w))
	}
	t.add(row...)
	t.add(pad...)
	return t.lines(terminal{})[1].text + "\n"
}
