package web

import (
	"encoding/csv"
	"fmt"
	"html"
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

func TestExport(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	read := func(path, file string) [][]string {
		t.Helper()
		res, body := get(t, h, path)
		if got := res.Header.Get("Content-Disposition"); res.StatusCode != 200 || !strings.Contains(got, file) || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/csv") {
			t.Fatalf("%s = %d, %q; want a file %s", path, res.StatusCode, got, file)
		}
		lines, err := csv.NewReader(strings.NewReader(body)).ReadAll()
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return lines
	}
	t.Run("all tasks of a query in its order, however many", func(t *testing.T) {
		for n := range 2*exportRows + 1 {
			id := fmt.Sprintf("%08x-0000-4000-8000-%012x", n, n)
			s.tasks[id] = lpmos.Task{ID: id, Status: lpmos.Pending, Spec: lpmos.Spec{Hostname: "many", RegionID: "bj-1"}, CreatedAt: testNow, UpdatedAt: testNow}
		}
		lines := read("/tasks/export?q=host:%3Dmany&sort=host", "lpmos-tasks-")
		if len(lines) != 2*exportRows+2 || lines[0][0] != "id" || lines[1][2] != "many" {
			t.Errorf("%d lines, the first %q; want %d", len(lines), lines[0], 2*exportRows+2)
		}
		ids := map[string]bool{}
		for _, l := range lines[1:] {
			ids[l[0]] = true
		}
		if len(ids) != 2*exportRows+1 {
			t.Errorf("%d tasks are different; want %d", len(ids), 2*exportRows+1)
		}
	})
	t.Run("what cannot be read is not everything", func(t *testing.T) {
		if res, body := get(t, h, "/tasks/export?q=colour:red"); res.StatusCode != 400 || !strings.Contains(body, "unknown key") {
			t.Errorf("= %d %q; want 400", res.StatusCode, body)
		}
	})
	t.Run("machines", func(t *testing.T) {
		lines := read("/machines/export?state=discovered", "lpmos-machines-")
		if state := slices.Index(lines[0], "state"); len(lines) < 2 || slices.ContainsFunc(lines[1:], func(l []string) bool { return l[state] != "discovered" }) {
			t.Errorf("lines %q; want those of machines that were discovered", lines)
		}
	})
	t.Run("pages lead there with what they show", func(t *testing.T) {
		for path, want := range map[string]string{
			"/tasks?q=status%3Afailed": `href="/tasks/export?q=status%3Afailed"`, "/machines?state=discovered": `href="/machines/export?state=discovered"`,
		} {
			if _, body := get(t, h, path); !strings.Contains(body, want) {
				t.Errorf("%s has no %s", path, want)
			}
		}
		if _, body := get(t, h, "/machines?state=failed&q=rack+7"); !strings.Contains(html.UnescapeString(body), "lpmos machine list --state failed -- 'rack 7'") {
			t.Error("the command beside the machines asks for others")
		}
		if _, body := get(t, h, "/tasks?q=host%3Anowhere"); strings.Contains(body, "/tasks/export") {
			t.Error("nothing can be exported")
		}
	})
	t.Run("what a machine says is text for a spreadsheet", func(t *testing.T) {
		id := taskID(99)
		s.tasks[id] = lpmos.Task{ID: id, Status: lpmos.Failed, Spec: lpmos.Spec{Hostname: "formula"}, Error: &lpmos.Failure{Cause: `=HYPERLINK("x")`}, CreatedAt: testNow, UpdatedAt: testNow}
		lines := read("/tasks/export?q=host:%3Dformula", "lpmos-tasks-")
		if i := slices.Index(lines[0], "error"); len(lines) != 2 || lines[1][i] != `'=HYPERLINK("x")` {
			t.Errorf("lines %q", lines)
		}
	})
}
