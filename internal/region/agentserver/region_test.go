package agentserver

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/contract"
)

var spec = func() []byte {
	b, err := os.ReadFile("../../../api/agent.yaml")
	if err != nil {
		panic(err)
	}
	return b
}()

func TestMain(m *testing.M) { os.Exit(contract.Main(m, spec)) }

var (
	mac1   = lpmos.MustMAC("02:00:00:00:00:01")
	mac2   = lpmos.MustMAC("02:00:00:00:00:02")
	macX   = lpmos.MustMAC("02:00:00:00:00:99")
	addr1  = netip.MustParseAddr("10.77.0.11")
	addr2  = netip.MustParseAddr("10.77.0.12")
	digest = "sha256:" + strings.Repeat("ab", 32)
)

// center is the store and the control plane behind one region: it keeps what
// regions may keep, with the store's rules, and can act on what it is told.
type center struct {
	*Book
	key ed25519.PrivateKey

	mu       sync.Mutex // guards what follows
	orders   map[string]lpmos.Order
	agents   map[string]lpmos.AgentRecord // by task and attempt
	hardware map[string]*lpmos.Hardware
	progress []*lpmos.Progress
	asked    []lpmos.PermitRequest
	logs     map[int]string // by chunk number
	results  []lpmos.Result
	receipts []lpmos.Receipt
	found    []lpmos.Discovered
	down     error // answer of every write, nil when it works
	obliging bool  // grants every permit and acts on every result

	writes atomic.Int64
}

func newCenter() *center {
	pub, key, _ := ed25519.GenerateKey(nil)
	c := &center{
		Book: &Book{}, key: key, orders: map[string]lpmos.Order{}, agents: map[string]lpmos.AgentRecord{},
		hardware: map[string]*lpmos.Hardware{}, logs: map[int]string{},
	}
	c.SetKeys([][]byte{pub})
	c.Reset(nil, nil)
	return c
}

// order puts a new order for mac in place.
func (c *center) order(mac lpmos.MAC, status lpmos.Status) lpmos.Order {
	o := lpmos.Order{TaskID: lpmos.NewTaskID(), Status: status, Attempt: 1, Macs: []lpmos.MAC{mac}}
	o.TargetMAC, o.RegionID, o.OSType, o.OSVersion = mac, "dc1", "debian", "12"
	if status != lpmos.Pending {
		o.Plan = &lpmos.Plan{HardwareDigest: digest, Digest: digest}
		o.Plan.Effect.BootMode, o.Plan.Effect.Image.Digest = "bios", digest
	}
	c.set(o)
	c.SetBoot(lpmos.BootEntry{MAC: mac, Action: lpmos.BootAgent, TaskID: o.TaskID})
	return o
}

func (c *center) set(o lpmos.Order) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orders[o.TaskID] = o
	c.SetOrder(o)
}

// update changes an order as the orchestrator would.
func (c *center) update(id string, f func(*lpmos.Order)) {
	c.mu.Lock()
	o := c.orders[id]
	c.mu.Unlock()
	f(&o)
	c.set(o)
}

func (c *center) approve(id string) {
	c.update(id, func(o *lpmos.Order) {
		o.Status = lpmos.Approved
		o.Plan = &lpmos.Plan{HardwareDigest: digest, Digest: digest}
		o.Plan.Effect.BootMode, o.Plan.Effect.Image.Digest = "bios", digest
		o.Approval = &lpmos.Approval{TaskID: id, Approved: true, By: "ada", PlanDigest: digest, HardwareDigest: digest, FirstAttempt: 1, LastAttempt: 3}
		o.Approval.Sign(c.key)
	})
}

// grant answers a permit request: the first opens the attempt, a later one
// with another nonce the next.
func (c *center) grant(id, nonce string) {
	key := ""
	c.mu.Lock()
	if rec := c.agents[agentKey(id, c.orders[id].Attempt)]; rec.Key != nil {
		key = rec.Key.Fingerprint()
	}
	c.mu.Unlock()
	c.update(id, func(o *lpmos.Order) {
		if o.Permit != nil && o.Permit.Nonce == nonce {
			return
		}
		if o.Status == lpmos.Installing {
			o.Attempt++
		}
		o.Status = lpmos.Installing
		o.Permit = &lpmos.Permit{TaskID: id, Attempt: o.Attempt, Nonce: nonce, AgentKey: key, PlanDigest: digest, HardwareDigest: digest}
		o.Permit.Sign(c.key)
	})
}

func (c *center) end(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.orders, id)
	c.RemoveOrder(id)
}

// write applies the store's rules, then f.
func (c *center) write(taskID string, attempt int, f func()) error {
	c.writes.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return c.down
	}
	if o, ok := c.orders[taskID]; taskID != "" && (!ok || o.Attempt != attempt) {
		return fmt.Errorf("attempt %d of task %s: %w", attempt, taskID, lpmos.ErrNotFound)
	}
	f()
	return nil
}

func (c *center) break_(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = err
}

// percents are those of all progress stored.
func (c *center) percents() (out []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.progress {
		out = append(out, p.Percentage)
	}
	return out
}

