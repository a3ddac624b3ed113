package agentapi

import (
	"bytes"
	"fmt"
	"strings"
)

// Segment is an initramfs archive with one file, for root only, in its
// directory. path is absolute and one directory deep.
func Segment(path string, content []byte) []byte {
	return Archive(ArchiveFile{path, 0o600, content})
}

// ArchiveFile is a regular file of an initramfs archive. Its path is absolute
// and at most one directory deep.
type ArchiveFile struct {
	Path    string
	Mode    uint32 // permissions
	Content []byte
}

// Archive is an initramfs archive of files, with their directories, which are
// for root only.
func Archive(files ...ArchiveFile) []byte {
	var all []cpioFile
	made := map[string]bool{}
	for _, f := range files {
		name := strings.TrimPrefix(f.Path, "/")
		if dir, _, deep := strings.Cut(name, "/"); deep && !made[dir] {
			made[dir] = true
			all = append(all, cpioFile{dir, modeDir | 0o700, nil})
		}
		all = append(all, cpioFile{name, modeFile | f.Mode, f.Content})
	}
	return newc(all)
}

// newc packs files into an initramfs archive (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst): 110 bytes of
// hexadecimal header, name and content, each padded to four bytes. Directories
// have no content. Owner is root, times are zero, so equal input gives equal
// bytes.
func newc(files []cpioFile) []byte {
	var b bytes.Buffer
	add := func(ino int, name string, mode uint32, content []byte) {
		links := 1
		if mode&0o170000 == modeDir {
			links = 2
		}
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
			ino, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name)
		b.WriteByte(0)
		pad(&b, 4)
		b.Write(content)
		pad(&b, 4)
	}
	for i, f := range files {
		add(i+1, f.name, f.mode, f.content)
	}
	add(0, "TRAILER!!!", 0, nil)
	pad(&b, 512) // whatever is appended next begins on a fresh block
	return b.Bytes()
}

// File types of the mode field.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
)

type cpioFile struct {
	name    string // without a leading slash
	mode    uint32
	content []byte
}

func pad(b *bytes.Buffer, to int) {
	for b.Len()%to != 0 {
		b.WriteByte(0)
	}
}
