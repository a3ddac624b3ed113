package tftpd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
)

// Files is what is served.
type Files interface {
	// Open finds a file and its size in bytes. It may take its time: the client
	// repeats its question meanwhile. An error that wraps lpmos.ErrNotFound or
	// fs.ErrNotExist is answered with "file not found", others with "not
	// available now".
	Open(ctx context.Context, name string, client netip.AddrPort) (io.ReadSeekCloser, int64, error)
}

const (
	// MaxTransfers is how many run at once; requests beyond are not answered,
	// and their clients ask again.
	MaxTransfers = 256
	// maxPerClient keeps one address from taking all of them.
	maxPerClient = 16
	// openTime is how long Files.Open may take.
	openTime = 30 * time.Second
	// transferTime ends a transfer that makes progress, but too little.
	transferTime = 10 * time.Minute
)

// Server serves Files.
type Server struct {
	files  Files
	listen func(context.Context) (net.PacketConn, error)
	timing timing
	log    *slog.Logger

	mu      sync.Mutex // guards what follows
	active  map[netip.AddrPort]bool
	clients map[netip.Addr]int
	stats   Stats
}

// Stats counts since the start.
type Stats struct {
	Requests  int64 // datagrams at the server's port
	Malformed int64
	Writes    int64 // refused
	BadNames  int64 // refused
	NotFound  int64
	Failed    int64 // files that could not be opened or read
	Busy      int64 // requests beyond the limits, not answered
	Repeated  int64 // requests of a client whose transfer runs
	Probes    int64 // ended by the client after it learned the size
	Aborted   int64 // ended by another error of the client
	TimedOut  int64
	Completed int64
	Bytes     int64 // of completed transfers
	Active    int   // transfers now
}

// New returns a server. listen opens the socket of one transfer, on any port of
// the interface that serves.
func New(files Files, listen func(context.Context) (net.PacketConn, error), log *slog.Logger) *Server {
	return &Server{files: files, listen: listen, timing: defaultTiming, log: log,
		active: map[netip.AddrPort]bool{}, clients: map[netip.Addr]int{}}
}

// Stats returns a copy.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Active = len(s.active)
	return st
}

func (s *Server) count(field func(*Stats) *int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*field(&s.stats)++
}

// Serve answers requests that arrive at conn until ctx ends, and then closes
// conn. It returns when all transfers have ended. The error is nil unless conn
// breaks.
func (s *Server) Serve(ctx context.Context, conn net.PacketConn) error {
	ctx, cancel := context.WithCancel(ctx)
	var transfers sync.WaitGroup
	defer transfers.Wait()
	defer cancel()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buf := make([]byte, maxRequestLen+1)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				continue
			}
			return fmt.Errorf("read tftp: %w", err)
		}
		client, ok := addrPort(from)
		if !ok {
			continue
		}
		r, refusal := s.receive(buf[:n])
		if refusal != nil {
			_, _ = conn.WriteTo(refusal, from)
		}
		if r == nil || !s.claim(client) {
			continue
		}
		transfers.Go(func() {
			defer s.release(client)
			s.transfer(ctx, *r, client)
		})
	}
}

// receive reads a datagram at the server's port: a request to serve, a refusal
// to send, or neither.
func (s *Server) receive(b []byte) (*request, []byte) {
	s.count(func(st *Stats) *int64 { return &st.Requests })
	if len(b) >= 2 && len(b) <= maxRequestLen {
		switch binary.BigEndian.Uint16(b) {
		case opWRQ:
			s.count(func(st *Stats) *int64 { return &st.Writes })
			return nil, errorPacket(errAccess, "read only")
		case opRRQ:
			r, ok := parseRequest(b[2:])
			if !ok {
				s.count(func(st *Stats) *int64 { return &st.Malformed })
				return nil, errorPacket(errIllegal, "not a request in octet mode")
			}
			name, ok := cleanName(r.name)
			if !ok {
				s.count(func(st *Stats) *int64 { return &st.BadNames })
				return nil, errorPacket(errAccess, "no such name here")
			}
			r.name = name
			return &r, nil
		}
	}
	s.count(func(st *Stats) *int64 { return &st.Malformed })
	return nil, nil
}

// claim takes a place for a transfer to client.
func (s *Server) claim(client netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.active[client]:
		s.stats.Repeated++
		return false
	case len(s.active) >= MaxTransfers || s.clients[client.Addr()] >= maxPerClient:
		s.stats.Busy++
		return false
	}
	s.active[client] = true
	s.clients[client.Addr()]++
	return true
}

func (s *Server) release(client netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, client)
	if s.clients[client.Addr()]--; s.clients[client.Addr()] == 0 {
		delete(s.clients, client.Addr())
	}
}

// transfer sends one file.
func (s *Server) transfer(ctx context.Context, r request, client netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, transferTime)
	defer cancel()
	log := s.log.With("addr", client, "file", r.name)
	conn, err := s.listen(ctx)
	if err != nil {
		s.count(func(st *Stats) *int64 { return &st.Failed })
		log.Warn("tftp transfer has no socket", "err", err)
		return
	}
	defer conn.Close()
	to := net.UDPAddrFromAddrPort(client)

	opening, done := context.WithTimeout(ctx, openTime)
	file, size, err := s.files.Open(opening, r.name, client)
	done()
	switch {
	case errors.Is(err, lpmos.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		s.count(func(st *Stats) *int64 { return &st.NotFound })
		log.Debug("tftp file not found")
		_, _ = conn.WriteTo(errorPacket(errNotFound, "file not found"), to)
		return
	case err != nil:
		s.count(func(st *Stats) *int64 { return &st.Failed })
		log.Warn("tftp file not available", "err", err)
		_, _ = conn.WriteTo(errorPacket(errUndefined, "not available now"), to)
		return
	}
	defer file.Close()

	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	began := time.Now()
	t := sender{request: r, conn: conn, client: client, to: to, file: file, size: size, timing: s.timing}
	err = t.run()
	var refused *clientError
	switch {
	case err == nil:
		s.mu.Lock()
		s.stats.Completed++
		s.stats.Bytes += size
		s.mu.Unlock()
		log.Debug("tftp file sent", "bytes", size, "took", time.Since(began))
	case errors.As(err, &refused) && (refused.code == errOption || r.size && t.acked == 0):
		s.count(func(st *Stats) *int64 { return &st.Probes })
		log.Debug("tftp size asked", "bytes", size)
	case errors.As(err, &refused):
		s.count(func(st *Stats) *int64 { return &st.Aborted })
		log.Info("tftp transfer ended by client", "err", err)
	case errors.Is(err, errSilent):
		s.count(func(st *Stats) *int64 { return &st.TimedOut })
		log.Info("tftp client is silent", "bytes", t.acked, "took", time.Since(began))
	case ctx.Err() != nil:
		s.count(func(st *Stats) *int64 { return &st.TimedOut })
		log.Debug("tftp transfer ended", "err", ctx.Err())
	default:
		s.count(func(st *Stats) *int64 { return &st.Failed })
		log.Warn("tftp transfer failed", "err", err)
		_, _ = conn.WriteTo(errorPacket(errUndefined, "read error"), to)
	}
}

func addrPort(a net.Addr) (netip.AddrPort, bool) {
	udp, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	p := udp.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port()), p.IsValid()
}
