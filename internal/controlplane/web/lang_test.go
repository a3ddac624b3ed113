package web

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"net/http/httptest"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template/parse"

	"golang.org/x/net/html"

	"github.com/lpmos/lpmos/internal/controlplane/query"
)

// asked collects the English texts that templates and Go ask a tongue for, each
// with a place that asks.
func asked(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	files, _ := fs.Glob(templateFiles, "templates/*.html")
	for _, name := range files {
		b, err := templateFiles.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tree := parse.New(name)
		tree.Mode = parse.SkipFuncCheck
		set := map[string]*parse.Tree{}
		if _, err := tree.Parse(string(b), "", "", set); err != nil {
			t.Fatal(err)
		}
		for _, tr := range set {
			if tr.Root != nil {
				walkTemplate(tr.Root, func(c *parse.CommandNode) {
					id, ok := c.Args[0].(*parse.IdentifierNode)
					if !ok {
						return
					}
					at := map[string]int{"t": 1, "n": 3, "rich": 1}[id.Ident]
					if at == 0 {
						return
					}
					if at >= len(c.Args) {
						t.Errorf("%s: {{%s}} lacks its text", name, c)
						return
					}
					// Anything but a literal is Go's to ask for.
					if s, ok := c.Args[at].(*parse.StringNode); ok {
						out[s.Text] = name
					}
				})
			}
		}
	}
	fset := token.NewFileSet()
	sources, _ := filepath.Glob("*.go")
	for _, name := range sources {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			c, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := c.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			at, ok := map[string]int{"T": 0, "N": 2, "unit": 1, "rich": 0}[sel.Sel.Name]
			if !ok || at >= len(c.Args) {
				return true
			}
			if lit, ok := c.Args[at].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				s, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				out[s] = fset.Position(lit.Pos()).String()
			}
			return true
		})
	}
	for _, words := range wordTables() {
		for _, w := range words {
			out[w] = "a table of words"
		}
	}
	return out
}

// wordTables are texts that reach T through a variable.
func wordTables() [][]string {
	var status, cause, signature []string
	for _, w := range statusWords {
		status = append(status, w)
	}
	for _, w := range auditWords {
		status = append(status, w)
	}
	for _, w := range causeWords {
		cause = append(cause, w)
	}
	for _, w := range signatureWords {
		signature = append(signature, w)
	}
	var stage, field []string
	for _, w := range stageWords {
		stage = append(stage, w)
	}
	for _, w := range factWords {
		field = append(field, w)
	}
	for _, w := range driftWords {
		field = append(field, w)
	}
	for _, w := range csvColumns {
		field = append(field, w.Says)
	}
	for _, p := range slices.Concat(actorForms, subjectForms, driftForms) {
		field = append(field, p.text)
	}
	states := slices.Collect(maps.Values(machineStateWords))
	parts := slices.Concat(slices.Collect(maps.Values(componentWords)), slices.Collect(maps.Values(fieldWords)), slices.Collect(maps.Values(deltaWords)), []string{"server", "proxy"})
	var sorts, bulk, keys []string
	for _, w := range sortWords {
		sorts = append(sorts, w.label)
	}
	for _, b := range bulkTexts {
		for _, w := range []string{b.button, b.ask, b.do, b.done, b.none, b.reason, b.reasonHelp} {
			if w != "" {
				bulk = append(bulk, w)
			}
		}
	}
	for _, k := range query.Keys {
		keys = append(keys, k.Help)
	}
	for _, list := range listColumns {
		for _, c := range list {
			field = append(field, c.Label)
		}
	}
	return [][]string{status, cause, signature, states, parts, stage, field, slices.Collect(maps.Values(roleWords)), sorts, bulk, keys}
}

func walkTemplate(n parse.Node, see func(*parse.CommandNode)) {
	pipe := func(p *parse.PipeNode) {
		if p != nil {
			for _, c := range p.Cmds {
				walkTemplate(c, see)
			}
		}
	}
	branch := func(b *parse.BranchNode) {
		pipe(b.Pipe)
		walkTemplate(b.List, see)
		if b.ElseList != nil {
			walkTemplate(b.ElseList, see)
		}
	}
	switch n := n.(type) {
	case *parse.ListNode:
		if n != nil {
			for _, c := range n.Nodes {
				walkTemplate(c, see)
			}
		}
	case *parse.ActionNode:
		pipe(n.Pipe)
	case *parse.TemplateNode:
		pipe(n.Pipe)
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	case *parse.PipeNode:
		pipe(n)
	case *parse.CommandNode:
		see(n)
		for _, a := range n.Args {
			if p, ok := a.(*parse.PipeNode); ok {
				pipe(p)
			}
		}
	}
}

