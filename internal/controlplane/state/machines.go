package state

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

// fleet makes machines out of records: tasks, discoveries, and what is kept of
// machines whose tasks were deleted. Records of the same UUID or MAC are one
// machine; where they disagree, because a card was moved or a board replaced,
// the newest report decides whose an address is. Only the machines that a
// change can concern are put together anew.
type fleet struct {
	records map[string]*record
	byID    map[ident][]*record
	owner   map[ident]*machine
	order   []*machine         // by address
	touched map[ident]struct{} // whose machines are to be put together anew
	gone    map[*machine]struct{}
}

// ident is a UUID or an address, by which records are of the same machine.
type ident struct {
	uuid string
	mac  lpmos.MAC
}

// record is one source of knowledge about a machine. Its hardware stays in the
// store: of a hundred thousand machines nobody looks at more than a few.
type record struct {
	key     string
	kind    store.Kind // KindMetadata for a task, KindAgentInfo, KindDiscovered
	region  string
	primary lpmos.MAC // it booted from, or the task names
	macs    []lpmos.MAC
	uuid    string // canonical; "" when it is nobody's own
	address string
	at      time.Time // when hardware was reported, else of the last change
	hw      *brief    // nil when it never reported
	taskID  string
	task    *task // nil unless it is a task
	machine *machine
}

// brief is what lists and searches need of hardware.
type brief struct {
	System  lpmos.System  `json:"system"`
	Board   lpmos.Board   `json:"board"`
	Chassis lpmos.Chassis `json:"chassis"`
	CPU     lpmos.CPU     `json:"cpu"`
	Memory  lpmos.Memory  `json:"memory"`
	Disks   []briefDisk   `json:"disks"`
	NICs    []briefNIC    `json:"nics"`
	part    bool          // serial numbers and models alone are known
}

type briefDisk struct {
	SizeBytes int64  `json:"size_bytes"`
	Model     string `json:"model"`
	Serial    string `json:"serial"`
	WWN       string `json:"wwn"`
	Removable bool   `json:"removable"`
}

type briefNIC struct {
	MAC lpmos.MAC `json:"mac"`
}

func (b *brief) MACs() (out []lpmos.MAC) {
	for _, n := range b.NICs {
		out = append(out, n.MAC)
	}
	return out
}

func newBrief(h *lpmos.Hardware) *brief {
	if h == nil {
		return nil
	}
	b := &brief{System: h.System, Board: h.Board, Chassis: h.Chassis, CPU: h.CPU, Memory: h.Memory}
	for _, d := range h.Disks {
		b.Disks = append(b.Disks, briefDisk{d.SizeBytes, d.Model, d.Serial, d.WWN, d.Removable})
	}
	for _, n := range h.NICs {
		b.NICs = append(b.NICs, briefNIC{n.MAC})
	}
	return b
}

func foundBrief(f *lpmos.Found) *brief {
	if f == nil {
		return nil
	}
	b := &brief{part: true, System: lpmos.System{Manufacturer: f.Manufacturer, Product: f.Product, Serial: f.Serial, UUID: f.UUID}}
	for _, d := range f.Disks {
		b.Disks = append(b.Disks, briefDisk{Model: d.Model, Serial: d.Serial})
	}
	return b
}

// kept is lpmos.Machine and lpmos.Discovered as far as it is needed here.
type kept struct {
	MACs     []lpmos.MAC `json:"macs"`
	RegionID string      `json:"region_id"`
	TaskID   string      `json:"task_id"`
	Address  string      `json:"address"`
	LastSeen time.Time   `json:"last_seen"`
	SeenAt   time.Time   `json:"seen_at"`
	Hardware *brief      `json:"hardware"`
}

func (r *record) ids() iter.Seq[ident] {
	return func(yield func(ident) bool) {
		if r.uuid != "" && !yield(ident{uuid: r.uuid}) {
			return
		}
		for _, m := range r.macs {
			if !yield(ident{mac: m}) {
				return
			}
		}
	}
}

