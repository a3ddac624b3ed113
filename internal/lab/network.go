package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Config describes a network. Its zero value is one segment and files that go
// away with the network.
type Config struct {
	// Name appears in log lines; default "lab".
	Name string

	// Segments are separate Ethernets; default one, DefaultSegment. There is
	// no forwarding between them: whoever wants a router, runs one.
	Segments []Segment

	// Dir takes one directory per machine: serial.log, qmp.log, qemu.log and
	// the UEFI variables. It is made when missing and stays. When empty, a
	// temporary directory is used and removed by Close.
	Dir string

	// Tools default to what FindTools finds.
	Tools Tools
}

// A Segment is one bridge.
type Segment struct {
	Bridge string         // link name, at most 15 bytes
	Hosts  []netip.Prefix // our own addresses on it, with the length of their subnet
}

// DefaultSegment is bridge br0 where we are 10.77.0.1/24 and, beside the
// link-local address that every bridge gets, fd77::1/64.
var DefaultSegment = Segment{Bridge: "br0", Hosts: []netip.Prefix{
	netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("fd77::1/64")}}

// Network is a private Ethernet (or several) with machines on it.
type Network struct {
	name    string
	dir     string
	ownsDir bool
	tools   Tools
	bridges []string
	ns      *namespace
	log     *slog.Logger

	closing sync.Once

	mu       sync.Mutex // guards what follows
	closed   bool
	machines map[string]*Machine
	taps     int         // and peers, made so far; numbers their names
	unwatch  func() bool // stops waiting for the context given to NewNetwork
}

// NewNetwork makes the namespace with its bridges, up and addressed. The end
// of ctx closes the network as Close does.
func NewNetwork(ctx context.Context, cfg Config, log *slog.Logger) (*Network, error) {
	if cfg.Tools == (Tools{}) {
		var err error
		if cfg.Tools, err = FindTools(); err != nil {
			return nil, fmt.Errorf("start lab: %w", err)
		}
	}
	if len(cfg.Segments) == 0 {
		cfg.Segments = []Segment{DefaultSegment}
	}
	if cfg.Name == "" {
		cfg.Name = "lab"
	}
	n := &Network{
		name: cfg.Name, dir: cfg.Dir, ownsDir: cfg.Dir == "", tools: cfg.Tools,
		log: log.With("lab", cfg.Name), machines: make(map[string]*Machine),
	}
	var err error
	if n.ownsDir {
		n.dir, err = os.MkdirTemp("", "lpmos-lab-")
	} else {
		err = os.MkdirAll(n.dir, 0o755)
	}
	if err != nil {
		return nil, fmt.Errorf("make lab directory: %w", err)
	}
	if n.ns, err = newNamespace(); err != nil {
		n.removeDir()
		return nil, err
	}
	if err := n.setUp(ctx, cfg.Segments); err != nil {
		n.Close()
		return nil, fmt.Errorf("set up lab network: %w", err)
	}
	n.mu.Lock()
	n.unwatch = context.AfterFunc(ctx, func() { n.Close() })
	n.mu.Unlock()
	n.log.Info("lab network up", "namespace", n.Namespace(), "bridges", strings.Join(n.bridges, " "))
	return n, nil
}

// sysctls hold for the namespace only. Without duplicate address detection an
// IPv6 address is usable at once instead of a second or two later.
var sysctls = []string{"default/accept_dad", "all/accept_dad"}

func (n *Network) setUp(ctx context.Context, segments []Segment) error {
	err := n.Do(func() error {
		for _, name := range sysctls {
			path := filepath.Join("/proc/sys/net/ipv6/conf", name)
			if err := os.WriteFile(path, []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	batch := []string{"link set lo up"}
	for _, s := range segments {
		if s.Bridge == "" || len(s.Bridge) > 15 || strings.ContainsAny(s.Bridge, "/ \t\n") {
			return fmt.Errorf("bridge name %q is not one to 15 bytes without spaces or slashes", s.Bridge)
		}
		n.bridges = append(n.bridges, s.Bridge)
		// No spanning tree and no forwarding delay, or the first seconds of
		// every boot are lost; no multicast snooping, or router solicitations
		// of a machine that has not joined a group yet go nowhere.
		batch = append(batch, "link add "+s.Bridge+" type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
		for _, p := range s.Hosts {
			nodad := ""
			if p.Addr().Is6() {
				nodad = " nodad"
			}
			batch = append(batch, "addr add "+p.String()+" dev "+s.Bridge+nodad)
		}
		batch = append(batch, "link set "+s.Bridge+" up")
	}
	return n.ip(ctx, batch...)
}

// ip runs iproute2 commands inside the namespace.
func (n *Network) ip(ctx context.Context, batch ...string) error {
	return runIP(ctx, n.tools.IP, n.ns, batch)
}

// runIP runs iproute2 commands inside a namespace, in one process.
func runIP(ctx context.Context, program string, ns *namespace, batch []string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "-batch", "-")
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdin = strings.NewReader(strings.Join(batch, "\n") + "\n")
	cmd.Stdout, cmd.Stderr = &out, &out
	err := ns.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("run ip: %w: %q", err, strings.TrimSpace(out.String()))
	}
	return nil
}

// addTap makes a tap on a bridge for a machine's interface; no bridge means
// the first.
func (n *Network) addTap(ctx context.Context, bridge string) (string, error) {
	if bridge == "" {
		bridge = n.bridges[0]
	}
	n.mu.Lock()
	tap := fmt.Sprintf("tap%d", n.taps)
	n.taps++
	n.mu.Unlock()
	return tap, n.ip(ctx,
		"tuntap add dev "+tap+" mode tap",
		"link set "+tap+" master "+bridge+" up")
}

// Machine returns the machine of that name, or nil.
func (n *Network) Machine(name string) *Machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machines[name]
}

// Close cuts the power of all machines, kills what StartCommand started and
// lets the namespace go; the kernel removes it with its links once the
// callers' own sockets in it are closed too. It may be called more than once
// and returns when the machines' processes are gone.
func (n *Network) Close() error {
	n.closing.Do(func() {
		n.mu.Lock()
		if n.unwatch != nil {
			n.unwatch()
		}
		n.closed = true
		machines := n.machines
		n.machines = nil
		n.mu.Unlock()
		var wg sync.WaitGroup
		for _, m := range machines {
			wg.Go(m.close)
		}
		wg.Wait()
		n.ns.close()
		n.removeDir()
		n.log.Info("lab network down")
	})
	return nil
}

func (n *Network) removeDir() {
	if n.ownsDir {
		if err := os.RemoveAll(n.dir); err != nil {
			n.log.Warn("lab directory stays", "dir", n.dir, "err", err)
		}
	}
}
