package region

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
)

// view is the region's copy of what concerns it: boot index, orders, boot
// image, keys. Boot decisions and the agent API are answered from it, so that
// they come at once and through an outage of the store.
type view struct {
	region string
	log    *slog.Logger

	mu      sync.Mutex // guards what follows
	site    bool       // the region's own keys were listed
	config  bool       // configuration was listed
	standby bool       // another instance serves this region, or may
	held    bool       // it does
	boots   map[lpmos.MAC]lpmos.BootEntry
	orders  map[string]lpmos.Order
	agents  map[string]map[int]lpmos.AgentRecord // by task and attempt
	secrets map[string]lpmos.SealedSecrets       // by task
	reports map[string]struct{}                  // tasks of which reports exist
	found   map[lpmos.MAC]time.Time              // machines without a task, when last seen
	global  store.Global
	rev     int64                    // of the store, that the region's own keys are known up to
	changed map[string]chan struct{} // by task with an order; "" for any
	moved   chan struct{}            // closed and replaced when site, config or rev is another
}

func newView(region string, log *slog.Logger) *view {
	v := &view{region: region, log: log, standby: true, changed: map[string]chan struct{}{}, moved: make(chan struct{})}
	v.clear()
	return v
}

func (v *view) clear() {
	v.boots, v.orders = map[lpmos.MAC]lpmos.BootEntry{}, map[string]lpmos.Order{}
	v.agents, v.reports = map[string]map[int]lpmos.AgentRecord{}, map[string]struct{}{}
	v.found = map[lpmos.MAC]time.Time{}
	v.secrets = map[string]lpmos.SealedSecrets{}
}

type follower interface {
	Changes(ctx context.Context, scope store.Scope) iter.Seq2[store.Batch, error]
}

// runSite follows the region's own keys until ctx ends.
func (v *view) runSite(ctx context.Context, src follower) error {
	for b, err := range src.Changes(ctx, store.RegionScope(v.region)) {
		if err != nil {
			return err
		}
		v.apply(b)
	}
	return nil
}

// runConfig follows configuration until ctx ends.
func (v *view) runConfig(ctx context.Context, src follower) error {
	for b, err := range src.Changes(ctx, store.GlobalScope) {
		if err != nil {
			return err
		}
		v.mu.Lock()
		if b.Reset {
			v.global = store.Global{}
		}
		for _, c := range b.Changes {
			if c.Key.Kind == store.KindGlobal {
				v.global = decode[store.Global](v, c)
			}
		}
		v.config = true
		v.move()
		v.mu.Unlock()
	}
	return nil
}

func (v *view) apply(b store.Batch) {
	v.mu.Lock()
	defer v.mu.Unlock()
	touched := map[string]struct{}{}
	if b.Reset {
		for id := range v.orders {
			touched[id] = struct{}{}
		}
		v.clear()
	}
	for _, c := range b.Changes {
		k := c.Key
		switch k.Kind {
		case store.KindBoot:
			if c.Value == nil {
				delete(v.boots, k.MAC)
			} else {
				v.boots[k.MAC] = decode[lpmos.BootEntry](v, c)
			}
		case store.KindDiscovered:
			if c.Value == nil {
				delete(v.found, k.MAC)
			} else {
				v.found[k.MAC] = decode[lpmos.Discovered](v, c).SeenAt
			}
		case store.KindOrder:
			touched[k.TaskID] = struct{}{}
			if c.Value == nil {
				delete(v.orders, k.TaskID)
			} else {
				v.orders[k.TaskID] = decode[lpmos.Order](v, c)
			}
		case store.KindSecrets:
			if c.Value == nil {
				delete(v.secrets, k.TaskID)
			} else {
				v.secrets[k.TaskID] = decode[lpmos.SealedSecrets](v, c)
			}
		case store.KindReportAgent:
			if c.Value == nil {
				delete(v.agents[k.TaskID], k.Attempt)
				continue
			}
			if v.agents[k.TaskID] == nil {
				v.agents[k.TaskID] = map[int]lpmos.AgentRecord{}
			}
			v.agents[k.TaskID][k.Attempt] = decode[lpmos.AgentRecord](v, c)
			v.reports[k.TaskID] = struct{}{}
		case store.KindReportHardware, store.KindReportLog, store.KindReportPermit, store.KindReportProgress, store.KindReportResult, store.KindReportBooted:
			if c.Value != nil {
				v.reports[k.TaskID] = struct{}{}
			}
		}
	}
	v.site, v.rev = true, b.Rev
	for id := range touched {
		v.signal(id)
	}
	if len(touched) > 0 {
		v.signal("")
	}
	v.move()
}

