package rofs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

const (
	// maxLinks is how many symbolic links one path may lead through (Linux has
	// the same).
	maxLinks = 40
	// maxEntries bounds what is read of one directory.
	maxEntries = 100_000
	// maxDirBytes bounds a directory's own data.
	maxDirBytes = 32 << 20
	// maxTarget bounds the target of a symbolic link.
	maxTarget = 4096
)

// Volume is one filesystem. Open, OpenFAT and NewTar make them.
type Volume interface {
	root() (node, error)
	// children lists a directory without "." and "..".
	children(node) ([]child, error)
	open(child) (node, error)
	// read gives the first bytes of a regular file, limit at most.
	read(n node, limit int64) ([]byte, error)
	target(node) (string, error)
	folds() bool // names match in any case
}

// node is a file of a volume: what the volume needs to read it.
type node struct {
	kind fs.FileMode // type bits: 0 (regular), ModeDir, ModeSymlink, or other
	size int64
	ref  any
}

type child struct {
	name string
	ref  any
}

// Open opens an ext2, ext3, ext4 or XFS filesystem, as name says ("ext2",
// "ext3", "ext4", "xfs", "vfat": the names of blkid). size bounds where r may
// be read. Another name, and features that are not known, are an error.
func Open(name string, r io.ReaderAt, size int64) (Volume, error) {
	switch name {
	case "ext2", "ext3", "ext4":
		return openExt(r, size)
	case "xfs":
		return openXFS(r, size)
	case "vfat":
		return openFAT(r, size)
	}
	return nil, fmt.Errorf("look inside %s: %w", name, ErrUnknownFilesystem)
}

// ErrUnknownFilesystem is wrapped by Open for kinds that cannot be read here.
var ErrUnknownFilesystem = errors.New("files of this filesystem cannot be read here")

// Entry is a name in a directory.
type Entry struct {
	Name string
	Kind fs.FileMode // type bits
	Size int64
}

// Tree is a root filesystem with others mounted in it.
type Tree struct {
	mounts map[string]Volume // by clean absolute path
}

// NewTree is a tree with a root filesystem.
func NewTree(root Volume) *Tree { return &Tree{mounts: map[string]Volume{"/": root}} }

// Mount puts v at a directory, over whatever is there.
func (t *Tree) Mount(dir string, v Volume) { t.mounts[path.Clean("/"+dir)] = v }

// place is a file in a volume and the clean path at which it was found.
type place struct {
	at string
	v  Volume
	n  node
}

// find resolves a path. Symbolic links are followed, the last one too if
// follow is set; none leads above the root.
func (t *Tree) find(name string, follow bool) (place, error) {
	fail := func(err error) (place, error) { return place{}, &fs.PathError{Op: "find", Path: name, Err: err} }
	at, err := t.enter("/")
	if err != nil {
		return fail(err)
	}
	todo := strings.Split(path.Clean("/"+name), "/")
	links := 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			// Paths are resolved from the root again: there are no parents to
			// go back to, and depth is small.
			if at, err = t.find(path.Dir(at.at), true); err != nil {
				return fail(err)
			}
			continue
		}
		if at.n.kind != fs.ModeDir {
			return fail(fs.ErrNotExist)
		}
		next, err := t.step(at, part)
		if err != nil {
			return fail(err)
		}
		if next.n.kind == fs.ModeSymlink && (follow || len(todo) > 0) {
			if links++; links > maxLinks {
				return fail(errors.New("too many symbolic links"))
			}
			target, err := next.v.target(next.n)
			if err != nil {
				return fail(err)
			}
			if strings.HasPrefix(target, "/") {
				if at, err = t.enter("/"); err != nil {
					return fail(err)
				}
			}
			todo = append(strings.Split(target, "/"), todo...)
			if len(todo) > 1000 {
				return fail(errors.New("symbolic links lead to a path too long"))
			}
			continue
		}
		at = next
	}
	return at, nil
}

func (t *Tree) enter(dir string) (place, error) {
	v := t.mounts[dir]
	n, err := v.root()
	return place{dir, v, n}, err
}

