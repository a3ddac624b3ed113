package agentserver

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

func TestSegment(t *testing.T) {
	begin := func(t *testing.T, r *region, mac lpmos.MAC, addr netip.Addr) string {
		t.Helper()
		_, nonce, err := r.now().Begin(t.Context(), BootRequest{MAC: mac, Remote: addr})
		if err != nil {
			t.Fatal(err)
		}
		return nonce
	}
	t.Run("is one file, for root only, in a directory", func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		c.order(mac1, lpmos.Pending)
		seg, err := r.now().Segment(t.Context(), begin(t, r, mac1, addr1), addr1)
		if err != nil {
			t.Fatal(err)
		}
		if len(seg)%512 != 0 || !bytes.Contains(seg, []byte("000081800000000000000000")) { // 0100600, uid 0, gid 0
			t.Errorf("segment of %d bytes has no file of mode 0600", len(seg))
		}
		if files := unpack(t, seg); len(files) != 2 || files["lpmos"] == nil {
			t.Errorf("segment holds %d files", len(files))
		}
	})
	t.Run("is for the address that began the boot only", func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		c.order(mac1, lpmos.Pending)
		nonce := begin(t, r, mac1, addr1)
		if _, err := r.now().Segment(t.Context(), nonce, addr2); !errors.Is(err, lpmos.ErrNotFound) {
			t.Errorf("Segment from another address = %v; want ErrNotFound", err)
		}
		if _, err := r.now().Segment(t.Context(), nonce, netip.MustParseAddr("::ffff:10.77.0.11")); err != nil {
			t.Errorf("Segment from the mapped form of the address = %v", err)
		}
	})
	t.Run("is begun from the machine's own lease, where the region gives out addresses", func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		leases := leaseMap{addr2: mac2}
		r.leases = leases
		r.restart()
		o := c.order(mac1, lpmos.Pending)
		refused := func(who string, mac lpmos.MAC, addr netip.Addr) {
			t.Helper()
			if _, _, err := r.now().Begin(t.Context(), BootRequest{MAC: mac, Remote: addr}); !errors.Is(err, lpmos.ErrUnavailable) {
				t.Errorf("%s begins a boot: %v; want it refused for now", who, err)
			}
		}
		refused("another machine on the network", mac1, addr2)
		begin(t, r, mac1, addr1) // from nowhere that is known: such networks have their own DHCP server
		leases[addr1] = mac1
		begin(t, r, mac1, addr1)
		refused("a host that was given no address", mac1, netip.MustParseAddr("192.0.2.1"))
		// Another port is the machine's, once it is known to be.
		c.update(o.TaskID, func(o *lpmos.Order) { o.Macs = append(o.Macs, mac2) })
		begin(t, r, mac1, addr2)
	})
	t.Run("refuses what it did not seal", func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		c.order(mac1, lpmos.Pending)
		nonce := begin(t, r, mac1, addr1)
		for _, bad := range []string{"", "x", "../etc/passwd", nonce[:len(nonce)-2], "AA" + nonce[2:], strings.Repeat("A", 4096)} {
			if _, err := r.now().Segment(t.Context(), bad, addr1); !errors.Is(err, lpmos.ErrNotFound) {
				t.Errorf("Segment(%.20q) = %v; want ErrNotFound", bad, err)
			}
		}
	})
	t.Run("is the same again until the agent speaks, for a minute", func(t *testing.T) {
		for name, restart := range map[string]bool{"same server": false, "restarted": true} {
			synctest.Test(t, func(t *testing.T) {
				c := newCenter()
				r := newRegion(t, c)
				c.order(mac1, lpmos.Pending)
				nonce := begin(t, r, mac1, addr1)
				first, err := r.now().Segment(t.Context(), nonce, addr1)
				if err != nil {
					t.Fatal(err)
				}
				if restart {
					r.restart()
				}
				time.Sleep(30 * time.Second)
				second, err := r.now().Segment(t.Context(), nonce, addr1)
				if err != nil || !restart && !bytes.Equal(first, second) {
					t.Errorf("%s: second fetch = %v, same bytes %v", name, err, bytes.Equal(first, second))
				}
				if restart {
					want(t, "credential that was replaced unused", r.agent(mac1, addr1, first).report(), 401)
				}
				a := r.agent(mac1, addr1, second)
				want(t, name, a.report(), 200)
				if _, err := r.now().Segment(t.Context(), nonce, addr1); !errors.Is(err, lpmos.ErrNotFound) {
					t.Errorf("%s: fetch after the agent spoke = %v; want ErrNotFound", name, err)
				}
				r.restart()
				if _, err := r.now().Segment(t.Context(), nonce, addr1); !errors.Is(err, lpmos.ErrNotFound) {
					t.Errorf("%s: fetch after a restart = %v; want ErrNotFound", name, err)
				}
				want(t, name+" later", a.report(), 200)

				late := begin(t, r, mac1, addr1)
				if _, err := r.now().Segment(t.Context(), late, addr1); err != nil {
					t.Fatal(err)
				}
				time.Sleep(61 * time.Second)
				if _, err := r.now().Segment(t.Context(), late, addr1); !errors.Is(err, lpmos.ErrNotFound) {
					t.Errorf("%s: fetch after a minute = %v; want ErrNotFound", name, err)
				}
			})
		}
	})
	t.Run("expires unfetched", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCenter()
			r := newRegion(t, c)
			c.order(mac1, lpmos.Pending)
			nonce := begin(t, r, mac1, addr1)
			time.Sleep(11 * time.Minute)
			if _, err := r.now().Segment(t.Context(), nonce, addr1); !errors.Is(err, lpmos.ErrNotFound) {
				t.Errorf("Segment after 11 minutes = %v; want ErrNotFound", err)
			}
		})
	})
	t.Run("never gives an older boot the floor back", func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		c.order(mac1, lpmos.Pending)
		old := begin(t, r, mac1, addr1)
		a := r.boot(mac1, addr1)
		if _, err := r.now().Segment(t.Context(), old, addr1); !errors.Is(err, lpmos.ErrNotFound) {
			t.Errorf("Segment of the older boot = %v; want ErrNotFound", err)
		}
		want(t, "newest boot", a.report(), 200)
	})
	t.Run("has a hundred takers and one winner", func(t *testing.T) { // T04
		c := newCenter()
		r := newRegion(t, c)
		c.order(mac1, lpmos.Pending)
		nonce := begin(t, r, mac1, addr1)
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if _, err := r.now().Segment(t.Context(), nonce, netip.AddrFrom4([4]byte{10, 77, 0, byte(i)})); err == nil {
					won.Add(1)
				} else if !errors.Is(err, lpmos.ErrNotFound) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d of 100 addresses got the segment; want 1", won.Load())
		}
	})
	t.Run("is not given out unless its record is stored", func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		o := c.order(mac1, lpmos.Pending)
		nonce := begin(t, r, mac1, addr1)
		c.break_(lpmos.ErrUnavailable)
		if seg, err := r.now().Segment(t.Context(), nonce, addr1); !errors.Is(err, lpmos.ErrUnavailable) || seg != nil {
			t.Errorf("Segment without a store = %d bytes, %v; want ErrUnavailable", len(seg), err)
		}
		c.break_(nil)
		if _, err := r.now().Segment(t.Context(), nonce, addr1); err != nil {
			t.Errorf("Segment when the store is back = %v", err)
		}
		if c.agents[agentKey(o.TaskID, 1)].Credential == "" {
			t.Error("the credential's record is not stored")
		}
	})
	t.Run("is not given out before the view is synced", func(t *testing.T) {
		c := newCenter()
		r := newRegion(t, c)
		c.order(mac1, lpmos.Pending)
		c.SetSynced(false)
		if _, _, err := r.now().Begin(t.Context(), BootRequest{MAC: mac1, Remote: addr1}); !errors.Is(err, lpmos.ErrUnavailable) {
			t.Errorf("Begin = %v; want ErrUnavailable", err)
		}
	})
	t.Run("is not given to a machine without a task unless such are wanted", func(t *testing.T) {
		r := newRegion(t, newCenter())
		r.cfg.Discover = false
		r.restart()
		if _, _, err := r.now().Begin(t.Context(), BootRequest{MAC: mac1, Remote: addr1}); !errors.Is(err, lpmos.ErrNotFound) {
			t.Errorf("Begin = %v; want ErrNotFound", err)
		}
	})
}

