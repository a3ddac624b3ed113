package tftpd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

// files are in memory. Opened counts what is still open.
type files struct {
	content map[string][]byte
	opened  atomic.Int64
	asked   atomic.Int64
}

type file struct {
	*bytes.Reader
	owner *files
}

func (f file) Close() error { f.owner.opened.Add(-1); return nil }

func (f *files) Open(_ context.Context, name string, _ netip.AddrPort) (io.ReadSeekCloser, int64, error) {
	f.asked.Add(1)
	b, ok := f.content[name]
	if !ok {
		return nil, 0, fmt.Errorf("open %q: %w", name, lpmos.ErrNotFound)
	}
	if b == nil {
		return nil, 0, lpmos.ErrUnavailable
	}
	f.opened.Add(1)
	return file{bytes.NewReader(b), f}, int64(len(b)), nil
}

func listen(tb testing.TB) net.PacketConn {
	tb.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

func serve(tb testing.TB, f *files) (*Server, net.Addr) { return serveTimed(tb, f, defaultTiming) }

func serveTimed(tb testing.TB, f *files, limits timing) (*Server, net.Addr) {
	tb.Helper()
	s := New(f, func(ctx context.Context) (net.PacketConn, error) {
		return new(net.ListenConfig).ListenPacket(ctx, "udp4", "127.0.0.1:0")
	}, slog.New(slog.DiscardHandler))
	s.timing = limits
	conn := listen(tb)
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, conn) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Serve = %v; want nil when its context ends", err)
		}
		if n := f.opened.Load(); n != 0 {
			tb.Errorf("%d files are still open", n)
		}
		if st := s.Stats(); st.Active != 0 || len(s.clients) != 0 {
			tb.Errorf("%d transfers are still there, of %d clients", st.Active, len(s.clients))
		}
	})
	return s, conn.LocalAddr()
}

func rrq(name string, options ...string) []byte {
	b := append([]byte{0, opRRQ}, name...)
	b = append(b, 0)
	b = append(append(b, "octet"...), 0)
	for _, o := range options {
		b = append(append(b, o...), 0)
	}
	return b
}

func ack(n uint16) []byte { return binary.BigEndian.AppendUint16([]byte{0, opACK}, n) }

// patience is how long an answer is waited for.
const patience = 30 * time.Second

// exchange sends to a server port and returns the first answer, or nil if none
// comes.
func exchange(tb testing.TB, c net.PacketConn, to net.Addr, b []byte) ([]byte, net.Addr) {
	tb.Helper()
	if _, err := c.WriteTo(b, to); err != nil {
		tb.Fatal(err)
	}
	return receive(tb, c, patience)
}

func receive(tb testing.TB, c net.PacketConn, wait time.Duration) ([]byte, net.Addr) {
	tb.Helper()
	c.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 70_000)
	n, from, err := c.ReadFrom(buf)
	if err != nil {
		return nil, nil
	}
	return buf[:n], from
}

