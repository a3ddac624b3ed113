// Package site is a whole site in one process: embedded store, control plane
// and one region. `lpmos up`, the lab and the tests run it; each part is the
// same as in a process of its own.
package site

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/internal/controlplane/blobs"
	"github.com/lpmos/lpmos/internal/ownstore"
	"github.com/lpmos/lpmos/internal/region"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/store"
)

// Config of a site. DataDir is required.
type Config struct {
	DataDir      string
	ControlPlane controlplane.Config // DataDir is filled in
	Region       region.Config       // DataDir is filled in
	EtcdListen   string              // where the store lets regions on other machines in; "" for nowhere
	// RegionEtcdEndpoints are what these dial, if not EtcdListen.
	RegionEtcdEndpoints []string
	NoFsync             bool // tests only
}

// Site is a site that is ready to run.
type Site struct {
	ControlPlane *controlplane.ControlPlane
	Region       *region.Region

	etcd   *ownstore.Store
	stores []*store.Store
	blobs  *blobs.Dir
}

// New starts the store and opens all listeners; Run serves.
func New(ctx context.Context, cfg Config, log *slog.Logger) (_ *Site, err error) {
	s := &Site{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
		}
	}()
	if s.etcd, err = ownstore.Start(ctx, ownstore.Config{Dir: cfg.DataDir, Listen: cfg.EtcdListen, CA: cfg.ControlPlane.CA, NoFsync: cfg.NoFsync}, log); err != nil {
		return nil, err
	}
	// Each part has a connection of its own, as it would in its own process.
	control, err := s.etcd.Open(ctx, log)
	if err != nil {
		return nil, err
	}
	s.stores = append(s.stores, control)
	regional, err := s.etcd.OpenRegion(ctx, cfg.Region.RegionID, log)
	if err != nil {
		return nil, err
	}
	s.stores = append(s.stores, regional)
	cfg.ControlPlane.DataDir = cfg.DataDir
	cfg.ControlPlane.Etcd = controlplane.OwnEtcd(s.etcd, cfg.EtcdListen, cfg.RegionEtcdEndpoints)
	if s.ControlPlane, err = controlplane.New(cfg.ControlPlane, control, log); err != nil {
		return nil, err
	}
	if s.blobs, err = blobs.Open(s.ControlPlane.Blobs().Path()); err != nil {
		return nil, err
	}
	cfg.Region.DataDir = filepath.Join(cfg.DataDir, "region")
	if s.Region, err = region.New(cfg.Region, regional, localBlobs{s.blobs}, log); err != nil {
		return nil, err
	}
	return s, nil
}

// Run serves until ctx ends, or until the store dies.
func (s *Site) Run(ctx context.Context) error {
	err := service.Run(ctx, s.ControlPlane.Run, s.Region.Run, s.etcd.Run)
	return errors.Join(err, s.release())
}

func (s *Site) release() error {
	var err error
	for _, st := range s.stores {
		err = errors.Join(err, st.Close())
	}
	if s.blobs != nil {
		err = errors.Join(err, s.blobs.Close())
	}
	if s.etcd != nil {
		err = errors.Join(err, s.etcd.Close())
	}
	return err
}

// localBlobs lets the region read the control plane's files where they are.
type localBlobs struct{ *blobs.Dir }

func (b localBlobs) Open(ctx context.Context, digest string) (io.ReadSeekCloser, int64, error) {
	f, n, err := b.Dir.Open(ctx, digest)
	if err != nil {
		return nil, 0, err
	}
	return f, n, nil
}

// Follow is Open: all that is here is whole.
func (b localBlobs) Follow(ctx context.Context, digest string) (io.ReadSeekCloser, int64, error) {
	return b.Open(ctx, digest)
}
