// Package controlplane is the composition of the central part: read model,
// orchestrator, REST, WebSocket and web interface on one listener. Any number
// of replicas may run on one store.
package controlplane

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/api"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/controlplane/audit"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/blobs"
	"github.com/lpmos/lpmos/internal/controlplane/enroll"
	"github.com/lpmos/lpmos/internal/controlplane/hub"
	"github.com/lpmos/lpmos/internal/controlplane/metrics"
	"github.com/lpmos/lpmos/internal/controlplane/orchestrator"
	"github.com/lpmos/lpmos/internal/controlplane/rest"
	"github.com/lpmos/lpmos/internal/controlplane/scope"
	"github.com/lpmos/lpmos/internal/controlplane/state"
	"github.com/lpmos/lpmos/internal/controlplane/web"
	"github.com/lpmos/lpmos/internal/ownstore"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/version"
)

// Config of a replica. Zero values work, but for DataDir.
type Config struct {
	// ListenAddr is where HTTP is served; "" means 127.0.0.1:8080. On loopback,
	// and at ":8080", which then means loopback, it is plain; anywhere else it
	// is TLS unless InsecureHTTP.
	ListenAddr   string
	TLS          bool   // serve TLS on loopback, too
	TLSCert      string // PEM file; with TLSKey the certificate, instead of one by the site's authority
	TLSKey       string
	InsecureHTTP bool   // serve plain HTTP beyond loopback
	DataDir      string // signing key, blobs, authority
	CA           string // PEM file of the site's authority, shared by replicas; "" means DataDir/site-ca.pem
	SigningKey   string // PEM file shared by replicas; "" means DataDir/signing.key
	SiteName     string // shown in the pages
	Deadlines    orchestrator.Config
	Etcd         RegionEtcd

	// NoLogin lets everybody in as an admin (--insecure-no-login).
	NoLogin bool
	// TrustedProxies are addresses and networks whose X-Forwarded-For and
	// X-Forwarded-Proto are believed. None are unless they are named.
	TrustedProxies []string
	// OIDC is the identity provider that people may sign in with, beside passwords.
	OIDC OIDC
	// FirstUser is told, once in the life of a store, who may sign in first and
	// with which one-time password. nil keeps it to itself.
	FirstUser func(name, password string)
	// CheapPasswords is for tests: hashes that cost nothing, and are worth it.
	CheapPasswords bool
}

// OIDC says how people sign in with an OpenID Connect provider. Without an Issuer
// they do not.
type OIDC struct {
	Issuer, ClientID, SecretFile, CA, Name, UserClaim, GroupsClaim string // see AccessFlags

	Scopes []string
	Grants []string // GROUP=ROLE@REGION+REGION
}

// RegionEtcd is how regions of their own process reach the store.
type RegionEtcd struct {
	// Endpoints that regions dial. An entry without a host, https://:2379,
	// stands for the host by which the control plane was reached. None: regions
	// cannot be enrolled.
	Endpoints []string
	CA        []byte // PEM of the authority of etcd's servers; nil for the site's
	Name      string // in their certificates; "" for the host that is dialed
	Cut       func() // ends regions' connections to it, see enroll.Config; may be nil

	CertificateLife time.Duration // of regions; 0 means pki.ClientLife
}

// ControlPlane is one replica.
type ControlPlane struct {
	cfg   Config
	store *store.Store
	state *state.State
	orch  *orchestrator.Orchestrator
	hub   *hub.Hub
	auth  *auth.Auth
	blobs *blobs.Dir
	key   ed25519.PrivateKey
	ids   *enroll.Service
	certs *certificates // nil for plain HTTP
	srv   *http.Server
	url   string
	l     net.Listener
	log   *slog.Logger
}

