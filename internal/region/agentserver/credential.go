package agentserver

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// machine is one order's machine, or one without a task, and its boots.
type machine struct {
	taskID string    // "" for a machine without a task
	mac    lpmos.MAC // of a machine without a task

	requests *rate.Limiter
	doubtful *rate.Limiter // of whoever has a credential of this machine and does not prove to be it
	reported progressState
	logged   logState

	mu         sync.Mutex // guards what follows; held while a record is stored
	begun      int64      // newest boot_seq that was promised
	cur        *boot      // the newest boot whose segment was served
	prev       *boot      // the older boot that holds the permit until cur speaks
	boots      []*boot    // all remembered, oldest first
	quarantine *quarantine
	token      string // for the call home; its hash is in cur's record
	tokenNonce string // the permit the token came with
	booted     int    // the attempt whose call home is stored
	macs       []lpmos.MAC
	found      string // digest of what was stored of a machine without a task
	foundAt    time.Time
	spokeAt    time.Time
	goneAt     time.Time // when the order was first missed
}

// boot is one start of the agent.
type boot struct {
	m       *machine
	rec     lpmos.AgentRecord // as stored
	nonce   string
	segment []byte // until the agent speaks
	plea    string // hash of what an agent asks with that cannot unwrap its credential, "" when it is not wrapped
	spoke   bool
	asked   string // nonce of the permit it asked for, and when it first did
	askedAt time.Time
	// rivalled says that this boot, which is not the newest, spoke after the
	// newest one's segment was served.
	rivalled bool
}

type quarantine struct {
	reason  string
	attempt int
	seq     int64 // no boot up to this one is heard any more
	result  lpmos.Result
	stored  bool
}

type callhome struct {
	m       *machine
	attempt int
}

// granted reports whether the attempt the order stands at may write.
func granted(o *lpmos.Order) bool {
	return o != nil && o.Permit != nil && o.Permit.Attempt == o.Attempt
}

// quarantined reports whether no boot of this attempt may begin. A person's
// retry makes a new attempt and so a fresh start.
func (m *machine) quarantined(attempt int) bool {
	return m.quarantine != nil && attempt <= m.quarantine.attempt
}

// holder is the boot that keeps the floor when the next one's segment is
// served, or nil. Once the permit is granted, that is the newest that spoke:
// asking for a boot script must not be enough to stop an installation.
func (m *machine) holder(granted bool) *boot {
	switch {
	case !granted || m.cur == nil:
		return nil
	case m.cur.spoke:
		return m.cur
	}
	return m.prev
}

// replace makes b the newest boot; holder keeps the floor until b speaks.
func (m *machine) replace(b, holder *boot) {
	if m.cur != nil {
		m.cur.segment = nil
	}
	if holder != nil && holder == m.cur {
		holder.rivalled = false
	}
	m.cur, m.prev = b, holder
	m.token, m.tokenNonce = "", ""
}

// withOlder is the record of the newest boot as it is stored: with the boots
// before it, so that a region that starts again knows whom to let go on and
// whom to refuse.
func (m *machine) withOlder(rec lpmos.AgentRecord, holder *boot) lpmos.AgentRecord {
	rec.Older, rec.Holder = nil, 0
	for _, b := range slices.Backward(m.boots) {
		if r := b.rec; r.BootSeq < rec.BootSeq {
			rec.Older = append(rec.Older, lpmos.AgentBoot{
				Attempt: r.Attempt, BootSeq: r.BootSeq, BootMAC: r.BootMAC, UUID: r.UUID, Address: r.Address,
				Credential: r.Credential, Used: b.spoke, BootedAt: r.BootedAt, Key: r.Key,
			})
		}
	}
	if holder != nil {
		rec.Holder = holder.rec.BootSeq
	}
	return rec
}

