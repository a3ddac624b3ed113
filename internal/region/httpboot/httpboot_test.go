package httpboot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/region/netboot"
)

type view map[lpmos.MAC]lpmos.BootEntry

func (v view) Lookup(m lpmos.MAC) (lpmos.BootEntry, bool) { e, ok := v[m]; return e, ok }
func (v view) Synced() bool                               { return v != nil }

var (
	agentMAC = lpmos.MustMAC("52:54:00:00:00:01")
	diskMAC  = lpmos.MustMAC("52:54:00:00:00:02")
)

const taskID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"

// region is everything a handler calls.
type region struct {
	blobs    map[string][]byte
	image    lpmos.BootImage
	begun    []BootRequest
	beginErr error
	begin    func(BootRequest) (lpmos.BootEntry, string, error)
	segments map[string]netip.Addr
	served   map[string]bool
	open     atomic.Int64
	early    atomic.Int64 // asked for what may not be verified yet
}

type blob struct {
	io.ReadSeeker
	r *region
}

func (b blob) Close() error { b.r.open.Add(-1); return nil }

func (r *region) Open(ctx context.Context, sum string) (io.ReadSeekCloser, int64, error) {
	b, ok := r.blobs[sum]
	if !ok {
		return nil, 0, fmt.Errorf("open blob: %w", lpmos.ErrNotFound)
	}
	if b == nil {
		return nil, 0, errors.New("control plane: connection refused")
	}
	r.open.Add(1)
	return blob{bytes.NewReader(b), r}, int64(len(b)), nil
}

func (r *region) Follow(ctx context.Context, sum string) (io.ReadSeekCloser, int64, error) {
	r.early.Add(1)
	return r.Open(ctx, sum)
}

func (r *region) BootImage() (lpmos.BootImage, bool) { return r.image, r.image.Version != "" }

func (r *region) Begin(_ context.Context, b BootRequest) (lpmos.BootEntry, string, error) {
	if r.begin != nil {
		return r.begin(b)
	}
	r.begun = append(r.begun, b)
	return lpmos.BootEntry{MAC: b.MAC, Action: lpmos.BootAgent, TaskID: taskID}, "nonce-1", r.beginErr
}

func (r *region) Segment(_ context.Context, nonce string, remote netip.Addr) ([]byte, error) {
	owner, ok := r.segments[nonce]
	switch {
	case !ok:
		return nil, lpmos.ErrNotFound
	case owner != remote || r.served[nonce]:
		return nil, lpmos.ErrConflict
	}
	r.served[nonce] = true
	return []byte("cpio"), nil
}

func (r *region) add(b []byte) lpmos.Blob {
	sum := sha256.Sum256(b)
	s := hex.EncodeToString(sum[:])
	r.blobs[s] = b
	return lpmos.Blob{SHA256: s, Bytes: int64(len(b))}
}

func newRegion() *region {
	r := &region{blobs: map[string][]byte{}, segments: map[string]netip.Addr{}, served: map[string]bool{}}
	r.image = lpmos.BootImage{Version: "6.1", Kernel: r.add([]byte("kernel")), Initrd: r.add([]byte("initrd")), KernelArgs: "console=ttyS0",
		Files: map[string]lpmos.Blob{"snponly.efi": r.add([]byte("snponly")), "localboot.efi": r.add([]byte("helper for UUID."))}}
	return r
}

func patch(img []byte, uuid string) ([]byte, error) {
	if strings.Contains(uuid, "$") {
		return nil, errors.New("not a UUID")
	}
	return bytes.ReplaceAll(img, []byte("UUID"), []byte(uuid)), nil
}

func newHandler(tb testing.TB, v view, r *region) *Handler {
	tb.Helper()
	d, err := netboot.New(netboot.Config{BootURL: "http://10.77.0.1:8081", NextServer: netip.MustParseAddr("10.77.0.1"), Unknown: netboot.Ignore}, v)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if n := r.open.Load(); n != 0 {
			tb.Errorf("%d blobs are still open", n)
		}
	})
	return New(Deps{Decider: d, Boots: r, Segments: r, Blobs: r, Images: r, Patch: patch}, slog.New(slog.DiscardHandler))
}

func entries() view {
	return view{
		agentMAC: {MAC: agentMAC, Action: lpmos.BootAgent, TaskID: taskID},
		diskMAC: {MAC: diskMAC, Action: lpmos.BootLocal,
			Disk: &lpmos.BootDisk{RootUUID: "0b7c9f0e-6f1d-8f3a-9c55-0d1c8a7f2e11", BootMode: "uefi"}},
	}
}

