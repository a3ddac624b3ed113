package cli

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

var quietLog = slog.New(slog.DiscardHandler)

func (a *app) taskCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "task", Short: "Create, approve and follow installations"}
	cmd.AddCommand(a.taskCreate(), a.taskList(), a.taskShow(), a.taskPlan(), a.taskDecide(true), a.taskDecide(false),
		a.taskCancel(), a.taskRetry(), a.taskDelete(), a.taskLogs(), a.taskEvents(), a.taskWatch())
	return cmd
}

// find takes a whole task id or the beginning of one.
func find(ctx context.Context, c *apiclient.Client, id string) (string, error) {
	if lpmos.ValidTaskID(id) {
		return id, nil
	}
	if len(id) < 4 {
		return "", &lpmos.InvalidError{Field: "task", Problem: "needs at least 4 characters of a task id", Value: id}
	}
	l, err := c.Tasks(ctx, url.Values{"q": {id}, "limit": {"50"}})
	if err != nil {
		return "", err
	}
	var match []string
	for _, t := range l.Tasks {
		if strings.HasPrefix(t.ID, strings.ToLower(id)) {
			match = append(match, t.ID)
		}
	}
	switch len(match) {
	case 0:
		return "", fmt.Errorf("task %s: %w", id, lpmos.ErrNotFound)
	case 1:
		return match[0], nil
	}
	return "", &lpmos.InvalidError{Field: "task", Problem: fmt.Sprintf("is the beginning of %d task ids", len(match)), Value: id}
}

func (a *app) one(use, short string, run func(ctx context.Context, c *apiclient.Client, id string) error) *cobra.Command {
	return &cobra.Command{Use: use + " TASK", Short: short, Args: exactly(1), RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		id, err := find(ctx, c, args[0])
		if err != nil {
			return err
		}
		return run(ctx, c, id)
	})}
}

func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%s takes %d argument(s), got %d (see %s --help)", cmd.Name(), n, len(args), cmd.CommandPath())}
		}
		return nil
	}
}

func (a *app) taskCreate() *cobra.Command {
	var spec lpmos.Spec
	var mac, keyFile, key string
	var wait bool
	cmd := &cobra.Command{
		Use: "create", Short: "Ask for a machine to be installed",
		Long: `Create stores a task. Nothing is erased: the machine reports its hardware when it
boots from the network, and waits until a person approves what would be erased.`,
		Example: `  lpmos task create --region dc1 --mac 52:54:00:12:34:56 --os debian --os-version 12 \
        --hostname web-01 --ssh-key-file ~/.ssh/id_ed25519.pub`,
		Args: exactly(0),
	}
	f := cmd.Flags()
	f.StringVar(&spec.RegionID, "region", "", "data centre the machine is in (required)")
	f.StringVar(&mac, "mac", "", "address of any of its NICs (required)")
	f.StringVar(&spec.OSType, "os", "", "operating system, as `lpmos image list` has it (required)")
	f.StringVar(&spec.OSVersion, "os-version", "", "its version (required)")
	f.StringVar(&spec.Arch, "arch", "amd64", "amd64 or arm64")
	f.StringVar(&spec.Hostname, "hostname", "", "host name (default: machine- and the end of the MAC)")
	f.StringVar(&keyFile, "ssh-key-file", "", "file of public keys that may log in")
	f.StringVar(&spec.Notes, "notes", "", "anything to remember")
	f.StringVar(&key, "idempotency-key", "", "repeating the command with the same key creates nothing new")
	f.BoolVar(&wait, "wait", false, "follow the task until it ends")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		var err error
		if spec.TargetMAC, err = lpmos.ParseMAC(mac); err != nil {
			return err
		}
		if keyFile != "" {
			b, err := os.ReadFile(keyFile)
			if err != nil {
				return fmt.Errorf("read SSH keys: %w", err)
			}
			for line := range strings.Lines(string(b)) {
				if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
					spec.SSHKeys = append(spec.SSHKeys, line)
				}
			}
		}
		id, err := c.CreateTask(ctx, spec, key)
		if err != nil {
			return err
		}
		if wait {
			fmt.Fprintln(a.out, id)
			return a.follow(ctx, c, id)
		}
		return a.print(map[string]string{"task_id": id, "status": string(lpmos.Pending)}, func(w *tabwriter.Writer, _ bool) {
			fmt.Fprintf(w, "%s\n\nBoot the machine from the network, then:  lpmos task watch %s\n", id, id[:8])
		})
	})
	return cmd
}

