package ownstore_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/ownstore"
	"github.com/lpmos/lpmos/internal/store"
)

var quiet = slog.New(slog.DiscardHandler)

func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "lpmos-own-") // t.TempDir may be too deep for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

// A single site has no certificates and no port; opened to others it asks
// everybody, itself too, and goes on doing so when it is closed again.
func TestSecuredOnceAndForAll(t *testing.T) {
	d := dir(t)
	run := func(listen string, f func(s *ownstore.Store, st *store.Store)) {
		t.Helper()
		s, err := ownstore.Start(t.Context(), ownstore.Config{Dir: d, Listen: listen, NoFsync: true}, quiet)
		if err != nil {
			t.Fatal(err)
		}
		st, err := s.Open(t.Context(), quiet)
		if err != nil {
			t.Fatal(err)
		}
		f(s, st)
		if err := errors.Join(st.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
	secured := func(st *store.Store, want bool) {
		t.Helper()
		if on, err := st.Secured(t.Context()); err != nil || on != want {
			t.Errorf("secured is %v, %v; want %v", on, err, want)
		}
	}
	var id string
	run("", func(s *ownstore.Store, st *store.Store) {
		secured(st, false)
		id = st.ID()
		if s.Addr() != nil {
			t.Errorf("it listens at %s", s.Addr())
		}
		if _, ok, err := ownstore.ClientConfig(d); ok || err != nil {
			t.Errorf("a client needs a certificate: %v, %v", ok, err)
		}
		if files, _ := filepath.Glob(filepath.Join(d, "*.pem")); len(files) != 0 {
			t.Errorf("it made %q", files)
		}
	})
	run("127.0.0.1:0", func(s *ownstore.Store, st *store.Store) {
		secured(st, true)
		if st.ID() != id {
			t.Error("it is another store")
		}
		// Whoever reaches the socket without a certificate is nobody.
		socket := "unix://" + filepath.Join(d, "etcd", "etcd.sock")
		if c, err := store.Open(t.Context(), store.Config{Endpoints: []string{socket}, Timeout: 2 * time.Second}, quiet); err == nil {
			c.Close()
			t.Error("the socket lets everybody in")
		}
		region, err := s.OpenRegion(t.Context(), "dc1", quiet)
		if err != nil {
			t.Fatal(err)
		}
		defer region.Close()
		if err := region.SetRegionStatus(t.Context(), "dc1", "online"); !errors.Is(err, store.ErrDenied) {
			t.Errorf("the region in this process writes its status: %v", err)
		}
		sess, err := region.OpenSession(t.Context(), "dc1", "i", lpmos.Capabilities{Hostname: "h"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		sess.Close()
		if gone, err := st.DeleteRegionUsers(t.Context(), "dc1", 9); err != nil || len(gone) != 0 {
			t.Errorf("revoking took %q, %v; the region in this process stays", gone, err)
		}
		if err := region.Healthy(t.Context()); err != nil {
			t.Error(err)
		}
	})
	run("", func(s *ownstore.Store, st *store.Store) {
		secured(st, true)
		if st.ID() != id || s.Addr() != nil {
			t.Error("it is another store, or it listens")
		}
		cfg, ok, err := ownstore.ClientConfig(d)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		members, err := store.Inspect(t.Context(), store.Config{Endpoints: []string{"unixs://" + filepath.Join(d, "etcd", "etcd.sock")}, TLS: cfg})
		if err != nil || members[0].Err != nil || !members[0].HasLeader {
			t.Errorf("Inspect = %+v, %v", members, err)
		}
	})
	// Lost certificates are made again; a lost authority, too.
	for _, pattern := range []string{"etcd-*.pem", "*.pem"} {
		files, err := filepath.Glob(filepath.Join(d, pattern))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, f := range files {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
		run("127.0.0.1:0", func(_ *ownstore.Store, st *store.Store) { secured(st, true) })
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := ownstore.Start(ctx, ownstore.Config{Dir: dir(t), Listen: l.Addr().String(), NoFsync: true}, quiet); err == nil {
		t.Error("it started on a port that another has")
	}
}
