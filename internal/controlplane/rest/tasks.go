package rest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

type created struct {
	TaskID string       `json:"task_id"`
	Status lpmos.Status `json:"status"`
}

func (a *API) idempotencyKey(c *gin.Context) (string, bool) {
	key := c.GetHeader("Idempotency-Key")
	if len(key) > 255 {
		a.fail(c, &lpmos.InvalidError{Field: "Idempotency-Key", Problem: "is longer than 255 bytes"})
		return "", false
	}
	return key, true
}

func (a *API) createTask(c *gin.Context) {
	key, ok := a.idempotencyKey(c)
	if !ok {
		return
	}
	var spec lpmos.Spec
	if !a.decode(c, &spec) {
		return
	}
	t, err := a.act.Create(c.Request.Context(), spec, who(c), key)
	if err != nil {
		a.fail(c, err)
		return
	}
	c.Header("Location", "/api/v1/tasks/"+t.ID)
	c.JSON(http.StatusCreated, created{t.ID, t.Status})
}

// taskBody is a task as it is answered: with what earlier runs say about it.
type taskBody struct {
	lpmos.Task
	ETA *etaBody `json:"eta,omitempty"`
}

type etaBody struct {
	Basis       string `json:"basis"`
	Runs        int    `json:"runs"`
	ExpectedSec int64  `json:"expected_sec"`
	ElapsedSec  int64  `json:"elapsed_sec"`
	LeftSec     int64  `json:"left_sec"`
	FasterThan  *int   `json:"faster_than_percent,omitempty"`
}

func newETA(e *api.ETA) *etaBody {
	if e == nil {
		return nil
	}
	sec := func(d time.Duration) int64 { return int64(d.Round(time.Second) / time.Second) }
	b := &etaBody{Basis: e.Basis, Runs: e.Runs, ExpectedSec: sec(e.Expected), ElapsedSec: sec(e.Elapsed), LeftSec: sec(e.Left)}
	if e.FasterThan >= 0 {
		b.FasterThan = &e.FasterThan
	}
	return b
}

func (a *API) taskBody(t lpmos.Task) taskBody { return taskBody{t, newETA(a.read.Estimate(t.ID))} }

type taskList struct {
	Tasks      []taskBody `json:"tasks"`
	Total      int        `json:"total"`
	NextCursor string     `json:"next_cursor,omitempty"`
	Groups     *groups    `json:"groups,omitempty"`
	Rev        int64      `json:"rev"`
}

type groups struct {
	Status map[lpmos.Status]int `json:"status"`
	Region map[string]int       `json:"region_id"`
	OS     map[string]int       `json:"os_type"`
}

// taskQuery reads what a request selects.
func (a *API) taskQuery(c *gin.Context) (q api.Query, err error) {
	q = api.Query{RegionID: c.Query("region_id"), Cursor: c.Query("cursor")}
	if q.Filter, err = query.Parse(c.Query("q")); err != nil {
		return q, err
	}
	if q.Sort, err = api.ParseSort(c.Query("sort")); err != nil {
		return q, err
	}
	if q.Limit, err = intQuery(c, "limit", 1, maxLimit); err != nil {
		return q, err
	}
	if q.Offset, err = intQuery(c, "offset", 0, 1_000_000); err != nil {
		return q, err
	}
	if q.RegionID != "" && !lpmos.ValidRegionID(q.RegionID) {
		return q, &lpmos.InvalidError{Field: "region_id", Problem: "is not a region id", Value: q.RegionID}
	}
	if !a.read.ValidCursor(q.Cursor, q.Sort) {
		return q, &lpmos.InvalidError{Field: "cursor", Problem: "is not the next_cursor of a page in this order: begin again without it", Value: q.Cursor}
	}
	for _, s := range c.QueryArray("status") {
		for one := range strings.SplitSeq(s, ",") {
			if !lpmos.Status(one).Valid() {
				return q, &lpmos.InvalidError{Field: "status", Problem: "is not a status", Value: one}
			}
			q.Statuses = append(q.Statuses, lpmos.Status(one))
		}
	}
	switch v := c.Query("groups"); v {
	case "", "true":
		q.Groups = true
	case "false":
	default:
		return q, &lpmos.InvalidError{Field: "groups", Problem: "is neither true nor false", Value: v}
	}
	return q, nil
}

func (a *API) listTasks(c *gin.Context) {
	q, err := a.taskQuery(c)
	if err != nil {
		a.fail(c, err)
		return
	}
	page := a.read.Tasks(q)
	body := taskList{Tasks: make([]taskBody, len(page.Tasks)), Total: page.Total, NextCursor: page.NextCursor, Rev: page.Rev}
	for i, t := range page.Tasks {
		body.Tasks[i] = taskBody{t, newETA(page.Rows[i].ETA)}
	}
	if g := page.Groups; g != nil {
		body.Groups = &groups{g.Status, g.Region, g.OS}
	}
	a.conditional(c, body, body.Tasks, body.Total, body.NextCursor, body.Groups)
}

type idList struct {
	IDs   []string `json:"task_ids"`
	Total int      `json:"total"`
}

// listTaskIDs is what "select all that match" asks: the ids alone, more of them
// than a page of tasks holds.
func (a *API) listTaskIDs(c *gin.Context) {
	q, err := a.taskQuery(c)
	if err != nil {
		a.fail(c, err)
		return
	}
	ids, total := a.read.IDs(q)
	c.JSON(http.StatusOK, idList{list(ids), total})
}

