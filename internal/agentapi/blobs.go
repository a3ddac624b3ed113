package agentapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/httprange"
	"github.com/lpmos/lpmos/internal/watchdog"
)

// Blobs reads content by its digest from the boot listener. That is plain HTTP:
// whoever reads must compare digests, and nothing of this type does. It never
// repeats a request; what a failed read means is the caller's to say.
type Blobs struct {
	base string
	idle time.Duration
	http *http.Client
}

// HeaderEarly, whatever its value, asks a region for what it has of a blob that
// it is still fetching (Part.Early).
const HeaderEarly = "Lpmos-Early"

// Part is what of a blob is asked for.
type Part struct {
	Offset int64
	Length int64 // negative: all from Offset on
	// Early takes bytes that the region has not verified yet, because the blob is
	// still on its way to it. It is for who knows the digests of parts.
	Early bool
}

// ErrIdle is wrapped by errors about a server that sent too little for too long.
var ErrIdle = errors.New("nothing, or next to nothing, arrived for too long")

// NewBlobs makes a reader for a BootConfig.BootURL. idle is the longest that a
// server may take to answer, and then for every 64 KiB; 0 is 30 s.
func NewBlobs(bootURL string, idle time.Duration) (*Blobs, error) {
	u, err := url.Parse(bootURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, &lpmos.InvalidError{Field: "boot_url", Problem: "is not an http address", Value: bootURL}
	}
	setDefault(&idle, 30*time.Second)
	return &Blobs{base: strings.TrimSuffix(u.Scheme+"://"+u.Host+u.Path, "/"), idle: idle, http: &http.Client{
		CheckRedirect: noRedirect,
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSHandshakeTimeout: 10 * time.Second,
			IdleConnTimeout:     60 * time.Second,
			DisableCompression:  true,
			ReadBufferSize:      256 << 10,
		},
	}}, nil
}

// BlobReader is a stretch of a blob. It must be closed.
type BlobReader struct {
	Total int64 // size of the whole blob as the server has it, −1 when it did not say

	body   io.ReadCloser
	idle   time.Duration
	timer  *time.Timer
	left   time.Duration // of idle, to wait for the rest of watchdog.Least
	came   int           // of watchdog.Least
	cancel context.CancelCauseFunc
	why    func() error // of the cancellation, nil while there is none
}

// Open asks for a part of a blob. An answer that is not a success is a
// *StatusError.
func (b *Blobs) Open(ctx context.Context, sha256 string, p Part) (*BlobReader, error) {
	if !lpmos.ValidDigest(sha256) {
		return nil, &lpmos.InvalidError{Field: "digest", Problem: "is not 64 hexadecimal digits", Value: sha256}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	r := &BlobReader{idle: b.idle, left: b.idle, cancel: cancel, why: func() error { return context.Cause(ctx) }, Total: -1}
	r.timer = time.AfterFunc(b.idle, func() { cancel(ErrIdle) })
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+PathBlobs+sha256, nil)
	if err != nil {
		r.stop()
		return nil, fmt.Errorf("make request for blob: %w", err)
	}
	if p.Early {
		req.Header.Set(HeaderEarly, "yes")
	}
	whole := p.Offset == 0 && p.Length < 0
	if !whole {
		rng := "bytes=" + strconv.FormatInt(p.Offset, 10) + "-"
		if p.Length >= 0 {
			rng += strconv.FormatInt(p.Offset+p.Length-1, 10)
		}
		req.Header.Set("Range", rng)
	}
	resp, err := b.http.Do(req)
	if err != nil {
		err = r.cause(err)
		r.stop()
		return nil, err
	}
	r.timer.Stop()
	r.body = resp.Body
	switch {
	case resp.StatusCode == http.StatusPartialContent && !whole:
		from, total, ok := httprange.Content(resp.Header.Get("Content-Range"))
		if !ok || from != p.Offset {
			r.Close()
			return nil, fmt.Errorf("read blob: asked for bytes from %d, was given %q", p.Offset, resp.Header.Get("Content-Range"))
		}
		r.Total = total
	case resp.StatusCode == http.StatusOK && p.Offset == 0:
		// A server without ranges sends all; the reader stops where it likes.
		r.Total = resp.ContentLength
	case resp.StatusCode == http.StatusOK:
		r.Close()
		return nil, errors.New("read blob: server does not know ranges")
	default:
		err := statusError(resp)
		r.Close()
		return nil, err
	}
	return r, nil
}

// Read reads what has arrived and gives up when it has waited for the idle time and
// less than watchdog.Least came. Time between two reads does not count.
func (r *BlobReader) Read(p []byte) (int, error) {
	r.timer.Reset(r.left)
	began := time.Now()
	n, err := r.body.Read(p)
	r.timer.Stop()
	r.left -= time.Since(began)
	if r.came += n; r.came >= watchdog.Least {
		r.came, r.left = 0, r.idle
	}
	if err != nil && err != io.EOF {
		err = r.cause(err)
	}
	return n, err
}

// Close ends the transfer.
func (r *BlobReader) Close() error {
	r.stop()
	return r.body.Close()
}

func (r *BlobReader) stop() {
	r.timer.Stop()
	r.cancel(nil)
}

// cause names the reason behind a canceled request.
func (r *BlobReader) cause(err error) error {
	if c := r.why(); c != nil {
		return fmt.Errorf("read blob: %w", c)
	}
	return err
}
