package install

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/watchdog"
)

// Copier fetches the chunks of an image, verifies and decodes them. Fetching,
// hashing (several chunks at once), feeding the decoder, and writing what it gives
// run beside each other with a few chunks or a pipe between them, so that the
// slowest of network, processors and disk sets the pace, and memory is bounded by
// some chunks of at most lpmos.MaxChunkBytes.
//
// What is decoded has been verified. The decoder is one process for all
// chunks; a pack is a row of independent zstd frames, so its output is exactly
// the chunks one behind the other.
type Copier struct {
	Blobs    Blobs
	Decode   Decoder                 // nil: chunks are verified and thrown away
	Stall    time.Duration           // how long no chunk may arrive
	Progress func(stored, raw int64) // bytes fetched and written so far; one call at a time; may be nil
	Log      *slog.Logger
}

// ahead is how many stored chunks wait for the decoder, or for their digests.
const ahead = 3

// arrived is a chunk that is being hashed.
type arrived struct {
	bytes  []byte
	digest <-chan [sha256.Size]byte // gets one
}

// pieceBytes is how much is taken from the decoder at once and written: more makes
// a disk no quicker.
const pieceBytes = 1 << 20

// rangeBytes bounds one request. Chunks follow each other in the pack, so one
// request serves many: a request for each would cost a round trip for each.
const rangeBytes = 256 << 20

// Copy hands every chunk of m to write, in order and in pieces, of which each
// begins at byte at of its chunk, and in memory that DiskWriter can write past the
// cache. write must not keep piece. An error of the image is a *Failure.
func (c *Copier) Copy(ctx context.Context, m *lpmos.ImageManifest, write func(i int, chunk lpmos.Chunk, at int64, piece []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stored := make(chan arrived, ahead)
	var wg sync.WaitGroup
	defer wg.Wait()
	run := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				cancel(err) // the first error is the cause; those that follow from it are not
			}
		})
	}
	largestStored, largestRaw := sizes(m)
	var mu sync.Mutex // guards what follows
	var nStored, nRaw int64
	progress := func(s, r int64) {
		mu.Lock()
		defer mu.Unlock()
		nStored, nRaw = nStored+s, nRaw+r
		if c.Progress != nil {
			c.Progress(nStored, nRaw)
		}
	}

	free := make(chan []byte, ahead+2)
	for range cap(free) {
		free <- nil // allocated when first used
	}
	var wary atomic.Bool
	run(func() error {
		f := fetcher{Copier: c, m: m, wary: &wary}
		defer f.close()
		for i, chunk := range m.Chunks {
			buf, ok := receive(ctx, free)
			if !ok {
				return nil
			}
			if buf == nil {
				buf = make([]byte, largestStored)
			}
			b, digest := buf[:chunk.StoredBytes], make(chan [sha256.Size]byte, 1)
			if err := f.chunk(ctx, i, b); err != nil {
				return err
			}
			wg.Go(func() { digest <- sha256.Sum256(b) })
			if !send(ctx, stored, arrived{b, digest}) {
				return nil
			}
		}
		close(stored)
		return nil
	})
	// verified hands every chunk to use, in order, when it is right. A chunk that
	// comes again and again must not reset the clock of stalls, so only those count
	// as progress.
	verified := func(use func(chunk lpmos.Chunk, b []byte) error) error {
		again := fetcher{Copier: c, m: m, wary: &wary}
		defer again.close()
		for i, chunk := range m.Chunks {
			a, ok := receive(ctx, stored)
			if !ok {
				return nil
			}
			if err := again.verify(ctx, i, a); err != nil {
				return err
			}
			progress(chunk.StoredBytes, 0)
			if err := use(chunk, a.bytes); err != nil {
				return err
			}
			free <- a.bytes[:cap(a.bytes)]
		}
		return nil
	}

	if c.Decode == nil {
		run(func() error {
			return verified(func(chunk lpmos.Chunk, _ []byte) error {
				progress(0, chunk.Bytes)
				return nil
			})
		})
		wg.Wait()
		return context.Cause(ctx)
	}

	dec, err := c.Decode.Start(ctx)
	if err != nil {
		cancel(err)
		return context.Cause(ctx)
	}
	run(func() error { // feed
		err := verified(func(_ lpmos.Chunk, b []byte) error {
			if _, err := dec.In.Write(b); err != nil {
				return dec.failed(ctx, err)
			}
			return nil
		})
		if err == nil {
			// After an error the end of the context closes it: an end that comes
			// before its cause would look like that of an image which is too short.
			dec.In.Close()
		}
		return err
	})
	run(func() error { // take what comes out, and write it
		buf := pages(min(largestRaw, pieceBytes))
		for i, chunk := range m.Chunks {
			for at := int64(0); at < chunk.Bytes; {
				piece := buf[:min(int64(len(buf)), chunk.Bytes-at)]
				if n, err := io.ReadFull(dec.Out, piece); err != nil {
					return dec.failed(ctx, corrupt("chunk %d decodes to %d bytes instead of %d", i, at+int64(n), chunk.Bytes))
				}
				if err := write(i, chunk, at, piece); err != nil {
					return err
				}
				at += int64(len(piece))
				progress(0, int64(len(piece)))
			}
		}
		if n, _ := io.ReadFull(dec.Out, make([]byte, 1)); n > 0 {
			return corrupt("its chunks decode to more than the %d bytes of the manifest", m.UsedBytes)
		}
		if err := dec.Wait(); err != nil && ctx.Err() == nil {
			return corrupt("it cannot be decoded: %v", err)
		}
		return nil
	})
	wg.Wait()
	// Every goroutine closed the next one's channel without an error, or there
	// is a cause.
	if err := context.Cause(ctx); err != nil {
		_ = dec.Wait() // what it says follows from the cancellation
		return err
	}
	return nil
}