// New opens the listener and prepares everything; Run serves.
func New(cfg Config, st *store.Store, log *slog.Logger) (_ *ControlPlane, err error) {
	c := &ControlPlane{cfg: cfg, store: st, log: log}
	defer func() {
		if err != nil {
			c.release()
		}
	}()
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	keyFile := cfg.SigningKey
	if keyFile == "" {
		keyFile = filepath.Join(cfg.DataDir, "signing.key")
	}
	if c.key, err = loadKey(keyFile, cfg.SigningKey == ""); err != nil {
		return nil, err
	}
	if err := pki.Publish(c.VerifyKeyFile(), verifyKey(c.key)); err != nil {
		return nil, err
	}
	if c.blobs, err = blobs.Open(filepath.Join(cfg.DataDir, "blobs")); err != nil {
		return nil, err
	}
	secure, addr, err := listening(cfg)
	if err != nil {
		return nil, err
	}
	ca, err := pki.Load(cmp.Or(cfg.CA, filepath.Join(cfg.DataDir, ownstore.CAFile)), cfg.CA == "")
	if err != nil {
		return nil, err
	}
	if secure {
		if c.certs, err = newCertificates(cfg, ca, addr, log); err != nil {
			return nil, err
		}
	}
	// For people and their programs, who are to trust it.
	if err := pki.Publish(c.AuthorityFile(), ca.PEM()); err != nil {
		return nil, err
	}
	c.ids = enroll.New(enroll.Config{
		CA: ca, Endpoints: cfg.Etcd.endpoints, EtcdCA: cfg.Etcd.authority(ca), EtcdName: cfg.Etcd.Name,
		Cut: cfg.Etcd.Cut, Life: cfg.Etcd.CertificateLife,
	}, st, log)
	c.state = state.New(st, log)
	c.state.SetPermitLimit(cfg.Deadlines.PermitsPerMinute)
	orchCfg := cfg.Deadlines
	orchCfg.Key = c.key
	c.orch = orchestrator.New(orchCfg, c.state, st, log)
	if err := c.people(secure); err != nil {
		return nil, err
	}
	c.hub = hub.New(c.state, c.auth, log)
	c.state.Listen(c.orch.Notice)
	c.state.Listen(c.hub.Publish)

	provider, err := cfg.OIDC.provider(log)
	if err != nil {
		return nil, err
	}
	pages, err := web.New(c.state, scope.Remember(c.state, st, auth.Principal{}), c.orch, web.Config{
		Version: version.String(), SiteName: cfg.SiteName, Batches: c.orch, View: c.webView, People: c.auth, Provider: provider,
		Insecure: !secure && cfg.InsecureHTTP,
	}, log)
	if err != nil {
		return nil, err
	}
	rst := rest.New(c.state, c.orch, restStore{scope.Remember(c.state, st, auth.Principal{}), st, c.state}, c.blobs, c.PublishBootImage, api.OpenAPI, log)
	m := metrics.New(c.state, func() metrics.Hub {
		s := c.hub.Stats()
		return metrics.Hub{Connections: s.Connections, Published: s.Published, Sent: s.Sent, Coalesced: s.Coalesced, Evicted: s.Slow + s.Stalled + s.Silent}
	}, version.String())
	rst.Measure(m.Handler(), m.Observe)
	rst.Enroll(c.ids)
	rst.Narrow(c.restView)
	rst.Know(c.auth)
	mux := http.NewServeMux()
	mux.Handle("/ws", c.hub)
	mux.Handle("/", rst.Handler(web.Headers(pages.Handler())))
	h := c.auth.Handler(http.NewCrossOriginProtection().Handler(mux))
	switch {
	case secure:
		h = c.peers(h)
		if cfg.TLSCert != "" {
			h = strict(h)
		}
	case !cfg.InsecureHTTP:
		h = loopbackHost(h)
	default:
		log.Warn("plain HTTP beyond loopback (--insecure-http): whoever is on the path can read along and approve", "addr", addr)
	}
	if c.l, err = service.Listen(addr); err != nil {
		return nil, err
	}
	c.srv = service.HTTPServer(h, log)
	at := c.l.Addr().(*net.TCPAddr)
	host := at.IP.String()
	if at.IP.IsUnspecified() {
		host = "localhost"
	}
	c.url = "http://" + net.JoinHostPort(host, strconv.Itoa(at.Port))
	if secure {
		c.srv.TLSConfig = c.certs.config()
		c.url = "https" + strings.TrimPrefix(c.url, "http")
	}
	return c, nil
}

