package lpmos_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tier"
)

// setup uses everything there is.
func setup() lpmos.Setup {
	return lpmos.Setup{
		Users: []lpmos.Account{
			{Name: "ops", Gecos: "Operations", Groups: []string{"adm"}, Shell: "/bin/sh", Sudo: true, SSHKeys: []string{edKey}},
			{Name: "app"},
		},
		Timezone: "Europe/Berlin", Locale: "de_DE.UTF-8", Keyboard: "de",
		Network: &lpmos.Network{
			Interfaces: []lpmos.Interface{
				{Name: "lan0", NIC: "boot"}, {Name: "lan1", NIC: "nic2", MTU: 9000},
				{Name: "bond0", Bond: &lpmos.Bond{Members: []string{"lan0", "lan1"}, Mode: "802.3ad"}, Addresses: []string{"192.0.2.10/24", "2001:db8::10/64"}, Gateways: []string{"192.0.2.1", "fe80::1"},
					Routes: []lpmos.Route{{To: "198.51.100.0/24", Via: "192.0.2.254", Metric: 50}}},
				{Name: "storage", VLAN: &lpmos.VLAN{ID: 30, Parent: "bond0"}, Addresses: []string{"203.0.113.2/31"}},
			},
			DNS: []string{"192.0.2.53", "2001:db8::53"}, Search: []string{"example.net"},
		},
		NTP: []string{"ntp.example.net", "192.0.2.123"}, Kernel: []string{"net.ifnames=0", "mitigations=auto"},
		Scripts: []lpmos.Script{{Name: "motd", Text: "#!/bin/sh\necho \"it's {{\" > /etc/motd\n"}},
	}
}

func TestSetupTakesEverything(t *testing.T) {
	got, err := setup().Normalize()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(setup(), got); diff != "" {
		t.Errorf("Normalize changed what was right (-given +got):\n%s", diff)
	}
}

