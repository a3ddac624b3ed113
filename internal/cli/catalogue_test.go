package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

// catalogue is a control plane with one machine, one profile and one template.
func catalogue(t *testing.T) (run func(args ...string) (int, string, string), asked func() string) {
	t.Helper()
	no := false
	profile := lpmos.Profile{Name: "web", Version: 3, OSType: "debian", OSVersion: "12", Hostname: "web-{serial}", Verify: &no, UpdatedAt: created}
	template := lpmos.Template{Name: "base", Version: 2, Kind: "user-data", Text: "#cloud-config\n\tx: \x1b[31m\u202e{{hostname}}\n"}
	h := server().Hardware
	m := lpmos.Machine{
		MAC: h.NICs[0].MAC, MACs: h.MACs(), RegionID: "dc1", State: lpmos.MachineDeployed, Serial: "SRV\u202e1", Model: "R1", Hostname: "web-01", LastSeen: created, Hardware: h,
		Differences: []lpmos.Difference{{Component: "disk", Item: "S0", Field: "size", Before: "480 GB", After: "240 GB"}, {Component: "nic", Item: "x", After: "eno3 ice"}},
		Tasks:       []lpmos.MachineTask{{TaskID: id1, Status: lpmos.Completed, Hostname: "web-01", OSType: "debian", OSVersion: "12", CreatedAt: created}},
	}
	var log strings.Builder
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		log.WriteString(strings.TrimSpace(strings.Join([]string{r.Method, r.URL.RequestURI(), r.Header.Get("If-Match"), string(b)}, " ")) + "\n")
		var v any
		switch strings.TrimPrefix(r.Method+" "+r.URL.Path, "/api/v1") {
		case "GET /api/v1/machines":
			other := m
			other.MAC, other.Hostname = lpmos.MAC{0x52, 0x54, 0, 0, 0, 9}, "db1"
			switch v = map[string]any{"machines": []lpmos.Machine{m}, "total": 7, "counts": map[string]int{}}; r.URL.Query().Get("q") {
			case "db1", "SRV\u202e1": // more than one page of what has the name somewhere
				v = map[string]any{"machines": []lpmos.Machine{m}, "total": 2, "counts": map[string]int{}, "next_cursor": "x"}
				if r.URL.Query().Get("cursor") != "" {
					v = map[string]any{"machines": []lpmos.Machine{other}, "total": 2, "counts": map[string]int{}}
				}
			}
		case "GET /api/v1/machines/52:54:00:00:00:09":
			v = m
		case "GET /api/v1/machines/52:54:00:00:00:01":
			v = m
		case "POST /api/v1/tasks":
			v = map[string]any{"task_id": id1, "status": "pending"}
		case "GET /api/v1/profiles":
			v = map[string]any{"profiles": []any{profile}}
		case "GET /api/v1/profiles/web", "PUT /api/v1/profiles/web", "PUT /api/v1/profiles/new":
			v = profile
		case "GET /api/v1/templates":
			v = map[string]any{"templates": []any{template}}
		case "GET /api/v1/templates/base", "PUT /api/v1/templates/base":
			v = template
		case "GET /api/v1/templates/answers", "PUT /api/v1/templates/answers":
			v = lpmos.Template{Name: "answers", Version: 1, Kind: "preseed", Text: "d-i x string y\n"}
		case "POST /api/v1/templates/base/preview":
			v = map[string]any{"text": template.Text}
		case "DELETE /api/v1/profiles/web":
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusPreconditionFailed)
			io.WriteString(w, `{"title":"It was changed meanwhile","status":412,"detail":"profile web is at version 3"}`)
			return
		default:
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"title":"Not found","status":404,"detail":"there is no such thing"}`)
			return
		}
		json.NewEncoder(w).Encode(v)
	}))
	t.Cleanup(srv.Close)
	return func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := Main(t.Context(), append([]string{"--server=" + srv.URL}, args...), &out, &errs)
		return code, out.String(), errs.String()
	}, func() string { s := log.String(); log.Reset(); return s }
}

func TestMachineCommands(t *testing.T) {
	run, asked := catalogue(t)
	code, out, _ := run("machine", "list", "--state", "deployed", "--limit", "1", "model:r1", "!region:dc2")
	if code != 0 || !strings.Contains(out, "52:54:00:00:00:01") || !strings.Contains(out, "deployed (not verified)") || !strings.Contains(out, "1 of 7") || strings.Contains(out, "\u202e") {
		t.Errorf("list = %d\n%s", code, out)
	}
	if got := asked(); !strings.Contains(got, "limit=1") || !strings.Contains(got, "q=model%3Ar1+%21region%3Adc2") || !strings.Contains(got, "state=deployed") {
		t.Errorf("asked %s", got)
	}
	if code, out, _ := run("machine", "list", "-o", "wide"); code != 0 || !strings.Contains(out, "UUID") {
		t.Errorf("wide = %d\n%s", code, out)
	}
	code, out, _ = run("machine", "show", "5254.0000.0001")
	for _, want := range []string{"52:54:00:00:00:01, 52:54:00:00:00:02", "disk S0 size: 480 GB → 240 GB", "nic x: new, eno3 ice", id1[:8]} {
		if !strings.Contains(out, want) {
			t.Errorf("show = %d, without %q:\n%s", code, want, out)
		}
	}
	if code, out, errs := run("machine", "show", "web-01"); code != 0 || !strings.Contains(out, "52:54:00:00:00:01, 52:54:00:00:00:02") {
		t.Errorf("by host name = %d %s %s", code, out, errs)
	}
	if code, out, errs := run("machine", "show", "db1"); code != 0 || !strings.Contains(out, "52:54:00:00:00:01") {
		t.Errorf("by a short host name = %d %s %s", code, out, errs)
	}
	if code, _, errs := run("machine", "lock", "SRV\u202e1", "--reason", "x"); code != ExitUsage || !strings.Contains(errs, "2 machines") {
		t.Errorf("a serial number that two have = %d %s", code, errs)
	}
	if code, _, errs := run("machine", "lock", "nobody-has-this", "--reason", "x"); code != ExitNotFound || !strings.Contains(errs, "lpmos machine list") {
		t.Errorf("an unknown name = %d %s", code, errs)
	}
	if code, _, errs := run("machine", "show", "x"); code != ExitUsage || !strings.Contains(errs, "hexadecimal") {
		t.Errorf("a bad address = %d %s", code, errs)
	}
	if code, _, _ := run("machine", "show", "52:54:00:00:00:77"); code != ExitNotFound {
		t.Errorf("an unknown address = %d", code)
	}
}

func TestCreateFromProfile(t *testing.T) {
	run, asked := catalogue(t)
	create := []string{"task", "create", "--region", "dc1", "--mac", "52:54:00:00:00:09"}
	if code, _, errs := run(create...); code != ExitUsage || !strings.Contains(errs, "--os is missing") {
		t.Errorf("without system and profile = %d %s", code, errs)
	}
	if code, _, errs := run(append(create, "--profile", "web@3", "--template", "base", "--hostname-pattern", "db-{mac6}", "--no-verify")...); code != 0 {
		t.Fatalf("create = %d %s", code, errs)
	}
	// What was not said is the profile's to say: no system, no architecture.
	want := `{"region_id":"dc1","target_mac":"52:54:00:00:00:09","os_type":"","os_version":"","profile":"web@3","hostname_pattern":"db-{mac6}","verify":false,"template":"base"}`
	if got := asked(); !strings.Contains(got, want) {
		t.Errorf("asked %s; want %s", got, want)
	}
	code, out, _ := run("__complete", "task", "create", "--profile", "w")
	if code != 0 || !strings.HasPrefix(out, "web") {
		t.Errorf("completion of --profile = %d %q", code, out)
	}
}

func TestProfileCommands(t *testing.T) {
	run, asked := catalogue(t)
	if code, out, _ := run("profile", "list"); code != 0 || !strings.Contains(out, "web-{serial}") {
		t.Errorf("list = %d\n%s", code, out)
	}
	code, out, _ := run("profile", "show", "web", "-o", "yaml")
	if code != 0 || !strings.Contains(out, "version: 3") {
		t.Fatalf("show = %d\n%s", code, out)
	}
	file := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	asked()
	// What was shown can be put back; flags change it.
	if code, out, errs := run("profile", "put", "web", "--file", file, "--notes", "n"); code != 0 || !strings.Contains(out, "web@3: stored") {
		t.Fatalf("put = %d %s%s", code, out, errs)
	}
	if got := asked(); !strings.Contains(got, `"version":3`) || !strings.Contains(got, `"notes":"n"`) || !strings.Contains(got, `"verify":false`) {
		t.Errorf("asked %s", got)
	}
	// Without a file, what is not said stays.
	if code, _, errs := run("profile", "put", "web", "--no-verify=false"); code != 0 {
		t.Fatalf("put = %d %s", code, errs)
	}
	if got := asked(); !strings.Contains(got, `"hostname_pattern":"web-{serial}"`) || !strings.Contains(got, `"verify":true`) {
		t.Errorf("asked %s", got)
	}
	if code, _, errs := run("profile", "put", "new", "--os", "debian"); code != 0 {
		t.Fatalf("put of a new one = %d %s", code, errs)
	}
	if got := asked(); !strings.Contains(got, `"version":0`) || !strings.Contains(got, `"name":"new"`) {
		t.Errorf("asked %s", got)
	}
	// A password's hash goes to the control plane as it is, and nowhere else.
	const hash = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"
	if err := os.WriteFile(file, []byte("system: {users: [{name: ops, password_hash: '"+hash+"'}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := run("profile", "put", "new", "--file", file); code != 0 || strings.Contains(out+errs, hash) {
		t.Fatalf("put with a password = %d %s %s", code, out, errs)
	}
	if got := asked(); !strings.Contains(got, `"password_hash":"`+hash+`"`) {
		t.Errorf("asked %s; want the hash in it", got)
	}
	// V13: what names itself again and again is refused before it is unfolded.
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.Repeat(fmt.Sprintf("*%c,", c-1), 10))
	}
	if err := os.WriteFile(file, []byte(bomb), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := run("profile", "put", "web", "--file", file); code != ExitUsage {
		t.Errorf("a bomb of aliases = %d %.200s", code, errs)
	}
	if err := os.WriteFile(file, []byte("nam: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := run("profile", "put", "web", "--file", file); code != ExitUsage || !strings.Contains(errs, "nam") {
		t.Errorf("a field that is none = %d %s", code, errs)
	}
	if code, _, errs := run("profile", "delete", "web", "--version", "2"); code != ExitConflict || !strings.Contains(errs, "at version 3") {
		t.Errorf("delete of an older version = %d %s", code, errs)
	}
	if got := asked(); !strings.Contains(got, `DELETE /api/v1/profiles/web "2"`) {
		t.Errorf("asked %s", got)
	}
}

func TestTemplateCommands(t *testing.T) {
	run, asked := catalogue(t)
	if code, out, _ := run("template", "list"); code != 0 || !strings.Contains(out, "user-data") {
		t.Errorf("list = %d\n%s", code, out)
	}
	for _, args := range [][]string{{"template", "show", "base"}, {"template", "preview", "base"}} {
		if code, out, _ := run(args...); code != 0 || !strings.Contains(out, "\tx: ·[31m·{{hostname}}") {
			t.Errorf("%v = %d\n%q", args, code, out)
		}
	}
	file := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(file, []byte("#!/bin/true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	asked()
	if code, out, errs := run("template", "put", "base", "--file", file, "--description", "d"); code != 0 || !strings.Contains(out, "stored") {
		t.Errorf("put = %d %s%s", code, out, errs)
	}
	if got := asked(); !strings.Contains(got, `"version":2`) || !strings.Contains(got, `"text":"#!/bin/true\n"`) || !strings.Contains(got, `"description":"d"`) {
		t.Errorf("asked %s", got)
	}
	for kind, flags := range map[string][]string{"preseed": nil, "autoinstall": {"--kind", "autoinstall"}} {
		code, _, errs := run(append([]string{"template", "put", "answers", "--file", file}, flags...)...)
		if got := asked(); code != 0 || !strings.Contains(got, `"kind":"`+kind+`"`) {
			t.Errorf("put of a preseed with flags %v = %d %s; asked %s", flags, code, errs, got)
		}
	}
	if code, _, errs := run("template", "put", "base"); code != ExitUsage || !strings.Contains(errs, "--file") {
		t.Errorf("put without a file = %d %s", code, errs)
	}
}
