// Package cli is the lpmos command: the operator's tool, which talks to the
// control plane's API and nothing else, and the single-site server.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"
	"golang.org/x/term"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/conf"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/version"
)

// Exit codes, as `lpmos help exit-codes` explains them.
const (
	ExitOK          = 0
	ExitFailed      = 1 // something went wrong, or a waited-for task did not complete
	ExitUsage       = 2 // the command line, or a value in it, cannot be accepted
	ExitNotFound    = 3
	ExitConflict    = 4 // the state it was based on is no longer so
	ExitUnavailable = 5 // try again later
)

// Main runs the command line and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{out: stdout, err: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	if !errors.Is(err, errQuiet) {
		// What a server or a machine said may be part of it.
		for i, line := range strings.Split(err.Error(), "\n") {
			if i == 0 {
				line = "lpmos: " + line
			}
			fmt.Fprintln(stderr, plain(line))
		}
	}
	return exitCode(err)
}

// errQuiet ends a command whose outcome was already told.
var errQuiet = errors.New("")

type usageError struct{ error }

func exitCode(err error) int {
	var invalid *lpmos.InvalidError
	var usage usageError
	var problem *apiclient.Problem
	switch {
	case errors.As(err, &usage), errors.As(err, &invalid), errors.As(err, &problem) && (problem.Status == 400 || problem.Status == 413):
		return ExitUsage
	case errors.Is(err, lpmos.ErrNotFound):
		return ExitNotFound
	case errors.Is(err, lpmos.ErrConflict):
		return ExitConflict
	case errors.Is(err, lpmos.ErrUnavailable):
		return ExitUnavailable
	}
	return ExitFailed
}

type app struct {
	out, err io.Writer
	server   string
	format   string
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lpmos",
		Short: "Provision bare-metal servers",
		Long: `lpmos installs operating systems on bare-metal servers: a machine boots over the
network, reports its hardware, a person approves exactly what will be erased,
and the task is complete when the installed system itself calls home.

Try it: "lpmos lab up" provisions a blank virtual server before your eyes.
Run it: "lpmos up" is a whole site in one process.`,
		SilenceUsage: true, SilenceErrors: true, Version: version.String(),
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return conf.FromEnvironment(cmd, nil)
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())}
	})
	f := root.PersistentFlags()
	f.StringVar(&a.server, "server", "http://localhost:8080", "control plane (LPMOS_SERVER)")
	f.StringVarP(&a.format, "output", "o", "table", "table, wide, json or yaml")
	root.AddCommand(a.taskCommand(), a.regionCommand(), a.machineCommand(), a.profileCommand(), a.templateCommand(), a.imageCommand(), a.bootImageCommand(), a.upCommand(), a.labCommand(), a.versionCommand(), exitCodesTopic())
	refuseUnknown(root)
	return root
}

// refuseUnknown makes groups of commands say so when they are given a name that
// is none of theirs, which cobra would answer with help and success.
func refuseUnknown(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		refuseUnknown(sub)
	}
	if cmd.Runnable() || !cmd.HasSubCommands() {
		return
	}
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		hint := "see " + cmd.CommandPath() + " --help"
		if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
			hint = "did you mean " + strings.Join(s, " or ") + "?"
		}
		return usageError{fmt.Errorf("%s has no command %q (%s)", cmd.CommandPath(), args[0], hint)}
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintln(a.out, version.String())
			return nil
		},
	}
}

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: `0  done
1  something went wrong, or a task that was waited for did not complete
2  the command line, or a value in it, cannot be accepted
3  there is no such task, region or image
4  conflict: what the request was based on is no longer so
5  unavailable: the same command may work later`}
}

func (a *app) client() (*apiclient.Client, error) { return apiclient.New(a.server, nil) }

// with makes a RunE that has a client and a context ending at a signal.
func (a *app) with(run func(ctx context.Context, c *apiclient.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		ctx, cancel := service.Signals(cmd.Context(), quietLog)
		defer cancel()
		return run(ctx, c, args)
	}
}

// print shows v as the person asked: rows for table and wide, v itself else.
func (a *app) print(v any, table func(w *tabwriter.Writer, wide bool)) error {
	switch a.format {
	case "table", "wide":
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		table(w, a.format == "wide")
		return w.Flush()
	case "json":
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	case "yaml":
		// Through JSON, so that names and forms are those of the API.
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		var generic any
		if err := json.Unmarshal(b, &generic); err != nil {
			return err
		}
		y, err := yaml.Marshal(generic)
		if err != nil {
			return err
		}
		_, err = a.out.Write(y)
		return err
	}
	return usageError{fmt.Errorf("--output is none of table, wide, json, yaml (got %q)", a.format)}
}

// plain makes text from outside harmless to a terminal: control characters and
// bidirectional overrides are shown, not obeyed.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r < 0x20 || r >= 0x7f && r < 0xa0,
			r >= 0x200e && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			return '·'
		}
		return r
	}, s)
}

func age(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return t.Local().Format("2006-01-02")
}

func stdinIsTerminal() bool {
	return term.IsTerminal(int(os.Stdin.Fd())) // not /dev/null, which is a character device too
}
