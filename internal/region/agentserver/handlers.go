package agentserver

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// empty answers what needs no answer.
type empty struct{}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// waitOf reads ?wait=, a Go duration; longer than agentapi.MaxWait is cut.
func waitOf(r *http.Request) (time.Duration, error) {
	q := r.URL.Query()
	if !q.Has("wait") {
		return 0, nil
	}
	d, err := time.ParseDuration(q.Get("wait"))
	if err != nil || d < 0 {
		return 0, &lpmos.InvalidError{Field: "wait", Problem: "is not a duration such as 30s", Value: q.Get("wait")}
	}
	return min(d, agentapi.MaxWait), nil
}

// read authenticates, then decodes a body of at most limit bytes.
func read[T any](s *Server, r *http.Request, limit int64) (*caller, *T, error) {
	c, err := s.authenticate(r)
	if err != nil {
		return nil, nil, err
	}
	body := new(T)
	if err := lpmos.DecodeJSON(r.Body, limit, body); err != nil {
		return nil, nil, err
	}
	return c, body, nil
}

// stored gives a store error its meaning for an agent. That an order is gone or
// moved on is the view's to say: until it does, the agent asks again.
func (s *Server) stored(taskID string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, lpmos.ErrNotFound):
		if s.orders.Synced() && s.order(taskID) == nil {
			return errEnded
		}
		return unavailable("the task is changing")
	case errors.Is(err, lpmos.ErrConflict):
		return unavailable("another instance of this region has taken over")
	}
	return err
}

var errEnded = &endedError{}

// endedError says that the task an agent works for has ended.
type endedError struct{}

func (*endedError) Error() string        { return "the task has ended" }
func (*endedError) Is(target error) bool { return target == lpmos.ErrNotFound }

func (s *Server) report(r *http.Request) (any, error) {
	c, body, err := read[agentapi.Report](s, r, agentapi.MaxReportBytes)
	if err != nil {
		return nil, err
	}
	if err := checkHardware(body.Hardware); err != nil {
		return nil, err
	}
	if err := s.names(c, body.MACAddress, c.m.taskID); err != nil {
		return nil, err
	}
	if !sameUUID(c.rec.UUID, body.Hardware.System.UUID) {
		s.log.Error("agent runs on another machine than the one that booted", "task", c.m.taskID, "mac", c.rec.BootMAC, "uuid", body.Hardware.System.UUID, "booted", c.rec.UUID)
		return nil, forbidden("the machine's UUID is not the one that booted")
	}
	ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
	defer cancel()
	c.m.mu.Lock()
	err = s.register(ctx, c, body.AgentKey)
	c.m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if c.m.taskID == "" {
		d := lpmos.Discovered{MAC: c.m.mac, Hardware: body.Hardware, Address: c.addr.String(), SeenAt: time.Now().UTC()}
		return agentapi.ReportAnswer{}, s.discovered(ctx, c.m, d)
	}
	if c.order == nil {
		return agentapi.ReportAnswer{}, nil
	}
	if err := s.stored(c.m.taskID, s.reports.PutHardware(ctx, c.m.taskID, c.order.Attempt, body.Hardware)); err == errEnded {
		return agentapi.ReportAnswer{}, nil
	} else if err != nil {
		return nil, err
	}
	if err := s.hardwareKnown(ctx, c); err != nil {
		return nil, err
	}
	return agentapi.ReportAnswer{TaskID: c.m.taskID, Status: c.order.Status, Attempt: c.order.Attempt}, nil
}

// discovered hands up a machine without a task. It reports once a minute for as
// long as nobody wants it, which is stored when it says something new, and else
// seldom.
func (s *Server) discovered(ctx context.Context, m *machine, d lpmos.Discovered) error {
	digest := lpmos.DigestOf([]any{d.Hardware, d.Address})
	m.mu.Lock()
	same := m.found == digest && d.SeenAt.Sub(m.foundAt) < discoveredEvery
	m.mu.Unlock()
	if same {
		return nil
	}
	if err := s.reports.PutDiscovered(ctx, d); err != nil {
		return s.stored("", err)
	}
	m.mu.Lock()
	m.found, m.foundAt = digest, d.SeenAt
	m.mu.Unlock()
	s.log.Info("machine without a task reported", "mac", d.MAC, "addr", d.Address)
	return nil
}

