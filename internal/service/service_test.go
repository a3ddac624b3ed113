package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestRunEndsAllWhenOneEnds(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	err := Run(t.Context(),
		func(context.Context) error { return first },
		func(ctx context.Context) error { <-ctx.Done(); return second },
		func(ctx context.Context) error { <-ctx.Done(); return nil },
	)
	if !errors.Is(err, first) || !errors.Is(err, second) {
		t.Errorf("Run = %v; want both errors", err)
	}
	if err := Run(t.Context(), func(context.Context) error { return nil }, func(ctx context.Context) error { <-ctx.Done(); return nil }); err != nil {
		t.Errorf("Run = %v; want nil when a part just ends", err)
	}
	// Who is asked to stop has not failed, also in the middle of starting.
	ctx, stop := context.WithCancel(t.Context())
	broken := func(ctx context.Context) error {
		stop()
		<-ctx.Done()
		return fmt.Errorf("publish: %w", context.Cause(ctx))
	}
	if err := Run(ctx, broken); err != nil {
		t.Errorf("Run of what was broken off by a signal = %v; want nil", err)
	}
	// But what was broken off although nobody asked has.
	if err := Run(t.Context(), func(context.Context) error { return context.Canceled }); err == nil {
		t.Error("Run of what was canceled by itself = nil")
	}
}

// A request that runs when the server is told to stop is answered.
func TestServeDrains(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	began, finish := make(chan struct{}), make(chan struct{})
	srv := HTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-finish
		if r.Context().Err() != nil {
			t.Error("the request was canceled with the server")
		}
		_, _ = io.WriteString(w, "done")
	}), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, srv, l) }()
	answer := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			answer <- err.Error()
			return
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		answer <- string(b)
	}()
	<-began
	cancel()
	select {
	case err := <-served:
		t.Fatalf("Serve = %v before the request was answered", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(finish)
	if got := <-answer; got != "done" {
		t.Errorf("answer %q", got)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve = %v", err)
	}
}

func TestListenSaysWhatToDo(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(l.Addr().String()); err == nil || !strings.Contains(err.Error(), "another program has it") {
		t.Errorf("Listen on a taken address = %v", err)
	}
}

// W13: what proxy and server may take apart differently is refused, or is the
// last request of its connection; what stands behind it is never answered.
func TestRequestsAreNotSmuggled(t *testing.T) {
	var smuggled atomic.Int64
	srv := HTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/smuggled" {
			smuggled.Add(1)
		}
		_, _ = io.Copy(io.Discard, r.Body)
	}), slog.New(slog.DiscardHandler))
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, srv, l) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	const inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, tt := range map[string]struct {
		headers, body string
		want          string // status
	}{
		"a length and chunks":           {"Content-Length: 43\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", "200"},
		"chunks and a length":           {"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n", "200"},
		"chunks alone":                  {"Transfer-Encoding: chunked\r\n", "0\r\n\r\n", "200"},
		"a chunk that ends with a line": {"Transfer-Encoding: chunked\r\n", "0\n\n", "200"},
		"two lengths":                   {"Content-Length: 0\r\nContent-Length: 38\r\n", "", "400"},
		"two lengths in one":            {"Content-Length: 0, 38\r\n", "", "400"},
		"a length with a sign":          {"Content-Length: +0\r\n", "", "400"},
		"a length in hexadecimal":       {"Content-Length: 0x0\r\n", "", "400"},
		"a length below nothing":        {"Content-Length: -1\r\n", "", "400"},
		"a blank before the colon":      {"Content-Length: 5\r\nTransfer-Encoding : chunked\r\n", "0\r\n\r\n", "400"},
		"another encoding":              {"Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n", "0\r\n\r\n", "501"},
		"two encodings":                 {"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n", "501"},
		"two encodings in one":          {"Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n", "501"},
		"an encoding behind a control":  {"Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n", "400"},
		"a name with a control in it":   {"Transfer\x00-Encoding: chunked\r\n", "0\r\n\r\n", "400"},
		"a header on a line of its own": {"X: a\r\n Transfer-Encoding: chunked\r\n\x00: b\r\n", "0\r\n\r\n", "400"},
		"two hosts":                     {"Host: y\r\n", "", "400"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\n"+tt.headers+"\r\n"+tt.body+inner); err != nil {
				t.Fatal(err)
			}
			// A server that ends a connection with bytes that nobody read may have it
			// reset; the answer is there by then.
			b, err := io.ReadAll(c)
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				t.Errorf("the connection goes on after %q", b)
			}
			if n := strings.Count(string(b), "HTTP/1.1 "); n != 1 || !strings.HasPrefix(string(b), "HTTP/1.1 "+tt.want) {
				t.Errorf("%d answers, %q; want one, %s", n, b, tt.want)
			}
		})
	}
	if n := smuggled.Load(); n > 0 {
		t.Errorf("%d requests were smuggled", n)
	}
}
