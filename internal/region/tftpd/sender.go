package tftpd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"
)

// sender sends one file to one client.
type sender struct {
	request
	conn   net.PacketConn
	client netip.AddrPort
	to     net.Addr
	file   io.ReadSeeker
	size   int64
	timing timing

	acked int64 // bytes the client has
	in    [516]byte
	out   []byte
}

// errSilent ends a transfer whose client does not answer.
var errSilent = errors.New("no answer")

// clientError is an ERROR packet.
type clientError struct {
	code    uint16
	message string
}

func (e *clientError) Error() string { return fmt.Sprintf("client error %d: %q", e.code, e.message) }

// timing says how patient a transfer is.
type timing struct {
	first   time.Duration // until a packet is repeated when the client names no timeout; doubles each time
	silence time.Duration // until a client that says nothing is given up
}

var defaultTiming = timing{time.Second, 10 * time.Second}

// run sends the file and returns when the client has acknowledged the end.
//
// Blocks are counted from 1 and their numbers wrap at 65536, which clients that
// load more than 65535 blocks expect. The last block is the first that is not
// full; it is empty when the size is a multiple of the block size.
func (t *sender) run() error {
	oack := t.oack(t.size)
	if t.block == 0 {
		t.block = defaultBlock
	}
	if t.window == 0 {
		t.window = 1
	}
	t.out = make([]byte, 4+t.block)
	if oack != nil {
		if _, err := t.exchange(0, 0, func() error { return t.send(oack) }); err != nil {
			return err
		}
	}
	last := t.size/int64(t.block) + 1
	for base := int64(1); base <= last; {
		end := min(base+int64(t.window)-1, last)
		got, err := t.exchange(base, end, func() error { return t.sendBlocks(base, end) })
		if err != nil {
			return err
		}
		base = got + 1
		t.acked = min(got*int64(t.block), t.size)
	}
	return nil
}

// exchange sends, and repeats when nothing comes, until a block from base to end
// is acknowledged, and returns its number. Acknowledgements of earlier blocks
// are not answered, so a doubled one never doubles the rest of the transfer (the
// "sorcerer's apprentice", RFC 1123 §4.2.3.1).
func (t *sender) exchange(base, end int64, send func() error) (int64, error) {
	wait := t.timing.first
	if t.timeout > 0 {
		wait = t.timeout
	}
	for giveUp := time.Now().Add(t.timing.silence); ; wait *= 2 {
		if err := send(); err != nil {
			return 0, err
		}
		deadline := time.Now().Add(wait)
		if deadline.After(giveUp) {
			deadline = giveUp
		}
		block, err := t.receive(base, end, deadline)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return block, err
		}
		if !time.Now().Before(giveUp) {
			return 0, errSilent
		}
	}
}

// receive waits for an acknowledgement of a block from base to end.
func (t *sender) receive(base, end int64, deadline time.Time) (int64, error) {
	if err := t.conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	for {
		n, from, err := t.conn.ReadFrom(t.in[:])
		if err != nil {
			return 0, err
		}
		client, ok := addrPort(from)
		if !ok || n < 4 {
			continue
		}
		op, value := binary.BigEndian.Uint16(t.in[:]), binary.BigEndian.Uint16(t.in[2:])
		if client != t.client {
			// Somebody else must not disturb the transfer (RFC 1350 §4). An ERROR
			// is not answered, so that two servers cannot play ping-pong.
			if op != opERROR {
				_, _ = t.conn.WriteTo(errorPacket(errUnknownTID, "unknown transfer"), from)
			}
			continue
		}
		switch op {
		case opERROR:
			return 0, &clientError{value, cString(t.in[4:n])}
		case opACK:
			// The distance tells the block in spite of the wrap.
			if d := int64(value - uint16(base)); d <= end-base {
				return base + d, nil
			}
		}
	}
}

func (t *sender) sendBlocks(base, end int64) error {
	if _, err := t.file.Seek((base-1)*int64(t.block), io.SeekStart); err != nil {
		return fmt.Errorf("read file: %w", err)
	}
	for n := base; n <= end; n++ {
		want := min(int64(t.block), t.size-(n-1)*int64(t.block))
		if _, err := io.ReadFull(t.file, t.out[4:4+want]); err != nil {
			return fmt.Errorf("read file: %w", err)
		}
		binary.BigEndian.PutUint16(t.out, opDATA)
		binary.BigEndian.PutUint16(t.out[2:], uint16(n))
		if err := t.send(t.out[:4+want]); err != nil {
			return err
		}
	}
	return nil
}

// send tolerates what passes: a full queue or an unreachable moment is what
// repeating is for.
func (t *sender) send(b []byte) error {
	if _, err := t.conn.WriteTo(b, t.to); err != nil && errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
