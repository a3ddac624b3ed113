package web

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
)

// wholeSetup uses every field of the form.
func wholeSetup() *lpmos.Setup {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGluZm8 ada@desk"
	return &lpmos.Setup{
		Users:    []lpmos.Account{{Name: "ops", Gecos: "Operations", Groups: []string{"adm", "docker"}, Shell: "/bin/sh", Sudo: true, SSHKeys: []string{key}}, {Name: "app"}},
		Timezone: "Europe/Berlin", Locale: "de_DE.UTF-8", Keyboard: "de", NTP: []string{"ntp.example.net"}, Packages: []string{"nginx"}, Kernel: []string{"a=1", "b"},
		Network: &lpmos.Network{DNS: []string{"192.0.2.53"}, Search: []string{"example.net"}, Interfaces: []lpmos.Interface{
			{Name: "lan0", NIC: "boot"}, {Name: "lan1", NIC: "52:54:00:00:00:02"},
			{Name: "bond0", Bond: &lpmos.Bond{Members: []string{"lan0", "lan1"}, Mode: "802.3ad"}, PerMachine: true, MTU: 9000},
			{Name: "storage", VLAN: &lpmos.VLAN{ID: 30, Parent: "bond0"}, DHCP6: true, Addresses: []string{"192.0.2.10/24"}, Gateways: []string{"192.0.2.1"},
				Routes: []lpmos.Route{{To: "198.51.100.0/24", Via: "192.0.2.254", Metric: 50}, {To: "203.0.113.0/24", Via: "192.0.2.254"}}},
		}},
		Scripts: []lpmos.Script{{Name: "motd", Text: "#!/bin/sh\necho hello\n"}},
	}
}

// formValues is what a browser sends of the form that a Setup is shown in.
func formValues(w *Web, s *lpmos.Setup) url.Values {
	v := url.Values{}
	field := func(f formField) {
		switch {
		case f.Kind == "check" && f.Checked:
			v.Set(f.Name, "yes")
		case f.Kind == "check":
		case f.Kind == "choice" && f.Value == "":
			v.Set(f.Name, f.Choices[0].Value) // a browser chooses the first
		default:
			v.Set(f.Name, strings.ReplaceAll(f.Value, "\n", "\r\n"))
		}
	}
	for _, g := range w.setupGroups(setupFormOf(s), nil, 1) {
		for _, f := range g.Fields {
			field(f)
		}
		for _, r := range g.Rows {
			for _, f := range append(r.Fields, r.Rest...) {
				field(f)
			}
		}
	}
	return v
}

func TestSetupFormRoundTrips(t *testing.T) {
	w := newTestWeb(t, newSite(t, testNow))
	for name, s := range map[string]*lpmos.Setup{"everything": wholeSetup(), "nothing": nil, "one thing": {Timezone: "UTC"}} {
		_, got := readSetup(formValues(w, s))
		a, b := lpmos.Setup{}, lpmos.Setup{}
		if s != nil {
			a = *s
		}
		if got != nil {
			b = *got
		}
		if diff := cmp.Diff(string(lpmos.CanonicalJSON(a)), string(lpmos.CanonicalJSON(b))); diff != "" || (s == nil) != (got == nil) {
			t.Errorf("%s comes back as another (-shown +read):\n%s", name, diff)
		}
	}
}

