package netboot

import (
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
)

// Client is a machine that asks how to boot, as a DHCP packet describes it.
type Client struct {
	MAC         lpmos.MAC
	Arch        int    // option 93 (RFC 4578 §2.1), or ArchUnknown
	UserClass   string // option 77, the first class: "iPXE", "LPMOS"
	VendorClass string // option 60: "PXEClient:Arch:00007:UNDI:003016"
	UUID        string // option 97 in the spelling of the kernel, or ""
	IPXE        bool   // option 77 or 175 say that iPXE asks
}

// ArchUnknown stands for an absent or malformed option 93.
const ArchUnknown = -1

// IPXEClass reports whether a user class (option 77) is one that iPXE sends:
// its own, or that of the build with LPMOS's embedded script. Both take the same
// script, so that no build is ever offered a second stage for ever.
func IPXEClass(s string) bool { return s == "iPXE" || s == "LPMOS" }

// The vendor classes of firmware that boots from the network, as it sends them
// (followed by more) and as they are sent back (exactly).
const (
	vendorPXE  = "PXEClient"
	vendorHTTP = "HTTPClient"
)

// Platform is iPXE's name of a firmware interface.
type Platform string

// The platforms there are boot files for.
const (
	BIOS Platform = "pcbios"
	EFI  Platform = "efi"
)

// firmware is what an architecture type (IANA, "Processor Architecture Types")
// gets. An empty file means that LPMOS cannot boot it.
type firmware struct {
	name     string
	platform Platform
	file     string // of BootImage.Files
}

var firmwares = map[int]firmware{
	0:  {"x86 BIOS", BIOS, "undionly.kpxe"},
	6:  {"x86 UEFI", EFI, ""},
	7:  {"x64 UEFI", EFI, "snponly.efi"},
	9:  {"x64 UEFI", EFI, "snponly.efi"}, // EBC in the registry, x64 in the field (RFC 4578 errata)
	10: {"arm UEFI", EFI, ""},
	11: {"arm64 UEFI", EFI, ""},
	15: {"x86 UEFI HTTP", EFI, ""},
	16: {"x64 UEFI HTTP", EFI, "snponly.efi"},
	18: {"arm UEFI HTTP", EFI, ""},
	19: {"arm64 UEFI HTTP", EFI, ""},
}

// Boots reports whether c is firmware or iPXE that looks for something to boot,
// rather than an operating system that wants an address.
func (c Client) Boots() bool { return c.IPXE || c.isPXE() || c.isHTTP() }

func (c Client) isPXE() bool  { return strings.HasPrefix(c.VendorClass, vendorPXE) }
func (c Client) isHTTP() bool { return strings.HasPrefix(c.VendorClass, vendorHTTP) }

// firmware finds what c runs. Firmware without option 93 names its
// architecture in the vendor class, or is so old that it is BIOS.
func (c Client) firmware() (firmware, bool) {
	arch := c.Arch
	if arch == ArchUnknown {
		arch = 0
		if _, rest, ok := strings.Cut(c.VendorClass, ":Arch:"); ok {
			digits, _, _ := strings.Cut(rest, ":")
			n, err := strconv.ParseUint(digits, 10, 16)
			if err != nil {
				return firmware{}, false
			}
			arch = int(n)
		}
	}
	f, ok := firmwares[arch]
	return f, ok
}

// ParsePlatform reads iPXE's ${platform}.
func ParsePlatform(s string) (Platform, bool) {
	p := Platform(s)
	return p, p == BIOS || p == EFI
}

// Supported reports whether a machine with iPXE's ${buildarch} can run what the
// region has: "i386" is what BIOS builds say on 64-bit machines too. An empty
// name is taken for x86.
func Supported(buildarch string) bool {
	return buildarch == "" || buildarch == "x86_64" || buildarch == "i386"
}
