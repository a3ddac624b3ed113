package web

import (
	"html/template"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lpmos/lpmos"
)

// parse reads each page's template together with the layout and the parts.
func (w *Web) parse() (map[string]*template.Template, error) {
	base := template.New("").Funcs(w.funcs())
	err := w.parseFiles(base, "layout", "parts", "fields")
	if err != nil {
		return nil, err
	}
	pages := map[string]*template.Template{}
	for _, name := range []string{
		"dashboard", "tasks", "bulk", "bulk-done", "create", "summary", "batch", "task", "approve", "together", "stale", "problem", "stop", "policy",
		"machines", "machine", "regions", "images", "profiles", "profile", "templates", "template",
		"login", "account", "users", "user", "tokens", "audit",
	} {
		t, err := base.Clone()
		if err != nil {
			return nil, err
		}
		if err := w.parseFiles(t, name); err != nil {
			return nil, err
		}
		pages[name] = t
	}
	return pages, nil
}

func (w *Web) parseFiles(t *template.Template, names ...string) error {
	for _, name := range names {
		b, err := templateFiles.ReadFile("templates/" + name + ".html")
		if err != nil {
			return err
		}
		if _, err := t.New(name + ".html").Parse(w.punctuated(string(b))); err != nil {
			return err
		}
	}
	return nil
}

var (
	afterValue     = regexp.MustCompile(`\}\}[,;:.] (\{\{end\}\})?`)
	afterSentence  = regexp.MustCompile(`([.,:]"[^{}]*\}\}(?:</(?:strong|span)>|\{\{(?:end|(?:if|with) [^{}]*)\}\})*|\{\{[tn] [^{}]*\}\}</strong>) (\{\{|<(?:bdi|code|a)\b|<span class="mono")`)
	chineseStrokes = strings.NewReplacer(", ", "，", "; ", "；", ": ", "：", ". ", "。")
)

// punctuated is a template with what stands between its values as the language
// writes it: in Chinese with strokes as wide as a character, and no space after
// them. What parts the things of a list, such as addresses, stays.
func (s *tongue) punctuated(text string) string {
	if !s.chinese() {
		return text
	}
	text = afterValue.ReplaceAllStringFunc(text, func(m string) string {
		if strings.HasSuffix(m, "{{end}}") {
			return m
		}
		return chineseStrokes.Replace(m)
	})
	return afterSentence.ReplaceAllString(text, "$1$2")
}

func (w *Web) funcs() template.FuncMap {
	return template.FuncMap{
		"t":       w.T,
		"n":       func(n int, one, many string, args ...any) string { return w.N(n, one, many, args...) },
		"said":    w.Said,
		"who":     w.who,
		"steps":   func() string { return w.Steps },
		"drift":   w.driftWord,
		"percent": w.percent,
		"static":  func(name string) string { return w.static.dir + "/" + name },
		"icon":    w.icon,
		"moment":  w.moment,
		"seconds": w.second,
		"size":    w.size,
		"gib":     w.gib,
		"count":   count,
		"word":    w.statusWord,
		"short":   short,
		"inc":     func(i int) int { return i + 1 },
		"problem": func(id, text string) map[string]string { return map[string]string{"ID": id, "Text": text} },
		"confirm": func(a policyAsk, problem string) any {
			return struct {
				Ask     policyAsk
				Problem string
			}{a, problem}
		},
		"browser": w.browserWord,
		"join":    strings.Join,
		"lower":   strings.ToLower,
		"bulk":    func(action string) string { return w.T(bulkTexts[action].button) },
		"meaning": http.StatusText,
		"sub":     func(a, b int) int { return a - b },
		"rich":    w.rich,
		"strong":  strong,
		"kept":    kept,
		"code":    code,
		"age":     func(t time.Time) string { return w.age(w.cfg.Now().Sub(t)) },
		"took":    func(a, b time.Time) string { return w.took(b.Sub(a)) },
		"stage":   w.stageWord,
		"list":    w.list,
		"quote":   w.quote,
	}
}

