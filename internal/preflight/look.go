package preflight

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/rofs"
)

// look is one image being looked at.
type look struct {
	want  Want
	found Found
	tree  *rofs.Tree // nil when the root filesystem cannot be looked into
}

// order is the order of the checks in a report.
var order = []string{"partition-table", "disk", "root", "fstab", "boot", "kernel", "initrd", "bios", "uefi", "secure-boot", "os", "arch", "first-boot", "cloud-init", "user", "selinux", "identity"}

func (l *look) say(name, result, format string, args ...any) {
	l.found.Report.Checks = append(l.found.Report.Checks, lpmos.PreflightCheck{Name: name, Result: result, Text: fmt.Sprintf(format, args...)})
}

func (l *look) done() Found {
	slices.SortStableFunc(l.found.Report.Checks, func(a, b lpmos.PreflightCheck) int {
		return slices.Index(order, a.Name) - slices.Index(order, b.Name)
	})
	return l.found
}

const (
	maxText = 1 << 20
	// headBytes is what is read of a program or a kernel: the headers.
	headBytes = 4096
)

// text reads a small text file of the image, "" if it is not there.
func (l *look) text(name string) string {
	b, err := l.tree.ReadFile(name, maxText)
	if err != nil {
		return ""
	}
	return string(b)
}

// system looks at what is inside the root filesystem, in every format.
func (l *look) system() {
	l.osRelease()
	l.architecture()
	l.firstBoot()
	l.cloudInit()
	l.selinux()
	l.identity()
}

// assignments reads lines NAME=value, with the quotes of os-release(5).
func assignments(text string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		value = strings.TrimSpace(value)
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		all[strings.TrimSpace(name)] = value
	}
	return all
}

func (l *look) osRelease() {
	text := l.text("/etc/os-release")
	if text == "" {
		text = l.text("/usr/lib/os-release")
	}
	if text == "" {
		l.say("os", lpmos.CheckWarning, "There is no os-release in it: what it is can only be believed.")
		return
	}
	f := assignments(text)
	r := &l.found.Report
	r.OSID, r.PrettyName = clip(f["ID"], 64), clip(f["PRETTY_NAME"], 128)
	for _, id := range append([]string{f["ID"]}, strings.Fields(f["ID_LIKE"])...) {
		switch id {
		case "debian", "ubuntu":
			l.family("debian")
		case "rhel", "fedora", "centos", "rocky", "almalinux":
			l.family("redhat")
		case "suse", "opensuse", "opensuse-leap", "sles":
			l.family("suse")
		}
	}
	is := strings.ToLower(f["ID"])
	// "opensuse-leap" is what people call opensuse, and "almalinux" alma.
	same := is == l.want.OS || strings.HasPrefix(is, l.want.OS) || strings.HasPrefix(l.want.OS, is)
	version := f["VERSION_ID"]
	switch {
	case is != "" && !same:
		l.say("os", lpmos.CheckWarning, "It says it is %s, and is imported as %s %s.", quote(r.PrettyName, is), l.want.OS, l.want.Version)
	case version != "" && version != l.want.Version && !strings.HasPrefix(version, l.want.Version+"."):
		l.say("os", lpmos.CheckWarning, "It says it is version %s, and is imported as %s.", clip(version, 32), l.want.Version)
	default:
		l.say("os", lpmos.CheckOK, "It calls itself %s.", quote(r.PrettyName, is))
	}
}

func (l *look) family(f string) {
	if l.found.Manifest.Family == "" {
		l.found.Manifest.Family = f
	}
}

func quote(names ...string) string {
	for _, n := range names {
		if n != "" {
			return clip(n, 128)
		}
	}
	return "unnamed"
}

// clip makes text of an image fit a report: one line of printable characters.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F || r == '\uFFFD' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	return lpmos.Shorten(s, n)
}

// architecture compares a program of the image, or its kernel, with what was
// said.
func (l *look) architecture() {
	for _, name := range []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/usr/bin/bash", "/bin/bash", "/bin/busybox", "/usr/bin/sh", "/bin/sh"} {
		head, err := l.tree.ReadHead(name, headBytes)
		if err != nil {
			continue
		}
		if arch := elfArch(head); arch != "" {
			l.sayArch(arch)
			return
		}
	}
	l.say("arch", lpmos.CheckUnknown, "No program was found whose architecture could be read.")
}

