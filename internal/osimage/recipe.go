package osimage

import (
	"cmp"
	"context"
	"embed"
	"maps"
	"slices"

	"github.com/lpmos/lpmos"
)

// builderVersion changes when this package makes another image of the same
// recipe and files.
const builderVersion = 1

// files holds what is copied into images: a directory for each overlay.
//
//go:embed all:files
var files embed.FS

// recipe is an operating system as data.
type recipe struct {
	OS, Version, Title string
	suite              string // Debian's code name; "" is bookworm

	Variant  string // of mmdebstrap: "apt" configures packages, "extract" only unpacks them
	Packages []string

	Overlays []string          // directories in files laid over the tree, one after the other
	Modes    map[string]uint32 // of overlay files that are neither 0644 nor a script (0755)
	Links    map[string]string // symbolic links, replacing what is there
	Remove   []string          // patterns; the last element may match, directories go whole

	// Modules are drivers for a system that gets only those it names: in the
	// initramfs what reaches the root filesystem, in the root everything.
	EarlyModules, Modules []string

	// Programs go into both, with the libraries they load.
	Programs []string

	FirstBoot  string
	CloudInit  bool
	KernelArgs string

	JournalMB int
	MarginMB  int // free space beyond a quarter of what is used

	// arrange makes the root filesystem out of the unpacked packages when it
	// is not simply their tree, and returns where it is.
	arrange func(ctx context.Context, b *builder, packages string) (tree string, err error)
}

func (r recipe) release() string { return cmp.Or(r.suite, "bookworm") }

const systemUnits = "/lib/systemd/system/"

var debian12 = recipe{
	OS: "debian", Version: "12", Title: "Debian 12 (bookworm)",
	Variant: "apt",
	Packages: []string{
		// usr-is-merged stands in for usrmerge, which needs 50 MB of Perl
		// to do what the unpacked tree already is.
		"usr-is-merged",
		"linux-image-amd64", "initramfs-tools", "zstd", "kmod", "udev",
		"systemd-sysv", "systemd-resolved", "systemd-timesyncd", "libpam-systemd", "libnss-systemd", "dbus",
		"openssh-server", "cloud-init", "sudo", "ca-certificates", "tzdata",
		"iproute2", "iputils-ping", "netbase", "procps", "less", "vim-tiny",
		"e2fsprogs", "dosfstools", "efibootmgr",
	},
	Overlays: []string{"debian-12"},
	Links: map[string]string{
		"etc/systemd/system/multi-user.target.wants/systemd-networkd.service":                 systemUnits + "systemd-networkd.service",
		"etc/systemd/system/sockets.target.wants/systemd-networkd.socket":                     systemUnits + "systemd-networkd.socket",
		"etc/systemd/system/network-online.target.wants/systemd-networkd-wait-online.service": systemUnits + "systemd-networkd-wait-online.service",
		"etc/systemd/system/dbus-org.freedesktop.network1.service":                            systemUnits + "systemd-networkd.service",
		"etc/systemd/system/multi-user.target.wants/ssh-host-keys.service":                    "../ssh-host-keys.service",
		"etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",

		// Nothing here upgrades by itself, so refreshing package lists in
		// the background only slows the first minutes; e2scrub works on
		// LVM snapshots alone.
		"etc/systemd/system/apt-daily.timer":         "/dev/null",
		"etc/systemd/system/apt-daily-upgrade.timer": "/dev/null",
		"etc/systemd/system/e2scrub_all.timer":       "/dev/null",
		"etc/systemd/system/e2scrub_reap.service":    "/dev/null",
	},
	Remove: []string{
		"etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap", // options of the build
		"etc/hostname", "etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed",
		"etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
		"var/lib/apt/lists/*", "var/cache/apt/*", "var/cache/ldconfig/*", "var/cache/debconf/*-old", "var/lib/dpkg/*-old",
		"var/log/*.log", "var/log/apt", "run/*", "tmp/*", "var/tmp/*",
	},
	FirstBoot: "systemd", CloudInit: true, KernelArgs: "ro quiet",
	JournalMB: 64, MarginMB: 128,
}

// debian13 is the same of the next release.
func debian13() recipe {
	r := debian12
	r.suite, r.Version, r.Title = "trixie", "13", "Debian 13 (trixie)"
	r.Overlays = append(slices.Clone(r.Overlays), "debian-13")
	return r
}

