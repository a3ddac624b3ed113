// Package state is the control plane's read model: every task, region and
// image in memory, kept fresh by one watch on the store. Lists, filters, counts
// and pages are answered from here; decisions are made against the store
// itself, by the orchestrator. Only hardware, plan and log of tasks that have
// ended are not kept: they are most of what there is, and are read from the
// store when somebody looks at one.
//
// Run is the only writer. All other methods may be called concurrently; what
// they return is a copy whose pointers lead to values that are never changed
// in place.
package state

import (
	"cmp"
	"context"
	"iter"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/store"
)

type source interface {
	ID() string
	Changes(ctx context.Context, scope store.Scope) iter.Seq2[store.Batch, error]
	Task(ctx context.Context, id string) (store.Record, error)
	MachineInfo(ctx context.Context, mac lpmos.MAC) (lpmos.Machine, error)
	Discovered(ctx context.Context, region string, mac lpmos.MAC) (lpmos.Discovered, error)
}

var _ source = (*store.Store)(nil)

// State is the read model.
type State struct {
	src    source
	log    *slog.Logger
	listen []func(api.Update)
	follow []func(store.Batch)
	synced chan struct{}
	now    func() time.Time

	mu      sync.RWMutex // guards what follows
	rev     int64
	moved   chan struct{} // closed when rev is another
	ready   bool
	listing bool // a reset is being read: rows are not in order yet
	tasks   map[string]*task
	rows    []row // of every task that is listed, see older
	// byStatus holds, for each of lpmos.Statuses, the tasks that are in it.
	byStatus     [16][]*task
	counts       map[lpmos.Status]int
	regionCounts map[uint16]map[lpmos.Status]int // by number in names
	names        []string                        // of regions and systems, by number
	nameOf       map[string]uint16
	hosts        []host         // by name
	runs         map[kind]*runs // what earlier installs took

	regions  map[string]*region
	fetchers map[string]string // hash of a region's fetch secret → its id
	images   map[string]lpmos.Image

	imageRevs map[string]int64 // that wrote the entries of images
	global    store.Global
	fleet     fleet
	safety    safety

	defaultLimit int // of permits, see SetPermitLimit

	profiles  map[string]lpmos.Profile
	templates map[string]lpmos.Template
}

type task struct {
	lpmos.Task
	reports map[reporter]*reports
	row     row  // as lists see it
	left    bool // Hardware and Plan are in the store alone
	leftLog bool // LogTail is
	learnt  bool // see State.learn
	placed  bool // in State.rows
	at      int  // in State.byStatus
}

// reporter is who reports of a task. A region may write reports of any task it
// can name; only those of the task's own region count, and which that is, a
// listing says after the reports.
type reporter struct {
	region  string
	attempt int
}

// reported is what the task's own region said of an attempt, nil for nothing.
func (t *task) reported(attempt int) *reports { return t.reports[reporter{t.RegionID, attempt}] }

type reports struct {
	api.Reports
	chunks map[int]string
	trend  trend
}

type region struct {
	lpmos.Region
	alive   bool
	fetcher string // see State.Fetcher
}

// New makes an empty read model. Listeners are called by Run, one update at a
// time in the order of revisions; they must not block.
func New(src source, log *slog.Logger, listen ...func(api.Update)) *State {
	s := &State{src: src, log: log, listen: listen, synced: make(chan struct{}), moved: make(chan struct{}), now: time.Now}
	s.clear()
	return s
}

func (s *State) clear() {
	s.tasks, s.rows, s.byStatus, s.counts = map[string]*task{}, nil, [16][]*task{}, map[lpmos.Status]int{}
	s.regionCounts, s.names, s.nameOf, s.hosts = map[uint16]map[lpmos.Status]int{}, nil, map[string]uint16{}, nil
	s.imageRevs = map[string]int64{}
	s.runs = map[kind]*runs{}
	s.regions, s.images, s.fetchers = map[string]*region{}, map[string]lpmos.Image{}, map[string]string{}
	s.profiles, s.templates = map[string]lpmos.Profile{}, map[string]lpmos.Template{}
	s.global, s.fleet, s.safety = store.Global{}, newFleet(), newSafety()
}

// Listen adds a listener. It must not be called once Run has begun.
func (s *State) Listen(f func(api.Update)) { s.listen = append(s.listen, f) }

// Follow adds somebody who sees the batches themselves, before what was made
// of them can be read. It must not be called once Run has begun.
func (s *State) Follow(f func(store.Batch)) { s.follow = append(s.follow, f) }

// Run follows the store until ctx ends.
func (s *State) Run(ctx context.Context) error {
	for b, err := range s.src.Changes(ctx, store.All) {
		if err != nil {
			return err
		}
		for _, f := range s.follow {
			f(b)
		}
		u := s.apply(b)
		for _, f := range s.listen {
			f(u)
		}
	}
	return nil
}

