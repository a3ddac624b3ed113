package pki

import (
	"crypto/x509"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
)

// Names are those that a server that listens at addr (host:port) is reached by:
// the host that addr names, this computer's name, and the loopback addresses;
// without a host in addr, every address that this computer has now.
func Names(addr string) []string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = ""
	}
	out := []string{"localhost", "127.0.0.1", "::1"}
	add := func(n string) {
		n = strings.ToLower(strings.TrimSuffix(n, "."))
		if n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	if name, err := os.Hostname(); err == nil && validName(name) {
		add(name)
	}
	ip := net.ParseIP(host)
	if host != "" && (ip == nil || !ip.IsUnspecified()) {
		add(host)
		return out
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return out
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			add(n.IP.String())
		}
	}
	return out
}

// validName keeps out of certificates what no client could ask for.
func validName(n string) bool {
	return n != "" && len(n) < 254 && !strings.ContainsFunc(n, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.'
	})
}

// Pool trusts the authorities in PEM.
func Pool(pem []byte) (*x509.CertPool, error) {
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		return nil, errors.New("there is no certificate in it")
	}
	return p, nil
}
