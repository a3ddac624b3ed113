package imageimport

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// Guard decides which addresses may be connected to. The zero Guard allows the
// public internet by https and nothing else.
type Guard struct {
	// Allow are networks that may be reached although they are private: where a
	// local mirror is.
	Allow []netip.Prefix
	// Plain allows http as well: for a mirror whose files are verified by a
	// checksum from elsewhere.
	Plain bool
}

// special are networks that are never "somewhere on the internet" (RFC 6890
// and its IANA registries): they lead to this computer, to its neighbours, or
// to what manages them.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, reserved, broadcast
	netip.MustParsePrefix("::/96"),       // unspecified, loopback, IPv4-compatible
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), // 6to4 carries any IPv4 address
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("fec0::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// Check says why an address may not be connected to, or nil.
func (g Guard) Check(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	for _, p := range g.Allow {
		if p.Contains(a) {
			return nil
		}
	}
	for _, p := range special {
		if p.Contains(a) {
			return fmt.Errorf("%s is not a public address (allow its network by name, if it is a mirror of yours)", a)
		}
	}
	if !a.IsValid() {
		return errors.New("it is no address")
	}
	return nil
}

// CheckURL says why an address may not be fetched, or nil. Where its name leads
// is checked when it is connected to.
func (g Guard) CheckURL(u *url.URL) error {
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && g.Plain:
	case u.Scheme == "http":
		return errors.New("http is not allowed: anybody on the way can change the file")
	default:
		return fmt.Errorf("addresses beginning with %q are not fetched", u.Scheme+":")
	}
	if u.Host == "" || u.Hostname() == "" {
		return errors.New("the address names no host")
	}
	if strings.Contains(u.Host, "%") {
		return errors.New("the address names a network interface")
	}
	return nil
}

// client fetches within the guard: every connection, after every redirect, is
// checked on the address it goes to, so that a name cannot change its meaning
// between a look and the connection.
func (g Guard) client(idle time.Duration) *http.Client {
	d := &net.Dialer{Timeout: min(idle, 30*time.Second)}
	d.Control = func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("connect to %q: %w", address, err)
		}
		if err := g.Check(ap.Addr()); err != nil {
			return &refusedError{err}
		}
		return nil
	}
	return &http.Client{
		Transport: &http.Transport{
			// No proxy from the environment: the guard would see the proxy's
			// address and not where it leads.
			Proxy:                 nil,
			DialContext:           d.DialContext,
			ResponseHeaderTimeout: idle,
			TLSHandshakeTimeout:   min(idle, 30*time.Second),
			DisableCompression:    true, // the bytes are verified as the server has them
			ForceAttemptHTTP2:     true,
			MaxIdleConns:          4,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) >= 10 {
				return errors.New("more than 10 redirects")
			}
			if via[len(via)-1].URL.Scheme == "https" && r.URL.Scheme != "https" {
				return &refusedError{errors.New("a redirect leads from https to http")}
			}
			if err := g.CheckURL(r.URL); err != nil {
				return &refusedError{fmt.Errorf("a redirect leads to %s: %w", shown(r.URL), err)}
			}
			return nil
		},
	}
}

// refusedError is a connection that is not allowed; trying again does not help.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// shown is an address without user, password, query and fragment: they may be
// secrets.
func shown(u *url.URL) string {
	v := *u
	v.User, v.RawQuery, v.Fragment, v.RawFragment = nil, "", "", ""
	return v.String()
}
