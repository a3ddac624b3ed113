package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/sim"
)

// scenario is what is driven against a site.
type scenario struct {
	Name, Title string
	Machines    int // each with a task
	Clients     int // each watches one task
	All         int // watch everything
	Stalled     int // subscribe to everything and read nothing
	Ramp        time.Duration
	Install     time.Duration
	Every       time.Duration // between two progress reports of a machine
	// Beside runs etcd as a process of its own, as for replicas; else it is in the
	// control plane's.
	Beside bool

	// Aims.
	P99       time.Duration
	Evicted   time.Duration
	RSSGrowth int64 // of the control plane, bytes; 0 for no aim
	RSS       int64
}

// target is the site that is driven.
type target struct {
	addr     string // of the control plane
	token    string // for it
	api      *apiclient.Client
	image    lpmos.Image
	region   string
	macs     []lpmos.MAC                 // of the machines
	machines func(context.Context) error // switches them on; returns when they have ended
	observe  func() observation
}

// observation is what is seen from outside.
type observation struct {
	control, etcd, region, machines, self usage
	goroutines                            int // of the control plane, 0 if it does not say
}

// sample is one second.
type sample struct {
	At         float64 // seconds since the machines were switched on
	P50, P99   float64 // milliseconds
	Messages   float64 // a second, to all clients
	Updates    float64 // progress reports a second that reached a browser
	RSS        float64 // of the control plane, MB
	Anon       float64 // of that, what are no pages of files
	CPU        float64 // of the control plane, processors
	Goroutines float64
}

// result is what came of a scenario.
type result struct {
	scenario
	At         time.Time
	SetUp      time.Duration // of all connections
	Steady     time.Duration
	SteadyAt   float64          // seconds since the machines were switched on
	Whole      [4]time.Duration // p50, p95, p99, longest, from the first report to the last
	Window     [4]time.Duration // while all machines install
	Updates    float64          // a second, in the window
	Messages   int64
	Peak       float64 // messages a second
	Lost       []string
	Statuses   int // compared
	Backwards  int64
	Resyncs    int64
	Broken     int
	Stalls     []time.Duration // until each was cut off; 0 for not at all
	RSS        [3]int64        // before the clients, the most, after them
	Anon       int64           // of the most, what are no pages of files
	Etcd       int64           // RSS of etcd, the most, where it is a process of its own
	Goroutines [3]int
	Left       int // goroutines of the hub after the clients went; -1 for unknown
	CPU        map[string]float64
	Samples    []sample
	Verdicts   []verdict
}

// verdict is one aim.
type verdict struct {
	What, Want, Got string
	OK              bool
}

func (r *result) judge(ok bool, what, want, got string) {
	r.Verdicts = append(r.Verdicts, verdict{what, want, got, ok})
}

