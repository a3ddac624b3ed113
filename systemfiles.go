package lpmos

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// What is written into an installed system beside the image is text that is
// made here, when the plan is made: whoever approves a plan can read it, its
// digest covers it, and the agent writes it as it stands. There is one encoder
// for each kind of file: jsonText for YAML and JSON, section for unit files,
// and no quoting in what has none, where only values stand that Normalize let
// through.

const seedDir = "/var/lib/cloud/seed/nocloud/"

// systemFiles is everything that is known beforehand of what configures the
// system, in the order in which it is written. cloudInit says that the image
// reads a NoCloud seed.
func (e *Effect) systemFiles(taskID, template string, cloudInit bool) ([]PlannedFile, error) {
	files := []PlannedFile{
		{Path: "/etc/hostname", Mode: "0644", What: "the host name", Text: e.Hostname + "\n"},
		{Path: "/etc/hosts", Mode: "0644", What: "the host name", Text: hostsText(e.Hostname)},
	}
	if len(e.SSHKeys) > 0 {
		files = append(files, PlannedFile{Path: "/root/.ssh/authorized_keys", Mode: "0600", What: "the SSH keys of this plan", Text: strings.Join(e.SSHKeys, "\n") + "\n"})
	}
	s := e.System
	if s == nil {
		s = &Setup{}
	}
	if cloudInit {
		return append(files, e.cloudFiles(s, taskID, template)...), nil
	}
	switch {
	case e.Installer != nil:
		// It sets up DHCP on the port it worked with, in its system's own way.
	case s.Network == nil:
		files = append(files, networkDHCP(e.Network.MACs)...)
	default:
		network, err := networkFiles(s.Network)
		if err != nil {
			return nil, err
		}
		files = append(files, network...)
	}
	return append(files, directFiles(s)...), nil
}

func hostsText(hostname string) string {
	own := hostname
	if short, _, ok := strings.Cut(hostname, "."); ok {
		own += " " + short
	}
	return "127.0.0.1 localhost\n127.0.1.1 " + own + "\n\n" +
		"::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
}

