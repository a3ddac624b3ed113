package web

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/oidc"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

// The moment at which most tests look.
var testNow = time.Date(2026, 11, 23, 14, 32, 8, 0, time.UTC)

// fakeSite is a small site in memory: reader, history and actions in one. Its
// actions follow the domain's table of transitions.
type fakeSite struct {
	mu      sync.Mutex // guards what follows
	rev     int64
	stopped *lpmos.Stop
	tasks   map[string]lpmos.Task
	regions []lpmos.Region
	images  []lpmos.Image
	events  map[string][]lpmos.Event
	logs    map[string][]string
	fail    error // what the next action answers
	whole   int   // how often a whole task or machine was asked for
	created int
	byKey   map[string]string // idempotency key → task
	seen    []lpmos.Machine
	batches map[string]lpmos.Batch // by idempotency key
	audit   []lpmos.AuditEntry     // oldest first; pages have two
	refuse  []lpmos.BatchLine      // what the next batch is refused for
	now     time.Time

	profiles  map[string]lpmos.Profile
	locks     map[lpmos.MAC]*lpmos.Lock
	has       *lpmos.TPM        // TPM of the discovered machine
	tpm       *lpmos.TPMBinding // that it was approved with
	templates map[string]lpmos.Template
	policy    lpmos.ApprovalPolicy
	who       People         // nil: no pages of users
	provider  *oidc.Provider // nil: passwords alone
}

var (
	_ Reader  = (*fakeSite)(nil)
	_ History = (*fakeSite)(nil)
	_ Actions = (*fakeSite)(nil)
)

func (s *fakeSite) Rev() int64      { s.mu.Lock(); defer s.mu.Unlock(); return s.rev }
func (s *fakeSite) StoreID() string { return "store-1" }
func (s *fakeSite) Task(id string) (lpmos.Task, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole++
	t, ok := s.tasks[id]
	return t, ok
}

func (s *fakeSite) Tasks(q api.Query) api.Page {
	all, groups := s.find(q)
	p := api.Page{Rev: s.Rev(), Total: len(all)}
	if q.Groups {
		p.Groups = groups
	}
	from, _ := strconv.Atoi(q.Cursor)
	from += q.Offset
	for _, t := range all[min(from, len(all)):] {
		if q.Limit > 0 && len(p.Tasks) == q.Limit {
			p.NextCursor = strconv.Itoa(from + q.Limit)
			break
		}
		p.Rows = append(p.Rows, summaryOf(t))
		t.Hardware, t.Plan, t.LogTail = nil, nil, nil // as the real reader: they are large
		p.Tasks = append(p.Tasks, t)
	}
	return p
}

func (s *fakeSite) Rows(ids []string) (p api.Page) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if t, ok := s.tasks[id]; ok {
			p.Rows = append(p.Rows, summaryOf(t))
			t.Hardware, t.Plan, t.LogTail = nil, nil, nil // as the real reader
			p.Tasks = append(p.Tasks, t)
		}
	}
	return p
}

// summaryOf is what a list says of a task's hardware and plan.
func summaryOf(t lpmos.Task) api.Summary {
	var v api.Summary
	if h := t.Hardware; h != nil {
		v.Serial, v.Manufacturer, v.Model = h.System.Serial, h.System.Manufacturer, h.System.Product
	}
	if p := t.Plan; p != nil && t.Status.Live() {
		v.Planned, v.Problem = true, p.Problem
		for i := range p.Observed {
			if p.Problem == "" && p.Observed[i].Disk == p.Effect.Target {
				v.Target = &p.Observed[i]
			}
		}
	}
	return v
}

func (s *fakeSite) IDs(q api.Query) (ids []string, total int) {
	all, _ := s.find(q)
	for _, t := range all[:min(len(all), q.Limit)] {
		ids = append(ids, t.ID)
	}
	return ids, len(all)
}

// find knows of the query language what the pages themselves ask for.
func (s *fakeSite) find(q api.Query) ([]lpmos.Task, *api.Groups) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := &api.Groups{Status: map[lpmos.Status]int{}, Region: map[string]int{}}
	holds := func(t lpmos.Task, c query.Term) bool {
		return c.Not != slices.ContainsFunc(c.Values, func(v string) bool {
			switch c.Key {
			case "status":
				return string(t.Status) == v
			case "region":
				return t.RegionID == v
			case "id":
				return strings.HasPrefix(t.ID, v)
			case "is":
				limit, ok := api.Warnings[t.Status]
				at := t.UpdatedAt
				if t.Progress != nil && t.Progress.UpdatedAt.After(at) {
					at = t.Progress.UpdatedAt
				}
				return v == query.Live && t.Status.Live() || v == query.Ended && !t.Status.Live() || v == query.Stuck && ok && s.now.Sub(at) > limit
			}
			return strings.Contains(t.ID+" "+t.Hostname+" "+t.TargetMAC.String(), v)
		})
	}
	var out []lpmos.Task
	for _, t := range s.tasks {
		if len(q.Statuses) > 0 && !slices.Contains(q.Statuses, t.Status) ||
			slices.ContainsFunc(q.Filter.Without("status").Terms, func(c query.Term) bool { return !holds(t, c) }) {
			continue
		}
		g.Status[t.Status]++
		if slices.ContainsFunc(q.Filter.Terms, func(c query.Term) bool { return c.Key == "status" && !holds(t, c) }) {
			continue
		}
		g.Region[t.RegionID]++
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b lpmos.Task) int {
		c := 0
		switch q.Sort.By {
		case "host":
			c = strings.Compare(a.Hostname, b.Hostname)
		case "updated":
			c = a.UpdatedAt.Compare(b.UpdatedAt)
		}
		if q.Sort.Desc {
			c = -c
		}
		return cmp.Or(c, b.CreatedAt.Compare(a.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	return out, g
}

func (s *fakeSite) RegionCounts(region string) map[lpmos.Status]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[lpmos.Status]int{}
	for _, t := range s.tasks {
		if t.RegionID == region {
			out[t.Status]++
		}
	}
	return out
}

func (s *fakeSite) Counts() map[lpmos.Status]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[lpmos.Status]int{}
	for _, t := range s.tasks {
		out[t.Status]++
	}
	return out
}
func (s *fakeSite) Regions() []lpmos.Region { return s.regions }
func (s *fakeSite) Images() []lpmos.Image   { return s.images }
func (s *fakeSite) Events(_ context.Context, id string) ([]lpmos.Event, error) {
	return s.events[id], nil
}
func (s *fakeSite) Logs(_ context.Context, id string) ([]string, error) { return s.logs[id], nil }

