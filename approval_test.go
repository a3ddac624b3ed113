package lpmos_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

// order is what an agent gets, and what it sees.
type order struct {
	v        lpmos.Verifier
	plan     lpmos.Plan
	approval lpmos.Approval
	permit   *lpmos.Permit
	attempt  int
	nonce    string
	key      ed25519.PrivateKey
}

func newOrder() *order {
	key := ed25519.NewKeyFromSeed([]byte(strings.Repeat("k", 32)))
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tk, h := task(), server()
	o := &order{key: key, plan: lpmos.NewPlan(tk, h, image()), attempt: 1, nonce: strings.Repeat("0a", 32)}
	o.v = lpmos.Verifier{Keys: []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}, TaskID: tk.ID, Hardware: h, Now: now}
	o.approval = lpmos.Approval{
		TaskID: tk.ID, Approved: true, By: "alice", At: now, PlanDigest: o.plan.Digest, HardwareDigest: o.plan.HardwareDigest,
		ExpiresAt: now.Add(time.Hour), FirstAttempt: 1, LastAttempt: 3,
	}
	o.permit = &lpmos.Permit{TaskID: tk.ID, Attempt: 1, Nonce: o.nonce, PlanDigest: o.plan.Digest, HardwareDigest: o.plan.HardwareDigest, GrantedAt: now}
	o.sign()
	return o
}

func (o *order) sign() {
	o.approval.Sign(o.key)
	if o.permit != nil {
		o.permit.Sign(o.key)
	}
}

func (o *order) check() error {
	return o.v.Check(&o.plan, &o.approval, o.permit, o.attempt, o.nonce)
}

// later makes o the second attempt, with its own permit.
func (o *order) later() {
	o.attempt, o.permit.Attempt = 2, 2
	o.sign()
}

func TestCheckAllows(t *testing.T) {
	for name, edit := range map[string]func(*order){
		"the first attempt":            func(*order) {},
		"before a permit is asked for": func(o *order) { o.permit = nil },
		"disks found in another order": func(o *order) {
			d := o.v.Hardware.Disks
			d[0], d[1] = d[1], d[0]
			d[0].Device, d[1].Device = "/dev/a", "/dev/b"
		},
		"a stick that was plugged in":      func(o *order) { o.v.Hardware.Disks[3].Serial = "other" },
		"a later attempt":                  (*order).later,
		"a later one, target half written": func(o *order) { o.v.Hardware.Disks[1].Content = used("root"); o.later() },
		"a later one, after the expiry":    func(o *order) { o.v.Now = o.v.Now.Add(48 * time.Hour); o.later() },
		"several keys":                     func(o *order) { o.v.Keys = append([]ed25519.PublicKey{make([]byte, 32), nil}, o.v.Keys...) },
		"through JSON": func(o *order) {
			b, _ := json.Marshal([]any{o.plan, o.approval, o.permit})
			var raw []json.RawMessage
			_ = json.Unmarshal(b, &raw)
			o.plan, o.approval, o.permit = lpmos.Plan{}, lpmos.Approval{}, &lpmos.Permit{}
			_ = json.Unmarshal(raw[0], &o.plan)
			_ = json.Unmarshal(raw[1], &o.approval)
			_ = json.Unmarshal(raw[2], o.permit)
		},
	} {
		o := newOrder()
		edit(o)
		if err := o.check(); err != nil {
			t.Errorf("%s is refused: %v", name, err)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(*order)
		want string
	}{
		"a rejection":                {func(o *order) { o.approval.Approved = false; o.sign() }, "to reject"},
		"another task":               {func(o *order) { o.approval.TaskID = "x"; o.sign() }, "is for task x"},
		"another plan":               {func(o *order) { o.plan.Effect.Hostname = "x" }, "not the one that was approved"},
		"another target in the plan": {func(o *order) { o.plan.Effect.Target.Serial = "N0" }, "not the one that was approved"},
		"a plan with its own digest": {func(o *order) { o.plan.Effect.Hostname = "x"; o.plan.Digest = o.approval.PlanDigest }, "not the one that was approved"},
		"a plan that cannot be":      {func(o *order) { o.plan.Problem = "no" }, "cannot be carried out"},
		"an attempt before":          {func(o *order) { o.approval.FirstAttempt = 2; o.sign() }, "outside those"},
		"an attempt too many":        {func(o *order) { o.attempt, o.permit.Attempt = 4, 4; o.sign() }, "outside those"},
		"an expired approval":        {func(o *order) { o.v.Now = o.v.Now.Add(2 * time.Hour) }, "expired"},
		"other hardware":             {func(o *order) { o.v.Hardware.NICs = o.v.Hardware.NICs[:1] }, "hardware is not"},
		"the disk gone":              {func(o *order) { o.v.Hardware.Disks[1].SizeBytes-- }, "hardware is not"},
		"a twin of the disk": {func(o *order) {
			o.v.Hardware.Disks[2] = o.v.Hardware.Disks[1]
			o.approval.HardwareDigest = o.v.Hardware.Digest()
			o.sign()
		}, "is not in this machine as it was"},
		"the target written meanwhile":      {func(o *order) { o.v.Hardware.Disks[1].Content = used("new") }, "what is on the disks is not"},
		"another disk written":              {func(o *order) { o.v.Hardware.Disks[2].Content = used("new") }, "what is on the disks is not"},
		"a disk that cannot be read":        {func(o *order) { o.v.Hardware.Disks[1].ContentUnknownBecause = "EIO" }, "what is on the disks is not"},
		"later, another disk written":       {func(o *order) { o.v.Hardware.Disks[2].Content = used("new"); o.later() }, "not in the plan changed"},
		"later, other hardware":             {func(o *order) { o.v.Hardware.System.Serial = "x"; o.later() }, "hardware is not"},
		"a permit for another attempt":      {func(o *order) { o.permit.Attempt = 2; o.sign() }, "not for this attempt"},
		"a permit for another nonce":        {func(o *order) { o.permit.Nonce = strings.Repeat("0b", 32); o.sign() }, "not for this attempt"},
		"a permit for another plan":         {func(o *order) { o.permit.PlanDigest = "sha256:x"; o.sign() }, "not for this attempt"},
		"a permit for other hardware":       {func(o *order) { o.permit.HardwareDigest = "sha256:x"; o.sign() }, "not for this attempt"},
		"a permit for another task":         {func(o *order) { o.permit.TaskID = "x"; o.sign() }, "not for this attempt"},
		"the first attempt's permit, later": {func(o *order) { o.attempt = 2 }, "not for this attempt"},
	} {
		o := newOrder()
		tt.edit(o)
		var mismatch *lpmos.MismatchError
		if err := o.check(); !errors.As(err, &mismatch) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s = %v; want a MismatchError with %q", name, err, tt.want)
		}
	}
	o := newOrder()
	var mismatch *lpmos.MismatchError
	if err := o.v.Check(nil, &o.approval, nil, 1, ""); !errors.As(err, &mismatch) {
		t.Errorf("without a plan = %v", err)
	}
	if err := o.v.Check(&o.plan, nil, nil, 1, ""); !errors.As(err, &mismatch) {
		t.Errorf("without an approval = %v", err)
	}
}

