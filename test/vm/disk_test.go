package vm_test

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab"
)

// Where an installation says that it is complete, and how that begins.
const (
	markerOffset = 512 << 10
	markerMagic  = "LPMOS installed 1\n"
)

// diskFile is the file of the disk that a plan names.
func (w *world) diskFile(m *machine, ref lpmos.DiskRef) string {
	w.t.Helper()
	for _, d := range m.Config().Disks {
		if d.Serial == ref.Serial {
			return d.Path
		}
	}
	w.t.Fatalf("no disk of %s has the serial number of %s", m.Name(), ref)
	return ""
}

// checkDisk compares the target with the plan, by a tool that is not ours: the
// partition table as sfdisk reads it, both filesystems' identifiers as blkid
// does, and the marker of this very attempt.
func (w *world) checkDisk(m *machine, t lpmos.Task) {
	w.t.Helper()
	for _, d := range t.Plan.Effect.Disks() {
		w.checkTable(m, t, d)
	}
}

func (w *world) checkTable(m *machine, t lpmos.Task, d lpmos.PlannedDisk) {
	w.t.Helper()
	path := w.diskFile(m, d.Disk)
	if b, err := lab.ReadDisk(path, markerOffset, 4096); err != nil || !bytes.HasPrefix(b, []byte(markerMagic)) || !bytes.Contains(b, []byte(t.ID)) {
		w.t.Errorf("marker of %s = %q, %v; want that of task %s", path, bytes.TrimRight(b[:min(len(b), 200)], "\x00"), err, t.ID)
	}
	if t.Plan.Effect.Method == lpmos.FormatDisk {
		return // the table is the image's
	}
	var out struct {
		Table struct {
			Label      string `json:"label"`
			Partitions []struct {
				Start int64  `json:"start"`
				Size  int64  `json:"size"`
				UUID  string `json:"uuid"`
			} `json:"partitions"`
		} `json:"partitiontable"`
	}
	sector := int64(512)
	for _, h := range t.Hardware.Disks {
		if h.Ref() == d.Disk {
			sector = int64(h.SectorBytes)
		}
	}
	// A file has no sectors; a loop device has.
	loop := strings.TrimSpace(string(w.output("/sbin/losetup", "--find", "--show", "--read-only", "--sector-size", strconv.FormatInt(sector, 10), path)))
	defer w.output("/sbin/losetup", "--detach", loop)
	if err := json.Unmarshal(w.output("/sbin/sfdisk", "-J", loop), &out); err != nil {
		w.t.Fatal(err)
	}
	plan := d.Partitions
	if out.Table.Label != "gpt" || len(out.Table.Partitions) != len(plan) {
		w.t.Fatalf("%s has a %s table with %d partitions; want gpt with %d", path, out.Table.Label, len(out.Table.Partitions), len(plan))
	}
	for i, p := range plan {
		got := out.Table.Partitions[i]
		if !strings.EqualFold(got.UUID, p.PartUUID) || got.Size*sector != p.SizeBytes || got.Start*sector%(1<<20) != 0 {
			w.t.Errorf("partition %d of %s = %+v; want %+v, aligned to 1 MiB", i+1, path, got, p)
		}
		if p.FS == "ext4" {
			// UUID of the superblock: 1024 bytes into the partition, at 0x68.
			b, err := lab.ReadDisk(path, got.Start*sector+1024+0x68, 16)
			if err != nil || !bytes.Equal(b, uuidBytes(p.UUID)) {
				w.t.Errorf("root filesystem has UUID %x, %v; want %s", b, err, p.UUID)
			}
		}
	}
}

// uuidBytes reads the hexadecimal digits of a UUID.
func uuidBytes(s string) []byte {
	var out []byte
	digits := strings.ReplaceAll(strings.ToLower(s), "-", "")
	for i := 0; i+1 < len(digits); i += 2 {
		n := func(c byte) byte { return byte(strings.IndexByte("0123456789abcdef", c)) }
		out = append(out, n(digits[i])<<4|n(digits[i+1]))
	}
	return out
}
