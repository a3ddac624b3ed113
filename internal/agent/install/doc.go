// Package install carries out the effect of an approved plan on its disks: it
// partitions them, writes the image, configures the system and makes it boot.
// An image is a filesystem (writeImage), a whole disk (installDisk) or a tree of
// files on a declared layout (installTree).
//
// It is not where anything is decided. The caller has verified approval and
// permit; this package checks once more, right before the first write, that
// the disks are those the plan names, and never opens another for writing.
//
// No code of the image is run, but for what makes an initramfs where the system
// starts from an array or a volume group: confined, see package confine. Boot
// loader parts come with the agent (package grubboot), but for whole disks, which
// bring their own; files are written below an os.Root, so that links in the image
// lead nowhere else. The EFI system partition we make is filled without mounting
// it; that of a whole disk is mounted.
//
// The order on the disk is: both ends wiped, partition table, filesystems,
// files, boot loader, and last a marker that says that all of this was done
// (see Marker). A disk without a marker is not installed, whatever is on it.
package install