// restore takes the place of what m knew of its boots. The caller holds the
// machine's mu.
func (s *Server) restore(m *machine, rec lpmos.AgentRecord) {
	for _, b := range slices.Clone(m.boots) {
		s.forget(b)
		s.mu.Lock()
		delete(s.callhomes, b.rec.Callhome)
		s.mu.Unlock()
	}
	m.prev, m.token, m.tokenNonce = nil, "", ""
	for _, o := range slices.Backward(rec.Older) {
		b := &boot{m: m, spoke: o.Used, rec: lpmos.AgentRecord{
			TaskID: rec.TaskID, Attempt: o.Attempt, BootSeq: o.BootSeq, BootMAC: o.BootMAC, UUID: o.UUID, Address: o.Address,
			Credential: o.Credential, Used: o.Used, BootedAt: o.BootedAt, Key: o.Key,
		}}
		if o.BootSeq == rec.Holder {
			m.prev = b
		}
		s.remember(b)
	}
	m.cur = &boot{m: m, rec: rec, spoke: rec.Used}
	if rec.Quarantined != "" {
		m.quarantine = &quarantine{reason: rec.Quarantined, attempt: rec.Attempt, seq: rec.BootSeq, stored: true}
	}
	s.remember(m.cur)
}

// machine finds or makes the machine of a task or, with an empty ID, of a MAC
// that has none.
func (s *Server) machine(taskID string, mac lpmos.MAC) *machine {
	key := taskID
	if taskID == "" {
		key = "mac " + mac.String()
	} else {
		mac = lpmos.MAC{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machines[key]
	if m == nil {
		if taskID == "" {
			s.limitStrangers()
		}
		m = &machine{
			taskID: taskID, mac: mac, spokeAt: time.Now(),
			requests: rate.NewLimiter(10, 50), doubtful: rate.NewLimiter(2, 10),
			reported: progressState{limit: rate.NewLimiter(1, 5)},
			logged:   logState{limit: rate.NewLimiter(0.5, 10)},
		}
		s.machines[key] = m
	}
	return m
}

// limitStrangers makes room for one more machine without a task. Anyone on the
// network can invent machines, so their number is bounded, and the one that
// goes is any: an honest one boots again. The caller holds s.mu.
func (s *Server) limitStrangers() {
	n := 0
	for _, m := range s.machines {
		if m.taskID == "" {
			n++
		}
	}
	for key, m := range s.machines {
		if n < maxStrangers {
			return
		}
		if m.taskID == "" {
			n--
			delete(s.machines, key)
			for hash, b := range s.creds {
				if b.m == m {
					delete(s.creds, hash)
				}
			}
		}
	}
}

// remember lets a boot's secrets be found. The caller holds the machine's mu.
func (s *Server) remember(b *boot) {
	m := b.m
	m.boots = append(m.boots, b)
	s.mu.Lock()
	s.creds[b.rec.Credential] = b
	if b.plea != "" {
		s.pleas[b.plea] = b
	}
	if b.rec.Callhome != "" {
		s.callhomes[b.rec.Callhome] = callhome{m, b.rec.Attempt}
	}
	s.mu.Unlock()
	for len(m.boots) > bootsRemembered {
		oldest := m.boots[0]
		if oldest == m.prev {
			oldest = m.boots[1]
		}
		s.forget(oldest)
	}
}

// forget makes a boot's credential unknown. The caller holds the machine's mu.
func (s *Server) forget(b *boot) {
	b.m.boots = slices.DeleteFunc(b.m.boots, func(o *boot) bool { return o == b })
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pleas, b.plea)
	if s.creds[b.rec.Credential] == b {
		delete(s.creds, b.rec.Credential)
	}
}

// drop forgets a machine and all its secrets. The caller holds its mu.
func (s *Server) drop(m *machine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range m.boots {
		delete(s.pleas, b.plea)
		delete(s.creds, b.rec.Credential)
		delete(s.callhomes, b.rec.Callhome)
	}
	key := m.taskID
	if key == "" {
		key = "mac " + m.mac.String()
	}
	if s.machines[key] == m {
		delete(s.machines, key)
	}
}

// bearer is the hash of the secret a request carries.
func bearer(r *http.Request) (hash string, ok bool) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return "", false
	}
	secret, ok := strings.CutPrefix(values[0], "Bearer ")
	if raw, err := hex.DecodeString(secret); !ok || err != nil || len(raw) != 32 {
		return "", false
	}
	return lpmos.DigestBytes([]byte(secret)), true
}

// caller is an agent whose credential is good.
type caller struct {
	m     *machine
	b     *boot
	rec   lpmos.AgentRecord
	order *lpmos.Order // nil when the machine has no task or the task has ended
	addr  netip.Addr
	key   ed25519.PublicKey // that the connection proved, nil when none
}

