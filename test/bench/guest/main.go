// Command guest is /init of a machine that measures two ways to bring an image
// to its disk: the agent's, and what a shell script would do. `go run
// ./test/bench` builds it, boots it and reads its console.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agent/pid1"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// manifests are the digests of the images' manifests, separated by commas; the
// linker sets them.
var manifests string

const (
	target = "/dev/vda"
	zstd   = "/usr/bin/zstd"

	// A short run says less: an image is copied at least three times each way,
	// and until this much of it was.
	fewest = 3
	enough = 700 << 20
)

func main() {
	var cfg agentapi.BootConfig
	read := func() (lpmos.MAC, error) {
		var err error
		cfg, err = agent.ReadBootConfig(agentapi.BootConfigPath, agentapi.SiteConfigPath)
		return cfg.BootMAC, err
	}
	pid1.Main(pid1.Options{BootMAC: read}, func(ctx context.Context, sys *pid1.System) error {
		err := measure(ctx, cfg.BootURL, sys)
		if err != nil {
			sys.Log.Error("bench-failed", "err", err)
		}
		time.Sleep(time.Second) // the serial line is slow
		return syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	})
}

func measure(ctx context.Context, url string, sys *pid1.System) error {
	blobs, err := agentapi.NewBlobs(url, 0)
	if err != nil {
		return err
	}
	for digest := range strings.SplitSeq(manifests, ",") {
		m, err := install.FetchManifest(ctx, blobs, digest, time.Minute)
		if err != nil {
			return err
		}
		if err := compare(ctx, url, blobs, m, sys.Log); err != nil {
			return fmt.Errorf("%s: %w", m.OS, err)
		}
	}
	sys.Log.Info("bench-over")
	return nil
}

// compare brings one image to the disk in each way, by turns.
func compare(ctx context.Context, url string, blobs install.Blobs, m *lpmos.ImageManifest, log *slog.Logger) error {
	ways := []struct {
		name string
		copy func(f *os.File) error
	}{
		{"agent", func(f *os.File) error {
			c := install.Copier{Blobs: blobs, Decode: install.Zstd{Path: zstd}, Stall: time.Minute, Log: log}
			w := install.NewDiskWriter(f)
			defer w.Close()
			return c.Copy(ctx, m, func(_ int, chunk lpmos.Chunk, at int64, piece []byte) error {
				_, err := w.WriteAt(piece, chunk.Offset+at)
				return err
			})
		}},
		{"pipeline", func(f *os.File) error { return pipeline(ctx, url+agentapi.PathBlobs+m.Pack.SHA256, "", f) }},
		{"verified", func(f *os.File) error {
			return pipeline(ctx, url+agentapi.PathBlobs+m.Pack.SHA256, m.Pack.SHA256, f)
		}},
	}
	for round := range max(fewest, int(enough/m.UsedBytes)) {
		for i := range ways {
			w := ways[(round+i)%len(ways)] // none is always the one after another
			began := time.Now()
			if err := land(w.copy); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			log.Info("bench", "image", m.OS, "way", w.name, "bytes", m.UsedBytes, "ms", time.Since(began).Milliseconds())
		}
	}
	return nil
}

func land(write func(*os.File) error) error {
	f, err := os.OpenFile(target, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := write(f); err != nil {
		return err
	}
	return f.Sync()
}

// pipeline is curl | zstd -d | dd bs=4M: one request, one decoder, one loop.
// Where a digest is given, what comes is hashed on its way, as with
// tee >(sha256sum): wrong bytes are on the disk before that is known.
func pipeline(ctx context.Context, url, digest string, f *os.File) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch %s: %s", url, resp.Status)
	}
	cmd := exec.CommandContext(ctx, zstd, "-d", "-c", "-q")
	cmd.Stdin = resp.Body
	sum := sha256.New()
	if digest != "" {
		cmd.Stdin = io.TeeReader(resp.Body, sum)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	buf := make([]byte, 4<<20)
	for {
		n, err := io.ReadFull(out, buf)
		if n > 0 {
			if _, werr := f.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if err := cmd.Wait(); err != nil {
				return err
			}
			if got := hex.EncodeToString(sum.Sum(nil)); digest != "" && got != digest {
				return fmt.Errorf("the pack has digest %s instead of %s", got, digest)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
