package web

import (
	"html/template"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
)

// momentView is one thing that happened to a task.
type momentView struct {
	At     time.Time
	Status lpmos.Status // of the task from then on; "" where it stayed as it was
	Icon   string
	Text   template.HTML
	Note   string
	Gap    string // how long nothing had happened
	Long   bool   // longer than anybody wants to wait
}

// longGap is worth seeing at a glance: a stage or a boot takes less.
const longGap = 15 * time.Minute

// mostMoments bounds the timeline: a task that is retried for weeks has more.
const mostMoments = 200

// timeline is everything that happened from creation to call home, oldest
// first, with the time between. Of an install that is under way or was, the
// stages are in it as the machine's own log tells them, if its clock is sane.
// now is where a live task stands; nil for one that has ended.
func (w *Web) timeline(t lpmos.Task, events []lpmos.Event, began map[lpmos.Stage]time.Time) (out []momentView, now *momentView) {
	for _, e := range events {
		v := momentView{At: e.At, Status: e.To, Icon: string(e.To), Text: w.happened(e)}
		if e.Cause == lpmos.CausePermitGranted {
			v.Icon = "key"
		}
		if e.Message != "" && !repeats(e) {
			v.Note = w.Said(e.Message)
		}
		out = append(out, v)
	}
	if len(events) > 0 {
		first, last := events[0].At, w.cfg.Now().Add(time.Minute)
		permit := time.Time{}
		for _, e := range events {
			if e.Cause == lpmos.CausePermitGranted || e.Cause == lpmos.CauseNextAttempt {
				permit = e.At
			}
		}
		for _, s := range lpmos.StageWeights {
			at := began[s.Stage]
			// Before the permit was granted there is no stage: such a clock is wrong.
			if at.Before(first) || at.After(last) || permit.IsZero() || at.Before(permit.Add(-time.Minute)) {
				continue
			}
			out = append(out, momentView{At: at, Icon: "write", Text: w.rich("Stage %s of 4, %s, began.", strconv.Itoa(s.Stage.Number()), w.stageWord(s.Stage))})
		}
	}
	slices.SortStableFunc(out, func(a, b momentView) int { return a.At.Compare(b.At) })
	for i := 1; i < len(out); i++ {
		gap := out[i].At.Sub(out[i-1].At)
		if gap >= time.Second {
			out[i].Gap, out[i].Long = w.T("%s later", w.took(gap)), gap >= longGap
		}
	}
	if len(out) > mostMoments {
		out = slices.Concat(out[:1], out[len(out)-mostMoments+1:])
	}
	if t.Status.Live() && len(out) > 0 {
		age := w.cfg.Now().Sub(out[len(out)-1].At)
		if p := t.Progress; t.Status == lpmos.Installing && p != nil && w.cfg.Now().Sub(p.UpdatedAt) <= staleAfter {
			return out, &momentView{Icon: "installing", Text: w.rich("Stage %s of 4, %s, goes on.", strconv.Itoa(p.Stage.Number()), w.stageWord(p.Stage))}
		}
		now = &momentView{Status: t.Status, Icon: "clock", Text: w.rich("Nothing else has happened for %s.", w.age(age)), Long: age >= longGap}
	}
	return out, now
}

// happened is what an event says, with who caused it where that was a person.
func (w *Web) happened(e lpmos.Event) template.HTML {
	text := w.T("%s.", w.causeWord(e.Cause))
	if e.Attempt > 1 && (e.Cause == lpmos.CauseNextAttempt || e.Cause == lpmos.CauseRetried) {
		text = w.T("%s: attempt %s.", w.causeWord(e.Cause), strconv.Itoa(e.Attempt))
	}
	switch e.By {
	case "", "agent", "orchestrator":
		return w.rich("%s", text)
	}
	if e.Peer != "" {
		return w.rich("%s By %s, from %s.", text, strong(w.who(e.By)), e.Peer)
	}
	return w.rich("%s By %s.", text, strong(w.who(e.By)))
}

// repeats reports whether an event's message says no more than its cause.
func repeats(e lpmos.Event) bool {
	switch e.Cause {
	case lpmos.CauseCreated, lpmos.CauseHardwareReported, lpmos.CausePermitGranted, lpmos.CauseResultReported, lpmos.CauseCalledHome:
		return strings.HasSuffix(e.Message, ".") && len(e.Message) < 100
	}
	return false
}

// stagesBegan reads from the agent's log when each stage began last, by the
// machine's own clock.
func stagesBegan(lines []string) map[lpmos.Stage]time.Time {
	out := map[lpmos.Stage]time.Time{}
	for _, l := range lines {
		head, rest, ok := strings.Cut(l, " ")
		if !ok || !strings.Contains(rest, `msg="stage begins"`) {
			continue
		}
		_, stage, _ := strings.Cut(rest, "stage=")
		stage, _, _ = strings.Cut(stage, " ")
		at, err := time.Parse(time.RFC3339Nano, strings.TrimPrefix(head, "time="))
		if err != nil || !lpmos.Stage(stage).Valid() {
			continue
		}
		// A later attempt begins at the first stage again.
		for s := range out {
			if s.Number() >= lpmos.Stage(stage).Number() {
				delete(out, s)
			}
		}
		out[lpmos.Stage(stage)] = at
	}
	return out
}
