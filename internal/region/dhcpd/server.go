package dhcpd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/region/netboot"
)

// Decider decides how machines boot.
type Decider interface {
	// Decide makes the boot part of a reply.
	Decide(netboot.Client) netboot.Offer
	// Known finds a machine in the boot index; its entry may fix an address.
	Known(lpmos.MAC) (lpmos.BootEntry, bool)
}

// Conns are the sockets of a server; see Listen. Server is required.
type Conns struct {
	Server net.PacketConn // port 67
	Boot   net.PacketConn // port 4011
	Watch  net.PacketConn // port 68
}

// Server gives addresses and boot files.
type Server struct {
	cfg     Config
	decider Decider
	conns   Conns
	journal *journal // nil without a lease file
	log     *slog.Logger
	now     func() time.Time

	// Silent, when set before Run, is asked whether another process answers in
	// place of this one; it must be quick.
	Silent func() bool
	// OnForeign, when set before Run, is called with the address of another
	// DHCP server when one shows itself, and again every ten minutes.
	OnForeign func(netip.Addr)

	mu            sync.Mutex // guards what follows
	leases        *table
	newUnknown    *rate.Limiter
	stats         Stats
	announcements map[announced]time.Time
	foreigners    map[netip.Addr]time.Time
	warned        map[string]time.Time
}

// New reads the leases of an earlier run. The sockets become the server's; Run
// closes them.
func New(cfg Config, decider Decider, conns Conns, log *slog.Logger) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure dhcp: %w", err)
	}
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg, decider: decider, conns: conns, log: log, now: time.Now,
		leases:        newTable(),
		newUnknown:    rate.NewLimiter(rate.Limit(cfg.UnknownPerSecond), 4*cfg.UnknownPerSecond),
		stats:         Stats{Dropped: map[string]int64{}, Boots: map[string]int64{}},
		announcements: map[announced]time.Time{},
		foreigners:    map[netip.Addr]time.Time{},
		warned:        map[string]time.Time{},
	}
	if cfg.Mode == ModeServer && cfg.LeaseFile != "" {
		skipped, err := readJournal(cfg.LeaseFile, func(l Lease) {
			s.leases.put(&lease{Lease: l, bound: true})
		})
		if err != nil {
			return nil, err
		}
		if skipped > 0 {
			log.Warn("leases could not be read", "file", cfg.LeaseFile, "lines", skipped)
		}
		s.journal = &journal{path: cfg.LeaseFile}
		if err := s.journal.rewrite(s.bound()); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Lease finds the address a machine has now.
func (s *Server) Lease(mac lpmos.MAC) (Lease, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current(s.leases.byMAC[mac])
}

// ByAddress finds the machine that has an address now.
func (s *Server) ByAddress(a netip.Addr) (Lease, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current(s.leases.byAddr[a.Unmap()])
}

func (s *Server) current(l *lease) (Lease, bool) {
	if l == nil || !l.bound || !l.alive(s.now()) {
		return Lease{}, false
	}
	return l.Lease, true
}

// bound yields what is worth keeping over a restart: also leases that ended,
// because their machines get the same address again.
func (s *Server) bound() iter.Seq[Lease] {
	return func(yield func(Lease) bool) {
		for _, l := range s.leases.byMAC {
			if l.bound && !yield(l.Lease) {
				return
			}
		}
	}
}

// packet is one datagram.
type packet struct {
	data []byte
	from netip.AddrPort
	via  via
}

// Sizes of the loop in Run: packets that wait, and packets that share one sync
// of the lease file.
const (
	queueLen = 512
	batchLen = 64
)

// Run answers until ctx ends, and then closes the sockets. The error is nil
// unless a socket breaks.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conns := map[via]net.PacketConn{viaServer: s.conns.Server}
	if s.conns.Boot != nil {
		conns[viaBoot] = s.conns.Boot
	}
	if s.conns.Watch != nil {
		conns[viaWatch] = s.conns.Watch
	}
	queue := make(chan packet, queueLen)
	failed := make(chan error, len(conns))
	var readers sync.WaitGroup
	for v, conn := range conns {
		readers.Go(func() {
			if err := s.read(ctx, conn, v, queue); err != nil && ctx.Err() == nil {
				failed <- err
				cancel()
			}
		})
	}
	for batch := make([]packet, 0, batchLen); ; {
		batch = batch[:0]
		select {
		case <-ctx.Done():
			for _, conn := range conns {
				conn.Close()
			}
			readers.Wait()
			if s.journal != nil {
				s.journal.close()
			}
			select {
			case err := <-failed:
				return err
			default:
				return nil
			}
		case p := <-queue:
			batch = append(batch, p)
		}
	drain:
		for len(batch) < batchLen {
			select {
			case p := <-queue:
				batch = append(batch, p)
			default:
				break drain
			}
		}
		s.serve(conns, batch)
	}
}

// read queues what conn receives until it is closed. When the queue is full
// packets are dropped, as the kernel would: clients repeat themselves.
func (s *Server) read(ctx context.Context, conn net.PacketConn, v via, queue chan<- packet) error {
	buf := make([]byte, maxPacket+1)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				continue
			}
			return fmt.Errorf("read dhcp: %w", err)
		}
		udp, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		a := udp.AddrPort()
		select {
		case queue <- packet{append([]byte(nil), buf[:n]...), netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), v}:
		default:
			s.mu.Lock()
			s.stats.Received++
			s.drop(dropOverload)
			s.mu.Unlock()
		}
	}
}

// serve handles a batch: decide, write all leases at once, answer.
func (s *Server) serve(conns map[via]net.PacketConn, batch []packet) {
	outcomes := make([]outcome, len(batch))
	var leases []Lease
	for i, p := range batch {
		outcomes[i] = s.handle(s.now(), p.data, p.from, p.via)
		if l := outcomes[i].lease; l != nil {
			leases = append(leases, *l)
		}
	}
	err := s.persist(leases)
	if err != nil {
		s.mu.Lock()
		s.warn(s.now(), "leases could not be written, clients are not answered", "err", err)
		s.mu.Unlock()
	}
	for i, o := range outcomes {
		if o.foreign.IsValid() {
			s.log.Warn("another DHCP server is on the network", "addr", o.foreign)
			if s.OnForeign != nil {
				s.OnForeign(o.foreign)
			}
		}
		if o.packet == nil {
			continue
		}
		why := dropJournal
		if err == nil || o.lease == nil {
			why = dropSend
			_, sendErr := conns[batch[i].via].WriteTo(o.packet.ToBytes(), net.UDPAddrFromAddrPort(o.to))
			if sendErr == nil {
				continue
			}
			s.log.Debug("send dhcp reply", "addr", o.to, "err", sendErr)
		}
		s.mu.Lock()
		s.drop(why)
		s.mu.Unlock()
	}
}

// persist returns when leases are on disk.
func (s *Server) persist(leases []Lease) error {
	if s.journal == nil || len(leases) == 0 {
		return nil
	}
	if s.journal.torn || s.journal.lines > 1024+4*len(s.leases.byMAC) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.journal.rewrite(s.bound()) // holds what handle just changed as well
	}
	return s.journal.append(leases)
}
