// Package sim plays a data centre: any number of machines that boot from a real
// region, run the agent's own workflow with the agent's own client, and install
// without a disk. Some of them misbehave, as told and seeded, the way machines
// do: disks fail, power goes, cables are loose, somebody is slow.
//
// It is for load tests, demonstrations and trying out; nothing that serves
// machines uses it. Compare internal/agent/demo, which is one machine and
// fetches every byte of the image.
//
// A Fleet is run once. Snapshot may be called concurrently.
package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lpmos/lpmos"
)

// Config says what is played. RegionURL is required; zero values of the rest
// work.
type Config struct {
	RegionURL string        // the boot listener, http://127.0.0.1:8081
	Machines  int           // 0 means 1
	Seed      uint64        // of addresses and misbehaviour; the same seed is the same machines
	Ramp      time.Duration // machines are switched on evenly over it
	Install   time.Duration // an installation takes so long; 0 means 30 s
	Every     time.Duration // between two progress reports of a machine; 0 means 1 s
	Stamp     bool          // the time a progress report is sent, in microseconds of the Unix epoch, ends its message as "sent=…"
	Patience  time.Duration // how long a machine that nobody wants asks on; 0 means until ctx ends

	// Shares of the machines, 0 to 1, that misbehave in one way each. Together
	// they are at most 1.
	Fail   float64 // the disk fails at some point of the installation
	Stall  float64 // it stands still in the middle and is never heard of again
	Reboot float64 // the power goes once in the middle
	Slow   float64 // it takes four times as long
	Flap   float64 // the network is away for a few seconds, again and again
}

// Validate names the first field that cannot be used.
func (c Config) Validate() error {
	switch {
	case c.RegionURL == "":
		return &lpmos.InvalidError{Field: "region-url", Problem: "is missing"}
	case c.Machines < 0 || c.Machines > 100_000:
		return &lpmos.InvalidError{Field: "machines", Problem: "is outside 1 to 100000"}
	case min(c.Ramp, c.Install, c.Every, c.Patience) < 0:
		return &lpmos.InvalidError{Field: "duration", Problem: "is negative"}
	case min(c.Fail, c.Stall, c.Reboot, c.Slow, c.Flap) < 0 || c.Fail+c.Stall+c.Reboot+c.Slow+c.Flap > 1:
		return &lpmos.InvalidError{Field: "misbehaviour", Problem: "is negative, or more than all machines together"}
	}
	return nil
}

// Habit is how a machine behaves.
type Habit string

// The habits.
const (
	Good    Habit = "good"
	Fails   Habit = "fails"
	Stalls  Habit = "stalls"
	Reboots Habit = "reboots"
	Slow    Habit = "slow"
	Flaps   Habit = "flaps"
)

// Habits are all, in the order they are shown.
var Habits = []Habit{Good, Fails, Stalls, Reboots, Slow, Flaps}

// Phase is where a machine is.
type Phase string

// The phases; the last four are ends.
const (
	Off        Phase = "off"
	Booting    Phase = "booting"    // asks for its boot script, or runs the agent and waits
	Installing Phase = "installing" // has the permit
	Restarting Phase = "restarting" // into the installed system
	Completed  Phase = "completed"  // called home
	Failed     Phase = "failed"     // told the region that it cannot
	Stalled    Phase = "stalled"    // stands still, as it was told to
	Unwanted   Phase = "unwanted"   // the region sent it to its empty disk
)

// Phases are all, in order.
var Phases = []Phase{Off, Booting, Installing, Restarting, Completed, Failed, Stalled, Unwanted}

// Ended reports whether nothing more happens.
func (p Phase) Ended() bool { return slices.Index(Phases, p) >= slices.Index(Phases, Completed) }

// Fleet is the machines.
type Fleet struct {
	cfg      Config
	machines []*machine
	log      *slog.Logger
	stats    stats
}

type stats struct {
	boots, agents, reports, progress, refused, lost atomic.Int64
}

// Snapshot is how far a fleet has come.
type Snapshot struct {
	Machines map[Habit]map[Phase]int
	Phases   map[Phase]int
	Boots    int64 // boot scripts fetched
	Agents   int64 // starts of the agent
	Reports  int64 // hardware reports answered
	Progress int64 // progress reports taken by the region
	Refused  int64 // progress reports it refused
	Lost     int64 // requests that got no answer, simulated faults among them
	Took     []time.Duration
}

