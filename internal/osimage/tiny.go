package osimage

import (
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// tinyInitrd is the directory in files of what is laid over its initramfs.
const tinyInitrd = "tiny-initrd"

// arrangeTiny makes the tiny system's root out of the unpacked kernel and
// busybox packages.
func arrangeTiny(ctx context.Context, b *builder, packages string) (string, error) {
	releases, err := filepath.Glob(filepath.Join(packages, "lib/modules/*/kernel"))
	if err != nil {
		return "", err
	}
	if len(releases) != 1 {
		return "", fmt.Errorf("find kernel modules: %d kernels are unpacked; want one", len(releases))
	}
	modules := filepath.Dir(releases[0])
	release := filepath.Base(modules)

	tree, early := filepath.Join(b.work, "tiny"), filepath.Join(b.work, "tiny-initrd")
	for _, root := range []string{tree, early} {
		if err := b.busybox(ctx, packages, root); err != nil {
			return "", err
		}
		for _, program := range b.Programs {
			if err := copyProgram(packages, root, program); err != nil {
				return "", fmt.Errorf("copy %s: %w", program, err)
			}
		}
	}
	for root, names := range map[string][]string{
		early: b.EarlyModules,
		tree:  slices.Concat(b.EarlyModules, b.Modules),
	} {
		dst := filepath.Join(root, "lib/modules", release)
		if err := copyModules(modules, dst, names); err != nil {
			return "", err
		}
		if err := b.run(ctx, nil, "depmod", "-b", root, release); err != nil {
			return "", err
		}
	}

	if err := copyOverlay("files/"+tinyInitrd, early, nil); err != nil {
		return "", err
	}
	boot := filepath.Join(tree, "boot")
	if err := os.Mkdir(boot, 0o755); err != nil {
		return "", err
	}
	kernel := "vmlinuz-" + release
	if err := copyFile(filepath.Join(packages, "boot", kernel), filepath.Join(boot, kernel)); err != nil {
		return "", err
	}
	archive, err := initramfs(early, sourceEpoch)
	if err != nil {
		return "", fmt.Errorf("make initramfs: %w", err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return "", err
	}
	defer enc.Close()
	err = os.WriteFile(filepath.Join(boot, "initrd.img-"+release), enc.EncodeAll(archive, nil), 0o644)
	if err != nil {
		return "", err
	}
	osRelease := fmt.Sprintf("PRETTY_NAME=%q\nNAME=\"LPMOS tiny\"\nID=tinyos\nVERSION_ID=%q\n", b.Title, b.Version)
	return tree, os.WriteFile(filepath.Join(tree, "etc/os-release"), []byte(osRelease), 0o644)
}

// busybox makes root a new tree with the directories of a system, busybox and
// a link for each of its programs, where it wants them.
func (b *builder) busybox(ctx context.Context, packages, root string) error {
	for dir, mode := range map[string]fs.FileMode{
		"bin": 0o755, "sbin": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755, "etc": 0o755, "dev": 0o755, "proc": 0o755,
		"sys": 0o755, "run": 0o755, "mnt": 0o755, "var": 0o755, "lib": 0o755, "root": 0o700, "tmp": 0o755,
	} {
		if err := os.MkdirAll(filepath.Join(root, dir), mode); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), fs.ModeSticky|0o777); err != nil {
		return err
	}
	const program = "bin/busybox"
	if err := copyFile(filepath.Join(packages, program), filepath.Join(root, program)); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Join(root, program), 0o755); err != nil {
		return err
	}
	var applets []string
	err := b.runAt(ctx, func(line string) { applets = append(applets, line) }, filepath.Join(packages, program), "--list-full")
	if err != nil {
		return err
	}
	for _, applet := range applets {
		// linuxrc is for initial RAM disks of before 2.6.
		if applet == program || applet == "linuxrc" {
			continue
		}
		if err := link("/"+program, filepath.Join(root, applet)); err != nil {
			return err
		}
	}
	return nil
}

// copyProgram copies a program and the libraries it loads, which come into the
// directories where the loader looks without a cache.
func copyProgram(from, to, name string) error {
	src, err := unpacked(from, name)
	if err != nil {
		return err
	}
	dst := filepath.Join(to, name)
	if _, err := os.Lstat(dst); err == nil {
		if err := os.Remove(dst); err != nil { // busybox' own
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	if err := copyFile(src, dst); err != nil {
		return err
	}
	if err := os.Chmod(dst, 0o755); err != nil {
		return err
	}
	f, err := elf.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, lib := range append(libs, "ld-linux-x86-64.so.2") {
		lib = "lib/x86_64-linux-gnu/" + lib
		if path.Base(lib) == "ld-linux-x86-64.so.2" {
			lib = "lib64/ld-linux-x86-64.so.2"
		}
		if _, err := os.Lstat(filepath.Join(to, lib)); err == nil {
			continue
		}
		if err := copyProgram(from, to, lib); err != nil {
			return err
		}
	}
	return nil
}

// unpacked finds a file of the unpacked packages, through links that mean this
// tree as their root, with / and /usr being one.
func unpacked(root, name string) (string, error) {
	for _, dir := range []string{"", "usr"} {
		file := filepath.Join(root, dir, name)
		for range 8 {
			target, err := os.Readlink(file)
			if err != nil {
				break
			}
			if filepath.IsAbs(target) {
				return unpacked(root, target)
			}
			file = filepath.Join(filepath.Dir(file), target)
		}
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() {
			return file, nil
		}
	}
	return "", fmt.Errorf("no package has %s", name)
}

// copyModules copies the named modules and all they depend on from one
// directory of modules (…/lib/modules/<release>) to another, with the lists
// that depmod reads. A name that is built into the kernel needs no file; one
// that is neither is an error.
func copyModules(from, to string, names []string) error {
	files := make(map[string]string) // by module name
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if strings.HasSuffix(p, ".ko") {
			files[moduleName(p)] = p
		}
		return err
	})
	if err != nil {
		return err
	}
	builtin, err := os.ReadFile(filepath.Join(from, "modules.builtin"))
	if err != nil {
		return err
	}
	inKernel := make(map[string]bool)
	for line := range strings.Lines(string(builtin)) {
		inKernel[moduleName(strings.TrimSpace(line))] = true
	}

	copied := make(map[string]bool)
	for todo := slices.Clone(names); len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if copied[name] || inKernel[name] {
			continue
		}
		copied[name] = true
		src, ok := files[name]
		if !ok {
			return fmt.Errorf("copy kernel module %s: there is none of this name", name)
		}
		rel, err := filepath.Rel(from, src)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		if err := copyFile(src, dst); err != nil {
			return err
		}
		needs, err := dependencies(src)
		if err != nil {
			return fmt.Errorf("read dependencies of module %s: %w", name, err)
		}
		todo = append(todo, needs...)
	}
	for _, list := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		if err := copyFile(filepath.Join(from, list), filepath.Join(to, list)); err != nil {
			return err
		}
	}
	return nil
}

// moduleName is the name of the module in a file: the kernel makes no
// difference between - and _.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// dependencies reads what a module needs from its .modinfo section, a list of
// NUL-terminated name=value pairs.
func dependencies(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%s has no section .modinfo", file)
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	var all []string
	for pair := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(pair, "depends="); ok && list != "" {
			for name := range strings.SplitSeq(list, ",") {
				all = append(all, moduleName(name))
			}
		}
	}
	return all, nil
}
