// Package query is the language of the search box: what people type, and what
// the q of GET /tasks holds, becomes a Filter. It is pure: no clock, no data,
// nothing but text. The read model applies a Filter; the words are explained to
// people by Keys.
//
//	status:failed,canceled region:dc1 !os:debian after:2h "rack 7"
//
// Terms stand beside each other and must all hold. A term is key:value, or a
// word that must occur somewhere in the task. "!" or "-" before a term turns it
// round; a comma means any of; "=" after the colon demands the whole value, not
// a part of it; quotation marks keep spaces, commas and colons together (inside
// them \" and \\ stand for themselves).
package query

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lpmos/lpmos"
)

// Bounds of what is read.
const (
	MaxBytes  = 1 << 10
	MaxTerms  = 32
	MaxValues = 64 // of one term
)

// Filter is a query taken apart. The zero value holds for everything.
type Filter struct {
	Terms []Term // all must hold
}

// Term is one condition.
type Term struct {
	Key    string // "" for words, which may occur anywhere
	Not    bool   // turned round
	Exact  bool   // the whole value, not a part of it
	Values []string
}

// Key is a word of the language.
type Key struct {
	Name   string
	Help   string   // for people, English
	Values []string // all there are, nil where anything may stand
	check  func(v string) (canonical, problem string)
}

// Stuck, Live and Ended are what "is" may say.
const (
	Stuck = "stuck" // has stood still for longer than it should
	Live  = "live"  // owns its machine
	Ended = "ended"
)

// Keys are all keys, in the order in which people are told.
var Keys = []Key{
	{Name: "status", Help: "where the task stands", Values: statuses(), check: oneOf(statuses())},
	{Name: "is", Help: "stuck: has stood still for longer than it should; live: owns its machine; ended", Values: []string{Stuck, Live, Ended}, check: oneOf([]string{Stuck, Live, Ended})},
	{Name: "region", Help: "the region, whole; dc* for all that begin so"},
	{Name: "host", Help: "part of the host name; web* for all that begin so"},
	{Name: "mac", Help: "part of any address of the machine, in any spelling", check: hexOnly},
	{Name: "serial", Help: "part of the machine's or a disk's serial number"},
	{Name: "model", Help: "part of the machine's maker and product, or a disk's model"},
	{Name: "os", Help: "part of os/version/arch"},
	{Name: "version", Help: "the version, or what stands before a dot in it"},
	{Name: "drift", Help: "yes: the installed system is not as planned; no: it is", Values: []string{"yes", "no"}, check: oneOf([]string{"yes", "no"})},
	{Name: "stage", Help: "what an install does now, or where it failed", Values: stages(), check: oneOf(stages())},
	{Name: "attempt", Help: "number of the attempt: 2, >1, <=3", check: numeric},
	{Name: "error", Help: "part of a failure's code or cause"},
	{Name: "by", Help: "part of the name of who created or decided it"},
	{Name: "id", Help: "the beginning of the task's id", check: idOnly},
	{Name: "batch", Help: "the beginning of the id of the batch it was created in", check: idOnly},
	{Name: "after", Help: "created since: 2h (ago), 2026-11-01, 2026-11-01T15:04Z", check: moment},
	{Name: "before", Help: "created before: 3d (ago), 2026-11-01", check: moment},
	{Name: "created", Help: "<2h: less than two hours ago; >3d: longer ago; <2026-11-01: before that day", check: comparedMoment},
	{Name: "updated", Help: "likewise, of the last change of status", check: comparedMoment},
}

// KeyNames are the names of Keys.
func KeyNames() []string {
	var out []string
	for _, k := range Keys {
		out = append(out, k.Name)
	}
	return out
}

func statuses() (out []string) {
	for _, s := range lpmos.Statuses {
		out = append(out, string(s))
	}
	return out
}

func stages() (out []string) {
	for _, w := range lpmos.StageWeights {
		out = append(out, string(w.Stage))
	}
	return out
}

func invalid(problem string) error { return &lpmos.InvalidError{Field: "q", Problem: problem} }

// fragmentRE are pieces of MAC addresses, which hold colons and are no keys.
var fragmentRE = regexp.MustCompile(`^[0-9A-Fa-f]{0,2}(:[0-9A-Fa-f]{1,2})*:?$`)

// Parse reads a query. An unknown key or a value that its key does not take is
// an *lpmos.InvalidError that names it and what there is instead.
func Parse(text string) (Filter, error) {
	switch {
	case len(text) > MaxBytes:
		return Filter{}, invalid(fmt.Sprintf("is longer than %d bytes", MaxBytes))
	case !utf8.ValidString(text):
		return Filter{}, invalid("is not valid UTF-8")
	}
	var f Filter
	p := parser{rest: text}
	for {
		p.rest = strings.TrimLeftFunc(p.rest, separates)
		if p.rest == "" {
			return f, nil
		}
		if len(f.Terms) == MaxTerms {
			return Filter{}, invalid(fmt.Sprintf("has more than %d terms", MaxTerms))
		}
		t, err := p.term()
		if err != nil {
			return Filter{}, err
		}
		f.Terms = append(f.Terms, t)
	}
}

