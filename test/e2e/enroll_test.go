package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/test/fixture"
)

// newSecureSite is a control plane with its store in it, which other machines
// reach by TLS only.
func newSecureSite(t testing.TB) *site {
	t.Helper()
	ports := freePorts(t, 2)
	dir := t.TempDir()
	s := &site{t: t, etcdAddr: ports[0], url: "https://" + ports[1]}
	s.control = start(t, "control-plane", nil, "--etcd-endpoints=embedded", "--etcd-listen="+ports[0], "--listen-addr="+ports[1], "--tls", "--data-dir="+dir)
	var err error
	if s.api, err = apiclient.New(s.url, nil); err != nil {
		t.Fatal(err)
	}
	s.api.UseTokenFile(filepath.Join(dir, controlplane.LocalTokenFile))
	var ca []byte
	waitFor(t, "the site's authority", 60*time.Second, func() (err error) {
		ca, err = os.ReadFile(filepath.Join(dir, "site-ca.crt"))
		return err
	})
	if err := s.api.Trust(ca); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "control plane", 60*time.Second, func() error { return s.api.Ready(t.Context()) })
	if s.image, err = fixtures(); err != nil {
		t.Fatal(err)
	}
	if err := fixture.Publish(t.Context(), s.api, bin+"/fixture", s.image); err != nil {
		t.Fatal(err)
	}
	return s
}

