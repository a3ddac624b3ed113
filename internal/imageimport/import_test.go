package imageimport

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/imagepack"
	"github.com/lpmos/lpmos/internal/preflight"
	"github.com/lpmos/lpmos/internal/tier"
	"github.com/lpmos/lpmos/test/fixture"
)

// tools skips where images cannot be made.
func tools(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := fixture.Tool(n); err != nil {
			tier.Missing(t, "images", err.Error())
		}
	}
}

var (
	ubuntuOnce sync.Once
	ubuntuPath string
	ubuntuErr  error
)

// must ends the test on an error of a fixture.
func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) {
	code := m.Run()
	if ubuntuPath != "" {
		os.RemoveAll(filepath.Dir(ubuntuPath))
	}
	os.Exit(code)
}

// ubuntu is a raw disk in Ubuntu's layout, made once for all tests, which do
// not change it.
func ubuntu(t testing.TB) string {
	t.Helper()
	tools(t, "mke2fs", "mkfs.vfat", "mcopy")
	ubuntuOnce.Do(func() {
		dir, err := os.MkdirTemp("", "lpmos-import-")
		if err != nil {
			ubuntuErr = err
			return
		}
		ubuntuPath = filepath.Join(dir, "noble.img")
		root, boot, esp, core := filepath.Join(dir, "root"), filepath.Join(dir, "boot"), filepath.Join(dir, "esp"), filepath.Join(dir, "core")
		ubuntuErr = errors.Join(
			fixture.Tree(root, fixture.System("ubuntu", "Ubuntu 24.04 LTS", "24.04")),
			fixture.Tree(boot, fixture.BootTree("initrd.img-%s", false)),
			fixture.Tree(esp, fixture.ESPTree("ubuntu", true)),
			os.WriteFile(core, []byte("GRUB's second part"), 0o644),
		)
		if ubuntuErr == nil {
			ubuntuErr = fixture.UbuntuDisk(context.Background(), ubuntuPath, root, boot, esp, []byte("\xeb\x63\x90 GRUB \x00Geom"), core, "64M", "16M")
		}
	})
	must(t, ubuntuErr)
	return ubuntuPath
}

func el9(t testing.TB) string {
	t.Helper()
	tools(t, "mkfs.xfs", "mkfs.vfat", "mcopy")
	dir := t.TempDir()
	root, boot, esp, core := filepath.Join(dir, "root"), filepath.Join(dir, "boot"), filepath.Join(dir, "esp"), filepath.Join(dir, "core")
	system := fixture.System("rocky", "Rocky Linux 9.6 (Blue Onyx)", "9.6")
	system["etc/selinux/config"] = "# comment\nSELINUX=enforcing\nSELINUXTYPE=targeted\n"
	must(t, fixture.Tree(root, system), fixture.Tree(boot, fixture.BootTree("initramfs-%s.img", true)),
		fixture.Tree(esp, fixture.ESPTree("rocky", true)), os.WriteFile(core, []byte("GRUB's second part"), 0o644))
	path := filepath.Join(dir, "rocky.img")
	must(t, fixture.EL9Disk(t.Context(), path, root, boot, esp, []byte("\xeb\x63\x90 GRUB "), core, 320<<20))
	return path
}

func request(t testing.TB, from, format string) Request {
	return Request{From: from, Format: format, Want: preflight.Want{OS: "ubuntu", Version: "24.04", Arch: "amd64"}, WorkDir: t.TempDir(), OutDir: t.TempDir()}
}

// leftovers lists the blobs of a directory.
func leftovers(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "blobs", "*"))
	must(t, err)
	hidden, err := filepath.Glob(filepath.Join(dir, "blobs", ".*"))
	must(t, err)
	return append(names, hidden...)
}