func TestSignatures(t *testing.T) {
	stranger := ed25519.NewKeyFromSeed([]byte(strings.Repeat("s", 32)))
	for name, edit := range map[string]func(*order){
		"an unsigned approval":  func(o *order) { o.approval.Signature = lpmos.Signature{} },
		"a widened approval":    func(o *order) { o.approval.LastAttempt = 99 },
		"a prolonged approval":  func(o *order) { o.approval.ExpiresAt = o.approval.ExpiresAt.Add(time.Second) },
		"a turned approval":     func(o *order) { o.approval.Approved = false; o.sign(); o.approval.Approved = true },
		"a stranger's approval": func(o *order) { o.approval.Sign(stranger) },
		"a stranger's under our key's id": func(o *order) {
			id := o.approval.Signature.KeyID
			o.approval.Sign(stranger)
			o.approval.Signature.KeyID = id
		},
		"an approval without known keys":      func(o *order) { o.v.Keys = nil },
		"an unsigned permit":                  func(o *order) { o.permit.Signature = lpmos.Signature{} },
		"a stranger's permit":                 func(o *order) { o.permit.Sign(stranger) },
		"an altered permit":                   func(o *order) { o.permit.GrantedAt = o.permit.GrantedAt.Add(1) },
		"an approval's signature on a permit": func(o *order) { o.permit.Signature = o.approval.Signature },
	} {
		o := newOrder()
		edit(o)
		if err := o.check(); !errors.Is(err, lpmos.ErrSignature) {
			t.Errorf("%s = %v; want ErrSignature", name, err)
		}
	}
	// The same bytes under another kind are another statement.
	o := newOrder()
	p := lpmos.Permit{TaskID: "x"}
	p.Sign(o.key)
	a := lpmos.Approval{TaskID: "x", Signature: p.Signature}
	if a.Verify(o.v.Keys) == nil {
		t.Error("a permit's signature passes for an approval's")
	}
}
