package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lpmos/lpmos"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// blob is n reproducible bytes and their digest.
func blob(n int, seed byte) ([]byte, string) {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	sum := sha256.Sum256(b)
	return b, hex.EncodeToString(sum[:])
}

func open(t *testing.T, cfg Config, src Source) *Cache {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Retry == 0 {
		cfg.Retry = time.Millisecond
	}
	if cfg.Idle == 0 {
		cfg.Idle = 10 * time.Second
	}
	c, err := New(cfg, src, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func serve(t *testing.T, h http.HandlerFunc) HTTPSource {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return HTTPSource{URL: srv.URL, Client: srv.Client()}
}

// read opens a blob and returns all of it.
func read(t *testing.T, c *Cache, digest string) ([]byte, error) {
	t.Helper()
	r, size, err := c.Open(t.Context(), digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err == nil && int64(len(b)) != size {
		t.Errorf("size = %d; read %d bytes", size, len(b))
	}
	return b, err
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		names = append(names, f.Name())
	}
	return names
}

// TestFaultySource: whatever the source does, a blob is right or not there (M01,
// M02, M03, M05, M06, M07).
func TestFaultySource(t *testing.T) {
	data, digest := blob(700_000, 1)
	flipped := bytes.Clone(data)
	flipped[345_678] ^= 4
	good := func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
	cut := func(n int) http.HandlerFunc { // promises all of what was asked, gives n bytes
		return func(w http.ResponseWriter, r *http.Request) {
			from := 0
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			w.Header().Set("Content-Length", strconv.Itoa(len(data)-from))
			if from > 0 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
				w.WriteHeader(http.StatusPartialContent)
			}
			w.Write(data[from:min(len(data), from+n)])
		}
	}
	stall := func(after int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			w.Write(data[:after])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code); io.WriteString(w, body) }
	}
	tests := []struct {
		name  string
		first []http.HandlerFunc // one for each request; the last for all that follow
		idle  time.Duration
		max   int64
		want  error // nil: the blob arrives
	}{
		{name: "M00 does what it should", first: []http.HandlerFunc{good}},
		{name: "M01 truncates at 0 once", first: []http.HandlerFunc{cut(0), good}},
		{name: "M01 truncates at 1 % once", first: []http.HandlerFunc{cut(7000), good}},
		{name: "M01 truncates every 100 kB", first: []http.HandlerFunc{cut(100_000)}},
		{name: "M01 truncates at the last byte", first: []http.HandlerFunc{cut(699_999)}},
		{name: "M01 truncates at 0 for ever", first: []http.HandlerFunc{cut(0)}, want: lpmos.ErrUnavailable},
		{name: "M01 gives a byte at a time", first: []http.HandlerFunc{cut(1)}, want: lpmos.ErrUnavailable},
		{name: "M02 stalls after the headers", first: []http.HandlerFunc{stall(0), good}, idle: 500 * time.Millisecond},
		{name: "M02 stalls in the middle", first: []http.HandlerFunc{stall(300_000), good}, idle: 500 * time.Millisecond},
		{name: "M02 drips", idle: 500 * time.Millisecond, want: lpmos.ErrUnavailable, first: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			for i := 0; r.Context().Err() == nil; i++ {
				w.Write(data[i : i+1])
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}}},
		{name: "M03 flips a bit once", first: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) { w.Write(flipped) }, good}},
		{name: "M03 flips a bit always", first: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) { w.Write(flipped) }}, want: lpmos.ErrUnavailable},
		{name: "M05 knows nothing", first: []http.HandlerFunc{status(404, "no")}, want: lpmos.ErrNotFound},
		{name: "M05 fails once", first: []http.HandlerFunc{status(500, "no"), good}},
		{name: "M05 fails always", first: []http.HandlerFunc{status(500, "no")}, want: lpmos.ErrUnavailable},
		{name: "M05 shows a login page", first: []http.HandlerFunc{status(200, "<html>please log in")}, want: lpmos.ErrUnavailable},
		{name: "M05 refuses the token", first: []http.HandlerFunc{status(403, "no")}, want: lpmos.ErrUnavailable},
		{name: "M05 sends elsewhere", first: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		}}, want: lpmos.ErrUnavailable},
		{name: "M06 does not say how much", first: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			w.Write(data)
		}}},
		{name: "M06 says too little", first: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.Write(data[:1000])
		}}, want: lpmos.ErrUnavailable},
		{name: "M06 says far too much", first: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "9000000000000000000")
			w.Write(data)
		}}, want: lpmos.ErrUnavailable},
		{name: "M07 never ends", max: 1 << 20, want: lpmos.ErrUnavailable, first: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(data); err != nil {
					return
				}
			}
		}}},
		{name: "M07 packs", first: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(data)
		}}, want: lpmos.ErrUnavailable},
		// What it sends again is skipped, which takes longer than it may be idle.
		{name: "ignores ranges, slowly", idle: 400 * time.Millisecond, first: []http.HandlerFunc{cut(600_000), func(w http.ResponseWriter, r *http.Request) {
			for i := 0; i < len(data) && r.Context().Err() == nil; i += 50_000 {
				w.Write(data[i : i+50_000])
				w.(http.Flusher).Flush()
				time.Sleep(100 * time.Millisecond)
			}
		}}},
		{name: "ignores ranges", first: []http.HandlerFunc{cut(300_000), func(w http.ResponseWriter, r *http.Request) { w.Write(data) }}},
		{name: "answers another range", first: []http.HandlerFunc{cut(300_000), func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-9/700000")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(data[:10])
		}, good}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int32
			src := serve(t, func(w http.ResponseWriter, r *http.Request) {
				i := min(int(n.Add(1)), len(tt.first)) - 1
				tt.first[i](w, r)
			})
			dir := t.TempDir()
			c := open(t, Config{Dir: dir, Idle: tt.idle, MaxBytes: tt.max}, src)
			got, err := read(t, c, digest)
			if !errors.Is(err, tt.want) || tt.want == nil && !bytes.Equal(got, data) {
				t.Fatalf("got %d bytes, %v; want %v", len(got), err, tt.want)
			}
			for _, name := range files(t, dir) {
				if name == digest && tt.want != nil {
					t.Error("something is left under the blob's name")
				}
				if strings.HasSuffix(name, partialSuffix) && (tt.want == nil || errors.Is(tt.want, lpmos.ErrNotFound)) {
					t.Error("a beginning is left")
				}
			}
			if n.Load() > 40 {
				t.Errorf("%d requests", n.Load())
			}
		})
	}
}

