package lpmos

import (
	"crypto/sha256"
	"fmt"
	"time"
)

// Batch is one request for many tasks. All lines were checked before it was
// stored; its tasks are then created one after the other, by whichever replica
// of the control plane lives.
type Batch struct {
	ID        string    `json:"batch_id"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	Total     int       `json:"total"` // lines
	Done      int       `json:"done"`  // lines dealt with: created or failed
	Finished  bool      `json:"finished"`
	// Failed are the lines whose task could not be created after all, because
	// the world had changed since they were checked.
	Failed []BatchLine `json:"failed,omitempty"`
	Specs  []Spec      `json:"-"` // of all lines, until it is finished
	// Sealed are the secrets of lines (from 1) that have some, for the tasks that
	// these will be; likewise.
	Sealed map[int]SealedLine `json:"-"`
	Asked  Actor              `json:"-"` // who sent it and from where, as long as Specs
}

// SealedLine is the secrets of a line of a batch.
type SealedLine struct {
	Committed []PlannedSecret `json:"committed"`
	AtRest    string          `json:"at_rest"` // as SealedSecrets has it, for the line's task
}

// BatchLine is what is said of one line.
type BatchLine struct {
	Line   int    `json:"line"` // from 1
	Field  string `json:"field,omitempty"`
	Detail string `json:"detail"`
}

// MaxBatchLines bounds a Batch. So does its stored form, which is one value of
// the store: lines with much in them are fewer.
const MaxBatchLines = 2000

// BatchTaskID is the id of the task that a line (from 1) makes. It is derived,
// so that whoever goes on after a crash makes the same task and not another.
func BatchTaskID(batchID string, line int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "lpmos batch\x00%s\x00%d", batchID, line))
	return formatUUID([16]byte(sum[:16]), 8)
}

// BatchError says which lines of a batch cannot be accepted. Nothing was stored.
type BatchError struct{ Lines []BatchLine }

func (e *BatchError) Error() string {
	s := fmt.Sprintf("%d lines cannot be accepted; nothing was created", len(e.Lines))
	if len(e.Lines) == 1 {
		s = "1 line cannot be accepted; nothing was created"
	}
	if len(e.Lines) > 0 {
		s += fmt.Sprintf(" (line %d: %s)", e.Lines[0].Line, e.Lines[0].Detail)
	}
	return s
}
