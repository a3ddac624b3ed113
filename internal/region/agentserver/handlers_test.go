package agentserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// TestRefusals sends every route what it must refuse (T01, V01, V02).
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		o := c.order(mac1, lpmos.AwaitingApproval)
		c.approve(o.TaskID)
		a := r.boot(mac1, addr1)
		a.report()
		_, pa := grantTo(c, o, a)

		routes := []struct {
			method, path, secret string
			body                 any
			limit                int
		}{
			{"POST", agentapi.PathReport, a.cfg.Credential, a.reports(), agentapi.MaxReportBytes},
			{"POST", agentapi.PathProgress, a.cfg.Credential, agentapi.Progress{MACAddress: mac1, TaskID: o.TaskID, Attempt: 1, Stage: lpmos.Downloading}, agentapi.MaxBodyBytes},
			{"GET", agentapi.PathApproval + mac1.String(), a.cfg.Credential, nil, 0},
			{"POST", agentapi.PathLogs, a.cfg.Credential, agentapi.Logs{MACAddress: mac1, TaskID: o.TaskID, Attempt: 1}, agentapi.MaxBodyBytes},
			{"POST", agentapi.PathPermit, a.cfg.Credential, agentapi.PermitRequest{MACAddress: mac1, TaskID: o.TaskID, Nonce: nonceN(1), PlanDigest: digest, HardwareDigest: digest}, agentapi.MaxBodyBytes},
			{"POST", agentapi.PathResult, a.cfg.Credential, agentapi.Result{MACAddress: mac1, TaskID: o.TaskID, Attempt: 1, OK: true}, agentapi.MaxBodyBytes},
			{"POST", agentapi.PathBooted, pa.CallhomeToken, agentapi.Booted{MACAddress: mac1, TaskID: o.TaskID, Attempt: 1, Receipt: lpmos.Receipt{RootFSUUID: "u"}}, agentapi.MaxBodyBytes},
		}
		for _, rt := range routes {
			call := func(secret string, body any) int {
				time.Sleep(5 * time.Second) // stay under every rate
				return a.call(t.Context(), rt.method, rt.path, secret, body, nil)
			}
			name := rt.method + " " + rt.path
			want(t, name+" without a credential", call("", rt.body), 401)
			want(t, name+" with another credential", call(strings.Repeat("a", 64), rt.body), 401)
			if rt.body == nil {
				want(t, name+" with a bad wait", a.call(t.Context(), rt.method, rt.path+"?wait=soon", rt.secret, nil, nil), 400)
			} else {
				raw, _ := json.Marshal(rt.body)
				for _, bad := range []string{
					"", "{", "null x", `{"a":1}`, "[]", string(raw) + "{}", strings.Replace(string(raw), `"mac_address"`, `"MAC_address"`, 1),
					strings.Replace(string(raw), `{`, `{"mac_address":"02:00:00:00:00:01",`, 1), `{"mac_address":"ff:ff:ff:ff:ff:ff"}`,
					"\xef\xbb\xbf" + string(raw), "{\"\xff\":1}", strings.Repeat("[", 100000),
				} {
					want(t, fmt.Sprintf("%s with %.60q", name, bad), call(rt.secret, bad), 400)
				}
				if strings.Contains(string(raw), `"task_id":"`) { // V07
					want(t, name+" for a part of a task", call(rt.secret, strings.Replace(string(raw), o.TaskID, "t1/approval", 1)), 403)
				}
				want(t, name+" with too much", call(rt.secret, strings.Repeat(" ", rt.limit+1)), 413)
				want(t, name+" for another machine", call(rt.secret, strings.Replace(string(raw), mac1.String(), macX.String(), 1)), 403)
			}
			c.SetSynced(false)
			want(t, name+" without a view", call(rt.secret, rt.body), 503)
			c.SetSynced(true)
			flooded := false
			for range 100 {
				if a.call(t.Context(), rt.method, rt.path, rt.secret, rt.body, nil) == 429 {
					flooded = true
					break
				}
			}
			if !flooded {
				t.Errorf("%s took 100 requests at once", name)
			}
			want(t, name, call(rt.secret, rt.body), 200)
		}
		c.grant(o.TaskID, nonceN(2)) // attempt 2
		time.Sleep(time.Minute)
		if status, _ := a.result(1, "0s"); status != 409 {
			t.Errorf("result of attempt 1 in attempt 2 answered %d; want 409", status)
		}
		r.restart() // forget that it called home
		want(t, "booted of attempt 1 in attempt 2", a.booted(pa.CallhomeToken, 1), 409)
	})
}

