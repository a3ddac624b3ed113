package imageimport

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lpmos/lpmos/internal/osimage"
	"github.com/lpmos/lpmos/internal/preflight"
	"github.com/lpmos/lpmos/internal/tier"
	"github.com/lpmos/lpmos/test/fixture"
)

// TestImportBootable imports disks that boot, in the layouts of Ubuntu 24.04,
// EL9 and openSUSE Leap, made from the tiny system and GRUB of Debian's packages. It needs
// what a test on virtual machines has in its cache, and takes seconds then.
func TestImportBootable(t *testing.T) {
	cache := os.Getenv("LPMOS_CACHE_DIR")
	if cache == "" {
		tier.Missing(t, "bootable", "LPMOS_CACHE_DIR names no directory with packages and images")
	}
	if os.Geteuid() != 0 {
		tier.Missing(t, "bootable", "the owners of files need root")
	}
	out := t.TempDir()
	img, err := osimage.Build(t.Context(), osimage.Config{Name: "tiny", OutDir: out, CacheDir: cache}, quiet, nil)
	must(t, err)
	// What starts at the first boot is not known of a btrfs, which is not looked into.
	for layout, firstBoot := range map[string]string{"ubuntu": "exec", "el9": "exec", "el9-var": "exec", "suse": "systemd"} {
		t.Run(layout, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.img")
			must(t, fixture.BootableDisk(t.Context(), path, layout, out, img, filepath.Join(cache, "debs"), "console=ttyS0,115200"))
			r := request(t, convert(t, path), "qcow2")
			r.Want = preflight.Want{OS: "tiny", Version: "1", Arch: "amd64"}
			res, err := Import(t.Context(), r, Guard{}, Limits{}, nil)
			must(t, err)
			if !slices.Equal(res.Image.BootModes, []string{"bios", "uefi"}) || res.Manifest.FirstBoot != firstBoot {
				t.Errorf("Import = %+v", res.Image)
			}
			t.Logf("%+v\n%+v", res.Manifest.Disk, res.Image.Preflight)
			same(t, path, unpacked(t, r, res), res.Manifest)
		})
	}
}
