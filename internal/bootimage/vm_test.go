package bootimage

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/grubboot"
	"github.com/lpmos/lpmos/internal/tier"
)

// needVM lets a test run only in the tier "vm", where everything it needs must
// be there: root, the network's Debian archive, QEMU with OVMF and its iPXE
// ROMs, and the tools that make disks.
func needVM(t *testing.T) {
	t.Helper()
	if !slices.Contains(strings.Split(os.Getenv("LPMOS_REQUIRE"), ","), "vm") {
		tier.Missing(t, "vm", "takes minutes: runs when LPMOS_REQUIRE names it")
	}
	if os.Getuid() != 0 {
		t.Fatal("needs root")
	}
	for _, f := range []string{qemu, ovmfCode, ovmfVars, "/usr/lib/ipxe/qemu/efi-virtio.rom", "/usr/sbin/sfdisk", "/usr/sbin/mke2fs", "/usr/sbin/mkfs.vfat", "/usr/bin/mcopy", "/usr/bin/mmd"} {
		if _, err := os.Stat(f); err != nil {
			t.Fatalf("needs %v", err)
		}
	}
}

const (
	qemu     = "/usr/bin/qemu-system-x86_64"
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// built is one boot image for all tests of the tier, with vminit as its agent.
type built struct {
	img  lpmos.BootImage
	out  string
	root tree // the initrd's content
}

// builtIn is buildOnce's directory, which all tests share.
var builtIn string

func TestMain(m *testing.M) {
	code := m.Run()
	if builtIn != "" {
		os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

var buildOnce = sync.OnceValues(func() (*built, error) {
	cache := filepath.Join(os.TempDir(), "lpmos-bootimage-cache")
	out, err := os.MkdirTemp("", "lpmos-bootimage-")
	if err != nil {
		return nil, err
	}
	builtIn = out
	agent := filepath.Join(out, "vminit")
	cmd := exec.Command("go", "build", "-trimpath", "-o", agent, "./testdata/vminit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build vminit: %w: %s", err, msg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	img, rep, err := Build(ctx, Config{OutDir: out, AgentPath: agent, CacheDir: cache, Version: "vmtest"}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, err
	}
	fmt.Print(rep)
	return &built{img: img, out: out}, nil
})

func image(t *testing.T) *built {
	t.Helper()
	needVM(t)
	b, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	if b.root == nil {
		b.root = readInitrd(t, b.blob(t, b.img.Initrd))
	}
	return b
}

func (b *built) blob(t *testing.T, blob lpmos.Blob) []byte {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(b.out, "blobs", blob.SHA256))
	if err != nil {
		t.Fatal(err)
	}
	return body
}

var escapes = regexp.MustCompile(`\x1b\[[0-9;=?]*[a-zA-Z]|\r`)

// boot runs a machine until its serial console shows one of the markers in a
// complete line, and returns that marker with the console's text.
func boot(t *testing.T, limit time.Duration, args []string, markers ...string) (string, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	args = append([]string{"-accel", "tcg", "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"}, args...)
	cmd := exec.CommandContext(ctx, qemu, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var serial []byte
	found := ""
	buf := make([]byte, 4096)
	for found == "" {
		n, err := out.Read(buf)
		serial = append(serial, buf[:n]...)
		text := escapes.ReplaceAllString(string(serial), "")
		for _, m := range markers {
			if _, rest, ok := strings.Cut(text, m); ok && strings.Contains(rest, "\n") {
				found = m
			}
		}
		if err != nil {
			break
		}
	}
	cancel()
	cmd.Wait()
	text := escapes.ReplaceAllString(string(serial), "")
	log := filepath.Join(t.ArtifactDir(), "serial.log")
	if err := os.WriteFile(log, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if found == "" {
		tail := text[max(0, len(text)-2000):]
		t.Fatalf("none of %q within %s; QEMU said %q; the console ended:\n%s", markers, limit, stderr.String(), tail)
	}
	return found, text
}

// TestContent is about what the agent and the installer rely on.
func TestContent(t *testing.T) {
	b := image(t)
	for _, name := range append(slices.Clone(tools), grubboot.BootImg, grubboot.CoreImg, grubboot.LoaderEFI, "/init", "/etc/mke2fs.conf", "/usr/lib64/ld-linux-x86-64.so.2") {
		if n, ok := b.root[name]; !ok || len(n.data) == 0 {
			t.Errorf("the initrd lacks %s", name)
		}
	}
	for name, target := range toolLinks {
		if n := b.root[name]; n.mode != 0o120777 || string(n.data) != target {
			t.Errorf("%s is %o %q; want a link to %s", name, n.mode, n.data, target)
		}
	}
	for name := range b.root {
		if strings.HasSuffix(name, "/sh") || strings.HasSuffix(name, "/bash") || strings.HasSuffix(name, "busybox") {
			t.Errorf("the initrd has a shell: %s", name)
		}
	}
	for _, name := range append(slices.Clone(ipxeFiles), "localboot.efi", "localboot.0") {
		if b.img.Files[name].Bytes == 0 {
			t.Errorf("the boot image lacks %s", name)
		}
	}
	if _, err := grubboot.PatchLocalBoot(b.blob(t, b.img.Files["localboot.efi"]), ""); err != nil {
		t.Error(err)
	}
}

// TestRebuildIsIdentical builds the expensive part a second time, from the same
// packages.
func TestRebuildIsIdentical(t *testing.T) {
	first := image(t)
	cache, out := t.TempDir(), t.TempDir()
	shared := filepath.Join(os.TempDir(), "lpmos-bootimage-cache")
	unlock, err := lock(t.Context(), shared)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"debs", "apt-bookworm", "apt-ipxe"} {
		if err := os.CopyFS(filepath.Join(cache, dir), os.DirFS(filepath.Join(shared, dir))); err != nil {
			t.Fatal(err)
		}
	}
	unlock()
	start := time.Now()
	img, rep, err := Build(t.Context(), Config{OutDir: out, AgentPath: filepath.Join(first.out, "vminit"), CacheDir: cache, Version: "vmtest"}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("rebuilt in %s", time.Since(start).Round(time.Millisecond))
	if rep.Reused != "nothing" {
		t.Errorf("reused %s; want nothing", rep.Reused)
	}
	if d := cmp.Diff(first.img, img); d != "" {
		t.Errorf("(-first +second):\n%s", d)
	}
}

// TestKernelStarts boots kernel and initrd without a network and lets vminit
// look around: coldplug by modalias, every tool, ext4 and FAT.
func TestKernelStarts(t *testing.T) {
	b := image(t)
	disk := func(name string) string {
		f := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f, 64<<20); err != nil {
			t.Fatal(err)
		}
		return f
	}
	var args []string
	for i, dev := range []string{"virtio-blk-pci", "nvme,serial=N1", "scsi-hd,bus=scsi.0", "ide-hd,bus=ide.1"} {
		if i == 2 {
			args = append(args, "-device", "virtio-scsi-pci,id=scsi")
		}
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=d%d", disk(fmt.Sprint(i)), i), "-device", fmt.Sprintf("%s,drive=d%d", dev, i))
	}
	for _, nic := range []string{"virtio-net-pci", "e1000e", "vmxnet3"} {
		args = append(args, "-device", nic+",romfile=")
	}
	args = append(args, "-machine", "q35", "-m", "512",
		"-kernel", filepath.Join(b.out, "blobs", b.img.Kernel.SHA256), "-initrd", filepath.Join(b.out, "blobs", b.img.Initrd.SHA256),
		"-append", b.img.KernelArgs)
	found, text := boot(t, 3*time.Minute, args, "VMINIT-OK", "VMINIT-FAILED", "Kernel panic")
	if found != "VMINIT-OK" {
		t.Errorf("the console ended:\n%s", text[max(0, len(text)-1500):])
	}
	for _, name := range tools {
		if !strings.Contains(text, "VMINIT-RAN "+name+":") {
			t.Errorf("%s was not run", name)
		}
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "VMINIT-NOTE") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
