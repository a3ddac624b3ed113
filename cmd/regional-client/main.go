// Command regional-client is one data centre's part of LPMOS: boot services and
// agent API.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/conf"
	"github.com/lpmos/lpmos/internal/region"
	"github.com/lpmos/lpmos/internal/region/images"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/version"
)

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "regional-client:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var (
		cfg     region.Config
		etcd    conf.Etcd
		logs    conf.Log
		control string
		cacheGB int64
	)
	cmd := &cobra.Command{
		Use:   "regional-client",
		Short: "Boot services and agent API of one data centre",
		Long: `The regional client boots the machines of one data centre, speaks with their
agents, and exchanges orders and reports with the control plane through etcd.
Images and boot files come from --control-plane-url, by digest, and are cached.

Every flag can be given in the environment: LPMOS_REGION_ID and so on;
REGION_ID works too.`,
		Example: `  REGION_ID=dc1 regional-client
  regional-client --region-id=dc1 --etcd-endpoints=etcd1:2379 --control-plane-url=https://lpmos.example.net \
        --interface=eth1 --dhcp=proxy`,
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true, Version: version.String(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := conf.FromEnvironment(cmd, map[string]string{"region-id": "REGION_ID"}); err != nil {
				return err
			}
			if cfg.RegionID == "" {
				return &lpmos.InvalidError{Field: "region-id", Problem: "is missing: give --region-id or REGION_ID"}
			}
			log, err := logs.Logger(os.Stderr)
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 && !cmd.Flags().Changed("tftp-addr") && cfg.DHCP == "off" {
				cfg.TFTPAddr = "off" // port 69 is root's, and without DHCP nobody is sent there
			}
			ctx, cancel := service.Signals(context.Background(), log)
			defer cancel()
			st, closeStore, err := etcd.Open(ctx, "", log)
			if err != nil {
				return err
			}
			defer closeStore()
			var secret string
			secret, cfg.Fetcher = region.NewFetchSecret()
			source := images.HTTPSource{URL: control, Token: func() string { return secret }, Client: &http.Client{Transport: &http.Transport{
				ResponseHeaderTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute,
			}}}
			cache, err := images.New(images.Config{Dir: filepath.Join(cfg.DataDir, "images"), MaxBytes: cacheGB << 30}, source, log)
			if err != nil {
				return err
			}
			r, err := region.New(cfg, st, cache, log)
			if err != nil {
				return errors.Join(err, cache.Close())
			}
			return errors.Join(r.Run(ctx), cache.Close())
		},
	}
	f := cmd.Flags()
	etcd.Flags(f, false)
	logs.Flags(f)
	cfg.Flags(f)
	f.StringVar(&control, "control-plane-url", "http://localhost:8080", "where images and boot files come from")
	f.StringVar(&cfg.DataDir, "data-dir", "lpmos-region", "keys, leases, image cache")
	f.Int64Var(&cacheGB, "image-cache-gb", 64, "how much the image cache may hold")
	return cmd
}
