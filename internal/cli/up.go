package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/conf"
	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/site"
)

func (a *app) upCommand() *cobra.Command {
	var cfg site.Config
	var etcd conf.Etcd
	var logs conf.Log
	var bootDir string
	cmd := &cobra.Command{
		Use: "up", Short: "Run a whole site in one process",
		Long: `Up runs the control plane, one region and a store in this process. Everything is
kept in --data-dir; started again, it goes on where it was.

The web interface and API are at --listen-addr: plain HTTP on loopback, TLS anywhere
else, with a certificate by the site's own authority unless --tls-cert gives one.
Regions on other machines need --etcd-listen, and lpmos region enroll.
To serve machines it needs root, --interface and --dhcp.`,
		Example: `  lpmos up                                  # look around, without touching a network
  lpmos up --interface eth1 --dhcp=server --dhcp-range 10.0.0.100-10.0.0.199
  lpmos up --interface eth1 --dhcp=proxy    # beside a DHCP server that is there already
  lpmos up --listen-addr :8443 --etcd-listen :2379   # for other people, and other data centres`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.Logger(a.err)
			if err != nil {
				return err
			}
			ctx, cancel := service.Signals(cmd.Context(), log)
			defer cancel()
			if os.Geteuid() != 0 && !cmd.Flags().Changed("tftp-addr") && cfg.Region.DHCP == "off" {
				cfg.Region.TFTPAddr = "off" // port 69 is root's, and without DHCP nobody is sent there
			}
			if _, port, err := net.SplitHostPort(cfg.ControlPlane.ListenAddr); err == nil && port == "8443" && !cmd.Flags().Changed("agent-addr") {
				cfg.Region.AgentAddr = ":8444" // machines are told; people expect theirs where they put it
			}
			cfg.EtcdListen, cfg.RegionEtcdEndpoints = etcd.Listen, etcd.Regions
			cfg.ControlPlane.FirstUser = controlplane.TellFirstUser(a.err)
			s, err := site.New(ctx, cfg, log)
			if err != nil {
				return err
			}
			return service.Run(ctx, s.Run, service.SaveMemory(s.ControlPlane.State().Synced()), func(ctx context.Context) error {
				if err := publishIfBuilt(ctx, s, bootDir); err != nil {
					return err
				}
				out := a.aside()
				fmt.Fprintf(out, "LPMOS is at %s\n", s.ControlPlane.URL())
				if ca := s.ControlPlane.Authority(); ca != nil {
					fmt.Fprintf(out, "Its certificate is by this site's own authority, SHA-256\n  %s\nTrust it once: %s (--cacert of lpmos, or the browser's list of authorities)\n",
						pki.FormatFingerprint(pki.Fingerprint(ca)), s.ControlPlane.AuthorityFile())
				}
				if !cfg.ControlPlane.NoLogin {
					fmt.Fprintf(out, "This link signs you in as admin, once, within %d min:\n  %s\nOn this host, lpmos works with --token-file %s\n",
						int(auth.LinkLimit/time.Minute), s.ControlPlane.SignInLink(), filepath.Join(cfg.DataDir, controlplane.LocalTokenFile))
				}
				<-ctx.Done()
				return nil
			})
		},
	}
	f := cmd.Flags()
	logs.Flags(f)
	cfg.Region.Flags(f)
	f.Lookup("region-id").DefValue = "dc1"
	cfg.Region.RegionID = "dc1"
	f.StringVar(&cfg.DataDir, "data-dir", "lpmos-data", "store, keys, images, leases")
	cfg.ControlPlane.Flags(f)
	etcd.RegionFlags(f)
	cfg.ControlPlane.AccessFlags(f)
	f.StringVar(&bootDir, "bootimage-dir", filepath.Join(cacheDir(), "bootimage"), "boot image that is published at start, if it was built")
	return cmd
}

// publishIfBuilt publishes the boot image of an earlier `bootimage build`.
func publishIfBuilt(ctx context.Context, s *site.Site, dir string) error {
	b, err := readBootImage(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, blob := range bootBlobs(b) {
		if err := s.ControlPlane.Blobs().PutFile(ctx, blob, filepath.Join(dir, "blobs", blob.SHA256)); err != nil {
			return fmt.Errorf("publish boot image: %w", err)
		}
	}
	return s.ControlPlane.PublishBootImage(ctx, b)
}

// startTime is how long a control plane that was just started may take to
// answer.
const startTime = 30 * time.Second

// waitReady waits until a control plane that was just started answers.
func waitReady(ctx context.Context, c *apiclient.Client) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	var last error
	err := poll(ctx, func() (bool, error) {
		last = c.Ready(ctx)
		return last == nil, nil
	})
	if err != nil && last != nil {
		return fmt.Errorf("wait for the control plane: %w", last)
	}
	return err
}
