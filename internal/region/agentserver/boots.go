package agentserver

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/tpm"
)

// BootRequest is a machine that asks for its boot script and is to start the
// agent.
type BootRequest struct {
	MAC    lpmos.MAC
	UUID   string // SMBIOS, as iPXE sent it; "" when it did not
	Remote netip.Addr
}

const (
	nonceLifetime = 10 * time.Minute
	// segmentRetry is how long the same address may ask for its segment again,
	// as iPXE does after a broken connection, before the agent has spoken.
	segmentRetry = time.Minute
)

// errNonce means never: for this nonce and address there is no segment (any
// more).
var errNonce = fmt.Errorf("boot segment: %w: it was served, is too old, or is another machine's", lpmos.ErrNotFound)

// Begin promises a machine a new boot and returns the nonce of its segment, in
// letters, digits, "-" and "_". The order is nil for a machine without a task,
// which is only taken with Config.Discover. Nothing is stored: the nonce itself
// says, sealed, for whom and for which boot it is.
func (s *Server) Begin(ctx context.Context, req BootRequest) (*lpmos.Order, string, error) {
	if err := s.ready(); err != nil {
		return nil, "", err
	}
	if req.MAC.IsZero() || !req.Remote.IsValid() {
		return nil, "", &lpmos.InvalidError{Field: "mac", Problem: "is missing"}
	}
	order, known := s.orders.ByMAC(req.MAC)
	if !known && !s.cfg.Discover {
		return nil, "", fmt.Errorf("boot of %s: %w: no task wants it", req.MAC, lpmos.ErrNotFound)
	}
	if len(s.orders.Keys()) == 0 {
		return nil, "", unavailable("the control plane has not published its keys")
	}
	if why := s.leasedElsewhere(req, order.Macs); why != "" {
		return nil, "", unavailable(why)
	}
	m := s.machine(order.TaskID, req.MAC)
	m.mu.Lock()
	defer m.mu.Unlock()
	if known && m.quarantined(order.Attempt) {
		return nil, "", &lpmos.ConflictError{Problem: m.quarantine.reason, Status: order.Status}
	}
	m.begun++
	n := nonce{MAC: req.MAC, Seq: m.begun, Remote: req.Remote.Unmap(), At: time.Now(), TaskID: order.TaskID, UUID: cleanText(req.UUID, 64)}
	s.log.Info("boot begun", "task", order.TaskID, "mac", req.MAC, "addr", req.Remote, "seq", n.Seq)
	if !known {
		return nil, n.seal(s.cfg.Secret), nil
	}
	return &order, n.seal(s.cfg.Secret), nil
}

// leasedElsewhere says why whoever asks is not the machine, as far as addresses
// tell that this region gave out: theirs is another's, or the machine has another.
// One that got its address elsewhere and has none from here is taken at its word.
func (s *Server) leasedElsewhere(req BootRequest, macs []lpmos.MAC) string {
	if s.leases == nil {
		return ""
	}
	if of, ok := s.leases.ByAddress(req.Remote.Unmap()); ok {
		if of == req.MAC || slices.Contains(macs, of) {
			return ""
		}
		return "address " + req.Remote.String() + " was given to " + of.String()
	}
	if a, ok := s.leases.ByMAC(req.MAC); ok {
		return "machine " + req.MAC.String() + " was given " + a.String()
	}
	return ""
}

// Segment makes the cpio archive that gives a boot its configuration and
// credential. The credential's hash is stored before the archive is returned.
// An error that wraps lpmos.ErrNotFound means never for this nonce and address;
// others are "not now".
func (s *Server) Segment(ctx context.Context, sealed string, remote netip.Addr) ([]byte, error) {
	n, ok := openNonce(sealed, s.cfg.Secret)
	if age := time.Since(n.At); !ok || n.Remote != remote.Unmap() || age > nonceLifetime || age < -nonceLifetime {
		return nil, errNonce
	}
	if err := s.ready(); err != nil {
		return nil, err
	}
	order, known := s.orders.ByMAC(n.MAC)
	if order.TaskID != n.TaskID || !known && !s.cfg.Discover {
		return nil, errNonce // the task ended or began since the script was served
	}
	m := s.machine(n.TaskID, n.MAC)
	m.mu.Lock()
	defer m.mu.Unlock()
	if known && m.quarantined(order.Attempt) {
		return nil, errNonce
	}
	if cur := m.cur; cur != nil && n.Seq <= cur.rec.BootSeq {
		again := n.Seq == cur.rec.BootSeq && !cur.spoke && time.Since(cur.rec.BootedAt) < segmentRetry &&
			cur.rec.Address == n.Remote.String() && cur.rec.BootMAC == n.MAC && cmp.Or(cur.nonce, sealed) == sealed
		switch {
		case !again:
			s.log.Warn("boot segment asked for again", "task", n.TaskID, "mac", n.MAC, "addr", remote, "seq", n.Seq)
			return nil, errNonce
		case cur.segment != nil:
			return cur.segment, nil
		}
		// The process that served it is gone, and so is the archive; a fresh
		// credential takes the place of the one that was not used.
	}
	return s.mint(ctx, m, n, sealed, order)
}

