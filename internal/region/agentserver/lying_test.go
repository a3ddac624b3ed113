package agentserver

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	workflow "github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/pki"
)

// liar is a region that somebody has taken over. It is the real one in all but
// what it tells of orders: it has the region's certificate, every genuine
// document it ever saw, and a signing key of its own.
type liar struct {
	*center
	lie  func(*lpmos.Order)
	own  ed25519.PrivateKey
	told atomic.Int64 // lies that reached the agent server
}

func (l *liar) Order(id string) (lpmos.Order, bool) {
	o, ok := l.center.Book.Order(id)
	if ok && l.lie != nil && o.Plan != nil {
		before := lpmos.DigestOf(o)
		if o.Plan != nil {
			p := *o.Plan
			o.Plan = &p
		}
		if o.Approval != nil {
			a := *o.Approval
			o.Approval = &a
		}
		if o.Permit != nil {
			p := *o.Permit
			o.Permit = &p
		}
		l.lie(&o)
		if lpmos.DigestOf(o) != before {
			l.told.Add(1)
		}
	}
	return o, ok
}

// disks is the machine's two disks as files, and an installer that, like the
// real one, reads the image's manifest before it writes.
type disks struct {
	hw    lpmos.Hardware
	dir   string
	blobs install.Blobs
}

func (d *disks) Collect(context.Context) (*lpmos.Hardware, error) { h := d.hw; return &h, nil }
func (d *disks) SetClock(time.Time) error                         { return nil }
func (d *disks) Reboot(string)                                    {}
func (d *disks) Finished(lpmos.Disk) (install.Marker, bool)       { return install.Marker{}, false }

func (d *disks) Install(ctx context.Context, job install.Job) error {
	if _, err := install.FetchManifest(ctx, d.blobs, job.Plan.Effect.Image.Digest, 2*time.Second); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(d.dir, job.Plan.Effect.Target.Serial), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	job.OnWrite()
	_, err = f.WriteString("erased")
	return err
}

