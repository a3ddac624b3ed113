package bootimage

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos/internal/grubboot"
)

// disk is an installed system as our installer lays it out; instead of a kernel
// its GRUB prints "BOOTED <name>".
type disk struct {
	name, rootUUID, espID string
	file                  string
}

const (
	espStart, espSectors = 6144, 73728
	rootStart            = espStart + espSectors
	diskSectors          = 96 << 11
)

func makeDisk(t *testing.T, b *built, name, rootUUID, espID string) disk {
	t.Helper()
	dir := t.TempDir()
	d := disk{name: name, rootUUID: rootUUID, espID: espID, file: filepath.Join(dir, "disk")}
	sparse := func(name string, sectors int64) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f, sectors*512); err != nil {
			t.Fatal(err)
		}
		return f
	}
	run := func(stdin string, args ...string) {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	write := func(name, content string) string {
		f := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return f
	}

	sparse("disk", diskSectors)
	run(fmt.Sprintf("label: gpt\nstart=%d,size=%d,type=21686148-6449-6E6F-744E-656564454649\n"+
		"start=%d,size=%d,type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\nstart=%d,type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n",
		grubboot.CoreLBA, espStart-grubboot.CoreLBA, espStart, espSectors, rootStart), "/usr/sbin/sfdisk", "-q", d.file)

	esp := sparse("esp", espSectors)
	run("", "/usr/sbin/mkfs.vfat", "-F", "32", "-i", espID, esp)
	stub, err := grubboot.StubConfig(rootUUID)
	if err != nil {
		t.Fatal(err)
	}
	run("", "/usr/bin/mmd", "-i", esp, "::EFI", "::EFI/BOOT")
	run("", "/usr/bin/mcopy", "-i", esp, write("loader", string(b.root[grubboot.LoaderEFI].data)), "::"+grubboot.LoaderPath)
	run("", "/usr/bin/mcopy", "-i", esp, write("stub", stub), "::"+grubboot.StubPath)

	root := sparse("root", diskSectors-rootStart-2048)
	write("tree"+grubboot.GrubConfig, "terminal_output serial\necho \"BOOTED "+name+" from=$root\"\nsleep 1\nhalt\n")
	run("", "/usr/sbin/mke2fs", "-q", "-t", "ext4", "-U", rootUUID, "-d", filepath.Join(dir, "tree"), root)

	f, err := os.OpenFile(d.file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	place := func(b []byte, sector int64) {
		if _, err := f.WriteAt(b, sector*512); err != nil {
			t.Fatal(err)
		}
	}
	place(b.root[grubboot.BootImg].data[:grubboot.BootCodeBytes], 0)
	place(b.root[grubboot.CoreImg].data, grubboot.CoreLBA)
	for name, sector := range map[string]int64{esp: espStart, root: rootStart} {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		place(body, sector)
	}
	return d
}

// machine is the arguments for firmware and disks, in boot order, after the
// network if netdev is not empty. The network card has QEMU's iPXE ROM unless
// rom is ",romfile=".
func machine(t *testing.T, uefi bool, rom, netdev string, disks ...disk) []string {
	t.Helper()
	// Without graphics, SeaBIOS and EDK2 put their console on the serial port.
	args := []string{"-machine", "q35,graphics=off", "-m", "256"}
	if uefi {
		vars := filepath.Join(t.TempDir(), "vars")
		b, err := os.ReadFile(ovmfVars)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vars, b, 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-drive", "if=pflash,format=raw,readonly=on,file="+ovmfCode, "-drive", "if=pflash,format=raw,file="+vars)
	}
	if netdev == "" {
		args = append(args, "-net", "none")
	} else {
		args = append(args, "-netdev", "user,id=n,restrict=on,"+netdev, "-device", "virtio-net-pci,netdev=n,bootindex=1"+rom)
	}
	for i, d := range disks {
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=d%d,snapshot=on", d.file, i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d,bootindex=%d", i, i+2))
	}
	return args
}

const bootLimit = 90 * time.Second

// TestDiskBoots starts installed systems from their disks, each beside another
// one of the same kind: the firmware's choice must win.
func TestDiskBoots(t *testing.T) {
	b := image(t)
	one := makeDisk(t, b, "one", "11111111-2222-4333-8444-aaaaaaaaaaaa", "AAAA0001")
	two := makeDisk(t, b, "two", "11111111-2222-4333-8444-bbbbbbbbbbbb", "BBBB0002")
	for _, c := range []struct {
		name  string
		uefi  bool
		disks []disk
		want  string
	}{
		{"BIOS boots the first disk", false, []disk{one, two}, "BOOTED one from=hd0,gpt3"},
		{"BIOS boots the other one when it is first", false, []disk{two, one}, "BOOTED two from=hd0,gpt3"},
		{"UEFI boots the first disk", true, []disk{one, two}, "BOOTED one from=hd0,gpt3"},
		{"UEFI boots the other one when it is first", true, []disk{two, one}, "BOOTED two from=hd0,gpt3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if found, text := boot(t, bootLimit, machine(t, c.uefi, "", "", c.disks...), "BOOTED one from=hd0,gpt3", "BOOTED two from=hd0,gpt3", "LPMOS-GRUB-FAILED"); found != c.want {
				t.Errorf("the console says %q; want %q:\n%s", found, c.want, text)
			}
		})
	}
}

