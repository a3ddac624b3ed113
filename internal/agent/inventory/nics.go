package inventory

import (
	"path"
	"regexp"
	"strings"

	"github.com/lpmos/lpmos"
)

var pciRE = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// nics lists physical network interfaces in natural order of their names, at
// most maxNICs and then always with the one the machine booted from. An
// interface is physical if it has a device; virtual functions of an SR-IOV card
// are left out, because they and their random addresses come and go.
func nics(sys tree, boot lpmos.MAC) []lpmos.NIC {
	const dir = "class/net"
	var found []lpmos.NIC
	for _, name := range sys.names(dir) {
		n := path.Join(dir, name)
		if !sys.exists(n+"/device") || sys.exists(n+"/device/physfn") {
			continue
		}
		nic := lpmos.NIC{Name: name, MAC: permanentMAC(sys, n), Driver: sys.base(n, "device/driver"), Link: sys.flag(n, "carrier")}
		nic.Boot = !boot.IsZero() && nic.MAC == boot
		// 4294967295 is −1, not known, of older kernels.
		if speed, ok := sys.number(n, "speed"); ok && speed < 1<<31-1 {
			nic.SpeedMbps = int(speed)
		}
		for _, e := range strings.Split(sys.resolve(n+"/device"), "/") {
			if pciRE.MatchString(e) {
				nic.PCI = e // the last one: those before are bridges
			}
		}
		switch {
		case len(found) < maxNICs:
			found = append(found, nic)
		case nic.Boot:
			found[maxNICs-1] = nic
		}
	}
	return found
}

// permanentMAC is the address the card came with, zero if it has none. A member
// of a bond shows the bond's address as its own; one that the kernel made up
// (addr_assign_type 1) is another at each boot and identifies nothing.
func permanentMAC(sys tree, nic string) lpmos.MAC {
	if sys.text(nic, "addr_assign_type") == "1" {
		return lpmos.MAC{}
	}
	for _, name := range []string{"bonding_slave/perm_hwaddr", "address"} {
		if m, err := lpmos.ParseMAC(sys.text(nic, name)); err == nil {
			return m
		}
	}
	return lpmos.MAC{}
}
