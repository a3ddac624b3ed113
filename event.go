package lpmos

import "time"

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
// and that every step of it is legal. It names the first that is not.
func VerifyEvents(events []Event) error {
	var prev string
	var status Status
	for i, e := range events {
		want := e
		want.Seal(prev)
		to, err := status.Next(e.Cause)
		if e.Seq != int64(i)+1 || e.Hash != want.Hash || e.From != status || err != nil || e.To != to {
			return &InvalidError{Field: "events", Problem: "are not an unbroken history at this one", Value: string(CanonicalJSON(e))}
		}
		prev, status = e.Hash, e.To
	}
	return nil
}
