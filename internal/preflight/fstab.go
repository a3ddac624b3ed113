package preflight

import (
	"regexp"
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

// disks are what a line begins with that names a disk or a part of one.
var disks = regexp.MustCompile(`^(/dev/|(PART)?(UUID|LABEL)=)`)

// Disk reports whether the line needs a partition.
func (m Mount) Disk() bool {
	return disks.MatchString(m.Spec) && m.FS != "tmpfs" && !m.has("bind", "rbind")
}

// Optional reports whether the system boots without it. What needs the network is
// mounted when the system is up.
func (m Mount) Optional() bool { return m.FS == "swap" || m.has("nofail", "noauto", "_netdev") }

func (m Mount) has(options ...string) bool {
	return slices.ContainsFunc(m.Options, func(o string) bool { return slices.Contains(options, o) })
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
