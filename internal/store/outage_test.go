package store_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
	"github.com/lpmos/lpmos/test/link"
)

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
	k := link.New(t, "unix", strings.TrimPrefix(e.Endpoint(), "unix://"))
	said := make(lines, 100)
	s, err := store.Open(t.Context(), store.Config{Endpoints: []string{k.Addr()}}, slog.New(slog.NewTextHandler(said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	k.Cut(true)
	const seven = 7 // tries in which gRPC's own delays would have come to 5 s and more
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for n := 0; n < seven && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		n = len(k.Tries())
	}
	k.Cut(false)
	for s.Healthy(ctx) != nil && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
	}
	create(t, s, "dc1", mac1)
	away, back := said.next(ctx), said.next(ctx)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	tries := k.Tries()
	for i := range len(tries) - 1 {
		if gap := tries[i+1].Sub(tries[i]); gap > 5*time.Second {
			t.Errorf("between tries %d and %d lie %s", i+1, i+2, gap)
		}
	}
	if !strings.Contains(away, "etcd is out of reach") || !strings.Contains(back, "etcd is back") || len(said) > 0 {
		t.Errorf("it said %q, %q and %d more; want once that etcd is away, and once that it is back", away, back, len(said))
	}
}
