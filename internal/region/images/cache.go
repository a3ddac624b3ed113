package images

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/watchdog"
)

// Config of a Cache. Zero values are replaced by the defaults named.
type Config struct {
	Dir      string        // made if missing
	MaxBytes int64         // of all files; 64 GiB. A larger blob is refused
	Idle     time.Duration // a transfer that moves less than 64 KiB in it is broken off; 30 s
	Retry    time.Duration // first pause after a failure, doubled each time; 500 ms
	Parallel int           // transfers of large blobs at once, and of small ones beside them; 4
}

const (
	maxFailures    = 5                  // in a row, without 64 KiB of progress between them
	keepPartial    = 7 * 24 * time.Hour // of a blob nobody asked for again
	partialSuffix  = ".partial"
	copyBufferSize = 128 << 10
	// smallBytes is the most that a blob has which waits for no large one: what a
	// machine boots from, and manifests.
	smallBytes = 64 << 20
	// verifying is how many large files are read for their digests at once.
	verifying = 2
)

// Cache holds blobs in a directory. Use New; end it with Close.
type Cache struct {
	cfg    Config
	source Source
	log    *slog.Logger
	root   *os.Root
	ctx    context.Context // of all transfers; ended by Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	small, large, reading chan struct{} // places for transfers, and for reading large files

	mu      sync.Mutex // guards what follows
	closed  bool
	entries map[string]*entry // whole blobs
	partial map[string]int64  // sizes of beginnings
	jobs    map[string]*job   // by digest
}

// entry is a whole blob on the disk.
type entry struct {
	size     int64
	used     time.Time
	readers  int
	verified bool // its digest was found right in this process
}

// job makes one blob ready for all who wait for it.
type job struct {
	done  chan struct{} // closed when err is set
	err   error
	bytes atomic.Int64
	total atomic.Int64 // -1 while it is not known

	places chan struct{} // among which the job has one while it fetches; its own

	mu   sync.Mutex
	more chan struct{} // closed, and another in its place, when more of the blob can be read
}

func newJob() *job {
	j := &job{done: make(chan struct{}), more: make(chan struct{})}
	j.total.Store(-1)
	return j
}

// grown is closed when more can be read than at the time of the call.
func (j *job) grown() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.more
}

func (j *job) grow() {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.more)
	j.more = make(chan struct{})
}

// New opens the cache in cfg.Dir with what an earlier process left there.
func New(cfg Config, source Source, log *slog.Logger) (*Cache, error) {
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 64 << 30
	}
	if cfg.Idle <= 0 {
		cfg.Idle = 30 * time.Second
	}
	if cfg.Retry <= 0 {
		cfg.Retry = 500 * time.Millisecond
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 4
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open image cache: %w", err)
	}
	root, err := os.OpenRoot(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open image cache: %w", err)
	}
	c := &Cache{
		cfg: cfg, source: source, log: log, root: root,
		small: make(chan struct{}, cfg.Parallel), large: make(chan struct{}, cfg.Parallel), reading: make(chan struct{}, verifying),
		entries: map[string]*entry{}, partial: map[string]int64{}, jobs: map[string]*job{},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if err := c.scan(); err != nil {
		root.Close()
		return nil, fmt.Errorf("open image cache: %w", err)
	}
	return c, nil
}

// scan takes stock. Files of other names are left alone.
func (c *Cache) scan() error {
	files, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		digest, isPartial := strings.CutSuffix(f.Name(), partialSuffix)
		switch {
		case !lpmos.ValidDigest(digest):
		case !isPartial:
			c.entries[digest] = &entry{size: info.Size(), used: info.ModTime()}
		case time.Since(info.ModTime()) > keepPartial:
			c.root.Remove(f.Name())
		default:
			c.partial[digest] = info.Size()
		}
	}
	return nil
}

// Close breaks off all transfers and waits for them. Open blobs stay readable.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	return c.root.Close()
}

// Open gives a blob and its size in bytes, after fetching it if need be. Errors
// wrap lpmos.ErrNotFound when the source has none, lpmos.ErrUnavailable when it
// could not be had; when ctx ends the transfer goes on for the next who asks.
// The caller closes the reader; until then the blob is not removed.
func (c *Cache) Open(ctx context.Context, digest string) (io.ReadSeekCloser, int64, error) {
	return c.await(ctx, digest, false)
}

// Follow is Open for those who compare the digests of parts themselves: it does
// not wait for the end of a transfer. What is read is not verified then, the size
// is what the source says, and reading waits for what is still on its way. A
// reader keeps what it reads, even if it is removed from the cache meanwhile.
func (c *Cache) Follow(ctx context.Context, digest string) (io.ReadSeekCloser, int64, error) {
	return c.await(ctx, digest, true)
}

