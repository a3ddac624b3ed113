package dhcpd

import "maps"

// drop is why a packet got no answer.
type drop string

const (
	dropShort     drop = "short"      // no fixed fields
	dropLong      drop = "long"       // more than an Ethernet frame holds
	dropHardware  drop = "hardware"   // not an Ethernet address of a machine
	dropMalformed drop = "malformed"  // options run past the end, have no end, or have wrong lengths
	dropNoType    drop = "no_type"    // BOOTP, or a message type of several bytes
	dropReply     drop = "reply"      // a server's packet
	dropKind      drop = "kind"       // a message that is not for a server
	dropSilent    drop = "silent"     // another instance of this region answers
	dropNotOurs   drop = "not_ours"   // for another server
	dropNoNetwork drop = "no_network" // from a subnet without pool
	dropNoAddress drop = "no_address" // nothing is free
	dropUnknown   drop = "unknown"    // unknown machines have their share, or come too fast
	dropNoLease   drop = "no_lease"   // about a lease we know nothing of (RFC 2131 §4.3.2: be silent)
	dropNoBoot    drop = "no_boot"    // a proxy has nothing to say
	dropOverload  drop = "overload"   // the queue was full
	dropJournal   drop = "journal"    // the lease could not be written
	dropSend      drop = "send"       // the reply could not be sent
)

// Stats counts since the start.
type Stats struct {
	Received int64
	Dropped  map[string]int64 // by reason
	Offers   int64
	Acks     int64
	Naks     int64
	Boots    map[string]int64 // replies by the reason of the boot decision: firmware, script, not_known …
	Declined int64            // addresses that a client found in use
	Released int64
	Foreign  int64 // packets that show another DHCP server
	Leases   int   // alive now
	Unknown  int   // of these, of machines that are not in the boot index
}

// Stats returns a copy.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Dropped, st.Boots = maps.Clone(st.Dropped), maps.Clone(st.Boots)
	now := s.now()
	for _, l := range s.leases.byAddr {
		if l.alive(now) && l.bound {
			st.Leases++
			if !l.Known {
				st.Unknown++
			}
		}
	}
	return st
}
