package hub

import (
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
)

// batchBytes is how much goes into one write at most; longer frames go alone.
const batchBytes = 32 << 10

// writerState is who writes to a client.
type writerState uint8

const (
	idle    writerState = iota
	due                 // it is among writers.later
	running             // it is among writers.ready, or flush runs
)

// writers are the goroutines that write for all connections. There are some
// only while there is something to write.
type writers struct {
	buffers sync.Pool // of *[]byte, to join frames in
	most    int       // goroutines

	mu    sync.Mutex // guards what follows; taken after conn.mu
	ready []*conn    // to be written to now, first come first served
	next  int        // place of the first of them
	busy  int        // goroutines
	later []*conn    // to be written to when the pace allows
	armed bool       // something will look at later
}

// startPaced sees to it that what is queued is written: now, or with what else
// comes within the pace if something was written just before. c.mu is held.
func (c *conn) startPaced(now time.Time) {
	if c.state != idle {
		return
	}
	if h := c.hub; c.wrote == 0 || h.at(now)-c.wrote >= int64(h.pace) {
		c.start()
		return
	}
	c.state = due
	w := &c.hub.writers
	w.mu.Lock()
	defer w.mu.Unlock()
	w.later = append(w.later, c)
	if !w.armed {
		w.armed = true
		time.AfterFunc(c.hub.pace, w.turn)
	}
}

// start sees to it that what is queued is written now. c.mu is held.
func (c *conn) start() {
	if c.state == running {
		return
	}
	c.state = running
	w := &c.hub.writers
	w.mu.Lock()
	defer w.mu.Unlock()
	w.enqueue(c)
}

// enqueue adds c and sees to it that somebody comes for it. w.mu is held.
func (w *writers) enqueue(c *conn) {
	if w.next > 1<<10 && 2*w.next > len(w.ready) {
		w.ready = slices.Delete(w.ready, 0, w.next)
		w.next = 0
	}
	w.ready = append(w.ready, c)
	if w.busy < w.most {
		w.busy++
		go w.work()
	}
}

// turn starts writing to those that had to wait.
func (w *writers) turn() {
	w.mu.Lock()
	later := w.later
	w.later, w.armed = nil, false
	w.mu.Unlock()
	for _, c := range later {
		c.mu.Lock()
		if c.state == due { // else it became urgent meanwhile
			c.start()
		}
		c.mu.Unlock()
	}
}

// work writes until nothing is ready.
func (w *writers) work() {
	for {
		w.mu.Lock()
		if w.next == len(w.ready) {
			if w.next = 0; cap(w.ready) > 1<<10 {
				w.ready = nil
			} else {
				w.ready = w.ready[:0]
			}
			w.busy--
			w.mu.Unlock()
			return
		}
		c := w.ready[w.next]
		w.ready[w.next] = nil
		w.next++
		w.mu.Unlock()
		if c.raw != nil {
			c.flush(batch{}, false)
		} else {
			go c.flush(batch{}, true)
		}
	}
}

// batch is what was taken out of a queue and is not written yet.
type batch struct {
	bytes    []byte     // whole frames but for the first, of which a part may be written
	messages []*message // then these; nil ones count for nothing
}

func (b *batch) empty() bool { return len(b.bytes) == 0 && len(b.messages) == 0 }

// errFull says that the client does not take more now.
var errFull = errors.New("the client takes no more now")

// flush writes left, what is queued, and the close frame when the connection is
// to end. It returns when there is nothing to write for now. If it must not
// wait, it leaves waiting to a goroutine.
func (c *conn) flush(left batch, wait bool) {
	for first := true; ; first = false {
		if left.empty() {
			var more bool
			if left, more = c.take(first); !more {
				return
			}
		}
		err := c.send(&left, wait)
		if errors.Is(err, errFull) {
			go c.flush(left, true)
			return
		}
		c.mu.Lock()
		c.wrote = c.hub.at(time.Now())
		if err != nil {
			if c.code == 0 {
				c.code = websocket.CloseAbnormalClosure
			}
			c.said, left = true, batch{}
			c.net.Close() // which ends the reader
		}
		c.mu.Unlock()
	}
}

// take is what is to be written next, if there is anything. After the first
// time, a writer leaves off until the pace allows more.
func (c *conn) take(first bool) (b batch, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.code != 0 {
		c.queue, c.pong = queue{}, nil
		if !c.said {
			c.said = true
			b.bytes = frame(websocket.CloseMessage, websocket.FormatCloseMessage(c.code, c.reason))
			return b, true
		}
		// The client answers, or reading ends without.
		_ = c.net.SetReadDeadline(time.Now().Add(lingerTime))
		c.stop()
		return b, false
	}
	b.bytes, b.messages = c.pong, c.queue.items
	if c.pings {
		b.bytes = append(b.bytes, pingFrame...)
	}
	c.pings, c.pong = false, nil
	if b.empty() {
		c.stop()
		return b, false
	}
	if !first && len(b.bytes) == 0 && c.hub.pace > 0 {
		c.state = idle
		c.startPaced(time.Now())
		return batch{}, false
	}
	c.queue.take()
	return b, true
}

// stop marks the writer as ended. c.mu is held.
func (c *conn) stop() {
	c.state = idle
	if c.stopped != nil {
		close(c.stopped)
		c.stopped = nil
	}
}

// send writes b in as few writes as its size allows, and takes out what was
// written.
func (c *conn) send(b *batch, wait bool) error {
	if len(b.bytes) == 0 && len(b.messages) == 1 {
		m := b.messages[0].frame
		n, err := c.write(m, wait)
		c.count(1, n)
		b.bytes, b.messages = m[n:], nil
		return err
	}
	buf := c.hub.writers.buffers.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= 2*batchBytes {
			*buf = (*buf)[:0]
			c.hub.writers.buffers.Put(buf)
		}
	}()
	*buf = append(*buf, b.bytes...)
	b.bytes = nil
	for {
		sent := 0
		for len(b.messages) > 0 {
			m := b.messages[0]
			if m != nil {
				if len(*buf) > 0 && len(*buf)+len(m.frame) > batchBytes {
					break
				}
				*buf = append(*buf, m.frame...)
				sent++
			}
			b.messages = b.messages[1:]
		}
		if len(*buf) == 0 {
			return nil
		}
		n, err := c.write(*buf, wait)
		c.count(sent, n)
		if n < len(*buf) {
			b.bytes = append([]byte(nil), (*buf)[n:]...)
			return err
		}
		*buf = (*buf)[:0]
	}
}

func (c *conn) count(messages, bytes int) {
	s := &c.hub.stats
	s.sent.Add(int64(messages))
	s.writes.Add(1)
	s.bytes.Add(int64(bytes))
}

// write writes b, or what of it the client takes at once; then the error is
// errFull. How long it waits is watched by Hub.tick, which cuts the connection
// off.
func (c *conn) write(b []byte, wait bool) (n int, err error) {
	if wait {
		c.writing.Store(c.hub.at(time.Now()))
		n, err = c.net.Write(b)
		c.writing.Store(0)
		return n, err
	}
	for {
		closed := c.raw.Write(func(fd uintptr) bool {
			n, err = syscall.Write(int(fd), b)
			return true
		})
		switch {
		case closed != nil:
			return 0, closed
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return 0, errFull
		case err != nil:
			return 0, net.ErrClosed
		case n < len(b):
			return n, errFull
		}
		return n, nil
	}
}