func (s *Server) hardwareKnown(ctx context.Context, c *caller) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.b != c.m.cur || c.b.rec.HardwareKnown {
		return nil
	}
	rec := c.b.rec
	rec.HardwareKnown = true
	return s.keep(ctx, c.b, rec)
}

func (s *Server) approval(r *http.Request) (any, error) {
	c, err := s.authenticate(r)
	if err != nil {
		return nil, err
	}
	mac, err := lpmos.ParseMAC(r.PathValue("mac"))
	if err != nil {
		return nil, err
	}
	if err := s.owns(c, mac, c.m.taskID); err != nil {
		return nil, err
	}
	wait, err := waitOf(r)
	if err != nil {
		return nil, err
	}
	if c.m.taskID == "" {
		return s.awaitTask(r.Context(), mac, wait)
	}
	o, err := s.await(r.Context(), c.m.taskID, wait, func(o *lpmos.Order) bool {
		return o == nil || o.Status != lpmos.Pending && o.Status != lpmos.AwaitingApproval
	})
	if err != nil {
		return nil, err
	}
	if o == nil {
		return agentapi.Approval{}, nil
	}
	a := agentapi.Approval{TaskID: o.TaskID, Status: o.Status, Attempt: o.Attempt}
	switch o.Status {
	case lpmos.Approved, lpmos.Installing, lpmos.Verifying:
		a.Plan, a.Decision = o.Plan, o.Approval
		a.Approved = o.Status != lpmos.Verifying && o.Plan != nil && o.Approval != nil && o.Approval.Approved
	}
	return a, nil
}

// awaitTask tells a machine without a task when it has got one; it then boots
// again, because only a boot carries a task's credential.
func (s *Server) awaitTask(ctx context.Context, mac lpmos.MAC, wait time.Duration) (any, error) {
	var found lpmos.Order
	_, err := s.await(ctx, "", wait, func(*lpmos.Order) bool {
		var ok bool
		found, ok = s.orders.ByMAC(mac)
		return ok
	})
	if err != nil {
		return nil, err
	}
	return agentapi.Approval{TaskID: found.TaskID, Status: found.Status, Attempt: found.Attempt}, nil
}

func (s *Server) permit(r *http.Request) (any, error) {
	c, body, err := read[agentapi.PermitRequest](s, r, agentapi.MaxBodyBytes)
	if err != nil {
		return nil, err
	}
	if err := s.owns(c, body.MACAddress, body.TaskID); err != nil {
		return nil, err
	}
	if raw, err := hex.DecodeString(body.Nonce); err != nil || len(raw) != 32 || strings.ToLower(body.Nonce) != body.Nonce {
		return nil, &lpmos.InvalidError{Field: "nonce", Problem: "is not 64 hexadecimal digits"}
	}
	for _, f := range []struct{ field, v string }{{"plan_digest", body.PlanDigest}, {"hardware_digest", body.HardwareDigest}} {
		if d, err := lpmos.TrimDigest(f.v); err != nil || f.v != "sha256:"+d {
			return nil, &lpmos.InvalidError{Field: f.field, Problem: "is not sha256: and 64 hexadecimal digits", Value: f.v}
		}
	}
	wait, err := waitOf(r)
	if err != nil {
		return nil, err
	}
	decided := func(o *lpmos.Order) bool { return permitted(o, body.Nonce) || refusal(o) != "" }
	o := c.order
	if !decided(o) {
		ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
		defer cancel()
		err := s.reports.PutPermitRequest(ctx, lpmos.PermitRequest{
			TaskID: o.TaskID, Attempt: o.Attempt, Nonce: body.Nonce, PlanDigest: body.PlanDigest,
			HardwareDigest: body.HardwareDigest, BootSeq: c.rec.BootSeq, At: c.askedAt(body.Nonce), AgentKey: c.rec.Key,
		})
		// When the order has just moved on, it may be by this very request,
		// repeated; the view will tell.
		if err != nil && !errors.Is(err, lpmos.ErrNotFound) {
			return nil, s.stored(o.TaskID, err)
		}
		if o, err = s.await(r.Context(), c.m.taskID, wait, decided); err != nil {
			return nil, err
		}
	}
	switch {
	case permitted(o, body.Nonce):
		return s.grant(r.Context(), c, o)
	case refusal(o) != "":
		return agentapi.PermitAnswer{Refused: refusal(o)}, nil
	}
	return agentapi.PermitAnswer{}, nil
}

