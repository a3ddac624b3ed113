package inside

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lpmos/lpmos"
)

// files makes a tree.
func files(t *testing.T, dir string, texts map[string]string) {
	t.Helper()
	for name, text := range texts {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStage(t *testing.T) {
	for name, c := range map[string]struct{ has, file, want string }{
		"dracut's":       {"usr/lib/dracut/hooks/pre-pivot/10-x.sh", "usr/lib/dracut/hooks/pre-pivot/90-lpmos.sh", "/lpmos/agent installer carry \"$NEWROOT\"\n"},
		"newer dracut's": {"var/lib/dracut/hooks/pre-pivot/10-x.sh", "var/lib/dracut/hooks/pre-pivot/90-lpmos.sh", "/lpmos/agent installer carry \"$NEWROOT\"\n"},
		"casper's":       {"scripts/casper-bottom/ORDER", "scripts/casper-bottom/ORDER", "/scripts/x\n/lpmos/agent installer carry \"${rootmnt}\"\n"},
	} {
		t.Run("adds a hook to an initramfs that is "+name, func(t *testing.T) {
			dir := t.TempDir()
			files(t, dir, map[string]string{c.has: "/scripts/x\n", "usr/lib/x": ""})
			if err := os.Symlink("usr/lib", filepath.Join(dir, "lib")); err != nil {
				t.Fatal(err)
			}
			if err := stage(dir); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(dir, c.file)); err != nil || string(b) != c.want {
				t.Errorf("%s = %q, %v; want %q", c.file, b, err, c.want)
			}
		})
	}
	if err := stage(t.TempDir()); err == nil {
		t.Error("an initramfs of neither was taken")
	}
}

func TestDeafen(t *testing.T) {
	dir := t.TempDir()
	const asks = "var/lib/dpkg/info/network-preseed.isinstallable"
	files(t, dir, map[string]string{asks: "#!/bin/sh\nexit 0\n"})
	if err := deafen(dir, lpmos.TemplateKickstart); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, asks)); string(b) != "#!/bin/sh\nexit 0\n" {
		t.Errorf("Anaconda's initramfs was changed: %q", b)
	}
	if err := deafen(dir, lpmos.TemplatePreseed); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, asks)); string(b) != "#!/bin/sh\nexit 1\n" {
		t.Errorf("the network may still bring other answers: %q", b)
	}
	if err := deafen(t.TempDir(), lpmos.TemplatePreseed); err == nil {
		t.Error("an installer that is not Debian's as we know it was taken")
	}
}

func TestCarry(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	files(t, from, map[string]string{"lpmos/agent": "agent", "lpmos/handover.json": "{}", "lpmos/autoinstall.yaml": "{}", "etc/x": ""})
	if err := carry(from, to); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lpmos/agent", "lpmos/handover.json", "autoinstall.yaml"} {
		if _, err := os.Stat(filepath.Join(to, name)); err != nil {
			t.Error(err)
		}
	}
	if st, err := os.Stat(filepath.Join(to, "lpmos")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the directory with the credential has the mode %v, %v", st.Mode(), err)
	}
	if st, err := os.Stat(filepath.Join(to, "lpmos/agent")); err != nil || st.Mode()&0o100 == 0 {
		t.Error("the agent cannot be run")
	}
	if _, err := os.Stat(filepath.Join(to, "etc")); err == nil {
		t.Error("more was carried over than is LPMOS's")
	}
}
