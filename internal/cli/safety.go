package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

func (a *app) stopCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "stop", Short: "Emergency stop: no machine begins to erase its disk", Args: exactly(0),
		Long: `Stop holds every machine of every region that has not begun to write, whatever was
approved, from the moment this command returns. Installs that have begun go on:
stopping them would only leave broken disks. lpmos resume ends it.`,
		Example: `  lpmos stop --reason "wrong rack"`,
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
			s, err := c.Stop(ctx, reason)
			if err != nil {
				return err
			}
			return a.say(s, "stopped: no machine begins to write until `lpmos resume`")
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for everybody who looks")
	return cmd
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "End the emergency stop", Args: exactly(0),
		Long:    "Resume lets approved machines begin to write again, the one that waited longest\nfirst.",
		Example: "  lpmos resume",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
			if err := c.Resume(ctx); err != nil {
				return err
			}
			return a.say(map[string]bool{"stopped": false}, "the emergency stop has ended")
		}),
	}
}

func (a *app) limitsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "limits", Short: "Bound what a mistake can destroy",
		Long: `Limits are how many machines of one region may begin to write in a minute, and
machines that no task is ever created for, whoever asks. The hosts LPMOS itself
runs on are protected without being listed.`,
		Example: "  lpmos limits show\n  lpmos limits set --permits-per-minute 50",
	}
	show := &cobra.Command{
		Use: "show", Short: "Show the limits", Args: exactly(0), Example: "  lpmos limits show",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
			l, _, err := c.Limits(ctx)
			if err != nil {
				return err
			}
			return a.show(l, func(bool) *table { return limitsTable(l) })
		}),
	}
	var permits int
	var protect, release []string
	set := &cobra.Command{
		Use: "set", Short: "Change the limits", Args: exactly(0),
		Long: `Set changes what its flags name and leaves the rest. A machine is named by a MAC
address or by its UUID.`,
		Example: "  lpmos limits set --protect 52:54:00:12:34:56",
	}
	f := set.Flags()
	f.IntVar(&permits, "permits-per-minute", 0, "machines of one region that may begin to write in a minute; 0 for the default")
	f.StringSliceVar(&protect, "protect", nil, "machines no task is ever created for")
	f.StringSliceVar(&release, "release", nil, "machines to take off that list")
	set.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		if !f.Changed("permits-per-minute") && len(protect)+len(release) == 0 {
			return usageError{fmt.Errorf("nothing to change: give --permits-per-minute, --protect or --release")}
		}
		l, etag, err := c.Limits(ctx)
		if err != nil {
			return err
		}
		if f.Changed("permits-per-minute") {
			l.PermitsPerMinute = permits
		}
		gone, err := lpmos.Limits{Protected: release}.Normalize()
		if err != nil {
			return err
		}
		kept := protect
		for _, p := range l.Protected {
			if !slices.Contains(gone.Protected, p) {
				kept = append(kept, p)
			}
		}
		l.Protected = kept
		if l, err = c.SetLimits(ctx, l, etag); err != nil {
			return err
		}
		return a.show(l, func(bool) *table { return limitsTable(l) })
	})
	cmd.AddCommand(show, set)
	return cmd
}

func limitsTable(l lpmos.Limits) *table {
	v := &table{}
	n := fmt.Sprint(l.PermitsPerMinute)
	if l.PermitsPerMinute == 0 {
		n = fmt.Sprintf("%d (the default)", lpmos.DefaultPermitsPerMinute)
	}
	v.field("permits a minute", n)
	if len(l.Protected) == 0 {
		v.field("protected", "none listed")
	}
	for _, p := range l.Protected {
		v.field("protected", p)
	}
	return v
}

func (a *app) machineLock() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "lock MACHINE", Short: "Keep a machine as it is", Args: exactly(1), ValidArgsFunction: a.completeMachines,
		Long: `Lock keeps a machine as it is: no task is created for it, and none that exists may
begin to write, until lpmos machine unlock. It holds for all addresses that are
known of the machine.`,
		Example: `  lpmos machine lock 52:54:00:12:34:56 --reason "holds the payroll"`,
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			mac, err := findMachine(ctx, c, args[0])
			if err != nil {
				return err
			}
			if strings.TrimSpace(reason) == "" {
				return usageError{fmt.Errorf("--reason is missing: whoever meets the lock wants to know why")}
			}
			l, err := c.Lock(ctx, mac, reason)
			if err != nil {
				return err
			}
			return a.say(l, "machine "+mac.String()+" is locked")
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever meets the lock")
	return cmd
}

func (a *app) machineUnlock() *cobra.Command {
	return &cobra.Command{
		Use: "unlock MACHINE", Short: "Take a machine's lock away", Args: exactly(1), ValidArgsFunction: a.completeMachines,
		Example: "  lpmos machine unlock web-01",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			mac, err := findMachine(ctx, c, args[0])
			if err != nil {
				return err
			}
			if err := c.Unlock(ctx, mac); err != nil {
				return err
			}
			return a.say(map[string]any{"mac": mac, "locked": false}, "machine "+mac.String()+" is not locked")
		}),
	}
}

func (a *app) machineForgetTPM() *cobra.Command {
	return &cobra.Command{
		Use: "forget-tpm MACHINE", Short: "Let a machine come with another TPM", Args: exactly(1), ValidArgsFunction: a.completeMachines,
		Long: `Forget-tpm is for a machine whose mainboard was replaced. A machine with a TPM 2.0
is known by it from its first approval on: what it needs to speak to its region is
wrapped for that TPM, and a clone of its addresses and serial number gets nothing.
The next approval decides which TPM is the machine's own; compare the key words
then. A live task must be canceled first.`,
		Example: `  lpmos machine forget-tpm 52:54:00:12:34:56`,
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			mac, err := findMachine(ctx, c, args[0])
			if err != nil {
				return err
			}
			if err := c.ForgetTPM(ctx, mac); err != nil {
				return err
			}
			return a.say(map[string]any{"mac": mac, "tpm": nil}, "the TPM of machine "+mac.String()+" is forgotten; its next approval decides")
		}),
	}
}
