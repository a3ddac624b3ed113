package preflight

import (
	"path"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/rofs"
)

// TarKeep says how many bytes of a tar stream's file are wanted for looking at
// it: 0 for most.
func TarKeep(name string) int64 {
	name, err := rofs.CleanTarName(name)
	if err != nil {
		return 0
	}
	switch name {
	case "/etc/os-release", "/usr/lib/os-release", "/etc/fstab", "/etc/cloud/cloud.cfg", "/etc/selinux/config", "/etc/machine-id", "/etc/shadow", "/sbin/rc", "/usr/sbin/rc":
		return maxText
	case "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/usr/bin/bash", "/bin/bash", "/bin/busybox", "/usr/bin/busybox", "/usr/bin/dash", "/bin/dash":
		return headBytes
	}
	switch dir, base := path.Split(name); {
	case dir == "/etc/cloud/cloud.cfg.d/" && strings.HasSuffix(base, ".cfg"):
		return maxText
	case dir == "/boot/" && (strings.HasPrefix(base, "vmlinuz-") || strings.HasPrefix(base, "Image-")):
		return headBytes
	}
	return 0
}

// Tar looks at a root filesystem by the list of its tar stream, whose wanted
// files were kept. Boot loader and partitions come with the installation.
func Tar(list *rofs.Tar, want Want) Found {
	l := look{want: want, tree: rofs.NewTree(list)}
	l.found.Manifest.OS, l.found.Manifest.Version, l.found.Manifest.Arch = want.OS, want.Version, want.Arch
	if !l.tree.Exists("/etc") || !l.tree.Exists("/usr") {
		l.say("root", lpmos.CheckProblem, "The stream has no /etc and /usr: it is not the tar of a root filesystem.")
		l.found.Manifest.FirstBoot = "systemd"
		return l.done()
	}
	l.say("root", lpmos.CheckOK, "The stream is a root filesystem.")
	l.kernels(true)
	l.system()
	l.found.BootModes = []string{"uefi"}
	if want.Arch == "amd64" {
		l.found.BootModes = []string{"bios", "uefi"}
	}
	return l.done()
}
