package rest_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

type machinePage struct {
	Machines   []lpmos.Machine
	Total      int
	Counts     map[lpmos.MachineState]int
	NextCursor string `json:"next_cursor"`
}

func box(serial string, macs ...string) *lpmos.Hardware {
	h := &lpmos.Hardware{
		BootMode: "bios", System: lpmos.System{Manufacturer: "Acme", Product: "R1", Serial: serial}, CPU: lpmos.CPU{Architecture: "amd64", Cores: 8},
		Disks: []lpmos.Disk{{Device: "/dev/vda", Serial: "disk-" + serial, SizeBytes: 4 << 30, Transport: "virtio"}},
	}
	for _, m := range macs {
		h.NICs = append(h.NICs, lpmos.NIC{Name: "e", MAC: lpmos.MustMAC(m)})
	}
	return h
}

func TestMachines(t *testing.T) {
	p := newPlane(t)
	const other = "52:54:00:aa:bb:02"
	if l := want[machinePage](p, "GET", "/api/v1/machines", "", 200); l.Machines == nil || l.Total != 0 {
		t.Errorf("no machines = %+v; want []", l)
	}
	for i, m := range []string{mac, "52:54:00:aa:bb:11"} {
		d := lpmos.Discovered{MAC: lpmos.MustMAC(m), Address: "10.77.0.9", SeenAt: time.Now().UTC(), Hardware: box(fmt.Sprintf("SN%d", i), m)}
		if i == 0 {
			d.Hardware = box("SN0", m, other)
			d.Hardware.Memory.TotalBytes = 1 << 30
		}
		if err := p.sess.PutDiscovered(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	p.eventually("machines found", func() bool { _, ok := p.state.Machine(lpmos.MustMAC("52:54:00:aa:bb:11")); return ok })
	l := want[machinePage](p, "GET", "/api/v1/machines?limit=1&region_id=dc1&state=discovered&q=model:r1", "", 200)
	if l.Total != 2 || len(l.Machines) != 1 || l.NextCursor == "" || l.Counts["discovered"] != 2 || l.Machines[0].Hardware != nil {
		t.Errorf("first page = %+v", l)
	}
	if l = want[machinePage](p, "GET", "/api/v1/machines?limit=1&cursor="+l.NextCursor, "", 200); len(l.Machines) != 1 || l.NextCursor != "" || l.Machines[0].Serial != "SN1" {
		t.Errorf("second page = %+v", l)
	}
	for _, bad := range []string{"limit=0", "limit=x", "region_id=A", "state=happy", "cursor=x", "q=" + strings.Repeat("x", 1100)} {
		p.problem("GET", "/api/v1/machines?"+bad, "", 400)
	}
	for _, spelled := range []string{other, "52-54-00-AA-BB-02", "5254.00aa.bb02", "525400aabb02"} {
		if m := want[lpmos.Machine](p, "GET", "/api/v1/machines/"+spelled, "", 200); m.MAC.String() != mac || m.State != lpmos.MachineDiscovered || m.Hardware == nil {
			t.Errorf("machine %s = %+v", spelled, m)
		}
	}
	p.problem("GET", "/api/v1/machines/nothing", "", 400)
	p.problem("GET", "/api/v1/machines/52:54:00:00:00:99", "", 404)

	// A task finds what the machine was like before.
	id := p.create(other)
	p.is(id, lpmos.Pending)
	h := box("SN0", mac, other)
	h.Memory.TotalBytes = 2 << 30
	h.Disks[0].Serial = "new"
	if err := p.sess.PutHardware(t.Context(), id, 1, h); err != nil {
		t.Fatal(err)
	}
	task := p.is(id, lpmos.AwaitingApproval)
	if task.Previous == nil || task.Previous.Hardware.Memory.TotalBytes != 1<<30 || len(task.Differences) != 3 || task.HardwareAt.IsZero() {
		t.Errorf("task = previous %+v, differences %v", task.Previous, task.Differences)
	}
	m := want[lpmos.Machine](p, "GET", "/api/v1/machines/"+mac, "", 200)
	if m.State != lpmos.MachinePendingApproval || len(m.Tasks) != 1 || m.Tasks[0].TaskID != id || len(m.Differences) != 3 {
		t.Errorf("machine = %+v", m)
	}
}

const sshKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGluZm8 ada@desk"

// registerCloudImage registers an image that runs cloud-init.
func (p *plane) registerCloudImage() {
	p.t.Helper()
	b := p.manifest(func(m *lpmos.ImageManifest) { m.OS, m.CloudInit, m.FirstBoot = "cloud", true, "systemd" })
	p.upload(b)
	i := want[lpmos.Image](p, "PUT", "/api/v1/images/cloud/1/amd64", fmt.Sprintf(`{"os":"cloud","version":"1","arch":"amd64","digest":"sha256:%s"}`, digits(b)), 200)
	if !i.CloudInit {
		p.t.Errorf("image = %+v; want what the manifest says of cloud-init", i)
	}
	p.eventually("image known", func() bool { _, ok := p.state.Image("cloud", "1", "amd64"); return ok })
}

func (p *plane) put(path string, body map[string]any, status int, header ...string) map[string]any {
	p.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		p.t.Fatal(err)
	}
	return want[map[string]any](p, "PUT", path, string(b), status, header...)
}

func TestProfilesAndTemplates(t *testing.T) {
	p := newPlane(t)
	p.registerCloudImage()
	const tmpl, prof = "/api/v1/templates/base", "/api/v1/profiles/web"
	text := "#cloud-config\nfqdn: {{hostname}}\nserial: {{json serial}}\n"
	if a := p.put(tmpl, map[string]any{"kind": "user-data", "text": text}, 201); a["version"] != 1.0 || a["updated_by"] == "" {
		t.Errorf("template = %v", a)
	}
	p.eventually("template known", func() bool { _, ok := p.state.Template("base"); return ok })
	profile := map[string]any{
		"os_type": "cloud", "os_version": "1", "hostname_pattern": "web-{serial}", "ssh_keys": []string{sshKey}, "verify": false,
		"notes": "from a profile", "template": "base", "description": "Web servers",
	}
	p.put(prof, profile, 201)
	p.eventually("profile known", func() bool { _, ok := p.state.Profile("web"); return ok })

	// A lost update is refused, whichever way the version is named.
	for _, path := range []string{tmpl, prof} {
		body := map[string]any{"kind": "user-data", "text": text}
		if path == prof {
			body = profile
		}
		p.put(path, body, 409) // as if it were new
		p.put(path, body, 200, "If-Match", `"1"`)
		p.put(path, body, 412, "If-Match", `"1"`)
		p.put(path, body, 400, "If-Match", `1`)
		p.put(path, body, 400, "If-Match", `"x"`)
		body["version"] = 1
		p.put(path, body, 409)
		body["version"] = 2
		if a := p.put(path, body, 200); a["version"] != 3.0 {
			t.Errorf("%s is at %v; want 3", path, a["version"])
		}
		p.eventually("version 3 known", func() bool {
			x, _ := p.state.Template("base")
			y, _ := p.state.Profile("web")
			return path == tmpl && x.Version == 3 || path == prof && y.Version == 3
		})
		resp, b := p.do("GET", path, "")
		if resp.Header.Get("ETag") != `"3"` {
			t.Errorf("%s has ETag %s", path, resp.Header.Get("ETag"))
		}
		// What was read can be sent back.
		want[map[string]any](p, "PUT", path, string(b), 200, "If-Match", `"3"`)
		p.problem("PUT", path, `{`, 400)
		p.problem("PUT", path, `{"text":"`+strings.Repeat("x", 300<<10)+`"}`, 413)
		p.problem("PUT", path, `{}`, 415, "Content-Type", "text/plain")
		p.problem("PUT", path, `{"name":"other","kind":"user-data","text":"#!x"}`, 400)
		p.problem("GET", path+"%2Fx", "", 400)
		p.problem("GET", path+"x", "", 404)
		p.problem("DELETE", path+"%2Fx", "", 400)
		p.problem("DELETE", path+"x", "", 404)
		p.problem("DELETE", path, "", 400, "If-Match", "*")
	}
	for field, body := range map[string]map[string]any{
		"os_type":          {"os_type": "plan9", "os_version": "1"},
		"hostname_pattern": {"hostname_pattern": "web"},
		"template":         {"template": "nothing"},
		"ssh_keys":         {"ssh_keys": []string{"x"}},
		"arch":             {"arch": "mips"},
		// V12, V17, and a bit of V15
		"system.kernel_args[0]":         {"system": map[string]any{"kernel_args": []string{"init=/bin/sh"}}},
		"system.users[0].password_hash": {"system": map[string]any{"users": []any{map[string]any{"name": "ops", "password_hash": "correct horse battery"}}}},
		"system.users[0].name":          {"system": map[string]any{"users": []any{map[string]any{"name": "%post"}}}},
	} {
		if a := p.put("/api/v1/profiles/bad", body, 400); a["field"] != field {
			t.Errorf("a bad %s is told as %v", field, a)
		}
	}
	if a := p.put("/api/v1/profiles/bad", map[string]any{"os_type": "tiny", "os_version": "1", "template": "base"}, 400); a["field"] != "template" {
		t.Errorf("a template for an image without cloud-init: %v", a)
	}
	for field, body := range map[string]map[string]any{
		"kind": {"kind": "autoyast", "text": "x"},
		"text": {"kind": "user-data", "text": "#cloud-config\n{{password}}"},
	} {
		if a := p.put("/api/v1/templates/bad", body, 400); a["field"] != field {
			t.Errorf("a bad %s is told as %v", field, a)
		}
	}
	if l := want[struct{ Profiles []map[string]any }](p, "GET", "/api/v1/profiles", "", 200).Profiles; len(l) != 1 {
		t.Errorf("profiles = %v", l)
	}
	if l := want[struct{ Templates []map[string]any }](p, "GET", "/api/v1/templates", "", 200).Templates; len(l) != 1 {
		t.Errorf("templates = %v", l)
	}

	// A task by its profile.
	create := func(profile string, status int, more string) map[string]any {
		t.Helper()
		return want[map[string]any](p, "POST", "/api/v1/tasks", fmt.Sprintf(`{"region_id":"dc1","target_mac":%q,"profile":%q%s}`, mac, profile, more), status)
	}
	p.eventually("version 4 known", func() bool { x, _ := p.state.Profile("web"); return x.Version == 4 })
	create("nothing", 400, "")
	create("web@x", 400, "")
	create("web@3", 409, "")
	create("web", 409, `,"template":"base@1"`)
	create("web", 400, `,"template":"other"`)
	create("web", 400, `,"os_type":"tiny","os_version":"1"`) // whose image reads no template
	id := create("web@4", 201, `,"notes":"mine"`)["task_id"].(string)
	task := p.is(id, lpmos.Pending)
	if task.Profile != "web@4" || task.Template != "base@4" || task.OSType != "cloud" || task.Notes != "mine" || len(task.SSHKeys) != 1 || task.Hostname != "machine-aabb01" || task.TemplateText == nil {
		t.Errorf("task = %+v", task)
	}
	// Templates that change later change nothing of it.
	p.put(tmpl, map[string]any{"kind": "user-data", "text": "#cloud-config\nchanged: true\n", "version": 4}, 200)
	if err := p.sess.PutHardware(t.Context(), id, 1, box("AB 12", mac)); err != nil {
		t.Fatal(err)
	}
	task = p.is(id, lpmos.AwaitingApproval)
	rendered := "#cloud-config\nfqdn: web-ab-12\nserial: \"AB 12\"\n"
	if task.Hostname != "web-ab-12" || task.Plan.Effect.Hostname != "web-ab-12" || task.Plan.Effect.UserData != rendered || task.Plan.Problem != "" || !task.Plan.Effect.Unverified {
		t.Errorf("plan = %+v, problem %q", task.Plan.Effect, task.Plan.Problem)
	}

	preview := func(body string, status int) map[string]any {
		t.Helper()
		return want[map[string]any](p, "POST", tmpl+"/preview", body, status)
	}
	p.eventually("version 5 known", func() bool { x, _ := p.state.Template("base"); return x.Version == 5 })
	p.put(tmpl, map[string]any{"kind": "user-data", "text": text + "mac: {{mac}}\n", "version": 5}, 200)
	p.eventually("version 6 known", func() bool { x, _ := p.state.Template("base"); return x.Version == 6 })
	if a := preview(`{"task_id":"`+id+`"}`, 200); a["text"] != rendered+"mac: "+mac+"\n" || a["version"] != 6.0 {
		t.Errorf("preview for the task = %v", a)
	}
	if a := preview("", 200); !strings.Contains(a["text"].(string), "SN12345") {
		t.Errorf("preview for a sample = %v", a)
	}
	preview(`{"task_id":"x"}`, 400)
	preview(`{"task_id":"`+missing+`"}`, 400)
	preview(`{"task_id":"`+strings.Repeat("x", 300<<10)+`"}`, 413)
	p.problem("POST", tmpl+"/preview", "{}", 415, "Content-Type", "text/plain")
	p.problem("POST", tmpl+"%2Fx/preview", "", 400)
	p.problem("POST", tmpl+"x/preview", "", 404)

	// What is in use stays.
	for _, path := range []string{prof, tmpl, "/api/v1/images/cloud/1/amd64"} {
		if pr := p.problem("DELETE", path, "", 409); !strings.Contains(pr.Detail, id) {
			t.Errorf("deleting %s = %q; want to hear who uses it", path, pr.Detail)
		}
	}
	if u := want[struct {
		UsedBy struct {
			Tasks    int      `json:"tasks"`
			Live     []string `json:"live_tasks"`
			Profiles []string `json:"profiles"`
		} `json:"used_by"`
	}](p, "GET", tmpl, "", 200).UsedBy; u.Tasks != 1 || len(u.Live) != 1 || len(u.Profiles) != 1 {
		t.Errorf("used by %+v", u)
	}
	want[lpmos.Task](p, "POST", "/api/v1/tasks/"+id+"/cancel", "", 200)
	p.is(id, lpmos.Canceled)
	if pr := p.problem("DELETE", tmpl, "", 409); !strings.Contains(pr.Detail, "profiles web") {
		t.Errorf("deleting a template that a profile names = %q", pr.Detail)
	}
	p.problem("DELETE", prof, "", 412, "If-Match", `"1"`)
	p.empty("DELETE", prof, 204, "If-Match", `"4"`)
	p.eventually("profile forgotten", func() bool { _, ok := p.state.Profile("web"); return !ok })
	p.problem("DELETE", tmpl, "", 412, "If-Match", `"1"`)
	p.empty("DELETE", tmpl, 204)
}

// A task that does not want to be verified completes when everything is
// written.
func TestCompletedNotVerified(t *testing.T) {
	p := newPlane(t)
	id := want[map[string]string](p, "POST", "/api/v1/tasks", `{"region_id":"dc1","target_mac":"`+mac+`","os_type":"tiny","os_version":"1","verify":false}`, 201)["task_id"]
	task := p.report(id, mac, lpmos.Content{})
	want[lpmos.Task](p, "PUT", "/api/v1/tasks/"+id+"/approve", `{"approved":true}`, 200)
	key := p.registered(t, id)
	if err := p.sess.PutPermitRequest(t.Context(), lpmos.PermitRequest{TaskID: id, Attempt: 1, AgentKey: key, Nonce: strings.Repeat("a", 64), PlanDigest: task.Plan.Digest, HardwareDigest: task.Plan.HardwareDigest}); err != nil {
		t.Fatal(err)
	}
	p.is(id, lpmos.Installing)
	if err := p.sess.PutResult(t.Context(), lpmos.Result{TaskID: id, Attempt: 1, OK: true, Written: true}); err != nil {
		t.Fatal(err)
	}
	if task = p.is(id, lpmos.Completed); task.Verified() || task.Receipt != nil {
		t.Errorf("task = %+v", task)
	}
	if m := want[lpmos.Machine](p, "GET", "/api/v1/machines/"+mac, "", 200); m.State != lpmos.MachineDeployed || m.Verified {
		t.Errorf("machine = %s, verified %v", m.State, m.Verified)
	}
	events := want[struct{ Events []lpmos.Event }](p, "GET", "/api/v1/tasks/"+id+"/events", "", 200).Events
	if err := lpmos.VerifyEvents(events); err != nil || events[len(events)-1].Cause != lpmos.CauseNotVerified {
		t.Errorf("events %+v: %v", events, err)
	}
}

// TestProfileSystem stores a profile that configures the installed system, and
// has a task keep it, whatever becomes of the profile.
func TestProfileSystem(t *testing.T) {
	p := newPlane(t)
	put := func(body any, status int) map[string]any {
		t.Helper()
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		return want[map[string]any](p, "PUT", "/api/v1/profiles/configured", string(b), status)
	}
	port := map[string]any{"name": "lan0", "nic": "boot", "per_machine": true}
	system := map[string]any{"timezone": "Europe/Berlin", "users": []any{map[string]any{"name": "ops", "sudo": true}}, "network": map[string]any{"interfaces": []any{port}}, "scripts": []any{map[string]any{"name": "a", "text": "#!/bin/sh\n"}}}
	body := map[string]any{"os_type": "tiny", "os_version": "1", "system": system}
	if a := put(body, 201); a["system"] == nil {
		t.Errorf("stored %v", a)
	}
	for field, bad := range map[string]any{
		"system.timezone": map[string]any{"timezone": "../x"}, "system.users[0].name": map[string]any{"users": []any{map[string]any{"name": "root"}}}, "system.wifi": map[string]any{"wifi": true},
		"system.network.interfaces[0].nic": map[string]any{"network": map[string]any{"interfaces": []any{map[string]any{"name": "a", "nic": "eth0"}}}},
	} {
		if a := put(map[string]any{"version": 1, "system": bad}, 400); a["field"] != field {
			t.Errorf("%v: field %v; want %s", bad, a["field"], field)
		}
	}
	create := func(more string) string {
		return `{"region_id":"dc1","target_mac":"` + mac + `","profile":"configured@1"` + more + `}`
	}
	if pr := p.problem("POST", "/api/v1/tasks", create(""), 400); pr.Field != "addresses" {
		t.Errorf("without addresses: %+v", pr)
	}
	if pr := p.problem("POST", "/api/v1/tasks", create(`,"addresses":["192.0.2.10"]`), 400); pr.Field != "addresses" {
		t.Errorf("without a prefix length: %+v", pr)
	}
	if pr := p.problem("POST", "/api/v1/tasks", create(`,"addresses":["192.0.2.10/24"],"gateways":["198.51.100.1"]`), 400); pr.Field != "gateways" {
		t.Errorf("a gateway elsewhere: %+v", pr)
	}
	id := want[struct {
		TaskID string `json:"task_id"`
	}](p, "POST", "/api/v1/tasks", create(`,"addresses":["192.0.2.10/24"],"gateways":["192.0.2.1"]`), 201).TaskID
	body["version"], body["system"] = 1, map[string]any{"timezone": "UTC"}
	put(body, 200)
	p.eventually("the task is known", func() bool { _, ok := p.state.Task(id); return ok })
	task := want[lpmos.Task](p, "GET", "/api/v1/tasks/"+id, "", 200)
	if task.Setup == nil || task.Setup.Timezone != "Europe/Berlin" || len(task.Addresses) != 1 {
		t.Errorf("the task has %+v and addresses %v; want what the profile said", task.Setup, task.Addresses)
	}
	if l := want[struct{ Tasks []lpmos.Task }](p, "GET", "/api/v1/tasks?q=drift:yes", "", 200); len(l.Tasks) != 0 {
		t.Errorf("drift:yes finds %+v", l.Tasks)
	}
}
