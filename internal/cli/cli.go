// Package cli is the lpmos command: the operator's tool, which talks to the
// control plane's API and nothing else, and the single-site server.
//
// Whatever comes from a machine, a person or a server passes plain before it
// is printed: it may hold anything.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/conf"
	"github.com/lpmos/lpmos/internal/controlplane/query"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/version"
)

// Exit codes, as `lpmos help exit-codes` explains them.
const (
	ExitOK          = 0
	ExitFailed      = 1 // something went wrong, or a waited-for task did not complete
	ExitUsage       = 2 // the command line, or a value in it, cannot be accepted
	ExitNotFound    = 3
	ExitConflict    = 4   // the state it was based on is no longer so
	ExitUnavailable = 5   // try again later
	ExitTimeout     = 6   // --timeout passed
	ExitDenied      = 7   // nobody is signed in, or who is may not do this
	ExitAltered     = 8   // the audit is not as it was written
	ExitInterrupted = 130 // a signal, as shells count
)

// Main runs the command line and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{in: os.Stdin, asks: stdinIsTerminal(), out: stdout, err: stderr}
	return a.main(ctx, args)
}

func (a *app) main(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	if _, quiet := errors.AsType[quietError](err); !quiet {
		a.complain(err)
	}
	return exitCode(err)
}

// complain says on standard error what went wrong and what to do about it.
func (a *app) complain(err error) {
	// What a server or a machine said may be part of it, and must not look like a
	// line of ours.
	for i, line := range strings.Split(err.Error(), "\n") {
		if i == 0 {
			line = "lpmos: " + line
		} else {
			line = "  " + line
		}
		fmt.Fprintln(a.err, clip(plain(line), 4000))
	}
	if next := nextStep(err); next != "" {
		fmt.Fprintln(a.err, "  next: "+plain(next))
	}
}

// listed are what has a list command, as problems begin.
var listed = []string{"task", "machine", "region", "image", "profile", "template", "user", "token"}

// nextStep is what a person does about an error that does not say so itself.
func nextStep(err error) string {
	if h, ok := errors.AsType[hinted](err); ok {
		return h.next
	}
	p, ok := errors.AsType[*apiclient.Problem](err)
	if !ok {
		return ""
	}
	switch {
	case p.Status == http.StatusUnauthorized && p.TriesLeft == nil:
		return "lpmos login, or --token, or --token-file DATA-DIR/local-token on the host of the control plane"
	case p.Status == http.StatusForbidden:
		return "lpmos whoami says who you are; an admin changes it with lpmos user set"
	case p.Status == http.StatusConflict && p.Plan != nil:
		return "look at the plan as it is now (lpmos task plan TASK) and approve that one"
	case p.Status == http.StatusConflict && p.TaskStatus != "":
		return "see what the task is doing: lpmos task show TASK"
	case p.Status == http.StatusNotFound:
		if noun, _, _ := strings.Cut(p.Detail, " "); slices.Contains(listed, noun) {
			return "see what there is: lpmos " + noun + " list"
		}
		return "lpmos task list, region list and image list show what there is"
	case p.Status == http.StatusBadRequest && p.Field == "os_type":
		return "lpmos image list shows what there is; lpmos image build debian-12 builds one"
	case p.Status == http.StatusServiceUnavailable:
		return "try again in a moment; lpmos doctor says what is wrong if it stays so"
	case p.Status >= 500:
		return "the control plane's log has the reason"
	}
	return ""
}

// quietError ends a command whose outcome was already told, with this code.
type quietError int

func (quietError) Error() string { return "" }

// errQuiet ends a command whose failure was already told.
var errQuiet error = quietError(ExitFailed)

type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// hinted is an error with what to do about it.
type hinted struct {
	error
	next string
}

func (h hinted) Unwrap() error { return h.error }

// errTimeout is the cause of a context that --timeout ended.
var errTimeout = errors.New("--timeout passed")

// errInterrupted ends a command that a signal stopped.
var errInterrupted = errors.New("stopped; what was asked for before goes on")

func exitCode(err error) int {
	var invalid *lpmos.InvalidError
	var usage usageError
	var problem *apiclient.Problem
	var quiet quietError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &quiet):
		return int(quiet)
	case errors.Is(err, errTimeout):
		return ExitTimeout
	case errors.Is(err, errInterrupted):
		return ExitInterrupted
	case errors.As(err, &usage), errors.As(err, &invalid), errors.As(err, &problem) && (problem.Status == 400 || problem.Status == 413):
		return ExitUsage
	case errors.Is(err, lpmos.ErrSignedOut), errors.Is(err, lpmos.ErrForbidden):
		return ExitDenied
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
	in       io.Reader
	asks     bool // in is a terminal: questions can be put
	out, err io.Writer
	server   string
	cacert   string
	token    string // --token
	tokenIn  string // --token-file
	format   string

	// transport, if not nil, is put around the client's; the tests hold every
	// exchange against the contract with it.
	transport func(http.RoundTripper) http.RoundTripper
}

