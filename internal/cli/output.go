package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"golang.org/x/term"

	"github.com/lpmos/lpmos"
)

// formats are the values of --output.
var formats = []string{"table", "wide", "json", "yaml"}

// structured reports whether standard output is for a program: nothing but the
// one result, in its form, is written there.
func (a *app) structured() bool { return a.format == "json" || a.format == "yaml" }

// aside is where people read what is not the result: standard output too, or
// standard error when that is for a program.
func (a *app) aside() io.Writer {
	if a.structured() {
		return a.err
	}
	return a.out
}

// show writes v as the person asked: the table for table and wide, v itself
// under the API's names else.
func (a *app) show(v any, rows func(wide bool) *table) error {
	switch a.format {
	case "table", "wide":
		_, err := io.WriteString(a.out, rows(a.format == "wide").text(terminalOf(a.out)))
		return err
	}
	return a.machineReadable(v)
}

// print is show for output that is more than one table.
func (a *app) print(v any, write func(w *tabwriter.Writer, wide bool)) error {
	switch a.format {
	case "table", "wide":
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		write(w, a.format == "wide")
		return w.Flush()
	}
	return a.machineReadable(v)
}

// say prints v for programs, or a sentence for people.
func (a *app) say(v any, sentence string) error {
	if a.structured() {
		return a.machineReadable(v)
	}
	_, err := fmt.Fprintln(a.out, sentence)
	return err
}

// first is a result that others follow: all are written by each.
type first struct{ of any }

func (a *app) machineReadable(v any) error {
	if f, ok := v.(first); ok {
		return a.each(f.of)
	}
	var b []byte
	var err error
	switch a.format {
	case "json":
		b, err = indented(v)
	case "yaml":
		b, err = asYAML(v)
	default:
		return unknownValue("output", a.format, formats)
	}
	if err != nil {
		return err
	}
	_, err = a.out.Write(b)
	return err
}

// each writes one of many values as they come: a line of JSON, or a YAML
// document.
func (a *app) each(v any) error {
	var b []byte
	var err error
	if a.format == "yaml" {
		if b, err = asYAML(v); err == nil {
			b = append([]byte("---\n"), b...)
		}
	} else if b, err = json.Marshal(v); err == nil {
		b = append(inertJSON(b), '\n')
	}
	if err != nil {
		return err
	}
	_, err = a.out.Write(b)
	return err
}

func indented(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return inertJSON(b.Bytes()), nil
}

// obeyed reports whether a terminal, or a person's eye, would take r for
// something else than a character that stands where it is written: control
// characters (C0 and C1), formatting ones such as bidirectional overrides,
// joiners and other invisible ones, and the line and paragraph separators.
func obeyed(r rune) bool {
	if r < 0x7f {
		return r < 0x20
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// plain makes text from outside harmless to a terminal: what a terminal would
// obey is shown as a dot instead.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if obeyed(r) {
			return '·'
		}
		return r
	}, s)
}

// inertJSON escapes in encoded JSON what a terminal would obey and the encoder
// leaves as it is. Such characters can stand in strings only, where an escape
// means the same.
func inertJSON(b []byte) []byte {
	return inert(b, func(r rune) string {
		hi, lo := utf16.EncodeRune(r)
		return fmt.Sprintf(`\u%04x\u%04x`, hi, lo)
	})
}

// inertYAML is inertJSON for YAML, in which such characters stand in
// double-quoted strings only, and pairs of surrogates mean nothing.
func inertYAML(b []byte) []byte {
	return inert(b, func(r rune) string { return fmt.Sprintf(`\U%08x`, r) })
}

// inert escapes characters; beyond is for those outside of the basic plane.
func inert(b []byte, beyond func(rune) string) []byte {
	which := func(r rune) bool { return obeyed(r) && r != '\n' }
	var out []byte
	for {
		at := bytes.IndexFunc(b, which)
		switch {
		case at < 0 && out == nil:
			return b
		case at < 0:
			return append(out, b...)
		}
		out = append(out, b[:at]...)
		r, n := utf8.DecodeRune(b[at:])
		if r > 0xffff {
			out = append(out, beyond(r)...)
		} else {
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[at+n:]
	}
}

// asYAML goes through JSON, so that names and forms are those of the API.
func asYAML(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	doc, err := yamlNode(d)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	y, err := yaml.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return inertYAML(y), nil
}

// yamlNode is the next JSON value, or name of one, as YAML: fields in the same
// order, numbers with the same digits, and strings without quotes, but for those
// that need escapes (the encoder quotes what would be read as something else).
func yamlNode(d *json.Decoder) (*yaml.Node, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	n := &yaml.Node{Kind: yaml.ScalarNode}
	switch x := token.(type) {
	case json.Delim:
		n.Kind = map[json.Delim]yaml.Kind{'{': yaml.MappingNode, '[': yaml.SequenceNode}[x]
		for d.More() {
			one, err := yamlNode(d)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, one)
		}
		if len(n.Content) == 0 {
			n.Style = yaml.FlowStyle
		}
		_, err = d.Token() // the bracket that closes it
	case string:
		n.Tag, n.Value = "!!str", x
		if strings.ContainsFunc(x, obeyed) {
			n.Style = yaml.DoubleQuotedStyle
		}
	case nil:
		n.Value = "null"
	default:
		n.Value = fmt.Sprint(x)
	}
	return n, err
}

