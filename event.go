package lpmos

import (
	"fmt"
	"time"
)

// Event is one transition of a task, kept for ever with it. Seq counts from 1
// without gaps; Hash covers the event and the hash of the one before, so that
// none can be removed or altered unnoticed.
type Event struct {
	TaskID   string    `json:"task_id"`
	Seq      int64     `json:"seq"`
	At       time.Time `json:"at"` // of the replica that decided, UTC
	Cause    Cause     `json:"cause"`
	From     Status    `json:"from,omitempty"`
	To       Status    `json:"to"`
	By       string    `json:"by"`                // a person, "agent", "orchestrator"
	Peer     string    `json:"peer,omitempty"`    // from which address a person, or the machine, did it
	Via      string    `json:"via,omitempty"`     // with what, when not with a browser: "token ci", "region dc1"
	Message  string    `json:"message,omitempty"` // a sentence
	Attempt  int       `json:"attempt"`
	PrevHash string    `json:"prev_hash,omitempty"`
	Hash     string    `json:"hash"`
}

// Seal links e to the event before it and fills its hash.
func (e *Event) Seal(prevHash string) {
	e.PrevHash, e.Hash = prevHash, ""
	e.Hash = DigestOf(*e)
}

// VerifyEvents checks that events are the whole, unaltered history of a task
// and that every step of it is legal. An *AuditError names the first that is
// not.
func VerifyEvents(events []Event) error {
	var c eventChain
	for i, e := range events {
		if err := c.add(events[0].TaskID, int64(i)+1, &e); err != nil {
			return err
		}
	}
	return nil
}

// eventChain is how far a history was found to be whole.
type eventChain struct {
	ChainHead
	status Status
}

// add checks the event that is kept as number at of a task's.
func (c *eventChain) add(task string, at int64, e *Event) error {
	var problem string
	sealed := *e
	sealed.Seal(e.PrevHash)
	to, err := c.status.Next(e.Cause)
	switch {
	case at > c.Seq+1:
		problem = fmt.Sprintf("its event %d is missing", c.Seq+1)
		at = c.Seq + 1
	case at <= c.Seq:
		problem = fmt.Sprintf("its event %d stands behind event %d: the order was changed", at, c.Seq)
	case e.Seq == 0:
		problem = fmt.Sprintf("its event %d cannot be read: something else was written in its place", at)
	case e.TaskID != task:
		problem = fmt.Sprintf("its event %d is one of task %s", at, e.TaskID)
	case e.Seq != at:
		problem = fmt.Sprintf("its event %d is not the one that was written: what is kept in its place is event %d", at, e.Seq)
	case sealed.Hash != e.Hash:
		problem = fmt.Sprintf("its event %d (%s by %s at %s) was altered: its hash is not that of what it says", at, e.Cause, e.By, e.At.UTC().Format(time.RFC3339))
	case e.PrevHash != c.Hash && at == 1:
		problem = "its first event continues another: it was replaced"
	case e.PrevHash != c.Hash:
		problem = fmt.Sprintf("its events %d and %d do not belong together: one of them was replaced", at-1, at)
		at--
	case e.From != c.status || err != nil || e.To != to:
		problem = fmt.Sprintf("its event %d is a step that tasks do not take: from %q by %s to %q", at, e.From, e.Cause, e.To)
	default:
		c.ChainHead, c.status = ChainHead{at, e.Hash}, to
		return nil
	}
	return &AuditError{Task: task, Seq: at, Problem: problem}
}
