// Command control-plane is the central part of LPMOS: REST, WebSocket, web
// interface and orchestrator on an etcd.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos/internal/conf"
	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/version"
)

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "control-plane:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var (
		cfg  controlplane.Config
		etcd conf.Etcd
		logs conf.Log
	)
	cmd := &cobra.Command{
		Use:   "control-plane",
		Short: "REST API, WebSocket, web interface and orchestrator of LPMOS",
		Long: `The control plane keeps what operators want and what machines report in etcd,
decides about every task, and shows it live at --listen-addr.

Every flag can be given in the environment: LPMOS_LISTEN_ADDR and so on.`,
		Example: `  docker-compose up -d etcd && control-plane
  control-plane --etcd-endpoints=embedded --data-dir=/var/lib/lpmos
  control-plane --etcd-endpoints=etcd1:2379,etcd2:2379 --tls-cert=server.crt --tls-key=server.key`,
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true, Version: version.String(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := conf.FromEnvironment(cmd, nil); err != nil {
				return err
			}
			log, err := logs.Logger(os.Stderr)
			if err != nil {
				return err
			}
			ctx, cancel := service.Signals(context.Background(), log)
			defer cancel()
			st, err := etcd.Open(ctx, cfg.DataDir, cfg.CA, log)
			if err != nil {
				return err
			}
			defer st.Close()
			if st.Own != nil {
				cfg.Etcd = controlplane.OwnEtcd(st.Own, etcd.Listen, etcd.Regions)
			} else if cfg.Etcd.Endpoints, cfg.Etcd.CA, err = etcd.Dialed(); err != nil {
				return err
			}
			cfg.FirstUser = controlplane.TellFirstUser(os.Stderr)
			c, err := controlplane.New(cfg, st.Store, log)
			if err != nil {
				return err
			}
			return service.Run(ctx, c.Run, st.Run, service.SaveMemory(c.State().Synced()))
		},
	}
	f := cmd.Flags()
	etcd.Flags(f, true)
	logs.Flags(f)
	cfg.Flags(f)
	f.StringVar(&cfg.DataDir, "data-dir", "lpmos-data", "signing key, images, and the embedded store")
	f.StringVar(&cfg.SigningKey, "signing-key", "", "PEM file of the key that signs approvals, shared by replicas (default: made in --data-dir)")
	cfg.AccessFlags(f)
	return cmd
}
