package demo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agent/callhome"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// DefaultMAC is the machine's address when none is given: a locally
// administered one that is always the same.
var DefaultMAC = lpmos.MustMAC("02:4c:50:4d:4f:53")

// Config says which machine is played where.
type Config struct {
	RegionURL string // the boot listener, http://127.0.0.1:8081
	MAC       lpmos.MAC
	Duration  time.Duration // an installation takes at least this long, so that a person can watch
	Pauses    agent.Pauses  // zero values are short ones
	Version   string        // of the agent
	// Hardware is what the machine reports; nil means a small virtual server.
	// One of its NICs must have MAC.
	Hardware *lpmos.Hardware
}

// Machine is a played server.
type Machine struct {
	cfg      Config
	out      io.Writer
	level    slog.Leveler
	hardware lpmos.Hardware
	disk     disk
}

// New makes a machine. What it logs goes to out.
func New(cfg Config, out io.Writer, level slog.Leveler) *Machine {
	if cfg.MAC.IsZero() {
		cfg.MAC = DefaultMAC
	}
	for _, d := range []struct {
		to *time.Duration
		v  time.Duration
	}{{&cfg.Pauses.Reboot, 3 * time.Second}, {&cfg.Pauses.Again, 3 * time.Second}, {&cfg.Pauses.Report, 15 * time.Second}, {&cfg.Pauses.ProgEvery, time.Second}} {
		if *d.to == 0 {
			*d.to = d.v
		}
	}
	m := &Machine{cfg: cfg, out: out, level: level, hardware: Hardware(cfg.MAC, cfg.Version)}
	if cfg.Hardware != nil {
		m.hardware = *cfg.Hardware
		m.hardware.BootMAC = cfg.MAC
	}
	return m
}

// Run boots the machine until its own system has called home, or until it has
// no system and the region wants it to boot one.
func (m *Machine) Run(ctx context.Context) error {
	log := slog.New(slog.NewTextHandler(m.out, &slog.HandlerOptions{Level: m.level}))
	pause := agentapi.Backoff{Min: time.Second, Max: 15 * time.Second}
	log.Info("power on", "mac", m.cfg.MAC, "region", m.cfg.RegionURL)
	for {
		cfg, err := m.boot(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrLocal) && m.disk.installed():
			return m.bootDisk(ctx, log)
		case errors.Is(err, ErrLocal):
			log.Info("the region says: boot your own disk, and this machine's is empty; create a task for it", "mac", m.cfg.MAC)
		case err != nil:
			log.Warn("network boot failed, trying on", "err", err)
		default:
			pause.Reset()
			if err := m.bootAgent(ctx, cfg); err != nil {
				return err
			}
			continue
		}
		if err := pause.Wait(ctx, 0); err != nil {
			return err
		}
	}
}

// bootAgent runs the agent until it reboots.
func (m *Machine) bootAgent(ctx context.Context, cfg agentapi.BootConfig) error {
	logs := agent.NewLogs()
	log := slog.New(slog.NewTextHandler(io.MultiWriter(m.out, logs), &slog.HandlerOptions{Level: m.level}))
	client, err := agent.NewClient(cfg, log)
	if err != nil {
		return fmt.Errorf("read boot configuration: %w", err)
	}
	defer client.Close()
	blobs, err := agentapi.NewBlobs(cfg.BootURL, 0)
	if err != nil {
		return fmt.Errorf("read boot configuration: %w", err)
	}
	installer := &installer{blobs: blobs, disk: &m.disk, duration: m.cfg.Duration, log: log}
	return agent.New(cfg, client, installer, board{m}, nil, m.cfg.Pauses, logs, log).Run(ctx)
}

// bootDisk is the installed system: it calls home, as the real one does.
func (m *Machine) bootDisk(ctx context.Context, log *slog.Logger) error {
	log.Info("booting the installed system", "hostname", m.disk.plan.Effect.Hostname)
	began := time.Now()
	e := &m.disk.plan.Effect
	err := callhome.Post(ctx, m.disk.callhome, func() lpmos.Receipt {
		id := sha256.Sum256([]byte("demo machine-id" + m.disk.marker.TaskID))
		r := e.Promised()
		r.OS, r.Kernel, r.MachineID = m.disk.os+" (demo)", "demo", hex.EncodeToString(id[:16])
		r.Addresses, r.UptimeSec = append(r.Addresses, "127.0.0.1/8"), int64(time.Since(began).Seconds())
		return r
	}, callhome.Patience, log)
	if err != nil {
		return err
	}
	log.Info("the installed system called home; the demo is complete", "task", m.disk.marker.TaskID)
	return nil
}

// board is the machine as the workflow sees it.
type board struct{ *Machine }

func (b board) Collect(context.Context) (*lpmos.Hardware, error) {
	h := b.hardware
	return &h, nil
}

// SetClock does nothing: the clock belongs to the computer this runs on.
func (b board) SetClock(time.Time) error { return nil }

// Reboot does nothing: Run boots again when the agent has returned.
func (b board) Reboot(string) {}

// Hardware is a small virtual server, the same for the same address.
func Hardware(mac lpmos.MAC, version string) lpmos.Hardware {
	sum := sha256.Sum256([]byte("lpmos demo machine " + mac.String()))
	h := hex.EncodeToString(sum[:16])
	uuid := h[:8] + "-" + h[8:12] + "-4" + h[13:16] + "-8" + h[17:20] + "-" + h[20:]
	serial := strings.ToUpper(h[:8])
	return lpmos.Hardware{
		BootMode: "bios",
		System:   lpmos.System{Manufacturer: "QEMU", Product: "Standard PC (Q35 + ICH9, 2009)", Version: "demo", Serial: "DEMO-" + serial, UUID: uuid},
		Chassis:  lpmos.Chassis{Manufacturer: "QEMU", Type: 1},
		BIOS:     lpmos.BIOS{Vendor: "SeaBIOS", Version: "demo"},
		CPU:      lpmos.CPU{Model: "LPMOS demo CPU", Architecture: "amd64", Sockets: 1, Cores: 4, Threads: 8},
		Memory:   lpmos.Memory{TotalBytes: 16 << 30},
		Disks: []lpmos.Disk{{Device: "/dev/vda", SizeBytes: 64 << 30, SectorBytes: 512, PhysicalBytes: 512,
			Model: "LPMOS demo disk", Serial: "DEMODISK" + serial, Transport: "virtio"}},
		NICs:    []lpmos.NIC{{Name: "eth0", MAC: mac, Driver: "virtio_net", Link: true, SpeedMbps: 1000, Boot: true, PCI: "0000:00:03.0"}},
		Kernel:  "demo",
		Agent:   version,
		BootMAC: mac,
	}
}