func (c *Cache) await(ctx context.Context, digest string, early bool) (io.ReadSeekCloser, int64, error) {
	if !lpmos.ValidDigest(digest) {
		return nil, 0, fmt.Errorf("open blob: %w", lpmos.ErrNotFound)
	}
	for {
		f, size, j, err := c.open(digest)
		if err != nil || j == nil {
			return f, size, err
		}
		for waiting := true; waiting; {
			var more <-chan struct{}
			if early {
				more = j.grown()
				if size := j.total.Load(); size >= 0 {
					// A transfer that has just ended has taken the name away.
					if f, err := c.root.Open(digest + partialSuffix); err == nil {
						return &follower{ctx: ctx, file: f, job: j, size: size}, size, nil
					}
				}
			}
			select {
			case <-more:
			case <-j.done:
				if j.err != nil {
					return nil, 0, j.err
				}
				waiting = false
			case <-ctx.Done():
				return nil, 0, ctx.Err()
			}
		}
	}
}

// open returns a verified blob or, when there is none, the job that makes it.
func (c *Cache) open(digest string) (io.ReadSeekCloser, int64, *job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, 0, nil, fmt.Errorf("open blob: %w: the image cache is closed", lpmos.ErrUnavailable)
	}
	if e := c.entries[digest]; e != nil && e.verified {
		f, size, err := openIn(c.root, digest)
		if err == nil && size == e.size {
			e.used = time.Now()
			_ = c.root.Chtimes(digest, e.used, e.used) // so that the next process knows, too
			e.readers++
			return &reader{File: f, c: c, e: e}, size, nil, nil
		}
		if err == nil {
			f.Close()
		}
		delete(c.entries, digest) // somebody removed or cut the file
	}
	j := c.jobs[digest]
	if j == nil {
		j = newJob()
		c.jobs[digest] = j
		c.work.Go(func() { c.run(digest, j) })
	}
	return nil, 0, j, nil
}

// follower reads a blob while it is fetched.
type follower struct {
	ctx  context.Context // of the request that it is for
	file *os.File
	job  *job
	size int64
	at   int64
}

func (r *follower) Read(p []byte) (int, error) {
	for {
		more := r.job.grown()
		have := min(r.job.bytes.Load(), r.size)
		if r.at >= r.size {
			return 0, io.EOF
		}
		if r.at < have {
			n, err := r.file.ReadAt(p[:min(int64(len(p)), have-r.at)], r.at)
			if r.at += int64(n); n > 0 || err != io.EOF {
				return n, err
			}
			// It was wrong, and begins anew.
		}
		select {
		case <-more:
		case <-r.job.done:
			if r.job.err != nil {
				return 0, r.job.err
			}
			if r.job.bytes.Load() <= r.at {
				return 0, io.ErrUnexpectedEOF // the source said more
			}
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}

// Seek does not wait.
func (r *follower) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to byte %d", offset)
	}
	r.at = offset
	return offset, nil
}

func (r *follower) Close() error { return r.file.Close() }

// Stock says what the cache holds.
func (c *Cache) Stock() lpmos.Stock {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := lpmos.Stock{Files: len(c.entries), MaxBytes: c.cfg.MaxBytes}
	for _, e := range c.entries {
		s.Bytes += e.size
	}
	s.Digests = slices.SortedFunc(maps.Keys(c.entries), func(a, b string) int {
		return cmp.Or(c.entries[b].used.Compare(c.entries[a].used), strings.Compare(a, b))
	})
	s.Digests = s.Digests[:min(len(s.Digests), lpmos.MaxStockDigests)]
	slices.Sort(s.Digests)
	return s
}

// Progress says how much of a blob that is being fetched is there. Total is -1
// while it is not known; ok is false when the blob is not being fetched.
func (c *Cache) Progress(digest string) (bytes, total int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[digest]
	if j == nil {
		return 0, 0, false
	}
	return j.bytes.Load(), j.total.Load(), true
}

// reader is an open blob.
type reader struct {
	*os.File
	c    *Cache
	e    *entry
	once sync.Once
}

// Close lets the blob be removed again.
func (r *reader) Close() error {
	r.once.Do(func() {
		r.c.mu.Lock()
		r.e.readers--
		r.c.mu.Unlock()
	})
	return r.File.Close()
}

