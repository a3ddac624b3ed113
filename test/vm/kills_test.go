package vm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/internal/lab"
)

// process is one of our services, which may be killed and started again.
type process struct {
	w      *world
	name   string
	args   []string
	ready  func() error
	kills  int
	cmd    *exec.Cmd
	killed *atomic.Bool
	done   chan struct{}
}

func (p *process) start() {
	p.w.t.Helper()
	p.cmd, p.killed, p.done = p.w.start(p.name, p.args...), new(atomic.Bool), make(chan struct{})
	cmd, killed, done, t := p.cmd, p.killed, p.done, p.w.t
	go func() {
		defer close(done)
		if err := cmd.Wait(); !killed.Load() {
			t.Errorf("%s ended by itself: %v", p.name, err)
		}
	}()
	t.Cleanup(func() {
		killed.Store(true)
		cmd.Process.Kill()
		<-done
	})
	p.w.until(time.Minute, p.name+" is ready", p.ready)
}

// kill is kill -9, and a start again after an outage.
func (p *process) kill(outage time.Duration) {
	p.w.t.Helper()
	p.crash()
	time.Sleep(outage)
	p.start()
}

func (p *process) crash() {
	p.killed.Store(true)
	p.cmd.Process.Kill()
	<-p.done
	p.kills++
}

// TestKills ends the services, each a process of its own, in the middle of
// every step of one installation. It completes once, in its first attempt.
func TestKills(t *testing.T) {
	w := empty(t)
	const url = "http://127.0.0.1:8080"
	var err error
	if w.client, err = apiclient.New(url, w.net.DialContext); err != nil {
		t.Fatal(err)
	}
	w.client.UseTokenFile(filepath.Join(w.dir, "cp", controlplane.LocalTokenFile))
	data, regionData := filepath.Join(w.dir, "cp"), filepath.Join(w.dir, "region")
	w.blobs = filepath.Join(data, "blobs")
	control := &process{w: w, name: "control-plane", args: []string{
		"--etcd-endpoints=embedded", "--data-dir=" + data, "--listen-addr=127.0.0.1:8080",
	}, ready: func() error { return w.client.Ready(t.Context()) }}
	region := &process{w: w, name: "regional-client", args: []string{
		"--region-id=lab", "--etcd-endpoints=unix://" + filepath.Join(data, "etcd", "etcd.sock"), "--control-plane-url=" + url,
		"--data-dir=" + regionData, "--interface=" + lab.DefaultSegment.Bridge, "--dhcp=server", "--dhcp-range=10.77.0.100-10.77.0.199",
	}, ready: func() error { return nil }} // its machines wait for it
	control.start()
	region.start()
	w.publish("tiny")

	m := w.newMachine(lab.MachineConfig{Name: "killed", Disks: []lab.Disk{{SizeBytes: 4 * gb}}})
	id := w.create(m, nil)
	console := m.Console().NewReader()
	w.powerOn(m)
	w.planned(m, id)

	// While a person is awaited, both at once: the agent's question is open.
	region.crash()
	control.kill(time.Second)
	region.start()
	w.wait(m, id, time.Minute, lpmos.AwaitingApproval)

	// Right after the decision: it is on disk, but nobody was told yet.
	w.approve(id)
	control.kill(0)

	// In the middle of the download, which then goes on where it was.
	w.console(console, bootLimit, `stage begins.*stage=downloading`)
	region.kill(500 * time.Millisecond)
	w.console(console, installLimit, `stage begins.*stage=installing`)
	control.kill(500 * time.Millisecond)
	w.console(console, installLimit, `stage begins.*stage=configuring`)
	region.crash()
	control.kill(time.Second)
	region.start()

	// When everything is written and the machine restarts.
	w.wait(m, id, installLimit, lpmos.Verifying)
	region.crash()
	control.kill(time.Second)
	region.start()

	task := w.completed(m, id)
	const want = "created hardware_reported approved permit_granted result_reported called_home"
	if got := causes(w.history(id)); got != want {
		t.Errorf("history = %s; want %s", got, want)
	}
	if task.Attempt != 1 {
		t.Errorf("attempt = %d; want 1: nothing happened to the machine", task.Attempt)
	}
	if control.kills != 5 || region.kills != 4 {
		t.Errorf("killed %d and %d times; want 5 and 4", control.kills, region.kills)
	}
	// The region had the image by digest, from its cache.
	for _, digest := range []string{w.digest(), w.manifest().Pack.SHA256} {
		if _, err := os.Stat(filepath.Join(regionData, "images", digest)); err != nil {
			found, _ := filepath.Glob(filepath.Join(regionData, "images", "*"))
			t.Errorf("region's cache: %v; it holds %v", err, found)
		}
	}
}
