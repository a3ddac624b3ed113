// Package install carries out the effect of an approved plan on one disk: it
// partitions it, writes the image, configures the system and makes it boot.
//
// It is not where anything is decided. The caller has verified approval and
// permit; this package checks once more, right before the first write, that
// the disk is the one the plan names, and never opens another for writing.
//
// No code of the image is run. Boot loader parts come with the agent
// (package grubboot); files are written below an os.Root, so that links in the
// image lead nowhere else. The EFI system partition is filled without mounting
// it: the agent's kernel needs no FAT.
//
// The order on the disk is: both ends wiped, partition table, filesystems,
// files, boot loader, and last a marker that says that all of this was done
// (see Marker). A disk without a marker is not installed, whatever is on it.
package install