// run does a job and tells those who wait.
func (c *Cache) run(digest string, j *job) {
	began := time.Now()
	err := c.ensure(digest, j)
	switch {
	case err == nil:
		c.log.Info("blob ready", "file", digest, "bytes", j.bytes.Load(), "took", time.Since(began).Round(time.Millisecond))
	case errors.Is(err, lpmos.ErrNotFound):
		c.log.Warn("blob unknown to the control plane", "file", digest)
	case c.ctx.Err() != nil:
		err = fmt.Errorf("fetch blob %s: %w: this region is shutting down", digest, lpmos.ErrUnavailable)
	default:
		c.log.Error("blob not fetched", "file", digest, "err", err)
	}
	c.mu.Lock()
	delete(c.jobs, digest)
	j.err = err
	c.mu.Unlock()
	close(j.done)
}

// ensure makes a blob present and verified.
func (c *Cache) ensure(digest string, j *job) error {
	c.mu.Lock()
	e, begun := c.entries[digest], c.partial[digest]
	c.mu.Unlock()
	if e != nil {
		// Left by an earlier process: read once before it is trusted.
		sum, err := c.hashFile(digest, j)
		if err != nil {
			return err
		}
		if c.settle(digest, e, sum == digest) {
			return nil
		}
		c.log.Warn("blob damaged on this region's disk", "file", digest)
	}
	j.places = c.small
	if begun > smallBytes {
		j.places = c.large
	}
	err := c.fetch(digest, j)
	if errors.Is(err, errLarge) {
		j.places = c.large
		err = c.fetch(digest, j)
	}
	return err
}

// settle trusts an entry from now on, or removes it.
func (c *Cache) settle(digest string, e *entry, good bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.verified = good
	if !good {
		c.root.Remove(digest)
		delete(c.entries, digest)
	}
	return good
}

