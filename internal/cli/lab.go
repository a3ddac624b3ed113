package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/bootimage"
	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/internal/lab"
	"github.com/lpmos/lpmos/internal/osimage"
	"github.com/lpmos/lpmos/internal/region"
	"github.com/lpmos/lpmos/internal/service"
	"github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/internal/version"
)

type labConfig struct {
	firmware string
	machines int
	os       string
	auto     bool
	agent    string
	cache    string
	listen   string
	keep     string
	disk     int64
	timeout  time.Duration
	verbose  bool

	trials    []trial       // of the machines, in turns
	verifying time.Duration // for a first boot; 0 is the site's own
	// image brings what is installed to the directory of images; nil builds os.
	image func(ctx context.Context, dir string) (lpmos.Image, error)
	// ended gets the machines at the end, however that is; nil prints a report.
	ended func([]*labMachine)
}

func (a *app) labCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "lab", Short: "Provision virtual machines on a private network"}
	var cfg labConfig
	up := &cobra.Command{
		Use: "up", Short: "Provision a blank virtual server before your eyes",
		Long: `Lab up starts a site and blank virtual machines on a bridge in a network namespace
of its own, and provisions them: firmware, DHCP, iPXE, agent, approval, install,
reboot from the machine's own disk, call home. Nothing on that path is simulated
but the machine. Everything is gone when it ends, also after Ctrl-C.

It needs root, QEMU and Debian's packages ("make lab" installs what is missing).`,
		Example: `  lpmos lab up                          # approve in the browser
  lpmos lab up --auto --firmware uefi   # approves by itself, prints the phases
  lpmos lab up --os tiny --machines 2`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.lab(cmd.Context(), cfg) },
	}
	f := up.Flags()
	f.StringVar(&cfg.firmware, "firmware", "bios", "bios, uefi or uefi-http; several separated by commas alternate")
	f.IntVar(&cfg.machines, "machines", 1, "how many machines at once")
	f.StringVar(&cfg.os, "os", "debian-12", "debian-12, debian-13 or tiny")
	f.BoolVar(&cfg.auto, "auto", false, "approve without a person")
	f.StringVar(&cfg.agent, "agent", "bin/agent", "the agent, a static binary")
	f.StringVar(&cfg.cache, "cache-dir", cacheDir(), "where packages and finished builds are kept")
	f.StringVar(&cfg.listen, "listen-addr", "127.0.0.1:8080", "web interface and API; the next free port if it is taken")
	f.StringVar(&cfg.keep, "keep", "", "directory for disks and serial logs, kept at the end")
	f.Int64Var(&cfg.disk, "disk", 8, "size of each machine's disk in GB")
	f.DurationVar(&cfg.timeout, "timeout", 60*time.Minute, "give up after")
	f.BoolVarP(&cfg.verbose, "verbose", "v", false, "show the services' log")
	cmd.AddCommand(up)
	return cmd
}

func (a *app) lab(ctx context.Context, cfg labConfig) error {
	for f := range strings.SplitSeq(cfg.firmware, ",") {
		kinds := map[string]lab.Firmware{"bios": lab.BIOS, "uefi": lab.UEFI, "uefi-http": lab.UEFIHTTP}
		kind, ok := kinds[strings.ToLower(strings.TrimSpace(f))]
		if !ok {
			return usageError{fmt.Errorf("--firmware is none of bios, uefi, uefi-http (got %q)", f)}
		}
		cfg.trials = append(cfg.trials, trial{install: kind, run: kind})
	}
	return a.runLab(ctx, cfg)
}

