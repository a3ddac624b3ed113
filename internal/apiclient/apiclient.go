// Package apiclient is the REST API and the WebSocket from a Go program: the
// command line, the lab and the tests use nothing else.
package apiclient

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

// Client talks to one control plane. It may be used concurrently.
type Client struct {
	base  *url.URL
	http  *http.Client
	dial  func(ctx context.Context, network, addr string) (net.Conn, error)
	tls   *tls.Config // nil: the system's authorities
	token func() string
}

// UseToken shows a token with every request. It must be called before any.
func (c *Client) UseToken(token string) { c.token = func() string { return token } }

// UseTokenFile shows what a file holds, which is read anew for each request: a
// control plane writes another local-token at each start. While there is no
// such file, nothing is shown.
func (c *Client) UseTokenFile(path string) {
	c.token = func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			return "" // the server says that nobody is signed in
		}
		return strings.TrimSpace(string(b))
	}
}

// New makes a client of the control plane at server, such as
// http://localhost:8080. dial may be nil; the lab passes one that reaches into
// its network namespace.
func New(server string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (*Client, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, &lpmos.InvalidError{Field: "server", Problem: "is not a URL such as http://localhost:8080", Value: server}
	}
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	return &Client{base: u, dial: dial, http: &http.Client{Transport: &http.Transport{
		DialContext: dial, ResponseHeaderTimeout: 60 * time.Second, IdleConnTimeout: 30 * time.Second,
	}}}, nil
}

// Server is the control plane's address.
func (c *Client) Server() string { return c.base.String() }

// Problem is an answer that says no (RFC 9457).
type Problem struct {
	Title      string       `json:"title"`
	Status     int          `json:"status"`
	Detail     string       `json:"detail"`
	Field      string       `json:"field"`
	TaskStatus lpmos.Status `json:"task_status"`
	PlanDigest string       `json:"plan_digest"`
	Plan       *lpmos.Plan  `json:"plan"`
	// Lines are all lines of a batch that cannot be accepted.
	Lines []lpmos.BatchLine `json:"lines"`
	// NeedRole is the role that may do what was refused, TriesLeft how many more
	// passwords will be looked at.
	NeedRole  lpmos.Role `json:"need_role"`
	TriesLeft *int       `json:"tries_left"`
	Reauth    bool       `json:"reauth"` // the same with the person's password may be accepted
}

func (p *Problem) Error() string {
	if p.Detail == "" {
		return p.Title
	}
	return p.Detail
}

// Is lets errors.Is see the domain's errors in a Problem.
func (p *Problem) Is(target error) bool {
	switch target {
	case lpmos.ErrNotFound:
		return p.Status == http.StatusNotFound
	case lpmos.ErrConflict:
		return p.Status == http.StatusConflict || p.Status == http.StatusPreconditionFailed
	case lpmos.ErrUnavailable:
		return p.Status == http.StatusServiceUnavailable
	case lpmos.ErrChanged:
		return p.Status == http.StatusPreconditionFailed
	case lpmos.ErrSignedOut:
		return p.Status == http.StatusUnauthorized
	case lpmos.ErrForbidden:
		return p.Status == http.StatusForbidden
	}
	return false
}

func (c *Client) do(ctx context.Context, method, path string, header http.Header, body io.Reader, out any) error {
	u := *c.base
	path, query, _ := strings.Cut(path, "?")
	u.Path, u.RawQuery = strings.TrimSuffix(u.Path, "/")+path, query
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return fmt.Errorf("ask %s: %w", c.base, err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	c.authorize(req.Header)
	if n, ok := body.(interface{ contentLength() int64 }); ok {
		req.ContentLength = n.contentLength()
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return fmt.Errorf("%w: no control plane answers at %s (is it running? --server or LPMOS_SERVER names another): %w", lpmos.ErrUnavailable, c.base, op)
		}
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			return fmt.Errorf("ask %s: %w (if it is the site's own authority, give its certificate: --cacert or LPMOS_CACERT, a copy of site-ca.crt in the control plane's data directory)", c.base, err)
		}
		return fmt.Errorf("ask %s: %w", c.base, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return problemIn(resp)
	}
	if t, ok := out.(*tagged); ok {
		t.etag, out = resp.Header.Get("ETag"), t.out
	}
	if out == nil {
		_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		return err
	}
	if read, ok := out.(reading); ok {
		return read(resp.Body)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 256<<20)).Decode(out); err != nil {
		return fmt.Errorf("read answer of %s: %w", c.base, err)
	}
	return nil
}

