package lpmos_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/debpkg"
	"github.com/lpmos/lpmos/internal/tier"
)

// validate has a family's own program read a file.
func validate(t *testing.T, cmd *exec.Cmd, text string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := exec.CommandContext(t.Context(), cmd.Path, append(slices.Clone(cmd.Args[1:]), name)...)
	run.Env = cmd.Env
	if out, err := run.CombinedOutput(); err != nil {
		t.Errorf("%v: %v: %s\n%s", run.Args, err, out, text)
	}
}

// validator is a program of this host.
func validator(t *testing.T, needs, program string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		tier.Missing(t, needs, err.Error())
	}
	return exec.CommandContext(t.Context(), program, args...)
}

// cloudInitPackages are cloud-init and the Python packages that its validator
// loads, beside PyYAML.
var cloudInitPackages = []string{
	"cloud-init", "python3-jsonschema", "python3-pyrsistent", "python3-attr", "python3-jinja2", "python3-markupsafe", "python3-oauthlib", "python3-configobj",
	"python3-requests", "python3-urllib3", "python3-idna", "python3-chardet", "python3-certifi", "python3-jsonpatch", "python3-json-pointer", "python3-six",
}

// cloudInit is the validator of cloud-init, from Debian's packages as they are in
// the cache: they are not installed, which would change what this computer does
// when it starts.
func cloudInit(t *testing.T) *exec.Cmd {
	t.Helper()
	cache := os.Getenv("LPMOS_CACHE_DIR")
	if cache == "" {
		tier.Missing(t, "cloud-init", "LPMOS_CACHE_DIR names no directory with packages")
	}
	if out, err := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", "import sys, yaml; assert sys.version_info[:2] == (3, 11)").CombinedOutput(); err != nil {
		tier.Missing(t, "cloud-init", "Debian 12's Python with PyYAML is not here: "+string(out))
	}
	repo, _, err := debpkg.Open(t.Context(), debpkg.Config{Dir: filepath.Join(cache, "apt-bookworm"), Debs: filepath.Join(cache, "debs"), Suite: "bookworm", Updates: true})
	if err != nil {
		tier.Missing(t, "cloud-init", err.Error())
	}
	pkgs, err := repo.Resolve(t.Context(), nil, cloudInitPackages)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Fetch(t.Context(), pkgs); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, p := range pkgs {
		if err := repo.Unpack(t.Context(), p, root); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-B", "-m", "cloudinit.cmd.main", "schema", "--config-file")
	cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(root, "usr/lib/python3/dist-packages"))
	return cmd
}

// renderings are the answers of a kind with all that a profile, a template and an
// installer's entry say, and with nothing of it.
func renderings(t *testing.T, kind string) map[string]string {
	bare := installer(kind)
	bare.Installer.Repository = ""
	return map[string]string{
		"everything": answersOf(t, installerPlan(kind)),
		"nothing":    answersOf(t, lpmos.NewPlan(task(), server(), bare)),
	}
}

// TestAnswersAreValid has each family's own validator read the answers. There is
// no Debian package of the one for kickstart.
func TestAnswersAreValid(t *testing.T) {
	for kind, c := range map[string]struct {
		validator func(*testing.T) *exec.Cmd
		as        func(string) string
	}{
		lpmos.TemplatePreseed:   {func(t *testing.T) *exec.Cmd { return validator(t, "tools", "debconf-set-selections", "-c") }, nil},
		lpmos.TemplateKickstart: {func(t *testing.T) *exec.Cmd { return validator(t, "kickstart", "ksvalidator", "-v", "RHEL9") }, nil},
		// Its validator knows the document as a part of user-data.
		lpmos.TemplateAutoinstall: {cloudInit, func(s string) string { return "#cloud-config\nautoinstall:\n  " + strings.ReplaceAll(s, "\n", "\n  ") }},
	} {
		t.Run(kind, func(t *testing.T) {
			cmd := c.validator(t)
			for name, text := range renderings(t, kind) {
				if c.as != nil {
					text = c.as(text)
				}
				t.Run(name, func(t *testing.T) { validate(t, cmd, text) })
			}
		})
	}
}

// TestSeedIsValid is the same of what cloud-init is given in an installed system.
func TestSeedIsValid(t *testing.T) {
	cmd := cloudInit(t)
	s := setup()
	for name, edit := range map[string]func(*lpmos.Task){
		"everything": func(t *lpmos.Task) { t.Setup = &s },
		"nothing":    func(*lpmos.Task) {},
		"a template": func(t *lpmos.Task) {
			t.TemplateText = &lpmos.TaskTemplate{Name: "more", Version: 1, Kind: lpmos.TemplateUserData, Text: "#cloud-config\nfqdn: {{json hostname}}\npackages: [tmux]\nwrite_files: [{path: /etc/asset, content: {{json asset}}}]\n"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			tk, h, img := task(), server(), image()
			img.CloudInit, h.Chassis.AssetTag = true, `it's "A" % $(x) #1: [`
			edit(tk)
			validate(t, cmd, planned(t, lpmos.NewPlan(tk, h, img), "/var/lib/cloud/seed/nocloud/user-data").Text)
		})
	}
}
