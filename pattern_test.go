package lpmos_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

func facts() lpmos.Facts {
	t := task()
	t.SSHKeys, t.TargetMAC, t.RegionID = []string{"ssh-ed25519 AAAA ada@desk"}, lpmos.MustMAC("00:1a:2b:3c:4d:5e"), "dc1"
	h := server()
	h.System.Product, h.Chassis.AssetTag = "PowerEdge R750", "A 42/7"
	return lpmos.FactsOf(t, h)
}

func TestExpandHostname(t *testing.T) {
	for _, tt := range []struct{ pattern, want, problem string }{
		{"web-{serial}", "web-srv1", ""},
		{"{mac6}", "3c4d5e", ""},
		{"n{mac12}.{region}.example.net", "n001a2b3c4d5e.dc1.example.net", ""},
		{"{asset}", "a-42-7", ""},
		{"h-{uuid8}", "h-4c4c4544", ""},
		{"", "", "empty"},
		{"web", "", "same name"},
		{"{region}", "", "same name"},
		{"Web-{mac6}", "", "lower-case"},
		{"web {mac6}", "", "lower-case"},
		{"web-{mac6", "", "not closed"},
		{"web-mac6}", "", "lower-case"},
		{"{hostname}", "", "there is only {asset}"},
		{"{{mac6}}", "", "names {{mac6}"},
		{"-{mac6}", "", "no host name"},
		{"{mac6}-", "", "no host name"},
		{"{mac6}..x", "", "no host name"},
		{strings.Repeat("a", 60) + "{mac6}", "", "no host name"},
		{strings.Repeat("a", 130), "", "longer"},
	} {
		got, err := lpmos.ExpandHostname(tt.pattern, facts())
		if got != tt.want || (err == nil) != (tt.problem == "") || err != nil && !strings.Contains(err.Error(), tt.problem) {
			t.Errorf("ExpandHostname(%q) = %q, %v; want %q, %q", tt.pattern, got, err, tt.want, tt.problem)
		}
		if bad := lpmos.ValidateHostnamePattern(tt.pattern); (bad == nil) != (tt.problem == "") {
			t.Errorf("ValidateHostnamePattern(%q) = %v; want %q", tt.pattern, bad, tt.problem)
		}
	}
	none := lpmos.FactsOf(task(), nil)
	if _, err := lpmos.ExpandHostname("web-{serial}", none); err == nil || !strings.Contains(err.Error(), "this machine has none") {
		t.Errorf("a machine without a serial number = %v", err)
	}
	for _, serial := range []string{"../../etc", "\u202egnp", "  ", "<b>", strings.Repeat("x", 10_000), "ÄÖ-1"} {
		f := facts()
		f.Text["serial"] = serial
		if got, err := lpmos.ExpandHostname("web-{serial}", f); err == nil && !lpmos.ValidHostname(got) {
			t.Errorf("serial %q gives %q", serial, got)
		}
	}
}

