package install

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/lpmos/lpmos"
)

// placed is a partition of the plan with its place on the disk, in bytes.
type placed struct {
	lpmos.PlannedPartition
	start int64
}

const alignment = 1 << 20

// place lays the plan's partitions one behind the other from 1 MiB on and
// checks that they end before the backup table.
func place(parts []lpmos.PlannedPartition, d *device) ([]placed, error) {
	bad := func(format string, args ...any) ([]placed, error) {
		return nil, &Failure{Code: "plan_invalid", Cause: "The plan's partitions cannot be made: " + fmt.Sprintf(format, args...) + ".", NextStep: nextReport}
	}
	at := int64(lpmos.GPTReserveBytes)
	var out []placed
	for i, p := range parts {
		if p.Number != i+1 || p.SizeBytes < 2*alignment || p.SizeBytes%alignment != 0 {
			return bad("partition %d has number %d and %d bytes", i+1, p.Number, p.SizeBytes)
		}
		out = append(out, placed{p, at})
		at += p.SizeBytes
	}
	if len(out) == 0 || at > d.sizeBytes-lpmos.GPTReserveBytes {
		return nil, &Failure{Code: "disk_too_small", Cause: fmt.Sprintf("The partitions end at %d and the disk has %d bytes.", at, d.sizeBytes), NextStep: "Choose a larger disk."}
	}
	return out, nil
}

// partitionType is the type GUID of a role (UEFI 2.10, 5.3; GRUB manual;
// Discoverable Partitions Specification).
func partitionType(role, arch string) string {
	switch role {
	case "bios-boot":
		return "21686148-6449-6E6F-744E-656564454649"
	case "esp":
		return "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	case "root":
		if arch == "arm64" {
			return "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"
		}
		return "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
	case "swap":
		return "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
	case "raid":
		return "A19D880F-05FC-4D3B-A006-743F0F84911E"
	case "lvm":
		return "E6D6D379-F507-44C2-A23C-238F2A3DF928"
	}
	return "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
}

// tableScript is sfdisk's input, in sectors of the disk.
func tableScript(parts []placed, sectorBytes int64, arch string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "label: gpt\nunit: sectors\nfirst-lba: %d\n", alignment/sectorBytes)
	for _, p := range parts {
		fmt.Fprintf(&b, "start=%d, size=%d, type=%s, uuid=%s, name=\"%s\"\n",
			p.start/sectorBytes, p.SizeBytes/sectorBytes, partitionType(p.Role, arch), strings.ToUpper(p.PartUUID), "lpmos-"+p.Role)
	}
	return b.String()
}

// writeTable writes the table with sfdisk and reads it back. sfdisk does not
// tell the kernel: this process holds the disk, and tells it itself.
func (in *Installer) writeTable(ctx context.Context, d *device, parts []placed, arch string) error {
	if err := in.run.Run(ctx, []byte(tableScript(parts, d.sectorBytes, arch)), in.cfg.Tools.Sfdisk,
		"--wipe", "always", "--wipe-partitions", "always", "--no-reread", "--no-tell-kernel", "--color=never", d.Name()); err != nil {
		return commandFailed("Writing the partition table", err)
	}
	if err := d.flush(); err != nil {
		return writeFailed(d.Name(), err)
	}
	out, err := in.run.Read(ctx, in.cfg.Tools.Sfdisk, "--json", "--color=never", d.Name())
	if err != nil {
		return commandFailed("Reading the partition table back", err)
	}
	if err := checkTable(out, parts, d.sectorBytes, arch); err != nil {
		return &Failure{Code: "disk_write_failed", Cause: "The partition table that was written is not what the disk has now.", NextStep: nextDisk, Err: err}
	}
	return nil
}

// checkTable compares what sfdisk --json read with what was to be written.
func checkTable(out string, parts []placed, sectorBytes int64, arch string) error {
	var got struct {
		Table struct {
			Label      string
			SectorSize int64
			Partitions []struct {
				Start, Size int64
				Type, UUID  string
			}
		} `json:"partitiontable"`
	}
	// Warnings of the tool may stand before or after its JSON.
	first, last := strings.IndexByte(out, '{'), strings.LastIndexByte(out, '}')
	if first < 0 || last < first {
		return fmt.Errorf("sfdisk answered %q", lpmos.Shorten(out, 200))
	}
	if err := json.Unmarshal([]byte(out[first:last+1]), &got); err != nil {
		return fmt.Errorf("read sfdisk's answer: %w", err)
	}
	t := got.Table
	if t.Label != "gpt" || len(t.Partitions) != len(parts) {
		return fmt.Errorf("table is %q with %d partitions; want gpt with %d", t.Label, len(t.Partitions), len(parts))
	}
	for i, p := range parts {
		q := t.Partitions[i]
		if q.Start*sectorBytes != p.start || q.Size*sectorBytes != p.SizeBytes || !strings.EqualFold(q.UUID, p.PartUUID) || !strings.EqualFold(q.Type, partitionType(p.Role, arch)) {
			return fmt.Errorf("partition %d is %+v; want %+v", p.Number, q, p)
		}
	}
	return nil
}
