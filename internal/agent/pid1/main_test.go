package pid1

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestSupervisorWaitsForOrphans runs waitFor in a process of its own that gets
// orphans as process 1 does (prctl(2), PR_SET_CHILD_SUBREAPER).
func TestSupervisorWaitsForOrphans(t *testing.T) {
	const mark = "LPMOS_TEST_REAPER"
	if os.Getenv(mark) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSupervisorWaitsForOrphans$")
		cmd.Env = append(os.Environ(), mark+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "worker: exit status 7, children left: no child processes\n") {
			t.Errorf("reaper: %v\n%s", err, out)
		}
		return
	}
	const prSetChildSubreaper = 36
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 {
		t.Fatal(errno)
	}
	// The worker leaves an orphan that ends before it does.
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "(sleep 0.1 &); sleep 0.5; exit 7"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	how := describeStatus(waitFor(pid))
	_, err = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
	fmt.Printf("worker: %s, children left: %v\n", how, err)
}

func TestDescribeStatus(t *testing.T) {
	for ws, want := range map[syscall.WaitStatus]string{0: "exit status 0", 2 << 8: "exit status 2", 9: "signal: killed"} {
		if got := describeStatus(ws); got != want {
			t.Errorf("describeStatus(%#x) = %q; want %q", ws, got, want)
		}
	}
}
