package agentserver

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lpmos/lpmos"
)

// TestInstall goes through a whole installation, once with one server and once
// with a new one, which knows the store only, for every call.
func TestInstall(t *testing.T) {
	for name, restart := range map[string]bool{"by one server": false, "by a new server for every call": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCenter()
				c.obliging = true
				r := newRegion(t, c)
				again := func() {
					if restart {
						time.Sleep(step) // let what the center does in the background happen
						r.restart()
					}
				}
				o := c.order(mac1, lpmos.Pending)

				order, nonce, err := r.now().Begin(t.Context(), BootRequest{MAC: mac1, UUID: "33221100-5544-7766-8899-AABBCCDDEEFF", Remote: addr1})
				if err != nil || order.TaskID != o.TaskID {
					t.Fatalf("Begin = %v, %v", order, err)
				}
				again()
				seg, err := r.now().Segment(t.Context(), nonce, addr1)
				if err != nil {
					t.Fatal(err)
				}
				a := r.agent(mac1, addr1, seg)
				if a.cfg.TaskID != o.TaskID || a.cfg.Attempt != 1 || a.cfg.BootSeq != 1 || a.cfg.BootMAC != mac1 || len(a.cfg.Keys) != 0 {
					t.Fatalf("boot configuration = %+v", a.cfg)
				}
				again()
				want(t, "report", a.report(), 200)
				again()
				c.approve(o.TaskID)
				status, ap := a.approval("30s")
				if status != 200 || !ap.Approved || ap.Plan == nil || ap.Decision == nil || ap.Status != lpmos.Approved {
					t.Fatalf("approval = %d %+v", status, ap)
				}
				again()
				status, pa := a.permit(nonceN(1), "30s")
				if status != 200 || pa.Permit == nil || pa.Permit.Nonce != nonceN(1) || len(pa.CallhomeToken) != 64 {
					t.Fatalf("permit = %d %+v", status, pa)
				}
				for i, st := range []lpmos.Stage{lpmos.Partitioning, lpmos.Downloading, lpmos.StageInstall, lpmos.Configuring} {
					again()
					want(t, "progress", a.progress(1, st, 20+20*i), 200)
					time.Sleep(2 * time.Second)
					again()
					want(t, "logs", a.logs(1, i, "line "+string(st)), 200)
				}
				again()
				status, res := a.result(1, "30s")
				if status != 200 || res.Status != lpmos.Verifying {
					t.Fatalf("result = %d %+v", status, res)
				}
				again()
				status, res = a.result(1, "30s")
				if status != 200 || res.Status != lpmos.Verifying {
					t.Errorf("repeated result = %d %+v", status, res)
				}
				again()
				a.addr = netip.MustParseAddr("192.0.2.7") // the installed system is another DHCP client
				want(t, "booted", a.booted(pa.CallhomeToken, 1), 200)
				again()
				want(t, "repeated booted", a.booted(pa.CallhomeToken, 1), 200)

				c.mu.Lock()
				defer c.mu.Unlock()
				// The last is of the result: what the agent itself said of it went to
				// a server that was killed.
				if len(c.progress) != 5 || c.progress[4].Percentage != 100 || len(c.receipts) == 0 || len(c.results) == 0 || c.hardware[o.TaskID] == nil {
					t.Errorf("stored: %d progress, %d receipts, %d results, hardware %v", len(c.progress), len(c.receipts), len(c.results), c.hardware[o.TaskID])
				}
				for i, st := range []string{"partitioning", "downloading", "installing", "configuring"} {
					if c.logs[i] != "line "+st+"\n" {
						t.Errorf("log chunk %d = %q", i, c.logs[i])
					}
				}
				rec := c.agents[agentKey(o.TaskID, 1)]
				if !rec.Used || !rec.HardwareKnown || strings.Contains(lpmos.DigestOf(rec), a.cfg.Credential) || rec.Credential == a.cfg.Credential {
					t.Errorf("record = %+v", rec)
				}
				for _, secret := range []string{a.cfg.Credential, pa.CallhomeToken} {
					if strings.Contains(string(lpmos.CanonicalJSON(rec)), secret) {
						t.Error("a secret is stored in clear")
					}
				}
			})
		})
	}
}

func TestPowerLossAfterPermit(t *testing.T) {
	for name, restart := range map[string]bool{"same server": false, "restarted server": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCenter()
				c.obliging = true
				r := newRegion(t, c)
				o := c.order(mac1, lpmos.AwaitingApproval)
				c.approve(o.TaskID)
				a := r.boot(mac1, addr1)
				want(t, "report", a.report(), 200)
				_, first := a.permit(nonceN(1), "30s")
				if restart {
					r.restart()
				}
				b := r.boot(mac1, addr1)
				if b.cfg.Attempt != 1 || b.cfg.BootSeq != 2 {
					t.Fatalf("second boot = attempt %d, seq %d", b.cfg.Attempt, b.cfg.BootSeq)
				}
				want(t, "report of the second boot", b.report(), 200)
				_, pa := b.permit(nonceN(2), "30s")
				if pa.Permit == nil || pa.Permit.Attempt != 2 {
					t.Fatalf("second permit = %+v", pa)
				}
				if restart {
					r.restart()
				}
				want(t, "progress of attempt 2", b.progress(2, lpmos.Partitioning, 5), 200)
				want(t, "token of attempt 1", b.booted(first.CallhomeToken, 1), 401)
				_, res := b.result(2, "30s")
				if res.Status != lpmos.Verifying {
					t.Errorf("result of attempt 2 = %+v", res)
				}
				want(t, "token of attempt 2", b.booted(pa.CallhomeToken, 2), 200)
				if got := c.agents[agentKey(o.TaskID, 2)]; got.BootSeq != 2 || got.Callhome == "" || got.Quarantined != "" {
					t.Errorf("record of attempt 2 = %+v", got)
				}
			})
		})
	}
}

// The grant is in the store, but the region dies before it has answered.
func TestPermitGrantedWhileRegionWasDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		o := c.order(mac1, lpmos.AwaitingApproval)
		c.approve(o.TaskID)
		r.boot(mac1, addr1).report()
		c.grant(o.TaskID, nonceN(1)) // attempt 1 began, and the machine lost power
		b := r.boot(mac1, addr1)
		want(t, "report", b.report(), 200)
		if status, pa := b.permit(nonceN(2), "1s"); status != 200 || pa.Permit != nil || pa.Refused != "" {
			t.Errorf("undecided permit = %d %+v", status, pa)
		}
		c.grant(o.TaskID, nonceN(2))
		r.restart()
		want(t, "logs in between", b.logs(1, 0, "x"), 200) // of an attempt that is over: dropped
		status, pa := b.permit(nonceN(2), "30s")
		if status != 200 || pa.Permit == nil || pa.Permit.Attempt != 2 {
			t.Fatalf("permit after restart = %d %+v", status, pa)
		}
		status, same := b.permit(nonceN(2), "0s")
		if status != 200 || same.CallhomeToken != pa.CallhomeToken {
			t.Errorf("repeated permit = %d, another token", status)
		}
		r.restart()
		status, other := b.permit(nonceN(2), "0s")
		if status != 200 || other.Permit == nil || other.CallhomeToken == pa.CallhomeToken {
			t.Errorf("permit after another restart = %d %+v", status, other)
		}
		want(t, "replaced token", b.booted(pa.CallhomeToken, 2), 401)
		want(t, "newest token", b.booted(other.CallhomeToken, 2), 200)
	})
}