func (t *Tree) step(at place, name string) (place, error) {
	full := path.Join(at.at, name)
	if _, ok := t.mounts[full]; ok {
		return t.enter(full)
	}
	all, err := at.v.children(at.n)
	if err != nil {
		return place{}, err
	}
	for _, c := range all {
		if c.name == name || at.v.folds() && strings.EqualFold(c.name, name) {
			n, err := at.v.open(c)
			return place{full, at.v, n}, err
		}
	}
	return place{}, fs.ErrNotExist
}

// ReadFile reads a regular file of at most limit bytes; a longer one is an
// error.
func (t *Tree) ReadFile(name string, limit int64) ([]byte, error) {
	b, size, err := t.head(name, limit)
	if err == nil && size > limit {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("it has %d bytes, more than %d", size, limit)}
	}
	return b, err
}

// ReadHead reads the first bytes of a regular file, n at most.
func (t *Tree) ReadHead(name string, n int64) ([]byte, error) {
	b, _, err := t.head(name, n)
	return b, err
}

func (t *Tree) head(name string, limit int64) ([]byte, int64, error) {
	p, err := t.find(name, true)
	if err != nil {
		return nil, 0, err
	}
	if p.n.kind != 0 {
		return nil, 0, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	b, err := p.v.read(p.n, min(limit, p.n.size))
	if err != nil {
		return nil, 0, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b, p.n.size, nil
}

// ReadDir lists a directory by name. An entry that cannot be opened is left
// out.
func (t *Tree) ReadDir(name string) ([]Entry, error) {
	p, err := t.find(name, true)
	if err != nil {
		return nil, err
	}
	if p.n.kind != fs.ModeDir {
		return nil, &fs.PathError{Op: "list", Path: name, Err: errors.New("not a directory")}
	}
	all, err := p.v.children(p.n)
	if err != nil {
		return nil, &fs.PathError{Op: "list", Path: name, Err: err}
	}
	out := make([]Entry, 0, len(all))
	for _, c := range all {
		if n, err := p.v.open(c); err == nil {
			out = append(out, Entry{c.name, n.kind, n.size})
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Exists reports whether a path leads to something, through symbolic links.
func (t *Tree) Exists(name string) bool {
	_, err := t.find(name, true)
	return err == nil
}

// Stat describes what a path leads to, through symbolic links.
func (t *Tree) Stat(name string) (Entry, error) {
	p, err := t.find(name, true)
	if err != nil {
		return Entry{}, err
	}
	return Entry{path.Base(p.at), p.n.kind, p.n.size}, nil
}

// section bounds reading to size bytes of r.
type section struct {
	r    io.ReaderAt
	size int64
}

func (s section) at(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > s.size-n {
		return nil, fmt.Errorf("%d bytes at %d are outside the filesystem", n, off)
	}
	b := make([]byte, n)
	if _, err := s.r.ReadAt(b, off); err != nil {
		return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	return b, nil
}

// extent is a run of a file: count blocks from logical on are at physical of
// the filesystem, or are zero.
type extent struct {
	logical, physical, count int64
	zero                     bool
}

// gather reads the first n bytes of a file by its extents, which are in
// ascending order; what none of them covers is zero.
func (s section) gather(extents []extent, block, n int64) ([]byte, error) {
	out := make([]byte, n)
	for _, e := range extents {
		from := e.logical * block
		if e.zero || e.count <= 0 || from < 0 || from >= n {
			continue
		}
		length := min(n-from, e.count*block)
		b, err := s.at(e.physical*block, length)
		if err != nil {
			return nil, err
		}
		copy(out[from:], b)
	}
	return out, nil
}

// kindOf translates the type bits of st_mode.
func kindOf(mode uint16) fs.FileMode {
	switch mode & 0xF000 {
	case 0x8000:
		return 0
	case 0x4000:
		return fs.ModeDir
	case 0xA000:
		return fs.ModeSymlink
	case 0x6000, 0x2000:
		return fs.ModeDevice
	}
	return fs.ModeIrregular
}