// machine is records that are one server, newest report first.
type machine struct {
	mac     lpmos.MAC
	uuid    string
	records []*record
	tasks   []*task // newest first
	sum     lpmos.Machine
	text    string // lower case, what free text is looked for in
	model   string // lower case, with the maker
	serial  string // lower case
	hidden  bool   // nothing but an address is known
}

func newFleet() fleet {
	return fleet{
		records: map[string]*record{}, byID: map[ident][]*record{}, owner: map[ident]*machine{},
		touched: map[ident]struct{}{}, gone: map[*machine]struct{}{},
	}
}

// set puts a record in the place of the one before of the same key; nil
// removes it.
func (f *fleet) set(key string, r *record) {
	if old := f.records[key]; old != nil {
		for id := range old.ids() {
			f.touched[id] = struct{}{}
			f.byID[id] = slices.DeleteFunc(f.byID[id], func(r *record) bool { return r == old })
			if len(f.byID[id]) == 0 {
				delete(f.byID, id)
			}
		}
		if old.machine != nil {
			f.gone[old.machine] = struct{}{}
		}
		delete(f.records, key)
	}
	if r == nil {
		return
	}
	r.key = key
	f.records[key] = r
	for id := range r.ids() {
		f.touched[id] = struct{}{}
		f.byID[id] = append(f.byID[id], r)
	}
}

func (f *fleet) setTask(id string, t *task) {
	if t == nil || t.Status == "" {
		f.set("task "+id, nil)
		return
	}
	r := &record{kind: store.KindMetadata, region: t.RegionID, primary: t.TargetMAC, at: t.UpdatedAt, hw: newBrief(t.Hardware), taskID: id, task: t}
	if old := f.records["task "+id]; r.hw == nil && t.left && old != nil && old.hw != nil {
		r.hw = old.hw // it has ended, and the rest of it is in the store
	} else if r.hw == nil && (t.left || !t.HardwareAt.IsZero()) {
		r.hw = foundBrief(t.Found)
	}
	r.macs = append(r.macs, t.TargetMAC)
	r.macs = append(r.macs, t.Claims...)
	r.uuid = lpmos.CanonicalUUID(t.ClaimUUID)
	if r.hw != nil {
		r.at = cmp.Or(t.HardwareAt, t.UpdatedAt)
		r.fromHardware()
	}
	r.macs = sortedMACs(r.macs)
	f.set("task "+id, r)
}

func (f *fleet) setFound(region string, mac lpmos.MAC, d *kept) {
	key := "found " + region + " " + mac.String()
	if d == nil {
		f.set(key, nil)
		return
	}
	r := &record{kind: store.KindDiscovered, region: region, primary: mac, macs: []lpmos.MAC{mac}, address: d.Address, at: d.SeenAt, hw: d.Hardware}
	r.fromHardware()
	r.macs = sortedMACs(r.macs)
	f.set(key, r)
}

func (f *fleet) setInfo(mac lpmos.MAC, m *kept) {
	key := "info " + mac.String()
	if m == nil {
		f.set(key, nil)
		return
	}
	r := &record{kind: store.KindAgentInfo, region: m.RegionID, primary: mac, macs: append([]lpmos.MAC{mac}, m.MACs...), at: m.LastSeen, hw: m.Hardware, taskID: m.TaskID}
	r.fromHardware()
	r.macs = sortedMACs(r.macs)
	f.set(key, r)
}

func (r *record) fromHardware() {
	if r.hw == nil {
		return
	}
	r.macs = append(r.macs, r.hw.MACs()...)
	r.uuid = cmp.Or(lpmos.CanonicalUUID(r.hw.System.UUID), r.uuid)
}

func sortedMACs(macs []lpmos.MAC) []lpmos.MAC {
	macs = slices.DeleteFunc(macs, lpmos.MAC.IsZero)
	slices.SortFunc(macs, compareMACs)
	return slices.Compact(macs)
}