// icon refers to a symbol of icons.svg. It is decoration: the word beside it
// says the same.
func (w *Web) icon(name string, size ...string) template.HTML {
	attr := ""
	if len(size) > 0 {
		attr = ` data-size="` + template.HTMLEscapeString(size[0]) + `"`
	}
	return template.HTML(`<svg class="icon"` + attr + ` aria-hidden="true"><use href="` + w.static.dir + `/icons.svg#` +
		template.HTMLEscapeString(name) + `"></use></svg>`)
}

// instant is a point in time for people. It is written in UTC; the browser
// turns it into local time.
type instant struct {
	RFC  string // for programs
	UTC  string // on hover
	Text string
	Form string // "auto", "seconds"; tells the browser how to write it
}

// moment is 14:32 within a day, else 23 Nov 2026. The zero time gives an
// instant without text.
func (w *Web) moment(t time.Time) instant {
	if t.IsZero() {
		return instant{}
	}
	t = t.UTC()
	i := instant{RFC: t.Format(time.RFC3339), UTC: t.Format("2006-01-02 15:04:05 UTC"), Form: "auto"}
	if age := w.cfg.Now().Sub(t); age < 24*time.Hour && age > -24*time.Hour {
		i.Text = t.Format("15:04")
	} else {
		i.Text = w.day(t)
	}
	return i
}

// second is moment where the order of things matters: with seconds, and with the
// time of day however old.
func (w *Web) second(t time.Time) instant {
	i := w.moment(t)
	if i.RFC == "" {
		return i
	}
	i.Form = "seconds"
	if clock := t.UTC().Format("15:04:05"); strings.Contains(i.Text, ":") {
		i.Text = clock
	} else {
		i.Text += ", " + clock
	}
	return i
}

// day is a date without its time.
func (s *tongue) day(t time.Time) string {
	if s.chinese() {
		return t.Format("2006-01-02")
	}
	return t.Format("2 Jan 2006")
}

// unit puts a number before its unit; the two are never parted at the end of a
// line. Chinese writes words of time without a space.
func (s *tongue) unit(number, unit string) string {
	if translated := s.T(unit); translated != unit {
		return number + nbsp + translated
	}
	return number + nbsp + unit
}

// percent is 48 %, in Chinese 48%.
func (s *tongue) percent(n int) string {
	if s.chinese() {
		return strconv.Itoa(n) + "%"
	}
	return strconv.Itoa(n) + nbsp + "%"
}

// age is "18 min"; ages over two days are in days.
func (s *tongue) age(d time.Duration) string {
	number, unit, _ := strings.Cut(lpmos.FormatDuration(d), " ")
	n, _ := strconv.Atoi(number)
	return s.unit(count(n), unit)
}

// A number and its unit are never parted at the end of a line.
const nbsp = "\u00a0"

func (s *tongue) size(n int64) string {
	if n <= 0 {
		return s.T("unknown")
	}
	if tb := float64(n) / 1e12; tb >= 0.9995 && tb < 100 {
		// Labels of large disks have two decimals: 1.92 TB, 7.68 TB.
		digits := strconv.FormatFloat(tb, 'f', 2, 64)
		return strings.TrimSuffix(strings.TrimRight(digits, "0"), ".") + nbsp + "TB"
	}
	return strings.ReplaceAll(lpmos.FormatBytes(n), " ", nbsp)
}

// gib is for memory, which is sold in powers of two. The kernel shows a little
// less than is installed, so half a unit is rounded up.
func (s *tongue) gib(n int64) string {
	if n <= 0 {
		return s.T("unknown")
	}
	g := float64(n) / (1 << 30)
	if g < 10 {
		return strings.TrimSuffix(strconv.FormatFloat(g, 'f', 1, 64), ".0") + nbsp + "GiB"
	}
	return count(int(g+0.5)) + nbsp + "GiB"
}