// Synced is closed when the first listing is in memory.
func (s *State) Synced() <-chan struct{} { return s.synced }

// apply brings one batch into memory. In the update, status comes last: its
// revision is a safe place to resume after.
func (s *State) apply(b store.Batch) api.Update {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := api.Update{Rev: b.Rev, Reset: b.Reset}
	if b.Reset {
		s.clear()
		s.listing = true
	}
	s.rev = b.Rev
	close(s.moved)
	s.moved = make(chan struct{})
	touched := map[string]bool{} // whether what words are looked for in changed
	moved := map[string]bool{}   // tasks that say something new about machines
	var statuses []string
	for _, c := range b.Changes {
		s.applyFleet(c, moved)
		if c.Key.Kind == store.KindArchive { // read by readListing
			s.know(c.Key.TaskID)
			touch(touched, c.Key.TaskID, true)
			continue
		}
		if taskPart(c.Key.Kind) {
			s.applyTask(c, touched)
			if c.Value == nil || c.Left {
				continue
			}
			switch c.Key.Kind {
			case store.KindStatus:
				statuses = append(statuses, c.Key.TaskID)
			case store.KindHardware:
				if t := s.tasks[c.Key.TaskID]; t != nil {
					u.Events = append(u.Events, api.Event{Type: api.EventHardware, TaskID: t.ID, RegionID: t.RegionID, Hardware: t.Hardware})
				}
			}
			continue
		}
		switch c.Key.Kind {
		case store.KindReportAgent, store.KindReportHardware, store.KindReportProgress, store.KindReportPermit,
			store.KindReportLog, store.KindReportResult, store.KindReportBooted:
			if e, ok := s.applyReport(c); ok {
				u.Events = append(u.Events, e)
			}
			touch(touched, c.Key.TaskID, false)
		case store.KindHeartbeat, store.KindCapabilities:
			if e, ok := s.applyRegion(c); ok {
				u.Events = append(u.Events, e)
			}
		case store.KindImage:
			name := c.Key.OS + "/" + c.Key.Version + "/" + c.Key.Arch
			if i, err := store.Decode[lpmos.Image](c); c.Value == nil || err != nil {
				delete(s.images, name)
				s.report(err, c)
			} else {
				s.images[name], s.imageRevs[name] = i, c.Rev
			}
		case store.KindProfile:
			applyNamed(s, s.profiles, c)
		case store.KindTemplate:
			applyNamed(s, s.templates, c)
		case store.KindStop, store.KindLock, store.KindTPM, store.KindPermits:
			s.applySafety(c)
		case store.KindGlobal:
			// What cannot be read protects nothing: what was known stays.
			if g, err := store.Decode[store.Global](c); err == nil || c.Value == nil {
				s.global = g
			} else {
				s.report(err, c)
			}
		}
	}
	if s.listing {
		s.readListing(b.Changes)
	}
	for id := range moved {
		s.fleet.setTask(id, s.tasks[id])
	}
	var machines sync.WaitGroup
	if s.listing {
		machines.Go(s.fleet.flush) // beside the rows: it reads of tasks what these do not write
	} else {
		s.fleet.flush()
	}
	for id, words := range touched {
		if t := s.tasks[id]; t != nil {
			if words && !s.listing {
				t.index()
			}
			s.place(t)
		}
	}
	if b.Reset {
		s.settle()
		machines.Wait()
		s.listing = false
		u.Events = nil
		if !s.ready {
			s.ready = true
			close(s.synced)
		}
	} else {
		for _, id := range statuses {
			if t := s.tasks[id]; t != nil {
				u.Events = append(u.Events, api.Event{
					Type: api.EventStatus, TaskID: id, RegionID: t.RegionID, Status: string(t.Status), Attempt: t.Attempt, Failure: t.Error,
				})
			}
		}
	}
	u.Tasks = slices.Sorted(maps.Keys(touched))
	return u
}

func (s *State) report(err error, c store.Change) {
	if err != nil && c.Value != nil {
		s.log.Error("value in the store cannot be read", "key", c.Key.String(), "err", err)
	}
}

// touch notes that a task changed, and whether the words it is found by did.
func touch(touched map[string]bool, id string, words bool) {
	touched[id] = touched[id] || words
}

func (s *State) applyTask(c store.Change, touched map[string]bool) {
	id := c.Key.TaskID
	switch c.Key.Kind {
	case store.KindProgress, store.KindLogs, store.KindReceipt, store.KindPlan, store.KindStatus, store.KindPrevious, store.KindTaskTemplate, store.KindTaskSetup:
		touch(touched, id, false)
	default:
		touch(touched, id, true)
	}
	t := s.tasks[id]
	if c.Value == nil && !c.Left && (c.Key.Kind == store.KindStatus || t == nil) {
		if t != nil {
			s.drop(t)
			delete(s.tasks, id)
		}
		return
	}
	t = s.know(id)
	t.leave(c)
	if !s.listing { // else see readListing
		s.read(t, c)
	}
}

