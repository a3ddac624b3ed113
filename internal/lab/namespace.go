package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

var errClosed = errors.New("the lab network is closed")

// namespace is an unnamed network namespace and the thread that holds it.
type namespace struct {
	path  string // of the keeper thread's namespace, for nsenter --net=
	fd    *os.File
	calls chan func()
	done  chan struct{} // closed when the keeper has ended

	mu     sync.RWMutex // guards closed and the use of fd and calls against close
	closed bool
}

// newNamespace starts the keeper thread in a namespace of its own.
func newNamespace() (*namespace, error) {
	ns := &namespace{calls: make(chan func()), done: make(chan struct{})}
	ready := make(chan error, 1)
	go ns.keep(ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return ns, nil
}

// keep is the keeper: it enters a new namespace and runs what it is given, one
// call at a time, until close. It never unlocks its thread, so the runtime
// ends the thread with the goroutine; that lets go of the namespace and kills
// every process the thread has forked.
func (ns *namespace) keep(ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot be ended, only parked, and with it the
		// namespace would live on. While it is locked to this goroutine a
		// second one is certain to get another thread.
		moved := make(chan error, 1)
		go ns.keep(moved)
		ready <- <-moved
		runtime.UnlockOSThread()
		return
	}
	defer close(ns.done)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		ready <- fmt.Errorf("make a network namespace: %w (run as root)", err)
		return
	}
	ns.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", unix.Getpid(), unix.Gettid())
	fd, err := os.Open(ns.path)
	if err != nil {
		ready <- fmt.Errorf("open network namespace: %w", err)
		return
	}
	ns.fd = fd
	ready <- nil
	for f := range ns.calls {
		f()
	}
}

// start starts cmd in the namespace, in a process group of its own (a Ctrl-C
// at the terminal is for us to act on, not for our children) and bound to
// the keeper's life.
func (ns *namespace) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	ns.mu.RLock()
	defer ns.mu.RUnlock()
	if ns.closed {
		return errClosed
	}
	result := make(chan error, 1)
	ns.calls <- func() { result <- cmd.Start() }
	return <-result
}

// do runs f on a fresh thread inside the namespace and then ends the thread.
func (ns *namespace) do(f func() error) error {
	ns.mu.RLock()
	if ns.closed {
		ns.mu.RUnlock()
		return errClosed
	}
	// A descriptor of its own lets close go ahead while f runs.
	fd, err := unix.FcntlInt(ns.fd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	ns.mu.RUnlock()
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	result := make(chan error, 1)
	var enter func(chan error)
	enter = func(result chan error) {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// As in keep: the main thread must never change its namespace.
			moved := make(chan error, 1)
			go enter(moved)
			result <- <-moved
			runtime.UnlockOSThread()
			return
		}
		err := unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
		if err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		// Goexit inside f (t.Fatal, say) must not leave the caller waiting.
		err = errors.New("the function given to Do ended its goroutine")
		defer func() { result <- err }()
		err = f()
	}
	go enter(result)
	return <-result
}

// close ends the keeper and waits for it.
func (ns *namespace) close() {
	ns.mu.Lock()
	if !ns.closed {
		ns.closed = true
		ns.fd.Close()
		close(ns.calls)
	}
	ns.mu.Unlock()
	<-ns.done
}

// Do runs f with every socket that f itself makes placed in the namespace,
// and returns f's error. Goroutines that f starts are outside of it. Sockets
// stay usable after f, from anywhere, and keep the namespace alive until they
// are closed.
func (n *Network) Do(f func() error) error { return n.ns.do(f) }

// Listen is net.ListenConfig.Listen inside the namespace.
func (n *Network) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	err = n.Do(func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket is net.ListenConfig.ListenPacket inside the namespace, with
// SO_BROADCAST and SO_REUSEADDR. With device not empty the socket hears and
// speaks on that link only (SO_BINDTODEVICE), which a DHCP server on one of
// several segments needs.
func (n *Network) ListenPacket(ctx context.Context, network, address, device string) (c net.PacketConn, err error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var errs error
		err := raw.Control(func(fd uintptr) {
			errs = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			if device != "" {
				errs = errors.Join(errs, unix.BindToDevice(int(fd), device))
			}
		})
		return errors.Join(err, errs)
	}}
	err = n.Do(func() (err error) {
		c, err = config.ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

// DialContext connects from inside the namespace; it fits
// http.Transport.DialContext. The host in address must be an IP address: the
// namespace has no resolver.
func (n *Network) DialContext(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = n.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// StartCommand is cmd.Start inside the namespace. The process gets its own
// process group and is killed when the network is closed or this process
// ends. The caller calls cmd.Wait.
func (n *Network) StartCommand(cmd *exec.Cmd) error { return n.ns.start(cmd) }

// Namespace is the path by which other programs enter the namespace while the
// network is open: nsenter --net=PATH tcpdump -i br0.
func (n *Network) Namespace() string { return n.ns.path }
