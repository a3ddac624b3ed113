// Command bench measures what LPMOS promises to be fast or small and prints a
// table for each, with how it was taken:
//
//	go run ./test/bench              # everything; needs root and QEMU
//	go run ./test/bench -vm=false    # boot scripts, processes, a long history, emergency stop, sizes, image pipeline
//
// Run it from the repository on a machine that does nothing else: figures of a
// busy one are printed all the same.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
)

// bench is one run.
type bench struct {
	ctx   context.Context
	dir   string // scratch; the built programs are in it
	cache string
	tasks int // of the long history
}

// part is one table.
type part struct {
	name string
	vm   bool
	run  func(*bench) error
}

var parts = []part{
	{name: "scripts", run: (*bench).scripts},
	{name: "process", run: (*bench).processes},
	{name: "history", run: (*bench).history},
	{name: "stop", run: (*bench).stops},
	{name: "sizes", run: (*bench).sizes},
	{name: "copy", run: (*bench).copies},
	{name: "import", run: (*bench).imports},
	{name: "phases", vm: true, run: (*bench).phases},
	{name: "guest", vm: true, run: (*bench).guest},
}

func main() {
	vm := flag.Bool("vm", true, "also measure virtual machines (root, QEMU)")
	cache := flag.String("cache-dir", env("LPMOS_CACHE_DIR", ".cache"), "where packages and finished builds are kept")
	only := flag.String("only", "", "one of scripts, process, history, stop, sizes, copy, import, phases, guest; several separated by commas")
	tasks := flag.Int("tasks", 100_000, "tasks of the long history")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *vm, *cache, *only, *tasks); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func run(ctx context.Context, vm bool, cache, only string, tasks int) error {
	dir, err := os.MkdirTemp("", "lpmos-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if cache, err = filepath.Abs(cache); err != nil {
		return err
	}
	b := &bench{ctx: ctx, dir: dir, cache: cache, tasks: tasks}
	fmt.Printf("%s, %s/%s, %d processors, load %s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), load())
	for name, source := range map[string]string{"lpmos": "./cmd/lpmos", "agent": "./cmd/agent"} {
		if err := b.build(name, source); err != nil {
			return err
		}
	}
	for _, p := range parts {
		wanted := vm || !p.vm
		if only != "" {
			wanted = strings.Contains(","+only+",", ","+p.name+",")
		}
		if !wanted {
			continue
		}
		if err := p.run(b); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// build makes a static program as releases have it.
func (b *bench) build(name, source string, ldflags ...string) error {
	cmd := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags", strings.Join(append([]string{"-s -w"}, ldflags...), " "), "-o", b.path(name), source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return nil
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// table prints a heading, how the figures were taken, and rows of cells.
func table(title, how string, rows ...[]string) {
	fmt.Printf("\n%s\n%s\n\n", title, how)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, "  "+strings.Join(r, "\t"))
	}
	w.Flush()
}
