package web

import (
	"fmt"
	"html/template"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/lpmos/lpmos"
)

// rich is T for a sentence some of whose parts are marked: an argument that is
// template.HTML stands as it is, every other one is escaped and isolated, so
// that the directional characters in it turn nothing but itself around.
func (s *tongue) rich(english string, args ...any) template.HTML {
	text := template.HTMLEscapeString(s.T(english))
	if len(args) == 0 {
		return template.HTML(text)
	}
	for i, a := range args {
		if _, marked := a.(template.HTML); !marked {
			args[i] = template.HTML("<bdi>" + template.HTMLEscapeString(fmt.Sprint(a)) + "</bdi>")
		}
	}
	return template.HTML(fmt.Sprintf(text, args...))
}

// strong, kept and code are marked arguments for rich.
func strong(a any) template.HTML { return wrap("strong", "", a) }
func kept(a any) template.HTML   { return wrap("bdi", "whole", a) } // broken only where a line is too short for it
func code(a any) template.HTML   { return wrap("bdi", "mono", a) }

func wrap(element, class string, a any) template.HTML {
	text, marked := a.(template.HTML)
	if !marked {
		text = template.HTML(template.HTMLEscapeString(fmt.Sprint(a)))
		if element != "bdi" {
			text = "<bdi>" + text + "</bdi>"
		}
	}
	if class != "" {
		class = ` class="` + class + `"`
	}
	return template.HTML("<" + element + class + ">" + string(text) + "</" + element + ">")
}

// sentence is package function sentence with the full stop of this language.
func (s *tongue) sentence(text string) string {
	text = s.Said(sentence(text))
	if s.chinese() && strings.HasSuffix(text, ".") && strings.ContainsFunc(text, func(r rune) bool { return unicode.Is(unicode.Han, r) }) {
		return strings.TrimSuffix(text, ".") + "。"
	}
	return text
}

// joined puts sentences after each other.
func (s *tongue) joined(sentences ...string) string {
	sentences = slices.DeleteFunc(sentences, func(t string) bool { return t == "" })
	if s.chinese() {
		return strings.Join(sentences, "")
	}
	return strings.Join(sentences, " ")
}

// took is how long something lasted, as exact as a person compares it: 9 s,
// 3 min 2 s, 2 h 5 min, 3 days.
func (s *tongue) took(d time.Duration) string {
	two := func(a int, unitA string, b int, unitB string) string {
		text := s.unit(strconv.Itoa(a), unitA)
		if b > 0 {
			text += nbsp + s.unit(strconv.Itoa(b), unitB)
		}
		return text
	}
	switch sec := int(max(d, 0).Round(time.Second) / time.Second); {
	case sec < 60:
		return s.unit(strconv.Itoa(sec), "s")
	case sec < 3600:
		return two(sec/60, "min", sec%60, "s")
	case sec < 48*3600:
		return two(sec/3600, "h", sec/60%60, "min")
	default:
		return s.unit(count(sec/86400), "days")
	}
}

// stageWords are the stages of an install in the middle of a sentence.
var stageWords = map[lpmos.Stage]string{
	lpmos.Partitioning: "partitioning", lpmos.Downloading: "downloading", lpmos.StageInstall: "installing", lpmos.Configuring: "configuring",
}

// stageWord is the name of a stage; what is none is left as it is.
func (s *tongue) stageWord(stage lpmos.Stage) string {
	if w, ok := stageWords[stage]; ok {
		return s.T(w)
	}
	return string(stage)
}

// quote is what a person wrote.
func (s *tongue) quote(text string) string { return "“" + text + "”" }
