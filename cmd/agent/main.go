// Command agent runs in RAM on a machine that is to be installed: as /init of
// the initramfs that a region serves. In the installed system, `agent callhome`
// reports the first boot. On any computer, `agent --demo` plays such a machine.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agent/callhome"
	"github.com/lpmos/lpmos/internal/agent/confine"
	"github.com/lpmos/lpmos/internal/agent/demo"
	"github.com/lpmos/lpmos/internal/agent/inside"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agent/inventory"
	"github.com/lpmos/lpmos/internal/agent/pid1"
	"github.com/lpmos/lpmos/internal/agent/run"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/tpm"
	"github.com/lpmos/lpmos/internal/version"
)

const usage = `agent installs the machine it runs on, as LPMOS decides.

A region boots it into RAM over the network; there it needs no flags. It
reports the hardware, waits until a person has approved the plan, writes the
image, and restarts into the installed system. That is the only place where it
writes to a disk.

On your own computer, try it with a machine that does not exist:

  agent --demo

It needs a running region (regional-client; see --region-url) and a task for
its address, which it prints. It touches no disk.

In an installed system, once and by itself:

  agent callhome

In a distribution's installer that the agent started, from its hooks:

  agent installer watch|disk|finish|failed

Flags:
`

func main() {
	if confine.IsChild() {
		confine.Child()
	}
	if inside.Staging() {
		inside.Stage()
	}
	// On a booted machine the arguments are the kernel's, not a person's.
	if pid1.Booted() {
		boot := &machine{}
		pid1.Main(pid1.Options{BootMAC: boot.readConfig}, boot.run)
	}
	os.Exit(command(os.Args[1:], os.Stdout, os.Stderr))
}

