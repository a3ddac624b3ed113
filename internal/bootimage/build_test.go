package bootimage

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/cpio"
	"github.com/lpmos/lpmos/internal/debpkg"
)

// decompress decodes a frame that zeros may follow, with no more memory than
// the kernel uses. A frame's own last bytes may be zeros too.
func decompress(tb testing.TB, b []byte) []byte {
	tb.Helper()
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		tb.Fatal(err)
	}
	defer d.Close()
	frame := bytes.TrimRight(b, "\x00")
	for len(frame) <= len(b) {
		out, err := d.DecodeAll(frame, nil)
		if err == nil {
			return out
		}
		frame = b[:len(frame)+1]
	}
	tb.Fatal("no zstd frame")
	return nil
}

func TestConfig(t *testing.T) {
	good := Config{OutDir: "out", CacheDir: "cache"}
	got, err := good.withDefaults()
	if err != nil || got.Suite != "bookworm" || got.Flavour != "generic" || !filepath.IsAbs(got.CacheDir) {
		t.Errorf("withDefaults = %+v, %v", got, err)
	}
	for field, change := range map[string]func(*Config){
		"suite":     func(c *Config) { c.Suite = "../etc" },
		"flavour":   func(c *Config) { c.Flavour = "rt" },
		"out_dir":   func(c *Config) { c.OutDir = "" },
		"cache_dir": func(c *Config) { c.CacheDir = "" },
	} {
		c := good
		change(&c)
		_, err := c.withDefaults()
		if e, ok := errors.AsType[*lpmos.InvalidError](err); !ok || e.Field != field {
			t.Errorf("with a bad %s = %v; want an InvalidError on it", field, err)
		}
	}
}

