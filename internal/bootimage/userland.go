package bootimage

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// toolPackages are resolved with everything they depend on; grub-common is not
// shipped but brings grub-mkimage.
var toolPackages = []string{"fdisk", "e2fsprogs", "dosfstools", "zstd", "util-linux", "grub-common", "xfsprogs", "mdadm", "lvm2", "cryptsetup-bin", "libgcc-s1"}

// tools are the programs the agent may run, at these paths for good.
var tools = []string{
	"/usr/sbin/sfdisk", "/usr/sbin/mke2fs", "/usr/sbin/e2fsck", "/usr/sbin/resize2fs", "/usr/sbin/tune2fs",
	"/usr/sbin/mkfs.fat", "/usr/sbin/mkfs.xfs", "/usr/sbin/xfs_growfs", "/usr/sbin/mkswap",
	"/usr/sbin/mdadm", "/usr/sbin/lvm", "/usr/sbin/cryptsetup", "/usr/bin/zstd",
}

// loadedLibraries are those that no program names as its own: the C library
// loads this one when a thread ends itself, as those of cryptsetup's Argon2 do.
var loadedLibraries = []string{"libgcc_s.so.1"}

// toolLinks are other names of the same programs.
var toolLinks = map[string]string{
	"/usr/sbin/mkfs.vfat": "mkfs.fat",
	"/bin":                "usr/bin",
	"/sbin":               "usr/sbin",
	"/lib":                "usr/lib",
	"/lib64":              "usr/lib64",
	"/etc/mtab":           "../proc/self/mounts",
	"/var/run":            "../run",
}

// mountpoints are empty directories the agent mounts on or writes to.
var mountpoints = []string{"/proc", "/sys", "/dev", "/run", "/mnt", "/target", "/root"}

// libraryDirs are where Debian's loader looks without a cache.
var libraryDirs = []string{"/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib", "/lib"}

const (
	loader    = "/lib64/ld-linux-x86-64.so.2"
	libraryAt = "/usr/lib/x86_64-linux-gnu/"
)

// stageUserland puts tools, the libraries they load and the directories the
// agent expects into t; root is where the packages are unpacked.
func stageUserland(t tree, root string) error {
	for _, d := range mountpoints {
		t.dir(d, 0o755)
	}
	t.dir("/tmp", 0o1777)
	for _, tool := range tools {
		b, err := readTool(root, path.Base(tool))
		if err != nil {
			return fmt.Errorf("stage %s: %w", tool, err)
		}
		t.file(tool, 0o755, b)
		if err := stageLibraries(t, root, b); err != nil {
			return fmt.Errorf("stage libraries of %s: %w", tool, err)
		}
	}
	for _, lib := range loadedLibraries {
		if err := stageLibrary(t, root, lib); err != nil {
			return fmt.Errorf("stage %s: %w", lib, err)
		}
	}
	for name, target := range toolLinks {
		t.symlink(name, target)
	}
	b, err := readStaged(root, loader)
	if err != nil {
		return fmt.Errorf("stage loader: %w", err)
	}
	t.file("/usr"+loader, 0o755, b)
	if b, err = readStaged(root, "/etc/mke2fs.conf"); err != nil {
		return fmt.Errorf("stage mke2fs.conf: %w", err)
	}
	t.file("/etc/mke2fs.conf", 0o644, b)
	t.file("/etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/usr/sbin/nologin\n"))
	t.file("/etc/group", 0o644, []byte("root:x:0:\n"))
	return nil
}

// stageLibraries adds what the ELF file b needs, and what that needs.
func stageLibraries(t tree, root string, b []byte) error {
	f, err := elf.NewFile(strings.NewReader(string(b)))
	if err != nil {
		return err
	}
	if interp := f.Section(".interp"); interp != nil {
		name, err := io.ReadAll(interp.Open())
		if err != nil {
			return err
		}
		if got := strings.TrimRight(string(name), "\x00"); got != loader {
			return fmt.Errorf("it wants the loader %q, not %s", got, loader)
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, lib := range libs {
		if err := stageLibrary(t, root, lib); err != nil {
			return err
		}
	}
	return nil
}

// stageLibrary adds a library and what it needs, unless it is there.
func stageLibrary(t tree, root, lib string) error {
	at := libraryAt + lib
	if _, ok := t[at]; ok || lib == path.Base(loader) {
		return nil
	}
	b, err := readLibrary(root, lib)
	if err != nil {
		return err
	}
	t.file(at, 0o755, b)
	if err := stageLibraries(t, root, b); err != nil {
		return fmt.Errorf("%s: %w", lib, err)
	}
	return nil
}

// readTool looks in both program directories: which one a program is in differs
// between releases, our paths do not.
func readTool(root, name string) ([]byte, error) {
	for _, dir := range []string{"/usr/sbin/", "/usr/bin/"} {
		if b, err := readStaged(root, dir+name); err == nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("no package has the program %s", name)
}

func readLibrary(root, lib string) ([]byte, error) {
	for _, dir := range libraryDirs {
		if b, err := readStaged(root, path.Join(dir, lib)); err == nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("no package has the library %s", lib)
}

// readStaged reads a file below root as a process with that root would, with
// /usr and / being one, as on an installed system; packages of Debian 12 still
// carry some files in the one and some in the other.
func readStaged(root, name string) ([]byte, error) {
	file, err := findStaged(root, name, 0)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

func findStaged(root, name string, depth int) (string, error) {
	if depth > 8 {
		return "", fmt.Errorf("too many symbolic links at %s", name)
	}
	twin := "/usr" + name
	if rest, ok := strings.CutPrefix(name, "/usr/"); ok {
		twin = "/" + rest
	}
	for _, name := range []string{name, twin} {
		file := filepath.Join(root, name)
		info, err := os.Lstat(file)
		switch {
		case err != nil:
			continue
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return "", err
			}
			if !path.IsAbs(target) {
				target = path.Join(path.Dir(name), target)
			}
			return findStaged(root, target, depth+1)
		case info.Mode().IsRegular():
			return file, nil
		}
	}
	return "", fmt.Errorf("no package has %s", name)
}