// groups are the parts of `lpmos --help`, and what stands in each.
var groups = []struct {
	id, title string
	commands  []string
}{
	{"operate", "Operate a site:", []string{"task", "machine", "region", "image", "profile", "template", "stop", "resume", "limits", "policy"}},
	{"run", "Run a site:", []string{"up", "doctor", "bootimage", "user", "token", "audit", "login", "logout", "whoami"}},
	{"try", "Try it out:", []string{"lab", "sim"}},
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lpmos",
		Short: "Provision bare-metal servers",
		Long: `lpmos installs operating systems on bare-metal servers: a machine boots over the
network, reports its hardware, a person approves exactly what will be erased,
and the task is complete when the installed system itself calls home.

Try it: "lpmos lab up" provisions a blank virtual server before your eyes.
Run it: "lpmos up" is a whole site in one process.

Every flag is also taken from the environment: --server from LPMOS_SERVER.`,
		Example: `  lpmos task create --region dc1 --mac 52:54:00:12:34:56 --os debian --os-version 12
  lpmos task list -q 'status:failed after:2h'
  lpmos task approve web-01 --wait
  lpmos doctor --interface eth1`,
		SilenceUsage: true, SilenceErrors: true, Version: version.String(),
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := conf.FromEnvironment(cmd, nil); err != nil {
				return err
			}
			if !slices.Contains(formats, a.format) { // before anything is done
				return unknownValue("output", a.format, formats)
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		hint := "see " + cmd.CommandPath() + " --help"
		if near := nearestFlag(cmd, err); near != "" {
			hint = "did you mean " + near + "?"
		}
		return usageError{fmt.Errorf("%w (%s)", err, hint)}
	})
	f := root.PersistentFlags()
	f.StringVar(&a.server, "server", "http://localhost:8080", "control plane")
	f.StringVar(&a.cacert, "cacert", "", "PEM file of the authority of the control plane's certificate (its data directory's site-ca.crt), if this host does not know it")
	f.StringVar(&a.token, "token", "", "API token (default: what lpmos login stored for this server)")
	f.StringVar(&a.tokenIn, "token-file", "", "file with an API token, such as local-token in the data directory of a site on this host")
	f.StringVarP(&a.format, "output", "o", "table", "table, wide, json or yaml")
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(a.taskCommand(), a.regionCommand(), a.machineCommand(), a.profileCommand(), a.templateCommand(), a.imageCommand(), a.bootImageCommand(), a.upCommand(), a.labCommand(), a.stopCommand(), a.resumeCommand(), a.limitsCommand(), a.policyCommand(),
		a.simCommand(), a.versionCommand(), a.doctorCommand(), a.loginCommand(), a.logoutCommand(), a.whoamiCommand(), a.userCommand(), a.tokenCommand(), a.auditCommand(), a.completionCommand(), exitCodesTopic(), outputTopic(), searchTopic())
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, cmd := range root.Commands() {
			if slices.Contains(g.commands, cmd.Name()) {
				cmd.GroupID = g.id
			}
		}
	}
	a.completeFlags(root)
	alsoCalled(root)
	refuseUnknown(root)
	return root
}

// alsoCalled lets people use the words they know from other tools: plural
// nouns, ls, get, rm.
func alsoCalled(root *cobra.Command) {
	verbs := map[string][]string{"list": {"ls"}, "show": {"get", "describe"}, "delete": {"rm"}}
	for _, noun := range root.Commands() {
		if !noun.HasSubCommands() {
			continue
		}
		if !slices.Contains([]string{"lab", "audit", "sim"}, noun.Name()) {
			noun.Aliases = append(noun.Aliases, noun.Name()+"s")
		}
		for _, verb := range noun.Commands() {
			verb.Aliases = append(verb.Aliases, verbs[verb.Name()]...)
		}
	}
}

