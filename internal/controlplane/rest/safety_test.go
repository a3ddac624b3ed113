package rest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

// asked brings a task to where its machine asks to write.
func (p *plane) asked(t *testing.T, m string) string {
	t.Helper()
	id := p.create(m)
	task := p.report(id, m, lpmos.Content{})
	method, path, body := approve(id, task.Plan.Digest)
	want[lpmos.Task](p, method, path, body, 200)
	p.ask(t, task)
	return id
}

func (p *plane) ask(t *testing.T, task lpmos.Task) {
	t.Helper()
	if err := p.sess.PutPermitRequest(t.Context(), lpmos.PermitRequest{TaskID: task.ID, Attempt: 1, AgentKey: p.registered(t, task.ID), At: time.Now().UTC(),
		Nonce: strings.Repeat("a", 64), PlanDigest: task.Plan.Digest, HardwareDigest: task.Plan.HardwareDigest}); err != nil {
		t.Fatal(err)
	}
}

type stopAnswer struct {
	Stopped bool `json:"stopped"`
	lpmos.Stop
}

// X04: no machine begins to write while the stop stands, and those that waited
// go on when it ends.
func TestStop(t *testing.T) {
	p := newPlane(t)
	if s := want[stopAnswer](p, "GET", "/api/v1/stop", "", 200); s.Stopped {
		t.Errorf("stopped at first: %+v", s)
	}
	if s := want[stopAnswer](p, "PUT", "/api/v1/stop", `{"reason":"wrong rack"}`, 200); !s.Stopped || s.Reason != "wrong rack" || s.By == "" || s.At.IsZero() {
		t.Errorf("stop = %+v", s)
	}
	p.problem("PUT", "/api/v1/stop", `{"reason":"`+strings.Repeat("x", 3000)+`"}`, 400)
	p.eventually("everybody knows", func() bool { return want[stopAnswer](p, "GET", "/api/v1/stop", "", 200).Stopped })
	id := p.asked(t, mac)
	p.eventually("the task says why it waits", func() bool {
		w := want[lpmos.Task](p, "GET", "/api/v1/tasks/"+id, "", 200).PermitWait
		return w != nil && w.Reason == lpmos.WaitStop
	})
	if x := p.is(id, lpmos.Approved); x.AgentKey == nil || len(strings.Fields(x.AgentKey.Words)) != 8 {
		t.Errorf("agent key = %+v", x.AgentKey)
	}
	p.empty("DELETE", "/api/v1/stop", 204)
	p.empty("DELETE", "/api/v1/stop", 204)
	p.is(id, lpmos.Installing)
}

