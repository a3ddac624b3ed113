package e2e

import (
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane"
)

// A machine that nobody asked for boots the agent and reports; the form offers
// it by model and serial number, and once it has a task it boots again for it,
// by itself.
func TestDiscoveredMachineIsOffered(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newSiteIn(t, t.TempDir(), dir)
	r := s.newRegion("dc1", t.TempDir(), "--unknown-machines=discover")
	s.online("dc1")
	agent := s.agent(r, mac(31), time.Second)
	var found lpmos.Machine
	waitFor(t, "the machine among those that were discovered", 60*time.Second, func() error {
		l, err := s.api.Machines(t.Context(), url.Values{"state": {string(lpmos.MachineDiscovered)}})
		if err == nil && len(l.Machines) != 1 {
			err = fmt.Errorf("there are %d; the agent said %s", len(l.Machines), agent.out.String())
		}
		if err == nil {
			found = l.Machines[0]
		}
		return err
	})
	if found.MAC != mac(31) || found.Serial == "" || found.Model == "" {
		t.Fatalf("discovered is %+v; want %s with model and serial number", found, mac(31))
	}
	token, err := os.ReadFile(filepath.Join(dir, controlplane.LocalTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/tasks/create", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the form: %s, %v", resp.Status, err)
	}
	form := html.UnescapeString(string(body))
	for _, want := range []string{found.Model, found.Serial, "/tasks/create?region_id=dc1&target_mac=" + url.QueryEscape(mac(31).String())} {
		if !strings.Contains(form, want) {
			t.Errorf("the form does not offer %q", want)
		}
	}

	id := s.create("dc1", mac(31))
	s.approve(id)
	if task := s.until(id, lpmos.Completed, 60*time.Second); task.Hardware == nil || task.Hardware.System.Serial != found.Serial {
		t.Errorf("the task's machine is %+v; want the one that was discovered", task.Hardware)
	}
	s.history(id)
	if l, err := s.api.Machines(t.Context(), url.Values{"state": {string(lpmos.MachineDiscovered)}}); err != nil || len(l.Machines) != 0 {
		t.Errorf("afterwards %d machines are discovered, %v; want none", len(l.Machines), err)
	}
}
