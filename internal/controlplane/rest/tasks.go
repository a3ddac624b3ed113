package rest

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

type created struct {
	TaskID string       `json:"task_id"`
	Status lpmos.Status `json:"status"`
}

func (a *API) createTask(c *gin.Context) {
	key := c.GetHeader("Idempotency-Key")
	if len(key) > 255 {
		a.fail(c, &lpmos.InvalidError{Field: "Idempotency-Key", Problem: "is longer than 255 bytes"})
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

type taskList struct {
	Tasks      []lpmos.Task `json:"tasks"`
	Total      int          `json:"total"`
	NextCursor string       `json:"next_cursor,omitempty"`
	Rev        int64        `json:"rev"`
}

func (a *API) listTasks(c *gin.Context) {
	q := api.Query{RegionID: c.Query("region_id"), Cursor: c.Query("cursor")}
	var err error
	if q.Filter, err = query.Parse(c.Query("q")); err != nil {
		a.fail(c, err)
		return
	}
	if q.Limit, err = intQuery(c, "limit", maxLimit); err != nil {
		a.fail(c, err)
		return
	}
	if q.RegionID != "" && !lpmos.ValidRegionID(q.RegionID) {
		a.fail(c, &lpmos.InvalidError{Field: "region_id", Problem: "is not a region id", Value: q.RegionID})
		return
	}
	for _, s := range c.QueryArray("status") {
		for one := range strings.SplitSeq(s, ",") {
			if !lpmos.Status(one).Valid() {
				a.fail(c, &lpmos.InvalidError{Field: "status", Problem: "is not a status", Value: one})
				return
			}
			q.Statuses = append(q.Statuses, lpmos.Status(one))
		}
	}
	page := a.read.Tasks(q)
	c.JSON(http.StatusOK, taskList{list(page.Tasks), page.Total, page.NextCursor, page.Rev})
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
	if t, ok := a.task(c); ok {
		c.JSON(http.StatusOK, t)
	}
}

// answer sends a task after an action. The read model may not have seen the
// action's own revision yet, so the action's result is what is sent.
func (a *API) answer(c *gin.Context, t lpmos.Task, err error) {
	if err != nil {
		a.fail(c, err)
		return
	}
	c.JSON(http.StatusOK, t)
}

type approval struct {
	Approved   *bool  `json:"approved"`
	Notes      string `json:"notes,omitempty"`
	PlanDigest string `json:"plan_digest,omitempty"`
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
	t, err := a.act.Decide(c.Request.Context(), c.Param("id"), api.Decision{Approved: *req.Approved, Notes: req.Notes, PlanDigest: req.PlanDigest}, who(c))
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
}

func (a *API) taskLogs(c *gin.Context) {
	t, ok := a.task(c)
	if !ok {
		return
	}
	lines, _ := a.read.Logs(t.ID)
	c.JSON(http.StatusOK, logLines{list(lines)})
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
