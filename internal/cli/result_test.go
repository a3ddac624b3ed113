package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

// answering is a control plane that has something to say to every command.
func answering(t *testing.T) http.Handler {
	t.Helper()
	ended := server()
	ended.Status, ended.ID, ended.Hostname, ended.TargetMAC = lpmos.Completed, id2, "db-01", lpmos.MustMAC("52:54:00:00:00:09")
	approved := server()
	approved.Status = lpmos.Approved
	eta := &apiclient.ETA{Basis: "image", Runs: 3, ExpectedSec: 120, LeftSec: 60}
	machine := lpmos.Machine{MAC: lpmos.MustMAC("52:54:00:00:00:01"), State: lpmos.MachineDeployed, Hostname: "web-01"}
	user, token := apiclient.User{Name: "anna", Role: lpmos.Viewer}, apiclient.Token{ID: "0a1b", Name: "ci", Token: "lpm_x"}
	me := apiclient.Me{Name: "anna", Kind: "user", Role: lpmos.Viewer}
	profile, template := lpmos.Profile{Name: "web", Version: 1, OSType: "debian", OSVersion: "12"}, lpmos.Template{Name: "base", Version: 1, Kind: "user-data", Text: "#cloud-config\n"}
	policy := lpmos.ApprovalPolicy{Rules: []lpmos.ApprovalRule{{Approvers: 2}}}
	entry := lpmos.AuditEntry{Seq: 1, By: "anna", Action: "user.create", Subject: "user ben"}
	view := func(task lpmos.Task) apiclient.TaskView { return apiclient.TaskView{Task: task, ETA: eta} }
	f := &fake{
		tasks: []lpmos.Task{server(), ended}, logs: []string{"one", "two: a line"}, events: []lpmos.Event{{Seq: 1, To: lpmos.Pending}},
		regions: []lpmos.Region{{ID: "dc1", Status: "online"}},
		images:  []lpmos.Image{{OS: "alma", Version: "9", Arch: "amd64"}, {OS: "debian", Version: "12-installer", Arch: "amd64"}},
		more: map[string]any{
			"GET /api/v1/tasks/" + id1: view(server()), "PUT /api/v1/tasks/" + id1 + "/approve": view(approved),
			// What is created is at its end at once.
			"POST /api/v1/tasks":       map[string]any{"task_id": id2, "status": "pending"},
			"POST /api/v1/tasks/batch": map[string]any{"id": id1, "total": 1, "finished": true, "tasks": []any{map[string]any{"line": 1, "task_id": id2, "status": "pending"}}},
			"GET /readyz":              nil,
			"GET /api/v1/machines":     map[string]any{"machines": []any{machine}, "total": 1}, "GET /api/v1/machines/52:54:00:00:00:01": machine,
			"PUT /api/v1/machines/52:54:00:00:00:01/lock": lpmos.Lock{Reason: "x"},
			"PUT /api/v1/stop":                            map[string]any{"stopped": true}, "GET /api/v1/limits": lpmos.Limits{}, "PUT /api/v1/limits": lpmos.Limits{},
			"GET /api/v1/approval-policy": policy, "PUT /api/v1/approval-policy": policy,
			"GET /api/v1/profiles": map[string]any{"profiles": []any{profile}}, "GET /api/v1/profiles/web": profile, "PUT /api/v1/profiles/web": profile,
			"GET /api/v1/templates": map[string]any{"templates": []any{template}}, "GET /api/v1/templates/base": template, "PUT /api/v1/templates/base": template,
			"POST /api/v1/templates/base/preview": apiclient.Preview{Template: "base", Version: 1, Text: "x"},
			"GET /api/v1/users":                   map[string]any{"users": []any{user}}, "GET /api/v1/users/anna": user, "PUT /api/v1/users/anna": user, "POST /api/v1/users": user,
			"POST /api/v1/users/anna/reset-password": map[string]string{"one_time_password": "x"},
			"GET /api/v1/tokens":                     map[string]any{"tokens": []any{token}}, "POST /api/v1/tokens": token,
			"GET /api/v1/me": me, "POST /api/v1/login": me, "POST /api/v1/logout": nil,
			"GET /api/v1/audit": map[string]any{"entries": []any{entry}, "last": 1}, "GET /api/v1/audit/1": entry, "GET /api/v1/audit/export": map[string]any{"begin": 1},
			"POST /api/v1/regions/dc1/enroll": apiclient.EnrollToken{RegionID: "dc1", Token: "x"}, "POST /api/v1/regions/dc1/rotate": nil, "POST /api/v1/regions/dc1/revoke": nil,
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodDelete || r.Method == http.MethodHead, strings.HasPrefix(r.URL.Path, "/api/v1/images/"), r.URL.Path == "/api/v1/bootimage":
			w.WriteHeader(http.StatusNoContent)
		case r.Method+r.URL.Path == "GET/api/v1/tasks" && r.URL.Query().Get("q") == "":
			list := apiclient.TaskList{Tasks: []apiclient.TaskView{view(server())}, Total: 1, Rev: 7}
			if s := r.URL.Query().Get("status"); strings.Contains(s, "pending") { // nothing is under way
				list = apiclient.TaskList{}
			}
			_ = json.NewEncoder(w).Encode(list)
		default:
			f.ServeHTTP(w, r)
		}
	})
}

