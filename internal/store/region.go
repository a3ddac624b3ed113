package store

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// ErrFenced is returned to a region whose session has ended: another instance
// took over, or its lease expired while it was paused or cut off. Nothing was
// written. It is an lpmos.ErrUnavailable: the region opens a new session.
var ErrFenced = fmt.Errorf("%w: this region's session has ended", lpmos.ErrUnavailable)

// heartbeatTTL is how long a region that fell silent counts as online.
const heartbeatTTL = 10 * time.Second

// Session is a region's right to write. Its epoch is the creation revision of
// the heartbeat key: every write compares it, so that a process that wakes up
// late is fenced out. A lease says who is alive, never what is true.
type Session struct {
	s      *Store
	orders sync.Map // task id → seenOrder: the order that the last report compared
	region string
	epoch  int64
	lease  clientv3.LeaseID
	lost   chan struct{}
	once   sync.Once
	cancel context.CancelFunc
	done   chan struct{}
}

type heartbeat struct {
	Instance string    `json:"instance"`
	Hostname string    `json:"hostname"`
	Since    time.Time `json:"since"`
}

// OpenSession waits until this instance may speak for the region and returns
// its session. The same instance takes over its own dead session at once;
// while another instance lives, this one stands by and standby, if not nil, is
// called once with the host that holds the region.
func (s *Store) OpenSession(ctx context.Context, region, instance string, caps lpmos.Capabilities, standby func(holder string)) (*Session, error) {
	if !lpmos.ValidRegionID(region) {
		return nil, &lpmos.InvalidError{Field: "region_id", Problem: "is not a region id", Value: region}
	}
	key := Key{Kind: KindHeartbeat, Region: region}.String()
	for {
		lease, err := s.grant(ctx, heartbeatTTL)
		if err != nil {
			return nil, err
		}
		r, err := s.txn(ctx,
			[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
			[]clientv3.Op{
				clientv3.OpPut(key, string(encode(heartbeat{instance, caps.Hostname, time.Now().UTC()})), clientv3.WithLease(lease)),
				clientv3.OpPut(Key{Kind: KindCapabilities, Region: region}.String(), string(encode(caps))),
			},
			[]clientv3.Op{clientv3.OpGet(key)})
		if err != nil {
			return nil, fmt.Errorf("open session of region %s: %w", region, err)
		}
		if r.Succeeded {
			return s.startSession(region, r.Header.Revision, lease)
		}
		s.revoke(lease)
		kv := r.Responses[0].GetResponseRange().Kvs[0]
		holder, err := decode[heartbeat](kv.Value)
		if err != nil {
			return nil, fmt.Errorf("decode %s: %w", key, err)
		}
		if holder.Instance == instance {
			s.revoke(clientv3.LeaseID(kv.Lease)) // our own, from before a restart
			continue
		}
		if standby != nil {
			standby(holder.Hostname)
			standby = nil
		}
		if err := s.waitGone(ctx, key, r.Header.Revision+1); err != nil {
			return nil, err
		}
	}
}

func (s *Store) waitGone(ctx context.Context, key string, rev int64) error {
	wctx, cancel := context.WithTimeout(ctx, heartbeatTTL)
	defer cancel()
	for r := range s.c.Watch(wctx, key, clientv3.WithRev(rev), clientv3.WithFilterPut()) {
		if len(r.Events) > 0 || r.Err() != nil {
			break
		}
	}
	return ctx.Err()
}

func (s *Store) revoke(lease clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	_, _ = s.c.Revoke(ctx, lease) // if it fails the lease runs out by itself
}

func (s *Store) startSession(region string, epoch int64, lease clientv3.LeaseID) (*Session, error) {
	ctx, cancel := context.WithCancel(context.Background())
	alive, err := s.c.KeepAlive(ctx, lease)
	if err != nil {
		cancel()
		return nil, s.wrap("keep heartbeat of region "+region, err)
	}
	ss := &Session{s: s, region: region, epoch: epoch, lease: lease, lost: make(chan struct{}), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(ss.done)
		for range alive {
		}
		ss.fence()
	}()
	return ss, nil
}

func (ss *Session) fence() { ss.once.Do(func() { close(ss.lost) }) }

// Epoch is the revision that opened the session. What another instance wrote for
// the region was written before it, or not at all.
func (ss *Session) Epoch() int64 { return ss.epoch }

// Lost is closed when the session has ended.
func (ss *Session) Lost() <-chan struct{} { return ss.lost }

// Close gives the region up at once, so that a standby need not wait.
func (ss *Session) Close() {
	ss.cancel()
	<-ss.done
	ss.s.revoke(ss.lease)
}

// write puts one report. It demands that the session stands and that the order
// exists with this attempt.
func (ss *Session) write(ctx context.Context, k Key, v any) error {
	k.Region = ss.region
	beat := Key{Kind: KindHeartbeat, Region: ss.region}.String()
	conds := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(beat), "=", ss.epoch)}
	instead := []clientv3.Op{clientv3.OpGet(beat)}
	var order string
	if k.TaskID != "" {
		order = Key{Kind: KindOrder, Region: ss.region, TaskID: k.TaskID}.String()
		conds = append(conds, clientv3.Cmp{})
		instead = append(instead, clientv3.OpGet(order))
	}
	for range maxRaces {
		if k.TaskID != "" {
			conds[1] = clientv3.Compare(clientv3.ModRevision(order), "=", ss.revOfOrder(k))
		}
		r, err := ss.s.txn(ctx, conds, []clientv3.Op{clientv3.OpPut(k.String(), string(encode(v)))}, instead)
		if err != nil {
			return fmt.Errorf("report %s of task %s: %w", k.Kind, k.TaskID, err)
		}
		if r.Succeeded {
			return nil
		}
		if kvs := r.Responses[0].GetResponseRange().Kvs; len(kvs) == 0 || kvs[0].CreateRevision != ss.epoch {
			ss.fence()
			return ErrFenced
		}
		kvs := r.Responses[1].GetResponseRange().Kvs
		if len(kvs) == 0 {
			ss.orders.Delete(k.TaskID)
			return fmt.Errorf("order of task %s: %w", k.TaskID, lpmos.ErrNotFound)
		}
		o, err := decode[lpmos.Order](kvs[0].Value)
		if err != nil {
			return fmt.Errorf("decode %s: %w", order, err)
		}
		ss.orders.Store(k.TaskID, seenOrder{o.Attempt, kvs[0].ModRevision})
		if o.Attempt != k.Attempt {
			return fmt.Errorf("attempt %d of task %s (it is at %d): %w", k.Attempt, k.TaskID, o.Attempt, lpmos.ErrNotFound)
		}
	}
	return fmt.Errorf("report of task %s: %w: its order keeps changing", k.TaskID, lpmos.ErrUnavailable)
}

