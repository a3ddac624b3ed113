// Package service runs the long-lived parts of a process: together, until the
// first signal, and then until each has ended.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

// DrainTimeout is how long servers may take to finish requests after the first
// signal. A process has 10 s (contract §1), and closes its store afterwards; a
// download that stands still would always take all of it.
const DrainTimeout = 8 * time.Second

// Run starts every part and returns when all have returned. When one ends,
// whatever the reason, the others' context is canceled. That a part was broken
// off because ctx ended, also while it was starting, is no error.
func Run(ctx context.Context, parts ...func(context.Context) error) error {
	asked := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(parts))
	for i, part := range parts {
		wg.Go(func() {
			defer cancel()
			if err := part(ctx); asked.Err() == nil || !errors.Is(err, context.Canceled) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// SaveMemory is a part of a process that holds much for long: from when ready is
// closed, the garbage collector runs twice as often as usual, for about two thirds
// of the memory. Until then nearly all that there is stays, and it would look
// through it in vain. Whoever set GOGC is obeyed instead.
func SaveMemory(ready <-chan struct{}) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-ready:
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(50)
				debug.FreeOSMemory()
			}
			<-ctx.Done()
		case <-ctx.Done():
		}
		return nil
	}
}

// Signals returns a context that ends at the first SIGINT or SIGTERM. A second
// one ends the process at once.
func Signals(ctx context.Context, log *slog.Logger) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case s := <-ch:
			log.Info("stopping, once more to stop at once", "signal", s.String())
			cancel()
			<-ch
			os.Exit(130)
		case <-ctx.Done():
			signal.Stop(ch)
		}
	}()
	return ctx, cancel
}

// HTTPServer has the limits that every listener of LPMOS starts from.
func HTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: endAfterChunks(h), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 60 * time.Second,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// endAfterChunks ends the connection behind a request whose body came in chunks.
// If it had a length as well, a proxy may believe in another end of it than we
// do, and what follows would be a request that the proxy never saw (RFC 9112,
// §6.1). The length is gone by now, and so both kinds are treated alike; what
// browsers and our own clients send has a length alone.
func endAfterChunks(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// Serve serves HTTP on l until ctx ends, then drains. With a TLS configuration
// in srv the listener speaks TLS.
func Serve(ctx context.Context, srv *http.Server, l net.Listener) error {
	srv.BaseContext = func(net.Listener) context.Context { return context.WithoutCancel(ctx) }
	stop := context.AfterFunc(ctx, func() {
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), DrainTimeout)
		defer cancel()
		if srv.Shutdown(dctx) != nil {
			srv.Close()
		}
	})
	var err error
	if srv.TLSConfig != nil {
		err = srv.ServeTLS(l, "", "")
	} else {
		err = srv.Serve(l)
	}
	if !stop() {
		// Shutdown runs: wait until it is done.
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), DrainTimeout)
		defer cancel()
		_ = srv.Shutdown(dctx) // the one above closes what is left
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// Listen opens a TCP listener and says what to do when it cannot.
func Listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: %w (another program has it: stop it, or choose another address)", addr, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen on %s: %w (run as root, or grant cap_net_bind_service)", addr, err)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}
