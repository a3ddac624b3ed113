// Package link is a network between two programs of a test that can be cut.
package link

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Link carries connections from an address of its own to another.
type Link struct {
	listener    net.Listener
	network, to string

	mu    sync.Mutex // guards what follows
	cut   bool
	tries []time.Time
	conns []net.Conn
}

// New makes a link to an address that net.Dial takes. It ends with the test.
func New(t testing.TB, network, to string) *Link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &Link{listener: l, network: network, to: to}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { k.carry(in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		k.Cut(true)
		wg.Wait()
	})
	return k
}

// Addr is where the near end connects.
func (k *Link) Addr() string { return k.listener.Addr().String() }

func (k *Link) carry(in net.Conn) {
	defer in.Close()
	out, err := net.DialTimeout(k.network, k.to, 5*time.Second)
	if err != nil {
		return
	}
	defer out.Close()
	k.mu.Lock()
	cut := k.cut
	if cut {
		k.tries = append(k.tries, time.Now())
	} else {
		k.conns = append(k.conns, in, out)
	}
	k.mu.Unlock()
	if cut {
		return
	}
	var wg sync.WaitGroup
	for _, d := range [][2]net.Conn{{in, out}, {out, in}} {
		wg.Go(func() {
			_, _ = io.Copy(d[0], d[1])
			d[0].Close()
			d[1].Close()
		})
	}
	wg.Wait()
}

// Cut cuts the link, with all that runs over it, or mends it.
func (k *Link) Cut(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cut = cut; cut {
		for _, c := range k.conns {
			c.Close()
		}
		k.conns = nil
	}
}

// Tries are when it was connected to while it was cut.
func (k *Link) Tries() []time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.tries)
}
