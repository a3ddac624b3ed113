package imagepack

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// newEncoder makes frames with a content checksum (RFC 8878).
func newEncoder() (*zstd.Encoder, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("make zstd encoder: %w", err)
	}
	return enc, nil
}

// queue compresses stretches concurrently and hands the frames on in order.
type queue struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   func(off, n int64, frame []byte) error // one at a time, in order
	slots  chan chan frame                        // its length bounds what is in flight
	free   sync.Pool
}

type frame struct {
	off, n int64
	bytes  []byte
}

func newQueue(ctx context.Context, done func(off, n int64, frame []byte) error) *queue {
	q := &queue{done: done, slots: make(chan chan frame, runtime.GOMAXPROCS(0))}
	q.ctx, q.cancel = context.WithCancelCause(ctx)
	return q
}

// run calls produce, whose add copies what it is given, and returns when all
// has been handed on, or with the first error of either side.
func (q *queue) run(enc *zstd.Encoder, produce func(add func(off int64, raw []byte) error) error) error {
	defer q.cancel(nil)
	var work, written sync.WaitGroup
	written.Go(func() {
		for slot := range q.slots {
			f := <-slot
			if q.ctx.Err() != nil {
				continue
			}
			if err := q.done(f.off, f.n, f.bytes); err != nil {
				q.cancel(err)
			}
		}
	})
	err := produce(func(off int64, raw []byte) error {
		buf, _ := q.free.Get().(*[]byte)
		if buf == nil {
			buf = new([]byte)
		}
		*buf = append((*buf)[:0], raw...)
		slot := make(chan frame, 1)
		select {
		case q.slots <- slot:
		case <-q.ctx.Done():
			return context.Cause(q.ctx)
		}
		work.Go(func() {
			slot <- frame{off, int64(len(*buf)), enc.EncodeAll(*buf, nil)}
			q.free.Put(buf)
		})
		return nil
	})
	if err != nil {
		q.cancel(err)
	}
	close(q.slots)
	work.Wait()
	written.Wait()
	if err == nil && q.ctx.Err() != nil {
		err = context.Cause(q.ctx)
	}
	return err
}