// task finds the task a path names, or answers.
func (a *API) task(c *gin.Context) (lpmos.Task, bool) {
	id := c.Param("id")
	if !lpmos.ValidTaskID(id) {
		a.fail(c, &lpmos.InvalidError{Field: "task_id", Problem: "is not a task id", Value: id})
		return lpmos.Task{}, false
	}
	t, ok := a.read.Task(id)
	if !ok {
		a.fail(c, fmt.Errorf("task %s: %w", id, lpmos.ErrNotFound))
	}
	return t, ok
}

func (a *API) getTask(c *gin.Context) {
	t, ok := a.task(c)
	if !ok {
		return
	}
	a.conditional(c, a.taskBody(t), t) // the estimate moves by itself
}

// answer sends a task after an action. The read model may not have seen the
// action's own revision yet, so the action's result is what is sent.
func (a *API) answer(c *gin.Context, t lpmos.Task, err error) {
	if err != nil {
		a.fail(c, err)
		return
	}
	c.JSON(http.StatusOK, a.taskBody(t))
}

type approval struct {
	Approved   *bool  `json:"approved"`
	Notes      string `json:"notes,omitempty"`
	PlanDigest string `json:"plan_digest,omitempty"`
	AgentKey   string `json:"agent_key,omitempty"`
	// Password proves once more who approves, where the policy asks for it.
	Password lpmos.Secret `json:"password,omitzero"`
}

func (a *API) approveTask(c *gin.Context) {
	var req approval
	if !a.decode(c, &req) {
		return
	}
	if req.Approved == nil {
		a.fail(c, &lpmos.InvalidError{Field: "approved", Problem: "is missing: say true or false"})
		return
	}
	if req.PlanDigest != "" {
		digits, err := lpmos.TrimDigest(req.PlanDigest)
		if err != nil {
			a.fail(c, &lpmos.InvalidError{Field: "plan_digest", Problem: "is not sha256: and 64 hexadecimal digits", Value: req.PlanDigest})
			return
		}
		req.PlanDigest = "sha256:" + digits
	}
	if req.AgentKey != "" {
		digits, err := lpmos.TrimDigest(req.AgentKey)
		if err != nil {
			a.fail(c, &lpmos.InvalidError{Field: "agent_key", Problem: "is not a fingerprint: sha256: and 64 hexadecimal digits", Value: req.AgentKey})
			return
		}
		req.AgentKey = "sha256:" + digits
	}
	if !req.Password.IsZero() {
		p, err := a.who.Reauthenticate(c.Request.Context(), principal(c), req.Password.Reveal())
		if err != nil {
			a.fail(c, err)
			return
		}
		a = a.of(p)
	}
	t, err := a.act.Decide(c.Request.Context(), c.Param("id"), api.Decision{Approved: *req.Approved, Notes: req.Notes, PlanDigest: req.PlanDigest, AgentKey: req.AgentKey}, who(c))
	a.answer(c, t, err)
}

type reason struct {
	Reason string `json:"reason,omitempty"`
}

func (a *API) cancelTask(c *gin.Context) {
	var req reason
	if c.Request.ContentLength != 0 && !a.decode(c, &req) {
		return
	}
	t, err := a.act.Cancel(c.Request.Context(), c.Param("id"), req.Reason, who(c))
	a.answer(c, t, err)
}

func (a *API) retryTask(c *gin.Context) {
	t, err := a.act.Retry(c.Request.Context(), c.Param("id"), who(c))
	a.answer(c, t, err)
}

func (a *API) deleteTask(c *gin.Context) {
	if err := a.act.Delete(c.Request.Context(), c.Param("id"), who(c)); err != nil {
		a.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}

type eventList struct {
	Events []lpmos.Event `json:"events"`
}

func (a *API) taskEvents(c *gin.Context) {
	events, err := a.store.Events(c.Request.Context(), c.Param("id"))
	if err != nil {
		a.fail(c, err)
		return
	}
	c.JSON(http.StatusOK, eventList{events})
}

type logLines struct {
	Lines []string `json:"lines"`
	Total int      `json:"total"` // lines that are kept, whether they match or not
}

// maxSearch bounds what is searched for in a log.
const maxSearch = 256

// taskLogs answers with lines as JSON or, to whoever asks for text or a
// download, as they are.
func (a *API) taskLogs(c *gin.Context) {
	t, ok := a.task(c)
	if !ok {
		return
	}
	lines, _ := a.read.Logs(t.ID)
	body := logLines{Lines: list(lines), Total: len(lines)}
	if q := c.Query("q"); len(q) > maxSearch || !utf8.ValidString(q) {
		a.fail(c, &lpmos.InvalidError{Field: "q", Problem: "is longer than 256 bytes, or not valid UTF-8"})
		return
	} else if words := strings.Fields(strings.ToLower(q)); len(words) > 0 {
		body.Lines = []string{}
		for _, l := range lines {
			low := strings.ToLower(l)
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(low, w) }) {
				body.Lines = append(body.Lines, l)
			}
		}
	}
	_, download := c.GetQuery("download")
	if !download && c.NegotiateFormat("application/json", "text/plain") != "text/plain" {
		c.JSON(http.StatusOK, body)
		return
	}
	if download {
		c.Header("Content-Disposition", `attachment; filename="task-`+t.ID+`.log"`)
	}
	c.Header("X-Content-Type-Options", "nosniff")
	var text strings.Builder
	for _, l := range body.Lines {
		text.WriteString(l + "\n")
	}
	c.Data(http.StatusOK, "text/plain; charset=utf-8", []byte(text.String()))
}

func (a *API) taskPlan(c *gin.Context) {
	t, ok := a.task(c)
	if !ok {
		return
	}
	if t.Plan == nil {
		a.fail(c, fmt.Errorf("task %s has no plan yet, its machine has not reported: %w", t.ID, lpmos.ErrNotFound))
		return
	}
	c.JSON(http.StatusOK, t.Plan)
}