// TestForgetTPM approves a machine with a TPM, sees it refused with another one,
// and has the TPM forgotten.
func TestForgetTPM(t *testing.T) {
	p := newPlane(t)
	path := "/api/v1/machines/" + mac + "/tpm"
	p.problem("DELETE", "/api/v1/machines/x/tpm", "", 400)
	p.problem("DELETE", path, "", 404)
	id := p.create(mac)
	machine := func(ek string) *lpmos.Hardware {
		return &lpmos.Hardware{BootMode: "bios", CPU: lpmos.CPU{Architecture: "amd64"}, NICs: []lpmos.NIC{{Name: "e0", MAC: lpmos.MustMAC(mac)}},
			Disks: []lpmos.Disk{{Device: "/dev/sda", SizeBytes: 1 << 34, SectorBytes: 512, Serial: "S1", Transport: "sata"}},
			TPM:   &lpmos.TPM{Endorsement: []byte(ek), Companion: []byte("name")}}
	}
	report := func(attempt int, ek string) {
		if err := p.sess.PutHardware(t.Context(), id, attempt, machine(ek)); err != nil {
			t.Fatal(err)
		}
	}
	report(1, "its own")
	seen := p.is(id, lpmos.AwaitingApproval)
	if seen.TPM != nil {
		t.Errorf("TPM before the first approval = %+v; want none", seen.TPM)
	}
	method, decide, body := approve(id, seen.Plan.Digest)
	want[lpmos.Task](p, method, decide, body, 200)
	if got := p.is(id, lpmos.Approved); got.TPM == nil || string(got.TPM.Endorsement) != "its own" || got.TPM.By == "" || got.TPM.TaskID != id {
		t.Errorf("TPM after the approval = %+v; want the one it was approved with", got.TPM)
	}
	p.eventually("the machine says so", func() bool {
		m, ok := p.state.Machine(lpmos.MustMAC(mac))
		return ok && m.TPM != nil && string(m.TPM.Endorsement) == "its own"
	})
	p.problem("DELETE", path, "", 409) // a live task
	report(1, "a clone's")
	if got := p.is(id, lpmos.Failed); got.Error == nil || got.Error.Code != "tpm_changed" {
		t.Errorf("error with another TPM = %+v", got.Error)
	}
	p.empty("DELETE", path, 204)
	p.eventually("it is forgotten", func() bool { return p.state.TPM(lpmos.MustMAC(mac)) == nil })
	want[lpmos.Task](p, "POST", "/api/v1/tasks/"+id+"/retry", "", 200)
	report(2, "a new mainboard's")
	if got := p.is(id, lpmos.AwaitingApproval); got.TPM != nil || len(lpmos.DiffHardware(machine("its own"), got.Hardware)) != 1 {
		t.Errorf("after it was forgotten the TPM is %+v; want none, and a difference to look at", got.TPM)
	}
	p.problem("DELETE", path, "", 404)
}

func TestLockAndLimits(t *testing.T) {
	p := newPlane(t)
	lock := "/api/v1/machines/" + mac + "/lock"
	p.problem("PUT", "/api/v1/machines/x/lock", `{"reason":"y"}`, 400)
	p.problem("DELETE", "/api/v1/machines/x/lock", "", 400)
	p.problem("PUT", lock, `{"reason":" "}`, 400)
	for _, path := range []string{lock, "/api/v1/stop", "/api/v1/limits"} {
		p.problem("PUT", path, `{}`, 415, "Content-Type", "text/plain")
	}
	if l := want[lpmos.Lock](p, "PUT", lock, `{"reason":"being repaired"}`, 200); l.Reason != "being repaired" || l.By == "" {
		t.Errorf("lock = %+v", l)
	}
	spec := `{"region_id":"dc1","target_mac":"` + mac + `","os_type":"tiny","os_version":"1"}`
	if pr := p.problem("POST", "/api/v1/tasks", spec, 409); !strings.Contains(pr.Detail, "being repaired") {
		t.Errorf("problem = %+v; want who locked it and why", pr)
	}
	p.empty("DELETE", lock, 204)
	p.eventually("it is free", func() bool { return p.state.Locked(lpmos.MustMAC(mac)) == nil })
	id := p.create(mac)
	want[lpmos.Lock](p, "PUT", lock, `{"reason":"being repaired"}`, 200)
	p.eventually("the machine says so", func() bool {
		m, ok := p.state.Machine(lpmos.MustMAC(mac))
		return ok && m.Lock != nil && m.Lock.Reason == "being repaired"
	})
	p.empty("DELETE", lock, 204)
	if l := want[lpmos.Limits](p, "GET", "/api/v1/limits", "", 200); l.PermitsPerMinute != 0 || l.Protected == nil {
		t.Errorf("limits = %+v", l)
	}
	p.problem("PUT", "/api/v1/limits", `{"protected":["the database"]}`, 400)
	l := want[lpmos.Limits](p, "PUT", "/api/v1/limits", `{"permits_per_minute":5,"protected":["52-54-00-00-AA-01"]}`, 200)
	if l.PermitsPerMinute != 5 || len(l.Protected) != 1 || l.Protected[0] != "52:54:00:00:aa:01" {
		t.Errorf("limits = %+v", l)
	}
	p.eventually("everybody knows", func() bool { return p.state.Limits().PermitsPerMinute == 5 })
	p.keepsOthers("/api/v1/limits", `{"permits_per_minute":6,"protected":["52:54:00:00:aa:01"]}`, `{"permits_per_minute":5,"protected":["52:54:00:00:aa:01"]}`)
	if pr := p.problem("POST", "/api/v1/tasks", strings.Replace(spec, mac, "52:54:00:00:aa:01", 1), 409); !strings.Contains(pr.Detail, "protected") {
		t.Errorf("problem = %+v", pr)
	}
	// A machine that turns out to have a protected port is not planned for.
	h := &lpmos.Hardware{BootMode: "bios", CPU: lpmos.CPU{Architecture: "amd64"},
		NICs: []lpmos.NIC{{Name: "e0", MAC: lpmos.MustMAC(mac)}, {Name: "e9", MAC: lpmos.MustMAC("52:54:00:00:aa:01")}}}
	if err := p.sess.PutHardware(t.Context(), id, 1, h); err != nil {
		t.Fatal(err)
	}
	if x := p.is(id, lpmos.Failed); x.Error == nil || x.Error.Code != "protected_machine" || x.Plan != nil {
		t.Errorf("task = %+v", x.Error)
	}
}

