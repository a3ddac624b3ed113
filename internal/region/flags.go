package region

import "github.com/spf13/pflag"

// Flags registers a flag for each field that an operator sets.
func (c *Config) Flags(f *pflag.FlagSet) {
	f.StringVar(&c.RegionID, "region-id", "", "name of the data centre: lower-case letters, digits, hyphens")
	f.StringVar(&c.AdvertiseHost, "advertise-host", "", "IPv4 address machines reach this region at (default: of --interface)")
	f.StringVar(&c.Interface, "interface", "", "network interface of the machines, for DHCP")
	f.StringVar(&c.BootAddr, "boot-addr", ":8081", "plain HTTP for firmware")
	f.StringVar(&c.AgentAddr, "agent-addr", ":8443", "agent API over TLS")
	f.StringVar(&c.TFTPAddr, "tftp-addr", ":69", "TFTP, or off")
	f.StringVar(&c.DHCP, "dhcp", "off", "off; proxy: boot files beside the site's own DHCP server; server: addresses too")
	f.StringVar(&c.DHCPRange, "dhcp-range", "", "addresses for --dhcp=server, such as 10.77.0.100-10.77.0.199")
	f.StringVar(&c.Router, "dhcp-router", "", "gateway that --dhcp=server hands out")
	f.StringSliceVar(&c.DNS, "dhcp-dns", nil, "name servers that --dhcp=server hands out")
	f.StringVar(&c.Unknown, "unknown-machines", "ignore", "ignore: they boot their own disk; discover: they boot the agent and report")
	f.StringVar(&c.CallhomeURL, "callhome-url", "", "where installed systems reach the agent API, if elsewhere")
}
