package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// outcome is what became of one of several tasks.
type outcome struct {
	TaskID string              `json:"task_id"`
	Task   *apiclient.TaskView `json:"task,omitempty"`  // as it is now
	Error  string              `json:"error,omitempty"` // why nothing was done
	Status lpmos.Status        `json:"status,omitempty"`
	err    error
	said   string
}

// many is a command for one task or several: it does all it can, says for each
// what became of it, and its exit code speaks for all. eligible are the
// statuses that completion offers.
func (a *app) many(use, short string, eligible []lpmos.Status, run func(ctx context.Context, c *apiclient.Client, ids []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " TASK…", Short: short, Args: atLeast(1), ValidArgsFunction: a.completeTasks(eligible),
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			var ids []string
			for _, arg := range args { // all of them, before anything is done
				id, err := find(ctx, c, arg)
				if err != nil {
					return err
				}
				if !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			}
			return run(ctx, c, ids)
		}),
	}
}

// eachTask does something to each task and tells what became of it.
func (a *app) eachTask(ctx context.Context, ids []string, done string, wait waiting, act func(id string) (*apiclient.TaskView, string, error)) ([]outcome, error) {
	var out []outcome
	for _, id := range ids {
		if ctx.Err() != nil {
			break // stopped: what is told below was done, the rest was not
		}
		t, said, err := act(id)
		o := outcome{TaskID: id, err: err, said: said}
		switch {
		case err != nil:
			o.Error = err.Error()
		case t != nil:
			o.Task, o.Status = t, t.Status
		}
		out = append(out, o)
	}
	return out, a.tell(out, len(ids), done, wait)
}

// tell prints outcomes. One task alone is told as itself.
func (a *app) tell(out []outcome, asked int, done string, wait waiting) error {
	structured := a.structured()
	if asked == 1 && len(out) == 1 {
		o := out[0]
		switch {
		case o.err != nil:
			return o.err
		case structured && o.Task != nil:
			return a.machineReadable(wait.first(o.Task))
		}
	}
	if structured {
		if err := a.machineReadable(wait.first(map[string]any{"results": out})); err != nil {
			return err
		}
	}
	var failed []error
	for _, o := range out {
		host := ""
		if o.Task != nil && o.Task.Hostname != "" {
			host = " " + clip(plain(o.Task.Hostname), maxCell)
		}
		if o.err != nil {
			failed = append(failed, o.err)
			a.complain(fmt.Errorf("task %s: %w", o.TaskID[:8], o.err))
			continue
		}
		if !structured {
			fmt.Fprintf(a.out, "task %s%s: %s\n", o.TaskID[:8], host, o.said)
		}
	}
	if asked > 1 && !structured {
		fmt.Fprintf(a.out, "%d of %d %s\n", len(out)-len(failed), asked, done)
	}
	if len(out) < asked {
		return errInterrupted
	}
	return allOf(failed)
}

// allOf is the error of a command for several tasks whose failures were told:
// their common exit code, or 1.
func allOf(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	code := exitCode(errs[0])
	for _, err := range errs[1:] {
		if exitCode(err) != code {
			code = ExitFailed
		}
	}
	return quietError(code)
}

// confirm makes sure that n tasks are meant: a person types the number, a
// program gives it as --count. One task needs no number.
func (a *app) confirm(n, given int, question string) error {
	switch {
	case given == n, n == 1 && given == 0:
		return nil
	case given != 0:
		return usageError{fmt.Errorf("--count says %d, but %d would be meant; nothing was done", given, n)}
	case !a.asks:
		return usageError{fmt.Errorf("--count is missing: %s; say --count %d to confirm", count(n, "task is meant", "tasks are meant"), n)}
	}
	if answer := a.ask(fmt.Sprintf("%s Type %d: ", question, n)); answer != strconv.Itoa(n) {
		return errors.New("that is not the number; nothing was done")
	}
	return nil
}

// ask puts a question on standard error, so that what is piped on stays clean.
func (a *app) ask(question string) string {
	fmt.Fprint(a.err, question)
	r, ok := a.in.(*bufio.Reader)
	if !ok {
		r = bufio.NewReader(a.in)
		a.in = r
	}
	line, err := r.ReadString('\n')
	if err != nil {
		fmt.Fprintln(a.err)
	}
	return strings.TrimSpace(line)
}

type approving struct {
	plans, serials []string
	notes          string
	keyWords       string // as the machine's console shows them
	count          int
	wait           waiting
}