// New makes a fleet, switched off.
func New(cfg Config, log *slog.Logger) (*Fleet, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Machines == 0 {
		cfg.Machines = 1
	}
	if cfg.Install == 0 {
		cfg.Install = 30 * time.Second
	}
	if cfg.Every == 0 {
		cfg.Every = time.Second
	}
	cfg.RegionURL = strings.TrimSuffix(cfg.RegionURL, "/")
	f := &Fleet{cfg: cfg, log: log}
	habits := f.habits()
	for i := range cfg.Machines {
		f.machines = append(f.machines, newMachine(f, i, habits[i]))
	}
	return f, nil
}

// habits deals out how each machine behaves: as many of each as asked for,
// rounded, in an order that the seed decides.
func (f *Fleet) habits() []Habit {
	n := f.cfg.Machines
	out := make([]Habit, 0, n)
	for _, s := range []struct {
		habit Habit
		share float64
	}{{Fails, f.cfg.Fail}, {Stalls, f.cfg.Stall}, {Reboots, f.cfg.Reboot}, {Slow, f.cfg.Slow}, {Flaps, f.cfg.Flap}} {
		for range min(int(s.share*float64(n)+0.5), n-len(out)) {
			out = append(out, s.habit)
		}
	}
	for len(out) < n {
		out = append(out, Good)
	}
	r := f.rand(0)
	r.Shuffle(n, func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// rand is a source that depends on nothing but the seed and n.
func (f *Fleet) rand(n uint64) *rand.Rand { return rand.New(rand.NewPCG(f.cfg.Seed, n)) }

// MACs are the machines' addresses: locally administered ones that the seed
// and the machine's number decide.
func (f *Fleet) MACs() []lpmos.MAC {
	out := make([]lpmos.MAC, len(f.machines))
	for i, m := range f.machines {
		out[i] = m.mac
	}
	return out
}

// mac is the address of machine number i.
func (f *Fleet) mac(i int) lpmos.MAC {
	s := uint16(f.cfg.Seed)
	return lpmos.MAC{0x02, byte(s >> 8), byte(s), byte(i >> 16), byte(i >> 8), byte(i)}
}

// Run switches the machines on and returns when each has come to its end, or
// ctx has, whose cause is then the error.
func (f *Fleet) Run(ctx context.Context) error {
	over, cancel := context.WithCancel(ctx)
	defer cancel()
	var going, all sync.WaitGroup
	for i, m := range f.machines {
		wait := time.Duration(0)
		if n := len(f.machines); n > 1 {
			wait = f.cfg.Ramp * time.Duration(i) / time.Duration(n)
		}
		going.Add(1)
		all.Go(func() {
			m.run(over, wait, sync.OnceFunc(going.Done))
		})
	}
	going.Wait()
	cancel() // those that stand still may go
	all.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// Snapshot is how far the machines have come.
func (f *Fleet) Snapshot() Snapshot {
	s := Snapshot{
		Machines: map[Habit]map[Phase]int{}, Phases: map[Phase]int{},
		Boots: f.stats.boots.Load(), Agents: f.stats.agents.Load(), Reports: f.stats.reports.Load(),
		Progress: f.stats.progress.Load(), Refused: f.stats.refused.Load(), Lost: f.stats.lost.Load(),
	}
	for _, m := range f.machines {
		phase, took := m.where()
		if s.Machines[m.habit] == nil {
			s.Machines[m.habit] = map[Phase]int{}
		}
		s.Machines[m.habit][phase]++
		s.Phases[phase]++
		if phase == Completed {
			s.Took = append(s.Took, took)
		}
	}
	slices.Sort(s.Took)
	return s
}

// Ended is how many machines have come to their end.
func (s Snapshot) Ended() int {
	n := 0
	for p, k := range s.Phases {
		if p.Ended() {
			n += k
		}
	}
	return n
}

func (s Snapshot) String() string {
	var parts []string
	for _, p := range Phases {
		if n := s.Phases[p]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, p))
		}
	}
	return strings.Join(parts, ", ")
}

// Took is the time within which a share (0 to 1) of the completed machines went
// from power on to calling home.
func Took(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}
