package httpboot

import (
	"io"
	"net/http"
	"time"
)

const (
	headerTime  = 5 * time.Second
	idleTime    = 60 * time.Second
	headerBytes = 16 << 10
	// stallTime is how long a client may take for stallBytes: 34 kB/s.
	stallTime  = 2 * time.Minute
	stallBytes = 4 << 20
)

// NewServer returns a server with limits for clients on an open network. It has
// no limit on the time of a whole answer, because an image may take long; Handler
// limits how long an answer may stand still. Nor has it one on reading a whole
// request: Handler takes no bodies, and that limit would end the context of a
// request that waits for a blob.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    headerBytes,

		DisableGeneralOptionsHandler: true,
	}
}

// steady ends an answer that its client does not take, by a deadline for every
// stallBytes of it.
func steady(w http.ResponseWriter) *steadyWriter {
	return &steadyWriter{w, http.NewResponseController(w)}
}

type steadyWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (w *steadyWriter) extend() {
	// Not every writer has deadlines; those of tests need none.
	_ = w.control.SetWriteDeadline(time.Now().Add(stallTime))
}

// Unwrap is for http.ResponseController.
func (w *steadyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *steadyWriter) Write(b []byte) (int, error) {
	w.extend()
	return w.ResponseWriter.Write(b)
}

// ReadFrom keeps the kernel's file-to-socket copy, in pieces.
func (w *steadyWriter) ReadFrom(r io.Reader) (total int64, err error) {
	rest, limited := r.(*io.LimitedReader)
	if !limited {
		return io.Copy(onlyWriter{w}, r)
	}
	for rest.N > 0 {
		w.extend()
		n, err := io.Copy(w.ResponseWriter, io.LimitReader(rest.R, min(rest.N, stallBytes)))
		rest.N -= n
		total += n
		if err != nil || n == 0 {
			return total, err
		}
	}
	return total, nil
}

// onlyWriter hides ReadFrom.
type onlyWriter struct{ io.Writer }
