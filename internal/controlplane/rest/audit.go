package rest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

type auditList struct {
	Entries    []lpmos.AuditEntry `json:"entries"`
	Last       int64              `json:"last"` // number of the newest there is
	Signed     *lpmos.AuditHead   `json:"signed,omitempty"`
	NextCursor string             `json:"next_cursor,omitempty"`
}

// maxWord bounds what is searched for in the audit.
const maxWord = 256

func auditQuery(c *gin.Context) (q api.AuditQuery, err error) {
	q = api.AuditQuery{By: c.Query("by"), Action: c.Query("action"), Subject: c.Query("subject")}
	for _, word := range []string{"by", "action", "subject"} {
		if len(c.Query(word)) > maxWord {
			return q, &lpmos.InvalidError{Field: word, Problem: "is longer than 256 bytes"}
		}
	}
	if q.Limit, err = intQuery(c, "limit", 1, maxLimit); err != nil {
		return q, err
	}
	for name, at := range map[string]*time.Time{"after": &q.After, "before": &q.Before} {
		if v := c.Query(name); v != "" {
			if *at, err = time.Parse(time.RFC3339, v); err != nil {
				return q, &lpmos.InvalidError{Field: name, Problem: "is not a moment such as 2026-11-01T00:00:00Z", Value: v}
			}
		}
	}
	if v := c.Query("cursor"); v != "" {
		if q.Cursor, err = auditSeq(v); err != nil {
			return q, &lpmos.InvalidError{Field: "cursor", Problem: "is not the next_cursor of a page: begin again without it", Value: v}
		}
	}
	return q, nil
}

func auditSeq(v string) (int64, error) {
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < 1 || strconv.FormatInt(n, 10) != v {
		return 0, &lpmos.InvalidError{Field: "seq", Problem: "is not the number of an entry", Value: v}
	}
	return n, nil
}

func (a *API) listAudit(c *gin.Context) {
	q, err := auditQuery(c)
	if err != nil {
		a.fail(c, err)
		return
	}
	p, err := a.store.Audit(c.Request.Context(), q)
	if err != nil {
		a.fail(c, err)
		return
	}
	body := auditList{Entries: list(p.Entries), Last: p.Last, Signed: p.Signed}
	if p.Next > 0 {
		body.NextCursor = strconv.FormatInt(p.Next, 10)
	}
	c.JSON(http.StatusOK, body)
}

func (a *API) getAudit(c *gin.Context) {
	seq, err := auditSeq(c.Param("seq"))
	if err != nil {
		a.fail(c, err)
		return
	}
	e, err := a.store.AuditEntry(c.Request.Context(), seq)
	if err != nil {
		a.fail(c, err)
		return
	}
	c.JSON(http.StatusOK, e)
}

// exportAudit streams one JSON value a line. What goes wrong after the first
// cuts the connection: an export without its last line is known not to be whole.
func (a *API) exportAudit(c *gin.Context) {
	enc := json.NewEncoder(c.Writer)
	begun := false
	err := a.store.ExportAudit(c.Request.Context(), func(r lpmos.AuditRecord) error {
		if !begun {
			begun = true
			c.Header("Content-Type", "application/x-ndjson")
			c.Header("Cache-Control", "no-store")
			c.Header("Content-Disposition", fmt.Sprintf(`attachment; filename="lpmos-audit-%s.ndjson"`, r.Begin.At.Format("20060102-150405")))
			c.Status(http.StatusOK)
		}
		return enc.Encode(r)
	})
	switch {
	case err != nil && !begun:
		a.fail(c, err)
	case err != nil:
		if c.Request.Context().Err() == nil {
			a.log.Error("audit export ended early", "err", err)
		}
		panic(http.ErrAbortHandler)
	}
}
