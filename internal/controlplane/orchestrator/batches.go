package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
)

// batchStore is what batches need of the store.
type batchStore interface {
	CreateBatch(ctx context.Context, n store.NewBatch) (lpmos.Batch, error)
	// KnownTask finds the task an earlier request with this key made.
	KnownTask(ctx context.Context, by, idempotencyKey, request string) (t lpmos.Task, known bool, err error)
	// KnownBatch finds the batch an earlier request with this key made.
	KnownBatch(ctx context.Context, by, idempotencyKey, request string) (b lpmos.Batch, known bool, err error)
	Batch(ctx context.Context, id string) (lpmos.Batch, error)
	OpenBatches(ctx context.Context) ([]string, error)
	BatchProgress(ctx context.Context, b lpmos.Batch) error
	CreateBatchTask(ctx context.Context, b lpmos.Batch, line int) (lpmos.Task, error)
}

// CheckBatch says which lines cannot become tasks, as a *lpmos.BatchError, and
// gives the lines with what was left out filled in. Nothing is stored.
func (o *Orchestrator) CheckBatch(specs []lpmos.Spec) ([]lpmos.Spec, error) {
	switch {
	case len(specs) == 0:
		return nil, &lpmos.InvalidError{Field: "tasks", Problem: "is empty: give at least one line"}
	case len(specs) > lpmos.MaxBatchLines:
		return nil, &lpmos.InvalidError{Field: "tasks", Problem: fmt.Sprintf("holds more than %d lines: send several batches", lpmos.MaxBatchLines)}
	}
	out := make([]lpmos.Spec, len(specs))
	bad := &lpmos.BatchError{}
	first, address := map[lpmos.MAC]int{}, map[string]int{}
	claimed := o.read.Claimed()
	for i, spec := range specs {
		var err error
		if out[i], err = o.Resolve(spec); err != nil {
			line := lpmos.BatchLine{Line: i + 1, Detail: err.Error()}
			var inv *lpmos.InvalidError
			if errors.As(err, &inv) {
				line.Field = inv.Field
			}
			bad.Lines = append(bad.Lines, line)
			continue
		}
		mac := out[i].TargetMAC
		if err := o.mayInstall(mac); err != nil {
			bad.Lines = append(bad.Lines, lpmos.BatchLine{Line: i + 1, Field: "target_mac", Detail: err.Error()})
			continue
		}
		if _, err := lpmos.NewSecretSet(out[i].Secrets); err != nil {
			bad.Lines = append(bad.Lines, lpmos.BatchLine{Line: i + 1, Field: "secrets", Detail: err.Error()})
			continue
		}
		if err := out[i].RequirePassphrase(); err != nil {
			bad.Lines = append(bad.Lines, lpmos.BatchLine{Line: i + 1, Field: "secrets", Detail: err.Error()})
			continue
		}
		if n, twice := first[mac]; twice {
			bad.Lines = append(bad.Lines, lpmos.BatchLine{Line: i + 1, Field: "target_mac", Detail: fmt.Sprintf("target_mac %s is already in line %d", mac, n)})
			continue
		}
		first[mac] = i + 1
		for _, a := range out[i].Addresses {
			host, _, _ := strings.Cut(a, "/")
			if n, twice := address[host]; twice {
				bad.Lines = append(bad.Lines, lpmos.BatchLine{Line: i + 1, Field: "addresses", Detail: fmt.Sprintf("address %s is already in line %d", host, n)})
				break
			}
			address[host] = i + 1
		}
		if holder, busy := claimed[mac]; busy {
			bad.Lines = append(bad.Lines, lpmos.BatchLine{Line: i + 1, Field: "target_mac", Detail: fmt.Sprintf("machine %s already has live task %s: cancel it, or wait until it ends", mac, holder)})
		}
	}
	if len(bad.Lines) > 0 {
		return nil, bad
	}
	return out, nil
}