// problemIn reads the problem that an answer is.
func problemIn(resp *http.Response) *Problem {
	p := Problem{Status: resp.StatusCode, Title: resp.Status}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		if err := json.Unmarshal(b, &p); err != nil {
			p.Detail = "unreadable problem body: " + err.Error()
		}
	} else {
		p.Detail = strings.TrimSpace(lpmos.Shorten(string(b), 200))
	}
	return &p
}

// tagged takes an answer with its ETag.
type tagged struct {
	out  any
	etag string
}

func (c *Client) getTagged(ctx context.Context, path string, out any) (etag string, err error) {
	t := tagged{out: out}
	err = c.get(ctx, path, &t)
	return t.etag, err
}

func (c *Client) authorize(h http.Header) {
	if c.token == nil {
		return
	}
	if token := c.token(); token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
}

func (c *Client) get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, nil, nil, out)
}

func (c *Client) send(ctx context.Context, method, path string, in, out any) error {
	return c.sendWith(ctx, method, path, http.Header{}, in, out)
}

// sendWith is send with header, which it adds to.
func (c *Client) sendWith(ctx context.Context, method, path string, header http.Header, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	header.Set("Content-Type", "application/json")
	return c.do(ctx, method, path, header, bytes.NewReader(b), out)
}

// under is the header of a request that may be repeated with the same key; "" is
// none.
func under(key string) http.Header {
	if key == "" {
		return http.Header{}
	}
	return http.Header{"Idempotency-Key": {key}}
}

// ifMatch is the header of a change that is based on an earlier answer, by its
// ETag; "" is any.
func ifMatch(etag string) http.Header {
	if etag == "" {
		return http.Header{}
	}
	return http.Header{"If-Match": {etag}}
}

const v1 = "/api/v1"

// Ready reports why the control plane cannot be used yet, or nil.
func (c *Client) Ready(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/readyz", nil, nil, nil)
}

// asked is a spec on its way to the control plane: there, and nowhere else, its
// secrets are what they are.
type asked struct {
	lpmos.Spec
	Secrets map[string]string `json:"secrets,omitempty"`
}

func wireSpec(s lpmos.Spec) asked {
	w := asked{Spec: s}
	for name, v := range s.Secrets {
		if w.Secrets == nil {
			w.Secrets = map[string]string{}
		}
		w.Secrets[name] = v.Reveal()
	}
	return w
}

// CreateTask asks for an installation. key may be ""; with one, the request can
// be repeated safely.
func (c *Client) CreateTask(ctx context.Context, spec lpmos.Spec, key string) (id string, err error) {
	var out struct {
		TaskID string `json:"task_id"`
	}
	err = c.sendWith(ctx, http.MethodPost, v1+"/tasks", under(key), wireSpec(spec), &out)
	return out.TaskID, err
}

// Task reads one task.
func (c *Client) Task(ctx context.Context, id string) (t lpmos.Task, err error) {
	err = c.get(ctx, v1+"/tasks/"+url.PathEscape(id), &t)
	return t, err
}

// TaskList is a page of tasks.
type TaskList struct {
	Tasks      []TaskView `json:"tasks"`
	Total      int        `json:"total"`
	NextCursor string     `json:"next_cursor,omitempty"`
	Groups     *Groups    `json:"groups,omitempty"` // unless groups=false was asked for
	Rev        int64      `json:"rev"`
}

