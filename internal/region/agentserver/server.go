package agentserver

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// Config is what does not change while a region runs.
type Config struct {
	RegionID    string
	AgentURL    string // https://10.77.0.1:8443
	BootURL     string // http://10.77.0.1:8081
	ServerName  string // in the certificate of AgentURL
	CA          string // PEM
	CallhomeURL string // where installed systems report, "" for AgentURL
	Discover    bool   // machines without a task may boot the agent
	Secret      []byte // at least 32 bytes, the same after a restart; seals nonces
}

// Validate names the first field that cannot be used.
func (c Config) Validate() error {
	for _, f := range []struct{ name, value string }{
		{"RegionID", c.RegionID}, {"AgentURL", c.AgentURL}, {"BootURL", c.BootURL}, {"ServerName", c.ServerName}, {"CA", c.CA},
	} {
		if f.value == "" {
			return &lpmos.InvalidError{Field: f.name, Problem: "is missing"}
		}
	}
	if len(c.Secret) < 32 {
		return &lpmos.InvalidError{Field: "Secret", Problem: "is shorter than 32 bytes"}
	}
	return nil
}

// Orders is the region's view of what the control plane wants, in memory. Its
// answers always come from one complete view, never from a half-filled one.
type Orders interface {
	Order(taskID string) (lpmos.Order, bool)
	// ByMAC finds the order for a machine by any of its addresses.
	ByMAC(lpmos.MAC) (lpmos.Order, bool)
	// Synced is false until the first complete view is there, and while the
	// view cannot be trusted to be current.
	Synced() bool
	// Changed returns a channel that is closed when the task's order next
	// changes, appears or goes; for "", when any order does. Whoever takes the
	// channel first and looks second misses nothing.
	Changed(taskID string) <-chan struct{}
	// Keys are the control plane's Ed25519 public keys; without any, nothing
	// that a region hands out could be trusted.
	Keys() [][]byte
	// Secrets is what was sealed for the agent of a task's attempt.
	Secrets(taskID string) (lpmos.AgentSeal, bool)
}

// Reports writes what agents say into the store. Errors wrap lpmos.ErrNotFound
// when the order is gone or at another attempt, lpmos.ErrConflict when this
// process no longer speaks for the region, and lpmos.ErrUnavailable when
// repeating may help. Every write may be repeated.
type Reports interface {
	PutAgent(context.Context, lpmos.AgentRecord) error
	PutHardware(ctx context.Context, taskID string, attempt int, h *lpmos.Hardware) error
	PutProgress(context.Context, *lpmos.Progress) error
	PutPermitRequest(context.Context, lpmos.PermitRequest) error
	// AppendLog stores a chunk of at most 16 KiB under a number; chunks are in
	// the order of their numbers, which have gaps.
	AppendLog(ctx context.Context, taskID string, attempt, n int, chunk []byte) error
	PutResult(context.Context, lpmos.Result) error
	PutBooted(ctx context.Context, taskID string, attempt int, r lpmos.Receipt) error
	PutDiscovered(context.Context, lpmos.Discovered) error
}

// Leases says which machine has which address now, of those that this region's
// DHCP server gave out.
type Leases interface {
	ByAddress(netip.Addr) (lpmos.MAC, bool)
	ByMAC(lpmos.MAC) (netip.Addr, bool)
}

// Times that decide nothing but convenience.
const (
	storeTimeout    = 10 * time.Second // for one write
	progressEvery   = 2 * time.Second  // region to store, for one machine
	discoveredEvery = 5 * time.Minute  // of a machine without a task that says nothing new
	pruneEvery      = time.Minute
	keepAfterOrder  = 10 * time.Minute // an agent of an ended task still gets a civil answer
	keepStranger    = time.Hour        // since a machine without a task last spoke
	maxStrangers    = 1024
	bootsRemembered = 8 // for one machine, to recognise revoked credentials
)

// Server answers agents. Use New.
type Server struct {
	cfg     Config
	orders  Orders
	reports Reports
	leases  Leases // nil when addresses are not ours
	log     *slog.Logger
	mux     *http.ServeMux
	stats   counters

	closing chan struct{} // closed when long polls are to end
	work    sync.WaitGroup

	mu        sync.Mutex // guards what follows; taken after machine.mu
	closed    bool
	restored  bool
	machines  map[string]*machine // by task ID, or "mac " and the address of a machine without a task
	creds     map[string]*boot    // by AgentRecord.Credential
	pleas     map[string]*boot    // by boot.plea
	callhomes map[string]callhome // by AgentRecord.Callhome
}

