package cli

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/lab"
)

// TestInstallerCommands registers an installer, plans a machine with it, and
// notes how it was tried.
func TestInstallerCommands(t *testing.T) {
	p, dir := newPlane(t), t.TempDir()
	kernel, initrd, more := filepath.Join(dir, "linux"), filepath.Join(dir, "initrd.gz"), filepath.Join(dir, "more.cfg")
	if err := errors.Join(os.WriteFile(kernel, []byte("a kernel"), 0o600), os.WriteFile(initrd, []byte("an initramfs"), 0o600),
		os.WriteFile(more, []byte("d-i netcfg/dhcp_timeout string 60\nd-i lpmos/model string {{preseed model}}\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	add := func(extra ...string) []string {
		return append([]string{"image", "installer", kernel, initrd, "--os", "debian", "--os-version", "12-installer", "--cache-dir", dir}, extra...)
	}
	p.want(ExitUsage, "answers", "", add()...)
	p.want(ExitUsage, "kernel_args", "", add("--answers", "preseed", "--kernel-args", "init=/bin/sh")...)
	out := p.want(ExitOK, "the distribution's own installer", "", add("--answers", "preseed", "--repository", "http://mirror.example/debian")...)
	if !strings.Contains(out, "http://mirror.example/debian") || !strings.Contains(out, "signed by") {
		t.Errorf("image installer says %q", out)
	}
	p.want(ExitUsage, "not a template's to answer", "", "template", "put", "bad", "--kind", "preseed", "--file", badPreseed(t, dir))
	p.want(ExitOK, "stored", "", "template", "put", "more", "--kind", "preseed", "--file", more)
	mac := "52:54:00:12:34:01"
	create := []string{"task", "create", "--region", "dc1", "--mac", mac, "--os", "debian", "--os-version"}
	p.want(ExitUsage, "not an installer", "", append(slices.Clone(create), "12", "--template", "more")...)
	p.want(ExitOK, "", "", append(create, "12-installer", "--template", "more")...)
	p.boot(mac)
	var task lpmos.Task
	p.until("a plan is made", func() bool {
		l, err := p.api.Tasks(t.Context(), nil)
		if err == nil && len(l.Tasks) == 1 {
			task, err = p.api.Task(t.Context(), l.Tasks[0].ID)
		}
		return err == nil && task.Plan != nil
	})
	if task.Plan.Problem != "" {
		t.Fatal(task.Plan.Problem)
	}
	p.want(ExitOK, "as the installer divides it", "", "task", "plan", task.ID)
	out = p.want(ExitOK, "answers for the installer", "", "task", "plan", task.ID, "--files")
	if !strings.Contains(out, "partman-auto/disk string "+task.Plan.Effect.Target.ByID()) || !strings.Contains(out, "d-i lpmos/model string ") {
		t.Errorf("task plan --files says %q", out)
	}
	// The machine that only plays does not start it, and is through at once.
	if _, err := p.api.Decide(t.Context(), task.ID, true, task.Plan.Digest, ""); err != nil {
		t.Fatal(err)
	}
	p.until("the task is completed", func() bool {
		now, err := p.api.Task(t.Context(), task.ID)
		return err == nil && now.Status == lpmos.Completed
	})

	img, err := findImage(t.Context(), p.api, "debian/12-installer")
	if err != nil {
		t.Fatal(err)
	}
	if err := downloadImage(t.Context(), p.api, filepath.Join(dir, "again"), img); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "again", "blobs", img.Installer.Kernel.SHA256)); err != nil || string(b) != "a kernel" {
		t.Errorf("downloaded kernel %q, %v", b, err)
	}
	at := time.Now().UTC().Truncate(time.Second)
	for _, passed := range []bool{true, false} { // the later takes the place of the earlier
		if img, err = addBadges(t.Context(), p.api, img, []lpmos.Badge{{Firmware: "uefi", Passed: passed, Text: "as seen", Digest: img.Digest, At: at}}); err != nil {
			t.Fatal(err)
		}
	}
	if len(img.Badges) != 1 || img.CannotBoot("bios") || !img.CannotBoot("uefi") {
		t.Errorf("badges %+v", img.Badges)
	}
	p.want(ExitOK, "uefi failed", "", "image", "list")
	p.want(ExitOK, "uefi failed: as seen", "", "image", "show", "debian/12-installer")
	img.Digest = "sha256:" + strings.Repeat("0", 64)
	if _, err := addBadges(t.Context(), p.api, img, nil); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("badges for another image of the same name: %v; want a conflict", err)
	}
}

func badPreseed(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "bad.cfg")
	if err := os.WriteFile(name, []byte("d-i partman-auto/disk string /dev/sdb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestBadge(t *testing.T) {
	on := true
	for _, c := range []struct {
		firmware string
		m        labMachine
		passed   bool
		text     string
	}{
		{"bios", labMachine{ended: lpmos.Task{Status: lpmos.Completed}, said: "login:"}, true, "called home 41s after power-on"},
		{"uefi", labMachine{ended: lpmos.Task{Status: lpmos.Failed, Error: &lpmos.Failure{Cause: "Nobody called home."}}, said: "grub>"}, false, "Nobody called home; its console says: grub>"},
		{"uefi-secure-boot", labMachine{ended: lpmos.Task{Status: lpmos.Completed, Receipt: &lpmos.Receipt{}}}, false, "without Secure Boot"},
		{"uefi-secure-boot", labMachine{ended: lpmos.Task{Status: lpmos.Completed, Receipt: &lpmos.Receipt{SecureBoot: &on}}}, true, "called home"},
	} {
		ts, err := trialsOf([]string{c.firmware})
		if err != nil {
			t.Fatal(err)
		}
		c.m.trial, c.m.marks = ts[0], map[string]time.Time{"power on": time.Now().Add(-time.Hour), "ended": time.Now().Add(41*time.Second - time.Hour)}
		if b := c.m.badge("sha256:x"); b.Passed != c.passed || b.Firmware != c.firmware || !strings.Contains(b.Text, c.text) || b.At.IsZero() {
			t.Errorf("badge = %+v; want passed %v and %q", b, c.passed, c.text)
		}
	}
	// Of two machines the one whose task ended says something.
	two := []*labMachine{{trial: trials[0], ended: lpmos.Task{Status: lpmos.Completed}}, {trial: trials[1]}}
	for _, s := range []lpmos.Status{"", lpmos.AwaitingApproval, lpmos.Installing, lpmos.Verifying, lpmos.Canceled, lpmos.Rejected} {
		two[1].ended.Status = s
		if badges, err := results(two, "sha256:x"); err == nil || len(badges) != 1 || badges[0].Firmware != "bios" {
			t.Errorf("results with a machine that is %q = %+v, %v; want one and an error", s, badges, err)
		}
	}
	two[1].ended = lpmos.Task{Status: lpmos.Failed, Error: &lpmos.Failure{Cause: "Nobody called home."}}
	if badges, err := results(two, "sha256:x"); err != nil || len(badges) != 2 || badges[1].Passed {
		t.Errorf("results = %+v, %v; want two", badges, err)
	}
	if _, err := trialsOf([]string{"coreboot"}); err == nil {
		t.Error("an unknown firmware was taken")
	}
	if trials[2].run != lab.UEFISecureBoot {
		t.Error("Secure Boot is tried without it")
	}
}
