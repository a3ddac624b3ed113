package install

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/fstab"
	"github.com/lpmos/lpmos/internal/grubboot"
)

// blkZeroOut writes zeros without moving them (include/uapi/linux/fs.h).
const blkZeroOut = 0x127f

// installDisk writes a whole-disk image: its own partition table, boot loader
// and filesystems, which keep their identifiers, because its fstab and menu go
// by them. What the disk is larger by goes to the root partition.
func (in *Installer) installDisk(ctx context.Context, job *Job, m *lpmos.ImageManifest) error {
	if err := checkDiskImage(job.Plan, m); err != nil {
		return staged(lpmos.Partitioning, err)
	}
	t, err := in.writeDisk(ctx, job, m)
	if err != nil {
		return staged(lpmos.StageInstall, err)
	}
	root, err := in.growDisk(ctx, job, m, t)
	if err != nil {
		return staged(lpmos.StageInstall, err)
	}
	if err := in.configureDisk(ctx, job, m, t, root); err != nil {
		return staged(lpmos.Configuring, err)
	}
	job.step(lpmos.Configuring, 5, 6, "Marking the installation complete")
	if err := in.seal(ctx, job, nil, t); err != nil {
		return staged(lpmos.Configuring, err)
	}
	job.step(lpmos.Configuring, 6, 6, "Everything is written")
	in.log.Info("disk complete", "disk", t.path, "attempt", job.Attempt)
	return nil
}

