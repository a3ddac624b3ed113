package pid1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"syscall"
	"time"
)

const (
	// workerMark in the environment tells the worker that it is one.
	workerMark = "LPMOS_WORKER=1"

	// lastWords is how long a person has to read why a machine restarts.
	lastWords = 30 * time.Second
)

func isWorker() bool { return os.Getenv("LPMOS_WORKER") == "1" && os.Getppid() == 1 }

// isModprobe reports whether the kernel started this process to load a module:
// it calls its helper as "path -q -- name".
func isModprobe() bool { return len(os.Args) == 4 && os.Args[1] == "-q" && os.Args[2] == "--" }

// Booted reports whether this process is /init of a booted machine, or one of
// the roles that Main gives to itself there. Everything else in this package
// that changes the machine refuses to work where it is false.
func Booted() bool { return os.Getpid() == 1 || isWorker() || isModprobe() }

// Main is the whole life of a booted machine and does not return. In the
// worker it calls Start and then run; when run returns nil the machine
// restarts at once, when it returns an error or panics the machine restarts
// after 30 seconds with the reason on its consoles. ctx ends when run returns.
func Main(opts Options, run func(context.Context, *System) error) {
	switch {
	case isModprobe():
		os.Exit(modprobe(os.Args[3]))
	case os.Getpid() == 1:
		supervise()
	case isWorker():
		work(opts, run)
	}
	fmt.Fprintln(os.Stderr, "pid1: this process is not /init of a machine")
	os.Exit(2)
}

// supervise is process 1.
func supervise() {
	consoles := io.Writer(os.Stderr)
	defer func() {
		if v := recover(); v != nil {
			fmt.Fprintf(consoles, "lpmos: supervisor: %v\n", v)
		}
		syscall.Sync()
		<-time.After(lastWords)
		_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	}()
	errs := mountAll(kernelMounts)
	takeConsole()
	consoles = openConsoles()
	log := newLog(consoles)
	for _, err := range errs {
		log.Error("mount", "err", err)
	}
	worker, err := syscall.ForkExec("/proc/self/exe", os.Args[:1], &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/", workerMark},
		Files: []uintptr{0, 1, 2},
		// A session of its own keeps Ctrl-C on the console away from it.
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		log.Error("start worker", "err", err, "restart_in", lastWords)
		return
	}
	status := waitFor(worker)
	log.Error("agent ended, machine restarts", "how", describeStatus(status), "restart_in", lastWords)
}

// waitFor waits for every child until pid ends.
func waitFor(pid int) syscall.WaitStatus {
	for {
		var ws syscall.WaitStatus
		switch got, err := syscall.Wait4(-1, &ws, 0, nil); {
		case got == pid && (ws.Exited() || ws.Signaled()):
			return ws
		case err == syscall.ECHILD:
			return ws
		}
	}
}

func describeStatus(ws syscall.WaitStatus) string {
	if ws.Signaled() {
		return "signal: " + ws.Signal().String()
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus())
}

// work is the worker.
func work(opts Options, run func(context.Context, *System) error) {
	log := newLog(openConsoles())
	ctx, cancel := context.WithCancel(context.Background())
	sys, err := start(ctx, opts, log)
	if err == nil {
		err = guarded(ctx, sys, run)
	}
	cancel()
	if sys != nil {
		sys.wait()
	}
	if err != nil {
		log.Error("agent stopped", "err", err)
		os.Exit(1)
	}
	err = sys.Reboot()
	log.Error("restart", "err", err)
	os.Exit(1)
}

// start is Start whose panic is an error.
func start(ctx context.Context, opts Options, log *slog.Logger) (sys *System, err error) {
	defer recovered(&err)
	return Start(ctx, opts, log)
}

func guarded(ctx context.Context, sys *System, run func(context.Context, *System) error) (err error) {
	defer recovered(&err)
	return run(ctx, sys)
}

// recovered turns a panic into an error with the stack's first lines, so that
// the run's own clean-up and the log get their turn.
func recovered(err *error) {
	if v := recover(); v != nil {
		stack := debug.Stack()
		*err = errors.Join(fmt.Errorf("panic: %v", v), fmt.Errorf("%s", stack[:min(len(stack), 4096)]))
	}
}