// command is the agent on a computer that it was not booted on.
func command(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("agent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	cfg := demo.Config{MAC: demo.DefaultMAC, Version: version.String()}
	play := flags.Bool("demo", false, "play a machine that does not exist")
	flags.StringVar(&cfg.RegionURL, "region-url", env("LPMOS_REGION_URL", "http://127.0.0.1:8081"), "with --demo: where the region's boot listener is")
	flags.TextVar(&cfg.MAC, "mac", demo.DefaultMAC, "with --demo: the machine's hardware `address`")
	flags.DurationVar(&cfg.Duration, "duration", 10*time.Second, "with --demo: an installation takes at least this long")
	showVersion := flags.Bool("version", false, "print the version and end")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	log := slog.New(slog.NewTextHandler(stderr, nil))
	switch {
	case *showVersion:
		fmt.Fprintln(stdout, "lpmos agent", version.String(), runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH)
		return 0
	case *play && flags.NArg() == 0:
		err := demo.New(cfg, stderr, slog.LevelInfo).Run(ctx)
		if err != nil && ctx.Err() == nil {
			log.Error("demo ended", "err", err)
			return 1
		}
		return 0
	case flags.NArg() == 1 && flags.Arg(0) == "callhome":
		return callhome.Run(ctx, "/", identify, log)
	case flags.NArg() >= 2 && flags.Arg(0) == "installer":
		return inside.Run(ctx, flags.Args()[1:], identify, log)
	}
	flags.Usage()
	return 2
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// identify lists the machine without looking at what is on its disks.
func identify(ctx context.Context) (*lpmos.Hardware, error) {
	src, err := inventory.Host()
	if err != nil {
		return nil, err
	}
	h := inventory.Collect(ctx, src, lpmos.MAC{})
	return &h, nil
}

// machine is the booted machine.
type machine struct {
	cfg agentapi.BootConfig
	sys *pid1.System
	src inventory.Source
	tpm *lpmos.TPM // nil for none
}

// readConfig reads what the region told this boot; the network is set up on
// the interface it names.
func (m *machine) readConfig() (lpmos.MAC, error) {
	var err error
	m.cfg, err = agent.ReadBootConfig(agentapi.BootConfigPath, agentapi.SiteConfigPath)
	return m.cfg.BootMAC, err
}

// run is the agent's whole work. When it returns nil, the machine restarts.
func (m *machine) run(ctx context.Context, sys *pid1.System) error {
	m.sys = sys
	lines := agent.NewLogs()
	log := slog.New(slog.NewMultiHandler(sys.Log.Handler(), slog.NewTextHandler(lines, nil)))
	const private = "/run/lpmos"
	if err := os.MkdirAll(private, 0o700); err != nil {
		return fmt.Errorf("make directory to mount below: %w", err)
	}
	src, err := inventory.Host()
	if err != nil {
		return err
	}
	src.Look = (&inventory.Inspector{Sys: src.Sys, Dir: private}).Look
	m.src = src
	if err := m.useTPM(tpm.Device); err != nil {
		log.Error("this machine's TPM", "err", err)
	}
	client, err := agent.NewClient(m.cfg, log)
	if err != nil {
		return fmt.Errorf("read boot configuration: %w", err)
	}
	defer client.Close()
	blobs, err := agentapi.NewBlobs(m.cfg.BootURL, 0)
	if err != nil {
		return fmt.Errorf("read boot configuration: %w", err)
	}
	commands := &runner{run.Runner{Log: func(line string) { log.Info("command", "says", line) }}}
	installer := install.New(install.Config{WorkDir: private, Identify: identify, Confined: commands.confined}, commands, blobs, nil, log)
	return agent.New(m.cfg, client, installer, m, nil, agent.Pauses{}, lines, log).Run(ctx)
}

// useTPM learns which TPM the machine has and, where the credential of this
// boot is wrapped for it, has it unwrapped. The TPM is closed again: its keys
// are derived anew at each use, and nothing stays loaded.
func (m *machine) useTPM(device string) error {
	t, err := tpm.Open(device)
	switch {
	case errors.Is(err, tpm.ErrNone):
		return agent.Unwrap(&m.cfg, nil)
	case err != nil:
		m.tpm = &lpmos.TPM{Problem: lpmos.Shorten(err.Error(), 200)}
		return errors.Join(err, agent.Unwrap(&m.cfg, nil))
	}
	defer t.Close()
	id := t.Identity()
	m.tpm = &lpmos.TPM{Endorsement: id.Endorsement, Companion: id.Activated}
	return agent.Unwrap(&m.cfg, t)
}

func (m *machine) Collect(ctx context.Context) (*lpmos.Hardware, error) {
	h := inventory.Collect(ctx, m.src, m.cfg.BootMAC)
	h.Agent, h.TPM = version.String(), m.tpm
	return &h, ctx.Err()
}

func (m *machine) SetClock(t time.Time) error { return m.sys.SetClock(t) }

// Reboot leaves it to package pid1, which restarts the machine when run is
// over.
func (m *machine) Reboot(string) {}

// runner is a run.Runner as the installer wants it.
type runner struct{ run.Runner }

func (r *runner) Run(ctx context.Context, input []byte, path string, args ...string) error {
	_, err := r.run(ctx, run.Cmd{Path: path, Args: args, Stdin: bytes.NewReader(input)})
	return err
}

func (r *runner) Read(ctx context.Context, path string, args ...string) (string, error) {
	return r.run(ctx, run.Cmd{Path: path, Args: args, Says: func(string) {}})
}

func (r *runner) run(ctx context.Context, c run.Cmd) (string, error) {
	res, err := r.Runner.Run(ctx, c)
	if e, ok := errors.AsType[*run.Error](err); ok {
		return res.Output, exitError{e}
	}
	return res.Output, err
}

// confinedTime is how long a program of the image may take: an initramfs for
// some kernels, packed by a slow processor. One that says nothing for long ends
// by the deadline of its task.
const confinedTime = time.Hour

// confined runs a program of the installed system's own tree.
func (r *runner) confined(ctx context.Context, root string, says func(string), path string, args ...string) error {
	argv := confine.Command{Root: root, Path: path, Args: args}.Argv()
	_, err := r.Runner.Run(ctx, run.Cmd{Path: "/proc/self/exe", Arg0: argv[0], Args: argv[1:], Attr: confine.Attr(), Timeout: confinedTime, Says: says})
	return err
}

// exitError is the error of a command with its exit status.
type exitError struct{ err *run.Error }

func (e exitError) Error() string { return e.err.Error() }
func (e exitError) Unwrap() error { return e.err }
func (e exitError) ExitCode() int { return e.err.Result.ExitCode }
