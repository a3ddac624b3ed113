package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

var quietLog = slog.New(slog.DiscardHandler)

func (a *app) taskCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "task", Short: "Create, approve and follow installations",
		Long: `A task installs one machine. It waits for the machine to report its hardware, then
for a person to approve what would be erased; it is complete when the installed
system itself calls home.

TASK is a task's id, the beginning of one (four characters or more), or a host
name or MAC that one task has, or one task that has not ended.`,
		Example: `  lpmos task create --region dc1 --mac 52:54:00:12:34:56 --os debian --os-version 12
  lpmos task plan web-01
  lpmos task approve web-01 --wait`,
	}
	cmd.AddCommand(a.taskCreate(), a.taskList(), a.taskShow(), a.taskPlan(), a.taskApprove(), a.taskReject(),
		a.taskCancel(), a.taskRetry(), a.taskDelete(), a.taskLogs(), a.taskEvents(), a.taskWatch())
	return cmd
}

// find takes a whole task id, the beginning of one, or a host name or MAC that
// only one task has, or only one that lives.
func find(ctx context.Context, c *apiclient.Client, name string) (string, error) {
	if lpmos.ValidTaskID(name) {
		return name, nil
	}
	// Each thing that it may be is asked for as just that: words that stand
	// anywhere in a task find any number of others.
	var asked []query.Term
	lower := strings.ToLower(name)
	if len(name) >= 4 && mayBeID(lower) {
		asked = append(asked, query.Term{Key: "id", Values: []string{lower}})
	}
	if lpmos.ValidHostname(lower) {
		asked = append(asked, query.Term{Key: "host", Exact: true, Values: []string{lower}})
	}
	if mac, err := lpmos.ParseMAC(name); err == nil {
		asked = append(asked, query.Term{Key: "mac", Exact: true, Values: []string{mac.String()}})
	}
	var match, live []string
	for _, term := range asked {
		sel := selection{all: true, limit: 1, text: term.String()}
		l, err := sel.read(ctx, c)
		if err != nil {
			return "", err
		}
		for _, t := range l.Tasks {
			if slices.Contains(match, t.ID) {
				continue
			}
			match = append(match, t.ID)
			if t.Status.Live() {
				live = append(live, t.ID)
			}
		}
	}
	switch {
	case len(match) == 0 && len(name) < 4:
		return "", &lpmos.InvalidError{Field: "task", Problem: "is no task's host name, and of an id at least 4 characters are needed", Value: name}
	case len(match) == 0:
		return "", hinted{fmt.Errorf("task %s: %w", lpmos.Shorten(name, 64), lpmos.ErrNotFound), "see what there is: lpmos task list"}
	case len(match) == 1:
		return match[0], nil
	case len(live) == 1:
		return live[0], nil
	}
	return "", &lpmos.InvalidError{Field: "task", Problem: fmt.Sprintf("is meant by %d tasks (%s, …): give a whole id", len(match), strings.Join(match[:2], ", ")), Value: name}
}

// mayBeID reports whether an id of a task may begin so.
func mayBeID(text string) bool { return strings.Trim(text, "0123456789abcdef-") == "" }

// anywhere is a search for just these characters, anywhere in a task.
func anywhere(text string) string { return query.Term{Values: []string{text}}.String() }

// one is a command for one task.
func (a *app) one(use, short string, run func(ctx context.Context, c *apiclient.Client, id string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " TASK", Short: short, Args: exactly(1), ValidArgsFunction: a.completeTasks(nil),
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			id, err := find(ctx, c, args[0])
			if err != nil {
				return err
			}
			return run(ctx, c, id)
		}),
	}
}

func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%s takes %s, got %d (see %s --help)", cmd.Name(), count(n, "argument", "arguments"), len(args), cmd.CommandPath())}
		}
		return nil
	}
}

func atLeast(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return usageError{fmt.Errorf("%s takes at least %s, got %d (see %s --help)", cmd.Name(), count(n, "argument", "arguments"), len(args), cmd.CommandPath())}
		}
		return nil
	}
}

// waiting are the flags of commands that can wait for what they began.
type waiting struct {
	wait    bool
	timeout time.Duration
}

