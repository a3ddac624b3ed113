package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
)

var now = time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC)

// wants holds results against "status: part of the summary".
func wants(t *testing.T, results []Result, want ...string) {
	t.Helper()
	if len(results) != len(want) {
		t.Errorf("%d results: %v; want %d", len(results), results, len(want))
		return
	}
	for i, r := range results {
		status, part, _ := strings.Cut(want[i], ": ")
		if string(r.Status) != status || !strings.Contains(r.Summary, part) {
			t.Errorf("%s = %s, %q; want %s with %q", r.Check, r.Status, r.Summary, status, part)
		}
		if (r.Status == Warn || r.Status == Fail) && r.Todo == "" {
			t.Errorf("%s does not say what to do about %q", r.Check, r.Summary)
		}
		if r.Check == "" || r.Summary == "" {
			t.Errorf("%+v says nothing", r)
		}
	}
}

// proc is a /proc where a foreign TFTP server, our own control plane and a
// process of somebody else listen.
func proc() fstest.MapFS {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	link := func(to string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink} }
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	return fstest.MapFS{
		"net/tcp": file(head +
			"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1 0 100 0 0 10 0\n" + // 127.0.0.1:8080
			"   1: 0100007F:1F91 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 1002 1 0 100 0 0 10 0\n"), // 8081, connected only
		"net/tcp6": file(head +
			"   0: 00000000000000000000000000000000:20FB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1003 1 0 100 0 0 10 0\n"), // [::]:8443
		"net/udp": file(head +
			" 123: 00000000:0045 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1004 2 0 0\n"), // 69
		"net/udp6":  file(head),
		"12/comm":   file("control-plane\n"),
		"12/fd/3":   link("/dev/null"),
		"12/fd/4":   link("socket:[1001]"),
		"99/comm":   file("in.tftpd\n"),
		"99/fd/0":   link("socket:[1004]"),
		"self/comm": file("lpmos\n"),
	}
}

