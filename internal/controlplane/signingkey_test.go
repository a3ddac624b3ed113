package controlplane

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// T05: a signing key that is empty, cut off, another kind, or cannot be read is
// never replaced, and nothing starts without it. One that was named is never
// made.
func TestSigningKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "signing.key")
	made, err := loadKey(path, true)
	if err != nil {
		t.Fatal(err)
	}
	// Two that start at once share one.
	var wg sync.WaitGroup
	shared := filepath.Join(dir, "shared.key")
	keys := make([]ed25519.PrivateKey, 16)
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = loadKey(shared, true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keys[1:] {
		if !k.Equal(keys[0]) {
			t.Error("two that started at once have keys of their own")
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("it has mode %v, %v; want 0600", st.Mode(), err)
	}
	if again, err := loadKey(path, true); err != nil || !again.Equal(made) {
		t.Errorf("the next start has another key (%v)", err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"empty": {}, "cut off": whole[:len(whole)/2], "text": []byte("-1\n"),
		"another kind":  bytes.ReplaceAll(whole, []byte("LPMOS SIGNING KEY"), []byte("RSA PRIVATE KEY")),
		"too short":     pem.EncodeToMemory(&pem.Block{Type: "LPMOS SIGNING KEY", Bytes: make([]byte, 31)}),
		"a certificate": []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"),
	} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, create := range []bool{true, false} {
			if _, err := loadKey(path, create); err == nil {
				t.Errorf("a key file that is %s is taken", name)
			}
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, text) {
			t.Errorf("a key file that is %s was replaced", name)
		}
	}
	if _, err := loadKey(filepath.Join(dir, "none"), false); err == nil {
		t.Error("a key that was named and is not there was made")
	}
	if _, err := loadKey(dir, true); err == nil {
		t.Error("a directory is taken for a key")
	}
	block, _ := pem.Decode(verifyKey(made))
	if block == nil || !bytes.Contains(block.Bytes, made.Public().(ed25519.PublicKey)) || bytes.Contains(block.Bytes, made.Seed()) {
		t.Error("the file for who verifies is not the public half alone")
	}
}