// mint makes the newest boot of m. The caller holds m.mu.
func (s *Server) mint(ctx context.Context, m *machine, n nonce, sealed string, order lpmos.Order) ([]byte, error) {
	secret, hash := newSecret()
	plea := ""
	rec := lpmos.AgentRecord{
		TaskID: n.TaskID, Attempt: order.Attempt, BootSeq: n.Seq, BootMAC: n.MAC, UUID: n.UUID,
		Address: n.Remote.String(), Credential: hash, BootedAt: time.Now().UTC(),
	}
	if m.cur != nil && m.cur.rec.Attempt == rec.Attempt {
		// A system that this attempt has already installed may still call home.
		rec.Callhome = m.cur.rec.Callhome
	}
	cfg := agentapi.BootConfig{
		RegionID: s.cfg.RegionID, AgentURL: s.cfg.AgentURL, ServerName: s.cfg.ServerName, CA: s.cfg.CA,
		BootURL: s.cfg.BootURL, TaskID: n.TaskID, Attempt: order.Attempt,
		BootSeq: n.Seq, BootMAC: n.MAC, Credential: secret, Time: rec.BootedAt,
		Callhome: cmp.Or(s.cfg.CallhomeURL, s.cfg.AgentURL),
	}
	if order.TPM != nil {
		var err error
		if cfg.Wrapped, err = wrap(order.TPM, secret); err != nil {
			return nil, fmt.Errorf("boot segment: %w", err)
		}
		cfg.Credential = ""
		cfg.Plea, plea = newSecret()
	}
	content, err := json.Marshal(cfg)
	if err != nil {
		panic(fmt.Sprintf("agentserver: encode boot configuration: %v", err))
	}
	b := &boot{m: m, rec: rec, nonce: sealed, plea: plea, segment: agentapi.Segment(agentapi.BootConfigPath, content)}
	holder := m.holder(granted(&order))
	if n.TaskID != "" {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		b.rec = m.withOlder(rec, holder)
		if err := s.reports.PutAgent(ctx, b.rec); errors.Is(err, lpmos.ErrNotFound) {
			return nil, unavailable("the task is changing") // the view is a moment behind the store
		} else if err != nil {
			return nil, fmt.Errorf("boot segment: %w", err)
		}
	}
	m.replace(b, holder)
	m.begun = max(m.begun, n.Seq)
	m.spokeAt = time.Now()
	s.remember(b)
	s.stats.boots.Add(1)
	s.log.Info("boot segment served", "task", n.TaskID, "mac", n.MAC, "addr", n.Remote, "seq", n.Seq)
	return b.segment, nil
}

// wrap closes a credential for a machine's TPM, so that a clone of its addresses
// and serial number gets nothing.
func wrap(t *lpmos.TPM, secret string) (*tpm.Wrapped, error) {
	raw, err := hex.DecodeString(secret)
	if err != nil {
		panic(fmt.Sprintf("agentserver: a credential is not hexadecimal: %v", err))
	}
	w, err := tpm.Wrap(tpm.Identity{Endorsement: t.Endorsement, Activated: t.Companion}, raw)
	return &w, err
}

// newSecret makes 32 random bytes in hexadecimal and what is kept of them.
func newSecret() (secret, hash string) {
	var b [32]byte
	rand.Read(b[:])
	secret = hex.EncodeToString(b[:])
	return secret, lpmos.DigestBytes([]byte(secret))
}

// nonce is what stands, sealed, in the address of a segment.
type nonce struct {
	MAC    lpmos.MAC  `json:"m"`
	Seq    int64      `json:"s"`
	Remote netip.Addr `json:"a"`
	At     time.Time  `json:"t"`
	TaskID string     `json:"i,omitempty"`
	UUID   string     `json:"u,omitempty"`
	Salt   []byte     `json:"r"`
}

// seal makes the nonce unforgeable (HMAC-SHA-256, RFC 2104) and fit for a URL.
func (n nonce) seal(secret []byte) string {
	n.Salt = make([]byte, 9)
	rand.Read(n.Salt)
	n.At = n.At.UTC().Truncate(time.Second)
	b, err := json.Marshal(n)
	if err != nil {
		panic(fmt.Sprintf("agentserver: encode nonce: %v", err))
	}
	return base64.RawURLEncoding.EncodeToString(append(nonceMAC(secret, b), b...))
}

func openNonce(sealed string, secret []byte) (n nonce, ok bool) {
	if len(sealed) > 1024 {
		return n, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(sealed)
	if err != nil || len(b) < sha256.Size || !hmac.Equal(b[:sha256.Size], nonceMAC(secret, b[sha256.Size:])) {
		return n, false
	}
	return n, json.Unmarshal(b[sha256.Size:], &n) == nil
}

func nonceMAC(secret, b []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write(binary.BigEndian.AppendUint64([]byte("lpmos boot segment v1\n"), uint64(len(b))))
	h.Write(b)
	return h.Sum(nil)
}
