package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/run"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/tier"
)

// programs is a Runner with the real programs.
type programs struct {
	run.Runner
	t testing.TB
}

type exitError struct{ err *run.Error }

func (e exitError) Error() string { return e.err.Error() }
func (e exitError) ExitCode() int { return e.err.Result.ExitCode }

func (p *programs) Run(ctx context.Context, input []byte, path string, args ...string) error {
	_, err := p.run(ctx, run.Cmd{Path: path, Args: args, Stdin: bytes.NewReader(input)})
	return err
}

func (p *programs) Read(ctx context.Context, path string, args ...string) (string, error) {
	return p.run(ctx, run.Cmd{Path: path, Args: args, Says: func(string) {}})
}

func (p *programs) run(ctx context.Context, c run.Cmd) (string, error) {
	res, err := p.Runner.Run(ctx, c)
	p.t.Logf("%s %s: exit %d, %q", filepath.Base(c.Path), strings.Join(c.Args, " "), res.ExitCode, res.LastLine)
	if e, ok := errors.AsType[*run.Error](err); ok {
		return res.Output, exitError{e}
	}
	return res.Output, err
}

// blobServer serves blobs by digest and lets a test spoil answers.
type blobServer struct {
	*httptest.Server

	mu     sync.Mutex // guards what follows
	blobs  map[string][]byte
	spoil  func(w http.ResponseWriter, r *http.Request, blob []byte) bool // true when it answered
	asked  int
	ranges []string
}

func newBlobServer(t testing.TB) *blobServer {
	s := &blobServer{blobs: map[string][]byte{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked++
		s.ranges = append(s.ranges, r.Header.Get("Range"))
		blob, ok := s.blobs[strings.TrimPrefix(r.URL.Path, agentapi.PathBlobs)]
		spoil := s.spoil
		s.mu.Unlock()
		if spoil != nil && spoil(w, r, blob) {
			return
		}
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *blobServer) put(b []byte) string {
	sum := sha256.Sum256(b)
	d := hex.EncodeToString(sum[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[d] = b
	return d
}

func (s *blobServer) client(t testing.TB, idle time.Duration) *agentapi.Blobs {
	b, err := agentapi.NewBlobs(s.URL, idle)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// zstd compresses one frame with the program.
func zstd(t testing.TB, b []byte) []byte {
	t.Helper()
	if _, err := exec.LookPath("zstd"); err != nil {
		tier.Missing(t, "root", "no zstd program")
	}
	cmd := exec.Command("zstd", "-q", "-c", "-1", "--stream-size="+itoa(len(b)))
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("zstd: %v", err)
	}
	return out
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// pack cuts fs into chunks and puts pack and manifest on the server.
func (s *blobServer) pack(t testing.TB, fs []byte, chunkBytes int, edit func(*lpmos.ImageManifest)) (*lpmos.ImageManifest, string) {
	t.Helper()
	m := &lpmos.ImageManifest{Format: "ext4", SizeBytes: int64(len(fs)), FirstBoot: "systemd", CloudInit: true,
		Kernel: "/boot/vmlinuz-test", Initrd: "/boot/initrd.img-test", KernelArgs: "quiet", OS: "testos", Version: "1", Arch: "amd64"}
	var packed []byte
	for off := 0; off < len(fs); off += chunkBytes {
		raw := fs[off:min(off+chunkBytes, len(fs))]
		stored := zstd(t, raw)
		sum := sha256.Sum256(stored)
		m.Chunks = append(m.Chunks, lpmos.Chunk{Offset: int64(off), Bytes: int64(len(raw)), StoredOffset: int64(len(packed)), StoredBytes: int64(len(stored)), SHA256: hex.EncodeToString(sum[:])})
		m.UsedBytes += int64(len(raw))
		packed = append(packed, stored...)
	}
	m.Pack = lpmos.Blob{SHA256: s.put(packed), Bytes: int64(len(packed))}
	if edit != nil {
		edit(m)
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return m, "sha256:" + s.put(text)
}

// fakeGrub is a set of parts with what the patches look for.
func fakeGrub(t testing.TB) GrubParts {
	t.Helper()
	dir := t.TempDir()
	boot := bytes.Repeat([]byte{0xb0}, 512)
	boot[0x66], boot[0x67] = 0xeb, 0x05
	boot[510], boot[511] = 0x55, 0xaa
	core := bytes.Repeat([]byte("core"), 25_001)
	binary.LittleEndian.PutUint16(core[0x1f4+10:], 0x820)
	g := GrubParts{BootImg: filepath.Join(dir, "boot.img"), CoreImg: filepath.Join(dir, "core.img"), LoaderEFI: filepath.Join(dir, "BOOTX64.EFI")}
	for p, b := range map[string][]byte{g.BootImg: boot, g.CoreImg: core, g.LoaderEFI: bytes.Repeat([]byte("EFI!"), 200_000)} {
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// testHardware is a machine with one disk.
func testHardware(device string, size int64, sector int) *lpmos.Hardware {
	return &lpmos.Hardware{BootMode: "bios", CPU: lpmos.CPU{Architecture: "amd64"},
		System: lpmos.System{UUID: "5f8d3b1e-0000-4000-8000-000000000001"},
		Disks:  []lpmos.Disk{{Device: device, SizeBytes: size, SectorBytes: sector, Serial: "TESTDISK0001", Transport: "virtio"}},
		NICs:   []lpmos.NIC{{Name: "eth0", MAC: lpmos.MustMAC("52:54:00:00:00:01")}, {Name: "eth1", MAC: lpmos.MustMAC("52:54:00:00:00:02")}}}
}

const testTask = "3b1e5f8d-1111-4222-8333-444455556666"

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3xq5m0S1l8oXqWgq2m0l8oXqWgq2m0l8oXqWgq2m0A someone@example"

func testPlan(t testing.TB, hw *lpmos.Hardware, m *lpmos.ImageManifest, digest string) *lpmos.Plan {
	t.Helper()
	task := &lpmos.Task{ID: testTask, Spec: lpmos.Spec{Hostname: "web-1.example", SSHKeys: []string{testKey}}}
	img := lpmos.Image{OS: m.OS, Version: m.Version, Arch: m.Arch, Digest: digest, SizeBytes: m.SizeBytes, UsedBytes: m.UsedBytes, BootModes: []string{"bios", "uefi"}, CloudInit: m.CloudInit}
	p := lpmos.NewPlan(task, hw, img)
	if p.Problem != "" {
		t.Fatalf("NewPlan: %s", p.Problem)
	}
	return &p
}

// failureCode is the code of a *Failure, or the error itself.
func failureCode(err error) string {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f.Code
	}
	if err == nil {
		return ""
	}
	return err.Error()
}