func get(h http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, "http://10.77.0.1:8081"+target, nil)
	// As a server sees it, not as a proxy does.
	req.URL.Scheme, req.URL.Host, req.RequestURI = "", "", target
	req.RemoteAddr = "10.77.0.100:1234"
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

const query = "&uuid=4c4c4544-0042-3510-8054-b4c04f4e4b32&platform=efi&arch=x86_64"

func TestBootScript(t *testing.T) {
	tests := []struct {
		name, target string
		code         int
		want         string // in the body
		begins       bool
	}{
		{"the agent, for the machine whose task wants it", "/boot.ipxe?mac=52:54:00:00:00:01" + query, 200, "http://10.77.0.1:8081/boot/segment/nonce-1", true},
		{"any spelling of the address", "/boot.ipxe?mac=52-54-00-00-00-01" + query, 200, "segment/nonce-1", true},
		{"its own disk, by UUID", "/boot.ipxe?mac=52:54:00:00:00:02" + query, 200, "localboot.efi?uuid=0b7c9f0e-6f1d-8f3a-9c55-0d1c8a7f2e11", false},
		{"its own disk, in BIOS's way", "/boot.ipxe?mac=52:54:00:00:00:02&platform=pcbios", 200, "/boot/localboot.0", false},
		{"its own disk, for an unknown machine", "/boot.ipxe?mac=52:54:00:00:00:99" + query, 200, "boots its own disk", false},
		{"a question back, without address", "/boot.ipxe", 200, "/boot.ipxe?mac=${netX/mac}", false},
		{"a question back, without platform", "/boot.ipxe?mac=52:54:00:00:00:01", 200, "platform=${platform}", false},
		{"a message, for arm64", "/boot.ipxe?mac=52:54:00:00:00:01&platform=efi&arch=arm64", 200, "only x86", false},
		{"refused: no address", "/boot.ipxe?mac=x" + query, 400, "mac", false},
		{"refused: a multicast address", "/boot.ipxe?mac=01:54:00:00:00:01" + query, 400, "mac", false},
		{"refused: platform", "/boot.ipxe?mac=52:54:00:00:00:01&platform=${shell}", 400, "platform", false},
		{"refused: uuid", "/boot.ipxe?mac=52:54:00:00:00:01&platform=efi&uuid=%0ashell", 400, "uuid", false},
		{"refused: arch", "/boot.ipxe?mac=52:54:00:00:00:01&platform=efi&arch=a%26%26b", 400, "arch", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRegion()
			w := get(newHandler(t, entries(), r), "GET", tt.target)
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("GET %s = %d\n%s\nwant %d and %q", tt.target, w.Code, w.Body, tt.code, tt.want)
			}
			if (len(r.begun) == 1) != tt.begins {
				t.Errorf("begun: %+v; want %v", r.begun, tt.begins)
			}
			if w.Code == 200 && (w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) || !strings.HasPrefix(w.Body.String(), "#!ipxe\n")) {
				t.Errorf("headers %v, body %q", w.Header(), w.Body)
			}
		})
	}
	r := newRegion()
	get(newHandler(t, entries(), r), "GET", tests[0].target)
	want := BootRequest{agentMAC, "4c4c4544-0042-3510-8054-b4c04f4e4b32", netip.MustParseAddr("10.77.0.100"), netboot.EFI, true}
	if r.begun[0] != want {
		t.Errorf("Begin got %+v; want %+v", r.begun[0], want)
	}
}

func TestBootScriptThatCannotBeGivenNow(t *testing.T) {
	target := "/boot.ipxe?mac=52:54:00:00:00:01" + query
	tests := []struct {
		name   string
		view   view
		change func(*region)
		code   int
		want   string
	}{
		{"before the view is synced", nil, func(*region) {}, 503, "not now"},
		{"without a boot image", entries(), func(r *region) { r.image = lpmos.BootImage{} }, 503, "not now"},
		{"without the store", entries(), func(r *region) { r.beginErr = lpmos.ErrUnavailable }, 503, "not now"},
		{"after a fault", entries(), func(r *region) { r.beginErr = errors.New("disk full") }, 503, "not now"},
		{"while the machine is held", entries(), func(r *region) { r.beginErr = &lpmos.ConflictError{Problem: "two agents"} }, 200, "held"},
		{"when it was decided anew", entries(), func(r *region) {
			r.begin = func(b BootRequest) (lpmos.BootEntry, string, error) {
				return lpmos.BootEntry{MAC: b.MAC, Action: lpmos.BootLocal}, "", nil
			}
		}, 200, "boots its own disk"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRegion()
			tt.change(r)
			w := get(newHandler(t, tt.view, r), "GET", target)
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.want) || strings.Contains(w.Body.String(), "segment") {
				t.Errorf("GET = %d %s; want %d and %q", w.Code, w.Body, tt.code, tt.want)
			}
			if (w.Code == 503) != (w.Header().Get("Retry-After") != "") {
				t.Errorf("Retry-After = %q with %d", w.Header().Get("Retry-After"), w.Code)
			}
		})
	}
}