func TestOneTransferForAll(t *testing.T) {
	data, digest := blob(3_000_000, 2)
	var requests atomic.Int32
	release := make(chan struct{})
	src := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		w.Write(data[:1_000_000])
		w.(http.Flusher).Flush()
		<-release
		w.Write(data[1_000_000:])
	})
	src.Token = func() string { return "secret" }
	c := open(t, Config{}, src)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if b, err := read(t, c, digest); err != nil || !bytes.Equal(b, data) {
				t.Errorf("got %d bytes, %v", len(b), err)
			}
		})
	}
	// One who goes away early does not take the transfer along.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := c.Open(ctx, digest); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open with a short deadline = %v", err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if n, total, ok := c.Progress(digest); ok && n == 1_000_000 && total == 3_000_000 {
			break
		}
		if time.Now().After(deadline) {
			t.Error("Progress never showed 1000000 of 3000000")
			break
		}
	}
	close(release)
	wg.Wait()
	if requests.Load() != 1 {
		t.Errorf("%d requests; want 1", requests.Load())
	}
	if _, _, ok := c.Progress(digest); ok {
		t.Error("Progress of a blob that is there")
	}
}

// TestFollow reads what is there of a blob whose transfer stands still, and the
// rest when it goes on; whoever wants it verified waits.
func TestFollow(t *testing.T) {
	data, digest := blob(3_000_000, 4)
	const begun = 1_000_000
	release := make(chan bool)
	src := serve(t, func(w http.ResponseWriter, r *http.Request) {
		from := 0
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		if from > 0 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		w.Write(data[:begun])
		w.(http.Flusher).Flush()
		if <-release {
			w.Write(data[begun:])
		}
	})
	for name, goesOn := range map[string]bool{"the transfer goes on": true, "the transfer fails": false} {
		t.Run(name, func(t *testing.T) {
			c := open(t, Config{}, src)
			r, size, err := c.Follow(t.Context(), digest)
			if err != nil || size != int64(len(data)) {
				t.Fatalf("Follow = %d bytes, %v; want %d", size, err, len(data))
			}
			defer r.Close()
			if end, err := r.Seek(0, io.SeekEnd); end != size || err != nil {
				t.Errorf("its end is at %d, %v; want %d", end, err, size)
			}
			r.Seek(1000, io.SeekStart)
			got := make([]byte, begun-1000)
			if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[1000:begun]) {
				t.Fatalf("what is there cannot be read: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if _, _, err := c.Open(ctx, digest); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Open = %v; want no blob before it is verified", err)
			}
			again, _, err := c.Follow(ctx, digest)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			again.Seek(begun, io.SeekStart)
			if _, err := again.Read(make([]byte, 1)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Read of what is not there = %v; want the end of its context", err)
			}
			release <- goesOn
			rest, err := io.ReadAll(r)
			if goesOn && (err != nil || !bytes.Equal(rest, data[begun:])) || !goesOn && !errors.Is(err, lpmos.ErrUnavailable) {
				t.Errorf("the rest = %d bytes, %v", len(rest), err)
			}
			if !goesOn {
				return
			}
			if r, size, err := c.Follow(t.Context(), digest); err != nil || size != int64(len(data)) {
				t.Errorf("Follow of a whole blob = %d bytes, %v", size, err)
			} else {
				r.Close()
			}
		})
	}
	c := open(t, Config{}, serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) }))
	if _, _, err := c.Follow(t.Context(), digest); !errors.Is(err, lpmos.ErrNotFound) {
		t.Errorf("Follow of what nobody has = %v; want %v", err, lpmos.ErrNotFound)
	}
}

