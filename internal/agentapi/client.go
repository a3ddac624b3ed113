package agentapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/lpmos/lpmos"
)

// MaxAnswerBytes bounds an answer of the region. A plan with everything found
// on 256 disks stays below it.
const MaxAnswerBytes = 4 << 20

// ClientConfig says which region a Client speaks to and as whom.
type ClientConfig struct {
	URL        string // https://10.77.0.1:8443
	ServerName string // in the region's certificate, whatever the address is
	CA         string // PEM; the only authority that is trusted
	Credential string // of the boot, or the call-home token
	// Key is what the agent of a boot proves to be on every connection; nil for
	// the call home.
	Key *lpmos.AgentKey

	Timeout  time.Duration // of one request, beside the wait of a long poll; 0 is 20 s
	RetryMin time.Duration // first pause between tries; 0 is 500 ms
	RetryMax time.Duration // longest pause between tries; 0 is 15 s
}

// Client asks an agent's questions. Its methods repeat a request for ever, with
// growing pauses, while the region cannot be reached or answers 408, 429 or
// 5xx; they return when there is an answer, when the region refuses (a
// *StatusError) or when ctx ends. Only Progress and Logs are tried once: a
// newer value is due before a repetition would be.
//
// A Client may be used by several goroutines at once.
type Client struct {
	cfg  ClientConfig
	http *http.Client
	log  *slog.Logger
}

// StatusError is an answer other than success.
type StatusError struct {
	Code       int
	Problem    Problem       // empty when the body was not one
	RetryAfter time.Duration // as the answer asked, 0 if it did not
}

func (e *StatusError) Error() string {
	s := "region answered " + strconv.Itoa(e.Code)
	if t := http.StatusText(e.Code); t != "" {
		s += " " + t
	}
	if d := e.Problem.Detail; d != "" {
		s += ": " + lpmos.Shorten(d, 256)
	} else if t := e.Problem.Title; t != "" {
		s += ": " + lpmos.Shorten(t, 256)
	}
	return s
}

// passes reports whether the same request may succeed later.
func (e *StatusError) passes() bool {
	return e.Code >= 500 || e.Code == http.StatusTooManyRequests || e.Code == http.StatusRequestTimeout
}

// Refused returns the answer's code if err is an answer that repeating does not
// change, and 0 otherwise.
func Refused(err error) int {
	if e, ok := errors.AsType[*StatusError](err); ok && !e.passes() {
		return e.Code
	}
	return 0
}