func (a *app) taskList() *cobra.Command {
	var status, region, text string
	var limit int
	cmd := &cobra.Command{Use: "list", Short: "List tasks, newest first", Args: exactly(0)}
	f := cmd.Flags()
	f.StringVar(&status, "status", "", "only these, separated by commas")
	f.StringVar(&region, "region", "", "only of this data centre")
	f.StringVarP(&text, "query", "q", "", "only with these words in id, host name, MAC, serial number …")
	f.IntVar(&limit, "limit", 100, "at most so many")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		q := url.Values{"limit": {fmt.Sprint(limit)}}
		for k, v := range map[string]string{"status": status, "region_id": region, "q": text} {
			if v != "" {
				q.Set(k, v)
			}
		}
		l, err := c.Tasks(ctx, q)
		if err != nil {
			return err
		}
		return a.print(l, func(w *tabwriter.Writer, wide bool) {
			if len(l.Tasks) == 0 {
				fmt.Fprintln(w, "No tasks. Create one:  lpmos task create --help")
				return
			}
			head := "TASK\tSTATUS\tPROGRESS\tHOST\tMAC\tSYSTEM\tREGION\tAGE"
			if wide {
				head += "\tATTEMPT\tBY\tCAUSE"
			}
			fmt.Fprintln(w, head)
			for _, t := range l.Tasks {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s %s\t%s\t%s", t.ID[:8], t.Status, percent(t), plain(t.Hostname), t.TargetMAC, t.OSType, t.OSVersion, t.RegionID, age(t.CreatedAt))
				if wide {
					cause := ""
					if t.Error != nil {
						cause = plain(t.Error.Cause)
					}
					fmt.Fprintf(w, "\t%d\t%s\t%s", t.Attempt, plain(t.CreatedBy), cause)
				}
				fmt.Fprintln(w)
			}
			if l.Total > len(l.Tasks) {
				fmt.Fprintf(w, "\n%d of %d shown (--limit)\n", len(l.Tasks), l.Total)
			}
		})
	})
	return cmd
}

func percent(t lpmos.Task) string {
	if t.Progress == nil || t.Status != lpmos.Installing {
		return "–"
	}
	return fmt.Sprintf("%d/4 %s %d %%", t.Progress.Stage.Number(), t.Progress.Stage, t.Progress.Percentage)
}

func (a *app) taskShow() *cobra.Command {
	return a.one("show", "Show everything about a task", func(ctx context.Context, c *apiclient.Client, id string) error {
		t, err := c.Task(ctx, id)
		if err != nil {
			return err
		}
		return a.print(t, func(w *tabwriter.Writer, _ bool) {
			row := func(k, v string) {
				if v != "" {
					fmt.Fprintf(w, "%s\t%s\n", k, v)
				}
			}
			row("task", t.ID)
			row("status", string(t.Status)+", attempt "+fmt.Sprint(t.Attempt))
			row("machine", t.TargetMAC.String()+" in "+t.RegionID)
			row("system", t.OSType+" "+t.OSVersion+" "+t.Arch+" as "+plain(t.Hostname))
			row("created", t.CreatedAt.Local().Format(time.DateTime)+" by "+plain(t.CreatedBy))
			row("progress", strings.TrimPrefix(percent(t), "–"))
			if h := t.Hardware; h != nil {
				row("hardware", plain(strings.TrimSpace(h.System.Manufacturer+" "+h.System.Product))+", serial "+plain(h.System.Serial)+", "+plain(h.BootMode))
				row("cpu", fmt.Sprintf("%d × %s, %d cores", h.CPU.Sockets, plain(h.CPU.Model), h.CPU.Cores))
				row("memory", fmt.Sprintf("%.1f GiB", float64(h.Memory.TotalBytes)/(1<<30)))
				for _, d := range h.Disks {
					row("disk", diskLine(d))
				}
				for _, n := range h.NICs {
					link := "no link"
					if n.Link {
						link = "link"
						if n.SpeedMbps > 0 {
							link = fmt.Sprintf("%d Mbit/s", n.SpeedMbps)
						}
					}
					row("nic", fmt.Sprintf("%s %s, %s, %s", n.MAC, plain(n.Name), plain(n.Driver), link))
				}
			}
			if e := t.Error; e != nil {
				row("failed", plain(e.Cause))
				row("next step", plain(e.NextStep))
				row("evidence", plain(e.Evidence))
			}
			if r := t.Receipt; r != nil {
				row("called home", fmt.Sprintf("%s, kernel %s, host %s, %s, root on %s", plain(r.OS), plain(r.Kernel), plain(r.Hostname), plain(r.BootMode), plain(r.RootDisk.String())))
			}
		})
	})
}

