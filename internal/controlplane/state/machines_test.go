package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

func mac(n int) lpmos.MAC { return lpmos.MAC{0x52, 0x54, 0, 0, 0, byte(n)} }

func uuidOf(n int) string { return fmt.Sprintf("11111111-2222-4333-8444-%012d", n) }

// box is the hardware of machine n with the given NICs.
func box(n int, nics ...int) *lpmos.Hardware {
	h := &lpmos.Hardware{
		System: lpmos.System{Manufacturer: "Acme", Product: fmt.Sprintf("R%d", n), Serial: fmt.Sprintf("SN%d", n), UUID: uuidOf(n)},
		CPU:    lpmos.CPU{Architecture: "amd64", Cores: 8}, Memory: lpmos.Memory{TotalBytes: 64 << 30},
		Disks: []lpmos.Disk{{Serial: fmt.Sprintf("disk%d", n), SizeBytes: 480e9}, {Serial: "stick", Removable: true, SizeBytes: 8e9}},
	}
	for _, nic := range nics {
		h.NICs = append(h.NICs, lpmos.NIC{Name: "e", MAC: mac(nic)})
	}
	return h
}

// otherOrder is the same machine as older firmware spells its UUID.
func otherOrder(h *lpmos.Hardware) *lpmos.Hardware {
	i := slices.IndexFunc(lpmos.UUIDSpellings(h.System.UUID), func(s string) bool { return s != h.System.UUID })
	h.System.UUID = lpmos.UUIDSpellings(h.System.UUID)[i]
	return h
}

func found(region string, nic int, at time.Duration, h *lpmos.Hardware) store.Change {
	return store.Change{Key: store.Key{Kind: store.KindDiscovered, Region: region, MAC: mac(nic)},
		Value: value(lpmos.Discovered{MAC: mac(nic), Hardware: h, Address: "10.0.0.9", SeenAt: epoch.Add(at)})}
}

func info(nic int, at time.Duration, taskID string, h *lpmos.Hardware) store.Change {
	return store.Change{Key: store.Key{Kind: store.KindAgentInfo, MAC: mac(nic)},
		Value: value(lpmos.Machine{MAC: mac(nic), MACs: h.MACs(), RegionID: "dc1", TaskID: taskID, Hardware: h, LastSeen: epoch.Add(at)})}
}

// taskOn is a task for one NIC that reported at the given time, or never.
func taskOn(n, nic int, s lpmos.Status, at time.Duration, h *lpmos.Hardware) []store.Change {
	m := map[string]any{
		"task_id": id(n), "region_id": "dc1", "target_mac": mac(nic), "os_type": "debian", "os_version": "12", "hostname": fmt.Sprintf("host-%d", n),
		"attempt": 1, "created_at": epoch.Add(time.Duration(n) * time.Minute), "updated_at": epoch.Add(time.Duration(n)*time.Minute + time.Second), "claims": []lpmos.MAC{mac(nic)},
	}
	out := []store.Change{part(n, store.KindStatus, s)}
	if h != nil {
		m["hardware_at"], m["claims"], m["claim_uuid"] = epoch.Add(at), h.MACs(), h.System.UUID
		out = append(out, part(n, store.KindHardware, h))
	}
	return append(out, part(n, store.KindMetadata, m))
}

