package lpmos

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Patterns and templates are text with places that a machine's facts are put
// into. There are no functions, conditions or loops, and nothing but the facts
// listed here can be reached: rendering is one pass over the text, bounded in
// size, that gives the same for the same machine wherever it is done.

// Facts are what a placeholder may stand for.
type Facts struct {
	Text map[string]string
	List map[string][]string // only in the form {{json name}}
}

// hostnameFacts may stand in a host name; those that are true need the
// machine's report.
var hostnameFacts = map[string]bool{"mac6": false, "mac12": false, "region": false, "serial": true, "asset": true, "uuid8": true}

// templateFacts may stand in a template. The second kind is lists.
var (
	templateFacts = []string{"arch", "asset", "boot_mode", "hostname", "mac", "mac12", "mac6", "manufacturer", "model", "os", "os_version", "profile", "region", "serial", "task_id", "uuid", "uuid8"}
	templateLists = []string{"macs", "ssh_keys"}
)

// TemplateFacts names what a template may use, sorted; lists are the last.
func TemplateFacts() []string { return slices.Concat(templateFacts, templateLists) }

// HostnameFacts names what a host name pattern may use, sorted.
func HostnameFacts() []string {
	var out []string
	for name := range hostnameFacts {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// FactsOf are the facts of a task and of the machine it found; h may be nil
// when the machine has not reported, and what only it can say is then missing.
func FactsOf(t *Task, h *Hardware) Facts {
	mac := hex.EncodeToString(t.TargetMAC[:])
	f := Facts{
		Text: map[string]string{
			"mac": t.TargetMAC.String(), "mac6": mac[6:], "mac12": mac, "region": t.RegionID, "task_id": t.ID,
			"hostname": t.Hostname, "os": t.OSType, "os_version": t.OSVersion, "arch": t.Arch, "profile": t.Profile,
		},
		List: map[string][]string{"ssh_keys": append([]string{}, t.SSHKeys...)},
	}
	if h == nil {
		return f
	}
	uuid := strings.ToLower(h.System.UUID)
	for name, v := range map[string]string{
		"serial": h.System.Serial, "asset": h.Chassis.AssetTag, "uuid": uuid, "uuid8": Prefix(uuid, 8),
		"manufacturer": h.System.Manufacturer, "model": h.System.Product, "boot_mode": h.BootMode,
	} {
		f.Text[name] = strings.TrimSpace(v)
	}
	macs := []string{}
	for _, m := range h.MACs() {
		macs = append(macs, m.String())
	}
	f.List["macs"] = macs
	return f
}

// Prefix is the first n bytes of s, or all of it.
func Prefix(s string, n int) string { return s[:min(n, len(s))] }

// MaxHostnamePattern bounds a pattern, in bytes.
const MaxHostnamePattern = 128

// piece is literal text, or a placeholder when name is set.
type piece struct {
	text string
	name string
	as   string // an encoder, "" for a value that may stand as it is
	line int
}

// parseHostname takes a pattern such as "web-{serial}" apart.
func parseHostname(pattern string) ([]piece, error) {
	invalid := func(problem string) ([]piece, error) {
		return nil, &InvalidError{Field: "hostname_pattern", Problem: problem, Value: pattern}
	}
	if pattern == "" || len(pattern) > MaxHostnamePattern {
		return invalid("is empty or longer than 128 bytes")
	}
	var out []piece
	rest, own := pattern, false
	for rest != "" {
		literal, after, found := strings.Cut(rest, "{")
		for _, c := range []byte(literal) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
				return invalid("may hold lower-case letters, digits, hyphens, dots and names in braces")
			}
		}
		if literal != "" {
			out = append(out, piece{text: literal})
		}
		if !found {
			break
		}
		name, tail, closed := strings.Cut(after, "}")
		if !closed {
			return invalid("has a brace that is not closed")
		}
		if _, ok := hostnameFacts[name]; !ok {
			return invalid(fmt.Sprintf("names {%s}, and there is only {%s}", Shorten(name, 32), strings.Join(HostnameFacts(), "}, {")))
		}
		own = own || name != "region"
		out, rest = append(out, piece{name: name}), tail
	}
	if !own {
		return invalid("would give every machine the same name: put {serial} or {mac6} into it")
	}
	return out, nil
}

// ValidateHostnamePattern says what is wrong with a pattern, or nil. Whether
// the name it gives is a host name depends on the machine; a pattern that can
// give none at all is refused here.
func ValidateHostnamePattern(pattern string) error {
	pieces, err := parseHostname(pattern)
	if err != nil {
		return err
	}
	sample := map[string]string{"mac6": "4d5e00", "mac12": "001a2b4d5e00", "region": "r", "serial": "s", "asset": "a", "uuid8": "4c4c4544"}
	if name := joinHostname(pieces, sample); !ValidHostname(name) {
		return &InvalidError{Field: "hostname_pattern", Problem: fmt.Sprintf("gives names such as %q, which are no host names", name), Value: pattern}
	}
	return nil
}

func joinHostname(pieces []piece, facts map[string]string) string {
	var b strings.Builder
	for _, p := range pieces {
		if p.name == "" {
			b.WriteString(p.text)
		} else {
			b.WriteString(hostnamePart(facts[p.name]))
		}
	}
	return b.String()
}

// hostnamePart makes a fact fit for a host name: lower case, and one hyphen for
// each run of anything that a host name cannot hold.
func hostnamePart(s string) string {
	var b strings.Builder
	for _, c := range []byte(strings.ToLower(s)) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			b.WriteByte(c)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == 63 {
			break
		}
	}
	return strings.TrimRight(b.String(), "-")
}

