package osimage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/imagepack"
	"github.com/lpmos/lpmos/internal/tier"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestRecipesAreComplete(t *testing.T) {
	for name, r := range recipes {
		t.Run(name, func(t *testing.T) {
			for _, s := range []string{r.OS, r.Version} {
				if !lpmos.ValidName(s) {
					t.Errorf("%q cannot be part of a catalogue key", s)
				}
			}
			if r.FirstBoot != "systemd" && r.FirstBoot != "exec" {
				t.Errorf("FirstBoot is %q", r.FirstBoot)
			}
			if strings.Contains(r.KernelArgs, "root=") || strings.Contains(r.KernelArgs, "console=") {
				t.Errorf("KernelArgs %q has what the installer adds", r.KernelArgs)
			}
			for _, dir := range r.Overlays {
				if _, err := fs.Stat(files, "files/"+dir); err != nil {
					t.Error(err)
				}
			}
			for file := range r.Modes {
				there := func(dir string) bool {
					_, err := fs.Stat(files, "files/"+dir+"/"+file)
					return err == nil
				}
				if !slices.ContainsFunc(r.Overlays, there) {
					t.Errorf("a mode is given for %s, which is in no overlay", file)
				}
			}
			for _, pattern := range r.Remove {
				if _, err := filepath.Match(pattern, ""); err != nil || filepath.IsAbs(pattern) {
					t.Errorf("pattern %q cannot be removed below the tree", pattern)
				}
			}
		})
	}
	if _, err := Build(t.Context(), Config{Name: "debian-11"}, discard(), nil); !isInvalid(err) {
		t.Errorf("Build(debian-11) = %v; want an InvalidError", err)
	}
}

func isInvalid(err error) bool {
	_, ok := errors.AsType[*lpmos.InvalidError](err)
	return ok
}

