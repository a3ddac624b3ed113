package pid1

import (
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"
)

// takeConsole makes /dev/console standard input, output and error. The kernel
// does that too, if the initramfs had the device node before it was mounted.
func takeConsole() {
	fd, err := syscall.Open("/dev/console", syscall.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return
	}
	for target := range 3 {
		if fd != target {
			_ = syscall.Dup3(fd, target, 0)
		}
	}
	if fd > 2 {
		syscall.Close(fd)
	}
}

// console is a terminal whose other end may be silent, as that of a serial line
// is after a stray XOFF: what it does not take within consoleTime is dropped.
type console struct{ *os.File }

// consoleTime is enough for a line at 9600 baud.
const consoleTime = 250 * time.Millisecond

func (c console) Write(p []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(consoleTime)) // a file that knows none does not wait
	return c.File.Write(p)
}

// consoles writes to each console the kernel uses. One that fails does not
// keep the others from being written.
type consoles []io.Writer

func (c consoles) Write(p []byte) (int, error) {
	for _, w := range c {
		_, _ = w.Write(p)
	}
	return len(p), nil
}

// openConsoles opens what /sys/class/tty/console/active lists: a person looks
// at the screen or at the serial line, while /dev/console is only the last of
// them. Without the list it is standard error.
func openConsoles() io.Writer {
	var all consoles
	active, _ := os.ReadFile("/sys/class/tty/console/active")
	for _, name := range strings.Fields(string(active)) {
		if f, err := os.OpenFile("/dev/"+name, os.O_WRONLY|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0); err == nil {
			all = append(all, console{f})
		}
	}
	if len(all) == 0 {
		return os.Stderr
	}
	return all
}

// newLog writes one line for each event, without a time: the machine's clock is
// not to be trusted and terminals are narrow.
func newLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(prefixed{w}, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey && a.Value.Any() == slog.LevelInfo) {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// prefixed marks each line as ours among those of the kernel. The handler
// writes whole lines.
type prefixed struct{ w io.Writer }

func (p prefixed) Write(b []byte) (int, error) {
	if _, err := p.w.Write(append([]byte("lpmos: "), b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}
