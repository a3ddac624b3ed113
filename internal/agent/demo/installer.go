package demo

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// disk is what would be on the disk.
type disk struct {
	mu       sync.Mutex // guards what follows
	marker   install.Marker
	plan     *lpmos.Plan
	callhome agentapi.CallhomeConfig
	os       string
}

func (d *disk) installed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.plan != nil
}

// installer goes through the stages of a real installation. Manifest and
// chunks are really fetched and verified; nothing is written.
type installer struct {
	blobs    install.Blobs
	disk     *disk
	duration time.Duration
	log      *slog.Logger
}

const stall = 10 * time.Minute

func (in *installer) Finished(lpmos.Disk) (install.Marker, bool) {
	in.disk.mu.Lock()
	defer in.disk.mu.Unlock()
	return in.disk.marker, in.disk.plan != nil
}

func (in *installer) Install(ctx context.Context, job install.Job) error {
	step := func(s install.Step) {
		if job.OnStep != nil {
			job.OnStep(s)
		}
	}
	m, err := install.FetchManifest(ctx, in.blobs, job.Plan.Effect.Image.Digest, stall)
	if err != nil {
		return err
	}
	in.disk.mu.Lock()
	in.disk.plan = nil
	in.disk.mu.Unlock()
	if job.OnWrite != nil {
		job.OnWrite()
	}
	if err := in.pretend(ctx, lpmos.Partitioning, in.duration/10, step, "Pretending to partition "+job.Plan.Effect.Target.String()); err != nil {
		return err
	}
	if m.Installer == nil {
		if err := in.download(ctx, m, step); err != nil {
			return err
		}
	}
	if err := in.pretend(ctx, lpmos.StageInstall, in.duration/5, step, "Pretending to write "+lpmos.FormatBytes(m.UsedBytes)); err != nil {
		return err
	}
	if err := in.pretend(ctx, lpmos.Configuring, in.duration/10, step, "Pretending to configure "+job.Plan.Effect.Hostname); err != nil {
		return err
	}
	in.disk.mu.Lock()
	defer in.disk.mu.Unlock()
	in.disk.plan, in.disk.callhome, in.disk.os = job.Plan, job.Callhome, m.OS+" "+m.Version
	in.disk.marker = install.Marker{TaskID: job.TaskID, Attempt: job.Attempt, PlanDigest: job.Plan.Digest, WrittenAt: time.Now().UTC()}
	return nil
}

// download fetches and verifies the whole image and takes at least its share
// of the time.
func (in *installer) download(ctx context.Context, m *lpmos.ImageManifest, step func(install.Step)) error {
	share := in.duration * 6 / 10
	began := time.Now()
	c := install.Copier{Blobs: in.blobs, Stall: stall, Log: in.log}
	c.Progress = func(stored, _ int64) {
		if ctx.Err() != nil {
			return
		}
		step(install.Step{Stage: lpmos.Downloading, Done: stored, Total: m.Pack.Bytes, Bytes: stored, BytesTotal: m.Pack.Bytes,
			Message: "Downloading and verifying " + m.OS + " " + m.Version})
		// Called from the copy, so that waiting slows it down evenly.
		due := time.Duration(float64(share) * float64(stored) / float64(m.Pack.Bytes))
		_ = wait(ctx, due-time.Since(began)) // its caller looks at ctx
	}
	return c.Copy(ctx, m, nil)
}

// pretend takes d for a stage, in ten steps.
func (in *installer) pretend(ctx context.Context, stage lpmos.Stage, d time.Duration, step func(install.Step), message string) error {
	const steps = 10
	for i := range int64(steps) {
		step(install.Step{Stage: stage, Done: i, Total: steps, Message: message})
		if err := wait(ctx, d/steps); err != nil {
			return err
		}
	}
	step(install.Step{Stage: stage, Done: steps, Total: steps, Message: message})
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
