package imagepack

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
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
)

// tool finds one of e2fsprogs' programs, which every Debian system has because
// the package is essential there; a machine without them cannot build images.
func tool(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin"} {
		if p := filepath.Join(dir, name); exec.Command(p, "-V").Err == nil {
			if _, err := os.Stat(p); err == nil {
				return p
			}
		}
	}
	t.Fatalf("%s is not installed (package e2fsprogs)", name)
	return ""
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// tree makes a directory with what a root filesystem has: small and large
// files, a zero-filled one, an empty one, directories and a link.
func tree(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	write := func(name string, content []byte) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	write("etc/hostname", []byte("machine\n"))
	write("empty", nil)
	write("zeros", make([]byte, 3<<20))
	write("usr/lib/large", noise(5<<20+123))
	for i := range 400 {
		write(fmt.Sprintf("usr/share/d%d/f%d", i%20, i), noise(i*37))
	}
	if err := os.Symlink("etc/hostname", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	return root
}

// ext4 makes a filesystem of the given size with root's content.
func ext4(t testing.TB, root, size string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fs.ext4")
	args = append([]string{"-q", "-F", "-t", "ext4", "-b", "4096", "-d", root}, args...)
	command(t, "mke2fs", append(args, path, size)...)
	return path
}

// Groups of 4096 blocks give small filesystems many of them.
var variants = []struct {
	name string
	size string
	args []string
}{
	{"as images are built", "200M", []string{"-O", "^metadata_csum_seed,^orphan_file", "-E", "resize=536870912"}},
	{"many groups, some without a bitmap", "120M", []string{"-g", "4096", "-O", "metadata_csum,64bit,flex_bg"}},
	{"no flex_bg", "80M", []string{"-g", "4096", "-O", "^flex_bg"}},
	{"32-bit descriptors", "80M", []string{"-g", "4096", "-O", "^64bit"}},
	{"uninit_bg with the old checksum", "80M", []string{"-g", "4096", "-O", "^metadata_csum,uninit_bg"}},
	{"no checksums and no flags", "80M", []string{"-g", "4096", "-O", "^metadata_csum,^uninit_bg"}},
	{"a backup in every group", "80M", []string{"-g", "4096", "-O", "^sparse_super,^resize_inode"}},
	{"sparse_super2", "80M", []string{"-g", "4096", "-O", "sparse_super2,^resize_inode"}},
	{"small groups and a short last one", "81924K", []string{"-g", "2048"}},
	{"no journal", "64M", []string{"-O", "^has_journal"}},
}

// freeBlocks is what dumpe2fs says: for each group, the ranges of free blocks.
func freeBlocks(t testing.TB, path string) []run {
	t.Helper()
	var runs []run
	lines := bufio.NewScanner(strings.NewReader(command(t, "dumpe2fs", path)))
	lines.Buffer(nil, 1<<20)
	list := regexp.MustCompile(`^  Free blocks: (.*)$`)
	for lines.Scan() {
		m := list.FindStringSubmatch(lines.Text())
		if m == nil || m[1] == "" {
			continue
		}
		for part := range strings.SplitSeq(m[1], ", ") {
			a, b, found := strings.Cut(part, "-")
			if !found {
				b = a
			}
			first, err1 := strconv.ParseInt(a, 10, 64)
			last, err2 := strconv.ParseInt(b, 10, 64)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatalf("dumpe2fs printed %q: %v", part, err)
			}
			runs = append(runs, run{first, last - first + 1})
		}
	}
	return runs
}

func TestAllocatedIsTheComplementOfWhatDumpe2fsCallsFree(t *testing.T) {
	root := tree(t)
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			path := ext4(t, root, v.size, v.args...)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			fsys, err := readFilesystem(f)
			if err != nil {
				t.Fatal(err)
			}
			used, err := fsys.allocated(f)
			if err != nil {
				t.Fatal(err)
			}
			var got []run // the complement
			next := int64(0)
			for _, r := range append(slices.Collect(used.runs(0, fsys.blocks)), run{fsys.blocks, 0}) {
				if r.first > next {
					got = append(got, run{next, r.first - next})
				}
				next = r.first + r.count
			}
			var want []run // joined across groups
			for _, r := range freeBlocks(t, path) {
				if n := len(want) - 1; n >= 0 && want[n].first+want[n].count == r.first {
					want[n].count += r.count
				} else {
					want = append(want, r)
				}
			}
			if len(want) == 0 {
				t.Fatal("dumpe2fs lists no free block")
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(run{})); diff != "" {
				t.Errorf("free blocks (-dumpe2fs +ours):\n%s", diff)
			}
		})
	}
}

