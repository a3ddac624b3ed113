package cli

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

func tree() *cobra.Command {
	return (&app{out: io.Discard, err: io.Discard}).root()
}

func walk(c *cobra.Command, each func(*cobra.Command)) {
	each(c)
	for _, sub := range c.Commands() {
		walk(sub, each)
	}
}

// Every command says what it does and shows how it is used, and refuses what it
// does not take.
func TestHelp(t *testing.T) {
	walk(tree(), func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || len(c.Short) > 80 {
			t.Errorf("%s: short help %q; want a line without a full stop", c.CommandPath(), c.Short)
		}
		if c.Runnable() && c.HasParent() && c.Args == nil {
			t.Errorf("%s does not say what arguments it takes", c.CommandPath())
		}
		for line := range strings.Lines(c.Long) {
			if columns(strings.TrimSuffix(line, "\n")) > 100 {
				t.Errorf("%s: a line of its help has %d columns: %q", c.CommandPath(), columns(line), line)
			}
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: help %q; want words without a full stop", c.CommandPath(), f.Name, f.Usage)
			}
		})
	})
	for _, c := range tree().Commands() {
		if !slices.Contains([]string{"task", "region", "image", "doctor", "completion", "version"}, c.Name()) {
			continue
		}
		walk(c, func(c *cobra.Command) {
			if slices.Contains([]string{"build", "import", "certify"}, c.Name()) {
				return
			}
			if c.Long == "" || !strings.Contains(c.Example, "  lpmos ") && !strings.Contains(c.Example, "<(lpmos") {
				t.Errorf("%s does not teach: it needs a Long help and an Example", c.CommandPath())
			}
		})
	}
	for args, want := range map[string]string{
		"help exit-codes": "4    conflict", "help output": "NO_COLOR", "help search": "status:failed", "version": "\n",
		"completion --help": "/etc/bash_completion.d/lpmos", "completion bash": "__start_lpmos", "completion zsh": "#compdef lpmos", "completion fish": "complete -c lpmos",
	} {
		var out, errs bytes.Buffer
		if code := Main(t.Context(), strings.Fields(args), &out, &errs); code != 0 || !strings.Contains(out.String(), want) {
			t.Errorf("lpmos %s = %d, %.200q %q; want %q", args, code, out.String(), errs.String(), want)
		}
	}
}

// Examples in the help are lines that would be accepted.
func TestExamplesParse(t *testing.T) {
	walk(tree(), func(c *cobra.Command) {
		text := strings.ReplaceAll(c.Example, "\\\n", " ")
		for line := range strings.Lines(text) {
			line, _, _ = strings.Cut(line, " #")
			line = strings.TrimPrefix(strings.TrimSpace(line), "sudo ")
			for _, end := range []string{" | ", " && ", " > ", ` --plan "$(`} {
				line, _, _ = strings.Cut(line, end)
			}
			if !strings.HasPrefix(line, "lpmos ") {
				continue
			}
			cmd, args, err := tree().Find(words(line)[1:])
			if err == nil {
				err = cmd.ParseFlags(args)
			}
			if err == nil && cmd.Args != nil {
				err = cmd.Args(cmd, cmd.Flags().Args())
			}
			if err != nil || !cmd.HasParent() {
				t.Errorf("%s: the example %q is not accepted: %v", c.CommandPath(), line, err)
			}
		}
	})
}

// words splits as a shell does, as far as examples need it.
func words(line string) (out []string) {
	var quote rune
	var word strings.Builder
	for _, r := range line + " " {
		switch {
		case quote == 0 && (r == '\'' || r == '"'):
			quote = r
		case r == quote:
			quote = 0
		case r == ' ' && quote == 0:
			if word.Len() > 0 {
				out = append(out, word.String())
				word.Reset()
			}
		default:
			word.WriteRune(r)
		}
	}
	return out
}

const cliDoc = "../../docs/cli.md"

// docs/cli.md is what the commands say of themselves.
func TestDocument(t *testing.T) {
	want := document(tree())
	if *update {
		if err := os.WriteFile(cliDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(cliDoc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/cli.md differs from the commands; go test ./internal/cli -run TestDocument -update writes it (- commands, + document):\n%s", diff)
	}
}

func document(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# The command line\n\nWritten from the commands by `go test ./internal/cli -run TestDocument -update`; a test compares it with them.\n\n")
	section := func(text string) {
		if text != "" {
			fmt.Fprintf(&b, "```\n%s\n```\n\n", strings.TrimRight(text, "\n"))
		}
	}
	walk(root, func(c *cobra.Command) {
		if c.Name() == "help" || c.Hidden {
			return
		}
		fmt.Fprintf(&b, "## %s\n\n%s.\n\n", c.CommandPath(), c.Short)
		section(c.Long)
		if c.Runnable() && !c.HasSubCommands() {
			section(c.UseLine())
		}
		section(c.Example)
		var flags []*pflag.Flag
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && f.Name != "version" && !f.Hidden {
				flags = append(flags, f)
			}
		})
		if len(flags) > 0 {
			b.WriteString("| flag | default | |\n|---|---|---|\n")
			for _, f := range flags {
				name := "`--" + f.Name + "`"
				if f.Shorthand != "" {
					name = "`-" + f.Shorthand + "`, " + name
				}
				def := f.DefValue
				if home, err := os.UserCacheDir(); err == nil { // whose machine it is written on
					def = strings.ReplaceAll(def, home, "~/.cache")
				}
				if def == "[]" || def == "0s" || def == "false" || def == "0" {
					def = ""
				}
				if def != "" {
					def = "`" + def + "`"
				}
				fmt.Fprintf(&b, "| %s | %s | %s |\n", name, def, strings.ReplaceAll(f.Usage, "|", "\\|"))
			}
			b.WriteString("\n")
		}
	})
	return strings.TrimRight(b.String(), "\n") + "\n"
}