// Tasks reads a page of tasks; query is as the API has it.
func (c *Client) Tasks(ctx context.Context, query url.Values) (l TaskList, err error) {
	err = c.get(ctx, v1+"/tasks?"+query.Encode(), &l)
	return l, err
}

// Decide approves or rejects.
func (c *Client) Decide(ctx context.Context, id string, approved bool, planDigest, notes string) (t TaskView, err error) {
	err = c.send(ctx, http.MethodPut, v1+"/tasks/"+url.PathEscape(id)+"/approve",
		map[string]any{"approved": approved, "plan_digest": planDigest, "notes": notes}, &t)
	return t, err
}

// Cancel ends a task that has not begun to write.
func (c *Client) Cancel(ctx context.Context, id, reason string) (t TaskView, err error) {
	err = c.send(ctx, http.MethodPost, v1+"/tasks/"+url.PathEscape(id)+"/cancel", map[string]string{"reason": reason}, &t)
	return t, err
}

// Retry begins a failed task anew.
func (c *Client) Retry(ctx context.Context, id string) (t TaskView, err error) {
	err = c.do(ctx, http.MethodPost, v1+"/tasks/"+url.PathEscape(id)+"/retry", nil, nil, &t)
	return t, err
}

// Delete forgets a task that has ended.
func (c *Client) Delete(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, v1+"/tasks/"+url.PathEscape(id), nil, nil, nil)
}

// Events reads the history of a task.
func (c *Client) Events(ctx context.Context, id string) ([]lpmos.Event, error) {
	var out struct {
		Events []lpmos.Event `json:"events"`
	}
	err := c.get(ctx, v1+"/tasks/"+url.PathEscape(id)+"/events", &out)
	return out.Events, err
}

// Logs reads what is kept of a task's log.
func (c *Client) Logs(ctx context.Context, id string) ([]string, error) {
	var out struct {
		Lines []string `json:"lines"`
	}
	err := c.get(ctx, v1+"/tasks/"+url.PathEscape(id)+"/logs", &out)
	return out.Lines, err
}

// Regions lists the data centres.
func (c *Client) Regions(ctx context.Context) ([]lpmos.Region, error) {
	var out struct {
		Regions []lpmos.Region `json:"regions"`
	}
	err := c.get(ctx, v1+"/regions", &out)
	return out.Regions, err
}

// Images lists the catalogue.
func (c *Client) Images(ctx context.Context) ([]lpmos.Image, error) {
	var out struct {
		Images []lpmos.Image `json:"images"`
	}
	err := c.get(ctx, v1+"/images", &out)
	return out.Images, err
}

// PutImage registers an image whose blobs are there.
func (c *Client) PutImage(ctx context.Context, i lpmos.Image) error {
	return c.send(ctx, http.MethodPut, imagePath(i.OS, i.Version, i.Arch), i, nil)
}

// PutBootImage makes regions serve this boot image; its blobs must be there.
func (c *Client) PutBootImage(ctx context.Context, b lpmos.BootImage) error {
	return c.send(ctx, http.MethodPut, v1+"/bootimage", b, nil)
}

// DownloadBlob fetches a blob into a file, unless it is there already; a file
// under its name is the whole of it.
func (c *Client) DownloadBlob(ctx context.Context, digest, path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	u := *c.base
	u.Path = strings.TrimSuffix(u.Path, "/") + v1 + "/blobs/" + digest
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("download blob: %w", err)
	}
	c.authorize(req.Header)
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("download blob: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("download blob %s: %s answered %s", digest, c.base, resp.Status)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "download-")
	if err != nil {
		return fmt.Errorf("download blob: %w", err)
	}
	defer os.Remove(f.Name())
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), resp.Body)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("download blob %s: %w", digest, err)
	}
	if hex.EncodeToString(sum.Sum(nil)) != digest {
		return fmt.Errorf("download blob %s: what came is something else", digest)
	}
	return os.Rename(f.Name(), path)
}

