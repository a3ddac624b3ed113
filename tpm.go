package lpmos

import (
	"bytes"
	"time"
)

// TPM is a machine's TPM 2.0, by what names it for life.
type TPM struct {
	Endorsement []byte `json:"endorsement,omitempty"` // public area of its endorsement key (TPMT_PUBLIC)
	Companion   []byte `json:"companion,omitempty"`   // name of the key that what is wrapped for it is bound to as well
	Problem     string `json:"problem,omitempty"`     // why it cannot be used; then the rest is empty
}

// Fingerprint names the TPM: the SHA-256 of the endorsement key's public area,
// which is also what other tools call the key's name. It is "" for none, and
// for one that cannot be used.
func (t *TPM) Fingerprint() string {
	if t == nil || len(t.Endorsement) == 0 {
		return ""
	}
	return DigestBytes(t.Endorsement)
}

// Is reports whether both are one TPM. None is not the same as none.
func (t *TPM) Is(o *TPM) bool {
	return t.Fingerprint() != "" && t.Fingerprint() == o.Fingerprint() && bytes.Equal(t.Companion, o.Companion)
}

// TPMBinding is the TPM a machine had when a plan for it was first approved.
// From then on the credentials of its boots are wrapped for that TPM.
type TPMBinding struct {
	TPM
	By     string    `json:"by"` // who approved
	At     time.Time `json:"at"`
	TaskID string    `json:"task_id"`
}
