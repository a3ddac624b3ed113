// Package fstab reads fstab(5) of a system that is not the one that runs.
package fstab

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
)

// Entry is a line of an fstab.
type Entry struct {
	Spec    string // "UUID=…", "LABEL=…", "/dev/sda1"
	Mount   string // "/", "none"
	FS      string
	Options []string
}

// disks are what a line begins with that names a disk or a part of one.
var disks = regexp.MustCompile(`^(/dev/|(PART)?(UUID|LABEL)=)`)

// Disk reports whether the line needs a partition.
func (e Entry) Disk() bool {
	return disks.MatchString(e.Spec) && e.FS != "tmpfs" && !e.has("bind", "rbind")
}

// Optional reports whether the system boots without it. What needs the network is
// mounted when the system is up.
func (e Entry) Optional() bool { return e.FS == "swap" || e.has("nofail", "noauto", "_netdev") }

func (e Entry) has(options ...string) bool {
	return slices.ContainsFunc(e.Options, func(o string) bool { return slices.Contains(options, o) })
}

// Partition finds the one of a disk that the line names, nil if it names another
// or none.
func (e Entry) Partition(parts []lpmos.ImagePartition) *lpmos.ImagePartition {
	key, value, ok := strings.Cut(e.Spec, "=")
	if dir, name := path.Split(e.Spec); strings.HasPrefix(dir, "/dev/disk/by-") {
		key, value, ok = strings.ToUpper(strings.TrimSuffix(strings.TrimPrefix(dir, "/dev/disk/by-"), "/")), name, true
	}
	value = strings.Trim(value, `"`)
	if !ok || value == "" {
		return nil
	}
	for i, p := range parts {
		have := map[string]string{"UUID": p.FSUUID, "LABEL": p.FSLabel, "PARTUUID": p.UUID, "PARTLABEL": p.Name}[key]
		if have != "" && (have == value || strings.HasSuffix(key, "UUID") && strings.EqualFold(have, value)) {
			return &parts[i]
		}
	}
	return nil
}

// Parse reads the lines of an fstab. Lines with fewer than two fields are
// left out.
func Parse(text string) []Entry {
	var out []Entry
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		e := Entry{Spec: unescape(f[0]), Mount: unescape(f[1])}
		if len(f) > 2 {
			e.FS = f[2]
		}
		if len(f) > 3 {
			e.Options = strings.Split(f[3], ",")
		}
		if out = append(out, e); len(out) == 1000 {
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
