package lpmos

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Difference is one thing about a machine that is not as it was. What is only
// seen now has no Before, what is gone no After. Sizes are spelled as on a
// label, with the exact bytes where two sizes would read the same.
type Difference struct {
	Component string `json:"component"`       // one of the Component constants
	Item      string `json:"item,omitempty"`  // which one: a disk's serial number, a NIC's MAC; "" where there is one
	Field     string `json:"field,omitempty"` // what of it: "size", "link"; "" when all of it came or went
	Before    string `json:"before,omitempty"`
	After     string `json:"after,omitempty"`
}

// The components of a machine that Differences are about.
const (
	ComponentSystem   = "system"
	ComponentBoard    = "board"
	ComponentChassis  = "chassis"
	ComponentFirmware = "firmware"
	ComponentCPU      = "cpu"
	ComponentMemory   = "memory"
	ComponentDisk     = "disk"
	ComponentNIC      = "nic"
	ComponentTPM      = "tpm"
)

// memoryNoise is how much the memory that the kernel manages may differ from
// one boot to the next without a module having been changed: crash kernels,
// firmware and page tables take their share first.
const memoryNoise = 64 << 20

// DiffHardware says what about a machine changed from one report to another:
// serial numbers, firmware, processors, memory, TPM, disks and network interfaces.
// It is empty when nothing did, or when one of the two is not known. Disks are
// the same by serial number and WWN (by path where they have neither),
// interfaces by MAC; what is on the disks, device names and the order in which
// things were found are not compared. Removable disks come and go and are left
// out.
func DiffHardware(before, after *Hardware) []Difference {
	if before == nil || after == nil {
		return nil
	}
	var d differ
	d.field(ComponentSystem, "", "manufacturer", before.System.Manufacturer, after.System.Manufacturer)
	d.field(ComponentSystem, "", "model", before.System.Product, after.System.Product)
	d.field(ComponentSystem, "", "serial", before.System.Serial, after.System.Serial)
	d.field(ComponentSystem, "", "uuid", strings.ToLower(before.System.UUID), strings.ToLower(after.System.UUID))
	d.field(ComponentBoard, "", "model", before.Board.Product, after.Board.Product)
	d.field(ComponentBoard, "", "serial", before.Board.Serial, after.Board.Serial)
	d.field(ComponentChassis, "", "serial", before.Chassis.Serial, after.Chassis.Serial)
	d.field(ComponentChassis, "", "asset_tag", before.Chassis.AssetTag, after.Chassis.AssetTag)
	d.field(ComponentFirmware, "", "version", before.BIOS.Version, after.BIOS.Version)
	d.field(ComponentFirmware, "", "date", before.BIOS.Date, after.BIOS.Date)
	d.field(ComponentFirmware, "", "boot_mode", before.BootMode, after.BootMode)
	d.field(ComponentFirmware, "", "secure_boot", onOff(before.SecureBoot), onOff(after.SecureBoot))
	d.field(ComponentCPU, "", "model", before.CPU.Model, after.CPU.Model)
	d.field(ComponentCPU, "", "architecture", before.CPU.Architecture, after.CPU.Architecture)
	d.number(ComponentCPU, "", "sockets", before.CPU.Sockets, after.CPU.Sockets)
	d.number(ComponentCPU, "", "cores", before.CPU.Cores, after.CPU.Cores)
	d.number(ComponentCPU, "", "threads", before.CPU.Threads, after.CPU.Threads)
	if a, b := before.Memory.TotalBytes, after.Memory.TotalBytes; max(a, b)-min(a, b) > memoryNoise {
		d.field(ComponentMemory, "", "size", gibibytes(a), gibibytes(b))
	}
	d.field(ComponentTPM, "", "endorsement_key", before.TPM.Fingerprint(), after.TPM.Fingerprint())
	d.disks(before, after)
	d.nics(before, after)
	return d.found
}

type differ struct{ found []Difference }

// field notes a text that changed. What one of the two reports does not say is
// a difference too: a serial number that can no longer be read is news.
func (d *differ) field(component, item, field, before, after string) {
	if before != after {
		d.found = append(d.found, Difference{component, item, field, before, after})
	}
}

func (d *differ) number(component, item, field string, before, after int) {
	if before != after {
		d.field(component, item, field, strconv.Itoa(before), strconv.Itoa(after))
	}
}

