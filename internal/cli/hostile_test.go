package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/test/fixture"
)

// evil is what a terminal or an eye would obey: escape sequences (also as one
// C1 character), carriage return and line feed, bell, bidirectional overrides,
// invisible characters and 10 kB of text.
var evil = "e\x1b]0;x\x07\x1b[2J\r\nlpmos: done\u009b31m\u202efdp.\u2066v\u200fi\u200bl\u2028\u061c\ufeff\U000e0041 " + strings.Repeat("A", 10<<10)

// What machines and people wrote is shown, never obeyed by the terminal: every
// field of everything, in every output.
func TestHostileTextIsInert(t *testing.T) {
	// What decides how it is treated keeps its value.
	poison := func(v any) { fixture.Poison(v, evil, "ID", "TaskID", "Status", "Problem", "Stage", "To") }
	taskAs := func(s lpmos.Status, problem string) lpmos.Task {
		task := server()
		task.Status = s
		task.Progress = &lpmos.Progress{TaskID: id1, Attempt: 1, Stage: lpmos.Downloading, Percentage: 50}
		poison(&task)
		task.Plan.Problem = problem
		return task
	}
	var event lpmos.Event
	var region lpmos.Region
	var image lpmos.Image
	poison(&event)
	poison(&region)
	poison(&image)
	region.ID, region.Status, event.To = "dc1", evil, lpmos.Status(evil)
	b, err := json.Marshal(map[string]any{"title": evil, "status": 409, "detail": evil})
	if err != nil {
		t.Fatal(err)
	}
	fakeOf := func(s lpmos.Status, problem string) *fake {
		return &fake{
			tasks: []lpmos.Task{taskAs(s, problem)}, events: []lpmos.Event{event}, logs: []string{evil},
			regions: []lpmos.Region{region}, images: []lpmos.Image{image},
			refuse: map[string]string{"POST /api/v1/tasks/" + id1 + "/retry": string(b)},
		}
	}
	odd := fakeOf(lpmos.Status(evil), "")
	// People, policy, profiles, machines and the audit.
	var user apiclient.User
	var token apiclient.Token
	var me apiclient.Me
	var profile apiclient.Profile
	var template apiclient.Template
	var machine lpmos.Machine
	var entry lpmos.AuditEntry
	var policy lpmos.ApprovalPolicy
	for _, v := range []any{&user, &token, &me, &profile, &template, &machine, &entry, &policy} {
		poison(v)
	}
	change, err := json.Marshal(map[string]string{evil: evil})
	if err != nil {
		t.Fatal(err)
	}
	entry.Before, entry.After, machine.State = nil, change, lpmos.MachineState(evil)
	odd.more = map[string]any{
		"GET /api/v1/approval-policy": policy, "GET /api/v1/users": map[string]any{"users": []any{user}}, "GET /api/v1/users/x": user, "PUT /api/v1/users/x": user, "POST /api/v1/users": user,
		"GET /api/v1/tokens": map[string]any{"tokens": []any{token}}, "POST /api/v1/tokens": token, "GET /api/v1/me": me, "GET /api/v1/profiles": map[string]any{"profiles": []any{profile}},
		"GET /api/v1/profiles/x": profile, "PUT /api/v1/profiles/x": profile, "GET /api/v1/templates": map[string]any{"templates": []any{template}}, "GET /api/v1/templates/x": template,
		"GET /api/v1/machines": map[string]any{"machines": []any{machine}, "total": 2}, "GET /api/v1/machines/52:54:00:00:00:01": machine,
		"GET /api/v1/audit": map[string]any{"entries": []any{entry}}, "GET /api/v1/audit/1": entry,
	}
	for _, tt := range []struct {
		f    *fake
		args string
	}{
		{odd, "task list"}, {odd, "task show"}, {fakeOf(lpmos.Installing, ""), "task list"}, {fakeOf(lpmos.AwaitingApproval, evil), "task show"}, {fakeOf(lpmos.Failed, ""), "task show"},
		{odd, "task plan"}, {fakeOf(lpmos.AwaitingApproval, evil), "task plan"}, {odd, "task events"}, {odd, "task logs"}, {odd, "task retry"}, {odd, "task cancel"},
		{fakeOf(lpmos.AwaitingApproval, ""), "task approve"}, {fakeOf(lpmos.AwaitingApproval, evil), "task approve"},
		{fakeOf(lpmos.Completed, ""), "task watch"}, {fakeOf(lpmos.Failed, ""), "task watch"}, {fakeOf(lpmos.AwaitingApproval, ""), "task watch --until awaiting_approval"},
		{odd, "region list"}, {odd, "region show dc1"}, {odd, "image list"}, {odd, "image show debian"}, {odd, "doctor --data-dir /nowhere"}, {odd, "__complete task show -- "}, {odd, "__complete image show -- "},
		{odd, "policy show"}, {odd, "user list"}, {odd, "user show x"}, {odd, "user set x --role viewer"}, {odd, "user create x"}, {odd, "token list"}, {odd, "token create x"}, {odd, "whoami"},
		{odd, "profile list"}, {odd, "profile show x"}, {odd, "profile put x --notes n"}, {odd, "template list"}, {odd, "template show x"}, {odd, "machine list"}, {odd, "machine show 52:54:00:00:00:01"},
		{odd, "audit list"}, {odd, "audit show 1"}, {odd, "__complete profile show -- "}, {odd, "__complete template show -- "},
	} {
		args := strings.Fields(tt.args)
		if args[0] == "task" && len(args) < 3 && args[1] != "list" {
			args = append(args, id1)
		} else if args[0] == "task" && args[1] == "watch" {
			args = append(args, id1)
		}
		for _, format := range formats {
			if args[0] == "__complete" && format != "table" {
				continue
			}
			if args[0] != "__complete" {
				args = append(args[:len(args):len(args)], "-o", format)
			}
			_, out, errs := tt.f.run(t, args...)
			if out+errs == "" {
				t.Errorf("%v prints nothing", args)
			}
			for _, r := range out + errs {
				if obeyed(r) && r != '\n' && (r != '\t' || args[0] != "__complete") {
					t.Errorf("%v prints %q, which a terminal obeys", args, r)
					break
				}
			}
			text := args[0] == "template" && args[1] == "show" // which has lines of its own, of any length
			if strings.Contains("\n"+out+errs, "\nlpmos: done") && !text {
				t.Errorf("%v lets text from outside begin a line of its own", args)
			}
			if !utf8.ValidString(out) {
				t.Errorf("%v prints what is not UTF-8", args)
			}
			if (format == "table" || format == "wide") && args[1] != "logs" && !text {
				for line := range strings.Lines(out + errs) {
					if columns(line) > 4200 {
						t.Errorf("%v prints a line of %d columns", args, columns(line))
					}
				}
			}
			if args[0] != "__complete" {
				args = args[:len(args)-2]
			}
			if tt.args[0] == '_' {
				break
			}
		}
	}
}

// JSON and YAML that are made inert still say the same.
func TestInertIsTheSame(t *testing.T) {
	for _, s := range []string{evil, "plain", "no", "12", "1e3", "null", "~", "2026-01-02", "- x", "a: b", "世界 é", "", " lead", "a\nb"} {
		b, err := indented(map[string]string{"k": s})
		var got map[string]string
		if err == nil {
			err = json.Unmarshal(b, &got)
		}
		if err != nil || got["k"] != s {
			t.Errorf("through JSON %.60q becomes %.60q, %v", s, got["k"], err)
		}
		y, err := asYAML(map[string]string{"k": s})
		var again map[string]string
		if err == nil {
			err = yaml.Unmarshal(y, &again)
		}
		if err != nil || again["k"] != s {
			t.Errorf("through YAML %.60q becomes %.60q, %v: %.80q", s, again["k"], err, y)
		}
	}
	if got := plain("tab\there\u00a0é\U0001f600"); got != "tab·here\u00a0é\U0001f600" {
		t.Errorf("plain = %q", got)
	}
}