func (s *fakeSite) Audit(_ context.Context, q api.AuditQuery) (p api.AuditPage, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range slices.Backward(s.audit) {
		p.Last = max(p.Last, e.Seq)
		if q.Matches(&e) && (q.Cursor == 0 || e.Seq < q.Cursor) {
			if len(p.Entries) == 2 {
				p.Next = p.Entries[1].Seq
				break
			}
			p.Entries = append(p.Entries, e)
		}
	}
	return p, nil
}

func (s *fakeSite) Create(_ context.Context, spec lpmos.Spec, by, key string) (lpmos.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return lpmos.Task{}, s.fail
	}
	if id, ok := s.byKey[key]; ok && key != "" {
		return s.tasks[id], nil
	}
	s.created++
	s.rev++
	t := lpmos.Task{ID: fmt.Sprintf("%08x-0000-4000-8000-000000000000", s.created), Spec: spec, Status: lpmos.Pending, Attempt: 1, CreatedAt: s.now, UpdatedAt: s.now, CreatedBy: by, Rev: s.rev}
	s.tasks[t.ID] = t
	if s.byKey == nil {
		s.byKey = map[string]string{}
	}
	s.byKey[key] = t.ID
	return t, nil
}

func (s *fakeSite) move(id string, cause lpmos.Cause, change func(*lpmos.Task)) (lpmos.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tasks[id]
	if !ok {
		return t, lpmos.ErrNotFound
	}
	if s.fail != nil {
		return t, s.fail
	}
	to, err := t.Status.Next(cause)
	if err != nil {
		return t, err
	}
	s.rev++
	t.Status, t.Rev, t.UpdatedAt = to, s.rev, s.now
	if change != nil {
		change(&t)
	}
	s.tasks[id] = t
	return t, nil
}

func (s *fakeSite) Decide(_ context.Context, id string, d api.Decision, by string) (lpmos.Task, error) {
	if t, _ := s.Task(id); t.Plan == nil || d.Approved && t.Plan.Digest != d.PlanDigest {
		return t, &lpmos.ConflictError{Status: t.Status, Problem: "the plan changed"}
	}
	cause := map[bool]lpmos.Cause{true: lpmos.CauseApproved, false: lpmos.CauseRejected}[d.Approved]
	return s.move(id, cause, func(t *lpmos.Task) {
		t.Approval = &lpmos.Approval{TaskID: id, Approved: d.Approved, Notes: d.Notes, By: by, At: s.now, PlanDigest: d.PlanDigest}
	})
}
func (s *fakeSite) Cancel(_ context.Context, id, _, _ string) (lpmos.Task, error) {
	return s.move(id, lpmos.CauseCanceled, nil)
}
func (s *fakeSite) Retry(_ context.Context, id, _ string) (lpmos.Task, error) {
	return s.move(id, lpmos.CauseRetried, func(t *lpmos.Task) { t.Attempt++; t.Error = nil })
}
func (s *fakeSite) Stopped() *lpmos.Stop {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}
func (s *fakeSite) Stop(_ context.Context, reason, by string) (lpmos.Stop, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = &lpmos.Stop{By: by, Reason: reason, At: time.Now().UTC()}
	return *s.stopped, nil
}
func (s *fakeSite) Lock(_ context.Context, mac lpmos.MAC, reason, by string) (lpmos.Lock, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reason == "" {
		return lpmos.Lock{}, &lpmos.InvalidError{Field: "reason", Problem: "is missing: whoever meets the lock wants to know why"}
	}
	l := lpmos.Lock{By: by, Reason: reason, At: s.now}
	if s.locks == nil {
		s.locks = map[lpmos.MAC]*lpmos.Lock{}
	}
	s.locks[mac] = &l
	return l, nil
}
func (s *fakeSite) Unlock(_ context.Context, mac lpmos.MAC, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.locks, mac)
	return nil
}
func (s *fakeSite) ForgetTPM(context.Context, lpmos.MAC, string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tpm == nil {
		return lpmos.ErrNotFound
	}
	s.tpm = nil
	return nil
}
func (s *fakeSite) Resume(context.Context, string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = nil
	return nil
}
func (s *fakeSite) Delete(_ context.Context, id, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tasks[id].Status.Live() {
		return &lpmos.ConflictError{Problem: "the task is still running"}
	}
	delete(s.tasks, id)
	return s.fail
}