// TestSetupRefuses is the profile's part of V11, V12, V15 and V16: what would
// become a line, an argument or a command of its own is refused with its field.
func TestSetupRefuses(t *testing.T) {
	type edit func(*lpmos.Setup)
	iface := func(i int, do func(*lpmos.Interface)) edit {
		return func(s *lpmos.Setup) { do(&s.Network.Interfaces[i]) }
	}
	for _, tt := range []struct {
		name, field string
		edit        edit
	}{
		{"a user name with a colon", "users[0].name", func(s *lpmos.Setup) { s.Users[0].Name = "ops:x:0:0" }},
		{"a user name with a line end", "users[0].name", func(s *lpmos.Setup) { s.Users[0].Name = "ops\nroot2" }},
		{"%end as a user name", "users[0].name", func(s *lpmos.Setup) { s.Users[0].Name = "%end" }},
		{"root as a user", "users[1].name", func(s *lpmos.Setup) { s.Users[1].Name = "root" }},
		{"a user twice", "users[1].name", func(s *lpmos.Setup) { s.Users[1].Name = "ops" }},
		{"a person's name with a colon", "users[0].gecos", func(s *lpmos.Setup) { s.Users[0].Gecos = "a:/root:/bin/sh" }},
		{"a person's name with a line end", "users[0].gecos", func(s *lpmos.Setup) { s.Users[0].Gecos = "a\nevil:x:0:0::/:/bin/sh" }},
		{"a person's name with a next-line character", "users[0].gecos", func(s *lpmos.Setup) { s.Users[0].Gecos = "a\u0085b" }},
		{"a shell with arguments", "users[0].shell", func(s *lpmos.Setup) { s.Users[0].Shell = "/bin/sh -c x" }},
		{"a shell out of the way", "users[0].shell", func(s *lpmos.Setup) { s.Users[0].Shell = "/bin/../x" }},
		{"a group with a comma", "users[0].groups[0]", func(s *lpmos.Setup) { s.Users[0].Groups = []string{"a,sudo"} }},
		{"a key with options", "users[0].ssh_keys", func(s *lpmos.Setup) { s.Users[0].SSHKeys = []string{`command="x" ` + edKey} }},
		{"two keys on one line", "users[0].ssh_keys", func(s *lpmos.Setup) { s.Users[0].SSHKeys = []string{edKey + "\n" + edKey} }},
		{"a time zone out of its directory", "timezone", func(s *lpmos.Setup) { s.Timezone = "Europe/../../../etc/shadow" }},
		{"a time zone with an absolute path", "timezone", func(s *lpmos.Setup) { s.Timezone = "/etc/shadow" }},
		{"a locale with a line end", "locale", func(s *lpmos.Setup) { s.Locale = "C\nX=1" }},
		{"a keyboard with quotes", "keyboard", func(s *lpmos.Setup) { s.Keyboard = `us"` }},
		{"a time server with a space", "ntp[0]", func(s *lpmos.Setup) { s.NTP[0] = "a b" }},
		{"a package that is an option", "packages[0]", func(s *lpmos.Setup) { s.Packages = []string{"--allow-unauthenticated"} }},
		{"a package with a version", "packages[0]", func(s *lpmos.Setup) { s.Packages = []string{"nginx=1"} }},
		{"a kernel argument with a line end", "kernel_args[0]", func(s *lpmos.Setup) { s.Kernel[0] = "a\nb" }},
		{"a kernel argument with a quotation mark", "kernel_args[0]", func(s *lpmos.Setup) { s.Kernel[0] = `a="b` }},
		{"a kernel argument with NUL", "kernel_args[0]", func(s *lpmos.Setup) { s.Kernel[0] = "a\x00" }},
		{"another init", "kernel_args[0]", func(s *lpmos.Setup) { s.Kernel[0] = "init=/bin/sh" }},
		{"another root", "kernel_args[0]", func(s *lpmos.Setup) { s.Kernel[0] = "root=/dev/sdb1" }},
		{"single-user mode", "kernel_args[0]", func(s *lpmos.Setup) { s.Kernel[0] = "single" }},
		{"an iPXE variable", "kernel_args[0]", func(s *lpmos.Setup) { s.Kernel[0] = "${net0/mac}" }},
		{"an iPXE command", "kernel_args[0]", func(s *lpmos.Setup) { s.Kernel[0] = "a && shell" }},
		{"a script without an interpreter", "scripts[0].text", func(s *lpmos.Setup) { s.Scripts[0].Text = "echo" }},
		{"a script with Windows line ends", "scripts[0].text", func(s *lpmos.Setup) { s.Scripts[0].Text = "#!/bin/sh\r\n" }},
		{"a script that is too long", "scripts[0].text", func(s *lpmos.Setup) { s.Scripts[0].Text = "#!/bin/sh" + strings.Repeat(" ", lpmos.MaxScriptBytes) }},
		{"a script name that is a path", "scripts[0].name", func(s *lpmos.Setup) { s.Scripts[0].Name = "../x" }},
		{"no interface", "network.interfaces", func(s *lpmos.Setup) { s.Network.Interfaces = nil }},
		{"a name server that is a name", "network.dns[0]", func(s *lpmos.Setup) { s.Network.DNS[0] = "dns.example" }},
		{"a search domain with a line end", "network.search[0]", func(s *lpmos.Setup) { s.Network.Search[0] = "a\nb" }},
		{"an interface name that is a path", "network.interfaces[0].name", iface(0, func(f *lpmos.Interface) { f.Name = "a/b" })},
		{"an interface name that is too long", "network.interfaces[0].name", iface(0, func(f *lpmos.Interface) { f.Name = "abcdefghijklmnop" })},
		{"a port and a VLAN at once", "network.interfaces[0].nic", iface(0, func(f *lpmos.Interface) { f.VLAN = &lpmos.VLAN{ID: 1, Parent: "lan1"} })},
		{"a port by its kernel name", "network.interfaces[0].nic", iface(0, func(f *lpmos.Interface) { f.NIC = "eth0" })},
		{"a port twice", "network.interfaces[1].nic", iface(1, func(f *lpmos.Interface) { f.NIC = "boot" })},
		{"a member with an address", "network.interfaces[2].bond.members", iface(0, func(f *lpmos.Interface) { f.DHCP4 = true })},
		{"a member that is a VLAN", "network.interfaces[2].bond.members", iface(2, func(f *lpmos.Interface) { f.Bond.Members = []string{"storage"} })},
		{"an unknown bond mode", "network.interfaces[2].bond.mode", iface(2, func(f *lpmos.Interface) { f.Bond.Mode = "4" })},
		{"a VLAN number that is too high", "network.interfaces[3].vlan.id", iface(3, func(f *lpmos.Interface) { f.VLAN.ID = 4095 })},
		{"a VLAN on a member", "network.interfaces[3].vlan.parent", iface(3, func(f *lpmos.Interface) { f.VLAN.Parent = "lan0" })},
		{"an address without a length", "network.interfaces[2].addresses", iface(2, func(f *lpmos.Interface) { f.Addresses[0] = "192.0.2.10" })},
		{"the address of the network", "network.interfaces[2].addresses", iface(2, func(f *lpmos.Interface) { f.Addresses[0] = "192.0.2.0/24" })},
		{"an address with a zone", "network.interfaces[2].addresses", iface(2, func(f *lpmos.Interface) { f.Addresses[1] = "fe80::1%eth0/64" })},
		{"a gateway that no address reaches", "network.interfaces[2].gateways", iface(2, func(f *lpmos.Interface) { f.Gateways[0] = "198.51.100.1" })},
		{"a route to a host's address", "network.interfaces[2].routes[0].to", iface(2, func(f *lpmos.Interface) { f.Routes[0].To = "198.51.100.7/24" })},
		{"a route over another family", "network.interfaces[2].routes[0].via", iface(2, func(f *lpmos.Interface) { f.Routes[0].Via = "2001:db8::1" })},
		{"an MTU that is too small", "network.interfaces[2].mtu", iface(2, func(f *lpmos.Interface) { f.MTU = 100 })},
		{"addresses beside per_machine", "network.interfaces[2].addresses", iface(2, func(f *lpmos.Interface) { f.PerMachine = true })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := setup()
			tt.edit(&s)
			_, err := s.Normalize()
			if invalid, ok := errors.AsType[*lpmos.InvalidError](err); !ok || invalid.Field != "system."+tt.field {
				t.Errorf("Normalize = %v; want an InvalidError on system.%s", err, tt.field)
			}
		})
	}
}

