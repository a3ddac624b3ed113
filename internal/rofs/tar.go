package rofs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Tar is the list of a tar stream, as a volume: every name, and the content of
// the files somebody wanted.
type Tar struct {
	files map[string]*tarFile // by clean path
	count int
	bytes int64 // that the list takes
}

type tarFile struct {
	kind    fs.FileMode
	size    int64
	target  string
	content []byte // nil when it was not kept
	names   []string
}

// Bounds of a list: the files of a stream, and the memory for their names, links
// and contents, of which each file takes some more.
const (
	MaxTarEntries = 2_000_000
	maxTarBytes   = 512 << 20
	tarFileBytes  = 200
)

// NewTar is an empty list.
func NewTar() *Tar { return &Tar{files: map[string]*tarFile{"/": {kind: fs.ModeDir}}} }

// Add notes a file of the stream: its path as the stream has it, the type bits,
// for a symbolic link its target, and the content if it is to be readable. A
// path that leads out of the root is an error. A later file of the same path
// takes the place of an earlier one.
func (t *Tar) Add(name string, kind fs.FileMode, size int64, target string, content []byte) error {
	if t.count++; t.count > MaxTarEntries {
		return fmt.Errorf("the stream has more than %d files", MaxTarEntries)
	}
	clean, err := CleanTarName(name)
	if err != nil || clean == "/" {
		return err
	}
	if err := t.room(len(clean) + len(target) + len(content)); err != nil {
		return err
	}
	f := t.files[clean]
	if f == nil {
		f = &tarFile{}
		t.files[clean] = f
		if err := t.parent(clean); err != nil {
			return err
		}
	}
	f.kind, f.size, f.target, f.content = kind, size, target, content
	return nil
}

// Link notes a hard link: the same file under another name.
func (t *Tar) Link(name, to string) error {
	old, err := CleanTarName(to)
	if err != nil {
		return err
	}
	f := t.files[old]
	if f == nil {
		return fmt.Errorf("%q is a link to %q, which is not in the stream before it", name, to)
	}
	return t.Add(name, f.kind, f.size, f.target, f.content)
}

// room notes that the list grows by a file with so many bytes of text.
func (t *Tar) room(text int) error {
	if t.bytes += int64(text) + tarFileBytes; t.bytes > maxTarBytes {
		return fmt.Errorf("the names of the stream, and what is to be looked at in it, take more than %d MiB", maxTarBytes>>20)
	}
	return nil
}

// parent makes the directories a file is in, which a stream may leave out.
func (t *Tar) parent(name string) error {
	for name != "/" {
		dir := path.Dir(name)
		d := t.files[dir]
		known := d != nil
		if !known {
			if err := t.room(0); err != nil { // its name is a part of that of the file
				return err
			}
			d = &tarFile{kind: fs.ModeDir}
			t.files[dir] = d
		}
		d.names = append(d.names, path.Base(name))
		if known {
			return nil
		}
		name = dir
	}
	return nil
}

// CleanTarName makes a member's name absolute; one with a part ".." leads out
// of the root and is an error.
func CleanTarName(name string) (string, error) {
	if len(name) > maxTarget {
		return "", errors.New("a path of the stream is too long")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("the path %q leads out of the root", name)
		}
	}
	return path.Clean("/" + name), nil
}

func (*Tar) folds() bool { return false }

func (t *Tar) root() (node, error) { return t.node("/"), nil }

func (t *Tar) node(name string) node {
	f := t.files[name]
	return node{f.kind, f.size, name}
}

func (t *Tar) open(c child) (node, error) { return t.node(c.ref.(string)), nil }

func (t *Tar) children(n node) ([]child, error) {
	dir := n.ref.(string)
	var out []child
	for _, name := range t.files[dir].names {
		out = append(out, child{name, path.Join(dir, name)})
	}
	return out, nil
}

func (t *Tar) read(n node, limit int64) ([]byte, error) {
	f := t.files[n.ref.(string)]
	if f.content == nil && f.size > 0 {
		return nil, errors.New("its content was not kept while the stream was read")
	}
	return f.content[:min(limit, int64(len(f.content)))], nil
}

func (t *Tar) target(n node) (string, error) { return t.files[n.ref.(string)].target, nil }