func (l *look) sayArch(arch string) {
	if arch != l.want.Arch {
		l.say("arch", lpmos.CheckProblem, "Its programs are for %s, and it is imported for %s.", arch, l.want.Arch)
		return
	}
	l.say("arch", lpmos.CheckOK, "Its programs are for %s.", arch)
}

// elfArch is the GOARCH spelling of an ELF file's machine, "" for others.
func elfArch(b []byte) string {
	if len(b) < 20 || string(b[:4]) != "\x7fELF" || b[5] != 1 {
		return ""
	}
	switch binary.LittleEndian.Uint16(b[18:]) {
	case 62:
		return "amd64"
	case 183:
		return "arm64"
	case 243:
		return "riscv64"
	case 3:
		return "386"
	}
	return "another architecture"
}

// kernelArch is the GOARCH spelling of a kernel's, "" if it is not known
// (Linux, Documentation/arch/x86/boot.rst and arch/arm64/booting.rst).
func kernelArch(b []byte) string {
	switch {
	case len(b) > 0x206 && string(b[0x202:0x206]) == "HdrS":
		return "amd64"
	case len(b) > 0x3C && string(b[0x38:0x3C]) == "ARM\x64":
		return "arm64"
	}
	return ""
}

// firstBoot finds what would start the program that reports the first boot.
func (l *look) firstBoot() {
	switch {
	case l.tree.Exists("/usr/lib/systemd/systemd") || l.tree.Exists("/lib/systemd/systemd"):
		l.found.Manifest.FirstBoot = "systemd"
		l.say("first-boot", lpmos.CheckOK, "systemd will report its first boot.")
	case bytes.Contains([]byte(l.text("/sbin/rc")), []byte("/usr/lib/lpmos/agent")):
		l.found.Manifest.FirstBoot = "exec"
		l.say("first-boot", lpmos.CheckOK, "It starts the program that reports its first boot by itself.")
	default:
		l.found.Manifest.FirstBoot = "systemd"
		l.say("first-boot", lpmos.CheckProblem, "It has no systemd, so nothing would report its first boot.")
	}
}

var userRE = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

func (l *look) cloudInit() {
	if !l.tree.Exists("/etc/cloud/cloud.cfg") {
		l.say("cloud-init", lpmos.CheckOK, "It has no cloud-init; host name, keys and network are written directly.")
		return
	}
	l.found.Manifest.CloudInit = true
	if l.tree.Exists("/etc/cloud/cloud-init.disabled") {
		l.say("cloud-init", lpmos.CheckWarning, "cloud-init is there, and switched off by /etc/cloud/cloud-init.disabled.")
	} else {
		l.say("cloud-init", lpmos.CheckOK, "cloud-init configures it at its first boot.")
	}
	user := defaultUser(l.text("/etc/cloud/cloud.cfg"))
	entries, _ := l.tree.ReadDir("/etc/cloud/cloud.cfg.d")
	for _, e := range entries {
		if strings.HasSuffix(e.Name, ".cfg") {
			if u := defaultUser(l.text("/etc/cloud/cloud.cfg.d/" + e.Name)); u != "" {
				user = u
			}
		}
	}
	if userRE.MatchString(user) {
		l.found.Report.DefaultUser = user
		l.say("user", lpmos.CheckOK, "cloud-init makes the user %s.", user)
	}
}

// defaultUser finds system_info: default_user: name: in a cloud.cfg. It is not
// a YAML reader: the files of distributions have it as nested lines.
func defaultUser(text string) string {
	depth := -1
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		indent := len(line) - len(strings.TrimLeft(line, " "))
		switch {
		case trimmed == "default_user:":
			depth = indent
		case depth >= 0 && indent <= depth:
			depth = -1
		case depth >= 0:
			if value, ok := strings.CutPrefix(trimmed, "name:"); ok {
				return strings.Trim(strings.TrimSpace(value), `"'`)
			}
		}
	}
	return ""
}

func (l *look) selinux() {
	text := l.text("/etc/selinux/config")
	if text == "" {
		return
	}
	mode := strings.ToLower(assignments(text)["SELINUX"])
	switch mode {
	case "enforcing", "permissive":
		l.found.Manifest.SELinux = true
		l.say("selinux", lpmos.CheckOK, "SELinux is %s: files that are written beside the image are labelled at its first boot, which takes one more boot.", mode)
	case "disabled":
		l.say("selinux", lpmos.CheckOK, "SELinux is switched off in it.")
	default:
		return
	}
	l.found.Report.SELinux = mode
}