// New makes a server that refuses everything with 503 until Restore has been
// called and orders is synced. leases may be nil.
func New(cfg Config, orders Orders, reports Reports, leases Leases, log *slog.Logger) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, orders: orders, reports: reports, leases: leases, log: log,
		mux: http.NewServeMux(), closing: make(chan struct{}),
		machines: map[string]*machine{}, creds: map[string]*boot{}, pleas: map[string]*boot{}, callhomes: map[string]callhome{},
	}
	s.handle("POST "+agentapi.PathReport, s.report)
	s.handle("POST "+agentapi.PathProgress, s.progress)
	s.handle("GET "+agentapi.PathApproval+"{mac}", s.approval)
	s.handle("POST "+agentapi.PathLogs, s.logs)
	s.handle("POST "+agentapi.PathPermit, s.permit)
	s.handle("POST "+agentapi.PathResult, s.result)
	s.handle("POST "+agentapi.PathBooted, s.booted)
	s.handle("/", func(*http.Request) (any, error) { return nil, lpmos.ErrNotFound })
	return s, nil
}

// Handler is the agent API.
func (s *Server) Handler() http.Handler { return s.mux }

// HTTP is a server for Handler with limits fit for agents: it is slow to end
// only for long polls. The caller listens, serves and shuts down; end Run first,
// so that long polls end at once.
func (s *Server) HTTP(tlsConfig *tls.Config) *http.Server {
	if tlsConfig != nil {
		// An agent's certificate is over a key it made itself; whose that is
		// stands in its record and not in a chain.
		tlsConfig = tlsConfig.Clone()
		tlsConfig.ClientAuth = tls.RequestClientCert
	}
	return &http.Server{
		Handler:           s.mux,
		TLSConfig:         tlsConfig,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      agentapi.MaxWait + 15*time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// Restore takes what an earlier run of this region, or the instance before this
// one, had stored. It must be called before anything is answered, with nil if
// there is nothing, and again whenever another instance may have served since;
// nothing may be stored meanwhile. Records of the same task may come in any
// order.
func (s *Server) Restore(records []lpmos.AgentRecord) {
	for _, rec := range records {
		m := s.machine(rec.TaskID, lpmos.MAC{})
		m.mu.Lock()
		m.begun = max(m.begun, rec.BootSeq)
		// What is known already stays: its agent may be asking just now.
		known := m.cur != nil && (cmp.Or(cmp.Compare(rec.BootSeq, m.cur.rec.BootSeq), cmp.Compare(rec.Attempt, m.cur.rec.Attempt)) < 0 ||
			lpmos.DigestOf(rec) == lpmos.DigestOf(m.cur.rec))
		if !known {
			s.restore(m, rec)
		}
		m.mu.Unlock()
	}
	s.mu.Lock()
	s.restored = true
	s.mu.Unlock()
}

// ready reports whether orders and records can be trusted.
func (s *Server) ready() error {
	s.mu.Lock()
	restored := s.restored
	s.mu.Unlock()
	if !restored || !s.orders.Synced() {
		return unavailable("this region is not in sync with the control plane yet")
	}
	return nil
}

// Run cleans up after ended tasks until ctx ends. Then it ends all long polls,
// hands up the newest progress and returns.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			s.prune(time.Now())
		case <-ctx.Done():
		}
	}
	close(s.closing)
	s.mu.Lock()
	s.closed = true
	machines := make([]*machine, 0, len(s.machines))
	for _, m := range s.machines {
		machines = append(machines, m)
	}
	s.mu.Unlock()
	s.work.Wait()
	for _, m := range machines {
		s.flushProgress(m)
	}
	return nil
}

// begin reports whether a background write may start; whoever gets true calls
// s.work.Done when it ends.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Add(1)
	return true
}

// prune forgets machines whose order has been gone for a while.
func (s *Server) prune(now time.Time) {
	if !s.orders.Synced() {
		return
	}
	s.mu.Lock()
	machines := make([]*machine, 0, len(s.machines))
	for _, m := range s.machines {
		machines = append(machines, m)
	}
	s.mu.Unlock()
	for _, m := range machines {
		keep := keepStranger
		m.mu.Lock()
		since := m.spokeAt
		if m.taskID != "" {
			keep = keepAfterOrder
			if _, ok := s.orders.Order(m.taskID); ok {
				m.goneAt = time.Time{}
			} else if m.goneAt.IsZero() {
				m.goneAt = now
			}
			since = m.goneAt
		}
		if !since.IsZero() && now.Sub(since) >= keep {
			s.drop(m)
		}
		m.mu.Unlock()
	}
}

// await looks at a task's order until done likes what it sees, and returns
// that: nil when the order is gone. After wait it returns what there is. It
// ends early with an error when the caller goes or the server closes.
func (s *Server) await(ctx context.Context, taskID string, wait time.Duration, done func(*lpmos.Order) bool) (*lpmos.Order, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		changed := s.orders.Changed(taskID) // before looking
		if s.orders.Synced() {
			o := s.order(taskID)
			if done(o) {
				return o, nil
			}
		}
		select {
		case <-changed:
		case <-timer.C:
			if err := s.ready(); err != nil {
				return nil, err
			}
			return s.order(taskID), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.closing:
			return nil, unavailable("this region restarts")
		}
	}
}

// order is nil when a task has none (any more).
func (s *Server) order(taskID string) *lpmos.Order {
	if o, ok := s.orders.Order(taskID); ok {
		return &o
	}
	return nil
}