func decode[T any](v *view, c store.Change) T {
	x, err := store.Decode[T](c)
	if err != nil && c.Value != nil {
		v.log.Error("value in the store cannot be read", "key", c.Key.String(), "err", err)
	}
	return x
}

// move wakes those who wait in reach. The caller holds v.mu.
func (v *view) move() {
	close(v.moved)
	v.moved = make(chan struct{})
}

// reach waits until the view is whole and has what was written up to rev. It
// reports false when ctx ends, or stop is closed, before.
func (v *view) reach(ctx context.Context, rev int64, stop <-chan struct{}) bool {
	for {
		v.mu.Lock()
		there, moved := v.site && v.config && v.rev >= rev, v.moved
		v.mu.Unlock()
		if there {
			return true
		}
		select {
		case <-moved:
		case <-stop:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (v *view) signal(id string) {
	if ch, ok := v.changed[id]; ok {
		close(ch)
		delete(v.changed, id)
	}
}

// setStandby says whether another instance serves this region.
func (v *view) setStandby(standby bool) {
	v.mu.Lock()
	v.standby, v.held = standby, standby
	v.mu.Unlock()
}

// Held reports whether another instance is known to serve this region.
func (v *view) Held() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.held
}

// Synced reports whether the view is whole and this instance is the one that
// serves. A region that is not gives no boot file at all.
func (v *view) Synced() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.site && v.config && !v.standby
}

// Lookup finds a machine in the boot index.
func (v *view) Lookup(mac lpmos.MAC) (lpmos.BootEntry, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e, ok := v.boots[mac]
	return e, ok
}

// Order finds an order by its task.
func (v *view) Order(id string) (lpmos.Order, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	o, ok := v.orders[id]
	return o, ok
}

// ByMAC finds the order for a machine by any of its addresses.
func (v *view) ByMAC(mac lpmos.MAC) (lpmos.Order, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e, ok := v.boots[mac]
	if !ok || e.Action != lpmos.BootAgent {
		return lpmos.Order{}, false
	}
	o, ok := v.orders[e.TaskID]
	return o, ok
}

// Secrets is what was sealed for the agent of a task's attempt.
func (v *view) Secrets(id string) (lpmos.AgentSeal, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.secrets[id].ForAgent
	if s == nil {
		return lpmos.AgentSeal{}, false
	}
	return *s, true
}

// Changed returns a channel that is closed when the task's order next changes,
// or appears; for "", when any does. For a task without an order it may be
// closed for another's.
func (v *view) Changed(id string) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, known := v.orders[id]; !known {
		id = "" // nothing would ever remove a channel of its own
	}
	ch, ok := v.changed[id]
	if !ok {
		ch = make(chan struct{})
		v.changed[id] = ch
	}
	return ch
}

// Keys are the control plane's public keys.
func (v *view) Keys() [][]byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(v.global.Keys), func(k []byte) bool { return len(k) != ed25519.PublicKeySize })
}

// BootImage is what the control plane published.
func (v *view) BootImage() (lpmos.BootImage, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.global.BootImage == nil {
		return lpmos.BootImage{}, false
	}
	return *v.global.BootImage, true
}

// agentRecords are what this region knows of boots, whichever instance of it served
// them.
func (v *view) agentRecords() []lpmos.AgentRecord {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []lpmos.AgentRecord
	for _, byAttempt := range v.agents {
		out = slices.AppendSeq(out, maps.Values(byAttempt))
	}
	return out
}

// orphans are tasks whose reports outlived their order.
func (v *view) orphans() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []string
	for id := range v.reports {
		if _, ok := v.orders[id]; !ok {
			out = append(out, id)
		}
	}
	return out
}

func (v *view) forget(id string) {
	v.mu.Lock()
	delete(v.reports, id)
	delete(v.agents, id)
	v.mu.Unlock()
}

const (
	// keepDiscovered is how long a machine without a task is remembered after
	// it was last seen.
	keepDiscovered = 30 * 24 * time.Hour
	// maxDiscovered bounds how many are: anyone on the network can invent
	// machines.
	maxDiscovered = 10_000
)

// stale are machines without a task that need not be remembered any longer,
// with the time each was last seen; the oldest come first.
func (v *view) stale(now time.Time) []lpmos.Discovered {
	v.mu.Lock()
	defer v.mu.Unlock()
	var all []lpmos.Discovered
	for mac, seen := range v.found {
		all = append(all, lpmos.Discovered{MAC: mac, SeenAt: seen})
	}
	slices.SortFunc(all, func(a, b lpmos.Discovered) int {
		return cmp.Or(a.SeenAt.Compare(b.SeenAt), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	n := max(0, len(all)-maxDiscovered)
	for n < len(all) && now.Sub(all[n].SeenAt) > keepDiscovered {
		n++
	}
	return all[:n]
}
