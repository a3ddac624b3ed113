package apiclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/lpmos/lpmos"
)

// Message is a server message of the WebSocket (contract §5).
type Message struct {
	Type       string                 `json:"type"`
	TaskID     string                 `json:"task_id"`
	RegionID   string                 `json:"region_id"`
	Status     string                 `json:"status"`
	Attempt    int                    `json:"attempt"`
	Error      *lpmos.Failure         `json:"error"`
	Percentage int                    `json:"percentage"`
	Stage      lpmos.Stage            `json:"stage"`
	Message    string                 `json:"message"`
	Details    *lpmos.ProgressDetails `json:"details"`
	Hardware   *lpmos.Hardware        `json:"hardware"`
	Lines      []string               `json:"lines"`
	Rev        int64                  `json:"rev"`
}

// Watch yields what happens to a task, or to all with an empty id, from
// revision after on; 0 means from now. It reconnects by itself and misses
// nothing; a message of type resync says that too much was missed, and what is
// known must be read anew. It ends with ctx, or with an error that trying again
// cannot mend.
func (c *Client) Watch(ctx context.Context, taskID string, after int64) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		for wait := 200 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
			err := c.watchOnce(ctx, taskID, &after, func(m Message) bool {
				wait = 200 * time.Millisecond
				return yield(m, nil)
			})
			if errors.Is(err, errEnough) {
				return
			}
			var refused *Problem
			if errors.As(err, &refused) {
				yield(Message{}, err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait/2 + rand.N(wait)):
			}
		}
	}
}

var errEnough = errors.New("the consumer has enough")

func (c *Client) watchOnce(ctx context.Context, taskID string, after *int64, yield func(Message) bool) error {
	u := *c.base
	u.Scheme = strings.Replace(u.Scheme, "http", "ws", 1)
	u.Path = strings.TrimSuffix(u.Path, "/") + "/ws"
	if *after > 0 {
		u.RawQuery = url.Values{"after": {strconv.FormatInt(*after, 10)}}.Encode()
	}
	d := websocket.Dialer{NetDialContext: c.dial, HandshakeTimeout: 10 * time.Second, TLSClientConfig: c.tls.Clone()}
	h := http.Header{}
	c.authorize(h)
	ws, resp, err := d.DialContext(ctx, u.String(), h)
	if err != nil {
		if resp != nil && resp.StatusCode >= 400 && resp.StatusCode < 500 {
			return problemIn(resp)
		}
		return fmt.Errorf("connect to %s: %w", u.String(), err)
	}
	defer ws.Close()
	defer context.AfterFunc(ctx, func() { ws.Close() })()
	ws.SetReadLimit(16 << 20)
	alive := func() error { return ws.SetReadDeadline(time.Now().Add(75 * time.Second)) }
	ping := ws.PingHandler()
	ws.SetPingHandler(func(data string) error {
		if err := alive(); err != nil {
			return err
		}
		return ping(data)
	})
	if err := ws.WriteJSON(struct {
		Type   string `json:"type"`
		TaskID string `json:"task_id,omitempty"`
	}{"subscribe", taskID}); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	for {
		if err := alive(); err != nil {
			return err
		}
		_, b, err := ws.ReadMessage()
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		var m Message
		if err := json.Unmarshal(b, &m); err != nil {
			return fmt.Errorf("read message: %w", err)
		}
		*after = max(*after, m.Rev)
		if !yield(m) {
			return errEnough
		}
	}
}
