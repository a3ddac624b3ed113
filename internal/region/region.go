// Package region is the composition of one data centre's part: DHCP, TFTP and
// HTTP boot for firmware, the agent API, the image cache, and the session with
// the store through which orders come down and reports go up.
package region

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/grubboot"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/region/agentserver"
	"github.com/lpmos/lpmos/internal/region/dhcpd"
	"github.com/lpmos/lpmos/internal/region/httpboot"
	"github.com/lpmos/lpmos/internal/region/netboot"
	"github.com/lpmos/lpmos/internal/region/ra"
	"github.com/lpmos/lpmos/internal/region/tftpd"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/version"
)

// Config of a region. RegionID and DataDir are required.
type Config struct {
	RegionID string
	DataDir  string // CA, instance id, DHCP leases, image cache
	Fetcher  string // hash of what this region shows to fetch blobs, see NewFetchSecret; "" where it reads them itself

	// AdvertiseHost is the IPv4 address machines reach this region at; "" means
	// the first of Interface, or 127.0.0.1 without one.
	AdvertiseHost string
	Interface     string // for DHCP; "" hears on all
	BootAddr      string // plain HTTP for firmware; "" means :8081
	AgentAddr     string // agent API over TLS; "" means :8443
	TFTPAddr      string // "" means :69; "off" for none
	DHCP          string // off, proxy, server; "" means off
	DHCPRange     string // "10.77.0.100-10.77.0.199", for server
	Router        string // gateway that DHCP hands out, "" for none
	DNS           []string
	Unknown       string // ignore, discover; "" means ignore
	CallhomeURL   string // where installed systems reach the agent API; "" for the same

	// Do runs what opens sockets; nil runs it here. The lab passes one that
	// runs it in the network namespace of its machines.
	Do func(func() error) error
}

// Blobs are files by content: the image cache.
type Blobs interface {
	Open(ctx context.Context, digest string) (io.ReadSeekCloser, int64, error)
	Follow(ctx context.Context, digest string) (io.ReadSeekCloser, int64, error)
}

// Region is one running region.
type Region struct {
	cfg      Config
	store    *store.Store
	view     *view
	session  atomic.Pointer[store.Session]
	instance string
	foreign  chan netip.Addr // other DHCP servers that were seen

	telling sync.Mutex // held while capabilities are written, so that no older ones come last

	mu   sync.Mutex // guards caps
	caps lpmos.Capabilities

	agents   *agentserver.Server
	agentL   net.Listener
	agentSrv *http.Server
	boot     *httpboot.Handler
	bootL    net.Listener
	dhcp     *dhcpd.Server
	tftp     *tftpd.Server
	tftpConn net.PacketConn
	ra       *ra.Responder
	blobs    Blobs
	closers  []io.Closer
	log      *slog.Logger
}

// New opens all sockets and prepares everything; Run serves.
func New(cfg Config, st *store.Store, blobs Blobs, log *slog.Logger) (_ *Region, err error) {
	if !lpmos.ValidRegionID(cfg.RegionID) {
		return nil, &lpmos.InvalidError{Field: "region-id", Problem: "is not a region id (lower-case letters, digits and inner hyphens)", Value: cfg.RegionID}
	}
	for field, def := range map[*string]string{
		&cfg.BootAddr: ":8081", &cfg.AgentAddr: ":8443", &cfg.TFTPAddr: ":69", &cfg.DHCP: "off", &cfg.Unknown: "ignore",
	} {
		if *field == "" {
			*field = def
		}
	}
	if cfg.Do == nil {
		cfg.Do = func(f func() error) error { return f() }
	}
	log = log.With("region", cfg.RegionID)
	r := &Region{cfg: cfg, store: st, blobs: blobs, log: log, view: newView(cfg.RegionID, log), foreign: make(chan netip.Addr, 16)}
	defer func() {
		if err != nil {
			r.release()
		}
	}()
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	if r.instance, err = instanceID(cfg.DataDir); err != nil {
		return nil, err
	}
	ca, err := pki.LoadRegion(cfg.DataDir, cfg.RegionID)
	if err != nil {
		return nil, err
	}
	secret, err := ca.Secret("boot nonces")
	if err != nil {
		return nil, err
	}
	if err := cfg.Do(func() error { return r.open(ca, secret) }); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	r.caps = lpmos.Capabilities{
		Version: version.String(), Hostname: host, DHCP: cfg.DHCP, BootURL: r.BootURL(), AgentURL: r.agentURL(),
		Unknown: cfg.Unknown, StartedAt: time.Now().UTC(), Fetcher: cfg.Fetcher, Own: service.Host(),
	}
	return r, nil
}