func TestStoreAway(t *testing.T) { // E02
	synctest.Test(t, func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		o := c.order(mac1, lpmos.AwaitingApproval)
		c.approve(o.TaskID)
		a := r.boot(mac1, addr1)
		for _, err := range []error{lpmos.ErrUnavailable, lpmos.ErrConflict, fmt.Errorf("put: %w", context.DeadlineExceeded)} {
			c.break_(err)
			want(t, "first words", a.report(), 503)
			c.break_(nil)
		}
		want(t, "report", a.report(), 200)
		c.break_(lpmos.ErrUnavailable)
		want(t, "report", a.report(), 503)
		status, pa := a.permit(nonceN(1), "1s")
		if status != 503 || pa.Permit != nil {
			t.Errorf("permit without a store = %d %+v", status, pa)
		}
		c.break_(nil)
		c.grant(o.TaskID, nonceN(1))
		c.break_(lpmos.ErrUnavailable)
		if status, pa = a.permit(nonceN(1), "1s"); status != 503 || pa.CallhomeToken != "" {
			t.Errorf("permit whose token cannot be stored = %d %+v", status, pa)
		}
		c.break_(nil)
		if status, pa = a.permit(nonceN(1), "1s"); status != 200 || pa.Permit == nil {
			t.Fatalf("permit when the store is back = %d %+v", status, pa)
		}
		c.break_(lpmos.ErrUnavailable)
		want(t, "logs", a.logs(1, 0, "x"), 503)
		want(t, "booted", a.booted(pa.CallhomeToken, 1), 503)
		want(t, "progress", a.progress(1, lpmos.Downloading, 30), 200) // it is kept, and written later
		if status, _ := a.result(1, "1s"); status != 503 {
			t.Errorf("result = %d; want 503", status)
		}
		c.break_(nil)
		time.Sleep(3 * time.Second)
		if got := c.percents(); !slices.Equal(got, []int{100}) { // only the newest: the result's
			t.Errorf("progress %v stored after the store came back; want [100]", got)
		}
		want(t, "booted", a.booted(pa.CallhomeToken, 1), 200)
	})
}

func TestApprovalWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		o := c.order(mac1, lpmos.Pending)
		a := r.boot(mac1, addr1)
		a.report()
		poll := func(wait string, during func()) (agentapi.Approval, time.Duration) {
			began := time.Now()
			go func() { time.Sleep(3 * time.Second); during() }()
			status, ap := a.approval(wait)
			if status != 200 {
				t.Errorf("approval = %d", status)
			}
			return ap, time.Since(began)
		}
		if ap, took := poll("10s", func() {}); ap.Approved || ap.Status != lpmos.Pending || took != 10*time.Second {
			t.Errorf("pending: %+v after %v", ap, took)
		}
		if ap, took := poll("1h", func() { c.update(o.TaskID, func(o *lpmos.Order) { o.Status = lpmos.AwaitingApproval }) }); ap.Approved || took != agentapi.MaxWait {
			t.Errorf("awaiting: %+v after %v", ap, took)
		}
		if ap, took := poll("30s", func() { c.approve(o.TaskID) }); !ap.Approved || took != 3*time.Second {
			t.Errorf("approved: %+v after %v", ap, took)
		}
		c.update(o.TaskID, func(o *lpmos.Order) { o.Status = lpmos.AwaitingApproval })
		if ap, took := poll("30s", func() { c.end(o.TaskID) }); ap.Approved || ap.Status != "" || ap.TaskID != "" || took != 3*time.Second {
			t.Errorf("canceled: %+v after %v", ap, took)
		}
	})
}

func TestResyncIsNotTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		o := c.order(mac1, lpmos.AwaitingApproval)
		a := r.boot(mac1, addr1)
		a.report()
		go func() {
			time.Sleep(time.Second)
			c.SetSynced(false)
			c.RemoveOrder(o.TaskID) // a view that is being rebuilt
			time.Sleep(time.Second)
			c.Reset([]lpmos.Order{o}, nil)
			time.Sleep(time.Second)
			c.approve(o.TaskID)
		}()
		if status, ap := a.approval("30s"); status != 200 || !ap.Approved {
			t.Errorf("approval across a resync = %d %+v", status, ap)
		}
	})
}