// TestRenderTemplate is V19, among others: there is nothing in a template but
// facts.
func TestRenderTemplate(t *testing.T) {
	const head = "#cloud-config\n"
	for name, tt := range map[string]struct{ text, want, problem string }{
		"no placeholder":          {head + "a: 1\n", head + "a: 1\n", ""},
		"facts":                   {head + "fqdn: {{hostname}}.{{region}}\nsn: {{serial}}\n", head + "fqdn: web-01.dc1\nsn: SRV1\n", ""},
		"blanks inside":           {"{{ mac }} {{  json   mac }}", `00:1a:2b:3c:4d:5e "00:1a:2b:3c:4d:5e"`, ""},
		"a list":                  {"keys: {{json ssh_keys}}", `keys: ["ssh-ed25519 AAAA ada@desk"]`, ""},
		"other braces":            {"${HOME} {x} } }} {% %}", "${HOME} {x} } }} {% %}", ""},
		"two braces":              {"{{open}} jinja }}", "{{ jinja }}", ""},
		"spaces in a fact":        {"\n{{model}}", "", "line 2: {{model}} holds more than"},
		"spaces, quoted":          {"{{json model}}", `"PowerEdge R750"`, ""},
		"what is empty":           {"{{manufacturer}}", "", "is empty for this machine"},
		"what is empty, quoted":   {"{{json manufacturer}}", `""`, ""},
		"an unknown name":         {"x\ny\n{{password}}", "", "line 3: {{password}} is not known; there is arch"},
		"a list as text":          {"{{ssh_keys}}", "", "write {{json ssh_keys}}"},
		"a call":                  {`{{env "HOME"}}`, "", "neither"},
		"a pipe":                  {`{{hostname | html}}`, "", "neither"},
		"a field":                 {`{{.Hostname}}`, "", "not known"},
		"not closed":              {"{{hostname", "", "without }}"},
		"over two lines":          {"{{hostname\n}}", "", "without }}"},
		"nested":                  {"{{json {{mac}}}}", "", "without }}"},
		"nothing between":         {"{{}}", "", "neither"},
		"a control character":     {"a\x1b[2J", "", "U+001B"},
		"a NUL":                   {"a\x00", "", "U+0000"},
		"a bare carriage return":  {"a\rb", "", "U+000D"},
		"lines as Windows has it": {"a\r\nb\t", "a\r\nb\t", ""},
		"invalid UTF-8":           {"a\xff", "", "UTF-8"},
		"nothing":                 {"", "", "empty"},
		"too much":                {strings.Repeat("x", 33<<10), "", "longer"},
	} {
		got, err := lpmos.RenderTemplate(tt.text, facts())
		if got != tt.want || (err == nil) != (tt.problem == "") || err != nil && !strings.Contains(err.Error(), tt.problem) {
			t.Errorf("%s = %q, %v; want %q, %q", name, got, err, tt.want, tt.problem)
		}
	}
	if _, err := lpmos.RenderTemplate("{{serial}}", lpmos.FactsOf(task(), nil)); err == nil || !strings.Contains(err.Error(), "not known of this machine") {
		t.Errorf("without a report = %v", err)
	}
	// A machine cannot write configuration through its own name.
	f := facts()
	f.Text["serial"] = "x\"\nruncmd: [reboot] # \u202e\U0001f600"
	if got, err := lpmos.RenderTemplate("{{serial}}", f); err == nil {
		t.Errorf("a hostile serial number gives %q", got)
	}
	got, err := lpmos.RenderTemplate("{{json serial}}", f)
	var back string
	if err != nil || strings.ContainsAny(got, "\n\u202e") || json.Unmarshal([]byte(got), &back) != nil || back != f.Text["serial"] {
		t.Errorf("a hostile serial number, quoted, gives %q, %v", got, err)
	}
	// Few placeholders can stand for much.
	f.List["ssh_keys"] = []string{strings.Repeat("k", 12<<10)}
	if _, err := lpmos.RenderTemplate(strings.Repeat("{{json ssh_keys}}", 100), f); err == nil || !strings.Contains(err.Error(), "64 KiB") {
		t.Errorf("more than 64 KiB = %v", err)
	}
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"#cloud-config\nfqdn: {{hostname}}\n", "{{json ssh_keys}}", "{{open}}{{", "{{json", "}}{{mac6}}{", "{{json open}}"} {
		f.Add(s, "SRV1")
	}
	f.Fuzz(func(t *testing.T, text, serial string) {
		x := facts()
		x.Text["serial"] = serial
		out, err := lpmos.RenderTemplate(text, x)
		again, err2 := lpmos.RenderTemplate(text, x)
		if out != again || (err == nil) != (err2 == nil) {
			t.Fatal("rendered twice, it differs")
		}
		if len(out) > lpmos.MaxRenderedBytes || err != nil && out != "" {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
		var invalid *lpmos.InvalidError
		if err != nil && !errors.As(err, &invalid) {
			t.Fatalf("error is %T", err)
		}
		// Lines come from the text alone, whatever the machine says.
		if err == nil && strings.Count(out, "\n") != strings.Count(text, "\n") {
			t.Fatalf("%q with serial %q makes %q", text, serial, out)
		}
	})
}

func FuzzHostnamePattern(f *testing.F) {
	for _, s := range []string{"web-{serial}", "{mac6}", "{", "}", "{{mac6}}", "{region}.{uuid8}"} {
		f.Add(s, "SRV1")
	}
	f.Fuzz(func(t *testing.T, pattern, serial string) {
		x := facts()
		x.Text["serial"] = serial
		name, err := lpmos.ExpandHostname(pattern, x)
		if err == nil && !lpmos.ValidHostname(name) || err != nil && name != "" {
			t.Fatalf("%q with serial %q = %q, %v", pattern, serial, name, err)
		}
		if err == nil && strings.ContainsAny(pattern, "\n /") {
			t.Fatalf("%q is accepted", pattern)
		}
	})
}