// askedAt is when the boot first asked with this nonce: the place in the queue
// for permits.
func (c *caller) askedAt(nonce string) time.Time {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.b.asked != nonce {
		c.b.asked, c.b.askedAt = nonce, time.Now().UTC()
	}
	return c.b.askedAt
}

func permitted(o *lpmos.Order, nonce string) bool {
	return granted(o) && o.Status == lpmos.Installing && o.Permit.Nonce == nonce
}

// refusal says why no permit can come of an order as it stands, or "".
func refusal(o *lpmos.Order) string {
	switch {
	case o == nil:
		return "The task has ended: it was canceled, has failed, or was finished."
	case o.Status == lpmos.Approved, o.Status == lpmos.Installing:
		return ""
	case o.Status == lpmos.Verifying:
		return "The machine is installed already."
	case o.Status.Live():
		return "The approval does not stand any more; the task waits for a new one."
	}
	return "The task has ended (" + string(o.Status) + ")."
}

// grant gives a boot its permit and a call-home token, whose hash is stored
// first, and lets the boot enter the attempt the permit is for.
func (s *Server) grant(ctx context.Context, c *caller, o *lpmos.Order) (any, error) {
	m := c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	// Another boot may have come while this one waited, and the machine that
	// asked may be long gone; that its question is still open proves nothing.
	switch {
	case m.quarantine != nil && c.rec.BootSeq <= m.quarantine.seq:
		return nil, forbidden(m.quarantine.reason)
	case c.b == m.prev:
		return nil, unavailable("a newer boot of this machine is under way")
	case c.b != m.cur:
		return nil, errUnknown
	}
	var sealed []byte
	if o.Plan != nil && len(o.Plan.Effect.Secrets) > 0 {
		seal, ok := s.orders.Secrets(m.taskID)
		if !ok || seal.Attempt != o.Attempt {
			return nil, unavailable("the secrets of this attempt are not here yet")
		}
		sealed = seal.Sealed
	}
	// The same token for the same permit: of two answers in flight, it must not
	// matter which one the agent gets.
	if m.token == "" || m.tokenNonce != o.Permit.Nonce {
		token, hash := newSecret()
		rec := m.withOlder(c.b.rec, nil)
		rec.Attempt, rec.Callhome = o.Attempt, hash
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		if err := s.stored(m.taskID, s.reports.PutAgent(ctx, rec)); err != nil {
			return nil, err
		}
		s.mu.Lock()
		delete(s.callhomes, c.b.rec.Callhome)
		s.callhomes[hash] = callhome{m, rec.Attempt}
		s.mu.Unlock()
		c.b.rec = rec
		m.token, m.tokenNonce = token, o.Permit.Nonce
		s.log.Info("permit handed to agent", "task", m.taskID, "attempt", rec.Attempt, "seq", rec.BootSeq)
	}
	return agentapi.PermitAnswer{Permit: o.Permit, CallhomeToken: m.token, Secrets: sealed}, nil
}

