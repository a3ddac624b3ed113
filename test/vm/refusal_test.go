package vm_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab"
)

// TestBadImage damages an image on the server after it was registered, and
// then removes it.
func TestBadImage(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny", nil)
	m := w.newMachine(lab.MachineConfig{Name: "bad", Disks: []lab.Disk{{SizeBytes: 4 * gb}}})
	pack := filepath.Join(w.blobs, w.manifest().Pack.SHA256)
	id := w.create(m, nil)
	for attempt, bad := range []struct {
		code string
		do   func()
	}{
		{"image_corrupt", func() {
			b, err := os.ReadFile(pack)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			if err := os.WriteFile(pack, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"image_missing", func() {
			if err := os.Remove(pack); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		if attempt > 0 {
			m.PowerOff()
			if _, err := w.client.Retry(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		w.powerOn(m)
		w.planned(m, id)
		bad.do()
		w.approve(id)
		task := w.wait(m, id, installLimit, lpmos.Failed)
		if f := task.Error; f == nil || f.Code != bad.code || f.Cause == "" || f.NextStep == "" {
			t.Errorf("the task failed with %+v; want code %s, a cause and a next step", f, bad.code)
		}
		if got := causes(w.history(id)); strings.Contains(got, string(lpmos.CauseResultReported)) {
			t.Errorf("history = %s; want no result", got)
		}
	}
}

// TestRefusals are machines that must not be written to: their disk is too
// small, it is not the one that was approved, or nobody asked.
func TestRefusals(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny", nil)
	small := w.newMachine(lab.MachineConfig{Name: "small", Disks: []lab.Disk{{SizeBytes: 64 << 20}}})
	smallHash := w.hash(small.disk(0))
	smallID := w.create(small, nil)

	nic := lab.NIC{MAC: macOf("swapped", 0)}
	identity := lab.SMBIOS{UUID: "6f1d2c3b-0000-4000-8000-0123456789ab", Serial: "SWAP"}
	old := w.newMachine(lab.MachineConfig{Name: "swapped", NICs: []lab.NIC{nic}, SMBIOS: identity, Disks: []lab.Disk{{SizeBytes: 4 * gb, Serial: "OLD"}}})
	id := w.create(old, nil)
	w.powerOn(small)
	w.powerOn(old)

	t.Run("a disk too small cannot be approved", func(t *testing.T) {
		task := w.wait(small, smallID, bootLimit, lpmos.AwaitingApproval)
		if !strings.Contains(task.Plan.Problem, "too small") {
			t.Errorf("plan's problem = %q; want that the disk is too small", task.Plan.Problem)
		}
		if _, err := w.client.Decide(t.Context(), smallID, true, task.Plan.Digest, ""); !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("approve it: %v; want a conflict", err)
		}
		small.PowerOff()
		if w.hash(small.disk(0)) != smallHash {
			t.Error("the disk was written")
		}
	})

	// The machine with another disk in place of the approved one.
	swapped := w.newMachine(lab.MachineConfig{Name: "swapped-2", NICs: []lab.NIC{nic}, SMBIOS: identity, Disks: []lab.Disk{{SizeBytes: 4 * gb, Serial: "NEW"}}})
	t.Run("another disk than the approved one is asked about again", func(t *testing.T) {
		plan := w.planned(old, id).Plan
		old.PowerOff()
		w.approve(id)
		oldHash, newHash := w.hash(old.disk(0)), w.hash(swapped.disk(0))
		w.powerOn(swapped)
		now := w.waitFor(swapped, id, bootLimit, "a new plan", func(now lpmos.Task) bool {
			return now.Status == lpmos.AwaitingApproval && now.Plan.Digest != plan.Digest
		})
		if now.Approval != nil || now.Plan.Effect.Target.Serial != "NEW" {
			t.Errorf("the new plan is for %s with approval %+v; want the new disk and none", now.Plan.Effect.Target, now.Approval)
		}
		time.Sleep(2 * time.Second)
		if w.hash(old.disk(0)) != oldHash || w.hash(swapped.disk(0)) != newHash {
			t.Error("a disk was written without an approval for it")
		}
		const want = "created hardware_reported approved plan_changed"
		if got := causes(w.history(id)); got != want {
			t.Errorf("history = %s; want %s", got, want)
		}
		w.approve(id)
		w.completed(swapped, id)
	})

	t.Run("a machine without a task boots its own disk", func(t *testing.T) { // X05
		swapped.PowerOff()
		path := filepath.Join(w.dir, "stranger.disk")
		w.copyFile(path, swapped.disk(0))
		stranger := w.newMachine(lab.MachineConfig{Name: "stranger", Disks: []lab.Disk{{Path: path}}})
		blank := w.newMachine(lab.MachineConfig{Name: "blank", Disks: []lab.Disk{{SizeBytes: 1 << 30}}, Failures: []*regexp.Regexp{}})
		blankHash := w.hash(blank.disk(0))
		w.powerOn(stranger)
		w.powerOn(blank)
		w.console(stranger.Console().NewReader(), bootLimit, `tiny: swapped is up`)
		for _, m := range []*machine{stranger, blank} {
			if l, ok := seen(m.Console().NewReader(), agentStarted); ok {
				t.Errorf("%s booted the agent: %q", m.Name(), l.Text)
			}
		}
		blank.PowerOff()
		if w.hash(blank.disk(0)) != blankHash {
			t.Error("the blank disk of a machine without a task was written")
		}
		if list, err := w.client.Tasks(t.Context(), nil); err != nil || list.Total != 2 {
			t.Errorf("there are %d tasks, %v; want the 2 that were created", list.Total, err)
		}
	})
}

// TestCancelAgainstPermit cancels at about the moment at which the machine gets
// its permit. Whoever is first, wins: either the disk is as it was, or the
// installation goes through.
func TestCancelAgainstPermit(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny", nil)
	outcomes := map[bool]int{}
	// Later each time, until the permit wins once.
	for i := 0; i < 8 && outcomes[false] == 0; i++ {
		delay := time.Duration(i*i) * 40 * time.Millisecond
		m := w.newMachine(lab.MachineConfig{Name: fmt.Sprintf("cancel%d", i), Disks: []lab.Disk{{SizeBytes: 4 * gb}}})
		before := w.hash(m.disk(0))
		console := m.Console().NewReader()
		id := w.create(m, nil)
		w.powerOn(m)
		w.planned(m, id)
		w.console(console, bootLimit, `waiting for a person to approve`)
		w.approve(id)
		time.Sleep(delay)
		_, err := w.client.Cancel(t.Context(), id, "too late?")
		outcomes[err == nil]++
		t.Logf("canceled %v after the approval: %v", delay, err)
		switch {
		case err == nil:
			w.wait(m, id, time.Minute, lpmos.Canceled)
			time.Sleep(3 * time.Second)
			m.PowerOff()
			if w.hash(m.disk(0)) != before {
				t.Errorf("the disk was written although the task was canceled %v after the approval", delay)
			}
			const want = "created hardware_reported approved canceled"
			if got := causes(w.history(id)); got != want {
				t.Errorf("history = %s; want %s", got, want)
			}
		case errors.Is(err, lpmos.ErrConflict):
			w.completed(m, id)
			m.PowerOff()
		default:
			t.Errorf("cancel: %v; want success or a conflict", err)
		}
	}
	if outcomes[true] == 0 || outcomes[false] == 0 {
		t.Errorf("all attempts ended alike (%v): the test did not meet the moment", outcomes)
	}
}
