package rest_test

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos/api"
	"github.com/lpmos/lpmos/internal/contract"
	capi "github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/enroll"
	"github.com/lpmos/lpmos/internal/controlplane/rest"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// office is a control plane's enrollment behind TLS that asks for certificates,
// with a clock that can be set.
type office struct {
	*plane
	secured *storetest.Secured
	key     string // PEM of the newest request's key
	cuts    int

	mu  sync.Mutex // guards now
	now time.Time
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{secured: storetest.NewSecured(t), now: time.Now()}
	svc := enroll.New(enroll.Config{
		CA: o.secured.CA, EtcdCA: o.secured.CA.PEM(), EtcdName: pki.StoreName,
		Endpoints: func(host string) []string { return []string{"https://" + host} }, Cut: func() { o.cuts++ },
		Now: func() time.Time { o.mu.Lock(); defer o.mu.Unlock(); return o.now },
	}, o.secured.Control, discard)
	a := rest.New(nil, nil, nil, nil, nil, nil, discard)
	a.Enroll(svc)
	srv := httptest.NewUnstartedServer(auth.As(tester, a.Handler(http.NotFoundHandler())))
	srv.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: o.secured.CA.Pool(), MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	o.plane = &plane{t: t, url: srv.URL, http: &http.Client{Transport: contract.NewTransport(t, api.OpenAPI, srv.Client().Transport)}}
	return o
}

// as is the office to somebody who shows a certificate.
func (o *office) as(cert string) *plane {
	o.t.Helper()
	c, err := tls.X509KeyPair([]byte(cert), []byte(o.key))
	if err != nil {
		o.t.Fatal(err)
	}
	t := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{c}}}
	o.t.Cleanup(t.CloseIdleConnections)
	return &plane{t: o.t, url: o.url, http: &http.Client{Transport: contract.NewTransport(o.t, api.OpenAPI, t)}}
}

func (o *office) pass(d time.Duration) {
	o.mu.Lock()
	o.now = o.now.Add(d)
	o.mu.Unlock()
}

func (o *office) token(region string) string {
	o.t.Helper()
	return want[capi.EnrollToken](o.plane, "POST", "/api/v1/regions/"+region+"/enroll", "", 201).Token
}

// request is the body of a request with a fresh key, which it leaves in o.key.
func (o *office) request(token string) string {
	o.t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		o.t.Fatal(err)
	}
	csr, err := pki.Request(key)
	if err != nil {
		o.t.Fatal(err)
	}
	o.key = keyPEM(o.t, key)
	b, err := json.Marshal(capi.CertificateRequest{Token: token, CSR: string(csr), Host: "host1"})
	if err != nil {
		o.t.Fatal(err)
	}
	return string(b)
}

