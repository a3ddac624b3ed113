package vm_test

import (
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab"
)

// TestPowerCut cuts the power before anything may be written, in the middle of
// writing, and right after the last write.
func TestPowerCut(t *testing.T) {
	w := onSite(t, "tiny", nil)
	m := w.newMachine(lab.MachineConfig{Name: "cut", Disks: []lab.Disk{{SizeBytes: 4 * gb}}})
	blank := w.hash(m.disk(0))
	console := m.Console().NewReader()
	id := w.create(m, nil)
	w.powerOn(m)
	plan := w.planned(m, id).Plan

	// Nobody has decided: the machine comes back to the same question.
	m.PowerOff()
	if w.hash(m.disk(0)) != blank {
		t.Fatal("the disk was written before anybody approved")
	}
	w.console(console, bootLimit, `\[lab\] power off`)
	w.powerOn(m)
	w.console(console, bootLimit, `hardware reported.*status=awaiting_approval`)
	if now := w.task(id); now.Status != lpmos.AwaitingApproval || now.Plan.Digest != plan.Digest {
		t.Errorf("after a power cut the task is %s with plan %s; want %s with %s", now.Status, now.Plan.Digest, lpmos.AwaitingApproval, plan.Digest)
	}

	// Approved while the machine is off: there is no permit, so nothing to
	// write, and the machine goes on by itself when it is back.
	m.PowerOff()
	w.approve(id)
	time.Sleep(2 * time.Second)
	if now := w.task(id); now.Status != lpmos.Approved {
		t.Errorf("approved while the machine is off, the task is %s; want %s", now.Status, lpmos.Approved)
	}
	if w.hash(m.disk(0)) != blank {
		t.Fatal("the disk was written without a permit")
	}
	w.powerOn(m)

	// In the middle of the image. Its sectors are half there.
	w.console(console, bootLimit, `stage begins.*stage=downloading`)
	time.Sleep(time.Second)
	m.PowerOff()
	if now := w.task(id); now.Status != lpmos.Installing || now.Attempt != 1 {
		t.Errorf("after a power cut in the middle the task is %s in attempt %d; want %s in 1", now.Status, now.Attempt, lpmos.Installing)
	}
	if w.hash(m.disk(0)) == blank {
		t.Error("nothing was written when the power was cut; the test did not test anything")
	}
	w.powerOn(m)

	// After the marker. Whether the region has heard of the result or not, this
	// disk is not written again.
	w.console(console, bootLimit+installLimit, `disk complete`)
	m.PowerOff()
	complete := w.hash(m.disk(0))
	agent := fromNow(m)
	w.powerOn(m)
	w.waitFor(m, id, bootLimit, "verifying", func(now lpmos.Task) bool {
		return now.Status == lpmos.Verifying || now.Status == lpmos.Completed
	})
	if l, ok := seen(agent, agentStarted); ok {
		t.Logf("the agent came back and found its marker: %s", l.Text)
		if w.hash(m.disk(0)) != complete {
			t.Error("the disk was written again after it was complete")
		}
	}
	task := w.completed(m, id)
	const want = "created hardware_reported approved permit_granted next_attempt result_reported called_home"
	if got := causes(w.history(id)); got != want {
		t.Errorf("history = %s; want %s", got, want)
	}
	if task.Attempt != 2 || task.Approval == nil || task.Approval.LastAttempt < 2 {
		t.Errorf("completed in attempt %d with approval %+v; want 2, covered by the one approval", task.Attempt, task.Approval)
	}
}
