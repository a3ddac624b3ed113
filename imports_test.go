package lpmos_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/lpmos/lpmos"

// importRule says what the packages that in names must not import. Packages are
// spelled relative to the module, "." being package lpmos; a trailing "/…"
// means everything below as well.
type importRule struct {
	in     []string
	except []string
	refuse func(imported string) bool // imported is relative for this module's packages, else as written
	reason string
}

// agentSide is everything that runs in RAM on a blank machine.
var agentSide = []string{".", "internal/agent/…", "internal/agentapi", "internal/cpio", "internal/grubboot", "internal/httprange", "internal/tpm", "internal/version", "internal/watchdog", "cmd/agent"}

var importRules = []importRule{
	{
		in:     []string{"."},
		refuse: func(p string) bool { return !standard(p) },
		reason: "package lpmos is the domain and the agent links it: standard library only",
	}, {
		in:     agentSide,
		refuse: func(p string) bool { return !standard(p) && !among(agentSide, p) },
		reason: "the agent is one small static binary: standard library and the agent's own packages only",
	}, {
		in: []string{
			"internal/controlplane/rest", "internal/controlplane/hub", "internal/controlplane/web", "internal/controlplane/api",
			"internal/region/dhcpd", "internal/region/tftpd", "internal/region/httpboot", "internal/region/netboot",
			"internal/region/agentserver", "internal/region/images",
		},
		refuse: func(p string) bool { return p == "internal/store" },
		reason: "leaves declare the small interface they need; only compositions wire the store",
	}, {
		in: []string{"…"}, except: []string{"internal/store/…", "internal/embedetcd", "test/…"},
		refuse: func(p string) bool { return strings.HasPrefix(p, "go.etcd.io/") },
		reason: "etcd's types stay in store and embedetcd, so that keys and transactions are spelled in one place",
	}, {
		in: []string{"…"}, except: []string{"internal/controlplane/rest"},
		refuse: func(p string) bool { return strings.HasPrefix(p, "github.com/gin-gonic/") },
		reason: "gin.Context does not leave rest",
	}, {
		in: []string{"…"}, except: []string{"internal/controlplane/hub", "internal/apiclient", "test/…"},
		refuse: func(p string) bool { return strings.HasPrefix(p, "github.com/gorilla/") },
		reason: "the WebSocket has one server (hub) and one client (apiclient)",
	}, {
		in: []string{"…"}, except: []string{"internal/controlplane/oidc"},
		refuse: func(p string) bool {
			return strings.HasPrefix(p, "github.com/coreos/go-oidc/") || strings.HasPrefix(p, "golang.org/x/oauth2")
		},
		reason: "who an identity provider vouches for is found out in one place",
	}, {
		in: []string{"…"}, except: []string{"internal/cli", "test/…"},
		refuse: func(p string) bool { return p == "internal/sim" },
		reason: "simulated machines are for the command line and the load test; what serves real ones does without",
	}, {
		in:     []string{"internal/region/netboot"},
		refuse: func(p string) bool { return p == "net" || p == "net/http" || p == "os" || p == "time" },
		reason: "boot decisions are pure functions: no network, no files, no clock",
	}, {
		in: []string{"internal/…", "cmd/…", "."}, except: []string{"internal/store/storetest", "internal/lab/labtest", "internal/contract", "internal/tier", "internal/tpm/tpmtest"},
		refuse: func(p string) bool {
			return p == "testing" || strings.HasPrefix(p, "test/") || p == "internal/contract" || p == "internal/store/storetest" || p == "internal/lab/labtest" || p == "internal/tier" || p == "internal/tpm/tpmtest"
		},
		reason: "what ships does not carry tests",
	}, {
		in:     []string{"test/e2e/etcd"},
		refuse: ours,
		reason: ".dockerignore sends docker build no other package of ours",
	},
}

// among reports whether p is one of the patterns.
func among(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		base, below := strings.CutSuffix(pattern, "…")
		base = strings.TrimSuffix(base, "/")
		return p == base || below && (base == "" || strings.HasPrefix(p, base+"/"))
	})
}

// standard reports whether p is of the standard library: only paths of other
// modules begin with a host name, and this module's own are given relative.
func standard(p string) bool {
	first, _, _ := strings.Cut(p, "/")
	return !strings.Contains(first, ".") && !ours(p)
}

func ours(p string) bool {
	first, _, _ := strings.Cut(p, "/")
	return slices.Contains([]string{".", "internal", "cmd", "api", "test"}, first)
}

// TestImports holds the dependency rules of docs/architecture.md against the
// imports of every file that ships.
func TestImports(t *testing.T) {
	seen := map[string]bool{}
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
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		dir := path.Dir(filepath.ToSlash(name))
		seen[dir] = true
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if imported == module {
				imported = "."
			}
			imported = strings.TrimPrefix(imported, module+"/")
			for _, r := range importRules {
				if among(r.in, dir) && !among(r.except, dir) && r.refuse(imported) {
					t.Errorf("%s imports %s, but %s", name, imported, r.reason)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// A rule about a package that was renamed holds nothing.
	for _, r := range importRules {
		for _, p := range slices.Concat(r.in, r.except) {
			used := false
			for dir := range seen {
				used = used || among([]string{p}, dir)
			}
			if !used {
				t.Errorf("rule %q names %s, where no package is", r.reason, p)
			}
		}
	}
}

func TestImportPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, p string
		want       bool
	}{
		{"internal/agent/…", "internal/agent", true},
		{"internal/agent/…", "internal/agent/pid1", true},
		{"internal/agent/…", "internal/agentapi", false},
		{"internal/store", "internal/store/storetest", false},
		{"…", "internal/store", true},
		{"…", ".", true},
		{".", "internal", false},
	} {
		if got := among([]string{tt.pattern}, tt.p); got != tt.want {
			t.Errorf("%q matches %q = %v; want %v", tt.pattern, tt.p, got, tt.want)
		}
	}
	for p, want := range map[string]bool{"net/http": true, "fmt": true, ".": false, "internal/store": false, "github.com/x/y": false, "golang.org/x/sys/unix": false} {
		if got := standard(p); got != want {
			t.Errorf("standard(%q) = %v; want %v", p, got, want)
		}
	}
}
