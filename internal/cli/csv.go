package cli

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

// maxCSV bounds a file of machines; lpmos.MaxBatchLines bounds its lines.
const maxCSV = 4 << 20

// machineLine is a line of the file that names a machine.
type machineLine struct {
	number int // in the file, from 1
	spec   lpmos.Spec
}

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
	{[]string{"address", "addresses", "ip"}, func(s *lpmos.Spec, v string) error { s.Addresses = splitList(v); return nil }},
	{[]string{"gateway", "gateways"}, func(s *lpmos.Spec, v string) error { s.Gateways = splitList(v); return nil }},
	{[]string{"profile"}, func(s *lpmos.Spec, v string) error { s.Profile = v; return nil }},
	{[]string{"notes", "note"}, func(s *lpmos.Spec, v string) error { s.Notes = v; return nil }},
}

// secretColumn is before the name of a secret in the first line.
const secretColumn = "secret:"

// csvColumn is a column of a file: what it is called, and where its values go.
type csvColumn struct {
	name string
	set  func(s *lpmos.Spec, v string) error
}

// secretOf is the column of a secret.
func secretOf(name string) csvColumn {
	return csvColumn{secretColumn + name, func(s *lpmos.Spec, v string) error {
		// The map is the flags' and so every line's.
		if s.Secrets = maps.Clone(s.Secrets); s.Secrets == nil {
			s.Secrets = map[string]lpmos.Secret{}
		}
		s.Secrets[name] = lpmos.NewSecret(v)
		return nil
	}}
}

// splitList parts what stands in one cell or flag: spaces, commas and semicolons
// part values that hold none.
func splitList(v string) []string {
	return strings.FieldsFunc(v, func(r rune) bool { return r == ' ' || r == ',' || r == ';' || r == '\n' || r == '\t' })
}

// readCSV reads a line for each machine; what a line leaves empty is as in
// base. All bad lines are named in the error, each in a line of its own.
func readCSV(r io.Reader, base lpmos.Spec) ([]machineLine, error) {
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
	var lines []machineLine
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
		lines = append(lines, machineLine{number, spec})
		if len(lines) > lpmos.MaxBatchLines {
			return nil, usageError{fmt.Errorf("--from-csv has more than %d machines: split it", lpmos.MaxBatchLines)}
		}
	}
	switch {
	case len(wrong) > 0:
		return nil, usageError{badLines(wrong)}
	case len(lines) == 0:
		return nil, usageError{errors.New("--from-csv names no machine: below the first line, each line is one")}
	}
	return lines, nil
}

// csvHead finds the columns that the first line names.
func csvHead(head []string) ([]csvColumn, error) {
	var known []string
	for _, col := range csvColumns {
		known = append(known, col.names[0])
	}
	var columns []csvColumn
	for _, h := range head {
		h = strings.ToLower(strings.TrimSpace(h))
		if name, ok := strings.CutPrefix(h, secretColumn); ok && lpmos.ValidName(name) {
			columns = append(columns, secretOf(name))
			continue
		}
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
			return nil, usageError{fmt.Errorf("the first line of --from-csv names a column %q; columns are %s, secret:NAME%s", lpmos.Shorten(h, 64), strings.Join(known, ", "), hint)}
		}
		columns = append(columns, csvColumn{known[i], csvColumns[i].set})
	}
	named := map[string]bool{}
	for _, c := range columns {
		if named[c.name] {
			return nil, usageError{fmt.Errorf("the first line of --from-csv names %s twice", c.name)}
		}
		named[c.name] = true
	}
	if !named[known[0]] {
		return nil, usageError{errors.New("the first line of --from-csv names no column mac")}
	}
	return columns, nil
}

func csvLine(record []string, columns []csvColumn, base lpmos.Spec) (lpmos.Spec, error) {
	spec := base
	if len(record) > len(columns) {
		return spec, fmt.Errorf("has %d fields, the first line names %d", len(record), len(columns))
	}
	for i, v := range record {
		if v = strings.TrimSpace(v); v == "" {
			continue
		}
		if err := columns[i].set(&spec, v); err != nil {
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
	lines, err := readCSV(in, base)
	if err != nil {
		return err
	}
	var specs []lpmos.Spec
	for _, l := range lines {
		specs = append(specs, l.spec)
	}
	if key == "" {
		key = lpmos.NewTaskID() // an answer that is lost must not make the tasks twice
	}
	b, err := c.CreateBatch(ctx, specs, key)
	if p, ok := errors.AsType[*apiclient.Problem](err); ok && len(p.Lines) > 0 {
		var wrong []error
		for _, l := range p.Lines {
			if l.Line >= 1 && l.Line <= len(lines) {
				wrong = append(wrong, fmt.Errorf("line %d: %s", lines[l.Line-1].number, lpmos.Shorten(l.Detail, 400)))
			}
		}
		return usageError{badLines(wrong)}
	}
	if err != nil {
		return hinted{err, "repeat the command with --idempotency-key " + key + ": nothing is created twice"}
	}
	err = poll(ctx, func() (bool, error) {
		if !b.Finished {
			var err error
			if b, err = c.Batch(ctx, b.ID); err != nil {
				return false, err
			}
		}
		return b.Finished, nil
	})
	if err != nil {
		return hinted{fmt.Errorf("batch %s, of which %d of %d are created, goes on by itself: %w", b.ID, len(b.Tasks), b.Total, err), "lpmos task list -q batch:" + b.ID}
	}
	return a.tellBatch(ctx, c, b, lines, wait)
}

func badLines(wrong []error) error {
	more := ""
	if len(wrong) > 20 {
		more = fmt.Sprintf("\nand %d more", len(wrong)-20)
	}
	return fmt.Errorf("%s of --from-csv cannot be accepted, and nothing was created:\n%w%s", count(len(wrong), "line", "lines"), errors.Join(wrong[:min(len(wrong), 20)]...), more)
}

// tellBatch says what became of each line, in the order of the file.
func (a *app) tellBatch(ctx context.Context, c *apiclient.Client, b apiclient.Batch, lines []machineLine, wait waiting) error {
	var ids []string
	for _, t := range b.Tasks {
		ids = append(ids, t.TaskID)
	}
	err := a.show(wait.first(b), func(bool) *table {
		v := &table{head: []string{"LINE", "MAC", "HOST", "TASK"}}
		for _, t := range b.Tasks {
			if t.Line >= 1 && t.Line <= len(lines) {
				l := lines[t.Line-1]
				v.add(txt(fmt.Sprint(l.number)), txt(l.spec.TargetMAC.String()), txt(l.spec.Hostname), txt(t.TaskID))
			}
		}
		v.foot = fmt.Sprintf("%d of %d created; all of them:  lpmos task list -q batch:%s", len(b.Tasks), b.Total, b.ID)
		return v
	})
	if err != nil {
		return err
	}
	for _, f := range b.Failed {
		if f.Line >= 1 && f.Line <= len(lines) {
			a.complain(fmt.Errorf("line %d: %s", lines[f.Line-1].number, f.Detail))
		}
		err = quietError(ExitConflict) // it was good when all lines were checked
	}
	if !wait.wait || len(ids) == 0 {
		return err
	}
	return errors.Join(a.await(ctx, c, ids, wait), err)
}