// runLab is a lab from nothing to its end.
func (a *app) runLab(ctx context.Context, cfg labConfig) error {
	if cfg.machines < 1 || cfg.machines > 64 {
		return usageError{fmt.Errorf("--machines is not from 1 to 64")}
	}
	if os.Geteuid() != 0 {
		return errors.New("the lab makes a network namespace and needs root: sudo -E lpmos lab up")
	}
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("the lab's machines are amd64, and this host is %s", runtime.GOARCH)
	}
	log := slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if cfg.verbose {
		log = slog.New(slog.NewTextHandler(a.err, nil))
	}
	ctx, cancel := service.Signals(ctx, quietLog)
	defer cancel()
	ctx, cancelTimeout := context.WithTimeoutCause(ctx, cfg.timeout, fmt.Errorf("the lab did not finish within %s (--timeout)", cfg.timeout))
	defer cancelTimeout()

	out := &labOut{w: a.aside()}
	run := &labRun{app: a, cfg: cfg, out: out}

	// What can go wrong at once is done first: a build takes minutes.
	dir, err := labDir(cfg.keep)
	if err != nil {
		return err
	}
	if cfg.keep == "" {
		defer os.RemoveAll(dir)
	}
	network, err := lab.NewNetwork(ctx, lab.Config{Dir: filepath.Join(dir, "machines")}, log)
	if err != nil {
		return err
	}
	defer network.Close()
	listen, err := freeAddr(cfg.listen)
	if err != nil {
		return err
	}
	sc := site.Config{DataDir: filepath.Join(dir, "site"), Region: region.Config{
		RegionID: "lab", Interface: lab.DefaultSegment.Bridge, DHCP: "server", DHCPRange: "10.77.0.100-10.77.0.199", Do: network.Do,
	}}
	sc.ControlPlane.ListenAddr, sc.ControlPlane.SiteName, sc.ControlPlane.Deadlines.VerifyingDeadline = listen, "lab", cfg.verifying
	s, err := site.New(ctx, sc, log)
	if err != nil {
		return err
	}
	run.network, run.site, run.dir = network, s, dir
	taken := ""
	if listen != cfg.listen {
		taken = ", since " + cfg.listen + " is taken"
	}
	out.step("%-12s %s%s", "site", s.ControlPlane.URL(), taken)
	err = service.Run(ctx, s.Run, func(ctx context.Context) error {
		b := labBuild{bootDir: filepath.Join(cfg.cache, "bootimage"), imageDir: filepath.Join(cfg.cache, "images")}
		if err := b.make(ctx, cfg, log, out); err != nil {
			return err
		}
		if err := b.publish(ctx, s); err != nil {
			return err
		}
		run.img = b.image
		return run.provision(ctx)
	})
	if ctx.Err() != nil && !run.done {
		// What broke off because of it is not the reason.
		if err = context.Cause(ctx); errors.Is(err, context.Canceled) {
			err = errors.New("stopped; everything the lab started is gone")
		}
	}
	return err
}

// labDir makes the lab's directory: keep, which must be empty, or a temporary one.
func labDir(keep string) (string, error) {
	if keep == "" {
		dir, err := os.MkdirTemp("", "lpmos-lab-")
		if err != nil {
			return "", fmt.Errorf("make lab directory: %w", err)
		}
		return dir, nil
	}
	if err := os.MkdirAll(keep, 0o700); err != nil {
		return "", fmt.Errorf("make lab directory: %w", err)
	}
	if old, err := os.ReadDir(keep); err != nil || len(old) > 0 {
		return "", errors.Join(err, usageError{fmt.Errorf("--keep %s is not empty: the lab begins with blank disks", keep)})
	}
	return keep, nil
}

// labOut is the terminal, which several parts of a lab share. Each line that it
// is given arrives whole.
type labOut struct {
	mu sync.Mutex // held while a line is written
	w  io.Writer
}

func (o *labOut) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(b)
}

// step says what happens now.
func (o *labOut) step(format string, args ...any) {
	fmt.Fprintf(o, "%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}

// about returns a function that says a step of one of several things at once,
// each only once.
func (o *labOut) about(what string) func(string) {
	var last string
	return func(step string) {
		if step != last {
			last = step
			o.step("%-12s %s", what, step)
		}
	}
}

// labBuild is what machines boot and what is installed on them.
type labBuild struct {
	bootDir, imageDir string
	boot              lpmos.BootImage
	image             lpmos.Image
}

// make builds both at once, or finds them in the cache. They take turns with
// the network and the processors: what each waits for is seldom the same.
func (b *labBuild) make(ctx context.Context, cfg labConfig, log *slog.Logger, out *labOut) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	build := func(what string, f func(say func(string)) (size int64, err error)) {
		wg.Go(func() {
			began, say := time.Now(), out.about(what)
			size, err := f(say)
			if err != nil {
				cancel(err)
				return
			}
			say(fmt.Sprintf("ready: %s, after %.1f s", lpmos.FormatBytes(size), time.Since(began).Seconds()))
		})
	}
	build("boot image", func(say func(string)) (int64, error) {
		var err error
		b.boot, _, err = bootimage.Build(ctx, bootimage.Config{OutDir: b.bootDir, AgentPath: cfg.agent, CacheDir: cfg.cache, Version: version.String()}, log, say)
		return b.boot.Kernel.Bytes + b.boot.Initrd.Bytes, err
	})
	build(cfg.os, func(say func(string)) (int64, error) {
		var err error
		if cfg.image != nil {
			b.image, err = cfg.image(ctx, b.imageDir)
			return b.image.StoredBytes, err
		}
		b.image, err = osimage.Build(ctx, osimage.Config{Name: cfg.os, OutDir: b.imageDir, CacheDir: cfg.cache}, log, func(s string, _ int) { say(s) })
		return b.image.StoredBytes, err
	})
	wg.Wait()
	return context.Cause(ctx)
}

// freeAddr takes addr, or the next port above it that is free.
func freeAddr(addr string) (string, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "", usageError{fmt.Errorf("--listen-addr is not like 127.0.0.1:8080: %w", err)}
	}
	for port := ap.Port(); port < ap.Port()+100; port++ {
		try := netip.AddrPortFrom(ap.Addr(), port).String()
		if l, err := net.Listen("tcp", try); err == nil {
			l.Close()
			return try, nil
		}
	}
	return "", fmt.Errorf("no free port from %s on", addr)
}

