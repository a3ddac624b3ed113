package cli

import (
	"cmp"
	"context"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/conf"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

// completeTime is how long a person who pressed Tab is kept waiting. When the
// control plane does not answer by then, nothing is offered and nothing said.
const completeTime = 800 * time.Millisecond

func (a *app) completionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "completion", Short: "Print a script that completes commands, ids and names",
		Long: `Completion prints a script for your shell. With it, Tab completes commands, flags
and their values, and what the control plane has: tasks (with host name and
status), regions and images. Nothing is offered when it does not answer within a
second.

bash (needs the package bash-completion), for you or for everybody:
  lpmos completion bash > ~/.local/share/bash-completion/completions/lpmos
  lpmos completion bash > /etc/bash_completion.d/lpmos
zsh (compinit must be on, which most configurations do):
  lpmos completion zsh > "${fpath[1]}/_lpmos"
fish:
  lpmos completion fish > ~/.config/fish/completions/lpmos.fish

It works from the next shell on; for this one:  source <(lpmos completion bash)`,
		Example: `  source <(lpmos completion bash)
  lpmos completion zsh > "${fpath[1]}/_lpmos"`,
	}
	for _, shell := range []struct {
		name  string
		write func(root *cobra.Command) error
	}{
		{"bash", func(root *cobra.Command) error { return root.GenBashCompletionV2(a.out, true) }},
		{"zsh", func(root *cobra.Command) error { return root.GenZshCompletion(a.out) }},
		{"fish", func(root *cobra.Command) error { return root.GenFishCompletion(a.out, true) }},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: shell.name, Short: "For " + shell.name, Args: exactly(0), ValidArgsFunction: cobra.NoFileCompletions,
			Long:    "Print the script for " + shell.name + "; `lpmos completion --help` says where it goes.",
			Example: "  lpmos completion " + shell.name,
			RunE:    func(cmd *cobra.Command, _ []string) error { return shell.write(cmd.Root()) },
		})
	}
	return cmd
}

type completer = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

// live makes a completer that asks the control plane. Its answers are values
// with descriptions, apart by a tab; an error offers nothing.
func (a *app) live(ask func(ctx context.Context, c *apiclient.Client, args []string, typed string) ([]string, error)) completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		const none = cobra.ShellCompDirectiveNoFileComp
		if conf.FromEnvironment(cmd, nil) != nil { // the command itself is not run, and so has not done it
			return nil, none
		}
		c, err := a.client()
		if err != nil {
			return nil, none
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
		defer cancel()
		found, err := ask(ctx, c, args, typed)
		if err != nil && len(found) == 0 {
			return nil, none
		}
		return found, none | cobra.ShellCompDirectiveKeepOrder
	}
}

// offer is a value with what it is, which may come from a machine.
func offer(value, what string) string {
	return value + "\t" + clip(plain(what), 60)
}

// completeTasks offers tasks in one of the statuses, or in any; those named
// already are left out. Ids are offered, and where a host name was begun, the
// host names of tasks.
func (a *app) completeTasks(statuses []lpmos.Status) completer {
	return a.live(func(ctx context.Context, c *apiclient.Client, args []string, typed string) ([]string, error) {
		q := url.Values{"limit": {"100"}}
		if len(statuses) > 0 {
			var names []string
			for _, s := range statuses {
				names = append(names, string(s))
			}
			q.Set("status", strings.Join(names, ","))
		}
		// What was begun is asked for as just that: a word finds any number of
		// tasks that have it somewhere else.
		var out []string
		for _, begun := range []query.Term{{Key: "id", Values: []string{typed}}, {Key: "host", Values: []string{typed + "*"}}} {
			id := begun.Key == "id"
			if id && !mayBeID(typed) || !id && typed == "" {
				continue
			}
			if typed != "" {
				q.Set("q", begun.String())
			}
			l, err := c.Tasks(ctx, q)
			if err != nil {
				return out, err
			}
			for _, t := range l.Tasks {
				what := t.Hostname + " " + string(t.Status)
				if p := percent(t.Task); p != "–" {
					what += " " + p
				}
				switch {
				case slices.Contains(args, t.ID) || slices.Contains(args, t.Hostname):
				case id && strings.HasPrefix(t.ID, typed):
					out = append(out, offer(t.ID, what))
				case !id && strings.HasPrefix(t.Hostname, typed) && plain(t.Hostname) == t.Hostname:
					out = append(out, offer(t.Hostname, t.ID[:8]+" "+string(t.Status)))
				}
			}
		}
		return out, nil
	})
}

// completeMachines offers the host names of machines, and the serial numbers of
// those that have none.
func (a *app) completeMachines(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.live(func(ctx context.Context, c *apiclient.Client, _ []string, typed string) ([]string, error) {
		q := url.Values{"limit": {"100"}}
		if typed != "" {
			q.Set("q", typed)
		}
		l, err := c.Machines(ctx, q)
		var out []string
		for _, m := range l.Machines {
			if name := cmp.Or(m.Hostname, m.Serial); name != "" && strings.HasPrefix(name, typed) && plain(name) == name {
				out = append(out, offer(name, m.MAC.String()+" "+machineState(m)))
			}
		}
		return out, err
	})(cmd, args, typed)
}

