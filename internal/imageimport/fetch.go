package imageimport

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/httprange"
	"github.com/lpmos/lpmos/internal/watchdog"
)

// Limits bound an import. Zero values are replaced by the defaults named.
type Limits struct {
	Bytes     int64         // of what is fetched; 64 GiB
	Unpacked  int64         // of what it unpacks to, and of a qcow2's disk; 256 GiB
	Ratio     int64         // of unpacked to fetched, beyond the first GiB; 1000
	Idle      time.Duration // in which at least 64 KiB must come; 1 min
	Total     time.Duration // of the whole import; 6 h
	Retries   int           // of a broken transfer without progress; 5
	RetryWait time.Duration // before the first of them, doubled each time; 1 s
}

func (l *Limits) defaults() {
	set := func(p *int64, v int64) {
		if *p <= 0 {
			*p = v
		}
	}
	set(&l.Bytes, 64<<30)
	set(&l.Unpacked, 256<<30)
	set(&l.Ratio, 1000)
	set((*int64)(&l.Idle), int64(time.Minute))
	set((*int64)(&l.Total), int64(6*time.Hour))
	set((*int64)(&l.RetryWait), int64(time.Second))
	if l.Retries <= 0 {
		l.Retries = 5
	}
}

// Progress is told how far a step is: "downloading", "verifying", "unpacking",
// "packing". total is 0 when it is not known. It is called from one goroutine
// at a time, often, and must not block.
type Progress func(step string, done, total int64)

// fetcher brings files in over the network.
type fetcher struct {
	guard    Guard
	limits   Limits
	client   *http.Client
	progress Progress
}

func newFetcher(g Guard, l Limits, p Progress) *fetcher {
	return &fetcher{g, l, g.client(l.Idle), p}
}

// partialNote is kept beside a beginning, so that it is only continued by the
// same file of the same address.
type partialNote struct {
	URL       string `json:"url"`
	Validator string `json:"validator"` // a strong ETag or Last-Modified
	Total     int64  `json:"total"`     // -1 when it is not known
}

// file fetches u into a file below dir and returns its path. A beginning that
// an earlier call left is continued when the server still has the same file.
func (f *fetcher) file(ctx context.Context, u *url.URL, dir string) (string, error) {
	name := filepath.Join(dir, "fetch-"+key(u.String()))
	note := partialNote{Total: -1}
	if b, err := os.ReadFile(name + ".json"); err == nil {
		if json.Unmarshal(b, &note) != nil || note.URL != u.String() {
			note = partialNote{Total: -1}
		}
	}
	out, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer out.Close()
	have, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	if note.Validator == "" {
		have = 0
	}
	wait := f.limits.RetryWait
	for failures := 0; ; {
		before := have
		over, err := f.once(ctx, u, name, out, &note, &have)
		if over {
			return name, out.Sync()
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if !retryable(err) {
			return "", fmt.Errorf("fetch %s: %w", shown(u), unwrapped(err))
		}
		if have-before >= watchdog.Least {
			failures, wait = 0, f.limits.RetryWait
		}
		if failures++; failures > f.limits.Retries {
			return "", fmt.Errorf("fetch %s: %w (what has come is kept: the same command goes on from there)", shown(u), unwrapped(err))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
		wait *= 2
	}
}

// permanent is an answer that asking again does not change.
type permanent struct{ error }

func retryable(err error) bool {
	if _, ok := errors.AsType[permanent](err); ok {
		return false
	}
	if _, ok := errors.AsType[*refusedError](err); ok {
		return false
	}
	return true
}

// unwrapped takes the address off an error of net/http: it may hold a secret.
func unwrapped(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// once takes one connection's worth. over means that the file is whole.
func (f *fetcher) once(ctx context.Context, u *url.URL, name string, out *os.File, note *partialNote, have *int64) (over bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var moved atomic.Int64
	stop := watchdog.Watch(f.limits.Idle, &moved, func() {
		cancel(fmt.Errorf("less than 64 KiB came in %v", f.limits.Idle))
	})
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return false, permanent{err}
	}
	if *have > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(*have, 10)+"-")
		req.Header.Set("If-Range", note.Validator)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return false, caused(ctx, err)
	}
	defer resp.Body.Close()
	total, err := f.answer(resp, note, have)
	if err != nil {
		return err == errWhole, err
	}
	note.URL, note.Validator, note.Total = u.String(), validator(resp.Header), total
	b, err := json.Marshal(note)
	if err == nil {
		err = os.WriteFile(name+".json", b, 0o600)
	}
	if err == nil {
		err = out.Truncate(*have)
	}
	if err == nil {
		_, err = out.Seek(*have, io.SeekStart)
	}
	if err != nil {
		return false, permanent{err}
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			moved.Add(int64(n))
			if *have+int64(n) > f.limits.Bytes || total >= 0 && *have+int64(n) > total {
				return false, permanent{fmt.Errorf("more bytes come than the %s that were announced or are allowed", lpmos.FormatBytes(min(f.limits.Bytes, max(total, 0))))}
			}
			if _, err := out.Write(buf[:n]); err != nil {
				return false, permanent{err}
			}
			*have += int64(n)
			f.progress("downloading", *have, max(total, 0))
		}
		switch {
		case err == io.EOF && total >= 0 && *have < total:
			return false, fmt.Errorf("the transfer ended at byte %d of %d", *have, total)
		case err == io.EOF:
			return true, nil
		case err != nil:
			return false, caused(ctx, err)
		}
	}
}