// publish puts what was built into the site's catalogue.
func (b *labBuild) publish(ctx context.Context, s *site.Site) error {
	for _, blob := range bootBlobs(b.boot) {
		if err := s.ControlPlane.Blobs().PutFile(ctx, blob, filepath.Join(b.bootDir, "blobs", blob.SHA256)); err != nil {
			return err
		}
	}
	if err := s.ControlPlane.PublishBootImage(ctx, b.boot); err != nil {
		return err
	}
	c, err := apiclient.New(s.ControlPlane.URL(), nil)
	if err != nil {
		return err
	}
	c.UseToken(s.ControlPlane.LocalToken("lab"))
	if err := waitReady(ctx, c); err != nil {
		return err
	}
	if err := uploadImage(ctx, c, b.imageDir, b.image, func(string) {}); err != nil {
		return err
	}
	// The catalogue is read from a view that hears of a change a moment after it
	// was stored.
	return poll(ctx, func() (bool, error) {
		images, err := c.Images(ctx)
		if err != nil || !slices.ContainsFunc(images, func(i lpmos.Image) bool { return i.Digest == b.image.Digest }) {
			return false, err
		}
		regions, err := c.Regions(ctx)
		return len(regions) > 0 && regions[0].Status == "online", err
	})
}

func poll(ctx context.Context, done func() (bool, error)) error {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

type labRun struct {
	*app
	cfg     labConfig
	network *lab.Network
	site    *site.Site
	img     lpmos.Image
	dir     string
	out     *labOut
	done    bool
}

// labMachine is one machine and when what happened to it.
type labMachine struct {
	name  string
	trial trial
	mac   lpmos.MAC
	vm    *lab.Machine
	task  string
	marks map[string]time.Time
	ended lpmos.Task // as it was last seen
	said  string     // the last line of its console
}

func (r *labRun) provision(ctx context.Context) error {
	url := r.site.ControlPlane.URL()
	c, err := apiclient.New(url, nil)
	if err != nil {
		return err
	}
	c.UseToken(r.site.ControlPlane.LocalToken("lab"))
	var machines []*labMachine
	for i := range r.cfg.machines {
		m := &labMachine{name: fmt.Sprintf("lab-%02d", i+1), trial: r.cfg.trials[i%len(r.cfg.trials)], mac: lpmos.MAC{0x52, 0x54, 0, 0x77, 1, byte(i + 1)}, marks: map[string]time.Time{}}
		spec := lpmos.Spec{RegionID: "lab", TargetMAC: m.mac, OSType: r.img.OS, OSVersion: r.img.Version, Arch: r.img.Arch, Hostname: m.name}
		if m.task, err = c.CreateTask(ctx, spec, ""); err != nil {
			return err
		}
		machines = append(machines, m)
	}
	// The link works once; whoever opens it is signed in for everything after.
	first := "/tasks/" + machines[0].task
	if len(machines) > 1 {
		first = "/tasks"
	}
	fmt.Fprintf(r.out, "\n  Watch it live (this link signs you in, once):\n  %s&return=%s\n\n", r.site.ControlPlane.SignInLink(), first)
	screen := NewScreen(r.app.aside())
	if len(machines) > 1 {
		screen.Labels()
	}
	for _, m := range machines {
		m.marks["power on"] = time.Now()
		m.vm, err = r.network.Start(ctx, lab.MachineConfig{
			Name: m.name, Firmware: m.trial.install, NICs: []lab.NIC{{MAC: m.mac}},
			Disks: []lab.Disk{{Path: filepath.Join(r.dir, m.name+".disk"), SizeBytes: r.cfg.disk * 1_000_000_000}},
		})
		if err != nil {
			return err
		}
		r.out.step("%s is on: %s firmware, blank disk of %d GB, serial log %s", m.name, m.trial.install, r.cfg.disk, filepath.Join(m.vm.Dir(), "serial.log"))
	}
	err = r.watch(ctx, c, screen, machines)
	if r.cfg.ended != nil {
		for _, m := range machines {
			if last := m.vm.Console().Tail(1); len(last) > 0 {
				m.said = strings.TrimSpace(last[0])
			}
		}
		r.done = err == nil
		r.cfg.ended(machines)
		return err
	}
	if err != nil {
		return err
	}
	return r.report(ctx, c, machines)
}

// watch follows the machines to their ends. An error is the lab's own: a task
// that fails is none. What ended the lab for all of them is the reason, and not
// what broke off because of it.
func (r *labRun) watch(ctx context.Context, c *apiclient.Client, screen *Screen, machines []*labMachine) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	errs := make([]error, len(machines))
	for i, m := range machines {
		wg.Go(func() {
			m.ended, errs[i] = Follow(ctx, c, m.task, screen, func(t lpmos.Task) {
				if err := r.seen(ctx, c, m, t); err != nil {
					cancel(fmt.Errorf("%s: %w", m.name, err))
				}
			})
			m.marks["ended"] = time.Now()
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// seen marks what happened to a machine and, where nobody else does, approves.
func (r *labRun) seen(ctx context.Context, c *apiclient.Client, m *labMachine, t lpmos.Task) error {
	if t.Status == lpmos.Failed {
		for _, l := range m.vm.Console().Tail(15) {
			fmt.Fprintln(r.err, "  console:", plain(l))
		}
	}
	if t.Status == lpmos.Verifying && m.trial.run != m.trial.install {
		return r.switchOver(ctx, m)
	}
	if t.Status != lpmos.AwaitingApproval || t.Plan == nil {
		return nil
	}
	if why := t.Plan.Problem; why != "" {
		if r.cfg.auto {
			return fmt.Errorf("the plan cannot be carried out: %s", why)
		}
		return nil // the page says so
	}
	if !r.cfg.auto {
		fmt.Fprintf(r.out, "\n  Look at what would be erased, and approve:\n  %s/tasks/%s/approve\n  or here:\n  %s task approve %s --server %s --token-file %s --plan %s\n\n",
			c.Server(), t.ID, os.Args[0], t.ID[:8], c.Server(), filepath.Join(r.dir, "site", controlplane.LocalTokenFile), t.Plan.Digest)
		return nil
	}
	_, err := c.Decide(ctx, t.ID, true, t.Plan.Digest, "approved by the lab (--auto)")
	if errors.Is(err, lpmos.ErrConflict) {
		return nil // a person was quicker
	}
	return err
}

// switchOver starts the installed system of a machine by another firmware,
// from its disk.
func (r *labRun) switchOver(ctx context.Context, m *labMachine) error {
	m.vm.PowerOff()
	cfg := m.vm.Config()
	cfg.Name, cfg.Firmware, cfg.NVRAMOrder = m.name+"-run", m.trial.run, true
	vm, err := r.network.Start(ctx, cfg)
	if err != nil {
		return err
	}
	m.vm = vm
	r.out.step("%s is on again, by %s", m.name, m.trial.run)
	return nil
}

// phases are what is timed, in order: the name, and the event that marks it.
var phases = []struct {
	name  string
	cause lpmos.Cause
}{
	{"hardware reported", lpmos.CauseHardwareReported}, {"approved", lpmos.CauseApproved}, {"may write", lpmos.CausePermitGranted},
	{"all written", lpmos.CauseResultReported}, {"called home from its own disk", lpmos.CauseCalledHome},
}

func (r *labRun) report(ctx context.Context, c *apiclient.Client, machines []*labMachine) error {
	var failed []string
	for _, m := range machines {
		events, err := c.Events(ctx, m.task)
		if err != nil {
			return err
		}
		marks := []lab.Mark{{Name: "power on", At: m.marks["power on"]}}
		for _, p := range phases {
			mark := lab.Mark{Name: p.name}
			for _, e := range events {
				if e.Cause == p.cause {
					mark.At = e.At
				}
			}
			marks = append(marks, mark)
		}
		fmt.Fprintf(r.out, "\n%s  %s firmware  %s %s  %s\n", m.name, m.trial.run, m.ended.OSType, m.ended.OSVersion, m.ended.Status)
		if err := lab.WritePhases(r.out, marks); err != nil {
			return err
		}
		if m.ended.Status != lpmos.Completed {
			failed = append(failed, m.name)
		}
	}
	r.done = true
	if len(failed) > 0 {
		return fmt.Errorf("%s did not complete", strings.Join(failed, ", "))
	}
	fmt.Fprintf(r.out, "\nDone. %s.\n", count(len(machines), "machine runs from its own disk", "machines run from their own disks"))
	return nil
}