func (a *app) completeRegions(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() == "show" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.live(func(ctx context.Context, c *apiclient.Client, _ []string, typed string) ([]string, error) {
		regions, err := c.Regions(ctx)
		var out []string
		for _, r := range regions {
			if strings.HasPrefix(r.ID, typed) && lpmos.ValidRegionID(r.ID) {
				out = append(out, offer(r.ID, r.Status+" "+capabilities(r).Hostname))
			}
		}
		return out, err
	})(cmd, args, typed)
}

func (a *app) completeImages(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeImageField(func(i lpmos.Image) string { return i.Name() })(cmd, args, typed)
}

func (a *app) completeImageField(field func(lpmos.Image) string) completer {
	return a.live(func(ctx context.Context, c *apiclient.Client, _ []string, typed string) ([]string, error) {
		images, err := c.Images(ctx)
		var out []string
		for _, i := range images {
			if v := field(i); strings.HasPrefix(v, typed) && plain(v) == v && !slices.ContainsFunc(out, func(o string) bool { return strings.HasPrefix(o, v+"\t") }) {
				out = append(out, offer(v, i.Title))
			}
		}
		return out, err
	})
}

// completeProfiles and completeTemplates complete the names of these.
func (a *app) completeProfiles(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.live(func(ctx context.Context, c *apiclient.Client, _ []string, typed string) ([]string, error) {
		profiles, err := c.Profiles(ctx)
		var out []string
		for _, p := range profiles {
			if strings.HasPrefix(p.Name, typed) {
				out = append(out, offer(p.Name, p.Description))
			}
		}
		return out, err
	})(cmd, args, typed)
}

func (a *app) completeTemplates(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.live(func(ctx context.Context, c *apiclient.Client, _ []string, typed string) ([]string, error) {
		templates, err := c.Templates(ctx)
		var out []string
		for _, t := range templates {
			if strings.HasPrefix(t.Name, typed) {
				out = append(out, offer(t.Name, t.Description))
			}
		}
		return out, err
	})(cmd, args, typed)
}

// oneOf completes a value out of a fixed list.
func oneOf(values ...string) completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveNoFileComp
	}
}

// someOf completes the last of several values separated by commas.
func someOf(values ...string) completer {
	return func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		before := typed[:strings.LastIndex(typed, ",")+1]
		var out []string
		for _, v := range values {
			if !slices.Contains(strings.Split(before, ","), v) {
				out = append(out, before+v)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

// completeFlags gives flags their values by name, whichever command has them.
// What takes a file or a directory keeps the shell's own completion.
func (a *app) completeFlags(root *cobra.Command) {
	signed := slices.Clone(sorts)
	for _, s := range sorts {
		signed = append(signed, "-"+s)
	}
	byName := map[string]completer{
		"output": oneOf(formats...), "status": someOf(statusNames()...), "until": someOf(statusNames()...), "sort": oneOf(signed...),
		"region": a.completeRegions, "arch": oneOf("amd64", "arm64"), "dhcp": oneOf("off", "proxy", "server"),
		"unknown-machines": oneOf("ignore", "discover"), "log-level": oneOf("debug", "info", "warn", "error"), "log-format": oneOf("text", "json"),
		"profile": a.completeProfiles, "template": a.completeTemplates, "layout": oneOf(lpmos.LayoutPresets()...),
		"flavour": oneOf("generic", "cloud"), "interface": completeInterfaces,
		"os-version": a.completeImageField(func(i lpmos.Image) string { return i.Version }),
	}
	create := a.completeImageField(func(i lpmos.Image) string { return i.OS })
	nothing := cobra.NoFileCompletions
	free := []string{"mac", "hostname", "hostname-pattern", "notes", "reason", "query", "limit", "timeout", "count", "plan", "serial-end", "idempotency-key", "server", "listen-addr"}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		each := func(f *pflag.Flag) {
			complete := byName[f.Name]
			switch {
			case f.Name == "os" && cmd.Name() == "create":
				complete = create
			case slices.Contains(free, f.Name):
				complete = nothing
			}
			if _, has := cmd.GetFlagCompletionFunc(f.Name); complete == nil || has {
				return
			}
			if err := cmd.RegisterFlagCompletionFunc(f.Name, complete); err != nil {
				panic("cli: complete --" + f.Name + ": " + err.Error())
			}
		}
		if cmd == root {
			cmd.PersistentFlags().VisitAll(each)
		}
		cmd.LocalNonPersistentFlags().VisitAll(each)
		if cmd.Runnable() && cmd.ValidArgsFunction == nil && cmd.ValidArgs == nil {
			cmd.ValidArgsFunction = nothing
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
}