// know is the task of an id, a new one if nothing was known of it.
func (s *State) know(id string) *task {
	t := s.tasks[id]
	if t == nil {
		t = &task{reports: map[reporter]*reports{}}
		t.ID = id
		s.tasks[id] = t
	}
	return t
}

// leave notes what of a task is in the store alone.
func (t *task) leave(c store.Change) {
	switch c.Key.Kind {
	case store.KindHardware, store.KindPlan:
		t.left = c.Left
	case store.KindPrevious, store.KindTaskTemplate, store.KindTaskSetup:
		t.left = t.left || c.Left
	case store.KindLogs:
		t.leftLog = c.Left
	}
}

func (s *State) read(t *task, c store.Change) {
	if c.Left {
		return
	}
	if err := store.SetPart(&t.Task, c.Key, c.Value); err != nil {
		s.log.Error("value in the store cannot be read", "key", c.Key.String(), "err", err)
		return
	}
	t.Rev = max(t.Rev, c.Rev)
	if c.Key.Kind == store.KindProgress {
		t.recall()
	}
}

// readListing reads what a listing says of tasks and machines, on all
// processors: it is most of what is to be done before the first page can be
// shown. What is said of one task is read in order, by one of them.
func (s *State) readListing(all []store.Change) {
	seen := make([]*kept, len(all))
	var wg sync.WaitGroup
	readers := runtime.GOMAXPROCS(0)
	for reader := range readers {
		wg.Go(func() {
			mine := func(id string) bool { return int(id[len(id)-1])%readers == reader }
			for i := range all {
				switch c := &all[i]; {
				case c.Value == nil:
				case c.Key.Kind == store.KindArchive && mine(c.Key.TaskID):
					s.readArchived(s.tasks[c.Key.TaskID], *c)
				case taskPart(c.Key.Kind) && mine(c.Key.TaskID):
					s.read(s.tasks[c.Key.TaskID], *c)
				case (c.Key.Kind == store.KindAgentInfo || c.Key.Kind == store.KindDiscovered) && i%readers == reader:
					seen[i] = s.readSeen(*c)
				}
			}
			for id, t := range s.tasks {
				if mine(id) {
					t.index()
				}
			}
		})
	}
	wg.Wait()
	for i, k := range seen {
		if k != nil {
			s.fleet.setSeen(all[i].Key, k)
		}
	}
}

func (s *State) readArchived(t *task, c store.Change) {
	parts, err := c.Archived()
	s.report(err, c)
	for _, part := range parts {
		t.leave(part)
		s.read(t, part)
	}
}

// taskPart reports whether keys of this kind are a part of a task.
func taskPart(k store.Kind) bool {
	switch k {
	case store.KindMetadata, store.KindStatus, store.KindHardware, store.KindPlan, store.KindApproval,
		store.KindProgress, store.KindLogs, store.KindError, store.KindReceipt, store.KindTaskTemplate, store.KindTaskSetup, store.KindPrevious:
		return true
	}
	return false
}

// recall adds to a report when the stages before it began, which after a
// restart only the folded progress knows; a listing brings it after the report.
func (t *task) recall() {
	f, r := t.Task.Progress, t.reported(t.Attempt)
	if f == nil || r == nil || r.Progress == nil || f.Attempt != r.Progress.Attempt {
		return
	}
	p := *r.Progress
	known := p.Begun
	p.Begun = f.Begun
	for _, b := range known {
		p = *p.Begin(b.Stage, b.At)
	}
	if len(p.Begun) > len(known) {
		r.Progress = &p
	}
}

