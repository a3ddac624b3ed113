package web

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

// stopPage asks before everything is stopped, and says what that does.
func (w *Web) stopPage(rw http.ResponseWriter, r *http.Request) {
	rev := w.rev()
	counts := w.reader.Counts()
	command := "lpmos stop"
	if w.reader.Stopped() != nil {
		command = "lpmos resume"
	}
	w.show(rw, r, http.StatusOK, "stop", page{Title: w.T("Emergency stop"), Nav: "stop", Rev: rev, Body: struct {
		Waiting, Writing int
		Command          string
	}{counts[lpmos.Approved], counts[lpmos.Installing], command}})
}

func (w *Web) stop(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	ctx, cancel := actionContext(r)
	defer cancel()
	if _, err := w.actions.Stop(ctx, strings.TrimSpace(r.PostForm.Get("reason")), w.cfg.Person(r)); err != nil {
		w.fail(rw, r, err)
		return
	}
	w.until(ctx, func() bool { return w.reader.Stopped() != nil })
	http.Redirect(rw, r, "/stop", http.StatusSeeOther)
}

func (w *Web) resume(rw http.ResponseWriter, r *http.Request) {
	ctx, cancel := actionContext(r)
	defer cancel()
	if err := w.actions.Resume(ctx, w.cfg.Person(r)); err != nil {
		w.fail(rw, r, err)
		return
	}
	w.until(ctx, func() bool { return w.reader.Stopped() == nil })
	http.Redirect(rw, r, "/stop", http.StatusSeeOther)
}

// until waits a moment until the read model knows, so that the page that follows
// shows what was done.
func (w *Web) until(ctx context.Context, known func() bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !known() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
