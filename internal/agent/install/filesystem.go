package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/lpmos/lpmos"
)

// exitCoder is an error of a program that ended by itself.
type exitCoder interface{ ExitCode() int }

// growRoot checks the filesystem, gives it the plan's UUID and lets it fill the
// partition. Without a terminal tune2fs asks nothing, also where it rewrites
// all checksums (metadata_csum), but it wants a filesystem that was checked
// after it was last mounted; so the check comes first, and comes again at the
// end because resize2fs wants it too.
func (in *Installer) growRoot(ctx context.Context, job *Job, part string) error {
	root, _ := job.Plan.Effect.Partition("root")
	job.step(lpmos.StageInstall, 80, 100, "Checking the filesystem")
	if err := in.check(ctx, part); err != nil {
		return err
	}
	if err := in.run.Run(ctx, nil, in.cfg.Tools.Tune2fs, "-U", root.UUID, "-L", "lpmos-root", part); err != nil {
		return commandFailed("Giving the root filesystem its UUID", err)
	}
	job.step(lpmos.StageInstall, 85, 100, "Growing the filesystem to "+lpmos.FormatBytes(root.SizeBytes))
	if err := in.check(ctx, part); err != nil {
		return err
	}
	if err := in.run.Run(ctx, nil, in.cfg.Tools.Resize2fs, part); err != nil {
		return commandFailed("Growing the root filesystem", err)
	}
	job.step(lpmos.StageInstall, 100, 100, "The root filesystem is in place")
	return nil
}

// check repairs what is safe to repair: exit 1 means that it did.
func (in *Installer) check(ctx context.Context, part string) error {
	err := in.run.Run(ctx, nil, in.cfg.Tools.E2fsck, "-f", "-p", part)
	if e, ok := err.(exitCoder); ok && e.ExitCode() == 1 {
		return nil
	}
	if err != nil {
		return &Failure{Code: "image_corrupt", Cause: fmt.Sprintf("The filesystem of the image is damaged: %v.", err), NextStep: nextImage, Err: err}
	}
	return nil
}

// makeESP makes the EFI system partition and fills it.
func (in *Installer) makeESP(ctx context.Context, esp lpmos.PlannedPartition, part string, sectorBytes int64, files []espFile) error {
	// With larger sectors 64 MiB have too few clusters for FAT32, and firmware
	// reads FAT16 too; of several sectors each they would be a FAT12.
	bits := "32"
	if sectorBytes > 512 {
		bits = "16"
	}
	args := []string{"-n", "LPMOS-ESP", "-i", strings.ReplaceAll(esp.UUID, "-", ""), "-F", bits, "-s", "1"}
	if err := in.run.Run(ctx, nil, in.cfg.Tools.MkfsVfat, append(args, part)...); err != nil {
		return commandFailed("Making the EFI system partition", err)
	}
	f, err := openPartition(part)
	if err != nil {
		return err
	}
	if err := writeESP(f, files); err != nil {
		f.Close()
		return writeFailed(part, fmt.Errorf("fill EFI system partition: %w", err))
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return writeFailed(part, err)
	}
	return f.Close()
}

// mountable is a filesystem of the plan and the device it is on now.
type mountable struct {
	lpmos.PlannedFS
	dev      string
	options  string // that are its own kind's: which subvolume of a btrfs
	optional bool   // the system starts without it, and so nothing is written to it if it cannot be mounted
}

// mountOptions are for filesystems of an image: nothing on them is run, and a
// device node or a set-user-ID bit means nothing to the agent.
const mountOptions = syscall.MS_NOATIME | syscall.MS_NODEV | syscall.MS_NOSUID | syscall.MS_NOEXEC

// mounted calls f with the filesystems mounted, the first as the root of an
// os.Root, and unmounts them again, whatever f says. Swap is passed over.
func (in *Installer) mounted(fss []mountable, f func(*os.Root) error) (err error) {
	dir, err := in.mountPoint()
	if err != nil {
		return err
	}
	var done []mountable
	defer func() {
		for _, fs := range slices.Backward(done) {
			at := filepath.Join(dir, fs.Mount)
			if e := syscall.Unmount(at, 0); e != nil && err == nil {
				err = writeFailed(fs.dev, fmt.Errorf("unmount %s: %w", fs.dev, e))
			}
		}
	}()
	for _, fs := range fss {
		if fs.Mount == "" {
			continue
		}
		if err := in.mount(dir, fs); err != nil {
			if fs.optional {
				in.log.Warn("filesystem left out: it cannot be mounted", "mount", fs.Mount, "err", err)
				continue
			}
			return err
		}
		done = append(done, fs)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open root filesystem: %w", err)
	}
	defer root.Close()
	if err := f(root); err != nil {
		return err
	}
	for _, fs := range done {
		if err := syncFS(root, fs); err != nil {
			return err
		}
	}
	return nil
}

// mount mounts one filesystem below dir. A mount point that is missing is made;
// one that a link of the image leads elsewhere is refused.
func (in *Installer) mount(dir string, fs mountable) error {
	if fs.Mount != "/" {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return fmt.Errorf("open root filesystem: %w", err)
		}
		defer root.Close()
		for at := 1; at <= len(fs.Mount); at++ {
			if at < len(fs.Mount) && fs.Mount[at] != '/' {
				continue
			}
			name := fs.Mount[1:at]
			if err := root.Mkdir(name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("make %s: %w", fs.Mount, err)
			}
			if st, err := root.Lstat(name); err != nil || !st.IsDir() {
				return &Failure{Code: "image_unsuitable", Cause: "The image has something else than a directory at /" + name + ", where a filesystem is to be mounted.", NextStep: "Use a layout without a filesystem at " + fs.Mount + "."}
			}
		}
	}
	if err := in.mountFS(fs.dev, filepath.Join(dir, fs.Mount), fs.FS, mountOptions, fs.options); err != nil {
		return &Failure{Code: "image_corrupt", Cause: "The " + fs.FS + " filesystem for " + fs.Mount + " that was written cannot be mounted.", NextStep: nextImage, Err: fmt.Errorf("mount %s: %w", fs.dev, err)}
	}
	return nil
}

// syncFS writes a filesystem out. It reports write errors that close and
// unmount do not.
func syncFS(root *os.Root, fs mountable) error {
	d, err := root.Open(cmp.Or(strings.TrimPrefix(fs.Mount, "/"), "."))
	if err != nil {
		return fmt.Errorf("open filesystem: %w", err)
	}
	defer d.Close()
	if _, _, errno := syscall.Syscall(sysSyncfs, d.Fd(), 0, 0); errno != 0 {
		return writeFailed(fs.dev, os.NewSyscallError("syncfs", errno))
	}
	return nil
}
