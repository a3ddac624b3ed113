package debpkg

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseURIs(t *testing.T) {
	const out = `NOTE: something apt says
'http://mirror.example/pool/z/zlib1g_1.2.13.dfsg-1_amd64.deb' zlib1g_1%3a1.2.13.dfsg-1_amd64.deb 86684 SHA256:c048
'http://mirror.example/pool/x/liblzma5_5.4.1-1%2bdeb12u2_amd64.deb' liblzma5_5.4.1-1+deb12u2_amd64.deb 205796 
`
	got, err := parseURIs([]byte(out))
	want := []Package{
		{Name: "zlib1g", Version: "1:1.2.13.dfsg-1", File: "zlib1g_1%3a1.2.13.dfsg-1_amd64.deb", Bytes: 86684, SHA256: "c048"},
		{Name: "liblzma5", Version: "5.4.1-1+deb12u2", File: "liblzma5_5.4.1-1+deb12u2_amd64.deb", Bytes: 205796},
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("parseURIs (-want +got):\n%s", d)
	}
	for _, bad := range []string{"'u' noversion.deb 12", "'u' a_1_amd64.deb many"} {
		if got, err := parseURIs([]byte(bad)); err == nil {
			t.Errorf("parseURIs(%q) = %v; want an error", bad, got)
		}
	}
}

func TestParseTargetsTakesOnlyDebian(t *testing.T) {
	got := parseTargets("Packages|Google|Google|http://a/\nDEP-11|Debian|Debian|http://b/\nPackages|Debian|Debian|http://c/\n" +
		"Packages|Debian|Debian|http://d/\nPackages|Debian|Debian-Security|http://e/\n")
	want := map[string]string{"Debian": "http://c/", "Debian-Security": "http://e/"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("parseTargets (-want +got):\n%s", d)
	}
}

func TestCheckComparesTheDigest(t *testing.T) {
	dir := t.TempDir()
	sum := sha256.Sum256([]byte("content"))
	p := Package{File: "a_1_all.deb", Bytes: 7, SHA256: hex.EncodeToString(sum[:])}
	if err := p.check(dir); err == nil {
		t.Error("check of an absent file = nil; want an error")
	}
	for content, ok := range map[string]bool{"content": true, "Content": false, "content ": false} {
		if err := os.WriteFile(filepath.Join(dir, p.File), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := p.check(dir); (err == nil) != ok {
			t.Errorf("check(%q) = %v; want ok %t", content, err, ok)
		}
	}
}

func TestRunReportsTheLastLine(t *testing.T) {
	_, err := run(t.Context(), "", "/usr/bin/dpkg-deb", "-x", "/nonexistent.deb", t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "/nonexistent.deb") || !strings.HasPrefix(err.Error(), "/usr/bin/dpkg-deb: exit status") {
		t.Errorf("run = %v; want the program, its status and what it said", err)
	}
	out, err := run(t.Context(), "/", "/usr/bin/dpkg-deb", "--version")
	if err != nil || !strings.Contains(string(out), "Debian") {
		t.Errorf("run = %q, %v; want dpkg-deb's version", out, err)
	}
}

func TestBoundedKeepsTheBeginning(t *testing.T) {
	b := &bounded{limit: 4}
	for _, s := range []string{"abc", "def", "g"} {
		if n, err := b.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("Write(%q) = %d, %v; a command must not notice", s, n, err)
		}
	}
	if b.String() != "abcd" || !b.full {
		t.Errorf("kept %q, full %t; want abcd, true", b.String(), b.full)
	}
}
