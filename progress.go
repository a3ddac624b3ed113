package lpmos

import (
	"slices"
	"time"
)

// Stage is a part of an installation.
type Stage string

// The stages, in order.
const (
	Partitioning Stage = "partitioning"
	Downloading  Stage = "downloading"
	StageInstall Stage = "installing"
	Configuring  Stage = "configuring"
)

// StageWeight says which part of the bar a stage fills, in percent. It is for
// display: nothing is decided by a percentage.
type StageWeight struct {
	Stage    Stage
	From, To int
}

// StageWeights are the founding document's, in order.
var StageWeights = []StageWeight{{Partitioning, 0, 20}, {Downloading, 20, 60}, {StageInstall, 60, 90}, {Configuring, 90, 100}}

// Valid reports whether s is one of the four.
func (s Stage) Valid() bool { return s.Number() > 0 }

// Number is 1 to 4, or 0 for something that is no stage.
func (s Stage) Number() int {
	for i, w := range StageWeights {
		if w.Stage == s {
			return i + 1
		}
	}
	return 0
}

// Percent places done of total on the whole bar.
func (s Stage) Percent(done, total int64) int {
	for _, w := range StageWeights {
		if w.Stage == s {
			if total <= 0 {
				return w.From
			}
			done = min(max(done, 0), total)
			return w.From + int(int64(w.To-w.From)*done/total)
		}
	}
	return 0
}

// Progress is how far an attempt has come.
type Progress struct {
	TaskID     string           `json:"task_id"`
	Attempt    int              `json:"attempt"`
	Stage      Stage            `json:"stage"`
	Percentage int              `json:"percentage"` // 0 to 100
	Message    string           `json:"message"`
	Details    *ProgressDetails `json:"details,omitempty"`
	UpdatedAt  time.Time        `json:"updated_at"` // the region's clock, when it arrived
	// Begun says when each stage of the attempt began, in order, and when
	// verifying did. The control plane keeps it; what an agent sends of it
	// counts for nothing.
	Begun []StageBegin `json:"begun,omitempty"`
}

// StageBegin is when a stage began, by the region's clock.
type StageBegin struct {
	Stage Stage     `json:"stage"`
	At    time.Time `json:"at"`
}

// StageVerify stands beside the four in Progress.Begun: the machine restarts
// from its own disk. Agents never report it.
const StageVerify Stage = "verifying"

// Phases are all parts of a run that are timed, in order.
var Phases = []Stage{Partitioning, Downloading, StageInstall, Configuring, StageVerify}

// Begin is p with one more entry in Begun, unless it is there.
func (p Progress) Begin(s Stage, at time.Time) *Progress {
	if !slices.ContainsFunc(p.Begun, func(b StageBegin) bool { return b.Stage == s }) {
		p.Begun = append(slices.Clip(p.Begun), StageBegin{s, at})
	}
	return &p
}

// ProgressDetails are the figures of a stage that moves bytes.
type ProgressDetails struct {
	BytesDownloaded int64 `json:"bytes_downloaded"`
	BytesTotal      int64 `json:"bytes_total"`
	SpeedMbps       int64 `json:"speed_mbps"`                 // megabit/s, as the founding document has it
	BytesPerSecond  int64 `json:"bytes_per_second,omitempty"` // of the last seconds
	ElapsedMillis   int64 `json:"elapsed_ms,omitempty"`       // since the stage began
}

// MaxMessageBytes bounds Progress.Message and one log line.
const MaxMessageBytes = 1 << 10

// Validate checks what an agent sent.
func (p *Progress) Validate() error {
	if !ValidTaskID(p.TaskID) {
		return &InvalidError{Field: "task_id", Problem: "is not a task id", Value: p.TaskID}
	}
	if !p.Stage.Valid() {
		return &InvalidError{Field: "stage", Problem: "is not a stage", Value: string(p.Stage)}
	}
	if p.Percentage < 0 || p.Percentage > 100 {
		return &InvalidError{Field: "percentage", Problem: "is outside 0 to 100"}
	}
	if len(p.Message) > MaxMessageBytes {
		return &InvalidError{Field: "message", Problem: "is longer than 1 KiB"}
	}
	return nil
}

// After reports whether p is newer than q: a later attempt, or further on in
// the same one. Equal progress is not newer unless its message or figures
// differ.
func (p *Progress) After(q *Progress) bool {
	if q == nil || p.Attempt != q.Attempt {
		return q == nil || p.Attempt > q.Attempt
	}
	if a, b := p.Stage.Number(), q.Stage.Number(); a != b {
		return a > b
	}
	if p.Percentage != q.Percentage {
		return p.Percentage > q.Percentage
	}
	var a, b int64
	if p.Details != nil {
		a = p.Details.BytesDownloaded
	}
	if q.Details != nil {
		b = q.Details.BytesDownloaded
	}
	return a > b || a == b && p.Message != q.Message
}