// unpacked writes an import onto a disk full of older data.
func unpacked(t testing.TB, r Request, res Result) *os.File {
	t.Helper()
	m, err := imagepack.Load(r.OutDir, res.Image.Digest)
	must(t, err)
	pack, err := os.Open(filepath.Join(r.OutDir, "blobs", m.Pack.SHA256))
	must(t, err)
	defer pack.Close()
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	must(t, err)
	t.Cleanup(func() { disk.Close() })
	old := bytes.Repeat([]byte{0xA5}, 1<<20)
	for at := int64(0); at < m.SizeBytes; at += int64(len(old)) {
		_, err := disk.WriteAt(old[:min(int64(len(old)), m.SizeBytes-at)], at)
		must(t, err)
	}
	must(t, imagepack.Unpack(t.Context(), m, pack, disk))
	return disk
}

// same compares an unpacked disk with its source. Blocks that still hold the
// older data must be free, which means that there are none outside ext4 and
// that e2fsck has nothing to say inside.
func same(t testing.TB, source string, disk *os.File, m *lpmos.ImageManifest) {
	t.Helper()
	src, err := os.Open(source)
	must(t, err)
	defer src.Close()
	written := make([]bool, m.SizeBytes/4096)
	for _, c := range m.Chunks {
		for at := c.Offset; at < c.Offset+c.Bytes; at += 4096 {
			written[at/4096] = true
		}
	}
	for _, z := range m.Zero {
		for at := z.Offset; at < z.Offset+z.Bytes; at += 4096 {
			written[at/4096] = true
		}
	}
	inExt4 := func(at int64) bool {
		return slices.ContainsFunc(m.Disk.Partitions, func(p lpmos.ImagePartition) bool {
			return p.FS == "ext4" && at >= p.StartBytes && at < p.StartBytes+p.SizeBytes
		})
	}
	a, b := make([]byte, 4096), make([]byte, 4096)
	for at := int64(0); at < m.SizeBytes; at += 4096 {
		if !written[at/4096] {
			if !inExt4(at) {
				t.Fatalf("byte %d is outside ext4 and is neither written nor zeroed", at)
			}
			continue
		}
		n, err := src.ReadAt(a, at)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		clear(a[n:])
		_, err = disk.ReadAt(b, at)
		must(t, err)
		if !bytes.Equal(a, b) {
			t.Fatalf("the disk differs from the image at byte %d", at)
		}
	}
	for _, p := range m.Disk.Partitions {
		if p.FS != "ext4" {
			continue
		}
		part := filepath.Join(t.TempDir(), "part")
		f, err := os.Create(part)
		must(t, err)
		_, err = io.Copy(f, io.NewSectionReader(disk, p.StartBytes, p.SizeBytes))
		must(t, err, f.Close())
		if out, err := fixture.Run(t.Context(), "e2fsck", "-fn", part); err != nil {
			t.Errorf("e2fsck of partition %d: %v %s", p.Number, err, out)
		}
	}
}

func texts(p *lpmos.Preflight, result string) []string {
	var out []string
	for _, c := range p.Checks {
		if c.Result == result {
			out = append(out, c.Name)
		}
	}
	return out
}

