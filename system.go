package lpmos

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Setup is how an installed system is to be configured, as a profile has it. A
// task keeps the Setup of its profile's version; what differs between machines
// (addresses) a task says itself, see Spec.
//
// Everything in it is checked by Normalize, field by field, so that what is
// made of it (YAML, unit files, passwd lines) needs no quoting but for text
// that may hold anything: comments of users and scripts.
type Setup struct {
	Users    []Account `json:"users,omitempty"`
	Timezone string    `json:"timezone,omitempty"` // "Europe/Berlin", "UTC"
	Locale   string    `json:"locale,omitempty"`   // "de_DE.UTF-8", "C.UTF-8"
	Keyboard string    `json:"keyboard,omitempty"` // XKB layout, "us", "de"
	Network  *Network  `json:"network,omitempty"`  // nil: every port asks DHCP
	NTP      []string  `json:"ntp,omitempty"`      // servers, host names or addresses
	Packages []string  `json:"packages,omitempty"` // installed by cloud-init at the first boot, which needs a network
	Kernel   []string  `json:"kernel_args,omitempty"`
	Scripts  []Script  `json:"scripts,omitempty"` // run once, as root, in this order
}

// Account is a user of the installed system beside root.
type Account struct {
	Name    string   `json:"name"`            // [a-z_][a-z0-9_-]{0,31}
	Gecos   string   `json:"gecos,omitempty"` // a person's name
	Groups  []string `json:"groups,omitempty"`
	Shell   string   `json:"shell,omitempty"` // absolute path; empty is /bin/bash, or /bin/sh where there is none
	Sudo    bool     `json:"sudo,omitempty"`  // may do everything as root, without a password
	SSHKeys []string `json:"ssh_keys,omitempty"`
	// PasswordHash is a crypt(3) hash as it is given; what is stored has Password
	// instead, and the hash apart, sealed (see Profile.TakePasswords). Without
	// one, no password opens the account.
	PasswordHash Secret `json:"password_hash,omitzero"`
	Password     bool   `json:"password,omitempty"`
}

// Script is run once in the installed system, at its first boot.
type Script struct {
	Name string `json:"name"` // [a-z0-9][a-z0-9-]{0,31}
	Text string `json:"text"` // begins with #! and has Unix line ends
}

// Network says which interfaces the installed system has. Ports that no
// interface names stay down.
type Network struct {
	Interfaces []Interface `json:"interfaces"`
	DNS        []string    `json:"dns,omitempty"`    // addresses of servers
	Search     []string    `json:"search,omitempty"` // domains
}

// Interface is a network port, a bond or a VLAN: exactly one of NIC, Bond and
// VLAN is set. In a plan NIC is always a MAC address.
type Interface struct {
	// Name is that of the bond or VLAN in the installed system. A port keeps the
	// name its system gives it, and Name is how bonds and VLANs here refer to
	// it.
	Name      string   `json:"name"`
	NIC       string   `json:"nic,omitempty"` // "boot": that the machine booted from; "nic1": the first by its place on the bus; or a MAC
	Bond      *Bond    `json:"bond,omitempty"`
	VLAN      *VLAN    `json:"vlan,omitempty"`
	DHCP4     bool     `json:"dhcp4,omitempty"`
	DHCP6     bool     `json:"dhcp6,omitempty"`
	Addresses []string `json:"addresses,omitempty"` // with their prefix length: "192.0.2.10/24"
	Gateways  []string `json:"gateways,omitempty"`  // at most one of each family
	Routes    []Route  `json:"routes,omitempty"`
	MTU       int      `json:"mtu,omitempty"` // 0 leaves it to the system
	// PerMachine says that each task gives this interface its addresses.
	PerMachine bool `json:"per_machine,omitempty"`
}

// Bond is several ports as one.
type Bond struct {
	Members []string `json:"members"` // names of interfaces that are ports
	Mode    string   `json:"mode"`    // as BondModes has it
}

// VLAN is a tagged network on another interface (IEEE 802.1Q).
type VLAN struct {
	ID     int    `json:"id"`     // 1 to 4094
	Parent string `json:"parent"` // name of a port or bond
}

// Route goes by way of a gateway that an address of its interface reaches.
type Route struct {
	To     string `json:"to"` // a prefix, "198.51.100.0/24"
	Via    string `json:"via"`
	Metric int    `json:"metric,omitempty"`
}

