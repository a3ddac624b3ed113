package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

func dial(addr string) error {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

func mac(n int) lpmos.MAC { return lpmos.MAC{0x02, 0x4c, 0x50, 0, byte(n >> 8), byte(n)} }

// The founding flow without a browser: what a script would do, and what a
// socket sees of it.
func TestFoundingFlow(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.newRegion("dc1", t.TempDir())
	s.online("dc1")
	w := s.watch()
	id := s.create("dc1", mac(1))
	agent := s.agent(r, mac(1), 6*time.Second)
	s.approve(id)
	task := s.until(id, lpmos.Completed, 60*time.Second)
	if code := agent.wait(time.Minute); code != 0 {
		t.Errorf("agent ended with %d", code)
	}
	if task.Attempt != 1 || task.Receipt == nil || task.Receipt.Hostname != task.Hostname || task.Receipt.RootDisk != task.Plan.Effect.Target {
		t.Errorf("completed task is %+v with receipt %+v; want one attempt and a receipt from the planned disk", task, task.Receipt)
	}
	w.expect(t, id, s.history(id), false)
	logs, err := s.api.Logs(t.Context(), id)
	if err != nil || len(logs) == 0 {
		t.Errorf("log is %q, %v; want lines of the agent", logs, err)
	}
}

// script asks for the boot script of a machine.
func (r *region) script(t testing.TB, m lpmos.MAC) (string, error) {
	req, err := http.NewRequestWithContext(t.Context(), "GET", r.boot+"/boot.ipxe?mac="+m.String()+"&platform=pcbios&arch=x86_64", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), err
}

// Two data centres on one control plane: each serves its own machines only.
func TestRegionsAreSeparate(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	regions := map[string]*region{"dc1": s.newRegion("dc1", t.TempDir()), "dc2": s.newRegion("dc2", t.TempDir())}
	s.online("dc1")
	s.online("dc2")
	tasks := map[string]string{"dc1": s.create("dc1", mac(1)), "dc2": s.create("dc2", mac(2))}
	machine := map[string]lpmos.MAC{"dc1": mac(1), "dc2": mac(2)}
	for here, r := range regions {
		waitFor(t, "boot of a region's own machine", 60*time.Second, func() error {
			text, err := r.script(t, machine[here])
			if err == nil && !strings.Contains(text, "initrd") {
				err = fmt.Errorf("script is %s", text)
			}
			return err
		})
		for there, m := range machine {
			if there == here {
				continue
			}
			if text, err := r.script(t, m); err != nil || strings.Contains(text, "initrd") {
				t.Errorf("%s answers %s's machine with %q, %v; want its own disk", here, there, text, err)
			}
		}
	}
	// The machine of dc2, plugged in at dc1, boots no agent and so reports
	// nothing.
	lost := s.agent(regions["dc1"], machine["dc2"], time.Second)
	waitFor(t, "a wrongly plugged machine", 60*time.Second, func() error {
		if !strings.Contains(lost.out.String(), "boot your own disk") {
			return fmt.Errorf("agent said %s", lost.out.String())
		}
		return nil
	})
	lost.kill()
	if task, err := s.api.Task(t.Context(), tasks["dc2"]); err != nil || task.Status != lpmos.Pending {
		t.Errorf("task of dc2 is %s, %v; want pending", task.Status, err)
	}
	for id, r := range regions {
		s.agent(r, machine[id], 2*time.Second)
		s.approve(tasks[id])
	}
	for _, id := range tasks {
		s.until(id, lpmos.Completed, 60*time.Second)
		s.history(id)
	}
}

// A second control plane on the same etcd: either may be asked, and what
// happens happens once.
func TestReplicas(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	// Replicas share the signing key and the images.
	dir := strings.TrimPrefix(s.control.args[2], "--data-dir=")
	_, url, second := s.newControlPlane(freePorts(t, 1)[0], dir)
	r := s.newRegion("dc1", t.TempDir())
	s.online("dc1")
	other := &site{t: t, api: second, url: url, image: s.image}
	first, replica := s.watch(), other.watch()
	var ids []string
	for i := range 4 {
		ids = append(ids, []*site{s, other}[i%2].create("dc1", mac(i)))
		s.agent(r, mac(i), 6*time.Second)
	}
	for i, id := range ids {
		[]*site{other, s}[i%2].approve(id)
	}
	for _, id := range ids {
		s.until(id, lpmos.Completed, 60*time.Second)
		other.until(id, lpmos.Completed, 60*time.Second)
		statuses := s.history(id)
		first.expect(t, id, statuses, false)
		replica.expect(t, id, statuses, false)
	}
}

// A second instance of a region waits while the first lives, serves nothing,
// and goes on where the first died.
func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.newRegion("dc1", t.TempDir())
	s.online("dc1")
	id := s.create("dc1", mac(1))
	second := s.newRegion("dc1", t.TempDir())
	waitFor(t, "standing by", 60*time.Second, func() error {
		if !strings.Contains(second.out.String(), "standing by") {
			return fmt.Errorf("the second said %s", second.out.String())
		}
		return nil
	})
	if text, err := second.script(t, mac(1)); err == nil {
		t.Errorf("the standby answered %q; want a refusal", text)
	}
	first.kill()
	began := time.Now()
	waitFor(t, "taking over", 60*time.Second, func() error { _, err := second.script(t, mac(1)); return err })
	t.Logf("the standby served %.1f s after the first had died", time.Since(began).Seconds())
	s.agent(second, mac(1), 2*time.Second)
	s.approve(id)
	s.until(id, lpmos.Completed, 60*time.Second)
	s.history(id)
}

