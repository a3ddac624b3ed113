package apiclient

import (
	"context"
	"net/http"
	"net/url"

	"github.com/lpmos/lpmos"
)

// Approve approves a plan by its digest. With agentKey, the fingerprint whose
// words were compared with the machine's console, the approval is for the boot
// with that key alone.
func (c *Client) Approve(ctx context.Context, id, planDigest, notes, agentKey, password string) (t TaskView, err error) {
	body := map[string]any{"approved": true, "plan_digest": planDigest, "notes": notes}
	if agentKey != "" {
		body["agent_key"] = agentKey
	}
	if password != "" {
		body["password"] = password
	}
	err = c.send(ctx, http.MethodPut, v1+"/tasks/"+url.PathEscape(id)+"/approve", body, &t)
	return t, err
}

// StopState is whether the emergency stop stands.
type StopState struct {
	Stopped bool `json:"stopped"`
	*lpmos.Stop
}

// Stopped reads whether the emergency stop stands.
func (c *Client) Stopped(ctx context.Context) (s StopState, err error) {
	err = c.get(ctx, v1+"/stop", &s)
	return s, err
}

// Stop keeps every machine from beginning to write, until Resume.
func (c *Client) Stop(ctx context.Context, reason string) (s StopState, err error) {
	err = c.send(ctx, http.MethodPut, v1+"/stop", map[string]string{"reason": reason}, &s)
	return s, err
}

// Resume ends the emergency stop.
func (c *Client) Resume(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, v1+"/stop", nil, nil, nil)
}

// Lock keeps a machine as it is.
func (c *Client) Lock(ctx context.Context, mac lpmos.MAC, reason string) (l lpmos.Lock, err error) {
	err = c.send(ctx, http.MethodPut, v1+"/machines/"+mac.String()+"/lock", map[string]string{"reason": reason}, &l)
	return l, err
}

// Unlock takes a machine's lock away.
func (c *Client) Unlock(ctx context.Context, mac lpmos.MAC) error {
	return c.do(ctx, http.MethodDelete, v1+"/machines/"+mac.String()+"/lock", nil, nil, nil)
}

// ForgetTPM lets a machine come with another TPM.
func (c *Client) ForgetTPM(ctx context.Context, mac lpmos.MAC) error {
	return c.do(ctx, http.MethodDelete, v1+"/machines/"+mac.String()+"/tpm", nil, nil, nil)
}

// Limits reads what bounds the damage of a mistake, and its ETag.
func (c *Client) Limits(ctx context.Context) (l lpmos.Limits, etag string, err error) {
	etag, err = c.getTagged(ctx, v1+"/limits", &l)
	return l, etag, err
}

// SetLimits changes the limits, if they are still those that etag is of; "" is
// whatever they are. Otherwise the error is an lpmos.ErrChanged.
func (c *Client) SetLimits(ctx context.Context, l lpmos.Limits, etag string) (out lpmos.Limits, err error) {
	err = c.sendWith(ctx, http.MethodPut, v1+"/limits", ifMatch(etag), l, &out)
	return out, err
}

// ApprovalPolicy reads what it takes to approve, and its ETag.
func (c *Client) ApprovalPolicy(ctx context.Context) (p lpmos.ApprovalPolicy, etag string, err error) {
	etag, err = c.getTagged(ctx, v1+"/approval-policy", &p)
	return p, etag, err
}

// SetApprovalPolicy changes what it takes to approve; etag is as in SetLimits.
func (c *Client) SetApprovalPolicy(ctx context.Context, p lpmos.ApprovalPolicy, etag string) (out lpmos.ApprovalPolicy, err error) {
	err = c.sendWith(ctx, http.MethodPut, v1+"/approval-policy", ifMatch(etag), p, &out)
	return out, err
}
