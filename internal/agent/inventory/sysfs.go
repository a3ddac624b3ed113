package inventory

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	// maxAttribute is the size of a page, the most a sysfs attribute can have.
	maxAttribute = 4096
	// maxEntries bounds a directory listing.
	maxEntries = 16384
)

// tree reads a filesystem that may contain anything. Whatever cannot be read
// is empty.
type tree struct{ fs fs.FS }

// bytes is at most n bytes of a regular file.
func (t tree) bytes(name string, n int64) []byte {
	f, err := t.fs.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f, n))
	if err != nil {
		return nil
	}
	return b
}

// text is an attribute, cleaned.
func (t tree) text(elem ...string) string {
	return Clean(string(t.bytes(path.Join(elem...), maxAttribute)))
}

// number is an attribute that is a decimal number; ok is false for others and
// for negative ones.
func (t tree) number(elem ...string) (int64, bool) {
	n, err := strconv.ParseInt(t.text(elem...), 10, 64)
	return n, err == nil && n >= 0
}

// flag is an attribute that is 0 or 1.
func (t tree) flag(elem ...string) bool { return t.text(elem...) == "1" }

func (t tree) exists(name string) bool {
	_, err := fs.Stat(t.fs, name)
	return err == nil
}

// nameRE is what the kernel calls the devices that matter here. Names become
// arguments and paths, so others do not exist.
var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$`)

// names lists a directory in natural order: sda, sdb, sdaa; eth2, eth10.
func (t tree) names(dir string) []string {
	f, err := t.fs.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	d, ok := f.(fs.ReadDirFile)
	if !ok {
		return nil
	}
	entries, _ := d.ReadDir(maxEntries)
	var names []string
	for _, e := range entries {
		if n := e.Name(); nameRE.MatchString(n) {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, natural)
	return names
}

// natural compares names by their parts without digits, then by length: the
// kernel counts sda … sdz, sdaa and eth9, eth10.
func natural(a, b string) int {
	return cmp.Or(
		cmp.Compare(strings.TrimRight(kind(a), "0123456789"), strings.TrimRight(kind(b), "0123456789")),
		cmp.Compare(len(a), len(b)),
		cmp.Compare(a, b))
}

// kind is what comes before the counting part of a name.
func kind(name string) string {
	for _, p := range []string{"sd", "vd", "xvd", "hd"} {
		if strings.HasPrefix(name, p) {
			return p
		}
	}
	i := strings.IndexAny(name, "0123456789")
	if i < 0 {
		return name
	}
	return name[:i]
}

// resolve is where name leads to when the links of its last element and of its
// directories are followed, as a path in the tree; "" if it leads nowhere.
func (t tree) resolve(name string) string {
	links, ok := t.fs.(fs.ReadLinkFS)
	if !ok {
		return ""
	}
	done, todo := ".", strings.Split(path.Clean(name), "/")
	for hops := 0; len(todo) > 0; {
		next := path.Join(done, todo[0])
		if next == ".." || strings.HasPrefix(next, "../") {
			return ""
		}
		todo = todo[1:]
		st, err := links.Lstat(next)
		if err != nil {
			return ""
		}
		if st.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		target, err := links.ReadLink(next)
		if hops++; err != nil || hops > 40 || path.IsAbs(target) {
			return ""
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return done
}

// base is the last element of where a link leads to: the name of a driver or
// subsystem.
func (t tree) base(elem ...string) string {
	links, ok := t.fs.(fs.ReadLinkFS)
	if !ok {
		return ""
	}
	target, err := links.ReadLink(path.Join(elem...))
	if err != nil {
		return ""
	}
	return Clean(path.Base(target))
}

// Host is the real /proc and /sys of the running machine.
func Host() (Source, error) {
	var src Source
	for _, d := range []struct {
		path string
		to   *fs.FS
	}{{"/proc", &src.Proc}, {"/sys", &src.Sys}} {
		root, err := os.OpenRoot(d.path)
		if err != nil {
			return Source{}, fmt.Errorf("open %s: %w", d.path, err)
		}
		// The root stays open as long as its FS is used: for the process.
		*d.to = root.FS()
	}
	return src, nil
}