func (o *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.wait, "wait", false, "follow what was begun until it ends; the exit code is 0 only if it completed")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 0, "with --wait, give up after this long, with exit code 6 (0: never)")
}

// first is v as it is written when something was begun: for programs a line of
// its own, where lines of what it came to follow.
func (o waiting) first(v any) any {
	if o.wait {
		return first{of: v}
	}
	return v
}

// bound makes a context that ends with --timeout.
func (o *waiting) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, o.timeout, errTimeout)
}

// layoutFlag takes the name of a preset; a layout that is spelled out comes with a
// profile.
func layoutFlag(f *pflag.FlagSet, to **lpmos.Layout) {
	f.Func("layout", "how disks are divided, for images that are trees of files: "+strings.Join(lpmos.LayoutPresets(), ", "), func(name string) error {
		l := &lpmos.Layout{Preset: name}
		*to = l
		return l.Validate()
	})
}

func (a *app) taskCreate() *cobra.Command {
	var spec lpmos.Spec
	var secrets secretFlags
	var mac, keyFile, key, csvFile string
	var noVerify bool
	var wait waiting
	cmd := &cobra.Command{
		Use: "create", Short: "Ask for machines to be installed",
		Long: `Create stores a task. Nothing is erased: the machine reports its hardware when it
boots from the network, and waits until a person approves what would be erased.

A --profile says what many machines have in common (lpmos profile list); other flags
win over it.

With --from-csv, many tasks are created at once. The first line names the columns:
mac and hostname, and any of region, os, version, arch, ssh_key, profile, address,
gateway, notes, and secret:NAME for a secret; the flags
fill what a line leaves empty. All lines are checked first, and every bad one is
named; nothing is created unless all are good. Repeated with the same
--idempotency-key, it goes on where it was cut off.

Secrets (password hashes, join tokens) are never arguments, which other users of
this computer can read: --secret asks for the value at the terminal, --secret-file
reads a file. They are sealed when the task is created and shown nowhere.`,
		Example: `  lpmos task create --region dc1 --mac 52:54:00:12:34:56 --os debian --os-version 12 \
        --hostname web-01 --ssh-key-file ~/.ssh/id_ed25519.pub
  lpmos task create --region dc1 --mac 52:54:00:12:34:56 --profile web
  lpmos task create --region dc1 --os debian --os-version 12 --from-csv rack7.csv
  lpmos task create --region dc1 --mac 52-54-00-12-34-56 --os debian --os-version 12 --wait --timeout 1h
  lpmos task create --region dc1 --mac 52:54:00:12:34:56 --profile web --secret-file join-token=token.txt`,
		Args: exactly(0),
	}
	f := cmd.Flags()
	f.StringVar(&spec.RegionID, "region", "", "data centre the machine is in (required)")
	f.StringVar(&mac, "mac", "", "address of any of its NICs (required)")
	f.StringVar(&spec.OSType, "os", "", "operating system, as `lpmos image list` has it (required)")
	f.Lookup("os").Usage = "operating system, as lpmos image list has it (required without --profile)"
	f.StringVar(&spec.OSVersion, "os-version", "", "its version (required without --profile)")
	f.StringVar(&spec.Arch, "arch", "", "amd64 or arm64 (default: the profile's, or amd64)")
	f.StringVar(&spec.Profile, "profile", "", "profile that says the rest: a name, or name@version")
	f.StringVar(&spec.Template, "template", "", "template of the cloud-init user data, likewise")
	layoutFlag(f, &spec.Layout)
	f.StringVar(&spec.Hostname, "hostname", "", "host name (default: machine- and the end of the MAC)")
	f.StringVar(&spec.HostnamePattern, "hostname-pattern", "", "host name made of what the machine reports, such as web-{serial}")
	f.BoolVar(&noVerify, "no-verify", false, "complete when everything is written, without waiting for the system's call home")
	f.StringVar(&keyFile, "ssh-key-file", "", "file of public keys that may log in")
	f.StringSliceVar(&spec.Addresses, "address", nil, "address of the installed system with its prefix length, such as 192.0.2.10/24 (default: as the profile says, or DHCP)")
	f.StringSliceVar(&spec.Gateways, "gateway", nil, "its gateway, one of each family")
	f.StringVar(&spec.Notes, "notes", "", "anything to remember")
	secrets.flags(f)
	f.StringVar(&csvFile, "from-csv", "", "file with a line for each machine; - is standard input")
	f.StringVar(&key, "idempotency-key", "", "repeating the command with the same key creates nothing new")
	wait.flags(cmd)
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		if keyFile != "" {
			b, err := os.ReadFile(keyFile)
			if err != nil {
				return fmt.Errorf("read SSH keys (--ssh-key-file): %w", err)
			}
			for line := range strings.Lines(string(b)) {
				if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
					spec.SSHKeys = append(spec.SSHKeys, line)
				}
			}
		}
		var err error
		if spec.Secrets, err = secrets.read(a, csvFile == "-"); err != nil {
			return err
		}
		if noVerify {
			spec.Verify = new(bool)
		}
		if csvFile != "" {
			if mac != "" || spec.Hostname != "" {
				return usageError{errors.New("--mac and --hostname are columns of --from-csv, not flags beside it")}
			}
			return a.createMany(ctx, c, spec, csvFile, key, wait)
		}
		for i, need := range [][2]string{{spec.RegionID, "region"}, {mac, "mac"}, {spec.OSType, "os"}, {spec.OSVersion, "os-version"}} {
			if need[0] == "" && (i < 2 || spec.Profile == "") {
				return usageError{fmt.Errorf("--%s is missing (see lpmos task create --help)", need[1])}
			}
		}
		if spec.TargetMAC, err = lpmos.ParseMAC(mac); err != nil {
			return err
		}
		id, err := c.CreateTask(ctx, spec, key)
		if err != nil {
			return err
		}
		err = a.print(wait.first(map[string]string{"task_id": id, "status": string(lpmos.Pending)}), func(w *tabwriter.Writer, _ bool) {
			fmt.Fprintln(w, id)
			if !wait.wait {
				fmt.Fprintf(w, "\nBoot the machine from the network, then:  lpmos task watch %s\n", id[:8])
			}
		})
		if err != nil || !wait.wait {
			return err
		}
		return a.await(ctx, c, []string{id}, wait)
	})
	return cmd
}

