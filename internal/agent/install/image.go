package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// manifest fetches the image's manifest and trusts it only if it is the one
// that was approved. A wrong one is fetched once more.
func (in *Installer) manifest(ctx context.Context, digest string) (*lpmos.ImageManifest, error) {
	return FetchManifest(ctx, in.blobs, digest, in.cfg.StallTimeout)
}

// FetchManifest reads and checks a manifest by its digest ("sha256:…"). It
// repeats what the network spoiled until stall is over.
func FetchManifest(ctx context.Context, blobs Blobs, digest string, stall time.Duration) (*lpmos.ImageManifest, error) {
	sum, err := lpmos.TrimDigest(digest)
	if err != nil {
		return nil, &Failure{Code: "plan_invalid", Cause: "The plan names no image.", NextStep: nextReport, Err: err}
	}
	var text []byte
	for try := 1; ; try++ {
		err := persist(ctx, stall, func(ctx context.Context) error {
			text, err = readAll(ctx, blobs, sum)
			return missingIf404(err, "manifest", digest)
		})
		if err != nil {
			return nil, err
		}
		if lpmos.DigestBytes(text) == "sha256:"+sum {
			break
		}
		if try == 2 {
			return nil, corrupt("its manifest is not %s, on two tries", lpmos.Shorten(digest, 20))
		}
	}
	var m lpmos.ImageManifest
	if err := lpmos.DecodeJSON(bytes.NewReader(text), lpmos.MaxManifestBytes, &m); err != nil {
		return nil, corrupt("its manifest cannot be read: %v", err)
	}
	if err := m.Validate(); err != nil {
		return nil, corrupt("%v", err)
	}
	return &m, nil
}

func readAll(ctx context.Context, blobs Blobs, sum string) ([]byte, error) {
	r, err := blobs.Open(ctx, sum, agentapi.Part{Length: -1})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, lpmos.MaxManifestBytes+1))
	if err == nil && len(b) > lpmos.MaxManifestBytes {
		return nil, corrupt("its manifest is larger than %s", lpmos.FormatBytes(lpmos.MaxManifestBytes))
	}
	return b, err
}

// persist calls f until it succeeds, fails with a *Failure, or stall is over, at
// which its context ends.
func persist(ctx context.Context, stall time.Duration, f func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, stall)
	defer cancel()
	pause := agentapi.Backoff{Min: 200 * time.Millisecond, Max: min(15*time.Second, max(stall/4, time.Millisecond))}
	for {
		err := f(bounded)
		if err == nil {
			return nil
		}
		if _, ok := errors.AsType[*Failure](err); ok {
			return err
		}
		if pause.Wait(bounded, 0) == nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return unreachable(stall, err)
	}
}

func unreachable(stall time.Duration, err error) error {
	return &Failure{Code: "image_unreachable", Cause: fmt.Sprintf("No part of the image could be read for %s.", stall), NextStep: nextNetwork, Err: err}
}

func missingIf404(err error, what, digest string) error {
	if s, ok := errors.AsType[*agentapi.StatusError](err); ok && (s.Code == http.StatusNotFound || s.Code == http.StatusGone) {
		return missing(what, digest, err)
	}
	return err
}

// writeImage copies the image to the root partition, reads a sample of it back
// from the disk, and gives the filesystem the plan's UUID and the partition's
// size.
func (in *Installer) writeImage(ctx context.Context, job *Job, m *lpmos.ImageManifest, t target) error {
	part := t.role("root")
	f, err := openPartition(part)
	if err != nil {
		return err
	}
	var s *sample
	err = in.still(ctx, []target{t})
	if err == nil {
		s, err = in.copyImage(ctx, job, m, f)
	}
	if err == nil {
		job.step(lpmos.StageInstall, 50, 100, "Writing everything out to the disk")
		dev := device{File: f, regular: !isBlock(f)}
		err = writeFailed(part, dev.flush())
	}
	if err == nil {
		job.step(lpmos.StageInstall, 70, 100, "Comparing a sample with the disk")
		err = s.compare(f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return in.growRoot(ctx, job, part)
}

func (in *Installer) copyImage(ctx context.Context, job *Job, m *lpmos.ImageManifest, f *os.File) (*sample, error) {
	c := Copier{Blobs: in.blobs, Decode: in.decode, Stall: in.cfg.StallTimeout, Log: in.log}
	s := newSample(len(m.Chunks))
	w := NewDiskWriter(f)
	began := time.Now()
	c.Progress = job.progress(m)
	err := c.Copy(ctx, m, func(i int, chunk lpmos.Chunk, at int64, piece []byte) error {
		if _, err := w.WriteAt(piece, chunk.Offset+at); err != nil {
			return writeFailed(f.Name(), err)
		}
		s.take(i, chunk, at, piece)
		return nil
	})
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	took := time.Since(began)
	in.log.Info("image written", "bytes", m.UsedBytes, "stored", m.Pack.Bytes, "chunks", len(m.Chunks), "took", took.Round(time.Millisecond))
	return s, nil
}

// progress reports how far an image has come: downloading while there is
// something to download, writing afterwards.
func (j *Job) progress(m *lpmos.ImageManifest) func(stored, raw int64) {
	return func(stored, raw int64) {
		if stored < m.Pack.Bytes {
			j.tell(Step{Stage: lpmos.Downloading, Done: stored, Total: m.Pack.Bytes, Bytes: stored, BytesTotal: m.Pack.Bytes,
				Message: "Downloading " + m.OS + " " + m.Version + " (" + lpmos.FormatBytes(stored) + " of " + lpmos.FormatBytes(m.Pack.Bytes) + ")"})
			return
		}
		j.tell(Step{Stage: lpmos.StageInstall, Done: raw, Total: 2 * m.UsedBytes, Bytes: raw, BytesTotal: m.UsedBytes,
			Message: "Writing " + lpmos.FormatBytes(m.UsedBytes) + " to the disk"})
	}
}

// sample remembers what some of the chunks were, the first and last among
// them, to compare with what a disk says it has.
type sample struct {
	every, last int
	sums        map[lpmos.Chunk]hash.Hash
}

const sampleChunks = 16

func newSample(chunks int) *sample {
	return &sample{every: max(1, chunks/sampleChunks), last: chunks - 1, sums: map[lpmos.Chunk]hash.Hash{}}
}

// take is told of every piece of every chunk, in order.
func (s *sample) take(i int, c lpmos.Chunk, at int64, piece []byte) {
	if i%s.every != 0 && i != s.last {
		return
	}
	if at == 0 {
		s.sums[c] = sha256.New()
	}
	s.sums[c].Write(piece)
}

func (s *sample) compare(r io.ReaderAt) error {
	for c, want := range s.sums {
		b := make([]byte, c.Bytes)
		if _, err := r.ReadAt(b, c.Offset); err != nil {
			return &Failure{Code: "disk_verify_failed", Cause: fmt.Sprintf("What was written at byte %d of the image cannot be read back.", c.Offset), NextStep: nextDisk, Err: err}
		}
		if sum := sha256.Sum256(b); !bytes.Equal(sum[:], want.Sum(nil)) {
			return &Failure{Code: "disk_verify_failed", Cause: fmt.Sprintf("The disk returns other bytes than were written, at byte %d of the image.", c.Offset), NextStep: nextDisk}
		}
	}
	return nil
}

func isBlock(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeDevice != 0
}
