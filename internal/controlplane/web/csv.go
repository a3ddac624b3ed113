package web

import (
	"encoding/csv"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lpmos/lpmos"
)

// csvColumn is a column of the file that creates many tasks.
type csvColumn struct {
	Name    string
	Aliases []string
	Says    string // for people, English
}

// csvColumns are all columns, in the order they have in a file without a
// header.
var csvColumns = []csvColumn{
	{"mac", []string{"target_mac", "mac_address"}, "of one of the machine’s network ports, in any usual spelling; the only one that must be there"},
	{"hostname", []string{"host", "name"}, "host name; empty: from the profile, else made from the MAC"},
	{"region", []string{"region_id", "site"}, "the region it stands in"},
	{"os", []string{"os_type", "image"}, "operating system, such as debian"},
	{"version", []string{"os_version"}, "its version, such as 12"},
	{"profile", nil, "name of a profile, or name@version"},
	{"ssh_keys", []string{"ssh_key", "keys"}, "public keys of those who may log in as root, parted by ; or one per line inside quotation marks"},
	{"notes", []string{"note"}, "for who approves"},
	{"address", []string{"addresses", "ip"}, "of the installed system, with its prefix length; several parted by spaces"},
	{"gateway", []string{"gateways"}, "its gateway, one of each family"},
}

// csvLine is one machine of the file.
type csvLine struct {
	Line     int               // in the file, from 1
	Cells    map[string]string // by column name, trimmed
	Spec     lpmos.Spec
	Problems []lineProblem
}

// Wrong reports whether the cell of a column has a problem.
func (l csvLine) Wrong(column string) bool {
	return slices.ContainsFunc(l.Problems, func(p lineProblem) bool { return p.Field == column })
}

// Cell is what stands in a column, cut where it is too long to be shown.
func (l csvLine) Cell(column string) string { return lpmos.Shorten(l.Cells[column], 80) }

// lineProblem is what is wrong with one line. Field is a column, or "" for the
// whole line.
type lineProblem struct {
	Line  int
	Field string
	Text  string
}

// parseCSV takes a file apart: lines by number, cells by column. It does not
// look at what the cells mean. Comma, semicolon and tab part cells, whichever
// the first line has most of; lines that begin with # are passed over.
func (s *tongue) parseCSV(text string) (lines []csvLine, problems []lineProblem) {
	text = strings.TrimPrefix(text, "\ufeff")
	if !utf8.ValidString(text) {
		return nil, []lineProblem{{Line: 1, Text: s.T("The file is not UTF-8 text. Save it as “CSV UTF-8”.")}}
	}
	if strings.ContainsRune(text, 0) {
		return nil, []lineProblem{{Line: 1, Text: s.T("The file holds NUL bytes: it is not a text file. Save it as “CSV UTF-8”.")}}
	}
	r := csv.NewReader(strings.NewReader(text))
	r.FieldsPerRecord, r.Comment, r.TrimLeadingSpace, r.Comma = -1, '#', true, delimiter(text)
	var columns []string
	for {
		record, err := r.Read()
		if len(record) == 0 && err != nil {
			if bad, ok := errors.AsType[*csv.ParseError](err); ok {
				problems = append(problems, lineProblem{Line: bad.StartLine, Text: s.T("The quotation marks of this line do not match; the rest of the file could not be read.")})
			}
			break
		}
		if err != nil {
			bad, _ := errors.AsType[*csv.ParseError](err)
			at := 1
			if bad != nil {
				at = bad.StartLine
			}
			problems = append(problems, lineProblem{Line: at, Text: s.T("The quotation marks of this line do not match; the rest of the file could not be read.")})
			break
		}
		at, _ := r.FieldPos(0)
		for i := range record {
			record[i] = strings.TrimSpace(record[i])
		}
		if !slices.ContainsFunc(record, func(c string) bool { return c != "" }) {
			continue
		}
		if columns == nil {
			var header bool
			if columns, header, problems = s.header(at, record, problems); header {
				if len(problems) > 0 {
					return nil, problems
				}
				continue
			}
		}
		l := csvLine{Line: at, Cells: map[string]string{}}
		for i, c := range record {
			if i >= len(columns) {
				if c != "" {
					l.Problems = append(l.Problems, lineProblem{at, "", s.T("It has %s cells, and there are %s columns.", fmt.Sprint(len(record)), fmt.Sprint(len(columns)))})
					break
				}
				continue
			}
			l.Cells[columns[i]] = c
		}
		lines = append(lines, l)
		if len(lines) > lpmos.MaxBatchLines {
			return nil, []lineProblem{{Line: at, Text: s.T("The file has more than %s machines. Part it.", count(lpmos.MaxBatchLines))}}
		}
	}
	return lines, problems
}

// header reads the names of columns. A first line that begins with a MAC is no
// header: its cells are in the order of csvColumns.
func (s *tongue) header(at int, record []string, problems []lineProblem) (columns []string, header bool, _ []lineProblem) {
	for _, c := range csvColumns {
		columns = append(columns, c.Name)
	}
	known := false
	for _, c := range record {
		known = known || columnOf(c) != ""
	}
	if _, err := lpmos.ParseMAC(record[0]); err == nil || !known {
		return columns, false, problems
	}
	columns = nil
	for _, c := range record {
		name := columnOf(c)
		switch {
		case name == "" && c != "":
			problems = append(problems, lineProblem{at, "", s.T("There is no column %s. There are: %s.", s.quote(lpmos.Shorten(c, 40)), columnNames())})
		case name != "" && slices.Contains(columns, name):
			problems = append(problems, lineProblem{at, name, s.T("The column %s is there twice.", name)})
		}
		columns = append(columns, name)
	}
	if !slices.Contains(columns, "mac") {
		problems = append(problems, lineProblem{at, "mac", s.T("The column mac is missing.")})
	}
	return columns, true, problems
}

func columnOf(name string) string {
	name = strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(strings.TrimSpace(name)), " ", "_"), "-", "_")
	for _, c := range csvColumns {
		if name == c.Name || slices.Contains(c.Aliases, name) {
			return c.Name
		}
	}
	return ""
}

func columnNames() string {
	var out []string
	for _, c := range csvColumns {
		out = append(out, c.Name)
	}
	return strings.Join(out, ", ")
}

func delimiter(text string) rune {
	first, _, _ := strings.Cut(strings.TrimLeft(text, "\r\n"), "\n")
	best, most := ',', strings.Count(first, ",")
	for _, r := range []rune{';', '\t'} {
		if n := strings.Count(first, string(r)); n > most {
			best, most = r, n
		}
	}
	return best
}
