package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/internal/embedetcd"
	"github.com/lpmos/lpmos/internal/sim"
	"github.com/lpmos/lpmos/test/fixture"
)

const (
	megabyte = 1_000_000
	region   = "dc1"
	seed     = 42
)

var scenarios = []scenario{
	{
		Name: "own", Title: "1,000 clients, each on its own of 1,000 tasks; 20 see all; 10 stalled", Machines: 1000, Clients: 1000, All: 20, Stalled: 10,
		Ramp: 25 * time.Second, Install: 80 * time.Second, Every: 2 * time.Second,
		P99: 250 * time.Millisecond, Evicted: 15 * time.Second, RSSGrowth: 150 * megabyte,
	}, {
		Name: "many", Title: "10,000 clients on one replica, ten on each of 1,000 tasks; 20 see all; 10 stalled", Machines: 1000, Clients: 10_000, All: 20, Stalled: 10, Beside: true,
		Ramp: 25 * time.Second, Install: 80 * time.Second, Every: 2 * time.Second,
		P99: time.Second, Evicted: 15 * time.Second, RSS: 300 * megabyte,
	},
}

var fanouts = []fanout{
	{
		Name: "fanout-1000", Title: "the hub alone: 20 messages/s to each of 1,000 clients", Clients: 1000, Rate: 20, Seconds: 20,
		Peer: [3]string{"10 ms (Centrifugo 6)", "18 ms (Centrifugo 6)", ""}, P50: 10 * time.Millisecond, P99: 18 * time.Millisecond,
	}, {
		Name: "fanout-10000", Title: "the hub alone: 2 messages/s to each of 10,000 clients", Clients: 10_000, Rate: 2, Seconds: 20,
		Peer: [3]string{"73 ms (Centrifugo 6)", "147 ms (Centrifugo 6)", "525 MB (Centrifugo 6)"}, P50: 73 * time.Millisecond, P99: 147 * time.Millisecond, RSS: 525 * megabyte,
	},
}

func main() {
	bin := flag.String("bin", "bin", "where the programs are")
	out := flag.String("out", "test-artifacts/load", "where the results go")
	only := flag.String("only", "", "scenarios by name, separated by commas: own, many, fanout-1000, fanout-10000 (default: all)")
	keep := flag.String("keep", "", "keep the programs' data in this directory")
	hubServer := flag.Int("hub-server", 0, "be the hub of a fan-out, with so many messages a second (used by this program itself)")
	etcdDir := flag.String("etcd", "", "be an etcd with its data in this directory (used by this program itself)")
	hubSeconds := flag.Int("hub-seconds", 20, "for so long")
	flag.Parse()
	var err error
	switch {
	case *hubServer > 0:
		err = serveHub(*hubServer, *hubSeconds, os.Stdin, os.Stdout)
	case *etcdDir != "":
		err = serveEtcd(*etcdDir)
	default:
		err = run(*bin, *out, *only, *keep)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(bin, out, only, keep string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	files, err := raiseFiles(24_000)
	if err != nil {
		return err
	}
	wanted := func(name string) bool { return only == "" || slices.Contains(strings.Split(only, ","), name) }
	say := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
	}
	var results []*result
	for _, f := range fanouts {
		if !wanted(f.Name) {
			continue
		}
		if need := uint64(f.Clients) + 500; files < need {
			say("%s left out: it needs %d open files, and the system allows %d", f.Name, need, files)
			continue
		}
		say("%s", f.Title)
		r, err := f.run(ctx, say)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		fmt.Println(r.table())
		results = append(results, r)
	}
	for _, sc := range scenarios {
		if !wanted(sc.Name) {
			continue
		}
		if need := uint64(sc.Clients) + 500; files < need {
			say("%s left out: it needs %d open files, and the system allows %d", sc.Name, need, files)
			continue
		}
		say("%s", sc.Title)
		r, err := onSite(ctx, bin, keep, sc, say)
		if err != nil {
			return fmt.Errorf("%s: %w", sc.Name, err)
		}
		fmt.Println(r.table())
		results = append(results, r)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	text, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(out, "results.json"), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	page := filepath.Join(out, "report.html")
	if err := os.WriteFile(page, report(results), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	fmt.Println("plots:", page)
	failed := 0
	for _, r := range results {
		for _, v := range r.Verdicts {
			if !v.OK {
				failed++
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d aims were missed", failed)
	}
	return nil
}

// onSite starts the programs, drives a scenario against them and ends them.
func onSite(ctx context.Context, bin, keep string, sc scenario, say func(string, ...any)) (*result, error) {
	dir := keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "lpmos-load-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
	}
	dir = filepath.Join(dir, sc.Name)
	var addrs [3]string
	for i := range addrs {
		var err error
		if addrs[i], err = freeAddr(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	endpoint, socket := "embedded", filepath.Join(dir, "control", "etcd", "etcd.sock")
	etcd := &process{name: "etcd", cmd: &exec.Cmd{Process: &os.Process{Pid: -1}}}
	if sc.Beside {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		if etcd, err = start(ctx, self, "-etcd="+filepath.Join(dir, "etcd")); err != nil {
			return nil, err
		}
		defer etcd.stop(syscall.SIGKILL)
		socket = filepath.Join(dir, "etcd", "etcd.sock")
		endpoint = "unix://" + socket
		if err := waitFor(ctx, "etcd", func() error { _, err := os.Stat(socket); return err }); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, &etcd.said)
		}
	}
	control, err := start(ctx, filepath.Join(bin, "control-plane"), "--etcd-endpoints="+endpoint, "--listen-addr="+addrs[0], "--data-dir="+filepath.Join(dir, "control"), "--log-level=warn")
	if err != nil {
		return nil, err
	}
	defer control.stop(syscall.SIGKILL)
	t := &target{addr: addrs[0], region: region}
	if t.api, err = apiclient.New("http://"+addrs[0], nil); err != nil {
		return nil, err
	}
	if err := waitFor(ctx, "the control plane", func() error { return t.api.Ready(ctx) }); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, &control.said)
	}
	token, err := os.ReadFile(filepath.Join(dir, "control", controlplane.LocalTokenFile))
	if err != nil {
		return nil, err
	}
	t.token = strings.TrimSpace(string(token))
	t.api.UseToken(t.token)
	if t.image, err = fixture.Placeholder(filepath.Join(dir, "fixture"), "simulated", "1", "Simulated 1"); err != nil {
		return nil, err
	}
	if err := fixture.Publish(ctx, t.api, filepath.Join(dir, "fixture"), t.image); err != nil {
		return nil, err
	}
	regional, err := start(ctx, filepath.Join(bin, "regional-client"), "--region-id="+region, "--etcd-endpoints=unix://"+socket,
		"--control-plane-url=http://"+addrs[0], "--boot-addr="+addrs[1], "--agent-addr="+addrs[2], "--tftp-addr=off", "--data-dir="+filepath.Join(dir, "region"), "--log-level=warn")
	if err != nil {
		return nil, err
	}
	defer regional.stop(syscall.SIGKILL)
	if err := waitFor(ctx, "the region", func() error {
		regions, err := t.api.Regions(ctx)
		if err != nil || len(regions) != 1 || regions[0].Status != "online" {
			return fmt.Errorf("regions are %+v, %v", regions, err)
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, &regional.said)
	}
	fleet, err := sim.New(sim.Config{RegionURL: "http://" + addrs[1], Machines: sc.Machines, Seed: seed}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	t.macs = fleet.MACs()
	machines := &process{name: "lpmos sim", cmd: &exec.Cmd{Process: &os.Process{Pid: -1}}}
	t.machines = func(ctx context.Context) error {
		p, err := start(ctx, filepath.Join(bin, "lpmos"), "sim", "--region-url=http://"+addrs[1], fmt.Sprintf("--machines=%d", sc.Machines), fmt.Sprintf("--seed=%d", seed),
			"--ramp="+sc.Ramp.String(), "--install="+sc.Install.String(), fmt.Sprintf("--rate=%g", 1/sc.Every.Seconds()), "--stamp")
		if err != nil {
			return err
		}
		machines = p
		for tick := time.NewTicker(10 * time.Second); ; {
			select {
			case <-p.gone:
				say("%s", strings.ReplaceAll(strings.TrimSpace(p.said.String()), "\n", "\n          "))
				return p.ended()
			case <-tick.C:
				lines := strings.Split(strings.TrimSpace(p.said.String()), "\n")
				say("%s", lines[len(lines)-1])
			}
		}
	}
	self := &process{name: "load", cmd: &exec.Cmd{Process: &os.Process{Pid: os.Getpid()}}}
	t.observe = func() observation {
		return observation{control: control.usage(), etcd: etcd.usage(), region: regional.usage(), machines: machines.usage(), self: self.usage(), goroutines: goroutines("http://" + addrs[0])}
	}
	r, err := sc.drive(ctx, t, say)
	if err != nil {
		return nil, fmt.Errorf("%w\ncontrol plane: %s\nregion: %s", err, &control.said, &regional.said)
	}
	for _, p := range []*process{control, regional} {
		if said := strings.TrimSpace(p.said.String()); said != "" {
			say("%s said: %s", p.name, lpmos.Shorten(said, 2000))
		}
	}
	if err := regional.stop(syscall.SIGTERM); err != nil {
		return nil, err
	}
	// The stacks say which goroutines the clients left behind.
	r.Left = 0
	for _, g := range control.dump() {
		if strings.Contains(g, "controlplane/hub.") && !strings.Contains(g, "hub.(*Hub).Run") {
			r.Left++
		}
	}
	r.verdicts()
	return r, nil
}

// serveEtcd is an etcd as `lpmos up` has it, in a process of its own.
func serveEtcd(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	e, err := embedetcd.Start(ctx, embedetcd.Config{Dir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case err = <-e.Err():
	}
	return errors.Join(err, e.Close())
}

func waitFor(ctx context.Context, what string, ready func() error) error {
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if err = ready(); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s is not ready after a minute: %w", what, err)
}