// open opens the sockets and builds the servers on them.
func (r *Region) open(ca *pki.Region, secret []byte) (err error) {
	cfg := &r.cfg
	host, err := advertised(*cfg)
	if err != nil {
		return err
	}
	cfg.AdvertiseHost = host.String()
	if r.bootL, err = service.Listen(cfg.BootAddr); err != nil {
		return err
	}
	r.closers = append(r.closers, r.bootL)
	if r.agentL, err = service.Listen(cfg.AgentAddr); err != nil {
		return err
	}
	r.closers = append(r.closers, r.agentL)

	decider, err := netboot.New(netboot.Config{BootURL: r.BootURL(), NextServer: host, Unknown: netboot.Policy(cfg.Unknown)}, r.view)
	if err != nil {
		return err
	}
	var leases agentserver.Leases
	if cfg.DHCP != "off" {
		if err := r.openDHCP(host, decider); err != nil {
			return err
		}
		if cfg.DHCP == string(dhcpd.ModeServer) {
			leases = leaseView{r.dhcp}
		}
	}
	r.agents, err = agentserver.New(agentserver.Config{
		RegionID: cfg.RegionID, AgentURL: r.agentURL(), BootURL: r.BootURL(), ServerName: ca.ServerName(), CA: ca.CAPEM(),
		CallhomeURL: cfg.CallhomeURL, Discover: cfg.Unknown == string(netboot.Discover), Secret: secret,
	}, r.view, reports{r}, leases, r.log)
	if err != nil {
		return err
	}
	r.agentSrv = r.agents.HTTP(ca.ServerConfig())
	r.boot = httpboot.New(httpboot.Deps{
		Decider: decider, Boots: boots{r.agents}, Segments: r.agents, Blobs: r.blobs, Images: r.view, Patch: grubboot.PatchLocalBoot,
	}, r.log)
	if cfg.TFTPAddr != "off" {
		if r.tftpConn, err = net.ListenPacket("udp4", cfg.TFTPAddr); err != nil {
			return fmt.Errorf("listen for TFTP on %s: %w (run as root, or --tftp-addr=off)", cfg.TFTPAddr, err)
		}
		r.closers = append(r.closers, r.tftpConn)
		r.tftp = tftpd.New(bootFiles{r.view, r.blobs, decider.Scripts()}, r.transferSocket, r.log)
	}
	return nil
}

func (r *Region) openDHCP(host netip.Addr, decider *netboot.Decider) error {
	cfg := dhcpd.Config{Mode: dhcpd.Mode(r.cfg.DHCP), ServerID: host, LeaseFile: filepath.Join(r.cfg.DataDir, "leases")}
	if cfg.Mode == dhcpd.ModeServer {
		subnet, err := subnetOf(r.cfg.Interface, host)
		if err != nil {
			return err
		}
		pool, err := dhcpd.ParseRange(r.cfg.DHCPRange, subnet)
		if err != nil {
			return err
		}
		if r.cfg.Router != "" {
			if pool.Router, err = netip.ParseAddr(r.cfg.Router); err != nil {
				return &lpmos.InvalidError{Field: "dhcp-router", Problem: "is not an address", Value: r.cfg.Router}
			}
		}
		cfg.Pools = []dhcpd.Pool{pool}
		for _, s := range r.cfg.DNS {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return &lpmos.InvalidError{Field: "dhcp-dns", Problem: "is not an address", Value: s}
			}
			cfg.DNS = append(cfg.DNS, a)
		}
	}
	var conns dhcpd.Conns
	for _, c := range []struct {
		port int
		conn *net.PacketConn
	}{{dhcpd.PortServer, &conns.Server}, {dhcpd.PortBoot, &conns.Boot}, {dhcpd.PortWatch, &conns.Watch}} {
		conn, err := dhcpd.Listen(context.Background(), r.cfg.Interface, c.port)
		if err != nil {
			return fmt.Errorf("listen for DHCP on port %d: %w", c.port, err)
		}
		r.closers = append(r.closers, conn)
		*c.conn = conn
	}
	var err error
	if r.dhcp, err = dhcpd.New(cfg, decider, conns, r.log); err != nil {
		return err
	}
	r.dhcp.Silent = r.view.Held
	r.dhcp.OnForeign = func(a netip.Addr) {
		select {
		case r.foreign <- a:
		default: // it shows itself again
		}
	}
	if r.cfg.Interface == "" {
		return nil
	}
	responder, err := ra.Listen(r.cfg.Interface, r.log)
	switch {
	case errors.Is(err, ra.ErrNoLinkLocal):
		r.log.Info("no IPv6 on the interface: old iPXE waits for a router there", "interface", r.cfg.Interface)
	case err != nil:
		return err
	default:
		r.ra = responder
	}
	return nil
}

func (r *Region) transferSocket(ctx context.Context) (c net.PacketConn, err error) {
	err = r.cfg.Do(func() error {
		c, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp4", r.cfg.AdvertiseHost+":0")
		return err
	})
	return c, err
}