// authenticate finds out which boot speaks and whether it may.
func (s *Server) authenticate(r *http.Request) (*caller, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	hash, ok := bearer(r)
	if !ok {
		return nil, errUnknown
	}
	s.mu.Lock()
	b, plea := s.creds[hash], s.pleas[hash]
	s.mu.Unlock()
	if plea != nil {
		return nil, s.plead(r, plea)
	}
	if b == nil { // what is compared are hashes: time tells nothing of a secret
		return nil, errUnknown
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return nil, forbidden("the request has no source address")
	}
	c := &caller{m: b.m, b: b, addr: from.Addr().Unmap().WithZone(""), key: agentapi.PeerKey(r.TLS)}
	if b.m.taskID != "" {
		c.order = s.order(b.m.taskID)
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if !b.allowance(c.key).Allow() {
		return nil, errTooMany
	}
	if err := s.admit(r.Context(), c); err != nil {
		return nil, err
	}
	c.rec = b.rec
	return c, nil
}

// plead answers an agent that cannot unwrap its credential. It is refused, and
// told of: it is not the machine, or the machine has another mainboard.
func (s *Server) plead(r *http.Request, b *boot) error {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return forbidden("the request has no source address")
	}
	c := &caller{m: b.m, b: b, addr: from.Addr().Unmap().WithZone(""), order: s.order(b.m.taskID)}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if !b.m.doubtful.Allow() {
		return errTooMany
	}
	s.log.Error("agent cannot unwrap its credential", "task", b.m.taskID, "mac", b.rec.BootMAC, "addr", c.addr)
	s.alarm(r.Context(), c, "tpm_other", "A machine that answers for this one has not the TPM that this one was approved with: it is a clone, or the mainboard was replaced. "+
		"If it was, cancel the task, have the TPM forgotten (the machine's page, or lpmos machine forget-tpm), and create the task again.")
	return forbidden("this machine was approved with another TPM")
}

// allowance is whose requests a request counts among: a thief who floods with a
// copied or revoked credential must not use up what the machine itself may ask.
// The caller holds the machine's mu.
func (b *boot) allowance(key ed25519.PublicKey) *rate.Limiter {
	if b != b.m.cur && b != b.m.prev || b.rec.Key != nil && !key.Equal(ed25519.PublicKey(b.rec.Key.Sign)) {
		return b.m.doubtful
	}
	return b.m.requests
}

// admit decides whether a known boot is heard. The caller holds the machine's
// mu.
func (s *Server) admit(ctx context.Context, c *caller) error {
	m, b := c.m, c.b
	if q := m.quarantine; q != nil && b.rec.BootSeq <= q.seq {
		s.storeQuarantine(ctx, m)
		return forbidden(q.reason)
	}
	if err := s.checkKey(ctx, c); err != nil {
		return err
	}
	if err := s.checkAddress(c); err != nil {
		s.alarm(ctx, c, "credential_moved", "Somebody used this machine's credential from another address.")
		return err
	}
	if o := c.order; o != nil {
		m.macs = o.Macs
		// A permit opens the attempt after the one a boot began in; a person's
		// retry ends the attempt and all its credentials.
		if o.Attempt != b.rec.Attempt && !(granted(o) && o.Attempt == b.rec.Attempt+1) {
			return errUnknown
		}
	}
	if b == m.cur {
		if m.prev != nil && m.prev.rivalled && granted(c.order) {
			return s.quarantine(ctx, c)
		}
		m.prev = nil
	} else {
		switch {
		case c.order != nil && m.cur.spoke && (b.spoke || granted(c.order)):
			return s.quarantine(ctx, c)
		case !granted(c.order):
			// It never spoke: another start of this machine was quicker. It boots
			// again; who took the segment that was newer is seen by then.
			if c.order != nil && m.cur.spoke {
				s.alarm(ctx, c, "credential_revoked", "An agent started with a credential that a newer start of this machine had revoked.")
			}
			s.log.Warn("credential of an older boot used", "task", m.taskID, "addr", c.addr, "seq", b.rec.BootSeq, "newest", m.cur.rec.BootSeq)
			return errUnknown
		case b != m.prev:
			return errUnknown
		}
		b.rivalled = true
	}
	b.spoke, b.segment = true, nil
	m.spokeAt = time.Now()
	if b.rec.Used && b.rec.Address == c.addr.String() || m.taskID == "" || b != m.cur {
		return nil
	}
	rec := b.rec
	rec.Used, rec.Address = true, c.addr.String()
	return s.keep(ctx, b, rec)
}

