package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func loadRegion(t *testing.T, dir, region string) *Region {
	t.Helper()
	a, err := LoadRegion(dir, region)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// handshake connects a client to a over loopback.
func handshake(t *testing.T, a *Region, client *tls.Config) error {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", a.ServerConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if c, err := l.Accept(); err == nil {
			c.(*tls.Conn).Handshake()
			io.Copy(io.Discard, c)
			c.Close()
		}
	})
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", l.Addr().String(), client)
	if err != nil {
		return err
	}
	return c.Close()
}

func agentTLS(a *Region, name string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(a.CAPEM()))
	return &tls.Config{RootCAs: pool, ServerName: name}
}

func TestRegion(t *testing.T) {
	dir := t.TempDir()
	a := loadRegion(t, dir, "dc1")

	t.Run("is the same after a restart", func(t *testing.T) {
		b := loadRegion(t, dir, "dc1")
		if a.CAPEM() != b.CAPEM() || !bytes.Equal(a.cert.Certificate[0], b.cert.Certificate[0]) {
			t.Error("Load made new certificates although the file is there")
		}
		if err := handshake(t, b, agentTLS(a, "agent.dc1.lpmos")); err != nil {
			t.Errorf("handshake with the CA of the run before = %v", err)
		}
	})
	t.Run("is readable for its owner only", func(t *testing.T) {
		info, err := os.Stat(filepath.Join(dir, RegionFile))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode = %v, %v; want 0600", info.Mode(), err)
		}
	})
	t.Run("serves whatever year the client believes it is", func(t *testing.T) {
		for _, year := range []int{2000, 2026, 2099} {
			c := agentTLS(a, "agent.dc1.lpmos")
			c.Time = func() time.Time { return time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC) }
			if err := handshake(t, a, c); err != nil {
				t.Errorf("handshake in %d = %v", year, err)
			}
		}
	})
	t.Run("refuses TLS 1.2", func(t *testing.T) {
		c := agentTLS(a, "agent.dc1.lpmos")
		c.MaxVersion = tls.VersionTLS12
		if err := handshake(t, a, c); err == nil {
			t.Error("a TLS 1.2 client was served")
		}
	})
	t.Run("refuses other names", func(t *testing.T) {
		for _, name := range []string{"agent.dc2.lpmos", "10.0.0.1", "localhost"} {
			if err := handshake(t, a, agentTLS(a, name)); err == nil {
				t.Errorf("a client that wants %q was served", name)
			}
			// Nor does a client that checks nothing learn anything.
			if err := handshake(t, a, &tls.Config{InsecureSkipVerify: true, ServerName: name}); err == nil {
				t.Errorf("a careless client that wants %q was served", name)
			}
		}
	})
	t.Run("is not another region's", func(t *testing.T) {
		b := loadRegion(t, t.TempDir(), "dc1")
		if err := handshake(t, b, agentTLS(a, "agent.dc1.lpmos")); err == nil {
			t.Error("a certificate of another authority was trusted")
		}
	})
	t.Run("derives lasting secrets, one for each purpose", func(t *testing.T) {
		x, err1 := a.Secret("x")
		x2, err2 := loadRegion(t, dir, "dc1").Secret("x")
		y, err3 := a.Secret("y")
		if err1 != nil || err2 != nil || err3 != nil || len(x) != 32 || !bytes.Equal(x, x2) || bytes.Equal(x, y) {
			t.Errorf("Secret = %x, %x, %x (%v %v %v)", x, x2, y, err1, err2, err3)
		}
	})
}

// T05: a region does not start with keys that are none.
func TestLoadRegionRefuses(t *testing.T) {
	good := t.TempDir()
	loadRegion(t, good, "dc1")
	b, err := os.ReadFile(filepath.Join(good, RegionFile))
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	loadRegion(t, other, "dc1")
	ob, _ := os.ReadFile(filepath.Join(other, RegionFile))
	tests := []struct {
		name    string
		content []byte
		mode    os.FileMode
		region  string
		want    string
	}{
		{"an empty file", nil, 0o600, "dc1", "does not hold a key"},
		{"a cut file", b[:len(b)/2], 0o600, "dc1", "does not hold a key"},
		{"garbage", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0o600, "dc1", "does not hold a key"},
		{"mixed keys", append(bytes.Clone(b[:bytes.Index(b, []byte("-----BEGIN CERT"))]), ob[bytes.Index(ob, []byte("-----BEGIN CERT")):]...), 0o600, "dc1", "does not belong"},
		{"another region's", b, 0o600, "dc2", "not region dc2's"},
		{"one that others can read", b, 0o644, "dc1", "chmod 600"},
		{"a bad region id", b, 0o600, "../dc1", "region_id"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, RegionFile)
			if err := os.WriteFile(path, tt.content, tt.mode); err != nil {
				t.Fatal(err)
			}
			_, err := LoadRegion(dir, tt.region)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Load = %v; want %q in it", err, tt.want)
			}
			if now, _ := os.ReadFile(path); !bytes.Equal(now, tt.content) {
				t.Error("Load changed the file")
			}
		})
	}
}

func TestLoadRegionByManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	cas := make([]string, 16)
	var wg sync.WaitGroup
	for i := range cas {
		wg.Go(func() {
			if a, err := LoadRegion(dir, "dc1"); err != nil {
				t.Error(err)
			} else {
				cas[i] = a.CAPEM()
			}
		})
	}
	wg.Wait()
	for _, ca := range cas {
		if ca != cas[0] {
			t.Fatal("two processes made two authorities")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
