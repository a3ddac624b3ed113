// Command guest is /init of a machine that measures two ways to bring an image
// to its disk: the agent's, and what a shell script would do. `go run
// ./test/bench` builds it, boots it and reads its console.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	tools  = "/dev/vdb" // curl, dd, tee and sha256sum, beside their libraries and ld.so
	zstd   = "/usr/bin/zstd"

	toolsAt = "/run/tools"

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
	if err := errors.Join(os.Mkdir(toolsAt, 0o755), syscall.Mount(tools, toolsAt, "ext4", syscall.MS_RDONLY, "")); err != nil {
		return fmt.Errorf("mount the tools: %w", err)
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

// pipeline is curl | zstd -d | dd bs=4M, connected as a shell does. Where a digest
// is given, what comes is hashed on its way, with tee >(sha256sum): wrong bytes are
// on the disk before that is known.
func pipeline(ctx context.Context, url, digest string, f *os.File) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sum bytes.Buffer
	line := []*exec.Cmd{tool(ctx, "curl", "-sf", url)}
	if digest != "" {
		line = append(line, tool(ctx, "tee", "/proc/self/fd/3"))
	}
	line = append(line, exec.CommandContext(ctx, zstd, "-d", "-c", "-q"), tool(ctx, "dd", "bs=4M", "iflag=fullblock", "status=none"))
	var ours []io.Closer // ends of pipes that are the children's
	join := func(to *exec.Cmd) (*os.File, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		to.Stdin = r
		ours = append(ours, r, w)
		return w, nil
	}
	for i, cmd := range line[1:] {
		w, err := join(cmd)
		if err != nil {
			return err
		}
		line[i].Stdout = w
	}
	line[len(line)-1].Stdout = f
	if digest != "" {
		hash := tool(ctx, "sha256sum")
		hash.Stdout = &sum
		w, err := join(hash)
		if err != nil {
			return err
		}
		line[1].ExtraFiles = []*os.File{w}
		line = append(line, hash)
	}
	for _, cmd := range line {
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
	}
	for _, c := range ours {
		c.Close()
	}
	for _, cmd := range line {
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%s: %w", cmd, err)
		}
	}
	if got, _, _ := strings.Cut(sum.String(), " "); got != digest {
		return fmt.Errorf("the pack has digest %s instead of %s", got, digest)
	}
	return nil
}

// tool is a program of the host, with the libraries that it came with.
func tool(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, toolsAt+"/ld.so", append([]string{"--library-path", toolsAt, toolsAt + "/" + name}, args...)...)
}