// BootURL is where firmware and iPXE find this region.
func (r *Region) BootURL() string { return "http://" + r.at(r.bootL) }

func (r *Region) agentURL() string { return "https://" + r.at(r.agentL) }

func (r *Region) at(l net.Listener) string {
	return net.JoinHostPort(r.cfg.AdvertiseHost, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

// Run serves until ctx ends.
func (r *Region) Run(ctx context.Context) error {
	defer r.release()
	r.log.Info("region serves", "boot", r.BootURL(), "agent", r.agentURL(), "dhcp", r.cfg.DHCP, "version", version.String())
	parts := []func(context.Context) error{
		func(ctx context.Context) error { return r.view.runSite(ctx, r.store) },
		func(ctx context.Context) error { return r.view.runConfig(ctx, r.store) },
		r.hold,
		r.sweep,
		r.tellForeign,
		r.agents.Run,
		func(ctx context.Context) error { return service.Serve(ctx, r.agentSrv, r.agentL) },
		func(ctx context.Context) error { return service.Serve(ctx, httpboot.NewServer(r.boot), r.bootL) },
	}
	if r.dhcp != nil {
		parts = append(parts, r.dhcp.Run)
	}
	if r.ra != nil {
		parts = append(parts, r.ra.Run)
	}
	if r.tftp != nil {
		parts = append(parts, func(ctx context.Context) error { return r.tftp.Serve(ctx, r.tftpConn) })
	}
	return service.Run(ctx, parts...)
}

func (r *Region) release() {
	for _, c := range r.closers {
		c.Close()
	}
}

// hold keeps a session with the store, opening another when one is lost. While
// another instance holds the region, this one serves nothing; what that one
// knew of the agents is taken over before anything is served.
func (r *Region) hold(ctx context.Context) error {
	defer func() {
		if s := r.session.Swap(nil); s != nil {
			s.Close()
		}
	}()
	for wait := 200 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
		s, err := r.store.OpenSession(ctx, r.cfg.RegionID, r.instance, r.capabilities(), func(holder string) {
			r.view.setStandby(true)
			r.log.Warn("region is served by another instance, standing by", "holder", holder)
		})
		if err != nil {
			if ctx.Err() == nil {
				r.log.Warn("open session", "err", err)
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
			continue
		}
		wait = 200 * time.Millisecond
		if r.view.reach(ctx, s.Epoch(), s.Lost()) {
			// Since the last session ended, nothing of this process was stored, so
			// what is stored is as new as what it knows, or newer.
			r.agents.Restore(r.view.agentRecords())
			r.session.Store(s)
			r.view.setStandby(false)
			r.log.Info("session opened")
			select {
			case <-s.Lost():
			case <-ctx.Done():
				return nil
			}
			r.session.CompareAndSwap(s, nil)
		}
		s.Close()
		if ctx.Err() == nil {
			r.log.Warn("session lost, opening another")
		}
	}
	return nil
}

func (r *Region) capabilities() lpmos.Capabilities {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.caps
}

// tell changes what the control plane is to know of this region and writes it;
// without a session it is told with the next one.
func (r *Region) tell(ctx context.Context, s *store.Session, edit func(*lpmos.Capabilities)) error {
	r.telling.Lock()
	defer r.telling.Unlock()
	r.mu.Lock()
	edit(&r.caps)
	r.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.PutCapabilities(ctx, r.capabilities())
}

// tellForeign lets the control plane know of other DHCP servers: whoever
// watches the region's page sees them.
func (r *Region) tellForeign(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-r.foreign:
			if err := r.tell(ctx, r.session.Load(), func(c *lpmos.Capabilities) { c.SawDHCP(a, time.Now().UTC()) }); err != nil {
				r.log.Warn("tell of another DHCP server", "err", err)
			}
		}
	}
}

// stocked is what a session was told of the cache last.
type stocked struct {
	session *store.Session
	digest  string
}

// tellStock says what the cache holds when that is news. A region that reads
// the control plane's own files has no cache.
func (r *Region) tellStock(ctx context.Context, s *store.Session, told *stocked) {
	cache, ok := r.blobs.(interface{ Stock() lpmos.Stock })
	if !ok {
		return
	}
	stock := cache.Stock()
	now := stocked{s, lpmos.DigestOf(stock)}
	if now == *told {
		return
	}
	if err := r.tell(ctx, s, func(c *lpmos.Capabilities) { c.Stock = &stock }); err != nil {
		r.log.Warn("stock not told", "err", err) // with the next sweep
		return
	}
	*told = now
}

// sweepEvery is how soon reports go after their order did.
const sweepEvery = 15 * time.Second