func diskLine(d lpmos.Disk) string {
	s := lpmos.FormatBytes(d.SizeBytes) + " " + plain(strings.TrimSpace(d.Vendor+" "+d.Model)) + ", serial " + plain(d.Serial)
	if d.Content.Empty() {
		return s + ", empty"
	}
	return s + ", in use"
}

func (a *app) taskPlan() *cobra.Command {
	return a.one("plan", "Show what would be erased and written", func(ctx context.Context, c *apiclient.Client, id string) error {
		t, err := c.Task(ctx, id)
		if err != nil {
			return err
		}
		if t.Plan == nil {
			return fmt.Errorf("task %s has no plan yet: its machine has not reported: %w", id[:8], lpmos.ErrNotFound)
		}
		return a.print(t.Plan, func(w *tabwriter.Writer, _ bool) { writePlan(w, t) })
	})
}

func writePlan(w *tabwriter.Writer, t lpmos.Task) {
	p := t.Plan
	if p.Problem != "" {
		fmt.Fprintf(w, "This plan cannot be carried out: %s\n", plain(p.Problem))
		return
	}
	machine := t.TargetMAC.String()
	if h := t.Hardware; h != nil && h.System.Serial != "" {
		machine += ", serial " + plain(h.System.Serial)
	}
	fmt.Fprintf(w, "machine\t%s\n", machine)
	fmt.Fprintf(w, "ERASES\t%s\n", plain(p.Effect.Target.String()))
	if len(p.Hazards) == 0 {
		fmt.Fprintf(w, "\tnothing was found on it\n")
	}
	for _, h := range p.Hazards {
		fmt.Fprintf(w, "\t%s\n", plain(h))
	}
	for _, d := range p.Observed {
		if d.Disk != p.Effect.Target {
			fmt.Fprintf(w, "keeps\t%s\n", plain(d.Disk.String()))
		}
	}
	for _, q := range p.Effect.Partitions {
		fmt.Fprintf(w, "writes\t%d %s, %s %s %s\n", q.Number, q.Role, lpmos.FormatBytes(q.SizeBytes), q.FS, q.Mount)
	}
	fmt.Fprintf(w, "image\t%s %s %s, %s\n", p.Effect.Image.OS, p.Effect.Image.Version, p.Effect.Image.Arch, p.Effect.Image.Digest)
	fmt.Fprintf(w, "host\t%s, %s boot, %d SSH key(s)\n", plain(p.Effect.Hostname), plain(p.Effect.BootMode), len(p.Effect.SSHKeys))
	fmt.Fprintf(w, "digest\t%s\n", p.Digest)
}