func TestCacheKeyCoversWhatWeContribute(t *testing.T) {
	key := func(r recipe, cfg Config) string {
		k, err := cacheKey(r, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	base := key(recipes["tiny"], Config{})
	changed := recipes["tiny"]
	changed.Packages = append(slices.Clone(changed.Packages), "hello")
	for name, other := range map[string]string{
		"a package":     key(changed, Config{}),
		"a mirror":      key(recipes["tiny"], Config{Mirrors: []string{"/etc/apt/sources.list"}}),
		"another image": key(recipes["debian-12"], Config{}),
	} {
		if other == base {
			t.Errorf("%s does not change the cache key", name)
		}
	}
	if again := key(recipes["tiny"], Config{OutDir: "/elsewhere", Refresh: true}); again != base {
		t.Error("the place of the output changes the cache key")
	}
}

// small makes an ext4 image of nothing in the cache and records it as name.
func small(t *testing.T, c cache, cfg Config, hostname string) Record {
	t.Helper()
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "hostname"), []byte(hostname), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := recipeFor(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	r.JournalMB, r.MarginMB = 4, 8
	b := &builder{recipe: r, cfg: cfg, work: t.TempDir(), log: discard()}
	if b.key, err = cacheKey(recipes[cfg.Name], cfg); err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(b.work, "fs")
	if err := b.mkfs(t.Context(), tree, raw, b.id("a"), b.id("b")); err != nil {
		t.Fatal(err)
	}
	im, err := imagepack.Pack(t.Context(), raw, imagepack.Options{
		OutDir: c.dir, FirstBoot: r.FirstBoot, Kernel: "/boot/vmlinuz-1", Initrd: "/boot/initrd.img-1",
		OS: r.OS, Version: r.Version, Arch: "amd64", CreatedAt: time.Unix(1, 0).UTC(),
	})
	if err != nil {
		t.Fatal(err)
	}
	rec := Record{Image: im}
	if err := c.put(cfg.Name, b.key, rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

func TestBuildTakesFromTheCache(t *testing.T) {
	cfg := Config{Name: "tiny", OutDir: t.TempDir(), CacheDir: t.TempDir()}
	c := cache{dir: filepath.Join(cfg.CacheDir, "osimage")}
	rec := small(t, c, cfg, "one")

	started := time.Now()
	im, err := Build(t.Context(), cfg, discard(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took > 2*time.Second {
		t.Errorf("a cached build took %v; want less than 2 s", took)
	}
	if diff := cmp.Diff(rec.Image, im); diff != "" {
		t.Errorf("Build (-recorded +returned):\n%s", diff)
	}
	m, err := imagepack.Load(cfg.OutDir, im.Digest)
	if err != nil {
		t.Fatal(err)
	}
	pack, err := os.Open(filepath.Join(cfg.OutDir, "blobs", m.Pack.SHA256))
	if err != nil {
		t.Fatal(err)
	}
	defer pack.Close()
	if err := imagepack.Verify(t.Context(), m, pack); err != nil {
		t.Error(err)
	}

	t.Run("again into the same place", func(t *testing.T) {
		if _, err := Build(t.Context(), cfg, discard(), nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("but not when its pack is cut off", func(t *testing.T) {
		key, _ := cacheKey(recipes["tiny"], cfg)
		if err := os.Truncate(c.blob(m.Pack.SHA256), m.Pack.Bytes-1); err != nil {
			t.Fatal(err)
		}
		if _, ok := c.find("tiny", key); ok {
			t.Error("an image with half a pack is found in the cache")
		}
	})
	t.Run("and a newer image replaces the older one's blobs", func(t *testing.T) {
		cfg.CacheDir = t.TempDir()
		c := cache{dir: filepath.Join(cfg.CacheDir, "osimage")}
		small(t, c, cfg, "one")
		want := c.blobs(small(t, c, cfg, "two").Image)
		left, _ := os.ReadDir(filepath.Join(c.dir, "blobs"))
		got := make(map[string]bool)
		for _, e := range left {
			got[e.Name()] = true
		}
		if diff := cmp.Diff(want, got); diff != "" || len(want) != 2 {
			t.Errorf("blobs (-want +got):\n%s", diff)
		}
	})
}

func TestFilesystem(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := copyOverlay("files/debian-12", mkdir(t, tree), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("etc/machine-id", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	var sums [2]string
	for i := range sums {
		b := &builder{recipe: recipes["debian-12"], work: t.TempDir(), key: "k", log: discard()}
		b.JournalMB, b.MarginMB = 4, 16
		raw := filepath.Join(b.work, "fs")
		if err := b.mkfs(t.Context(), tree, raw, b.id("filesystem"), b.id("hash")); err != nil {
			t.Fatal(err)
		}
		head := dump(t, "dumpe2fs", "-h", raw)
		for _, bad := range []string{"metadata_csum_seed", "orphan_file"} {
			if strings.Contains(head, bad) {
				t.Errorf("filesystem has %s, which GRUB 2.06 cannot read", bad)
			}
		}
		if !strings.Contains(head, "resize_inode") || !strings.Contains(head, label) || !strings.Contains(head, b.id("filesystem")) {
			t.Errorf("filesystem lacks its label, UUID or room to grow:\n%s", head)
		}
		// 64-byte descriptors of the groups of 2 TiB, less what is in use.
		reserved := regexp.MustCompile(`Reserved GDT blocks: +(\d+)`).FindStringSubmatch(head)
		if n, _ := strconv.Atoi(slices.Concat(reserved, []string{"", "0"})[1]); n < growBlocks/32768*64/4096-1 {
			t.Errorf("%d blocks are kept for growing; want enough for 2 TiB", n)
		}
		if out := dump(t, "e2fsck", "-fn", raw); strings.Contains(out, "ix") {
			t.Errorf("e2fsck has something to fix:\n%s", out)
		}
		im, err := imagepack.Pack(t.Context(), raw, imagepack.Options{OutDir: b.work, FirstBoot: "exec", Kernel: "/k", Initrd: "/i", OS: "x", Version: "1", Arch: "amd64"})
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = im.Digest
	}
	if sums[0] != sums[1] {
		t.Errorf("two filesystems of one tree are packed as %s and %s", sums[0], sums[1])
	}
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func dump(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := findTool(name)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

func TestFinish(t *testing.T) {
	tree := t.TempDir()
	r := recipes["debian-12"]
	for name, text := range map[string]string{
		"etc/hostname": "builder\n", "etc/machine-id": "0123456789abcdef\n", "etc/ssh/ssh_host_rsa_key": "secret",
		"etc/apt/apt.conf.d/99mmdebstrap": `Acquire::http::Proxy "http://127.0.0.1:1";`,
		"var/log/dpkg.log":                "x", "var/lib/apt/lists/y": "x", "run/lock/z": "x",
		"usr/bin/old": "x", "usr/share/doc/kept/copyright": "x",
	} {
		p := filepath.Join(tree, name)
		mkdir(t, filepath.Dir(p))
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Date(2022, 3, 4, 5, 6, 7, 0, time.UTC)
	if err := os.Chtimes(filepath.Join(tree, "usr/bin/old"), old, old); err != nil {
		t.Fatal(err)
	}
	b := &builder{recipe: r, key: "k", log: discard()}
	if err := b.finish(tree, "0000-1", time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"etc/hostname", "etc/ssh/ssh_host_rsa_key", "etc/apt/apt.conf.d/99mmdebstrap", "var/log/dpkg.log", "var/lib/apt/lists/y", "run/lock"} {
		if _, err := os.Lstat(filepath.Join(tree, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", gone, err)
		}
	}
	for name, want := range map[string]string{"etc/machine-id": "", "usr/share/doc/kept/copyright": "x", "etc/fstab": "UUID=0000-1 / ext4 errors=remount-ro 0 1\n"} {
		if got, err := os.ReadFile(filepath.Join(tree, name)); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v; want %q", name, got, err, want)
		}
	}
	for name, want := range r.Links {
		if got, err := os.Readlink(filepath.Join(tree, name)); err != nil || got != want {
			t.Errorf("link %s = %q, %v; want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]time.Time{"usr/bin/old": old, "etc/machine-id": time.Unix(sourceEpoch, 0), "etc": time.Unix(sourceEpoch, 0)} {
		info, err := os.Stat(filepath.Join(tree, name))
		if err != nil {
			t.Fatal(err)
		}
		if !info.ModTime().Equal(want) {
			t.Errorf("%s is of %v; want %v", name, info.ModTime(), want)
		}
	}
}

func TestOverlayModes(t *testing.T) {
	tree := t.TempDir()
	if err := copyOverlay("files/tiny", tree, recipes["tiny"].Modes); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"sbin/rc": 0o755, "etc/udhcpc/default.script": 0o755, "etc/shadow": 0o600, "etc/inittab": 0o644} {
		info, err := os.Stat(filepath.Join(tree, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o; want %o", name, info.Mode().Perm(), want)
		}
	}
	shadow, _ := os.ReadFile(filepath.Join(tree, "etc/shadow"))
	if !bytes.HasPrefix(shadow, []byte("root:*:")) {
		t.Errorf("root has a password: %q", shadow)
	}
}

func TestOverlayStaysInTheTree(t *testing.T) {
	tree, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(tree, "etc")); err != nil {
		t.Fatal(err)
	}
	if err := copyOverlay("files/tiny", tree, nil); err == nil {
		t.Error("files were copied through a link that leads out of the tree")
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("%v was written outside of the tree", left)
	}
}

func TestCPIO(t *testing.T) {
	root := t.TempDir()
	mkdir(t, filepath.Join(root, "bin"))
	if err := os.WriteFile(filepath.Join(root, "init"), []byte("#!x\n12"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("busybox", filepath.Join(root, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	b, err := initramfs(root, 1000)
	if err != nil {
		t.Fatal(err)
	}
	type entry struct {
		Name, Mode, Body string
		MTime            int64
	}
	var got []entry
	for at := 0; ; {
		h := b[at : at+110]
		if string(h[:6]) != "070701" {
			t.Fatalf("no header at %d", at)
		}
		field := func(i int) int64 {
			n, err := strconv.ParseInt(string(h[6+8*i:14+8*i]), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		align := func(n int) int { return (n + 3) &^ 3 }
		name := b[at+110 : at+110+int(field(11))-1]
		start := align(at + 110 + int(field(11)))
		end := start + int(field(6))
		if string(name) == "TRAILER!!!" {
			if rest := bytes.Trim(b[end:], "\x00"); len(rest) != 0 {
				t.Errorf("%d bytes follow the trailer", len(rest))
			}
			break
		}
		got = append(got, entry{string(name), fmt.Sprintf("%o", field(1)), string(b[start:end]), field(5)})
		at = align(end)
	}
	want := []entry{{".", "40700", "", 1000}, {"bin", "40755", "", 1000}, {"bin/sh", "120777", "busybox", 1000}, {"init", "100755", "#!x\n12", 1000}}
	// The root's own mode is that of the temporary directory.
	if len(got) > 0 {
		want[0].Mode = got[0].Mode
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

func TestBootFiles(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []string
		want  string // of the error; "" for none
	}{
		{"one of each", []string{"vmlinuz-6.1", "initrd.img-6.1", "config-6.1"}, ""},
		{"no initramfs", []string{"vmlinuz-6.1"}, "initrd.img-*"},
		{"two kernels", []string{"vmlinuz-6.1", "vmlinuz-6.2", "initrd.img-6.1"}, "2 files"},
		{"versions that differ", []string{"vmlinuz-6.1", "initrd.img-6.2"}, "different versions"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := t.TempDir()
			for _, f := range c.files {
				if err := os.WriteFile(filepath.Join(mkdir(t, filepath.Join(tree, "boot")), f), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			kernel, initrd, err := bootFiles(tree)
			if c.want == "" && (err != nil || kernel != "/boot/vmlinuz-6.1" || initrd != "/boot/initrd.img-6.1") {
				t.Errorf("bootFiles = %q, %q, %v", kernel, initrd, err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("bootFiles = %v; want an error with %q", err, c.want)
			}
		})
	}
}

func TestRun(t *testing.T) {
	b := &builder{work: t.TempDir(), log: discard()}
	t.Run("gives the last line with the error", func(t *testing.T) {
		err := b.run(t.Context(), nil, "mke2fs", filepath.Join(b.work, "none"), "1m", "-b", "nonsense")
		if err == nil || !strings.Contains(err.Error(), "nonsense") {
			t.Errorf("run = %v; want what mke2fs said", err)
		}
	})
	t.Run("names the package of a missing program", func(t *testing.T) {
		if _, err := findTool("mmdebstrap-of-tomorrow"); err == nil {
			t.Error("a program that does not exist was found")
		}
	})
	t.Run("ends with its context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		started := time.Now()
		err := b.run(ctx, nil, "sleep", "30")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(started) > 10*time.Second {
			t.Errorf("run = %v after %v; want its deadline", err, time.Since(started))
		}
	})
	t.Run("leaves neither mounts nor processes behind when it is stopped", func(t *testing.T) {
		if os.Geteuid() != 0 {
			tier.Missing(t, "root", "namespaces need root")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		dir := mkdir(t, filepath.Join(b.work, "mounted"))
		// It mounts, starts a child in a session of its own that ignores
		// SIGTERM, and waits.
		script := `mount -t tmpfs none "$1" && setsid sh -c 'trap "" TERM; sleep 600.4242' & sleep 0.5; echo ready; wait`
		err := b.run(ctx, func(line string) {
			if line == "ready" {
				cancel()
			}
		}, "sh", "-c", script, "sh", dir)
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("run = %v; want it canceled", err)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(mounts), dir) {
			t.Errorf("%s is still mounted (%v)", dir, err)
		}
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range lines {
			if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), "600.4242") {
				t.Errorf("%s still runs: %q", f, text)
			}
		}
	})
}

func TestPackageLists(t *testing.T) {
	tree := t.TempDir()
	mkdir(t, filepath.Join(tree, "var/lib/dpkg"))
	mkdir(t, filepath.Join(tree, "var/lib/apt/lists"))
	status := "Package: zstd\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.5.4\nDescription: x\n Package: fake\n\nPackage: apt\nArchitecture: amd64\nVersion: 2.6\n\n"
	release := "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nSuite: oldstable\nCodename: bookworm\nDate: Sat, 06 Sep 2025 09:56:50 UTC\n"
	for name, text := range map[string]string{"var/lib/dpkg/status": status, "var/lib/apt/lists/host_InRelease": release} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"apt 2.6 amd64", "zstd 1.5.4 amd64"}, installed(tree)); diff != "" {
		t.Errorf("installed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"oldstable bookworm Sat, 06 Sep 2025 09:56:50 UTC"}, releases(tree)); diff != "" {
		t.Errorf("releases (-want +got):\n%s", diff)
	}
	if _, err := json.Marshal(recipes["tiny"]); err != nil {
		t.Errorf("a recipe cannot be hashed: %v", err)
	}
}
