package agentapi

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lpmos/lpmos"
)

// testClient is a client of a TLS server whose certificate is for example.com.
func testClient(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	c, err := NewClient(ClientConfig{URL: srv.URL, ServerName: "example.com", CA: ca, Credential: "secret",
		Timeout: 300 * time.Millisecond, RetryMin: time.Millisecond, RetryMax: 5 * time.Millisecond}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestClientAsksWithItsCredentialAndWait(t *testing.T) {
	c := testClient(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "Bearer secret" {
			t.Errorf("Authorization = %q", got)
		}
		if r.URL.String() != PathApproval+"52:54:00:00:00:01?wait=30s" || r.Method != "GET" {
			t.Errorf("asked %s %s", r.Method, r.URL)
		}
		io.WriteString(w, `{"approved":false,"status":"pending"}`)
	})
	// More than MaxWait is cut to it.
	a, err := c.Approval(t.Context(), lpmos.MustMAC("52:54:00:00:00:01"), time.Hour)
	if err != nil || a.Status != lpmos.Pending {
		t.Errorf("Approval = %+v, %v", a, err)
	}
}

func TestClientRepeatsWhatPasses(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request)
	}{
		{"500", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }},
		{"503 with a problem", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503); io.WriteString(w, `{"title":"no"}`) }},
		{"429", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }},
		{"408", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(408) }},
		{"a cut connection", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"silence", func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body) // the server sees the client leave only after that
			<-r.Context().Done()
		}},
		{"half an answer", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"task_id":`) }},
		{"an answer with an unknown field", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"task":"x"}`) }},
		{"a page", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `<html>`) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var n atomic.Int64
			client := testClient(t, func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) < 3 {
					c.answer(w, r)
					return
				}
				io.WriteString(w, `{"task_id":"it"}`)
			})
			a, err := client.Report(t.Context(), Report{})
			if err != nil || a.TaskID != "it" || n.Load() != 3 {
				t.Errorf("Report = %+v, %v after %d tries; want the third answer", a, err, n.Load())
			}
		})
	}
}

func TestClientStopsAtARefusal(t *testing.T) {
	for _, code := range []int{400, 401, 403, 404, 409, 301} {
		var n atomic.Int64
		c := testClient(t, func(w http.ResponseWriter, r *http.Request) {
			n.Add(1)
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(code)
			io.WriteString(w, `{"title":"Refused","detail":"the task is quarantined"}`)
		})
		_, err := c.Permit(t.Context(), PermitRequest{}, 0)
		if Refused(err) != code || n.Load() != 1 || !strings.Contains(err.Error(), "the task is quarantined") {
			t.Errorf("Permit answered with %d = %v after %d tries; want a refusal at once", code, err, n.Load())
		}
	}
}

func TestClientEndsWithItsContext(t *testing.T) {
	c := testClient(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
	why := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, why)
	defer cancel()
	if _, err := c.Report(ctx, Report{}); !errors.Is(err, why) {
		t.Errorf("Report = %v; want %v", err, why)
	}
}

func TestClientTriesProgressOnce(t *testing.T) {
	var n atomic.Int64
	c := testClient(t, func(w http.ResponseWriter, r *http.Request) { n.Add(1); w.WriteHeader(503) })
	if err := c.Progress(t.Context(), Progress{}); err == nil || n.Load() != 1 {
		t.Errorf("Progress = %v after %d tries", err, n.Load())
	}
}

func TestNewClientRefuses(t *testing.T) {
	good := ClientConfig{URL: "https://10.0.0.1:8443", ServerName: "agent.dc1.lpmos", CA: "x", Credential: "y"}
	for name, edit := range map[string]func(*ClientConfig){
		"plain http": func(c *ClientConfig) { c.URL = "http://10.0.0.1" }, "no server name": func(c *ClientConfig) { c.ServerName = "" },
		"no CA": func(c *ClientConfig) {}, "no credential": func(c *ClientConfig) { c.Credential = "" },
	} {
		cfg := good
		edit(&cfg)
		if _, err := NewClient(cfg, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("NewClient with %s = nil", name)
		}
	}
}

func TestBackoffGrowsToItsMaximumAndVaries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{Min: 500 * time.Millisecond, Max: 15 * time.Second}
		seen := map[time.Duration]bool{}
		for i := range 200 {
			began := time.Now()
			if err := b.Wait(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			d := time.Since(began)
			seen[d] = true
			if d > 15*time.Second || d < 250*time.Millisecond || i > 6 && d < 7*time.Second {
				t.Errorf("pause %d is %v", i, d)
			}
		}
		if len(seen) < 50 {
			t.Errorf("%d different pauses of 200; want jitter", len(seen))
		}
		began := time.Now()
		b.Reset()
		b.Wait(t.Context(), 20*time.Second)
		if d := time.Since(began); d != 20*time.Second {
			t.Errorf("pause asked to be 20 s is %v", d)
		}
	})
}

// TestBlobs reads from servers of every kind (M02).
func TestBlobs(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	content := strings.Repeat("0123456789", 100)
	var mode atomic.Value
	mode.Store("")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != PathBlobs+sum:
			http.NotFound(w, r)
		case mode.Load() == "silent":
			<-r.Context().Done()
		case mode.Load() == "stalls":
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, content[:10])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case mode.Load() == "drips":
			for i := 0; i < len(content) && r.Context().Err() == nil; i++ {
				io.WriteString(w, content[i:i+1])
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		case mode.Load() == "no ranges":
			io.WriteString(w, content)
		case mode.Load() == "wrong range":
			w.Header().Set("Content-Range", "bytes 7-9/1000")
			w.WriteHeader(206)
		default:
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
		}
	}))
	t.Cleanup(srv.Close)
	blobs, err := NewBlobs(srv.URL, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	read := func(off, n int64) (string, int64, error) {
		r, err := blobs.Open(t.Context(), sum, Part{Offset: off, Length: n})
		if err != nil {
			return "", 0, err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		return string(b), r.Total, err
	}
	if got, total, err := read(25, 10); err != nil || got != content[25:35] || total != 1000 {
		t.Errorf("Open(25, 10) = %q of %d, %v", got, total, err)
	}
	if got, total, err := read(0, -1); err != nil || got != content || total != 1000 {
		t.Errorf("Open(0, -1) = %d bytes of %d, %v", len(got), total, err)
	}
	// It is the server's time that counts, and not the reader's.
	r, err := blobs.Open(t.Context(), sum, Part{Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i := range 3 {
		if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
			t.Errorf("read %d of a reader that takes its time: %v", i, err)
		}
		time.Sleep(60 * time.Millisecond)
	}
	for _, m := range []string{"silent", "stalls", "drips"} {
		mode.Store(m)
		if got, _, err := read(0, -1); !errors.Is(err, ErrIdle) || len(got) > 200 {
			t.Errorf("a server that %s: %v after %d bytes; want %v", m, err, len(got), ErrIdle)
		}
	}
	for _, m := range []string{"no ranges", "wrong range"} {
		mode.Store(m)
		if got, _, err := read(25, 10); err == nil {
			t.Errorf("a server with %s = %q; want an error", m, got)
		}
	}
	if _, err := blobs.Open(t.Context(), strings.Repeat("0", 64), Part{Length: 5}); Refused(err) != 404 {
		t.Errorf("an unknown blob: %v; want 404", err)
	}
	if _, err := blobs.Open(t.Context(), "../../etc/passwd", Part{Length: 5}); err == nil {
		t.Error("a path is taken for a digest")
	}
}
