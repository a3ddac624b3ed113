package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Files in a machine's directory.
const (
	varsFile   = "vars.fd"    // UEFI variables, kept over power cuts
	serialFile = "serial.log" // raw console
	qmpFile    = "qmp.log"    // what QEMU said over QMP
	qemuFile   = "qemu.log"   // QEMU's command line and its own complaints
)

// startTimeout bounds the time from fork to QEMU's first answer.
const startTimeout = 30 * time.Second

// Machine is a virtual machine that is on or off. Its disks and its UEFI
// variables stay as they are while it is off.
type Machine struct {
	cfg     MachineConfig
	dir     string
	net     *Network
	taps    []string
	console *Console
	serial  *os.File

	power sync.Mutex // held while switching on or off

	mu      sync.Mutex // guards what follows
	run     *run       // nil while off
	closed  bool
	events  []Event
	changed chan struct{} // closed and replaced with each event
}

// run is one process of QEMU.
type run struct {
	cmd  *exec.Cmd
	qmp  *qmp
	cut  bool          // we killed it; guarded by Machine.mu
	done chan struct{} // closed when the process is reaped and its output read
}

// Start makes a machine, its missing disks and its taps, and switches it on.
// ctx bounds the start only; the machine is on until it is switched off, its
// software switches it off, or the network is closed.
func (n *Network) Start(ctx context.Context, cfg MachineConfig) (*Machine, error) {
	m, err := n.NewMachine(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := m.PowerOn(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// NewMachine is Start without switching the machine on.
func (n *Network) NewMachine(ctx context.Context, cfg MachineConfig) (*Machine, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("make machine: %w", err)
	}
	m := &Machine{cfg: cfg, net: n, dir: filepath.Join(n.dir, cfg.Name), changed: make(chan struct{})}
	// The name is taken first: two machines of one name would share NVRAM.
	n.mu.Lock()
	switch {
	case n.closed:
		err = errClosed
	case n.machines[cfg.Name] != nil:
		err = errors.New("the name is taken")
	default:
		n.machines[cfg.Name] = m
	}
	n.mu.Unlock()
	if err == nil {
		if err = m.prepare(ctx); err != nil {
			n.mu.Lock()
			delete(n.machines, cfg.Name)
			n.mu.Unlock()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make machine %s: %w", cfg.Name, err)
	}
	return m, nil
}

func (m *Machine) prepare(ctx context.Context) error {
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return err
	}
	if m.cfg.Firmware.EFI() {
		if err := m.copyVars(); err != nil {
			return err
		}
	}
	for i, d := range m.cfg.Disks {
		info, err := os.Stat(d.Path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			if err := CreateDisk(d.Path, d.SizeBytes); err != nil {
				return err
			}
		case err != nil:
			return err
		case d.SizeBytes != 0 && info.Mode().IsRegular() && info.Size() != d.SizeBytes:
			return fmt.Errorf("disk %d: %s has %d bytes, not %d", i, d.Path, info.Size(), d.SizeBytes)
		}
	}
	for _, nic := range m.cfg.NICs {
		tap, err := m.net.addTap(ctx, nic.Bridge)
		if err != nil {
			return err
		}
		m.taps = append(m.taps, tap)
	}
	serial, err := m.openLog(serialFile)
	if err != nil {
		return err
	}
	m.serial = serial
	console := newConsole(m.cfg.Name, m.cfg.Failures, serial)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		serial.Close()
		return errClosed
	}
	m.console = console
	return nil
}

// copyVars gives the machine UEFI variables of its own, as a new mainboard has.
// Those of an earlier machine in the same directory are kept: lab up after lab
// down finds the machine as it was.
func (m *Machine) copyVars() error {
	path := filepath.Join(m.dir, varsFile)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	template := firmwares[m.cfg.Firmware].vars(m.net.tools)
	b, err := os.ReadFile(template)
	if err != nil {
		return fmt.Errorf("read %s variables: %w", m.cfg.Firmware, err)
	}
	return os.WriteFile(path, b, 0o644)
}

func (m *Machine) openLog(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(m.dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
}

// Name is the name in the config.
func (m *Machine) Name() string { return m.cfg.Name }

// Config is the config with its defaults filled in.
func (m *Machine) Config() MachineConfig { return m.cfg }

// Dir holds the machine's logs and UEFI variables.
func (m *Machine) Dir() string { return m.dir }

// Console is the serial port.
func (m *Machine) Console() *Console { return m.console }

// On reports whether the machine is on.
func (m *Machine) On() bool { return m.current() != nil }

func (m *Machine) current() *run {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.run
}

// PowerOn switches the machine on and returns when QEMU runs its processors.
// A machine that is on stays as it is.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	m.mu.Lock()
	on, closed := m.run != nil, m.closed
	m.mu.Unlock()
	if closed {
		return fmt.Errorf("power on %s: %w", m.cfg.Name, errClosed)
	}
	if on {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("QEMU does not answer"))
	defer cancel()
	if err := m.powerOn(ctx); err != nil {
		return fmt.Errorf("power on %s: %w", m.cfg.Name, err)
	}
	return nil
}

func (m *Machine) powerOn(ctx context.Context) error {
	qmpConn, qmpTheirs, err := socketPair()
	if err != nil {
		return err
	}
	defer qmpTheirs.Close()
	serialConn, serialTheirs, err := socketPair()
	if err != nil {
		qmpConn.Close()
		return err
	}
	defer serialTheirs.Close()
	theirs := []*os.File{qmpTheirs, serialTheirs}
	tpmOff := func() {}
	if m.cfg.TPM != "" {
		var tpmTheirs *os.File
		if tpmTheirs, tpmOff, err = m.startTPM(); err != nil {
			qmpConn.Close()
			serialConn.Close()
			return err
		}
		defer tpmTheirs.Close()
		theirs = append(theirs, tpmTheirs)
	}

	qemuLog, err := m.openLog(qemuFile)
	if err == nil {
		defer qemuLog.Close() // QEMU has its own copy of the descriptor
		var qmpLog *os.File
		if qmpLog, err = m.openLog(qmpFile); err == nil {
			return m.runQEMU(ctx, qmpConn, serialConn, theirs, tpmOff, qemuLog, qmpLog)
		}
	}
	tpmOff()
	qmpConn.Close()
	serialConn.Close()
	return err
}

// startTPM starts the machine's TPM, which is off with the machine, and returns
// QEMU's end of the connection to it.
func (m *Machine) startTPM() (theirs *os.File, off func(), err error) {
	if m.net.tools.SWTPM == "" {
		return nil, nil, errors.New("a machine with a TPM needs swtpm (package swtpm)")
	}
	if err := os.MkdirAll(m.cfg.TPM, 0o700); err != nil {
		return nil, nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "tpm")
	defer ours.Close()
	theirs = os.NewFile(uintptr(fds[1]), "theirs")
	cmd := exec.Command(m.net.tools.SWTPM, "socket", "--tpm2", "--tpmstate", "dir="+m.cfg.TPM, "--ctrl", "type=unixio,clientfd=3")
	cmd.Env = []string{"LC_ALL=C"}
	cmd.ExtraFiles = []*os.File{ours}
	if err := m.net.StartCommand(cmd); err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("start TPM: %w", err)
	}
	return theirs, sync.OnceFunc(func() {
		cmd.Process.Kill()
		_ = cmd.Wait()
	}), nil
}

