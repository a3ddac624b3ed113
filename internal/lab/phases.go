package lab

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// Mark is a named moment in the life of a machine: "power on", "first DHCP",
// "called home".
type Mark struct {
	Name string
	At   time.Time // zero: not seen
}

// WritePhases prints marks, in the order given, as a table for terminals: how
// long after the first seen mark each came and how long after the seen one
// before it, in seconds. A mark that was not seen has dashes and is no step
// for the next. A mark earlier than its predecessor shows as negative: two
// observers disagree, and hiding it would make the sum wrong.
func WritePhases(w io.Writer, marks []Mark) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "at\ttook\t  phase")
	var first, last time.Time
	for _, m := range marks {
		if m.At.IsZero() {
			fmt.Fprintf(t, "-\t-\t  %s\n", m.Name)
			continue
		}
		if first.IsZero() {
			first, last = m.At, m.At
		}
		fmt.Fprintf(t, "%s\t%s\t  %s\n", seconds(m.At.Sub(first)), seconds(m.At.Sub(last)), m.Name)
		last = m.At
	}
	return t.Flush()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
