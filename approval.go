package lpmos

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// Approval is a person's decision, bound to what was displayed. The control
// plane signs it; the agent verifies the signature with the public keys that
// came in its boot configuration, so that a region can neither forge nor widen
// it.
type Approval struct {
	TaskID         string    `json:"task_id"`
	Approved       bool      `json:"approved"`
	Notes          string    `json:"notes,omitempty"`
	By             string    `json:"by"`
	At             time.Time `json:"at"`
	PlanDigest     string    `json:"plan_digest"`
	HardwareDigest string    `json:"hardware_digest"`
	ExpiresAt      time.Time `json:"expires_at"`
	FirstAttempt   int       `json:"first_attempt"` // the attempt that was decided on
	LastAttempt    int       `json:"last_attempt"`  // the last that may go on without a person
	// AgentKey is the fingerprint of the key the machine's agent had when it was
	// decided. A machine that starts again has another, which is normal, unless
	// KeyCompared says that the approver compared its words with the console:
	// then the approval is for the boot with this key alone.
	AgentKey    string `json:"agent_key,omitempty"`
	KeyCompared bool   `json:"key_compared,omitempty"`
	// Approvers are all who approved, the one who decided last, where it took
	// several. What each of them looked at is signed with it.
	Approvers []Consent `json:"approvers,omitempty"`
	Signature Signature `json:"signature,omitzero"`
}

// Permit allows one attempt of one boot to write. It answers the nonce the
// agent made for that attempt, names the agent's key, and is granted in the
// transaction that opens the attempt.
type Permit struct {
	TaskID         string    `json:"task_id"`
	Attempt        int       `json:"attempt"`
	Nonce          string    `json:"nonce"`     // 64 hex digits
	AgentKey       string    `json:"agent_key"` // fingerprint
	PlanDigest     string    `json:"plan_digest"`
	HardwareDigest string    `json:"hardware_digest"`
	GrantedAt      time.Time `json:"granted_at"`
	Signature      Signature `json:"signature,omitzero"`
}

// Signature is an Ed25519 signature (RFC 8032) over a kind and the canonical
// JSON of a value without its signature.
type Signature struct {
	KeyID string `json:"key_id,omitempty"` // KeyID of the public key
	Value []byte `json:"value,omitempty"`
}

// KeyID names a public key: the first 16 hex digits of its SHA-256.
func KeyID(k ed25519.PublicKey) string {
	sum := sha256.Sum256(k)
	return hex.EncodeToString(sum[:8])
}

// Sign fills a's signature.
func (a *Approval) Sign(key ed25519.PrivateKey) { a.Signature = sign(key, "approval", a.unsigned()) }

// Verify reports why a must not be trusted, or nil.
func (a *Approval) Verify(keys []ed25519.PublicKey) error {
	return verify(keys, "approval", a.unsigned(), a.Signature)
}

// People are all who made the decision, in the order they did.
func (a *Approval) People() []string {
	if len(a.Approvers) == 0 {
		return []string{a.By}
	}
	var out []string
	for _, c := range a.Approvers {
		out = append(out, c.By)
	}
	return out
}

func (a Approval) unsigned() Approval { a.Signature = Signature{}; return a }

// Sign fills p's signature.
func (p *Permit) Sign(key ed25519.PrivateKey) { p.Signature = sign(key, "permit", p.unsigned()) }

// Verify reports why p must not be trusted, or nil.
func (p *Permit) Verify(keys []ed25519.PublicKey) error {
	return verify(keys, "permit", p.unsigned(), p.Signature)
}

func (p Permit) unsigned() Permit { p.Signature = Signature{}; return p }

// The kind is part of what is signed, so that a permit is never taken for an
// approval.
func signedBytes(kind string, v any) []byte {
	return append([]byte("lpmos "+kind+" v1\n"), CanonicalJSON(v)...)
}

func sign(key ed25519.PrivateKey, kind string, v any) Signature {
	return Signature{KeyID: KeyID(key.Public().(ed25519.PublicKey)), Value: ed25519.Sign(key, signedBytes(kind, v))}
}