func (d *differ) disks(before, after *Hardware) {
	was, is := fixedDisks(before), fixedDisks(after)
	for _, name := range names(was, is) {
		a, hadIt := was[name]
		b, hasIt := is[name]
		switch {
		case !hadIt:
			d.field(ComponentDisk, name, "", "", diskLabel(b))
			continue
		case !hasIt:
			d.field(ComponentDisk, name, "", diskLabel(a), "")
			continue
		}
		if a.SizeBytes != b.SizeBytes {
			x, y := FormatBytes(a.SizeBytes), FormatBytes(b.SizeBytes)
			if x == y {
				x, y = strconv.FormatInt(a.SizeBytes, 10)+" B", strconv.FormatInt(b.SizeBytes, 10)+" B"
			}
			d.field(ComponentDisk, name, "size", x, y)
		}
		d.field(ComponentDisk, name, "model", a.Model, b.Model)
		d.field(ComponentDisk, name, "wwn", a.WWN, b.WWN)
		d.field(ComponentDisk, name, "firmware", a.Firmware, b.Firmware)
		d.field(ComponentDisk, name, "transport", a.Transport, b.Transport)
		d.number(ComponentDisk, name, "sector_bytes", a.SectorBytes, b.SectorBytes)
		d.field(ComponentDisk, name, "read_only", yesNo(a.ReadOnly), yesNo(b.ReadOnly))
	}
}

func (d *differ) nics(before, after *Hardware) {
	was, is := nicsByMAC(before), nicsByMAC(after)
	for _, mac := range names(was, is) {
		a, hadIt := was[mac]
		b, hasIt := is[mac]
		switch {
		case !hadIt:
			d.field(ComponentNIC, mac, "", "", nicLabel(b))
			continue
		case !hasIt:
			d.field(ComponentNIC, mac, "", nicLabel(a), "")
			continue
		}
		d.field(ComponentNIC, mac, "link", linkLabel(a), linkLabel(b))
		d.field(ComponentNIC, mac, "driver", a.Driver, b.Driver)
		d.field(ComponentNIC, mac, "pci", a.PCI, b.PCI)
	}
}

// fixedDisks are the disks that stay, by what does not change of them. Several
// that share a name are told apart by their number.
func fixedDisks(h *Hardware) map[string]Disk {
	out := map[string]Disk{}
	for _, x := range h.Disks {
		if x.Removable {
			continue
		}
		name := cmp.Or(x.Serial, x.WWN, x.Device)
		for base, n := name, 2; ; n++ {
			if _, taken := out[name]; !taken {
				break
			}
			name = base + " #" + strconv.Itoa(n)
		}
		out[name] = x
	}
	return out
}

func nicsByMAC(h *Hardware) map[string]NIC {
	out := map[string]NIC{}
	for _, n := range h.NICs {
		if !n.MAC.IsZero() {
			out[n.MAC.String()] = n
		}
	}
	return out
}

// names are the keys of both maps, sorted.
func names[T any](a, b map[string]T) []string {
	var out []string
	for name := range a {
		out = append(out, name)
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func diskLabel(d Disk) string {
	return strings.TrimSpace(FormatBytes(d.SizeBytes) + " " + strings.TrimSpace(d.Vendor+" "+d.Model))
}

func nicLabel(n NIC) string { return strings.TrimSpace(n.Name + " " + n.Driver) }

func linkLabel(n NIC) string {
	switch {
	case !n.Link:
		return "down"
	case n.SpeedMbps <= 0:
		return "up"
	case n.SpeedMbps%1000 == 0:
		return strconv.Itoa(n.SpeedMbps/1000) + " Gbit/s"
	}
	return strconv.Itoa(n.SpeedMbps) + " Mbit/s"
}

func gibibytes(n int64) string {
	return strings.TrimSuffix(strconv.FormatFloat(float64(n)/(1<<30), 'f', 1, 64), ".0") + " GiB"
}

func onOff(b *bool) string {
	switch {
	case b == nil:
		return ""
	case *b:
		return "on"
	}
	return "off"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// Sighting is a machine as it reported at one time.
type Sighting struct {
	At       time.Time `json:"at"`
	RegionID string    `json:"region_id"`
	TaskID   string    `json:"task_id,omitempty"` // it reported for; "" for a machine without a task
	Hardware *Hardware `json:"hardware,omitempty"`
}