// runQEMU owns the connections, qmpLog and the TPM from here on.
func (m *Machine) runQEMU(ctx context.Context, qmpConn, serialConn net.Conn, theirs []*os.File, tpmOff func(), qemuLog, qmpLog *os.File) error {
	var complaint lastLine
	cmd := exec.Command(m.net.tools.QEMU, m.cfg.args(m.net.tools, m.taps, m.dir)...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.ExtraFiles = theirs
	cmd.Stdout = qemuLog
	cmd.Stderr = io.MultiWriter(qemuLog, &complaint)
	fmt.Fprintf(qemuLog, "%s %s\n", time.Now().Format(time.RFC3339), strings.Join(cmd.Args, " "))

	m.console.attach(serialConn, "[lab] power on")
	if err := m.net.StartCommand(cmd); err != nil {
		qmpConn.Close()
		serialConn.Close()
		qmpLog.Close()
		tpmOff()
		m.console.attach(nil, "[lab] power off")
		return err
	}
	for _, f := range theirs {
		f.Close() // or the stream would not end with QEMU
	}
	r := &run{cmd: cmd, done: make(chan struct{})}
	q, err := dialQMP(ctx, qmpConn, qmpLog, m.observe)
	r.qmp = q
	if err == nil {
		m.mu.Lock()
		m.run = r
		m.mu.Unlock()
		m.observe(Event{At: time.Now(), Name: PowerOn})
		m.net.log.Info("machine on", "machine", m.cfg.Name, "firmware", m.cfg.Firmware.String(), "pid", cmd.Process.Pid)
	} else {
		cmd.Process.Kill()
	}
	go func() {
		defer close(r.done)
		defer qmpLog.Close()
		_, _ = io.Copy(m.console, serialConn)
		// The stream ends with QEMU. A copy that ended because the log could not
		// be written must not leave a machine that nobody hears.
		cmd.Process.Kill()
		<-q.ended
		status := cmd.Wait()
		tpmOff()
		qmpConn.Close()
		serialConn.Close()
		m.console.attach(nil, "[lab] power off")
		m.ended(r, status)
	}()
	if err != nil {
		<-r.done
		if complaint.text() != "" {
			err = fmt.Errorf("%w: %q", err, complaint.text())
		}
	}
	return err
}

// ended notes that r is over.
func (m *Machine) ended(r *run, status error) {
	m.mu.Lock()
	reason := "exited"
	if r.cut {
		reason = "power cut"
	} else if status == nil {
		reason = "shutdown"
	}
	current := m.run == r
	if current {
		m.run = nil
	}
	m.mu.Unlock()
	if current {
		m.observe(Event{At: time.Now(), Name: PowerOff, Reason: reason})
		m.net.log.Info("machine off", "machine", m.cfg.Name, "why", reason)
	}
}

// PowerOff cuts the power: QEMU is killed, nothing is flushed. It returns when
// the process is gone; a machine that is off stays so.
func (m *Machine) PowerOff() {
	m.power.Lock()
	defer m.power.Unlock()
	m.cutPower()
}

func (m *Machine) cutPower() {
	m.mu.Lock()
	r := m.run
	if r != nil {
		r.cut = true
	}
	m.mu.Unlock()
	if r != nil {
		r.cmd.Process.Kill()
		<-r.done
	}
}

// Wait returns nil when the machine is off, whatever switched it off.
func (m *Machine) Wait(ctx context.Context) error {
	r := m.current()
	if r == nil {
		return nil
	}
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until %s is off: %w", m.cfg.Name, context.Cause(ctx))
	}
}

