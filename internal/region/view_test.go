package region

import (
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
)

func TestStaleDiscoveries(t *testing.T) {
	v := newView("dc1", slog.New(slog.DiscardHandler))
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	seen := func(n int, ago time.Duration) store.Change {
		d := lpmos.Discovered{MAC: lpmos.MAC{2, 0, 0, byte(n >> 16), byte(n >> 8), byte(n)}, SeenAt: now.Add(-ago)}
		b, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		return store.Change{Key: store.Key{Kind: store.KindDiscovered, Region: "dc1", MAC: d.MAC}, Value: b}
	}
	v.apply(store.Batch{Reset: true, Changes: []store.Change{seen(1, time.Hour), seen(2, 31*24*time.Hour), seen(3, 29*24*time.Hour), seen(4, 40*24*time.Hour)}})
	got := v.stale(now)
	if len(got) != 2 || got[0].MAC[5] != 4 || got[1].MAC[5] != 2 || !got[1].SeenAt.Equal(now.Add(-31*24*time.Hour)) {
		t.Errorf("stale = %+v; want the two that were not seen for 30 days, oldest first", got)
	}
	var many []store.Change
	for n := range maxDiscovered + 5 {
		many = append(many, seen(n, time.Duration(n)*time.Second))
	}
	v.apply(store.Batch{Reset: true, Changes: many})
	if got := v.stale(now); len(got) != 5 || !got[0].SeenAt.Equal(now.Add(-(maxDiscovered+4)*time.Second)) {
		t.Errorf("%d are stale of %d; want those seen longest ago over the bound", len(got), len(many))
	}
	c := seen(1, 0)
	c.Value = nil
	v.apply(store.Batch{Changes: []store.Change{c}})
	if got := v.stale(now); len(got) != 4 {
		t.Errorf("%d are stale once one is gone; want 4", len(got))
	}
}
