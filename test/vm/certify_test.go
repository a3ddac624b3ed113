package vm_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/test/fixture"
)

// TestCertify has "lpmos image certify" try a Debian as the image of a whole
// disk, with a signed shim on it: by BIOS, by UEFI, and by UEFI with Secure Boot (D12).
func TestCertify(t *testing.T) {
	rest(t)
	w := onSite(t, "tiny", nil)
	debs(t, w.built.cache, nil, fixture.SignedPackages...)
	img := w.asDisk(w.built.image(t, "debian-12"), "signed")
	if img.Preflight == nil || !img.Preflight.SecureBoot {
		t.Errorf("the look inside says %+v; want that Secure Boot takes it", img.Preflight)
	}
	w.register(img)
	build := exec.CommandContext(t.Context(), "go", "build", "-o", w.built.bin+"/", "./cmd/lpmos")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build lpmos: %v: %s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(w.built.bin, "lpmos"), "image", "certify", img.Name(), "--server", w.client.Server(),
		"--token-file", filepath.Join(w.dir, "site", controlplane.LocalTokenFile), "--agent", filepath.Join(w.built.bin, "agent"),
		"--cache-dir", w.built.cache, "--keep", filepath.Join(w.logs, "certify"), "--limit", "30m")
	log := w.logFile("certify.log")
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = log, log, time.Minute
	if err := cmd.Run(); err != nil {
		t.Errorf("image certify: %v (see certify.log)", err)
	}
	img, _, err := w.client.Image(t.Context(), img.OS, img.Version, img.Arch)
	if err != nil {
		t.Fatal(err)
	}
	for _, firmware := range []string{"bios", "uefi", "uefi-secure-boot"} {
		if b, ok := img.Badge(firmware); !ok || !b.Passed || !strings.Contains(b.Text, "called home") {
			t.Errorf("the badge for %s is %+v; want that it passed", firmware, b)
		} else {
			t.Logf("%s: %s", firmware, b.Text)
		}
	}
}