func separates(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }

type parser struct{ rest string }

// peek is the next rune; it ends a term when it separates or is not there.
func (p *parser) peek() (rune, bool) {
	if p.rest == "" {
		return 0, false
	}
	r, _ := utf8.DecodeRuneInString(p.rest)
	return r, !separates(r)
}

func (p *parser) term() (Term, error) {
	var t Term
	if c := p.rest[0]; c == '!' || c == '-' {
		rest := p.rest
		p.rest = rest[1:]
		if _, ok := p.peek(); ok {
			t.Not = true
		} else {
			p.rest = rest // alone it is a word
		}
	}
	word := p.rest
	if end := strings.IndexFunc(word, separates); end >= 0 {
		word = word[:end]
	}
	if name, _, ok := strings.Cut(word, ":"); ok && keyLike(name) && !fragmentRE.MatchString(word) {
		t.Key = strings.ToLower(name)
		p.rest = p.rest[len(name)+1:]
		if strings.HasPrefix(p.rest, "=") {
			t.Exact, p.rest = true, p.rest[1:]
		}
	}
	k, ok := find(t.Key)
	if t.Key != "" && !ok {
		return t, invalid(fmt.Sprintf("has the unknown key %q; there are %s (put the text in quotation marks to search for it as it is)", lpmos.Shorten(t.Key, 32), strings.Join(KeyNames(), ", ")))
	}
	values, err := p.values()
	if err != nil {
		return t, err
	}
	for _, v := range values {
		if t.Key != "" {
			if v = strings.TrimSpace(v); v == "" {
				continue
			}
		}
		if k.check != nil {
			canonical, problem := k.check(v)
			if problem != "" {
				return t, invalid(fmt.Sprintf("has %s:%s, which %s", t.Key, quote(lpmos.Shorten(v, 64)), problem))
			}
			v = canonical
		}
		if strings.TrimFunc(v, separates) != "" {
			t.Values = append(t.Values, v)
		}
	}
	switch {
	case len(t.Values) > MaxValues:
		return t, invalid(fmt.Sprintf("has a term with more than %d values", MaxValues))
	case len(t.Values) > 0:
		return t, nil
	case t.Key == "":
		return t, invalid("has an empty term: nothing stands between its commas or quotation marks")
	case k.Values != nil:
		return t, invalid(t.Key + ": has no value; there are " + strings.Join(k.Values, ", "))
	}
	return t, invalid(t.Key + ": has no value (" + k.Help + ")")
}

// keyLike reports whether what stands before a colon looks like a key, known or
// not.
func keyLike(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '_' && r != '.' }) < 0
}

func find(name string) (Key, bool) {
	i := slices.IndexFunc(Keys, func(k Key) bool { return k.Name == name })
	if i < 0 {
		return Key{}, false
	}
	return Keys[i], true
}

// values reads to the end of the term: texts separated by commas, parts of
// which may be quoted.
func (p *parser) values() ([]string, error) {
	var out []string
	var b strings.Builder
	for {
		r, ok := p.peek()
		if !ok {
			return append(out, b.String()), nil
		}
		size := utf8.RuneLen(r)
		p.rest = p.rest[size:]
		switch r {
		case ',':
			out = append(out, b.String())
			b.Reset()
		case '"':
			if err := p.quoted(&b); err != nil {
				return nil, err
			}
		default:
			b.WriteRune(r)
		}
	}
}

func (p *parser) quoted(b *strings.Builder) error {
	for p.rest != "" {
		c := p.rest[0]
		p.rest = p.rest[1:]
		switch {
		case c == '"':
			return nil
		case c == '\\' && p.rest != "" && (p.rest[0] == '"' || p.rest[0] == '\\'):
			b.WriteByte(p.rest[0])
			p.rest = p.rest[1:]
		default:
			b.WriteByte(c)
		}
	}
	return invalid("has a quotation mark that is not closed")
}

// String spells f so that Parse reads it back as it is.
func (f Filter) String() string {
	var b strings.Builder
	for i, t := range f.Terms {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(t.String())
	}
	return b.String()
}

// String spells one term.
func (t Term) String() string {
	var b strings.Builder
	if t.Not {
		b.WriteByte('!')
	}
	if t.Key != "" {
		b.WriteString(t.Key + ":")
		if t.Exact {
			b.WriteByte('=')
		}
	}
	for i, v := range t.Values {
		if i > 0 {
			b.WriteByte(',')
		}
		if t.Key == "" && strings.Contains(v, ":") && !fragmentRE.MatchString(v) {
			b.WriteString(quoted(v)) // not a key
		} else {
			b.WriteString(quote(v))
		}
	}
	return b.String()
}

