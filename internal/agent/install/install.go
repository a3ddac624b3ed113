package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// Job is one attempt.
type Job struct {
	TaskID   string
	Attempt  int
	Plan     *lpmos.Plan
	Callhome agentapi.CallhomeConfig // goes into the installed system
	// Secrets are the values of Plan.Effect.Secrets, by name. They go where the
	// plan says and nowhere else: no argument, no log, no error.
	Secrets map[string]lpmos.Secret
	// Boot is who this boot is, for what goes on in an installer.
	Boot agentapi.BootConfig

	OnWrite func()     // called once, before the first write; may be nil
	OnStep  func(Step) // called from several goroutines, one at a time; may be nil
}

// Step is how far a job has come within a stage.
type Step struct {
	Stage       lpmos.Stage
	Done, Total int64 // of the stage, in any unit
	Message     string
	Detail      string // the newest of many small things that make up this step, if it says so: shown, not logged
	Bytes       int64  // transferred or written so far, 0 for stages without
	BytesTotal  int64
}

func (j *Job) step(stage lpmos.Stage, done, total int64, message string) {
	j.tell(Step{Stage: stage, Done: done, Total: total, Message: message})
}

func (j *Job) tell(s Step) {
	if j.OnStep != nil {
		j.OnStep(s)
	}
}

// Runner runs one program to its end. An exit status other than zero is an error
// that has ExitCode and names the last line of output.
type Runner interface {
	// Run gives the program input, and lets people see what it says.
	Run(ctx context.Context, input []byte, path string, args ...string) error
	// Read gives back what the program says, which is for programs: of it people
	// see how it ended.
	Read(ctx context.Context, path string, args ...string) (output string, err error)
}

// Blobs opens a stretch of a blob; agentapi.Blobs is it.
type Blobs interface {
	Open(ctx context.Context, sha256 string, p agentapi.Part) (*agentapi.BlobReader, error)
}

// Config says what an Installer works with. Empty paths are those of the
// agent's initramfs.
type Config struct {
	Tools   Tools
	Grub    GrubParts
	WorkDir string // the root filesystem is mounted below it
	Agent   string // the agent's own binary, copied to the target
	Sys     string // /sys
	Proc    string // /proc

	// Identify lists the disks as they are now, without looking at content.
	Identify func(context.Context) (*lpmos.Hardware, error)
	// Confined runs a program of the tree at root, and hands out what it says, line
	// by line; see package confine. Layouts with more than partitions need it.
	Confined func(ctx context.Context, root string, says func(line string), path string, args ...string) error

	// Kexec loads a kernel and its initramfs to be started at the next restart; nil
	// asks this kernel to.
	Kexec func(kernel, initrd *os.File, args string) error

	StallTimeout time.Duration // how long a stage may go without progress; 0 is 10 min
}

// Tools are the programs that are run, by absolute path.
type Tools struct {
	Sfdisk, MkfsVfat, E2fsck, Tune2fs, Resize2fs, Zstd string
	Mke2fs, MkfsXFS, XFSGrowfs, Mkswap, Mdadm, LVM     string
	Cryptsetup                                         string
	// Modprobe loads a kernel module when it is called as "path -q -- name":
	// the agent itself does.
	Modprobe string
}

// Installer installs. It may be used for one job at a time.
type Installer struct {
	cfg    Config
	run    Runner
	blobs  Blobs
	decode Decoder
	log    *slog.Logger

	// open is replaced by tests that work on regular files, mountFS by those on a
	// kernel that lacks FAT.
	open    func(path string) (*device, error)
	mountFS func(source, target, fstype string, flags uintptr, options string) error
}

// New makes an installer. A nil decode is the zstd program of cfg.Tools.
func New(cfg Config, run Runner, blobs Blobs, decode Decoder, log *slog.Logger) *Installer {
	for _, d := range []struct {
		to   *string
		path string
	}{
		{&cfg.Tools.Sfdisk, "/usr/sbin/sfdisk"}, {&cfg.Tools.MkfsVfat, "/usr/sbin/mkfs.vfat"},
		{&cfg.Tools.E2fsck, "/usr/sbin/e2fsck"}, {&cfg.Tools.Tune2fs, "/usr/sbin/tune2fs"},
		{&cfg.Tools.Resize2fs, "/usr/sbin/resize2fs"}, {&cfg.Tools.Zstd, "/usr/bin/zstd"},
		{&cfg.Tools.Mke2fs, "/usr/sbin/mke2fs"}, {&cfg.Tools.MkfsXFS, "/usr/sbin/mkfs.xfs"}, {&cfg.Tools.XFSGrowfs, "/usr/sbin/xfs_growfs"},
		{&cfg.Tools.Mkswap, "/usr/sbin/mkswap"}, {&cfg.Tools.Mdadm, "/usr/sbin/mdadm"}, {&cfg.Tools.LVM, "/usr/sbin/lvm"},
		{&cfg.Tools.Cryptsetup, "/usr/sbin/cryptsetup"}, {&cfg.Tools.Modprobe, "/init"},
		{&cfg.WorkDir, "/run/lpmos"}, {&cfg.Agent, "/proc/self/exe"}, {&cfg.Sys, "/sys"}, {&cfg.Proc, "/proc"},
	} {
		if *d.to == "" {
			*d.to = d.path
		}
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = 10 * time.Minute
	}
	if cfg.Kexec == nil {
		cfg.Kexec = kexec
	}
	cfg.Grub.setDefaults()
	if decode == nil {
		decode = Zstd{Path: cfg.Tools.Zstd}
	}
	return &Installer{cfg: cfg, run: run, blobs: blobs, decode: decode, log: log, open: openBlock, mountFS: mountFS}
}

