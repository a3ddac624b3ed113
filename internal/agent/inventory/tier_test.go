package inventory

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/lpmos/lpmos/internal/tier"
)

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
		tier.Missing(t, "mkfs", name+" is not here")
	}
	cmd := exec.Command(p, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
