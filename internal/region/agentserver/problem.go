package agentserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// retryAfter is what 503 and 429 ask for, in seconds.
const retryAfter = 2

var (
	// errUnknown has one text for all that is wrong with a credential, so that
	// trying teaches nothing.
	errUnknown   = errors.New("the credential is not valid (any more)")
	errTooMany   = errors.New("more requests than an agent has reason for")
	errForbidden = errors.New("forbidden")
)

func unavailable(why string) error { return fmt.Errorf("%w: %s", lpmos.ErrUnavailable, why) }
func forbidden(why string) error   { return fmt.Errorf("%w: %s", errForbidden, why) }

// problem is the one place where errors become answers.
func problem(err error) agentapi.Problem {
	status := http.StatusInternalServerError
	detail := err.Error()
	switch {
	case is[*lpmos.InvalidError](err):
		status = http.StatusBadRequest
	case errors.Is(err, errUnknown):
		status = http.StatusUnauthorized
	case errors.Is(err, errForbidden):
		status = http.StatusForbidden
	case errors.Is(err, lpmos.ErrTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, errTooMany):
		status = http.StatusTooManyRequests
	case is[*lpmos.ConflictError](err):
		status = http.StatusConflict
	case errors.Is(err, lpmos.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, lpmos.ErrUnavailable), errors.Is(err, lpmos.ErrConflict),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		// A plain conflict is about this process, not the request: another
		// instance has taken the region over and will answer.
		status = http.StatusServiceUnavailable
	default:
		detail = "the region met something it did not expect; its log says what"
	}
	return agentapi.Problem{Title: http.StatusText(status), Status: status, Detail: detail}
}

func is[E error](err error) bool { _, ok := errors.AsType[E](err); return ok }

// handle registers a route. What the function returns is the answer.
func (s *Server) handle(pattern string, f func(*http.Request) (any, error)) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		s.stats.requests.Add(1)
		w.Header().Set("Cache-Control", "no-store")
		answer, err := f(r)
		if err == nil {
			writeJSON(w, "application/json", http.StatusOK, answer)
			return
		}
		p := problem(err)
		switch p.Status {
		case http.StatusInternalServerError:
			s.log.Error("agent request went wrong", "path", r.URL.Path, "addr", r.RemoteAddr, "err", err)
		case http.StatusServiceUnavailable, http.StatusTooManyRequests:
			w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		s.stats.refused(p.Status)
		s.log.Debug("agent request refused", "path", r.URL.Path, "addr", r.RemoteAddr, "status", p.Status, "err", err)
		writeJSON(w, "application/problem+json", p.Status, p)
	})
}

func writeJSON(w http.ResponseWriter, mediaType string, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("agentserver: encode %T: %v", v, err))
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b) // an agent that is gone asks again
}
