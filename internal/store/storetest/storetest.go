// Package storetest gives each test a real etcd of its own.
package storetest

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/lpmos/lpmos/internal/embedetcd"
	"github.com/lpmos/lpmos/internal/store"
)

// New starts an embedded etcd without fsync and connects to it. Both end with
// the test.
func New(t testing.TB) *store.Store {
	t.Helper()
	_, s := Start(t)
	return s
}

// Start is New for tests that need a second connection.
func Start(t testing.TB) (*embedetcd.Server, *store.Store) {
	t.Helper()
	// t.TempDir may be too deep for the path of a socket.
	dir, err := os.MkdirTemp("", "lpmos-store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e, err := embedetcd.Start(t.Context(), embedetcd.Config{Dir: dir, NoFsync: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, Connect(t, e)
}

// Connect opens another connection, as another process would.
func Connect(t testing.TB, e *embedetcd.Server) *store.Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := store.Open(ctx, store.Config{Endpoints: []string{e.Endpoint()}, Timeout: 30 * time.Second}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