// keep stores the newest boot's changed record. When the order has gone or moved on
// there is nothing to keep it for. The caller holds the machine's mu.
func (s *Server) keep(ctx context.Context, b *boot, rec lpmos.AgentRecord) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rec = b.m.withOlder(rec, b.m.prev)
	if err := s.reports.PutAgent(ctx, rec); err != nil && !errors.Is(err, lpmos.ErrNotFound) {
		return err
	}
	b.rec = rec
	return nil
}

// checkAddress holds a credential to the address its segment was served to or,
// where this region gives out addresses, to the machine's lease.
func (s *Server) checkAddress(c *caller) error {
	if c.addr.String() == c.b.rec.Address {
		return nil
	}
	if s.leases != nil {
		if mac, ok := s.leases.ByAddress(c.addr); ok && (mac == c.b.rec.BootMAC || c.order != nil && slices.Contains(c.order.Macs, mac)) {
			return nil
		}
	}
	s.log.Error("credential used from another address", "task", c.m.taskID, "mac", c.b.rec.BootMAC, "addr", c.addr, "bound", c.b.rec.Address)
	return forbidden("the credential belongs to another address")
}

// checkKey holds a credential to the key that was registered with it. Before
// that, whoever brings a key may register it. The answer to a wrong key is that
// to a wrong credential. The caller holds the machine's mu.
func (s *Server) checkKey(ctx context.Context, c *caller) error {
	switch k := c.b.rec.Key; {
	case c.key == nil:
		s.log.Warn("credential used without a key", "task", c.m.taskID, "mac", c.b.rec.BootMAC, "addr", c.addr)
	case k == nil || c.key.Equal(ed25519.PublicKey(k.Sign)):
		return nil
	default:
		s.log.Error("credential used with another key", "task", c.m.taskID, "mac", c.b.rec.BootMAC, "addr", c.addr)
	}
	if c.b.rec.Key != nil {
		s.alarm(ctx, c, "credential_stolen", "Somebody used this machine's credential without its key: it was copied on its way, or two machines took it.")
	}
	return errUnknown
}

// register keeps the key of a boot with its first report. The caller holds the
// machine's mu.
func (s *Server) register(ctx context.Context, c *caller, k *lpmos.AgentPublic) error {
	switch known := c.b.rec.Key; {
	case k == nil && known == nil:
		return &lpmos.InvalidError{Field: "agent_key", Problem: "is missing"}
	case k == nil:
		return nil
	case k.Validate() != nil:
		return k.Validate()
	case !c.key.Equal(ed25519.PublicKey(k.Sign)):
		return &lpmos.InvalidError{Field: "agent_key.sign", Problem: "is not the key of the connection"}
	case known != nil && known.Fingerprint() != k.Fingerprint():
		return forbidden("this boot has registered another key")
	case known != nil:
		return nil
	}
	rec := c.b.rec
	rec.Key = k
	if c.m.taskID == "" || c.b != c.m.cur {
		c.b.rec = rec
	} else if err := s.keep(ctx, c.b, rec); err != nil {
		return err
	}
	c.rec = c.b.rec
	s.log.Info("agent key registered", "task", c.m.taskID, "mac", rec.BootMAC, "seq", rec.BootSeq, "words", lpmos.KeyWords(k.Fingerprint()))
	return nil
}

// alarmEvery is how often one more of the same is told.
const alarmEvery = time.Minute