func (a *app) taskApprove() *cobra.Command {
	var o approving
	cmd := a.many("approve", "Approve plans: their disks are erased from then on", []lpmos.Status{lpmos.AwaitingApproval}, func(ctx context.Context, c *apiclient.Client, ids []string) error {
		return a.approve(ctx, c, ids, o)
	})
	cmd.Long = `Approve lets a machine be installed. What would be erased and written is shown
first, and the approval is bound to the digest of just that: if hardware, disks or
plan change before, nothing is approved.

On a terminal you are asked: type yes, or the number of machines when there are
several, and the last four characters of the serial number of each disk on which
data was found. In a script, say the same with --plan, --count and --serial-end.
Only tasks that wait for approval are approved; for others it is said why not.
Where the approval policy (lpmos policy show) wants several approvers, yours is kept
until the others agree; where it wants to know who you are, you are asked for your
password.`
	cmd.Example = `  lpmos task approve web-01
  lpmos task approve web-01 web-02 web-03 --wait
  lpmos task approve web-01 --plan "$(lpmos task plan web-01 -o json | jq -r .plan_digest)"`
	f := cmd.Flags()
	f.StringVar(&o.notes, "notes", "", "why")
	f.StringSliceVar(&o.plans, "plan", nil, "digest of the plan that was looked at, once for each task (default: show it and ask)")
	f.StringSliceVar(&o.serials, "serial-end", nil, "last 4 characters of the serial number of the disk to erase, for each where data was found on it")
	f.StringVar(&o.keyWords, "key-words", "", "the key words as the machine's console shows them: the approval is then for this start of the machine alone")
	f.IntVar(&o.count, "count", 0, "how many are meant, when there are several")
	o.wait.flags(cmd)
	return cmd
}

func (a *app) approve(ctx context.Context, c *apiclient.Client, ids []string, o approving) error {
	var tasks []lpmos.Task
	var asked []string // their ids
	var refused []outcome
	for _, id := range ids {
		t, err := c.Task(ctx, id)
		if err == nil {
			err = approvable(t)
		}
		if err != nil {
			refused = append(refused, outcome{TaskID: id, Error: err.Error(), err: err})
			continue
		}
		tasks, asked = append(tasks, t), append(asked, id)
	}
	if len(tasks) == 0 {
		return a.tell(refused, len(ids), "approved", o.wait)
	}
	digests := o.plans
	if len(digests) == 0 {
		if !a.asks {
			return usageError{fmt.Errorf("--plan is missing: look at lpmos task plan %s and give the digest it ends with", tasks[0].ID[:8])}
		}
		if err := a.preview(tasks, refused, o.count); err != nil {
			return err
		}
		for _, t := range tasks {
			digests = append(digests, t.Plan.Digest)
		}
	} else {
		// Several are told apart by their own digests; for a single task whatever
		// was given is sent, and the control plane says what changed.
		for _, t := range tasks {
			if len(ids) > 1 && !slices.Contains(digests, t.Plan.Digest) {
				return usageError{fmt.Errorf("no --plan is the digest of task %s as it is now (%s): look at lpmos task plan %s; nothing was approved", t.ID[:8], plain(t.Plan.Digest), t.ID[:8])}
			}
		}
		if err := a.confirm(len(tasks), o.count, "Approve them all?"); err != nil {
			return err
		}
	}
	if err := a.checkSerials(tasks, o.serials); err != nil {
		return err
	}
	if o.keyWords != "" {
		said := strings.Join(strings.Fields(strings.ToLower(o.keyWords)), " ")
		switch {
		case len(ids) > 1:
			return usageError{errors.New("--key-words are of one machine: approve the tasks one by one; nothing was approved")}
		case tasks[0].AgentKey == nil:
			return errors.New("no agent answers for this machine now; nothing was approved")
		case said != tasks[0].AgentKey.Words:
			return fmt.Errorf("the key words are not those of the agent that answers (%s): it started again since, or another machine answers for it; nothing was approved", tasks[0].AgentKey.Words)
		}
	}
	password := "" // asked for once, where the policy wants it
	out, err := a.eachTask(ctx, asked, "approved", o.wait, func(id string) (*apiclient.TaskView, string, error) {
		was := tasks[slices.Index(asked, id)]
		digest := was.Plan.Digest
		if len(ids) == 1 {
			digest = digests[0]
		}
		key := ""
		if o.keyWords != "" {
			key = was.AgentKey.Fingerprint
		}
		t, err := c.Approve(ctx, id, digest, o.notes, key, password)
		if p, ok := errors.AsType[*apiclient.Problem](err); ok && p.Reauth && password == "" && a.asks {
			if password, err = a.prompt("The approval policy asks who you are. Your password: ", true); err == nil {
				t, err = c.Approve(ctx, id, digest, o.notes, key, password)
			}
		}
		if p, ok := errors.AsType[*apiclient.Problem](err); ok && p.Field == "password" {
			password = "" // sent with the next task again, it would count as one more wrong one
		}
		said := "approved; follow it with: lpmos task watch " + id[:8]
		if t.Status == lpmos.AwaitingApproval && t.ApprovalNeeds != nil {
			said = "your approval is kept (" + plain(api.Given(*t.ApprovalNeeds, t.Approvals)) + "); another approver has to agree before anything is erased"
		}
		return &t, said, err
	})
	if len(refused) > 0 {
		var errs []error
		if err != nil {
			errs = append(errs, err)
		}
		for _, r := range refused {
			a.complain(fmt.Errorf("task %s: %w", r.TaskID[:8], r.err))
			errs = append(errs, r.err)
		}
		err = allOf(errs)
	}
	if !o.wait.wait {
		return err
	}
	var begun []string
	for _, r := range out {
		if r.err == nil && r.Status != lpmos.AwaitingApproval {
			begun = append(begun, r.TaskID)
		}
	}
	if len(begun) == 0 {
		return err
	}
	return errors.Join(a.await(ctx, c, begun, o.wait), err)
}