// tone is what a cell means, for terminals that have colours. It never says
// anything that the text does not.
type tone int

const (
	normal tone = iota
	dim
	good
	attention
	bad
	busy
	strong
)

var tones = [...]string{normal: "", dim: "2", good: "32", attention: "33", bad: "31", busy: "36", strong: "1"}

func statusTone(s lpmos.Status) tone {
	switch s {
	case lpmos.AwaitingApproval:
		return attention
	case lpmos.Approved, lpmos.Installing, lpmos.Verifying:
		return busy
	case lpmos.Completed:
		return good
	case lpmos.Failed:
		return bad
	case lpmos.Rejected, lpmos.Canceled:
		return dim
	}
	return normal
}

// terminal is what a writer can do.
type terminal struct {
	file   *os.File // nil when there is no terminal
	cursor bool     // it understands the escape codes that move the cursor
	colour bool
}

// terminalOf looks at what w is. TERM=dumb, or none, has neither colours nor
// cursor; NO_COLOR takes the colours away.
func terminalOf(w io.Writer) terminal {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return terminal{}
	}
	t := terminal{file: f}
	if kind := os.Getenv("TERM"); kind != "" && kind != "dumb" {
		t.cursor, t.colour = true, os.Getenv("NO_COLOR") == ""
	}
	return t
}

// size is read anew each time: people change it.
func (t terminal) size() (width, height int) {
	if t.file != nil {
		if w, h, err := term.GetSize(int(t.file.Fd())); err == nil && w > 0 && h > 0 {
			return w, h
		}
	}
	return 80, 24
}

func (t terminal) paint(c tone, s string) string {
	if !t.colour || tones[c] == "" || s == "" {
		return s
	}
	return "\x1b[" + tones[c] + "m" + s + "\x1b[0m"
}

// maxCell bounds what a table with a heading shows of one value, and maxValue one
// without; -o json has all of it.
const (
	maxCell  = 160
	maxValue = 1000
)

// cell is one field of a table.
type cell struct {
	text string
	tone tone
}

// txt is a cell of one tone.
func txt(text string) cell { return cell{text: text} }

// table is rows under a heading, or, without one, names and values.
type table struct {
	head  []string
	rows  [][]cell
	empty string // is said instead when there are no rows
	foot  string // "" for none
}

// add makes a row. Whatever the cells hold, they are plain and bounded then.
func (t *table) add(cells ...cell) {
	most := maxCell
	if len(t.head) == 0 {
		most = maxValue
	}
	for i := range cells {
		cells[i].text = clip(plain(cells[i].text), most)
	}
	t.rows = append(t.rows, cells)
}

// field adds a row to a table of names and values; nothing when it is empty.
func (t *table) field(name, value string, colour ...tone) {
	if value != "" {
		t.add(cell{name, dim}, cell{value, append(colour, normal)[0]})
	}
}

// text lays the table out. On a terminal, the widest columns give way until all
// fit, and without a heading the last one is wrapped; elsewhere nothing is cut that is not longer than maxCell.
func (t *table) text(on terminal) string {
	var b strings.Builder
	for _, l := range t.lines(on) {
		b.WriteString(l.text)
		b.WriteByte('\n')
	}
	return b.String()
}

// line is what a terminal shows in one row, and how wide it is.
type line struct {
	text  string
	width int
}

func (t *table) lines(on terminal) []line {
	if len(t.rows) == 0 && t.empty != "" {
		return []line{{t.empty, columns(t.empty)}}
	}
	rows := t.rows
	if len(t.head) > 0 {
		head := make([]cell, len(t.head))
		for i, h := range t.head {
			head[i] = cell{h, dim}
		}
		rows = append([][]cell{head}, rows...)
	}
	widths := layout(rows)
	width, _ := on.size()
	if on.cursor && len(t.head) > 0 {
		narrow(widths, width-1)
	}
	out := make([]line, 0, len(rows)+2)
	for _, r := range rows {
		var b strings.Builder
		var used, want int
		for i, x := range r {
			text := x.text
			if len(t.head) > 0 {
				text = clip(text, widths[i])
			}
			if text == "" {
				want += widths[i] + 2
				continue
			}
			more := []string{text}
			if on.cursor && len(t.head) == 0 && i == len(r)-1 { // a sentence goes on below itself
				more = wrap(text, width-1-want)
			}
			for j, part := range more {
				if j > 0 {
					out = append(out, line{b.String(), used})
					b.Reset()
					used = 0
				}
				b.WriteString(strings.Repeat(" ", want-used))
				b.WriteString(on.paint(x.tone, part))
				used = want + columns(part)
			}
			want += widths[i] + 2
		}
		out = append(out, line{b.String(), used})
	}
	if t.foot != "" {
		out = append(out, line{}, line{on.paint(dim, t.foot), columns(t.foot)})
	}
	return out
}

