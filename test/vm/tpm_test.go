package vm_test

import (
	"path/filepath"
	"regexp"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab"
)

// TestMachineWithTPM approves a machine with a TPM 2.0, and then boots a clone of
// it: the same MAC, UUID, serial numbers and disk, with a TPM of its own. The
// clone gets nothing and is seen (T12); the machine itself is installed again.
func TestMachineWithTPM(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny", nil)
	nic := lab.NIC{MAC: macOf("bound", 0)}
	identity := lab.SMBIOS{UUID: "6f1d2c3b-0000-4000-8000-0123456789ac", Serial: "BOUND"}
	config := func(name string) lab.MachineConfig {
		return lab.MachineConfig{Name: name, NICs: []lab.NIC{nic}, SMBIOS: identity, TPM: filepath.Join(w.dir, name+".tpm"),
			Disks: []lab.Disk{{SizeBytes: 4 * gb, Serial: "BOUND-0"}}, Failures: []*regexp.Regexp{}}
	}
	m, clone := w.newMachine(config("bound")), w.newMachine(config("clone"))
	taps := w.tap()

	first := w.create(m, nil)
	w.powerOn(m)
	seen := w.planned(m, first)
	if f := seen.Hardware.TPM.Fingerprint(); f == "" || seen.TPM != nil {
		t.Fatalf("TPM of the machine = %+v, bound to %+v; want one, and not bound yet", seen.Hardware.TPM, seen.TPM)
	}
	if x := w.nextTapped(taps, m.mac, bootLimit); x.cfg.Wrapped != nil {
		t.Error("the first credential is wrapped, for a TPM nobody has seen")
	}
	w.approve(first)
	w.completed(m, first)
	m.PowerOff()

	second := w.create(m, nil)
	if got := w.task(second); got.TPM == nil || got.TPM.Fingerprint() != seen.Hardware.TPM.Fingerprint() {
		t.Fatalf("the second task is bound to %+v; want the machine's TPM", got.TPM)
	}
	before := w.hash(clone.disk(0))
	w.powerOn(clone)
	w.console(clone.Console().NewReader(), bootLimit, `the region no longer accepts this boot`)
	if x := w.nextTapped(taps, m.mac, bootLimit); x.cfg.Wrapped == nil {
		t.Errorf("what the clone was told = %+v; want a wrapped credential alone", x.cfg)
	}
	w.alarmed(second, "tpm_other")
	if got := w.task(second); got.Status != lpmos.Pending || got.Hardware != nil {
		t.Errorf("after the clone the task is %s with hardware %v; want pending, without", got.Status, got.Hardware != nil)
	}
	clone.PowerOff()
	if w.hash(clone.disk(0)) != before {
		t.Error("the clone's disk was written")
	}

	w.powerOn(m)
	w.planned(m, second)
	w.approve(second)
	w.completed(m, second)
}
