// Package identity is who a region is: a key that never leaves its data
// directory, and the certificate of the site's authority by which the control
// plane and etcd know it.
//
// It comes by a token (Enroll) and from then on stands in one file, mode 0600,
// with all that is needed to find the site, so that a region starts without
// flags. Keep renews it before a third of its life is left, and whenever the
// control plane asks for it; connections that are open go on, new ones use the
// new certificate.
package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/store"
)

// The files in the data directory.
const (
	fileName    = "identity.json"
	pendingName = "enrolling.json"
)

// record is the content of the file. Certificates and keys are PEM.
type record struct {
	RegionID        string `json:"region_id"`
	ControlPlaneURL string `json:"control_plane_url"`
	// Token is the hash of the token that this came by.
	Token string `json:"token"`
	Key   string `json:"key"`
	grant
}

// grant is the control plane's answer (api/openapi.yaml, RegionCertificate).
type grant struct {
	Certificate    string    `json:"certificate"`
	Authority      string    `json:"authority"`
	IssuedAt       time.Time `json:"issued_at"`
	NotAfter       time.Time `json:"not_after"`
	EtcdEndpoints  []string  `json:"etcd_endpoints"`
	EtcdAuthority  string    `json:"etcd_authority"`
	EtcdServerName string    `json:"etcd_server_name,omitempty"`
}

// Identity is a region's. It may be used concurrently.
type Identity struct {
	dir       string
	log       *slog.Logger
	transport *http.Transport // to the control plane

	mu   sync.Mutex // guards what follows
	rec  record
	cert *tls.Certificate
}

// Load reads the identity of the region whose data is in dir. ok is false if
// it was never enrolled.
func Load(dir string, log *slog.Logger) (id *Identity, ok bool, err error) {
	path := filepath.Join(dir, fileName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	var rec record
	if err == nil {
		err = json.Unmarshal(b, &rec) // an older version's file stays good
	}
	if err == nil {
		id, err = build(dir, rec, log)
	}
	if err != nil {
		return nil, false, fmt.Errorf("read identity %s: %w (restore it from a backup, or remove it and enroll the region again)", path, err)
	}
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("read identity %s: mode %#o lets others read the private key (chmod 600 it)", path, info.Mode().Perm())
	}
	return id, err == nil, err
}

func build(dir string, rec record, log *slog.Logger) (*Identity, error) {
	cert, err := tls.X509KeyPair([]byte(rec.Certificate), []byte(rec.Key))
	if err != nil {
		return nil, err
	}
	region, _, ok := store.ParseRegionUser(cert.Leaf.Subject.CommonName)
	if !ok || region != rec.RegionID {
		return nil, fmt.Errorf("the certificate is %q's, not region %s's", cert.Leaf.Subject.CommonName, rec.RegionID)
	}
	roots, err := pki.Pool([]byte(rec.Authority))
	if err != nil {
		return nil, err
	}
	id := &Identity{dir: dir, log: log, rec: rec, cert: &cert}
	id.transport = &http.Transport{
		ResponseHeaderTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: pki.ControlPlaneName, GetClientCertificate: id.client},
	}
	return id, nil
}

func (i *Identity) client(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert, nil
}

func (i *Identity) record() record {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.rec
}

// Region is the region's id.
func (i *Identity) Region() string { return i.record().RegionID }

// ControlPlaneURL is where it was enrolled.
func (i *Identity) ControlPlaneURL() string { return i.record().ControlPlaneURL }

// By reports whether this identity came by t.
func (i *Identity) By(t pki.Token) bool { return i.record().Token == t.Hash() }

// Transport speaks to the control plane of this site, and to nobody else,
// whatever the address: both sides show a certificate.
func (i *Identity) Transport() http.RoundTripper { return i.transport }

// Store is what it takes to connect to etcd.
func (i *Identity) Store() (store.Config, error) {
	rec := i.record()
	roots, err := pki.Pool([]byte(rec.EtcdAuthority))
	if err != nil {
		return store.Config{}, fmt.Errorf("read etcd's authority: %w", err)
	}
	return store.Config{Endpoints: rec.EtcdEndpoints, TLS: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: rec.EtcdServerName, GetClientCertificate: i.client,
	}}, nil
}

// pending is a key that a token was, or may have been, used for: an answer that
// is lost can be asked for again with it.
type pending struct {
	Token string `json:"token"`
	Key   string `json:"key"`
}

