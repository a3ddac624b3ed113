package apiclient

import (
	"context"
	"net/http"
	"net/url"

	"github.com/lpmos/lpmos"
)

// ETA is what earlier runs say about a task.
type ETA struct {
	Basis       string `json:"basis"` // "image" or "image and model"
	Runs        int    `json:"runs"`
	ExpectedSec int64  `json:"expected_sec"`
	ElapsedSec  int64  `json:"elapsed_sec"`
	LeftSec     int64  `json:"left_sec"`
	FasterThan  *int   `json:"faster_than_percent,omitempty"` // nil before there is anything to compare
}

// Groups counts what matches, whatever part of it a page shows. Status is
// counted as if nothing were asked about the status.
type Groups struct {
	Status map[lpmos.Status]int `json:"status"`
	Region map[string]int       `json:"region_id"`
	OS     map[string]int       `json:"os_type"`
}

// TaskView is a task with what is known beside it.
type TaskView struct {
	lpmos.Task
	ETA *ETA `json:"eta,omitempty"` // nil when too little is known
}

// TaskView reads one task with its estimate.
func (c *Client) TaskView(ctx context.Context, id string) (t TaskView, err error) {
	err = c.get(ctx, v1+"/tasks/"+url.PathEscape(id), &t)
	return t, err
}

// TaskIDs reads the ids of what matches, 10,000 at most, and how many match;
// query is as the API has it.
func (c *Client) TaskIDs(ctx context.Context, query url.Values) (ids []string, total int, err error) {
	var out struct {
		IDs   []string `json:"task_ids"`
		Total int      `json:"total"`
	}
	err = c.get(ctx, v1+"/tasks/ids?"+query.Encode(), &out)
	return out.IDs, out.Total, err
}

// Batch is many tasks from one request.
type Batch struct {
	lpmos.Batch
	Tasks []BatchTask `json:"tasks"` // of the lines that were dealt with and did not fail
}

// BatchTask is the task of one line.
type BatchTask struct {
	Line   int          `json:"line"`
	TaskID string       `json:"task_id"`
	Status lpmos.Status `json:"status,omitempty"` // "" once the task was deleted, or before it is seen
}

// CreateBatch asks for many installations. If a line cannot be accepted nothing
// is made, and the error is a *Problem whose Lines name each. key may be "".
func (c *Client) CreateBatch(ctx context.Context, specs []lpmos.Spec, key string) (b Batch, err error) {
	lines := make([]asked, 0, len(specs))
	for _, s := range specs {
		lines = append(lines, wireSpec(s))
	}
	err = c.sendWith(ctx, http.MethodPost, v1+"/tasks/batch", under(key), map[string]any{"tasks": lines}, &b)
	return b, err
}

// Batch reads how far a batch has come.
func (c *Client) Batch(ctx context.Context, id string) (b Batch, err error) {
	err = c.get(ctx, v1+"/batches/"+url.PathEscape(id), &b)
	return b, err
}

// SearchLogs reads the lines of a task's log that hold every word; "" holds for
// all. total is how many are kept.
func (c *Client) SearchLogs(ctx context.Context, id, words string) (lines []string, total int, err error) {
	var out struct {
		Lines []string `json:"lines"`
		Total int      `json:"total"`
	}
	err = c.get(ctx, v1+"/tasks/"+url.PathEscape(id)+"/logs?"+url.Values{"q": {words}}.Encode(), &out)
	return out.Lines, out.Total, err
}

// Image reads one entry of the catalogue and its ETag, for PutImageIf.
func (c *Client) Image(ctx context.Context, os, version, arch string) (i lpmos.Image, etag string, err error) {
	etag, err = c.getTagged(ctx, imagePath(os, version, arch), &i)
	return i, etag, err
}

// PutImageIf is PutImage only if the entry is still the one that etag is of; ""
// means that there must be none. Otherwise the error is an lpmos.ErrChanged.
func (c *Client) PutImageIf(ctx context.Context, i lpmos.Image, etag string) error {
	h := ifMatch(etag)
	if etag == "" {
		h.Set("If-None-Match", "*")
	}
	return c.sendWith(ctx, http.MethodPut, imagePath(i.OS, i.Version, i.Arch), h, i, nil)
}

func imagePath(os, version, arch string) string {
	return v1 + "/images/" + url.PathEscape(os) + "/" + url.PathEscape(version) + "/" + url.PathEscape(arch)
}