func TestImportUbuntu(t *testing.T) {
	r := request(t, ubuntu(t), "raw")
	res, err := Import(t.Context(), r, Guard{}, Limits{}, nil)
	must(t, err)
	m, i := res.Manifest, res.Image
	want := &lpmos.ImageDisk{
		Table: "gpt", TableID: "c0ffee00-1111-4222-8333-444455556666", SectorBytes: 512,
		Root: 1, Boot: 16, ESP: 15, BIOSBoot: 14, Loaders: []string{"grub-bios", "fallback", "grub-efi", "shim"}, Entries: "grub",
	}
	got := *m.Disk
	var numbers []int
	var mounts, roles []string
	for _, p := range got.Partitions {
		numbers, mounts, roles = append(numbers, p.Number), append(mounts, p.Mount), append(roles, p.Role)
	}
	got.Partitions = nil
	if diff := cmp.Diff(want, &got); diff != "" {
		t.Errorf("what the installer is told (-want +got):\n%s", diff)
	}
	if want := []int{14, 15, 16, 1}; !slices.Equal(numbers, want) {
		t.Errorf("partitions are %v; want them in the order of the disk, %v", numbers, want)
	}
	if want := []string{"", "/boot/efi", "/boot", "/"}; !slices.Equal(mounts, want) {
		t.Errorf("mounts are %q; want %q", mounts, want)
	}
	if want := []string{"bios-boot", "esp", "boot", "root"}; !slices.Equal(roles, want) {
		t.Errorf("roles are %q; want %q", roles, want)
	}
	if i.Kind() != "disk" || !slices.Equal(i.BootModes, []string{"bios", "uefi"}) || !i.CloudInit || i.MinDiskBytes != m.SizeBytes || m.FirstBoot != "systemd" || m.Family != "debian" {
		t.Errorf("Import = %+v", i)
	}
	if m.Kernel != "/boot/vmlinuz-6.8.0-40-generic" || m.Initrd != "/boot/initrd.img-6.8.0-40-generic" {
		t.Errorf("kernel is %s with %s; want the newest", m.Kernel, m.Initrd)
	}
	p := i.Preflight
	if p.DefaultUser != "ubuntu" || !p.SecureBoot || p.PrettyName != "Ubuntu 24.04 LTS" || i.Title != p.PrettyName {
		t.Errorf("preflight = %+v", p)
	}
	if w := texts(p, lpmos.CheckWarning); len(w) > 0 {
		t.Errorf("warnings about a good image: %q", p.Warnings())
	}
	if i.Source.URL != "noble.img" || len(i.Source.SHA256) != 64 || i.Source.Bytes == 0 {
		t.Errorf("source = %+v", i.Source)
	}
	if len(res.Whole) > 0 {
		t.Errorf("partitions were packed whole: %v", res.Whole)
	}
	if m.UsedBytes > 80<<20 {
		t.Errorf("%s are written; the free space of ext4 should not be", lpmos.FormatBytes(m.UsedBytes))
	}
	same(t, r.From, unpacked(t, r, res), m)
}

func TestImportEL9(t *testing.T) {
	r := request(t, el9(t), "raw")
	r.Want = preflight.Want{OS: "rocky", Version: "9", Arch: "amd64"}
	res, err := Import(t.Context(), r, Guard{}, Limits{}, nil)
	must(t, err)
	m, p := res.Manifest, res.Image.Preflight
	if m.Disk.Root != 4 || m.Disk.Boot != 3 || m.Disk.ESP != 2 || m.Disk.BIOSBoot != 1 || m.Disk.Entries != "bls" {
		t.Errorf("disk = %+v", m.Disk)
	}
	if !m.SELinux || p.SELinux != "enforcing" || m.Family != "redhat" || m.Initrd != "/boot/initramfs-6.8.0-40-generic.img" || p.DefaultUser != "rocky" {
		t.Errorf("manifest = family %q, initrd %q, SELinux %v; preflight = %+v", m.Family, m.Initrd, m.SELinux, p)
	}
	if w := p.Warnings(); len(w) > 0 {
		t.Errorf("warnings about a good image: %q", w)
	}
	same(t, r.From, unpacked(t, r, res), m)
}

func convert(t testing.TB, from string, args ...string) string {
	t.Helper()
	tools(t, "qemu-img")
	to := filepath.Join(t.TempDir(), "image.qcow2")
	if _, err := fixture.Run(t.Context(), "qemu-img", slices.Concat([]string{"convert", "-f", "raw", "-O", "qcow2"}, args, []string{from, to})...); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestImportFormats imports one disk in every form and wants one digest.
func TestImportFormats(t *testing.T) {
	raw := ubuntu(t)
	base, err := Import(t.Context(), request(t, raw, "raw"), Guard{}, Limits{}, nil)
	must(t, err)
	squeeze := func(name string, w func(io.Writer) (io.WriteCloser, error)) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		out, err := os.Create(path)
		must(t, err)
		z, err := w(out)
		must(t, err)
		in, err := os.Open(raw)
		must(t, err)
		_, err = io.Copy(z, in)
		must(t, err, in.Close(), z.Close(), out.Close())
		return path
	}
	for _, c := range []struct {
		name, format, compression string
		path                      func() string
	}{
		{"qcow2", "qcow2", "", func() string { return convert(t, raw) }},
		{"qcow2 with deflate", "qcow2", "none", func() string { return convert(t, raw, "-c") }},
		{"qcow2 with zstd", "qcow2", "", func() string { return convert(t, raw, "-c", "-o", "compression_type=zstd") }},
		{"qcow2 with subclusters", "qcow2", "", func() string { return convert(t, raw, "-o", "extended_l2=on,cluster_size=128k") }},
		{"qcow2 of version 2", "qcow2", "", func() string { return convert(t, raw, "-o", "compat=0.10") }},
		{"raw.gz", "raw", "gz", func() string {
			return squeeze("d.gz", func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, 1) })
		}},
		{"raw.zst", "raw", "zstd", func() string {
			return squeeze("d.zst", func(w io.Writer) (io.WriteCloser, error) {
				return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest))
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(t, c.path(), c.format)
			r.Compression = c.compression
			res, err := Import(t.Context(), r, Guard{}, Limits{}, nil)
			must(t, err)
			if res.Image.Digest != base.Image.Digest {
				t.Errorf("the digest is %s, of the raw disk %s", res.Image.Digest, base.Image.Digest)
			}
			if left, _ := os.ReadDir(r.WorkDir); len(left) > 0 {
				t.Errorf("the import left %v in its working directory", left)
			}
		})
	}
}

// tarOf makes the tar of a system by the tool of the host.
func tarOf(t testing.TB, files map[string]string) string {
	t.Helper()
	tools(t, "tar")
	root := t.TempDir()
	must(t, fixture.Tree(root, files))
	path := filepath.Join(t.TempDir(), "root.tar")
	if _, err := fixture.Run(t.Context(), "tar", "-C", root, "--numeric-owner", "-cf", path, "."); err != nil {
		t.Fatal(err)
	}
	return path
}

func withBoot(files map[string]string) map[string]string {
	for name, text := range fixture.BootTree("initrd.img-%s", false) {
		files["boot/"+name] = text
	}
	return files
}

func TestImportTar(t *testing.T) {
	path := tarOf(t, withBoot(fixture.System("ubuntu", "Ubuntu 24.04 LTS", "24.04")))
	plain, err := os.ReadFile(path)
	must(t, err)
	var packed bytes.Buffer
	z, err := xz.NewWriter(&packed)
	must(t, err)
	_, err = z.Write(plain)
	must(t, err, z.Close())
	must(t, os.WriteFile(path+".xz", packed.Bytes(), 0o644))
	var digests []string
	for _, c := range []struct{ path, compression string }{{path, "none"}, {path + ".xz", "xz"}} {
		r := request(t, c.path, "tar")
		r.Compression = c.compression
		res, err := Import(t.Context(), r, Guard{}, Limits{}, nil)
		must(t, err)
		m := res.Manifest
		if m.Format != "tar" || m.SizeBytes != int64(len(plain)) || m.UnpackedBytes < 4<<20 || m.Kernel != "/boot/vmlinuz-6.8.0-40-generic" || !m.CloudInit {
			t.Errorf("manifest = %+v", m)
		}
		if res.Image.SizeBytes != m.RootBytes() || res.Image.Preflight.DefaultUser != "ubuntu" {
			t.Errorf("image = %+v", res.Image)
		}
		pack, err := os.Open(filepath.Join(r.OutDir, "blobs", m.Pack.SHA256))
		must(t, err)
		defer pack.Close()
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		must(t, err)
		defer out.Close()
		must(t, imagepack.Unpack(t.Context(), m, pack, out))
		got, err := os.ReadFile(out.Name())
		must(t, err)
		if !bytes.Equal(got, plain) {
			t.Error("the stream that comes out is not the one that went in")
		}
		digests = append(digests, res.Image.Digest)
	}
	if digests[0] != digests[1] {
		t.Errorf("the compressed tar has the digest %s, the plain one %s", digests[1], digests[0])
	}
}

