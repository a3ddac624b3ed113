package install

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/grubboot"
)

// GrubParts are the boot loader's files in the agent's initramfs.
type GrubParts struct{ BootImg, CoreImg, LoaderEFI string }

func (g *GrubParts) setDefaults() {
	for _, d := range []struct {
		to   *string
		path string
	}{{&g.BootImg, grubboot.BootImg}, {&g.CoreImg, grubboot.CoreImg}, {&g.LoaderEFI, grubboot.LoaderEFI}} {
		if *d.to == "" {
			*d.to = d.path
		}
	}
}

// bootParts is the boot loader, read and patched before anything is written.
//
// Firmware is left as it is: there is no boot entry in NVRAM. LPMOS keeps
// network boot first, so that the region decides at every boot; it sends the
// machine to this disk, and \EFI\BOOT\BOOTX64.EFI is also what firmware finds
// by itself when the network is gone.
type bootParts struct {
	bootImg, coreImg []byte
	esp              []espFile
	consoles         []string // console=… arguments of the running kernel
}

func (g GrubParts) load(e *lpmos.Effect, proc string) (*bootParts, error) {
	fail := func(err error) (*bootParts, error) {
		return nil, &Failure{Code: "boot_image_incomplete", Cause: "The agent's boot image lacks a usable boot loader.", NextStep: "Build and publish the boot image again, then retry the task.", Err: err}
	}
	if !bootable(e) {
		return nil, &Failure{Code: "plan_invalid", Cause: "The partition with /boot is not the one that the boot loader reads.", NextStep: nextReport}
	}
	fs, _ := e.Boot()
	var b bootParts
	var loader []byte
	for _, f := range []struct {
		to   *[]byte
		path string
	}{{&b.bootImg, g.BootImg}, {&b.coreImg, g.CoreImg}, {&loader, g.LoaderEFI}} {
		text, err := os.ReadFile(f.path)
		if err != nil {
			return fail(fmt.Errorf("read boot loader: %w", err))
		}
		*f.to = text
	}
	if err := grubboot.PatchBootImg(b.bootImg, grubboot.CoreLBA); err != nil {
		return fail(err)
	}
	if err := grubboot.PatchCoreImg(b.coreImg, grubboot.CoreLBA); err != nil {
		return fail(err)
	}
	stub, err := grubboot.StubConfig(fs.UUID)
	if err != nil {
		return fail(err)
	}
	b.esp = []espFile{{grubboot.LoaderPath, loader}, {grubboot.StubPath, []byte(stub)}}
	cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return nil, fmt.Errorf("read kernel command line: %w", err)
	}
	for _, arg := range strings.Fields(string(cmdline)) {
		if strings.HasPrefix(arg, "console=") && lpmos.PlainBootWord(arg) {
			b.consoles = append(b.consoles, arg)
		}
	}
	return &b, nil
}

// bootable reports whether what carries /boot is where grubboot.RootPartition
// says, on every disk that has a part of it.
func bootable(e *lpmos.Effect) bool {
	fs, ok := e.Boot()
	if !ok || fs.FS != "ext4" {
		return false
	}
	on := []string{fs.Name}
	switch fs.Kind {
	case "crypt", "volume":
		return false
	case "array":
		for _, a := range e.Arrays {
			if a.Name == fs.Name {
				// With 1.0 the filesystem begins where the partition does.
				if on = a.Members; a.Metadata != "1.0" {
					return false
				}
			}
		}
	}
	found := 0
	for _, d := range e.Disks() {
		for _, p := range d.Partitions {
			if slices.Contains(on, p.PartUUID) {
				found++
				if p.Number != grubboot.RootPartition {
					return false
				}
			}
		}
	}
	return found == len(on)
}

// menu is /boot/grub/grub.cfg. GRUB's $root is the filesystem it lies on
// already, however it was started.
func (b *bootParts) menu(e *lpmos.Effect, m *lpmos.ImageManifest) (string, error) {
	root, _ := e.Root()
	where := "UUID=" + root.UUID
	switch root.Kind {
	case "volume":
		// An initramfs activates the volume that is named, and does not look
		// through inactive ones for a UUID. Neither name has a dash.
		where = "/dev/mapper/" + strings.Replace(root.Name, "/", "-", 1)
	case "crypt":
		where = "/dev/mapper/" + root.Name
	}
	args := []string{"root=" + where, "ro"}
	for _, c := range e.Crypts {
		// dracut goes by this, the initramfs of Debian's family by crypttab.
		args = append(args, "rd.luks.name="+c.UUID+"="+c.Name)
	}
	args = append(args, strings.Fields(m.KernelArgs)...)
	args = append(args, strings.Fields(e.KernelArgs)...)
	args = append(args, b.consoles...)
	for _, a := range append([]string{m.Kernel, m.Initrd}, args...) {
		if !lpmos.PlainBootWord(a) {
			return "", &Failure{Code: "image_invalid", Cause: fmt.Sprintf("The kernel argument or path %q cannot stand in a boot menu.", lpmos.Shorten(a, 80)), NextStep: nextImage}
		}
	}
	slash := func(p string) string { return "/" + strings.TrimPrefix(p, "/") }
	if fs, _ := e.Boot(); fs.Mount == "/boot" {
		slash = func(p string) string { return "/" + strings.TrimPrefix(strings.TrimPrefix(p, "/"), "boot/") }
	}
	return "# Written by LPMOS at installation.\n" +
		"set default=0\nset timeout=1\n" +
		"menuentry '" + menuTitle(m) + "' {\n" +
		"  linux " + slash(m.Kernel) + " " + strings.Join(args, " ") + "\n" +
		"  initrd " + slash(m.Initrd) + "\n}\n", nil
}

var notTitle = regexp.MustCompile(`[^A-Za-z0-9 ._-]`)

func menuTitle(m *lpmos.ImageManifest) string {
	return notTitle.ReplaceAllString(m.OS+" "+m.Version, "")
}

// writeBIOS writes what a BIOS starts from: code in front of the protective
// partition table, and GRUB's core in the bios_grub partition. A disk with
// larger sectors cannot be booted that way and gets neither.
func (b *bootParts) writeBIOS(d *device) error {
	if d.sectorBytes != grubboot.SectorSize {
		return nil
	}
	sector := make([]byte, grubboot.SectorSize)
	if _, err := d.ReadAt(sector, 0); err != nil {
		return err
	}
	copy(sector[:grubboot.BootCodeBytes], b.bootImg)
	// Whole sectors: the last is padded, so that nothing is read back first.
	core := make([]byte, (len(b.coreImg)+grubboot.SectorSize-1)/grubboot.SectorSize*grubboot.SectorSize)
	copy(core, b.coreImg)
	if _, err := d.WriteAt(core, grubboot.CoreLBA*grubboot.SectorSize); err != nil {
		return err
	}
	_, err := d.WriteAt(sector, 0)
	return err
}