func TestPorts(t *testing.T) {
	wants(t, CheckPorts(proc(), Ports("server")),
		"ok: free, for DHCP", "fail: in.tftpd (process 99) listens on 0.0.0.0:69", "ok: free", "ok: control-plane (process 12) serves", "ok: free, for HTTP boot", "warn: another program listens on [::]:8443")
	wants(t, CheckPorts(proc(), Ports("off")[1:2]), "ok: in use by in.tftpd (process 99), and not needed")
	broken := proc()
	delete(broken, "net/udp")
	wants(t, CheckPorts(broken, Ports("off")), "skip: could not be read")
	ipv4only := proc()
	delete(ipv4only, "net/udp6")
	wants(t, CheckPorts(ipv4only, Ports("off")[:1]), "ok: free")
	for s, want := range map[string]string{"0100007F:1F90": "127.0.0.1:8080", "B80D0120000000000000000001000000:0001": "[2001:db8::1]:1", "0000000000000000FFFF00000100007F:0050": "127.0.0.1:80"} {
		if got, err := procAddr(s); err != nil || got.String() != want {
			t.Errorf("procAddr(%q) = %s, %v; want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", ":", "0100007F", "0100007F:", "01:1", "local_address"} {
		if got, err := procAddr(s); err == nil {
			t.Errorf("procAddr(%q) = %s; want an error", s, got)
		}
	}
}

func TestPlaneAndRegions(t *testing.T) {
	wants(t, []Result{
		JudgePlane("http://x", nil, 5*time.Millisecond),
		JudgePlane("http://x", fmt.Errorf("%w: no control plane answers at http://x", lpmos.ErrUnavailable), 0),
		JudgePlane("http://x", lpmos.ErrUnavailable, 0),
		JudgePlane("http://x", errors.New("odd"), 0),
		JudgePlane("https://x", fmt.Errorf("get: %w", x509.UnknownAuthorityError{}), 0),
	}, "ok: ready (5 ms)", "fail: nothing answers", "fail: not ready", "fail: odd", "fail: not trusted")
	wants(t, JudgeRegions([]lpmos.Region{
		{ID: "dc1", Status: "online", Capabilities: &lpmos.Capabilities{Hostname: "h", Version: "v1", DHCP: "proxy"}},
		{ID: "dc2", Status: "offline", Since: now.Add(-time.Minute)},
	}, nil, now), "ok: h, version v1, DHCP proxy", "fail: offline for 1m0s")
	var foreign lpmos.Capabilities
	foreign.SawDHCP(netip.MustParseAddr("192.0.2.1"), now.Add(-time.Hour))
	foreign.SawDHCP(netip.MustParseAddr("192.0.2.66"), now.Add(-time.Minute))
	wants(t, JudgeRegions([]lpmos.Region{{ID: "dc1", Status: "online", Capabilities: &foreign}}, nil, now), "ok: online", "fail: another DHCP server answers on its network: 192.0.2.66")
	wants(t, JudgeRegions(nil, nil, now), "warn: no region")
	wants(t, JudgeRegions(nil, errors.New("x"), now), "skip: did not say")
}

func TestClock(t *testing.T) {
	at := func(off time.Duration) Result {
		return JudgeSkew(now.Format(time.RFC1123), now.Add(off), now.Add(off+time.Second))
	}
	wants(t, []Result{at(0), at(2 * time.Second), at(-10 * time.Second), at(time.Hour), at(-time.Hour), JudgeSkew("", now, now)},
		"ok: same time", "ok: same time", "warn: 10s behind", "fail: 1h0m0s ahead of", "fail: 1h0m0s behind", "skip: did not say")
	wants(t, []Result{JudgeOwnClock(now, true, nil), JudgeOwnClock(now, false, nil), JudgeOwnClock(now, false, errors.New("x")), JudgeOwnClock(time.Unix(0, 0), true, nil)},
		"ok: kept by a time source", "warn: nothing keeps it", "ok: 2026", "fail: 1970-01-01")
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(c x509.Certificate, parent *x509.Certificate) *x509.Certificate {
		if parent == nil {
			parent = &c
		}
		b, err := x509.CreateCertificate(rand.Reader, &c, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(b)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	ca := issue(x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotBefore: now.AddDate(-9, 0, 0), NotAfter: now.AddDate(9, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	leaf := func(name string, from, to time.Time) []*x509.Certificate {
		return []*x509.Certificate{issue(x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: from, NotAfter: to}, ca)}
	}
	year, day := now.AddDate(1, 0, 0), now.AddDate(0, 0, 1)
	past := now.AddDate(0, -1, 0)
	u := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	site := u("https://lpmos.example:8443")
	wants(t, []Result{
		JudgeTLS(site, leaf("lpmos.example", past, year), nil, roots, now),
		JudgeTLS(site, leaf("lpmos.example", past, day), nil, roots, now),
		JudgeTLS(site, leaf("lpmos.example", past, now.Add(-time.Second)), nil, roots, now),
		JudgeTLS(site, leaf("lpmos.example", day, year), nil, roots, now),
		JudgeTLS(site, leaf("other.example", past, year), nil, roots, now),
		JudgeTLS(site, leaf("lpmos.example", past, year), nil, x509.NewCertPool(), now),
		JudgeTLS(site, nil, errors.New("refused"), roots, now),
		JudgeTLS(u("http://localhost:8080"), nil, nil, nil, now),
		JudgeTLS(u("http://[::1]:8080"), nil, nil, nil, now),
		JudgeTLS(u("http://10.0.0.1:8080"), nil, nil, nil, now),
	}, "ok: valid until 2027-11-27", "warn: expires in 1 days", "fail: expired on", "fail: valid only from", "fail: for other.example, not for lpmos.example", "fail: authority is not known",
		"skip: refused", "ok: never leaves", "ok: never leaves", "warn: anyone on the path")
}

func TestDisk(t *testing.T) {
	wants(t, []Result{
		JudgeDisk("data", "/x", 50<<30, 100<<30, nil), JudgeDisk("data", "/x", 5<<30, 100<<30, nil), JudgeDisk("data", "/x", 1<<20, 100<<30, nil), JudgeDisk("data", "/x", 0, 0, errors.New("gone")),
	}, "ok: 54 GB left of 107 GB", "warn: left", "fail: left", "warn: gone")
}

func TestEtcd(t *testing.T) {
	good := store.Member{Endpoint: "e", Version: "3.7.3", Supported: true, HasLeader: true, DBBytes: 1 << 20, QuotaBytes: 2 << 30}
	with := func(change func(*store.Member)) store.Member {
		m := good
		change(&m)
		return m
	}
	wants(t, JudgeEtcd([]store.Member{
		good,
		with(func(m *store.Member) { m.Err = errors.New("refused") }),
		with(func(m *store.Member) { m.Version, m.Supported = "3.5.1", false }),
		with(func(m *store.Member) { m.Alarms = []string{"NOSPACE"} }),
		with(func(m *store.Member) { m.HasLeader = false }),
		with(func(m *store.Member) { m.DBBytes = 19 << 27 }),
		with(func(m *store.Member) { m.Learner = true }),
		with(func(m *store.Member) { m.Took = time.Second }),
	}), "ok: healthy: version 3.7.3", "fail: refused", "fail: 3.5.1", "fail: NOSPACE", "fail: no quorum", "warn: nearly full", "warn: learner", "warn: slowly: 1000 ms")
}

func TestTools(t *testing.T) {
	wants(t, JudgeTools(nil, true), "ok: QEMU", "ok: /dev/kvm")
	wants(t, JudgeTools(errors.New("missing ip (package iproute2)\nnot root, which taps need"), false), "fail: iproute2", "fail: not root", "warn: emulated")
}

func TestJudgeDHCP(t *testing.T) {
	lease := Offer{Server: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddr("10.0.0.50")}
	other := Offer{Server: netip.MustParseAddr("10.0.0.2"), Address: netip.MustParseAddr("10.0.0.60")}
	pxe := Offer{Server: netip.MustParseAddr("10.0.0.3"), PXE: true}
	nobody := func(netip.Addr) bool { return false }
	j := func(mode string, offers ...Offer) Result { return JudgeDHCP("eth1", mode, offers, nil, nobody) }
	wants(t, []Result{
		j("off"), j("off", lease), j("off", lease, other), j("off", pxe),
		j("proxy"), j("proxy", lease), j("proxy", lease, other), j("proxy", lease, pxe),
		j("server"), j("server", lease), j("server", pxe),
		JudgeDHCP("eth1", "server", []Offer{lease}, nil, func(a netip.Addr) bool { return a == lease.Server }),
		JudgeDHCP("eth1", "server", nil, fmt.Errorf("open: %w", errNoRights), nobody),
		JudgeDHCP("eth1", "server", nil, errors.New("interface eth1 is down"), nobody),
	}, "ok: no other", "ok: one DHCP server answers, 10.0.0.1 (offers 10.0.0.50)", "warn: several", "warn: what to boot: 10.0.0.3",
		"warn: no DHCP server answered", "ok: leaves booting to us", "warn: several", "fail: what to boot: 10.0.0.3",
		"ok: no other", "fail: hands out addresses: 10.0.0.1", "fail: what to boot",
		"ok: no other", "skip: only root", "fail: eth1 is down")
}

func TestWorst(t *testing.T) {
	for want, in := range map[Status][]Status{OK: nil, Warn: {OK, Warn, Skip}, Fail: {Fail, Warn}} {
		var rs []Result
		for _, s := range in {
			rs = append(rs, Result{Status: s})
		}
		if got := Worst(rs); got != want {
			t.Errorf("Worst(%v) = %s; want %s", in, got, want)
		}
	}
	if got := Worst([]Result{{Status: Skip}}); got != OK {
		t.Errorf("Worst of a skipped check = %s; want ok", got)
	}
	if diff := cmp.Diff(1, Count([]Result{{Status: Warn}, {Status: OK}}, Warn)); diff != "" {
		t.Error(diff)
	}
}

func TestJudgeCertificate(t *testing.T) {
	for _, tt := range []struct {
		cn   string
		left time.Duration
		err  error
		want Status
		todo string
	}{
		{"x", 80 * 24 * time.Hour, nil, OK, ""},
		{"x", 10 * 24 * time.Hour, nil, Warn, "log"},
		{"x", -time.Hour, nil, Fail, "restart"},
		{"lpmos-region-dc1.1", -time.Hour, nil, Fail, "lpmos region enroll"},
		{"x", 0, errors.New("permission denied"), Warn, "user"},
	} {
		c := &x509.Certificate{Subject: pkix.Name{CommonName: tt.cn}, NotBefore: now.Add(tt.left - 90*24*time.Hour), NotAfter: now.Add(tt.left)}
		if r := JudgeCertificate("this region", "f", c, tt.err, now); r.Status != tt.want || !strings.Contains(r.Todo, tt.todo) {
			t.Errorf("with %s left: %+v; want %s", tt.left, r, tt.want)
		}
	}
}