func compareMACs(a, b lpmos.MAC) int { return slices.Compare(a[:], b[:]) }

// flush puts together anew what was touched.
func (f *fleet) flush() {
	if len(f.touched) == 0 {
		return
	}
	// Everything that is connected to a touched id through records.
	queue := slices.Collect(maps.Keys(f.touched))
	var affected []*record
	seen := map[*record]bool{}
	for len(queue) > 0 {
		id := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, r := range f.byID[id] {
			if seen[r] {
				continue
			}
			seen[r] = true
			affected = append(affected, r)
			if r.machine != nil {
				f.gone[r.machine] = struct{}{}
			}
			for next := range r.ids() {
				if _, done := f.touched[next]; !done {
					f.touched[next] = struct{}{}
					queue = append(queue, next)
				}
			}
		}
	}
	for id := range f.touched {
		delete(f.owner, id)
	}
	made := f.cluster(affected)
	if many := len(f.gone) + len(made); many > 64 {
		f.order = slices.DeleteFunc(f.order, func(m *machine) bool { _, ok := f.gone[m]; return ok })
		f.order = append(f.order, made...)
		slices.SortFunc(f.order, byAddress)
	} else {
		for m := range f.gone {
			if at, ok := slices.BinarySearchFunc(f.order, m, byAddress); ok {
				f.order = slices.Delete(f.order, at, at+1)
			}
		}
		for _, m := range made {
			at, _ := slices.BinarySearchFunc(f.order, m, byAddress)
			f.order = slices.Insert(f.order, at, m)
		}
	}
	clear(f.touched)
	clear(f.gone)
}

// byAddress is a total order: an address is one machine's alone.
func byAddress(a, b *machine) int { return compareMACs(a.mac, b.mac) }

// cluster gives each record to a machine. Reports come first, newest first:
// they say which addresses belong together now.
func (f *fleet) cluster(records []*record) (made []*machine) {
	slices.SortFunc(records, func(a, b *record) int {
		if (a.hw != nil) != (b.hw != nil) {
			if a.hw != nil {
				return -1
			}
			return 1
		}
		if a.hw != nil && a.at.Equal(b.at) && a.hw.part != b.hw.part {
			return map[bool]int{true: 1, false: -1}[a.hw.part]
		}
		return cmp.Or(b.at.Compare(a.at), strings.Compare(a.key, b.key))
	})
	for _, r := range records {
		m := f.match(r)
		if m == nil {
			m = &machine{uuid: r.uuid}
			made = append(made, m)
		}
		r.machine, m.records = m, append(m.records, r)
		for id := range r.ids() {
			if f.owner[id] == nil {
				f.owner[id] = m
			}
		}
		if m.uuid == "" {
			m.uuid = r.uuid
		}
	}
	for _, m := range made {
		m.summarize(f)
	}
	return made
}

func (f *fleet) match(r *record) *machine {
	if m := f.owner[ident{uuid: r.uuid}]; r.uuid != "" && m != nil {
		return m
	}
	if m := f.owner[ident{mac: r.primary}]; m != nil {
		return m
	}
	for _, mac := range r.macs {
		// A card alone does not make two systems with names of their own one.
		if m := f.owner[ident{mac: mac}]; m != nil && (m.uuid == "" || r.uuid == "" || m.uuid == r.uuid) {
			return m
		}
	}
	return nil
}