// sorts are what --sort takes; with "-" before it, descending.
var sorts = api.Sorts

// selection is which tasks a list shows.
type selection struct {
	status, region, text, sort string
	limit                      int
	all                        bool
}

// maxPage is the largest page the API gives.
const maxPage = 1000

func (s *selection) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.status, "status", "", "only these, separated by commas")
	f.StringVar(&s.region, "region", "", "only of this data centre")
	f.StringVarP(&s.text, "query", "q", "", "only what the search finds, such as 'status:failed !region:dc1 after:2h' (see lpmos help search)")
	f.StringVar(&s.sort, "sort", "", strings.Join(sorts, ", ")+`; with "-" before it, descending (default: newest first)`)
	f.IntVar(&s.limit, "limit", 100, "at most so many, from 1 on")
	f.BoolVar(&s.all, "all", false, "all that match, however many")
}

func (s *selection) values() (url.Values, error) {
	q := url.Values{"groups": {"false"}} // every task would be looked at for them
	if s.status != "" {
		for one := range strings.SplitSeq(s.status, ",") {
			if !lpmos.Status(one).Valid() {
				return nil, unknownValue("status", one, statusNames())
			}
		}
		q.Set("status", s.status)
	}
	if s.sort != "" && !slices.Contains(sorts, strings.TrimPrefix(s.sort, "-")) {
		return nil, unknownValue("sort", s.sort, sorts)
	}
	if s.limit < 1 {
		return nil, usageError{fmt.Errorf("--limit is not a number from 1 on (got %d; --all shows all)", s.limit)}
	}
	for k, v := range map[string]string{"region_id": s.region, "q": s.text, "sort": s.sort} {
		if v != "" {
			q.Set(k, v)
		}
	}
	return q, nil
}

func statusNames() (names []string) {
	for _, s := range lpmos.Statuses {
		names = append(names, string(s))
	}
	return names
}

