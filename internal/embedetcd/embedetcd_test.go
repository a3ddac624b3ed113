package embedetcd

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func TestOneProcessPerDirectory(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	// The path is deeper than a unix socket's may be.
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	s, err := Start(t.Context(), Config{Dir: dir, NoFsync: true}, log)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("data directory %v, %v; want mode 0700", st.Mode(), err)
	}
	if _, err := Start(t.Context(), Config{Dir: dir, NoFsync: true}, log); err == nil || !strings.Contains(err.Error(), "is in use by process") {
		t.Errorf("a second member in the same directory = %v; want it refused", err)
	}
	if _, err := os.Stat(strings.TrimPrefix(s.Endpoint(), "unix://")); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	again, err := Start(t.Context(), Config{Dir: dir, NoFsync: true}, log)
	if err != nil {
		t.Fatalf("start anew: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// On a busy machine a first start is slow to apply that it is its own cluster,
// which cannot be brought about here.
func TestSlowFirstStartIsNormal(t *testing.T) {
	if said := "58a88bf978398f80 cannot campaign at term 1 since there are still pending configuration changes to apply"; !expected(said) {
		t.Errorf("%q is said to the operator", said)
	}
	if fault := "58a88bf978398f80 cannot campaign at term 1"; expected(fault) {
		t.Errorf("%q is not said", fault)
	}
}

// A start says nothing of what is normal, also when there is a long history.
func TestStartWithALongHistory(t *testing.T) {
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))
	dir := t.TempDir()
	run := func(use func(c *clientv3.Client)) {
		t.Helper()
		s, err := Start(t.Context(), Config{Dir: dir, NoFsync: true}, log)
		if err != nil {
			t.Fatal(err)
		}
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		use(c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	run(func(c *clientv3.Client) {
		const writers, each = 50, 110 // more than etcd lets wait to be applied
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for range each {
					if _, err := c.Put(t.Context(), "k", ""); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
	run(func(c *clientv3.Client) {
		if r, err := c.Get(t.Context(), "k"); err != nil || r.Count != 1 {
			t.Errorf("after a start the key is there %d times, %v", r.Count, err)
		}
	})
	if said.Len() > 0 {
		t.Errorf("etcd said\n%s", &said)
	}
}