func caused(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// errWhole means that the server has no more than what is here.
var errWhole = errors.New("the file is whole")

// answer judges a response and gives the file's whole length, -1 if it is not
// told.
func (f *fetcher) answer(resp *http.Response, note *partialNote, have *int64) (total int64, err error) {
	same := note.Validator != "" && validator(resp.Header) == note.Validator
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		from, of, ok := httprange.Content(resp.Header.Get("Content-Range"))
		if !ok || from != *have || note.Total >= 0 && of >= 0 && of != note.Total {
			*have = 0
			return 0, errors.New("the server continues at another place than was asked for")
		}
		total = of
	case resp.StatusCode == http.StatusOK && same && resp.ContentLength == *have:
		return 0, errWhole
	case resp.StatusCode == http.StatusOK:
		*have, total = 0, resp.ContentLength
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		// A server that has another file by now would have sent it (If-Range).
		of := resp.Header.Get("Content-Range")
		if (same || validator(resp.Header) == "") && (of == fmt.Sprintf("bytes */%d", *have) || of == "" && note.Total == *have) {
			return 0, errWhole
		}
		*have = 0
		return 0, errors.New("the file became shorter than what is here")
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout:
		return 0, fmt.Errorf("the server answers %s", resp.Status)
	default:
		return 0, permanent{fmt.Errorf("the server answers %s", resp.Status)}
	}
	if ct := resp.Header.Get("Content-Type"); strings.HasPrefix(ct, "text/html") {
		return 0, permanent{errors.New("a web page comes instead of a file (is the address that of a page about it?)")}
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return 0, permanent{fmt.Errorf("the server sends it encoded (%q), which was not asked for", lpmos.Shorten(e, 20))}
	}
	if total > f.limits.Bytes {
		return 0, permanent{fmt.Errorf("the file has %s, more than the %s allowed", lpmos.FormatBytes(total), lpmos.FormatBytes(f.limits.Bytes))}
	}
	return total, nil
}

// validator is what says that a file is still the same: a strong ETag, else a
// date of change.
func validator(h http.Header) string {
	if e := h.Get("ETag"); strings.HasPrefix(e, `"`) {
		return e
	}
	return h.Get("Last-Modified")
}

// small fetches a short text, such as a list of checksums.
func (f *fetcher) small(ctx context.Context, u *url.URL, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*f.limits.Idle, fmt.Errorf("it did not come in %v", 2*f.limits.Idle))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", shown(u), unwrapped(caused(ctx, err)))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch %s: the server answers %s", shown(u), resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", shown(u), caused(ctx, err))
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("fetch %s: it is longer than %s", shown(u), lpmos.FormatBytes(limit))
	}
	return b, nil
}

// key is a short name for a text.
func key(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