func TestCredential(t *testing.T) {
	setup := func(t *testing.T) (*center, *region, lpmos.Order) {
		c := newCenter()
		r := newRegion(t, c)
		o := c.order(mac1, lpmos.AwaitingApproval)
		c.approve(o.TaskID)
		return c, r, o
	}
	t.Run("must be the right one", func(t *testing.T) { // T01
		_, r, _ := setup(t)
		a := r.boot(mac1, addr1)
		for _, secret := range []string{"", "x", strings.Repeat("0", 64), strings.ToUpper(a.cfg.Credential) + "0", a.cfg.Credential[:62]} {
			want(t, "credential "+secret, a.call(t.Context(), "GET", agentapi.PathApproval+mac1.String(), secret, nil, nil), 401)
		}
		said := map[string]bool{} // nobody learns from it how close they were
		for _, secret := range []string{"x", strings.Repeat("0", 64), a.cfg.Credential[:62], a.cfg.Credential + "0"} {
			req, err := http.NewRequestWithContext(t.Context(), "GET", "https://region"+agentapi.PathApproval+mac1.String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+secret)
			res, err := a.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			said[res.Status+" "+string(b)] = true
		}
		if len(said) != 1 {
			t.Errorf("wrong credentials are answered with %v; want one answer for all", said)
		}
		want(t, "right credential", a.report(), 200)
	})
	t.Run("says nothing of another machine or task", func(t *testing.T) { // R12
		c, r, _ := setup(t)
		c.order(mac2, lpmos.Pending)
		a, b := r.boot(mac1, addr1), r.boot(mac2, addr2)
		b.report()
		want(t, "approval of another's MAC", a.call(t.Context(), "GET", agentapi.PathApproval+mac2.String(), a.cfg.Credential, nil, nil), 403)
		stolen := *a
		stolen.cfg.TaskID = b.cfg.TaskID
		want(t, "progress of another's task", stolen.progress(1, lpmos.Downloading, 30), 403)
		b.addr = addr1
		want(t, "another's credential", b.report(), 403)
	})
	t.Run("belongs to the address, or to the lease", func(t *testing.T) {
		_, r, o := setup(t)
		leases := leaseMap{}
		r.leases = leases
		r.restart()
		a := r.boot(mac1, addr1)
		want(t, "first address", a.report(), 200)
		a.addr = addr2
		want(t, "address without a lease", a.report(), 403)
		leases[addr2] = mac2
		want(t, "address of another's lease", a.report(), 403)
		leases[addr2] = mac1
		want(t, "address of the moved lease", a.report(), 200)
		if rec := r.center.agents[agentKey(o.TaskID, 1)]; rec.Address != addr2.String() {
			t.Errorf("stored address = %s; want %s", rec.Address, addr2)
		}
	})
	t.Run("of an older boot is refused before the permit", func(t *testing.T) {
		c, r, _ := setup(t)
		a := r.boot(mac1, addr1)
		want(t, "first boot", a.report(), 200)
		b := r.boot(mac1, addr1)
		want(t, "older boot", a.report(), 401)
		want(t, "newest boot", b.report(), 200)
		if len(c.results) != 0 {
			t.Error("the task was quarantined because the machine restarted")
		}
	})
	t.Run("of an older boot that is used again before the permit quarantines the task", func(t *testing.T) {
		c, r, _ := setup(t)
		a := r.boot(mac1, addr1)
		want(t, "first boot", a.report(), 200)
		b := r.boot(mac1, addr1)
		want(t, "newest boot", b.report(), 200)
		r.restart()
		want(t, "older boot again", a.report(), 403)
		want(t, "newest boot", b.report(), 403)
		if len(c.results) != 1 || c.results[0].Written || c.results[0].Failure.Code != "credential_reused" || c.results[0].Failure.NextStep == "" {
			t.Errorf("results = %+v", c.results)
		}
	})
	t.Run("of an older boot that never spoke is refused, and somebody is told", func(t *testing.T) {
		c, r, o := setup(t)
		a, b := r.boot(mac1, addr1), r.boot(mac1, addr1)
		want(t, "newest boot", b.report(), 200)
		want(t, "older boot", a.report(), 401)
		want(t, "newest boot", b.report(), 200)
		if x := c.agents[agentKey(o.TaskID, 1)].Alarm; x == nil || x.Code != "credential_revoked" || len(c.results) != 0 {
			t.Errorf("alarm = %+v, results %+v", x, c.results)
		}
	})
	t.Run("counts only with the key that was registered with it", func(t *testing.T) { // T01
		c, r, o := setup(t)
		a := r.boot(mac1, addr1)
		want(t, "approval before the report", a.call(t.Context(), "GET", agentapi.PathApproval+mac1.String(), a.cfg.Credential, nil, nil), 403)
		bare := *a
		bare.key, bare.client = nil, r.client(&bare)
		want(t, "report without a key", bare.report(), 401)
		other, err := lpmos.NewAgentKey()
		if err != nil {
			t.Fatal(err)
		}
		thief := *a
		thief.key, thief.client = other, r.client(&thief)
		body := a.reports()
		want(t, "report that registers another's key", thief.post(agentapi.PathReport, body, nil), 400)
		if c.agents[agentKey(o.TaskID, 1)].Key != nil {
			t.Fatal("a key that was not proved is registered")
		}
		want(t, "report", a.report(), 200)
		if k := c.agents[agentKey(o.TaskID, 1)].Key; k == nil || k.Fingerprint() != a.key.Public().Fingerprint() {
			t.Errorf("registered key = %+v", k)
		}
		half := a.reports()
		half.AgentKey = &lpmos.AgentPublic{Sign: half.AgentKey.Sign, Box: other.Public().Box}
		want(t, "report that changes half of the key", a.post(agentapi.PathReport, half, nil), 403)
		for range 2 {
			want(t, "stolen credential without a key", bare.report(), 401)
			want(t, "stolen credential with another key", thief.report(), 401)
			want(t, "stolen credential at the permit", thief.call(t.Context(), "POST", agentapi.PathPermit, a.cfg.Credential,
				agentapi.PermitRequest{MACAddress: mac1, TaskID: o.TaskID, Nonce: nonceN(9), PlanDigest: digest, HardwareDigest: digest}, nil), 401)
			r.restart()
		}
		if len(c.asked) != 0 {
			t.Errorf("a thief asked for a permit: %+v", c.asked)
		}
		x := c.agents[agentKey(o.TaskID, 1)].Alarm
		if x == nil || x.Code != "credential_stolen" || x.Address != addr1.String() || x.Count != 1 {
			t.Errorf("alarm = %+v; want one of a stolen credential", x)
		}
		want(t, "the machine itself", a.report(), 200)
		if got := c.agents[agentKey(o.TaskID, 1)].Alarm; got == nil {
			t.Error("the alarm is forgotten with the next report")
		}
	})
	t.Run("flooded by a thief leaves the machine its own allowance", func(t *testing.T) {
		_, r, _ := setup(t)
		old := r.boot(mac1, addr1)
		want(t, "report of the boot before", old.report(), 200)
		a := r.boot(mac1, addr1)
		want(t, "report", a.report(), 200)
		thief := *a
		other, err := lpmos.NewAgentKey()
		if err != nil {
			t.Fatal(err)
		}
		thief.key = other
		thief.client = r.client(&thief)
		last := 0
		for range 100 {
			last = thief.report()
		}
		want(t, "the last of a hundred requests of a thief", last, 429)
		want(t, "the machine itself", a.report(), 200)
	})
	t.Run("keeps the floor after the permit until a newer boot speaks", func(t *testing.T) {
		c, r, o := setup(t)
		a := r.boot(mac1, addr1)
		want(t, "report", a.report(), 200)
		c.grant(o.TaskID, nonceN(1))
		r.boot(mac1, addr2) // somebody fetches a segment and does not use it
		want(t, "installing agent", a.progress(1, lpmos.Downloading, 30), 200)
		if len(c.results) != 0 {
			t.Error("a fetched segment alone quarantined the task")
		}
	})
	t.Run("keeps the floor after the permit over restarts of the region", func(t *testing.T) {
		c, r, o := setup(t)
		a := r.boot(mac1, addr1)
		want(t, "report", a.report(), 200)
		grantTo(c, o, a)
		r.boot(mac1, addr2) // somebody fetches a segment and does not use it
		r.restart()
		want(t, "installing agent after a restart", a.progress(1, lpmos.Downloading, 30), 200)
		r.restart()
		r.boot(mac1, addr2) // and once more
		r.restart()
		want(t, "installing agent after another", a.progress(1, lpmos.Downloading, 40), 200)
		_, res := a.result(1, "0s")
		if len(c.results) != 1 || !c.results[0].OK {
			t.Errorf("result answered %+v, stored are %+v; want the installation's own", res, c.results)
		}
	})
	t.Run("that a later boot took over is quarantine after a restart, too", func(t *testing.T) {
		c, r, o := setup(t)
		a := r.boot(mac1, addr1)
		want(t, "report", a.report(), 200)
		grantTo(c, o, a)
		b := r.boot(mac1, addr2)
		r.restart()
		want(t, "newer", b.report(), 200)
		r.restart()
		want(t, "newer again", b.report(), 200)
		want(t, "older", a.progress(1, lpmos.Downloading, 30), 403)
		want(t, "newer", b.report(), 403)
		if len(c.results) != 1 || c.results[0].OK || c.results[0].Failure.Code != "credential_reused" {
			t.Errorf("results = %+v", c.results)
		}
	})
	t.Run("of an older boot is refused before the permit, after a restart, too", func(t *testing.T) {
		c, r, _ := setup(t)
		a := r.boot(mac1, addr1)
		want(t, "first boot", a.report(), 200)
		b := r.boot(mac1, addr1)
		r.restart()
		want(t, "older boot", a.report(), 401)
		want(t, "newest boot", b.report(), 200)
		if len(c.results) != 0 {
			t.Error("the task was quarantined before a permit was granted")
		}
	})
	for name, oldFirst := range map[string]bool{"the older speaks first": true, "the newer speaks first": false} {
		t.Run("in two hands after the permit quarantines the task, "+name, func(t *testing.T) {
			c, r, o := setup(t)
			a := r.boot(mac1, addr1)
			want(t, "report", a.report(), 200)
			_, pa := grantTo(c, o, a)
			b := r.boot(mac1, addr2)
			first, second := a, b
			if !oldFirst {
				first, second = b, a
			}
			want(t, "one agent", first.report(), 200)
			want(t, "the other agent", second.report(), 403)
			for range 2 {
				want(t, "older boot", a.report(), 403)
				want(t, "newer boot", b.report(), 403)
				want(t, "call home", a.booted(pa.CallhomeToken, 1), 403)
				if _, _, err := r.now().Begin(t.Context(), BootRequest{MAC: mac1, Remote: addr1}); !errors.Is(err, lpmos.ErrConflict) {
					t.Errorf("Begin in quarantine = %v; want ErrConflict", err)
				}
				if !oldFirst {
					break
				}
				r.restart()
			}
			if len(c.results) != 1 || c.results[0].OK || c.results[0].Failure.Code != "credential_reused" || c.results[0].Failure.NextStep == "" {
				t.Errorf("results = %+v", c.results)
			}
			if c.agents[agentKey(o.TaskID, 1)].Quarantined == "" {
				t.Error("the quarantine is not stored")
			}
			// A person looks, and retries.
			c.update(o.TaskID, func(o *lpmos.Order) { o.Attempt, o.Status, o.Permit = 2, lpmos.Pending, nil })
			n := r.boot(mac1, addr1)
			want(t, "boot of the retried task", n.report(), 200)
		})
	}
	t.Run("in quarantine stays there while the store is away", func(t *testing.T) {
		c, r, o := setup(t)
		a := r.boot(mac1, addr1)
		a.report()
		grantTo(c, o, a)
		b := r.boot(mac1, addr2)
		want(t, "newer", b.report(), 200)
		c.break_(lpmos.ErrUnavailable)
		want(t, "older", a.report(), 403)
		want(t, "newer", b.report(), 403)
		c.break_(nil)
		if len(c.results) != 0 {
			t.Fatal("stored without a store")
		}
		want(t, "newer", b.report(), 403)
		if len(c.results) != 1 {
			t.Error("the quarantine was not stored once the store was back")
		}
	})
	t.Run("ends with a person's retry", func(t *testing.T) { // T02
		c, r, o := setup(t)
		a := r.boot(mac1, addr1)
		want(t, "attempt 1", a.report(), 200)
		c.update(o.TaskID, func(o *lpmos.Order) { o.Attempt, o.Status = 2, lpmos.Pending })
		want(t, "credential of attempt 1 in attempt 2", a.report(), 401)
		b := r.boot(mac1, addr1)
		if b.cfg.BootSeq <= a.cfg.BootSeq || b.cfg.Attempt != 2 {
			t.Errorf("boot of attempt %d has seq %d after %d", b.cfg.Attempt, b.cfg.BootSeq, a.cfg.BootSeq)
		}
		want(t, "attempt 2", b.report(), 200)
	})
	t.Run("ends some time after its task", func(t *testing.T) { // T02
		synctest.Test(t, func(t *testing.T) {
			c, r, o := setup(t)
			defer r.run()()
			a := r.boot(mac1, addr1)
			want(t, "report", a.report(), 200)
			_, pa := grantTo(c, o, a)
			c.end(o.TaskID)
			time.Sleep(time.Minute)
			if status, ap := a.approval("30s"); status != 200 || ap.Approved || ap.Status != "" {
				t.Errorf("approval after the end = %d %+v", status, ap)
			}
			if status, pa := a.permit(nonceN(2), "30s"); status != 200 || pa.Permit != nil || pa.Refused == "" {
				t.Errorf("permit after the end = %d %+v", status, pa)
			}
			if status, res := a.result(1, "30s"); status != 200 || res.Status != "" {
				t.Errorf("result after the end = %d %+v", status, res)
			}
			want(t, "report after the end", a.report(), 200)
			want(t, "progress after the end", a.progress(1, lpmos.Downloading, 30), 404)
			want(t, "logs after the end", a.logs(1, 0, "x"), 404)
			want(t, "call home after the end", a.booted(pa.CallhomeToken, 1), 404)
			time.Sleep(15 * time.Minute)
			want(t, "report long after the end", a.report(), 401)
			want(t, "call home long after the end", a.booted(pa.CallhomeToken, 1), 401)
			if n := r.now().Stats().Machines; n != 0 {
				t.Errorf("%d machines are still remembered", n)
			}
		})
	})
	t.Run("of a call home is good for nothing else", func(t *testing.T) {
		c, r, o := setup(t)
		a := r.boot(mac1, addr1)
		a.report()
		_, pa := grantTo(c, o, a)
		thief := *a
		thief.cfg.Credential = pa.CallhomeToken
		want(t, "report with the token", thief.report(), 401)
		want(t, "progress with the token", thief.progress(1, lpmos.Downloading, 30), 401)
		want(t, "booted with the credential", a.booted(a.cfg.Credential, 1), 401)
		want(t, "booted for another attempt", a.booted(pa.CallhomeToken, 2), 403)
		thief.mac = macX
		want(t, "booted for another machine", thief.booted(pa.CallhomeToken, 1), 403)
		want(t, "booted", a.booted(pa.CallhomeToken, 1), 200)
	})
	t.Run("does not move to another machine's UUID", func(t *testing.T) {
		c, r, _ := setup(t)
		_, nonce, err := r.now().Begin(t.Context(), BootRequest{MAC: mac1, UUID: "99999999-4455-6677-8899-aabbccddee00", Remote: addr1})
		if err != nil {
			t.Fatal(err)
		}
		seg, err := r.now().Segment(t.Context(), nonce, addr1)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "report of another machine", r.agent(mac1, addr1, seg).report(), 403)
		if len(c.hardware) != 0 {
			t.Error("its hardware was stored")
		}
	})
}