func (a *app) taskDecide(approve bool) *cobra.Command {
	var digest, notes, serial string
	use, short := "approve", "Approve a plan: its disk is erased from then on"
	if !approve {
		use, short = "reject", "Reject a plan: nothing is erased"
	}
	cmd := a.one(use, short, func(ctx context.Context, c *apiclient.Client, id string) error {
		if !approve {
			t, err := c.Decide(ctx, id, false, "", notes)
			if err != nil {
				return err
			}
			return a.said(t, "rejected; nothing was erased")
		}
		t, err := c.Task(ctx, id)
		if err != nil {
			return err
		}
		if t.Plan == nil {
			return &lpmos.ConflictError{Problem: "the task has no plan yet: its machine has not reported"}
		}
		if digest == "" {
			if !stdinIsTerminal() {
				return usageError{fmt.Errorf("--plan is missing: look at `lpmos task plan %s` and give the digest it ends with", id[:8])}
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			writePlan(w, t)
			w.Flush()
			fmt.Fprintf(a.out, "\nApprove and erase %s? Type yes: ", plain(t.Plan.Effect.Target.String()))
			if line, _ := bufio.NewReader(os.Stdin).ReadString('\n'); strings.TrimSpace(line) != "yes" {
				return fmt.Errorf("nothing was approved")
			}
			digest = t.Plan.Digest
		}
		if end := api.SerialEnd(t.Plan.Effect.Target); t.Plan.ErasesData() && !strings.EqualFold(serial, end) {
			return usageError{fmt.Errorf("data was found on the disk (%s): give the last characters of its serial number as --serial-end", plain(strings.Join(t.Plan.Hazards, "; ")))}
		}
		t, err = c.Decide(ctx, id, true, digest, notes)
		if err != nil {
			return err
		}
		return a.said(t, "approved; follow it with: lpmos task watch "+id[:8])
	})
	f := cmd.Flags()
	f.StringVar(&notes, "notes", "", "why")
	if approve {
		f.StringVar(&digest, "plan", "", "digest of the plan that was looked at (default: show it and ask)")
		f.StringVar(&serial, "serial-end", "", "last 4 characters of the serial number of the disk to erase, where data was found on it")
	}
	return cmd
}

// said tells the outcome of an action, or shows the task where a program asked.
func (a *app) said(t lpmos.Task, what string) error {
	return a.print(t, func(w *tabwriter.Writer, _ bool) { fmt.Fprintf(w, "task %s: %s\n", t.ID[:8], what) })
}

func (a *app) taskCancel() *cobra.Command {
	var reason string
	cmd := a.one("cancel", "Cancel a task that has not begun to write", func(ctx context.Context, c *apiclient.Client, id string) error {
		t, err := c.Cancel(ctx, id, reason)
		if err != nil {
			return err
		}
		return a.said(t, "canceled; nothing was erased")
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why")
	return cmd
}

func (a *app) taskRetry() *cobra.Command {
	return a.one("retry", "Begin a failed task anew", func(ctx context.Context, c *apiclient.Client, id string) error {
		t, err := c.Retry(ctx, id)
		if err != nil {
			return err
		}
		return a.said(t, fmt.Sprintf("attempt %d begins when the machine boots from the network", t.Attempt))
	})
}

func (a *app) taskDelete() *cobra.Command {
	return a.one("delete", "Forget a task that has ended", func(ctx context.Context, c *apiclient.Client, id string) error {
		if err := c.Delete(ctx, id); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "task %s: deleted\n", id[:8])
		return nil
	})
}

func (a *app) taskEvents() *cobra.Command {
	return a.one("events", "Show everything that happened to a task", func(ctx context.Context, c *apiclient.Client, id string) error {
		events, err := c.Events(ctx, id)
		if err != nil {
			return err
		}
		return a.print(events, func(w *tabwriter.Writer, _ bool) {
			fmt.Fprintln(w, "#\tTIME\tAFTER\tSTATUS\tCAUSE\tBY\tMESSAGE")
			var last time.Time
			for _, e := range events {
				gap := ""
				if !last.IsZero() {
					gap = e.At.Sub(last).Round(100 * time.Millisecond).String()
				}
				last = e.At
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Seq, e.At.Local().Format(time.DateTime), gap, e.To, e.Cause, plain(e.By), plain(e.Message))
			}
		})
	})
}

func (a *app) taskLogs() *cobra.Command {
	var follow bool
	cmd := a.one("logs", "Print the agent's log", func(ctx context.Context, c *apiclient.Client, id string) error {
		t, err := c.Task(ctx, id)
		if err != nil {
			return err
		}
		lines, err := c.Logs(ctx, id)
		if err != nil {
			return err
		}
		for _, l := range lines {
			fmt.Fprintln(a.out, plain(l))
		}
		if !follow || !t.Status.Live() {
			return nil
		}
		for m, err := range c.Watch(ctx, id, t.Rev) {
			if err != nil {
				return err
			}
			for _, l := range m.Lines {
				fmt.Fprintln(a.out, plain(l))
			}
			if m.Type == "status" && !lpmos.Status(m.Status).Live() {
				return nil
			}
		}
		return nil
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the task ends")
	return cmd
}

func (a *app) taskWatch() *cobra.Command {
	return a.one("watch", "Follow a task until it ends", a.follow)
}
