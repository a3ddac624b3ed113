package netboot

import (
	"fmt"
	"net/netip"
	"net/url"

	"github.com/lpmos/lpmos"
)

// View is the region's copy of its boot index.
type View interface {
	// Lookup finds a machine by any of its addresses.
	Lookup(mac lpmos.MAC) (e lpmos.BootEntry, known bool)
	// Synced reports whether the view was whole at some time since the start.
	// An outage of the store afterwards leaves it synced.
	Synced() bool
}

// Policy is what happens to machines that are not in the boot index.
type Policy string

// The policies.
const (
	Ignore   Policy = "ignore"   // no boot file; a script that boots the local disk
	Discover Policy = "discover" // the agent, which reports the machine
)

// Config of a region's boot decisions. Every field is required.
type Config struct {
	BootURL    string     // "http://10.77.0.1:8081", without a slash at the end
	NextServer netip.Addr // IPv4 address of the TFTP server
	Unknown    Policy
}

// Validate names the field that cannot be used.
func (c Config) Validate() error {
	u, err := url.Parse(c.BootURL)
	switch {
	case err != nil || u.Scheme != "http" || u.Host == "" || u.Path != "" || u.RawQuery != "" || !safe(c.BootURL):
		return &lpmos.InvalidError{Field: "boot_url", Problem: "is not like http://10.77.0.1:8081", Value: c.BootURL}
	case !c.NextServer.Is4() || c.NextServer.IsUnspecified():
		return &lpmos.InvalidError{Field: "next_server", Problem: "is not an IPv4 address", Value: c.NextServer.String()}
	case c.Unknown != Ignore && c.Unknown != Discover:
		return &lpmos.InvalidError{Field: "unknown_machines", Problem: "is neither ignore nor discover", Value: string(c.Unknown)}
	}
	return nil
}

// Decider answers for one region.
type Decider struct {
	cfg  Config
	view View
}

// New returns a decider over view.
func New(cfg Config, view View) (*Decider, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure boot decisions: %w", err)
	}
	return &Decider{cfg, view}, nil
}

// Reason says why an offer is what it is. It is a word for logs and counters.
type Reason string

// The reasons. All but the first two leave BootFile empty.
const (
	Firmware    Reason = "firmware"    // firmware gets iPXE
	Script      Reason = "script"      // iPXE gets its script
	NotBooting  Reason = "not_booting" // an operating system asks
	NotSynced   Reason = "not_synced"  // the region does not know yet
	NotKnown    Reason = "not_known"   // and unknown machines are ignored
	Unsupported Reason = "unsupported" // no boot files for this architecture
)

// Offer is what the boot part of a DHCP reply says.
type Offer struct {
	Reason        Reason
	Action        string     // lpmos.BootAgent or BootLocal; "" without a boot file
	TaskID        string     // of the machine's entry, for logs
	BootFile      string     // header field and option 67: a TFTP name or a URL
	NextServer    netip.Addr // siaddr and option 66; valid when BootFile is a TFTP name
	VendorClass   string     // option 60, "" for none
	VendorOptions []byte     // option 43, nil for none
	IPXEOptions   []byte     // option 175, nil for none
	HTTP          bool       // UEFI HTTP boot: the boot file belongs into option 67 whatever was asked for
}

// PXE discovery control (option 43.6, PXE 2.1 §2.3.2): bit 3 makes firmware load
// the boot file of this very offer instead of looking for boot servers. OVMF
// asks for no file at all when an offer of class PXEClient lacks it.
var pxeUseBootFile = []byte{6, 1, 0x08, 0xff}

// iPXE's option 175.176 (no-pxedhcp): do not wait for a proxy's offer.
var ipxeNoProxyWait = []byte{176, 1, 1}

// Known finds what the boot index says of a machine. It also answers when the
// view is not synced; what is known then may be old.
func (d *Decider) Known(mac lpmos.MAC) (lpmos.BootEntry, bool) { return d.view.Lookup(mac) }

// Boot decides how a machine is to boot. Until the view is synced the error
// wraps lpmos.ErrUnavailable. A machine that is ignored boots its own disk.
func (d *Decider) Boot(mac lpmos.MAC) (e lpmos.BootEntry, known bool, err error) {
	if !d.view.Synced() {
		return lpmos.BootEntry{}, false, fmt.Errorf("decide how %s boots: the boot index is not synced: %w", mac, lpmos.ErrUnavailable)
	}
	if e, known = d.view.Lookup(mac); known {
		// An action this version does not know must not start an installation.
		if e.Action != lpmos.BootAgent {
			e.Action = lpmos.BootLocal
		}
		return e, true, nil
	}
	e = lpmos.BootEntry{MAC: mac, Action: lpmos.BootLocal}
	if d.cfg.Unknown == Discover {
		e.Action = lpmos.BootAgent
	}
	return e, false, nil
}

// Decide makes the boot part of a DHCP reply.
func (d *Decider) Decide(c Client) Offer {
	if !c.Boots() {
		return Offer{Reason: NotBooting}
	}
	e, known, err := d.Boot(c.MAC)
	if err != nil {
		return Offer{Reason: NotSynced}
	}
	if !known && d.cfg.Unknown == Ignore {
		return Offer{Reason: NotKnown}
	}
	f, ok := c.firmware()
	if !ok || f.file == "" {
		return Offer{Reason: Unsupported, TaskID: e.TaskID}
	}
	o := Offer{Reason: Firmware, Action: e.Action, TaskID: e.TaskID}
	switch {
	case c.IPXE:
		// Absolute, because ${next-server} is the site's server when a proxy
		// answers beside it.
		o.Reason, o.BootFile, o.IPXEOptions = Script, d.scriptURL(c, f), ipxeNoProxyWait
		// iPXE in its option ROM calls itself PXEClient too, and takes the file
		// of a proxy only from an offer of that class.
		if c.isPXE() {
			o.VendorClass, o.VendorOptions = vendorPXE, pxeUseBootFile
		}
	case c.isHTTP():
		o.BootFile, o.VendorClass, o.HTTP = d.cfg.BootURL+"/boot/"+f.file, vendorHTTP, true
	default:
		o.BootFile, o.NextServer = f.file, d.cfg.NextServer
		o.VendorClass, o.VendorOptions = vendorPXE, pxeUseBootFile
	}
	return o
}

// scriptURL spells out what the packet told, so that it needs no expansion by
// iPXE and is about the card that booted, whatever number iPXE gave it.
func (d *Decider) scriptURL(c Client, f firmware) string {
	u := d.cfg.BootURL + "/boot.ipxe?mac=" + c.MAC.String() + "&platform=" + string(f.platform) + "&arch=${buildarch}"
	if c.UUID != "" && safe(c.UUID) {
		u += "&uuid=" + c.UUID
	}
	return u
}
