package apiclient

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/lpmos/lpmos"
)

// AuditList is a page of what administrators did.
type AuditList struct {
	Entries    []lpmos.AuditEntry `json:"entries"`
	Last       int64              `json:"last"`
	Signed     *lpmos.AuditHead   `json:"signed,omitempty"`
	NextCursor string             `json:"next_cursor,omitempty"`
}

// Audit reads a page; query is as the API has it.
func (c *Client) Audit(ctx context.Context, query url.Values) (l AuditList, err error) {
	err = c.get(ctx, v1+"/audit?"+query.Encode(), &l)
	return l, err
}

// AuditEntry reads one entry.
func (c *Client) AuditEntry(ctx context.Context, seq string) (e lpmos.AuditEntry, err error) {
	err = c.get(ctx, v1+"/audit/"+url.PathEscape(seq), &e)
	return e, err
}

// ExportAudit gives the export as it comes to read, which may be large.
func (c *Client) ExportAudit(ctx context.Context, read func(io.Reader) error) error {
	return c.do(ctx, http.MethodGet, v1+"/audit/export", nil, nil, reading(read))
}

// reading takes an answer that is not one JSON value.
type reading func(io.Reader) error
