package preflight

import (
	"slices"
	"strings"
)

// Mount is a line of fstab(5).
type Mount struct {
	Spec    string // "UUID=…", "LABEL=…", "/dev/sda1"
	Mount   string // "/", "none"
	FS      string
	Options []string
}

// Disk reports whether the line needs a partition.
func (m Mount) Disk() bool {
	switch m.FS {
	case "tmpfs", "proc", "sysfs", "devpts", "nfs", "nfs4", "cifs", "overlay", "devtmpfs", "debugfs", "securityfs", "cgroup2", "efivarfs", "9p", "virtiofs", "none":
		return false
	}
	return m.Spec != "none" && !strings.HasPrefix(m.Spec, "/swap") && !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "loop")
}

// Optional reports whether the system boots without it.
func (m Mount) Optional() bool {
	return slices.Contains(m.Options, "nofail") || slices.Contains(m.Options, "noauto") || m.FS == "swap"
}

// ParseFstab reads the lines of an fstab. Lines with fewer than two fields are
// left out.
func ParseFstab(text string) []Mount {
	var out []Mount
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		m := Mount{Spec: unescape(f[0]), Mount: unescape(f[1])}
		if len(f) > 2 {
			m.FS = f[2]
		}
		if len(f) > 3 {
			m.Options = strings.Split(f[3], ",")
		}
		if out = append(out, m); len(out) == 1000 {
			break
		}
	}
	return out
}

// unescape replaces \040 and its like: spaces cannot stand in a field.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte(s[i+1]&7<<6 | s[i+2]&7<<3 | s[i+3]&7)
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return c >= '0' && c <= '7' }