// checkDiskImage finds what would make a system that starts with another disk's
// files: partitions and filesystems of the image that are in the machine
// already, from an earlier copy of the same image. Their identifiers are all
// that the image's own boot loader has to go by.
func checkDiskImage(p *lpmos.Plan, m *lpmos.ImageManifest) error {
	first := m.SizeBytes
	has := map[string]string{}
	for _, q := range m.Disk.Partitions {
		first = min(first, q.StartBytes)
		for _, id := range []string{q.UUID, q.FSUUID} {
			if id != "" {
				has[strings.ToLower(id)] = fmt.Sprintf("partition %d", q.Number)
			}
		}
	}
	if first < markerOffset+markerBytes {
		return &Failure{Code: "image_unsuitable", Cause: fmt.Sprintf("The image's first partition begins at byte %d, where LPMOS keeps its mark that an installation is complete.", first), NextStep: "Use an image whose first partition begins at 1 MiB."}
	}
	twin := func(d lpmos.ObservedDisk, id string) error {
		if part, ok := has[strings.ToLower(id)]; ok && id != "" {
			return &Failure{Code: "duplicate_identifiers", Cause: fmt.Sprintf("The disk %s, which is kept, has the same identifier %s as %s of the image: the machine could start with that disk's files.", d.Disk, id, part),
				NextStep: "Remove or erase that disk, or use an image that is a tree of files: it gets identifiers of its own."}
		}
		return nil
	}
	for _, d := range p.Observed {
		if p.Effect.Writes(d.Disk) {
			continue
		}
		ids := []string{}
		if f := d.Content.Filesystem; f != nil {
			ids = append(ids, f.UUID)
		}
		for _, q := range d.Content.Partitions {
			ids = append(ids, q.UUID)
			if q.Filesystem != nil {
				ids = append(ids, q.Filesystem.UUID)
			}
		}
		for _, id := range ids {
			if err := twin(d, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeDisk copies the image to the target, compares a sample, and makes the
// table that of this disk.
func (in *Installer) writeDisk(ctx context.Context, job *Job, m *lpmos.ImageManifest) (t target, err error) {
	e := &job.Plan.Effect
	devices, err := in.claim(ctx, e)
	defer func() {
		for _, d := range devices {
			err = errors.Join(err, d.Close())
		}
	}()
	if err != nil {
		return target{}, staged(lpmos.Partitioning, err)
	}
	d := devices[0]
	t = target{disk: e.Target, path: d.Name()}
	if d.sectorBytes != int64(m.Disk.SectorBytes) {
		return t, &Failure{Code: "disk_unsupported", Cause: fmt.Sprintf("The image is of a disk with sectors of %d bytes and the target has %d.", m.Disk.SectorBytes, d.sectorBytes), NextStep: "Use an image that is a tree of files, or another disk."}
	}
	if m.SizeBytes > d.sizeBytes {
		return t, &Failure{Code: "disk_too_small", Cause: fmt.Sprintf("The image is of a disk of %d bytes and the target has %d.", m.SizeBytes, d.sizeBytes), NextStep: "Choose a larger disk."}
	}
	if err := in.still(ctx, []target{t}); err != nil {
		return t, staged(lpmos.Partitioning, err)
	}
	job.OnWrite()
	in.log.Warn("erasing begins", "disk", t.path, "target", t.disk.String())
	job.step(lpmos.Partitioning, 1, 5, "Erasing old signatures on "+t.disk.String())
	if err := d.writable(); err != nil {
		return t, err
	}
	if err := d.wipe(nil); err != nil {
		return t, writeFailed(t.path, err)
	}
	if err := d.zeroAll(ctx, m.Zero, func(done, total int64) {
		job.step(lpmos.Partitioning, 2, 5, fmt.Sprintf("Zeroing what the image has as zeros (%s of %s)", lpmos.FormatBytes(done), lpmos.FormatBytes(total)))
	}); err != nil {
		return t, writeFailed(t.path, err)
	}
	job.step(lpmos.Partitioning, 5, 5, "The disk is ready")
	s, err := in.copyImage(ctx, job, m, d.File)
	if err != nil {
		return t, err
	}
	job.step(lpmos.StageInstall, 50, 100, "Writing everything out to the disk")
	if err := d.flush(); err != nil {
		return t, writeFailed(t.path, err)
	}
	job.step(lpmos.StageInstall, 70, 100, "Comparing a sample with the disk")
	if err := s.compare(d); err != nil {
		return t, err
	}
	size, err := d.fitTable(m.Disk)
	if err != nil {
		return t, err
	}
	for _, p := range m.Disk.Partitions {
		q := placed{lpmos.PlannedPartition{Number: p.Number, Role: p.Role, SizeBytes: p.SizeBytes, FS: p.FS, UUID: p.FSUUID, PartUUID: p.UUID, Mount: p.Mount}, p.StartBytes}
		if p.Number == m.Disk.Root {
			q.SizeBytes = size
		}
		t.parts = append(t.parts, q)
	}
	if err := d.flush(); err != nil {
		return t, writeFailed(t.path, err)
	}
	return t, d.reread(ctx, t.parts)
}

// fitTable makes the image's table that of this disk and returns the size of
// the root partition.
func (d *device) fitTable(disk *lpmos.ImageDisk) (int64, error) {
	bad := func(err error) (int64, error) {
		if _, gone := err.(*os.PathError); gone {
			return 0, writeFailed(d.Name(), err)
		}
		return 0, corrupt("its partition table cannot be moved to this disk: %v", err)
	}
	if disk.Table != "gpt" {
		size, err := growMBR(d, d.sectorBytes, d.sizeBytes, disk.Root)
		if err != nil {
			return bad(err)
		}
		return size, nil
	}
	g, err := readGPT(d, d.sectorBytes)
	if err != nil {
		return bad(err)
	}
	// The image's own GUID is on every disk that was written with it.
	var guid [16]byte
	rand.Read(guid[:])
	guid[7], guid[8] = guid[7]&0x0f|0x40, guid[8]&0x3f|0x80 // RFC 9562, version 4, in a GPT's byte order
	size, err := g.fit(d.sizeBytes, guid, disk.Root)
	if err != nil {
		return bad(err)
	}
	for _, p := range disk.Partitions {
		if start, n, ok := g.place(p.Number); !ok || start != p.StartBytes || n != p.SizeBytes && p.Number != disk.Root {
			return 0, corrupt("partition %d is not where its manifest says", p.Number)
		}
	}
	if err := g.write(d, d.sizeBytes); err != nil {
		return bad(err)
	}
	return size, nil
}

// zeroPiece is how much is zeroed at once: at the end of each a cancellation is
// noticed, and the rest of the world told that something happens. A disk that
// zeroes only by being written takes hours for a large image.
const zeroPiece = 1 << 30

// zeroAll zeroes ranges and tells how far it is.
func (d *device) zeroAll(ctx context.Context, ranges []lpmos.Range, tell func(done, total int64)) error {
	var done, told, total int64
	for _, z := range ranges {
		total += z.Bytes
	}
	for _, z := range ranges {
		err := d.zero(ctx, z, func(n int64) {
			if done += n; done-told >= zeroPiece || done == total {
				told = done
				tell(done, total)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// zero makes a range read as zeros: by the disk's own means where it has some,
// else by writing. It says of each piece that it is done.
func (d *device) zero(ctx context.Context, z lpmos.Range, did func(bytes int64)) error {
	blank := []byte(nil)
	for off := z.Offset; off < z.Offset+z.Bytes; {
		n := min(zeroPiece, z.Offset+z.Bytes-off)
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if blank == nil && !d.regular {
			r := [2]uint64{uint64(off), uint64(n)}
			err := ioctl(d.File, blkZeroOut, unsafe.Pointer(&r))
			if err == nil {
				off += n
				did(n)
				continue
			}
			if !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.ENOTTY) && !errors.Is(err, syscall.EINVAL) {
				return err
			}
		}
		if blank == nil {
			blank = make([]byte, 1<<20)
		}
		n = min(n, int64(len(blank)))
		if _, err := d.WriteAt(blank[:n], off); err != nil {
			return err
		}
		off += n
		did(n)
	}
	return nil
}

// growDisk lets the root filesystem fill its partition. What it cannot grow
// stays as it is: the system's own tools do it at the first boot.
func (in *Installer) growDisk(ctx context.Context, job *Job, m *lpmos.ImageManifest, t target) (mountable, error) {
	p, _ := m.Disk.Partition(m.Disk.Root)
	fs := mountable{PlannedFS: lpmos.PlannedFS{Kind: "partition", Name: p.UUID, FS: p.FS, UUID: p.FSUUID, Mount: "/"}, dev: t.part(p.Number)}
	job.step(lpmos.StageInstall, 85, 100, "Growing the root filesystem")
	switch p.FS {
	case "ext4":
		if err := in.check(ctx, fs.dev); err != nil {
			return fs, err
		}
		if err := in.run.Run(ctx, nil, in.cfg.Tools.Resize2fs, fs.dev); err != nil {
			return fs, commandFailed("Growing the root filesystem", err)
		}
	case "xfs":
		in.load(ctx, "xfs")
		dir, err := in.mountPoint()
		if err != nil {
			return fs, err
		}
		err = in.mounted([]mountable{fs}, func(*os.Root) error {
			if err := in.run.Run(ctx, nil, in.cfg.Tools.XFSGrowfs, dir); err != nil {
				return commandFailed("Growing the root filesystem", err)
			}
			return nil
		})
		if err != nil {
			return fs, err
		}
	case "btrfs":
		in.load(ctx, "btrfs")
		err := in.mounted([]mountable{fs}, func(r *os.Root) error {
			err := growBtrfs(r)
			if errors.Is(err, syscall.EIO) {
				return writeFailed(fs.dev, fmt.Errorf("grow root filesystem: %w", err))
			}
			if err != nil {
				in.log.Warn("root filesystem not grown", "type", p.FS, "err", err)
			}
			return nil
		})
		if err != nil {
			return fs, err
		}
	default:
		in.load(ctx, p.FS)
		in.log.Info("root filesystem not grown", "type", p.FS)
	}
	job.step(lpmos.StageInstall, 100, 100, "The root filesystem is in place")
	return fs, nil
}

// btrfsResize is BTRFS_IOC_RESIZE (include/uapi/linux/btrfs.h).
const btrfsResize = 0x50009403

// growBtrfs lets the first device of a mounted btrfs be filled.
func growBtrfs(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	arg := struct { // btrfs_ioctl_vol_args
		fd   int64
		name [4088]byte
	}{}
	copy(arg.name[:], "max")
	busy, _, errno := syscall.Syscall(syscall.SYS_IOCTL, d.Fd(), btrfsResize, uintptr(unsafe.Pointer(&arg)))
	switch {
	case errno != 0:
		return os.NewSyscallError("ioctl", errno)
	case busy != 0: // a code of its own, such as for a balance that is resumed
		return fmt.Errorf("btrfs does something else (%d)", busy)
	}
	return nil
}

// configureDisk writes what makes the image this machine's system, and leaves
// its fstab, its menu and its loader alone.
func (in *Installer) configureDisk(ctx context.Context, job *Job, m *lpmos.ImageManifest, t target, root mountable) error {
	job.step(lpmos.Configuring, 0, 6, "Writing the configuration of "+job.Plan.Effect.Hostname)
	job.Callhome.RootUUID = root.UUID
	files, err := identityFiles(job, m)
	if err != nil {
		return err
	}
	fss := []mountable{root}
	err = in.mounted(fss, func(r *os.Root) error {
		table, err := readFstab(r)
		fss = append(fss, t.below(m.Disk, table)...)
		return err
	})
	if err != nil {
		return err
	}
	for _, fs := range fss {
		in.load(ctx, fs.FS)
	}
	err = in.mounted(fss, func(r *os.Root) error {
		if st, err := r.Stat("etc"); err != nil || !st.IsDir() {
			return &Failure{Code: "image_unsuitable", Cause: "The root filesystem of the image has no /etc: its system may be in a subvolume that is not the default one.",
				NextStep: "Make that subvolume the default of the image's filesystem and import it again, or use another image.", Err: err}
		}
		t := tree{r}
		if err := t.configure(job, m, files); err != nil {
			return err
		}
		return in.leaveAgent(job, m, t)
	})
	if err != nil {
		return err
	}
	job.step(lpmos.Configuring, 3, 6, "Checking the boot loader")
	if err := in.signpost(ctx, job, m, t, root); err != nil {
		return err
	}
	if root.FS == "ext4" {
		return in.check(ctx, root.dev)
	}
	return nil
}

// readFstab reads what the system mounts at its start; without the file that is
// nothing.
func readFstab(root *os.Root) ([]fstab.Entry, error) {
	f, _, err := openFile(root, "etc/fstab")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Failure{Code: "image_unsuitable", Cause: "The image’s /etc/fstab cannot be read: it is no file, or a link that leads out of the system.", NextStep: nextImage, Err: err}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read fstab: %w", err)
	}
	return fstab.Parse(string(text)), nil
}

// below are the filesystems, and the subvolumes of a btrfs, that the system mounts
// below its root, in the order in which they can be: what is written there belongs
// on them, not under their mount points. The boot loader's are left alone.
func (t target) below(d *lpmos.ImageDisk, table []fstab.Entry) (out []mountable) {
	for _, e := range table {
		p, at := e.Partition(d.Partitions), path.Clean(e.Mount)
		if p == nil || p.Number == d.Root && p.FS != "btrfs" || slices.Contains(e.Options, "noauto") ||
			!path.IsAbs(at) || at == "/" || strings.HasPrefix(at+"/", "/boot/") ||
			slices.ContainsFunc(out, func(fs mountable) bool { return fs.Mount == at }) {
			continue
		}
		switch kind := p.FS; kind {
		case "ext2", "ext3":
			kind = "ext4" // whose driver is theirs
			fallthrough
		case "ext4", "xfs", "btrfs":
			fs := mountable{PlannedFS: lpmos.PlannedFS{Kind: "partition", Name: p.UUID, FS: kind, UUID: p.FSUUID, Mount: at}, dev: t.part(p.Number), optional: e.Optional()}
			for _, o := range e.Options {
				if p.FS == "btrfs" && (strings.HasPrefix(o, "subvol=") || strings.HasPrefix(o, "subvolid=")) {
					fs.options = o
				}
			}
			out = append(out, fs)
		}
	}
	slices.SortStableFunc(out, func(a, b mountable) int { return strings.Compare(a.Mount, b.Mount) })
	return out
}

// signpost makes sure that firmware and region find this disk: the path that
// firmware tries without a boot entry, and a file of a name that no other disk
// has, since a copy of an image has the identifiers of all its copies.
func (in *Installer) signpost(ctx context.Context, job *Job, m *lpmos.ImageManifest, t target, root mountable) error {
	on := root
	if esp, ok := m.Disk.Partition(m.Disk.ESP); ok {
		in.load(ctx, "vfat")
		on = mountable{PlannedFS: lpmos.PlannedFS{FS: "vfat", Mount: "/"}, dev: t.part(esp.Number)}
	} else if job.Plan.Effect.BootMode == "uefi" {
		return &Failure{Code: "image_unsuitable", Cause: "The image has no EFI system partition, and the machine boots by UEFI.", NextStep: "Switch the machine to BIOS, or use another image."}
	}
	err := in.mounted([]mountable{on}, func(r *os.Root) error {
		tree := tree{r}
		if on.FS == "vfat" && job.Plan.Effect.BootMode == "uefi" {
			if err := fallbackLoader(tree, m.Arch); err != nil {
				return err
			}
		}
		if id := job.Plan.Effect.BootID; id != "" {
			return tree.write(file{path: grubboot.SignpostDir + "/" + id, mode: 0o644, text: "This disk was installed by LPMOS.\n"}, nil)
		}
		return nil
	})
	if errors.Is(err, syscall.ENOSPC) {
		return &Failure{Code: "image_unsuitable", Cause: "The filesystem that firmware reads is full: what lets firmware and region find this disk has no room on it.",
			NextStep: "Use an image with more room on its EFI system partition.", Err: err}
	}
	return err
}

// fallbackLoader copies the system's own loader to where firmware looks without
// an entry in its variables, if nothing is there: all of its directory, because
// a shim starts what lies beside it.
func fallbackLoader(t tree, arch string) error {
	suffix := map[string]string{"amd64": "x64", "arm64": "aa64"}[arch]
	name := "BOOT" + strings.ToUpper(suffix) + ".EFI"
	if _, err := t.Stat("EFI/BOOT/" + name); err == nil { // FAT knows no case
		return nil
	}
	for _, loader := range []string{"shim" + suffix + ".efi", "grub" + suffix + ".efi", "systemd-boot" + suffix + ".efi"} {
		found, err := fs.Glob(t.FS(), "EFI/*/"+loader)
		if err != nil || len(found) == 0 {
			continue
		}
		dir := path.Dir(found[0])
		entries, err := fs.ReadDir(t.FS(), dir)
		if err != nil {
			return fmt.Errorf("read /%s: %w", dir, err)
		}
		for _, e := range entries {
			to := e.Name()
			if strings.EqualFold(to, loader) {
				to = name
			}
			if !e.Type().IsRegular() {
				continue
			}
			if err := t.copyWithin("EFI/BOOT/"+to, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	return &Failure{Code: "image_unsuitable", Cause: "The image's EFI system partition has no boot loader that firmware would find.", NextStep: "Use an image with EFI/BOOT/" + name + "."}
}

func (t tree) copyWithin(to, from string) error {
	src, err := t.Open(from)
	if err != nil {
		return fmt.Errorf("read /%s: %w", from, err)
	}
	defer src.Close()
	w, err := t.create(to, 0o644, 0)
	if err != nil {
		return fmt.Errorf("write /%s: %w", to, err)
	}
	_, err = io.Copy(w, src)
	return errors.Join(err, w.Close())
}
