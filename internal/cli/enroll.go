package cli

import (
	"context"
	"fmt"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos/internal/apiclient"
)

func (a *app) regionEnroll() *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "enroll REGION", Short: "Make a token that lets a region in", Args: exactly(1), ValidArgsFunction: a.completeRegions,
		Long: `Enroll makes a token and prints the line to run in the data centre. The token is
good once and for --ttl, and names the site's authority, so that the region trusts
this control plane and no other. With it the region gets a certificate, its etcd
user, and all it must know; it needs no flags afterwards.

Enrolling a region again makes another identity beside the one it has, for a
standby; revoke it first if a host was lost or stolen.`,
		Example: `  lpmos region enroll dc1
  lpmos region enroll dc1 --ttl 24h -o json`,
	}
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token may be used, at most 168h")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		t, err := c.EnrollRegion(ctx, args[0], ttl)
		if err != nil {
			return err
		}
		return a.print(t, func(*tabwriter.Writer, bool) {
			fmt.Fprintf(a.out, "On the host of region %s, until %s, once:\n\n", plain(t.RegionID), moment(t.ExpiresAt))
			fmt.Fprintf(a.out, "  regional-client --enroll-token=%s --control-plane-url=%s\n\n", plain(t.Token), plain(c.Server()))
			if u, err := url.Parse(c.Server()); err != nil || u.Scheme != "https" || loopbackName(u.Hostname()) {
				fmt.Fprintf(a.out, "Put the control plane's https:// address as that host reaches it in there.\n")
			}
			for _, e := range t.EtcdEndpoints {
				fmt.Fprintf(a.out, "It will use etcd at %s, so that must be reachable from there, too.\n", plain(e))
			}
		})
	})
	return cmd
}

func loopbackName(h string) bool {
	return h == "localhost" || h == "::1" || len(h) > 4 && h[:4] == "127."
}

func (a *app) regionRotate() *cobra.Command {
	return &cobra.Command{
		Use: "rotate REGION", Short: "Have a region renew its certificate now", Args: exactly(1), ValidArgsFunction: a.completeRegions,
		Long: `Rotate asks a region for a new key and certificate. Nothing is restarted, and what
runs goes on; the old certificate stays good until it expires. A certificate that
was stolen is ended by revoke, not by this.`,
		Example: "  lpmos region rotate dc1",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			if err := c.RotateRegion(ctx, args[0]); err != nil {
				return err
			}
			return a.say(map[string]any{"region_id": args[0], "rotating": true}, fmt.Sprintf("Region %s will renew its certificate as soon as it hears of it", plain(args[0])))
		}),
	}
}

func (a *app) regionRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke REGION", Short: "End a region's certificates and connections", Args: exactly(1), ValidArgsFunction: a.completeRegions,
		Long: `Revoke ends all certificates that a region was ever given, and the tokens of
region enroll that nobody used yet: its etcd users are deleted, its connections
end, and the control plane refuses it. Its tasks stay as they are, and nothing
boots there until it is enrolled again.`,
		Example: "  lpmos region revoke dc1",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			if err := c.RevokeRegion(ctx, args[0]); err != nil {
				return err
			}
			return a.say(map[string]any{"region_id": args[0], "revoked": true}, fmt.Sprintf("Region %s is revoked; lpmos region enroll %[1]s lets it in again", plain(args[0])))
		}),
	}
}
