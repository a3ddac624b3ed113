package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
)

const (
	testTask   = "3b1e5f8d-1111-4222-8333-444455556666"
	testSecret = "5ec4e7c0ffee5ec4e7c0ffee5ec4e7c0ffee5ec4e7c0ffee5ec4e7c0ffee5ec4"
	testToken  = "70ce70ce70ce70ce70ce70ce70ce70ce70ce70ce70ce70ce70ce70ce70ce70ce"
	serverName = "agent.dc1.lpmos"
)

// region is a region and control plane in one, as far as one machine sees
// them, over real TLS. It can be stopped and started; its state stays.
type region struct {
	t    testing.TB
	addr string
	cert tls.Certificate
	ca   string
	key  ed25519.PrivateKey

	srv *http.Server

	mu       sync.Mutex // guards what follows
	status   lpmos.Status
	attempt  int
	order    agentapi.Approval
	signer   ed25519.PrivateKey // of permits; another key in tests of forgery
	spoil    func(w http.ResponseWriter, r *http.Request) bool
	permit   func(agentapi.PermitRequest, *lpmos.Permit) // edits before signing
	reports  []agentapi.Report
	progress []agentapi.Progress
	late     []string
	lines    []string
	results  []agentapi.Result
	nonces   map[string]bool
	agentKey string // fingerprint of the key that was registered last
	blobs    map[string][]byte
	fetched  int
}

func newRegion(t testing.TB) *region {
	t.Helper()
	s := &region{t: t, status: lpmos.Approved, attempt: 1, nonces: map[string]bool{}, blobs: map[string][]byte{}}
	_, s.key, _ = ed25519.GenerateKey(rand.Reader)
	s.signer = s.key
	caKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	s.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}))
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{serverName}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	s.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	s.serve(ln)
	t.Cleanup(s.stop)
	return s
}

func (s *region) serve(ln net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+agentapi.PathBlobs+"{sum}", s.blob)
	mux.HandleFunc("POST "+agentapi.PathReport, s.report)
	mux.HandleFunc("GET "+agentapi.PathApproval+"{mac}", s.approval)
	mux.HandleFunc("POST "+agentapi.PathPermit, s.grant)
	mux.HandleFunc("POST "+agentapi.PathProgress, s.takeProgress)
	mux.HandleFunc("POST "+agentapi.PathLogs, s.takeLogs)
	mux.HandleFunc("POST "+agentapi.PathResult, s.result)
	s.srv = &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		spoil := s.spoil
		s.mu.Unlock()
		if spoil != nil && spoil(w, r) {
			return
		}
		if !strings.HasPrefix(r.URL.Path, agentapi.PathBlobs) && r.Header.Get("Authorization") != "Bearer "+testSecret {
			problem(w, 401, "the credential is not valid")
			return
		}
		mux.ServeHTTP(w, r)
	})}
	go s.srv.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{s.cert}}))
}

func (s *region) stop() { s.srv.Close() }

