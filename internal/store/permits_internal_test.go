package store

import (
	"testing"
	"time"
)

// TestPermitsStaySmall grants as many permits in a minute as a limit may allow: what
// is stored of them must fit into etcd, and each is written anew with the next.
func TestPermitsStaySmall(t *testing.T) {
	began := time.Date(2026, 11, 28, 10, 0, 0, 500e6, time.UTC)
	const all = 100_000
	var p Permits
	for i := range all {
		p = p.and(began.Add(time.Duration(i) * time.Minute / all))
	}
	if n := len(encode(p)); n > 4<<10 {
		t.Errorf("%d permits of a minute are %d bytes", all, n)
	}
	end := began.Add(time.Minute)
	if n := p.Lately(end); n != all {
		t.Errorf("of %d permits of the last minute %d count", all, n)
	}
	if n := p.Lately(end.Add(30 * time.Second)); n < all/2 || n > all*52/100 {
		t.Errorf("half a minute later %d count", n)
	}
	if n := p.Lately(end.Add(62 * time.Second)); n != 0 {
		t.Errorf("a minute later %d count", n)
	}
	// By a clock that was minutes ahead, and by one that is.
	if n := p.Lately(began.Add(-2 * time.Minute)); n != 0 {
		t.Errorf("of permits of the future %d count", n)
	}
	if p = p.and(end.Add(5 * time.Minute)); p.Lately(end.Add(5*time.Minute)) != 1 || len(p.Seconds) != 1 {
		t.Errorf("what was long ago is kept: %+v", p)
	}
}