// Enroll trades a token for an identity at the control plane at server, and
// stores it in dir, over one that is there. It trusts only the authority that
// the token names.
func Enroll(ctx context.Context, dir string, token pki.Token, server string, log *slog.Logger) (*Identity, error) {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "https" {
		return nil, &lpmos.InvalidError{Field: "control-plane-url", Problem: "is not an https:// address, which enrolling needs", Value: server}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	key, keyPEM, err := pendingKey(filepath.Join(dir, pendingName), token.Hash())
	if err != nil {
		return nil, err
	}
	t := &http.Transport{TLSHandshakeTimeout: 10 * time.Second, TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: pki.ControlPlaneName,
		InsecureSkipVerify: true, // VerifyConnection does it, against the authority that the token names
		VerifyConnection:   func(cs tls.ConnectionState) error { return pinned(cs, token) },
	}}
	defer t.CloseIdleConnections()
	g, err := ask(ctx, t, server, token.Region, token.String(), key)
	if err != nil {
		return nil, fmt.Errorf("enroll region %s: %w", token.Region, err)
	}
	rec := record{RegionID: token.Region, ControlPlaneURL: server, Token: token.Hash(), Key: keyPEM, grant: g}
	id, err := build(dir, rec, log)
	if err == nil {
		err = id.save(rec)
	}
	if err != nil {
		return nil, fmt.Errorf("enroll region %s: %w", token.Region, err)
	}
	log.Info("region enrolled", "region", rec.RegionID, "until", rec.NotAfter, "etcd", rec.EtcdEndpoints)
	if err := os.Remove(filepath.Join(dir, pendingName)); err != nil {
		log.Warn("remove what enrolling left", "err", err)
	}
	return id, nil
}

// pinned checks that a server is of the authority that the token names, by the
// name that control planes have.
func pinned(cs tls.ConnectionState, token pki.Token) error {
	for _, c := range cs.PeerCertificates {
		if !token.Pins(c) {
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(c)
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: pki.ControlPlaneName})
		return err
	}
	who := "nobody"
	if len(cs.PeerCertificates) > 0 {
		who = cs.PeerCertificates[len(cs.PeerCertificates)-1].Issuer.String()
	}
	return fmt.Errorf("this is not the control plane that made the token: its certificate is by %s (is --control-plane-url right, and is nothing in between that ends TLS?)", who)
}

func pendingKey(path, token string) (*ecdsa.PrivateKey, string, error) {
	var p pending
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err == nil && p.Token == token {
		block, _ := pem.Decode([]byte(p.Key))
		if block == nil {
			return nil, "", fmt.Errorf("read %s: it holds no key: remove it", path)
		}
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		key, ok := k.(*ecdsa.PrivateKey)
		if err != nil || !ok {
			return nil, "", fmt.Errorf("read %s: it holds no key: remove it", path)
		}
		return key, p.Key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("read %s: %w (remove it)", path, err)
	}
	key, text, err := newKey()
	if err != nil {
		return nil, "", err
	}
	if b, err = json.Marshal(pending{token, text}); err == nil {
		err = pki.Replace(path, b)
	}
	if err != nil {
		return nil, "", fmt.Errorf("store the region's key: %w", err)
	}
	return key, text, nil
}

