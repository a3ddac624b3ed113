package bootimage

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Report says what a boot image is made of.
type Report struct {
	Kernel   string        `json:"kernel"` // release
	Parts    []Part        `json:"parts"`
	Absent   []string      `json:"absent,omitempty"` // wanted modules this kernel does not have
	Packages []string      `json:"packages"`         // name=version, sorted
	Reused   string        `json:"-"`                // "all", "base" or "nothing" of earlier builds
	Took     time.Duration `json:"-"`
}

// Part is one line of a Report.
type Part struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	Files int    `json:"files"`        // how many files it has
	Of    string `json:"of,omitempty"` // the part it is inside of, uncompressed
}

// WriteTo writes the report as a table for people.
func (r Report) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, r.String())
	return int64(n), err
}

// String is the table of WriteTo.
func (r Report) String() string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "part\tKiB\tfiles\t\n")
	for _, p := range r.Parts {
		name := p.Name
		if p.Of != "" {
			name = p.Of + ": " + name
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t\n", name, (p.Bytes+1023)/1024, p.Files)
	}
	t.Flush()
	fmt.Fprintf(&b, "kernel %s, %d packages, reused %s, took %s\n", r.Kernel, len(r.Packages), r.Reused, r.Took.Round(time.Millisecond))
	if len(r.Absent) > 0 {
		fmt.Fprintf(&b, "not in this kernel: %s\n", strings.Join(r.Absent, " "))
	}
	return b.String()
}
