package web

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
)

// setupForm is what was typed of a profile's system, kept as it was. Rows that
// are blank are no users, interfaces or scripts; there is always one to fill
// in.
type setupForm struct {
	Timezone, Locale, Keyboard, NTP, Packages, Kernel, DNS, Search string

	Users      []accountRow
	Interfaces []interfaceRow
	Scripts    []scriptRow
}

type accountRow struct {
	Name, Gecos, Groups, Shell, Keys string
	Sudo, Password                   bool
}

type interfaceRow struct {
	Name, Kind, NIC, Members, Mode, VLAN, Parent, Addresses, Gateways, Routes, MTU string
	DHCP4, DHCP6, PerMachine                                                       bool
}

type scriptRow struct{ Name, Text string }

func (r accountRow) blank() bool { return r == accountRow{} }
func (r interfaceRow) blank() bool {
	r.Kind, r.Mode = "", "" // choices always have a value
	return r == interfaceRow{}
}
func (r scriptRow) blank() bool { return r == scriptRow{} }

// maxRows bounds the rows of a kind that are read from a form.
const maxRows = 128

// splitList parts what stands in one field.
func splitList(v string) []string {
	return strings.FieldsFunc(v, func(r rune) bool { return strings.ContainsRune(" ,;\r\n\t", r) })
}

// readSetup reads the form; nil says that nothing is configured.
func readSetup(p url.Values) (setupForm, *lpmos.Setup) {
	text := func(name string) string { return strings.TrimSpace(lineEndings(p.Get(name))) }
	f := setupForm{Timezone: text("timezone"), Locale: text("locale"), Keyboard: text("keyboard"), NTP: text("ntp"), Packages: text("packages"),
		Kernel: text("kernel_args"), DNS: text("dns"), Search: text("search")}
	s := lpmos.Setup{Timezone: f.Timezone, Locale: f.Locale, Keyboard: f.Keyboard, NTP: splitList(f.NTP), Packages: splitList(f.Packages), Kernel: strings.Fields(f.Kernel)}
	var n lpmos.Network
	for i := range maxRows {
		at := func(kind, name string) string { return text(fmt.Sprintf("%s-%d-%s", kind, i, name)) }
		on := func(kind, name string) bool { return at(kind, name) != "" }
		u := accountRow{Name: at("users", "name"), Gecos: at("users", "gecos"), Groups: at("users", "groups"), Shell: at("users", "shell"), Keys: at("users", "ssh_keys"), Sudo: on("users", "sudo"), Password: on("users", "password")}
		hash := at("users", "password_hash")
		if !u.blank() || hash != "" {
			f.Users = append(f.Users, u)
			user := lpmos.Account{Name: u.Name, Gecos: u.Gecos, Groups: splitList(u.Groups), Shell: u.Shell, Sudo: u.Sudo, Password: u.Password}
			if hash != "" {
				user.PasswordHash = lpmos.NewSecret(hash)
			}
			for line := range strings.Lines(u.Keys) {
				if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
					user.SSHKeys = append(user.SSHKeys, line)
				}
			}
			s.Users = append(s.Users, user)
		}
		const ifs = "interfaces"
		r := interfaceRow{Name: at(ifs, "name"), Kind: at(ifs, "kind"), NIC: at(ifs, "nic"), Members: at(ifs, "bond-members"), Mode: at(ifs, "bond-mode"), VLAN: at(ifs, "vlan-id"), Parent: at(ifs, "vlan-parent"),
			Addresses: at(ifs, "addresses"), Gateways: at(ifs, "gateways"), Routes: at(ifs, "routes"), MTU: at(ifs, "mtu"), DHCP4: on(ifs, "dhcp4"), DHCP6: on(ifs, "dhcp6"), PerMachine: on(ifs, "per_machine")}
		if !r.blank() {
			f.Interfaces = append(f.Interfaces, r)
			n.Interfaces = append(n.Interfaces, r.read())
		}
		c := scriptRow{Name: at("scripts", "name"), Text: strings.TrimLeft(lineEndings(p.Get(fmt.Sprintf("scripts-%d-text", i))), "\n")}
		if !c.blank() {
			f.Scripts = append(f.Scripts, c)
			if c.Text != "" && !strings.HasSuffix(c.Text, "\n") {
				c.Text += "\n"
			}
			s.Scripts = append(s.Scripts, lpmos.Script(c))
		}
	}
	n.DNS, n.Search = splitList(f.DNS), splitList(f.Search)
	if len(n.Interfaces) > 0 || len(n.DNS) > 0 || len(n.Search) > 0 {
		s.Network = &n
	}
	if s.Empty() {
		return f, nil
	}
	return f, &s
}