func taskID(n int) string { return fmt.Sprintf("7c1f2a9%x-3b5d-4e01-9c7a-5f20d3a1b6c%x", n, n) }

// Ids of the site's tasks, by what they are there for.
var (
	idPending, idBlank, idData, idProblem = taskID(0), taskID(1), taskID(2), taskID(3)
	idApproved, idInstalling, idVerifying = taskID(4), taskID(5), taskID(6)
	idCompleted, idFailed, idRejected     = taskID(7), taskID(8), taskID(9)
	idCanceled, idHostile, idStuck        = taskID(10), taskID(11), taskID(12)
	idWriting, idNeverBooted              = taskID(13), taskID(14)
)

const (
	gb      = int64(1e9)
	hostile = `"><script>alert(1)</script><img src=x onerror=alert(2)>'`
	goodKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHrZf5bTQ0l2m3n4o5p6q7r8s9t0u1v2w3x4y5z6A7B8 chen.yu@ops"
)

func dellR760(serial, mac string) *lpmos.Hardware {
	on := true
	return &lpmos.Hardware{
		BootMode: "uefi", SecureBoot: &on,
		System:  lpmos.System{Manufacturer: "Dell Inc.", Product: "PowerEdge R760", Serial: serial, UUID: "4c4c4544-0043-5610-8038-b4c04f4b3333"},
		Board:   lpmos.Board{Manufacturer: "Dell Inc.", Product: "0VRV9X"},
		Chassis: lpmos.Chassis{AssetTag: "R12-U07"},
		BIOS:    lpmos.BIOS{Vendor: "Dell Inc.", Version: "2.4.4", Date: "08/12/2026"},
		CPU:     lpmos.CPU{Model: "Intel(R) Xeon(R) Gold 6430", Architecture: "amd64", Sockets: 2, Cores: 64, Threads: 128},
		Memory:  lpmos.Memory{TotalBytes: 540_000_000_000},
		Disks: []lpmos.Disk{
			{Device: "/dev/nvme0n1", SizeBytes: 960 * gb, SectorBytes: 512, Model: "Samsung PM9A3", Serial: "S64GNE0R" + serial, WWN: "eui.36344730529031220025384300000001", Transport: "nvme"},
			{Device: "/dev/nvme1n1", SizeBytes: 7680 * gb, SectorBytes: 512, Model: "Kioxia CM7-R", Serial: "Y3A0A02FTJX8", Transport: "nvme",
				Content: lpmos.Content{Filesystem: &lpmos.Filesystem{Type: "linux_raid_member", Label: "pg_archive"}}},
			{Device: "/dev/nvme2n1", SizeBytes: 7680 * gb, SectorBytes: 512, Model: "Kioxia CM7-R", Serial: "Y3A0A02KTJX8", Transport: "nvme",
				Content: lpmos.Content{Filesystem: &lpmos.Filesystem{Type: "linux_raid_member", Label: "pg_archive"}}},
		},
		NICs: []lpmos.NIC{
			{Name: "eno12399", MAC: lpmos.MustMAC(mac), Driver: "ice", Link: true, SpeedMbps: 25000, Boot: true},
			{Name: "eno12409", MAC: lpmos.MustMAC(mac[:15] + "fe"), Driver: "ice", Link: true, SpeedMbps: 25000},
			{Name: "eno8303", MAC: lpmos.MustMAC(mac[:15] + "ff"), Driver: "tg3"},
		},
		Kernel: "6.12.48+deb13-amd64", Agent: "0.2.0", BootMAC: lpmos.MustMAC(mac),
	}
}

func centOS() lpmos.Content {
	return lpmos.Content{Table: "gpt", Partitions: []lpmos.Partition{
		{Number: 1, SizeBytes: gb / 2, Name: "EFI", Filesystem: &lpmos.Filesystem{Type: "vfat", UsedBytes: 12_000_000}},
		{Number: 2, SizeBytes: gb, Name: "boot", Filesystem: &lpmos.Filesystem{Type: "xfs", Label: "boot", UsedBytes: 300_000_000}},
		{Number: 3, SizeBytes: 54 * gb, Name: "root", Filesystem: &lpmos.Filesystem{Type: "xfs", OS: "CentOS Linux 7.9", Hostname: "old-db-07", UsedBytes: 21 * gb}},
		{Number: 4, SizeBytes: 850 * gb, Filesystem: &lpmos.Filesystem{Type: "xfs", Label: "pgdata", UsedBytes: 391 * gb}},
		{Number: 5, SizeBytes: 34 * gb, Filesystem: &lpmos.Filesystem{Type: "swap"}},
	}}
}

