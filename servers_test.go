package lpmos_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// Whoever sends a request byte by byte, or keeps a connection and sends nothing,
// is cut off by every listener that ships: no server of net/http is made without
// its limits, which are none by default.
func TestEveryServerHasLimits(t *testing.T) {
	servers := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != "." && (strings.HasPrefix(base, ".") || base == "test" || base == "testdata" || base == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			return err
		}
		of := func(e ast.Expr) string {
			if s, ok := e.(*ast.SelectorExpr); ok {
				if pkg, ok := s.X.(*ast.Ident); ok && pkg.Name == "http" {
					return s.Sel.Name
				}
			}
			return ""
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				switch fn := of(n.Fun); fn {
				case "ListenAndServe", "ListenAndServeTLS", "Serve", "ServeTLS":
					t.Errorf("%s: http.%s makes a server without limits", set.Position(n.Pos()), fn)
				}
			case *ast.CompositeLit:
				if of(n.Type) != "Server" {
					break
				}
				servers++
				has := map[string]bool{}
				for _, e := range n.Elts {
					if kv, ok := e.(*ast.KeyValueExpr); ok {
						has[kv.Key.(*ast.Ident).Name] = true
					}
				}
				for _, limit := range []string{"ReadHeaderTimeout", "IdleTimeout", "MaxHeaderBytes"} {
					if !has[limit] {
						t.Errorf("%s: a server without %s", set.Position(n.Pos()), limit)
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if servers < 3 {
		t.Errorf("%d servers were found; want those of the control plane, the boot files and the agent API", servers)
	}
}
