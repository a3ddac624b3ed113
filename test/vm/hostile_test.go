package vm_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/demo"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/doctor"
	"github.com/lpmos/lpmos/internal/lab"
	"github.com/lpmos/lpmos/internal/region/dhcpd"
)

// canary is what nobody but the machine's agent may ever see.
const canary = "CANARY-of-the-hostile-machine"

const labBoot = "http://10.77.0.1:8081"

// hostile is an attacker on the machines' own network. It is not a virtual
// machine but a process in a network namespace on the same bridge, which can
// send what such a machine can send, under any address, and is a great deal
// quicker: that is the worse attacker, and the cheaper test.
type hostile struct {
	w    *world
	peer *lab.Peer
	own  lpmos.MAC
	at   netip.Prefix

	mu      sync.Mutex // guards what follows
	answers [][]byte   // all that it was ever told by the agent API
}

func (w *world) newHostile() *hostile {
	h := &hostile{w: w, own: lpmos.MustMAC("52:54:00:66:66:66"), at: netip.MustParsePrefix("10.77.0.66/24")}
	h.peer = w.newPeer(h.own, h.at)
	return h
}

func (w *world) newPeer(mac lpmos.MAC, at netip.Prefix) *lab.Peer {
	w.t.Helper()
	p, err := w.net.NewPeer(w.t.Context(), "", mac, at)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { p.Close() })
	return p
}

// become takes another machine's addresses; back takes its own again, because
// two ports with one address would only keep both from working.
func (h *hostile) become(mac lpmos.MAC, at netip.Prefix) {
	h.w.t.Helper()
	if err := h.peer.Become(h.w.t.Context(), mac, at); err != nil {
		h.w.t.Fatal(err)
	}
}

func (h *hostile) back() { h.become(h.own, h.at) }

