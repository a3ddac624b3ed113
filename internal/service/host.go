package service

import (
	"net"
	"os"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
)

// Host is the computer this process runs on, as a hardware report would name
// it: its network interfaces' addresses, and its SMBIOS UUID where this user may
// read it. What cannot be found out is left out. Interfaces without an address
// and loopback have none.
func Host() lpmos.Host {
	h := lpmos.Host{}
	h.Hostname, _ = os.Hostname()
	if b, err := os.ReadFile("/sys/class/dmi/id/product_uuid"); err == nil {
		h.UUID = strings.ToLower(strings.TrimSpace(string(b)))
	}
	ifaces, _ := net.Interfaces()
	for _, i := range ifaces {
		if m, err := lpmos.ParseMAC(i.HardwareAddr.String()); err == nil && !slices.Contains(h.MACs, m) {
			h.MACs = append(h.MACs, m)
		}
	}
	return h
}