func planned(t *testing.T, p lpmos.Plan, path string) lpmos.PlannedFile {
	t.Helper()
	for _, f := range p.Effect.Files {
		if f.Path == path {
			return f
		}
	}
	t.Fatalf("the plan has no %s", path)
	return lpmos.PlannedFile{}
}

func configured(edit func(*lpmos.Task, *lpmos.Image)) lpmos.Plan {
	tk, img, s := task(), image(), setup()
	tk.Setup = &s
	if edit != nil {
		edit(tk, &img)
	}
	return lpmos.NewPlan(tk, server(), img)
}

func TestPlanResolvesNetwork(t *testing.T) {
	p := configured(nil)
	if p.Problem != "" {
		t.Fatal(p.Problem)
	}
	got := p.Effect.System.Network.Interfaces
	if got[0].NIC != "52:54:00:00:00:01" || got[1].NIC != "52:54:00:00:00:02" || p.Effect.Network.Mode != "declared" || len(p.Effect.Network.MACs) != 2 {
		t.Errorf("ports %q and %q, network %+v", got[0].NIC, got[1].NIC, p.Effect.Network)
	}
	if p.Effect.KernelArgs != "net.ifnames=0 mitigations=auto" {
		t.Errorf("kernel arguments %q", p.Effect.KernelArgs)
	}
	for name, tt := range map[string]struct {
		edit func(*lpmos.Task)
		want string // problem
	}{
		"a port that is not there": {func(t *lpmos.Task) { t.Setup.Network.Interfaces[1].NIC = "nic7" }, "the machine has 2 network ports"},
		"a MAC of another machine": {func(t *lpmos.Task) { t.Setup.Network.Interfaces[1].NIC = "52:54:00:00:00:99" }, "which this machine does not have"},
		"one port by two names":    {func(t *lpmos.Task) { t.Setup.Network.Interfaces[1].NIC = "nic1" }, "are the same network port"},
		"no address where each has one": {func(t *lpmos.Task) {
			t.Setup.Network = &lpmos.Network{Interfaces: []lpmos.Interface{{Name: "lan0", NIC: "boot", PerMachine: true}}}
		}, "this task gives none"},
		"packages without cloud-init": {func(t *lpmos.Task) { t.Setup.Packages = []string{"nginx"} }, "does not have"},
	} {
		if p := configured(func(t *lpmos.Task, _ *lpmos.Image) { tt.edit(t) }); !strings.Contains(p.Problem, tt.want) {
			t.Errorf("%s: problem %q; want %q", name, p.Problem, tt.want)
		}
	}
}

