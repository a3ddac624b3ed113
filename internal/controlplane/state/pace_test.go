package state

import (
	"slices"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

func TestPace(t *testing.T) {
	now := epoch.Add(100 * time.Hour)
	f := newFeed(t, ran(1, "X", lpmos.Completed, now.Add(-30*time.Minute), 10, 100, 50, 20, 60)...)
	f.s.now = func() time.Time { return now }
	f.send(false, ran(2, "X", lpmos.Completed, now.Add(-3*time.Hour), 10, 200, 50, 20, 60)...)
	f.send(false, ran(3, "X", lpmos.Completed, now.Add(-3*time.Hour), 10, 300, 50, 20, 60)...)
	f.send(false, ran(4, "X", lpmos.Completed, now.Add(-25*time.Hour), 1, 1, 1, 1, 1)...)
	f.send(false, ran(5, "X", lpmos.Failed, now.Add(-time.Hour), 1)...)
	f.send(false, ran(6, "X", lpmos.Installing, now.Add(-time.Minute), 5, 60)...)
	p := progress(6, 1, 52)
	p.UpdatedAt, p.Details = now.Add(-time.Second), &lpmos.ProgressDetails{BytesTotal: 1000, BytesDownloaded: 500, BytesPerSecond: 70}
	f.send(false, report(6, 1, store.KindReportProgress, p))
	want := api.Pace{Completed: 3, First: 3, Half: sec(340), BytesPerSecond: 70}
	want.Hours[api.PaceHours-1], want.Hours[api.PaceHours-3] = 1, 2
	if got := f.s.Pace(); got != want {
		t.Errorf("Pace = %+v; want %+v", got, want)
	}
	if got := f.s.PaceOf([]string{"dc1"}); got != want {
		t.Errorf("Pace of the one region = %+v; want %+v", got, want)
	}
	if got := f.s.PaceOf(nil); got != (api.Pace{}) {
		t.Errorf("Pace of no region = %+v; want nothing", got)
	}
	now = now.Add(time.Minute)
	if got := f.s.Pace(); got.BytesPerSecond != 0 {
		t.Errorf("a minute after the last report %d bytes/s are downloaded; want 0, nobody knows", got.BytesPerSecond)
	}
}

func TestTrend(t *testing.T) {
	f := newFeed(t, made(1, "dc1", lpmos.Installing)...)
	if got := f.s.Trend(id(1)); got != nil {
		t.Errorf("before any report = %v", got)
	}
	n := 0
	say := func(at time.Duration, speed int64) {
		n++
		p := progress(1, 1, 30)
		p.UpdatedAt, p.Details = epoch.Add(at), &lpmos.ProgressDetails{BytesTotal: 1 << 30, BytesDownloaded: int64(n), BytesPerSecond: speed}
		f.send(false, report(1, 1, store.KindReportProgress, p))
	}
	say(0, 5)
	say(sec(2), 99) // in the stretch of the first
	say(sec(10), 6)
	say(sec(41), 7) // two stretches without a word
	if got, want := f.s.Trend(id(1)), []int64{5, 6, 0, 0, 7}; !slices.Equal(got, want) {
		t.Errorf("Trend = %v; want %v", got, want)
	}
	say(time.Hour, 8)
	if got := f.s.Trend(id(1)); len(got) != api.TrendLength || got[api.TrendLength-1] != 8 || got[0] != 0 {
		t.Errorf("after an hour without a word = %v; want %d figures, the last 8", got, api.TrendLength)
	}
	f.send(false, part(1, store.KindStatus, lpmos.Verifying))
	if got := f.s.Trend(id(1)); got != nil {
		t.Errorf("of an install that is over = %v", got)
	}
}
