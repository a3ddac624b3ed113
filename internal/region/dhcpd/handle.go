package dhcpd

import (
	"encoding/hex"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/region/netboot"
)

// via is the socket a packet came in on.
type via int

const (
	viaServer via = iota // port 67
	viaBoot              // port 4011: PXE boot server requests
	viaWatch             // port 68: what other servers broadcast
)

const (
	serverPort = 67
	clientPort = 68
)

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// outcome is what a packet leads to.
type outcome struct {
	packet  *dhcpv4.DHCPv4 // nil for no answer
	to      netip.AddrPort
	lease   *Lease     // to be on disk before packet is sent
	foreign netip.Addr // another DHCP server that showed itself
}

// handle decides about one packet. It changes the lease table and the counters
// and does nothing else.
func (s *Server) handle(now time.Time, b []byte, from netip.AddrPort, v via) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Received++
	r, why := parse(b)
	if why != "" {
		return s.drop(why)
	}
	if r.OpCode != dhcpv4.OpcodeBootRequest {
		o := s.drop(dropReply)
		if r.OpCode == dhcpv4.OpcodeBootReply && (r.kind == dhcpv4.MessageTypeOffer || r.kind == dhcpv4.MessageTypeAck) {
			o.foreign = s.foreign(now, r)
		}
		return o
	}
	switch {
	case v == viaWatch:
		return s.drop(dropKind)
	case s.Silent != nil && s.Silent():
		return s.drop(dropSilent)
	case v == viaBoot:
		return s.bootServer(now, r, from)
	case s.cfg.Mode == ModeProxy:
		return s.proxy(now, r)
	}
	switch r.kind {
	case dhcpv4.MessageTypeDiscover:
		return s.discover(now, r)
	case dhcpv4.MessageTypeRequest:
		return s.request(now, r)
	case dhcpv4.MessageTypeDecline:
		return s.decline(now, r)
	case dhcpv4.MessageTypeRelease:
		return s.release(now, r)
	case dhcpv4.MessageTypeInform:
		return s.inform(now, r)
	}
	return s.drop(dropKind)
}

func (s *Server) drop(why drop) outcome {
	s.stats.Dropped[string(why)]++
	return outcome{}
}

// discover offers an address (RFC 2131 §4.3.1).
func (s *Server) discover(now time.Time, r request) outcome {
	pool, ok := s.pool(r)
	if !ok {
		return s.drop(dropNoNetwork)
	}
	entry, known := s.decider.Known(r.mac)
	a, why := s.choose(now, pool, r, entry.Address, known)
	if why != "" {
		return s.drop(why)
	}
	if l, ok := s.leases.byMAC[r.mac]; !ok || l.Address != a || !l.alive(now) {
		s.leases.put(&lease{Lease: Lease{r.mac, a, now.Add(offerTime), known}})
	}
	p := s.reply(r, dhcpv4.MessageTypeOffer)
	p.YourIPAddr = ip(a)
	s.addNetwork(p, pool)
	p.UpdateOption(dhcpv4.OptIPAddressLeaseTime(s.cfg.LeaseTime))
	s.boot(now, p, r, false)
	s.stats.Offers++
	return outcome{packet: p, to: destination(p, r)}
}