// alarm tells the control plane of something a person should look at. It is
// stored with the newest boot's record, at most once a minute of one kind; that
// it cannot be stored now stops nothing. The caller holds the
// machine's mu.
func (s *Server) alarm(ctx context.Context, c *caller, code, message string) {
	m := c.m
	s.stats.alarms.Add(1)
	if m.cur == nil || c.order == nil {
		return
	}
	a := lpmos.Alarm{Code: code, Message: message, Address: c.addr.String(), Count: 1, At: time.Now().UTC()}
	if was := m.cur.rec.Alarm; was != nil {
		if age := a.At.Sub(was.At); age < alarmEvery/6 || was.Code == code && age < alarmEvery {
			return
		}
		a.Count += was.Count
	}
	s.log.Error("alarm", "task", m.taskID, "mac", m.cur.rec.BootMAC, "addr", c.addr, "code", code)
	rec := m.cur.rec
	rec.Alarm = &a
	if err := s.keep(ctx, m.cur, rec); err != nil {
		s.log.Warn("alarm not stored", "task", m.taskID, "err", err)
	}
}

// quarantine stops both of two agents that claim one task: one of them has a
// credential that was revoked when the other spoke. The caller holds the
// machine's mu.
func (s *Server) quarantine(ctx context.Context, c *caller) error {
	m := c.m
	writing := granted(c.order)
	q := &quarantine{reason: "two agents claim this task", attempt: c.order.Attempt, seq: m.begun}
	at, other := m.cur, m.prev
	if c.b != m.cur {
		other = c.b
	}
	evidence := "boot " + itoa(at.rec.BootSeq) + " from " + at.rec.Address + ", boot " + itoa(other.rec.BootSeq) + " from " + other.rec.Address
	q.result = lpmos.Result{TaskID: m.taskID, Attempt: c.order.Attempt, Written: writing, Failure: &lpmos.Failure{
		Code:  "credential_reused",
		Cause: "Two agents answered for this machine: a credential that was revoked by a newer start was used again. One of them is not the machine. Nothing was written.",
		NextStep: "Find out which two machines they are (a copied address, a clone, an intruder) by the addresses below, switch one off, retry the task, " +
			"and compare the key words on the machine's console before you approve.",
		Evidence: evidence, Attempt: c.order.Attempt, At: time.Now().UTC(),
	}}
	if writing {
		q.result.Failure.Stage = m.reported.stage()
		q.result.Failure.Cause = "Two agents used this task's permission to write at the same time, so one of them is not the machine that was approved."
	}
	m.quarantine = q
	s.stats.quarantines.Add(1)
	s.log.Error("task quarantined: two agents claim it", "task", m.taskID, "addr", c.addr, "evidence", evidence)
	s.storeQuarantine(ctx, m)
	return forbidden(q.reason)
}

// storeQuarantine hands the quarantine up until that has succeeded once; it is
// in force whether or not. The caller holds the machine's mu.
func (s *Server) storeQuarantine(ctx context.Context, m *machine) {
	q := m.quarantine
	if q.stored {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	rec := m.withOlder(m.cur.rec, nil)
	rec.Quarantined = q.reason
	if q.attempt == rec.Attempt {
		if err := s.reports.PutAgent(ctx, rec); err != nil && !errors.Is(err, lpmos.ErrNotFound) {
			s.log.Error("quarantine not stored yet", "task", m.taskID, "err", err)
			return
		}
		m.cur.rec = rec
	}
	if err := s.reports.PutResult(ctx, q.result); err != nil && !errors.Is(err, lpmos.ErrNotFound) {
		s.log.Error("quarantine not stored yet", "task", m.taskID, "err", err)
		return
	}
	q.stored = true
}

// owns checks that the caller has registered its key and that what a body names
// is its own.
func (s *Server) owns(c *caller, mac lpmos.MAC, taskID string) error {
	if c.rec.Key == nil {
		return forbidden("this boot has not registered its key: the first request is a report")
	}
	return s.names(c, mac, taskID)
}

// names checks that what a body names is the caller's.
func (s *Server) names(c *caller, mac lpmos.MAC, taskID string) error {
	mine := mac == c.rec.BootMAC
	if o := c.order; o != nil {
		mine = mine || mac == o.TargetMAC || slices.Contains(o.Macs, mac)
	}
	if mac.IsZero() || !mine || taskID != c.m.taskID {
		s.log.Error("agent named another machine or task", "task", c.m.taskID, "mac", mac, "named", lpmos.Shorten(taskID, 40), "addr", c.addr)
		return forbidden("the credential is for another machine or task")
	}
	return nil
}
