package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tier"
	"github.com/lpmos/lpmos/test/fixture"
)

// disk makes a disk in Ubuntu's layout; esp is the tree of its ESP.
func disk(t *testing.T, esp map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for tree, files := range map[string]map[string]string{"root": fixture.System("ubuntu", "Ubuntu 24.04 LTS", "24.04"), "boot": fixture.BootTree("initrd.img-%s", false), "esp": esp} {
		if err := fixture.Tree(at(tree), files); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("core"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := fixture.UbuntuDisk(t.Context(), at("noble.img"), at("root"), at("boot"), at("esp"), []byte("GRUB"), at("core"), "64M", "16M"); err != nil {
		tier.Missing(t, "mkfs", "no disk image can be made: "+err.Error())
	}
	return at("noble.img")
}

func TestImageImport(t *testing.T) {
	p := newPlane(t)
	cache := t.TempDir()
	image := func(extra ...string) []string {
		return append([]string{"image", "import", "--os", "ubuntu", "--os-version", "24.04", "--cache-dir", cache}, extra...)
	}
	// A disk without a boot loader for UEFI: it can be imported, and is not for
	// every machine.
	file := disk(t, map[string]string{"EFI/": ""})
	out := p.want(ExitOK, "ubuntu/24.04/amd64", "", image(file, "--format", "raw")...)
	for _, want := range []string{"whole disk", "Ubuntu 24.04 LTS", "no checksum was given", "cannot boot by UEFI", "6.8.0-40-generic"} {
		if !strings.Contains(out, want) {
			t.Errorf("image import says %q; want it to say %q", out, want)
		}
	}
	out = p.want(ExitOK, "signed by", "", "image", "show", "ubuntu/24.04")
	if !strings.Contains(out, "boots        bios") && !strings.Contains(out, "bios") || strings.Contains(out, "bios, uefi") {
		t.Errorf("image show says %q; want that it boots by BIOS only", out)
	}
	i, _, err := p.api.Image(t.Context(), "ubuntu", "24.04", "amd64")
	if err != nil || i.Kind() != lpmos.FormatDisk || i.Preflight == nil || len(i.Signature.Value) == 0 || i.Source.URL != "noble.img" {
		t.Fatalf("the catalogue has %+v, %v", i, err)
	}
	p.want(ExitUsage, "format", "", image(file, "--format", "vmdk")...)
	p.want(ExitUsage, "sha256", "", image(file, "--format", "raw", "--sha256", "abc")...)
	p.want(ExitUsage, "anybody on the way", "", image("http://mirror.example/x.img", "--format", "raw", "--allow-http")...)
	p.want(ExitUsage, "anybody on the way", "", image("HTTP://mirror.example/x.img", "--format", "raw", "--allow-http")...)
	p.want(ExitUsage, "image catalogue", "", "image", "import", "--known", "slackware/15")
	p.want(ExitUsage, "is not a network", "", image(file, "--format", "raw", "--allow-network", "ten")...)
	p.want(ExitFailed, "not the file that was meant", "", image(file, "--format", "raw", "--sha256", strings.Repeat("0", 64))...)
	p.want(ExitFailed, "http is not allowed", "", image("http://mirror.example/x.img", "--format", "raw", "--sha256", strings.Repeat("0", 64))...)
	p.want(ExitFailed, `"file:"`, "", image("file:///etc/passwd", "--format", "raw")...)
	p.want(ExitOK, "noble", "", "image", "catalogue", "-o", "json")
	var written lpmos.Image
	if out := p.want(ExitOK, "", "", image(file, "--format", "raw", "-o", "json")...); json.Unmarshal([]byte(out), &written) != nil || written.Digest != i.Digest {
		t.Errorf("image import -o json writes %q; want the entry of the catalogue", out)
	}

	empty := filepath.Join(t.TempDir(), "empty.img")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	p.want(ExitFailed, "no partition table", "", image(empty, "--format", "raw", "--title", "x")...)
	if again, _, err := p.api.Image(t.Context(), "ubuntu", "24.04", "amd64"); err != nil || again.Digest != i.Digest {
		t.Errorf("after a refused import the catalogue has %s, %v; want %s still", again.Digest, err, i.Digest)
	}
}

func TestFigures(t *testing.T) {
	for _, c := range []struct {
		moved, done, total int64
		took               time.Duration
		want               string
	}{
		{0, 0, 0, 0, ""},
		{5 << 20, 5 << 20, 0, time.Millisecond, " 5.2 MB"},
		{10e6, 50e6, 100e6, 2 * time.Second, " 50 MB of 100 MB, 5 MB/s, 10s left"},
		{100e6, 100e6, 100e6, 10 * time.Second, " 100 MB of 100 MB, 10 MB/s"},
	} {
		if got := figures(c.moved, c.done, c.total, c.took); got != c.want {
			t.Errorf("figures(%d, %d, %d, %v) = %q; want %q", c.moved, c.done, c.total, c.took, got, c.want)
		}
	}
}