// TestSmallBlobsDoNotWait is the boot of machines in a region that has just been
// started again and goes on with more packs than it may fetch at once.
func TestSmallBlobsDoNotWait(t *testing.T) {
	small, fetched := blob(100_000, 5)
	there, kept := blob(100_000, 6)
	var packs atomic.Int32
	src := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, fetched) {
			w.Write(small)
			return
		}
		packs.Add(1)
		w.Header().Set("Content-Length", strconv.Itoa(smallBytes+1))
		w.Write(there)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, kept), there, 0o600); err != nil {
		t.Fatal(err)
	}
	c := open(t, Config{Dir: dir, Parallel: 2, Idle: time.Minute}, src)
	var digests []string
	for i := range byte(5) {
		_, digest := blob(10, 100+i)
		digests = append(digests, digest)
		c.open(digest)
	}
	moving := func() (n int) {
		for _, digest := range digests {
			if have, _, _ := c.Progress(digest); have > 0 {
				n++
			}
		}
		return n
	}
	for deadline := time.Now().Add(time.Minute); moving() < 2 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for name, digest := range map[string]string{"one that is there": kept, "one that must be fetched": fetched} {
		r, _, err := c.Open(ctx, digest)
		if err != nil {
			t.Errorf("Open of %s behind large ones = %v", name, err)
			continue
		}
		r.Close()
	}
	if n := moving(); n != 2 {
		t.Errorf("%d large blobs are fetched at once; want 2", n)
	}
}

func TestRestart(t *testing.T) { // F10
	data, digest := blob(500_000, 3)
	var offsets []string
	src := serve(t, func(w http.ResponseWriter, r *http.Request) {
		offsets = append(offsets, r.Header.Get("Range"))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
	t.Run("goes on with a beginning", func(t *testing.T) {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, digest+partialSuffix), data[:123_456], 0o600)
		offsets = nil
		if b, err := read(t, open(t, Config{Dir: dir}, src), digest); err != nil || !bytes.Equal(b, data) {
			t.Fatalf("got %d bytes, %v", len(b), err)
		}
		if len(offsets) != 1 || offsets[0] != "bytes=123456-" {
			t.Errorf("asked for %q", offsets)
		}
	})
	for name, left := range map[string][]byte{
		"a wrong beginning": bytes.Repeat([]byte{1}, 1000), "too much": append(bytes.Clone(data), 1, 2, 3), "a beginning that is all": data,
	} {
		t.Run("recovers from "+name, func(t *testing.T) {
			dir := t.TempDir()
			os.WriteFile(filepath.Join(dir, digest+partialSuffix), left, 0o600)
			if b, err := read(t, open(t, Config{Dir: dir}, src), digest); err != nil || !bytes.Equal(b, data) {
				t.Fatalf("got %d bytes, %v", len(b), err)
			}
		})
	}
	t.Run("reads a blob once before it is trusted", func(t *testing.T) {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, digest), data, 0o600)
		offsets = nil
		if b, err := read(t, open(t, Config{Dir: dir}, src), digest); err != nil || !bytes.Equal(b, data) || len(offsets) != 0 {
			t.Fatalf("got %d bytes, %v, %d requests", len(b), err, len(offsets))
		}
		os.WriteFile(filepath.Join(dir, digest), append(bytes.Clone(data[:100]), make([]byte, len(data)-100)...), 0o600)
		if b, err := read(t, open(t, Config{Dir: dir}, src), digest); err != nil || !bytes.Equal(b, data) || len(offsets) != 1 {
			t.Fatalf("damaged: got %d bytes, %v, %d requests", len(b), err, len(offsets))
		}
	})
	t.Run("notices a file that was removed", func(t *testing.T) {
		dir := t.TempDir()
		c := open(t, Config{Dir: dir}, src)
		read(t, c, digest)
		os.Remove(filepath.Join(dir, digest))
		if b, err := read(t, c, digest); err != nil || !bytes.Equal(b, data) {
			t.Fatalf("got %d bytes, %v", len(b), err)
		}
	})
}

