// Package tpmtest gives tests a TPM 2.0 in software: swtpm (package swtpm).
package tpmtest

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lpmos/lpmos/internal/tier"
)

// Program is the emulator's path. Without one the test is skipped, or fails
// where the tier is required.
func Program(t testing.TB, needed string) string {
	t.Helper()
	path, err := exec.LookPath("swtpm")
	if err != nil {
		tier.Missing(t, needed, "swtpm (package swtpm)")
	}
	return path
}

// Start switches a TPM on and returns how to reach it; one connection at a time.
// state holds its seeds: the same directory is the same TPM. It is off when the
// test ends.
func Start(t testing.TB, state string) (dial func() io.ReadWriteCloser) {
	t.Helper()
	program := Program(t, "tools")
	dir, err := os.MkdirTemp("", "swtpm") // a unix socket's path may have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "data")
	cmd := exec.Command(program, "socket", "--tpm2", "--tpmstate", "dir="+state, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+filepath.Join(dir, "control"), "--flags", "not-need-init,startup-clear")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() && said.Len() > 0 {
			t.Logf("swtpm: %s", said.Bytes())
		}
		os.RemoveAll(dir)
	})
	return func() io.ReadWriteCloser {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			c, err := net.Dial("unix", socket)
			if err == nil {
				return c
			}
			if time.Now().After(end) {
				t.Fatalf("swtpm does not listen: %v", err)
			}
		}
	}
}
