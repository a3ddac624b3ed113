// Package osimage builds the operating systems that LPMOS can install without
// any vendor's image: root filesystems made of Debian packages, packed by
// internal/imagepack.
//
//	debian-12, debian-13
//	           a server: generic kernel, systemd, sshd, cloud-init (NoCloud)
//	debian-12-storage, debian-13-storage
//	           the same with mdadm, cryptsetup, lvm2 and xfsprogs, for declared
//	           layouts
//	tiny       a kernel and busybox, for tests: boots within seconds in an
//	           emulated machine with virtio or NVMe and does nothing but call
//	           home
//	tiny-generic
//	           the same with the generic kernel, which knows AHCI and e1000
//	           and takes several seconds longer
//	tiny-storage
//	           tiny-generic with mdadm, cryptsetup and lvm2 in its initramfs
//
// An image holds no boot loader, no identity and no way in: the installer
// brings the loader and writes /etc/fstab, /etc/hostname, network, keys and
// seed. There is no host key, no machine-id, no password. The UUID of its
// filesystem is fixed; the installer gives each copy its own.
//
// Packages come through mmdebstrap(1), which checks signatures as apt does, and
// are configured in a chroot, so building needs root. No shell script of ours
// takes part; the scripts under files/tiny and files/tiny-initrd are programs
// of that operating system and run there.
//
// # Cache
//
// A finished image is kept under Config.CacheDir/osimage. Its key is the
// SHA-256 of everything that this program contributes: builderVersion, the
// recipe with its package list, the embedded files it uses, and the mirrors. What the
// mirror contributes is not part of the key, since asking would take longer
// than the answer is worth: it is recorded beside the image ([Record]: package
// versions and the date of each Release file), and Config.Refresh builds anew.
// The entry is used only while its blobs are there in full; their digests are
// what names them and are checked by whoever installs.
package osimage
