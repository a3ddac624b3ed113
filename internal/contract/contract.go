// Package contract holds what a server does against what its OpenAPI 3.1
// document says. A test wraps its HTTP client's transport with NewTransport;
// every exchange is then checked, and Missing tells at the end which documented
// answers no test has seen.
//
// An exchange fails its test when the route is not in the document, when the
// status or media type of the answer is not, when a JSON answer does not match
// its schema, or when the server accepted (2xx) a request that the document
// does not allow. A request that was refused may be as wrong as it likes.
//
// "default" stands for the server's own faults only: it excuses statuses from
// 500 on and need not be seen. Transports may be used concurrently.
package contract

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
)

// maxJSON bounds the JSON answer that is read into memory to be checked.
const maxJSON = 32 << 20

// document is a parsed specification and what was seen of it.
type document struct {
	spec   *openapi3.T
	routes []route // literal segments before parameters

	mu   sync.Mutex // guards what follows
	seen map[answer]bool
}

type route struct {
	path    string
	pattern *regexp.Regexp
	names   []string // of the parameters in pattern
	item    *openapi3.PathItem
}

// answer is a documented answer: "GET", "/tasks/{id}", "404".
type answer struct{ method, path, status string }

func (a answer) String() string { return a.method + " " + a.path + " → " + a.status }

var (
	documentsMu sync.Mutex
	documents   = map[string]*document{} // by the bytes of the specification
)

// open parses a specification once per process, so that all transports made
// from the same bytes share one record of what was seen.
func open(spec []byte) (*document, error) {
	documentsMu.Lock()
	defer documentsMu.Unlock()
	if d := documents[string(spec)]; d != nil {
		return d, nil
	}
	t, err := openapi3.NewLoader().LoadFromData(spec)
	if err != nil {
		return nil, fmt.Errorf("load specification: %w", err)
	}
	if err := t.Validate(context.Background()); err != nil {
		return nil, fmt.Errorf("validate specification: %w", err)
	}
	// Tests serve on addresses of their own; the document's are for readers.
	base := basePath(t.Servers)
	t.Servers = nil
	d := &document{spec: t, seen: map[answer]bool{}}
	for path, item := range t.Paths.Map() {
		d.routes = append(d.routes, newRoute(base, path, item))
	}
	slices.SortFunc(d.routes, func(a, b route) int {
		return cmp.Or(cmp.Compare(len(a.names), len(b.names)), strings.Compare(a.path, b.path))
	})
	documents[string(spec)] = d
	return d, nil
}

// basePath is the path of the first server, under which all routes stand.
func basePath(servers openapi3.Servers) string {
	if len(servers) == 0 {
		return ""
	}
	u, err := url.Parse(servers[0].URL)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(u.Path, "/")
}

var parameter = regexp.MustCompile(`\{([^}]+)\}`)

func newRoute(base, path string, item *openapi3.PathItem) route {
	r := route{path: path, item: item}
	expr, rest := "^"+regexp.QuoteMeta(base), path
	for {
		at := parameter.FindStringSubmatchIndex(rest)
		if at == nil {
			break
		}
		expr += regexp.QuoteMeta(rest[:at[0]]) + "([^/]+)"
		r.names = append(r.names, rest[at[2]:at[3]])
		rest = rest[at[1]:]
	}
	r.pattern = regexp.MustCompile(expr + regexp.QuoteMeta(rest) + "$")
	return r
}

// find gives the operation a request is for, with its path parameters.
func (d *document) find(req *http.Request) (*routers.Route, map[string]string, bool) {
	for _, r := range d.routes {
		m := r.pattern.FindStringSubmatch(req.URL.EscapedPath())
		if m == nil {
			continue
		}
		op := r.item.GetOperation(req.Method)
		if op == nil {
			continue
		}
		params := map[string]string{}
		for i, name := range r.names {
			v, err := url.PathUnescape(m[i+1])
			if err != nil {
				v = m[i+1]
			}
			params[name] = v
		}
		return &routers.Route{Spec: d.spec, Path: r.path, PathItem: r.item, Method: req.Method, Operation: op}, params, true
	}
	return nil, nil, false
}

// NewTransport wraps base (nil means http.DefaultTransport) and reports with
// t.Errorf every exchange that spec does not describe. A specification that
// cannot be loaded ends the test.
func NewTransport(t testing.TB, spec []byte, base http.RoundTripper) http.RoundTripper {
	t.Helper()
	d, err := open(spec)
	if err != nil {
		t.Fatalf("contract: %v", err)
	}
	return &transport{t: t, doc: d, base: cmp.Or[http.RoundTripper](base, http.DefaultTransport)}
}

type transport struct {
	t    testing.TB
	doc  *document
	base http.RoundTripper
}