// read takes what a row's kind has; what is no number is 0 or less, which is
// refused with the name of the field.
func (r interfaceRow) read() lpmos.Interface {
	number := func(text string) int {
		if text == "" {
			return 0
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			return -1
		}
		return n
	}
	f := lpmos.Interface{Name: r.Name, DHCP4: r.DHCP4, DHCP6: r.DHCP6, PerMachine: r.PerMachine, Addresses: splitList(r.Addresses), Gateways: splitList(r.Gateways), MTU: number(r.MTU)}
	switch r.Kind {
	case "bond":
		f.Bond = &lpmos.Bond{Members: splitList(r.Members), Mode: r.Mode}
	case "vlan":
		f.VLAN = &lpmos.VLAN{ID: number(r.VLAN), Parent: r.Parent}
	default:
		f.NIC = r.NIC
	}
	for line := range strings.Lines(r.Routes) {
		words := strings.Fields(strings.NewReplacer(" via ", " ", " metric ", " ").Replace(line))
		if len(words) == 0 {
			continue
		}
		route := lpmos.Route{To: words[0]}
		if len(words) > 1 {
			route.Via = words[1]
		}
		if len(words) > 2 {
			route.Metric = number(strings.Join(words[2:], " "))
		}
		f.Routes = append(f.Routes, route)
	}
	return f
}

func setupFormOf(s *lpmos.Setup) setupForm {
	if s == nil {
		return setupForm{}
	}
	lines := func(list []string) string { return strings.Join(list, "\n") }
	words := func(list []string) string { return strings.Join(list, " ") }
	f := setupForm{Timezone: s.Timezone, Locale: s.Locale, Keyboard: s.Keyboard, NTP: words(s.NTP), Packages: words(s.Packages), Kernel: words(s.Kernel)}
	for _, u := range s.Users {
		f.Users = append(f.Users, accountRow{u.Name, u.Gecos, words(u.Groups), u.Shell, lines(u.SSHKeys), u.Sudo, u.Password})
	}
	for _, c := range s.Scripts {
		f.Scripts = append(f.Scripts, scriptRow(c))
	}
	if s.Network == nil {
		return f
	}
	f.DNS, f.Search = words(s.Network.DNS), words(s.Network.Search)
	for _, i := range s.Network.Interfaces {
		r := interfaceRow{Name: i.Name, Kind: "nic", NIC: i.NIC, Addresses: words(i.Addresses), Gateways: words(i.Gateways), DHCP4: i.DHCP4, DHCP6: i.DHCP6, PerMachine: i.PerMachine}
		if i.MTU != 0 {
			r.MTU = strconv.Itoa(i.MTU)
		}
		if i.Bond != nil {
			r.Kind, r.Members, r.Mode = "bond", words(i.Bond.Members), i.Bond.Mode
		}
		if i.VLAN != nil {
			r.Kind, r.VLAN, r.Parent = "vlan", strconv.Itoa(i.VLAN.ID), i.VLAN.Parent
		}
		var routes []string
		for _, x := range i.Routes {
			line := x.To + " " + x.Via
			if x.Metric > 0 {
				line += " " + strconv.Itoa(x.Metric)
			}
			routes = append(routes, line)
		}
		r.Routes = lines(routes)
		f.Interfaces = append(f.Interfaces, r)
	}
	return f
}

// formField is one field of a form that is made of many alike.
type formField struct {
	Name    string // and, with f- before it, its id
	Label   string
	Hint    string
	Kind    string // "text", "area", "check", "choice"
	Value   string
	Checked bool
	Choices []choice
	Example string
	Rows    int
	Problem string
}

// formGroup is fields that belong together: plain ones, and rows of alike ones.
type formGroup struct {
	ID, Title, Hint string
	Fields          []formField
	Rows            []formRow
	More            string // label of the button that adds rows
	Open            bool   // something stands in it, or is wrong with it
	Count           int    // rows that are filled in
}

type formRow struct {
	Title  string
	Fields []formField
	// Rest is asked for more rarely.
	Rest []formField
	Open bool // something stands in Rest
}

