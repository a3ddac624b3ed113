package lpmos_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

func TestAgentKey(t *testing.T) {
	k, err := lpmos.NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := lpmos.NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	pub := k.Public()
	if err := pub.Validate(); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]lpmos.AgentPublic{"nothing": {}, "half": {Sign: pub.Sign}, "a short key": {Sign: pub.Sign[1:], Box: pub.Box}} {
		if bad.Validate() == nil {
			t.Errorf("%s is taken for a key", name)
		}
	}
	mixed := lpmos.AgentPublic{Sign: pub.Sign, Box: other.Public().Box}
	if mixed.Fingerprint() == pub.Fingerprint() {
		t.Error("the fingerprint does not cover both halves")
	}
	if words := strings.Fields(lpmos.KeyWords(pub.Fingerprint())); len(words) != 8 || lpmos.KeyWords(pub.Fingerprint()) == lpmos.KeyWords(other.Public().Fingerprint()) {
		t.Errorf("words = %q", words)
	}
	// The list is part of the protocol: agents and control planes of different
	// versions must spell the same.
	if got, want := lpmos.KeyWords("sha256:"+"00ff017f80fe1020"+strings.Repeat("00", 24)), "acid zebra acorn garden garlic whale aspen bike"; got != want {
		t.Errorf("KeyWords = %q; want %q", got, want)
	}
	if lpmos.KeyWords("x") != "" {
		t.Error("what is no fingerprint has words")
	}
	sealed, err := pub.Seal("task 1", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := k.Open("task 1", sealed); err != nil || string(b) != "secret" {
		t.Errorf("Open = %q, %v", b, err)
	}
	for name, open := range map[string]func() ([]byte, error){
		"another key": func() ([]byte, error) { return other.Open("task 1", sealed) }, "another context": func() ([]byte, error) { return k.Open("task 2", sealed) },
		"an altered text": func() ([]byte, error) { return k.Open("task 1", append([]byte{sealed[0] ^ 1}, sealed[1:]...)) },
	} {
		if b, err := open(); err == nil {
			t.Errorf("Open with %s = %q", name, b)
		}
	}
}

func TestSecretIsNotShown(t *testing.T) {
	type holder struct{ inside lpmos.Secret }
	s := lpmos.NewSecret("CANARY")
	set, err := lpmos.NewSecretSet(map[string]lpmos.Secret{"a": s})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{s, &s, holder{s}, []lpmos.Secret{s}, map[string]lpmos.Secret{"x": s}, set, struct{ x lpmos.SecretSet }{set}} {
		for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
			if text := fmt.Sprintf(f, v); strings.Contains(text, "CANARY") {
				t.Errorf("%s of %T = %s", f, v, text)
			}
		}
	}
	// What an encoder puts in its place is not taken for a value on the way back.
	var again lpmos.Secret
	if text, err := s.MarshalText(); err != nil || again.UnmarshalText(text) != nil {
		t.Fatal(err)
	}
	if _, err := lpmos.NewSecretSet(map[string]lpmos.Secret{"a": again}); err == nil {
		t.Errorf("%q is taken for a secret", again.Reveal())
	}
	if s.Reveal() != "CANARY" || !(lpmos.Secret{}).IsZero() {
		t.Error("a secret does not keep its value")
	}
}
