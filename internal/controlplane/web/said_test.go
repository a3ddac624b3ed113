package web

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

// saidSource is a package whose sentences reach the pages.
type saidSource struct {
	consts map[string]ast.Expr
	files  []*ast.File
}

func parseSources(t *testing.T, fset *token.FileSet, root string) map[string]*saidSource {
	t.Helper()
	out := map[string]*saidSource{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if base := d.Name(); base == "test" || base == "testdata" || base[0] == '.' && base != ".." {
				return filepath.SkipDir
			}
			return nil
		case !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			return err
		}
		dir, _ := filepath.Rel(root, filepath.Dir(name))
		p := out[dir]
		if p == nil {
			p = &saidSource{consts: map[string]ast.Expr{}}
			out[dir] = p
		}
		p.files = append(p.files, f)
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.CONST {
				for _, sp := range g.Specs {
					v := sp.(*ast.ValueSpec)
					for i := range v.Values {
						p.consts[v.Names[i].Name] = v.Values[i]
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var verb = regexp.MustCompile(`%[-+#0-9.]*[a-z]`)

// gapped is the text that e makes, with %s for what is only known when it runs.
func (p *saidSource) gapped(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, _ := strconv.Unquote(e.Value)
		return text
	case *ast.BinaryExpr:
		return p.gapped(e.X) + p.gapped(e.Y)
	case *ast.Ident:
		if c := p.consts[e.Name]; c != nil {
			return p.gapped(c)
		}
	case *ast.CallExpr:
		switch f := e.Fun.(type) {
		case *ast.SelectorExpr:
			if f.Sel.Name == "Sprintf" {
				return verb.ReplaceAllString(p.gapped(e.Args[0]), "%s")
			}
		case *ast.Ident:
			switch f.Name {
			case "among": // what there is
				return " (there is %s)"
			case "lowerFirst":
				text := p.gapped(e.Args[0])
				return strings.ToLower(text[:1]) + text[1:]
			}
		}
	}
	return "%s"
}

// Why a machine failed, why something was refused or not accepted is written
// down in English by other packages: a sentence without its translation is a
// mistake as on a page.
func TestWhatOthersSayIsTranslated(t *testing.T) {
	s, err := newTongue("zh-CN")
	if err != nil {
		t.Fatal(err)
	}
	check := func(place, field, text string) {
		if strings.Trim(text, "%s .") == "" {
			return // of somewhere else
		}
		text = strings.ReplaceAll(text, "%s", "x1")
		if whole := strings.TrimSpace(field + " " + text); s.Said(text) == text && s.Said(whole) == whole {
			t.Errorf("%s: %q has no translation", place, text)
		}
	}
	// Whose errors people meet in pages; failures come from everywhere.
	asked := []string{".", "internal/store", "internal/controlplane/auth", "internal/controlplane/enroll", "internal/controlplane/orchestrator", "internal/controlplane/web"}
	fset, found := token.NewFileSet(), 0
	for dir, p := range parseSources(t, fset, "../../..") {
		for _, f := range p.files {
			ast.Inspect(f, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if f, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"alarm", "step", "pretend"}, f.Sel.Name) {
						check(fset.Position(call.Pos()).String(), "", p.gapped(call.Args[len(call.Args)-1]))
					}
				}
				c, ok := n.(*ast.CompositeLit)
				if !ok {
					return true
				}
				name := ""
				switch x := c.Type.(type) {
				case *ast.Ident:
					name = x.Name
				case *ast.SelectorExpr:
					name = x.Sel.Name
				}
				value := map[string]string{}
				for _, el := range c.Elts {
					if kv, ok := el.(*ast.KeyValueExpr); ok {
						if k, ok := kv.Key.(*ast.Ident); ok {
							value[k.Name] = p.gapped(kv.Value)
						}
					}
				}
				here := slices.Contains(asked, dir)
				var texts []string
				switch {
				case name == "Step" || name == "Progress":
					texts = []string{value["Message"]}
				case name == "Failure":
					texts = []string{value["Cause"], value["NextStep"]}
				case here && (name == "InvalidError" || name == "ConflictError"):
					texts = []string{value["Problem"]}
				case here && name == "DeniedError":
					texts = []string{value["Text"]}
				case here && name == "PlannedFile":
					texts = []string{value["What"]}
				case here && name == "Move":
					texts = []string{value["Message"]}
				}
				for _, text := range texts {
					switch text {
					case "the task %s; it cannot be %s now", "%s; it was %s by %s at %s": // below
						continue
					}
					found++
					check(fset.Position(c.Pos()).String(), value["Field"], text)
				}
				return true
			})
		}
	}
	if found < 200 {
		t.Errorf("%d sentences were found, which cannot be all", found)
	}
	for _, status := range []lpmos.Status{"", lpmos.Pending, lpmos.AwaitingApproval, lpmos.Approved, lpmos.Installing, lpmos.Verifying, lpmos.Completed, lpmos.Failed, lpmos.Rejected, lpmos.Canceled} {
		_, err := status.Next("x1")
		for _, text := range []string{err.Error(), err.Error() + "; it was approved by anna at noon", err.Error() + "; it was rejected by anna at noon", err.Error() + "; it was canceled by anna at noon"} {
			if said := s.Said(text); strings.Contains(said, "task") || strings.Contains(said, "was") {
				t.Errorf("%q is said as %q", text, said)
			}
		}
	}
}

