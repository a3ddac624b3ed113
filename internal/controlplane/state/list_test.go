package state

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

// zoo is a handful of tasks that differ in everything a query can ask for. Now
// is one day after epoch.
func zoo(t *testing.T) *feed {
	t.Helper()
	task := func(n int, status lpmos.Status, over map[string]any) []store.Change {
		m := map[string]any{
			"task_id": id(n), "region_id": "dc1", "target_mac": fmt.Sprintf("52:54:00:00:00:%02x", n), "os_type": "debian", "os_version": "12", "arch": "amd64",
			"hostname": fmt.Sprintf("host-%d", n), "attempt": 1, "created_at": epoch, "updated_at": epoch, "created_by": "alice",
		}
		for k, v := range over {
			m[k] = v
		}
		return []store.Change{part(n, store.KindMetadata, m), part(n, store.KindStatus, status)}
	}
	at := func(ago time.Duration) time.Time { return epoch.Add(24*time.Hour - ago) }
	f := newFeed(t, slices.Concat(
		task(1, lpmos.Pending, map[string]any{"created_at": at(10 * time.Minute), "updated_at": at(10 * time.Minute)}),
		task(2, lpmos.Pending, map[string]any{"created_at": at(3 * time.Hour), "updated_at": at(3 * time.Hour), "region_id": "dc10", "hostname": "web"}),
		task(3, lpmos.Failed, map[string]any{"created_at": at(20 * time.Hour), "updated_at": at(time.Hour), "attempt": 3, "os_type": "rocky", "os_version": "9.4", "batch_id": "0bad0000-0000-4000-8000-000000000000"}),
		task(4, lpmos.Installing, map[string]any{"created_at": at(time.Hour), "updated_at": at(30 * time.Minute), "attempt": 2, "created_by": "Bob B"}),
		task(5, lpmos.Completed, map[string]any{"created_at": at(12 * time.Hour), "updated_at": at(11 * time.Hour), "region_id": "fra-1", "hostname": "web-5", "claims": []string{"52:54:00:00:00:05", "aa:bb:cc:dd:ee:05"}}),
	)...)
	f.s.now = func() time.Time { return epoch.Add(24 * time.Hour) }
	f.send(false,
		part(3, store.KindError, lpmos.Failure{Code: "disk_missing", Cause: "The disk is gone.", Stage: lpmos.Partitioning}),
		part(5, store.KindHardware, lpmos.Hardware{System: lpmos.System{Serial: "SRV-ABC", Manufacturer: "Acme", Product: "R7"}, Disks: []lpmos.Disk{{Serial: "DISK9", Model: "P5 Pro"}}}),
		part(5, store.KindApproval, lpmos.Approval{By: "carol"}),
		report(4, 2, store.KindReportProgress, &lpmos.Progress{TaskID: id(4), Attempt: 2, Stage: lpmos.Downloading, Percentage: 40, UpdatedAt: at(time.Minute)}),
	)
	return f
}