// summarize fills what lists and filters need.
func (m *machine) summarize(f *fleet) {
	now := m.records[0] // the newest report, or what is known without one
	s := lpmos.Machine{MACs: now.macs, UUID: m.uuid, RegionID: now.region}
	if owned := slices.DeleteFunc(slices.Clone(now.macs), func(x lpmos.MAC) bool { return f.owner[ident{mac: x}] != m }); len(owned) > 0 {
		s.MACs = owned
	}
	s.MAC = s.MACs[0]
	words := lpmos.UUIDSpellings(m.uuid)
	named := false
	for _, r := range m.records {
		if r.task != nil {
			m.tasks = append(m.tasks, r.task)
		}
		if r.hw != nil && r.at.After(s.LastSeen) {
			s.LastSeen = r.at
		}
		if r.address != "" && s.Address == "" {
			s.Address = r.address
		}
		if r.hw != nil && r.uuid != "" && !named {
			s.UUID, named = strings.ToLower(r.hw.System.UUID), true // as it was reported
		}
		for _, mac := range r.macs {
			words = append(words, mac.String())
		}
	}
	slices.SortFunc(m.tasks, func(a, b *task) int { return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), strings.Compare(a.ID, b.ID)) })
	if h := now.hw; h != nil {
		s.HardwareAt, s.Manufacturer, s.Model, s.Serial = now.at, h.System.Manufacturer, h.System.Product, h.System.Serial
		s.Arch, s.Cores, s.MemoryBytes = h.CPU.Architecture, h.CPU.Cores, h.Memory.TotalBytes
		for _, d := range h.Disks {
			words = append(words, d.Serial, d.WWN, d.Model)
			if !d.Removable {
				s.DiskCount, s.DiskBytes = s.DiskCount+1, s.DiskBytes+d.SizeBytes
			}
		}
		words = append(words, h.Board.Serial, h.Chassis.AssetTag, h.Chassis.Serial, h.CPU.Model)
	}
	s.TaskCount = len(m.tasks)
	if len(m.tasks) > 0 {
		t := m.tasks[0]
		for _, live := range m.tasks {
			if live.Status.Live() {
				t = live
				break
			}
		}
		s.TaskID, s.RegionID, s.Hostname, s.OS = t.ID, t.RegionID, t.Hostname, strings.TrimSpace(t.OSType+" "+t.OSVersion)
		for _, t := range m.tasks {
			words = append(words, t.Hostname)
			if t.Receipt != nil && t.Receipt.At.After(s.LastSeen) {
				s.LastSeen = t.Receipt.At
			}
		}
	}
	m.derive(&s)
	m.hidden = now.hw == nil && s.State != lpmos.MachineAllocated && s.State != lpmos.MachineInspecting && s.State != lpmos.MachineFailed && s.State != lpmos.MachineDeploying
	m.mac, m.sum = s.MAC, s
	m.model, m.serial = strings.ToLower(s.Manufacturer+" "+s.Model), strings.ToLower(s.Serial)
	words = append(words, s.Serial, s.Manufacturer, s.Model, s.RegionID, s.OS, s.Address, strings.ReplaceAll(string(s.State), "_", " "))
	m.text = strings.ToLower(strings.Join(words, "\n"))
}

// derive says where the machine stands: what its live task does, and else how
// the last one ended that left something on it.
func (m *machine) derive(s *lpmos.Machine) {
	for _, t := range m.tasks {
		switch t.Status {
		case lpmos.Pending:
			s.State = lpmos.MachineAllocated
			if r := t.reported(t.Attempt); r != nil && r.Agent != nil && r.Agent.Used {
				s.State = lpmos.MachineInspecting
			}
			return
		case lpmos.AwaitingApproval:
			s.State = lpmos.MachinePendingApproval
			return
		case lpmos.Approved, lpmos.Installing, lpmos.Verifying:
			s.State = lpmos.MachineDeploying
			return
		}
	}
	for _, t := range m.tasks {
		switch t.Status {
		case lpmos.Failed:
			s.State = lpmos.MachineFailed
			return
		case lpmos.Completed:
			s.State, s.Verified = lpmos.MachineDeployed, t.Verified()
			return
		}
	}
	s.State = lpmos.MachineReady
	if len(m.tasks) == 0 && m.records[0].taskID == "" {
		s.State = lpmos.MachineDiscovered
	}
}

