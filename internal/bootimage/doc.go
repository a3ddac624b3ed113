// Package bootimage assembles everything a machine loads before it has an
// operating system of its own: the kernel, the agent's initramfs, the network
// boot programs and the local boot helpers.
//
// Everything but the agent comes from Debian packages, fetched by
// internal/debpkg and unpacked, never installed. Equal packages, an equal agent
// and an equal version of this package give equal bytes: archives are sorted
// and carry neither times nor users, and every part is named by its SHA-256.
//
// The initrd is two zstd-compressed newc archives, one behind the other: the
// userland with the kernel's modules, which is expensive and changes with
// Debian, and the agent as /init, which is cheap and changes with us. Linux
// unpacks any number of archives in a row (init/initramfs.c), so a region may
// append a plain one for each machine.
//
// # What the agent finds
//
//	/init                        the agent
//	/usr/sbin, /usr/bin          the programs of tools and toolLinks
//	/usr/lib/modules/<release>/  uncompressed modules; modules.dep, modules.alias
//	                             and modules.builtin as text
//	/usr/lib/lpmos/grub/         boot.img, core.img, BOOTX64.EFI: see internal/grubboot
//	/etc/mke2fs.conf             Debian's
//	/proc /sys /dev /run /tmp /mnt /target /root   empty
//
// There is no shell and no modprobe: the kernel's own requests for modules fail,
// and modules.dep therefore also lists soft dependencies and FAT's character
// sets. A loader that follows it from the last name of a line to the first, and
// then loads the module itself, can mount what the module is for.
//
// # Starting the local disk
//
// What a network-first machine boots once it is installed, in iPXE's words.
// UEFI; the region patches the helper with grubboot.PatchLocalBoot, and when no
// disk fits, the script goes on with its next line:
//
//	chain --autofree <url of the patched localboot.efi> ||
//	exit 1
//
// BIOS; DHCP option 18 carries the UUID into GRUB, as $net_pxe_extensionspath,
// because a compressed core image cannot be patched. When no disk fits, GRUB
// hands over to the BIOS, which tries its next boot device:
//
//	set netX/18:string <UUID>
//	chain --autofree <url of localboot.0> || sanboot --no-describe --drive 0x80
//
// The UUID is that of any filesystem of the disk. An empty one takes the first
// disk (UEFI: the first with \EFI\BOOT\BOOTX64.EFI). In BIOS mode the chosen
// disk becomes the first drive. Both helpers print "LPMOS-LOCALBOOT uuid=…" and,
// when no disk has such a filesystem, "LPMOS-LOCALBOOT-FAILED uuid=…", on the
// first serial port and on the console, and end three seconds later.
//
// Served by TFTP beside snponly.efi, autoexec.ipxe is read before iPXE has
// opened its interface: it must begin with "ifopen net0" or "dhcp".
//
// # What the build host needs
//
// Root on Debian or Ubuntu, amd64, with apt, dpkg and debian-archive-keyring,
// and a Debian archive within reach: the one in the host's apt sources, or
// Config.Mirror. GRUB's tools come out of the unpacked packages. The boot
// loaders are not signed for Secure Boot, and no firmware files are included.
package bootimage