// TestHeadBeginsNothing: asking begins a boot or uses up a nonce, and a HEAD or
// a crawler must do neither.
func TestHeadBeginsNothing(t *testing.T) {
	r := newRegion()
	r.segments["n"] = netip.MustParseAddr("10.77.0.100")
	h := newHandler(t, entries(), r)
	for _, target := range []string{"/boot.ipxe?mac=52:54:00:00:00:01" + query, "/boot/segment/n"} {
		for _, method := range []string{"HEAD", "POST", "DELETE"} {
			if w := get(h, method, target); w.Code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s = %d; want 405", method, target, w.Code)
			}
		}
	}
	if len(r.begun) != 0 || len(r.served) != 0 {
		t.Errorf("begun %v, served %v; want nothing", r.begun, r.served)
	}
}

func TestSegment(t *testing.T) {
	r := newRegion()
	r.segments["mine"] = netip.MustParseAddr("10.77.0.100")
	r.segments["theirs"] = netip.MustParseAddr("10.77.0.101")
	h := newHandler(t, entries(), r)
	for _, tt := range []struct {
		nonce string
		code  int
	}{{"mine", 200}, {"mine", 410}, {"theirs", 410}, {"none", 410}, {"a.b", 400}, {strings.Repeat("a", 513), 400}} {
		w := get(h, "GET", "/boot/segment/"+tt.nonce)
		if w.Code != tt.code {
			t.Errorf("GET segment %q = %d; want %d", tt.nonce, w.Code, tt.code)
		}
		if w.Code == 200 && (w.Body.String() != "cpio" || w.Header().Get("Cache-Control") != "no-store") {
			t.Errorf("segment = %q, %v", w.Body, w.Header())
		}
	}
	if st := h.Stats(); st.Segments != 1 || st.SegmentsRefused != 3 {
		t.Errorf("Stats = %+v", st)
	}
}

func TestFiles(t *testing.T) {
	r := newRegion()
	gone := lpmos.Blob{SHA256: strings.Repeat("c", 64)}
	later := lpmos.Blob{SHA256: strings.Repeat("d", 64)}
	r.blobs[later.SHA256] = nil
	r.image.Files["gone"], r.image.Files["later"], r.image.Files["broken"] = gone, later, lpmos.Blob{SHA256: "../etc/passwd"}
	h := newHandler(t, entries(), r)
	kernel := "/blobs/" + r.image.Kernel.SHA256
	tests := []struct {
		method, target string
		header         []string
		code           int
		body           string
	}{
		{"GET", "/boot/snponly.efi", nil, 200, "snponly"},
		{"HEAD", "/boot/snponly.efi", nil, 200, ""},
		{"GET", "/boot/kernel", nil, 200, "kernel"},
		{"GET", "/boot/initrd", nil, 200, "initrd"},
		{"GET", kernel, nil, 200, "kernel"},
		{"HEAD", kernel, nil, 200, ""},
		{"GET", kernel, []string{"Range", "bytes=2-3"}, 206, "rn"},
		{"GET", kernel, []string{"Range", "bytes=4-"}, 206, "el"},
		{"GET", kernel, []string{"Range", "bytes=-2"}, 206, "el"},
		{"GET", kernel, []string{"Range", "bytes=9-"}, 416, "invalid range: failed to overlap\n"},
		{"GET", kernel, []string{"Range", "bytes=4-", "If-Range", `"` + r.image.Kernel.SHA256 + `"`}, 206, "el"},
		{"GET", kernel, []string{"Range", "bytes=4-", "If-Range", `"other"`}, 200, "kernel"},
		{"GET", kernel, []string{"Range", "elephants"}, 416, "invalid range\n"},
		{"GET", "/boot/localboot.efi?uuid=1A2B-3C4D", nil, 200, "helper for 1A2B-3C4D."},
		{"HEAD", "/boot/localboot.efi?uuid=1A2B-3C4D", nil, 200, ""},
		{"GET", "/boot/localboot.efi", nil, 200, "helper for ."},
		{"GET", "/boot/localboot.efi?uuid=$x", nil, 400, "cannot be made for this filesystem\n"},
		{"GET", "/boot/later", nil, 503, "not now\n"},
		{"GET", "/boot/gone", nil, 404, "404 page not found\n"},
		{"GET", "/boot/broken", nil, 404, "404 page not found\n"},
		{"GET", "/boot/nothing", nil, 404, "404 page not found\n"},
		{"GET", "/blobs/" + strings.Repeat("0", 64), nil, 404, "404 page not found\n"},
		{"GET", "/blobs/short", nil, 404, "not a SHA-256\n"},
		{"GET", "/blobs/" + strings.ToUpper(r.image.Kernel.SHA256), nil, 404, "not a SHA-256\n"},
		{"GET", "/", nil, 404, "404 page not found\n"},
		{"GET", "/boot", nil, 404, "404 page not found\n"},
		{"GET", "/blobs", nil, 404, "404 page not found\n"},
		{"POST", kernel, nil, 405, "Method Not Allowed\n"},
	}
	for _, tt := range tests {
		w := get(h, tt.method, tt.target, tt.header...)
		if w.Code != tt.code || w.Body.String() != tt.body {
			t.Errorf("%s %s %v = %d %q; want %d %q", tt.method, tt.target, tt.header, w.Code, w.Body, tt.code, tt.body)
		}
		if tt.method == "HEAD" && w.Header().Get("Content-Length") == "" {
			t.Errorf("HEAD %s has no Content-Length, which UEFI HTTP boot needs", tt.target)
		}
	}
	if n := r.early.Load(); n != 0 {
		t.Errorf("%d files were served before they were verified, to who compares nothing", n)
	}
	early := []string{agentapi.HeaderEarly, "yes"}
	for _, target := range []string{kernel, "/boot/kernel"} {
		get(h, "GET", target, early...)
		if n := r.early.Load(); n != 1 {
			t.Errorf("%s with %v: %d files were served early; want the one of /blobs/", target, early, n)
		}
	}
}