var plainRE = regexp.MustCompile(`^[\pL\pN<>_.][\pL\pN<>=_.:/@+*-]*$`)

func quote(v string) string {
	if plainRE.MatchString(v) {
		return v
	}
	return quoted(v)
}

func quoted(v string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
}

// Has reports whether a term has this key.
func (f Filter) Has(key string) bool {
	return slices.ContainsFunc(f.Terms, func(t Term) bool { return t.Key == key })
}

// Values are those of the only term with this key, when it is not turned round:
// what a drop-down beside the search box shows as chosen.
func (f Filter) Values(key string) []string {
	var out []string
	n := 0
	for _, t := range f.Terms {
		if t.Key == key {
			n++
			if !t.Not {
				out = t.Values
			}
		}
	}
	if n != 1 {
		return nil
	}
	return out
}

// With is f with this term in the place of all that have its key.
func (f Filter) With(key string, values ...string) Filter {
	out := f.Without(key)
	out.Terms = append(out.Terms, Term{Key: key, Values: values})
	return out
}

// Without is f without the terms that have this key.
func (f Filter) Without(key string) Filter {
	var out Filter
	for _, t := range f.Terms {
		if t.Key != key {
			out.Terms = append(out.Terms, t)
		}
	}
	return out
}

func oneOf(values []string) func(string) (string, string) {
	return func(v string) (string, string) {
		c := strings.ReplaceAll(strings.ToLower(v), "-", "_")
		if slices.Contains(values, c) {
			return c, ""
		}
		return "", "is none of " + strings.Join(values, ", ")
	}
}

func hexOnly(v string) (string, string) {
	if HexDigits(v) == "" {
		return "", "is no part of a MAC address"
	}
	return v, ""
}

// HexDigits takes the separators out of (a part of) a MAC address and gives
// lower-case digits, or "" if anything else is in it.
func HexDigits(v string) string {
	var b []byte
	for _, c := range []byte(strings.ToLower(v)) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f':
			b = append(b, c)
		case c == ':', c == '-', c == '.':
		default:
			return ""
		}
	}
	return string(b)
}

func idOnly(v string) (string, string) {
	c := strings.ToLower(v)
	if strings.Trim(c, "0123456789abcdef-") != "" {
		return "", "is no part of an id"
	}
	return c, ""
}

// Comparison is a number or a moment with what it is compared by.
type Comparison struct {
	Op  string // "", "<", "<=", ">", ">="
	Num int64
	Age time.Duration // before now; used when At is zero
	At  time.Time
}

func operator(v string) (op, rest string) {
	for _, op := range []string{"<=", ">=", "<", ">"} {
		if rest, ok := strings.CutPrefix(v, op); ok {
			return op, strings.TrimSpace(rest)
		}
	}
	return "", v
}

// Number reads a value of attempt.
func Number(v string) (Comparison, bool) {
	op, rest := operator(v)
	n, err := strconv.ParseInt(rest, 10, 32)
	return Comparison{Op: op, Num: n}, err == nil && n >= 0
}

func numeric(v string) (string, string) {
	if _, ok := Number(v); !ok {
		return "", "is not a number such as 2, >1 or <=3"
	}
	return v, ""
}

const likeMoment = "is not a time such as 2h, 3d, 2026-11-01 or 2026-11-01T15:04Z"

func moment(v string) (string, string) {
	if c, ok := Moment(v); !ok || c.Op != "" {
		return "", likeMoment
	}
	return v, ""
}

func comparedMoment(v string) (string, string) {
	if _, ok := Moment(v); !ok {
		return "", likeMoment + ", with < or > before it"
	}
	return v, ""
}

var layouts = []string{time.RFC3339, "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"}

// Moment reads a value of after, before, created or updated. Times without a
// zone are UTC.
func Moment(v string) (Comparison, bool) {
	op, rest := operator(v)
	if d, ok := age(strings.ToLower(rest)); ok {
		return Comparison{Op: op, Age: d}, true
	}
	for _, l := range layouts {
		if at, err := time.Parse(l, strings.ToUpper(rest)); err == nil && !at.IsZero() {
			return Comparison{Op: op, At: at}, true
		}
	}
	return Comparison{}, false
}

var units = map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}

// maxAge keeps sums of ages far from overflow.
const maxAge = 100 * 365 * 24 * time.Hour

func age(v string) (time.Duration, bool) {
	var sum time.Duration
	for v != "" {
		end := strings.IndexFunc(v, func(r rune) bool { return r < '0' || r > '9' })
		if end < 1 || end > 9 {
			return 0, false
		}
		unit, ok := units[v[end]]
		n, err := strconv.ParseInt(v[:end], 10, 64)
		if !ok || err != nil || n > int64(maxAge/unit) {
			return 0, false
		}
		sum += time.Duration(n) * unit
		v = v[end+1:]
	}
	return sum, sum > 0 && sum <= maxAge
}
