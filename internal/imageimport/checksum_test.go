package imageimport

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lpmos/lpmos/internal/preflight"
	"github.com/lpmos/lpmos/internal/tier"
	"github.com/lpmos/lpmos/test/fixture"
)

func TestFindSum(t *testing.T) {
	a, b, long := strings.Repeat("ab", 32), strings.Repeat("cd", 32), strings.Repeat("ef", 64)
	for _, c := range []struct{ name, list, want string }{
		{"coreutils", a + "  disk.img\n", "sha256:" + a},
		{"coreutils of binary files", b + " *other.img\n" + a + " *disk.img\n", "sha256:" + a},
		{"with ./", a + "  ./disk.img\n", "sha256:" + a},
		{"BSD, as Rocky has it", "# disk.img: 123 bytes\nSHA256 (disk.img) = " + strings.ToUpper(a) + "\n", "sha256:" + a},
		{"SHA-512", long + "  disk.img\n", "sha512:" + long},
		{"both: the stronger", a + "  disk.img\n" + long + "  disk.img\n", "sha512:" + long},
		{"one digest alone, as openSUSE has it", a + "\n", "sha256:" + a},
		{"inside a signed text", "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nSHA256 (disk.img) = " + a + "\n-----BEGIN PGP SIGNATURE-----\nxx\n", "sha256:" + a},
		{"twice the same", a + "  disk.img\n" + a + "  disk.img\n", "sha256:" + a},
		{"two that differ", a + "  disk.img\n" + b + "  disk.img\n", ""},
		{"MD5", strings.Repeat("ab", 16) + "  disk.img\n", ""},
		{"of a path", a + "  elsewhere/disk.img\n", ""},
		{"nothing", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := FindSum([]byte(c.list), "disk.img")
			if c.want == "" && err == nil || c.want != "" && (err != nil || got.String() != c.want) {
				t.Errorf("FindSum = %v, %v; want %q", got, err, c.want)
			}
		})
	}
}

// TestSignature signs a list with keys made for the test and verifies it with
// gpgv: M08 for what comes from outside.
func TestSignature(t *testing.T) {
	for _, tool := range []string{"gpg", "gpgv"} {
		if _, err := fixture.Tool(tool); err != nil {
			tier.Missing(t, "images", err.Error())
		}
	}
	home, err := os.MkdirTemp("", "lpmos-gpg-") // a socket is in it: t.TempDir is too deep
	must(t, err)
	t.Cleanup(func() {
		fixture.Run(t.Context(), "gpgconf", "--homedir", home, "--kill", "all")
		os.RemoveAll(home)
	})
	gpg := func(args ...string) string {
		t.Helper()
		out, err := fixture.Run(t.Context(), "gpg", append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
		must(t, err)
		return out
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	gpg("--quick-gen-key", "Mirror <mirror@example>", "ed25519", "sign", "never")
	gpg("--quick-gen-key", "Somebody <else@example>", "ed25519", "sign", "never")
	gpg("--output", at("ring.gpg"), "--export", "Mirror")
	gpg("--armor", "--output", at("ring.asc"), "--export", "Mirror")
	list := []byte(strings.Repeat("ab", 32) + "  noble.img\n")
	must(t, os.WriteFile(at("SUMS"), list, 0o644))
	gpg("--local-user", "Mirror", "--output", at("SUMS.gpg"), "--detach-sign", at("SUMS"))
	gpg("--local-user", "Mirror", "--armor", "--output", at("SUMS.asc"), "--detach-sign", at("SUMS"))
	gpg("--local-user", "Mirror", "--output", at("SUMS.inline"), "--clearsign", at("SUMS"))
	gpg("--local-user", "Somebody", "--output", at("SUMS.other"), "--detach-sign", at("SUMS"))
	read := func(name string) []byte {
		b, err := os.ReadFile(at(name))
		must(t, err)
		return b
	}
	for _, c := range []struct{ ring, sig string }{{"ring.gpg", "SUMS.gpg"}, {"ring.asc", "SUMS.gpg"}, {"ring.asc", "SUMS.asc"}} {
		text, signer, err := signature(t.Context(), dir, list, read(c.sig), at(c.ring))
		if err != nil || !bytes.Equal(text, list) || !strings.Contains(signer, "Mirror <mirror@example>") {
			t.Errorf("signature(%s, %s) = %q, %v", c.ring, c.sig, signer, err)
		}
	}
	if text, signer, err := signature(t.Context(), dir, read("SUMS.inline"), nil, at("ring.gpg")); err != nil || !bytes.Equal(bytes.TrimSpace(text), bytes.TrimSpace(list)) || signer == "" {
		t.Errorf("signature of a text signed in itself = %q, %q, %v", text, signer, err)
	}
	for name, c := range map[string]struct {
		list, sig []byte
		ring      string
		want      string
	}{
		"by a key that is not in the keyring": {list, read("SUMS.other"), "ring.gpg", "not in the keyring"},
		"of another text":                     {append([]byte("x"), list...), read("SUMS.gpg"), "ring.gpg", "not good"},
		"that is none":                        {list, []byte("nothing"), "ring.gpg", "not good"},
		"with a text around that is unsigned": {append([]byte(strings.Repeat("cd", 32)+"  noble.img\n"), read("SUMS.inline")...), nil, "ring.gpg", ""},
	} {
		text, _, err := signature(t.Context(), dir, c.list, c.sig, at(c.ring))
		if c.want == "" {
			// Only what was signed counts, whatever stands around it.
			if err == nil && strings.Contains(string(text), "cdcd") {
				t.Errorf("a signature %s gave the unsigned text", name)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("a signature %s = %v; want an error with %q", name, err, c.want)
		}
	}
	t.Run("is asked for by an import", func(t *testing.T) {
		r := Request{From: at("noble.img"), Format: "raw", Want: preflight.Want{OS: "ubuntu", Version: "24.04", Arch: "amd64"}, WorkDir: t.TempDir(), OutDir: t.TempDir(),
			Checksums: at("SUMS"), Signature: at("SUMS.other"), Keyring: at("ring.gpg")}
		must(t, os.WriteFile(at("noble.img"), []byte("x"), 0o644))
		refuses(t, r, Guard{}, Limits{}, "not in the keyring")
		r.Signature = at("SUMS.gpg")
		refuses(t, r, Guard{}, Limits{}, "not the file that was meant") // the list is good, the file is not
	})
}
