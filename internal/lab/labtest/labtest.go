// Package labtest gives tests a lab network, or the reason why there is none.
package labtest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lpmos/lpmos/internal/lab"
)

// Require ends the test when err is not nil: with a skip if tier is one that
// this host may lack, with a failure if the environment variable
// LPMOS_REQUIRE, a comma list of tiers, names it.
func Require(tb testing.TB, tier string, err error) {
	tb.Helper()
	if err == nil {
		return
	}
	if required(tier) {
		tb.Fatalf("tier %s is required: %v", tier, err)
	}
	tb.Skipf("tier %s: %v", tier, err)
}

func required(tier string) bool {
	return slices.Contains(strings.Split(os.Getenv("LPMOS_REQUIRE"), ","), tier)
}

// Tools returns the lab's tools for tests of the tier "vm". Machines are slow
// and take a processor each, so that tier runs only where it is asked for.
func Tools(tb testing.TB) lab.Tools {
	tb.Helper()
	if !required("vm") {
		tb.Skip("tier vm: not asked for (LPMOS_REQUIRE=vm)")
	}
	tools, err := lab.FindTools()
	Require(tb, "vm", err)
	return tools
}

// Network returns a network that is closed with the test. Serial logs and the
// like are kept in the test's artifact directory (go test -artifacts). The
// config's Name, Dir and Tools are filled in when empty.
func Network(tb testing.TB, cfg lab.Config) *lab.Network {
	tb.Helper()
	tools := Tools(tb)
	if cfg.Tools == (lab.Tools{}) {
		cfg.Tools = tools
	}
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(tb.ArtifactDir(), "lab")
	}
	if cfg.Name == "" {
		cfg.Name = tb.Name()
	}
	// Not the test's own context: that ends before its cleanup functions run,
	// and theirs is the last word on what is still needed.
	n, err := lab.NewNetwork(context.WithoutCancel(tb.Context()), cfg, Log(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { n.Close() })
	return n
}

// Log writes to the test's output while the test runs.
func Log(tb testing.TB) *slog.Logger {
	w := &testWriter{tb: tb}
	tb.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended = true
	})
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct {
	tb testing.TB

	mu    sync.Mutex // guards ended and orders it with Log, which panics after the test
	ended bool
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return 0, errors.New("the test is over")
	}
	w.tb.Log(string(bytes.TrimSuffix(b, []byte("\n"))))
	return len(b), nil
}
