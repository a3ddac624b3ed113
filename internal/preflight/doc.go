// Package preflight finds out, by reading only, whether an image can be
// installed and how: its partition table, boot loaders, kernels, fstab, what
// configures it at its first boot, and what a person should know before it is
// put on a machine.
//
// It runs nothing of the image and mounts nothing. What it cannot look into
// (btrfs, LVM, an XFS feature it does not know) it says, instead of guessing.
// Every number of the image is taken for hostile.
package preflight

import (
	"io"

	"github.com/lpmos/lpmos"
)

// Want is what the person who imports says the image is.
type Want struct {
	OS, Version, Arch string
}

// Found is what reading an image told.
type Found struct {
	Report    lpmos.Preflight
	BootModes []string // of "bios", "uefi"
	// Manifest has the fields that an installer needs: Disk (of a whole disk),
	// FirstBoot, CloudInit, Kernel, Initrd, Family, SELinux, and the names wanted.
	Manifest lpmos.ImageManifest
	Ext4     []lpmos.Range // of a whole disk: the partitions with ext4, ascending
}

// Disk looks at a whole-disk image of size bytes. An error means that r could
// not be read; what is wrong with the image is in the report.
func Disk(r io.ReaderAt, size int64, want Want) (Found, error) {
	l := look{want: want}
	l.found.Manifest.OS, l.found.Manifest.Version, l.found.Manifest.Arch = want.OS, want.Version, want.Arch
	if err := l.disk(r, size); err != nil {
		return Found{}, err
	}
	return l.done(), nil
}
