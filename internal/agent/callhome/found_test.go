package callhome

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

func TestMounts(t *testing.T) {
	got := mounts("22 1 0:2 / / rw - rootfs rootfs rw\n23 1 8:3 / / rw,relatime shared:1 - ext4 /dev/sda3 rw\n" +
		"24 23 8:2 / /boot/efi rw - vfat /dev/sda2 rw\n25 23 8:4 / /srv/a\\040b rw - xfs /dev/sda4 rw\n26 23 8:3 /var /mnt rw - ext4 /dev/sda3 rw\n" +
		"27 23 0:5 / /boot/efi rw - tmpfs tmpfs rw\nnonsense\n")
	want := []lpmos.Mount{{Path: "/", FS: "ext4"}, {Path: "/srv/a b", FS: "xfs"}}
	if !slices.Equal(got, want) {
		t.Errorf("mounts = %+v; want %+v (a bind mount and what is mounted over are left out)", got, want)
	}
}

func TestMountsOfSubvolumes(t *testing.T) {
	got := mounts("23 1 0:31 /@/.snapshots/1/snapshot / rw - btrfs /dev/sda3 rw\n24 23 0:31 /@/var /var rw - btrfs /dev/sda3 rw\n25 23 8:2 / /boot/efi rw - vfat /dev/sda2 rw\n")
	want := []lpmos.Mount{{Path: "/", FS: "btrfs"}, {Path: "/boot/efi", FS: "vfat"}}
	if !slices.Equal(got, want) {
		t.Errorf("mounts = %+v; want %+v", got, want)
	}
}

func TestTimezone(t *testing.T) {
	for link, want := range map[string]string{
		"": "UTC", "/usr/share/zoneinfo/Asia/Tokyo": "Asia/Tokyo", "../usr/share/zoneinfo/Asia/Tokyo": "Asia/Tokyo",
		"/usr/share/zoneinfo/Europe/Paris": "UTC (the system has no data of Europe/Paris)", "/tmp/x": "unknown",
	} {
		root := t.TempDir()
		zone := filepath.Join(root, "usr/share/zoneinfo/Asia/Tokyo")
		os.MkdirAll(filepath.Dir(zone), 0o755)
		os.MkdirAll(filepath.Join(root, "etc"), 0o755)
		os.WriteFile(zone, []byte("TZif"), 0o644)
		if link != "" {
			if err := os.Symlink(link, filepath.Join(root, "etc/localtime")); err != nil {
				t.Fatal(err)
			}
		}
		if got := timezone(root); got != want {
			t.Errorf("timezone with %q = %q; want %q", link, got, want)
		}
	}
}

func TestCloudInitState(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string
		want  string
		n     int
	}{
		"is not there":        {nil, "", 0},
		"is turned off":       {map[string]string{"disabled": ""}, "disabled", 0},
		"runs":                {map[string]string{"enabled": "", "status.json": "{}"}, "running", 0},
		"is done":             {map[string]string{"result.json": `{"v1":{"datasource":"x","errors":[]}}`}, "done", 0},
		"has errors":          {map[string]string{"result.json": `{"v1":{"errors":["a","b"]}}`}, "error", 2},
		"says something else": {map[string]string{"result.json": `[`}, "error", 1},
	} {
		root := t.TempDir()
		os.MkdirAll(filepath.Join(root, "run/cloud-init"), 0o755)
		for f, text := range tt.files {
			os.WriteFile(filepath.Join(root, "run/cloud-init", f), []byte(text), 0o644)
		}
		if got, problems := cloudInit(root); got != tt.want || len(problems) != tt.n {
			t.Errorf("cloud-init that %s = %q, %q; want %q", name, got, problems, tt.want)
		}
	}
}

func TestUnitNames(t *testing.T) {
	got := unitNames("a.service loaded failed failed Something\n\nb.mount not-found failed failed b\nsentence without\n")
	if !slices.Equal(got, []string{"a.service", "b.mount"}) {
		t.Errorf("units %q", got)
	}
}

// FuzzFound reads anything as the files of an installed system: the region takes
// the receipt, whatever the system is like.
func FuzzFound(f *testing.F) {
	f.Add("23 1 8:3 / / rw shared:1 - ext4 /dev/sda3 rw\n24 23 8:4 / /srv/a\\040b\\000 rw - xfs /dev/sda4 rw\n", "ID=debian\nPRETTY_NAME=\"Debian\"\n", "ops:x:1000:1000::/:/bin/sh\n", "a.service loaded failed\n")
	f.Fuzz(func(t *testing.T, mountinfo, release, passwd, units string) {
		for _, s := range []*string{&mountinfo, &release, &passwd, &units} {
			*s = strings.ToValidUTF8(*s, "") // as Collect does
		}
		_ = rootMount(mountinfo)
		found := osRelease(release)
		r := lpmos.Receipt{RootFSUUID: "x", OS: found["PRETTY_NAME"], OSID: found["ID"], OSVersion: found["VERSION_ID"],
			Mounts: mounts(mountinfo), Users: people(passwd), FailedUnits: unitNames(units)}
		var taken lpmos.Receipt
		if err := lpmos.UnmarshalJSON(lpmos.CanonicalJSON(r), &taken); err != nil {
			t.Fatalf("the region cannot read %+v: %v", r, err)
		}
		if err := taken.Check(); err != nil {
			t.Fatalf("the region refuses %+v: %v", r, err)
		}
	})
}