// read asks for as many pages as are wanted.
func (s *selection) read(ctx context.Context, c *apiclient.Client) (apiclient.TaskList, error) {
	q, err := s.values()
	if err != nil {
		return apiclient.TaskList{}, err
	}
	var all apiclient.TaskList
	seen := map[string]bool{} // a task that moves while pages are read may come twice
	for {
		page := maxPage
		if !s.all {
			page = min(page, s.limit-len(all.Tasks))
		}
		q.Set("limit", fmt.Sprint(page))
		l, err := c.Tasks(ctx, q)
		if err != nil {
			return all, err
		}
		if all.Rev == 0 {
			all.Rev = l.Rev // what happens while the rest is read is seen by who watches from here
		}
		all.Total, all.NextCursor = l.Total, l.NextCursor
		for _, t := range l.Tasks {
			if !seen[t.ID] {
				seen[t.ID] = true
				all.Tasks = append(all.Tasks, t)
			}
		}
		if l.NextCursor == "" || len(l.Tasks) == 0 || !s.all && len(all.Tasks) >= s.limit {
			return all, nil
		}
		q.Set("cursor", l.NextCursor)
	}
}

func (a *app) taskList() *cobra.Command {
	var sel selection
	var ids, watch bool
	cmd := &cobra.Command{
		Use: "list", Short: "List tasks, newest first", Args: exactly(0),
		Long: `List shows tasks. With --watch it goes on: on a terminal the list is kept up to
date, in a pipe a line is written for each change.`,
		Example: `  lpmos task list
  lpmos task list -q 'status:failed !region:dc1 after:2h' -o wide
  lpmos task list --status installing,verifying --watch
  lpmos task list -q status:failed --all --ids | xargs lpmos task retry`,
	}
	sel.flags(cmd)
	cmd.Flags().BoolVar(&ids, "ids", false, "print the ids only, one on each line")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on showing changes until stopped")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		if watch {
			if ids {
				return usageError{errors.New("--ids and --watch do not go together")}
			}
			return a.watchList(ctx, c, &sel)
		}
		l, err := sel.read(ctx, c)
		if err != nil {
			return err
		}
		if ids {
			all := idsOf(l.Tasks)
			return a.print(all, func(w *tabwriter.Writer, _ bool) {
				for _, id := range all {
					fmt.Fprintln(w, id)
				}
			})
		}
		return a.show(l, func(wide bool) *table { return taskTable(l, wide, &sel) })
	})
	return cmd
}

func taskHead(wide bool) []string {
	head := []string{"TASK", "STATUS", "PROGRESS", "HOST", "MAC", "SYSTEM", "REGION", "AGE"}
	if wide {
		head = append(head, "ATTEMPT", "BY", "CAUSE")
	}
	return head
}

func taskRow(t lpmos.Task, wide bool) []cell {
	row := []cell{
		txt(t.ID[:min(8, len(t.ID))]), statusCell(t), txt(percent(t)), txt(t.Hostname), txt(t.TargetMAC.String()),
		txt(t.OSType + " " + t.OSVersion), txt(t.RegionID), {age(t.CreatedAt), dim},
	}
	if wide {
		cause := ""
		if t.Error != nil {
			cause = t.Error.Cause
		}
		row = append(row, txt(fmt.Sprint(t.Attempt)), txt(t.CreatedBy), txt(cause))
	}
	return row
}

func taskTable(l apiclient.TaskList, wide bool, sel *selection) *table {
	t := &table{head: taskHead(wide), empty: "No tasks. Create one:  lpmos task create --help"}
	if sel.status+sel.region+sel.text != "" {
		t.empty = "No task matches. All there are:  lpmos task list"
	}
	for _, task := range l.Tasks {
		t.add(taskRow(task.Task, wide)...)
	}
	if l.Total > len(l.Tasks) {
		t.foot = fmt.Sprintf("%d of %d shown (--limit, --all)", len(l.Tasks), l.Total)
	}
	return t
}

func percent(t lpmos.Task) string {
	if t.Progress == nil || t.Status != lpmos.Installing {
		return "–"
	}
	return fmt.Sprintf("%d/4 %s %d %%", t.Progress.Stage.Number(), plain(string(t.Progress.Stage)), t.Progress.Percentage)
}

