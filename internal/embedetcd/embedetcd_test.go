package embedetcd

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