func (s *Server) result(r *http.Request) (any, error) {
	c, body, err := read[agentapi.Result](s, r, agentapi.MaxBodyBytes)
	if err != nil {
		return nil, err
	}
	if err := s.owns(c, body.MACAddress, body.TaskID); err != nil {
		return nil, err
	}
	wait, err := waitOf(r)
	if err != nil {
		return nil, err
	}
	res := lpmos.Result{TaskID: body.TaskID, Attempt: body.Attempt, OK: body.OK, Written: body.Written}
	switch {
	case body.OK && body.Failure != nil:
		return nil, &lpmos.InvalidError{Field: "failure", Problem: "is given although ok is true"}
	case !body.OK:
		if res.Failure, err = checkFailure(body.Failure, body.Attempt); err != nil {
			return nil, err
		}
	}
	over := func(o *lpmos.Order) bool { return o == nil || o.Status == lpmos.Verifying || !o.Status.Live() }
	o := c.order
	if o != nil && o.Attempt != body.Attempt {
		return nil, &lpmos.ConflictError{Problem: "the task is at attempt " + strconv.Itoa(o.Attempt), Status: o.Status}
	}
	if !over(o) {
		if body.OK {
			s.complete(c.m, body.TaskID, body.Attempt)
		}
		s.flushProgress(c.m)
		ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
		defer cancel()
		if err := s.stored(o.TaskID, s.reports.PutResult(ctx, res)); err != nil && err != errEnded {
			return nil, err
		}
		s.log.Info("result reported", "task", o.TaskID, "attempt", res.Attempt, "ok", res.OK)
		if o, err = s.await(r.Context(), c.m.taskID, wait, over); err != nil {
			return nil, err
		}
	}
	if o == nil {
		return agentapi.ResultAnswer{}, nil
	}
	return agentapi.ResultAnswer{Status: o.Status}, nil
}

// booted takes the call home. Its token is good for nothing else and, because
// the installed system is another DHCP client, from any address.
func (s *Server) booted(r *http.Request) (any, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	hash, ok := bearer(r)
	if !ok {
		return nil, errUnknown
	}
	s.mu.Lock()
	home, ok := s.callhomes[hash]
	s.mu.Unlock()
	if !ok {
		return nil, errUnknown
	}
	m := home.m
	if !m.requests.Allow() {
		return nil, errTooMany
	}
	var body agentapi.Booted
	if err := lpmos.DecodeJSON(r.Body, agentapi.MaxBodyBytes, &body); err != nil {
		return nil, err
	}
	o := s.order(m.taskID)
	m.mu.Lock()
	done := m.booted == home.attempt
	macs := append([]lpmos.MAC{m.cur.rec.BootMAC}, m.macs...)
	barred := m.quarantined(home.attempt)
	m.mu.Unlock()
	if o != nil {
		macs = append(append(macs, o.TargetMAC), o.Macs...)
	}
	if barred || body.TaskID != m.taskID || body.Attempt != home.attempt || !slices.Contains(macs, body.MACAddress) {
		s.log.Error("call home names another machine, task or attempt", "task", m.taskID, "mac", body.MACAddress, "addr", r.RemoteAddr)
		return nil, forbidden("the token is for another machine, task or attempt")
	}
	if err := checkReceipt(&body.Receipt); err != nil {
		return nil, err
	}
	if done {
		return empty{}, nil
	}
	if o != nil && o.Attempt != home.attempt {
		return nil, &lpmos.ConflictError{Problem: "the task is at attempt " + strconv.Itoa(o.Attempt), Status: o.Status}
	}
	body.Receipt.At = time.Now().UTC()
	ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
	defer cancel()
	if err := s.stored(m.taskID, s.reports.PutBooted(ctx, m.taskID, home.attempt, body.Receipt)); err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.booted = home.attempt
	m.mu.Unlock()
	s.log.Info("installed system called home", "task", m.taskID, "attempt", home.attempt, "addr", r.RemoteAddr)
	return empty{}, nil
}
