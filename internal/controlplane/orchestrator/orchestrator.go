// Package orchestrator is the one place that decides: what people ask for
// (actions.go) and what regions observe (reconcile.go) becomes a transition of
// a task, by compare-and-swap against the store. Any number of replicas may
// run; of two that decide the same thing one wins and the other sees that it
// is done.
//
// It reconciles from state: an update is only a hint that a task is worth a
// look, and a look that finds nothing to do changes nothing.
package orchestrator

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/vault"
	"github.com/lpmos/lpmos/internal/store"
)

// Config sets how long a task may stay where it is. Zero values mean the
// defaults of contract §2.
type Config struct {
	PendingDeadline    time.Duration // 7 d, also for awaiting_approval
	ApprovedDeadline   time.Duration // 1 h without contact
	InstallingDeadline time.Duration // 15 min without any progress
	VerifyingDeadline  time.Duration // 30 min
	ApprovalTTL        time.Duration // 24 h: how long an approval may wait for its machine
	MaxAttempts        int           // 3: attempts one approval covers
	PermitsPerMinute   int           // lpmos.DefaultPermitsPerMinute, of each region; config/global may say otherwise
	Key                ed25519.PrivateKey
}

func (c *Config) defaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.PendingDeadline, 7 * 24 * time.Hour}, {&c.ApprovedDeadline, time.Hour},
		{&c.InstallingDeadline, 15 * time.Minute}, {&c.VerifyingDeadline, 30 * time.Minute},
		{&c.ApprovalTTL, 24 * time.Hour},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 3
	}
}

// reader is the read model.
type reader interface {
	Task(id string) (lpmos.Task, bool)
	Status(id string) (lpmos.Status, bool)
	Image(os, version, arch string) (lpmos.Image, bool)
	Images() []lpmos.Image
	Region(id string) (lpmos.Region, bool)
	Regions() []lpmos.Region
	Reports(id string) api.Reports
	Log(id string) []string
	Live() []string
	Machine(mac lpmos.MAC) (lpmos.Machine, bool)
	Seen(taskID string, mac lpmos.MAC, h *lpmos.Hardware) *lpmos.Sighting
	Profiles() []lpmos.Profile
	Profile(name string) (lpmos.Profile, bool)
	Templates() []lpmos.Template
	Template(name string) (lpmos.Template, bool)
	ProfileUse(name string) api.Use
	TemplateUse(name string) api.Use
	ImageUse(os, version, arch string) api.Use
	Claimed() map[lpmos.MAC]string
	PermitWait(id string) *lpmos.PermitWait
	PermitLimit() int
	Protection(macs []lpmos.MAC, uuid string) string
	Locked(mac lpmos.MAC) *lpmos.Lock
	TPM(mac lpmos.MAC) *lpmos.TPMBinding
	Reach(ctx context.Context, rev int64)
}

// writer is the store.
type writer interface {
	Create(ctx context.Context, n store.NewTask) (lpmos.Task, error)
	PutProfile(ctx context.Context, p lpmos.Profile, based int) (lpmos.Profile, error)
	DeleteProfile(ctx context.Context, name string, based int) (rev int64, err error)
	PutTemplate(ctx context.Context, t lpmos.Template, based int) (lpmos.Template, error)
	DeleteTemplate(ctx context.Context, name string, based int) (rev int64, err error)
	DeleteImageIf(ctx context.Context, os, version, arch string, rev int64) (gone int64, err error)
	Transition(ctx context.Context, id string, m store.Move, edit func(*store.Record, *store.Move) error) (lpmos.Task, error)
	DeleteTask(ctx context.Context, id string) error
	FoldProgress(ctx context.Context, p *lpmos.Progress, logTail []string) error
	SetRegionStatus(ctx context.Context, region, status string) error
	Events(ctx context.Context, id string) ([]lpmos.Event, error)
	PutStop(ctx context.Context, s lpmos.Stop) (rev int64, err error)
	DeleteStop(ctx context.Context) (rev int64, err error)
	PutLock(ctx context.Context, macs []lpmos.MAC, l lpmos.Lock) (rev int64, err error)
	DeleteLock(ctx context.Context, macs []lpmos.MAC) (rev int64, err error)
	ForgetTPM(ctx context.Context, macs []lpmos.MAC) (rev int64, err error)
	UpdateGlobal(ctx context.Context, edit func(*store.Global) error) (rev int64, err error)
	batchStore
}

