package store_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// wire is a way to an etcd that can be cut.
type wire struct {
	t        *testing.T
	listener net.Listener
	to       string // path of a socket

	mu    sync.Mutex // guards what follows
	cut   bool
	tries []time.Time // connections while it was cut
	conns []net.Conn
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, listener: l, to: to}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if far := w.open(c); far != nil {
				wg.Go(func() { _, _ = io.Copy(far, c); far.Close() })
				wg.Go(func() { _, _ = io.Copy(c, far); c.Close() })
			}
		}
	})
	t.Cleanup(func() { l.Close(); w.set(true); wg.Wait() })
	return w
}

func (w *wire) open(near net.Conn) net.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		w.tries = append(w.tries, time.Now())
		near.Close()
		return nil
	}
	far, err := net.Dial("unix", w.to)
	if err != nil {
		w.t.Error(err)
		near.Close()
		return nil
	}
	w.conns = append(w.conns, near, far)
	return far
}

func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut = cut; cut {
		for _, c := range w.conns {
			c.Close()
		}
		w.conns = nil
	}
}

// lines is where a log goes, line by line.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

func (l lines) next(ctx context.Context) string {
	select {
	case line := <-l:
		return line
	case <-ctx.Done():
		return ""
	}
}

// TestOutage: while etcd is away it is tried again every few seconds, however
// long that lasts; both are said once.
func TestOutage(t *testing.T) {
	t.Parallel()
	e, _ := storetest.Start(t)
	w := newWire(t, strings.TrimPrefix(e.Endpoint(), "unix://"))
	said := make(lines, 100)
	s, err := store.Open(t.Context(), store.Config{Endpoints: []string{w.listener.Addr().String()}}, slog.New(slog.NewTextHandler(said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	w.set(true)
	const seven = 7 // tries in which gRPC's own delays would have come to 5 s and more
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for n := 0; n < seven && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		w.mu.Lock()
		n = len(w.tries)
		w.mu.Unlock()
	}
	w.set(false)
	for s.Healthy(ctx) != nil && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
	}
	create(t, s, "dc1", mac1)
	away, back := said.next(ctx), said.next(ctx)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range len(w.tries) - 1 {
		if gap := w.tries[i+1].Sub(w.tries[i]); gap > 5*time.Second {
			t.Errorf("between tries %d and %d lie %s", i+1, i+2, gap)
		}
	}
	if !strings.Contains(away, "etcd is out of reach") || !strings.Contains(back, "etcd is back") || len(said) > 0 {
		t.Errorf("it said %q, %q and %d more; want once that etcd is away, and once that it is back", away, back, len(said))
	}
}