// TestCoreReportsAMissingSystem has a disk whose third partition is empty.
func TestCoreReportsAMissingSystem(t *testing.T) {
	b := image(t)
	d := makeDisk(t, b, "empty", "11111111-2222-4333-8444-cccccccccccc", "CCCC0003")
	f, err := os.OpenFile(d.file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 1<<20), rootStart*512); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, uefi := range []bool{false, true} {
		boot(t, bootLimit, machine(t, uefi, "", "", d), "GRUB-FAILED")
	}
}

// TestLocalBoot starts a machine from the network, with the helpers as the
// region hands them out, and two disks of which the first is not the one meant.
func TestLocalBoot(t *testing.T) {
	b := image(t)
	one := makeDisk(t, b, "one", "11111111-2222-4333-8444-aaaaaaaaaaaa", "AAAA0001")
	two := makeDisk(t, b, "two", "11111111-2222-4333-8444-bbbbbbbbbbbb", "BBBB0002")
	const (
		bios = "set netX/18:string %s\nchain --autofree tftp://${next-server}/localboot.0 || sanboot --no-describe --drive 0x80\n"
		uefi = "chain --autofree tftp://${next-server}/localboot.efi ||\necho HELPER-RETURNED\n"
		none = "99999999-2222-4333-8444-999999999999"
		// romVersion is that of the iPXE in Debian 12's ipxe-qemu.
		romVersion = "1.0.0+git-20190125.36a4c85-5.1"
	)
	for _, c := range []struct {
		name  string
		uefi  bool
		uuid  string
		first string // what the firmware loads: the script, by QEMU's iPXE of 2019, or our own iPXE
		want  string
	}{
		{"BIOS finds the root filesystem", false, two.rootUUID, "boot.ipxe", "BOOTED two"},
		{"BIOS finds the ESP", false, "BBBB-0002", "boot.ipxe", "BOOTED two"},
		{"BIOS by undionly.kpxe", false, two.rootUUID, "undionly.kpxe", "BOOTED two"},
		{"BIOS keeps the first disk where it is", false, one.rootUUID, "undionly.kpxe", "BOOTED one"},
		{"BIOS without a UUID takes the first disk", false, "", "boot.ipxe", "BOOTED one"},
		{"BIOS gives up with a marker", false, none, "boot.ipxe", "LPMOS-LOCALBOOT-FAILED uuid=" + none},
		{"UEFI finds the root filesystem", true, two.rootUUID, "boot.ipxe", "BOOTED two"},
		{"UEFI by snponly.efi finds the ESP", true, "BBBB-0002", "snponly.efi", "BOOTED two"},
		{"UEFI without a UUID takes the first disk", true, "", "boot.ipxe", "BOOTED one"},
		{"UEFI gives up and returns to the script", true, none, "boot.ipxe", "HELPER-RETURNED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write := func(name string, body []byte) {
				if err := os.WriteFile(filepath.Join(dir, name), body, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range []string{"undionly.kpxe", "snponly.efi", "localboot.0"} {
				write(name, b.blob(t, b.img.Files[name]))
			}
			script, rom := uefi, ""
			if !c.uefi {
				script = fmt.Sprintf(bios, c.uuid)
			}
			helper, err := grubboot.PatchLocalBoot(b.blob(t, b.img.Files["localboot.efi"]), c.uuid)
			if err != nil {
				t.Fatal(err)
			}
			write("localboot.efi", helper)
			bootfile := "boot.ipxe"
			switch c.first {
			case "boot.ipxe":
				write("boot.ipxe", []byte("#!ipxe\n"+script))
			case "undionly.kpxe":
				// QEMU's ROM fetches our iPXE; that one, which gets the same script
				// again, goes on.
				write("boot.ipxe", []byte("#!ipxe\niseq ${version} "+romVersion+" && chain tftp://${next-server}/undionly.kpxe ||\n"+script))
			case "snponly.efi":
				// iPXE fetches autoexec.ipxe by the firmware's own TFTP, before it
				// has opened its interface; without ifopen the next fetch times out.
				write("autoexec.ipxe", []byte("#!ipxe\nifopen net0\n"+script))
				bootfile, rom = "snponly.efi", ",romfile="
			}
			found, text := boot(t, bootLimit, machine(t, c.uefi, rom, "tftp="+dir+",bootfile="+bootfile, one, two), "BOOTED one", "BOOTED two", c.want)
			if found != c.want {
				t.Errorf("the console says %q; want %q:\n%s", found, c.want, text)
			}
			if c.uuid == none && !strings.Contains(text, "LPMOS-LOCALBOOT-FAILED uuid="+none) {
				t.Errorf("no marker of the failure on the console:\n%s", text)
			}
			if marker := "LPMOS-LOCALBOOT uuid=" + c.uuid; !strings.Contains(text, marker) {
				t.Errorf("no marker %q on the console:\n%s", marker, text)
			}
		})
	}
}