func (tr *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	r, params, known := tr.doc.find(req)
	if !known {
		tr.t.Errorf("contract: %s %s is not in the specification", req.Method, req.URL.Path)
		return tr.base.RoundTrip(req)
	}
	var sent []byte
	if req.Body != nil && isJSON(req.Header) {
		var err error
		if sent, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req.Body.Close()
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(sent))
	}
	res, err := tr.base.RoundTrip(req)
	if err != nil {
		return nil, err // no exchange took place
	}
	if err := tr.check(req, sent, res, r, params); err != nil {
		tr.t.Errorf("contract: %s %s → %d: %v", req.Method, r.Path, res.StatusCode, err)
	}
	return res, nil
}

func isJSON(h http.Header) bool {
	mt, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && (mt == "application/json" || strings.HasSuffix(mt, "+json"))
}

var options = &openapi3filter.Options{
	AuthenticationFunc:    openapi3filter.NoopAuthenticationFunc,
	IncludeResponseStatus: true,
	MultiError:            true,
}

func (tr *transport) check(req *http.Request, sent []byte, res *http.Response, r *routers.Route, params map[string]string) error {
	status := strconv.Itoa(res.StatusCode)
	described := r.Operation.Responses.Value(status)
	if described == nil && res.StatusCode >= 500 && r.Operation.Responses.Default() != nil {
		status, described = "default", r.Operation.Responses.Default()
	}
	if described == nil {
		return errors.New("this answer is not in the specification")
	}
	tr.doc.mu.Lock()
	tr.doc.seen[answer{r.Method, r.Path, status}] = true
	tr.doc.mu.Unlock()

	copied := req.Clone(req.Context())
	copied.Body = io.NopCloser(bytes.NewReader(sent))
	in := &openapi3filter.RequestValidationInput{
		Request: copied, PathParams: params, QueryParams: req.URL.Query(), Route: r, Options: options,
	}
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		opts := *options
		opts.ExcludeRequestBody = req.Body != nil && !isJSON(req.Header) // streamed: not ours to read
		in.Options = &opts
		if err := openapi3filter.ValidateRequest(req.Context(), in); err != nil {
			return fmt.Errorf("the request was accepted, but %w", explain(err))
		}
		in.Options = options
	}
	return checkAnswer(req, res, in, described.Value)
}

// checkAnswer looks at media type and, for JSON, at the body, which it puts
// back. Other bodies may be streams and are not read.
func checkAnswer(req *http.Request, res *http.Response, in *openapi3filter.RequestValidationInput, described *openapi3.Response) error {
	if req.Method == http.MethodHead || res.StatusCode == http.StatusSwitchingProtocols || res.StatusCode == http.StatusNotModified {
		return nil
	}
	out := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: res.StatusCode, Header: res.Header, Options: options,
	}
	if len(described.Content) == 0 {
		if res.ContentLength > 0 {
			return fmt.Errorf("a body of %d bytes, where none is described", res.ContentLength)
		}
		return nil
	}
	mt, _, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil || described.Content.Get(mt) == nil {
		return fmt.Errorf("media type %q is not described", res.Header.Get("Content-Type"))
	}
	if !isJSON(res.Header) {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxJSON))
	res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	out.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(req.Context(), out); err != nil {
		return explain(err)
	}
	return nil
}

// explain reduces kin-openapi's errors, which print whole schemas and values,
// to where and why.
func explain(err error) error {
	switch e := err.(type) {
	case openapi3.MultiError:
		var parts []string
		for _, one := range e {
			parts = append(parts, explain(one).Error())
		}
		return errors.New(strings.Join(parts, "; "))
	case *openapi3filter.RequestError:
		where := "body"
		if e.Parameter != nil {
			where = e.Parameter.In + " parameter " + e.Parameter.Name
		}
		if e.Err == nil {
			return fmt.Errorf("%s: %s", where, e.Reason)
		}
		return fmt.Errorf("%s: %w", where, explain(e.Err))
	case *openapi3filter.ResponseError:
		if e.Err == nil {
			return errors.New(e.Reason)
		}
		return explain(e.Err)
	case *openapi3.SchemaError:
		return fmt.Errorf("/%s: %s", strings.Join(e.JSONPointer(), "/"), e.Reason)
	}
	return err
}

// Missing lists the documented answers of spec that no exchange of this process
// has shown, sorted. It panics when spec cannot be loaded.
func Missing(spec []byte) []string {
	d, err := open(spec)
	if err != nil {
		panic(fmt.Sprintf("contract: %v", err))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var missing []string
	for _, r := range d.routes {
		for method, op := range r.item.Operations() {
			for status := range op.Responses.Map() {
				if a := (answer{method, r.path, status}); status != "default" && !d.seen[a] {
					missing = append(missing, a.String())
				}
			}
		}
	}
	slices.Sort(missing)
	return missing
}
