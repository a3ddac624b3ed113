package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

var quiet = slog.New(slog.DiscardHandler)

func load(t testing.TB, path string) *Authority {
	t.Helper()
	a, err := Load(path, true)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAuthority(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	var wg sync.WaitGroup
	all := make([]*Authority, 8)
	for i := range all {
		wg.Go(func() { all[i], _ = Load(path, true) })
	}
	wg.Wait()
	a := load(t, path)
	for _, b := range all {
		if b == nil || string(b.PEM()) != string(a.PEM()) {
			t.Fatal("two processes made two authorities")
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "x"), false); err == nil {
		t.Error("a file that is not there was made although nobody asked for it")
	}
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Client(&key.PublicKey, "lpmos-region-dc1.1", time.Now(), ClientLife)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(c *x509.Certificate, at time.Time, use x509.ExtKeyUsage) error {
		_, err := c.Verify(x509.VerifyOptions{Roots: a.Pool(), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{use}})
		return err
	}
	if err := verify(c, time.Now(), x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	if err := verify(c, time.Now(), x509.ExtKeyUsageServerAuth); err == nil {
		t.Error("a client's certificate can serve")
	}
	for _, at := range []time.Time{c.NotAfter.Add(time.Second), time.Now().Add(-2 * backdate)} {
		if err := verify(c, at, x509.ExtKeyUsageClientAuth); err == nil {
			t.Errorf("a certificate is good at %v", at)
		}
	}
}

func TestAuthorityFileIsLeftAlone(t *testing.T) {
	good := filepath.Join(t.TempDir(), "ca.pem")
	load(t, good)
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"empty": "", "cut": string(b[:len(b)/2]), "garbage": "x"} {
		path := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path, true); err == nil || !strings.Contains(err.Error(), "restore it from a backup") {
			t.Errorf("%s: Load = %v", name, err)
		}
		if now, _ := os.ReadFile(path); string(now) != text {
			t.Errorf("%s: the file was changed", name)
		}
	}
	if err := os.Chmod(good, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(good, true); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("Load of a file for everybody = %v", err)
	}
}

func TestServerCertificate(t *testing.T) {
	dir := t.TempDir()
	a := load(t, filepath.Join(dir, "ca.pem"))
	path, now := filepath.Join(dir, "server.pem"), time.Now()
	names := append([]string{ControlPlaneName}, Names("10.9.8.7:443")...)
	made := func(names []string, at time.Time) bool {
		t.Helper()
		renewed, err := a.Server(path, names, at)
		if err != nil {
			t.Fatal(err)
		}
		return renewed
	}
	if !made(names, now) {
		t.Fatal("nothing was made")
	}
	c, err := tls.LoadX509KeyPair(path, path)
	if err != nil || len(c.Certificate) != 2 {
		t.Fatalf("%d certificates, %v; want the authority's behind it", len(c.Certificate), err)
	}
	for _, n := range []string{ControlPlaneName, "localhost", "127.0.0.1", "::1", "10.9.8.7"} {
		if err := c.Leaf.VerifyHostname(n); err != nil {
			t.Error(err)
		}
	}
	if err := c.Leaf.VerifyHostname(StoreName); err == nil {
		t.Error("the control plane's certificate is good for the store")
	}
	for _, tt := range []struct {
		name  string
		names []string
		at    time.Time
		want  bool
	}{
		{"stays while it is good", names, now, false},
		{"stays until two thirds of its life", names, now.Add(ServerLife*2/3 - time.Hour), false},
		{"is renewed before the last third", names, now.Add(ServerLife*2/3 + time.Hour), true},
		{"is renewed for another name", append(slices.Clone(names), "lpmos.example.net"), now.Add(ServerLife*2/3 + time.Hour), true},
		{"stays with fewer names", names, now.Add(ServerLife*2/3 + time.Hour), false},
	} {
		if got := made(tt.names, tt.at); got != tt.want {
			t.Errorf("%s: renewed is %v", tt.name, got)
		}
	}
	other := load(t, filepath.Join(t.TempDir(), "ca.pem"))
	if renewed, err := other.Server(path, names, now); err != nil || !renewed {
		t.Errorf("another authority's certificate stays (%v, %v)", renewed, err)
	}
}