// Addr is where HTTP is served.
func (c *ControlPlane) Addr() net.Addr { return c.l.Addr() }

// URL is Addr as a person types it.
func (c *ControlPlane) URL() string { return c.url }

// AuthorityFile is the certificate of the site's authority, in PEM.
func (c *ControlPlane) AuthorityFile() string { return filepath.Join(c.cfg.DataDir, "site-ca.crt") }

// VerifyKeyFile is the public half of the key that signs approvals, permits and
// the audit, in PEM, for whoever verifies elsewhere.
func (c *ControlPlane) VerifyKeyFile() string { return filepath.Join(c.cfg.DataDir, "signing.pub") }

// Blobs is where this replica keeps files by content.
func (c *ControlPlane) Blobs() *blobs.Dir { return c.blobs }

// State is the read model.
func (c *ControlPlane) State() *state.State { return c.state }

// Actions is the orchestrator.
func (c *ControlPlane) Actions() *orchestrator.Orchestrator { return c.orch }

// Run serves until ctx ends.
func (c *ControlPlane) Run(ctx context.Context) error {
	defer c.release()
	self := lpmos.Actor{Name: "control plane", Via: "host " + service.Host().Hostname}
	if err := c.publishKey(lpmos.WithActor(ctx, self)); err != nil {
		return err
	}
	password, err := c.auth.FirstAdmin(lpmos.WithActor(ctx, self))
	if err != nil {
		return err
	}
	if password != "" && c.cfg.FirstUser != nil {
		c.cfg.FirstUser("admin", password)
	}
	if c.cfg.NoLogin {
		c.log.Warn("nobody has to sign in: whoever reaches this address can erase machines", "addr", c.URL(), "flag", "--insecure-no-login")
	}
	c.log.Info("control plane serves", "addr", c.URL(), "version", version.String())
	keeper := audit.Keeper{Log: c.store, Key: c.key, Moved: c.state.Moved, Now: time.Now, Err: c.log}
	return service.Run(ctx,
		c.state.Run,
		c.hub.Run,
		c.auth.Run,
		c.synced(c.orch.Run),
		c.synced(c.orch.RunBatches),
		c.synced(func(ctx context.Context) error { return keeper.Run(lpmos.WithActor(ctx, self)) }),
		c.synced(c.archive),
		c.compact,
		c.keepCertificates,
		func(ctx context.Context) error { return service.Serve(ctx, c.srv, c.l) },
	)
}

