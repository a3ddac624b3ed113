package lpmos

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos/internal/tier"
)

// TestKickstartWords has Python's shlex, which is what pykickstart uses, take the
// same lines apart.
func TestKickstartWords(t *testing.T) {
	lines := []string{
		"skipx", "  lang  de_DE.UTF-8\t--addsupport=a,b ", `group --name="a b" --gid='1'`, `a"b c"'d e'f`, `"" ''`, `a\ b \"c`, `"a\"b\\c\d$"`, `'a\b'`, "a#b c", "a # b 'c", "#", `"#" '#'`,
		"x\u00a0y\u2003z", `"unended`, `'unended`, `ends\`, `"ends\`, `a'b`, `é "漢 字"`, `"a"#b`, `\#a`, `--x="%end" %end`,
	}
	in, err := json.Marshal(lines)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", `import json,shlex,sys
def words(l):
    try: return shlex.split(l, comments=True)
    except ValueError: return None
print(json.dumps([words(l) for l in json.load(sys.stdin)]))`)
	cmd.Stdin = strings.NewReader(string(in))
	out, err := cmd.Output()
	if err != nil {
		tier.Missing(t, "tools", "no Python: "+err.Error())
	}
	var want [][]string
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatal(err)
	}
	for i, line := range lines {
		if got, err := ksWords(line); (err != nil) != (want[i] == nil) || !slices.Equal(got, want[i]) {
			t.Errorf("ksWords(%q) = %q, %v; Python says %q", line, got, err, want[i])
		}
	}
}