func TestPermitWaits(t *testing.T) {
	for name, act := range map[string]func(*center, string){
		"canceled": func(c *center, id string) { c.end(id) },
		"failed":   func(c *center, id string) { c.update(id, func(o *lpmos.Order) { o.Status = lpmos.Failed }) },
		"approval voided": func(c *center, id string) {
			c.update(id, func(o *lpmos.Order) { o.Status = lpmos.AwaitingApproval })
		},
		"done": func(c *center, id string) { c.update(id, func(o *lpmos.Order) { o.Status = lpmos.Verifying }) },
	} {
		t.Run("is refused when "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCenter()
				r := newRegion(t, c)
				o := c.order(mac1, lpmos.AwaitingApproval)
				c.approve(o.TaskID)
				a := r.boot(mac1, addr1)
				a.report()
				go func() { time.Sleep(4 * time.Second); act(c, o.TaskID) }()
				began := time.Now()
				status, pa := a.permit(nonceN(1), "30s")
				if status != 200 || pa.Permit != nil || pa.CallhomeToken != "" || pa.Refused == "" || time.Since(began) != 4*time.Second {
					t.Errorf("permit = %d %+v after %v", status, pa, time.Since(began))
				}
			})
		})
	}
	t.Run("never goes to a boot that was replaced meanwhile", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCenter()
			r := newRegion(t, c)
			o := c.order(mac1, lpmos.AwaitingApproval)
			c.approve(o.TaskID)
			a := r.boot(mac1, addr1)
			a.report()
			done := make(chan struct{})
			go func() {
				defer close(done)
				if status, pa := a.permit(nonceN(1), "30s"); status != 401 || pa.Permit != nil {
					t.Errorf("permit of the replaced boot = %d %+v; want 401", status, pa)
				}
			}()
			time.Sleep(time.Second)
			b := r.boot(mac1, addr1)
			b.report()
			c.grant(o.TaskID, nonceN(1))
			<-done
			if len(c.results) != 0 {
				t.Error("a question left open by a power loss quarantined the task")
			}
			c.grant(o.TaskID, nonceN(2))
			if status, pa := b.permit(nonceN(2), "30s"); status != 200 || pa.Permit == nil || pa.Permit.Attempt != 2 {
				t.Errorf("permit of the newest boot = %d %+v", status, pa)
			}
		})
	})
	t.Run("asks with the order's attempt and the boot's number", func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		o := c.order(mac1, lpmos.AwaitingApproval)
		c.approve(o.TaskID)
		r.boot(mac1, addr1)
		a := r.boot(mac1, addr1)
		a.report()
		a.permit(nonceN(9), "0s")
		if k := a.key.Public(); len(c.asked) == 1 && c.asked[0].AgentKey.Fingerprint() != k.Fingerprint() {
			t.Errorf("asked for the key %+v", c.asked[0].AgentKey)
		}
		first := c.asked
		a.permit(nonceN(9), "0s")
		if len(c.asked) != 2 || len(first) != 1 || !c.asked[1].At.Equal(first[0].At) {
			t.Errorf("asked %+v; want the place in the queue that the first question got", c.asked)
		}
		c.asked = first
		if len(c.asked) != 1 || c.asked[0].Attempt != 1 || c.asked[0].BootSeq != 2 || c.asked[0].Nonce != nonceN(9) || c.asked[0].At.IsZero() {
			t.Errorf("asked %+v", c.asked)
		}
	})
}

func TestShutdownEndsLongPolls(t *testing.T) { // F09
	synctest.Test(t, func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		c.order(mac1, lpmos.Pending)
		a := r.boot(mac1, addr1)
		a.report()
		stop := r.run()
		go func() { time.Sleep(2 * time.Second); stop() }()
		began := time.Now()
		if status, _ := a.approval("30s"); status != 503 || time.Since(began) != 2*time.Second {
			t.Errorf("approval at shutdown = %d after %v; want 503 at once", status, time.Since(began))
		}
	})
}