// testBuilder has a finished base in its cache, so that only packing is left.
func testBuilder(t *testing.T, out, cache string, agent []byte) *builder {
	t.Helper()
	b := &builder{cfg: Config{OutDir: out, CacheDir: cache, Version: "v1"}, agent: agent, progress: func(string) {},
		in: &inputs{kernel: debpkg.Package{Name: "linux-image-test", Version: "6.1", SHA256: strings.Repeat("a", 64)}}}
	dir := filepath.Join(cache, "base", b.in.digest())
	base := tree{}
	base.file("/etc/mke2fs.conf", 0o644, []byte("[defaults]\n"))
	packed, err := compress(base.archive())
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{kernelFile: []byte("MZ kernel"), "snponly.efi": []byte("MZ ipxe"), initrdFile: packed} {
		if err := writeFile(filepath.Join(dir, name), body); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeJSON(filepath.Join(dir, baseFile), baseRecord{Kernel: "6.1-test", Files: []string{kernelFile, "snponly.efi"}, Entries: len(base)}); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAssemble(t *testing.T) {
	out, cache := t.TempDir(), t.TempDir()
	b := testBuilder(t, out, cache, []byte("agent one"))
	img, rep, err := b.assemble(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if rep.Reused != "base" || img.Version != "6.1-test v1" || img.KernelArgs != kernelArgs {
		t.Errorf("image %+v, reused %q", img, rep.Reused)
	}
	if !strings.Contains(rep.String(), "initrd") {
		t.Errorf("report without the initrd:\n%s", rep)
	}
	var published lpmos.BootImage
	if err := readJSON(filepath.Join(out, "bootimage.json"), &published); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(img, published); d != "" {
		t.Errorf("bootimage.json (-returned +read):\n%s", d)
	}
	initrd, err := os.ReadFile(filepath.Join(out, "blobs", img.Initrd.SHA256))
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(initrd)) != img.Initrd.Bytes || len(initrd)%4 != 0 {
		t.Errorf("initrd has %d bytes, the record says %d; want a multiple of 4", len(initrd), img.Initrd.Bytes)
	}
	all := readInitrd(t, initrd)
	if got := all["/init"]; got.mode != 0o100755 || string(got.data) != "agent one" {
		t.Errorf("/init = %o %q", got.mode, got.data)
	}
	if string(all["/etc/mke2fs.conf"].data) != "[defaults]\n" {
		t.Error("the userland is not in the initrd")
	}

	t.Run("again makes nothing", func(t *testing.T) {
		again, rep, err := b.assemble(t.Context())
		if err != nil || rep.Reused != "all" {
			t.Errorf("assemble = reused %q, %v; want all", rep.Reused, err)
		}
		if d := cmp.Diff(img, again); d != "" {
			t.Errorf("(-first +second):\n%s", d)
		}
	})
	t.Run("elsewhere gives the same bytes", func(t *testing.T) {
		other, _, err := testBuilder(t, t.TempDir(), t.TempDir(), []byte("agent one")).assemble(t.Context())
		if d := cmp.Diff(img, other); d != "" || err != nil {
			t.Errorf("%v (-here +there):\n%s", err, d)
		}
	})
	t.Run("another agent changes only the initrd", func(t *testing.T) {
		other, rep, err := testBuilder(t, out, cache, []byte("agent two")).assemble(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if rep.Reused != "base" || other.Initrd == img.Initrd || other.Kernel != img.Kernel {
			t.Errorf("reused %q, initrd %v, kernel %v", rep.Reused, other.Initrd, other.Kernel)
		}
	})
	t.Run("a lost blob is written again", func(t *testing.T) {
		lost := filepath.Join(out, "blobs", img.Kernel.SHA256)
		if err := os.Remove(lost); err != nil {
			t.Fatal(err)
		}
		_, again, err := b.assemble(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(rep, again); d != "" {
			t.Errorf("report (-first +second):\n%s", d)
		}
		if _, err := os.Stat(lost); err != nil {
			t.Error(err)
		}
	})
}

// readInitrd unpacks concatenated zstd frames of archives, as the kernel does.
func readInitrd(tb testing.TB, b []byte) tree {
	tb.Helper()
	magic := []byte{0x28, 0xb5, 0x2f, 0xfd}
	all := tree{}
	for len(b) > 0 {
		if b[0] == 0 {
			b = b[1:]
			continue
		}
		if !bytes.HasPrefix(b, magic) {
			tb.Fatalf("no archive begins with % x", b[:4])
		}
		// A frame ends where zeros lead to the next one or to the end.
		end := len(b)
		for i := cpio.Align; i < len(b); i += cpio.Align {
			if bytes.HasPrefix(b[i:], magic) {
				end = i
				break
			}
		}
		t, _ := readCPIO(tb, decompress(tb, b[:end]))
		for name, n := range t {
			all[name] = n
		}
		b = b[end:]
	}
	return all
}

func TestCheckStatic(t *testing.T) {
	header := func(machine elf.Machine) []byte {
		b := make([]byte, 64)
		copy(b, "\x7fELF\x02\x01\x01")
		binary.LittleEndian.PutUint16(b[16:], uint16(elf.ET_EXEC))
		binary.LittleEndian.PutUint16(b[18:], uint16(machine))
		binary.LittleEndian.PutUint32(b[20:], 1)
		binary.LittleEndian.PutUint16(b[52:], 64)
		return b
	}
	if err := checkStatic(header(elf.EM_X86_64)); err != nil {
		t.Errorf("checkStatic(amd64) = %v", err)
	}
	if err := checkStatic(header(elf.EM_AARCH64)); err == nil || !strings.Contains(err.Error(), "AARCH64") {
		t.Errorf("checkStatic(arm64) = %v; want an error that names it", err)
	}
	if checkStatic([]byte("#!/bin/sh\n")) == nil {
		t.Error("checkStatic(script) = nil; want an error")
	}
	dynamic, err := os.ReadFile("/usr/bin/dpkg-deb")
	if err != nil {
		t.Fatal(err)
	}
	if checkStatic(dynamic) == nil {
		t.Error("checkStatic(dpkg-deb) = nil; want an error")
	}
}

func TestLockIsExclusive(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock = %v; want it to wait for the first", err)
	}
	unlock()
	if unlock, err = lock(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	unlock()
}