// ExpandHostname makes the host name of one machine. A fact that the machine
// does not have, or a result that is no host name, is an *InvalidError whose
// sentence says which.
func ExpandHostname(pattern string, facts Facts) (string, error) {
	pieces, err := parseHostname(pattern)
	if err != nil {
		return "", err
	}
	for _, p := range pieces {
		if p.name != "" && hostnamePart(facts.Text[p.name]) == "" {
			return "", &InvalidError{Field: "hostname_pattern", Problem: "needs {" + p.name + "}, and this machine has none", Value: pattern}
		}
	}
	name := joinHostname(pieces, facts.Text)
	if !ValidHostname(name) {
		return "", &InvalidError{Field: "hostname_pattern", Problem: fmt.Sprintf("gives %q, which is no host name", Shorten(name, 80)), Value: pattern}
	}
	return name, nil
}

// Bounds of a template, in bytes.
const (
	MaxTemplateBytes = 32 << 10
	MaxRenderedBytes = 64 << 10
)

// parseTemplate takes text with {{name}} and {{encoder name}} apart. {{open}} is
// two braces as they are.
func parseTemplate(text string) ([]piece, error) {
	line := 1
	invalid := func(format string, args ...any) ([]piece, error) {
		return nil, &InvalidError{Field: "text", Problem: fmt.Sprintf("line %d: ", line) + fmt.Sprintf(format, args...)}
	}
	if text == "" || len(text) > MaxTemplateBytes {
		return nil, &InvalidError{Field: "text", Problem: "is empty or longer than 32 KiB"}
	}
	if !utf8.ValidString(text) {
		return nil, &InvalidError{Field: "text", Problem: "is not valid UTF-8"}
	}
	var out []piece
	for rest := text; rest != ""; {
		literal, after, found := strings.Cut(rest, "{{")
		for i, c := range literal {
			if c == '\n' {
				line++
			}
			if c < ' ' && c != '\n' && c != '\t' && (c != '\r' || !strings.HasPrefix(literal[i:], "\r\n")) || c == 0x7f {
				return invalid("holds the control character U+%04X", c)
			}
		}
		if literal != "" {
			out = append(out, piece{text: literal})
		}
		if !found {
			break
		}
		inner, tail, closed := strings.Cut(after, "}}")
		if !closed || strings.ContainsAny(inner, "\n{}") {
			return invalid("has {{ without }} on the same line (write {{open}} for two braces as they are)")
		}
		words := strings.Fields(inner)
		p := piece{line: line}
		switch {
		case len(words) == 1:
			p.name = words[0]
		case len(words) == 2 && encoders[words[0]] != nil:
			p.as, p.name = words[0], words[1]
		default:
			return invalid("{{%s}} is neither {{name}} nor {{json name}} (or preseed, kickstart, shell for json)", Shorten(inner, 40))
		}
		switch {
		case p.name == "open" && p.as == "":
			p = piece{text: "{{"}
		case slices.Contains(templateLists, p.name) && p.as != "json":
			return invalid("{{%s}} is a list: write {{json %s}}", p.name, p.name)
		case !slices.Contains(templateFacts, p.name) && !slices.Contains(templateLists, p.name):
			return invalid("{{%s}} is not known; there is %s", Shorten(p.name, 40), strings.Join(TemplateFacts(), ", "))
		}
		out, rest = append(out, p), tail
	}
	return out, nil
}

// plainFact reports whether a value can stand in any text file as it is. What
// a machine says of itself is not to be trusted: a serial number with a line
// break in it would otherwise write configuration of its own.
func plainFact(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("._:+@/-", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// RenderTemplate puts facts into a template's text, once through and at most
// MaxRenderedBytes of it. A fact that holds more than letters, digits and
// ._:+@/- must be asked for by an encoder: {{json name}} is a string, or a list
// of strings, in JSON and so in YAML too; {{preseed name}}, {{kickstart name}}
// and {{shell name}} are a value, or a word, of those. Errors are *InvalidError
// on "text".
func RenderTemplate(text string, facts Facts) (string, error) {
	pieces, err := parseTemplate(text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, p := range pieces {
		part := p.text
		if p.name != "" {
			invalid := func(problem string) (string, error) {
				return "", &InvalidError{Field: "text", Problem: fmt.Sprintf("line %d: {{%s}} %s", p.line, p.name, problem)}
			}
			value, known := facts.Text[p.name]
			list, isList := facts.List[p.name]
			switch {
			case !known && !isList:
				return invalid("is not known of this machine")
			case p.as == "json" && isList:
				part = quoteJSON(list)
			case p.as != "":
				if part, err = encoders[p.as](value); err != nil {
					return "", &InvalidError{Field: "text", Problem: fmt.Sprintf("line %d: {{%s %s}} %s for this machine", p.line, p.as, p.name, err)}
				}
			case value == "":
				return invalid("is empty for this machine (write {{json " + p.name + "}} to allow that)")
			case !plainFact(value):
				return invalid("holds more than letters, digits and ._:+@/- for this machine: write {{json " + p.name + "}}")
			default:
				part = value
			}
		}
		if b.Len()+len(part) > MaxRenderedBytes {
			return "", &InvalidError{Field: "text", Problem: "gives more than 64 KiB for this machine"}
		}
		b.WriteString(part)
	}
	return b.String(), nil
}

// quoteJSON escapes all that is not plain ASCII, but for what can be seen beyond
// U+FFFF, so that what is hidden in a name is seen by whoever reads the plan.
func quoteJSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("lpmos: encode fact: %v", err))
	}
	var b strings.Builder
	for _, r := range string(raw) {
		switch {
		case r < 0x7f, r > 0xffff && unicode.IsPrint(r):
			b.WriteRune(r) // YAML does not join surrogates
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
