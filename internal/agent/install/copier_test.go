package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// testBytes are n bytes that compress somewhat.
func testBytes(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.UintN(16))
	}
	return b
}

const testChunk = 64 << 10

// copyAll copies image digest from s and returns what would be on the disk.
func copyAll(t *testing.T, s *blobServer, digest string, decode Decoder, stall time.Duration) ([]byte, error) {
	t.Helper()
	blobs := s.client(t, time.Second)
	m, err := FetchManifest(t.Context(), blobs, digest, stall)
	if err != nil {
		return nil, err
	}
	out := make([]byte, m.SizeBytes)
	c := Copier{Blobs: blobs, Decode: decode, Stall: stall, Log: slog.New(slog.DiscardHandler)}
	last := int64(-1)
	c.Progress = func(stored, raw int64) {
		if stored+raw < last {
			t.Errorf("progress goes back to %d", stored+raw)
		}
		last = stored + raw
	}
	err = c.Copy(t.Context(), m, func(_ int, chunk lpmos.Chunk, at int64, piece []byte) error {
		copy(out[chunk.Offset+at:], piece)
		return nil
	})
	if err == nil && last != m.Pack.Bytes+m.UsedBytes {
		t.Errorf("progress ends at %d; want %d", last, m.Pack.Bytes+m.UsedBytes)
	}
	return out, err
}

func zstdProgram(t *testing.T) Decoder {
	zstd(t, []byte("is it there?"))
	return Zstd{Path: "/usr/bin/zstd"}
}

func TestCopyWritesTheImage(t *testing.T) {
	s, want := newBlobServer(t), testBytes(40*testChunk)
	_, digest := s.pack(t, want, testChunk, nil)
	got, err := copyAll(t, s, digest, zstdProgram(t), time.Second)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("Copy = %v; equal %v", err, bytes.Equal(got, want))
	}
	if s.asked != 2 {
		t.Errorf("%d requests for a manifest and one pack; want 2", s.asked)
	}
}

// TestCopyRecovers spoils answers in ways that pass (M01, M02, M03, M05).
func TestCopyRecovers(t *testing.T) {
	want := testBytes(20 * testChunk)
	for _, c := range []struct {
		name  string
		spoil func(n int, w http.ResponseWriter, r *http.Request, blob []byte) bool // n counts requests for the pack
	}{
		{"one flipped bit, once", func(n int, w http.ResponseWriter, r *http.Request, blob []byte) bool {
			if n > 1 {
				return false
			}
			b := bytes.Clone(blob)
			b[len(b)/2] ^= 1
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
			return true
		}},
		{"500 three times", func(n int, w http.ResponseWriter, r *http.Request, _ []byte) bool {
			if n <= 3 {
				http.Error(w, "no", 500)
			}
			return n <= 3
		}},
		{"connection cut after half of each answer, five times", func(n int, w http.ResponseWriter, r *http.Request, blob []byte) bool {
			if n > 5 {
				return false
			}
			http.ServeContent(cutter{w, new(atomic.Int64), 100_000}, r, "", time.Time{}, bytes.NewReader(blob))
			return true
		}},
		// A region passes on what it has not verified yet, to who asks for it early.
		{"another pack, to who is early", func(_ int, w http.ResponseWriter, r *http.Request, blob []byte) bool {
			early := r.Header.Get(agentapi.HeaderEarly) != ""
			if early {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, len(blob))))
			}
			return early
		}},
		{"a shorter pack, to who is early", func(_ int, w http.ResponseWriter, r *http.Request, blob []byte) bool {
			early := r.Header.Get(agentapi.HeaderEarly) != ""
			if early {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob[:100]))
			}
			return early
		}},
		{"silence in the middle, once", func(n int, w http.ResponseWriter, r *http.Request, blob []byte) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Content-Length", itoa(len(blob)))
			w.Write(blob[:len(blob)/3])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newBlobServer(t)
			m, digest := s.pack(t, want, testChunk, nil)
			var n atomic.Int64
			s.spoil = func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
				return strings.HasSuffix(r.URL.Path, m.Pack.SHA256) && c.spoil(int(n.Add(1)), w, r, blob)
			}
			got, err := copyAll(t, s, digest, zstdProgram(t), 10*time.Second)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("Copy = %v; equal %v", err, bytes.Equal(got, want))
			}
		})
	}
}

// cutter ends the connection after some bytes.
type cutter struct {
	http.ResponseWriter
	sent *atomic.Int64
	max  int64
}