// setupGroups is the form; more is how many blank rows each kind gets.
func (w *Web) setupGroups(f setupForm, problems []fieldProblem, more int) []formGroup {
	more = min(max(more, 1), 16)
	optional := func(name, label, hint, value, example string) formField {
		return formField{Name: name, Label: label, Hint: hint, Kind: "text", Value: value, Example: example}
	}
	place := formGroup{ID: "place", Title: w.T("Time and language"), Fields: []formField{
		optional("timezone", w.T("Time zone"), "", f.Timezone, "Europe/Berlin"), optional("locale", w.T("Locale"), "", f.Locale, "en_US.UTF-8"),
		optional("keyboard", w.T("Keyboard layout"), "", f.Keyboard, "us"),
		optional("ntp", w.T("Time servers"), w.T("Names or addresses, parted by spaces"), f.NTP, "ntp.example.net"),
	}}
	network := formGroup{ID: "network", Title: w.T("Network"), Hint: w.T("Without any interface here, every port asks DHCP. Ports are known by their MAC, never by a name."), More: w.T("One more interface"), Count: len(f.Interfaces)}
	for i := range len(f.Interfaces) + more {
		r := interfaceRow{Kind: "nic"}
		title := w.T("Another interface")
		if i < len(f.Interfaces) {
			r = f.Interfaces[i]
			title = r.Name
		}
		at := func(name string) string { return fmt.Sprintf("interfaces-%d-%s", i, name) }
		modes := []choice{}
		for _, m := range lpmos.BondModes {
			modes = append(modes, choice{Value: m, Label: m})
		}
		network.Rows = append(network.Rows, formRow{Title: title, Open: r.Kind != "nic" || r.Routes != "" || r.MTU != "", Fields: []formField{
			optional(at("name"), w.T("Name"), w.T("Of a port: only how bonds and VLANs here refer to it"), r.Name, "lan0"),
			{Name: at("kind"), Label: w.T("Kind"), Kind: "choice", Value: r.Kind, Choices: []choice{{Value: "nic", Label: w.T("a network port")}, {Value: "bond", Label: w.T("a bond of ports")}, {Value: "vlan", Label: w.T("a VLAN")}}},
			optional(at("nic"), w.T("Port"), w.T("boot: that the machine booted from; nic1: the first by its slot; or a MAC"), r.NIC, "boot"),
			{Name: at("dhcp4"), Label: w.T("IPv4 by DHCP"), Kind: "check", Checked: r.DHCP4}, {Name: at("dhcp6"), Label: w.T("IPv6 by DHCP"), Kind: "check", Checked: r.DHCP6},
			{Name: at("per_machine"), Label: w.T("Each task gives it its address"), Kind: "check", Checked: r.PerMachine},
			optional(at("addresses"), w.T("Addresses"), w.T("With their prefix length, parted by spaces"), r.Addresses, "192.0.2.10/24"),
			optional(at("gateways"), w.T("Gateways"), w.T("One of each family, parted by a space"), r.Gateways, "192.0.2.1"),
		}, Rest: []formField{
			optional(at("bond-members"), w.T("Ports of the bond"), w.T("Names from here, parted by spaces"), r.Members, "lan0 lan1"),
			{Name: at("bond-mode"), Label: w.T("Mode of the bond"), Kind: "choice", Value: r.Mode, Choices: modes},
			optional(at("vlan-id"), w.T("VLAN number"), "", r.VLAN, "10"), optional(at("vlan-parent"), w.T("VLAN on"), w.T("Name of a port or bond from here"), r.Parent, "bond0"),
			{Name: at("routes"), Label: w.T("Routes"), Hint: w.T("One per line: network, gateway and, if wanted, metric"), Kind: "area", Value: r.Routes, Example: "198.51.100.0/24 192.0.2.254", Rows: 2},
			optional(at("mtu"), "MTU", "", r.MTU, "1500"),
		}})
	}
	network.Fields = []formField{optional("dns", w.T("DNS servers"), w.T("Addresses, parted by spaces"), f.DNS, "192.0.2.53"), optional("search", w.T("Search domains"), w.T("Parted by spaces"), f.Search, "example.net")}
	users := formGroup{ID: "users", Title: w.T("Users"), Hint: w.T("Beside root. They log in with their keys, and at the console with a password where one is given."), More: w.T("One more user"), Count: len(f.Users)}
	for i := range len(f.Users) + more {
		var r accountRow
		title := w.T("Another user")
		if i < len(f.Users) {
			r = f.Users[i]
			title = r.Name
		}
		at := func(name string) string { return fmt.Sprintf("users-%d-%s", i, name) }
		users.Rows = append(users.Rows, formRow{Title: title, Fields: []formField{
			optional(at("name"), w.T("Name"), "", r.Name, "ops"), optional(at("gecos"), w.T("Person"), "", r.Gecos, ""),
			optional(at("groups"), w.T("Groups"), w.T("Parted by spaces; made if they are not there"), r.Groups, "adm"), optional(at("shell"), w.T("Shell"), "", r.Shell, "/bin/bash"),
			{Name: at("sudo"), Label: w.T("May act as root (sudo), without a password"), Kind: "check", Checked: r.Sudo},
			// What was typed is not shown again, not even to who typed it.
			optional(at("password_hash"), w.T("Password hash"), w.T("By mkpasswd or openssl passwd -6, never the password itself; kept sealed and not shown again"), "", "$6$…"),
			{Name: at("password"), Label: w.T("Has a password (the stored one, where no hash is given)"), Kind: "check", Checked: r.Password},
			{Name: at("ssh_keys"), Label: w.T("SSH public keys"), Hint: w.T("One per line"), Kind: "area", Value: r.Keys, Example: "ssh-ed25519 AAAA… name", Rows: 2},
		}})
	}
	software := formGroup{ID: "software", Title: w.T("Packages and kernel"), Fields: []formField{
		{Name: "packages", Label: w.T("Packages"), Hint: w.T("Parted by spaces. cloud-init installs them at the first boot, which needs a network and a repository; other images take none."), Kind: "area", Value: f.Packages, Example: "nginx chrony", Rows: 2},
		optional("kernel_args", w.T("Kernel arguments"), w.T("Parted by spaces; added to those of the image"), f.Kernel, "net.ifnames=0"),
	}}
	scripts := formGroup{ID: "scripts", Title: w.T("First-boot scripts"), Hint: w.T("Run once, as root, in this order. Everybody who approves can read them: no place for secrets."), More: w.T("One more script"), Count: len(f.Scripts)}
	for i := range len(f.Scripts) + more {
		var r scriptRow
		title := w.T("Another script")
		if i < len(f.Scripts) {
			r = f.Scripts[i]
			title = r.Name
		}
		at := func(name string) string { return fmt.Sprintf("scripts-%d-%s", i, name) }
		scripts.Rows = append(scripts.Rows, formRow{Title: title, Fields: []formField{
			optional(at("name"), w.T("Name"), "", r.Name, "motd"),
			{Name: at("text"), Label: w.T("Text"), Kind: "area", Value: r.Text, Example: "#!/bin/sh", Rows: 5},
		}})
	}
	out := []formGroup{network, users, place, software, scripts}
	for i := range out {
		g := &out[i]
		g.Open = g.Count > 0
		each := func(fields []formField) (any bool) {
			for j := range fields {
				fields[j].Problem = problemsOf(problems).Of(fields[j].Name)
				any = any || fields[j].Problem != ""
				g.Open = g.Open || fields[j].Problem != "" || fields[j].Value != "" && g.Count == 0 && len(g.Rows) == 0
			}
			return any
		}
		each(g.Fields)
		for j := range g.Rows {
			each(g.Rows[j].Fields)
			if each(g.Rows[j].Rest) {
				g.Rows[j].Open = true
			}
		}
	}
	return out
}

var (
	setupIndex = regexp.MustCompile(`\[(\d+)\]`)
	setupTail  = regexp.MustCompile(`^(interfaces-\d+-routes)-.*$|^(.*)-\d+$`)
)

// setupField is the field of the form that a problem of a Setup stands at.
func setupField(field string) string {
	s, ok := strings.CutPrefix(field, "system.")
	if !ok {
		return field
	}
	s = strings.TrimPrefix(s, "network.")
	s = strings.ReplaceAll(setupIndex.ReplaceAllString(s, "-$1"), ".", "-")
	if m := setupTail.FindStringSubmatch(s); m != nil {
		s = m[1] + m[2]
	}
	if slices.Contains([]string{"users", "scripts", "interfaces"}, s) {
		return s + "-0-name"
	}
	return s
}