func idsOf(tasks []apiclient.TaskView) []string {
	ids := []string{}
	for _, t := range tasks {
		ids = append(ids, t.ID)
	}
	return ids
}

// approvable says why a task cannot be approved now, or nil.
func approvable(t lpmos.Task) error {
	switch {
	case t.Plan == nil && t.Status == lpmos.Pending:
		return &lpmos.ConflictError{Status: t.Status, Problem: "the task has no plan yet: its machine has not reported"}
	case t.Plan != nil && t.Plan.Problem != "":
		return &lpmos.ConflictError{Status: t.Status, Problem: "its plan cannot be carried out: " + t.Plan.Problem}
	}
	if _, err := t.Status.Next(lpmos.CauseApproved); err != nil {
		return err
	}
	if t.Plan == nil {
		return &lpmos.ConflictError{Status: t.Status, Problem: "the task has no plan yet: its machine has not reported"}
	}
	return nil
}

// preview shows what approving would do and asks whether that is meant. It is a
// part of the question.
func (a *app) preview(tasks []lpmos.Task, refused []outcome, given int) error {
	w := a.aside()
	on := terminalOf(w)
	if len(tasks) == 1 {
		fmt.Fprint(w, planTable(tasks[0]).text(on))
	} else {
		v := &table{head: []string{"TASK", "HOST", "MACHINE", "ERASES", "FOUND ON IT", "INSTALLS"}}
		for _, t := range tasks {
			serial := t.TargetMAC.String()
			if t.Hardware != nil && t.Hardware.System.Serial != "" {
				serial = t.Hardware.System.Serial
			}
			found := cell{"nothing", dim}
			if t.Plan.ErasesData() {
				found = cell{clip(plain(strings.Join(t.Plan.Hazards, "; ")), maxCell), bad}
			}
			e := t.Plan.Effect
			v.add(txt(t.ID[:8]), txt(t.Hostname), txt(serial), txt(e.Target.String()), found, txt(e.Image.OS+" "+e.Image.Version))
		}
		fmt.Fprint(w, v.text(on))
	}
	for _, r := range refused {
		fmt.Fprintf(w, "not %s: %s\n", r.TaskID[:8], clip(plain(r.Error), 400))
	}
	fmt.Fprintln(w)
	if len(tasks) > 1 {
		return a.confirm(len(tasks), given, fmt.Sprintf("Approve, and erase these %d disks?", len(tasks)))
	}
	var erased []string
	for _, d := range tasks[0].Plan.Effect.Disks() {
		erased = append(erased, plain(d.Disk.String()))
	}
	if a.ask(fmt.Sprintf("Approve, and erase %s? Type yes: ", clip(strings.Join(erased, " and "), max(maxCell, 200)))) != "yes" {
		return errors.New("nothing was approved")
	}
	return nil
}

// checkSerials makes sure that for each disk on which data was found somebody
// looked at its serial number.
func (a *app) checkSerials(tasks []lpmos.Task, given []string) error {
	for _, t := range tasks {
		if !t.Plan.ErasesData() {
			continue
		}
		found := clip(plain(strings.Join(t.Plan.Hazards, "; ")), 1000)
		for _, d := range t.Plan.Erased() {
			end := api.SerialEnd(d.Disk)
			if slices.ContainsFunc(given, func(s string) bool { return strings.EqualFold(s, end) }) {
				continue
			}
			if !a.asks || len(given) > 0 {
				return usageError{fmt.Errorf("data was found on the disk of task %s (%s): give the last characters of its serial number as --serial-end; nothing was approved", t.ID[:8], found)}
			}
			typed := a.ask(fmt.Sprintf("%s holds data (%s).\nType the last four characters of its serial number: ", clip(plain(d.Disk.String()), maxCell), found))
			if !strings.EqualFold(typed, end) {
				return errors.New("that is not how the serial number ends; nothing was approved")
			}
		}
	}
	return nil
}