func (r *Region) sweep(ctx context.Context) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	var told stocked
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		s := r.session.Load()
		if s == nil || !r.view.Synced() {
			continue
		}
		r.tellStock(ctx, s, &told)
		for _, id := range r.view.orphans() {
			err := s.DeleteReports(ctx, id)
			if err == nil || errors.Is(err, lpmos.ErrConflict) {
				r.view.forget(id)
				continue
			}
			r.log.Warn("delete reports", "task", id, "err", err)
		}
		for _, d := range r.view.stale(time.Now()) {
			if err := s.DeleteDiscovered(ctx, d.MAC, d.SeenAt); err != nil {
				r.log.Warn("forget machine", "mac", d.MAC, "err", err)
				break // with the next sweep
			}
		}
	}
}

// instanceID names this installation of a region, so that after a crash it may
// take over its own session at once.
func instanceID(dir string) (string, error) {
	path := filepath.Join(dir, "instance")
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) == 32 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read instance id: %w", err)
	}
	var id [16]byte
	rand.Read(id[:])
	s := hex.EncodeToString(id[:])
	if err := os.WriteFile(path, []byte(s+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("store instance id: %w", err)
	}
	return s, nil
}

func advertised(cfg Config) (netip.Addr, error) {
	if cfg.AdvertiseHost != "" {
		a, err := netip.ParseAddr(cfg.AdvertiseHost)
		if err != nil || !a.Is4() {
			return a, &lpmos.InvalidError{Field: "advertise-host", Problem: "is not an IPv4 address", Value: cfg.AdvertiseHost}
		}
		return a, nil
	}
	if cfg.Interface == "" {
		return netip.MustParseAddr("127.0.0.1"), nil
	}
	prefixes, err := addresses(cfg.Interface)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(prefixes) == 0 {
		return netip.Addr{}, &lpmos.InvalidError{Field: "interface", Problem: "has no IPv4 address: give it one, or set --advertise-host", Value: cfg.Interface}
	}
	return prefixes[0].Addr(), nil
}

func subnetOf(iface string, host netip.Addr) (netip.Prefix, error) {
	if iface == "" {
		return netip.Prefix{}, &lpmos.InvalidError{Field: "interface", Problem: "is needed by a DHCP server"}
	}
	prefixes, err := addresses(iface)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, p := range prefixes {
		if p.Contains(host) {
			return p.Masked(), nil
		}
	}
	return netip.Prefix{}, &lpmos.InvalidError{Field: "advertise-host", Problem: "is in no network of interface " + iface, Value: host.String()}
}

func addresses(iface string) ([]netip.Prefix, error) {
	i, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, &lpmos.InvalidError{Field: "interface", Problem: "does not exist", Value: iface}
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", iface, err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			out = append(out, p)
		}
	}
	return out, nil
}

// boots lets the boot listener begin agent boots.
type boots struct{ *agentserver.Server }

func (b boots) Begin(ctx context.Context, req httpboot.BootRequest) (lpmos.BootEntry, string, error) {
	order, nonce, err := b.Server.Begin(ctx, agentserver.BootRequest{MAC: req.MAC, UUID: req.UUID, Remote: req.Remote})
	if err != nil {
		return lpmos.BootEntry{}, "", err
	}
	e := lpmos.BootEntry{MAC: req.MAC, Action: lpmos.BootAgent}
	if order != nil {
		e.TaskID = order.TaskID
	}
	return e, nonce, nil
}

type leaseView struct{ *dhcpd.Server }

func (l leaseView) ByAddress(a netip.Addr) (lpmos.MAC, bool) {
	lease, ok := l.Server.ByAddress(a)
	return lease.MAC, ok
}

func (l leaseView) ByMAC(mac lpmos.MAC) (netip.Addr, bool) {
	lease, ok := l.Lease(mac)
	return lease.Address, ok
}

// bootFiles is what TFTP serves: the boot image's files, and the script that
// newer iPXE asks for by name.
type bootFiles struct {
	view    *view
	blobs   Blobs
	scripts netboot.Scripts
}

type memoryFile struct{ *bytes.Reader }

func (memoryFile) Close() error { return nil }

func (f bootFiles) Open(ctx context.Context, name string, _ netip.AddrPort) (io.ReadSeekCloser, int64, error) {
	if !f.view.Synced() {
		return nil, 0, fmt.Errorf("open %s: %w: this region is not in sync yet", name, lpmos.ErrUnavailable)
	}
	if name == "autoexec.ipxe" {
		text := f.scripts.Autoexec()
		return memoryFile{bytes.NewReader([]byte(text))}, int64(len(text)), nil
	}
	img, ok := f.view.BootImage()
	if !ok {
		return nil, 0, fmt.Errorf("open %s: %w", name, httpboot.ErrNoBootImage)
	}
	b, ok := img.Files[name]
	if !ok {
		return nil, 0, fmt.Errorf("open %s: %w", name, lpmos.ErrNotFound)
	}
	return f.blobs.Open(ctx, b.SHA256)
}
