package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// maxBinaryBytes is the contract's: every machine loads the agent over TFTP or
// HTTP into RAM.
const maxBinaryBytes = 10 << 20

func TestBinaryIsSmall(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		out := filepath.Join(t.TempDir(), "agent")
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build for %s: %v\n%s", arch, err, text)
		}
		st, err := os.Stat(out)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.2f MB", arch, float64(st.Size())/1e6)
		if st.Size() >= maxBinaryBytes {
			t.Errorf("the agent for %s has %d bytes; want less than %d", arch, st.Size(), maxBinaryBytes)
		}
	}
}

func TestImportsNothingFromOutside(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	const module = "github.com/lpmos/lpmos"
	seen := 0
	for _, p := range strings.Fields(string(out)) {
		seen++
		if p != module && !strings.HasPrefix(p, module+"/") {
			t.Errorf("the agent depends on %s; want the standard library and this module only", p)
		}
	}
	if seen < 5 {
		t.Errorf("go list names %d packages; the test looks at nothing", seen)
	}
}

func TestCommandTeaches(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 2, "agent --demo"},
		{[]string{"--help"}, 0, "-region-url"},
		{[]string{"--version"}, 0, "lpmos agent "},
		{[]string{"--mac", "nonsense"}, 2, "hexadecimal"},
		{[]string{"--demo", "extra"}, 2, "agent --demo"},
		{[]string{"install"}, 2, "agent --demo"},
	} {
		var out bytes.Buffer
		if code := command(c.args, &out, &out); code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("agent %q = %d, %q; want %d with %q", c.args, code, out.String(), c.code, c.want)
		}
	}
}