func TestLanguage(t *testing.T) {
	f := zoo(t)
	for text, want := range map[string]string{
		"":                               "1 4 2 5 3",
		"status:pending":                 "1 2",
		"status:pending,failed":          "1 2 3",
		"!status:pending,failed":         "4 5",
		"status:pending status:failed":   "",
		"region:dc1":                     "1 4 3",
		"region:dc1*":                    "1 4 2 3",
		"region:dc*,fra-1 !region:dc10":  "1 4 5 3",
		"region:nowhere":                 "",
		"host:web":                       "2 5",
		"host:=web":                      "2",
		"host:web*,st*":                  "2 5",
		"host:st,eb*":                    "1 4 3",
		"host:=web*":                     "",
		"!host:host-*":                   "2 5",
		"!host:web":                      "1 4 3",
		"mac:520005":                     "",
		"mac:54-00-00-00-05":             "5",
		"mac:AABB.CCDD":                  "5",
		"mac:=aabbccddee05":              "5",
		"mac:=aabbccddee0":               "",
		"serial:abc":                     "5",
		"serial:disk9":                   "5",
		"serial:=srv-ab":                 "",
		`model:"acme r7"`:                "5",
		"model:p5":                       "5",
		"os:rocky":                       "3",
		"os:debian/12":                   "1 4 2 5",
		"os:=debian":                     "1 4 2 5",
		"os:=deb":                        "",
		"version:9":                      "3",
		"version:=9":                     "",
		"version:9.4,12":                 "1 4 2 5 3",
		"stage:downloading":              "4",
		"stage:partitioning":             "3",
		"attempt:2":                      "4",
		"attempt:>1":                     "4 3",
		"attempt:<=1,>=3":                "1 2 5 3",
		"error:disk":                     "3",
		"error:=disk_missing":            "3",
		"error:=disk":                    "",
		"error:gone":                     "3",
		"gone":                           "3",
		"by:bob":                         "4",
		"by:carol":                       "5",
		`by:="bob b"`:                    "4",
		"id:" + id(2):                    "2",
		"id:550e8400-e29b-41d4-a716":     "1 4 2 5 3",
		"id:=550e8400":                   "",
		"batch:0bad":                     "3",
		"!batch:0bad":                    "1 4 2 5",
		"after:2h":                       "1 4",
		"before:2h":                      "2 5 3",
		"after:1h before:30m":            "4",
		"created:<2h":                    "1 4",
		"created:>11h,<15m":              "1 5 3",
		"created:2h":                     "1 4",
		"updated:<=1h":                   "1 4 3",
		"updated:>2h":                    "2 5",
		"before:2026-01-02":              "",
		"before:2026-01-02T10:00":        "3",
		"after:2026-01-03":               "1 4 2",
		"created:<2026-01-03":            "5 3",
		"created:>=2026-01-03T00:04:05Z": "1 4 2",
		"is:live":                        "1 4 2",
		"is:ended":                       "5 3",
		"!is:live":                       "5 3",
		"is:stuck":                       "2",
		"is:stuck,ended":                 "2 5 3",
		"web,rocky":                      "2 5 3",
		"-web dc1":                       "1 4 3", // host 2 in dc10 holds web
		"aa:bb:cc":                       "5",
	} {
		q := api.Query{Filter: words(t, text), Groups: len(text)%2 == 0}
		var got []string
		for _, x := range f.s.Tasks(q).Tasks {
			got = append(got, strings.TrimLeft(x.ID[len(x.ID)-2:], "0"))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q finds %q; want %q", text, strings.Join(got, " "), want)
		}
	}
}

func TestStuckCountsFromTheNewestProgress(t *testing.T) {
	f := zoo(t)
	stuck := api.Query{Filter: words(t, "is:stuck status:installing")}
	if n := f.s.Tasks(stuck).Total; n != 0 {
		t.Errorf("an install that moved a minute ago is stuck (%d)", n)
	}
	f.s.now = func() time.Time { return epoch.Add(24*time.Hour + 5*time.Minute) }
	if n := f.s.Tasks(stuck).Total; n != 1 {
		t.Errorf("an install that stands still for six minutes is not stuck (%d)", n)
	}
}

func TestGroups(t *testing.T) {
	f := zoo(t)
	p := f.s.Tasks(api.Query{Filter: words(t, "status:pending,installing !region:fra-1"), Limit: 1, Groups: true})
	want := api.Groups{
		Status: map[lpmos.Status]int{lpmos.Pending: 2, lpmos.Installing: 1, lpmos.Failed: 1, lpmos.Completed: 0, lpmos.AwaitingApproval: 0, lpmos.Approved: 0, lpmos.Verifying: 0, lpmos.Rejected: 0, lpmos.Canceled: 0},
		Region: map[string]int{"dc1": 2, "dc10": 1}, OS: map[string]int{"debian": 3},
	}
	if fmt.Sprint(*p.Groups) != fmt.Sprint(want) || p.Total != 3 || len(p.Tasks) != 1 {
		t.Errorf("groups of %d = %+v; want %+v", p.Total, *p.Groups, want)
	}
	if q := f.s.Tasks(api.Query{Statuses: []lpmos.Status{lpmos.Failed}, Groups: true}); q.Groups.Status[lpmos.Pending] != 2 || q.Total != 1 {
		t.Errorf("counts of the other views = %v of %d", q.Groups.Status, q.Total)
	}
	if got := f.s.RegionCounts("dc1"); got[lpmos.Pending] != 1 || got[lpmos.Failed] != 1 || len(f.s.RegionCounts("nowhere")) != 0 {
		t.Errorf("counts of dc1 = %v", got)
	}
}