func TestProfile(t *testing.T) {
	no := false
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGluZm8 ada@desk"
	good := lpmos.Profile{Name: "web", Version: 3, OSType: "debian", OSVersion: "12", Hostname: "web-{mac6}", SSHKeys: []string{key}, Verify: &no, Notes: "n", Template: "base"}
	p, err := good.Normalize()
	if err != nil || p.Arch != "amd64" {
		t.Fatalf("Normalize = %+v, %v", p, err)
	}
	for field, edit := range map[string]func(*lpmos.Profile){
		"name":             func(p *lpmos.Profile) { p.Name = "../x" },
		"description":      func(p *lpmos.Profile) { p.Description = strings.Repeat("x", 3<<10) },
		"os_type":          func(p *lpmos.Profile) { p.OSType = "" },
		"os_version":       func(p *lpmos.Profile) { p.OSVersion = "" },
		"arch":             func(p *lpmos.Profile) { p.Arch = "mips" },
		"hostname_pattern": func(p *lpmos.Profile) { p.Hostname = "web" },
		"ssh_keys":         func(p *lpmos.Profile) { p.SSHKeys = []string{"command=\"x\" " + key} },
		"notes":            func(p *lpmos.Profile) { p.Notes = strings.Repeat("x", 3<<10) },
		"template":         func(p *lpmos.Profile) { p.Template = "a/b" },
	} {
		bad := good
		edit(&bad)
		_, err := bad.Normalize()
		if e, ok := errors.AsType[*lpmos.InvalidError](err); !ok || e.Field != field {
			t.Errorf("%s: %v; want it named", field, err)
		}
	}
	mac := lpmos.MustMAC("00:1a:2b:3c:4d:5e")
	s := p.Apply(lpmos.Spec{RegionID: "dc1", TargetMAC: mac, Profile: "web"})
	if s.Profile != "web@3" || s.OSType != "debian" || s.Arch != "amd64" || s.HostnamePattern != "web-{mac6}" || len(s.SSHKeys) != 1 || s.WantsVerification() || s.Notes != "n" || s.Template != "base" {
		t.Errorf("Apply to an empty spec = %+v", s)
	}
	yes := true
	own := lpmos.Spec{OSType: "tiny", OSVersion: "1", Hostname: "x", SSHKeys: []string{"k"}, Verify: &yes, Notes: "mine", Template: "other"}
	if s := p.Apply(own); s.OSType != "tiny" || s.Hostname != "x" || s.HostnamePattern != "" || s.SSHKeys[0] != "k" || !s.WantsVerification() || s.Notes != "mine" || s.Template != "other" {
		t.Errorf("Apply to a full spec = %+v; want what was said to stand", s)
	}
	for ref, want := range map[string]int{"web": 0, "web@3": 3} {
		if name, v, err := lpmos.ParseRef("profile", ref); name != "web" || v != want || err != nil {
			t.Errorf("ParseRef(%q) = %q, %d, %v", ref, name, v, err)
		}
	}
	for _, ref := range []string{"", "@", "web@", "web@0", "web@-1", "web@+3", "web@03", "web@x", "a/b", "web@1@2"} {
		if _, _, err := lpmos.ParseRef("profile", ref); err == nil {
			t.Errorf("ParseRef(%q) is accepted", ref)
		}
	}
}

func TestTemplateNormalize(t *testing.T) {
	good := lpmos.Template{Name: "base", Kind: "user-data", Text: "#cloud-config\n{}\n"}
	if _, err := good.Normalize(); err != nil {
		t.Fatal(err)
	}
	for field, edit := range map[string]func(*lpmos.Template){
		"name":        func(t *lpmos.Template) { t.Name = "" },
		"kind":        func(t *lpmos.Template) { t.Kind = "autoyast" },
		"description": func(t *lpmos.Template) { t.Description = strings.Repeat("x", 3<<10) },
		"text":        func(t *lpmos.Template) { t.Text = "fqdn: x" },
	} {
		bad := good
		edit(&bad)
		_, err := bad.Normalize()
		if e, ok := errors.AsType[*lpmos.InvalidError](err); !ok || e.Field != field {
			t.Errorf("%s: %v; want it named", field, err)
		}
	}
}

func TestPlanWithTemplate(t *testing.T) {
	plain := lpmos.NewPlan(task(), server(), image())
	x, img := task(), image()
	x.TemplateText = lpmos.Template{Name: "base", Version: 2, Kind: "user-data", Text: "#cloud-config\nfqdn: {{hostname}}\n"}.Pinned()
	if p := lpmos.NewPlan(x, server(), img); !strings.Contains(p.Problem, "does not read") || p.Effect.UserData != "" {
		t.Errorf("an image without cloud-init: %q, %q", p.Problem, p.Effect.UserData)
	}
	img.CloudInit = true
	p := lpmos.NewPlan(x, server(), img)
	last := planned(t, p, "/var/lib/cloud/seed/nocloud/user-data")
	if p.Problem != "" || p.Effect.UserData != "#cloud-config\nfqdn: web-01\n" || !strings.Contains(last.What, "base@2") || p.Digest == plain.Digest {
		t.Errorf("plan = %q, %q, %+v", p.Problem, p.Effect.UserData, last)
	}
	if lpmos.NewPlan(x, server(), img).Digest != p.Digest {
		t.Error("the same task gives another plan")
	}
	h := server()
	h.System.Serial = "a b"
	x.TemplateText.Text = "#cloud-config\nsn: {{serial}}\n"
	if p := lpmos.NewPlan(x, h, img); !strings.Contains(p.Problem, "line 2: {{serial}}") {
		t.Errorf("a fact that cannot stand there: %q", p.Problem)
	}
	no := false
	y := task()
	y.Verify = &no
	p = lpmos.NewPlan(y, server(), image())
	if !p.Effect.Unverified || len(p.Effect.Files) != len(plain.Effect.Files)-3 || slices.ContainsFunc(p.Effect.Files, func(f lpmos.PlannedFile) bool { return strings.Contains(f.Path, "callhome") }) {
		t.Errorf("without verification %+v", p.Effect.Files)
	}
}
