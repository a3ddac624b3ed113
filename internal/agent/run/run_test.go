package run

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The shell is only a convenient subject here; the product has none.
const sh = "/bin/sh"

// TestRun is D13 for a program that ends with an error.
func TestRun(t *testing.T) {
	tests := []struct {
		name    string
		cmd     Cmd
		code    int
		output  string
		wantErr string // "" for none
	}{
		{name: "returns both streams in order", cmd: Cmd{Path: sh, Args: []string{"-c", "echo one; echo two >&2; echo three"}}, output: "one\ntwo\nthree\n"},
		{name: "passes standard input", cmd: Cmd{Path: "/bin/cat", Stdin: strings.NewReader("hello")}, output: "hello"},
		{name: "keeps exit status and last line in the error", cmd: Cmd{Path: sh, Args: []string{"-c", "echo first; echo no such disk >&2; echo; exit 3"}}, code: 3,
			output: "first\nno such disk\n\n", wantErr: `sh exited 3: "no such disk"`},
		{name: "says which signal", cmd: Cmd{Path: sh, Args: []string{"-c", "kill -SEGV $$"}}, code: -1, wantErr: "sh: signal: segmentation fault"},
		{name: "refuses a relative path", cmd: Cmd{Path: "sh"}, code: -1, wantErr: "sh: is not an absolute path"},
		{name: "reports a program that is not there", cmd: Cmd{Path: "/nonexistent/mke2fs"}, code: -1, wantErr: "no such file or directory"},
		{name: "clears the environment", cmd: Cmd{Path: "/usr/bin/env"}, output: "PATH=/usr/sbin:/usr/bin:/sbin:/bin\nLC_ALL=C\n"},
		{name: "drops terminal controls from the error", cmd: Cmd{Path: sh, Args: []string{"-c", `printf '\033[31mred\033[0m\r\n'; exit 1`}}, code: 1, output: "\x1b[31mred\x1b[0m\r\n", wantErr: `"[31mred[0m"`},
	}
	t.Setenv("SECRET", "must not be inherited")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Runner
			res, err := r.Run(t.Context(), tt.cmd)
			if res.ExitCode != tt.code || res.Output != tt.output {
				t.Errorf("Run = code %d, output %q; want %d, %q", res.ExitCode, res.Output, tt.code, tt.output)
			}
			if tt.wantErr == "" && err != nil || tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)) {
				t.Errorf("Run error = %v; want %q", err, tt.wantErr)
			}
		})
	}
}

func TestRunSays(t *testing.T) {
	var logged, said []string
	r := Runner{Log: func(line string) { logged = append(logged, line) }}
	if _, err := r.Run(t.Context(), Cmd{Path: sh, Args: []string{"-c", "echo one; echo two >&2; exit 3"}, Says: func(line string) { said = append(said, line) }}); err == nil {
		t.Error("exit 3 is no error")
	}
	if !slices.Equal(said, []string{"one", "two"}) || !slices.Equal(logged, []string{`sh exited 3: "two"`}) {
		t.Errorf("said %q, logged %q; want the lines said, and the end logged", said, logged)
	}
}

// TestRunEndsTheWholeGroup is D13 for a program that hangs.
func TestRunEndsTheWholeGroup(t *testing.T) {
	alive := func(pidFile string) bool {
		b, err := os.ReadFile(pidFile)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		for range 1500 {
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			if err != nil || strings.Contains(string(stat), ") Z ") || strings.Contains(string(stat), ") X ") {
				return false
			}
			time.Sleep(20 * time.Millisecond)
		}
		return true
	}
	t.Run("at the time limit", func(t *testing.T) {
		f := filepath.Join(t.TempDir(), "pid")
		var r Runner
		start := time.Now()
		_, err := r.Run(t.Context(), Cmd{Path: sh, Args: []string{"-c", "sleep 600 & echo $! > " + f + "; echo waiting; wait"}, Timeout: 2 * time.Second}) // long enough for the shell to say something
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `"waiting"`) {
			t.Errorf("Run = %v; want a deadline with the last line", err)
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("Run took %s", took)
		}
		if alive(f) {
			t.Error("a child of the command outlived it")
		}
	})
	t.Run("when its context ends", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel)
		_, err := new(Runner).Run(ctx, Cmd{Path: "/bin/sleep", Args: []string{"600"}})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v; want Canceled", err)
		}
	})
	t.Run("when the command itself ends first", func(t *testing.T) {
		f := filepath.Join(t.TempDir(), "pid")
		start := time.Now()
		res, err := new(Runner).Run(t.Context(), Cmd{Path: sh, Args: []string{"-c", "sleep 600 & echo $! > " + f}})
		if err != nil || res.ExitCode != 0 {
			t.Errorf("Run = %+v, %v; want success", res, err)
		}
		if time.Since(start) > time.Minute {
			t.Error("Run waited for the background process")
		}
		if alive(f) {
			t.Error("a background process outlived its command")
		}
	})
}

// TestOutputIsBounded is D13 for a program that prints without end.
func TestOutputIsBounded(t *testing.T) {
	var lines int
	r := Runner{Log: func(string) { lines++ }}
	res, err := r.Run(t.Context(), Cmd{Path: sh, Args: []string{"-c", "i=0; while [ $i -lt 20000 ]; do echo line number $i; i=$((i+1)); done; echo the end"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Output) != MaxOutputBytes || !res.Truncated || !strings.HasSuffix(res.Output, "line number 19999\nthe end\n") {
		t.Errorf("output has %d bytes, truncated %v, ends %q", len(res.Output), res.Truncated, res.Output[len(res.Output)-30:])
	}
	if res.LastLine != "the end" || lines != 20002 {
		t.Errorf("last line %q, %d lines logged; want the end, 20002", res.LastLine, lines)
	}
}

func TestAwaitExitLeavesTheStatus(t *testing.T) {
	p, err := os.StartProcess(sh, []string{sh, "-c", "exit 7"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	awaitExit(p.Pid)
	var ws syscall.WaitStatus
	if pid, err := syscall.Wait4(p.Pid, &ws, syscall.WNOHANG, nil); pid != p.Pid || err != nil || ws.ExitStatus() != 7 {
		t.Errorf("wait4 after awaitExit = %d, %v, %d; want the zombie with status 7", pid, err, ws.ExitStatus())
	}
}
