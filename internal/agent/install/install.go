package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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

	OnWrite func()     // called once, before the first write; may be nil
	OnStep  func(Step) // called from several goroutines, one at a time; may be nil
}

// Step is how far a job has come within a stage.
type Step struct {
	Stage       lpmos.Stage
	Done, Total int64 // of the stage, in any unit
	Message     string
	Bytes       int64 // transferred or written so far, 0 for stages without
	BytesTotal  int64
}

func (j *Job) step(stage lpmos.Stage, done, total int64, message string) {
	if j.OnStep != nil {
		j.OnStep(Step{Stage: stage, Done: done, Total: total, Message: message})
	}
}

// Runner runs one program to its end, with input as its standard input. What
// it wrote comes back; an exit status other than zero is an error that has
// ExitCode and names the last line of output.
type Runner interface {
	Run(ctx context.Context, input []byte, path string, args ...string) (output string, err error)
}

// Blobs opens a stretch of a blob; agentapi.Blobs is it.
type Blobs interface {
	Open(ctx context.Context, sha256 string, offset, length int64) (*agentapi.BlobReader, error)
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

	StallTimeout time.Duration // how long a stage may go without progress; 0 is 10 min
}

// Tools are the programs that are run, by absolute path.
type Tools struct {
	Sfdisk, MkfsVfat, E2fsck, Tune2fs, Resize2fs, Zstd string
}

// Installer installs. It may be used for one job at a time.
type Installer struct {
	cfg    Config
	run    Runner
	blobs  Blobs
	decode Decoder
	log    *slog.Logger

	// open is replaced by tests that work on regular files.
	open func(path string) (*device, error)
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
		{&cfg.WorkDir, "/run/lpmos"}, {&cfg.Agent, "/proc/self/exe"}, {&cfg.Sys, "/sys"}, {&cfg.Proc, "/proc"},
	} {
		if *d.to == "" {
			*d.to = d.path
		}
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = 10 * time.Minute
	}
	cfg.Grub.setDefaults()
	if decode == nil {
		decode = Zstd{Path: cfg.Tools.Zstd}
	}
	return &Installer{cfg: cfg, run: run, blobs: blobs, decode: decode, log: log, open: openBlock}
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

// Install carries out job and returns when the disk is complete, or with an
// error that is, or wraps, a *Failure.
func (in *Installer) Install(ctx context.Context, job Job) error {
	e := &job.Plan.Effect
	job.step(lpmos.Partitioning, 0, 5, "Reading the image's manifest")
	root, ok := e.Partition("root")
	if !ok {
		return &Failure{Code: "plan_invalid", Cause: "The plan has no root partition.", NextStep: nextReport}
	}
	// Everything that can be found wrong without writing is found before.
	m, err := in.manifest(ctx, e.Image.Digest)
	if err != nil {
		return staged(lpmos.Partitioning, err)
	}
	if e.UserData != "" && !m.CloudInit {
		return staged(lpmos.Partitioning, &Failure{Code: "plan_invalid", Cause: "The plan has user-data, and the image does not run cloud-init.",
			NextStep: "Use an image that does, or a task without a template."})
	}
	if m.SizeBytes > root.SizeBytes {
		return staged(lpmos.Partitioning, tooLarge(m.SizeBytes, root.SizeBytes))
	}
	boot, err := in.cfg.Grub.load(e, in.cfg.Proc)
	if err != nil {
		return staged(lpmos.Partitioning, err)
	}
	dev, parts, err := in.partition(ctx, &job)
	if err != nil {
		return staged(lpmos.Partitioning, err)
	}
	in.log.Info("disk partitioned", "disk", dev, "partitions", len(parts))

	if err := in.writeImage(ctx, &job, m, parts["root"]); err != nil {
		return staged(lpmos.StageInstall, err)
	}
	if err := in.configure(ctx, &job, m, boot, dev, parts); err != nil {
		return staged(lpmos.Configuring, err)
	}
	job.step(lpmos.Configuring, 6, 6, "Everything is written")
	in.log.Info("disk complete", "disk", dev, "attempt", job.Attempt)
	return nil
}

// partition makes the table of the plan on the target and returns the paths of
// the disk and, by role, of its partitions.
func (in *Installer) partition(ctx context.Context, job *Job) (dev string, parts map[string]string, err error) {
	e := &job.Plan.Effect
	path, err := in.identify(ctx, e.Target)
	if err != nil {
		return "", nil, err
	}
	d, err := in.open(path)
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := in.checkTarget(d, e); err != nil {
		return "", nil, err
	}
	placed, err := place(e, d)
	if err != nil {
		return "", nil, err
	}
	// Between the question and the answer above, names may have moved.
	if again, err := in.identify(ctx, e.Target); err != nil || again != path {
		return "", nil, &Failure{Code: "disk_missing", Cause: "The target disk (" + e.Target.String() + ") was lost just before it was to be written.",
			NextStep: "Check the disk's cabling and retry the task.", Err: err}
	}
	if job.OnWrite != nil {
		job.OnWrite()
	}
	in.log.Warn("erasing begins", "disk", path, "target", e.Target.String())
	job.step(lpmos.Partitioning, 1, 5, "Erasing old signatures on "+e.Target.String())
	if err := d.writable(); err != nil {
		return "", nil, err
	}
	if err := d.wipe(placed); err != nil {
		return "", nil, writeFailed(path, err)
	}
	job.step(lpmos.Partitioning, 2, 5, "Writing the partition table")
	if err := in.writeTable(ctx, d, placed, e.Image.Arch); err != nil {
		return "", nil, err
	}
	job.step(lpmos.Partitioning, 3, 5, "Waiting for the partitions")
	if err := d.reread(ctx, placed); err != nil {
		return "", nil, err
	}
	parts = map[string]string{}
	for _, p := range placed {
		parts[p.Role] = partitionPath(path, p.Number)
	}
	job.step(lpmos.Partitioning, 4, 5, "The partition table is in place")
	return path, parts, nil
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

// mountPoint makes the directory on which the root filesystem is mounted.
func (in *Installer) mountPoint() (string, error) {
	dir := filepath.Join(in.cfg.WorkDir, "target")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make mount point: %w", err)
	}
	return dir, nil
}