// TestOddRequests sends bytes to a real server (B14): nothing is served but an
// error.
func TestOddRequests(t *testing.T) {
	r := newRegion()
	addr := start(t, newHandler(t, entries(), r))
	line := func(target string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	}
	for name, request := range map[string]string{
		"dots":                line("/boot/../blobs/x"),
		"encoded dots":        line("/boot/%2e%2e/etc/passwd"),
		"encoded slash":       line("/boot%2fsnponly.efi"),
		"encoded letter":      line("/boot/snponly%2eefi"),
		"zero byte":           line("/boot/a%00b"),
		"two slashes":         line("//boot/snponly.efi"),
		"slashes inside":      line("/boot//snponly.efi"),
		"slash at the end":    line("/boot/snponly.efi/"),
		"backslashes":         line(`/boot/..\..\etc\passwd`),
		"a long path":         line("/boot/" + strings.Repeat("a", 8000)),
		"a path beyond":       line("/boot/" + strings.Repeat("a", 40000)),
		"another host's URL":  line("http://example.org/boot/snponly.efi"),
		"our own as proxy":    line("http://x/boot/snponly.efi"),
		"thousand headers":    "GET /boot/snponly.efi HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-A: "+strings.Repeat("b", 40)+"\r\n", 1000) + "\r\n",
		"a body":              "GET /boot/snponly.efi HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
		"two lengths":         "GET /boot/snponly.efi HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"length and chunks":   "GET /boot/snponly.efi HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/0.9":            "GET /boot/snponly.efi\r\n\r\n",
		"HTTP/2 by surprise":  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"CONNECT":             "CONNECT 10.0.0.1:22 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"OPTIONS *":           "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"no host":             "GET /boot/snponly.efi HTTP/1.1\r\n\r\n",
		"a space in the path": line("/boot/a b"),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			go io.WriteString(c, request)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
					t.Fatal(err)
				}
				return
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode < 400 || resp.StatusCode >= 500 && resp.StatusCode != http.StatusHTTPVersionNotSupported && resp.StatusCode != http.StatusNotImplemented || bytes.Contains(body, []byte("snponly")) {
				t.Errorf("answer %s %q; want 4xx", resp.Status, body)
			}
		})
	}
}

func start(tb testing.TB, h http.Handler) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := NewServer(h)
	s.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	go s.Serve(l)
	tb.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// TestBigFile: a file from the disk, longer than one deadline's piece, arrives
