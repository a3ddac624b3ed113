package osimage

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// toolDirs are where Debian puts programs; PATH is not consulted.
var toolDirs = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// toolPackages name what to install when a program is missing.
var toolPackages = map[string]string{"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "depmod": "kmod"}

func findTool(name string) (string, error) {
	for _, dir := range toolDirs {
		p := filepath.Join(dir, name)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("find %s: not installed (apt-get install %s)", name, toolPackages[name])
}

// maxLine bounds what is kept of a line of a program's output.
const maxLine = 4 << 10

// run runs a program with a cleared environment and hands every line of its
// output, of both streams, to line, which may be nil. The error carries the
// last line that a person would read.
func (b *builder) run(ctx context.Context, line func(string), name string, args ...string) error {
	path, err := findTool(name)
	if err != nil {
		return err
	}
	return b.runAt(ctx, line, path, args...)
}

// runAt is run for a program by its path.
func (b *builder) runAt(ctx context.Context, line func(string), path string, args ...string) error {
	name := filepath.Base(path)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{
		"PATH=" + strings.Join(toolDirs, ":"), "HOME=/root", "LC_ALL=C.UTF-8", "TMPDIR=" + b.work, "DEBIAN_FRONTEND=noninteractive",
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", sourceEpoch),
		// libext2fs before 1.47.1 does not know SOURCE_DATE_EPOCH.
		fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", sourceEpoch),
		// Features and sizes come from the command line, not from this host.
		"MKE2FS_CONFIG=/dev/null", "MKE2FS_SKIP_PROGRESS=1", "MKE2FS_DETERMINISTIC=1",
	}
	cmd.Dir = b.work
	cmd.WaitDelay = 20 * time.Second
	// In a process group of its own: a Ctrl-C at the terminal is for us to act
	// on. As root, because only root may, also as the first process of a PID
	// namespace and with mounts of its own: however it ends, and whatever it
	// had mounted in the tree or started there, all of that ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // makes them private, too
		// The parent is a thread to the kernel, and this one must not end.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	var last string
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewReaderSize(r, maxLine)
		for {
			text, _, err := lines.ReadLine()
			if err != nil {
				return
			}
			s := strings.TrimSpace(string(text))
			if s == "" {
				continue
			}
			// mmdebstrap says what went wrong in a line with E: and then
			// goes on to clean up.
			if !strings.HasPrefix(last, "E: ") || strings.HasPrefix(s, "E: ") {
				last = s
			}
			b.log.Debug("tool output", "tool", name, "line", s)
			if line != nil {
				line(s)
			}
		}
	}()
	err := cmd.Run()
	w.Close()
	<-done
	if ctx.Err() != nil {
		return fmt.Errorf("run %s: %w", name, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("run %s: %w: %q", name, err, last)
	}
	return nil
}