func TestProfileFormConfiguresSystem(t *testing.T) {
	s := newSite(t, testNow)
	w := newTestWeb(t, s)
	h := signedIn(w)
	form := formValues(w, wholeSetup())
	form.Set("name", "configured")
	form.Set("verify", "yes")
	if res, text := post(t, h, "/profiles", form); res.StatusCode != 303 || s.profiles["configured"].System == nil || len(s.profiles["configured"].System.Network.Interfaces) != 4 {
		t.Fatalf("create = %d, %+v\n%s", res.StatusCode, s.profiles["configured"], text)
	}
	_, page := get(t, h, "/profiles/configured")
	for _, want := range []string{`value="Europe/Berlin"`, `value="storage"`, `value="192.0.2.10/24"`, "198.51.100.0/24 192.0.2.254 50", "#!/bin/sh\necho hello", `name="interfaces-4-name"`, `name="users-0-sudo" value="yes" checked`} {
		if !strings.Contains(page, want) {
			t.Errorf("the page of the profile lacks %s", want)
		}
	}
	form.Set("version", "1")
	for field, value := range map[string]string{
		"users-0-name": "root", "users-0-ssh_keys": "x", "users-0-groups": "a b,$", "timezone": "/etc/shadow", "ntp": "a_b", "packages": "--yes", "kernel_args": "init=/bin/sh",
		"interfaces-0-nic": "eth0", "interfaces-3-vlan-id": "x", "interfaces-3-routes": "198.51.100.0/24", "interfaces-2-bond-members": "lan9", "interfaces-3-mtu": "1", "scripts-0-text": "echo",
		"dns": "name.example",
	} {
		bad := url.Values{}
		for k, v := range form {
			bad[k] = v
		}
		bad.Set(field, value)
		res, text := post(t, h, "/profiles/configured", bad)
		if res.StatusCode != 400 || !strings.Contains(text, `href="#f-`+field+`"`) || !strings.Contains(text, `id="f-`+field+`"`) || !strings.Contains(text, `id="`+field+`-p"`) {
			t.Errorf("%s = %q: %d; want the problem beside its field", field, value, res.StatusCode)
		}
	}
	// More rows keep what was typed, and store nothing.
	form.Set("users-0-gecos", "typed")
	form.Set("more", "3")
	if res, text := post(t, h, "/profiles/configured", form); res.StatusCode != 200 || !strings.Contains(text, `value="typed"`) || !strings.Contains(text, `name="users-4-name"`) || s.profiles["configured"].Version != 1 {
		t.Errorf("more rows = %d, version %d", res.StatusCode, s.profiles["configured"].Version)
	}
}

// TestPlanShowsSystem looks for the resolved configuration and the text of
// files where it is decided on, and for drift and host keys afterwards.
func TestPlanShowsSystem(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	var id string
	for _, task := range s.tasks {
		if task.Status == lpmos.AwaitingApproval && task.Plan != nil && task.Plan.Problem == "" {
			id = task.ID
			break
		}
	}
	task := s.tasks[id]
	plan := *task.Plan
	plan.Effect.System = wholeSetup()
	plan.Effect.Files = append(plan.Effect.Files, lpmos.PlannedFile{Path: "/etc/x", Mode: "0644", What: "time servers", Text: "<script>alert(1)</script>\n", If: "/usr/sbin/x"},
		lpmos.PlannedFile{Path: "/etc/localtime", Mode: "0777", What: "the time zone", Link: "/usr/share/zoneinfo/Europe/Berlin"})
	task.Plan = &plan
	s.tasks[id] = task
	_, page := get(t, h, "/tasks/"+id+"/approve")
	for _, want := range []string{"VLAN 30 on bond0", "User ops", "Europe/Berlin", "&lt;script&gt;alert(1)&lt;/script&gt;", plan.Effect.Files[len(plan.Effect.Files)-2].Digest(), "time servers. Only where the image has /usr/sbin/x.</span>", "/etc/localtime → /usr/share/zoneinfo/Europe/Berlin</span>"} {
		if !strings.Contains(page, want) {
			t.Errorf("the approval page lacks %q", want)
		}
	}
	// A full stop of Chinese has its space in it.
	if _, page := get(t, inChinese(h), "/tasks/"+id+"/approve"); !strings.Contains(page, "时间服务器。仅当镜像含有 /usr/sbin/x 时。</span>") {
		t.Error("the approval page in Chinese does not join what a file is and where it is written")
	}
	key, err := lpmos.ParseHostKey("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJtRsVIW4YbLgZEn0pPxYTKz0pJb7aJGJJ2vS7T5zjNn")
	if err != nil {
		t.Fatal(err)
	}
	task.Status, task.Receipt = lpmos.Completed, &lpmos.Receipt{Hostname: task.Hostname, Addresses: []string{"192.0.2.9/24"}, HostKeys: []lpmos.HostKey{key}, FailedUnits: []string{"x.service"}, TimeSynced: new(true)}
	task.Drift = []lpmos.Drift{{What: "address", Planned: "192.0.2.10/24", Found: "missing"}, {What: "user ops", Planned: "an account", Found: "missing"}}
	s.tasks[id] = task
	_, page = get(t, h, "/tasks/"+id)
	for _, want := range []string{"2 things are not as planned", "192.0.2.10/24", "user ops", strings.ReplaceAll(key.Fingerprint, "+", "&#43;"), task.Hostname + ",192.0.2.9 " + key.Type + " " + key.Key, "x.service", "follows another"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page of the task lacks %q", want)
		}
	}
}