// newSite has at least one task in every status.
func newSite(t testing.TB, now time.Time) *fakeSite {
	t.Helper()
	s := &fakeSite{rev: 1000, now: now, tasks: map[string]lpmos.Task{}, events: map[string][]lpmos.Event{}, logs: map[string][]string{}}
	s.profiles, s.templates = exampleProfiles(now), exampleTemplates(now)
	s.images = []lpmos.Image{
		{OS: "debian", Version: "12", Arch: "amd64", Title: "Debian 12 (bookworm)", Digest: "sha256:4be1c8f2a6d3097754e80b9f61d2c3a84be1c8f2a6d3097754e80b9f61d2c3a8", SizeBytes: 3 * gb, UsedBytes: 1_400_000_000, BootModes: []string{"bios", "uefi"}},
		{OS: "ubuntu", Version: "24.04", Arch: "amd64", Title: "Ubuntu 24.04", Digest: "sha256:52b0c9e7416fd830aa0152b0c9e7416fd830aa0152b0c9e7416fd830aa0177ad", SizeBytes: 6 * gb, UsedBytes: 2_400_000_000, BootModes: []string{"bios", "uefi"},
			Format: lpmos.FormatDisk, CloudInit: true, CreatedAt: now.Add(-30 * time.Hour), StoredBytes: 700_000_000,
			Source: &lpmos.ImageSource{URL: "https://cloud-images.ubuntu.com/noble/current/noble-server-cloudimg-amd64.img", Format: "qcow2", Checksum: "sha256:52", From: "SHA256SUMS", Signer: "D2EB44626FDDC30B513D5BB71A5D6C4C7DB87C81 UEC Image Automatic Signing Key"},
			Preflight: &lpmos.Preflight{Checks: []lpmos.PreflightCheck{
				{Name: "root", Result: lpmos.CheckOK, Text: "The root filesystem is ext4 on partition 1, the last on the disk, so it can be grown."},
				{Name: "kernel", Result: lpmos.CheckOK, Text: "The kernel is 6.8.0-40-generic."},
				{Name: "identity", Result: lpmos.CheckWarning, Text: "It carries a machine id; it is emptied when the image is installed."},
			}},
			Badges: []lpmos.Badge{{Firmware: "bios", Passed: true, Digest: "sha256:52b0c9e7416fd830aa0152b0c9e7416fd830aa0152b0c9e7416fd830aa0177ad"}, {Firmware: "uefi", Text: "The installed system did not call home within 10 min; its console says: error: shim_lock missing", Digest: "sha256:52b0c9e7416fd830aa0152b0c9e7416fd830aa0152b0c9e7416fd830aa0177ad"}}},
	}
	caps := func(dhcp string) *lpmos.Capabilities {
		return &lpmos.Capabilities{Version: "0.2.0", Hostname: "boot-1", DHCP: dhcp, BootURL: "http://10.12.0.9:8081", AgentURL: "https://10.12.0.9:8443", Unknown: "ignore", StartedAt: now.Add(-72 * time.Hour)}
	}
	s.regions = []lpmos.Region{
		{ID: "bj-1", Status: "online", Since: now.Add(-72 * time.Hour), Capabilities: caps("proxy")},
		{ID: "fra-1", Status: "offline", Since: now.Add(-6 * time.Minute), Capabilities: caps("server")},
		{ID: "lab-1", Status: "online", Since: now.Add(-2 * time.Hour), Capabilities: caps("off")},
	}
	n := 0
	add := func(id, host string, status lpmos.Status, ago time.Duration, hardware bool, change func(*lpmos.Task)) {
		n++
		mac := fmt.Sprintf("7c:c2:55:10:90:%02x", n)
		task := lpmos.Task{ID: id, Status: status, Attempt: 1, CreatedAt: now.Add(-ago - 20*time.Minute), UpdatedAt: now.Add(-ago), CreatedBy: "li.wei", Rev: s.rev,
			Spec: lpmos.Spec{RegionID: "bj-1", TargetMAC: lpmos.MustMAC(mac), OSType: "ubuntu", OSVersion: "24.04", Arch: "amd64", Hostname: host, SSHKeys: []string{goodKey}}}
		if hardware {
			task.Hardware = dellR760(fmt.Sprintf("90312%d", n), mac)
		}
		if change != nil {
			change(&task)
		}
		if task.Hardware != nil && task.Plan == nil {
			p := lpmos.NewPlan(&task, task.Hardware, s.images[1])
			task.Plan = &p
		}
		at, prev := task.CreatedAt, lpmos.Status("")
		event := func(cause lpmos.Cause, by, message string) {
			to, err := prev.Next(cause)
			if err != nil {
				t.Fatalf("fake history of %s: %v", host, err)
			}
			s.events[id] = append(s.events[id], lpmos.Event{TaskID: id, Seq: int64(len(s.events[id]) + 1), At: at, Cause: cause, From: prev, To: to, By: by, Message: message, Attempt: 1})
			prev, at = to, at.Add(3*time.Minute)
		}
		event(lpmos.CauseCreated, "li.wei", "")
		path := map[lpmos.Status][]lpmos.Cause{
			lpmos.AwaitingApproval: {lpmos.CauseHardwareReported}, lpmos.Rejected: {lpmos.CauseHardwareReported, lpmos.CauseRejected},
			lpmos.Approved: {lpmos.CauseHardwareReported, lpmos.CauseApproved}, lpmos.Canceled: {lpmos.CauseCanceled},
			lpmos.Installing: {lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CausePermitGranted},
			lpmos.Failed:     {lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CausePermitGranted, lpmos.CauseFailed},
			lpmos.Verifying:  {lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CausePermitGranted, lpmos.CauseResultReported},
			lpmos.Completed:  {lpmos.CauseHardwareReported, lpmos.CauseApproved, lpmos.CausePermitGranted, lpmos.CauseResultReported, lpmos.CauseCalledHome},
		}
		for _, c := range path[status] {
			by := map[lpmos.Cause]string{lpmos.CauseApproved: "wang.min", lpmos.CauseRejected: "chen.yu", lpmos.CauseHardwareReported: "agent", lpmos.CauseCalledHome: "agent"}[c]
			event(c, cmp.Or(by, "orchestrator"), "")
		}
		s.tasks[id] = task
	}
	approve := func(task *lpmos.Task) {
		task.Approval = &lpmos.Approval{TaskID: task.ID, Approved: true, By: "wang.min", At: task.UpdatedAt.Add(-5 * time.Minute)}
	}
	progress := func(stage lpmos.Stage, pct int, done, total, rate int64) func(*lpmos.Task) {
		return func(task *lpmos.Task) {
			approve(task)
			task.Progress = &lpmos.Progress{TaskID: task.ID, Attempt: 1, Stage: stage, Percentage: pct, Message: "186 of 287 chunks", UpdatedAt: now.Add(-2 * time.Second),
				Details: &lpmos.ProgressDetails{BytesDownloaded: done, BytesTotal: total, BytesPerSecond: rate, SpeedMbps: rate * 8 / 1e6, ElapsedMillis: 54_000}}
			task.LogTail = []string{
				"2026-11-23T14:31:07Z permit received, attempt 1",
				"2026-11-23T14:31:08Z opened S64GNE0R (960 GB) by serial number; write allowed",
				"2026-11-23T14:31:16Z GPT written: BIOS boot 2 MB, EFI 67 MB, root 960 GB",
				"2026-11-23T14:31:39Z chunk 81: digest differs, fetched again",
				"2026-11-23T14:32:07Z chunk 186 of 287, 31 MB/s",
			}
		}
	}
	add(idPending, "app-118", lpmos.Pending, 4*time.Minute, false, nil)
	add(idBlank, "db-08", lpmos.AwaitingApproval, 17*time.Minute, true, func(x *lpmos.Task) { x.Notes = "Ticket 4471: replaces db-03" })
	add(idData, "db-07", lpmos.AwaitingApproval, 18*time.Minute, true, func(x *lpmos.Task) {
		x.Hardware.Disks[0].Content = centOS()
		x.TargetDisk = new(x.Hardware.Disks[0].Ref())
	})
	add(idProblem, "tiny-01", lpmos.AwaitingApproval, 25*time.Minute, true, func(x *lpmos.Task) {
		x.Hardware.Disks = x.Hardware.Disks[:1]
		x.Hardware.Disks[0].SizeBytes = 2 * gb
	})
	add(idApproved, "app-117", lpmos.Approved, 40*time.Second, true, approve)
	add(idInstalling, "app-114", lpmos.Installing, 70*time.Second, true, progress(lpmos.Downloading, 48, 1_700_000_000, 2_400_000_000, 31_000_000))
	add(idWriting, "app-116", lpmos.Installing, 3*time.Minute, true, progress(lpmos.StageInstall, 71, 900_000_000, 2_400_000_000, 604_000_000))
	add(idStuck, "k8s-w-07", lpmos.Installing, 6*time.Minute, true, func(x *lpmos.Task) {
		progress(lpmos.Downloading, 52, 1_900_000_000, 2_400_000_000, 31_000_000)(x)
		x.Progress.UpdatedAt, x.RegionID = now.Add(-6*time.Minute), "fra-1"
	})
	add(idVerifying, "ceph-osd-40", lpmos.Verifying, 2*time.Minute, true, approve)
	add(idCompleted, "lab-n04", lpmos.Completed, 30*time.Minute, true, func(x *lpmos.Task) {
		approve(x)
		x.RegionID = "lab-1"
		x.Receipt = &lpmos.Receipt{BootMode: "uefi", OS: "Ubuntu 24.04.3 LTS", Kernel: "6.8.0-51-generic", Hostname: "lab-n04", RootDisk: x.Hardware.Disks[0].Ref(), Addresses: []string{"10.12.4.114/24"}, UptimeSec: 21, At: x.UpdatedAt}
	})
	add(idFailed, "web-031", lpmos.Failed, 11*time.Minute, true, func(x *lpmos.Task) {
		progress(lpmos.StageInstall, 74, 1_200_000_000, 2_400_000_000, 0)(x)
		x.Error = &lpmos.Failure{Stage: lpmos.StageInstall, Code: "disk_write", Cause: "disk S64GNE0R903417 (960 GB) refused a write", NextStep: "Replace the disk, then retry. A new disk means a new plan, so it is approved again.",
			Evidence: "write /dev/nvme0n1 at 212483571712: input/output error", Attempt: 1, At: x.UpdatedAt}
	})
	add(idRejected, "log-02", lpmos.Rejected, 23*time.Minute, true, func(x *lpmos.Task) {
		x.Approval = &lpmos.Approval{TaskID: x.ID, Approved: false, By: "chen.yu", Notes: "wrong rack", At: x.UpdatedAt}
	})
	add(idCanceled, "lab-n05", lpmos.Canceled, 50*time.Hour, false, nil)
	add(idNeverBooted, "cache-11", lpmos.Pending, 41*time.Minute, false, nil)
	return s
}