func TestSomeVariantHasGroupsWithoutBitmap(t *testing.T) {
	path := ext4(t, tree(t), variants[1].size, variants[1].args...)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := readFilesystem(f)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(fsys.groups, func(g group) bool { return g.uninit }) {
		t.Error("no group of the 120 MB filesystem is BLOCK_UNINIT; the comparison with dumpe2fs does not cover it")
	}
}

func options(dir string) Options {
	return Options{
		OutDir: dir, FirstBoot: "systemd", CloudInit: true,
		Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img", KernelArgs: "ro",
		OS: "test", Version: "1", Arch: "amd64", Title: "Test 1",
		BootModes: []string{"bios", "uefi"}, CreatedAt: time.Unix(1, 0).UTC(),
	}
}

// open returns the manifest and the pack of an image in dir.
func open(t testing.TB, dir string, image lpmos.Image) (*lpmos.ImageManifest, *os.File) {
	t.Helper()
	m, err := Load(dir, image.Digest)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "blobs", m.Pack.SHA256))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return m, f
}

// garbage makes a disk full of older data, size bytes of 0xA5.
func garbage(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	block := bytes.Repeat([]byte{0xA5}, 1<<20)
	for at := int64(0); at < size; at += int64(len(block)) {
		if _, err := f.WriteAt(block[:min(int64(len(block)), size-at)], at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestUnpackOntoUsedDisk(t *testing.T) {
	root := tree(t)
	// Those that differ in what lies where; the others differ in how it is
	// noted, which the comparison with dumpe2fs covers.
	for _, i := range []int{0, 1, 6, 8} {
		v := variants[i]
		t.Run(v.name, func(t *testing.T) {
			path := ext4(t, root, v.size, v.args...)
			out := t.TempDir()
			image, err := Pack(t.Context(), path, options(out))
			if err != nil {
				t.Fatal(err)
			}
			m, pack := open(t, out, image)
			if image.SizeBytes != m.SizeBytes || image.UsedBytes != m.UsedBytes || image.StoredBytes != m.Pack.Bytes {
				t.Errorf("Pack = %+v, which does not agree with its manifest", image)
			}
			if err := Verify(t.Context(), m, pack); err != nil {
				t.Errorf("Verify = %v", err)
			}
			disk := garbage(t, m.SizeBytes)
			if err := Unpack(t.Context(), m, pack, disk); err != nil {
				t.Fatal(err)
			}
			command(t, "e2fsck", "-fn", disk.Name())
			same(t, root, disk.Name())
		})
	}
}

// same compares every file of root with what debugfs reads from the image.
func same(t testing.TB, root, disk string) {
	t.Helper()
	got := t.TempDir()
	// rdump complains about ownership when not run as root and exits 0.
	command(t, "debugfs", "-R", "rdump / "+got, disk)
	want, have := digests(t, root), digests(t, got)
	delete(have, "lost+found")
	if len(want) < 400 {
		t.Fatalf("only %d files to compare", len(want))
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("files differ (-packed +unpacked):\n%s", diff)
	}
}

func digests(t testing.TB, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			all[name] = "link to " + to
			return err
		case d.IsDir():
			all[name] = "directory"
			return nil
		}
		b, err := os.ReadFile(path)
		all[name] = fmt.Sprintf("%x", sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	delete(all, ".")
	return all
}

func TestPackIsDeterministic(t *testing.T) {
	path := ext4(t, tree(t), "100M")
	var all [2]lpmos.Image
	for i := range all {
		var err error
		if all[i], err = Pack(t.Context(), path, options(t.TempDir())); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(all[0], all[1]); diff != "" {
		t.Errorf("two packs of one filesystem differ:\n%s", diff)
	}
}

func TestPackRefuses(t *testing.T) {
	root := tree(t)
	good := ext4(t, root, "100M")
	edited := func(change func(sb []byte)) func(*testing.T) string {
		return func(t *testing.T) string {
			b, err := os.ReadFile(good)
			if err != nil {
				t.Fatal(err)
			}
			change(b[superblockOffset:])
			p := filepath.Join(t.TempDir(), "fs")
			if err := os.WriteFile(p, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return p
		}
	}
	or32 := func(off int, bits uint32) func([]byte) {
		return func(sb []byte) {
			binary.LittleEndian.PutUint32(sb[off:], binary.LittleEndian.Uint32(sb[off:])|bits)
		}
	}
	for _, c := range []struct {
		name string
		make func(*testing.T) string
		want string
	}{
		{"what is not ext4", edited(func(sb []byte) { sb[0x38] = 0 }), "not an ext4"},
		{"a journal to replay", edited(or32(0x60, incompatRecover)), "journal"},
		{"a filesystem in use", edited(func(sb []byte) { sb[0x3A] = 0 }), "not marked clean"},
		{"an unknown feature", edited(or32(0x60, 0x80000000)), "0x80000000"},
		{"bigalloc", edited(or32(0x64, roBigAlloc)), "bigalloc"},
		{"a free count that is wrong", edited(func(sb []byte) { sb[0xC]++ }), "run e2fsck"},
		{"a bitmap that is wrong", edited(func(sb []byte) {
			// Eight bits of group 0's bitmap, which is where its
			// descriptor, in block 1, says.
			fs := sb[blockBytes-superblockOffset:]
			at := int64(binary.LittleEndian.Uint32(fs)) * blockBytes
			sb[at-superblockOffset+1000] ^= 0xFF
		}), "run e2fsck"},
		{"other block sizes", func(t *testing.T) string {
			p := filepath.Join(t.TempDir(), "fs")
			command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", p, "20M")
			return p
		}, "4096"},
		{"an empty file", func(t *testing.T) string {
			p := filepath.Join(t.TempDir(), "fs")
			if err := os.WriteFile(p, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return p
		}, "superblock"},
		{"a file that was cut off", func(t *testing.T) string {
			b, err := os.ReadFile(good)
			if err != nil {
				t.Fatal(err)
			}
			p := filepath.Join(t.TempDir(), "fs")
			if err := os.WriteFile(p, b[:8<<20], 0o600); err != nil {
				t.Fatal(err)
			}
			return p
		}, "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := t.TempDir()
			_, err := Pack(t.Context(), c.make(t), options(out))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Pack = %v; want an error with %q", err, c.want)
			}
			left, _ := filepath.Glob(filepath.Join(out, "blobs", "*"))
			hidden, _ := filepath.Glob(filepath.Join(out, "blobs", ".*"))
			if len(left)+len(hidden) != 0 {
				t.Errorf("a refused pack left %v %v", left, hidden)
			}
		})
	}
	t.Run("a name that cannot be a key", func(t *testing.T) {
		opt := options(t.TempDir())
		opt.OS = "../etc"
		if _, err := Pack(t.Context(), good, opt); !isInvalid(err) {
			t.Errorf("Pack = %v; want an InvalidError", err)
		}
	})
	t.Run("to go on when canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Pack(ctx, good, options(t.TempDir())); !errors.Is(err, context.Canceled) {
			t.Errorf("Pack = %v; want context.Canceled", err)
		}
	})
}

func isInvalid(err error) bool {
	_, ok := errors.AsType[*lpmos.InvalidError](err)
	return ok
}

func TestUnpackRefusesDamage(t *testing.T) {
	path := ext4(t, tree(t), "100M")
	out := t.TempDir()
	image, err := Pack(t.Context(), path, options(out))
	if err != nil {
		t.Fatal(err)
	}
	m, pack := open(t, out, image)
	stored, err := os.ReadFile(pack.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("in the pack", func(t *testing.T) {
		bad := bytes.Clone(stored)
		last := m.Chunks[len(m.Chunks)-1]
		bad[last.StoredOffset+last.StoredBytes/2] ^= 1
		disk := garbage(t, m.SizeBytes)
		err := Unpack(t.Context(), m, bytes.NewReader(bad), disk)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("chunk %d ", len(m.Chunks)-1)) {
			t.Errorf("Unpack = %v; want an error that names the last chunk", err)
		}
		b := make([]byte, last.Bytes)
		if _, err := disk.ReadAt(b, last.Offset); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(b, []byte{0xA5}) != len(b) {
			t.Error("a chunk with the wrong digest was written")
		}
	})
	t.Run("in the promised length", func(t *testing.T) {
		bad := *m
		bad.Chunks = slices.Clone(m.Chunks)
		last := &bad.Chunks[len(bad.Chunks)-1]
		last.Bytes -= blockBytes
		bad.UsedBytes -= blockBytes
		if err := Verify(t.Context(), &bad, pack); err == nil || !strings.Contains(err.Error(), "decodes to") {
			t.Errorf("Verify = %v; want an error about the length", err)
		}
	})
	t.Run("in the manifest", func(t *testing.T) {
		p := filepath.Join(out, "blobs", strings.TrimPrefix(image.Digest, "sha256:"))
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, bytes.Replace(b, []byte(`"cloud_init":true`), []byte(`"cloud_init":false`), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(out, image.Digest); err == nil {
			t.Error("Load took a manifest whose digest is another")
		}
	})
}

func TestPlan(t *testing.T) {
	const c = chunkBytes / blockBytes
	for _, test := range []struct {
		name string
		runs []run
		want [][2]int64 // first block, blocks
	}{
		{"cuts at aligned multiples", []run{{1, 2 * c}}, [][2]int64{{1, c - 1}, {c, c}, {2 * c, 1}}},
		{"bridges 64 KiB", []run{{0, 1}, {17, 1}}, [][2]int64{{0, 18}}},
		{"leaves a larger gap", []run{{0, 1}, {18, 1}}, [][2]int64{{0, 1}, {18, 1}}},
		{"does not bridge across a cut", []run{{c - 2, 1}, {c, 1}}, [][2]int64{{c - 2, 1}, {c, 1}}},
		{"keeps on after a bridge", []run{{c - 4, 1}, {c - 2, 4}}, [][2]int64{{c - 4, 4}, {c, 2}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got [][2]int64
			for _, k := range plan(slices.Values(test.runs)) {
				got = append(got, [2]int64{k.Offset / blockBytes, k.Bytes / blockBytes})
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("plan(%v) (-want +got):\n%s", test.runs, diff)
			}
		})
	}
}

func TestPackDiskIsBounded(t *testing.T) {
	// A block of data every MiB.
	b := make([]byte, 16<<20)
	for at := 0; at < len(b); at += 1 << 20 {
		b[at] = 1
	}
	pack := func(holes iter.Seq2[lpmos.Range, error]) error {
		dir := t.TempDir()
		_, err := PackDisk(t.Context(), dir, Disk{Source: bytes.NewReader(b), Bytes: int64(len(b)), Holes: holes})
		if left, _ := os.ReadDir(filepath.Join(dir, "blobs")); len(left) > 0 {
			t.Errorf("a pack that went wrong left %v", left)
		}
		return err
	}
	for name, limit := range map[string]*int{"chunks": &maxChunks, "zeros": &maxZeros} {
		was := *limit
		*limit = 15
		if err := pack(nil); !errors.Is(err, errPieces) {
			t.Errorf("PackDisk of more %s than a manifest lists = %v; want %v", name, err, errPieces)
		}
		*limit = was
	}
	damaged := errors.New("damaged")
	err := pack(func(yield func(lpmos.Range, error) bool) {
		_ = yield(lpmos.Range{Offset: 4096, Bytes: 8192}, nil) && yield(lpmos.Range{}, damaged)
	})
	if !errors.Is(err, damaged) {
		t.Errorf("PackDisk with tables that are damaged = %v", err)
	}
}
