package osimage

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// writeCPIO writes the tree below root as an archive the kernel unpacks as
// initramfs: format newc (Linux, Documentation/driver-api/early-userspace/
// buffer-format.rst). Names are sorted, everything belongs to root and has the
// time mtime, so the same tree gives the same bytes. It knows directories,
// files and links; the kernel makes /dev/console itself.
func writeCPIO(w io.Writer, root string, mtime int64) error {
	var names []string
	err := filepath.Walk(root, func(p string, _ os.FileInfo, err error) error {
		names = append(names, p)
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(names)
	for i, p := range names {
		info, err := os.Lstat(p)
		if err != nil {
			return err
		}
		var mode uint32
		var body []byte
		switch {
		case info.IsDir():
			mode = 0o040000
		case info.Mode()&os.ModeSymlink != 0:
			mode = 0o120000
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			body = []byte(to)
		case info.Mode().IsRegular():
			mode = 0o100000
			if body, err = os.ReadFile(p); err != nil {
				return err
			}
		default:
			return fmt.Errorf("archive %s: it is neither directory, file nor link", p)
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if err := cpioEntry(w, i+1, mode|uint32(info.Mode().Perm()), mtime, name, body); err != nil {
			return err
		}
	}
	return cpioEntry(w, 0, 0, 0, "TRAILER!!!", nil)
}

// cpioEntry writes a header of 13 numbers, the name and the content, the
// latter two padded to four bytes.
func cpioEntry(w io.Writer, ino int, mode uint32, mtime int64, name string, body []byte) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		ino, mode, 0, 0, 1, mtime, len(body), 0, 0, 0, 0, len(name)+1, 0, name)
	pad := func() {
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	pad()
	b.Write(body)
	pad()
	_, err := w.Write(b.Bytes())
	return err
}