func sizes(m *lpmos.ImageManifest) (stored, raw int64) {
	for _, c := range m.Chunks {
		stored, raw = max(stored, c.StoredBytes), max(raw, c.Bytes)
	}
	return stored, raw
}

func send[T any](ctx context.Context, ch chan<- T, v T) bool {
	select {
	case ch <- v:
		return true
	case <-ctx.Done():
		return false
	}
}

func receive[T any](ctx context.Context, ch <-chan T) (T, bool) {
	select {
	case v, ok := <-ch:
		return v, ok
	case <-ctx.Done():
		var zero T
		return zero, false
	}
}

// fetcher reads chunks one behind the other from as few requests as possible.
type fetcher struct {
	*Copier
	m     *lpmos.ImageManifest
	wary  *atomic.Bool // something was wrong: from then on only what the region has verified
	body  *agentapi.BlobReader
	early bool  // body may have what the region has not verified
	at    int64 // where in the pack body stands
	end   int64 // where body ends
}

// verify waits for the digest of chunk i, and checks that it is as the manifest
// says. Wrong content is fetched once more, and then not before the region has all
// of the pack and has verified it.
func (f *fetcher) verify(ctx context.Context, i int, a arrived) error {
	c := f.m.Chunks[i]
	sum, ok := receive(ctx, a.digest)
	if !ok {
		return context.Cause(ctx)
	}
	if hex.EncodeToString(sum[:]) == c.SHA256 {
		f.close() // what it still has is not wanted
	} else {
		f.Log.Warn("chunk has the wrong digest, fetching it again", "chunk", i)
		f.wary.Store(true)
		if err := f.chunk(ctx, i, a.bytes); err != nil {
			return err
		}
		if sum := sha256.Sum256(a.bytes); hex.EncodeToString(sum[:]) != c.SHA256 {
			return corrupt("chunk %d (bytes %d to %d of the pack) has another digest than the manifest says, on two tries", i, c.StoredOffset, c.StoredOffset+c.StoredBytes)
		}
	}
	if n, ok := frameContentSize(a.bytes); ok && n != uint64(c.Bytes) {
		return corrupt("chunk %d holds %d bytes and the manifest says %d", i, n, c.Bytes)
	}
	return nil
}