// identity looks for what should be one machine's alone.
func (l *look) identity() {
	if id := strings.TrimSpace(l.text("/etc/machine-id")); id != "" && id != "uninitialized" {
		l.say("identity", lpmos.CheckWarning, "It carries a machine id; it is emptied when the image is installed.")
	}
	if entries, err := l.tree.ReadDir("/etc/ssh"); err == nil {
		for _, e := range entries {
			if strings.HasPrefix(e.Name, "ssh_host_") && strings.HasSuffix(e.Name, "_key") {
				l.say("identity", lpmos.CheckWarning, "It carries SSH host keys (%s): whoever has the image can pose as every machine it is installed on, unless they are made anew.", clip(e.Name, 64))
				break
			}
		}
	}
	var open []string
	for line := range strings.Lines(l.text("/etc/shadow")) {
		f := strings.Split(line, ":")
		if len(f) > 2 && userRE.MatchString(f[0]) && (f[1] == "" || strings.HasPrefix(f[1], "$")) {
			open = append(open, f[0])
		}
	}
	if len(open) > 0 {
		l.say("identity", lpmos.CheckWarning, "A password, or none at all, lets in: %s.", strings.Join(open[:min(len(open), 5)], ", "))
	}
}

// kernels finds the newest kernel and its initramfs below /boot.
func (l *look) kernels(needed bool) {
	missing := lpmos.CheckWarning
	if needed {
		missing = lpmos.CheckProblem
	}
	entries, err := l.tree.ReadDir("/boot")
	if err != nil {
		l.say("kernel", missing, "There is no /boot in it, and so no kernel.")
		return
	}
	names := map[string]bool{}
	var releases []string
	for _, e := range entries {
		names[e.Name] = true
		for _, prefix := range []string{"vmlinuz-", "Image-"} {
			if r, ok := strings.CutPrefix(e.Name, prefix); ok && r != "" && !strings.Contains(r, "rescue") && !strings.HasSuffix(r, ".old") {
				releases = append(releases, r)
			}
		}
	}
	if len(releases) == 0 {
		l.say("kernel", missing, "There is no kernel in /boot.")
		return
	}
	slices.SortFunc(releases, CompareVersions)
	release := releases[len(releases)-1]
	m := &l.found.Manifest
	m.Kernel = "/boot/vmlinuz-" + release
	if !names["vmlinuz-"+release] {
		m.Kernel = "/boot/Image-" + release
	}
	l.found.Report.Kernel = clip(release, 64)
	head, err := l.tree.ReadHead(m.Kernel, headBytes)
	arch := kernelArch(head)
	switch {
	case err != nil:
		l.say("kernel", lpmos.CheckWarning, "The kernel %s cannot be read: %v.", clip(m.Kernel, 80), err)
	case arch != "" && arch != l.want.Arch:
		l.say("kernel", lpmos.CheckProblem, "The kernel %s is for %s, and the image is imported for %s.", clip(m.Kernel, 80), arch, l.want.Arch)
	case strings.Contains(release, "-cloud") || strings.HasSuffix(release, "-kvm") || strings.HasSuffix(release, "-virtual") || strings.HasSuffix(release, "-azure") || strings.HasSuffix(release, "-aws") || strings.HasSuffix(release, "-gcp"):
		l.say("kernel", lpmos.CheckWarning, "The kernel %s is made for virtual machines: drivers of physical ones may be missing.", clip(release, 64))
	default:
		l.say("kernel", lpmos.CheckOK, "The kernel is %s.", clip(release, 64))
	}
	for _, n := range []string{"initrd.img-" + release, "initramfs-" + release + ".img", "initrd-" + release, "initramfs-" + release} {
		if names[n] {
			m.Initrd = path.Join("/boot", n)
			l.say("initrd", lpmos.CheckOK, "Its initramfs is %s.", clip(m.Initrd, 80))
			return
		}
	}
	l.say("initrd", missing, "The kernel %s has no initramfs in /boot.", clip(release, 64))
}

// CompareVersions orders kernel releases: runs of digits by value, everything
// else by its bytes.
func CompareVersions(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x != "" && y != "" {
			p, q := strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(p) != len(q) {
				return len(p) - len(q)
			}
			if c := strings.Compare(p, q); c != 0 {
				return c
			}
			a, b = a[len(x):], b[len(y):]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) string {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return s[:n]
}
