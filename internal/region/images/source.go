package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/httprange"
)

// Source is where blobs come from. Fetch opens one from a byte offset on, or
// from the beginning, at which of them the body begins; size is that of the whole
// blob, or -1 when the source does not say. Errors wrap
// lpmos.ErrNotFound when there is no such blob and errPermanent when asking
// again is useless; after all others the cache asks again. The caller closes
// the body; cancelling ctx ends it.
type Source interface {
	Fetch(ctx context.Context, digest string, offset int64) (body io.ReadCloser, at, size int64, err error)
}

var (
	errPermanent = errors.New("asking again is useless")
	// errOffset means that the blob is shorter than what is there of it.
	errOffset = errors.New("the blob ends before the offset")
)

// HTTPSource fetches from a control plane's GET /api/v1/blobs/{sha256}.
type HTTPSource struct {
	URL    string        // https://lpmos.example:8080, without the path
	Client *http.Client  // with the trust for URL; nil means http.DefaultClient
	Token  func() string // bearer token, asked for each time; nil for none
}

// Fetch asks for the rest of a blob from offset on. Redirects to another host
// are not followed: the token would go with them.
func (h HTTPSource) Fetch(ctx context.Context, digest string, offset int64) (body io.ReadCloser, at, size int64, err error) {
	u, err := url.JoinPath(h.URL, "api/v1/blobs", digest)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("%w: %w", errPermanent, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("%w: %w", errPermanent, err)
	}
	// Without this the transport would ask for gzip and unpack it by itself,
	// however large it gets.
	req.Header.Set("Accept-Encoding", "identity")
	if offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	if h.Token != nil {
		req.Header.Set("Authorization", "Bearer "+h.Token())
	}
	client := *cmp.Or(h.Client, http.DefaultClient)
	client.CheckRedirect = func(to *http.Request, via []*http.Request) error {
		if to.URL.Host != via[0].URL.Host || to.URL.Scheme != via[0].URL.Scheme || len(via) > 3 {
			return fmt.Errorf("redirected to %s", to.URL.Host)
		}
		return nil
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, 0, 0, err
	}
	if size, err = accept(res, offset); err != nil {
		res.Body.Close()
		return nil, 0, 0, err
	}
	if res.StatusCode == http.StatusOK {
		offset = 0 // the server, or something in front of it, may have no ranges
	}
	return res.Body, offset, size, nil
}

// accept checks an answer's head and returns the whole blob's size, or -1.
func accept(res *http.Response, offset int64) (int64, error) {
	if enc := res.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return 0, fmt.Errorf("%w: the answer is encoded (%s)", errPermanent, lpmos.Shorten(enc, 32))
	}
	switch code := res.StatusCode; {
	case code == http.StatusOK:
		return res.ContentLength, nil
	case code == http.StatusPartialContent:
		from, total, ok := httprange.Content(res.Header.Get("Content-Range"))
		if !ok || from != offset {
			return 0, fmt.Errorf("the answer is another range than asked for (%q)", lpmos.Shorten(res.Header.Get("Content-Range"), 64))
		}
		return total, nil
	case code == http.StatusNotFound:
		return 0, lpmos.ErrNotFound
	case code == http.StatusRequestedRangeNotSatisfiable:
		return 0, errOffset
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return 0, fmt.Errorf("%w: answer %s (check this region's token)", errPermanent, res.Status)
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests, code >= 500:
		return 0, fmt.Errorf("answer %s", res.Status)
	default:
		return 0, fmt.Errorf("%w: answer %s", errPermanent, res.Status)
	}
}

// Dir serves blobs from a directory on this host in which every file is named
// by its digest and complete, as the control plane's blob directory is.
type Dir string

// Open opens a blob for reading. The caller closes it.
func (d Dir) Open(_ context.Context, sha256 string) (io.ReadSeekCloser, int64, error) {
	if !lpmos.ValidDigest(sha256) {
		return nil, 0, fmt.Errorf("open blob: %w", lpmos.ErrNotFound)
	}
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	defer root.Close()
	return openIn(root, sha256)
}

func openIn(root *os.Root, digest string) (*os.File, int64, error) {
	f, err := root.Open(digest)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, fmt.Errorf("open blob %s: %w", digest, lpmos.ErrNotFound)
	} else if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = lpmos.ErrNotFound
	}
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("open blob %s: %w", digest, err)
	}
	return f, info.Size(), nil
}
