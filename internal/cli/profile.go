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

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

func (a *app) profileCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "profile", Short: "Keep what many tasks ask for alike",
		Long: `A profile holds the system, host names, keys, accounts and network that a group of
machines shares, so that a task only names its machine. It is versioned; a task keeps
the version that it was created with.`,
		Example: `  lpmos profile put web --os debian --os-version 12 --hostname-pattern web-{serial}
  lpmos task create --region dc1 --mac 52:54:00:12:34:56 --profile web`,
	}
	list := &cobra.Command{Use: "list", Short: "List profiles", Args: exactly(0), Example: "  lpmos profile list", RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		all, err := c.Profiles(ctx)
		if err != nil {
			return err
		}
		return a.show(all, func(bool) *table {
			v := &table{
				head:  []string{"PROFILE", "VERSION", "SYSTEM", "HOST NAMES", "TEMPLATE", "KEYS", "TASKS", "CHANGED"},
				empty: "No profiles. Make one:  lpmos profile put NAME --os debian --os-version 12 --hostname-pattern web-{serial}",
			}
			for _, p := range all {
				v.row(p.Name, fmt.Sprint(p.Version), dash(strings.TrimSpace(p.OSType+" "+p.OSVersion)), dash(p.Hostname), dash(p.Template), fmt.Sprint(len(p.SSHKeys)), uses(p.UsedBy), age(p.UpdatedAt))
			}
			return v
		})
	})}
	show := &cobra.Command{Use: "show NAME", Short: "Show one profile", Args: exactly(1), Example: "  lpmos profile show web -o yaml > web.yaml", ValidArgsFunction: a.completeProfiles, RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		p, err := c.Profile(ctx, args[0])
		if err != nil {
			return err
		}
		return a.show(p, func(bool) *table { return profileTable(p) })
	})}
	cmd.AddCommand(list, show, a.profilePut(), a.profileApply(), a.deleteNamed("profile", a.completeProfiles, (*apiclient.Client).DeleteProfile))
	return cmd
}

func uses(u *apiclient.UsedBy) string {
	if u == nil {
		return "–"
	}
	return fmt.Sprintf("%d (%d live)", u.Tasks, len(u.Live))
}

func profileTable(p apiclient.Profile) *table {
	verify := "the installed system calls home"
	if p.Verify != nil && !*p.Verify {
		verify = "not waited for"
	}
	v := &table{}
	v.field("profile", p.Ref(), strong)
	v.field("description", dash(p.Description))
	v.field("system", dash(strings.TrimSpace(p.OSType+" "+p.OSVersion+" "+p.Arch)))
	v.field("host names", dash(p.Hostname))
	v.field("verification", verify)
	v.field("template", dash(p.Template))
	v.field("layout", p.Layout.Name())
	v.field("notes", dash(p.Notes))
	v.field("changed", moment(p.UpdatedAt)+by(p.UpdatedBy))
	v.field("used by", uses(p.UsedBy)+" tasks")
	for _, k := range p.SSHKeys {
		v.field("SSH key", k)
	}
	for _, l := range setupLines(p.System) {
		v.field(l[0], l[1])
	}
	return v
}

func (a *app) profileApply() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Store a profile from a file that names it",
		Long: `Apply makes the profile that a file (JSON or YAML; "-" is standard input) describes,
or the next version of it. The file has the form of "lpmos profile show -o yaml";
fields that do not exist, or are misspelt, are refused. When the file names a
version, a change that somebody else made since is not overwritten: the command
ends with exit code 4. A file without a version replaces what there is.`,
		Example: "  lpmos profile show web -o yaml > web.yaml\n  lpmos profile apply -f web.yaml",
		Args:    exactly(0),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the profile, as JSON or YAML (required)")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		if file == "" {
			return usageError{errors.New("--file is missing (see lpmos profile apply --help)")}
		}
		var next apiclient.Profile
		if err := readDocument(file, &next); err != nil {
			return err
		}
		if next.Name == "" {
			return usageError{fmt.Errorf("%s has no name: write name: and that of the profile", file)}
		}
		if next.Version == 0 {
			was, err := c.Profile(ctx, next.Name)
			if err != nil && !errors.Is(err, lpmos.ErrNotFound) {
				return err
			}
			next.Version = was.Version
		}
		out, err := c.PutProfile(ctx, next.Profile, next.Version)
		if err != nil {
			return err
		}
		return a.print(out, func(w *tabwriter.Writer, _ bool) {
			fmt.Fprintf(w, "profile %s: stored\n", clip(plain(out.Ref()), maxCell))
		})
	})
	return cmd
}