func TestProgress(t *testing.T) {
	setup := func(t *testing.T) (*center, *region, *agent) {
		c := newCenter()
		r := newRegion(t, c)
		o := c.order(mac1, lpmos.AwaitingApproval)
		c.approve(o.TaskID)
		a := r.boot(mac1, addr1)
		a.report()
		grantTo(c, o, a)
		return c, r, a
	}
	t.Run("never goes back", func(t *testing.T) { // R01
		synctest.Test(t, func(t *testing.T) {
			c, r, a := setup(t)
			for _, p := range []int{30, 45, 40, 45} {
				time.Sleep(3 * time.Second)
				want(t, "progress", a.progress(1, lpmos.Downloading, p), 200)
			}
			time.Sleep(3 * time.Second)
			want(t, "earlier stage", a.progress(1, lpmos.Partitioning, 50), 200)
			time.Sleep(3 * time.Second)
			if got := c.percents(); !slices.Equal(got, []int{30, 45}) {
				t.Errorf("stored %v; want [30 45]", got)
			}
			if late := r.now().Stats().ProgressLate; late != 3 {
				t.Errorf("%d counted as late; want 3", late)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.progress[0].UpdatedAt.IsZero() || c.progress[0].Message != "working" {
				t.Errorf("stored %+v", c.progress[0])
			}
		})
	})
	t.Run("of a flood costs 429 and two writes in three seconds", func(t *testing.T) { // T10
		synctest.Test(t, func(t *testing.T) {
			c, r, a := setup(t)
			synctest.Wait() // what setup began is written
			before := c.writes.Load()
			codes := map[int]int{}
			for i := range 3000 {
				codes[a.progress(1, lpmos.Downloading, 20+i/100)]++
				time.Sleep(time.Millisecond)
			}
			if codes[200] < 5 || codes[200] > 9 || codes[200]+codes[429] != 3000 {
				t.Errorf("answers = %v", codes)
			}
			if n := c.writes.Load() - before; n > 2 {
				t.Errorf("%d writes in 3 s; want at most 2", n)
			}
			time.Sleep(10 * time.Second)
			want(t, "progress after the flood", a.progress(1, lpmos.Downloading, 59), 200)
			time.Sleep(3 * time.Second)
			if got := c.percents(); got[len(got)-1] != 59 {
				t.Errorf("the newest stored is %v; want 59", got)
			}
			if n := r.now().Stats().RateLimited; n != int64(codes[429]) {
				t.Errorf("counted %d refused; want %d", n, codes[429])
			}
		})
	})
	t.Run("is stored at once with a new stage and at the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _, a := setup(t)
			want(t, "progress", a.progress(1, lpmos.Partitioning, 5), 200)
			want(t, "progress", a.progress(1, lpmos.Partitioning, 10), 200)
			want(t, "progress", a.progress(1, lpmos.Downloading, 20), 200)
			time.Sleep(step)
			if got := c.percents(); len(got) == 0 || got[len(got)-1] != 20 {
				t.Errorf("stored %v at the stage change; want 20 last", got)
			}
			want(t, "progress", a.progress(1, lpmos.Configuring, 95), 200)
			time.Sleep(step)
			want(t, "progress", a.progress(1, lpmos.Configuring, 100), 200)
			time.Sleep(step)
			if got := c.percents(); got[len(got)-1] != 100 {
				t.Errorf("stored %v; want 100 last", got)
			}
		})
	})
	t.Run("is handed up when the region stops", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, r, a := setup(t)
			stop := r.run()
			a.progress(1, lpmos.Downloading, 30)
			time.Sleep(step)
			a.progress(1, lpmos.Downloading, 31)
			stop()
			if got := c.percents(); !slices.Equal(got, []int{30, 31}) {
				t.Errorf("stored %v; want [30 31]", got)
			}
		})
	})
}

