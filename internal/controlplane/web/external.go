package web

import (
	"errors"
	"net/http"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/oidc"
)

// Signing in with an identity provider. The browser goes there and comes back
// with a code; what it has to bring along is in a cookie of its own.

const callbackPath = "/login/oidc/callback"

// beginExternal sends the browser to the provider.
func (w *Web) beginExternal(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.Provider == nil || w.cfg.People == nil {
		w.showProblem(rw, r, w.notFoundPage(r.URL.Path))
		return
	}
	q := r.URL.Query()
	back := localPath(q.Get("return"))
	to, a, err := w.cfg.Provider.Begin(r.Context(), w.cfg.People.Origin(r)+callbackPath, back, q.Get("fresh") == "1")
	if err != nil {
		w.notExternal(rw, r, back, err)
		return
	}
	w.cfg.People.SetAttempt(rw, r, a.Encode(), oidc.AttemptFor)
	rw.Header().Set("Cache-Control", "no-store")
	http.Redirect(rw, r, to, http.StatusSeeOther)
}

// finishExternal takes what the browser brings back. The page that follows is
// asked for by a page of ours: what another site's page starts comes without
// the session's cookie.
func (w *Web) finishExternal(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.Provider == nil || w.cfg.People == nil {
		w.showProblem(rw, r, w.notFoundPage(r.URL.Path))
		return
	}
	a, ok := oidc.DecodeAttempt(w.cfg.People.Attempt(r))
	w.cfg.People.SetAttempt(rw, r, "", 0)
	if !ok {
		w.showLogin(rw, r, http.StatusBadRequest, loginView{Why: w.T("This sign-in was not begun in this browser, or is too old. Begin again.")})
		return
	}
	back := localPath(a.Return)
	id, err := w.cfg.Provider.Finish(r.Context(), w.cfg.People.Origin(r)+callbackPath, a, r.URL.Query())
	var secret string
	if err == nil {
		secret, _, err = w.cfg.People.SignInExternal(r.Context(), id, w.me.From, r.UserAgent())
	}
	if err != nil {
		w.notExternal(rw, r, back, err)
		return
	}
	if w.me.Kind == auth.Session {
		if err := w.cfg.People.Logout(r.Context(), w.me); err != nil {
			w.log.Warn("end the session before", "err", err)
		}
	}
	w.cfg.People.SetCookie(rw, r, secret)
	w.show(rw, r, http.StatusOK, "login", page{Title: w.T("Sign in"), Body: loginView{Again: back}})
}

// notExternal says why a sign-in with the provider came to nothing, on the page
// on which a password still works.
func (w *Web) notExternal(rw http.ResponseWriter, r *http.Request, back string, err error) {
	v, status := loginView{Return: back}, http.StatusUnauthorized
	denied, isDenied := errors.AsType[*auth.DeniedError](err)
	_, isDown := errors.AsType[*oidc.UnavailableError](err)
	name := w.cfg.Provider.Name()
	switch {
	case isDown:
		status = http.StatusBadGateway
		v.Problem, v.Left = w.T("%s does not answer.", name), w.T("Try again in a moment, or sign in with a password of this site.")
		w.log.Warn("identity provider does not answer", "err", err)
	case isDenied:
		status = http.StatusForbidden
		v.Problem = w.Said(sentence(denied.Text))
	case errors.Is(err, oidc.ErrCanceled):
		v.Problem, v.Left = w.T("%s did not let you in.", name), w.T("Try again, or sign in with a password of this site.")
		w.log.Info("sign-in ended at the identity provider", "addr", w.me.From, "err", err)
	case errors.Is(err, oidc.ErrRefused):
		v.Problem, v.Left = w.T("What %s answered was not accepted.", name), w.T("Begin again; if it happens every time, an admin finds the reason in the log.")
		w.log.Warn("sign-in refused", "addr", w.me.From, "err", err)
	case errors.Is(err, lpmos.ErrUnavailable):
		status = http.StatusServiceUnavailable
		v.Problem = w.T("The store does not answer")
	default:
		w.fail(rw, r, err)
		return
	}
	w.showLogin(rw, r, status, v)
}
