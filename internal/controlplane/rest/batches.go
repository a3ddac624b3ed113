package rest

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
)

// maxBatchBody bounds a batch's body: what is stored of it must fit into one
// value of etcd.
const maxBatchBody = 1 << 20

type batchRequest struct {
	Tasks []lpmos.Spec `json:"tasks"`
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
	b, err := a.act.CreateBatch(c.Request.Context(), req.Tasks, who(c), key)
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
