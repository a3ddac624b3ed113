package lpmos_test

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what is generated anew")

// threatRE is a row of docs/threats.md, threatLine its line there: row, what is
// tried, tests.
var (
	threatRE   = regexp.MustCompile(`\b[DMTVWX][0-9]{2}\b`)
	threatLine = regexp.MustCompile(`(?m)^\| ([DMTVWX][0-9]{2}) \| ([^|]*) \|[^|]*\|$`)
)

// TestThreatsHaveTests holds the table of threats against the tests: a test says
// in a comment which rows it proves, every row has one, and the table names
// them. It writes the last column with -update.
func TestThreatsHaveTests(t *testing.T) {
	tests := map[string][]string{} // by row
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, "_test.go") || name == "threats_test.go" {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		for _, group := range f.Comments {
			for _, row := range threatRE.FindAllString(group.Text(), -1) {
				test := testAround(f, group)
				if test == "" {
					t.Errorf("%s speaks of %s outside of a test", set.Position(group.Pos()), row)
					continue
				}
				tests[row] = append(tests[row], "`"+path.Dir(filepath.ToSlash(name))+"` "+test)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const file = "docs/threats.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	now := threatLine.ReplaceAllStringFunc(string(b), func(line string) string {
		m := threatLine.FindStringSubmatch(line)
		if rows[m[1]] {
			t.Errorf("%s has %s twice", file, m[1])
		}
		rows[m[1]] = true
		by := slices.Compact(slices.Sorted(slices.Values(tests[m[1]])))
		if len(by) == 0 {
			t.Errorf("no test says that it proves %s: %s", m[1], m[2])
		}
		return "| " + m[1] + " | " + m[2] + " | " + strings.Join(by, "<br>") + " |"
	})
	for _, row := range slices.Sorted(maps.Keys(tests)) {
		if !rows[row] {
			t.Errorf("%v speak of %s, which is no row of %s", tests[row], row, file)
		}
	}
	if len(rows) < 65 {
		t.Errorf("%s has %d rows; want 65", file, len(rows))
	}
	if now == string(b) {
		return
	}
	if !*update {
		t.Errorf("%s does not name the tests as they are: go test . -run TestThreatsHaveTests -update", file)
	} else if err := os.WriteFile(file, []byte(now), 0o644); err != nil {
		t.Error(err)
	}
}

// testAround is the test that a comment belongs to, or stands in; "" for none.
func testAround(f *ast.File, c *ast.CommentGroup) string {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Test") && !strings.HasPrefix(fn.Name.Name, "Fuzz") {
			continue
		}
		if fn.Doc == c || fn.Pos() <= c.Pos() && c.End() <= fn.End() {
			return fn.Name.Name
		}
	}
	return ""
}