// Files that are replaced are served from the next connection on; a pair that
// does not fit leaves the one before in place.
func TestFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	a := load(t, filepath.Join(dir, "ca.pem"))
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	n := 0
	write := func(files ...string) {
		t.Helper()
		n++
		one := filepath.Join(dir, fmt.Sprintf("one%d", n))
		if _, err := a.Server(one, []string{fmt.Sprintf("name%d", n)}, time.Now()); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(one)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := Replace(f, b); err != nil {
				t.Fatal(err)
			}
			// Some filesystems count whole seconds.
			if err := os.Chtimes(f, time.Time{}, time.Now().Add(time.Duration(n)*time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(cert, key)
	f, err := OpenFiles(cert, key, quiet)
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		f.mu.Lock()
		f.looked = time.Time{} // a second has passed
		f.mu.Unlock()
		return f.Certificate().Leaf.Subject.CommonName
	}
	if got := name(); got != "name1" {
		t.Errorf("serves %s", got)
	}
	write(cert)
	if got := name(); got != "name1" {
		t.Errorf("serves %s while only one of two files was replaced", got)
	}
	write(cert, key)
	if got := name(); got != "name3" {
		t.Errorf("serves %s after both were replaced", got)
	}
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if got := name(); got != "name3" {
		t.Errorf("serves %s without the file", got)
	}
	if _, err := OpenFiles(cert, key, quiet); err == nil {
		t.Error("a file that is not there was opened")
	}
}

func TestToken(t *testing.T) {
	a := load(t, filepath.Join(t.TempDir(), "ca.pem"))
	token := NewToken("dc-1", a.Certificate())
	got, err := ParseToken(" " + token.String() + "\n")
	if err != nil || got != token || !got.Pins(a.Certificate()) {
		t.Errorf("ParseToken = %+v, %v; want %+v", got, err, token)
	}
	other := load(t, filepath.Join(t.TempDir(), "ca.pem"))
	if token.Pins(other.Certificate()) {
		t.Error("a token pins another site")
	}
	if token.Hash() == NewToken("dc-1", a.Certificate()).Hash() || !lpmos.ValidDigest(token.Hash()) {
		t.Error("hashes are no hashes")
	}
	s := token.String()
	for _, bad := range []string{"", "lre_", s[1:], s[:len(s)-1], s + "x", strings.Replace(s, "dc-1", "DC1", 1), strings.Replace(s, "dc-1", "../x", 1), strings.Replace(s, ".", "..", 1), s + "." + s} {
		if _, err := ParseToken(bad); err == nil || strings.Contains(err.Error(), s[9:20]) {
			t.Errorf("ParseToken(%q) = %v; want an error that does not show it", bad, err)
		}
	}
	if text := fmt.Sprint(slog.AnyValue(token).Resolve()); strings.Contains(text, s[9:20]) {
		t.Errorf("a log has %q", text)
	}
}

func TestRequestIsOnlyAKey(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := Request(key)
	if err != nil {
		t.Fatal(err)
	}
	if pub, err := ParseRequest(csr); err != nil || !key.PublicKey.Equal(pub) {
		t.Errorf("ParseRequest = %v", err)
	}
	forged := slices.Clone(csr)
	forged[len(forged)/2] ^= 1
	for _, bad := range [][]byte{nil, []byte("x"), forged, append(slices.Clone(csr), csr...)} {
		if _, err := ParseRequest(bad); err == nil {
			t.Errorf("ParseRequest(%.40q) worked", bad)
		}
	}
}

func TestNames(t *testing.T) {
	if got := Names("192.0.2.1:443"); !slices.Contains(got, "192.0.2.1") || !slices.Contains(got, "localhost") {
		t.Errorf("names are %q", got)
	}
	all := Names(":443")
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && !slices.Contains(all, n.IP.String()) {
			t.Errorf("%s is not among %q", n.IP, all)
		}
	}
	if got := Names("LPMOS.example.net:443"); !slices.Contains(got, "lpmos.example.net") {
		t.Errorf("names are %q", got)
	}
}

// FuzzRequest reads what a region, or whoever says it is one, sends to have
// signed.
func FuzzRequest(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	good, err := Request(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := ParseRequest(b); (key == nil) != (err != nil) {
			t.Fatalf("ParseRequest = %v, %v", key, err)
		}
	})
}

// FuzzToken: what is taken is what is written, but for blanks around it.
func FuzzToken(f *testing.F) {
	f.Add(tokenPrefix + "dc1." + strings.Repeat("A", 43) + "." + strings.Repeat("A", 43))
	f.Fuzz(func(t *testing.T, s string) {
		if token, err := ParseToken(s); err == nil && token.String() != strings.TrimSpace(s) {
			t.Fatalf("%q is read as the token %q", s, token.String())
		}
	})
}