func (c *Cache) hashFile(name string, j *job) (string, error) {
	f, err := c.root.Open(name)
	if err != nil {
		return "", fmt.Errorf("verify blob: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if err := c.hash(h, f, j); err != nil {
		return "", fmt.Errorf("verify blob %s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// take waits for one of the places, which the caller gives back.
func (c *Cache) take(places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// hash reads what is on the disk of a blob, counts it, and ends when the cache
// closes.
func (c *Cache) hash(h hash.Hash, f *os.File, j *job) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > smallBytes {
		if err := c.take(c.reading); err != nil {
			return err
		}
		defer func() { <-c.reading }()
	}
	buf := make([]byte, copyBufferSize)
	for c.ctx.Err() == nil {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		j.bytes.Add(int64(n))
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
	return c.ctx.Err()
}

// fetch brings a blob in, over as many connections as it takes.
func (c *Cache) fetch(digest string, j *job) error {
	fail := func(err error) error {
		if errors.Is(err, lpmos.ErrNotFound) {
			c.discard(digest)
			return fmt.Errorf("fetch blob %s: %w", digest, lpmos.ErrNotFound)
		}
		return fmt.Errorf("fetch blob %s: %w: %w", digest, lpmos.ErrUnavailable, err)
	}
	if err := c.take(j.places); err != nil {
		return err
	}
	defer func() { <-j.places }()
	f, err := c.root.OpenFile(digest+partialSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	j.bytes.Store(0)
	h := sha256.New()
	if err := c.hash(h, f, j); err != nil { // what an earlier attempt left
		return fail(err)
	}
	pause := c.cfg.Retry
	for failures, restarts := 0, 0; ; {
		before := j.bytes.Load()
		err := c.transfer(digest, f, h, j)
		if err == nil {
			if hex.EncodeToString(h.Sum(nil)) == digest {
				if err := c.finish(digest, f, j.bytes.Load()); err != nil {
					return fail(err)
				}
				return nil
			}
			err = errors.New("the content has another digest")
		}
		switch {
		case c.ctx.Err() != nil:
			c.noteSize(digest, j.bytes.Load())
			return c.ctx.Err()
		case errors.Is(err, errLarge):
			c.noteSize(digest, j.bytes.Load())
			return err
		case errors.Is(err, lpmos.ErrNotFound), errors.Is(err, errPermanent):
			c.noteSize(digest, j.bytes.Load())
			return fail(err)
		case !errors.Is(err, errBroken):
			// What is there is wrong: once more from the beginning.
			if restarts++; restarts > 1 {
				c.discard(digest)
				return fail(err)
			}
			if err := rewind(f, h, j); err != nil {
				return fail(err)
			}
		}
		if j.bytes.Load()-before >= watchdog.Least {
			failures, pause = 0, c.cfg.Retry
		}
		if failures++; failures >= maxFailures {
			c.noteSize(digest, j.bytes.Load())
			return fail(err)
		}
		c.log.Warn("blob transfer broken, will go on", "file", digest, "bytes", j.bytes.Load(), "err", err)
		select {
		case <-time.After(pause):
		case <-c.ctx.Done():
		}
		pause *= 2
	}
}

var (
	// errBroken is wrapped by errors of a transfer that may be resumed.
	errBroken = errors.New("transfer broken")
	// errLarge means that a blob which has the place of a small one turned out to be
	// large, and that there was no place for it.
	errLarge = errors.New("no place for a large blob")
)

// transfer takes one connection's worth. nil means that the source says this
// is all.
func (c *Cache) transfer(digest string, f *os.File, h hash.Hash, j *job) error {
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	var moved atomic.Int64
	stop := watchdog.Watch(c.cfg.Idle, &moved, func() {
		cancel(fmt.Errorf("less than 64 KiB in %v", c.cfg.Idle))
	})
	defer stop()
	offset := j.bytes.Load()
	body, at, size, err := c.source.Fetch(ctx, digest, offset)
	switch {
	case errors.Is(err, lpmos.ErrNotFound), errors.Is(err, errPermanent), errors.Is(err, errOffset):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errBroken, errors.Join(err, context.Cause(ctx)))
	}
	defer body.Close()
	if size >= 0 {
		j.total.Store(size)
		j.grow()
		if size < offset {
			return errOffset
		}
	}
	if err := c.makeRoom(digest, max(size, offset)); err != nil {
		return err
	}
	buf := make([]byte, copyBufferSize)
	for {
		if j.places == c.small && max(size, j.bytes.Load()) > smallBytes {
			select {
			case c.large <- struct{}{}:
				<-j.places
				j.places = c.large
			default:
				return errLarge
			}
		}
		n, err := body.Read(buf)
		moved.Add(int64(n))
		again := min(int64(n), offset-at) // what comes of what is there
		at += again
		if b := buf[again:n]; len(b) > 0 {
			have := j.bytes.Load() + int64(len(b))
			if size >= 0 && have > size || have > c.cfg.MaxBytes {
				return fmt.Errorf("more than the %s that were announced or fit in the cache", lpmos.FormatBytes(max(size, 0)))
			}
			if _, werr := f.Write(b); werr != nil {
				return fmt.Errorf("%w: %w", errPermanent, werr)
			}
			h.Write(b)
			j.bytes.Store(have)
			j.grow()
		}
		switch {
		case err == io.EOF && size >= 0 && j.bytes.Load() < size:
			return fmt.Errorf("%w: it ended at byte %d of %d", errBroken, j.bytes.Load(), size)
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", errBroken, errors.Join(err, context.Cause(ctx)))
		}
	}
}

func rewind(f *os.File, h hash.Hash, j *job) error {
	h.Reset()
	j.bytes.Store(0)
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// finish gives a verified blob its name, after its content is on the disk.
func (c *Cache) finish(digest string, f *os.File, size int64) error {
	if err := f.Sync(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.root.Rename(digest+partialSuffix, digest); err != nil {
		return err
	}
	delete(c.partial, digest)
	c.entries[digest] = &entry{size: size, used: time.Now(), verified: true}
	d, err := os.Open(c.cfg.Dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (c *Cache) noteSize(digest string, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.partial[digest] = size
}

func (c *Cache) discard(digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.root.Remove(digest + partialSuffix)
	delete(c.partial, digest)
}

// makeRoom removes what is least worth keeping until size more bytes fit:
// beginnings that nobody waits for, then whole blobs by last use. Blobs that
// are being read stay, even if that means going over the limit.
func (c *Cache) makeRoom(digest string, size int64) error {
	if size > c.cfg.MaxBytes {
		return fmt.Errorf("%w: the blob has %s, the cache holds %s (enlarge it)", errPermanent, lpmos.FormatBytes(size), lpmos.FormatBytes(c.cfg.MaxBytes))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.partial[digest] = max(size, 0)
	for {
		var total int64
		var oldest string
		for d, n := range c.partial {
			total += n
			if c.jobs[d] == nil {
				oldest = d + partialSuffix
			}
		}
		for _, e := range c.entries {
			total += e.size
		}
		if total <= c.cfg.MaxBytes {
			return nil
		}
		if oldest == "" {
			for d, e := range c.entries {
				if e.readers == 0 && c.jobs[d] == nil && (oldest == "" || e.used.Before(c.entries[oldest].used)) {
					oldest = d
				}
			}
		}
		if oldest == "" {
			c.log.Warn("image cache over its limit, all of it is in use", "bytes", total)
			return nil
		}
		if err := c.root.Remove(oldest); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %w", errPermanent, err)
		}
		c.log.Info("blob removed to make room", "file", oldest)
		d, isPartial := strings.CutSuffix(oldest, partialSuffix)
		if isPartial {
			delete(c.partial, d)
		} else {
			delete(c.entries, d)
		}
	}
}
