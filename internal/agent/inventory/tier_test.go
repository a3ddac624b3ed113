package inventory

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// without ends a test that needs what this machine does not have: it fails if
// LPMOS_REQUIRE names the tier, and is skipped otherwise.
func without(t testing.TB, tier, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("LPMOS_REQUIRE"), ","), tier) {
		t.Fatalf("tier %s: %s", tier, why)
	}
	t.Skipf("tier %s: %s", tier, why)
}

// command runs a tool of the tier mkfs and returns its output.
func command(t testing.TB, stdin string, name string, args ...string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
			if _, e := os.Stat(dir + name); e == nil {
				p, err = dir+name, nil
			}
		}
	}
	if err != nil {
		without(t, "mkfs", name+" is not here")
	}
	cmd := exec.Command(p, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