// Reset presses the reset button: no power cut, no warning to the software.
func (m *Machine) Reset(ctx context.Context) error { return m.command(ctx, "system_reset", nil) }

// SetLink pulls (false) or plugs in (true) the cable of an interface, by its
// index in the config. A machine that is switched on has all cables plugged in.
func (m *Machine) SetLink(ctx context.Context, nic int, up bool) error {
	return m.command(ctx, "set_link", map[string]any{"name": fmt.Sprintf("nic%d", nic), "up": up})
}

// PullDisk takes a disk out of the running machine, by its index in the config.
// Of the buses only SCSI lets go of one at once.
func (m *Machine) PullDisk(ctx context.Context, disk int) error {
	return m.command(ctx, "device_del", map[string]any{"id": diskDevice(disk)})
}

func (m *Machine) command(ctx context.Context, name string, arguments any) error {
	r := m.current()
	if r == nil {
		return fmt.Errorf("tell %s %s: the machine is off", m.cfg.Name, name)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("QEMU does not answer"))
	defer cancel()
	if err := r.qmp.command(ctx, name, arguments); err != nil {
		return fmt.Errorf("tell %s: %w", m.cfg.Name, err)
	}
	return nil
}

func (m *Machine) observe(e Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, e)
	close(m.changed)
	m.changed = make(chan struct{})
}

// Events yields everything that has happened to the machine since it was made
// and then what happens, until ctx ends or the network is closed.
func (m *Machine) Events(ctx context.Context) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for next := 0; ; {
			m.mu.Lock()
			events, changed, closed := m.events[next:], m.changed, m.closed
			m.mu.Unlock()
			next += len(events)
			for _, e := range events {
				if !yield(e) {
					return
				}
			}
			if closed && len(events) == 0 {
				return
			}
			if len(events) > 0 {
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

// WaitEvent returns the first event of that name whose time is not before
// since, waiting for it when it has not happened yet.
//
// SeaBIOS follows a reset with one to several resets of its own within some
// 200 ms, so the reboot of a BIOS machine is more than one Reset event. The
// first is the one to time.
func (m *Machine) WaitEvent(ctx context.Context, name string, since time.Time) (Event, error) {
	for e := range m.Events(ctx) {
		if e.Name == name && !e.At.Before(since) {
			return e, nil
		}
	}
	err := context.Cause(ctx)
	if err == nil {
		err = errClosed
	}
	return Event{}, fmt.Errorf("wait for %s of %s: %w", name, m.cfg.Name, err)
}

// close is the network's: off, and no more readers.
func (m *Machine) close() {
	m.power.Lock()
	defer m.power.Unlock()
	m.cutPower()
	m.mu.Lock()
	m.closed = true
	close(m.changed)
	m.changed = make(chan struct{})
	console := m.console
	m.mu.Unlock()
	if console != nil { // else NewMachine is still at work and sees closed
		console.close()
		m.serial.Close()
	}
}

// socketPair connects us to a child without a name in the file system, whose
// length sun_path would limit to 107 bytes.
func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "ours")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "theirs")
	if ours, err = net.FileConn(f); err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return ours, theirs, nil
}

// lastLine keeps the newest line that has something on it, for errors.
type lastLine struct {
	mu   sync.Mutex // guards what follows
	line []byte
}

// maxComplaint bounds a line kept.
const maxComplaint = 500

func (l *lastLine) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := strings.TrimSpace(string(b)); s != "" {
		s = s[strings.LastIndexByte(s, '\n')+1:]
		l.line = []byte(s[:min(len(s), maxComplaint)])
	}
	return len(b), nil
}

func (l *lastLine) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.line)
}
