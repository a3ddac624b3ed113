package agentapi

import (
	"strings"

	"github.com/lpmos/lpmos/internal/cpio"
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
	var all []cpio.Entry
	made := map[string]bool{}
	for _, f := range files {
		name := strings.TrimPrefix(f.Path, "/")
		if dir, _, deep := strings.Cut(name, "/"); deep && !made[dir] {
			made[dir] = true
			all = append(all, cpio.Entry{Name: dir, Mode: cpio.Dir | 0o700})
		}
		all = append(all, cpio.Entry{Name: name, Mode: cpio.File | f.Mode, Data: f.Content})
	}
	return cpio.Archive(all...)
}
