// Package grubboot knows the bytes of the GRUB parts that the boot image
// carries: where an installer writes them on a disk, which of them it patches,
// and how a region tells the local boot helper which disk to start.
//
// The parts come from Debian's GRUB 2.06 (internal/bootimage builds them). The
// layout they rely on is a GPT with
//
//	sector 0               boot.img, its first BootCodeBytes bytes only
//	LBA CoreLBA onwards    core.img, inside a partition of type bios_grub
//	any FAT partition      the ESP, with \EFI\BOOT\BOOTX64.EFI and grub.cfg
//	partition RootPartition  ext4, xfs or FAT with /boot/grub/grub.cfg
//
// BIOS: boot.img loads the first sector of core.img from the drive the BIOS
// started; that sector loads the rest; core.img then reads GrubConfig of
// partition RootPartition of that same drive, so another disk with an older
// system never answers instead. UEFI: BOOTX64.EFI reads the grub.cfg beside
// itself (StubConfig writes one), which finds the root by filesystem UUID.
//
// Only the standard library is used, so that the agent may import it. All
// functions are pure.
package grubboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Where the parts are in the agent's initramfs.
const (
	BootImg    = "/usr/lib/lpmos/grub/boot.img"    // 512 bytes
	CoreImg    = "/usr/lib/lpmos/grub/core.img"    // some 190 KB, at most MaxCoreBytes
	LoaderEFI  = "/usr/lib/lpmos/grub/BOOTX64.EFI" // some 850 KB
	SectorSize = 512                               // of core.img's block list: a BIOS boots no other disks
)

// Where the parts go on a disk.
const (
	// BootCodeBytes of boot.img belong into sector 0. After them come the disk
	// signature and the protective partition table, which must stay.
	BootCodeBytes = 440
	// CoreLBA is the first sector of the bios_grub partition in our layout:
	// 1 MiB.
	CoreLBA = 2048
	// MaxCoreBytes is the least a bios_grub partition may have: core.img is
	// loaded to 0x8000 and must end below 0x78000.
	MaxCoreBytes = 0x78000 - 0x8000
	// RootPartition is the number of the partition that core.img reads
	// GrubConfig from.
	RootPartition = 3
	// GrubConfig is read by core.img; it is a script of GRUB's normal mode.
	GrubConfig = "/boot/grub/grub.cfg"
	// LoaderPath and StubPath are on the ESP. The first is the path firmware
	// tries without any boot entry.
	LoaderPath = "EFI/BOOT/BOOTX64.EFI"
	StubPath   = "EFI/BOOT/grub.cfg"
	// SignpostDir is on the ESP, or the root filesystem, of a disk that was
	// written whole: a file in it has the name by which the local boot helpers
	// find the disk, since its filesystems have the UUIDs of all other copies.
	SignpostDir = "lpmos"
)

// Offsets into boot.img and into the first sector of core.img (GRUB 2.06,
// include/grub/i386/pc/boot.h: GRUB_BOOT_MACHINE_KERNEL_SECTOR,
// GRUB_BOOT_MACHINE_DRIVE_CHECK, GRUB_BOOT_MACHINE_LIST_SIZE).
const (
	kernelSector  = 0x5c  // u64: LBA of core.img's first sector
	driveCheck    = 0x66  // two bytes of code: a jump over the drive test
	bootSignature = 0x1fe // 55 aa
	blockList     = 0x1f4 // u64 first LBA of the rest, u16 sectors, u16 segment
	loadSegment   = 0x820 // where the rest goes: 0x8200, behind the first sector
)

// PatchBootImg makes boot.img load core.img from coreLBA of the drive that the
// BIOS names in DL. It does what grub-bios-setup does: it sets the sector and
// replaces the jump over the test "is DL a hard disk at all", which BIOSes
// that pass a wrong DL need. Patching again with another LBA is fine.
func PatchBootImg(boot []byte, coreLBA uint64) error {
	if len(boot) != SectorSize || boot[bootSignature] != 0x55 || boot[bootSignature+1] != 0xaa {
		return errors.New("patch boot.img: not a boot sector of 512 bytes")
	}
	jump := [2]byte(boot[driveCheck:])
	if jump[0] != 0xeb && jump != [2]byte{0x90, 0x90} {
		return fmt.Errorf("patch boot.img: code % x at 0x%x is not GRUB 2.06's", jump, driveCheck)
	}
	binary.LittleEndian.PutUint64(boot[kernelSector:], coreLBA)
	boot[driveCheck], boot[driveCheck+1] = 0x90, 0x90
	return nil
}

// PatchCoreImg makes the first sector of core.img load the rest, which is
// expected right behind it, when core.img is written to lba.
func PatchCoreImg(core []byte, lba uint64) error {
	sectors := (len(core) + SectorSize - 1) / SectorSize
	if sectors < 2 || len(core) > MaxCoreBytes {
		return fmt.Errorf("patch core.img: %d bytes are no core.img", len(core))
	}
	if got := binary.LittleEndian.Uint16(core[blockList+10:]); got != loadSegment {
		return fmt.Errorf("patch core.img: load segment 0x%x is not GRUB 2.06's", got)
	}
	binary.LittleEndian.PutUint64(core[blockList:], lba+1)
	binary.LittleEndian.PutUint16(core[blockList+8:], uint16(sectors-1))
	return nil
}

// StubConfig is the grub.cfg beside BOOTX64.EFI: it goes on with GrubConfig of
// the filesystem with this UUID, on whichever disk that is. A UUID that is not
// one is an error, as it would become part of a script.
func StubConfig(rootUUID string) (string, error) {
	if rootUUID == "" || !validUUID(rootUUID) {
		return "", fmt.Errorf("write grub stub: %q is not a filesystem UUID", rootUUID)
	}
	return "search --no-floppy --fs-uuid --set=root " + rootUUID + "\n" +
		"set prefix=($root)/boot/grub\n" +
		"configfile $prefix/grub.cfg\n", nil
}

// LocalBootPlaceholder stands in localboot.efi for the UUID. It is as long as
// the longest filesystem UUID there is.
const LocalBootPlaceholder = "LPMOS-FS-UUID-PLACEHOLDER-0123456789"

// PatchLocalBoot returns a copy of localboot.efi that boots the disk which has
// a filesystem with this UUID: an ext4's or xfs's (36 characters) or a FAT's
// ("1A2B-3C4D"), in any case. An empty UUID boots the first disk that has an
// ESP with the loader of LoaderPath.
func PatchLocalBoot(img []byte, fsUUID string) ([]byte, error) {
	if !validUUID(fsUUID) {
		return nil, fmt.Errorf("patch local boot helper: %q is not a filesystem UUID", fsUUID)
	}
	if n := bytes.Count(img, []byte(LocalBootPlaceholder)); n != 1 {
		return nil, fmt.Errorf("patch local boot helper: %d placeholders instead of one", n)
	}
	// Blanks at the end of the script's line mean nothing.
	value := bytes.Repeat([]byte{' '}, len(LocalBootPlaceholder))
	copy(value, fsUUID)
	return bytes.Replace(img, []byte(LocalBootPlaceholder), value, 1), nil
}

// validUUID accepts hexadecimal digits and dashes, up to the placeholder's
// length, and nothing at all.
func validUUID(s string) bool {
	for _, c := range s {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' || c == '-') {
			return false
		}
	}
	return len(s) <= len(LocalBootPlaceholder)
}
