package vm_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab"
)

// TestDiskFaults installs on a disk that cannot write one sector in the middle
// of the image, and on one that is pulled out in the middle. Both fail with
// what happened, and nothing else in the machine is written (D02, D07).
func TestDiskFaults(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny", nil)
	manifest := w.manifest()
	chunk := manifest.Chunks[len(manifest.Chunks)/2]

	bad := filepath.Join(w.dir, "bad-sector.disk")
	if err := lab.CreateDisk(bad, 4*gb); err != nil {
		t.Fatal(err)
	}
	// The root filesystem is the third partition, at 67 MiB.
	sector := (67<<20 + chunk.Offset + chunk.Bytes/2) / 512
	faulty := fmt.Sprintf(`{"driver":"blkdebug","node-name":"faulty","image":{"driver":"raw","file":{"driver":"file","filename":%q}},`+
		`"inject-error":[{"event":"none","iotype":"write","errno":5,"sector":%d}]}`, bad, sector)
	for name, c := range map[string]struct {
		cfg   lab.MachineConfig
		fault func(*machine)
		code  string
	}{
		"a sector that cannot be written": {lab.MachineConfig{Name: "bad-sector", Args: []string{"-blockdev", faulty, "-device", "virtio-blk-pci,drive=faulty,serial=FAULTY"},
			Disks: []lab.Disk{{SizeBytes: 2 * gb}}}, nil, "disk_write_failed"},
		"a disk that is pulled out": {lab.MachineConfig{Name: "pulled", Disks: []lab.Disk{{SizeBytes: 2 * gb, Bus: lab.SCSI}, {SizeBytes: 4 * gb, Bus: lab.SCSI, Serial: "FAULTY"}}},
			func(m *machine) {
				w.console(m.Console().NewReader(), installLimit, `stage begins.*stage=downloading`)
				if err := m.PullDisk(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
			}, "disk_gone"},
	} {
		t.Run(name, func(t *testing.T) {
			m := w.newMachine(c.cfg)
			defer m.PowerOff()
			kept := w.hash(m.disk(0))
			id := w.create(m, func(s *lpmos.Spec) { s.TargetDisk = &lpmos.DiskRef{Serial: "FAULTY", SizeBytes: 4 * gb} })
			w.powerOn(m)
			w.planned(m, id)
			w.approve(id)
			if c.fault != nil {
				c.fault(m)
			}
			task := w.wait(m, id, installLimit, lpmos.Failed)
			if f := task.Error; f == nil || f.Code != c.code || f.Cause == "" || f.NextStep == "" {
				t.Errorf("the task failed with %+v; want code %s, a cause and a next step", f, c.code)
			}
			if got := causes(w.history(id)); strings.Contains(got, string(lpmos.CauseResultReported)) {
				t.Errorf("history = %s; want no result", got)
			}
			m.PowerOff()
			if w.hash(m.disk(0)) != kept {
				t.Error("a disk that is not in the plan was written")
			}
		})
	}
}