// What a machine or a server said itself stands in a sentence as it is.
func TestQuotedInChinese(t *testing.T) {
	s, err := newTongue("zh-CN")
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"A step of the installation failed: mount /dev/sda2: exit status 32.":                                                            "安装的某一步失败：mount /dev/sda2: exit status 32。",
		"Somebody used this machine's credential from another address. It came from 192.0.2.7. It happened 20 times.":                    "有人从另一地址使用了这台服务器的凭据。来自 192.0.2.7。共发生 20 次。",
		"the task is approved; it cannot be rejected now; it was approved by anna at 2026-11-28 09:00:00 UTC":                            "任务已批准；现在不能执行此操作（rejected）；已由 anna 于 2026-11-28 09:00:00 UTC 批准",
		"This machine must never be installed: it is cp-1, where LPMOS itself runs (control plane cp-1).":                                "这台服务器禁止安装：它是 cp-1，LPMOS 自身运行于其上（control plane cp-1）。",
		"A part of this machine (02:00:00:00:00:07) belongs to live task 0190a6c0000070008000000000000007. Cancel one of the two.":       "这台服务器的一部分（02:00:00:00:00:07）属于进行中的任务 0190a6c0000070008000000000000007。请取消其中之一。",
		"The template base cannot be rendered: text line 2: {{serial}} is empty for this machine (write {{json serial}} to allow that).": "模板 base 无法生成：第 2 行：{{serial}} 对这台服务器为空（写成 {{json serial}} 可允许为空）。",
	} {
		if got := s.Said(in); got != want {
			t.Errorf("%q is said as %q; want %q", in, got, want)
		}
	}
}

func TestInvalidInChinese(t *testing.T) {
	s, err := newTongue("zh-CN")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		in   lpmos.InvalidError
		want string
	}{
		{lpmos.InvalidError{Field: "hostname", Problem: "is not a host name", Value: "web 1"}, `hostname 不是主机名（给出的是 "web 1"）`},
		{lpmos.InvalidError{Field: "notes", Problem: "is longer than 2 KiB"}, "备注超过 2 KiB"},
		{lpmos.InvalidError{Field: "text", Problem: "line 3: holds the control character U+0007"}, "第 3 行：含有控制字符 U+0007"},
		{lpmos.InvalidError{Field: "profile", Problem: "does not exist (there is base, storage)", Value: "bas"}, `profile 不存在（现有 base, storage）（给出的是 "bas"）`},
		{lpmos.InvalidError{Problem: "the body is not as expected: %!"}, "正文与预期不符：%!"},
		{lpmos.InvalidError{Problem: "words of somebody else"}, "words of somebody else"},
	} {
		if got := s.invalid(&tt.in); got != tt.want {
			t.Errorf("%v is said as %q; want %q", &tt.in, got, tt.want)
		}
	}
}
