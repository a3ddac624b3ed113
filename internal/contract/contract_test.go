package contract

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

const spec = `
openapi: 3.1.0
info: {title: test, version: "1"}
servers: [{url: "https://elsewhere.example/api"}]
paths:
  /things/{id}:
    get:
      operationId: get
      parameters:
        - {name: id, in: path, required: true, schema: {type: string, pattern: "^[a-z]+$"}}
        - {name: limit, in: query, schema: {type: integer, maximum: 10}}
      responses:
        "200":
          description: a thing
          content:
            application/json:
              schema:
                type: object
                required: [name]
                additionalProperties: false
                properties:
                  name: {type: string}
                  size: {type: [integer, "null"]}
        "404": {description: none, content: {application/problem+json: {schema: {type: object}}}}
        default: {description: fault, content: {application/problem+json: {schema: {type: object}}}}
  /things/special:
    get:
      operationId: special
      responses:
        "204": {description: nothing}
    post:
      operationId: make
      requestBody:
        required: true
        content:
          application/json:
            schema: {type: object, required: [name], additionalProperties: false, properties: {name: {type: string}}}
      responses:
        "204": {description: made}
        "400": {description: wrong, content: {application/problem+json: {schema: {type: object}}}}
`

// recorder is a testing.TB that keeps what was reported.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Errorf(f string, a ...any) { r.errors = append(r.errors, fmt.Sprintf(f, a...)) }

func TestTransport(t *testing.T) {
	tests := []struct {
		name         string
		method, path string
		send         string
		status       int
		mediaType    string
		answer       string
		want         string // part of the complaint, "" for none
	}{
		{name: "accepts what is described", path: "/api/things/a?limit=3", status: 200, mediaType: "application/json", answer: `{"name":"a","size":null}`},
		{name: "accepts a described refusal", path: "/api/things/a", status: 404, mediaType: "application/problem+json", answer: `{}`},
		{name: "takes default for a fault of the server", path: "/api/things/a", status: 503, mediaType: "application/problem+json", answer: `{}`},
		{name: "prefers the literal route", path: "/api/things/special", status: 204},
		{name: "names an unknown route", path: "/api/other", status: 200, want: "not in the specification"},
		{name: "names a route outside the base path", path: "/things/a", status: 200, want: "not in the specification"},
		{name: "names an unknown method", method: "DELETE", path: "/api/things/a", status: 200, want: "not in the specification"},
		{name: "names an undocumented status", path: "/api/things/a", status: 418, want: "answer is not in the specification"},
		{name: "does not take default for a refusal", path: "/api/things/a", status: 403, want: "answer is not in the specification"},
		{name: "names a missing field", path: "/api/things/a", status: 200, mediaType: "application/json", answer: `{}`, want: "name"},
		{name: "names an extra field", path: "/api/things/a", status: 200, mediaType: "application/json", answer: `{"name":"a","colour":"red"}`, want: "colour"},
		{name: "names a wrong type", path: "/api/things/a", status: 200, mediaType: "application/json", answer: `{"name":"a","size":"big"}`, want: "size"},
		{name: "names a media type", path: "/api/things/a", status: 200, mediaType: "text/html", answer: `<p>`, want: "text/html"},
		{name: "names a body where none is described", path: "/api/things/special", status: 200, answer: "x", want: "answer is not"},
		{name: "wants an accepted request to be allowed", path: "/api/things/a?limit=11", status: 200, mediaType: "application/json", answer: `{"name":"a"}`, want: "limit"},
		{name: "wants an accepted path to be allowed", path: "/api/things/A1", status: 200, mediaType: "application/json", answer: `{"name":"a"}`, want: "id"},
		{name: "accepts a described body", method: "POST", path: "/api/things/special", send: `{"name":"x"}`, status: 204},
		{name: "wants an accepted body to be allowed", method: "POST", path: "/api/things/special", send: `{"nam":"x"}`, status: 204, want: "name"},
		{name: "lets a refused body be wrong", method: "POST", path: "/api/things/special", send: `{"nam":"x"}`, status: 400, mediaType: "application/problem+json", answer: `{}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got string
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				got = string(b)
				if tt.mediaType != "" {
					w.Header().Set("Content-Type", tt.mediaType)
				}
				w.WriteHeader(tt.status)
				io.WriteString(w, tt.answer)
			}))
			defer srv.Close()
			rec := &recorder{TB: t}
			client := &http.Client{Transport: NewTransport(rec, []byte(spec), nil)}
			method := tt.method
			if method == "" {
				method = "GET"
			}
			req, _ := http.NewRequest(method, srv.URL+tt.path, nil)
			if tt.send != "" {
				req, _ = http.NewRequest(method, srv.URL+tt.path, strings.NewReader(tt.send))
				req.Header.Set("Content-Type", "application/json")
			}
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if res.StatusCode != 204 && string(body) != tt.answer || got != tt.send {
				t.Errorf("the transport changed the exchange: sent %q got %q, answered %q got %q", tt.send, got, tt.answer, body)
			}
			all := strings.Join(rec.errors, "\n")
			if (tt.want == "") != (all == "") || !strings.Contains(all, tt.want) {
				t.Errorf("reported %q; want %q in it", all, tt.want)
			}
		})
	}
}

func TestMissing(t *testing.T) {
	own := []byte(strings.Replace(spec, "title: test", "title: missing", 1))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }))
	defer srv.Close()
	client := &http.Client{Transport: NewTransport(t, own, nil)}
	res, err := client.Get(srv.URL + "/api/things/special")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	want := []string{
		"GET /things/{id} → 200", "GET /things/{id} → 404",
		"POST /things/special → 204", "POST /things/special → 400",
	}
	if got := Missing(own); !slices.Equal(got, want) {
		t.Errorf("Missing = %q; want %q", got, want)
	}
}
