package rest

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
)

// maxBatchBody bounds a batch's body: what is stored of it must fit into one
// value of etcd.
const maxBatchBody = 1 << 20

// batchRequest holds the lines as they came, so that one that cannot be read
// takes nothing else with it: all bad lines are named at once.
type batchRequest struct {
	Tasks []json.RawMessage `json:"tasks"`
}

// specs reads the lines. Where some cannot be read, the others are checked
// nevertheless, and the error names both.
func (a *API) specs(lines []json.RawMessage) ([]lpmos.Spec, error) {
	if len(lines) > lpmos.MaxBatchLines {
		_, err := a.act.CheckBatch(make([]lpmos.Spec, len(lines)))
		return nil, err
	}
	bad := &lpmos.BatchError{}
	var good []lpmos.Spec
	var number []int // of the good ones
	for i, raw := range lines {
		var s lpmos.Spec
		if err := lpmos.UnmarshalJSON(raw, &s); err != nil {
			line := lpmos.BatchLine{Line: i + 1, Detail: err.Error()}
			if inv, ok := errors.AsType[*lpmos.InvalidError](err); ok {
				line.Field = inv.Field
				if inv.Field == "mac" { // as addresses call themselves
					line.Field = "target_mac"
				}
			}
			bad.Lines = append(bad.Lines, line)
			continue
		}
		good, number = append(good, s), append(number, i+1)
	}
	if len(bad.Lines) == 0 {
		return good, nil
	}
	if len(good) > 0 {
		_, err := a.act.CheckBatch(good)
		if more, ok := errors.AsType[*lpmos.BatchError](err); ok {
			for _, l := range more.Lines {
				l.Line = number[l.Line-1]
				bad.Lines = append(bad.Lines, l)
			}
		}
	}
	slices.SortStableFunc(bad.Lines, func(a, b lpmos.BatchLine) int { return a.Line - b.Line })
	return nil, bad
}

// batchBody is a batch and what became of its lines.
type batchBody struct {
	lpmos.Batch
	Tasks []batchTask `json:"tasks"` // of the lines that were dealt with and did not fail
}

type batchTask struct {
	Line   int          `json:"line"`
	TaskID string       `json:"task_id"`
	Status lpmos.Status `json:"status,omitempty"` // "" once the task was deleted, or before it is seen
}

func (a *API) createBatch(c *gin.Context) {
	key, ok := a.idempotencyKey(c)
	if !ok {
		return
	}
	var req batchRequest
	if !a.decodeUpTo(c, maxBatchBody, &req) {
		return
	}
	specs, err := a.specs(req.Tasks)
	if err != nil {
		a.fail(c, err)
		return
	}
	b, err := a.act.CreateBatch(c.Request.Context(), specs, who(c), key)
	if err != nil {
		a.fail(c, err)
		return
	}
	c.Header("Location", "/api/v1/batches/"+b.ID)
	c.JSON(http.StatusAccepted, a.batchBody(b))
}

func (a *API) getBatch(c *gin.Context) {
	b, err := a.act.Batch(c.Request.Context(), c.Param("id"))
	if err != nil {
		a.fail(c, err)
		return
	}
	a.conditional(c, a.batchBody(b))
}

func (a *API) batchBody(b lpmos.Batch) batchBody {
	out := batchBody{Batch: b, Tasks: []batchTask{}}
	failed := map[int]bool{}
	for _, f := range b.Failed {
		failed[f.Line] = true
	}
	done := b.Done
	if !b.Finished {
		done = b.Total // what is stored lags behind; the tasks themselves tell
	}
	for line := 1; line <= done; line++ {
		if failed[line] {
			continue
		}
		t := batchTask{Line: line, TaskID: lpmos.BatchTaskID(b.ID, line)}
		status, ok := a.read.Status(t.TaskID)
		if !ok && !b.Finished {
			continue
		}
		t.Status = status
		out.Tasks = append(out.Tasks, t)
	}
	out.Done = max(out.Done, len(out.Tasks)+len(failed))
	return out
}
