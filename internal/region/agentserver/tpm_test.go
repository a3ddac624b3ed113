package agentserver

import (
	"testing"

	"github.com/lpmos/lpmos"
	workflow "github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/tpm"
	"github.com/lpmos/lpmos/internal/tpm/tpmtest"
)

// TestCloneWithoutTheTPM boots a machine that was approved with a TPM, and a
// clone of its MAC, UUID and serial number: without the TPM it gets nothing, and
// is seen (T12).
func TestCloneWithoutTheTPM(t *testing.T) {
	t.Parallel()
	own := tpmOf(t)
	other := tpmOf(t)
	c := newCenter()
	r := newRegion(t, c)
	o := c.order(mac1, lpmos.AwaitingApproval)
	id := own.Identity()
	o.TPM = &lpmos.TPM{Endorsement: id.Endorsement, Companion: id.Activated}
	c.SetOrder(o)

	boot := func(x *tpm.TPM) (*agent, error) {
		t.Helper()
		_, nonce, err := r.now().Begin(t.Context(), BootRequest{MAC: mac1, Remote: addr1})
		if err != nil {
			t.Fatal(err)
		}
		seg, err := r.now().Segment(t.Context(), nonce, addr1)
		if err != nil {
			t.Fatal(err)
		}
		a := r.agent(mac1, addr1, seg)
		if a.cfg.Credential != "" || a.cfg.Wrapped == nil || a.cfg.Plea == "" {
			t.Fatalf("segment of a machine with a TPM = %+v; want a wrapped credential alone", a.cfg)
		}
		return a, workflow.Unwrap(&a.cfg, x)
	}
	for name, x := range map[string]*tpm.TPM{"no TPM": nil, "another TPM": other} {
		clone, err := boot(x)
		if err == nil {
			t.Errorf("a clone with %s unwrapped the credential", name)
		}
		want(t, "report of a clone with "+name, clone.report(), 403)
		status, answer := clone.permit(nonceN(1), "0s")
		want(t, "permit of a clone with "+name, status, 403)
		if answer.Permit != nil {
			t.Errorf("a clone with %s got a permit", name)
		}
	}
	if a := c.agents[agentKey(o.TaskID, 1)].Alarm; a == nil || a.Code != "tpm_other" || a.Address != addr1.String() {
		t.Errorf("alarm = %+v; want that a machine has not the TPM", a)
	}
	if c.hardware[o.TaskID] != nil || len(c.asked) != 0 {
		t.Error("a clone reported, or asked for a permit")
	}

	machine, err := boot(own)
	if err != nil {
		t.Fatalf("the machine itself: %v", err)
	}
	report := machine.reports()
	report.Hardware.TPM = o.TPM
	want(t, "report of the machine itself", machine.post(agentapi.PathReport, report, nil), 200)
	report.Hardware.TPM = &lpmos.TPM{Endorsement: []byte("junk"), Companion: id.Activated}
	want(t, "report of a TPM that is none", machine.post(agentapi.PathReport, report, nil), 400)
	for _, x := range []*tpm.TPM{own, other} {
		if err := x.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
}

func tpmOf(t *testing.T) *tpm.TPM {
	t.Helper()
	x, err := tpm.New(tpmtest.Start(t, t.TempDir())())
	if err != nil {
		t.Fatal(err)
	}
	return x
}