func (a *app) taskShow() *cobra.Command {
	cmd := a.one("show", "Show everything about a task", func(ctx context.Context, c *apiclient.Client, id string) error {
		t, err := c.TaskView(ctx, id)
		if err != nil {
			return err
		}
		return a.show(t, func(wide bool) *table { return describeTask(t.Task, t.ETA, wide) })
	})
	cmd.Long = `Show prints what is known about a task: what was asked for, the machine's hardware,
who decided, how far it is, and why it failed and what to do about it.
With -o wide also firmware, what was found on each disk, and what to type next.`
	cmd.Example = `  lpmos task show web-01
  lpmos task show 550e8400 -o json`
	return cmd
}

func describeTask(t lpmos.Task, eta *apiclient.ETA, wide bool) *table {
	v := &table{}
	v.field("task", t.ID)
	status := string(t.Status)
	if t.Attempt > 1 || t.Status != lpmos.Pending {
		status += fmt.Sprintf(", attempt %d", t.Attempt)
	}
	v.field("status", status, statusTone(t.Status))
	v.field("host", plain(t.Hostname), strong)
	v.field("machine", t.TargetMAC.String()+" in "+plain(t.RegionID))
	v.field("system", plain(t.OSType+" "+t.OSVersion+" "+t.Arch))
	v.field("created", moment(t.CreatedAt)+by(t.CreatedBy))
	v.field("notes", plain(t.Notes))
	v.field("progress", strings.TrimPrefix(percent(t), "–"))
	if eta != nil && t.Status.Live() {
		v.field("left", fmt.Sprintf("about %s, as %s with the same %s took", seconds(time.Duration(eta.LeftSec)*time.Second), count(eta.Runs, "earlier run", "earlier runs"), plain(eta.Basis)))
	}
	if a := t.Approval; a != nil {
		what := "approved"
		if !a.Approved {
			what = "rejected"
		}
		v.field(what, moment(a.At)+by(strings.Join(a.People(), " and "))+notes(a.Notes))
	}
	if h := t.Hardware; h != nil {
		v.field("hardware", plain(strings.TrimSpace(h.System.Manufacturer+" "+h.System.Product))+", serial "+plain(h.System.Serial)+", "+plain(h.BootMode))
		if wide {
			v.field("firmware", plain(strings.TrimSpace(h.BIOS.Vendor+" "+h.BIOS.Version+" "+h.BIOS.Date)))
			v.field("uuid", plain(h.System.UUID))
		}
	}
	if k := t.AgentKey; k != nil {
		v.field("key words", k.Words+" (as on the machine's console)")
	}
	if n := t.ApprovalNeeds; n != nil {
		v.field("approval", plain(approvalNeeds(t, *n)), attention)
	}
	if w := t.PermitWait; w != nil {
		v.field("waits", permitWait(*w), attention)
	}
	if x := t.Alarm; x != nil {
		v.field("ALARM", plain(x.Message)+" From "+plain(x.Address)+", "+moment(x.At)+". Compare the key words with the console before you approve.", bad)
	}
	if h := t.Hardware; h != nil {
		v.field("cpu", fmt.Sprintf("%d × %s, %d cores", h.CPU.Sockets, plain(h.CPU.Model), h.CPU.Cores))
		v.field("memory", gib(h.Memory.TotalBytes))
		for _, d := range h.Disks {
			v.field("disk", diskLine(d))
			if wide {
				for _, found := range diskContent(d) {
					v.field("", found)
				}
			}
		}
		for _, n := range h.NICs {
			link, colour := "no link", dim
			if n.Link {
				link, colour = "link", normal
				if n.SpeedMbps > 0 {
					link = fmt.Sprintf("%d Mbit/s", n.SpeedMbps)
				}
			}
			v.field("nic", fmt.Sprintf("%s %s, %s, %s", n.MAC, plain(n.Name), plain(n.Driver), link), colour)
		}
	}
	if p := t.Plan; p != nil && t.Status == lpmos.AwaitingApproval {
		if p.Problem != "" {
			v.field("no plan", plain(p.Problem), bad)
		} else {
			for _, d := range p.Effect.Disks() {
				v.field("would erase", plain(d.Disk.String()), attention)
			}
		}
	}
	if e := t.Error; e != nil {
		v.field("failed", plain(e.Cause), bad)
		v.field("next step", plain(e.NextStep), strong)
		v.field("evidence", plain(e.Evidence))
	}
	if r := t.Receipt; r != nil {
		v.field("called home", fmt.Sprintf("%s, kernel %s, host %s, %s, root on %s", plain(r.OS), plain(r.Kernel), plain(r.Hostname), plain(r.BootMode), plain(r.RootDisk.String())), good)
		v.field("addresses", plain(strings.Join(r.Addresses, ", ")))
		for _, d := range t.Drift {
			v.field("not as planned", plain(d.String()), attention)
		}
		if len(r.FailedUnits) > 0 {
			v.field("failed units", plain(strings.Join(r.FailedUnits, ", ")), attention)
		}
		receiptFields(v, r, wide)
	}
	if wide {
		v.field("next", nextCommand(t))
	}
	return v
}