func TestLogs(t *testing.T) {
	setup := func(t *testing.T) (*center, *region, *agent) {
		c := newCenter()
		r := newRegion(t, c)
		c.order(mac1, lpmos.Pending)
		a := r.boot(mac1, addr1)
		a.report()
		return c, r, a
	}
	all := func(c *center) string {
		var keys []int
		for n := range c.logs {
			keys = append(keys, n)
		}
		slices.Sort(keys)
		var b strings.Builder
		for _, n := range keys {
			b.WriteString(c.logs[n])
		}
		return b.String()
	}
	t.Run("are stored once, whatever is repeated", func(t *testing.T) {
		c, r, a := setup(t)
		want(t, "logs", a.logs(1, 0, "a", "b"), 200)
		want(t, "repeated", a.logs(1, 0, "a", "b"), 200)
		want(t, "overlapping", a.logs(1, 1, "b", "c"), 200)
		r.restart()
		want(t, "repeated after a restart", a.logs(1, 2, "c"), 200)
		want(t, "more", a.logs(1, 3, "d\x1b[31m\u202e", strings.Repeat("x", 2000)), 200)
		if got, want := all(c), "a\nb\nc\nd[31m\n"+strings.Repeat("x", 1021)+"…\n"; got != want {
			t.Errorf("stored %q; want %q", got, want)
		}
		want(t, "another attempt's", a.logs(7, 5, "x"), 200)
		if strings.Contains(all(c), "x\n") {
			t.Error("lines of another attempt were stored")
		}
	})
	t.Run("come in chunks of 16 KiB and end at 256 KiB with a word", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, r, a := setup(t)
			line := strings.Repeat("y", 999)
			lines := slices.Repeat([]string{line}, 128)
			for i := range 3 {
				time.Sleep(2 * time.Second)
				want(t, "logs", a.logs(1, i*128, lines...), 200)
			}
			text := all(c)
			if len(text) > maxLogBytes+len(logMarker) || strings.Count(text, logMarker) != 1 || !strings.HasSuffix(text, logMarker) {
				t.Errorf("stored %d bytes, %d markers", len(text), strings.Count(text, logMarker))
			}
			for n, chunk := range c.logs {
				if len(chunk) > maxChunkBytes {
					t.Errorf("chunk %d has %d bytes", n, len(chunk))
				}
			}
			if dropped := r.now().Stats().LogDropped; dropped != 3*128-262 {
				t.Errorf("%d lines dropped; want %d", dropped, 3*128-262)
			}
		})
	})
}

func TestReport(t *testing.T) {
	c := newCenter()
	r := newRegion(t, c)
	o := c.order(mac1, lpmos.Pending)
	a := r.boot(mac1, addr1)
	send := func(edit func(*lpmos.Hardware)) int {
		h := hardware(mac1)
		edit(h)
		k := a.key.Public()
		return a.post(agentapi.PathReport, agentapi.Report{MACAddress: mac1, Hardware: h, AgentKey: &k}, nil)
	}
	want(t, "no hardware", a.post(agentapi.PathReport, agentapi.Report{MACAddress: mac1}, nil), 400)
	want(t, "no boot mode", send(func(h *lpmos.Hardware) { h.BootMode = "" }), 400)
	want(t, "257 disks", send(func(h *lpmos.Hardware) { h.Disks = make([]lpmos.Disk, 257) }), 400)
	want(t, "1025 NICs", send(func(h *lpmos.Hardware) { h.NICs = make([]lpmos.NIC, 1025) }), 400)
	want(t, "a negative size", send(func(h *lpmos.Hardware) { h.Disks[0].SizeBytes = -1 }), 400)
	want(t, "129 partitions", send(func(h *lpmos.Hardware) { h.Disks[0].Content.Partitions = make([]lpmos.Partition, 129) }), 400)
	want(t, "a serial the digest covers, with a newline", send(func(h *lpmos.Hardware) { h.Disks[0].Serial = "S\n1" }), 400)
	want(t, "a label the plan covers, of 300 bytes", send(func(h *lpmos.Hardware) {
		h.Disks[0].Content.Filesystem = &lpmos.Filesystem{Type: "ext4", Label: strings.Repeat("x", 300)}
	}), 400)
	if c.hardware[o.TaskID] != nil {
		t.Fatal("refused hardware was stored")
	}
	want(t, "256 disks, 1024 NICs", send(func(h *lpmos.Hardware) {
		h.Disks, h.NICs = slices.Repeat(h.Disks, 256), slices.Repeat(h.NICs, 1024)
	}), 200)
	want(t, "an ugly vendor", send(func(h *lpmos.Hardware) { h.System.Manufacturer = "Evil\x00\u202e<b>" + strings.Repeat("é", 300) }), 200)
	if got := c.hardware[o.TaskID].System.Manufacturer; len(got) > 256 || !strings.HasPrefix(got, "Evil<b>é") || !strings.HasSuffix(got, "…") {
		t.Errorf("stored vendor %q (%d bytes)", got, len(got))
	}
	c.update(o.TaskID, func(o *lpmos.Order) { o.Macs = []lpmos.MAC{mac1, mac2} })
	a.mac = mac2
	want(t, "another address of the machine", a.report(), 200)
}