// BondModes are those of the Linux driver, by name.
var BondModes = []string{"active-backup", "802.3ad", "balance-rr", "balance-xor", "balance-tlb", "balance-alb", "broadcast"}

// Bounds of a Setup.
const (
	MaxUsers       = 64
	MaxInterfaces  = 64
	MaxAddresses   = 16 // of one interface
	MaxServers     = 8
	MaxPackages    = 256
	MaxKernelArgs  = 64
	MaxScripts     = 16
	MaxScriptBytes = 32 << 10
	maxScripts     = 128 << 10 // of all together
)

var (
	userRE      = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	shellRE     = regexp.MustCompile(`^/[A-Za-z0-9._/-]{1,126}$`)
	scriptRE    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	ifaceRE     = regexp.MustCompile(`^[a-z][a-z0-9-]{0,14}$`)
	nicRE       = regexp.MustCompile(`^nic[1-9][0-9]?$`)
	timezoneRE  = regexp.MustCompile(`^(UTC|GMT|(Africa|America|Antarctica|Arctic|Asia|Atlantic|Australia|Europe|Indian|Pacific|Etc)/[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_-]{1,32})?)$`)
	localeRE    = regexp.MustCompile(`^(C|POSIX|[a-z]{2,3}(_[A-Z]{2})?)(\.(UTF-8|ISO-8859-[0-9]{1,2}))?(@[a-z]{2,16})?$`)
	keyboardRE  = regexp.MustCompile(`^[a-z]{2,12}$`)
	packageRE   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._-]{0,127}$`) // Debian's grammar and that of RPM
	kernelArgRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(=[A-Za-z0-9_.,:/@%+=-]{0,200})?$`)
)

// keptKernelArgs are arguments that decide what is booted or how: they are the
// plan's and the image's own. The single words stand for run levels.
var keptKernelArgs = []string{
	"root", "rootfstype", "rootflags", "resume", "ro", "rw", "init", "rdinit", "initrd", "BOOT_IMAGE", "break", "rd.break", "systemd.unit", "rd.systemd.unit",
	"systemd.debug-shell", "systemd.debug_shell", "rd.systemd.debug_shell", "single", "emergency", "rescue", "s", "S", "1", "2", "3", "4", "5",
}

// reservedUsers are accounts that systems have themselves.
var reservedUsers = []string{
	"root", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "www-data", "backup", "list", "irc", "nobody", "adm",
	"shutdown", "halt", "operator", "ftp", "sshd", "messagebus", "polkitd", "dbus", "chrony", "tss",
}

// Static are the addresses that are not asked of a server; s may be nil.
func (s *Setup) Static() []string {
	if s == nil {
		return nil
	}
	return s.Network.Static()
}

// Empty reports whether there is nothing to configure.
func (s *Setup) Empty() bool {
	return s == nil || len(s.Users) == 0 && s.Timezone == "" && s.Locale == "" && s.Keyboard == "" && s.Network == nil &&
		len(s.NTP) == 0 && len(s.Packages) == 0 && len(s.Kernel) == 0 && len(s.Scripts) == 0
}

// KeepsTime reports whether the system is told which clocks to follow.
func (s *Setup) KeepsTime() bool { return s != nil && len(s.NTP) > 0 }

// PerMachine reports whether each task must give addresses of its own.
func (s *Setup) PerMachine() bool {
	return s != nil && s.Network != nil && slices.ContainsFunc(s.Network.Interfaces, func(f Interface) bool { return f.PerMachine })
}

// Normalize checks a Setup as it was given. Errors are *InvalidError whose
// field begins with "system.".
func (s Setup) Normalize() (Setup, error) {
	for _, check := range []func(*Setup) error{
		(*Setup).checkUsers, (*Setup).checkPlace, (*Setup).checkServers, (*Setup).checkPackages, (*Setup).checkKernel, (*Setup).checkScripts,
	} {
		if err := check(&s); err != nil {
			return s, err
		}
	}
	if s.Network != nil {
		n, err := s.Network.Normalize()
		if err != nil {
			return s, err
		}
		s.Network = &n
	}
	return s, nil
}

func badSetup(field, problem, value string) error {
	return &InvalidError{Field: "system." + field, Problem: problem, Value: value}
}

