package auth

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

func TestReauthenticate(t *testing.T) {
	m, c := newMemory(), newClock()
	a := newAuth(m, c)
	user(t, a, "anna", lpmos.Approver)
	secret, p, err := a.Login(t.Context(), "anna", good, "192.0.2.1", "")
	if err != nil || !p.ProvedAt.Equal(c.now()) {
		t.Fatalf("who just signed in proved it at %v (%v); want now", p.ProvedAt, err)
	}
	c.move(20 * time.Minute)
	if _, err := a.Reauthenticate(t.Context(), p, "not the password"); !isField(err, "password") {
		t.Errorf("a wrong password = %v; want an InvalidError of it", err)
	}
	if now := ask(a, secret, ""); c.now().Sub(now.ProvedAt) != 20*time.Minute {
		t.Errorf("after a wrong password it is proved at %v", now.ProvedAt)
	}
	if p, err = a.Reauthenticate(t.Context(), p, good); err != nil || !p.ProvedAt.Equal(c.now()) {
		t.Errorf("the right password = %v, %v", p.ProvedAt, err)
	}
	if now := ask(a, secret, ""); !now.ProvedAt.Equal(c.now()) {
		t.Errorf("the session remembers %v; want now", now.ProvedAt)
	}
	// Notes of use do not take it away.
	c.move(2 * time.Minute)
	ask(a, secret, "")
	a.tidy(t.Context())
	if s := m.signIns[Hash(secret)]; s.ProvedAt.IsZero() || !s.SeenAt.Equal(c.now()) {
		t.Errorf("the store has %+v; want both when it was seen and when it was proved", s)
	}

	token, _, err := a.CreateToken(t.Context(), p, NewToken{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	by := ask(a, "", token)
	if !by.ProvedAt.IsZero() || !by.Approver().Token || !by.Approver().User {
		t.Errorf("a token proves %+v; want a user's token, and no proof", by.Approver())
	}
	if by, err = a.Reauthenticate(t.Context(), by, good); err != nil || by.ProvedAt.IsZero() {
		t.Errorf("a token with the password = %v, %v", by.ProvedAt, err)
	}
	if again := ask(a, "", token); !again.ProvedAt.IsZero() {
		t.Error("the token remembers the password of an earlier request")
	}
	local := ask(a, "", a.LocalToken("local"))
	if _, err := a.Reauthenticate(t.Context(), local, good); !isField(err, "password") || local.Approver().User {
		t.Errorf("a program of the host = %v, user %v; want neither", err, local.Approver().User)
	}
	for range tryAccount {
		_, _ = a.Reauthenticate(t.Context(), p, "wrong")
	}
	var throttled *ThrottledError
	if _, err := a.Reauthenticate(t.Context(), p, good); !errors.As(err, &throttled) {
		t.Errorf("after %d wrong ones = %v; want to be held back", tryAccount, err)
	}
}

func isField(err error, field string) bool {
	e, ok := errors.AsType[*lpmos.InvalidError](err)
	return ok && e.Field == field
}

// A token that its user calls "local" is no program of the host.
func TestTokensCalledLocalAreCounted(t *testing.T) {
	a := newAuth(newMemory(), newClock())
	user(t, a, "anna", lpmos.Viewer)
	_, p, err := a.Login(t.Context(), "anna", good, "192.0.2.1", "")
	if err != nil {
		t.Fatal(err)
	}
	secret, _, err := a.CreateToken(t.Context(), p, NewToken{Name: "local"})
	if err != nil {
		t.Fatal(err)
	}
	by := ask(a, "", secret)
	for range peopleBurst {
		a.limits.take(by, "/api/v1/tasks", a.cfg.Now())
	}
	if a.limits.take(by, "/api/v1/tasks", a.cfg.Now()) == 0 {
		t.Error("a token called local asks without end")
	}
}

func identity(role lpmos.Role, regions ...string) Identity {
	return Identity{Issuer: "https://id.example.net", Provider: "Example", Subject: "0001", Name: "anna", Email: "anna@example.net", Groups: []string{"ops"}, Role: role, Regions: regions}
}

func TestSignInExternal(t *testing.T) {
	denied := func(t *testing.T, err error, part string) {
		t.Helper()
		if d, ok := errors.AsType[*DeniedError](err); !ok || !strings.Contains(d.Text, part) {
			t.Errorf("= %v; want to be denied, with %q", err, part)
		}
	}
	in := func(t *testing.T, a *Auth, id Identity) (string, Principal, error) {
		t.Helper()
		return a.SignInExternal(t.Context(), id, "192.0.2.1", "browser")
	}
	t.Run("makes the user, and maps the role anew each time", func(t *testing.T) {
		m, c := newMemory(), newClock()
		a := newAuth(m, c)
		id := identity(lpmos.Approver, "dc1")
		id.ProvedAt = c.now()
		secret, p, err := in(t, a, id)
		if err != nil || p.Name != "anna" || p.Role != lpmos.Approver || !slices.Equal(p.Regions, []string{"dc1"}) || p.MustChange || !p.ProvedAt.Equal(c.now()) {
			t.Fatalf("first sign-in = %+v, %v", p, err)
		}
		if u := m.users["anna"]; u.Password != "" || u.External == nil || u.External.Email != "anna@example.net" || u.CreatedBy != "Example" {
			t.Errorf("stored is %+v; want a user without a password", u)
		}
		if _, _, err := a.Login(t.Context(), "anna", "", "192.0.2.1", ""); !errors.Is(err, lpmos.ErrSignedOut) {
			t.Errorf("signing in with an empty password = %v", err)
		}
		// The name there may change, the subject may not.
		id = identity(lpmos.Viewer)
		id.Name = "anna.m"
		if _, p, err = in(t, a, id); err != nil || p.Name != "anna" || p.Role != lpmos.Viewer || p.Regions != nil {
			t.Errorf("with fewer groups = %+v, %v", p, err)
		}
		if now := ask(a, secret, ""); now.Role != lpmos.Viewer {
			t.Errorf("the session before has the role %s; want the smaller one at once", now.Role)
		}
	})
	t.Run("a group that is gone ends all sessions and tokens", func(t *testing.T) {
		m, c := newMemory(), newClock()
		a := newAuth(m, c)
		secret, p, err := in(t, a, identity(lpmos.Admin))
		if err != nil {
			t.Fatal(err)
		}
		token, _, err := a.CreateToken(t.Context(), p, NewToken{Name: "ci"})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = in(t, a, identity(""))
		denied(t, err, "none of your groups at Example")
		if ask(a, secret, "").SignedIn() || ask(a, "", token).SignedIn() {
			t.Error("a session or a token still counts")
		}
		if _, p, err := in(t, a, identity(lpmos.Viewer)); err != nil || p.Role != lpmos.Viewer {
			t.Errorf("with a group again = %+v, %v", p, err)
		}
		if ask(a, secret, "").SignedIn() {
			t.Error("the session of before counts again")
		}
	})
	t.Run("nobody is made without a group", func(t *testing.T) {
		m := newMemory()
		_, _, err := in(t, newAuth(m, newClock()), identity(""))
		denied(t, err, "none of your groups")
		if len(m.users) != 0 {
			t.Errorf("made %v", m.users)
		}
	})
	t.Run("a name or an address that is somebody else's is refused", func(t *testing.T) {
		m := newMemory()
		a := newAuth(m, newClock())
		user(t, a, "anna", lpmos.Admin)
		was := m.users["anna"]
		_, _, err := in(t, a, identity(lpmos.Viewer))
		denied(t, err, "a user anna already")
		if now := m.users["anna"]; now.Role != was.Role || now.Password != was.Password || now.External != nil {
			t.Errorf("the local user is %+v now", now)
		}
		id := identity(lpmos.Viewer)
		id.Name = "ben"
		if _, _, err := in(t, a, id); err != nil {
			t.Fatal(err)
		}
		for what, other := range map[string]Identity{
			"another subject with the name":    {Issuer: id.Issuer, Provider: "Example", Subject: "0002", Name: "ben", Role: lpmos.Admin},
			"another issuer with the subject":  {Issuer: "https://evil.example.net", Provider: "Evil", Subject: "0001", Name: "ben", Role: lpmos.Admin},
			"another subject with the address": {Issuer: id.Issuer, Provider: "Example", Subject: "0002", Name: "carl", Email: id.Email, Role: lpmos.Admin},
		} {
			if _, _, err := in(t, a, other); !errors.Is(err, lpmos.ErrForbidden) {
				t.Errorf("%s = %v; want refused", what, err)
			}
		}
		if u := m.users["ben"]; u.Role != lpmos.Viewer || u.External.Subject != "0001" {
			t.Errorf("ben is %+v now", u)
		}
	})
	t.Run("who is disabled here stays out", func(t *testing.T) {
		a := newAuth(newMemory(), newClock())
		if _, _, err := in(t, a, identity(lpmos.Viewer)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.SetAccess(t.Context(), "anna", Access{Role: lpmos.Viewer, Disabled: true}, ""); err != nil {
			t.Fatal(err)
		}
		_, _, err := in(t, a, identity(lpmos.Admin))
		denied(t, err, "disabled here")
	})
	t.Run("neither password nor role is changed here", func(t *testing.T) {
		a := newAuth(newMemory(), newClock())
		_, p, err := in(t, a, identity(lpmos.Viewer))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.ResetPassword(t.Context(), "anna"); !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("ResetPassword = %v", err)
		}
		if _, _, err := a.ChangePassword(t.Context(), p, "", good, ""); !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("ChangePassword = %v", err)
		}
		if _, err := a.SetAccess(t.Context(), "anna", Access{Role: lpmos.Admin}, ""); !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("SetAccess = %v", err)
		}
		if _, err := a.Reauthenticate(t.Context(), p, good); !isField(err, "password") {
			t.Errorf("Reauthenticate = %v", err)
		}
	})
	t.Run("a name that is none is refused", func(t *testing.T) {
		id := identity(lpmos.Viewer)
		id.Name = "../anna"
		_, _, err := in(t, newAuth(newMemory(), newClock()), id)
		denied(t, err, "cannot be a user name")
	})
	t.Run("the last admin with a password stays", func(t *testing.T) {
		a := newAuth(newMemory(), newClock())
		user(t, a, "root", lpmos.Admin)
		if _, _, err := in(t, a, identity(lpmos.Admin)); err != nil {
			t.Fatal(err)
		}
		if err := a.DeleteUser(t.Context(), "root"); !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("DeleteUser of the last who needs no provider = %v", err)
		}
		if err := a.DeleteUser(t.Context(), "anna"); err != nil {
			t.Errorf("DeleteUser of who signs in elsewhere = %v", err)
		}
	})
}