func (a *app) taskReject() *cobra.Command {
	var notes string
	cmd := a.many("reject", "Reject plans: nothing is erased", []lpmos.Status{lpmos.AwaitingApproval}, func(ctx context.Context, c *apiclient.Client, ids []string) error {
		_, err := a.eachTask(ctx, ids, "rejected", waiting{}, func(id string) (*apiclient.TaskView, string, error) {
			t, err := c.Decide(ctx, id, false, "", notes)
			return &t, "rejected; nothing was erased", err
		})
		return err
	})
	cmd.Long = "Reject ends tasks that wait for approval. Nothing is erased, and the machines boot their own disks."
	cmd.Example = "  lpmos task reject web-01 --notes 'wrong rack'"
	cmd.Flags().StringVar(&notes, "notes", "", "why")
	return cmd
}

func (a *app) taskCancel() *cobra.Command {
	var reason string
	cmd := a.many("cancel", "Cancel tasks that have not begun to write", []lpmos.Status{lpmos.Pending, lpmos.AwaitingApproval, lpmos.Approved}, func(ctx context.Context, c *apiclient.Client, ids []string) error {
		_, err := a.eachTask(ctx, ids, "canceled", waiting{}, func(id string) (*apiclient.TaskView, string, error) {
			t, err := c.Cancel(ctx, id, reason)
			return &t, "canceled; nothing was erased", err
		})
		return err
	})
	cmd.Long = `Cancel ends tasks of which nothing has been written yet. An install that has begun
finishes or fails by itself.`
	cmd.Example = `  lpmos task cancel web-01 --reason 'machine was returned'
  lpmos task list -q 'status:pending before:3d' --ids | xargs lpmos task cancel`
	cmd.Flags().StringVar(&reason, "reason", "", "why")
	return cmd
}

func (a *app) taskRetry() *cobra.Command {
	var wait waiting
	cmd := a.many("retry", "Begin failed tasks anew", []lpmos.Status{lpmos.Failed}, func(ctx context.Context, c *apiclient.Client, ids []string) error {
		out, err := a.eachTask(ctx, ids, "begun anew", wait, func(id string) (*apiclient.TaskView, string, error) {
			t, err := c.Retry(ctx, id)
			return &t, fmt.Sprintf("attempt %d begins when the machine boots from the network", t.Attempt), err
		})
		if !wait.wait {
			return err
		}
		var begun []string
		for _, o := range out {
			if o.err == nil {
				begun = append(begun, o.TaskID)
			}
		}
		if len(begun) == 0 {
			return err
		}
		return errors.Join(a.await(ctx, c, begun, wait), err)
	})
	cmd.Long = "Retry begins failed tasks again with the next attempt. The approval is void: a\nperson decides anew on what is found then."
	cmd.Example = `  lpmos task retry web-01
  lpmos task list -q 'status:failed region:dc1' --ids | xargs lpmos task retry`
	wait.flags(cmd)
	return cmd
}

func (a *app) taskDelete() *cobra.Command {
	var n int
	ended := []lpmos.Status{lpmos.Completed, lpmos.Failed, lpmos.Rejected, lpmos.Canceled}
	cmd := a.many("delete", "Forget tasks that have ended", ended, func(ctx context.Context, c *apiclient.Client, ids []string) error {
		if err := a.confirm(len(ids), n, fmt.Sprintf("Forget %d tasks and all that happened to them?", len(ids))); err != nil {
			return err
		}
		_, err := a.eachTask(ctx, ids, "deleted", waiting{}, func(id string) (*apiclient.TaskView, string, error) {
			return nil, "deleted", c.Delete(ctx, id)
		})
		return err
	})
	cmd.Long = `Delete forgets tasks that have ended, with their logs and history. The machines are
not touched. Several are deleted only when their number is confirmed, typed on a
terminal or given as --count.`
	cmd.Example = `  lpmos task delete 550e8400
  lpmos task delete 550e8400 6fa459ea --count 2`
	cmd.Flags().IntVar(&n, "count", 0, "how many are meant, when there are several")
	return cmd
}
