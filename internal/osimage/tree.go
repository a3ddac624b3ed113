package osimage

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// finish makes a configured tree an image: what belongs to the build goes, the
// recipe's files and links come, and whatever the build touched gets one time.
func (b *builder) finish(tree, uuid string, started time.Time) error {
	for _, pattern := range b.Remove {
		found, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return fmt.Errorf("remove %s: %w", pattern, err)
		}
		for _, p := range found {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	for _, dir := range b.Overlays {
		if err := copyOverlay("files/"+dir, tree, b.Modes); err != nil {
			return fmt.Errorf("lay files over the tree: %w", err)
		}
	}
	for name, target := range b.Links {
		if err := link(target, filepath.Join(tree, name)); err != nil {
			return err
		}
	}
	// It names the image's own UUID, so a copy that was written without an
	// installer boots read-write; the installer replaces it.
	fstab := fmt.Sprintf("UUID=%s / ext4 errors=remount-ro 0 1\n", uuid)
	if err := os.WriteFile(filepath.Join(tree, "etc/fstab"), []byte(fstab), 0o644); err != nil {
		return err
	}
	return settleTimes(tree, started)
}

func link(target, name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(name); err != nil {
		return err
	}
	return os.Symlink(target, name)
}

// copyOverlay copies the embedded directory from into tree. Scripts become
// executable; modes says otherwise for single files.
func copyOverlay(from, tree string, modes map[string]uint32) error {
	root, err := os.OpenRoot(tree) // so that no link of the tree leads out of it
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(files, from, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(name, from+"/")
		mode := fs.FileMode(0o644)
		if bytes.HasPrefix(text, []byte("#!")) {
			mode = 0o755
		}
		if m, ok := modes[rel]; ok {
			mode = fs.FileMode(m)
		}
		if err := root.MkdirAll(path.Dir(rel), 0o755); err != nil {
			return err
		}
		if err := root.RemoveAll(rel); err != nil {
			return err
		}
		return root.WriteFile(rel, text, mode)
	})
}

// settleTimes sets the times of everything that changed since started to
// sourceEpoch, and the access time of everything else to its modification time.
// Directories come after what is in them.
func settleTimes(tree string, started time.Time) error {
	var all []string
	err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		all = append(all, p)
		return err
	})
	if err != nil {
		return err
	}
	for _, p := range slices.Backward(all) {
		info, err := os.Lstat(p)
		if err != nil {
			return err
		}
		t := info.ModTime()
		if !t.Before(started.Truncate(time.Second)) {
			t = time.Unix(sourceEpoch, 0)
		}
		ts := unix.NsecToTimespec(t.UnixNano())
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set times of %s: %w", p, err)
		}
	}
	return nil
}

// usage is what a tree will take in an ext4 filesystem with 4096-byte blocks.
type usage struct{ bytes, inodes int64 }

// measure counts a tree, each file once however many names it has.
func measure(tree string) (usage, error) {
	var u usage
	type inode struct{ dev, ino uint64 }
	seen := make(map[inode]bool)
	err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		id := inode{st.Dev, st.Ino}
		if seen[id] {
			return nil
		}
		seen[id] = true
		u.inodes++
		if info.IsDir() || info.Mode().IsRegular() {
			u.bytes += (max(info.Size(), 1) + 4095) / 4096 * 4096
		}
		return nil
	})
	return u, err
}
