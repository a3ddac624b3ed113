package web

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/text/language"

	"github.com/lpmos/lpmos"
)

// The languages of the pages. English is the source: a page's English text is
// the key of its translations, in lang/{tag}/*.json, one file for each subject.
// A test compares the keys with what templates, Go and scripts ask for.
//
//go:embed lang
var langFiles embed.FS

// tags are the languages there are, the first where nothing else is asked for.
var tags = []language.Tag{language.English, language.SimplifiedChinese}

// tagNames are how pages spell tags, in <html lang> and in the cookie.
var tagNames = []string{"en", "zh-CN"}

var matcher = language.NewMatcher(tags)

// tongue says things in one language. Its methods may be called concurrently.
type tongue struct {
	tag   string            // "en", "zh-CN"
	words map[string]string // English → this language; nil for English
	said  []phrase          // for sentences that other programs made
	Steps string            // what an agent says it does, for scripts: a JSON object like words, "" for English
}

// phrase translates sentences of one form, such as "machine %s already has …".
type phrase struct {
	pattern *regexp.Regexp
	text    string // with %[1]s for what the first gap held
}

func newTongue(tag string) (*tongue, error) {
	s := &tongue{tag: tag}
	if tag == tagNames[0] {
		return s, nil
	}
	s.words = map[string]string{}
	files, err := fs.Glob(langFiles, "lang/"+tag+"/*.json")
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		b, err := langFiles.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var words map[string]string
		if err := json.Unmarshal(b, &words); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if strings.HasSuffix(name, "/steps-said.json") {
			s.Steps = string(b)
		}
		for k, v := range words {
			if old, ok := s.words[k]; ok && old != v {
				return nil, fmt.Errorf("read %s: %q has two translations, %q and %q", name, k, old, v)
			}
			s.words[k] = v
			if strings.HasSuffix(name, "said.json") && strings.Contains(k, "%s") {
				s.said = append(s.said, newPhrase(k, v))
			}
		}
	}
	// The longest form first: it says most about what it matches.
	slices.SortFunc(s.said, func(a, b phrase) int { return len(b.pattern.String()) - len(a.pattern.String()) })
	return s, nil
}

func newPhrase(form, text string) phrase {
	p := regexp.QuoteMeta(strings.TrimSuffix(form, "."))
	p = strings.ReplaceAll(p, "%s", "(.+?)")
	return phrase{regexp.MustCompile("^(?si:" + p + ")$"), text}
}

// phrases are forms of short texts with names in their gaps.
func phrases(forms ...string) (out []phrase) {
	for _, f := range forms {
		out = append(out, newPhrase(f, f))
	}
	return out
}

// formed is text in this language if it has one of these forms.
func (s *tongue) formed(forms []phrase, text string) string {
	for _, p := range forms {
		if m := p.pattern.FindStringSubmatch(text); m != nil {
			args := make([]any, 0, len(m)-1)
			for _, gap := range m[1:] {
				args = append(args, gap)
			}
			return s.T(p.text, args...)
		}
	}
	return text
}

// T is English text in this language, with args in the places fmt.Sprintf
// would put them; a translation may say %[2]s to change their order. Text that
// has no translation stays English.
func (s *tongue) T(english string, args ...any) string {
	text := english
	if t, ok := s.words[english]; ok {
		text = t
	}
	if len(args) == 0 {
		return text
	}
	return fmt.Sprintf(text, args...)
}

// N is T for a number: one is the sentence for exactly one thing, many has a %s
// for the number, written with its thousands. Where a language does not part
// the two, its translation of many is used.
func (s *tongue) N(n int, one, many string, args ...any) string {
	if n == 1 && s.words == nil {
		return s.T(one, args...)
	}
	return s.T(many, append([]any{count(n)}, args...)...)
}

// duration is what lpmos.FormatDuration spelled.
var duration = regexp.MustCompile(`^([0-9]+) (s|min|h|days)$`)

// Said is a sentence that another part of LPMOS made in English (why a task
// failed, what an event says), in this language where its form is known, and so
// is a sentence in its gaps. What machines and people said is left as it is.
func (s *tongue) Said(text string) string {
	if s.words == nil {
		return text
	}
	bare := strings.TrimSuffix(text, ".")
	full := func(translated string) string {
		if bare != text && !strings.HasSuffix(translated, "。") {
			return translated + "。"
		}
		return strings.TrimSuffix(translated, "。")
	}
	for _, form := range []string{text, bare, bare + ".", strings.TrimSuffix(sentence(bare), ".")} {
		if t, ok := s.words[form]; ok && form != "" {
			return full(t)
		}
	}
	for _, p := range s.said {
		if m := p.pattern.FindStringSubmatch(bare); m != nil {
			return full(fmt.Sprintf(p.text, s.gaps(m[1:])...))
		}
	}
	return text
}

// gaps are what stood in the gaps of a phrase. One word is a name, whatever
// else it means.
func (s *tongue) gaps(found []string) []any {
	args := make([]any, 0, len(found))
	for _, gap := range found {
		if d := duration.FindStringSubmatch(gap); d != nil {
			gap = s.unit(d[1], d[2])
		} else if strings.Contains(gap, " ") {
			gap = s.Said(gap)
		}
		args = append(args, gap)
	}
	return args
}

// invalid is why a value was refused: the field as API and commands call it,
// what is wrong, and what was given.
func (s *tongue) invalid(e *lpmos.InvalidError) string {
	if whole := s.Said(e.Error()); s.words == nil || whole != e.Error() {
		return whole
	}
	text := strings.TrimSpace(e.Field + " " + s.Said(e.Problem))
	if e.Value == "" {
		return text
	}
	return s.T("%s (got %q)", text, lpmos.Shorten(e.Value, 64))
}

// chinese says whether numbers and dates are written as in Chinese.
func (s *tongue) chinese() bool { return s.tag == "zh-CN" }

// tagOf is the language of the request: this browser's choice, or what it prefers.
func tagOf(r *http.Request) string {
	if c, err := r.Cookie("lpmos_lang"); err == nil && slices.Contains(tagNames, c.Value) {
		return c.Value
	}
	_, i := language.MatchStrings(matcher, r.Header.Get("Accept-Language"))
	return tagNames[i]
}