func agentKey(id string, attempt int) string { return id + "/" + strconv.Itoa(attempt) }

func (c *center) PutAgent(_ context.Context, r lpmos.AgentRecord) error {
	return c.write(r.TaskID, r.Attempt, func() { c.agents[agentKey(r.TaskID, r.Attempt)] = r })
}
func (c *center) PutHardware(_ context.Context, id string, attempt int, h *lpmos.Hardware) error {
	return c.write(id, attempt, func() { c.hardware[id] = h })
}
func (c *center) PutProgress(_ context.Context, p *lpmos.Progress) error {
	return c.write(p.TaskID, p.Attempt, func() { c.progress = append(c.progress, p) })
}
func (c *center) PutPermitRequest(_ context.Context, r lpmos.PermitRequest) error {
	err := c.write(r.TaskID, r.Attempt, func() { c.asked = append(c.asked, r) })
	if err == nil && c.obliging {
		go c.grant(r.TaskID, r.Nonce)
	}
	return err
}
func (c *center) AppendLog(_ context.Context, id string, attempt, n int, chunk []byte) error {
	return c.write(id, attempt, func() { c.logs[n] = string(chunk) })
}
func (c *center) PutResult(_ context.Context, r lpmos.Result) error {
	err := c.write(r.TaskID, r.Attempt, func() { c.results = append(c.results, r) })
	if err == nil && c.obliging {
		go c.update(r.TaskID, func(o *lpmos.Order) { o.Status = lpmos.Verifying })
	}
	return err
}
func (c *center) PutBooted(_ context.Context, id string, attempt int, r lpmos.Receipt) error {
	return c.write(id, attempt, func() { c.receipts = append(c.receipts, r) })
}
func (c *center) PutDiscovered(_ context.Context, d lpmos.Discovered) error {
	return c.write("", 0, func() { c.found = append(c.found, d) })
}

// region is the agent API of one region, which can be killed and started.
type region struct {
	t      *testing.T
	center *center
	cfg    Config
	leases Leases

	mu     sync.Mutex // guards what follows
	server *Server
}

func newRegion(t *testing.T, c *center) *region {
	r := &region{t: t, center: c, cfg: Config{
		RegionID: "dc1", AgentURL: "https://10.77.0.1:8443", BootURL: "http://10.77.0.1:8081",
		ServerName: "agent.dc1.lpmos", CA: "-", Discover: true, Secret: bytes.Repeat([]byte{7}, 32),
	}}
	r.restart()
	return r
}

// restart replaces the server as if it had been killed: the new one knows the
// store and nothing else.
func (r *region) restart() {
	r.t.Helper()
	s, err := New(r.cfg, r.center, r.center, r.leases, slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.server = s
	r.mu.Unlock()
	r.takeOver()
}

// takeOver gives the server what is stored, as when its session opens.
func (r *region) takeOver() {
	r.center.mu.Lock()
	records := slices.Collect(maps.Values(r.center.agents))
	r.center.mu.Unlock()
	r.now().Restore(records)
}

func (r *region) now() *Server {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.server
}

// boot fetches script and segment as firmware would, and returns the agent that
// then runs.
func (r *region) boot(mac lpmos.MAC, addr netip.Addr) *agent {
	r.t.Helper()
	_, nonce, err := r.now().Begin(r.t.Context(), BootRequest{MAC: mac, Remote: addr})
	if err != nil {
		r.t.Fatalf("Begin(%s) = %v", mac, err)
	}
	seg, err := r.now().Segment(r.t.Context(), nonce, addr)
	if err != nil {
		r.t.Fatalf("Segment(%s) = %v", mac, err)
	}
	return r.agent(mac, addr, seg)
}

func (r *region) agent(mac lpmos.MAC, addr netip.Addr, segment []byte) *agent {
	r.t.Helper()
	key, err := lpmos.NewAgentKey()
	if err != nil {
		r.t.Fatal(err)
	}
	a := &agent{t: r.t, region: r, mac: mac, addr: addr, key: key}
	if err := json.Unmarshal(unpack(r.t, segment)["lpmos/boot.json"], &a.cfg); err != nil {
		r.t.Fatal(err)
	}
	a.client = r.client(a)
	return a
}

func (r *region) client(a *agent) *http.Client {
	return &http.Client{Transport: contract.NewTransport(r.t, spec, a)}
}

// unpack reads a newc archive.
func unpack(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for {
		if len(b) < 110 || string(b[:6]) != "070701" {
			t.Fatalf("not a newc header: %.110q", b)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		size, nameSize := field(6), field(11)
		up := func(n int) int { return (n + 3) &^ 3 }
		name := string(b[110 : 110+nameSize-1])
		if name == "TRAILER!!!" {
			return files
		}
		content := b[up(110+nameSize):][:size]
		files[name] = content
		b = b[up(110+nameSize)+up(size):]
	}
}

// agent speaks for one boot, over a transport without a network.
type agent struct {
	t      *testing.T
	region *region
	cfg    agentapi.BootConfig
	mac    lpmos.MAC
	addr   netip.Addr
	key    *lpmos.AgentKey // proved on every connection; nil for none
	client *http.Client
}

// RoundTrip hands a request to the region as it is now.
func (a *agent) RoundTrip(req *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	req.RemoteAddr = netip.AddrPortFrom(a.addr, 4242).String()
	if req.Body == nil {
		req.Body = http.NoBody
	}
	if a.key != nil {
		req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{PublicKey: a.key.Signer().Public()}}}
	}
	a.region.now().Handler().ServeHTTP(w, req)
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

// call returns the status and decodes the answer into out, which may be nil.
func (a *agent) call(ctx context.Context, method, path, secret string, body, out any) int {
	a.t.Helper()
	var rd io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		rd = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			a.t.Fatal(err)
		}
		rd = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://region"+path, rd)
	if err != nil {
		a.t.Fatal(err)
	}
	if rd != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	res, err := a.client.Do(req)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	if out != nil && res.StatusCode == http.StatusOK {
		if err := lpmos.UnmarshalJSON(b, out); err != nil {
			a.t.Errorf("%s %s answered %s: %v", method, path, b, err)
		}
	}
	return res.StatusCode
}