// Orchestrator decides.
type Orchestrator struct {
	cfg   Config
	read  reader
	put   writer
	vault *vault.Vault // nil without a signing key: then no task has secrets
	log   *slog.Logger
	now   func() time.Time

	newBatch chan struct{} // a batch was stored

	mu    sync.Mutex // guards what follows
	dirty map[string]struct{}
	wake  chan struct{}

	// Owned by Run.
	watch   map[string]*sight
	granted map[string]grant  // the permit each installing task was last seen with
	regions map[string]string // status as last written
}

// grant is a permit that stands as long as its task installs in this attempt.
type grant struct {
	attempt int
	nonce   string
}

// sight is when this replica first saw a task where it stands. Deadlines count
// from it, on this replica's own monotonic clock, so that no difference between
// clocks can expire anything.
type sight struct {
	status            lpmos.Status
	attempt           int
	rev               int64 // of what the deadline counts from, see deadline
	seen              int64 // of the newest report
	since             time.Time
	folded, foldedLog time.Time
}

// New makes an orchestrator. cfg.Key signs approvals and permits.
func New(cfg Config, read reader, put writer, log *slog.Logger) *Orchestrator {
	cfg.defaults()
	var v *vault.Vault
	if len(cfg.Key) == ed25519.PrivateKeySize {
		var err error
		if v, err = vault.New(cfg.Key); err != nil {
			panic("orchestrator: " + err.Error()) // of a key of the right length
		}
	}
	return &Orchestrator{
		vault: v,
		cfg:   cfg, read: read, put: put, newBatch: make(chan struct{}, 1), log: log, now: time.Now,
		dirty: map[string]struct{}{}, wake: make(chan struct{}, 1),
		watch: map[string]*sight{}, granted: map[string]grant{}, regions: map[string]string{},
	}
}

// Notice remembers which tasks an update is about. It is a listener of the read
// model and never blocks.
func (o *Orchestrator) Notice(u api.Update) {
	o.mu.Lock()
	for _, id := range u.Tasks {
		o.dirty[id] = struct{}{}
	}
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// tick is how often deadlines and region heartbeats are looked at.
const tick = time.Second

// Run reconciles until ctx ends.
func (o *Orchestrator) Run(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.wake:
		case <-t.C:
			o.sweep(ctx)
		}
		for _, id := range o.take() {
			if ctx.Err() != nil {
				return nil
			}
			if err := o.reconcile(ctx, id); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				if errors.Is(err, lpmos.ErrUnavailable) {
					o.mark(id) // looked at again with the next tick
				}
				o.log.Warn("reconcile task", "task", id, "err", err)
			}
		}
	}
}

func (o *Orchestrator) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	ids := make([]string, 0, len(o.dirty))
	for id := range o.dirty {
		ids = append(ids, id)
	}
	clear(o.dirty)
	return ids
}

func (o *Orchestrator) mark(id string) {
	o.mu.Lock()
	o.dirty[id] = struct{}{}
	o.mu.Unlock()
}

// sweep looks at what only time changes: deadlines, and regions that fell
// silent.
func (o *Orchestrator) sweep(ctx context.Context) {
	live := o.read.Live()
	seen := make(map[string]struct{}, len(live))
	for _, id := range live {
		seen[id] = struct{}{}
		o.mark(id)
	}
	for id := range o.watch {
		if _, ok := seen[id]; !ok {
			delete(o.watch, id)
		}
	}
	for id := range o.granted {
		if _, ok := seen[id]; !ok {
			delete(o.granted, id)
		}
	}
	for _, r := range o.read.Regions() {
		if o.regions[r.ID] == r.Status {
			continue
		}
		if err := o.put.SetRegionStatus(ctx, r.ID, r.Status); err != nil {
			o.log.Warn("write status of region", "region", r.ID, "err", err)
			continue
		}
		o.log.Info("region is "+r.Status, "region", r.ID)
		o.regions[r.ID] = r.Status
	}
}
