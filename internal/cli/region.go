package cli

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

func (a *app) regionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "region", Short: "Look at the data centres",
		Long:    "A region is one data centre: a regional client that boots its machines and carries\nout the orders for them.",
		Example: "  lpmos region list --watch",
	}
	cmd.AddCommand(a.regionList(), a.regionShow(), a.regionEnroll(), a.regionRotate(), a.regionRevoke())
	return cmd
}

func (a *app) regionList() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "list", Short: "List regions", Args: exactly(0),
		Long: `List shows every region that ever registered. A region is online while its
heartbeat lives; an offline one boots no machine and reports nothing.`,
		Example: `  lpmos region list -o wide
  lpmos region list --watch`,
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on showing changes until stopped")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		if watch {
			return a.watchRegions(ctx, c)
		}
		regions, err := c.Regions(ctx)
		if err != nil {
			return err
		}
		return a.show(regions, func(wide bool) *table { return regionTable(regions, wide) })
	})
	return cmd
}

func (a *app) regionShow() *cobra.Command {
	return &cobra.Command{
		Use: "show REGION", Short: "Show one region", Args: exactly(1), ValidArgsFunction: a.completeRegions,
		Long:    "Show prints what a region says of itself, and how many tasks it has.",
		Example: "  lpmos region show dc1",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			r, err := c.Region(ctx, args[0])
			if err != nil {
				return err
			}
			var tasks []string
			if !a.structured() {
				for _, s := range []lpmos.Status{lpmos.Pending, lpmos.AwaitingApproval, lpmos.Approved, lpmos.Installing, lpmos.Verifying, lpmos.Failed} {
					l, err := c.Tasks(ctx, url.Values{"region_id": {r.ID}, "status": {string(s)}, "limit": {"1"}})
					if err != nil {
						return err
					}
					if l.Total > 0 {
						tasks = append(tasks, fmt.Sprintf("%d %s", l.Total, s))
					}
				}
			}
			return a.show(r, func(bool) *table { return describeRegion(r, tasks) })
		}),
	}
}

func regionTone(status string) tone {
	if status == "online" {
		return good
	}
	return bad
}

func capabilities(r lpmos.Region) lpmos.Capabilities {
	if r.Capabilities == nil {
		return lpmos.Capabilities{}
	}
	return *r.Capabilities
}

func regionHead(wide bool) []string {
	head := []string{"REGION", "STATUS", "SINCE", "HOST", "VERSION"}
	if wide {
		head = append(head, "DHCP", "BOOT", "AGENT", "UNKNOWN MACHINES")
	}
	return head
}

func regionRow(r lpmos.Region, wide bool) []cell {
	caps := capabilities(r)
	row := []cell{txt(r.ID), {plain(r.Status), regionTone(r.Status)}, {age(r.Since), dim}, txt(caps.Hostname), txt(caps.Version)}
	if wide {
		row = append(row, txt(caps.DHCP), txt(caps.BootURL), txt(caps.AgentURL), txt(caps.Unknown))
	}
	return row
}

func regionTable(regions []lpmos.Region, wide bool) *table {
	t := &table{head: regionHead(wide), empty: "No region has registered. Start one:  regional-client --help, or lpmos up"}
	for _, r := range regions {
		t.add(regionRow(r, wide)...)
	}
	return t
}

func describeRegion(r lpmos.Region, tasks []string) *table {
	v, caps := &table{}, capabilities(r)
	v.field("region", plain(r.ID), strong)
	status := plain(r.Status)
	if !r.Since.IsZero() {
		status += " since " + moment(r.Since)
	}
	v.field("status", status, regionTone(r.Status))
	v.field("host", plain(caps.Hostname))
	v.field("version", plain(caps.Version))
	v.field("started", moment(caps.StartedAt))
	v.field("dhcp", plain(caps.DHCP))
	v.field("boot", plain(caps.BootURL))
	v.field("agent api", plain(caps.AgentURL))
	v.field("unknown machines", plain(caps.Unknown))
	if s := caps.Stock; s != nil {
		v.field("holds", fmt.Sprintf("%s, %s of %s", count(s.Files, "file", "files"), lpmos.FormatBytes(s.Bytes), lpmos.FormatBytes(s.MaxBytes)))
	}
	for _, f := range caps.ForeignDHCP {
		v.field("foreign dhcp", f.Address.String()+" seen "+moment(f.SeenAt), bad)
	}
	if len(tasks) > 0 {
		v.field("tasks", strings.Join(tasks, ", "))
	}
	return v
}