// addMany adds tasks that wait for their machines, the oldest last.
func (s *fakeSite) addMany(n int) {
	for i := range n {
		id := fmt.Sprintf("%08x-0000-4000-8000-00000000beef", i)
		s.tasks[id] = lpmos.Task{ID: id, Status: lpmos.Pending, Attempt: 1, CreatedAt: s.now.Add(-time.Hour - time.Duration(i)*time.Second), UpdatedAt: s.now.Add(-10 * time.Minute), CreatedBy: "ops-bot", Rev: s.rev,
			Spec: lpmos.Spec{RegionID: "lab-1", TargetMAC: lpmos.MAC{0x52, 0x54, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}, OSType: "debian", OSVersion: "12", Arch: "amd64", Hostname: fmt.Sprintf("many-%d", i)}}
	}
}

// addHostile puts markup into every string that comes from a machine or a
// person.
func (s *fakeSite) addHostile() {
	h := dellR760("903199", "7c:c2:55:10:91:01")
	h.System = lpmos.System{Manufacturer: hostile, Product: hostile, Serial: hostile, UUID: hostile, Version: hostile}
	h.Board, h.BIOS, h.Chassis = lpmos.Board{Manufacturer: hostile}, lpmos.BIOS{Vendor: hostile, Version: hostile, Date: hostile}, lpmos.Chassis{AssetTag: hostile}
	h.CPU.Model, h.Kernel, h.Agent, h.NICs[0].Name, h.NICs[0].Driver = hostile, hostile, hostile, hostile, hostile
	fs := &lpmos.Filesystem{Type: hostile, Label: hostile, OS: hostile, Hostname: hostile, UsedBytes: gb}
	for i := range h.Disks {
		h.Disks[i].Model, h.Disks[i].Vendor, h.Disks[i].Serial = hostile, hostile, hostile+fmt.Sprint(i)
		h.Disks[i].Content = lpmos.Content{Table: "gpt", Partitions: []lpmos.Partition{{Number: 1, SizeBytes: 500 * gb, Name: hostile, Filesystem: fs}, {Number: 2, SizeBytes: 100 * gb, Name: hostile}}}
	}
	h.Disks[2].ContentUnknownBecause = hostile
	t := lpmos.Task{ID: idHostile, Status: lpmos.AwaitingApproval, Attempt: 1, CreatedBy: hostile, CreatedAt: s.now, UpdatedAt: s.now, Hardware: h, LogTail: []string{hostile, "14:00:00 " + hostile},
		Spec:     lpmos.Spec{RegionID: "bj-1", TargetMAC: lpmos.MustMAC("7c:c2:55:10:91:01"), OSType: "ubuntu", OSVersion: "24.04", Arch: "amd64", Hostname: hostile, Notes: hostile, SSHKeys: []string{hostile}},
		Error:    &lpmos.Failure{Stage: lpmos.Downloading, Code: "x", Cause: hostile, NextStep: hostile, Evidence: hostile, At: s.now},
		Progress: &lpmos.Progress{Stage: lpmos.Downloading, Percentage: 30, Message: hostile, UpdatedAt: s.now},
		Approval: &lpmos.Approval{By: hostile, Notes: hostile, At: s.now}, Receipt: &lpmos.Receipt{OS: hostile, Kernel: hostile, Hostname: hostile, Addresses: []string{hostile}}}
	p := lpmos.NewPlan(&t, h, s.images[1])
	t.Plan = &p
	s.tasks[t.ID] = t
	s.events[t.ID] = []lpmos.Event{{At: s.now, Cause: lpmos.Cause(hostile), To: lpmos.AwaitingApproval, By: hostile, Message: hostile}}
	s.logs[t.ID] = []string{hostile}
	s.profiles["evil"] = lpmos.Profile{Name: "evil", Version: 1, Description: hostile, Hostname: hostile, SSHKeys: []string{hostile}, Notes: hostile, Template: hostile, System: &lpmos.Setup{Timezone: hostile, Users: []lpmos.Account{{Name: hostile, Gecos: hostile}}, Scripts: []lpmos.Script{{Name: hostile, Text: hostile}}}, UpdatedBy: hostile, UpdatedAt: s.now}
	s.templates["evil"] = lpmos.Template{Name: "evil", Version: 1, Kind: hostile, Description: hostile, Text: hostile, UpdatedBy: hostile, UpdatedAt: s.now}
	s.images = append(s.images, lpmos.Image{OS: "debian", Version: "13", Arch: "amd64", Title: hostile, BootModes: []string{hostile}})
	s.regions = append(s.regions, lpmos.Region{ID: "evil-1", Status: hostile, Capabilities: &lpmos.Capabilities{Version: hostile, Hostname: hostile, DHCP: hostile, BootURL: "javascript:alert(1)", AgentURL: hostile, Unknown: hostile}})
}