// do sends a request from the peer; status 0 is none.
func (h *hostile) do(method, address string, header http.Header, conf *tls.Config, body io.Reader) (int, []byte) {
	ctx, cancel := context.WithTimeout(h.w.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		h.w.t.Error(err)
		return 0, nil
	}
	req.Header = header
	c := http.Client{Transport: &http.Transport{DialContext: h.peer.DialContext, TLSClientConfig: conf, DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return 0, nil
	}
	return resp.StatusCode, b
}

// fetch gets a file of the boot listener, as firmware does.
func (h *hostile) fetch(address string) (status int, body []byte) {
	h.w.until(time.Minute, "the region answers "+address, func() error {
		if status, body = h.do(http.MethodGet, address, http.Header{}, nil, nil); status == 0 || status == http.StatusServiceUnavailable {
			return errors.New("it does not")
		}
		return nil
	})
	return status, body
}

var segmentAddress = regexp.MustCompile(`https?://\S+` + regexp.QuoteMeta(agentapi.PathSegment) + `\S+`)

// boot is a network boot under another machine's name: its script, and from
// that its segment, which holds the credential.
func (h *hostile) boot(mac lpmos.MAC, uuid string) (cfg agentapi.BootConfig, segment string) {
	h.w.t.Helper()
	q := url.Values{"mac": {mac.String()}, "uuid": {uuid}, "platform": {"pcbios"}, "arch": {"x86_64"}}
	_, script := h.fetch(labBoot + agentapi.PathBootScript + "?" + q.Encode())
	segment = string(segmentAddress.Find(script))
	status, b := h.fetch(segment)
	cfg, ok := configIn(b)
	if status != http.StatusOK || !ok {
		h.w.t.Fatalf("segment of %s = %d %q; want one, as the true machine would get it", mac, status, b[:min(len(b), 200)])
	}
	return cfg, segment
}

// configIn finds a boot configuration in bytes that hold one.
func configIn(b []byte) (cfg agentapi.BootConfig, ok bool) {
	at := bytes.Index(b, []byte(`{"region_id"`))
	if at < 0 {
		return cfg, false
	}
	return cfg, json.NewDecoder(bytes.NewReader(b[at:])).Decode(&cfg) == nil && (cfg.Credential != "" || cfg.Wrapped != nil)
}

// ask puts a question to the agent API with a credential and a key.
func (h *hostile) ask(cfg agentapi.BootConfig, key *lpmos.AgentKey, method, path string, body any) int {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(cfg.CA))
	conf := &tls.Config{RootCAs: roots, ServerName: cfg.ServerName}
	if key != nil {
		cert, err := agentapi.Certificate(key)
		if err != nil {
			h.w.t.Error(err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	b, err := json.Marshal(body)
	if err != nil {
		h.w.t.Error(err)
	}
	header := http.Header{"Authorization": {"Bearer " + cfg.Credential}, "Content-Type": {"application/json"}}
	status, answer := h.do(method, cfg.AgentURL+path, header, conf, bytes.NewReader(b))
	h.mu.Lock()
	h.answers = append(h.answers, answer)
	h.mu.Unlock()
	return status
}

// register is the first report with a credential: whose key counts from then on.
func (h *hostile) register(cfg agentapi.BootConfig, key *lpmos.AgentKey, hw lpmos.Hardware) int {
	public := key.Public()
	return h.ask(cfg, key, http.MethodPost, agentapi.PathReport, agentapi.Report{MACAddress: cfg.BootMAC, Hardware: &hw, AgentKey: &public})
}

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// try asks for everything that a credential could be good for, for a task and a
// machine, and says what was answered.
func (h *hostile) try(cfg agentapi.BootConfig, key *lpmos.AgentKey, mac lpmos.MAC, taskID string) map[string]int {
	nonce := strings.Repeat("5a", 32)
	failure := &lpmos.Failure{Code: "x", Cause: "x"}
	out := map[string]int{}
	for _, q := range []struct {
		path string
		body any
	}{
		{agentapi.PathPermit, agentapi.PermitRequest{MACAddress: mac, TaskID: taskID, Nonce: nonce, PlanDigest: someDigest, HardwareDigest: someDigest}},
		{agentapi.PathProgress, agentapi.Progress{MACAddress: mac, TaskID: taskID, Attempt: 1, Stage: lpmos.Configuring, Percentage: 99, Message: "done"}},
		{agentapi.PathLogs, agentapi.Logs{MACAddress: mac, TaskID: taskID, Attempt: 1, Lines: []string{"all is well"}}},
		{agentapi.PathResult, agentapi.Result{MACAddress: mac, TaskID: taskID, Attempt: 1, Failure: failure}},
		{agentapi.PathResult, agentapi.Result{MACAddress: mac, TaskID: taskID, Attempt: 1, OK: true, Written: true}},
		{agentapi.PathBooted, agentapi.Booted{MACAddress: mac, TaskID: taskID, Attempt: 1}},
	} {
		out[fmt.Sprintf("%s %d", q.path, len(out))] = h.ask(cfg, key, http.MethodPost, q.path, q.body)
	}
	out[agentapi.PathApproval] = h.ask(cfg, key, http.MethodGet, agentapi.PathApproval+mac.String(), nil)
	return out
}

// refused checks that nothing of try was answered with a success.
func (h *hostile) refused(what string, answers map[string]int) {
	h.w.t.Helper()
	for _, path := range slices.Sorted(maps.Keys(answers)) {
		switch answers[path] {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests:
		default:
			h.w.t.Errorf("%s: %s was answered with %d; want 401, 403 or 429", what, path, answers[path])
		}
	}
}

// keepsTrying uses stolen credentials as fast as it can until stop is called.
func (h *hostile) keepsTrying(mac lpmos.MAC, taskID string, key *lpmos.AgentKey, stolen ...agentapi.BootConfig) (stop func()) {
	ctx, cancel := context.WithCancel(h.w.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			for _, cfg := range stolen {
				h.refused("a stolen credential", h.try(cfg, key, mac, taskID))
			}
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	return sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// learned fails the test if the agent API ever told it anything of worth.
func (h *hostile) learned() {
	h.w.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.answers) == 0 {
		h.w.t.Error("the hostile machine was never answered: nothing was tried")
	}
	for _, a := range h.answers {
		for _, word := range []string{`"permit":`, `"secrets":`, `"callhome_token":`, `"plan":`, `"decision":`, canary} {
			if bytes.Contains(a, []byte(word)) {
				h.w.t.Errorf("the hostile machine was told %s: %.300s", word, a)
			}
		}
	}
}

// serveDHCP answers whoever asks for an address, at once, until stop is called.
func (h *hostile) serveDHCP() (stop func()) {
	h.w.t.Helper()
	var conn net.PacketConn
	if err := h.peer.Do(func() (err error) {
		conn, err = dhcpd.Listen(context.Background(), lab.PeerLink, dhcpd.PortServer)
		return err
	}); err != nil {
		h.w.t.Fatal(err)
	}
	me := net.IP(h.at.Addr().AsSlice())
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			m, err := dhcpv4.FromBytes(buf[:n])
			if err != nil || m.MessageType() != dhcpv4.MessageTypeDiscover {
				continue
			}
			offer, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithServerIP(me),
				dhcpv4.WithOption(dhcpv4.OptServerIdentifier(me)), dhcpv4.WithYourIP(net.IPv4(10, 77, 0, 250)),
				dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithLeaseTime(3600), dhcpv4.WithOption(dhcpv4.OptBootFileName("evil.kpxe")))
			if err == nil {
				_, _ = conn.WriteTo(offer.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpd.PortWatch})
			}
		}
	})
	stop = sync.OnceFunc(func() { conn.Close(); wg.Wait() })
	h.w.t.Cleanup(stop)
	return stop
}

