package vm_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/debpkg"
	"github.com/lpmos/lpmos/internal/lab"
)

// debianInstaller registers the network installer that Debian packages.
func (w *world) debianInstaller(repository string) {
	w.t.Helper()
	ctx := w.t.Context()
	repo, _, err := debpkg.Open(ctx, debpkg.Config{Dir: filepath.Join(w.built.cache, "apt-bookworm"), Debs: filepath.Join(w.built.cache, "debs"), Suite: "bookworm", Updates: true})
	if err != nil {
		w.t.Fatal(err)
	}
	const name = "debian-installer-12-netboot-amd64"
	pkgs, err := repo.Resolve(ctx, nil, []string{name})
	if err != nil {
		w.t.Fatal(err)
	}
	dir := w.t.TempDir()
	if err := repo.Fetch(ctx, pkgs); err != nil {
		w.t.Fatal(err)
	}
	if err := repo.Unpack(ctx, pkgs[0], dir); err != nil {
		w.t.Fatal(err)
	}
	file := func(base string) lpmos.Blob {
		b, err := os.ReadFile(filepath.Join(dir, "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64", base))
		if err != nil {
			w.t.Fatal(err)
		}
		return w.blob(b)
	}
	m := lpmos.ImageManifest{Format: lpmos.FormatInstaller, OS: "debian", Version: "12-installer", Arch: "amd64",
		Installer: &lpmos.ImageInstaller{Answers: lpmos.TemplatePreseed, Kernel: file("linux"), Initrd: file("initrd.gz"), Repository: repository}}
	text, err := json.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.register(lpmos.Image{OS: m.OS, Version: m.Version, Arch: m.Arch, Digest: "sha256:" + w.blob(text).SHA256, Title: name})
}

// TestDebianInstaller boots Debian's own installer by the path of every machine:
// the agent reports, a plan with the rendered answers is approved, and with the
// permit the agent starts the installer in its place. The installer reads its
// answers, follows them as far as it gets without a mirror, and reports.
func TestDebianInstaller(t *testing.T) {
	rest(t)
	for _, firmware := range []lab.Firmware{lab.BIOS, lab.UEFI} {
		t.Run(firmware.String(), func(t *testing.T) {
			w := onSite(t, "tiny", nil)
			w.debianInstaller("http://10.77.0.1:9/debian")
			m := w.newMachine(lab.MachineConfig{Name: "di", Firmware: firmware, MemoryMB: 1536, Disks: []lab.Disk{{SizeBytes: 8 * gb}, {SizeBytes: 4 * gb}}})
			w.foreign(m.disk(1), "LVM2_member")
			before := []string{w.hash(m.disk(0)), w.hash(m.disk(1))}
			id := w.create(m, func(s *lpmos.Spec) { s.TargetDisk = &lpmos.DiskRef{Serial: "LAB-di-0", SizeBytes: 8 * gb} })
			w.powerOn(m)
			plan := w.planned(m, id).Plan
			if text := plan.Effect.Files[0].Text; plan.Effect.Files[0].Path != "/preseed.cfg" || !strings.Contains(text, "partman-auto/disk string /dev/disk/by-id/lpmos-LAB-di-0\n") {
				t.Fatalf("the plan's first file is %+v", plan.Effect.Files[0])
			}
			w.approve(id)
			// It asks for the mirror of its answers, and nobody for anything else.
			var lines []string
			w.until(installLimit, "the installer asks the mirror that its answers name", func() (err error) {
				if lines, err = w.client.Logs(t.Context(), id); err == nil && !strings.Contains(strings.Join(lines, "\n"), "10.77.0.1:9") {
					err = fmt.Errorf("the log ends with %q", lines[max(0, len(lines)-5):])
				}
				return err
			})
			all := strings.Join(lines, "\n")
			for _, want := range []string{"installer loaded", "preseed.cfg", "Menu item 'choose-mirror' selected"} {
				if !strings.Contains(all, want) {
					t.Errorf("the log does not hold %q:\n%s", want, all)
				}
			}
			if task := w.task(id); task.Status != lpmos.Installing || task.Attempt != 1 || task.Progress == nil || task.Progress.Stage != lpmos.Partitioning {
				t.Errorf("the task is %s, attempt %d, progress %+v; want installing, the first, before any partition", task.Status, task.Attempt, task.Progress)
			}
			m.PowerOff()
			for i, hash := range before {
				if w.hash(m.disk(i)) != hash {
					t.Errorf("disk %d was written before the installer came to its disks", i)
				}
			}
		})
	}
}
