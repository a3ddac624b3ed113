package embedetcd

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
)

// maxConns bounds what other machines can open. A region needs a handful.
const maxConns = 1024

// front hands connections of other machines on to the member's socket, where
// they are authenticated. etcd keeps watches of a deleted user open as long as
// their connection lives, so somebody has to be able to end it.
type front struct {
	l      net.Listener
	socket string
	log    *slog.Logger
	wg     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]struct{}
	shut  bool
}

// Listen lets other machines in at l, which Close closes. Only a member with
// TLS may: without, whoever came would be everybody.
func (s *Server) Listen(l net.Listener, log *slog.Logger) error {
	if !s.secure {
		return errors.New("open etcd to other machines: it has no TLS")
	}
	if s.front != nil {
		return errors.New("open etcd to other machines: it is open already")
	}
	s.front = &front{l: l, socket: s.socket, log: log, conns: map[net.Conn]struct{}{}}
	s.front.wg.Go(s.front.serve)
	return nil
}

// Disconnect ends all connections of other machines. Who may come back does so
// at once and misses nothing: a watch goes on at the revision where it was.
func (s *Server) Disconnect() {
	if s.front != nil {
		s.front.disconnect()
	}
}

func (f *front) serve() {
	for {
		c, err := f.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			f.log.Warn("accept connection to etcd", "err", err)
			continue
		}
		f.wg.Go(func() {
			if err := f.pass(c); err != nil {
				f.log.Debug("connection to etcd", "addr", c.RemoteAddr(), "err", err)
			}
		})
	}
}

func (f *front) pass(c net.Conn) error {
	defer c.Close()
	if !f.enter(c) {
		return fmt.Errorf("refused: %d are open", maxConns)
	}
	defer f.leave(c)
	inner, err := net.Dial("unix", f.socket)
	if err != nil {
		return err
	}
	defer inner.Close()
	// Whichever side ends first ends both: HTTP/2 has no half-open connections.
	done := make(chan error, 2)
	for _, way := range [][2]net.Conn{{inner, c}, {c, inner}} {
		f.wg.Go(func() {
			_, err := io.Copy(way[0], way[1])
			done <- err
		})
	}
	err = <-done
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

func (f *front) enter(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut || len(f.conns) >= maxConns {
		return false
	}
	f.conns[c] = struct{}{}
	return true
}

func (f *front) leave(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

func (f *front) disconnect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.Close()
	}
}

func (f *front) close() {
	f.mu.Lock()
	f.shut = true
	f.mu.Unlock()
	f.l.Close()
	f.disconnect()
	f.wg.Wait()
}
