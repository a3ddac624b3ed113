package osimage

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/lpmos/lpmos/internal/cpio"
)

// initramfs is the tree below root as an archive the kernel unpacks. Names are
// sorted and everything has the time mtime, so the same tree gives the same bytes.
func initramfs(root string, mtime int64) ([]byte, error) {
	var entries []cpio.Entry
	err := filepath.Walk(root, func(p string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		e := cpio.Entry{Time: mtime}
		switch {
		case info.IsDir():
			e.Mode = cpio.Dir
		case info.Mode()&os.ModeSymlink != 0:
			var to string
			to, err = os.Readlink(p)
			e.Mode, e.Data = cpio.Link, []byte(to)
		case info.Mode().IsRegular():
			e.Mode = cpio.File
			e.Data, err = os.ReadFile(p)
		default:
			err = fmt.Errorf("archive %s: it is neither directory, file nor link", p)
		}
		if err != nil {
			return err
		}
		e.Mode |= uint32(info.Mode().Perm())
		if e.Name, err = filepath.Rel(root, p); err != nil {
			return err
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return cpio.Archive(entries...), nil
}
