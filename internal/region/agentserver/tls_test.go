package agentserver

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/contract"
	"github.com/lpmos/lpmos/internal/pki"
)

// TestOverTLS speaks to a region's listener as an agent does.
func TestOverTLS(t *testing.T) {
	// net/http lingers half a second on a connection it refused.
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent(), goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
	auth, err := pki.LoadRegion(t.TempDir(), "dc1")
	if err != nil {
		t.Fatal(err)
	}
	c := newCenter()
	r := newRegion(t, c)
	r.cfg.CA, r.cfg.ServerName = auth.CAPEM(), auth.ServerName()
	if r.cfg.Secret, err = auth.Secret("boot segments"); err != nil {
		t.Fatal(err)
	}
	r.restart()
	c.order(mac1, lpmos.Pending)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := r.now().HTTP(auth.ServerConfig())
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(l, "", "") }()

	a := r.boot(mac1, netip.MustParseAddr("127.0.0.1"))
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(a.cfg.CA)) {
		t.Fatal("the boot configuration holds no authority")
	}
	cert, err := agentapi.Certificate(a.key)
	if err != nil {
		t.Fatal(err)
	}
	base := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: a.cfg.ServerName, Certificates: []tls.Certificate{cert}},
	}
	defer base.CloseIdleConnections()
	// The URL names the address; the certificate is checked for the fixed name.
	over := roundTripper(func(req *http.Request) (*http.Response, error) {
		req = req.Clone(req.Context())
		req.URL.Host = l.Addr().String()
		return base.RoundTrip(req)
	})
	a.client = &http.Client{Transport: contract.NewTransport(t, spec, over), Timeout: 10 * time.Second}
	want(t, "report", a.report(), 200)
	if status, ap := a.approval("10ms"); status != 200 || ap.Status != lpmos.Pending {
		t.Errorf("approval = %d %+v", status, ap)
	}

	t.Run("a credential of a megabyte is refused", func(t *testing.T) { // T01
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: pool, ServerName: a.cfg.ServerName})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go fmt.Fprintf(conn, "GET /api/v1/agent/approval/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", mac1, strings.Repeat("a", 1<<20))
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil && !strings.Contains(line, " 431 ") {
			t.Errorf("answer = %q; want 431 or a closed connection", line)
		}
	})
	t.Run("another path is a problem document", func(t *testing.T) {
		res, err := (&http.Client{Transport: over}).Get("https://region/../etc/passwd")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		if res.StatusCode != 404 || res.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("answer = %d %s %s", res.StatusCode, res.Header.Get("Content-Type"), b)
		}
	})
	base.CloseIdleConnections()
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != http.ErrServerClosed {
		t.Error(err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