// nextCommand is what a person probably types next.
func nextCommand(t lpmos.Task) string {
	short := t.ID[:min(8, len(t.ID))]
	switch {
	case t.Status == lpmos.AwaitingApproval && t.Plan != nil && t.Plan.Problem == "":
		return "lpmos task approve " + short
	case t.Status == lpmos.Failed:
		return "lpmos task logs " + short + ", then lpmos task retry " + short
	case t.Status.Live():
		return "lpmos task watch " + short
	}
	return "lpmos task events " + short
}

func by(who string) string {
	if who == "" {
		return ""
	}
	return " by " + plain(who)
}

func notes(s string) string {
	if s == "" {
		return ""
	}
	return ": " + plain(s)
}

func gib(bytes int64) string { return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30)) }

func diskLine(d lpmos.Disk) string {
	s := lpmos.FormatBytes(d.SizeBytes) + " " + plain(strings.TrimSpace(d.Vendor+" "+d.Model)) + ", serial " + plain(d.Serial)
	if d.Content.Empty() {
		return s + ", empty"
	}
	return s + ", in use"
}

func diskContent(d lpmos.Disk) (found []string) {
	say := func(where string, f *lpmos.Filesystem) {
		s := where + plain(f.Type)
		if f.Label != "" {
			s += " “" + plain(f.Label) + "”"
		}
		if f.OS != "" {
			s += ", " + plain(f.OS)
		}
		if f.Hostname != "" {
			s += " of host " + plain(f.Hostname)
		}
		found = append(found, s)
	}
	if f := d.Content.Filesystem; f != nil {
		say("whole disk: ", f)
	}
	for _, q := range d.Content.Partitions {
		where := fmt.Sprintf("partition %d, %s: ", q.Number, lpmos.FormatBytes(q.SizeBytes))
		if q.Filesystem != nil {
			say(where, q.Filesystem)
		} else {
			found = append(found, where+plain(q.Name))
		}
	}
	if d.ContentUnknownBecause != "" {
		found = append(found, "could not be read: "+plain(d.ContentUnknownBecause))
	}
	return found
}

// statusCell is a status, and what of a completed task is not as planned.
func statusCell(t lpmos.Task) cell {
	if len(t.Drift) == 0 {
		return cell{plain(string(t.Status)), statusTone(t.Status)}
	}
	return cell{plain(string(t.Status) + " (drift: " + lpmos.DriftNames(t.Drift) + ")"), attention}
}

func (a *app) taskPlan() *cobra.Command {
	var files bool
	cmd := a.one("plan", "Show what would be erased and written", func(ctx context.Context, c *apiclient.Client, id string) error {
		t, err := c.Task(ctx, id)
		if err != nil {
			return err
		}
		if t.Plan == nil {
			return hinted{fmt.Errorf("task %s has no plan yet: its machine has not reported: %w", id[:8], lpmos.ErrNotFound), "boot the machine from the network, and see lpmos task watch " + id[:8]}
		}
		if files {
			return a.print(t.Plan.Effect.Files, func(w *tabwriter.Writer, _ bool) { writeFiles(w, t.Plan.Effect.Files) })
		}
		return a.show(t.Plan, func(bool) *table { return planTable(t) })
	})
	cmd.Flags().BoolVar(&files, "files", false, "show the files that are written after the image, with their text")
	cmd.Long = `Plan shows what approving would do: the disk that is erased and what was found on
it, the disks that are kept, what is written, and the digest that binds an
approval to just this plan. With --files it prints the files that are written after
the image, with mode, digest and text: what stands there is what is written.`
	cmd.Example = `  lpmos task plan web-01
  lpmos task plan web-01 --files
  lpmos task plan web-01 -o json | jq -r .plan_digest`
	return cmd
}

