package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

// What changed while the control plane could not be read is read when it can be,
// though nothing more happens.
func TestWatchedReadsAgain(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.Close()
		if err := ws.WriteJSON(map[string]any{"type": "status", "task_id": id1, "status": "failed", "rev": 8}); err != nil {
			t.Error(err)
		}
		_, _, err = ws.ReadMessage() // what it subscribes to
		for err == nil {
			_, _, err = ws.ReadMessage() // until it is closed
		}
	}))
	defer srv.Close()
	c, err := apiclient.New(srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	reads, enough := 0, errors.New("read again")
	done := make(chan error, 1)
	go func() {
		done <- watched(t.Context(), c, func() (int64, error) {
			switch reads++; reads {
			case 1:
				return 7, nil
			case 2:
				return 0, fmt.Errorf("read the list: %w", lpmos.ErrUnavailable)
			}
			return 0, enough
		}, func(apiclient.Message) error { return nil })
	}()
	select {
	case err := <-done:
		if !errors.Is(err, enough) {
			t.Errorf("watching ended with %v after %d readings; want a third one", err, reads)
		}
	case <-time.After(10 * repaint):
		t.Error("what changed was never read again")
	}
}