func (c cutter) Write(b []byte) (int, error) {
	if c.sent.Add(int64(len(b))) > c.max {
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(b)
}

// TestCopyFailsWithACause spoils answers in ways that do not (M01, M02, M03, M05, M06).
func TestCopyFailsWithACause(t *testing.T) {
	fs := testBytes(20 * testChunk)
	flip := func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
		b := bytes.Clone(blob)
		if len(b) > 0 {
			b[len(b)/2] ^= 1
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		return true
	}
	onPack := func(m *lpmos.ImageManifest, f func(http.ResponseWriter, *http.Request, []byte) bool) func(http.ResponseWriter, *http.Request, []byte) bool {
		return func(w http.ResponseWriter, r *http.Request, b []byte) bool {
			return strings.HasSuffix(r.URL.Path, m.Pack.SHA256) && f(w, r, b)
		}
	}
	for _, c := range []struct {
		name  string
		edit  func(s *blobServer, m *lpmos.ImageManifest)
		spoil func(s *blobServer, m *lpmos.ImageManifest)
		code  string
		text  string
	}{
		{"chunk always damaged", nil, func(s *blobServer, m *lpmos.ImageManifest) { s.spoil = onPack(m, flip) }, "image_corrupt", "another digest"},
		{"manifest always damaged", nil, func(s *blobServer, m *lpmos.ImageManifest) { s.spoil = flip }, "image_corrupt", "manifest"},
		{"pack missing", nil, func(s *blobServer, m *lpmos.ImageManifest) { delete(s.blobs, m.Pack.SHA256) }, "image_missing", "pack"},
		{"manifest missing", nil, func(s *blobServer, m *lpmos.ImageManifest) {
			s.spoil = func(w http.ResponseWriter, r *http.Request, b []byte) bool { http.NotFound(w, r); return true }
		}, "image_missing", "manifest"},
		{"pack cut off at half", nil, func(s *blobServer, m *lpmos.ImageManifest) {
			s.blobs[m.Pack.SHA256] = s.blobs[m.Pack.SHA256][:m.Pack.Bytes/2]
		}, "image_corrupt", "its pack has"},
		{"pack of one byte", nil, func(s *blobServer, m *lpmos.ImageManifest) {
			s.blobs[m.Pack.SHA256] = s.blobs[m.Pack.SHA256][:1]
		}, "image_corrupt", "pack"},
		{"pack cut off by a server that lies about it", nil, func(s *blobServer, m *lpmos.ImageManifest) {
			s.spoil = onPack(m, func(w http.ResponseWriter, r *http.Request, b []byte) bool {
				http.ServeContent(cutter{w, new(atomic.Int64), 10_000}, r, "", time.Time{}, bytes.NewReader(b))
				return true
			})
		}, "image_unreachable", "4s"},
		{"pack that drips", nil, func(s *blobServer, m *lpmos.ImageManifest) {
			s.spoil = onPack(m, drip(1, 10*time.Millisecond))
		}, "image_unreachable", "4s"},
		// Never idle, and still no chunk in the time in which one must come.
		{"pack that comes too slowly", func(s *blobServer, m *lpmos.ImageManifest) {
			slow, _ := s.pack(t, testBytes(2<<20), 2<<20, nil)
			*m = *slow
		}, func(s *blobServer, m *lpmos.ImageManifest) {
			s.spoil = onPack(m, drip(10_000, 80*time.Millisecond))
		}, "image_unreachable", "4s"},
		{"200 with a page instead of the pack", nil, func(s *blobServer, m *lpmos.ImageManifest) {
			s.spoil = onPack(m, func(w http.ResponseWriter, r *http.Request, b []byte) bool {
				io.WriteString(w, "<html>"+strings.Repeat("please log in ", int(m.Pack.Bytes)))
				return true
			})
		}, "image_corrupt", ""},
		{"redirect", nil, func(s *blobServer, m *lpmos.ImageManifest) {
			s.spoil = onPack(m, func(w http.ResponseWriter, r *http.Request, b []byte) bool {
				http.Redirect(w, r, "/elsewhere", http.StatusFound)
				return true
			})
		}, "image_unreachable", ""},
		{"endless manifest", nil, func(s *blobServer, m *lpmos.ImageManifest) {
			s.spoil = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
				for block := make([]byte, 1<<20); ; {
					if _, err := w.Write(block); err != nil {
						return true
					}
				}
			}
		}, "image_corrupt", "larger than"},
		{"chunk that says it is longer than the manifest has it", func(s *blobServer, m *lpmos.ImageManifest) {
			m.Chunks[3].Bytes -= 4096
			m.UsedBytes -= 4096
		}, nil, "image_corrupt", "chunk 3"},
		{"chunk that is no zstd", func(s *blobServer, m *lpmos.ImageManifest) {
			replaceChunk(s, m, 5, testBytes(1000))
		}, nil, "image_corrupt", "decoded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newBlobServer(t)
			m, digest := s.pack(t, fs, testChunk, func(m *lpmos.ImageManifest) {
				if c.edit != nil {
					c.edit(s, m)
				}
			})
			if c.spoil != nil {
				c.spoil(s, m)
			}
			stall := time.Minute // a slow computer stalls by itself
			if c.code == "image_unreachable" {
				stall = 4 * time.Second
			}
			_, err := copyAll(t, s, digest, zstdProgram(t), stall)
			if f, ok := errors.AsType[*Failure](err); !ok || f.Code != c.code || !strings.Contains(f.Error(), c.text) {
				t.Errorf("Copy = %v; want code %s with %q", err, c.code, c.text)
			} else if f.Cause == "" || f.NextStep == "" {
				t.Errorf("Copy = %+v; want a cause and a next step", f)
			}
		})
	}
}

