package web

import (
	"context"
	"net/http"
	"strings"

	"github.com/lpmos/lpmos"
)

// tpmWords say what a machine's TPM is worth: b is the one it was first approved
// with.
func (s *tongue) tpmWords(h *lpmos.TPM, b *lpmos.TPMBinding) string {
	switch {
	case b != nil && b.Is(h):
		return s.T("the machine is bound to it: a clone without it gets nothing")
	case b != nil:
		return s.T("not the one it was approved with (%s)", lpmos.Shorten(b.Fingerprint(), 24))
	case h != nil && h.Problem != "":
		return s.T("cannot be used: %s", h.Problem)
	case h != nil:
		return s.T("the first approval binds the machine to it")
	}
	return s.T("none: a clone of MAC and serial number can’t be told apart before the permit")
}

// lock keeps a machine as it is.
func (w *Web) lock(rw http.ResponseWriter, r *http.Request) {
	w.machineAction(rw, r, func(ctx context.Context, mac lpmos.MAC) error {
		_, err := w.actions.Lock(ctx, mac, strings.TrimSpace(r.PostForm.Get("reason")), w.cfg.Person(r))
		return err
	}, func(m lpmos.Machine) bool { return m.Lock != nil })
}

// unlock takes the lock away.
func (w *Web) unlock(rw http.ResponseWriter, r *http.Request) {
	w.machineAction(rw, r, func(ctx context.Context, mac lpmos.MAC) error { return w.actions.Unlock(ctx, mac, w.cfg.Person(r)) },
		func(m lpmos.Machine) bool { return m.Lock == nil })
}

// forgetTPM lets a machine come with another TPM.
func (w *Web) forgetTPM(rw http.ResponseWriter, r *http.Request) {
	w.machineAction(rw, r, func(ctx context.Context, mac lpmos.MAC) error { return w.actions.ForgetTPM(ctx, mac, w.cfg.Person(r)) },
		func(m lpmos.Machine) bool { return m.TPM == nil })
}

// machineAction does something to a machine and shows its page once that knows.
func (w *Web) machineAction(rw http.ResponseWriter, r *http.Request, do func(context.Context, lpmos.MAC) error, done func(lpmos.Machine) bool) {
	if !readForm(rw, r) {
		return
	}
	mac, err := lpmos.ParseMAC(r.PathValue("mac"))
	ctx, cancel := actionContext(r)
	defer cancel()
	if err == nil {
		err = do(ctx, mac)
	}
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	w.until(ctx, func() bool {
		m, ok := w.reader.Machine(mac)
		return !ok || done(m)
	})
	http.Redirect(rw, r, "/machines/"+mac.String(), http.StatusSeeOther)
}
