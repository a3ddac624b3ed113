package cli

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/sim"
)

// share is a flag such as 5% or 0.05.
type share float64

func (s *share) String() string { return strconv.FormatFloat(float64(*s)*100, 'f', -1, 64) + "%" }
func (s *share) Type() string   { return "share" }
func (s *share) Set(text string) error {
	number, percent := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || v != v {
		return fmt.Errorf("%q is neither a percentage nor a part of 1", text)
	}
	if percent {
		v /= 100
	}
	if v < 0 || v > 1 {
		return fmt.Errorf("%q is not between 0%% and 100%%", text)
	}
	*s = share(v)
	return nil
}

func (a *app) simCommand() *cobra.Command {
	var (
		cfg             sim.Config
		rate            float64
		create, approve bool
		spec            lpmos.Spec
		shares          struct{ fail, stall, reboot, slow, flap share }
	)
	cmd := &cobra.Command{
		Use: "sim", Short: "Play a data centre full of machines",
		Long: `Sim plays machines that do not exist: they boot from a real region, report, wait for
approval, install without a disk, restart and call home, with the agent's own code.
Some misbehave if asked; the same seed is the same machines doing the same.

It needs a region with a boot image, and an image to install. With --create it
creates the tasks, with --approve it approves them, through --server. It ends when
every machine has come to its end, or at Ctrl-C.

The exit code is 0 when all that should complete did.`,
		Example: `  lpmos sim --machines 20 --create --approve
  lpmos sim --machines 1000 --seed 7 --install 2m --fail 5% --reboot 2% --flap 3% --create --approve`,
		Args: exactly(0),
	}
	f := cmd.Flags()
	f.StringVar(&cfg.RegionURL, "region-url", "http://127.0.0.1:8081", "the region's boot listener")
	f.IntVar(&cfg.Machines, "machines", 10, "how many")
	f.Uint64Var(&cfg.Seed, "seed", 1, "decides addresses and who misbehaves, when")
	f.Float64Var(&rate, "rate", 1, "progress reports a second of each machine, at most 1")
	f.DurationVar(&cfg.Ramp, "ramp", 10*time.Second, "switch the machines on evenly over it")
	f.DurationVar(&cfg.Install, "install", 30*time.Second, "an installation takes so long")
	f.DurationVar(&cfg.Patience, "patience", 2*time.Minute, "how long a machine that no task wants asks on; 0 for ever")
	f.BoolVar(&cfg.Stamp, "stamp", false, "end each progress message with the time it was sent, to measure with")
	f.Var(&shares.fail, "fail", "so many have a disk that fails")
	f.Var(&shares.stall, "stall", "so many stand still in the middle, for ever")
	f.Var(&shares.reboot, "reboot", "so many lose power once in the middle")
	f.Var(&shares.slow, "slow", "so many take four times as long")
	f.Var(&shares.flap, "flap", "so many have a network that goes away again and again")
	f.BoolVar(&create, "create", false, "create the tasks")
	f.BoolVar(&approve, "approve", false, "approve the plans")
	f.StringVar(&spec.RegionID, "region", "dc1", "with --create: the data centre")
	f.StringVar(&spec.OSType, "os", "", "with --create: operating system (default: the first of the catalogue)")
	f.StringVar(&spec.OSVersion, "os-version", "", "with --create: its version")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		if rate <= 0 || rate > 1 {
			return usageError{fmt.Errorf("--rate is above 0 and at most 1 (got %g)", rate)}
		}
		cfg.Every = time.Duration(float64(time.Second) / rate)
		cfg.Fail, cfg.Stall, cfg.Reboot, cfg.Slow, cfg.Flap = float64(shares.fail), float64(shares.stall), float64(shares.reboot), float64(shares.slow), float64(shares.flap)
		fleet, err := sim.New(cfg, quietLog)
		if err != nil {
			return err
		}
		if create && spec.OSType == "" {
			if err := firstImage(ctx, c, &spec); err != nil {
				return err
			}
		}
		return a.simulate(ctx, fleet, sim.NewOperator(c, spec, fleet.MACs()), create, approve)
	})
	return cmd
}

// firstImage makes spec ask for what the catalogue has.
func firstImage(ctx context.Context, c *apiclient.Client, spec *lpmos.Spec) error {
	images, err := c.Images(ctx)
	if err != nil {
		return err
	}
	if len(images) == 0 {
		return fmt.Errorf("there is no image to install: %w (see lpmos image build)", lpmos.ErrNotFound)
	}
	spec.OSType, spec.OSVersion, spec.Arch = images[0].OS, images[0].Version, images[0].Arch
	return nil
}

