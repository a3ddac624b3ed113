package install

import (
	"context"
	"fmt"
	"os"
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
	if _, err := in.run.Run(ctx, nil, in.cfg.Tools.Tune2fs, "-U", root.UUID, "-L", "lpmos-root", part); err != nil {
		return commandFailed("Giving the root filesystem its UUID", err)
	}
	job.step(lpmos.StageInstall, 85, 100, "Growing the filesystem to "+lpmos.FormatBytes(root.SizeBytes))
	if err := in.check(ctx, part); err != nil {
		return err
	}
	if _, err := in.run.Run(ctx, nil, in.cfg.Tools.Resize2fs, part); err != nil {
		return commandFailed("Growing the root filesystem", err)
	}
	job.step(lpmos.StageInstall, 100, 100, "The root filesystem is in place")
	return nil
}

// check repairs what is safe to repair: exit 1 means that it did.
func (in *Installer) check(ctx context.Context, part string) error {
	_, err := in.run.Run(ctx, nil, in.cfg.Tools.E2fsck, "-f", "-p", part)
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
	args := []string{"-n", "LPMOS-ESP", "-i", strings.ReplaceAll(esp.UUID, "-", "")}
	if sectorBytes == 512 {
		// With larger sectors 64 MiB have too few clusters for FAT32, and
		// firmware reads FAT16 too.
		args = append(args, "-F", "32", "-s", "1")
	}
	if _, err := in.run.Run(ctx, nil, in.cfg.Tools.MkfsVfat, append(args, part)...); err != nil {
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

// mounted calls f with the root filesystem below an os.Root and unmounts it
// again, whatever f says.
func (in *Installer) mounted(part string, f func(*os.Root) error) (err error) {
	dir, err := in.mountPoint()
	if err != nil {
		return err
	}
	if err := syscall.Mount(part, dir, "ext4", syscall.MS_NOATIME|syscall.MS_NODEV|syscall.MS_NOSUID|syscall.MS_NOEXEC, ""); err != nil {
		return &Failure{Code: "image_corrupt", Cause: "The root filesystem that was written cannot be mounted.", NextStep: nextImage, Err: fmt.Errorf("mount %s: %w", part, err)}
	}
	defer func() {
		if e := syscall.Unmount(dir, 0); e != nil && err == nil {
			err = writeFailed(part, fmt.Errorf("unmount %s: %w", part, e))
		}
	}()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open root filesystem: %w", err)
	}
	defer root.Close()
	if err := f(root); err != nil {
		return err
	}
	// syncfs reports write errors that close and unmount do not.
	d, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("open root filesystem: %w", err)
	}
	defer d.Close()
	if _, _, errno := syscall.Syscall(sysSyncfs, d.Fd(), 0, 0); errno != 0 {
		return writeFailed(part, os.NewSyscallError("syncfs", errno))
	}
	return nil
}