// storage is a Debian with what its initramfs needs to start from arrays, LUKS,
// volume groups and xfs. As that is made anew on the machine, it has only the
// drivers of disks that the agent writes to, and of keyboards.
func storage(r recipe) recipe {
	r.Version, r.Title = r.Version+"-storage", r.Title+" for RAID, LUKS, LVM and XFS"
	r.Packages = append(slices.Clone(r.Packages), "mdadm", "cryptsetup-initramfs", "lvm2", "xfsprogs")
	r.Overlays = append(slices.Clone(r.Overlays), "debian-storage")
	return r
}

var recipes = map[string]recipe{
	"debian-12":         debian12,
	"debian-12-storage": storage(debian12),
	"debian-13":         debian13(),
	"debian-13-storage": storage(debian13()),
	"tiny-storage":      tinyStorage(),
	"tiny": tiny("1", "LPMOS tiny (test system)", "linux-image-cloud-amd64",
		[]string{"virtio_pci", "virtio_blk", "virtio_scsi", "nvme", "ata_piix", "sd_mod", "ext4", "crc32c_generic", "crc32c_intel"},
		[]string{"virtio_net", "virtio_rng", "vmxnet3", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "efivarfs"}),
	"tiny-generic": tiny("1-generic", "LPMOS tiny, generic kernel (test system)", "linux-image-amd64",
		[]string{"virtio_pci", "virtio_blk", "virtio_scsi", "nvme", "ahci", "ata_piix", "sd_mod", "ext4", "crc32c_generic", "crc32c_intel"},
		[]string{"virtio_net", "virtio_rng", "e1000", "e1000e", "igb", "vmxnet3", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "efivarfs"}),
}

// tinyStorage is the tiny system that starts from arrays, LUKS, volume groups, xfs and
// btrfs, and can make its initramfs anew as an installer wants it to.
func tinyStorage() recipe {
	r := tiny("1-storage", "LPMOS tiny for RAID, LUKS, LVM and XFS (test system)", "linux-image-amd64",
		[]string{"virtio_pci", "virtio_blk", "virtio_scsi", "nvme", "ahci", "ata_piix", "sd_mod", "ext4", "crc32c_generic", "crc32c_intel",
			"md_mod", "raid1", "dm_mod", "dm_crypt", "xts", "ecb", "aesni_intel", "algif_skcipher", "xfs", "btrfs"},
		[]string{"virtio_net", "virtio_rng", "e1000", "e1000e", "vmxnet3", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "efivarfs"})
	r.Packages = append(r.Packages, "mdadm", "lvm2", "cryptsetup-bin", "libgcc-s1")
	// The C library loads the last when a thread of cryptsetup's ends.
	r.Programs = []string{"sbin/mdadm", "sbin/lvm", "sbin/cryptsetup", "lib/x86_64-linux-gnu/libgcc_s.so.1"}
	r.Links = map[string]string{"etc/mdadm/mdadm.conf": "../mdadm.conf"}
	return r
}

// tiny is the small system with one of Debian's kernels. The cloud flavour is
// packed with LZ4 and has NVMe and ext4 built in: an emulated processor starts
// it in a third of the time. It knows neither AHCI nor e1000; the generic one
// does.
func tiny(version, title, kernel string, early, modules []string) recipe {
	return recipe{
		OS: "tiny", Version: version, Title: title,
		Variant:  "extract",
		Packages: []string{kernel, "busybox-static"},
		Overlays: []string{"tiny"},
		Modes:    map[string]uint32{"etc/shadow": 0o600},
		// ext4 asks for its checksum by an alias, and VFAT for its tables by
		// name: neither is a dependency of the module.
		EarlyModules: early, Modules: modules,
		FirstBoot: "exec", KernelArgs: "ro quiet cryptomgr.notests",
		JournalMB: 4, MarginMB: 24,
		arrange: arrangeTiny,
	}
}

// Names lists what Build can build, in order.
func Names() []string { return slices.Sorted(maps.Keys(recipes)) }

func recipeFor(name string) (recipe, error) {
	r, ok := recipes[name]
	if !ok {
		return recipe{}, &lpmos.InvalidError{Field: "name", Problem: "is not an image that can be built", Value: name}
	}
	return r, nil
}