// A text without its translation, a translation nobody asks for, and gaps that
// differ between the two are all mistakes.
func TestTranslationsAreComplete(t *testing.T) {
	want := asked(t)
	used := map[string]bool{}
	for _, tag := range tagNames[1:] {
		s, err := newTongue(tag)
		if err != nil {
			t.Fatal(err)
		}
		for text, place := range want {
			translated, ok := s.words[text]
			if !ok {
				t.Errorf("%s: %q has no translation in lang/%s", place, text, tag)
				continue
			}
			used[text] = true
			sameGaps(t, text, translated)
		}
	}
	files, _ := fs.Glob(langFiles, "lang/*/*.json")
	for _, name := range files {
		b, _ := langFiles.ReadFile(name)
		var words map[string]string
		if err := json.Unmarshal(b, &words); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for text, translated := range words {
			if strings.HasSuffix(name, "said.json") {
				sameGaps(t, text, translated)
			} else if !used[text] {
				t.Errorf("%s: nobody asks for %q", name, text)
			}
		}
	}
}

var gap = regexp.MustCompile(`%(?:\[\d\])?[sdqv]`)

func sameGaps(t *testing.T, text, translated string) {
	t.Helper()
	if a, b := len(gap.FindAllString(text, -1)), len(gap.FindAllString(translated, -1)); a != b {
		t.Errorf("%q has %d gaps, its translation %q has %d", text, a, translated, b)
	}
}

func TestScriptsAreTranslated(t *testing.T) {
	b, err := staticFiles.ReadFile("static/js/zh-CN.js")
	if err != nil {
		t.Fatal(err)
	}
	var words map[string]string
	if err := json.Unmarshal([]byte(strings.TrimPrefix(strings.TrimSpace(string(b)), "export default ")), &words); err != nil {
		t.Fatalf("zh-CN.js is not one JSON object: %v", err)
	}
	call := regexp.MustCompile(`\bt\('((?:[^'\\]|\\.)*)'`)
	used := map[string]bool{}
	files, _ := fs.Glob(staticFiles, "static/js/*.js")
	for _, name := range files {
		b, _ := staticFiles.ReadFile(name)
		for _, m := range call.FindAllStringSubmatch(string(b), -1) {
			used[m[1]] = true
			if translated, ok := words[m[1]]; !ok {
				t.Errorf("%s: %q has no translation", name, m[1])
			} else {
				sameGaps(t, m[1], translated)
			}
		}
	}
	for text := range words {
		if !used[text] {
			t.Errorf("zh-CN.js: nobody asks for %q", text)
		}
	}
}

// Text that stands in a template outside {{t …}} cannot be translated. Names
// and units are the same in every language.
func TestTemplatesHoldNoText(t *testing.T) {
	action := regexp.MustCompile(`\{\{(?:[^}"]|"(?:[^"\\]|\\.)*")*\}\}`)
	words := regexp.MustCompile(`[A-Za-z]{2,}`)
	same := []string{"LPMOS", "EN", "glish", "English", "MAC", "UUID", "WWN", "CPU", "BIOS", "UEFI", "JSON", "YAML", "CSV", "DHCP", "SSH", "URL", "API", "TFTP", "HTTP", "PXE", "UTC", "SHA", "Linux"}
	files, _ := fs.Glob(templateFiles, "templates/*.html")
	for _, name := range files {
		b, _ := templateFiles.ReadFile(name)
		z := html.NewTokenizer(strings.NewReader(action.ReplaceAllString(string(b), "")))
		quoted := "" // <dt> of the search's help: typed like that in every language
		check := func(text string) {
			for _, w := range words.FindAllString(text, -1) {
				if !slices.Contains(same, w) {
					t.Errorf("%s: %q is not translated", name, strings.TrimSpace(text))
					return
				}
			}
		}
		for z.Next() != html.ErrorToken {
			switch tok := z.Token(); tok.Type {
			case html.TextToken:
				// {{define "main-attributes"}} holds attributes, no text.
				if quoted != "dt" && !strings.HasPrefix(strings.TrimSpace(tok.Data), "data-") {
					check(tok.Data)
				}
			case html.EndTagToken:
				quoted = ""
			case html.StartTagToken, html.SelfClosingTagToken:
				if path.Base(name) == "tasks.html" {
					quoted = tok.Data
				}
				for _, a := range tok.Attr {
					if slices.Contains([]string{"title", "placeholder", "alt", "aria-label"}, a.Key) {
						check(a.Val)
					}
				}
			}
		}
	}
}