// drive runs a scenario. Errors are of the test; what the site did wrong is in
// the result.
func (sc scenario) drive(ctx context.Context, t *target, say func(string, ...any)) (*result, error) {
	r := &result{scenario: sc, At: time.Now(), Left: -1, CPU: map[string]float64{}}
	// All machines are to write at once.
	if _, err := t.api.SetLimits(ctx, lpmos.Limits{PermitsPerMinute: 100_000}, ""); err != nil {
		return nil, err
	}
	op := sim.NewOperator(t.api, lpmos.Spec{RegionID: t.region, OSType: t.image.OS, OSVersion: t.image.Version}, t.macs)
	byMAC, err := op.Create(ctx)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(t.macs))
	for i, m := range t.macs {
		ids[i] = byMAC[m]
	}
	say("%d tasks created", len(ids))

	before := t.observe()
	rec := &recorder{began: time.Now()}
	crowd := &crowd{rec: rec}
	defer crowd.close()
	began := time.Now()
	if err := crowd.connect(ctx, t.addr, t.token, sc.Clients, func(i int) string { return ids[i%len(ids)] }); err != nil {
		return nil, err
	}
	if err := crowd.connect(ctx, t.addr, t.token, sc.All, func(int) string { return "" }); err != nil {
		return nil, err
	}
	r.SetUp = time.Since(began)
	say("%d sockets connected in %s", len(crowd.watchers), r.SetUp.Round(time.Millisecond))

	// Machines, their approval, and an eye on it all.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	rec.began = time.Now()
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel(nil)
	background.Go(func() {
		if err := op.Approve(ctx); err != nil {
			cancel(err)
		}
	})
	looking, stopLooking := context.WithCancel(ctx)
	defer stopLooking()
	var look observer
	background.Go(func() { look.run(looking, t, crowd, rec.began) })
	var stalls []*stalled
	background.Go(func() {
		var err error
		if stalls, err = r.steady(looking, t, rec); err != nil && looking.Err() == nil {
			cancel(err)
		}
	})
	if err := t.machines(ctx); err != nil {
		return nil, fmt.Errorf("machines: %w", err)
	}
	say("all machines have ended; comparing what was shown with what is")
	if err := r.compare(ctx, t, crowd, ids); err != nil {
		return nil, err
	}
	stopLooking()
	cancel(nil)
	background.Wait()
	for _, s := range stalls {
		r.Stalls = append(r.Stalls, s.took)
		s.s.conn.Close()
	}
	r.Broken, _ = crowd.broken()
	r.Messages, r.Backwards, r.Resyncs = crowd.messages.Load(), crowd.back.Load(), crowd.resyncs.Load()
	crowd.close()
	for i, share := range []float64{0.5, 0.95, 0.99} {
		r.Whole[i], r.Window[i] = rec.whole.at(share), rec.window.at(share)
	}
	r.Whole[3], r.Window[3] = rec.whole.at(1), rec.window.at(1)
	if r.Steady > 0 && sc.Clients > 0 {
		perUpdate := float64(sc.Clients) / float64(sc.Machines)
		r.Updates = float64(rec.window.n.Load()) / perUpdate / r.Steady.Seconds()
	}
	r.Samples = look.samples
	for i := range r.Samples {
		s := &r.Samples[i]
		if at := int(s.At); at >= 1 && at <= maxSeconds {
			h := &rec.seconds[at-1]
			s.P50, s.P99 = h.at(0.5), h.at(0.99)
			s.Updates = float64(h.n.Load()) * float64(sc.Machines) / float64(max(sc.Clients, 1))
		}
		r.Peak = max(r.Peak, s.Messages)
	}
	after := t.observe()
	for deadline := time.Now().Add(15 * time.Second); after.goroutines > before.goroutines && time.Now().Before(deadline); after = t.observe() {
		time.Sleep(200 * time.Millisecond)
	}
	r.RSS = [3]int64{before.control.rss, max(look.rss, before.control.rss), after.control.rss}
	r.Anon, r.Etcd = look.anon, look.etcd
	r.Goroutines = [3]int{before.goroutines, look.goroutines, after.goroutines}
	return r, nil
}

// observer samples a run.
type observer struct {
	mu         sync.Mutex // guards what follows
	samples    []sample
	rss, anon  int64 // of the control plane
	etcd       int64
	goroutines int
}

func (o *observer) run(ctx context.Context, t *target, c *crowd, began time.Time) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last, at, messages := t.observe(), time.Now(), c.messages.Load()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, seen, n := time.Now(), t.observe(), c.messages.Load()
		took := now.Sub(at).Seconds()
		o.mu.Lock()
		if seen.control.rss > o.rss {
			o.rss, o.anon = seen.control.rss, seen.control.anon
		}
		o.etcd, o.goroutines = max(o.etcd, seen.etcd.rss), max(o.goroutines, seen.goroutines)
		o.samples = append(o.samples, sample{
			At: now.Sub(began).Seconds(), Messages: float64(n-messages) / took, RSS: float64(seen.control.rss) / 1e6, Anon: float64(seen.control.anon) / 1e6,
			CPU: (seen.control.cpu - last.control.cpu).Seconds() / took, Goroutines: float64(seen.goroutines),
		})
		o.mu.Unlock()
		last, at, messages = seen, now, n
	}
}