// NewClient checks cfg and makes a client. It connects to nothing yet.
func NewClient(cfg ClientConfig, log *slog.Logger) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, &lpmos.InvalidError{Field: "agent_url", Problem: "is not an https address", Value: cfg.URL}
	}
	if cfg.ServerName == "" {
		return nil, &lpmos.InvalidError{Field: "server_name", Problem: "is missing"}
	}
	if cfg.Credential == "" {
		return nil, &lpmos.InvalidError{Field: "credential", Problem: "is missing"}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(cfg.CA)) {
		return nil, &lpmos.InvalidError{Field: "ca", Problem: "holds no PEM certificate"}
	}
	setDefault(&cfg.Timeout, 20*time.Second)
	setDefault(&cfg.RetryMin, 500*time.Millisecond)
	setDefault(&cfg.RetryMax, 15*time.Second)
	cfg.URL = u.Scheme + "://" + u.Host
	conf := &tls.Config{RootCAs: roots, ServerName: cfg.ServerName, MinVersion: tls.VersionTLS13, Time: sane(cfg.CA, time.Now)}
	if cfg.Key != nil {
		cert, err := Certificate(cfg.Key)
		if err != nil {
			return nil, err
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return &Client{cfg: cfg, log: log, http: &http.Client{
		CheckRedirect: noRedirect,
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig:     conf,
			TLSHandshakeTimeout: 10 * time.Second,
			IdleConnTimeout:     60 * time.Second,
			MaxIdleConnsPerHost: 4,
		},
	}}, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Report sends what the machine is made of, and the client's key with it.
func (c *Client) Report(ctx context.Context, r Report) (a ReportAnswer, err error) {
	if c.cfg.Key != nil && r.AgentKey == nil {
		pub := c.cfg.Key.Public()
		r.AgentKey = &pub
	}
	return a, c.repeat(ctx, http.MethodPost, PathReport, 0, r, &a)
}

// Approval asks what was decided, waiting up to wait (at most MaxWait) for it.
func (c *Client) Approval(ctx context.Context, mac lpmos.MAC, wait time.Duration) (a Approval, err error) {
	return a, c.repeat(ctx, http.MethodGet, PathApproval+mac.String(), wait, nil, &a)
}

// Permit asks to be allowed to write, waiting up to wait for an answer.
func (c *Client) Permit(ctx context.Context, r PermitRequest, wait time.Duration) (a PermitAnswer, err error) {
	return a, c.repeat(ctx, http.MethodPost, PathPermit, wait, r, &a)
}

// Result tells how the attempt ended, waiting up to wait for what comes of it.
func (c *Client) Result(ctx context.Context, r Result, wait time.Duration) (a ResultAnswer, err error) {
	return a, c.repeat(ctx, http.MethodPost, PathResult, wait, r, &a)
}

// Booted is the call home of the installed system.
func (c *Client) Booted(ctx context.Context, b Booted) error {
	return c.repeat(ctx, http.MethodPost, PathBooted, 0, b, nil)
}

// Progress sends how far the attempt has come, once.
func (c *Client) Progress(ctx context.Context, p Progress) error {
	return c.once(ctx, http.MethodPost, PathProgress, 0, encode(p), nil)
}

// Logs sends lines of the log, once.
func (c *Client) Logs(ctx context.Context, l Logs) error {
	return c.once(ctx, http.MethodPost, PathLogs, 0, encode(l), nil)
}

// repeat sends a request until it is answered or refused.
func (c *Client) repeat(ctx context.Context, method, path string, wait time.Duration, in, out any) error {
	var body []byte
	if in != nil {
		body = encode(in)
	}
	pause := Backoff{Min: c.cfg.RetryMin, Max: c.cfg.RetryMax}
	var said time.Time
	for tries := 1; ; tries++ {
		err := c.once(ctx, method, path, wait, body, out)
		if err == nil || Refused(err) != 0 {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", path, context.Cause(ctx))
		}
		var asked time.Duration
		if e, ok := errors.AsType[*StatusError](err); ok {
			asked = e.RetryAfter
		}
		if time.Since(said) > time.Minute {
			said = time.Now()
			c.log.Warn("region does not answer, trying on", "path", path, "tries", tries, "err", err)
		}
		if err := pause.Wait(ctx, asked); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
}

// once sends a request. Everything about it has a deadline.
func (c *Client) once(ctx context.Context, method, path string, wait time.Duration, body []byte, out any) error {
	wait = min(max(wait, 0), MaxWait)
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout+wait)
	defer cancel()
	address := c.cfg.URL + path
	if wait > 0 {
		address += "?wait=" + wait.String()
	}
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request %s: %w", path, err)
	}
	req.Header.Set("Authorization", "Bearer "+c.cfg.Credential)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return statusError(resp)
	}
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		return err
	}
	if err := lpmos.DecodeJSON(resp.Body, MaxAnswerBytes, out); err != nil {
		return fmt.Errorf("read answer of %s: %w", path, err)
	}
	return nil
}

func statusError(resp *http.Response) error {
	e := &StatusError{Code: resp.StatusCode}
	// A proxy's page is as good a refusal as a problem of ours, so what does not
	// decode is left out.
	var p Problem
	if json.NewDecoder(io.LimitReader(resp.Body, 16<<10)).Decode(&p) == nil {
		e.Problem = p
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(min(s, 3600)) * time.Second
	}
	return e
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// encode cannot fail: the types of this package hold nothing that JSON lacks.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("agentapi: encode %T: %v", v, err))
	}
	return b
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// Backoff makes pauses that double from Min to Max, each shortened at random by
// up to half, so that a thousand machines do not ask in step after a region
// came back.
type Backoff struct {
	Min, Max time.Duration

	next time.Duration
}

// Wait blocks for the next pause, at least for atLeast (up to Max), or until
// ctx ends, which is its only error.
func (b *Backoff) Wait(ctx context.Context, atLeast time.Duration) error {
	if b.next < b.Min {
		b.next = b.Min
	}
	d := b.next/2 + rand.N(b.next/2+1)
	b.next = min(2*b.next, b.Max)
	// What a server asks for is honoured up to what still counts as alive.
	d = max(d, min(atLeast, time.Minute))
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Reset begins again with the shortest pause.
func (b *Backoff) Reset() { b.next = 0 }
