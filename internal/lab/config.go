package lab

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

// Firmware is what runs before anything of ours does.
type Firmware int

const (
	// BIOS is SeaBIOS with the network card's option ROM.
	BIOS Firmware = iota
	// UEFI is OVMF with EDK2's own PXE client: cards have no option ROM unless
	// NIC.ROM names one.
	UEFI
	// UEFIHTTP is UEFI with both PXE clients off, so that HTTP boot over IPv4
	// is the first entry that can work.
	UEFIHTTP
	// UEFISecureBoot is UEFI that starts only what Microsoft's keys signed.
	UEFISecureBoot
)

func (f Firmware) String() string { return firmwares[f].name }

// EFI reports whether the machine has UEFI variables.
func (f Firmware) EFI() bool { return firmwares[f].code != nil }

// firmwares holds what differs.
var firmwares = map[Firmware]struct {
	name       string
	memoryMB   int // when the config names none
	machine    string
	args       []string
	code, vars func(Tools) string // flash images; nil means SeaBIOS
}{
	// With graphics off, SeaBIOS and option ROMs speak on the serial port.
	BIOS: {name: "BIOS", memoryMB: 1024, machine: "q35,graphics=off"},
	UEFI: {name: "UEFI", memoryMB: 1280, machine: "q35",
		code: func(t Tools) string { return t.OVMFCode }, vars: func(t Tools) string { return t.OVMFVars }},
	UEFIHTTP: {name: "UEFI HTTP", memoryMB: 1280, machine: "q35",
		args: []string{
			"-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no",
			"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no",
		},
		code: func(t Tools) string { return t.OVMFCode }, vars: func(t Tools) string { return t.OVMFVars }},
	UEFISecureBoot: {name: "UEFI Secure Boot", memoryMB: 1280, machine: "q35,smm=on",
		// The variable store may be written from system management mode only.
		args: []string{"-global", "driver=cfi.pflash01,property=secure,value=on",
			"-global", "ICH9-LPC.disable_s3=1"},
		code: func(t Tools) string { return t.OVMFSecureCode }, vars: func(t Tools) string { return t.OVMFSecureVars }},
}

// NICModel is a QEMU network device.
type NICModel string

const (
	VirtioNet NICModel = "virtio-net-pci" // default
	E1000e    NICModel = "e1000e"         // Intel 82574L
	E1000     NICModel = "e1000"          // Intel 82540EM
	VMXNet3   NICModel = "vmxnet3"
)

// NIC is a network card.
type NIC struct {
	MAC    lpmos.MAC // required
	Model  NICModel
	Bridge string // the segment it is plugged into; default the first

	// ROM is an option ROM file to use instead of the default: QEMU's iPXE for
	// this model with BIOS, none with UEFI.
	ROM string
}

// Bus is how a disk is attached.
type Bus string

const (
	Virtio Bus = "virtio" // default
	NVMe   Bus = "nvme"
	AHCI   Bus = "ahci"
	SCSI   Bus = "scsi" // virtio-scsi
	USB    Bus = "usb"  // a removable stick
)

// Disk is a raw image file.
type Disk struct {
	Path      string // required
	SizeBytes int64  // makes the file, sparse, if it does not exist yet
	Bus       Bus
	Serial    string // default "LAB-<machine>-<n>", cut to what the bus carries
	WWN       uint64 // AHCI and SCSI; 0 means none

	// SectorBytes is 512 (default) or 4096; not for AHCI and USB.
	SectorBytes int

	// Cache is QEMU's cache mode, default "unsafe": the guest's flushes are not
	// passed on to the host's disk. A power cut (Machine.PowerOff) is still as
	// it should be, since what the guest has written is in the host's page
	// cache; only a crash of the host loses it.
	Cache string
}

// serialMax is how long a serial number the bus carries.
var serialMax = map[Bus]int{Virtio: 20, NVMe: 20, AHCI: 20, SCSI: 36, USB: 36}

// SMBIOS is what the machine says of itself.
type SMBIOS struct {
	UUID         string // default derived from the first MAC, so that it is stable
	Serial       string // default "LAB-<machine>"
	Manufacturer string // default "LPMOS"
	Product      string // default "Lab"
}

