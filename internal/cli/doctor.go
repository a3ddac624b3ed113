package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/conf"
	"github.com/lpmos/lpmos/internal/doctor"
	"github.com/lpmos/lpmos/internal/lab"
	"github.com/lpmos/lpmos/internal/ownstore"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/store"
)

type doctorConfig struct {
	interfaceName, dhcp, dataDir, cacheDir string
	listen                                 time.Duration
	etcd                                   conf.Etcd
	lab                                    bool
}

func (a *app) doctorCommand() *cobra.Command {
	var cfg doctorConfig
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check ports, DHCP, clock, TLS, disks, etcd and regions", Args: exactly(0),
		Long: `Doctor looks at what a site needs around it and says what to do about what is
wrong. Nothing is changed. Each check is ok, warn, fail, or skip when it could not
be made; the exit code is 1 when one failed.

Give it the flags that the site is run with. With --interface it asks on that
network which DHCP servers there are, as an ordinary client and as PXE firmware,
and listens for --listen; that needs root. A lease that is offered is not taken.`,
		Example: `  lpmos doctor
  sudo lpmos doctor --interface eth1 --dhcp proxy
  lpmos doctor --etcd-endpoints https://10.0.0.5:2379 --etcd-cacert ca.pem -o json`,
	}
	f := cmd.Flags()
	f.StringVar(&cfg.interfaceName, "interface", "", "network interface of the machines, to look for other DHCP servers")
	f.StringVar(&cfg.dhcp, "dhcp", "off", "what the region does there: off, proxy or server")
	f.DurationVar(&cfg.listen, "listen", 4*time.Second, "how long to listen for DHCP servers, at most 1m")
	f.StringVar(&cfg.dataDir, "data-dir", "lpmos-data", "where the site keeps its data")
	f.StringVar(&cfg.cacheDir, "cache-dir", cacheDir(), "where builds and images are kept")
	cfg.etcd.Flags(f, false)
	cfg.etcd.Endpoints = nil
	f.Lookup("etcd-endpoints").DefValue = ""
	f.Lookup("etcd-endpoints").Usage = "etcd servers to look at (default: that of lpmos up in --data-dir, if it runs)"
	f.BoolVar(&cfg.lab, "lab", false, "also what lpmos lab needs")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		switch {
		case cfg.dhcp != "off" && cfg.dhcp != "proxy" && cfg.dhcp != "server":
			return unknownValue("dhcp", cfg.dhcp, []string{"off", "proxy", "server"})
		case cfg.listen <= 0 || cfg.listen > time.Minute:
			return usageError{fmt.Errorf("--listen is not between 0 and 1m (got %s)", cfg.listen)}
		}
		results := a.examine(ctx, c, cfg)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := a.show(map[string]any{"status": doctor.Worst(results), "checks": results}, func(bool) *table { return doctorTable(results) }); err != nil {
			return err
		}
		if doctor.Worst(results) == doctor.Fail {
			return errQuiet
		}
		return nil
	})
	return cmd
}

func doctorTable(results []doctor.Result) *table {
	tones := map[doctor.Status]tone{doctor.OK: good, doctor.Warn: attention, doctor.Fail: bad, doctor.Skip: dim}
	t := &table{}
	for _, r := range results {
		t.add(cell{string(r.Status), tones[r.Status]}, txt(r.Check), txt(r.Summary))
		if r.Todo != "" {
			t.add(txt(""), txt(""), cell{"→ " + r.Todo, strong})
		}
	}
	switch failed, warned := doctor.Count(results, doctor.Fail), doctor.Count(results, doctor.Warn); {
	case failed > 0:
		t.foot = fmt.Sprintf("%s, %s", count(failed, "check failed", "checks failed"), count(warned, "warning", "warnings"))
	case warned > 0:
		t.foot = "Nothing failed, " + count(warned, "warning", "warnings")
	default:
		t.foot = "All is well"
	}
	return t
}

// examine makes all checks, those that wait beside each other.
func (a *app) examine(ctx context.Context, c *apiclient.Client, cfg doctorConfig) []doctor.Result {
	ctx, cancel := context.WithTimeout(ctx, 75*time.Second)
	defer cancel()
	server, err := url.Parse(c.Server())
	if err != nil {
		return []doctor.Result{doctor.JudgePlane(c.Server(), err, 0)}
	}
	regions, regionErr := a.regionsSoon(ctx, c)
	checks := []func() []doctor.Result{
		func() []doctor.Result { return a.checkPlane(ctx, c) },
		func() []doctor.Result { return doctor.JudgeRegions(regions, regionErr, time.Now()) },
		func() []doctor.Result { return []doctor.Result{checkTLS(ctx, server, a.cacert)} },
		func() []doctor.Result { return checkCertificates(cfg.dataDir, time.Now()) },
		func() []doctor.Result { return checkEtcd(ctx, cfg) },
		func() []doctor.Result { return doctor.CheckPorts(os.DirFS("/proc"), doctor.Ports(cfg.dhcp)) },
		func() []doctor.Result { return []doctor.Result{checkDHCP(ctx, cfg, regions)} },
		func() []doctor.Result { return checkDisks(cfg) },
	}
	if cfg.lab {
		checks = append(checks, func() []doctor.Result {
			_, err := lab.FindTools()
			return doctor.JudgeTools(err, unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil)
		})
	}
	found := make([][]doctor.Result, len(checks))
	var wg sync.WaitGroup
	for i, check := range checks {
		wg.Go(func() { found[i] = check() })
	}
	wg.Wait()
	var out []doctor.Result
	for _, f := range found {
		out = append(out, f...)
	}
	return out
}

func (a *app) regionsSoon(ctx context.Context, c *apiclient.Client) ([]lpmos.Region, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return c.Regions(ctx)
}

