package cli

import (
	"bytes"
	"context"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tier"
)

// shell runs a script in a real shell, in which lpmos is this program.
func shell(t *testing.T, server, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		tier.Missing(t, "shells", "no "+name)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(self, filepath.Join(bin, "lpmos")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "CLI_TEST_COMMAND=1", "LPMOS_SERVER="+server, "HOME="+bin, "TERM=dumb")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || errs.Len() > 0 {
		t.Errorf("%s: %v: %s", name, err, errs.String())
	}
	return string(out)
}

func completing(t *testing.T) string {
	t.Helper()
	failed := server()
	failed.ID, failed.Hostname, failed.Status = "7fa459ea-ee8a-4ca4-894e-db77e160355e", "evil\x1b[2J", lpmos.Failed
	srv := httptest.NewServer(&fake{
		tasks: []lpmos.Task{server(), installing(), failed}, regions: []lpmos.Region{{ID: "dc1", Status: "online"}, {ID: "dc2", Status: "offline"}},
		images: []lpmos.Image{{OS: "debian", Version: "12", Arch: "amd64", Title: "Debian 12"}, {OS: "tiny", Version: "1", Arch: "amd64"}},
	})
	t.Cleanup(srv.Close)
	return srv.URL
}

// completions are a command line that is typed so far, and what Tab offers.
var completions = []struct {
	line string
	want []string
}{
	{"lpmos task sh", []string{"show"}},
	{"lpmos task show ", []string{id1, id2, "7fa459ea-ee8a-4ca4-894e-db77e160355e"}},
	{"lpmos task show web", []string{"web-01"}},
	{"lpmos task show 6fa4", []string{id2}},
	{"lpmos region show ", []string{"dc1", "dc2"}},
	{"lpmos task create --region dc", []string{"dc1", "dc2"}},
	{"lpmos image show ti", []string{"tiny/1/amd64"}},
	{"lpmos task create --os ", []string{"debian", "tiny"}},
	{"lpmos task list -o ", []string{"table", "wide", "json", "yaml"}},
	{"lpmos task list --status fa", []string{"failed"}},
	{"lpmos completion ", []string{"bash", "fish", "zsh"}},
	{"lpmos task list --hos", nil},
}

func TestBashCompletion(t *testing.T) {
	const package_ = "/usr/share/bash-completion/bash_completion"
	if _, err := os.Stat(package_); err != nil {
		tier.Missing(t, "shells", "no package bash-completion")
	}
	// compopt works only while Tab is pressed.
	script := `source ` + package_ + `
source <(lpmos completion bash)
compopt() { :; }
while IFS= read -r line; do
	COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
	read -ra COMP_WORDS <<<"$line"
	[[ $line == *" " ]] && COMP_WORDS+=("")
	COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
	__start_lpmos
	echo "> $line"
	for c in "${COMPREPLY[@]}"; do echo "$c"; done
done <<'EOL'
`
	want := ""
	for _, c := range completions {
		script += c.line + "\n"
		want += "> " + c.line + "\n"
		for _, w := range c.want {
			want += w + "\n"
		}
	}
	got := shell(t, completing(t), "bash", "--norc", "-c", script+"EOL\n")
	var values strings.Builder // what stands beside them is for people
	for line := range strings.Lines(got) {
		if !strings.HasPrefix(line, ">") {
			line, _, _ = strings.Cut(line, " ")
		}
		values.WriteString(strings.TrimRight(line, "\n") + "\n")
	}
	if diff := cmp.Diff(want, values.String()); diff != "" {
		t.Errorf("bash offers (- want, + got):\n%s", diff)
	}
}

func TestFishCompletion(t *testing.T) {
	script := "lpmos completion fish | source\n"
	var want []string
	for _, c := range completions {
		script += "echo '> " + c.line + "'; complete -C '" + c.line + "'\n"
		want = append(append(want, "> "+c.line), slices.Sorted(slices.Values(c.want))...)
	}
	var got []string
	for line := range strings.Lines(shell(t, completing(t), "fish", "--no-config", "-c", script)) {
		if strings.Contains(line, "\x1b") {
			t.Errorf("fish is given escape codes: %q", line)
		}
		v, _, _ := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		if !strings.HasSuffix(v, ".") { // with which cobra keeps fish from adding a space
			got = append(got, v)
		}
	}
	// Between the lines that were typed, fish has an order of its own.
	for i := 0; i < len(got); i++ {
		end := i + 1
		for end < len(got) && got[end][0] != '>' {
			end++
		}
		slices.Sort(got[i+1 : end])
		i = end - 1
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fish offers (- want, + got):\n%s", diff)
	}
}

func TestZshCompletion(t *testing.T) {
	// _describe shows what the function found; the rest of zsh's machinery needs
	// a person at the keyboard.
	got := shell(t, completing(t), "zsh", "-f", "-c", `
autoload -U compinit; compinit -D -u
source <(lpmos completion zsh)
_describe() { local -a all; all=("${(@P)${@[-1]}}"); print -l -- "${all[@]}"; }
_arguments() { :; }
words=(lpmos task show ""); CURRENT=4
_lpmos`)
	if !strings.Contains(got, id1+":web-01 awaiting_approval") || !strings.Contains(got, id2+":db-01 installing") || strings.Contains(got, "\x1b") {
		t.Errorf("zsh offers %q; want the tasks with host name and status", got)
	}
}

// Nobody who presses Tab is kept waiting by a control plane that is gone.
func TestCompletionWithoutAControlPlane(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, server := range []string{"http://127.0.0.1:1", "http://" + silent.Addr().String(), "ftp://nonsense"} {
		var out, errs bytes.Buffer
		code := Main(t.Context(), []string{"__complete", "task", "show", "--server", server, ""}, &out, &errs)
		if values, _, _ := strings.Cut(out.String(), ":"); code != 0 || values != "" || strings.Contains(out.String()+errs.String(), "rror") {
			t.Errorf("with %s: exit %d, offers %q, says %q; want nothing, quietly", server, code, out.String(), errs.String())
		}
	}
	if completeTime > time.Second {
		t.Errorf("completion waits %s; want a second at most", completeTime)
	}
}