// fetch loads a file as firmware does, and loses packets on purpose: lose says
// for each data packet received whether it got lost.
func fetch(tb testing.TB, server net.Addr, block, window int, lose func() bool, request []byte) []byte {
	tb.Helper()
	c := listen(tb)
	p, from := exchange(tb, c, server, request)
	if p == nil {
		tb.Fatal("the request is not answered")
	}
	if p[1] == opOACK {
		p, from = exchange(tb, c, from, ack(0))
	}
	var got []byte
	want := uint16(1)
	inWindow := 0
	for {
		if p == nil {
			p, _ = receive(tb, c, patience)
			if p == nil {
				tb.Fatalf("silence before block %d", want)
			}
		}
		if p[1] != opDATA {
			tb.Fatalf("packet % x; want data", p[:min(len(p), 32)])
		}
		n, data := binary.BigEndian.Uint16(p[2:]), p[4:]
		p = nil
		if lose() {
			continue
		}
		if n != want {
			c.WriteTo(ack(want-1), from)
			inWindow = 0
			continue
		}
		got = append(got, data...)
		want++
		if inWindow++; inWindow == window || len(data) < block {
			c.WriteTo(ack(n), from)
			inWindow = 0
		}
		if len(data) < block {
			return got
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestFilesArriveWhole(t *testing.T) {
	f := &files{content: map[string][]byte{}}
	for _, n := range []int{0, 1, 511, 512, 513, 1024, 1468, 300_000, 2936} {
		f.content[fmt.Sprint("file", n)] = random(n)
	}
	s, addr := serve(t, f)
	for name, want := range f.content {
		for _, tt := range []struct {
			block, window int
			options       []string
		}{
			{512, 1, nil},
			{1468, 1, []string{"blksize", "65464", "tsize", "0"}},
			{1468, 16, []string{"windowsize", "64", "blksize", "1468"}},
			{8, 4, []string{"blksize", "8", "WindowSize", "4"}},
		} {
			if tt.block == 8 && len(want) > 5000 {
				continue
			}
			got := fetch(t, addr, tt.block, tt.window, func() bool { return false }, rrq(name, tt.options...))
			if !bytes.Equal(got, want) {
				t.Errorf("%s with %v: %d bytes; want the %d of the file", name, tt.options, len(got), len(want))
			}
		}
	}
	if st := s.Stats(); st.TimedOut != 0 || st.Aborted != 0 || st.Failed != 0 {
		t.Errorf("Stats = %+v", st)
	}
}

func TestFilesArriveInSpiteOfLoss(t *testing.T) {
	f := &files{content: map[string][]byte{"a": random(100_000)}}
	_, addr := serveTimed(t, f, timing{20 * time.Millisecond, patience})
	r := rand.New(rand.NewPCG(3, 4))
	got := fetch(t, addr, 1468, 8, func() bool { return r.IntN(10) == 0 }, rrq("a", "blksize", "1468", "windowsize", "8"))
	if !bytes.Equal(got, f.content["a"]) {
		t.Error("the file differs")
	}
}

// TestBlockNumbersWrap loads more than 65535 blocks.
func TestBlockNumbersWrap(t *testing.T) {
	f := &files{content: map[string][]byte{"a": random(8*65536 + 20)}}
	_, addr := serve(t, f)
	got := fetch(t, addr, 8, 16, func() bool { return false }, rrq("a", "blksize", "8", "windowsize", "16"))
	if !bytes.Equal(got, f.content["a"]) {
		t.Error("the file differs")
	}
}

func TestNamesThatAreNotFiles(t *testing.T) {
	f := &files{content: map[string][]byte{"snponly.efi": []byte("x"), "later": nil}}
	s, addr := serve(t, f)
	for _, name := range []string{"../x", `..\x`, "....//x", "/etc/passwd", "//etc", "etc/", "snponly.efi/", "", "/", ".", "..", ".hidden",
		strings.Repeat("a", 400), "a b", "a\x7f", "é", "C:x", "%2e%2e", "snponly.efi\xff"} {
		asked := f.asked.Load()
		p, _ := exchange(t, listen(t), addr, rrq(name))
		if len(p) < 4 || p[1] != opERROR || p[3] != errAccess || f.asked.Load() != asked {
			t.Errorf("%q is answered with % x; want error 2 and nothing looked up", name, p)
		}
	}
	for name, want := range map[string]byte{"SNPONLY.EFI": errNotFound, "undionly.kpxe": errNotFound, "later": errUndefined} {
		if p, _ := exchange(t, listen(t), addr, rrq(name)); len(p) < 4 || p[1] != opERROR || p[3] != want {
			t.Errorf("%q is answered with % x; want error %d", name, p, want)
		}
	}
	for _, name := range []string{"snponly.efi", "/snponly.efi"} {
		if got := fetch(t, addr, 512, 1, func() bool { return false }, rrq(name)); string(got) != "x" {
			t.Errorf("%q gives %q", name, got)
		}
	}
	if st := s.Stats(); st.BadNames != 19 || st.NotFound != 2 || st.Failed != 1 {
		t.Errorf("Stats = %+v", st)
	}
}

func TestRequests(t *testing.T) {
	f := &files{content: map[string][]byte{"a": random(100)}}
	_, addr := serve(t, f)
	oack := func(s ...string) string { return "\x00\x06" + strings.Join(s, "\x00") + "\x00" }
	data := "\x00\x03\x00\x01" + string(f.content["a"])
	many := []string{"blksize", "1000"}
	for i := range 30 {
		many = append(many, fmt.Sprint("o", i), "1")
	}
	tests := []struct {
		name    string
		request []byte
		want    string // "" for no answer
	}{
		{"blksize 0 is ignored", rrq("a", "blksize", "0"), data},
		{"blksize 7 is ignored", rrq("a", "blksize", "7"), data},
		{"blksize 8", rrq("a", "blksize", "8"), oack("blksize", "8")},
		{"blksize 512", rrq("a", "blksize", "512"), oack("blksize", "512")},
		{"blksize 65464 becomes what a frame holds", rrq("a", "blksize", "65464"), oack("blksize", "1468")},
		{"blksize 65465 is ignored", rrq("a", "blksize", "65465"), data},
		{"blksize -1 is ignored", rrq("a", "blksize", "-1"), data},
		{"blksize 1e99 is ignored", rrq("a", "blksize", "1e99"), data},
		{"blksize of thirty digits is ignored", rrq("a", "blksize", strings.Repeat("9", 30)), data},
		{"windowsize 0 is ignored", rrq("a", "windowsize", "0"), data},
		{"windowsize 65535 is clamped", rrq("a", "windowsize", "65535"), oack("windowsize", "16")},
		{"timeout 0 is ignored", rrq("a", "timeout", "0"), data},
		{"timeout 5", rrq("a", "timeout", "5"), oack("timeout", "5")},
		{"timeout 255 is not promised, as the client would be given up before", rrq("a", "timeout", "255"), data},
		{"timeout 256 is ignored", rrq("a", "timeout", "256"), data},
		{"tsize", rrq("a", "tsize", "0"), oack("tsize", "100")},
		{"tsize garbage is ignored", rrq("a", "tsize", "many"), data},
		{"the first of two equal options counts", rrq("a", "blksize", "1024", "BLKSIZE", "600"), oack("blksize", "1024")},
		{"many options", rrq("a", many...), oack("blksize", "1000")},
		{"an option without value is ignored", rrq("a", "blksize"), data},
		{"missing zero at the end", rrq("a")[:7], "\x00\x05\x00\x04not a request in octet mode\x00"},
		{"mode mail", []byte("\x00\x01a\x00mail\x00"), "\x00\x05\x00\x04not a request in octet mode\x00"},
		{"mode in capitals", []byte("\x00\x01a\x00OCTET\x00"), data},
		{"no mode", []byte("\x00\x01a\x00"), "\x00\x05\x00\x04not a request in octet mode\x00"},
		{"a zero byte in the name", []byte("\x00\x01a\x00b\x00octet\x00"), "\x00\x05\x00\x04not a request in octet mode\x00"},
		{"a write", append([]byte{0, opWRQ}, rrq("a")[2:]...), "\x00\x05\x00\x02read only\x00"},
		{"an ACK at the server's port", ack(1), ""},
		{"one byte", []byte{1}, ""},
		{"longer than a request may be", rrq("a", "blksize", "512", "x", strings.Repeat("y", 600)), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := listen(t)
			c.WriteTo(tt.request, addr)
			wait := patience
			if tt.want == "" {
				wait = 100 * time.Millisecond
			}
			p, from := receive(t, c, wait)
			if string(p) != tt.want {
				t.Errorf("answer %q; want %q", p, tt.want)
			}
			if from != nil && p[1] != opERROR {
				c.WriteTo(errorPacket(errOption, "enough"), from) // so that the test need not wait
			}
		})
	}
}

// TestRepeatedAcksSendNothing: a network that doubles every ACK must not double
// every block.
func TestRepeatedAcksSendNothing(t *testing.T) {
	f := &files{content: map[string][]byte{"a": random(5 * 512)}}
	_, addr := serveTimed(t, f, timing{patience, 4 * patience}) // no block comes again for lateness
	c, other := listen(t), listen(t)
	p, from := exchange(t, c, addr, rrq("a"))
	blocks := 0
	for p != nil && p[1] == opDATA {
		blocks++
		n := binary.BigEndian.Uint16(p[2:])
		if int(n) != blocks {
			t.Fatalf("packet %d is block %d", blocks, n)
		}
		for _, old := range []uint16{0, n - 1, n + 1, n + 7, 40_000} {
			c.WriteTo(ack(old), from)
		}
		// Somebody else's packets do not count, and are told so.
		if q, _ := exchange(t, other, from, ack(n)); len(q) < 4 || q[1] != opERROR || q[3] != errUnknownTID {
			t.Errorf("a stranger's ACK is answered with % x; want error 5", q)
		}
		for range 3 {
			c.WriteTo(ack(n), from)
		}
		if len(p) < 516 {
			break
		}
		p, _ = receive(t, c, patience)
	}
	if blocks != 6 {
		t.Errorf("%d blocks; want 6", blocks)
	}
	if p, _ := receive(t, c, 200*time.Millisecond); p != nil {
		t.Errorf("after the end comes % x", p[:4])
	}
}

func TestASizeProbeIsNoFault(t *testing.T) {
	f := &files{content: map[string][]byte{"a": random(5 * 512)}}
	s, addr := serve(t, f)
	c := listen(t)
	_, from := exchange(t, c, addr, rrq("a", "tsize", "0", "blksize", "1468"))
	c.WriteTo(errorPacket(errOption, "User aborted the transfer"), from)
	for deadline := time.Now().Add(patience); s.Stats().Probes != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("Stats = %+v; want a probe", s.Stats())
		}
	}
}