// seenOrder is an order as a report last met it: reports of the same attempt
// need not read it again.
type seenOrder struct {
	attempt int
	rev     int64
}

// revOfOrder is the revision a report expects of its order; -1, which no key
// has, if it must be read first.
func (ss *Session) revOfOrder(k Key) int64 {
	if o, ok := ss.orders.Load(k.TaskID); ok && o.(seenOrder).attempt == k.Attempt {
		return o.(seenOrder).rev
	}
	return -1
}

// PutCapabilities says anew what the region is, holds and has seen.
func (ss *Session) PutCapabilities(ctx context.Context, c lpmos.Capabilities) error {
	return ss.write(ctx, Key{Kind: KindCapabilities}, c)
}

// PutAgent remembers which boot may speak for an attempt.
func (ss *Session) PutAgent(ctx context.Context, a lpmos.AgentRecord) error {
	return ss.write(ctx, Key{Kind: KindReportAgent, TaskID: a.TaskID, Attempt: a.Attempt}, a)
}

// PutHardware hands up what an agent found.
func (ss *Session) PutHardware(ctx context.Context, taskID string, attempt int, h *lpmos.Hardware) error {
	return ss.write(ctx, Key{Kind: KindReportHardware, TaskID: taskID, Attempt: attempt}, h)
}

