package api

import "github.com/lpmos/lpmos"

// Update is what one revision of the store changed for those who look on. One
// transaction makes one update. After a Reset, everything known is void.
type Update struct {
	Rev    int64
	Reset  bool
	Events []Event
	Tasks  []string // ids of tasks the orchestrator should look at again
}

// Event is something that is shown live. Type decides which fields are set.
type Event struct {
	Type     string // EventStatus, EventProgress, EventHardware, EventLog, EventRegion
	TaskID   string
	RegionID string
	Status   string // of a task or a region
	Attempt  int
	Failure  *lpmos.Failure
	Progress *lpmos.Progress
	Hardware *lpmos.Hardware
	Lines    []string // of a log, the new ones
}

// The types of Event, as the WebSocket has them (contract §5).
const (
	EventStatus   = "status"
	EventProgress = "progress"
	EventHardware = "hardware"
	EventLog      = "log"
	EventRegion   = "region"
)

// Reports is what a region observed of a task's current attempt.
type Reports struct {
	Agent       *lpmos.AgentRecord
	Hardware    *lpmos.Hardware
	Permit      *lpmos.PermitRequest
	Progress    *lpmos.Progress
	Result      *lpmos.Result
	Booted      *lpmos.Receipt
	Rev         int64 // newest revision of any of them, and of the log: the last contact
	ProgressRev int64 // newest of what an install says of itself: permit, progress, result
}
