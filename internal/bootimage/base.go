package bootimage

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/lpmos/lpmos/internal/debpkg"
	"github.com/lpmos/lpmos/internal/grubboot"
)

// Files of a base directory beside the network boot files. baseFile is written
// last: with it, the directory is complete.
const (
	baseFile   = "base.json"
	initrdFile = "initrd.base"
	kernelFile = "kernel"
)

// baseRecord describes everything of an image that does not depend on the agent.
type baseRecord struct {
	Kernel  string   `json:"kernel"` // release
	Files   []string `json:"files"`  // of the directory: the kernel and what is served by name, sorted
	Entries int      `json:"entries"`
	Parts   []Part   `json:"parts"`
	Absent  []string `json:"absent,omitempty"`
}

// buildBase fetches the packages and makes dir from them.
func (b *builder) buildBase(ctx context.Context, dir string) (baseRecord, error) {
	b.progress("download packages")
	if err := b.in.base.Fetch(ctx, append(slices.Clone(b.in.tools), b.in.kernel)); err != nil {
		return baseRecord{}, err
	}
	if err := b.in.ipxe.Fetch(ctx, []debpkg.Package{b.in.ipxePackage}); err != nil {
		return baseRecord{}, err
	}
	work, err := os.MkdirTemp(b.cfg.CacheDir, "work-*")
	if err != nil {
		return baseRecord{}, fmt.Errorf("make work directory: %w", err)
	}
	defer os.RemoveAll(work)

	b.progress("unpack packages")
	root, kernelRoot, ipxeRoot := filepath.Join(work, "root"), filepath.Join(work, "kernel"), filepath.Join(work, "ipxe")
	var kernelErr, ipxeErr, toolsErr error
	var wg sync.WaitGroup
	wg.Go(func() { kernelErr = b.in.base.Unpack(ctx, b.in.kernel, kernelRoot) })
	wg.Go(func() { ipxeErr = b.in.ipxe.Unpack(ctx, b.in.ipxePackage, ipxeRoot) })
	wg.Go(func() {
		for _, p := range b.in.tools {
			if toolsErr = b.in.base.Unpack(ctx, p, root); toolsErr != nil {
				return
			}
		}
	})
	wg.Wait()
	if err := errors.Join(kernelErr, ipxeErr, toolsErr); err != nil {
		return baseRecord{}, err
	}

	b.progress("choose kernel modules")
	set, err := readModules(kernelRoot)
	if err != nil {
		return baseRecord{}, err
	}
	chosen, absent, err := set.pick()
	if err != nil {
		return baseRecord{}, err
	}
	files := map[string][]byte{}
	if files[kernelFile], err = os.ReadFile(filepath.Join(kernelRoot, "boot", "vmlinuz-"+set.release)); err != nil {
		return baseRecord{}, fmt.Errorf("read kernel: %w", err)
	}
	for _, name := range ipxeFiles {
		if files[name], err = readStaged(ipxeRoot, "/usr/lib/ipxe/"+name); err != nil {
			return baseRecord{}, fmt.Errorf("read ipxe: %w", err)
		}
	}

	b.progress("build boot loaders")
	grub, err := buildGrub(ctx, root, work)
	if err != nil {
		return baseRecord{}, err
	}
	files["localboot.efi"], files["localboot.0"] = grub["localboot.efi"], grub["localboot.0"]

	b.progress("compress userland and modules")
	t := tree{}
	if err := set.stage(t, chosen); err != nil {
		return baseRecord{}, err
	}
	if err := stageUserland(t, root); err != nil {
		return baseRecord{}, err
	}
	t.file(grubboot.BootImg, 0o644, grub["boot.img"])
	t.file(grubboot.CoreImg, 0o644, grub["core.img"])
	t.file(grubboot.LoaderEFI, 0o644, grub["BOOTX64.EFI"])
	initrd, err := compress(t.archive())
	if err != nil {
		return baseRecord{}, fmt.Errorf("compress initrd: %w", err)
	}

	rec := baseRecord{Kernel: set.release, Files: slices.Sorted(maps.Keys(files)), Entries: len(t), Absent: absent}
	for _, part := range []struct{ name, prefix string }{
		{"modules", "/usr/lib/modules/"}, {"programs", "/usr/sbin/"}, {"programs", "/usr/bin/"},
		{"libraries", libraryAt}, {"libraries", "/usr/lib64/"}, {"boot loaders", "/usr/lib/lpmos/grub/"},
	} {
		n, files := t.weigh(part.prefix)
		if last := len(rec.Parts) - 1; last >= 0 && rec.Parts[last].Name == part.name {
			rec.Parts[last].Bytes, rec.Parts[last].Files = rec.Parts[last].Bytes+n, rec.Parts[last].Files+files
			continue
		}
		rec.Parts = append(rec.Parts, Part{Name: part.name, Of: "initrd", Bytes: n, Files: files})
	}

	files[initrdFile] = initrd
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := writeFile(filepath.Join(dir, name), files[name]); err != nil {
			return baseRecord{}, err
		}
	}
	return rec, writeJSON(filepath.Join(dir, baseFile), rec)
}

// checkStatic refuses what Linux could not start as the first process.
func checkStatic(b []byte) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return err
	}
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("it is for %s, not amd64", strings.TrimPrefix(f.Machine.String(), "EM_"))
	}
	if f.Section(".interp") != nil {
		return errors.New("it is linked dynamically (build with CGO_ENABLED=0)")
	}
	return nil
}