// Finished reads the marker of a disk of this machine. ok is false when there
// is none that can be read; that is never an error, because the disk may hold
// anything.
func (in *Installer) Finished(d lpmos.Disk) (m Marker, ok bool) {
	f, err := os.Open(d.Device)
	if err != nil {
		return Marker{}, false
	}
	defer f.Close()
	return readMarker(f)
}

// Install carries out job and returns when all its disks are complete, or with
// an error that is, or wraps, a *Failure. ErrHandedOver is not a failure: the
// machine is to be restarted, and the distribution's installer goes on.
func (in *Installer) Install(ctx context.Context, job Job) error {
	written, told := false, job.OnWrite
	job.OnWrite = func() {
		written = true
		if told != nil {
			told()
		}
	}
	err := in.install(ctx, &job)
	f, failed := errors.AsType[*Failure](err)
	if !failed || !written {
		return err
	}
	// Whatever went wrong on a disk that is not there any more, went wrong for
	// that.
	for _, w := range job.Plan.Effect.Disks() {
		_, lost := in.identify(ctx, w.Disk)
		if _, missing := errors.AsType[*Failure](lost); missing {
			return staged(f.Stage, &Failure{Code: "disk_gone", Cause: "The disk (" + w.Disk.String() + ") vanished while it was written.", NextStep: nextDisk, Err: err})
		}
	}
	return err
}

func (in *Installer) install(ctx context.Context, job *Job) error {
	e := &job.Plan.Effect
	job.step(lpmos.Partitioning, 0, 5, "Reading the image's manifest")
	// Everything that can be found wrong without writing is found before.
	m, err := in.manifest(ctx, e.Image.Digest)
	if err != nil {
		return staged(lpmos.Partitioning, err)
	}
	if e.UserData != "" && !m.CloudInit {
		return staged(lpmos.Partitioning, &Failure{Code: "plan_invalid", Cause: "The plan has user-data, and the image does not run cloud-init.",
			NextStep: "Use an image that does, or a task without a template."})
	}
	if method := cmp.Or(e.Method, lpmos.FormatExt4); method != m.Format {
		return staged(lpmos.Partitioning, &Failure{Code: "plan_invalid", Cause: fmt.Sprintf("The plan is for an image of the format %q and the image is %q.", method, m.Format), NextStep: nextReport})
	}
	if m.Format == lpmos.FormatInstaller {
		err := in.startInstaller(ctx, job, m)
		if errors.Is(err, ErrHandedOver) {
			return err
		}
		return staged(lpmos.Partitioning, err)
	}
	if m.Format == lpmos.FormatDisk {
		return in.installDisk(ctx, job, m)
	}
	root, ok := e.Root()
	if !ok {
		return staged(lpmos.Partitioning, &Failure{Code: "plan_invalid", Cause: "The plan has no root partition.", NextStep: nextReport})
	}
	if m.RootBytes() > root.SizeBytes {
		return staged(lpmos.Partitioning, tooLarge(m.RootBytes(), root.SizeBytes))
	}
	if len(e.Crypts) > 0 && job.Secrets[lpmos.SecretDisk].IsZero() {
		return staged(lpmos.Partitioning, &Failure{Code: "plan_invalid", Cause: "The plan encrypts disks, and no passphrase came with it.", NextStep: nextReport})
	}
	boot, err := in.cfg.Grub.load(e, in.cfg.Proc)
	if err != nil {
		return staged(lpmos.Partitioning, err)
	}
	targets, err := in.partition(ctx, job)
	if err != nil {
		return staged(lpmos.Partitioning, err)
	}
	in.log.Info("disks partitioned", "disk", targets[0].path, "disks", len(targets))
	if m.Format == lpmos.FormatTar {
		return in.installTree(ctx, job, m, boot, targets)
	}
	if err := in.writeImage(ctx, job, m, targets[0]); err != nil {
		return staged(lpmos.StageInstall, err)
	}
	if err := in.configure(ctx, job, m, boot, []mountable{{PlannedFS: root, dev: targets[0].role("root")}}); err != nil {
		return staged(lpmos.Configuring, err)
	}
	return staged0(lpmos.Configuring, in.complete(ctx, job, boot, targets))
}

