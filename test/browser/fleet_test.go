package browser

import (
	"fmt"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/test/fixture"
)

// fleet is a site with a task in every state that its pages can show.
type fleet struct {
	*world
	id    map[string]string    // task ids by what they are there for: pending, blank, data, problem, installing, failed, completed, rejected, canceled
	mac   map[string]lpmos.MAC // of their machines
	batch string               // of two more
}

// opsKey is the key that the fleet's people log in with.
const opsKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEJ5c3RlbUtleUZvckRvY3VtZW50YXRpb25Pbmx5MDE= ops@bastion"

// lost is how long an install of the fleet may be silent before it fails; the
// ones that go on report every second.
const lost = 40 * time.Second

func newFleet(t testing.TB) *fleet {
	f := &fleet{id: map[string]string{}, mac: map[string]lpmos.MAC{}}
	f.world = newWorld(t, "Frankfurt", func(c *site.Config) {
		c.Region.RegionID = "fra-1"
		c.ControlPlane.Deadlines.InstallingDeadline = lost
	})
	img := f.publish("debian", "12", "Debian 12 (bookworm)", 256<<20)
	at := time.Now().Add(-26 * time.Hour).UTC().Truncate(time.Second)
	img.Badges = []lpmos.Badge{
		{Firmware: "bios", Passed: true, Text: "called home 41s after power-on", Digest: img.Digest, At: at},
		{Firmware: "uefi", Passed: true, Text: "called home 58s after power-on", Digest: img.Digest, At: at},
		{Firmware: "uefi-secure-boot", Text: "The installed system did not call home within 10 min; its console says: error: shim_lock protocol not found", Digest: img.Digest, At: at},
	}
	installer, err := fixture.Installer(f.dir, "debian", "12-installer", "Debian 12 (its own installer)", lpmos.TemplatePreseed)
	if err == nil {
		err = f.api.PutImage(f.ctx, img)
	}
	if err == nil {
		err = fixture.PutImage(f.ctx, f.api, f.dir, installer)
	}
	var old lpmos.Image
	if err == nil {
		old, err = fixture.Installer(f.dir, "debian", "11-installer", "Debian 11 (its own installer)", lpmos.TemplatePreseed)
	}
	if err == nil {
		old.BootModes = []string{"bios"} // the fleet's machines start by UEFI
		err = fixture.PutImage(f.ctx, f.api, f.dir, old)
	}
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if _, err := f.api.PutTemplate(f.ctx, lpmos.Template{Name: "base", Kind: lpmos.TemplateUserData, Description: "What every server gets",
		Text: "#cloud-config\npackages: [chrony]\nwrite_files:\n- {path: /etc/motd, content: 'serial {{serial}}'}\n"}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.api.PutProfile(f.ctx, lpmos.Profile{Name: "storage", Description: "Ceph servers of the second row", OSType: "debian", OSVersion: "12", Hostname: "ceph-{mac6}"}, 0); err != nil {
		t.Fatal(err)
	}
	accounts := &lpmos.Setup{Timezone: "Europe/Berlin", Locale: "de_DE.UTF-8", NTP: []string{"ntp.example.net"}, Users: []lpmos.Account{
		{Name: "ops", Gecos: "Operations", Groups: []string{"adm"}, Sudo: true, SSHKeys: []string{opsKey}, PasswordHash: lpmos.NewSecret("$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7")},
		{Name: "app"},
	}}
	if _, err := f.api.PutProfile(f.ctx, lpmos.Profile{Name: "accounts", Description: "Who may sign in on every server", OSType: "debian", OSVersion: "12-installer", System: accounts}, 0); err != nil {
		t.Fatal(err)
	}
	add := func(name, host string, hw func(*lpmos.Hardware), takes time.Duration, more ...func(*lpmos.Spec)) (off func()) {
		mac := lpmos.MAC{0xb0, 0x7b, 0x25, 0xc4, byte(n), 0x10}
		f.mac[name] = mac
		spec := lpmos.Spec{RegionID: "fra-1", TargetMAC: mac, OSType: "debian", OSVersion: "12", Hostname: host, Notes: "Ticket 4471: replaces " + host + "-old", SSHKeys: []string{opsKey}}
		for _, edit := range more {
			edit(&spec)
		}
		f.id[name] = f.create(spec)
		serial := fmt.Sprintf("7GXK2M%d", n)
		n++
		if hw == nil {
			return func() {}
		}
		h := server(mac, serial)
		hw(h)
		off = f.power(mac, takes, h)
		f.until(f.id[name], lpmos.AwaitingApproval)
		return off
	}
	whole := func(*lpmos.Hardware) {}
	blank := func(h *lpmos.Hardware) { h.Disks = h.Disks[1:2] }
	add("completed", "web-01", whole, time.Second)
	f.approve(f.id["completed"])
	add("canceled", "web-03", nil, 0)
	if _, err := f.api.Cancel(f.ctx, f.id["canceled"], "wrong rack"); err != nil {
		t.Fatal(err)
	}
	off := add("failed", "web-04", blank, 2*time.Minute)
	f.approve(f.id["failed"])
	f.until(f.id["failed"], lpmos.Installing)
	f.wait("progress", func() bool { task, err := f.api.Task(f.ctx, f.id["failed"]); return err == nil && task.Progress != nil })
	off()
	add("pending", "gpu-01", nil, 0)
	add("problem", "edge-09", func(h *lpmos.Hardware) {
		h.Disks = h.Disks[:1]
		h.Disks[0].SizeBytes, h.Disks[0].Content = 200<<20, lpmos.Content{}
	}, time.Second)
	add("data", "db-07", func(h *lpmos.Hardware) { h.Disks = append(h.Disks[:1], h.Disks[2:]...) }, time.Second)
	add("blank", "ceph-osd-41", blank, time.Second)
	add("blank2", "ceph-osd-42", blank, time.Second)
	add("installer", "git-01", blank, time.Second, func(s *lpmos.Spec) { s.OSVersion, s.Profile = "12-installer", "accounts" })
	add("eyes", "ledger-01", blank, time.Second)
	if _, err := f.api.SetApprovalPolicy(f.ctx, lpmos.ApprovalPolicy{
		Rules:  []lpmos.ApprovalRule{{Labels: []string{"production"}, Approvers: 2, ReauthMinutes: 1}, {ErasesData: true, Regions: []string{"lon-1"}, NotCreator: true}},
		Labels: map[string][]string{"production": {f.mac["eyes"].String(), "b0:7b:25:c4:70:10"}},
	}, ""); err != nil {
		t.Fatal(err)
	}
	add("rejected", "log-02", blank, time.Second)
	if _, err := f.api.Decide(f.ctx, f.id["rejected"], false, "", "wrong rack"); err != nil {
		t.Fatal(err)
	}
	for i, takes := range []time.Duration{30 * time.Minute, 12 * time.Minute, 20 * time.Minute} {
		name := []string{"installing", "installing2", "installing3"}[i]
		add(name, fmt.Sprintf("app-%d", 112+i), blank, takes)
		f.approve(f.id[name])
		f.until(f.id[name], lpmos.Installing)
	}
	batch, err := f.api.CreateBatch(f.ctx, []lpmos.Spec{
		{RegionID: "fra-1", TargetMAC: lpmos.MustMAC("b0:7b:25:c5:00:10"), Profile: "storage", Hostname: "ceph-osd-51"},
		{RegionID: "fra-1", TargetMAC: lpmos.MustMAC("b0:7b:25:c5:01:10"), Profile: "storage", Hostname: "ceph-osd-52"},
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	f.batch = batch.ID
	f.completed(f.id["completed"])
	f.until(f.id["failed"], lpmos.Failed)
	return f
}