// view is the machine for a list, with what changes from second to second.
func (m *machine) view() lpmos.Machine {
	v := m.sum
	v.HardwareAt = time.Time{}
	for _, t := range m.tasks {
		if r := t.reported(t.Attempt); r != nil && t.Status.Live() {
			if p := r.Progress; p != nil && p.UpdatedAt.After(v.LastSeen) {
				v.LastSeen = p.UpdatedAt
			}
			if a := r.Agent; a != nil {
				if a.BootedAt.After(v.LastSeen) {
					v.LastSeen = a.BootedAt
				}
				v.Address = a.Address
			}
		}
	}
	return v
}

// seen is the newest report that is not of the given task, nor of a record.
func (m *machine) seen(taskID string, not *record) *record {
	for _, r := range m.records {
		if r.hw == nil || r == not || taskID != "" && r.taskID == taskID {
			continue
		}
		return r
	}
	return nil
}

// sighting reads what a record is about from the store; nil while that does not
// answer. The record's own fields never change.
func (s *State) sighting(r *record) *lpmos.Sighting {
	if r == nil {
		return nil
	}
	out := &lpmos.Sighting{At: r.at, RegionID: r.region, TaskID: r.taskID}
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	switch r.kind {
	case store.KindMetadata:
		if t, ok := s.Task(r.taskID); ok {
			out.Hardware = t.Hardware
		}
	case store.KindAgentInfo:
		m, err := s.src.MachineInfo(ctx, r.primary)
		if out.Hardware = m.Hardware; err != nil {
			s.log.Warn("read what is kept of a machine", "mac", r.primary, "err", err)
		}
	case store.KindDiscovered:
		d, err := s.src.Discovered(ctx, r.region, r.primary)
		if out.Hardware = d.Hardware; err != nil {
			s.log.Warn("read what is kept of a machine", "mac", r.primary, "err", err)
		}
	}
	if out.Hardware == nil {
		return nil
	}
	return out
}

// Machines answers a query, by address.
func (s *State) Machines(q api.MachineQuery) api.MachinePage {
	if q.Limit <= 0 {
		q.Limit = 100
	}
	terms := parseTerms(q.Text)
	after, err := lpmos.ParseMAC(q.Cursor)
	resume := q.Cursor != "" && err == nil
	s.mu.RLock()
	defer s.mu.RUnlock()
	page := api.MachinePage{Rev: s.rev, Counts: map[lpmos.MachineState]int{}}
	for _, m := range s.fleet.order {
		if m.hidden || q.RegionID != "" && m.sum.RegionID != q.RegionID || q.Within != nil && !slices.Contains(q.Within, m.sum.RegionID) || !terms.match(m) {
			continue
		}
		page.Counts[m.sum.State]++
		if q.State != "" && m.sum.State != q.State {
			continue
		}
		page.Total++
		if resume && compareMACs(m.mac, after) <= 0 {
			continue
		}
		if len(page.Machines) == q.Limit {
			if page.NextCursor == "" {
				page.NextCursor = page.Machines[q.Limit-1].MAC.String()
			}
			continue
		}
		page.Machines = append(page.Machines, m.view())
	}
	return page
}

// Machine is everything known of the machine that has, or had, an address.
// Hardware is read from the store, and left out while that does not answer.
func (s *State) Machine(mac lpmos.MAC) (lpmos.Machine, bool) {
	s.mu.RLock()
	m := s.fleet.owner[ident{mac: mac}]
	if m == nil || m.hidden {
		s.mu.RUnlock()
		return lpmos.Machine{}, false
	}
	v, now := m.view(), m.records[0]
	v.HardwareAt, v.Lock, v.TPM = m.sum.HardwareAt, s.lockOf(m.sum.MACs), s.tpmOf(m.sum.MACs)
	mine := false // the task that reported last is still there
	for _, t := range m.tasks {
		mine = mine || t.ID == now.taskID
		v.Tasks = append(v.Tasks, lpmos.MachineTask{
			TaskID: t.ID, Status: t.Status, Verified: t.Verified(), Hostname: t.Hostname, OSType: t.OSType, OSVersion: t.OSVersion,
			Attempt: t.Attempt, CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy, UpdatedAt: t.UpdatedAt,
		})
	}
	before := m.seen(now.taskID, now)
	s.mu.RUnlock()
	if mine {
		// What was known when it reported, whatever was forgotten since.
		if t, ok := s.Task(now.taskID); ok {
			v.Hardware, v.Previous = t.Hardware, t.Previous
		}
	}
	if v.Hardware == nil && now.hw != nil {
		if x := s.sighting(now); x != nil {
			v.Hardware = x.Hardware
		}
	}
	if v.Previous == nil {
		v.Previous = s.sighting(before)
	}
	if v.Previous != nil {
		v.Differences = lpmos.DiffHardware(v.Previous.Hardware, v.Hardware)
	}
	return v, true
}

