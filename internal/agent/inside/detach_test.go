package inside

import (
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestMain plays both the hook and the child that it leaves behind.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("LPMOS_TEST_DETACH") == "" || len(os.Args) < 2:
	case os.Args[1] == "installer": // the child stays a while
		time.Sleep(time.Minute)
		os.Exit(0)
	case os.Args[1] == "hook":
		if err := detach(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestDetachLeavesNothingOpen holds that the child keeps no descriptor of the
// hook's: debconf, whose scripts inherit one, waits for its end.
func TestDetachLeavesNothingOpen(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", "hook")
	cmd.Env, cmd.ExtraFiles = append(os.Environ(), "LPMOS_TEST_DETACH=1"), []*os.File{w}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("the child holds a descriptor of the hook: %v", err)
	}
}