// request acknowledges or refuses an address (RFC 2131 §4.3.2).
func (s *Server) request(now time.Time, r request) outcome {
	own := s.leases.byMAC[r.mac]
	if r.hasServer && r.server != s.cfg.ServerID {
		// The client chose another server's offer.
		if own != nil && !own.bound {
			s.leases.remove(own)
		}
		o := s.drop(dropNotOurs)
		o.foreign = s.foreign(now, r)
		return o
	}
	pool, ok := s.pool(r)
	if !ok {
		return s.drop(dropNoNetwork)
	}
	if own != nil && !pool.Subnet.Contains(own.Address) {
		own = nil // the machine was moved to another network
	}
	entry, known := s.decider.Known(r.mac)
	switch {
	case r.hasServer: // selecting
		if own == nil || own.Address != r.wanted {
			return s.nak(r, "the address was not offered")
		}
		return s.ack(now, r, pool, own.Address, known)
	case r.ciaddr.IsValid(): // renewing or rebinding
		if own != nil && own.Address == r.ciaddr {
			return s.ack(now, r, pool, own.Address, known)
		}
		if !pool.Subnet.Contains(r.ciaddr) {
			return s.drop(dropNotOurs)
		}
		// A lease we have forgotten, or that a server before us gave: taking it
		// over keeps a running machine on the network.
		if a, why := s.choose(now, pool, r, entry.Address, known); why == "" && a == r.ciaddr {
			return s.ack(now, r, pool, a, known)
		}
		return s.nak(r, "the address is not yours")
	case r.wanted.IsValid(): // rebooted, remembering an address
		switch {
		case !pool.Subnet.Contains(r.wanted):
			return s.nak(r, "the address is of another network")
		case own != nil && own.Address == r.wanted:
			return s.ack(now, r, pool, own.Address, known)
		case own != nil:
			return s.nak(r, "the address is not yours")
		}
		return s.drop(dropNoLease)
	}
	return s.drop(dropMalformed)
}

// choose finds the address for a machine: the fixed one, the one it has or had,
// the one it asks for, any.
func (s *Server) choose(now time.Time, pool Pool, r request, fixed netip.Addr, known bool) (netip.Addr, drop) {
	taken := func(a netip.Addr) bool { return a == s.cfg.ServerID || a == pool.Router }
	free := func(a netip.Addr) bool { return pool.usable(a) && !taken(a) && s.leases.free(a, r.mac, now) }
	if fixed.Is4() && free(fixed) {
		return fixed, ""
	}
	own := s.leases.byMAC[r.mac]
	if own != nil && own.alive(now) && pool.inRange(own.Address) {
		return own.Address, ""
	}
	// Everything below is a new lease.
	if !known {
		// The rate is asked first: counting is not for every packet of a flood.
		if !s.newUnknown.AllowN(now, 1) || s.leases.unknownIn(pool, now) >= max(1, pool.size()*s.cfg.UnknownPercent/100) {
			s.warn(now, "unknown machines are refused addresses: they have their share or come too fast", "mac", r.mac)
			return netip.Addr{}, dropUnknown
		}
	}
	if own != nil && pool.inRange(own.Address) && free(own.Address) {
		return own.Address, ""
	}
	for _, a := range []netip.Addr{r.ciaddr, r.wanted} {
		if a.IsValid() && pool.inRange(a) && free(a) {
			return a, ""
		}
	}
	a, ok := s.leases.search(pool, taken, now)
	if !ok {
		s.warn(now, "no address is free", "mac", r.mac, "subnet", pool.Subnet)
		return netip.Addr{}, dropNoAddress
	}
	return a, ""
}

func (s *Server) ack(now time.Time, r request, pool Pool, a netip.Addr, known bool) outcome {
	l := &lease{Lease: Lease{r.mac, a, now.Add(s.cfg.LeaseTime), known}, bound: true}
	s.leases.put(l)
	p := s.reply(r, dhcpv4.MessageTypeAck)
	p.ClientIPAddr, p.YourIPAddr = r.ClientIPAddr, ip(a)
	s.addNetwork(p, pool)
	p.UpdateOption(dhcpv4.OptIPAddressLeaseTime(s.cfg.LeaseTime))
	s.boot(now, p, r, true)
	s.stats.Acks++
	record := l.Lease
	return outcome{packet: p, to: destination(p, r), lease: &record}
}

func (s *Server) nak(r request, message string) outcome {
	p := s.reply(r, dhcpv4.MessageTypeNak)
	p.UpdateOption(dhcpv4.OptMessage(message))
	s.stats.Naks++
	to := netip.AddrPortFrom(broadcast, clientPort)
	if r.giaddr.IsValid() {
		// The client has no address it could be reached at (RFC 2131 §4.3.2).
		p.SetBroadcast()
		to = netip.AddrPortFrom(r.giaddr, serverPort)
	}
	return outcome{packet: p, to: to}
}

