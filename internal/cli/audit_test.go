package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

// The audit of a real site: listed, exported, verified through the API and
// offline, and what somebody does to the file is named.
func TestAuditOnARealSite(t *testing.T) {
	p := newPlane(t)
	p.want(ExitOK, "one-time password", "", "user", "create", "anna", "--role", "viewer")
	p.want(ExitOK, "approver", "", "user", "set", "anna", "--role", "approver")
	p.want(ExitOK, "role viewer → approver", "", "audit", "list", "--action", "user", "--after", "1h", "--limit", "1")
	p.want(ExitOK, "Nothing matches", "", "audit", "list", "--by", "nobody")
	p.want(ExitOK, "user anna", "", "audit", "ls", "--subject", "anna", "--limit", "0", "-o", "wide")
	p.want(ExitUsage, "neither an age", "", "audit", "list", "--after", "soon")
	p.want(ExitUsage, "negative", "", "audit", "list", "--limit", "-1")
	var list []lpmos.AuditEntry
	if err := json.Unmarshal([]byte(p.want(ExitOK, "", "", "audit", "list", "-o", "json", "--limit", "0")), &list); err != nil || len(list) < 4 || list[len(list)-1].Seq != 1 {
		t.Fatalf("the list has %d entries, %v", len(list), err)
	}
	if e := list[0]; e.By != "tester" || e.Via != "token local" || e.Peer != "127.0.0.1" {
		t.Errorf("the newest is by %q from %q with %q", e.By, e.Peer, e.Via)
	}
	p.want(ExitOK, "config.update", "", "audit", "show", "1")
	p.want(ExitNotFound, "not found", "", "audit", "show", "99999")
	p.want(ExitUsage, "number of an entry", "", "audit", "show", "x")

	pub := p.site.ControlPlane.VerifyKeyFile()
	p.want(ExitOK, "whole", "", "audit", "verify", "--key", pub)
	p.want(ExitOK, "compare it with a copy of signing.pub", "", "audit", "verify")
	dir := t.TempDir()
	file := filepath.Join(dir, "audit.ndjson")
	p.want(ExitOK, "lines; check it any time", "", "audit", "export", file)
	p.want(ExitFailed, "file exists", "", "audit", "export", file)
	p.want(ExitOK, `{"begin":`, "", "audit", "export", "-")
	p.want(ExitOK, "whole", "", "audit", "verify", file, "--key", pub)

	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	altered := filepath.Join(dir, "altered.ndjson")
	write := func(text string) string {
		t.Helper()
		if err := os.WriteFile(altered, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return altered
	}
	p.want(ExitAltered, "user anna", "", "audit", "verify", write(strings.Replace(string(b), `{"role":"approver"}`, `{"role":"viewer"}`, 1)), "--key", pub)
	var said verified
	out := p.want(ExitAltered, "", "", "audit", "verify", altered, "-o", "json")
	if err := json.Unmarshal([]byte(out), &said); err != nil || said.Whole || said.Entry < 2 || !strings.Contains(said.Problem, "was altered") {
		t.Errorf("for programs: %+v, %v", said, err)
	}
	lines := strings.SplitAfter(string(b), "\n")
	p.want(ExitAltered, "cut off", "", "audit", "verify", write(strings.Join(lines[:3], "")))
	p.want(ExitAltered, "not JSON", "", "audit", "verify", write(lines[0]+"\x1b[2J\n"))
	p.want(ExitAltered, "does not begin", "", "audit", "verify", write("{}\n"))
	p.want(ExitAltered, "is missing before entry", "", "audit", "verify", write(strings.Join(append(lines[:1:1], lines[2:]...), "")))
	p.want(ExitFailed, "no such file", "", "audit", "verify", filepath.Join(dir, "none"))

	other := filepath.Join(dir, "other.pub")
	if err := os.WriteFile(other, []byte("no key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.want(ExitUsage, "no public key", "", "audit", "verify", file, "--key", other)
	p.want(ExitFailed, "read --key", "", "audit", "verify", file, "--key", filepath.Join(dir, "none"))
}

func TestHostileAuditIsInert(t *testing.T) {
	e := lpmos.AuditEntry{Seq: 1, By: evil, Peer: evil, Via: evil, Action: evil, Subject: evil, Hash: evil, PrevHash: evil}
	b, err := json.Marshal(map[string]string{"role": evil, evil: "x"})
	if err != nil {
		t.Fatal(err)
	}
	e.Before, e.After = b, nil
	for name, text := range map[string]string{
		"list":   auditTable([]lpmos.AuditEntry{e}, true).text(terminal{}),
		"verify": verifiedTable(verified{Problem: evil, Task: evil}, false).text(terminal{}),
	} {
		if strings.ContainsFunc(strings.ReplaceAll(text, "\n", ""), obeyed) {
			t.Errorf("%s prints %q", name, text)
		}
	}
	var out strings.Builder
	if n, err := copyLines(&out, strings.NewReader(`{"a":"`+"\u009b\u202e"+`"}`+"\n")); err != nil || n != 1 || strings.ContainsFunc(strings.TrimSpace(out.String()), obeyed) {
		t.Errorf("an export copies %q, %v", out.String(), err)
	}
}