// whole, and as a range of itself.
func TestBigFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pack")
	content := bytes.Repeat([]byte("0123456789abcdef"), (2*stallBytes+4096)/16)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRegion()
	h := newHandler(t, entries(), r)
	h.d.Blobs = disk{path}
	addr := start(t, h)
	for _, header := range []string{"", "bytes=0-", "bytes=16-5000000"} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+"/blobs/"+strings.Repeat("a", 64), nil)
		want := content
		if header != "" {
			req.Header.Set("Range", header)
		}
		if header == "bytes=16-5000000" {
			want = content[16:5000001]
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, want) || resp.ContentLength != int64(len(want)) {
			t.Errorf("Range %q: %d bytes, %v; want %d", header, len(got), err, len(want))
		}
	}
}

type disk struct{ path string }

func (d disk) Open(context.Context, string) (io.ReadSeekCloser, int64, error) {
	f, err := os.Open(d.path)
	return f, 0, err
}

func (d disk) Follow(ctx context.Context, sum string) (io.ReadSeekCloser, int64, error) {
	return d.Open(ctx, sum)
}

// TestWaitingForABlob: nothing ends the context of a request whose
// blob the region is still fetching, but its client.
func TestWaitingForABlob(t *testing.T) {
	r := newRegion()
	h := newHandler(t, entries(), r)
	waiting := make(chan struct{})
	h.d.Blobs = waiter{waiting}
	addr := start(t, h)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET /blobs/%s HTTP/1.1\r\nHost: x\r\n\r\n", strings.Repeat("a", 64))
	<-waiting // it waits
	c.Close()
	<-waiting // and ends with its client
	if st := h.Stats(); st.Unavailable != 0 {
		t.Errorf("Stats = %+v; a client that went away is no fault", st)
	}
}

type waiter struct{ c chan struct{} }

func (w waiter) Open(ctx context.Context, _ string) (io.ReadSeekCloser, int64, error) {
	w.c <- struct{}{}
	<-ctx.Done()
	w.c <- struct{}{}
	return nil, 0, ctx.Err()
}

func (w waiter) Follow(ctx context.Context, sum string) (io.ReadSeekCloser, int64, error) {
	return w.Open(ctx, sum)
}

func FuzzScript(f *testing.F) {
	f.Add("52:54:00:00:00:01", "4c4c4544-0042-3510-8054-b4c04f4e4b32", "efi", "x86_64")
	f.Add("${shell}", "&&", "pcbios", "||")
	r := newRegion()
	h := newHandler(f, entries(), r)
	f.Fuzz(func(t *testing.T, mac, uuid, platform, arch string) {
		req := httptest.NewRequest("GET", "/boot.ipxe", nil)
		q := req.URL.Query()
		for k, v := range map[string]string{"mac": mac, "uuid": uuid, "platform": platform, "arch": arch} {
			q.Set(k, v)
		}
		req.URL.RawQuery = q.Encode()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code == 200 && mac != "" && platform != "" && strings.ContainsAny(w.Body.String(), "$;\x00") {
			t.Errorf("script:\n%s", w.Body)
		}
	})
}

// BenchmarkBootScript is the whole handler, for agent and local scripts by
// turns, with one and with a hundred thousand machines known.
func BenchmarkBootScript(b *testing.B) {
	for _, known := range []int{1, 100_000} {
		b.Run(fmt.Sprintf("known=%d", known), func(b *testing.B) {
			v := make(view, known)
			targets := make([]*http.Request, 0, 1024)
			for i := range known {
				m := lpmos.MAC{0x52, 0x54, 1, byte(i >> 16), byte(i >> 8), byte(i)}
				v[m] = lpmos.BootEntry{MAC: m, Action: []string{lpmos.BootAgent, lpmos.BootLocal}[i%2], TaskID: taskID}
				if len(targets) < cap(targets) && i%max(1, known/1000) == 0 {
					req := httptest.NewRequest("GET", "/boot.ipxe?mac="+m.String()+query, nil)
					req.RemoteAddr = "10.77.0.100:1234"
					targets = append(targets, req)
				}
			}
			r := newRegion()
			r.begin = func(q BootRequest) (lpmos.BootEntry, string, error) { return v[q.MAC], "nonce-1", nil }
			h := newHandler(b, v, r)
			runtime.GC()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				w := &discard{header: http.Header{}}
				h.ServeHTTP(w, targets[i%len(targets)])
				if w.code >= 400 || w.n < 100 {
					b.Fatalf("answer %d, %d bytes", w.code, w.n)
				}
				i++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "scripts/s")
		})
	}
}

type discard struct {
	header  http.Header
	code, n int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(code int)        { d.code = code }
func (d *discard) Write(b []byte) (int, error) { d.n += len(b); return len(b), nil }