func (a *agent) post(path string, body, out any) int {
	a.t.Helper()
	return a.call(a.t.Context(), "POST", path, a.cfg.Credential, body, out)
}

func (a *agent) report() int {
	a.t.Helper()
	return a.post(agentapi.PathReport, a.reports(), new(agentapi.ReportAnswer))
}

// reports is what an agent's report says.
func (a *agent) reports() agentapi.Report {
	r := agentapi.Report{MACAddress: a.mac, Hardware: hardware(a.mac)}
	if a.key != nil {
		pub := a.key.Public()
		r.AgentKey = &pub
	}
	return r
}

func (a *agent) approval(wait string) (int, agentapi.Approval) {
	a.t.Helper()
	var out agentapi.Approval
	return a.call(a.t.Context(), "GET", agentapi.PathApproval+a.mac.String()+"?wait="+wait, a.cfg.Credential, nil, &out), out
}

func (a *agent) permit(nonce, wait string) (int, agentapi.PermitAnswer) {
	a.t.Helper()
	var out agentapi.PermitAnswer
	return a.post(agentapi.PathPermit+"?wait="+wait, agentapi.PermitRequest{
		MACAddress: a.mac, TaskID: a.cfg.TaskID, Nonce: nonce, PlanDigest: digest, HardwareDigest: digest,
	}, &out), out
}

func (a *agent) progress(attempt int, stage lpmos.Stage, percent int) int {
	a.t.Helper()
	return a.post(agentapi.PathProgress, agentapi.Progress{
		MACAddress: a.mac, TaskID: a.cfg.TaskID, Attempt: attempt, Stage: stage, Percentage: percent, Message: "working",
	}, nil)
}

func (a *agent) logs(attempt, first int, lines ...string) int {
	a.t.Helper()
	return a.post(agentapi.PathLogs, agentapi.Logs{MACAddress: a.mac, TaskID: a.cfg.TaskID, Attempt: attempt, First: first, Lines: lines}, nil)
}

func (a *agent) result(attempt int, wait string) (int, agentapi.ResultAnswer) {
	a.t.Helper()
	var out agentapi.ResultAnswer
	return a.post(agentapi.PathResult+"?wait="+wait, agentapi.Result{MACAddress: a.mac, TaskID: a.cfg.TaskID, Attempt: attempt, OK: true, Written: true}, &out), out
}

func (a *agent) booted(token string, attempt int) int {
	a.t.Helper()
	return a.call(a.t.Context(), "POST", agentapi.PathBooted, token, agentapi.Booted{
		MACAddress: a.mac, TaskID: a.cfg.TaskID, Attempt: attempt,
		Receipt: lpmos.Receipt{BootMode: "bios", OS: "Debian 12", Kernel: "6.1", Hostname: "m1", RootFSUUID: "u", RootDisk: lpmos.DiskRef{Serial: "S", SizeBytes: 1}},
	}, nil)
}

func hardware(mac lpmos.MAC) *lpmos.Hardware {
	return &lpmos.Hardware{
		BootMode: "bios", System: lpmos.System{UUID: "00112233-4455-6677-8899-aabbccddeeff"}, CPU: lpmos.CPU{Architecture: "amd64", Sockets: 1, Cores: 1, Threads: 1},
		Memory: lpmos.Memory{TotalBytes: 1 << 30}, BootMAC: mac,
		Disks: []lpmos.Disk{{Device: "/dev/sda", SizeBytes: 1 << 34, SectorBytes: 512, Serial: "S1", Transport: "sata"}},
		NICs:  []lpmos.NIC{{Name: "eth0", MAC: mac, Link: true}},
	}
}

func nonceN(n int) string { return fmt.Sprintf("%064x", n) }

func want(t *testing.T, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%s answered %d; want %d", what, got, want)
	}
}

// run starts the server's own work and stops it when the test ends or stop is
// called.
func (r *region) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s := r.now()
	go func() { s.Run(ctx); close(done) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done }) }
	r.t.Cleanup(stop)
	return stop
}

const step = 10 * time.Millisecond