func (a *app) checkPlane(ctx context.Context, c *apiclient.Client) []doctor.Result {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	begun := time.Now()
	err := c.Ready(ctx)
	out := []doctor.Result{doctor.JudgePlane(c.Server(), err, time.Since(begun))}

	var tx unix.Timex
	state, terr := unix.Adjtimex(&tx) // Modes is 0: it is only read
	own := doctor.JudgeOwnClock(time.Now(), terr == nil && state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0, terr)
	date, sent, received, err := serverDate(ctx, c)
	if err != nil {
		return append(out, own, doctor.Skipped("clock", "the control plane's time is not known", "see the check of the control plane"))
	}
	return append(out, own, doctor.JudgeSkew(date, sent, received))
}

// serverDate asks the control plane what time it has.
func serverDate(ctx context.Context, c *apiclient.Client) (date string, sent, received time.Time, err error) {
	sent = time.Now()
	h, err := c.Health(ctx)
	return h.Get("Date"), sent, time.Now(), err
}

// checkTLS takes the certificate whatever it is worth, and judges it after.
func checkTLS(ctx context.Context, server *url.URL, cacert string) doctor.Result {
	if server.Scheme != "https" {
		return doctor.JudgeTLS(server, nil, nil, nil, time.Now())
	}
	addr := server.Host
	if server.Port() == "" {
		addr = net.JoinHostPort(server.Hostname(), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{ServerName: server.Hostname(), InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}
	conn, err := d.DialContext(ctx, "tcp", addr)
	var chain []*x509.Certificate
	if err == nil {
		chain = conn.(*tls.Conn).ConnectionState().PeerCertificates
		conn.Close()
	}
	var roots *x509.CertPool
	if b, rerr := os.ReadFile(cacert); cacert != "" && rerr == nil {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM(b)
	}
	return doctor.JudgeTLS(server, chain, err, roots, time.Now())
}

// checkCertificates looks at what was issued to the parts that keep their data
// in dir: a control plane, a region, or both.
func checkCertificates(dir string, now time.Time) []doctor.Result {
	var out []doctor.Result
	for _, f := range []struct{ what, path string }{
		{"the control plane", filepath.Join(dir, "server.pem")},
		{"the store", filepath.Join(dir, "etcd-server.pem")},
		{"the control plane at the store", filepath.Join(dir, "etcd-client.pem")},
		{"this region", filepath.Join(dir, "identity.json")},
	} {
		c, err := pki.ReadCertificate(f.path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		out = append(out, doctor.JudgeCertificate(f.what, f.path, c, err, now))
	}
	return out
}

func checkEtcd(ctx context.Context, cfg doctorConfig) []doctor.Result {
	e := cfg.etcd
	if len(e.Endpoints) == 0 {
		socket, err := filepath.Abs(filepath.Join(cfg.dataDir, "etcd", "etcd.sock"))
		if err != nil {
			return []doctor.Result{doctor.Skipped("etcd", err.Error(), "")}
		}
		if st, err := os.Stat(socket); err != nil || st.Mode()&os.ModeSocket == 0 {
			return []doctor.Result{doctor.Skipped("etcd", "no server is named, and none runs in "+cfg.dataDir, "name the servers with --etcd-endpoints, or the directory with --data-dir")}
		}
		e.Endpoints = []string{"unix://" + socket}
	}
	sc, err := e.Config()
	if err == nil && len(cfg.etcd.Endpoints) == 0 {
		var own bool
		if sc.TLS, own, err = ownstore.ClientConfig(cfg.dataDir); own {
			sc.Endpoints = []string{strings.Replace(e.Endpoints[0], "unix:", "unixs:", 1)}
		}
	}
	if err != nil {
		return []doctor.Result{{Check: "etcd", Status: doctor.Fail, Summary: err.Error(), Todo: "give certificates that can be read"}}
	}
	members, err := store.Inspect(ctx, sc)
	if err != nil {
		return []doctor.Result{{Check: "etcd", Status: doctor.Fail, Summary: err.Error(), Todo: "write endpoints as host:port or https://host:port"}}
	}
	return doctor.JudgeEtcd(members)
}

func checkDHCP(ctx context.Context, cfg doctorConfig, regions []lpmos.Region) doctor.Result {
	if cfg.interfaceName == "" {
		return doctor.Skipped("dhcp", "no interface is named", "give --interface to look for other DHCP servers on it")
	}
	mine := map[netip.Addr]bool{}
	if own, err := net.InterfaceAddrs(); err == nil {
		for _, a := range own {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				mine[p.Addr()] = true
			}
		}
	}
	for _, r := range regions {
		if u, err := url.Parse(capabilities(r).BootURL); err == nil {
			if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
				mine[ip] = true
			}
		}
	}
	offers, err := doctor.Discover(ctx, cfg.interfaceName, cfg.listen)
	return doctor.JudgeDHCP(cfg.interfaceName, cfg.dhcp, offers, err, func(a netip.Addr) bool { return mine[a] })
}

func checkDisks(cfg doctorConfig) []doctor.Result {
	var out []doctor.Result
	for _, d := range [][2]string{{"data", cfg.dataDir}, {"cache", cfg.cacheDir}} {
		free, total, err := room(d[1])
		out = append(out, doctor.JudgeDisk(d[0], d[1], free, total, err))
	}
	return out
}

// room is how many bytes are free for us where path is, or where it would be
// made.
func room(path string) (free, total int64, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return 0, 0, err
	}
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
		}
		if !errors.Is(err, os.ErrNotExist) || path == "/" {
			return 0, 0, fmt.Errorf("look at %s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}

// completeInterfaces offers this host's network interfaces.
func completeInterfaces(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 {
			out = append(out, offer(i.Name, i.Flags.String()))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
