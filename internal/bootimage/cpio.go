package bootimage

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/lpmos/lpmos/internal/cpio"
)

// tree is the content of an initramfs archive before it is written: absolute,
// clean paths to what is there. Parents appear by themselves, mode 0755. All
// belongs to root and carries no time, so equal trees make equal archives.
type tree map[string]node

type node struct {
	mode uint32
	data []byte // a symlink's target, a file's content
}

func (t tree) dir(name string, perm uint32) { t.add(name, node{mode: cpio.Dir | perm}) }
func (t tree) file(name string, perm uint32, b []byte) {
	t.add(name, node{mode: cpio.File | perm, data: b})
}
func (t tree) symlink(name, target string) {
	t.add(name, node{mode: cpio.Link | 0o777, data: []byte(target)})
}

func (t tree) add(name string, n node) {
	if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
		panic(fmt.Sprintf("bootimage: %q is no place in an archive", name))
	}
	t[name] = n
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		if _, ok := t[dir]; ok {
			break
		}
		t[dir] = node{mode: cpio.Dir | 0o755}
	}
}

// weigh sums up the contents of all files below prefix and counts them.
func (t tree) weigh(prefix string) (bytes int64, files int) {
	for name, n := range t {
		if n.mode&cpio.Type == cpio.File && strings.HasPrefix(name, prefix) {
			bytes += int64(len(n.data))
			files++
		}
	}
	return bytes, files
}

// archive writes t as a newc archive in the order of its paths, which puts every
// directory before what it contains, as the kernel's unpacker needs it.
func (t tree) archive() []byte {
	entries := make([]cpio.Entry, 0, len(t))
	for _, name := range slices.Sorted(maps.Keys(t)) {
		entries = append(entries, cpio.Entry{Name: name[1:], Mode: t[name].mode, Data: t[name].data})
	}
	return cpio.Archive(entries...)
}