func (s *Setup) checkUsers() error {
	if len(s.Users) > MaxUsers {
		return badSetup("users", "holds more than 64 users", "")
	}
	seen := map[string]bool{}
	for i, u := range s.Users {
		at := fmt.Sprintf("users[%d].", i)
		switch {
		case !userRE.MatchString(u.Name):
			return badSetup(at+"name", "is not the name of a user (lower-case letters, digits, inner _ -, at most 32)", u.Name)
		case slices.Contains(reservedUsers, u.Name) || strings.HasPrefix(u.Name, "systemd-"):
			return badSetup(at+"name", "is an account that the system has itself (the keys for root are ssh_keys of the profile)", u.Name)
		case seen[u.Name]:
			return badSetup(at+"name", "is there twice", u.Name)
		case len(u.Gecos) > 128 || !plainLine(u.Gecos) || strings.ContainsAny(u.Gecos, `:,&\`):
			return badSetup(at+"gecos", `is longer than 128 bytes or holds a line end, a control character or one of : , & \`, u.Gecos)
		case u.Shell != "" && (!shellRE.MatchString(u.Shell) || path.Clean(u.Shell) != u.Shell):
			return badSetup(at+"shell", "is not the path of a program, such as /bin/bash", u.Shell)
		case len(u.Groups) > 32:
			return badSetup(at+"groups", "holds more than 32 groups", "")
		}
		for j, g := range u.Groups {
			if !userRE.MatchString(g) {
				return badSetup(fmt.Sprintf("%sgroups[%d]", at, j), "is not the name of a group", g)
			}
		}
		if err := checkSSHKeys(u.SSHKeys); err != nil {
			invalid := err.(*InvalidError)
			return badSetup(at+"ssh_keys", invalid.Problem, invalid.Value)
		}
		if !u.PasswordHash.IsZero() {
			if err := CheckPasswordHash(u.PasswordHash.Reveal()); err != nil {
				invalid := err.(*InvalidError)
				return badSetup(at+invalid.Field, invalid.Problem, "")
			}
		}
		seen[u.Name] = true
	}
	return nil
}

func (s *Setup) checkPlace() error {
	switch {
	case s.Timezone != "" && !timezoneRE.MatchString(s.Timezone):
		return badSetup("timezone", "is not the name of a time zone, such as Europe/Berlin or UTC", s.Timezone)
	case s.Locale != "" && !localeRE.MatchString(s.Locale):
		return badSetup("locale", "is not a locale, such as en_US.UTF-8 or C.UTF-8", s.Locale)
	case s.Keyboard != "" && !keyboardRE.MatchString(s.Keyboard):
		return badSetup("keyboard", "is not a keyboard layout, such as us or de", s.Keyboard)
	}
	return nil
}

func (s *Setup) checkServers() error {
	if len(s.NTP) > MaxServers {
		return badSetup("ntp", "holds more than 8 servers", "")
	}
	for i, n := range s.NTP {
		if _, err := plainAddr(n); err != nil && !ValidHostname(n) {
			return badSetup(fmt.Sprintf("ntp[%d]", i), "is neither a host name nor an address", n)
		}
	}
	return nil
}

func (s *Setup) checkPackages() error {
	if len(s.Packages) > MaxPackages {
		return badSetup("packages", "holds more than 256 packages", "")
	}
	for i, p := range s.Packages {
		if !packageRE.MatchString(p) {
			return badSetup(fmt.Sprintf("packages[%d]", i), "is not the name of a package", p)
		}
	}
	return nil
}

func (s *Setup) checkKernel() error {
	if len(s.Kernel) > MaxKernelArgs {
		return badSetup("kernel_args", "holds more than 64 arguments", "")
	}
	for i, a := range s.Kernel {
		at := fmt.Sprintf("kernel_args[%d]", i)
		if !kernelArgRE.MatchString(a) {
			return badSetup(at, "is not one kernel argument: a name, or name=value of letters, digits and _.,:/@%+=-", a)
		}
		if name, _, _ := strings.Cut(a, "="); slices.Contains(keptKernelArgs, name) {
			return badSetup(at, "names "+name+", which decides what is booted and is not for a profile", a)
		}
	}
	return nil
}

func (s *Setup) checkScripts() error {
	if len(s.Scripts) > MaxScripts {
		return badSetup("scripts", "holds more than 16 scripts", "")
	}
	seen, all := map[string]bool{}, 0
	for i, f := range s.Scripts {
		at := fmt.Sprintf("scripts[%d].", i)
		all += len(f.Text)
		switch {
		case !scriptRE.MatchString(f.Name):
			return badSetup(at+"name", "is not the name of a script (lower-case letters, digits, inner hyphens, at most 32)", f.Name)
		case seen[f.Name]:
			return badSetup(at+"name", "is there twice", f.Name)
		case len(f.Text) > MaxScriptBytes || all > maxScripts:
			return badSetup(at+"text", "is longer than 32 KiB, or all scripts together are longer than 128 KiB", "")
		case !strings.HasPrefix(f.Text, "#!/"):
			return badSetup(at+"text", "does not begin with #! and the path of what runs it, such as #!/bin/sh", Prefix(f.Text, 32))
		case !utf8.ValidString(f.Text) || strings.ContainsFunc(f.Text, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }):
			return badSetup(at+"text", "holds control characters (line ends of Windows among them) or is not valid UTF-8", "")
		}
		seen[f.Name] = true
	}
	return nil
}

// plainLine reports whether s is text on one line.
func plainLine(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\ufeff'
	})
}

// plainAddr reads an address without a zone: "fe80::1%eth0" names an interface
// of this machine, which is none of the other's.
func plainAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err == nil && (a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast()) {
		err = fmt.Errorf("not an address of a host")
	}
	return a, err
}

// hostPrefix reads an address with its prefix length, and spells it as netip
// does.
func hostPrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil {
		_, err = plainAddr(p.Addr().String())
	}
	if err == nil && (p.Bits() == 0 || p.Addr().IsLoopback()) {
		err = fmt.Errorf("not an address of a host")
	}
	return p, err
}

// Normalize checks interfaces by themselves and in how they refer to each
// other; addresses come back as netip spells them.
func (n Network) Normalize() (Network, error) {
	bad := func(field, problem, value string) (Network, error) {
		return n, badSetup("network."+field, problem, value)
	}
	if len(n.Interfaces) == 0 || len(n.Interfaces) > MaxInterfaces {
		return bad("interfaces", "holds none, or more than 64 (leave network out for DHCP on every port)", "")
	}
	if len(n.DNS) > MaxServers || len(n.Search) > MaxServers {
		return bad("dns", "or search holds more than 8", "")
	}
	n.Interfaces, n.DNS = slices.Clone(n.Interfaces), slices.Clone(n.DNS)
	for i, d := range n.DNS {
		a, err := plainAddr(d)
		if err != nil {
			return bad(fmt.Sprintf("dns[%d]", i), "is not an address", d)
		}
		n.DNS[i] = a.String()
	}
	for i, d := range n.Search {
		if !ValidHostname(d) {
			return bad(fmt.Sprintf("search[%d]", i), "is not a domain", d)
		}
	}
	byName, ports := map[string]*Interface{}, map[string]bool{}
	perMachine := 0
	for i := range n.Interfaces {
		f, at := &n.Interfaces[i], fmt.Sprintf("interfaces[%d].", i)
		kinds := 0
		for _, is := range []bool{f.NIC != "", f.Bond != nil, f.VLAN != nil} {
			if is {
				kinds++
			}
		}
		switch {
		case !ifaceRE.MatchString(f.Name) || f.Name == "lo" || f.Name == "all" || f.Name == "default":
			return bad(at+"name", "is not the name of an interface (a lower-case letter, then letters, digits and hyphens, at most 15)", f.Name)
		case byName[f.Name] != nil:
			return bad(at+"name", "is there twice", f.Name)
		case kinds != 1:
			return bad(at+"nic", "or bond or vlan: exactly one of them says what the interface is", f.Name)
		}
		if f.NIC != "" && f.NIC != "boot" && !nicRE.MatchString(f.NIC) {
			mac, err := ParseMAC(f.NIC)
			if err != nil {
				return bad(at+"nic", "is neither boot, nic1 to nic99, nor a MAC address", f.NIC)
			}
			f.NIC = mac.String()
		}
		if f.NIC != "" && ports[f.NIC] {
			return bad(at+"nic", "is named by another interface already", f.NIC)
		}
		if f.PerMachine {
			if perMachine++; perMachine > 1 {
				return bad(at+"per_machine", "is set for two interfaces, and a task gives addresses to one", f.Name)
			}
			if len(f.Addresses) > 0 || len(f.Gateways) > 0 {
				return bad(at+"addresses", "and gateways are each task's own with per_machine: leave them out", f.Name)
			}
		}
		var err error
		if f.Addresses, f.Gateways, err = checkAddresses(f.Addresses, f.Gateways); err != nil {
			invalid := err.(*InvalidError)
			return bad(at+invalid.Field, invalid.Problem, invalid.Value)
		}
		if f.MTU != 0 && (f.MTU < 576 || f.MTU > 9216) {
			return bad(at+"mtu", "is not between 576 and 9216", strconv.Itoa(f.MTU))
		}
		if len(f.Routes) > MaxAddresses {
			return bad(at+"routes", "holds more than 16 routes", "")
		}
		f.Routes = slices.Clone(f.Routes)
		for j, r := range f.Routes {
			to, err := netip.ParsePrefix(r.To)
			via, verr := plainAddr(r.Via)
			switch {
			case err != nil || to.Addr().Is4In6() || to.Masked() != to:
				return bad(fmt.Sprintf("%sroutes[%d].to", at, j), "is not a network, such as 198.51.100.0/24", r.To)
			case verr != nil || via.Is4() != to.Addr().Is4():
				return bad(fmt.Sprintf("%sroutes[%d].via", at, j), "is not an address of the same family", r.Via)
			case r.Metric < 0 || r.Metric > 1<<20:
				return bad(fmt.Sprintf("%sroutes[%d].metric", at, j), "is not between 0 and 1048576", strconv.Itoa(r.Metric))
			}
			f.Routes[j].To, f.Routes[j].Via = to.String(), via.String()
		}
		if f.NIC != "" {
			ports[f.NIC] = true
		}
		byName[f.Name] = f
	}
	return n, n.checkLinks(byName)
}

// checkLinks holds bonds and VLANs against what they refer to.
func (n Network) checkLinks(byName map[string]*Interface) error {
	bad := func(i int, field, problem, value string) error {
		return badSetup(fmt.Sprintf("network.interfaces[%d].%s", i, field), problem, value)
	}
	member := map[string]bool{}
	for i, f := range n.Interfaces {
		if f.Bond == nil {
			continue
		}
		if !slices.Contains(BondModes, f.Bond.Mode) {
			return bad(i, "bond.mode", "is not one of "+strings.Join(BondModes, ", "), f.Bond.Mode)
		}
		if len(f.Bond.Members) == 0 {
			return bad(i, "bond.members", "is empty", "")
		}
		for _, m := range f.Bond.Members {
			switch p := byName[m]; {
			case p == nil || p.NIC == "":
				return bad(i, "bond.members", "names something that is not a port of this network", m)
			case member[m]:
				return bad(i, "bond.members", "names a port twice, or one of another bond", m)
			case p.DHCP4 || p.DHCP6 || p.PerMachine || len(p.Addresses) > 0 || len(p.Gateways) > 0 || len(p.Routes) > 0:
				return bad(i, "bond.members", "names a port that has addresses of its own: they belong to the bond", m)
			}
			member[m] = true
		}
	}
	ids := map[VLAN]bool{}
	for i, f := range n.Interfaces {
		if f.VLAN == nil {
			continue
		}
		switch p := byName[f.VLAN.Parent]; {
		case f.VLAN.ID < 1 || f.VLAN.ID > 4094:
			return bad(i, "vlan.id", "is not between 1 and 4094", strconv.Itoa(f.VLAN.ID))
		case p == nil || p.VLAN != nil || member[f.VLAN.Parent]:
			return bad(i, "vlan.parent", "is neither a free port nor a bond of this network", f.VLAN.Parent)
		case ids[*f.VLAN]:
			return bad(i, "vlan.id", "is there twice on "+f.VLAN.Parent, strconv.Itoa(f.VLAN.ID))
		case f.MTU > p.MTU && p.MTU != 0:
			return bad(i, "mtu", "is larger than that of "+p.Name, strconv.Itoa(f.MTU))
		}
		ids[*f.VLAN] = true
	}
	return nil
}

// checkAddresses reads addresses with prefix lengths and gateways, which one of
// the addresses must reach. Errors name "addresses" or "gateways".
func checkAddresses(addresses, gateways []string) (as, gs []string, err error) {
	bad := func(field, problem, value string) ([]string, []string, error) {
		return nil, nil, &InvalidError{Field: field, Problem: problem, Value: value}
	}
	if len(addresses) > MaxAddresses {
		return bad("addresses", "holds more than 16 addresses", "")
	}
	var nets []netip.Prefix
	for _, a := range addresses {
		p, err := hostPrefix(a)
		if err != nil {
			return bad("addresses", "holds what is not an address with its prefix length, such as 192.0.2.10/24", a)
		}
		if p.Addr().Is4() && p.Bits() < 31 && (p.Addr() == p.Masked().Addr() || p.Addr() == lastAddr(p)) {
			return bad("addresses", "holds the address of a network or its broadcast, which is no host's", a)
		}
		if slices.Contains(as, p.String()) {
			return bad("addresses", "holds one twice", a)
		}
		nets, as = append(nets, p), append(as, p.String())
	}
	families := map[bool]bool{}
	for _, g := range gateways {
		a, err := plainAddr(g)
		switch {
		case err != nil:
			return bad("gateways", "holds what is not an address", g)
		case families[a.Is4()]:
			return bad("gateways", "holds two of one family", g)
		case !a.IsLinkLocalUnicast() && !slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) && p.Addr() != a }):
			return bad("gateways", "holds one that is in the network of no address", g)
		}
		families[a.Is4()], gs = true, append(gs, a.String())
	}
	return as, gs, nil
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

// Resolve makes the network of one machine: ports become MACs, and the task's
// own addresses go to the interface that is per machine, or else to the first
// one that carries addresses. What cannot be done is a sentence.
func (n *Network) Resolve(h *Hardware, addresses, gateways []string) (*Network, string) {
	if n == nil {
		if len(addresses) == 0 {
			return nil, ""
		}
		n = &Network{Interfaces: []Interface{{Name: "lan0", NIC: "boot"}}}
	}
	out := *n
	out.Interfaces = slices.Clone(n.Interfaces)
	member, used := map[string]bool{}, map[MAC]string{}
	for i := range out.Interfaces {
		f := &out.Interfaces[i]
		if f.Bond != nil {
			for _, m := range f.Bond.Members {
				member[m] = true
			}
		}
		if f.NIC == "" {
			continue
		}
		mac, problem := portOf(h, f.NIC)
		if problem == "" && used[mac] != "" {
			problem = "The interfaces " + used[mac] + " and " + f.Name + " are the same network port, " + mac.String() + "."
		}
		if problem != "" {
			return nil, problem
		}
		used[mac], f.NIC = f.Name, mac.String()
	}
	own := slices.IndexFunc(out.Interfaces, func(f Interface) bool { return f.PerMachine })
	if own >= 0 && len(addresses) == 0 {
		return nil, "The profile leaves the addresses of " + out.Interfaces[own].Name + " to each task, and this task gives none: create it with addresses."
	}
	if len(addresses) > 0 {
		if own < 0 {
			own = slices.IndexFunc(out.Interfaces, func(f Interface) bool { return !member[f.Name] })
		}
		f := &out.Interfaces[own]
		f.PerMachine, f.DHCP4, f.DHCP6, f.Addresses, f.Gateways = false, false, false, addresses, gateways
	}
	return &out, ""
}

// portOf finds the port that a Setup names.
func portOf(h *Hardware, nic string) (MAC, string) {
	macs := h.MACs()
	if nic == "boot" {
		if h.BootMAC.IsZero() || !slices.Contains(macs, h.BootMAC) {
			return MAC{}, "The machine did not say which network port it booted from: name it by its MAC."
		}
		return h.BootMAC, ""
	}
	if nicRE.MatchString(nic) {
		i, _ := strconv.Atoi(nic[3:])
		ports := slices.DeleteFunc(slices.Clone(h.NICs), func(n NIC) bool { return n.MAC.IsZero() })
		slices.SortFunc(ports, func(a, b NIC) int {
			return cmp.Or(strings.Compare(a.PCI, b.PCI), slices.Compare(a.MAC[:], b.MAC[:]))
		})
		if i > len(ports) {
			return MAC{}, fmt.Sprintf("The profile names %s, and the machine has %d network ports.", nic, len(ports))
		}
		return ports[i-1].MAC, ""
	}
	mac, err := ParseMAC(nic)
	if err != nil || !slices.Contains(macs, mac) {
		return MAC{}, "The profile names the network port " + nic + ", which this machine does not have."
	}
	return mac, ""
}

// MACs are those of all ports, sorted.
func (n *Network) MACs() []MAC {
	var out []MAC
	for _, f := range n.Interfaces {
		if mac, err := ParseMAC(f.NIC); err == nil {
			out = append(out, mac)
		}
	}
	slices.SortFunc(out, func(a, b MAC) int { return slices.Compare(a[:], b[:]) })
	return out
}

// Static are all addresses that are not asked of a server, in order.
func (n *Network) Static() []string {
	var out []string
	if n != nil {
		for _, f := range n.Interfaces {
			out = append(out, f.Addresses...)
		}
	}
	return out
}
