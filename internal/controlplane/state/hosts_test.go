package state

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

// Host names that come one after the other, downwards so that there is soon no
// number left between two, stand in their order all the same.
func TestHostsThatComeLater(t *testing.T) {
	task := func(n int, host string) []store.Change {
		return []store.Change{part(n, store.KindMetadata, map[string]any{
			"task_id": id(n), "region_id": "dc1", "target_mac": "52:54:00:00:00:01", "os_type": "debian", "os_version": "1", "arch": "amd64",
			"hostname": host, "attempt": 1, "created_at": epoch, "updated_at": epoch,
		}), part(n, store.KindStatus, lpmos.Pending)}
	}
	f := newFeed(t, slices.Concat(task(0, "a"), task(1, "m"), task(2, "m"), task(3, "z"))...)
	want := []string{"a", "m", "m", "z"}
	rng := rand.New(rand.NewPCG(1, 2))
	for n := 4; n < 300; n++ {
		host := fmt.Sprintf("n%03d", 999-n)
		if n%3 == 0 {
			host = fmt.Sprintf("r%03d", rng.IntN(50))
		}
		f.send(false, task(n, host)...)
		want = append(want, host)
	}
	slices.Sort(want)
	var got []string
	for _, x := range f.s.Tasks(api.Query{Sort: api.Sort{By: "host"}, Limit: 1000}).Tasks {
		got = append(got, x.Hostname)
	}
	if !slices.Equal(got, want) {
		t.Errorf("by host: %q; want %q", got, want)
	}
}