// chunk reads chunk i into b, which is as long, and tries again, whatever the
// network spoils, until nothing has come for Stall.
func (f *fetcher) chunk(ctx context.Context, i int, b []byte) error {
	return persist(ctx, f.Stall, func(bounded context.Context) error {
		err := f.read(ctx, bounded, f.m.Chunks[i], b)
		if err != nil {
			f.close()
			if _, ok := errors.AsType[*Failure](err); !ok && ctx.Err() == nil {
				f.Log.Warn("chunk not read, trying on", "chunk", i, "err", err)
			}
		}
		return err
	})
}

// read reads a chunk until bounded ends; the request, which serves those that follow
// too, lasts as long as ctx.
func (f *fetcher) read(ctx, bounded context.Context, c lpmos.Chunk, b []byte) error {
	if f.body == nil || f.at != c.StoredOffset || f.at+int64(len(b)) > f.end || f.early && f.wary.Load() {
		f.close()
		n := min(max(rangeBytes, c.StoredBytes), f.m.Pack.Bytes-c.StoredOffset)
		f.early = !f.wary.Load()
		body, err := f.Blobs.Open(ctx, f.m.Pack.SHA256, agentapi.Part{Offset: c.StoredOffset, Length: n, Early: f.early})
		if err != nil {
			if s, ok := errors.AsType[*agentapi.StatusError](err); ok && s.Code == http.StatusRequestedRangeNotSatisfiable {
				return f.doubt(corrupt("its pack ends before byte %d", c.StoredOffset))
			}
			return missingIf404(err, "pack", "sha256:"+f.m.Pack.SHA256)
		}
		f.body, f.at, f.end = body, c.StoredOffset, c.StoredOffset+n
		if body.Total >= 0 && body.Total != f.m.Pack.Bytes {
			return f.doubt(corrupt("its pack has %d bytes and the manifest says %d", body.Total, f.m.Pack.Bytes))
		}
	}
	n, err := io.ReadFull(watchdog.Reader(bounded, f.body), b)
	f.at += int64(n)
	if err != nil {
		return fmt.Errorf("read chunk after %d of %d bytes: %w", n, len(b), err)
	}
	return nil
}

// doubt is what is wrong with a pack, as an error after which it is asked for again
// if it came early: what a region passes on before it has verified it may be wrong
// without the image being so.
func (f *fetcher) doubt(wrong error) error {
	if !f.early {
		return wrong
	}
	f.wary.Store(true)
	return errors.New(wrong.Error())
}

func (f *fetcher) close() {
	if f.body != nil {
		f.body.Close()
		f.body = nil
	}
}

// frameContentSize is the size a zstd frame announces (RFC 8878, 3.1.1.1), if it
// does. A frame that lies is found by the decoder, or by the length of its
// output; this finds the honest bomb before it is decoded and names the chunk.
func frameContentSize(b []byte) (uint64, bool) {
	if len(b) < 6 || binary.LittleEndian.Uint32(b) != 0xFD2FB528 {
		return 0, false
	}
	d := b[4]
	single := d>>5&1 == 1
	at := 5 + []int{0, 1, 2, 4}[d&3]
	if !single {
		at++ // window descriptor
	}
	size := []int{0, 2, 4, 8}[d>>6]
	if size == 0 && single {
		size = 1
	}
	if size == 0 || len(b) < at+size {
		return 0, false
	}
	var v [8]byte
	copy(v[:], b[at:at+size])
	n := binary.LittleEndian.Uint64(v[:])
	if size == 2 {
		n += 256
	}
	return n, true
}
