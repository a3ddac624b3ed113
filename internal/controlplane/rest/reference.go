package rest

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/gin-gonic/gin"
	"go.yaml.in/yaml/v4"
)

// The reference is a page made of openapi.yaml on this server: no script, no
// other host, see docs/decisions/0006-own-api-reference.md.

//go:embed reference/page.html
var referencePage string

//go:embed reference/style.css
var referenceCSS []byte

var referenceTemplate = template.Must(template.New("reference").Parse(referencePage))

// referencePolicy lets the page load its own style sheet and nothing else; the
// empty icon is a data: URL so that no browser asks for one.
const referencePolicy = "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// docs is the page, made once.
type docs struct {
	once sync.Once
	page []byte
	err  error
}

func (a *API) reference(c *gin.Context) {
	a.docs.once.Do(func() { a.docs.page, a.docs.err = renderReference(a.spec) })
	if a.docs.err != nil {
		a.fail(c, a.docs.err)
		return
	}
	c.Header("Content-Security-Policy", referencePolicy)
	c.Header("X-Content-Type-Options", "nosniff")
	c.Header("Referrer-Policy", "same-origin")
	c.Header("Cache-Control", "no-cache")
	c.Data(http.StatusOK, "text/html; charset=utf-8", a.docs.page)
}

func (a *API) referenceStyle(c *gin.Context) {
	c.Header("Cache-Control", "no-cache")
	c.Header("X-Content-Type-Options", "nosniff")
	c.Data(http.StatusOK, "text/css; charset=utf-8", referenceCSS)
}

type refPage struct {
	Title, Version string
	Description    []string // paragraphs
	Groups         []*refGroup
	Schemas        []refField
}

type refGroup struct {
	Name, Description string
	Ops               []refOp
}

type refOp struct {
	ID, Method, Path, Short, Summary, Example string
	Description                               []string
	Params                                    []refParam
	Body                                      *refMedia
	Answers                                   []refAnswer
}

type refParam struct {
	Name, In, Description string
	Required              bool
	Type                  refType
}

type refAnswer struct {
	Status, Description string
	Media               []refMedia
}

type refMedia struct {
	Type   string
	Schema refType
}

// refType is what may stand somewhere: a named shape, or words.
type refType struct {
	Before string // "list of "
	Ref    string // name of a shape
	Text   string
	Note   string
	Fields []refField // of an object without a name
}

type refField struct {
	Name     string
	Required bool
	Type     refType
}

// object is a mapping of the document, read leniently: what is not there is
// empty. The contract test holds the document itself.
type object map[string]any

func (o object) text(key string) string {
	return strings.TrimSpace(fmt.Sprint(cmp.Or(o[key], any(""))))
}
func (o object) object(key string) object { v, _ := o[key].(map[string]any); return v }
func (o object) list(key string) []any    { v, _ := o[key].([]any); return v }
func (o object) flag(key string) bool     { v, _ := o[key].(bool); return v }
func (o object) sorted() []string         { return slices.Sorted(maps.Keys(o)) }
func (o object) paragraphs(k string) []string {
	var out []string
	for p := range strings.SplitSeq(o.text(k), "\n\n") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

// spec resolves references within the document.
type spec struct{ root object }

func (s spec) resolve(v any) (o object, name string) {
	o, _ = v.(map[string]any)
	ref := o.text("$ref")
	if ref == "" {
		return o, ""
	}
	at := s.root
	for part := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		at, name = at.object(part), part
	}
	return at, name
}

var methods = []string{"get", "head", "post", "put", "delete"}