// MachineConfig describes a machine.
type MachineConfig struct {
	Name     string // required; letters, digits, '-', '_' and '.'
	Firmware Firmware
	MemoryMB int    // default 1024 with BIOS, 1280 with UEFI
	CPUs     int    // default 1: with two, a kernel under emulation once waited for ever for its timer after UEFI
	CPUModel string // QEMU's -cpu; default everything the emulation can do but five-level paging and fast string moves
	NICs     []NIC
	Disks    []Disk
	SMBIOS   SMBIOS

	// RTC is what the machine's clock says at power on; zero means the right
	// time. It runs on from there while the machine is on.
	RTC time.Time

	// TPM is a directory for the state of a TPM 2.0; "" for a machine without. The
	// same directory is the same TPM, as a mainboard keeps its own.
	TPM string

	// NVRAMOrder leaves the boot order of UEFI to its variables. Otherwise the
	// order is all network cards, then all disks, as configured, at every boot:
	// OVMF rewrites BootOrder from QEMU's boot indexes.
	NVRAMOrder bool

	// Failures end a wait for a console line; nil means the package's Failures,
	// an empty list none.
	Failures []*regexp.Regexp

	// Args are given to QEMU as they are, after all others.
	Args []string
}

var machineName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,40}$`)

// withDefaults checks c and fills in what it leaves open.
func (c MachineConfig) withDefaults() (MachineConfig, error) {
	fw, known := firmwares[c.Firmware]
	if !known {
		return c, fmt.Errorf("firmware %d is unknown", c.Firmware)
	}
	if !machineName.MatchString(c.Name) {
		return c, fmt.Errorf("machine name %q is not letters, digits, '-', '_', '.'", c.Name)
	}
	if c.MemoryMB == 0 {
		c.MemoryMB = fw.memoryMB
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.CPUModel == "" {
		// Five-level paging makes every emulated TLB miss dearer and serves
		// nothing below 64 TiB. A processor with fast string moves (ERMS, FSRM)
		// is copied and cleared memory with by "rep movsb" and "rep stosb", of
		// which QEMU emulates each byte on its own.
		c.CPUModel = "max,la57=off,erms=off,fsrm=off"
	}
	if c.Failures == nil {
		c.Failures = Failures
	}
	c.NICs = append([]NIC(nil), c.NICs...)
	for i := range c.NICs {
		nic := &c.NICs[i]
		if nic.MAC.IsZero() {
			return c, fmt.Errorf("interface %d has no MAC address", i)
		}
		if nic.Model == "" {
			nic.Model = VirtioNet
		}
	}
	c.Disks = append([]Disk(nil), c.Disks...)
	for i := range c.Disks {
		d := &c.Disks[i]
		if d.Path == "" {
			return c, fmt.Errorf("disk %d has no path", i)
		}
		if d.Bus == "" {
			d.Bus = Virtio
		}
		limit, ok := serialMax[d.Bus]
		if !ok {
			return c, fmt.Errorf("disk %d: bus %q is unknown", i, d.Bus)
		}
		if d.Serial == "" {
			suffix := fmt.Sprintf("-%d", i)
			d.Serial = "LAB-" + c.Name
			d.Serial = d.Serial[:min(len(d.Serial), limit-len(suffix))] + suffix
		}
		if len(d.Serial) > limit {
			return c, fmt.Errorf("disk %d: serial %q is longer than the %d bytes that %s carries", i, d.Serial, limit, d.Bus)
		}
		if d.SectorBytes == 0 {
			d.SectorBytes = 512
		}
		if d.SectorBytes != 512 && (d.SectorBytes != 4096 || d.Bus == AHCI || d.Bus == USB) {
			return c, fmt.Errorf("disk %d: %s has no sectors of %d bytes", i, d.Bus, d.SectorBytes)
		}
		if d.Cache == "" {
			d.Cache = "unsafe"
		}
	}
	if c.SMBIOS.UUID == "" {
		seed := []byte(c.Name)
		if len(c.NICs) > 0 {
			seed = c.NICs[0].MAC[:]
		}
		h := sha256.Sum256(append([]byte("lpmos lab machine "), seed...))
		h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // RFC 9562, version 8
		c.SMBIOS.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
	}
	for field, value := range map[*string]string{
		&c.SMBIOS.Serial: "LAB-" + c.Name, &c.SMBIOS.Manufacturer: "LPMOS", &c.SMBIOS.Product: "Lab",
	} {
		if *field == "" {
			*field = value
		}
	}
	return c, nil
}

// Descriptors that QEMU inherits: exec.Cmd.ExtraFiles begins at 3.
const (
	qmpFD    = 3
	serialFD = 4
	tpmFD    = 5 // of machines with a TPM
)

// args is QEMU's command line for a checked config. taps are the interfaces'
// links, in order; dir holds the UEFI variables.
func (c MachineConfig) args(t Tools, taps []string, dir string) []string {
	fw := firmwares[c.Firmware]
	rtc := "utc"
	if !c.RTC.IsZero() {
		rtc = c.RTC.UTC().Format("2006-01-02T15:04:05")
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-name", comma(c.Name),
		"-machine", fw.machine,
		"-accel", "tcg,thread=multi",
		"-cpu", c.CPUModel,
		"-smp", fmt.Sprint(c.CPUs),
		"-m", fmt.Sprint(c.MemoryMB),
		"-uuid", c.SMBIOS.UUID,
		"-smbios", fmt.Sprintf("type=1,manufacturer=%s,product=%s,serial=%s",
			comma(c.SMBIOS.Manufacturer), comma(c.SMBIOS.Product), comma(c.SMBIOS.Serial)),
		"-rtc", "base=" + rtc,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", qmpFD), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=serial,fd=%d", serialFD), "-serial", "chardev:serial",
		"-device", "virtio-rng-pci",
		// A panicking kernel is reported (GuestPanicked) and goes on with its own
		// policy, reboot or halt, as on real hardware.
		"-device", "pvpanic", "-action", "panic=none",
	}
	if c.Firmware.EFI() {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+comma(fw.code(t)),
			"-drive", "if=pflash,unit=1,format=raw,file="+comma(filepath.Join(dir, varsFile)))
	}
	if c.TPM != "" {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", tpmFD), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0")
	}
	args = append(args, fw.args...)

	bootindex := 0
	boot := func() string {
		if c.NVRAMOrder {
			return ""
		}
		bootindex++
		return fmt.Sprintf(",bootindex=%d", bootindex)
	}
	for i, nic := range c.NICs {
		rom := ""
		switch {
		case nic.ROM != "":
			rom = ",romfile=" + comma(nic.ROM)
			if nic.Model == VirtioNet {
				// iPXE's virtio ROMs carry the id of the modern device. QEMU
				// gives its default ROM the id of a transitional one (pci_patch_ids)
				// but not a file of ours, which SeaBIOS then passes over in silence.
				rom += ",disable-legacy=on"
			}
		case c.Firmware.EFI():
			rom = ",romfile="
		}
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", i, taps[i]),
			"-device", fmt.Sprintf("%s,id=nic%d,netdev=net%d,mac=%s%s%s", nic.Model, i, i, nic.MAC, boot(), rom))
	}
	controllers := make(map[Bus]bool)
	for i, d := range c.Disks {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,discard=unmap,cache=%s,file=%s",
			i, d.Cache, comma(d.Path)))
		bus := buses[d.Bus]
		if bus.controller != "" && !controllers[d.Bus] {
			controllers[d.Bus] = true
			args = append(args, "-device", bus.controller)
		}
		device := fmt.Sprintf("%s,id=%s,drive=disk%d,serial=%s%s", bus.device, diskDevice(i), i, comma(d.Serial), boot())
		if bus.numbered {
			device += fmt.Sprintf(",bus=ide.%d", ahciPort(c.Disks[:i]))
		}
		if d.WWN != 0 && bus.wwn {
			device += fmt.Sprintf(",wwn=0x%016x", d.WWN)
		}
		if d.SectorBytes != 512 {
			device += fmt.Sprintf(",logical_block_size=%d,physical_block_size=%d", d.SectorBytes, d.SectorBytes)
		}
		args = append(args, "-device", device)
	}
	return append(args, c.Args...)
}

// diskDevice is QEMU's name of the i-th disk as a device.
func diskDevice(i int) string { return fmt.Sprintf("drive%d", i) }

var buses = map[Bus]struct {
	device     string
	controller string // added once when the bus is used
	numbered   bool   // ports of the chipset's own AHCI controller
	wwn        bool
}{
	Virtio: {device: "virtio-blk-pci"},
	NVMe:   {device: "nvme"},
	AHCI:   {device: "ide-hd", numbered: true, wwn: true},
	SCSI:   {device: "scsi-hd,bus=scsi.0", controller: "virtio-scsi-pci,id=scsi", wwn: true},
	USB:    {device: "usb-storage,bus=usb.0,removable=on", controller: "qemu-xhci,id=usb"},
}

// ahciPort is the next free port: the number of AHCI disks so far.
func ahciPort(before []Disk) (port int) {
	for _, d := range before {
		if d.Bus == AHCI {
			port++
		}
	}
	return port
}

// comma doubles commas, which separate QEMU's options otherwise.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }
