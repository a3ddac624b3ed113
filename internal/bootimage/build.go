package bootimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/cpio"
	"github.com/lpmos/lpmos/internal/debpkg"
)

// builderVersion is part of every cache key. It changes with whatever this
// package would make differently from the same packages.
const builderVersion = "5"

// kernelArgs are the kernel's parameters: both consoles, the serial one last,
// which makes it /dev/console; a panic restarts the machine after 30 s. The
// agent uses no cipher of the kernel: its self-tests only delay the start, and
// on an emulated processor have been seen to hang in one (soft lockup in
// cryptomgr_test).
const kernelArgs = "console=tty0 console=ttyS0,115200 quiet panic=30 cryptomgr.notests"

// ipxeSuite is where iPXE is taken from if it can be reached: the iPXE of
// Debian 12 dates from 2019 and waits 13 s for an IPv6 router.
const ipxeSuite = "trixie"

// ipxeFiles are the network boot programs, by the name they are served under.
var ipxeFiles = []string{"undionly.kpxe", "snponly.efi"}

// Config is what a boot image is built from.
type Config struct {
	// OutDir receives blobs/<sha256> and bootimage.json.
	OutDir string
	// AgentPath is a static executable for linux/amd64, which becomes /init.
	AgentPath string
	// Suite is the Debian release of kernel and tools; empty means bookworm.
	Suite string
	// Flavour is the kernel: "generic" (or empty) for machines; "cloud", with
	// half the initrd and a faster start, for virtual ones without AHCI, e1000
	// and USB.
	Flavour string
	// CacheDir keeps packages and the parts that do not depend on the agent.
	// Several builds may name the same directory; they take turns.
	CacheDir string
	// Mirror is the URL of a Debian archive; empty takes the host's.
	Mirror string
	// Version is the agent's, for people.
	Version string
}

// flavours are the meta packages of the kernels.
var flavours = map[string]string{"generic": "linux-image-amd64", "cloud": "linux-image-cloud-amd64"}

func (c Config) withDefaults() (Config, error) {
	if c.Suite == "" {
		c.Suite = "bookworm"
	}
	if c.Flavour == "" {
		c.Flavour = "generic"
	}
	invalid := func(field, problem, value string) error {
		return &lpmos.InvalidError{Field: field, Problem: problem, Value: value}
	}
	switch {
	case !lpmos.ValidName(c.Suite):
		return c, invalid("suite", "is not a Debian code name", c.Suite)
	case flavours[c.Flavour] == "":
		return c, invalid("flavour", "is neither generic nor cloud", c.Flavour)
	case c.OutDir == "":
		return c, invalid("out_dir", "is missing", "")
	case c.CacheDir == "":
		return c, invalid("cache_dir", "is missing", "")
	case runtime.GOARCH != "amd64":
		return c, invalid("arch", "of this host must be amd64: Debian's own grub-mkimage runs here", runtime.GOARCH)
	}
	var err error
	if c.CacheDir, err = filepath.Abs(c.CacheDir); err != nil {
		return c, fmt.Errorf("find cache directory: %w", err)
	}
	return c, nil
}

// Build writes the boot image's parts to cfg.OutDir and returns what names
// them. It needs root for apt's sake, and the network unless everything is in
// the cache. progress, which may be nil, is told of each step as it begins.
//
// A second build with the same packages and the same agent writes nothing; with
// another agent it compresses only that. Package lists are looked at again
// after twelve hours.
func Build(ctx context.Context, cfg Config, log *slog.Logger, progress func(step string)) (lpmos.BootImage, Report, error) {
	start := time.Now()
	cfg, err := cfg.withDefaults()
	if err != nil {
		return lpmos.BootImage{}, Report{}, err
	}
	if progress == nil {
		progress = func(string) {}
	}
	agent, err := readAgent(cfg.AgentPath)
	if err != nil {
		return lpmos.BootImage{}, Report{}, err
	}
	unlock, err := lock(ctx, cfg.CacheDir)
	if err != nil {
		return lpmos.BootImage{}, Report{}, err
	}
	defer unlock()

	progress("look up packages")
	in, err := lookUp(ctx, cfg, log)
	if err != nil {
		return lpmos.BootImage{}, Report{}, err
	}
	b := builder{cfg: cfg, in: in, agent: agent, progress: progress}
	img, rep, err := b.assemble(ctx)
	if err != nil {
		return lpmos.BootImage{}, Report{}, err
	}
	rep.Took = time.Since(start)
	log.Info("boot image built", "version", img.Version, "bytes", img.Kernel.Bytes+img.Initrd.Bytes, "reused", rep.Reused, "took", rep.Took)
	return img, rep, nil
}

// inputs are the packages of one build.
type inputs struct {
	base, ipxe  *debpkg.Repo
	tools       []debpkg.Package // unpacked together
	kernel      debpkg.Package
	ipxePackage debpkg.Package
}

// lookUp finds the packages' current versions.
func lookUp(ctx context.Context, cfg Config, log *slog.Logger) (*inputs, error) {
	in := &inputs{}
	debs := filepath.Join(cfg.CacheDir, "debs")
	var wg sync.WaitGroup
	var baseErr, ipxeErr error
	wg.Go(func() {
		var stale error
		in.base, stale, baseErr = debpkg.Open(ctx, debpkg.Config{Dir: filepath.Join(cfg.CacheDir, "apt-"+cfg.Suite), Debs: debs, Suite: cfg.Suite, Updates: true, Mirror: cfg.Mirror})
		if stale != nil {
			log.Warn("package lists are old", "err", stale)
		}
		if baseErr == nil {
			baseErr = in.lookUpBase(ctx, flavours[cfg.Flavour])
		}
	})
	wg.Go(func() {
		var stale error
		var pkgs []debpkg.Package
		in.ipxe, stale, ipxeErr = debpkg.Open(ctx, debpkg.Config{Dir: filepath.Join(cfg.CacheDir, "apt-ipxe"), Debs: debs, Suite: ipxeSuite, Mirror: cfg.Mirror})
		if stale != nil {
			log.Warn("package lists are old", "err", stale)
		}
		if ipxeErr == nil {
			if pkgs, ipxeErr = in.ipxe.Resolve(ctx, nil, []string{"ipxe"}); ipxeErr == nil {
				in.ipxePackage = pkgs[0]
			}
		}
	})
	wg.Wait()
	if baseErr != nil {
		return nil, baseErr
	}
	if ipxeErr != nil {
		log.Warn("ipxe taken from an older suite", "suite", cfg.Suite, "err", ipxeErr)
		pkgs, err := in.base.Resolve(ctx, nil, []string{"ipxe"})
		if err != nil {
			return nil, err
		}
		in.ipxe, in.ipxePackage = in.base, pkgs[0]
	}
	return in, nil
}

func (in *inputs) lookUpBase(ctx context.Context, meta string) error {
	kernel, err := in.base.Dependency(ctx, meta, "linux-image-")
	if err != nil {
		return err
	}
	pkgs, err := in.base.Resolve(ctx, toolPackages, []string{"grub-pc-bin", "grub-efi-amd64-bin", kernel})
	if err != nil {
		return err
	}
	for _, p := range pkgs {
		if p.Name == kernel {
			in.kernel = p
		} else {
			in.tools = append(in.tools, p)
		}
	}
	return nil
}

// all lists every package, sorted by name.
func (in *inputs) all() []debpkg.Package {
	pkgs := append(slices.Clone(in.tools), in.kernel, in.ipxePackage)
	slices.SortFunc(pkgs, func(a, b debpkg.Package) int { return strings.Compare(a.Name, b.Name) })
	return pkgs
}

// digest covers the packages' bytes, this package's version and the flavour.
func (in *inputs) digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "lpmos boot image %s\n", builderVersion)
	for _, p := range in.all() {
		fmt.Fprintf(h, "%s %s %s\n", p.Name, p.Version, p.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))
}

type builder struct {
	cfg      Config
	in       *inputs
	agent    []byte
	progress func(string)
}

// record is what the cache remembers of a finished image.
type record struct {
	Image  lpmos.BootImage `json:"image"`
	Report Report          `json:"report"`
}

