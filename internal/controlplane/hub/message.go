package hub

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/gorilla/websocket"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// message is addressed, and encoded when its first reader is found.
type message struct {
	rev      int64 // safe to resume after
	of       int64 // of the update it is a part of
	kind     string
	taskID   string
	regionID string
	subject  subject
	size     int // bytes it keeps in memory, about

	event *api.Event // until it is encoded; the hub's mutex guards both
	frame []byte     // whole frame of the WebSocket, shared by all readers
}

// subject is what a message is the newest word on. While it is not sent, a
// newer one of the same subject takes its place. The zero subject is that of
// messages none of which may be left out.
type subject struct{ kind, id string }

// body is every server message; the founding fields keep their names.
type body struct {
	Type       string                 `json:"type"`
	TaskID     string                 `json:"task_id,omitempty"`
	RegionID   string                 `json:"region_id,omitempty"`
	Status     string                 `json:"status,omitempty"`
	Attempt    int                    `json:"attempt,omitempty"`
	Error      *lpmos.Failure         `json:"error,omitempty"`
	Percentage *int                   `json:"percentage,omitempty"`
	Stage      lpmos.Stage            `json:"stage,omitempty"`
	Message    string                 `json:"message,omitempty"`
	Details    *lpmos.ProgressDetails `json:"details,omitempty"`
	Hardware   *lpmos.Hardware        `json:"hardware,omitempty"`
	Lines      []string               `json:"lines,omitempty"`
	Counts     map[lpmos.Status]int   `json:"counts,omitempty"`
	StoreID    string                 `json:"store_id,omitempty"`
	Rev        int64                  `json:"rev"`
}

// eventMessage addresses an event of the read model.
func eventMessage(e *api.Event, rev, of int64) *message {
	m := &message{rev: rev, of: of, kind: e.Type, taskID: e.TaskID, regionID: e.RegionID, event: e, size: 512}
	switch e.Type {
	case api.EventProgress:
		m.subject = subject{e.Type, e.TaskID}
	case api.EventHardware:
		m.subject, m.size = subject{e.Type, e.TaskID}, 8<<10
	case api.EventRegion:
		m.subject = subject{e.Type, e.RegionID}
	case api.EventLog:
		for _, line := range e.Lines {
			m.size += len(line) + 16
		}
	}
	return m
}

// newMessage encodes a message of the hub's own.
func newMessage(b body) *message {
	return &message{rev: b.Rev, of: b.Rev, kind: b.Type, frame: encode(b)}
}

// bytes is the frame. The hub's mutex is held, unless the message was encoded
// before.
func (m *message) bytes() []byte {
	if m.frame == nil {
		m.frame = encode(bodyOf(m.event, m.rev))
		m.event = nil
	}
	return m.frame
}

func bodyOf(e *api.Event, rev int64) body {
	b := body{Type: e.Type, TaskID: e.TaskID, RegionID: e.RegionID, Status: e.Status, Attempt: e.Attempt, Error: e.Failure, Hardware: e.Hardware, Lines: e.Lines, Rev: rev}
	if p := e.Progress; p != nil {
		b.Percentage, b.Stage, b.Message, b.Details, b.Attempt = &p.Percentage, p.Stage, p.Message, p.Details, p.Attempt
	}
	return b
}

func encode(b body) []byte {
	text, err := json.Marshal(b)
	if err != nil {
		panic(fmt.Sprintf("hub: encode %s: %v", b.Type, err))
	}
	return frame(websocket.TextMessage, text)
}

// frame is one unfragmented frame as a server sends it: final, not masked (RFC
// 6455 §5.2). We write frames ourselves because many, encoded once, then leave
// in one write; the handshake and all reading is gorilla's.
func frame(opcode byte, payload []byte) []byte {
	b := make([]byte, 0, 10+len(payload))
	b = append(b, 0x80|opcode)
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

var pingFrame = frame(websocket.PingMessage, nil)