// PutProgress hands up the newest progress; older values are replaced.
func (ss *Session) PutProgress(ctx context.Context, p *lpmos.Progress) error {
	return ss.write(ctx, Key{Kind: KindReportProgress, TaskID: p.TaskID, Attempt: p.Attempt}, p)
}

// PutPermitRequest asks for the permission to write.
func (ss *Session) PutPermitRequest(ctx context.Context, r lpmos.PermitRequest) error {
	return ss.write(ctx, Key{Kind: KindReportPermit, TaskID: r.TaskID, Attempt: r.Attempt}, r)
}

// AppendLog stores chunk number n of an attempt's log, at most 16 KiB. The same
// number may be written again with more in it.
func (ss *Session) AppendLog(ctx context.Context, taskID string, attempt, n int, chunk []byte) error {
	return ss.write(ctx, Key{Kind: KindReportLog, TaskID: taskID, Attempt: attempt, Chunk: n}, string(chunk))
}

// PutResult hands up how an attempt ended.
func (ss *Session) PutResult(ctx context.Context, r lpmos.Result) error {
	return ss.write(ctx, Key{Kind: KindReportResult, TaskID: r.TaskID, Attempt: r.Attempt}, r)
}

// PutBooted hands up the call home of the installed system.
func (ss *Session) PutBooted(ctx context.Context, taskID string, attempt int, r lpmos.Receipt) error {
	return ss.write(ctx, Key{Kind: KindReportBooted, TaskID: taskID, Attempt: attempt}, r)
}

// PutDiscovered hands up a machine without a task.
func (ss *Session) PutDiscovered(ctx context.Context, d lpmos.Discovered) error {
	return ss.write(ctx, Key{Kind: KindDiscovered, MAC: d.MAC}, d)
}

// DeleteReports removes what was reported for a task whose order is gone.
func (ss *Session) DeleteReports(ctx context.Context, taskID string) error {
	r, err := ss.s.txn(ctx,
		[]clientv3.Cmp{
			clientv3.Compare(clientv3.CreateRevision(Key{Kind: KindHeartbeat, Region: ss.region}.String()), "=", ss.epoch),
			clientv3.Compare(clientv3.CreateRevision(Key{Kind: KindOrder, Region: ss.region, TaskID: taskID}.String()), "=", 0),
		},
		[]clientv3.Op{clientv3.OpDelete(reportPrefix(ss.region, taskID), clientv3.WithPrefix())},
		nil)
	if err != nil {
		return fmt.Errorf("delete reports of task %s: %w", taskID, err)
	}
	if !r.Succeeded {
		return fmt.Errorf("delete reports of task %s: %w", taskID, lpmos.ErrConflict)
	}
	ss.orders.Delete(taskID)
	return nil
}

// SetRegionStatus writes what the control plane makes of a region's heartbeat.
func (s *Store) SetRegionStatus(ctx context.Context, region, status string) error {
	return s.put(ctx, Key{Kind: KindRegionStatus, Region: region}.String(), status)
}

// Global is the content of config/global.
type Global struct {
	BootImage *lpmos.BootImage `json:"boot_image,omitempty"`
	Keys      [][]byte         `json:"keys,omitempty"` // the control plane's Ed25519 public keys
	// Hosts are the computers control planes run on, by their names. They are
	// never installed.
	Hosts map[string]lpmos.Host `json:"hosts,omitempty"`
	lpmos.Limits
	Approvals lpmos.ApprovalPolicy `json:"approvals,omitzero"`
}