// steady waits until all machines install, and measures until the first is
// done. The stalled clients come in this time.
func (r *result) steady(ctx context.Context, t *target, rec *recorder) ([]*stalled, error) {
	installing := func() int {
		l, err := t.api.Tasks(ctx, url.Values{"status": {string(lpmos.Installing)}, "limit": {"1"}})
		if err != nil {
			return -1
		}
		return l.Total
	}
	wait := func(done func(n int) bool) bool {
		for ctx.Err() == nil {
			if n := installing(); n >= 0 && done(n) {
				return true
			}
			select {
			case <-ctx.Done():
			case <-time.After(250 * time.Millisecond):
			}
		}
		return false
	}
	if !wait(func(n int) bool { return n == r.Machines }) {
		return nil, nil
	}
	first, began := t.observe(), time.Now()
	r.SteadyAt = began.Sub(rec.began).Seconds()
	rec.steady.Store(true)
	stalls, err := stall(ctx, t.addr, t.token, r.Stalled)
	if err != nil {
		return stalls, err
	}
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		watchStalled(ctx, stalls)
	}()
	wait(func(n int) bool { return n < r.Machines })
	rec.steady.Store(false)
	last := t.observe()
	r.Steady = time.Since(began)
	cpu := func(name string, a, b usage) { r.CPU[name] = (b.cpu - a.cpu).Seconds() / r.Steady.Seconds() }
	cpu("control plane", first.control, last.control)
	if r.Beside {
		cpu("etcd", first.etcd, last.etcd)
	}
	cpu("region", first.region, last.region)
	cpu("machines", first.machines, last.machines)
	cpu("sockets", first.self, last.self)
	<-watching
	return stalls, nil
}

var lives = []string{string(lpmos.Pending), string(lpmos.AwaitingApproval), string(lpmos.Approved), string(lpmos.Installing), string(lpmos.Verifying)}

// compare holds what every client was shown against the history of each task.
func (r *result) compare(ctx context.Context, t *target, c *crowd, ids []string) error {
	// A machine is done when its region has taken the call home; that the task
	// is completed follows.
	live := url.Values{"status": {strings.Join(lives, ",")}, "limit": {"1"}}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if l, err := t.api.Tasks(ctx, live); err != nil {
			return err
		} else if l.Total == 0 {
			break
		}
	}
	want := make(map[string][]lpmos.Status, len(ids))
	current := make(map[string]lpmos.Status, len(ids))
	for _, id := range ids {
		events, err := t.api.Events(ctx, id)
		if err != nil {
			return err
		}
		for _, e := range events[1:] { // the first is the creation
			want[id] = append(want[id], e.To)
		}
	}
	for q := (url.Values{"limit": {"500"}}); ; {
		l, err := t.api.Tasks(ctx, q)
		if err != nil {
			return err
		}
		for _, task := range l.Tasks {
			current[task.ID] = task.Status
		}
		if l.NextCursor == "" {
			break
		}
		q.Set("cursor", l.NextCursor)
	}
	check := func() (lost []string, n int) {
		for i, w := range c.watchers {
			of := []string{w.taskID}
			if w.taskID == "" {
				of = ids
			}
			for _, id := range of {
				got := w.shown(id)
				n += len(want[id])
				if !slices.Equal(got, want[id]) {
					lost = append(lost, fmt.Sprintf("client %d was shown %v of task %s; it was %v", i, got, id, want[id]))
				} else if len(got) > 0 && got[len(got)-1] != current[id] {
					lost = append(lost, fmt.Sprintf("client %d ends on %s of task %s; REST says %s", i, got[len(got)-1], id, current[id]))
				}
			}
		}
		return lost, n
	}
	// What is on its way may arrive.
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if r.Lost, r.Statuses = check(); len(r.Lost) == 0 || time.Now().After(deadline) {
			return nil
		}
	}
}

