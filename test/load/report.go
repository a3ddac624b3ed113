package main

import (
	"bytes"
	"fmt"
	"html/template"
	"maps"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// plot is one figure: lines over seconds.
type plot struct {
	Title, Unit string
	Log         bool
	Aim         float64    // a horizontal line, 0 for none
	Band        [2]float64 // the seconds that were judged, 0 and 0 for none
	Lines       []line
}

type line struct {
	Name   string
	Points [][2]float64
}

const (
	plotWidth, plotHeight = 560, 220
	left, right, top, low = 56, 12, 28, 30
)

// svg draws a plot. Colours are classes, which the page's style sheet sets for
// light and dark.
func (p plot) svg() template.HTML {
	maxX, maxY, minY := 1.0, p.Aim*1.1, math.Inf(1)
	for _, l := range p.Lines {
		for _, pt := range l.Points {
			maxX, maxY = max(maxX, pt[0]), max(maxY, pt[1])
			if pt[1] > 0 {
				minY = min(minY, pt[1])
			}
		}
	}
	if math.IsInf(minY, 1) {
		minY = 0.1
	}
	if maxY <= 0 {
		maxY = 1
	}
	low10, high10 := math.Floor(math.Log10(minY)), math.Ceil(math.Log10(maxY))
	if high10 <= low10 {
		high10 = low10 + 1
	}
	step := niceStep(maxY / 4)
	maxY = math.Ceil(maxY/step) * step
	x := func(v float64) float64 { return left + v/maxX*(plotWidth-left-right) }
	y := func(v float64) float64 {
		part := v / maxY
		if p.Log {
			part = (math.Log10(max(v, math.Pow(10, low10))) - low10) / (high10 - low10)
		}
		return top + (1-part)*(plotHeight-top-low)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s"><text x="%d" y="16" class="title">%s</text>`, plotWidth, plotHeight,
		template.HTMLEscapeString(p.Title), left, template.HTMLEscapeString(p.Title+", "+p.Unit))
	if p.Band[1] > p.Band[0] {
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" class="band"/>`, x(p.Band[0]), top, x(min(p.Band[1], maxX))-x(p.Band[0]), plotHeight-top-low)
	}
	tick := func(v float64) {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" class="grid"/><text x="%d" y="%.1f" class="tick" text-anchor="end">%s</text>`,
			left, plotWidth-right, y(v), y(v), left-6, y(v)+4, number(v))
	}
	if p.Log {
		for e := low10; e <= high10; e++ {
			tick(math.Pow(10, e))
		}
	} else {
		for v := 0.0; v <= maxY*1.001; v += step {
			tick(v)
		}
	}
	xStep := niceStep(maxX / 6)
	for v := 0.0; v <= maxX; v += xStep {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" class="tick" text-anchor="middle">%s s</text>`, x(v), plotHeight-10, number(v))
	}
	if p.Aim > 0 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" class="aim"/><text x="%d" y="%.1f" class="tick" text-anchor="end">aim</text>`,
			left, plotWidth-right, y(p.Aim), y(p.Aim), plotWidth-right, y(p.Aim)-4)
	}
	for i, l := range p.Lines {
		var pts []string
		for _, pt := range l.Points {
			if !p.Log || pt[1] > 0 {
				pts = append(pts, fmt.Sprintf("%.1f,%.1f", x(pt[0]), y(pt[1])))
			}
		}
		fmt.Fprintf(&b, `<polyline points="%s" class="line l%d"/>`, strings.Join(pts, " "), i)
		if len(p.Lines) > 1 {
			fmt.Fprintf(&b, `<text x="%d" y="16" class="tick l%d" text-anchor="end">%s</text>`, plotWidth-right-(len(p.Lines)-1-i)*60, i, template.HTMLEscapeString(l.Name))
		}
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) //nolint:gosec // every text in it is escaped above or a number
}

func niceStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	e := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5, 10} {
		if v <= m*e {
			return m * e
		}
	}
	return 10 * e
}