// SIGTERM: nothing takes longer than ten seconds or ends with an error, also
// with pages and machines connected.
func TestDrain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.newRegion("dc1", t.TempDir())
	s.online("dc1")
	s.watch()
	id := s.create("dc1", mac(1))
	agent := s.agent(r, mac(1), 30*time.Second)
	s.approve(id)
	s.until(id, lpmos.Installing, 60*time.Second)
	// A machine in the middle of its download that takes nothing any more.
	stuck, err := net.Dial("tcp", strings.TrimPrefix(r.boot, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	if _, err := fmt.Fprintf(stuck, "GET /blobs/%s HTTP/1.1\r\nHost: region\r\n\r\n", s.pack(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stuck, make([]byte, 1<<10)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*process{s.control, r.process, agent, s.etcd} {
		took, code := p.terminate(15 * time.Second)
		t.Logf("%s ended in %d ms", p.name, took.Milliseconds())
		if code != 0 || took > 10*time.Second {
			t.Errorf("%s ended with %d after %s; want 0 within 10 s", p.name, code, took)
		}
	}
}

// pack is the digest of what the image's manifest says is fetched.
func (s *site) pack(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(bin, "fixture", "blobs", strings.TrimPrefix(s.image.Digest, "sha256:")))
	if err != nil {
		t.Fatal(err)
	}
	var m lpmos.ImageManifest
	if err := lpmos.UnmarshalJSON(b, &m); err != nil {
		t.Fatal(err)
	}
	return m.Pack.SHA256
}

// Without etcd the programs end soon and say what to do.
func TestNoEtcd(t *testing.T) {
	t.Parallel()
	nobody := freePorts(t, 1)[0]
	for _, p := range []*process{
		start(t, "control-plane", nil, "--etcd-endpoints="+nobody, "--data-dir="+t.TempDir(), "--listen-addr=127.0.0.1:0"),
		start(t, "regional-client", []string{"REGION_ID=dc1"}, "--etcd-endpoints="+nobody, "--data-dir="+t.TempDir(), "--boot-addr=127.0.0.1:0", "--agent-addr=127.0.0.1:0", "--tftp-addr=off"),
	} {
		code := p.wait(60 * time.Second)
		text := strings.TrimSpace(p.out.String())
		if code != 1 || strings.Contains(text, "\n") || !strings.Contains(text, "reach etcd at "+nobody) || !strings.Contains(text, "is it running?") {
			t.Errorf("%s ended with %d and said %q; want 1 and one line that names the address and the next step", p.name, code, text)
		}
	}
}
