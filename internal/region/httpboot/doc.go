// Package httpboot is the plain HTTP that firmware, iPXE and the agent load
// from: boot scripts, boot files, blobs by digest, and the per-machine segment.
//
//	GET /boot.ipxe?mac=…&uuid=…&platform=…&arch=…   the machine's script
//	GET /boot/{name}                                a file of the boot image, also kernel and initrd
//	GET /boot/localboot.efi?uuid=…                  made for one filesystem
//	GET /boot/segment/{nonce}                       cpio with the boot configuration
//	GET /blobs/{sha256}                             kernels, initrds, manifests, image packs
//
// Files take HEAD, which UEFI HTTP boot sends first, and Range. Scripts and
// segments do not: asking for one begins something.
//
// Nothing here is secret but the segment, whose nonce serves one address once.
// Names and digests are looked up, never joined to a path. What cannot be had
// now is 503 with Retry-After, which iPXE obeys by itself.
package httpboot