func (s *State) applyReport(c store.Change) (api.Event, bool) {
	if c.Value == nil && s.tasks[c.Key.TaskID] == nil {
		return api.Event{}, false
	}
	t := s.know(c.Key.TaskID) // in a listing regions/ comes before tasks/
	by := reporter{c.Key.Region, c.Key.Attempt}
	r := t.reports[by]
	if r == nil {
		r = &reports{chunks: map[int]string{}}
		t.reports[by] = r
	}
	r.Rev = max(r.Rev, c.Rev)
	e := api.Event{TaskID: t.ID, RegionID: c.Key.Region, Attempt: c.Key.Attempt}
	var err error
	switch c.Key.Kind {
	case store.KindReportAgent:
		r.Agent, err = pointer[lpmos.AgentRecord](c)
	case store.KindReportHardware:
		r.Hardware, err = pointer[lpmos.Hardware](c)
	case store.KindReportPermit:
		r.Permit, err = pointer[lpmos.PermitRequest](c)
		r.ProgressRev = c.Rev
	case store.KindReportResult:
		r.Result, err = pointer[lpmos.Result](c)
		r.ProgressRev = c.Rev
	case store.KindReportBooted:
		r.Booted, err = pointer[lpmos.Receipt](c)
	case store.KindReportProgress:
		r.ProgressRev = c.Rev
		was := t.progress()
		var p *lpmos.Progress
		if p, err = pointer[lpmos.Progress](c); p != nil {
			p = t.begun(p, r.Progress)
		}
		if p == nil || p.After(r.Progress) {
			r.Progress = p // an older value that comes late is not shown
			r.trend.add(p)
		}
		if p != nil && c.Key.Attempt == t.Attempt && p.After(was) {
			e.Type, e.Progress = api.EventProgress, p
		}
	case store.KindReportLog:
		if c.Value == nil {
			delete(r.chunks, c.Key.Chunk)
			break
		}
		var text string
		text, err = store.Decode[string](c)
		added := strings.TrimPrefix(text, r.chunks[c.Key.Chunk])
		r.chunks[c.Key.Chunk] = text
		if lines := splitLines(added); len(lines) > 0 {
			e.Type, e.Lines = api.EventLog, lines
		}
	}
	s.report(err, c)
	if r.empty() { // its region has cleared it away
		delete(t.reports, by)
		if by.region == t.RegionID {
			t.Rev = max(t.Rev, r.Rev)
		}
	}
	return e, e.Type != "" && by.region == t.RegionID
}

// empty reports whether nothing is left of what was reported.
func (r *reports) empty() bool {
	return len(r.chunks) == 0 && r.Agent == nil && r.Hardware == nil && r.Permit == nil && r.Progress == nil && r.Result == nil && r.Booted == nil
}

func pointer[T any](c store.Change) (*T, error) {
	if c.Value == nil {
		return nil, nil
	}
	v, err := store.Decode[T](c)
	if err != nil {
		return nil, err
	}
	return &v, nil
}

func (s *State) applyRegion(c store.Change) (api.Event, bool) {
	r := s.regions[c.Key.Region]
	if r == nil {
		r = &region{Region: lpmos.Region{ID: c.Key.Region, Status: "offline"}}
		s.regions[r.ID] = r
	}
	r.Rev = c.Rev
	if c.Key.Kind == store.KindCapabilities {
		caps, err := pointer[lpmos.Capabilities](c)
		s.report(err, c)
		if r.Capabilities != nil {
			delete(s.fetchers, r.fetcher)
		}
		r.fetcher = ""
		if caps != nil && lpmos.ValidDigest(caps.Fetcher) {
			// It opens something to who knows what it is the hash of; nobody who
			// looks at a region needs it.
			r.fetcher, caps.Fetcher = caps.Fetcher, ""
			s.fetchers[r.fetcher] = r.ID
		}
		r.Capabilities = caps
		return api.Event{}, false
	}
	was := r.Status
	r.alive, r.Status = c.Value != nil, "offline"
	if r.alive {
		r.Status = "online"
	}
	if was != r.Status || r.Since.IsZero() {
		r.Since = time.Now().UTC()
	}
	return api.Event{Type: api.EventRegion, RegionID: r.ID, Status: r.Status}, was != r.Status
}

// progress is the newest there is: the region's report laid over what was
// folded into the task, so that nothing moves backwards.
func (t *task) progress() *lpmos.Progress {
	p := t.Task.Progress
	if r := t.reported(t.Attempt); r != nil && r.Progress != nil && r.Progress.After(p) {
		p = r.Progress
	}
	return p
}

// begun puts into p when the stages of its attempt began. The newest progress
// that is known says so, be it what was reported last or, after a restart, what
// was folded into the task.
func (t *task) begun(p, last *lpmos.Progress) *lpmos.Progress {
	p.Begun = nil
	known := cmp.Or(last, t.Task.Progress)
	if known != nil && known.Attempt == p.Attempt {
		p.Begun = known.Begun
	}
	if n := len(p.Begun); n > 0 && p.Stage.Number() < p.Begun[n-1].Stage.Number() {
		return p // late
	}
	return p.Begin(p.Stage, p.UpdatedAt)
}

func (t *task) view() lpmos.Task {
	v := t.Task
	v.Progress = t.progress()
	for by, r := range t.reports {
		if by.region == t.RegionID {
			v.Rev = max(v.Rev, r.Rev)
		}
	}
	if r := t.reported(t.Attempt); r != nil && r.Agent != nil && r.Agent.Key != nil {
		fp := r.Agent.Key.Fingerprint()
		v.AgentKey = &lpmos.AgentIdentity{Fingerprint: fp, Words: lpmos.KeyWords(fp), BootSeq: r.Agent.BootSeq, BootedAt: r.Agent.BootedAt}
	}
	return v
}

func splitLines(text string) []string {
	text = strings.TrimRight(text, "\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}
