// Command regional-client is one data centre's part of LPMOS: boot services and
// agent API.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/conf"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/region"
	"github.com/lpmos/lpmos/internal/region/identity"
	"github.com/lpmos/lpmos/internal/region/images"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/store"
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
		token   string
		cacheGB int64
	)
	cmd := &cobra.Command{
		Use:   "regional-client",
		Short: "Boot services and agent API of one data centre",
		Long: `The regional client boots the machines of one data centre, speaks with their
agents, and exchanges orders and reports with the control plane through etcd.
Images and boot files come from --control-plane-url, by digest, and are cached.

In another data centre it is enrolled first: lpmos region enroll prints a token, and
with that it gets a certificate and all it must know of the site. From then on it
needs none of these flags.

Every flag can be given in the environment: LPMOS_REGION_ID and so on;
REGION_ID works too.`,
		Example: `  REGION_ID=dc1 regional-client
  regional-client --enroll-token=lre_dc1.… --control-plane-url=https://lpmos.example.net:8443
  regional-client --interface=eth1 --dhcp=proxy`,
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true, Version: version.String(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := conf.FromEnvironment(cmd, map[string]string{"region-id": "REGION_ID"}); err != nil {
				return err
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
			id, err := whoAmI(ctx, cmd, &cfg, token, &control, log)
			if err != nil {
				return err
			}
			if cfg.RegionID == "" {
				return &lpmos.InvalidError{Field: "region-id", Problem: "is missing: give --region-id or REGION_ID, or enroll with --enroll-token"}
			}
			st, err := connect(ctx, cmd, id, etcd, log)
			if err != nil {
				return err
			}
			defer st.Close()
			source := images.HTTPSource{URL: control, Client: &http.Client{Transport: &http.Transport{
				ResponseHeaderTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute,
			}}}
			parts := []func(context.Context) error{}
			if id == nil {
				var secret string
				secret, cfg.Fetcher = region.NewFetchSecret()
				source.Token = func() string { return secret }
			} else { // its certificate says who it is
				source.Client.Transport = id.Transport()
				parts = append(parts, func(ctx context.Context) error { return id.Keep(ctx, st) })
			}
			cache, err := images.New(images.Config{Dir: filepath.Join(cfg.DataDir, "images"), MaxBytes: cacheGB << 30}, source, log)
			if err != nil {
				return err
			}
			r, err := region.New(cfg, st, cache, log)
			if err != nil {
				return errors.Join(err, cache.Close())
			}
			return errors.Join(service.Run(ctx, append(parts, r.Run)...), cache.Close())
		},
	}
	f := cmd.Flags()
	etcd.Flags(f, false)
	logs.Flags(f)
	cfg.Flags(f)
	f.StringVar(&control, "control-plane-url", "http://localhost:8080", "where images and boot files come from")
	f.StringVar(&token, "enroll-token", "", "of lpmos region enroll; with --control-plane-url it is all a new region needs, once")
	f.StringVar(&cfg.DataDir, "data-dir", "lpmos-region", "keys, leases, image cache")
	f.Int64Var(&cacheGB, "image-cache-gb", 64, "how much the image cache may hold")
	return cmd
}

// whoAmI loads the region's identity, or gets it with a token, and takes from it
// what the flags leave open. nil without an error: the region is not enrolled.
func whoAmI(ctx context.Context, cmd *cobra.Command, cfg *region.Config, token string, control *string, log *slog.Logger) (*identity.Identity, error) {
	id, _, err := identity.Load(cfg.DataDir, log)
	if err != nil {
		return nil, err
	}
	if token != "" {
		t, err := pki.ParseToken(token)
		if err != nil {
			return nil, err
		}
		if cfg.RegionID != "" && cfg.RegionID != t.Region {
			return nil, &lpmos.InvalidError{Field: "enroll-token", Problem: "is for region " + t.Region + ", and --region-id is another", Value: cfg.RegionID}
		}
		// In a unit file the token stays; it is of no use a second time.
		if id == nil || !id.By(t) {
			if !cmd.Flags().Changed("control-plane-url") {
				return nil, &lpmos.InvalidError{Field: "control-plane-url", Problem: "is needed to enroll"}
			}
			if id, err = identity.Enroll(ctx, cfg.DataDir, t, *control, log); err != nil {
				return nil, err
			}
		}
	}
	if id == nil {
		return nil, nil
	}
	if cfg.RegionID != "" && cfg.RegionID != id.Region() {
		return nil, &lpmos.InvalidError{Field: "region-id", Problem: "is not that of the identity in --data-dir, which is " + id.Region(), Value: cfg.RegionID}
	}
	cfg.RegionID = id.Region()
	if !cmd.Flags().Changed("control-plane-url") {
		*control = id.ControlPlaneURL()
	}
	log.Info("this region is enrolled", "identity", id.Describe())
	return id, nil
}

// connect opens the store: as the identity says, with the endpoints of the flags
// if they are given, or as the flags say when there is none.
func connect(ctx context.Context, cmd *cobra.Command, id *identity.Identity, etcd conf.Etcd, log *slog.Logger) (*store.Store, error) {
	if id == nil || etcd.Cert != "" {
		cfg, err := etcd.Config()
		if err != nil {
			return nil, err
		}
		return store.Open(ctx, cfg, log)
	}
	cfg, err := id.Store()
	if err != nil {
		return nil, err
	}
	if cmd.Flags().Changed("etcd-endpoints") {
		cfg.Endpoints = etcd.Endpoints
	}
	return store.Open(ctx, cfg, log)
}