// simulate runs a fleet, shows how it goes, and sums up.
func (a *app) simulate(ctx context.Context, fleet *sim.Fleet, op *sim.Operator, create, approve bool) error {
	if create {
		ids, err := op.Create(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.err, "%d tasks created\n", len(ids))
	}
	began := time.Now()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var background sync.WaitGroup
	if approve {
		background.Go(func() {
			if err := op.Approve(ctx); err != nil {
				stop(err)
			}
		})
	}
	background.Go(func() { a.showFleet(ctx, fleet, began) })
	err := fleet.Run(ctx)
	stop(nil)
	background.Wait()
	s := fleet.Snapshot()
	if printErr := a.print(simResult(s, time.Since(began)), func(w *tabwriter.Writer, _ bool) { simTable(w, s, time.Since(began)) }); printErr != nil {
		return printErr
	}
	if err != nil {
		return fmt.Errorf("the simulation was ended: %w", err)
	}
	for habit, phases := range s.Machines {
		if bad := habit == sim.Fails || habit == sim.Stalls; !bad && phases[sim.Completed] != total(phases) {
			return errQuiet
		}
	}
	return nil
}

// showFleet says how it goes: in one line that is redrawn on a terminal, and
// with a line now and then in a pipe.
func (a *app) showFleet(ctx context.Context, fleet *sim.Fleet, began time.Time) {
	f, ok := a.err.(*os.File)
	tty := ok && term.IsTerminal(int(f.Fd()))
	every, reports := 10*time.Second, int64(0)
	if tty {
		every = time.Second
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			if tty {
				fmt.Fprint(a.err, "\r\x1b[K")
			}
			return
		case <-t.C:
		}
		s := fleet.Snapshot()
		line := fmt.Sprintf("%4.0f s  %s; %.0f reports/s", time.Since(began).Seconds(), s, float64(s.Progress-reports)/every.Seconds())
		reports = s.Progress
		if tty {
			fmt.Fprintf(a.err, "\r\x1b[K%s", line)
		} else {
			fmt.Fprintln(a.err, line)
		}
	}
}

func total(phases map[sim.Phase]int) int {
	n := 0
	for _, k := range phases {
		n += k
	}
	return n
}

func simTable(w *tabwriter.Writer, s sim.Snapshot, took time.Duration) {
	fmt.Fprint(w, "MACHINES")
	var shown []sim.Phase
	for _, p := range sim.Phases {
		if s.Phases[p] > 0 {
			shown = append(shown, p)
			fmt.Fprintf(w, "\t%s", strings.ToUpper(string(p)))
		}
	}
	fmt.Fprintln(w, "\tALL")
	for _, h := range sim.Habits {
		phases, ok := s.Machines[h]
		if !ok {
			continue
		}
		fmt.Fprint(w, string(h))
		for _, p := range shown {
			fmt.Fprintf(w, "\t%d", phases[p])
		}
		fmt.Fprintf(w, "\t%d\n", total(phases))
	}
	fmt.Fprintf(w, "\nboots\t%d\n", s.Boots)
	fmt.Fprintf(w, "starts of the agent\t%d\n", s.Agents)
	fmt.Fprintf(w, "progress reports\t%d taken, %d refused, %d requests lost\n", s.Progress, s.Refused, s.Lost)
	if len(s.Took) > 0 {
		fmt.Fprintf(w, "power on to call home\tp50 %s, p95 %s, longest %s\n", secs(sim.Took(s.Took, 0.5)), secs(sim.Took(s.Took, 0.95)), secs(s.Took[len(s.Took)-1]))
	}
	fmt.Fprintf(w, "the whole\t%s\n", secs(took))
}

func secs(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// simResult is the same for programs.
func simResult(s sim.Snapshot, took time.Duration) any {
	millis := func(d time.Duration) int64 { return d.Milliseconds() }
	return map[string]any{
		"machines": s.Machines, "boots": s.Boots, "agents": s.Agents,
		"progress": map[string]int64{"taken": s.Progress, "refused": s.Refused, "lost": s.Lost},
		"took_ms":  map[string]int64{"p50": millis(sim.Took(s.Took, 0.5)), "p95": millis(sim.Took(s.Took, 0.95)), "all": millis(took)},
	}
}