// seesForeignDHCP waits until the region says that the hostile machine plays
// DHCP server.
func (w *world) seesForeignDHCP(h *hostile) {
	w.t.Helper()
	w.until(time.Minute, "the region tells of the foreign DHCP server", func() error {
		regions, err := w.client.Regions(w.t.Context())
		if err != nil {
			return err
		}
		for _, r := range doctor.JudgeRegions(regions, nil, time.Now()) {
			if r.Status == doctor.Fail && strings.Contains(r.Summary, h.at.Addr().String()) {
				return nil
			}
		}
		return fmt.Errorf("regions are %+v", regions)
	})
}

// tapped is a boot configuration that was read off the wire, and whose it was.
type tapped struct {
	cfg agentapi.BootConfig
	to  netip.Addr
}

// tap copies all boot configurations that cross the bridge, as a mirror port of
// a switch does: segments travel in the clear.
func (w *world) tap() <-chan tapped {
	w.t.Helper()
	var f *os.File
	if err := w.net.Do(func() error {
		link, err := net.InterfaceByName(lab.DefaultSegment.Bridge)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "wiretap")
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	}); err != nil {
		w.t.Fatal(err)
	}
	out := make(chan tapped, 16)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 128<<10)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			if cfg, ok := configIn(buf[:n]); ok && n > 34 {
				select {
				case out <- tapped{cfg, netip.AddrFrom4([4]byte(buf[30:34]))}:
				default:
				}
			}
		}
	})
	w.t.Cleanup(func() { f.Close(); wg.Wait() })
	return out
}

func (w *world) nextTapped(c <-chan tapped, mac lpmos.MAC, limit time.Duration) tapped {
	w.t.Helper()
	timeout := time.After(limit)
	for {
		select {
		case x := <-c:
			if x.cfg.BootMAC == mac {
				return x
			}
		case <-timeout:
			w.t.Fatalf("no boot segment of %s crossed the bridge within %v", mac, limit)
		}
	}
}

// dump reads the whole store, or the keys that hold one of the words.
func (w *world) dump(words ...string) map[string]string {
	w.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + filepath.Join(w.dir, "site", "etcd", "etcd.sock")}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	r, err := c.Get(ctx, "\x00", clientv3.WithFromKey())
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range r.Kvs {
		if len(words) == 0 || slices.ContainsFunc(words, func(s string) bool { return strings.Contains(string(kv.Key), s) }) {
			out[string(kv.Key)] = string(kv.Value)
		}
	}
	return out
}