func TestEnrollRegion(t *testing.T) {
	o := newOffice(t)
	const certificate = "/api/v1/regions/dc1/certificate"
	body := o.request(o.token("dc1"))

	t.Run("is refused for another region, and the token stays good", func(t *testing.T) {
		o.problem("POST", "/api/v1/regions/dc2/certificate", body, 403)
	})
	first := want[capi.RegionCertificate](o.plane, "POST", certificate, body, 200)
	if first.EtcdServerName != pki.StoreName || len(first.EtcdEndpoints) != 1 || first.Authority != string(o.secured.CA.PEM()) {
		t.Errorf("the answer is %+v", first)
	}
	if block, _ := pem.Decode([]byte(first.Certificate)); block == nil {
		t.Fatal("no certificate")
	}
	t.Run("gives the same key another certificate of the same user", func(t *testing.T) {
		again := want[capi.RegionCertificate](o.plane, "POST", certificate, body, 200)
		if a, b := subject(t, first.Certificate), subject(t, again.Certificate); a != "lpmos-region-dc1.1" || a != b {
			t.Errorf("the users are %q and %q", a, b)
		}
	})
	t.Run("refuses the token for another key", func(t *testing.T) {
		key := o.key
		p := o.problem("POST", certificate, o.request(token(t, body)), 409)
		if !strings.Contains(p.Detail, "used already") || !strings.Contains(p.Detail, "lpmos region revoke dc1") {
			t.Errorf("the detail is %q", p.Detail)
		}
		o.key = key
	})
	t.Run("takes nothing of a request but its key", func(t *testing.T) {
		for _, csr := range []string{"", "x", strings.Repeat("x", 10<<10), string(o.secured.CA.PEM())} {
			b, _ := json.Marshal(capi.CertificateRequest{Token: o.token("dc1"), CSR: csr})
			o.problem("POST", certificate, string(b), 400)
		}
		b, _ := json.Marshal(capi.CertificateRequest{Token: o.token("root"), CSR: asRoot(t)})
		c := want[capi.RegionCertificate](o.plane, "POST", "/api/v1/regions/root/certificate", string(b), 200)
		if s := subject(t, c.Certificate); s != "lpmos-region-root.1" {
			t.Errorf("a request for CN root was answered with one for %q", s)
		}
	})
	t.Run("is renewed with the certificate before", func(t *testing.T) {
		region := o.as(first.Certificate)
		next := want[capi.RegionCertificate](region, "POST", certificate, o.requestKeepingKey(""), 200)
		if s := subject(t, next.Certificate); s != "lpmos-region-dc1.1" {
			t.Errorf("renewed as %q", s)
		}
		region.problem("POST", "/api/v1/regions/dc2/certificate", o.requestKeepingKey(""), 403)
		o.problem("POST", certificate, o.requestKeepingKey(""), 403) // without one
	})
	t.Run("rotates when it is told to", func(t *testing.T) {
		o.empty("POST", "/api/v1/regions/dc1/rotate", 202)
		id, err := o.secured.Control.Identity(t.Context(), "dc1")
		if err != nil || id.RotateAfter.IsZero() {
			t.Errorf("identity is %+v, %v", id, err)
		}
		o.problem("POST", "/api/v1/regions/dc9/rotate", "", 404)
		o.problem("POST", "/api/v1/regions/DC9/rotate", "", 400)
	})
	t.Run("ends when it is revoked", func(t *testing.T) {
		region := o.as(first.Certificate)
		unused := o.token("dc1")
		o.empty("POST", "/api/v1/regions/dc1/revoke", 204)
		if o.cuts != 1 {
			t.Errorf("connections were cut %d times", o.cuts)
		}
		p := region.problem("POST", certificate, o.requestKeepingKey(""), 403)
		if !strings.Contains(p.Detail, "revoked") {
			t.Errorf("the detail is %q", p.Detail)
		}
		// The token that the certificate came for is good for the same key, as long
		// as nobody ended what came of it.
		if p := o.problem("POST", certificate, body, 403); !strings.Contains(p.Detail, "revoked") {
			t.Errorf("the detail with the token of before is %q", p.Detail)
		}
		if p := o.problem("POST", certificate, o.requestKeepingKey(unused), 403); !strings.Contains(p.Detail, "ended when region dc1 was revoked") {
			t.Errorf("the detail with a token that nobody used yet is %q", p.Detail)
		}
		o.problem("POST", "/api/v1/regions/dc9/revoke", "", 404)
		o.problem("POST", "/api/v1/regions/DC9/revoke", "", 400)
		o.problem("POST", "/api/v1/regions/dc1/rotate", "", 404)
	})
	t.Run("that was only invited is revoked, too", func(t *testing.T) {
		invited := o.token("dc4")
		o.empty("POST", "/api/v1/regions/dc4/revoke", 204)
		o.problem("POST", "/api/v1/regions/dc4/certificate", o.requestKeepingKey(invited), 403)
		want[capi.RegionCertificate](o.plane, "POST", "/api/v1/regions/dc4/certificate", o.requestKeepingKey(o.token("dc4")), 200)
	})
	t.Run("comes back as another user", func(t *testing.T) {
		c := want[capi.RegionCertificate](o.plane, "POST", certificate, o.request(o.token("dc1")), 200)
		if s := subject(t, c.Certificate); s == "lpmos-region-dc1.1" {
			t.Errorf("the user of before is back: %q", s)
		}
		o.problem("POST", certificate, body, 403)
	})
	t.Run("knows when a token expired", func(t *testing.T) {
		body := o.request(o.token("dc3"))
		o.pass(enroll.DefaultTTL + time.Second)
		o.problem("POST", "/api/v1/regions/dc3/certificate", body, 410)
	})
	t.Run("knows its own tokens only", func(t *testing.T) {
		stranger := pki.NewToken("dc1", o.secured.CA.Certificate())
		for _, token := range []string{stranger.String(), "lre_dc1.x.y", strings.Repeat("x", 2000), "root"} {
			o.problem("POST", certificate, o.request(token), 403)
		}
	})
	t.Run("is strict", func(t *testing.T) {
		o.problem("POST", "/api/v1/regions/DC1/enroll", "", 400)
		o.problem("POST", "/api/v1/regions/dc1/enroll", `{"ttl_seconds":604801}`, 400)
		o.problem("POST", "/api/v1/regions/dc1/enroll", `{"ttl_seconds":-1}`, 400)
		o.problem("POST", certificate, `{"csr":"`+strings.Repeat("x", 300<<10)+`"}`, 413)
		o.problem("POST", "/api/v1/regions/dc1/enroll", `{}`, 415, "Content-Type", "text/plain")
		o.problem("POST", certificate, `{}`, 415, "Content-Type", "text/plain")
	})
}

func (o *office) requestKeepingKey(token string) string {
	key := o.key
	defer func() { o.key = key }()
	return o.request(token)
}

// A store that asks nobody who they are cannot keep a region to its own keys.
func TestEnrollNeedsAuthentication(t *testing.T) {
	o := newOffice(t)
	st := storetest.New(t)
	a := rest.New(nil, nil, nil, nil, nil, nil, discard)
	a.Enroll(enroll.New(enroll.Config{CA: o.secured.CA, Endpoints: func(string) []string { return []string{"https://x"} }}, st, discard))
	srv := httptest.NewServer(auth.As(tester, a.Handler(http.NotFoundHandler())))
	t.Cleanup(srv.Close)
	o.url = srv.URL
	if p := o.problem("POST", "/api/v1/regions/dc1/enroll", "", 409); !strings.Contains(p.Detail, "--etcd-listen") {
		t.Errorf("the detail is %q", p.Detail)
	}
	o.problem("POST", "/api/v1/regions/dc1/revoke", "", 409)

	t.Run("and a way to it", func(t *testing.T) {
		svc := enroll.New(enroll.Config{CA: o.secured.CA, Endpoints: func(string) []string { return nil }}, o.secured.Control, discard)
		if _, err := svc.Enroll(t.Context(), "dc1", 0, "", "me"); err == nil || !strings.Contains(err.Error(), "--region-etcd-endpoints") {
			t.Errorf("Enroll = %v", err)
		}
	})
	t.Run("and a control plane that may make users", func(t *testing.T) {
		s := o.secured.Region("dc7", 1)
		svc := enroll.New(enroll.Config{CA: o.secured.CA, Endpoints: func(string) []string { return []string{"https://x"} }}, s, discard)
		if _, err := svc.Enroll(t.Context(), "dc1", 0, "", "me"); err == nil || !strings.Contains(err.Error(), "etcdctl user grant-role") {
			t.Errorf("Enroll = %v", err)
		}
	})
}