// TestImportSparseTar takes what tar -S writes.
func TestImportSparseTar(t *testing.T) {
	tools(t, "tar")
	root, path := t.TempDir(), filepath.Join(t.TempDir(), "root.tar")
	lastlog := filepath.Join(root, "var/log/lastlog")
	must(t, fixture.Tree(root, withBoot(fixture.System("ubuntu", "Ubuntu 24.04 LTS", "24.04"))), os.MkdirAll(filepath.Dir(lastlog), 0o755),
		os.WriteFile(lastlog, []byte("root"), 0o644), os.Truncate(lastlog, 8<<20))
	_, err := fixture.Run(t.Context(), "tar", "-C", root, "--numeric-owner", "-S", "--format=gnu", "-cf", path, ".")
	must(t, err)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		must(t, err)
		if h.Typeflag == tar.TypeGNUSparse {
			break
		}
	}
	res, err := Import(t.Context(), request(t, path, "tar"), Guard{}, Limits{}, nil)
	must(t, err)
	if m := res.Manifest; m.UnpackedBytes < 12<<20 || m.SizeBytes > 8<<20 {
		t.Errorf("a tar of %d bytes takes %d unpacked; want what is left out counted", m.SizeBytes, m.UnpackedBytes)
	}
}

// refuses wants an error with a text in it, and nothing left behind.
func refuses(t *testing.T, r Request, g Guard, l Limits, want string) {
	t.Helper()
	_, err := Import(t.Context(), r, g, l, nil)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Import = %v; want an error with %q", err, want)
	}
	if left := leftovers(t, r.OutDir); len(left) > 0 {
		t.Errorf("a refused import left %v", left)
	}
}

func file(t testing.TB, content []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(p, content, 0o644))
	return p
}