func TestEviction(t *testing.T) {
	blobs := map[string][]byte{}
	var names []string
	for i := range 5 {
		b, d := blob(100_000, byte(10+i))
		blobs[d] = b
		names = append(names, d)
	}
	src := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blobs[filepath.Base(r.URL.Path)]))
	})
	dir := t.TempDir()
	c := open(t, Config{Dir: dir, MaxBytes: 350_000}, src)
	has := func(i int) bool { _, err := os.Stat(filepath.Join(dir, names[i])); return err == nil }
	inUse, _, err := c.Open(t.Context(), names[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{1, 2, 1, 3} { // 2 is the least recently used that nobody reads
		if _, err := read(t, c, names[i]); err != nil {
			t.Fatal(err)
		}
	}
	if !has(0) || !has(1) || has(2) || !has(3) {
		t.Errorf("left after eviction: %v %v %v %v; want all but the third", has(0), has(1), has(2), has(3))
	}
	if b, err := io.ReadAll(inUse); err != nil || !bytes.Equal(b, blobs[names[0]]) {
		t.Errorf("the blob in use: %d bytes, %v", len(b), err)
	}
	inUse.Close()
	if err := inUse.Close(); err == nil {
		t.Error("a second Close went unnoticed")
	}
	if _, err := read(t, c, names[4]); err != nil {
		t.Fatal(err)
	}
	if has(0) {
		t.Error("a blob that nobody reads any more was kept")
	}
	small := open(t, Config{MaxBytes: 50_000}, src)
	if _, err := read(t, small, names[0]); !errors.Is(err, lpmos.ErrUnavailable) || !strings.Contains(err.Error(), "enlarge") {
		t.Errorf("blob larger than the cache: %v", err)
	}
}

func TestClose(t *testing.T) {
	data, digest := blob(500_000, 4)
	started := make(chan struct{})
	src := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		w.Write(data[:300_000])
		w.(http.Flusher).Flush()
		close(started)
		<-r.Context().Done()
	})
	dir := t.TempDir()
	c := open(t, Config{Dir: dir}, src)
	done := make(chan error)
	go func() { _, _, err := c.Open(context.Background(), digest); done <- err }()
	<-started
	c.Close()
	if err := <-done; !errors.Is(err, lpmos.ErrUnavailable) {
		t.Errorf("Open when the cache closes = %v; want ErrUnavailable", err)
	}
	if _, _, err := c.Open(t.Context(), digest); !errors.Is(err, lpmos.ErrUnavailable) {
		t.Errorf("Open of a closed cache = %v; want ErrUnavailable", err)
	}
	if got := files(t, dir); len(got) != 1 || got[0] != digest+partialSuffix {
		t.Errorf("left %q; want the beginning", got)
	}
}

func TestDir(t *testing.T) {
	data, digest := blob(1000, 5)
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, digest), data, 0o600)
	secret := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(secret, []byte("x"), 0o600)
	link := strings.Repeat("b", 64)
	os.Symlink(secret, filepath.Join(dir, link))
	f, size, err := Dir(dir).Open(t.Context(), digest)
	if err != nil || size != 1000 {
		t.Fatalf("Open = %d, %v", size, err)
	}
	defer f.Close()
	if b, _ := io.ReadAll(f); !bytes.Equal(b, data) {
		t.Errorf("read %d other bytes", len(b))
	}
	for _, bad := range []string{"", "../" + digest, digest[1:], strings.Repeat("0", 64), link} {
		if f, _, err := Dir(dir).Open(t.Context(), bad); err == nil {
			f.Close()
			t.Errorf("Open(%q) gave a file", bad)
		}
	}
	c := open(t, Config{}, HTTPSource{URL: "http://127.0.0.1:1"})
	for _, bad := range []string{"", "../" + digest, strings.ToUpper(digest)} {
		if _, _, err := c.Open(t.Context(), bad); !errors.Is(err, lpmos.ErrNotFound) {
			t.Errorf("Open(%q) = %v; want ErrNotFound", bad, err)
		}
	}
}

func TestStock(t *testing.T) {
	data, digest := blob(10_000, 7)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
	c := open(t, Config{Dir: t.TempDir(), MaxBytes: 1 << 20}, serve(t, h))
	if s := c.Stock(); s.Files != 0 || s.Bytes != 0 || s.MaxBytes != 1<<20 || s.Holds("sha256:"+digest) {
		t.Errorf("an empty cache holds %+v", s)
	}
	if _, err := read(t, c, digest); err != nil {
		t.Fatal(err)
	}
	if s := c.Stock(); s.Files != 1 || s.Bytes != 10_000 || !s.Holds("sha256:"+digest) || s.Holds("sha256:"+strings.Repeat("0", 64)) {
		t.Errorf("the cache holds %+v; want the file that was asked for", s)
	}
}