// sum is the digest of all disks.
func (d *disks) sum(t *testing.T) string {
	t.Helper()
	h := sha256.New()
	for _, x := range d.hw.Disks {
		b, err := os.ReadFile(filepath.Join(d.dir, x.Serial))
		if err != nil {
			t.Fatal(err)
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestLyingRegion serves the genuine agent, with the genuine keys of the
// control plane in its boot image, from a region that lies. Not one byte of a
// disk changes, whatever it tells (T07, T08, M08).
func TestLyingRegion(t *testing.T) {
	_, own, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	otherID := lpmos.NewTaskID()
	// sign is what the control plane signed for something else, once.
	type genuine struct{ key ed25519.PrivateKey }
	for _, c := range []struct {
		name   string
		lie    func(o *lpmos.Order, cp genuine)
		serve  func(digest string, b []byte) []byte // of the image's blobs
		honest bool
		waits  bool // the agent goes on waiting for somebody to approve
	}{
		{name: "nothing: the honest region, whose disk changes", lie: func(*lpmos.Order, genuine) {}, honest: true},
		{name: "an approval signed with its own key", lie: func(o *lpmos.Order, _ genuine) { a(o).Sign(own) }},
		{name: "an approval without a signature", lie: func(o *lpmos.Order, _ genuine) { a(o).Signature = lpmos.Signature{} }},
		{name: "an approval with half a signature", lie: func(o *lpmos.Order, _ genuine) { a(o).Signature.Value = a(o).Signature.Value[:32] }},
		{name: "its own key under the control plane's name", lie: func(o *lpmos.Order, _ genuine) {
			id := a(o).Signature.KeyID
			a(o).By = "eve"
			a(o).Sign(own)
			o.Approval.Signature.KeyID = id
		}},
		{name: "a rejection turned round", lie: func(o *lpmos.Order, cp genuine) { a(o).Approved = false; a(o).Sign(cp.key); o.Approval.Approved = true }},
		{name: "the genuine rejection as it is", lie: func(o *lpmos.Order, cp genuine) { a(o).Approved = false; a(o).Sign(cp.key) }, waits: true},
		{name: "an approval by another person, too", lie: func(o *lpmos.Order, _ genuine) {
			a(o).Approvers = []lpmos.Consent{{By: "anna", PlanDigest: a(o).PlanDigest, HardwareDigest: a(o).HardwareDigest}, {By: a(o).By, PlanDigest: a(o).PlanDigest, HardwareDigest: a(o).HardwareDigest}}
		}},
		{name: "a genuine approval by two of different plans", lie: func(o *lpmos.Order, cp genuine) {
			a(o).Approvers = []lpmos.Consent{{By: "anna", PlanDigest: digest, HardwareDigest: a(o).HardwareDigest}, {By: a(o).By, PlanDigest: a(o).PlanDigest, HardwareDigest: a(o).HardwareDigest}}
			a(o).Sign(cp.key)
		}},
		{name: "the genuine approval of another task", lie: func(o *lpmos.Order, cp genuine) { a(o).TaskID = otherID; a(o).Sign(cp.key) }},
		{name: "the genuine approval of another machine", lie: func(o *lpmos.Order, cp genuine) { a(o).HardwareDigest = digest; a(o).Sign(cp.key) }},
		{name: "the genuine approval of another plan", lie: func(o *lpmos.Order, cp genuine) { a(o).PlanDigest = digest; a(o).Sign(cp.key) }},
		{name: "the genuine approval of an older attempt", lie: func(o *lpmos.Order, cp genuine) { a(o).FirstAttempt, a(o).LastAttempt = 0, 0; a(o).Sign(cp.key) }},
		{name: "a genuine approval that has expired", lie: func(o *lpmos.Order, cp genuine) { a(o).ExpiresAt = time.Now().Add(-time.Hour).UTC(); a(o).Sign(cp.key) }},
		{name: "an approval that was made to last", lie: func(o *lpmos.Order, cp genuine) {
			a(o).ExpiresAt = time.Now().Add(-time.Hour).UTC()
			a(o).Sign(cp.key)
			o.Approval.ExpiresAt = time.Now().Add(time.Hour).UTC()
		}},
		{name: "an approval for a boot whose key was compared, another one's", lie: func(o *lpmos.Order, cp genuine) {
			a(o).KeyCompared, a(o).AgentKey = true, digest
			a(o).Sign(cp.key)
		}},
		{name: "another disk", lie: func(o *lpmos.Order, _ genuine) { o.Plan.Effect.Target = otherDisk }},
		{name: "another disk, with a digest that fits", lie: func(o *lpmos.Order, _ genuine) {
			o.Plan.Effect.Target = otherDisk
			o.Plan.Digest = o.Plan.ComputeDigest()
			a(o).PlanDigest = o.Plan.Digest
		}},
		{name: "another disk, all of it signed with its own key", lie: func(o *lpmos.Order, _ genuine) {
			o.Plan.Effect.Target = otherDisk
			o.Plan.Digest = o.Plan.ComputeDigest()
			a(o).PlanDigest = o.Plan.Digest
			a(o).Sign(own)
			if o.Permit != nil {
				o.Permit.PlanDigest = o.Plan.Digest
				o.Permit.Sign(own)
			}
		}},
		{name: "another image", lie: func(o *lpmos.Order, _ genuine) { o.Plan.Effect.Image.Digest = digest }},
		{name: "another image, with a digest that fits", lie: func(o *lpmos.Order, _ genuine) {
			o.Plan.Effect.Image.Digest = digest
			o.Plan.Digest = o.Plan.ComputeDigest()
			a(o).PlanDigest = o.Plan.Digest
		}},
		{name: "more SSH keys", lie: func(o *lpmos.Order, _ genuine) {
			o.Plan.Effect.SSHKeys = []string{"ssh-ed25519 AAAA eve"}
			o.Plan.Digest = a(o).PlanDigest
		}},
		{name: "a manifest that is not the approved one", lie: func(*lpmos.Order, genuine) {}, serve: func(_ string, b []byte) []byte {
			return bytes.Replace(b, []byte(`"os":"tiny"`), []byte(`"os":"evil"`), 1)
		}},
		{name: "a permit signed with its own key", lie: func(o *lpmos.Order, _ genuine) { p(o).Sign(own) }},
		{name: "a permit without a signature", lie: func(o *lpmos.Order, _ genuine) { p(o).Signature = lpmos.Signature{} }},
		{name: "an approval's signature on a permit", lie: func(o *lpmos.Order, _ genuine) { p(o).Signature = o.Approval.Signature }},
		{name: "the genuine permit of another task", lie: func(o *lpmos.Order, cp genuine) { p(o).TaskID = otherID; p(o).Sign(cp.key) }},
		{name: "the genuine permit of another nonce, under this one", lie: func(o *lpmos.Order, cp genuine) {
			nonce := p(o).Nonce
			p(o).Nonce = nonceN(7)
			p(o).Sign(cp.key)
			p(o).Nonce = nonce
		}},
		{name: "the genuine permit of another boot's key", lie: func(o *lpmos.Order, cp genuine) { p(o).AgentKey = digest; p(o).Sign(cp.key) }},
		{name: "the genuine permit of no key", lie: func(o *lpmos.Order, cp genuine) { p(o).AgentKey = ""; p(o).Sign(cp.key) }},
		{name: "the genuine permit of another plan", lie: func(o *lpmos.Order, cp genuine) { p(o).PlanDigest = digest; p(o).Sign(cp.key) }},
		{name: "the genuine permit of other hardware", lie: func(o *lpmos.Order, cp genuine) { p(o).HardwareDigest = digest; p(o).Sign(cp.key) }},
		{name: "the genuine permit of another attempt, called this one's", lie: func(o *lpmos.Order, cp genuine) {
			n := p(o).Attempt
			p(o).Attempt = n + 1
			p(o).Sign(cp.key)
			p(o).Attempt = n
		}},
		{name: "a permit of its own before the control plane gave any", lie: func(o *lpmos.Order, _ genuine) {
			if o.Status != lpmos.Approved || lastNonce.Load() == nil {
				return
			}
			o.Status = lpmos.Installing
			o.Permit = &lpmos.Permit{TaskID: o.TaskID, Attempt: o.Attempt, Nonce: *lastNonce.Load(), PlanDigest: o.Approval.PlanDigest, HardwareDigest: o.Approval.HardwareDigest}
			o.Permit.Sign(own)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lastNonce.Store(nil)
			center := newCenter()
			l := &liar{center: center, own: own}
			l.lie = func(o *lpmos.Order) { c.lie(o, genuine{center.key}) }
			changed, reached := lieTo(t, l, c.serve, c.honest, c.waits)
			if changed != c.honest {
				t.Errorf("disk changed = %v; want %v", changed, c.honest)
			}
			if !reached {
				t.Error("the lie never reached the agent")
			}
		})
	}
}

var otherDisk = lpmos.DiskRef{Serial: "S2", SizeBytes: 1 << 35}

// lastNonce is what the agent asked with.
var lastNonce atomic.Pointer[string]

// a and p are the approval and the permit of an order, an empty one to write to
// where there is none yet.
func a(o *lpmos.Order) *lpmos.Approval {
	if o.Approval == nil {
		return &lpmos.Approval{}
	}
	return o.Approval
}

func p(o *lpmos.Order) *lpmos.Permit {
	if o.Permit == nil {
		return &lpmos.Permit{}
	}
	return o.Permit
}

// lieTo runs the genuine agent against the region until it gives up or, if it
// waits, was told the lie again and again, and reports whether a disk changed and
// whether the lie was told.
func lieTo(t *testing.T, l *liar, serve func(string, []byte) []byte, honest, waits bool) (changed, reached bool) {
	t.Helper()
	auth, err := pki.LoadRegion(t.TempDir(), "dc1")
	if err != nil {
		t.Fatal(err)
	}
	// The image, whose manifest the plan pins by digest.
	m := lpmos.ImageManifest{Format: "ext4", SizeBytes: 8192, UsedBytes: 4096, FirstBoot: "exec", Kernel: "/k", Initrd: "/i", OS: "tiny", Version: "1", Arch: "amd64",
		Pack: lpmos.Blob{SHA256: strings.Repeat("cd", 32), Bytes: 10}, Chunks: []lpmos.Chunk{{Bytes: 4096, StoredBytes: 10, SHA256: strings.Repeat("ef", 32)}}}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	blobSrv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		b := text
		if serve != nil {
			b = serve(r.URL.Path, text)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}))
	defer blobSrv.Close()

	s, err := New(Config{RegionID: "dc1", AgentURL: "https://127.0.0.1", BootURL: blobSrv.URL, ServerName: auth.ServerName(), CA: auth.CAPEM(),
		Secret: bytes.Repeat([]byte{7}, 32)}, l, orders{l}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.Restore(nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := s.HTTP(auth.ServerConfig())
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(ln, "", "") }()
	defer func() { srv.Close(); <-served }()

	o := l.center.order(mac1, lpmos.Pending)
	d := &disks{dir: t.TempDir(), hw: *hardware(mac1)}
	d.hw.Disks = append(d.hw.Disks, lpmos.Disk{Device: "/dev/sdb", SizeBytes: otherDisk.SizeBytes, SectorBytes: 512, Serial: otherDisk.Serial, Transport: "sata"})
	for _, x := range d.hw.Disks {
		if err := os.WriteFile(filepath.Join(d.dir, x.Serial), bytes.Repeat([]byte("precious "), 10_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blobs, err := agentapi.NewBlobs(blobSrv.URL, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	d.blobs = blobs
	before := d.sum(t)

	local := netip.MustParseAddr("127.0.0.1")
	_, nonce, err := s.Begin(t.Context(), BootRequest{MAC: mac1, Remote: local})
	if err != nil {
		t.Fatal(err)
	}
	segment, err := s.Segment(t.Context(), nonce, local)
	if err != nil {
		t.Fatal(err)
	}
	site, err := json.Marshal(agentapi.SiteConfig{Keys: [][]byte{l.center.key.Public().(ed25519.PublicKey)}})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := workflow.ParseBootConfig(bytes.NewReader(unpack(t, segment)["lpmos/boot.json"]), bytes.NewReader(site))
	if err != nil {
		t.Fatal(err)
	}
	cfg.AgentURL = "https://" + ln.Addr().String()
	quiet := slog.New(slog.DiscardHandler)
	client, err := workflow.NewClient(cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	// The control plane: it plans what was reported, approves, and answers
	// permit requests.
	img := lpmos.Image{OS: "tiny", Version: "1", Arch: "amd64", Digest: lpmos.DigestBytes(text), SizeBytes: 8192, UsedBytes: 4096, BootModes: []string{"bios"}}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var work sync.WaitGroup
	work.Go(func() { l.decide(ctx, o.TaskID, img) })

	ms := time.Millisecond
	pauses := workflow.Pauses{Wait: 50 * ms, Report: 10 * ms, Again: 10 * ms, Reboot: ms, Breath: 10 * ms, Conclude: 50 * ms, LogEvery: 5 * ms, ProgEvery: 5 * ms}
	run, stop := context.WithCancel(ctx)
	work.Go(func() {
		defer stop()
		// It ends when it reboots, which is after the first refusal.
		workflow.New(cfg, client, d, d, nil, pauses, nil, quiet).Run(run)
	})
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end) && run.Err() == nil; time.Sleep(5 * ms) {
		l.center.mu.Lock()
		over := len(l.center.results) > 0
		l.center.mu.Unlock()
		if over || waits && l.told.Load() >= 100 {
			break
		}
	}
	stop()
	cancel()
	work.Wait()
	return d.sum(t) != before, honest || serve != nil && asked.Load() > 0 || l.told.Load() > 0
}

// orders passes reports on to the store and remembers the nonce, which a lying
// region knows.
type orders struct{ *liar }

func (r orders) PutPermitRequest(ctx context.Context, req lpmos.PermitRequest) error {
	lastNonce.Store(&req.Nonce)
	return r.liar.center.PutPermitRequest(ctx, req)
}

// decide is the control plane of one task.
func (l *liar) decide(ctx context.Context, id string, img lpmos.Image) {
	for ctx.Err() == nil {
		l.center.mu.Lock()
		o, hw := l.center.orders[id], l.center.hardware[id]
		var req *lpmos.PermitRequest
		if n := len(l.center.asked); n > 0 {
			req = &l.center.asked[n-1]
		}
		l.center.mu.Unlock()
		switch {
		case hw != nil && o.Status == lpmos.Pending:
			plan := lpmos.NewPlan(&lpmos.Task{ID: id, Spec: lpmos.Spec{Hostname: "web-1", TargetDisk: &lpmos.DiskRef{Serial: "S1", SizeBytes: 1 << 34}}}, hw, img)
			o.Plan, o.Status = &plan, lpmos.Approved
			o.Approval = &lpmos.Approval{TaskID: id, Approved: true, By: "ada", At: time.Now().UTC(), PlanDigest: plan.Digest, HardwareDigest: plan.HardwareDigest,
				ExpiresAt: time.Now().Add(time.Hour).UTC(), FirstAttempt: 1, LastAttempt: 3}
			o.Approval.Sign(l.center.key)
			l.center.set(o)
		case req != nil && o.Status == lpmos.Approved && req.AgentKey != nil:
			o.Status = lpmos.Installing
			o.Permit = &lpmos.Permit{TaskID: id, Attempt: 1, Nonce: req.Nonce, AgentKey: req.AgentKey.Fingerprint(), PlanDigest: req.PlanDigest, HardwareDigest: req.HardwareDigest, GrantedAt: time.Now().UTC()}
			o.Permit.Sign(l.center.key)
			l.center.set(o)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