// unharmed checks what must hold after every attack: no key of the other
// machine's task has changed, nothing was learned, and the store has no secret.
func (w *world) unharmed(h *hostile, other map[string]string, words ...string) {
	w.t.Helper()
	now := w.dump(words...)
	if len(other) == 0 {
		w.t.Error("the other machine's task has no keys: nothing was compared")
	}
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if now[k] != other[k] {
			w.t.Errorf("%s of the other machine's task changed from %q to %q", k, other[k], now[k])
		}
	}
	if len(now) != len(other) {
		w.t.Errorf("the other machine's task has %d keys; want the %d from before", len(now), len(other))
	}
	for k, v := range w.dump() {
		if strings.Contains(v, canary) {
			w.t.Errorf("the store has the secret in clear, in %s", k)
		}
	}
	h.learned()
}

// alarmed waits until a task's page shows an alarm.
func (w *world) alarmed(id, code string) {
	w.t.Helper()
	w.until(time.Minute, "alarm "+code+" of task "+id, func() error {
		for _, e := range w.history(id) {
			if e.Cause == lpmos.CauseAlarm && strings.Contains(e.Message, alarmText[code]) {
				return nil
			}
		}
		return fmt.Errorf("alarm of the task is %+v", w.task(id).Alarm)
	})
}

// alarmText is what the timeline says of an alarm.
var alarmText = map[string]string{
	"credential_stolen": "without its key",
	"credential_moved":  "from another address",
	"tpm_other":         "has not the TPM",
}

// approveCompared approves as an operator does who stands before the machine:
// only if the words on its console are those on the page.
func (w *world) approveCompared(id, words string) {
	w.t.Helper()
	t := w.task(id)
	if t.Plan == nil || t.AgentKey == nil || t.AgentKey.Words != words {
		w.t.Fatalf("plan %v with key %+v; want the plan of the machine whose console says %q", t.Plan != nil, t.AgentKey, words)
	}
	if _, err := w.client.Approve(w.t.Context(), id, t.Plan.Digest, "words compared", t.AgentKey.Fingerprint, ""); err != nil {
		w.t.Fatalf("approve task %s: %v", id, err)
	}
}

var consoleWords = regexp.MustCompile(`words="?([a-z]+(?: [a-z]+){7})`)