func renderReference(document []byte) ([]byte, error) {
	var root map[string]any
	if err := yaml.Load(document, &root); err != nil {
		return nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	s := spec{root}
	info := s.root.object("info")
	page := refPage{Title: info.text("title"), Version: info.text("version"), Description: info.paragraphs("description")}
	byTag := map[string]*refGroup{}
	for _, t := range s.root.list("tags") {
		tag, _ := s.resolve(t)
		g := &refGroup{Name: tag.text("name"), Description: tag.text("description")}
		byTag[g.Name] = g
		page.Groups = append(page.Groups, g)
	}
	paths := s.root.object("paths")
	for _, path := range paths.sorted() {
		item := paths.object(path)
		for _, method := range methods {
			op := item.object(method)
			if op == nil {
				continue
			}
			tags := op.list("tags")
			if len(tags) == 0 || byTag[fmt.Sprint(tags[0])] == nil {
				return nil, fmt.Errorf("read openapi.yaml: %s %s has no tag that is described", method, path)
			}
			g := byTag[fmt.Sprint(tags[0])]
			g.Ops = append(g.Ops, s.operation(method, path, item, op))
		}
	}
	schemas := s.root.object("components").object("schemas")
	for _, name := range schemas.sorted() {
		t := s.describe(schemas[name])
		page.Schemas = append(page.Schemas, refField{Name: name, Type: t})
	}
	var b bytes.Buffer
	if err := referenceTemplate.Execute(&b, page); err != nil {
		return nil, fmt.Errorf("render API reference: %w", err)
	}
	return b.Bytes(), nil
}

func (s spec) operation(method, path string, item, op object) refOp {
	o := refOp{
		ID: op.text("operationId"), Method: strings.ToUpper(method), Path: path, Short: strings.TrimPrefix(path, "/api/v1"),
		Summary: op.text("summary"), Description: op.paragraphs("description"),
	}
	for _, p := range slices.Concat(item.list("parameters"), op.list("parameters")) {
		param, _ := s.resolve(p)
		t := s.named(param["schema"])
		o.Params = append(o.Params, refParam{
			Name: param.text("name"), In: param.text("in"), Required: param.flag("required"), Type: t,
			Description: strings.TrimSpace(param.text("description") + " " + t.Note),
		})
	}
	example := "curl"
	if method != "get" {
		example += " -X " + o.Method
	}
	if body, _ := s.resolve(op["requestBody"]); body != nil {
		if media := s.media(body); len(media) > 0 {
			o.Body = &media[0]
			example += " -H 'Content-Type: " + media[0].Type + "' --data-binary @body"
		}
	}
	o.Example = example + " http://localhost:8080" + path
	answers := op.object("responses")
	for _, status := range answers.sorted() {
		a, _ := s.resolve(answers[status])
		o.Answers = append(o.Answers, refAnswer{Status: status, Description: a.text("description"), Media: s.media(a)})
	}
	return o
}

func (s spec) media(of object) (out []refMedia) {
	content := of.object("content")
	for _, name := range content.sorted() {
		out = append(out, refMedia{Type: name, Schema: s.named(content.object(name)["schema"])})
	}
	return out
}

// named describes a schema where it is used: by its name if it has one.
func (s spec) named(v any) refType {
	if _, name := s.resolve(v); name != "" {
		return refType{Ref: name}
	}
	return s.describe(v)
}

// describe tells what a schema says itself.
func (s spec) describe(v any) refType {
	o, _ := s.resolve(v)
	t := refType{Note: o.text("description")}
	kind := o.text("type")
	if kinds := o.list("type"); kinds != nil {
		kind = fmt.Sprint(kinds[0]) + " or null"
	}
	base, _, _ := strings.Cut(kind, " ")
	switch {
	case base == "array":
		items := s.named(o["items"])
		t.Before, t.Ref, t.Text, t.Fields = "list of "+items.Before, items.Ref, items.Text, items.Fields
	case o.object("properties") != nil:
		t.Text = kind
		required := o.list("required")
		properties := o.object("properties")
		for _, name := range properties.sorted() {
			t.Fields = append(t.Fields, refField{Name: name, Required: slices.Contains(required, any(name)), Type: s.named(properties[name])})
		}
	case base == "object" && o.object("additionalProperties") != nil:
		values := s.named(o["additionalProperties"])
		t.Before, t.Ref, t.Text = "object of ", values.Ref, values.Text
	default:
		t.Text = kind
		if f := o.text("format"); f != "" {
			t.Text += " (" + f + ")"
		}
	}
	if values := o.list("enum"); len(values) > 0 {
		var all []string
		for _, v := range values {
			all = append(all, fmt.Sprint(v))
		}
		t.Text = strings.Join(all, " | ")
	}
	var limits []string
	for _, l := range []struct{ key, words string }{{"minimum", "at least "}, {"maximum", "at most "}, {"maxLength", "at most this long: "}, {"maxItems", "at most this many: "}, {"default", "otherwise "}} {
		if v, ok := o[l.key]; ok {
			limits = append(limits, l.words+fmt.Sprint(v))
		}
	}
	if len(limits) > 0 {
		t.Note = strings.TrimSpace(t.Note + " (" + strings.Join(limits, ", ") + ")")
	}
	return t
}
