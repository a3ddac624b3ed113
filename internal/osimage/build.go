package osimage

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/imagepack"
)

// sourceEpoch is the time of everything that a build itself makes (Unix
// seconds, 2025-01-01). Files of packages keep the older times they have.
const sourceEpoch = 1735689600

// Config says what to build and where.
type Config struct {
	Name     string // one of Names()
	OutDir   string // the image's two blobs are put in OutDir/blobs
	CacheDir string // for finished images and working space: 2 GB for debian-12

	// Mirrors are what mmdebstrap takes as MIRROR: an address, a line of
	// sources.list, a file with such lines. None: Debian's own with updates and
	// security. They are what the installed system will use, too.
	Mirrors []string
	// AptOptions are lines of apt.conf for the build alone, such as
	// `Acquire::http::Proxy "http://proxy:3142";`.
	AptOptions []string

	Refresh bool // build anew whatever the cache has
}

// Progress is told where a build is: a step in words and how much of the work
// is behind it, 0 to 100. It is called from one goroutine and must not block.
type Progress func(step string, percent int)

// Record is what the cache knows about an image beside the image itself.
type Record struct {
	Image    lpmos.Image `json:"image"`
	Packages []string    `json:"packages"` // "name version architecture", sorted
	Releases []string    `json:"releases"` // "suite date" of every Release file used
	Seconds  float64     `json:"seconds"`  // the build took
}

// builder is one build under way.
type builder struct {
	recipe
	cfg      Config
	work     string // scratch, removed at the end
	key      string
	log      *slog.Logger
	progress Progress
}

// Build makes the image cfg.Name, or takes it from the cache (package comment),
// and returns its entry for the catalogue. Its manifest and pack are in
// cfg.OutDir/blobs afterwards. Making one needs root, the packages mmdebstrap,
// e2fsprogs and kmod, and a Debian mirror; debian-12 takes minutes. A canceled
// ctx ends the build and removes what it left. progress may be nil.
func Build(ctx context.Context, cfg Config, log *slog.Logger, progress Progress) (lpmos.Image, error) {
	if progress == nil {
		progress = func(string, int) {}
	}
	r, err := recipeFor(cfg.Name)
	if err != nil {
		return lpmos.Image{}, err
	}
	// mmdebstrap runs in a directory of its own.
	if cfg.CacheDir, err = filepath.Abs(cfg.CacheDir); err != nil {
		return lpmos.Image{}, fmt.Errorf("build image %s: find cache directory: %w", cfg.Name, err)
	}
	b := &builder{recipe: r, cfg: cfg, log: log.With("image", cfg.Name), progress: progress}
	if b.key, err = cacheKey(r, cfg); err != nil {
		return lpmos.Image{}, fmt.Errorf("build image %s: %w", cfg.Name, err)
	}
	c := cache{dir: filepath.Join(cfg.CacheDir, "osimage")}
	if !cfg.Refresh {
		if rec, ok := c.find(cfg.Name, b.key); ok {
			if err := c.export(rec.Image, cfg.OutDir); err != nil {
				return lpmos.Image{}, fmt.Errorf("take image %s from the cache: %w", cfg.Name, err)
			}
			progress("taken from the cache", 100)
			return rec.Image, nil
		}
	}
	rec, err := b.build(ctx, c)
	if err != nil {
		return lpmos.Image{}, fmt.Errorf("build image %s: %w", cfg.Name, err)
	}
	if err := c.export(rec.Image, cfg.OutDir); err != nil {
		return lpmos.Image{}, fmt.Errorf("store image %s: %w", cfg.Name, err)
	}
	progress("done", 100)
	b.log.Info("image built", "digest", rec.Image.Digest, "bytes", rec.Image.StoredBytes, "took", time.Duration(rec.Seconds*float64(time.Second)))
	return rec.Image, nil
}

func (b *builder) build(ctx context.Context, c cache) (Record, error) {
	if os.Geteuid() != 0 {
		return Record{}, errors.New("packages are configured in a chroot (run as root)")
	}
	started := time.Now()
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return Record{}, err
	}
	var err error
	if b.work, err = os.MkdirTemp(c.dir, ".build-*"); err != nil {
		return Record{}, err
	}
	defer func() {
		if err := os.RemoveAll(b.work); err != nil {
			b.log.Warn("scratch space left behind", "file", b.work, "err", err)
		}
	}()
	// mmdebstrap's apt drops its rights and must reach what it downloads to.
	if err := os.Chmod(b.work, 0o755); err != nil {
		return Record{}, err
	}

	packages := filepath.Join(b.work, "packages")
	if err := b.bootstrap(ctx, packages); err != nil {
		return Record{}, err
	}
	rec := Record{Releases: releases(packages), Packages: installed(packages)}

	b.progress("arranging the root filesystem", 80)
	tree := packages
	if b.arrange != nil {
		if tree, err = b.arrange(ctx, b, packages); err != nil {
			return Record{}, err
		}
	}
	uuid, seed := b.id("filesystem"), b.id("directory hash")
	if err := b.finish(tree, uuid, started); err != nil {
		return Record{}, err
	}
	kernel, initrd, err := bootFiles(tree)
	if err != nil {
		return Record{}, err
	}

	b.progress("making the filesystem", 85)
	raw := filepath.Join(b.work, "root.ext4")
	if err := b.mkfs(ctx, tree, raw, uuid, seed); err != nil {
		return Record{}, err
	}

	b.progress("compressing", 90)
	rec.Image, err = imagepack.Pack(ctx, raw, imagepack.Options{
		OutDir: c.dir, FirstBoot: b.FirstBoot, CloudInit: b.CloudInit,
		Kernel: kernel, Initrd: initrd, KernelArgs: b.KernelArgs,
		OS: b.OS, Version: b.Version, Arch: "amd64", Title: b.Title,
		BootModes: []string{"bios", "uefi"}, CreatedAt: started.UTC().Truncate(time.Second),
	})
	if err != nil {
		return Record{}, err
	}
	rec.Seconds = time.Since(started).Seconds()
	return rec, c.put(b.cfg.Name, b.key, rec)
}

// id derives a fixed UUID (RFC 9562, version 8) for a purpose from the cache
// key: the same recipe gives the same bytes.
func (b *builder) id(purpose string) string {
	u := sha256.Sum256([]byte(b.key + " " + purpose))
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// bootFiles finds the one kernel of the tree and its initramfs, as paths inside
// the filesystem.
func bootFiles(tree string) (kernel, initrd string, err error) {
	for _, f := range []struct {
		pattern string
		to      *string
	}{{"vmlinuz-*", &kernel}, {"initrd.img-*", &initrd}} {
		found, err := filepath.Glob(filepath.Join(tree, "boot", f.pattern))
		if err != nil {
			return "", "", err
		}
		if len(found) != 1 {
			return "", "", fmt.Errorf("find /boot/%s: %d files match; want one", f.pattern, len(found))
		}
		*f.to = "/boot/" + filepath.Base(found[0])
	}
	if strings.TrimPrefix(kernel, "/boot/vmlinuz-") != strings.TrimPrefix(initrd, "/boot/initrd.img-") {
		return "", "", fmt.Errorf("kernel %s and initramfs %s are of different versions", kernel, initrd)
	}
	return kernel, initrd, nil
}