// synced runs what needs the whole read model once that is there.
func (c *ControlPlane) synced(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-c.state.Synced():
			return run(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *ControlPlane) release() {
	if c.l != nil {
		c.l.Close()
	}
	if c.blobs != nil {
		c.blobs.Close()
	}
}

// archiveAfter is how long a task that has ended stays where the key space has
// its keys: readers of these have a week.
const archiveAfter = 7 * 24 * time.Hour

func (c *ControlPlane) archive(ctx context.Context) error {
	t := time.NewTicker(time.Hour)
	defer t.Stop()
	for {
		n, err := c.store.ArchiveTasks(ctx, time.Now().Add(-archiveAfter))
		if err != nil && ctx.Err() == nil {
			c.log.Warn("archive tasks that have ended, again in an hour", "err", err)
		}
		if n > 0 {
			c.log.Info("tasks that have ended were archived", "tasks", n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// PublishBootImage makes regions serve another boot image.
func (c *ControlPlane) PublishBootImage(ctx context.Context, b lpmos.BootImage) error {
	_, err := c.store.UpdateGlobal(ctx, func(g *store.Global) error {
		b.Site = lpmos.Blob{} // ours to say, whatever the caller sent
		g.BootImage = &b
		return c.site(ctx, g)
	})
	return err
}

// site adds this replica's key to those that agents trust and gives the boot
// image its site segment, which holds them. It is
// content of the control plane's, named by digest, so that a region passes it
// on and does not make it.
func (c *ControlPlane) site(ctx context.Context, g *store.Global) error {
	pub := []byte(c.key.Public().(ed25519.PublicKey))
	if !slices.ContainsFunc(g.Keys, func(k []byte) bool { return string(k) == string(pub) }) {
		g.Keys = append(g.Keys, pub)
	}
	if g.BootImage == nil {
		return nil
	}
	text, err := json.Marshal(agentapi.SiteConfig{Keys: g.Keys})
	if err != nil {
		return fmt.Errorf("encode site configuration: %w", err)
	}
	segment := agentapi.Segment(agentapi.SiteConfigPath, text)
	digest := strings.TrimPrefix(lpmos.DigestBytes(segment), "sha256:")
	b := *g.BootImage
	if b.Site, err = c.blobs.Put(ctx, digest, bytes.NewReader(segment)); err != nil {
		return fmt.Errorf("store site segment: %w", err)
	}
	g.BootImage = &b
	return nil
}

func (c *ControlPlane) publishKey(ctx context.Context) error {
	// Also where nothing changed: this replica must have the segment's bytes.
	own := service.Host()
	_, err := c.store.UpdateGlobal(ctx, func(g *store.Global) error {
		if own.Hostname != "" && lpmos.DigestOf(g.Hosts[own.Hostname]) != lpmos.DigestOf(own) {
			hosts := maps.Clone(g.Hosts)
			if hosts == nil {
				hosts = map[string]lpmos.Host{}
			}
			hosts[own.Hostname] = own
			g.Hosts = hosts
		}
		return c.site(ctx, g)
	})
	if err != nil {
		return fmt.Errorf("publish signing key: %w", err)
	}
	return nil
}

// keepHistory is how much of the store's history is kept for watchers that were
// cut off.
const keepHistory = 10 * time.Minute

// compact forgets older history, on external etcd too: progress alone would
// otherwise fill it.
func (c *ControlPlane) compact(ctx context.Context) error {
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	type mark struct {
		at  time.Time
		rev int64
	}
	var marks []mark
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			marks = append(marks, mark{now, c.state.Rev()})
			if len(marks) < 2 || now.Sub(marks[1].at) < keepHistory {
				continue
			}
			if err := c.store.Compact(ctx, marks[1].rev); err != nil && ctx.Err() == nil {
				c.log.Warn("compact history", "err", err)
			}
			marks = marks[1:]
		}
	}
}

// loopbackHost answers only requests for a loopback name, so that a page of
// another site that had its name point here (DNS rebinding) gets nothing.
func loopbackHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip := net.ParseIP(strings.Trim(host, "[]"))
		if host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "this server answers to localhost only; see --tls-cert and --insecure-http", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// loadKey reads the Ed25519 key that signs approvals, and makes it on first
// start if it may. A key that is there but cannot be read is never replaced.
func loadKey(path string, create bool) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && create {
		seed := make([]byte, ed25519.SeedSize)
		_, _ = rand.Read(seed) // never fails
		b, err = pki.Create(path, pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: seed}))
	}
	if err != nil {
		return nil, fmt.Errorf("read signing key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != keyBlock || len(block.Bytes) != ed25519.SeedSize {
		return nil, fmt.Errorf("read signing key: %s is not an LPMOS signing key: restore it from a backup; without it approvals cannot be given", path)
	}
	return ed25519.NewKeyFromSeed(block.Bytes), nil
}

const keyBlock = "LPMOS SIGNING KEY" // of PEM

// verifyKey is the public half of a key, in PEM.
func verifyKey(key ed25519.PrivateKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(fmt.Sprintf("controlplane: encode an Ed25519 key: %v", err))
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}
