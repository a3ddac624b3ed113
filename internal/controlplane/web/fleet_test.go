package web

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

func TestMachinePages(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	_, list := get(t, h, "/machines")
	for _, want := range []string{"Awaiting approval", "Discovered", "HPE DL380 Gen11", "CZ2D4107", "lpmos machine list", "unnamed", `<task-run class="run" task="` + idInstalling} {
		if !strings.Contains(list, want) {
			t.Errorf("the list does not say %q", want)
		}
	}
	if _, some := get(t, h, "/machines?state=discovered&region_id=bj-1"); strings.Count(some, "<tr") != 2 || !strings.Contains(some, "lpmos machine list --state discovered --region bj-1") {
		t.Errorf("discovered machines: %d rows", strings.Count(some, "<tr")-1)
	}
	// Any spelling of any of its addresses.
	for _, mac := range []string{"7c:c2:55:10:99:07", "7CC255109907", "7cc2.5510.9907"} {
		res, one := get(t, h, "/machines/"+mac)
		if res.StatusCode != 200 || !strings.Contains(one, "/tasks/create?region_id=bj-1&amp;target_mac=7c%3Ac2%3A55%3A10%3A99%3A07") {
			t.Errorf("machine %s = %d, without a way to a task", mac, res.StatusCode)
		}
	}
	_, changed := get(t, h, "/machines/"+s.tasks[idData].TargetMAC.String())
	for _, want := range []string{`data-kind="gone"`, `data-kind="new"`, "1.4.2", "2247E6A9C1D0", "/tasks/" + idData, "Not now: a machine has one live task at a time."} {
		if !strings.Contains(changed, want) {
			t.Errorf("the machine that changed does not say %q", want)
		}
	}
	s.tasks, s.now = nil, testNow
	if _, none := get(t, h, "/machines?q=nothing"); !strings.Contains(none, "No machine matches") {
		t.Error("a search without a result does not say so")
	}
}

// TestMachineIsHeldBack locks a machine and lets it come with another TPM.
func TestMachineIsHeldBack(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	const page = "/machines/7c:c2:55:10:99:07"
	says := func(when string, want ...string) {
		t.Helper()
		_, text := get(t, h, page)
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s the page does not say %q", when, w)
			}
		}
	}
	says("of a machine without a TPM", "Lock this machine", "a clone of MAC and serial number can’t be told apart before the permit")
	if res, _ := post(t, h, page+"/lock", url.Values{"reason": {" "}}); res.StatusCode != 400 {
		t.Errorf("locking without a reason = %d; want 400", res.StatusCode)
	}
	if res, _ := post(t, h, page+"/lock", url.Values{"reason": {"holds the <payroll>"}}); res.StatusCode != 303 || res.Header.Get("Location") != page {
		t.Errorf("locking = %d to %s", res.StatusCode, res.Header.Get("Location"))
	}
	says("locked,", "This machine is locked.", "holds the &lt;payroll&gt;", page+"/unlock")
	if res, _ := post(t, h, page+"/unlock", nil); res.StatusCode != 303 {
		t.Errorf("unlocking = %d", res.StatusCode)
	}
	says("unlocked,", "Lock this machine")

	if res, _ := post(t, h, page+"/forget-tpm", nil); res.StatusCode != 404 {
		t.Errorf("forgetting a TPM that is not there = %d; want 404", res.StatusCode)
	}
	mine, other := &lpmos.TPM{Endorsement: []byte("mine")}, lpmos.TPM{Endorsement: []byte("other")}
	s.has = mine
	says("of a machine that was not approved yet", mine.Fingerprint(), "the first approval binds the machine to it")
	s.tpm = &lpmos.TPMBinding{TPM: *mine, By: "anna"}
	says("of a machine with its TPM", "the machine is bound to it", page+"/forget-tpm")
	s.tpm = &lpmos.TPMBinding{TPM: other, By: "anna"}
	says("of a machine with another TPM", "not the one it was approved with")
	if res, _ := post(t, h, page+"/forget-tpm", nil); res.StatusCode != 303 || s.tpm != nil {
		t.Errorf("forgetting the TPM = %d", res.StatusCode)
	}
}

func TestForeignDHCPIsShown(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	c := *s.regions[0].Capabilities
	c.SawDHCP(netip.MustParseAddr("192.0.2.66"), testNow.Add(-time.Hour))
	c.SawDHCP(netip.MustParseAddr("192.0.2.67"), testNow.Add(-time.Minute))
	s.regions[0].Capabilities = &c
	_, text := get(t, h, "/regions")
	if !strings.Contains(text, "Another DHCP server answers on this network: 192.0.2.67.") {
		t.Error("the regions' page does not show the foreign DHCP server, or one that is gone as well")
	}
}

func TestRegionAndImagePages(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	_, regions := get(t, h, "/regions")
	for _, want := range []string{"Awaiting approval", "Queued", "/machines?region_id=bj-1", "HTTP boot", "lpmos region list"} {
		if !strings.Contains(regions, want) {
			t.Errorf("regions do not say %q", want)
		}
	}
	_, images := get(t, h, "/images")
	if !strings.Contains(images, "live tasks use it") {
		t.Error("an image in use does not say why it cannot be deleted")
	}
	if res, text := post(t, h, "/images/ubuntu/24.04/amd64/delete", nil); res.StatusCode != 409 || !strings.Contains(text, "It was not deleted") {
		t.Errorf("deleting an image in use = %d", res.StatusCode)
	}
	s.images = append(s.images, lpmos.Image{OS: "old", Version: "1", Arch: "amd64"})
	if res, _ := post(t, h, "/images/old/1/amd64/delete", nil); res.StatusCode != 303 || res.Header.Get("Location") != "/images" {
		t.Errorf("deleting an image = %d to %s", res.StatusCode, res.Header.Get("Location"))
	}
	s.regions, s.images = nil, nil
	for path, want := range map[string]string{"/regions": "Start a regional client", "/images": "The catalogue is empty"} {
		if _, text := get(t, h, path); !strings.Contains(text, want) {
			t.Errorf("%s, empty, does not say what to do: want %q", path, want)
		}
	}
}

