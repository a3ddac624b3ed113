package agent

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// maxPendingLines bounds what is kept for a region that is away. The oldest go
// first; the numbers show that they did.
const maxPendingLines = 4096

// maxBatchBytes keeps a batch, in which JSON may spell a byte with six, below
// agentapi.MaxBodyBytes.
const maxBatchBytes = agentapi.MaxBodyBytes / 8

// Logs collects lines of the agent's log and ships them in numbered batches.
// It is an io.Writer for a slog handler. Lines written before an attempt is
// known wait for it.
type Logs struct {
	mu      sync.Mutex // guards what follows
	to      agentapi.Logs
	pending []string // the first has number to.First
	part    []byte

	sending sync.Mutex // held while a batch is under way
}

// NewLogs makes an empty collection.
func NewLogs() *Logs { return &Logs{} }

// Write takes text in any pieces and never fails.
func (l *Logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for {
		line, rest, ok := bytes.Cut(p, []byte("\n"))
		l.part = append(l.part, line[:min(len(line), max(0, lpmos.MaxMessageBytes-len(l.part)))]...)
		if !ok {
			return n, nil
		}
		l.add(strings.ToValidUTF8(strings.TrimRight(string(l.part), "\r"), ""))
		l.part, p = l.part[:0], rest
	}
}

// Line adds one line.
func (l *Logs) Line(s string) { _, _ = l.Write([]byte(strings.ReplaceAll(s, "\n", " ") + "\n")) }

func (l *Logs) add(line string) {
	if len(l.pending) == maxPendingLines {
		l.pending = l.pending[1:]
		l.to.First++
	}
	l.pending = append(l.pending, lpmos.Shorten(line, lpmos.MaxMessageBytes-4))
}

// Begin says which attempt the lines belong to. Lines that have not been
// shipped become the first of a new one.
func (l *Logs) Begin(taskID string, mac lpmos.MAC, attempt int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.to.TaskID != taskID || l.to.Attempt != attempt {
		l.to = agentapi.Logs{MACAddress: mac, TaskID: taskID, Attempt: attempt}
	}
}

// run ships lines until over ends; ctx ends also what is under way then.
func (l *Logs) run(ctx, over context.Context, region Region, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-over.Done():
			return
		case <-t.C:
			for l.ship(ctx, region) {
			}
		}
	}
}

// flush ships what there is, without insisting, and reports whether nothing is
// left.
func (l *Logs) flush(ctx context.Context, region Region) bool {
	for l.ship(ctx, region) {
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.TaskID == "" || len(l.pending) == 0
}

// ship sends one batch and reports whether there is more that would go now.
// What could not be sent stays and is sent again under the same numbers.
func (l *Logs) ship(ctx context.Context, region Region) bool {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.mu.Lock()
	batch := l.to
	size := 0
	for _, line := range l.pending {
		if size += len(line); len(batch.Lines) == agentapi.MaxLogLines || size > maxBatchBytes && len(batch.Lines) > 0 {
			break
		}
		batch.Lines = append(batch.Lines, line)
	}
	l.mu.Unlock()
	if batch.TaskID == "" || len(batch.Lines) == 0 {
		return false
	}
	err := region.Logs(ctx, batch)
	if err != nil && agentapi.Refused(err) == 0 {
		return false
	}
	// A region that refuses lines would refuse them again.
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.to.TaskID != batch.TaskID || l.to.Attempt != batch.Attempt {
		return len(l.pending) > 0
	}
	sent := min(max(0, batch.First+len(batch.Lines)-l.to.First), len(l.pending)) // some may have been dropped meanwhile
	l.pending = l.pending[sent:]
	l.to.First += sent
	return err == nil && len(l.pending) > 0
}
