package bootimage

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
)

// File types and permission bits as st_mode has them (cpio(5), "New ASCII
// Format"; Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
const (
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

// tree is the content of an initramfs archive before it is written: absolute,
// clean paths to what is there. Parents appear by themselves, mode 0755. All
// belongs to root and carries no time, so equal trees make equal archives.
type tree map[string]node

type node struct {
	mode uint32
	data []byte // a symlink's target, a file's content
}

func (t tree) dir(name string, perm uint32) { t.add(name, node{mode: modeDir | perm}) }
func (t tree) file(name string, perm uint32, b []byte) {
	t.add(name, node{mode: modeRegular | perm, data: b})
}
func (t tree) symlink(name, target string) {
	t.add(name, node{mode: modeSymlink | 0o777, data: []byte(target)})
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
		t[dir] = node{mode: modeDir | 0o755}
	}
}

// weigh sums up the contents of all files below prefix and counts them.
func (t tree) weigh(prefix string) (bytes int64, files int) {
	for name, n := range t {
		if n.mode&0o170000 == modeRegular && strings.HasPrefix(name, prefix) {
			bytes += int64(len(n.data))
			files++
		}
	}
	return bytes, files
}

// archiveAlign is the multiple of bytes an archive and a compressed segment
// end on. Linux wants a plain cpio that follows to start on a multiple of four
// and skips zeros between archives (init/initramfs.c); 512 is what cpio pads to.
const archiveAlign = 512

// cpio writes t as a newc archive in the order of its paths, which puts every
// directory before what it contains, as the kernel's unpacker needs it.
func (t tree) cpio() []byte {
	names := make([]string, 0, len(t))
	size := 0
	for name, n := range t {
		names = append(names, name)
		size += 128 + len(name) + len(n.data)
	}
	slices.Sort(names)
	var b bytes.Buffer
	b.Grow(size + archiveAlign)
	for i, name := range names {
		writeEntry(&b, i+1, name[1:], t[name])
	}
	writeEntry(&b, 0, "TRAILER!!!", node{})
	pad(&b, archiveAlign)
	return b.Bytes()
}

// writeEntry appends one header, name and content. Links are one, except for
// directories' customary two, so that no hard link table is kept by the kernel.
func writeEntry(b *bytes.Buffer, inode int, name string, n node) {
	links := 1
	if n.mode&0o170000 == modeDir {
		links = 2
	}
	const zero = 0
	fmt.Fprintf(b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		inode, n.mode, zero /* uid */, zero /* gid */, links, zero /* mtime */, len(n.data),
		zero, zero /* device */, zero, zero /* device the node stands for */, len(name)+1, zero /* checksum */, name)
	pad(b, 4)
	b.Write(n.data)
	pad(b, 4)
}

// pad fills b with zeros up to the next multiple of n.
func pad(b *bytes.Buffer, n int) {
	if rest := b.Len() % n; rest != 0 {
		b.Write(make([]byte, n-rest))
	}
}