func layout(rows [][]cell) []int {
	var widths []int
	for _, r := range rows {
		for i, x := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], columns(x.text))
		}
	}
	return widths
}

// narrow takes from the widest columns until all fit in width, but leaves each
// of them eight.
func narrow(widths []int, width int) {
	sum := 2 * (len(widths) - 1)
	for _, w := range widths {
		sum += w
	}
	for sum > width {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= 8 {
			return
		}
		widths[widest]--
		sum--
	}
}

// columns is how wide a terminal shows s: two columns for East Asian wide
// characters and most pictures, none for combining marks.
func columns(s string) int {
	n := 0
	for _, r := range s {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf && r != 0x303f, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff,
		r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}

// clip cuts s to n columns and marks the cut.
func clip(s string, n int) string {
	if columns(s) <= n {
		return s
	}
	if n < 1 {
		return ""
	}
	used := 0
	for i, r := range s {
		if used+runeColumns(r) > n-1 {
			return s[:i] + "…"
		}
		used += runeColumns(r)
	}
	return s
}

// wrap breaks s between words into lines of at most n columns; a word that is
// longer stays whole. Where there is no room for lines it does nothing.
func wrap(s string, n int) []string {
	if n < 20 || columns(s) <= n {
		return []string{s}
	}
	var out []string
	var l string
	for word := range strings.SplitSeq(s, " ") {
		if l != "" && columns(l)+1+columns(word) > n {
			out = append(out, l)
			l = word
			continue
		}
		if l != "" {
			l += " "
		}
		l += word
	}
	return append(out, l)
}

// area is the part of a terminal, at its end, that is drawn again and again.
// The cursor always stands at the beginning of the line below, so that whatever
// ends the process leaves the prompt where it belongs.
type area struct {
	w     io.Writer
	on    terminal
	drawn []int // columns of each line that is there
}

// draw writes the lines of above for good, and below them the area anew, in one
// write. What does not fit on the screen is left out.
func (a *area) draw(above []string, lines []line) {
	width, height := a.on.size()
	var b strings.Builder
	rows := 0
	for _, w := range a.drawn { // a terminal made narrower has wrapped them
		rows += max(1, (w+width-1)/width)
	}
	if rows > 0 {
		fmt.Fprintf(&b, "\r\x1b[%dA\x1b[J", min(rows, height-1))
	}
	for _, l := range above {
		b.WriteString(l + "\n")
	}
	a.drawn = a.drawn[:0]
	for i, l := range lines {
		if i == height-1 {
			break
		}
		b.WriteString(l.text + "\n")
		a.drawn = append(a.drawn, l.width)
	}
	if b.Len() > 0 {
		_, _ = io.WriteString(a.w, b.String())
	}
}

// leave keeps what is drawn where it is.
func (a *area) leave() { a.drawn = nil }

func age(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return t.Local().Format("2006-01-02")
}

// moment is a time with how long ago it was.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	s := t.Local().Format("2006-01-02 15:04:05")
	if d := time.Since(t); d >= 0 && d < 48*time.Hour {
		s += " (" + age(t) + " ago)"
	}
	return s
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// nearest are the candidates that a person who typed s may have meant, best
// first.
func nearest(s string, candidates []string) []string {
	type near struct {
		name string
		d    int
	}
	var found []near
	for _, name := range candidates {
		d := distance(strings.ToLower(s), strings.ToLower(name))
		if strings.HasPrefix(name, s) && len(s) > 1 {
			d = 1
		}
		if d <= max(2, len(name)/4) && d < len(name) {
			found = append(found, near{name, d})
		}
	}
	slices.SortStableFunc(found, func(x, y near) int { return cmp.Compare(x.d, y.d) })
	var out []string
	for _, f := range found {
		out = append(out, f.name)
	}
	return out[:min(len(out), 3)]
}

// distance counts the letters to insert, remove, change or swap.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	before := make([]int, len(y)+1)
	last := make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := range x {
		now := make([]int, len(y)+1)
		now[0] = i + 1
		for j := range y {
			cost := 1
			if x[i] == y[j] {
				cost = 0
			}
			now[j+1] = min(now[j]+1, last[j+1]+1, last[j]+cost)
			if i > 0 && j > 0 && x[i] == y[j-1] && x[i-1] == y[j] {
				now[j+1] = min(now[j+1], before[j-1]+1)
			}
		}
		before, last = last, now
	}
	return last[len(y)]
}

// unknownValue is the error for a value of a flag that is none of those it
// takes.
func unknownValue(flag, got string, want []string) error {
	s := fmt.Sprintf("--%s is none of %s (got %q)", flag, strings.Join(want, ", "), lpmos.Shorten(got, 64))
	if near := nearest(got, want); len(near) > 0 {
		s += ": did you mean " + strings.Join(near, " or ") + "?"
	}
	return usageError{fmt.Errorf("%s", s)}
}
