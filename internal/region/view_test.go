package region

import (
	"encoding/json"
	"log/slog"
	"testing"
	"testing/synctest"
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

// TestViewReaches waits for what was written before a session.
func TestViewReaches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newView("dc1", slog.New(slog.DiscardHandler))
		reached := make(chan bool, 1)
		go func() { reached <- v.reach(t.Context(), 7, nil) }()
		synctest.Wait()
		for rev := range int64(7) {
			v.apply(store.Batch{Reset: rev == 0, Rev: rev})
			synctest.Wait()
		}
		v.mu.Lock()
		v.config = true
		v.move()
		v.mu.Unlock()
		synctest.Wait()
		select {
		case <-reached:
			t.Error("reached revision 7 with 6")
		default:
		}
		v.apply(store.Batch{Rev: 7})
		if !<-reached {
			t.Error("reach = false; want true once the revision is there")
		}
		lost := make(chan struct{})
		close(lost)
		if v.reach(t.Context(), 8, lost) {
			t.Error("reach = true for a session that was lost")
		}
	})
}

// TestWaitersAreForgotten asks about tasks whose order is gone, as agents do
// that have just been told so.
func TestWaitersAreForgotten(t *testing.T) {
	v := newView("dc1", slog.New(slog.DiscardHandler))
	order := func(id string, value []byte) store.Change {
		return store.Change{Key: store.Key{Kind: store.KindOrder, Region: "dc1", TaskID: id}, Value: value}
	}
	for range 1000 {
		id := lpmos.NewTaskID()
		appears := v.Changed(id)
		v.apply(store.Batch{Changes: []store.Change{order(id, []byte("{}"))}})
		goes := v.Changed(id)
		v.apply(store.Batch{Changes: []store.Change{order(id, nil)}})
		for what, ch := range map[string]<-chan struct{}{"appeared": appears, "went": goes} {
			select {
			case <-ch:
			default:
				t.Fatalf("nobody was told that an order %s", what)
			}
		}
		v.Changed(id)
	}
	if n := len(v.changed); n > 1 {
		t.Errorf("%d channels are kept of 1000 tasks that are gone", n)
	}
}