// permitWait says why an approved machine may not write yet.
func permitWait(w lpmos.PermitWait) string {
	switch w.Reason {
	case lpmos.WaitStop:
		return "the emergency stop stands: lpmos resume"
	case lpmos.WaitLock:
		return "the machine is locked: lpmos machine unlock MAC"
	}
	return fmt.Sprintf("for a permit: %d before it", w.Before)
}

func planTable(t lpmos.Task) *table {
	p, v := t.Plan, &table{}
	if p.Problem != "" {
		v.empty = "This plan cannot be carried out: " + clip(plain(p.Problem), 1000)
		return v
	}
	machine := t.TargetMAC.String()
	if h := t.Hardware; h != nil && h.System.Serial != "" {
		machine += ", serial " + plain(h.System.Serial)
	}
	v.field("machine", machine)
	if k := t.AgentKey; k != nil {
		v.field("key words", k.Words+" (as on the machine's console)")
	}
	model := map[lpmos.DiskRef]string{}
	for _, d := range p.Observed {
		if m := plain(d.Model); m != "" {
			model[d.Disk] = ", " + m
		}
	}
	for _, d := range p.Effect.Disks() {
		v.add(cell{"ERASES", bad}, cell{plain(d.Disk.String()) + model[d.Disk], strong})
	}
	if len(p.Hazards) == 0 {
		v.add(txt(""), txt("nothing was found on it"))
	}
	for _, h := range p.Hazards {
		v.add(txt(""), cell{plain(h), bad})
	}
	for _, d := range p.Observed {
		if !p.Effect.Writes(d.Disk) {
			v.add(cell{"keeps", good}, txt(plain(d.Disk.String())+model[d.Disk]))
		}
	}
	planWrites(v, &p.Effect)
	v.field("image", plain(fmt.Sprintf("%s %s %s, %s", p.Effect.Image.OS, p.Effect.Image.Version, p.Effect.Image.Arch, p.Effect.Image.Digest)))
	v.field("host", fmt.Sprintf("%s, %s boot, %s", plain(p.Effect.Hostname), plain(p.Effect.BootMode), count(len(p.Effect.SSHKeys), "SSH key", "SSH keys")))
	setupFields(v, p.Effect.System)
	v.field("digest", plain(p.Digest))
	return v
}

// planWrites lists partitions, arrays and volumes. Where there are several disks
// each partition says on which it is.
func planWrites(v *table, e *lpmos.Effect) {
	line := func(words ...string) {
		words = slices.DeleteFunc(words, func(s string) bool { return s == "" })
		v.field("writes", plain(strings.Join(words, " ")))
	}
	if e.Method == lpmos.FormatDisk {
		line("the whole disk, with the image's own partitions")
	}
	if e.Method == lpmos.FormatInstaller {
		line("the whole disk, as the installer divides it by its answers")
	}
	on := map[string]string{} // by PartUUID
	for _, d := range e.Disks() {
		disk := ""
		if len(e.Also) > 0 {
			disk = "on " + cmp.Or(d.Disk.Serial, d.Disk.WWN, d.Disk.Path)
		}
		for _, q := range d.Partitions {
			on[q.PartUUID] = strings.TrimSpace(fmt.Sprintf("partition %d %s", q.Number, disk))
			line(fmt.Sprintf("%d %s, %s", q.Number, q.Role, lpmos.FormatBytes(q.SizeBytes)), q.FS, q.Mount, disk)
		}
	}
	names := func(ids []string) string {
		var all []string
		for _, id := range ids {
			all = append(all, cmp.Or(on[id], id))
		}
		return "(" + strings.Join(all, ", ") + ")"
	}
	for _, a := range e.Arrays {
		line("RAID 1 "+a.Name+", "+lpmos.FormatBytes(a.SizeBytes), a.FS, a.Mount, names(a.Members))
		on[a.Name] = "array " + a.Name
	}
	for _, c := range e.Crypts {
		line("LUKS2 "+c.Name+", "+lpmos.FormatBytes(c.SizeBytes), c.FS, c.Mount, names([]string{c.On}))
		on[c.Name] = "container " + c.Name
	}
	for _, g := range e.Groups {
		for _, l := range g.Volumes {
			line("volume "+g.Name+"/"+l.Name+", "+lpmos.FormatBytes(l.SizeBytes), l.FS, l.Mount, names(g.On))
		}
	}
}