func (a *app) profilePut() *cobra.Command {
	var p lpmos.Profile
	var file, keyFile string
	var noVerify bool
	var version int
	cmd := &cobra.Command{
		Use: "put NAME", Short: "Make a profile, or change one", ValidArgsFunction: a.completeProfiles,
		Long: `Put makes a profile, or the next version of one. With --file (JSON or YAML, "-" for
standard input, as "lpmos profile show -o yaml" prints it) the whole profile is
what the file says; without it, an existing profile is changed in what the flags
say. A change that somebody else made meanwhile is not overwritten: the command
ends with exit code 4. Tasks that exist are never changed.`,
		Example: `  lpmos profile put web --os debian --os-version 12 --hostname-pattern 'web-{serial}' --ssh-key-file keys.pub`,
		Args:    exactly(1),
	}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "the profile, as JSON or YAML")
	f.StringVar(&p.Description, "description", "", "what it is for")
	f.StringVar(&p.OSType, "os", "", "operating system")
	f.StringVar(&p.OSVersion, "os-version", "", "its version")
	f.StringVar(&p.Arch, "arch", "", "amd64 or arm64")
	f.StringVar(&p.Hostname, "hostname-pattern", "", "host name with {"+strings.Join(lpmos.HostnameFacts(), "}, {")+"}")
	f.StringVar(&keyFile, "ssh-key-file", "", "file of public keys that may log in")
	f.StringVar(&p.Template, "template", "", "user-data template")
	layoutFlag(f, &p.Layout)
	f.StringVar(&p.Notes, "notes", "", "notes of each task")
	f.BoolVar(&noVerify, "no-verify", false, "tasks complete without waiting for the installed system")
	f.IntVar(&version, "version", 0, "the version the change is based on (default: that of the file, or the newest)")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		var next apiclient.Profile
		if file != "" {
			if err := readDocument(file, &next); err != nil {
				return err
			}
		} else {
			was, err := c.Profile(ctx, args[0])
			if err != nil && !errors.Is(err, lpmos.ErrNotFound) {
				return err
			}
			next = was
		}
		for name, to := range map[string]func(){
			"description": func() { next.Description = p.Description }, "os": func() { next.OSType = p.OSType }, "os-version": func() { next.OSVersion = p.OSVersion },
			"arch": func() { next.Arch = p.Arch }, "hostname-pattern": func() { next.Hostname = p.Hostname }, "template": func() { next.Template = p.Template },
			"notes": func() { next.Notes = p.Notes }, "layout": func() { next.Layout = p.Layout }, "no-verify": func() { verify := !noVerify; next.Verify = &verify }, "version": func() { next.Version = version },
		} {
			if f.Changed(name) {
				to()
			}
		}
		if keyFile != "" {
			keys, err := readKeys(keyFile)
			if err != nil {
				return err
			}
			next.SSHKeys = keys
		}
		next.Name = args[0]
		out, err := c.PutProfile(ctx, next.Profile, next.Version)
		if err != nil {
			return err
		}
		return a.print(out, func(w *tabwriter.Writer, _ bool) {
			fmt.Fprintf(w, "profile %s: stored\n", clip(plain(out.Ref()), maxCell))
		})
	})
	return cmd
}

// readKeys reads public keys, one a line.
func readKeys(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read SSH keys: %w", err)
	}
	var keys []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			keys = append(keys, line)
		}
	}
	return keys, nil
}

// maxDocument bounds a file that is sent to the API.
const maxDocument = 256 << 10

func readInput(file string) ([]byte, error) {
	in := io.Reader(os.Stdin)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("read %s: %w", file, lpmos.ErrTooLarge)
	}
	return b, nil
}

// readDocument reads JSON or YAML as strictly as the API reads JSON.
func readDocument(file string, v any) error {
	b, err := readInput(file)
	if err != nil {
		return err
	}
	var generic any
	if err := yaml.Unmarshal(b, &generic); err != nil { // JSON is YAML
		return usageError{fmt.Errorf("read %s: %w", file, err)}
	}
	if b, err = json.Marshal(generic); err != nil {
		return usageError{fmt.Errorf("read %s: %w", file, err)}
	}
	if err := lpmos.UnmarshalJSON(b, v); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}

// deleteNamed is the delete command of what has a name and versions.
func (a *app) deleteNamed(what string, names completer, remove func(c *apiclient.Client, ctx context.Context, name string, version int) error) *cobra.Command {
	var version int
	cmd := &cobra.Command{Use: "delete NAME", Short: "Remove a " + what + " that no live task uses", Args: exactly(1), ValidArgsFunction: names, RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		if err := remove(c, ctx, args[0], version); err != nil {
			return err
		}
		return a.say(map[string]any{"name": args[0], "deleted": true}, fmt.Sprintf("%s %s: deleted", what, plain(args[0])))
	})}
	cmd.Flags().IntVar(&version, "version", 0, "only if it is at this version")
	return cmd
}
