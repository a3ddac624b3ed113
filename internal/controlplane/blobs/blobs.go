// Package blobs keeps the control plane's files by content: image packs,
// manifests, kernels, boot files. A file is visible only when it is complete
// and its SHA-256 is its name.
//
// A Dir may be used concurrently, also by several processes.
package blobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/watchdog"
)

// MaxBytes bounds one blob.
const MaxBytes = 64 << 30

// Dir is a directory of blobs, each named by its 64 hex digits.
type Dir struct {
	path string
	root *os.Root
}

// Open makes the directory if need be. Leftovers of interrupted uploads are
// removed.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("make blob directory: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open blob directory: %w", err)
	}
	stale, err := filepath.Glob(filepath.Join(path, ".upload-*"))
	if err == nil {
		for _, f := range stale {
			os.Remove(f)
		}
	}
	return &Dir{path: path, root: root}, nil
}

// Close releases the directory.
func (d *Dir) Close() error { return d.root.Close() }

// Path is where the blobs are, for a region in the same process.
func (d *Dir) Path() string { return d.path }

// Open opens a blob for reading. The caller closes it. A digest that is not
// there is lpmos.ErrNotFound.
func (d *Dir) Open(_ context.Context, digest string) (*os.File, int64, error) {
	if !lpmos.ValidDigest(digest) {
		return nil, 0, &lpmos.InvalidError{Field: "sha256", Problem: "is not 64 hexadecimal digits", Value: digest}
	}
	f, err := d.root.Open(digest)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, fmt.Errorf("blob %s: %w", digest, lpmos.ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open blob %s: %w", digest, err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("stat blob %s: %w", digest, err)
	}
	return f, st.Size(), nil
}

// Has reports whether a blob is there.
func (d *Dir) Has(digest string) bool {
	if !lpmos.ValidDigest(digest) {
		return false
	}
	_, err := d.root.Stat(digest)
	return err == nil
}

// Put stores what r yields under digest. Content that is not what digest says
// is an *lpmos.InvalidError and leaves nothing behind.
func (d *Dir) Put(ctx context.Context, digest string, r io.Reader) (lpmos.Blob, error) {
	if !lpmos.ValidDigest(digest) {
		return lpmos.Blob{}, &lpmos.InvalidError{Field: "sha256", Problem: "is not 64 hexadecimal digits", Value: digest}
	}
	f, err := os.CreateTemp(d.path, ".upload-*")
	if err != nil {
		return lpmos.Blob{}, fmt.Errorf("store blob: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(watchdog.Reader(ctx, r), MaxBytes+1))
	if err != nil {
		return lpmos.Blob{}, fmt.Errorf("store blob %s: %w", digest, err)
	}
	if n > MaxBytes {
		return lpmos.Blob{}, fmt.Errorf("store blob %s: %w", digest, lpmos.ErrTooLarge)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		return lpmos.Blob{}, &lpmos.InvalidError{Field: "sha256", Problem: "is not the digest of the content, which is " + got, Value: digest}
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return lpmos.Blob{}, fmt.Errorf("store blob %s: %w", digest, err)
	}
	if err := os.Rename(f.Name(), filepath.Join(d.path, digest)); err != nil {
		return lpmos.Blob{}, fmt.Errorf("store blob %s: %w", digest, err)
	}
	return lpmos.Blob{SHA256: digest, Bytes: n}, nil
}

// PutFile stores a local file under its own digest.
func (d *Dir) PutFile(ctx context.Context, b lpmos.Blob, path string) error {
	if d.Has(b.SHA256) {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("store blob: %w", err)
	}
	defer f.Close()
	_, err = d.Put(ctx, b.SHA256, f)
	return err
}