// TestSilentClientsAreForgotten is B11 from one host and from many: the limits
// hold, others are served meanwhile, and everything ends in time.
func TestSilentClientsAreForgotten(t *testing.T) {
	f := &files{content: map[string][]byte{"a": random(5000)}}
	if limits := defaultTiming; limits.silence+limits.first > 15*time.Second {
		t.Errorf("silent clients are kept for %v", limits.silence)
	}
	// All have asked before the first is forgotten.
	s, addr := serveTimed(t, f, timing{200 * time.Millisecond, 5 * time.Second})
	for range 100 {
		listen(t).WriteTo(rrq("a"), addr)
	}
	began := time.Now()
	for s.Stats().Busy+int64(s.Stats().Active) < 100 && time.Since(began) < patience {
		time.Sleep(time.Millisecond)
	}
	if st := s.Stats(); st.Active != maxPerClient || st.Busy != 100-maxPerClient {
		t.Errorf("Stats = %+v; want %d transfers and the rest refused", st, maxPerClient)
	}
	for st := s.Stats(); st.Active > 0; st = s.Stats() {
		if time.Since(began) > patience {
			t.Fatalf("after many times the time %d transfers are alive", st.Active)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if st := s.Stats(); st.TimedOut != maxPerClient {
		t.Errorf("TimedOut = %d; want %d", st.TimedOut, maxPerClient)
	}
}

func TestLimits(t *testing.T) {
	s := New(&files{}, nil, slog.New(slog.DiscardHandler))
	client := func(i, port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), uint16(port))
	}
	for i := range 5000 {
		s.claim(client(i, 1000))
	}
	if st := s.Stats(); st.Active != MaxTransfers || st.Busy != 5000-MaxTransfers {
		t.Errorf("Stats = %+v; want %d places taken", st, MaxTransfers)
	}
	s.release(client(0, 1000))
	if !s.claim(client(4999, 1)) || s.claim(client(4999, 1)) {
		t.Error("a place that was given back is not to be had, or is had twice by one client")
	}
	if st := s.Stats(); st.Repeated != 1 {
		t.Errorf("Repeated = %d; want 1", st.Repeated)
	}
}