// nearestFlag is the flag a person may have meant by one that does not exist.
func nearestFlag(cmd *cobra.Command, err error) string {
	_, name, ok := strings.Cut(err.Error(), "unknown flag: --")
	if !ok {
		return ""
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if near := nearest(name, names); len(near) > 0 {
		return "--" + near[0]
	}
	return ""
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
		var names []string
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		if near := nearest(args[0], names); len(near) > 0 {
			hint = "did you mean " + strings.Join(near, " or ") + "?"
		}
		return usageError{fmt.Errorf("%s has no command %q (%s)", cmd.CommandPath(), lpmos.Shorten(args[0], 64), hint)}
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactly(0),
		Long:    "Version prints what this program was built from. The version of a region is in `lpmos region list`.",
		Example: "  lpmos version",
		RunE: func(*cobra.Command, []string) error {
			return a.say(map[string]string{"version": version.String()}, version.String())
		},
	}
}

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: `0    done
1    something went wrong, a task that was waited for did not complete, or a check
     of lpmos doctor failed
2    the command line, or a value in it, cannot be accepted; nothing was done
3    there is no such task, region or image
4    conflict: what the request was based on is no longer so
5    unavailable: the same command may work later
6    --timeout passed; the task itself goes on
7    you are not signed in, or may not do this
8    lpmos audit verify found something altered, removed or reordered
130  stopped by Ctrl-C or a signal; what was asked for before goes on

A command for several tasks does all it can. Its code is 0 if everything was
done, the common code if all that went wrong went wrong alike, and 1 otherwise.`}
}

func outputTopic() *cobra.Command {
	return &cobra.Command{Use: "output", Short: "Tables, JSON and YAML, pipes and terminals", Long: `-o table   for people; the columns and their order stay
-o wide    more columns, added on the right
-o json    what the API answers, with its names
-o yaml    the same as YAML

With these two, nothing else is on standard output: questions, with the plan they
are about, go to standard error. Where things come one after the other (task watch,
--watch, --wait, --follow), each is one line of JSON, or one YAML document; with
--wait, first what was begun, then each task as it ended. What lpmos completion and
lpmos audit export - write has a form of its own.

Times in tables are local, in JSON and YAML they are UTC.

On a terminal, columns give way to its width, statuses have colours (not with
NO_COLOR set) and progress is a bar that is drawn again. In a pipe, or with
TERM=dumb, there are no escape codes: one line for each change, written at once.

Host names, serial numbers and messages come from machines and people. What a
terminal would obey in them is shown as "·", and escaped in JSON and YAML.`}
}

func searchTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString(`A search is terms beside each other, which must all hold. A term is key:value, or a
word that must occur somewhere in the task. "!" before a term turns it round, a
comma means any of, "=" after the colon demands the whole value, and quotation
marks keep spaces together.

`)
	for _, k := range query.Keys {
		fmt.Fprintf(&b, "  %-9s %s\n", k.Name, k.Help)
		if k.Values != nil {
			for _, l := range wrap("one of "+strings.Join(k.Values, ", "), 70) {
				fmt.Fprintf(&b, "  %-9s %s\n", "", l)
			}
		}
	}
	b.WriteString(`
The same search works in the web interface, where its address can be shared.

  lpmos task list -q 'status:failed !region:dc1 after:2h'
  lpmos task list -q 'is:stuck' --sort updated
  lpmos task list -q 'os:debian host:web "rack 7"' --sort -progress --all
  lpmos task list -q status:failed --ids | xargs lpmos task retry`)
	return &cobra.Command{Use: "search", Short: "The search language of task list", Long: b.String()}
}

func (a *app) client() (*apiclient.Client, error) {
	c, err := a.stranger()
	if err != nil {
		return nil, err
	}
	return c, a.credit(c)
}

// stranger is a client that shows no token.
func (a *app) stranger() (*apiclient.Client, error) {
	c, err := apiclient.New(a.server, nil)
	if err == nil && a.cacert != "" {
		var b []byte
		if b, err = os.ReadFile(a.cacert); err == nil {
			err = c.Trust(b)
		}
		if err != nil {
			return nil, fmt.Errorf("read --cacert %s: %w", a.cacert, err)
		}
	}
	if err == nil && a.transport != nil {
		c.Wrap(a.transport)
	}
	return c, err
}

// with makes a RunE that has a client and a context ending at a signal.
func (a *app) with(run func(ctx context.Context, c *apiclient.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		ctx, cancel := service.Signals(cmd.Context(), quietLog)
		defer cancel()
		err = run(ctx, c, args)
		if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return errInterrupted
		}
		return err
	}
}

func stdinIsTerminal() bool {
	return term.IsTerminal(int(os.Stdin.Fd())) // not /dev/null, which is a character device too
}