// Seen is the machine with this hardware as it was last seen, but for the given
// task; nil when it was not.
func (s *State) Seen(taskID string, mac lpmos.MAC, h *lpmos.Hardware) *lpmos.Sighting {
	r := &record{primary: mac, macs: []lpmos.MAC{mac}, hw: newBrief(h)}
	r.fromHardware()
	s.mu.RLock()
	var before *record
	if m := s.fleet.match(r); m != nil {
		before = m.seen(taskID, nil)
	}
	s.mu.RUnlock()
	return s.sighting(before)
}

// term is one word of a search.
type term struct {
	key, value string // key "" is free text
	not        bool
}

type terms []term

var termKeys = []string{"region", "state", "model", "serial", "mac", "host"}

func parseTerms(text string) (out terms) {
	for _, word := range strings.Fields(strings.ToLower(text)) {
		var t term
		if rest := strings.TrimLeft(word, "!-"); rest != word && rest != "" {
			t.not, word = true, rest
		}
		t.value = word
		if key, value, ok := strings.Cut(word, ":"); ok && value != "" && slices.Contains(termKeys, key) {
			t.key, t.value = key, value
		}
		if mac, err := lpmos.ParseMAC(t.value); err == nil && (t.key == "" || t.key == "mac") {
			t.value = mac.String() // whatever its spelling
		}
		out = append(out, t)
	}
	return out
}

func (ts terms) match(m *machine) bool {
	for _, t := range ts {
		var ok bool
		switch t.key {
		case "region":
			ok = m.sum.RegionID == t.value
		case "state":
			ok = string(m.sum.State) == strings.ReplaceAll(t.value, "-", "_")
		case "model":
			ok = strings.Contains(m.model, t.value)
		case "serial":
			ok = strings.Contains(m.serial, t.value)
		case "host":
			ok = strings.Contains(m.sum.Hostname, t.value)
		case "mac":
			ok = slices.ContainsFunc(m.sum.MACs, func(x lpmos.MAC) bool { return strings.Contains(x.String(), t.value) })
		default:
			ok = strings.Contains(m.text, t.value)
		}
		if ok == t.not {
			return false
		}
	}
	return true
}

// applyFleet notes what a change says about machines.
func (s *State) applyFleet(c store.Change, moved map[string]bool) {
	switch c.Key.Kind {
	case store.KindMetadata, store.KindStatus, store.KindHardware, store.KindReportAgent, store.KindReceipt, store.KindPrevious, store.KindArchive:
		moved[c.Key.TaskID] = true
	case store.KindDiscovered, store.KindAgentInfo:
		if !s.listing { // else see readListing
			s.fleet.setSeen(c.Key, s.readSeen(c))
		}
	}
}

func (s *State) readSeen(c store.Change) *kept {
	k, err := pointer[kept](c)
	s.report(err, c)
	return k
}

func (f *fleet) setSeen(key store.Key, k *kept) {
	if key.Kind == store.KindDiscovered {
		f.setFound(key.Region, key.MAC, k)
	} else {
		f.setInfo(key.MAC, k)
	}
}