// decline takes an address out of use that the client found somebody else to
// have. Only the machine it was given to can do so.
func (s *Server) decline(now time.Time, r request) outcome {
	own := s.leases.byMAC[r.mac]
	if own == nil || own.Address != r.wanted || r.server != s.cfg.ServerID {
		return s.drop(dropNoLease)
	}
	s.leases.remove(own)
	s.leases.put(&lease{Lease: Lease{Address: own.Address, Until: now.Add(declineTime), Known: own.Known}})
	s.stats.Declined++
	s.warn(now, "an address is in use by a machine without lease", "mac", r.mac, "addr", own.Address)
	return outcome{lease: &Lease{own.MAC, own.Address, now, own.Known}}
}

func (s *Server) release(now time.Time, r request) outcome {
	own := s.leases.byMAC[r.mac]
	if own == nil || own.Address != r.ciaddr || r.server != s.cfg.ServerID {
		return s.drop(dropNoLease)
	}
	own.Until, own.bound = now, false
	s.stats.Released++
	record := own.Lease
	return outcome{lease: &record}
}

// inform tells a machine with an address of its own about the network (RFC 2131
// §4.3.5).
func (s *Server) inform(now time.Time, r request) outcome {
	pool, ok := s.pool(r)
	if !ok || !r.ciaddr.IsValid() {
		return s.drop(dropNoNetwork)
	}
	p := s.reply(r, dhcpv4.MessageTypeAck)
	p.ClientIPAddr = r.ClientIPAddr
	s.addNetwork(p, pool)
	s.boot(now, p, r, true)
	s.stats.Acks++
	return outcome{packet: p, to: netip.AddrPortFrom(r.ciaddr, clientPort)}
}

// proxy answers beside the site's server: boot files only, in offers without an
// address. iPXE takes the file from there.
func (s *Server) proxy(now time.Time, r request) outcome {
	if r.kind != dhcpv4.MessageTypeDiscover {
		return s.drop(dropNotOurs)
	}
	p := s.reply(r, dhcpv4.MessageTypeOffer)
	if !s.boot(now, p, r, true) {
		return s.drop(dropNoBoot)
	}
	s.proxyClass(p)
	s.stats.Offers++
	return outcome{packet: p, to: destination(p, r)}
}

// bootServer answers firmware that has an address and asks for its boot file on
// port 4011 (PXE 2.1 §2.2.3). It is answered at the port it sent from: OVMF
// speaks from 4011.
func (s *Server) bootServer(now time.Time, r request, from netip.AddrPort) outcome {
	if r.kind != dhcpv4.MessageTypeRequest && r.kind != dhcpv4.MessageTypeInform && r.kind != dhcpv4.MessageTypeDiscover {
		return s.drop(dropKind)
	}
	p := s.reply(r, dhcpv4.MessageTypeAck)
	p.ClientIPAddr = r.ClientIPAddr
	if !s.boot(now, p, r, true) {
		return s.drop(dropNoBoot)
	}
	s.proxyClass(p)
	s.stats.Acks++
	if from.Addr().IsUnspecified() {
		from = netip.AddrPortFrom(broadcast, from.Port())
	}
	return outcome{packet: p, to: from}
}

// proxyClass makes p the answer of a PXE server, without which nobody takes a
// boot file from a server that gives no address.
func (s *Server) proxyClass(p *dhcpv4.DHCPv4) {
	if !p.Options.Has(dhcpv4.OptionClassIdentifier) {
		p.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient"))
	}
}

// addNetwork adds what a machine needs to know of its network.
func (s *Server) addNetwork(p *dhcpv4.DHCPv4, pool Pool) {
	mask := ^uint32(0) << (32 - pool.Subnet.Bits())
	p.UpdateOption(dhcpv4.OptSubnetMask([]byte(ip(fromUint(mask)))))
	if pool.Router.IsValid() {
		p.UpdateOption(dhcpv4.OptRouter(ip(pool.Router)))
	}
	if len(s.cfg.DNS) > 0 {
		p.UpdateOption(dhcpv4.OptDNS(ips(s.cfg.DNS)...))
	}
	if len(s.cfg.NTP) > 0 {
		p.UpdateOption(dhcpv4.OptNTPServers(ips(s.cfg.NTP)...))
	}
}