// enrolled starts a region that gets all it knows by a token, and then has it
// start again without.
func (s *site) enrolled(id, dir string) *region {
	s.t.Helper()
	token, err := s.api.EnrollRegion(s.t.Context(), id, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	ports := freePorts(s.t, 2)
	own := []string{"--boot-addr=" + ports[0], "--agent-addr=" + ports[1], "--tftp-addr=off", "--data-dir=" + dir}
	r := &region{boot: "http://" + ports[0]}
	r.process = start(s.t, "regional-client", nil, append([]string{"--enroll-token=" + token.Token, "--control-plane-url=" + s.url}, own...)...)
	// A heartbeat from before may still count.
	waitFor(s.t, "session of region "+id, 60*time.Second, func() error {
		if !strings.Contains(r.out.String(), "session opened") {
			return fmt.Errorf("it said %s", r.out.String())
		}
		return nil
	})
	s.online(id)
	r.kill()
	r.args = own
	r.start()
	return r
}

// Two data centres that were enrolled: each works, is renewed and restarted
// without loss, and one that is revoked is out while the other goes on.
func TestEnrolledRegions(t *testing.T) {
	t.Parallel()
	s := newSecureSite(t)
	dirs := map[string]string{"dc1": t.TempDir(), "dc2": t.TempDir()}
	regions := map[string]*region{}
	for id, dir := range dirs {
		regions[id] = s.enrolled(id, dir)
	}
	install := func(id string, n int) {
		t.Helper()
		s.online(id)
		task := s.create(id, mac(n))
		waitFor(t, "boot script in "+id, 60*time.Second, func() error {
			text, err := regions[id].script(t, mac(n))
			if err == nil && !strings.Contains(text, "initrd") {
				err = fmt.Errorf("script is %s", text)
			}
			return err
		})
		s.agent(regions[id], mac(n), time.Second)
		s.approve(task)
		s.until(task, lpmos.Completed, 90*time.Second)
		s.history(task)
	}
	install("dc1", 1)
	install("dc2", 2)

	t.Run("a token is good once", func(t *testing.T) {
		token, err := s.api.EnrollRegion(t.Context(), "dc3", 0)
		if err != nil {
			t.Fatal(err)
		}
		args := func(dir string, more ...string) []string {
			return append([]string{"--enroll-token=" + token.Token, "--control-plane-url=" + s.url, "--data-dir=" + dir, "--tftp-addr=off", "--boot-addr=127.0.0.1:0", "--agent-addr=127.0.0.1:0"}, more...)
		}
		first := start(t, "regional-client", nil, args(t.TempDir())...)
		s.online("dc3")
		second := start(t, "regional-client", nil, args(t.TempDir())...)
		if code := second.wait(60 * time.Second); code == 0 || !strings.Contains(second.out.String(), "used already") {
			t.Errorf("the token's second use ended with %d: %s", code, second.out.String())
		}
		if strings.Contains(second.out.String()+first.out.String()+s.control.out.String(), strings.Split(token.Token, ".")[1]) {
			t.Error("the token's secret was logged")
		}
		wrong := start(t, "regional-client", nil, args(t.TempDir(), "--region-id=dc1")...)
		if code := wrong.wait(60 * time.Second); code == 0 || !strings.Contains(wrong.out.String(), "is for region dc3") {
			t.Errorf("the token for another region ended with %d: %s", code, wrong.out.String())
		}
		first.kill()
	})
	t.Run("another site is not trusted, whatever it says", func(t *testing.T) {
		ca, err := pki.Load(t.TempDir()+"/ca.pem", true)
		if err != nil {
			t.Fatal(err)
		}
		fake := pki.NewToken("dc9", ca.Certificate())
		p := start(t, "regional-client", nil, "--enroll-token="+fake.String(), "--control-plane-url="+s.url, "--data-dir="+t.TempDir(), "--tftp-addr=off")
		if code := p.wait(60 * time.Second); code == 0 || !strings.Contains(p.out.String(), "not the control plane that made the token") {
			t.Errorf("it ended with %d: %s", code, p.out.String())
		}
	})
	t.Run("old TLS is refused", func(t *testing.T) {
		for _, addr := range []string{strings.TrimPrefix(s.url, "https://"), s.etcdAddr} {
			for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
				if c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MinVersion: v, MaxVersion: v}); err == nil {
					c.Close()
					t.Errorf("%s speaks %s", addr, tls.VersionName(v))
				}
			}
		}
	})
	t.Run("a region is renewed in the middle of its watches", func(t *testing.T) {
		serial := func() string {
			b, err := os.ReadFile(filepath.Join(dirs["dc1"], "identity.json"))
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		was := serial()
		if err := s.api.RotateRegion(t.Context(), "dc1"); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "another certificate", 60*time.Second, func() error {
			if serial() == was {
				return fmt.Errorf("it is the same")
			}
			return nil
		})
		install("dc1", 3)
		if regions["dc1"].ended() {
			t.Error("the region ended")
		}
	})
	t.Run("all come back after the control plane was killed", func(t *testing.T) {
		s.control.kill()
		s.control.start()
		waitFor(t, "control plane", 60*time.Second, func() error { return s.api.Ready(t.Context()) })
		install("dc1", 4)
		install("dc2", 5)
	})
	t.Run("a region that is revoked is out, and the other goes on", func(t *testing.T) {
		if err := s.api.RevokeRegion(t.Context(), "dc1"); err != nil {
			t.Fatal(err)
		}
		if code := regions["dc1"].wait(60 * time.Second); code == 0 || !strings.Contains(regions["dc1"].out.String(), "was this region revoked") {
			t.Errorf("dc1 ended with %d", code)
		}
		install("dc2", 6)
		// Its certificate is worth nothing any more, not even after a restart.
		regions["dc1"].start()
		if code := regions["dc1"].wait(60 * time.Second); code == 0 {
			t.Error("dc1 started again")
		}
		regions["dc1"] = s.enrolled("dc1", dirs["dc1"])
		install("dc1", 7)
	})
	if c := authority(t, s); c == nil || !c.IsCA {
		t.Error("the control plane does not show the site's authority")
	}
}

// authority is the last certificate that a control plane shows.
func authority(t testing.TB, s *site) *x509.Certificate {
	t.Helper()
	c, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	chain := c.ConnectionState().PeerCertificates
	return chain[len(chain)-1]
}
