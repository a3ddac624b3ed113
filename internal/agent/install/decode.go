package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Decoder starts something that takes zstd frames and gives their content.
type Decoder interface {
	Start(ctx context.Context) (*Decoding, error)
}

// Decoding is a running decoder. In must be closed when all frames are in; Out
// ends when all content is out. The end of the context given to Start ends
// both.
type Decoding struct {
	In  io.WriteCloser
	Out io.Reader
	// Wait blocks until the decoder has ended and says why it did, nil if all
	// was well. It may be called more than once.
	Wait func() error
}

// failed is err, or what the decoder said of it. Nothing is an error of the
// image when the copy is being given up for another reason.
func (d *Decoding) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if why := d.Wait(); why != nil {
		return corrupt("it cannot be decoded: %v", why)
	}
	if _, ok := errors.AsType[*Failure](err); ok {
		return err
	}
	return corrupt("the decoder took no more: %v", err)
}

// Zstd decodes with the zstd program: twice as fast as what the standard
// library could do in Go, which is nothing.
type Zstd struct{ Path string }

// zstdMemory bounds the window a frame may ask for, twice the largest chunk.
const zstdMemory = "--memory=16MB"

// pipeBytes is the size of the pipes to and from the program. The default of
// 64 KiB makes four times the context switches.
const pipeBytes = 1 << 20

// Start starts the program. It dies with ctx.
func (z Zstd) Start(ctx context.Context) (*Decoding, error) {
	cmd := exec.CommandContext(ctx, z.Path, "-d", "-c", "-q", zstdMemory)
	cmd.Env, cmd.Dir = []string{"LC_ALL=C"}, "/"
	cmd.WaitDelay = 2 * time.Second
	said := &tail{}
	cmd.Stderr = said
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		inR.Close()
		inW.Close()
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	for _, f := range []*os.File{inW, outR} {
		setPipeSize(f)
	}
	cmd.Stdin, cmd.Stdout = inR, outW
	err = cmd.Start()
	inR.Close()
	outW.Close()
	if err != nil {
		inW.Close()
		outR.Close()
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	// A reader of Out sees the end when the program has gone, as it alone holds
	// the other end; a writer to In likewise.
	context.AfterFunc(ctx, func() { inW.Close() })
	wait := sync.OnceValue(func() error {
		inW.Close()
		err := cmd.Wait()
		outR.Close()
		if err != nil {
			return fmt.Errorf("zstd: %w: %q", err, said.last())
		}
		return nil
	})
	return &Decoding{In: inW, Out: outR, Wait: wait}, nil
}

func setPipeSize(f *os.File) {
	const fSetPipeSize = 1031
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	// Without it the copy is slower, and right.
	_ = rc.Control(func(fd uintptr) { _, _, _ = syscall.Syscall(syscall.SYS_FCNTL, fd, fSetPipeSize, pipeBytes) })
}

// tail keeps the last KiB of what is written to it.
type tail struct {
	mu sync.Mutex // guards what follows
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-1024):]
	return len(p), nil
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.b), []byte("\n"))
	return strings.ToValidUTF8(string(lines[len(lines)-1]), "")
}
