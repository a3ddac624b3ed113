package inventory

import (
	"context"
	"io/fs"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
)

// Source is where the facts are read.
type Source struct {
	Proc fs.FS // /proc
	Sys  fs.FS // /sys; must be a fs.ReadLinkFS
	// Look fills in what only the device can tell: Content or
	// ContentUnknownBecause. (*Inspector).Look is it for real disks; nil leaves
	// content empty. Up to eight disks are looked at at once.
	Look func(context.Context, *lpmos.Disk)
}

// Bounds of a report. A person cannot judge more, and the region accepts no
// report larger than 1 MiB.
const (
	maxDisks = 256
	maxNICs  = 256
)

// Collect describes the machine. It cannot fail: what cannot be read is left
// empty. boot is the address of the interface the machine booted from, zero if
// it is not known; Hardware.Agent is left for the caller to fill in. It blocks
// as long as src.Look does.
func Collect(ctx context.Context, src Source, boot lpmos.MAC) lpmos.Hardware {
	proc, sys := tree{src.Proc}, tree{src.Sys}
	h := lpmos.Hardware{
		Kernel:  proc.text("sys/kernel/osrelease"),
		BootMAC: boot,
		CPU:     cpu(proc, sys),
		Memory:  lpmos.Memory{TotalBytes: memTotal(proc.bytes("meminfo", 64<<10))},
		Disks:   disks(sys),
		NICs:    nics(sys, boot),
	}
	h.BootMode, h.SecureBoot = firmware(sys)
	dmi(sys, &h)
	look(ctx, h.Disks, src.Look)
	return h
}

// look calls f for each disk, eight at a time: a server with 60 disks would
// otherwise keep a person waiting for minutes.
func look(ctx context.Context, disks []lpmos.Disk, f func(context.Context, *lpmos.Disk)) {
	if f == nil {
		return
	}
	slots := make(chan struct{}, 8)
	for i := range disks {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			f(ctx, &disks[i])
		}()
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
}

// dmi reads the SMBIOS tables as the kernel shows them in /sys/class/dmi/id.
func dmi(sys tree, h *lpmos.Hardware) {
	get := func(name string) string { return fact(string(sys.bytes("class/dmi/id/"+name, maxAttribute))) }
	h.System = lpmos.System{
		Manufacturer: get("sys_vendor"), Product: get("product_name"), Version: get("product_version"),
		Serial: get("product_serial"), UUID: systemUUID(get("product_uuid")),
	}
	h.Board = lpmos.Board{Manufacturer: get("board_vendor"), Product: get("board_name"), Serial: get("board_serial")}
	h.Chassis = lpmos.Chassis{Manufacturer: get("chassis_vendor"), Serial: get("chassis_serial"), AssetTag: get("chassis_asset_tag")}
	if n, ok := sys.number("class/dmi/id/chassis_type"); ok && n < 256 {
		h.Chassis.Type = int(n)
	}
	h.BIOS = lpmos.BIOS{Vendor: get("bios_vendor"), Version: get("bios_version"), Date: get("bios_date")}
}

// systemUUID is s in lower case if it can be the UUID of one machine.
func systemUUID(s string) string {
	if !lpmos.UniqueUUID(s) {
		return ""
	}
	return strings.ToLower(s)
}

// secureBootVariable is the UEFI global variable (UEFI 2.10, 3.3): four bytes of
// attributes, then one byte that is 1 when Secure Boot is enforced.
const secureBootVariable = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

func firmware(sys tree) (mode string, secureBoot *bool) {
	if !sys.exists("firmware/efi") {
		return "bios", nil
	}
	if v := sys.bytes(secureBootVariable, maxAttribute); len(v) >= 5 {
		on := v[4] == 1
		secureBoot = &on
	}
	return "uefi", secureBoot
}

// cpu prefers the topology of sysfs, which also counts processors that are
// present but offline; /proc/cpuinfo is what remains without it.
func cpu(proc, sys tree) lpmos.CPU {
	// 1,024 processors with 1.5 KiB each, and to spare.
	c := parseCPUInfo(proc.bytes("cpuinfo", 4<<20))
	c.Architecture = runtime.GOARCH

	const dir = "devices/system/cpu"
	type core struct{ pkg, die, id string }
	packages, cores, threads := map[string]bool{}, map[core]bool{}, 0
	for _, name := range sys.names(dir) {
		n, isCPU := strings.CutPrefix(name, "cpu")
		if _, err := strconv.ParseUint(n, 10, 31); !isCPU || err != nil {
			continue
		}
		topology := path.Join(dir, name, "topology")
		id := core{sys.text(topology, "physical_package_id"), sys.text(topology, "die_id"), sys.text(topology, "core_id")}
		threads++
		if id.pkg == "" || id.id == "" {
			continue // offline: it has no topology
		}
		packages[id.pkg] = true
		cores[id] = true
	}
	if threads > 0 && len(cores) > 0 {
		c.Sockets, c.Cores, c.Threads = len(packages), len(cores), threads
	}
	return c
}

// maxCPUs bounds the processors counted in cpuinfo; Linux ends at 8,192.
const maxCPUs = 8192

// parseCPUInfo reads /proc/cpuinfo as x86 and arm64 kernels write it. Sockets,
// cores and threads are at least 1 if there is any processor.
func parseCPUInfo(b []byte) lpmos.CPU {
	var c lpmos.CPU
	packages, cores := map[string]bool{}, map[[2]string]bool{}
	var pkg, core string
	end := func() {
		if core != "" {
			packages[pkg] = true
			cores[[2]string{pkg, core}] = true
		}
		pkg, core = "", ""
	}
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		switch strings.TrimSpace(key) {
		case "processor":
			end()
			if c.Threads < maxCPUs {
				c.Threads++
			}
		case "physical id":
			pkg = Clean(value)
		case "core id":
			core = Clean(value)
		case "model name":
			if c.Model == "" {
				c.Model = Clean(value)
			}
		}
	}
	end()
	if c.Threads > 0 {
		c.Sockets, c.Cores = max(1, len(packages)), len(cores)
		if c.Cores == 0 {
			c.Cores = c.Threads
		}
	}
	return c
}

// memTotal reads MemTotal of /proc/meminfo, which is in KiB although it says kB.
func memTotal(b []byte) int64 {
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(Clean(value), " kB"), 10, 52)
			if err != nil || kib < 0 {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}
