package vm_test

import (
	"regexp"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab"
)

// TestProvision takes a BIOS and a UEFI machine, both with dead or wrong
// clocks, through two installations each: the second goes to the second disk
// while the first in boot order carries the system of the first.
func TestProvision(t *testing.T) {
	w := onSite(t, "tiny", nil)
	machines := []*machine{
		w.newMachine(lab.MachineConfig{Name: "bios", Firmware: lab.BIOS, RTC: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC),
			Disks: []lab.Disk{{SizeBytes: 4 * gb}, {SizeBytes: 5 * gb}}}),
		w.newMachine(lab.MachineConfig{Name: "uefi", Firmware: lab.UEFI, RTC: time.Now().Add(14 * time.Hour),
			Disks: []lab.Disk{{SizeBytes: 4 * gb}, {SizeBytes: 5 * gb}}}),
	}
	// round installs both on their n-th disk and returns the tasks.
	round := func(n int) (done []lpmos.Task) {
		t.Helper()
		var ids []string
		for _, m := range machines {
			d := m.Config().Disks[n]
			ids = append(ids, w.create(m, func(s *lpmos.Spec) {
				s.Hostname = host(m, n)
				s.TargetDisk = &lpmos.DiskRef{Serial: d.Serial, SizeBytes: d.SizeBytes}
			}))
			w.powerOn(m)
		}
		for i, m := range machines {
			p := w.planned(m, ids[i]).Plan
			if erases := p.ErasesData(); erases || p.Effect.Target.Serial != m.Config().Disks[n].Serial {
				t.Errorf("plan of %s = target %s, erases data: %v; want blank disk %s", m.Name(), p.Effect.Target, erases, m.Config().Disks[n].Serial)
			}
			w.approve(ids[i])
		}
		for i, m := range machines {
			task := w.completed(m, ids[i])
			if task.Attempt != 1 {
				t.Errorf("task of %s took %d attempts", m.Name(), task.Attempt)
			}
			done = append(done, task)
		}
		return done
	}

	// What an outsider sees is exactly what happened, once.
	const once = "created hardware_reported approved permit_granted result_reported called_home"
	first := round(0)
	before := make([]string, len(machines))
	for i, m := range machines {
		if got := causes(w.history(first[i].ID)); got != once {
			t.Errorf("history of %s = %s; want %s", m.Name(), got, once)
		}
		m.PowerOff()
		before[i] = w.hash(m.disk(0))
	}
	second := round(1)
	for i, m := range machines {
		if first[i].Receipt.RootFSUUID == second[i].Receipt.RootFSUUID {
			t.Errorf("%s booted root filesystem %s both times", m.Name(), first[i].Receipt.RootFSUUID)
		}
		if second[i].Receipt.RootDisk.Serial != m.Config().Disks[1].Serial {
			t.Errorf("%s runs from %s; want disk %s", m.Name(), second[i].Receipt.RootDisk, m.Config().Disks[1].Serial)
		}
		if w.hash(m.disk(0)) != before[i] {
			t.Errorf("the disk of %s that is not in the plan was written", m.Name())
		}
	}

	// X05: the network stays first in the boot order; the region sends the machine
	// to its own disk, to the newer system, and nobody is asked.
	var up, agent []*lab.Reader
	for _, m := range machines {
		up, agent = append(up, fromNow(m)), append(agent, fromNow(m))
		w.reset(m)
	}
	for i, m := range machines {
		w.console(up[i], bootLimit, regexp.QuoteMeta("tiny: "+host(m, 1)+" is up"))
		if l, ok := seen(agent[i], agentStarted); ok {
			t.Errorf("%s booted the agent after it was completed: %q", m.Name(), l.Text)
		}
		if got := causes(w.history(second[i].ID)); got != once {
			t.Errorf("after a reboot the history of %s = %s; want it as it was, %s", m.Name(), got, once)
		}
	}
}

// host is the name a machine is given when it is installed on its n-th disk.
func host(m *machine, n int) string { return m.Name() + []string{"-first", "-second"}[n] }
