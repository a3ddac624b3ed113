package vault

import (
	"crypto/ed25519"
	"strings"
	"testing"
)

func TestVault(t *testing.T) {
	open := func() *Vault {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		v, err := New(key)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := open()
	const secret = "CANARY hunter2"
	sealed := v.Seal("profile web", []byte(secret))
	if strings.Contains(sealed, "hunter2") || sealed == v.Seal("profile web", []byte(secret)) {
		t.Errorf("sealed = %q; want ciphertext, another every time", sealed)
	}
	if b, err := v.Open("profile web", sealed); err != nil || string(b) != secret {
		t.Errorf("Open = %q, %v", b, err)
	}
	last := sealed[:len(sealed)-4] + "AAAA"
	for name, c := range map[string]struct {
		v               *Vault
		purpose, sealed string
	}{
		"another purpose": {v, "profile db", sealed}, "altered text": {v, "profile web", last}, "another key": {open(), "profile web", sealed},
		"nothing": {v, "profile web", ""}, "another version": {v, "profile web", "v9" + sealed[2:]}, "no base64": {v, "profile web", sealed + "!"},
	} {
		if b, err := c.v.Open(c.purpose, c.sealed); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open with %s = %q, %v; want an error that quotes nothing", name, b, err)
		}
	}
	if _, err := New(nil); err == nil {
		t.Error("New without a key = nil")
	}
}
