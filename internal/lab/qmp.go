package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Event is something that happened to a machine as a whole.
type Event struct {
	At     time.Time // QEMU's own timestamp, host clock
	Name   string    // PowerOn, PowerOff, or QEMU's name: Reset, Shutdown, GuestPanicked, "BLOCK_IO_ERROR", …
	Guest  bool      // caused by the machine's own software (Reset and Shutdown)
	Reason string    // QEMU's: "guest-reset", "host-qmp-system-reset", "guest-shutdown", …
	Data   json.RawMessage
}

// Names of events that callers wait for. Those of QEMU are spelled as in its
// QMP reference (qapi/run-state.json).
const (
	PowerOn       = "POWER_ON"  // ours: QEMU runs and answers
	PowerOff      = "POWER_OFF" // ours: QEMU is gone; Reason "shutdown" or "power cut"
	Reset         = "RESET"
	Shutdown      = "SHUTDOWN"
	GuestPanicked = "GUEST_PANICKED"
)

// qmp is a client of QEMU's machine protocol over a connected stream: one
// JSON object per line, commands answered in order, events in between
// (QEMU, docs/interop/qmp-spec).
type qmp struct {
	conn    net.Conn
	ended   chan struct{} // closed when QEMU has closed the stream
	answers chan qmpMessage

	mu sync.Mutex // held for one command and its answer
}

type qmpMessage struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// dialQMP reads the greeting and leaves capability negotiation. Events go to
// observe, in order, from a goroutine that ends with the stream; log gets the
// raw dialogue.
func dialQMP(ctx context.Context, conn net.Conn, log io.Writer, observe func(Event)) (*qmp, error) {
	q := &qmp{conn: conn, ended: make(chan struct{}), answers: make(chan qmpMessage, 1)}
	greeted := make(chan struct{})
	go q.read(log, greeted, observe)
	select {
	case <-greeted:
		return q, q.command(ctx, "qmp_capabilities", nil)
	case <-q.ended:
		return q, errors.New("QEMU ended before its greeting")
	case <-ctx.Done():
		return q, context.Cause(ctx)
	}
}

// maxQMP bounds one message.
const maxQMP = 1 << 20

func (q *qmp) read(log io.Writer, greeted chan<- struct{}, observe func(Event)) {
	defer close(q.ended)
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(nil, maxQMP)
	for first := true; lines.Scan(); first = false {
		fmt.Fprintf(log, "%s\n", lines.Bytes())
		var m qmpMessage
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			q.conn.Close()
			return
		}
		switch {
		case first:
			close(greeted)
		case m.Event != "":
			e := Event{
				At:   time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000),
				Name: m.Event, Data: m.Data,
			}
			var cause struct {
				Guest  bool   `json:"guest"`
				Reason string `json:"reason"`
			}
			if json.Unmarshal(m.Data, &cause) == nil {
				e.Guest, e.Reason = cause.Guest, cause.Reason
			}
			observe(e)
		default:
			// Nobody waits for the answer to a command that was given up; its
			// place in the queue is freed by the next command.
			select {
			case q.answers <- m:
			default:
			}
		}
	}
}

// command runs one command and waits for its answer. After a ctx that ended in
// the middle the stream is closed: answers carry no number to sort them by.
func (q *qmp) command(ctx context.Context, name string, arguments any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{name, arguments})
	if err != nil {
		return fmt.Errorf("qmp %s: %w", name, err)
	}
	if _, err := q.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("qmp %s: %w", name, err)
	}
	select {
	case m := <-q.answers:
		if m.Error != nil {
			return fmt.Errorf("qmp %s: %s: %q", name, m.Error.Class, m.Error.Desc)
		}
		return nil
	case <-q.ended:
		return fmt.Errorf("qmp %s: %w", name, io.ErrUnexpectedEOF)
	case <-ctx.Done():
		q.conn.Close()
		return fmt.Errorf("qmp %s: %w", name, context.Cause(ctx))
	}
}
