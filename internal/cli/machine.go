package cli

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

func (a *app) machineCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "machine", Short: "Look at the machines that ever booted the agent"}
	cmd.AddCommand(a.machineList(), a.machineShow(), a.machineLock(), a.machineUnlock(), a.machineForgetTPM())
	return cmd
}

func (a *app) machineList() *cobra.Command {
	var region, state string
	var limit int
	cmd := &cobra.Command{
		Use: "list [SEARCH…]", Short: "List machines, found or assigned", Args: cobra.ArbitraryArgs,
		Long: `List shows every machine that ever booted the agent. A search is words that must
all hold: free text (addresses, serial numbers, models, host names), or region:,
state:, model:, serial:, mac:, host: and what it is to contain. "!" before a word
turns it round.`,
		Example: `  lpmos machine list --state discovered
  lpmos machine list model:r750 '!region:dc2'`,
	}
	f := cmd.Flags()
	f.StringVar(&region, "region", "", "only this data centre")
	f.StringVar(&state, "state", "", "only this state: "+machineStates())
	f.IntVar(&limit, "limit", 0, "at most so many (default: all)")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		q := url.Values{"limit": {"1000"}}
		for name, v := range map[string]string{"q": strings.Join(args, " "), "region_id": region, "state": state} {
			if v != "" {
				q.Set(name, v)
			}
		}
		machines, total := []lpmos.Machine{}, 0
		for {
			if limit > 0 {
				q.Set("limit", strconv.Itoa(min(1000, limit-len(machines))))
			}
			l, err := c.Machines(ctx, q)
			if err != nil {
				return err
			}
			machines, total = append(machines, l.Machines...), l.Total
			if l.NextCursor == "" || limit > 0 && len(machines) >= limit {
				break
			}
			q.Set("cursor", l.NextCursor)
		}
		return a.print(machines, func(w *tabwriter.Writer, wide bool) {
			if len(machines) == 0 {
				fmt.Fprintln(w, "None. A machine shows up here when a task is made for it, or when it boots from the network and its region runs with --unknown-machines=discover.")
				return
			}
			writeMachines(w, machines, wide)
			if total > len(machines) {
				fmt.Fprintf(w, "%d of %d\n", len(machines), total)
			}
		})
	})
	return cmd
}

func machineStates() string {
	var out []string
	for _, s := range lpmos.MachineStates {
		out = append(out, string(s))
	}
	return strings.Join(out, ", ")
}

func writeMachines(w *tabwriter.Writer, machines []lpmos.Machine, wide bool) {
	head := "MAC\tSTATE\tREGION\tSERIAL\tMODEL\tHOST\tSEEN"
	if wide {
		head += "\tCORES\tMEMORY\tDISKS\tADDRESS\tTASK\tUUID"
	}
	fmt.Fprintln(w, head)
	for _, m := range machines {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s", m.MAC, machineState(m), m.RegionID, dash(m.Serial), dash(strings.TrimSpace(m.Manufacturer+" "+m.Model)), dash(m.Hostname), age(m.LastSeen))
		if wide {
			disks := "–"
			if m.DiskCount > 0 {
				disks = fmt.Sprintf("%d, %s", m.DiskCount, lpmos.FormatBytes(m.DiskBytes))
			}
			fmt.Fprintf(w, "\t%s\t%s\t%s\t%s\t%s\t%s", dash(number(m.Cores)), memory(m.MemoryBytes), disks, dash(m.Address), dash(lpmos.Prefix(m.TaskID, 8)), dash(m.UUID))
		}
		fmt.Fprintln(w)
	}
}

func machineState(m lpmos.Machine) string {
	s := strings.ReplaceAll(string(m.State), "_", " ")
	if m.State == lpmos.MachineDeployed && !m.Verified {
		s += " (not verified)"
	}
	return s
}

func dash(s string) string {
	if s == "" {
		return "–"
	}
	return plain(s)
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func memory(n int64) string {
	if n == 0 {
		return "–"
	}
	return gib(n)
}

func (a *app) machineShow() *cobra.Command {
	return &cobra.Command{
		Use: "show MAC", Short: "Show one machine, its tasks and what changed", Args: exactly(1),
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			mac, err := lpmos.ParseMAC(args[0])
			if err != nil {
				return err
			}
			m, err := c.Machine(ctx, mac)
			if err != nil {
				return err
			}
			return a.print(m, func(w *tabwriter.Writer, _ bool) { writeMachine(w, m) })
		}),
	}
}

func writeMachine(w *tabwriter.Writer, m lpmos.Machine) {
	var macs []string
	for _, x := range m.MACs {
		macs = append(macs, x.String())
	}
	fmt.Fprintf(w, "addresses\t%s\nstate\t%s\nregion\t%s\nmodel\t%s\nserial\t%s\nuuid\t%s\nlast seen\t%s\n",
		strings.Join(macs, ", "), machineState(m), m.RegionID, dash(strings.TrimSpace(m.Manufacturer+" "+m.Model)), dash(m.Serial), dash(m.UUID), age(m.LastSeen))
	if h := m.Hardware; h != nil {
		fmt.Fprintf(w, "processor\t%s, %d cores\nmemory\t%s\nfirmware\t%s %s, boots by %s\n", dash(h.CPU.Model), h.CPU.Cores, memory(h.Memory.TotalBytes), dash(h.BIOS.Vendor), plain(h.BIOS.Version), plain(h.BootMode))
		for _, d := range h.Disks {
			fmt.Fprintf(w, "disk\t%s %s, serial %s\n", lpmos.FormatBytes(d.SizeBytes), plain(strings.TrimSpace(d.Vendor+" "+d.Model)), dash(d.Serial))
		}
		for _, n := range h.NICs {
			link := "no link"
			if n.Link {
				link = "link"
			}
			fmt.Fprintf(w, "network\t%s %s %s, %s\n", plain(n.Name), n.MAC, plain(n.Driver), link)
		}
	}
	for _, d := range m.Differences {
		fmt.Fprintf(w, "changed\t%s\n", plain(differenceWords(d)))
	}
	if m.Previous != nil {
		fmt.Fprintf(w, "before\tas seen at %s\n", m.Previous.At.Local().Format(time.DateTime))
	}
	for _, t := range m.Tasks {
		fmt.Fprintf(w, "task\t%s  %s  %s, %s %s, %s\n", t.TaskID[:8], t.Status, plain(t.Hostname), plain(t.OSType), plain(t.OSVersion), t.CreatedAt.Local().Format(time.DateTime))
	}
}

// differenceWords is "disk S0 size: 480 GB → 240 GB".
func differenceWords(d lpmos.Difference) string {
	what := strings.Join(strings.Fields(d.Component+" "+d.Item+" "+strings.ReplaceAll(d.Field, "_", " ")), " ")
	switch {
	case d.Field == "" && d.Before == "":
		return what + ": new, " + d.After
	case d.Field == "" && d.After == "":
		return what + ": gone, " + d.Before
	}
	return what + ": " + dash(d.Before) + " → " + dash(d.After)
}