// personOf is chen.yu, or who the cookie says.
func personOf(r *http.Request) string {
	if c, err := r.Cookie("person"); err == nil {
		return c.Value
	}
	return "chen.yu"
}

func newTestWeb(t testing.TB, s *fakeSite) *Web {
	t.Helper()
	w, err := New(s, s, s, Config{Version: "0.2.0", SiteName: "lpmos.example.net", Now: func() time.Time { return s.now }, Person: personOf, Batches: s, People: s.who, Provider: s.provider}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// tester is who looks in most tests: an admin of everything.
var tester = auth.Principal{Kind: auth.Session, Name: "chen.yu", Role: lpmos.Admin}

// signedIn serves the pages to the tester.
func signedIn(w *Web) http.Handler { return auth.As(tester, w.Handler()) }

// The fleet is what its tasks reported, one machine each, and one that was found.
func (s *fakeSite) fleet() []lpmos.Machine {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := map[lpmos.Status]lpmos.MachineState{
		lpmos.Pending: lpmos.MachineAllocated, lpmos.AwaitingApproval: lpmos.MachinePendingApproval, lpmos.Completed: lpmos.MachineDeployed, lpmos.Failed: lpmos.MachineFailed,
		lpmos.Approved: lpmos.MachineDeploying, lpmos.Installing: lpmos.MachineDeploying, lpmos.Verifying: lpmos.MachineDeploying,
		lpmos.Rejected: lpmos.MachineReady, lpmos.Canceled: lpmos.MachineReady,
	}
	var out []lpmos.Machine
	add := func(m lpmos.Machine) {
		if h := m.Hardware; h != nil {
			m.UUID, m.Serial, m.Manufacturer, m.Model, m.MACs = h.System.UUID, h.System.Serial, h.System.Manufacturer, h.System.Product, h.MACs()
			m.Cores, m.MemoryBytes, m.DiskCount, m.HardwareAt = h.CPU.Cores, h.Memory.TotalBytes, len(h.Disks), m.LastSeen
			for _, d := range h.Disks {
				m.DiskBytes += d.SizeBytes
			}
		}
		m.Lock = s.locks[m.MAC]
		if m.Hardware != nil && m.Hardware.TPM != nil {
			m.TPM = s.tpm
		}
		out = append(out, m)
	}
	for _, id := range slices.Sorted(maps.Keys(s.tasks)) {
		t := s.tasks[id]
		m := lpmos.Machine{
			MAC: t.TargetMAC, MACs: []lpmos.MAC{t.TargetMAC}, RegionID: t.RegionID, TaskID: id, State: state[t.Status], Hostname: t.Hostname, OS: t.OSType + " " + t.OSVersion,
			Verified: t.Receipt != nil, TaskCount: 1, Hardware: t.Hardware,
			Tasks: []lpmos.MachineTask{{TaskID: id, Status: t.Status, Verified: t.Receipt != nil, Hostname: t.Hostname, OSType: t.OSType, OSVersion: t.OSVersion, Attempt: t.Attempt, CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy, UpdatedAt: t.UpdatedAt}},
		}
		if t.Hardware != nil {
			m.LastSeen = t.UpdatedAt
		}
		if id == idData {
			was := *t.Hardware
			was.Disks, was.NICs = slices.Clone(was.Disks), slices.Clone(was.NICs)
			was.Disks[1].Serial, was.BIOS.Version, was.Memory.TotalBytes = "2247E6A9C1D0", "1.4.2", was.Memory.TotalBytes/2
			was.NICs[0].Link = !was.NICs[0].Link
			m.Previous = &lpmos.Sighting{At: s.now.Add(-90 * 24 * time.Hour), RegionID: t.RegionID, Hardware: &was}
			m.Differences = lpmos.DiffHardware(&was, t.Hardware)
		}
		add(m)
	}
	for _, m := range s.seen {
		add(m)
	}
	h := dellR760("CZ2D4107", "7c:c2:55:10:99:07")
	h.System.Manufacturer, h.System.Product, h.TPM = "HPE", "DL380 Gen11", s.has
	add(lpmos.Machine{MAC: lpmos.MustMAC("7c:c2:55:10:99:07"), RegionID: "bj-1", State: lpmos.MachineDiscovered, Hardware: h, Address: "10.21.99.12", LastSeen: s.now.Add(-3 * time.Minute)})
	return out
}

func (s *fakeSite) Machines(q api.MachineQuery) api.MachinePage {
	p := api.MachinePage{Rev: s.rev, Counts: map[lpmos.MachineState]int{}}
	for _, m := range s.fleet() {
		if q.RegionID != "" && m.RegionID != q.RegionID || !strings.Contains(m.Hostname+" "+m.Serial+" "+m.MAC.String(), q.Text) {
			continue
		}
		p.Counts[m.State]++
		if q.State != "" && m.State != q.State {
			continue
		}
		p.Total++
		m.Hardware, m.Tasks, m.Previous, m.Differences = nil, nil, nil, nil
		p.Machines = append(p.Machines, m)
	}
	return p
}

func (s *fakeSite) Machine(mac lpmos.MAC) (lpmos.Machine, bool) {
	s.mu.Lock()
	s.whole++
	s.mu.Unlock()
	for _, m := range s.fleet() {
		if slices.Contains(m.MACs, mac) {
			return m, true
		}
	}
	return lpmos.Machine{}, false
}

func (s *fakeSite) Profiles() []lpmos.Profile {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.profiles), func(a, b lpmos.Profile) int { return strings.Compare(a.Name, b.Name) })
}
func (s *fakeSite) Profile(name string) (lpmos.Profile, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.profiles[name]
	return p, ok
}
func (s *fakeSite) Templates() []lpmos.Template {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.templates), func(a, b lpmos.Template) int { return strings.Compare(a.Name, b.Name) })
}
func (s *fakeSite) Template(name string) (lpmos.Template, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.templates[name]
	return t, ok
}
func (s *fakeSite) ProfileUse(name string) api.Use {
	if name == "db" {
		return api.Use{Tasks: 12, Live: []string{idBlank}}
	}
	return api.Use{Tasks: 3}
}
func (s *fakeSite) TemplateUse(name string) api.Use {
	u := api.Use{}
	for _, p := range s.Profiles() {
		if p.Template == name {
			u.Profiles = append(u.Profiles, p.Name)
		}
	}
	return u
}
func (s *fakeSite) ImageUse(os, version, arch string) (u api.Use) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, t := range s.tasks {
		if t.OSType == os && t.OSVersion == version {
			u.Tasks++
			if t.Status.Live() {
				u.Live = append(u.Live, id)
			}
		}
	}
	return u
}
func (s *fakeSite) RegionLoad(id string) map[lpmos.Status]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[lpmos.Status]int{}
	for _, t := range s.tasks {
		if t.RegionID == id {
			out[t.Status]++
		}
	}
	return out
}