func TestImportRefusesWhatItIsNot(t *testing.T) {
	raw := ubuntu(t)
	gz := func(n int) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(make([]byte, n))
		z.Close()
		return b.Bytes()
	}
	for _, c := range []struct {
		name, path, format, compression, want string
	}{
		{"qcow2 declared raw", convert(t, raw), "raw", "", "its content is qcow2"},
		{"raw declared qcow2", raw, "qcow2", "", "something else"},
		{"gzip declared raw", file(t, gz(1<<20)), "raw", "", "its content is gz"},
		{"xz declared gzip", file(t, []byte("\xfd7zXZ\x00.............................")), "raw", "gz", "its content is xz"},
		{"a web page", file(t, []byte("<!DOCTYPE html><title>404")), "raw", "", "a web page"},
		{"a disk declared tar", raw, "tar", "", "read the tar stream"},
		{"a filesystem without a table", file(t, make([]byte, 1<<20)), "raw", "", "no partition table"},
		{"an empty file", file(t, nil), "raw", "", "too short"},
		{"gzip cut off", file(t, gz(8 << 20)[:4000]), "raw", "gz", "unexpected EOF"},
		{"a directory", t.TempDir(), "raw", "", "not a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(t, c.path, c.format)
			r.Compression = c.compression
			refuses(t, r, Guard{}, Limits{}, c.want)
		})
	}
	t.Run("a backing file", func(t *testing.T) {
		base, top := convert(t, raw), filepath.Join(t.TempDir(), "top.qcow2")
		_, err := fixture.Run(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
		must(t, err)
		refuses(t, request(t, top, "qcow2"), Guard{}, Limits{}, "backing file")
	})
	t.Run("an external data file", func(t *testing.T) {
		dir := t.TempDir()
		top := filepath.Join(dir, "top.qcow2")
		_, err := fixture.Run(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data")+",data_file_raw=on", top, "64M")
		must(t, err)
		refuses(t, request(t, top, "qcow2"), Guard{}, Limits{}, "external data file")
	})
	t.Run("encryption", func(t *testing.T) {
		b, err := os.ReadFile(convert(t, raw))
		must(t, err)
		b[35] = 2 // LUKS
		refuses(t, request(t, file(t, b), "qcow2"), Guard{}, Limits{}, "encrypted")
	})
}

// TestImportIsBounded is M07 for what a person imports.
func TestImportIsBounded(t *testing.T) {
	var bomb bytes.Buffer
	z, err := zstd.NewWriter(&bomb)
	must(t, err)
	zero := make([]byte, 1<<20)
	for range 1100 {
		z.Write(zero)
	}
	must(t, z.Close())
	r := request(t, file(t, bomb.Bytes()), "raw")
	r.Compression = "zstd"
	t.Run("in what it unpacks to", func(t *testing.T) {
		refuses(t, r, Guard{}, Limits{Unpacked: 64 << 20}, "unpacks to more than the 67 MB")
	})
	t.Run("in the factor", func(t *testing.T) {
		refuses(t, r, Guard{}, Limits{}, "more than 1000 times its size")
	})
	t.Run("in what the file is", func(t *testing.T) {
		refuses(t, request(t, ubuntu(t), "raw"), Guard{}, Limits{Bytes: 1 << 20}, "more than the 1")
	})
	t.Run("in a qcow2's disk", func(t *testing.T) {
		refuses(t, request(t, convert(t, ubuntu(t)), "qcow2"), Guard{}, Limits{Unpacked: 1 << 20}, "are allowed")
	})
	t.Run("in time", func(t *testing.T) {
		refuses(t, request(t, ubuntu(t), "raw"), Guard{}, Limits{Total: time.Nanosecond}, "took longer than")
	})
	t.Run("in an xz window", func(t *testing.T) {
		var b bytes.Buffer
		w, err := xz.WriterConfig{DictCap: 1 << 20}.NewWriter(&b)
		must(t, err)
		w.Write([]byte("small"))
		must(t, w.Close())
		// Its block header says 256 MiB (.xz 1.2, 5.3.1), which nobody has to have for it.
		header := b.Bytes()[12:]
		header = header[:(int(header[0])+1)*4]
		at := bytes.Index(header, []byte{0x21, 1}) + 2
		header[at] = 32
		binary.LittleEndian.PutUint32(header[len(header)-4:], crc32.ChecksumIEEE(header[:len(header)-4]))
		r := request(t, file(t, b.Bytes()), "raw")
		r.Compression = "xz"
		refuses(t, r, Guard{}, Limits{}, "wants a window")
	})
	if left, _ := os.ReadDir(r.WorkDir); len(left) > 0 {
		t.Errorf("bombs left %v", left)
	}
}

func TestImportVerifies(t *testing.T) {
	path := ubuntu(t)
	b, err := os.ReadFile(path)
	must(t, err)
	sum := sha256.Sum256(b)
	good := hex.EncodeToString(sum[:])
	list := func(text string) string {
		p := filepath.Join(t.TempDir(), "SHA256SUMS")
		must(t, os.WriteFile(p, []byte(text), 0o644))
		return p
	}
	t.Run("a digest of the command line", func(t *testing.T) {
		r := request(t, path, "raw")
		r.Sum = Sum{"sha256", good}
		res, err := Import(t.Context(), r, Guard{}, Limits{}, nil)
		must(t, err)
		if s := res.Image.Source; s.Checksum != "sha256:"+good || s.From != "command line" || s.SHA256 != good {
			t.Errorf("source = %+v", s)
		}
	})
	t.Run("a list of checksums", func(t *testing.T) {
		r := request(t, path, "raw")
		r.Checksums = list(strings.Repeat("0", 64) + " *other.img\n" + good + " *noble.img\n")
		res, err := Import(t.Context(), r, Guard{}, Limits{}, nil)
		must(t, err)
		if s := res.Image.Source; s.Checksum != "sha256:"+good || s.From != "SHA256SUMS" {
			t.Errorf("source = %+v", s)
		}
	})
	t.Run("refuses another digest", func(t *testing.T) {
		r := request(t, path, "raw")
		r.Sum = Sum{"sha512", strings.Repeat("0", 128)}
		refuses(t, r, Guard{}, Limits{}, "not the file that was meant")
	})
	t.Run("refuses a list without the file", func(t *testing.T) {
		r := request(t, path, "raw")
		r.Checksums = list(good + "  another.img\n")
		refuses(t, r, Guard{}, Limits{}, `no SHA-256 or SHA-512 of "noble.img"`)
	})
	t.Run("refuses when list and command line differ", func(t *testing.T) {
		r := request(t, path, "raw")
		r.Sum, r.Checksums = Sum{"sha256", strings.Repeat("1", 64)}, list(good+"  noble.img\n")
		refuses(t, r, Guard{}, Limits{}, "and the command line")
	})
}

func TestImportBlocks(t *testing.T) {
	dir := t.TempDir()
	root, boot, esp, core := filepath.Join(dir, "root"), filepath.Join(dir, "boot"), filepath.Join(dir, "esp"), filepath.Join(dir, "core")
	system := fixture.System("debian", "Debian", "12")
	delete(system, "usr/lib/systemd/systemd")
	system["usr/bin/bash"] = string(fixture.FakeELF(183))
	must(t, fixture.Tree(root, system), fixture.Tree(boot, fixture.BootTree("initrd.img-%s", false)),
		fixture.Tree(esp, map[string]string{"EFI/": ""}), os.WriteFile(core, nil, 0o644))
	path := filepath.Join(dir, "bad.img")
	tools(t, "mke2fs", "mkfs.vfat", "mcopy")
	must(t, fixture.UbuntuDisk(t.Context(), path, root, boot, esp, nil, core, "32M", "16M"))
	r := request(t, path, "raw")
	_, err := Import(t.Context(), r, Guard{}, Limits{}, nil)
	blocked, ok := errors.AsType[*BlockedError](err)
	if !ok {
		t.Fatalf("Import of an image for another machine without systemd = %v; want a BlockedError", err)
	}
	if diff := cmp.Diff([]string{"arch", "first-boot"}, texts(&blocked.Report, lpmos.CheckProblem)); diff != "" {
		t.Errorf("problems (-want +got):\n%s\n%q", diff, blocked.Report.Problems())
	}
	for _, name := range []string{"bios", "uefi", "os"} {
		if !slices.Contains(texts(&blocked.Report, lpmos.CheckWarning), name) {
			t.Errorf("there is no warning about %s: %q", name, blocked.Report.Warnings())
		}
	}
	if left := leftovers(t, r.OutDir); len(left) > 0 {
		t.Errorf("a blocked import left %v", left)
	}
	t.Run("a tar without a kernel", func(t *testing.T) {
		r := request(t, tarOf(t, fixture.System("ubuntu", "Ubuntu", "24.04")), "tar")
		refuses(t, r, Guard{}, Limits{}, "kernel")
	})
	t.Run("a tar that leads out of its root", func(t *testing.T) {
		tools(t, "tar")
		p := filepath.Join(t.TempDir(), "evil.tar")
		_, err := fixture.Run(t.Context(), "tar", "-C", root, "--transform=s,^,../../,", "-cf", p, "etc/machine-id")
		must(t, err)
		refuses(t, request(t, p, "tar"), Guard{}, Limits{}, "leads out of the root")
	})
}

func TestRequestValidate(t *testing.T) {
	good := Request{From: "x", Format: "raw", Want: preflight.Want{OS: "a", Version: "1", Arch: "amd64"}}
	must(t, good.Validate())
	for field, edit := range map[string]func(*Request){
		"from":        func(r *Request) { r.From = "" },
		"format":      func(r *Request) { r.Format = "vmdk" },
		"compression": func(r *Request) { r.Compression = "bz2" },
		"keyring":     func(r *Request) { r.Checksums, r.Signature = "c", "s" },
		"signature":   func(r *Request) { r.Keyring = "k" },
		"arch":        func(r *Request) { r.Want.Arch = "riscv64" },
	} {
		r := good
		edit(&r)
		if e, ok := errors.AsType[*lpmos.InvalidError](r.Validate()); !ok || e.Field != field {
			t.Errorf("Validate of a request with a bad %s = %v", field, r.Validate())
		}
	}
	// V09, V10
	for _, name := range []string{"../../etc/shadow", "a/b", "A", ".", "..", strings.Repeat("a", 255), "a%00", "a\x00", ""} {
		for field, edit := range map[string]func(*Request){"os": func(r *Request) { r.Want.OS = name }, "version": func(r *Request) { r.Want.Version = name }} {
			r := good
			edit(&r)
			if e, ok := errors.AsType[*lpmos.InvalidError](r.Validate()); !ok || e.Field != field {
				t.Errorf("Validate of the %s %q = %v; want an InvalidError", field, name, r.Validate())
			}
		}
	}
}

var quiet = slog.New(slog.DiscardHandler)