func number(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.4gk", v/1000)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

func (r *result) plots() []plot {
	series := func(name string, value func(sample) float64) line {
		l := line{Name: name}
		for _, s := range r.Samples {
			l.Points = append(l.Points, [2]float64{s.At, value(s)})
		}
		return l
	}
	out := []plot{{
		Title: "Report to browser", Unit: "ms", Log: true, Aim: float64(r.P99.Milliseconds()),
		Lines: []line{series("p50", func(s sample) float64 { return s.P50 }), series("p99", func(s sample) float64 { return s.P99 })},
	}, {
		Title: "Messages to clients", Unit: "a second", Lines: []line{series("messages", func(s sample) float64 { return s.Messages })},
	}}
	if r.Machines > 0 {
		out = append(out, plot{Title: "Updates that reached a browser", Unit: "a second", Lines: []line{series("updates", func(s sample) float64 { return s.Updates })}})
	}
	aim := float64(r.scenario.RSS) / 1e6
	if r.RSSGrowth > 0 {
		aim = float64(r.RSS[0]+r.RSSGrowth) / 1e6
	}
	out = append(out, plot{Title: "Resident memory", Unit: "MB", Aim: aim, Lines: []line{series("RSS", func(s sample) float64 { return s.RSS }), series("no files", func(s sample) float64 { return s.Anon })}})
	if r.Machines > 0 {
		out = append(out, plot{Title: "Control plane", Unit: "processors", Lines: []line{series("cpu", func(s sample) float64 { return s.CPU })}})
	}
	if r.Goroutines[1] > 0 {
		out = append(out, plot{Title: "Goroutines of the control plane", Unit: "number", Lines: []line{series("goroutines", func(s sample) float64 { return s.Goroutines })}})
	}
	for i := range out {
		if r.SteadyAt > 0 {
			out[i].Band = [2]float64{r.SteadyAt, r.SteadyAt + r.Steady.Seconds()}
		}
	}
	return out
}

var page = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>LPMOS under load</title>
<style>
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5d6672;--line:#d5dae1;--paper:#fbfbfa;--card:#fff;--a:#1d6fb8;--b:#c2571a;--good:#18794e;--bad:#b42318;--band:#1d6fb80f}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa4b2;--line:#2f3742;--paper:#14181d;--card:#1b2027;--a:#6cb2f2;--b:#f2a26b;--good:#5fcf98;--bad:#ff8a7d;--band:#6cb2f214}}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:78rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.5rem 0 .75rem}p{color:var(--soft);margin:.25rem 0 1rem}
table{border-collapse:collapse;width:100%;font-size:.9375rem;font-variant-numeric:tabular-nums}th,td{text-align:left;padding:.3rem 1rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:500;color:var(--soft)}.n{text-align:right;white-space:nowrap}.ok,.fail{white-space:nowrap;font-weight:600}.ok{color:var(--good)}.fail{color:var(--bad)}
.tables{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:0 2.5rem;align-items:start;margin-top:1rem}.note{font-size:.875rem;margin:.5rem 0 0}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:1rem;margin-top:1rem}
svg{background:var(--card);border:1px solid var(--line);border-radius:8px;width:100%;height:auto}
.title{font:600 13px system-ui;fill:var(--ink)}.tick{font:11px system-ui;fill:var(--soft)}.grid{stroke:var(--line)}
.line{fill:none;stroke-width:1.75}.l0{stroke:var(--a)}.l1{stroke:var(--b)}text.l0{stroke:none;fill:var(--a)}text.l1{stroke:none;fill:var(--b)}
.band{fill:var(--band)}.aim{stroke:var(--bad);stroke-dasharray:5 4}
</style>
<h1>LPMOS under load</h1>
<p>{{.When}}. {{.Where}} Servers, simulated machines and sockets share the processors; everything is on loopback.</p>
<table><tr><th>scenario<th class="n">p50<th class="n">p95<th class="n">p99<th class="n">longest<th class="n">messages<th class="n">RSS at most<th>aims</tr>
{{range .Results}}<tr><td>{{.Title}}<td class="n">{{.P50}}<td class="n">{{.P95}}<td class="n">{{.P99}}<td class="n">{{.Max}}<td class="n">{{.Messages}}<td class="n">{{.RSS}}<td>{{if .Failed}}<span class="fail">{{.Failed}} missed</span>{{else}}<span class="ok">all met</span>{{end}}</tr>{{end}}</table>
{{range .Results}}<h2>{{.Title}}</h2>
<div class="plots">{{range .Plots}}{{.}}{{end}}</div>
{{if .Steady}}<p class="note">Shaded: the {{.Steady}} in which all machines install; the latencies above and below are of these.</p>{{end}}
<div class="tables"><table><tr><th>aim<th>wanted<th>found<th></tr>{{range .Verdicts}}<tr><td>{{.What}}<td>{{.Want}}<td>{{.Got}}<td>{{if .OK}}<span class="ok">met</span>{{else}}<span class="fail">missed</span>{{end}}</tr>{{end}}</table>
<table>{{range .Facts}}<tr><th>{{index . 0}}<td>{{index . 1}}</tr>{{end}}</table></div>{{end}}
</html>
`))

// report is a page that needs nothing from anywhere.
func report(results []*result) []byte {
	type section struct {
		Title, P50, P95, P99, Max, Messages, RSS, Steady string
		Failed                                           int
		Verdicts                                         []verdict
		Facts                                            [][2]string
		Plots                                            []template.HTML
	}
	data := struct {
		When, Where string
		Results     []section
	}{When: time.Now().Format("2 January 2006, 15:04 MST"), Where: where()}
	for _, r := range results {
		s := section{
			Title: r.Title, P50: millis(r.Window[0]), P95: millis(r.Window[1]), P99: millis(r.Window[2]), Max: millis(r.Window[3]),
			Messages: grouped(r.Messages), RSS: mega(r.RSS[1]), Verdicts: r.Verdicts,
		}
		if r.SteadyAt > 0 {
			s.Steady = fmt.Sprintf("%.0f s", r.Steady.Seconds())
		}
		for _, v := range r.Verdicts {
			if !v.OK {
				s.Failed++
			}
		}
		fact := func(what, format string, args ...any) {
			s.Facts = append(s.Facts, [2]string{what, fmt.Sprintf(format, args...)})
		}
		fact("taken", "%s", r.At.Format(time.RFC3339))
		if r.SetUp > 0 {
			fact("connections", "%s in %.1f s", grouped(int64(r.Clients+r.All)), r.SetUp.Seconds())
		}
		if r.Updates > 0 {
			fact("updates", "%.0f a second for %.0f s", r.Updates, r.Steady.Seconds())
			fact("report to browser in the whole run", "p50 %s, p95 %s, p99 %s, longest %s", millis(r.Whole[0]), millis(r.Whole[1]), millis(r.Whole[2]), millis(r.Whole[3]))
		}
		fact("RSS before the clients, most, after", "%s, %s, %s", mega(r.RSS[0]), mega(r.RSS[1]), mega(r.RSS[2]))
		if r.Anon > 0 {
			fact("of the most, no pages of files", "%s", mega(r.Anon))
		}
		if r.Etcd > 0 {
			fact("RSS of etcd, at most", "%s", mega(r.Etcd))
		}
		for _, name := range slices.Sorted(maps.Keys(r.CPU)) {
			fact("processors used: "+name, "%.2f", r.CPU[name])
		}
		for _, p := range r.plots() {
			s.Plots = append(s.Plots, p.svg())
		}
		data.Results = append(data.Results, s)
	}
	var b bytes.Buffer
	if err := page.Execute(&b, data); err != nil {
		panic(fmt.Sprintf("load: write report: %v", err))
	}
	return b.Bytes()
}

// grouped spells a number for people.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// where describes the computer, without its name.
func where() string {
	s := fmt.Sprintf("%d processors, %s %s/%s.", runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		s += " Load average at the end: " + strings.Join(strings.Fields(string(b))[:3], ", ") + "."
	}
	return s
}