// jsonText is JSON that is YAML 1.1, too: the few code points that JSON lets
// stand and YAML does not, or takes for a line end, are escaped. Those above
// U+FFFF stay as they are, because YAML does not join surrogates.
func jsonText(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("lpmos: encode configuration: %v", err))
	}
	var out strings.Builder
	for _, r := range b.String() {
		switch {
		case r == 0x7f, r >= 0x80 && r < 0xa0, r == '\u2028', r == '\u2029', r == '\ufeff', r >= 0xfffe && r <= 0xffff:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}

// cloudFiles is a NoCloud seed (cloud-init, "NoCloud"). Where the plan has
// user-data of its own, ours becomes vendor-data: cloud-init takes from it what
// the user-data does not say.
func (e *Effect) cloudFiles(s *Setup, taskID, template string) []PlannedFile {
	root := map[string]any{"name": "root", "lock_passwd": true}
	users := []any{"default", root}
	user := map[string]any{
		"hostname":          e.Hostname,
		"preserve_hostname": false,
		"manage_etc_hosts":  false,
		"ssh_pwauth":        false,
		"disable_root":      false,
	}
	if len(e.SSHKeys) > 0 { // its schema calls an empty list invalid
		user["ssh_authorized_keys"], root["ssh_authorized_keys"] = e.SSHKeys, e.SSHKeys
	}
	if strings.Contains(e.Hostname, ".") {
		user["fqdn"] = e.Hostname
	}
	for _, u := range s.Users {
		m := map[string]any{"name": u.Name, "lock_passwd": true, "shell": u.shell()}
		if u.Password {
			m["lock_passwd"], m["passwd"] = false, u.passwordPlace()
		}
		if u.Gecos != "" {
			m["gecos"] = u.Gecos
		}
		if len(u.Groups) > 0 {
			m["groups"] = u.Groups
		}
		if u.Sudo {
			m["sudo"] = sudoRule
		}
		if len(u.SSHKeys) > 0 {
			m["ssh_authorized_keys"] = u.SSHKeys
		}
		users = append(users, m)
	}
	user["users"] = users
	if s.Timezone != "" {
		user["timezone"] = s.Timezone
	}
	if s.Locale != "" {
		user["locale"] = s.Locale
	}
	if s.Keyboard != "" {
		user["keyboard"] = map[string]any{"layout": s.Keyboard}
	}
	if len(s.NTP) > 0 {
		user["ntp"] = map[string]any{"enabled": true, "servers": s.NTP}
	}
	if len(s.Packages) > 0 {
		user["package_update"], user["packages"] = true, s.Packages
	}
	ours, files := seedDir+"user-data", []PlannedFile(nil)
	if e.UserData != "" {
		ours = seedDir + "vendor-data"
		files = append(files, PlannedFile{Path: seedDir + "user-data", Mode: "0600", What: "user-data for cloud-init from the template " + template, Text: e.UserData})
	}
	files = append(files,
		PlannedFile{Path: seedDir + "meta-data", Mode: "0644", What: "who this is, for cloud-init", Text: jsonText(map[string]any{"instance-id": taskID, "local-hostname": e.Hostname})},
		PlannedFile{Path: ours, Mode: "0600", What: "host name, users and settings for cloud-init", Text: "#cloud-config\n" + jsonText(user)},
		PlannedFile{Path: seedDir + "network-config", Mode: "0644", What: "network for cloud-init, by MAC", Text: jsonText(cloudNetwork(s.Network, e.Network.MACs))},
		// Without it the first boot asks every cloud there is.
		PlannedFile{Path: "/etc/cloud/cloud.cfg.d/99-lpmos.cfg", Mode: "0644", What: "cloud-init reads what was written and asks nobody", Text: jsonText(map[string]any{"datasource_list": []string{"NoCloud", "None"}})},
	)
	for i, f := range s.Scripts {
		files = append(files, PlannedFile{Path: fmt.Sprintf("/var/lib/cloud/scripts/per-instance/%02d-lpmos-%s", i+1, f.Name), Mode: "0755", What: "run once, by cloud-init, at the first boot", Text: f.Text})
	}
	return files
}

const sudoRule = "ALL=(ALL) NOPASSWD:ALL"

func (u Account) shell() string {
	if u.Shell == "" {
		return "/bin/bash"
	}
	return u.Shell
}

// cloudNetwork is network-config version 2, as netplan and cloud-init read it.
// Ports are matched by MAC and keep the names their system gives them.
func cloudNetwork(n *Network, macs []MAC) map[string]any {
	out := map[string]any{"version": 2}
	ethernets, bonds, vlans := map[string]any{}, map[string]any{}, map[string]any{}
	if n == nil {
		for i, mac := range macs {
			nic := map[string]any{"match": map[string]any{"macaddress": mac.String()}, "dhcp4": true}
			if i > 0 { // as networkDHCP has it
				nic["optional"] = true
			}
			ethernets[fmt.Sprintf("nic%d", i)] = nic
		}
		out["ethernets"] = ethernets
		return out
	}
	first := n.first()
	for _, f := range n.Interfaces {
		m := map[string]any{}
		if f.DHCP4 {
			m["dhcp4"] = true
		}
		if f.DHCP6 {
			m["dhcp6"] = true
		}
		if len(f.Addresses) > 0 {
			m["addresses"] = f.Addresses
		}
		if routes := f.allRoutes(); len(routes) > 0 {
			var list []any
			for _, r := range routes {
				route := map[string]any{"to": r.To, "via": r.Via}
				if r.Metric > 0 {
					route["metric"] = r.Metric
				}
				list = append(list, route)
			}
			m["routes"] = list
		}
		if f.MTU > 0 {
			m["mtu"] = f.MTU
		}
		if f.numbered() && (len(n.DNS) > 0 || len(n.Search) > 0) {
			servers := map[string]any{}
			if len(n.DNS) > 0 {
				servers["addresses"] = n.DNS
			}
			if len(n.Search) > 0 {
				servers["search"] = n.Search
			}
			m["nameservers"] = servers
		}
		if f.Name != first {
			m["optional"] = true
		}
		switch {
		case f.Bond != nil:
			m["interfaces"] = f.Bond.Members
			p := map[string]any{"mode": f.Bond.Mode, "mii-monitor-interval": 100}
			if f.Bond.Mode == "802.3ad" {
				p["lacp-rate"] = "fast"
			}
			m["parameters"] = p
			bonds[f.Name] = m
		case f.VLAN != nil:
			m["id"], m["link"] = f.VLAN.ID, f.VLAN.Parent
			vlans[f.Name] = m
		default:
			m["match"] = map[string]any{"macaddress": f.NIC}
			ethernets[f.Name] = m
		}
	}
	for name, m := range map[string]map[string]any{"ethernets": ethernets, "bonds": bonds, "vlans": vlans} {
		if len(m) > 0 {
			out[name] = m
		}
	}
	return out
}

// numbered reports whether the interface has addresses of its own.
func (f Interface) numbered() bool { return f.DHCP4 || f.DHCP6 || len(f.Addresses) > 0 }

// first is the interface that the system waits for: without it, it is not
// online. "" when none has an address.
func (n *Network) first() string {
	if i := slices.IndexFunc(n.Interfaces, Interface.numbered); i >= 0 {
		return n.Interfaces[i].Name
	}
	return ""
}

// allRoutes are the routes with those to everywhere, spelled so that every
// reader of network-config takes them.
func (f Interface) allRoutes() []Route {
	var out []Route
	for _, g := range f.Gateways {
		to := "0.0.0.0/0"
		if strings.Contains(g, ":") {
			to = "::/0"
		}
		out = append(out, Route{To: to, Via: g})
	}
	return append(out, f.Routes...)
}

// directFiles is what configures a system without cloud-init. Accounts are the
// agent's to add, because the image's own decide which numbers are free.
func directFiles(s *Setup) []PlannedFile {
	var files []PlannedFile
	add := func(path, mode, what, text string) {
		files = append(files, PlannedFile{Path: path, Mode: mode, What: what, Text: text})
	}
	if s.Timezone != "" {
		files = append(files, PlannedFile{Path: "/etc/localtime", Mode: "0777", What: "the time zone", Link: "/usr/share/zoneinfo/" + s.Timezone})
		add("/etc/timezone", "0644", "the time zone", s.Timezone+"\n")
	}
	if s.Locale != "" {
		add("/etc/locale.conf", "0644", "the locale", "LANG="+s.Locale+"\n")
		add("/etc/default/locale", "0644", "the locale", "LANG="+s.Locale+"\n")
	}
	if s.Keyboard != "" {
		add("/etc/vconsole.conf", "0644", "the keyboard", "KEYMAP="+s.Keyboard+"\n")
		add("/etc/default/keyboard", "0644", "the keyboard", "XKBMODEL=\"pc105\"\nXKBLAYOUT=\""+s.Keyboard+"\"\nXKBVARIANT=\"\"\nXKBOPTIONS=\"\"\nBACKSPACE=\"guess\"\n")
	}
	if len(s.NTP) > 0 {
		add("/etc/systemd/timesyncd.conf.d/10-lpmos.conf", "0644", "time servers", writtenBy+"[Time]\nNTP="+strings.Join(s.NTP, " ")+"\n")
		text := writtenBy
		for _, n := range s.NTP {
			text += "server " + n + " iburst\n"
		}
		files = append(files, PlannedFile{Path: "/etc/chrony/sources.d/lpmos.sources", Mode: "0644", What: "time servers", If: "/etc/chrony/sources.d", Text: text})
	}
	sudoers := ""
	for _, u := range s.Users {
		if u.Sudo {
			sudoers += u.Name + " " + sudoRule + "\n"
		}
		if len(u.SSHKeys) > 0 {
			files = append(files, PlannedFile{Path: "/home/" + u.Name + "/.ssh/authorized_keys", Mode: "0600", Owner: u.Name, What: "the SSH keys of " + u.Name, Text: strings.Join(u.SSHKeys, "\n") + "\n"})
		}
	}
	if len(s.Users) > 0 {
		files = slices.Insert(files, 0, PlannedFile{Path: "/etc/passwd, group, shadow, gshadow", Mode: "as they are", What: "accounts are added: " + strings.Join(s.userNames(), ", ")})
	}
	if sudoers != "" {
		add("/etc/sudoers.d/90-lpmos", "0440", "who may act as root", writtenBy+sudoers)
	}
	if len(s.Scripts) == 0 {
		return files
	}
	unit := firstBootUnit
	for i, f := range s.Scripts {
		path := fmt.Sprintf("/usr/lib/lpmos/first-boot/%02d-%s", i+1, f.Name)
		add(path, "0755", "run once at the first boot", f.Text)
		unit += "ExecStart=" + path + "\n"
	}
	add("/etc/lpmos/first-boot", "0644", "says that the scripts have not run; removed when they begin", writtenBy)
	add("/etc/systemd/system/"+FirstBootUnit, "0644", "runs the scripts of the first boot", unit+"\n[Install]\nWantedBy=multi-user.target\n")
	return append(files, PlannedFile{Path: "/etc/systemd/system/multi-user.target.wants/" + FirstBootUnit, Mode: "0777", What: "starts them", Link: "/etc/systemd/system/" + FirstBootUnit})
}

const writtenBy = "# Written by LPMOS at installation.\n"

// FirstBootUnit runs the scripts of a Setup where there is no cloud-init.
const FirstBootUnit = "lpmos-first-boot.service"

// The marker goes first, so that scripts run once also when one of them fails.
const firstBootUnit = `[Unit]
Description=LPMOS: scripts of the first boot
ConditionPathExists=/etc/lpmos/first-boot
Wants=network-online.target
After=network-online.target
Before=lpmos-callhome.service

[Service]
Type=oneshot
TimeoutStartSec=30min
ExecStartPre=/bin/rm /etc/lpmos/first-boot
`

func (s *Setup) userNames() []string {
	var out []string
	for _, u := range s.Users {
		out = append(out, u.Name)
	}
	return out
}
