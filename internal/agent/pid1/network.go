package pid1

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

const (
	// A switch with spanning tree listens for 30 s before it forwards, so the
	// first interface gets longer than that, the others a moment each.
	bootPatience  = 40 * time.Second
	otherPatience = 8 * time.Second
)

// iface is a physical network interface.
type iface struct {
	name string
	mac  lpmos.MAC
}

// interfaces lists what has a device behind it, sorted by name, the one with
// the address boot first.
func interfaces(sys string, boot lpmos.MAC) []iface {
	entries, _ := os.ReadDir(sys + "/class/net")
	var all []iface
	for _, e := range entries {
		dir := sys + "/class/net/" + e.Name()
		if _, err := os.Stat(dir + "/device"); err != nil {
			continue
		}
		b, err := os.ReadFile(dir + "/address")
		if err != nil {
			continue
		}
		if mac, err := lpmos.ParseMAC(strings.TrimSpace(string(b))); err == nil {
			all = append(all, iface{e.Name(), mac})
		}
	}
	if i := slices.IndexFunc(all, func(i iface) bool { return i.mac == boot }); i > 0 {
		first := all[i]
		all = slices.Insert(slices.Delete(all, i, i+1), 0, first)
	}
	return all
}

func hasLink(sys, name string) bool {
	b, err := os.ReadFile(sys + "/class/net/" + name + "/carrier")
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// connect gets an address within limit: on the interface the machine booted
// from, or else on another one with a link, because a machine's firmware and
// kernel may disagree on which port is plugged in where.
func (s *System) connect(ctx context.Context, limit time.Duration) error {
	if err := linkUp("lo"); err != nil {
		s.Log.Warn("network", "err", err)
	}
	all := interfaces("/sys", s.BootMAC)
	if len(all) == 0 {
		return errors.New("get an address: no network interface has a driver")
	}
	for _, i := range all {
		if err := linkUp(i.name); err != nil {
			s.Log.Warn("network", "err", err)
		}
	}
	if !s.BootMAC.IsZero() && all[0].mac != s.BootMAC {
		s.Log.Warn("boot interface not found, all are tried", "mac", s.BootMAC)
	}
	until, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for round := 0; until.Err() == nil; round++ {
		for n, i := range all {
			patience := otherPatience
			if n == 0 && i.mac == s.BootMAC {
				patience = bootPatience
			} else if !hasLink("/sys", i.name) {
				continue
			}
			lease, err := dhcpOn(until, i, patience, s.Log)
			if err == nil {
				err = s.use(lease)
			}
			if err != nil {
				s.Log.Warn("no address", "nic", i.name, "mac", i.mac, "link", hasLink("/sys", i.name), "err", err)
				continue
			}
			s.wg.Go(func() { s.keep(ctx, i) })
			return nil
		}
		pause(until, time.Second)
	}
	return fmt.Errorf("get an address on any of %d interfaces within %s: %w", len(all), limit, errSilence)
}

// dhcpOn gets a lease for an interface that has none.
func dhcpOn(ctx context.Context, i iface, patience time.Duration, log *slog.Logger) (Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p, err := openPacketSocket(i.name)
	if err != nil {
		return Lease{}, err
	}
	defer p.Close()
	c := &client{mac: i.mac, t: p, log: log, wait: firstWait}
	l, err := c.acquire(ctx)
	l.Interface = i.name
	return l, err
}

// use configures the interface and the resolver.
func (s *System) use(l Lease) error {
	if err := configure(l); err != nil {
		return err
	}
	s.mu.Lock()
	s.lease = l
	s.mu.Unlock()
	s.Log.Info("address", "nic", l.Interface, "addr", l.Address, "server", l.Server, "lifetime", l.Lifetime)
	if len(l.DNS) > 0 {
		var b strings.Builder
		for _, a := range l.DNS {
			fmt.Fprintf(&b, "nameserver %s\n", a)
		}
		if err := os.MkdirAll("/etc", 0o755); err == nil {
			err = os.WriteFile("/etc/resolv.conf", []byte(b.String()), 0o644)
			if err != nil {
				s.Log.Warn("write resolver configuration", "err", err)
			}
		}
	}
	return nil
}

// keep renews the lease until ctx ends: from T1 on at its server, from T2 on at
// any, and when it is lost it starts anew (RFC 2131, 4.4.5). An address that
// expired stays in use until there is another one: in the middle of an
// installation nothing is better than that.
func (s *System) keep(ctx context.Context, i iface) {
	for {
		l := s.Lease()
		if l.Lifetime == 0 {
			return
		}
		pause(ctx, time.Until(l.Since.Add(l.Renew)))
		if ctx.Err() != nil {
			return
		}
		next, err := s.extend(ctx, i, l)
		if err != nil {
			s.Log.Warn("lease lost, asking anew", "addr", l.Address, "err", err)
			for next, err = dhcpOn(ctx, i, time.Minute, s.Log); err != nil && ctx.Err() == nil; {
				pause(ctx, time.Second) // an interface that is gone fails at once
				next, err = dhcpOn(ctx, i, time.Minute, s.Log)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if next.Address == l.Address && slices.Equal(next.Routes, l.Routes) {
			s.mu.Lock()
			s.lease = next
			s.mu.Unlock()
			s.Log.Debug("lease renewed", "addr", next.Address)
		} else if err := s.use(next); err != nil {
			s.Log.Error("use new lease", "addr", next.Address, "err", err)
			pause(ctx, otherPatience)
		}
	}
}

// extend asks for more time until the lease ends.
func (s *System) extend(ctx context.Context, i iface, l Lease) (Lease, error) {
	ctx, cancel := context.WithDeadline(ctx, l.Since.Add(l.Lifetime))
	defer cancel()
	u, err := openUDPSocket(ctx, i.name)
	if err != nil {
		return Lease{}, err
	}
	defer u.Close()
	c := &client{mac: i.mac, t: u, log: s.Log, wait: 4 * firstWait}
	err = errSilence
	for ctx.Err() == nil && !errors.Is(err, errRefused) {
		to := l.Server
		if time.Since(l.Since) >= l.Rebind {
			to = netip.Addr{}
		}
		var next Lease
		if next, err = c.renew(ctx, l, to); err == nil {
			return next, nil
		}
		// Half of what is left, but not more often than a minute or so (4.4.5).
		if !errors.Is(err, errRefused) {
			pause(ctx, min(time.Minute, time.Until(l.Since.Add(l.Lifetime))/2))
		}
	}
	return Lease{}, err
}