func TestTaskAddressesOverrideProfile(t *testing.T) {
	own := []string{"192.0.2.77/24"}
	give := func(n *lpmos.Network) *lpmos.Network {
		p := configured(func(t *lpmos.Task, _ *lpmos.Image) {
			t.Setup.Network, t.Addresses, t.Gateways = n, own, []string{"192.0.2.1"}
		})
		if p.Problem != "" {
			t.Fatal(p.Problem)
		}
		return p.Effect.System.Network
	}
	if got := give(nil); len(got.Interfaces) != 1 || got.Interfaces[0].NIC != "52:54:00:00:00:01" || !slices.Equal(got.Static(), own) {
		t.Errorf("without a network the boot port gets %+v", got)
	}
	if got := give(setup().Network); !slices.Equal(got.Interfaces[2].Addresses, own) {
		t.Errorf("the first interface that is no member gets %+v", got.Interfaces)
	}
	left := &lpmos.Network{Interfaces: []lpmos.Interface{{Name: "a", NIC: "nic2", DHCP4: true}, {Name: "b", NIC: "boot", PerMachine: true}}}
	if got := give(left); !slices.Equal(got.Interfaces[1].Addresses, own) || !got.Interfaces[0].DHCP4 {
		t.Errorf("the interface that is each task's gets %+v", got.Interfaces)
	}
	if left.Interfaces[1].Addresses != nil {
		t.Error("the profile itself was changed")
	}
}

// TestCloudSeedRoundTrips reads the seed back: it is JSON, and so YAML.
func TestCloudSeedRoundTrips(t *testing.T) {
	p := configured(func(_ *lpmos.Task, i *lpmos.Image) { i.CloudInit = true })
	const seed = "/var/lib/cloud/seed/nocloud/"
	var user struct {
		Timezone, Locale string
		Users            []any
		NTP              struct{ Servers []string }
	}
	text, ok := strings.CutPrefix(planned(t, p, seed+"user-data").Text, "#cloud-config\n")
	if err := json.Unmarshal([]byte(text), &user); err != nil || !ok || user.Timezone != "Europe/Berlin" || user.Locale != "de_DE.UTF-8" || len(user.Users) != 4 || len(user.NTP.Servers) != 2 {
		t.Errorf("user-data %+v, %v", user, err)
	}
	var network struct {
		Ethernets map[string]struct{ Match struct{ MACAddress string } }
		Bonds     map[string]struct {
			Interfaces, Addresses []string
			Routes                []map[string]any
		}
		VLANs map[string]struct {
			ID   int
			Link string
		}
	}
	if err := json.Unmarshal([]byte(planned(t, p, seed+"network-config").Text), &network); err != nil {
		t.Fatal(err)
	}
	if network.Ethernets["lan1"].Match.MACAddress != "52:54:00:00:00:02" || network.VLANs["storage"].ID != 30 || network.VLANs["storage"].Link != "bond0" ||
		!slices.Equal(network.Bonds["bond0"].Interfaces, []string{"lan0", "lan1"}) || len(network.Bonds["bond0"].Routes) != 3 {
		t.Errorf("network-config %+v", network)
	}
	if f := planned(t, p, "/var/lib/cloud/scripts/per-instance/01-lpmos-motd"); f.Text != setup().Scripts[0].Text || f.Mode != "0755" {
		t.Errorf("script %+v", f)
	}
}

func TestDirectFiles(t *testing.T) {
	p := configured(nil)
	for path, want := range map[string]string{
		"/etc/systemd/network/10-lpmos-lan0.network":                        "[Match]\nPermanentMACAddress=52:54:00:00:00:01\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nBond=bond0\n",
		"/etc/systemd/network/10-lpmos-bond0.netdev":                        "[NetDev]\nName=bond0\nKind=bond\n\n[Bond]\nMode=802.3ad\n",
		"/etc/systemd/network/10-lpmos-bond0.network":                       "Address=192.0.2.10/24\nAddress=2001:db8::10/64\nGateway=192.0.2.1\nGateway=fe80::1\nDNS=192.0.2.53\nDNS=2001:db8::53\nDomains=example.net\nVLAN=storage\n\n[Route]\nDestination=198.51.100.0/24\nGateway=192.0.2.254\nMetric=50\n",
		"/etc/systemd/network/10-lpmos-storage.netdev":                      "Kind=vlan\n\n[VLAN]\nId=30\n",
		"/etc/NetworkManager/system-connections/lpmos-bond0.nmconnection":   "[ipv4]\nmethod=manual\naddress1=192.0.2.10/24\ngateway=192.0.2.1\nroute1=198.51.100.0/24,192.0.2.254,50\ndns=192.0.2.53;\ndns-search=example.net;\n",
		"/etc/sudoers.d/90-lpmos":                                           "ops ALL=(ALL) NOPASSWD:ALL\n",
		"/etc/systemd/system/" + lpmos.FirstBootUnit:                        "ExecStart=/usr/lib/lpmos/first-boot/01-motd\n",
		"/etc/systemd/timesyncd.conf.d/10-lpmos.conf":                       "[Time]\nNTP=ntp.example.net 192.0.2.123\n",
		"/home/ops/.ssh/authorized_keys":                                    edKey + "\n",
		"/etc/NetworkManager/system-connections/lpmos-storage.nmconnection": "[vlan]\nid=30\nparent=bond0\n",
	} {
		if f := planned(t, p, path); !strings.Contains(f.Text, want) {
			t.Errorf("%s is\n%s\nwithout\n%s", path, f.Text, want)
		}
	}
	if f := planned(t, p, "/etc/localtime"); f.Link != "/usr/share/zoneinfo/Europe/Berlin" {
		t.Errorf("/etc/localtime %+v", f)
	}
}