// TestHostilePeer sets a hostile peer on a machine that is a process, too: the
// real agent with a pretended disk. It comes first, registers, lets the true
// machine come after it, uses what it has until the task is stopped, steals the
// next credential off the wire, and plays DHCP server meanwhile. TestHostileMachine
// does the like to a real one.
func TestHostilePeer(t *testing.T) {
	w := onSite(t, "tiny", nil)
	victim, other := macOf("victim", 0), macOf("other", 0)
	hw := demo.Hardware(victim, "test")
	id := w.createFor(victim, "victim", map[string]lpmos.Secret{"join": lpmos.NewSecret(canary)})
	otherID := w.createFor(other, "other", map[string]lpmos.Secret{"join": lpmos.NewSecret(canary)})
	before := w.dump(otherID, other.String())
	taps := w.tap()
	h := w.newHostile()

	// It is first, under the machine's own address, and registers a key.
	h.become(victim, h.at)
	first, segment := h.boot(victim, hw.System.UUID)
	key, err := lpmos.NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	if got := h.register(first, key, hw); got != http.StatusOK {
		t.Fatalf("register a key with the first segment = %d; want 200: who is first is not known yet", got)
	}
	w.until(time.Minute, "the hostile key is shown", func() error {
		if k := w.task(id).AgentKey; k == nil || k.Fingerprint != key.Public().Fingerprint() {
			return fmt.Errorf("key is %+v", k)
		}
		return nil
	})
	if got := h.ask(first, key, http.MethodGet, agentapi.PathApproval+victim.String(), nil); got != http.StatusOK {
		t.Errorf("ask for the approval = %d; want 200, and no plan", got)
	}
	h.refused("a credential for another task", h.try(first, key, other, otherID))
	h.refused("a credential without its key", h.try(first, nil, victim, id))
	if status, _ := h.fetch(segment); status != http.StatusNotFound && status != http.StatusGone {
		t.Errorf("the segment replayed = %d; want 404 or 410", status)
	}

	// The true machine comes; the words on its console are others than those
	// that were displayed.
	h.back()
	stopDHCP := h.serveDHCP()
	truth := w.newPeer(victim, netip.MustParsePrefix("10.77.0.150/24"))
	console := w.demo(truth, victim)
	words := func() string {
		all := consoleWords.FindAllStringSubmatch(console(), -1)
		if len(all) == 0 {
			return ""
		}
		return all[len(all)-1][1]
	}
	shown := func() error {
		t := w.task(id)
		if t.Status != lpmos.AwaitingApproval || t.AgentKey == nil || words() == "" || t.AgentKey.Words != words() {
			return fmt.Errorf("it is %s, the key is %+v, the console says %q", t.Status, t.AgentKey, words())
		}
		return nil
	}
	w.until(time.Minute, "the true machine's key is shown", shown)
	stolen := w.nextTapped(taps, victim, time.Minute)
	for stolen.cfg.BootSeq == first.BootSeq {
		stolen = w.nextTapped(taps, victim, time.Minute)
	}

	// Whoever asks for an address is answered by two, and both the machines'
	// operator and the region see it.
	var offers []doctor.Offer
	if err := truth.Do(func() (err error) {
		offers, err = doctor.Discover(t.Context(), lab.PeerLink, 2*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	judged := doctor.JudgeDHCP(lab.PeerLink, "server", offers, nil, func(a netip.Addr) bool { return a == netip.MustParseAddr("10.77.0.1") })
	if judged.Status != doctor.Fail || !strings.Contains(judged.Summary, h.at.Addr().String()) {
		t.Errorf("lpmos doctor says %+v; want that %s is foreign", judged, h.at.Addr())
	}
	w.seesForeignDHCP(h)
	stopDHCP()

	// The stolen credential is good for nothing without its key, and is seen.
	h.refused("the true machine's credential", h.try(stolen.cfg, key, victim, id))
	if got := h.register(stolen.cfg, key, hw); got != http.StatusUnauthorized {
		t.Errorf("register another key with the stolen credential = %d; want 401", got)
	}
	w.alarmed(id, "credential_stolen")

	// Its own credential was revoked by the true machine's start. To use it is
	// to say that there are two.
	h.refused("a revoked credential", h.try(first, key, victim, id))
	w.until(time.Minute, "the task is stopped", func() error {
		if f := w.task(id).Error; f == nil || f.Code != "credential_reused" || !strings.Contains(f.Evidence, h.at.Addr().String()) {
			return fmt.Errorf("error is %+v", f)
		}
		return nil
	})

	// A person looks, and lets it go on; the hostile machine does not stop.
	stop := h.keepsTrying(victim, id, key, first, stolen.cfg)
	defer stop()
	was := words()
	if _, err := w.client.Retry(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	w.until(2*time.Minute, "the true machine is back", func() error { return cmp.Or(shown(), sameError(words() == was, "the key is the old one")) })
	w.approveCompared(id, words())
	w.until(2*time.Minute, "the true machine is installed", func() error {
		if s := w.task(id).Status; s != lpmos.Completed {
			return fmt.Errorf("it is %s", s)
		}
		return nil
	})
	stop()
	permits := 0
	for _, e := range w.history(id) {
		if e.Cause == lpmos.CausePermitGranted || e.Cause == lpmos.CauseNextAttempt {
			permits++
		}
	}
	if permits != 1 {
		t.Errorf("%d permits were granted; want the true machine's", permits)
	}
	w.unharmed(h, before, otherID, other.String())
}

// TestHostileMachine sets the same attacker on a real machine. It reads the
// credential off the wire and registers a key with it before the machine's
// kernel is up: the race that only the words on the console decide.
func TestHostileMachine(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny", nil)
	m := w.newMachine(lab.MachineConfig{Name: "victim", Disks: []lab.Disk{{SizeBytes: 4 * gb}}, Failures: []*regexp.Regexp{}})
	other := w.newMachine(lab.MachineConfig{Name: "other", Disks: []lab.Disk{{SizeBytes: 4 * gb}}})
	secrets := func(s *lpmos.Spec) { s.Secrets = map[string]lpmos.Secret{"join": lpmos.NewSecret(canary)} }
	id, otherID := w.create(m, secrets), w.create(other, secrets)
	w.powerOn(other)
	w.planned(other, otherID)
	before, disk := w.dump("tasks/"+otherID), w.hash(other.disk(0))
	taps := w.tap()
	h := w.newHostile()

	// Quicker than the region's DHCP server, until somebody sees it.
	stopDHCP := h.serveDHCP()
	w.powerOn(m)
	w.seesForeignDHCP(h)
	stopDHCP()
	w.reset(m)
	for len(taps) > 0 { // of the start that was cut short
		<-taps
	}

	stolen := w.nextTapped(taps, m.mac, bootLimit)
	h.become(m.mac, netip.PrefixFrom(stolen.to, 24))
	key, err := lpmos.NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	hw := demo.Hardware(m.mac, "test")
	hw.System.UUID = m.Config().SMBIOS.UUID
	if got := h.register(stolen.cfg, key, hw); got != http.StatusOK {
		t.Fatalf("register a key before the machine's kernel is up = %d; want 200: nobody else has spoken yet", got)
	}
	h.back()
	refusedLine := m.Console().NewReader()
	w.console(refusedLine, bootLimit, `the region no longer accepts this boot`)
	w.alarmed(id, "credential_stolen")
	h.refused("its key from another address", h.try(stolen.cfg, key, m.mac, id))

	console := fromNow(m)
	w.reset(m)
	again := w.nextTapped(taps, m.mac, bootLimit)
	stop := h.keepsTrying(m.mac, id, key, stolen.cfg, again.cfg)
	defer stop()
	words := consoleWords.FindStringSubmatch(w.console(console, bootLimit, consoleWords.String()).Text)[1]
	w.waitFor(m, id, bootLimit, "the true machine's key", func(t lpmos.Task) bool {
		return t.Status == lpmos.AwaitingApproval && t.AgentKey != nil && t.AgentKey.Words == words && t.Plan.Problem == ""
	})
	w.approveCompared(id, words)
	w.completed(m, id)
	stop()
	w.alarmed(id, "credential_moved")
	w.unharmed(h, before, "tasks/"+otherID)
	other.PowerOff()
	if w.hash(other.disk(0)) != disk {
		t.Error("the other machine's disk was written")
	}
}

// createFor asks for a machine that is not one of the lab's.
func (w *world) createFor(mac lpmos.MAC, hostname string, secrets map[string]lpmos.Secret) string {
	w.t.Helper()
	id, err := w.client.CreateTask(w.t.Context(), lpmos.Spec{RegionID: "lab", TargetMAC: mac, OSType: w.image.OS, OSVersion: w.image.Version,
		Arch: w.image.Arch, Hostname: hostname, Secrets: secrets}, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// demo runs the agent's demo machine in a peer and returns what it has said so
// far.
func (w *world) demo(p *lab.Peer, mac lpmos.MAC) (console func() string) {
	w.t.Helper()
	log := w.logFile("demo.log")
	cmd := exec.Command(filepath.Join(w.built.bin, "agent"), "--demo", "--region-url", labBoot, "--mac", mac.String(), "--duration", "2s")
	cmd.Stdout, cmd.Stderr = log, log
	if err := p.StartCommand(cmd); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return func() string {
		b, err := os.ReadFile(log.Name())
		if err != nil {
			w.t.Error(err)
		}
		return string(b)
	}
}

func sameError(same bool, what string) error {
	if same {
		return errors.New(what)
	}
	return nil
}
