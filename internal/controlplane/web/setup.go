package web

import (
	"fmt"
	"html/template"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
)

// setupLine is one thing that a plan's system is configured with.
type setupLine struct{ What, Value string }

// setupLines is a Setup in words.
func (s *tongue) setupLines(x *lpmos.Setup) []setupLine {
	if x == nil {
		return nil
	}
	var out []setupLine
	add := func(what, value string) {
		if value != "" {
			out = append(out, setupLine{what, value})
		}
	}
	if x.Network != nil {
		for _, f := range x.Network.Interfaces {
			add(s.T("Interface %s", f.Name), s.interfaceWords(f))
		}
		add(s.T("DNS servers"), s.list(x.Network.DNS))
		add(s.T("Search domains"), s.list(x.Network.Search))
	}
	for _, u := range x.Users {
		words := []string{}
		if u.Gecos != "" {
			words = append(words, u.Gecos)
		}
		if len(u.Groups) > 0 {
			words = append(words, s.T("in %s", s.list(u.Groups)))
		}
		if u.Sudo {
			words = append(words, s.T("may act as root"))
		}
		if u.Password {
			words = append(words, s.T("has a password"))
		}
		if len(u.SSHKeys) == 0 && !u.Password {
			words = append(words, s.T("cannot log in: no SSH key"))
		}
		for _, k := range u.SSHKeys {
			words = append(words, keyWords(k))
		}
		add(s.T("User %s", u.Name), s.list(words))
	}
	add(s.T("Time zone"), x.Timezone)
	add(s.T("Locale"), x.Locale)
	add(s.T("Keyboard layout"), x.Keyboard)
	add(s.T("Time servers"), s.list(x.NTP))
	if len(x.Packages) > 0 {
		add(s.T("Packages"), s.T("%s (installed at the first boot, over the network)", s.list(x.Packages)))
	}
	add(s.T("Kernel arguments"), strings.Join(x.Kernel, " "))
	for _, f := range x.Scripts {
		add(s.T("First-boot script"), fmt.Sprintf("%s, %s, %s", f.Name, s.size(int64(len(f.Text))), lpmos.DigestBytes([]byte(f.Text))[:19]))
	}
	return out
}

func (s *tongue) interfaceWords(f lpmos.Interface) string {
	var words []string
	switch {
	case f.Bond != nil:
		words = append(words, s.T("bond of %s, %s", s.list(f.Bond.Members), f.Bond.Mode))
	case f.VLAN != nil:
		words = append(words, s.T("VLAN %s on %s", strconv.Itoa(f.VLAN.ID), f.VLAN.Parent))
	default:
		words = append(words, s.T("port %s", f.NIC))
	}
	if f.DHCP4 {
		words = append(words, "DHCP")
	}
	if f.DHCP6 {
		words = append(words, "DHCPv6")
	}
	words = append(words, f.Addresses...)
	for _, g := range f.Gateways {
		words = append(words, s.T("gateway %s", g))
	}
	for _, r := range f.Routes {
		words = append(words, s.T("%s by way of %s", r.To, r.Via))
	}
	if f.MTU > 0 {
		words = append(words, "MTU "+strconv.Itoa(f.MTU))
	}
	return s.list(words)
}

// driftWords are the words of package lpmos for what drifted.
var driftWords = map[string]string{
	"boot mode": "boot mode", "Secure Boot": "Secure Boot", "operating system": "operating system", "version": "version", "host name": "host name", "disk": "disk", "address": "address",
	"time zone": "time zone", "time": "time", "kernel argument": "kernel argument", "cloud-init": "cloud-init", "first-boot scripts": "first-boot scripts",
	"missing": "missing", "on": "on", "off": "off", "not synchronized": "not synchronized", "an account": "an account", "done": "done", "run": "run", "failed": "failed",
}

var driftForms = phrases("mount %s", "user %s")

// driftWord is what drifted in this language.
func (s *tongue) driftWord(what string) string {
	if w, ok := driftWords[what]; ok {
		return s.T(w)
	}
	return s.formed(driftForms, what)
}

// driftNames are what drifted, in a few words.
func (s *tongue) driftNames(ds []lpmos.Drift) string {
	var out []string
	seen := map[string]bool{}
	for _, d := range ds {
		if !seen[d.What] {
			seen[d.What] = true
			out = append(out, s.driftWord(d.What))
		}
	}
	return s.list(out)
}

// whoLogsIn says who can log into an installed system: root by keys, in words,
// and the accounts that have a key or a password.
func (s *tongue) whoLogsIn(keys string, x *lpmos.Setup) template.HTML {
	users := s.list(logins(x))
	switch {
	case keys != "" && users != "":
		return s.rich("%s with %s, without a password; %s", strong("root"), keys, strong(users))
	case keys != "":
		return s.rich("%s with %s; no password", strong("root"), keys)
	case users != "":
		return s.rich("%s, and not root", strong(users))
	}
	return s.rich("%s there is no SSH key", strong(s.T("nobody:")))
}

// logins are the accounts that have a key or a password.
func logins(x *lpmos.Setup) (names []string) {
	if x == nil {
		return nil
	}
	for _, u := range x.Users {
		if len(u.SSHKeys) > 0 || u.Password {
			names = append(names, u.Name)
		}
	}
	return names
}