var awkward = []string{
	"on", "0755", "11:22:33:44:55:59", "12e03", "1_000", "<<", "=", "~", "null", "yes", "- a", "# b", "a: b", "a #b", "&x *x", "!!python/object", "%x", "`x", "@x", "{x", "[x",
	"'", `"`, `\`, "\"\\n- runcmd: [x]", "\"\n- runcmd: [x]\n", "x\nruncmd:\n- [y]", "*a", "!!binary aGk=", "!!timestamp 2026-01-01", "0x1F", "0o17", ".inf", "2026-01-01", "1:30", " x ", "é", "\u0085", "\u00a0", "\u2028", "\u2029", "\ufeff", "\ufffd", "😀", "\u007f", "\u009f",
}

// TestOnePortMakesTheMachineOnline looks at a network that nobody declared: of
// systemd 253 and later, one without any port that is required is never online.
func TestOnePortMakesTheMachineOnline(t *testing.T) {
	first, second := lpmos.MustMAC("52:54:00:00:00:01"), lpmos.MustMAC("52:54:00:00:00:02")
	plan := func(edit func(*lpmos.Hardware, *lpmos.Image)) lpmos.Plan {
		tk, h, i := task(), server(), image()
		tk.TargetMAC = second
		edit(h, &i)
		return lpmos.NewPlan(tk, h, i)
	}
	p := plan(func(*lpmos.Hardware, *lpmos.Image) {})
	if want := []lpmos.MAC{second, first}; !slices.Equal(p.Effect.Network.MACs, want) {
		t.Errorf("ports %v; want that of the task first: %v", p.Effect.Network.MACs, want)
	}
	own, others := planned(t, p, "/etc/systemd/network/10-lpmos.network").Text, planned(t, p, "/etc/systemd/network/10-lpmos-others.network").Text
	if !strings.Contains(own, "MACAddress=52:54:00:00:00:02\n") || strings.Contains(own, "RequiredForOnline") {
		t.Errorf("the task's port:\n%s", own)
	}
	if !strings.Contains(others, "MACAddress=52:54:00:00:00:01\n") || !strings.Contains(others, "\n[Link]\nRequiredForOnline=no\n") {
		t.Errorf("the other:\n%s", others)
	}
	if again := plan(func(h *lpmos.Hardware, _ *lpmos.Image) { h.BootMAC = second }); again.Digest != p.Digest {
		t.Error("the port that the machine booted from changes the plan")
	}
	var network struct {
		Ethernets map[string]struct {
			Match    struct{ MACAddress string }
			Optional bool
		}
	}
	seed := planned(t, plan(func(_ *lpmos.Hardware, i *lpmos.Image) { i.CloudInit = true }), "/var/lib/cloud/seed/nocloud/network-config").Text
	if err := json.Unmarshal([]byte(seed), &network); err != nil {
		t.Fatal(err)
	}
	if a, b := network.Ethernets["nic0"], network.Ethernets["nic1"]; a.Match.MACAddress != second.String() || a.Optional || b.Match.MACAddress != first.String() || !b.Optional {
		t.Errorf("network-config %s", seed)
	}
}

// TestSeedIsYAML gives awkward texts to the reader that cloud-init uses, as the
// seed has them and as a template puts a machine's facts in (V13).
func TestSeedIsYAML(t *testing.T) {
	python, err := exec.LookPath("/usr/bin/python3") // for which Debian packages PyYAML
	if err != nil {
		tier.Missing(t, "tools", "there is no Python")
	}
	// One process reads them all: it takes longer to start than to read.
	var all, want []string
	for _, s := range awkward {
		text, err := lpmos.TaskTemplate{Kind: lpmos.TemplateUserData, Text: "#cloud-config\nusers: [0, 1, {gecos: {{json asset}}}]\n"}.Render(lpmos.Facts{Text: map[string]string{"asset": s}})
		if err != nil {
			t.Fatal(err)
		}
		all, want = append(all, text), append(want, s)
	}
	for _, s := range awkward {
		tk, img := task(), image()
		img.CloudInit = true
		tk.Setup = &lpmos.Setup{Users: []lpmos.Account{{Name: "ops", Gecos: s}}} // as if nothing had refused it
		all, want = append(all, planned(t, lpmos.NewPlan(tk, server(), img), "/var/lib/cloud/seed/nocloud/user-data").Text), append(want, s)
	}
	in, _ := json.Marshal(all)
	cmd := exec.Command(python, "-c", "import sys,json,yaml\nprint(json.dumps([yaml.safe_load(d)['users'][2].get('gecos','').encode().decode() for d in json.load(sys.stdin)]))")
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	var got []string
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && strings.Contains(string(exit.Stderr), "No module named") {
		tier.Missing(t, "tools", "there is no PyYAML")
	}
	if err != nil || json.Unmarshal(out, &got) != nil {
		t.Fatalf("PyYAML: %v, %q", err, out)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("PyYAML reads something else (-given +got):\n%s", diff)
	}
}

func TestKernelArgumentsAreOneLine(t *testing.T) {
	plain := regexp.MustCompile(`^[A-Za-z0-9_.,:/=@%+-]+$`) // what a boot menu takes
	for _, a := range []string{"quiet", "console=ttyS0,115200", "hugepages=16", "isolcpus=1-3", "a.b=c/d@e%f"} {
		if s, err := (lpmos.Setup{Kernel: []string{a}}).Normalize(); err != nil || !plain.MatchString(s.Kernel[0]) {
			t.Errorf("%q: %v", a, err)
		}
	}
}

// FuzzProfile holds whatever is accepted as a profile to what is made of it:
// every file is text on lines that the plan meant, and the YAML reads back.
func FuzzProfile(f *testing.F) {
	whole, _ := json.Marshal(lpmos.Profile{Name: "web", System: new(setup())})
	f.Add(whole)
	for _, s := range awkward {
		b, _ := json.Marshal(lpmos.Profile{Name: "web", System: &lpmos.Setup{Users: []lpmos.Account{{Name: "ops", Gecos: s}}, Timezone: s, Kernel: []string{s}, Scripts: []lpmos.Script{{Name: "a", Text: "#!/bin/sh\n" + s}}}})
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var p lpmos.Profile
		if lpmos.UnmarshalJSON(body, &p) != nil {
			return
		}
		p, err := p.Normalize()
		if err != nil || p.System == nil {
			return
		}
		if again, err := p.Normalize(); err != nil || lpmos.DigestOf(again) != lpmos.DigestOf(p) {
			t.Fatalf("normalized twice it is another: %v", err)
		}
		for _, cloudInit := range []bool{true, false} {
			tk, img := task(), image()
			img.CloudInit, tk.Setup = cloudInit, p.System
			plan := lpmos.NewPlan(tk, server(), img)
			for _, file := range plan.Effect.Files {
				if strings.Contains(file.Text, "\r") || strings.Contains(file.Text, "\x00") || strings.ContainsAny(file.Path, "\n\\") {
					t.Fatalf("%q holds what no file of ours does", file.Path)
				}
				if strings.HasPrefix(file.Path, "/var/lib/cloud/seed/") {
					var v any
					text := strings.TrimPrefix(file.Text, "#cloud-config\n")
					if err := json.Unmarshal([]byte(text), &v); err != nil {
						t.Fatalf("%s: %v", file.Path, err)
					}
				}
				if strings.HasSuffix(file.Path, ".network") || strings.HasSuffix(file.Path, ".netdev") || strings.HasSuffix(file.Path, ".nmconnection") {
					for line := range strings.Lines(file.Text) {
						line = strings.TrimSuffix(line, "\n")
						if line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "[") && !strings.Contains(line, "=") {
							t.Fatalf("%s has the line %q", file.Path, line)
						}
					}
				}
			}
			if plan.ComputeDigest() != plan.Digest || bytes.Contains(lpmos.CanonicalJSON(plan), []byte("\n")) {
				t.Fatal("the plan is not one")
			}
		}
	})
}
