package install

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/tier"
	"github.com/lpmos/lpmos/test/memory"
)

// BenchmarkCopy compares the agent's way with "curl | zstd -d | dd": the same
// content over the same HTTP server into a file, with fsync. Neither verifies
// the other's digests; only the agent does at all. Of the sparse image three
// parts in four are zero, which the agent leaves out. MB/s are of the whole
// image; peak-MB is the most memory that the agent's part took, which is that
// of chunks and not of images (zstd is a program of its own in both ways).
func BenchmarkCopy(b *testing.B) {
	for _, tool := range []string{"zstd", "curl", "dd"} {
		if _, err := exec.LookPath(tool); err != nil {
			tier.Missing(b, "root", "no "+tool)
		}
	}
	for _, c := range []struct {
		name    string
		content int // bytes
		spread  int64
	}{{"full", 256 << 20, 1}, {"sparse", 64 << 20, 4}, {"large", 1 << 30, 1}} {
		dir := b.TempDir()
		s := newBlobServer(b)
		m, _ := s.pack(b, testBytes(c.content), 4<<20, nil)
		stream := m.Pack.SHA256
		if c.spread > 1 {
			m.SizeBytes *= c.spread
			image := make([]byte, m.SizeBytes)
			content := testBytes(c.content)
			for i := range m.Chunks {
				at := &m.Chunks[i]
				copy(image[at.Offset*c.spread:], content[at.Offset:at.Offset+at.Bytes])
				at.Offset *= c.spread
			}
			stream = s.put(zstd(b, image))
		}
		for sum, blob := range s.blobs {
			s.blobs[sum] = mapped(b, filepath.Join(dir, "blob"), blob)
		}
		b.Run("agent-"+c.name, func(b *testing.B) {
			b.SetBytes(m.SizeBytes)
			debug.FreeOSMemory()
			ctx, cancel := context.WithCancel(b.Context())
			before := memory.Held()
			watched := make(chan uint64)
			go func() { watched <- memory.Peak(ctx) }()
			defer processor(b)()
			for range b.N {
				f, err := os.Create(filepath.Join(dir, "agent"))
				if err != nil {
					b.Fatal(err)
				}
				c := Copier{Blobs: s.client(b, 0), Decode: Zstd{Path: "/usr/bin/zstd"}, Stall: time.Minute, Log: slog.New(slog.DiscardHandler)}
				w := NewDiskWriter(f)
				err = c.Copy(b.Context(), m, func(_ int, chunk lpmos.Chunk, at int64, piece []byte) error {
					_, err := w.WriteAt(piece, chunk.Offset+at)
					return err
				})
				if err != nil || w.Close() != nil || f.Truncate(m.SizeBytes) != nil || f.Sync() != nil || f.Close() != nil {
					b.Fatal(err)
				}
			}
			cancel()
			b.ReportMetric(float64(max(<-watched, before)-before)/(1<<20), "peak-MB")
		})
		b.Run("shell-"+c.name, func(b *testing.B) {
			b.SetBytes(m.SizeBytes)
			defer processor(b)()
			for range b.N {
				cmd := exec.Command("sh", "-c", `curl -sf "$0" | zstd -d -c -q | dd of="$1" bs=4M iflag=fullblock conv=fsync status=none`, s.URL+agentapi.PathBlobs+stream, filepath.Join(dir, "shell"))
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
			}
		})
	}
}

// mapped puts bytes into a file and maps that, so that they are no memory of
// this program.
func mapped(b *testing.B, name string, content []byte) []byte {
	b.Helper()
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		b.Fatal(err)
	}
	m, err := syscall.Mmap(int(f.Fd()), 0, len(content), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = syscall.Munmap(m) })
	if err := os.Remove(name); err != nil {
		b.Fatal(err)
	}
	return m
}

// processor reports what an operation took of all processors, here and in
// programs that ended, until what it returns is called.
func processor(b *testing.B) (report func()) {
	used := func() (sum time.Duration) {
		for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
			var u syscall.Rusage
			if err := syscall.Getrusage(who, &u); err != nil {
				b.Fatal(err)
			}
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
		return sum
	}
	before := used()
	return func() { b.ReportMetric((used()-before).Seconds()/float64(b.N), "processor-s/op") }
}
