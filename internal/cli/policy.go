package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "What it takes to approve: four eyes, and who you are",
		Long: `Policy is what it takes to approve a plan beside the role approver: two people, or
another than who asked for the task, or a password that was typed a short while
ago. Its rules concern regions, labels of machines, or plans that erase data; where
several concern a task, it takes what the strictest of them says. A rule holds for
all decisions from then on; what is approved stays approved.`,
		Example: `  lpmos policy show
  lpmos policy add --regions dc1 --approvers 2
  lpmos policy label production 52:54:00:12:34:56
  lpmos policy add --labels production --not-creator --reauth-minutes 5`,
	}
	cmd.AddCommand(a.policyShow(), a.policyAdd(), a.policyRemove(), a.policyLabel())
	return cmd
}

func (a *app) policyShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the rules and labels", Args: exactly(0),
		Long:    "Show lists the rules by number, and the machines of each label.",
		Example: "  lpmos policy show -o yaml",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
			p, _, err := c.ApprovalPolicy(ctx)
			if err != nil {
				return err
			}
			return a.show(p, func(bool) *table { return policyTable(p) })
		}),
	}
}

// changePolicy reads the policy, changes it and shows what it is then. What
// somebody else changed meanwhile is not undone: that is a conflict.
func (a *app) changePolicy(ctx context.Context, c *apiclient.Client, change func(*lpmos.ApprovalPolicy) error) error {
	p, etag, err := c.ApprovalPolicy(ctx)
	if err == nil {
		err = change(&p)
	}
	if err == nil {
		p, err = c.SetApprovalPolicy(ctx, p, etag)
	}
	if err != nil {
		return err
	}
	return a.show(p, func(bool) *table { return policyTable(p) })
}

func (a *app) policyAdd() *cobra.Command {
	var r lpmos.ApprovalRule
	cmd := &cobra.Command{
		Use: "add", Short: "Add a rule", Args: exactly(0),
		Long: `Add makes a rule. Without --regions, --labels and --erases-data it concerns every
task. It has to ask for something.`,
		Example: `  lpmos policy add --approvers 2 --erases-data
  lpmos policy add --regions dc1,dc2 --not-creator --reauth-minutes 5`,
	}
	f := cmd.Flags()
	f.StringSliceVar(&r.Regions, "regions", nil, "only tasks of these regions")
	f.StringSliceVar(&r.Labels, "labels", nil, "only machines with one of these labels")
	f.BoolVar(&r.ErasesData, "erases-data", false, "only plans that erase data which was found")
	f.IntVar(&r.Approvers, "approvers", 1, "how many different people have to approve")
	f.BoolVar(&r.NotCreator, "not-creator", false, "who asked for the task does not approve it")
	f.IntVar(&r.ReauthMinutes, "reauth-minutes", 0, "who approves typed their password within so many minutes")
	f.BoolVar(&r.AllowTokens, "allow-tokens", false, "with --reauth-minutes: an API token may approve without the password")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		return a.changePolicy(ctx, c, func(p *lpmos.ApprovalPolicy) error {
			p.Rules = append(p.Rules, r)
			return nil
		})
	})
	return cmd
}

func (a *app) policyRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove RULE", Short: "Take a rule away", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Remove takes away a rule by the number that `lpmos policy show` gives it.",
		Example: "  lpmos policy remove 1",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			return a.changePolicy(ctx, c, func(p *lpmos.ApprovalPolicy) error {
				n, err := strconv.Atoi(args[0])
				if err != nil || n < 1 || n > len(p.Rules) {
					return usageError{fmt.Errorf("there is no rule %s: there are %d (see lpmos policy show)", plain(args[0]), len(p.Rules))}
				}
				p.Rules = slices.Delete(p.Rules, n-1, n)
				return nil
			})
		}),
	}
}

func (a *app) policyLabel() *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use: "label NAME MACHINE…", Short: "Give machines a label that rules speak of", Args: atLeast(2), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Label gives machines a label, or takes it away. A machine is named by any of its
MAC addresses or by its UUID.`,
		Example: `  lpmos policy label production 52:54:00:12:34:56 52:54:00:12:34:57
  lpmos policy label production 52:54:00:12:34:56 --remove`,
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "take the label away from them")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		return a.changePolicy(ctx, c, func(p *lpmos.ApprovalPolicy) error {
			name := args[0]
			named, err := lpmos.ApprovalPolicy{Labels: map[string][]string{name: args[1:]}}.Normalize()
			if err != nil {
				return err
			}
			list := slices.DeleteFunc(slices.Clone(p.Labels[name]), func(m string) bool { return slices.Contains(named.Labels[name], m) })
			if !remove {
				list = append(list, named.Labels[name]...)
			}
			labels := map[string][]string{}
			maps.Copy(labels, p.Labels)
			if labels[name] = list; len(list) == 0 {
				delete(labels, name)
			}
			p.Labels = labels
			return nil
		})
	})
	return cmd
}

func policyTable(p lpmos.ApprovalPolicy) *table {
	v := &table{}
	if len(p.Rules) == 0 {
		v.field("rules", "none: one approver decides")
	}
	for i, r := range p.Rules {
		v.field(fmt.Sprintf("rule %d", i+1), ruleConcerns(r)+": "+ruleAsks(r))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Labels)) {
		v.field("label "+plain(name), clip(strings.Join(p.Labels[name], ", "), 400))
	}
	return v
}

func ruleConcerns(r lpmos.ApprovalRule) string {
	var parts []string
	if len(r.Regions) > 0 {
		parts = append(parts, "region "+strings.Join(r.Regions, " or "))
	}
	if len(r.Labels) > 0 {
		parts = append(parts, "label "+strings.Join(r.Labels, " or "))
	}
	if r.ErasesData {
		parts = append(parts, "data is erased")
	}
	if len(parts) == 0 {
		return "every task"
	}
	return strings.Join(parts, ", ")
}

func ruleAsks(r lpmos.ApprovalRule) string {
	var parts []string
	if r.Approvers > 1 {
		parts = append(parts, fmt.Sprintf("%d approvers", r.Approvers))
	}
	if r.NotCreator {
		parts = append(parts, "not who asked for it")
	}
	if r.ReauthMinutes > 0 {
		s := fmt.Sprintf("password within %d min", r.ReauthMinutes)
		if r.AllowTokens {
			s += " (not of API tokens)"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ", ")
}

// approvalNeeds says what the approval of a task takes, and how far it is.
func approvalNeeds(t lpmos.Task, n lpmos.ApprovalNeeds) string {
	var parts []string
	if n.Approvers > 1 {
		parts = append(parts, api.Given(n, t.Standing()))
	}
	if n.NotCreator {
		parts = append(parts, "by another than "+t.CreatedBy)
	}
	if n.ReauthMinutes > 0 {
		parts = append(parts, fmt.Sprintf("with a password typed within %d min", n.ReauthMinutes))
	}
	return strings.Join(parts, "; ")
}