// target is a disk that this attempt writes, with its partitions in place.
type target struct {
	disk  lpmos.DiskRef
	path  string
	parts []placed
}

// part is the path of a partition by its number, role that of the first with a
// role, "" when there is none.
func (t target) part(number int) string { return partitionPath(t.path, number) }

func (t target) role(role string) string {
	for _, p := range t.parts {
		if p.Role == role {
			return t.part(p.Number)
		}
	}
	return ""
}

// partition makes the tables of the plan on all its disks. All of them are held
// and checked before the first is written.
func (in *Installer) partition(ctx context.Context, job *Job) (targets []target, err error) {
	e := &job.Plan.Effect
	devices, err := in.claim(ctx, e)
	defer func() {
		for _, d := range devices {
			err = errors.Join(err, d.Close())
		}
	}()
	if err != nil {
		return nil, err
	}
	for i, w := range e.Disks() {
		placed, err := place(w.Partitions, devices[i])
		if err != nil {
			return nil, err
		}
		targets = append(targets, target{w.Disk, devices[i].Name(), placed})
	}
	if err := in.still(ctx, targets); err != nil {
		return nil, err
	}
	job.OnWrite()
	for i, t := range targets {
		in.log.Warn("erasing begins", "disk", t.path, "target", t.disk.String())
		job.step(lpmos.Partitioning, 1, 5, "Erasing old signatures on "+t.disk.String())
		if err := devices[i].writable(); err != nil {
			return nil, err
		}
		if err := devices[i].wipe(t.parts); err != nil {
			return nil, writeFailed(t.path, err)
		}
	}
	for i, t := range targets {
		job.step(lpmos.Partitioning, 2, 5, "Writing the partition table of "+t.disk.String())
		if err := in.writeTable(ctx, devices[i], t.parts, e.Image.Arch); err != nil {
			return nil, err
		}
	}
	job.step(lpmos.Partitioning, 3, 5, "Waiting for the partitions")
	for i, t := range targets {
		if err := devices[i].reread(ctx, t.parts); err != nil {
			return nil, err
		}
	}
	job.step(lpmos.Partitioning, 4, 5, "The partition table is in place")
	return targets, nil
}

// claim opens all disks of the effect, in its order, and checks each. What it
// returns must be closed, also with an error.
func (in *Installer) claim(ctx context.Context, e *lpmos.Effect) (devices []*device, err error) {
	for _, w := range e.Disks() {
		path, err := in.identify(ctx, w.Disk)
		if err != nil {
			return devices, err
		}
		d, err := in.open(path)
		if errors.Is(err, syscall.EBUSY) {
			if holder := in.holder(path); holder != "" {
				err = busy(holder, err)
			}
		}
		if err != nil {
			return devices, err
		}
		devices = append(devices, d)
		if err := in.checkTarget(d, w.Disk, e.BootMode); err != nil {
			return devices, err
		}
	}
	return devices, nil
}

// still asks a last time before anything is written to a device that was opened
// by its name: between the question and the answer, names may have moved. While
// the device is open, its name stays.
func (in *Installer) still(ctx context.Context, targets []target) error {
	for _, t := range targets {
		if again, err := in.identify(ctx, t.disk); err != nil || again != t.path {
			return &Failure{Code: "disk_missing", Cause: "The target disk (" + t.disk.String() + ") was lost just before it was to be written.",
				NextStep: "Check the disk's cabling and retry the task.", Err: err}
		}
	}
	return nil
}

// identify is the device of the one disk that ref names, now.
func (in *Installer) identify(ctx context.Context, ref lpmos.DiskRef) (string, error) {
	h, err := in.cfg.Identify(ctx)
	if err != nil {
		return "", fmt.Errorf("list disks: %w", err)
	}
	d, err := h.Disk(ref)
	if err != nil {
		return "", &Failure{Code: "disk_missing", Cause: "The approved disk (" + ref.String() + ") is not in this machine as it was.",
			NextStep: "Check that the disk is present and healthy, then retry the task.", Err: err}
	}
	return d.Device, nil
}

func mountFS(source, target, fstype string, flags uintptr, options string) error {
	return syscall.Mount(source, target, fstype, flags, options)
}

// mountPoint makes the directory on which the root filesystem is mounted.
func (in *Installer) mountPoint() (string, error) {
	dir := filepath.Join(in.cfg.WorkDir, "target")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make mount point: %w", err)
	}
	return dir, nil
}
