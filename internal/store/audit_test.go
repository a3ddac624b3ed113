package store

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
)

// A write without an audit entry is refused before it reaches etcd, unless its
// kind is on the list of those that need none.
func TestWritesWithoutAnEntryAreRefused(t *testing.T) {
	s := &Store{} // without a connection: what is not refused would crash
	r := rand.New(rand.NewPCG(1, 2))
	refused := func(op clientv3.Op) bool {
		_, err := s.txn(t.Context(), nil, []clientv3.Op{op}, nil)
		_, other := s.txn(t.Context(), nil, nil, []clientv3.Op{op})
		return err != nil && strings.Contains(err.Error(), "audit entry") && other != nil
	}
	for _, kind := range Kinds {
		key := sample(kind, r).String()
		for name, op := range map[string]clientv3.Op{"put": clientv3.OpPut(key, "x"), "delete": clientv3.OpDelete(key)} {
			if _, bad := administers(op); bad != kind.Audited() {
				t.Errorf("%s of %s needs an entry = %v; want %v", name, kind, bad, kind.Audited())
			} else if bad && !refused(op) {
				t.Errorf("%s of %s without an entry is not refused", name, kind)
			}
		}
	}
	for _, p := range []string{prefix, prefix + "users/", prefix + "audit/", prefix + "config/", prefix + "regions/dc1/"} {
		if !refused(clientv3.OpDelete(p, clientv3.WithPrefix())) {
			t.Errorf("all below %s can be deleted without an entry", p)
		}
	}
	for kind, why := range unaudited {
		if why == "" || !slices.Contains(Kinds, kind) {
			t.Errorf("%q has no reason not to be audited, or is no kind", kind)
		}
	}
}

// Only commit and the first connection send writes to etcd, and only what is
// named here sends them past txn.
func TestOnlyCommitWrites(t *testing.T) {
	may := map[string][]string{
		"Txn":    {"Store.commit", "Store.greet", "Store.parts"}, // greet: whoever connects first; parts: reads
		"commit": {"Store.txn", "Store.administer", "Store.touch", "Store.lock", "Store.NoteTasks", "Store.SignAudit", "Store.TrimAudit", "Store.ExportAudit"},
		"Put":    {}, "Delete": {}, "Do": {},
	}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".go") || strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, file.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			name := fn.Name.Name
			if fn.Recv != nil {
				if p, ok := fn.Recv.List[0].Type.(*ast.StarExpr); ok {
					name = p.X.(*ast.Ident).Name + "." + name
				}
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				of := sel.Sel.Name
				if on, ok := sel.X.(*ast.SelectorExpr); of != "commit" && (!ok || on.Sel.Name != "c") {
					return true // not a method of the client
				}
				if allowed, watched := may[of]; watched && !slices.Contains(allowed, name) {
					t.Errorf("%s: %s calls %s: go through txn, or administer", fset.Position(call.Pos()), name, of)
				}
				return true
			})
		}
	}
}

// canaries puts a text of its own into every string of a value.
func canaries(v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		canaries(v.Elem(), path)
	case reflect.Struct:
		if v.Type().String() == "time.Time" {
			return
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				canaries(v.Field(i), path+"."+f.Name)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte("canary" + path))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		canaries(v.Index(0), path)
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		e := reflect.New(v.Type().Elem()).Elem()
		canaries(e, path)
		m.SetMapIndex(reflect.ValueOf("k").Convert(v.Type().Key()), e)
		v.Set(m)
	case reflect.String:
		v.SetString("canary" + path + ".")
	}
}

// shown are the fields of a kind of value that an entry gives away.
func shown[T any](t *testing.T, l ledger[T]) (out []string) {
	t.Helper()
	var v T
	canaries(reflect.ValueOf(&v).Elem(), "")
	k := Key{Name: strings.Repeat("c0ffee00", 8), Region: "dc1"}
	b, err := json.Marshal(l.deed(k, nil, &v).after)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b) + l.deed(k, nil, &v).subject
	for rest := text; ; {
		i := strings.Index(rest, "canary.")
		if i < 0 {
			break
		}
		rest = rest[i+len("canary."):]
		field := rest[:strings.IndexAny(rest+`"`, `"\ `)]
		out = append(out, strings.TrimSuffix(field, "."))
	}
	if strings.Contains(text, k.Name) {
		t.Errorf("%s shows the whole hash of a credential", l.noun)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// An entry shows what is listed here and nothing else: no password hash, no
// credential, no text that may hold a secret. A field that is added to one of
// these types is not shown until it was thought of.
func TestEntriesHaveNoSecrets(t *testing.T) {
	for name, tt := range map[string]struct{ got, want []string }{
		"user":     {shown(t, users), []string{"External.Email", "External.Groups", "External.Issuer", "External.Subject", "Name", "Regions", "Role"}},
		"token":    {shown(t, tokens), []string{"Name", "Regions", "Role", "User"}},
		"session":  {shown(t, signIns), []string{"Agent", "From", "User"}},
		"region":   {shown(t, identities), []string{"Certificates.Host", "Certificates.Serial"}},
		"template": {shown(t, templates), []string{"Description", "Kind", "Name"}},
		"stop":     {shown(t, stops), []string{"Reason"}},
	} {
		if !slices.Equal(tt.got, tt.want) {
			t.Errorf("an entry about a %s shows %q; want %q", name, tt.got, tt.want)
		}
	}
	for _, field := range shown(t, profiles) {
		if strings.HasPrefix(field, "System.Users.") && field != "System.Users.Name" || strings.HasPrefix(field, "System.Scripts") {
			t.Errorf("an entry about a profile shows %s", field)
		}
	}
}

func TestDifference(t *testing.T) {
	type value struct {
		Role  string `json:"role"`
		Same  int    `json:"same"`
		Long  string `json:"long,omitempty"`
		Other string `json:"other,omitempty"`
	}
	b, a := difference(value{"viewer", 1, "", "x"}, value{"admin", 1, strings.Repeat("l", longField), ""})
	want := fmt.Sprintf(`{"long":{"digest":%q,"bytes":%d},"role":"admin"}`, lpmos.DigestBytes([]byte(`"`+strings.Repeat("l", longField)+`"`)), longField+2)
	if string(b) != `{"other":"x","role":"viewer"}` || string(a) != want {
		t.Errorf("difference = %s, %s", b, a)
	}
	if b, a := difference(nil, value{Role: "x"}); b != nil || string(a) != `{"role":"x","same":0}` {
		t.Errorf("of what was made = %s, %s", b, a)
	}
}