// With -o json and -o yaml, standard output is the result and nothing else: of
// every command, one document, or where things come one after the other, a
// document for each of them.
func TestResultsAreDocuments(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	digest, boot := server().Plan.Digest, filepath.Dir(file("boot/bootimage.json", `{"version":"6.1","kernel":{"sha256":"","bytes":0},"initrd":{"sha256":"","bytes":0},"kernel_args":"","files":{}}`))
	create := "task create --region dc1 --os debian --os-version 12 "
	one := "52:54:00:00:00:01"
	plan := "--plan " + digest + " --serial-end WXYZ "
	const document, lines, script = "one document", "a document for each", "what it is for"
	type command struct {
		args    string
		is      string // document unless it says something else
		want    string // stands in it
		answers string // of a person at a terminal, if there is one
		code    int
		until   string        // it is stopped when standard error has this,
		stop    time.Duration // or after this
		without string        // why it is not run
	}
	commands := []command{
		{args: "audit export " + filepath.Join(dir, "FORMAT.ndjson"), want: "lines"}, {args: "audit export -", is: script}, {args: "audit list"}, {args: "audit show 1"},
		{args: "audit verify", want: "whole", code: ExitAltered},
		{args: "bootimage build", without: "it needs Debian's packages"}, {args: "bootimage publish --dir " + boot, want: "6.1"},
		{args: "completion bash", is: script}, {args: "completion zsh", is: script}, {args: "completion fish", is: script},
		{args: "doctor --data-dir " + dir, want: "checks", code: -1}, // as this computer is
		{args: "image build", without: "it needs root and Debian's packages"}, {args: "image catalogue"}, {args: "image certify", without: "it needs root and QEMU"},
		{args: "image delete alma"}, {args: "image import", without: "see TestImageImport"}, {args: "image list"}, {args: "image show alma"},
		{args: "image installer " + file("linux", "kernel") + " " + file("initrd", "initramfs") + " --os debian --os-version 12-installer --answers preseed --repository http://mirror.example/debian --cache-dir " + dir},
		{args: "lab up", without: "it needs root and QEMU"},
		{args: "limits show"}, {args: "limits set --permits-per-minute 5"},
		{args: "login anna", answers: "a password\n", want: "anna"}, {args: "logout", want: "signed_in"}, {args: "login --token-file -", answers: "lpm_" + strings.Repeat("A", 43) + "\n", want: "anna"},
		{args: "machine list"}, {args: "machine show " + one}, {args: "machine lock --reason x " + one}, {args: "machine unlock " + one}, {args: "machine forget-tpm " + one},
		{args: "policy show"}, {args: "policy add --approvers 2"}, {args: "policy label production " + one}, {args: "policy remove 1"},
		{args: "profile list"}, {args: "profile show web"}, {args: "profile put web --notes n"}, {args: "profile apply -f " + file("web.yaml", "name: web\nos_type: debian\n")}, {args: "profile delete web", want: "deleted"},
		{args: "region list"}, {args: "region list --watch", is: lines, code: ExitNotFound}, {args: "region show dc1"}, {args: "region enroll dc1"}, {args: "region rotate dc1", want: "dc1"}, {args: "region revoke dc1", want: "dc1"},
		{args: "resume"}, {args: "sim --machines 1 --region-url http://127.0.0.1:1", want: "boots", code: -1, stop: time.Second / 4}, {args: "stop"},
		{args: "task approve " + id1, answers: "yes\nWXYZ\n", want: "plan_digest"}, {args: "task approve " + id1 + " " + id2, answers: "yes\nWXYZ\n", want: `"eta"`, code: ExitConflict},
		{args: "task approve " + plan + id1, want: `"eta"`}, {args: "task approve --wait " + plan + id1, is: lines, want: `"approved"`, code: ExitNotFound},
		{args: "task cancel web-01"}, {args: "task cancel web-01 db-01", want: "results"},
		{args: create + "--mac " + one, want: "task_id"}, {args: create + "--wait --mac " + one, is: lines, want: `"completed"`},
		{args: create + "--from-csv " + file("rack.csv", "mac\n"+one+"\n"), want: "total"}, {args: create + "--wait --from-csv " + file("rack.csv", "mac\n"+one+"\n"), is: lines, want: `"completed"`},
		{args: "task delete web-01", want: id1}, {args: "task delete web-01 db-01 --count 2", want: "results"},
		{args: "task events web-01"}, {args: "task list", want: `"eta"`}, {args: "task list --ids", want: id1}, {args: "task list --watch", is: lines, want: `"eta"`, code: ExitNotFound},
		{args: "task logs web-01", want: "two: a line"}, {args: "task logs --follow db-01", is: lines, want: "two: a line"},
		{args: "task plan web-01"}, {args: "task plan web-01 --files"}, {args: "task reject web-01"},
		{args: "task retry web-01"}, {args: "task retry --wait db-01", is: lines, want: `"completed"`}, {args: "task show web-01", want: `"eta"`},
		{args: "task watch", is: lines}, {args: "task watch db-01", is: lines, want: `"completed"`}, {args: "task watch web-01 --until awaiting_approval", is: lines, want: `"eta"`},
		{args: "template list"}, {args: "template show base"}, {args: "template put base --file " + file("user-data", "x\n")}, {args: "template preview base --task web-01", want: "version"}, {args: "template delete base", want: "deleted"},
		{args: "token list"}, {args: "token create ci"}, {args: "token delete 0a1b", want: "deleted"},
		{args: "up --log-level error --listen-addr 127.0.0.1:0 --boot-addr 127.0.0.1:0 --agent-addr 127.0.0.1:0 --tftp-addr off --bootimage-dir " + dir + " --data-dir " + dir, is: lines, until: "--token-file", stop: 20 * time.Second},
		{args: "user list"}, {args: "user show anna"}, {args: "user create anna"}, {args: "user set anna --role viewer"}, {args: "user reset-password anna"}, {args: "user delete anna", want: "deleted"},
		{args: "version", want: "version"}, {args: "whoami"},
	}
	srv := httptest.NewServer(answering(t))
	defer srv.Close()
	run := func(c command, format string) (documents []any, stdout string) {
		t.Helper()
		args := append(strings.Fields(strings.ReplaceAll(c.args, "FORMAT", format)), "-o", format)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var out bytes.Buffer
		var errs running
		if c.stop > 0 {
			go func() {
				for end := time.Now().Add(c.stop); time.Now().Before(end) && (c.until == "" || !strings.Contains(errs.String(), c.until)); {
					time.Sleep(10 * time.Millisecond)
				}
				cancel()
			}()
		}
		a := &app{in: strings.NewReader(c.answers), asks: c.answers != "", out: &out, err: &errs}
		code := a.main(ctx, append([]string{"--server=" + srv.URL}, args...))
		if c.code >= 0 && code != c.code {
			t.Errorf("lpmos %v = exit %d, %q; want %d", args, code, errs.String(), c.code)
		}
		if c.is == script {
			return nil, out.String()
		}
		next := json.NewDecoder(&out).Decode
		if format == "yaml" {
			next = yaml.NewDecoder(&out).Decode
		}
		stdout = out.String()
		for {
			var v any
			err := next(&v)
			if errors.Is(err, io.EOF) {
				return documents, stdout
			}
			if err != nil {
				t.Errorf("lpmos %v writes %.300q, which is no %s: %v", args, stdout, format, err)
				return documents, stdout
			}
			documents = append(documents, v)
		}
	}
	said := map[string]string{} // by command, what it wrote as JSON
	for _, format := range []string{"json", "yaml"} {
		for _, c := range commands {
			if c.without != "" {
				continue
			}
			documents, text := run(c, format)
			if format == "yaml" {
				if got := forms(documents); got != said[c.args] {
					t.Errorf("lpmos %s -o yaml writes %.300s\nwhich is %s; want %s, as with -o json", c.args, text, got, said[c.args])
				}
				continue
			}
			said[c.args] = forms(documents)
			if c.is == "" && len(documents) != 1 || !strings.Contains(text, c.want) {
				t.Errorf("lpmos %s -o json writes %d documents: %.300s; want %s with %q", c.args, len(documents), text, cmp.Or(c.is, document), c.want)
			}
			if c.is == lines && strings.Count(text, "\n") != len(documents) {
				t.Errorf("lpmos %s -o json writes %d documents in %d lines", c.args, len(documents), strings.Count(text, "\n"))
			}
		}
	}
	// Whichever command is made next has its line here.
	walk(tree(), func(c *cobra.Command) {
		path := strings.TrimPrefix(c.CommandPath(), "lpmos ")
		if c.Runnable() && !c.HasSubCommands() && !slices.ContainsFunc(commands, func(one command) bool { return strings.HasPrefix(one.args+" ", path+" ") }) {
			t.Errorf("%s is not run with -o json", c.CommandPath())
		}
	})
}

// forms are what documents are: the names of their fields, the kind of others.
func forms(documents []any) string {
	var out []string
	for _, v := range documents {
		if m, ok := v.(map[string]any); ok {
			out = append(out, strings.Join(slices.Sorted(maps.Keys(m)), ","))
		} else {
			out = append(out, fmt.Sprintf("%T", v))
		}
	}
	return strings.Join(out, "; ")
}
