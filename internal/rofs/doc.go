// Package rofs looks at files inside filesystem images without mounting them:
// ext2, ext3 and ext4, XFS, FAT, and the list of a tar stream. It reads only,
// in pure Go and with bounded memory, and never trusts a number it finds: an
// image comes from outside.
//
// It is for finding out what an image is (os-release, fstab, kernels, boot
// loaders), not for copying files: there are no permissions, owners or times.
// What it cannot read (encrypted or inline files, unknown features) is an
// error that says so.
//
// A Tree joins filesystems as fstab mounts them and resolves symbolic links
// inside them, so that no link leads out of the image. A Tree and its volumes
// may be used by one goroutine at a time.
package rofs