// verdicts judges what a site did.
func (r *result) verdicts() {
	r.judge(len(r.Lost) == 0, "statuses lost", "none", fmt.Sprintf("%d of %s", len(r.Lost), grouped(int64(r.Statuses))))
	r.judge(r.Backwards == 0, "progress that moved backwards", "none", fmt.Sprint(r.Backwards))
	r.judge(r.Broken == 0 && r.Resyncs == 0, "clients cut off or told to read anew", "none", fmt.Sprintf("%d, %d", r.Broken, r.Resyncs))
	if r.P99 > 0 {
		r.judge(r.Window[2] > 0 && r.Window[2] <= r.P99, "report to browser, p99", "≤ "+millis(r.P99), millis(r.Window[2]))
	}
	if r.Stalled > 0 {
		longest, missing := time.Duration(0), r.Stalled-len(r.Stalls)
		for _, d := range r.Stalls {
			if longest = max(longest, d); d == 0 {
				missing++
			}
		}
		r.judge(missing == 0 && longest <= r.Evicted, "stalled clients evicted", "all within "+r.Evicted.String(), fmt.Sprintf("%d of %d, the last after %.1f s", r.Stalled-missing, r.Stalled, longest.Seconds()))
	}
	if r.RSSGrowth > 0 {
		r.judge(r.RSS[1]-r.RSS[0] <= r.RSSGrowth, "control plane RSS, growth", "≤ "+mega(r.RSSGrowth), mega(r.RSS[1]-r.RSS[0]))
	}
	if r.scenario.RSS > 0 {
		r.judge(r.RSS[1] <= r.scenario.RSS, "control plane RSS", "≤ "+mega(r.scenario.RSS), mega(r.RSS[1]))
	}
	if r.Goroutines[0] > 0 {
		r.judge(r.Goroutines[2] <= r.Goroutines[0]+5, "goroutines after the clients", fmt.Sprintf("%d as before", r.Goroutines[0]), fmt.Sprint(r.Goroutines[2]))
	}
	if r.Left >= 0 {
		r.judge(r.Left == 0, "goroutines of the hub after the clients", "none", fmt.Sprint(r.Left))
	}
}

func millis(d time.Duration) string {
	if d >= time.Second {
		return fmt.Sprintf("%.3g s", d.Seconds())
	}
	return fmt.Sprintf("%.3g ms", float64(d.Microseconds())/1000)
}

func mega(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/1e6) }

func (r *result) table() string {
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "  %-38s %s\n", what, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&b, "%s\n", r.Title)
	if r.SetUp > 0 {
		line("connections", "%d in %.1f s", r.Clients+r.All, r.SetUp.Seconds())
	}
	if r.Updates > 0 {
		line("updates a second", "%.0f, for %.0f s", r.Updates, r.Steady.Seconds())
	}
	w := r.Window
	line("report to browser, p50 p95 p99 longest", "%s  %s  %s  %s", millis(w[0]), millis(w[1]), millis(w[2]), millis(w[3]))
	if r.Whole[0] > 0 {
		line("the same, whole run", "%s  %s  %s  %s", millis(r.Whole[0]), millis(r.Whole[1]), millis(r.Whole[2]), millis(r.Whole[3]))
	}
	line("messages to clients", "%d, at most %.0f a second", r.Messages, r.Peak)
	if r.RSS[1] > 0 {
		line("RSS before, most, after", "%s  %s  %s", mega(r.RSS[0]), mega(r.RSS[1]), mega(r.RSS[2]))
	}
	if r.Anon > 0 {
		line("of the most, no pages of files", "%s", mega(r.Anon))
	}
	if r.Etcd > 0 {
		line("RSS of etcd, most", "%s", mega(r.Etcd))
	}
	for _, name := range []string{"control plane", "etcd", "region", "machines", "sockets", "hub"} {
		if v, ok := r.CPU[name]; ok {
			line("processors used: "+name, "%.2f", v)
		}
	}
	for _, v := range r.Verdicts {
		mark := "ok  "
		if !v.OK {
			mark = "FAIL"
		}
		line(mark+" "+v.What, "%s (aim: %s)", v.Got, v.Want)
	}
	for i, l := range r.Lost {
		if i == 5 {
			fmt.Fprintf(&b, "  …\n")
			break
		}
		fmt.Fprintf(&b, "  %s\n", l)
	}
	return b.String()
}