// machines spells the fleet: "01 02 deployed SN1 (2)".
func (f *feed) machines(q api.MachineQuery) string {
	f.t.Helper()
	var out []string
	for _, m := range f.s.Machines(q).Machines {
		var macs []string
		for _, x := range m.MACs {
			macs = append(macs, fmt.Sprintf("%02x", x[5]))
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s %d", strings.Join(macs, "+"), m.State, m.Serial, m.TaskCount)))
	}
	return strings.Join(out, "; ")
}

func TestMachineStates(t *testing.T) {
	f := newFeed(t)
	say := func(what, want string) {
		t.Helper()
		if got := f.machines(api.MachineQuery{}); got != want {
			t.Errorf("%s: %s; want %s", what, got, want)
		}
	}
	say("nothing", "")
	f.send(false, found("dc1", 1, time.Hour, box(1, 1, 2)))
	say("found", "01+02 discovered SN1 0")
	f.send(false, taskOn(1, 2, lpmos.Pending, 0, nil)...)
	say("a task for its other NIC", "01+02 allocated SN1 1")
	f.send(false, report(1, 1, store.KindReportAgent, lpmos.AgentRecord{}))
	say("its segment was served", "01+02 allocated SN1 1")
	f.send(false, report(1, 1, store.KindReportAgent, lpmos.AgentRecord{Used: true}))
	say("the agent spoke", "01+02 inspecting SN1 1")
	f.send(false, append(taskOn(1, 2, lpmos.AwaitingApproval, 2*time.Hour, box(1, 1, 2)), info(2, 2*time.Hour, id(1), box(1, 1, 2)))...)
	say("reported", "01+02 pending_approval SN1 1")
	for status, want := range map[lpmos.Status]string{
		lpmos.Approved: "deploying", lpmos.Installing: "deploying", lpmos.Verifying: "deploying",
		lpmos.Completed: "deployed", lpmos.Failed: "failed", lpmos.Rejected: "ready", lpmos.Canceled: "ready",
	} {
		f.send(false, part(1, store.KindStatus, status))
		say(string(status), "01+02 "+want+" SN1 1")
	}
	f.send(false, part(1, store.KindStatus, lpmos.Completed))
	f.send(false, taskOn(2, 1, lpmos.Canceled, 0, nil)...)
	say("a task canceled before it began leaves what was there", "01+02 deployed SN1 2")
	if m, ok := f.s.Machine(mac(1)); !ok || m.Verified || m.Hostname != "host-2" || len(m.Tasks) != 2 || m.Tasks[0].TaskID != id(2) || m.Hardware == nil || m.DiskCount != 1 || m.DiskBytes != 480e9 {
		t.Errorf("machine = %+v", m)
	}
	f.send(false, part(1, store.KindReceipt, lpmos.Receipt{At: epoch.Add(9 * time.Hour)}))
	if m, _ := f.s.Machine(mac(2)); !m.Verified || !m.LastSeen.Equal(epoch.Add(9*time.Hour)) {
		t.Errorf("after the call home %v, %v", m.Verified, m.LastSeen)
	}
	// What is known outlives the tasks.
	f.send(false, part(1, store.KindStatus, nil), part(1, store.KindMetadata, nil), part(2, store.KindStatus, nil))
	say("tasks deleted", "01+02 ready SN1 0")
	f.send(true, taskOn(3, 9, lpmos.Canceled, 0, nil)...)
	say("a machine of which nothing but an address is known", "")
	if _, ok := f.s.Machine(mac(9)); ok {
		t.Error("it can be looked up")
	}
}

func TestMachineIdentity(t *testing.T) {
	for name, tt := range map[string]struct {
		changes []store.Change
		want    string
	}{
		"two NICs of one machine":         {slices.Concat([]store.Change{found("dc1", 1, 1, box(1, 1, 2)), found("dc1", 2, 2, box(1, 1, 2))}), "01+02 discovered SN1 0"},
		"the same machine in two regions": {[]store.Change{found("dc1", 1, 1, box(1, 1)), found("dc2", 1, 2, box(1, 1))}, "01 discovered SN1 0"},
		"in both byte orders":             {[]store.Change{found("dc1", 1, 1, otherOrder(box(1, 1))), found("dc1", 2, 2, box(1, 2)), found("dc1", 3, 3, otherOrder(box(1, 3)))}, "03 discovered SN1 0"},
		"two machines":                    {[]store.Change{found("dc1", 1, 1, box(1, 1)), found("dc1", 2, 2, box(2, 2))}, "01 discovered SN1 0; 02 discovered SN2 0"},
		"a card moved to another machine": {[]store.Change{
			found("dc1", 1, 1, box(1, 1, 7)), found("dc1", 2, 2, box(2, 2, 7)),
		}, "01 discovered SN1 0; 02+07 discovered SN2 0"},
		"and the one it was in reports again": {[]store.Change{
			found("dc1", 1, 3, box(1, 1)), found("dc1", 2, 2, box(2, 2, 7)),
		}, "01 discovered SN1 0; 02+07 discovered SN2 0"},
		"a board replaced, same card": {[]store.Change{
			info(1, 1, "", box(1, 1)), found("dc1", 1, 2, box(2, 1)),
		}, "01 discovered SN2 0"},
		"boards without a UUID": {[]store.Change{
			func() store.Change {
				h := box(1, 1)
				h.System.UUID = "03000200-0400-0500-0006-000700080009"
				return found("dc1", 1, 1, h)
			}(),
			func() store.Change {
				h := box(2, 2)
				h.System.UUID = "03000200-0400-0500-0006-000700080009"
				return found("dc1", 2, 2, h)
			}(),
		}, "01 discovered SN1 0; 02 discovered SN2 0"},
		"a task by the other NIC, before it reports": {slices.Concat(
			[]store.Change{found("dc1", 1, 1, box(1, 1, 2))}, taskOn(1, 2, lpmos.Pending, 0, nil), taskOn(2, 1, lpmos.Canceled, 0, nil),
		), "01+02 allocated SN1 2"},
	} {
		// Whatever the order, and listed or one by one, it comes to the same.
		for range 3 {
			f := newFeed(t)
			for _, c := range tt.changes {
				f.send(false, c)
			}
			if got := f.machines(api.MachineQuery{}); got != tt.want {
				t.Errorf("%s, one by one: %s; want %s", name, got, tt.want)
			}
			f.send(true, tt.changes...)
			if got := f.machines(api.MachineQuery{}); got != tt.want {
				t.Errorf("%s, listed: %s; want %s", name, got, tt.want)
			}
			slices.Reverse(tt.changes)
			tt.changes = append(tt.changes[1:], tt.changes[0])
		}
	}
}

func TestMachineQuery(t *testing.T) {
	var all []store.Change
	for n := range 100 {
		all = append(all, found(fmt.Sprintf("dc%d", n%2+1), n+1, time.Hour, box(n+1, n+1)))
	}
	all = append(all, taskOn(1, 5, lpmos.Failed, 2*time.Hour, box(5, 5))...)
	f := newFeed(t, all...)
	for _, tt := range []struct {
		q    api.MachineQuery
		want int
	}{
		{api.MachineQuery{}, 100}, {api.MachineQuery{RegionID: "dc1"}, 50}, {api.MachineQuery{State: lpmos.MachineFailed}, 1},
		{api.MachineQuery{Text: "region:dc2"}, 50}, {api.MachineQuery{Text: "-region:dc2"}, 50}, {api.MachineQuery{Text: "!region:dc2 state:failed"}, 1},
		{api.MachineQuery{Text: "SN5"}, 12 - 1}, {api.MachineQuery{Text: "serial:sn99"}, 1}, {api.MachineQuery{Text: "model:acme"}, 100},
		{api.MachineQuery{Text: "52-54-00-00-00-05"}, 1}, {api.MachineQuery{Text: "mac:525400000005"}, 1}, {api.MachineQuery{Text: "mac:00:05"}, 1},
		{api.MachineQuery{Text: "host-1"}, 1}, {api.MachineQuery{Text: "host:host-1 disk5"}, 1}, {api.MachineQuery{Text: "debian 12"}, 1},
		{api.MachineQuery{Text: "nothing"}, 0}, {api.MachineQuery{Text: "region:"}, 0}, {api.MachineQuery{Text: "region:dc"}, 0},
		{api.MachineQuery{Text: uuidOf(7)}, 1}, {api.MachineQuery{Text: "10.0.0.9"}, 100},
	} {
		if p := f.s.Machines(tt.q); p.Total != tt.want || len(p.Machines) != tt.want || p.Rev != f.rev {
			t.Errorf("%+v finds %d (%d); want %d", tt.q, p.Total, len(p.Machines), tt.want)
		}
	}
	if p := f.s.Machines(api.MachineQuery{State: lpmos.MachineFailed}); p.Counts[lpmos.MachineDiscovered] != 99 || p.Counts[lpmos.MachineFailed] != 1 || p.Machines[0].Hardware != nil || p.Machines[0].Tasks != nil {
		t.Errorf("counts = %v, hardware %v", p.Counts, p.Machines[0].Hardware)
	}
	var seen []string
	for c := ""; ; {
		p := f.s.Machines(api.MachineQuery{Limit: 30, Cursor: c})
		for _, m := range p.Machines {
			seen = append(seen, m.MAC.String())
		}
		if c = p.NextCursor; c == "" {
			break
		}
		f.send(false, found("dc1", 200+len(seen)/30, time.Hour, box(200, 200+len(seen)/30))) // more come while it is read
	}
	if !slices.IsSorted(seen) || len(slices.Compact(seen)) != len(seen) || len(seen) < 100 {
		t.Errorf("pages hold %d machines, sorted %v", len(seen), slices.IsSorted(seen))
	}
}

// What a machine was before its task is found by every way it can be known.
func TestSeenBefore(t *testing.T) {
	old := box(1, 1, 2)
	old.Memory.TotalBytes = 32 << 30
	f := newFeed(t, slices.Concat(taskOn(1, 1, lpmos.Completed, time.Hour, old), []store.Change{info(1, time.Hour, id(1), old)}, taskOn(2, 2, lpmos.Pending, 0, nil))...)
	now := box(1, 2, 3)
	check := func(what string, got *lpmos.Sighting, task string) {
		t.Helper()
		if got == nil || got.TaskID != task || got.Hardware.Memory.TotalBytes != 32<<30 || !got.At.Equal(epoch.Add(time.Hour)) {
			t.Errorf("%s: %+v", what, got)
		}
	}
	check("by its UUID", f.s.Seen(id(2), mac(3), now), id(1))
	now.System.UUID = ""
	check("by a NIC", f.s.Seen(id(2), mac(2), now), id(1))
	if got := f.s.Seen(id(1), mac(1), old); got != nil {
		t.Errorf("before its first task it was seen: %+v", got)
	}
	if got := f.s.Seen(id(2), mac(9), box(9, 9)); got != nil {
		t.Errorf("a machine that is new was seen: %+v", got)
	}
	f.send(false, part(1, store.KindStatus, nil), part(1, store.KindMetadata, nil))
	check("its task deleted", f.s.Seen(id(2), mac(2), now), id(1))

	// The task keeps it, whatever becomes of the rest.
	kept := lpmos.Sighting{At: epoch.Add(time.Hour), RegionID: "dc1", TaskID: id(1), Hardware: old}
	f.send(false, append(taskOn(2, 2, lpmos.AwaitingApproval, 3*time.Hour, box(1, 1, 2)), part(2, store.KindPrevious, kept), info(1, 3*time.Hour, id(2), box(1, 1, 2)))...)
	task, _ := f.s.Task(id(2))
	check("the task", task.Previous, id(1))
	want := []lpmos.Difference{{Component: "memory", Field: "size", Before: "32 GiB", After: "64 GiB"}}
	m, _ := f.s.Machine(mac(1))
	check("the machine", m.Previous, id(1))
	if !slices.Equal(task.Differences, want) || !slices.Equal(m.Differences, want) {
		t.Errorf("differences = %v and %v; want %v", task.Differences, m.Differences, want)
	}
	if p := f.s.Tasks(api.Query{}); p.Tasks[0].Previous != nil {
		t.Error("a list carries earlier hardware")
	}
}

func TestProfilesAndUse(t *testing.T) {
	named := func(k store.Kind, name string, v any) store.Change {
		c := store.Change{Key: store.Key{Kind: k, Name: name}}
		if v != nil {
			c.Value = value(v)
		}
		return c
	}
	f := newFeed(t,
		named(store.KindProfile, "web", lpmos.Profile{Name: "web", Version: 2, Template: "base", OSType: "debian", OSVersion: "12", Arch: "amd64"}),
		named(store.KindProfile, "db", lpmos.Profile{Name: "db", Version: 1}), named(store.KindTemplate, "base", lpmos.Template{Name: "base", Version: 4}))
	with := func(n int, s lpmos.Status) []store.Change {
		return []store.Change{part(n, store.KindStatus, s), part(n, store.KindMetadata, map[string]any{
			"task_id": id(n), "region_id": "dc1", "target_mac": mac(n), "os_type": "debian", "os_version": "12", "arch": "amd64", "attempt": 1,
			"created_at": epoch, "profile": "web@1", "template": "base@3",
		})}
	}
	f.send(false, with(1, lpmos.Completed)...)
	f.send(false, with(2, lpmos.Installing)...)
	for what, u := range map[string]api.Use{"profile": f.s.ProfileUse("web"), "template": f.s.TemplateUse("base"), "image": f.s.ImageUse("debian", "12", "amd64")} {
		if u.Tasks != 2 || len(u.Live) != 1 || u.Live[0] != id(2) || (what != "profile") != slices.Equal(u.Profiles, []string{"web"}) {
			t.Errorf("use of the %s = %+v", what, u)
		}
	}
	if u := f.s.ProfileUse("we"); u.Tasks != 0 {
		t.Errorf("the beginning of a name is used: %+v", u)
	}
	if p := f.s.Profiles(); len(p) != 2 || p[0].Name != "db" {
		t.Errorf("profiles = %+v", p)
	}
	if x, ok := f.s.Template("base"); !ok || x.Version != 4 || len(f.s.Templates()) != 1 {
		t.Errorf("template = %+v", x)
	}
	f.send(false, named(store.KindProfile, "web", nil))
	if _, ok := f.s.Profile("web"); ok {
		t.Error("the profile is still there")
	}
	if l := f.s.RegionLoad("dc1"); l[lpmos.Installing] != 1 || l[lpmos.Completed] != 1 {
		t.Errorf("load = %v", l)
	}
}

func BenchmarkMachines(b *testing.B) {
	s := New(nil, nil)
	batch := store.Batch{Reset: true, Rev: 1}
	for n := range 100_000 {
		h := box(n)
		m := lpmos.MAC{2, 0, 0, byte(n >> 16), byte(n >> 8), byte(n)}
		h.NICs = []lpmos.NIC{{MAC: m}}
		batch.Changes = append(batch.Changes, store.Change{Key: store.Key{Kind: store.KindDiscovered, Region: "dc1", MAC: m}, Value: value(lpmos.Discovered{MAC: m, Hardware: h, SeenAt: epoch})})
	}
	began := time.Now()
	s.apply(batch)
	b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/listing")
	b.ResetTimer()
	for b.Loop() {
		s.Machines(api.MachineQuery{Text: "serial:sn999 model:acme"})
	}
}
