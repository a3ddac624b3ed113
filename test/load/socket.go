package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// socket is a client that costs as little as possible, so that what is measured
// is the server: a handshake, unmasked frames in, masked frames out.
type socket struct {
	conn net.Conn
	r    *bufio.Reader
	buf  []byte
}

var sources atomic.Uint32

// dial opens a WebSocket at addr with a token. Connections come from several loopback
// addresses, because one has too few ports for tens of thousands.
func dial(ctx context.Context, addr, token string) (*socket, error) {
	d := net.Dialer{Timeout: 30 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+sources.Add(1)%8))}}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	s := &socket{conn: c, r: bufio.NewReaderSize(c, 1<<10)}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, err = fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer %s\r\n\r\n", addr, token)
	if err == nil {
		var resp *http.Response
		if resp, err = http.ReadResponse(s.r, nil); err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
			err = errors.New(resp.Status)
		}
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	_ = c.SetDeadline(time.Time{})
	return s, nil
}

// send writes one masked frame; the mask is zero.
func (s *socket) send(opcode byte, text string) error {
	b := append(make([]byte, 0, 14+len(text)), 0x80|opcode)
	if len(text) < 126 {
		b = append(b, 0x80|byte(len(text)))
	} else {
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(len(text)))
	}
	_, err := s.conn.Write(append(append(b, 0, 0, 0, 0), text...))
	return err
}

func (s *socket) subscribe(taskID string) error {
	if taskID == "" {
		return s.send(1, `{"type":"subscribe"}`)
	}
	return s.send(1, `{"type":"subscribe","task_id":"`+taskID+`"}`)
}

// closedError is a close frame of the server.
type closedError struct {
	code   int
	reason string
}

func (e *closedError) Error() string { return fmt.Sprintf("closed with %d %s", e.code, e.reason) }

// next is the next text message, valid until the one after. Pings are answered.
func (s *socket) next() ([]byte, error) {
	for {
		var head [2]byte
		if _, err := io.ReadFull(s.r, head[:]); err != nil {
			return nil, err
		}
		n := uint64(head[1] & 0x7f)
		switch n {
		case 126:
			var l [2]byte
			if _, err := io.ReadFull(s.r, l[:]); err != nil {
				return nil, err
			}
			n = uint64(binary.BigEndian.Uint16(l[:]))
		case 127:
			var l [8]byte
			if _, err := io.ReadFull(s.r, l[:]); err != nil {
				return nil, err
			}
			n = binary.BigEndian.Uint64(l[:])
		}
		if n > 4<<20 {
			return nil, fmt.Errorf("a message of %d bytes", n)
		}
		if uint64(cap(s.buf)) < n {
			s.buf = make([]byte, n, n+n/4)
		}
		p := s.buf[:n]
		if _, err := io.ReadFull(s.r, p); err != nil {
			return nil, err
		}
		switch head[0] & 0x0f {
		case 1:
			return p, nil
		case 8:
			e := &closedError{code: 1005}
			if len(p) >= 2 {
				e.code, e.reason = int(binary.BigEndian.Uint16(p)), strings.ToValidUTF8(string(p[2:]), "?")
			}
			_ = s.send(8, string(p))
			return nil, e
		case 9:
			if err := s.send(10, string(p)); err != nil {
				return nil, err
			}
		}
	}
}