func (s *tongue) speed(bytesPerSecond int64) string {
	if bytesPerSecond <= 0 {
		return s.T("unknown")
	}
	if bytesPerSecond < 50_000 { // 0.0 MB/s says nothing
		return s.size(bytesPerSecond) + "/s"
	}
	mb := float64(bytesPerSecond) / 1e6
	if mb < 9.95 {
		return strconv.FormatFloat(mb, 'f', 1, 64) + nbsp + "MB/s"
	}
	return count(int(mb+0.5)) + nbsp + "MB/s"
}

// count writes thousands with a comma.
func count(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// short is how people say a task id.
func short(id string) string {
	if len(id) < 8 {
		return id
	}
	return id[:8]
}

// sentence gives a message a capital and a full stop.
func sentence(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return ""
	}
	r, n := utf8.DecodeRuneInString(s)
	s = string(unicode.ToUpper(r)) + s[n:]
	if !strings.HasSuffix(s, ".") && !strings.HasSuffix(s, "?") {
		s += "."
	}
	return s
}

var statusWords = map[lpmos.Status]string{
	lpmos.Pending: "Pending", lpmos.AwaitingApproval: "Awaiting approval", lpmos.Approved: "Approved",
	lpmos.Installing: "Installing", lpmos.Verifying: "Verifying", lpmos.Completed: "Completed",
	lpmos.Failed: "Failed", lpmos.Rejected: "Rejected", lpmos.Canceled: "Canceled",
}

func (s *tongue) statusWord(status lpmos.Status) string {
	if word, ok := statusWords[status]; ok {
		return s.T(word)
	}
	return string(status)
}

// theme is the preference of this browser; "" follows its system.
func theme(r *http.Request) string {
	if c, err := r.Cookie("lpmos_theme"); err == nil && (c.Value == "light" || c.Value == "dark") {
		return c.Value
	}
	return ""
}

// preferences stores what concerns this browser only and goes back. A value
// that is none of the choices forgets what was chosen.
func (w *Web) preferences(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	for name, choices := range map[string][]string{"theme": {"light", "dark"}, "lang": tagNames} {
		if r.PostForm.Has(name) {
			value := r.PostForm.Get(name)
			if !slices.Contains(choices, value) {
				value = ""
			}
			storePreference(rw, r, name, value)
		}
	}
	storeColumns(rw, r)
	if err := storeView(rw, r); err != nil {
		w.fail(rw, r, err)
		return
	}
	http.Redirect(rw, r, localPath(r.PostForm.Get("return")), http.StatusSeeOther)
}

// storePreference keeps a choice in this browser; "" forgets it.
func storePreference(rw http.ResponseWriter, r *http.Request, name, value string) {
	c := &http.Cookie{Name: "lpmos_" + name, Value: value, Path: "/", MaxAge: 400 * 24 * 3600,
		HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode}
	if value == "" {
		c.MaxAge = -1
	}
	http.SetCookie(rw, c)
}

// localPath lets a form say where to go afterwards without letting it leave
// the site: browsers read //host and /\host as another host.
func localPath(s string) string {
	if len(s) < 1 || s[0] != '/' || len(s) > 1 && (s[1] == '/' || s[1] == '\\') || strings.ContainsAny(s, "\r\n\t") {
		return "/dashboard"
	}
	return s
}

// MaxFormBytes bounds a submitted form: 64 SSH keys and notes fit.
const MaxFormBytes = 1 << 20

func readForm(rw http.ResponseWriter, r *http.Request) bool {
	r.Body = http.MaxBytesReader(rw, r.Body, MaxFormBytes)
	if err := r.ParseForm(); err != nil {
		http.Error(rw, "The form could not be read. Nothing was changed.", http.StatusBadRequest)
		return false
	}
	return true
}
