package oidc

import (
	"log/slog"
	"strconv"
	"testing"

	"github.com/lpmos/lpmos"
)

// Who makes up states keeps nobody else from signing in.
func TestStatesWithoutEnd(t *testing.T) {
	p, err := New(Config{Issuer: "https://id.example.net", ClientID: "lpmos", Grants: []Grant{{Group: "ops", Role: lpmos.Operator}}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxUsed {
		p.once(strconv.Itoa(i))
	}
	if p.once("0") {
		t.Error("a state counts a second time")
	}
	if !p.once("a person's") || p.once("a person's") {
		t.Error("after many states that were made up, another does not count once")
	}
	if len(p.used) > maxUsed {
		t.Errorf("%d states are remembered; want %d at most", len(p.used), maxUsed)
	}
}

// FuzzAttempt reads the cookie that a browser brings back.
func FuzzAttempt(f *testing.F) {
	f.Add(Attempt{State: "s", Nonce: "n", Verifier: "v"}.Encode())
	f.Fuzz(func(t *testing.T, s string) {
		a, ok := DecodeAttempt(s)
		if !ok {
			return
		}
		if again, ok := DecodeAttempt(a.Encode()); !ok || again != a {
			t.Fatalf("%+v is read back as %+v, %v", a, again, ok)
		}
	})
}
