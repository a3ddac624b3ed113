package lpmos

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// networkManager is a program of systems that NetworkManager configures; it and
// systemd-networkd would fight over ports.
const networkManager = "/usr/sbin/NetworkManager"

// section writes files of sections and key=value lines, as systemd and
// NetworkManager have them. No value may hold a line end, which would begin a
// setting of its own.
type section struct {
	b   strings.Builder
	err error
}

func (s *section) begin(name string) {
	if s.b.Len() > 0 {
		s.b.WriteByte('\n')
	}
	s.b.WriteString("[" + name + "]\n")
}

func (s *section) set(key, value string) {
	if value == "" {
		return
	}
	if !plainLine(value) || strings.TrimSpace(value) != value || strings.HasSuffix(value, `\`) {
		s.err = fmt.Errorf("%s=%q cannot stand in a configuration file", key, Shorten(value, 64))
	}
	s.b.WriteString(key + "=" + value + "\n")
}

func (s *section) number(key string, n int) {
	if n > 0 {
		s.set(key, strconv.Itoa(n))
	}
}

// networkDHCP asks for an address on the ports of a plan, which systemd-networkd
// knows by their MACs: names change with kernels and slots. The first, which is
// the task's, makes the machine online: where no port is required, the
// systemd-networkd-wait-online of systemd 253 and later waits for two minutes
// and fails. The others may be without a cable.
func networkDHCP(macs []MAC) []PlannedFile {
	var files []PlannedFile
	add := func(name, link string, macs []MAC) {
		var list []string
		for _, m := range macs {
			list = append(list, m.String())
		}
		files = append(files, PlannedFile{Path: "/etc/systemd/network/" + name, Mode: "0644", What: "DHCP by MAC", Unless: networkManager,
			Text: writtenBy + "[Match]\nMACAddress=" + strings.Join(list, " ") + "\nType=ether\n\n" + link + "[Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\n"})
	}
	add("10-lpmos.network", "", macs[:min(1, len(macs))])
	if len(macs) > 1 {
		add("10-lpmos-others.network", "[Link]\nRequiredForOnline=no\n\n", macs[1:])
	}
	return files
}

// networkFiles configures systemd-networkd, or NetworkManager where that is
// installed.
func networkFiles(n *Network) ([]PlannedFile, error) {
	var files []PlannedFile
	first := n.first()
	for _, f := range n.Interfaces {
		what := "the network of " + f.Name
		parts := []struct {
			suffix string
			make   func() (string, error)
		}{
			{".netdev", func() (string, error) { return networkdDevice(f) }},
			{".network", func() (string, error) { return networkdNetwork(n, f, f.Name == first) }},
		}
		if f.NIC != "" {
			parts = parts[1:]
		}
		for _, p := range parts {
			text, err := p.make()
			if err != nil {
				return nil, err
			}
			files = append(files, PlannedFile{Path: "/etc/systemd/network/10-lpmos-" + f.Name + p.suffix, Mode: "0644", What: what + ", for systemd-networkd", Unless: networkManager, Text: text})
		}
		text, err := keyfile(n, f)
		if err != nil {
			return nil, err
		}
		files = append(files, PlannedFile{Path: "/etc/NetworkManager/system-connections/lpmos-" + f.Name + ".nmconnection", Mode: "0600", What: what + ", for NetworkManager", If: networkManager, Text: text})
	}
	return files, nil
}

// bondOf is the bond that a port is a member of, "" if it is of none.
func (n *Network) bondOf(name string) string {
	for _, f := range n.Interfaces {
		if f.Bond != nil && slices.Contains(f.Bond.Members, name) {
			return f.Name
		}
	}
	return ""
}

// networkdDevice makes a bond or VLAN (systemd.netdev).
func networkdDevice(f Interface) (string, error) {
	var s section
	s.b.WriteString(strings.TrimSuffix(writtenBy, "\n"))
	s.begin("NetDev")
	s.set("Name", f.Name)
	if f.VLAN != nil {
		s.set("Kind", "vlan")
		s.begin("VLAN")
		s.number("Id", f.VLAN.ID)
		return s.b.String(), s.err
	}
	s.set("Kind", "bond")
	s.begin("Bond")
	s.set("Mode", f.Bond.Mode)
	s.set("MIIMonitorSec", "100ms")
	if f.Bond.Mode == "802.3ad" {
		s.set("LACPTransmitRate", "fast")
	}
	return s.b.String(), s.err
}

// networkdNetwork configures an interface (systemd.network).
func networkdNetwork(n *Network, f Interface, required bool) (string, error) {
	var s section
	s.b.WriteString(strings.TrimSuffix(writtenBy, "\n"))
	bond := n.bondOf(f.Name)
	s.begin("Match")
	switch {
	case f.NIC == "":
		s.set("Name", f.Name)
	case bond != "": // a member takes the address of its bond
		s.set("PermanentMACAddress", f.NIC)
	default:
		s.set("MACAddress", f.NIC)
		s.set("Type", "ether") // a VLAN on it has the same address
	}
	s.begin("Link")
	s.number("MTUBytes", f.MTU)
	if !required {
		s.set("RequiredForOnline", "no")
	}
	s.begin("Network")
	if bond != "" {
		s.set("Bond", bond)
		return s.b.String(), s.err
	}
	s.set("DHCP", map[[2]bool]string{{true, true}: "yes", {true, false}: "ipv4", {false, true}: "ipv6", {false, false}: "no"}[[2]bool{f.DHCP4, f.DHCP6}])
	for _, a := range f.Addresses {
		s.set("Address", a)
	}
	for _, g := range f.Gateways {
		s.set("Gateway", g)
	}
	if f.numbered() {
		for _, d := range n.DNS {
			s.set("DNS", d)
		}
		s.set("Domains", strings.Join(n.Search, " "))
	} else {
		s.set("LinkLocalAddressing", "no")
	}
	for _, v := range n.Interfaces {
		if v.VLAN != nil && v.VLAN.Parent == f.Name {
			s.set("VLAN", v.Name)
		}
	}
	if f.DHCP4 && f.NIC != "" {
		s.begin("DHCPv4")
		s.set("ClientIdentifier", "mac")
	}
	for _, r := range f.Routes {
		s.begin("Route")
		s.set("Destination", r.To)
		s.set("Gateway", r.Via)
		s.number("Metric", r.Metric)
	}
	return s.b.String(), s.err
}

// keyfile is a connection of NetworkManager (nm-settings-keyfile).
func keyfile(n *Network, f Interface) (string, error) {
	var s section
	s.b.WriteString(strings.TrimSuffix(writtenBy, "\n"))
	bond := n.bondOf(f.Name)
	s.begin("connection")
	s.set("id", "lpmos-"+f.Name)
	switch {
	case f.Bond != nil:
		s.set("type", "bond")
		s.set("interface-name", f.Name)
		s.begin("bond")
		s.set("mode", f.Bond.Mode)
		s.set("miimon", "100")
	case f.VLAN != nil:
		s.set("type", "vlan")
		s.set("interface-name", f.Name)
		s.begin("vlan")
		s.number("id", f.VLAN.ID)
		if p := n.named(f.VLAN.Parent); p.NIC == "" {
			s.set("parent", p.Name)
		} else {
			// A port is known by its connection, whose name does not change.
			s.set("parent", connectionID(p))
		}
	default:
		s.set("type", "ethernet")
		s.set("uuid", connectionID(f))
		if bond != "" {
			s.set("master", bond)
			s.set("slave-type", "bond")
		}
	}
	if f.NIC != "" || f.MTU > 0 {
		s.begin("ethernet")
		s.set("mac-address", strings.ToUpper(f.NIC))
		s.number("mtu", f.MTU)
	}
	if bond != "" {
		return s.b.String(), s.err
	}
	for _, family := range []struct {
		name string
		six  bool
		dhcp bool
	}{{"ipv4", false, f.DHCP4}, {"ipv6", true, f.DHCP6}} {
		of := func(list []string) (out []string) {
			for _, a := range list {
				if strings.Contains(a, ":") == family.six {
					out = append(out, a)
				}
			}
			return out
		}
		addresses := of(f.Addresses)
		s.begin(family.name)
		switch {
		case family.dhcp:
			s.set("method", "auto")
		case len(addresses) > 0:
			s.set("method", "manual")
		case family.six && f.numbered():
			s.set("method", "link-local")
		default:
			s.set("method", "disabled")
		}
		for i, a := range addresses {
			s.set(fmt.Sprintf("address%d", i+1), a)
		}
		for _, g := range of(f.Gateways) {
			s.set("gateway", g)
		}
		i := 0
		for _, r := range f.Routes {
			if strings.Contains(r.To, ":") != family.six {
				continue
			}
			i++
			value := r.To + "," + r.Via
			if r.Metric > 0 {
				value += "," + strconv.Itoa(r.Metric)
			}
			s.set(fmt.Sprintf("route%d", i), value)
		}
		if f.numbered() && (family.dhcp || len(addresses) > 0) {
			if dns := of(n.DNS); len(dns) > 0 {
				s.set("dns", strings.Join(dns, ";")+";")
			}
			if len(n.Search) > 0 {
				s.set("dns-search", strings.Join(n.Search, ";")+";")
			}
		}
	}
	return s.b.String(), s.err
}

func (n *Network) named(name string) Interface {
	for _, f := range n.Interfaces {
		if f.Name == name {
			return f
		}
	}
	return Interface{}
}

// connectionID is the UUID of a port's connection: the same whenever it is
// made for the same port.
func connectionID(f Interface) string {
	sum := DigestBytes([]byte("lpmos connection\x00" + f.NIC))
	var id [16]byte
	for i := range id {
		v, _ := strconv.ParseUint(sum[7+2*i:9+2*i], 16, 8)
		id[i] = byte(v)
	}
	return formatUUID(id, 8)
}
