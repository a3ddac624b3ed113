package cli

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

// maxCSV bounds a file of machines, and maxLines its lines.
const (
	maxCSV   = 4 << 20
	maxLines = 5000
)

// csvColumns are what the first line may name, and where the value goes. Other
// spellings are what spreadsheets and the API have.
var csvColumns = []struct {
	names []string
	set   func(s *lpmos.Spec, v string) error
}{
	{[]string{"mac", "target_mac"}, func(s *lpmos.Spec, v string) (err error) { s.TargetMAC, err = lpmos.ParseMAC(v); return err }},
	{[]string{"hostname", "host", "name"}, func(s *lpmos.Spec, v string) error { s.Hostname = v; return nil }},
	{[]string{"region", "region_id"}, func(s *lpmos.Spec, v string) error { s.RegionID = v; return nil }},
	{[]string{"os", "os_type"}, func(s *lpmos.Spec, v string) error { s.OSType = v; return nil }},
	{[]string{"version", "os_version"}, func(s *lpmos.Spec, v string) error { s.OSVersion = v; return nil }},
	{[]string{"arch"}, func(s *lpmos.Spec, v string) error { s.Arch = v; return nil }},
	{[]string{"ssh_key", "ssh_keys"}, func(s *lpmos.Spec, v string) error {
		s.SSHKeys = nil
		for key := range strings.Lines(v) {
			if key = strings.TrimSpace(key); key != "" {
				s.SSHKeys = append(s.SSHKeys, key)
			}
		}
		return nil
	}},
	{[]string{"notes", "note"}, func(s *lpmos.Spec, v string) error { s.Notes = v; return nil }},
}

// readCSV reads a line for each machine; what a line leaves empty is as in
// base. All bad lines are named in the error, each in a line of its own.
func readCSV(r io.Reader, base lpmos.Spec) ([]lpmos.Spec, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxCSV+1))
	if err != nil {
		return nil, fmt.Errorf("read CSV: %w", err)
	}
	if len(b) > maxCSV {
		return nil, usageError{fmt.Errorf("--from-csv has more than %s", lpmos.FormatBytes(maxCSV))}
	}
	text := strings.TrimPrefix(string(b), "\ufeff") // spreadsheets begin with it
	in := csv.NewReader(strings.NewReader(text))
	in.FieldsPerRecord, in.TrimLeadingSpace, in.Comment = -1, true, '#'
	if first, _, _ := strings.Cut(text, "\n"); !strings.Contains(first, ",") && strings.Contains(first, ";") {
		in.Comma = ';' // as spreadsheets write it where the comma is for decimals
	}
	head, err := in.Read()
	if errors.Is(err, io.EOF) {
		return nil, usageError{errors.New("--from-csv is empty: its first line names the columns, such as mac,hostname")}
	}
	if err != nil {
		return nil, usageError{fmt.Errorf("read --from-csv: %w", err)}
	}
	columns, err := csvHead(head)
	if err != nil {
		return nil, err
	}
	var specs []lpmos.Spec
	var wrong []error
	macs, hosts := map[lpmos.MAC]int{}, map[string]int{}
	for {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("read --from-csv: %w", err)} // where the next line begins is not known
		}
		number, _ := in.FieldPos(0)
		spec, err := csvLine(record, columns, base)
		if err == nil && macs[spec.TargetMAC] > 0 {
			err = fmt.Errorf("mac %s is in line %d already", spec.TargetMAC, macs[spec.TargetMAC])
		}
		if err == nil && spec.Hostname != "" && hosts[spec.Hostname] > 0 {
			err = fmt.Errorf("hostname %s is in line %d already", spec.Hostname, hosts[spec.Hostname])
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("line %d: %w", number, err))
			continue
		}
		macs[spec.TargetMAC], hosts[spec.Hostname] = number, number
		specs = append(specs, spec)
		if len(specs) > maxLines {
			return nil, usageError{fmt.Errorf("--from-csv has more than %d machines: split it", maxLines)}
		}
	}
	switch {
	case len(wrong) > 0:
		more := ""
		if len(wrong) > 20 {
			more = fmt.Sprintf("\nand %d more", len(wrong)-20)
		}
		return nil, usageError{fmt.Errorf("%s of --from-csv cannot be accepted, and nothing was created:\n%w%s", count(len(wrong), "line", "lines"), errors.Join(wrong[:min(len(wrong), 20)]...), more)}
	case len(specs) == 0:
		return nil, usageError{errors.New("--from-csv names no machine: below the first line, each line is one")}
	}
	return specs, nil
}

