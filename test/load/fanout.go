package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/hub"
	"github.com/lpmos/lpmos/internal/service"
)

// fanout is the hub alone, in a process of its own: one message to all, so many
// times a second.
type fanout struct {
	Name, Title string
	Clients     int
	Rate        int // messages a second
	Seconds     int
	Peer        [3]string // p50, p99 and memory of a general-purpose server
	P50, P99    time.Duration
	RSS         int64
}

const fanoutTask = "550e8400-e29b-41d4-a716-446655440000"

type noModel struct{}

func (noModel) StoreID() string              { return "load" }
func (noModel) Counts() map[lpmos.Status]int { return map[lpmos.Status]int{lpmos.Installing: 1} }

func (noModel) RegionCounts(string) map[lpmos.Status]int { return nil }
func (noModel) TaskRegion(string) (string, bool)         { return "dc1", true }

// noDoor lets everybody stay.
type noDoor struct{}

func (noDoor) Still(p auth.Principal) (auth.Principal, bool) { return p, true }
func (noDoor) Changed() int64                                { return 0 }
func (noDoor) Origin(r *http.Request) string                 { return "http://" + r.Host }

// everybody is who watches: of the host's own token, any number may.
var everybody = auth.Principal{Kind: auth.Token, Role: lpmos.Viewer, Own: true}

// serveHub is the process: it prints its address, waits for a line, publishes,
// and ends at the end of its input.
func serveHub(rate, seconds int, in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	log := slog.New(slog.DiscardHandler)
	h := hub.New(noModel{}, noDoor{}, log)
	h.Publish(api.Update{Rev: 1, Reset: true})
	ctx, cancel := context.WithCancel(context.Background())
	input := bufio.NewScanner(in)
	fmt.Fprintln(out, l.Addr())
	return service.Run(ctx, h.Run,
		func(ctx context.Context) error {
			return service.Serve(ctx, service.HTTPServer(auth.As(everybody, h), log), l)
		},
		func(context.Context) error {
			defer cancel()
			if !input.Scan() {
				return nil
			}
			t := time.NewTicker(time.Second / time.Duration(rate))
			defer t.Stop()
			for i := range rate * seconds {
				<-t.C
				// A status, because none may be left out.
				h.Publish(api.Update{Rev: int64(i + 2), Events: []api.Event{{
					Type: api.EventStatus, TaskID: fanoutTask, RegionID: "dc1", Status: string(lpmos.Failed), Attempt: 1,
					Failure: &lpmos.Failure{Code: "load", Cause: fmt.Sprintf("A message of the usual size sent=%d", time.Now().UnixMicro()), NextStep: "None."},
				}}})
			}
			fmt.Fprintln(out, "done")
			input.Scan()
			fmt.Fprintf(out, "%+v\n", h.Stats())
			return nil
		})
}

// run measures it.
func (f fanout) run(ctx context.Context, say func(string, ...any)) (*result, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-hub-server", fmt.Sprint(f.Rate), "-hub-seconds", fmt.Sprint(f.Seconds))
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start hub: %w", err)
	}
	p := &process{name: "hub", cmd: cmd}
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		return nil, fmt.Errorf("the hub does not say where it is")
	}
	addr := lines.Text()
	r := &result{
		scenario: scenario{Name: f.Name, Title: f.Title, Clients: f.Clients},
		At:       time.Now(), Left: -1, CPU: map[string]float64{},
	}
	before := p.usage()
	rec := &recorder{began: time.Now()}
	rec.steady.Store(true)
	crowd := &crowd{rec: rec, bare: true}
	defer crowd.close()
	began := time.Now()
	if err := crowd.connect(ctx, addr, "", f.Clients, func(int) string { return fanoutTask }); err != nil {
		return nil, err
	}
	r.SetUp = time.Since(began)
	time.Sleep(2 * time.Second) // subscriptions are not acknowledged
	idle := p.usage()
	say("%d sockets connected in %s; the hub has %s", f.Clients, r.SetUp.Round(time.Millisecond), mega(idle.rss))
	rec.began = time.Now()
	if _, err := fmt.Fprintln(in, "go"); err != nil {
		return nil, err
	}
	most := idle.rss
	done := make(chan bool, 1)
	go func() { done <- lines.Scan() }()
	for running := true; running; {
		select {
		case ok := <-done:
			if !ok {
				return nil, fmt.Errorf("the hub ended")
			}
			running = false
		case <-time.After(250 * time.Millisecond):
			u := p.usage()
			most = max(most, u.rss)
			r.Samples = append(r.Samples, sample{At: time.Since(rec.began).Seconds(), RSS: float64(u.rss) / 1e6})
		}
	}
	took := time.Since(rec.began)
	last := p.usage()
	want := int64(f.Clients) * int64(f.Rate*f.Seconds)
	for deadline := time.Now().Add(10 * time.Second); rec.whole.n.Load() < want && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
	}
	got := rec.whole.n.Load()
	fmt.Fprintln(in, "end")
	if lines.Scan() {
		say("hub: %s", lines.Text())
	}
	r.Broken, err = crowd.broken()
	if err != nil && strings.Contains(err.Error(), "1001") {
		r.Broken = 0
	}
	r.Messages = crowd.messages.Load()
	r.Peak = float64(got) / took.Seconds()
	for i, share := range []float64{0.5, 0.95, 0.99, 1} {
		r.Window[i] = rec.window.at(share)
	}
	r.RSS = [3]int64{before.rss, most, p.usage().rss}
	r.CPU["hub"] = (last.cpu - idle.cpu).Seconds() / took.Seconds()
	for i := range r.Samples {
		if at := int(r.Samples[i].At); at < maxSeconds {
			h := &rec.seconds[at]
			r.Samples[i].P50, r.Samples[i].P99, r.Samples[i].Messages = h.at(0.5), h.at(0.99), float64(h.n.Load())
		}
	}
	r.judge(got == want, "messages received", fmt.Sprint(want), fmt.Sprint(got))
	r.judge(r.Window[0] < f.P50, "p50", "below "+f.Peer[0], millis(r.Window[0]))
	r.judge(r.Window[2] < f.P99, "p99", "below "+f.Peer[1], millis(r.Window[2]))
	if f.RSS > 0 {
		r.judge(most < f.RSS, "RSS of the hub", "below "+f.Peer[2], mega(most))
	}
	return r, nil
}