// start listens again where it listened before.
func (s *region) start() {
	for range 3000 {
		ln, err := net.Listen("tcp", s.addr)
		if err == nil {
			s.serve(ln)
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	s.t.Error("region cannot listen again")
}

func problem(w http.ResponseWriter, code int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(agentapi.Problem{Title: http.StatusText(code), Status: code, Detail: detail})
}

func take[T any](s *region, w http.ResponseWriter, r *http.Request) (v T, ok bool) {
	if err := lpmos.DecodeJSON(r.Body, agentapi.MaxReportBytes, &v); err != nil {
		s.t.Errorf("%s: %v", r.URL.Path, err)
		problem(w, 400, err.Error())
		return v, false
	}
	return v, true
}

func (s *region) blob(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	b, ok := s.blobs[r.PathValue("sum")]
	s.fetched++
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (s *region) report(w http.ResponseWriter, r *http.Request) {
	v, ok := take[agentapi.Report](s, w, r)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reports = append(s.reports, v)
	s.agentKey = v.AgentKey.Fingerprint()
	json.NewEncoder(w).Encode(agentapi.ReportAnswer{TaskID: s.order.TaskID, Status: s.status, Attempt: s.attempt})
}

func (s *region) approval(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := agentapi.Approval{TaskID: s.order.TaskID, Status: s.status, Attempt: s.attempt}
	switch s.status {
	case lpmos.Approved, lpmos.Installing, lpmos.Verifying:
		a.Approved, a.Plan, a.Decision = true, s.order.Plan, s.order.Decision
	}
	json.NewEncoder(w).Encode(a)
}

func (s *region) grant(w http.ResponseWriter, r *http.Request) {
	v, ok := take[agentapi.PermitRequest](s, w, r)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.status.Live() {
		json.NewEncoder(w).Encode(agentapi.PermitAnswer{Refused: "the task was canceled"})
		return
	}
	if !s.nonces[v.Nonce] {
		s.nonces[v.Nonce] = true
		if s.status == lpmos.Installing {
			s.attempt++
		}
		s.status = lpmos.Installing
	}
	p := &lpmos.Permit{TaskID: s.order.TaskID, Attempt: s.attempt, Nonce: v.Nonce, AgentKey: s.agentKey, PlanDigest: v.PlanDigest, HardwareDigest: v.HardwareDigest, GrantedAt: time.Now().UTC()}
	if s.permit != nil {
		s.permit(v, p)
	}
	p.Sign(s.signer)
	json.NewEncoder(w).Encode(agentapi.PermitAnswer{Permit: p, CallhomeToken: testToken})
}

func (s *region) takeProgress(w http.ResponseWriter, r *http.Request) {
	v, ok := take[agentapi.Progress](s, w, r)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.progress); n > 0 && s.progress[n-1].Attempt == v.Attempt && (s.progress[n-1].Percentage > v.Percentage || s.progress[n-1].Stage.Number() > v.Stage.Number()) {
		// A request of a connection that broke may arrive after the next one.
		s.late = append(s.late, fmt.Sprintf("%s %d after %s %d", v.Stage, v.Percentage, s.progress[n-1].Stage, s.progress[n-1].Percentage))
		w.WriteHeader(204)
		return
	}
	s.progress = append(s.progress, v)
	w.WriteHeader(204)
}

func (s *region) takeLogs(w http.ResponseWriter, r *http.Request) {
	v, ok := take[agentapi.Logs](s, w, r)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, l := range v.Lines {
		if v.First+i > len(s.lines) {
			s.t.Errorf("log line %d arrives before line %d", v.First+i, len(s.lines))
		}
		if v.First+i == len(s.lines) {
			s.lines = append(s.lines, l)
		}
	}
	w.WriteHeader(204)
}

func (s *region) result(w http.ResponseWriter, r *http.Request) {
	v, ok := take[agentapi.Result](s, w, r)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.results = append(s.results, v)
	switch {
	case !v.OK:
		s.status = lpmos.Failed
	case s.status == lpmos.Installing:
		s.status = lpmos.Verifying
	}
	json.NewEncoder(w).Encode(agentapi.ResultAnswer{Status: s.status})
}

// put stores a blob.
func (s *region) put(b []byte) string {
	sum := sha256.Sum256(b)
	d := hex.EncodeToString(sum[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[d] = b
	return d
}

// image makes an image whose chunks need no decoder and returns its manifest.
func (s *region) image(chunks int) (lpmos.Image, *lpmos.ImageManifest) {
	m := &lpmos.ImageManifest{Format: "ext4", SizeBytes: int64(chunks) * 4096, FirstBoot: "exec", Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd", OS: "testos", Version: "1", Arch: "amd64"}
	var pack []byte
	for i := range chunks {
		b := bytes.Repeat([]byte{byte(i)}, 1000)
		sum := sha256.Sum256(b)
		m.Chunks = append(m.Chunks, lpmos.Chunk{Offset: int64(i) * 4096, Bytes: 4096, StoredOffset: int64(len(pack)), StoredBytes: 1000, SHA256: hex.EncodeToString(sum[:])})
		pack, m.UsedBytes = append(pack, b...), m.UsedBytes+4096
	}
	m.Pack = lpmos.Blob{SHA256: s.put(pack), Bytes: int64(len(pack))}
	text, _ := json.Marshal(m)
	return lpmos.Image{OS: "testos", Version: "1", Arch: "amd64", Digest: "sha256:" + s.put(text), SizeBytes: m.SizeBytes, UsedBytes: m.UsedBytes, BootModes: []string{"bios"}}, m
}

// approve plans img on hw and signs it.
func (s *region) approve(hw *lpmos.Hardware, img lpmos.Image) *lpmos.Plan {
	s.t.Helper()
	p := lpmos.NewPlan(&lpmos.Task{ID: testTask, Spec: lpmos.Spec{Hostname: "web-1"}}, hw, img)
	if p.Problem != "" {
		s.t.Fatal(p.Problem)
	}
	a := &lpmos.Approval{TaskID: testTask, Approved: true, By: "someone", At: time.Now().UTC(), PlanDigest: p.Digest, HardwareDigest: p.HardwareDigest,
		ExpiresAt: time.Now().Add(time.Hour).UTC(), FirstAttempt: 1, LastAttempt: 3}
	a.Sign(s.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = agentapi.Approval{TaskID: testTask, Plan: &p, Decision: a}
	return &p
}

func (s *region) config() agentapi.BootConfig {
	s.t.Helper()
	agentKey, err := lpmos.NewAgentKey()
	if err != nil {
		s.t.Fatal(err)
	}
	return agentapi.BootConfig{RegionID: "dc1", AgentURL: "https://" + s.addr, ServerName: serverName, CA: s.ca, BootURL: "https://" + s.addr,
		Keys: [][]byte{s.key.Public().(ed25519.PublicKey)}, TaskID: testTask, Attempt: 1, BootSeq: 7, BootMAC: testMAC, Credential: testSecret, Time: time.Now(), Key: agentKey}
}

var testMAC = lpmos.MustMAC("52:54:00:00:00:01")

// host is the machine of the tests.
type host struct {
	mu       sync.Mutex // guards what follows
	hw       lpmos.Hardware
	rebooted []string
	clock    []time.Time
}

func newHost() *host {
	return &host{hw: lpmos.Hardware{BootMode: "bios", CPU: lpmos.CPU{Architecture: "amd64"}, System: lpmos.System{UUID: "5f8d3b1e-0000-4000-8000-000000000001"},
		Disks: []lpmos.Disk{{Device: "/dev/vda", SizeBytes: 8 << 30, SectorBytes: 512, Serial: "DISK1", Transport: "virtio"}, {Device: "/dev/vdb", SizeBytes: 9 << 30, SectorBytes: 512, Serial: "DISK2", Transport: "virtio"}},
		NICs:  []lpmos.NIC{{Name: "eth0", MAC: testMAC}}}}
}

func (h *host) Collect(context.Context) (*lpmos.Hardware, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.hw
	c.Disks = append([]lpmos.Disk{}, h.hw.Disks...)
	return &c, nil
}

func (h *host) SetClock(t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock = append(h.clock, t)
	return nil
}

func (h *host) Reboot(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rebooted = append(h.rebooted, why)
}

// store is an installer that fetches and verifies the image, and writes nothing.
type store struct {
	blobs  install.Blobs
	stall  time.Duration
	during func() // called after the first chunk

	mu      sync.Mutex // guards what follows
	marker  *install.Marker
	jobs    []install.Job
	written int
}

func (d *store) Finished(lpmos.Disk) (install.Marker, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.marker == nil {
		return install.Marker{}, false
	}
	return *d.marker, true
}

func (d *store) Install(ctx context.Context, job install.Job) error {
	d.mu.Lock()
	d.jobs = append(d.jobs, job)
	d.mu.Unlock()
	m, err := install.FetchManifest(ctx, d.blobs, job.Plan.Effect.Image.Digest, d.stall)
	if err != nil {
		return err
	}
	job.OnWrite()
	d.mu.Lock()
	d.written++
	d.marker = nil
	d.mu.Unlock()
	job.OnStep(install.Step{Stage: lpmos.Partitioning, Done: 1, Total: 1, Message: "Partitioned"})
	var once sync.Once
	c := install.Copier{Blobs: d.blobs, Stall: d.stall, Log: slog.New(slog.DiscardHandler), Progress: func(stored, raw int64) {
		job.OnStep(install.Step{Stage: lpmos.Downloading, Done: stored, Total: m.Pack.Bytes, Bytes: stored, BytesTotal: m.Pack.Bytes, Message: "Downloading"})
		if d.during != nil {
			once.Do(d.during)
		}
	}}
	if err := c.Copy(ctx, m, nil); err != nil {
		return err
	}
	job.OnStep(install.Step{Stage: lpmos.Configuring, Done: 1, Total: 1, Message: "Done"})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.marker = &install.Marker{TaskID: job.TaskID, Attempt: job.Attempt, PlanDigest: job.Plan.Digest}
	return nil
}

// bench is everything of one test.
type bench struct {
	*region
	host  *host
	disk  *store
	plan  *lpmos.Plan
	image *lpmos.ImageManifest
	cfg   agentapi.BootConfig
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{region: newRegion(t), host: newHost()}
	img, m := b.region.image(50)
	b.image = m
	hw, _ := b.host.Collect(context.Background())
	b.plan = b.approve(hw, img)
	b.cfg = b.region.config()
	b.disk = &store{blobs: tlsBlobs{b}, stall: 2 * time.Second}
	return b
}

// boot runs the agent once, until it reboots.
func (b *bench) boot(t testing.TB) {
	t.Helper()
	logs := NewLogs()
	log := slog.New(slog.NewMultiHandler(slog.NewTextHandler(t.Output(), nil), slog.NewTextHandler(logs, nil)))
	client, err := agentapi.NewClient(agentapi.ClientConfig{URL: b.cfg.AgentURL, ServerName: b.cfg.ServerName, CA: b.cfg.CA, Credential: b.cfg.Credential, Key: b.cfg.Key,
		Timeout: 2 * time.Second, RetryMin: 5 * time.Millisecond, RetryMax: 50 * time.Millisecond}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ms := time.Millisecond
	pauses := Pauses{Wait: 100 * ms, Report: 50 * ms, Again: 10 * ms, Reboot: 10 * ms, Breath: 10 * ms, Conclude: time.Second, LogEvery: 5 * ms, ProgEvery: 5 * ms}
	ctx, cancel := context.WithTimeoutCause(context.Background(), 20*time.Second, fmt.Errorf("the agent did not reboot in 20 s"))
	defer cancel()
	if err := New(b.cfg, client, b.disk, b.host, nil, pauses, logs, log).Run(ctx); err != nil {
		t.Fatalf("Run = %v", err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
