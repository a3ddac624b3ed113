package install

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/tier"
)

// BenchmarkCopy compares the agent's way with "curl | zstd -d | dd": the same
// pack over the same HTTP server into a file, with fsync. Neither verifies the
// other's digests; only the agent does at all.
func BenchmarkCopy(b *testing.B) {
	for _, tool := range []string{"zstd", "curl", "dd"} {
		if _, err := exec.LookPath(tool); err != nil {
			tier.Missing(b, "root", "no "+tool)
		}
	}
	s := newBlobServer(b)
	fs := testBytes(256 << 20)
	m, _ := s.pack(b, fs, 4<<20, nil)
	dir := b.TempDir()
	b.Run("agent", func(b *testing.B) {
		b.SetBytes(int64(len(fs)))
		for range b.N {
			f, err := os.Create(filepath.Join(dir, "agent"))
			if err != nil {
				b.Fatal(err)
			}
			c := Copier{Blobs: s.client(b, 0), Decode: Zstd{Path: "/usr/bin/zstd"}, Stall: time.Minute, Log: slog.New(slog.DiscardHandler)}
			behind := WriteBehind{File: f}
			err = c.Copy(b.Context(), m, func(_ int, chunk lpmos.Chunk, raw []byte) error {
				_, err := f.WriteAt(raw, chunk.Offset)
				behind.Wrote(chunk.Offset, chunk.Bytes)
				return err
			})
			if err != nil || f.Sync() != nil || f.Close() != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("shell", func(b *testing.B) {
		b.SetBytes(int64(len(fs)))
		for range b.N {
			cmd := exec.Command("sh", "-c", `curl -sf "$0" | zstd -d -c -q | dd of="$1" bs=4M iflag=fullblock conv=fsync status=none`, s.URL+agentapi.PathBlobs+m.Pack.SHA256, filepath.Join(dir, "shell"))
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
}
