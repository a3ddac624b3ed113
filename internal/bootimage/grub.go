package bootimage

import (
	"archive/tar"
	"bytes"
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/lpmos/lpmos/internal/grubboot"
)

//go:embed grub/*.cfg
var grubConfigs embed.FS

// grubImage is one program that grub-mkimage puts together.
type grubImage struct {
	name    string
	format  string // as grub-mkimage -O has it
	dir     string // of the modules, below usr/lib/grub
	prefix  string
	early   string // run by the rescue parser before normal mode, or
	memdisk string // run by normal mode as $prefix/grub.cfg, from a tar inside
	modules string
	limit   int // bytes
}

const (
	diskModules  = "part_gpt part_msdos fat ext2 xfs search search_fs_uuid search_fs_file search_label"
	shellModules = "normal configfile echo serial terminal test regexp minicmd sleep reboot halt ls cat"
	// all_video lets the kernel inherit a graphics mode, so that a machine
	// without a serial console shows its boot.
	linuxModules = "linux all_video"
)

// grubImages: those with early serve the installed system and must find its
// own configuration; those with memdisk carry theirs.
//
// The prefix of core.img names no disk, only a partition: GRUB then takes the
// drive it was started from (kern/main.c, grub_set_prefix_and_root).
var grubImages = []grubImage{
	{name: "core.img", format: "i386-pc", dir: "i386-pc", early: "core.cfg",
		prefix:  fmt.Sprintf("(,gpt%d)/boot/grub", grubboot.RootPartition),
		modules: "biosdisk " + diskModules + " " + shellModules + " " + linuxModules,
		limit:   grubboot.MaxCoreBytes},
	{name: "BOOTX64.EFI", format: "x86_64-efi", dir: "x86_64-efi", early: "efi.cfg", prefix: "/boot/grub",
		modules: "chain efi_gop efi_uga gfxterm " + diskModules + " " + shellModules + " " + linuxModules,
		limit:   4 << 20},
	{name: "localboot.efi", format: "x86_64-efi", dir: "x86_64-efi", memdisk: "localboot-efi.cfg", prefix: "(memdisk)/boot/grub",
		modules: "memdisk tar chain boot " + diskModules + " " + shellModules,
		limit:   4 << 20},
	{name: "localboot.0", format: "i386-pc-pxe", dir: "i386-pc", memdisk: "localboot-pxe.cfg", prefix: "(memdisk)/boot/grub",
		modules: "memdisk tar biosdisk pxe drivemap chain boot " + diskModules + " " + shellModules,
		// Loaded whole below 640 KB by iPXE, beside iPXE itself.
		limit: 400 << 10},
}

// buildGrub makes all grubImages and copies boot.img, by name. root is where
// the packages are unpacked, work an empty directory.
func buildGrub(ctx context.Context, root, work string) (map[string][]byte, error) {
	parts := map[string][]byte{}
	for _, img := range grubImages {
		b, err := mkimage(ctx, root, work, img)
		if err != nil {
			return nil, fmt.Errorf("make %s: %w", img.name, err)
		}
		parts[img.name] = b
	}
	if n := bytes.Count(parts["localboot.efi"], []byte(grubboot.LocalBootPlaceholder)); n != 1 {
		return nil, fmt.Errorf("make localboot.efi: it has %d placeholders instead of one", n)
	}
	boot, err := readStaged(root, "/usr/lib/grub/i386-pc/boot.img")
	if err != nil {
		return nil, fmt.Errorf("stage boot.img: %w", err)
	}
	if err := grubboot.PatchBootImg(boot, grubboot.CoreLBA); err != nil {
		return nil, err
	}
	if err := grubboot.PatchCoreImg(parts["core.img"], grubboot.CoreLBA); err != nil {
		return nil, err
	}
	parts["boot.img"] = boot
	return parts, nil
}

// mkimage runs the unpacked grub-mkimage with the unpacked libraries, so that
// nothing of the host's GRUB, if it has one, gets into the image.
func mkimage(ctx context.Context, root, work string, img grubImage) ([]byte, error) {
	ld, err := findStaged(root, loader, 0)
	if err != nil {
		return nil, err
	}
	program, err := findStaged(root, "/usr/bin/grub-mkimage", 0)
	if err != nil {
		return nil, err
	}
	var libs []string
	for _, dir := range libraryDirs {
		libs = append(libs, filepath.Join(root, dir))
	}
	out := filepath.Join(work, img.name)
	args := []string{"--library-path", strings.Join(libs, ":"), program,
		"--directory", filepath.Join(root, "usr/lib/grub", img.dir), "--format", img.format,
		"--prefix", img.prefix, "--output", out}
	write := func(flag, suffix string, b []byte) error {
		args = append(args, flag, out+suffix)
		return os.WriteFile(out+suffix, b, 0o644)
	}
	if img.early != "" {
		b, err := grubConfigs.ReadFile("grub/" + img.early)
		if err != nil {
			return nil, err
		}
		if err := write("--config", ".cfg", b); err != nil {
			return nil, err
		}
	}
	if img.memdisk != "" {
		b, err := grubConfigs.ReadFile("grub/" + img.memdisk)
		if err != nil {
			return nil, err
		}
		if b, err = memdisk(b); err != nil {
			return nil, err
		}
		if err := write("--memdisk", ".tar", b); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, ld, append(args, strings.Fields(img.modules)...)...)
	cmd.Env = []string{"LC_ALL=C", "SOURCE_DATE_EPOCH=0"}
	if msg, err := cmd.CombinedOutput(); err != nil {
		msg = bytes.TrimSpace(msg)
		return nil, fmt.Errorf("grub-mkimage: %w: %q", err, msg[bytes.LastIndexByte(msg, '\n')+1:])
	}
	b, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	if len(b) > img.limit {
		return nil, fmt.Errorf("%d bytes are more than %d", len(b), img.limit)
	}
	return b, nil
}

// memdisk is a tar file with config where $prefix/grub.cfg is looked for.
func memdisk(config []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "boot/grub/grub.cfg", Mode: 0o644, Size: int64(len(config)), Format: tar.FormatUSTAR}); err != nil {
		return nil, err
	}
	if _, err := w.Write(config); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