func TestSummaries(t *testing.T) {
	f := zoo(t)
	target := lpmos.DiskRef{Serial: "d", SizeBytes: 7}
	f.send(false, part(1, store.KindStatus, lpmos.AwaitingApproval), part(1, store.KindHardware, lpmos.Hardware{System: lpmos.System{Serial: "S1", Product: "X"}}),
		part(1, store.KindPlan, lpmos.Plan{Effect: lpmos.Effect{Target: target}, Observed: []lpmos.ObservedDisk{{Disk: lpmos.DiskRef{SizeBytes: 1}}, {Disk: target, Unknown: "read error"}}}))
	p := f.s.Tasks(api.Query{})
	if len(p.Rows) != len(p.Tasks) || p.Tasks[0].Hardware != nil || p.Tasks[0].Plan != nil {
		t.Fatalf("%d rows of %d tasks", len(p.Rows), len(p.Tasks))
	}
	if r := p.Rows[0]; r.Serial != "S1" || r.Model != "X" || !r.Planned || r.Target == nil || r.Target.Unknown != "read error" {
		t.Errorf("row = %+v", r)
	}
	if r := p.Rows[3]; r.Serial != "SRV-ABC" || r.Manufacturer != "Acme" || r.Planned {
		t.Errorf("row of a task that ended = %+v", r)
	}
}