func TestFailedResult(t *testing.T) {
	c := newCenter()
	r := newRegion(t, c)
	o := c.order(mac1, lpmos.AwaitingApproval)
	c.approve(o.TaskID)
	a := r.boot(mac1, addr1)
	a.report()
	grantTo(c, o, a)
	send := func(f *lpmos.Failure, ok bool) int {
		return a.post(agentapi.PathResult, agentapi.Result{MACAddress: mac1, TaskID: o.TaskID, Attempt: 1, OK: ok, Failure: f, Written: true}, nil)
	}
	want(t, "no failure", send(nil, false), 400)
	want(t, "failure of a success", send(&lpmos.Failure{Code: "x", Cause: "y"}, true), 400)
	want(t, "unknown stage", send(&lpmos.Failure{Code: "x", Cause: "y", Stage: "dreaming"}, false), 400)
	want(t, "failure", send(&lpmos.Failure{Code: "disk_gone", Cause: "The disk\ndisappeared.", Stage: lpmos.StageInstall, Attempt: 77}, false), 200)
	if len(c.results) != 1 || c.results[0].Failure.Cause != "The disk disappeared." || c.results[0].Failure.Attempt != 1 || time.Since(c.results[0].Failure.At) > time.Minute {
		t.Errorf("stored %+v", c.results)
	}
}

func TestMachineWithoutTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		a := r.boot(macX, addr1)
		if a.cfg.TaskID != "" || a.cfg.Credential == "" {
			t.Fatalf("boot configuration = %+v", a.cfg)
		}
		want(t, "report", a.report(), 200)
		if len(c.found) != 1 || c.found[0].MAC != macX || c.found[0].Address != addr1.String() || c.found[0].Hardware == nil {
			t.Errorf("found %+v", c.found)
		}
		began := time.Now()
		if status, ap := a.approval("20s"); status != 200 || ap != (agentapi.Approval{}) || time.Since(began) != 20*time.Second {
			t.Errorf("approval = %d %+v after %v", status, ap, time.Since(began))
		}
		go func() { time.Sleep(5 * time.Second); c.order(macX, lpmos.Pending) }()
		began = time.Now()
		if status, ap := a.approval("20s"); status != 200 || ap.Approved || ap.TaskID == "" || time.Since(began) != 5*time.Second {
			t.Errorf("approval once there is a task = %d %+v after %v", status, ap, time.Since(began))
		}
		if b := r.boot(macX, addr1); b.cfg.TaskID == "" || b.report() != http.StatusOK {
			t.Error("the next boot is not the task's")
		}
	})
}

// A thousand idle machines report once a minute; the store hears of what is new.
func TestIdleMachinesAreQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		a := r.boot(macX, addr1)
		for range 11 {
			want(t, "report", a.report(), 200)
			time.Sleep(time.Minute)
		}
		if len(c.found) != 3 {
			t.Errorf("stored %d times in 11 min; want once, and every 5 min", len(c.found))
		}
		c.break_(fmt.Errorf("%w", lpmos.ErrUnavailable))
		time.Sleep(5 * time.Minute)
		want(t, "report while the store is away", a.report(), 503)
		c.break_(nil)
		want(t, "report", a.report(), 200)
		if len(c.found) != 4 {
			t.Errorf("stored %d times; want what failed to be stored by the next report", len(c.found))
		}
	})
}

func TestStrangersAreBounded(t *testing.T) {
	r := newRegion(t, newCenter())
	for i := range 3 * maxStrangers {
		if _, _, err := r.now().Begin(t.Context(), BootRequest{MAC: lpmos.MAC{2, 1, byte(i >> 16), byte(i >> 8), byte(i), 1}, Remote: addr1}); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.now().Stats().Machines; n > maxStrangers {
		t.Errorf("%d machines without a task are remembered; want at most %d", n, maxStrangers)
	}
}

func TestCancelAgainstPermit(t *testing.T) { // R05
	var permits, refusals int
	for i := range 200 {
		synctest.Test(t, func(t *testing.T) {
			c := newCenter()
			r := newRegion(t, c)
			o := c.order(mac1, lpmos.AwaitingApproval)
			c.approve(o.TaskID)
			a := r.boot(mac1, addr1)
			a.report()
			go func() { // the store decides once: whoever is first
				if i%2 == 0 {
					c.grant(o.TaskID, nonceN(1))
					return
				}
				c.end(o.TaskID)
			}()
			status, pa := a.permit(nonceN(1), "30s")
			if status != 200 || (pa.Permit != nil) == (pa.Refused != "") || (pa.Permit != nil) != (i%2 == 0) {
				t.Fatalf("permit = %d %+v", status, pa)
			}
			if pa.Permit != nil {
				permits++
			} else {
				refusals++
			}
		})
	}
	if permits != 100 || refusals != 100 {
		t.Errorf("%d permits, %d refusals; want 100 of each", permits, refusals)
	}
}