// UploadBlob stores a file unless it is there already. progress, if not nil, is
// called with the bytes sent so far.
func (c *Client) UploadBlob(ctx context.Context, digest, path string, progress func(sent, total int64)) error {
	err := c.do(ctx, http.MethodHead, v1+"/blobs/"+digest, nil, nil, nil)
	if err == nil {
		return nil
	}
	if p, ok := errors.AsType[*Problem](err); !ok || p.Status != http.StatusNotFound {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("upload blob: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("upload blob: %w", err)
	}
	return c.do(ctx, http.MethodPut, v1+"/blobs/"+digest, http.Header{"Content-Type": {"application/octet-stream"}},
		&upload{f: f, size: st.Size(), progress: progress}, nil)
}

type upload struct {
	f        *os.File
	size     int64
	sent     int64
	progress func(sent, total int64)
}

func (u *upload) contentLength() int64 { return u.size }

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.f.Read(p)
	u.sent += int64(n)
	if u.progress != nil {
		u.progress(u.sent, u.size)
	}
	return n, err
}

// Region reads one data centre.
func (c *Client) Region(ctx context.Context, id string) (r lpmos.Region, err error) {
	err = c.get(ctx, v1+"/regions/"+url.PathEscape(id), &r)
	return r, err
}

// EnrollToken is the right to enroll one region once.
type EnrollToken struct {
	RegionID      string    `json:"region_id"`
	Token         string    `json:"token"`
	ExpiresAt     time.Time `json:"expires_at"`
	Fingerprint   string    `json:"fingerprint"` // of the site's authority
	EtcdEndpoints []string  `json:"etcd_endpoints"`
}

// EnrollRegion makes a token; ttl 0 is as long as the control plane likes.
func (c *Client) EnrollRegion(ctx context.Context, id string, ttl time.Duration) (t EnrollToken, err error) {
	err = c.send(ctx, http.MethodPost, v1+"/regions/"+url.PathEscape(id)+"/enroll", map[string]int{"ttl_seconds": int(ttl / time.Second)}, &t)
	return t, err
}

// RotateRegion asks a region to renew its certificate.
func (c *Client) RotateRegion(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodPost, v1+"/regions/"+url.PathEscape(id)+"/rotate", nil, nil, nil)
}

// RevokeRegion ends a region's certificates and connections.
func (c *Client) RevokeRegion(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodPost, v1+"/regions/"+url.PathEscape(id)+"/revoke", nil, nil, nil)
}

// DeleteImage takes an image out of the catalogue. Its blobs stay.
func (c *Client) DeleteImage(ctx context.Context, os, version, arch string) error {
	return c.do(ctx, http.MethodDelete, imagePath(os, version, arch), nil, nil, nil)
}

// Plan reads what would be erased and written.
func (c *Client) Plan(ctx context.Context, id string) (p lpmos.Plan, err error) {
	err = c.get(ctx, v1+"/tasks/"+url.PathEscape(id)+"/plan", &p)
	return p, err
}

// Trust makes the client trust the authorities in PEM instead of the system's.
// It must be called before any request, and before Wrap.
func (c *Client) Trust(authorities []byte) error {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authorities) {
		return errors.New("there is no certificate in it")
	}
	c.tls = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	c.http.Transport.(*http.Transport).TLSClientConfig = c.tls.Clone()
	return nil
}

// Wrap puts something around the transport of requests, but not of Watch. It
// must be called before any of them.
func (c *Client) Wrap(around func(http.RoundTripper) http.RoundTripper) {
	c.http.Transport = around(c.http.Transport)
}

// Health asks whether the control plane lives; the header of its answer says
// what time it has.
func (c *Client) Health(ctx context.Context) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base.JoinPath("healthz").String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.base, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.base, err)
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.Header, err
}
