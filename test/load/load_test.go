package main

import (
	"context"
	"log/slog"
	"math"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/sim"
	"github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/test/fixture"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newSite is a whole site in this process, and n machines that are off.
func newSite(t *testing.T, sc scenario) *target {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	var cfg site.Config
	cfg.DataDir, cfg.NoFsync = t.TempDir(), true
	cfg.ControlPlane.ListenAddr = "127.0.0.1:0"
	cfg.Region.RegionID = region
	cfg.Region.BootAddr, cfg.Region.AgentAddr, cfg.Region.TFTPAddr = "127.0.0.1:0", "127.0.0.1:0", "off"
	s, err := site.New(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	tg := &target{addr: strings.TrimPrefix(s.ControlPlane.URL(), "http://"), region: region}
	if tg.api, err = apiclient.New(s.ControlPlane.URL(), nil); err != nil {
		t.Fatal(err)
	}
	tg.token = s.ControlPlane.LocalToken("load")
	tg.api.UseToken(tg.token)
	if err := waitFor(t.Context(), "the region", func() error {
		regions, err := tg.api.Regions(t.Context())
		if err == nil && (len(regions) != 1 || regions[0].Status != "online") {
			err = os.ErrNotExist
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if tg.image, err = fixture.Placeholder(dir, "simulated", "1", "Simulated 1"); err != nil {
		t.Fatal(err)
	}
	if err := fixture.Publish(t.Context(), tg.api, dir, tg.image); err != nil {
		t.Fatal(err)
	}
	fleet, err := sim.New(sim.Config{RegionURL: s.Region.BootURL(), Machines: sc.Machines, Seed: seed, Ramp: sc.Ramp, Install: sc.Install, Every: sc.Every, Stamp: true}, log)
	if err != nil {
		t.Fatal(err)
	}
	tg.macs, tg.machines = fleet.MACs(), fleet.Run
	tg.observe = func() observation { return observation{} }
	return tg
}

// Fifty machines are installed while a hundred browsers watch one each and four
// watch all: everyone sees every status in order, and nobody is cut off or left
// behind (W01).
func TestNothingIsLost(t *testing.T) {
	sc := scenario{Name: "quick", Title: "quick", Machines: 50, Clients: 100, All: 4, Ramp: time.Second, Install: 4 * time.Second, Every: time.Second}
	tg := newSite(t, sc)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	r, err := sc.drive(ctx, tg, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	r.verdicts()
	for _, v := range r.Verdicts {
		if !v.OK {
			t.Errorf("%s: %s; want %s", v.What, v.Got, v.Want)
		}
	}
	for _, l := range r.Lost {
		t.Error(l)
	}
	// Five transitions of each task, to two clients of its own and four others.
	if want := sc.Machines * 5 * (sc.Clients/sc.Machines + sc.All); r.Statuses < want {
		t.Errorf("%d statuses were compared; want at least %d", r.Statuses, want)
	}
	if r.Messages < int64(r.Statuses) || r.Whole[0] == 0 {
		t.Errorf("%d messages, latencies %v; want progress, too, with its time of sending", r.Messages, r.Whole)
	}
	// The connections' goroutines are gone; goleak finds others.
	buf := make([]byte, 8<<20)
	left := func() (n int) {
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "controlplane/hub.") && !strings.Contains(g, "hub.(*Hub).Run") {
				n++
			}
		}
		return n
	}
	for deadline := time.Now().Add(time.Minute); left() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines of the hub are left", left())
		}
	}
}

// The hub alone, as a process would be told to run it.
func TestServeHub(t *testing.T) {
	inR, inW := net.Pipe()
	outR, outW := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- serveHub(50, 1, inR, outW) }()
	buf := make([]byte, 256)
	n, err := outR.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{began: time.Now()}
	c := &crowd{rec: rec, bare: true}
	if err := c.connect(t.Context(), strings.TrimSpace(string(buf[:n])), "", 20, func(int) string { return fanoutTask }); err != nil {
		t.Fatal(err)
	}
	// The answer to a request that is refused comes after the subscription.
	for _, w := range c.watchers {
		if err := w.s.send(1, `{}`); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); c.messages.Load() < 20; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no answers")
		}
	}
	go inW.Write([]byte("go\n"))
	if n, err = outR.Read(buf); err != nil || string(buf[:n]) != "done\n" {
		t.Fatalf("the hub said %q, %v", buf[:n], err)
	}
	for deadline := time.Now().Add(time.Minute); rec.whole.n.Load() < 20*50; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 1000 messages came", rec.whole.n.Load())
		}
	}
	go func() {
		inW.Write([]byte("end\n"))
		inW.Close()
	}()
	if n, err = outR.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "Published:50") {
		t.Errorf("the hub said %q, %v", buf[:n], err)
	}
	c.readers.Wait() // closed with 1001
	if err := <-ended; err != nil {
		t.Error(err)
	}
	c.close()
}

func TestHistogram(t *testing.T) {
	var h histogram
	for i := 1; i <= 1000; i++ {
		h.add(time.Duration(i) * time.Millisecond)
	}
	for share, want := range map[float64]float64{0.5: 500, 0.95: 950, 0.99: 990, 1: 1000} {
		if got := float64(h.at(share).Microseconds()) / 1000; math.Abs(got-want) > want*0.03 {
			t.Errorf("%g of 1 to 1000 ms is %.1f ms; want about %g", share, got, want)
		}
	}
	if h.at(1) != time.Second || new(histogram).at(0.5) != 0 {
		t.Errorf("longest %s, of nothing %s", h.at(1), new(histogram).at(0.5))
	}
}

func TestMessagesAreRead(t *testing.T) {
	b := []byte(`{"type":"progress","task_id":"x","attempt":2,"percentage":45,"message":"m sent=1764232323123456","rev":9}`)
	sent, ok := sentAt(b)
	if !ok || sent.UnixMicro() != 1764232323123456 || numberOf(b, `"percentage":`) != 45 || numberOf(b, `"attempt":`) != 2 {
		t.Errorf("sent %v, %v, %d, %d", sent, ok, numberOf(b, `"percentage":`), numberOf(b, `"attempt":`))
	}
	if _, ok := sentAt([]byte(`{"message":"m"}`)); ok {
		t.Error("a message without a time has one")
	}
}

// The page shows hostile text inert, and needs nothing from outside.
func TestReport(t *testing.T) {
	r := &result{scenario: scenario{Title: `<script>alert(1)</script>`, Machines: 1, Clients: 1, P99: time.Second, RSSGrowth: 1}, CPU: map[string]float64{"a": 1}, Goroutines: [3]int{1, 2, 1}}
	for i := range 50 {
		r.Samples = append(r.Samples, sample{At: float64(i), P50: float64(i), P99: float64(i * 10), Messages: 5000, RSS: 100})
	}
	r.judge(false, "this", "that", "other")
	text := string(report([]*result{r, {scenario: scenario{Title: "empty"}}}))
	for _, bad := range []string{"<script", "http://", "https://", "NaN", "Inf", "style="} {
		if strings.Contains(text, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	for _, want := range []string{"<svg", "<polyline", "1 missed", "missed</span>", "&lt;script&gt;"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}