// csvHead finds the columns that the first line names.
func csvHead(head []string) ([]int, error) {
	var known []string
	for _, col := range csvColumns {
		known = append(known, col.names[0])
	}
	var columns []int
	for _, h := range head {
		h = strings.ToLower(strings.TrimSpace(h))
		i := slices.IndexFunc(csvColumns, func(c struct {
			names []string
			set   func(s *lpmos.Spec, v string) error
		}) bool {
			return slices.Contains(c.names, h)
		})
		switch {
		case i < 0:
			hint := ""
			if near := nearest(h, known); len(near) > 0 {
				hint = "; did you mean " + near[0] + "?"
			}
			return nil, usageError{fmt.Errorf("the first line of --from-csv names a column %q; columns are %s%s", lpmos.Shorten(h, 64), strings.Join(known, ", "), hint)}
		case slices.Contains(columns, i):
			return nil, usageError{fmt.Errorf("the first line of --from-csv names %s twice", csvColumns[i].names[0])}
		}
		columns = append(columns, i)
	}
	if !slices.Contains(columns, 0) {
		return nil, usageError{errors.New("the first line of --from-csv names no column mac")}
	}
	return columns, nil
}

func csvLine(record []string, columns []int, base lpmos.Spec) (lpmos.Spec, error) {
	spec := base
	if len(record) > len(columns) {
		return spec, fmt.Errorf("has %d fields, the first line names %d", len(record), len(columns))
	}
	for i, v := range record {
		if v = strings.TrimSpace(v); v == "" {
			continue
		}
		if err := csvColumns[columns[i]].set(&spec, v); err != nil {
			return spec, err
		}
	}
	_, err := spec.Normalize()
	return spec, err // as it was written: what is left out the control plane fills in
}

// createMany creates a task for each line of a file.
func (a *app) createMany(ctx context.Context, c *apiclient.Client, base lpmos.Spec, name, key string, wait waiting) error {
	in := a.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("read --from-csv: %w", err)
		}
		defer f.Close()
		in = f
	}
	specs, err := readCSV(in, base)
	if err != nil {
		return err
	}
	return a.createBatch(ctx, c, specs, key, wait)
}

// createBatch creates task by task. Each line has a key of its own, derived
// from that of the whole, so that the command can be repeated.
func (a *app) createBatch(ctx context.Context, c *apiclient.Client, specs []lpmos.Spec, key string, wait waiting) error {
	if key == "" {
		key = lpmos.NewTaskID()
	}
	var out []outcome
	var ids []string
	for i, spec := range specs {
		id, err := c.CreateTask(ctx, spec, fmt.Sprintf("%s/%d", key, i+1))
		if err != nil {
			return hinted{fmt.Errorf("create task %d of %d (%s): %w", i+1, len(specs), spec.TargetMAC, err), "repeat the command with --idempotency-key " + key + ": what was created is not created again"}
		}
		ids = append(ids, id)
		out = append(out, outcome{TaskID: id, Status: lpmos.Pending, Task: &lpmos.Task{ID: id, Spec: spec, Status: lpmos.Pending}, said: "created for " + spec.TargetMAC.String()})
	}
	if err := a.tell(out, len(specs), "created"); err != nil || !wait.wait {
		return err
	}
	return a.await(ctx, c, ids, wait)
}