// TestOrders: whatever the order and the filter, pages read one after the other
// by cursor or by offset hold what sorting everything gives, while tasks come
// and go between them.
func TestOrders(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	statuses := lpmos.Statuses
	random := func(n int) []store.Change {
		return []store.Change{part(n, store.KindMetadata, map[string]any{
			"task_id": id(n), "region_id": []string{"dc1", "dc2", "fra"}[rng.IntN(3)], "target_mac": "52:54:00:00:00:01", "os_type": []string{"debian", "rocky"}[rng.IntN(2)], "os_version": "1",
			"hostname": fmt.Sprintf("host-%d", rng.IntN(50)), "attempt": 1,
			"created_at": epoch.Add(time.Duration(rng.IntN(40)) * time.Second), "updated_at": epoch.Add(time.Duration(rng.IntN(40)) * time.Minute),
		}), part(n, store.KindStatus, statuses[rng.IntN(len(statuses))]), part(n, store.KindProgress, progress(n, 1, rng.IntN(5)))}
	}
	var all []store.Change
	for n := range 300 {
		all = append(all, random(n)...)
	}
	f := newFeed(t, all...)
	for n := range 40 { // some change their place
		f.send(false, random(n)[1:]...)
	}
	for n := 40; n < 60; n++ {
		f.send(false, part(n, store.KindMetadata, nil), part(n, store.KindStatus, nil))
	}
	reference := func(q api.Query) []string {
		var ts []lpmos.Task
		for n := range 300 {
			if x, ok := f.s.Task(id(n)); ok && (len(q.Statuses) == 0 || slices.Contains(q.Statuses, x.Status)) {
				ts = append(ts, x)
			}
		}
		key := map[string]func(a, b lpmos.Task) int{
			"":        func(a, b lpmos.Task) int { return b.CreatedAt.Compare(a.CreatedAt) },
			"created": func(a, b lpmos.Task) int { return a.CreatedAt.Compare(b.CreatedAt) },
			"updated": func(a, b lpmos.Task) int { return a.UpdatedAt.Compare(b.UpdatedAt) },
			"status": func(a, b lpmos.Task) int {
				return cmp.Compare(slices.Index(statuses, a.Status), slices.Index(statuses, b.Status))
			},
			"host":     func(a, b lpmos.Task) int { return cmp.Compare(a.Hostname, b.Hostname) },
			"region":   func(a, b lpmos.Task) int { return cmp.Compare(a.RegionID, b.RegionID) },
			"os":       func(a, b lpmos.Task) int { return cmp.Compare(a.OSType, b.OSType) },
			"progress": func(a, b lpmos.Task) int { return cmp.Compare(a.Progress.Percentage, b.Progress.Percentage) },
		}[q.Sort.By]
		slices.SortFunc(ts, func(a, b lpmos.Task) int {
			c := key(a, b)
			if q.Sort.Desc {
				c = -c
			}
			return cmp.Or(c, b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
		})
		var out []string
		for _, x := range ts {
			out = append(out, x.ID)
		}
		return out
	}
	ids := func(p api.Page) (out []string) {
		for _, x := range p.Tasks {
			out = append(out, x.ID)
		}
		return out
	}
	for _, by := range append([]string{"", "-created"}, append(api.Sorts, "-updated", "-status", "-host", "-region", "-os", "-progress")...) {
		sort, err := api.ParseSort(by)
		if err != nil {
			t.Fatal(err)
		}
		for _, statuses := range [][]lpmos.Status{nil, {lpmos.Failed, lpmos.Pending}} {
			q := api.Query{Sort: sort, Statuses: statuses, Limit: 7}
			want := reference(q)
			var got []string
			for range 100 {
				p := f.s.Tasks(q)
				if p.Total != len(want) {
					t.Fatalf("sort %q: total %d; want %d", by, p.Total, len(want))
				}
				got = append(got, ids(p)...)
				if q.Cursor = p.NextCursor; q.Cursor == "" {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("sort %q of %v by cursor differs from sorting everything", by, statuses)
			}
			q.Cursor, got = "", nil
			for ; q.Offset < len(want)+7; q.Offset += 7 {
				got = append(got, ids(f.s.Tasks(q))...)
			}
			if !slices.Equal(got, want) {
				t.Errorf("sort %q of %v by offset differs from sorting everything", by, statuses)
			}
			if all, n := f.s.IDs(api.Query{Sort: sort, Statuses: statuses}); !slices.Equal(all, want) || n != len(want) {
				t.Errorf("sort %q: IDs differ", by)
			}
			few := min(5, len(want))
			if some, n := f.s.IDs(api.Query{Sort: sort, Statuses: statuses, Limit: 5}); !slices.Equal(some, want[:few]) || n != len(want) {
				t.Errorf("sort %q: the first 5 IDs are %v of %d", by, some, n)
			}
			if p := f.s.Rows(append([]string{"gone"}, want...)); !slices.Equal(ids(p), want) || len(p.Rows) != len(want) || p.Total != len(want) {
				t.Errorf("sort %q: Rows differ", by)
			}
			// The last task of a page goes away, and one comes: the next page
			// begins where it would have.
			q.Offset = 0
			first := f.s.Tasks(q)
			gone := first.Tasks[6].ID
			n := -1
			for i := range 300 {
				if id(i) == gone {
					n = i
				}
			}
			x, _ := f.s.Task(gone)
			back := append([]store.Change{}, part(n, store.KindMetadata, map[string]any{
				"task_id": x.ID, "region_id": x.RegionID, "target_mac": x.TargetMAC.String(), "os_type": x.OSType, "os_version": "1", "hostname": x.Hostname, "attempt": 1,
				"created_at": x.CreatedAt, "updated_at": x.UpdatedAt,
			}), part(n, store.KindStatus, x.Status), part(n, store.KindProgress, x.Progress))
			f.send(false, part(n, store.KindMetadata, nil), part(n, store.KindStatus, nil))
			q.Cursor = first.NextCursor
			if got := ids(f.s.Tasks(q)); !slices.Equal(got, want[7:14]) {
				t.Errorf("sort %q: the page after a deleted task does not go on where the first ended", by)
			}
			f.send(false, back...)
		}
	}
	if f.s.ValidCursor("nonsense", api.Sort{}) || !f.s.ValidCursor("", api.Sort{}) {
		t.Error("ValidCursor is wrong")
	}
	p := f.s.Tasks(api.Query{Limit: 5})
	if f.s.ValidCursor(p.NextCursor, api.Sort{By: "host"}) || !f.s.ValidCursor(p.NextCursor, api.Sort{}) {
		t.Error("the cursor of one order is good for another")
	}
}

func TestParseSort(t *testing.T) {
	for _, s := range []string{"", "host", "-created"} {
		if got, err := api.ParseSort(s); err != nil || got.String() != s {
			t.Errorf("ParseSort(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"-", "size", "--host", "Host"} {
		if _, err := api.ParseSort(s); err == nil || !strings.Contains(err.Error(), "created, updated, status") {
			t.Errorf("ParseSort(%q) = %v; want to hear what there is", s, err)
		}
	}
}

// FuzzList reads what stands in an address: the order, where the page before
// ended, and what is searched for.
func FuzzList(f *testing.F) {
	f.Add("-host", base64.RawURLEncoding.EncodeToString([]byte("1\x00-host\x00web-1\x007\x00id")), "!state:failed 52-54-00-00-00-01")
	f.Add("progress", base64.RawURLEncoding.EncodeToString([]byte("1\x00progress\x0055\x007\x00id")), "--")
	f.Fuzz(func(t *testing.T, by, cursor, search string) {
		sort, err := api.ParseSort(by)
		if err != nil {
			return
		}
		if p, ok := parseCursor(cursor, sort); ok && strings.Contains(p.id, cursorSep) {
			t.Fatalf("the cursor %q has the place %+v", cursor, p)
		}
		if got := parseTerms(search); len(got) != len(strings.Fields(strings.ToLower(search))) {
			t.Fatalf("%q has the terms %+v", search, got)
		}
	})
}
