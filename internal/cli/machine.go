package cli

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

func (a *app) machineCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "machine", Short: "Look at the machines that ever booted the agent",
		Long: `A machine is one server, by whichever of its addresses it boots. It is named by a
MAC address in any spelling, or by a host name or serial number that no other has.`,
		Example: "  lpmos machine list --state discovered",
	}
	cmd.AddCommand(a.machineList(), a.machineShow(), a.machineLock(), a.machineUnlock(), a.machineForgetTPM())
	return cmd
}

// findMachine takes a MAC address in any spelling, or a host name or serial
// number that only one machine has.
func findMachine(ctx context.Context, c *apiclient.Client, name string) (lpmos.MAC, error) {
	mac, bad := lpmos.ParseMAC(name)
	if bad == nil {
		return mac, nil
	}
	// The search finds what has the name anywhere, or all of its words.
	all, _, err := machines(ctx, c, url.Values{"q": {name}}, 0)
	if err != nil {
		return mac, err
	}
	var match []string
	for _, m := range all {
		if m.Hostname == name || strings.EqualFold(m.Serial, name) {
			match = append(match, m.MAC.String())
			mac = m.MAC
		}
	}
	switch len(match) {
	case 0:
		if len(name) < 4 {
			return mac, bad // rather the beginning of an address
		}
		return mac, hinted{fmt.Errorf("machine %s: %w", lpmos.Shorten(name, 64), lpmos.ErrNotFound), "see what there is: lpmos machine list"}
	case 1:
		return mac, nil
	}
	return mac, &lpmos.InvalidError{Field: "machine", Problem: fmt.Sprintf("is meant by %d machines (%s, …): give a MAC address", len(match), strings.Join(match[:2], ", ")), Value: name}
}

// machines reads all machines that a query finds, or the first of them, and how
// many there are.
func machines(ctx context.Context, c *apiclient.Client, q url.Values, limit int) (found []lpmos.Machine, total int, err error) {
	found = []lpmos.Machine{}
	err = paged(q, limit, func() (int, string, error) {
		l, err := c.Machines(ctx, q)
		found, total = append(found, l.Machines...), l.Total
		return len(l.Machines), l.NextCursor, err
	})
	return found, total, err
}

// paged sets limit and cursor in q for one page of an answer after the other, and
// has each read, until all are or limit of what is in them; 0 is no limit. read
// says how much it read and where the next page begins, "" at the end.
func paged(q url.Values, limit int, read func() (n int, next string, err error)) error {
	const most = 1000
	for got := 0; ; {
		want := most
		if limit > 0 {
			want = min(most, limit-got)
		}
		q.Set("limit", strconv.Itoa(want))
		n, next, err := read()
		got += n
		if err != nil || next == "" || limit > 0 && got >= limit {
			return err
		}
		q.Set("cursor", next)
	}
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
		q := url.Values{}
		for name, v := range map[string]string{"q": strings.Join(args, " "), "region_id": region, "state": state} {
			if v != "" {
				q.Set(name, v)
			}
		}
		found, total, err := machines(ctx, c, q, limit)
		if err != nil {
			return err
		}
		return a.show(found, func(wide bool) *table {
			v := machineTable(found, wide)
			if total > len(found) {
				v.foot = fmt.Sprintf("%d of %d", len(found), total)
			}
			return v
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

func machineTable(machines []lpmos.Machine, wide bool) *table {
	v := &table{
		head:  []string{"MAC", "STATE", "REGION", "SERIAL", "MODEL", "HOST", "SEEN"},
		empty: "No machines yet. One shows up here when a task is made for it, or when it boots from the network and its region runs with --unknown-machines=discover.",
	}
	if wide {
		v.head = append(v.head, "CORES", "MEMORY", "DISKS", "ADDRESS", "TASK", "UUID")
	}
	for _, m := range machines {
		row := []string{m.MAC.String(), machineState(m), m.RegionID, dash(m.Serial), dash(strings.TrimSpace(m.Manufacturer + " " + m.Model)), dash(m.Hostname), age(m.LastSeen)}
		if wide {
			disks := "–"
			if m.DiskCount > 0 {
				disks = fmt.Sprintf("%d, %s", m.DiskCount, lpmos.FormatBytes(m.DiskBytes))
			}
			row = append(row, dash(number(m.Cores)), memory(m.MemoryBytes), disks, dash(m.Address), dash(lpmos.Prefix(m.TaskID, 8)), dash(m.UUID))
		}
		cells := make([]cell, len(row))
		for i, text := range row {
			cells[i].text = text
		}
		cells[1].tone, cells[6].tone = machineTone(m.State), dim
		v.add(cells...)
	}
	return v
}

func machineState(m lpmos.Machine) string {
	s := strings.ReplaceAll(string(m.State), "_", " ")
	if m.State == lpmos.MachineDeployed && !m.Verified {
		s += " (not verified)"
	}
	return s
}

func machineTone(s lpmos.MachineState) tone {
	switch s {
	case lpmos.MachinePendingApproval:
		return attention
	case lpmos.MachineAllocated, lpmos.MachineInspecting, lpmos.MachineDeploying:
		return busy
	case lpmos.MachineDeployed:
		return good
	case lpmos.MachineFailed:
		return bad
	}
	return normal
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
		Use: "show MACHINE", Short: "Show one machine, its tasks and what changed", Args: exactly(1), ValidArgsFunction: a.completeMachines,
		Long: `Show prints a machine's hardware, its tasks, and what is not as it was when it was
last seen before.`,
		Example: `  lpmos machine show web-01
  lpmos machine show 52:54:00:12:34:56 -o json`,
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			mac, err := findMachine(ctx, c, args[0])
			if err != nil {
				return err
			}
			m, err := c.Machine(ctx, mac)
			if err != nil {
				return err
			}
			return a.show(m, func(bool) *table { return machineDetails(m) })
		}),
	}
}