// UpdateGlobal changes config/global by compare-and-swap and returns the
// revision that wrote it.
func (s *Store) UpdateGlobal(ctx context.Context, edit func(*Global) error) (rev int64, err error) {
	return amend(ctx, s, globals, Key{Kind: KindGlobal}, func(g *Global, _ int64) (bool, error) { return true, edit(g) })
}

// PutImage registers an image in the catalogue, or replaces the entry.
func (s *Store) PutImage(ctx context.Context, i lpmos.Image) error {
	_, err := s.PutImageIf(ctx, i, -1)
	return err
}

// PutImageIf is PutImage on the condition that the entry is still the one that
// revision rev wrote: 0 means that there is none, -1 whatever there is. It
// gives the revision that wrote the new one; a condition that does not hold is
// an lpmos.ErrChanged.
func (s *Store) PutImageIf(ctx context.Context, i lpmos.Image, rev int64) (int64, error) {
	for _, part := range []struct{ field, v string }{{"os", i.OS}, {"version", i.Version}, {"arch", i.Arch}} {
		if !lpmos.ValidName(part.v) {
			return 0, &lpmos.InvalidError{Field: part.field, Problem: "is not a name", Value: part.v}
		}
	}
	if _, err := lpmos.TrimDigest(i.Digest); err != nil {
		return 0, err
	}
	return amend(ctx, s, images, Key{Kind: KindImage, OS: i.OS, Version: i.Version, Arch: i.Arch}, func(v *lpmos.Image, at int64) (bool, error) {
		if rev >= 0 && rev != at {
			return true, fmt.Errorf("image %s: %w: read it again", i.Name(), lpmos.ErrChanged)
		}
		*v = i
		return true, nil
	})
}

// DeleteImage removes an entry of the catalogue; its blobs stay.
func (s *Store) DeleteImage(ctx context.Context, os, version, arch string) error {
	_, err := s.DeleteImageIf(ctx, os, version, arch, -1)
	return err
}

// DeleteImageIf is DeleteImage on the condition of PutImageIf. It answers the
// revision from which on the image is gone.
func (s *Store) DeleteImageIf(ctx context.Context, os, version, arch string, rev int64) (gone int64, err error) {
	if !lpmos.ValidName(os) || !lpmos.ValidName(version) || !lpmos.ValidName(arch) {
		return 0, &lpmos.InvalidError{Field: "image", Problem: "is not os/version/arch"}
	}
	return amend(ctx, s, images, Key{Kind: KindImage, OS: os, Version: version, Arch: arch}, func(_ *lpmos.Image, at int64) (bool, error) {
		switch {
		case at == 0:
			return false, fmt.Errorf("image %s/%s/%s: %w", os, version, arch, lpmos.ErrNotFound)
		case rev >= 0 && rev != at:
			return true, fmt.Errorf("image %s/%s/%s: %w: read it again", os, version, arch, lpmos.ErrChanged)
		}
		return false, nil
	})
}

// FoldProgress copies the newest progress of a region, and log lines if there
// are any, into the task, for readers of the founding keys. It does nothing
// once the task is no longer installing: its last progress came with the
// transition.
func (s *Store) FoldProgress(ctx context.Context, p *lpmos.Progress, logTail []string) error {
	ops := []clientv3.Op{clientv3.OpPut(Key{Kind: KindProgress, TaskID: p.TaskID}.String(), string(encode(p)))}
	if len(logTail) > 0 {
		ops = append(ops, clientv3.OpPut(Key{Kind: KindLogs, TaskID: p.TaskID}.String(), strings.Join(logTail, "\n")))
	}
	installing := clientv3.Compare(clientv3.Value(Key{Kind: KindStatus, TaskID: p.TaskID}.String()), "=", string(lpmos.Installing))
	_, err := s.txn(ctx, []clientv3.Cmp{installing}, ops, nil)
	return err
}