func TestLanguageIsChosen(t *testing.T) {
	h := signedIn(newTestWeb(t, newSite(t, testNow)))
	for _, tt := range []struct{ accept, cookie, want string }{
		{"", "", "en"}, {"fr", "", "en"}, {"zh", "", "zh-CN"}, {"zh-CN,zh;q=0.9,en;q=0.8", "", "zh-CN"}, {"zh-Hans-SG", "", "zh-CN"},
		{"en;q=0.5,zh;q=0.4", "", "en"}, {"zh-CN", "en", "en"}, {"en", "zh-CN", "zh-CN"}, {"en", "de", "en"}, {";;;\x00", "", "en"},
	} {
		r := httptest.NewRequest("GET", "/dashboard", nil)
		r.Header.Set("Accept-Language", tt.accept)
		if tt.cookie != "" {
			r.Header.Set("Cookie", "lpmos_lang="+tt.cookie)
		}
		res, body := send(t, h, r)
		if got := res.Header.Get("Content-Language"); got != tt.want || !strings.Contains(body, `<html lang="`+tt.want+`"`) {
			t.Errorf("Accept-Language %q, cookie %q: answered in %q; want %q", tt.accept, tt.cookie, got, tt.want)
		}
	}
}

func TestPunctuation(t *testing.T) {
	const template = `{{.CPU}}; {{.Memory}}, {{t "a"}}. {{range $i, $m := .MACs}}{{if $i}}, {{end}}{{$m}}{{end}} <p>{{t "One."}} {{n 2 "Two." "%s."}} {{.Name}} {{.Why}}{{t "Three."}}{{end}}</strong>{{if .A}} {{t "four:"}}</span> <bdi>{{.B}}</bdi> <strong>{{t "five"}}</strong> {{t "six"}} {{n 7 "· seven" "· %s"}}</p>`
	chinese, english := &tongue{tag: "zh-CN"}, &tongue{tag: "en"}
	const want = `{{.CPU}}；{{.Memory}}，{{t "a"}}。{{range $i, $m := .MACs}}{{if $i}}, {{end}}{{$m}}{{end}} <p>{{t "One."}}{{n 2 "Two." "%s."}}{{.Name}} {{.Why}}{{t "Three."}}{{end}}</strong>{{if .A}}{{t "four:"}}</span><bdi>{{.B}}</bdi> <strong>{{t "five"}}</strong>{{t "six"}} {{n 7 "· seven" "· %s"}}</p>`
	if got := chinese.punctuated(template); got != want {
		t.Errorf("in Chinese %s\nwant       %s", got, want)
	}
	if got := english.punctuated(template); got != template {
		t.Errorf("in English %s", got)
	}
}

func TestSaid(t *testing.T) {
	s := &tongue{tag: "zh-CN", words: map[string]string{"It is full": "已满", "min": "分钟"}, said: []phrase{newPhrase("Nothing was heard for %s", "已有 %s没有消息"), newPhrase("machine %s already has live task %s", "服务器 %[1]s 已有任务 %[2]s"), newPhrase("Full failed: %s", "Full 失败：%s")}}
	for in, want := range map[string]string{
		"It is full.": "已满。", "It is full": "已满", "Machine 00:1a already has live task 42.": "服务器 00:1a 已有任务 42。",
		"words of a machine": "words of a machine", "Full failed: it is full.": "Full 失败：已满。", "Full failed: E-IO it is full.": "Full 失败：E-IO it is full。",
		"": "", "Nothing was heard for 15 min.": "已有 15\u00a0分钟没有消息。",
	} {
		if got := s.Said(in); got != want {
			t.Errorf("Said(%q) = %q; want %q", in, got, want)
		}
	}
}