func machineDetails(m lpmos.Machine) *table {
	v := &table{}
	var macs []string
	for _, x := range m.MACs {
		macs = append(macs, x.String())
	}
	v.field("addresses", strings.Join(macs, ", "), strong)
	v.field("state", machineState(m), machineTone(m.State))
	if l := m.Lock; l != nil {
		v.field("locked", moment(l.At)+by(l.By)+notes(l.Reason), attention)
	}
	v.field("host", m.Hostname)
	v.field("region", m.RegionID)
	v.field("model", dash(strings.TrimSpace(m.Manufacturer+" "+m.Model)))
	v.field("serial", dash(m.Serial))
	v.field("uuid", dash(m.UUID))
	seen := "never"
	if !m.LastSeen.IsZero() {
		seen = moment(m.LastSeen)
	}
	v.field("last seen", seen)
	if m.TPM != nil {
		v.field("tpm", lpmos.Prefix(m.TPM.Fingerprint(), 24)+", the machine is bound to it")
	}
	if h := m.Hardware; h != nil {
		v.field("processor", fmt.Sprintf("%s, %d cores", dash(h.CPU.Model), h.CPU.Cores))
		v.field("memory", memory(h.Memory.TotalBytes))
		v.field("firmware", fmt.Sprintf("%s %s, boots by %s", dash(h.BIOS.Vendor), h.BIOS.Version, h.BootMode))
		for _, d := range h.Disks {
			v.field("disk", fmt.Sprintf("%s %s, serial %s", lpmos.FormatBytes(d.SizeBytes), strings.TrimSpace(d.Vendor+" "+d.Model), dash(d.Serial)))
		}
		for _, n := range h.NICs {
			link := "no link"
			switch {
			case n.Link && n.SpeedMbps > 0:
				link = fmt.Sprintf("%g Gbit/s", float64(n.SpeedMbps)/1000)
			case n.Link:
				link = "link"
			}
			v.field("network", fmt.Sprintf("%s %s %s, %s", n.Name, n.MAC, n.Driver, link))
		}
	}
	for _, d := range m.Differences {
		v.field("changed", differenceWords(d), attention)
	}
	if m.Previous != nil {
		v.field("before", "as seen "+moment(m.Previous.At))
	}
	for _, t := range m.Tasks {
		v.field("task", fmt.Sprintf("%s  %s  %s, %s %s, %s", lpmos.Prefix(t.TaskID, 8), t.Status, t.Hostname, t.OSType, t.OSVersion, t.CreatedAt.Local().Format(time.DateTime)))
	}
	return v
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
