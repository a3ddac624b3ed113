package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos/internal/agent/run"
)

// What a program says for the agent alone does not fill the log that people
// read; how it ended is there.
func TestRunnerTellsPeopleWhatIsForThem(t *testing.T) {
	var log []string
	r := &runner{run.Runner{Log: func(line string) {
		line, _, _ = strings.Cut(line, " after ")
		log = append(log, line)
	}}}
	if err := r.Run(t.Context(), []byte("a\nb\n"), "/bin/cat"); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "cat exited 0"}; !slices.Equal(log, want) {
		t.Errorf("Run says %q; want %q", log, want)
	}
	log = nil
	out, err := r.Read(t.Context(), "/bin/ls", "-d", "/", "/dev")
	if err != nil || out != "/\n/dev\n" {
		t.Errorf("Read = %q, %v", out, err)
	}
	if want := []string{"ls exited 0"}; !slices.Equal(log, want) {
		t.Errorf("Read says %q; want %q", log, want)
	}
	log = nil
	if _, err := r.Read(t.Context(), "/bin/ls", "/no such"); err == nil || len(log) != 1 || !strings.Contains(log[0], "/no such") {
		t.Errorf("Read of what fails = %v, and says %q; want its last line", err, log)
	}
}