// ErrSignature is wrapped by errors about an approval or permit that is not
// the control plane's.
var ErrSignature = errors.New("signature is not the control plane's")

func verify(keys []ed25519.PublicKey, kind string, v any, s Signature) error {
	for _, k := range keys {
		if len(k) == ed25519.PublicKeySize && KeyID(k) == s.KeyID && ed25519.Verify(k, signedBytes(kind, v), s.Value) {
			return nil
		}
	}
	return fmt.Errorf("verify %s: %w (key %q)", kind, ErrSignature, s.KeyID)
}

// Verifier is what an agent checks orders with: the control plane's public
// keys and what it sees of its own machine now.
type Verifier struct {
	Keys     []ed25519.PublicKey
	TaskID   string
	Hardware *Hardware
	AgentKey string // fingerprint of this boot's own key
	Now      time.Time
}

// Check says whether plan and approval allow the given attempt on the machine
// as it is now. The first attempt wants both halves of the plan as they were;
// later ones want the same effect, hardware and other disks, and of the target
// its identity, because the target was half written. permit may be nil before
// one is asked for.
func (v Verifier) Check(plan *Plan, a *Approval, permit *Permit, attempt int, nonce string) error {
	refuse := func(format string, args ...any) error {
		return &MismatchError{Problem: fmt.Sprintf(format, args...)}
	}
	if plan == nil || a == nil {
		return refuse("there is no plan or no approval")
	}
	if err := a.Verify(v.Keys); err != nil {
		return err
	}
	switch {
	case !a.Approved:
		return refuse("the decision was to reject")
	case a.TaskID != v.TaskID:
		return refuse("the approval is for task %s", a.TaskID)
	case plan.ComputeDigest() != a.PlanDigest:
		return refuse("the plan is not the one that was approved")
	case plan.Problem != "":
		return refuse("the plan cannot be carried out: %s", plan.Problem)
	case attempt < a.FirstAttempt || attempt > a.LastAttempt:
		return refuse("attempt %d is outside those that were approved (%d to %d)", attempt, a.FirstAttempt, a.LastAttempt)
	case attempt == a.FirstAttempt && v.Now.After(a.ExpiresAt):
		return refuse("the approval expired at %s", a.ExpiresAt.UTC().Format(time.RFC3339))
	case v.Hardware.Digest() != a.HardwareDigest:
		return refuse("the hardware is not what was approved")
	case a.KeyCompared && a.AgentKey != v.AgentKey:
		return refuse("the approval is for a boot with another key")
	}
	for _, c := range a.Approvers {
		if c.PlanDigest != a.PlanDigest || c.HardwareDigest != a.HardwareDigest {
			return refuse("%s approved another plan", c.By)
		}
	}
	for _, d := range plan.Effect.Disks() {
		if _, err := v.Hardware.Disk(d.Disk); err != nil {
			return refuse("the approved disk (%s) is not in this machine as it was", d.Disk)
		}
	}
	now := Observe(v.Hardware)
	if attempt == a.FirstAttempt && DigestOf(now) != DigestOf(plan.Observed) {
		return refuse("what is on the disks is not what was approved")
	}
	if !plan.SameOthers(now) {
		return refuse("what is on a disk that is not in the plan changed")
	}
	if permit == nil {
		return nil
	}
	if err := permit.Verify(v.Keys); err != nil {
		return err
	}
	if permit.AgentKey != v.AgentKey {
		return refuse("the permit is for an agent with another key")
	}
	if permit.TaskID != v.TaskID || permit.Attempt != attempt || permit.Nonce != nonce ||
		permit.PlanDigest != a.PlanDigest || permit.HardwareDigest != a.HardwareDigest {
		return refuse("the permit is not for this attempt")
	}
	return nil
}

// MismatchError says that what a machine sees is not what was approved.
// Nothing has been written when an agent meets it.
type MismatchError struct{ Problem string }

func (e *MismatchError) Error() string { return e.Problem }