func newKey() (*ecdsa.PrivateKey, string, error) {
	key, err := pki.NewKey()
	if err != nil {
		return nil, "", fmt.Errorf("make the region's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, "", fmt.Errorf("make the region's key: %w", err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

func (i *Identity) save(rec record) error {
	b, err := json.MarshalIndent(rec, "", "  ")
	if err == nil {
		err = pki.Replace(filepath.Join(i.dir, fileName), append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("store identity: %w", err)
	}
	return nil
}

// errRevoked is wrapped by the control plane's word that this region is nobody
// here.
var errRevoked = errors.New("the control plane refuses this region")

// ask gets a certificate for key; token is "" when the connection has one.
func ask(ctx context.Context, t http.RoundTripper, server, region, token string, key *ecdsa.PrivateKey) (g grant, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	csr, err := pki.Request(key)
	if err != nil {
		return g, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	body, err := json.Marshal(struct {
		Token string `json:"token,omitempty"`
		CSR   string `json:"csr"`
		Host  string `json:"host,omitempty"`
	}{token, string(csr), host})
	if err != nil {
		return g, fmt.Errorf("encode request: %w", err)
	}
	u, err := url.JoinPath(server, "api/v1/regions", region, "certificate")
	if err != nil {
		return g, fmt.Errorf("ask %s: %w", server, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, bytes.NewReader(body))
	if err != nil {
		return g, fmt.Errorf("ask %s: %w", server, err)
	}
	req.Header.Set("Content-Type", "application/json")
	// A redirect would take the token elsewhere.
	c := http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(req)
	if err != nil {
		return g, fmt.Errorf("ask %s: %w", server, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return g, fmt.Errorf("read answer of %s: %w", server, err)
	}
	if resp.StatusCode != http.StatusOK {
		var p struct {
			Detail string `json:"detail"`
		}
		if json.Unmarshal(b, &p) != nil || p.Detail == "" {
			p.Detail = "it answers " + resp.Status
		}
		text := lpmos.Shorten(p.Detail, 500)
		if resp.StatusCode == http.StatusForbidden {
			return g, fmt.Errorf("%w: %s", errRevoked, text)
		}
		return g, fmt.Errorf("ask %s: %s", server, text)
	}
	if err := json.Unmarshal(b, &g); err != nil {
		return g, fmt.Errorf("read answer of %s: %w", server, err)
	}
	return g, nil
}

// renew gets the next certificate, for a key of its own.
func (i *Identity) renew(ctx context.Context) error {
	rec := i.record()
	key, text, err := newKey()
	if err != nil {
		return err
	}
	if rec.grant, err = ask(ctx, i.transport, rec.ControlPlaneURL, rec.RegionID, "", key); err != nil {
		return err
	}
	rec.Key = text
	cert, err := tls.X509KeyPair([]byte(rec.Certificate), []byte(rec.Key))
	if err != nil {
		return fmt.Errorf("read the new certificate: %w", err)
	}
	if err := i.save(rec); err != nil {
		return err
	}
	i.mu.Lock()
	i.rec, i.cert = rec, &cert
	i.mu.Unlock()
	i.transport.CloseIdleConnections()
	i.log.Info("region's certificate renewed", "region", rec.RegionID, "until", rec.NotAfter)
	return nil
}

// Follower tells of a region's identity as the control plane has it.
type Follower interface {
	FollowIdentity(ctx context.Context, region string, f func(store.Identity)) error
}

// Keep renews the certificate in time until ctx ends, or the control plane
// refuses: then the region was revoked.
func (i *Identity) Keep(ctx context.Context, from Follower) error {
	ctx, cancel := context.WithCancel(ctx)
	wishes := make(chan time.Time, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var followErr error
	followed := make(chan struct{})
	wg.Go(func() {
		defer close(followed)
		followErr = from.FollowIdentity(ctx, i.Region(), func(id store.Identity) {
			select { // only the newest counts
			case <-wishes:
			default:
			}
			wishes <- id.RotateAfter
		})
	})
	var wish time.Time
	retry := time.Second
	for {
		rec := i.record()
		due := pki.RenewAt(rec.IssuedAt, rec.NotAfter)
		if wish.After(rec.IssuedAt) {
			due = time.Time{}
		}
		wait := time.Until(due)
		if wait <= 0 {
			err := i.renew(ctx)
			if err == nil {
				retry = time.Second
				continue
			}
			if errors.Is(err, errRevoked) {
				return fmt.Errorf("renew the certificate of region %s: %w", rec.RegionID, err)
			}
			if ctx.Err() == nil {
				i.log.Warn("renew the region's certificate, trying again", "until", rec.NotAfter, "wait", retry, "err", err)
			}
			wait, retry = retry, min(2*retry, 5*time.Minute)
		}
		t := time.NewTimer(min(wait, time.Hour)) // clocks are set
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-followed:
			t.Stop()
			if ctx.Err() != nil {
				return nil
			}
			return followErr
		case wish = <-wishes:
		case <-t.C:
		}
		t.Stop()
	}
}

// Describe is one line for people.
func (i *Identity) Describe() string {
	rec := i.record()
	return fmt.Sprintf("region %s, certificate until %s, etcd at %s", rec.RegionID, rec.NotAfter.UTC().Format(time.DateOnly), strings.Join(rec.EtcdEndpoints, ", "))
}
