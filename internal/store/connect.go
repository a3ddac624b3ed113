package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// fixedName is t as etcd's client must be given it. That checks a server by the
// host or the socket it dials, whatever name t has; a name in t is to be checked
// instead, because it stands in the certificate wherever the server is.
func fixedName(t *tls.Config) *tls.Config {
	if t == nil || t.ServerName == "" {
		return t
	}
	t = t.Clone()
	name, roots := t.ServerName, t.RootCAs
	t.InsecureSkipVerify = true // VerifyConnection does it, for the name in t
	t.VerifyConnection = func(cs tls.ConnectionState) error {
		rest := x509.NewCertPool()
		for _, c := range cs.PeerCertificates[1:] {
			rest.AddCert(c)
		}
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: rest, DNSName: name})
		return err
	}
	return t
}

// handshakeProblem is why no TLS connection to an endpoint comes about, nil if
// that is not it. etcd's client only says that time ran out.
func handshakeProblem(ctx context.Context, endpoint string, t *tls.Config) error {
	if t == nil {
		return nil
	}
	network, addr := "tcp", endpoint
	if path, ok := strings.CutPrefix(endpoint, "unixs://"); ok {
		network, addr = "unix", path
	} else if u, err := url.Parse(endpoint); err == nil && u.Scheme == "https" {
		addr = u.Host
	} else if strings.Contains(endpoint, "://") {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil // the caller's error says as much
	}
	defer raw.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(end)
	}
	t = t.Clone()
	t.NextProtos = []string{"h2"}
	if host, _, err := net.SplitHostPort(addr); err == nil && t.ServerName == "" {
		t.ServerName = host
	}
	conn := tls.Client(raw, t)
	if err = conn.HandshakeContext(ctx); err == nil {
		// In TLS 1.3 a server that refuses our certificate says so afterwards.
		_, err = conn.Read(make([]byte, 1))
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	var unknown x509.UnknownAuthorityError
	var alert tls.AlertError
	var refused *net.OpError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("its certificate is not by the authority that is trusted here: %w (--etcd-cacert, or enroll the region again)", err)
	case errors.As(err, &alert), errors.As(err, &refused) && refused.Op == "remote error":
		return fmt.Errorf("it refuses our certificate: %w (is it expired, or of another site?)", err)
	}
	return fmt.Errorf("TLS: %w", err)
}