// keepsOthers replaces what is at a path twice, each time by who looked at it
// before either did: the second is refused. At the end it is restored.
func (p *plane) keepsOthers(path, next, before string) {
	p.t.Helper()
	resp, _ := p.do("GET", path, "")
	tag := resp.Header.Get("ETag")
	resp, b := p.do("PUT", path, next, "If-Match", tag)
	now := resp.Header.Get("ETag")
	if resp.StatusCode != 200 || now == tag || now == "" {
		p.t.Fatalf("PUT %s with If-Match = %d, ETag %s, %s; want 200 and another ETag than %s", path, resp.StatusCode, now, b, tag)
	}
	p.problem("PUT", path, before, 412, "If-Match", tag)
	p.problem("PUT", path, before, 400, "If-Match", "W/"+tag)
	p.problem("PUT", path, before, 400, "If-Match", `""`)
	if resp, b := p.do("PUT", path, before, "If-Match", now); resp.StatusCode != 200 || resp.Header.Get("ETag") != tag {
		p.t.Errorf("PUT %s of what was there before = %d, ETag %s, %s; want 200 and %s again", path, resp.StatusCode, resp.Header.Get("ETag"), b, tag)
	}
}

// An approval whose words were compared is for that boot alone.
func TestComparedKey(t *testing.T) {
	p := newPlane(t)
	id := p.create(mac)
	task := p.report(id, mac, lpmos.Content{})
	first := p.registered(t, id).Fingerprint()
	p.eventually("the key is shown", func() bool { x, _ := p.state.Task(id); return x.AgentKey != nil && x.AgentKey.Fingerprint == first })
	path := "/api/v1/tasks/" + id + "/approve"
	body := func(key string) string {
		return `{"approved":true,"plan_digest":"` + task.Plan.Digest + `","agent_key":"` + key + `"}`
	}
	p.problem("PUT", path, body("acid acorn"), 400)
	if pr := p.problem("PUT", path, body("sha256:"+strings.Repeat("ab", 32)), 409); !strings.Contains(pr.Detail, lpmos.KeyWords(first)) {
		t.Errorf("problem = %+v; want the words as they are now", pr)
	}
	x := want[lpmos.Task](p, "PUT", path, body(first), 200)
	if x.Approval == nil || !x.Approval.KeyCompared || x.Approval.AgentKey != first {
		t.Errorf("approval = %+v", x.Approval)
	}
	// The machine restarts: another key asks.
	p.ask(t, x)
	p.eventually("the approval is void", func() bool {
		x, _ := p.state.Task(id)
		return x.Status == lpmos.AwaitingApproval && x.Approval == nil
	})
}