func (a *app) taskEvents() *cobra.Command {
	cmd := a.one("events", "Show everything that happened to a task", func(ctx context.Context, c *apiclient.Client, id string) error {
		events, err := c.Events(ctx, id)
		if err != nil {
			return err
		}
		return a.show(events, func(bool) *table { return eventTable(events) })
	})
	cmd.Long = `Events shows each change of a task's status, oldest first and without gaps: when,
after how long, to what, why, and who or what caused it.`
	cmd.Example = "  lpmos task events web-01"
	return cmd
}

func eventTable(events []lpmos.Event) *table {
	v := &table{head: []string{"#", "TIME", "AFTER", "STATUS", "CAUSE", "BY", "MESSAGE"}, empty: "Nothing happened yet."}
	var last time.Time
	for _, e := range events {
		gap := ""
		if !last.IsZero() {
			gap = e.At.Sub(last).Round(100 * time.Millisecond).String()
		}
		last = e.At
		v.add(txt(fmt.Sprint(e.Seq)), txt(e.At.Local().Format(time.DateTime)), cell{gap, dim}, cell{plain(string(e.To)), statusTone(e.To)},
			txt(string(e.Cause)), txt(e.By), txt(e.Message))
	}
	return v
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
		if !follow && a.structured() {
			return a.machineReadable(lines)
		}
		if err := a.logLines(lines); err != nil || !follow || !t.Status.Live() {
			return err
		}
		return a.followLogs(ctx, c, t, lines)
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the task ends")
	cmd.Long = `Logs prints what is kept of the log that the agent wrote on the machine, 256 KiB of
each attempt. With --follow it goes on until the task ends.`
	cmd.Example = `  lpmos task logs web-01
  lpmos task logs -f web-01 | grep -i error`
	return cmd
}

// logLines prints lines as they come.
func (a *app) logLines(lines []string) error {
	for _, l := range lines {
		var err error
		if a.structured() {
			err = a.each(l)
		} else {
			_, err = fmt.Fprintln(a.out, plain(l))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lastLines is how long the last lines of a log may come after its task ended:
// regions write them every two seconds.
const lastLines = 3 * time.Second

// followLogs prints the lines that come, each once, also when the connection
// was lost for longer than the server remembers.
func (a *app) followLogs(ctx context.Context, c *apiclient.Client, t lpmos.Task, printed []string) error {
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := false
	end := func() {
		if !ended {
			ended = true
			timer := time.AfterFunc(lastLines, cancel)
			context.AfterFunc(watch, func() { timer.Stop() })
		}
	}
	reread := func() error {
		all, err := c.Logs(ctx, t.ID)
		if err != nil {
			return err
		}
		more := since(printed, all)
		printed = all
		return a.logLines(more)
	}
	for m, err := range c.Watch(watch, t.ID, t.Rev) {
		if err != nil {
			return err
		}
		if err := a.logLines(m.Lines); err != nil {
			return err
		}
		printed = append(printed, m.Lines...)
		switch {
		case m.Type == "status" && !lpmos.Status(m.Status).Live():
			end()
		case m.Type == "resync":
			now, err := c.Task(ctx, t.ID)
			if err != nil {
				return err
			}
			if !now.Status.Live() {
				end()
			}
			if err := reread(); err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return reread()
}

// since is what all has after the lines that were printed, of which the oldest
// may be gone from it.
func since(printed, all []string) []string {
	for n := min(len(printed), len(all)); n > 0; n-- {
		if slices.Equal(printed[len(printed)-n:], all[:n]) {
			return all[n:]
		}
	}
	return all
}