// assemble makes the image from the base, which it builds if need be.
func (b *builder) assemble(ctx context.Context) (lpmos.BootImage, Report, error) {
	key := b.in.digest()
	agentKey := sha256.Sum256(fmt.Appendf(nil, "%s %s %x", key, b.cfg.Version, sha256.Sum256(b.agent)))
	known := filepath.Join(b.cfg.CacheDir, "images", hex.EncodeToString(agentKey[:])+".json")
	var made record
	if readJSON(known, &made) == nil && b.present(made.Image) {
		made.Report.Reused = "all"
		return made.Image, made.Report, writeJSON(filepath.Join(b.cfg.OutDir, "bootimage.json"), made.Image)
	}

	dir := filepath.Join(b.cfg.CacheDir, "base", key)
	rec := record{Report: Report{Reused: "base"}}
	var base baseRecord
	if readJSON(filepath.Join(dir, baseFile), &base) != nil {
		rec.Report.Reused = "nothing"
		var err error
		if base, err = b.buildBase(ctx, dir); err != nil {
			return lpmos.BootImage{}, Report{}, err
		}
	}

	b.progress("pack agent")
	t := tree{}
	t.file("/init", 0o755, b.agent)
	segment, err := compress(t.archive())
	if err != nil {
		return lpmos.BootImage{}, Report{}, fmt.Errorf("compress agent: %w", err)
	}
	userland, err := os.ReadFile(filepath.Join(dir, initrdFile))
	if err != nil {
		return lpmos.BootImage{}, Report{}, fmt.Errorf("read base: %w", err)
	}

	b.progress("write boot image")
	store := blobStore(filepath.Join(b.cfg.OutDir, "blobs"))
	img := lpmos.BootImage{Version: strings.TrimSpace(base.Kernel + " " + b.cfg.Version), KernelArgs: kernelArgs, Files: map[string]lpmos.Blob{}}
	if img.Initrd, err = store.put(userland, segment); err != nil {
		return lpmos.BootImage{}, Report{}, err
	}
	for _, name := range base.Files {
		body, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return lpmos.BootImage{}, Report{}, fmt.Errorf("read base: %w", err)
		}
		blob, err := store.put(body)
		if err != nil {
			return lpmos.BootImage{}, Report{}, err
		}
		if name == kernelFile {
			img.Kernel = blob
		} else {
			img.Files[name] = blob
		}
	}

	rec.Image = img
	rec.Report.Kernel, rec.Report.Absent = base.Kernel, base.Absent
	for _, p := range b.in.all() {
		rec.Report.Packages = append(rec.Report.Packages, p.Name+"="+p.Version)
	}
	rec.Report.Parts = append([]Part{
		{Name: "kernel", Bytes: img.Kernel.Bytes, Files: 1},
		{Name: "initrd", Bytes: img.Initrd.Bytes, Files: base.Entries + 1},
		{Name: "userland and modules, compressed", Of: "initrd", Bytes: int64(len(userland)), Files: base.Entries},
		{Name: "agent, compressed", Of: "initrd", Bytes: int64(len(segment)), Files: 1},
		{Name: "agent", Of: "initrd", Bytes: int64(len(b.agent)), Files: 1},
	}, base.Parts...)
	for _, name := range base.Files {
		if name != kernelFile {
			rec.Report.Parts = append(rec.Report.Parts, Part{Name: name, Bytes: img.Files[name].Bytes, Files: 1})
		}
	}
	if err := writeJSON(filepath.Join(b.cfg.OutDir, "bootimage.json"), img); err != nil {
		return lpmos.BootImage{}, Report{}, err
	}
	return img, rec.Report, writeJSON(known, rec)
}

// present reports whether all parts of img are in the output directory.
func (b *builder) present(img lpmos.BootImage) bool {
	store := blobStore(filepath.Join(b.cfg.OutDir, "blobs"))
	for _, blob := range img.Files {
		if !store.has(blob) {
			return false
		}
	}
	return store.has(img.Kernel) && store.has(img.Initrd)
}

// readAgent reads the agent and makes sure that it starts without a loader.
func readAgent(name string) ([]byte, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read agent: %w", err)
	}
	if err := checkStatic(b); err != nil {
		return nil, fmt.Errorf("read agent %s: %w", name, err)
	}
	return b, nil
}

// compress makes one zstd frame, with zeros behind it up to cpio.Align. The window stays at 8 MiB, the most that
// Linux decodes (lib/decompress_unzstd.c, ZSTD_WINDOWSIZE_MAX).
func compress(b []byte) ([]byte, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	out := bytes.NewBuffer(enc.EncodeAll(b, nil))
	cpio.Pad(out, cpio.Align)
	return out.Bytes(), nil
}

// lock makes dir and waits until no other build uses it.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cache directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open cache lock: %w", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock cache %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another build in %s: %w", dir, ctx.Err())
		case <-tick.C:
		}
	}
}

func readJSON(name string, v any) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(name), err)
	}
	return writeFile(name, append(b, '\n'))
}

// writeFile writes the parts to name so that it is whole or not there. A file
// that already has this content is left alone.
func writeFile(name string, parts ...[]byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	defer os.Remove(f.Name())
	for _, p := range parts {
		_, err = f.Write(p)
		if err != nil {
			break
		}
	}
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(name), err)
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(name), err)
	}
	return nil
}

// blobStore is a directory of files named by their SHA-256.
type blobStore string

func (s blobStore) has(b lpmos.Blob) bool {
	info, err := os.Stat(filepath.Join(string(s), b.SHA256))
	return err == nil && b.SHA256 != "" && info.Size() == b.Bytes
}

// put stores the parts, one after the other.
func (s blobStore) put(parts ...[]byte) (lpmos.Blob, error) {
	h := sha256.New()
	var b lpmos.Blob
	for _, p := range parts {
		h.Write(p)
		b.Bytes += int64(len(p))
	}
	b.SHA256 = hex.EncodeToString(h.Sum(nil))
	if s.has(b) {
		return b, nil
	}
	return b, writeFile(filepath.Join(string(s), b.SHA256), parts...)
}