func (s *fakeSite) PutProfile(_ context.Context, p lpmos.Profile, based int, by string) (lpmos.Profile, error) {
	p, err := p.Normalize()
	if err != nil {
		return p, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if was := s.profiles[p.Name].Version; was != based {
		return p, &lpmos.ConflictError{Problem: fmt.Sprintf("profile %s is at version %d, and the change is based on %d: look at it again", p.Name, was, based)}
	}
	p.Version, p.UpdatedBy, p.UpdatedAt = based+1, by, s.now
	s.profiles[p.Name] = p
	return p, s.fail
}
func (s *fakeSite) DeleteProfile(_ context.Context, name string, _ int, _ string) error {
	if u := s.ProfileUse(name); len(u.Live) > 0 {
		return &lpmos.ConflictError{Problem: "the profile " + name + " is used by live task " + u.Live[0] + ": wait until it ends, or cancel it"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.profiles, name)
	return s.fail
}
func (s *fakeSite) PutTemplate(_ context.Context, t lpmos.Template, based int, by string) (lpmos.Template, error) {
	t, err := t.Normalize()
	if err != nil {
		return t, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if was := s.templates[t.Name].Version; was != based {
		return t, &lpmos.ConflictError{Problem: fmt.Sprintf("template %s is at version %d, and the change is based on %d: look at it again", t.Name, was, based)}
	}
	t.Version, t.UpdatedBy, t.UpdatedAt = based+1, by, s.now
	s.templates[t.Name] = t
	return t, s.fail
}
func (s *fakeSite) DeleteTemplate(_ context.Context, name string, _ int, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.templates, name)
	return s.fail
}
func (s *fakeSite) Preview(name, taskID string) (string, error) {
	facts := lpmos.SampleFacts()
	if taskID != "" {
		t, ok := s.Task(taskID)
		if !ok {
			return "", &lpmos.InvalidError{Field: "task_id", Problem: "is not a task id", Value: taskID}
		}
		facts = lpmos.FactsOf(&t, t.Hardware)
	}
	t, _ := s.Template(name)
	return t.Pinned().Render(facts)
}
func (s *fakeSite) DeleteImage(_ context.Context, os, version, arch string, _ int64, _ string) error {
	if u := s.ImageUse(os, version, arch); len(u.Live) > 0 {
		return &lpmos.ConflictError{Problem: "the image is used by live tasks"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images = slices.DeleteFunc(s.images, func(i lpmos.Image) bool { return i.OS == os && i.Version == version && i.Arch == arch })
	return s.fail
}

const exampleTemplate = "#cloud-config\nfqdn: {{hostname}}.example.net\npackages: [chrony, smartmontools]\nssh_authorized_keys: {{json ssh_keys}}\nwrite_files:\n- path: /etc/motd\n  content: {{json serial}}\n"

func exampleProfiles(now time.Time) map[string]lpmos.Profile {
	return map[string]lpmos.Profile{
		"db": {Name: "db", Version: 7, Description: "Database servers", OSType: "ubuntu", OSVersion: "24.04", Arch: "amd64", Hostname: "db-{serial}", Template: "base",
			SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGluZm8 li.wei@desk"}, Notes: "Ask the DBA team before erasing.", UpdatedAt: now.Add(-3 * time.Hour), UpdatedBy: "li.wei"},
		"lab": {Name: "lab", Version: 1, Hostname: "lab-{mac6}", Verify: new(false), UpdatedAt: now.Add(-50 * time.Hour), UpdatedBy: "chen.yu"},
	}
}

func exampleTemplates(now time.Time) map[string]lpmos.Template {
	return map[string]lpmos.Template{"base": {Name: "base", Version: 4, Kind: "user-data", Description: "Time, monitoring and keys for every server", Text: exampleTemplate, UpdatedAt: now.Add(-3 * time.Hour), UpdatedBy: "li.wei"}}
}

func (s *fakeSite) ApprovalPolicy() lpmos.ApprovalPolicy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy
}

func (s *fakeSite) SetApprovalPolicy(_ context.Context, p lpmos.ApprovalPolicy, _, _ string) (lpmos.ApprovalPolicy, error) {
	p, err := p.Normalize()
	if err != nil {
		return p, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy = p
	s.rev++
	return p, nil
}