func TestServeEndsTransfers(t *testing.T) {
	f := &files{content: map[string][]byte{"a": random(5000)}}
	_, addr := serve(t, f)
	if p, _ := exchange(t, listen(t), addr, rrq("a")); p == nil {
		t.Fatal("no answer")
	}
	// The cleanup of serve checks that nothing is left and Serve returns.
}

func TestASocketThatCannotBeOpenedIsAFault(t *testing.T) {
	f := &files{content: map[string][]byte{"a": nil}}
	s := New(f, func(context.Context) (net.PacketConn, error) { return nil, errors.New("too many open files") }, slog.New(slog.DiscardHandler))
	s.transfer(t.Context(), request{name: "a"}, netip.MustParseAddrPort("127.0.0.1:9"))
	if st := s.Stats(); st.Failed != 1 || f.asked.Load() != 0 {
		t.Errorf("Stats = %+v", st)
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add(rrq("snponly.efi", "tsize", "0", "blksize", "1468", "windowsize", "4")[2:])
	f.Add([]byte("a\x00octet\x00blksize\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parseRequest(b)
		if !ok {
			return
		}
		if r.block != 0 && (r.block < minBlock || r.block > maxBlock) || r.window < 0 || r.window > maxWindow ||
			r.timeout < 0 || r.timeout > 255*time.Second {
			t.Errorf("parseRequest(%q) = %+v", b, r)
		}
		if name, ok := cleanName(r.name); ok && (strings.ContainsAny(name, "/\\\x00") || strings.HasPrefix(name, ".") || len(name) > maxName) {
			t.Errorf("cleanName(%q) = %q", r.name, name)
		}
		if o := r.oack(1 << 40); o != nil && (len(o) > 200 || bytes.Count(o, []byte{0})%2 != 1) {
			t.Errorf("oack = %q", o)
		}
	})
}

func FuzzReceive(f *testing.F) {
	f.Add(rrq("a"))
	f.Add([]byte{0, 3, 0, 1})
	s := New(&files{}, nil, slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, refusal := s.receive(b); r != nil && refusal != nil {
			t.Errorf("receive(%q) both serves and refuses", b)
		}
	})
}