func TestProfilePages(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGluZm8 ada@desk"
	form := url.Values{"name": {"web"}, "description": {"Web servers"}, "image": {"ubuntu/24.04/amd64"}, "hostname_pattern": {"web-{serial}"}, "template": {"base"},
		"ssh_keys": {"# team\r\n" + key + "\r\n"}, "verify": {"no"}, "notes": {"two\r\nlines"}}
	res, _ := post(t, h, "/profiles", form)
	p := s.profiles["web"]
	if res.StatusCode != 303 || res.Header.Get("Location") != "/profiles/web" || p.Version != 1 || p.OSVersion != "24.04" || len(p.SSHKeys) != 1 || p.Verify == nil || *p.Verify || p.Notes != "two\nlines" || p.UpdatedBy != "chen.yu" {
		t.Fatalf("create = %d, profile %+v", res.StatusCode, p)
	}
	if res, text := post(t, h, "/profiles", form); res.StatusCode != 409 || !strings.Contains(text, "at version 1") || !strings.Contains(text, `value="Web servers"`) {
		t.Errorf("creating it again = %d; want what was typed and why not", res.StatusCode)
	}
	form.Set("version", "1")
	form.Set("verify", "yes")
	if res, _ := post(t, h, "/profiles/web", form); res.StatusCode != 303 || s.profiles["web"].Version != 2 || s.profiles["web"].Verify != nil {
		t.Errorf("change = %d, profile %+v", res.StatusCode, s.profiles["web"])
	}
	form.Set("description", "Mine")
	if res, text := post(t, h, "/profiles/web", form); res.StatusCode != 409 || !strings.Contains(text, `value="Mine"`) || !strings.Contains(text, "Show it as it is now") {
		t.Errorf("a lost update = %d; want what was typed, and the way to what there is", res.StatusCode)
	}
	form.Set("version", "2")
	for field, value := range map[string]string{"hostname_pattern": "web", "ssh_keys": "x", "notes": strings.Repeat("n", 3000), "description": strings.Repeat("d", 3000)} {
		bad := url.Values{}
		for k, v := range form {
			bad[k] = v
		}
		bad.Set(field, value)
		if res, text := post(t, h, "/profiles/web", bad); res.StatusCode != 400 || !strings.Contains(text, `href="#f-`+field+`"`) || !strings.Contains(text, `id="f-`+field+`"`) {
			t.Errorf("a bad %s = %d; want it named", field, res.StatusCode)
		}
	}
	if res, _ := post(t, h, "/profiles/nothing", form); res.StatusCode == 200 {
		t.Errorf("changing what is not there = %d", res.StatusCode)
	}
	if res, text := post(t, h, "/profiles/db/delete", nil); res.StatusCode != 409 || !strings.Contains(text, "used by live task") {
		t.Errorf("deleting what is in use = %d", res.StatusCode)
	}
	if res, _ := post(t, h, "/profiles/web/delete", url.Values{"version": {"2"}}); res.StatusCode != 303 {
		t.Errorf("delete = %d", res.StatusCode)
	}
	if res, _ := get(t, h, "/profiles/web"); res.StatusCode != 404 {
		t.Errorf("after deleting it = %d", res.StatusCode)
	}
}

func TestTemplatePages(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	_, page := get(t, h, "/templates/base")
	if !strings.Contains(page, "fqdn: {{hostname}}.example.net") || !strings.Contains(page, "fqdn: web-01.example.net") {
		t.Error("the page shows neither the text nor what a sample machine gets")
	}
	if _, page = get(t, h, "/templates/base?task="+idBlank); !strings.Contains(page, "fqdn: db-08.example.net") || !strings.Contains(page, "lpmos template preview base --task") {
		t.Error("the preview for a task is not that of its machine")
	}
	form := url.Values{"name": {"motd"}, "kind": {"user-data"}, "text": {"#cloud-config\r\nfqdn: {{hostname}}\r\n"}}
	if res, _ := post(t, h, "/templates", form); res.StatusCode != 303 || s.templates["motd"].Text != "#cloud-config\nfqdn: {{hostname}}\n" {
		t.Errorf("create = %d %q", res.StatusCode, s.templates["motd"].Text)
	}
	form.Set("version", "1")
	form.Set("text", "#cloud-config\n{{secret}}\n")
	if res, text := post(t, h, "/templates/motd", form); res.StatusCode != 400 || !strings.Contains(text, "line 2: {{secret}} is not known") || !strings.Contains(text, "{{secret}}\n</textarea>") {
		t.Errorf("a template that cannot be = %d; want the line named and what was typed", res.StatusCode)
	}
	form.Set("text", "#cloud-config\n{}\n")
	if res, _ := post(t, h, "/templates/motd", form); res.StatusCode != 303 || s.templates["motd"].Version != 2 {
		t.Errorf("change = %d", res.StatusCode)
	}
	if res, _ := post(t, h, "/templates/motd", form); res.StatusCode != 409 {
		t.Errorf("a lost update = %d", res.StatusCode)
	}
	if res, _ := post(t, h, "/templates/motd/delete", nil); res.StatusCode != 303 || len(s.templates) != 1 {
		t.Errorf("delete = %d", res.StatusCode)
	}
}