// CreateBatch checks all lines and stores the batch; RunBatches makes its
// tasks.
func (o *Orchestrator) CreateBatch(ctx context.Context, specs []lpmos.Spec, by, idempotencyKey string) (lpmos.Batch, error) {
	// The same request is the same batch, also when a profile has changed.
	request := lpmos.DigestOf(specs)
	checked, err := o.CheckBatch(specs)
	if err != nil {
		// The same request again finds its machines busy with its own tasks.
		if idempotencyKey == "" {
			return lpmos.Batch{}, err
		}
		b, known, kerr := o.put.KnownBatch(ctx, by, idempotencyKey, request)
		if kerr != nil || known {
			return b, kerr
		}
		return lpmos.Batch{}, err
	}
	n := store.NewBatch{Specs: checked, By: by, Key: idempotencyKey, Request: request}
	if n.Seal, err = o.sealedLines(checked); err != nil {
		return lpmos.Batch{}, err
	}
	b, err := o.put.CreateBatch(ctx, n)
	if err != nil {
		return b, err
	}
	o.log.Info("batch stored", "batch", b.ID, "lines", b.Total, "by", by)
	select {
	case o.newBatch <- struct{}{}:
	default: // it is looked for already
	}
	return b, nil
}

// sealedLines takes the secrets out of the lines of a batch and gives what seals
// them for the tasks that the lines will be.
func (o *Orchestrator) sealedLines(specs []lpmos.Spec) (func(line int, taskID string) (lpmos.SealedLine, bool), error) {
	type secrets struct {
		committed []lpmos.PlannedSecret
		seal      func(taskID string) string
	}
	of := map[int]secrets{}
	for i := range specs {
		committed, seal, err := o.sealed(&specs[i])
		if err != nil {
			return nil, err
		}
		if seal != nil {
			of[i+1] = secrets{committed, seal}
		}
	}
	return func(line int, taskID string) (lpmos.SealedLine, bool) {
		s, ok := of[line]
		if !ok {
			return lpmos.SealedLine{}, false
		}
		return lpmos.SealedLine{Committed: s.committed, AtRest: s.seal(taskID)}, true
	}, nil
}

// Batch reads how far a batch has come.
func (o *Orchestrator) Batch(ctx context.Context, id string) (lpmos.Batch, error) {
	return o.put.Batch(ctx, id)
}

const (
	// lookForBatches is how often a replica looks for batches that another one
	// left unfinished.
	lookForBatches = 30 * time.Second
	// reportBatch is after how many lines progress is stored.
	reportBatch = 50
)

// RunBatches makes the tasks of all batches that are not finished, those of an
// earlier life first, until ctx ends.
func (o *Orchestrator) RunBatches(ctx context.Context) error {
	t := time.NewTicker(lookForBatches)
	defer t.Stop()
	for {
		var soon <-chan time.Time
		open, err := o.put.OpenBatches(ctx)
		for i := 0; i < len(open) && !errors.Is(err, lpmos.ErrUnavailable); i++ {
			if err = o.runBatch(ctx, open[i]); err != nil && ctx.Err() == nil {
				o.log.Warn("go on with batch", "batch", open[i], "err", err) // and with the others
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, lpmos.ErrUnavailable):
			soon = time.After(tick)
		case len(open) == 0 && err != nil:
			o.log.Warn("look for batches", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-o.newBatch:
		case <-soon:
		case <-t.C:
		}
	}
}

// runBatch deals with every line that is left. A line that lost its machine to
// another task meanwhile is noted and passed over; when the store does not
// answer the batch is left for later, at the line it stands at.
func (o *Orchestrator) runBatch(ctx context.Context, id string) error {
	b, err := o.put.Batch(ctx, id)
	if errors.Is(err, lpmos.ErrNotFound) || err == nil && b.Finished {
		return nil // another replica finished it
	}
	if err != nil {
		return err
	}
	o.log.Info("batch goes on", "batch", id, "line", b.Done+1, "lines", b.Total)
	for b.Done < len(b.Specs) {
		line := b.Done + 1
		_, err := o.put.CreateBatchTask(ctx, b, line)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, lpmos.ErrConflict):
			b.Failed = append(b.Failed, lpmos.BatchLine{Line: line, Field: "target_mac", Detail: err.Error()})
		case errors.Is(err, lpmos.ErrUnavailable):
			return err
		case err != nil:
			b.Failed = append(b.Failed, lpmos.BatchLine{Line: line, Detail: err.Error()})
		}
		b.Done = line
		if b.Done%reportBatch == 0 && b.Done < len(b.Specs) {
			if err := o.put.BatchProgress(ctx, b); err != nil {
				return err
			}
		}
	}
	b.Finished = true
	if err := o.put.BatchProgress(ctx, b); err != nil {
		return err
	}
	o.log.Info("batch finished", "batch", id, "lines", b.Total, "failed", len(b.Failed))
	return nil
}