// drip answers with so many bytes at a time.
func drip(n int, pause time.Duration) func(http.ResponseWriter, *http.Request, []byte) bool {
	return func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		http.ServeContent(dripper{w, r.Context(), n, pause}, r, "", time.Time{}, bytes.NewReader(b))
		return true
	}
}

type dripper struct {
	http.ResponseWriter
	ctx   context.Context
	n     int
	pause time.Duration
}

func (d dripper) Write(b []byte) (int, error) {
	for piece := range slices.Chunk(b, d.n) {
		if _, err := d.ResponseWriter.Write(piece); err != nil || d.ctx.Err() != nil {
			return 0, errors.Join(err, d.ctx.Err())
		}
		d.ResponseWriter.(http.Flusher).Flush()
		time.Sleep(d.pause)
	}
	return len(b), nil
}

// replaceChunk gives chunk i other stored bytes, with the right digest.
func replaceChunk(s *blobServer, m *lpmos.ImageManifest, i int, stored []byte) {
	old := s.blobs[m.Pack.SHA256]
	c := &m.Chunks[i]
	b := append(append(bytes.Clone(old[:c.StoredOffset]), stored...), old[c.StoredOffset+c.StoredBytes:]...)
	sum := sha256.Sum256(stored)
	delta := int64(len(stored)) - c.StoredBytes
	c.StoredBytes, c.SHA256 = int64(len(stored)), hex.EncodeToString(sum[:])
	for j := i + 1; j < len(m.Chunks); j++ {
		m.Chunks[j].StoredOffset += delta
	}
	m.Pack = lpmos.Blob{SHA256: s.put(b), Bytes: int64(len(b))}
}

// decoderFunc is a decoder in this process that may lie.
type decoderFunc func(frames io.Reader, out io.Writer) error

func (f decoderFunc) Start(ctx context.Context) (*Decoding, error) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = f(inR, outW)
		inR.Close()
		outW.Close()
	}()
	context.AfterFunc(ctx, func() { inR.CloseWithError(ctx.Err()); outW.CloseWithError(ctx.Err()) })
	return &Decoding{In: inW, Out: outR, Wait: func() error { inW.Close(); outR.Close(); <-done; return err }}, nil
}

// TestCopyDistrustsTheDecoder is M07 on the machine: a chunk unpacks to what the
// manifest says, or not at all.
func TestCopyDistrustsTheDecoder(t *testing.T) {
	fs := testBytes(8 * testChunk)
	for _, c := range []struct {
		name   string
		decode decoderFunc
		text   string
	}{
		{"too short", func(in io.Reader, out io.Writer) error {
			io.Copy(io.Discard, in)
			out.Write(fs[:len(fs)-1])
			return nil
		}, "chunk 7 decodes to 65535 bytes instead of 65536"},
		{"too long", func(in io.Reader, out io.Writer) error {
			io.Copy(io.Discard, in)
			out.Write(append(bytes.Clone(fs), 0))
			return nil
		}, "more than"},
		{"nothing", func(in io.Reader, out io.Writer) error { return errors.New("no memory") }, "no memory"},
		{"ends badly", func(in io.Reader, out io.Writer) error {
			io.Copy(io.Discard, in)
			out.Write(fs)
			return errors.New("checksum of frame 3")
		}, "checksum of frame 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newBlobServer(t)
			_, digest := s.pack(t, fs, testChunk, nil)
			_, err := copyAll(t, s, digest, c.decode, time.Second)
			if failureCode(err) != "image_corrupt" || !strings.Contains(err.Error(), c.text) {
				t.Errorf("Copy = %v; want image_corrupt with %q", err, c.text)
			}
		})
	}
}

func TestCopyStopsOnAWriteError(t *testing.T) {
	s := newBlobServer(t)
	m, _ := s.pack(t, testBytes(20*testChunk), testChunk, nil)
	boom := errors.New("boom")
	c := Copier{Blobs: s.client(t, 0), Decode: zstdProgram(t), Stall: time.Second, Log: slog.New(slog.DiscardHandler)}
	err := c.Copy(t.Context(), m, func(i int, _ lpmos.Chunk, _ int64, _ []byte) error {
		if i == 2 {
			return boom
		}
		return nil
	})
	if !errors.Is(err, boom) {
		t.Errorf("Copy = %v; want %v", err, boom)
	}
}

func TestFrameContentSize(t *testing.T) {
	for _, n := range []int{1, 255, 256, 65535, 70000, 1 << 20} {
		if got, ok := frameContentSize(zstd(t, make([]byte, n))); ok && got != uint64(n) {
			t.Errorf("frameContentSize(frame of %d) = %d", n, got)
		} else if !ok {
			t.Errorf("frameContentSize(frame of %d) is not known", n)
		}
	}
}

var _ Blobs = (*agentapi.Blobs)(nil)
