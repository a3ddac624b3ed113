package vm_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/bootimage"
	"github.com/lpmos/lpmos/internal/lab"
	"github.com/lpmos/lpmos/internal/lab/labtest"
	"github.com/lpmos/lpmos/internal/osimage"
	"github.com/lpmos/lpmos/internal/region"
	"github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/internal/tier"
)

// Limits are many times what the emulation takes on two cores that do nothing
// else.
const (
	bootLimit    = 8 * time.Minute  // power on to a reported machine, or to the installed system
	installLimit = 20 * time.Minute // approval to the call home
	gb           = 1_000_000_000
)

// rest skips a test that is not part of every commit.
func rest(t *testing.T) {
	t.Helper()
	if os.Getenv("LPMOS_VM") != "all" {
		tier.Missing(t, "vm-all", "not part of every commit: LPMOS_VM=all runs it")
	}
}

// built is what all tests share: it is made once per run.
type built struct {
	bin      string // the commands
	bootDir  string
	boot     lpmos.BootImage
	imageDir string
	cache    string
}

var (
	scratch string // removed when all tests are done
	builds  = sync.OnceValues(build)
)

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "lpmos-vm-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

func build() (built, error) {
	b := built{bin: filepath.Join(scratch, "bin"), cache: os.Getenv("LPMOS_CACHE_DIR")}
	if b.cache == "" {
		b.cache = filepath.Join(os.TempDir(), "lpmos-test-cache")
	}
	b.bootDir, b.imageDir = filepath.Join(scratch, "bootimage"), filepath.Join(scratch, "images")
	if err := os.MkdirAll(b.bin, 0o755); err != nil {
		return b, fmt.Errorf("make directory of commands: %w", err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", b.bin+"/", "./cmd/agent", "./cmd/control-plane", "./cmd/regional-client")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return b, fmt.Errorf("build commands: %w: %s", err, out)
	}
	var err error
	b.boot, _, err = bootimage.Build(context.Background(), bootimage.Config{
		OutDir: b.bootDir, AgentPath: filepath.Join(b.bin, "agent"), CacheDir: b.cache, Version: "test",
	}, slog.New(slog.DiscardHandler), nil)
	return b, err
}

// image makes an image, or takes it from the cache.
func (b built) image(t *testing.T, name string) lpmos.Image {
	t.Helper()
	img, err := osimage.Build(t.Context(), osimage.Config{Name: name, OutDir: b.imageDir, CacheDir: b.cache}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// world is a private network with the services on it, and their client.
type world struct {
	t      *testing.T
	built  built
	dir    string // of disks and of the services' data
	logs   string // kept: serial logs, the services' logs
	net    *lab.Network
	client *apiclient.Client
	blobs  string // the control plane's files by content
	image  lpmos.Image

	installs time.Duration // how long one may take, approval to call home
}

// needed is what every machine needs: tools, rights, and what is built.
func needed(t *testing.T) built {
	t.Helper()
	labtest.Tools(t)
	if os.Geteuid() != 0 {
		labtest.Require(t, "vm", errors.New("network namespaces need root"))
	}
	b, err := builds()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// empty is a network without services.
func empty(t *testing.T) *world {
	t.Helper()
	b := needed(t)
	// The directory is asked for before the network is, so that it is removed
	// after the machines, which have their disks in it, are off.
	w := &world{t: t, built: b, dir: t.TempDir(), logs: t.ArtifactDir(), installs: installLimit}
	w.net = labtest.Network(t, lab.Config{Dir: filepath.Join(w.logs, "lab")})
	return w
}

// logFile is a log that is kept.
func (w *world) logFile(name string) *os.File {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.logs, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { f.Close() })
	return f
}

// onSite is a network with a whole site in this process. edit, which may be
// nil, changes its configuration.
func onSite(t *testing.T, image string, edit func(*site.Config)) *world {
	t.Helper()
	w := empty(t)
	cfg := site.Config{DataDir: filepath.Join(w.dir, "site"), NoFsync: true, Region: region.Config{
		RegionID: "lab", Interface: lab.DefaultSegment.Bridge, DHCP: "server", DHCPRange: "10.77.0.100-10.77.0.199", Do: w.net.Do,
	}}
	cfg.ControlPlane.ListenAddr = "127.0.0.1:0"
	if edit != nil {
		edit(&cfg)
	}
	log := slog.New(slog.NewTextHandler(w.logFile("site.log"), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := site.New(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("site: %v", err)
		}
	})
	w.blobs = s.ControlPlane.Blobs().Path()
	if w.client, err = apiclient.New(s.ControlPlane.URL(), nil); err != nil {
		t.Fatal(err)
	}
	w.client.UseToken(s.ControlPlane.LocalToken("test"))
	w.publish(image)
	return w
}

// publish uploads the boot image and an image, as an operator does, and waits
// until the region is there.
func (w *world) publish(image string) {
	w.t.Helper()
	ctx := w.t.Context()
	w.until(time.Minute, "the control plane answers", func() error { return w.client.Ready(ctx) })
	blobs := []lpmos.Blob{w.built.boot.Kernel, w.built.boot.Initrd}
	for _, f := range w.built.boot.Files {
		blobs = append(blobs, f)
	}
	for _, b := range blobs {
		if err := w.client.UploadBlob(ctx, b.SHA256, filepath.Join(w.built.bootDir, "blobs", b.SHA256), nil); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.client.PutBootImage(ctx, w.built.boot); err != nil {
		w.t.Fatal(err)
	}
	w.register(w.built.image(w.t, image))
	w.until(time.Minute, "the region is online", func() error {
		regions, err := w.client.Regions(ctx)
		if err == nil && (len(regions) != 1 || regions[0].Status != "online") {
			err = fmt.Errorf("regions are %+v", regions)
		}
		return err
	})
}

// register uploads an image from the directory of images, and makes it the
// world's.
func (w *world) register(img lpmos.Image) {
	w.t.Helper()
	w.image = img
	m := w.manifest()
	for _, b := range append(m.Blobs(), lpmos.Blob{SHA256: w.digest()}) {
		if err := w.client.UploadBlob(w.t.Context(), b.SHA256, filepath.Join(w.built.imageDir, "blobs", b.SHA256), nil); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.client.PutImage(w.t.Context(), w.image); err != nil {
		w.t.Fatal(err)
	}
}

// digest is the image's, as blobs are named.
func (w *world) digest() string { return strings.TrimPrefix(w.image.Digest, "sha256:") }

func (w *world) manifest() (m lpmos.ImageManifest) {
	w.t.Helper()
	f, err := os.Open(filepath.Join(w.built.imageDir, "blobs", w.digest()))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if err := lpmos.DecodeJSON(f, lpmos.MaxManifestBytes, &m); err != nil {
		w.t.Fatal(err)
	}
	return m
}

// until waits for ok to return nil.
func (w *world) until(limit time.Duration, what string, ok func() error) {
	w.t.Helper()
	var err error
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
	}
}

// machine is a virtual machine whose console is watched for lines after which
// waiting is pointless.
type machine struct {
	*lab.Machine
	mac lpmos.MAC

	mu     sync.Mutex // guards what follows
	failed error
}

// newMachine makes a machine that is off. Interfaces without an address and
// disks without a path are filled in.
func (w *world) newMachine(cfg lab.MachineConfig) *machine {
	w.t.Helper()
	if len(cfg.NICs) == 0 {
		cfg.NICs = []lab.NIC{{}}
	}
	for i := range cfg.NICs {
		if cfg.NICs[i].MAC.IsZero() {
			cfg.NICs[i].MAC = macOf(cfg.Name, i)
		}
	}
	for i := range cfg.Disks {
		if d := &cfg.Disks[i]; d.Path == "" {
			d.Path = filepath.Join(w.dir, fmt.Sprintf("%s-%d.disk", cfg.Name, i))
		}
	}
	vm, err := w.net.NewMachine(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	m := &machine{Machine: vm, mac: cfg.NICs[0].MAC}
	go m.watch(w.t.Context())
	return m
}

// macOf is an address that only this machine of a test has.
func macOf(name string, nic int) lpmos.MAC {
	var sum byte
	for _, c := range []byte(name) {
		sum = sum*31 + c
	}
	return lpmos.MAC{0x52, 0x54, 0, 0x77, sum, byte(nic + 1)}
}

// never matches no line, so that a wait for it ends with a failure line only.
var never = regexp.MustCompile(`[^\s\S]`)

func (m *machine) watch(ctx context.Context) {
	_, err := m.Console().NewReader().WaitFor(ctx, never)
	if errors.Is(err, lab.ErrFailed) {
		m.mu.Lock()
		m.failed = err
		m.mu.Unlock()
	}
}

func (m *machine) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed
}

// disk is the file of the n-th disk.
func (m *machine) disk(n int) string { return m.Config().Disks[n].Path }

func (w *world) powerOn(m *machine) {
	w.t.Helper()
	if err := m.PowerOn(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) reset(m *machine) {
	w.t.Helper()
	if err := m.Reset(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// console returns the next line that matches, after what r has seen.
func (w *world) console(r *lab.Reader, limit time.Duration, pattern string) lab.Line {
	w.t.Helper()
	ctx, cancel := context.WithTimeoutCause(w.t.Context(), limit, fmt.Errorf("not within %v", limit))
	defer cancel()
	l, err := r.WaitFor(ctx, regexp.MustCompile(pattern))
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// agentStarted is what the agent says first.
var agentStarted = regexp.MustCompile("agent started")

// seen returns the next line that matches if it is there already.
func seen(r *lab.Reader, pattern *regexp.Regexp) (lab.Line, bool) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l, err := r.WaitFor(ctx, pattern)
	return l, err == nil
}

// fromNow is a reader of what the machine writes from now on.
func fromNow(m *machine) *lab.Reader {
	r := m.Console().NewReader()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for errors.Is(func() error { _, err := r.WaitFor(ctx, never); return err }(), lab.ErrFailed) {
	}
	return r
}

// create asks for a machine to be installed with the world's image.
func (w *world) create(m *machine, edit func(*lpmos.Spec)) string {
	w.t.Helper()
	spec := lpmos.Spec{RegionID: "lab", TargetMAC: m.mac, OSType: w.image.OS, OSVersion: w.image.Version, Arch: w.image.Arch, Hostname: m.Name()}
	if edit != nil {
		edit(&spec)
	}
	id, err := w.client.CreateTask(w.t.Context(), spec, "")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Logf("task %s of %s", id, spec.Hostname)
	return id
}

// task reads a task; a control plane that is just away is asked again.
func (w *world) task(id string) (t lpmos.Task) {
	w.t.Helper()
	w.until(time.Minute, "read task "+id, func() (err error) {
		t, err = w.client.Task(w.t.Context(), id)
		return err
	})
	return t
}

// wait waits until the task has one of the statuses. It ends the test at once
// when the task ends otherwise or the machine cannot go on.
func (w *world) wait(m *machine, id string, limit time.Duration, want ...lpmos.Status) lpmos.Task {
	w.t.Helper()
	return w.waitFor(m, id, limit, fmt.Sprintf("status %v", want), func(t lpmos.Task) bool { return slices.Contains(want, t.Status) })
}

func (w *world) waitFor(m *machine, id string, limit time.Duration, what string, ok func(lpmos.Task) bool) lpmos.Task {
	w.t.Helper()
	end := time.Now().Add(limit)
	for {
		t := w.task(id)
		if ok(t) {
			return t
		}
		problem := ""
		switch {
		case !t.Status.Live():
			problem = "the task has ended"
		case m.failure() != nil:
			problem = m.failure().Error()
		case time.Now().After(end):
			problem = fmt.Sprintf("not within %v", limit)
		}
		if problem != "" {
			w.explain(m, t)
			w.t.Fatalf("wait for %s of task %s: %s; it is %s", what, id, problem, t.Status)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// explain logs what there is to know about a task that did not go as it should.
func (w *world) explain(m *machine, t lpmos.Task) {
	w.t.Helper()
	w.t.Logf("task %s: %s, attempt %d, progress %+v, error %+v", t.ID, t.Status, t.Attempt, t.Progress, t.Error)
	if t.Plan != nil {
		w.t.Logf("plan problem %q, target %s", t.Plan.Problem, t.Plan.Effect.Target)
	}
	if events, err := w.client.Events(w.t.Context(), t.ID); err == nil {
		for _, e := range events {
			w.t.Logf("event %d %s %s → %s by %s: %s", e.Seq, e.Cause, e.From, e.To, e.By, e.Message)
		}
	}
	w.t.Logf("console of %s (serial log in %s):\n\t%s", m.Name(), m.Dir(), strings.Join(m.Console().Tail(25), "\n\t"))
}

// planned waits for a plan that can be approved.
func (w *world) planned(m *machine, id string) lpmos.Task {
	w.t.Helper()
	t := w.wait(m, id, bootLimit, lpmos.AwaitingApproval)
	if t.Plan == nil || t.Plan.Problem != "" {
		w.explain(m, t)
		w.t.Fatalf("plan of task %s = %+v; want one without a problem", id, t.Plan)
	}
	return t
}

// approve approves what the plan says now.
func (w *world) approve(id string) {
	w.t.Helper()
	t := w.task(id)
	if t.Plan == nil {
		w.t.Fatalf("task %s has no plan; it is %s", id, t.Status)
	}
	if _, err := w.client.Decide(w.t.Context(), id, true, t.Plan.Digest, "approved by a test"); err != nil {
		w.t.Fatalf("approve task %s: %v", id, err)
	}
}

// completed waits for the call home and checks what a completed task must be:
// its history whole and legal, its receipt about the very system that the plan
// was to install, and the disk as planned.
func (w *world) completed(m *machine, id string) lpmos.Task {
	w.t.Helper()
	t := w.wait(m, id, w.installs, lpmos.Completed)
	events := w.history(id)
	count := func(c lpmos.Cause) (n int) {
		for _, e := range events {
			if e.Cause == c {
				n++
			}
		}
		return n
	}
	if n := count(lpmos.CauseCalledHome); n != 1 || events[len(events)-1].Cause != lpmos.CauseCalledHome {
		w.t.Errorf("task %s was completed by %d calls home and ended with %q; want the one at the end", id, n, events[len(events)-1].Cause)
	}
	if n := count(lpmos.CausePermitGranted); n != 1 {
		w.t.Errorf("task %s was granted %d first permits; want 1", id, n)
	}
	if n := 1 + count(lpmos.CauseNextAttempt); n != t.Attempt {
		w.t.Errorf("task %s is at attempt %d after %d", id, t.Attempt, n)
	}
	root, _ := t.Plan.Effect.Partition("root")
	switch r := t.Receipt; {
	case r == nil:
		w.t.Errorf("task %s was completed without a receipt", id)
	case t.Plan.Effect.Method != lpmos.FormatDisk && r.RootFSUUID != root.UUID || !t.Plan.Effect.Writes(r.RootDisk) || r.Hostname != t.Hostname || r.BootMode != t.Plan.Effect.BootMode:
		w.t.Errorf("receipt of task %s = root %s, host %s, %s; want %s, %s, %s", id, r.RootFSUUID, r.Hostname, r.BootMode, root.UUID, t.Hostname, t.Plan.Effect.BootMode)
	}
	w.checkDisk(m, t)
	return t
}

// history reads a task's events and checks them.
func (w *world) history(id string) []lpmos.Event {
	w.t.Helper()
	var events []lpmos.Event
	w.until(time.Minute, "read events of "+id, func() (err error) {
		events, err = w.client.Events(w.t.Context(), id)
		return err
	})
	if err := lpmos.VerifyEvents(events); err != nil || len(events) == 0 {
		w.t.Errorf("history of task %s (%d events): %v", id, len(events), err)
	}
	return events
}

// causes is the history as a string, for comparing.
func causes(events []lpmos.Event) string {
	var out []string
	for _, e := range events {
		out = append(out, string(e.Cause))
	}
	return strings.Join(out, " ")
}

// hash is a digest of a disk's content; the machine should be off.
func (w *world) hash(path string) string {
	w.t.Helper()
	h, err := lab.HashDisk(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// start runs one of our commands inside the lab's network, with its log kept.
func (w *world) start(name string, args ...string) *exec.Cmd {
	w.t.Helper()
	cmd := exec.Command(filepath.Join(w.built.bin, name), append(args, "--log-level=debug")...)
	cmd.Dir = w.dir
	log := w.logFile(name + ".log")
	fmt.Fprintf(log, "--- %s %s\n", time.Now().Format(time.RFC3339Nano), strings.Join(cmd.Args, " "))
	cmd.Stdout, cmd.Stderr = log, log
	if err := w.net.StartCommand(cmd); err != nil {
		w.t.Fatal(err)
	}
	return cmd
}

// output runs a program of the host and returns what it prints.
func (w *world) output(name string, args ...string) []byte {
	w.t.Helper()
	var stderr strings.Builder
	cmd := exec.CommandContext(w.t.Context(), name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("run %s: %v: %s", name, err, stderr.String())
	}
	return out
}

// copyFile copies a file and keeps its holes.
func (w *world) copyFile(to, from string) {
	w.t.Helper()
	w.output("/bin/cp", "--sparse=always", from, to)
}