// boot adds the boot decision to p and reports whether there is a boot file.
// Final says that firmware acts on this packet, so that the decision is logged.
func (s *Server) boot(now time.Time, p *dhcpv4.DHCPv4, r request, final bool) bool {
	c := r.client()
	o := s.decider.Decide(c)
	s.addBoot(p, r, o)
	if final && o.Reason != netboot.NotBooting {
		s.stats.Boots[string(o.Reason)]++
		s.announce(now, r, c, o)
	}
	return o.BootFile != ""
}

// announced is a boot decision that was logged.
type announced struct {
	mac    lpmos.MAC
	reason netboot.Reason
}

// announceAgain is longer than firmware repeats itself within one boot, and
// shorter than a machine takes from one boot to the next.
const announceAgain = 20 * time.Second

func (s *Server) announce(now time.Time, r request, c netboot.Client, o netboot.Offer) {
	key := announced{r.mac, o.Reason}
	if t, ok := s.announcements[key]; ok && now.Sub(t) < announceAgain {
		return
	}
	if len(s.announcements) >= 4096 {
		for k, t := range s.announcements {
			if now.Sub(t) >= announceAgain {
				delete(s.announcements, k)
			}
		}
		if len(s.announcements) >= 4096 {
			return // a flood of invented machines is not worth a log line each
		}
	}
	s.announcements[key] = now
	attrs := []any{"mac", r.mac, "reason", o.Reason, "action", o.Action, "file", o.BootFile, "task", o.TaskID,
		"arch", c.Arch, "vendor", c.VendorClass, "class", c.UserClass, "uuid", c.UUID}
	if info := r.RelayAgentInfo(); info != nil {
		attrs = append(attrs, "relay", r.giaddr, "port", hex.EncodeToString(info.Get(dhcpv4.AgentCircuitIDSubOption)))
	}
	s.log.Info("boot offered", attrs...)
}

// foreign notes the server a packet names and returns it when it should be
// reported: at first, and every ten minutes while it is there.
func (s *Server) foreign(now time.Time, r request) netip.Addr {
	// Beside a proxy there is another server by definition.
	if s.cfg.Mode == ModeProxy || !r.server.IsValid() || r.server == s.cfg.ServerID {
		return netip.Addr{}
	}
	s.stats.Foreign++
	t, seen := s.foreigners[r.server]
	if seen && now.Sub(t) < 10*time.Minute || !seen && len(s.foreigners) >= 64 {
		return netip.Addr{}
	}
	s.foreigners[r.server] = now
	return r.server
}

// warn logs a message at most once a minute.
func (s *Server) warn(now time.Time, message string, attrs ...any) {
	if t, ok := s.warned[message]; ok && now.Sub(t) < time.Minute {
		return
	}
	s.warned[message] = now
	s.log.Warn(message, attrs...)
}

// pool finds the network a client is in.
func (s *Server) pool(r request) (Pool, bool) {
	at := s.cfg.ServerID
	switch {
	case r.giaddr.IsValid():
		at = r.giaddr
	case r.ciaddr.IsValid():
		// A renewal comes straight from the client, through routers.
		for _, p := range s.cfg.Pools {
			if p.Subnet.Contains(r.ciaddr) {
				return p, true
			}
		}
	}
	for _, p := range s.cfg.Pools {
		if p.Subnet.Contains(at) {
			return p, true
		}
	}
	return Pool{}, false
}

// destination follows RFC 2131 §4.1. A client without an address that could be
// reached at the one it is given (broadcast flag unset) gets a broadcast too:
// it hears that as well, and nothing has to be put into the ARP cache.
func destination(p *dhcpv4.DHCPv4, r request) netip.AddrPort {
	switch {
	case r.giaddr.IsValid():
		return netip.AddrPortFrom(r.giaddr, serverPort)
	case r.ciaddr.IsValid() && p.MessageType() == dhcpv4.MessageTypeAck:
		return netip.AddrPortFrom(r.ciaddr, clientPort)
	}
	return netip.AddrPortFrom(broadcast, clientPort)
}