type leaseMap map[netip.Addr]lpmos.MAC

func (l leaseMap) ByAddress(a netip.Addr) (lpmos.MAC, bool) { m, ok := l[a]; return m, ok }

func (l leaseMap) ByMAC(mac lpmos.MAC) (netip.Addr, bool) {
	for a, m := range l {
		if m == mac {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// grantTo gives an agent the permit of attempt 1.
func grantTo(c *center, o lpmos.Order, a *agent) (int, agentapi.PermitAnswer) {
	c.grant(o.TaskID, nonceN(1))
	return a.permit(nonceN(1), "0s")
}

// TestTakeOver has a standby serve when the first instance is gone, and the first
// when it is back: each knows the boots that the other served in between.
func TestTakeOver(t *testing.T) {
	c := newCenter()
	first, standby := newRegion(t, c), newRegion(t, c)
	c.order(mac1, lpmos.Pending)
	a := first.boot(mac1, addr1)
	want(t, "report to the first", a.report(), 200)
	first.takeOver() // its session was renewed: nothing is new
	want(t, "report after that", a.report(), 200)

	a.region = standby
	want(t, "report to the standby before it knows", a.report(), 401)
	standby.takeOver()
	want(t, "report to the standby", a.report(), 200)
	b := standby.boot(mac1, addr1)
	if b.cfg.BootSeq <= a.cfg.BootSeq {
		t.Errorf("a boot at the standby has number %d; want one after %d", b.cfg.BootSeq, a.cfg.BootSeq)
	}
	want(t, "report of the next boot", b.report(), 200)

	b.region = first
	first.takeOver()
	want(t, "report to the first again", b.report(), 200)
}

func TestManyAgentsOneTask(t *testing.T) {
	c := newCenter()
	r := newRegion(t, c)
	o := c.order(mac1, lpmos.AwaitingApproval)
	c.approve(o.TaskID)
	var wg sync.WaitGroup
	agents := make([]*agent, 20)
	for i := range agents {
		agents[i] = r.boot(mac1, addr1)
	}
	var ok atomic.Int32
	for _, a := range agents {
		wg.Go(func() {
			if a.report() == http.StatusOK {
				ok.Add(1)
			}
		})
	}
	wg.Wait()
	if ok.Load() != 1 {
		t.Errorf("%d of 20 boots may speak; want the newest only", ok.Load())
	}
}

func TestSameUUID(t *testing.T) {
	tests := []struct {
		a, b string
		want bool
	}{
		{"00112233-4455-6677-8899-aabbccddeeff", "00112233-4455-6677-8899-AABBCCDDEEFF", true},
		{"00112233-4455-6677-8899-aabbccddeeff", "33221100-5544-7766-8899-aabbccddeeff", true},
		{"00112233-4455-6677-8899-aabbccddeeff", "33221100-5544-7766-8899-aabbccddeefe", false},
		{"00112233-4455-6677-8899-aabbccddeeff", "", true},
		{"00000000-0000-0000-0000-000000000000", "00112233-4455-6677-8899-aabbccddeeff", true},
		{"not a uuid", "00112233-4455-6677-8899-aabbccddeeff", true},
		{"00112233445566778899aabbccddeeff0011", "00112233-4455-6677-8899-aabbccddeeff", true},
	}
	for _, tt := range tests {
		if got := sameUUID(tt.a, tt.b); got != tt.want || sameUUID(tt.b, tt.a) != tt.want {
			t.Errorf("sameUUID(%q, %q) = %v; want %v", tt.a, tt.b, got, tt.want)
		}
	}
}
